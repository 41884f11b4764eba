"""From the caller's arrays to matrices a kernel can trust, and back to the caller's arrays.

Elements whose norm is known at sight (NaN, inf, zero) are set aside; the others are scaled by an
exact power of two so that the largest component lies in [1/2, 1), in the working precision.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from gramnorm._arrays import crossing, dtypes, libraries, linalg, probes
from gramnorm._arrays.programs import compiled, compiles
from gramnorm._arrays.types import Array, DType, HostFloats, HostInts
from gramnorm._rigour.model import down, round_outward, scale_back, up


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A stack of b matrices, scaled, and what is needed to return to the original scale.

    Attributes
    ----------
    values : array, shape (b', m, n)
        The active matrices times 2^-exponents, working precision, perhaps among others.
    active : host ints
        Positions of the matrices whose norm is not known at sight.
    places : host ints, shape (len(active),)
        Where they stand in `values`.
    exponents : host floats, shape (b,)
        Binary exponents of the scales.
    known : host floats, shape (2, b)
        Bounds known at sight: NaN, inf or 0; the others are overwritten.
    loss : float
        Bound on what underflow of the scaling and rounding of long integers did to a norm, scaled.
    excess : float
        Bound on what flushing of subnormal entries did to a norm, in the original scale.
    """

    values: Array
    active: HostInts
    places: HostInts
    exponents: HostFloats
    known: HostFloats
    loss: float
    excess: float


def normalise(a: Array, *, dtype: DType, gain: float = 1.0) -> Scaled:
    """Scale the stack `a` of shape (b, m, n), in any supported type, into the real type `dtype`.

    `gain` bounds the norm that is asked for in terms of the Frobenius norm of the entries: 1 for
    matrices, the square root of the number of taps for the symbol of a convolution.
    """
    xp = libraries.namespace(a)
    entries = gain * math.sqrt(2.1 * a.shape[1] * a.shape[2])
    info = dtypes.finfo(dtype)
    loss = 2 * entries * info.smallest_normal
    work = dtypes.complex_dtype(dtype) if dtypes.is_complex(a.dtype) else dtype
    if not dtypes.is_floating(a.dtype):
        if xp.isdtype(a.dtype, "integral") and xp.iinfo(a.dtype).bits > 31:
            loss += entries * info.eps  # entries are below 1
        a = xp.astype(a, dtype)
    source = dtypes.real_dtype(a.dtype)
    peak = _peaks(a)
    zero, excess = peak == 0, 0.0
    known = np.tile(np.where(np.isfinite(peak), 0.0, peak), (2, 1))
    if probes.flushes_subnormals(a, source):
        # entries below the smallest normal number may have been read as zero
        excess = entries * dtypes.finfo(source).smallest_normal
        if compiles(a) or np.any(zero):
            known[1, zero & probes.nonzero_by_bits(a)] = excess
    active = np.flatnonzero(np.isfinite(peak) & ~zero)
    # clipped so that the scale and its inverse are normal numbers
    limit = 1022 if dtypes.bits(dtype) == 64 else 126
    exponents = np.clip(np.where(np.isfinite(peak), np.frexp(peak)[1], 0), -limit, limit)
    kept = np.arange(len(peak)) if compiles(a) else active  # one shape, whatever the values
    factors = crossing.from_host(np.ldexp(1.0, -exponents[kept]), dtype=dtype, like=a)
    values = linalg.scaled(xp.astype(crossing.select(a, kept), work, copy=False), factors)
    places = np.searchsorted(kept, active)
    return Scaled(values, active, places, exponents.astype(np.float64), known, loss, excess)


def _peaks(a: Array) -> HostFloats:
    """Return the largest component of each matrix; NaN or inf where there is one."""
    if not isinstance(a, np.ndarray):
        largest, infinite, nan = np.max(crossing.to_host(_extremes(a)), axis=1)
        return np.where(nan != 0, np.nan, np.where(infinite != 0, np.inf, largest))
    xp, parts = libraries.namespace(a), dtypes.components(a)

    def each(reduction: Callable[..., Array], of: Callable[[Array], Array]) -> list[HostFloats]:
        return [crossing.to_host(reduction(of(part), axis=(-2, -1))) for part in parts]

    largest = np.max(each(xp.max, xp.abs), axis=0)
    finite = np.all(each(xp.all, xp.isfinite), axis=0)
    if np.all(finite):
        return np.asarray(largest)
    nan = np.any(each(xp.any, xp.isnan), axis=0)
    return np.where(finite, largest, np.where(nan, np.nan, np.inf))


@compiled
def _extremes(a: Array) -> Array:
    """Return the largest modulus, whether there is one of inf or NaN, and whether of NaN.

    For each of the components and matrices: one array, for one crossing to the host.
    """
    xp, axes = libraries.namespace(a), (-2, -1)
    each = [
        (
            xp.max(xp.abs(part), axis=axes),
            xp.astype(xp.any(~xp.isfinite(part), axis=axes), part.dtype),
            xp.astype(xp.any(xp.isnan(part), axis=axes), part.dtype),
        )
        for part in dtypes.components(a)
    ]
    return xp.stack([xp.stack(rows) for rows in zip(*each, strict=True)])


def restore(
    lower: HostFloats, upper: HostFloats, scaled: Scaled, *, dtype: DType
) -> tuple[HostFloats, HostFloats]:
    """Return brackets of all b matrices in the original scale, rounded outward to `dtype`.

    `lower` and `upper` belong to the active matrices; `upper` >= 0 in the scaled units.
    """
    low, high = scaled.known.copy()
    if scaled.active.size:
        back = scale_back(
            np.maximum(down(lower) - scaled.loss, 0.0),
            up(upper + scaled.loss),
            scaled.exponents[scaled.active],
        )
        # `down` above covers this subtraction too: neither makes the bound larger
        low[scaled.active] = np.maximum(back[0] - scaled.excess, 0.0)
        high[scaled.active] = back[1]
        if scaled.excess:  # nor may what is positive be flushed where it is read
            tiny = dtypes.finfo(dtype).smallest_normal
            high[scaled.active] = np.maximum(up(back[1] + scaled.excess), tiny)
    return round_outward(low, high, dtype=dtype)
