"""Rules for the nodes of an ONNX graph that add up entries: layers with weights, pooling, reductions.

A layer's factor is the norm that the report finds for it.  Windows that overlap read an entry more than once, which
counts (docs/theory.md, Lemma 18).
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm._conv.geometry import ConvGeometry
from gramnorm._rigour.fractions import root_above
from gramnorm.report.onnx.nodes import (
    Dim,
    Effect,
    Fixed,
    Node,
    NotUnderstoodError,
    Shape,
    Varying,
    axis_from_front,
    different_axes,
    entries,
    finite_number,
    integer_list,
    shape_text,
)

__all__ = ["conv", "gemm", "global_pool", "matmul", "pool", "reduce"]


def conv(node: Node) -> Effect:
    """Rule of Conv and ConvTranspose: a layer."""
    x, kernel = node.varying(0), _weight(node, 1, least=3)
    node.rest_is_fixed()
    transposed = node.op == "ConvTranspose"
    axes = kernel.ndim - 2
    sizes = _sizes(x.shape, axes)
    if (
        "kernel_shape" in node.attributes
        and integer_list(node, "kernel_shape", ()) != kernel.shape[2:]
    ):
        msg = f"kernel_shape does not fit the weight of shape {kernel.shape}"
        raise NotUnderstoodError(msg)
    groups = int(node.attributes.get("group", 1))
    strides, dilations = (integer_list(node, key, (1,) * axes) for key in ("strides", "dilations"))
    geometry: dict[str, Any] = {
        "stride": strides,
        "dilation": dilations,
        "groups": groups,
        "padding": _pads(node, kernel.shape[2:], strides, dilations, sizes, transposed=transposed),
    }
    if transposed:
        if "output_shape" in node.attributes:
            msg = "output_shape, which leaves the padding open"
            raise NotUnderstoodError(msg)
        extra = integer_list(node, "output_padding", (0,) * axes)
        geometry |= {"transposed": True, "output_padding": extra}
    stated: dict[str, Any] = {"input_shape": sizes} if sizes is not None else {}
    try:
        found = ConvGeometry.of(kernel.shape, **geometry, **stated)
    except (ValueError, TypeError) as error:
        raise NotUnderstoodError(str(error)) from error
    if found.output_shape is not None and min(found.output_shape) < 1:
        msg = f"its windows are larger than its padded input of the sizes {sizes}"
        raise NotUnderstoodError(msg)
    inputs, outputs = (kernel.shape[i] for i in ((0, 1) if transposed else (1, 0)))
    inputs, outputs = (inputs, outputs * groups) if transposed else (inputs * groups, outputs)
    if x.shape is not None and isinstance(x.shape[1], int) and x.shape[1] != inputs:
        msg = f"its input has {x.shape[1]} channels, its weight {inputs}"
        raise NotUnderstoodError(msg)
    shape = None
    if x.shape is not None:
        shape = (x.shape[0], outputs, *(found.output_shape or (None,) * axes))
    if node.attributes.get("auto_pad", b"")[:4] == b"SAME" and max(strides) > 1:
        geometry["padding_of_size"] = True  # at another size it is another
    return _layer(node, 1, kernel, geometry | stated, shape=shape)


def gemm(node: Node) -> Effect:
    """Rule of Gemm: a layer."""
    x, weight = node.varying(0), _weight(node, 1, least=2, most=2)
    node.rest_is_fixed()
    if node.attributes.get("transA", 0):
        msg = "transA"
        raise NotUnderstoodError(msg)
    weight = weight if node.attributes.get("transB", 0) else weight.T
    rows = x.shape[0] if x.shape is not None and len(x.shape) == 2 else None
    alpha = finite_number(node.attributes.get("alpha", 1.0), "alpha")
    return _layer(node, 1, weight, None, shape=(rows, weight.shape[0]), factor=abs(alpha))


def matmul(node: Node) -> Effect:
    """Rule of MatMul: a layer."""
    position = 1 if isinstance(node.inputs[0], Varying) else 0  # of the weight
    x, weight = node.varying(1 - position), _weight(node, position, least=2, most=2)
    if position == 0:
        shape = x.shape and (
            *x.shape[:-2],
            weight.shape[0],
            *(x.shape[-1:] if len(x.shape) > 1 else ()),
        )
        return _layer(node, 0, weight, None, shape=shape, of=1)
    shape = x.shape and (*x.shape[:-1], weight.shape[1])
    return _layer(node, 1, weight.T, None, shape=shape)


def _layer(
    node: Node,
    position: int,
    weight: np.ndarray[Any, np.dtype[Any]],
    geometry: dict[str, Any] | None,
    *,
    shape: Shape,
    factor: float = 1.0,
    of: int = 0,
) -> Effect:
    source = node.inputs[position]
    assert isinstance(source, Fixed)
    return Effect({of: factor}, (shape,), layer=(source.source, weight, geometry))


def _weight(
    node: Node, position: int, *, least: int, most: int = 32
) -> np.ndarray[Any, np.dtype[Any]]:
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
    if len(shape) != axes + 2:
        msg = f"its input has shape {shape_text(shape)}, not {axes + 2} axes"
        raise NotUnderstoodError(msg)
    sizes = [n for n in shape[2:] if isinstance(n, int) and n > 0]
    return tuple(sizes) if len(sizes) == axes else None


def _pads(
    node: Node,
    taps: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    sizes: tuple[int, ...] | None,
    *,
    transposed: bool = False,
) -> tuple[tuple[int, int], ...]:
    """Return (lo, hi) per axis, whichever way the node states them."""
    axes = len(taps)
    given = integer_list(node, "pads", (0,) * (2 * axes), length=2 * axes)
    automatic = node.attributes.get("auto_pad", b"NOTSET")
    if automatic in (b"NOTSET", b""):
        if min(given, default=0) < 0:
            msg = f"negative pads {given}"
            raise NotUnderstoodError(msg)
        return tuple(zip(given[:axes], given[axes:], strict=True))
    if automatic == b"VALID":
        return ((0, 0),) * axes
    if automatic not in (b"SAME_UPPER", b"SAME_LOWER") or transposed or sizes is None:
        msg = f"auto_pad {automatic!r}" + " at an unknown size" * (sizes is None)
        raise NotUnderstoodError(msg)
    found = []
    for k, s, d, n in zip(taps, strides, dilations, sizes, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if automatic == b"SAME_UPPER" else (more, less))
    return tuple(found)


def pool(node: Node) -> Effect:
    """Rule of MaxPool and AveragePool (docs/theory.md, Lemma 18)."""
    x = node.varying(0)
    taps = integer_list(node, "kernel_shape", ())
    axes = len(taps)
    sizes = _sizes(x.shape, axes)
    strides, dilations = (integer_list(node, key, (1,) * axes) for key in ("strides", "dilations"))
    if axes == 0 or min(*taps, *strides, *dilations) < 1:
        msg = f"windows of shape {taps}, stride {strides}, dilation {dilations}"
        raise NotUnderstoodError(msg)
    if max(dilations) > 1 and node.attributes.get("auto_pad", b"")[:4] == b"SAME":
        msg = "auto_pad with dilation, which runtimes understand differently"
        raise NotUnderstoodError(msg)
    pads = _pads(node, taps, strides, dilations, sizes)
    ceil = bool(node.attributes.get("ceil_mode", 0))
    average = node.op == "AveragePool"
    if average and ceil:
        msg = "ceil_mode, under which windows may be cut off"
        raise NotUnderstoodError(msg)
    square = Fraction(1)
    outputs: list[Dim] = []
    for i, (k, s, d, (lo, hi)) in enumerate(zip(taps, strides, dilations, pads, strict=True)):
        n = None if sizes is None else sizes[i]
        if n is not None and n + lo + hi < d * (k - 1) + 1:  # by the standard no output, or one
            msg = f"its window {taps} is larger than its padded input of the sizes {sizes}"
            raise NotUnderstoodError(msg)
        m = None if n is None or ceil else (n + lo + hi - d * (k - 1) - 1) // s + 1
        outputs.append(m)
        step = s // math.gcd(s, d)  # taps after which windows that overlap follow each other
        often = -(-k // step)
        often = often if m is None else min(often, m)
        if average:
            counts_padding = bool(node.attributes.get("count_include_pad", 0))
            c = k if counts_padding else _least_count(k, d, lo, hi, n)
            others = (k - 1) // step  # on each side; their overlaps fall by `step` each
            overlaps = k + 2 * others * k - step * others * (others + 1)
            found = min(Fraction(often, c), Fraction(overlaps, c * c))
            # at an unknown size a window may be larger than its input: runtimes then average what there is, once
            may_exceed = n is None and s > 1 and lo + hi < d * (k - 1)
            square *= max(found, Fraction(1)) if may_exceed else found
        else:
            square *= often
    shape = None if x.shape is None else (*x.shape[:2], *outputs)
    return Effect({0: root_above(square)}, (shape,))


def _least_count(k: int, d: int, lo: int, hi: int, n: int | None) -> int:
    """Return a lower bound on the taps of a window that do not lie in the padding."""
    cut = (-(-lo // d), -(-hi // d))
    both = n is None or n < d * (k - 1) + 1  # a window may reach into both paddings
    least = k - (sum(cut) if both else max(cut))
    if least < 1:
        msg = "a window may lie in the padding"
        raise NotUnderstoodError(msg)
    return least


def global_pool(node: Node) -> Effect:
    """Rule of GlobalAveragePool and GlobalMaxPool."""
    x = node.varying(0)
    sizes = None if x.shape is None else _sizes(x.shape, len(x.shape) - 2)
    shape = None if x.shape is None else (*x.shape[:2], *(1 for _ in x.shape[2:]))
    mean = node.op == "GlobalAveragePool" and sizes is not None
    return Effect({0: root_above(Fraction(1, math.prod(sizes or ()))) if mean else 1.0}, (shape,))


def reduce(node: Node) -> Effect:
    """Rule of ReduceMean, ReduceSum, ReduceMax, ReduceMin and ReduceL2."""
    x = node.varying(0)
    node.rest_is_fixed()
    axes = node.attributes.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = entries(node.fixed(1))
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        return Effect({0: 1.0}, (x.shape,))
    shape, reduced = None, None
    if x.shape is not None:
        chosen = (
            range(len(x.shape))
            if not axes
            else different_axes([axis_from_front(a, len(x.shape)) for a in axes])
        )
        reduced = [x.shape[a] for a in chosen]
        keep = bool(node.attributes.get("keepdims", 1))
        shape = tuple(
            1 if i in chosen else n for i, n in enumerate(x.shape) if keep or i not in chosen
        )
    numbers = [n for n in reduced or () if isinstance(n, int)]
    count = math.prod(numbers) if reduced is not None and len(numbers) == len(reduced) else None
    if node.op == "ReduceSum":
        if count is None:
            msg = "it adds up an unknown number of entries"
            raise NotUnderstoodError(msg)
        return Effect({0: root_above(Fraction(count))}, (shape,))
    mean = node.op == "ReduceMean" and count
    return Effect({0: root_above(Fraction(1, count)) if mean and count else 1.0}, (shape,))
