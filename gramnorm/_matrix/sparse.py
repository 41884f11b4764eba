"""Sparse matrices: a dense Gram matrix on the smaller side, products with vectors on the larger.

The order of entries is nobody's promise: SciPy sorts and adds up where it pleases, in a change of type for one.  So
a matrix is taken apart at the door, once, into values and their places, which stay side by side from then on; what
is built of them is built anew, and no array of it is ever exchanged.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import numpy as np

from gramnorm._arrays import crossing, libraries, limits, linalg
from gramnorm._arrays.types import Array, DType, HostFloats
from gramnorm._matrix import certificate, large_sparse, ritz, windows
from gramnorm._matrix.choose import iterate
from gramnorm._results import Bounds
from gramnorm._rigour import scaling, sums
from gramnorm._rigour.model import down, precision_of, up

DENSE_COLUMNS = 4096
"""Largest smaller side; the dense Gram matrix then takes 128 MiB, in complex arithmetic 256 MiB."""


def stored(x: Array) -> Array:
    """Return the entries of `x` one by one, in coordinates of our own.

    Duplicates of integers and bool are added up in their own type, as ``toarray`` does; those of floating types
    are left, for sums whose rounding is counted.
    """
    entries = linalg.sparse_entries(x)
    if entries.data.dtype.kind in "biu":
        return linalg.sparse_entries(linalg.sparse_rows(entries, entries.data))
    return entries


def bracket(x: Array, *, rtol: float, dtype: DType) -> tuple[HostFloats, HostFloats, int]:
    """Bracket the norm of one sparse matrix as host numbers that `dtype` represents."""
    lower, upper, products = np.zeros(0), np.zeros(0), 0
    x = stored(x)
    if x.data.shape[0] == 0:
        return np.zeros(1), np.zeros(1), 0
    scaled = _scaled(x)
    if scaled.active.size:
        # of a large matrix one copy is kept, no more
        x = linalg.with_entries(x, scaled.values[0, 0, ...])
        scaled = dataclasses.replace(scaled, values=1 * scaled.values[:, :, :0])
        b = linalg.sparse_rows(x, x.data)
        loss = _sum_loss(x, merged=b.data.shape[0])
        del x
        b = b.T.tocsr() if b.shape[0] < b.shape[1] else b
        one = _bracket_summed(b, rtol=rtol)
        lower = np.asarray([max(one.lower - loss, 0.0)])
        upper = np.asarray([one.upper + loss])
        products = one.cost
    return (*scaling.restore(lower, upper, scaled, dtype=dtype), products)


def normalised(x: Array) -> Array | None:
    """Return a `stored` matrix in compressed rows, its largest entry near 1; None if that is zero or not finite."""
    xp = libraries.namespace(x)
    scaled = _scaled(x) if x.data.shape[0] else None
    if scaled is None or not scaled.active.size:
        return None
    b = linalg.sparse_rows(x, scaled.values[0, 0, ...])
    largest = crossing.to_host(xp.max(xp.abs(b.data))).item()  # sums may have cancelled
    return b * math.ldexp(1.0, min(-math.frexp(largest)[1], 1022)) if largest else None


def _scaled(x: Array) -> scaling.Scaled:
    """Scale the values of a `stored` matrix, which must not be empty; sums of them stay in range."""
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
    """Bound what rounding did to the norm when all values became `merged` sums, by |E_ij| <= gamma_k sum |v|."""
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


def unit_pair(b: Array, rtol: float) -> tuple[ritz.HostVectors, ritz.HostVectors]:
    """Return left and right unit vectors (u, v) with u^H B v almost the norm of a `normalised` matrix."""
    if min(b.shape) <= limits.SMALL_SIDE:
        return ritz.unit_pair(b, rtol)
    b = crossing.host_sparse(b)
    v = large_sparse.bracket(b, rtol=rtol, roads=()).vector
    u = b @ v
    return u / np.linalg.norm(u), v / np.linalg.norm(v)


def gradient(x: Array, value: Array, left: Array, right: Array) -> Array:
    """Return u_i conj(v_j) at the entries of `x` as coordinates, scaled so that the pairing with `x` is `value`.

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


def _bracket_summed(b: Array, *, rtol: float) -> Bounds[float]:
    """Bracket the norm of the sparse `b`, p x q with q <= p, entries of size about 1 and no place twice."""
    if b.shape[1] <= limits.SMALL_SIDE or _square_above(b.data) < 2.0**-200:
        return _by_dense_gram(b, rtol=rtol)

    def dense(part: Array, *_: object) -> Bounds[float] | None:
        part = part.T.tocsr() if part.shape[0] < part.shape[1] else part
        return _by_dense_gram(part, rtol=rtol) if part.shape[1] <= DENSE_COLUMNS else None

    roads = dense, partial(windows.bracket, rtol=rtol)
    return large_sparse.bracket(crossing.host_sparse(b), rtol=rtol, roads=roads).bounds


def _by_dense_gram(b: Array, *, rtol: float) -> Bounds[float]:
    one = _bracket_scaled(b, rtol=rtol)
    return Bounds(one.lower, one.upper, one.products)


def _bracket_scaled(b: Array, *, rtol: float) -> certificate.Bracket:
    """Bracket the norm of the sparse `b`, p x q with q <= `DENSE_COLUMNS`, entries of size about 1."""
    prec = precision_of(b.data.dtype)
    square = _square_above(b.data)
    if square < 2.0**-200:  # sums that cancelled: their rounding is above what is left
        return certificate.Bracket(0.0, up(math.sqrt(square)), 0)
    gram = linalg.gram_matrix(b)
    one = certificate.certificate(b, gram, frobenius2=square, rtol=rtol)
    if one.is_within(rtol):
        return one
    # clusters: the Gram iteration brackets the norm of the Gram matrix, whose root is the norm
    error = up(prec.kappa(b.shape[0]) * square + prec.underflow(b.shape[0]) * b.shape[1])
    scale = math.ldexp(1.0, -math.frexp(square)[1])
    lower, upper, steps = iterate(gram[None, ...] * scale, rtol=rtol)
    least = down(math.sqrt(max(lower.item() / scale - error, 0.0)))
    most = up(math.sqrt(upper.item() / scale + error))
    return certificate.Bracket(max(one.lower, least), min(one.upper, most), one.products + steps)
