"""What an optimiser is given: every weight with its learning rate, frozen ones not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uxnet.errors import RecipeError
from uxnet.networks.macs import on_meta

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def freeze(network: nn.Module, beginnings: Sequence[str], untrained: Sequence[str] = ()) -> None:
    """Stops weights from being trained.

    Args:
        network: changed in place.
        beginnings: of the names of those to freeze, whole parts: "stages.1" is not the beginning of "stages.10".
        untrained: patterns of the names of those that no gradient reaches anyway; several processes would wait for one.

    Raises:
        RecipeError: if nothing begins so, or everything does.
    """
    found = dict.fromkeys(beginnings, False)
    for name, parameter in network.named_parameters():
        hits = [beginning for beginning in beginnings if f"{name}.".startswith(f"{beginning}.")]
        found |= dict.fromkeys(hits, True)
        if hits or any(re.fullmatch(pattern, name) for pattern in untrained):
            parameter.requires_grad_(False)
    for beginning in (b for b, hit in found.items() if not hit):
        parts = ", ".join(layer_names(network))
        raise RecipeError(f"optimiser.freeze: nothing in the network is called {beginning!r}; its parts are {parts}")
    if not any(p.requires_grad for p in network.parameters()):
        raise RecipeError("optimiser.freeze: nothing is left to train")


def resting(network: nn.Module) -> list[nn.Module]:
    """The modules that are frozen whole: they are to stay in evaluation mode, so that batch norm keeps its statistics, too."""
    return [module for module in network.modules() if (p := list(module.parameters())) and not any(x.requires_grad for x in p)]


def parameter_groups(network: nn.Module, decay: float = 1.0, depths: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """The groups for a torch optimiser: "params", and "factor", what the learning rate of a step is multiplied by.

    Frozen weights are in none. A weight's factor is `decay` to the power of the number of layers after its own (Clark et al. 2020,
    section 3); without `depths` it is 1.

    Args:
        network: on any device; its parameters are those that will be trained.
        depths: of every parameter, see `layer_depths`.
    """
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if depths is None:
        return [{"params": list(trained.values()), "factor": 1.0}]
    last = max(depths.values())
    groups: dict[int, list[Tensor]] = {}
    for name, parameter in trained.items():
        groups.setdefault(depths[name], []).append(parameter)
    return [{"params": groups[depth], "factor": decay ** (last - depth)} for depth in sorted(groups)]


def layer_names(network: nn.Module) -> list[str]:
    """The names of a network's layers: the modules under its containers, in the order in which they are defined."""
    return [name for name, _ in _named(network)]


def layer_depths(network: nn.Module, channels: int, patch: Sequence[int]) -> dict[str, int]:
    """For every parameter, the number of its layer, counted from 0 in the order in which layers are first called.

    A layer without any kernel or matrix (a norm) counts with the one before it; one that is not called, such as a head for deep
    supervision, with the last.
    """
    twin = on_meta(network).eval()
    called: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _module, _arguments, name=name: called.append(name) if name not in called else None)
        for name, module in _named(twin)
    ]
    with torch.no_grad():
        twin(torch.empty((1, channels, *patch), device="meta"))
    for hook in hooks:
        hook.remove()
    depths: dict[str, int] = {}
    depth = -1
    for name in called:
        parameters = {f"{name}.{key}": p for key, p in twin.get_submodule(name).named_parameters()}
        depth += depth < 0 or any(p.ndim > 1 for p in parameters.values())
        depths |= {key: depths.get(key, depth) for key in parameters}
    return {name: depths.get(name, depth) for name, _ in network.named_parameters()}


def _named(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inner, prefix = network, ""
    while len(children := list(inner.named_children())) == 1 and not list(inner.parameters(recurse=False)):
        prefix, inner = f"{prefix}{children[0][0]}.", children[0][1]
    for name, module in _layers(inner, ""):
        yield prefix + name, module


def _layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules with parameters, looked for inside the network, containers, what holds lists of modules, and what only wraps another."""
    children = list(module.named_children())
    alone = len(children) == 1 and not list(module.parameters(recurse=False))
    inside = not name or isinstance(module, _CONTAINERS) or any(isinstance(child, nn.ModuleList) for _, child in children)
    if children and (inside or alone):
        for key, child in children:
            yield from _layers(child, f"{name}.{key}" if name else key)
        if list(module.parameters(recurse=False)) and name:
            yield name, module
    elif list(module.parameters()):
        yield name, module
