"""What a reader of weight files returns, and the limit that holds for all of them.

An entry of a file is one of three: a layer; skipped, since it is none; or failed, a layer whose
values cannot be had. A failed layer is as much a hole in the product as one that cannot be bounded,
so the difference is never lost.
"""

import contextlib
import fnmatch
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gramnorm.report import limits

if TYPE_CHECKING:
    from gramnorm.report.files.tensors import Numbers

MAX_BYTES = limits.MAX_BYTES

# What damaged bytes raise, found by truncating and flipping (tests/report/test_report.py).
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError)
_DAMAGED_HEADER = (SyntaxError, tokenize.TokenError, TypeError, ValueError, OverflowError, KeyError)
_NOT_SUPPORTED = (NotImplementedError, RuntimeError, RecursionError)  # encryption, deep nesting
_DAMAGE = (*_DAMAGED_ZIP, *_DAMAGED_HEADER, *_NOT_SUPPORTED)


class ReadError(Exception):
    """A file that cannot be reported on; its text is one line for the user."""


class NoLayersError(ReadError):
    """A file that is sound, and holds no layer."""


@dataclass(frozen=True)
class Layer:
    """A weight array, and what is said about its use (`geometry` None: nothing)."""

    name: str
    weight: "Numbers"  # of a kernel: (c_out, c_in / groups, *spatial)
    geometry: dict[str, Any] | None = None
    variance: "Numbers | None" = None  # of a batch norm, `weight` its scale
    groups: int = 1  # as the name and the shape say, unless the geometry does
    stored_shape: tuple[int, ...] | None = None  # None: that of the weight
    layout: str = "oihw"  # how the kernel is stored
    forced: bool = False  # by --include, not by what it is
    word: str | None = None  # how the weight was folded, if its parts are stored
    error: float = 0.0  # the most that it is off by then, in the Frobenius norm

    @property
    def kind(self) -> str:
        """``"batch norm"``, ``"dense"``, or ``"conv"`` for a kernel.

        Two channel axes, then one or more in space.
        """
        if self.variance is not None:
            return "batch norm"
        return "conv" if self.weight.ndim > 2 else "dense"

    @property
    def assumed(self) -> bool:
        """Whether the norm depends on what nobody said: stride, dilation, groups."""
        if self.kind != "conv" or self.geometry is not None:
            return False
        # known, or the only possibility: Keras' depthwise kernels may be called like any other
        one_group = self.groups > 1 or (self.weight.shape[0] == 1 and self.layout != "hwio")
        return not (one_group and math.prod(self.weight.shape[2:]) == 1)


@dataclass(frozen=True)
class Stored:
    """What a reader finds, in the file's order, before anything is decided.

    An entry is in one of three.
    """

    arrays: "dict[str, Numbers]" = field(default_factory=dict)  # of any axes
    unusable: dict[str, str] = field(default_factory=dict)  # arrays whose numbers cannot be had
    others: dict[str, str] = field(default_factory=dict)  # no arrays of numbers
    notes: list[str] = field(default_factory=list)  # what was decided for the user
    layout: str | None = None  # of kernels, if the format says it: one of `layouts.LAYOUTS`
    # how an array was made of stored parts, and its Frobenius distance from the exact one
    folds: dict[str, tuple[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Its layers in order, by name why each other entry is not among them, and how they are joined.

    The last is a `gramnorm.report.network.Network`, nested data for `gramnorm.network_bound`, or
    None for no word. What stands among the obstacles leaves the network without a product of norms:
    arrays that are not understood, and arrays, layers among them, whose names show that the layers
    are no chain.
    """

    layers: list[Layer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # no layers
    failed: dict[str, str] = field(default_factory=dict)  # layers without values
    notes: list[str] = field(default_factory=list)  # what was decided for the user
    network: Any = None
    obstacles: dict[str, str] = field(default_factory=dict)  # why there is no product
    spare: list[Layer] = field(default_factory=list)  # among the obstacles: rows if asked for
    sized: bool = False  # the sizes of the network were chosen by the caller


def check_total(size: int) -> None:
    """Refuse a file whose arrays need more bytes, unpacked and all at once, than the limit."""
    if size > MAX_BYTES:
        msg = (
            f"its arrays need {size} bytes, more than the limit of {MAX_BYTES}; tensors of safetensors are read one "
            "at a time, from files of any size"
        )
        raise ReadError(msg)


def selected(
    contents: Contents, include: Sequence[str] | None, exclude: Sequence[str] | None
) -> Contents:
    """Return the contents with the entries whose names match what to include, not what to exclude.

    Parameters
    ----------
    contents : Contents
        What a file holds.
    include : sequence of str or None
        Patterns; arrays that are not understood become layers if they match. None for every layer,
        and no more.
    exclude : sequence of str or None
        Patterns.

    Returns
    -------
    Contents
        What was chosen; the rest is skipped.
    """

    def chosen(name: str) -> bool:
        wanted, unwanted = ["*"] if include is None else include, exclude or ()
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted) and not any(
            fnmatch.fnmatchcase(name, pattern) for pattern in unwanted
        )

    forced = [replace(layer, forced=True) for layer in contents.spare if include is not None]
    layers = [layer for layer in (*contents.layers, *forced) if chosen(layer.name)]
    failed = {name: reason for name, reason in contents.failed.items() if chosen(name)}
    obstacles = {name: reason for name, reason in contents.obstacles.items() if chosen(name)}
    if not layers and not failed:
        raise ReadError(_nothing_left(contents, chosen_at_all=include is None and exclude is None))
    names = [*(layer.name for layer in contents.layers), *contents.failed, *contents.obstacles]
    others = {name: "left out by --include or --exclude" for name in names if not chosen(name)}
    skipped = contents.skipped | others
    return replace(contents, layers=layers, skipped=skipped, failed=failed, obstacles=obstacles)


def _nothing_left(contents: Contents, *, chosen_at_all: bool) -> str:
    """Return why there is no row."""
    if not chosen_at_all:
        return "--include and --exclude leave no layer"
    names = ", ".join(repr(name) for name in list(contents.obstacles)[:4])
    return (
        f"nothing in it is recognised as the weight of a layer, of {names}{', ...' * (len(contents.obstacles) > 4)}: "
        "--include takes what you name for one, --layers says what it is"
    )


def widened(halves: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return bfloat16 numbers by their bits.

    Each is the upper half of a float32, which holds it exactly.
    """
    return (halves.astype(np.uint32) << 16).view(np.float32)


def printable(text: str) -> str:
    """Return `text` with control characters escaped.

    Names in a file must not steer the terminal.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """Return the text of an error without line breaks or the path that an OSError adds."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


@contextlib.contextmanager
def damage_is(what: str) -> Iterator[None]:
    """Turn whatever damaged bytes raise into a ReadError that says what they were taken for."""
    try:
        yield
    except _DAMAGE as error:
        msg = f"{what} ({one_line(error)})"
        raise ReadError(msg) from error
