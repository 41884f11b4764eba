"""Slopes of functions of one number: the two numbers between which all of them lie.

A function f with slopes in [l, h], ``l <= (f(s) - f(t)) / (s - t) <= h``, has the Lipschitz
constant max(-l, h).  If l >= 0 it acts on the difference of two inputs as a diagonal matrix with
entries in [0, h], and may stand within a chain (docs/theory.md, Lemma 34); so may one with h <= 0,
since signs commute with diagonal matrices.  With slopes of both signs the bound of a chain would be
too small: what is not known to be of one sign ends it.
"""

from __future__ import annotations

import math
from fractions import Fraction

from gramnorm._rigour.fractions import float_above

Slopes = tuple[float, float]

RISING: Slopes = (0.0, 1.0)
"""Never decreasing, never steeper than 1."""

FIXED: dict[str, Slopes] = {
    "identity": (1.0, 1.0),
    **dict.fromkeys(("relu", "clip", "soft_shrink", "tanh_shrink"), RISING),
    **dict.fromkeys(("tanh", "atan", "softplus", "softsign", "log_sigmoid"), RISING),
    "sigmoid": (0.0, 0.25),
    "erf": (0.0, 1.1284),  # 2 / sqrt(pi)
    "abs": (-1.0, 1.0),
    "neg": (-1.0, -1.0),
    **dict.fromkeys(("sin", "cos"), (-1.0, 1.0)),
}
"""Slopes of functions without parameters."""

GELU = {"none": 1.129, "tanh": 1.13}  # x Phi(x), and its approximation
SWISH, MISH, HARD_SWISH, SOFTMAX = 1.1, 1.09, 1.5, 0.5
"""Lipschitz constants of what ends a chain (docs/theory.md, section 8)."""


def of_leaky_relu(alpha: float) -> Slopes:
    """Return the slopes of x above 0, alpha x below."""
    return min(1.0, alpha), max(1.0, alpha)


def of_elu(alpha: float) -> Slopes:
    """Return the slopes of x above 0, alpha (e^x - 1) below."""
    return min(0.0, alpha), max(1.0, alpha)


def of_celu(alpha: float) -> Slopes:
    """Return the slopes of x above 0, alpha (e^(x / alpha) - 1) below, for a positive alpha."""
    if not alpha > 0:
        msg = f"alpha must be positive, got {alpha}: its slope e^(x / alpha) would have no bound"
        raise ValueError(msg)
    return RISING


def of_selu(alpha: float, gamma: float) -> Slopes:
    """Return the slopes of gamma times Elu."""
    ends = [Fraction(gamma) * Fraction(end) for end in of_elu(alpha)]
    return -float_above(-min(ends)), float_above(max(ends))


def of_hard_sigmoid(alpha: float) -> Slopes:
    """Return the slopes of alpha x + beta, clipped."""
    return min(0.0, alpha), max(0.0, alpha)


def of_gate(largest: float) -> Slopes:
    """Return the slopes of x g(x) with g(x) + g(-x) = 1: those at x and -x add up to 1."""
    return -float_above(Fraction(largest) - 1), largest


def lipschitz(slopes: Slopes) -> float:
    """Return the Lipschitz constant."""
    return max(-slopes[0], slopes[1])


def in_chain(slopes: Slopes) -> float | None:
    """Return the largest modulus of slopes that are finite and of one sign, else None."""
    low, high = slopes
    return lipschitz(slopes) if (low >= 0 or high <= 0) and math.isfinite(high - low) else None
