"""Stacks of matrices: which method, in which precision, in which portions.

The drivers here are where numbers reach the host: one small transfer per step, on which they decide what to continue.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gramnorm._arrays import autodiff, crossing, dtypes, libraries, limits
from gramnorm._arrays.types import Array, DType, HostBools, HostFloats
from gramnorm._matrix import certificate, non_negative
from gramnorm._matrix.gram import GramChain, gram_values
from gramnorm._rigour import scaling, sums
from gramnorm._rigour.model import gram_units, round_outward, working_dtype

Kernel = Callable[..., tuple[HostFloats, HostFloats, int]]

MEMORY = 2**27
"""Bytes that a part of a stack may take in double precision, complex; a few such arrays live at a time."""


def bracket_stack(a: Array, *, rtol: float, dtype: DType) -> tuple[HostFloats, HostFloats, int]:
    """Bracket the norms of a stack (b, m, n) as host numbers that `dtype` represents."""
    xp = libraries.namespace(a)
    count, m, n = a.shape
    if 0 in a.shape:
        return np.zeros(count), np.zeros(count), 0
    part = max(1, MEMORY // (16 * m * n))
    if count > part:
        parts = [
            bracket_stack(a[k : k + part, ...], rtol=rtol, dtype=dtype)
            for k in range(0, count, part)
        ]
        lows, highs, costs = zip(*parts, strict=True)
        return np.concatenate(lows), np.concatenate(highs), max(costs)
    if _goes_one_by_one(a):
        return _bracket_part(a, _each, xp.float64, rtol=rtol, dtype=dtype)
    # a stable rank of a quarter of the columns is typical; what is flatter is done again in float64
    units = gram_units((m, n), complex=dtypes.is_complex(a.dtype)) / 4
    work = working_dtype(a, units, rtol)
    lower, upper, products = _bracket_part(a, iterate, work, rtol=rtol, dtype=dtype)
    wide = np.flatnonzero(np.isfinite(upper) & ~converged(lower, upper, rtol))
    if wide.size and work == xp.float32 and dtypes.has_float64(a):
        rest = crossing.select(a, wide)
        low, high, more = _bracket_part(rest, iterate, xp.float64, rtol=rtol, dtype=dtype)
        lower[wide], upper[wide] = np.maximum(lower[wide], low), np.minimum(upper[wide], high)
        products += more
    return lower, upper, products


def _goes_one_by_one(a: Array) -> bool:
    """Choose the method from shape and device.

    =========================  =========================================================
    on a host, one matrix      a few squarings, else the Cholesky certificate (`certificate`)
    on a host, q > `SQUARED`   the same, one matrix after the other
    all other stacks, GPUs     Gram iteration of the stack (`gram`)
    =========================  =========================================================

    What goes one by one is computed in float64, for which `certificate` is written.
    """
    if not (libraries.is_on_cpu(a) and libraries.has_linalg(a)):
        return False
    large = min(a.shape[1:]) > certificate.SQUARED
    return (a.shape[0] == 1 or large) and dtypes.has_float64(a)


def _bracket_part(
    a: Array, kernel: Kernel, work: DType, *, rtol: float, dtype: DType
) -> tuple[HostFloats, HostFloats, int]:
    """Scale a stack that fits in memory into the real type `work`, run the kernel, and scale back."""
    if kernel is _each and a.shape[0] == 1:
        quick = _bracket_in_range(a, rtol=rtol, work=work)
        if quick is not None:
            low, high = np.asarray([quick.lower]), np.asarray([quick.upper])
            return (*round_outward(low, high, dtype=dtype), quick.products)
    scaled = scaling.normalise(a, dtype=work)
    lower, upper, products = kernel(scaled.values, rtol=rtol)
    return (*scaling.restore(lower, upper, scaled, dtype=dtype), products)


def _bracket_in_range(a: Array, *, rtol: float, work: DType) -> certificate.Bracket | None:
    """Bracket a stack of one matrix that needs no scaling; None if it does, or is not finite."""
    xp = libraries.namespace(a)
    if not dtypes.is_floating(a.dtype) or dtypes.bits(a.dtype) < 32:
        return None
    kind = dtypes.complex_dtype(work) if dtypes.is_complex(a.dtype) else work
    b = xp.astype(a[0, ...], kind, copy=False)
    if b.shape[0] < b.shape[1]:
        b = xp.matrix_transpose(b)
    square = sums.one_square_above(b)
    # single precision: so that its subnormal numbers are next to nothing beside the norm
    least = 2.0**-200 if dtypes.bits(a.dtype) == 64 else 2.0**-100
    if not least < square < 2.0**200:  # false for NaN, inf and zero as well
        return None
    result = _one(b, square, rtol=rtol)
    # subnormal entries may have been flushed; beside a norm in this range they are next to nothing
    loss = 2.0 * float(xp.finfo(a.dtype).smallest_normal) * math.sqrt(math.prod(b.shape))
    return certificate.Bracket(max(result.lower - loss, 0.0), result.upper + loss, result.products)


def _each(a: Array, *, rtol: float) -> tuple[HostFloats, HostFloats, int]:
    """Bracket scaled matrices one after the other."""
    xp = libraries.namespace(a)
    found = []
    for k in range(a.shape[0]):
        b = a[k, ...]
        b = xp.matrix_transpose(b) if b.shape[0] < b.shape[1] else b
        found.append(_one(b, sums.one_square_above(b), rtol=rtol))
    lower = np.asarray([one.lower for one in found])
    upper = np.asarray([one.upper for one in found])
    return lower, upper, max((one.products for one in found), default=0)


def _one(b: Array, square: float, *, rtol: float) -> certificate.Bracket:
    """Bracket one matrix with ||B||_F^2 <= `square`; by the Gram iteration if all else fails."""
    if b.shape[1] >= limits.DENSE_SIGNS and not dtypes.is_complex(b.dtype):
        quick = non_negative.dense_bracket(crossing.host_array(b), rtol=rtol / 2)
        if quick is not None and quick.is_within(rtol / 2):
            return certificate.Bracket(quick.lower, quick.upper, quick.cost)
    # half the gap asked for: the result is still to be rounded to the caller's type
    one = certificate.bracket(b, frobenius2=square, rtol=rtol / 2)
    if one.is_within(rtol / 2):
        return one
    low, high, steps = iterate(b[None, ...], rtol=rtol)
    return certificate.Bracket(
        max(one.lower, low.item()), min(one.upper, high.item()), one.products + steps
    )


def iterate(a: Array, *, rtol: float) -> tuple[HostFloats, HostFloats, int]:
    """Advance the Gram iteration of each matrix of the stack until its bracket is narrow enough."""
    lower, upper = np.zeros(a.shape[0]), np.full(a.shape[0], np.inf)
    chain, rest, steps = GramChain(a), np.arange(a.shape[0]), 0
    # in exact arithmetic the log of the gap is at most 2 ln(q) / 2^t after t steps
    limit = 2 + max(0, math.ceil(math.log2(8 * math.log(1 + min(a.shape[1:])) / rtol)))
    while rest.size and steps < limit:
        steps += 1
        low, high = chain.advance()
        lower[rest], upper[rest] = np.maximum(lower[rest], low), np.minimum(upper[rest], high)
        width = upper[rest] - lower[rest]
        # half the gap asked for: the result is still to be rounded to the caller's type
        done = width <= 0.5 * rtol * lower[rest]
        hopeless = width * 0.7 <= 2 * chain.noise * upper[rest]
        going = np.flatnonzero(~(done | hopeless))
        if going.size < rest.size:
            chain.keep(going)
            rest = rest[going]
    return lower, upper, steps


def fixed_steps(a: Array, *, steps: int) -> Array:
    """Run the Gram iteration on scaled matrices; keep NaN, inf and zero as they are."""
    xp = libraries.namespace(a)
    out = result_dtype(a)
    if 0 in a.shape:
        return xp.zeros(a.shape[:-2], dtype=out, device=libraries.device_of(a))
    with libraries.plain_arithmetic(a):
        a = xp.astype(a, dtypes.complex_dtype(out) if dtypes.is_complex(a.dtype) else out)
        peak = peaks(a)
        scale = divisor(peak)
        values = gram_values(a / xp.astype(scale[..., None, None], a.dtype), steps=steps)
        return xp.where(xp.isfinite(peak), scale * values, peak)


def peaks(a: Array) -> Array:
    """Return the largest component of each matrix, as a constant for differentiation."""
    xp = libraries.namespace(a)
    found = [
        xp.max(xp.abs(autodiff.without_gradient(part)), axis=(-2, -1))
        for part in dtypes.components(a)
    ]
    return found[0] if len(found) == 1 else xp.maximum(*found)


def divisor(peak: Array) -> Array:
    """Return what to divide arrays with largest component `peak` by; 1 where there is nothing to scale."""
    xp = libraries.namespace(peak)
    # complex division by a subnormal number overflows
    least = xp.full_like(peak, float(xp.finfo(peak.dtype).smallest_normal))
    usable = xp.isfinite(peak) & (peak > 0)
    return xp.where(usable, xp.where(peak > least, peak, least), xp.ones_like(peak))


def result_dtype(a: Array) -> DType:
    """Return the real type of a number about `a`: float64, or float32 for all that is shorter.

    Rounded outward to the 8 or 11 bits of a shorter type, no bracket would be narrow.
    """
    xp = libraries.namespace(a)
    floating = dtypes.is_floating(a.dtype)
    dtype = a.dtype if floating else dtypes.default_real_dtype(a)
    return xp.float64 if dtypes.bits(dtype) == 64 else xp.float32


def attainable(rtol: float) -> float:
    """Return the relative gap to work for: at most 1, and no less than float64 can hope for."""
    return min(max(rtol, 2.0**-44), 1.0)


def converged(lower: HostFloats, upper: HostFloats, rtol: float) -> HostBools:
    """Say where the bracket is as narrow as asked for, or an infinite norm known; not where it is NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray((upper == lower) | (upper - lower <= rtol * lower))
