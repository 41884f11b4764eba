"""The least bound of a chain by an interior point: finds multipliers, proves nothing.

With p = 1 at the output and p_0 at the input, the bound is proportional to sqrt(p_0) once N(p) >= 0
(`_inequality`).  The central path, of the points p(w) that minimise

    w p_0 - log det N(p),

leads to the least p_0, which is within order(N) / w.  From a point near the path a step follows it
to w / (1 - t) along a parabola, the first two terms in t; from one far away it is one of Newton, to
the w that is nearest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from gramnorm._arrays import linalg
from gramnorm._arrays.types import HostFloats

_NEAR = 0.5  # squared length of Newton's step in the metric of the Hessian
_STEPS = 150
_LONGER, _ROOM = 1.5, 0.4  # Newton's steps, and the share of the way to where N(p) > 0 ends
_SHARE, _SHORTER = 0.8, 0.9  # of the way along the parabola, which is found by shortening
_BENT = 0.5  # second term beside the first, at most
_DIFFERENCE = 0.02  # of the distance within which log det N varies slowly


class Inequality(Protocol):
    """N(p) >= 0, of chains (`_inequality`) or of networks with shortcuts (`_feedforward`)."""

    @property
    def order(self) -> int:
        """The rows of N."""

    def log_determinant(self, p: HostFloats) -> float:
        """Return that of N(p), -inf unless N(p) > 0."""

    def gradient(self, p: HostFloats) -> HostFloats | None:
        """Return that of -log det N, None unless N(p) > 0."""

    def hessian(self, p: HostFloats) -> HostFloats | None:
        """Return that of -log det N, None unless N(p) > 0."""


def path(inequality: Inequality, p: HostFloats, *, gap: float) -> Iterator[HostFloats]:
    """Yield p with N(p) > 0 along the central path, until p_0 is within `gap` of the least one."""
    unit = np.zeros(len(p))
    unit[0] = 1.0
    for _ in range(_STEPS):
        gradient, hessian = inequality.gradient(p), inequality.hessian(p)
        if gradient is None or hessian is None:
            return
        solved = _solved(hessian, unit, gradient)
        if solved is None:
            return
        down, inward = solved
        # the length of w e_0 + g in the metric of H^-1 is least for this w
        w = max(-inward[0] / down[0], 1e-3 * inequality.order / p[0])
        newton = -(w * down + inward)
        length = -float((w * unit + gradient) @ newton)
        moved = None
        if length < _NEAR:
            if inequality.order < gap * w * p[0]:
                return
            moved = _advanced(inequality, p, newton, -w * down, gradient, hessian)
        if moved is None:
            moved = _centred(inequality, p, w, newton, length)
        if moved is None:
            return
        p = moved
        yield p


def _solved(hessian: HostFloats, *right: HostFloats) -> HostFloats | None:
    """Return H^-1 of each right side; the last p does not move."""
    scale = 1 / np.sqrt(np.diagonal(hessian)[:-1])
    system = hessian[:-1, :-1] * scale[:, None] * scale + 1e-14 * np.eye(len(scale))
    solved = linalg.attempted(np.linalg.solve, system, (scale * np.stack(right)[:, :-1]).T)
    if solved is None or not np.all(np.isfinite(solved)):
        return None
    return np.pad(scale * solved.T, ((0, 0), (0, 1)))


def _centred(
    inequality: Inequality, p: HostFloats, w: float, newton: HostFloats, length: float
) -> HostFloats | None:
    """Return the last of longer and longer steps that descend; None if the first does not."""
    step = 1 / (1 + math.sqrt(max(length, 0.0)))  # feasible, since log det is self-concordant
    best, value = None, -inequality.log_determinant(p)
    while True:
        moved = p + step * newton
        tried = w * step * newton[0] - inequality.log_determinant(moved)
        if not tried < value:
            return best
        best, value = moved, tried
        step *= _LONGER
        if inequality.log_determinant(p + step / _ROOM * newton) == -math.inf:
            return best


def _advanced(
    inequality: Inequality,
    p: HostFloats,
    newton: HostFloats,
    tangent: HostFloats,
    gradient: HostFloats,
    hessian: HostFloats,
) -> HostFloats | None:
    """Return a point along the parabola; None if all of it is outside."""
    h = _DIFFERENCE / math.sqrt(float(tangent @ hessian @ tangent))
    ahead, behind = (inequality.gradient(p + sign * h * tangent) for sign in (1, -1))
    if ahead is None or behind is None:
        return None
    # w e_0 / (1 - t) + g(p + t tangent + t^2 bend) vanishes up to t^2
    bend = _solved(hessian, (ahead + behind - 2 * gradient) / (2 * h * h))
    if bend is None:
        return None
    term = tangent - bend[0]
    first, second = (math.sqrt(float(x @ hessian @ x)) for x in (tangent, term))
    t = min(1.0, _BENT * first / second) / _SHARE
    while t > 1e-3:
        ends = (p + newton + s * (tangent + s * term) for s in (t, _SHARE * t))
        last, moved = ends
        if math.isfinite(inequality.log_determinant(last)):
            return moved if math.isfinite(inequality.log_determinant(moved)) else None
        t *= _SHORTER
    return None
