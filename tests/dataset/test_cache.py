import dataclasses
import os

import nibabel as nib
import numpy as np
import pytest

from uxnet.dataset.cache import build_cache, open_case
from uxnet.dataset.manifest import Case
from uxnet.errors import Cancelled, DatasetError
from uxnet.events import Progress
from uxnet.io import read_image
from uxnet.labels import Label, Labels
from uxnet.prepare import prepare
from uxnet.recipe import Intensity, Preparation

LABELS = Labels((Label("a", 3), Label("b", 1), Label("never there", 77)), ignore=9)
PLAIN = Preparation(intensity=(Intensity(scale="none"),))


def scan(path, array, affine=None):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag((-1, -1, 2, 1)) if affine is None else affine), path)
    return path


def make_case(root, name, seed=0, shape=(6, 5, 4)):
    rng = np.random.default_rng(seed)
    image = scan(root / "images" / f"{name}.nii.gz", rng.normal(size=shape).astype(np.float32))
    labels = scan(root / "labels" / f"{name}.nii.gz", rng.choice(np.array([0, 1, 3, 9], np.uint8), shape))
    return Case(name, (image,), labels, name)


@pytest.fixture
def cases(tmp_path):
    return [make_case(tmp_path, name, n) for n, name in enumerate(("x", "y", "z"))]


def state(folder):
    """Every file with the time it was last made and its number on disk, which a replaced file does not keep."""
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()}


def remade(before, after):
    return {name.split(".")[0] for name in after if after[name] != before.get(name)}


def test_a_cached_case_is_the_prepared_case(cases, tmp_path):
    cached = build_cache(cases, PLAIN, LABELS, tmp_path / "cache")
    assert [c.name for c in cached] == ["x", "y", "z"]
    for case, found in zip(cases, cached, strict=True):
        image, trail = prepare(read_image(*case.images), PLAIN)
        np.testing.assert_array_equal(found.image, image)
        values = trail.order.apply(np.asarray(nib.load(case.labels).dataobj))
        np.testing.assert_array_equal(LABELS.decode(found.indices), values)
        assert isinstance(found.image, np.memmap)
        assert isinstance(found.indices, np.memmap)
        assert len(found.places) == 3
        for index, places in enumerate(found.places, start=1):
            np.testing.assert_array_equal(places, np.argwhere(found.indices == index))
        assert found.places[2].shape == (0, 3)


def test_many_places_are_thinned_evenly(tmp_path):
    image = scan(tmp_path / "image.nii", np.zeros((40, 40, 40), np.float32))
    labels = scan(tmp_path / "labels.nii", np.ones((40, 40, 40), np.uint8))
    (cached,) = build_cache([Case("x", (image,), labels, "x")], PLAIN, LABELS, tmp_path / "cache")
    places = cached.places[1]
    assert places.shape == (20_000, 3)
    assert len(np.unique(places, axis=0)) == 20_000
    np.testing.assert_allclose(places.mean(axis=0), 19.5, atol=0.2)
    assert places.min() == 0
    assert places.max() == 39


def test_what_is_there_is_not_made_again(cases, tmp_path):
    folder = tmp_path / "cache"
    build_cache(cases, PLAIN, LABELS, folder)
    before, reports = state(folder), []
    again = build_cache(cases, PLAIN, LABELS, folder, report=reports.append)
    assert state(folder) == before
    assert reports == []
    assert [c.name for c in again] == ["x", "y", "z"]
    build_cache(cases[:1], PLAIN, LABELS, folder)
    assert state(folder) == before


@pytest.mark.parametrize(
    "preparation",
    [
        Preparation(intensity=(Intensity(),)),
        dataclasses.replace(PLAIN, orientation="LPS"),
        dataclasses.replace(PLAIN, spacing_mm=(2.0, 2.0, 2.0)),
        dataclasses.replace(PLAIN, label_interpolation="nearest"),
        dataclasses.replace(PLAIN, crop_above=0.5),
    ],
    ids=["intensity", "orientation", "spacing", "labels", "crop"],
)
def test_another_preparation_makes_all_again(cases, tmp_path, preparation):
    folder = tmp_path / "cache"
    build_cache(cases, PLAIN, LABELS, folder)
    before = state(folder)
    build_cache(cases, preparation, LABELS, folder)
    assert remade(before, state(folder)) == {"x", "y", "z"}


def test_other_labels_make_all_again(cases, tmp_path):
    folder = tmp_path / "cache"
    build_cache(cases, PLAIN, LABELS, folder)
    swapped = dataclasses.replace(LABELS, foreground=LABELS.foreground[::-1])
    (cached, *_) = build_cache(cases, PLAIN, swapped, folder)
    np.testing.assert_array_equal(LABELS.decode(open_case(folder, "x").indices) == 9, np.asarray(cached.indices) == 4)
    assert cached.places[0].shape == (0, 3)


@pytest.mark.parametrize("which", ["image", "labels"])
def test_a_changed_file_makes_its_case_again_and_no_other(cases, tmp_path, which):
    folder = tmp_path / "cache"
    build_cache(cases, PLAIN, LABELS, folder)
    before = state(folder)
    path = cases[1].images[0] if which == "image" else cases[1].labels
    array = np.asarray(nib.load(path).dataobj)[::-1].copy()
    os.utime(scan(path, array), ns=(1, 1))  # the clock may be too coarse to tell two writings apart
    cached = build_cache(cases, PLAIN, LABELS, folder)[1]
    assert remade(before, state(folder)) == {"y"}
    found = cached.image[0] if which == "image" else LABELS.decode(cached.indices)
    np.testing.assert_array_equal(found, array[::-1, ::-1])


@pytest.mark.parametrize("content", [None, "", "[]", '{"made_from": 3}', '{"made_fr'])
def test_a_half_written_case_is_made_again(cases, tmp_path, content):
    folder = tmp_path / "cache"
    build_cache(cases, PLAIN, LABELS, folder)
    if content is None:
        (folder / "y.json").unlink()
    else:
        (folder / "y.json").write_text(content)
    (folder / "y.image.npy").write_bytes(b"half")
    before = state(folder)
    cached = build_cache(cases, PLAIN, LABELS, folder)[1]
    assert remade(before, state(folder)) == {"y"}
    np.testing.assert_array_equal(cached.image[0], np.asarray(nib.load(cases[1].images[0]).dataobj)[::-1, ::-1])


def test_a_case_whose_remaking_broke_off_does_not_pass_for_the_old_one(cases, tmp_path, monkeypatch):
    """A crash between image and labels must not leave the new image under the old description."""
    folder = tmp_path / "cache"
    build_cache(cases[:1], PLAIN, LABELS, folder)
    save = np.save

    def crash(file, array):
        if "labels" in str(file):
            raise KeyboardInterrupt
        save(file, array)

    monkeypatch.setattr(np, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        build_cache(cases[:1], dataclasses.replace(PLAIN, orientation="LPS"), LABELS, folder)
    monkeypatch.undo()
    (cached,) = build_cache(cases[:1], PLAIN, LABELS, folder)
    np.testing.assert_array_equal(cached.image[0], np.asarray(nib.load(cases[0].images[0]).dataobj)[::-1, ::-1])


def test_bad_cases_are_all_named_and_the_good_ones_stay(cases, tmp_path):
    folder = tmp_path / "cache"
    truncated = make_case(tmp_path, "cut", 5)
    truncated.images[0].write_bytes(truncated.images[0].read_bytes()[:100])
    strange = make_case(tmp_path, "strange", 6)
    scan(strange.labels, np.full((6, 5, 4), 44, np.uint8))
    moved = make_case(tmp_path, "moved", 7)
    scan(moved.labels, np.zeros((6, 5, 4), np.uint8), np.diag((1, 1, 2, 1)))
    unlabelled = dataclasses.replace(make_case(tmp_path, "bare", 8), labels=None)
    missing = dataclasses.replace(make_case(tmp_path, "gone", 9), images=(tmp_path / "nowhere.nii",))
    with pytest.raises(DatasetError) as caught:
        build_cache([truncated, cases[0], strange, moved, unlabelled, missing, cases[2]], PLAIN, LABELS, folder)
    message = str(caught.value)
    assert message.startswith("5 of 7 cases")
    for word in ("cut.nii.gz", "strange.nii.gz", "44", "moved.nii.gz", "grid", "bare: it has no label map", "nowhere.nii"):
        assert word in message
    before = state(folder)
    build_cache([cases[0], cases[2]], PLAIN, LABELS, folder)
    assert state(folder) == before
    assert {name.split(".")[0] for name in before} == {"x", "z"}


def test_a_wrong_number_of_channels_is_named(cases, tmp_path):
    with pytest.raises(DatasetError, match=r"(?s)3 of 3.*x.*1 channels.* 2"):
        build_cache(cases, Preparation(intensity=(Intensity(), Intensity())), LABELS, tmp_path / "cache")


def test_progress_is_reported_and_a_cancellation_keeps_what_was_made(cases, tmp_path):
    folder, reports = tmp_path / "cache", []
    build_cache(cases, PLAIN, LABELS, folder, report=reports.append)
    assert [(r.done, r.total) for r in reports if isinstance(r, Progress)] == [(1, 3), (2, 3), (3, 3)]

    def cancel(event):
        raise Cancelled("stop")

    other = tmp_path / "other"
    with pytest.raises(Cancelled):
        build_cache(cases, PLAIN, LABELS, other, report=cancel)
    assert sorted(p.name for p in other.glob("*.json")) == ["x.json"]


def test_several_processes_make_the_same_cache(cases, tmp_path):
    one = build_cache(cases, PLAIN, LABELS, tmp_path / "one")
    two = build_cache(cases, PLAIN, LABELS, tmp_path / "two", workers=2)
    assert [c.name for c in two] == [c.name for c in one]
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()
