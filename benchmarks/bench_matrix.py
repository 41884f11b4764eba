"""Certified brackets of matrices against uncertified norms, and against the cost of the products alone.

Rivals: NumPy's exact norm (an SVD), SciPy's singular values, ARPACK to the same tolerance, PyTorch's exact norm;
those that are not installed are reported as absent.  "product + Cholesky" is one product A^T A and one Cholesky
factorisation of it at the speed this machine has: what a certificate of this kind cannot go below.

The class `Matrix` is read by asv; ``python -m benchmarks matrix`` prints the same cases as a table.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import gramnorm as gn
from benchmarks import Row, compare, show

CASES: dict[str, tuple[tuple[int, ...], str, float]] = {
    "16 x 16": ((16, 16), "float64", 1e-6),
    "32 x 32": ((32, 32), "float64", 1e-6),
    "64 x 64": ((64, 64), "float64", 1e-6),
    "256 x 256": ((256, 256), "float64", 1e-6),
    "1024 x 1024": ((1024, 1024), "float64", 1e-6),
    "2048 x 2048": ((2048, 2048), "float64", 1e-6),
    "20000 x 256": ((20000, 256), "float64", 1e-6),
    "1024 of 64 x 64, float32": ((1024, 64, 64), "float32", 1e-3),
}


def gaussian(shape: tuple[int, ...], dtype: str) -> Any:
    """Return noise: singular values close to each other at the top."""
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def decaying(shape: tuple[int, ...], dtype: str) -> Any:
    """Return noise whose columns shrink like 1/i: singular values that fall off quickly."""
    return (gaussian(shape, dtype) / np.arange(1, shape[-1] + 1)).astype(dtype)


def numpy_norm(x: Any) -> Callable[[], Any]:
    """Return NumPy's exact norm of `x`."""
    return partial(np.linalg.matrix_norm, x, ord=2)


def scipy_svdvals(x: Any) -> Callable[[], Any]:
    """Return SciPy's singular values of `x`."""
    return partial(importlib.import_module("scipy.linalg").svdvals, x)


def arpack(x: Any) -> Callable[[], Any]:
    """Return the largest singular value by ARPACK, to a tolerance of 1e-6."""
    svds = importlib.import_module("scipy.sparse.linalg").svds
    return partial(svds, x, k=1, tol=1e-6, return_singular_vectors=False, rng=0)


def torch_norm(x: Any) -> Callable[[], Any]:
    """Return PyTorch's exact norm of `x`."""
    torch = importlib.import_module("torch")
    return partial(torch.linalg.matrix_norm, torch.from_numpy(x), ord=2)


def product_and_cholesky(x: Any) -> Callable[[], Any]:
    """Return one product with the transpose and one factorisation of the result."""
    shift = np.eye(x.shape[-1], dtype=x.dtype)
    return lambda: np.linalg.cholesky(x.mT @ x + shift)


RIVALS = {
    "numpy matrix_norm": numpy_norm,
    "scipy svdvals": scipy_svdvals,
    "ARPACK svds": arpack,
    "torch matrix_norm": torch_norm,
    "product + Cholesky": product_and_cholesky,
}
KERNELS = {"Gaussian": gaussian, "decaying": decaying}


class Matrix:
    """The cases for asv: times of the bracket."""

    params = (sorted(KERNELS), sorted(CASES))
    param_names = ("spectrum", "case")

    def setup(self, spectrum: str, case: str) -> None:
        """Make the matrix."""
        shape, dtype, self.rtol = CASES[case]
        self.x = KERNELS[spectrum](shape, dtype)

    def time_bracket(self, *_: str) -> None:
        """Time the certified bracket."""
        gn.matrix_norm_bracket(self.x, rtol=self.rtol)


def run() -> None:
    """Print a table per spectrum and rival."""
    for spectrum, make in KERNELS.items():
        for rival, prepare in RIVALS.items():
            rows = []
            for case, (shape, dtype, rtol) in CASES.items():
                if rival == "ARPACK svds" and (len(shape) > 2 or min(shape) < 256):
                    continue  # made for single large matrices
                x = make(shape, dtype)
                try:
                    theirs = prepare(x)
                except ImportError as error:
                    print(f"{rival}: absent ({error.name} is not installed)")
                    break
                ours = partial(gn.matrix_norm_bracket, x, rtol=rtol)
                bracket = ours()
                gap = float(np.max((bracket.upper - bracket.lower) / bracket.lower))
                timing = compare(f"{case}, rtol {rtol:g}", ours, theirs)
                rows.append(Row(*timing, gap, float("nan"), bool(np.all(bracket.converged))))
            if rows:
                show(f"{spectrum} matrices", rival, rows)
