"""Calls of the convolution functions that check what holds of every answer."""

import numpy as np
import pytest

import gramnorm as gn
from tests.harness.backends import NARROW
from tests.harness.oracles import LONG

RTOL = 1e-3


def stored_dtype(be, dtype):
    return dtype if be.has_float64 else NARROW.get(dtype, dtype)


def dtype_in_turn(be, dtype):
    """Return the type to test, or skip one that another parameter or backend covers."""
    covered = dtype in NARROW if not be.has_float64 else be.compiles and dtype == "float32"
    if covered or (be.compiles and dtype == "complex64"):
        pytest.skip("covered by another type or backend")
    return dtype


def ask(be, kernel, *args, **options):
    """Return the stored kernel and the bracket with its numbers on the host."""
    x = be.asarray(kernel)
    with np.errstate(all="ignore"):
        bracket = gn.conv_norm_bracket(x, *args, **options)
    lower, upper, converged = (
        be.to_numpy(v) for v in (bracket.lower, bracket.upper, bracket.converged)
    )
    assert lower.shape == upper.shape == converged.shape == ()
    assert lower <= upper
    rtol = options.get("rtol") or RTOL
    gap = upper.astype(LONG) - lower.astype(LONG)
    assert bool(converged) == bool(gap <= rtol * lower.astype(LONG))
    return be.to_numpy(x), float(lower), float(upper), bool(converged)


def bound(be, kernel, *args, dtype="float64", **options):
    kernel = np.asarray(kernel, dtype=stored_dtype(be, dtype))
    return float(be.to_numpy(gn.conv_norm_bound(be.asarray(kernel), *args, **options)))
