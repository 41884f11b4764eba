"""Where good multipliers are: proves nothing, since every multiplier gives a bound (Theorem 29).

Three ways lead there, and the work that a search may take, as foretold, decides: the semidefinite
program of the whole chain (`_program`); that of a few layers at a time (`_lookahead`); or a descent
of the bound

    y_0 - y_l + l log ||B(y)|| + const

in the logarithms y of the multipliers, which is smooth once the norm is replaced by that of a fixed
number of Gram steps.  Stages of more and more steps follow the norm into its kink.  Multipliers
that are scalars of whole layers reach at least the product of norms: if X_i W_i / X_{i-1} has norm
sqrt 2 for the first and the last layer of a segment and 1 between them, then ||B|| <= 2.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from gramnorm._arrays import threads
from gramnorm._arrays.types import HostFloats, HostInts
from gramnorm.network import _lookahead, _program
from gramnorm.network._coupling import Chain, Coupling
from gramnorm.network._minimise import lbfgs
from gramnorm.network._search import Limits, Search, multipliers

EFFORTS = {"quick": 5e8, "fast": 2e10, "standard": 6e11, "high": 3e13}
"""Operations that a search may take, as foretold: at 1e10 each, up to an hour."""

_FEWEST, _DEAR = 2, 2e10  # first steps of the descent, which gain most: always, unless so dear

# Gram steps, and for convolutions frequencies per tap.  Few steps lead fast to the neighbourhood; 21
# are within 1e-6 of the norm where 64 singular values are equal.  The descent raises peaks between
# frequencies: 8 per tap alone end 2 % higher for eight layers; first steps from 4 per tap end as low
# as from 6, in half the time.
_MATRIX_STAGES = tuple((steps, 0) for steps in (3, 5, 7, 9, 12, 15, 18, 21))
_CONV_STAGES = (3, 4), (5, 8), (7, 12), (9, 16)
_END_STAGES = (5, 8), (12, 12), (18, 16)
_MATRIX_RTOL, _CONV_RTOL = 1e-10, 1e-6
_ITERATIONS = 100  # of a stage


def found(
    chain: Chain,
    product: float,
    start: Sequence[HostFloats] | None = None,
    *,
    limits: Limits,
) -> tuple[float, list[HostFloats]]:
    """Return the least certificate on the way, `product` at most, and its multipliers by layers.

    A descent begins at multipliers of a bound that is known, or where the product of norms is.
    """
    search = Search(chain, product, _layer_by_layer(chain), limits)
    with threads.for_order(sum(chain.sizes)):
        if start is not None:
            search.offer(np.log(with_ends(chain, start)))
        if chain.depth > 1:
            fits = _program.work(chain) <= limits.work
            if not (fits and _program.descend(search)):
                _lookahead.descend(search, work=limits.work)
                descend(search, work=limits.work)
    return search.bound, _vectors(chain, search.logarithms)


def descend(search: Search, *, work: float) -> None:
    """Lower the bound from the best multipliers so far, in stages, as long as the work lasts."""
    chain, logs = search.chain, search.logarithms
    stages = _MATRIX_STAGES if chain.is_dense else _CONV_STAGES
    costs = [
        sum(segment.operations(steps=steps, density=density) for segment in chain.segments)
        for steps, density in stages
    ]
    if costs[0] <= _DEAR:
        work = max(work, _FEWEST * costs[0])
    for stage, cost in zip(stages, costs, strict=True):
        most = int(min(_ITERATIONS, work / cost))
        if most == 0 or search.has_ended():
            return
        steps = 0
        for lower in _descent(chain, logs, np.arange(len(logs)), stage=stage):
            logs, steps = lower, steps + 1
            if search.has_ended() or steps == most:
                break
        work -= steps * cost
        search.offer(logs)


def with_ends(
    chain: Chain,
    vectors: Sequence[HostFloats],
    *,
    stages: Sequence[tuple[int, int]] = _END_STAGES,
) -> HostFloats:
    """Return all multipliers: the given ones, and for the two ends the best numbers of a stage."""
    scales = np.cumsum(chain.scales[:-1])
    hidden = np.concatenate([np.log(x) + s for x, s in zip(vectors, scales, strict=True)] or [[]])
    if hidden.size:
        hidden -= (np.min(hidden) + np.max(hidden)) / 2
    logs = np.concatenate([[0.0], hidden, [0.0]])
    if chain.depth > 1:
        ends = np.asarray([0, len(logs) - 1])
        logs[ends] = _first_ends(chain, logs)
        with threads.for_order(sum(chain.sizes)):
            for stage in stages:
                lower = itertools.islice(_descent(chain, logs, ends, stage=stage), _ITERATIONS)
                logs = functools.reduce(lambda _, last: last, lower, logs)
    return multipliers(logs)


def _layer_by_layer(chain: Chain) -> HostFloats:
    """Return scalars of layers, as logarithms, that reach the product of the norms."""
    wanted = []
    for segment in chain.segments:
        share = math.log(2.0) / 2 if segment.depth > 1 else 0.0
        wanted += [share, *[0.0] * (segment.depth - 2), share][: segment.depth]
    logs = np.concatenate([[0.0], np.cumsum(np.asarray(wanted) - np.log(chain.norms))])
    return np.repeat(logs - np.mean(logs), chain.sizes)


def _first_ends(chain: Chain, logs: HostFloats) -> tuple[float, float]:
    """Return logarithms of both ends for which their layers weigh as much as those between."""
    x, last = multipliers(logs), len(logs) - 1
    one, other = chain.segments[0], chain.segments[-1]
    first_own, _, first_rest = _weights(one, x, last)
    _, last_own, last_rest = _weights(other, x, last)
    if one is other and one.depth == 2:  # the ratio of the ends alone matters
        first_rest = last_rest = (first_own + last_own) / 2
    first = (first_own - first_rest) / 2 if one.depth > 1 else 0.0
    return first, (last_rest - last_own) / 2 if other.depth > 1 else 0.0


def _weights(segment: Coupling, x: HostFloats, last: int) -> tuple[float, float, float]:
    """Return logarithms of the sums of squares of B at both ends of the chain and between them."""
    squares = segment.scaled(x) ** 2
    ends = [(segment.rows == i)[:, None] | (segment.columns == i) for i in (0, last)]
    parts = (*ends, ~(ends[0] | ends[1]))
    first, end, between = (math.log(max(float(np.sum(squares[p])), 1e-300)) for p in parts)
    return first, end, between


def _descent(
    chain: Chain, logs: HostFloats, free: HostInts, *, stage: tuple[int, int]
) -> Iterator[HostFloats]:
    """Yield logarithms that lower the smooth bound of a stage; those not `free` stay."""
    steps, density = stage

    def placed(part: HostFloats) -> HostFloats:
        whole = logs.copy()
        whole[free] = part
        return whole

    def function(part: HostFloats) -> tuple[float, HostFloats]:
        value, gradient = chain.value_and_gradient(placed(part), steps=steps, density=density)
        return value, gradient[free]

    rtol = _MATRIX_RTOL if chain.is_dense else _CONV_RTOL
    return map(placed, lbfgs(function, logs[free], rtol=rtol))


def _vectors(chain: Chain, logs: HostFloats) -> list[HostFloats]:
    """Return the multipliers of the weights as stored, layer by layer without the ends."""
    scales = np.cumsum(chain.scales[:-1])
    hidden = logs[1:-1] - np.repeat(scales, chain.sizes[1:-1])
    if hidden.size:
        hidden -= (np.min(hidden) + np.max(hidden)) / 2
    hidden = np.exp(np.clip(hidden, -700.0, 700.0))
    return np.split(hidden, np.cumsum(chain.sizes[1:-1])[:-1]) if hidden.size else []
