"""3D UX-Net: a volumetric ConvNet with large depthwise kernels in place of window attention.

Paper: Lee, Bao, Huo, Landman. "3D UX-Net: A Large Kernel Volumetric ConvNet Modernizing Hierarchical Transformer for Medical Image
Segmentation", ICLR 2023, arXiv:2209.15076; sections 3 and 4, figures 1 and 2.
Origin: written anew from the paper and from the published behaviour of the authors' network (github.com/MASILab/3DUX-Net, commit
14ea46b), to which it is equal with the default arguments. Where the released network and the paper's text differ, the defaults are
the released one: one residual a block, the layer norm after the depthwise convolution, a layer scale, a layer norm after every stage.
`block="paper"` is the text's Eq. 1: two residuals a block, each after a layer norm, no layer scale. The ablations of the paper's
table 3 are settings: `convolution`, `kernel`, `scaling`.

    image ---------------------------- skip ------------------------------> decoder level 0 -> head -> logits
      stem /2 -> stage 1 ------------- skip ------------------> decoder level 1
                 /2 -> stage 2 ------- skip -------> decoder level 2
                       /2 -> stage 3 - skip -> decoder level 3
                             /2 -> stage 4 -> bottleneck (hidden channels)

Weights of the authors' checkpoints take their names through `RELEASED_KEYS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uxnet.networks.blocks import (
    DepthwiseConv3d,
    DropPath,
    GroupedPointwiseConv3d,
    LayerNorm,
    PerAxis,
    PerStage,
    PointwiseConv3d,
    ResidualConvBlock,
    Triple,
    cropped,
    odd_triple,
    one_of,
    padded_behind,
    padded_sides,
    per_stage,
    same_padding,
    share,
    sides_of,
    triple,
    wholes,
)

RELEASED_KEYS: tuple[tuple[str, str], ...] = (
    (r"^stem\.conv\.", "uxnet_3d.downsample_layers.0.0."),
    (r"^stem\.norm\.", "uxnet_3d.downsample_layers.0.1."),
    (r"^downsamplings\.(\d+)\.norm\.", r"uxnet_3d.downsample_layers.{1+1}.0."),
    (r"^downsamplings\.(\d+)\.conv\.", r"uxnet_3d.downsample_layers.{1+1}.1."),
    (r"^stages\.(\d+)\.(\d+)\.layer_scale$", r"uxnet_3d.stages.{1}.{2}.gamma"),
    (r"^stages\.(\d+)\.(\d+)\.depthwise\.", r"uxnet_3d.stages.{1}.{2}.dwconv."),
    (r"^stages\.(\d+)\.(\d+)\.norm\.", r"uxnet_3d.stages.{1}.{2}.norm."),
    (r"^stages\.(\d+)\.(\d+)\.channel_scaling\.expand\.", r"uxnet_3d.stages.{1}.{2}.pwconv1."),
    (r"^stages\.(\d+)\.(\d+)\.channel_scaling\.reduce\.", r"uxnet_3d.stages.{1}.{2}.pwconv2."),
    (r"^stage_norms\.(\d+)\.", r"uxnet_3d.norm{1}."),
    (r"^skips\.(\d+)\.conv([12])\.", r"encoder{1+1}.layer.conv{2}.conv."),
    (r"^skips\.(\d+)\.shortcut\.", r"encoder{1+1}.layer.conv3.conv."),
    (r"^bottleneck\.conv([12])\.", r"encoder5.layer.conv{1}.conv."),
    (r"^bottleneck\.shortcut\.", "encoder5.layer.conv3.conv."),
    (r"^decoders\.(\d+)\.up\.", r"decoder{1+2}.transp_conv.conv."),
    (r"^decoders\.(\d+)\.block\.conv([12])\.", r"decoder{1+2}.conv_block.conv{2}.conv."),
    (r"^decoders\.(\d+)\.block\.shortcut\.", r"decoder{1+2}.conv_block.conv3.conv."),
    (r"^last\.conv([12])\.", r"decoder1.layer.conv{1}.conv."),
    (r"^head\.", "out.conv.conv."),
)
"""Our parameter names -> those of the authors' state dicts, for networks of four stages; see `weights.rename`."""


class ChannelScaling(nn.Module):
    """Every voxel's channels are widened `expansion` times, GELU, and brought back.

    Depthwise (the paper's DCS, section 3, "depthwise convolutional scaling"): two grouped 1x1x1 convolutions, groups = channels, so
    that channels never mix. Dense (table 3, "MLP"): the same two without groups.
    """

    def __init__(self, channels: int, expansion: int, *, dense: bool) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand: nn.Module = nn.Conv3d(channels, wide, 1) if dense else GroupedPointwiseConv3d(channels, wide, channels)
        self.reduce: nn.Module = nn.Conv3d(wide, channels, 1) if dense else GroupedPointwiseConv3d(wide, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, I, J, K) -> the same shape."""
        y: Tensor = self.reduce(F.gelu(self.expand(x)))
        return y


@dataclass(frozen=True)
class BlockSettings:
    """What the blocks of a network have in common; see `UXNet`."""

    block: Literal["released", "paper"]
    convolution: Literal["depthwise", "standard"]
    scaling: Literal["dcs", "mlp", "none"]
    expansion: int
    layer_scale: float | None


class _Block(nn.Module):
    """The parts that both readings of the block share."""

    def __init__(self, channels: int, kernel: PerAxis, settings: BlockSettings, drop_path: float) -> None:
        super().__init__()
        k = odd_triple(kernel)
        dense = nn.Conv3d(channels, channels, k, padding=same_padding(k)) if settings.convolution == "standard" else None
        self.depthwise = dense or DepthwiseConv3d(channels, k)
        # Without its pointwise layers, the non-linearity between them is what is left of the scaling (table 3, "no MLP").
        self.channel_scaling = (
            nn.GELU() if settings.scaling == "none" else ChannelScaling(channels, settings.expansion, dense=settings.scaling == "mlp")
        )
        self.drop_path = DropPath(drop_path)


class ReleasedBlock(_Block):
    """x + layer_scale * DCS(LN(DWC(x))): the released block, one residual.

    `layer_scale` is the initial value of one factor a channel (ConvNeXt), or None for none.
    """

    def __init__(self, channels: int, kernel: PerAxis, settings: BlockSettings, drop_path: float) -> None:
        super().__init__(channels, kernel, settings, drop_path)
        self.norm = LayerNorm(channels)
        self.layer_scale = _layer_scale(channels, settings.layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, I, J, K) -> the same shape."""
        y = self.channel_scaling(self.norm(self.depthwise(x)))
        out: Tensor = x + self.drop_path(_scaled(y, self.layer_scale))
        return out


class PaperBlock(_Block):
    """z' = DWC(LN(z)) + z, then DCS(LN(z')) + z': Eq. 1 of the paper, two residuals, each after a layer norm.

    Eq. 1 has no layer scale; where one is asked for, each of the two branches gets its own.
    """

    def __init__(self, channels: int, kernel: PerAxis, settings: BlockSettings, drop_path: float) -> None:
        super().__init__(channels, kernel, settings, drop_path)
        self.norm1, self.norm2 = LayerNorm(channels), LayerNorm(channels)
        self.layer_scale1 = _layer_scale(channels, settings.layer_scale)
        self.layer_scale2 = _layer_scale(channels, settings.layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, I, J, K) -> the same shape."""
        x = x + self.drop_path(_scaled(self.depthwise(self.norm1(x)), self.layer_scale1))
        out: Tensor = x + self.drop_path(_scaled(self.channel_scaling(self.norm2(x)), self.layer_scale2))
        return out


def _layer_scale(channels: int, initial: float | None) -> nn.Parameter | None:
    return None if initial is None else nn.Parameter(torch.full((channels,), float(initial)))


def _scaled(x: Tensor, factors: Tensor | None) -> Tensor:
    return x if factors is None else x * factors.view(-1, 1, 1, 1)


BLOCKS: Mapping[str, Callable[[int, PerAxis, BlockSettings, float], nn.Module]] = {"released": ReleasedBlock, "paper": PaperBlock}
"""The two readings of the 3D UX-Net block, by name."""


class Stem(nn.Module):
    """The large-kernel projection of the image into partitioned features (paper section 4.1): strided conv, then layer norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride=stride, padding=same_padding(kernel))
        self.norm = LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, I, J, K) -> (N, out_channels, I/s, J/s, K/s)."""
        y: Tensor = self.norm(self.conv(x))
        return y


class Downsampling(nn.Module):
    """Layer norm, then a convolution whose kernel is its stride (2x2x2 in the paper): the encoder's one mixing of channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: Triple) -> None:
        super().__init__()
        self.norm = LayerNorm(in_channels)
        self.conv = nn.Conv3d(in_channels, out_channels, stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, I, J, K) -> (N, out_channels, I/s, J/s, K/s)."""
        y: Tensor = self.conv(self.norm(x))
        return y


class DecoderLevel(nn.Module):
    """Transposed convolution up to the skip's grid, concatenation (up first, skip second), residual block (paper section 4.2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: Triple, kernel: Triple) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, out_channels, stride, stride=stride, bias=False)
        self.block = ResidualConvBlock(2 * out_channels, out_channels, kernel)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, in, I/s, J/s, K/s) and (N, out, I, J, K) -> (N, out, I, J, K)."""
        y: Tensor = self.block(torch.cat((self.up(x), skip), dim=1))
        return y


class UXNet(nn.Module):
    """The 3D UX-Net. With the default arguments it is the released network of 53,006,069 parameters (at 5 output channels).

    Args:
        in_channels, out_channels: of image and logits.
        widths: channels of each stage; any number of stages.
        depths: blocks of each stage.
        hidden: channels of the bottleneck (768 in the paper, at the last stage's resolution).
        stem_kernel, stem_stride: one number, or one an axis.
        block: "released" (one residual, as the authors' code), or "paper" (Eq. 1, two residuals).
        convolution: of the blocks, "depthwise", or "standard" (table 3: the same kernel, channels mixed).
        kernel: of the blocks' convolutions, odd; one number, one an axis (three numbers), or one a stage (a number or a triple each;
            three stages need triples).
        scaling: of the blocks' channels, "dcs" (depthwise), "mlp" (dense), or "none" (the non-linearity alone).
        strides: between stages; one number, one an axis, or one a transition (stages - 1 of them), as for `kernel`.
        decoder_kernel: of the skips' and decoder's convolutions; one number, one an axis, or one a level, finest first (stages + 1
            levels: the image, then each stage), as for `kernel`.
        expansion: widening inside the channel scaling (4 in the paper).
        layer_scale: initial value of the blocks' layer scale; "auto" is what the block's reading has, 1e-6 as released and none in
            the paper; None, or False as TOML has no none, for none.
        drop_path: rate of stochastic depth, growing linearly from 0 at the first block to this at the last.
        deep_supervision: also give logits at every coarser decoder level while training.
        checkpointing: recompute the blocks in the backward pass instead of keeping their activations.

    Raises:
        ValueError: for settings that do not fit together; the message names them.
    """

    fixed_patch = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (2, 2, 2, 2),
        hidden: int = 768,
        stem_kernel: PerAxis = 7,
        stem_stride: PerAxis = 2,
        block: Literal["released", "paper"] = "released",
        convolution: Literal["depthwise", "standard"] = "depthwise",
        kernel: PerStage = 7,
        scaling: Literal["dcs", "mlp", "none"] = "dcs",
        strides: PerStage = 2,
        decoder_kernel: PerStage = 3,
        expansion: int = 4,
        layer_scale: float | Literal[False, "auto"] | None = "auto",
        drop_path: float = 0.0,
        deep_supervision: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        widths, depths = wholes(widths, 1, "widths"), wholes(depths, 0, "depths")
        if not widths or len(widths) != len(depths):
            raise ValueError(f"widths {widths} and depths {depths} must name the same number of stages, at least one")
        counts = {"in_channels": in_channels, "out_channels": out_channels, "hidden": hidden, "expansion": expansion}
        for name, count in counts.items():
            wholes((count,), 1, name)
        share(drop_path, "drop_path")
        settings = BlockSettings(
            one_of(block, BLOCKS, "block"),
            one_of(convolution, ("depthwise", "standard"), "convolution"),
            one_of(scaling, ("dcs", "mlp", "none"), "scaling"),
            expansion,
            _initial_scale(layer_scale, block),
        )
        n = len(widths)
        kernels = [odd_triple(k, "kernel") for k in per_stage(kernel, n, "kernel")]
        stem_strides = triple(stem_stride, "stem_stride")
        all_strides = [stem_strides, *(triple(s, "strides") for s in per_stage(strides, n - 1, "strides"))]
        level_kernels = [odd_triple(k, "decoder_kernel") for k in per_stage(decoder_kernel, n + 1, "decoder_kernel")]

        self.in_channels, self.out_channels = in_channels, out_channels
        self.total_stride: Triple = _product(all_strides)
        self.checkpointing = checkpointing
        self.stem = Stem(in_channels, widths[0], odd_triple(stem_kernel, "stem_kernel"), stem_strides)
        self.downsamplings = nn.ModuleList(Downsampling(widths[s], widths[s + 1], all_strides[s + 1]) for s in range(n - 1))
        rates = iter([drop_path * block / max(sum(depths) - 1, 1) for block in range(sum(depths))])
        self.stages = nn.ModuleList(
            nn.ModuleList(BLOCKS[block](width, k, settings, next(rates)) for _ in range(depth))
            for width, depth, k in zip(widths, depths, kernels, strict=True)
        )
        self.stage_norms = nn.ModuleList(LayerNorm(width) for width in widths)

        # Level 0 is the image's own grid, level s the grid of stage s - 1: what goes up from level s + 1 meets the skip of level s.
        into = (in_channels, *widths[:-1])
        self.skips = nn.ModuleList(ResidualConvBlock(i, o, k) for i, o, k in zip(into, widths, level_kernels, strict=False))
        self.bottleneck = ResidualConvBlock(widths[-1], hidden, level_kernels[-1])
        coming = (*widths[1:], hidden)
        self.decoders = nn.ModuleList(
            DecoderLevel(c, w, s, k) for c, w, s, k in zip(coming, widths, all_strides, level_kernels, strict=False)
        )
        self.last = ResidualConvBlock(widths[0], widths[0], level_kernels[0])
        self.head = PointwiseConv3d(widths[0], out_channels)
        self.supervision_heads = nn.ModuleList(PointwiseConv3d(w, out_channels) for w in widths[1:]) if deep_supervision else None

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image.

        Args:
            image: (N, in_channels, I, J, K), floating point; any sides of at least one voxel. Sides that are not multiples of the
                total stride are padded with zeros behind the end and the logits cropped back.

        Returns:
            logits, (N, out_channels, I, J, K). With `deep_supervision`, while training: a list of them, the full resolution first,
            then each coarser decoder level, of the sides divided by its stride and rounded up.

        Raises:
            ValueError: if the shape is not five-dimensional or the number of channels is another.
        """
        sides = sides_of(image, self.in_channels)
        padded = padded_sides(sides, self.total_stride)
        x = padded_behind(image, padded)

        features = self.encode(x)
        outputs = self.decode(x, features)
        logits = [cropped(head(y), sides, padded) for head, y in outputs]
        return logits if len(logits) > 1 else logits[0]

    def encode(self, image: Tensor) -> list[Tensor]:
        """The normalised output of every stage, finest first: (N, widths[s], ...)."""
        features = []
        x = self.stem(image)
        for s, (stage, norm) in enumerate(zip(self.stages, self.stage_norms, strict=True)):
            if s > 0:
                x = self.downsamplings[s - 1](x)
            for block in stage:  # type: ignore[attr-defined]  # a ModuleList, which mypy sees as a Module
                x = self._run(block, x)
            features.append(norm(x))
        return features

    def decode(self, image: Tensor, features: list[Tensor]) -> list[tuple[nn.Module, Tensor]]:
        """The decoder's output at full resolution with its head and, for deep supervision, at the coarser levels with theirs."""
        coarser: list[tuple[nn.Module, Tensor]] = []
        x = self._run(self.bottleneck, features[-1])
        for level in reversed(range(len(self.decoders))):
            skip = self._run(self.skips[level], features[level - 1] if level else image)
            x = self.decoders[level](x, skip)
            if level and self.training and self.supervision_heads is not None:
                coarser.insert(0, (self.supervision_heads[level - 1], x))
        return [(self.head, self._run(self.last, x)), *coarser]

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
        return y


def _initial_scale(layer_scale: Any, block: str) -> float | None:
    if layer_scale == "auto":
        return 1e-6 if block == "released" else None
    if layer_scale is None or layer_scale is False:
        return None
    if isinstance(layer_scale, bool) or not isinstance(layer_scale, int | float) or not math.isfinite(layer_scale):
        raise ValueError(f'layer_scale must be "auto", a finite number or None, not {layer_scale!r}')
    return float(layer_scale)


def _product(strides: Sequence[Triple]) -> Triple:
    return (math.prod(s[0] for s in strides), math.prod(s[1] for s in strides), math.prod(s[2] for s in strides))
