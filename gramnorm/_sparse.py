"""Sparse matrices: a dense Gram matrix on the smaller side, products with vectors on the larger."""

from __future__ import annotations

import math

import numpy as np

from gramnorm import _single, _xp
from gramnorm._gram import GramChain
from gramnorm._rounding import precision_of
from gramnorm._typing import Array, Namespace

DENSE_COLUMNS = 4096
"""Largest smaller side; the dense Gram matrix then takes 128 MiB, in complex arithmetic 256 MiB."""


def entries(x: Array) -> Array:
    """Return the stored entries of `x`, duplicates included."""
    return x.data if x.format not in {"dia", "lil"} else x.tocoo().data


def scaled(x: Array, scale: float, *, xp: Namespace) -> tuple[Array, float, float]:
    """Return ``x * scale`` in double precision, p x q with q <= p, its squared norm and what was lost.

    The squared Frobenius norm is an upper bound; the loss bounds, in the spectral norm, the rounding of
    long integers and of duplicate entries that were added up.
    """
    data = entries(x)
    kind = xp.complex128 if _xp.is_complex(data.dtype, xp=xp) else xp.float64
    rows = _xp.sparse_rows(x.astype(kind) * scale)
    if rows.shape[0] < rows.shape[1]:
        rows = rows.T.tocsr()
    prec = precision_of(kind, xp=xp)
    stored = _square_sum(xp.astype(data, kind) * scale, xp=xp)
    merged = data.shape[0] - rows.nnz + 1
    loss = prec.gamma(merged) * math.sqrt(merged * stored) if merged > 1 else 0.0
    if xp.isdtype(data.dtype, "integral"):
        loss += 2 * prec.unit * math.sqrt(stored)
    loss += 4 * prec.tiny * math.sqrt(1 + data.shape[0])
    square = _square_sum(rows.data, xp=xp) * (1 + 2 * prec.gamma(2 * data.shape[0] + 8))
    return rows, square, loss


def _square_sum(data: Array, *, xp: Namespace) -> float:
    return float(sum(_xp.to_host(xp.sum(part * part)) for part in _xp.components(data, xp=xp)))


def bracket(b: Array, *, frobenius2: float, rtol: float, xp: Namespace) -> _single.Bracket:
    """Bracket the norm of the sparse `b`, p x q with q <= `DENSE_COLUMNS` columns."""
    gram = _xp.matmul(_xp.adjoint(b, xp=xp), b, xp=xp).toarray()
    one = _single.certificate(b, gram, frobenius2=frobenius2, rtol=rtol, xp=xp)
    if one.is_within(rtol):
        return one
    # clusters: the Gram iteration brackets the norm of the Gram matrix, whose root is the norm
    prec = precision_of(gram.dtype, xp=xp)
    error = (prec.kappa(b.shape[0]) * frobenius2 + prec.underflow(b.shape[0]) * b.shape[1]) * 1.01
    scale = math.ldexp(1.0, -math.frexp(frobenius2)[1])
    chain, lower, upper, steps = GramChain(gram[None, ...] * scale, xp=xp), 0.0, math.inf, 0
    while upper - lower > rtol * lower and steps < 40:
        steps += 1
        low, high = chain.advance()
        lower, upper = max(lower, low.item()), min(upper, high.item())
        if (upper - lower) * 0.7 <= 2 * chain.noise.item() * upper:
            break
    tight = np.sqrt(np.asarray([max(lower / scale - error, 0.0), upper / scale + error]))
    return _single.Bracket(
        max(one.lower, tight[0].item() * (1 - 2.0**-50)),
        min(one.upper, tight[1].item() * (1 + 2.0**-50)),
        one.products + steps,
    )
