import dataclasses

import pytest
from tiny_datasets import decathlon

from uxnet.cli.inspect import run as inspect
from uxnet.dataset.check import check_dataset
from uxnet.dataset.fingerprint import CaseFacts, Fingerprint
from uxnet.dataset.manifest import read_dataset
from uxnet.dataset.organs import doubtful_names
from uxnet.demo.phantoms import write_phantoms

# Means of adults (Geraghty et al. 2004), both sides of a kidney apart.
ADULT = {"liver": 1500.0, "spleen": 200.0, "right kidney": 160.0, "left kidney": 165.0, "pancreas": 75.0, "left adrenal gland": 4.4}


def fingerprint(*cases):
    """Of cases of the given volumes, ml; 0 where an organ is not shown."""
    classes = tuple(dict.fromkeys(name for volumes in cases for name in volumes))
    facts = tuple(
        CaseFacts(f"{n}", (9, 9, 9), (1, 1, 1), "RAS", 1, (), (), {k: int(v > 0) for k, v in volumes.items()}, volumes, "", "")
        for n, volumes in enumerate(cases)
    )
    return Fingerprint(facts, classes, ("CT",))


def renamed(volumes, a, b):
    return {{a: b, b: a}.get(name, name): volume for name, volume in volumes.items()}


def doubts(*cases):
    return list(doubtful_names(fingerprint(*cases)))


def test_adults_are_not_doubted():
    assert doubts(ADULT) == []
    assert doubts(*[{name: volume * share for name, volume in ADULT.items()} for share in (0.6, 1, 1.6)]) == []
    assert list(doubtful_names(fingerprint())) == []


@pytest.mark.parametrize("other", ["spleen", "right kidney", "left kidney", "pancreas", "left adrenal gland"])
def test_a_liver_that_has_another_organs_name_is_caught(other):
    told = doubts(*[renamed(ADULT, "liver", other)] * 3)
    assert any("'liver'" in line and f"'{other}'" in line and "3 of the 3 cases" in line for line in told)


def test_most_cases_decide_and_those_that_show_both():
    small = {"liver": 700.0, "spleen": 90.0}
    swapped = renamed(small, "liver", "spleen")
    assert doubts(small, small, swapped) == []
    assert doubts(small, swapped) == []
    assert len(doubts(small, swapped, swapped)) == 1
    assert doubts(small, {**swapped, "liver": 0.0}, {**swapped, "spleen": 0.0}, {**swapped, "liver": 0.0}) == []


def test_one_enlarged_spleen_is_a_patient_and_all_of_them_a_doubt():
    large = {**ADULT, "spleen": 1400.0}
    assert doubts(ADULT, ADULT, large) == []
    (told,) = doubts(large, large, large)
    assert "'spleen' has a median volume of 1400 ml" in told


def test_a_single_class_can_be_doubted():
    (told,) = doubts({"spleen": 1500.0}, {"spleen": 1400.0})
    assert "hardly any spleen" in told


def test_an_organ_cut_off_by_the_field_of_view_has_no_lower_limit():
    assert doubts({"liver": 30.0, "pancreas": 20.0}, {"liver": 5.0}) == []


@pytest.mark.parametrize(
    ("larger", "smaller"),
    [
        ("Liver", "SPLEEN"),
        ("liver", "Kidneys"),
        ("liver", "kidney_right"),
        ("liver", "gallbladder"),
        ("liver", "right adrenal"),
        ("liver", "adrenal_gland_left"),
        ("white_matter", "brain stem"),
        ("White Matter", "deep_gray_matter"),
        ("white-matter", "cerebellum"),
    ],
)
def test_names_are_known_however_they_are_written(larger, smaller):
    assert doubts({larger: 9.0, smaller: 3.0}) == []
    assert len(doubts({larger: 3.0, smaller: 9.0})) == 1


def test_other_names_are_not_spoken_of():
    assert doubts({"tumour": 9000.0, "liver": 20.0}, {"liver tumour": 1.0, "liver": 0.5, "spleen vein": 4000.0}) == []


def test_phantoms_are_not_doubted_and_their_swap_is(tmp_path):
    write_phantoms(tmp_path, 2, seed=3)
    manifest = read_dataset(tmp_path)
    assert check_dataset(manifest).problems == ()
    names = {label.name: label.value for label in manifest.labels.foreground}
    swap = {names["liver"]: "spleen", names["spleen"]: "liver"}
    foreground = tuple(dataclasses.replace(label, name=swap.get(label.value, label.name)) for label in manifest.labels.foreground)
    labels = dataclasses.replace(manifest.labels, foreground=foreground)
    inspection = check_dataset(dataclasses.replace(manifest, labels=labels))
    assert [problem.case for problem in inspection.warnings] == [""] * len(inspection.warnings)
    assert any("'liver' is smaller than 'spleen' in 2 of the 2 cases" in problem.message for problem in inspection.warnings)


def test_inspect_shows_the_doubt_and_does_not_refuse(tmp_path, capsys):
    decathlon(tmp_path, ["a", "b"], labels=("liver", "spleen"))  # one voxel and two
    assert inspect(tmp_path) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "'liver' is smaller than 'spleen' in 2 of the 2 cases" in shown
    assert "0 errors, 1 warning" in shown
