import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss

from uxnet.labels import Label, Labels, Region
from uxnet.recipe import Loss
from uxnet.training.losses import SegmentationLoss

THREE = (Label("a", 1), Label("b", 5), Label("c", 9))
PLAIN = Labels(THREE)
IGNORING = Labels(THREE, ignore=255)
REGIONS = Labels(THREE, regions=(Region("all", (1, 5, 9), 1), Region("core", (5, 9), 5)))
REGIONS_IGNORING = Labels(THREE, regions=REGIONS.regions, ignore=255)


def batch(labels, shape=(5, 4, 6), n=2, seed=0, ignored=False):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((n, labels.out_channels, *shape), generator=generator) * 3
    indices = torch.randint(0, len(labels.foreground) + 1 + ignored, (n, *shape), generator=generator)
    return logits.requires_grad_(), indices.to(torch.uint8)


@pytest.mark.parametrize("background", [True, False])
def test_equal_to_monais_dice_and_cross_entropy(background):
    logits, indices = batch(PLAIN)
    ours = SegmentationLoss(Loss(background=background), PLAIN)(logits, indices)
    theirs = DiceCELoss(softmax=True, to_onehot_y=True, include_background=background)(logits, indices.long()[:, None])
    if not background:  # monai leaves the background out of the cross-entropy, too
        dice = DiceLoss(softmax=True, to_onehot_y=True, include_background=False)(logits, indices.long()[:, None])
        theirs = dice + F.cross_entropy(logits, indices.long())
    torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad(ours, logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(gradient, wanted)


def test_the_weights_of_the_two_terms():
    logits, indices = batch(PLAIN)
    dice = SegmentationLoss(Loss(dice=1, cross_entropy=0), PLAIN)(logits, indices)
    entropy = SegmentationLoss(Loss(dice=0, cross_entropy=1), PLAIN)(logits, indices)
    torch.testing.assert_close(entropy, F.cross_entropy(logits, indices.long()))
    torch.testing.assert_close(SegmentationLoss(Loss(dice=2, cross_entropy=0.5), PLAIN)(logits, indices), 2 * dice + 0.5 * entropy)


@pytest.mark.parametrize("labels", [IGNORING, REGIONS_IGNORING])
def test_ignored_voxels_count_in_nothing(labels):
    logits, indices = batch(labels, ignored=True)
    loss_of = SegmentationLoss(Loss(), labels)
    loss = loss_of(logits, indices)
    (gradient,) = torch.autograd.grad(loss, logits)
    ignored = indices == labels.ignore_index
    assert ignored.any()
    silent = ignored[:, None].expand_as(gradient)
    assert (gradient[silent] == 0).all()
    assert (gradient[~silent] != 0).any()
    # Neither what the network says there matters ...
    other = torch.where(ignored[:, None], torch.full_like(logits, -50.0), logits)
    assert torch.equal(loss_of(other, indices), loss)
    # ... nor that the voxels are there at all.
    cut_logits, cut_indices = logits[..., :3], indices[..., :3].clamp(max=3)
    rest_ignored = indices.clamp(max=3).clone()
    rest_ignored[..., 3:] = labels.ignore_index
    torch.testing.assert_close(loss_of(logits, rest_ignored), loss_of(cut_logits, cut_indices))


@pytest.mark.parametrize("labels", [IGNORING, REGIONS_IGNORING])
def test_a_batch_of_nothing_but_ignored_voxels(labels):
    logits, indices = batch(labels)
    indices.fill_(labels.ignore_index)
    loss = SegmentationLoss(Loss(), labels)(logits, indices)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert (gradient == 0).all()


def test_an_ignore_label_that_does_not_occur_changes_nothing():
    logits, indices = batch(PLAIN)
    plain, ignoring = (SegmentationLoss(Loss(), labels)(logits, indices) for labels in (PLAIN, IGNORING))
    torch.testing.assert_close(plain, ignoring)


def test_regions_are_sigmoids_that_may_overlap():
    logits, indices = batch(REGIONS)
    target = torch.stack([(indices > 0), (indices > 1)], dim=1).float()
    want = DiceLoss(sigmoid=True)(logits, target) + F.binary_cross_entropy_with_logits(logits, target)
    for background in (True, False):  # there is no background among regions: none may be left out
        torch.testing.assert_close(SegmentationLoss(Loss(background=background), REGIONS)(logits, indices), want)


def test_a_single_region():
    labels = Labels(THREE, regions=(Region("all", (1, 5, 9), 1),))
    logits, indices = batch(labels)
    target = (indices > 0)[:, None].float()
    want = DiceLoss(sigmoid=True)(logits, target) + F.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(SegmentationLoss(Loss(), labels)(logits, indices), want)


def test_perfect_logits_cost_next_to_nothing():
    for labels in (PLAIN, REGIONS):
        _, indices = batch(labels)
        shown = indices.long()
        perfect = torch.stack([shown > 0, shown > 1], 1).float() if labels.regions else F.one_hot(shown, 4).movedim(-1, 1).float()
        loss_of = SegmentationLoss(Loss(), labels)
        assert float(loss_of((perfect - 0.5) * 100, indices)) < 1e-3
        assert float(loss_of((0.5 - perfect) * 100, indices)) > 10


def test_deep_supervision_halves_the_weight_of_each_level():
    shape = (8, 12, 4)
    _, indices = batch(PLAIN, shape)
    strides = [(1, 1, 1), (2, 2, 1), (4, 4, 2)]
    levels = [batch(PLAIN, tuple(n // s for n, s in zip(shape, stride, strict=True)), seed=k)[0] for k, stride in enumerate(strides)]
    loss_of = SegmentationLoss(Loss(), PLAIN)
    each = [loss_of(level, indices[:, ::i, ::j, ::k]) for level, (i, j, k) in zip(levels, strides, strict=True)]
    torch.testing.assert_close(loss_of(levels, indices), (4 * each[0] + 2 * each[1] + each[2]) / 7)
    torch.testing.assert_close(loss_of([levels[0]], indices), loss_of(levels[0], indices))


@pytest.mark.parametrize("side", [9, 13, 17, 25, 31])
def test_deep_supervision_of_odd_sides_looks_at_the_right_voxels(side):
    """The network's coarser levels have cells of 2, 4, 8, 16 voxels; the label of a cell is that of its first voxel."""
    indices = torch.from_numpy(np.random.default_rng(side).integers(0, 4, (1, side, side, 1)).astype(np.uint8))
    loss_of = SegmentationLoss(Loss(), PLAIN)
    strides = (1, 2, 4, 8, 16)
    perfect = [F.one_hot(indices[:, ::s, ::s].long(), 4).movedim(-1, 1).float() * 100 for s in strides]
    assert float(loss_of(perfect, indices)) < 0.5 * float(loss_of([-level for level in perfect], indices))
    for level, s in zip(perfect[1:], strides[1:], strict=True):
        assert level.shape[2] == -(-side // s)
    entropy = SegmentationLoss(Loss(dice=0), PLAIN)
    assert float(entropy(perfect, indices)) < 1e-6


def test_half_precision_logits_give_a_float32_loss():
    logits, indices = batch(PLAIN)
    loss = SegmentationLoss(Loss(), PLAIN)(logits.to(torch.bfloat16), indices)
    assert loss.dtype == torch.float32
    for dtype in (torch.int16, torch.int64):
        assert torch.equal(SegmentationLoss(Loss(), PLAIN)(logits.to(torch.bfloat16), indices.to(dtype)), loss)


@pytest.mark.parametrize("labels", [PLAIN, REGIONS])
def test_what_teachers_say_is_a_share_of_the_cross_entropy_target(labels):
    logits, indices = batch(labels)
    other, _ = batch(labels)
    said = other.detach().flip(0)
    said = said.sigmoid() if labels.regions else said.softmax(1)
    alone, dice = SegmentationLoss(Loss(), labels)(logits, indices), SegmentationLoss(Loss(cross_entropy=0), labels)(logits, indices)
    entropy = F.binary_cross_entropy_with_logits if labels.regions else F.cross_entropy
    for share in (0.0, 0.25, 1.0):
        loss = SegmentationLoss(Loss(taught=share), labels)(logits, indices, said)
        torch.testing.assert_close(loss, dice + (1 - share) * (alone - dice) + share * entropy(logits, said))


def test_what_teachers_say_of_ignored_voxels_counts_in_nothing_and_reaches_every_level():
    logits, indices = batch(IGNORING, ignored=True)
    said = logits.detach().roll(1, 0).softmax(1)
    loss_of = SegmentationLoss(Loss(), IGNORING)
    wild = torch.where((indices == IGNORING.ignore_index)[:, None], torch.full_like(said, 1e3), said)
    torch.testing.assert_close(loss_of(logits, indices, wild), loss_of(logits, indices, said))
    levels = [logits, logits[..., ::2, ::2, ::2]]
    each = [loss_of(levels[0], indices, said), loss_of(levels[1], indices[:, ::2, ::2, ::2], said[..., ::2, ::2, ::2])]
    torch.testing.assert_close(loss_of(levels, indices, said), (2 * each[0] + each[1]) / 3)
