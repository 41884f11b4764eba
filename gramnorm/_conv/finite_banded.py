"""Convolutions of a finite size from above by a factorisation that keeps near the diagonal.

With the last axis outermost the Gram matrix of an operator is a band of blocks: for taps k and l of
that axis and points i and i' of it

    S(i, i') = sum_{k,l} (L_k^T L_l)(i, i') H_kl,    H_kl = A_k^H A_l,

where A_k is the operator of the other axes and channels, and L_k the link of tap k.  Whatever the
padding, (L_k^T L_l)(i, i') counts the rows that read i by tap k and i' by tap l: none far from the
diagonal.  So nu I - S is factorised in a window that moves along the band (docs/theory.md,
Theorem 6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gramnorm._arrays import crossing, libraries, limits
from gramnorm._arrays.types import Array, HostBools, HostInts, HostNumbers
from gramnorm._conv import finite_matrix
from gramnorm._conv.geometry import Axis, readers
from gramnorm._matrix.windows import Window, eigenvalue_bound
from gramnorm._results import Bounds
from gramnorm._rigour import sums
from gramnorm._rigour.model import up


def bracket(taps: Array, axes: Sequence[Axis], lower: float, *, rtol: float) -> Bounds[float]:
    """Bound the norm of the operator with taps (T, groups, c_out, c_in) from above, near `lower`.

    Inf where that is no bound, or takes too much memory. The cost is factorisations.
    """
    if not lower > 0:
        return Bounds(0.0, math.inf)
    taps, axes = narrowest_last(taps, axes)
    rows = row_table(taps, axes)
    window = band_window(rows, min(finite_matrix.sides(taps, axes)) // rows.shape[-1])
    if window.side**2 > limits.WINDOW:
        return Bounds(0.0, math.inf)
    grams = _grams(taps, axes, rows)
    errors = finite_matrix.gram_error(taps, axes, grams[0].order).tolist()
    for gap in limits.BAND_GAPS:
        level, bounds = up(lower**2) * (1 + 2 * gap * rtol), [0.0]
        for gram, error in zip(grams, errors, strict=True):
            if bounds[-1] < math.inf:
                bounds.append(up(eigenvalue_bound(gram, window, level) + error))
        if bounds[-1] < math.inf:
            return Bounds(0.0, up(math.sqrt(max(bounds))), len(grams))
    return Bounds(0.0, math.inf, len(grams))


class _Gram:
    """The Gram matrix of a group, by points of the last axis: what `eigenvalue_bound` reads.

    Parameters
    ----------
    rows : host ints, shape (tables, k, n)
        What `row_table` returns.
    pairs : host array, shape (k, k, ..., ...)
        The matrices H_kl, whose rows and columns are several axes each.
    copies, outputs : int
        Rows that read a point by the same tap, at most, and all outputs.
    """

    def __init__(self, rows: HostInts, pairs: HostNumbers, copies: int, outputs: int) -> None:
        self._rows, self._pairs = rows.reshape(-1, rows.shape[-1]), pairs
        self._taps = np.tile(np.arange(rows.shape[1]), rows.shape[0])
        self._side = math.isqrt(math.prod(pairs.shape[2:]))
        self.dtype, self.order = pairs.dtype, rows.shape[-1] * self._side
        # ||L_k^T L_l||_F <= ||L_k|| ||L_l||_F, and sum_l ||H_kl||_F <= sqrt(count) ||H_k||_F
        count = rows.shape[1]
        norms = math.fsum(sums.host_norm(h)[1] for h in pairs)
        self.size = up(math.sqrt(copies * outputs * count) * norms, 8)
        self._last: tuple[HostBools, HostNumbers] | None = None

    def block(self, first: int, stop: int, left: int, right: int) -> HostNumbers:
        """Return the rows from `first` to `stop` of the columns from `left` to `right`."""
        m = self._side
        i, j = slice(first // m, -(-stop // m)), slice(left // m, -(-right // m))
        ours, theirs = self._rows[:, None, i, None], self._rows[None, :, None, j]
        shared = (ours == theirs) & (ours >= 0)  # (slot, slot, i, j)
        # far from the ends of an axis one block is like the other
        if self._last is None or not np.array_equal(self._last[0], shared):
            self._last = shared, self._summed(shared)
        rows, columns = (
            slice(first - i.start * m, stop - i.start * m),
            slice(left - j.start * m, right - j.start * m),
        )
        return self._last[1][rows, columns]

    def _summed(self, shared: HostBools) -> HostNumbers:
        """Return the sum of H_kl over all pairs of slots that share a row."""
        m, (height, width) = self._side, shared.shape[2:]
        first, second, i, j = np.nonzero(shared)
        place = i * width + j
        order = np.argsort(place, kind="stable")
        turn = np.empty_like(place)  # of the terms of a place
        turn[order] = np.arange(place.size) - np.searchsorted(place[order], place[order])
        whole = np.zeros((height * width, m, m), dtype=self.dtype)
        for t in range(int(turn.max(initial=-1)) + 1):
            chosen = turn == t
            terms = self._pairs[self._taps[first[chosen]], self._taps[second[chosen]]]
            whole[place[chosen]] += terms.reshape(-1, m, m)
        whole = whole.reshape(height, width, m, m).transpose(0, 2, 1, 3)
        return whole.reshape(height * m, width * m)


def _grams(taps: Array, axes: Sequence[Axis], rows: HostInts) -> list[_Gram]:
    """Return the Gram matrix of each group, with the points of the last axis outermost."""
    host = crossing.host_array(finite_matrix.pair_grams(taps, axes, len(axes) - 1))
    points = range(5, host.ndim, 2)
    host = host.transpose(0, 1, 2, 3, *points, 4, *(i + 1 for i in points))
    return [_Gram(rows, pairs, axes[-1].copies(), axes[-1].outputs) for pairs in host]


def row_table(taps: Array, axes: Sequence[Axis]) -> HostInts:
    """Return the rows that read a point of the last axis by a tap, shape (tables, taps, points).

    Rows are outputs and points samples, or the other way round if there are fewer outputs; -1
    stands for none.
    """
    axis = axes[-1]
    return np.stack(readers(axis)) if finite_matrix.is_tall(taps, axes) else axis.sources()[None]


def narrowest_last(taps: Array, axes: Sequence[Axis]) -> tuple[Array, tuple[Axis, ...]]:
    """Return taps and axes with that axis last whose band is the smallest part of its points.

    Two points are read by one output only if they lie within the reach, but round a circle.
    """
    xp = libraries.namespace(taps)
    best, dims = int(np.argmin([(2 * a.reach + 1) / a.size for a in axes])), len(axes)
    order = [*(a for a in range(dims) if a != best), best]
    whole = xp.reshape(taps, (*(a.taps for a in axes), *taps.shape[1:]))
    moved = xp.permute_dims(whole, (*order, dims, dims + 1, dims + 2))
    return xp.reshape(moved, tuple(taps.shape)), tuple(axes[a] for a in order)


def band_window(rows: HostInts, m: int) -> Window:
    """Return the window of a band of blocks of order m from a `row_table`."""
    rows = rows.reshape(-1, rows.shape[-1])
    points = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    furthest = np.zeros(int(rows.max(initial=-1)) + 2, dtype=np.int64)  # the last one for none
    np.maximum.at(furthest, rows[rows >= 0], points[rows >= 0])
    last = np.maximum(furthest[rows].max(axis=0), points[0])
    return Window.reaching(np.repeat((last + 1) * m - 1, m))
