"""The certified supremum of the norm of a wide symbol, by one factorisation for each cell.

Estimates at samples and a local ascent say where the lower bound L is and how large a cell may be:
Theorem 10 (docs/theory.md) closes a cell of half width w with centre c as soon as

    ||F(c)|| <= (1 + rtol) L cos(w),    that is w <= arccos(||F(c)|| / ((1 + rtol) L)).

So the torus is covered by cells about as large as that (`cover`), one that is too large is cut into
as many parts as its estimate asks for, and one that is small enough is closed by one factorisation
of tau^2 I - G(c) (Lemma 23).  Only this, and the quotient that is L, proves anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from gramnorm._arrays import limits, threads
from gramnorm._arrays.types import HostBools, HostFloats, HostInts
from gramnorm._conv import cover
from gramnorm._conv.cells import diamond_axes
from gramnorm._conv.estimates import HostVectors
from gramnorm._conv.sampling import Maximum
from gramnorm._conv.squared import FINEST, Squared, snapped
from gramnorm._rigour import angles
from gramnorm._rigour.model import down, up

FIRST_STEPS, CHILD_STEPS, MORE_STEPS = 8, 4, 12
"""Lanczos steps at samples, at centres, and where norms must be known sharply: at samples where they
are high and where a factorisation failed, unless the tolerance is loose."""

HIGH = 0.9
"""Share of the largest estimate from which on a sample is high: cells are small there."""

UNSURE = 1.15
"""Times w up to which a norm that was interpolated is estimated before it is used."""

DOUBTFUL = 1.03
"""Times w up to which what is needed is estimated once more before a factorisation is tried."""


def supremum(
    squares: Sequence[Squared],
    kernel_size: tuple[int, ...],
    *,
    half: bool,
    rtol: float,
    most: float,
    is_flat: Callable[[float], bool],
) -> Maximum:
    """Bracket the supremum over all frequencies and blocks, crudely where that takes too long.

    Parameters
    ----------
    squares : sequence of Squared
        The blocks; their taps have positions from 0 to ``kernel_size - 1``.
    half : bool
        Whether frequencies of opposite signs have the same norms.
    most : float
        Factorisations that are worth it.
    is_flat : callable
        Asked, for a lower bound, whether the norm is hardly lower anywhere: there are better ways.
    """
    threads.keep_arrays()
    return _Search(squares, kernel_size, half, rtol).run(most, is_flat)


@dataclasses.dataclass(frozen=True)
class _Open:
    """Open cells of one block: centres in turns, sizes relative to the smallest, estimates."""

    centres: HostFloats
    sizes: HostFloats
    norms: HostFloats
    vectors: HostVectors

    def __len__(self) -> int:
        return len(self.sizes)

    def take(self, chosen: HostBools | HostInts) -> _Open:
        parts = (getattr(self, field.name)[chosen] for field in dataclasses.fields(self))
        return _Open(*parts)

    def again(self, square: Squared, chosen: HostInts, steps: int) -> _Open:
        """Return the cells with estimates from their vectors at the chosen ones."""
        if not chosen.size:
            return self
        norms, vectors = self.norms.copy(), self.vectors.copy()
        found = square.estimator.at(self.centres[chosen], steps, vectors[chosen])
        norms[chosen], vectors[chosen] = found
        return dataclasses.replace(self, norms=norms, vectors=vectors)


class _Search:
    def __init__(
        self, squares: Sequence[Squared], kernel_size: tuple[int, ...], half: bool, rtol: float
    ) -> None:
        self._squares, self._rtol = squares, rtol
        # interpolated norms are right enough, and a smaller cell costs less than an estimate
        self._is_loose = rtol >= limits.WIDE_LOOSE
        self._more = CHILD_STEPS if self._is_loose else MORE_STEPS
        self._samples = cover.samples(kernel_size, half=half)
        self._lattice = cover.lattice(kernel_size, half=half)
        shape = np.asarray(self._lattice.shape)
        self._reach = np.where(shape > 1, 1 / shape, 0.0)  # of the smallest cells, in turns
        self._rates = (np.asarray(kernel_size) - 1) * math.pi  # of the angle w, per turn
        self._diamond = diamond_axes(kernel_size)
        self._best, self._upper, self._cost = Maximum.unknown(len(kernel_size)), 0.0, 0
        self._cuts = 0

    def run(self, most: float, is_flat: Callable[[float], bool]) -> Maximum:
        """Return the bracket.

        From above it is crude if it takes more than `most` factorisations.
        """
        turns = snapped(self._samples.turns)
        first = [self._sampled(square, turns) for square in self._squares]
        order = np.argsort([-np.max(cells.norms) for cells in first])
        for block in order:
            if block == order[0] or np.max(first[block].norms) > 0.9 * self._best.bounds.lower:
                self._climb(int(block), first[block])
        lower, most = self._best.bounds.lower, min(most, self._affordable())
        hopeless = lower == 0 or (self._looks_flat(first) and is_flat(lower))
        covers = [] if hopeless else [self._cover(cells) for cells in first]
        if covers and self._expected(covers) <= most:
            if not self._is_loose:
                covers = [self._checked(*each) for each in zip(self._squares, covers, strict=True)]
            closed = (self._close(block, cells, 2 * most) for block, cells in enumerate(covers))
            if all(closed):
                return self._found(max(self._upper, self._best.bounds.lower))
        return self._found(max(square.sum_bound for square in self._squares))

    def _sampled(self, square: Squared, turns: HostFloats) -> _Open:
        """Return estimates at the samples, sharper ones where the norm is large."""
        found = _Open(turns, np.ones(len(turns)), *square.estimator.at(turns, FIRST_STEPS))
        large = np.flatnonzero(found.norms > HIGH * np.max(found.norms))
        return found.again(square, large, self._more)

    def _found(self, upper: float) -> Maximum:
        """Return what is known; the cost counts frequencies, a factorisation of each block."""
        return self._best.with_upper(upper).after(-(-self._cost // len(self._squares)))

    def _affordable(self) -> float:
        """Return how many factorisations a search may spend."""
        least, most = limits.WIDE_FACTORS
        work = 2.0 * self._squares[0].order ** 3
        return float(max(least, min(most, limits.WIDE_WORK / work)))

    def _expected(self, covers: list[_Open]) -> float:
        """Return about how many factorisations these cells and their parts take."""
        axes = np.count_nonzero(self._reach)
        return sum(float(np.sum(self._parts(cells) ** axes)) for cells in covers)

    def _looks_flat(self, first: list[_Open]) -> bool:
        need = np.concatenate([self._need(cells.norms) for cells in first])
        return bool(np.mean(need < limits.WIDE_REACH) > limits.WIDE_FLAT)

    def _cover(self, samples: _Open) -> _Open:
        """Return cells that cover the torus, as large as samples of the norm let expect.

        Their norms are interpolated, their vectors those of the nearest samples.
        """
        norms = self._samples.interpolated(samples.norms, self._lattice.shape)
        norms = np.minimum(norms, self._best.bounds.lower)  # where it overshoots
        small = float(self._width(1.0))
        margin = limits.WIDE_MARGIN[self._is_loose]
        points, sizes = self._lattice.blocks(margin * self._need(norms), small)
        found = norms[tuple((points % norms.shape).T)]
        turns = snapped(points / self._lattice.shape)
        nearest, opposite = self._samples.nearest(turns)
        vectors = samples.vectors[nearest]
        vectors[opposite] = vectors[opposite].conj()  # F(-theta) = conj F(theta)
        return _Open(turns, sizes.astype(np.float64), found, vectors)

    @property
    def _target(self) -> float:
        return down((1 + self._rtol) * self._best.bounds.lower)

    def _width(self, sizes: HostFloats | float) -> HostFloats:
        """Return w of cells of some sizes, rounded up.

        Centres are moved by half of 1 / FINEST turns each time that cells are cut, and first.
        """
        reach = self._rates * self._reach
        inner = max((reach[a] for a in self._diamond), default=0.0)
        w = inner + sum(reach[a] for a in range(len(reach)) if a not in self._diamond)
        moved = (self._cuts + 1) * float(np.sum(self._rates)) * (1 / (2 * FINEST) + 2.0**-50)
        return np.asarray(up(w * sizes + moved, 16))

    def _need(self, norms: HostFloats) -> HostFloats:
        """Return the largest w with which cells can be closed, by the estimates of their norms."""
        share = norms * (1 + self._rtol / 8) / self._target
        return np.asarray(np.arccos(np.minimum(share, 1.0)))

    def _parts(self, cells: _Open) -> HostFloats:
        """Return into how many parts per axis cells should be cut."""
        need = np.maximum(self._need(cells.norms), 0.5 * math.sqrt(self._rtol))
        return np.maximum(np.ceil(self._width(cells.sizes) / need), 1.0)

    def _climb(self, block: int, cells: _Open) -> None:
        """Raise the lower bound by local maxima beside the best cells."""
        square, best = self._squares[block], np.argsort(-cells.norms)[: limits.WIDE_CLIMBS]
        tops, vectors = square.estimator.climb(
            cells.centres[best], cells.vectors[best], rtol=self._rtol
        )
        for turns, v in zip(snapped(tops), vectors, strict=True):
            self._best = self._best.raised(square.quotient(turns, v), turns, block)
        self._cost += len(tops)

    def _close(self, block: int, cells: _Open, most: float) -> bool:
        """Bound the norm in all cells of a block; say whether `most` factorisations were enough."""
        square, self._cuts = self._squares[block], 0
        while len(cells):
            if self._cost > most:
                return False
            if np.max(cells.norms) > (1 + self._rtol / 8) * self._best.bounds.lower:
                self._climb(block, cells)
            w = self._width(cells.sizes)
            cells = self._sharpened(square, cells, w)
            need = self._need(cells.norms)
            tried = np.flatnonzero(need >= w)
            tried = tried[np.argsort(w[tried] / need[tried])]  # failures are dear, unless together
            upper = self._tried(square, cells.take(tried))
            closed = np.zeros(len(cells), dtype=np.bool_)
            closed[tried] = upper < np.inf
            self._upper = max(self._upper, float(np.max(upper[upper < np.inf], initial=0.0)))
            failed = tried[~(upper < np.inf)]
            cells = cells.again(square, failed, self._more)  # the estimates were too low
            # cells this small are open because of rounding, which splitting does not mend
            small = ~closed & (
                (np.cos(w) * (1 + self._rtol / 16) >= 1) | (self._width(0.0) > w / 2)
            )
            if np.any(small):
                self._settle(square, cells.take(small))
            rest = cells.take(~(closed | small))
            cells = self._split(square, rest) if len(rest) else rest
            self._cuts += 1
        return True

    def _checked(self, square: Squared, cells: _Open) -> _Open:
        """Estimate norms that were interpolated where they may be too low."""
        unsure = self._need(cells.norms) < UNSURE * self._width(cells.sizes)
        return cells.again(square, np.flatnonzero(unsure), CHILD_STEPS)

    def _sharpened(self, square: Squared, cells: _Open, w: HostFloats) -> _Open:
        """Renew the estimates of cells that may be small enough or not."""
        need = self._need(cells.norms)
        doubtful = np.flatnonzero((need >= w) & (need < DOUBTFUL * w))
        return cells.again(square, doubtful, CHILD_STEPS)

    def _tried(self, square: Squared, cells: _Open) -> HostFloats:
        """Return bounds on the norm in cells that one factorisation closes; else inf."""
        cosine = down(angles.cosine(self._width(cells.sizes)))
        self._cost += len(cells)
        norms = cells.norms * (1 + self._rtol / 8)
        return up(square.norm_bounds(cells.centres, down(self._target * cosine), norms) / cosine)

    def _settle(self, square: Squared, cells: _Open) -> None:
        """Bound the norm in cells that no splitting would help, as sharply as it can be had."""
        left = np.arange(len(cells))
        excess = self._rtol
        while left.size and excess < 4:
            some = cells.take(left)
            cosine = down(angles.cosine(self._width(some.sizes)))
            targets = np.maximum(some.norms, self._best.bounds.lower) * (1 + excess)
            self._cost += len(left)
            upper = up(square.norm_bounds(some.centres, targets, targets) / cosine)
            good = upper < np.inf
            self._upper = max(self._upper, float(np.max(upper[good], initial=0.0)))
            left, excess = left[~good], 2 * excess
        if left.size:
            self._upper = max(self._upper, square.sum_bound)

    def _split(self, square: Squared, cells: _Open) -> _Open:
        """Cut cells into as many parts as they need; estimate the norms at their centres."""
        parts = np.clip(self._parts(cells), 2, limits.WIDE_PARTS).astype(np.int64)
        centres, sizes, origin = [], [], []
        for count in np.unique(parts):
            chosen = np.flatnonzero(parts == count)
            moves = self._moves(int(count))
            scaled = cells.sizes[chosen, None, None] * moves * self._reach
            centres.append((cells.centres[chosen, None, :] + scaled).reshape(-1, moves.shape[1]))
            sizes.append(np.repeat(cells.sizes[chosen] / count, len(moves)))
            origin.append(np.repeat(chosen, len(moves)))
        where = np.concatenate(origin)
        turns = snapped(np.concatenate(centres))
        norms, vectors = square.estimator.at(turns, CHILD_STEPS, cells.vectors[where])
        return _Open(turns, np.concatenate(sizes), norms, vectors)

    def _moves(self, count: int) -> HostFloats:
        """Return the centres of the parts of a cell that reaches one unit along each axis."""
        places = (2 * np.arange(count) + 1 - count) / count
        axes = [places if r > 0 else np.zeros(1) for r in self._reach]
        moves = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
        if len(self._diamond) == 2:  # places along the diagonals of the diamond
            a, b = self._diamond
            moves[:, a], moves[:, b] = (
                (moves[:, a] + moves[:, b]) / 2,
                (moves[:, a] - moves[:, b]) / 2,
            )
        return moves
