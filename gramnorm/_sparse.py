"""Sparse matrices: a dense Gram matrix on the smaller side, products with vectors on the larger.

The order of entries is nobody's promise: SciPy sorts and adds up where it pleases, in a change of type for one.  So
a matrix is taken apart at the door, once, into values and their places, which stay side by side from then on; what
is built of them is built anew, and no array of it is ever exchanged.
"""

from __future__ import annotations

import math

import numpy as np

from gramnorm import _scaling, _single, _sums, _xp
from gramnorm._rounding import down, precision_of, up
from gramnorm._stack import iterate
from gramnorm._typing import Array, DType, HostFloats, Namespace

DENSE_COLUMNS = 4096
"""Largest smaller side; the dense Gram matrix then takes 128 MiB, in complex arithmetic 256 MiB."""


def stored(x: Array) -> Array:
    """Return the entries of `x` one by one, in coordinates of our own.

    Duplicates of integers and bool are added up in their own type, as ``toarray`` does; those of floating types
    are left, for sums whose rounding is counted.
    """
    entries = _xp.sparse_entries(x)
    if entries.data.dtype.kind in "biu":
        return _xp.sparse_entries(_xp.sparse_rows(entries, entries.data))
    return entries


def bracket(
    x: Array, *, rtol: float, dtype: DType, xp: Namespace
) -> tuple[HostFloats, HostFloats, int]:
    """Bracket the norm of one `stored` sparse matrix as host numbers that `dtype` represents."""
    lower, upper, products = np.zeros(0), np.zeros(0), 0
    if x.data.shape[0] == 0:
        return np.zeros(1), np.zeros(1), 0
    scaled = _scaled(x, xp=xp)
    if scaled.active.size:
        b = _xp.sparse_rows(x, scaled.values[0, 0, ...])
        loss = _sum_loss(x, scaled.values, merged=b.data.shape[0], xp=xp)
        b = b.T.tocsr() if b.shape[0] < b.shape[1] else b
        one = _bracket_scaled(b, rtol=rtol, xp=xp)
        lower = np.asarray([max(one.lower - loss, 0.0)])
        upper = np.asarray([one.upper + loss])
        products = one.products
    return (*_scaling.restore(lower, upper, scaled, dtype=dtype, xp=xp), products)


def normalised(x: Array, *, xp: Namespace) -> Array | None:
    """Return a `stored` matrix in compressed rows, its largest entry near 1; None if that is zero or not finite."""
    scaled = _scaled(x, xp=xp) if x.data.shape[0] else None
    if scaled is None or not scaled.active.size:
        return None
    b = _xp.sparse_rows(x, scaled.values[0, 0, ...])
    largest = _xp.to_host(xp.max(xp.abs(b.data))).item()  # sums may have cancelled
    return b * math.ldexp(1.0, min(-math.frexp(largest)[1], 1022)) if largest else None


def _scaled(x: Array, *, xp: Namespace) -> _scaling.Scaled:
    """Scale the values of a `stored` matrix, which must not be empty; sums of them stay in range."""
    finite = xp.isfinite(x.data)
    values = x.data
    if not bool(_xp.to_host(xp.all(finite))):
        # inf and -inf in one place are NaN, finite numbers do not matter any more
        values = _xp.sparse_rows(x, xp.where(finite, xp.zeros_like(values), values)).data
    count = values.shape[0]
    # an entry may be the sum of all, and err by the loss of each
    return _scaling.normalise(
        xp.reshape(values, (1, 1, -1)), dtype=xp.float64, gain=math.sqrt(count), xp=xp
    )


def _sum_loss(x: Array, values: Array, *, merged: int, xp: Namespace) -> float:
    """Bound what rounding did to the norm when `values` became `merged` sums, by |E_ij| <= gamma_k sum |v|."""
    if merged == x.data.shape[0]:
        return 0.0
    prec = precision_of(values.dtype, xp=xp)
    ones = xp.ones(x.data.shape, dtype=xp.float64, device=_xp.device_of(values))
    most = _xp.to_host(xp.max(_xp.sparse_rows(x, ones).data)).item()  # entries in one place
    return up(prec.gamma(int(most)) * math.sqrt(most * _square_above(values, xp=xp)))


def _square_above(values: Array, *, xp: Namespace) -> float:
    """Return an upper bound on the sum of squares of all values."""
    return float(_sums.square(xp.reshape(values, (1, 1, -1)), xp=xp)[1][0])


def _bracket_scaled(b: Array, *, rtol: float, xp: Namespace) -> _single.Bracket:
    """Bracket the norm of the sparse `b`, p x q with q <= `DENSE_COLUMNS`, entries of size about 1."""
    prec = precision_of(b.data.dtype, xp=xp)
    square = _square_above(b.data, xp=xp)
    if square < 2.0**-200:  # sums that cancelled: their rounding is above what is left
        return _single.Bracket(0.0, up(math.sqrt(square)), 0)
    gram = _xp.gram_matrix(b, xp=xp)
    one = _single.certificate(b, gram, frobenius2=square, rtol=rtol, xp=xp)
    if one.is_within(rtol):
        return one
    # clusters: the Gram iteration brackets the norm of the Gram matrix, whose root is the norm
    error = up(prec.kappa(b.shape[0]) * square + prec.underflow(b.shape[0]) * b.shape[1])
    scale = math.ldexp(1.0, -math.frexp(square)[1])
    lower, upper, steps = iterate(gram[None, ...] * scale, rtol=rtol, xp=xp)
    least = down(math.sqrt(max(lower.item() / scale - error, 0.0)))
    most = up(math.sqrt(upper.item() / scale + error))
    return _single.Bracket(max(one.lower, least), min(one.upper, most), one.products + steps)
