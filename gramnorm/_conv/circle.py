"""The norm of a symbol on a grid of frequencies: its maximum, and bounds at every point.

The frequencies of a circle of n samples are 2 pi j / n.  Boxes of grid points are bounded from one
point inside by the corollary to Theorem 10, with a bound M on the supremum: the norm is nowhere
above

    M cos(max(arccos(||F(c)|| / M) - w, 0))

within distance w of c.  So the cost hardly depends on the size of the circle.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np

from gramnorm._arrays import limits
from gramnorm._arrays.types import HostBools, HostFloats, HostInts
from gramnorm._conv.cells import first_count, grid_points
from gramnorm._conv.every_size import over_torus
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._conv.sampling import Cover, Fate, Maximum, at_points, evaluate, is_decided, limit
from gramnorm._conv.symbol import Symbol
from gramnorm._rigour import angles
from gramnorm._rigour.model import down, up


def grid_shape(sizes: tuple[int, ...], *, half: bool) -> tuple[int, ...]:
    """Return how many frequencies per axis represent a circle's.

    F(-theta) is conj F(theta) if `half`.
    """
    return (sizes[0] // 2 + 1, *sizes[1:]) if half else sizes


def circle_points(geometry: ConvGeometry) -> tuple[int, ...]:
    """Return the number of frequencies per axis of a circle whose size the stride divides."""
    return tuple(size // stride for stride, size, _ in (axis.circle() for axis in geometry.axes()))


@dataclasses.dataclass(frozen=True)
class Grid:
    """The frequencies 2 pi j / sizes with 0 <= j < shape, which stand for all that count.

    Attributes
    ----------
    sizes, shape : tuple of int
    is_even : bool
        Whether the norm is the same at -theta_a along each axis a, and only these j count.
    """

    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    is_even: bool

    @classmethod
    def circle(cls, sizes: tuple[int, ...], *, half: bool) -> Grid:
        """Return the grid of a circle."""
        return cls(sizes, grid_shape(sizes, half=half), is_even=False)

    def beside(self, turns: HostFloats) -> HostInts:
        """Return the points around a frequency."""
        corners = [
            {self._counted(floor(turn * n) % n, n, m) for floor in (math.floor, math.ceil)}
            for turn, n, m in zip(turns, self.sizes, self.shape, strict=True)
        ]
        return np.asarray(list(itertools.product(*corners)), dtype=np.int64)

    def _counted(self, j: int, n: int, m: int) -> int:
        return min(j, n - j, m - 1) if self.is_even else j

    def middles(self, boxes: _Boxes) -> HostInts:
        """Return a point of each box, within half of its length of all others."""
        middles = boxes.starts + boxes.lengths // 2
        # what lies beyond an even grid may not count
        inside = np.minimum(middles, np.asarray(self.shape) - 1)
        return np.asarray(inside if self.is_even else middles % np.asarray(self.sizes))


def over_grid(symbol: Symbol, grid: Grid, kernel_size: tuple[int, ...], *, rtol: float) -> Maximum:
    """Bracket the maximum over a grid; `turns` are fractions j / sizes."""
    count, most = math.prod(grid.shape), limit(symbol)
    is_small = math.prod(grid.sizes) <= limits.FULL_GRID
    if is_small:
        # a kernel dominated by few frequencies has its supremum in less than the grid costs
        trial, least = limits.WIDE_GRID_TRIAL if symbol.squares else (limits.GRID_TRIAL, 1)
        most = count // trial
        if least * first_count(kernel_size) > most:
            return _over_points(symbol, grid, rtol=rtol)
    torus = over_torus(symbol, kernel_size, rtol=rtol / 2, most=most)
    cost, ceiling = torus.bounds.cost, torus.bounds.upper
    if is_small and not torus.settles(ceiling, rtol / 2):
        return _over_points(symbol, grid, rtol=rtol).after(cost)
    best = _beside(torus.turns, symbol, grid, rtol=rtol / 8).with_upper(ceiling).after(cost)
    if best.settles(ceiling, rtol):
        return best
    boxes, best = _settled_boxes(
        symbol,
        grid,
        kernel_size,
        best,
        rtol=rtol,
        decides=partial(is_decided, rtol=rtol),
        settled=lambda found, bounds, _: found.settles(bounds, rtol),
    )
    found = max(float(np.max(part.bounds, initial=0.0)) for part in boxes)
    return best.with_upper(min(ceiling, found))


def _beside(turns: HostFloats, symbol: Symbol, grid: Grid, *, rtol: float) -> Maximum:
    """Look at the grid points beside a maximiser: the supremum is almost attained there."""
    points, sizes = grid.beside(turns), np.asarray(grid.sizes)
    unknown = Maximum.unknown(len(sizes))
    decides = is_decided(at_points, rtol)
    return evaluate(symbol, points, sizes, decides, unknown, rtol=rtol)[1]


def norms_on_grid(
    symbol: Symbol,
    sizes: tuple[int, ...],
    kernel_size: tuple[int, ...],
    *,
    ceiling: float,
    level: float,
    slack: float,
) -> tuple[HostFloats, int]:
    """Return upper bounds on the norm at the frequencies 2 pi j / sizes, and the evaluations spent.

    `ceiling` bounds the supremum M. Bounds below `level` are as crude as may be, and others miss
    the norm by about a fraction `slack` of what it is below M.
    """

    def settled(_: Maximum, bounds: HostFloats, w: float) -> HostBools:
        angle = np.arccos(np.minimum(bounds / ceiling, 1.0))
        return np.asarray((bounds <= level) | (w <= slack * angle))

    def decides(over: Cover) -> Fate:
        return lambda _, low, high: np.asarray(
            (over(high) <= level) | (high - low <= slack / 2 * (ceiling - high))
        )

    grid = Grid.circle(sizes, half=symbol.real)
    unknown = Maximum.unknown(len(sizes), upper=ceiling)
    boxes, spent = _settled_boxes(
        symbol, grid, kernel_size, unknown, rtol=0.0, decides=decides, settled=settled
    )
    values = np.full(grid.shape, ceiling)
    for part in boxes:
        values[part.points(values.shape)] = part.bounds.reshape(-1, *(1 for _ in sizes))
    if symbol.real:
        # F(-theta) = conj F(theta): the other half, mirrored in every axis
        whole = np.zeros(sizes)
        whole[: values.shape[0]] = values
        values = np.maximum(whole, whole[np.ix_(*((-np.arange(n)) % n for n in sizes))])
    return values, spent.bounds.cost


def _over_points(symbol: Symbol, grid: Grid, *, rtol: float) -> Maximum:
    """Evaluate every point of the grid, as sharply as it takes."""
    best, ceiling, sizes = Maximum.unknown(len(grid.sizes)), 0.0, np.asarray(grid.sizes)
    decides = is_decided(at_points, rtol)
    points = grid_points(map(np.arange, grid.shape))
    # a sparse sample first: with a good lower bound most blocks are finished after a step or two
    is_first = np.arange(len(points)) % max(1, len(points) // limits.GRID_SAMPLE) == 0
    for part in (points[is_first], points[~is_first]):
        upper, best = evaluate(symbol, part, sizes, decides, best, rtol=rtol)
        ceiling = max(ceiling, float(np.max(upper, initial=0.0)))
    return best.with_upper(ceiling)


@dataclasses.dataclass(frozen=True, eq=False)
class _Boxes:
    """Boxes of ``lengths`` grid points from ``starts`` on, and bounds on the norm in them."""

    starts: HostInts
    lengths: HostInts
    bounds: HostFloats

    @classmethod
    def cover(cls, shape: tuple[int, ...], lengths: HostInts, bound: float) -> _Boxes:
        """Cover a grid of a shape."""
        starts = grid_points(np.arange(0, n, m) for n, m in zip(shape, lengths, strict=True))
        return cls(starts, lengths, np.full(len(starts), bound))

    def chosen(self, which: HostBools) -> _Boxes:
        """Return some of the boxes."""
        return _Boxes(self.starts[which], self.lengths, self.bounds[which])

    def halved(self, shape: tuple[int, ...]) -> _Boxes:
        """Return the halves along every axis that lie in a grid of a shape."""
        moves = grid_points((0, m // 2) if m > 1 else (0,) for m in self.lengths.tolist())
        starts = (self.starts[:, None, :] + moves).reshape(-1, len(shape))
        halves = _Boxes(
            starts, np.maximum(self.lengths // 2, 1), np.repeat(self.bounds, len(moves))
        )
        return halves.chosen(np.all(starts < np.asarray(shape), axis=1))

    def reach(self, sizes: tuple[int, ...], kernel_size: tuple[int, ...]) -> float:
        """Return the largest distance w of a point of a box from its middle one."""
        return math.fsum(
            (k - 1) * math.pi * int(length // 2) / n
            for k, length, n in zip(kernel_size, self.lengths, sizes, strict=True)
        )

    def points(self, shape: tuple[int, ...]) -> tuple[HostInts, ...]:
        """Return the indices of all points per axis; beyond the last one of a grid, that again."""
        found = []
        for axis, (start, length) in enumerate(zip(self.starts.T, self.lengths, strict=True)):
            place = [len(start), *(1 for _ in shape)]
            place[1 + axis] = length
            index = np.minimum(start[:, None] + np.arange(length), shape[axis] - 1)
            found.append(index.reshape(place))
        return tuple(found)


def _settled_boxes(
    symbol: Symbol,
    grid: Grid,
    kernel_size: tuple[int, ...],
    best: Maximum,
    *,
    rtol: float,
    decides: Callable[[Cover], Fate],
    settled: Callable[[Maximum, HostFloats, float], HostBools],
) -> tuple[list[_Boxes], Maximum]:
    """Halve boxes of grid points until they are settled, or the budget is spent; cover the grid.

    `settled` is asked about bounds on boxes and their w, `decides` makes what decides how sharply a
    norm is needed; the upper bound of `best` is one on the supremum.
    """
    sizes, shape, ceiling = grid.sizes, grid.shape, best.bounds.upper
    pairs = zip(sizes, kernel_size, strict=True)
    lengths = np.asarray([_first_length(n, k, len(sizes)) for n, k in pairs])
    most = best.bounds.cost + limit(symbol)
    if math.prod(-(-n // int(m)) for n, m in zip(shape, lengths, strict=True)) > most:
        return [_Boxes.cover(shape, np.asarray(shape), ceiling)], best
    boxes, found = _Boxes.cover(shape, lengths, ceiling), []
    while len(boxes.bounds):
        w = boxes.reach(sizes, kernel_size)
        over, middles = _within(w, ceiling), grid.middles(boxes)
        upper, best = evaluate(symbol, middles, np.asarray(sizes), decides(over), best, rtol=rtol)
        boxes = dataclasses.replace(boxes, bounds=np.minimum(boxes.bounds, over(upper)))
        done, halves = settled(best, boxes.bounds, w), 2 ** np.count_nonzero(boxes.lengths > 1)
        if halves == 1 or best.bounds.cost + np.count_nonzero(~done) * halves > most:
            done = np.ones_like(done)
        found.append(boxes.chosen(done))
        boxes = boxes.chosen(~done).halved(shape)
    return found, best


def _first_length(n: int, k: int, axes: int) -> int:
    """Return a power of two: the points per axis of a box with w of about `FIRST_REACH` at most."""
    most = 2 * limits.FIRST_REACH * n / (axes * max(k - 1, 1) * math.pi)
    power = min(math.floor(math.log2(max(most, 1.0))), math.ceil(math.log2(n)))
    return 1 << power


def _within(w: float, supremum: float) -> Cover:
    """Bound the norm everywhere in a cell: M cos(max(arccos(||F(c)|| / M) - w, 0)) (Theorem 10)."""
    if w == 0.0:
        return lambda norm: np.minimum(norm, supremum)
    w = up(w, 16)
    if w >= 1.57:
        return lambda norm: np.full_like(norm, supremum)
    cosine, sine = float(angles.cosine(w)), float(angles.sine(w))

    def bound(norm: HostFloats) -> HostFloats:
        norm = np.minimum(norm, supremum)
        rest = np.sqrt((supremum - norm) * (supremum + norm))
        away = up(norm * cosine + rest * sine, 16)
        near = norm >= down(supremum * cosine, 16)
        return np.where(near, supremum, np.minimum(away, supremum))

    return bound
