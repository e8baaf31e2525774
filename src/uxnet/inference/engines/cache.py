"""What OpenVINO made of networks, kept in a folder: graphs, compiled engines, and what checks of their precision found.

    MODEL-HASH.graph   a network, converted
    MODEL-HASH.blob    a network, compiled for one processor, precision and number of threads
    MODEL-HASH.json    what the self-check of the lower precision found on one processor

The hash is of everything that the content depends on, so nothing has to be invalidated. What has not been used for longest goes when
the folder grows over its limit. Other files in the folder are never touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from uxnet.events import Report, Warn, silent
from uxnet.io import atomic

LIMIT = 2_000_000_000
"""Bytes that a cache folder holds at most."""

KINDS: Mapping[str, str] = {"graph": "converted network", "blob": "compiled engine", "json": "self-check", "part": "unfinished"}
_NAME = re.compile(r"(?:(?P<model>[\w.-]*)-)?[0-9a-f]{64}\.(?P<kind>graph|blob|json)")
_PART = re.compile(r"\.(?:uxnet-|.*[0-9a-f]{64}).*\.part\.(?:graph|blob|json)")
_LONG_AGO = 3600.0  # seconds after which nobody is still writing a file
_DIGEST = 32


@dataclass(frozen=True)
class CachedFile:
    """A file of the cache.

    model: that it was made of; empty where an earlier version did not say.
    kind: one of `KINDS`.
    used: when it was last read or written, in seconds since 1970.
    """

    path: Path
    model: str
    kind: str
    size: int
    used: float


@dataclass(frozen=True)
class Cache:
    """A folder of compiled engines; whoever may write to it may change what is computed, so it is the user's own."""

    folder: Path
    report: Report = silent
    limit: int = LIMIT

    def read(self, name: str) -> bytes | None:
        """The content that was written under a name; None if there is none, or it is not whole."""
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError:
            return None
        blob = _content(content)
        if blob is not None:
            with contextlib.suppress(OSError):  # a folder that is not ours to write has no last use
                os.utime(path)
        return blob

    def write(self, name: str, blob: bytes) -> None:
        """Keeps content under a name, and gives up what was not used for longest; a folder that cannot be written is warned of."""
        try:
            with atomic(self.folder / name) as temporary:
                temporary.write_bytes(hashlib.sha256(blob).digest() + blob)
            self._give_up(name)
        except OSError as error:
            self.report(Warn(f"{self.folder}: the compiled engine cannot be kept there ({error}); it is compiled again each time"))

    def _give_up(self, written: str) -> None:
        found = cached_files(self.folder)
        excess = sum(file.size for file in found) - self.limit
        for file in found:
            abandoned = file.kind == "part" and time.time() - file.used > _LONG_AGO
            if abandoned or (excess > 0 and file.kind != "part" and file.path.name != written):
                file.path.unlink(missing_ok=True)
                excess -= file.size


def cache_name(model: str, key: str, kind: str) -> str:
    """The name of a file in the cache.

    Args:
        model: its name, of any characters.
        key: the hash of what the content depends on.
        kind: "graph", "blob" or "json".
    """
    return f"{re.sub(r'[^0-9A-Za-z_.-]', '_', model)[:60]}-{key}.{kind}"


def default_cache() -> Path:
    """The user's own cache folder for compiled engines."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "uxnet"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData" / "Local"))) / "uxnet" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uxnet"


def cached_files(folder: Path) -> list[CachedFile]:
    """The files of a cache, what was not used for longest first; others in its folder are left out. Empty if there is no such folder."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match or _PART.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # given up by another process meanwhile
                status = path.stat()
                model, kind = (match["model"] or "", match["kind"]) if match else ("", "part")
                found.append(CachedFile(path, model, kind, status.st_size, status.st_mtime))
    return sorted(found, key=lambda file: (file.used, file.path.name))


def is_damaged(file: CachedFile) -> bool:
    """Whether the content is not what was written, or cut short; such a file is never used."""
    try:
        return _content(file.path.read_bytes()) is None
    except OSError:
        return True


def clear_cache(folder: Path) -> list[CachedFile]:
    """Removes all files of a cache; others in its folder stay. Gives what was removed.

    Raises:
        OSError: if one cannot be removed.
    """
    found = cached_files(folder)
    for file in found:
        file.path.unlink(missing_ok=True)
    return found


def _content(stored: bytes) -> bytes | None:
    digest, blob = stored[:_DIGEST], stored[_DIGEST:]
    return blob if hashlib.sha256(blob).digest() == digest else None
