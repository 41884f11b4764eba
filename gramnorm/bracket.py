"""NormBracket: what a two-sided computation returns."""

from __future__ import annotations

import dataclasses

from gramnorm._typing import Array

__all__ = ["NormBracket"]


@dataclasses.dataclass(frozen=True, eq=False)
class NormBracket:
    """Certified lower and upper bounds on spectral norms.

    Attributes
    ----------
    lower, upper : array
        ``lower <= norm <= upper`` for the arrays as stored, rounding included. Batch shape, in the
        caller's namespace, device and real dtype.
    converged : array of bool
        Whether ``upper - lower <= rtol * lower`` was reached (true for a zero norm). Where it is
        false the bracket is as valid, only wider than asked for. NaN and inf elements are never
        converged.
    n_products : int
        The cost in the method's own unit: matrix products of the longest Gram iteration for a
        stack of matrices, blocks of the symbol evaluated for a convolution.
    frequency : array or None
        Convolutions: the angle, in radians per spatial axis, in (-pi, pi], at which `lower` is attained, up to its
        own rounding to the real dtype (float32 for shorter ones); None where `lower` does not come from a single
        frequency.
    left, right : array or None
        Unit vectors attaining `lower`, if they were asked for.
    """

    lower: Array
    upper: Array
    converged: Array
    n_products: int
    frequency: Array | None = None
    left: Array | None = None
    right: Array | None = None
