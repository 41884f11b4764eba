"""Sparse matrices: a dense Gram matrix on the smaller side, products with vectors on the larger.

The order of entries is nobody's promise: SciPy sorts and adds up where it pleases, in a change of
type for one.  So a matrix is taken apart at the door, once, into values and their places, which
stay side by side from then on; what is built of them is built anew, and no array of it is ever
exchanged.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import numpy as np

from gramnorm._arrays import crossing, libraries, limits, linalg
from gramnorm._arrays.types import Array, DType, HostFloats, HostNumbers
from gramnorm._matrix import large_sparse, windows
from gramnorm._matrix.certificate import gram_iterated, matrix_certificate
from gramnorm._matrix.ritz import unit_pair
from gramnorm._results import Bounds, of_stack
from gramnorm._rigour import scaling, sums
from gramnorm._rigour.model import precision_of, up


def stored(x: Array) -> Array:
    """Return the entries of `x` one by one, in coordinates of our own.

    Duplicates of integers and bool are added up in their own type, as ``toarray`` does; those of
    floating types are left, for sums whose rounding is counted.
    """
    entries = linalg.sparse_entries(x)
    if entries.data.dtype.kind in "biu":
        return linalg.sparse_entries(linalg.sparse_rows(entries, entries.data))
    return entries


def bracket_sparse(x: Array, *, rtol: float, dtype: DType) -> Bounds[HostFloats]:
    """Bracket the norm of one sparse matrix as host numbers that `dtype` represents."""
    x = stored(x)
    if x.data.shape[0] == 0:
        return Bounds(np.zeros(1), np.zeros(1))
    scaled, active = _scaled(x), []
    if scaled.active.size:
        # of a large matrix one copy is kept, no more
        x = linalg.with_entries(x, scaled.values[0, 0, ...])
        scaled = dataclasses.replace(scaled, values=1 * scaled.values[:, :, :0])
        b = linalg.sparse_rows(x, x.data)
        loss = _sum_loss(x, merged=b.data.shape[0])
        del x
        active.append(_bracket_rows(b, rtol=rtol).widened(loss))
    found = of_stack(active)
    return Bounds(*scaling.restore(found.lower, found.upper, scaled, dtype=dtype), found.cost)


def unit_vectors(x: Array, *, rtol: float) -> tuple[HostNumbers, HostNumbers]:
    """Return unit vectors for one sparse matrix, the first of a stack, as those of `ritz`."""
    x = stored(x)
    left, right = (np.eye(1, size) for size in x.shape)
    if x.data.shape[0] == 0:
        return left, right
    scaled = _scaled(x)
    if not scaled.active.size:
        known = 0.0 if scaled.known[0, 0] == 0 else math.nan
        return left + known, right + known
    xp = libraries.namespace(x)
    b = linalg.sparse_rows(x, scaled.values[0, 0, ...])
    largest = crossing.to_host(xp.max(xp.abs(b.data))).item()
    if not largest:  # the sums have cancelled
        return left, right
    u, v = _unit_pair(b * math.ldexp(1.0, min(-math.frexp(largest)[1], 1022)), rtol)
    return u[None], v[None]


def _unit_pair(b: Array, rtol: float) -> tuple[HostNumbers, HostNumbers]:
    """Return unit vectors (u, v) with u^H B v almost the norm of `b`, entries of size about 1."""
    if min(b.shape) <= limits.SMALL_SIDE:
        return unit_pair(b, rtol)
    b = crossing.host_sparse(b)
    v = large_sparse.bracket(b, rtol=rtol, roads=()).vector
    u = b @ v
    return u / np.linalg.norm(u), v / np.linalg.norm(v)


def gradient(x: Array, value: Array, left: Array, right: Array) -> Array:
    """Return u_i conj(v_j) at the entries of `x`, scaled so that the pairing with `x` is `value`.

    The bound is homogeneous (Euler); 0 for a zero matrix, and NaN where the norm is NaN or inf.
    """
    entries = linalg.sparse_entries(x)
    xp = libraries.namespace(entries)
    slopes = xp.take(left, entries.row) * xp.conj(xp.take(right, entries.col))
    size = xp.max(xp.abs(entries.data)) if entries.data.shape[0] else value
    scale = xp.where((size > 0) & xp.isfinite(size), size, xp.ones_like(size))
    pairing = xp.sum(xp.real(xp.conj(slopes) * (entries.data / scale)))
    factor = xp.where(value == 0, value, value / scale / pairing)
    return linalg.with_entries(entries, slopes * factor)


def _scaled(x: Array) -> scaling.Scaled:
    """Scale the values of a `stored` matrix, which must not be empty.

    Sums of them stay in range.
    """
    xp = libraries.namespace(x)
    finite = xp.isfinite(x.data)
    values = x.data
    if not bool(crossing.to_host(xp.all(finite))):
        # inf and -inf in one place are NaN, finite numbers do not matter any more
        values = linalg.sparse_rows(x, xp.where(finite, xp.zeros_like(values), values)).data
    count = values.shape[0]
    # an entry may be the sum of all, and err by the loss of each
    return scaling.normalise(
        xp.reshape(values, (1, 1, -1)), dtype=xp.float64, gain=math.sqrt(count)
    )


def _sum_loss(x: Array, *, merged: int) -> float:
    """Bound what rounding did to the norm when all values became `merged` sums.

    By |E_ij| <= gamma_k sum |v| for sums of k.
    """
    xp = libraries.namespace(x)
    if merged == x.data.shape[0]:
        return 0.0
    prec = precision_of(x.data.dtype)
    ones = xp.ones(x.data.shape, dtype=xp.float64, device=libraries.device_of(x.data))
    most = crossing.to_host(xp.max(linalg.sparse_rows(x, ones).data)).item()  # entries in one place
    return up(prec.gamma(int(most)) * math.sqrt(most * _square_above(x.data)))


def _square_above(values: Array) -> float:
    """Return an upper bound on the sum of squares of all values."""
    xp = libraries.namespace(values)
    return float(sums.square(xp.reshape(values, (1, 1, -1)))[1][0])


def _bracket_rows(b: Array, *, rtol: float) -> Bounds[float]:
    """Bracket the norm of the sparse `b`, entries of size about 1, no place twice."""
    if min(b.shape) <= limits.SMALL_SIDE or _square_above(b.data) < 2.0**-200:
        return _by_dense_gram(b, rtol=rtol)

    def dense(part: Array, *_: object) -> Bounds[float] | None:
        return _by_dense_gram(part, rtol=rtol) if min(part.shape) <= limits.SPARSE_COLUMNS else None

    roads = partial(windows.bracket, rtol=rtol), dense
    return large_sparse.bracket(crossing.host_sparse(b), rtol=rtol, roads=roads).bounds


def _by_dense_gram(b: Array, *, rtol: float) -> Bounds[float]:
    """Bracket the norm of the sparse `b`, entries of size about 1, by its smaller Gram matrix."""
    b = b.T.tocsr() if b.shape[0] < b.shape[1] else b
    prec = precision_of(b.data.dtype)
    square = _square_above(b.data)
    if square < 2.0**-200:  # sums that cancelled: their rounding is above what is left
        return Bounds(0.0, up(math.sqrt(square)))
    gram = linalg.gram_matrix(b)
    found = matrix_certificate(b, gram, frobenius2=square, rtol=rtol)
    if found.is_within(rtol):
        return found
    # clusters: the Gram iteration brackets the norm of the Gram matrix, whose root is the norm
    error = up(prec.kappa(b.shape[0]) * square + prec.underflow(b.shape[0]) * b.shape[1])
    return found.narrowed(gram_iterated(gram, error=error, size=square, rtol=rtol))
