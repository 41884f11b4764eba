"""Golub-Kahan / Lanczos: vectors whose Rayleigh quotient is nearly the largest eigenvalue.

Nothing here is certified: a vector is a vector, and what it proves is evaluated elsewhere
(`_residual`).  Single precision is enough, because an error e in the vector costs e^2 in its quotient.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gramnorm import _xp

Vector = npt.NDArray[np.inexact]


def top_vector(
    apply: Callable[[Vector], Vector], start: Vector, *, rtol: float, steps: int
) -> Vector:
    """Return the Ritz vector of the largest Ritz value of a Hermitian positive semidefinite operator.

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
    for k in range(steps):
        w = apply(basis[k])
        count = k + 1
        diagonal[k] = np.vdot(basis[k], w).real
        for _ in range(2):  # twice is enough: full orthogonality in working precision
            w = w - (basis[: k + 1].conj() @ w) @ basis[: k + 1]
        off[k] = np.linalg.norm(w)
        if not 1e-7 * abs(diagonal[0]) < off[k] < np.inf or count == steps:
            break
        basis[k + 1] = w / off[k]
        if k % 4 == 3:  # the small eigenproblem costs as much as a step
            previous, value = value, _ritz(diagonal[:count], off[: count - 1])[0]
            settled = settled + 1 if value - previous <= rtol * value else 0
            if settled == 2:
                break
    return _ritz(diagonal[:count], off[: count - 1])[1] @ basis[:count]


def _ritz(
    diagonal: npt.NDArray[np.float64], off: npt.NDArray[np.float64]
) -> tuple[float, npt.NDArray[np.float64]]:
    found = _xp.eigenvectors_or_none(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    if found is None:  # the best vector of the basis is a vector as well
        best = int(np.argmax(diagonal))
        return diagonal[best].item(), np.eye(1, len(diagonal), best)[0]
    values, vectors = found
    return values[-1].item(), np.asarray(vectors[:, -1], dtype=np.float64)
