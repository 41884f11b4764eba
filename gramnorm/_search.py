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
from collections.abc import Iterator

import numpy as np

from gramnorm._gram import GramChain
from gramnorm._symbol import Symbol
from gramnorm._typing import HostBools, HostFloats, HostInts, Namespace

MEMORY = 2**27
"""Bytes that the blocks of one batch may take; a few arrays of that size live at a time."""

WORK = 1e12
"""Floating-point operations after which a search stops splitting boxes."""

EVALUATIONS = 2_000, 100_000
"""Evaluations that a search may always spend, and the most it may."""

FULL_GRID = 2_500
"""Frequencies of a circle up to which all of them are evaluated at once."""


@dataclasses.dataclass
class Maximum:
    """The state of a search: a bracket of the maximum and where its lower end is attained."""

    rtol: float
    lower: float = 0.0
    upper: float = 0.0
    turns: HostFloats | None = None
    evaluations: int = 0

    def improve(self, lower: float, turns: HostFloats) -> None:
        """Raise the lower bound."""
        if lower > self.lower or self.turns is None:
            self.lower, self.turns = max(lower, self.lower), turns

    def is_finished(self, upper: HostFloats) -> HostBools:
        """Say which upper bounds leave nothing to look for."""
        return np.asarray(upper <= (1 + self.rtol) * self.lower)


def grid_shape(sizes: tuple[int, ...], *, half: bool) -> tuple[int, ...]:
    """Return how many frequencies per axis represent a circle's; F(-theta) is conj F(theta) if `half`."""
    return (sizes[0] // 2 + 1, *sizes[1:]) if half else sizes


def over_grid(symbol: Symbol, sizes: tuple[int, ...], *, rtol: float, xp: Namespace) -> Maximum:
    """Bracket the maximum over the frequencies 2 pi j / sizes."""
    best = Maximum(rtol)
    denominators = np.asarray(sizes, dtype=np.int64)
    shape = grid_shape(sizes, half=symbol.real)
    total = math.prod(shape)
    # a sparse sample first: with a good lower bound most blocks are finished after a step or two
    sample = np.arange(0, total, max(1, total // 64))
    rest = np.setdiff1d(np.arange(total), sample, assume_unique=True)
    for part in (sample, rest):
        for chunk in _chunks(part, symbol):
            numerators = np.stack(np.unravel_index(chunk, shape), axis=-1).astype(np.int64)
            upper = _evaluate(symbol, numerators, denominators, 1.0, best, xp=xp)
            best.upper = max(best.upper, float(np.max(upper)))
    return best


def beside(
    symbol: Symbol, turns: HostFloats, sizes: tuple[int, ...], *, rtol: float, xp: Namespace
) -> Maximum:
    """Return a lower bound from the points of a grid that surround a frequency."""
    best = Maximum(rtol / 8, upper=math.inf)
    corners = [
        {math.floor(t * n) % n, math.ceil(t * n) % n} for t, n in zip(turns, sizes, strict=True)
    ]
    points = np.asarray(list(itertools.product(*corners)), dtype=np.int64)
    _evaluate(symbol, points, np.asarray(sizes, dtype=np.int64), 1.0, best, xp=xp)
    best.rtol = rtol
    return best


def over_torus(
    symbol: Symbol, kernel_size: tuple[int, ...], *, rtol: float, xp: Namespace
) -> Maximum:
    """Bracket the supremum over all frequencies."""
    best = Maximum(rtol)
    ends = np.asarray(list(itertools.product(*((0, 1) if k > 1 else (0,) for k in kernel_size))))
    _evaluate(symbol, ends, np.full(len(kernel_size), 2), 1.0, best, xp=xp)  # lower bounds only

    if math.prod(_counts(kernel_size)) > 2 * EVALUATIONS[1]:
        best.upper = min(symbol.flat_bound(), symbol.sum_bound())
        return best
    boxes, denominators = _first_boxes(kernel_size, half=symbol.real)
    bounds = np.full(len(boxes), np.inf)  # of the boxes, from their ancestors
    limit = min(max(EVALUATIONS[0], int(WORK / _cost(symbol))), EVALUATIONS[1])
    ceiling = math.inf
    split = [k > 1 for k in kernel_size]
    while len(boxes):
        cosine = _cosine(kernel_size, denominators)
        for chunk in _chunks(np.arange(len(boxes)), symbol):
            upper = _evaluate(symbol, boxes[chunk], denominators, cosine, best, xp=xp)
            bounds[chunk] = np.minimum(bounds[chunk], upper)
        open_ = ~best.is_finished(bounds)
        if np.any(~open_):
            best.upper = max(best.upper, float(np.max(bounds[~open_])))
        if ceiling == math.inf and np.mean(open_) > 0.5 and best.evaluations > limit // 100:
            ceiling = symbol.flat_bound()  # so many open boxes: the symbol may be flat
            if best.is_finished(np.asarray(ceiling)):
                best.upper = ceiling
                break
        boxes, bounds = boxes[open_], bounds[open_]
        spent = best.evaluations + len(boxes) * 2 ** sum(split) > limit
        # boxes this small are open because of rounding, which splitting does not mend
        noise = 4 * symbol.error / best.lower if best.lower > 0 else 1.0
        futile = cosine * (1 + max(rtol / 16, noise)) >= 1
        if len(boxes) and (spent or futile):
            best.upper = max(best.upper, float(np.max(bounds)))
            break
        boxes, bounds = _split(boxes, bounds, split)
        denominators = np.where(split, 2 * denominators, denominators)
    best.upper = min(best.upper, ceiling)
    return best


def _counts(kernel_size: tuple[int, ...]) -> list[int]:
    """Return how many boxes per axis make w at most about 0.9."""
    axes = sum(k > 1 for k in kernel_size)
    return [2 * math.ceil(axes * (k - 1) * math.pi / 3.6) if k > 1 else 1 for k in kernel_size]


def _first_boxes(kernel_size: tuple[int, ...], *, half: bool) -> tuple[HostInts, HostInts]:
    """Cover the torus with boxes for which w is at most about 0.9; its half if `half`.

    A box is its centre, an odd numerator over a denominator (in turns), and reaches to the even
    numerators beside it.
    """
    counts = _counts(kernel_size)
    denominators = np.asarray([2 * m if m > 1 else 1 for m in counts], dtype=np.int64)
    axes = [np.arange(1, 2 * m, 2) if m > 1 else np.zeros(1, dtype=np.int64) for m in counts]
    first = next((a for a, m in enumerate(counts) if m > 1), None)
    if half and first is not None:
        axes[first] = axes[first][: counts[first] // 2]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return centres.reshape(-1, len(counts)), denominators


def _split(boxes: HostInts, bounds: HostFloats, axes: list[bool]) -> tuple[HostInts, HostFloats]:
    """Halve every box along the given axes; centres are then counted in half the unit."""
    moves = np.asarray(list(itertools.product(*((-1, 1) if a else (0,) for a in axes))))
    centres = boxes * np.where(axes, 2, 1)
    children = (centres[:, None, :] + moves[None, :, :]).reshape(-1, boxes.shape[1])
    return children, np.repeat(bounds, len(moves))


def _cosine(kernel_size: tuple[int, ...], denominators: HostInts) -> float:
    """Return cos(w) for boxes that reach one unit around their centre, rounded down."""
    w = sum((k - 1) * math.pi / int(n) for k, n in zip(kernel_size, denominators, strict=True))
    if w == 0.0:
        return 1.0
    return math.cos(w) - 2e-15 if w < 1.57 else 0.0  # w and cos err by a few units of 2^-52


def _evaluate(
    symbol: Symbol,
    numerators: HostInts,
    denominators: HostInts,
    cosine: float,
    best: Maximum,
    *,
    xp: Namespace,
) -> HostFloats:
    """Bound the norms over boxes from above, as sharply as it takes to decide their fate.

    Returns one bound per box, already divided by `cosine`; raises the lower bound of `best`.
    """
    count = len(numerators)
    best.evaluations += count
    chain = GramChain(symbol.at(numerators, denominators), xp=xp)
    upper = np.full(count * symbol.blocks, np.inf)
    rest = np.arange(upper.size)
    while rest.size:
        low, high = chain.advance()
        low = np.maximum(low - symbol.error, 0.0) * (1 - 2.0**-50)
        upper[rest] = np.minimum(upper[rest], (high + symbol.error) * (1 + 2.0**-50))
        peak = int(np.argmax(low))
        best.improve(float(low[peak]), numerators[rest[peak] // symbol.blocks] / denominators)
        bound = _over_box(upper[rest], cosine)
        sharp = upper[rest] <= (1 + best.rtol / 8) * low
        # a box that is certain to be split needs no sharper norm
        hopeless = low > (1 + 2 * best.rtol) * best.lower * cosine if cosine < 1 else False
        stalled = (upper[rest] - low) * 0.7 <= 2 * (chain.noise * upper[rest] + symbol.error)
        going = np.flatnonzero(~(best.is_finished(bound) | sharp | hopeless | stalled))
        chain.keep(going)
        rest = rest[going]
    return np.asarray(_over_box(upper, cosine).reshape(count, symbol.blocks).max(axis=1))


def _over_box(upper: HostFloats, cosine: float) -> HostFloats:
    if cosine == 1.0:
        return upper
    return upper / cosine * (1 + 2.0**-50) if cosine > 0 else np.full_like(upper, np.inf)


def _cost(symbol: Symbol) -> float:
    """Operations per frequency: the symbol and about three Gram products."""
    p, q = max(symbol.block_shape), min(symbol.block_shape)
    return 8.0 * float(symbol.blocks * p * q * (len(symbol.offsets) + 3 * q + 100))


def _chunks(index: HostInts, symbol: Symbol) -> Iterator[HostInts]:
    """Cut `index` so that the blocks of a part fit in `MEMORY`."""
    size = symbol.blocks * math.prod(symbol.block_shape) + len(symbol.offsets)
    step = max(1, MEMORY // (16 * size))
    for start in range(0, len(index), step):
        yield index[start : start + step]
