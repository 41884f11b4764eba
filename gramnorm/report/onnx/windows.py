"""Rules for the nodes of an ONNX graph that add up entries: layers, pooling, reductions.

A layer's factor is the norm that the report finds for it.  Windows that overlap read an entry more
than once, which counts (docs/theory.md, Lemma 18).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm._conv.geometry import ConvGeometry
from gramnorm._rigour.fractions import root_above
from gramnorm.network._layers import AvgPool, MaxPool
from gramnorm.network._sequence import Pooled, Weighted
from gramnorm.report.onnx.nodes import (
    Dim,
    Effect,
    Fixed,
    Node,
    NotUnderstoodError,
    Shape,
    Values,
    are_numbers,
    axes_from_front,
    broadcast,
    numbers_times,
    quotient_below,
    readable,
    repeats,
    require,
    shape_text,
    size_by,
)


@dataclass(frozen=True)
class _Windows:
    """Windows along one axis (K taps at distance d, one every s samples), and what they read."""

    taps: int
    stride: int
    dilation: int
    size: int | None
    pads: tuple[int, int] = (0, 0)

    @property
    def reach(self) -> int:
        """Samples from the first tap to the last, both counted."""
        return self.dilation * (self.taps - 1) + 1

    @property
    def step(self) -> int:
        """Taps after which windows that overlap follow each other."""
        return self.stride // math.gcd(self.stride, self.dilation)

    def padded(self, size: int) -> int:
        """Return the size of an input with its padding."""
        return size + sum(self.pads)

    def outputs(self) -> int | None:
        """Return the number of windows, without those that would leave the padded input."""
        if self.size is None:
            return None
        return (self.padded(self.size) - self.reach) // self.stride + 1

    def outputs_of(self, size: Dim, op: str) -> Dim:
        """Return the number of windows over a named size."""
        if self.stride == 1 or self.padded(1) >= self.reach:
            return quotient_below(size, sum(self.pads) - self.reach + self.stride, self.stride)
        # where a window is larger than its input, runtimes may round towards zero
        rule = f"{op}({self.reach}, {self.stride}, {sum(self.pads)})"
        return size_by(rule, size)

    def readers(self, outputs: int | None) -> int:
        """Bound the number of windows that read one sample: r in Lemma 18."""
        most = -(-self.taps // self.step)
        return most if outputs is None else min(most, outputs)

    def same(self, *, upper: bool) -> tuple[int, int]:
        """Return the padding with which one window starts in each stride, the last one as well."""
        n, s = self.size, self.stride
        total = self.reach - 1  # the most at any size
        if n is not None:
            total = max((-(-n // s) - 1) * s + self.reach - n, 0)
        less, more = total // 2, total - total // 2
        return (less, more) if upper else (more, less)

    @property
    def may_exceed(self) -> bool:
        """Whether it may be larger than its input: runtimes then average what there is, once."""
        return self.size is None and self.stride > 1 and self.padded(1) < self.reach

    def least_count(self) -> int:
        """Return a lower bound on the taps of a window that do not lie in the padding."""
        cut = [-(-amount // self.dilation) for amount in self.pads]
        # a window may reach into both paddings if it is larger than its input
        both = self.size is None or self.size < self.reach
        least = self.taps - (sum(cut) if both else max(cut))
        require(least >= 1, "a window may lie in the padding")
        return least


def conv(node: Node) -> Effect:
    """Rule of Conv and ConvTranspose: a layer."""
    x, kernel = node.varying(0), _weight(node, 1, least=3)
    node.only_varying()
    transposed, taps = node.op == "ConvTranspose", kernel.shape[2:]
    axes = len(taps)
    stated = tuple(node.attributes.get("kernel_shape", taps))
    require(stated == taps, f"kernel_shape does not fit the weight of shape {kernel.shape}")
    sizes, windows = _windows(node, x.shape, taps)
    groups = node.attributes.get("group", 1)
    geometry: dict[str, Any] = {
        "stride": tuple(w.stride for w in windows),
        "dilation": tuple(w.dilation for w in windows),
        "groups": groups,
        "padding": tuple(w.pads for w in windows),
    }
    if transposed:
        extra = node.integers("output_padding", (0,) * axes)
        geometry |= {"transposed": True, "output_padding": extra}
    at_size: dict[str, Any] = {"input_shape": sizes} if sizes is not None else {}
    try:
        found = ConvGeometry.of(kernel.shape, **geometry, **at_size).output_shape
    except (ValueError, TypeError) as error:
        raise NotUnderstoodError(str(error)) from error
    large = f"its windows are larger than its padded input of the sizes {sizes}"
    require(min(found or (1,)) >= 1, large)
    outputs, inputs = kernel.shape[:2] if not transposed else kernel.shape[1::-1]
    outputs, inputs = (outputs * groups, inputs) if transposed else (outputs, inputs * groups)
    shape: Shape = None
    if x.shape is not None:
        fits = x.shape[1] == inputs or not isinstance(x.shape[1], int)
        require(fits, f"its input has {x.shape[1]} channels, its weight {inputs}")
        spatial = found or _spatial(node, x.shape[2:], windows, geometry)
        shape = (x.shape[0], outputs, *spatial)
    geometry |= _of_size(node, geometry, sizes)
    return _layer(node, 1, kernel, geometry, shape=shape, linked=True)


def _of_size(node: Node, geometry: dict[str, Any], sizes: tuple[int, ...] | None) -> dict[str, Any]:
    """Return the size of the input, if it is known, and whether the padding is for it alone."""
    automatic, stated = _is_same(node), "output_shape" in node.attributes
    at_size: dict[str, Any] = {} if sizes is None else {"input_shape": sizes}
    if node.op == "Conv":
        depends = automatic and (sizes is None or max(geometry["stride"]) > 1)
    else:
        uneven = any(lo != hi for lo, hi in geometry["padding"])
        depends = stated or (automatic and uneven)
        at_size = {} if uneven and depends else at_size  # runtimes differ about the side
    return at_size | ({"padding_of_size": True} if depends else {})


def _spatial(
    node: Node, sizes: Sequence[Dim], windows: Sequence[_Windows], geometry: dict[str, Any]
) -> list[Dim]:
    """Return the sizes after a convolution of named ones."""
    if node.op == "Conv":
        return [_outputs(node, w, n) for w, n in zip(windows, sizes, strict=True)]
    if "output_shape" in node.attributes:
        return [None] * len(windows)  # at some sizes runtimes make something else
    extras = geometry["output_padding"]
    grown = [w.reach - w.stride + e - sum(w.pads) for w, e in zip(windows, extras, strict=True)]
    return [
        quotient_below(n, more, 1) if w.stride == 1 else size_by(f"{w.stride} * {more:+}", n)
        for n, more, w in zip(sizes, grown, windows, strict=True)
    ]


def _outputs(node: Node, w: _Windows, size: Dim) -> Dim:
    """Return the number of windows over a size that may be named."""
    if _is_same(node):
        return quotient_below(size, w.stride - 1, w.stride)
    return w.outputs_of(size, node.op)


def gemm(node: Node) -> Effect:
    """Rule of Gemm: a layer."""
    x, weight = node.varying(0), _weight(node, 1, least=2, most=2)
    node.only_varying()
    require(not node.attributes.get("transA", 0), "transA")
    weight = weight if node.attributes.get("transB", 0) else weight.T
    rows = x.shape[0] if x.shape is not None and len(x.shape) == 2 else None
    shape, alpha = (rows, weight.shape[0]), node.number("alpha", 1.0)
    effect = _layer(node, 1, weight, None, shape=shape, factor=abs(alpha))
    return replace(effect, part=Weighted(weight, times=alpha))


def matmul(node: Node) -> Effect:
    """Rule of MatMul: a layer."""
    both = "it multiplies two computed tensors, as attention does, which has no Lipschitz constant"
    require(len(node.all_varying()) < len(node.inputs), both)
    position = 1 if 0 in node.all_varying() else 0  # of the weight
    x, weight = node.varying(1 - position), _weight(node, position, least=2)
    if weight.ndim > 2:
        return _batched(node, position, weight)
    if position == 0:
        columns = x.shape[-1:] if x.shape is not None and len(x.shape) > 1 else ()
        shape = x.shape and (*x.shape[:-2], weight.shape[0], *columns)
        return _layer(node, 0, weight, None, shape=shape)
    shape = x.shape and (*x.shape[:-1], weight.shape[1])
    return _layer(node, 1, weight.T, None, shape=shape, linked=True)


def _batched(node: Node, position: int, weight: Values) -> Effect:
    """Return the effect of a stack of matrices, each on its own part: as groups, one tap long."""
    x = node.varying(1 - position)
    require(x.shape is not None and len(x.shape) > 1, "the axes of its input are unknown")
    assert x.shape is not None
    matrices = np.swapaxes(weight, -1, -2) if position == 1 else weight
    rows, columns = matrices.shape[-2:]
    batch = broadcast([x.shape[:-2], weight.shape[:-2]])
    times = repeats(x.shape[:-2], batch)
    ends = (x.shape[-2], rows) if position == 1 else (rows, x.shape[-1])
    groups = numbers_times(weight.shape[:-2])
    return _layer(
        node,
        position,
        matrices.reshape(groups * rows, columns, 1),
        {"groups": groups, "input_shape": (1,)},
        shape=(*batch, *ends),
        factor=root_above(Fraction(times)),
    )


def einsum(node: Node) -> Effect:
    """Rule of Einsum of a stored weight and a tensor, by letters: a layer, maybe with groups."""
    require(len(node.inputs) == 2, "it has not two factors")
    position = 1 if 0 in node.all_varying() else 0
    x, weight = node.varying(1 - position), _weight(node, position, least=1)
    text = node.attributes["equation"].decode(errors="replace").replace(" ", "")
    left, arrow, out = text.partition("->")
    terms = left.split(",")
    plain = arrow and len(terms) == 2 and all(t.isalpha() for t in (*terms, out))
    require(plain and all(len(set(t)) == len(t) for t in (*terms, out)), f"equation {text!r}")
    ours, theirs = terms[position], terms[1 - position]
    shape = x.shape or ()
    sizes = dict(zip(ours, weight.shape, strict=True)) if len(ours) == weight.ndim else {}
    found = dict(zip(theirs, shape, strict=True)) if len(theirs) == len(shape) else {}
    fits = sizes and found and all(found[c] == sizes[c] for c in set(ours) & set(theirs))
    require(fits, f"{text!r} of {shape_text(x.shape)} and {weight.shape}")
    only = (set(ours) ^ set(theirs)) - set(out)
    require(not only and set(out) <= set(ours + theirs), f"{text!r} sums up one factor alone")
    groups, columns, rows = (
        [c for c in ours if (c in theirs, c in out) == kind]
        for kind in ((True, True), (True, False), (False, True))
    )
    order = [ours.index(c) for c in (*groups, *rows, *columns)]
    count, high, wide = (math.prod(sizes[c] for c in part) for part in (groups, rows, columns))
    kernel = weight.transpose(order).reshape(count * high, wide, 1)
    dims = tuple((found | sizes)[c] for c in out)
    return _layer(node, position, kernel, {"groups": count, "input_shape": (1,)}, shape=dims)


def _layer(
    node: Node,
    position: int,
    weight: Values,
    geometry: dict[str, Any] | None,
    *,
    shape: Shape,
    factor: float = 1.0,
    linked: bool = False,
) -> Effect:
    source = node.inputs[position]
    assert isinstance(source, Fixed)
    layer = (source.source, weight, geometry, source.word)
    part = Weighted(weight, geometry) if linked else None
    return Effect({1 - position: factor}, (shape,), layer=layer, part=part)


def _weight(node: Node, position: int, *, least: int, most: int = 32) -> Values:
    """Return a constant floating array of the right number of axes."""
    weight = node.fixed(position)
    if weight is None or weight.dtype.kind != "f" or not least <= weight.ndim <= most:
        what = "missing" if weight is None else f"{weight.dtype} of shape {weight.shape}"
        msg = f"its weight is {what}"
        raise NotUnderstoodError(msg)
    return weight


def _sizes(shape: Shape, axes: int) -> tuple[int, ...] | None:
    """Return the spatial sizes of an input (batch, channels, *spatial) if all are known."""
    if shape is None:
        return None
    require(len(shape) == axes + 2, f"its input has shape {shape_text(shape)}, not {axes + 2} axes")
    sizes = tuple(n for n in shape[2:] if isinstance(n, int) and n > 0)
    return sizes if len(sizes) == axes else None


def _is_same(node: Node) -> bool:
    return node.attributes.get("auto_pad") in (b"SAME_UPPER", b"SAME_LOWER")


def _windows(
    node: Node, shape: Shape, taps: Sequence[int]
) -> tuple[tuple[int, ...] | None, list[_Windows]]:
    """Return the sizes of an input, and its windows per axis, whichever way padding is stated."""
    axes = len(taps)
    sizes = _sizes(shape, axes)
    strides, dilations = (node.integers(key, (1,) * axes) for key in ("strides", "dilations"))
    plain = list(map(_Windows, taps, strides, dilations, sizes or (None,) * axes))
    given = node.integers("pads", (0,) * (2 * axes))
    automatic = node.attributes.get("auto_pad", b"NOTSET")
    if node.op == "ConvTranspose" and "output_shape" in node.attributes:
        return sizes, _shaped(node, plain)
    if automatic == b"VALID":
        return sizes, plain
    if automatic in (b"NOTSET", b""):
        require(min(given, default=0) >= 0, f"negative pads {given}")
        pads = list(zip(given[:axes], given[axes:], strict=True))
    else:
        known = _is_same(node) and min(strides, default=1) > 0
        require(known, f"auto_pad {readable(automatic)}")
        if node.op == "ConvTranspose":
            return sizes, _cropped(node, plain)
        pads = [w.same(upper=automatic == b"SAME_UPPER") for w in plain]
    return sizes, [replace(w, pads=p) for w, p in zip(plain, pads, strict=True)]


def _shaped(node: Node, plain: list[_Windows]) -> list[_Windows]:
    """Return windows of a ConvTranspose cropped to the sizes that the node states.

    At an unknown size they are not cropped: the operator has the same bound at every size.
    """
    extras = node.integers("output_padding", (0,) * len(plain))
    wanted = node.integers("output_shape", (0,) * len(plain))
    totals = [
        0 if w.size is None else w.stride * (w.size - 1) + w.reach + e - n
        for w, e, n in zip(plain, extras, wanted, strict=True)
    ]
    require(min(totals) >= 0 and min(wanted) > 0, "output_shape beyond what its windows reach")
    return [replace(w, pads=(t // 2, t - t // 2)) for w, t in zip(plain, totals, strict=True)]


def _cropped(node: Node, plain: list[_Windows]) -> list[_Windows]:
    """Return windows of a ConvTranspose whose output is its input times the stride."""
    extras = node.integers("output_padding", (0,) * len(plain))
    totals = [w.reach - w.stride + e for w, e in zip(plain, extras, strict=True)]
    require(min(totals) >= 0, "auto_pad by which its output would have to be padded")
    return [replace(w, pads=(t // 2, t - t // 2)) for w, t in zip(plain, totals, strict=True)]


def max_pool(node: Node) -> Effect:
    """Rule of MaxPool (docs/theory.md, Lemma 18): a sample counts as often as it is read."""
    effect, windows = _pool(node, lambda w, outputs: Fraction(w.readers(outputs)))
    layer = MaxPool(
        tuple(w.taps for w in windows),
        tuple(w.stride for w in windows),
        tuple(w.dilation for w in windows),
    )
    return replace(effect, part=Pooled(layer))


def average_pool(node: Node) -> Effect:
    """Rule of AveragePool (docs/theory.md, Lemma 18)."""
    counts_padding = bool(node.attributes.get("count_include_pad", 0))
    effect, windows = _pool(
        node, lambda w, outputs: _average(w, outputs, counts_padding=counts_padding)
    )
    # in a chain every average is over all samples of its window
    is_whole = all(w.dilation == 1 and not w.may_exceed for w in windows)
    if not is_whole or not (counts_padding or all(w.pads == (0, 0) for w in windows)):
        return effect
    layer = AvgPool(tuple(w.taps for w in windows), tuple(w.stride for w in windows))
    return replace(effect, part=Pooled(layer))


def _pool(
    node: Node, square_of: Callable[[_Windows, int | None], Fraction]
) -> tuple[Effect, list[_Windows]]:
    """Return the product over the axes, whose factors squared are given, and the windows."""
    x, taps = node.varying(0), tuple(node.attributes.get("kernel_shape", ()))
    sizes, windows = _windows(node, x.shape, taps)
    strides, dilations = tuple(w.stride for w in windows), tuple(w.dilation for w in windows)
    positive = min((*taps, *strides, *dilations), default=0) >= 1
    require(positive, f"windows of shape {taps}, stride {strides}, dilation {dilations}")
    differs = _is_same(node) and max(dilations) > 1
    require(not differs, "auto_pad with dilation, which runtimes understand differently")
    ceil = node.attributes.get("ceil_mode", 0)
    cut_off = ceil and node.op == "AveragePool"
    require(not cut_off, "ceil_mode, under which windows may be cut off")
    # by the standard there is no output then, or one
    fits = all(w.size is None or w.padded(w.size) >= w.reach for w in windows)
    large = f"its window {taps} is larger than its padded input of the sizes {sizes}"
    require(fits, large)
    outputs = [None if ceil else w.outputs() for w in windows]
    dims: list[Dim] = list(outputs)
    if x.shape is not None and sizes is None and not ceil:
        dims = [_outputs(node, w, n) for w, n in zip(windows, x.shape[2:], strict=True)]
    square = math.prod(map(square_of, windows, outputs), start=Fraction(1))
    shape = None if x.shape is None else (*x.shape[:2], *dims)
    return Effect({0: root_above(square)}, (shape,)), windows


def _average(w: _Windows, outputs: int | None, *, counts_padding: bool) -> Fraction:
    """Return the square of the factor of averages along one axis."""
    k, step = w.taps, w.step
    c = k if counts_padding else w.least_count()
    others = (k - 1) // step  # on each side; their overlaps fall by `step` each
    overlaps = k + 2 * others * k - step * others * (others + 1)
    found = min(Fraction(w.readers(outputs), c), Fraction(overlaps, c * c))
    return max(found, Fraction(1)) if w.may_exceed else found


def global_pool(node: Node) -> Effect:
    """Rule of GlobalAveragePool and GlobalMaxPool."""
    x = node.varying(0)
    sizes = None if x.shape is None else _sizes(x.shape, len(x.shape) - 2)
    shape = None if x.shape is None else (*x.shape[:2], *(1 for _ in x.shape[2:]))
    if sizes is None:
        return Effect({0: 1.0}, (shape,))
    mean = node.op == "GlobalAveragePool"
    part = Pooled(AvgPool(sizes) if mean else MaxPool(sizes))
    return Effect({0: part.constant}, (shape,), part=part)


def reduce(node: Node) -> Effect:
    """Rule of ReduceMean, ReduceSum, ReduceMax, ReduceMin and ReduceL2."""
    x = node.only_varying()
    node.fixed(1)
    axes = node.indices("axes", 1, [])
    if axes is None:
        msg = "its axes are no list"
        raise NotUnderstoodError(msg)
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        return Effect({0: 1.0}, (x.shape,))
    shape, count = None, None
    if x.shape is not None:
        rank, keep = len(x.shape), node.attributes.get("keepdims", 1)
        chosen = set(axes_from_front(axes or range(rank), rank))
        kept = [1 if i in chosen else n for i, n in enumerate(x.shape) if keep or i not in chosen]
        shape, reduced = tuple(kept), [x.shape[i] for i in chosen]
        count = numbers_times(reduced) if are_numbers(reduced) else None
    if node.op == "ReduceSum":
        require(count is not None, "it adds up an unknown number of entries")
        return Effect({0: root_above(Fraction(count or 0))}, (shape,))
    mean = node.op == "ReduceMean" and count
    return Effect({0: root_above(Fraction(1, count)) if mean and count else 1.0}, (shape,))
