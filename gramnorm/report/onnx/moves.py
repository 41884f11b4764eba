"""Rules for the nodes of an ONNX graph that move, select or join entries without changing them.

Such a node has the constant 1, or the root of how often it repeats an entry; what is joined has the root of the sum of
squares (docs/theory.md, Theorem 17).
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from gramnorm._rigour.fractions import root_above
from gramnorm.report.onnx.nodes import (
    Dim,
    Effect,
    Fixed,
    Node,
    NotUnderstoodError,
    Shape,
    Varying,
    are_numbers,
    axis_from_front,
    different_axes,
    known_integers,
    product_of,
    quotient_of,
    shape_text,
)

__all__ = [
    "concat",
    "flattened",
    "gather",
    "padded",
    "permutation",
    "rearranged",
    "reshaped",
    "sliced",
    "split",
    "squeezed",
    "transposed",
    "unsqueezed",
]

# As the end of a Slice with a negative step: by the standard nothing is kept, by onnxruntime all down to the first.
_TO_THE_END = (2**31 - 1, 2**63 - 1)


def rearranged(shape_of: Callable[[Node, Shape], Shape]) -> Callable[[Node], Effect]:
    """Return the rule of a node that only moves entries; `shape_of` says where to, or None."""

    def rule(node: Node) -> Effect:
        x = node.varying(0)
        node.rest_is_fixed()
        return Effect({0: 1.0}, (shape_of(node, x.shape),))

    return rule


def flattened(node: Node, shape: Shape) -> Shape:
    """Return the shape after Flatten."""
    if shape is None:
        return None
    axis = int(node.attributes.get("axis", 1))
    if not -len(shape) <= axis <= len(shape):
        msg = f"axis {axis} of {len(shape)}"
        raise NotUnderstoodError(msg)
    axis = axis + len(shape) if axis < 0 else axis
    return product_of(shape[:axis]), product_of(shape[axis:])


def reshaped(node: Node, shape: Shape) -> Shape:
    """Return the shape after Reshape, resolving 0 (as before) and -1 (what is left)."""
    target = known_integers(node, "shape", 1)
    if target is None or node.attributes.get("allowzero", 0):
        return None
    if target.count(-1) > 1 or any(isinstance(n, int) and n < -1 for n in target):
        msg = f"its shape is {target!r}"
        raise NotUnderstoodError(msg)
    result: list[Dim] = [
        (shape[i] if shape is not None and i < len(shape) else None) if n == 0 else n
        for i, n in enumerate(target)
    ]
    if -1 in result:
        left = result.index(-1)
        result[left] = None
        others = result[:left] + result[left + 1 :]
        if shape is not None and None not in shape and None not in others:
            result[left] = quotient_of(shape, others)
    return tuple(result)


def transposed(node: Node, shape: Shape) -> Shape:
    """Return the shape after Transpose."""
    if shape is None:
        return None
    return tuple(shape[i] for i in permutation(node, len(shape)))


def permutation(node: Node, rank: int) -> tuple[int, ...]:
    """Return the order of axes of a Transpose."""
    order = tuple(node.attributes.get("perm", range(rank - 1, -1, -1)))
    if sorted(order) != list(range(rank)):
        msg = f"perm {order} is no order of {rank} axes"
        raise NotUnderstoodError(msg)
    return order


def squeezed(node: Node, shape: Shape) -> Shape:
    """Return the shape after Squeeze, None without known axes: an empty list means none or all, as runtimes differ."""
    axes = known_integers(node, "axes", 1)
    if not axes or shape is None:
        return None
    gone = different_axes([axis_from_front(a, len(shape)) for a in axes])
    if any(isinstance(shape[i], int) and shape[i] != 1 for i in gone):
        msg = f"it squeezes the axes {axes!r} of {shape_text(shape)}"
        raise NotUnderstoodError(msg)
    return tuple(n for i, n in enumerate(shape) if i not in gone)


def unsqueezed(node: Node, shape: Shape) -> Shape:
    """Return the shape after Unsqueeze."""
    axes = known_integers(node, "axes", 1)
    if axes is None or shape is None:
        return None
    rank = len(shape) + len(axes)
    new = set(different_axes([axis_from_front(a, rank) for a in axes]))
    rest = iter(shape)
    return tuple(1 if i in new else next(rest, None) for i in range(rank))


def padded(node: Node, shape: Shape) -> Shape:
    """Return the shape after Pad with a constant; negative amounts cut off."""
    if node.attributes.get("mode", b"constant") != b"constant":
        msg = f"mode {node.attributes['mode']!r} repeats entries"
        raise NotUnderstoodError(msg)
    pads = known_integers(node, "pads", 1)
    if shape is None or pads is None or len(pads) != 2 * len(shape) or len(node.inputs) > 3:
        return None
    ends = zip(shape, pads[: len(shape)], pads[len(shape) :], strict=True)
    padded = tuple(
        n if lo == hi == 0 else n + lo + hi if are_numbers((n, lo, hi)) else None
        for n, lo, hi in ends
    )
    if any(isinstance(n, int) and n < 0 for n in padded):
        msg = f"pads {pads!r} cut more off than {shape_text(shape)} has"
        raise NotUnderstoodError(msg)
    return padded


def sliced(node: Node, shape: Shape) -> Shape:
    """Return the shape after Slice."""
    starts, ends = known_integers(node, "starts", 1), known_integers(node, "ends", 2)
    axes, steps = known_integers(node, "axes", 3), known_integers(node, "steps", 4)
    left_out = [i for i in (3, 4) if i < len(node.inputs) and node.inputs[i] is not None]
    unknown = (axes is None and 3 in left_out) or (steps is None and 4 in left_out)
    if shape is None or starts is None or ends is None or unknown:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    result = list(shape)
    places = different_axes([axis_from_front(axis, len(shape)) for axis in axes])
    for start, end, i, step in zip(starts, ends, places, steps, strict=True):
        result[i] = _kept(shape[i], start, end, step)
    return tuple(result)


def _kept(n: Dim, start: Dim, end: Dim, step: Dim) -> Dim:
    """Return how many of n samples a Slice keeps, None if that is not certain.

    Counted from the front, a start lies in [0, n], or in [0, n - 1] for a negative step: unlike in Python, one beyond
    the range is moved to the nearest sample, which is kept.  An end lies in [0, n], or in [-1, n - 1].
    """
    if step == 0:
        msg = "a step is 0"
        raise NotUnderstoodError(msg)
    if not (isinstance(n, int) and isinstance(start, int) and isinstance(end, int)):
        return None
    if not isinstance(step, int) or (step < 0 and end in _TO_THE_END):
        return None
    start, end = (v + n if v < 0 else v for v in (start, end))
    least, last = (0, n) if step > 0 else (-1, n - 1)
    return len(range(min(max(start, 0), last), min(max(end, least), last), step))


def concat(node: Node) -> Effect:
    """Rule of Concat: parts stacked, constant ones without effect."""
    varying = {i: x for i, x in enumerate(node.inputs) if isinstance(x, Varying)}
    shapes = [x.shape for x in varying.values()]
    shapes += [
        None if x.value is None else x.value.shape for x in node.inputs if isinstance(x, Fixed)
    ]
    known = [shape for shape in shapes if shape is not None]
    shape: Shape = None
    if len(known) == len(shapes) and len(set(map(len, known))) == 1:
        axis = axis_from_front(node.attributes.get("axis", 1), len(known[0]))
        parts = [s[axis] for s in known]
        total = sum(n for n in parts if isinstance(n, int)) if are_numbers(parts) else None
        shape = (*known[0][:axis], total, *known[0][axis + 1 :])
    return Effect(dict.fromkeys(varying, 1.0), (shape,), stacked=True)


def split(node: Node) -> Effect:
    """Rule of Split: each output is a part of the input."""
    x = node.varying(0)
    node.rest_is_fixed()
    if node.attributes.get("num_outputs", node.outputs) != node.outputs:
        msg = f"num_outputs is not {node.outputs}"
        raise NotUnderstoodError(msg)
    if x.shape is None:
        return Effect({0: 1.0}, (None,) * node.outputs)
    axis = axis_from_front(node.attributes.get("axis", 0), len(x.shape))
    parts = known_integers(node, "split", 1)
    n = x.shape[axis]
    stated = len(node.inputs) > 1 and node.inputs[1] is not None
    if parts is None and not stated and isinstance(n, int) and n % node.outputs == 0:
        parts = [n // node.outputs] * node.outputs
    if parts is None or len(parts) != node.outputs:
        parts = [None] * node.outputs
    return Effect({0: 1.0}, tuple((*x.shape[:axis], p, *x.shape[axis + 1 :]) for p in parts))


def gather(node: Node) -> Effect:
    """Rule of Gather: an entry counts as often as an index names it."""
    x, indices = node.varying(0), node.fixed(1)
    if x.shape is None or indices is None or indices.dtype.kind not in "iu":
        msg = "its shape or its indices are unknown"
        raise NotUnderstoodError(msg)
    axis = axis_from_front(node.attributes.get("axis", 0), len(x.shape))
    n = x.shape[axis]
    low, high = (int(f(initial=0)) for f in (indices.min, indices.max))
    if isinstance(n, int):
        if not -n <= low <= high < max(n, 1):
            msg = f"indices from {low} to {high} into {n}"
            raise NotUnderstoodError(msg)
        indices = np.where(indices < 0, indices + n, indices) if low < 0 else indices
    elif low < 0:
        msg = "negative indices into an axis of unknown size"
        raise NotUnderstoodError(msg)
    often = np.unique(indices, return_counts=True)[1].max(initial=0)
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return Effect({0: root_above(Fraction(int(often)))}, (shape,))
