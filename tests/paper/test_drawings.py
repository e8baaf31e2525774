"""The pictures of the paper's figures: bands over runs, and boxes where networks differ."""

import re

import numpy as np
import pytest

from uxnet.errors import InputError
from uxnet.geometry import Geometry, axis_order
from uxnet.labels import Label, Labels
from uxnet.paper.bands import BandPanel, banded, bands, spread_out
from uxnet.paper.zoomed import Spot, ZoomedRow, most_different, zoomed_figure
from uxnet.volume import Volume

LABELS = Labels((Label("one", 1), Label("two", 2)))


def _stored(array, orientation="RAS", spacing=(2.0, 3.0, 5.0)):
    """An array given along RAS, stored along other axes."""
    geometry = Geometry(array.shape, np.diag([*spacing, 1.0]))
    order = axis_order(geometry, orientation)
    return Volume(order.apply(array)[None], order.apply_to(geometry))


def _texts(path):
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", path.read_text(encoding="utf-8"))]


# ---- bands


def test_the_mean_and_the_range_of_runs_at_the_same_steps():
    made = banded([[(1, 0.2), (2, 0.4)], [(1, 0.4), (2, 0.8)], [(1, 0.6), (2, 0.6)]])
    assert made.x.tolist() == [1, 2]
    assert made.mean == pytest.approx([0.4, 0.6])
    assert (made.low.tolist(), made.high.tolist(), made.runs) == ([0.2, 0.4], [0.6, 0.8], 3)


def test_the_interval_is_students():
    made = banded([[(1, 0.4)], [(1, 0.5)], [(1, 0.6)]], "interval")
    # t of 2 degrees of freedom at 97.5 %: 4.3027; the standard error is 0.1 / sqrt(3).
    assert made.high - made.mean == pytest.approx(4.302653 * 0.1 / np.sqrt(3))
    assert made.mean - made.low == pytest.approx(made.high - made.mean)


def test_runs_measured_at_other_times_are_interpolated_and_never_continued():
    made = banded([[(0, 0.0), (10, 1.0)], [(5, 0.5), (20, 0.5)]])
    assert (made.x.tolist(), made.mean.tolist()) == ([5, 10], [0.5, 0.75])
    assert banded([[(0, 0.1), (1, 0.2)], [(5, 0.1)]]) is None
    assert banded([[], [(1, float("nan"))]]) is None


def test_a_single_run_has_no_band():
    made = banded([[(2, 0.3), (1, 0.1)]], "interval")
    assert made.x.tolist() == [1, 2]
    assert (made.low == made.mean).all()
    assert (made.high == made.mean).all()


def test_steep_beginnings_do_not_crowd_what_follows(tmp_path):
    flat = [(step, 0.85 + step / 40000) for step in range(100, 1100, 100)]
    for name, first, low, said in (("steep", 0.1, "0.85", True), ("even", 0.84, "0.8", False)):
        bands(tmp_path / f"{name}.svg", [BandPanel("one", {"a": [[(50, first), *flat]]})])
        texts = _texts(tmp_path / f"{name}.svg")
        numbers = [text for text in texts if re.fullmatch(r"0\.\d+", text)]
        assert float(numbers[0]) == float(low)
        assert any("below an axis is cut off" in text for text in texts) == said


def test_names_are_moved_as_little_as_possible_and_stay_within():
    assert spread_out([0.9, 0.5], 0.1, 0, 1) == pytest.approx([0.9, 0.5])
    assert spread_out([0.5, 0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.6, 0.5, 0.4])
    assert spread_out([1.0, 1.0], 0.1, 0, 1) == pytest.approx([1.0, 0.9])
    assert spread_out([0.0, 0.0], 0.1, 0, 1) == pytest.approx([0.1, 0.0])
    many = spread_out(sorted(np.random.default_rng(0).random(9).tolist(), reverse=True), 0.1, 0, 1)
    assert (-np.diff(many) >= 0.1 - 1e-9).all()
    assert spread_out([], 0.1, 0, 1) == []


def test_bands_say_what_they_are_and_are_the_same_twice(tmp_path):
    runs = [[(s, 0.5 + s / 1000 + n / 100) for s in (100, 200, 300)] for n in range(3)]
    panels = [BandPanel("A", {"3D UX-Net": runs, "other": runs[:1]}), BandPanel("B", {f"net {n}": runs for n in range(12)})]
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        bands(tmp_path / name, panels, band="interval", title="Curves", note="Made up.", strong="3D UX-Net", xlabel="core-seconds")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    texts = _texts(tmp_path / "a.svg")
    assert any("95 % interval of the mean" in text for text in texts)
    assert {"a) A", "b) B", "core-seconds", "3D UX-Net  0.810"} <= set(texts)
    assert sum(text.startswith("net ") for text in texts) == 12


def test_runs_without_a_common_stretch_are_drawn_alone(tmp_path):
    bands(tmp_path / "a.svg", [BandPanel("A", {"a": [[(1, 0.1), (2, 0.2)], [(5, 0.3), (6, 0.4)]]})])
    assert "a  0.300" in _texts(tmp_path / "a.svg")
    with pytest.raises(InputError, match="no curves"):
        bands(tmp_path / "b.svg", [BandPanel("A", {"a": [[]]})])
    assert not (tmp_path / "b.svg").exists()


# ---- boxes


def _truth():
    array = np.zeros((30, 24, 9), dtype=np.uint8)
    array[4:20, 4:20, 2:7] = 1
    return array


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_box_lies_where_the_networks_differ_however_they_are_stored(plane, orientation):
    one, other = _truth(), _truth()
    other[18:20, 10:12, 5] = 2
    spot = most_different(*(_stored(a, orientation) for a in (_truth(),)), [_stored(a, orientation) for a in (one, other)], plane)
    axis = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
    assert spot.index in ({0: (18, 19), 1: (10, 11), 2: (5,)}[axis])
    places = [(n, (18, 10, 5)[n]) for n in range(3) if n != axis]
    for (n, place), start, stop in zip(places, spot.start, spot.stop, strict=True):
        assert start <= place < stop
        assert stop - start == round((30, 24, 9)[n] / 3)
    # The box is not at the edge of what it is about: what differs lies in its middle where there is room.
    if plane == "axial":
        assert spot == Spot(5, (14, 7), (24, 15))


def test_what_all_networks_do_alike_does_not_count():
    """Both miss the whole structure in slice 3; they differ in one voxel of slice 6."""
    one = np.where(np.arange(9) == 3, 0, _truth()).astype(np.uint8)
    other = one.copy()
    other[2, 2, 6] = 1
    assert most_different(_stored(_truth()), [_stored(one), _stored(other)]).index == 6
    # One network alone is held against the ground truth.
    assert most_different(_stored(_truth()), [_stored(one)]).index == 3


def test_no_slice_without_ground_truth_is_picked_nor_one_with_its_tip():
    """However much the networks make up beyond the structure."""
    truth = _truth()
    truth[4:20, 4:20, 6] = 0
    truth[10, 10, 6] = 1  # the tip
    one, other = truth.copy(), truth.copy()
    one[:, :, 0], one[:, :, 6] = 2, 2
    for there in (other, None):
        maps = [_stored(one)] + ([] if there is None else [_stored(there)])
        assert most_different(_stored(truth), maps).index == 2
    other[5, 5, 4] = 0
    assert most_different(_stored(truth), [_stored(one), _stored(other)]).index == 4


def test_networks_that_agree_still_get_a_box():
    spot = most_different(_stored(_truth()), [_stored(_truth())] * 2)
    assert spot.index == 2
    assert spot.start[0] >= 4
    assert most_different(_stored(_truth() * 0), [_stored(_truth() * 0)]).index == 4


def test_most_different_refuses_what_cannot_be_compared():
    with pytest.raises(InputError, match="no label map"):
        most_different(_stored(_truth()), [])
    with pytest.raises(InputError, match="its grid"):
        most_different(_stored(_truth()), [_stored(_truth()[:5])])


def _row(orientation="LPS"):
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, (30, 24, 9)).astype(np.float32)
    other = _truth()
    other[15:20, 4:20, 4] = 2
    maps = tuple(_stored(a, orientation) for a in (_truth(), _truth(), other))
    return ZoomedRow("case", _stored(image, orientation), (*maps, None), ("", "Dice 1.000", "Dice 0.9", "not run"))


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_page_of_boxes_is_the_same_twice(tmp_path, suffix):
    for name in "ab":
        zoomed_figure(tmp_path / f"{name}{suffix}", [_row()], LABELS, columns=("ground truth", "a", "b", "c"), note="Whose.", title="T")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    if suffix == ".svg":
        texts = _texts(tmp_path / "a.svg")
        assert {"ground truth", "a", "b", "c", "Dice 1.000", "not run", "Whose.", "one", "two"} <= set(texts)


def test_the_same_page_however_the_scan_is_stored(tmp_path):
    for name in ("RAS", "LPS", "SAR"):
        zoomed_figure(tmp_path / f"{name}.png", [_row(name)], LABELS, columns=("ground truth", "a", "b", "c"), limits=(-2, 2))
    assert (tmp_path / "RAS.png").read_bytes() == (tmp_path / "LPS.png").read_bytes() == (tmp_path / "SAR.png").read_bytes()


def test_pages_that_cannot_be_drawn_are_refused(tmp_path):
    row = _row()
    with pytest.raises(InputError, match="no cases"):
        zoomed_figure(tmp_path / "a.png", [], LABELS, columns=("ground truth",))
    with pytest.raises(InputError, match="2 label maps beside it"):
        zoomed_figure(tmp_path / "a.png", [row], LABELS, columns=("ground truth", "a", "b"))
    alone = ZoomedRow("case", row.image, (row.maps[0], None))
    with pytest.raises(InputError, match="no label map of a network"):
        zoomed_figure(tmp_path / "a.png", [alone], LABELS, columns=("ground truth", "a"))
    assert list(tmp_path.iterdir()) == []
