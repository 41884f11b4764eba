"""Constants that an ONNX graph computes of others: a weight times a scale, a shape put together.

Entries are moved, by the rules for varying tensors where these say it all, or computed by an
operation that IEEE 754 defines to the last bit: a sum, difference, product, quotient or root,
rounded once to the type of its operands.  DequantizeLinear is one product, as (q - zero point) is
exact.  So the value is what a runtime computes that follows the standard, and the bounds are those
of this value.  What is rounded in an order of a runtime's choice (sums of many, powers) is not
known.  Sizes with names are carried along where they are only moved or compared.

Not by ``onnx.reference``: in 1.17 and 1.23 it takes the name "2" of a dimension for the number 2 in
a Cast, and the shape (-2, 3) of a Reshape for (-1, 3).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from gramnorm.report.files import contents as limits
from gramnorm.report.onnx import messages
from gramnorm.report.onnx.arithmetic import (
    COMPARED,
    EXACT,
    ROUNDED,
    compared,
    dequantised,
    joined,
    limited,
    power,
    where,
)
from gramnorm.report.onnx.moves import expanded_shape, kept_places, permutation
from gramnorm.report.onnx.nodes import (
    Fixed,
    Node,
    NotUnderstoodError,
    Shape,
    Values,
    Varying,
    are_numbers,
    axes_from_front,
    axis_from_front,
    require,
)
from gramnorm.report.onnx.rules import RULES, apply_rule, without_rule

NOT_CONSTANT = (
    *("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike"),
    *("RandomUniform", "RandomUniformLike"),
)
"""Operators that make something else of constants each time; all others make a constant."""

_EXACT = 2**24  # below it float32 holds whole numbers
_IN_ORDER = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_TYPES = {"FLOAT": "f4", "DOUBLE": "f8", "INT32": "i4", "INT64": "i8", "BOOL": "?"}
_STATED = {"value_float": "f4", "value_floats": "f4", "value_int": "i8", "value_ints": "i8"}


def stated(attributes: dict[str, Any]) -> Values | None:
    """Return the value of a node Constant."""
    name, value = next(iter(attributes.items())) if len(attributes) == 1 else ("", None)
    if name == "value":
        return messages.array(value, "a constant")
    return np.asarray(value, dtype=_STATED[name]) if name in _STATED else None


def shape_of(node: Node) -> Values | None:
    """Return the shape of a tensor, or the part asked for, as a constant with names in it."""
    (x,) = node.inputs
    if x is None or x.shape is None:
        return None
    rank = len(x.shape)
    start, end = (node.attributes.get(k, v) for k, v in (("start", 0), ("end", rank)))
    return _sizes(x.shape[slice(start, end)])


def _sizes(dims: Any) -> Values:
    """Return sizes as integers if they are numbers."""
    return np.asarray(dims, dtype=np.int64 if are_numbers(dims) else object)


def computed(node: Node) -> list[Values | None]:
    """Return the values of an operator on constants, None for what is not known."""
    if node.op == "Split":
        return _split(node)
    return [_one(node), *[None] * (node.outputs - 1)]


def _one(node: Node) -> Values | None:
    """Return the value of an operator of one output."""
    if node.op == "Shape":
        return shape_of(node)
    if not all(isinstance(x, Fixed) and x.value is not None for x in node.inputs if x is not None):
        return None
    values = [x.value for x in node.inputs if isinstance(x, Fixed) and x.value is not None]
    rule = _RULES.get(node.op)
    computes = node.op in (*ROUNDED, "DequantizeLinear", "Pow")
    narrow = computes and any(x.short for x in node.inputs if isinstance(x, Fixed))
    if rule is None or not values or narrow:  # what is narrow here is rounded to its own type
        return None
    made = rule(node, *values)
    if made is not None and made.dtype.kind == "O":
        return _sizes(made.ravel().tolist()).reshape(made.shape)
    known = made is not None and (made.dtype.kind != "f" or bool(np.all(np.isfinite(made))))
    return made if known else None


def shapes_made(node: Node) -> tuple[Shape, ...]:
    """Return the shapes of constants whose values are not known, as far as they are."""
    first = node.input(0)
    unknown = (None,) * node.outputs
    if node.op not in RULES or not isinstance(first, Fixed):
        return unknown
    try:
        return (*_shapes(node, first.shape), *unknown)[: node.outputs]
    except (NotUnderstoodError, LookupError, TypeError):
        return unknown


def _shapes(node: Node, first: Shape) -> tuple[Shape, ...]:
    """Return the shapes that a node would make if its first input varied."""
    if node.op == "Expand":  # however often a constant is repeated
        return (expanded_shape(node, first),)
    return apply_rule(replace(node, inputs=(Varying("", first), *node.inputs[1:]))).shapes


def truth(x: Fixed | Varying | None) -> str | None:
    """Return which branch of an If a condition takes, None if that is not known."""
    value = x.value if isinstance(x, Fixed) else None
    if value is None or value.size != 1 or value.dtype.kind != "b":
        return None
    return "then_branch" if value.item() else "else_branch"


def reason_for(op: str) -> str:
    """Return why an operator on constants is not computed."""
    return "whose operands are not known" if op in COMPUTED else without_rule(op)


def word_for(op: str) -> str | None:
    """Return how a weight was made by an operator that does not only move its entries."""
    return "dequantised" if op == "DequantizeLinear" else _WORD if op in ROUNDED else None


_WORD = "computed in the graph"


# Entries that move.


def _in_order(node: Node, value: Values, *_: Values) -> Values | None:
    """Return entries in their order."""
    (shape,) = _shapes(node, value.shape)
    known = shape is not None and are_numbers(shape)  # a name may look like a number
    return value.reshape(shape) if known else None


def _transposed(node: Node, value: Values) -> Values:
    return np.transpose(value, permutation(node, value.ndim))


def _cast(node: Node, value: Values) -> Values | None:
    """Return a conversion: to the nearest or exact, towards zero to integers."""
    kind = messages.type_name(node.attributes.get("to"))
    if value.dtype.kind == "O":  # numbers and names of dimensions
        return value if kind == "INT64" else None
    if kind not in _TYPES:
        return None
    if _TYPES[kind] == "?":
        return np.asarray(value != 0)
    inside = value.dtype.kind not in "fiu" or bool(np.all(np.abs(value.astype("f8")) < 2.0**31))
    to_integers = _TYPES[kind][0] == "i"
    if to_integers and not (inside or np.can_cast(value.dtype, _TYPES[kind], "safe")):
        return None
    with np.errstate(over="ignore"):
        return value.astype(_TYPES[kind], copy=False)


def _gather(node: Node, value: Values, indices: Values) -> Values:
    axis = axis_from_front(node.attributes.get("axis", 0), value.ndim)
    limited(value.size // max(value.shape[axis], 1) * indices.size, value)
    taken = np.take(value, indices, axis=axis)
    return np.asarray(taken, dtype=value.dtype)  # one name of a dimension is no array yet


def _concat(node: Node, *values: Values) -> Values:
    kinds = {v.dtype for v in values}
    require(len(kinds) == 1 or kinds == {np.dtype(object), np.dtype("i8")}, "types that differ")
    room = sum(v.nbytes for v in values) <= limits.MAX_BYTES // 8
    require(room, "one array many times")
    return np.concatenate(values, axis=node.attributes["axis"])


def _slice(node: Node, value: Values, *_: Values) -> Values | None:
    """Return a part, by the places that the rule of Slice keeps."""
    starts, ends = (node.indices(*at, None) for at in (("starts", 1), ("ends", 2)))
    axes = node.indices("axes", 3, list(range(len(starts or ()))))
    steps = node.indices("steps", 4, [1] * len(starts or ()))
    if starts is None or ends is None or axes is None or steps is None:
        return None
    places = axes_from_front(axes, value.ndim)
    for start, end, axis, step in zip(starts, ends, places, steps, strict=True):
        kept = kept_places(value.shape[axis], start, end, step)
        if kept is None:
            return None
        cut = slice(kept.start, kept.stop if kept.stop >= 0 else None, kept.step)
        value = value[(slice(None),) * axis + (cut if len(kept) else slice(0, 0),)]
    return value


def _split(node: Node) -> list[Values | None]:
    """Return the parts of a constant, if their sizes are known."""
    first, parts = node.input(0), shapes_made(node)
    value = first.value if isinstance(first, Fixed) else None
    if value is None or any(shape is None or not are_numbers(shape) for shape in parts):
        return [None] * node.outputs
    axis = axis_from_front(node.attributes.get("axis", 0), value.ndim)
    sizes = [int(shape[axis] or 0) for shape in parts if shape is not None]
    require(sum(sizes) == value.shape[axis], "parts that are not the whole")
    return list(np.split(value, np.cumsum(sizes)[:-1], axis=axis))


def _expand(_: Node, value: Values, target: Values) -> Values:
    shape = np.broadcast_shapes(value.shape, tuple(int(n) for n in _whole(target)))
    limited(math.prod(shape), value)
    return np.broadcast_to(value, shape)


def _constant_of_shape(node: Node, target: Values) -> Values | None:
    given = node.attributes.get("value")
    value = np.zeros(1, "f4") if given is None else messages.array(given, "a constant")
    shape = [int(n) for n in _whole(target)]
    require(value is not None and value.size == 1 and min(shape, default=0) >= 0, "its value")
    limited(math.prod(shape))
    return None if value is None else np.broadcast_to(value.reshape(()), shape)


def _range(_: Node, *values: Values) -> Values:
    ends = [v.item() for v in values if v.dtype == values[0].dtype and v.dtype.kind in "if"]
    exact = all(float(v).is_integer() and abs(v) < _EXACT for v in ends)
    require(len(ends) == 3 and exact, "a range that is rounded")
    found = range(*map(int, ends))
    limited(len(found))
    return np.asarray(found, values[0].dtype)


def _whole(values: Values) -> Values:
    """Return integers, which are no names of sizes."""
    require(values.dtype.kind in "iu", "sizes that are no numbers")
    return np.ravel(values)


_RULES: dict[str, Callable[..., Values | None]] = {
    **dict.fromkeys(_IN_ORDER, _in_order),
    **dict.fromkeys(ROUNDED | EXACT, joined),
    **dict.fromkeys(COMPARED, compared),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DequantizeLinear": dequantised,
    "Expand": _expand,
    "Gather": _gather,
    "Not": lambda _, value: np.logical_not(value),
    "Pow": power,
    "Range": _range,
    "Slice": _slice,
    "Transpose": _transposed,
    "Where": where,
}
COMPUTED = ("Constant", "Shape", "Split", *_RULES)
"""The operators whose values on constants may be known."""
