"""How far Hermitian matrices on the host are from being positive semidefinite, by one factorisation each.

For *any* lower triangular R with columns in blocks, A = R R^H + D implies A + ||D|| I >= 0 (docs/theory.md,
Theorem 6).  The blocks of D are measured as they arise, and what products and differences may have lost is

    (kappa(h) + 4 gamma_{N+2}) |R| |R|^H   entry by entry,    || |R| |R|^H || <= max_i (|R| |R|^H w)_i / w_i

for blocks of h columns, N of them, and every vector w > 0 (Collatz and Wielandt): a few units of u times a small
number, where ||R||_F^2 is as large as the trace.  So single precision serves up to a relative margin of some 10^-4.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import linalg
from gramnorm._arrays.limits import FACTOR_COLUMNS
from gramnorm._arrays.types import HostFloats
from gramnorm._rigour import sums
from gramnorm._rigour.model import precision_of, up

HostStack = npt.NDArray[np.complexfloating]

_ROUNDS = 3
"""Of the power iteration that chooses w; one more changes the bound by a few per cent."""


def starts(q: int) -> range:
    """Return the first columns of the blocks of a matrix of order `q`."""
    return range(0, q, FACTOR_COLUMNS)


def shortfalls(columns: list[HostStack]) -> tuple[HostFloats, HostFloats]:
    """Return numbers d with A + d I >= 0 for each matrix of a stack, and bounds on the norms of |A|.

    Parameters
    ----------
    columns : list of host arrays, shape (b, q - start, width)
        Block columns from the diagonal down, complex64 or complex128, of matrices that are Hermitian but for what
        the caller counts as an error: their Hermitian part is meant.

    Returns
    -------
    two host arrays, shape (b,)
        Infinite where no factor was found.
    """
    count, q = columns[0].shape[:2]
    panels, squares = [], np.zeros(count)
    for column in columns:
        found = _panel(column, panels)
        if found is None:
            return _by_halves(columns)
        panel, square = found
        panels.append(panel)
        squares += square
    prec = precision_of(columns[0].dtype)
    blocks = len(columns) + 2
    size = _collatz(panels)
    # what stands below a diagonal block stands for two, and what is inside need not
    _, defect = sums.enclosure(2 * squares, q, FACTOR_COLUMNS + blocks, prec)
    measured = np.sqrt(defect) * (1 + 2 * prec.gamma(blocks))
    lost = (prec.kappa(FACTOR_COLUMNS) + 4 * prec.gamma(blocks)) * size
    lost += 2 * blocks * prec.underflow(FACTOR_COLUMNS) * q
    shortfall = up(measured + lost)
    # NaN, from what was no factor, compares as false
    usable = shortfall < np.inf
    return np.where(usable, shortfall, np.inf), np.where(usable, up(size + shortfall), np.inf)


def _by_halves(columns: list[HostStack]) -> tuple[HostFloats, HostFloats]:
    """Look for the matrices that have no factor, which the library finds for all of a stack or for none."""
    count = len(columns[0])
    if count == 1:
        return np.full(1, np.inf), np.full(1, np.inf)
    parts = slice(0, count // 2), slice(count // 2, count)
    (d, size), (d2, size2) = (shortfalls([c[part] for c in columns]) for part in parts)
    return np.concatenate([d, d2]), np.concatenate([size, size2])


def expected_loss(q: int, kind: np.dtype[np.generic]) -> float:
    """Return about how far rounding raises the shortfall of matrices of order `q`, relative to their entries.

    The norm of |R| |R|^H was found to be 2 + 0.055 q times the largest diagonal entry, for kernels of several kinds.
    """
    prec = precision_of(kind)
    blocks = len(starts(q)) + 2
    return 1.2 * (prec.kappa(FACTOR_COLUMNS) + 5 * prec.gamma(blocks)) * (2 + 0.055 * q)


def _panel(column: HostStack, panels: list[HostStack]) -> tuple[HostStack, HostFloats] | None:
    """Return a block column of R from its diagonal down, and the squared norm of what it leaves of A."""
    rows, width = column.shape[1:]
    for panel in panels:
        below = panel[:, -rows:, :]
        column = column - linalg.matmul(below, linalg.adjoint(below[:, :width, :]))
    # the small blocks in double precision: they cost little, and what they leave in D is less
    pivot = linalg.attempted(np.linalg.cholesky, column[:, :width, :].astype(np.complex128))
    if pivot is None:
        return None
    upper = linalg.adjoint(pivot)
    panel = pivot.astype(column.dtype)
    if rows > width:
        inverse = linalg.attempted(np.linalg.inv, upper)
        if inverse is None:
            return None
        below = linalg.matmul(column[:, width:, :], inverse.astype(column.dtype))
        panel = np.concatenate([panel, below], axis=1)
    rest = column - linalg.matmul(panel, upper.astype(column.dtype))
    return panel, np.asarray(sums.inner_product(rest, rest), dtype=np.float64)


def _collatz(panels: list[HostStack]) -> HostFloats:
    """Return upper bounds on the norms of |R| |R|^H."""
    count, q = panels[0].shape[:2]
    moduli = [np.abs(panel) for panel in panels]
    best = np.full(count, np.inf)
    w = np.ones((count, q, 1), dtype=moduli[0].dtype)
    for _ in range(_ROUNDS):
        image = np.zeros_like(w)
        for part in moduli:
            rows = part.shape[1]
            image[:, -rows:] += part @ (np.matrix_transpose(part) @ w[:, -rows:])
        best = np.minimum(best, np.max(image / w, axis=(1, 2)))
        w = image / np.max(image, axis=1, keepdims=True)
        w = np.maximum(w, 2.0**-20)  # any vector will do that is not so small that terms underflow
    prec = precision_of(moduli[0].dtype)
    # sums of q terms twice, moduli right within 4 u, products, a sum over the blocks and a quotient
    relative = prec.gamma(2 * q + len(panels) + 16)
    return up(best.astype(np.float64) * (1 + 2 * relative)) + 2.0**-80
