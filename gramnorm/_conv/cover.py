"""A cover of the torus by cells of many sizes, each about as large as its norm allows.

A cell of half width w with centre c can be closed if w <= w(||F(c)||) for a decreasing function
(docs/theory.md, Theorem 10).  Norms known on a grid of samples are interpolated, as the squares of
a trigonometric polynomial are, on a lattice of small cells; then, one after the other, the largest
block of small cells is taken that its centre is expected to close.  The blocks cover every small
cell, whatever the expectation is worth, and so they cover the torus.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from gramnorm._arrays import limits
from gramnorm._arrays.types import HostBools, HostFloats, HostInts
from gramnorm._conv.cells import Cells, diamond_axes, first_count, grid_points


@dataclasses.dataclass(frozen=True)
class Samples:
    """A grid of frequencies, of which those that are one another's opposite are kept once.

    Attributes
    ----------
    turns : host floats, shape (kept, axes)
        The frequencies kept.
    which : host ints
        For each point of the grid the one kept.
    opposite : host bools
        Whether that is its opposite.
    """

    shape: tuple[int, ...]
    turns: HostFloats
    which: HostInts
    opposite: HostBools

    @classmethod
    def of(cls, kernel_size: tuple[int, ...], *, half: bool) -> Samples:
        """Return samples for taps of a size; opposite frequencies are the same if `half`."""
        # an odd number, for which interpolation needs no thought about the middle frequency
        shape = tuple(limits.WIDE_SAMPLES * (k - 1) + 1 for k in kernel_size)
        points = grid_points(map(np.arange, shape))
        number = np.arange(len(points))
        mirror = np.ravel_multi_index(tuple((-points % shape).T), shape)
        first = np.minimum(number, mirror) if half else number
        kept, which = np.unique(first, return_inverse=True)
        return cls(shape, points[kept] / shape, which.reshape(-1), first != number)

    def nearest(self, turns: HostFloats) -> tuple[HostInts, HostBools]:
        """Return the samples kept that are nearest to frequencies, and whether to the opposite."""
        points = np.round(turns * self.shape).astype(np.int64) % self.shape
        number = np.ravel_multi_index(tuple(points.T), self.shape)
        return self.which[number], self.opposite[number]

    def interpolated(self, norms: HostFloats, shape: tuple[int, ...]) -> HostFloats:
        """Return about the norms on a finer grid of a shape, from those of the samples kept."""
        axes = tuple(range(len(shape)))
        waves = np.fft.fftn((norms**2)[self.which].reshape(self.shape), axes=axes)
        finer = np.zeros(shape, dtype=np.complex128)
        places = [np.arange(n) - n // 2 for n in self.shape]
        finer[np.ix_(*places)] = waves[np.ix_(*places)]
        scale = math.prod(shape) / math.prod(self.shape)
        return np.sqrt(np.maximum(np.fft.ifftn(finer, axes=axes).real * scale, 0.0))


@functools.lru_cache(maxsize=8)
def samples(kernel_size: tuple[int, ...], *, half: bool) -> Samples:
    """Return `Samples.of`, which depend on nothing else."""
    return Samples.of(kernel_size, half=half)


@functools.lru_cache(maxsize=8)
def lattice(kernel_size: tuple[int, ...], *, half: bool) -> Lattice:
    """Return the `Lattice`, which depends on nothing else."""
    return Lattice(kernel_size, half=half)


class Lattice:
    """Small cells that cover the torus, up to the sign of frequencies if `half`.

    Attributes
    ----------
    shape : tuple of int
        Points per axis of the lattice, of which some are the centres of small cells.
    cells : int
        How many of these there are.
    """

    def __init__(self, kernel_size: tuple[int, ...], *, half: bool) -> None:
        cells = _small_cells(kernel_size)
        self.shape = tuple(cells.denominators.tolist())
        split, self._diamond = np.asarray(self.shape) > 1, diamond_axes(kernel_size)
        # a block of k cells per axis has its centre k - 1 such moves from the first cell's
        self._move = split.astype(np.int64)
        self._axes = np.diag(2 * self._move)[split]  # from a cell to the next ones
        if self._diamond:
            a, b = self._diamond
            self._move[b] = 0
            self._axes[0], self._axes[1] = 0, 0
            self._axes[:2, a], self._axes[:2, b] = 1, (1, -1)
        self._centres = cells.centres[np.lexsort(self._keys(cells.centres))]
        number = np.arange(len(self._centres))
        table = np.full(self.shape, -1)
        table[tuple(self._centres.T)] = number
        if half:
            mirror = table[tuple((-self._centres % self.shape).T)]
            table[tuple(self._centres.T)] = np.minimum(number, mirror)
        self._table = table
        self.cells = len(np.unique(table[tuple(self._centres.T)]))

    def _keys(self, centres: HostInts) -> HostInts:
        """Return by what cells are sorted, the last first: so that blocks grow away from others."""
        keys = centres.copy()
        if self._diamond:
            a, b = self._diamond
            n, m = self.shape[a], self.shape[b]
            keys[:, b] = (centres[:, a] * m - centres[:, b] * n) % (n * m)
        return keys.T

    def blocks(self, widest: HostFloats, w: float) -> tuple[HostInts, HostInts]:
        """Return the centres of blocks and their sizes k, of cells of half width k w.

        `widest` has the half width that can be closed around each point of the lattice.
        """
        largest = self._largest(widest, w)
        most = int(np.max(largest))
        back, reach = (
            (most - 1) * np.sum(np.maximum(m, 0), axis=0) for m in (-self._axes, self._axes)
        )
        wrapped = np.pad(self._table, np.stack([back, reach], axis=1), mode="wrap")
        strides = np.asarray(wrapped.strides) // wrapped.itemsize
        starts = (self._centres + back) @ strides
        cells_of = [
            grid_points([range(k)] * len(self._axes)) @ (self._axes @ strides)
            for k in range(most + 1)
        ]
        table, taken = wrapped.reshape(-1), np.zeros(len(self._centres), dtype=np.bool_)
        chosen = []
        for first in np.flatnonzero(table[starts] == np.arange(len(starts))):
            if not taken[first]:
                taken[table[starts[first] + cells_of[largest[first]]]] = True
                chosen.append(first)
        sizes = largest[chosen]
        return self._centres[chosen] + (sizes - 1)[:, None] * self._move, sizes

    def _largest(self, widest: HostFloats, w: float) -> HostInts:
        """Return for each cell the size of the largest block from there on, as `blocks` does."""
        found, axes = np.ones(self.shape, dtype=np.int64), tuple(range(len(self.shape)))
        most = math.floor(min(float(np.max(widest)), limits.WIDEST) / w)
        for k in range(2, most + 1):
            found[np.roll(widest, tuple((1 - k) * self._move), axes) >= k * w] = k
        return np.asarray(found[tuple(self._centres.T)])


def _small_cells(kernel_size: tuple[int, ...]) -> Cells:
    """Return the small cells, larger ones where there would be too many."""
    reach = limits.WIDE_REACH
    while first_count(kernel_size, reach) > limits.WIDE_LATTICE and 4 * reach < limits.WIDEST:
        reach *= math.sqrt(2)
    return Cells.cover(kernel_size, half=False, reach=reach)
