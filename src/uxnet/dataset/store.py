"""A prepared case as one file: packed without loss, sealed by a hash, and read in parts.

    NAME.KEY.case    the key, then the arrays one after the other, each in C order
    NAME.KEY.json    the key, where each array lies, and the seal: a hash of that and of every byte of NAME.KEY.case

KEY is the beginning of the key: a case that is prepared in another way, or from other content, lies beside the first, which someone may
be training on. Earlier versions called the files NAME.case and NAME.json; those are read, too.

A channel with few different values (whole numbers that were normalised but not resampled) is kept as numbers of entries in a table of
its values, 1 or 2 bytes a voxel; whichever is smaller is taken, and what is read is the same bit for bit. C order was measured against
bricks of 16^3 voxels: from a cold disk both take about as long, since a patch's rows of one plane lie near each other, and bricks are
larger where sides are no multiples of 16.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import DatasetError
from uxnet.io import atomic, read_json, write_json
from uxnet.io.checked import as_kind
from uxnet.io.schemas import CachedDescription

VERSION = 4  # of what is in the files: raised where the same scan and recipe would be prepared otherwise
_ALIGN = 64  # also the length of a key
_PIECE = 1 << 20
_SHOWN = 16  # letters of the key in names of files
_LONGEST = 200  # bytes of a case's name in them: with key, ending and what a file that is being written has, 255 are enough


@dataclass(frozen=True)
class Stored:
    """An array in a file. It is mapped whenever it is indexed: thousands of cases keep no file open and no memory.

    Raises (on indexing):
        DatasetError: if the file is no longer of that key.
    """

    path: Path
    key: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: Any) -> Any:
        return self.part_of(self.mapped())[where]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.part_of(self.mapped()), dtype=dtype)

    def mapped(self) -> mmap.mmap:
        """The whole file, read-only; what is looked at is read from the disk."""
        try:
            with self.path.open("rb") as file:
                whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{self.path}: the cached case cannot be read any more ({error})") from error
        if whole[:_ALIGN] != self.key.encode():
            raise DatasetError(f"{self.path}: the cached case was made anew from something else; does another run use the same folder?")
        return whole

    def part_of(self, whole: mmap.mmap) -> NDArray[Any]:
        """The array, in the mapped file."""
        return np.ndarray(self.shape, self.dtype, whole, self.offset)


Array = NDArray[Any] | Stored
Cut = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CachedCase:
    """A prepared case, of plain arrays or of stored ones that are read in parts.

    image: C channels, (I, J, K) each, or one array (C, I, J, K): values, or the numbers of entries in the channel's table.
    indices: (I, J, K) label indices.
    places: one array (n, 3) for each foreground index 1..n, of at most 20,000 voxels drawn at random; empty where it does not occur.
    prior: label indices (I, J, K) of the stage before, where that guides this one; `places` are then taken from it.
    tables: of each channel its values, float32, or None where `image` holds them itself; empty where it does for all channels.
    cut: of each foreground index, how many of the scan's own voxels the crop cut off, and of how many; empty where nothing was cropped.
    """

    name: str
    image: NDArray[Any] | tuple[Array, ...]
    indices: Array
    places: tuple[Array, ...]
    prior: Array | None = None
    tables: tuple[Array | None, ...] = ()
    cut: Cut = ()


def opened(case: CachedCase) -> CachedCase:
    """The case with its file mapped, once for all of its arrays; what is made of plain arrays stays as it is."""
    if not isinstance(case.indices, Stored):
        return case
    whole = case.indices.mapped()

    def part(array: Array) -> Array:
        return array.part_of(whole) if isinstance(array, Stored) else array

    return CachedCase(
        case.name,
        tuple(part(channel) for channel in case.image),
        part(case.indices),
        case.places,
        None if case.prior is None else part(case.prior),
        tuple(None if table is None else part(table) for table in case.tables),
        case.cut,
    )


@dataclass(frozen=True)
class Content:
    """A file that a case was made from: its content by hash, and by what it is known again without reading it."""

    path: str
    size: int
    changed: tuple[int, int]
    sha256: str


@dataclass(frozen=True)
class Description:
    """What stands in NAME.KEY.json.

    key: a hash of everything that the case depends on.
    files: that it was made from. They are not sealed, since a file that is moved or touched leaves the case as it is.
    arrays: name -> (dtype, shape, offset).
    """

    key: str
    files: tuple[Content, ...]
    arrays: Mapping[str, tuple[str, tuple[int, ...], int]]
    places: tuple[int, ...]
    cut: Cut
    size: int
    seal: str

    def sealed(self) -> bytes:
        """What the seal holds together, beside the data."""
        arrays = {name: [dtype, list(shape), offset] for name, (dtype, shape, offset) in self.arrays.items()}
        return json.dumps([VERSION, self.key, arrays, list(self.places), self.cut, self.size], sort_keys=True).encode()


def pack(
    image: NDArray[np.float32], indices: NDArray[Any], places: Sequence[NDArray[Any]], prior: NDArray[Any] | None
) -> dict[str, NDArray[Any]]:
    """The arrays that a case's file holds, by name."""
    arrays: dict[str, NDArray[Any]] = {}
    for number, channel in enumerate(image):
        codes, table = _coded(channel)
        arrays[f"image {number}"] = codes
        if table is not None:
            arrays[f"table {number}"] = table
    arrays["labels"] = indices
    if prior is not None:
        arrays["prior"] = prior
    small = np.uint8 if max(indices.shape) <= 256 else np.uint16
    arrays["places"] = np.concatenate([np.zeros((0, 3)), *places]).astype(small)
    return arrays


def packed_bytes(arrays: Mapping[str, NDArray[Any]]) -> int:
    """The size of the file that holds them."""
    return _laid_out(arrays)[1]


def stem(name: str, key: str) -> str:
    """What the files of a case of that name and key are called before their endings; of very long names the beginning is enough."""
    raw = name.encode("utf-8", "surrogateescape")
    return f"{name if len(raw) <= _LONGEST else raw[:_LONGEST].decode('utf-8', 'ignore')}.{key[:_SHOWN]}"


def stems(folder: Path) -> dict[str, list[str]]:
    """Every description in the folder, by the name before its key: of one case as prepared in several ways there are several."""
    found: dict[str, list[str]] = {}
    for entry in os.scandir(folder):
        if entry.name.endswith(".json"):
            whole = entry.name.removesuffix(".json")
            name, _, key = whole.rpartition(".")
            keyed = len(key) == _SHOWN and set(key) <= set("0123456789abcdef")
            found.setdefault(name if keyed else whole, []).append(whole)
    return found


def write_case(
    folder: Path, name: str, key: str, files: tuple[Content, ...], arrays: Mapping[str, NDArray[Any]], places: Sequence[int], cut: Cut
) -> None:
    """Writes what `pack` gave, the description last: until it is there, and fits, the case counts as not made."""
    name = stem(name, key)
    entries, size = _laid_out(arrays)
    described = Description(key, files, entries, tuple(places), cut, size, "")
    seal = hashlib.sha256(described.sealed())
    with atomic(folder / f"{name}.case") as temporary, temporary.open("wb") as file:
        for piece in _pieces(key, arrays):
            seal.update(piece)
            file.write(piece)
    _write_description(folder, name, replace(described, seal=seal.hexdigest()))


def keep_files(folder: Path, called: str, described: Description, files: tuple[Content, ...]) -> None:
    """Writes by what the files that a case was made from are known again; `called` is the name of its own files."""
    _write_description(folder, called, replace(described, files=files))


def read_description(folder: Path, called: str) -> Description | None:
    """The description of a case whose files are called so; None where there is none, or one of another version.

    Raises:
        DatasetError: if it is damaged.
    """
    path = folder / f"{called}.json"
    if not path.exists():
        return None
    data = read_json(path, DatasetError)
    if data.get("version") != VERSION:
        return None
    try:
        found = as_kind(data, CachedDescription)
    except ValueError as wrong:
        raise DatasetError(f"{path}: {wrong}; it does not describe a cached case") from wrong
    return Description(
        key=found.key,
        files=tuple(Content(*file) for file in found.files),
        arrays={name: (dtype, tuple(shape), offset) for name, (dtype, shape, offset) in found.arrays.items()},
        places=tuple(found.places),
        cut=tuple(found.cut),
        size=found.size,
        seal=found.seal,
    )


def open_case(folder: Path, called: str, name: str) -> CachedCase:
    """A prepared case of the cache, once every byte of it has been read and held against its seal.

    Args:
        called: what its files are called before their endings.
        name: of the case.

    Raises:
        DatasetError: if it is not there, or damaged.
    """
    described = read_description(folder, called)
    if described is None:
        raise DatasetError(f"{folder}: there is no cached case {called!r}")
    path = folder / f"{called}.case"
    seal = hashlib.sha256(described.sealed())
    try:
        size = path.stat().st_size
        if size != described.size:
            raise DatasetError(f"{path}: it has {size:,} bytes instead of {described.size:,}")
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                seal.update(piece)
    except OSError as error:
        raise DatasetError(f"{path}: it cannot be read ({error.strerror or error})") from error
    if seal.hexdigest() != described.seal:
        raise DatasetError(f"{path}: its content is not what its description was sealed with")
    return _case(path, name, described)


def _case(path: Path, name: str, described: Description) -> CachedCase:
    stored = {n: Stored(path, described.key, np.dtype(t), s, o) for n, (t, s, o) in described.arrays.items()}
    channels = sum(n.startswith("image ") for n in stored)
    found, places = stored["places"], []
    first = 0
    for count in described.places:
        offset = found.offset + 3 * first * found.dtype.itemsize
        places.append(Stored(path, described.key, found.dtype, (count, 3), offset))
        first += count
    return CachedCase(
        name=name,
        image=tuple(stored[f"image {n}"] for n in range(channels)),
        indices=stored["labels"],
        places=tuple(places),
        prior=stored.get("prior"),
        tables=tuple(stored.get(f"table {n}") for n in range(channels)),
        cut=described.cut,
    )


def _write_description(folder: Path, name: str, described: Description) -> None:
    files = [[f.path, f.size, f.changed, f.sha256] for f in described.files]
    write_json(folder / f"{name}.json", {"version": VERSION, **vars(described), "files": files})


def _laid_out(arrays: Mapping[str, NDArray[Any]]) -> tuple[dict[str, tuple[str, tuple[int, ...], int]], int]:
    entries, end = {}, _ALIGN
    for name, array in arrays.items():
        entries[name] = (array.dtype.str, array.shape, end)
        end += -(-array.nbytes // _ALIGN) * _ALIGN
    return entries, end


def _pieces(key: str, arrays: Mapping[str, NDArray[Any]]) -> Iterator[bytes | memoryview]:
    yield key.encode()
    for array in arrays.values():
        if array.size:
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        yield bytes(-array.nbytes % _ALIGN)


def _coded(channel: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """The numbers of the voxels' values in a table, and the table; the values and None where that is no smaller."""
    # As bits: -0 and 0 are equal, but not the same.
    bits = np.ascontiguousarray(channel).reshape(-1).view(np.uint32)
    found = np.zeros(0, np.uint32)
    for start in range(0, bits.size, _PIECE):
        found = np.union1d(found, bits[start : start + _PIECE])
        width = 1 if len(found) <= 1 << 8 else 2
        if len(found) > 1 << 16 or width * bits.size + found.nbytes >= bits.nbytes:
            return channel, None
    codes = np.empty(bits.size, np.uint8 if len(found) <= 1 << 8 else np.uint16)
    for start in range(0, bits.size, _PIECE):
        codes[start : start + _PIECE] = np.searchsorted(found, bits[start : start + _PIECE])
    return codes.reshape(channel.shape), found.view(np.float32)
