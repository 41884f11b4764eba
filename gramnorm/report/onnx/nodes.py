"""What the rules for nodes of an ONNX graph speak about: nodes, what they do, attributes, shapes.

A dimension is a number, the name of one, or None if nothing is known; two dimensions of one name
are equal.  What windows make of a named size has a name as well, such as ⌊(h+1)/2⌋.  Shapes are
computed with these, and where a result would need more than is known, there is none or a
`NotUnderstoodError`.

Shapes are not left to ``onnx.shape_inference``, which trusts the file too far.  A file ends the
process: in 1.17 by a stride of 0 or an array shorter than its shape, in 1.23 by a Slice with the
step -2**63.  Sizes are wrong: in 1.17 beyond 64 bits (Flatten, Pad), in 1.23 of pooling with
ceil_mode and of ConvTranspose with auto_pad.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm.network._sequence import Part

Dim = int | str | None
Shape = tuple[Dim, ...] | None
Values = np.ndarray[Any, np.dtype[Any]]


class NotUnderstoodError(Exception):
    """Why a node has no rule."""


def require(holds: Any, otherwise: str, error: type[Exception] = NotUnderstoodError) -> None:
    """Raise an error with that text unless a condition holds."""
    if not holds:
        raise error(otherwise)


@dataclass(frozen=True)
class Fixed:
    """A tensor that does not depend on the graph's inputs.

    Its value is None where it is not known (`reason`: why), and may hold names of dimensions;
    `source` is the stored array of which it was made, `word` how, if its entries changed.
    """

    name: str
    value: Values | None = None
    source: str = ""
    dims: Shape = None  # the shape, where that is known without the value
    short: bool = False  # of bfloat16, which the value holds in a wider type
    word: str | None = None
    reason: str = ""

    @property
    def shape(self) -> Shape:
        """The shape, None where it is not known."""
        return self.dims if self.value is None else self.value.shape


@dataclass(frozen=True)
class Form:
    """Entries scale g(u) + shift, where u is a polynomial in the entries of a tensor `source`.

    The coefficients `inner` begin with the constant one, g is an operator (none: the identity), and
    `ends` are those of a Clip.
    """

    source: str
    shape: Shape
    inner: tuple[Fraction, ...]
    kind: str = ""
    scale: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)
    ends: tuple[Fraction, ...] = ()


@dataclass(frozen=True)
class Varying:
    """A tensor that depends on the graph's inputs; `stopped` says why its constant is not known.

    The `forms` say what it is, entry by entry, of tensors before it.
    """

    name: str
    shape: Shape = None
    stopped: str | None = None
    forms: tuple[Form, ...] = ()


@dataclass(frozen=True)
class Node:
    """One node: attributes, inputs (None: left out), how many outputs, its operator's version."""

    op: str
    attributes: dict[str, Any]
    inputs: tuple[Fixed | Varying | None, ...]
    outputs: int = 1
    version: int = 1

    def input(self, position: int) -> Fixed | Varying | None:
        """Return an input, None if it is left out."""
        return self.inputs[position] if position < len(self.inputs) else None

    def varying(self, position: int) -> Varying:
        """Return an input that must depend on the graph's inputs."""
        x = self.input(position)
        if not isinstance(x, Varying):
            msg = f"its input {position} is constant or missing"
            raise NotUnderstoodError(msg)
        return x

    def fixed(self, position: int) -> Values | None:
        """Return the value of an input that must be constant, None if it is left out."""
        x = self.input(position)
        if x is None:
            return None
        if isinstance(x, Varying) or x.value is None:
            reason = x.reason if isinstance(x, Fixed) else ""
            msg = reason or f"its input {position} ({x.name!r}) is computed in the graph"
            raise NotUnderstoodError(msg)
        return x.value

    def only_varying(self) -> Varying:
        """Return the first input, if it depends on the graph's inputs and no other one does."""
        first = self.varying(0)
        for position, x in enumerate(self.inputs[1:], 1):
            if isinstance(x, Varying):
                msg = f"its input {position} ({x.name!r}) depends on the graph's inputs"
                raise NotUnderstoodError(msg)
        return first

    def all_varying(self) -> dict[int, Varying]:
        """Return the inputs that depend on the graph's inputs, by position."""
        return {i: x for i, x in enumerate(self.inputs) if isinstance(x, Varying)}

    def shapes(self) -> list[Shape]:
        """Return the shapes of the inputs that are there, the varying ones first."""
        fixed = [x.shape for x in self.inputs if isinstance(x, Fixed)]
        return [*(x.shape for x in self.all_varying().values()), *fixed]

    def number(self, name: str, default: float) -> float:
        """Return an attribute that must be a finite number."""
        value = self.attributes.get(name, default)
        require(isinstance(value, int | float) and math.isfinite(value), f"{name} is {value!r}")
        return float(value)

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return an attribute: integers as many as in its default, which an empty one takes."""
        value = tuple(self.attributes.get(name, default))
        require(len(value) in (len(default), 0), f"{name} is {value!r}")
        return value or default

    def indices(self, name: str, position: int, default: list[Dim] | None) -> list[Dim] | None:
        """Return integers from an attribute or an input, None if they are not known.

        What is left out is the default, which is not the same: a constant may be computed by
        operators that are not folded.
        """
        if name in self.attributes:
            return list(self.attributes[name])
        x = self.input(position)
        if x is None:
            return default
        if not isinstance(x, Fixed) or x.value is None or x.value.ndim > 1:
            return None
        return [n if isinstance(n, str) or n is None else int(n) for n in np.ravel(x.value)]


@dataclass(frozen=True)
class Effect:
    """What a node does: a factor per varying input, its outputs' shapes, its layer if it has one.

    A layer is the name of a stored array, the weight, its geometry, and how it was made, if the
    graph computes it.  The `part` is what the node is within a chain, if it may stand in one.
    """

    factors: dict[int, float]
    shapes: tuple[Shape, ...]
    stacked: bool = False
    layer: tuple[str, Values, dict[str, Any] | None, str | None] | None = None
    part: Part | None = None


def axis_from_front(axis: Any, rank: int) -> int:
    """Return an axis counted from the front."""
    require(isinstance(axis, int) and -rank <= axis < rank, f"axis {axis!r} of {rank}")
    return int(axis % rank)


def axes_from_front(axes: Sequence[Any], rank: int) -> list[int]:
    """Return axes counted from the front, which must differ."""
    found = [axis_from_front(axis, rank) for axis in axes]
    require(len(set(found)) == len(found), f"axes {found!r}")
    return found


def readable(value: Any) -> str:
    """Return an attribute for people; texts in it are bytes."""
    return repr(value.decode(errors="replace") if isinstance(value, bytes) else value)


def shape_text(shape: Shape) -> str:
    """Return a shape for people."""
    if shape is None:
        return "(unknown)"
    return f"({', '.join('?' if n is None else str(n) for n in shape)})"


def are_numbers(dims: Sequence[Dim]) -> bool:
    """Say whether all dimensions are known numbers."""
    return all(isinstance(n, int) for n in dims)


def numbers_times(dims: Sequence[Dim]) -> int:
    """Return the product of those dimensions that are numbers."""
    return math.prod(n for n in dims if isinstance(n, int))


def product_of(dims: Sequence[Dim]) -> Dim:
    """Return the product of dimensions, None unless it is one dimension."""
    rest = [n for n in dims if n != 1]
    if len(rest) == 1:
        return rest[0]
    return numbers_times(rest) if are_numbers(rest) else None


def quotient_of(dims: Sequence[Dim], others: Sequence[Dim]) -> Dim:
    """Return the product of `dims` divided by that of `others`, if it is one dimension."""
    names = [n for n in dims if isinstance(n, str)]
    for n in others:
        if isinstance(n, str):
            if n not in names:
                return None
            names.remove(n)
    total, part = numbers_times(dims), numbers_times(others)
    if not part or total % part:
        return None
    ratio = total // part
    if not names:
        return ratio
    return names[0] if len(names) == 1 and ratio == 1 else None


_COMPUTED = re.compile(r"⌊\((.*)([+-]\d+)\)/(\d+)⌋", re.DOTALL)
_LONGEST = 200  # characters of a name, and the divisor is below 2^63: graphs may be deep


def name_of(text: str) -> Dim:
    """Return the name that a file gives to a size, None if it looks like a computed one."""
    return text if text and "⌊" not in text else None


def _named(text: str) -> Dim:
    return text if len(text) <= _LONGEST else None


def quotient_below(n: Dim, shift: int, divisor: int) -> Dim:
    """Return ⌊(n + shift) / divisor⌋ of a named size.

    Names are equal if the sizes are: ⌊(⌊(n + a)/s⌋ + b)/t⌋ = ⌊(n + a + b s)/(s t)⌋.
    """
    if not isinstance(n, str):
        return None
    if inner := _COMPUTED.fullmatch(n):
        n, shift, divisor = (
            inner[1],
            int(inner[2]) + shift * int(inner[3]),
            int(inner[3]) * divisor,
        )
    if divisor >= 2**63 or abs(shift) >= 2**63:
        return None
    return n if (shift, divisor) == (0, 1) else _named(f"⌊({n}{shift:+})/{divisor}⌋")


def size_by(rule: str, n: Dim) -> Dim:
    """Return the name of what a rule, written out, makes of a named size."""
    return _named(f"{rule}⌊{n}⌋") if isinstance(n, str) else None


def broadcast(shapes: Sequence[Shape]) -> tuple[Dim, ...]:
    """Return the shape to which all are broadcast, if that is certain."""
    known = [shape for shape in shapes if shape is not None]
    repeat = "so broadcasting may repeat a tensor"
    require(len(known) == len(shapes), f"a shape is unknown, {repeat}")
    rank = max(map(len, known))
    result: list[Dim] = []
    for axis in range(-rank, 0):
        dims = [shape[axis] for shape in known if axis >= -len(shape)]
        dims = [n for n in dims if n != 1]
        if len(dims) > 1 and (None in dims or len(set(dims)) > 1):
            texts = " and ".join(map(shape_text, known))
            msg = f"the shapes {texts} may not be equal, {repeat}"
            raise NotUnderstoodError(msg)
        result.append(dims[0] if dims else 1)
    return tuple(result)


def repeats(shape: Shape, result: tuple[Dim, ...]) -> int:
    """Return how often broadcasting to `result` repeats each entry."""
    assert shape is not None
    new = result[: len(result) - len(shape)]
    grown = [m for n, m in zip(shape, result[len(new) :], strict=True) if n == 1 and m != 1]
    times = [m for m in (*new, *grown) if m != 1]
    texts = f"from {shape_text(shape)} to {shape_text(result)}"
    require(are_numbers(times), f"broadcasting {texts} repeats a tensor unknown times")
    return numbers_times(times)
