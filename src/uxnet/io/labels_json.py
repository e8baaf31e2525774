"""What the values of label maps mean, in JSON files."""

from __future__ import annotations

from pathlib import Path

from uxnet.errors import DatasetError, LabelsError
from uxnet.io.files import read_json
from uxnet.labels import Labels, labels_from_json


def read_labels_file(path: Path) -> Labels:
    """The labels in a `dataset.json` (the Decathlon's or nnU-Net's form) or in a JSON file of `Labels.to_dict`.

    Raises:
        DatasetError: if the file is missing or no JSON object.
        LabelsError: if it holds no valid labels.
    """
    data = read_json(path, DatasetError)
    try:
        return labels_from_json(data)
    except LabelsError as error:
        raise LabelsError(f"{path}: {error}") from error
