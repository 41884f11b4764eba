"""Norms of a wide symbol at many frequencies, each by a factorisation at a level just high enough.

Estimates say how high: what decides how sharply norms are needed is asked about ever smaller bounds
above them, and the first that is small enough is proved (docs/theory.md, Lemma 23).  Frequencies
are moved to multiples of 2^-40 turns; by

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
"""Lanczos steps at all frequencies, and where norms must be sharp or no factor was found."""

ROUNDS = 6
"""In which what could not be proved is tried again, four times as far above the estimate."""

LEAST = 2.0**-17
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
    """Bound the norm at each frequency from above, as sharply as `decides` wants.

    Lower bounds are handed to `improve`, with the turns and the block where they are attained.
    Bounds are crude at frequencies that no bound would settle.
    """
    if not len(numerators):
        return np.zeros(0)
    exact = numerators / denominators
    upper = np.zeros(len(exact))
    for block, square in enumerate(squares):

        def seen(lower: float, index: int, block: int = block) -> None:
            improve(lower, exact[index], block)

        upper = np.maximum(upper, _of_block(square, exact, decides, seen, max(rtol / 8, LEAST)))
    return upper


def _of_block(
    square: Squared,
    exact: HostFloats,
    decides: Fate,
    seen: Callable[[float, int], None],
    least: float,
) -> HostFloats:
    """Do what `norms` does for one block; bounds are not sought closer than `least`."""
    turns, at = snapped(exact), square.estimator.at
    slip = _slip(square)
    # what is lost hides smaller norms
    least_size = 4 * math.sqrt(square.error) + 2 * slip
    sizes, vectors = at(turns, STEPS[0])
    high, left = np.full(len(turns), square.sum_bound), np.arange(len(turns))
    for turn in range(ROUNDS):
        # the largest, what must be known sharply, and what was too low before
        close = (_heights(sizes[left], decides, least) < SHARP) | (turn > 0)
        renewed = np.union1d(left[close], np.argsort(-sizes)[:FEW])
        sizes[renewed], vectors[renewed] = at(turns[renewed], STEPS[1], vectors[renewed])
        sizes = np.maximum(sizes, least_size)
        top = int(np.argmax(sizes))
        seen(down(max(square.quotient(turns[top], vectors[top]) - slip, 0.0)), top)
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
    return high


def _slip(square: Squared) -> float:
    """Return by how much the norm may differ at a frequency that was moved.

    That is by half of 1 / FINEST turns at most, and a phase common to all taps changes no norm: no
    tap is farther from the middle than half the spread of the offsets.
    """
    spread = float(np.sum(np.ptp(square.offsets, axis=0)))
    moved = 2 * math.pi * (spread / 2) * (1 / (2 * FINEST) + 2.0**-52)
    found: float = up(moved * square.sum_bound, 8)
    return found


def _heights(sizes: HostFloats, decides: Fate, least: float) -> HostFloats:
    """Return the largest relative excess with which a bound is enough; else `least`."""
    found = np.full(len(sizes), least)
    for excess in EXCESSES[::-1]:
        if excess > least:
            found[decides(sizes, up(sizes * (1 + excess)))] = excess
    return found
