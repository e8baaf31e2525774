"""The memory that a scan takes is told beforehand, kept within a limit, and does not grow with classes times scan."""

import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from uxnet.errors import MemoryLimitError, UsageError
from uxnet.events import Kept, Note, Warn
from uxnet.geometry import Geometry
from uxnet.inference import memory
from uxnet.inference.memory import expect_room, parse_size, plan_memory, planner
from uxnet.inference.segment import segment
from uxnet.inference.stitch import Room, plan_sweep
from uxnet.io import write_image
from uxnet.labels import Label, Labels
from uxnet.recipe import Inference, Intensity, Preparation, Sampling, Stage
from uxnet.volume import Volume

SWEEP = plan_sweep((100, 100, 200), (32, 32, 32), 0.25, 10)


def plan(limit, batch=4, strict=True, report=lambda event: None, before=None):
    return plan_memory(
        SWEEP, now=10**9, a_window=10**8, batch=batch, threads=1, limit=limit, strict=strict, report=report, name="x.nii", before=before
    )  # fmt: skip


def test_the_most_exact_and_quickest_plan_that_fits_is_taken():
    assert plan(10**12).room == Room(4, "memory")
    assert plan(plan(10**12).total).room == Room(4, "memory")
    rooms, limit = [], plan(10**12).total
    least = min(plan(1, strict=False, batch=1).total, limit)
    while limit >= least:
        chosen = plan(limit)
        assert chosen.total <= limit
        rooms.append(chosen.room)
        limit = chosen.total - 1
    with pytest.raises(MemoryLimitError, match=r"x\.nii: it takes at least 1\.\d\d GB"):
        plan(limit)
    # Fewer windows at a time before less precision, and a file last.
    assert [room.batch for room in rooms[:4]] == [4, 3, 2, 1]
    assert list(dict.fromkeys(room.keep for room in rooms)) == ["memory", "half", "file"]


def test_a_limit_that_was_only_guessed_is_warned_of():
    events = []
    assert plan(1, strict=False, report=events.append).room.keep == "file"
    assert [type(event) for event in events] == [Warn, Kept, Note]
    assert events[1] == Kept("file")
    assert "10 channels" in events[2].message


def test_what_happens_to_be_free_never_decides_labels():
    """Half precision may change them, a file does not."""
    limit, keeps = plan(10**12).total, []
    while (chosen := plan(limit, strict=False)).total <= limit:
        keeps.append(chosen.room.keep)
        limit = chosen.total - 1
    assert list(dict.fromkeys(keeps)) == ["memory", "file"]


def test_what_was_taken_before_the_first_window_is_told():
    for before, told in ((3 * 10**9, "; 3.00 GB before that, to load, prepare and check"), (10**9, ""), (None, "")):
        events = []
        plan(10**12, report=events.append, before=before)
        assert events[-1].message.endswith(f"to decide{told}")


def test_processes_share_what_is_free(monkeypatch):
    limits = []
    monkeypatch.setattr(memory, "free_memory", lambda: 900)
    monkeypatch.setattr(memory, "held", lambda: 10_000)
    monkeypatch.setattr(memory, "plan_memory", lambda sweep, **told: limits.append(told["limit"]) or plan(10**12))
    for sharing in (1, 3):
        planner(batch=1, threads=1, limit=None, report=print, name="x", sharing=sharing)(SWEEP)
    planner(batch=1, threads=1, limit=77, report=print, name="x", sharing=3)(SWEEP)
    assert limits == [10_900, 10_300, 77]


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4e9), ("512 MB", 512e6), ("1.5GiB", 1.5 * 2**30), ("3000000", 3e6), ("2g", 2e9), ("7kb", 7000)]
)
def test_sizes_are_understood(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-3GB", "4 QB", "0GB", "GB", "4"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="amount of memory"):
        parse_size(text)


def test_a_scan_that_cannot_fit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "scan.nii.gz"
    write_image(path, Volume(np.zeros((1, 64, 64, 64), np.int16), Geometry((64, 64, 64), np.eye(4))))
    expect_room([path], None)
    expect_room([path], 10**12)
    with pytest.raises(MemoryLimitError, match=r"scan\.nii\.gz.*voxels alone"):
        expect_room([path], 1000)


class Bands:
    """Eight classes by intensity."""

    def infer(self, batch):
        return -np.abs(batch - np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1, 1))


@pytest.mark.parametrize("keep", ["half", "file"])
def test_where_the_overlap_is_kept_does_not_matter(keep):
    rng = np.random.default_rng(0)
    coarse = ndimage.zoom(rng.uniform(0, 7, (8, 7, 9)), 5, order=1)
    volume = Volume(coarse[np.newaxis].astype(np.float32), Geometry(coarse.shape, np.diag([1.3, 0.8, 1.0, 1.0])))
    stage = Stage(
        prepare=Preparation(spacing_mm=(1.0, 1.0, 1.2), intensity=(Intensity(scale="none"),)),
        sampling=Sampling((12, 12, 12)),
        inference=Inference((), 0.4),
    )
    labels = Labels(tuple(Label(f"{n}", n) for n in range(1, 8)))
    made = [segment(volume, [Bands()], [stage], labels, plan=lambda sweep, k=k: Room(2, k)).array for k in ("memory", keep)]
    assert (made[0] != made[1]).mean() <= (2e-3 if keep == "half" else 0)


def test_the_first_window_is_computed_alone_and_then_as_planned():
    sizes = []

    class Watched(Bands):
        def infer(self, batch):
            sizes.append(len(batch))
            return super().infer(batch)

    volume = Volume(np.zeros((1, 20, 8, 8), np.float32), Geometry((20, 8, 8), np.eye(4)))
    stage = Stage(
        prepare=Preparation(intensity=(Intensity(scale="none"),)), sampling=Sampling((8, 8, 8)), inference=Inference((), 0.5, "gaussian", 3)
    )
    labels = Labels(tuple(Label(f"{n}", n) for n in range(1, 8)))
    events = []
    plan = planner(batch=3, threads=1, limit=10**12, report=events.append, name="x")
    segment(volume, [Watched()], [stage], labels, plan=plan)
    assert sizes == [1, 3]
    assert any("3 windows at a time" in event.message for event in events if isinstance(event, Note))


_MEASURED = """
import re, numpy as np
from uxnet.geometry import Geometry
from uxnet.inference.memory import planner
from uxnet.inference.segment import segment
from uxnet.labels import Label, Labels
from uxnet.recipe import Inference, Intensity, Preparation, Sampling, Stage
from uxnet.volume import Volume

classes, slices = {classes}, {slices}

class Waves:
    def infer(self, batch):
        return np.concatenate([np.sin((n + 2) * batch) for n in range(classes)], axis=1)

array = np.empty((192, 160, slices), np.int16, order="F")
array[...] = np.arange(192)[:, None, None] + np.arange(160)[:, None] + np.arange(slices)
volume = Volume(array[None], Geometry(array.shape, np.diag([0.8, 0.8, 1.0, 1.0])))
stage = Stage(
    prepare=Preparation(spacing_mm={spacing}, intensity=(Intensity(clip=(0.0, 400.0), scale="range"),)),
    sampling=Sampling((64, 64, 64)),
    inference=Inference((), 0.5),
)
open("/proc/self/clear_refs", "w").write("5")
plan = planner(batch=1, threads=2, limit=None, report=print, name="x")
segment(volume, [Waves()], [stage], Labels(tuple(Label(str(n), n) for n in range(1, classes))), threads=2, plan=plan)
print("peak", int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(("classes", "slices", "spacing"), [(40, 120, (1.0, 1.0, 1.5)), (16, 300, ())], ids=["many classes", "many slices"])
def test_the_formula_holds_within_a_tenth(classes, slices, spacing):
    script = _MEASURED.format(classes=classes, slices=slices, spacing=spacing)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    said = re.search(r"memory (\d+\.?\d*) (GB|MB) at most", done.stdout)
    told = float(said.group(1)) * {"GB": 1e9, "MB": 1e6}[said.group(2)]
    measured = int(re.search(r"peak (\d+)", done.stdout).group(1))
    assert measured == pytest.approx(told, rel=0.1)
