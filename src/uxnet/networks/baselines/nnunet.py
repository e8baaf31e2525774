"""The network of nnU-Net: a plain convolutional U-Net of six stages with auxiliary heads for deep supervision.

Paper: Isensee, Jaeger, Kohl, Petersen, Maier-Hein. "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation", Nature Methods 18 (2021), arXiv:1904.08128.
Origin: written anew. The default arguments are the isotropic 3d_fullres network of nnU-Net 1, whose parameters the 3D UX-Net's table 1
prints (31.2 M); `up_bias` and `head_bias` make it nnU-Net 2's, `bias=False, head_bias=True` without deep supervision MONAI's `DynUNet`.
Only the network is nnU-Net's: its planning, augmentation and schedule are not part of this comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uxnet.networks.blocks import (
    DenseConv3d,
    PerStage,
    PointwiseConv3d,
    Triple,
    cropped,
    odd_triple,
    padded_behind,
    padded_sides,
    per_stage,
    same_padding,
    sides_of,
    triple,
    wholes,
)
from uxnet.networks.cpu import kernels as kernels_cpu
from uxnet.networks.cpu import norms as norms_cpu

REFERENCE_KEYS = (
    (r"^encoder\.5\.(\d)\.conv\.", "conv_blocks_context.5.{1}.blocks.0.conv."),
    (r"^encoder\.5\.(\d)\.norm\.", "conv_blocks_context.5.{1}.blocks.0.instnorm."),
    (r"^encoder\.(\d)\.(\d)\.conv\.", "conv_blocks_context.{1}.blocks.{2}.conv."),
    (r"^encoder\.(\d)\.(\d)\.norm\.", "conv_blocks_context.{1}.blocks.{2}.instnorm."),
    *((rf"^ups\.{d}\.", f"tu.{4 - d}.") for d in range(5)),
    *((rf"^decoder\.{d}\.(\d)\.conv\.", f"conv_blocks_localization.{4 - d}.{{1}}.blocks.0.conv.") for d in range(5)),
    *((rf"^decoder\.{d}\.(\d)\.norm\.", f"conv_blocks_localization.{4 - d}.{{1}}.blocks.0.instnorm.") for d in range(5)),
    *((rf"^heads\.{d}\.", f"seg_outputs.{4 - d}.") for d in range(5)),
)
"""Our parameter names -> those of nnU-Net 1's network (`Generic_UNet`), of six stages of two convolutions."""

PLAIN_CONV_KEYS = (
    (r"^encoder\.(\d)\.(\d)\.conv\.", "decoder.encoder.stages.{1}.0.convs.{2}.all_modules.0."),
    (r"^encoder\.(\d)\.(\d)\.norm\.", "decoder.encoder.stages.{1}.0.convs.{2}.all_modules.1."),
    *((rf"^ups\.{d}\.", f"decoder.transpconvs.{4 - d}.") for d in range(5)),
    *((rf"^decoder\.{d}\.(\d)\.conv\.", f"decoder.stages.{4 - d}.convs.{{1}}.all_modules.0.") for d in range(5)),
    *((rf"^decoder\.{d}\.(\d)\.norm\.", f"decoder.stages.{4 - d}.convs.{{1}}.all_modules.1.") for d in range(5)),
    *((rf"^heads\.{d}\.", f"decoder.seg_layers.{4 - d}.") for d in range(5)),
)
"""The same for nnU-Net 2's (`PlainConvUNet`), which registers its weights under up to four names: this is the last of them."""

_NEXT = [".".join(["skip_layers", *["next_layer"] * level]) for level in range(6)]

DYNUNET_KEYS = (
    *((rf"^encoder\.{s}\.(\d)\.conv\.", f"{_NEXT[s]}.downsample.conv{{1+1}}.conv.") for s in range(5)),
    *((rf"^encoder\.{s}\.(\d)\.norm\.", f"{_NEXT[s]}.downsample.norm{{1+1}}.") for s in range(5)),
    (r"^encoder\.5\.(\d)\.conv\.", f"{_NEXT[5]}.conv{{1+1}}.conv."),
    (r"^encoder\.5\.(\d)\.norm\.", f"{_NEXT[5]}.norm{{1+1}}."),
    *((rf"^ups\.{d}\.", f"{_NEXT[d]}.upsample.transp_conv.conv.") for d in range(5)),
    *((rf"^decoder\.{d}\.(\d)\.conv\.", f"{_NEXT[d]}.upsample.conv_block.conv{{1+1}}.conv.") for d in range(5)),
    *((rf"^decoder\.{d}\.(\d)\.norm\.", f"{_NEXT[d]}.upsample.conv_block.norm{{1+1}}.") for d in range(5)),
    (r"^heads\.0\.", "output_block.conv.conv."),
)
"""The same for MONAI's `DynUNet` without deep supervision, which registers its weights twice: this is the second name."""


class _Conv(nn.Module):
    """conv - instance norm (affine) - LeakyReLU 0.01."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, stride: Triple, bias: bool) -> None:
        super().__init__()
        self.conv = (
            DenseConv3d(in_channels, out_channels, kernel, bias)
            if stride == (1, 1, 1)
            else nn.Conv3d(in_channels, out_channels, kernel, stride, same_padding(kernel), bias=bias)
        )
        # Instance norm, said as a group norm with one channel a group (see `blocks.instance_norm`).
        self.norm = nn.GroupNorm(out_channels, out_channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, I, J, K) -> (N, out_channels, ceil(I / s), ceil(J / s), ceil(K / s))."""
        y = self.conv(x)
        if kernels_cpu.pays(y):
            return norms_cpu.affine_norm_activation(y, self.norm.weight, self.norm.bias, 0.01)
        return F.leaky_relu(self.norm(y), 0.01)


class NNUNet(nn.Module):
    """The network of nnU-Net: 31,197,184 parameters at 5 output channels with the default arguments.

    Takes patches of any size.

    Args:
        in_channels, out_channels: of image and logits.
        widths: channels of each stage.
        kernel: of the convolutions, odd; one number, one an axis, or one a stage (a decoder level takes that of the stage below).
        strides: between stages; one number, one an axis, or one a transition (stages - 1 of them).
        convolutions: a stage and a decoder level.
        deep_supervision: auxiliary heads at every coarser decoder level, whose logits are given while training.
        bias, up_bias, head_bias: whether convolutions, transposed convolutions and heads have biases.

    Raises:
        ValueError: for settings that do not fit together; the message names them.
    """

    fixed_patch = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int] = (32, 64, 128, 256, 320, 320),
        kernel: PerStage = 3,
        strides: PerStage = 2,
        convolutions: int = 2,
        deep_supervision: bool = True,
        bias: bool = True,
        up_bias: bool = False,
        head_bias: bool = False,
    ) -> None:
        super().__init__()
        widths = wholes(widths, 1, "widths")
        for name, count in {"in_channels": in_channels, "out_channels": out_channels, "convolutions": convolutions}.items():
            wholes((count,), 1, name)
        if len(widths) < 2:
            raise ValueError(f"widths must name at least two stages, not {widths}")
        kernels = [odd_triple(k, "kernel") for k in per_stage(kernel, len(widths), "kernel")]
        steps = [triple(s, "strides") for s in per_stage(strides, len(widths) - 1, "strides")]

        def level(before: int, width: int, k: Triple, stride: Triple) -> nn.Sequential:
            first = _Conv(before, width, k, stride, bias)
            return nn.Sequential(first, *(_Conv(width, width, k, triple(1), bias) for _ in range(convolutions - 1)))

        self.in_channels, self.out_channels = in_channels, out_channels
        i, j, k = (math.prod(step[axis] for step in steps) for axis in range(3))
        self.total_stride: Triple = (i, j, k)
        into = zip((in_channels, *widths), widths, kernels, (triple(1), *steps), strict=False)
        self.encoder = nn.ModuleList(level(before, width, k, stride) for before, width, k, stride in into)
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(below, width, step, step, bias=up_bias)
            for below, width, step in zip(widths[1:], widths, steps, strict=False)
        )
        # As nnU-Net 1, a decoder level has the kernel of the stage below it, which matters only where the kernels differ.
        self.decoder = nn.ModuleList(level(2 * width, width, k, triple(1)) for width, k in zip(widths[:-1], kernels[1:], strict=True))
        supervised = widths[:-1] if deep_supervision else widths[:1]
        self.heads = nn.ModuleList(PointwiseConv3d(width, out_channels, head_bias) for width in supervised)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image.

        Args:
            image: (N, in_channels, I, J, K); sides that are no multiples of the total stride are padded with zeros behind the end
                and the logits cropped back.

        Returns:
            logits, (N, out_channels, I, J, K). With `deep_supervision`, while training: a list of them, the full resolution first,
            then each coarser decoder level, of the sides divided by its stride and rounded up.

        Raises:
            ValueError: if the shape or the number of channels is another.
        """
        sides = sides_of(image, self.in_channels)
        padded = padded_sides(sides, self.total_stride)
        x, skips = padded_behind(image, padded), []
        for encode in self.encoder:
            x = encode(x)
            skips.append(x)
        x = skips.pop()
        logits: list[Tensor] = []
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[level](torch.cat((self.ups[level](x), skips[level]), dim=1))
            if level == 0 or (self.training and level < len(self.heads)):
                logits.insert(0, cropped(self.heads[level](x), sides, padded))
        return logits if len(logits) > 1 else logits[0]
