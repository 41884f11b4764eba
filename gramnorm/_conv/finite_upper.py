"""Zero padding at a finite size from above, by scalar Toeplitz matrices.

A convolution T of finite size is a compression of a circulant C with the same symbol on a slightly larger circle of N
samples.  For inputs x and outputs y that vanish outside their windows and s_j >= ||F(2 pi j / N)||

    |y^H T x| <= sum_j s_j |Y_j| |X_j| <= (sum_j s_j^(2 - 2 a) |Y_j|^2)^(1/2) (sum_j s_j^(2 a) |X_j|^2)^(1/2),

two quadratic forms of *scalar* Toeplitz matrices of the size of the windows (docs/theory.md, Theorem 12).  They
know the size and nothing of the channels, so their largest eigenvalues are cheap, and below max_j s_j.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from gramnorm._arrays.types import HostFloats
from gramnorm._conv import circle
from gramnorm._conv.geometry import Axis
from gramnorm._conv.symbol import Symbol
from gramnorm._matrix.choose import bracket_stack
from gramnorm._rigour.model import HOST_UNIT, up

POINTS = 2**22
"""Most frequencies of the grid of a scalar Toeplitz matrix."""

ENTRIES, WORK = 2**24, 2**33
"""Most entries of the Toeplitz matrices of an axis, and most rows times squares of rows in all."""


def compression(
    symbol: Symbol,
    axes: Sequence[Axis],
    supremum: float,
    lower: float,
    *,
    slack: float,
    rtol: float,
) -> tuple[float, int]:
    """Bound the norm of a correlation without dilation by Theorem 12; return the frequencies evaluated as well.

    `supremum` bounds the norm of the symbol, `lower` is known to be below the norm of the operator; norms of
    the symbol are computed to about a fraction `slack` of their distance from the supremum.
    """
    extent = symbol.offsets.max(axis=0)
    inputs, outputs, circles = [], [], []
    for axis, q, k in zip(axes, extent, symbol.offsets.T, strict=True):
        # the samples that some phase of the input has, as far as outputs read them
        first = -(-(axis.before - axis.stride + 1) // axis.stride)
        last = (axis.before + axis.size - 1) // axis.stride
        first, last = max(first, int(k.min())), min(last, axis.outputs - 1 + int(q))
        if first > last:
            return 0.0, 0
        inputs.append(last - first + 1)
        outputs.append(axis.outputs)
        # so large that going round never makes an input meet an output by another tap
        least = max(last + 1, int(q) - first + axis.outputs, inputs[-1], axis.outputs)
        circles.append(least + least // 4)
    if math.prod(circles) > POINTS:
        return math.inf, 0
    # frequencies whose norm is far below have no part in the largest eigenvalue
    level = max(supremum - 2 / slack * (supremum - lower), 0.0)
    norms, cost = circle.norms_on_grid(
        symbol,
        tuple(circles),
        tuple(int(k) + 1 for k in extent),
        ceiling=supremum,
        level=level,
        slack=slack,
    )
    if inputs == outputs:  # equal windows share the norm evenly
        return _toeplitz_bound(norms, inputs, level, rtol=rtol), cost
    # else the smaller one takes it all
    window = min(inputs, outputs, key=math.prod)
    value = _toeplitz_bound(up(norms**2), window, level**2, rtol=rtol)
    return up(math.sqrt(value)), cost


def _toeplitz_bound(
    weights: HostFloats, window: Sequence[int], level: float, *, rtol: float
) -> float:
    """Bound the largest eigenvalue of the compression to a window of the circulant with eigenvalues `weights`.

    One axis after the other: for each frequency of the rest, the compression along an axis is at most its largest
    eigenvalue times the identity. Rows of weights below `level` count with their maximum.
    """
    bounds = []
    axes = range(weights.ndim)
    orders = (
        [*itertools.permutations(axes)] if weights.ndim <= 3 else [tuple(axes), tuple(axes)[::-1]]
    )
    for order in orders:
        rest = weights.transpose(order)
        for axis in order:
            columns = rest.reshape(rest.shape[0], -1).T
            values = np.max(columns, axis=1)
            high = np.flatnonzero(values > level)
            n = window[axis]
            if 0 < high.size * n**2 <= ENTRIES and high.size * n**3 <= WORK / len(orders):
                found = _toeplitz_norms(columns[high], window[axis], rtol=rtol)
                values[high] = np.minimum(values[high], found)
            rest = values.reshape(rest.shape[1:])
        bounds.append(float(rest))
    return min(bounds)


def _toeplitz_norms(weights: HostFloats, n: int, *, rtol: float) -> HostFloats:
    """Bound the norms of matrices of order n cut out of circulants with eigenvalues in the rows of `weights`."""
    size = weights.shape[1]
    lags = np.arange(n)
    turns = np.outer(np.arange(size), lags) % size / size
    sums = weights @ np.exp(2j * math.pi * turns) / size  # entry (a, b) has lag a - b
    lag = lags[:, None] - lags[None, :]
    matrices = np.where(lag >= 0, sums[:, np.abs(lag)], np.conj(sums[:, np.abs(lag)]))
    values = bracket_stack(matrices, rtol=rtol / 16, dtype=np.float64).upper
    # entries err by kappa(N) + 24 u of the mean weight, hence a matrix by n times that
    errors = n * (4 * size + 60) * HOST_UNIT * np.mean(weights, axis=1)
    return up(values + errors)
