"""TransBTS: a convolutional encoder whose coarsest grid passes through a transformer before it is decoded.

Paper: Wang, Chen, Ding, Yu, Zha, Li. "TransBTS: Multimodal Brain Tumor Segmentation Using Transformer", MICCAI 2021,
arXiv:2103.04430; section 2 and figure 1.
Origin: written anew from the paper and from the published behaviour of the authors' network in the version that the 3D UX-Net's
authors compared with, to which it is equal with the default arguments at 96x96x96, but for one thing: there the first
convolution's dropout goes on in evaluation, here it ends with training. Where the released network and the paper's text differ,
this is the released one: the decoder takes the last transformer layer's output as it is, so the layer norm behind it has no effect.

    image -> stem -> stage 1 ----------------------- skip ------------------> decoder level 0 -> head -> logits
                       /2 -> stage 2 --------------- skip -------> decoder level 1
                             /2 -> stage 3 --------- skip -> decoder level 2
                                   /2 -> stage 4 -> tokens + positions -> transformer -> bottleneck

Weights of that network take their names through `REFERENCE_KEYS`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uxnet.networks.blocks import PerAxis, Triple, cropped, padded_behind, padded_sides, share, sides_of, triple, wholes

GROUPS = 8
"""Groups of the encoder's group norms."""

REFERENCE_KEYS = (
    (r"^stem\.", "Unet.InitConv.conv."),
    (r"^stages\.0\.0\.norm([12])\.", r"Unet.EnBlock1.bn{1}."),
    (r"^stages\.0\.0\.conv([12])\.", r"Unet.EnBlock1.conv{1}."),
    (r"^stages\.(\d+)\.(\d+)\.norm([12])\.", r"Unet.EnBlock{1+1}_{2+1}.bn{3}."),
    (r"^stages\.(\d+)\.(\d+)\.conv([12])\.", r"Unet.EnBlock{1+1}_{2+1}.conv{3}."),
    (r"^downsamplings\.(\d+)\.", r"Unet.EnDown{1+1}.conv."),
    (r"^encoder_norm\.", "bn."),
    (r"^embed\.", "conv_x."),
    (r"^positions$", "position_encoding.position_embeddings"),
    (r"^transformer\.(\d+)\.norm\.", r"transformer.net.{1}.fn.norm."),
    (r"^transformer\.(\d+)\.(qkv|proj)\.", r"transformer.net.{1}.fn.fn.{2}."),
    (r"^transformer\.(\d+)\.expand\.", r"transformer.net.{1}.fn.fn.net.0."),
    (r"^transformer\.(\d+)\.reduce\.", r"transformer.net.{1}.fn.fn.net.3."),
    (r"^transformer_norm\.", "pre_head_ln."),
    (r"^linear_embed\.", "linear_encoding."),
    (r"^bottleneck\.(\d+)\.norm([12])\.", r"Enblock8_{1+1}.bn{2}."),
    (r"^bottleneck\.(\d+)\.conv([12])\.", r"Enblock8_{1+1}.conv{2}."),
    (r"^decoders\.(\d+)\.narrow\.", r"DeUp{1+2}.conv1."),
    (r"^decoders\.(\d+)\.up\.", r"DeUp{1+2}.conv2."),
    (r"^decoders\.(\d+)\.merge\.", r"DeUp{1+2}.conv3."),
    (r"^decoders\.(\d+)\.block\.norm([12])\.", r"DeBlock{1+2}.bn{2}."),
    (r"^decoders\.(\d+)\.block\.conv([12])\.", r"DeBlock{1+2}.conv{2}."),
    (r"^head\.", "endconv."),
)
"""Our parameter names -> those of the authors' state dicts, for networks with one block in the first stage and more than one in each
other; see `weights.rename`."""

UNTRAINED: tuple[str, ...] = (
    # The decoder reads the last layer's output before this norm.
    r"transformer_norm\.(weight|bias)",
    # Tokens are embedded by a convolution; this is the authors' alternative to it.
    r"linear_embed\.(weight|bias)",
)
"""Patterns of the parameters that no output depends on, each with the reason; the authors' count and checkpoints have them."""


class EncoderBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))): a residual block with group norm before each convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, I, J, K) -> the same shape."""
        y = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        out: Tensor = x + y
        return out


class DecoderBlock(nn.Module):
    """Twice conv - batch norm - ReLU, plus the input if `residual`; no activation follows the sum."""

    def __init__(self, in_channels: int, out_channels: int, *, residual: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.BatchNorm3d(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.BatchNorm3d(out_channels)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, I, J, K) -> (N, out_channels, I, J, K)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return x + y if self.residual else y


class DecoderLevel(nn.Module):
    """Narrowed, brought up to the skip's grid, merged with it (skip first, up second), and a residual block (paper section 2.3)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.narrow = nn.Conv3d(in_channels, out_channels, 1)
        self.up = nn.ConvTranspose3d(out_channels, out_channels, 2, stride=2)
        self.merge = nn.Conv3d(2 * out_channels, out_channels, 1)
        self.block = DecoderBlock(out_channels, out_channels, residual=True)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, in, I/2, J/2, K/2) and (N, out, I, J, K) -> (N, out, I, J, K)."""
        y = self.up(self.narrow(x))
        out: Tensor = self.block(self.merge(torch.cat((skip, y), dim=1)))
        return out


class SelfAttention(nn.Module):
    """tokens + attention(norm(tokens)), every token with every other (paper section 2.2)."""

    def __init__(self, channels: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self.heads = heads
        self.attention_dropout = nn.Dropout(attention_dropout)
        self.proj_dropout = nn.Dropout(attention_dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, C) -> the same shape."""
        n, t, c = tokens.shape
        q, k, v = self.qkv(self.norm(tokens)).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        # Not torch's fused attention, whose gradients differ from run to run on some devices.
        weights = self.attention_dropout(((q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5).softmax(dim=-1))
        y = self.proj((weights @ v).transpose(1, 2).reshape(n, t, c))
        out: Tensor = tokens + self.dropout(self.proj_dropout(y))
        return out


class TokenMLP(nn.Module):
    """tokens + reduce(gelu(expand(norm(tokens)))) (paper section 2.2)."""

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, hidden)
        self.reduce = nn.Linear(hidden, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, C) -> the same shape."""
        y = self.dropout(F.gelu(self.expand(self.norm(tokens))))
        out: Tensor = tokens + self.dropout(self.reduce(y))
        return out


class TransBTS(nn.Module):
    """TransBTS. With the default arguments, 1 input and 8 output channels it has the reference's 31,577,336 parameters.

    Its position embeddings belong to the grid of one patch, so it takes images of exactly that size (`fixed_patch`).

    Args:
        in_channels, out_channels: of image and logits.
        patch: sides of the patches that the network is built for; one number, or one an axis. Sides that are not multiples of the
            total stride are padded with zeros behind the end, and the logits cropped back.
        widths: channels of each stage, multiples of 8; sides are halved between stages.
        depths: residual blocks of each stage.
        embedding: channels of the tokens (512 in the paper).
        heads: of the attention.
        layers: of the transformer, each an attention and a perceptron.
        mlp: hidden channels of the perceptrons.
        dropout: of embedded tokens and in the transformer's layers.
        attention_dropout: of attention weights and projections.
        stem_dropout: of whole channels behind the first convolution.

    Raises:
        ValueError: for settings that do not fit together; the message names them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        patch: PerAxis = 96,
        widths: Sequence[int] = (16, 32, 64, 128),
        depths: Sequence[int] = (1, 2, 2, 4),
        embedding: int = 512,
        heads: int = 8,
        layers: int = 4,
        mlp: int = 4096,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        stem_dropout: float = 0.2,
    ) -> None:
        super().__init__()
        counts = {"in_channels": in_channels, "out_channels": out_channels, "embedding": embedding, "heads": heads, "mlp": mlp}
        for name, count in counts.items():
            wholes((count,), 1, name)
        wholes((layers,), 0, "layers")
        wholes(widths, 1, "widths")
        wholes(depths, 0, "depths")
        if not widths or len(widths) != len(depths):
            raise ValueError(f"widths {widths} and depths {depths} must name the same number of stages, at least one")
        if any(width % GROUPS for width in widths):
            raise ValueError(f"widths must be multiples of {GROUPS}, not {widths}")
        if embedding % heads:
            raise ValueError(f"embedding must be a multiple of heads, but {embedding} is not one of {heads}")
        for name, rate in {"dropout": dropout, "attention_dropout": attention_dropout, "stem_dropout": stem_dropout}.items():
            share(rate, name)

        self.in_channels, self.out_channels = in_channels, out_channels
        self.fixed_patch: Triple | None = triple(patch, "patch")
        stride = 2 ** (len(widths) - 1)
        self.total_stride: Triple = (stride, stride, stride)
        grid = [side // stride for side in padded_sides(self.fixed_patch, self.total_stride, alone=True)]

        self.stem = nn.Conv3d(in_channels, widths[0], 3, padding=1)
        self.stem_dropout = nn.Dropout3d(stem_dropout)
        self.stages = nn.ModuleList(
            nn.Sequential(*(EncoderBlock(width) for _ in range(depth))) for width, depth in zip(widths, depths, strict=True)
        )
        self.downsamplings = nn.ModuleList(nn.Conv3d(i, o, 3, stride=2, padding=1) for i, o in itertools.pairwise(widths))
        self.encoder_norm = nn.BatchNorm3d(widths[-1])

        self.embed = nn.Conv3d(widths[-1], embedding, 3, padding=1)
        self.linear_embed = nn.Linear(widths[-1] * in_channels, embedding)
        self.positions = nn.Parameter(torch.zeros(1, math.prod(grid), embedding))
        self.token_dropout = nn.Dropout(dropout)
        self.transformer = nn.Sequential()
        for _ in range(layers):
            self.transformer.append(SelfAttention(embedding, heads, dropout, attention_dropout))
            self.transformer.append(TokenMLP(embedding, mlp, dropout))
        self.transformer_norm = nn.LayerNorm(embedding)

        self.bottleneck = nn.Sequential(
            DecoderBlock(embedding, widths[-1], residual=False), DecoderBlock(widths[-1], widths[-1], residual=True)
        )
        self.decoders = nn.ModuleList(DecoderLevel(i, o) for o, i in itertools.pairwise(widths))
        self.head = nn.Conv3d(widths[0], out_channels, 1)
        for unused in (self.linear_embed, self.transformer_norm):
            unused.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image.

        Args:
            image: (N, in_channels, I, J, K), floating point, of the patch that the network was built for.

        Returns:
            logits, (N, out_channels, I, J, K).

        Raises:
            ValueError: if the image has another shape, or while training if a single position is left in the whole batch at the
                coarsest level, where batch norm would have no meaning.
        """
        sides = sides_of(image, self.in_channels, self.fixed_patch)
        padded = padded_sides(sides, self.total_stride, alone=True)
        if self.training and image.shape[0] == 1 and padded == self.total_stride:
            raise ValueError(f"patch {sides} is a single position at the coarsest level: batch norm needs larger ones, or a batch of them")
        features = self.encode(padded_behind(image, padded))
        x = self.bottleneck(self.transform(features[-1]))
        for level in reversed(range(len(self.decoders))):
            x = self.decoders[level](x, features[level])
        return cropped(self.head(x), sides, padded)

    def encode(self, image: Tensor) -> list[Tensor]:
        """The output of every stage, finest first: (N, widths[s], ...)."""
        features: list[Tensor] = []
        x = self.stem_dropout(self.stem(image))
        for s, stage in enumerate(self.stages):
            if s > 0:
                x = self.downsamplings[s - 1](x)
            x = stage(x)
            features.append(x)
        return features

    def transform(self, x: Tensor) -> Tensor:
        """(N, widths[-1], I, J, K) -> (N, embedding, I, J, K): every position a token among all others (paper section 2.2)."""
        x = self.embed(F.relu(self.encoder_norm(x)))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.transformer(self.token_dropout(tokens + self.positions))
        y: Tensor = tokens.transpose(1, 2).reshape(x.shape)
        return y
