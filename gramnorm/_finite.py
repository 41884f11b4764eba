"""Convolutions of a finite size that are not circulant: zero padding above all.

Bounds of growing cost until the gap is narrow enough: the supremum over frequencies and a plane wave, which do not
know the size; scalar compressions from above and Golub-Kahan steps from below, which do; the Gram matrix of a small
operator.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import partial

from gramnorm import _assemble, _norms, _search, _xp
from gramnorm._compression import compression
from gramnorm._symbol import Symbol
from gramnorm._typing import Array, Namespace
from gramnorm._wave import Wave, golub_kahan
from gramnorm.geometry import Axis

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


def bracket(taps: Array, axes: Sequence[Axis], *, rtol: float, xp: Namespace) -> Bracket:
    """Bracket the norm of the correlation with taps (T, groups, c_out, c_in) along `axes`, none of them empty."""
    # continued samples that no output reads do not count
    axes = tuple(a.inside() if a.inside().outputs == a.outputs else a for a in axes)
    groups, channels = taps.shape[1], (taps.shape[2], taps.shape[3])
    wide = taps
    if _xp.has_float64(_xp.device_of(taps), xp=xp):
        real = not _xp.is_complex(taps.dtype, xp=xp)
        wide = xp.astype(taps, xp.float64 if real else xp.complex128, copy=False)

    def matrix() -> tuple[float, float, int]:
        return _assemble.bracket(wide, axes, rtol=rtol, xp=xp)

    if _assemble.is_affordable(axes, channels, groups, most=SMALL):
        return Bracket(*matrix())
    symbol, best = _supremum(taps, axes, [a.stride for a in axes], rtol=rtol / 2, xp=xp)
    result = Bracket(0.0, best.upper * _repetition(axes), best.evaluations)
    zeros = all(a.mode == "zeros" for a in axes)
    if not zeros:
        result.narrow(0.0, *_round_the_circle(taps, axes, rtol=rtol / 2, xp=xp))
    inner = tuple(a if a.mode == "zeros" else a.inside() for a in axes)
    wave = Wave.at(symbol, best)
    strides = [a.stride // math.gcd(a.stride, a.dilation) for a in axes]
    parts = list(itertools.product(*(a.parts() for a in inner)))
    result.lower = max((wave.quotient(part, strides) for part in parts), default=0.0)

    def compressed(slack: float) -> tuple[float, float, int]:
        found = [
            compression(
                symbol, part, strides, best.upper, result.lower, slack=slack, rtol=rtol, xp=xp
            )
            for part in parts
        ]
        return 0.0, max((b for b, _ in found), default=0.0), sum(cost for _, cost in found)

    def improved() -> tuple[float, float, int]:
        return golub_kahan(wide, inner, wave, strides, rtol=rtol, xp=xp), math.inf, 0

    def compressed_well() -> tuple[float, float, int]:
        # so that what is above the norm is a part of the gap asked for
        loss = max(best.upper - result.lower, 0.0)
        return compressed(min(max(0.5 * rtol * result.lower / loss, 1e-3), 0.05) if loss else 0.05)

    steps = [improved]
    if zeros:
        steps = [partial(compressed, 0.25), improved, compressed_well]
    if _assemble.is_affordable(axes, channels, groups, most=_assemble.ORDER):
        steps.append(matrix)
    for step in steps:
        if result.is_within(rtol):
            break
        result.narrow(*step())
    return result


def _supremum(
    taps: Array, axes: Sequence[Axis], strides: Sequence[int], *, rtol: float, xp: Namespace
) -> tuple[Symbol, _norms.Maximum]:
    kernel_size, dilation = tuple(a.taps for a in axes), tuple(a.dilation for a in axes)
    return _search.supremum(taps, kernel_size, tuple(strides), dilation, rtol=rtol, xp=xp)


def _round_the_circle(
    taps: Array, axes: Sequence[Axis], *, rtol: float, xp: Namespace
) -> tuple[float, int]:
    """Bound a circular operator by all outputs that its stride visits, each as often as it is visited (Theorem 13)."""
    if not any(a.mode == "circular" and not a.is_circle for a in axes):
        return math.inf, 0
    steps = [math.gcd(a.stride, a.size) if a.mode == "circular" else a.stride for a in axes]
    visits = math.prod(
        -(-a.outputs * g // a.size)
        for a, g in zip(axes, steps, strict=True)
        if a.mode == "circular"
    )
    _, best = _supremum(taps, axes, steps, rtol=rtol, xp=xp)
    return best.upper * math.sqrt(visits) * (1 + 2.0**-50), best.evaluations


def _repetition(axes: Sequence[Axis]) -> float:
    """Return the norm of the continuation of the input, rounded up; circles need none."""
    copies = math.prod(1 if a.is_circle else a.copies() for a in axes)
    return math.sqrt(copies) * (1 + 2.0**-50) if copies > 1 else 1.0
