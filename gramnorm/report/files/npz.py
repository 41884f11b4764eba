"""Layers out of an ``.npz`` or ``.npy`` file, without trusting the file.

An ``.npz`` file is a zip of ``.npy`` members, and a member is a header that states a dtype and a shape, then the raw
values.  So everything that memory depends on stands in the headers, and is checked before a value is read: no member
may need pickle, its stated shape must need exactly the bytes that the zip holds for it, and the total is limited.
A member that is damaged fails alone; the text member ``__layers__`` (`gramnorm.report.sidecar`) fails the file.
"""

import io
import math
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from gramnorm.report.files.contents import (
    ReadError,
    Stored,
    check_total,
    damage_is,
)
from gramnorm.report.files.sidecar import Description, parse_description

ENTRY = "__layers__"
"""The text among the arrays that describes them."""

_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_HEADER_BYTES = 2**14  # NumPy itself refuses headers above 10 000 bytes


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    order: str
    dtype: np.dtype[Any]
    start: int  # bytes before the first value


def read_npz(archive: zipfile.ZipFile) -> tuple[Stored, Description]:
    """
    Read the ``.npy`` members of an open zip; the others are only listed.

    Parameters
    ----------
    archive : zipfile.ZipFile
        Open for reading.

    Returns
    -------
    Stored
        Arrays, members that are damaged, and those that are no arrays.
    Description
        What ``__layers__`` states.

    Raises
    ------
    ReadError
        If names are not unique, the total is too large, or ``__layers__`` cannot be used.
    """
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if len(members) < len(archive.infolist()):
        msg = "two entries have the same name"
        raise ReadError(msg)

    def read(name: str, count: int) -> bytes:
        info = members[name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            msg = "compressed in a way that NumPy does not write"
            raise ReadError(msg)
        with archive.open(info) as member:
            return member.read(count)

    arrays = {
        name: info.file_size for name, info in members.items() if info.filename.endswith(".npy")
    }
    stored, description = _read_arrays(arrays, read)
    stored.others.update({name: "not an .npy entry" for name in members if name not in arrays})
    return stored, description


def read_npy(stream: IO[bytes], name: str, size: int) -> Stored:
    """
    Read the one array of an ``.npy`` file.

    Parameters
    ----------
    stream : binary file
        Open for reading, seekable.
    name : str
        What to call the array, which has no name of its own.
    size : int
        Bytes of the file.

    Returns
    -------
    Stored
        The array, or why there is none.
    """

    def read(_: str, count: int) -> bytes:
        stream.seek(0)
        return stream.read(count)

    return _read_arrays({name: size}, read)[0]


def _read_arrays(
    sizes: dict[str, int], read: Callable[[str, int], bytes]
) -> tuple[Stored, Description]:
    """Load the arrays member by member; ``read(name, n)`` returns the first n bytes of a member."""
    check_total(sum(sizes.values()))
    stored = Stored()
    description = Description({})
    for name, size in sizes.items():
        try:
            with damage_is("damaged"):
                header = _header(size, read(name, min(size, _HEADER_BYTES)))
                reason = None if name == ENTRY else _reason_to_skip(header)
                values: Any = None if reason else _values(header, read(name, size))
        except ReadError as error:
            if name == ENTRY:
                msg = f"{ENTRY} cannot be used: {error}"
                raise ReadError(msg) from error
            stored.unusable[name] = str(error)
            continue
        if name == ENTRY:
            description = _description(values)
        elif reason:
            stored.others[name] = reason
        else:
            stored.arrays[name] = values
    return stored, description


def _header(size: int, head: bytes) -> _Header:
    """Parse the header of a member of `size` bytes and hold it against that size."""
    stream = io.BytesIO(head)
    version = npy.read_magic(stream)
    if version not in _HEADER_READERS:
        msg = f"the unknown .npy version {version}"
        raise ReadError(msg)
    with warnings.catch_warnings(action="ignore"):  # headers written by Python 2
        shape, fortran_order, dtype = _HEADER_READERS[version](stream)
    if dtype.hasobject:
        msg = "it holds Python objects, which need pickle: refused, nothing was loaded"
        raise ReadError(msg)
    stated = stream.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or stated != size:
        msg = f"it states shape {shape} of {dtype}, {stated} bytes, but its entry has {size}"
        raise ReadError(msg)
    return _Header(shape, "F" if fortran_order else "C", dtype, stream.tell())


def _reason_to_skip(header: _Header) -> str | None:
    """Return why such an array holds no numbers, or None."""
    return None if header.dtype.kind in "fciub" else f"dtype {header.dtype.kind!r} is not numeric"


def _values(header: _Header, raw: bytes) -> Any:
    """Return the values behind a header that has been checked, in the machine's byte order."""
    flat = np.frombuffer(raw, header.dtype, count=math.prod(header.shape), offset=header.start)
    native = np.require(flat, header.dtype.newbyteorder("="), "A")
    return native.reshape(header.shape, order=header.order)  # type: ignore[call-overload]


def _description(text: np.ndarray[Any, np.dtype[Any]]) -> Description:
    """Parse the one text that ``__layers__`` must be."""
    if text.dtype.kind != "U" or text.ndim != 0:
        msg = f"{ENTRY} must be one text (a NumPy unicode scalar), got {text.dtype} of shape {text.shape}"
        raise ReadError(msg)
    with damage_is(f"{ENTRY} is not text"):  # NumPy believes the code points; a codec checks them
        content = text.tobytes().decode(f"utf-32-{sys.byteorder[0]}e")
    return parse_description(content.rstrip("\0"), ENTRY)
