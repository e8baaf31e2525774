"""nnFormer: a U-shaped transformer of attention in local windows, with attention to the skips in place of concatenation.

Paper: Zhou, Guo, Zhang, Han, Yu, Wang, Yu. "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer", IEEE
Transactions on Image Processing 2023, arXiv:2109.03201; section III and figure 2.
Origin: written anew from the paper and from the published behaviour of the authors' network in the version that the 3D UX-Net's
authors compared with, to which it is equal with the default arguments at 96x96x96. Where that network and the paper's text differ,
this is the released one: the coarsest stage attends in windows, too, and some relative positions share one bias (see
`WindowAttention`). It differs elsewhere: the authors' takes only the patch it was built for and lets tokens attend to the zeros that
fill up windows; here any size is taken, and nothing attends to them.

    image -> stem -> stage 1 ------------------------------------- skip ------> decoder level 0 -> head -> logits
                       down -> stage 2 --------------------- skip -> decoder level 1
                                 down -> stage 3 ----- skip -> decoder level 2
                                           down -> stage 4 --> up

Weights of that network take their names through `REFERENCE_KEYS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uxnet.networks.blocks import DropPath, PerAxis, Triple, cropped, padded_behind, padded_sides, share, sides_of, triple, wholes

LARGEST_WINDOW = 16
"""The largest side of a window: 4,096 tokens that each see each other."""

REFERENCE_KEYS = (
    (r"^stem\.convs\.([01])\.", r"model_down.patch_embed.proj1.conv{1+1}."),
    (r"^stem\.convs\.2\.", "model_down.patch_embed.proj2.conv1."),
    (r"^stem\.convs\.3\.", "model_down.patch_embed.proj2.conv2."),
    (r"^stem\.norms\.([01])\.", r"model_down.patch_embed.proj1.norm{1+1}."),
    (r"^stem\.norms\.2\.", "model_down.patch_embed.proj2.norm1."),
    (r"^stem\.norms\.3\.", "model_down.patch_embed.norm."),
    (r"^stages\.(\d+)\.(\d+)\.(norm[12])\.", r"model_down.layers.{1}.blocks.{2}.{3}."),
    (r"^stages\.(\d+)\.(\d+)\.attention\.positions$", r"model_down.layers.{1}.blocks.{2}.attn.relative_position_bias_table"),
    (r"^stages\.(\d+)\.(\d+)\.attention\.", r"model_down.layers.{1}.blocks.{2}.attn."),
    (r"^stages\.(\d+)\.(\d+)\.expand\.", r"model_down.layers.{1}.blocks.{2}.mlp.fc1."),
    (r"^stages\.(\d+)\.(\d+)\.reduce\.", r"model_down.layers.{1}.blocks.{2}.mlp.fc2."),
    (r"^downsamplings\.(\d+)\.norm\.", r"model_down.layers.{1}.downsample.norm."),
    (r"^downsamplings\.(\d+)\.conv\.", r"model_down.layers.{1}.downsample.reduction."),
    (r"^stage_norms\.(\d+)\.", r"model_down.norm{1}."),
    (r"^decoders\.(\d+)\.blocks\.(\d+)\.(norm[12])\.", r"decoder.layers.{1}.blocks.{2}.{3}."),
    (r"^decoders\.(\d+)\.blocks\.(\d+)\.attention\.positions$", r"decoder.layers.{1}.blocks.{2}.attn.relative_position_bias_table"),
    (r"^decoders\.(\d+)\.blocks\.(\d+)\.attention\.", r"decoder.layers.{1}.blocks.{2}.attn."),
    (r"^decoders\.(\d+)\.blocks\.(\d+)\.expand\.", r"decoder.layers.{1}.blocks.{2}.mlp.fc1."),
    (r"^decoders\.(\d+)\.blocks\.(\d+)\.reduce\.", r"decoder.layers.{1}.blocks.{2}.mlp.fc2."),
    (r"^decoders\.(\d+)\.(norm|up)\.", r"decoder.layers.{1}.Upsample.{2}."),
    (r"^head\.", "final.0.up."),
    (r"^supervision_heads\.(\d+)\.", r"final.{1+1}.up."),
)
"""Our parameter names -> those of the authors' state dicts; see `weights.rename`."""


@dataclass(frozen=True)
class Windows:
    """How a grid of `sides` is cut into windows of `window`, after a cyclic shift by `shift`.

    Axes that are not whole multiples of the window are filled up with zeros, and tokens see neither those nor, where the shift
    brings opposite ends of the grid into one window, the other end.
    """

    sides: Triple
    window: Triple
    shift: int

    @staticmethod
    def over(sides: Triple, side: int, *, shifted: bool) -> Windows:
        """Windows of `side`, or of all that an axis has; they are shifted by half of it only if no axis fits into one window."""
        window = (min(side, sides[0]), min(side, sides[1]), min(side, sides[2]))
        return Windows(sides, window, side // 2 if shifted and min(sides) > side else 0)

    @property
    def padded(self) -> Triple:
        return padded_sides(self.sides, self.window, alone=True)

    def cut(self, grid: Tensor) -> Tensor:
        """(N, I, J, K, C) -> (N, windows, tokens, C)."""
        if self.padded != self.sides:
            grid = F.pad(grid, [0, 0] + [p for a in (2, 1, 0) for p in (0, self.padded[a] - self.sides[a])])
        if self.shift:
            grid = grid.roll((-self.shift,) * 3, (1, 2, 3))
        return self._cut(grid)

    def join(self, windows: Tensor) -> Tensor:
        """(N, windows, tokens, C) -> (N, I, J, K, C): undoes `cut`."""
        n, (a, b, c), (i, j, k) = windows.shape[0], self.window, self.padded
        grid = windows.reshape(n, i // a, j // b, k // c, a, b, c, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        grid = grid.reshape(n, i, j, k, -1)
        if self.shift:
            grid = grid.roll((self.shift,) * 3, (1, 2, 3))
        return grid[:, : self.sides[0], : self.sides[1], : self.sides[2]]

    def strangers(self, device: torch.device) -> Tensor | None:
        """Which tokens of a window must not see each other: (windows, tokens, tokens), bool; None if all may."""
        if not self.shift and self.padded == self.sides:
            return None
        kinds = torch.zeros((), dtype=torch.long, device=device)
        for side, padded in zip(self.sides, self.padded, strict=True):
            at = torch.arange(padded, device=device)
            wrapped, fill = at >= padded - self.shift, (at + self.shift) % padded >= side
            kinds = 4 * kinds[..., None] + 2 * wrapped + fill
        kinds = self._cut(kinds[None, ..., None])[0, :, :, 0]
        return kinds[:, :, None] != kinds[:, None, :]

    def _cut(self, grid: Tensor) -> Tensor:
        n, (a, b, c), (i, j, k) = grid.shape[0], self.window, self.padded
        grid = grid.reshape(n, i // a, a, j // b, b, k // c, c, -1).permute(0, 1, 3, 5, 2, 4, 6, 7)
        return grid.reshape(n, (i // a) * (j // b) * (k // c), a * b * c, -1)


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of each window, with a learned bias for their relative position.

    With `of_skip`, keys and values come from the skip, and the queries are what comes up, not projected (skip attention, paper
    section III). As released, a step along the first axis is 3 window - 1 entries in the table of biases, not (2 window - 1)^2, so
    that some offsets share an entry and the table's end is never read.
    """

    def __init__(self, channels: int, heads: int, window: int, *, of_skip: bool) -> None:
        super().__init__()
        if of_skip:
            self.kv = nn.Linear(channels, 2 * channels)
        else:
            self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.positions = nn.Parameter(torch.empty((2 * window - 1) ** 3, heads))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.heads, self.window = heads, window

    def forward(self, tokens: Tensor, skip: Tensor | None, windows: Windows) -> Tensor:
        """(N, windows, tokens, C), and the skip's of the same shape -> the same shape."""
        if skip is None:
            q, k, v = map(self._by_head, self.qkv(tokens).chunk(3, dim=-1))
        else:
            q, k, v = map(self._by_head, (tokens, *self.kv(skip).chunk(2, dim=-1)))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + self._bias(windows.window)
        strangers = windows.strangers(scores.device)
        if strangers is not None:
            scores = scores.masked_fill(strangers[:, None], -math.inf)
        y: Tensor = self.proj((scores.softmax(dim=-1) @ v).transpose(2, 3).flatten(3))
        return y

    def _by_head(self, tokens: Tensor) -> Tensor:
        """(N, windows, tokens, C) -> (N, windows, heads, tokens, C / heads)."""
        n, w, t, c = tokens.shape
        return tokens.reshape(n, w, t, self.heads, c // self.heads).transpose(2, 3)

    def _bias(self, window: Triple) -> Tensor:
        """The bias of every pair of a window's tokens: (heads, tokens, tokens)."""
        index = torch.zeros((1, 1), dtype=torch.long, device=self.positions.device)
        for side, step in zip(window, (3 * self.window - 1, 2 * self.window - 1, 1), strict=True):
            at = torch.arange(side, device=index.device)
            offsets = step * (at[:, None] - at[None, :] + self.window - 1)
            index = (index[:, None, :, None] + offsets[None, :, None, :]).reshape(len(index) * side, -1)
        # An embedding's gradient, unlike plain indexing's, is the same from run to run on every device.
        return F.embedding(index, self.positions).permute(2, 0, 1)


class Block(nn.Module):
    """Attention in windows, then a perceptron, each added to what comes in and behind a layer norm (paper section III).

    With `of_skip` it is the first block of a decoder level, which attends to the skip.
    """

    def __init__(
        self, channels: int, heads: int, window: int, mlp_ratio: float, drop_path: float, *, shifted: bool, of_skip: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window, of_skip=of_skip)
        self.norm2 = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, int(channels * mlp_ratio))
        self.reduce = nn.Linear(int(channels * mlp_ratio), channels)
        self.drop_path = DropPath(drop_path)
        self.window, self.shifted = window, shifted

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(N, I, J, K, C), and the skip of the same shape -> the same shape."""
        windows = Windows.over((x.shape[1], x.shape[2], x.shape[3]), self.window, shifted=self.shifted)
        seen = None if skip is None else windows.cut(self.norm1(skip))
        y = windows.join(self.attention(windows.cut(self.norm1(x)), seen, windows))
        x = (x if skip is None else x + skip) + self.drop_path(y)
        out: Tensor = x + self.drop_path(self.reduce(F.gelu(self.expand(self.norm2(x)))))
        return out


class Stem(nn.Module):
    """Four convolutions of kernel 3, the first and third strided, with GELU and layer norm (the embedding layer of paper section III).

    The last has no GELU.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Triple) -> None:
        super().__init__()
        half = out_channels // 2
        first = (min(stride[0], 2), min(stride[1], 2), min(stride[2], 2))
        second = (stride[0] // first[0], stride[1] // first[1], stride[2] // first[2])
        widths = (in_channels, half, half, out_channels, out_channels)
        self.convs = nn.ModuleList(
            nn.Conv3d(i, o, 3, stride=s, padding=1)
            for i, o, s in zip(widths[:-1], widths[1:], (first, triple(1), second, triple(1)), strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:])

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, I, J, K) -> (N, I/s, J/s, K/s, out_channels)."""
        x = image.movedim(1, -1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x.movedim(-1, 1)).movedim(1, -1)
            x = norm(x if conv is self.convs[-1] else F.gelu(x))
        return x


class Downsampling(nn.Module):
    """GELU, layer norm and a convolution of kernel 3 and stride 2 (the down-sampling layer of paper section III)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels)
        self.conv = nn.Conv3d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, J, K, in_channels) -> (N, I/2, J/2, K/2, out_channels)."""
        y: Tensor = self.conv(self.norm(F.gelu(x)).movedim(-1, 1)).movedim(1, -1)
        return y


class DecoderLevel(nn.Module):
    """Layer norm and a transposed convolution up to the skip's grid, attention to the skip, then blocks like the encoder's."""

    def __init__(self, in_channels: int, out_channels: int, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels)
        self.up = nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, I/2, J/2, K/2, in) and (N, I, J, K, out) -> (N, I, J, K, out)."""
        x = self.up(self.norm(x).movedim(-1, 1)).movedim(1, -1)
        for b, block in enumerate(self.blocks):
            x = block(x, skip) if b == 0 else block(x)
        return x


class NNFormer(nn.Module):
    """nnFormer. With the default arguments, 1 input and 8 output channels it has the reference's 149,284,064 parameters.

    The sides of its windows are decided by the patch it is built for; with them it takes images of any size.

    Args:
        in_channels, out_channels: of image and logits.
        patch: sides of the patches that the network is built for; one number, or one an axis. A stage's windows are no larger than
            the shortest side of such a patch there.
        widths: channels of each stage; the first must be even. Sides are halved between stages.
        depths: blocks of each stage, and of the decoder level beside it; every other block shifts its windows.
        heads: of each stage's attention.
        windows: largest sides of each stage's windows.
        patch_stride: voxels that become one token of the first stage; 1, 2 or 4 an axis.
        mlp_ratio: widening inside the perceptrons.
        drop_path: rate of stochastic depth, growing linearly from 0 at the first block to this at the last, in the encoder and
            again in the decoder.
        deep_supervision: also give logits at every coarser decoder level while training.

    Raises:
        ValueError: for settings that do not fit together; the message names them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        patch: PerAxis = 96,
        widths: Sequence[int] = (192, 384, 768, 1536),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (6, 12, 24, 48),
        windows: Sequence[int] = (4, 4, 8, 4),
        patch_stride: PerAxis = (2, 4, 4),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.2,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        strides = triple(patch_stride, "patch_stride")
        stages = _checked_stages(widths, depths, heads, windows)
        for name, count in {"in_channels": in_channels, "out_channels": out_channels}.items():
            wholes((count,), 1, name)
        if not set(strides) <= {1, 2, 4}:
            raise ValueError(f"patch_stride must be 1, 2 or 4 along every axis, not {patch_stride!r}")
        if not isinstance(mlp_ratio, int | float) or not 1 <= mlp_ratio < math.inf:
            raise ValueError(f"mlp_ratio must be at least 1, not {mlp_ratio!r}")
        share(drop_path, "drop_path")

        self.in_channels, self.out_channels = in_channels, out_channels
        self.fixed_patch: Triple | None = None
        down = 2 ** (stages - 1)
        self.total_stride: Triple = (strides[0] * down, strides[1] * down, strides[2] * down)
        padded = padded_sides(triple(patch, "patch"), self.total_stride, alone=True)
        # What is larger than the grid means all of it, and attention takes memory by the sixth power of a window's side.
        grids = [min(p // (s * 2**stage) for p, s in zip(padded, strides, strict=True)) for stage in range(stages)]

        def blocks(stage: int, rates: Sequence[float], *, of_skip: bool = False) -> list[Block]:
            window = min(windows[stage], grids[stage])
            if window > LARGEST_WINDOW:
                raise ValueError(f"windows must be at most {LARGEST_WINDOW}, not {tuple(windows)}")
            return [
                Block(widths[stage], heads[stage], window, mlp_ratio, rate, shifted=b % 2 == 1, of_skip=of_skip and b == 0)
                for b, rate in enumerate(rates)
            ]

        down_rates, up_rates = _growing(drop_path, depths), _growing(drop_path, depths[-2::-1])
        self.stem = Stem(in_channels, widths[0], strides)
        self.stages = nn.ModuleList(nn.ModuleList(blocks(s, rates)) for s, rates in enumerate(down_rates))
        self.downsamplings = nn.ModuleList(Downsampling(widths[s], widths[s + 1]) for s in range(stages - 1))
        self.stage_norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.decoders = nn.ModuleList(
            DecoderLevel(widths[s + 1], widths[s], blocks(s, rates, of_skip=True)) for s, rates in enumerate(reversed(up_rates))
        )
        self.head = nn.ConvTranspose3d(widths[0], out_channels, strides, stride=strides)
        self.supervision_heads = (
            nn.ModuleList(nn.ConvTranspose3d(w, out_channels, strides, stride=strides) for w in widths[1:-1]) if deep_supervision else None
        )

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image.

        Args:
            image: (N, in_channels, I, J, K), floating point; any sides of at least one voxel. Sides that are not multiples of the
                total stride are padded with zeros behind the end and the logits cropped back.

        Returns:
            logits, (N, out_channels, I, J, K). With `deep_supervision`, while training: a list of them, the full resolution first,
            then each coarser decoder level, of the sides divided by 2, 4, ... and rounded up.

        Raises:
            ValueError: if the shape is not five-dimensional or the number of channels is another.
        """
        sides = sides_of(image, self.in_channels)
        padded = padded_sides(sides, self.total_stride, alone=True)
        levels = self.decode(self.encode(padded_behind(image, padded)))
        heads: list[nn.Module] = [self.head]
        if self.training and self.supervision_heads is not None:
            heads += self.supervision_heads
        logits = [cropped(head(level.movedim(-1, 1)), sides, padded) for head, level in zip(heads, levels, strict=False)]
        return logits if len(logits) > 1 else logits[0]

    def encode(self, image: Tensor) -> list[Tensor]:
        """The normalised output of every stage, finest first: (N, ..., widths[s])."""
        features: list[Tensor] = []
        x = self.stem(image)
        for s, (stage, norm) in enumerate(zip(self.stages, self.stage_norms, strict=True)):
            if s > 0:
                x = self.downsamplings[s - 1](x)
            for block in stage:  # type: ignore[attr-defined]  # a ModuleList, which mypy sees as a Module
                x = block(x)
            features.append(norm(x))
        return features

    def decode(self, features: list[Tensor]) -> list[Tensor]:
        """The output of every decoder level, finest first: (N, ..., widths[s])."""
        levels = [features[-1]]
        for decoder, skip in zip(reversed(self.decoders), reversed(features[:-1]), strict=True):
            levels.insert(0, decoder(levels[0], skip))
        return levels


def _checked_stages(widths: Sequence[int], depths: Sequence[int], heads: Sequence[int], windows: Sequence[int]) -> int:
    """The number of stages that all four settings name."""
    settings = {"widths": widths, "depths": depths, "heads": heads, "windows": windows}
    for name, values in settings.items():
        wholes(values, 1, name)
    if not widths or len({len(values) for values in settings.values()}) > 1:
        raise ValueError(f"{', '.join(f'{n} {tuple(v)}' for n, v in settings.items())} must name the same number of stages, at least one")
    if any(width % h for width, h in zip(widths, heads, strict=True)) or widths[0] % 2:
        raise ValueError(f"widths {tuple(widths)} must be multiples of heads {tuple(heads)}, and the first even")
    return len(widths)


def _growing(last: float, counts: Sequence[int]) -> list[list[float]]:
    """Numbers that grow evenly from 0 to `last`, in groups of the given counts."""
    step = last / max(sum(counts) - 1, 1)
    return [[step * (sum(counts[:g]) + b) for b in range(count)] for g, count in enumerate(counts)]
