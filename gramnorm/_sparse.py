"""Sparse matrices: a dense Gram matrix on the smaller side, products with vectors on the larger."""

from __future__ import annotations

import math

import numpy as np

from gramnorm import _scaling, _single, _xp
from gramnorm._rounding import precision_of
from gramnorm._stack import iterate
from gramnorm._typing import Array, DType, HostFloats, Namespace

DENSE_COLUMNS = 4096
"""Largest smaller side; the dense Gram matrix then takes 128 MiB, in complex arithmetic 256 MiB."""


def stored(x: Array) -> Array:
    """Return `x` in a format whose ``data`` holds the entries one by one.

    Duplicates of integers and bool are added up in their own type, as ``toarray`` does.
    """
    x = x if x.format in {"csr", "csc", "coo"} else x.tocoo()
    return _xp.sparse_rows(x) if x.data.dtype.kind in "biu" else x


def bracket(
    x: Array, *, rtol: float, dtype: DType, xp: Namespace
) -> tuple[HostFloats, HostFloats, int]:
    """Bracket the norm of one `stored` sparse matrix as host numbers that `dtype` represents."""
    lower, upper, products = np.zeros(0), np.zeros(0), 0
    if x.data.shape[0] == 0:
        return np.zeros(1), np.zeros(1), 0
    merged = 1 + x.data.shape[0] - _xp.sparse_rows(x).data.shape[0]
    # an entry that is the sum of several may err by the loss of each
    scaled = _scaling.normalise(
        xp.reshape(x.data, (1, 1, -1)), dtype=xp.float64, gain=math.sqrt(merged), xp=xp
    )
    if scaled.active.size:
        b, stored_norm = _merged(x, scaled.values[0, 0, ...], xp=xp)
        prec = precision_of(b.data.dtype, xp=xp)
        loss = prec.gamma(merged) * math.sqrt(merged) * stored_norm if merged > 1 else 0.0
        one = _bracket_scaled(b, rtol=rtol, xp=xp)
        lower = np.asarray([max(one.lower - loss, 0.0)])
        upper = np.asarray([one.upper + loss])
        products = one.products
    return (*_scaling.restore(lower, upper, scaled, dtype=dtype, xp=xp), products)


def _merged(x: Array, values: Array, *, xp: Namespace) -> tuple[Array, float]:
    """Return `x` with other values, duplicates added up, p x q with q <= p; and the norm of the values."""
    y = x.astype(values.dtype)
    y.data = values
    rows = _xp.sparse_rows(y)
    if rows.shape[0] < rows.shape[1]:
        rows = rows.T.tocsr()
    return rows, math.sqrt(_square_sum(values, xp=xp))


def _square_sum(data: Array, *, xp: Namespace) -> float:
    return float(sum(_xp.to_host(xp.sum(part * part)) for part in _xp.components(data, xp=xp)))


def _bracket_scaled(b: Array, *, rtol: float, xp: Namespace) -> _single.Bracket:
    """Bracket the norm of the sparse `b`, p x q with q <= `DENSE_COLUMNS`, entries of size about 1."""
    prec = precision_of(b.data.dtype, xp=xp)
    square = _square_sum(b.data, xp=xp) * (1 + prec.gamma(2 * b.data.shape[0] + 8))
    if square == 0.0:  # everything cancelled
        return _single.Bracket(0.0, 0.0, 0)
    gram = _xp.gram_matrix(b, xp=xp)
    one = _single.certificate(b, gram, frobenius2=square, rtol=rtol, xp=xp)
    if one.is_within(rtol):
        return one
    # clusters: the Gram iteration brackets the norm of the Gram matrix, whose root is the norm
    error = (prec.kappa(b.shape[0]) * square + prec.underflow(b.shape[0]) * b.shape[1]) * 1.01
    scale = math.ldexp(1.0, -math.frexp(square)[1])
    lower, upper, steps = iterate(gram[None, ...] * scale, rtol=rtol, xp=xp)
    least = math.sqrt(max(lower.item() / scale - error, 0.0))
    most = math.sqrt(upper.item() / scale + error)
    return _single.Bracket(
        max(one.lower, least * (1 - 2.0**-50)),
        min(one.upper, most * (1 + 2.0**-50)),
        one.products + steps,
    )
