"""Sparse Gram matrices: their moduli, and a Cholesky factorisation in a window that moves along the diagonal.

Where the entries of S = A^H A lie near the diagonal, so do those of the factor of nu I - S: a square that holds the rows
which the columns at hand reach is all that is ever formed.  It is factorised and checked as a dense matrix is
(`cholesky`; docs/theory.md, Theorem 6), so that memory is the square of the bandwidth and time that times the side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import limits, linalg
from gramnorm._arrays.types import HostInts
from gramnorm._matrix.cholesky import BLOCK
from gramnorm._matrix.non_negative import NonNegative, leading, moduli, positive
from gramnorm._results import Bounds
from gramnorm._rigour import sums
from gramnorm._rigour.model import precision_of, up

Rows = Any
Matrix = npt.NDArray[np.inexact]

STRIP = 4 * BLOCK
"""Columns of the window that are updated in one product."""


def bracket(b: Rows, known: Bounds[float], *, rtol: float) -> Bounds[float] | None:
    """Bound the norm of `b` from above by its Gram matrix on the smaller side; None if that is dear.

    `known` are bounds on the norm, whose upper one bounds that of the moduli.
    """
    if b.shape[0] < b.shape[1]:
        b = b.conj().T.tocsr()
    m = moduli(b)
    if float(np.sum(np.diff(b.indptr).astype(np.float64) ** 2)) > limits.GRAM_WORK:
        return None
    gram = (b.conj().T @ b).tocsr()
    gram.sum_duplicates()
    prec = precision_of(b.dtype)
    error = up(prec.kappa(m.in_column) * up(known.upper**2))
    error += up(prec.underflow(m.in_column) * int(np.max(np.diff(gram.indptr))))
    upper = _by_moduli(moduli(gram), error, known, rtol=rtol)
    level = up(known.lower**2)
    for gap in (0.8 * rtol, 100 * rtol):
        if upper <= level * (1 + 1.6 * rtol):
            break
        upper = min(upper, up(_by_factor(gram, level * (1 + 2 * gap)) + error))
    return Bounds(0.0, up(math.sqrt(upper)), 1)


def _by_moduli(m: NonNegative, error: float, known: Bounds[float], *, rtol: float) -> float:
    """Return an upper bound on ||S||, as far as `error`, by that of |S|; inf where that is larger."""
    w = np.ones(m.side)
    for _ in range(limits.FIRST_STEPS):
        v = m.forward(w)
        size = float(np.linalg.norm(v) / np.linalg.norm(w))
        w = positive(v)
    if size > (known.lower * (1 + rtol)) ** 2:
        return math.inf
    return up(leading(m, w, rtol=rtol)[0] + error)


def _by_factor(gram: Rows, level: float) -> float:
    """Return an upper bound on the eigenvalues of S, close to `level` if that is one; inf otherwise, or if it is dear."""
    order = linalg.bandwidth_order(gram)
    permuted = gram[order][:, order].tocsr()
    found = min((_reach(gram), gram), (_reach(permuted), permuted), key=lambda pair: _work(pair[0]))
    reach, s = found
    if not _work(reach) <= limits.WINDOW_WORK or _side(reach) ** 2 > limits.WINDOW:
        return math.inf
    s.sort_indices()
    return eigenvalue_bound(s, reach, level)


def _reach(s: Rows) -> HostInts:
    """Return for each block of columns where the rows end that it, or one before it, reaches in the factor.

    That is the end of a block: blocks on the diagonal are read as a whole, and enter the window as such.
    """
    last = np.arange(s.shape[0])
    rows = np.repeat(last, np.diff(s.indptr))
    np.maximum.at(last, s.indices, rows)
    starts = np.arange(0, len(last), BLOCK)
    blocks = np.maximum.accumulate(np.maximum.reduceat(last, starts)) // BLOCK + 1
    return np.minimum(blocks * BLOCK, len(last))


def _side(reach: HostInts) -> int:
    """Return the side of the window."""
    return int(np.max(reach - BLOCK * np.arange(len(reach))))


def _work(reach: HostInts) -> float:
    """Return the operations of a factorisation."""
    return float(np.sum((reach - BLOCK * np.arange(len(reach))).astype(np.float64) ** 2) * BLOCK)


def eigenvalue_bound(s: Rows, reach: HostInts, level: float) -> float:
    """Return an upper bound on the eigenvalues of a sparse Hermitian matrix, close to `level` if that is one; else inf.

    Block k of the columns has no entry below row `reach[k]`, neither in S nor in the factor.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a useless R ends as inf or NaN, hence inf
        measured = _factorise(s, reach, level)
    if measured is None:
        return math.inf
    defect, size = measured
    prec, n, side = precision_of(s.dtype), s.shape[0], _side(reach)
    # an entry is a difference of one product for each block column in the window; see Theorem 6
    count = -(-side // BLOCK) + 2
    relative = prec.gamma(4 * side * BLOCK + len(reach) + 8)  # of sums of squares, panel by panel
    lost = 4.0 * n * side * prec.tiny
    defect, size = (up((x + lost) / (1 - relative)) for x in (defect, size))
    entry = up(sums.host_norm(s.data)[1] + level * math.sqrt(n))
    rounding = (
        (prec.kappa(BLOCK) + prec.gamma(count)) * size
        + prec.gamma(count) * entry
        + 2 * count * prec.underflow(BLOCK) * n
    )
    bound = up(level + math.sqrt(2 * defect) + up(rounding), 4)
    return bound if math.isfinite(bound) else math.inf


def _factorise(s: Rows, reach: HostInts, level: float) -> tuple[float, float] | None:
    """Return the computed squared norms of D and R, from the blocks formed; None if there is no R."""
    side = _side(reach)
    window = np.zeros((side, side), dtype=s.dtype)
    defect, size, known = 0.0, 0.0, 0
    for k, stop in enumerate(reach.tolist()):
        start, width = k * BLOCK, min(BLOCK, s.shape[0] - k * BLOCK)
        if stop > known:
            entering = -s[known:stop, start:stop].toarray()
            entering[np.arange(stop - known), np.arange(known - start, stop - start)] += level
            window[known - start : stop - start, : stop - start] = entering
            known = stop
        height = stop - start
        panel = _panel(window[:height, :width])
        if panel is None:
            return None
        rest = window[:height, :width] - panel @ panel[:width].conj().T
        defect += linalg.square_sum(rest)
        size += linalg.square_sum(panel)
        below = panel[width:]
        for a in range(0, height - width, STRIP):
            b = min(a + STRIP, height - width)
            product = below[a:] @ below[a:b].conj().T
            window[a : height - width, a:b] = (
                window[a + width : height, a + width : b + width] - product
            )
    return defect, size


def _panel(column: Matrix) -> Matrix | None:
    """Return a block column of a factor, the diagonal block on top, or None where there is none."""
    width = column.shape[1]
    top = linalg.cholesky_or_none(column[:width])
    if top is None:
        return None
    inverse = linalg.inverse_or_none(top.conj().T)
    return None if inverse is None else np.concatenate([top, column[width:] @ inverse])
