"""Networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from uxnet.errors import RecipeError


def _uxnet() -> Callable[..., nn.Module]:
    from uxnet.networks.uxnet import UXNet

    return UXNet


NETWORKS: Mapping[str, Callable[[], Callable[..., nn.Module]]] = {"uxnet": _uxnet}
"""Name -> a function that imports the network's class, so that asking for one network imports no other."""


def build(name: str, in_channels: int, out_channels: int, settings: Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights.

    Args:
        name: one of `NETWORKS`.
        in_channels, out_channels: of image and logits.
        settings: keyword arguments of the network's class.

    Raises:
        RecipeError: if there is no such network or setting, or the settings contradict each other.
    """
    if name not in NETWORKS:
        raise RecipeError(f"network.name: there is no network {name!r}; there are {', '.join(NETWORKS)}")
    network = NETWORKS[name]()
    known = [p for p in inspect.signature(network).parameters if p not in ("in_channels", "out_channels")]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise RecipeError(f"network.settings.{unknown[0]}: {name} has no such setting; it has {', '.join(known)}")
    try:
        return network(in_channels, out_channels, **settings)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"network.settings: {error}") from error
