"""What rounding may hide from a factorisation that is checked by what it leaves.

Let A be Hermitian and R *any* matrix, whose columns come in blocks.  The products of blocks, of an
inner length of at most h, are subtracted from A one after the other, N of them from any entry.  Of
D = A - R R^H that leaves the computed D', with (docs/theory.md, Theorem 6)

    |D| <= (1 + gamma_N) |D'| + (kappa(h) (1 + gamma_N) + gamma_N) |R||R|^H.

Since A + ||D|| I >= R R^H >= 0, this is all that a library's factorisation is trusted with.
"""

from __future__ import annotations

from typing import TypeVar

from gramnorm._arrays.types import HostFloats
from gramnorm._rigour.model import Precision, up

Floats = TypeVar("Floats", float, HostFloats)


def shortfall(
    measured: Floats, size: Floats, *, products: int, inner: int, order: int, precision: Precision
) -> Floats:
    """Return a bound on ||D||, hence a number d with A + d I >= 0.

    Parameters
    ----------
    measured, size : float or host array
        Upper bounds on ||D'||_F and on the norm of |R||R|^H.
    products, inner : int
        N and h.
    order : int
        Of A.
    precision : Precision
        That of the products and of the differences.
    """
    chain, lost = precision.gamma(products), 2 * products * precision.underflow(inner) * order
    return up(measured * (1 + chain) + (precision.kappa(inner) * (1 + chain) + chain) * size + lost)
