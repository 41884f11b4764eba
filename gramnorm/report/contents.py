"""What a reader of weight files returns, and the limit that holds for all of them.

An entry of a file is one of three: a layer; skipped, since it is none; or failed, a layer whose values cannot be had.
A failed layer is as much a hole in the product as one that cannot be bounded, so the difference is never lost.
"""

import contextlib
import fnmatch
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

__all__ = [
    "MAX_BYTES",
    "Contents",
    "Layer",
    "ReadError",
    "Stored",
    "check_total",
    "damage_is",
    "few_axes",
    "one_line",
    "printable",
    "selected",
]

MAX_BYTES = 4 * 2**30
"""Of all arrays, unpacked: a few megabytes of a file can state terabytes."""

# What damaged bytes raise, found by truncating and flipping (tests/test_report.py).
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError)
_DAMAGED_HEADER = (SyntaxError, tokenize.TokenError, TypeError, ValueError, OverflowError, KeyError)
_NOT_SUPPORTED = (NotImplementedError, RuntimeError, RecursionError)  # encryption, deep nesting
_DAMAGE = (*_DAMAGED_ZIP, *_DAMAGED_HEADER, *_NOT_SUPPORTED)


class ReadError(Exception):
    """A file that cannot be reported on; its text is one line for the user."""


@dataclass(frozen=True)
class Layer:
    """A weight array of two or more axes, and what the file says about its use (`geometry` None: nothing)."""

    name: str
    weight: np.ndarray[Any, np.dtype[Any]]
    geometry: dict[str, Any] | None = None
    word: str | None = None  # how the weight was folded, if its parts are stored
    error: float = 0.0  # the most that it is off by then, in the Frobenius norm

    @property
    def kind(self) -> str:
        """``"dense"``, or ``"conv"`` for a kernel: two channel axes, then one or more in space."""
        return "conv" if self.weight.ndim > 2 else "dense"


@dataclass(frozen=True)
class Stored:
    """What a reader finds, in the file's order, before anything is decided: an entry is in one of three."""

    arrays: dict[str, np.ndarray[Any, np.dtype[Any]]] = field(default_factory=dict)  # of any axes
    unusable: dict[str, str] = field(default_factory=dict)  # arrays whose numbers cannot be had
    others: dict[str, str] = field(default_factory=dict)  # no arrays of numbers
    notes: list[str] = field(default_factory=list)  # what was decided for the user
    words: dict[str, str] = field(default_factory=dict)  # how an array was made of stored parts
    errors: dict[str, float] = field(
        default_factory=dict
    )  # its Frobenius distance from the exact one


@dataclass(frozen=True)
class Contents:
    """What a file holds: its layers in order, by name why each other entry is not among them, and how they are joined.

    The last is a `gramnorm.report.network.Network`, nested data for `gramnorm.network_bound`, or None for no word.
    """

    layers: list[Layer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # no layers
    failed: dict[str, str] = field(default_factory=dict)  # layers without values
    notes: list[str] = field(default_factory=list)  # what was decided for the user
    network: Any = None


def few_axes(name: str, axes: int) -> str | None:
    """Return why an array of so few axes is skipped, or None if it is a layer."""
    if axes > 1:
        return None
    if axes == 0:
        return "a single number"
    if name.rpartition(".")[2].lower().endswith("bias"):
        return "1-D: taken for a bias, which does not change a Lipschitz constant"
    return "1-D: a bias, or a scale (of a normalisation, say), which the product leaves out"


def check_total(size: int) -> None:
    """Refuse a file whose arrays need more bytes, unpacked, than the limit."""
    if size > MAX_BYTES:
        msg = f"its arrays need {size} bytes, more than the limit of {MAX_BYTES}"
        raise ReadError(msg)


def selected(
    contents: Contents, include: Sequence[str] | None, exclude: Sequence[str] | None
) -> Contents:
    """Return the contents with only those layers whose names match a pattern to include, and none to exclude."""

    def chosen(name: str) -> bool:
        wanted, unwanted = ["*"] if include is None else include, exclude or ()
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted) and not any(
            fnmatch.fnmatchcase(name, pattern) for pattern in unwanted
        )

    layers = [layer for layer in contents.layers if chosen(layer.name)]
    failed = {name: reason for name, reason in contents.failed.items() if chosen(name)}
    if not layers and not failed:
        msg = "--include and --exclude leave no layer"
        raise ReadError(msg)
    names = [*(layer.name for layer in contents.layers), *contents.failed]
    others = {name: "left out by --include or --exclude" for name in names if not chosen(name)}
    return replace(contents, layers=layers, skipped=contents.skipped | others, failed=failed)


def printable(text: str) -> str:
    """Return `text` with control characters escaped: names in a file must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """Return the text of an error without line breaks, and without the path that an OSError adds."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


@contextlib.contextmanager
def damage_is(what: str) -> Iterator[None]:
    """Turn whatever damaged bytes raise into a ReadError that says what they were taken for."""
    try:
        yield
    except _DAMAGE as error:
        msg = f"{what} ({one_line(error)})"
        raise ReadError(msg) from error
