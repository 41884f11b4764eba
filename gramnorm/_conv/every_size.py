"""The certified supremum of the norm of a symbol over all frequencies.

Over a cell of frequencies with centre c, a maximiser of the norm inside the cell forces
(docs/theory.md, Theorem 10)

    sup ||F|| <= ||F(c)|| / cos(w),   w = max over the cell of sum_a (k_a - 1) / 2 |theta_a - c_a|,

for w < pi / 2 and k_a taps along axis a.  So cells whose right side stays below (1 + rtol) times
the best value found are finished, the others are split, and the cost depends on the kernel, not on
any image.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from gramnorm._arrays import limits
from gramnorm._arrays.types import Array, HostBools, HostFloats
from gramnorm._conv import ascent, wide
from gramnorm._conv.cells import Cells, first_count
from gramnorm._conv.sampling import Cover, Maximum, at_points, evaluate, is_decided, limit
from gramnorm._conv.symbol import Symbol, polyphase, undilated_stride
from gramnorm._rigour.model import up


def supremum(
    taps: Array,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    *,
    rtol: float,
) -> tuple[Symbol, Maximum]:
    """Return the symbol of a strided correlation, and the supremum of its norm.

    Taps have the shape (T, groups, c_out, c_in); `turns` are those of the symbol returned.
    """
    plain = undilated_stride(stride, dilation)
    symbol = Symbol(*polyphase(taps, kernel_size, plain))
    extent = tuple(-(-k // s) for k, s in zip(kernel_size, plain, strict=True))
    return symbol, over_torus(symbol, extent, rtol=rtol, most=limit(symbol))


def over_torus(symbol: Symbol, kernel_size: tuple[int, ...], *, rtol: float, most: int) -> Maximum:
    """Bracket the supremum over all frequencies, with at most about `most` evaluations."""
    best = Maximum.unknown(len(kernel_size))
    if symbol.squares and first_count(kernel_size) <= limits.WIDE_FACTORS[1]:
        best = _by_factors(symbol, kernel_size, rtol=rtol, most=most)
        if best.settles(best.bounds.upper, rtol) or most < limit(symbol):
            return best
    return _by_squarings(symbol, kernel_size, best, rtol=rtol, most=most, squares=True)


def _by_squarings(
    symbol: Symbol,
    kernel_size: tuple[int, ...],
    best: Maximum,
    *,
    rtol: float,
    most: int,
    squares: bool,
) -> Maximum:
    """Bracket the supremum by cells that are halved, from what is known of it.

    `squares` allows for a search on F^H F, if that is flat.
    """
    finished, climbed, ceiling = 0.0, best.bounds.lower, best.bounds.upper
    most += best.bounds.cost
    best = _at_corners(symbol, kernel_size, best, rtol=rtol)
    if first_count(kernel_size) > limits.SEARCH_EVALUATIONS[1]:
        return best.with_upper(min(ceiling, symbol.flat_bound(), symbol.sum_bound()))
    cells = Cells.cover(kernel_size, half=symbol.real)
    bounds = np.full(len(cells.centres), np.inf)  # of the cells, from their ancestors
    while len(bounds):
        over = _around(cells.cosine)
        decides = is_decided(over, rtol)
        upper, best = evaluate(symbol, cells.centres, cells.denominators, decides, best, rtol=rtol)
        bounds = np.minimum(bounds, over(upper))
        open_ = ~best.settles(bounds, rtol)
        if np.count_nonzero(open_) > limits.CLIMB_CELLS and best.bounds.lower > climbed:
            best = _climbed(symbol, best, rtol)
            climbed, open_ = best.bounds.lower, ~best.settles(bounds, rtol)
        finished = max(finished, float(np.max(bounds[~open_], initial=0.0)))
        tried = best.bounds.cost > most // limits.FLAT_TRIAL
        if squares and tried and np.mean(open_) > 0.5:
            squares = False  # once is enough
            found, best = _if_flat(symbol, kernel_size, best, rtol=rtol)
            ceiling = min(ceiling, found)
            if best.settles(ceiling, rtol):
                return best.with_upper(ceiling)
        spent = best.bounds.cost + np.count_nonzero(open_) * cells.children > most
        if spent or _is_futile(cells.cosine, symbol, best, rtol):
            finished = max(finished, float(np.max(bounds)))
            break
        cells, bounds = cells.split(open_), np.repeat(bounds[open_], cells.children)
    return best.with_upper(min(finished, ceiling))


def _by_factors(symbol: Symbol, kernel_size: tuple[int, ...], *, rtol: float, most: int) -> Maximum:
    """Bracket the supremum of a wide symbol, crudely if it is flat or takes more than it may."""

    def is_flat(lower: float) -> bool:
        found = symbol.autocorrelation
        return found is not None and found.floor >= limits.FLAT * lower**2

    budget = most if most < limit(symbol) else math.inf
    return wide.supremum(
        symbol.squares, kernel_size, half=symbol.real, rtol=rtol, most=budget, is_flat=is_flat
    )


def _at_corners(
    symbol: Symbol, kernel_size: tuple[int, ...], best: Maximum, *, rtol: float
) -> Maximum:
    """Look at the frequencies with angles 0 and pi, where many kernels have their maximum."""
    if max(kernel_size) == 1:
        return best
    few = len(kernel_size) <= limits.CORNER_AXES
    choices = ((0, 1) if k > 1 and few else (0,) for k in kernel_size)
    ends = np.asarray(list(itertools.product(*choices)))
    decides = is_decided(at_points, rtol)
    twos = np.full(len(kernel_size), 2)
    return evaluate(symbol, ends, twos, decides, best, rtol=rtol)[1]


def _is_futile(cosine: float, symbol: Symbol, best: Maximum, rtol: float) -> bool:
    """Say whether such cells are open because of rounding, which splitting does not mend."""
    lower = best.bounds.lower
    noise = 4 * symbol.error / lower if lower > 0 else 1.0
    return cosine * (1 + max(rtol / 16, noise)) >= 1


def _climbed(symbol: Symbol, best: Maximum, rtol: float) -> Maximum:
    """Improve the lower bound by a local ascent."""
    taps = symbol.host_taps(best.block)
    turns = ascent.climb(taps, symbol.offsets, best.turns, rounds=limits.CLIMB_ROUNDS)
    return _with_norm_at(turns, symbol, best, rtol)


def _if_flat(
    symbol: Symbol, kernel_size: tuple[int, ...], best: Maximum, *, rtol: float
) -> tuple[float, Maximum]:
    """Bound the supremum by the autocorrelation, sharply if the symbol is flat (Lemma 11).

    The second bound is sup ||F||^2 <= c + sup ||F^H F - c I||.
    """
    ceiling, found = symbol.flat_bound(), symbol.autocorrelation
    square = best.bounds.lower**2
    if best.settles(ceiling, rtol) or found is None or found.floor < limits.FLAT * square:
        return ceiling, best
    # half way between the smallest and the largest square: the largest is as far off as any
    middle = (found.floor + square) / 2
    centre = float(np.float32(middle))
    if centre > middle:
        centre = float(np.nextafter(np.float32(middle), np.float32(0)))
    squared = symbol.squared(centre)
    assert squared is not None
    lags = tuple(2 * k - 1 for k in kernel_size)
    # half of what the gap in the root allows for: twice that, and the whole gap would be spent
    gap = rtol * square / (square - centre)
    most = limit(squared) // limits.SQUARE_SHARE
    start = Maximum.unknown(len(lags))
    inner = _by_squarings(squared, lags, start, rtol=gap, most=most, squares=False)
    best = _with_norm_at(inner.turns, symbol, best.after(inner.bounds.cost), rtol)
    return min(ceiling, up(math.sqrt(centre + inner.bounds.upper))), best


def _with_norm_at(turns: HostFloats, symbol: Symbol, best: Maximum, rtol: float) -> Maximum:
    """Improve the lower bound by the norm at one frequency, as sharp as it can be had."""
    fine = np.full(len(turns), 2**20)
    points = np.round(turns * fine).astype(np.int64)[None, :] % fine

    def undecided(_: Maximum, low: HostFloats, __: HostFloats) -> HostBools:
        return np.zeros_like(low, np.bool_)

    return evaluate(symbol, points, fine, undecided, best, rtol=rtol)[1]


def _around(cosine: float) -> Cover:
    """Bound the supremum if it is attained in the cell: ||F(c)|| / cos w (Theorem 10)."""
    if cosine == 1.0:
        return at_points
    if cosine <= 0:
        return lambda norm: np.full_like(norm, np.inf)
    return lambda norm: up(norm / cosine)
