"""Multipliers of residual networks: proves nothing, since every one of them gives a bound.

Let z hold the inputs, the parts q of all activations (`_energies`) and half of the outputs, and row
j of A what neuron j reads of z, times the reach of its slopes.  With P = diag(p), p = Lambda / 2 at
neurons, 1 at outputs and p_0 at inputs, the constant is at most 2 sqrt(p_0) once

    N(p) = P - (P A + A^T P) / 2 >= 0,

and the least one is found as for chains (`_interior`), by matrices of all neurons at once.  Larger
networks descend on the largest eigenvalue of the energy at the input, made smooth as a Schatten
norm.  Its derivative by the energy behind a move is found on the way from the input to the output,
so that a step costs as much as a few certificates, linear in the depth.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from gramnorm._arrays import linalg, threads
from gramnorm._arrays.types import HostBools, HostFloats, HostInts
from gramnorm.network._energies import certificate, eliminated, linear_map
from gramnorm.network._interior import path
from gramnorm.network._minimise import lbfgs
from gramnorm.network._residuals import Bend, Fork, Graph, Join, Linear
from gramnorm.network._search import Best, Limits

_POWERS = 4, 16, 64, 256, 1024, 4096
_RTOL, _ITERATIONS = 1e-9, 200
_AROUND, _ROUNDS = 8.0, 8  # logarithms of factors, each time of a quarter
_OF_LAYERS = 1e11  # operations for factors of layers
_GAP = 1e-8  # of p_0
_ABOVE = 1.2  # p_0 at the start, beside the least one for its multipliers
_LEAST = 1e-30  # of the energy of neurons, where they are worth nothing
_DEAD = 1e-9  # rows of A, beside the longest
_NEWTON, _DESCENT = 30, 200  # steps, typical ones


def found(graph: Graph, *, limits: Limits) -> tuple[float, list[HostFloats]]:
    """Return the least certificate on the way, the composed constant at most, and multipliers.

    They are roots of Lambda up to a factor, activation by activation.
    """
    # of multipliers that do not serve
    quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")
    with quiet, threads.for_order(sum(bend.size for bend in graph.bends)):
        search, small = _Search(graph, limits), fewest(graph)
        first = start(small, [np.zeros(b.size) for b in graph.bends])
        if first is not None:
            search.begin(first)
            if _interior_work(small) > limits.work or not _program(small, search):
                _descend(small, search, np.arange(len(first)), limits.work)
    return search.bound, search.multipliers()


def given(graph: Graph, logarithms: Sequence[HostFloats]) -> float:
    """Return the certificate of multipliers that are known up to a factor for each activation."""
    quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")
    with quiet, threads.for_order(sum(bend.size for bend in graph.bends)):
        search, small = _Search(graph, Limits(math.inf, 0.0, math.inf, None)), fewest(graph)
        first = start(small, logarithms)
        if first is not None:
            search.begin(_with_one_factor(small, logarithms, first))
            owners = np.repeat(np.arange(len(logarithms)), [*map(len, logarithms)])
            _descend(small, search, owners, _OF_LAYERS)
    return search.bound


def _with_one_factor(
    graph: Graph, logarithms: Sequence[HostFloats], first: HostFloats
) -> HostFloats:
    """Return multipliers times one factor for all where they fit together, else the first."""
    whole = np.concatenate([*logarithms, np.zeros(0)])
    if not whole.size:
        return first
    value = partial(value_and_gradient, graph, power=_POWERS[-1])
    best, least = first, value(first)[0]
    middle, rounds = (
        float(np.mean(first - whole)),
        min(_ROUNDS, _OF_LAYERS / descent_work(graph) / 9),
    )
    for i in range(1 + int(rounds)):
        steps = middle + np.linspace(-_AROUND, _AROUND, 9 if i else 17) / 4.0**i
        values = [value(whole + step)[0] for step in steps]
        place = int(np.argmin(values))
        middle = float(steps[place])
        if values[place] < least:
            best, least = whole + middle, values[place]
    return best


class _Search(Best):
    """The least certificate so far."""

    def __init__(self, graph: Graph, limits: Limits) -> None:
        sizes = [bend.size for bend in graph.bends]
        super().__init__(graph.product, np.zeros(sum(sizes)), limits)
        self._graph, self._ends = graph, np.cumsum(sizes)[:-1]

    def begin(self, logarithms: HostFloats) -> None:
        """Go on from multipliers, whatever their certificate."""
        self.logarithms = logarithms
        self.offer(logarithms)

    def multipliers(self) -> list[HostFloats]:
        """Return the roots of Lambda, their logarithms about zero."""
        logs = self.logarithms / 2
        if logs.size:
            logs = logs - (np.min(logs) + np.max(logs)) / 2
        return self._split(np.exp(np.clip(logs, -700.0, 700.0)))

    def _split(self, every: HostFloats) -> list[HostFloats]:
        return np.split(every, self._ends) if every.size else []

    def offer(self, logarithms: HostFloats) -> None:
        """Certify multipliers, and keep them if they are better."""
        self.keep(certificate(self._graph, self._split(logarithms)), logarithms)


def fewest(graph: Graph) -> Graph:
    """Return a graph of the same constant, up to rounding, with few inputs and outputs."""
    moves = list(graph.moves)
    first, last = moves[0], moves[-1]
    if isinstance(first, Linear) and first.weights.shape[0] < first.weights.shape[1]:
        triangle = linalg.attempted(partial(np.linalg.qr, mode="r"), first.weights.T)
        moves[0] = first if triangle is None else Linear(triangle.T)
    last = moves[-1]
    if isinstance(last, Linear) and last.weights.shape[0] > last.weights.shape[1]:
        triangle = linalg.attempted(partial(np.linalg.qr, mode="r"), last.weights)
        moves[-1] = last if triangle is None else Linear(triangle)
    first, last = moves[0], moves[-1]
    return dataclasses.replace(
        graph,
        moves=tuple(moves),
        inputs=first.weights.shape[1] if isinstance(first, Linear) else graph.inputs,
        outputs=last.weights.shape[0] if isinstance(last, Linear) else graph.outputs,
    )


def start(graph: Graph, logarithms: Sequence[HostFloats]) -> HostFloats | None:
    """Return multipliers with the composed constant at most, a factor for each activation chosen.

    |S x + c|^2 <= (1 + t) |S x|^2 + (1 + 1/t) |c|^2 parts a branch from its shortcut; and for
    v^T E v <= m v^T X v a multiple of X is enough to bound v by the largest slope times u.
    """
    energy, k, chosen, left = np.eye(graph.outputs), 0.0, [], list(logarithms)
    for move in reversed(graph.moves):
        if isinstance(move, Bend) and move.reach > 0:
            shape = left.pop()
            root = np.exp(np.clip(shape - np.mean(shape), -300.0, 300.0) / 2)
            own = energy[-move.size :, -move.size :] / root[:, None] / root
            values = linalg.attempted(np.linalg.eigvalsh, own)
            if values is None or not values[-1] < math.inf:
                return None
            largest = max(abs(move.low), abs(move.high))
            multipliers = max(values[-1], _LEAST) * largest / move.reach * root**2
            bent = eliminated(energy, move, multipliers, margin=0.0)
            if bent is None:
                return None
            energy = bent[0]
            chosen.append(np.log(multipliers) + k)
        else:
            before = linear_map(move, len(energy))
            energy = before.T @ energy @ before
            if isinstance(move, Join):
                energy = _parted(energy, move)
        energy, k = _of_size_one(energy, k)
        if not np.all(np.isfinite(energy)):
            return None
    return np.concatenate([*chosen[::-1], np.zeros(0)])


def _of_size_one(energy: HostFloats, k: float) -> tuple[HostFloats, float]:
    """Return an energy over the largest entry of its diagonal, and the logarithm with that of it."""
    peak = float(np.max(np.diagonal(energy)))
    return (energy / peak, k + math.log(peak)) if 0 < peak < math.inf else (energy, k)


def _parted(energy: HostFloats, join: Join) -> HostFloats:
    """Return an energy above, without terms of the branch and what is beside it."""
    size = join.size if join.shortcut is None else len(join.shortcut)
    t = min(max(join.ratio, 1e-8), 1e8)
    parted = np.zeros_like(energy)
    parted[:-size, :-size] = (1 + t) * energy[:-size, :-size]
    parted[-size:, -size:] = (1 + 1 / t) * energy[-size:, -size:]
    return parted


def value_and_gradient(
    graph: Graph, logarithms: HostFloats, *, power: float
) -> tuple[float, HostFloats]:
    """Return the logarithm of a smooth bound and its gradient by the logarithms of Lambda."""
    ends = np.cumsum([0, *(b.size for b in graph.bends)])
    energy, k, place = np.eye(graph.outputs), 0.0, len(ends) - 1
    steps: list[tuple[HostFloats, float, HostFloats | None, HostFloats]] = []
    nothing = math.inf, np.zeros(len(logarithms))
    for move in reversed(graph.moves):
        weights, slopes = np.zeros(0), None
        if isinstance(move, Bend) and move.reach > 0:
            place -= 1
            own = logarithms[ends[place] : ends[place + 1]]
            weights = np.exp(np.clip(own - k, -300.0, 300.0))
            bent = eliminated(energy, move, weights, margin=0.0)
            if bent is None:
                return nothing
            before = np.eye(len(energy))
            start = len(energy) - move.size
            energy, slopes = bent
            before[start:, start:] *= move.low
            before[start:] += slopes.T
        else:
            before = linear_map(move, len(energy))
            energy = before.T @ energy @ before
        peak = float(np.max(np.diagonal(energy)))
        if not 0 < peak < math.inf:
            return nothing
        energy, k = energy / peak, k + math.log(peak)
        steps.append((before, peak, slopes, 2 * weights))
    values = linalg.eigenvectors_or_none(energy)
    if values is None or not values[0][-1] > 0:
        return nothing
    squares, vectors = values
    ratios = np.maximum(squares, 0.0) / squares[-1]
    total = float(np.sum(ratios**power))
    weight = (vectors * (ratios ** (power - 1) / total / squares[-1])) @ vectors.T
    gradient = []
    bends = iter(graph.bends)
    for before, peak, slopes, weights in reversed(steps):
        weight = weight / peak
        if slopes is not None:  # of 2 q^T Lambda (reach u - q)
            half = slopes.T @ weight
            read = next(bends).reach * np.diagonal(half[:, -len(half) :])
            gradient.append(weights * (read - np.sum(half * slopes.T, axis=1)))
        weight = before @ weight @ before.T
    value = math.log(squares[-1]) + math.log(total) / power + k
    return value / 2, np.concatenate([*gradient, np.zeros(0)]) / 2


def _descend(graph: Graph, search: _Search, owners: HostInts, work: float) -> None:
    """Lower the bound from the best multipliers so far, by numbers for all that have one owner."""
    logs = search.logarithms
    if not logs.size:
        return
    cost = descent_work(graph)
    for power in _POWERS:
        most = int(min(_ITERATIONS, work / cost))
        if most == 0 or search.has_ended():
            return
        base, steps = logs, 0

        def function(x: HostFloats, base: HostFloats = base, power: int = power):  # type: ignore[no-untyped-def]
            value, gradient = value_and_gradient(graph, base + x[owners], power=power)
            return value, np.bincount(owners, gradient, len(x))

        zero = np.zeros(int(owners[-1]) + 1)
        for x in itertools.islice(lbfgs(function, zero, rtol=_RTOL), most):
            logs, steps = base + x[owners], steps + 1
            if search.has_ended():
                break
        work -= steps * cost
        search.offer(logs)


def _interior_work(graph: Graph) -> float:
    """Return about how many operations the interior point takes."""
    order = graph.inputs + sum(b.size for b in graph.bends) + graph.outputs
    return _NEWTON * 16.0 * order**3


def descent_work(graph: Graph) -> float:
    """Return about how many operations a step of the descent takes."""
    total, size = 1.0, graph.outputs
    for move in reversed(graph.moves):
        if isinstance(move, Bend):
            total += 8.0 * size**3
        else:
            k = linear_map(move, size)
            total, size = total + 8.0 * size * k.shape[1] * max(k.shape), k.shape[1]
    return total


def _program(graph: Graph, search: _Search) -> bool:
    """Offer multipliers that approach the least bound; say whether there is such a problem."""
    value, _ = value_and_gradient(graph, search.logarithms, power=math.inf)
    inequality, alive = Feedforward.of(graph)
    if not math.isfinite(value) or not np.any(alive):
        return False
    p = np.concatenate(
        [[_ABOVE * np.exp(2 * value) / 4], np.exp(search.logarithms[alive]) / 2, [1]]
    )
    if not math.isfinite(inequality.log_determinant(p)):
        return False
    for moved in path(inequality, p, gap=_GAP):
        every = np.full(len(alive), math.log(2 * float(np.max(moved[1:-1])) / _DEAD))
        every[alive] = np.log(2 * moved[1:-1])
        search.offer(every)  # which costs little, and the last may be too near the end to be proved
        if search.has_ended():
            break
    return True


@dataclasses.dataclass(frozen=True, eq=False)
class Feedforward:
    """N(p) of a network, as a whole.

    Attributes
    ----------
    tilted : host floats, shape (order, order)
        A^T - 1, so that N = -(U P + P U^T) / 2.
    groups : host ints
        Which p each has.
    """

    tilted: HostFloats
    groups: HostInts

    @classmethod
    def of(cls, graph: Graph) -> tuple[Feedforward, HostBools]:
        """Return it without neurons that read nothing, and which of all are left."""
        rows, outputs = _reads(graph)
        alive = np.ones(len(rows), dtype=bool)
        n = graph.inputs
        for j, row in enumerate(rows):  # what reads dead neurons alone is dead
            seen = np.concatenate([np.ones(n, dtype=bool), alive])
            alive[j] = np.max(np.abs(row[seen]), initial=0.0) > 0
        lengths = np.linalg.norm(rows, axis=1)
        alive &= lengths > _DEAD * np.max(lengths, initial=0.0)
        seen = np.concatenate([np.ones(n, dtype=bool), alive])
        order = int(np.sum(seen)) + graph.outputs
        whole = np.zeros((order, order))
        whole[n : order - graph.outputs, : order - graph.outputs] = rows[alive][:, seen]
        whole[order - graph.outputs :, : order - graph.outputs] = outputs[:, seen]
        count = int(np.sum(alive))
        groups = np.repeat(np.arange(count + 2), [n, *[1] * count, graph.outputs])
        return cls(whole.T - np.eye(order), groups), alive

    @property
    def order(self) -> int:
        """The rows of N."""
        return len(self.groups)

    def _inverse(self, p: HostFloats) -> tuple[float, HostFloats] | None:
        """Return log det N and the inverse of its factor; None unless N(p) > 0."""
        product = self.tilted * p[self.groups]
        factor = linalg.attempted(np.linalg.cholesky, -(product + product.T) / 2)
        inverse = None if factor is None else linalg.inverse_or_none(factor)
        if factor is None or inverse is None:
            return None
        return 2 * float(np.sum(np.log(np.diagonal(factor)))), inverse

    def log_determinant(self, p: HostFloats) -> float:
        """Return that of N(p), -inf unless N(p) > 0."""
        found = self._inverse(p) if np.all(p > 0) else None
        return -math.inf if found is None else found[0]

    def gradient(self, p: HostFloats) -> HostFloats | None:
        """Return that of -log det N, None unless N(p) > 0."""
        found = self._inverse(p)
        if found is None:
            return None
        z = found[1].T @ found[1]
        return np.bincount(self.groups, np.sum(z * self.tilted.T, axis=1), len(p)).astype(
            np.float64
        )

    def hessian(self, p: HostFloats) -> HostFloats | None:
        """Return that of -log det N, None unless N(p) > 0."""
        found = self._inverse(p)
        if found is None:
            return None
        z = found[1].T @ found[1]
        y = z @ self.tilted
        each = (y * y.T + (self.tilted.T @ y) * z) / 2
        starts = np.searchsorted(self.groups, np.arange(len(p)))
        return np.add.reduceat(np.add.reduceat(each, starts, 0), starts, 1)


def _reads(graph: Graph) -> tuple[HostFloats, HostFloats]:
    """Return the rows of A for neurons and for outputs, on inputs and neurons."""
    n, count = graph.inputs, sum(b.size for b in graph.bends)
    at, kept, rows, place = np.eye(n, n + count), list[HostFloats](), list[HostFloats](), n
    for move in graph.moves:
        if isinstance(move, Linear):
            at = move.weights @ at
        elif isinstance(move, Fork):
            kept.append(at)
        elif isinstance(move, Join):
            before = kept.pop()
            at = at + (before if move.shortcut is None else move.shortcut @ before)
        else:
            before = at
            at = move.low * before
            if move.reach > 0:
                rows.append(move.reach * before)
                at = at + np.eye(move.size, n + count, k=place)
                place += move.size
    return np.concatenate([*rows, np.zeros((0, n + count))]), at
