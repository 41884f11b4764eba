"""What one node of an ONNX graph does to Lipschitz constants and to shapes.

A rule looks at the attributes, the constants and the shapes that a node reads, and returns a factor for each varying
input: the outputs of two runs differ by at most the sum (or the root of the sum of squares) of factor times difference.
Facts behind the factors: docs/theory.md, section 8.  Operators are those of the standard's versions from 7 on.  An
operator, attribute or shape that a rule does not know raises `NotUnderstoodError`: nothing is taken to be 1.

A dimension is a number, the name of one, or None if nothing is known; two dimensions of one name are equal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm._exact import float_above, root_above
from gramnorm.geometry import ConvGeometry

__all__ = ["RULES", "Effect", "Fixed", "Node", "NotUnderstoodError", "Varying", "apply_rule"]

Dim = int | str | None
Shape = tuple[Dim, ...] | None


_FLOATS = frozenset(
    ("alpha", "beta", "epsilon", "gamma", "max", "min", "momentum", "ratio", "value")
)
_TEXTS = frozenset(("approximate", "auto_pad", "mode"))
_INTEGERS = frozenset(
    (
        *("allowzero", "axis", "blocksize", "ceil_mode", "count_include_pad", "group", "keepdims"),
        *("noop_with_empty_axes", "num_outputs", "seed", "storage_order", "to"),
        *("training_mode", "transA", "transB"),
    )
)


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


@dataclass(frozen=True)
class _Rule:
    function: Callable[[Node], Effect]
    attributes: frozenset[str] = field(default_factory=frozenset)


def apply_rule(node: Node) -> Effect:
    """Return what a node does, or raise NotUnderstoodError."""
    rule = RULES.get(node.op)
    if rule is None:
        msg = "there is no rule for it"
        raise NotUnderstoodError(msg)
    for name, value in node.attributes.items():
        if name not in rule.attributes or not _fits(name, value):
            msg = f"its attribute {name!r} is unknown or of another type"
            raise NotUnderstoodError(msg)
    try:
        return rule.function(node)
    except (ValueError, OverflowError) as error:  # lists of unequal lengths, numbers beyond 64 bits
        raise NotUnderstoodError(str(error)) from error


def _fits(name: str, value: Any) -> bool:
    """Say whether an attribute has the type it has in the standard: a list of integers unless listed here."""
    if name in _FLOATS:
        return isinstance(value, float)
    if name in _TEXTS:
        return isinstance(value, bytes)
    if name in _INTEGERS:
        return isinstance(value, int)
    return isinstance(value, list) and all(isinstance(n, int) for n in value)


# Layers.


def _conv(node: Node) -> Effect:
    x, kernel = node.varying(0), _weight(node, 1, least=3)
    node.rest_is_fixed()
    transposed = node.op == "ConvTranspose"
    axes = kernel.ndim - 2
    sizes = _sizes(x.shape, axes)
    if "kernel_shape" in node.attributes and _ints(node, "kernel_shape", ()) != kernel.shape[2:]:
        msg = f"kernel_shape does not fit the weight of shape {kernel.shape}"
        raise NotUnderstoodError(msg)
    groups = int(node.attributes.get("group", 1))
    strides, dilations = (_ints(node, key, (1,) * axes) for key in ("strides", "dilations"))
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
        extra = _ints(node, "output_padding", (0,) * axes)
        geometry |= {"transposed": True, "output_padding": extra}
    stated: dict[str, Any] = {"input_shape": sizes} if sizes is not None else {}
    try:
        found = ConvGeometry.of(kernel.shape, **geometry, **stated)
    except (ValueError, TypeError) as error:
        raise NotUnderstoodError(str(error)) from error
    inputs, outputs = (kernel.shape[i] for i in ((0, 1) if transposed else (1, 0)))
    inputs, outputs = (inputs, outputs * groups) if transposed else (inputs * groups, outputs)
    if x.shape is not None and isinstance(x.shape[1], int) and x.shape[1] != inputs:
        msg = f"its input has {x.shape[1]} channels, its weight {inputs}"
        raise NotUnderstoodError(msg)
    shape = None
    if x.shape is not None:
        shape = (x.shape[0], outputs, *(found.output_shape or (None,) * axes))
    return _layer(node, 1, kernel, geometry | stated, shape=shape)


def _gemm(node: Node) -> Effect:
    x, weight = node.varying(0), _weight(node, 1, least=2, most=2)
    node.rest_is_fixed()
    if node.attributes.get("transA", 0):
        msg = "transA"
        raise NotUnderstoodError(msg)
    weight = weight if node.attributes.get("transB", 0) else weight.T
    rows = x.shape[0] if x.shape is not None and len(x.shape) == 2 else None
    alpha = _finite(node.attributes.get("alpha", 1.0), "alpha")
    return _layer(node, 1, weight, None, shape=(rows, weight.shape[0]), factor=abs(alpha))


def _matmul(node: Node) -> Effect:
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
        msg = f"its input has shape {_text(shape)}, not {axes + 2} axes"
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
    given = _ints(node, "pads", (0,) * (2 * axes), length=2 * axes)
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


# Pooling: docs/theory.md, Lemma 17.


def _pool(node: Node) -> Effect:
    x = node.varying(0)
    taps = _ints(node, "kernel_shape", ())
    axes = len(taps)
    sizes = _sizes(x.shape, axes)
    strides, dilations = (_ints(node, key, (1,) * axes) for key in ("strides", "dilations"))
    if axes == 0 or min(*taps, *strides, *dilations) < 1:
        msg = f"windows of shape {taps}, stride {strides}, dilation {dilations}"
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
        m = None if n is None or ceil else max((n + lo + hi - d * (k - 1) - 1) // s + 1, 0)
        outputs.append(m)
        step = s // math.gcd(s, d)  # taps after which windows that overlap follow each other
        often = -(-k // step)
        often = often if m is None else min(often, m)
        if average:
            counts_padding = bool(node.attributes.get("count_include_pad", 0))
            c = k if counts_padding else _least_count(k, d, lo, hi, n)
            others = (k - 1) // step  # on each side; their overlaps fall by `step` each
            overlaps = k + 2 * others * k - step * others * (others + 1)
            square *= min(Fraction(often, c), Fraction(overlaps, c * c))
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


def _global_pool(node: Node) -> Effect:
    x = node.varying(0)
    sizes = None if x.shape is None else _sizes(x.shape, len(x.shape) - 2)
    shape = None if x.shape is None else (*x.shape[:2], *(1 for _ in x.shape[2:]))
    mean = node.op == "GlobalAveragePool" and sizes is not None
    return Effect({0: root_above(Fraction(1, math.prod(sizes or ()))) if mean else 1.0}, (shape,))


def _reduce(node: Node) -> Effect:
    x = node.varying(0)
    node.rest_is_fixed()
    axes = node.attributes.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = _integers(node.fixed(1))
    if axes is None and node.attributes.get("noop_with_empty_axes", 0):
        return Effect({0: 1.0}, (x.shape,))
    shape, reduced = None, None
    if x.shape is not None:
        chosen = range(len(x.shape)) if not axes else [_axis(a, len(x.shape)) for a in _axes(axes)]
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


# Entry by entry.


def _slope(constant: Callable[[Node], float]) -> Callable[[Node], Effect]:
    """Return the rule of a function of one number with that largest slope; other inputs are its constants."""

    def rule(node: Node) -> Effect:
        x = node.varying(0)
        node.rest_is_fixed()
        return Effect({0: constant(node)}, (x.shape,))

    return rule


def _number(node: Node, name: str, default: float) -> float:
    """Return the modulus of an attribute."""
    return abs(_finite(node.attributes.get(name, default), name))


def _finite(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        msg = f"{name} is {value!r}"
        raise NotUnderstoodError(msg)
    return float(value)


def _selu(node: Node) -> float:
    alpha = max(1.0, _number(node, "alpha", 1.67326319217681884765625))
    return float_above(
        Fraction(alpha) * Fraction(_number(node, "gamma", 1.05070102214813232421875))
    )


def _celu(node: Node) -> float:
    if not _finite(node.attributes.get("alpha", 1.0), "alpha") > 0:
        msg = "alpha is not positive"
        raise NotUnderstoodError(msg)
    return 1.0


def _prelu(node: Node) -> float:
    return max(1.0, _largest(node.fixed(1)))


def _gelu(node: Node) -> float:
    approximation = node.attributes.get("approximate", b"none")
    if approximation not in (b"none", b"tanh"):
        msg = f"approximate is {approximation!r}"
        raise NotUnderstoodError(msg)
    return 1.129 if approximation == b"none" else 1.13


def _dropout(node: Node) -> float:
    training = node.fixed(2)
    if training is not None and bool(np.any(training)):
        msg = "training_mode"
        raise NotUnderstoodError(msg)
    return 1.0


def _gated(node: Node) -> Effect:
    """Sigmoid and HardSigmoid, by which their own input may be multiplied next."""
    x = node.varying(0)
    if node.op == "Sigmoid":
        return Effect({0: 0.25}, (x.shape,), gate=1.1)
    beta = Fraction(_finite(node.attributes.get("beta", 0.5), "beta"))
    # x t with t = alpha x + beta in [0, 1] has the slope 2 t - beta, beyond it 0 or 1
    gate = float_above(max(Fraction(1), abs(beta), abs(2 - beta)))
    return Effect({0: _number(node, "alpha", float(np.float32(0.2)))}, (x.shape,), gate=gate)


def _largest(values: np.ndarray[Any, np.dtype[Any]] | None) -> float:
    """Return the largest modulus in a constant."""
    if values is None or values.dtype.kind not in "fiu" or not np.all(np.isfinite(values)):
        msg = "a constant of it is missing, not numeric or not finite"
        raise NotUnderstoodError(msg)
    return float_above(max((abs(Fraction(v)) for v in _extremes(values)), default=Fraction(0)))


def _extremes(values: np.ndarray[Any, np.dtype[Any]]) -> list[Any]:
    return [values.min().item(), values.max().item()] if values.size else []


def _batch_norm(node: Node) -> Effect:
    x = node.varying(0)
    node.rest_is_fixed()
    scale, variance = node.fixed(1), node.fixed(4)
    if node.attributes.get("training_mode", 0) or node.outputs > 1:
        msg = "training mode"
        raise NotUnderstoodError(msg)
    if scale is None or variance is None or scale.ndim != 1 or scale.shape != variance.shape:
        msg = "scale and variance are not vectors of one length"
        raise NotUnderstoodError(msg)
    _largest(scale), _largest(variance)
    if x.shape is not None and (len(x.shape) < 2 or x.shape[1] not in (scale.size, None)):
        msg = f"its input has shape {_text(x.shape)} and not {scale.size} channels"
        raise NotUnderstoodError(msg)
    epsilon = Fraction(_finite(node.attributes.get("epsilon", float(np.float32(1e-5))), "epsilon"))
    square = Fraction(0)
    for a, v in zip(scale.tolist(), variance.tolist(), strict=True):
        below = Fraction(v) + epsilon
        if below <= 0:
            msg = "a variance is not positive"
            raise NotUnderstoodError(msg)
        square = max(square, Fraction(a) ** 2 / below)
    return Effect({0: root_above(square)}, (x.shape,))


def _add(node: Node) -> Effect:
    factors, shape = _joined(node)
    return Effect(factors, (shape,))


def _extremum(node: Node) -> Effect:
    factors, shape = _joined(node)
    return Effect(factors, (shape,), stacked=True)


def _multiply(node: Node) -> Effect:
    varying = [i for i, x in enumerate(node.inputs) if isinstance(x, Varying)]
    if len(varying) == 2:
        return _gate_product(node)
    if node.op == "Div" and varying != [0]:
        msg = "it divides by what depends on the graph's inputs"
        raise NotUnderstoodError(msg)
    constant = node.fixed(1 - varying[0])
    if node.op == "Div" and constant is not None:
        if constant.dtype.kind != "f" or np.any(constant == 0):
            msg = "it divides by zero or by integers"
            raise NotUnderstoodError(msg)
        _largest(constant)
        least = np.min(np.abs(constant)).item() if constant.size else 1
        by = float_above(1 / Fraction(least))
    else:
        by = _largest(constant)
    factors, shape = _joined(node)
    return Effect(
        {i: float_above(Fraction(f) * Fraction(by)) for i, f in factors.items()}, (shape,)
    )


def _gate_product(node: Node) -> Effect:
    """Return x times a function of x that is known to stay Lipschitz with x."""
    for position in (0, 1):
        x, gate = node.varying(position), node.varying(1 - position)
        if node.op == "Mul" and gate.gate is not None and gate.gate[0] == x.name:
            return Effect({position: gate.gate[1]}, (x.shape,))
    msg = "it combines two computed tensors, which has no Lipschitz constant by itself"
    raise NotUnderstoodError(msg)


def _joined(node: Node) -> tuple[dict[int, float], Shape]:
    """Return how often broadcasting repeats each varying input, as factors, and the shape that comes out."""
    varying = {i: x for i, x in enumerate(node.inputs) if isinstance(x, Varying)}
    others = [x.value for x in node.inputs if isinstance(x, Fixed)]
    if len(varying) == 1 and all(value is not None and value.size == 1 for value in others):
        ((position, x),) = varying.items()
        most = max((value.ndim for value in others if value is not None), default=0)
        keeps = x.shape is not None and len(x.shape) >= most
        return {position: 1.0}, x.shape if keeps else None
    shapes = [x.shape for x in varying.values()]
    shapes += [None if value is None else value.shape for value in others]
    shape = _broadcast(shapes)
    return {i: root_above(Fraction(_repeats(x.shape, shape))) for i, x in varying.items()}, shape


def _broadcast(shapes: Sequence[Shape]) -> tuple[Dim, ...]:
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
            msg = f"the shapes {' and '.join(map(_text, known))} may not be equal, so broadcasting may repeat a tensor"
            raise NotUnderstoodError(msg)
        result.append(dims[0] if dims else 1)
    return tuple(result)


def _repeats(shape: Shape, result: tuple[Dim, ...]) -> int:
    """Return how often broadcasting to `result` repeats each entry."""
    assert shape is not None
    padded = (*(1 for _ in range(len(result) - len(shape))), *shape)
    times = 1
    for n, m in zip(padded, result, strict=True):
        if n == 1 and m != 1:
            if not isinstance(m, int):
                msg = f"broadcasting from {_text(shape)} to {_text(result)} repeats a tensor unknown times"
                raise NotUnderstoodError(msg)
            times *= m
    return times


# Shapes, parts and selections.


def _rearranged(shape_of: Callable[[Node, Shape], Shape]) -> Callable[[Node], Effect]:
    """Return the rule of a node that only moves entries; `shape_of` says where to, or None."""

    def rule(node: Node) -> Effect:
        x = node.varying(0)
        node.rest_is_fixed()
        return Effect({0: 1.0}, (shape_of(node, x.shape),))

    return rule


def _known(node: Node, name: str, position: int) -> list[Any] | None:
    """Return integers from an attribute or a constant input, None if they are left out or unknown."""
    if name in node.attributes:
        return list(node.attributes[name])
    x = node.inputs[position] if position < len(node.inputs) else None
    if not isinstance(x, Fixed) or x.value is None or x.value.ndim > 1:
        return None
    return _integers(x.value)


def flattened(node: Node, shape: Shape) -> Shape:
    """Return the shape after Flatten."""
    if shape is None:
        return None
    axis = int(node.attributes.get("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    return _product(shape[:axis]), _product(shape[axis:])


def _product(dims: Sequence[Dim]) -> Dim:
    rest = [n for n in dims if n != 1]
    if len(rest) == 1:
        return rest[0]
    return math.prod(n for n in rest if isinstance(n, int)) if _numbers(rest) else None


def _numbers(dims: Sequence[Dim]) -> bool:
    return all(isinstance(n, int) for n in dims)


def reshaped(node: Node, shape: Shape) -> Shape:
    """Return the shape after Reshape, resolving 0 (as before) and -1 (what is left)."""
    target = _known(node, "shape", 1)
    if target is None or node.attributes.get("allowzero", 0):
        return None
    result: list[Dim] = [
        (shape[i] if shape is not None and i < len(shape) else None) if n == 0 else n
        for i, n in enumerate(target)
    ]
    if -1 in result:
        left = result.index(-1)
        result[left] = None
        others = result[:left] + result[left + 1 :]
        if shape is not None and None not in shape and None not in others:
            result[left] = _quotient(shape, others)
    return tuple(result)


def _quotient(dims: Sequence[Dim], others: Sequence[Dim]) -> Dim:
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


def _squeezed(node: Node, shape: Shape) -> Shape:
    axes = _known(node, "axes", 1)
    if axes is None or shape is None:
        return None
    gone = {_axis(a, len(shape)) for a in _axes(axes)}
    return tuple(n for i, n in enumerate(shape) if i not in gone)


def _unsqueezed(node: Node, shape: Shape) -> Shape:
    axes = _known(node, "axes", 1)
    if axes is None or shape is None:
        return None
    rank = len(shape) + len(axes)
    new = {_axis(a, rank) for a in _axes(axes)}
    rest = iter(shape)
    return tuple(1 if i in new else next(rest, None) for i in range(rank))


def _padded(node: Node, shape: Shape) -> Shape:
    if node.attributes.get("mode", b"constant") != b"constant":
        msg = f"mode {node.attributes['mode']!r} repeats entries"
        raise NotUnderstoodError(msg)
    pads = _known(node, "pads", 1)
    if shape is None or pads is None or len(pads) != 2 * len(shape) or len(node.inputs) > 3:
        return None
    ends = zip(shape, pads[: len(shape)], pads[len(shape) :], strict=True)
    return tuple(
        n if lo == hi == 0 else n + lo + hi if isinstance(n, int) else None for n, lo, hi in ends
    )


def _sliced(node: Node, shape: Shape) -> Shape:
    starts, ends = _known(node, "starts", 1), _known(node, "ends", 2)
    axes, steps = _known(node, "axes", 3), _known(node, "steps", 4)
    left_out = [i for i in (3, 4) if i < len(node.inputs) and node.inputs[i] is not None]
    unknown = (axes is None and 3 in left_out) or (steps is None and 4 in left_out)
    if shape is None or starts is None or ends is None or unknown:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    result = list(shape)
    for start, end, axis, step in zip(starts, ends, _axes(axes), steps, strict=True):
        i = _axis(axis, len(shape))
        n = shape[i]
        whole = all(isinstance(v, int) for v in (n, start, end, step)) and step
        result[i] = len(range(*slice(start, end, step).indices(n))) if whole else None  # type: ignore[arg-type]
    return tuple(result)


def _concat(node: Node) -> Effect:
    varying = {i: x for i, x in enumerate(node.inputs) if isinstance(x, Varying)}
    shapes = [x.shape for x in varying.values()]
    shapes += [
        None if x.value is None else x.value.shape for x in node.inputs if isinstance(x, Fixed)
    ]
    known = [shape for shape in shapes if shape is not None]
    shape: Shape = None
    if len(known) == len(shapes) and len(set(map(len, known))) == 1:
        axis = _axis(node.attributes.get("axis", 1), len(known[0]))
        parts = [s[axis] for s in known]
        total = sum(n for n in parts if isinstance(n, int)) if _numbers(parts) else None
        shape = (*known[0][:axis], total, *known[0][axis + 1 :])
    return Effect(dict.fromkeys(varying, 1.0), (shape,), stacked=True)


def _split(node: Node) -> Effect:
    x = node.varying(0)
    node.rest_is_fixed()
    if x.shape is None:
        return Effect({0: 1.0}, (None,) * node.outputs)
    axis = _axis(node.attributes.get("axis", 0), len(x.shape))
    parts = _known(node, "split", 1)
    n = x.shape[axis]
    stated = len(node.inputs) > 1 and node.inputs[1] is not None
    if parts is None and not stated and isinstance(n, int) and n % node.outputs == 0:
        parts = [n // node.outputs] * node.outputs
    if parts is None or len(parts) != node.outputs:
        parts = [None] * node.outputs
    return Effect({0: 1.0}, tuple((*x.shape[:axis], p, *x.shape[axis + 1 :]) for p in parts))


def _gather(node: Node) -> Effect:
    x, indices = node.varying(0), node.fixed(1)
    if x.shape is None or indices is None or indices.dtype.kind not in "iu":
        msg = "its shape or its indices are unknown"
        raise NotUnderstoodError(msg)
    axis = _axis(node.attributes.get("axis", 0), len(x.shape))
    n = x.shape[axis]
    if np.any(indices < 0):
        if not isinstance(n, int):
            msg = "negative indices into an axis of unknown size"
            raise NotUnderstoodError(msg)
        indices = np.where(indices < 0, indices + n, indices)
    often = np.unique(indices, return_counts=True)[1].max(initial=0)
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return Effect({0: root_above(Fraction(int(often)))}, (shape,))


# Attributes.


def _ints(
    node: Node, name: str, default: tuple[int, ...], *, length: int | None = None
) -> tuple[int, ...]:
    """Return a list of integers of the length of its default, which an empty one takes as well."""
    value = tuple(node.attributes.get(name, default))
    needed = len(default) if length is None else length
    if needed and len(value) not in (needed, 0):
        msg = f"{name} is {value!r}"
        raise NotUnderstoodError(msg)
    return value or default


def _axis(axis: Any, rank: int) -> int:
    """Return an axis counted from the front."""
    if not isinstance(axis, int) or not -rank <= axis < rank:
        msg = f"axis {axis!r} of {rank}"
        raise NotUnderstoodError(msg)
    return axis % rank


def _axes(axes: Sequence[Any]) -> list[int]:
    """Return axes that are numbers, each once."""
    if not all(isinstance(a, int) for a in axes) or len(set(axes)) < len(axes):
        msg = f"axes {axes!r}"
        raise NotUnderstoodError(msg)
    return list(axes)


def _integers(values: np.ndarray[Any, np.dtype[Any]] | None) -> list[Any]:
    """Return the entries of a short constant, names of dimensions among them."""
    flat = [] if values is None else np.ravel(values).tolist()
    return [n if isinstance(n, str) or n is None else int(n) for n in flat]


def _text(shape: Shape) -> str:
    if shape is None:
        return "(unknown)"
    return f"({', '.join('?' if n is None else str(n) for n in shape)})"


def _one(_node: Node) -> float:
    return 1.0


_WINDOW = frozenset(("auto_pad", "dilations", "kernel_shape", "pads", "strides"))
_REDUCE = _Rule(_reduce, frozenset(("axes", "keepdims", "noop_with_empty_axes")))

RULES = {
    "Conv": _Rule(_conv, _WINDOW | {"group"}),
    "ConvTranspose": _Rule(_conv, _WINDOW | {"group", "output_padding", "output_shape"}),
    "Gemm": _Rule(_gemm, frozenset(("alpha", "beta", "transA", "transB"))),
    "MatMul": _Rule(_matmul),
    "MaxPool": _Rule(_pool, _WINDOW | {"ceil_mode", "storage_order"}),
    "AveragePool": _Rule(_pool, _WINDOW | {"ceil_mode", "count_include_pad"}),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _Rule(_global_pool)),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"), _REDUCE),
    "BatchNormalization": _Rule(_batch_norm, frozenset(("epsilon", "momentum", "training_mode"))),
    **dict.fromkeys(
        ("Relu", "Tanh", "Softplus", "Softsign", "Abs", "Neg", "Sin", "Cos", "Atan"),
        _Rule(_slope(_one)),
    ),
    "Clip": _Rule(_slope(_one), frozenset(("min", "max"))),
    "Dropout": _Rule(_slope(_dropout), frozenset(("ratio", "seed"))),
    "LeakyRelu": _Rule(
        _slope(lambda node: max(1.0, _number(node, "alpha", 0.01))), frozenset(("alpha",))
    ),
    "Elu": _Rule(_slope(lambda node: max(1.0, _number(node, "alpha", 1.0))), frozenset(("alpha",))),
    "Celu": _Rule(_slope(_celu), frozenset(("alpha",))),
    "Selu": _Rule(_slope(_selu), frozenset(("alpha", "gamma"))),
    "PRelu": _Rule(_slope(_prelu)),
    "Sigmoid": _Rule(_gated),
    "HardSigmoid": _Rule(_gated, frozenset(("alpha", "beta"))),
    "HardSwish": _Rule(_slope(lambda _: 1.5)),
    "Swish": _Rule(_slope(lambda _: 1.1), frozenset(("alpha",))),
    "Mish": _Rule(_slope(lambda _: 1.09)),
    "Gelu": _Rule(_slope(_gelu), frozenset(("approximate",))),
    "Erf": _Rule(_slope(lambda _: 1.1284)),
    "Softmax": _Rule(_slope(lambda _: 0.5), frozenset(("axis",))),
    **dict.fromkeys(("Add", "Sub", "Sum"), _Rule(_add)),
    **dict.fromkeys(("Max", "Min"), _Rule(_extremum)),
    **dict.fromkeys(("Mul", "Div"), _Rule(_multiply)),
    "Identity": _Rule(_rearranged(lambda _, shape: shape)),
    "Flatten": _Rule(_rearranged(flattened), frozenset(("axis",))),
    "Reshape": _Rule(_rearranged(reshaped), frozenset(("allowzero",))),
    "Transpose": _Rule(_rearranged(transposed), frozenset(("perm",))),
    "Squeeze": _Rule(_rearranged(_squeezed), frozenset(("axes",))),
    "Unsqueeze": _Rule(_rearranged(_unsqueezed), frozenset(("axes",))),
    "Pad": _Rule(_rearranged(_padded), frozenset(("mode", "pads", "value"))),
    "Slice": _Rule(_rearranged(_sliced), frozenset(("axes", "starts", "ends"))),
    "DepthToSpace": _Rule(_rearranged(lambda _, __: None), frozenset(("blocksize", "mode"))),
    "SpaceToDepth": _Rule(_rearranged(lambda _, __: None), frozenset(("blocksize",))),
    "Concat": _Rule(_concat, frozenset(("axis",))),
    "Split": _Rule(_split, frozenset(("axis", "num_outputs", "split"))),
    "Gather": _Rule(_gather, frozenset(("axis",))),
}
"""The operators that are understood, with the attributes that their rules know."""
