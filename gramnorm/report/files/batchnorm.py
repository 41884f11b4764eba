r"""Batch normalisation in evaluation mode.

Y = gamma (x - mean) / sqrt(var + eps) + beta, channel by channel.

Its norm is max |gamma| / sqrt(var + eps).  No file stores eps, which is positive, so

    max |gamma| / sqrt(var)

bounds it from above whatever eps is, and nothing but 0 from below.  A channel with gamma = 0 has
the constant 0; one whose variance is 0 has none that holds for every eps: inf.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm._rigour.fractions import root_above
from gramnorm.report.files.tensors import Numbers

_Array = np.ndarray[Any, np.dtype[Any]]


def batchnorm_bound(gamma: Numbers, variance: Numbers) -> float:
    """Return an upper bound on the norm of a batch norm in evaluation mode, for every positive eps.

    Parameters
    ----------
    gamma : array, shape ``(channels,)``
        The scale.
    variance : array, shape ``(channels,)``
        The stored variance, which must be finite and not negative.

    Returns
    -------
    float
        The largest ``abs(gamma) / sqrt(variance)``, rounded up.
    """
    if gamma.shape != variance.shape:
        msg = f"its scale has the shape {gamma.shape}, its variance {variance.shape}: they must be equal"
        raise ValueError(msg)
    for what, values in (("scale", gamma), ("variance", variance)):
        if values.dtype.kind != "f" or values.dtype.itemsize > 8:
            msg = f"its {what} is of type {values.dtype}: it must be of real floats of 64 bits at most"
            raise ValueError(msg)
    scale, spread = (np.asarray(values, dtype=np.float64) for values in (gamma, variance))
    if not np.all(np.isfinite(spread) & (spread >= 0)):
        msg = "its variance must be finite and not negative"
        raise ValueError(msg)
    if np.any(np.isnan(scale)):
        return math.nan
    counts = scale != 0
    scale, spread = np.abs(scale[counts]), spread[counts]
    if np.any((spread == 0) | np.isinf(scale)):
        return math.inf
    return root_above(_largest_square(scale, spread))


def _largest_square(scale: _Array, spread: _Array) -> Fraction:
    """Return the largest scale^2 / spread, exactly."""
    # In floats each quotient is within 3u of its value, or subnormal, or inf: what is near the
    # largest may be it.
    with np.errstate(over="ignore", under="ignore"):
        quotients = scale / np.sqrt(spread)
    near = quotients >= (1 - 1e-12) * np.max(quotients, initial=0.0) - 1e-300
    pairs = np.unique(np.stack([scale[near], spread[near]]), axis=1).T.tolist()
    return max((Fraction(g) ** 2 / Fraction(v) for g, v in pairs), default=Fraction(0))
