"""SegResNet: a residual encoder and a light decoder, group norm.

Paper: Myronenko. "3D MRI Brain Tumor Segmentation Using Autoencoder Regularization", BrainLes 2018, arXiv:1810.11654 (without the
variational branch).
Origin: MONAI's `SegResNet` at the size of the 3D UX-Net's table 1 (1.18 M parameters): 8 initial filters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet

from uxnet.networks.blocks import INNER_KEYS, PaddedNetwork, one_of, share, triple, wholes

REFERENCE_KEYS = INNER_KEYS

ACTIVATIONS: Mapping[str, Callable[[float], tuple[str, dict[str, Any]]]] = {
    "relu": lambda slope: ("relu", {"inplace": True}),
    "leaky_relu": lambda slope: ("leakyrelu", {"negative_slope": slope, "inplace": True}),
    "elu": lambda slope: ("elu", {"inplace": True}),
    "gelu": lambda slope: ("gelu", {}),
    "silu": lambda slope: ("swish", {}),
}
"""By our names: the slope -> MONAI's name and arguments."""


class SegResNet(PaddedNetwork):
    """SegResNet: 1,176,213 parameters at 5 output channels with the default arguments.

    Takes patches of any size.

    Args:
        in_channels, out_channels: of image and logits.
        width: channels at full resolution; doubled at each level. A multiple of `groups`.
        blocks_down, blocks_up: residual blocks of each level of the encoder, and of the decoder (one level fewer).
        dropout: share of channels of the first convolution's output dropped while training.
        groups: of its norms.
        activation: "relu", "leaky_relu", "elu", "gelu" or "silu".
        slope: of "leaky_relu" below 0.

    Raises:
        ValueError: for settings that do not fit together; the message names them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 8,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        dropout: float = 0.0,
        groups: int = 8,
        activation: Literal["relu", "leaky_relu", "elu", "gelu", "silu"] = "relu",
        slope: float = 0.01,
    ) -> None:
        blocks_down, blocks_up = wholes(blocks_down, 1, "blocks_down"), wholes(blocks_up, 1, "blocks_up")
        if len(blocks_up) != len(blocks_down) - 1 or not blocks_up:
            raise ValueError(f"blocks_up {blocks_up} must name one level fewer than blocks_down {blocks_down}, at least one")
        share(dropout, "dropout")
        share(slope, "slope")
        if wholes((width,), 1, "width")[0] % wholes((groups,), 1, "groups")[0]:
            raise ValueError(f"width must be a multiple of {groups} (the groups of its norms), not {width}; set groups to a divisor of it")
        network = MonaiSegResNet(
            spatial_dims=3,
            init_filters=width,
            in_channels=in_channels,
            out_channels=out_channels,
            dropout_prob=dropout or None,
            act=ACTIVATIONS[one_of(activation, ACTIVATIONS, "activation")](slope),
            norm=("group", {"num_groups": groups}),
            blocks_down=blocks_down,
            blocks_up=blocks_up,
        )
        super().__init__(network, in_channels, out_channels, triple(2 ** len(blocks_up)), alone=True)
