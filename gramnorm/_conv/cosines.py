"""Symmetric padding of a kernel that is its own mirror image, diagonalised by cosines.

If each output channel is even or odd along each axis, K[o, :, -q] = +-K[o, :, q], and the mirror
lies half a sample beyond the n samples of an input, the transforms C of all inputs by cosines, and
S of each output by cosines or sines, make the operator a direct sum of blocks of its symbol
(docs/theory.md, Theorem 26):

    T = S^H diag(F(pi j / n)) C,   0 <= j < n along each axis.

So the norm is a maximum over a grid, as on a circle of 2 n samples: exact at every size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gramnorm._arrays import crossing, libraries
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._conv.circle import Grid
from gramnorm._conv.geometry import Axis


def diagonalise(taps: Array, axes: Sequence[Axis]) -> bool:
    """Say whether the correlation with taps (T, groups, c_out, c_in) is diagonal in cosines."""
    return all(
        a.mode == "symmetric" and is_centred(a) and is_even_or_odd(taps, axes, number)
        for number, a in enumerate(axes)
    )


def is_centred(axis: Axis) -> bool:
    """Say whether there is an output for each sample, where the middle of the taps is."""
    return axis.stride == 1 and axis.outputs == axis.size and axis.reach == 2 * axis.before


def is_even_or_odd(taps: Array, axes: Sequence[Axis], number: int) -> bool:
    """Say whether each output channel is its mirror image along an axis, or minus that."""
    xp, dims = libraries.namespace(taps), len(axes)
    whole = xp.reshape(taps, (*(a.taps for a in axes), *taps.shape[1:]))
    mirrored, others = xp.flip(whole, axis=number), (*range(dims), dims + 2)
    even, odd = (xp.all(mirrored == side, axis=others) for side in (whole, -whole))
    return bool(np.all(crossing.to_host(even | odd)))


def grid(axes: Sequence[Axis]) -> Grid:
    """Return the frequencies of the symbol without dilation, each once."""
    sizes, shape = zip(*(_points(a) for a in axes), strict=True)
    return Grid(sizes, shape, is_even=True)


def _points(axis: Axis) -> tuple[int, int]:
    """Return N and m: the angles d pi j / n, 0 <= j < n, are 2 pi i / N, 0 <= i < m, up to signs.

    With e = gcd(d, 2 n) the products d j are e times (d / e) j modulo N = 2 n / e.  If e = 1 a
    multiplication by d permutes them up to signs, and j = n is left out; else they go round.
    """
    size = 2 * axis.size // math.gcd(axis.dilation, 2 * axis.size)
    return size, axis.size if size == 2 * axis.size else size // 2 + 1


def frequency(turns: HostFloats, axes: Sequence[Axis]) -> HostFloats:
    """Return the angles pi j / n of the input at a point of the grid."""
    found = []
    for turn, axis in zip(turns.tolist(), axes, strict=True):
        whole, (size, _) = 2 * axis.size, _points(axis)
        j = round(turn * size) * pow(axis.dilation * size // whole, -1, size) % size
        found.append(2 * math.pi * min(j, whole - j) / whole)
    return np.asarray(found)
