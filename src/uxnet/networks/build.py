"""The networks of the paper's table 1, each by one name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from uxnet.errors import RecipeError, UsageError
from uxnet.networks.blocks import PerAxis, made_careful, triple
from uxnet.networks.limits import LARGEST, Size, no_larger_than
from uxnet.networks.weights import KeyMap


@dataclass(frozen=True)
class Architecture:
    """A network as code, imported when it is asked for.

    network: its class. `fixed_patch` of its instances is the one patch that they take, None if they take any.
    encoder: a pattern of the names of its encoder's parameters, at their beginnings.
    key_maps: our parameter names -> those of weights from elsewhere; the first is the network that the paper compared.
    untrained: patterns of the names of parameters that no gradient reaches; the reasons stand beside them.
    absent: patterns of the names of weights that files from elsewhere may lack, since nothing reads them.
    """

    network: Callable[..., nn.Module]
    encoder: str
    key_maps: Sequence[KeyMap]
    untrained: Sequence[str] = ()
    absent: Sequence[str] = ()


@dataclass(frozen=True)
class Entry:
    """A network in the list.

    title: as the paper's table 1 prints it.
    load: imports it.
    narrow: settings with which it trains on a CPU.
    narrow_only: settings of `narrow` that hold beside one value of another setting only: (setting, that other one, its value).
    """

    title: str
    load: Callable[[], Architecture]
    narrow: Mapping[str, Any] = field(default_factory=dict)
    narrow_only: tuple[str, str, Any] | None = None


def _uxnet() -> Architecture:
    from uxnet.networks.uxnet import RELEASED_KEYS, UXNet

    return Architecture(UXNet, r"(stem|downsamplings|stages|stage_norms)\.", (RELEASED_KEYS,))


def _unet() -> Architecture:
    from uxnet.networks.baselines.unet import REFERENCE_KEYS, UNet

    return Architecture(UNet, r"network\.model\.(1\.submodule\.)*(0|conv)\.", (REFERENCE_KEYS,))


def _segresnet() -> Architecture:
    from uxnet.networks.baselines.segresnet import REFERENCE_KEYS, SegResNet

    return Architecture(SegResNet, r"network\.(convInit|down_layers)\.", (REFERENCE_KEYS,))


def _rapnet() -> Architecture:
    from uxnet.networks.baselines.rapnet import REFERENCE_KEYS, RAPNet

    return Architecture(RAPNet, r"encoder\.", (REFERENCE_KEYS,))


def _nnunet() -> Architecture:
    from uxnet.networks.baselines.nnunet import DYNUNET_KEYS, PLAIN_CONV_KEYS, REFERENCE_KEYS, NNUNet

    return Architecture(NNUNet, r"encoder\.", (REFERENCE_KEYS, PLAIN_CONV_KEYS, DYNUNET_KEYS))


def _transbts() -> Architecture:
    from uxnet.networks.baselines.transbts import REFERENCE_KEYS, UNTRAINED, TransBTS

    return Architecture(TransBTS, r"(stem|stages|downsamplings|encoder_norm|embed|transformer)\.|positions$", (REFERENCE_KEYS,), UNTRAINED)


def _unetr() -> Architecture:
    from uxnet.networks.baselines.unetr import ABSENT, REFERENCE_KEYS, UNETR, UNTRAINED

    return Architecture(UNETR, r"network\.vit\.", (REFERENCE_KEYS,), UNTRAINED, ABSENT)


def _nnformer() -> Architecture:
    from uxnet.networks.baselines.nnformer import REFERENCE_KEYS, NNFormer

    return Architecture(NNFormer, r"(stem|stages|downsamplings|stage_norms)\.", (REFERENCE_KEYS,))


def _swinunetr() -> Architecture:
    from uxnet.networks.baselines.swinunetr import REFERENCE_KEYS, SwinUNETR

    return Architecture(SwinUNETR, r"network\.swinViT\.", (REFERENCE_KEYS,))


NETWORKS: Mapping[str, Entry] = {
    "unet": Entry("3D U-Net", _unet, {"widths": [12, 24, 48, 96, 192]}),
    "segresnet": Entry("SegResNet", _segresnet),
    "rapnet": Entry("RAP-Net", _rapnet, {"width": 8}),
    "nnunet": Entry("nnU-Net", _nnunet, {"widths": [16, 32, 64, 128, 160]}),
    "transbts": Entry(
        "TransBTS", _transbts, {"widths": [8, 16, 32, 64], "embedding": 128, "heads": 4, "layers": 2, "mlp": 256, "stem_dropout": 0.0}
    ),
    "unetr": Entry("UNETR", _unetr, {"width": 8, "hidden": 192, "mlp": 768, "heads": 6}),
    # Tokens of 2^3 voxels: with the paper's 2x4x4, small patches leave the deeper stages windows of one token.
    "nnformer": Entry(
        "nnFormer",
        _nnformer,
        {"widths": [48, 96, 192], "depths": [2, 2, 2], "heads": [3, 6, 12], "windows": [4, 4, 4], "patch_stride": 2, "drop_path": 0.0},
    ),
    "swinunetr": Entry("SwinUNETR", _swinunetr, {"width": 12, "window": 4}),
    # The released block's 1e-6 takes longer to open than a CPU trains; the paper's block has no layer scale, narrow or not.
    "uxnet": Entry(
        "3D UX-Net",
        _uxnet,
        {"widths": [16, 32, 64, 128], "hidden": 256, "layer_scale": 0.1},
        narrow_only=("layer_scale", "block", "released"),
    ),
}
"""The nine networks in the order of the paper's table 1. Asking for one imports no other."""

SIZES = ("paper", "narrow")
"""The setting `size` of every network: the paper's (the default), or one for CPUs, which other settings then change."""


def build(
    name: str,
    in_channels: int,
    out_channels: int,
    patch: PerAxis = 96,
    settings: Mapping[str, Any] | None = None,
    *,
    most: Size = LARGEST,
) -> nn.Module:
    """A network with fresh weights: (N, in_channels, I, J, K) -> logits (N, out_channels, I, J, K).

    Args:
        name: one of `NETWORKS`.
        in_channels, out_channels: of image and logits.
        patch: the sides of the patches, (I, J, K) in voxels. Most networks take any others, too; those whose weights are tied to the
            patch (`fixed_patch`) do not.
        settings: `size` ("paper" or "narrow"), and keyword arguments of the network's class.
        most: how large it may become; what would become larger is refused before it takes the memory.

    Raises:
        RecipeError: if there is no such network or setting, the settings contradict each other, or ask for more than there can be.
    """
    network = architecture(name).network
    chosen = with_size(name, settings or {})
    if unknown := _wrong_setting(name, network, chosen):
        raise RecipeError(f"network.settings.{unknown}")
    try:
        sides = triple(tuple(patch) if not isinstance(patch, int) else patch, "patch")
        tied = {"patch": sides} if "patch" in inspect.signature(network).parameters else {}
        with no_larger_than(most):
            return made_careful(network(in_channels, out_channels, **tied, **chosen))
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:  # torch's own, of shapes that cannot be
        raise RecipeError(f"network.settings: {str(error).splitlines()[0] if str(error) else 'they ask for too much memory'}") from error


def check_asked(name: str, settings: Mapping[str, Any] | None = None) -> None:
    """Refuses a network that somebody asked for in words.

    Raises:
        UsageError: if there is no network of that name, or it has no such size or setting.
    """
    if name not in NETWORKS:
        raise UsageError(_no_such(name))
    try:
        chosen = with_size(name, settings or {})
    except RecipeError as error:
        raise UsageError(str(error)) from error
    if unknown := _wrong_setting(name, architecture(name).network, chosen):
        raise UsageError(unknown)


def architecture(name: str) -> Architecture:
    """The network of that name, imported.

    Raises:
        RecipeError: if there is none.
    """
    if name not in NETWORKS:
        raise RecipeError(f"network.name: {_no_such(name)}")
    return NETWORKS[name].load()


def with_size(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with `size` resolved into what it stands for.

    Raises:
        RecipeError: if there is no such size.
    """
    given = dict(settings)
    size = given.pop("size", "paper")
    if size not in SIZES:
        raise RecipeError(f"network.settings.size: must be one of {', '.join(SIZES)}, not {size!r}")
    if size == "paper":
        return given
    entry = NETWORKS[name]
    narrow = dict(entry.narrow)
    if entry.narrow_only:
        setting, other, value = entry.narrow_only
        if given.get(other, value) != value:
            del narrow[setting]
    return {**narrow, **given}


def every_setting(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with `size` resolved and every default filled in; those of no network here, or none, as they are."""
    if name not in NETWORKS or settings.get("size", "paper") not in SIZES:
        return dict(settings)
    parameters = inspect.signature(architecture(name).network).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "patch"}
    return {**defaults, **with_size(name, settings)}


def idle_size(name: str, settings: Mapping[str, Any]) -> str:
    """The settings that a size stands for, where all of them are given beside it and are others; empty where the size decides something."""
    if name not in NETWORKS or "size" not in settings:
        return ""
    sized, decided = every_setting(name, {"size": settings["size"]}), NETWORKS[name].narrow
    idle = all(key in settings for key in decided) and any(_plain(settings[key]) != _plain(sized[key]) for key in decided)
    return ", ".join(decided) if idle else ""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def other_settings(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The settings in which two networks of one name differ, in words; empty where their weights mean the same."""
    a, b = with_size(name, theirs), with_size(name, ours)
    # Deep supervision and checkpointing change how a network is trained, not what its weights mean.
    differ = [key for key in {**a, **b} if a.get(key) != b.get(key) and key not in ("deep_supervision", "checkpointing")]
    return ", ".join(f"{key} {a.get(key, 'by default')} there, {b.get(key, 'by default')} here" for key in differ)


def _wrong_setting(name: str, network: Callable[..., nn.Module], settings: Mapping[str, Any]) -> str:
    """The first setting that the network does not have, or that is not true or false where it must be, in words; empty where none is."""
    known = [p for p in inspect.signature(network).parameters if p not in ("in_channels", "out_channels", "patch")]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        return f"{unknown[0]}: {name} has no such setting; it has size, {', '.join(known)}"
    defaults = inspect.signature(network).parameters
    # Any word, "false" too, would count as true.
    unsaid = [key for key, value in settings.items() if isinstance(defaults[key].default, bool) and not isinstance(value, bool)]
    return f"{unsaid[0]}: must be true or false, not {settings[unsaid[0]]!r}" if unsaid else ""


def _no_such(name: str) -> str:
    return f"there is no network {name!r}; there are {', '.join(NETWORKS)}"
