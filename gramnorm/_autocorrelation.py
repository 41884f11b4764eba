"""A bound on a symbol from the autocorrelation of its taps: exact for orthogonal convolutions.

With H_m = sum_k K_k^H K_{k+m} the square of the symbol is F^H F = sum_m H_m exp(i m . theta), hence
(docs/theory.md, Lemma 9)

    sup ||F||^2 <= ||H_0|| + sum_{m != 0} ||H_m||.

A symbol whose norm is the same at every frequency is the worst case of a search over frequencies;
if it is a multiple of a unitary matrix, H_m = 0 for m != 0 and the bound is sharp.
"""

from __future__ import annotations

import math

import numpy as np

from gramnorm import _xp
from gramnorm._gram import GramChain
from gramnorm._moments import inner_product
from gramnorm._rounding import precision_of
from gramnorm._typing import Array, HostFloats, HostInts, Namespace

COLUMNS = 4096
"""Most columns of the matrix of all taps whose Gram matrix is formed."""

LAGS = 1000
"""Most lags, of which there are (2 k - 1) per axis."""

_STEPS = 6


def symbol_bound(taps: Array, offsets: HostInts, *, xp: Namespace) -> float:
    """Return an upper bound on the norm of the symbol of taps (T, groups, p, q); inf if too large to form."""
    count, groups, p, q = taps.shape
    spread = np.ptp(offsets, axis=0)
    if count * q > COLUMNS or np.prod(2.0 * spread + 1) > LAGS:
        return math.inf
    prec = precision_of(taps.dtype, xp=xp)
    rows = xp.reshape(xp.permute_dims(taps, (1, 2, 0, 3)), (groups, p, count * q))
    gram = _xp.gram_matrix(rows, xp=xp)
    blocks = xp.reshape(gram, (groups, count, q, count, q))
    blocks = xp.reshape(xp.permute_dims(blocks, (1, 3, 0, 2, 4)), (count * count, groups, q, q))

    lags = (offsets[None, :, :] - offsets[:, None, :]).reshape(count * count, -1)
    kinds, which = np.unique(lags, axis=0, return_inverse=True)
    total = np.zeros(groups)
    for index, lag in enumerate(kinds):
        pairs = np.flatnonzero(which.reshape(-1) == index)
        h = xp.sum(_xp.select(blocks, pairs, xp=xp), axis=0)
        if np.any(lag):
            total += np.sqrt(_xp.to_host(inner_product(h, h, xp=xp)) * (1 + prec.gamma(4 * q + 6)))
        else:
            total += _norms(h, xp=xp)
    sums = prec.gamma(2 * (p + count * q) + 8)
    squares = _xp.to_host(inner_product(rows, rows, xp=xp)) * (1 + sums)
    # each of the T^2 blocks errs by kappa |K_k|^H |K_l|, their sums by gamma_T of the same
    error = 1.1 * count * (prec.kappa(p) + prec.gamma(count)) * squares
    error += count**2 * prec.underflow(p) * q
    total *= 1 + (len(kinds) + 8) * 2.0**-52
    return math.sqrt(float(np.max(total + error))) * (1 + 2.0**-44)


def _norms(h: Array, *, xp: Namespace) -> HostFloats:
    """Return upper bounds on the norms of a stack of Hermitian matrices."""
    chain = GramChain(h, xp=xp)
    return np.asarray(np.min([chain.advance()[1] for _ in range(_STEPS)], axis=0))
