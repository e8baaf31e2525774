"""The files of the cache: what happens to them, and how large they are."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import nibabel as nib
import numpy as np
import pytest
from cached_cases import LABELS, PLAIN, file_of, image_of, make_case, opened, remade, scan, state, whole

from uxnet.dataset.cache import build_cache, open_case
from uxnet.dataset.manifest import Case, read_dataset
from uxnet.dataset.store import VERSION, pack
from uxnet.demo.phantoms import write_phantoms
from uxnet.errors import DatasetError
from uxnet.events import Note, Warn
from uxnet.io import read_image
from uxnet.prepare.way_out import prepare
from uxnet.recipe import Intensity, Preparation, load_recipe


@pytest.fixture
def cases(tmp_path):
    return [make_case(tmp_path, name, n) for n, name in enumerate(("x", "y", "z"))]


# ---- damage


@pytest.mark.parametrize("content", [None, "", "[]", '{"made_from": 3}', f'{{"version": {VERSION}, "key": 3}}', '{"made_fr'])
def test_a_half_written_case_is_made_again(cases, tmp_path, content):
    folder = tmp_path / "cache"
    build_cache(cases, PLAIN, LABELS, folder)
    if content is None:
        file_of(folder, "y", "json").unlink()
    else:
        file_of(folder, "y", "json").write_text(content)
    file_of(folder, "y").write_bytes(b"half")
    before = state(folder)
    cached = build_cache(cases, PLAIN, LABELS, folder)[1]
    assert remade(before, state(folder)) == {"y"}
    np.testing.assert_array_equal(whole(cached)[0][0], image_of(cases[1]))


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("at", [0, 70, 300, -1], ids=["key", "first voxel", "within", "last byte"])
def test_a_flipped_bit_is_noticed_said_and_made_good(cases, tmp_path, at):
    folder, events = tmp_path / "cache", []
    build_cache(cases, PLAIN, LABELS, folder)
    original = file_of(folder, "y").read_bytes()
    stat = file_of(folder, "y").stat()
    flip(file_of(folder, "y"), at)
    os.utime(file_of(folder, "y"), ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a disk that forgets does not change dates
    with pytest.raises(DatasetError, match=r"y\..*\.case.*sealed"):
        opened(folder, "y")
    build_cache(cases, PLAIN, LABELS, folder, report=events.append)
    (warning,) = [e.message for e in events if isinstance(e, Warn)]
    assert warning.startswith("y: its cached file is damaged")
    assert file_of(folder, "y").read_bytes() == original


@pytest.mark.parametrize("how", ["cut", "longer", "gone", "shape", "other type", "offset"])
def test_other_damage_is_noticed_too(cases, tmp_path, how):
    folder, events = tmp_path / "cache", []
    build_cache(cases, PLAIN, LABELS, folder)
    data, description = file_of(folder, "y"), file_of(folder, "y", "json")
    original = data.read_bytes(), description.read_text()
    if how in ("cut", "longer"):
        data.write_bytes(original[0][:-64] if how == "cut" else original[0] + bytes(64))
    elif how == "gone":
        data.unlink()
    else:
        described = json.loads(original[1])
        dtype, shape, offset = described["arrays"]["labels"]
        other = {"shape": [dtype, shape[::-1], offset], "other type": ["|i1", shape, offset], "offset": [dtype, shape, offset - 64]}
        described["arrays"]["labels"] = other[how]
        description.write_text(json.dumps(described))
    build_cache(cases, PLAIN, LABELS, folder, report=events.append)
    assert len([e for e in events if isinstance(e, Warn) and e.message.startswith("y: ")]) == 1
    assert (data.read_bytes(), description.read_text()) == original


def test_another_preparation_in_the_same_folder_leaves_a_running_training_alone(cases, tmp_path):
    folder, other, events = tmp_path / "cache", dataclasses.replace(PLAIN, orientation="LPS"), []
    running = build_cache(cases, PLAIN, LABELS, folder)
    before, images = state(folder), [whole(cached)[0] for cached in running]
    beside = build_cache(cases[:2], other, LABELS, folder, report=events.append)
    assert before.items() <= state(folder).items()
    for cached, image in zip(running, images, strict=True):
        np.testing.assert_array_equal(whole(cached)[0], image)
    assert not np.array_equal(whole(beside[0])[0], images[0])
    assert "also holds" in events[-1].message
    size = sum((folder / name).stat().st_size for name in before if name[0] in "xy")
    assert f"{size / 1000:.3g} kB of these cases, prepared otherwise" in events[-1].message
    after = state(folder)
    for preparation in (PLAIN, other, PLAIN):
        build_cache(cases[:2], preparation, LABELS, folder)
    assert state(folder) == after


def test_a_cached_case_that_became_another_is_not_read_as_the_old_one(cases, tmp_path):
    folder = tmp_path / "cache"
    cached, *_ = build_cache(cases, PLAIN, LABELS, folder)
    shutil.copy(file_of(folder, "y"), file_of(folder, "x"))
    with pytest.raises(DatasetError, match=r"x\..*\.case.*something else"):
        whole(cached)
    file_of(folder, "x").unlink()
    with pytest.raises(DatasetError, match=r"x\..*\.case.*any more"):
        whole(cached)


def test_a_cache_of_an_earlier_version_is_used_as_it_is(cases, tmp_path):
    """There a case's files had its name alone."""
    folder = tmp_path / "cache"
    images = [whole(cached)[0] for cached in build_cache(cases, PLAIN, LABELS, folder)]
    for path in list(folder.iterdir()):
        path.rename(folder / f"{path.name[0]}{path.suffix}")
    before = state(folder)
    for cached, image in zip(build_cache(cases, PLAIN, LABELS, folder), images, strict=True):
        np.testing.assert_array_equal(whole(cached)[0], image)
    assert state(folder) == before
    flip(folder / "y.case", 300)
    build_cache(cases, PLAIN, LABELS, folder)
    assert remade(before, state(folder)) == {"y"}
    build_cache(cases, dataclasses.replace(PLAIN, orientation="LPS"), LABELS, folder)
    assert {"x.case", "y.case", "z.case"} <= state(folder).keys()


@pytest.mark.parametrize("name", ["n" * 240, "n" * 231 + "\u00e4" * 4, "x.0123456789abcdef", "x.json"])
def test_names_of_all_kinds_have_files_of_their_own(cases, name, tmp_path):
    folder = tmp_path / "cache"
    odd = [dataclasses.replace(case, name=end) for case, end in zip(cases, (name, f"{name}2", "x"), strict=True)]
    before = build_cache(odd, PLAIN, LABELS, folder)
    assert len(state(folder)) == 3
    made = state(folder)
    for cached, again in zip(before, build_cache(odd, PLAIN, LABELS, folder), strict=True):
        assert cached.name == again.name
        np.testing.assert_array_equal(whole(cached)[0], whole(again)[0])
    assert state(folder) == made


KILLED = """
import os, signal, sys
from pathlib import Path
from uxnet.dataset import cache, store
from uxnet.dataset.manifest import Case
from uxnet.labels import Label, Labels
from uxnet.recipe import Intensity, Preparation
root, when = Path(sys.argv[1]), sys.argv[2]
if when == "while writing":
    real, calls = store._pieces, []
    def pieces(key, arrays):
        calls.append(key)
        for n, piece in enumerate(real(key, arrays)):
            if len(calls) == 2 and n == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield piece
    store._pieces = pieces
else:
    real, calls = store.write_json, []
    def write_json(path, data):
        calls.append(path)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, data)
    store.write_json = write_json
cases = [Case(n, (root / "images" / f"{n}.nii.gz",), root / "labels" / f"{n}.nii.gz", n) for n in "xyz"]
labels = Labels((Label("a", 3), Label("b", 1), Label("never there", 77)), ignore=9)
cache.build_cache(cases, Preparation(intensity=(Intensity(scale="none"),), orientation=sys.argv[3]), labels, root / "cache")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal here")
@pytest.mark.parametrize("before", [None, PLAIN], ids=["empty", "over another cache"])
@pytest.mark.parametrize("when", ["while writing", "between the files"])
def test_a_build_that_was_killed_goes_on_and_leaves_no_half_case(cases, tmp_path, when, before):
    folder, other = tmp_path / "cache", dataclasses.replace(PLAIN, orientation="LPS")
    if before is not None:
        build_cache(cases, before, LABELS, folder)
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), when, "LPS"], check=False)
    assert died.returncode == -signal.SIGKILL
    untouched = {case.name for case in cases if is_made(folder, case.name, cases, other)}
    assert len(untouched) == 1
    there = state(folder)
    cached = build_cache(cases, other, LABELS, folder)
    assert remade(there, state(folder)) == set("xyz") - untouched
    for case, found in zip(cases, cached, strict=True):
        np.testing.assert_array_equal(whole(found)[0][0], np.asarray(nib.load(case.images[0]).dataobj))
    assert not list(folder.glob(".*"))


def is_made(folder, name, cases, preparation):
    """Whether the case in the cache is whole and what the preparation gives."""
    (case,) = [c for c in cases if c.name == name]
    wanted = prepare(read_image(*case.images), preparation)[0]
    found = [whole(open_case(folder, path.stem, name))[0] for path in folder.glob(f"{name}.*.json")]
    return any(np.array_equal(image, wanted) for image in found)


# ---- size


def bits(array):
    return np.ascontiguousarray(array, np.float32).view(np.uint32)


@pytest.mark.parametrize(("values", "size"), [(250, 1), (3000, 2), (60_000, 2), (200_000, 4)])
def test_the_smallest_type_keeps_every_bit(values, size):
    rng = np.random.default_rng(0)
    table = rng.normal(size=values).astype(np.float32)
    table[:3] = 0.0, -0.0, 1e-42
    image = rng.permutation(np.resize(table, 80**3)).reshape(1, 80, 80, 80)
    packed = pack(image, np.zeros((80, 80, 80), np.uint8), [], None)
    assert packed["image 0"].dtype.itemsize == size
    back = packed["table 0"][packed["image 0"]] if size < 4 else packed["image 0"]
    np.testing.assert_array_equal(bits(back), bits(image[0]))


def test_a_table_that_is_larger_than_what_it_saves_is_not_made():
    image = np.arange(6**3, dtype=np.float32).reshape(1, 6, 6, 6)
    packed = pack(image, np.zeros((6, 6, 6), np.uint8), [], None)
    assert "table 0" not in packed


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_normalised_whole_numbers_take_few_bytes_and_are_read_back_exactly(tmp_path, kind):
    """Channels of different kinds each have the type that they need."""
    rng = np.random.default_rng(1)
    hu = rng.integers(0, 200 if kind == np.uint8 else 2000, (40, 40, 40)).astype(kind)
    files = scan(tmp_path / "ct.nii.gz", hu), scan(tmp_path / "pet.nii.gz", rng.normal(size=hu.shape).astype(np.float32))
    labels = scan(tmp_path / "l.nii.gz", rng.integers(0, 2, hu.shape).astype(np.uint8) * 3)
    case = Case("x", files, labels, "x")
    preparation = Preparation(intensity=(Intensity(scale="zscore", low=1, high=99), Intensity(scale="zscore")))
    (cached,) = build_cache([case], preparation, LABELS, tmp_path / "cache")
    assert cached.image[0].dtype == (np.uint8 if kind == np.uint8 else np.uint16)
    assert cached.image[1].dtype == np.float32
    assert (cached.indices.dtype, cached.places[0].dtype) == (np.uint8, np.uint8)
    np.testing.assert_array_equal(bits(whole(cached)[0]), bits(prepare(read_image(*files), preparation)[0]))


def told(events):
    (message,) = [e.message for e in events if isinstance(e, Note)]
    number, unit = message.split("about ")[1].split()[:2]
    return float(number) * {"GB": 1e9, "MB": 1e6, "kB": 1e3}[unit]


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 5.0), ()], ids=["resampled", "not resampled"])
def test_the_size_is_told_beforehand(tmp_path, spacing):
    write_phantoms(tmp_path / "phantoms", 6)
    manifest = read_dataset(tmp_path / "phantoms")
    preparation, events = dataclasses.replace(load_recipe("phantom").stages[0].prepare, spacing_mm=spacing), []
    folder = tmp_path / "cache"
    build_cache(manifest.cases, preparation, manifest.labels, folder, report=events.append)
    assert isinstance(events[0], Note)
    assert str(folder) in events[0].message
    assert told(events) == pytest.approx(sum(p.stat().st_size for p in folder.glob("*.case")), rel=0.05)


def test_a_full_disk_is_refused_before_anything_is_written(cases, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1500, 1500))
    with pytest.raises(DatasetError, match=r"cache will take about 2.* kB.*only 1\.5 kB are free.*another disk"):
        build_cache(cases, PLAIN, LABELS, folder)
    assert not list(folder.iterdir())
    monkeypatch.undo()
    build_cache(cases, PLAIN, LABELS, folder)
    before = state(folder)
    # What is replaced makes room; one case at a time has to fit beside it.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1500, 1500))
    with pytest.raises(DatasetError, match=r"only 1\.5 kB are free.*disk; 2.* kB in it are of these cases as they were prepared otherw"):
        build_cache(cases, dataclasses.replace(PLAIN, orientation="LPS"), LABELS, folder)
    for name in "xyz":
        flip(file_of(folder, name), 300)
    build_cache(cases, PLAIN, LABELS, folder)
    assert remade(before, state(folder)) == set("xyz")
