"""Weights from elsewhere: which network they are of, the settings that their shapes tell, and their names in our networks.

Names and tensors only; files are `convert`'s. What is known: the authors' 3D UX-Net (its grouped pointwise layers and, before October
2022, dense ones), MONAI's SwinUNETR, UNETR, SegResNet and UNet, and what was saved of any network of ours (`own.py`). The names
themselves stand as key maps beside each network. What no shape shows is assumed, and said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from uxnet.convert import own
from uxnet.convert.shapes import Recognised, Shapes, kernel_sides, tied_patch, usual_heads, window_side
from uxnet.errors import ModelError, RecipeError, printable, shortened
from uxnet.networks.blocks import PerAxis
from uxnet.networks.build import architecture, build
from uxnet.networks.limits import TooLarge
from uxnet.networks.weights import KeyMap, rename

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
    if network is not None and network not in KINDS:
        raise ModelError(f"weights of {network!r} cannot be converted; known are {', '.join(KINDS)}")
    name, kind = _kind_of(weights, network)
    given = dict(given or {})
    patch = given.pop("patch", None)
    seen = kind.read(Shapes(name, {key: tuple(weight.shape) for key, weight in weights.items()}), given, patch)
    settings = {**seen.settings, **given}
    assumed = list(seen.assumed)
    if name == "swinunetr" and "merging" not in settings:
        if monai is None:
            raise ModelError(MERGING)
        settings["merging"] = "old" if _version(monai) < (1, 5) else "corrected"
        assumed.insert(0, f"patch merging {settings['merging']}, since the checkpoint states MONAI {monai}")
    if patch is not None and seen.patch is None:
        raise ModelError(f"{name} has no setting patch: it takes patches of any size")
    return replace(seen, settings=settings, assumed=tuple(assumed), ours=kind.ours)


def renamed(weights: Mapping[str, Tensor], found: Recognised, patch: PerAxis = 96) -> dict[str, Tensor]:
    """The weights under our names and in our shapes, float32; every one of ours that anything reads, every one of theirs used.

    Args:
        patch: that a network which is tied to none is built for.

    Raises:
        ModelError: naming the weights that are missing, unknown or of another shape.
        RecipeError: if the settings make no network.
    """
    kind, entry = next(kind for kind in KINDS[found.network] if kind.ours == found.ours), architecture(found.network)
    key_map: KeyMap = ((r"", ""),) if found.ours else entry.key_maps[0]
    theirs = kind.tidied({name: weight for name, weight in weights.items() if weight.is_floating_point()})
    try:
        # Without memory of its own, where the network can: shapes are what a stranger's file says, and may be anything.
        with torch.device("meta"):
            network = build(found.network, found.in_channels, found.out_channels, found.patch or patch, found.settings)
    except RecipeError as error:
        if not isinstance(error.__cause__, RuntimeError | ArithmeticError | TooLarge):
            raise  # what somebody asked for is no setting of this network
        raise ModelError(f"the settings that its shapes show make no {found.network}: {dict(found.settings)}") from error
    ours = {name: weight for name, weight in network.state_dict().items() if weight.is_floating_point()}
    result, missing, misshapen, used = {}, [], [], set()
    for name, weight in ours.items():
        other = rename(name, key_map)
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
        tied = "; its windows are never larger than the patch's grid: give the patch that it was trained with" * (
            "windows" in found.settings
        )
        raise ModelError(f"its weights are not those of {found.network} with {dict(found.settings)}; {'; '.join(problems)}{tied}")
    return result


def _read_uxnet(shapes: Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
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
        "stem_kernel": kernel_sides([stem]),
        "stem_stride": kernel_sides([shapes.shape("decoder2.transp_conv.conv.weight")]),
        "convolution": "depthwise" if mixing[0][1] == 1 else "standard",
        "kernel": kernel_sides(mixing),
        "strides": kernel_sides(downs),
        "decoder_kernel": kernel_sides([shapes.shape(f"encoder{level}.layer.conv1.conv.weight") for level in range(1, stages + 2)]),
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


def _read_swinunetr(shapes: Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
    width, in_channels = shapes.shape("swinViT.patch_embed.proj.weight")[:2]
    depths = [shapes.count(rf"swinViT\.layers{stage}\.0\.blocks\.(\d+)\.") for stage in range(1, 5)]
    tables = [shapes.shape(f"swinViT.layers{stage}.0.blocks.0.attn.relative_position_bias_table", 2) for stage in range(1, 5)]
    window = window_side(tables[0][0], "a relative_position_bias_table")
    # The network is built before its shapes can be compared one by one: the large ones must agree before anything is made.
    for stage, depth in enumerate(depths, start=1):
        c = width * 2 ** (stage - 1)
        for block in range(depth):
            shapes.expect(f"swinViT.layers{stage}.0.blocks.{block}.attn.qkv.weight", 3 * c, c)
            shapes.expect(f"swinViT.layers{stage}.0.blocks.{block}.mlp.linear1.weight", 4 * c, c)
            shapes.expect(f"swinViT.layers{stage}.0.blocks.{block}.attn.relative_position_bias_table", *tables[stage - 1])
    shapes.expect("encoder10.layer.conv1.conv.weight", 16 * width, 16 * width, 3, 3, 3)
    settings = {"width": width, "depths": depths, "heads": [table[1] for table in tables], "window": window}
    assumed = ("features normalised on their way to the decoder (normalize=True), MONAI's default; no setting changes that",)
    return Recognised("swinunetr", in_channels, shapes.shape("out.conv.conv.weight")[0], settings, assumed=assumed)


def _read_unetr(shapes: Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
    _, tokens, hidden = shapes.shape("vit.patch_embedding.position_embeddings", 3)
    width, in_channels = shapes.shape("encoder1.layer.conv1.conv.weight")[:2]
    settings = {"width": width, "hidden": hidden, "mlp": shapes.shape("vit.blocks.0.mlp.linear1.weight", 2)[0]}
    assumed: tuple[str, ...] = ()
    if "heads" not in given:
        settings["heads"], why = usual_heads("unetr", settings, hidden)
        assumed = (f"{settings['heads']} heads, {why}, since weights do not show them; set heads if not so",)
    sides, of_patch = tied_patch(tokens, 16, patch)
    return Recognised("unetr", in_channels, shapes.shape("out.conv.conv.weight")[0], settings, sides, assumed + of_patch)


def _read_segresnet(shapes: Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
    width, in_channels = shapes.shape("convInit.conv.weight")[:2]
    down, up = shapes.count(r"down_layers\.(\d+)\."), shapes.count(r"up_layers\.(\d+)\.")
    settings = {
        "width": width,
        "blocks_down": [shapes.count(rf"down_layers\.{level}\.(\d+)\.conv1\.") for level in range(down)],
        "blocks_up": [shapes.count(rf"up_layers\.{level}\.(\d+)\.conv1\.") for level in range(up)],
    }
    unseen = {"groups": "8 groups in its norms", "activation": "ReLU as its activation"}
    if given.get("activation") == "leaky_relu":
        unseen["slope"] = "a slope of 0.01 in its LeakyReLU"
    assumed = tuple(
        f"{what}, MONAI's default, since weights do not show it; set {key} if not so" for key, what in unseen.items() if key not in given
    )
    return Recognised("segresnet", in_channels, shapes.shape("conv_final.2.conv.weight")[0], settings, assumed=assumed)


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

    starts: what some of the names begin with, and none of another network's.
    read: shapes, given settings, given patch -> what they tell.
    tidied: names and weights as the key map has them.
    unread: patterns of weights that some versions of the network own and none reads, or only deep supervision does.
    ours: whether these are our names, which need no key map.
    """

    starts: str
    read: Callable[[Shapes, Mapping[str, Any], Any], Recognised]
    tidied: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    unread: Sequence[str] = field(default_factory=tuple)
    ours: bool = False


_SUPERVISION = (r"supervision_heads\.",)

KINDS: Mapping[str, Sequence[_Kind]] = {
    "uxnet": (_Kind("uxnet_3d.", _read_uxnet), _Kind("stem.conv.", own.read_uxnet, unread=_SUPERVISION, ours=True)),
    "swinunetr": (_Kind("swinViT.", _read_swinunetr),),
    # A class token until MONAI 0.7; cross attention, which UNETR does not ask for, in some later ones.
    "unetr": (_Kind("vit.", _read_unetr, _perceptron, (r"vit\.patch_embedding\.cls_token$", r"vit\.blocks\.\d+\.(norm_)?cross_attn\.")),),
    "segresnet": (_Kind("convInit.", _read_segresnet),),
    "unet": (_Kind("1.submodule.", own.read_unet, own.below_model),),
    "rapnet": (_Kind("decoder.0.up.", own.read_rapnet, ours=True),),
    "nnunet": (_Kind("encoder.0.0.conv.", own.read_nnunet, unread=(r"heads\.[1-9]",), ours=True),),
    "transbts": (_Kind("transformer_norm.", own.read_transbts, ours=True),),
    "nnformer": (_Kind("stem.convs.", own.read_nnformer, unread=_SUPERVISION, ours=True),),
}
"""Networks whose weights are known, each with the names that its weights may have."""


def _kind_of(weights: Mapping[str, Tensor], network: str | None) -> tuple[str, _Kind]:
    """The network of that name, or any, and its names by which these weights go."""
    kinds = [(name, kind) for name in ([network] if network else KINDS) for kind in KINDS[name]]
    found = [(name, kind) for name, kind in kinds if any(key.startswith(kind.starts) for key in weights)]
    if network and not found:
        return kinds[0]  # whose first weight is then named as missing
    if len(found) != 1:
        known = ", ".join(f"{name} ({kind.starts}...)" for name, kind in kinds)
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


def _version(text: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", text)[:2]
    return int(major), int(minor)
