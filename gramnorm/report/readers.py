"""Layers out of a weight file, without trusting the file.

An ``.npz`` file is a zip of ``.npy`` members, and a member is a header that states a dtype and a shape, then the raw
values.  So everything that memory depends on stands in the headers, and is checked before a value is read: no member
may need pickle, its stated shape must need exactly the bytes that the zip holds for it, and the total is limited.

What a convolution does with its kernel comes from the text member ``__layers__``: a JSON object that maps array names
to keywords of `gramnorm.conv_norm_bracket`, for example ``{"conv1.weight": {"groups": 4, "input_shape": [8, 8]}}``.
An unknown name or keyword is an error, since a misspelt ``groups`` would silently bound another operator.
"""

import io
import json
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from gramnorm.report import contents as limits
from gramnorm.report.contents import Contents, Layer, ReadError, damage_is, one_line
from gramnorm.report.onnx_reader import read_onnx

__all__ = ["read_path", "read_stream"]

_ENTRY = "__layers__"
_KEYWORDS = (
    *("kind", "input_shape", "stride", "padding", "padding_mode", "dilation", "groups"),
    *("transposed", "output_padding"),
)
_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_HEADER_BYTES = 2**14  # NumPy itself refuses headers above 10 000 bytes


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    order: str
    dtype: np.dtype[Any]
    start: int  # bytes before the first value

    def reason_to_skip(self) -> str | None:
        """Return why such an array is not a layer, or None."""
        if self.dtype.kind not in "fciub":
            return f"dtype {self.dtype.kind!r} is not numeric"
        few_axes = (
            "a single number",
            "1-D: taken for a bias, which does not change a Lipschitz constant",
        )
        return few_axes[len(self.shape)] if len(self.shape) < 2 else None


def read_path(path: str | os.PathLike[str]) -> Contents:
    """
    Read the layers of an ``.npz`` or ``.onnx`` file, or of an ``.npy`` file of one array.

    Parameters
    ----------
    path : str or os.PathLike
        The file.

    Returns
    -------
    Contents
        Layers and skipped entries.

    Raises
    ------
    ReadError
        If the file is missing, unreadable, damaged, of another kind, too large, or needs pickle.
    """
    path = Path(path)
    try:
        if path.exists() and not stat.S_ISREG(
            path.stat().st_mode
        ):  # a pipe would block, a device never end
            msg = "not a regular file"
            raise ReadError(msg)
        with path.open("rb") as stream:
            if path.suffix.lower() == ".onnx":
                return read_onnx(stream)
            return read_stream(stream, path.stem)
    except (ReadError, OSError, ValueError) as error:  # ValueError: a null character in the name
        msg = f"cannot read {str(path)!r}: {one_line(error)}"
        raise ReadError(msg) from error


def read_stream(stream: IO[bytes], name: str) -> Contents:
    """
    Read the layers of an open ``.npz`` or ``.npy`` file.

    Parameters
    ----------
    stream : binary file
        Open for reading, seekable.
    name : str
        What to call the array of an ``.npy`` file, which has no name of its own.

    Returns
    -------
    Contents
        Layers and skipped entries.

    Raises
    ------
    ReadError
        As in `read_path`.
    """
    magic = stream.read(6)
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if magic[:4] in (b"PK\x03\x04", b"PK\x05\x06"):  # the second: a zip with nothing in it
        with damage_is("a damaged .npz file"), zipfile.ZipFile(stream) as archive:
            contents = _read_archive(archive)
    elif magic == npy.MAGIC_PREFIX:
        with damage_is("a damaged .npy file"):
            contents = _read_arrays({name: size}, lambda _, count: _rewound(stream).read(count))
    else:
        msg = "not an .npz or .npy file" + (
            " (a pickle? those are never loaded)" if magic[:1] == b"\x80" else ""
        )
        raise ReadError(msg)
    if not contents.layers:
        msg = "there is no array of two or more axes in it"
        raise ReadError(msg)
    return contents


def _read_archive(archive: zipfile.ZipFile) -> Contents:
    """Read the ``.npy`` members of a zip; the others are only listed."""
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if len(members) < len(archive.infolist()):
        msg = "two entries have the same name"
        raise ReadError(msg)

    def read(name: str, count: int) -> bytes:
        with archive.open(members[name]) as member:
            return member.read(count)

    arrays = {
        name: info.file_size for name, info in members.items() if info.filename.endswith(".npy")
    }
    contents = _read_arrays(arrays, read)
    others = {name: "not an .npy entry" for name in members if name not in arrays}
    return Contents(contents.layers, contents.skipped | others)


def _read_arrays(sizes: dict[str, int], read: Callable[[str, int], bytes]) -> Contents:
    """Check all headers, then load the layers; ``read(name, n)`` returns the first n bytes of a member."""
    if sum(sizes.values()) > limits.MAX_BYTES:
        msg = f"its arrays need {sum(sizes.values())} bytes, more than the limit of {limits.MAX_BYTES}"
        raise ReadError(msg)
    headers = {
        name: _header(name, size, read(name, min(size, _HEADER_BYTES)))
        for name, size in sizes.items()
    }
    skipped = {
        name: reason
        for name, h in headers.items()
        if name != _ENTRY and (reason := h.reason_to_skip())
    }
    geometry = {}
    if _ENTRY in headers:
        geometry = _geometry(_values(headers[_ENTRY], read(_ENTRY, sizes[_ENTRY])))
    layers = [
        Layer(name, _values(header, read(name, sizes[name])), geometry.pop(name, None))
        for name, header in headers.items()
        if name not in skipped and name != _ENTRY
    ]
    if geometry:
        msg = f"{_ENTRY} describes {', '.join(map(repr, geometry))}, which the file does not hold as a layer"
        raise ReadError(msg)
    for layer in layers:
        stated = {"kind": layer.kind} | (layer.geometry or {})
        if stated["kind"] != layer.kind or (layer.kind == "dense" and len(stated) > 1):
            msg = f"{_ENTRY} gives {layer.name!r} of shape {layer.weight.shape} what does not fit it: {stated}"
            raise ReadError(msg)
    return Contents(layers, skipped)


def _header(name: str, size: int, head: bytes) -> _Header:
    """Parse the header of a member of `size` bytes and hold it against that size."""
    stream = io.BytesIO(head)
    version = npy.read_magic(stream)
    if version not in _HEADER_READERS:
        msg = f"{name!r} has the unknown .npy version {version}"
        raise ReadError(msg)
    with warnings.catch_warnings(action="ignore"):  # headers written by Python 2
        shape, fortran_order, dtype = _HEADER_READERS[version](stream)
    if dtype.hasobject:
        msg = f"{name!r} holds Python objects, which need pickle: refused, nothing was loaded"
        raise ReadError(msg)
    stated = stream.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or stated != size:
        msg = f"{name!r} states shape {shape} of {dtype}, {stated} bytes, but its entry has {size}"
        raise ReadError(msg)
    return _Header(shape, "F" if fortran_order else "C", dtype, stream.tell())


def _values(header: _Header, raw: bytes) -> Any:
    """Return the values behind a header that has been checked, in the machine's byte order."""
    flat = np.frombuffer(raw, header.dtype, count=math.prod(header.shape), offset=header.start)
    native = np.require(flat, header.dtype.newbyteorder("="), "A")
    return native.reshape(header.shape, order=header.order)  # type: ignore[call-overload]


def _geometry(text: np.ndarray[Any, np.dtype[Any]]) -> dict[str, dict[str, Any]]:
    """Parse the text of ``__layers__`` into keywords per layer."""
    if text.dtype.kind != "U" or text.ndim != 0:
        msg = f"{_ENTRY} must be one text (a NumPy unicode scalar), got {text.dtype} of shape {text.shape}"
        raise ReadError(msg)
    with damage_is(f"{_ENTRY} is not JSON"):
        layers = json.loads(str(text[()]))
    if not isinstance(layers, dict) or not all(
        isinstance(entry, dict) for entry in layers.values()
    ):
        msg = f"{_ENTRY} must be a JSON object of objects"
        raise ReadError(msg)
    for name, entry in layers.items():
        if unknown := sorted(set(entry) - set(_KEYWORDS)):
            msg = f"{_ENTRY} gives {name!r} the unknown {unknown[0]!r}; known are {', '.join(_KEYWORDS)}"
            raise ReadError(msg)
    return {
        name: {key: _tuples(value) for key, value in entry.items() if value is not None}
        for name, entry in layers.items()
    }


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _rewound(stream: IO[bytes]) -> IO[bytes]:
    stream.seek(0)
    return stream
