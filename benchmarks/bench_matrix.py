"""Certified brackets of matrices against the uncertified exact norm from the SVD."""

from functools import partial

import numpy as np

import gramnorm as gn
from benchmarks import Row, compare, show

CASES = [
    ("16 x 16, float64", (16, 16), np.float64, 1e-6),
    ("64 x 64, float64", (64, 64), np.float64, 1e-6),
    ("1024 x 1024, float64", (1024, 1024), np.float64, 1e-6),
    ("10000 x 256, float64", (10000, 256), np.float64, 1e-6),
    ("256 of 64 x 64, float32", (256, 64, 64), np.float32, 1e-3),
]


def run() -> None:
    """Print the table for Gaussian matrices."""
    rng = np.random.default_rng(0)
    rows = []
    for name, shape, dtype, rtol in CASES:
        x = rng.standard_normal(shape).astype(dtype)
        ours = partial(gn.matrix_norm_bracket, x, rtol=rtol)
        theirs = partial(np.linalg.matrix_norm, x, ord=2)
        bracket = ours()
        gap = float(np.max((bracket.upper - bracket.lower) / bracket.lower))
        timing = compare(f"{name}, rtol {rtol:g}", ours, theirs)
        rows.append(Row(*timing, gap, float("nan"), bool(np.all(bracket.converged))))
    show("Gaussian matrices", "numpy.linalg.matrix_norm(ord=2)", rows)
