from dataclasses import replace

import numpy as np
import pytest
from grids import FEW, shapes
from hypothesis import given
from hypothesis import strategies as st

from uxnet.dataset import patches
from uxnet.dataset.cache import CachedCase
from uxnet.dataset.patches import draw_guided_place, draw_place, read_batch, read_patch, what_is_shown
from uxnet.inference.stitch import pad_to
from uxnet.recipe import Sampling


def case(shape, labelled=(), channels=2, name="x", seed=0):
    """A case of noise that is 0 nowhere; `labelled` lists the voxels of each label."""
    rng = np.random.default_rng(seed)
    indices = np.zeros(shape, np.uint8)
    places = []
    for index, voxels in enumerate(labelled, start=1):
        places.append(np.array(voxels, np.int32).reshape(-1, 3))
        indices[tuple(places[-1].T)] = index
    return CachedCase(name, rng.uniform(1, 2, (channels, *shape)).astype(np.float32), indices, tuple(places))


def patch_of(cases, sampling, seed, step, sample):
    place = draw_place(cases, sampling, seed, step, sample)
    return place, *read_patch(cases[place.case], place.start, sampling.patch)


def test_a_patch_is_a_function_of_seed_step_and_sample():
    cases = [case((20, 21, 22), [[(3, 4, 5)]]), case((30, 9, 12), [[(1, 2, 3)]])]
    sampling = Sampling((8, 8, 8), 0.5)
    batch = [draw_place(cases, sampling, 1, 7, sample) for sample in range(4)]
    for step in (0, 99, 3):  # whatever is drawn in between
        draw_place(cases, sampling, 1, step, 0)
    np.random.seed(123)  # noqa: NPY002
    assert [draw_place(cases, sampling, 1, 7, sample) for sample in reversed(range(4))] == batch[::-1]
    images, indices = read_batch(cases, sampling, range(4), 1, 7)
    assert images.shape == (4, 2, 8, 8, 8)
    assert indices.shape == (4, 8, 8, 8)
    for n, place in enumerate(batch):
        image, label = read_patch(cases[place.case], place.start, (8, 8, 8))
        np.testing.assert_array_equal(images[n], image)
        np.testing.assert_array_equal(indices[n], label)
    np.testing.assert_array_equal(read_batch(cases, sampling, range(2), 1, 7)[0], images[:2])  # a smaller batch is its beginning


@pytest.mark.parametrize("world", [2, 3])
def test_processes_that_share_a_step_read_its_batch_between_them(world):
    cases = [case((20, 21, 22), [[(3, 4, 5)]], seed=1), case((30, 9, 12), [[(1, 2, 3)]], seed=2)]
    whole = read_batch(cases, Sampling((8, 8, 8)), range(6), 1, 7)
    for rank in range(world):
        part = read_batch(cases, Sampling((8, 8, 8)), range(rank, 6, world), 1, 7, what_is_shown(cases))
        for a, b in zip(part, whole, strict=True):
            np.testing.assert_array_equal(a, b[rank::world])


def test_patches_of_one_scan_come_in_groups():
    """Two crops of a volume: samples 0 and 1 lie in one case, 2 and 3 in one, wherever they are computed; all else is drawn anew."""
    cases = [case((40, 40, 40), [[(3, 4, 5)], [(30, 30, 30)]], name=f"{n}") for n in range(8)]
    for drawn in (draw_place, draw_guided_place):
        alone, two = (Sampling((8, 8, 8), 0.5, per_case=n) for n in (1, 2))
        batches = [[drawn(cases, two, 0, step, sample) for sample in range(5)] for step in range(60)]
        assert all(a.case == b.case and c.case == d.case for a, b, c, d, _ in batches)
        assert len({(a.case, c.case, e.case) for a, _, c, _, e in batches}) > 30
        assert sum(a.start != b.start for a, b, *_ in batches) > 20
        # The first of a group lies where it would without groups, and an odd one at the end is the first of its own.
        assert [[b[n] for n in (0, 2, 4)] for b in batches] == [[drawn(cases, alone, 0, s, n) for n in (0, 2, 4)] for s in range(60)]
        assert [drawn(cases, two, 0, 7, sample) for sample in (3, 1)] == [batches[7][3], batches[7][1]]
    assert {place.case for batch in batches for place in batch} == set(range(8))


def test_seeds_steps_and_samples_all_matter():
    cases = [case((64, 64, 64))]
    sampling = Sampling((8, 8, 8), 0)
    arguments = [(seed, step, sample) for seed in range(4) for step in range(4) for sample in range(4)]
    places = {draw_place(cases, sampling, *a).start for a in arguments}
    assert len(places) > 60


@FEW
@given(shapes(1, 14), shapes(1, 12), st.integers(0, 10**6), st.floats(0, 1), st.data())
def test_patches_lie_within_the_case_and_foreground_patches_hold_a_label(shape, patch, seed, foreground, data):
    voxel = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    cases = [case(shape, [[voxel], []])]
    for step in range(5):
        place, image, indices = patch_of(cases, Sampling(patch, 1.0 if step < 3 else foreground), seed, step, 0)
        assert image.shape == (2, *patch)
        assert indices.shape == patch
        for start, n, p in zip(place.start, shape, patch, strict=True):
            assert (0 <= start <= n - p) if n >= p else start == -((p - n) // 2)
        # Noise is never 0, so what is not 0 was read from the case.
        assert (image[0] != 0).sum() == np.prod(np.minimum(shape, patch))
        if step < 3:
            assert (indices == 1).sum() == 1


@FEW
@given(shapes(1, 9), shapes(1, 12))
def test_small_cases_are_padded_as_inference_pads_them(shape, patch):
    small = case(tuple(min(n, p) for n, p in zip(shape, patch, strict=True)))
    _, image, _ = patch_of([small], Sampling(patch, 0.5), 0, 0, 0)
    padded, inside = pad_to(small.image, patch)
    np.testing.assert_array_equal(image, padded)
    np.testing.assert_array_equal(padded[(slice(None), *inside)], small.image)


def test_a_patch_shows_the_case_at_its_place():
    one = case((10, 9, 8), [[(4, 4, 4)]])
    image, indices = read_patch(one, (2, 0, -1), (4, 9, 10))
    np.testing.assert_array_equal(image[:, :, :, 1:9], one.image[:, 2:6])
    np.testing.assert_array_equal(indices[:, :, 1:9], one.indices[2:6])
    assert (image[:, :, :, [0, 9]] == 0).all()
    image[:] = 5
    assert one.image.max() < 5  # a patch is a copy


def test_a_label_is_seen_anywhere_in_the_patch():
    cases = [case((40, 40, 40), [[(20, 20, 20)]])]
    at = np.array([20 - np.array(draw_place(cases, Sampling((8, 8, 8), 1), 0, step, 0).start) for step in range(600)])
    for axis in range(3):
        counts = np.bincount(at[:, axis], minlength=8)
        assert len(counts) == 8
        assert counts.min() > 600 / 8 / 2
    # The axes are drawn apart from each other.
    assert np.abs(np.corrcoef(at.T) - np.eye(3)).max() < 0.15


def test_the_share_of_foreground_patches_is_as_asked():
    cases = [case((60, 60, 60), [[(30, 30, 30)]])]
    hits = [patch_of(cases, Sampling((4, 4, 4), 0.3), 0, step, 0)[2].any() for step in range(800)]
    assert np.mean(hits) == pytest.approx(0.3, abs=0.05)
    assert not any(patch_of(cases, Sampling((4, 4, 4), 0.0), 0, step, 0)[2].any() for step in range(100))


def test_small_structures_are_drawn_as_often_as_large_ones():
    large = [(i, j, 0) for i in range(20) for j in range(20)]
    cases = [case((40, 40, 40), [large, [(35, 35, 35)], []])]
    labels = [patch_of(cases, Sampling((4, 4, 4), 1.0), 0, step, 0)[2] for step in range(400)]
    assert np.mean([(x == 2).any() for x in labels]) == pytest.approx(0.5, abs=0.08)
    assert all(x.any() for x in labels)


def test_cases_are_drawn_alike_and_those_without_labels_too():
    cases = [case((8, 8, 8), [[(1, 1, 1)]]), case((50, 50, 50)), case((9, 9, 9), [[]])]
    numbers = [draw_place(cases, Sampling((8, 8, 8), 1.0), 0, step, 0).case for step in range(600)]
    assert np.bincount(numbers).min() > 150


# ---- balance: of eight cases all show structure 1, two show 2, one shows 3; none shows 4


def unbalanced(prior=False):
    def one(n):
        labelled = [[(1, 1, 1)], [(9, 9, 9)] if n in (2, 5) else [], [(17, 17, 17)] if n == 5 else [], []]
        made = case((20, 20, 20), labelled, seed=n)
        return replace(made, prior=made.indices) if prior else made

    return [one(n) for n in range(8)]


def shares(structures, count):
    return np.bincount(structures, minlength=count + 1)[1:] / len(structures)


@pytest.mark.parametrize("guided", [False, True])
def test_balanced_by_class_what_few_cases_show_is_seen_as_often_as_the_rest(guided):
    cases, sampling = unbalanced(guided), Sampling((3, 3, 3), 1.0, balance="class")
    shown, seen, numbers = what_is_shown(cases), [], []
    for step in range(900):
        place = (draw_guided_place if guided else draw_place)(cases, sampling, 0, step, 0, shown)
        seen.append(read_patch(cases[place.case], place.start, (3, 3, 3))[1].max())
        numbers.append((seen[-1], place.case))
        assert place.structure == (seen[-1] if guided else 0)
    np.testing.assert_allclose(shares(seen, 4), [1 / 3, 1 / 3, 1 / 3, 0], atol=0.06)
    # Of the cases that show it, one is as likely as another.
    assert np.bincount([n for index, n in numbers if index == 1], minlength=8).min() > 300 / 8 / 2
    assert {n for index, n in numbers if index == 2} == {2, 5}


def test_balanced_by_case_it_is_seen_as_seldom_as_its_cases_are():
    cases = unbalanced()
    seen = [patch_of(cases, Sampling((3, 3, 3), 1.0), 0, step, 0)[2].max() for step in range(900)]
    np.testing.assert_allclose(shares(seen, 4), [(6 + 1 / 2 + 1 / 3) / 8, (1 / 2 + 1 / 3) / 8, 1 / 3 / 8, 0], atol=0.04)


def test_balanced_by_class_the_other_patches_lie_anywhere():
    cases = [case((40, 40, 40), [[(30, 30, 30)]]), *(case((40, 40, 40), [[]]) for _ in range(3))]
    places = [draw_place(cases, Sampling((4, 4, 4), 0.25, balance="class"), 0, step, 0) for step in range(800)]
    hits = [read_patch(cases[p.case], p.start, (4, 4, 4))[1].any() for p in places]
    assert np.mean(hits) == pytest.approx(0.25, abs=0.05)
    assert np.bincount([p.case for p in places])[1:].min() > 0.75 * 800 / 4 * 0.7
    nothing = [case((9, 9, 9)), case((9, 9, 9), [[]])]
    assert {draw_place(nothing, Sampling((4, 4, 4), 1.0, balance="class"), 0, step, 0).case for step in range(20)} == {0, 1}


@pytest.mark.parametrize("balance", ["case", "class"])
def test_what_is_shown_is_looked_up_once_however_many_cases_there_are(balance, monkeypatch):
    cases = unbalanced() * 500
    sampling, shown = Sampling((3, 3, 3), 0.5, balance=balance), what_is_shown(cases)
    anew = [draw_place(cases, sampling, 0, 3, sample) for sample in range(4)]
    monkeypatch.setattr(patches, "what_is_shown", None)
    assert [draw_place(cases, sampling, 0, 3, sample, shown) for sample in range(4)] == anew
    read_batch(cases, sampling, range(4), 0, 3, shown)


def test_without_labels_patches_reach_every_corner():
    cases = [case((10, 9, 8))]
    starts = {draw_place(cases, Sampling((8, 8, 8), 0.0), 0, step, 0).start for step in range(200)}
    assert starts == {(i, j, 0) for i in range(3) for j in range(2)}
