"""Golub-Kahan / Lanczos: vectors whose Rayleigh quotient is nearly the largest eigenvalue.

Nothing here is certified: a vector is a vector, and what it proves is evaluated elsewhere
(`residual`).  Single precision is enough, because an error e in the vector costs e^2 in its
quotient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gramnorm._arrays import limits, linalg
from gramnorm._arrays.types import HostFloats, HostNumbers


def top_vector(
    apply: Callable[[HostNumbers], HostNumbers],
    start: HostNumbers,
    *,
    rtol: float,
    steps: int,
    times: int = 2,
) -> HostNumbers:
    """Return the Ritz vector of the largest Ritz value of a Hermitian H >= 0.

    Parameters
    ----------
    apply : callable
        The operator.
    start : vector
        Where the Krylov space begins; fixed by the caller, so that results repeat.
    rtol : float
        The iteration stops when the Ritz value has settled to about this relative change.
    steps : int
        Most applications of the operator.
    times : int
        How often in a row it must be seen to have settled.

    Returns
    -------
    vector
        A vector of norm about 1.
    """
    n = start.size
    steps = min(steps, n)
    basis = np.zeros((steps + 1, n), dtype=start.dtype)
    basis[0] = start / np.linalg.norm(start)
    diagonal, off = np.zeros(steps), np.zeros(steps)
    value, settled, count = 0.0, 0, 0
    noise = max(1e-7, 32 * float(np.spacing(start.real.dtype.type(1))))
    for k in range(steps):
        w = apply(basis[k])
        count = k + 1
        diagonal[k] = np.vdot(basis[k], w).real
        for _ in range(2):  # twice is enough: full orthogonality in working precision
            w = w - (basis[: k + 1].conj() @ w) @ basis[: k + 1]
        off[k] = np.linalg.norm(w)
        # what is left of an exhausted space is rounding, and no direction: not orthogonal either
        if not noise * np.max(diagonal[:count]) < off[k] < np.inf or count == steps:
            break
        basis[k + 1] = w / off[k]
        if count % limits.RITZ_PERIOD == 0:
            previous, value = value, _top_of_tridiagonal(diagonal[:count], off[: count - 1])[0]
            settled = settled + 1 if value - previous <= rtol * value else 0
            if settled == times:
                break
    return _top_of_tridiagonal(diagonal[:count], off[: count - 1])[1] @ basis[:count]


def top_eigenpair(h: HostNumbers) -> tuple[float, HostNumbers]:
    """Return almost the largest eigenvalue of a Hermitian matrix H >= 0, and a vector for it."""
    found = linalg.eigenvectors_or_none(h)
    if found is not None:
        return found[0][-1].item(), found[1][:, -1]
    vector = _column_of_a_power(h)
    return np.vdot(vector, h @ vector).real.item(), vector


def _column_of_a_power(h: HostNumbers) -> HostNumbers:
    """Return a unit vector whose quotient misses the largest eigenvalue by a fraction ln(n) / P.

    In the largest column of H^P an eigenvalue l counts as l^P: what is below the largest by more
    has died out.
    """
    largest = np.max(np.abs(h))
    for _ in range(limits.POWER_SQUARINGS):  # P = 2^40
        if largest == 0:
            return np.asarray(np.eye(1, len(h), dtype=h.dtype)[0])
        if not largest < np.inf:
            return np.full(len(h), np.nan, dtype=h.dtype)
        h = h / largest
        h = h @ h
        largest = np.max(np.abs(h))
    column = h[:, np.argmax(np.abs(np.diagonal(h)))] / largest
    return np.asarray(column / np.linalg.norm(column))


def _top_of_tridiagonal(diagonal: HostFloats, off: HostFloats) -> tuple[float, HostNumbers]:
    return top_eigenpair(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))


def long_ritz_vector(
    apply: Callable[[HostNumbers], HostNumbers],
    start: HostNumbers,
    *,
    rtol: float,
    steps: int,
    kept: int,
) -> HostNumbers:
    """Return a Ritz vector as `top_vector` does, for many steps with long vectors.

    Nothing is orthogonalised again: that costs copies of a Ritz value, and the largest is found in
    spite of them. Of the basis `kept` vectors are remembered; the others are computed once more, so
    that memory is bounded.

    Parameters
    ----------
    apply, start
        The operator and where to begin, as for `top_vector`.
    rtol : float
        Residual, relative to the Ritz value, at which the iteration stops.
    steps, kept : int
        Most steps, and most vectors to remember.

    Returns
    -------
    vector
        A vector of norm about 1.
    """
    basis = [start / np.linalg.norm(start)]
    diagonal: list[float] = []
    off: list[float] = []
    q, before, looked = basis[0], np.zeros_like(basis[0]), 8
    while True:
        w = apply(q)
        diagonal.append(float(np.vdot(q, w).real))
        w = w - diagonal[-1] * q - (off[-1] if off else 0.0) * before
        size, count = float(np.linalg.norm(w)), len(diagonal)
        is_last = count >= min(steps, start.size) or not size > 1e-14 * max(diagonal)
        if is_last or count == looked:
            looked = math.ceil(1.2 * count)
            value, vector = linalg.tridiagonal_top(np.asarray(diagonal), np.asarray(off))
            if is_last or size * abs(vector[-1]) <= rtol * value:
                break
        off.append(size)
        before, q = q, w / size
        if len(basis) < kept:
            basis.append(q)
    return _combined(apply, basis, vector, diagonal, off)


def _combined(
    apply: Callable[[HostNumbers], HostNumbers],
    basis: list[HostNumbers],
    weights: HostNumbers,
    diagonal: list[float],
    off: list[float],
) -> HostNumbers:
    """Return the sum of weights times the Lanczos basis, of which the first vectors are given."""
    total = sum((weight * q for weight, q in zip(weights, basis, strict=False)), np.zeros(()))
    before, q = basis[-2] if len(basis) > 1 else 0.0 * basis[0], basis[-1]
    for k in range(len(basis), len(weights)):
        w = apply(q) - diagonal[k - 1] * q - (off[k - 2] if k > 1 else 0.0) * before
        before, q = q, w / off[k - 1]
        total = total + weights[k] * q
    return np.asarray(total / np.linalg.norm(total))
