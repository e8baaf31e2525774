"""What no recipe may ask for: files that anyone may have written are read before anything is built or allocated by them."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence, Sized
from typing import Any

from uxnet.errors import RecipeError, shown

LONGEST_SIDE = 2048
MOST_VOXELS = 2**30
"""Of a patch or window: 4 GB of memory a channel, which no network's first layer leaves room for on any device of today."""

MOST = 65_536
"""Of anything that a network or a step has some of: widths, blocks, heads, patches of a batch. The largest networks have thousands."""

_LONGEST_LIST = 1000
_DEEPEST = 4
_LONGEST_TEXT = 80


def check(ok: bool, key: str, message: str) -> None:
    """Refuses a value.

    Raises:
        RecipeError: that names the key.
    """
    if not ok:
        raise RecipeError(f"{key}: {message}")


def check_range(value: float, low: float, high: float, key: str) -> None:
    """Refuses a number outside a range whose ends belong to it.

    Raises:
        RecipeError: that names the key.
    """
    check(low <= value <= high, key, f"must lie within {low:g}..{high:g}")


def check_patch(sides: Sequence[int], key: str) -> None:
    """Refuses sides that are none, or that no memory holds.

    Raises:
        RecipeError: that names the key.
    """
    check(min(sides) >= 1, key, "sides must be at least 1")
    fits = max(sides) <= LONGEST_SIDE and math.prod(sides) <= MOST_VOXELS
    check(fits, key, f"{shown(list(sides))} is too large: no side may be above {LONGEST_SIDE}, nor their product above {MOST_VOXELS}")


def check_length(values: Sized, key: str) -> None:
    """Refuses lists and tables that are longer than anything in a recipe.

    Raises:
        RecipeError: that names the key.
    """
    check(len(values) <= _LONGEST_LIST, key, f"{len(values)} entries are more than any recipe has (the most is {_LONGEST_LIST})")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuses settings of a network that no network of this package could have, whichever it is.

    Raises:
        RecipeError: that names the setting.
    """
    check_length(settings, "settings")
    for name, value in settings.items():
        _check_setting(value, f"settings.{name[:_LONGEST_TEXT]}", _DEEPEST)


def _check_setting(value: Any, key: str, depth: int) -> None:
    check(value is not None, key, "TOML has no none; write false, or leave the key out")
    if isinstance(value, Mapping | list | tuple):
        check(depth > 0, key, "is nested too deeply")
        check_length(value, key)
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_setting(item, key, depth - 1)
    elif isinstance(value, int):
        check(abs(value) <= MOST, key, f"{shown(value)} is more than any network has (the most is {MOST})")
    elif isinstance(value, float):
        check(math.isfinite(value), key, "must be a finite number")
    else:
        short = isinstance(value, str) and len(value) <= _LONGEST_TEXT
        check(short, key, f"expected a number, a word, true or false, or a list of them, got {shown(value)}")


def whole(value: int, key: str) -> int:
    """A whole number that 64 bits hold.

    Raises:
        RecipeError: that names the key.
    """
    check(-(2**63) <= value < 2**63, key, f"must be a whole number of 64 bits, not {shown(value)}")
    return value


def number(value: int, key: str) -> float:
    """A whole number where any number may stand.

    Raises:
        RecipeError: if it is beyond a float; it names the key.
    """
    check(abs(value) <= sys.float_info.max, key, f"{shown(value)} is beyond any number that is computed with")
    return float(value)
