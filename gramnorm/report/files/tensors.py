"""Arrays that stay in their file until their numbers are asked for.

A checkpoint may be larger than the memory, a tensor of it is not: reading one takes its own bytes and
a small piece of the stored ones.  It is read by its place in the file, which is not mapped: a file
that shrinks meanwhile is an error and no signal, and the limit of a process counts what is in use.
Whoever reads later, or elsewhere, must find the file of which the header was read, as its size and
the time of its last change show.

Narrow numbers are widened, exactly: a bfloat16 number is the upper half of a float32, and each of
the 256 numbers of a float8 type is one of float32.  For e exponent bits with bias B and m mantissa
bits the one with exponent E and mantissa M is (-1)^s 2^(E - B) (1 + M / 2^m), without the 1 and with
E = 1 if E is 0.
"""

import math
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from gramnorm.report.files.contents import ReadError, one_line, widened
from gramnorm.report.limits import PIECE

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class File:
    """A file as it was when its header was read."""

    path: str
    size: int
    changed: int  # nanoseconds

    @classmethod
    def of(cls, stream: IO[bytes]) -> "File | None":
        """Return the file behind an open stream, None if there is none with a path."""
        name = getattr(stream, "name", None)
        if not isinstance(name, str):
            return None
        status = os.fstat(stream.fileno())
        return cls(os.path.realpath(name), status.st_size, status.st_mtime_ns)

    def opened(self) -> IO[bytes]:
        """Open it again, or raise ReadError: what is there may be no more, or be another file."""
        try:
            stream = Path(self.path).open("rb")  # noqa: SIM115 the caller closes it
        except OSError as error:
            msg = f"cannot read {self.path!r}: {one_line(error)}"
            raise ReadError(msg) from error
        status = os.fstat(stream.fileno())
        found = status.st_size, status.st_mtime_ns
        if not stat.S_ISREG(status.st_mode) or found != (self.size, self.changed):
            stream.close()
            msg = (
                f"{self.path!r} is not the file whose header was read: it has {status.st_size} bytes and not "
                f"{self.size}, or was changed since; begin again, or copy it with its time (cp -p, rsync -t)"
            )
            raise ReadError(msg)
        return stream


@dataclass(frozen=True)
class Tensor:
    """An array in a file, of one of the types in `KINDS`."""

    file: File
    kind: str
    offset: int
    stored: tuple[int, ...]  # the axes in the order of the file
    axes: tuple[int, ...] | None = None  # in which order they are meant

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self.stored if self.axes is None else tuple(self.stored[axis] for axis in self.axes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that the numbers are read in."""
        return KINDS[self.kind].dtype

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.stored)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return math.prod(self.stored)

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: int) -> "Tensor":
        """Return the same numbers with other axes; one may be -1. Those in another order are read."""
        known = -math.prod(shape)
        whole = tuple(self.size // known if n < 0 else n for n in shape)
        if self.axes is not None or math.prod(whole) != self.size:
            msg = f"an array of shape {self.shape} in a file cannot get the shape {shape}"
            raise ValueError(msg)
        return replace(self, stored=whole)

    def transpose(self, *axes: int) -> "Tensor":
        """Return the tensor with its axes in this order."""
        before = self.axes or tuple(range(self.ndim))
        return replace(self, axes=tuple(before[axis] for axis in axes))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> _Array:
        """Read the numbers."""
        if copy is False:
            msg = "an array in a file is read into memory, which copies it"
            raise ValueError(msg)
        with self.file.opened() as stream:
            stream.seek(self.offset)
            values = read_numbers(stream, self.kind, self.stored)
        values = values if self.axes is None else values.transpose(self.axes)
        return np.asarray(values, dtype, order="C")


Numbers = _Array | Tensor
"""An array, read or not; `numpy.asarray` reads it."""


@dataclass(frozen=True)
class _Kind:
    """A type of stored numbers, and how those it is not read as are made."""

    code: str  # of the numbers as NumPy reads their bytes
    dtype: np.dtype[Any]
    made: Callable[[_Array], _Array]

    @classmethod
    def plain(cls, code: str) -> "_Kind":
        return cls(code, np.dtype(code).newbyteorder("="), lambda raw: raw)


def _table(exponent: int, mantissa: int, *, infinite: bool) -> npt.NDArray[np.float32]:
    """Return the numbers of a float8 type by their bits; without inf all ones are the only NaN."""
    bias, top = 2 ** (exponent - 1) - 1, 2**exponent - 1
    found = []
    for bits in range(128):
        e, m = divmod(bits, 2**mantissa)
        value = math.ldexp(m + 2**mantissa * (e > 0), max(e, 1) - bias - mantissa)
        if infinite and e == top:
            value = math.nan if m else math.inf
        found.append(math.nan if not infinite and bits == 127 else value)
    positive = np.asarray(found, np.float32)
    return np.concatenate([positive, -positive])


_TABLES = {"F8_E4M3": _table(4, 3, infinite=False), "F8_E5M2": _table(5, 2, infinite=True)}
_SINGLE = np.dtype(np.float32)

KINDS = {
    **{f"F{bits}": _Kind.plain(f"<f{bits // 8}") for bits in (16, 32, 64)},
    **{f"I{bits}": _Kind.plain(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": _Kind.plain(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    "C64": _Kind.plain("<c8"),
    "BOOL": _Kind("u1", np.dtype(bool), lambda raw: raw != 0),
    "BF16": _Kind("<u2", _SINGLE, widened),
    **{name: _Kind("u1", _SINGLE, table.__getitem__) for name, table in _TABLES.items()},
}
"""The types of stored numbers that can be read, by the names that safetensors give them."""


def is_scaled(values: Numbers) -> bool:
    """Say whether numbers are so narrow that a library multiplies them by a scale, if it has one."""
    return isinstance(values, Tensor) and values.kind in _TABLES


def in_memory(values: Numbers) -> int:
    """Return how many bytes an array takes before it is asked for."""
    return 0 if isinstance(values, Tensor) else values.nbytes


def read_numbers(stream: IO[bytes], kind: str, shape: Sequence[int]) -> _Array:
    """
    Read an array from where the stream is, piece by piece.

    Parameters
    ----------
    stream : binary file
        Open for reading.
    kind : str
        One of `KINDS`.
    shape : sequence of int
        Of the array, in the order of the file.

    Returns
    -------
    array
        In the machine's byte order.

    Raises
    ------
    ReadError
        If the file ends before.
    """
    known = KINDS[kind]
    values = np.empty(tuple(shape), known.dtype)
    flat = values.reshape(-1)
    width = np.dtype(known.code).itemsize
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        raw = stream.read(piece.size * width)
        if len(raw) < piece.size * width:
            msg = "the file ends in the middle of an array"
            raise ReadError(msg)
        piece[...] = known.made(np.frombuffer(raw, known.code))
    return values
