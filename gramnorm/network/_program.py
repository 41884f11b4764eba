"""The semidefinite program of a whole chain: finds multipliers, proves nothing.

LipSDP-Neuron asks for the least p_0 with N(p) >= 0 (`_inequality`), for convolutions at every
frequency.  A few of them decide.  Those where B turns out too large for the p of the others come in
as they are found (cutting planes): local maxima on a grid, and the maximum of the certificate.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from gramnorm._arrays.types import HostBools, HostFloats, HostNumbers
from gramnorm.network._coupling import Chain, Coupling
from gramnorm.network._inequality import Inequality, Segment, operations
from gramnorm.network._interior import path
from gramnorm.network._search import Search, multipliers

_DEAD = 1e-9  # rows of weights, beside the longest of their layer
_MATRIX_GAP, _CONV_GAP, _FIRST_GAP = 1e-8, 2e-4, 0.03  # of p_0: twice those of the bound
_ROUNDS = 20
_DENSE_STEPS, _CONV_STEPS = 30, 100  # of Newton's method: typical ones
_EXCESS = 2e-4  # of the bound, by frequencies that were left out
_HIGH = 1.97  # ||B|| on the grid from which on a maximum nearby may be above 2
_COARSE, _FINE = (2, 80), (8, 600)  # frequencies per tap and axis, and most of all axes
_LOWER = 0.8  # of p_0, since the last certificate on the way
_OFFERED = 0.05  # excess up to which the certificate is asked, which is exact about peaks
_STRIDES = 0.1, 0.03, 0.01  # angles
_APART, _CUTS = 0.45, 12  # angle between two frequencies that come in together, and most of them


def work(chain: Chain) -> float:
    """Return about how many operations `descend` takes."""
    grids = [coarse_grid(segment) for segment in chain.segments]
    step = 2.0 * sum(chain.sizes) ** 3 + sum(
        operations(s.widths, len(grid) + (_CUTS if grid.size else 0), is_complex=grid.size > 0)
        for s, grid in zip(chain.segments, grids, strict=True)
    )
    return step * (_DENSE_STEPS if chain.is_dense else _CONV_STEPS)


def descend(search: Search) -> bool:
    """Offer multipliers that approach the least bound; say whether there is such a problem."""
    chain = search.chain
    cuts = [_Cuts.of(segment) for segment in chain.segments]
    logs: HostFloats | None = None
    inside, gap = 1.0, _MATRIX_GAP if chain.is_dense else _FIRST_GAP
    for _ in range(_ROUNDS):
        settled = _settled(search, logs, cuts, inside=inside, gap=gap)
        if settled is None:
            return False
        if chain.is_dense or search.has_ended():
            search.offer(settled)
            return True
        logs, x = settled, multipliers(settled)
        for cut in cuts:
            cut.look(x)
        if _excess(cuts) < _OFFERED:
            for cut, peak in zip(cuts, search.offer(logs), strict=True):
                cut.consider(x, peak)
        excess = _excess(cuts)
        missed = [cut.enter(_EXCESS / len(cuts)) for cut in cuts]
        if not any(missed) and gap <= _CONV_GAP:
            return True
        gap = max(_CONV_GAP, min(gap / 3, excess))
        inside = math.exp((excess + gap) / chain.depth)
    return True


@dataclasses.dataclass(eq=False)
class _Cuts:
    """The frequencies of a segment that are asked for, and those where B is largest.

    Attributes
    ----------
    segment : Coupling
    grid, chosen : host floats, shape (frequencies, axes)
        Where to look, and where N(p) >= 0 is asked for.
    peaks, norms : host floats
        Local maxima of ||B||.
    """

    segment: Coupling
    grid: HostFloats
    chosen: HostFloats
    peaks: HostFloats
    norms: HostFloats

    @classmethod
    def of(cls, segment: Coupling) -> _Cuts:
        """Begin with a coarse grid; a matrix has one frequency, without angles."""
        few = coarse_grid(segment)
        many = _half_grid(segment.entries.shape[2:], *_FINE)
        return cls(segment, many, few, few[:0], np.zeros(0))

    @property
    def excess(self) -> float:
        """What the largest norm adds to the logarithm of the bound, beside the norm 2."""
        return self.segment.depth * math.log(max(2.0, float(np.max(self.norms, initial=0.0))) / 2)

    def look(self, x: HostFloats) -> None:
        """Find local maxima of ||B|| for multipliers x."""
        norms = self.segment.norms(x, self.grid)
        kept: list[int] = []
        for k in np.argsort(-norms):
            if norms[k] < _HIGH or len(kept) == _CUTS:
                break
            if all(_distance(self.grid[k], self.grid[other]) > _APART for other in kept):
                kept.append(int(k))
        self.peaks, self.norms = self._climbed(x, self.grid[kept], norms[kept])

    def consider(self, x: HostFloats, peak: HostFloats | None) -> None:
        """Add a frequency to those where B may be largest."""
        if peak is not None:
            self.peaks = np.concatenate([self.peaks, peak[None]])
            self.norms = np.concatenate([self.norms, self.segment.norms(x, peak[None])])

    def enter(self, excess: float) -> bool:
        """Ask for N(p) >= 0 where the bound is exceeded by so much; say whether it is anywhere."""
        missed = self.norms > 2 * math.exp(excess / self.segment.depth)
        self.chosen = np.concatenate([self.chosen, self.peaks[missed]])
        return bool(np.any(missed))

    def _climbed(
        self, x: HostFloats, theta: HostFloats, norms: HostFloats
    ) -> tuple[HostFloats, HostFloats]:
        """Return frequencies nearby where B is larger, by parabolas along the axes."""
        for step in _STRIDES if theta.size else ():
            moves = step * np.eye(theta.shape[1])
            ahead, behind = (
                np.stack([self.segment.norms(x, theta + sign * m) for m in moves], axis=1)
                for sign in (1, -1)
            )
            bend = np.maximum(2 * norms[:, None] - ahead - behind, np.finfo(float).tiny)
            moved = theta + step * np.clip((ahead - behind) / (2 * bend), -1, 1)
            reached = self.segment.norms(x, moved)
            theta = np.where((reached > norms)[:, None], moved, theta)
            norms = np.maximum(norms, reached)
        return theta, norms


def coarse_grid(segment: Coupling) -> HostFloats:
    """Return a few frequencies to begin with: of a matrix one, without angles."""
    return _half_grid(segment.entries.shape[2:], *_COARSE)


def _excess(cuts: Sequence[_Cuts]) -> float:
    """Return the excess of all segments."""
    return sum(cut.excess for cut in cuts)


def _half_grid(taps: tuple[int, ...], per_tap: int, most: int) -> HostFloats:
    """Return half of a grid of angles, since B(-theta) is the conjugate of B(theta)."""
    counts = np.asarray([per_tap * k if k > 1 else 1 for k in taps], dtype=int)
    while math.prod(counts.tolist()) > 2 * most:
        counts = np.maximum(1, 2 * (2 * counts // 5))
    points = np.asarray(list(itertools.product(*map(range, counts))), dtype=int)
    place = np.cumprod([1, *counts[:0:-1]])[::-1] if len(counts) else counts
    angles: HostFloats = 2 * math.pi * (points / counts)
    is_kept: HostBools = points @ place <= (-points % counts) @ place
    return angles[is_kept]


def _distance(a: HostFloats, b: HostFloats) -> float:
    """Return the distance of two frequencies, the same up to a sign."""
    around = np.angle(np.exp(1j * np.stack([a - b, a + b])))
    return float(np.min(np.linalg.norm(around, axis=1)))


def _settled(
    search: Search, logs: HostFloats | None, cuts: Sequence[_Cuts], *, inside: float, gap: float
) -> HostFloats | None:
    """Return logarithms of multipliers with the least bound that the chosen frequencies know of."""
    chain = search.chain
    reduced = Reduced.of(chain, [cut.chosen for cut in cuts])
    if reduced is None:
        return None
    if logs is None:
        p = reduced.inequality.start(int(np.sum(reduced.alive)))
    else:
        p = reduced.squares(_further_inside(chain, logs, cuts, inside))
    if p is None:
        return None
    offered = p[0]
    for moved in path(reduced.inequality, p, gap=gap):
        p = moved
        if search.has_ended():
            break
        if chain.is_dense and p[0] < _LOWER * offered:
            search.offer(reduced.logarithms(p))
            offered = p[0]
    return reduced.logarithms(p)


def _further_inside(
    chain: Chain, logs: HostFloats, cuts: Sequence[_Cuts], inside: float
) -> HostFloats:
    """Return multipliers with ||B|| = 2 / inside at most where N(p) >= 0 is asked for."""
    norms = [cut.segment.norms(multipliers(logs), cut.chosen) for cut in cuts]
    steps = [math.log(inside * float(np.max(n)) / 2) for n in norms]
    lower = np.cumsum(np.repeat([0.0, *steps], [1, *(cut.segment.depth for cut in cuts)]))
    moved: HostFloats = logs - np.repeat(lower, chain.sizes)  # divides all blocks of B by e^step
    return moved


@dataclasses.dataclass(frozen=True, eq=False)
class Reduced:
    """The inequality of a chain without the channels to which no weights lead.

    The p of such a channel has no upper limit.

    Attributes
    ----------
    inequality : Inequality
        Of those that are left.
    alive : host bools
        Their multipliers.
    """

    inequality: Inequality
    alive: HostBools

    @classmethod
    def of(cls, chain: Chain, frequencies: Sequence[HostFloats]) -> Reduced | None:
        """Return the inequality at some frequencies of each segment; None if a layer is dead."""
        ways = zip(chain.segments, frequencies, strict=True)
        weights = [segment.weights(theta) for segment, theta in ways]
        alive = _alive(chain, weights)
        if not all(np.any(part) for part in np.split(alive, np.cumsum(chain.sizes)[:-1])):
            return None
        places, parts = np.cumsum(alive) - 1, []
        for segment, links in zip(chain.segments, weights, strict=True):
            kept = [alive[owner] for owner in segment.owners]
            sides = zip(links, kept[:-1], kept[1:], strict=True)
            cut = [w[:, rows][:, :, columns] for w, columns, rows in sides]
            groups = [places[o[k]] for o, k in zip(segment.owners, kept, strict=True)]
            parts.append(Segment.of(cut, groups))
        return cls(Inequality(parts), alive)

    def squares(self, logarithms: HostFloats) -> HostFloats:
        """Return p for these multipliers, 1 at the output."""
        every: HostFloats = np.exp(2 * (logarithms - logarithms[-1]))
        return every[self.alive]

    def logarithms(self, p: HostFloats) -> HostFloats:
        """Return the logarithms of all multipliers, those of dead channels very large."""
        found = np.full(len(self.alive), np.log(np.max(p)) / 2 - math.log(_DEAD) / 2)
        found[self.alive] = np.log(p) / 2
        return found


def _alive(chain: Chain, weights: Sequence[Sequence[HostNumbers]]) -> HostBools:
    """Return the multipliers to whose channels weights lead."""
    alive = np.zeros(sum(chain.sizes), dtype=bool)
    alive[[0, -1]] = True
    for segment, links in zip(chain.segments, weights, strict=True):
        owners = segment.owners
        for w, before, after in zip(links, owners[:-1], owners[1:], strict=True):
            lengths = np.sqrt(np.max(np.sum(np.abs(w[:, :, alive[before]]) ** 2, axis=2), axis=0))
            alive[after[lengths > _DEAD * np.max(lengths, initial=0.0)]] = True
    return alive
