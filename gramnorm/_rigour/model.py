"""The rounding model: what one operation may lose, and how results are rounded outward.

The only assumptions about a backend (u is half the spacing of 1, K the inner length):

* a product satisfies ``|fl(X Y) - X Y| <= kappa(K) |X| |Y| + 3 K tiny`` entrywise for any order
  of summation, fused or not, with or without flush to zero;
* ``+ - * /`` have relative error at most u, square roots at most 3 u;
* multiplication by a power of two is exact unless the result is subnormal;
* sums of n numbers err by gamma_(n-1) times the sum of moduli, moduli of complex numbers by 4 u,
  conversions to a shorter type by u of it; sines and cosines are right to four units in the last
  place, which `angles` tries.

Scalars (one per matrix) are computed on the host in float64 and nudged outward by `up` and
`down`; no other nudge is spelled anywhere.  Reference: docs/theory.md, section 1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from gramnorm._arrays import dtypes, libraries, probes
from gramnorm._arrays.types import Array, DType, HostFloats

HOST_UNIT = 2.0**-53
"""u of the host's float64."""

_TWO_UNITS = 2 * HOST_UNIT

_Scalar = TypeVar("_Scalar", float, HostFloats)


@dataclasses.dataclass(frozen=True)
class Precision:
    """The error constants of products in one floating type.

    Parameters
    ----------
    unit : float
        u, the relative error of one operation: 2^-53 or 2^-24.
    tiny : float
        The smallest normal number, which bounds what one underflow loses.
    complex : bool
        Whether the products are complex.
    """

    unit: float
    tiny: float
    complex: bool

    def gamma(self, n: int) -> float:
        """Return gamma_n = n u / (1 - n u), the relative error of a sum of n terms."""
        return n * self.unit / (1 - n * self.unit) if n * self.unit < 0.5 else np.inf

    def kappa(self, n: int) -> float:
        """Return the constant of a product with inner length `n` (theory, section 1)."""
        if not self.complex:
            return self.gamma(n)
        # Real and imaginary part are real sums of length 2n; the factor also covers the
        # three-multiplication schemes: 3.2 (n + 4) u / (1 - 2 (n + 4) u).
        return 1.6 * self.gamma(2 * (n + 4))

    def underflow(self, n: int) -> float:
        """Return what underflow can lose in an entry of a product with inner length `n`."""
        return 3 * n * self.tiny


@functools.lru_cache(maxsize=None, typed=True)
def precision_of(dtype: DType) -> Precision:
    """Return the error constants of float32, float64, complex64 or complex128."""
    info = dtypes.finfo(dtype)
    return Precision(info.eps / 2, info.smallest_normal, complex=dtypes.is_complex(dtype))


def gram_units(shape: tuple[int, int], *, complex: bool) -> float:
    """Return the worst relative gap, in units of u, that rounding leaves for p x q matrices.

    The first Gram product enters the norm with half its relative error, q (p + q) u for a flat
    spectrum (docs/theory.md, Theorem 4).
    """
    p, q = max(shape), min(shape)
    return (4.0 if complex else 1.2) * q * (p + q)


def working_dtype(x: Array, units: float, rtol: float) -> DType:
    """Return the real type to compute in, when rounding leaves a gap of `units` times u.

    float32 serves where that gap is well below `rtol`; everything else is computed in float64 where
    the device has it.
    """
    xp = libraries.namespace(x)
    narrow = dtypes.is_floating(x.dtype) and dtypes.bits(x.dtype) <= 32
    wide = dtypes.has_float64(x)
    serves = narrow and units * 2.0**-24 <= rtol / 4
    if (serves or not wide) and probes.float32_products_are_exact(x):
        return xp.float32
    if wide:
        return xp.float64
    msg = (
        "this device has no float64 and multiplies float32 arrays in reduced precision (TF32 or "
        "bfloat16), so no bound can be certified; switch full float32 products on, e.g. "
        "torch.set_float32_matmul_precision('highest')"
    )
    raise RuntimeError(msg)


def up(x: _Scalar, roundings: int = 8) -> _Scalar:
    """Nudge non-negative host numbers above what 2 or more float64 roundings may have lost.

    k roundings lose a factor (1 - u)^k at most, the product here another (1 - u): less than 1 + 2 k
    u restores.
    """
    return x * (1 + roundings * _TWO_UNITS)


def down(x: _Scalar, roundings: int = 8) -> _Scalar:
    """Nudge non-negative host numbers below what 2 or more float64 roundings may have added."""
    return x * (1 - roundings * _TWO_UNITS)


def compounded(losses: Iterable[float]) -> float:
    """Return what relative losses make of each other, prod(1 + l) - 1, rounded up.

    Sums and products of non-negative numbers alone: no logarithm has to be trusted.
    """
    total, roundings = 0.0, 2
    for loss in losses:
        total, roundings = total + loss * (1 + total), roundings + 3
    return up(total, roundings)


def round_outward(
    lower: HostFloats, upper: HostFloats, *, dtype: DType
) -> tuple[HostFloats, HostFloats]:
    """Round brackets to numbers that the real type `dtype` represents, never inward."""
    if dtypes.bits(dtype) == 64:
        return lower, upper
    info = dtypes.finfo(dtype)
    if lower.shape == (1,):
        low, high = lower.item(), upper.item()
        if info.smallest_normal < low <= high < info.max and dtypes.bits(dtype) == 32:
            return np.asarray([_single(low, -np.inf)]), np.asarray([_single(high, np.inf)])
    digits = 2 - int(np.frexp(info.eps)[1])
    floor_exponent = int(np.frexp(info.smallest_normal)[1]) - digits  # of the smallest subnormal
    with np.errstate(over="ignore", invalid="ignore"):
        result = []
        for value, direction, beyond in ((lower, np.floor, info.max), (upper, np.ceil, np.inf)):
            quantum = np.maximum(np.frexp(value)[1] - digits, floor_exponent)
            # scaled in two steps: a single power of two may leave the range of float64
            half = quantum // 2
            steps = direction(np.ldexp(np.ldexp(value, -half), half - quantum))
            rounded = np.ldexp(np.ldexp(steps, quantum - half), half)
            finite = np.where(rounded > info.max, beyond, rounded)
            result.append(np.where(np.isfinite(value), finite, value))
    return result[0], result[1]


def _single(value: float, side: float) -> float:
    """Return the float32 number next to a normal one on the side of -inf or inf."""
    nearest = np.float32(value)
    found = float(nearest)
    missed = found < value if side > 0 else found > value
    return float(np.nextafter(nearest, np.float32(side))) if missed else found


def scale_back(
    lower: HostFloats, upper: HostFloats, exponents: HostFloats
) -> tuple[HostFloats, HostFloats]:
    """Multiply brackets by 2^exponents, outward where the result is subnormal or overflows."""
    e = exponents.astype(np.int64)
    with np.errstate(over="ignore", under="ignore"):
        high = np.ldexp(upper, e)
        low = np.ldexp(lower, e)
        high = np.where(high < 2.0**-1020, np.nextafter(high, np.inf), high)
        low = np.where(low < 2.0**-1020, np.maximum(np.nextafter(low, -np.inf), 0.0), low)
    return np.minimum(low, np.finfo(np.float64).max), high
