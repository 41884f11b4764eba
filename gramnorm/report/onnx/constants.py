"""Constants that an ONNX graph computes of others: a transposed weight, a shape put together.

Only operators that move entries are computed, by the rules for varying tensors where these say it
all.  Not by ``onnx.reference``: in 1.17 and 1.23 it takes the name "2" of a dimension for the
number 2 in a Cast, and the shape (-2, 3) of a Reshape for (-1, 3).
"""

from typing import Any

import numpy as np

from gramnorm.report.onnx import messages
from gramnorm.report.onnx.moves import permutation
from gramnorm.report.onnx.nodes import Fixed, Node, Values, Varying, are_numbers
from gramnorm.report.onnx.rules import RULES, apply_rule

ON_CONSTANTS = (
    *(RULES.keys() - {"Dropout"}),
    *("ConstantOfShape", "Equal", "Expand", "Floor", "Range", "Shape", "Sqrt", "Where"),
)
"""Deterministic operators, which make a constant of constants, known or not."""

_FEW = 64  # entries of a shape that is put together in the graph
_IN_ORDER = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_WIDER = {"FLOAT": "f4", "DOUBLE": "f8", "INT32": "i4", "INT64": "i8"}
_STATED = {"value_float": "f4", "value_floats": "f4", "value_int": "i8", "value_ints": "i8"}


def stated(attributes: dict[str, Any]) -> Values | None:
    """Return the value of a node Constant."""
    name, value = next(iter(attributes.items())) if len(attributes) == 1 else ("", None)
    if name == "value":
        return messages.array(value, "a constant")
    return np.asarray(value, dtype=_STATED[name]) if name in _STATED else None


def shape_of(node: Node) -> Values | None:
    """Return the shape of a tensor as a constant with names in it."""
    x = node.varying(0)
    if x.shape is None or node.attributes or None in x.shape:
        return None
    return np.asarray(x.shape, dtype=object)


def moved(node: Node) -> Values | None:
    """Return the value of an operator that only moves entries, None for others."""
    first = node.input(0)
    if not isinstance(first, Fixed) or first.value is None:
        return None
    value = first.value
    if node.op in _IN_ORDER:
        as_varying = Node(node.op, node.attributes, (Varying("", value.shape), *node.inputs[1:]))
        (shape,) = apply_rule(as_varying).shapes
        known = shape is not None and are_numbers(shape)  # a name may look like a number
        return value.reshape(shape) if known else None
    if node.op == "Transpose":
        return np.transpose(value, permutation(node, value.ndim))
    if node.op == "Cast":
        kind = messages.type_name(node.attributes.get("to"))
        if value.dtype.kind == "O":  # numbers and names of dimensions
            return value if kind == "INT64" else None
        wider = _WIDER.get(kind, "V")
        return value.astype(wider, copy=False) if np.can_cast(value.dtype, wider, "safe") else None
    rest = [node.fixed(i) for i in range(1, len(node.inputs))]
    if sum(v.size for v in (value, *rest) if v is not None) > _FEW:
        return None
    if node.op == "Gather" and rest[0] is not None:
        taken = np.take(value, rest[0], axis=node.attributes.get("axis", 0))
        return np.asarray(taken, dtype=value.dtype)  # one name of a dimension is no array yet
    if node.op == "Concat":
        return np.concatenate([value, *rest], axis=node.attributes["axis"])
    return None
