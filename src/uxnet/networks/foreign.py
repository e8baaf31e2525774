"""Weights from elsewhere: which network they are of, the settings that their shapes tell, and their names in our networks.

Names and tensors only; files are `convert`'s. What is known: the authors' 3D UX-Net (its grouped pointwise layers and, before October
2022, dense ones) and MONAI's SwinUNETR, UNETR and SegResNet. The names themselves stand as key maps beside each network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from uxnet.errors import ModelError, RecipeError, printable, shortened
from uxnet.networks.blocks import Triple, triple
from uxnet.networks.build import architecture, build
from uxnet.networks.limits import TooLarge
from uxnet.networks.weights import rename

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "network_weights", "model", "network", "net", "weights")
"""Keys under which checkpoints keep the weights, beside epochs, optimisers and scores."""

PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
"""What data parallelism, compilation and training frameworks write before every name."""

MERGING = (
    "weights of SwinUNETR do not say which patch merging they were trained with, and the other one gives other labels; set merging=old "
    "for MONAI up to 1.4 (so for all weights published before MONAI 1.5, June 2025), merging=corrected for MONAI from 1.5 on"
)

_DEEPEST = 8
_LONGEST_KEY = 100


@dataclass(frozen=True)
class Recognised:
    """What the names and shapes of weights tell.

    network: its name in `build.NETWORKS`.
    in_channels, out_channels: of image and logits.
    settings: of the network, every one that its shapes show.
    patch: the sides (I, J, K) that it is tied to, None for networks that take any.
    assumed: what shapes do not show and was filled in, as sentences.
    """

    network: str
    in_channels: int
    out_channels: int
    settings: Mapping[str, Any]
    patch: Triple | None = None
    assumed: tuple[str, ...] = ()


def unwrapped(loaded: Any) -> tuple[dict[Any, Tensor], tuple[str, ...]]:
    """The weights in a loaded checkpoint by their names, and the keys that they lay under.

    Raises:
        ModelError: if there are none, or it is not clear which of several tables they are.
    """
    path: list[str] = []
    while isinstance(loaded, Mapping) and len(path) < _DEEPEST:
        table: Mapping[Any, Any] = loaded
        inner = next((key for key in WRAPPERS if _holds_tensors(table.get(key))), None)
        if inner is None:
            found = {name: value for name, value in table.items() if isinstance(value, Tensor)}
            if found:
                return found, tuple(path)
            tables = [str(key) for key, value in table.items() if _holds_tensors(value, 1)]
            if len(tables) != 1:
                raise ModelError(
                    f"no table of weights by name is in it; its keys are {shortened(_shown(key) for key in table) or 'none'}; "
                    f"weights are looked for at the top and under {', '.join(WRAPPERS)}"
                )
            inner = tables[0]
        path.append(inner)
        loaded = table.get(inner)
    raise ModelError("it is no table of weights by name; save the network's state_dict()")


def stated_monai(loaded: Any) -> str | None:
    """The version of MONAI that a checkpoint states, at its top or one table down; None if it does not."""
    tables = [loaded, *(loaded.values() if isinstance(loaded, Mapping) else ())]
    for table in tables:
        for key in ("monai_version", "monai", "MONAI") if isinstance(table, Mapping) else ():
            text = table.get(key)
            if isinstance(text, str) and (version := re.match(r"[0-9]+\.[0-9]+[0-9A-Za-z.+-]*", text)):
                return version[0][:40]
    return None


def without_prefixes(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The weights without the prefixes that all names share, and what was taken away."""
    taken, found = "", dict(weights)
    while prefix := next((p for p in PREFIXES if found and all(name.startswith(p) for name in found)), ""):
        found = {name.removeprefix(prefix): weight for name, weight in found.items()}
        taken += prefix
    return found, taken


def recognised(
    weights: Mapping[str, Tensor], network: str | None = None, given: Mapping[str, Any] | None = None, monai: str | None = None
) -> Recognised:
    """Which network the weights are of, and its settings.

    Args:
        weights: name -> weight, without prefixes.
        network: one of `KINDS`; None finds it by the names.
        given: settings that go before what the shapes show; for UNETR `patch`, too.
        monai: the version that the weights were trained with, where it is known.

    Raises:
        ModelError: if no network is found, a weight is missing that the settings are read from, or something that shapes do not show
            must be given.
    """
    name = network or _kind_of(weights)
    if name not in KINDS:
        raise ModelError(f"weights of {name!r} cannot be converted; known are {', '.join(KINDS)}")
    given = dict(given or {})
    patch = given.pop("patch", None)
    seen = KINDS[name].read(_Shapes(name, {key: tuple(weight.shape) for key, weight in weights.items()}), given, patch)
    settings = {**seen.settings, **given}
    assumed = list(seen.assumed)
    if name == "swinunetr" and "merging" not in settings:
        if monai is None:
            raise ModelError(MERGING)
        settings["merging"] = "old" if _version(monai) < (1, 5) else "corrected"
        assumed.append(f"patch merging {settings['merging']}, since the checkpoint states MONAI {monai}")
    if patch is not None and seen.patch is None:
        raise ModelError(f"{name} has no setting patch: it takes patches of any size")
    return Recognised(name, seen.in_channels, seen.out_channels, settings, seen.patch, tuple(assumed))


def renamed(weights: Mapping[str, Tensor], found: Recognised) -> dict[str, Tensor]:
    """The weights under our names and in our shapes, float32; every one of ours that anything reads, every one of theirs used.

    Raises:
        ModelError: naming the weights that are missing, unknown or of another shape.
        RecipeError: if the settings make no network.
    """
    kind, entry = KINDS[found.network], architecture(found.network)
    theirs = kind.tidied({name: weight for name, weight in weights.items() if weight.is_floating_point()})
    try:
        # Without memory of its own, where the network can: shapes are what a stranger's file says, and may be anything.
        with torch.device("meta"):
            network = build(found.network, found.in_channels, found.out_channels, found.patch or 96, found.settings)
    except RecipeError as error:
        if not isinstance(error.__cause__, RuntimeError | ArithmeticError | TooLarge):
            raise  # what somebody asked for is no setting of this network
        raise ModelError(f"the settings that its shapes show make no {found.network}: {dict(found.settings)}") from error
    ours = {name: weight for name, weight in network.state_dict().items() if weight.is_floating_point()}
    result, missing, misshapen, used = {}, [], [], set()
    for name, weight in ours.items():
        other = rename(name, entry.key_maps[0])
        if other not in theirs:
            if not any(re.match(pattern, name) for pattern in entry.absent):
                missing.append(other)
            continue
        used.add(other)
        if _without_trailing_ones(theirs[other]) == _without_trailing_ones(weight):
            result[name] = theirs[other].to(torch.float32).reshape(weight.shape)
        else:
            misshapen.append(f"{other} {tuple(theirs[other].shape)} where {tuple(weight.shape)} is needed")
    unknown = [name for name in theirs if name not in used and not _unread(name, theirs[name], kind)]
    problems = [
        f"{len(names)} {what}: {shortened(names)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise ModelError(f"its weights are not those of {found.network} with {dict(found.settings)}; {'; '.join(problems)}")
    return result


@dataclass(frozen=True)
class _Shapes:
    """Names and shapes of the weights of a network, asked for by name."""

    network: str
    shapes: Mapping[str, tuple[int, ...]]

    def shape(self, name: str, axes: int = 5) -> tuple[int, ...]:
        if name not in self.shapes:
            raise ModelError(f"the weight {name} of {self.network} is missing, among {len(self.shapes)}; it has {shortened(self.shapes)}")
        found = self.shapes[name]
        if len(found) != axes or 0 in found:
            raise ModelError(f"the weight {name} has the shape {found} where {axes} axes are needed; only networks for volumes are known")
        return found

    def count(self, pattern: str) -> int:
        """How many different first groups the pattern has, at the beginnings of names."""
        return len({match[1] for name in self.shapes if (match := re.match(pattern, name))})

    def expect(self, name: str, *shape: int) -> None:
        if self.shape(name, len(shape)) != shape:
            raise ModelError(f"the weight {name} has the shape {self.shapes[name]}, and by the others {shape} is needed")


def _read_uxnet(shapes: _Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
    body, stages = "uxnet_3d", shapes.count(r"uxnet_3d\.downsample_layers\.(\d+)\.")
    if stages != 4:
        raise ModelError(f"it has {stages} stages (uxnet_3d.downsample_layers); the authors' networks have four")
    stem = shapes.shape(f"{body}.downsample_layers.0.0.weight")
    downs = [shapes.shape(f"{body}.downsample_layers.{s}.1.weight") for s in range(1, stages)]
    mixing = [shapes.shape(f"{body}.stages.{s}.0.dwconv.weight") for s in range(stages)]
    head = shapes.shape("out.conv.conv.weight")
    if head[1] != stem[0]:
        raise ModelError(
            f"its first stage has {stem[0]} channels and its output convolution takes {head[1]}: the authors' code fixes the latter to 48 "
            "whatever the widths, and such a network computes nothing; it cannot be represented"
        )
    expand = f"{body}.stages.0.0.pwconv1.weight"
    settings: dict[str, Any] = {
        "widths": [stem[0], *(down[0] for down in downs)],
        "depths": [shapes.count(rf"uxnet_3d\.stages\.{s}\.(\d+)\.") for s in range(stages)],
        "hidden": shapes.shape("encoder5.layer.conv1.conv.weight")[0],
        "stem_kernel": _sides([stem]),
        "stem_stride": _sides([shapes.shape("decoder2.transp_conv.conv.weight")]),
        "convolution": "depthwise" if mixing[0][1] == 1 else "standard",
        "kernel": _sides(mixing),
        "strides": _sides(downs),
        "decoder_kernel": _sides([shapes.shape(f"encoder{level}.layer.conv1.conv.weight") for level in range(1, stages + 2)]),
        "scaling": "none",
    }
    if expand in shapes.shapes:
        # Linear layers (d, 4 d), the authors' first, are what a dense 1x1x1 convolution is.
        linear = len(shapes.shapes[expand]) == 2
        widened, seen = shapes.shape(expand, 2 if linear else 5)[:2]
        settings["scaling"] = "mlp" if linear or seen > 1 else "dcs"
        settings["expansion"] = max(widened // stem[0], 1)
    if f"{body}.stages.0.0.gamma" not in shapes.shapes:
        settings["layer_scale"] = False
    return Recognised("uxnet", stem[1], head[0], settings)


def _read_swinunetr(shapes: _Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
    width, in_channels = shapes.shape("swinViT.patch_embed.proj.weight")[:2]
    depths = [shapes.count(rf"swinViT\.layers{stage}\.0\.blocks\.(\d+)\.") for stage in range(1, 5)]
    tables = [shapes.shape(f"swinViT.layers{stage}.0.blocks.0.attn.relative_position_bias_table", 2) for stage in range(1, 5)]
    side = round(tables[0][0] ** (1 / 3))
    if side**3 != tables[0][0] or side % 2 == 0:
        raise ModelError(f"its windows are no cubes: a relative_position_bias_table of {tables[0][0]} rows; only cubes are known")
    # The network is built before its shapes can be compared one by one: the large ones must agree before anything is made.
    for stage, depth in enumerate(depths, start=1):
        c = width * 2 ** (stage - 1)
        for block in range(depth):
            shapes.expect(f"swinViT.layers{stage}.0.blocks.{block}.attn.qkv.weight", 3 * c, c)
            shapes.expect(f"swinViT.layers{stage}.0.blocks.{block}.mlp.linear1.weight", 4 * c, c)
            shapes.expect(f"swinViT.layers{stage}.0.blocks.{block}.attn.relative_position_bias_table", *tables[stage - 1])
    shapes.expect("encoder10.layer.conv1.conv.weight", 16 * width, 16 * width, 3, 3, 3)
    settings = {"width": width, "depths": depths, "heads": [table[1] for table in tables], "window": (side + 1) // 2}
    return Recognised("swinunetr", in_channels, shapes.shape("out.conv.conv.weight")[0], settings)


def _read_unetr(shapes: _Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
    _, tokens, hidden = shapes.shape("vit.patch_embedding.position_embeddings", 3)
    width, in_channels = shapes.shape("encoder1.layer.conv1.conv.weight")[:2]
    settings = {"width": width, "hidden": hidden, "mlp": shapes.shape("vit.blocks.0.mlp.linear1.weight", 2)[0]}
    assumed = []
    if "heads" not in given:
        if hidden % 64:
            raise ModelError(f"weights of UNETR do not show the heads of the attention; set heads to a divisor of {hidden}")
        settings["heads"] = hidden // 64
        assumed.append(f"{hidden // 64} heads, of 64 channels each as in the paper, since weights do not show them; set heads if not so")
    side = round(tokens ** (1 / 3))
    if patch is None and side**3 != tokens:
        raise ModelError(f"it has {tokens} tokens of 16x16x16 voxels, which make no cube; set patch to its sides, such as [96, 96, 64]")
    if patch is None:
        assumed.append(f"patches of {16 * side} voxels along every axis, since {tokens} tokens make that cube; set patch if not so")
    try:
        sides = triple(tuple(patch) if isinstance(patch, list) else 16 * side if patch is None else patch, "patch")
    except ValueError as error:
        raise ModelError(str(error)) from error
    return Recognised("unetr", in_channels, shapes.shape("out.conv.conv.weight")[0], settings, sides, tuple(assumed))


def _read_segresnet(shapes: _Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
    width, in_channels = shapes.shape("convInit.conv.weight")[:2]
    down, up = shapes.count(r"down_layers\.(\d+)\."), shapes.count(r"up_layers\.(\d+)\.")
    settings = {
        "width": width,
        "blocks_down": [shapes.count(rf"down_layers\.{level}\.(\d+)\.conv1\.") for level in range(down)],
        "blocks_up": [shapes.count(rf"up_layers\.{level}\.(\d+)\.conv1\.") for level in range(up)],
    }
    return Recognised("segresnet", in_channels, shapes.shape("conv_final.2.conv.weight")[0], settings)


def _perceptron(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """MONAI's other embedding of UNETR's tokens, a strided convolution, as the linear layer that it is: voxels first, channels last."""
    name = "vit.patch_embedding.patch_embeddings"
    if f"{name}.weight" not in weights or weights[f"{name}.weight"].ndim != 5:
        return weights
    kernel = weights[f"{name}.weight"].permute(0, 2, 3, 4, 1)
    rest = {key: weight for key, weight in weights.items() if not key.startswith(name)}
    bias = {f"{name}.1.bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {}
    return {**rest, f"{name}.1.weight": kernel.reshape(len(kernel), -1), **bias}


@dataclass(frozen=True)
class _Kind:
    """How the weights of a network are known and read.

    starts: what the names of its encoder begin with.
    read: shapes, given settings, given patch -> what they tell.
    tidied: names and weights as the key map has them.
    unread: patterns of weights that some versions of the network own and none reads.
    """

    starts: str
    read: Callable[[_Shapes, Mapping[str, Any], Any], Recognised]
    tidied: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    unread: Sequence[str] = field(default_factory=tuple)


KINDS: Mapping[str, _Kind] = {
    "uxnet": _Kind("uxnet_3d.", _read_uxnet),
    "swinunetr": _Kind("swinViT.", _read_swinunetr),
    # A class token until MONAI 0.7; cross attention, which UNETR does not ask for, in some later ones.
    "unetr": _Kind("vit.", _read_unetr, _perceptron, (r"vit\.patch_embedding\.cls_token$", r"vit\.blocks\.\d+\.(norm_)?cross_attn\.")),
    "segresnet": _Kind("convInit.", _read_segresnet),
}
"""Networks whose weights from elsewhere are known."""


def _kind_of(weights: Mapping[str, Tensor]) -> str:
    found = [name for name, kind in KINDS.items() if any(key.startswith(kind.starts) for key in weights)]
    if len(found) != 1:
        known = ", ".join(f"{name} ({kind.starts}...)" for name, kind in KINDS.items())
        what = "several networks are" if found else "no network is"
        raise ModelError(f"{what} recognised in its {len(weights)} weights, called {shortened(weights)}; known are {known}")
    return found[0]


def _unread(name: str, weight: Tensor, kind: _Kind) -> bool:
    # MONAI before 0.9 gave every residual block a shortcut convolution; where the channels do not change, none was ever computed.
    idle = name.endswith(".conv3.conv.weight") and weight.ndim == 5 and weight.shape[0] == weight.shape[1] and weight.shape[2:].numel() == 1
    return idle or any(re.match(pattern, name) for pattern in kind.unread)


def _shown(key: Any) -> str:
    text = printable(str(key))
    return text if len(text) <= _LONGEST_KEY else f"{text[:_LONGEST_KEY]}..."


def _holds_tensors(value: Any, depth: int = 3) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(v, Tensor) for v in value.values()) or (depth > 1 and any(_holds_tensors(v, depth - 1) for v in value.values()))


def _without_trailing_ones(weight: Tensor) -> tuple[int, ...]:
    shape = list(weight.shape)
    while shape and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def _sides(shapes: Sequence[tuple[int, ...]]) -> Any:
    """The kernels of these weights as a setting: one number, one an axis, or three for each of them."""
    kernels = [list(shape[2:]) for shape in shapes]
    if any(kernel != kernels[0] for kernel in kernels):
        return kernels
    return kernels[0][0] if len(set(kernels[0])) == 1 else kernels[0]


def _version(text: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", text)[:2]
    return int(major), int(minor)
