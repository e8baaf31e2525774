"""The sliding window, and the straight line from a scan to its label map."""

import numpy as np
import pytest
from grids import FEW, ORIENTATIONS, affines, shapes
from hypothesis import given
from hypothesis import strategies as st

from uxnet.errors import Cancelled, ModelError, VolumeError
from uxnet.events import Progress, silent
from uxnet.geometry import Geometry
from uxnet.inference.segment import segment
from uxnet.inference.stitch import pad_to, plan_sweep
from uxnet.inference.stitch import stitch as stitch_pieces
from uxnet.inference.tiles import blend_profile, blend_shares, tile
from uxnet.labels import Label, Labels
from uxnet.recipe import Inference, Intensity, Preparation, Sampling, Stage
from uxnet.volume import Volume

BLENDING = st.sampled_from(["gaussian", "constant"])
OVERLAP = st.floats(0, 0.99) | st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9])


class Constant:
    """A network that returns a constant a channel."""

    def __init__(self, *values):
        self.values = values

    def infer(self, batch):
        return np.stack([np.full(batch.shape[:1] + batch.shape[2:], v, np.float32) for v in self.values], axis=1)


class Echo:
    """A network that returns its input, and remembers the windows it was shown."""

    def __init__(self):
        self.batches = []

    def infer(self, batch):
        self.batches.append(batch)
        return batch.copy()


@FEW
@given(shapes(1, 40), shapes(1, 16), OVERLAP)
def test_windows_cover_every_voxel_and_start_inside(shape, patch, overlap):
    shape = tuple(max(n, p) for n, p in zip(shape, patch, strict=True))
    patch = tuple(max(p, -(-n // 6)) for n, p in zip(shape, patch, strict=True))  # not too many windows
    overlap = min(overlap, 0.75)
    covered = np.zeros(shape, int)
    boxes = tile(shape, patch, overlap).boxes
    for box in boxes:
        assert box.shape == patch
        assert min(box.start) >= 0
        assert all(b <= n for b, n in zip(box.stop, shape, strict=True))
        covered[box.slices] += 1
    assert covered.min() >= 1
    assert len(set(boxes)) == len(boxes)
    assert [b.start for b in boxes] == sorted(b.start for b in boxes)


@FEW
@given(st.integers(1, 300), st.integers(1, 60), OVERLAP)
def test_windows_overlap_as_asked_and_are_spread_evenly(side, window, overlap):
    side = max(side, window)
    starts = sorted({box.start[0] for box in tile((side, 5, 5), (window, 5, 5), overlap).boxes})
    assert starts[0] == 0
    assert starts[-1] == side - window
    steps = np.diff(starts)
    if len(steps):
        assert steps.max() <= max(1, window * (1 - overlap) + 1e-9)
        assert steps.max() - steps.min() <= 1
    # And no more of them than it takes, but for rounding a step down to whole voxels.
    assert len(starts) <= np.ceil((side - window) / max(1, np.floor(window * (1 - overlap) - 1e-9))) + 1


def test_one_window_where_the_grid_is_the_patch():
    assert [b.start for b in tile((8, 9, 10), (8, 9, 10), 0.5).boxes] == [(0, 0, 0)]


def test_windows_of_a_usual_size():
    assert [b.start[0] for b in tile((192, 96, 96), (96, 96, 96), 0.5).boxes] == [0, 48, 96]
    assert [b.start[0] for b in tile((100, 96, 96), (96, 96, 96), 0.5).boxes] == [0, 4]


@FEW
@given(st.integers(1, 40), BLENDING)
def test_profiles_are_positive_symmetric_and_one_at_most(side, blending):
    profile = blend_profile(side, blending)
    assert profile.shape == (side,)
    assert profile.dtype == np.float32
    assert profile.max() == 1
    assert profile.min() >= 1e-3
    np.testing.assert_allclose(profile, profile[::-1], rtol=1e-6)


def test_gaussian_profiles_fall_off_from_the_centre():
    profile = blend_profile(33, "gaussian")
    assert profile.argmax() == 16
    assert (np.diff(profile[:17]) >= 0).all()
    np.testing.assert_allclose(profile[20], np.exp(-0.5 * (4 / (33 / 8)) ** 2), rtol=1e-5)


@FEW
@given(shapes(1, 40), shapes(1, 16), OVERLAP, BLENDING)
def test_the_shares_of_all_windows_over_a_voxel_add_up_to_one(shape, patch, overlap, blending):
    patch = tuple(max(p, -(-n // 5)) for n, p in zip(shape, patch, strict=True))
    tiling = tile(shape, patch, min(overlap, 0.75))
    for axis, shares in enumerate(blend_shares(tiling, blending)):
        total = np.zeros(tiling.shape[axis])
        for start, share in zip(tiling.starts[axis], shares, strict=True):
            total[start : start + patch[axis]] += share
        np.testing.assert_allclose(total, 1, atol=1e-5)


def assembled(pieces, shape, tolerance=1e-4):
    """The whole of what pieces show; where they share a plane they must agree."""
    out = None
    for box, logits in pieces:
        assert logits.shape[1:] == box.shape
        assert logits.dtype == np.float32
        if out is None:
            out = np.full((len(logits), *shape), np.nan, np.float32)
        there = out[(slice(None), *box.slices)]
        seen = ~np.isnan(there)
        np.testing.assert_allclose(there[seen], logits[seen], atol=tolerance)
        there[...] = logits
    assert not np.isnan(out).any()
    return out


def stitch(image, engine, patch, inference, report=silent, channels=None, **options):
    channels = channels or len(getattr(engine, "values", image))
    tolerance = 0.05 if options.get("keep") == "half" else 1e-4
    return assembled(stitch_pieces(image, engine, patch, inference, channels, report=report, **options), image.shape[1:], tolerance)


@FEW
@given(shapes(1, 24), shapes(1, 10), st.floats(0, 0.8), BLENDING, st.integers(1, 5))
def test_a_constant_stitches_to_that_constant(shape, patch, overlap, blending, batch):
    patch = tuple(max(p, -(-n // 5)) for n, p in zip(shape, patch, strict=True))
    out = stitch(np.ones((1, *shape), np.float32), Constant(-3.5, 1e4, 0), patch, Inference((), overlap, blending, batch))
    assert out.shape == (3, *shape)
    assert out.dtype == np.float32
    for channel, value in zip(out, (-3.5, 1e4, 0), strict=True):
        np.testing.assert_allclose(channel, value, rtol=1e-5)


@FEW
@given(shapes(1, 24), shapes(1, 10), st.floats(0, 0.8), BLENDING, st.integers(1, 5), st.sampled_from(["memory", "half", "file"]))
def test_the_input_stitches_to_the_input(shape, patch, overlap, blending, batch, keep):
    patch = tuple(max(p, -(-n // 5)) for n, p in zip(shape, patch, strict=True))
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    kept, engine = image.copy(), Echo()
    out = stitch(image, engine, patch, Inference((), overlap, blending, batch), keep=keep)
    np.testing.assert_allclose(out, image, atol=0.02 if keep == "half" else 1e-4)
    np.testing.assert_array_equal(image, kept)
    assert all(b.shape[1:] == (2, *patch) for b in engine.batches)
    assert [len(b) for b in engine.batches[:-1]] == [batch] * (len(engine.batches) - 1)
    assert 1 <= len(engine.batches[-1]) <= batch


def test_overlapping_windows_are_blended_by_their_weight():
    class Counter:
        calls = 0

        def infer(self, batch):
            Counter.calls += 1
            return np.full(batch.shape, Counter.calls, np.float32)

    out = stitch(np.zeros((1, 12, 1, 1), np.float32), Counter(), (8, 1, 1), Inference((), 0.5, "gaussian")).ravel()
    a, b = blend_profile(8, "gaussian"), np.zeros(12)
    first, second = np.r_[a, np.zeros(4)], np.r_[np.zeros(4), a]
    np.testing.assert_allclose(out, (first + 2 * second + b) / (first + second), rtol=1e-5)


@FEW
@given(shapes(1, 9), shapes(1, 9))
def test_padding_is_of_zeros_on_both_ends(shape, patch):
    image = np.random.default_rng(0).uniform(1, 2, (2, *shape)).astype(np.float32)
    padded, inside = pad_to(image, patch)
    assert padded.shape == (2, *map(max, shape, patch))
    np.testing.assert_array_equal(padded[(slice(None), *inside)], image)
    assert (padded != 0).sum() == image.size
    for where, n, total in zip(inside, shape, padded.shape[1:], strict=True):
        before = where.indices(total)[0]
        assert before == (total - n) // 2


@FEW
@given(shapes(1, 24), shapes(1, 10), st.floats(0, 0.7), st.integers(1, 4), st.integers(0, 9))
def test_windows_that_are_left_out_are_background_and_the_others_are_as_if_alone(shape, patch, overlap, batch, seed):
    patch = tuple(max(p, -(-n // 4)) for n, p in zip(shape, patch, strict=True))
    keep = np.random.default_rng(seed).random(1000) < 0.6
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    asked, engine = {}, Echo()

    def needed(box):
        return asked.setdefault(box, bool(keep[len(asked)]))

    nothing = np.array((7, -7), np.float32)
    inference = Inference((), overlap, "gaussian", batch)
    out = stitch(image, engine, patch, inference, channels=2, needed=needed, nothing=nothing)
    covered = np.zeros(shape, bool)
    for box, wanted in asked.items():
        if wanted:
            covered[box.slices] = True
    np.testing.assert_allclose(out[:, covered], image[:, covered], atol=1e-3)
    np.testing.assert_array_equal(out[:, ~covered], np.broadcast_to(nothing[:, None], out[:, ~covered].shape))
    assert sum(len(b) for b in engine.batches) == sum(asked.values())


@FEW
@given(shapes(1, 200), shapes(8, 40), st.floats(0, 0.7), st.integers(1, 20))
def test_the_sweep_takes_the_order_with_least_memory(shape, patch, overlap, channels):
    sweep = plan_sweep(shape, patch, overlap, channels)
    assert sorted(sweep.axes) == [0, 1, 2]
    assert sweep.nbytes("half") <= sweep.nbytes()
    assert sweep.nbytes("file") <= sweep.nbytes()


def test_memory_does_not_grow_with_the_length_of_the_scan():
    short, long = (plan_sweep((128, 128, slices), (32, 32, 32), 0.25, 16) for slices in (300, 3000))
    assert short.axes[0] == long.axes[0] == 2
    # The spread of the windows moves the overlap by a voxel or two.
    assert long.nbytes() == pytest.approx(short.nbytes(), rel=0.1)
    # Linear in classes, section and overlap: the largest part is the overlap of two layers.
    assert long.layers == (128, 128, long.tiling.overlap(2) + 1)


def test_progress_is_reported_and_a_cancellation_stops():
    reports, engine = [], Echo()
    image = np.zeros((1, 20, 8, 8), np.float32)
    stitch(image, engine, (8, 8, 8), Inference((), 0.5, "gaussian", 2), reports.append)
    assert [(r.done, r.total) for r in reports if isinstance(r, Progress)] == [(2, 4), (4, 4)]

    def cancel(event):
        raise Cancelled("stop")

    engine = Echo()
    with pytest.raises(Cancelled):
        stitch(image, engine, (8, 8, 8), Inference(), cancel)
    assert len(engine.batches) == 1


# The straight line


class ByIntensity:
    """A network that tells labels by intensity: 1 for left, 2 for right."""

    def infer(self, batch):
        return np.concatenate([-np.abs(batch - value) for value in (0, 1, 2)], axis=1)


LABELS = Labels((Label("left", 7), Label("right", -2)))


@FEW
@given(affines(turn=90), shapes(1, 14), ORIENTATIONS, st.booleans(), st.floats(0, 0.7))
def test_a_perfect_network_gives_perfect_labels_on_any_grid(affine, shape, orientation, crop, overlap):
    indices = np.random.default_rng(0).integers(0, 3, (1, *shape))
    volume = Volume(indices.astype(np.float32), Geometry(shape, affine))
    preparation = Preparation(orientation=orientation, intensity=(Intensity(scale="none"),), crop_above=0.5 if crop else None)
    stage = Stage(prepare=preparation, sampling=Sampling((6, 5, 4)), inference=Inference((), overlap))
    made = segment(volume, [ByIntensity()], [stage], LABELS)
    np.testing.assert_array_equal(made.array, LABELS.decode(indices))
    assert made.geometry == volume.geometry
    assert made.array.dtype == np.int8


def test_inference_may_use_windows_of_its_own_size():
    engine = Echo()
    volume = Volume(np.zeros((1, 9, 9, 9), np.float32), Geometry((9, 9, 9), np.eye(4)))
    stage = Stage(sampling=Sampling((4, 4, 4)), inference=Inference((9, 8, 7)))
    network = type("Net", (), {"infer": lambda _, b: np.concatenate([engine.infer(b)] * 3, axis=1)})()
    segment(volume, [network], [stage], LABELS)
    assert {b.shape[2:] for b in engine.batches} == {(9, 8, 7)}


def test_channels_that_do_not_fit_are_refused_by_name():
    volume = Volume(np.zeros((2, 4, 4, 4), np.float32), Geometry((4, 4, 4), np.eye(4)))
    stage = Stage(prepare=Preparation(intensity=(Intensity(),) * 3))
    with pytest.raises(VolumeError, match="2 channels"):
        segment(volume, [Echo()], [stage], LABELS)


def test_values_that_are_not_finite_are_never_decided_on():
    with pytest.raises(ModelError, match="not finite"):
        stitch(np.zeros((1, 8, 8, 8), np.float32), Constant(0.0, np.nan), (8, 8, 8), Inference())
