"""SwinUNETR: a hierarchical transformer with shifted windows as encoder, a convolutional decoder; what the 3D UX-Net set out to match.

Paper: Hatamizadeh et al. "Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images", BrainLes 2021,
arXiv:2201.01266.
Origin: MONAI's `SwinUNETR` at the size of the 3D UX-Net's table 1 (62.19 M parameters): feature size 48. Its patch merging is ours,
since MONAI has had two: until 1.4 it took two of the eight sub-lattices of voxels twice and two never, which is what the paper ran;
since 1.5 it takes each once. Names and shapes of the weights are the same, the outputs are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR
from torch import Tensor, nn

from uxnet.networks.blocks import INNER_KEYS, PaddedNetwork, Triple, one_of, share, triple, wholes

REFERENCE_KEYS = INNER_KEYS

CORRECTED: tuple[Triple, ...] = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
OLD: tuple[Triple, ...] = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
"""The sub-lattices (their first voxel) whose channels patch merging puts behind each other: of MONAI since 1.5, and until 1.4."""

LARGEST_WINDOW = 16
"""The largest side of a window of attention: 4,096 tokens that each see each other."""


class _PatchMerging(nn.Module):
    """Halves the grid: the channels of eight sub-lattices behind each other, layer norm, linear to twice the channels."""

    lattices: tuple[Triple, ...]

    def __init__(self, dim: int, norm_layer: Callable[[int], nn.Module] = nn.LayerNorm, spatial_dims: int = 3) -> None:
        super().__init__()
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, J, K, C) -> (N, ceil(I / 2), ceil(J / 2), ceil(K / 2), 2 C)."""
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        y: Tensor = self.reduction(self.norm(torch.cat([x[:, i::2, j::2, k::2] for i, j, k in self.lattices], -1)))
        return y


class CorrectedMerging(_PatchMerging):
    """Every sub-lattice once."""

    lattices = CORRECTED


class OldMerging(_PatchMerging):
    """(0, 1, 0) and (0, 0, 1) twice, (1, 1, 0) and (0, 1, 1) never: what the paper and all weights of its time were trained with."""

    lattices = OLD


MERGINGS: Mapping[str, type[_PatchMerging]] = {"corrected": CorrectedMerging, "old": OldMerging}


class SwinUNETR(PaddedNetwork):
    """SwinUNETR: 62,186,855 parameters at 5 output channels with the default arguments.

    Takes patches of any size; they are padded to multiples of 32.

    Args:
        in_channels, out_channels: of image and logits.
        width: channels of the first stage (MONAI's feature size), a multiple of 12.
        depths: blocks of each of the four stages.
        heads: of each stage's attention; must divide its channels (width times 1, 2, 4, 8).
        window: side of the attention's windows.
        merging: "corrected", or "old" for weights that were trained with MONAI up to 1.4.
        drop_path, dropout, attention_dropout: rates while training.
        checkpointing: recompute the blocks in the backward pass instead of keeping their activations.

    Raises:
        ValueError: for settings that do not fit together; the message names them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        merging: Literal["corrected", "old"] = "corrected",
        drop_path: float = 0.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        depths, heads = wholes(depths, 1, "depths"), wholes(heads, 1, "heads")
        if len(depths) != 4 or len(heads) != 4:
            raise ValueError(f"depths {depths} and heads {heads} must name four stages")
        if wholes((width,), 1, "width")[0] % 12:
            raise ValueError(f"width must be a multiple of 12, not {width}")
        if wholes((window,), 2, "window")[0] > LARGEST_WINDOW:
            raise ValueError(f"window must be 2 to {LARGEST_WINDOW}, not {window}: attention takes memory by its sixth power")
        for name, rate in {"drop_path": drop_path, "dropout": dropout, "attention_dropout": attention_dropout}.items():
            share(rate, name)
        wrong = [h for stage, h in enumerate(heads) if width * 2**stage % h]
        if wrong:
            raise ValueError(f"heads {heads} must divide the channels of their stages, {[width * 2**s for s in range(4)]}")
        device = torch.get_default_device()
        with torch.device("cpu"):  # MONAI's constructor reads a tensor, which the meta device cannot
            network = MonaiSwinUNETR(
                in_channels=in_channels,
                out_channels=out_channels,
                depths=depths,
                num_heads=heads,
                window_size=window,
                feature_size=width,
                drop_rate=dropout,
                attn_drop_rate=attention_dropout,
                dropout_path_rate=drop_path,
                use_checkpoint=checkpointing,
                downsample=MERGINGS[one_of(merging, MERGINGS, "merging")],
            )
        super().__init__(network.to(device), in_channels, out_channels, triple(32))
