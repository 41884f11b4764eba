"""The certified supremum of the norm of a wide symbol, by one factorisation for each cell of frequencies.

Estimates for all cells together and a local ascent say where the lower bound L is and how large a cell may be:
Theorem 10 (docs/theory.md) closes a cell of half width w with centre c as soon as

    ||F(c)|| <= (1 + rtol) L cos(w),    that is w <= arccos(||F(c)|| / ((1 + rtol) L)).

So a cell is cut into as many parts as its estimate asks for, and a cell that is small enough is closed by one
factorisation of tau^2 I - G(c) (Lemma 12).  Only this, and the quotient that is L, proves anything.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import crossing
from gramnorm._arrays.limits import (
    WIDE_BATCH,
    WIDE_CLIMBS,
    WIDE_COLUMNS,
    WIDE_FACTORS,
    WIDE_PARTS,
    WIDE_TABLE,
    WIDE_WORK,
)
from gramnorm._arrays.types import Array, HostBools, HostFloats, HostInts
from gramnorm._conv.cells import Cells, first_count
from gramnorm._conv.estimates import Estimator, HostVectors
from gramnorm._conv.squared import FINEST, Squared, snapped
from gramnorm._rigour.model import down, up


AIM = 0.98
"""Part of the gap that is asked for; the rest is for rounding that costs more than it did before."""


@dataclasses.dataclass(frozen=True)
class Peak:
    """A bracket of the supremum, the turns and the block where `lower` is attained, and the factorisations spent."""

    lower: float
    upper: float
    turns: HostFloats
    block: int
    cost: int


def is_wide(taps: Array, kernel_size: tuple[int, ...]) -> bool:
    """Say whether taps (T, blocks, p, q) are bounded best by factorisations, and their tables are not too large."""
    blocks, q = int(taps.shape[1]), min(taps.shape[2:])
    lags = math.prod(2 * k - 1 for k in kernel_size)
    fits = 4 * lags * blocks * q * q <= WIDE_TABLE and first_count(kernel_size) <= WIDE_FACTORS[0]
    return max(kernel_size) > 1 and q >= WIDE_COLUMNS and fits


def supremum(
    taps: Array,
    offsets: HostInts,
    kernel_size: tuple[int, ...],
    *,
    rtol: float,
    most: float = math.inf,
) -> Peak:
    """Bracket the supremum over all frequencies and blocks of a symbol, crudely where that takes too long.

    Parameters
    ----------
    taps : array, shape (T, blocks, p, q)
        Taps as the caller stores them; entries of size at most about 1.
    offsets : host ints, shape (T, axes)
        Their positions, from 0 to ``kernel_size - 1``.
    most : float
        Factorisations that are worth it.
    """
    return _Search(taps, offsets, kernel_size, rtol).run(most)


@dataclasses.dataclass(frozen=True)
class _Open:
    """Cells of one block that are not closed: centres in turns, sizes relative to the first cells, estimates."""

    centres: HostFloats
    sizes: HostFloats
    norms: HostFloats
    vectors: HostVectors

    def __len__(self) -> int:
        return len(self.sizes)

    def take(self, chosen: HostBools | HostInts) -> _Open:
        parts = (getattr(self, field.name)[chosen] for field in dataclasses.fields(self))
        return _Open(*parts)


class _Search:
    def __init__(
        self, taps: Array, offsets: HostInts, kernel_size: tuple[int, ...], rtol: float
    ) -> None:
        host = crossing.host_array(taps)
        host = host.astype(np.complex128 if np.iscomplexobj(host) else np.float64)
        if host.shape[2] < host.shape[3]:
            host = np.swapaxes(host, 2, 3)  # the same norms, and a smaller square
        self._taps = [np.ascontiguousarray(host[:, block]) for block in range(host.shape[1])]
        self._offsets, self._rtol = offsets, rtol
        self._estimators = [Estimator(block, offsets) for block in self._taps]
        roots = Cells.cover(kernel_size, half=not np.iscomplexobj(host))
        self._roots = snapped(roots.centres / roots.denominators)
        self._reach = np.where(np.asarray(kernel_size) > 1, 1 / roots.denominators, 0.0)
        self._rates = (np.asarray(kernel_size) - 1) * math.pi  # of the angle w, per turn
        self._diamond = np.flatnonzero(self._reach > 0)[:2]
        self._axes = int(np.count_nonzero(self._reach))
        self._lower, self._upper = 0.0, 0.0
        self._turns, self._block = np.zeros(len(kernel_size)), 0
        self._cost = 0
        self._loss, self._wide = 0.0, False  # of the working precision, relative to tau^2
        self._squares: dict[int, Squared] = {}

    def run(self, most: float) -> Peak:
        """Return the bracket of the supremum; from above it is crude if it takes more than `most` factorisations."""
        steps = 10
        first = []
        for estimator in self._estimators:
            norms, vectors = estimator.at(self._roots, steps)
            first.append(_Open(self._roots, np.ones(len(self._roots)), norms, vectors))
        order = np.argsort([-np.max(cells.norms) for cells in first])
        for block in order:
            if block == order[0] or np.max(first[block].norms) > 0.9 * self._lower:
                self._climb(int(block), first[block])
        need = sum(float(np.sum(self._parts(cells) ** self._axes)) for cells in first)
        p, q = self._taps[0].shape[1:]
        self._most = max(WIDE_FACTORS[0], min(WIDE_FACTORS[1], WIDE_WORK / (2.0 * q**3)))
        if need > min(most, self._most):
            crude = max(self._square(block).sum_bound for block in range(len(first)))
            return Peak(self._lower, crude, self._turns, self._block, self._cost)
        self._measure_loss()
        for block, cells in enumerate(first):
            self._close(block, cells)
            self._squares.pop(block, None)
        return Peak(self._lower, max(self._upper, self._lower), self._turns, self._block, self._cost)

    @property
    def _target(self) -> float:
        return (1 + AIM * self._rtol) * self._lower

    def _square(self, block: int) -> Squared:
        if block not in self._squares:
            self._squares[block] = Squared(self._taps[block], self._offsets)
        return self._squares[block]

    def _width(self, sizes: HostFloats) -> HostFloats:
        """Return w of cells of some sizes, rounded up: centres are multiples of 1 / FINEST turns, children of others."""
        reach = self._rates * self._reach
        inner = max((reach[a] for a in self._diamond), default=0.0)
        w = inner + sum(reach[a] for a in range(len(reach)) if a not in self._diamond)
        return up(w * sizes + float(np.sum(self._rates)) * 16 / FINEST) * (self._axes > 0)

    def _measure_loss(self) -> None:
        """Learn by how much rounding in single precision raises bounds, where they are largest."""
        level = np.asarray([self._target**2])
        bound = self._square(self._block).bounds(self._turns[None], level, wide=False)
        self._cost += 1
        loss = 1.3 * (float(bound[0] / level[0]) - 1)
        self._wide = not loss < self._rtol
        self._loss = 1e-8 if self._wide else loss

    def _need(self, norms: HostFloats, loss: float) -> HostFloats:
        """Return the largest w with which cells can be closed, by the estimates of their norms."""
        share = norms * (1 + self._rtol / 8) / self._target * math.sqrt(1 + loss)
        return np.asarray(np.arccos(np.minimum(share, 1.0)))

    def _parts(self, cells: _Open) -> HostFloats:
        """Return into how many parts per axis cells should be cut."""
        need = np.maximum(self._need(cells.norms, self._loss), 0.5 * math.sqrt(self._rtol))
        return np.maximum(np.ceil(0.9 * self._width(cells.sizes) / need), 1.0)

    def _climb(self, block: int, cells: _Open) -> None:
        """Raise the lower bound by local maxima beside the best cells."""
        best = np.argsort(-cells.norms)[:WIDE_CLIMBS]
        estimator = self._estimators[block]
        tops, vectors = estimator.climb(cells.centres[best], cells.vectors[best])
        for turns, v in zip(snapped(tops), vectors, strict=True):
            lower = self._square(block).quotient(turns, v)
            if lower > self._lower or self._cost == 0:
                self._lower, self._turns, self._block = max(lower, self._lower), turns, block
            self._cost += 1

    def _close(self, block: int, cells: _Open) -> None:
        """Bound the norm in all cells of a block."""
        while len(cells):
            if self._cost > 2 * self._most:
                self._upper = max(self._upper, self._square(block).sum_bound)
                break
            if np.max(cells.norms) > (1 + self._rtol / 16) * self._lower:
                self._climb(block, cells)
            small = self._need(cells.norms, self._loss) >= self._width(cells.sizes)
            closed = np.zeros(len(cells), dtype=np.bool_)
            tried = np.flatnonzero(small)
            closed[tried] = self._try(block, cells.take(tried))
            failed = np.flatnonzero(small & ~closed)
            norms, vectors = cells.norms.copy(), cells.vectors.copy()
            if failed.size:
                norms[failed], vectors[failed] = self._estimators[block].at(
                    cells.centres[failed], 12, cells.vectors[failed]
                )
            rest = dataclasses.replace(cells, norms=norms, vectors=vectors).take(~closed)
            futile = np.cos(self._width(rest.sizes)) * (1 + self._rtol / 16) >= 1
            if np.any(futile):
                self._settle(block, rest.take(futile))
                rest = rest.take(~futile)
            if not len(rest):
                break
            cells = self._split(block, rest)

    def _try(self, block: int, cells: _Open) -> HostBools:
        """Say which cells are closed by a factorisation at their centres."""
        cosine = down(np.cos(self._width(cells.sizes)))
        closed = np.zeros(len(cells), dtype=np.bool_)
        left = np.arange(len(cells))
        while left.size:
            part, left = left[:WIDE_BATCH], left[WIDE_BATCH:]
            levels = down((self._target * cosine[part]) ** 2 / (1 + self._loss))
            bounds = self._square(block).bounds(cells.centres[part], levels, wide=self._wide)
            self._cost += len(part)
            upper = up(np.sqrt(bounds) / cosine[part])
            good = upper <= (1 + self._rtol) * self._lower
            closed[part] = good
            self._upper = max(self._upper, float(np.max(upper[good], initial=0.0)))
            # rounding cost more than was expected: once more, with that known
            again = ~good & (bounds < np.inf)
            if np.any(again):
                self._loss = 1.1 * float(np.max(bounds[again] / levels[again] - 1))
                enough = self._need(cells.norms[part], self._loss) >= self._width(cells.sizes[part])
                left = np.concatenate([part[again & enough], left])
        return closed

    def _settle(self, block: int, cells: _Open) -> None:
        """Bound the norm in cells that no splitting would help, as sharply as it can be had."""
        cosine = down(np.cos(self._width(cells.sizes)))
        for index in range(len(cells)):
            one = slice(index, index + 1)
            excess = self._rtol / 16
            level = np.asarray([self._lower**2])
            bound = math.inf
            while not bound < math.inf and excess < 4:
                bound = self._square(block).bounds(cells.centres[one], level * (1 + excess), wide=True).item()
                self._cost += 1
                excess *= 4
            upper = up(math.sqrt(bound) / cosine[index].item())
            self._upper = max(self._upper, min(upper, self._square(block).sum_bound))

    def _split(self, block: int, cells: _Open) -> _Open:
        """Cut cells, each into as many parts as it needs, and estimate the norms at their centres."""
        parts = np.clip(self._parts(cells), 2, WIDE_PARTS).astype(np.int64)
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
        norms, vectors = self._estimators[block].at(turns, 4, cells.vectors[where])
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
