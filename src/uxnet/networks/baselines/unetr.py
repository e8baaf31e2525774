"""UNETR: a vision transformer as encoder, its tokens of four depths as skips of a convolutional decoder.

Paper: Hatamizadeh et al. "UNETR: Transformers for 3D Medical Image Segmentation", WACV 2022, arXiv:2103.10504.
Origin: MONAI's `UNETR` with the settings of the 3D UX-Net's comparison (92.80 M parameters): perceptron embedding of 16^3 voxels a
token, instance norm, residual blocks.
"""

from __future__ import annotations

from monai.networks.nets.unetr import UNETR as MonaiUNETR

from uxnet.networks.blocks import INNER_KEYS, PaddedNetwork, PerAxis, padded_sides, share, triple, wholes

REFERENCE_KEYS = INNER_KEYS

UNTRAINED = (
    # MONAI's transformer block owns a norm for cross attention, which UNETR does not use.
    r"network\.vit\.blocks\.\d+\.norm_cross_attn\.(weight|bias)",
)
"""Patterns of the parameters that no gradient reaches, each with the reason."""

ABSENT = (r"^network\.vit\.blocks\.\d+\.norm_cross_attn\.",)
"""Patterns of the weights that checkpoints may lack: MONAI before 1.3 did not have them yet, and nothing reads them."""

_TOKEN = (16, 16, 16)


class UNETR(PaddedNetwork):
    """UNETR: 92,802,325 parameters at 5 output channels with the default arguments.

    Its position embeddings are tied to the patch: it takes exactly the patch that it was built for, of any sides (which are padded
    to multiples of 16).

    Args:
        in_channels, out_channels: of image and logits.
        patch: the sides of the patches, (I, J, K) in voxels.
        width: channels of the decoder at full resolution.
        hidden: of a token.
        mlp: inside the transformer's MLP.
        heads: of the attention; must divide `hidden`.
        dropout: in the transformer, while training.

    Raises:
        ValueError: for settings that do not fit together; the message names them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        patch: PerAxis = 96,
        width: int = 16,
        hidden: int = 768,
        mlp: int = 3072,
        heads: int = 12,
        dropout: float = 0.0,
    ) -> None:
        for name, value in {"width": width, "hidden": hidden, "mlp": mlp, "heads": heads}.items():
            wholes((value,), 1, name)
        share(dropout, "dropout")
        if hidden % heads:
            raise ValueError(f"hidden {hidden} must be a multiple of heads {heads}")
        sides = triple(patch, "patch")
        network = MonaiUNETR(
            in_channels=in_channels,
            out_channels=out_channels,
            img_size=padded_sides(sides, _TOKEN, alone=True),
            feature_size=width,
            hidden_size=hidden,
            mlp_dim=mlp,
            num_heads=heads,
            proj_type="perceptron",
            norm_name="instance",
            conv_block=True,
            res_block=True,
            dropout_rate=dropout,
        )
        super().__init__(network, in_channels, out_channels, _TOKEN, alone=True, patch=sides)
