"""Sines and cosines: what is assumed of a library of functions, and tried before it is used.

NumPy's sine and cosine of angles up to 2^40 are assumed to be right within four units in the last
place, and so within four units of 2^-53 (docs/theory.md, section 1).  The first call of a process
compares them with exact arithmetic, at angles of all sizes and beside multiples of pi / 2; where
they fail, nothing is computed with them.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from gramnorm._arrays.types import HostFloats
from gramnorm._rigour.model import HOST_UNIT

_UNITS = 4  # in the last place
_BITS = 192  # of the exact values: those of the angles are all kept

_PI = Fraction(0x3243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89, 2**256)


def cosine(angle: HostFloats | float) -> HostFloats:
    """Return cosines right within four units in the last place."""
    _require_accuracy()
    return np.asarray(np.cos(angle))


def sine(angle: HostFloats | float) -> HostFloats:
    """Return sines right within four units in the last place."""
    _require_accuracy()
    return np.asarray(np.sin(angle))


def unit_circle(angle: HostFloats) -> npt.NDArray[np.complex128]:
    """Return exp(i angle), each part of it right within four units in the last place."""
    return np.asarray(cosine(angle) + 1j * sine(angle))


def sines_are_accurate() -> bool:
    """Compare NumPy's sines and cosines with exact ones at some angles."""
    tried = _angles()
    exact = [_exact(float(angle)) for angle in tried]
    for start in (0, 1):  # vectors, their ends, and numbers that do not follow each other
        angles = tried[start :: start + 1]
        found = zip(np.cos(angles).tolist(), np.sin(angles).tolist(), strict=True)
        for pair, true in zip(found, exact[start :: start + 1], strict=True):
            if any(map(_is_wrong, pair, true)):
                return False
    return True


def _is_wrong(value: float, exact: Fraction) -> bool:
    """Say whether a value is further from the truth than assumed, NaN included."""
    most = _UNITS * min(math.ulp(value), HOST_UNIT)
    return not math.isfinite(value) or abs(Fraction(value) - exact) > most


@functools.cache
def _require_accuracy() -> None:
    if not sines_are_accurate():
        msg = (
            "NumPy's sine or cosine is wrong by more than 4 units in the last place on this "
            "machine, so no convolution can be bounded; install another build of NumPy"
        )
        raise RuntimeError(msg)


def _angles() -> HostFloats:
    """Return angles in equal steps, next to multiples of pi / 2, small ones and large ones."""
    even = np.linspace(-math.pi, math.pi, 33)
    quarters = math.pi / 2 * np.arange(-1, 2)
    beside = [quarters + d for d in (-1e-3, -1e-9, 1e-12, 1e-6)]
    large = [5.0, -7.5, 33.0, 500.25, -4096.5, 2.0**16 + 0.1, 2.0**20 - 0.3, 2.0**40 + 0.7]
    return np.concatenate([even, *beside, [2.0**-30, -(2.0**-12), 0.01], large])


def _exact(angle: float) -> tuple[Fraction, Fraction]:
    """Return cosine and sine of a float within 2^-100, by their series in integers."""
    turn = round(Fraction(angle) / (2 * _PI))
    x = round((Fraction(angle) - turn * 2 * _PI) * 2**_BITS)
    parts, term, n = [0, 0, 0, 0], 1 << _BITS, 0  # of i^n x^n / n!, by n modulo 4
    while term:
        parts[n % 4] += term
        n += 1
        term = term * x // (n << _BITS)
        term += term == -1  # which rounding down would keep for ever
    return Fraction(parts[0] - parts[2], 2**_BITS), Fraction(parts[1] - parts[3], 2**_BITS)
