"""Which model a training begins with that is given the folder of a cross-validation: chosen by validation, never by test cases."""

import pytest
from made_records import made_record, write_records

from uxnet.crossval.best_fold import model_to_begin_with
from uxnet.errors import InputError, UsageError
from uxnet.events import Note


def crossval(folder, dices, names=("uxnet",), models=True):
    """dices: the last validation's Dice of each fold. The better a fold validates, the worse it tests."""
    for name in names:
        for fold, dice in enumerate(dices):
            curve = [{"step": 300, "seconds": 1.0, "dice": 0.99}, {"step": 400, "seconds": 2.0, "dice": dice}]
            write_records(folder, [made_record(name, fold, {f"case{fold}": 1 - (dice or 0)}, network="uxnet", curve=curve)])
            if models:
                model = folder / "runs" / f"{name}-fold{fold}" / "model.uxnet"
                model.parent.mkdir(parents=True)
                model.write_bytes(b"")
    return folder


def test_the_fold_that_did_best_in_its_validation(tmp_path):
    folder, said = crossval(tmp_path / "cv", [0.7, 0.9, None, 0.8]), []
    assert model_to_begin_with(folder, said.append) == folder / "runs" / "uxnet-fold1" / "model.uxnet"
    (note,) = said
    assert isinstance(note, Note)
    assert "uxnet-fold1 did best in its validation (0.9000; others: uxnet-fold0 0.7000, uxnet-fold3 0.8000)" in note.message


def test_of_several_networks_one_is_named(tmp_path):
    folder = crossval(tmp_path / "cv", [0.9, 0.7], ["uxnet", "eq1"])
    assert model_to_begin_with(folder / "eq1").parent.name == "eq1-fold0"
    with pytest.raises(UsageError, match=r"write which: .*cv/eq1 or .*cv/uxnet"):
        model_to_begin_with(folder)
    with pytest.raises(UsageError, match="no network there is called unet; there are: eq1, uxnet"):
        model_to_begin_with(folder / "unet")


def test_what_is_no_cross_validation_is_a_file_or_a_name(tmp_path):
    assert model_to_begin_with(tmp_path / "model.uxnet") == tmp_path / "model.uxnet"
    with pytest.raises(UsageError, match="nowhere"):
        model_to_begin_with(type(tmp_path)("nowhere"))


def test_a_model_that_is_gone_and_folds_without_validation_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"uxnet-fold1.model\.uxnet: is not there, but uxnet-fold1 did best"):
        model_to_begin_with(crossval(tmp_path / "a", [0.7, 0.9], models=False))
    with pytest.raises(InputError, match="no record there has a validation"):
        model_to_begin_with(crossval(tmp_path / "b", [None]))
