import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uxnet.dataset.sides import lateral_axis, paired_indices
from uxnet.labels import Label, Labels
from uxnet.recipe import Augmentation
from uxnet.training import augment as augment_module
from uxnet.training.augment import augment

EVERYTHING = Augmentation(
    rotation_deg=(20, 20, 20),
    scale=0.2,
    anisotropic=True,
    affine_probability=0.6,
    intensity_shift=0.2,
    intensity_offset=0.1,
    intensity_scale=0.2,
    gamma=0.3,
    noise=0.2,
    blur=1.0,
    intensity_probability=0.6,
    mirror=(True, True, True),
)
TURN = {"affine_probability": 1.0, "rotation_deg": (40.0, 40.0, 40.0)}


def batch(n=3, shape=(9, 7, 12), channels=2, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(5)
    images = torch.randn((n, channels, *shape), generator=generator)
    return images, torch.randint(0, 4, (n, *shape), generator=generator).to(dtype)


def blobs(shape, centres, radius=2.5):
    """One ball a centre (voxels): an image of the sum of them and label indices 1, 2, ..."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    near = [np.linalg.norm(grid - np.array(c), axis=-1) for c in centres]
    image = sum(np.exp(-0.5 * (d / (radius / 2)) ** 2) for d in near)
    indices = np.zeros(shape, np.uint8)
    for n, d in enumerate(near, start=1):
        indices[d <= radius] = n
    return torch.from_numpy(image).float()[None, None], torch.from_numpy(indices)[None]


def centroids(indices, count):
    return np.array([np.argwhere(indices[0].numpy() == n).mean(0) for n in range(1, count + 1)])


# ---- a function of (seed, step, sample) alone


def test_the_same_arguments_give_the_same_batch():
    images, indices = batch()
    torch.manual_seed(1)
    a = augment(images, indices, EVERYTHING, seed=3, step=9)
    torch.manual_seed(2)
    np.random.seed(7)  # noqa: NPY002  # no global state may matter
    b = augment(images, indices, EVERYTHING, seed=3, step=9)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    for other in ({"seed": 4, "step": 9}, {"seed": 3, "step": 10}):
        assert not torch.equal(augment(images, indices, EVERYTHING, **other)[0], a[0])


@settings(max_examples=30, deadline=None)
@given(step=st.integers(0, 10**6), size=st.integers(1, 4))
def test_a_sample_does_not_depend_on_the_others_of_its_batch(step, size):
    images, indices = batch(4)
    whole = augment(images, indices, EVERYTHING, seed=0, step=step)
    part = augment(images[:size], indices[:size], EVERYTHING, seed=0, step=step)
    assert torch.equal(part[0], whole[0][:size])
    assert torch.equal(part[1], whole[1][:size])
    changed = images.clone()
    changed[1:] += 1
    assert torch.equal(augment(changed, indices, EVERYTHING, seed=0, step=step)[0][0], whole[0][0])


@settings(max_examples=20, deadline=None)
@given(step=st.integers(0, 10**6), world=st.integers(1, 4))
def test_parts_of_a_batch_give_the_bits_of_the_whole(step, world):
    """So gradients of a batch that is accumulated, or shared out between processes, are those of the batch."""
    images, indices = batch(5, shape=(11, 13, 17))
    whole = augment(images, indices, EVERYTHING, 0, step, (1.0, 1.0, 2.0), 1)
    for rank in range(world):
        own = list(range(rank, 5, world))
        part = augment(images[own], indices[own], EVERYTHING, 0, step, (1.0, 1.0, 2.0), 1, samples=own)
        assert torch.equal(part[0].view(torch.int32), whole[0][own].view(torch.int32))
        assert torch.equal(part[1], whole[1][own])


def test_there_is_a_number_for_every_sample():
    with pytest.raises(ValueError, match="shorter"):
        augment(*batch(3), EVERYTHING, 0, 0, samples=[0, 1])


def test_a_sample_that_is_not_moved_is_left_as_it_is_beside_others_that_are():
    images, indices = batch(8)
    seldom = Augmentation(rotation_deg=(30, 30, 30), affine_probability=0.5)
    moved, labels = augment(images, indices, seldom, 0, 0)
    alone = [augment(images[: n + 1], indices[: n + 1], seldom, 0, 0)[0][n] for n in range(8)]
    still = [n for n in range(8) if torch.equal(moved[n], images[n])]
    assert 1 <= len(still) <= 7
    assert all(torch.equal(labels[n], indices[n]) for n in still)
    assert all(torch.equal(alone[n], moved[n]) for n in range(8))


def test_equal_samples_at_other_places_are_changed_otherwise():
    images, indices = batch(1)
    moved, _ = augment(images.repeat(3, 1, 1, 1, 1), indices.repeat(3, 1, 1, 1), Augmentation(**TURN), 0, 0)
    assert not torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[1], moved[2])


def test_what_came_in_is_left_alone():
    images, indices = batch()
    before = images.clone(), indices.clone()
    for step in range(5):
        augment(images, indices, EVERYTHING, 0, step)
    assert torch.equal(images, before[0])
    assert torch.equal(indices, before[1])


# ---- settings


@pytest.mark.parametrize(
    "identity",
    [
        Augmentation(),
        Augmentation(affine_probability=0.0, rotation_deg=(30, 30, 30), scale=0.5),
        Augmentation(
            intensity_probability=0.0, noise=1.0, blur=2.0, gamma=1.0, intensity_shift=1.0, intensity_offset=1.0, intensity_scale=0.5
        ),
    ],
)
def test_settings_that_do_nothing_give_equal_values(identity):
    images, indices = batch()
    for step in range(10):
        got = augment(images, indices, identity, 0, step)
        assert torch.equal(got[0], images)
        assert torch.equal(got[1], indices)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_shapes_and_types_are_kept_and_no_label_is_made_up(dtype):
    images, indices = batch(dtype=dtype)
    indices[indices == 3] = 251 if dtype == torch.uint8 else 20_001
    for step in range(10):
        got, labels = augment(images, indices, EVERYTHING, 0, step)
        assert (got.shape, got.dtype) == (images.shape, images.dtype)
        assert (labels.shape, labels.dtype) == (indices.shape, dtype)
        assert got.isfinite().all()
        assert set(labels.unique().tolist()) <= set(indices.unique().tolist())


@pytest.mark.parametrize("name", ["intensity_shift", "intensity_offset", "intensity_scale", "gamma", "noise", "blur"])
def test_each_intensity_change_touches_the_image_only(name):
    images, indices = batch()
    settings_ = Augmentation(**{name: 0.5}, intensity_probability=1.0)
    changed = [augment(images, indices, settings_, 0, step) for step in range(5)]
    assert all(torch.equal(labels, indices) for _, labels in changed)
    assert any(not torch.allclose(got, images) for got, _ in changed)
    if name == "blur":
        assert all(got.std() <= images.std() for got, _ in changed)
    if name == "gamma":  # keeps the range
        assert all(torch.allclose(got[n].amax(), images[n].amax(), atol=1e-4) for got, _ in changed for n in range(len(images)))


@pytest.mark.parametrize("name", ["intensity_shift", "intensity_offset", "intensity_scale", "gamma", "noise", "blur"])
def test_a_constant_image_stays_finite(name):
    images, indices = torch.full((1, 1, 1, 5, 3), 7.0), torch.zeros((1, 1, 5, 3), dtype=torch.uint8)
    for step in range(5):
        got, _ = augment(images, indices, Augmentation(**{name: 0.5}, intensity_probability=1.0), 0, step)
        assert got.isfinite().all()


def test_an_offset_is_in_the_images_own_units():
    """The scripts' shift by up to 0.1 of an image in 0..1, whatever the patch's contrast; half the samples are shifted."""
    images, indices = batch(n=8)
    moved = []
    for contrast in (1.0, 50.0):
        got = [
            augment(images * contrast, indices, Augmentation(intensity_offset=0.1), 0, step)[0] - images * contrast for step in range(40)
        ]
        by_sample = torch.stack(got).flatten(0, 1).flatten(1)
        assert torch.allclose(by_sample, by_sample[:, :1].expand_as(by_sample), atol=1e-4)
        moved.append(by_sample.mean(1))
    assert torch.allclose(*moved, atol=1e-4)
    assert 0.4 < (moved[0].abs() > 1e-5).float().mean() < 0.6
    assert 0.09 < moved[0].abs().max() <= 0.1001
    assert -0.02 < moved[0].mean() < 0.02


def test_an_offset_adds_to_a_shift_and_is_drawn_with_it():
    images, indices = batch()
    settings_ = {"intensity_probability": 1.0}
    shift = augment(images, indices, Augmentation(intensity_shift=0.3, **settings_), 0, 1)[0] - images
    offset = augment(images, indices, Augmentation(intensity_offset=0.1, **settings_), 0, 1)[0] - images
    both = augment(images, indices, Augmentation(intensity_shift=0.3, intensity_offset=0.1, **settings_), 0, 1)[0] - images
    assert torch.allclose(both, shift + offset, atol=1e-5)
    assert torch.equal(shift.sign(), offset.sign())


def test_one_setting_does_not_move_the_draws_of_another():
    images, indices = batch()
    few = Augmentation(**TURN)
    more = Augmentation(**TURN, noise=0.5, intensity_probability=1.0)
    assert torch.equal(augment(images, indices, few, 0, 1)[1], augment(images, indices, more, 0, 1)[1])


# ---- geometry


@pytest.mark.parametrize("shape", [(24, 24, 24), (20, 40, 28), (32, 18, 48)])
def test_image_and_labels_move_together_by_a_true_rotation(shape):
    middle = (np.array(shape) - 1) / 2
    reach = min(shape) * 0.25
    centres = middle + reach * np.array([[1, 0.2, -0.4], [-0.6, 0.8, 0.1], [0, -0.5, 1]])
    image, indices = blobs(shape, centres, radius=2.0)
    turned = 0
    for step in range(6):
        moved, labels = augment(image, indices, Augmentation(**TURN), 0, step)
        found = centroids(labels, 3)
        # Distances to the centre, between the blobs, and their handedness are kept: not sheared, not scaled, not mirrored.
        np.testing.assert_allclose(np.linalg.norm(found - middle, axis=1), np.linalg.norm(centres - middle, axis=1), atol=0.6)
        for a, b in itertools.combinations(range(3), 2):
            assert np.linalg.norm(found[a] - found[b]) == pytest.approx(np.linalg.norm(centres[a] - centres[b]), abs=0.6)
        assert np.linalg.det(found - middle) == pytest.approx(np.linalg.det(centres - middle), rel=0.2)
        turned += np.abs(found - centres).max() > 1.5
        # The image shows each blob's peak where its label is.
        for centre in found:
            assert moved[0, 0][tuple(np.rint(centre).astype(int))] > 0.5
    assert turned >= 3


@pytest.mark.parametrize("axis", range(3))
def test_a_rotation_about_an_axis_keeps_that_axis(axis):
    shape = (20, 34, 26)
    middle = (np.array(shape) - 1) / 2
    offset = np.full(3, 5.0)
    image, indices = blobs(shape, [middle + offset], radius=2.0)
    angles = [0.0, 0.0, 0.0]
    angles[axis] = 60.0
    seen = set()
    for step in range(8):
        _, labels = augment(image, indices, Augmentation(rotation_deg=tuple(angles)), 0, step)
        found = centroids(labels, 1)[0] - middle
        assert found[axis] == pytest.approx(5, abs=0.3)
        a, b = (x for x in range(3) if x != axis)
        turned = math.degrees(math.atan2(found[b], found[a])) - 45
        assert abs(turned) < 62
        seen.add(turned > 0)
    assert seen == {True, False}  # both directions are drawn


def test_scaling_is_about_the_centre_and_the_same_along_every_axis_unless_asked():
    shape = (24, 40, 32)
    middle = (np.array(shape) - 1) / 2
    centres = middle + np.array([[6.0, 6, 6], [-6, 6, -6]])
    image, indices = blobs(shape, centres, radius=2.0)
    for step in range(5):
        _, labels = augment(image, indices, Augmentation(scale=0.3), 0, step)
        ratio = (centroids(labels, 2) - middle) / (centres - middle)
        assert np.ptp(ratio) < 0.1
        assert 0.7 - 0.05 < ratio.mean() < 1.3 + 0.05
        _, labels = augment(image, indices, Augmentation(scale=0.3, anisotropic=True), 0, step)
        uneven = (centroids(labels, 2) - middle) / (centres - middle)
        assert uneven.min() > 0.65
        assert uneven.max() < 1.35
        assert np.ptp(uneven, axis=0).max() < 0.1  # each axis by one factor


@pytest.mark.parametrize("axis", range(3))
def test_mirroring_is_an_exact_flip_of_that_axis(axis):
    images, indices = batch(1)
    mirror = [False] * 3
    mirror[axis] = True
    flips = 0
    for step in range(12):
        got, labels = augment(images, indices, Augmentation(mirror=tuple(mirror)), 0, step)
        if torch.equal(labels, indices):
            assert torch.equal(got, images)
        else:
            flips += 1
            assert torch.equal(labels, indices.flip(1 + axis))
            assert torch.equal(got, images.flip(2 + axis))
    assert 2 <= flips <= 10


def test_what_is_read_is_what_torchs_own_sampling_reads():
    images, indices = batch(1, shape=(14, 11, 17), channels=3)
    images[:, 2] = (images[:, 2] > 0).float()
    moves = Augmentation(**TURN, scale=0.3, anisotropic=True, mirror=(True, True, True))
    half = np.array(indices.shape[1:]) / 2
    for step in range(10):
        got, labels = augment(images, indices, moves, 0, step, (1.0, 2.0, 1.5), masks=1)
        drawn = augment_module._draw(np.random.default_rng((0, step, 0, 1)), moves, (1.0, 2.0, 1.5))
        matrix = drawn.matrix @ np.diag([-1.0 if m else 1.0 for m in drawn.mirrored])
        theta = torch.zeros(1, 3, 4, dtype=torch.float64)
        theta[0, :, :3] = torch.from_numpy((matrix * half[None] / half[:, None])[::-1, ::-1].copy())
        grid = torch.nn.functional.affine_grid(theta, [1, 1, *indices.shape[1:]], align_corners=False)
        how = {"padding_mode": "border", "align_corners": False}
        linear = torch.nn.functional.grid_sample(images.double(), grid, mode="bilinear", **how)
        nearest = torch.nn.functional.grid_sample(torch.cat((images[:, 2:], indices[:, None]), 1).double(), grid, mode="nearest", **how)
        torch.testing.assert_close(got[:, :2].double(), linear[:, :2], atol=5e-5, rtol=0)
        # A place half way between two voxels may be rounded either way.
        assert (got[:, 2] != nearest[:, 0]).float().mean() < 0.002
        assert (labels != nearest[:, 1]).float().mean() < 0.002


@pytest.mark.parametrize("shape", [(1, 9, 7), (9, 1, 7), (9, 7, 1), (1, 1, 5)])
def test_a_side_of_one_voxel_is_no_obstacle(shape):
    images, indices = batch(2, shape=shape)
    for step in range(5):
        got, labels = augment(images, indices, EVERYTHING, 0, step)
        assert (got.shape, labels.shape) == (images.shape, indices.shape)
        assert got.isfinite().all()


@pytest.mark.parametrize("chunk", [1, 200, 10**6])
def test_how_many_planes_are_computed_at_a_time_does_not_matter(chunk, monkeypatch):
    images, indices = batch()
    before = augment(images, indices, Augmentation(**TURN), 0, 0)
    monkeypatch.setattr(augment_module, "_CHUNK", chunk)
    after = augment(images, indices, Augmentation(**TURN), 0, 0)
    torch.testing.assert_close(after[0], before[0])
    assert torch.equal(after[1], before[1])


# ---- left and right


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "AIL", "SRA"])
def test_mirrored_labels_stay_anatomically_right(orientation):
    """Whatever is done, a left structure lies on the patient's left of its right partner, and what is single keeps its name."""
    labels = Labels((Label("spleen", 5), Label("right", 2), Label("left", 9)), pairs=(("left", "right"),), ignore=7)
    axis, shape = lateral_axis(orientation), (16, 16, 16)
    indices = torch.zeros((1, *shape), dtype=torch.uint8)
    low, high = (3, 2) if orientation[axis] == "R" else (2, 3)  # the axis runs to the patient's right, or to the left
    indices.transpose(1, 1 + axis)[0, 2:5, 5:9, 5:9] = low
    indices.transpose(1, 1 + axis)[0, 11:14, 5:9, 5:9] = high
    indices[0, 7:9, 1:3, 1:3] = 1
    indices[0, 7:9, 13:15, 1:3] = 4
    images = indices[:, None].float()
    moves = Augmentation(rotation_deg=(10, 10, 10), affine_probability=0.5, mirror=(True, True, True), noise=0.1)
    traded = 0
    for step in range(40):
        got, moved = augment(images, indices, moves, 0, step, lateral=axis, pairs=paired_indices(labels))
        lows, highs = (np.argwhere(moved[0].numpy() == index)[:, axis].mean() for index in (low, high))
        assert lows < highs - 4
        assert {1, 2, 3} <= set(moved.unique().tolist()) <= {0, 1, 2, 3, 4}
        # The image is mirrored all the same: what was low may be high.
        here = got[0, 0][moved[0] == low].mean()
        traded += abs(float(here) - high) < abs(float(here) - low)
    assert 10 <= traded <= 30


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_only_pairs_trade_places_and_only_along_the_lateral_axis(dtype):
    images, indices = batch(1, dtype=dtype)
    indices[0, 0] = 200
    mirror = Augmentation(mirror=(True, False, False))
    for step in range(6):
        plain = augment(images, indices, mirror, 0, step)
        for lateral, pairs in ((1, [(1, 3)]), (None, [(1, 3)]), (0, [])):
            same = augment(images, indices, mirror, 0, step, lateral=lateral, pairs=pairs)
            assert torch.equal(same[1], plain[1])
        traded = augment(images, indices, mirror, 0, step, lateral=0, pairs=[(1, 3)])
        assert torch.equal(traded[0], plain[0])
        mirrored = not torch.equal(plain[1], indices)
        expected = {0: 0, 1: 3, 2: 2, 3: 1, 200: 200} if mirrored else {n: n for n in (0, 1, 2, 3, 200)}
        assert traded[1].dtype == dtype
        assert all((traded[1][plain[1] == a] == b).all() for a, b in expected.items())


def test_a_share_of_the_samples_is_moved():
    images, indices = batch(60, shape=(4, 4, 4))
    got, _ = augment(images, indices, Augmentation(rotation_deg=(30, 30, 30), affine_probability=0.3), 0, 0)
    moved = sum(not torch.equal(a, b) for a, b in zip(got, images, strict=True))
    assert 8 <= moved <= 30


def test_a_rotation_turns_in_millimetres_where_voxels_are_no_cubes():
    shape, spacing = (40, 40, 20), np.array([1.0, 1.0, 2.0])
    middle = (np.array(shape) - 1) / 2
    centres = middle + np.array([[10.0, 0, 0], [0, 0, 5], [-6, 0, -4]])
    image, indices = blobs(shape, centres, radius=2.0)
    distances = np.linalg.norm((centres[:, None] - centres) * spacing, axis=-1)
    for step in range(5):
        _, labels = augment(image, indices, Augmentation(rotation_deg=(0, 40, 0)), 0, step, spacing)
        found = centroids(labels, 3) * spacing
        assert np.abs(np.linalg.norm(found[:, None] - found, axis=-1) - distances).max() < 1.0
