"""What a reader of weight files returns, and the limit that holds for all of them."""

import contextlib
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["MAX_BYTES", "Contents", "Layer", "ReadError", "damage_is", "one_line"]

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

    @property
    def kind(self) -> str:
        """``"dense"``, or ``"conv"`` for a kernel: two channel axes, then one or more in space."""
        return "conv" if self.weight.ndim > 2 else "dense"


@dataclass(frozen=True)
class Contents:
    """What a file holds: its layers in order, by name why each other entry is not a layer, and how they are joined.

    The last is a `gramnorm.report.network.Network`, nested data for `gramnorm.network_bound`, or None for no word.
    """

    layers: list[Layer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    network: Any = None


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
