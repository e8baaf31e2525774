"""Names of weights from elsewhere: a key map is a tuple of (pattern, replacement) beside its network, applied here."""

from __future__ import annotations

import re
from collections.abc import Sequence

KeyMap = Sequence[tuple[str, str]]


def rename(key: str, key_map: KeyMap) -> str:
    """`key` under its name elsewhere.

    The first pattern of `key_map` that matches at the start is replaced. `{2}` in a replacement stands for the pattern's second
    group, `{2+1}` for that group as a number, plus one.

    Raises:
        KeyError: if no pattern matches.
    """
    for pattern, replacement in key_map:
        match = re.match(pattern, key)
        if match:
            return _filled(replacement, match) + key[match.end() :]
    raise KeyError(key)


def _filled(replacement: str, match: re.Match[str]) -> str:
    def group(found: re.Match[str]) -> str:
        text = match.group(int(found.group(1)))
        return str(int(text) + int(found.group(2))) if found.group(2) else text

    return re.sub(r"\{(\d+)(?:\+(\d+))?\}", group, replacement)
