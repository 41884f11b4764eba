"""The norm of a symbol on a grid of frequencies: its maximum, and bounds at every point.

The frequencies of a circle of n samples are 2 pi j / n.  Boxes of grid points are bounded from one point inside by the
corollary to Theorem 10, with a bound M on the supremum: the norm is nowhere above

    M cos(max(arccos(||F(c)|| / M) - w, 0))

within distance w of c.  So the cost hardly depends on the size of the circle.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from gramnorm._arrays.types import HostBools, HostFloats, HostInts
from gramnorm._conv.cells import first_count
from gramnorm._conv.every_size import over_torus
from gramnorm._conv.sampling import Bound, Fate, Maximum, chunks, evaluate, limit
from gramnorm._conv.symbol import Symbol
from gramnorm._rigour.model import HOST_UNIT, down, up

FULL_GRID = 2_500
"""Frequencies of a circle up to which all of them are evaluated at once."""


def grid_shape(sizes: tuple[int, ...], *, half: bool) -> tuple[int, ...]:
    """Return how many frequencies per axis represent a circle's; F(-theta) is conj F(theta) if `half`."""
    return (sizes[0] // 2 + 1, *sizes[1:]) if half else sizes


def over_circle(
    symbol: Symbol,
    sizes: tuple[int, ...],
    kernel_size: tuple[int, ...],
    *,
    rtol: float,
) -> Maximum:
    """Bracket the maximum over the frequencies 2 pi j / sizes; `turns` are fractions j / sizes."""
    total = math.prod(grid_shape(sizes, half=symbol.real))
    # a kernel dominated by few frequencies has its supremum in less than the grid costs
    share = 2 if symbol.squares else 3  # a cell may cost as much as a point, or more
    most = total // share if math.prod(sizes) <= FULL_GRID else None
    if most is not None and first_count(kernel_size) > most:
        return _over_points(symbol, sizes, rtol=rtol)
    torus = over_torus(symbol, kernel_size, rtol=rtol / 2, most=most)
    assert torus.turns is not None
    if most is not None and not torus.is_finished(np.asarray(torus.upper)):
        points = _over_points(symbol, sizes, rtol=rtol)
        points.evaluations += torus.evaluations
        return points
    # the supremum is attained almost: a point beside it may settle the matter
    best = Maximum(rtol / 8)
    corners = [
        {math.floor(t * n) % n, math.ceil(t * n) % n}
        for t, n in zip(torus.turns, sizes, strict=True)
    ]
    beside = np.asarray(list(itertools.product(*corners)), dtype=np.int64)
    evaluate(symbol, beside, np.asarray(sizes), best.decides_points, best)
    best.rtol, best.upper = rtol, torus.upper
    best.evaluations += torus.evaluations
    if best.is_finished(np.asarray(best.upper)):
        return best
    found = 0.0
    for _, _, bounds in _boxes_of_points(
        symbol, sizes, kernel_size, torus.upper, best, lambda b, _: best.is_finished(b), None
    ):
        found = max(found, float(np.max(bounds)))
    best.upper = min(best.upper, found)
    return best


def norms_on_grid(
    symbol: Symbol,
    sizes: tuple[int, ...],
    kernel_size: tuple[int, ...],
    *,
    ceiling: float,
    level: float,
    slack: float,
) -> tuple[HostFloats, int]:
    """Return upper bounds on the norm at the frequencies 2 pi j / sizes, shape `sizes`, and the evaluations spent.

    `ceiling` bounds the supremum M. Bounds below `level` are as crude as may be, and others miss the norm by about a
    fraction `slack` of what it is below M.
    """
    values = np.full(grid_shape(sizes, half=symbol.real), ceiling)
    spent = Maximum(0.0)

    def settled(bounds: HostFloats, w: float) -> HostBools:
        angle = np.arccos(np.minimum(bounds / ceiling, 1.0))
        return np.asarray((bounds <= level) | (w <= slack * angle))

    def fate(over: Bound) -> Fate:
        return lambda low, high: np.asarray(
            (over(high) <= level) | (high - low <= slack / 2 * (ceiling - high))
        )

    for boxes, lengths, bounds in _boxes_of_points(
        symbol, sizes, kernel_size, ceiling, spent, settled, fate
    ):
        where = []
        for axis, (start, length) in enumerate(zip(boxes.T, lengths.tolist(), strict=True)):
            place = [len(boxes), *(1 for _ in sizes)]
            place[1 + axis] = length
            index = np.minimum(start[:, None] + np.arange(length), values.shape[axis] - 1)
            where.append(index.reshape(place))
        values[tuple(where)] = bounds.reshape(-1, *(1 for _ in sizes))
    if not symbol.real:
        return values, spent.evaluations
    # F(-theta) = conj F(theta): the other half, mirrored in every axis
    whole = np.zeros(sizes)
    whole[: values.shape[0]] = values
    mirrored = whole[np.ix_(*((-np.arange(n)) % n for n in sizes))]
    return np.maximum(whole, mirrored), spent.evaluations


def _over_points(symbol: Symbol, sizes: tuple[int, ...], *, rtol: float) -> Maximum:
    """Evaluate every point of the grid, as sharply as it takes."""
    best = Maximum(rtol)
    shape = grid_shape(sizes, half=symbol.real)
    total = math.prod(shape)
    # a sparse sample first: with a good lower bound most blocks are finished after a step or two
    sample = np.arange(0, total, max(1, total // 64))
    rest = np.setdiff1d(np.arange(total), sample, assume_unique=True)
    for part in (sample, rest):
        for chunk in chunks(part, symbol):
            points = np.stack(np.unravel_index(chunk, shape), axis=-1).astype(np.int64)
            upper = evaluate(symbol, points, np.asarray(sizes), best.decides_points, best)
            best.upper = max(best.upper, float(np.max(upper)))
    return best


def _boxes_of_points(
    symbol: Symbol,
    sizes: tuple[int, ...],
    kernel_size: tuple[int, ...],
    ceiling: float,
    best: Maximum,
    settled: Callable[[HostFloats, float], HostBools],
    fate: Callable[[Bound], Fate] | None,
) -> Iterator[tuple[HostInts, HostInts, HostFloats]]:
    """Halve boxes of grid points until they are settled; yield (first points, lengths, bounds) of those.

    A box is evaluated at its middle point. `ceiling` bounds the supremum; `settled` is asked about bounds on
    boxes and their w, `fate` makes what decides how sharply a norm is needed. Points are settled, and so is what
    is left when the budget is spent.
    """
    shape = grid_shape(sizes, half=symbol.real)
    lengths = np.asarray(
        [_first_length(n, k, len(sizes)) for n, k in zip(sizes, kernel_size, strict=True)]
    )
    most = best.evaluations + limit(symbol)
    if math.prod(-(-n // int(length)) for n, length in zip(shape, lengths, strict=True)) > most:
        yield np.zeros((1, len(sizes)), dtype=np.int64), np.asarray(shape), np.asarray([ceiling])
        return
    starts = [np.arange(0, n, length) for n, length in zip(shape, lengths, strict=True)]
    boxes = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, len(sizes))
    bounds = np.full(len(boxes), ceiling)
    while len(boxes):
        middles = (boxes + lengths // 2) % np.asarray(sizes)
        reach = math.fsum(
            (k - 1) * math.pi * int(length // 2) / n
            for k, length, n in zip(kernel_size, lengths, sizes, strict=True)
        )
        over = _within(reach, ceiling)
        decides = fate(over) if fate else best.decides_cells(over) if reach else best.decides_points
        for chunk in chunks(np.arange(len(boxes)), symbol):
            upper = over(evaluate(symbol, middles[chunk], np.asarray(sizes), decides, best))
            bounds[chunk] = np.minimum(bounds[chunk], upper)
        done = settled(bounds, reach)
        split = lengths > 1
        moves = np.asarray(
            list(itertools.product(*((0, m // 2) if m > 1 else (0,) for m in lengths.tolist())))
        )
        if not np.any(split) or best.evaluations + np.sum(~done) * len(moves) > most:
            done = np.ones_like(done)
        if np.any(done):
            yield boxes[done], lengths, bounds[done]
        boxes = (boxes[~done][:, None, :] + moves[None, :, :]).reshape(-1, len(sizes))
        bounds = np.repeat(bounds[~done], len(moves))
        exist = np.all(boxes < np.asarray(shape), axis=1)
        boxes, bounds = boxes[exist], bounds[exist]
        lengths = np.where(split, lengths // 2, 1)


def _first_length(n: int, k: int, axes: int) -> int:
    """Return a power of two: the points per axis of a box with w of about 0.9 at most."""
    most = 1.8 * n / (axes * max(k - 1, 1) * math.pi)
    power = min(math.floor(math.log2(max(most, 1.0))), math.ceil(math.log2(n)))
    return 1 << power


def _within(w: float, supremum: float) -> Bound:
    """Bound the norm everywhere in a cell: M cos(max(arccos(||F(c)|| / M) - w, 0)) (Theorem 10)."""
    if w == 0.0:
        return lambda norm: np.minimum(norm, supremum)
    w = up(w, 16)
    if w >= 1.57:
        return lambda norm: np.full_like(norm, supremum)
    cosine, sine = math.cos(w), math.sin(w)

    def bound(norm: HostFloats) -> HostFloats:
        norm = np.minimum(norm, supremum)
        # the last term covers the rounding of the difference, near 0 in particular
        rest = np.sqrt((supremum - norm) * (supremum + norm) + 32 * HOST_UNIT * supremum**2)
        away = up(norm * cosine + rest * sine, 16)
        near = norm >= down(supremum * cosine, 16)
        return np.where(near, supremum, np.minimum(away, supremum))

    return bound
