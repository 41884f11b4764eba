"""Layers out of a weight file of any kind that is known.

What a file is stands in its first bytes, whatever it is called; only ONNX, which begins with no
mark, goes by its name. Each reader checks what it can before it loads (see its module), and fails
with one line.
"""

import os
import stat
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

from numpy.lib import format as npy

from gramnorm.report.files.contents import (
    Contents,
    ReadError,
    Stored,
    check_total,
    damage_is,
    one_line,
)
from gramnorm.report.files.npz import ENTRY, read_npy, read_npz
from gramnorm.report.files.parts import folded, marked
from gramnorm.report.files.roles import understood
from gramnorm.report.files.safetensors import is_safetensors, read_safetensors
from gramnorm.report.files.sidecar import Description, described
from gramnorm.report.files.torch import is_checkpoint, read_torch
from gramnorm.report.onnx.reader import read_onnx

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # the second: a zip with nothing in it
_PICKLE = b"\x80"


def read_path(
    path: str | os.PathLike[str],
    *,
    stated: Collection[str] = (),
    layout: str | None = None,
    spatial: tuple[int, ...] | None = None,
) -> Contents:
    """
    Read the layers of a file: ``.npz``, ``.npy``, safetensors, a PyTorch checkpoint, or ``.onnx``.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    stated : collection of str
        Names of arrays that a description, which is applied later, calls layers.
    layout : str or None
        How kernels are stored, one of `gramnorm.report.layouts.LAYOUTS`; None to go by names and
        shapes.
    spatial : tuple of int or None
        Sizes for those that a graph leaves open, as in `read_onnx`.

    Returns
    -------
    Contents
        Layers, skipped entries, and layers whose values cannot be had.

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
            if path.suffix.lower() != ".onnx":
                return read_stream(stream, path.name, stated=stated, layout=layout)
            if layout is not None:
                msg = "--layout is not for a graph, which states it itself"
                raise ReadError(msg)
            return read_onnx(stream, path.parent, spatial)
    except (ReadError, OSError, ValueError) as error:  # ValueError: a null character in the name
        msg = f"cannot read {str(path)!r}: {one_line(error)}"
        raise ReadError(msg) from error


def read_stream(
    stream: IO[bytes], name: str, *, stated: Collection[str] = (), layout: str | None = None
) -> Contents:
    """
    Read the layers of an open file of any of these kinds.

    Parameters
    ----------
    stream : binary file
        Open for reading, seekable.
    name : str
        The name of the file; without its suffix that of an array which has none of its own.
    stated, layout
        As in `read_path`.

    Returns
    -------
    Contents
        Layers, skipped entries, and layers whose values cannot be had.

    Raises
    ------
    ReadError
        As in `read_path`.
    """
    head = stream.read(16)
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    check_total(size)
    stored, description = _read(stream, Path(name), head, size)
    stored = folded(stored)
    stated = {*stated, *description.geometry}
    contents = marked(understood(stored, stated=stated, layout=layout), stored)
    contents = described(contents, description, ENTRY)
    if contents.failed and not contents.layers and not contents.spare:
        msg = "; ".join(f"{key!r}: {reason}" for key, reason in list(contents.failed.items())[:3])
        raise ReadError(msg)
    if not contents.layers and all(values.ndim < 2 for values in stored.arrays.values()):
        msg = "there is no array of two or more axes in it"
        raise ReadError(msg)
    return contents


def _read(stream: IO[bytes], name: Path, head: bytes, size: int) -> tuple[Stored, Description]:
    """Choose the reader; only ``.npz`` files can say what their arrays are."""
    nothing = Description({})
    if head.startswith(_ZIP):
        with damage_is("a damaged zip file"), zipfile.ZipFile(stream) as archive:
            if is_checkpoint(archive):
                return read_torch(archive, stream, name.stem), nothing
            return read_npz(archive)
    if head.startswith(npy.MAGIC_PREFIX):
        return read_npy(stream, name.stem, size), nothing
    if is_safetensors(head, size):
        return read_safetensors(stream), nothing
    msg = "not an .npz, .npy, safetensors or PyTorch file"
    if head.startswith(_PICKLE):
        msg += (
            " (a pickle? those are never loaded; PyTorch files of before 1.6 are, too: "
            "save the state_dict again with a newer torch)"
        )
    raise ReadError(msg)
