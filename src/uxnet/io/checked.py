"""JSON files read as types: what does not fit is said by file and key, in words."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from uxnet.errors import InputError, printable
from uxnet.io.files import read_json

Kind = TypeVar("Kind")

_NAMES = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "null": "null",
    "object": "an object {...}",
    "str": "text",
}
_PLACE = re.compile(r" - at `\$(?P<place>.*)`$")
_STEP = re.compile(r"\.(?P<key>\w+)|\[(?P<index>\d+)\]|\[\.\.\.\]")


def read_as(
    path: Path, kind: type[Kind], error: type[InputError] = InputError, otherwise: str = "correct the file, or make it anew"
) -> Kind:
    """What a JSON file says, as a type of `schemas`.

    Args:
        error: what is raised.
        otherwise: what to do about a file that does not fit.

    Raises:
        InputError: of the kind asked for, naming file and key, if the file cannot be read or does not fit.
    """
    data = read_json(path, error)
    try:
        return as_kind(data, kind)
    except ValueError as wrong:
        raise error(f"{path}: {wrong}; {otherwise}") from wrong


def as_kind(value: Any, kind: type[Kind], where: str = "") -> Kind:
    """A value that `json` gave, as a type of `schemas`; the value itself stays as it is.

    Args:
        where: the value's own name.

    Raises:
        ValueError: naming the first key that does not fit: "cases[3].classes['liver'].dice: expected a number or null, got text".
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_worded(value, kind, str(error), where)) from error
    except UnicodeError as error:  # half of a surrogate pair
        raise ValueError(f"{where or 'it'}: holds text that is no Unicode ({error})") from error


# ---- what they say


def _worded(value: Any, kind: Any, said: str, where: str) -> str:
    """What msgspec says of a value, in this package's words and with the names of all keys."""
    found = _PLACE.search(said)
    what, steps = (said[: found.start()], _steps(value, kind, said, found["place"])) if found else (said, [])
    place = _name(steps, where)
    if missing := re.fullmatch(r"Object missing required field `(.+)`", what):
        return f"{_name([*steps, missing[1]], where)} is missing"
    there = _at(value, steps)
    if what.startswith("Number out of range") or (isinstance(there, float) and not math.isfinite(there)):
        what = "expected a finite number"
    elif types := re.fullmatch(r"Expected `([^`]+)`(, got `(\w+)`)?(.*)", what):
        wanted = " or ".join(_NAMES.get(one, one) for one in types[1].split(" | "))
        limit = types[4].replace(" >= ", " of at least ").replace(" <= ", " of at most ")
        limit = limit.replace(" of length of at least 1", " that is not empty").replace(" of length ", " of the length ")
        got = _NAMES.get(types[3], types[3]) if types[3] else str(there) if isinstance(there, int | float) else ""
        what = f"expected {wanted}{limit}" + (f", got {got}" if got else "")
    return printable(f"{place or 'it'}: {what}")


def _name(steps: list[str | int], where: str) -> str:
    for step in steps:
        plain = isinstance(step, str) and step.isidentifier()
        where += (f".{step}" if where else str(step)) if plain else f"[{step!r}]"
    return where


def _steps(value: Any, kind: Any, said: str, place: str) -> list[str | int]:
    """The keys and numbers on the way to what does not fit.

    msgspec says "..." for any key of a table: it is the one that does not fit either where it stands alone.
    """
    steps: list[str | int] = []
    for match in _STEP.finditer(place):
        if match["key"] is not None:
            steps.append(match["key"])
        elif match["index"] is not None:
            steps.append(int(match["index"]))
        else:
            table = _at(value, steps)
            steps.append(next(key for key in table if _fails(_with(value, steps, {key: table[key]}), kind, said)))
    return steps


def _at(value: Any, steps: list[str | int]) -> Any:
    for step in steps:
        value = value[step]
    return value


def _fails(value: Any, kind: Any, said: str) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return str(error) == said
    return False


def _with(value: Any, steps: list[str | int], part: Any) -> Any:
    """The value with another part where the steps lead."""
    if not steps:
        return part
    inner = _with(value[steps[0]], steps[1:], part)
    if isinstance(value, list):
        return [inner if n == steps[0] else item for n, item in enumerate(value)]
    return {**value, steps[0]: inner}
