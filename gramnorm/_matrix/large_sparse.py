"""Large sparse matrices from both sides, by products with vectors first.

    ||A x|| / ||x||  <=  ||A||  <=  || |A| ||  <=  (max_j (|A|^T |A| w)_j / w_j)^(1/2)

for every x and every w > 0 (docs/theory.md, Theorem 24): equal in the middle where signs take all
entries to their moduli, and equal at both ends for the leading vectors.  Connected parts are
treated apart, the norm being the largest of theirs.  Where the moduli are too large the Gram matrix
decides, in the cheapest form that is at hand.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gramnorm._arrays import limits
from gramnorm._arrays.types import HostFloats, HostInts, HostNumbers
from gramnorm._matrix import lanczos, signs
from gramnorm._matrix.gram import bracket_by_iteration
from gramnorm._matrix.non_negative import LEAST, attained, lanczos_steps, leading, moduli
from gramnorm._results import Bounds

Rows = Any
"""A matrix of SciPy in compressed rows, entries of size about 1, no place twice."""

Road = Callable[[Rows, Bounds[float], float], Bounds[float] | None]
"""Bounds the norm of a matrix by its Gram matrix; None if that is dear.

Given are known bounds on it, and an upper bound on the norm of the moduli, by which the rounding is
counted.
"""

_UNSEEN = 1e-9
"""Share of the norm that entries of other phases than the rest may have before they are seen."""


@dataclasses.dataclass(frozen=True)
class Found:
    """Bounds, and a vector that attains the lower one."""

    bounds: Bounds[float]
    vector: HostNumbers


def bracket(b: Rows, *, rtol: float, roads: Sequence[Road]) -> Found:
    """Bracket the norm of `b`, not a zero matrix.

    `roads` are tried in turn where the moduli are too large.
    """
    if not np.all(b.data):  # a zero that is stored joins nothing
        b = b.copy()
        b.eliminate_zeros()
    parts = signs.parts(b)
    uppers, lengths, w = _first_steps(b, parts, rtol)
    best = int(np.argmax(lengths))
    x = np.where(parts.columns == best, parts.phases * w, 0.0)
    most = float(np.max(uppers))
    found = Found(Bounds(lower_bound(b, x, most), most, 2 * limits.FIRST_STEPS + 1), x)
    if found.bounds.is_within(rtol):
        return found
    return _largest_part(b, parts, uppers, w, found, rtol=rtol, roads=roads)


def lower_bound(b: Rows, x: HostNumbers, upper: float) -> float:
    """Return a lower bound on ||A x|| / ||x||; `upper` bounds the norm of the moduli of A."""
    return attained(b, x, upper, in_row=int(np.max(np.diff(b.indptr), initial=0)))


def _first_steps(
    b: Rows, parts: signs.Parts, rtol: float
) -> tuple[HostFloats, HostFloats, HostFloats]:
    """Take a few power steps with the moduli, from ones, in all parts at once.

    Return upper bounds on the norms of the parts of the moduli, what they are about at least, and
    the vector.
    """
    m = moduli(b)
    rows, columns = parts.rows, parts.columns
    count = 1 + max(int(rows.max(initial=0)), int(columns.max(initial=0)))
    w, z = np.ones(b.shape[1]), np.ones(b.shape[1])
    quotients, lengths = np.full(count, np.inf), np.zeros(count)
    for step in range(limits.FIRST_STEPS):
        if step:
            w = np.maximum(z / _largest(z, columns, count)[columns], LEAST)
        v, z = m.images(w)
        quotients = np.minimum(quotients, _largest(z / w, columns, count))
        sizes = np.bincount(columns, w * w, count)
        lengths = np.sqrt(np.bincount(rows, v * v, count) / np.where(sizes > 0, sizes, 1.0))
        if np.sqrt(np.max(quotients)) <= (1 + 0.9 * rtol) * np.max(lengths):
            break
    return m.above(quotients), lengths, w


def _largest(values: HostFloats, labels: HostInts, count: int) -> HostFloats:
    """Return the largest of the non-negative values with each label.

    0 for those that do not occur.
    """
    found = np.zeros(count)
    np.maximum.at(found, labels, values)
    return found


def _largest_part(
    b: Rows,
    parts: signs.Parts,
    uppers: HostFloats,
    w: HostFloats,
    found: Found,
    *,
    rtol: float,
    roads: Sequence[Road],
) -> Found:
    """Bracket the parts that may have the largest norm: small ones in stacks, others one by one."""
    lower, cost, x = found.bounds.lower, found.bounds.cost, found.vector
    order = np.argsort(-uppers, kind="stable")
    rows, columns = _Members(parts.rows), _Members(parts.columns)
    sides = np.maximum(rows.counts(len(uppers)), columns.counts(len(uppers)))
    small = order[(sides[order] <= limits.STACKED) & (uppers[order] > lower * (1 + rtol))]
    if small.size > 1:
        low, high, steps = _stacked(b, parts, small, sides, rtol=rtol)
        uppers[small], cost = np.minimum(uppers[small], high), cost + steps
        best = int(np.argmax(low))
        if low[best] > lower:
            lower = float(low[best])
            chosen = columns.of(small[best])
            x = np.zeros_like(x)
            x[chosen] = _dense_vector(b[rows.of(small[best])][:, chosen].toarray())
        order = order[~np.isin(order, small)]
    for part in order:
        if uppers[part] <= lower * (1 + rtol):
            break
        chosen = columns.of(part)
        y = parts.phases[chosen] * w[chosen]
        one = _connected(
            b[rows.of(part)][:, chosen].tocsr(), y, float(uppers[part]), rtol=rtol, roads=roads
        )
        uppers[part], cost = min(uppers[part], one.bounds.upper), cost + one.bounds.cost
        if one.bounds.lower > lower:
            lower, x = one.bounds.lower, np.zeros(len(x), dtype=one.vector.dtype)
            x[chosen] = one.vector
    return Found(Bounds(lower, float(np.max(uppers)), cost), x)


class _Members:
    """The places that carry each label, in order."""

    def __init__(self, labels: HostInts) -> None:
        self.labels = labels
        self.order = np.argsort(labels, kind="stable")
        self.sorted = labels[self.order]

    def of(self, label: int) -> HostInts:
        start, stop = np.searchsorted(self.sorted, [label, label + 1])
        return self.order[start:stop]

    def counts(self, count: int) -> HostInts:
        return np.bincount(self.labels, minlength=count)

    def rank(self) -> HostInts:
        """Return how many places before each one carry its label."""
        first = np.searchsorted(self.sorted, self.sorted)
        rank = np.empty_like(self.order)
        rank[self.order] = np.arange(len(first)) - first
        return rank


def _stacked(
    b: Rows, parts: signs.Parts, chosen: HostInts, sides: HostInts, *, rtol: float
) -> tuple[HostFloats, HostFloats, int]:
    """Bracket small parts by Gram iteration of stacks of blocks, padded to powers of two."""
    lower, upper, cost = np.zeros(len(chosen)), np.zeros(len(chosen)), 0
    rows, columns = _Members(parts.rows).rank(), _Members(parts.columns).rank()
    i = np.repeat(np.arange(b.shape[0]), np.diff(b.indptr))
    j, part = b.indices, parts.rows[i]
    side, most = 1, 2**27
    while side < 2 * limits.STACKED:
        fitting = np.flatnonzero((sides[chosen] <= side) & (sides[chosen] > side // 2))
        for start in range(0, len(fitting), most // (16 * side**2)):
            some = fitting[start : start + most // (16 * side**2)]
            place = np.full(len(sides), -1)
            place[chosen[some]] = np.arange(len(some))
            inside = np.flatnonzero(place[part] >= 0)
            stack = np.zeros((len(some), side, side), dtype=b.dtype)
            stack[place[part[inside]], rows[i[inside]], columns[j[inside]]] = b.data[inside]
            found = bracket_by_iteration(stack, rtol=rtol)
            lower[some], upper[some], cost = found.lower, found.upper, cost + found.cost
        side *= 2
    return lower, upper, cost


def _dense_vector(block: HostNumbers) -> HostNumbers:
    """Return about the leading right singular vector of a small block."""
    return lanczos.top_eigenpair(block.conj().T @ block)[1]


def _connected(
    b: Rows, x: HostNumbers, upper: float, *, rtol: float, roads: Sequence[Road]
) -> Found:
    """Bracket a connected matrix.

    `x` has the phases of a spanning tree, and moduli after a few power steps.
    """
    m = moduli(b)
    w = np.abs(x)
    # that of the moduli is no less
    size = float(np.linalg.norm(m.forward(w)) / np.linalg.norm(w))
    found = Found(Bounds(lower_bound(b, x, upper), upper, 1), x)
    has_phases = found.bounds.lower >= size * (1 - _UNSEEN)  # of all entries
    if not has_phases:
        found = _by_lanczos(b, found, upper, rtol=rtol)
    if has_phases or size <= found.bounds.lower * (1 + rtol):
        most, w, cost = leading(m, w, rtol=0.9 * rtol)
        y = x / np.abs(x) * w
        lower = lower_bound(b, y, min(most, upper))
        upper, better = min(upper, most), lower > found.bounds.lower
        found = Found(
            found.bounds.narrowed(Bounds(lower, most, cost)), y if better else found.vector
        )
    if has_phases and rtol < _UNSEEN and not found.bounds.is_within(rtol):
        found = _by_lanczos(b, found, upper, rtol=rtol)
    for road in roads:
        if found.bounds.is_within(rtol):
            break
        one = road(b, found.bounds, upper)
        if one is not None:
            found = Found(found.bounds.narrowed(one), found.vector)
    return found


def _by_lanczos(b: Rows, found: Found, upper: float, *, rtol: float) -> Found:
    """Return what is known with the lower bound of the leading vector, if that is higher."""
    y = leading_vector(b, rtol=rtol)
    lower = lower_bound(b, y, upper)
    if lower <= found.bounds.lower:
        return found
    return Found(found.bounds.narrowed(Bounds(lower, upper, 1)), y)


def leading_vector(b: Rows, *, rtol: float) -> HostNumbers:
    """Return about the leading right singular vector of `b`, by Lanczos."""
    start = np.random.default_rng(0).standard_normal(b.shape[1]).astype(b.dtype)
    adjoint = b.conj().T if b.dtype.kind == "c" else b.T
    return lanczos.long_ritz_vector(
        lambda q: adjoint @ (b @ q),
        start,
        rtol=0.03 * math.sqrt(rtol),
        steps=lanczos_steps(b.nnz),
        kept=limits.BASIS // (b.dtype.itemsize * b.shape[1]),
    )
