"""Gram iteration with a fixed number of steps that rounding cannot push below the norm.

With P_0 the scaled matrix, Q_t = fl(P_{t-1}^H P_{t-1}), n_t = fl(tr Q_t), P_t = fl(Q_t / n_t)

    v_T = ||P_T||_F,    v_{t-1}^2 = n_t ((1 + c) v_t + e),    ||P_t|| <= v_t  for all t,

where e n_t bounds the rounding of the product and c that of the quotient (docs/theory.md,
Theorem 25).  No value is looked at, and the margins follow from the shapes: constants for
differentiation, the same under a compiler, a map over batches and on a device.
"""

from __future__ import annotations

import math

from gramnorm._arrays import autodiff, dtypes, libraries, limits, linalg, probes
from gramnorm._arrays.types import Array, DType
from gramnorm._results import result_dtype
from gramnorm._rigour import sums
from gramnorm._rigour.model import precision_of, working_dtype

_ROUNDINGS = 8
"""Units that restore what a level loses beside its products: 5 before the root, which halves them,
3 in it and one after."""


def norm_bound(a: Array, *, steps: int) -> Array:
    """Bound the norm of each matrix of a stack of any type; keep NaN, inf and zero as they are."""
    xp = libraries.namespace(a)
    if 0 in a.shape:
        return xp.zeros(a.shape[:-2], dtype=result_dtype(a), device=libraries.device_of(a))
    with libraries.plain_arithmetic(a):
        b, peak = scaled(a)
        relative, lost = scaling_loss(b)
        p, q = max(a.shape[-2:]), min(a.shape[-2:])
        # errors relative to each entry are so in the Frobenius norm, and that is sqrt(q) ||B||
        value = gram_values(b, steps=steps) * (1 + relative * math.sqrt(q))
        return restored(value + lost * math.sqrt(2 * p * q), peak, a, gain=math.sqrt(2.1 * p * q))


def scaled(a: Array) -> tuple[Array, Array]:
    """Return matrices of any type in a floating type, over their largest components, and these."""
    xp = libraries.namespace(a)
    real, out = working_dtype(a, 0.0, 1.0), result_dtype(a)

    def of_type(kind: DType) -> Array:
        kind = dtypes.complex_dtype(kind) if dtypes.is_complex(a.dtype) else kind
        return xp.astype(a, kind, copy=False)

    # of the results' type, whose range `restored` returns to: products may be in a wider one, and
    # a change of type reads subnormal numbers as zeros where these are flushed
    peak = peaks(of_type(out))
    scale = xp.astype(divisor(peak)[..., None, None], real, copy=False)
    # compilers multiply by the inverse of a scalar anyway, and complex division squares it
    b = of_type(real)
    return b * xp.astype(1 / scale, b.dtype), peak


def scaling_loss(b: Array) -> tuple[float, float]:
    """Return what `scaled` does to an entry: a relative error, and what may underflow."""
    prec = precision_of(b.dtype)
    return 4 * prec.unit, prec.tiny  # the conversion of an integer, an inverse, a product


def restored(value: Array, peak: Array, a: Array, *, gain: float) -> Array:
    """Return bounds in the scale of the matrices `a`, from those over their largest components.

    `gain` bounds the norm by the largest component.
    """
    xp = libraries.namespace(value)
    out = result_dtype(a)
    info, unit = dtypes.finfo(out), precision_of(out).unit
    is_nonzero = probes.is_nonzero(peak)
    value = xp.astype(value, out, copy=False)
    # subnormal results are rounded to whole quanta, subnormal entries may be read as zeros
    least = xp.where(peak < info.smallest_normal, peak, xp.full_like(peak, info.smallest_normal))
    flushed = least * 0.75 == 0
    quantum = xp.full_like(peak, info.smallest_normal * info.eps)
    lost = xp.where(flushed, xp.full_like(peak, 1.001 * gain * info.smallest_normal), quantum)
    zero = xp.zeros_like(peak)
    found = xp.where(peak > 0, divisor(peak) * (value * (1 + 12 * unit)), zero) + lost
    found = xp.where(is_nonzero, found, zero)
    return xp.where(xp.isfinite(peak), found, peak)


def peaks(a: Array) -> Array:
    """Return the largest component of each matrix, as a constant for differentiation."""
    xp = libraries.namespace(a)
    parts = dtypes.components(autodiff.without_gradient(a))
    found = [probes.largest_modulus(part) for part in parts]
    return (
        found[0] if len(found) == 1 else probes.largest_modulus(xp.stack(found, axis=-1)[..., None])
    )


def divisor(peak: Array) -> Array:
    """Return what to divide arrays with largest component `peak` by, a number with a normal inverse.

    1 where nothing is to scale.
    """
    xp = libraries.namespace(peak)
    tiny = dtypes.finfo(peak.dtype).smallest_normal
    least, most = xp.full_like(peak, tiny), xp.full_like(peak, 1 / tiny)
    usable = xp.isfinite(peak) & (peak > 0)
    inside = xp.where(peak > least, xp.where(peak < most, peak, most), least)
    return xp.where(usable, inside, xp.ones_like(peak))


def gram_values(a: Array, *, steps: int) -> Array:
    """Bound the norm of each matrix of a stack in a floating type, entries of size about 1.

    About the Schatten norm of exponent 2^(steps + 1).
    """
    xp = libraries.namespace(a)
    prec = precision_of(a.dtype)
    if a.shape[-2] < a.shape[-1]:
        a = xp.matrix_transpose(a)
    q = a.shape[-1]
    if q == 1:  # its Frobenius norm; compilers would write out each step as often as it is used
        steps = 0
    traces, errors = [], []
    for _ in range(steps):
        gram, inner = _product(a)
        # Lemma 1, over the trace: |Q - P^H P| <= kappa |P|^H |P|, whose norm is at most ||P||_F^2
        kappa = prec.kappa(inner)
        loss = kappa + 2 * prec.gamma(q + 2)
        relative = kappa / (1 - loss) if loss < 0.5 else math.inf
        errors.append((relative, 3 * q * prec.underflow(inner)))
        diagonal = dtypes.real_part(xp.linalg.diagonal(autodiff.without_gradient(gram)))
        trace = xp.sum(diagonal, axis=-1)
        traces.append(xp.where(trace > 0, trace, xp.ones_like(trace)))  # zero stays zero
        a = gram * xp.astype((1 / traces[-1])[..., None, None], a.dtype)
    bound = frobenius_above(a)
    quotient = 1 + 3 * prec.unit * math.sqrt(q)  # relative to each entry, as in `norm_bound`
    nudge = 1 + _ROUNDINGS * prec.unit
    for trace, (relative, lost) in zip(reversed(traces), reversed(errors), strict=True):
        bound = xp.sqrt(trace * (bound * quotient + relative) + lost) * nudge
    return bound


def _product(a: Array) -> tuple[Array, int]:
    """Return A^H A, and the terms in a sum: less than there are rows, if these are many."""
    xp = libraries.namespace(a)
    *stack, rows, q = a.shape
    length = max(limits.LONG_SUM, q)
    count = rows // length
    if count < 2:
        return linalg.gram_matrix(a), rows
    blocks = xp.reshape(a[..., : count * length, :], (*stack, count, length, q))
    # a compiler would take the sum of products for one long product
    gram = xp.sum(linalg.as_computed(linalg.gram_matrix(blocks)), axis=-3)
    if rows > count * length:
        gram = gram + linalg.gram_matrix(a[..., count * length :, :])
    return gram, length + count + 1


def frobenius_above(a: Array) -> Array:
    """Return upper bounds on the Frobenius norms (Lemma 3)."""
    xp = libraries.namespace(a)
    prec = precision_of(a.dtype)
    relative = sums.loss(a.shape[-2], a.shape[-1], prec)
    above = 1 / (1 - relative) if relative < 1 else math.inf
    lost = 2 * math.prod(a.shape[-2:]) * prec.tiny
    return xp.sqrt(sums.inner_product(a, a) * above + lost) * (1 + _ROUNDINGS * prec.unit)
