"""The second phase of RAP-Net: what is asked where, and how the answers become labels."""

import numpy as np
import pytest

from uxnet.errors import ModelError, RecipeError
from uxnet.geometry import Geometry
from uxnet.inference.cascade import refine
from uxnet.inference.segment import segment
from uxnet.labels import Label, Labels
from uxnet.recipe import Inference, Intensity, Preparation, Prior, Sampling, Stage
from uxnet.volume import Volume

LABELS = Labels((Label("a", 3), Label("b", 1), Label("c", 70)))
AS_IT_IS = Preparation(orientation="RAS", intensity=(Intensity(scale="none"),))
STAGE = Stage(prepare=AS_IT_IS, sampling=Sampling((6, 6, 6)), inference=Inference(batch=3), prior=Prior(patches=20))
SHAPE = (14, 12, 9)


class Answers:
    """A network that says yes wherever a rule on (image, mask) does, and notes what it was shown."""

    def __init__(self, rule):
        self.rule, self.seen = rule, []

    def infer(self, batch):
        self.seen += list(batch)
        yes = np.stack([self.rule(one[0], one[-1]) for one in batch]).astype(np.float32)
        return np.stack((1 - yes, yes), axis=1)


def boxes(*where):
    values = np.zeros((1, *SHAPE), np.uint8)
    for value, box in where:
        values[(0, *(slice(a, b) for a, b in box))] = value
    return values


def volume(array, affine=None):
    return Volume(array, Geometry(SHAPE, np.diag([1.0, 1, 1, 1]) if affine is None else affine))


COARSE = boxes((3, ((1, 5), (2, 6), (1, 5))), (1, ((8, 12), (6, 11), (3, 8))))
IMAGE = volume(np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32))


def test_a_network_that_repeats_its_prior_gives_the_coarse_labels():
    found = refine(IMAGE, volume(COARSE), Answers(lambda _, mask: mask), STAGE, LABELS)
    np.testing.assert_array_equal(found.array, COARSE)
    assert found.array.dtype == np.uint8
    assert found.geometry == IMAGE.geometry


@pytest.mark.parametrize("axes", [(-1, 1, 1), (1, -1, -2), (2, 3, 1)])
def test_it_comes_back_on_the_scans_own_grid(axes):
    affine = np.diag([*map(float, axes), 1.0])
    image = volume(IMAGE.array, affine)
    found = refine(image, volume(COARSE, affine), Answers(lambda _, mask: mask), STAGE, LABELS)
    np.testing.assert_array_equal(found.array, COARSE)
    assert found.geometry == image.geometry


def test_the_image_decides_where_the_coarse_labels_were_wrong():
    # The truth is one box; the coarse labels have a part of it, and something beside it.
    truth = boxes((3, ((2, 7), (2, 7), (2, 7))))
    image = volume((truth > 0).astype(np.float32))
    found = refine(image, volume(boxes((3, ((4, 9), (4, 7), (4, 7))))), Answers(lambda x, _: x > 0.5), STAGE, LABELS)
    np.testing.assert_array_equal(found.array, truth)


def test_what_the_coarse_labels_lack_stays_missing_and_nothing_is_asked():
    engine = Answers(lambda _, mask: mask)
    assert not refine(IMAGE, volume(np.zeros_like(COARSE)), engine, STAGE, LABELS).array.any()
    assert engine.seen == []


def test_each_patch_shows_one_structure_and_lies_around_it():
    engine = Answers(lambda _, mask: mask)
    refine(IMAGE, volume(COARSE), engine, STAGE, LABELS)
    assert {one.shape for one in engine.seen} == {(2, 6, 6, 6)}
    assert all(one[-1].any() for one in engine.seen)
    assert all(set(np.unique(one[-1])) <= {0.0, 1.0} for one in engine.seen)
    assert 2 < len(engine.seen) <= 40  # two structures of 20 patches, equal ones once


def test_a_voxel_needs_more_than_half_of_its_votes():
    # Yes only in patches whose first voxel of the image is positive: votes disagree.
    engine = Answers(lambda x, _: np.full(x.shape, x[0, 0, 0] > 0))
    never = refine(IMAGE, volume(COARSE), Answers(lambda x, _: np.zeros(x.shape)), STAGE, LABELS)
    assert not never.array.any()
    some = refine(IMAGE, volume(COARSE), engine, STAGE, LABELS).array
    always = refine(IMAGE, volume(COARSE), Answers(lambda x, _: np.ones(x.shape)), STAGE, LABELS).array
    assert 0 < (some > 0).sum() < (always > 0).sum()


def test_where_two_structures_claim_a_voxel_the_surer_one_has_it():
    touching = boxes((3, ((0, 6), (0, 6), (0, 6))), (1, ((6, 12), (0, 6), (0, 6))))
    claims_all = Answers(lambda x, mask: np.ones(x.shape) if mask[0].any() else mask)
    found = refine(IMAGE, volume(touching), claims_all, STAGE, LABELS).array
    assert set(np.unique(found)) <= {0, 1, 3}
    assert (found == 1).any()
    assert (found == 3).any()


def test_the_same_scan_gives_the_same_labels_whatever_was_asked_before():
    def found(coarse):
        return refine(IMAGE, volume(coarse), Answers(lambda x, m: (x > 0) | (m > 0)), STAGE, LABELS).array

    np.testing.assert_array_equal(found(COARSE), found(COARSE))
    alone = boxes((1, ((8, 12), (6, 11), (3, 8))))
    region = (0, slice(8, 12), slice(6, 11), slice(3, 8))
    np.testing.assert_array_equal(found(COARSE)[region] == 1, found(alone)[region] == 1)


def test_scans_smaller_than_the_patch_are_padded():
    stage = Stage(prepare=AS_IT_IS, sampling=Sampling((20, 16, 6)), prior=Prior(patches=5))
    np.testing.assert_array_equal(
        refine(IMAGE, volume(COARSE), Answers(lambda _, mask: mask), stage, LABELS).array[..., 3:5], COARSE[..., 3:5]
    )


def test_values_that_are_not_finite_are_never_decided_on():
    with pytest.raises(ModelError, match="not finite"):
        refine(IMAGE, volume(COARSE), Answers(lambda x, _: np.full(x.shape, np.nan)), STAGE, LABELS)


def test_a_stage_without_a_prior_is_refused():
    with pytest.raises(RecipeError, match="prior"):
        refine(IMAGE, volume(COARSE), Answers(lambda _, mask: mask), Stage(), LABELS)


def test_segment_runs_both_stages():
    class Coarse:
        def infer(self, batch):
            strong = np.stack([batch[:, 0] * 0 + 0.5, batch[:, 0] > 0.5, batch[:, 0] < -0.5, batch[:, 0] * 0], axis=1)
            return strong.astype(np.float32)

    image = volume((COARSE == 3).astype(np.float32) - (COARSE == 1))
    stages = [Stage(prepare=AS_IT_IS, sampling=Sampling((6, 6, 6))), STAGE]
    found = segment(image, [Coarse(), Answers(lambda x, mask: (np.abs(x) > 0.5) & (mask > 0))], stages, LABELS)
    np.testing.assert_array_equal(found.array, COARSE)
