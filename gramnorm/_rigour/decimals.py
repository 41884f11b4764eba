"""Decimal text of bounds, and their gap, rounded like the numbers they stand for.

Decimal text of a float f is a number d of fewer digits.  Read for an upper bound it is true if d >=
f, for a lower one if d <= f; the nearest d is neither.  So the exact value of f, not its shortest
text, is rounded up or down.
"""

import decimal
import math
from fractions import Fraction

from gramnorm._rigour.fractions import float_above

DIGITS = 7
"""Significant digits of a bound unless said otherwise: about what float32 resolves."""


def decimal_text(value: float, *, up: bool, digits: int = DIGITS) -> str:
    """
    Return decimal text that is at least, or at most, a float.

    Parameters
    ----------
    value : float
        The number; its exact binary value counts, not its shortest decimal text.
    up : bool
        True for text that reads as `value` or more, False for `value` or less.
    digits : int
        Significant digits of the text.

    Returns
    -------
    str
        A number in fixed-point notation if that is short, else in scientific notation; "inf",
        "-inf" or "nan".
    """
    if not math.isfinite(value):
        return str(value)
    rounding = decimal.ROUND_CEILING if up else decimal.ROUND_FLOOR
    context = decimal.Context(prec=digits, rounding=rounding)
    rounded = context.create_decimal_from_float(value)
    if not rounded:
        return "0"
    last = rounded.adjusted() - digits + 1
    padded = rounded.quantize(
        decimal.Decimal((0, (1,), last)), context=context
    )  # exact: only zeros are added
    return format(padded, "f" if -4 <= padded.adjusted() < digits else "e")


def relative_gap_above(lower: float, upper: float) -> float:
    """Return ``(upper - lower) / lower`` rounded up; 0 if both are zero, inf if only `lower` is."""
    if not (math.isfinite(lower) and math.isfinite(upper)):
        return 0.0 if lower == upper else math.nan if math.isnan(lower + upper) else math.inf
    if lower == 0:
        return 0.0 if upper == 0 else math.inf
    return float_above((Fraction(upper) - Fraction(lower)) / Fraction(lower))
