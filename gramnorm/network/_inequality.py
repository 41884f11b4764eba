"""The matrix inequality of a chain: finds multipliers, proves nothing.

Let p_j be the square of the multiplier of channel j, and u_j the row of the weights that lead to
it, as a column in the place of the layer before, minus the j-th unit vector.  Up to a congruence
``2 - ||B|| >= 0`` says that at each frequency

    N(p) = - 1/2 sum_j p_j (e_j u_j^* + u_j e_j^*) >= 0,

which is linear in p.  With Z = N^-1, Y = Z U and M = U^* Z U, the derivatives of -log det N are

    g_j = Re Y_jj,    H_jk = 1/2 Re(Y_jk Y_kj + M_jk conj Z_jk).

N has blocks beside its diagonal for neighbouring layers alone.  So Z is formed from its last block
up, Z_ik = - S_i^-1 N_{i,i+1} Z_{i+1,k} for k > i with the pivots S_i of an elimination.  The Hessian
takes as many operations as N has entries times the width of a layer; for all others the blocks of Z
next to its diagonal are enough.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from gramnorm._arrays import linalg
from gramnorm._arrays.linalg import adjoint
from gramnorm._arrays.types import HostFloats, HostInts, HostNumbers

_TAKEN = 0.6  # of diag(p_i) by the layers before, where most is taken
_PIECE = 2**21  # entries of N at all frequencies that are looked at together

Factors = list[tuple[HostNumbers, HostNumbers]]
Weights = Sequence[HostNumbers]


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """N(p) of some layers in a row, at one frequency or more.

    Attributes
    ----------
    weights : sequence of arrays, shapes (frequencies, n_i, n_{i-1})
        Of the layers in order.
    groups : host ints, shape (n_0 + ... + n_l,)
        Which of all p each channel has.
    """

    weights: Weights
    groups: HostInts

    @classmethod
    def of(cls, weights: Weights, groups: Sequence[HostInts]) -> Segment:
        """Turn an input or output of one p to have no more channels than the layer beside."""
        links, layers = list(weights), list(groups)
        if np.all(layers[0] == layers[0][0]):
            links[0] = _fewest(links[0])
            layers[0] = layers[0][: links[0].shape[2]]
        if np.all(layers[-1] == layers[-1][0]):
            links[-1] = adjoint(_fewest(adjoint(links[-1])))
            layers[-1] = layers[-1][: links[-1].shape[1]]
        return cls(links, np.concatenate(layers))

    @property
    def order(self) -> int:
        """The rows of all matrices."""
        return len(self.groups) * len(self.weights[0])

    @property
    def layers(self) -> list[HostInts]:
        """The groups of each layer, the input first."""
        return np.split(self.groups, _ends(self.weights)[1:-1])

    def factored(self, p: HostFloats) -> list[tuple[Weights, Factors]] | None:
        """Return weights and `_factors` for a few frequencies at a time; None unless N(p) > 0."""
        count = len(self.weights[0])
        found: list[tuple[Weights, Factors]] = []
        parts = min(count, 1 + count * len(self.groups) ** 2 // _PIECE)
        layers = [p[groups] for groups in self.layers]
        for weights in zip(*(np.array_split(w, parts) for w in self.weights), strict=True):
            factors = _factors(weights, layers)
            if factors is None:
                return None
            found.append((weights, factors))
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Inequality:
    """N(p) of a chain, all segments and frequencies together.

    Attributes
    ----------
    segments : sequence of Segment
        In order.
    """

    segments: Sequence[Segment]

    @property
    def order(self) -> int:
        """The rows of all matrices."""
        return sum(s.order for s in self.segments)

    def log_determinant(self, p: HostFloats) -> float:
        """Return that of N(p), -inf unless N(p) > 0."""
        total = 0.0
        for segment in self.segments:
            found = segment.factored(p)
            if found is None:
                return -math.inf
            for _, factors in found:
                diagonals = (np.diagonal(j, axis1=1, axis2=2).real for j, _ in factors)
                total -= 2 * sum(float(np.sum(np.log(d))) for d in diagonals)
        return total

    def start(self, count: int) -> HostFloats | None:
        """Return `count` p with N(p) > 0, 1 at the output; None where numbers are too large.

        Layer by layer no pivot S_i is below a share of diag(p_i).
        """
        p = np.ones(count)
        for segment in self.segments:
            pivot = np.diag(p[segment.layers[0]])[None]
            for w, groups in zip(segment.weights, segment.layers[1:], strict=True):
                inverse = linalg.inverse_or_none(pivot)
                if inverse is None:
                    return None
                taken = w @ inverse @ adjoint(w) / 4  # S_i = diag(p_i) - diag(p_i) taken diag(p_i)
                most = np.zeros(count)
                diagonal = np.max(np.diagonal(taken, axis1=1, axis2=2).real, axis=0)
                np.maximum.at(most, groups, diagonal)
                if not np.all(most[groups] > 0):
                    return None
                own = 1 / np.sqrt(most[groups])
                root = np.sqrt(own)
                values = linalg.attempted(np.linalg.eigvalsh, taken * root[:, None] * root)
                if values is None:
                    return None
                p[groups] = own * (_TAKEN / np.max(values))
                pivot = np.diag(p[groups]) - p[groups][:, None] * taken * p[groups]
        return p / p[-1] if np.all(np.isfinite(p) & (p > 0)) else None

    def gradient(self, p: HostFloats) -> HostFloats | None:
        """Return that of -log det N, None unless N(p) > 0."""
        total = np.zeros(len(p))
        for segment in self.segments:
            found = segment.factored(p)
            if found is None:
                return None
            for weights, factors in found:
                total += np.bincount(segment.groups, _gradient(weights, factors), len(p))
        return total

    def hessian(self, p: HostFloats) -> HostFloats | None:
        """Return that of -log det N, None unless N(p) > 0."""
        total = np.zeros((len(p), len(p)))
        for segment in self.segments:
            found = segment.factored(p)
            if found is None:
                return None
            rows = np.sum([_hessian(weights, factors) for weights, factors in found], axis=0)
            order = np.argsort(segment.groups, kind="stable")
            places, starts = np.unique(segment.groups[order], return_index=True)
            rows = np.add.reduceat(np.add.reduceat(rows[order][:, order], starts, 0), starts, 1)
            total[np.ix_(places, places)] += rows
        return total


def operations(widths: Sequence[int], frequencies: int, *, is_complex: bool) -> float:
    """Return about how many a Hessian takes, for layers of these widths."""
    narrow = [min(widths[:2]), *widths[1:-1], min(widths[-2:])]
    entries = float(sum(narrow)) * frequencies * (4 if is_complex else 1)
    pairs = sum(a * b for a, b in itertools.pairwise(narrow))
    return entries * (8 * pairs + 20 * sum(narrow))


def _fewest(w: HostNumbers) -> HostNumbers:
    """Return rows of the same Gram matrix with the fewest columns."""
    if w.shape[1] >= w.shape[2]:
        return w
    triangle = linalg.attempted(partial(np.linalg.qr, mode="r"), adjoint(w))
    return w if triangle is None else adjoint(triangle)


def _ends(weights: Weights) -> HostInts:
    """Return where the layers end among all channels, after a zero."""
    return np.cumsum([0, weights[0].shape[2], *(w.shape[1] for w in weights)])


def _factors(weights: Weights, p: list[HostFloats]) -> Factors | None:
    """Return J_i with J_i^* J_i = S_i^-1, and N_{i+1,i} J_i^*; None unless all S_i > 0."""
    factors: Factors = []
    pivot = np.broadcast_to(np.diag(p[0]), (len(weights[0]), len(p[0]), len(p[0])))
    for i in range(len(p)):
        factor = linalg.attempted(np.linalg.cholesky, pivot)
        inverse = None if factor is None else linalg.inverse_or_none(factor)
        if inverse is None:
            return None
        if i == len(weights):
            return [*factors, (inverse, inverse[:, :0])]
        below = -0.5 * p[i + 1][:, None] * (weights[i] @ adjoint(inverse))
        factors.append((inverse, below))
        pivot = np.diag(p[i + 1]) - below @ adjoint(below)
    return factors


def _gradient(weights: Weights, factors: Factors) -> HostFloats:
    """Return Re Y_jj, the sum of all frequencies, from the blocks of Z beside its diagonal."""
    rows: list[HostFloats] = []
    corner = adjoint(factors[-1][0]) @ factors[-1][0]  # Z_ii
    for w, (j, below) in zip(reversed(weights), reversed(factors[:-1]), strict=True):
        step = below @ j  # N_{i,i-1} S_{i-1}^-1
        beside = -corner @ step  # Z_{i,i-1}
        own = np.diagonal(corner, axis1=1, axis2=2)
        rows.append(np.sum((np.sum(beside * np.conj(w), axis=2) - own).real, axis=0))
        corner = adjoint(j) @ j - adjoint(step) @ beside
    rows.append(-np.sum(np.diagonal(corner, axis1=1, axis2=2).real, axis=0))
    return np.concatenate(rows[::-1])


def _hessian(weights: Weights, factors: Factors) -> HostFloats:
    """Return H of the channels, the sum of all frequencies."""
    z = _inverse(factors)
    y = _tilted(weights, z)
    m = adjoint(_tilted(weights, adjoint(y)))
    total = np.zeros(z.shape[1:])
    for zf, yf, mf in zip(z, y, m, strict=True):
        total += (yf * yf.T + mf * np.conj(zf)).real
    return total / 2


def _inverse(factors: Factors) -> HostNumbers:
    """Return Z."""
    ends = np.cumsum([0, *(j.shape[1] for j, _ in factors)])
    z = np.empty((len(factors[0][0]), ends[-1], ends[-1]), dtype=factors[-1][0].dtype)
    for i in reversed(range(len(factors))):
        j, below = factors[i]
        here, after = slice(ends[i], ends[i + 1]), slice(ends[i + 1], None)
        following = slice(ends[i + 1], ends[i + 1] + below.shape[1])
        step = below @ j  # N_{i+1,i} S_i^-1
        z[:, here, after] = -adjoint(step) @ z[:, following, after]
        z[:, after, here] = adjoint(z[:, here, after])
        z[:, here, here] = adjoint(j) @ j - z[:, here, following] @ step
    return z


def _tilted(weights: Weights, z: HostNumbers) -> HostNumbers:
    """Return Z U."""
    product, ends = -z, _ends(weights)
    for i, w in enumerate(weights, 1):
        product[:, :, ends[i] : ends[i + 1]] += z[:, :, ends[i - 1] : ends[i]] @ adjoint(w)
    return product
