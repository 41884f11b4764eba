"""The certified maximum of the norm of a symbol over frequencies.

Over a box of frequencies with centre c and half widths h, a maximiser of the norm inside the box
forces (docs/theory.md, Theorem 6)

    sup ||F|| <= ||F(c)|| / cos(w),   w = sum_a (k_a - 1) / 2 * h_a < pi / 2,

for k_a taps along axis a.  So boxes whose right side stays below (1 + rtol) times the best value
found are finished, the others are split, and the cost depends on the kernel, not on the image.
On the grid of a circular convolution the boxes are points: w = 0.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from gramnorm import _ascent
from gramnorm._cells import Cells, first_count
from gramnorm._gram import GramChain
from gramnorm._symbol import Symbol, polyphase
from gramnorm._typing import Array, HostBools, HostFloats, HostInts, Namespace

MEMORY = 2**27
"""Bytes that the blocks of one batch may take; a few arrays of that size live at a time."""

WORK = 1e12
"""Floating-point operations after which a search stops splitting boxes."""

EVALUATIONS = 2_000, 100_000
"""Evaluations that a search may always spend, and the most it may."""

MANY = 48
"""Open cells from which on a local ascent is worth its cost."""

FULL_GRID = 2_500
"""Frequencies of a circle up to which all of them are evaluated at once."""


Bound = Callable[[HostFloats], HostFloats]
"""Turns a bound on the norm at the centre of a cell into one over the cell."""

Fate = Callable[[HostFloats, HostFloats], HostBools]
"""Tells from (lower, upper) bounds on norms which of them need not be sharper."""


@dataclasses.dataclass
class Maximum:
    """The state of a search: a bracket of the maximum and where its lower end is attained."""

    rtol: float
    lower: float = 0.0
    upper: float = 0.0
    turns: HostFloats | None = None
    block: int = 0
    evaluations: int = 0

    def improve(self, lower: float, turns: HostFloats, block: int) -> None:
        """Raise the lower bound."""
        if lower > self.lower or self.turns is None:
            self.lower, self.turns, self.block = max(lower, self.lower), turns, block

    def is_finished(self, upper: HostFloats) -> HostBools:
        """Say which upper bounds leave nothing to look for."""
        return np.asarray(upper <= (1 + self.rtol) * self.lower)

    def decides_points(self, _: HostFloats, high: HostFloats) -> HostBools:
        """Say which points are finished."""
        return self.is_finished(high)

    def decides_cells(self, over: Bound) -> Fate:
        """Return what tells which cells are finished, or certain to be split: none needs a sharper norm."""
        return lambda low, high: np.asarray(
            self.is_finished(over(high)) | (over(low) > (1 + 2 * self.rtol) * self.lower)
        )


def supremum(
    taps: Array,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    *,
    rtol: float,
    xp: Namespace,
) -> tuple[Symbol, Maximum]:
    """Return the symbol of a strided correlation with taps (T, groups, c_out, c_in), and its supremum.

    With g = gcd(s, d) stride s and dilation d have the norm of stride s / g and no dilation; `turns` are those of
    the symbol returned.
    """
    plain = tuple(s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True))
    symbol = Symbol(*polyphase(taps, kernel_size, plain, xp=xp), xp=xp)
    extent = tuple(-(-k // s) for k, s in zip(kernel_size, plain, strict=True))
    return symbol, over_torus(symbol, extent, rtol=rtol, xp=xp)


def grid_shape(sizes: tuple[int, ...], *, half: bool) -> tuple[int, ...]:
    """Return how many frequencies per axis represent a circle's; F(-theta) is conj F(theta) if `half`."""
    return (sizes[0] // 2 + 1, *sizes[1:]) if half else sizes


def over_circle(
    symbol: Symbol,
    sizes: tuple[int, ...],
    kernel_size: tuple[int, ...],
    *,
    rtol: float,
    xp: Namespace,
) -> Maximum:
    """Bracket the maximum over the frequencies 2 pi j / sizes; `turns` are fractions j / sizes."""
    if math.prod(sizes) <= FULL_GRID:
        return _over_points(symbol, sizes, rtol=rtol, xp=xp)
    # on a fine grid the supremum is attained almost: a point beside it may settle the matter
    torus = over_torus(symbol, kernel_size, rtol=rtol / 2, xp=xp)
    assert torus.turns is not None
    best = Maximum(rtol / 8)
    corners = [
        {math.floor(t * n) % n, math.ceil(t * n) % n}
        for t, n in zip(torus.turns, sizes, strict=True)
    ]
    beside = np.asarray(list(itertools.product(*corners)), dtype=np.int64)
    _evaluate(symbol, beside, np.asarray(sizes), best.decides_points, best, xp=xp)
    best.rtol, best.upper = rtol, torus.upper
    best.evaluations += torus.evaluations
    if best.is_finished(np.asarray(best.upper)):
        return best
    found = 0.0
    for _, _, bounds in _boxes_of_points(
        symbol, sizes, kernel_size, torus.upper, best, lambda b, _: best.is_finished(b), None, xp=xp
    ):
        found = max(found, float(np.max(bounds)))
    best.upper = min(best.upper, found)
    return best


def _over_points(symbol: Symbol, sizes: tuple[int, ...], *, rtol: float, xp: Namespace) -> Maximum:
    """Evaluate every point of the grid, as sharply as it takes."""
    best = Maximum(rtol)
    shape = grid_shape(sizes, half=symbol.real)
    total = math.prod(shape)
    # a sparse sample first: with a good lower bound most blocks are finished after a step or two
    sample = np.arange(0, total, max(1, total // 64))
    rest = np.setdiff1d(np.arange(total), sample, assume_unique=True)
    for part in (sample, rest):
        for chunk in _chunks(part, symbol):
            points = np.stack(np.unravel_index(chunk, shape), axis=-1).astype(np.int64)
            upper = _evaluate(symbol, points, np.asarray(sizes), best.decides_points, best, xp=xp)
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
    *,
    xp: Namespace,
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
    starts = [np.arange(0, n, length) for n, length in zip(shape, lengths, strict=True)]
    boxes = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, len(sizes))
    bounds = np.full(len(boxes), ceiling)
    limit = best.evaluations + _limit(symbol)
    while len(boxes):
        middles = (boxes + lengths // 2) % np.asarray(sizes)
        reach = math.fsum(
            (k - 1) * math.pi * int(length // 2) / n
            for k, length, n in zip(kernel_size, lengths, sizes, strict=True)
        )
        over = _within(reach, ceiling)
        decides = fate(over) if fate else best.decides_cells(over) if reach else best.decides_points
        for chunk in _chunks(np.arange(len(boxes)), symbol):
            upper = over(_evaluate(symbol, middles[chunk], np.asarray(sizes), decides, best, xp=xp))
            bounds[chunk] = np.minimum(bounds[chunk], upper)
        done = settled(bounds, reach)
        split = lengths > 1
        moves = np.asarray(
            list(itertools.product(*((0, m // 2) if m > 1 else (0,) for m in lengths.tolist())))
        )
        if not np.any(split) or best.evaluations + np.sum(~done) * len(moves) > limit:
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


def norms_on_grid(
    symbol: Symbol,
    sizes: tuple[int, ...],
    kernel_size: tuple[int, ...],
    *,
    ceiling: float,
    level: float,
    slack: float,
    xp: Namespace,
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
        symbol, sizes, kernel_size, ceiling, spent, settled, fate, xp=xp
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


def over_torus(
    symbol: Symbol, kernel_size: tuple[int, ...], *, rtol: float, xp: Namespace
) -> Maximum:
    """Bracket the supremum over all frequencies."""
    best = Maximum(rtol)
    if max(kernel_size) > 1:
        ends = np.asarray(
            list(itertools.product(*((0, 1) if k > 1 else (0,) for k in kernel_size)))
        )
        _evaluate(symbol, ends, np.full(len(kernel_size), 2), best.decides_points, best, xp=xp)
    if first_count(kernel_size) > EVALUATIONS[1]:
        best.upper = min(symbol.flat_bound(), symbol.sum_bound())
        return best
    cells = Cells.cover(kernel_size, half=symbol.real)
    bounds = np.full(len(cells.centres), np.inf)  # of the cells, from their ancestors
    limit, ceiling = _limit(symbol), math.inf
    climbed = 0.0
    while len(bounds):
        over = _around(cells.cosine)
        for chunk in _chunks(np.arange(len(bounds)), symbol):
            centres = cells.centres[chunk]
            decides = best.decides_cells(over) if cells.cosine < 1 else best.decides_points
            upper = _evaluate(symbol, centres, cells.denominators, decides, best, xp=xp)
            bounds[chunk] = np.minimum(bounds[chunk], over(upper))
        if np.count_nonzero(~best.is_finished(bounds)) > MANY:
            climbed = _climb(symbol, best, climbed, xp=xp)
        open_ = ~best.is_finished(bounds)
        best.upper = max(best.upper, float(np.max(bounds[~open_], initial=0.0)))
        if ceiling == math.inf and np.mean(open_) > 0.5 and best.evaluations > limit // 100:
            ceiling = symbol.flat_bound()  # so many open cells: the symbol may be flat
            if best.is_finished(np.asarray(ceiling)):
                best.upper = ceiling
                break
        spent = best.evaluations + np.count_nonzero(open_) * cells.children > limit
        # cells this small are open because of rounding, which splitting does not mend
        noise = 4 * symbol.error / best.lower if best.lower > 0 else 1.0
        futile = cells.cosine * (1 + max(rtol / 16, noise)) >= 1
        if spent or futile:
            best.upper = max(best.upper, float(np.max(bounds)))
            break
        cells, bounds = cells.split(open_), np.repeat(bounds[open_], cells.children)
    best.upper = min(best.upper, ceiling)
    return best


def _climb(symbol: Symbol, best: Maximum, climbed: float, *, xp: Namespace) -> float:
    """Improve the lower bound by a local ascent, unless it is what the last one found; return the new one."""
    if best.turns is not None and best.lower > climbed:
        turns = _ascent.climb(symbol.host_taps(best.block), symbol.offsets, best.turns)
        fine = np.full(len(turns), 2**20)
        points = np.round(turns * fine).astype(np.int64)[None, :] % fine
        _evaluate(symbol, points, fine, best.decides_points, best, xp=xp)
    return best.lower


def _evaluate(
    symbol: Symbol,
    numerators: HostInts,
    denominators: HostInts,
    decides: Fate,
    best: Maximum,
    *,
    xp: Namespace,
) -> HostFloats:
    """Bound the norm at each frequency from above, as sharply as `decides` wants; raise the lower bound of `best`."""
    best.evaluations += len(numerators)
    upper = np.full(len(numerators) * symbol.blocks, np.inf)
    index = np.arange(len(numerators))
    # single precision decides the fate of most
    for version in symbol.narrow_first(len(numerators)):
        norms = _Norms(version, numerators[index], denominators, xp=xp)
        undecided = np.ones(norms.rest.size, dtype=np.bool_)
        while norms.rest.size:
            low, high = norms.advance()
            peak = int(np.argmax(low))
            where, block = divmod(int(norms.rest[peak]), symbol.blocks)
            best.improve(float(low[peak]), numerators[index[where]] / denominators, block)
            done = decides(low, high)
            undecided[norms.rest[done]] = False
            norms.leave(done | (high <= (1 + best.rtol / 8) * low))
        places = (index[:, None] * symbol.blocks + np.arange(symbol.blocks)).reshape(-1)
        upper[places] = np.minimum(upper[places], norms.upper)
        index = index[undecided.reshape(-1, symbol.blocks).any(axis=1)]
        if not index.size:
            break
    return np.asarray(upper.reshape(-1, symbol.blocks).max(axis=1))


class _Norms:
    """Bounds on the norms of all blocks at some frequencies, sharpened for those that are not left."""

    def __init__(
        self, symbol: Symbol, numerators: HostInts, denominators: HostInts, *, xp: Namespace
    ) -> None:
        self._error = symbol.error
        self._chain = GramChain(symbol.at(numerators, denominators), xp=xp)
        self.upper = np.full(len(numerators) * symbol.blocks, np.inf)
        self.rest = np.arange(self.upper.size)
        self._low = np.zeros(self.upper.size)

    def advance(self) -> tuple[HostFloats, HostFloats]:
        """Square the blocks that are left; return (lower, upper) bounds on their norms."""
        low, high = self._chain.advance()
        self._low = np.maximum(low - self._error, 0.0) * (1 - 2.0**-50)
        high = np.minimum(self.upper[self.rest], (high + self._error) * (1 + 2.0**-50))
        self.upper[self.rest] = high
        return self._low, high

    def leave(self, done: HostBools) -> None:
        """Drop blocks that are done, and those that more squarings would not sharpen."""
        upper = self.upper[self.rest]
        stalled = (upper - self._low) * 0.7 <= 2 * (self._chain.noise * upper + self._error)
        going = np.flatnonzero(~(done | stalled))
        self._chain.keep(going)
        self.rest = self.rest[going]


def _around(cosine: float) -> Bound:
    """Bound the supremum if it is attained in the cell: ||F(c)|| / cos w (Theorem 6)."""
    if cosine == 1.0:
        return lambda norm: norm
    if cosine <= 0:
        return lambda norm: np.full_like(norm, np.inf)
    return lambda norm: norm / cosine * (1 + 2.0**-50)


def _within(w: float, supremum: float) -> Bound:
    """Bound the norm everywhere in a cell: M cos(max(arccos(||F(c)|| / M) - w, 0)) (Theorem 6)."""
    if w == 0.0:
        return lambda norm: np.minimum(norm, supremum)
    w *= 1 + 2.0**-48
    if w >= 1.57:
        return lambda norm: np.full_like(norm, supremum)
    cosine, sine = math.cos(w), math.sin(w)

    def bound(norm: HostFloats) -> HostFloats:
        norm = np.minimum(norm, supremum)
        # the last term covers the rounding of the difference, near 0 in particular
        rest = np.sqrt((supremum - norm) * (supremum + norm) + 2.0**-48 * supremum**2)
        away = (norm * cosine + rest * sine) * (1 + 2.0**-48)
        near = norm >= supremum * cosine * (1 - 2.0**-48)
        return np.where(near, supremum, np.minimum(away, supremum))

    return bound


def _limit(symbol: Symbol) -> int:
    """Return how many frequencies a search may evaluate."""
    p, q = max(symbol.block_shape), min(symbol.block_shape)
    # operations per frequency: the symbol and about three Gram products
    cost = 8.0 * float(symbol.blocks * p * q * (len(symbol.offsets) + 3 * q + 100))
    return min(max(EVALUATIONS[0], int(WORK / cost)), EVALUATIONS[1])


def _chunks(index: HostInts, symbol: Symbol) -> Iterator[HostInts]:
    """Cut `index` so that the blocks of a part fit in `MEMORY`."""
    size = symbol.blocks * math.prod(symbol.block_shape) + len(symbol.offsets)
    step = max(1, MEMORY // (16 * size))
    for start in range(0, len(index), step):
        yield index[start : start + step]
