"""How far Hermitian matrices are from being positive semidefinite.

For *any* lower triangular R with columns in blocks, A = R R^H + D implies A + ||D|| I >= 0
(docs/theory.md, Theorem 6).  The blocks of D are measured as they arise, and what products and
differences may have lost (`margin`) is proportional to

    || |R| |R|^H || <= max_i (|R| |R|^H w)_i / w_i

for every vector w > 0: a few units of u times a small number, where ||R||_F^2 is as large as the
trace.  So single precision serves up to a relative margin of some 10^-4.  On the host R is made
here, block by block; on a device it is the library's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import crossing, libraries, limits, linalg
from gramnorm._arrays.programs import compiled
from gramnorm._arrays.types import Array, DType, HostFloats
from gramnorm._matrix.margin import shortfall
from gramnorm._rigour import sums
from gramnorm._rigour.model import precision_of, up

HostStack = npt.NDArray[np.inexact]

SMALLEST = 16
"""Columns of triangles that the library inverts as they are."""

_ROUNDS = 3
"""Of the power iteration that chooses w; one more changes the bound by a few per cent."""


def blocks_of(q: int) -> list[tuple[int, int]]:
    """Return the first columns and the widths of the blocks of a matrix of order `q`."""
    width = limits.INNER if q <= limits.INNER else limits.FACTOR_COLUMNS
    return [(start, min(width, q - start)) for start in range(0, q, width)]


def shortfalls(
    columns: list[HostStack], *, inner: int = limits.INNER
) -> tuple[HostFloats, HostFloats]:
    """Return numbers d with A + d I >= 0 for a stack of matrices, and bounds on the norms of |A|.

    Parameters
    ----------
    columns : list of host arrays, shape (b, q - start, width)
        Block columns of at most `limits.INNER` columns, from the diagonal down, real or complex.
        The Hermitian part of the matrices is meant; what departs from it counts as an error of the
        caller.
    inner : int
        Most of the inner length of a product: longer ones take less time, and lose more.

    Returns
    -------
    two host arrays, shape (b,)
        Infinite where no factor was found.
    """
    count, q, width = columns[0].shape
    inner = max(inner, width)  # the length of the last product for each entry
    factor, squares = np.zeros((count, q, q), dtype=columns[0].dtype), np.zeros(count)
    for column in columns:
        start = q - column.shape[1]
        square = _factorise(factor[:, start:, : start + column.shape[2]], column, inner)
        if square is None:
            return _by_halves(
                lambda part: shortfalls([c[part] for c in columns], inner=inner), count
            )
        squares += square
    # the first difference is one of halves
    products, size = -(-q // inner) + 2, _collatz(np.abs(factor))
    return _bounded(squares, size, products, inner, q, factor.dtype)


def shortfalls_on_device(a: Array) -> tuple[HostFloats, HostFloats]:
    """Return the same numbers for whole matrices of any library, shape (b, q, q).

    The library factorises, and all that is trusted is measured: two numbers of a matrix come back,
    all together.  Of the computed matrices the diagonal blocks and what is below them counts, which
    a Hermitian one is known by.
    """
    count, q = a.shape[:2]
    factor = linalg.lower_factors_or_none(a)
    if factor is None:
        return _by_halves(lambda part: shortfalls_on_device(a[part, ...]), count)
    found = linalg.stacked(_left(a, factor), _quotients(_moduli(factor)))
    squares, best = crossing.to_host(found)
    products, size = -(-q // limits.INNER), _above(best, q, a.dtype)
    return _bounded(squares, size, products, min(q, limits.INNER), q, a.dtype)


def _bounded(
    squares: HostFloats, size: HostFloats, products: int, inner: int, q: int, dtype: DType
) -> tuple[HostFloats, HostFloats]:
    """Return shortfalls and bounds on |A| from the squared norms of D and bounds on |R| |R|^H."""
    prec = precision_of(dtype)
    # what stands below a diagonal block stands for two, and what is inside need not
    _, defect = sums.enclosure(2 * squares, q, q + products, prec)
    rest = up(np.sqrt(defect))
    lost = shortfall(rest, size, products=products, inner=inner, order=q, precision=prec)
    # NaN, from what was no factor, compares as false
    usable = lost < np.inf
    return np.where(usable, lost, np.inf), np.where(usable, up(size + lost), np.inf)


def _by_halves(
    found: Callable[[slice], tuple[HostFloats, HostFloats]], count: int
) -> tuple[HostFloats, HostFloats]:
    """Look for those without a factor: the library returns one for all of a stack or for none."""
    if count == 1:
        return np.full(1, np.inf), np.full(1, np.inf)
    first, last = found(slice(0, count // 2)), found(slice(count // 2, count))
    return np.concatenate([first[0], last[0]]), np.concatenate([first[1], last[1]])


def expected_loss(q: int, kind: np.dtype[np.generic], *, inner: int = limits.INNER) -> float:
    """Return about how far rounding raises shortfalls, relative to the largest diagonal entry.

    The norm of |R| |R|^H was found to be 2 + 0.055 q times that entry, for kernels of several
    kinds.
    """
    prec = precision_of(kind)
    return 1.2 * (prec.kappa(inner) + 2 * prec.gamma(-(-q // inner) + 2)) * (2 + 0.055 * q)


def _factorise(factor: HostStack, column: HostStack, inner: int) -> HostFloats | None:
    """Fill the last block column of R; return the squared norm of what it leaves of A, or None.

    `factor` is what R has from the rows of the block down and up to its last column.
    """
    width = column.shape[2]
    start = factor.shape[2] - width
    for first in range(0, start, inner):
        known = factor[:, :, first : min(first + inner, start)]
        column = _less(column, known, known[:, :width].mT.conj())
    # the small blocks in double precision: they cost little, and what they leave in D is less
    double = np.result_type(column.dtype, np.float64)
    order, is_last = start + column.shape[1], column.shape[1] == width
    found = _triangles(column[:, :width].astype(double), order=order, inverted=not is_last)
    if found is None:
        return None
    pivot, inverse = found
    upper = pivot.mT.conj()
    panel = factor[:, :, start:]
    panel[:, :width] = pivot
    if inverse is not None:
        panel[:, width:] = linalg.matmul(column[:, width:], inverse.astype(column.dtype))
    # by halves of the columns: R is triangular
    upper, half = upper.astype(column.dtype), width // 2
    halves = (
        _less(column[:, :, :half], panel[:, :, :half], upper[:, :half, :half]),
        _less(column[:, half:, half:], panel[:, half:], upper[:, :, half:]),
    )
    squares = sum(map(_square, halves))
    return np.asarray(squares, dtype=np.float64)


def _less(a: HostStack, left: HostStack, right: HostStack) -> HostStack:
    """Return a - left right in one array."""
    product = linalg.matmul(left, right)
    return np.asarray(np.subtract(a, product, out=product))


def _square(a: HostStack) -> HostStack:
    """Return the sums of squares of matrices, those of real and imaginary parts together."""
    numbers = a.view(a.real.dtype)
    return np.asarray(sums.inner_product(numbers, numbers))


def _triangles(
    a: HostStack, *, order: int, inverted: bool
) -> tuple[HostStack, HostStack | None] | None:
    """Return about R, lower triangular, with A = R R^H, and R^-H, for blocks of matrices of an order.

    NaN where a matrix has none, or None for all; no R^-H where it is not wanted.
    """
    routines = linalg.triangle_routines(a.dtype) if order >= limits.LAPACK_ORDER else None
    if routines is None:
        pivots = linalg.attempted(np.linalg.cholesky, a)
        inverses = _inverse(pivots.mT.conj()) if inverted and pivots is not None else None
        return None if pivots is None or (inverted and inverses is None) else (pivots, inverses)
    potrf, trtri = routines
    pivots, inverses = (np.full(a.shape, np.nan, dtype=a.dtype) for _ in range(2))
    for matrix, pivot, inverse in zip(a, pivots, inverses, strict=True):
        # by columns the lower triangle of A is the upper one of its transpose, and R that of R^T
        upper, failed = potrf(matrix.T, lower=0, clean=1)
        if not failed:
            pivot[...] = upper.T
            if inverted:
                inverse[...] = trtri(upper, lower=0)[0].conj()
    return pivots, inverses if inverted else None


def _inverse(upper: HostStack) -> HostStack | None:
    """Return about the inverses of upper triangular matrices, by halves of their diagonals."""
    count, n = upper.shape[:2]
    if n <= SMALLEST or n % 2:
        return linalg.attempted(np.linalg.inv, upper)
    half = n // 2
    inner = _inverse(np.concatenate([upper[:, :half, :half], upper[:, half:, half:]]))
    if inner is None:
        return None
    first, last = inner[:count], inner[count:]
    result = np.zeros_like(upper)
    result[:, :half, :half], result[:, half:, half:] = first, last
    result[:, :half, half:] = -linalg.matmul(first, linalg.matmul(upper[:, :half, half:], last))
    return result


@compiled
def _left(a: Array, factor: Array) -> Array:
    """Return the squared norms of what R R^H leaves of A, on the diagonal blocks and below."""
    found, q = [], a.shape[-1]
    blocks = [slice(start, min(start + limits.INNER, q)) for start in range(0, q, limits.INNER)]
    for index, block in enumerate(blocks):
        rest, rows = a[:, block.start :, block], factor[:, block.start :, :]
        for columns in blocks[: index + 1]:
            product = linalg.matmul(rows[:, :, columns], linalg.adjoint(factor[:, block, columns]))
            rest = rest - linalg.as_computed(product)  # or a compiler makes one of all of them
        found.append(linalg.as_computed(sums.inner_product(rest, rest)))
    return sums.row_sums(libraries.namespace(a).stack(found, axis=-1))


@compiled
def _moduli(factor: Array) -> Array:
    return libraries.namespace(factor).abs(factor)


@compiled
def _quotients(moduli: Array) -> Array:
    """Return the largest (|R| |R|^H w)_i / w_i as computed for a few vectors w, the least of them."""
    xp = libraries.namespace(moduli)
    w, best = xp.ones_like(moduli[:, :, :1]), None
    for _ in range(_ROUNDS):
        image = linalg.matmul(moduli, linalg.matmul(xp.matrix_transpose(moduli), w))
        most = xp.max(image / w, axis=(1, 2))
        best = most if best is None else xp.minimum(best, most)
        # any vector will do, the same in both places, not so small that terms underflow
        w = linalg.as_computed(image / xp.max(image, axis=1, keepdims=True) + 2.0**-20)
    return best


def _collatz(moduli: npt.NDArray[np.floating]) -> HostFloats:
    """Return upper bounds on the norms of |R| |R|^H."""
    return _above(_quotients(moduli), moduli.shape[1], moduli.dtype)


def _above(quotients: HostFloats, q: int, dtype: DType) -> HostFloats:
    # sums of q terms twice, moduli right within 4 u, a quotient; underflow is below the last term
    relative = precision_of(dtype).gamma(2 * q + 16)
    return up(quotients.astype(np.float64) * (1 + 2 * relative)) + 2.0**-60
