"""Keeping the largest connected component of a class."""

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from uxnet.errors import LabelsError
from uxnet.inference import postprocess as components
from uxnet.inference.postprocess import keep_largest
from uxnet.labels import Label, Labels, Region

ORGANS = Labels((Label("liver", 1), Label("spleen", 300), Label("vessel", 7)))
TUMOUR = Labels(
    (Label("oedema", 1), Label("core", 2), Label("enhancing", 3)),
    regions=(Region("whole", (1, 2, 3), 1), Region("core", (2, 3), 2), Region("enhancing", (3,), 3)),
)


def blocks(dtype=np.uint16):
    """A large liver, a small one, two spleens of one size, and a vessel of voxels that touch by their corners alone."""
    values = np.zeros((20, 18, 16), dtype)
    values[1:6, 1:6, 1:6] = 1
    values[10:12, 10:12, 10:12] = 1
    values[15:17, 2:4, 2:4] = 300
    values[15:17, 8:10, 2:4] = 300
    for n in range(5):
        values[8 + n, 1 + n, 8 + n] = 7
    values[19, 17, 15] = 7
    return values


def slowly(values, members, background):
    """Of whole arrays, by the definition."""
    pieces, count = ndimage.label(np.isin(values, members), np.ones((3, 3, 3)))
    if count:
        largest = 1 + np.argmax([(pieces == n).sum() for n in range(1, count + 1)])
        values[(pieces > 0) & (pieces != largest)] = background


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("lay", [np.ascontiguousarray, np.asfortranarray], ids=["C", "F"])
def test_only_the_largest_piece_of_each_named_class_stays(dtype, lay):
    values = lay(blocks(dtype))
    whole = values.copy()
    assert keep_largest(values, ORGANS, ["liver", "vessel"]) is values
    expected = whole.copy()
    expected[10:12, 10:12, 10:12] = 0
    expected[19, 17, 15] = 0
    np.testing.assert_array_equal(values, expected)
    assert values.dtype == dtype


@pytest.mark.parametrize("lay", [np.ascontiguousarray, np.asfortranarray], ids=["C", "F"])
def test_of_equal_pieces_the_first_stays(lay):
    values = keep_largest(lay(blocks()), ORGANS, ["spleen"])
    assert (values[15:17, 2:4, 2:4] == 300).all()
    assert (values[15:17, 8:10, 2:4] == 0).all()


def test_voxels_that_touch_by_a_corner_are_one_piece():
    values = keep_largest(blocks(), ORGANS, ["vessel"])
    assert (values == 7).sum() == 5


def test_all_means_every_class():
    values = keep_largest(blocks(), ORGANS, ["all"])
    np.testing.assert_array_equal(values, keep_largest(blocks(), ORGANS, ["liver", "spleen", "vessel"]))
    called_so = Labels((Label("all", 1), Label("other", 7)))
    np.testing.assert_array_equal(keep_largest(blocks(), called_so, ["all"]), keep_largest(blocks(), ORGANS, ["liver"]))


@pytest.mark.parametrize("slab", [1, 37, 400, 1 << 20])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int64])
def test_it_is_what_the_definition_says_however_the_array_is_cut(monkeypatch, slab, dtype):
    rng = np.random.default_rng(slab)
    names, values_of = ("a", "b", "c"), (5, 9, 100) if dtype != np.int8 else (5, -9, -100)
    labels = Labels(tuple(Label(n, v) for n, v in zip(names, values_of, strict=True)))
    values = rng.choice([0, 0, 0, 0, *values_of], (9, 11, 13)).astype(dtype)
    cut = components._slabs
    monkeypatch.setattr(components, "_slabs", lambda array: cut(array, slab))
    for view in (values, values.transpose(2, 0, 1), values[::-1, ::2], values[:, 3:4]):
        mine, theirs = view.copy(order="K"), view.copy()
        keep_largest(mine, labels, ["all"])
        for value in values_of:
            slowly(theirs, [value], 0)
        np.testing.assert_array_equal(mine, theirs)


def test_a_view_is_changed_in_place():
    whole = np.zeros((3, *blocks().shape), np.uint16)
    whole[1] = blocks()
    flipped = whole[1].transpose(2, 0, 1)[::-1]
    keep_largest(flipped, ORGANS, ["all"])
    assert (whole[1] == 1).sum() == 125
    assert (whole[[0, 2]] == 0).all()


def test_removed_voxels_become_the_background_that_the_labels_have():
    labels = Labels((Label("liver", 1), Label("spleen", 300), Label("vessel", 7)), background=40)
    values = blocks()
    values[values == 0] = 40
    keep_largest(values, labels, ["liver"])
    assert (values[10:12, 10:12, 10:12] == 40).all()


def test_what_is_not_there_changes_nothing():
    for values in (np.zeros((4, 5, 6), np.uint8), np.full((4, 5, 6), 7, np.uint8)):
        before = values.copy()
        np.testing.assert_array_equal(keep_largest(values, ORGANS, ["all"]), before)
    np.testing.assert_array_equal(keep_largest(blocks(), ORGANS, []), blocks())


def test_a_region_is_a_piece_by_all_its_labels():
    values = np.zeros((12, 5, 5), np.uint8)
    values[0:6, 1:4, 1:4] = 1
    values[2:4, 2, 2] = 2
    values[3, 2, 2] = 3
    values[9:11, 1:3, 1:3] = 3
    expected = values.copy()
    expected[9:11] = 0
    np.testing.assert_array_equal(keep_largest(values.copy(), TUMOUR, ["whole"]), expected)
    # The largest core is the one outside: what the whole keeps decides first.
    alone = keep_largest(values.copy(), TUMOUR, ["core"])
    assert (alone[9:11, 1:3, 1:3] == 3).all()
    assert alone[2, 2, 2] == 0
    np.testing.assert_array_equal(keep_largest(values.copy(), TUMOUR, ["all"]), expected)


def test_an_unknown_name_is_refused_before_anything_changes():
    values = blocks()
    with pytest.raises(LabelsError, match=r"'gall'.*liver"):
        keep_largest(values, ORGANS, ["liver", "gall"])
    np.testing.assert_array_equal(values, blocks())


def test_memory_is_that_of_the_box_around_one_class():
    values = np.zeros((160, 160, 160), np.uint8, order="F")
    values[:, :, :] = 0
    values[10:50, 10:50, 10:50] = 1
    values[10, 10, 60] = 1
    tracemalloc.start()
    keep_largest(values, ORGANS, ["liver"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (values == 1).sum() == 40**3
    assert peak < 5 * 40 * 40 * 51 + 24e6  # the box, and a slab of a million voxels with their places
