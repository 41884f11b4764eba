"""Certified brackets of matrices against uncertified norms, and against the cost of the products alone.

Rivals: the exact norm of the caller's library (an SVD), SciPy's singular values, ARPACK to the same tolerance,
PyTorch's exact norm; those that are not installed are reported as absent.  "product + Cholesky" is one product
A^T A and one Cholesky factorisation of it at the speed this machine has: what a certificate of this kind cannot
go below.

The class `Matrix` is read by asv.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np

import gramnorm as gn
from benchmarks import kernels
from benchmarks.devices import AbsentError, Device, require_numpy
from benchmarks.rivals import library
from benchmarks.tables import Table
from benchmarks.timing import aim, race

CASES: dict[str, tuple[tuple[int, ...], str, float]] = {
    "8 x 8": ((8, 8), "float64", 1e-6),
    "16 x 16": ((16, 16), "float64", 1e-6),
    "32 x 32": ((32, 32), "float64", 1e-6),
    "64 x 64": ((64, 64), "float64", 1e-6),
    "256 x 256": ((256, 256), "float64", 1e-6),
    "1024 x 1024": ((1024, 1024), "float64", 1e-6),
    "2048 x 2048": ((2048, 2048), "float64", 1e-6),
    "4096 x 4096, float32": ((4096, 4096), "float32", 1e-4),
    "20000 x 256": ((20000, 256), "float64", 1e-6),
    "1024 of 64 x 64, float32": ((1024, 64, 64), "float32", 1e-3),
}
GOALS = {
    "matrix_norm": {
        **dict.fromkeys(("8 x 8", "16 x 16", "32 x 32", "64 x 64"), 1.5),
        **dict.fromkeys(("1024 x 1024", "2048 x 2048"), 0.25),
        **dict.fromkeys(("20000 x 256",), 0.3),
        "1024 of 64 x 64, float32": 0.45,
    },
    "product + Cholesky": dict.fromkeys(
        ("1024 x 1024", "2048 x 2048", "4096 x 4096, float32"), 1.25
    ),
    "ARPACK svds": dict.fromkeys(("1024 x 1024", "2048 x 2048"), 1.5),
}
LOOSE = {1e-2: 0.5, 0.1: 0.35}
"""Tolerances of a matrix in float32, and goals for their time over that of the default."""
GRADIENTS = ("8 x 8", "16 x 16", "32 x 32", "64 x 64", "256 x 256", "1024 of 64 x 64, float32")
PLACES: dict[str, dict[str, Any]] = {
    "every size": {},
    "zeros at 32": {"input_shape": 32, "padding": 1},
    "circular at 32": {"input_shape": 32, "padding_mode": "circular"},
}


def gaussian(shape: tuple[int, ...], dtype: str) -> Any:
    """Return noise: singular values close to each other at the top."""
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def decaying(shape: tuple[int, ...], dtype: str) -> Any:
    """Return noise whose columns shrink like 1/i: singular values that fall off quickly."""
    return (gaussian(shape, dtype) / np.arange(1, shape[-1] + 1)).astype(dtype)


def own_norm(x: Any, device: Device) -> Callable[[], Any]:
    """Return the exact norm of `x` by its own library."""
    return partial(device.xp.linalg.matrix_norm, x, ord=2)


def scipy_svdvals(x: Any, device: Device) -> Callable[[], Any]:
    """Return SciPy's singular values of `x`."""
    return partial(library("scipy.linalg").svdvals, _host(x, device))


def arpack(x: Any, device: Device) -> Callable[[], Any]:
    """Return the largest singular value by ARPACK, to a tolerance of 1e-6."""
    svds = library("scipy.sparse.linalg", "scipy").svds
    return partial(svds, _host(x, device), k=1, tol=1e-6, return_singular_vectors=False, rng=0)


def torch_norm(x: Any, device: Device) -> Callable[[], Any]:
    """Return PyTorch's exact norm of `x`."""
    torch = library("torch")
    return partial(torch.linalg.matrix_norm, torch.from_numpy(_host(x, device)), ord=2)


def product_and_cholesky(x: Any, device: Device) -> Callable[[], Any]:
    """Return one product with the transpose and one factorisation of the result."""
    xp = device.xp
    shift = device.asarray(np.eye(x.shape[-1])) + 0 * x[..., :1, :1]
    shift = xp.astype(shift, x.dtype)
    return lambda: xp.linalg.cholesky(x.mT @ x + shift)


def _host(x: Any, device: Device) -> Any:
    require_numpy(device, "for NumPy's arrays")
    return x


RIVALS = {
    "matrix_norm": own_norm,
    "scipy svdvals": scipy_svdvals,
    "ARPACK svds": arpack,
    "torch matrix_norm": torch_norm,
    "product + Cholesky": product_and_cholesky,
}
KERNELS = {"Gaussian": gaussian, "decaying": decaying}


def matrices(device: Device) -> Iterator[Table]:
    """Time brackets of matrices against other norms; a table for each rival."""
    for rival, prepare in RIVALS.items():
        rows, notes = [], []
        for spectrum, make in KERNELS.items():
            for case, (shape, dtype, rtol) in CASES.items():
                if rival == "ARPACK svds" and (len(shape) > 2 or min(shape) < 256):
                    continue  # made for single large matrices
                x = device.asarray(make(shape, dtype))
                try:
                    theirs = prepare(x, device)
                except AbsentError as error:
                    notes = [f"absent: {error}"]
                    continue
                rows.append(
                    {"case": f"{spectrum} {case}", "rtol": rtol}
                    | _race(partial(gn.matrix_norm_bracket, x, rtol=rtol), theirs, device)
                )
                if case in GOALS.get(rival, {}):
                    rows[-1] |= aim(rows[-1]["ratio"], GOALS[rival][case])
        label = rival.replace(" + ", " ").replace(" ", "_").lower()
        yield Table(f"matrices_{label}", f"Matrices against {rival}", rows, notes)


def loose_matrices(device: Device) -> Iterator[Table]:
    """Time loose tolerances against the default."""
    rows = []
    for spectrum, make in KERNELS.items():
        for n in (512, 1024):
            x = device.asarray(make((n, n), "float32"))
            for rtol, goal in LOOSE.items():
                cells = _race(
                    partial(gn.matrix_norm_bracket, x, rtol=rtol),
                    partial(gn.matrix_norm_bracket, x),
                    device,
                )
                name = f"{spectrum} {n} x {n}, float32"
                rows.append({"case": name, "rtol": rtol} | cells | aim(cells["ratio"], goal))
    yield Table("matrices_loose", "Matrices at a loose tolerance against the default", rows, [])


def gradients(device: Device) -> Iterator[Table]:
    """Time bounds with their gradients against bounds."""
    rows = []
    for case in GRADIENTS:
        shape, dtype, rtol = CASES[case]
        x = device.asarray(gaussian(shape, dtype))
        both = partial(gn.matrix_norm_value_and_grad, x, rtol=rtol)
        cells = race(both, partial(gn.matrix_norm_bound, x, rtol=rtol), device).cells
        rows.append({"case": f"Gaussian {case}", "rtol": rtol} | cells | aim(cells["ratio"], 2.5))
    yield Table("matrices_gradient", "Value and gradient of matrices against the value", rows, [])
    rows = []
    for (kind, make), shape, (place, given) in product(
        {"trained-like": kernels.trained_like, "Gaussian": kernels.gaussian}.items(),
        ((16, 16, 3, 3), (64, 64, 3, 3)),
        PLACES.items(),
    ):
        x = device.asarray(make(shape))
        both = partial(gn.conv_norm_value_and_grad, x, **given)
        cells = race(both, partial(gn.conv_norm_bound, x, **given), device).cells
        case = f"{kind} {' x '.join(map(str, shape))}, {place}"
        rows.append({"case": case} | cells | aim(cells["ratio"], 2.5))
    title = "Value and gradient of convolutions against the value, rtol 1e-3"
    yield Table("conv_gradient", title, rows, [])


def _race(ours: Callable[[], Any], theirs: Callable[[], Any], device: Device) -> dict[str, Any]:
    bracket = ours()
    gap = float(((bracket.upper - bracket.lower) / bracket.lower).max())
    cells = {"gap": gap, "converged": bool(bracket.converged.all())}
    return race(ours, theirs, device).cells | cells


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
