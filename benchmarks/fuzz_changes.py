"""Changes to files as damage, other programs, versions and malice make them: of bytes, of JSON and TOML values, of NIfTI headers."""

from __future__ import annotations

import copy
import functools
import gzip
import json
import math
import random
import struct

import tomli_w

ODD = (
    0, -1, 1, 3, 64, 4096, 10**6, 10**9, 2**31, -(2**31), 2**63, 10**30, 10**400, 0.5, -0.0, 1e-308, 1e308,
    math.nan, math.inf, -math.inf, "", " ", "1", "a.nii.gz", "../up", "/etc/passwd", "a\0b", "\ud800", "é" * 300,
    "x" * 100_000, "\x1b[31m", [], {}, [[]], [None], [1, "a"], {"a": 1}, {"": None},
    None, True, False,
)  # fmt: skip
"""Values that stand where others were expected."""

_DEEP = "\N{BLACK SQUARE}deep"  # replaced in the text, since writers of JSON and TOML cannot nest so deeply
_LONG = "\N{BLACK SQUARE}long"


def changed_json(rng: random.Random, value: object) -> bytes:
    """A JSON value as bytes, with one to three of its parts changed, or its text."""
    if rng.random() < 0.2:
        return changed_bytes(rng, json.dumps(value).encode())
    text = json.dumps(_changed_value(rng, value, (*ODD, _DEEP, _LONG)))
    return _with_bulk(rng, text)


def changed_toml(rng: random.Random, value: dict) -> bytes:
    """A table as TOML, with one to three of its parts changed, or its text."""
    if rng.random() < 0.2:
        return changed_bytes(rng, tomli_w.dumps(value).encode())
    odd = tuple(one for one in ODD if one is not None and one != "\ud800" and one not in ([None], {"": None}))
    changed = _changed_value(rng, value, (*odd, _DEEP, _LONG))
    return _with_bulk(rng, tomli_w.dumps(changed if isinstance(changed, dict) else {"name": changed}))


def changed_bytes(rng: random.Random, blob: bytes) -> bytes:
    """Bytes flipped, cut, doubled, moved, or put in."""
    out = bytearray(blob)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            out[at:at] = out[at : at + rng.randrange(1, 256)]
        elif kind == 5:
            out[at:at] = rng.choice((b"\xef\xbb\xbf", b"\0", b"9" * 400, b"[" * 2000, b'"', b"\xff\xfe", rng.randbytes(16)))
        else:
            out[at : at + 8] = rng.randbytes(8)
    return bytes(out)


def changed_nifti(rng: random.Random, blob: bytes) -> bytes:
    """A NIfTI file of one block (.nii), its header's fields changed; packed now and then, and its bytes changed."""
    out = bytearray(blob)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        name = rng.choice(list(_FIELDS))
        offset, kind, count = _FIELDS[name]
        size = struct.calcsize(kind)
        struct.pack_into(f"<{kind}", out, offset + size * rng.randrange(count), rng.choice(_EXTREMES[kind]))
    if rng.random() < 0.15:
        del out[rng.randrange(len(out)) :]
    if rng.random() < 0.1 and len(out) > 352:
        return _bomb(rng, out)
    if rng.random() < 0.2:
        out[348:352] = b"\1\0\0\0"
        out[352:352] = struct.pack("<ii", rng.choice((0, 8, 16, -1, 2**31 - 1, 1 << 20)), rng.choice((0, 4, 6, -1))) + rng.randbytes(8)
    whole = bytes(out)
    if rng.random() < 0.5:
        whole = gzip.compress(whole, 1)
        return changed_bytes(rng, whole) if rng.random() < 0.3 else whole
    return changed_bytes(rng, whole) if rng.random() < 0.2 else whole


def _bomb(rng: random.Random, out: bytearray) -> bytes:
    """Packed, with gigabytes of zeros between header and voxels: an extension, or a gap that vox_offset skips."""
    megabytes = rng.choice((16, 256, 2000))
    if rng.random() < 0.5:
        out[348:352] = b"\1\0\0\0"
        out[352:] = struct.pack("<ii", (megabytes << 20) + 16, 6) + bytes(8)
    if rng.random() < 0.7:
        struct.pack_into("<f", out, 108, float(352 + (megabytes << 20)))
    # Packed pieces one after the other are the packed whole.
    return gzip.compress(bytes(out[:400]), 1) + _zeros() * (megabytes >> 4) + gzip.compress(bytes(out[352:]), 1)


@functools.cache
def _zeros() -> bytes:
    return gzip.compress(bytes(1 << 24), 9)


_FIELDS = {
    "sizeof_hdr": (0, "i", 1), "dim_info": (39, "B", 1), "dim": (40, "h", 8), "intent_p": (56, "f", 3), "intent_code": (68, "h", 1),
    "datatype": (70, "h", 1), "bitpix": (72, "h", 1), "slice_start": (74, "h", 1), "pixdim": (76, "f", 8), "vox_offset": (108, "f", 1),
    "scl_slope": (112, "f", 1), "scl_inter": (116, "f", 1), "slice_end": (120, "h", 1), "slice_code": (122, "B", 1),
    "xyzt_units": (123, "B", 1), "cal": (124, "f", 2), "toffset": (136, "f", 1), "qform_code": (252, "h", 1), "sform_code": (254, "h", 1),
    "quatern": (256, "f", 3), "qoffset": (268, "f", 3), "srow": (280, "f", 12), "magic": (344, "B", 4), "extension": (348, "B", 4),
}  # fmt: skip
"""Of a NIfTI-1 header: offset, type and count."""

_EXTREMES = {
    "B": (0, 1, 2, 7, 10, 127, 255),
    "h": (-32768, -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 128, 256, 511, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 32767),
    "i": (-(2**31), -1, 0, 1, 348, 349, 540, 2**31 - 1),
    "f": (0.0, -0.0, 1.0, -1.0, 0.5, 1.0000153, 352.0, 353.0, 1e9, -1e9, 1e-40, 1e-30, 1e20, 1e38, -1e38, math.nan, math.inf, -math.inf),
}


def _changed_value(rng: random.Random, value: object, odd: tuple[object, ...]) -> object:
    root = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(root))
        into, key = rng.choice(places)
        kind = rng.randrange(10)
        if kind < 6:
            into[key] = copy.deepcopy(rng.choice(odd))
        elif kind == 6 and into is not root:
            del into[key]
        elif kind == 7 and isinstance(into, dict):
            into[rng.choice(("", "more", "__class__", key + key, "é"))] = copy.deepcopy(rng.choice(odd))
        elif kind == 8 and isinstance(into, list) and into is not root:
            into.insert(key, copy.deepcopy(into[key]))
        else:  # what stands elsewhere in the file
            other, there = rng.choice(places)
            into[key] = copy.deepcopy(other[there])
    return root[0]


def _places(value: object):
    """Every (container, key) inside."""
    for key in range(len(value)) if isinstance(value, list) else list(value):
        yield value, key
        if isinstance(value[key], list | dict):
            yield from _places(value[key])


def _with_bulk(rng: random.Random, text: str) -> bytes:
    deep, long = rng.choice((40, 70, 1200, 100_000)), rng.choice((400, 5000))
    for word, bulk in ((_DEEP, "[" * deep + "]" * deep), (_LONG, "9" * long)):
        text = text.replace(f'"{word}"', bulk).replace(json.dumps(word), bulk)
    if rng.random() < 0.03 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + "," + text[1:]  # every key twice
    return text.encode("utf-8", "surrogatepass")
