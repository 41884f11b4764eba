"""What one node of an ONNX graph does to Lipschitz constants and to shapes.

A rule looks at the attributes, the constants and the shapes that a node reads, and returns a factor for each varying
input: the outputs of two runs differ by at most the sum (or the root of the sum of squares) of factor times difference.
Facts behind the factors: docs/theory.md, section 8.  Operators are those of the standard's versions from 7 on.  An
operator, attribute or shape that a rule does not know raises `NotUnderstoodError`: nothing is taken to be 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm._exact import float_above, root_above
from gramnorm.geometry import ConvGeometry
from gramnorm.report.onnx_moves import (
    concat,
    flattened,
    gather,
    padded,
    rearranged,
    reshaped,
    sliced,
    split,
    squeezed,
    transposed,
    unsqueezed,
)
from gramnorm.report.onnx_nodes import (
    Dim,
    Effect,
    Fixed,
    Node,
    NotUnderstoodError,
    Shape,
    Varying,
    axis_from_front,
    broadcast,
    different_axes,
    entries,
    finite_number,
    integer_list,
    repeats,
    shape_text,
)

__all__ = ["RULES", "apply_rule"]


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
    alpha = finite_number(node.attributes.get("alpha", 1.0), "alpha")
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


# Pooling: docs/theory.md, Lemma 17.


def _pool(node: Node) -> Effect:
    x = node.varying(0)
    taps = integer_list(node, "kernel_shape", ())
    axes = len(taps)
    sizes = _sizes(x.shape, axes)
    strides, dilations = (integer_list(node, key, (1,) * axes) for key in ("strides", "dilations"))
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
        axes = entries(node.fixed(1))
    if axes is None and node.attributes.get("noop_with_empty_axes", 0):
        return Effect({0: 1.0}, (x.shape,))
    shape, reduced = None, None
    if x.shape is not None:
        chosen = (
            range(len(x.shape))
            if not axes
            else [axis_from_front(a, len(x.shape)) for a in different_axes(axes)]
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
    return abs(finite_number(node.attributes.get(name, default), name))


def _selu(node: Node) -> float:
    alpha = max(1.0, _number(node, "alpha", 1.67326319217681884765625))
    return float_above(
        Fraction(alpha) * Fraction(_number(node, "gamma", 1.05070102214813232421875))
    )


def _celu(node: Node) -> float:
    if not finite_number(node.attributes.get("alpha", 1.0), "alpha") > 0:
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
    beta = Fraction(finite_number(node.attributes.get("beta", 0.5), "beta"))
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
        msg = f"its input has shape {shape_text(x.shape)} and not {scale.size} channels"
        raise NotUnderstoodError(msg)
    epsilon = Fraction(
        finite_number(node.attributes.get("epsilon", float(np.float32(1e-5))), "epsilon")
    )
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
    shape = broadcast(shapes)
    return {i: root_above(Fraction(repeats(x.shape, shape))) for i, x in varying.items()}, shape


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
    "Identity": _Rule(rearranged(lambda _, shape: shape)),
    "Flatten": _Rule(rearranged(flattened), frozenset(("axis",))),
    "Reshape": _Rule(rearranged(reshaped), frozenset(("allowzero",))),
    "Transpose": _Rule(rearranged(transposed), frozenset(("perm",))),
    "Squeeze": _Rule(rearranged(squeezed), frozenset(("axes",))),
    "Unsqueeze": _Rule(rearranged(unsqueezed), frozenset(("axes",))),
    "Pad": _Rule(rearranged(padded), frozenset(("mode", "pads", "value"))),
    "Slice": _Rule(rearranged(sliced), frozenset(("axes", "starts", "ends"))),
    "DepthToSpace": _Rule(rearranged(lambda _, __: None), frozenset(("blocksize", "mode"))),
    "SpaceToDepth": _Rule(rearranged(lambda _, __: None), frozenset(("blocksize",))),
    "Concat": _Rule(concat, frozenset(("axis",))),
    "Split": _Rule(split, frozenset(("axis", "num_outputs", "split"))),
    "Gather": _Rule(gather, frozenset(("axis",))),
}
"""The operators that are understood, with the attributes that their rules know."""
