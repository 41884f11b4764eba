"""Sums of squares and inner products, enclosed: one lemma for all of them.

The sum over the entries of m x n matrices A and B is taken in two stages, rows and then their sums.
Whatever the order within a stage (docs/theory.md, Lemma 3)

    |fl(Re <A, B>) - Re <A, B>| <= gamma_n' <|A|, |B|> + 4 m n tiny,   n' = 2 (m + n) + 8,

since an entry of complex matrices adds two products, each of which may underflow, and where
subnormal numbers are flushed so may sums of opposite signs.  Squares have none: for A = B half of
the last term is enough.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import crossing, dtypes, libraries, linalg
from gramnorm._arrays.programs import compiled
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._rigour.model import HOST_UNIT, Precision, down, precision_of, up

ONE_SUM = 2**14
"""Entries of a matrix that are summed in one go: one call for a small one."""


def inner_product(a: Array, b: Array) -> Array:
    """Return Re <a, b> of each pair of matrices, summed in two stages: rows, then their sums."""
    # a compiler would join the stages: as accurate only in exact arithmetic
    return row_sums(linalg.as_computed(row_products(a, b)))


@compiled
def row_products(a: Array, b: Array) -> Array:
    """Return Re <a, b> of each pair of rows."""
    return dtypes.real_part(linalg.vecdot(a, b))


@compiled
def row_sums(rows: Array) -> Array:
    """Return the sums of the last axis."""
    return libraries.namespace(rows).sum(rows, axis=-1)


def loss(m: int, n: int, prec: Precision) -> float:
    """Return the relative error of a sum over the entries of an m x n matrix."""
    return prec.gamma(2 * (m + n) + 8)


def enclosure(
    computed: HostFloats, m: int, n: int, prec: Precision
) -> tuple[HostFloats, HostFloats]:
    """Enclose ||A||_F^2 of m x n matrices by the computed sums of squares."""
    relative, lost = loss(m, n, prec), 2 * m * n * prec.tiny
    low = down(np.maximum(computed - lost, 0.0) / (1 + relative))
    return low, up((computed + lost) / (1 - relative) if relative < 1 else computed + math.inf)


def square(a: Array) -> tuple[HostFloats, HostFloats]:
    """Enclose the squared Frobenius norm of each matrix of a stack; the values come to the host."""
    m, n = a.shape[-2:]
    computed = crossing.to_host(inner_product(a, a))
    return enclosure(computed, m, n, precision_of(a.dtype))


def factors(m: int, n: int, prec: Precision) -> tuple[float, float, float]:
    """Return what takes an m x n sum of `one_square` below and above, and what underflow loses."""
    relative = prec.gamma(2 * m * n + 8) if m * n <= ONE_SUM else loss(m, n, prec)
    above = up(1 / (1 - relative)) if relative < 1 else math.inf
    return down(1 / (1 + relative)), above, 2 * m * n * prec.tiny


def one_square(a: Array, below: float, above: float, lost: float) -> tuple[float, float]:
    """Enclose ||A||_F^2 of one matrix with these `factors`, in scalars of the host."""
    small = a.shape[0] * a.shape[1] <= ONE_SUM
    computed = linalg.square_sum(a) if small else float(crossing.host_array(inner_product(a, a)))
    return max(computed - lost, 0.0) * below, (computed + lost) * above


def one_square_above(a: Array) -> float:
    """Return an upper bound on ||A||_F^2 of one matrix."""
    squares = [
        one_square(rows, *factors(rows.shape[0], rows.shape[1], precision_of(rows.dtype)))[1]
        for rows in linalg.in_double(a)
    ]
    return squares[0] if len(squares) == 1 else up(math.fsum(squares))


def host_norm(x: npt.NDArray[np.inexact]) -> tuple[float, float]:
    """Enclose the Euclidean norm of a host array whose largest entry is not far from 1."""
    relative = (2 * x.size + 8) * HOST_UNIT  # that of the sum of squares: twice what is needed
    norm = float(np.linalg.norm(x.reshape(-1).astype(np.complex128)))
    return down(norm * (1 - relative)), up(norm * (1 + relative))


def image_quotient(kernel: Array, x: Array, y: Array, *, copies: int) -> float:
    """Return a lower bound on ||T x|| / ||x|| for a correlation T and its computed image y.

    It is 0 where rounding leaves nothing.      An entry of T x is a product with inner length c_in
    times taps, and || |K| |patches| || <= ||K||_F ||patches||_F, where each tap reads a sample at
    most `copies` times.
    """
    prec, taps = precision_of(kernel.dtype), math.prod(kernel.shape[2:])
    inner = int(kernel.shape[1]) * taps
    (_, norm_k), (_, norm_x), (norm_y, _) = (
        host_norm(crossing.host_array(a)) for a in (kernel, x, y)
    )
    error = prec.kappa(inner) * norm_k * math.sqrt(taps * copies) * norm_x
    error += prec.underflow(inner) * math.sqrt(2.0 * math.prod(y.shape))
    quotient = down(max(norm_y - up(error), 0.0) / norm_x) if norm_x > 0 else 0.0
    return quotient if math.isfinite(quotient) else 0.0
