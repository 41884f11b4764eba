"""Which method brackets which matrices, in which precision, in which portions.

=============================  ===========================================================
sparse                         a dense Gram matrix on the smaller side (`sparse`)
on a host, one matrix          squarings, else a certificate, one by one (`certificate`)
on a host, many columns        the same, one matrix after the other
all other stacks, and on GPUs  Gram iteration of the stack (`gram`)
=============================  ===========================================================

What goes one by one is computed in float64, for which `certificate` is written; at loose tolerances
large matrices are tried in float32 first (`single`).
"""

from __future__ import annotations

import math

import numpy as np

from gramnorm._arrays import crossing, dtypes, libraries, limits, linalg, threads
from gramnorm._arrays.programs import compiles
from gramnorm._arrays.types import Array, DType, HostFloats, HostNumbers
from gramnorm._matrix import ritz, sparse
from gramnorm._matrix.certificate import bracket_matrix, goes_in_single
from gramnorm._matrix.gram import bracket_by_iteration
from gramnorm._results import Bounds, converged, of_stack
from gramnorm._rigour import scaling, sums
from gramnorm._rigour.model import gram_units, round_outward, working_dtype


def bracket(a: Array, *, rtol: float, dtype: DType) -> Bounds[HostFloats]:
    """Bracket the norms of matrices (..., m, n) or of one `sparse.stored`, rounded to `dtype`."""
    if libraries.is_sparse(a):
        return sparse.bracket_sparse(a, rtol=rtol, dtype=dtype)
    return bracket_stack(_stack(a), rtol=rtol, dtype=dtype)


def unit_vectors(a: Array, *, rtol: float) -> tuple[HostNumbers, HostNumbers]:
    """Return the vectors of `ritz.unit_vectors` for the same matrices, a stack's in a row."""
    if libraries.is_sparse(a):
        return sparse.unit_vectors(a, rtol=rtol)
    return ritz.unit_vectors(crossing.host_array(_stack(a)), rtol=rtol)


def _stack(a: Array) -> Array:
    return libraries.namespace(a).reshape(a, (math.prod(a.shape[:-2]), *a.shape[-2:]))


def bracket_stack(a: Array, *, rtol: float, dtype: DType) -> Bounds[HostFloats]:
    """Bracket the norms of a stack (b, m, n) as host numbers that `dtype` represents."""
    count, m, n = a.shape
    if 0 in a.shape:
        return Bounds(np.zeros(count), np.zeros(count))
    part = max(1, limits.PART_BYTES // (16 * m * n))  # an entry is one complex128 at most
    if count > part:
        parts = (a[k : k + part, ...] for k in range(0, count, part))
        return of_stack(bracket_stack(some, rtol=rtol, dtype=dtype) for some in parts)
    if _goes_one_by_one(a):
        quick = _bracket_unscaled(a, rtol=rtol) if count == 1 else None
        if quick is not None:
            low, high = np.asarray([quick.lower]), np.asarray([quick.upper])
            low, high = round_outward(low, high, dtype=dtype)
            return Bounds(low, high, quick.cost, quick.right)
        return _bracket_one_by_one(a, rtol=rtol, dtype=dtype)
    return _bracket_together(a, rtol=rtol, dtype=dtype)


def _goes_one_by_one(a: Array) -> bool:
    if not (libraries.is_on_cpu(a) and libraries.has_linalg(a)):
        return False
    large = min(a.shape[1:]) > limits.SQUARING_COLUMNS
    return (a.shape[0] == 1 or large) and dtypes.has_float64(a)


def _bracket_unscaled(a: Array, *, rtol: float) -> Bounds[float] | None:
    """Bracket a stack of one matrix that needs no scaling; None if it does, or is not finite."""
    if not dtypes.is_floating(a.dtype) or dtypes.bits(a.dtype) < 32:
        return None
    b = a[0, ...]
    columns = min(b.shape)
    by_blocks = columns > limits.SQUARING_COLUMNS and linalg.is_taken_in_blocks(b)
    if not (by_blocks or goes_in_single(columns, rtol)):
        b = dtypes.in_double(b)
    square = sums.one_square_above(b)
    # single precision: so that its subnormal numbers are next to nothing beside the norm
    least = 2.0**-200 if dtypes.bits(a.dtype) == 64 else 2.0**-100
    if not least < square < 2.0**200:  # false for NaN, inf and zero as well
        return None
    # subnormal entries may have been flushed; beside a norm in this range they are next to nothing
    loss = 2.0 * dtypes.finfo(a.dtype).smallest_normal * math.sqrt(math.prod(b.shape))
    return bracket_matrix(linalg.upright(b), frobenius2=square, rtol=rtol).widened(loss)


def _bracket_one_by_one(a: Array, *, rtol: float, dtype: DType) -> Bounds[HostFloats]:
    scaled = scaling.normalise(a, dtype=libraries.namespace(a).float64)

    def bracketed(k: int) -> Bounds[float]:
        b = linalg.upright(scaled.values[k, ...])
        return bracket_matrix(b, frobenius2=sums.one_square_above(b), rtol=rtol)

    every = scaled.places.tolist()
    is_shared = isinstance(a, np.ndarray) and min(a.shape[1:]) <= limits.SHARED_COLUMNS
    several = is_shared and scaled.active.size > 1
    found = of_stack(threads.shared(bracketed, every) if several else map(bracketed, every))
    return Bounds(*scaling.restore(found.lower, found.upper, scaled, dtype=dtype), found.cost)


def _bracket_together(a: Array, *, rtol: float, dtype: DType) -> Bounds[HostFloats]:
    """Bracket a stack in the cheapest precision, and what float32 leaves wide in float64."""
    xp = libraries.namespace(a)

    def bracketed(some: Array, work: DType) -> Bounds[HostFloats]:
        scaled = scaling.normalise(some, dtype=work)
        found = bracket_by_iteration(scaled.values, rtol=rtol, places=scaled.places)
        return Bounds(*scaling.restore(found.lower, found.upper, scaled, dtype=dtype), found.cost)

    units = gram_units(a.shape[1:], complex=dtypes.is_complex(a.dtype))
    # typical ones are tried where float64 may follow: a second precision is a second compilation
    work = working_dtype(a, units if compiles(a) else units * limits.STABLE_RANK, rtol)
    found = bracketed(a, work)
    wide = np.flatnonzero(np.isfinite(found.upper) & ~converged(found, rtol))
    if wide.size and work == xp.float32 and dtypes.has_float64(a):
        found = found.narrowed_at(wide, bracketed(crossing.select(a, wide), xp.float64))
    return found
