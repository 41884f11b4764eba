"""Layers out of parameters that Flax serialised with msgpack.

``flax.serialization.to_bytes`` writes nested maps whose ends are arrays, each as an extension that
is msgpack again: shape, name of the dtype, and the bytes.  Nothing of Flax is needed to read it.
msgpack believes the lengths of lists, and makes them before it looks for the entries; Flax writes
only short ones, so longer lists are refused, and all else is bounded by the file's size.
"""

import math
import re
from typing import IO, Any

import numpy as np

from gramnorm import _validate
from gramnorm.report.files.contents import (
    ReadError,
    Stored,
    check_total,
    damage_is,
    widened,
)
from gramnorm.report.files.tree import chosen, leaves, picked

_NDARRAY, _SCALAR = 1, 3  # Flax's numbers of its extensions
_CHUNKED = "__msgpack_chunked_array__"
_LONGEST_LIST = 64  # a shape, with dtype and bytes; NumPy has no more axes
_TYPE = re.compile(r"(u?int(8|16|32|64)|float(16|32|64)|complex(64|128)|bool)")
_DAMAGED = "a damaged msgpack file"


def is_msgpack(head: bytes) -> bool:
    """
    Say whether a file begins like a map from texts, which is all that marks the format.

    Parameters
    ----------
    head : bytes
        The first six bytes of the file, or more.

    Returns
    -------
    bool
        Whether it does.
    """
    return (
        re.match(rb"([\x81-\x8f]|\xde..|\xdf....)([\xa0-\xbf]|\xd9|\xda)", head, re.DOTALL)
        is not None
    )


def read_msgpack(stream: IO[bytes], *, entry: str | None = None) -> Stored:
    """
    Read the arrays of a msgpack file of Flax, under the keys that lead to them.

    Parameters
    ----------
    stream : binary file
        Open for reading, at its beginning.
    entry : str or None
        Which map to read; None for all.

    Returns
    -------
    Stored
        Arrays, and entries that are none.

    Raises
    ------
    ReadError
        If the file is damaged or the library is missing.
    """
    loaded = _unpacked(stream.read())
    stored = Stored(layout="hwio")
    ends = leaves(loaded, lambda _, value: _CHUNKED not in value)
    dicts = {path[:depth] for path, _ in ends for depth in range(len(path))}
    prefix = chosen(dicts, [()] if entry is None else list(dicts), entry)
    if prefix:
        stored.notes.append(f"read the entry {entry!r}")
    own, beside = picked(ends, prefix, "/")
    stored.others.update(beside)
    total = 0
    for name, value in own.items():
        with damage_is(_DAMAGED):
            end = _joined(value) if isinstance(value, dict) else value
        if isinstance(end, np.ndarray):
            total += end.nbytes
            check_total(total)
            stored.arrays[name] = end
        elif isinstance(end, _Refused):
            stored.unusable[name] = str(end)
        else:
            stored.others[name] = f"{type(end).__name__}, not an array"
    return stored


def _unpacked(content: bytes) -> dict[Any, Any]:
    """Return the outermost map, with arrays or why there are none at its ends."""
    try:
        import msgpack  # noqa: PLC0415
    except ImportError as error:
        msg = f"msgpack files of Flax need the package msgpack: {_validate.install('flax')}"
        raise ReadError(msg) from error
    with damage_is(_DAMAGED):
        try:
            loaded = msgpack.unpackb(
                content,
                strict_map_key=False,
                max_array_len=_LONGEST_LIST,
                ext_hook=lambda code, data: _array(msgpack, code, data),
            )
        except msgpack.UnpackException as error:
            msg = "nested too deep, or not complete"
            raise ValueError(msg) from error
        if not isinstance(loaded, dict):
            msg = "it is no map"
            raise ValueError(msg)
    return loaded


class _Refused(str):
    """Why an array has no plain numbers."""

    __slots__ = ()


def _array(msgpack: Any, code: int, data: bytes) -> Any:
    """Return the array of an extension, or why it has none."""
    if code not in (_NDARRAY, _SCALAR):
        return None
    shape, kind, values = msgpack.unpackb(data, max_array_len=_LONGEST_LIST)
    if not all(isinstance(n, int) and n >= 0 for n in shape) or not isinstance(values, bytes):
        msg = f"an array of shape {shape!s:.80}"
        raise ValueError(msg)
    is_half = kind == "bfloat16"
    if not is_half and not _TYPE.fullmatch(str(kind)):
        return _Refused(
            f"type {kind!s:.40}: such numbers are scaled, so they are not the weight; save it as bfloat16 or wider"
        )
    dtype = np.dtype("<u2" if is_half else kind).newbyteorder("<")
    if math.prod(shape) * dtype.itemsize != len(values):
        msg = f"an array of shape {shape!s:.80} and {kind} in {len(values)} bytes"
        raise ValueError(msg)
    flat = np.frombuffer(values, dtype)
    flat = widened(flat) if is_half else flat.astype(dtype.newbyteorder("="), copy=False)
    return flat.reshape(shape)


def _joined(stated: dict[Any, Any]) -> Any:
    """Return the array that Flax cut into parts below a gibibyte."""
    parts = [part for key in ("shape", "chunks") if isinstance(part := stated.get(key), dict)]
    if len(parts) < 2:
        msg = "an array in parts without shape or parts"
        raise ValueError(msg)
    shape, chunks = ([part[str(i)] for i in range(len(part))] for part in parts)
    sizes_known = all(isinstance(size, int) and size >= 0 for size in shape)
    if not sizes_known or not all(isinstance(chunk, np.ndarray) for chunk in chunks):
        msg = "an array in parts that do not fit"
        raise ValueError(msg)
    check_total(2 * sum(chunk.nbytes for chunk in chunks))
    return np.concatenate(chunks).reshape(shape)
