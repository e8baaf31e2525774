import dataclasses
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cached_cases import LABELS, PLAIN, make_case, remade, scan, state, whole

from uxnet.dataset import cache as cache_module
from uxnet.dataset.cache import build_cache
from uxnet.dataset.manifest import Case
from uxnet.dataset.patches import draw_guided_place, read_batch
from uxnet.dataset.store import Stored
from uxnet.errors import Cancelled, DatasetError
from uxnet.events import Note, Progress, Warn
from uxnet.io import read_image
from uxnet.labels import Label
from uxnet.prepare.way_out import prepare
from uxnet.recipe import Intensity, Preparation, Sampling


@pytest.fixture
def cases(tmp_path):
    return [make_case(tmp_path, name, n) for n, name in enumerate(("x", "y", "z"))]


def test_a_cached_case_is_the_prepared_case(cases, tmp_path):
    cached = build_cache(cases, PLAIN, LABELS, tmp_path / "cache")
    assert [c.name for c in cached] == ["x", "y", "z"]
    for case, found in zip(cases, cached, strict=True):
        image, trail = prepare(read_image(*case.images), PLAIN)
        np.testing.assert_array_equal(whole(found)[0], image)
        values = trail.order.apply(np.asarray(nib.load(case.labels).dataobj))
        np.testing.assert_array_equal(LABELS.decode(np.asarray(found.indices)), values)
        assert len(found.places) == 3
        for index, places in enumerate(found.places, start=1):
            np.testing.assert_array_equal(places, np.argwhere(np.asarray(found.indices) == index))
        assert found.places[2].shape == (0, 3)


def test_a_case_is_one_file_and_its_description_and_no_file_stays_open(cases, tmp_path):
    folder = tmp_path / "cache"
    cached = build_cache(cases, PLAIN, LABELS, folder)
    assert sorted((p.name[0], p.suffix) for p in folder.iterdir()) == [(n, kind) for n in "xyz" for kind in (".case", ".json")]
    assert all(isinstance(a, Stored) for c in cached for a in (*c.image, c.indices, *c.places))
    images = [whole(c)[0] for c in cached]
    assert len(images) == 3
    open_ones = Path("/proc/self/maps")
    assert not open_ones.exists() or str(folder) not in open_ones.read_text()


def test_a_guided_case_keeps_what_the_stage_before_found(cases, tmp_path):
    case = cases[0]
    found = np.zeros((6, 5, 4), np.uint8)
    found[4:, :2, 1:3] = 3
    guide = scan(tmp_path / "priors" / "x.nii.gz", found)
    (cached,) = build_cache([case], PLAIN, LABELS, tmp_path / "cache", priors={"x": guide})
    turned = found[::-1, ::-1] == 3
    np.testing.assert_array_equal(np.asarray(cached.prior) == 1, turned)
    np.testing.assert_array_equal(cached.places[0], np.argwhere(turned))  # of what was found, not of the truth
    images, targets = read_batch([cached], Sampling((3, 3, 3)), range(4), 0, 0)
    plain, truth = whole(cached)
    for sample in range(4):
        place = draw_guided_place([cached], Sampling((3, 3, 3)), 0, 0, sample)
        part = tuple(slice(s, s + 3) for s in place.start)
        np.testing.assert_array_equal(images[sample, 0], plain[0][part])
        np.testing.assert_array_equal(images[sample, 1], turned[part])
        np.testing.assert_array_equal(targets[sample] == 1, truth[part] == 1)
    before = state(tmp_path / "cache")
    scan(guide, found[::-1].copy())
    build_cache([case], PLAIN, LABELS, tmp_path / "cache", priors={"x": guide})
    assert remade(before, state(tmp_path / "cache")) == {"x"}
    scan(guide, found, np.diag((-1, -1, 3, 1)))
    with pytest.raises(DatasetError, match=r"x\.nii\.gz: its grid differs from its image's"):
        build_cache([case], PLAIN, LABELS, tmp_path / "cache", priors={"x": guide})


def test_many_places_are_thinned_at_random(tmp_path):
    """As many voxels as 40 times the places, in rows of 40: every 40th would lie in the same column of each row."""
    shape = (100, 200, 40)
    image = scan(tmp_path / "image.nii", np.zeros(shape, np.uint8))
    labels = scan(tmp_path / "labels.nii", np.ones(shape, np.uint8))
    first, again = (
        np.asarray(build_cache([Case("x", (image,), labels, "x")], PLAIN, LABELS, tmp_path / name)[0].places[1]) for name in ("a", "b")
    )
    assert first.shape == (20_000, 3)
    assert len(np.unique(first, axis=0)) == 20_000
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first.mean(axis=0), (np.array(shape) - 1) / 2, rtol=0.02)
    np.testing.assert_allclose(np.corrcoef(first.T), np.eye(3), atol=0.05)


def test_what_the_crop_takes_from_structures_is_said_every_time(cases, tmp_path):
    """The image of "y" is above the threshold in one half only; of "a" a part lies in the other, of "b" all of it."""
    image, values = np.zeros((6, 5, 4), np.float32), np.zeros((6, 5, 4), np.uint8)
    image[:3] = 1
    values[2:4, :, 0], values[5, 1:3, 1], values[0, 0, 0] = 3, 1, 9
    scan(cases[1].images[0], image)
    scan(cases[1].labels, values)
    preparation = dataclasses.replace(PLAIN, spacing_mm=(1.0, 1.0, 1.0), crop_above=0.5)
    for workers in (2, 1):
        events = []
        cached = build_cache(cases[1:2], preparation, LABELS, tmp_path / "cache", workers=workers, report=events.append)[0]
        assert cached.cut == ((5, 10), (2, 2), (0, 0))
        (note,) = [event.message for event in events if isinstance(event, Note) and "crop_above" in event.message]
        assert "cuts labelled voxels off case y (a 5 of 10, b 2 of 2);" in note
        (warning,) = [event.message for event in events if isinstance(event, Warn)]
        assert "leaves nothing of 'b' in case y" in warning
    events = []
    build_cache(cases, PLAIN, LABELS, tmp_path / "cache", report=events.append)
    assert not [event for event in events if "crop_above" in getattr(event, "message", "")]


def test_what_is_there_is_not_made_again(cases, tmp_path):
    folder = tmp_path / "cache"
    build_cache(cases, PLAIN, LABELS, folder)
    before, reports = state(folder), []
    again = build_cache(cases, PLAIN, LABELS, folder, report=reports.append)
    assert state(folder) == before
    assert [(r.task, r.done, r.total) for r in reports] == [("checking the cache", n, 3) for n in (1, 2, 3)]
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
    assert (whole(cached)[1] == 4).any()
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
    image, indices = whole(cached)
    found = image[0] if which == "image" else LABELS.decode(indices)
    np.testing.assert_array_equal(found, array[::-1, ::-1])


def test_content_counts_and_neither_dates_nor_paths(cases, tmp_path):
    folder = tmp_path / "cache"
    build_cache(cases, PLAIN, LABELS, folder)
    before = state(folder)
    os.utime(cases[0].images[0], ns=(1, 1))
    build_cache(cases, PLAIN, LABELS, folder)
    moved = []
    for case in cases:
        image, labels = (
            path.rename(tmp_path / f"renamed-{kind}-{path.name}") for kind, path in (("i", case.images[0]), ("l", case.labels))
        )
        moved.append(dataclasses.replace(case, images=(image,), labels=labels))
    build_cache(moved, PLAIN, LABELS, folder)
    assert state(folder) == before
    swapped = [dataclasses.replace(moved[0], images=moved[1].images), *moved[1:]]  # another file of the same size
    build_cache(swapped, PLAIN, LABELS, folder)
    assert remade(before, state(folder)) == {"x"}


def test_files_that_did_not_change_are_not_read_again(cases, tmp_path, monkeypatch):
    folder, read = tmp_path / "cache", []
    build_cache(cases, PLAIN, LABELS, folder)
    real = cache_module.sha256
    monkeypatch.setattr(cache_module, "sha256", lambda path: read.append(path.name) or real(path))
    build_cache(cases, PLAIN, LABELS, folder)
    assert read == []
    os.utime(cases[1].labels, ns=(1, 1))
    for _ in range(2):  # once read, it is known again
        build_cache(cases, PLAIN, LABELS, folder)
    assert read == ["y.nii.gz"]


def test_new_names_and_colours_of_labels_leave_the_cache_as_it_is(cases, tmp_path):
    build_cache(cases, PLAIN, LABELS, tmp_path / "cache")
    before = state(tmp_path / "cache")
    named = dataclasses.replace(LABELS, foreground=(Label("liver", 3), *LABELS.foreground[1:]), colours=(("liver", (1, 2, 3)),))
    build_cache(cases, PLAIN, named, tmp_path / "cache")
    assert state(tmp_path / "cache") == before


# ---- errors, progress, processes


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
        if isinstance(event, Progress):
            raise Cancelled("stop")

    other = tmp_path / "other"
    with pytest.raises(Cancelled):
        build_cache(cases, PLAIN, LABELS, other, report=cancel)
    assert len(list(other.glob("*.json"))) == 1
    with pytest.raises(Cancelled):  # while it is checked, on several threads
        build_cache(cases, PLAIN, LABELS, folder, workers=2, report=cancel)


def test_several_processes_make_the_same_cache(cases, tmp_path):
    one = build_cache(cases, PLAIN, LABELS, tmp_path / "one")
    two = build_cache(cases, PLAIN, LABELS, tmp_path / "two", workers=2)
    assert [c.name for c in two] == [c.name for c in one]
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()
    again = build_cache(cases, PLAIN, LABELS, tmp_path / "two", workers=2)
    assert [c.name for c in again] == [c.name for c in one]
