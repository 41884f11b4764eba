"""Sparse Gram matrices.

Their moduli, and a Cholesky factorisation in a window that moves along the diagonal.

Where the entries of S = A^H A lie near the diagonal, so do those of the factor of nu I - S: a
square of the rows which the columns at hand reach is all that is ever formed.  It is factorised and
checked as a dense matrix is (`cholesky`; docs/theory.md, Theorem 6), so that memory is the square
of the bandwidth, and time that times the side.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import numpy as np

from gramnorm._arrays import limits, linalg
from gramnorm._arrays.types import HostInts, HostNumbers
from gramnorm._matrix.margin import shortfall
from gramnorm._matrix.non_negative import NonNegative, leading, moduli, positive
from gramnorm._results import Bounds
from gramnorm._rigour.model import precision_of, up

Rows = Any


def bracket(
    b: Rows, known: Bounds[float], above_moduli: float, *, rtol: float
) -> Bounds[float] | None:
    """Bound the norm of `b` from above by its Gram matrix, A^H A or A A^H, whichever is cheaper.

    None if both are dear.

    `known` are bounds on the norm, and `above_moduli` is one on that of the moduli.
    """
    work, other = _work(b), _work(b.T.tocsr())
    if min(work, other) > limits.GRAM_WORK:
        return None
    b = b if work <= other else b.conj().T.tocsr()
    m = moduli(b)
    gram = (b.conj().T @ b).tocsr()
    gram.sum_duplicates()
    prec = precision_of(b.dtype)
    error = up(prec.kappa(m.in_column) * up(above_moduli**2))
    error += up(prec.underflow(m.in_column) * int(np.max(np.diff(gram.indptr))))
    upper = _by_moduli(moduli(gram), error, known, rtol=rtol)
    level = up(known.lower**2)
    for gap in (0.8 * rtol, 100 * rtol):
        if upper <= level * (1 + 1.9 * rtol):
            break
        upper = min(upper, up(_by_factor(gram, level * (1 + 2 * gap), most=_most(b)) + error))
    return Bounds(0.0, up(math.sqrt(upper)), 1)


def _most(b: Rows) -> float:
    """Return the most operations of a factorisation: of a dense Gram matrix where that is small."""
    q = min(b.shape)
    dense = limits.DENSE_FACTOR * q**3 if q <= limits.SPARSE_COLUMNS else math.inf
    return min(dense, limits.WINDOW_WORK)


def _work(b: Rows) -> float:
    """Return how many products of two entries A^H A takes."""
    return float(np.sum(np.diff(b.indptr).astype(np.float64) ** 2))


def _by_moduli(m: NonNegative, error: float, known: Bounds[float], *, rtol: float) -> float:
    """Return an upper bound on ||S||, as far as `error`, by that of |S|.

    Inf where that is larger.
    """
    w = np.ones(m.side)
    for _ in range(limits.FIRST_STEPS):
        v = m.forward(w)
        size = float(np.linalg.norm(v) / np.linalg.norm(w))
        w = positive(v)
    if size > (known.lower * (1 + rtol)) ** 2:
        return math.inf
    return up(leading(m, w, rtol=rtol)[0] + error)


def _by_factor(gram: Rows, level: float, *, most: float) -> float:
    """Return an upper bound on the eigenvalues of S, close to `level` if that is one.

    Else, or if it is dear, inf.
    """
    order = linalg.bandwidth_order(gram)
    choices = [gram, gram[order][:, order].tocsr()]
    windows = [Window.of(s) for s in choices]
    best = int(windows[1].work < windows[0].work)
    if not windows[best].is_affordable or windows[best].work > most:
        return math.inf
    return eigenvalue_bound(SparseRows(choices[best]), windows[best], level)


@dataclasses.dataclass(frozen=True)
class Window:
    """Where the entries of a factor may lie.

    Attributes
    ----------
    block : int
        Columns of a block.
    reach : host ints
        For each block of columns where the rows end that it, or one before it, reaches: at the end
        of a block, because blocks on the diagonal are read as a whole, and enter the window as
        such.
    """

    block: int
    reach: HostInts

    @classmethod
    def of(cls, s: Rows) -> Window:
        """Return the window of a sparse Hermitian matrix."""
        last = np.arange(s.shape[0])
        np.maximum.at(last, s.indices, np.repeat(last, np.diff(s.indptr)))
        return cls.reaching(last)

    @classmethod
    def reaching(cls, last: HostInts) -> Window:
        """Return the window of a matrix with the `last` row of entries given for each column."""
        width = int(np.max(last - np.arange(len(last)), initial=0))
        block = limits.WINDOW_BLOCK * (1 if width < limits.WIDE_WINDOW else 2)
        starts = np.arange(0, len(last), block)
        blocks = np.maximum.accumulate(np.maximum.reduceat(last, starts)) // block + 1
        return cls(block, np.minimum(blocks * block, len(last)))

    @property
    def heights(self) -> HostInts:
        """How many rows the window has at each block of columns."""
        return self.reach - self.block * np.arange(len(self.reach))

    @property
    def side(self) -> int:
        """The side of the window."""
        return int(np.max(self.heights))

    @property
    def work(self) -> float:
        """The operations of a factorisation."""
        return float(np.sum(self.heights.astype(np.float64) ** 2) * self.block)

    @property
    def is_affordable(self) -> bool:
        """Whether a factorisation takes little enough time and memory."""
        return self.work <= limits.WINDOW_WORK and self.side**2 <= limits.WINDOW


class Banded(Protocol):
    """A Hermitian host matrix whose entries are read block by block."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its entries."""

    @property
    def order(self) -> int:
        """Its rows, and columns."""

    def block(self, first: int, stop: int, left: int, right: int) -> HostNumbers:
        """Return the rows from `first` to `stop` of the columns from `left` to `right`."""


class SparseRows:
    """A sparse Hermitian matrix in compressed rows."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self.dtype, self.order = rows, rows.dtype, int(rows.shape[0])

    def block(self, first: int, stop: int, left: int, right: int) -> HostNumbers:
        """Return the rows from `first` to `stop` of the columns from `left` to `right`."""
        return np.asarray(self._rows[first:stop, left:right].toarray())


def eigenvalue_bound(s: Banded, window: Window, level: float) -> float:
    """Return an upper bound on the eigenvalues of a Hermitian matrix, near `level` or inf."""
    with np.errstate(over="ignore", invalid="ignore"):  # a useless R ends as inf or NaN, hence inf
        measured = _factorise(s, window, level)
    if measured is None:
        return math.inf
    defect, size = measured
    prec, n, side, block = precision_of(s.dtype), s.order, window.side, window.block
    # an entry is a difference of one product for each block column in the window
    count = -(-side // block) + 2
    # sums of squares in one stage for each panel; 2 numbers if complex
    relative, lost = (
        prec.gamma(2 * side * block + len(window.reach) + 8),
        4.0 * n * side * prec.tiny,
    )
    defect, size = (up((x + lost) / (1 - relative)) for x in (defect, size))
    rest = up(math.sqrt(2 * defect))
    lost = shortfall(rest, size, products=count, inner=block, order=n, precision=prec)
    bound = up(level + lost, 4)
    return bound if math.isfinite(bound) else math.inf


def _factorise(s: Banded, window: Window, level: float) -> tuple[float, float] | None:
    """Return the computed squared norms of D and R, from the blocks formed.

    None if there is no R.
    """
    square = np.zeros((window.side, window.side), dtype=s.dtype)
    defect, size, known = 0.0, 0.0, 0
    for k, stop in enumerate(window.reach.tolist()):
        start = k * window.block
        width, height = min(window.block, s.order - start), stop - start
        # the first square in strips: nothing above the diagonal is read
        strip = limits.STRIP * window.block if known == 0 else height
        for left in range(start, stop, strip) if stop > known else ():
            top, right = max(known, left), min(left + strip, stop)
            rows, columns = slice(top - start, height), slice(left - start, right - start)
            square[rows, columns] = -s.block(top, stop, left, right)
        square[np.arange(known - start, height), np.arange(known - start, height)] += level
        known = stop
        panel = _panel(square[:height, :width])
        if panel is None:
            return None
        defect += linalg.square_sum(square[:height, :width] - panel @ panel[:width].conj().T)
        size += linalg.square_sum(panel)
        _advance(square, panel, strip=limits.STRIP * window.block)
    return defect, size


def _advance(square: HostNumbers, panel: HostNumbers, *, strip: int) -> None:
    """Subtract a panel's product from what is below and right; move that to the corner."""
    height, width = panel.shape
    below = panel[width:]
    for a in range(0, height - width, strip):  # on and below the diagonal
        b = min(a + strip, height - width)
        product = below[a:] @ below[a:b].conj().T
        square[a : height - width, a:b] = (
            square[a + width : height, a + width : b + width] - product
        )


def _panel(column: HostNumbers) -> HostNumbers | None:
    """Return a block column of a factor, the diagonal block on top, or None where there is none."""
    width = column.shape[1]
    top = linalg.cholesky_or_none(column[:width])
    if top is None:
        return None
    inverse = linalg.inverse_or_none(top.conj().T)
    return None if inverse is None else np.concatenate([top, column[width:] @ inverse])
