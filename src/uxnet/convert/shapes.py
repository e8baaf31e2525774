"""What the names and shapes of a network's weights tell of it, asked for by name."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uxnet.errors import ModelError, shortened
from uxnet.networks.blocks import Triple, triple
from uxnet.networks.build import SIZES, architecture, with_size


@dataclass(frozen=True)
class Recognised:
    """What the names and shapes of weights tell.

    network: its name in `build.NETWORKS`.
    in_channels, out_channels: of image and logits.
    settings: of the network, every one that its shapes show.
    patch: the sides (I, J, K) that it is tied to, None for networks that take any.
    assumed: what shapes do not show and was filled in, as sentences.
    ours: whether the weights have our names, and not those that the network has elsewhere.
    """

    network: str
    in_channels: int
    out_channels: int
    settings: Mapping[str, Any]
    patch: Triple | None = None
    assumed: tuple[str, ...] = ()
    ours: bool = False


@dataclass(frozen=True)
class Shapes:
    """Names and shapes of the weights of a network."""

    network: str
    shapes: Mapping[str, tuple[int, ...]]

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def shape(self, name: str, axes: int = 5) -> tuple[int, ...]:
        """The shape of a weight of so many axes.

        Raises:
            ModelError: if there is none.
        """
        if name not in self.shapes:
            raise ModelError(f"the weight {name} of {self.network} is missing, among {len(self.shapes)}; it has {shortened(self.shapes)}")
        found = self.shapes[name]
        if len(found) != axes or 0 in found:
            raise ModelError(f"the weight {name} has the shape {found} where {axes} axes are needed; only networks for volumes are known")
        return found

    def count(self, pattern: str) -> int:
        """How many different first groups the pattern has, at the beginnings of names."""
        return len({match[1] for name in self.shapes if (match := re.match(pattern, name))})

    def any(self, pattern: str) -> bool:
        """Whether the pattern is at the beginning of a name."""
        return any(re.match(pattern, name) for name in self.shapes)

    def expect(self, name: str, *shape: int) -> None:
        """Refuses a weight of another shape.

        Raises:
            ModelError: if it has one, or there is no such weight.
        """
        if self.shape(name, len(shape)) != shape:
            raise ModelError(f"the weight {name} has the shape {self.shapes[name]}, and by the others {shape} is needed")


def kernel_sides(shapes: Sequence[tuple[int, ...]]) -> Any:
    """The kernels of these weights as a setting: one number, one an axis, or three for each of them."""
    kernels = [list(shape[2:]) for shape in shapes]
    if any(kernel != kernels[0] for kernel in kernels):
        return kernels
    return kernels[0][0] if len(set(kernels[0])) == 1 else kernels[0]


def window_side(rows: int, what: str) -> int:
    """The side of cubic windows whose table of relative positions has so many rows.

    Raises:
        ModelError: if they are no cubes.
    """
    side = round(math.cbrt(rows))
    if side**3 != rows or side % 2 == 0:
        raise ModelError(f"its windows are no cubes: {what} of {rows} rows; only cubes are known")
    return (side + 1) // 2


def tied_patch(tokens: int, stride: int, patch: Any) -> tuple[Triple, tuple[str, ...]]:
    """The patch that so many tokens of `stride` voxels along each axis belong to, and what is assumed of it.

    Args:
        patch: as it was given, None where it was not: then it is a cube.

    Raises:
        ModelError: if no cube has so many, or what was given is no patch.
    """
    side = round(math.cbrt(tokens))
    assumed: tuple[str, ...] = ()
    if patch is None:
        if side**3 != tokens:
            raise ModelError(
                f"it has {tokens} tokens of {stride}x{stride}x{stride} voxels, which make no cube; set patch, such as [96, 96, 64]"
            )
        assumed = (f"patches of {stride * side} voxels along every axis, since {tokens} tokens make that cube; set patch if not so",)
    try:
        return triple(tuple(patch) if isinstance(patch, list) else stride * side if patch is None else patch, "patch"), assumed
    except ValueError as error:
        raise ModelError(str(error)) from error


def usual_heads(network: str, settings: Mapping[str, Any], channels: int) -> tuple[int, str]:
    """The heads of an attention, which weights do not show: those of the size that has these settings, else 64 channels each.

    Returns:
        How many, and by what they were chosen, in words.

    Raises:
        ModelError: if that makes no heads.
    """
    defaults = {key: p.default for key, p in inspect.signature(architecture(network).network).parameters.items()}
    for size in SIZES:
        sized = {**defaults, **with_size(network, {"size": size})}
        if all(_same(sized.get(key), value) for key, value in settings.items()):
            return int(sized["heads"]), f"as this network has them in the size {size}"
    if channels % 64:
        raise ModelError(f"weights of {network} do not show the heads of the attention; set heads to a divisor of {channels}")
    return channels // 64, "of 64 channels each as in the paper"


def _same(a: Any, b: Any) -> bool:
    return list(a) == list(b) if isinstance(a, Sequence) and isinstance(b, Sequence) else bool(a == b)
