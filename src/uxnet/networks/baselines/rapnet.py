"""RAP-Net: one 3-D U-Net for two phases, the second guided by the first's labels.

Paper: Lee, Tang, Bao, Abramson, Huo, Landman. "RAP-Net: Coarse-to-Fine Multi-Organ Segmentation with Single Random Anatomical Prior",
ISBI 2021, arXiv:2012.12425.
Origin: written anew from the paper and from the published behaviour of the authors' network, to which it is equal (19,072,718
parameters at 1 channel in and 14 out). This file is one phase's network; the method of two phases is a recipe of two stages, and
`inference/prior.py`.

    encoder   [conv - norm - ReLU] twice a level, the second doubles the channels; max pooling in between
    decoder   transposed conv up - ReLU, concatenate (up first, skip second), twice [transposed conv 3x3x3 at stride 1 - ReLU]; no norm
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uxnet.networks.blocks import cropped, padded_behind, padded_sides, sides_of, triple, wholes

REFERENCE_KEYS = (
    (r"^encoder\.0\.0\.", "ec0.0."),
    (r"^encoder\.0\.1\.", "ec0.1."),
    (r"^encoder\.0\.3\.", "ec1.0."),
    (r"^encoder\.0\.4\.", "ec1.1."),
    (r"^encoder\.1\.0\.", "ec2.0."),
    (r"^encoder\.1\.1\.", "ec2.1."),
    (r"^encoder\.1\.3\.", "ec3.0."),
    (r"^encoder\.1\.4\.", "ec3.1."),
    (r"^encoder\.2\.0\.", "ec4.0."),
    (r"^encoder\.2\.1\.", "ec4.1."),
    (r"^encoder\.2\.3\.", "ec5.0."),
    (r"^encoder\.2\.4\.", "ec5.1."),
    (r"^encoder\.3\.0\.", "ec6.0."),
    (r"^encoder\.3\.1\.", "ec6.1."),
    (r"^encoder\.3\.3\.", "ec7.0."),
    (r"^encoder\.3\.4\.", "ec7.1."),
    (r"^decoder\.2\.up\.", "dc9.0."),
    (r"^decoder\.2\.conv1\.", "dc8.0."),
    (r"^decoder\.2\.conv2\.", "dc7.0."),
    (r"^decoder\.1\.up\.", "dc6.0."),
    (r"^decoder\.1\.conv1\.", "dc5.0."),
    (r"^decoder\.1\.conv2\.", "dc4.0."),
    (r"^decoder\.0\.up\.", "dc3.0."),
    (r"^decoder\.0\.conv1\.", "dc2.0."),
    (r"^decoder\.0\.conv2\.", "dc1.0."),
    (r"^head\.", "dc0.0."),
)
"""Our parameter names -> those of the authors' state dicts, which number the convolutions through (ec0 to ec7, dc9 to dc0)."""


class _DecoderLevel(nn.Module):
    def __init__(self, below: int, skip: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(below, below, 2, stride=2)
        self.conv1 = nn.ConvTranspose3d(below + skip, skip, 3, padding=1)
        self.conv2 = nn.ConvTranspose3d(skip, skip, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, below, I / 2, J / 2, K / 2) and (N, skip, I, J, K) -> (N, skip, I, J, K)."""
        y = torch.cat((F.relu(self.up(x)), skip), dim=1)
        return F.relu(self.conv2(F.relu(self.conv1(y))))


class RAPNet(nn.Module):
    """The network of one phase of RAP-Net: 19,072,718 parameters at 1 channel in and 14 out with the default arguments.

    Takes patches of any size of at least 9 voxels along one axis.

    Args:
        in_channels, out_channels: of image and logits.
        width: channels of the first convolution; four levels end at 2, 4, 8 and 16 times this.
        output_relu: end with a ReLU, as the authors' network does: logits are then never negative. A class whose logits are 0
            everywhere gets no gradient any more, so the head starts with a positive bias.

    Raises:
        ValueError: for settings that do not fit together; the message names them.
    """

    fixed_patch = None

    def __init__(self, in_channels: int, out_channels: int, *, width: int = 32, output_relu: bool = True) -> None:
        super().__init__()
        for name, value in {"in_channels": in_channels, "out_channels": out_channels, "width": width}.items():
            wholes((value,), 1, name)
        self.in_channels, self.out_channels, self.output_relu = in_channels, out_channels, output_relu
        ends = [width * 2**level for level in range(1, 5)]
        self.encoder = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv3d(before, end // 2, 3, padding=1), nn.BatchNorm3d(end // 2), nn.ReLU()),
                *(nn.Conv3d(end // 2, end, 3, padding=1), nn.BatchNorm3d(end), nn.ReLU()),
            )
            for before, end in zip((in_channels, *ends), ends, strict=False)
        )
        self.decoder = nn.ModuleList(_DecoderLevel(below, skip) for below, skip in zip(ends[1:], ends, strict=False))
        self.head = nn.ConvTranspose3d(ends[0], out_channels, 1)
        if output_relu:
            nn.init.constant_(self.head.bias, 1.0)  # type: ignore[arg-type]  # there is one

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, I, J, K) -> logits (N, out_channels, I, J, K).

        Sides that are no multiples of 8 are padded with zeros behind the end and the logits cropped back.

        Raises:
            ValueError: if the shape or the number of channels is another, or batch norm would train on a single voxel.
        """
        sides = sides_of(image, self.in_channels)
        padded = padded_sides(sides, triple(8), alone=True)
        if self.training and len(image) == 1 and padded == (8, 8, 8):
            raise ValueError(f"patches of {sides} leave batch norm a single voxel to train on; take a batch of 2 or a side above 8")
        x, skips = padded_behind(image, padded), []
        for level, encode in enumerate(self.encoder):
            x = encode(F.max_pool3d(x, 2) if level else x)
            skips.append(x)
        x = skips.pop()
        for decode, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = decode(x, skip)
        logits = self.head(x)
        return cropped(F.relu(logits) if self.output_relu else logits, sides, padded)
