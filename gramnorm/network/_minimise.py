"""A smooth function's minimum by L-BFGS: where to look, proves nothing.

The step is ``-H g`` with the inverse Hessian H of the last pairs (s, y) of steps and changes of the
gradient (Nocedal's two loops). A step length t is accepted once

    f(x + t p) <= f(x) + c_1 t g^T p   and   g(x + t p)^T p >= c_2 g^T p,

found by doubling and halving (Lewis and Overton), which needs no smoothness and keeps s^T y > 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from gramnorm._arrays.types import HostFloats

_DECREASE, _CURVATURE = 1e-4, 0.9
_HALVINGS = 30
_PAIRS = 30

Objective = Callable[[HostFloats], tuple[float, HostFloats]]


def lbfgs(function: Objective, start: HostFloats, *, rtol: float) -> Iterator[HostFloats]:
    """Yield points of decreasing value, until a step no longer lowers it by `rtol` of 1 + |f|."""
    x, (value, gradient) = start, function(start)
    pairs: deque[tuple[HostFloats, HostFloats]] = deque(maxlen=_PAIRS)
    while np.isfinite(value) and bool(np.any(gradient)):
        direction = -_inverse_hessian_times(gradient, pairs)
        found = _line_search(function, x, direction, value, float(gradient @ direction))
        if found is None:
            return
        moved, lower, slope = found
        gained = value - lower
        pairs.append((moved - x, slope - gradient))
        x, value, gradient = moved, lower, slope
        yield x
        if gained <= rtol * (1 + abs(value)):
            return


def _inverse_hessian_times(
    gradient: HostFloats, pairs: deque[tuple[HostFloats, HostFloats]]
) -> HostFloats:
    """Return H g; of no pair, a step of length one at most."""
    if not pairs:
        return gradient / max(1.0, float(np.linalg.norm(gradient)))
    q, weights = gradient.copy(), []
    for s, y in reversed(pairs):
        weights.append(float(s @ q) / float(s @ y))
        q -= weights[-1] * y
    s, y = pairs[-1]
    q *= float(s @ y) / float(y @ y)
    for (s, y), weight in zip(pairs, reversed(weights), strict=True):
        q += (weight - float(y @ q) / float(s @ y)) * s
    return q


def _line_search(
    function: Objective, x: HostFloats, direction: HostFloats, value: float, slope: float
) -> tuple[HostFloats, float, HostFloats] | None:
    """Return a point along a direction of descent, its value and gradient; None if there is none."""
    low, high, length = 0.0, np.inf, 1.0
    for _ in range(_HALVINGS if slope < 0 else 0):
        moved = x + length * direction
        reached, gradient = function(moved)
        if not reached <= value + _DECREASE * length * slope:  # NaN as well
            high = length
        elif float(gradient @ direction) < _CURVATURE * slope:
            low = length
        else:
            return moved, reached, gradient
        length = (low + high) / 2 if np.isfinite(high) else 2 * low
    return None
