"""Constants that are computed of others: rounded once, or not at all.

Floating numbers by operations that IEEE 754 defines to the last bit, of two arrays or one; whole
numbers, which are sizes, exactly.  Sizes with names stay what they are: times 1, plus 0, compared
with themselves or with a negative number.
"""

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm.report.onnx.nodes import Node, Values, axis_from_front, require

FEW = 64
"""Entries of a shape that is put together in the graph, which are computed one by one."""

_GROWN = 2**14  # entries up to which a constant may grow: a grid of 128 x 128 places

_LARGEST_POWER = 64


def limited(size: int, *values: Values) -> None:
    """Refuse a constant that is larger than what it is made of."""
    require(size <= max([_GROWN, *(v.size for v in values)]), "a constant that grows")


def joined(node: Node, *values: Values) -> Values | None:
    """Return a sum, a product or the like of two, or a function of one."""
    require(len(values) <= 2 and not node.attributes.get("fmod"), "more than two, or of C")
    size = math.prod(np.broadcast_shapes(*(v.shape for v in values)))
    limited(size, *values)
    if all(v.dtype.kind == "f" for v in values):
        same = len({v.dtype for v in values}) == 1 and values[0].dtype.itemsize >= 4
        require(same and node.op in ROUNDED, "types that differ, or that runtimes widen")
        with np.errstate(all="ignore"):
            return np.asarray(ROUNDED[node.op](*values))
    integers = size <= FEW and all(v.dtype in ("i4", "i8", "O") for v in values)
    if not integers or node.op not in EXACT:
        return None
    return _by_entries(EXACT[node.op], *values)


def _by_entries(function: Callable[..., Any], *values: Values) -> Values | None:
    """Return a function of whole numbers and names of sizes, entry by entry."""
    rows = np.broadcast_arrays(*(v.astype(object) for v in values))
    found = [function(*entries) for entries in zip(*map(np.ravel, rows), strict=True)]
    numbers = [n for n in found if isinstance(n, int)]
    inside = all(abs(n) < 2**31 for n in numbers)  # in either type
    shape = rows[0].shape
    return np.asarray([*found, None], dtype=object)[:-1].reshape(shape) if inside else None


def _named(function: Callable[..., int], unit: int | None = None) -> Callable[..., Any]:
    """Return a function of whole numbers with names: unknown, unless the second is a unit."""

    def applied(a: Any, b: Any = unit) -> Any:
        if isinstance(a, int) and isinstance(b, int):
            return function(a, b)
        return a if b == unit and unit is not None else None

    return applied


def _quotient(a: int, b: int) -> int:
    """Return the quotient rounded towards zero."""
    require(b != 0, "it divides by zero")
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: int, b: int) -> int:
    """Return the remainder with the sign of the divisor."""
    require(b != 0, "it divides by zero")
    return a % b


ROUNDED: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Sqrt": np.sqrt,
    "Reciprocal": lambda x: np.divide(x.dtype.type(1), x),
    "Neg": np.negative,
    "Abs": np.abs,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Max": np.maximum,
    "Min": np.minimum,
}
EXACT: dict[str, Callable[..., Any]] = {
    "Add": _named(operator.add, 0),
    "Sub": _named(operator.sub, 0),
    "Mul": _named(operator.mul, 1),
    "Div": _named(_quotient, 1),
    "Max": _named(max),
    "Min": _named(min),
    "Mod": _named(_remainder),
}


def power(_: Node, base: Values, exponent: Values) -> Values | None:
    """Return a small whole power, if it needs no rounding."""
    p = exponent.item() if exponent.size == 1 and exponent.dtype.kind in "fiu" else -1
    if base.size > FEW or base.dtype.kind != "f" or p not in range(_LARGEST_POWER):
        return None
    require(exponent.ndim <= base.ndim and bool(np.all(np.isfinite(base))), "its base")
    exact = [Fraction(v) ** int(p) for v in np.ravel(base).tolist()]
    with np.errstate(all="ignore"):
        made = np.asarray([float(v) for v in exact]).astype(base.dtype)
    fits = bool(np.all(np.isfinite(made))) and list(map(Fraction, made.tolist())) == exact
    return made.reshape(base.shape) if fits else None


def compared(node: Node, a: Values, b: Values) -> Values | None:
    """Return what a comparison says; a size with a name is itself, and not negative."""
    limited(math.prod(np.broadcast_shapes(a.shape, b.shape)), a, b)
    if "O" not in (a.dtype.kind, b.dtype.kind):
        require(a.dtype == b.dtype, "types that differ")
        return np.asarray(COMPARED[node.op](a, b))
    require(node.op == "Equal", "names of sizes")
    made = _by_entries(_equal, a, b)
    return None if made is None else made.astype(bool)


def _equal(a: Any, b: Any) -> int:
    """Compare numbers and names, if it is certain."""
    numbers = [n for n in (a, b) if isinstance(n, int)]
    certain = a == b or len(numbers) == 2 or min(numbers, default=0) < 0
    require(None not in (a, b) and certain, "names of sizes")
    return int(a == b)


COMPARED: dict[str, Callable[..., Any]] = {
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
    "And": np.logical_and,
    "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal,
    "Or": np.logical_or,
}


def where(_: Node, condition: Values, a: Values, b: Values) -> Values:
    """Return the entries of one where a condition holds, of the other elsewhere."""
    require(condition.dtype.kind == "b", "its condition")
    mixed = "O" in (a.dtype.kind, b.dtype.kind)
    require(mixed or a.dtype == b.dtype, "types that differ")
    limited(math.prod(np.broadcast_shapes(condition.shape, a.shape, b.shape)), condition, a, b)
    if not mixed:
        return np.where(condition, a, b)
    return np.where(condition, a.astype(object), b.astype(object))


def dequantised(node: Node, q: Values, scale: Values, zero: Values | None = None) -> Values | None:
    """Return (q - zero point) scale of one scale, or of one for each index along an axis."""
    plain = not node.attributes.get("block_size") and not node.attributes.get("output_dtype")
    numbers = q.dtype.kind in "iu" and scale.dtype == np.float32 and scale.ndim <= 1
    zero = np.zeros(scale.shape, q.dtype) if zero is None else zero
    if not (plain and numbers and zero.dtype == q.dtype and zero.shape == scale.shape):
        return None
    shape = [1] * q.ndim
    if scale.size > 1:
        shape[axis_from_front(node.attributes.get("axis", 1), q.ndim)] = scale.size
    fits = np.broadcast_shapes(tuple(shape), q.shape) == q.shape
    require(fits and scale.size > 0, "scales that do not fit")
    wide = np.int32 if q.dtype.itemsize <= 2 else np.int64
    difference = np.subtract(q, zero.reshape(shape), dtype=wide)
    exact = q.dtype.itemsize <= 2 or bool(np.all(np.abs(difference) <= 2**24))
    return difference.astype(np.float32) * scale.reshape(shape) if exact else None
