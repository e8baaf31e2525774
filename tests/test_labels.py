import json
import re

import numpy as np
import pytest
from grids import FEW
from hypothesis import given
from hypothesis import strategies as st

from uxnet.errors import LabelsError
from uxnet.labels import Label, Labels, Region, is_chamber, labels_from_dataset_json, labels_from_dict, side_of, unpaired_sides


@st.composite
def label_sets(draw):
    """Labels of any values, negative and huge ones too, with or without an ignore label."""
    values = draw(st.lists(st.integers(-(2**40), 2**40) | st.integers(-3, 300), min_size=2, max_size=8, unique=True))
    ignore = values.pop() if len(values) > 2 and draw(st.booleans()) else None
    return Labels(tuple(Label(f"label {n}", v) for n, v in enumerate(values[1:])), background=values[0], ignore=ignore)


def all_values(labels):
    return [labels.background, *(label.value for label in labels.foreground), *([] if labels.ignore is None else [labels.ignore])]


@FEW
@given(label_sets(), st.data())
def test_values_to_indices_and_back(labels, data):
    chosen = data.draw(st.lists(st.sampled_from(all_values(labels)), max_size=24).filter(lambda x: len(x) % 2 == 0))
    values = np.array(chosen, dtype=np.int64).reshape(-1, 2, 1)
    indices = labels.encode(values)
    assert indices.dtype == np.uint8
    assert indices.ravel().tolist() == [all_values(labels).index(v) for v in chosen]
    back = labels.decode(indices)
    assert back.shape == values.shape
    assert back.dtype == labels.dtype
    np.testing.assert_array_equal(back, values)


@FEW
@given(label_sets())
def test_labels_survive_json(labels):
    assert labels_from_dict(json.loads(json.dumps(labels.to_dict()))) == labels


def test_everything_there_is_survives_json():
    labels = Labels(
        foreground=(Label("left lung", 7), Label("right lung", 3)),
        background=1,
        regions=(Region("lungs", (7, 3), 3), Region("left lung", (7,), 7)),
        pairs=(("left lung", "right lung"),),
        ignore=255,
        colours=(("lungs", (1, 2, 3)),),
    )
    assert labels_from_dict(json.loads(json.dumps(labels.to_dict()))) == labels


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64"])
def test_every_integer_type_encodes_alike(dtype):
    labels = Labels((Label("a", 5), Label("b", 100)), ignore=127)
    values = np.array([0, 127, 100, 5, 5, 0], dtype=dtype)
    np.testing.assert_array_equal(labels.encode(values), [0, 3, 2, 1, 1, 0])


def test_many_labels_need_two_bytes():
    for count, dtype in ((254, np.uint8), (255, np.uint16), (400, np.uint16)):
        labels = Labels(tuple(Label(str(n), n) for n in range(1, count + 1)), ignore=1000)
        values = np.array([count, 0, 1000, 1])
        assert labels.encode(values).dtype == dtype
        np.testing.assert_array_equal(labels.encode(values), [count, 0, count + 1, 1])
        np.testing.assert_array_equal(labels.decode(labels.encode(values)), values)


@pytest.mark.parametrize("values", [[0, 9], [0, -1], [2**40, 0], [-(2**40)], [1.5, 0.0], [np.nan], [255]], ids=str)
def test_a_value_that_is_no_label_is_named(values):
    with pytest.raises(LabelsError, match=re.escape(str(max(values, key=abs)))):
        Labels((Label("a", 1), Label("b", 2))).encode(np.array(values))


def test_not_all_of_a_thousand_wrong_values_are_named():
    with pytest.raises(LabelsError, match="and 987 more") as caught:
        Labels((Label("a", 1),)).encode(np.arange(1001))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ((0, 255), "uint8"),
        ((0, 256), "uint16"),
        ((-1, 1), "int8"),
        ((-1, 128), "int16"),
        ((0, 65536), "int32"),
        ((0, 2**31), "int64"),
        ((-129, 0), "int16"),
    ],
)
def test_the_smallest_type_that_holds_every_value(values, dtype):
    assert Labels((Label("a", values[1]),), background=values[0]).dtype == dtype
    assert Labels((Label("a", 77),), background=values[0], ignore=values[1]).dtype == dtype
    assert Labels((Label("a", 77),), background=values[0], regions=(Region("r", (77,), values[1]),)).dtype == dtype


def test_masks_of_labels_and_regions():
    labels = Labels((Label("core", 2), Label("rim", 5)), regions=(Region("whole", (2, 5), 5), Region("core", (2,), 2)))
    values = np.array([0, 2, 5])
    assert labels.classes == ("whole", "core")
    assert labels.out_channels == 2
    assert labels.mask(values, "whole").tolist() == [False, True, True]
    assert labels.mask(values, "rim").tolist() == [False, False, True]
    with pytest.raises(LabelsError, match="'tail'"):
        labels.mask(values, "tail")


A = Label("a", 1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Labels(()), "at least one"),
        (lambda: Labels((A, Label("a", 2))), "name a "),
        (lambda: Labels((A, Label("b", 1))), "value 1"),
        (lambda: Labels((Label("a", 0),)), "value 0"),
        (lambda: Labels((A,), ignore=1), "value 1"),
        (lambda: Labels((A,), ignore=0), "value 0"),
        (lambda: Labels((A,), regions=(Region("r", (1,), 1), Region("r", (1,), 2))), "region r"),
        (lambda: Labels((A,), regions=(Region("r", (), 1),)), "'r'"),
        (lambda: Labels((A,), regions=(Region("r", (1, 2), 1),)), "'r'"),
        (lambda: Labels((A,), pairs=(("a", "z"),)), "'z'"),
        (lambda: Labels((A,), colours=(("z", (0, 0, 0)),)), "'z'"),
    ],
)
def test_contradictions_are_named(make, says):
    with pytest.raises(LabelsError, match=says):
        make()


def test_given_colours_count_and_others_differ():
    labels = Labels(tuple(Label(f"n{i}", i) for i in range(1, 14)), colours=(("n3", (1, 2, 3)),))
    colours = [labels.colour(label.name) for label in labels.foreground]
    assert colours[2] == (1, 2, 3)
    assert len(set(colours)) == 13
    assert all(0 <= c <= 255 for colour in colours for c in colour)


def test_the_decathlons_form():
    labels = labels_from_dataset_json({"labels": {"0": "background", "2": "Posterior", "1": "Anterior"}})
    assert labels == Labels((Label("Anterior", 1), Label("Posterior", 2)))


def test_nnunets_form():
    labels = labels_from_dataset_json({"labels": {"background": 0, "tumour": 7, "liver": 3, "ignore": 9}})
    assert labels == Labels((Label("liver", 3), Label("tumour", 7)), ignore=9)
    assert labels.ignore_index == 3
    assert labels.out_channels == 3


BRATS = {
    "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3, "ignore": 4},
    "regions_class_order": [1, 2, 3],
}


def test_nnunets_regions():
    labels = labels_from_dataset_json(BRATS)
    assert labels.classes == ("whole tumor", "tumor core", "enhancing tumor")
    assert [r.values for r in labels.regions] == [(1, 2, 3), (2, 3), (3,)]
    assert [r.writes for r in labels.regions] == [1, 2, 3]
    assert [label.value for label in labels.foreground] == [1, 2, 3]
    assert labels.foreground[2].name == "enhancing tumor"
    assert labels.ignore == 4
    assert labels.out_channels == 3


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["left kidney", "right kidney", "liver"], (("left kidney", "right kidney"),)),
        (["Left_Lung", "Right_Lung"], (("Left_Lung", "Right_Lung"),)),
        (["HIPPO LEFT", "HIPPO RIGHT"], (("HIPPO LEFT", "HIPPO RIGHT"),)),
        (["kidney_left", "kidney_right", "lung_left"], (("kidney_left", "kidney_right"),)),
        (["kidney_right", "lung_left"], ()),
        (["Parotid_L", "Parotid_R", "Lens_L"], (("Parotid_L", "Parotid_R"),)),
        (["r x", "l x"], (("l x", "r x"),)),
        (["lh", "rh"], (("lh", "rh"),)),
        (["ctx-rh-insula_l", "ctx-lh-insula_l"], (("ctx-lh-insula_l", "ctx-rh-insula_l"),)),
        (["Kidney, Lt.", "Kidney, Rt."], (("Kidney, Lt.", "Kidney, Rt."),)),
        (["LKidney", "RKidney", "hipL", "hipR"], (("LKidney", "RKidney"), ("hipL", "hipR"))),
        (["Lkidney", "Rkidney"], (("Lkidney", "Rkidney"),)),
        (["leftkidney", "kidneyright"], (("leftkidney", "kidneyright"),)),
        (["Left-Lateral-Ventricle", "Right-Lateral-Ventricle"], (("Left-Lateral-Ventricle", "Right-Lateral-Ventricle"),)),
        (["left ventricle", "right ventricle", "heart_atrium_left", "heart_atrium_right", "LV", "RV", "LA", "RA"], ()),
        (["left kidney", "kidney left", "right kidney"], ()),  # two lefts
        (["left and right kidney", "kidney"], ()),
        (["L1", "L 1", "R1", "R 1", "vertebra_L_2"], ()),
        (["a", "b"], ()),
    ],
)
def test_left_and_right_are_found_in_the_names(names, pairs):
    assert labels_from_dataset_json({"labels": {"background": 0, **{n: i + 1 for i, n in enumerate(names)}}}).pairs == pairs


NO_SIDE = ["L1", "L 5", "vertebrae_L_1", "LV", "LNs", "bright spot", "cleft", "Liver", "lung", "R2*", "RIGHT VENTRICLE"]


@pytest.mark.parametrize("name", NO_SIDE)
def test_names_that_say_no_side(name):
    assert side_of(name)[0] is None


def test_what_says_a_side_and_is_in_no_pair():
    names = ["background", "Eye_L", "Eye_R", "Lens_R", "L1", "left atrium"]
    labels = labels_from_dataset_json({"labels": {name: value for value, name in enumerate(names)}})
    assert unpaired_sides(labels) == ("Lens_R",)
    assert [name for name in labels.classes if is_chamber(name)] == ["left atrium"]


def test_no_pairs_can_be_said():
    data = {"labels": {"background": 0, "left kidney": 1, "right kidney": 2}, "pairs": []}
    labels = labels_from_dataset_json(data)
    assert labels.pairs == ()
    assert labels.pairs_said
    assert not labels_from_dataset_json(data | {"pairs": None}).pairs_said


def test_pairs_and_colours_are_taken_where_given():
    data = {"labels": {"background": 0, "a": 1, "b": 2}, "pairs": [["a", "b"]], "colours": {"b": [9, 8, 7]}}
    labels = labels_from_dataset_json(data)
    assert labels.pairs == (("a", "b"),)
    assert labels.colour("b") == (9, 8, 7)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"labels": {}},
        {"labels": ["a", "b"]},
        {"labels": {"background": 0}},
        {"labels": {"background": 0, "a": 1.5}},
        {"labels": {"background": 0, "a": None}},
        {"labels": {"background": 0, "a": float("inf")}},
        {"labels": {"background": 0, "a": float("nan")}},
        {"labels": {"background": 0, "a": 1, "b": 1}},
        {"labels": {"background": [0], "a": 1}},
        {"labels": {"one": "a", "0": "background"}},
        {"labels": {"1e999": "a", "0": "background"}},
        {"labels": {"0": "background", "1": "a", "2": "a"}},
        {"labels": {"background": 0, "a": [1, 2], "b": 2}},
        {"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1]},
        {"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": ["x", 1]},
        {"labels": {"background": 0, "a": [], "b": 2}, "regions_class_order": [1, 2]},
        {"labels": {"background": 0, "a": 1}, "pairs": [["a"]]},
        {"labels": {"background": 0, "a": 1}, "pairs": 3},
        {"labels": {"background": 0, "a": 1}, "colours": {"a": [1, 2]}},
        {"labels": {"background": 0, "a": 1}, "colours": {"a": "red"}},
        {"labels": {"background": 0, "a": 1}, "colours": [1]},
    ],
    ids=str,
)
def test_what_describes_no_labels_is_refused(data):
    with pytest.raises(LabelsError):
        labels_from_dataset_json(data)


@pytest.mark.parametrize(
    "change",
    [
        {"foreground": None},
        {"foreground": [{"name": "a"}]},
        {"foreground": [{"name": "a", "value": 1.5}]},
        {"foreground": [{"name": "a", "value": "x"}]},
        {"background": None},
        {"regions": [{"name": "r"}]},
        {"pairs": [["a"]]},
        {"colours": []},
        {"colours": {"a": [1]}},
    ],
    ids=str,
)
def test_a_damaged_description_is_refused(change):
    with pytest.raises(LabelsError):
        labels_from_dict(Labels((A,)).to_dict() | change)
