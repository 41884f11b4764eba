"""What the rules for nodes of an ONNX graph speak about: nodes, what they do, their attributes, their shapes.

A dimension is a number, the name of one, or None if nothing is known; two dimensions of one name are equal.  Shapes are
computed with these, and where a result would need more than is known, there is none or a `NotUnderstoodError`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Dim",
    "Effect",
    "Fixed",
    "Node",
    "NotUnderstoodError",
    "Shape",
    "Varying",
    "are_numbers",
    "axis_from_front",
    "broadcast",
    "different_axes",
    "entries",
    "finite_number",
    "integer_list",
    "known_integers",
    "product_of",
    "quotient_of",
    "repeats",
    "shape_text",
]

Dim = int | str | None
Shape = tuple[Dim, ...] | None


class NotUnderstoodError(Exception):
    """Why a node has no rule."""


@dataclass(frozen=True)
class Fixed:
    """A tensor that does not depend on the graph's inputs.

    Its value is None where it is not known, and may hold names of dimensions; `source` is the stored array that was
    moved around to make it.
    """

    name: str
    value: np.ndarray[Any, np.dtype[Any]] | None = None
    source: str = ""


@dataclass(frozen=True)
class Varying:
    """A tensor that depends on the graph's inputs; `stopped` says why its constant is not known."""

    name: str
    shape: Shape = None
    stopped: str | None = None
    gate: tuple[str, float] | None = (
        None  # the tensor whose product with this one has that constant
    )


@dataclass(frozen=True)
class Node:
    """One node: attributes, inputs (None: left out) and the number of its outputs."""

    op: str
    attributes: dict[str, Any]
    inputs: tuple[Fixed | Varying | None, ...]
    outputs: int = 1

    def varying(self, position: int) -> Varying:
        """Return an input that must depend on the graph's inputs."""
        x = self.inputs[position] if position < len(self.inputs) else None
        if not isinstance(x, Varying):
            msg = f"its input {position} is constant or missing"
            raise NotUnderstoodError(msg)
        return x

    def fixed(self, position: int) -> np.ndarray[Any, np.dtype[Any]] | None:
        """Return the value of an input that must be constant, None if it is left out."""
        x = self.inputs[position] if position < len(self.inputs) else None
        if x is None:
            return None
        if isinstance(x, Varying) or x.value is None:
            msg = f"its input {position} ({x.name!r}) is computed in the graph"
            raise NotUnderstoodError(msg)
        return x.value

    def rest_is_fixed(self) -> None:
        """Check that all inputs but the first are constants, known or not."""
        for position, x in enumerate(self.inputs[1:], 1):
            if isinstance(x, Varying):
                msg = f"its input {position} ({x.name!r}) depends on the graph's inputs"
                raise NotUnderstoodError(msg)


@dataclass(frozen=True)
class Effect:
    """What a node does: a factor per varying input, the shapes of its outputs, and its layer if it has one."""

    factors: dict[int, float]
    shapes: tuple[Shape, ...]
    stacked: bool = False
    layer: tuple[str, np.ndarray[Any, np.dtype[Any]], dict[str, Any] | None] | None = None
    gate: float | None = None


# Attributes and constant inputs.


def known_integers(node: Node, name: str, position: int) -> list[Any] | None:
    """Return integers from an attribute or a constant input, None if they are left out or unknown."""
    if name in node.attributes:
        return list(node.attributes[name])
    x = node.inputs[position] if position < len(node.inputs) else None
    if not isinstance(x, Fixed) or x.value is None or x.value.ndim > 1:
        return None
    return entries(x.value)


def integer_list(
    node: Node, name: str, default: tuple[int, ...], *, length: int | None = None
) -> tuple[int, ...]:
    """Return a list of integers of the length of its default, which an empty one takes as well."""
    value = tuple(node.attributes.get(name, default))
    needed = len(default) if length is None else length
    if needed and len(value) not in (needed, 0):
        msg = f"{name} is {value!r}"
        raise NotUnderstoodError(msg)
    return value or default


def finite_number(value: Any, name: str) -> float:
    """Return an attribute that must be a finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        msg = f"{name} is {value!r}"
        raise NotUnderstoodError(msg)
    return float(value)


def axis_from_front(axis: Any, rank: int) -> int:
    """Return an axis counted from the front."""
    if not isinstance(axis, int) or not -rank <= axis < rank:
        msg = f"axis {axis!r} of {rank}"
        raise NotUnderstoodError(msg)
    return axis % rank


def different_axes(axes: Sequence[Any]) -> list[int]:
    """Return axes that are numbers, each once."""
    if not all(isinstance(a, int) for a in axes) or len(set(axes)) < len(axes):
        msg = f"axes {axes!r}"
        raise NotUnderstoodError(msg)
    return list(axes)


def entries(values: np.ndarray[Any, np.dtype[Any]] | None) -> list[Any]:
    """Return the entries of a short constant, names of dimensions among them."""
    flat = [] if values is None else np.ravel(values).tolist()
    return [n if isinstance(n, str) or n is None else int(n) for n in flat]


def shape_text(shape: Shape) -> str:
    """Return a shape for people."""
    if shape is None:
        return "(unknown)"
    return f"({', '.join('?' if n is None else str(n) for n in shape)})"


# Shapes.


def are_numbers(dims: Sequence[Dim]) -> bool:
    """Say whether all dimensions are known numbers."""
    return all(isinstance(n, int) for n in dims)


def product_of(dims: Sequence[Dim]) -> Dim:
    """Return the product of dimensions, None unless it is one dimension."""
    rest = [n for n in dims if n != 1]
    if len(rest) == 1:
        return rest[0]
    return math.prod(n for n in rest if isinstance(n, int)) if are_numbers(rest) else None


def quotient_of(dims: Sequence[Dim], others: Sequence[Dim]) -> Dim:
    """Return the dimension by which the product of `others` falls short of that of `dims`, if it is one."""
    names = [n for n in dims if isinstance(n, str)]
    for n in others:
        if isinstance(n, str):
            if n not in names:
                return None
            names.remove(n)
    total, part = (math.prod(n for n in ns if isinstance(n, int)) for ns in (dims, others))
    if not part or total % part:
        return None
    ratio = total // part
    if not names:
        return ratio
    return names[0] if len(names) == 1 and ratio == 1 else None


def broadcast(shapes: Sequence[Shape]) -> tuple[Dim, ...]:
    """Return the shape to which all are broadcast, if that is certain."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        msg = "a shape is unknown, so broadcasting may repeat a tensor"
        raise NotUnderstoodError(msg)
    rank = max(map(len, known))
    result: list[Dim] = []
    for axis in range(rank):
        dims = [shape[axis - rank] for shape in known if axis - rank >= -len(shape)]
        dims = [n for n in dims if n != 1]
        if len(dims) > 1 and (None in dims or len(set(dims)) > 1):
            texts = " and ".join(map(shape_text, known))
            msg = f"the shapes {texts} may not be equal, so broadcasting may repeat a tensor"
            raise NotUnderstoodError(msg)
        result.append(dims[0] if dims else 1)
    return tuple(result)


def repeats(shape: Shape, result: tuple[Dim, ...]) -> int:
    """Return how often broadcasting to `result` repeats each entry."""
    assert shape is not None
    padded = (*(1 for _ in range(len(result) - len(shape))), *shape)
    times = 1
    for n, m in zip(padded, result, strict=True):
        if n == 1 and m != 1:
            if not isinstance(m, int):
                msg = f"broadcasting from {shape_text(shape)} to {shape_text(result)} repeats a tensor unknown times"
                raise NotUnderstoodError(msg)
            times *= m
    return times
