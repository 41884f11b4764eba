"""Matrices of moduli: an upper bound from one pair of products with a positive vector.

For M >= 0 and any w > 0, with v = M w and z = M^T v  (Collatz, Wielandt; docs/theory.md, Theorem 24)

    ||M||^2 <= max_j z_j / w_j ,

with equality where w is the leading right singular vector.  Sums of non-negative numbers do not
cancel: a computed entry of v or z misses the true one by a few units for each entry of a row or
column, whatever the order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gramnorm._arrays import dtypes, limits, linalg
from gramnorm._arrays.types import HostFloats, HostNumbers
from gramnorm._matrix import lanczos
from gramnorm._results import Bounds
from gramnorm._rigour import sums
from gramnorm._rigour.model import HOST_UNIT, down, precision_of, up

Product = Callable[[HostFloats], HostFloats]

LEAST = 2.0**-500
"""Of the entries of w beside the largest: what underflow adds to a product stays far below any of
them."""

_TINY = 2.0**-1022


@dataclasses.dataclass(frozen=True)
class NonNegative:
    """A matrix without negative entries, by its products with host vectors.

    Attributes
    ----------
    forward, backward : callable
        The products with M and with M^T.
    in_row, in_column : int
        Most entries of a row and of a column: the terms of a sum.
    side, entries : int
        The number of columns, and what a product costs.
    """

    forward: Product
    backward: Product
    in_row: int
    in_column: int
    side: int
    entries: int

    def images(self, w: HostFloats) -> tuple[HostFloats, HostFloats]:
        """Return M w and M^T M w, as computed, with what may have underflowed added."""
        v = self.forward(w) + 3 * self.in_row * _TINY
        return v, self.backward(v) + 3 * self.in_column * _TINY

    def above(self, quotients: HostFloats) -> HostFloats:
        """Return upper bounds on the norms of parts from their largest computed quotients z / w."""
        # a term of v meets a product, in_row - 1 sums and one more for underflow, and 5 u are for a
        # modulus that a library has rounded; a term of z the same, and the quotient is rounded as
        # well
        terms = (self.in_row + 6) + (self.in_column + 7)
        gamma = terms * HOST_UNIT / (1 - terms * HOST_UNIT) if terms * HOST_UNIT < 0.5 else np.inf
        found = up(np.sqrt(up(quotients * (1 + gamma))))
        return np.asarray(np.where(np.isfinite(found), found, np.inf))

    def upper(self, w: HostFloats, z: HostFloats) -> float:
        """Return an upper bound on ||M|| by the second image `z` of `w`."""
        return float(self.above(np.asarray(np.max(z / w, initial=0.0))))


def moduli(b: Any) -> NonNegative:
    """Return the moduli of a host matrix, dense or in compressed rows without repeated places."""
    if isinstance(b, np.ndarray):
        n = b.shape[1]
        if linalg.is_taken_in_blocks(b):
            return NonNegative(
                partial(_forward, b), partial(_backward, b), n, b.shape[0], n, b.size
            )
        m = b if np.min(b) >= 0 else np.abs(b)
        return NonNegative(lambda w: m @ w, lambda v: m.T @ v, n, m.shape[0], n, m.size)
    m = type(b)((np.abs(b.data), b.indices, b.indptr), shape=b.shape)  # which shares the places
    in_row = int(np.max(np.diff(m.indptr), initial=0))
    batches = range(0, m.nnz, limits.BATCH)  # of indices that are widened on the way
    counts = np.zeros(m.shape[1], dtype=np.int64)
    for k in batches:
        counts += np.bincount(m.indices[k : k + limits.BATCH], minlength=m.shape[1])
    in_column = int(np.max(counts, initial=0))
    t = m.T
    return NonNegative(lambda w: m @ w, lambda v: t @ v, in_row, in_column, m.shape[1], m.nnz)


def _forward(b: HostFloats, w: HostFloats) -> HostFloats:
    return np.concatenate([np.abs(rows) @ w for rows in linalg.in_double(b)])


def _backward(b: HostFloats, v: HostFloats) -> HostFloats:
    total, start = np.zeros(b.shape[1]), 0
    for rows in linalg.in_double(b):
        total = total + np.abs(rows).T @ v[start : start + len(rows)]
        start += len(rows)
    return total


def attained(b: Any, x: HostNumbers, upper: float, *, in_row: int) -> float:
    """Return a lower bound on ||A x|| / ||x|| for at most `in_row` entries in a row of A.

    `upper` bounds the norm of the moduli of A.
    """
    largest = float(np.max(np.abs(x), initial=0.0))
    if not 0.0 < largest < math.inf:
        return 0.0
    x = x / largest
    prec = precision_of(np.result_type(b.dtype, x.dtype))
    image = np.concatenate([rows @ x for rows in linalg.in_double(b)])
    (_, most), (least, _) = sums.host_norm(x), sums.host_norm(image)
    # |fl(A x) - A x| <= kappa |A| |x| entrywise, and || |A| |x| || <= || |A| || ||x||
    error = up(prec.kappa(in_row) * upper * most)
    error += up(prec.underflow(in_row) * math.sqrt(2.0 * b.shape[0]))
    found = down(max(least - error, 0.0) / most)
    return found if math.isfinite(found) else 0.0


def dense_bracket(b: HostFloats, *, rtol: float) -> Bounds[float] | None:
    """Bracket a dense host matrix whose signs are those of its first row up to those of rows.

    None if it is no use.

    A few rows are looked at before the others, and a few power steps tell whether more would do.
    """
    signs = np.where(b[0] < 0, -1.0, 1.0)
    if not all(abs(float(np.sum(np.sign(row) * signs))) == np.count_nonzero(row) for row in b[1:5]):
        return None
    b = b if linalg.is_taken_in_blocks(b) else dtypes.in_double(b)
    m = moduli(b)
    w, excesses = np.ones(m.side), [math.inf]
    for step in range(1, limits.DENSE_STEPS + 1):
        v, z = m.images(w)
        upper = m.upper(w, z)
        excesses.append(upper * float(np.linalg.norm(w) / np.linalg.norm(v)) - 1)
        if excesses[-1] <= 0.9 * rtol:
            return Bounds(attained(b, signs * w, upper, in_row=m.side), upper, step)
        gain = excesses[-1] / excesses[-2]
        if step > 2 and excesses[-1] * gain ** (limits.DENSE_STEPS - step) > rtol:
            break
        w = positive(z)
    return None


def positive(w: HostNumbers) -> HostFloats:
    """Return moduli of `w`, the largest one about 1 and none next to nothing.

    Ones where that fails.
    """
    w = np.abs(w).astype(np.float64)
    largest = float(np.max(w, initial=0.0))
    if not 0.0 < largest < math.inf:
        return np.ones_like(w)
    return np.asarray(np.maximum(w / largest, LEAST))


def leading(m: NonNegative, w: HostFloats, *, rtol: float) -> tuple[float, HostFloats, int]:
    """Return an upper bound on ||M||, the vector w > 0 that gave it, and the cost in pairs.

    Starts at `w` > 0 and stops where the bound is within about `rtol` of the norm.
    """
    best, cost = Proof(math.inf, math.inf, w), 0
    for tolerance in (0.1 * rtol, 1e-4 * rtol, 1e-7 * rtol):
        found = lanczos.long_ritz_vector(
            lambda q: m.backward(m.forward(np.asarray(q, dtype=np.float64))),
            best.vector,
            rtol=max(tolerance, 1e-15),
            steps=lanczos_steps(m.entries),
            kept=limits.BASIS // (8 * len(w)),
        )
        # what Lanczos leaves of the least entries is noise; the quotient of a sum lies between
        # those of its terms
        one, steps = _smoothed(m, positive(found) + 1e-12 * best.vector, rtol=rtol)
        best, cost = min(best, one, key=lambda proof: proof.upper), cost + steps
        if best.excess <= rtol:
            break
    return best.upper, best.vector, cost


@dataclasses.dataclass(frozen=True)
class Proof:
    """An upper bound, how far it is above the norm at most (about), and the vector that gave it."""

    upper: float
    excess: float
    vector: HostFloats


def _smoothed(m: NonNegative, w: HostFloats, *, rtol: float) -> tuple[Proof, int]:
    """Mend the small entries of `w` by power steps, as long as that helps."""
    best, history = Proof(math.inf, math.inf, w), []
    for step in range(limits.SMOOTHING):
        v, z = m.images(w)
        upper = m.upper(w, z)
        excess = upper * float(np.linalg.norm(w) / np.linalg.norm(v)) - 1
        if upper < best.upper:
            best = Proof(upper, excess, w)
        history.append(best.excess)
        if excess <= rtol or (step >= 8 and history[-1] > 0.7 * history[-9]):
            break
        w = positive(z)
    return best, len(history)


def lanczos_steps(entries: int) -> int:
    """Return the most Lanczos steps with products that touch so many entries, four times each."""
    return max(
        20, min(limits.LONG_LANCZOS_STEPS, limits.LONG_LANCZOS_WORK // (4 * max(entries, 1)))
    )
