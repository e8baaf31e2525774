"""Pictures: the right way round, in true proportions, in the labels' colours, and the same bytes every time."""

import re
import sys
from subprocess import run

import numpy as np
import pytest

from uxnet.draw import Row, best_slice, boxes, comparison_figure, curves, edge_letters, one_slice, robust_limits, slice_picture
from uxnet.draw.page import blank_figure, text_inch, wrapped
from uxnet.errors import InputError
from uxnet.geometry import Geometry, axis_order
from uxnet.labels import Label, Labels
from uxnet.paper.bands import BandPanel, bands
from uxnet.paper.zoomed import ZoomedRow, zoomed_figure
from uxnet.training import progress as showing
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


@pytest.mark.parametrize("orientation", ["RAS", "SPL"])
@pytest.mark.parametrize("plane", PLANES)
def test_one_slice_alone_draws_as_it_does_in_its_volume(plane, orientation):
    image, maps = _volume(orientation), _maps(orientation)
    drawn = {"labels": LABELS, "limits": (0, 1), "side_px": 90}
    whole = slice_picture(image, plane, 6, label_map=maps, **drawn)
    cut = [one_slice(volume, plane, 6) for volume in (image, maps)]
    assert np.array_equal(slice_picture(cut[0], plane, label_map=cut[1], **drawn), whole)
    across = {"axial": 8, "coronal": 10, "sagittal": 20}[plane]
    assert [volume.array.size for volume in cut] == [image.array.size // across] * 2
    assert all(volume.array.base is None for volume in cut)  # the volume that it was cut from can go
    with pytest.raises(InputError, match=f"no {plane} slice 20"):
        one_slice(image, plane, 20)


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
    scores = {"mean": [(1, 0.1), (9, 0.8)], "liver": [(9, 0.9)]}
    curves(folder / f"curves{suffix}", losses=losses, scores=scores, title="Run")
    rates, seconds = [(n, 1e-3 / n) for n, _ in losses], [(n, 7.5 * n) for n, _ in losses]
    curves(folder / f"more{suffix}", losses=losses, scores=scores, title="Run", rates=rates, seconds=seconds)
    boxes(folder / f"boxes{suffix}", {"liver": [0.9, 0.8, float("nan")], "spleen": []}, "Scores")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_figures_are_written_and_are_the_same_twice(tmp_path, suffix):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (_draw_all(tmp_path / name, suffix) for name in "ab")
    start = b"\x89PNG" if suffix == ".png" else b"<?xml"
    assert len(first) == 4
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes().startswith(start)
        assert one.read_bytes() == other.read_bytes()


def _texts(path):
    """What is written on an .svg: matplotlib draws letters as paths and leaves the text as a comment."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", path.read_text(encoding="utf-8"))]


def _curves(path, classes=2, steps=60, **more):
    losses = [(n, 1 / n) for n in range(1, steps + 1)]
    scores = {f"class {n}": [(step, (n + 1) / (classes + 1) * step / steps) for step in range(20, steps + 1, 20)] for n in range(classes)}
    mean = [(series[0][0], float(np.mean([dice for _, dice in series]))) for series in zip(*scores.values(), strict=True)]
    curves(path, losses=losses, scores={"mean": mean, **scores}, **more)
    return _texts(path)


def test_curves_show_the_rate_and_the_time_where_they_are_known(tmp_path):
    few = _curves(tmp_path / "a.svg")
    assert "learning rate" not in few
    assert not any(text.endswith(" min") for text in few)
    more = _curves(tmp_path / "b.svg", rates=[(n, 5e-4) for n in range(1, 61)], seconds=[(n, 20.0 * n) for n in range(1, 61)])
    assert "learning rate" in more
    assert "5.0e-4" in more
    # Twenty minutes, above the loss and above Dice.
    assert [text for text in more if text.endswith(" min")] == ["5 min", "10 min", "15 min", "20 min"] * 2


def test_the_legend_names_the_mean_and_then_the_best_class_first(tmp_path):
    legend = [text for text in _curves(tmp_path / "a.svg", classes=15) if re.search(r"  \d\.\d\d$", text)]
    assert [text.split("  ")[0] for text in legend] == ["mean", *(f"class {n}" for n in reversed(range(15)))]
    assert legend[1] == "class 14  0.94"


def test_of_very_many_classes_the_legend_names_the_lowest(tmp_path):
    texts = _curves(tmp_path / "a.svg", classes=100)
    assert [text for text in texts if text.startswith(("mean", "class"))][1:] == [
        f"class {n}  {(n + 1) / 101:.2f}" for n in reversed(range(12))
    ]
    assert "88 others" in texts


def test_the_mean_of_one_class_is_not_drawn_twice(tmp_path):
    texts = _curves(tmp_path / "a.svg", classes=1)
    assert "class 0  0.50" in texts
    assert not any(text.startswith("mean") for text in texts)


def test_curves_can_be_drawn_at_any_time_of_a_run(tmp_path):
    nan, path = float("nan"), tmp_path / "a.svg"
    curves(path, losses=[], scores={})
    assert "no validation yet" in _texts(path)
    curves(path, losses=[(1, nan)], scores={"mean": [], "liver": [(1, nan)]}, rates=[(1, 0.0)], seconds=[(1, 0.0)])
    assert "no validation yet" in _texts(path)
    curves(path, losses=[(1, 3.0), (2, float("inf"))], scores={"mean": [(1, 0.0)]}, rates=[(1, 1e-3)], seconds=[(1, 1e-3), (2, 3e6)])
    assert "30 d" in _texts(path)


def test_fewer_dots_an_inch_make_a_smaller_page_of_the_same_proportions(tmp_path):
    sizes = []
    for dpi in (150, 75):
        comparison_figure(tmp_path / "a.png", [Row("a", _volume(), (_maps(), None))], LABELS, dpi=dpi)
        head = (tmp_path / "a.png").read_bytes()[16:24]
        sizes.append((int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")))
    assert sizes[0] == pytest.approx(np.array(sizes[1]) * 2, abs=2)


def test_drawing_needs_no_pyplot_and_importing_it_no_matplotlib():
    code = "import sys, uxnet.draw; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    answer = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", ["caf\udce9 1", "$\\frac{1}$", "a$b$c"])
def test_any_name_can_be_drawn(tmp_path, name):
    labels = Labels((Label("a", 1),))
    one = _stored(np.ones((8, 8, 8), dtype=np.uint8), "RAS")
    row = Row(name, one.with_array(one.array.astype(np.float32)), (one, None), ("", ""))
    comparison_figure(tmp_path / "a.png", [row], labels, title=name)
    curves(tmp_path / "b.png", losses=[(1, 1.0), (2, 0.5)], scores={name: [(1, 0.5), (2, 0.6)]}, title=name, rates=[(1, 0.1), (2, 0.01)])
    boxes(tmp_path / "c.png", {name: [0.5, 0.7]}, name)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png", "c.png"}


def test_names_that_no_font_has_are_written_as_json_has_them(tmp_path):
    with blank_figure(tmp_path / "a.svg", (2, 2)) as figure:
        text = figure.text(0.1, 0.1, "caf\udce9_1")
    assert text.get_text() == r"caf\udce9_1"
    assert (tmp_path / "a.svg").stat().st_size


# ---- whatever stands on a page lies on it

LONG = "sub-0123_ses-preoperative_acq-highres_rec-norm_T1w_case_number_7"
SENTENCE = "a title, note or name that has much more to say about itself than one line of a page can ever hold " * 2


@pytest.fixture
def on_the_page(monkeypatch):
    """Every picture that is saved is looked at: texts inside of it, and the legend of a page of cases clear of its panels and note."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    saved = []

    def look(figure, *args, **kwargs):
        figure.set_dpi(kwargs["dpi"])
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer, page = canvas.get_renderer(), figure.bbox
        legends = [legend.get_window_extent(renderer) for legend in figure.legends]
        texts = [text.get_window_extent(renderer) for text in figure.texts]
        drawn = [axes.get_tightbbox(renderer) for axes in figure.axes]  # with the names of axes, ticks and curves
        for box in (*texts, *drawn, *legends):
            assert box.x0 > -1, f"{box} of {page}"
            assert box.y0 > -1, f"{box} of {page}"
            assert box.x1 < page.x1 + 1, f"{box} of {page}"
            assert box.y1 < page.y1 + 1, f"{box} of {page}"
        for legend in legends:
            assert not any(legend.overlaps(box) for box in (*drawn, *texts))
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", look)
    return saved


@pytest.mark.parametrize(("name", "title", "classes"), [("c0", "", 1), (LONG, SENTENCE, 15), (LONG + LONG, SENTENCE, 2)])
def test_no_text_is_cut_off_however_long_it_is(tmp_path, on_the_page, name, title, classes):
    labels = Labels(tuple(Label(f"{SENTENCE[:20] if k % 3 else LONG} {k}", k) for k in range(1, classes + 1)))
    one = _stored(np.ones((12, 12, 12), dtype=np.uint8), "RAS")
    image = one.with_array(one.array.astype(np.float32))
    row = Row(name, image, (one, None), ("", "no class to score"))
    comparison_figure(tmp_path / "a.png", [row] * 2, labels, title=title, note=title, dpi=90)
    zoomed = ZoomedRow(name, image, (one, one), ("", "no class counts"))
    zoomed_figure(tmp_path / "a.png", [zoomed] * 2, labels, columns=("ground truth", name), title=title, note=title, dpi=90)
    scores = {label.name: [(1, 0.5), (2, 0.6)] for label in labels.foreground}
    curves(tmp_path / "a.png", losses=[(1, 1.0), (2, 0.5)], scores=scores, title=title, rates=[(1, 0.1)], seconds=[(1, 60), (2, 120)])
    boxes(tmp_path / "a.png", {f"{name} {n}": [0.5, 0.7] for n in range(classes)}, title)
    bands(tmp_path / "a.png", [BandPanel(name, {name: [[(1, 0.5), (2, 0.6)]]})] * 2, title=title, note=title)
    assert len(on_the_page) == 5


def test_a_structure_has_one_colour_in_pictures_and_curves(tmp_path, monkeypatch):
    """Of lines on white it is darker where it is too light to be seen there, in the same hue."""
    labels = Labels(tuple(Label(f"class {n}", n) for n in range(1, 14)), colours=(("class 2", (255, 255, 255)),))
    drawn = {}
    monkeypatch.setattr(showing, "curves", lambda _, **given: drawn.update(given["colours"]))
    showing.draw_curves(tmp_path / "a.png", [], "run", labels)
    assert list(drawn) == list(labels.classes)
    for name, colour in drawn.items():
        own = np.array(labels.colour(name))
        line = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)])
        assert own / own.max() == pytest.approx(line / line.max(), abs=0.02)
        assert (line <= own).all()
        assert line.sum() < 700
    assert drawn["class 1"] == "#e69f00"


def test_lines_are_broken_between_words_and_within_long_ones():
    assert wrapped("", 1, 8) == [""]
    assert wrapped("one two\nthree", 10, 8) == ["one two", "three"]
    lines = wrapped(f"{SENTENCE}{LONG} {'x' * 300}", 2, 8)
    assert "".join(lines).replace(" ", "") == f"{SENTENCE}{LONG}{'x' * 300}".replace(" ", "")
    assert max(text_inch(line, 8) for line in lines) <= 2
    assert any(line.endswith(("_", "-")) for line in lines)
    assert wrapped("xyz", 0.001, 8) == ["x", "y", "z"]
