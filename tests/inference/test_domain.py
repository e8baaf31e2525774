"""A scan unlike those that a model was made for is refused or warned of, before anything is computed, however it comes."""

from dataclasses import replace

import numpy as np
import pytest
from commands import run, scan
from made_cards import fill
from made_heads import CROP_LABELS, WHOLE, cropper, finder, head, reference

import uxnet
from uxnet.cohort.run import predict
from uxnet.cohort.scans import Scan
from uxnet.errors import ModelError, RecipeError, UsageError, VolumeError
from uxnet.events import Warn
from uxnet.geometry import Geometry
from uxnet.inference.domain import Limits, check_scan, limits_of
from uxnet.inference.localise import LocatedSegmenter, labels_of
from uxnet.inference.region import RegionSegmenter
from uxnet.inference.segmenter import Segmenter
from uxnet.inference.settings import Located, Settings
from uxnet.io import read_labels, write_image, write_labels
from uxnet.model.catalogue import Domain, model_file, read_card
from uxnet.model.file import read_model, write_model
from uxnet.volume import Volume

CROPS = Domain(((16.0, 70.0), (24.0, 70.0), (30.0, 70.0)), (0.3, 3.0), (False,))


def volume(shape, spacing=(1.0, 1.0, 1.0), values=None):
    made = np.random.default_rng(0).uniform(100, 900, (1, *shape)).astype(np.float32) if values is None else values
    return Volume(made, Geometry(shape, np.diag([*spacing, 1.0])))


def ct(shape):
    """Soft tissue, and air beside it."""
    made = np.random.default_rng(0).normal(40, 20, (1, *shape)).astype(np.float32)
    made[:, :, : shape[1] // 4] = -1000
    return made


def warnings_of(one, limits, model=None):
    events = []
    check_scan(one, model or cropper().model, limits, events.append)
    return [event.message for event in events if isinstance(event, Warn)]


@pytest.mark.parametrize(
    "one",
    [
        volume((35, 51, 35)),
        volume((51, 35, 35), (1.2, 1.0, 0.8)),
        volume((16, 24, 30)),
        volume((64, 64, 64)),
        volume((70, 70, 70), values=np.random.default_rng(0).normal(0, 1, (1, 70, 70, 70)).astype(np.float32)),
        volume((40, 50, 12), (1, 1, 3)),
        volume((40, 50, 40), values=np.full((1, 40, 50, 40), 1e20, np.float32)),
        volume((40, 50, 40), values=np.full((1, 40, 50, 40), -3.4e38, np.float32)),
    ],
)
def test_what_the_model_was_made_for_is_not_doubted(one):
    assert warnings_of(one, Limits(CROPS)) == []


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (volume((36, 52, 100)), "it is of 36 x 52 x 100 mm (the shortest side first), and thing.uxnet was made for scans of 16-70 x 24"),
        (volume((40, 50, 10), (1, 1, 4)), "its voxels are of 1 x 1 x 4 mm, and thing.uxnet was made for voxels of 0.3-3 mm"),
        (volume((40, 50, 40), values=ct((40, 50, 40))), "any looks like CT (24 % of its voxels are below -500, as air is)"),
        (volume((40, 50, 40), values=ct((40, 50, 40)).astype(np.int16)), "any looks like CT"),
    ],
)
def test_what_is_somewhat_beyond_is_warned_of(one, words):
    (said,) = warnings_of(one, Limits(CROPS))
    assert said.startswith("a volume from memory: ")
    assert words in said


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (volume((160, 203, 183)), "not segmented: it is of 160 x 183 x 203 mm"),
        (volume((160, 203, 20)), "not segmented: it is of 20 x 160 x 203 mm"),
        (volume((40, 50, 8), (1, 1, 7)), "not segmented: its voxels are of 1 x 1 x 7 mm"),
        (volume((7, 50, 40)), "not segmented: it is of 7 x 40 x 50 mm"),
    ],
)
def test_what_is_far_beyond_is_refused(one, words):
    with pytest.raises(VolumeError, match=r"^a volume from memory: ") as error:
        warnings_of(one, Limits(CROPS))
    assert words in str(error.value)
    # By training cases alone nothing is refused.
    assert warnings_of(one, Limits(CROPS, "was trained on", 2.0, np.inf))


def test_a_ct_that_is_not_in_hounsfield_units_is_warned_of():
    limits = Limits(Domain(hounsfield=(True,)))
    assert warnings_of(volume((40, 50, 40), values=ct((40, 50, 40))), limits) == []
    for shifted in (ct((40, 50, 40)) + 1024, np.full((1, 40, 50, 40), 300, np.uint16)):
        (said,) = warnings_of(volume((40, 50, 40), values=shifted), limits)
        assert "has no voxel below -250, so it does not look like the CT with air (-1000 Hounsfield units) that thing.uxnet" in said
    assert warnings_of(volume((40, 50, 40), values=ct((40, 50, 40))), Limits(Domain(hounsfield=(None,)))) == []


def test_a_domain_has_the_ranges_of_three_sides():
    with pytest.raises(RecipeError, match="sides_mm: expected the ranges of three sides, got 1"):
        Domain(sides_mm=((1.0, 2.0),))


@pytest.fixture
def trained(tmp_path, tiny_model):
    """Writes a model as if it had been trained on such cases, and gives its limits."""

    def write(fingerprint, spacing_mm=()):
        model = read_model(tiny_model())
        (stage,) = model.recipe.stages
        recipe = replace(model.recipe, stages=(replace(stage, prepare=replace(stage.prepare, spacing_mm=spacing_mm)),))
        weights = {}
        provenance = {"dataset": {"name": "Tiny", "fingerprint": fingerprint}}
        path = tmp_path / "trained.uxnet"
        write_model(path, [weights], recipe=recipe, labels=model.labels, channels=["CT"], provenance=provenance)
        return limits_of(read_model(path))

    return write


def spread(low, high):
    return {"median": low, "minimum": low, "maximum": high}


def fingerprint(low=-1024.0, high=-900.0):
    return {
        "sides_mm": [spread(100, 200), spread(300, 400), spread(300, 500)],
        "spacings_mm": [spread(0.7, 0.9), spread(0.7, 0.9), spread(2.0, 5.0)],
        "intensities": {"CT": {"image": {"p00_5": spread(low, high)}}},
    }


def test_a_trained_model_is_compared_with_its_training_cases(trained):
    limits = trained(fingerprint())
    assert limits.domain == Domain(((100.0, 200.0), (300.0, 400.0), (300.0, 500.0)), (0.7, 5.0), (True,))
    body = volume((40, 40, 140), (10.0, 10.0, 10.0), ct((40, 40, 140)))
    assert [said.partition(": look")[0].partition(" trained on ")[2] for said in warnings_of(body, limits)] == [
        "scans of 100-200 x 300-400 x 300-500 mm"
    ]
    assert trained(fingerprint(), (1.0, 1.0, 3.0)).domain.spacing_mm == (0.0, 5.0)  # finer scans are brought to the same grid
    assert trained(fingerprint(0.0, 3.0)).domain.hounsfield == (False,)
    assert trained(fingerprint(-1024.0, 3.0)).domain.hounsfield == (None,)


@pytest.mark.parametrize(
    "told",
    [{}, {"sides_mm": 3, "spacings_mm": {}, "intensities": []}, {"sides_mm": [{"minimum": None}] * 3, "spacings_mm": [spread("a", "b")]}],
)
def test_a_model_that_tells_nothing_of_its_training_is_compared_with_nothing(trained, told):
    domain = trained(told).domain
    assert (domain.sides_mm, domain.spacing_mm, domain.hounsfield) == ((), None, (None,))


# ---- at every door


@pytest.fixture
def box(tmp_path, tiny_model, monkeypatch):
    """A box with a model of crops whose card says what it was made for, and how they are found in whole scans."""
    folder = tmp_path / "box"
    fill(folder, "thing", tiny_model(), whole=WHOLE, domain=CROPS)
    fill(folder, "finder", tiny_model())
    monkeypatch.setattr("uxnet.model.catalogue.BOX", folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("name", ["thing", "box/thing.uxnet"])
def test_every_entrance_refuses_a_head_given_for_a_crop(box, tmp_path, name, capsys):
    write_image(tmp_path / "head.nii.gz", head(size_mm=200.0))
    crops = uxnet.load_model(name, region="crop", device="cpu")
    words = "head.nii.gz: not segmented: it is of 198 x 200 x 200 mm (the shortest side first), and thing.uxnet was made for scans of"
    for given in (tmp_path / "head.nii.gz", head(size_mm=200.0)):
        with pytest.raises(VolumeError) as error:
            crops.segment(given)
        assert words in str(error.value)
        assert 'have the structures located in whole scans (region "head")' in str(error.value)
    own = Segmenter(read_model(box / "thing.uxnet"), [])
    with pytest.raises(VolumeError, match="not segmented: it is of 198"):
        own.segment(head(size_mm=200.0))
    (failed,) = predict([box / "thing.uxnet"], [Scan("head", (tmp_path / "head.nii.gz",))], tmp_path / "out")
    assert words in failed.error
    assert run("predict", name, tmp_path / "head.nii.gz", "-o", tmp_path / "out", "--region", "crop", "--device", "cpu") == 1
    assert "not segmented: it is of 198 x 200 x 200 mm" in capsys.readouterr().err


def test_warnings_reach_whoever_gives_no_report(box):
    crops = uxnet.load_model("thing", region="crop", device="cpu", precision="float32")
    with pytest.warns(UserWarning, match="looks like CT"):
        crops.segment(volume((40, 50, 40), values=ct((40, 50, 40))))


# ---- crops and whole scans from Python


@pytest.fixture
def both(monkeypatch):
    """Made segmenters of crops and of whole scans, in one."""
    monkeypatch.setattr("uxnet.inference.region.load_localiser", lambda settings, report: finder())
    return RegionSegmenter(cropper(), Settings(located=Located(WHOLE.localiser, WHOLE)))


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("form", ["file", "volume"])
def test_a_scan_is_taken_for_what_its_extent_says(both, tmp_path, form, prepared):
    whole, crop = head("LIA"), head(size_mm=60.0)
    for one, labels in ((whole, labels_of(CROP_LABELS, WHOLE)), (crop, CROP_LABELS)):
        given = one
        if form == "file":
            given = tmp_path / "scan.nii.gz"
            write_image(given, one)
        found = both.segment(both.prepare(given) if prepared else given)
        assert found.labels == labels
        if one is whole:
            np.testing.assert_array_equal(found.array[0], reference(whole))
        write_labels(tmp_path / "labels.nii.gz", found)
        np.testing.assert_array_equal(read_labels(tmp_path / "labels.nii.gz").array, found.array)
    with pytest.raises(ModelError, match=r"depends on the scan, a crop or a whole one: each label map that it gives has `labels`"):
        _ = both.labels


def test_a_model_is_loaded_for_the_region_that_is_asked_for(box):
    for region, kind in (("auto", RegionSegmenter), ("crop", Segmenter), ("head", LocatedSegmenter)):
        if region != "head":  # the finder here knows other labels than the card says
            assert type(uxnet.load_model("thing", region=region, device="cpu")) is kind
    with pytest.raises(ModelError, match="it does not find left thing and right thing"):
        uxnet.load_model("box/thing.uxnet", region="head", device="cpu")
    assert uxnet.load_model("finder", device="cpu").labels.classes == ("bright", "dark")
    with pytest.raises(UsageError, match="so it cannot be loaded for heads"):
        uxnet.load_model("finder", region="head", device="cpu")
    with pytest.raises(UsageError, match="there is no region 'brain'; give one of auto, crop, head"):
        uxnet.load_model("thing", region="brain", device="cpu")


def test_the_bundled_models_say_what_they_were_made_for():
    crops, heads = (limits_of(read_model(model_file(name))) for name in ("hippocampus", "hippocampus_localiser"))
    assert crops.domain == CROPS == read_card("hippocampus").domain
    hippocampus = read_model(model_file("hippocampus"))
    for shape in ((31, 40, 24), (43, 59, 47), (35, 51, 35)):
        assert warnings_of(volume(shape), crops, hippocampus) == []
    # What the auto region takes for a crop is not doubted, and what it takes for a head is one to the localiser.
    assert crops.domain.sides_mm[2][1] == read_card("hippocampus").whole.largest_crop_mm
    for shape, spacing in (
        ((160, 203, 183), (1, 1, 1)),
        ((107, 254, 61), (1.5, 0.8, 3)),
        ((256, 256, 176), (1, 1, 1)),
        ((130, 165, 120), (1, 1, 1)),
    ):
        assert warnings_of(volume(shape, spacing), heads, hippocampus) == []


def test_labels_go_with_every_label_map(tmp_path, tiny_model):
    model = uxnet.load_model(tiny_model(), device="cpu", precision="float32")
    assert model.segment(scan(tmp_path / "a.nii.gz")).labels == model.labels
