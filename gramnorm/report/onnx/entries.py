"""Rules for the nodes of an ONNX graph that work entry by entry: activations, sums, products, normalisation.

The factor of a function of one number is its largest slope; an entry that broadcasting repeats counts as often.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm._rigour.fractions import float_above, root_above
from gramnorm.report.onnx.nodes import (
    Effect,
    Fixed,
    Node,
    NotUnderstoodError,
    Shape,
    Varying,
    broadcast,
    finite_number,
    repeats,
    shape_text,
)

__all__ = [
    "add",
    "batch_norm",
    "celu",
    "clip",
    "dropout",
    "extremum",
    "gated",
    "gelu",
    "modulus",
    "multiply",
    "prelu",
    "selu",
    "slope",
]


def slope(constant: Callable[[Node], float]) -> Callable[[Node], Effect]:
    """Return the rule of a function of one number with that largest slope; other inputs are its constants."""

    def rule(node: Node) -> Effect:
        x = node.varying(0)
        node.rest_is_fixed()
        return Effect({0: constant(node)}, (x.shape,))

    return rule


def modulus(node: Node, name: str, default: float) -> float:
    """Return the modulus of an attribute."""
    return abs(finite_number(node.attributes.get(name, default), name))


def selu(node: Node) -> float:
    """Return the largest slope of Selu."""
    alpha = max(1.0, modulus(node, "alpha", 1.67326319217681884765625))
    return float_above(
        Fraction(alpha) * Fraction(modulus(node, "gamma", 1.05070102214813232421875))
    )


def celu(node: Node) -> float:
    """Return the largest slope of Celu."""
    if not finite_number(node.attributes.get("alpha", 1.0), "alpha") > 0:
        msg = "alpha is not positive"
        raise NotUnderstoodError(msg)
    return 1.0


def prelu(node: Node) -> Effect:
    """Rule of PRelu: slopes 1 and those stored, which may repeat entries."""
    node.varying(0)
    return _times(node, max(1.0, _largest(node.fixed(1))))


def clip(node: Node) -> float:
    """Return 1, unless a bound of another shape repeats entries."""
    for position in (1, 2):
        bound = node.fixed(position)
        if bound is not None and bound.size > 1:
            msg = f"its bound {position} has the shape {bound.shape}"
            raise NotUnderstoodError(msg)
    return 1.0


def gelu(node: Node) -> float:
    """Return the largest slope of Gelu."""
    approximation = node.attributes.get("approximate", b"none")
    if approximation not in (b"none", b"tanh"):
        msg = f"approximate is {approximation!r}"
        raise NotUnderstoodError(msg)
    return 1.129 if approximation == b"none" else 1.13


def dropout(node: Node) -> float:
    """Return 1, unless it is in training mode."""
    training = node.fixed(2)
    if training is not None and bool(np.any(training)):
        msg = "training_mode"
        raise NotUnderstoodError(msg)
    return 1.0


def gated(node: Node) -> Effect:
    """Sigmoid and HardSigmoid, by which their own input may be multiplied next."""
    x = node.varying(0)
    if node.op == "Sigmoid":
        return Effect({0: 0.25}, (x.shape,), gate=1.1)
    beta = Fraction(finite_number(node.attributes.get("beta", 0.5), "beta"))
    # x t with t = alpha x + beta in [0, 1] has the slope 2 t - beta, beyond it 0 or 1
    gate = float_above(max(Fraction(1), abs(beta), abs(2 - beta)))
    return Effect({0: modulus(node, "alpha", float(np.float32(0.2)))}, (x.shape,), gate=gate)


def _largest(values: np.ndarray[Any, np.dtype[Any]] | None) -> float:
    """Return the largest modulus in a constant."""
    if values is None or values.dtype.kind not in "fiu" or not np.all(np.isfinite(values)):
        msg = "a constant of it is missing, not numeric or not finite"
        raise NotUnderstoodError(msg)
    return float_above(max((abs(Fraction(v)) for v in _extremes(values)), default=Fraction(0)))


def _extremes(values: np.ndarray[Any, np.dtype[Any]]) -> list[Any]:
    return [values.min().item(), values.max().item()] if values.size else []


def batch_norm(node: Node) -> Effect:
    """Rule of BatchNormalization with stored statistics: the largest scale."""
    x = node.varying(0)
    node.rest_is_fixed()
    scale, variance = node.fixed(1), node.fixed(4)
    if node.attributes.get("training_mode", 0) or node.outputs > 1:
        msg = "training mode"
        raise NotUnderstoodError(msg)
    vectors = [node.fixed(position) for position in (1, 2, 3, 4)]
    if (
        scale is None
        or variance is None
        or {getattr(v, "shape", None) for v in vectors} != {(scale.size,)}
    ):
        msg = "its constants are not four vectors of one length"
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


def add(node: Node) -> Effect:
    """Rule of Add, Sub and Sum."""
    factors, shape = _joined(node)
    return Effect(factors, (shape,))


def extremum(node: Node) -> Effect:
    """Rule of Max and Min."""
    factors, shape = _joined(node)
    return Effect(factors, (shape,), stacked=True)


def multiply(node: Node) -> Effect:
    """Rule of Mul and Div by constants, and of a tensor times its own gate."""
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
    return _times(node, by)


def _gate_product(node: Node) -> Effect:
    """Return x times a function of x that is known to stay Lipschitz with x."""
    for position in (0, 1):
        x, gate = node.varying(position), node.varying(1 - position)
        if node.op == "Mul" and gate.gate is not None and gate.gate[0] == x.name:
            return Effect({position: gate.gate[1]}, (x.shape,))
    msg = "it combines two computed tensors, which has no Lipschitz constant by itself"
    raise NotUnderstoodError(msg)


def _times(node: Node, by: float) -> Effect:
    """Return the effect of entries that are multiplied by at most `by`, and repeated by broadcasting."""
    factors, shape = _joined(node)
    return Effect(
        {i: float_above(Fraction(f) * Fraction(by)) for i, f in factors.items()}, (shape,)
    )


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
