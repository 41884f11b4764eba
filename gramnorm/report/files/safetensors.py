"""Layers out of a safetensors file, of which only the header is read.

Such a file is the length of a header, the header (JSON with dtype, shape and place of each tensor)
and the raw values; no code can be in it.  Nothing is believed: the places must cover the rest of the
file exactly, one after the other, and fit the shapes, so whoever reads a tensor takes no more memory
than the file has bytes for.  The tensors stay where they are (`gramnorm.report.files.tensors`), or
are read at once out of a stream that is no file.  The order in the file is the writer's, by
alignment: layers are listed by name, numbers in names by value.
"""

import json
import math
import re
from typing import IO, Any

from gramnorm.report.files.contents import ReadError, Stored, check_total
from gramnorm.report.files.names import harmless
from gramnorm.report.files.tensors import KINDS, File, Tensor, read_numbers
from gramnorm.report.limits import HEADER_BYTES

_FORMATS = {"pt": "oihw", "mlx": "ohwi", "tf": "hwio", "flax": "hwio", "keras": "hwio"}
_BITS = {
    "BOOL": 8,
    "BF16": 16,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **{f"{letter}{bits}": bits for letter in "IU" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": bits for bits in (16, 32, 64)},
    **{f"F8_{name}": 8 for name in ("E4M3", "E4M3FNUZ", "E5M2", "E5M2FNUZ", "E8M0")},
}
_Header = dict[str, dict[str, Any]]


def is_safetensors(head: bytes, size: int) -> bool:
    """
    Say whether a file is one of safetensors: there is no magic, but a length, and JSON behind it.

    Parameters
    ----------
    head : bytes
        The first nine bytes of the file, or more.
    size : int
        Bytes of the file.

    Returns
    -------
    bool
        Whether the header begins and can end within the file.
    """
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def read_safetensors(stream: IO[bytes], size: int) -> Stored:
    """Read what a safetensors file holds; of its metadata only "format", the writer's library.

    Parameters
    ----------
    stream : binary file
        Open for reading, at its beginning.
    size : int
        Bytes of the file.

    Returns
    -------
    Stored
        Tensors, and those whose type is not a number by itself.

    Raises
    ------
    ReadError
        If the file is damaged.
    """
    length = int.from_bytes(stream.read(8), "little")
    if length > min(HEADER_BYTES, size - 8):
        _damaged(f"a header of {length} bytes")
    header = _parsed(stream.read(length))
    metadata = header.pop("__metadata__", {})
    _check(header, size - 8 - length)
    stored = Stored(layout=_FORMATS.get(str(metadata.get("format", ""))))
    file = File.of(stream)
    if file is None:
        check_total(sum(_memory(entry) for entry in header.values()))
    for name, entry in sorted(header.items(), key=lambda item: _by_number(item[0])):
        kind, shape = entry["dtype"], tuple(entry["shape"])
        place = 8 + length + entry["data_offsets"][0]
        if kind in KINDS and file is not None:
            stored.arrays[name] = Tensor(file, kind, place, shape)
        elif kind in KINDS:
            stream.seek(place)
            stored.arrays[name] = read_numbers(stream, kind, shape)
        elif reason := harmless(name, len(shape)):
            stored.others[name] = reason
        else:
            stored.unusable[name] = (
                f"type {kind}, shape {shape}: such numbers are scaled by what stands "
                "elsewhere, so they are not the weight; save it as bfloat16 or wider"
            )
    return stored


def _damaged(what: str) -> None:
    msg = f"a damaged safetensors file ({what})"
    raise ReadError(msg)


def _parsed(text: bytes) -> _Header:
    """Return the header, an object of objects in which no name occurs twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            _damaged("a name that occurs twice")
        return found

    try:
        header = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        header = None
    if not isinstance(header, dict) or not all(isinstance(v, dict) for v in header.values()):
        _damaged("its header is not the JSON of one")
    return dict(header or {})


def _check(header: _Header, size: int) -> None:
    """Refuse entries that are not places of so many bytes, one after the other, of their shapes."""
    end = 0
    for entry in header.values():
        fits = entry.keys() == {"dtype", "shape", "data_offsets"}
        fits = fits and isinstance(entry["dtype"], str) and entry["dtype"] in _BITS
        numbers = (entry.get("shape"), entry.get("data_offsets"))
        fits = fits and all(isinstance(some, list) and all(map(_is_size, some)) for some in numbers)
        if not fits or len(entry["data_offsets"]) != 2:
            _damaged(f"an entry {str(entry)[:80]!r}")
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        bits = math.prod(entry["shape"]) * _BITS[entry["dtype"]]
        if begin != end or 8 * (stop - begin) != bits:
            _damaged(f"{name!r} of shape {tuple(entry['shape'])} lies in {begin} to {stop}")
        end = stop
    if end != size:
        _damaged(f"{size} bytes of values, of which {end} have a name")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _memory(entry: dict[str, Any]) -> int:
    """Return the bytes of a tensor in memory."""
    kind = KINDS.get(entry["dtype"])
    return math.prod(entry["shape"]) * kind.dtype.itemsize if kind else 0


def _by_number(name: str) -> tuple[Any, ...]:
    """Return a key that sorts "layer2" before "layer10"."""
    parts = re.split(r"(\d+)", name, flags=re.ASCII)  # texts and digits in turn
    digits = [part.lstrip("0") for part in parts[1::2]]
    return [(t, len(d), d) for t, d in zip(parts, [*digits, ""], strict=False)], name
