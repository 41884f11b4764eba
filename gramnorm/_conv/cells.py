"""Cells that cover the torus of frequencies, and how far a norm may fall inside them.

Within distance w = sum_a (k_a - 1) / 2 |theta_a - c_a| of a maximiser the norm is at least cos(w)
times the maximum (docs/theory.md, Theorem 10).  A set of constant w is a diamond.  So a cell is a
diamond in the first two axes that matter, where diamonds tile and have twice the area of the square
with the same w, times an interval in each further axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from gramnorm._arrays import limits
from gramnorm._arrays.types import HostBools, HostInts
from gramnorm._rigour import angles


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """Cells of one size.

    ``centres / denominators`` turns, reaching one unit along each axis that is split.
    """

    kernel_size: tuple[int, ...]
    centres: HostInts
    denominators: HostInts

    @classmethod
    def cover(
        cls, kernel_size: tuple[int, ...], *, half: bool, reach: float = limits.FIRST_REACH
    ) -> Cells:
        """Cover the torus by cells with w about `reach`.

        Up to the sign of frequencies if `half`.
        """
        denominators = _first_denominators(kernel_size, reach)
        split, diamond = _split_axes(kernel_size), diamond_axes(kernel_size)
        numbers = [np.arange(1, n, 2) if n > 1 else np.zeros(1, np.int64) for n in denominators]
        for axis in diamond:
            numbers[axis] = np.arange(denominators[axis])
        if half and split:
            first, whole = split[0], denominators[split[0]]
            numbers[first] = numbers[first][: whole // 2 + 1 if diamond else whole // 4]
        centres = grid_points(numbers)
        if diamond:
            i, j = (centres[:, axis] for axis in diamond)
            keep = (i + j) % 2 == 0
            if half:  # the two lines that are their own mirror images need one half each
                n, m = (denominators[axis] for axis in diamond)
                keep &= ~(((i == 0) | (2 * i == n)) & (2 * j > m))
            centres = centres[keep]
        return cls(kernel_size, centres, np.asarray(denominators, dtype=np.int64))

    @property
    def cosine(self) -> float:
        """Return cos(w), rounded down."""
        reach = [
            (k - 1) * math.pi / int(n) if k > 1 else 0.0
            for k, n in zip(self.kernel_size, self.denominators, strict=True)
        ]
        diamond = diamond_axes(self.kernel_size)
        w = sum(r for axis, r in enumerate(reach) if axis not in diamond)
        w += max((reach[axis] for axis in diamond), default=0.0)
        if w == 0.0:
            return 1.0
        # w and its cosine err by a few units of 2^-52, absolutely: both are below 1.6
        return float(angles.cosine(w)) - 2e-15 if w < 1.57 else 0.0

    @property
    def children(self) -> int:
        """Return into how many cells of half the size a cell is split."""
        return int(2 ** len(_split_axes(self.kernel_size)))

    def split(self, chosen: HostBools) -> Cells:
        """Return the children of the chosen cells, those of a cell in a row."""
        diamond = diamond_axes(self.kernel_size)
        moves = grid_points((-1, 1) if k > 1 else (0,) for k in self.kernel_size)
        if diamond:  # (+-1, +-1) turned by an eighth: (+-1, 0) and (0, +-1)
            a, b = moves[:, diamond[0]].copy(), moves[:, diamond[1]].copy()
            moves[:, diamond[0]], moves[:, diamond[1]] = (a + b) // 2, (a - b) // 2
        scale = np.where(np.asarray(self.kernel_size) > 1, 2, 1)
        children = (self.centres[chosen] * scale)[:, None, :] + moves[None, :, :]
        return Cells(self.kernel_size, children.reshape(-1, len(scale)), self.denominators * scale)


def grid_points(numbers: Iterable[HostInts | Sequence[int]]) -> HostInts:
    """Return all points with coordinates among the numbers of their axis, shape (points, axes)."""
    axes = [np.asarray(values, dtype=np.int64) for values in numbers]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def first_count(kernel_size: tuple[int, ...], reach: float = limits.FIRST_REACH) -> float:
    """Return how many cells the first cover of the whole torus has, about."""
    return math.prod(n / 2 for n in map(float, _first_denominators(kernel_size, reach)) if n > 1)


def _split_axes(kernel_size: tuple[int, ...]) -> list[int]:
    return [axis for axis, k in enumerate(kernel_size) if k > 1]


def diamond_axes(kernel_size: tuple[int, ...]) -> list[int]:
    """Return the two axes along which cells are diamonds, if there are two."""
    split = _split_axes(kernel_size)
    return split[:2] if len(split) > 1 else []


def _first_denominators(kernel_size: tuple[int, ...], reach: float) -> list[int]:
    """Return multiples of 4 that make w about `reach`, an equal share per diamond and axis."""
    shares = max(len(_split_axes(kernel_size)) - 1, 1)
    quarter = 4 * reach
    return [
        4 * math.ceil(shares * (k - 1) * math.pi / quarter) if k > 1 else 1 for k in kernel_size
    ]
