"""A Cholesky factorisation that checks itself, as proof that no eigenvalue exceeds a number.

If R is *any* matrix and  D = nu I - S - R R^H  then  nu I - S + ||D|| I >= R R^H >= 0, so
lambda_1(S) <= nu + ||D||  (docs/theory.md, Theorem 6).  The factorisation goes by block columns:

    C_k = (nu I - S)_k - sum_{j < k} R_j R_kj^H,    R_k = C_k R_kk^{-H},    D_k = C_k - R_k R_kk^H.

The library's factorisation and inverse of the small diagonal blocks only suggest R; what is left of
the large matrix after the products is measured, and the products obey the rounding model.
"""

from __future__ import annotations

import math

import numpy as np

from gramnorm._arrays import crossing, libraries, limits, linalg
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._matrix.margin import shortfall
from gramnorm._rigour import sums
from gramnorm._rigour.model import precision_of, up
from gramnorm._rigour.sums import inner_product


def eigenvalue_bound(gram: Array, level: float) -> float:
    """Return an upper bound on the eigenvalues of a Hermitian matrix: about `level`, or inf.

    Only the blocks of `gram` on and below the diagonal are read; they define the Hermitian matrix.
    """
    q = gram.shape[0]
    prec = precision_of(gram.dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # a useless R ends as inf or NaN, hence inf
        measured = _factorise(gram, level)
    if measured is None:
        return math.inf
    width = min(q, limits.CHOLESKY_BLOCK)
    count = -(-q // limits.CHOLESKY_BLOCK) + 2  # the first difference is that of nu I - S
    defect, size = (sums.enclosure(s, q, q + count, prec)[1].item() for s in measured)
    # an entry below the diagonal blocks stands for two; so does one inside, which it need not
    rest = up(math.sqrt(2 * defect))
    lost = shortfall(rest, size, products=count, inner=width, order=q, precision=prec)
    # nu itself may be rounded in float32
    bound = up(level + lost + prec.unit * abs(level), 4)
    return bound if math.isfinite(bound) else math.inf


def _factorise(gram: Array, level: float) -> HostFloats | None:
    """Return the computed squared norms of D and R over the blocks; None without an R."""
    xp = libraries.namespace(gram)
    q, block = gram.shape[0], limits.CHOLESKY_BLOCK
    panels: list[Array] = []
    terms = []
    for start in range(0, q, block):
        stop = min(start + block, q)
        column = _shifted(gram[start:, start:stop], level)
        for j, panel in enumerate(panels):
            rows = start - j * block
            pivot = panel[rows : rows + stop - start, :]
            column = column - linalg.matmul(panel[rows:, :], linalg.adjoint(pivot))
        panel = linalg.cholesky_or_none(column[: stop - start, :])
        if panel is None:
            return None
        upper = linalg.adjoint(panel)
        if stop < q:
            inverse = linalg.inverse_or_none(upper)
            if inverse is None:
                return None
            below = linalg.matmul(column[stop - start :, :], inverse)
            panel = xp.concat([panel, below], axis=0)
        panels.append(panel)
        rest = column - linalg.matmul(panel, upper)
        terms.append(xp.stack([inner_product(a, a) for a in (rest, panel)]))
    return crossing.to_host(xp.sum(xp.stack(terms), axis=0))


def _shifted(column: Array, level: float) -> Array:
    """Return the block column of nu I - S whose diagonal block is on top."""
    xp = libraries.namespace(column)
    eye = xp.eye(
        column.shape[0], column.shape[1], dtype=column.dtype, device=libraries.device_of(column)
    )
    return level * eye - column
