"""Rules for the nodes of an ONNX graph that move, select or join entries without changing them.

Such a node has the constant 1, or the root of how often it repeats an entry; what is joined has the
root of the sum of squares (docs/theory.md, Theorem 17).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from gramnorm._rigour.fractions import root_above
from gramnorm.network._sequence import Entrywise, Flattened, Part
from gramnorm.report.onnx.nodes import (
    Dim,
    Effect,
    Node,
    NotUnderstoodError,
    Shape,
    are_numbers,
    axes_from_front,
    axis_from_front,
    broadcast,
    product_of,
    quotient_below,
    quotient_of,
    readable,
    repeats,
    require,
    shape_text,
)

# As the end of a Slice with a negative step: by the standard nothing is kept, by onnxruntime all
# down to the first.
_TO_THE_END = (2**31 - 1, 2**63 - 1)


def rearranged(
    shape_of: Callable[[Node, tuple[Dim, ...]], Shape],
) -> Callable[[Node], Effect]:
    """Return the rule of a node that only moves entries; `shape_of` says where to, or None."""

    def rule(node: Node) -> Effect:
        x = node.only_varying()
        return Effect({0: 1.0}, (None if x.shape is None else shape_of(node, x.shape),))

    return rule


def in_order(rule: Callable[[Node], Effect]) -> Callable[[Node], Effect]:
    """Return a rule of what keeps the order of entries, which says what it is within a chain.

    The shape stays, or the samples of each channel are read as one vector.
    """

    def told(node: Node) -> Effect:
        effect, before = rule(node), node.only_varying().shape
        after = effect.shapes[0]
        part: Part | None = None
        if before is not None and None not in before and after == before:
            part = Entrywise(ends=(1.0, 1.0))
        elif before is not None and after is not None and len(before) > len(after) == 2:
            inner = [n for n in before[1:] if isinstance(n, int)]
            if len(inner) == len(before) - 1 and after[1] == math.prod(inner):
                part = Flattened(tuple(inner[1:]))
        return replace(effect, part=part)

    return told


def flattened(node: Node, shape: tuple[Dim, ...]) -> Shape:
    """Return the shape after Flatten."""
    axis = node.attributes.get("axis", 1)
    require(-len(shape) <= axis <= len(shape), f"axis {axis} of {len(shape)}")
    axis = axis + len(shape) if axis < 0 else axis
    return product_of(shape[:axis]), product_of(shape[axis:])


def reshaped(node: Node) -> Effect:
    """Rule of Reshape, resolving 0 (as before) and -1 (what is left)."""
    shape = node.only_varying().shape
    target = node.indices("shape", 1, None)
    if target is None or (node.attributes.get("allowzero", 0) and 0 in target):
        return Effect({0: 1.0}, (None,))
    least = min((n for n in target if isinstance(n, int)), default=0)
    require(target.count(-1) <= 1 and least >= -1, f"its shape is {target!r}")
    before = (*(shape or ()), *[None] * len(target))
    result = [before[i] if n == 0 else n for i, n in enumerate(target)]
    if -1 in result:
        left = result.index(-1)
        result[left] = None
        others = result[:left] + result[left + 1 :]
        if shape is not None and None not in shape and None not in others:
            result[left] = quotient_of(shape, others)
    return Effect({0: 1.0}, (tuple(result),))


def transposed(node: Node, shape: tuple[Dim, ...]) -> Shape:
    """Return the shape after Transpose."""
    return tuple(shape[i] for i in permutation(node, len(shape)))


def permutation(node: Node, rank: int) -> tuple[int, ...]:
    """Return the order of axes of a Transpose."""
    order = tuple(node.attributes.get("perm", range(rank - 1, -1, -1)))
    require(sorted(order) == list(range(rank)), f"perm {order} is no order of {rank} axes")
    return order


def squeezed(node: Node, shape: tuple[Dim, ...]) -> Shape:
    """Return the shape after Squeeze, None for an empty list of axes: runtimes differ about it."""
    ones: list[Dim] = [i for i, n in enumerate(shape) if n == 1]
    axes = node.indices("axes", 1, ones if are_numbers(shape) else None)
    if not axes:
        return None
    gone = set(axes_from_front(axes, len(shape)))
    fits = all(shape[i] == 1 or not isinstance(shape[i], int) for i in gone)
    require(fits, f"it squeezes the axes {axes!r} of {shape_text(shape)}")
    return tuple(n for i, n in enumerate(shape) if i not in gone)


def unsqueezed(node: Node, shape: tuple[Dim, ...]) -> Shape:
    """Return the shape after Unsqueeze."""
    axes = node.indices("axes", 1, None)
    if axes is None:
        return None
    rank = len(shape) + len(axes)
    new, rest = set(axes_from_front(axes, rank)), iter(shape)
    return tuple(1 if i in new else next(rest) for i in range(rank))


def padded(node: Node) -> Effect:
    """Rule of Pad; negative amounts cut off, and what is no constant repeats entries."""
    mode, shape = node.attributes.get("mode", b"constant"), node.only_varying().shape
    pads = node.indices("pads", 1, None)
    plain = mode == b"constant"
    known = shape is not None and pads is not None and len(pads) == 2 * len(shape)
    if shape is None or pads is None or not known or len(node.inputs) > 3:
        require(plain, f"mode {readable(mode)} repeats entries, of an unknown number")
        return Effect({0: 1.0}, (None,))
    befores, afters = pads[: len(shape)], pads[len(shape) :]
    result = tuple(map(_padded, shape, befores, afters))
    least = min((n for n in result if isinstance(n, int)), default=0)
    require(least >= 0, f"pads {pads!r} cut more off than {shape_text(shape)} has")
    times = 1 if plain else math.prod(map(_Padding(mode).most, shape, befores, afters))
    return Effect({0: root_above(Fraction(times))}, (result,))


@dataclass(frozen=True)
class _Padding:
    """How often padding along an axis repeats a sample at most, itself counted."""

    mode: bytes

    def most(self, n: Dim, before: Dim, after: Dim) -> int:
        """Return the number: all of it at an unknown size, which may be one sample."""
        known = self.mode in (b"reflect", b"edge", b"wrap")
        require(known, f"mode {readable(self.mode)}")
        fits = isinstance(before, int) and isinstance(after, int) and min(before, after) >= 0
        require(fits, f"pads {before!r} and {after!r} in mode {readable(self.mode)}")
        assert isinstance(before, int)
        assert isinstance(after, int)
        if not isinstance(n, int) or n < 1 or before + after == 0:
            return 1 + before + after
        if self.mode == b"wrap":
            return -(-(n + before + after) // n)
        if self.mode == b"edge":
            return 1 + max(before, after) if n > 1 else 1 + before + after
        require(max(before, after) < n, f"reflects {before} and {after} samples of {n}")
        both = min(before, after) > 0 and before + after >= n - 1
        return 3 if both else 2


def _padded(n: Dim, before: Dim, after: Dim) -> Dim:
    if before == after == 0:
        return n
    if isinstance(n, int) and isinstance(before, int) and isinstance(after, int):
        return n + before + after
    if isinstance(before, int) and isinstance(after, int):
        return quotient_below(n, before + after, 1)
    return None


def sliced(node: Node, shape: tuple[Dim, ...]) -> Shape:
    """Return the shape after Slice."""
    starts, ends = (node.indices(*at, None) for at in (("starts", 1), ("ends", 2)))
    if starts is None or ends is None:
        return None
    axes = node.indices("axes", 3, list(range(len(starts))))
    steps = node.indices("steps", 4, [1] * len(starts))
    if axes is None or steps is None:
        return None
    result = list(shape)
    places = axes_from_front(axes, len(shape))
    for start, end, i, step in zip(starts, ends, places, steps, strict=True):
        result[i] = _kept(shape[i], start, end, step)
    return tuple(result)


def _kept(n: Dim, start: Dim, end: Dim, step: Dim) -> Dim:
    """Return how many of n samples a Slice keeps, None if that is not certain."""
    places = kept_places(n, start, end, step)
    return None if places is None else len(places)


def kept_places(n: Dim, start: Dim, end: Dim, step: Dim) -> range | None:
    """Return which of n samples a Slice keeps, None if that is not certain.

    Counted from the front, a start lies in [0, n], or in [0, n - 1] for a negative step: unlike in
    Python, one beyond the range is moved to the nearest sample, which is kept.  An end lies in
    [0, n], or in [-1, n - 1].
    """
    require(step != 0, "a step is 0")
    if not (isinstance(n, int) and isinstance(start, int) and isinstance(end, int)):
        return None
    if not isinstance(step, int) or (step < 0 and end in _TO_THE_END):
        return None
    start, end = (v + n if v < 0 else v for v in (start, end))
    least, last = (0, n) if step > 0 else (-1, n - 1)
    return range(min(max(start, 0), last), min(max(end, least), last), step)


def concat(node: Node) -> Effect:
    """Rule of Concat: parts stacked, constant ones without effect."""
    known = [shape for shape in node.shapes() if shape is not None]
    shape: Shape = None
    if len(known) == len(node.shapes()) and len(set(map(len, known))) == 1:
        axis = axis_from_front(node.attributes.get("axis", 1), len(known[0]))
        parts = [s[axis] for s in known]
        total = sum(n for n in parts if isinstance(n, int)) if are_numbers(parts) else None
        shape = (*known[0][:axis], total, *known[0][axis + 1 :])
    return Effect(dict.fromkeys(node.all_varying(), 1.0), (shape,), stacked=True)


def split(node: Node) -> Effect:
    """Rule of Split: each output is a part of the input."""
    x, count = node.only_varying(), node.outputs
    stated = node.attributes.get("num_outputs", count)
    require(stated == count, f"num_outputs is not {count}")
    if x.shape is None:
        return Effect({0: 1.0}, (None,) * count)
    axis = axis_from_front(node.attributes.get("axis", 0), len(x.shape))
    n = x.shape[axis]
    even: list[Dim] | None = None
    if isinstance(n, int) and n % count == 0:
        even = [n // count] * count
    parts = node.indices("split", 1, even)
    if parts is None or len(parts) != count:
        parts = [None] * count
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
        inside = -n <= low <= high < max(n, 1)
        require(inside, f"indices from {low} to {high} into {n}")
        indices = np.where(indices < 0, indices + n, indices) if low < 0 else indices
    else:
        require(low >= 0, "negative indices into an axis of unknown size")
    often = np.unique(indices, return_counts=True)[1].max(initial=0)
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return Effect({0: root_above(Fraction(int(often)))}, (shape,))


def expanded(node: Node) -> Effect:
    """Rule of Expand: broadcasting to a shape."""
    x = node.only_varying()
    result = expanded_shape(node, x.shape)
    return Effect({0: root_above(Fraction(repeats(x.shape, result)))}, (result,))


def expanded_shape(node: Node, shape: Shape) -> tuple[Dim, ...]:
    """Return the shape after Expand."""
    target = node.indices("shape", 1, None)
    fits = target is not None and min((n for n in target if isinstance(n, int)), default=1) > 0
    require(fits, f"its shape is {target!r}")
    return broadcast([shape, tuple(target or ())])


def tiled(node: Node) -> Effect:
    """Rule of Tile."""
    x, times = node.only_varying(), node.indices("repeats", 1, None)
    fits = times is not None and are_numbers(times)
    require(fits and x.shape is not None and len(times or ()) == len(x.shape), "repeats unknown")
    counts = [n for n in times or () if isinstance(n, int)]
    require(min(counts, default=1) > 0, f"repeats is {times!r}")
    dims = (product_of((n, r)) for n, r in zip(x.shape or (), counts, strict=True))
    return Effect({0: root_above(Fraction(math.prod(counts)))}, (tuple(dims),))
