"""The certified supremum of the norm of a symbol over all frequencies.

Over a cell of frequencies with centre c, a maximiser of the norm inside the cell forces (docs/theory.md, Theorem 10)

    sup ||F|| <= ||F(c)|| / cos(w),   w = max over the cell of sum_a (k_a - 1) / 2 |theta_a - c_a| < pi / 2,

for k_a taps along axis a.  So cells whose right side stays below (1 + rtol) times the best value found are finished,
the others are split, and the cost depends on the kernel, not on any image.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from gramnorm._arrays.limits import WIDE_FACTORS
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._conv import ascent, sampling, wide
from gramnorm._conv.cells import Cells, first_count
from gramnorm._conv.sampling import Bound, Maximum, chunks, evaluate, limit
from gramnorm._conv.symbol import Symbol, polyphase
from gramnorm._rigour.model import up

CORNERS = 6
"""Most axes for which all frequencies with angles 0 and pi are tried first."""

FLAT = 0.125
"""The least share of the largest singular value squared, at any frequency, from which on a symbol counts as flat."""

MANY = 48
"""Open cells from which on a local ascent is worth its cost."""


def supremum(
    taps: Array,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    *,
    rtol: float,
) -> tuple[Symbol, Maximum]:
    """Return the symbol of a strided correlation with taps (T, groups, c_out, c_in), and its supremum.

    With g = gcd(s, d) stride s and dilation d have the norm of stride s / g and no dilation; `turns` are those of
    the symbol returned.
    """
    plain = tuple(s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True))
    symbol = Symbol(*polyphase(taps, kernel_size, plain))
    extent = tuple(-(-k // s) for k, s in zip(kernel_size, plain, strict=True))
    return symbol, over_torus(symbol, extent, rtol=rtol)


def over_torus(
    symbol: Symbol,
    kernel_size: tuple[int, ...],
    *,
    rtol: float,
    most: int | None = None,
    squares: bool = True,
) -> Maximum:
    """Bracket the supremum over all frequencies, with at most about `most` evaluations.

    `squares` allows for another search on the square of the symbol, if it is flat.
    """
    best = Maximum(rtol)
    if squares and symbol.squares and first_count(kernel_size) <= WIDE_FACTORS[1]:
        peak = wide.supremum(
            symbol.squares,
            kernel_size,
            half=symbol.real,
            rtol=rtol,
            most=math.inf if most is None else most,
            is_flat=lambda lower: _is_flat(symbol, lower),
        )
        best = Maximum(rtol, peak.lower, peak.upper, peak.turns, peak.block, peak.cost)
        if most is not None or best.is_finished(np.asarray(best.upper)):
            return best
        best.upper = 0.0
    if max(kernel_size) > 1 and len(kernel_size) <= CORNERS:
        ends = np.asarray(
            list(itertools.product(*((0, 1) if k > 1 else (0,) for k in kernel_size)))
        )
        evaluate(symbol, ends, np.full(len(kernel_size), 2), best.decides_points, best)
    if first_count(kernel_size) > sampling.EVALUATIONS[1]:
        best.upper = min(symbol.flat_bound(), symbol.sum_bound())
        return best
    cells = Cells.cover(kernel_size, half=symbol.real)
    bounds = np.full(len(cells.centres), np.inf)  # of the cells, from their ancestors
    most, ceiling = limit(symbol) if most is None else most, math.inf
    climbed = 0.0
    while len(bounds):
        over = _around(cells.cosine)
        for chunk in chunks(np.arange(len(bounds)), symbol):
            centres = cells.centres[chunk]
            decides = best.decides_cells(over) if cells.cosine < 1 else best.decides_points
            upper = evaluate(symbol, centres, cells.denominators, decides, best)
            bounds[chunk] = np.minimum(bounds[chunk], over(upper))
        if np.count_nonzero(~best.is_finished(bounds)) > MANY:
            climbed = _climb(symbol, best, climbed)
        open_ = ~best.is_finished(bounds)
        best.upper = max(best.upper, float(np.max(bounds[~open_], initial=0.0)))
        many = np.mean(open_) > 0.5 and best.evaluations > most // 100
        if squares and many and ceiling == math.inf:
            ceiling = symbol.flat_bound()  # so many open cells: the symbol may be flat
            if not best.is_finished(np.asarray(ceiling)):
                ceiling = min(ceiling, _by_squares(symbol, kernel_size, best))
            if best.is_finished(np.asarray(ceiling)):
                best.upper = ceiling
                break
        spent = best.evaluations + np.count_nonzero(open_) * cells.children > most
        # cells this small are open because of rounding, which splitting does not mend
        noise = 4 * symbol.error / best.lower if best.lower > 0 else 1.0
        futile = cells.cosine * (1 + max(rtol / 16, noise)) >= 1
        if spent or futile:
            best.upper = max(best.upper, float(np.max(bounds)))
            break
        cells, bounds = cells.split(open_), np.repeat(bounds[open_], cells.children)
    best.upper = min(best.upper, ceiling)
    return best


def _climb(symbol: Symbol, best: Maximum, climbed: float) -> float:
    """Improve the lower bound by a local ascent, unless it is what the last one found; return the new one."""
    if best.turns is not None and best.lower > climbed:
        turns = ascent.climb(symbol.host_taps(best.block), symbol.offsets, best.turns)
        _look_at(symbol, best, turns)
    return best.lower


def _by_squares(symbol: Symbol, kernel_size: tuple[int, ...], best: Maximum) -> float:
    """Bound the supremum by sup ||F||^2 <= c + sup ||F^H F - c I||; inf if the symbol is far from flat (Lemma 11)."""
    found, square = symbol.autocorrelation, best.lower**2
    if found is None or not _is_flat(symbol, best.lower):
        return math.inf
    # half way between the smallest and the largest square, or below: the largest is as far off as any
    middle = (found.floor + square) / 2
    centre = float(np.float32(middle))
    if centre > middle:
        centre = float(np.nextafter(np.float32(middle), np.float32(0)))
    squared = symbol.squared(centre)
    assert squared is not None
    lags = tuple(2 * k - 1 for k in kernel_size)
    rtol = best.rtol * square / (square - centre)  # twice that, and the whole gap would be spent
    most = over_torus(squared, lags, rtol=rtol, most=limit(squared) // 4, squares=False)
    best.evaluations += most.evaluations
    if most.turns is not None:
        _look_at(symbol, best, most.turns)
    return up(math.sqrt(centre + most.upper))


def _is_flat(symbol: Symbol, lower: float) -> bool:
    """Say whether no singular value at any frequency is far below a norm that is attained."""
    found = symbol.autocorrelation
    return found is not None and found.floor >= FLAT * lower**2


def _look_at(symbol: Symbol, best: Maximum, turns: HostFloats) -> None:
    """Improve the lower bound by the norm at one frequency, as sharp as it can be had."""
    fine = np.full(len(turns), 2**20)
    points = np.round(turns * fine).astype(np.int64)[None, :] % fine
    evaluate(symbol, points, fine, lambda low, _: np.zeros_like(low, np.bool_), best)


def _around(cosine: float) -> Bound:
    """Bound the supremum if it is attained in the cell: ||F(c)|| / cos w (Theorem 10)."""
    if cosine == 1.0:
        return lambda norm: norm
    if cosine <= 0:
        return lambda norm: np.full_like(norm, np.inf)
    return lambda norm: up(norm / cosine)
