"""Norms of a symbol at many frequencies, each as sharply as somebody needs it.

Cheap bounds go first: Frobenius norms, then one squaring after the other, in single precision where that pays.
Blocks are dropped as soon as their fate is decided, and what reaches the host is a few numbers per block and step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from gramnorm._arrays.limits import FACTORED_COLUMNS
from gramnorm._arrays.types import Array, HostBools, HostFloats, HostInts
from gramnorm._conv import factored
from gramnorm._conv.symbol import Symbol
from gramnorm._matrix.gram import GramChain
from gramnorm._rigour import sums
from gramnorm._rigour.model import down, up

MEMORY = 2**27
"""Bytes that the blocks of one batch may take; a few arrays of that size live at a time."""

WORK = 3e11
"""Floating-point operations after which a search stops splitting cells."""

EVALUATIONS = 2_000, 100_000
"""Evaluations that a search may always spend, and the most it may."""

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


def evaluate(
    symbol: Symbol,
    numerators: HostInts,
    denominators: HostInts,
    decides: Fate,
    best: Maximum,
) -> HostFloats:
    """Bound the norm at each frequency from above, as sharply as `decides` wants; raise the lower bound of `best`."""
    best.evaluations += len(numerators)
    if min(symbol.block_shape) >= FACTORED_COLUMNS and symbol.squares:
        at = symbol.squares, numerators, denominators
        return factored.norms(*at, decides, best.improve, rtol=best.rtol)
    upper = np.full(len(numerators) * symbol.blocks, np.inf)
    index = np.arange(len(numerators))
    # single precision decides the fate of most
    for version in symbol.narrow_first(len(numerators)):
        norms = _Norms(version, numerators[index], denominators)
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


def _by_frobenius(blocks: Array) -> tuple[HostFloats, HostFloats]:
    """Bracket norms by ||F||_F / sqrt(q) <= ||F|| <= ||F||_F: vectors are done with it."""
    low, high = sums.square(blocks)
    return down(np.sqrt(low / min(blocks.shape[1:]))), up(np.sqrt(high))


class _Norms:
    """Bounds on the norms of all blocks at some frequencies, sharpened for those that are not left."""

    def __init__(self, symbol: Symbol, numerators: HostInts, denominators: HostInts) -> None:
        self._error = symbol.error
        blocks = symbol.at(numerators, denominators)
        self._chain = GramChain(blocks)
        self.upper = np.full(len(numerators) * symbol.blocks, np.inf)
        self.rest = np.arange(self.upper.size)
        self._low = np.zeros(self.upper.size)
        self._first: tuple[HostFloats, HostFloats] | None = _by_frobenius(blocks)

    def advance(self) -> tuple[HostFloats, HostFloats]:
        """Return (lower, upper) bounds on the norms of the blocks that are left: Frobenius norms, then by squaring."""
        low, high = self._first or self._chain.advance()
        self._first = None
        self._low = down(np.maximum(low - self._error, 0.0))
        high = np.minimum(self.upper[self.rest], up(high + self._error))
        self.upper[self.rest] = high
        return self._low, high

    def leave(self, done: HostBools) -> None:
        """Drop blocks that are done, and those that more squarings would not sharpen."""
        upper = self.upper[self.rest]
        stalled = (upper - self._low) * 0.7 <= 2 * (self._chain.noise * upper + self._error)
        going = np.flatnonzero(~(done | stalled))
        self._chain.keep(going)
        self.rest = self.rest[going]


def limit(symbol: Symbol) -> int:
    """Return how many frequencies a search may evaluate."""
    p, q = max(symbol.block_shape), min(symbol.block_shape)
    # operations per frequency: the phases on the host, the symbol and about three Gram products
    count, axes = symbol.offsets.shape
    cost = 8.0 * float(symbol.blocks * p * q * (count + 3 * q + 100)) + 250.0 * count * axes
    return min(max(EVALUATIONS[0], int(WORK / cost)), EVALUATIONS[1])


def chunks(index: HostInts, symbol: Symbol) -> Iterator[HostInts]:
    """Cut `index` so that the blocks of a part fit in `MEMORY`."""
    size = symbol.blocks * math.prod(symbol.block_shape) + len(symbol.offsets)
    step = max(1, MEMORY // (16 * size))
    for start in range(0, len(index), step):
        yield index[start : start + step]
