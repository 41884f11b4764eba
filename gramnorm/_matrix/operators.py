"""Lower bounds for operators that are known by their products with vectors only."""

from __future__ import annotations

import math
import sys
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from gramnorm import _validate
from gramnorm._arrays.types import HostNumbers
from gramnorm._matrix import lanczos
from gramnorm._rigour import sums
from gramnorm._rigour.model import down

__all__ = ["operator_norm_lower_bound"]


class Operator(Protocol):
    """What is needed of an operator: its shape and its products, as in `scipy.sparse.linalg.LinearOperator`."""

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
    for need in ("shape", "matvec", "rmatvec"):
        if not hasattr(A, need):
            msg = (
                f"A must have shape, matvec and rmatvec, like scipy.sparse.linalg.LinearOperator; {type(A).__name__} "
                f"has no {need}"
            )
            raise TypeError(msg)
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


_Numbers = TypeVar("_Numbers", float, HostNumbers)


def _times_power_of_two(x: _Numbers, exponent: int) -> _Numbers:
    """Return x 2^exponent, exactly where that is normal, in two steps: a single factor may leave the range.

    Quotients would not do: by a subnormal number those of complex numbers overflow.
    """
    half = exponent // 2
    return x * math.ldexp(1.0, half) * math.ldexp(1.0, exponent - half)


def _exponent(v: HostNumbers) -> int:
    """Return e such that the largest component lies in [1/2, 1) times 2^e; 0 for a vector of zeros."""
    return math.frexp(max(float(np.max(np.abs(part))) for part in (v.real, v.imag)))[1]


def _finite(v: npt.NDArray[Any]) -> HostNumbers:
    """Return a product in double precision, in which it is judged, if it is finite."""
    v = np.asarray(v).reshape(-1)
    if not np.all(np.isfinite(v)):
        msg = "A.matvec and A.rmatvec must return finite vectors, got NaN or inf"
        raise ValueError(msg)
    return v.astype(np.complex128 if np.iscomplexobj(v) else np.float64)
