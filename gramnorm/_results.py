"""What a two-sided computation returns: Bounds to the package itself, NormBracket to its caller.

The text of a NormBracket claims no more than its numbers: lower bounds are rounded down to the
digits shown, upper ones up, so that ``lower <= norm <= upper`` still holds as read.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np

from gramnorm._arrays import autodiff, crossing, dtypes, libraries, probes
from gramnorm._arrays.types import (
    Array,
    DType,
    HostBools,
    HostFloats,
    HostInts,
    HostNumbers,
)
from gramnorm._rigour.decimals import DIGITS, decimal_text, relative_gap_above

__all__ = ["NormBracket"]

Floats = TypeVar("Floats", float, HostFloats)


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds(Generic[Floats]):
    """``lower <= norm <= upper`` of one norm (floats) or a stack (host arrays), and the cost.

    Every search of the package returns one, with the cost in products or blocks of a symbol; that
    of one matrix with the vector x that `lower` is ``||A x|| / ||x||`` of, if it is at hand.
    """

    lower: Floats
    upper: Floats
    cost: int = 0
    right: HostNumbers | None = dataclasses.field(default=None, compare=False)

    def is_within(self, rtol: float) -> bool | HostBools:
        """Say whether the relative gap is at most `rtol`; of each norm of a stack."""
        return self.upper - self.lower <= rtol * self.lower

    def narrowed(self, other: Bounds[Floats]) -> Bounds[Floats]:
        """Return what is better of two bounds on the same norm, at the cost of both."""
        is_one = isinstance(self.lower, float)
        most, least = (max, min) if is_one else (np.maximum, np.minimum)
        cost, right = self.cost + other.cost, None
        if is_one:
            right = self.right if self.lower >= other.lower else other.right
        return Bounds(most(self.lower, other.lower), least(self.upper, other.upper), cost, right)

    def narrowed_at(self, chosen: HostInts, other: Bounds[HostFloats]) -> Bounds[HostFloats]:
        """Return these bounds of a stack with those of the chosen norms `narrowed`."""
        lower, upper = np.array(self.lower), np.array(self.upper)
        lower[chosen] = np.maximum(lower[chosen], other.lower)
        upper[chosen] = np.minimum(upper[chosen], other.upper)
        return Bounds(lower, upper, self.cost + other.cost)

    def widened(self, loss: float) -> Bounds[float]:
        """Return bounds on one norm that these bound up to `loss`."""
        lower, upper = max(float(self.lower) - loss, 0.0), float(self.upper) + loss
        return Bounds(lower, upper, self.cost, self.right)

    def item(self) -> Bounds[float]:
        """Return the bounds on the one norm of a stack of one."""
        return Bounds(np.asarray(self.lower).item(), np.asarray(self.upper).item(), self.cost)


def of_direct_sum(parts: Iterable[Bounds[float]]) -> Bounds[float]:
    """Return bounds on the norm of a direct sum: the largest of its parts, at the cost of all."""
    found = list(parts)
    return Bounds(
        max((one.lower for one in found), default=0.0),
        max((one.upper for one in found), default=0.0),
        sum(one.cost for one in found),
    )


def of_stack(parts: Iterable[Bounds[float] | Bounds[HostFloats]]) -> Bounds[HostFloats]:
    """Return the bounds of a stack from those of its parts, at the cost of the dearest."""
    found = list(parts)
    return Bounds(
        np.hstack([np.zeros(0), *(one.lower for one in found)]),
        np.hstack([np.zeros(0), *(one.upper for one in found)]),
        max((one.cost for one in found), default=0),
    )


def attainable(rtol: float) -> float:
    """Return the relative gap to work for: at most 1, and no less than float64 can hope for."""
    return min(max(rtol, 2.0**-44), 1.0)


def converged(found: Bounds[HostFloats], rtol: float) -> HostBools:
    """Say where bounds are as narrow as asked for, or an infinite norm known.

    Not where they are NaN.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray((found.upper == found.lower) | found.is_within(rtol))


def result_dtype(a: Array) -> DType:
    """Return the real type of a number about `a`: float64, or float32 for all that is shorter.

    Rounded outward to the 8 or 11 bits of a shorter type, no bracket would be narrow.
    """
    xp = libraries.namespace(a)
    dtype = a.dtype if dtypes.is_floating(a.dtype) else dtypes.default_real_dtype(a)
    return xp.float64 if dtypes.bits(dtype) == 64 else xp.float32


@dataclasses.dataclass(frozen=True, eq=False)
class NormBracket:
    """Certified lower and upper bounds on spectral norms.

    Attributes
    ----------
    lower, upper : array
        ``lower <= norm <= upper`` for the arrays as stored, rounding included. Batch shape, in the
        caller's namespace, device and real dtype; of arrays shorter than float32 in float32.
    converged : array of bool
        Whether ``upper - lower <= rtol * lower`` was reached. True also for the norms that are
        known exactly: 0 of a zero matrix, and inf of one that holds inf (both ends are inf). False
        for NaN. Where it is false otherwise the bracket is as valid, only wider than asked for.
    n_products : int
        The cost in the method's own unit: matrix products of the longest Gram iteration for a
        stack of matrices, blocks of the symbol evaluated for a convolution, and products with the
        operator or of its Gram matrix at a finite size. Of an array of Dask it is promised as well.
    frequency : array or None
        Convolutions: the angle, in radians per spatial axis, in (-pi, pi], at which `lower` is
        attained, up to its own rounding to the dtype of the bounds; None where `lower` does not
        come from a single frequency.
    left, right : array or None
        Unit vectors attaining `lower`, if they were asked for; `matrix_norm_bracket` and
        `conv_norm_bracket` describe their shapes.

    Notes
    -----
    A bracket of a stack is indexed like an array of its shape, ``bracket[3]`` or ``bracket[...,
    0]``, has a length and is iterated along its first axis. ``f"{bracket:.4g}"`` shows four digits
    of each bound, rounded outward.
    """

    lower: Array
    upper: Array
    converged: Array
    n_products: int
    frequency: Array | None = None
    left: Array | None = None
    right: Array | None = None

    def __getitem__(self, key: Any) -> NormBracket:
        """Return the bracket of some norms of a stack, by what indexes an array of its shape."""
        key = key if isinstance(key, tuple) else (key,)
        whole = any(one is ... for one in key)
        mask = any(hasattr(one, "dtype") for one in key)
        batch = key if whole or mask else (*key, ...)
        inner = (*key, slice(None)) if whole else (*key, ...)
        vectors = (None if v is None else v[inner] for v in (self.left, self.right))
        ends = (self.lower[batch], self.upper[batch], self.converged[batch])
        return NormBracket(*ends, self.n_products, self.frequency, *vectors)

    def __len__(self) -> int:
        """Return the length of the first axis of a stack."""
        if self.lower.ndim == 0:
            msg = "this NormBracket is of one norm, and has no length; that of a stack has"
            raise TypeError(msg)
        return int(self.lower.shape[0])

    def __bool__(self) -> bool:
        """Return True: what an `if` means is `converged`, or a comparison of the bounds."""
        return True

    def __iter__(self) -> Iterator[NormBracket]:
        """Return the brackets along the first axis of a stack."""
        return map(self.__getitem__, range(len(self)))

    def __format__(self, spec: str) -> str:
        """Return the bounds with so many significant digits, as in ".4g", rounded outward."""
        if not spec:
            return repr(self)
        if not (found := re.fullmatch(r"\.([1-9]\d?)g", spec)):
            msg = (
                "a NormBracket is formatted by its significant digits, as in f'{bracket:.4g}', got "
                f"{spec!r}"
            )
            raise ValueError(msg)
        lower, upper = map(crossing.values_or_none, (self.lower, self.upper))
        if lower is None or upper is None:
            return repr(self)
        shape = f"shape {lower.shape}, " if lower.ndim else ""
        if not lower.size:
            return f"{shape}empty"
        known = ~(np.isnan(lower) | np.isnan(upper))
        unknown = np.count_nonzero(~known)
        if unknown == lower.size:
            return f"{shape}{'all ' * bool(shape)}nan"
        low, high = (
            decimal_text(float(value), up=up, digits=int(found[1]))
            for value, up in ((np.min(lower[known]), False), (np.max(upper[known]), True))
        )
        what = "norms" if shape else "norm"
        return f"{shape}{low} <= {what} <= {high}{f', {unknown} nan' if unknown else ''}"

    def __repr__(self) -> str:
        """Return the bounds as text, rounded outward; the fields where there are no numbers."""
        fields = [self.lower, self.upper, self.converged]
        found = [values for values in map(crossing.values_or_none, fields) if values is not None]
        if len(found) < 3 or len({values.shape for values in found}) > 1:
            return f"NormBracket(lower={fields[0]!r}, upper={fields[1]!r}, converged={fields[2]!r})"
        return f"NormBracket({_of_one(*found) if found[0].ndim == 0 else _of_stack(*found)})"


def to_bracket(
    found: Bounds[HostFloats],
    *,
    rtol: float,
    shape: tuple[int, ...],
    dtype: DType,
    like: Array,
    frequency: HostFloats | None = None,
) -> NormBracket:
    """Return bounds that `dtype` represents in the namespace and on the device of `like`."""
    xp = libraries.namespace(like)
    found = dataclasses.replace(found, upper=_readable(found.upper, dtype=dtype, like=like))
    done = converged(found, rtol).reshape(shape)
    return NormBracket(
        lower=crossing.from_host(found.lower.reshape(shape), dtype=dtype, like=like),
        upper=crossing.from_host(found.upper.reshape(shape), dtype=dtype, like=like),
        converged=xp.asarray(done, dtype=xp.bool, device=libraries.device_of(like)),
        n_products=found.cost,
        frequency=None
        if frequency is None
        else crossing.from_host(frequency, dtype=dtype, like=like),
    )


def upper_array(host: HostFloats, *, dtype: DType, like: Array) -> Array:
    """Return upper bounds that `dtype` represents beside `like`."""
    return crossing.from_host(_readable(host, dtype=dtype, like=like), dtype=dtype, like=like)


def _readable(host: HostFloats, *, dtype: DType, like: Array) -> HostFloats:
    """Return upper bounds none of which is positive here and read as zero beside `like`."""
    tiny = dtypes.finfo(dtype).smallest_normal
    if not (host < tiny).any():
        return host
    subnormal = (host > 0) & (host < tiny)
    if np.any(subnormal) and probes.flushes_subnormals(like, dtype):
        return np.where(subnormal, tiny, host)
    return host


def differentiable(
    result: NormBracket, gradient: Callable[[Array, Array], Array], x: Array
) -> NormBracket:
    """Let PyTorch differentiate both ends of a bracket of `x` to this gradient."""
    lower, upper = result.lower, result.upper
    return dataclasses.replace(
        result,
        lower=autodiff.with_gradient(lambda _: lower, gradient, x),
        upper=autodiff.with_gradient(lambda _: upper, gradient, x),
    )


def _of_one(lower: HostFloats, upper: HostFloats, converged: HostFloats) -> str:
    """Return the text of one bracket, with digits enough to see its gap."""
    gap = relative_gap_above(float(lower), float(upper))
    between = _between(float(lower), float(upper), gap, "norm")
    return f"{between}, {'' if converged else 'not '}converged"


def _of_stack(lower: HostFloats, upper: HostFloats, converged: HostFloats) -> str:
    """Return the text of a stack: shape, range of the norms, widest gap, how many converged."""
    shape = f"shape {lower.shape}"
    known = ~(np.isnan(lower) | np.isnan(upper))
    if not np.any(known):
        return f"{shape}, all nan" if lower.size else f"{shape}, empty"
    low, high = lower[known], upper[known]
    gap = max(map(relative_gap_above, low.tolist(), high.tolist()))
    parts = [shape, _between(float(np.min(low)), float(np.max(high)), gap, "norms")]
    if not np.all(known):
        parts.append(f"{np.count_nonzero(~known)} nan")
    return ", ".join([*parts, f"{np.count_nonzero(converged)} of {lower.size} converged"])


def _between(lower: float, upper: float, gap: float, what: str) -> str:
    """Return ``lower <= what <= upper, gap``.

    Two digits of the gap are seen in the bounds as well.
    """
    digits = DIGITS
    if 0 < gap < math.inf:
        digits = min(max(2 - math.floor(math.log10(gap)), 5), 17)
    bounds = (
        decimal_text(value, up=up, digits=digits) for value, up in ((lower, False), (upper, True))
    )
    return f" <= {what} <= ".join(bounds) + f", gap {decimal_text(gap, up=True, digits=2)}"
