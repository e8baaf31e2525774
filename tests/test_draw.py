"""Pictures: the right way round, in true proportions, in the labels' colours, and the same bytes every time."""

import sys
from subprocess import run

import numpy as np
import pytest

from uxnet.draw import Row, best_slice, boxes, comparison_figure, curves, edge_letters, robust_limits, slice_picture
from uxnet.errors import InputError
from uxnet.geometry import Geometry, axis_order
from uxnet.labels import Label, Labels
from uxnet.volume import Volume

RED, BLUE = (255, 0, 0), (0, 0, 255)
LABELS = Labels((Label("left thing", 5), Label("right thing", 9)), colours=(("left thing", RED), ("right thing", BLUE)))
PLANES = ("axial", "coronal", "sagittal")


def _stored(array, orientation, spacing=(2.0, 3.0, 5.0)):
    """An array given along RAS, stored along other axes."""
    geometry = Geometry(array.shape, np.diag([*spacing, 1.0]))
    order = axis_order(geometry, orientation)
    return Volume(order.apply(array)[None], order.apply_to(geometry))


def _volume(orientation="RAS"):
    array = np.zeros((20, 10, 8), dtype=np.float32)
    array[14:, 6:, 5:] = 1
    return _stored(array, orientation)


def _maps(orientation="RAS"):
    array = np.zeros((20, 10, 8), dtype=np.uint8)
    array[2:8, 2:8, 1:7] = 5
    array[12:18, 2:8, 3] = 9
    return _stored(array, orientation)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "AIL", "SPR"])
@pytest.mark.parametrize("plane", PLANES)
def test_a_slice_looks_the_same_however_it_is_stored(plane, orientation):
    wanted = slice_picture(_volume(), plane, 7, limits=(0, 1), side_px=120)
    assert np.array_equal(slice_picture(_volume(orientation), plane, 7, limits=(0, 1), side_px=120), wanted)


def test_the_patients_right_front_and_top_are_where_the_letters_say():
    # The corner is to the right, in front and on top; pictures show right, front and top at the left and the upper border.
    for plane, index in (("axial", 7), ("coronal", 9), ("sagittal", 19)):
        picture = slice_picture(_volume("LPS"), plane, index, limits=(0, 1), side_px=100)
        assert picture[0, 0].tolist() == [255, 255, 255]
        assert picture[-1, -1].tolist() == [0, 0, 0]
        assert picture[0, -1].max() == picture[-1, 0].max() == 0
    assert edge_letters("axial") == ("R", "L", "A", "P")
    assert edge_letters("coronal") == ("R", "L", "S", "I")
    assert edge_letters("sagittal") == ("A", "P", "S", "I")


def test_proportions_are_those_in_millimetres():
    # 40 x 30 x 40 mm.
    sizes = {plane: slice_picture(_volume("AIL"), plane, 4, side_px=200).shape for plane in PLANES}
    assert sizes == {"axial": (150, 200, 3), "coronal": (200, 200, 3), "sagittal": (200, 150, 3)}


def test_outlines_have_the_labels_colours_and_leave_the_inside_grey():
    picture = slice_picture(_volume(), "axial", 3, label_map=_maps(), labels=LABELS, limits=(0, 1), side_px=200, outline_px=2)
    assert picture.dtype == np.uint8
    red, blue = (np.all(picture == c, axis=2) for c in (RED, BLUE))
    # The left thing lies at small x, so on the right of the picture; each is 60 px wide and 90 high.
    assert np.argwhere(red)[:, 1].min() == 120
    assert np.argwhere(red)[:, 1].max() == 179
    assert np.argwhere(blue)[:, 1].max() == 79
    rows, columns = (np.ptp(np.argwhere(red)[:, a]) + 1 for a in (0, 1))
    assert (rows, columns) == (90, 60)
    assert red[75, 120:124].tolist() == [True, True, False, False]
    assert not red[75, 150]


def test_a_fill_covers_the_inside_and_no_outline_draws_none():
    filled = slice_picture(_volume(), "axial", 3, label_map=_maps(), labels=LABELS, limits=(0, 1), side_px=200, fill=0.4)
    assert filled[75, 150].tolist() == [102, 0, 0]
    bare = slice_picture(_volume(), "axial", 3, label_map=_maps(), labels=LABELS, limits=(0, 1), side_px=200, outline_px=0)
    assert np.array_equal(bare[..., 0], bare[..., 1])


def test_the_best_slice_shows_most_labels_then_most_of_them():
    assert best_slice(_maps(), "axial") == 3
    assert best_slice(_maps("SPR"), "axial") == 3
    assert best_slice(_maps(), "coronal") in range(2, 8)
    assert best_slice(_volume(), "axial") in range(5, 8)
    nothing = _maps().with_array(np.zeros((1, 20, 10, 8), dtype=np.uint8))
    assert best_slice(nothing, "sagittal") == 10


def test_a_window_is_never_empty():
    flat = _volume().with_array(np.full((1, 20, 10, 8), 3, dtype=np.float32))
    low, high = robust_limits(flat)
    assert high > low
    assert slice_picture(flat, "axial", 0).max() == 0


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(InputError, match="no axial slice 8"):
        slice_picture(_volume(), "axial", 8)
    other = _stored(np.zeros((4, 4, 4), dtype=np.uint8), "RAS")
    with pytest.raises(InputError, match="not that of"):
        slice_picture(_volume(), "axial", 1, label_map=other, labels=LABELS)
    with pytest.raises(InputError, match="no cases"):
        comparison_figure(tmp_path / "a.png", [], LABELS)
    with pytest.raises(InputError, match="1 label maps"):
        comparison_figure(tmp_path / "a.png", [Row("a", _volume(), (_maps(),))], LABELS)
    with pytest.raises(InputError, match=r"png or \.svg"):
        curves(tmp_path / "a.bmp", losses=[(1, 1.0)], scores={})
    with pytest.raises(InputError, match="no scores"):
        boxes(tmp_path / "a.png", {})
    assert list(tmp_path.iterdir()) == []


def _draw_all(folder, suffix):
    rows = [
        Row("case 1", _volume("LPS"), (_maps("LPS"), _maps("LPS")), ("", "Dice 0.91")),
        Row("case 2", _volume(), (_maps(), None), plane="coronal"),
    ]
    comparison_figure(folder / f"cases{suffix}", rows, LABELS, title="Two cases", note="Made up.")
    losses = [(n, 2 / n) for n in range(1, 200)]
    curves(folder / f"curves{suffix}", losses=losses, scores={"mean": [(1, 0.1), (9, 0.8)], "liver": [(9, 0.9)]}, title="Run")
    boxes(folder / f"boxes{suffix}", {"liver": [0.9, 0.8, float("nan")], "spleen": []}, "Scores")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_figures_are_written_and_are_the_same_twice(tmp_path, suffix):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (_draw_all(tmp_path / name, suffix) for name in "ab")
    start = b"\x89PNG" if suffix == ".png" else b"<?xml"
    assert len(first) == 3
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes().startswith(start)
        assert one.read_bytes() == other.read_bytes()


def test_drawing_needs_no_pyplot_and_importing_it_no_matplotlib():
    code = "import sys, uxnet.draw; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    answer = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]
