"""Weights that somebody saved of our own networks: the settings that their names and shapes tell, network by network.

Of SegResNet, UNETR and SwinUNETR our names are MONAI's (`foreign.py` reads both), and so are those of the 3D U-Net, which is read here.
Heads for deep supervision are left out, as models leave them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from uxnet.convert.shapes import Recognised, Shapes, kernel_sides, tied_patch, usual_heads, window_side
from uxnet.errors import ModelError

_DEEPEST = 40  # levels: more than 2^40 voxels along a side


def read_uxnet(shapes: Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
    """The 3D UX-Net."""
    stages = _levels(shapes, r"stage_norms\.(\d+)\.")
    widths = [shapes.shape(f"stage_norms.{s}.weight", 1)[0] for s in range(stages)]
    depths = [shapes.count(rf"stages\.{s}\.(\d+)\.") for s in range(stages)]
    mixing = {s: shapes.shape(f"stages.{s}.0.depthwise.weight") for s in range(stages) if depths[s]}
    stem, ups = shapes.shape("stem.conv.weight"), [shapes.shape(f"decoders.{s}.up.weight") for s in range(stages)]
    levels = [*(f"skips.{s}" for s in range(stages)), "bottleneck"]
    settings: dict[str, Any] = {
        "widths": widths,
        "depths": depths,
        "hidden": shapes.shape("bottleneck.conv1.weight")[0],
        "stem_kernel": kernel_sides([stem]),
        "stem_stride": kernel_sides(ups[:1]),
        "decoder_kernel": kernel_sides([shapes.shape(f"{level}.conv1.weight") for level in levels]),
    }
    if stages > 1:
        settings["strides"] = kernel_sides(ups[1:])
    if mixing:
        first = min(mixing)
        settings |= _blocks(shapes, f"stages.{first}.0", mixing[first])
        settings["kernel"] = kernel_sides([mixing.get(s, mixing[first]) for s in range(stages)])
    return Recognised("uxnet", stem[1], shapes.shape("head.weight")[0], settings)


def _blocks(shapes: Shapes, block: str, mixing: tuple[int, ...]) -> dict[str, Any]:
    """What one block of a 3D UX-Net tells of all."""
    paper = f"{block}.norm1.weight" in shapes
    scaled = f"{block}.layer_scale1" in shapes or f"{block}.layer_scale" in shapes
    settings: dict[str, Any] = {
        "block": "paper" if paper else "released",
        "convolution": "depthwise" if mixing[1] == 1 else "standard",
        "scaling": "none",
        # Its initial value; weights that were trained take its place.
        "layer_scale": 1e-6 if scaled else False,
    }
    if f"{block}.channel_scaling.expand.weight" in shapes:
        wide, seen = shapes.shape(f"{block}.channel_scaling.expand.weight")[:2]
        settings |= {"scaling": "mlp" if seen > 1 else "dcs", "expansion": max(wide // mixing[0], 1)}
    return settings


def read_nnunet(shapes: Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
    """The network of nnU-Net."""
    stages = _levels(shapes, r"encoder\.(\d+)\.")
    convolutions = [shapes.shape(f"encoder.{s}.0.conv.weight") for s in range(stages)]
    settings = {
        "widths": [kernel[0] for kernel in convolutions],
        "kernel": kernel_sides(convolutions),
        "strides": kernel_sides([shapes.shape(f"ups.{s}.weight") for s in range(stages - 1)] or [(1, 1, 2, 2, 2)]),
        "convolutions": shapes.count(r"encoder\.0\.(\d+)\."),
        "deep_supervision": False,
        "bias": "encoder.0.0.conv.bias" in shapes,
        "up_bias": "ups.0.bias" in shapes,
        "head_bias": "heads.0.bias" in shapes,
    }
    return Recognised("nnunet", convolutions[0][1], shapes.shape("heads.0.weight")[0], settings)


def read_rapnet(shapes: Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
    """One phase's network of RAP-Net."""
    width, in_channels = shapes.shape("encoder.0.0.weight")[:2]
    relu = (
        "a ReLU behind the last convolution, as the authors' network has it, since weights do not show it; set output_relu=false if not so"
    )
    assumed = () if "output_relu" in given else (relu,)
    return Recognised("rapnet", in_channels, shapes.shape("head.weight")[1], {"width": width}, assumed=assumed)


def read_transbts(shapes: Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
    """TransBTS."""
    width, in_channels = shapes.shape("stem.weight")[:2]
    stages = _levels(shapes, r"downsamplings\.(\d+)\.") + 1
    embedding, layers = shapes.shape("embed.weight")[0], shapes.count(r"transformer\.(\d+)\.") // 2
    settings = {
        "widths": [width, *(shapes.shape(f"downsamplings.{s}.weight")[0] for s in range(stages - 1))],
        "depths": [shapes.count(rf"stages\.{s}\.(\d+)\.") for s in range(stages)],
        "embedding": embedding,
        "layers": layers,
    }
    if layers:
        settings["mlp"] = shapes.shape("transformer.1.expand.weight", 2)[0]
    assumed: tuple[str, ...] = ()
    if "heads" not in given:
        settings["heads"], why = usual_heads("transbts", settings, embedding)
        assumed = (f"{settings['heads']} heads, {why}, since weights do not show them; set heads if not so",)
    sides, of_patch = tied_patch(shapes.shape("positions", 3)[1], 2 ** (stages - 1), patch)
    return Recognised("transbts", in_channels, shapes.shape("head.weight")[0], settings, sides, assumed + of_patch)


def read_nnformer(shapes: Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
    """nnFormer."""
    stages = _levels(shapes, r"stage_norms\.(\d+)\.")
    widths = [shapes.shape(f"stage_norms.{s}.weight", 1)[0] for s in range(stages)]
    tables = [shapes.shape(f"stages.{s}.0.attention.positions", 2) for s in range(stages)]
    head = shapes.shape("head.weight")
    settings = {
        "widths": widths,
        "depths": [shapes.count(rf"stages\.{s}\.(\d+)\.") for s in range(stages)],
        "heads": [table[1] for table in tables],
        "windows": [window_side(table[0], "a table of positions") for table in tables],
        "patch_stride": kernel_sides([head]),
        "mlp_ratio": shapes.shape("stages.0.0.expand.weight", 2)[0] / widths[0],
    }
    return Recognised("nnformer", shapes.shape("stem.convs.0.weight")[1], head[1], settings)


def read_unet(shapes: Shapes, given: Mapping[str, Any], patch: Any) -> Recognised:
    """MONAI's UNet, and so ours; its names here have no "model." before them, which is taken for a wrapper's."""
    levels = 1
    while levels < _DEEPEST and shapes.any(r"1\.submodule\." * levels):
        levels += 1
    units = shapes.count(r"0\.conv\.unit(\d+)\.")
    inner = "conv.unit0.conv.weight" if units else "conv.weight"
    down = [shapes.shape("1.submodule." * level + ("0." if level < levels - 1 else "") + inner) for level in range(levels)]
    settings = {"widths": [kernel[0] for kernel in down], "residual_units": units}
    assumed = (
        "grids halved between levels, and instance norms, which have no weights, before each activation, as MONAI has them by default; "
        "no setting changes that",
    )
    return Recognised("unet", down[0][1], shapes.shape("2.0.conv.weight" if units else "2.conv.weight")[1], settings, assumed=assumed)


def below_model(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of MONAI's UNet under the names that it gives them."""
    return {f"model.{name}": weight for name, weight in weights.items()}


def _levels(shapes: Shapes, pattern: str) -> int:
    levels = shapes.count(pattern)
    if levels > _DEEPEST:
        raise ModelError(f"it has {levels} levels, more than any {shapes.network} has")
    return levels
