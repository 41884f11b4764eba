"""Norms of a symbol at many frequencies, each as sharply as somebody needs it.

Cheap bounds go first: Frobenius norms, then one squaring after the other, in single precision where
that pays.  Blocks are dropped as soon as their fate is decided, and what reaches the host is a few
numbers per block and step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from gramnorm._arrays import limits, threads
from gramnorm._arrays.programs import compiles
from gramnorm._arrays.types import HostBools, HostFloats, HostInts
from gramnorm._conv import factored
from gramnorm._conv.symbol import Symbol
from gramnorm._matrix.gram import GramChain, GramChains
from gramnorm._results import Bounds
from gramnorm._rigour import sums
from gramnorm._rigour.model import down, up

Cover = Callable[[HostFloats], HostFloats]
"""Turns a bound on the norm at the centre of a cell into one over the cell."""


@dataclasses.dataclass(frozen=True, eq=False)
class Maximum:
    """Bounds on the largest norm of a symbol, and the turns and block that attain the lower one.

    The cost of the bounds is the number of frequencies evaluated.
    """

    bounds: Bounds[float]
    turns: HostFloats
    block: int

    @classmethod
    def unknown(cls, axes: int, *, upper: float = math.inf) -> Maximum:
        """Return what is known before the first evaluation; a norm is 0 at least anywhere."""
        return cls(Bounds(0.0, upper), np.zeros(axes), 0)

    def raised(self, lower: float, turns: HostFloats, block: int) -> Maximum:
        """Return the maximum with a norm of at least `lower` taken into account."""
        if lower <= self.bounds.lower:
            return self
        return Maximum(dataclasses.replace(self.bounds, lower=lower), turns, block)

    def with_upper(self, upper: float) -> Maximum:
        """Return the maximum with another upper bound."""
        return dataclasses.replace(self, bounds=dataclasses.replace(self.bounds, upper=upper))

    def after(self, evaluations: int) -> Maximum:
        """Return the maximum at the cost of so many evaluations more."""
        cost = self.bounds.cost + evaluations
        return dataclasses.replace(self, bounds=dataclasses.replace(self.bounds, cost=cost))

    def settles(self, upper: HostFloats | float, rtol: float) -> HostBools:
        """Say which upper bounds leave nothing to look for."""
        return np.asarray(upper <= (1 + rtol) * self.bounds.lower)


Fate = Callable[[Maximum, HostFloats, HostFloats], HostBools]
"""Tells from the maximum so far which norms with (lower, upper) bounds need not be sharper."""


def at_points(norm: HostFloats) -> HostFloats:
    """Bound the norm over a cell that is a single point."""
    return norm


def is_decided(over: Cover, rtol: float) -> Fate:
    """Return what tells which cells are finished, or certain to be split."""
    return lambda best, low, high: (
        best.settles(over(high), rtol) | ~best.settles(over(low), 2 * rtol)
    )


def evaluate(
    symbol: Symbol,
    numerators: HostInts,
    denominators: HostInts,
    decides: Fate,
    best: Maximum,
    *,
    rtol: float,
) -> tuple[HostFloats, Maximum]:
    """Bound the norm at each frequency from above, as sharply as `decides` wants.

    Returned with the bounds is `best` with all that was seen on the way.
    """
    if min(symbol.block_shape) >= limits.FACTORED_COLUMNS and symbol.squares:
        upper, best = _evaluate_wide(symbol, numerators, denominators, decides, best, rtol=rtol)
        return upper, best.after(len(numerators))
    upper = np.full(len(numerators), np.inf)
    for part in chunks(np.arange(len(numerators)), symbol):
        upper[part], best = _evaluate_batch(
            symbol, numerators[part], denominators, decides, best, rtol=rtol
        )
    return upper, best.after(len(numerators))


def _evaluate_wide(
    symbol: Symbol,
    numerators: HostInts,
    denominators: HostInts,
    decides: Fate,
    best: Maximum,
    *,
    rtol: float,
) -> tuple[HostFloats, Maximum]:
    """Do what `evaluate` does by a factorisation for each frequency."""

    def seen(lower: float, turns: HostFloats, block: int) -> None:
        nonlocal best
        best = best.raised(lower, turns, block)

    def fate(low: HostFloats, high: HostFloats) -> HostBools:
        return decides(best, low, high)

    at = symbol.squares, numerators, denominators
    return factored.norms(*at, fate, seen, rtol=rtol), best


def _evaluate_batch(
    symbol: Symbol,
    numerators: HostInts,
    denominators: HostInts,
    decides: Fate,
    best: Maximum,
    *,
    rtol: float,
) -> tuple[HostFloats, Maximum]:
    """Do what `evaluate` does for as many frequencies as fit in memory."""
    upper = np.full((len(numerators), symbol.blocks), np.inf)
    index = np.arange(len(numerators))
    # single precision decides the fate of most
    for version in symbol.narrow_first(len(numerators)):
        norms = _SharpenedNorms(version, numerators[index], denominators)
        undecided = np.ones(norms.rest.size, dtype=np.bool_)
        while norms.rest.size:
            low, high = norms.advance()
            peak = int(np.argmax(low))
            where, block = divmod(int(norms.rest[peak]), symbol.blocks)
            # first of all, since the fate of the others hangs on it
            best = best.raised(float(low[peak]), numerators[index[where]] / denominators, block)
            done = decides(best, low, high)
            undecided[norms.rest[done]] = False
            norms.leave(done | (high <= (1 + rtol / 8) * low))
        upper[index] = np.minimum(upper[index], norms.upper.reshape(-1, symbol.blocks))
        index = index[undecided.reshape(-1, symbol.blocks).any(axis=1)]
        if not index.size:
            break
    return np.asarray(upper.max(axis=1)), best


class _SharpenedNorms:
    """Bounds on the norms of all blocks at some frequencies, sharpened for those that are left."""

    def __init__(self, symbol: Symbol, numerators: HostInts, denominators: HostInts) -> None:
        self._error = symbol.error

        def begun(part: slice) -> tuple[GramChain, tuple[HostFloats, HostFloats]]:
            blocks = symbol.at(numerators[part], denominators)
            low, high = sums.square(blocks)
            count = len(numerators[part]) * symbol.blocks
            return GramChain(blocks, np.arange(count)), (low[:count], high[:count])

        each = symbol.operations
        parts = threads.parts(len(numerators), each, like=symbol.rows)
        found = threads.shared_if_worth(begun, parts, len(numerators) * each)
        self._chain = GramChains([chain for chain, _ in found])
        low, high = np.concatenate([squares for _, squares in found], axis=1)
        # ||F||_F / sqrt(q) <= ||F|| <= ||F||_F: vectors are done with it
        self._bracket = down(np.sqrt(low / min(symbol.block_shape))), up(np.sqrt(high))
        # what compiles is to meet the products with the first values
        self._is_first = not compiles(symbol.rows)
        self.upper = np.full(len(high), np.inf)
        self.rest = np.arange(len(high))

    def advance(self) -> tuple[HostFloats, HostFloats]:
        """Return (lower, upper) bounds for the blocks left: Frobenius norms, then by squaring."""
        low, high = self._bracket
        if not self._is_first:
            found = self._chain.advance()
            low, high = found.lower, found.upper
        self._is_first = False
        high = np.minimum(self.upper[self.rest], up(high + self._error))
        self._bracket = down(np.maximum(low - self._error, 0.0)), high
        self.upper[self.rest] = high
        return self._bracket

    def leave(self, done: HostBools) -> None:
        """Drop blocks that are done, and those that more squarings would not sharpen."""
        low, high = self._bracket
        # each squaring halves the logarithm of the gap at least, down to what rounding leaves
        stalled = (high - low) * 0.7 <= 2 * (self._chain.noise * high + self._error)
        going = np.flatnonzero(~(done | stalled))
        self._chain.keep(going)
        self.rest = self.rest[going]


def limit(symbol: Symbol) -> int:
    """Return how many frequencies a search may evaluate."""
    least, most = limits.SEARCH_EVALUATIONS
    return min(max(least, int(limits.SEARCH_OPERATIONS / symbol.operations)), most)


def chunks(index: HostInts, symbol: Symbol) -> Iterator[HostInts]:
    """Cut `index` into the batches of a symbol."""
    for start in range(0, len(index), symbol.batch):
        yield index[start : start + symbol.batch]
