"""`--fold K --split FILE`: the cases of one fold, for commands that take files and no dataset."""

from __future__ import annotations

from pathlib import Path


def cases_of_fold(fold: int | None, split: Path | None) -> tuple[str, ...] | None:
    """The cases that tell how good a model of this fold is: its test cases, or where it has none, those that validate.

    Returns:
        None where neither flag is given.

    Raises:
        UsageError: if only one of the flags is given, or there is no such fold.
        DatasetError: if the file is no split.
    """
    from uxnet.dataset.folds import read_fold
    from uxnet.errors import UsageError

    if fold is None and split is None:
        return None
    if fold is None or split is None:
        raise UsageError("--fold K and --split FILE go together: the fold's number, from 0, and the split.json of the training")
    return read_fold(split, fold).scored
