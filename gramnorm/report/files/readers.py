"""Layers out of a weight file of any kind that is known.

What a file is stands in its first bytes, whatever it is called; only ONNX, which begins with no
mark, goes by its name. Each reader checks what it can before it loads (see its module), and fails
with one line.
"""

import contextlib
import os
import stat
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from numpy.lib import format as npy

from gramnorm.report.files.contents import (
    Contents,
    NoLayersError,
    ReadError,
    Stored,
    check_total,
    damage_is,
    one_line,
)
from gramnorm.report.files.hdf5 import MAGIC
from gramnorm.report.files.keras import is_keras, read_h5, read_keras
from gramnorm.report.files.msgpack import is_msgpack, read_msgpack
from gramnorm.report.files.npz import ENTRY, read_npy, read_npz
from gramnorm.report.files.obstacles import SCALED
from gramnorm.report.files.parts import folded, marked
from gramnorm.report.files.roles import understood
from gramnorm.report.files.safetensors import is_safetensors, read_safetensors
from gramnorm.report.files.sidecar import Description, described
from gramnorm.report.files.tensors import is_scaled
from gramnorm.report.files.torch import is_checkpoint, read_torch
from gramnorm.report.onnx.reader import read_onnx

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # the second: a zip with nothing in it
_PICKLE = b"\x80"


def read_path(
    path: str | os.PathLike[str],
    *,
    stated: Collection[str] = (),
    layout: str | None = None,
    entry: str | None = None,
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
    entry : str or None
        Which of several dicts to read: its keys with dots between, or "." for all of them.
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
    with opened(path) as stream:
        if path.suffix.lower() != ".onnx":
            return read_stream(stream, path.name, stated=stated, layout=layout, entry=entry)
        for option, value in (("--layout", layout), ("--entry", entry)):
            if value is not None:
                msg = f"{option} is not for a graph, which states what its weights are"
                raise ReadError(msg)
        return read_onnx(stream, path.parent, spatial)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file; let what goes wrong with it name it."""
    try:
        if path.exists() and not stat.S_ISREG(
            path.stat().st_mode
        ):  # a pipe would block, a device never end
            msg = "not a regular file"
            raise ReadError(msg)
        with path.open("rb") as stream:
            yield stream
    except (ReadError, OSError, ValueError) as error:  # ValueError: a null character in the name
        kind = type(error) if isinstance(error, ReadError) else ReadError
        msg = f"cannot read {str(path)!r}: {one_line(error)}"
        raise kind(msg) from error


def read_stream(
    stream: IO[bytes],
    name: str,
    *,
    stated: Collection[str] = (),
    layout: str | None = None,
    entry: str | None = None,
) -> Contents:
    """
    Read the layers of an open file of any of these kinds.

    Parameters
    ----------
    stream : binary file
        Open for reading, seekable.
    name : str
        The name of the file; without its suffix that of an array which has none of its own.
    stated, layout, entry
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
    stored, description = stored_in(stream, Path(name), entry)
    return contents_of(stored, description, stated=stated, layout=layout)


def stored_in(stream: IO[bytes], name: Path, entry: str | None) -> tuple[Stored, Description]:
    """Return the entries of an open file, and what the format says of them."""
    head = stream.read(16)
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return _read(stream, name, head, size, entry)


def contents_of(
    stored: Stored, description: Description, *, stated: Collection[str], layout: str | None
) -> Contents:
    """Decide what each entry of a network is."""
    stored = folded(stored)
    stated = {*stated, *description.geometry}
    contents = marked(understood(stored, stated=stated, layout=layout), stored)
    where = "the description of the model" if description.by_keras else ENTRY
    contents = described(contents, description, where)
    narrow = [layer.name for layer in contents.layers if is_scaled(layer.weight)]
    contents.obstacles.update(dict.fromkeys(narrow, SCALED))
    if contents.failed and not contents.layers and not contents.spare:
        msg = "; ".join(f"{key!r}: {reason}" for key, reason in list(contents.failed.items())[:3])
        raise ReadError(msg)
    if not contents.layers and all(values.ndim < 2 for values in stored.arrays.values()):
        msg = "there is no array of two or more axes in it"
        raise NoLayersError(msg)
    return contents


def _read(
    stream: IO[bytes], name: Path, head: bytes, size: int, entry: str | None
) -> tuple[Stored, Description]:
    """Choose the reader; some formats can say what their arrays are."""
    nothing = Description({})
    if is_safetensors(head, size):  # of which the tensors stay in the file
        _refuse_entry(entry)
        return read_safetensors(stream, size), nothing
    check_total(size)
    if head.startswith(_ZIP):
        with damage_is("a damaged zip file"), zipfile.ZipFile(stream) as archive:
            if is_checkpoint(archive):
                return read_torch(archive, stream, name.stem, entry=entry), nothing
            _refuse_entry(entry)
            return read_keras(archive) if is_keras(archive) else read_npz(archive)
    if is_msgpack(head) or name.suffix == ".msgpack":
        return read_msgpack(stream, entry=entry), nothing
    _refuse_entry(entry)
    if head.startswith(MAGIC):
        return read_h5(stream)
    if head.startswith(npy.MAGIC_PREFIX):
        return read_npy(stream, name.stem, size), nothing
    msg = "not an .npz, .npy, safetensors, PyTorch, Keras, HDF5 or msgpack file"
    if head.startswith(_PICKLE):
        msg += (
            " (a pickle? those are never loaded; PyTorch files of before 1.6 are, too: "
            "save the state_dict again with a newer torch)"
        )
    raise ReadError(msg)


def _refuse_entry(entry: str | None) -> None:
    if entry is not None:
        msg = "--entry chooses among nested dicts, and this file has none: choose names with --include"
        raise ReadError(msg)
