"""Files to volumes and back. The file formats' own axis orders and header fields are known here and nowhere else."""

from uxnet.io.files import alone, atomic, json_value, read_json, sha256, write_json
from uxnet.io.labels_json import read_labels_file
from uxnet.io.nifti import CHANNEL_NAME, case_name, is_nifti, write_image, write_labels, write_probabilities
from uxnet.io.nifti_read import read_geometry, read_image, read_labels, voxel_bytes

__all__ = [
    "CHANNEL_NAME",
    "alone",
    "atomic",
    "case_name",
    "is_nifti",
    "json_value",
    "read_geometry",
    "read_image",
    "read_json",
    "read_labels",
    "read_labels_file",
    "sha256",
    "voxel_bytes",
    "write_image",
    "write_json",
    "write_labels",
    "write_probabilities",
]
