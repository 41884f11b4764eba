"""Bounds from traces of powers: from below by two of them, from above sharp for clusters.

For a Hermitian H >= 0 with S1 = tr H and S2 = ||H||_F^2 (docs/theory.md, after Theorem 2)

    l_1 >= S2 / S1,    and if 2 S2 > S1^2    l_1 >= (S1 + sqrt(2 S2 - S1^2)) / 2,

which is exact for two eigenvalues other than zero.  From above, weight each eigenvalue l_i by
w_i = l_i^2 and let c0 = sum w_i l_i / S2, eta^2 = sum w_i (l_i - c0)^2 = ||H^2 - c0 H||_F^2.  Then
(docs/theory.md, Lemma 5)

    l_1 <= c0 + eta sqrt(1 / l_1^2 - 1 / S2),

and since the right side decreases in l_1, every y with  c0 + eta sqrt(1 / y^2 - 1 / S2) <= y
is an upper bound.  The Frobenius norm of m equal eigenvalues stalls at m^(1/2); this does not.
"""

from __future__ import annotations

import math

import numpy as np

from gramnorm._arrays import libraries
from gramnorm._arrays.programs import compiled
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._rigour import sums
from gramnorm._rigour.model import Precision, down, up
from gramnorm._rigour.sums import inner_product


def lower_bound(trace: HostFloats, square: HostFloats) -> HostFloats:
    """Bound l_1 from below by an upper bound on S1 and a lower one on S2."""
    quotient = down(np.divide(square, trace, where=trace > 0, out=np.zeros_like(trace)))
    # positive only if the exact 2 S2 - S1^2 is, and then at most that
    excess = np.maximum(down(2 * square) - up(trace**2), 0.0)
    return np.where(excess > 0, down((trace + np.sqrt(excess)) / 2), quotient)


def one_lower_bound(trace: float, square: float) -> float:
    """Do what `lower_bound` does, for one matrix."""
    excess = down(2 * square) - up(trace * trace)
    return down((trace + math.sqrt(excess)) / 2 if excess > 0 else square / trace)


def centred_sums(p: Array, gram: Array) -> tuple[Array, Array, Array]:
    """Return c, ||D||_F^2 and Re <P, D> with D = P^2 - c P, for Hermitian P with P^H P = `gram`."""
    centre = _quotient(inner_product(p, gram), inner_product(p, p))
    d = _centred(p, gram, centre)
    return centre, inner_product(d, d), inner_product(p, d)


@compiled
def _quotient(product: Array, square: Array) -> Array:
    xp = libraries.namespace(square)
    return product / xp.where(square == 0, xp.ones_like(square), square)


@compiled
def _centred(p: Array, gram: Array, centre: Array) -> Array:
    """Return D itself, before its norm: ||P^2||^2 - c^2 ||P||^2 would cancel."""
    return gram - libraries.namespace(p).astype(centre[:, None, None], p.dtype) * p


def upper_bound(
    centre: HostFloats,
    spread2: HostFloats,
    skew: HostFloats,
    *,
    frobenius2: HostFloats,
    sigma: HostFloats,
    error: HostFloats,
    departure: HostFloats,
    rows: int,
    precision: Precision,
) -> HostFloats:
    """Bound sigma_1(P) from the `centred_sums` of an iterate P.

    Parameters
    ----------
    centre, spread2, skew
        c, ||D||_F^2 and Re <P, D> as computed.
    frobenius2, sigma
        Upper bounds on ||P||_F^2 and sigma_1(P).
    error
        Bound on ||Q - P^H P||_F for the computed Q.
    departure
        Bound on ||P - H||_F for an exactly Hermitian, positive semidefinite H.
    """
    norm = up(np.sqrt(frobenius2))
    computed = up(np.sqrt(sums.enclosure(spread2, rows, rows, precision)[1]))
    # H^2 - c H against the computed D: two roundings of D, the product, and P against H
    deviation = up(
        2 * precision.unit * (centre * norm + computed)
        + error
        + departure * (2 * sigma + departure + centre)
        + 2 * rows * precision.tiny
    )
    eta = up(computed + deviation)
    skewed = np.abs(skew) + sums.loss(rows, rows, precision) * norm * computed
    skewness = up(skewed + norm * deviation + departure * eta)
    # `norm` exceeds ||P||_F by kappa + 2 gamma of the trace that gave it, and by the nudges
    least = norm * (1 - 4 * precision.kappa(rows + 16)) - departure
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # the spread's own S2: ||H||_F^2 between (norm - departure)^2 and (norm + departure)^2
        mean = up(centre + np.where(least > 0, skewness / least**2, np.inf))
        inverse = 1.0 / up((norm + departure) ** 2)
        y = _smallest_fixed_point(mean, eta, inverse, start=up(norm + departure))
        y = up(
            mean + 1.01 * (y - mean), 64
        )  # any y will do: this has room for the nudges of the check
        radicand = np.maximum(up(1.0 / y**2) - down(inverse), 0.0)
        proved = (centre > 0) & (up(mean + up(eta * np.sqrt(radicand))) <= y)
    return np.where(proved, up(y + departure), np.inf)


def _smallest_fixed_point(
    mean: HostFloats, eta: HostFloats, inverse: HostFloats, *, start: HostFloats
) -> HostFloats:
    """Solve mean + eta sqrt(1/y^2 - inverse) = y by Newton's method from the right."""
    y = np.minimum(start, mean + eta / mean)
    for _ in range(8):
        distance = (y - mean) ** 2 + eta**2 * inverse
        value = y**2 * distance - eta**2
        slope = 2 * y * distance + 2 * y**2 * (y - mean)
        y = np.where(slope > 0, y - value / slope, y)
    return y
