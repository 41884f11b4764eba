"""Norms of a wide symbol at many frequencies, each by a factorisation at a level just high enough.

Estimates say how high: what decides how sharply norms are needed is asked about ever smaller bounds
above them, and the first that is small enough is proved (docs/theory.md, Lemma 19).  Frequencies are
moved to multiples of 2^-40 turns; by

    ||F(theta) - F(theta')|| <= sum_k ||K_k||_F |k . (theta - theta')|

that changes a norm by what is added to upper and taken from lower bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gramnorm._arrays.types import HostBools, HostFloats, HostInts
from gramnorm._conv.squared import FINEST, Squared, snapped
from gramnorm._rigour.model import down, up

STEPS = 8, 16
"""Lanczos steps at all frequencies, and where norms are needed more sharply or no factor was found."""

ROUNDS = 6
"""In which bounds that could not be proved are sought, four times as high above the estimate each."""

EXCESSES = 2.0 ** -np.arange(0, 18)
"""Relative heights above the estimate that are asked about."""

SHARP, FEW = 2.0**-5, 4
"""Heights below which an estimate is renewed first, and how many of the largest estimates are."""

Fate = Callable[[HostFloats, HostFloats], HostBools]


def norms(
    squares: Sequence[Squared],
    numerators: HostInts,
    denominators: HostInts,
    decides: Fate,
    improve: Callable[[float, HostFloats, int], None],
    *,
    rtol: float,
) -> HostFloats:
    """Bound the norm at each frequency from above, as sharply as `decides` wants, and hand lower bounds to `improve`.

    Bounds are crude at frequencies that no bound would settle.
    """
    if not len(numerators):
        return np.zeros(0)
    exact = numerators / denominators
    turns, upper = snapped(exact), np.zeros(len(exact))
    for block, square in enumerate(squares):
        spread = np.ptp(square.offsets, axis=0)
        slip = up(math.pi * float(np.sum(spread)) * 2 / FINEST * square.sum_bound)
        at = square.estimator.at
        sizes, vectors = at(turns, STEPS[0])
        high = np.full(len(turns), square.sum_bound)
        left, least = np.arange(len(turns)), max(rtol / 8, float(EXCESSES[-1]))
        for turn in range(ROUNDS):
            # the largest, what must be known sharply, and what was too low before
            close = (_heights(sizes[left], decides, least) < SHARP) | (turn > 0)
            renewed = np.union1d(left[close], np.argsort(-sizes)[:FEW])
            sizes[renewed], vectors[renewed] = at(turns[renewed], STEPS[1], vectors[renewed])
            top = int(np.argmax(sizes))
            lower = down(max(square.quotient(turns[top], vectors[top]) - slip, 0.0))
            improve(lower, exact[top], block)
            left = left[~decides(sizes[left], high[left])]
            heights = _heights(sizes[left], decides, least)
            order = np.argsort(-heights)
            left, heights = left[order], heights[order]
            targets = down(sizes[left] * (1 + heights) - slip)
            bounds = square.norm_bounds(turns[left], targets, sizes[left] * (1 + heights / 8))
            high[left] = np.minimum(high[left], up(bounds + slip))
            left, least = left[~(bounds < np.inf)], 4 * least
            if not left.size:
                break
        upper = np.maximum(upper, high)
    return upper


def _heights(sizes: HostFloats, decides: Fate, least: float) -> HostFloats:
    """Return the largest relative excess with which a bound settles the matter, or the `least` that is tried."""
    found = np.full(len(sizes), least)
    for excess in EXCESSES[::-1]:
        if excess > least:
            found[decides(sizes, up(sizes * (1 + excess)))] = excess
    return found
