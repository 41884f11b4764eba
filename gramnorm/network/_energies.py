"""The certificate of residual networks: what each vector on the way is worth of the output.

Let z hold all vectors that are alive at a place of the network, differences of two inputs, and y be
that of its outputs.  A symmetric matrix E with

    ||y||^2 <= 4^k z^T E z

is an energy there.  At the output E = 1.  A linear map z = K w takes it to K^T E K, and an
activation, v = low u + q with 0 <= q_j <= reach u_j, to every E' for which

    w^T E' w >= z^T E z + 2 q^T Lambda (reach u - q)      for all w and q,

whatever the positive diagonal Lambda, since the last term is not negative.  One checked Cholesky
factorisation (Theorem 6) proves that for an E' that nobody trusts.  At the input E = R^T R gives the
constant 2^k ||R|| (docs/theory.md, Theorem 36).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from gramnorm._arrays import linalg
from gramnorm._arrays.types import HostFloats
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._matrix.cholesky import eigenvalue_bound
from gramnorm._rigour.fractions import float_above
from gramnorm._rigour.model import HOST_UNIT, precision_of, up
from gramnorm._rigour.sums import host_norm
from gramnorm.network._residuals import Bend, Fork, Graph, Linear, Move

_PRECISION = precision_of(np.dtype(np.float64))
_NORM_GAP = 1e-8
_MARGIN, _TRIES = (
    2.0**-46,
    6,
)  # per row, for what a factorisation loses; each try takes 16 times that
_LOWEST = 2.0**-50  # of the largest diagonal entry: what is smaller is scaled as if it were this
_WIDEST = 2.0**450  # of a scale, and of its inverse
_LOST = 2.0**-170  # by underflow: 2^-1074, times two scales, and some of that again


def certificate(graph: Graph, logarithms: Sequence[HostFloats]) -> float:
    """Return the bound of Theorem 36 for Lambda with these logarithms, all rounding in it.

    It is inf where some factorisation fails.
    """
    with np.errstate(
        over="ignore", invalid="ignore", divide="ignore"
    ):  # what is useless ends as inf
        return _certificate(graph, logarithms)


def _certificate(graph: Graph, logarithms: Sequence[HostFloats]) -> float:
    energy, k = np.eye(graph.outputs), 0
    left = list(logarithms)
    first = None
    for i, move in reversed(list(enumerate(graph.moves))):
        if i == 0 and isinstance(move, Linear):
            first = move.weights
            break
        if isinstance(move, Bend) and move.reach > 0:
            multipliers = np.exp(np.clip(left.pop() - k * math.log(4.0), -340.0, 340.0))
            bent = _behind(energy, move, multipliers)
            if bent is None:
                return math.inf
            energy = bent
        elif not (isinstance(move, Bend) and move.low == 1.0):
            energy = _pulled_back(energy, linear_map(move, len(energy)))
        energy, k = _normalised(energy, k)
        if not np.all(np.isfinite(energy)):
            return math.inf
    return _at_the_input(energy, first, k)


def linear_map(move: Move, size: int) -> HostFloats:
    """Return the matrix K of a move that is linear, from the vectors before it to `size` entries."""
    if isinstance(move, Linear):
        k = move.weights
    elif isinstance(move, Bend):
        k = move.low * np.eye(move.size)
    elif isinstance(move, Fork):
        k = np.concatenate([np.eye(move.size)] * 2)
    else:
        shortcut = np.eye(move.size) if move.shortcut is None else move.shortcut
        k = np.concatenate([shortcut, np.eye(len(shortcut))], axis=1)
    kept = size - len(k)  # what shortcuts of blocks around it carry
    whole = np.zeros((size, kept + k.shape[1]))
    whole[:kept, :kept] = np.eye(kept)
    whole[kept:, kept:] = k
    return whole


def _pulled_back(energy: HostFloats, k: HostFloats) -> HostFloats:
    """Return an energy in front of the linear map K.

    Each product errs by kappa times that of the moduli, and the mean of the result and its transpose
    by u: |E' - K^T E K| <= 3.1 kappa |K|^T |E| |K| + lost.  A symmetric matrix is at most the
    diagonal one of its moduli's row sums, after a diagonal similarity by any positive w.
    """
    half = linalg.matmul(energy, k)
    found = linalg.matmul(k.T, half)
    found = (found + found.T) / 2
    size, (rows, columns) = np.abs(k), k.shape
    d = _diagonal(found)
    w = 1 / np.sqrt(d / np.max(d))
    moduli = size.T @ (np.abs(energy) @ (size @ w))
    lost = (_PRECISION.underflow(rows) + _PRECISION.tiny) * (2 + 2 * np.max(np.sum(size, axis=0)))
    errors = 3.1 * _PRECISION.kappa(rows) * moduli + lost * np.sum(w)
    return _raised(found, up(errors / w, 2 * (2 * rows + 2 * columns) + 16))


def _behind(energy: HostFloats, bend: Bend, multipliers: HostFloats) -> HostFloats | None:
    """Return an energy in front of an activation; None if none was proved."""
    margin = _MARGIN * (len(energy) + bend.size)
    for _ in range(_TRIES):
        found = eliminated(energy, bend, multipliers, margin=margin)
        if found is None:
            return None
        d = _diagonal(found[0])
        candidate = _raised(found[0], 2 * margin * d)
        if _is_proved(candidate, energy, bend, multipliers, 1 / np.sqrt(d), margin=margin):
            return candidate
        margin *= 16
    return None


def blocks(
    energy: HostFloats, bend: Bend, multipliers: HostFloats
) -> tuple[HostFloats, HostFloats, HostFloats]:
    """Return P, Q and T of w^T P w + 2 w^T Q q - q^T T q, what E' has to be above."""
    start = len(energy) - bend.size
    own = energy[start:, start:]
    known = np.zeros_like(energy)
    known[:start, :start] = energy[:start, :start]
    cross = energy[:, start:].copy()
    if bend.low != 0:
        known[:start, start:] = bend.low * energy[:start, start:]
        known[start:, :start] = known[:start, start:].T
        known[start:, start:] = bend.low * (bend.low * own)
        cross[start:] = bend.low * own
    else:
        cross[start:] = 0.0
    places = np.arange(bend.size)
    cross[start + places, places] += bend.reach * multipliers
    return known, cross, np.diag(2 * multipliers) - own


def eliminated(
    energy: HostFloats, bend: Bend, multipliers: HostFloats, *, margin: float
) -> tuple[HostFloats, HostFloats] | None:
    """Return about the least E', and the q that attains it for unit vectors w, as rows; or None."""
    known, cross, pivot = blocks(energy, bend, multipliers)
    diagonal = np.diagonal(pivot)
    if not np.all((diagonal > 0) & (diagonal < math.inf)):
        return None
    scale = 1 / np.sqrt(diagonal)
    scaled = pivot * scale[:, None] * scale - 2 * margin * np.eye(bend.size)
    factor = linalg.attempted(np.linalg.cholesky, scaled)
    inverse = None if factor is None else linalg.inverse_or_none(factor)
    if inverse is None:
        return None
    half = (cross * scale) @ inverse.T
    found = known + half @ half.T
    return (found + found.T) / 2, half @ inverse * scale


def _is_proved(
    candidate: HostFloats,
    energy: HostFloats,
    bend: Bend,
    multipliers: HostFloats,
    scale: HostFloats,
    *,
    margin: float,
) -> bool:
    """Say whether M = [[E' - P, -Q], [-Q^T, T]] >= 0 is proved, scaled to ones on its diagonal.

    A symmetric matrix of errors is at most the largest row sum of their moduli.
    """
    _, _, pivot = blocks(energy, bend, multipliers)
    t = np.concatenate([scale, 1 / np.sqrt(np.diagonal(pivot))])
    if not np.all((t > 1 / _WIDEST) & (t < _WIDEST)):
        return False
    rest, moduli = without_unit(candidate, energy, bend, multipliers, t)
    lost = 8 * HOST_UNIT * float(np.max(np.sum(moduli, axis=1))) + _LOST * len(t)
    return up(eigenvalue_bound(rest, 1 - margin) + up(lost, 2 * len(t) + 16)) <= 1


def without_unit(
    candidate: HostFloats, energy: HostFloats, bend: Bend, multipliers: HostFloats, t: HostFloats
) -> tuple[HostFloats, HostFloats]:
    """Return 1 - t M t, and numbers of which its entries are wrong by 8 u at most, and an underflow.

    P has two roundings where `low` comes in, Q has one in each of its two terms, and then E' - P, Q
    and T are each rounded; scaling takes two more, and the difference from 1 the last.
    """
    known, cross, pivot = blocks(energy, bend, multipliers)
    matrix = np.block([[candidate - known, -cross], [-cross.T, pivot]])
    size, start = len(energy), len(energy) - bend.size
    terms = np.abs(matrix)
    if bend.low != 0:
        terms[:size, :size] += np.abs(known)
        both = np.abs(bend.low * energy[start:, start:]) + np.diag(bend.reach * multipliers)
        terms[start:size, size:] = both
        terms[size:, start:size] = both.T
    unit = np.eye(len(t))
    return unit - matrix * t[:, None] * t, unit + terms * t[:, None] * t


def _at_the_input(energy: HostFloats, first: HostFloats | None, k: int) -> float:
    """Return the constant of an energy behind the first matrix, or of one at the input."""
    root = _root(energy)
    if root is None:
        return math.inf
    if first is None:
        norm = float(matrix_norm_bound(root, rtol=_NORM_GAP))
        return float_above(Fraction(norm) * Fraction(2) ** k) if math.isfinite(norm) else math.inf
    exponent = _exponent(float(np.max(np.abs(first))))
    first = np.ldexp(first, -exponent)
    product = linalg.matmul(root, first)
    peaks = float(np.max(np.abs(root))), float(np.max(np.abs(product)))
    if not (math.isfinite(peaks[0]) and 0 < peaks[1] < math.inf):
        return math.inf
    norm = float(matrix_norm_bound(product, rtol=_NORM_GAP))
    # the product, and what scaling W made subnormal
    inner = len(first)
    moduli = _frobenius(linalg.matmul(np.abs(root), np.abs(first)))
    error = up(_PRECISION.kappa(inner) * moduli, 2 * inner + 16)
    error += _PRECISION.underflow(inner) * math.sqrt(product.size)
    error += 2.0**-1074 * math.sqrt(first.size) * _frobenius(root)
    bound = up(norm + up(error))
    if not math.isfinite(bound):
        return math.inf
    return float_above(Fraction(bound) * Fraction(2) ** (k + exponent))


def _root(energy: HostFloats) -> HostFloats | None:
    """Return R with R^T R >= E, or None.

    R = L^T T^-1 for the factor L of T E T + m, if the product of L and its adjoint differs from that
    by no more than m, in which its rounding is counted, and that of the sum and of scaling.
    """
    n = len(energy)
    exponents = np.frexp(_diagonal(energy))[1] // 2
    scaled = np.ldexp(np.ldexp(energy, -exponents[:, None]), -exponents)  # powers of two: exact
    margin = _MARGIN * n
    for _ in range(_TRIES):
        shifted = scaled + margin * np.eye(n)
        factor = linalg.cholesky_or_none(shifted)
        if factor is None:
            return None
        square = float(np.sum(factor * factor))
        error = host_norm(shifted - linalg.matmul(factor, factor.T))[1]
        error += _PRECISION.kappa(n) * square + HOST_UNIT * (error + 3) + _LOST * n
        if up(error, 2 * n * n + 16) <= margin:
            root: HostFloats = np.ldexp(factor.T, exponents)
            return root
        margin *= 16
    return None


def _diagonal(energy: HostFloats) -> HostFloats:
    """Return a diagonal to scale by, none of whose entries is far below the largest."""
    diagonal = np.diagonal(energy)
    peak = float(np.max(diagonal))
    return np.maximum(diagonal, _LOWEST * peak) if peak > 0 else np.ones_like(diagonal)


def _raised(energy: HostFloats, more: HostFloats) -> HostFloats:
    """Return a matrix with at least so much more on its diagonal."""
    raised = energy.copy()
    places = np.arange(len(energy))
    raised[places, places] = up(np.maximum(energy[places, places], 0.0) + more)
    return raised


def _normalised(energy: HostFloats, k: int) -> tuple[HostFloats, int]:
    """Return an energy of moderate size, and the exponent of 4 beside it."""
    half = _exponent(float(np.max(np.diagonal(energy)))) // 2
    if abs(half) < 50:
        return energy, k
    # what becomes subnormal is off by 2^-1075, each of n entries in a row
    lost = len(energy) * 2.0**-1074
    return _raised(np.ldexp(energy, -2 * half), np.full(len(energy), lost)), k + half


def _exponent(x: float) -> int:
    """Return that of a positive finite number, else 0."""
    return math.frexp(x)[1] if 0 < x < math.inf else 0


def _frobenius(x: HostFloats) -> float:
    """Return an upper bound on the Frobenius norm of a matrix of any size."""
    exponent = _exponent(float(np.max(np.abs(x), initial=0.0)))
    found = host_norm(np.ldexp(x, -exponent))[1] + 2.0**-1074 * x.size
    return math.ldexp(up(found), exponent)
