"""Multipliers of a deep chain, layer by layer with a look at the next ones: proves nothing.

Eliminating the layers before i from the inequality N(p) >= 0 of a chain (`_inequality`) leaves the
pivot S_{i-1}, an energy of the signal behind layer i - 1 that its input is worth.  What follows
depends on the layers before through it alone, so that with S_{i-1} = R R^*

    W_i R^{-*}, W_{i+1}, ..., W_{i+ahead}

is a chain by itself.  The p of its layer i are kept, and S_i = diag(p_i) - 1/4 p_i W_i S_{i-1}^-1
W_i^* p_i, so the work grows with the depth alone.  ECLipsE (Xu and Sivaranjani 2024) looks one layer
ahead; how close this comes to the least bound of the whole chain depends on how far it looks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gramnorm._arrays import linalg
from gramnorm._arrays.linalg import adjoint
from gramnorm._arrays.types import HostFloats, HostInts, HostNumbers
from gramnorm.network._inequality import Inequality, Segment, operations
from gramnorm.network._interior import path
from gramnorm.network._program import Reduced, coarse_grid
from gramnorm.network._search import Search

_GAP = 1e-3  # of p_0
_STEPS = 25  # of Newton's method: typical ones
_FARTHEST = 8


def descend(search: Search, *, work: float) -> None:
    """Offer multipliers of a chain of one segment, which see as far ahead as the work allows."""
    chain = search.chain
    if len(chain.segments) > 1:
        return
    grid = coarse_grid(chain.segments[0])
    reduced = Reduced.of(chain, [grid])
    widths = chain.segments[0].widths
    seen = [k for k in range(1, _FARTHEST + 1) if _work(widths, grid, ahead=k) <= work]
    if reduced is None or not seen:
        return
    p = look_ahead(search, reduced.inequality.segments[0], ahead=seen[-1])
    if p is not None:
        search.offer(reduced.logarithms(p))


def _work(widths: Sequence[int], grid: HostFloats, *, ahead: int) -> float:
    """Return about how many operations it takes."""
    total = 0.0
    for i in range(len(widths) - 1):
        window = widths[i : i + ahead + 2]
        step = operations(window, len(grid), is_complex=grid.size > 0)
        total += _STEPS * (step + 2.0 * sum(window[1:-1]) ** 3)
    return total


def look_ahead(search: Search, segment: Segment, *, ahead: int) -> HostFloats | None:
    """Return p of a segment from input to output, 1 at the input; None if the search has ended."""
    weights, layers = segment.weights, segment.layers
    found = np.ones(int(layers[-1][0]) + 1)
    first = weights[0]
    for i in range(len(weights)):
        last = min(i + 1 + ahead, len(weights))
        p = _least(search, [first, *weights[i + 1 : last]], layers[i + 1 : last])
        if p is None:
            return None
        places = np.unique(np.concatenate(layers[i + 1 : last]))
        found[places] = p[1:-1]  # those of later layers for the time being
        if last == len(weights):
            found[-1] = p[-1]
            return found
        own = found[layers[i + 1]]
        above = own[:, None] * first / 2
        pivot = linalg.attempted(np.linalg.cholesky, np.diag(own) - above @ adjoint(above))
        inverse = None if pivot is None else linalg.inverse_or_none(pivot)
        if inverse is None:
            return None
        first = weights[i + 1] @ adjoint(inverse)
    return None


def _least(
    search: Search, weights: Sequence[HostNumbers], hidden: Sequence[HostInts]
) -> HostFloats | None:
    """Return p of the input, 1, of the channels between and of the output, for the least bound."""
    places, groups = np.unique(np.concatenate(hidden), return_inverse=True)
    ends = weights[0].shape[2], weights[-1].shape[1]
    between = np.split(groups + 1, np.cumsum([len(x) for x in hidden])[:-1])
    layers = [np.zeros(ends[0], dtype=int), *between, np.full(ends[1], len(places) + 1)]
    inequality = Inequality([Segment.of(weights, layers)])
    p = inequality.start(len(places) + 2)
    if p is None:
        return None
    for moved in path(inequality, p, gap=_GAP):
        p = moved
        if search.has_ended():
            return None
    scaled: HostFloats = p / p[0]
    return scaled
