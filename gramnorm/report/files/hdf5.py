"""Arrays out of an HDF5 file.

The library that reads them runs in another process (`gramnorm.report.files.hdf5_process` says why).
What that hands over is checked like a file: a list of types and shapes, which need exactly the
bytes that follow.
"""

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from gramnorm import _validate
from gramnorm.report import limits
from gramnorm.report.files.contents import ReadError, check_total, damage_is, widened

MAGIC = b"\x89HDF\r\n\x1a\n"
"""The first bytes of such a file."""

_DAMAGED = "a damaged HDF5 file"
_TYPE = re.compile(r"[<|][fciub]\d+")
_PROCESS = Path(__file__).with_name("hdf5_process.py")


@dataclass(frozen=True)
class Tree:
    """What an HDF5 file holds, by path."""

    arrays: dict[str, np.ndarray[Any, np.dtype[Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # why numbers are not read
    others: dict[str, str] = field(default_factory=dict)  # no arrays of numbers
    texts: dict[str, dict[str, str]] = field(default_factory=dict)  # attributes


def read_tree(stream: IO[bytes]) -> Tree:
    """
    Read the arrays of an HDF5 file, and the attributes that say what they are.

    Parameters
    ----------
    stream : binary file
        Open for reading, at its beginning.

    Returns
    -------
    Tree
        Arrays in the order of their paths.

    Raises
    ------
    ReadError
        If the file is damaged, too large or too deep, or h5py is missing.
    """
    if importlib.util.find_spec("h5py") is None:
        msg = f"HDF5 files, and those of Keras, need the package h5py: {_validate.install('hdf5')}"
        raise ReadError(msg)
    most = {
        "bytes": limits.MAX_BYTES,
        "memory": limits.MAX_BYTES + limits.LIBRARY_BYTES,
        "seconds": limits.HDF5_SECONDS,
        "depth": limits.MAX_DEPTH,
        "visits": limits.MAX_VISITS,
        "text": limits.DESCRIPTION_BYTES,
    }
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as result:
        shutil.copyfileobj(stream, given)
        given.seek(0)
        command = [sys.executable, "-P", str(_PROCESS), json.dumps(most)]
        try:
            ended = subprocess.run(
                command,
                stdin=given,
                stdout=result,
                stderr=subprocess.PIPE,
                timeout=10 * limits.HDF5_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            msg = f"{_DAMAGED} (reading it does not end)"
            raise ReadError(msg) from error
        if ended.returncode:
            last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:]
            reason = last[0][:200] if ended.returncode == 1 and last else "reading it failed"
            msg = f"{_DAMAGED} ({reason})"
            raise ReadError(msg)
        result.seek(0)
        with damage_is(_DAMAGED):
            return _tree(result.read())


def _tree(content: bytes) -> Tree:
    """Return what the other process handed over."""
    line, _, values = content.partition(b"\n")
    found = json.loads(line)
    if found["error"]:
        raise ReadError(found["error"])
    tree = Tree(
        failed=dict(found["failed"]), others=dict(found["others"]), texts=dict(found["texts"])
    )
    place = total = 0
    for path, dtype, shape in found["arrays"]:
        if not _TYPE.fullmatch(dtype):
            msg = f"the type {dtype!r}"
            raise ValueError(msg)
        count = math.prod(shape)
        flat = np.frombuffer(values, dtype, count, place)
        place += flat.nbytes
        if tree.texts.get(path, {}).get("dtype") == "bfloat16" and dtype == "<u2":
            flat = widened(flat)
        flat = flat.astype(flat.dtype.newbyteorder("="), copy=False)
        tree.arrays[path] = flat.reshape(shape)
        total += tree.arrays[path].nbytes  # of bfloat16 twice what the file has
        check_total(total)
    if place != len(values):
        msg = f"{len(values)} bytes of values, but {place} are stated"
        raise ValueError(msg)
    return tree
