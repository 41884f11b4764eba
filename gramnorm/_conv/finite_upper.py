"""Zero padding at a finite size from above, by scalar Toeplitz matrices.

A convolution T of finite size is a compression of a circulant C with the same symbol on a slightly
larger circle of N samples.  For inputs x and outputs y that vanish outside their windows and
s_j >= ||F(2 pi j / N)||

    |y^H T x| <= sum_j s_j |Y_j| |X_j|
              <= (sum_j s_j^(2 - 2 a) |Y_j|^2)^(1/2) (sum_j s_j^(2 a) |X_j|^2)^(1/2),

two quadratic forms of *scalar* Toeplitz matrices of the size of the windows (docs/theory.md,
Theorem 12).  They know the size and nothing of the channels, so their largest eigenvalues are
cheap, and below max_j s_j.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from gramnorm._arrays import limits
from gramnorm._arrays.types import HostFloats
from gramnorm._conv import circle
from gramnorm._conv.geometry import Axis
from gramnorm._conv.symbol import Symbol
from gramnorm._matrix.choose import bracket_stack
from gramnorm._results import Bounds
from gramnorm._rigour import angles
from gramnorm._rigour.model import HOST_UNIT, up


def compression(
    symbol: Symbol,
    axes: Sequence[Axis],
    supremum: float,
    lower: float,
    *,
    slack: float,
    rtol: float,
) -> Bounds[float]:
    """Bound the norm of a correlation without dilation from above, by Theorem 12.

    `supremum` bounds the norm of the symbol, `lower` is known to be below the norm of the operator;
    norms of the symbol are computed to about a fraction `slack` of their distance from the
    supremum.  The cost is in blocks of the symbol.
    """
    extent = [int(q) + 1 for q in symbol.offsets.max(axis=0)]
    ranges = [axis.blocks(k - 1, whole=False) for axis, k in zip(axes, extent, strict=True)]
    inputs = [last - first + 1 for first, last in ranges]
    if min(inputs) <= 0:
        return Bounds(0.0, 0.0)
    outputs = [axis.outputs for axis in axes]
    # so large that going round never makes an input meet an output by another tap
    least = [
        max(last + 1, k - 1 - first + m, n, m)
        for (first, last), k, n, m in zip(ranges, extent, inputs, outputs, strict=True)
    ]
    circles = tuple(n + n // limits.SPARE_CIRCLE for n in least)
    if math.prod(circles) > limits.SCALAR_GRID:
        return Bounds(0.0, math.inf)
    # frequencies whose norm is far below have no part in the largest eigenvalue
    level = max(supremum - 2 / slack * (supremum - lower), 0.0)
    norms, evaluations = circle.norms_on_grid(
        symbol, circles, tuple(extent), ceiling=supremum, level=level, slack=slack
    )
    if inputs == outputs:  # equal windows share the norm evenly
        upper = _toeplitz_bound(norms, inputs, level, rtol=rtol)
    else:  # the smaller one takes it all
        window = min(inputs, outputs, key=math.prod)
        upper = up(math.sqrt(_toeplitz_bound(up(norms**2), window, level**2, rtol=rtol)))
    return Bounds(0.0, upper, evaluations * symbol.blocks)


def _toeplitz_bound(
    weights: HostFloats, window: Sequence[int], level: float, *, rtol: float
) -> float:
    """Bound the top eigenvalue of the circulant with eigenvalues `weights`, cut to a window.

    One axis after the other: for each frequency of the rest, the compression along an axis is at
    most its largest eigenvalue times the identity.  Rows of weights below `level` count with their
    maximum.
    """
    axes = tuple(range(weights.ndim))
    every = len(axes) <= limits.EVERY_ORDER_OF_AXES
    orders = [*itertools.permutations(axes)] if every else [axes, axes[::-1]]
    bounds = []
    for order in orders:
        rest = weights.transpose(order)
        for n in (window[axis] for axis in order):
            columns = rest.reshape(rest.shape[0], -1).T
            values = np.max(columns, axis=1)
            high = np.flatnonzero(values > level)
            entries, work = high.size * n**2, high.size * n**3 * len(orders)
            if 0 < entries <= limits.TOEPLITZ_ENTRIES and work <= limits.TOEPLITZ_WORK:
                found = _toeplitz_norms(columns[high], n, rtol=rtol)
                values[high] = np.minimum(values[high], found)
            rest = values.reshape(rest.shape[1:])
        bounds.append(float(rest))
    return min(bounds)


def _toeplitz_norms(weights: HostFloats, n: int, *, rtol: float) -> HostFloats:
    """Bound the norms of matrices of order n cut out of circulants with eigenvalues `weights`.

    One circulant per row of weights; entry (a, b) is the mean of w_j exp(2 pi i j (a - b) / N).
    """
    size, lags = weights.shape[1], np.arange(n)
    turns = np.outer(np.arange(size), lags) % size / size
    sums = weights @ angles.unit_circle(2 * math.pi * turns) / size
    lag = lags[:, None] - lags[None, :]
    matrices = np.where(lag >= 0, sums[:, np.abs(lag)], np.conj(sums[:, np.abs(lag)]))
    # a sixteenth of the gap: one axis after the other, squares among them
    values = bracket_stack(matrices, rtol=rtol / 16, dtype=np.float64).upper
    # entries err by kappa(N) + 24 u of the mean weight, hence a matrix by n times that
    errors = n * (4 * size + 60) * HOST_UNIT * np.mean(weights, axis=1)
    return up(values + errors)
