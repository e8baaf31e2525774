"""Dice + cross-entropy, with ignored voxels, regions and deep supervision taken care of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uxnet.labels import Labels
from uxnet.recipe import Loss

_SMOOTH = 1e-5  # a class in neither counts as found


class SegmentationLoss(nn.Module):
    """The loss of a recipe for a set of labels.

    For labels: softmax over all channels. For regions: a sigmoid each. Voxels with the ignore label count in neither term. Both
    terms are means over the samples of a batch. Deep supervision weighs each coarser level half as much as the one before it, and the
    weights sum to 1. What teachers say is a part of the cross-entropy's target alone: Dice with targets between 0 and 1 is least for
    answers that are surer than they are.
    """

    def __init__(self, settings: Loss, labels: Labels) -> None:
        super().__init__()
        self.settings = settings
        self.ignore = labels.ignore_index
        self.classes = labels.out_channels
        self.from_channel = 0 if settings.background or labels.regions else 1
        self.members: Tensor | None = None
        if labels.regions:
            index_of = {label.value: i + 1 for i, label in enumerate(labels.foreground)}
            table = torch.zeros(len(labels.foreground) + 2, len(labels.regions))
            for channel, region in enumerate(labels.regions):
                table[[index_of[value] for value in region.values], channel] = 1
            self.members = table

    def forward(self, logits: Tensor | list[Tensor], indices: Tensor, taught: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            logits: (N, out_channels, I, J, K); or, with deep supervision, a list of them, the full resolution first.
            indices: (N, I, J, K) label indices.
            taught: (N, out_channels, I, J, K) probabilities of teachers.

        Returns:
            A scalar, in float32.
        """
        levels = [logits] if isinstance(logits, Tensor) else logits
        total = indices.new_zeros((), dtype=torch.float32)
        weights = [0.5**n for n in range(len(levels))]
        for weight, level in zip(weights, levels, strict=True):
            indices = _at(indices, level)
            taught = None if taught is None else _at(taught, level)
            total = total + weight / sum(weights) * self._one(level.float(), indices.long(), taught)
        return total

    def _one(self, logits: Tensor, indices: Tensor, taught: Tensor | None) -> Tensor:
        counted = None if self.ignore is None else (indices != self.ignore)
        if self.members is not None:
            target = self.members.to(logits.device)[indices].movedim(-1, 1)
            probs = logits.sigmoid()
            wanted = target if taught is None else target.lerp(taught, self.settings.taught)
            entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
        else:
            clean = indices if counted is None else indices.masked_fill(~counted, 0)
            target = F.one_hot(clean, self.classes).movedim(-1, 1).float()
            probs = logits.softmax(1)
            entropy = F.cross_entropy(logits, clean if taught is None else target.lerp(taught, self.settings.taught), reduction="none")
        if counted is None:
            cross_entropy = entropy.mean()
        else:
            probs, target = probs * counted.unsqueeze(1), target * counted.unsqueeze(1)
            # Of each sample by itself, so that the parts of a batch come to the whole of it, wherever they are computed.
            each = (entropy * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp_min(1)
            cross_entropy = each.mean()
        dice = _soft_dice_loss(probs[:, self.from_channel :], target[:, self.from_channel :])
        return self.settings.dice * dice + self.settings.cross_entropy * cross_entropy


def _soft_dice_loss(probs: Tensor, target: Tensor) -> Tensor:
    """1 - the soft Dice of each sample and channel of (N, C, I, J, K), and their mean.

    MONAI's `DiceLoss` with its defaults; a test holds it to that. Importing MONAI takes longer than all else that a training imports.
    """
    over = (2, 3, 4)
    sums = probs.sum(over) + target.sum(over)
    return (1 - (2 * (probs * target).sum(over) + _SMOOTH) / (sums + _SMOOTH)).mean()


def _at(target: Tensor, level: Tensor) -> Tensor:
    """Label indices or probabilities on the grid of a decoder level: the first voxel of each of its cells.

    They are those of the level before. From odd sides a larger stride than 2 could not be told by the two sides alone.
    """
    strides = [-(-n // m) for n, m in zip(target.shape[-3:], level.shape[2:], strict=True)]
    return target[..., :: strides[0], :: strides[1], :: strides[2]]
