"""Rules for the nodes of an ONNX graph that work entry by entry.

Activations, sums, products, normalisation.  The factor of a function of one number is its largest
slope; an entry that broadcasting repeats counts as often.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from gramnorm._rigour.fractions import float_above, root_above
from gramnorm.network._sequence import Curved, Entrywise, Joined
from gramnorm.network._slopes import (
    FIXED,
    GELU,
    RISING,
    Slopes,
    in_chain,
    lipschitz,
    of_celu,
    of_elu,
    of_gate,
    of_hard_sigmoid,
    of_leaky_relu,
    of_selu,
)
from gramnorm.report.onnx.nodes import (
    Dim,
    Effect,
    Fixed,
    Node,
    NotUnderstoodError,
    Shape,
    Values,
    are_numbers,
    axis_from_front,
    broadcast,
    numbers_times,
    readable,
    repeats,
    require,
    shape_text,
)

_TWO_COMPUTED = "it combines two computed tensors, which has no Lipschitz constant by itself"
_FLOAT, _DOUBLE = 1, 11  # the standard's numbers of these types


def slope(largest: float | Callable[[Node], float]) -> Callable[[Node], Effect]:
    """Return the rule of a function with that constant, of all entries or with slopes of any sign.

    Other inputs are its constants.
    """

    def rule(node: Node) -> Effect:
        x = node.only_varying()
        return Effect({0: largest(node) if callable(largest) else largest}, (x.shape,))

    return rule


def between(slopes: Slopes | Callable[[Node], Slopes]) -> Callable[[Node], Effect]:
    """Return the rule of a function of each entry alone by what its slopes lie between."""

    def rule(node: Node) -> Effect:
        x = node.only_varying()
        found = slopes(node) if callable(slopes) else slopes
        return Effect({0: lipschitz(found)}, (x.shape,), part=_entrywise(found))

    return rule


def _entrywise(slopes: Slopes) -> Entrywise | Curved | None:
    """Return what slopes are in a chain: of both signs, in one of dense layers alone."""
    largest = in_chain(slopes)
    if largest is not None:
        return Entrywise(largest, ends=slopes)
    return Curved(slopes) if all(map(math.isfinite, slopes)) else None


def leaky_relu(node: Node) -> Slopes:
    """Return the slopes of LeakyRelu."""
    return of_leaky_relu(node.number("alpha", float(np.float32(0.01))))


def elu(node: Node) -> Slopes:
    """Return the slopes of Elu."""
    return of_elu(node.number("alpha", 1.0))


def selu(node: Node) -> Slopes:
    """Return the slopes of Selu."""
    alpha = node.number("alpha", 1.67326319217681884765625)
    return of_selu(alpha, node.number("gamma", 1.05070102214813232421875))


def celu(node: Node) -> Slopes:
    """Return the slopes of Celu."""
    return of_celu(node.number("alpha", 1.0))


def clip(node: Node) -> Slopes:
    """Return the slopes of Clip, unless a bound of another shape repeats entries."""
    for position in (1, 2):
        bound = node.fixed(position)
        if bound is not None:
            require(bound.size <= 1, f"its bound {position} has the shape {bound.shape}")
    return FIXED["clip"]


def gelu(node: Node) -> Slopes:
    """Return the slopes of Gelu."""
    approximation = node.attributes.get("approximate", b"none")
    found = GELU.get(approximation.decode(errors="replace"))
    require(found is not None, f"approximate is {readable(approximation)}")
    return of_gate(found or math.inf)


def dropout(node: Node) -> Slopes:
    """Return those of the identity, unless it is in training mode."""
    training = node.fixed(2)
    require(training is None or not np.any(training), "training_mode")
    return FIXED["identity"]


def cast(node: Node) -> Slopes:
    """Return those of the identity: in exact arithmetic one floating type is as good as another."""
    require(node.attributes.get("to") in (_FLOAT, _DOUBLE), "it rounds")
    return FIXED["identity"]


def log_softmax(node: Node) -> float:
    """Return the root of the number of classes (docs/theory.md, Lemma 19)."""
    shape = node.varying(0).shape
    since = 13  # the first with classes along one axis
    axis = node.attributes.get("axis", -1 if node.version >= since else 1)
    require(shape is not None, "the number of its classes is unknown")
    assert shape is not None
    if node.version >= since:
        classes: Sequence[Dim] = [shape[axis_from_front(axis, len(shape))]]
    else:
        require(-len(shape) <= axis <= len(shape), f"axis {axis} of {len(shape)}")
        classes = shape[axis:]
    require(are_numbers(classes), "the number of its classes is unknown")
    return root_above(Fraction(numbers_times(classes)))


def normalise(node: Node) -> Effect:
    """Rule of normalisation by the input's own deviation (docs/theory.md, Lemma 20)."""
    x = node.only_varying()
    scale = Fraction(_largest(node.fixed(1)))
    epsilon = Fraction(node.number("epsilon", float(np.float32(1e-5))))
    require(epsilon > 0, "epsilon is not positive, so there is no Lipschitz constant")
    return Effect({0: root_above(scale**2 / epsilon)}, (x.shape,))


def hard_sigmoid(node: Node) -> Slopes:
    """Return the slopes of HardSigmoid."""
    return of_hard_sigmoid(node.number("alpha", float(np.float32(0.2))))


def prelu(node: Node) -> Effect:
    """Rule of PRelu: slopes 1 and those stored, which may repeat entries."""
    node.varying(0)
    stored = node.fixed(1)
    effect = _times(node, max(1.0, _largest(stored)))
    least = 0.0 if stored is None else float(stored.min(initial=1.0))
    slopes = (min(1.0, least), max(1.0, _largest(stored)))
    return replace(effect, part=_entrywise(slopes) if _keeps(node) else None)


def batch_norm(node: Node) -> Effect:
    """Rule of BatchNormalization with stored statistics: the largest scale."""
    x = node.only_varying()
    require(not node.attributes.get("training_mode", 0) and node.outputs == 1, "training mode")
    require(node.attributes.get("spatial", 1), "statistics for each entry")
    scale, shift, mean, variance = (node.fixed(i) for i in (1, 2, 3, 4))
    if scale is None or variance is None:
        msg = "its constants are missing"
        raise NotUnderstoodError(msg)
    shapes = {getattr(v, "shape", None) for v in (scale, shift, mean, variance)}
    require(shapes == {(scale.size,)}, "its constants are not four vectors of one length")
    _largest(scale), _largest(variance)
    if x.shape is not None:
        fits = len(x.shape) > 1 and x.shape[1] in (scale.size, None)
        require(fits, f"its input has shape {shape_text(x.shape)} and not {scale.size} channels")
    epsilon = Fraction(node.number("epsilon", float(np.float32(1e-5))))
    below = [Fraction(v) + epsilon for v in variance.tolist()]
    require(min(below, default=1) > 0, "a variance is not positive")
    squares = [Fraction(a) ** 2 / b for a, b in zip(scale.tolist(), below, strict=True)]
    factor, part = root_above(max(squares, default=Fraction(0))), None
    if x.shape is not None:
        along = np.copysign(list(map(root_above, squares)), scale)
        shape = (1, scale.size, *[1] * (len(x.shape) - 2))
        part = _multiplied(along.reshape(shape), len(x.shape))
    return Effect({0: factor}, (x.shape,), part=part)


def add(node: Node) -> Effect:
    """Rule of Add, Sub and Sum."""
    factors, shape = _joined(node)
    effect = Effect(factors, (shape,))
    sign = -1.0 if node.op == "Sub" else 1.0  # of the second
    if len(node.inputs) == 2 and list(factors.values()) == [1.0, 1.0]:
        return replace(effect, part=Joined((1.0, sign)))
    own = sign if 0 not in factors else 1.0
    return replace(effect, part=Entrywise(ends=(own, own)) if _keeps(node) else None)


def extremum(node: Node) -> Effect:
    """Rule of Max and Min."""
    factors, shape = _joined(node)
    effect = Effect(factors, (shape,), stacked=True)
    return replace(effect, part=Entrywise(ends=RISING) if _keeps(node) else None)


def multiply(node: Node) -> Effect:
    """Rule of Mul by a constant."""
    varying = node.all_varying()
    require(len(varying) == 1, _TWO_COMPUTED)
    factor = node.fixed(1 - min(varying))
    return _scaled(node, _times(node, _largest(factor)), factor)


def divide(node: Node) -> Effect:
    """Rule of Div by a constant."""
    varying = list(node.all_varying())
    require(len(varying) == 1, _TWO_COMPUTED)
    require(varying == [0], "it divides by what depends on the graph's inputs")
    divisor = node.fixed(1)
    if divisor is None or divisor.dtype.kind != "f" or np.any(divisor == 0):
        msg = "it divides by zero or by integers"
        raise NotUnderstoodError(msg)
    _largest(divisor)
    least = Fraction(np.min(np.abs(divisor)).item() if divisor.size else 1)
    with np.errstate(over="ignore"):
        quotient = 1 / divisor.astype(np.float64)
    # a larger modulus is as good in a chain (Lemma 34), a smaller one is not
    above = np.nextafter(quotient, np.copysign(np.inf, quotient))
    return _scaled(node, _times(node, float_above(1 / least)), above)


def _scaled(node: Node, effect: Effect, factor: Values | None) -> Effect:
    """Return the effect of a multiplication, with the factor if nothing is repeated."""
    shape = effect.shapes[0]
    if factor is None or shape is None or not _keeps(node):
        return effect
    return replace(effect, part=_multiplied(factor, len(shape)))


def _multiplied(factor: Values, rank: int) -> Entrywise | None:
    """Return what numbers are in a chain, which broadcasting brings to so many axes."""
    if factor.ndim > rank or factor.size == 0 or not np.all(np.isfinite(factor)):
        return None
    along = factor.reshape((*[1] * (rank - factor.ndim), *factor.shape))
    return Entrywise(scale=along, ends=FIXED["identity"])


def _keeps(node: Node) -> bool:
    """Say whether the output has the entries of the one varying input, each in its place."""
    varying = list(node.all_varying().values())
    if len(varying) != 1 or varying[0].shape is None:
        return False
    factors, after = _joined(node)
    same = after is not None and len(after) == len(varying[0].shape)
    return same and all(factor == 1 for factor in factors.values())


def _largest(values: Values | None) -> float:
    """Return the largest modulus in a constant."""
    if values is None or values.dtype.kind not in "fiu" or not np.all(np.isfinite(values)):
        msg = "a constant of it is missing, not numeric or not finite"
        raise NotUnderstoodError(msg)
    ends = (values.min().item(), values.max().item()) if values.size else (0,)
    return float_above(max(abs(Fraction(v)) for v in ends))


def _times(node: Node, by: float) -> Effect:
    """Return the effect of entries multiplied by at most `by`, and repeated by broadcasting."""
    factors, shape = _joined(node)
    return Effect(
        {i: float_above(Fraction(f) * Fraction(by)) for i, f in factors.items()}, (shape,)
    )


def _joined(node: Node) -> tuple[dict[int, float], Shape]:
    """Return how often broadcasting repeats each varying input, as factors, and the shape."""
    varying = node.all_varying()
    others = [x.value for x in node.inputs if isinstance(x, Fixed)]
    if len(varying) == 1 and all(value is not None and value.size == 1 for value in others):
        ((position, x),) = varying.items()
        most = max((value.ndim for value in others if value is not None), default=0)
        keeps = x.shape is not None and len(x.shape) >= most
        return {position: 1.0}, x.shape if keeps else None
    shape = broadcast(node.shapes())
    return {i: root_above(Fraction(repeats(x.shape, shape))) for i, x in varying.items()}, shape
