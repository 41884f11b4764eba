"""Products of a tensor with a function of itself, such as x sigmoid(x), as graphs write them out.

A product of two computed tensors has no Lipschitz constant by itself.  But where both are functions
of one number, entry by entry, the product is one, and has that of its largest slope
(docs/theory.md, Lemma 22).  So along with a tensor goes what it is of others before it: a `Form`.
"""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np

from gramnorm._rigour.fractions import float_above
from gramnorm.report.onnx.nodes import Fixed, Form, Node, NotUnderstoodError, Varying, require

_MOST_FORMS = 12  # of a tensor: it takes seven operators to write out Gelu
_MOST_BITS = 2000  # of a coefficient, which grows with every operator
_CUBIC = 3
_GELU_INNER = ((Fraction("0.7978"), Fraction("0.798")), (Fraction("0.0447"), Fraction("0.0448")))
_SLOPES = {
    "Sigmoid": (Fraction("-0.1"), Fraction("1.1")),
    "Tanh": (Fraction("-1.2"), Fraction("1.2")),
    "Erf": (Fraction("-1.258"), Fraction("1.258")),
    "Gelu": (Fraction("-1.26"), Fraction("1.26")),
    "Mish": (Fraction("-1.09"), Fraction("1.09")),
}
"""What the slope of z g(z) lies between (docs/theory.md, Lemma 22)."""


def forms(node: Node) -> tuple[Form, ...]:
    """Return what the output of a node is of tensors before it, as far as that is known."""
    try:
        found = list(_forms(node))[-_MOST_FORMS:]
    except NotUnderstoodError:
        return ()
    numbers = ([*f.inner, f.scale, f.shift, *f.ends] for f in found)
    small = [
        max(max(abs(v.numerator), v.denominator).bit_length() for v in some) <= _MOST_BITS
        for some in numbers
    ]
    return tuple(form for form, fits in zip(found, small, strict=True) if fits)


def of_itself(x: Varying) -> tuple[Form, ...]:
    """Return the forms of a tensor, the last in terms of itself."""
    return (*x.forms, Form(x.name, x.shape, (Fraction(0), Fraction(1))))


def _forms(node: Node) -> Iterator[Form]:
    varying = node.all_varying()
    if not varying:
        return
    if node.op in ("Add", "Sub", "Mul", "Div") and len(node.inputs) == 2:
        yield from _pairs(node) if len(varying) == 2 else _scaled(node)
        return
    for form in of_itself(node.varying(0)):
        made = _applied(node, form)
        if made is not None:
            yield made


def _applied(node: Node, form: Form) -> Form | None:
    """Return a function of one number of a form."""
    if node.op == "Tanh" and form.kind == "Softplus" and form.scale == 1 and not form.shift:
        return replace(form, kind="Mish")
    if form.kind:
        return None
    if node.op == "Pow":
        power = _number(node, 1, form)
        return _power(form, power) if power in (2, 3) else None
    if node.op == "Tanh" and len(form.inner) > 2:
        return replace(form, kind="Gelu") if _is_gelu(form.inner) else None
    if len(form.inner) > 2:
        return None
    if node.op in ("Sigmoid", "Tanh", "Erf", "Softplus"):
        return replace(form, kind=node.op)
    if node.op == "HardSigmoid":
        alpha = Fraction(node.number("alpha", float(np.float32(0.2))))
        beta = Fraction(node.number("beta", 0.5))
        inner = _affine(form, alpha, beta).inner
        return replace(form, inner=inner, kind="Clip", ends=(Fraction(0), Fraction(1)))
    if node.op == "Clip":
        return replace(form, kind="Clip", ends=_ends(node, form))
    return None


def _ends(node: Node, form: Form) -> tuple[Fraction, Fraction]:
    """Return the bounds of a Clip, attributes of old versions and inputs of new ones."""
    if len(node.inputs) == 3:
        return _number(node, 1, form), _number(node, 2, form)
    both = "min" in node.attributes and "max" in node.attributes
    require(both and len(node.inputs) == 1, "it has not two bounds")
    return Fraction(node.number("min", 0)), Fraction(node.number("max", 0))


def _number(node: Node, position: int, form: Form) -> Fraction:
    """Return a constant of one finite entry, which adds no axes."""
    value = node.fixed(position)
    most = 0 if form.shape is None else len(form.shape)
    if value is None or value.size != 1 or value.dtype.kind not in "fiu" or value.ndim > most:
        msg = "a constant of it is no number"
        raise NotUnderstoodError(msg)
    require(bool(np.all(np.isfinite(value))), "a constant of it is not finite")
    return Fraction(value.reshape(()).item())


def _is_gelu(inner: tuple[Fraction, ...]) -> bool:
    """Say whether a polynomial is that in the approximation of Gelu."""
    if len(inner) != _CUBIC + 1 or inner[0] or inner[2] or not inner[1]:
        return False
    found = (inner[1], inner[3] / inner[1])
    return all(low <= v <= high for v, (low, high) in zip(found, _GELU_INNER, strict=True))


def _affine(form: Form, scale: Fraction, shift: Fraction) -> Form:
    """Return a form times a number, plus another."""
    if form.kind:
        return replace(form, scale=form.scale * scale, shift=form.shift * scale + shift)
    first, *rest = (scale * v for v in form.inner)
    return replace(form, inner=(first + shift, *rest))


def _scaled(node: Node) -> Iterator[Form]:
    """Yield what a sum or product with a number is."""
    at = min(node.all_varying())
    require(isinstance(node.inputs[1 - at], Fixed), "its other input is left out")
    for form in of_itself(node.varying(at)):
        number = _number(node, 1 - at, form)
        if node.op == "Add":
            yield _affine(form, Fraction(1), number)
        elif node.op == "Sub":
            yield _affine(form, Fraction(1 - 2 * at), number * (2 * at - 1))
        elif node.op == "Mul":
            yield _affine(form, number, Fraction(0))
        elif at == 0 and number:
            yield _affine(form, 1 / number, Fraction(0))


def _pairs(node: Node) -> Iterator[Form]:
    """Yield what a sum or a product of two polynomials of one number is."""
    for a, b in _of_one(node):
        if a.kind or b.kind or node.op not in ("Add", "Mul"):
            continue
        if node.op == "Mul":
            yield from [made] if (made := _times(a, b)) is not None else []
            continue
        n = max(len(a.inner), len(b.inner))
        x, y = ((*f.inner, *[Fraction(0)] * (n - len(f.inner))) for f in (a, b))
        yield replace(a, inner=tuple(v + w for v, w in zip(x, y, strict=True)))


def _of_one(node: Node) -> Iterator[tuple[Form, Form]]:
    """Yield the forms of both inputs of a node that are of the same tensor."""
    theirs = {form.source: form for form in of_itself(node.varying(1))}
    for form in of_itself(node.varying(0)):
        if form.source in theirs:
            yield form, theirs[form.source]


def _times(a: Form, b: Form) -> Form | None:
    """Return the product of two polynomials, up to a cube."""
    if len(a.inner) + len(b.inner) > _CUBIC + 2:
        return None
    product = [Fraction(0)] * (len(a.inner) + len(b.inner) - 1)
    for i, v in enumerate(a.inner):
        for j, w in enumerate(b.inner):
            product[i + j] += v * w
    return replace(a, inner=tuple(product))


def _power(form: Form, power: Fraction) -> Form | None:
    """Return the square or the cube of a polynomial."""
    square = _times(form, form)
    return square if power == 2 or square is None else _times(square, form)


def product(node: Node) -> tuple[Form, float] | None:
    """Return the tensor of which a product of two is a function, and its largest slope."""
    if node.op != "Mul" or len(node.all_varying()) != 2:
        return None
    for pair in _of_one(node):
        for line, gate in (pair, pair[::-1]):
            plain = not line.kind and len(line.inner) == 2 and not line.inner[0]
            slope = _slope(gate) if plain and gate.kind else None
            if slope is not None:
                return line, float_above(abs(line.inner[1]) * slope)
    return None


def _slope(gate: Form) -> Fraction | None:
    """Return the largest slope of x times a form of x (docs/theory.md, Lemma 22)."""
    c, d, b = gate.scale, gate.shift, gate.inner[0]
    if gate.kind == "Clip":
        found = [v for end in gate.ends for v in (end, 2 * end - b)]
    elif gate.kind in _SLOPES and b == 0:
        found = list(_SLOPES[gate.kind])
    else:
        return None
    return max(abs(c * v + d) for v in found)
