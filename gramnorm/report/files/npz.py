"""Layers out of an ``.npz`` or ``.npy`` file, without trusting the file.

An ``.npz`` file is a zip of ``.npy`` members, and a member is a header that states a dtype and a
shape, then the raw values.  So everything that memory depends on is checked before an array is
made: the total is limited, no member may need pickle, and its stated shape must need exactly the
bytes that the zip holds for it.  A member that is damaged fails alone; the text member
``__layers__`` (`gramnorm.report.files.sidecar`) fails the file.
"""

import io
import math
import sys
import warnings
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from gramnorm.report.files.contents import ReadError, Stored, check_total, damage_is
from gramnorm.report.files.sidecar import Description, parse_description

ENTRY = "__layers__"
"""The text among the arrays that describes them."""

_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


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

    def read(name: str) -> bytes:
        if members[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            msg = "compressed in a way that NumPy does not write"
            raise ReadError(msg)
        return archive.read(members[name])

    sizes = {
        name: info.file_size for name, info in members.items() if info.filename.endswith(".npy")
    }
    stored, description = _read_arrays(sizes, read)
    stored.others.update({name: "not an .npy entry" for name in members if name not in sizes})
    return stored, description


def read_npy(stream: IO[bytes], name: str, size: int) -> Stored:
    """Read the one array of an ``.npy`` file of so many bytes, which has no name of its own."""
    return _read_arrays({name: size}, lambda _: stream.read())[0]


def _read_arrays(sizes: dict[str, int], read: Callable[[str], bytes]) -> tuple[Stored, Description]:
    """Load the arrays member by member."""
    check_total(sum(sizes.values()))
    stored = Stored()
    description = Description({})
    for name, size in sizes.items():
        try:
            with damage_is("damaged"):
                values = _array(read(name), size)
        except ReadError as error:
            if name == ENTRY:
                msg = f"{ENTRY} cannot be used: {error}"
                raise ReadError(msg) from error
            stored.unusable[name] = str(error)
            continue
        if name == ENTRY:
            description = _description(values)
        elif values.dtype.kind in "fciub":
            stored.arrays[name] = values
        else:
            stored.others[name] = f"dtype {values.dtype.kind!r} is not numeric"
    return stored, description


def _array(member: bytes, size: int) -> Any:
    """Return the values of a member of so many bytes, in the machine's byte order."""
    # np.load would believe the header: it makes the array before it looks for the values, and
    # passes over bytes behind them. So only the header is left to NumPy, and held against the size.
    stream = io.BytesIO(member)
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
    values: np.ndarray[Any, np.dtype[Any]] = np.ndarray(
        shape, dtype, member, stream.tell(), order="F" if fortran_order else "C"
    )
    return np.require(values, dtype.newbyteorder("="), "A")


def _description(text: np.ndarray[Any, np.dtype[Any]]) -> Description:
    """Parse the one text that ``__layers__`` must be."""
    if text.dtype.kind != "U" or text.ndim != 0:
        msg = (
            f"{ENTRY} must be one text (a NumPy unicode scalar), "
            f"got {text.dtype} of shape {text.shape}"
        )
        raise ReadError(msg)
    with damage_is(f"{ENTRY} is not text"):  # NumPy believes the code points; a codec checks them
        content = text.tobytes().decode(f"utf-32-{sys.byteorder[0]}e")
    return parse_description(content.rstrip("\0"), ENTRY)
