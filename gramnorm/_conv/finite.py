"""Convolutions of a finite size that are not circulant: zero padding above all.

A factorisation of the Gram matrix knows the size exactly.  A search over frequencies bounds every
size; scalar compressions from above and Golub-Kahan steps from below then make up for this one.
Both are tried in the order that predictions of their cost and their gap suggest (`finite_costs`),
until the gap is narrow enough: with the probability p that a way is enough, the sum of costs until
one is has its least expectation where cost / p grows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from gramnorm._arrays import crossing, dtypes, libraries, limits
from gramnorm._arrays.types import Array
from gramnorm._conv import (
    every_size,
    finite_banded,
    finite_costs,
    finite_ends,
    finite_matrix,
    finite_moduli,
)
from gramnorm._conv.finite_lower import Wave, golub_kahan, window_size
from gramnorm._conv.finite_upper import compression
from gramnorm._conv.geometry import Axis
from gramnorm._conv.sampling import Maximum
from gramnorm._conv.symbol import Symbol
from gramnorm._results import Bounds, of_direct_sum
from gramnorm._rigour.model import up


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to bounds, and what is foretold: the seconds it takes, the relative gap it leaves."""

    seconds: float
    gap: float
    bounds: Callable[[], Iterator[Bounds[float]]]


def bracket(taps: Array, axes: Sequence[Axis], *, rtol: float) -> Bounds[float]:
    """Bracket the norm of the correlation with taps (T, groups, c_out, c_in) along nonempty `axes`.

    The cost is in blocks of the symbol and products with the operator or its Gram matrix.
    """
    xp = libraries.namespace(taps)
    double = xp.complex128 if dtypes.is_complex(taps.dtype) else xp.float64
    wide = xp.astype(taps, double, copy=False) if dtypes.has_float64(taps) else taps
    # continued samples that no output reads do not count
    inside = [a.inside() for a in axes]
    axes = tuple(i if i.outputs == a.outputs else a for i, a in zip(inside, axes, strict=True))
    continued = any(a.mode != "zeros" for a in axes)
    parts = [axes] if continued else [*itertools.product(*(a.parts() for a in axes))]
    is_blur = continued and _has_one_sign(taps, axes)  # then its moduli tell its norm
    spent = []  # one search for all parts

    @functools.cache
    def supremum() -> tuple[Symbol, Maximum]:
        # half the gap asked for: what the size takes away is seen beside the rest
        symbol, best = _supremum(taps, axes, rtol=rtol / 2)
        spent.append(Bounds(0.0, 0.0, best.bounds.cost * symbol.blocks))
        return symbol, best

    searched = partial(_continued, taps) if continued else _zero_padded

    def narrow(part: Sequence[Axis]) -> Bounds[float]:
        seconds, gap = finite_costs.searched(wide, part, rtol=rtol)
        gap = 0.0 if is_blur else gap
        ways = [
            *_factorised(wide, part, rtol=rtol),
            Way(seconds, gap, lambda: searched(wide, part, *supremum(), rtol=rtol)),
        ]
        found = _narrowed(ways, rtol=rtol)
        if continued and not found.is_within(rtol):
            ceiling = supremum()[1].bounds.upper
            windows = finite_ends.bracket(wide, part, ceiling, found.lower, rtol=rtol)
            found = found.narrowed(windows)
        return found

    found = [narrow(part) for part in parts]
    return of_direct_sum(found + spent)


def _has_one_sign(taps: Array, axes: Sequence[Axis]) -> bool:
    """Say whether no tap is negative, or positive, up to signs that alternate along some axes."""
    host, sizes = crossing.host_array(taps), [a.taps for a in axes]
    if np.iscomplexobj(host):
        return False
    parities = np.indices(sizes).reshape(len(sizes), -1) % 2
    for chosen in itertools.product((0, 1), repeat=len(sizes)):
        signs = (1 - 2 * (np.asarray(chosen) @ parities % 2)).reshape(-1, 1, 1, 1)
        if np.all(host * signs >= 0) or np.all(host * signs <= 0):
            return True
    return False


def _narrowed(ways: Sequence[Way], *, rtol: float) -> Bounds[float]:
    """Take bounds on one operator until they are narrow enough, the most promising ones first."""
    found = Bounds(0.0, math.inf)
    # a gap as wide as the one asked for is as often too wide as not
    for way in sorted(ways, key=lambda way: way.seconds * (1 + (way.gap / rtol) ** 2)):
        for one in way.bounds():
            found = found.narrowed(one)
            if found.is_within(rtol):
                return found
    return found


def _factorised(wide: Array, axes: Sequence[Axis], *, rtol: float) -> list[Way]:
    """Return the ways through a Gram matrix that take little enough time and memory."""

    def banded() -> Iterator[Bounds[float]]:
        # from a generic vector Ritz values may rest for some steps below the largest
        known = golub_kahan(wide, axes, None, rtol=rtol / 4)
        yield known.narrowed(finite_banded.bracket(wide, axes, known.lower, rtol=rtol))

    def assembled() -> Iterator[Bounds[float]]:
        yield finite_matrix.bracket(wide, axes, rtol=rtol)

    ways = [
        Way(finite_costs.assembled(wide, axes), 0.0, assembled),
        Way(finite_costs.banded(wide, axes), 0.0, banded),
    ]
    return [way for way in ways if way.seconds <= limits.LONGEST]


def _zero_padded(
    wide: Array, axes: Sequence[Axis], symbol: Symbol, best: Maximum, *, rtol: float
) -> Iterator[Bounds[float]]:
    """Yield bounds on a correlation with zero padding and no dilation, the cheapest ones first."""
    wave = Wave.at(symbol, best)
    lower = wave.quotient(axes)
    yield Bounds(lower, best.bounds.upper)
    compressed = partial(compression, symbol, axes, best.bounds.upper, rtol=rtol)
    yield compressed(lower, slack=limits.COMPRESSION_SLACK)
    better = golub_kahan(wide, axes, wave, rtol=rtol)
    yield better
    lower = max(lower, better.lower)
    # so that what is above the norm is a part of the gap asked for
    slack = 0.5 * rtol * lower / (best.bounds.upper - lower)
    least, most = limits.FINE_COMPRESSION_SLACK
    yield compressed(lower, slack=min(max(slack, least), most))


def _continued(
    taps: Array, wide: Array, axes: Sequence[Axis], symbol: Symbol, best: Maximum, *, rtol: float
) -> Iterator[Bounds[float]]:
    """Yield bounds on a correlation whose input is continued by its own samples (Theorem 13)."""
    wave = Wave.at(symbol, best)
    parts = [*itertools.product(*(a.inside().parts() for a in axes))]
    lower = max((wave.quotient(part) for part in parts), default=0.0)
    above = Bounds(lower, best.bounds.upper * _repetition(axes))
    yield above.narrowed(_round_the_circle(taps, axes, rtol=rtol / 2))
    yield finite_moduli.bracket(wide, axes, best.turns, best.bounds.upper, rtol=rtol)
    for part in parts:
        yield golub_kahan(wide, part, wave, rtol=rtol)
    # with the samples that continue the input, which may make another group the largest
    groups = taps.shape[1]
    each = range(groups) if groups <= limits.GRADIENT_GROUPS else [wave.group]
    for corner in finite_ends.corners(taps, axes, finite_ends.cheap_size(wide, axes)):
        # vectors that vanish away from the corners hide from iterations that begin elsewhere
        if finite_costs.assembled(wide, corner) <= limits.CORNER_SECONDS:
            found = finite_matrix.bracket(wide, corner, rtol=rtol)
            yield dataclasses.replace(found, upper=math.inf)
    most = window_size(axes, taps.shape[3])
    if any(a.size > most for a in axes):  # in the corners, which take as long together
        most = max(most // 2, 1)
    for one in finite_ends.corners(taps, axes, most):
        for g in each:
            yield golub_kahan(wide, one, dataclasses.replace(wave, group=g), rtol=rtol)


def _supremum(taps: Array, axes: Sequence[Axis], *, rtol: float) -> tuple[Symbol, Maximum]:
    """Return the symbol and its supremum, which no size exceeds."""
    sizes, strides, dilations = zip(*((a.taps, a.stride, a.dilation) for a in axes), strict=True)
    return every_size.supremum(taps, sizes, strides, dilations, rtol=rtol)


def _round_the_circle(taps: Array, axes: Sequence[Axis], *, rtol: float) -> Bounds[float]:
    """Bound a circular operator by all outputs that its stride visits (Theorem 13).

    On a circle of n samples m outputs of stride s are some of those of stride g = gcd(s, n), each
    of them at most ceil(m g / n) times.
    """
    if not any(a.mode == "circular" and not a.is_circle for a in axes):
        return Bounds(0.0, math.inf)
    rounds = [
        dataclasses.replace(a, stride=math.gcd(a.stride, a.size)) if a.mode == "circular" else a
        for a in axes
    ]
    visits = math.prod(-(-a.outputs * a.stride // a.size) for a in rounds if a.mode == "circular")
    symbol, best = _supremum(taps, rounds, rtol=rtol)
    return Bounds(0.0, up(best.bounds.upper * math.sqrt(visits)), best.bounds.cost * symbol.blocks)


def _repetition(axes: Sequence[Axis]) -> float:
    """Return the norm of the continuation of the input, rounded up; circles need none."""
    copies = math.prod(1 if a.is_circle else a.copies() for a in axes)
    return up(math.sqrt(copies)) if copies > 1 else 1.0
