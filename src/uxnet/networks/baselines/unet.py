"""3D U-Net: the residual U-Net of the paper's table 1.

Paper: Çiçek, Abdulkadir, Lienkamp, Brox, Ronneberger. "3D U-Net: Learning Dense Volumetric Segmentation from Sparse Annotation",
MICCAI 2016, arXiv:1606.06650; with the residual units of Kerfoot et al., STACOM 2018.
Origin: MONAI's `UNet` at the size whose parameters the 3D UX-Net's table 1 prints (4.81 M): widths 16 to 256, two residual units.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.unet import UNet as MonaiUNet

from uxnet.networks.blocks import INNER_KEYS, PaddedNetwork, share, triple, wholes

REFERENCE_KEYS = INNER_KEYS


class UNet(PaddedNetwork):
    """The residual 3D U-Net: 4,809,646 parameters at 5 output channels with the default arguments.

    Takes patches of any size.

    Args:
        in_channels, out_channels: of image and logits.
        widths: channels of each level; every level but the first halves the grid.
        residual_units: convolutions in each residual block.
        dropout: share of channels dropped while training.

    Raises:
        ValueError: for settings that do not fit together; the message names them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        residual_units: int = 2,
        dropout: float = 0.0,
    ) -> None:
        widths = wholes(widths, 1, "widths")
        if len(widths) < 2:
            raise ValueError(f"widths must name at least two levels, not {widths}")
        halvings = len(widths) - 1
        share(dropout, "dropout")
        (units,) = wholes((residual_units,), 0, "residual_units")
        network = MonaiUNet(3, in_channels, out_channels, widths, (2,) * halvings, num_res_units=units, dropout=dropout)
        super().__init__(network, in_channels, out_channels, triple(2**halvings))
