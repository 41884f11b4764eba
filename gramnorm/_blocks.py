"""A block of vectors that follows the largest singular vectors of operators, without a search.

With orthonormal rows V a step is

    Y = T V,   U = Y, made orthonormal by the eigenvectors of Y Y^H,   Z = T^H U,

and the largest combination of the rows of Z is the largest ||T^H u|| of u in the span of Y: no less
than a step of power iteration from any combination of V.  Rows have the shape (operators, vectors,
n): each of a stack of operators has a block of its own.
"""

from __future__ import annotations

import math
from typing import Protocol

from gramnorm._arrays import dtypes, libraries, linalg
from gramnorm._arrays.types import Array


class Products(Protocol):
    """What is known of the operators."""

    def first(self, v: Array) -> Array:
        """Return T v of rows."""

    def back(self, u: Array) -> Array:
        """Return T^H u of rows."""


def stepped(v: Array, operator: Products, *, steps: int) -> tuple[Array, Array, Array, Array]:
    """Return values and unit u and v, one of each for an operator, and the rows of a block."""
    xp = libraries.namespace(v)
    for _ in range(steps):
        y = operator.first(v)
        turn, sizes = _turn(y)
        u = to_type(y, _inverse_roots(sizes)[..., None]) * linalg.matmul(turn, y)
        z = operator.back(u)
        turn, _ = _turn(z)
        u, z = linalg.matmul(turn, u), linalg.matmul(turn, z)
        v = linalg.orthonormal_rows(xp.flip(z, axis=1))
    if not steps:
        u = operator.first(v)
        turn, _ = _turn(u)
        u, z = linalg.matmul(turn, u), linalg.matmul(turn, v)
    u, z = u[:, -1:, :], z[:, -1:, :]
    # one of them is a unit vector but for rounding, the other as long as the value
    long, wide = lengths(u), lengths(z)
    value = long / positive(wide) if not steps else wide / positive(long)
    pair = (x / to_type(x, positive(n)) for x, n in ((u, long), (z, wide)))
    return value[:, 0, 0], *pair, v


def _turn(rows: Array) -> tuple[Array, Array]:
    """Return a unitary matrix that makes rows orthogonal, and the squares of their lengths then.

    The longest is the last.
    """
    turn, sizes = linalg.eigenpairs(linalg.matmul(rows, linalg.adjoint(rows)))
    return linalg.adjoint(turn), sizes


def _inverse_roots(sizes: Array) -> Array:
    """Return 1 / sqrt of eigenvalues, 0 for those that rounding has spoilt."""
    xp = libraries.namespace(sizes)
    least = math.sqrt(dtypes.finfo(sizes.dtype).eps) * xp.max(sizes, axis=-1, keepdims=True)
    is_usable = (sizes > least) & (sizes > 0)
    return xp.where(is_usable, 1 / xp.sqrt(xp.where(is_usable, sizes, xp.ones_like(sizes))), 0.0)


def lengths(x: Array) -> Array:
    """Return the lengths of rows."""
    xp = libraries.namespace(x)
    squares = sum(xp.sum(y * y, axis=-1, keepdims=True) for y in dtypes.components(x))
    return xp.sqrt(squares)


def positive(x: Array) -> Array:
    """Return `x` with ones for zeros, to divide by."""
    xp = libraries.namespace(x)
    return xp.where(x == 0, xp.ones_like(x), x)


def to_type(like: Array, x: Array) -> Array:
    """Return real numbers in the type of an array."""
    return libraries.namespace(like).astype(x, like.dtype, copy=False)
