"""Whether JSON that anyone may have written has the form that is read of it."""

from __future__ import annotations

import sys
from typing import Any

_NAMES = {dict: "an object {...}", list: "a list [...]", str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def misfit(value: Any, form: Any, where: str = "") -> str:
    """What in a JSON value is of another form, in words that say where; empty where nothing is.

    Args:
        value: as `json` gives it.
        form: a type (float takes whole numbers, too; object takes anything), None for null, a tuple of forms of which one must fit, [form]
            for a list, [form, ...] for one that is not empty, {str: form} for an object of any keys, or {"key": form} for an object that
            has these keys and perhaps others; "key?" may be missing.
        where: the value's own name.
    """
    if isinstance(form, tuple):
        found = [misfit(value, one, where) for one in form]
        return "" if "" in found else found[-1]
    if form is None:
        return "" if value is None else _wrong(where, "null", value)
    if not isinstance(form, list | dict):
        return "" if _is(value, form) else _wrong(where, _NAMES[form], value)
    if type(value) is not type(form):
        return _wrong(where, _NAMES[type(form)], value)
    return _misfit_inside(value, form, where)


def _misfit_inside(value: Any, form: Any, where: str) -> str:
    """Of a list or an object, and a form of that kind."""
    parts: list[tuple[str, Any, Any]]
    if isinstance(form, list):
        if not value and len(form) > 1:
            return f"{where or 'it'} should not be empty"
        parts = [(f"{where}[{n}]", item, form[0]) for n, item in enumerate(value)]
    elif str in form:
        parts = [(f"{where}[{key!r}]", item, form[str]) for key, item in value.items()]
    else:
        parts, within = [], f"{where}." if where else ""
        for key, inner in form.items():
            name = key.removesuffix("?")
            if name in value:
                parts.append((within + name, value[name], inner))
            elif name == key:
                return f"{within}{name} is missing"
    return next(filter(None, (misfit(item, inner, name) for name, item, inner in parts)), "")


def _is(value: Any, kind: type) -> bool:
    if kind is object:
        return True
    if kind is float:
        # A whole number of JSON may have any number of digits, and what is beyond a float cannot be computed with.
        return isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)
    return type(value) is kind


def _wrong(where: str, wanted: str, value: Any) -> str:
    found = "null" if value is None else _NAMES[type(value)]
    return f"{where or 'it'} should be {wanted}, and is {found}"
