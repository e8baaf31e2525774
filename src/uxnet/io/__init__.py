"""Files to volumes and back. The file formats' own axis orders and header fields are known here and nowhere else."""

from uxnet.io.files import as_json, atomic, json_value, read_json, sha256, write_json
from uxnet.io.formats import ImagesFound, images_in, unread_format, unread_message
from uxnet.io.labels_json import read_labels_file
from uxnet.io.mapped import mapped_array
from uxnet.io.nifti import CHANNEL_NAME, case_name, is_nifti, write_image, write_labels, write_probabilities
from uxnet.io.nifti_read import channels_of, read_geometry, read_image, read_labels, voxel_bytes
from uxnet.io.parts import alone, claimed, clear_parts, lock, lock_path, part_path, token_of

__all__ = [
    "CHANNEL_NAME",
    "ImagesFound",
    "alone",
    "as_json",
    "atomic",
    "case_name",
    "channels_of",
    "claimed",
    "clear_parts",
    "images_in",
    "is_nifti",
    "json_value",
    "lock",
    "lock_path",
    "mapped_array",
    "part_path",
    "read_geometry",
    "read_image",
    "read_json",
    "read_labels",
    "read_labels_file",
    "sha256",
    "token_of",
    "unread_format",
    "unread_message",
    "voxel_bytes",
    "write_image",
    "write_json",
    "write_labels",
    "write_probabilities",
]
