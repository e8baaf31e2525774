import pytest

from uxnet.dataset.sides import check_trained_sides, lateral_axis, paired_indices
from uxnet.errors import LabelsError, RecipeError
from uxnet.labels import Label, Labels, Region, labels_from_dataset_json
from uxnet.recipe import Augmentation, Preparation, Stage

FOUR = (Label("spleen", 9), Label("left kidney", 4), Label("right kidney", 7), Label("left lung", 1), Label("right lung", 2))


@pytest.mark.parametrize(("orientation", "axis"), [("RAS", 0), ("LPS", 0), ("AIL", 2), ("SRA", 1)])
def test_the_lateral_axis(orientation, axis):
    assert lateral_axis(orientation) == axis


def test_an_orientation_without_left_and_right_is_none():
    with pytest.raises(ValueError, match="R or L"):
        lateral_axis("ASA")


def test_paired_labels_trade_their_indices():
    labels = Labels(FOUR, pairs=(("right kidney", "left kidney"), ("left lung", "right lung"), ("left kidney", "right kidney")), ignore=3)
    assert paired_indices(labels) == ((2, 3), (4, 5))
    assert paired_indices(Labels(FOUR)) == ()


@pytest.mark.parametrize(
    "pairs",
    [[("left kidney", "right kidney"), ("left kidney", "right lung")], [("spleen", "spleen")]],
    ids=["two partners", "itself"],
)
def test_a_label_has_one_partner(pairs):
    with pytest.raises(LabelsError, match="can be paired with one other"):
        paired_indices(Labels(FOUR, pairs=tuple(pairs)))


def regions(pairs, *more):
    sides = Region("left", (4, 1), 1), Region("right", (7, 2), 2)
    return Labels(FOUR, regions=(Region("whole", (4, 7, 1, 2), 3), *sides, *more), pairs=tuple(pairs))


def test_paired_regions_trade_the_labels_that_only_one_of_them_has():
    labels = Labels(FOUR[:3], regions=(Region("l", (9, 4), 1), Region("r", (9, 7), 2), Region("both", (4, 7), 3)), pairs=(("l", "r"),))
    assert paired_indices(labels) == ((2, 3),)
    organs = [("left kidney", "right kidney"), ("left lung", "right lung")]
    assert paired_indices(regions([*organs, ("left", "right")])) == ((2, 3), (4, 5))
    # One pair said, the other is what is left.
    assert paired_indices(regions([organs[1], ("left", "right")])) == ((2, 3), (4, 5))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (regions([("left", "right")]), r"'left' becomes 'right'.*'left kidney' and 'left lung'"),
        (regions([("left kidney", "right lung"), ("left lung", "right kidney")]), r"'left' stays what it is"),
        (regions([("left kidney", "right kidney"), ("left", "right")], Region("kidney", (4,), 5)), r"'kidney' stays what it is"),
        (regions([("left", "left lung")]), "a label and a region"),
    ],
    ids=["labels not paired", "regions not paired", "a region of one side alone", "a label with a region"],
)
def test_pairs_that_would_leave_a_region_on_the_wrong_side_are_refused(labels, message):
    with pytest.raises(LabelsError, match=message):
        paired_indices(labels)


def stages(mirror, orientation="RAS"):
    return [Stage(prepare=Preparation(orientation=orientation), augment=Augmentation(mirror=mirror))]


def test_mirrored_sides_need_their_counterparts():
    lone = {"labels": {"background": 0, "Parotid_L": 1, "Parotid_R": 2, "Lens_L": 3, "left atrium": 4}}
    labels, told = labels_from_dataset_json(lone), []
    with pytest.raises(RecipeError, match=r"axis k runs between left and right.* 'Lens_L' would be"):
        check_trained_sides(stages((False, False, True), "AIL"), labels)
    check_trained_sides(stages((True, True, False), "AIL"), labels, told.append)
    check_trained_sides(stages((True,) * 3), labels_from_dataset_json(lone | {"pairs": []}), told.append)
    assert told == []
    del lone["labels"]["Lens_L"]
    check_trained_sides(stages((True,) * 3), labels_from_dataset_json(lone), told.append)
    assert "'left atrium'" in told[0].message
