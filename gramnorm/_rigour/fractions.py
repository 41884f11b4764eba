"""Sums, products and roots of non-negative floats, exact until one rounding upward at the end.

A float is a fraction whose denominator is a power of two, so sums and products of floats are
fractions as well; only the last step, from a fraction to a float, rounds, and it goes to the next
float above.  Neither overflow nor underflow on the way can pull a result below the truth.  NaN
among the values gives NaN, and inf gives inf, beside a zero as well: inf stands for a norm of which
nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction

_ROOT_BITS = 128  # of the integer whose root is taken, so that the root is good to 64


def product_above(values: Iterable[float]) -> float:
    """Return the product of non-negative floats, exactly rounded up."""
    return _above(values, lambda exact: float_above(math.prod(exact, start=Fraction(1))))


def sum_above(values: Iterable[float]) -> float:
    """Return the sum of non-negative floats, exactly rounded up."""
    return _above(values, lambda exact: float_above(sum(exact, start=Fraction(0))))


def length_above(values: Iterable[float]) -> float:
    """Return the square root of the sum of squares of non-negative floats, rounded up."""
    return _above(values, lambda exact: root_above(sum((x * x for x in exact), start=Fraction(0))))


def largest(values: Iterable[float]) -> float:
    """Return the largest of one or more non-negative floats."""
    return _above(values, lambda exact: float_above(max(exact)))


def _above(values: Iterable[float], rule: Callable[[list[Fraction]], float]) -> float:
    """Apply a rule for finite numbers; NaN and inf pass through it."""
    values = list(values)
    if any(map(math.isnan, values)):
        return math.nan
    if any(map(math.isinf, values)):
        return math.inf
    return rule(list(map(Fraction, values)))


def float_above(exact: Fraction) -> float:
    """Return the smallest float that is at least `exact`."""
    try:
        value = float(exact)  # correctly rounded, so at most one step too low
    except OverflowError:
        return math.inf
    return value if value >= exact else math.nextafter(value, math.inf)


def root_above(exact: Fraction) -> float:
    """Return the smallest float that is at least the square root of `exact`, or the next."""
    size = exact.numerator.bit_length() - exact.denominator.bit_length()
    half = (_ROOT_BITS - size) // 2
    scaled = exact * Fraction(2) ** (2 * half)
    whole = math.ceil(scaled)
    root = math.isqrt(whole)
    root += root * root < whole
    return float_above(root / Fraction(2) ** half)
