"""Bounds for operators that are known by their products with vectors only.

From below always; from above where the caller vouches that no entry of the matrix is negative
(docs/theory.md, Theorem 20).
"""

from __future__ import annotations

import math
import sys
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from gramnorm import _validate
from gramnorm._arrays.types import HostFloats, HostNumbers
from gramnorm._matrix import lanczos
from gramnorm._matrix.non_negative import NonNegative, leading
from gramnorm._results import Bounds, NormBracket, attainable, converged
from gramnorm._rigour import sums
from gramnorm._rigour.model import down

__all__ = ["operator_norm_bracket", "operator_norm_lower_bound"]


class Operator(Protocol):
    """What is needed of an operator.

    Its shape and its products, as in `scipy.sparse.linalg.LinearOperator`.
    """

    shape: tuple[int, int]

    def matvec(self, x: npt.NDArray[Any], /) -> npt.NDArray[Any]:
        """Return A x."""

    def rmatvec(self, x: npt.NDArray[Any], /) -> npt.NDArray[Any]:
        """Return A^H x."""


def operator_norm_lower_bound(
    A: Operator, /, *, rtol: float | None = None, maxiter: int = 300
) -> float:
    """Return a lower bound on the spectral norm of an operator given by products with vectors.

    Products with finitely many vectors cannot give an upper bound: an operator may act on a
    direction that none of the vectors has met. For an upper bound the entries are needed: see
    `matrix_norm_bracket`.

    Parameters
    ----------
    A : operator
        Anything with ``shape``, ``matvec`` and ``rmatvec`` (the adjoint) on NumPy vectors, such as
        `scipy.sparse.linalg.LinearOperator`.
    rtol : float, optional
        The iteration stops when the value has settled to about this relative change, by default
        1e-6. It says nothing about the distance to the norm.
    maxiter : int, optional
        Most pairs of products.

    Returns
    -------
    float
        ``||A x|| / ||x||`` for the vector x found: at most the norm, up to the rounding of A's own
        products.

    Raises
    ------
    TypeError
        If `A` lacks ``shape``, ``matvec`` or ``rmatvec``, or does not implement the latter.
    ValueError
        If `rtol` or `maxiter` is not positive, or a product is not finite.

    Notes
    -----
    **Guarantee.** Lower bound, by the definition of the norm, with the rounding of this function counted; what the
    operator's own products lose cannot be known here. Golub-Kahan bidiagonalisation, carried out as
    the Lanczos iteration on the normal operator with full reorthogonalisation, from a fixed start:
    same input, same value.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> class Difference:
    ...     shape = (3, 4)
    ...     def matvec(self, x):
    ...         return x[1:] - x[:-1]
    ...     def rmatvec(self, y):
    ...         return np.concatenate([-y[:1], y[:-1] - y[1:], y[-1:]])
    >>> bool(abs(gn.operator_norm_lower_bound(Difference()) - 2 * np.cos(np.pi / 8)) < 1e-12)
    True
    """
    _check(A)
    gap = _validate.tolerance(rtol, default=1e-6)
    steps = _validate.positive_int(maxiter, name="maxiter")
    if 0 in A.shape:
        return 0.0

    start = np.random.default_rng(0).standard_normal(A.shape[1])
    first = _finite(A.matvec(start))
    if not np.any(first):
        return 0.0
    size = _exponent(first)

    def normal(v: HostNumbers) -> HostNumbers:
        # scaled, so that squares neither over- nor underflow
        image = _times_power_of_two(_finite(A.matvec(v)), -size)
        return _times_power_of_two(_finite(_adjoint_product(A, image)), -size)

    # the image of the start also tells whether the operator is complex
    begin = normal(start)
    if not np.any(begin):  # the products underflow, or are no adjoints
        begin = start.astype(begin.dtype)
    begin = _times_power_of_two(begin, -_exponent(begin))
    x = lanczos.top_vector(normal, begin, rtol=gap / 4, steps=steps)
    y = _finite(A.matvec(x))
    last = _exponent(y)
    (_, most), (least, _) = sums.host_norm(x), sums.host_norm(_times_power_of_two(y, -last))
    value = min(_times_power_of_two(down(least / most), last), sys.float_info.max)
    return value if value >= 2.0**-1020 else math.nextafter(value, 0.0)


def operator_norm_bracket(
    A: Operator, /, *, nonnegative: bool = False, rtol: float | None = None
) -> NormBracket:
    """Return a bracket of the norm of an operator with non-negative entries, given by products.

    Parameters
    ----------
    A : operator
        Anything with ``shape``, ``matvec`` and ``rmatvec`` (the adjoint) on NumPy vectors, such as
        `scipy.sparse.linalg.LinearOperator` or an operator of PyLops.
    nonnegative : bool, optional
        Whether the caller vouches that the matrix of `A` is real and has no negative entry, as
        projectors of tomography, blurs, and averages have none. Without it the upper end is inf.
    rtol : float, optional
        Relative gap asked for, by default 1e-6.

    Returns
    -------
    NormBracket
        ``lower <= norm <= upper`` as NumPy scalars of double precision. `n_products` counts pairs
        of products.

    Raises
    ------
    TypeError
        If `A` lacks ``shape``, ``matvec`` or ``rmatvec``.
    ValueError
        If `rtol` is not positive, a product is not finite, the image of a vector without negative
        entries has a negative or complex one, or ``rmatvec`` is seen not to be the adjoint of
        ``matvec``.

    See Also
    --------
    operator_norm_lower_bound : The lower bound alone, for every operator.
    matrix_norm_bracket : Both bounds from the entries of a dense or sparse matrix.

    Notes
    -----
    **Guarantee.** If the matrix has no negative entry, ``norm^2 <= max_j (A^T A w)_j / w_j`` for every positive vector
    w (Collatz and Wielandt; theory page, Theorem 20), with the rounding of this function counted;
    what the operator's own products lose cannot be known here. That no entry is negative is the
    caller's statement: the images that are computed anyway are looked at, which finds out many
    operators but not all. Products with finitely many vectors prove nothing from above about other
    operators, hence inf.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> class Sums:
    ...     shape = (3, 3)
    ...     def matvec(self, x):
    ...         return np.cumsum(x)
    ...     def rmatvec(self, y):
    ...         return np.cumsum(y[::-1])[::-1]
    >>> bracket = gn.operator_norm_bracket(Sums(), nonnegative=True)
    >>> bool(bracket.lower <= 1 / (2 * np.sin(np.pi / 14)) <= bracket.upper), bool(bracket.converged)
    (True, True)
    """
    _check(A)
    gap = _validate.tolerance(rtol, default=1e-6)
    if nonnegative and 0 not in A.shape:
        lower, upper, pairs = _bracket_non_negative(A, attainable(gap))
    else:
        lower, pairs = operator_norm_lower_bound(A, rtol=rtol), 0
        upper = 0.0 if 0 in A.shape else math.inf
    low, high = np.asarray(lower), np.asarray(upper)
    return NormBracket(low, high, converged(Bounds(low, high), gap), n_products=pairs)


def _bracket_non_negative(A: Operator, rtol: float) -> tuple[float, float, int]:
    """Bracket the norm of an operator without negative entries; count the pairs of products."""
    w = np.ones(A.shape[1])
    first = _finite(A.matvec(w))
    if not np.any(first):
        return 0.0, 0.0, 1
    size = _exponent(first)
    rows, columns = A.shape

    def forward(x: HostFloats) -> HostFloats:
        return _times_power_of_two(_non_negative(A.matvec(x), x, "matvec"), -size)

    def backward(x: HostFloats) -> HostFloats:
        return _times_power_of_two(_non_negative(_adjoint_product(A, x), x, "rmatvec"), -size)

    # the terms of a sum are the operator's own affair
    m = NonNegative(forward, backward, 0, 0, columns, max(rows, columns))
    v, z = m.images(w)
    square = float(np.vdot(v, v))
    if not abs(float(np.vdot(w, z)) - square) <= 1e-2 * square:
        msg = "A.rmatvec must be the adjoint of A.matvec: <A x, A x> and <x, A^H A x> differ for a vector of ones"
        raise ValueError(msg)
    upper, w, pairs = leading(m, w, rtol=rtol)
    (_, most), (least, _) = sums.host_norm(w), sums.host_norm(forward(w))
    lower = min(down(least / most), upper)
    low, high = (_times_power_of_two(end, size) for end in (lower, upper))
    return max(math.nextafter(low, 0.0), 0.0), math.nextafter(high, math.inf), pairs + 2


def _non_negative(y: npt.NDArray[Any], x: HostFloats, name: str) -> HostFloats:
    """Return the image `y` of `x`, if it may be that under a matrix without negative entries."""
    y = _finite(y)
    if np.iscomplexobj(y) or (np.min(x) >= 0 and np.min(y) < 0):
        msg = (
            f"A.{name} of a vector without negative entries has a negative or complex one, so the matrix has such an "
            "entry; pass nonnegative=False"
        )
        raise ValueError(msg)
    return np.asarray(y, dtype=np.float64)


def _adjoint_product(A: Operator, y: HostNumbers) -> npt.NDArray[Any]:
    """Return A^H y, if the operator has that product and not its name only."""
    try:
        return A.rmatvec(y)
    except NotImplementedError:
        msg = (
            "A.rmatvec is not implemented: without the product with the conjugate transpose the "
            f"iteration cannot start; make the {type(A).__name__} with rmatvec="
        )
        raise TypeError(msg) from None


def _check(A: Operator) -> None:
    """Complain about an operator that lacks a part."""
    for need in ("shape", "matvec", "rmatvec"):
        if not hasattr(A, need):
            msg = (
                f"A must have shape, matvec and rmatvec, like scipy.sparse.linalg.LinearOperator; {type(A).__name__} "
                f"has no {need}"
            )
            raise TypeError(msg)


_Numbers = TypeVar("_Numbers", float, HostFloats, HostNumbers)


def _times_power_of_two(x: _Numbers, exponent: int) -> _Numbers:
    """Return x 2^exponent, exactly where that is normal, in two steps.

    A single factor may leave the range.

    Quotients would not do: by a subnormal number those of complex numbers overflow.
    """
    half = exponent // 2
    return x * math.ldexp(1.0, half) * math.ldexp(1.0, exponent - half)


def _exponent(v: HostNumbers) -> int:
    """Return e such that the largest component lies in [1/2, 1) times 2^e.

    0 for a vector of zeros.
    """
    return math.frexp(max(float(np.max(np.abs(part))) for part in (v.real, v.imag)))[1]


def _finite(v: npt.NDArray[Any]) -> HostNumbers:
    """Return a product in double precision, in which it is judged, if it is finite."""
    v = np.asarray(v).reshape(-1)
    if not np.all(np.isfinite(v)):
        msg = "A.matvec and A.rmatvec must return finite vectors, got NaN or inf"
        raise ValueError(msg)
    return v.astype(np.complex128 if np.iscomplexobj(v) else np.float64)
