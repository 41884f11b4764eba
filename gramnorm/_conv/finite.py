"""Convolutions of a finite size that are not circulant: zero padding above all.

Bounds of growing cost until the gap is narrow enough: the supremum over frequencies and a plane wave, which do not
know the size; scalar compressions from above and Golub-Kahan steps from below, which do; the Gram matrix of a small
operator.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

from gramnorm._arrays import dtypes, libraries
from gramnorm._arrays.types import Array
from gramnorm._conv import every_size, finite_matrix, sampling
from gramnorm._conv.finite_lower import Wave, golub_kahan
from gramnorm._conv.finite_upper import compression
from gramnorm._conv.geometry import Axis
from gramnorm._conv.symbol import Symbol
from gramnorm._rigour.model import up

Peak = Callable[[], tuple[Symbol, sampling.Maximum]]
"""Returns the symbol and its supremum, searched for when somebody asks."""

Step = Callable[[], tuple[float, float, int]]
"""Computes (lower, upper, cost) of the same norm."""

SMALL = 256
"""Operators with a side of at most this are bracketed as matrices at once."""


@dataclasses.dataclass
class Bracket:
    """Bounds on the norm of an operator, and the blocks of symbols and products spent."""

    lower: float
    upper: float
    cost: int = 0

    def is_within(self, rtol: float) -> bool:
        """Say whether the relative gap is at most `rtol`."""
        return self.upper - self.lower <= rtol * self.lower

    def narrow(self, lower: float, upper: float, cost: int) -> None:
        """Take what is better of another bracket of the same norm."""
        self.lower, self.upper = max(self.lower, lower), min(self.upper, upper)
        self.cost += cost


def bracket(taps: Array, axes: Sequence[Axis], *, rtol: float) -> Bracket:
    """Bracket the norm of the correlation with taps (T, groups, c_out, c_in) along `axes`, none of them empty."""
    xp = libraries.namespace(taps)
    if dtypes.has_float64(taps):
        real = not dtypes.is_complex(taps.dtype)
        wide = xp.astype(taps, xp.float64 if real else xp.complex128, copy=False)
    else:
        wide = taps
    # continued samples that no output reads do not count
    axes = tuple(a.inside() if a.inside().outputs == a.outputs else a for a in axes)
    if any(a.mode != "zeros" for a in axes):
        return _continued(taps, wide, axes, rtol=rtol)
    peak = functools.cache(partial(_supremum, taps, axes, rtol=rtol / 2))
    result = Bracket(0.0, 0.0)
    for part in itertools.product(*(a.parts() for a in axes)):
        one = _zero_padded(wide, part, peak, rtol=rtol)
        result.lower, result.upper = max(result.lower, one.lower), max(result.upper, one.upper)
        result.cost += one.cost
    return result


def _zero_padded(wide: Array, axes: Sequence[Axis], peak: Peak, *, rtol: float) -> Bracket:
    """Bracket a correlation with zero padding and no dilation."""
    matrix = partial(finite_matrix.bracket, wide, axes, rtol=rtol)
    if _is_affordable(wide, axes, most=SMALL):
        return Bracket(*matrix())
    symbol, best = peak()
    wave = Wave.at(symbol, best)
    result = Bracket(wave.quotient(axes), best.bounds.upper, best.bounds.cost)

    def compressed(slack: float) -> tuple[float, float, int]:
        bounds = best.bounds.upper, result.lower
        return 0.0, *compression(symbol, axes, *bounds, slack=slack, rtol=rtol)

    def compressed_well() -> tuple[float, float, int]:
        # so that what is above the norm is a part of the gap asked for
        loss = max(best.bounds.upper - result.lower, 0.0)
        return compressed(min(max(0.5 * rtol * result.lower / loss, 1e-3), 0.05) if loss else 0.05)

    steps: list[Step] = [
        partial(compressed, 0.25),
        partial(golub_kahan, wide, axes, wave, rtol=rtol),
        compressed_well,
    ]
    if _is_affordable(wide, axes, most=finite_matrix.ORDER):
        steps.append(matrix)
    return _refined(result, steps, rtol)


def _continued(taps: Array, wide: Array, axes: Sequence[Axis], *, rtol: float) -> Bracket:
    """Bracket a correlation whose input is continued by its own samples (Theorem 13)."""
    matrix = partial(finite_matrix.bracket, wide, axes, rtol=rtol)
    if _is_affordable(wide, axes, most=SMALL):
        return Bracket(*matrix())
    symbol, best = _supremum(taps, axes, rtol=rtol / 2)
    result = Bracket(0.0, best.bounds.upper * _repetition(axes), best.bounds.cost)
    result.narrow(0.0, *_round_the_circle(taps, axes, rtol=rtol / 2))
    wave = Wave.at(symbol, best)
    steps: list[Step] = []
    for part in itertools.product(*(a.inside().parts() for a in axes)):
        result.lower = max(result.lower, wave.quotient(part))
        steps.append(partial(golub_kahan, wide, part, wave, rtol=rtol))
    if _is_affordable(wide, axes, most=finite_matrix.ORDER):
        steps.append(matrix)
    return _refined(result, steps, rtol)


def _refined(result: Bracket, steps: Sequence[Step], rtol: float) -> Bracket:
    """Narrow a bracket by one step after the other until it is narrow enough."""
    for step in steps:
        if result.is_within(rtol):
            break
        result.narrow(*step())
    return result


def _is_affordable(taps: Array, axes: Sequence[Axis], *, most: int) -> bool:
    _, groups, c_out, c_in = taps.shape
    return finite_matrix.is_affordable(axes, (c_out, c_in), groups, most=most)


def _supremum(
    taps: Array,
    axes: Sequence[Axis],
    strides: Sequence[int] | None = None,
    *,
    rtol: float,
) -> tuple[Symbol, sampling.Maximum]:
    """Return the symbol and its supremum, for other strides than those of the axes if given."""
    kernel_size, stride, dilation = (
        tuple(getattr(a, name) for a in axes) for name in ("taps", "stride", "dilation")
    )
    stride = stride if strides is None else tuple(strides)
    return every_size.supremum(taps, kernel_size, stride, dilation, rtol=rtol)


def _round_the_circle(taps: Array, axes: Sequence[Axis], *, rtol: float) -> tuple[float, int]:
    """Bound a circular operator by all outputs that its stride visits, each as often as it is visited (Theorem 13)."""
    if not any(a.mode == "circular" and not a.is_circle for a in axes):
        return math.inf, 0
    steps = [math.gcd(a.stride, a.size) if a.mode == "circular" else a.stride for a in axes]
    visits = math.prod(
        -(-a.outputs * g // a.size)
        for a, g in zip(axes, steps, strict=True)
        if a.mode == "circular"
    )
    _, best = _supremum(taps, axes, steps, rtol=rtol)
    return up(best.bounds.upper * math.sqrt(visits)), best.bounds.cost


def _repetition(axes: Sequence[Axis]) -> float:
    """Return the norm of the continuation of the input, rounded up; circles need none."""
    copies = math.prod(1 if a.is_circle else a.copies() for a in axes)
    return up(math.sqrt(copies)) if copies > 1 else 1.0
