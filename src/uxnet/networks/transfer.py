"""Fresh networks that begin with the weights of trained ones, for other labels, channels or kernels (paper section 5, FLARE -> AMOS)."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uxnet.errors import ModelError, shortened
from uxnet.networks.blocks import PerAxis
from uxnet.networks.build import build


@dataclass(frozen=True)
class Transfer:
    """What became of every weight.

    copied: as they were.
    adapted: our name -> how it was made to fit.
    fresh: our name -> why it kept its fresh start.
    skipped: names that only the other network has.
    share, of_encoder: of the parameters of the network, and of its encoder, how many were copied or adapted.
    """

    copied: tuple[str, ...]
    adapted: Mapping[str, str] = field(default_factory=dict)
    fresh: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    share: float = 1.0
    of_encoder: float = 1.0

    def __str__(self) -> str:
        tensors = len(self.copied) + len(self.adapted) + len(self.fresh)
        of_encoder = f"{in_percent(self.share)} of all parameters, {in_percent(self.of_encoder)} of the encoder's"
        parts = [f"{len(self.copied) + len(self.adapted)} of {tensors} weights fit ({of_encoder})", f"{len(self.copied)} copied"]
        for what, names in (("adapted", self.adapted), ("fresh", self.fresh)):
            if names:
                reasons = sorted(set(names.values()))
                parts.append(f"{len(names)} {what} ({'; '.join(reasons)}: {shortened(names, 3)})")
        if self.skipped:
            parts.append(f"{len(self.skipped)} of the other network skipped ({shortened(self.skipped, 3)})")
        return ", ".join(parts)


def init_from(
    network: nn.Module,
    weights: Mapping[str, Any],
    *,
    inputs: Collection[str] = (),
    outputs: Collection[str] = (),
    new_labels: bool = False,
    kernels: Literal["trilinear", "centred"] = "trilinear",
    channels: tuple[int, int] | None = None,
    masks: int = 0,
    encoder: str = "",
) -> Transfer:
    """Copies every weight that fits, makes those fit that can be, and says what became of each.

    - Equal names and shapes are copied.
    - Where the number of image channels differs, the weights that see them are repeated over the channels and scaled, so that equal
      channels give what they gave.
    - A smaller kernel becomes a larger one: by trilinear upsampling that keeps its sum (MedNeXt's way, arXiv:2303.09975, and so its
      answer to a constant image), or "centred" in zeros, which computes exactly what it did.
    - Everything else keeps its fresh start: heads for another number of classes or, with `new_labels`, for other classes.

    Args:
        network: fresh; changed in place.
        weights: name -> array or tensor, of the other network's state.
        inputs, outputs: names of the weights whose shape follows the image's channels and the classes, see `tied_to_channels`.
        new_labels: whether the classes mean something else, even where their number is the same.
        kernels: how kernels grow.
        channels: how many the other network takes, and this one; needed where patches of voxels are seen by a matrix (UNETR).
        masks: how many of the last ones are masks and no images: they stay masks.
        encoder: a pattern of the names of the encoder's parameters (`Architecture.encoder`); "" counts all of them.

    Raises:
        ModelError: if nothing at all could be copied.
    """
    theirs = {name: torch.as_tensor(value) for name, value in weights.items()}
    own = network.state_dict()
    copied, adapted, fresh = [], {}, {}
    with torch.no_grad():
        for name, weight in own.items():
            source = theirs.get(name)
            if source is None:
                fresh[name] = "not in the other network"
            elif new_labels and name in outputs:
                fresh[name] = "other labels"
            elif source.shape == weight.shape:
                weight.copy_(source)
                copied.append(name)
            elif name in inputs and (counts := _channels_of(source, weight, channels)):
                weight.copy_(_over_channels(source, counts, masks))
                adapted[name] = f"image channels {counts[0] - masks} to {counts[1] - masks}"
            elif _grows(source, weight):
                weight.copy_(_grown(source, weight, kernels))
                adapted[name] = f"kernel {_sides(source)} to {_sides(weight)}, {kernels}"
            elif name in outputs:
                fresh[name] = "another number of classes"
            else:
                fresh[name] = "another shape"
    if not copied:
        raise ModelError("no weight of the other network fits this one, in name and shape; they are different networks")
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    inside = {name: size for name, size in sizes.items() if re.match(encoder, name)}
    skipped = tuple(name for name in theirs if name not in own)
    return Transfer(tuple(copied), adapted, fresh, skipped, _share(sizes, fresh), _share(inside, fresh))


def in_percent(share: float) -> str:
    """A share in words that call no part the whole, and no little nothing."""
    if 0 < share < 0.001:
        return "less than 0.1 %"
    return f"{math.floor(1000 * share) / 10:g} %"


def _share(sizes: Mapping[str, int], fresh: Collection[str]) -> float:
    """Of the values in parameters, the share of those that are not fresh."""
    return sum(size for name, size in sizes.items() if name not in fresh) / max(1, sum(sizes.values()))


def tied_to_channels(
    name: str, in_channels: int, out_channels: int, patch: PerAxis, settings: Mapping[str, Any]
) -> tuple[set[str], set[str]]:
    """The names of a network's weights whose shapes follow the number of image channels, and of classes."""

    def shapes(inputs: int, outputs: int) -> dict[str, torch.Size]:
        with torch.device("meta"):
            return {key: weight.shape for key, weight in build(name, inputs, outputs, patch, settings).state_dict().items()}

    base = shapes(in_channels, out_channels)
    more_in, more_out = shapes(in_channels + 1, out_channels), shapes(in_channels, out_channels + 1)
    return {key for key in base if more_in.get(key) != base[key]}, {key for key in base if more_out.get(key) != base[key]}


def _channels_of(source: Tensor, weight: Tensor, channels: tuple[int, int] | None) -> tuple[int, int] | None:
    """How many channels two weights see that are the same but for that; None if they are not.

    Kernels are (O, C, I, J, K), and UNETR's matrix of patches (O, voxels * C), of which nobody could tell C.
    """
    if source.ndim != weight.ndim or source.shape[0] != weight.shape[0] or source.shape[2:] != weight.shape[2:]:
        return None
    if source.ndim == 5:
        return source.shape[1], weight.shape[1]
    if source.ndim == 2 and channels and source.shape[1] * channels[1] == weight.shape[1] * channels[0]:
        return channels
    return None


def _over_channels(source: Tensor, channels: tuple[int, int], masks: int) -> Tensor:
    """Shared out over more channels, or put together for fewer; the sum over image channels stays, and masks are copied.

    (O, C, ...) -> (O, channels[1], ...); of (O, voxels * C) the channels of a voxel stand side by side.
    """
    count, wanted = (n - masks for n in channels)
    share = torch.zeros(wanted + masks, count + masks, dtype=source.dtype)
    for n in range(max(wanted, count)):
        share[n % wanted, n % count] = 1
    share /= share.sum(0).clamp_min(1)
    share[wanted:, count:] = torch.eye(masks, dtype=source.dtype)
    by_channel = source.reshape(source.shape[0], -1, channels[0], *source.shape[2:])
    return torch.einsum("nc,opc...->opn...", share, by_channel).reshape(source.shape[0], -1, *source.shape[2:])


def _grows(source: Tensor, weight: Tensor) -> bool:
    if source.ndim != 5 or weight.ndim != 5 or source.shape[:2] != weight.shape[:2]:
        return False
    sides = list(zip(source.shape[2:], weight.shape[2:], strict=True))
    return all(b >= a and (b - a) % 2 == 0 for a, b in sides)


def _grown(source: Tensor, weight: Tensor, how: str) -> Tensor:
    if how == "centred":
        room = [(b - a) // 2 for a, b in zip(source.shape[2:], weight.shape[2:], strict=True)]
        return F.pad(source, [n for side in reversed(room) for n in (side, side)])
    larger = source.float()
    for axis, side in enumerate(weight.shape[2:], start=2):
        # Each old weight is spread over its neighbours by a hat of sum 1.
        hats = F.interpolate(torch.eye(source.shape[axis])[None], size=side, mode="linear", align_corners=True)[0]
        larger = torch.tensordot(larger, hats / hats.sum(1, keepdim=True), dims=([axis], [0])).movedim(-1, axis)
    return larger


def _sides(weight: Tensor) -> str:
    return "x".join(str(int(side)) for side in weight.shape[2:])
