"""Temporary files that tell whether whoever writes them is still alive, and locks.

A file that is being written is locked by its writer. A process that dies, however it does, lets go of its locks: what nobody holds was
left behind, and whoever comes next removes it. Some network disks keep locks to one machine, so the name says on which one a file was
made; another machine's file counts as left behind when nobody has written to it for a day, too.

    .uxnet-MACHINE-TOKEN.part.nii.gz    being written
    .uxnet-TOKEN.lock                   what its holder has in hand; protects the parts of that token
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from uxnet.errors import UxnetError

_PART = re.compile(r"\.uxnet-([0-9a-f]{8})-([0-9a-f]{16})(?:-[0-9a-z]+)?\.part(?:\..*)?")
_LOCK = re.compile(r"\.uxnet-[0-9a-f]{16}\.lock")
_ABANDONED_SECONDS = 24 * 3600.0


@contextlib.contextmanager
def part(folder: Path, suffix: str) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new hidden file in a folder, as readable as any other of the user's, and itself opened; it is locked while the block runs.

    Raises:
        OSError: if it cannot be made.
    """
    while True:
        path = part_path(folder, secrets.token_hex(8), suffix)
        with path.open("xb") as file:
            # Whoever clears up may have found it before it was locked.
            if lock(file) is False or not _is_at(file, path):
                continue
            yield path, file
            return


def part_path(folder: Path, token: str, suffix: str, what: str = "") -> Path:
    """Where a part of this machine is written; `what` (letters and digits) tells the parts of one token apart."""
    return folder / f".uxnet-{_machine()}-{token}{what and '-'}{what}.part{suffix}"


def lock_path(folder: Path, token: str) -> Path:
    """The lock that protects the parts of a token."""
    return folder / f".uxnet-{token}.lock"


def token_of(name: str) -> str:
    """The token of something that has a name, however long and of whatever characters."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


@contextlib.contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Holds a lock file for the block; gives whether it does, False if someone else holds it, even in this process.

    The file is removed at the end. Where the system or the disk has no locks, everyone is given True.

    Args:
        wait: until it is free.
    """
    while True:
        with path.open("ab") as file:
            got = lock(file, wait)
            if got and not _is_at(file, path):
                continue  # the last holder has removed it
            if got is False:
                yield False
                return
            try:
                file.truncate(0)
                file.write(_machine().encode())
                file.flush()
                yield True
            finally:
                path.unlink(missing_ok=True)
            return


@contextlib.contextmanager
def alone(path: Path, otherwise: UxnetError) -> Iterator[None]:
    """Holds a lock file, which is made if missing, for this block; a process that dies lets go of it.

    Where the system or the disk has no locks, nothing is held. The file stays.

    Raises:
        UxnetError: `otherwise`, if someone else holds it, even in this process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if lock(file) is False:
            raise otherwise
        yield


def lock(file: IO[bytes] | IO[str], wait: bool = False) -> bool | None:
    """Locks an open file until it is closed, if nobody has locked it; None where the system or the disk has no locks.

    Args:
        wait: until it is free.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def clear_parts(*folders: Path) -> None:
    """Removes parts and locks that processes which died left in folders; what a living one holds is left, on whatever machine it is."""
    for folder in folders:
        with contextlib.suppress(OSError):
            for entry in [entry.name for entry in os.scandir(folder) if entry.name.startswith(".uxnet-")]:
                # What is gone meanwhile, or someone else's, is left.
                with contextlib.suppress(OSError):
                    _clear(folder / entry)


def _clear(path: Path) -> None:
    of = _PART.fullmatch(path.name)
    if of is None and not _LOCK.fullmatch(path.name):
        return
    with path.open("r+b") as file:
        if (free := lock(file)) is False or (of and _is_held(lock_path(path.parent, of[2]))):
            return
        made_on = of[1] if of else file.read().decode(errors="replace")
        certain = free and made_on in (_machine(), "")
        # While it is locked: nobody can have begun with it meanwhile.
        if certain or time.time() - os.fstat(file.fileno()).st_mtime > _ABANDONED_SECONDS:
            path.unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    try:
        with path.open("r+b") as file:
            return lock(file) is False
    except FileNotFoundError:
        return False


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _machine() -> str:
    """This machine since it was started, in eight digits; containers on it share them."""
    try:
        told = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        told = os.uname().nodename.encode() if hasattr(os, "uname") else b""
    return hashlib.sha256(told).hexdigest()[:8]
