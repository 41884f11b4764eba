"""A Cholesky factorisation, checked by a product, as proof that no eigenvalue exceeds a number.

If R is *any* matrix and  D = nu I - S - R R^H  then  nu I - S + ||D|| I >= R R^H >= 0, so
lambda_1(S) <= nu + ||D||  (docs/theory.md, Theorem 7).  The factorisation only suggests R: neither
its algorithm nor its status is trusted, and all rounding is in the computed norm of D.
"""

from __future__ import annotations

import math

from gramnorm import _xp
from gramnorm._moments import inner_product
from gramnorm._rounding import precision_of
from gramnorm._typing import Array, Namespace

BLOCKS = 8
"""Column blocks of the check; more save operations (towards a third of a full product), fewer save calls."""


def eigenvalue_bound(gram: Array, level: float, *, xp: Namespace) -> float:
    """Return an upper bound on the eigenvalues of the Hermitian part of `gram`, near `level`; inf if none.

    Only the lower triangle is used: the bound is for the Hermitian matrix that it defines.
    """
    q = gram.shape[0]
    eye = xp.eye(q, dtype=gram.dtype, device=_xp.device_of(gram))
    shifted = level * eye - gram
    factor = _xp.cholesky_or_none(shifted, xp=xp)
    if factor is None:
        return math.inf
    prec = precision_of(gram.dtype, xp=xp)
    defect, size = _defect(shifted, factor, xp=xp)
    # the product errs by kappa |R||R^H| (norm at most kappa ||R||_F^2); forming nu I - S and the
    # difference by an ulp of each term, of which only the diagonal of the first was rounded
    loss = 1 + 4 * prec.gamma(2 * q * BLOCKS + 16)
    rounding = (
        prec.kappa(q) * size
        + 2 * prec.unit * (size + level * math.sqrt(q))
        + 2 * prec.underflow(q) * q
    )
    bound = level + loss * (defect + rounding)
    return bound * (1 + 2.0**-50) if math.isfinite(bound) else math.inf


def _defect(shifted: Array, factor: Array, *, xp: Namespace) -> tuple[float, float]:
    """Return ||shifted - R R^H||_F, from the blocks on and below the diagonal, and ||R||_F^2."""
    q = shifted.shape[0]
    step = max(-(-q // BLOCKS), 32)
    terms, sizes = [], []
    for start in range(0, q, step):
        stop = min(start + step, q)
        panel = factor[start:, :stop]
        product = _xp.matmul(panel, _xp.adjoint(factor[start:stop, :stop], xp=xp), xp=xp)
        difference = shifted[start:, start:stop] - product
        # entries below the diagonal block stand for two; those inside it count once or twice
        terms.append(2.0 * inner_product(difference, difference, xp=xp))
        sizes.append(inner_product(panel[: stop - start, :], panel[: stop - start, :], xp=xp))
    total, size = _xp.to_host(xp.stack([xp.sum(xp.stack(terms)), xp.sum(xp.stack(sizes))]))
    return math.sqrt(total.item()), size.item()
