"""Certified brackets of large sparse matrices against what SciPy's users call: `svds`, from below.

Differential operators on grids, graphs, counts, random matrices, a tomograph: made here, from a fixed seed.  The
bracket is asked for a gap of 1e-6, SciPy's solvers for a tolerance of 1e-10.  One that gives up, or takes longer than
100 seconds, has no ratio.
"""

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import gramnorm as gn
from benchmarks.devices import Device, require_numpy
from benchmarks.rivals import library
from benchmarks.tables import Table
from benchmarks.timing import aim, alone, race, within

GOAL = 1.5


def stencil(n: int, values: dict[tuple[int, int], float]) -> Any:
    """Return the operator on n x n samples, zero beyond, that adds up neighbours times values."""
    sp = library("scipy.sparse", "scipy")
    shifts = {k: sp.diags_array([np.ones(n - abs(k))], offsets=[k]) for k in range(-2, 3)}
    return sum(v * sp.kron(shifts[i], shifts[j]) for (i, j), v in values.items()).tocsr()


def laplacian(n: int) -> Any:
    """Return the five-point Laplacian."""
    return stencil(n, {(0, 0): 4, (1, 0): -1, (-1, 0): -1, (0, 1): -1, (0, -1): -1})


def biharmonic(n: int) -> Any:
    """Return the square of the Laplacian."""
    return (laplacian(n) @ laplacian(n)).tocsr()


def convection(n: int) -> Any:
    """Return diffusion with a drift: no change of bases takes its signs away."""
    drift = {(0, 0): 4.0, (1, 0): 0.5, (-1, 0): -2.5, (0, 1): 0.4, (0, -1): -2.4}
    return stencil(n, drift)


def gradient(n: int) -> Any:
    """Return forward differences along both axes, zero beyond."""
    sp = library("scipy.sparse", "scipy")
    return sp.vstack([stencil(n, {(0, 0): -1, (1, 0): 1}), stencil(n, {(0, 0): -1, (0, 1): 1})])


def random(shape: tuple[int, int], per_row: int, draw: Callable[..., Any]) -> Any:
    """Return random entries, so many a row on average."""
    sp = library("scipy.sparse", "scipy")
    rng = np.random.default_rng(0)
    x = sp.random_array(shape, density=per_row / shape[1], rng=rng, format="csr")
    x.data = np.asarray(draw(rng, x.nnz), dtype=np.float64)
    return x


def power_law(n: int, edges: int) -> Any:
    """Return the adjacency of a directed graph whose degrees have heavy tails."""
    sp = library("scipy.sparse", "scipy")
    rng = np.random.default_rng(0)
    ends = [(rng.pareto(a, edges) * 20).astype(int) % n for a in (1.2, 1.5)]
    return sp.coo_array((np.ones(edges), tuple(ends)), shape=(n, n)).tocsr()


def tomograph(n: int, angles: int) -> Any:
    """Return parallel rays through n x n pixels: samples along each ray, each given to the nearest pixel."""
    sp = library("scipy.sparse", "scipy")
    offsets = np.arange(n) - (n - 1) / 2
    theta = np.pi * np.arange(angles)[:, None, None] / angles
    along, across = offsets[None, None, :], offsets[None, :, None]
    x = np.rint(across * np.cos(theta) - along * np.sin(theta) + (n - 1) / 2).astype(int)
    y = np.rint(across * np.sin(theta) + along * np.cos(theta) + (n - 1) / 2).astype(int)
    ray = np.broadcast_to(np.arange(angles * n).reshape(angles, n, 1), x.shape)
    inside = (x >= 0) & (x < n) & (y >= 0) & (y < n)
    places = ray[inside], (x * n + y)[inside]
    return sp.coo_array((np.ones(len(places[0])), places), shape=(angles * n, n * n)).tocsr()


CASES: dict[str, Callable[[], Any]] = {
    "Laplacian, 200 x 200": partial(laplacian, 200),
    "gradient, 300 x 300": partial(gradient, 300),
    "biharmonic, 100 x 100": partial(biharmonic, 100),
    "convection and diffusion, 200 x 200": partial(convection, 200),
    "non-negative, 20000, 2 a row": lambda: random(
        (20000, 20000), 2, lambda r, k: r.uniform(size=k)
    ),
    "counts, 100000 x 50000": lambda: random((100000, 50000), 1, lambda r, k: r.poisson(2, k) + 1),
    "power law, 50000": partial(power_law, 50000, 300000),
    "tomograph, 128 x 128, 90 angles": partial(tomograph, 128, 90),
    "normal, 20000, 2 a row": lambda: random((20000, 20000), 2, lambda r, k: r.standard_normal(k)),
    "signs, 5000, 20 a row": lambda: random((5000, 5000), 20, lambda r, k: r.choice([-1, 1], k)),
}
DEAR = ("signs, 5000, 20 a row",)  # beyond the reach of the moduli: no goal
SAMPLES = ("airfoil", "bar", "helmholtz_2D", "knot", "local_disc_galerkin_diffusion", "unit_square")
SOLVERS = {"ARPACK": 10**5, "PROPACK": 300, "LOBPCG": 300}


LIMIT = 100.0
"""Seconds that a solver may take."""


def svds(x: Any, solver: str, tol: float) -> Callable[[], Any]:
    """Return the largest singular value by one of SciPy's solvers."""
    linalg = library("scipy.sparse.linalg", "scipy")
    options = {"k": 1, "tol": tol, "return_singular_vectors": False, "rng": 0}
    options |= {"solver": solver.lower(), "maxiter": SOLVERS[solver]}
    return lambda: float(linalg.svds(x, **options)[-1])


def sparse(device: Device) -> Iterator[Table]:
    """Time brackets of sparse matrices against `svds`; a table for each solver and one for size."""
    require_numpy(device, "for SciPy's sparse matrices")
    for solver in SOLVERS:
        rows = []
        for case, make in CASES.items():
            x = make()
            theirs = svds(x, solver, 1e-10)
            rows.append({"case": case} | _race(x, 1e-6, theirs, device))
            if case not in DEAR and solver == "ARPACK" and rows[-1]["ratio"] is not None:
                rows[-1] |= aim(rows[-1]["ratio"], GOAL)
        title = f"Large sparse matrices against svds by {solver}, tolerance 1e-10"
        yield Table(f"sparse_{solver.lower()}", title, rows, [])
    x = laplacian(1000)
    row = {"case": "Laplacian, 1000 x 1000, gap 1e-3"}
    row |= _race(x, 1e-3, svds(x, "ARPACK", 1e-3), device)
    if row["ratio"] is not None:
        row |= aim(row["ratio"], 0.1)
    yield Table("sparse_million", "A million unknowns against svds, tolerance 1e-3", [row], [])


def sparse_pyamg(device: Device) -> Iterator[Table]:
    """Time the sample matrices of PyAMG, most of them small."""
    require_numpy(device, "for SciPy's sparse matrices")
    gallery = library("pyamg.gallery", "pyamg")
    cases = {name: gallery.load_example(name)["A"].tocsr() for name in SAMPLES}
    cases["elasticity, 60 x 60"] = gallery.linear_elasticity((60, 60))[0].tocsr()
    cases["gauge Laplacian, 100 x 100"] = gallery.gauge_laplacian(100, beta=0.1).tocsr()
    cases["Poisson, 40 x 40 x 40"] = gallery.poisson((40, 40, 40), format="csr")
    stencil = gallery.diffusion_stencil_2d(epsilon=0.01, theta=np.pi / 6, type="FE")
    cases["rotated diffusion, 200 x 200"] = gallery.stencil_grid(stencil, (200, 200), format="csr")
    rows = [
        {"case": case} | _race(x, 1e-6, svds(x, "ARPACK", 1e-10), device)
        for case, x in cases.items()
    ]
    title = "PyAMG's gallery against svds by ARPACK, tolerance 1e-10"
    yield Table("sparse_pyamg", title, rows, [])


def sparse_pylops(device: Device) -> Iterator[Table]:
    """Time operators of PyLops without negative entries against its power iteration of 100 steps."""
    require_numpy(device, "for SciPy's sparse matrices")
    os.environ.setdefault("CUPY_PYLOPS", "0")  # else it needs the CUDA of a CuPy that is installed
    pylops = library("pylops")
    window = np.hanning(11)[1:-1]
    blur = np.outer(window, window) / np.sum(window) ** 2
    cases = {
        "blur, 200 x 200": pylops.signalprocessing.Convolve2D((200, 200), h=blur, offset=(4, 4)),
        "smoothing, 200 x 200": pylops.Smoothing2D((7, 7), (200, 200)),
    }
    rows = []
    for case, operator in cases.items():
        ours = partial(gn.operator_norm_bracket, operator, nonnegative=True, rtol=1e-3)
        normal = operator.H @ operator

        def theirs(normal: Any = normal) -> float:
            iteration = library("pylops.optimization.eigs", "pylops").power_iteration
            return float(np.sqrt(abs(iteration(normal, niter=100, dtype="float64")[0])))

        rows.append({"case": case} | _raced(ours, theirs, device))
    yield Table("sparse_pylops", "Operators of PyLops against its power iteration", rows, [])


def _race(x: Any, rtol: float, theirs: Callable[[], Any], device: Device) -> dict[str, Any]:
    return _raced(partial(gn.matrix_norm_bracket, x, rtol=rtol), theirs, device)


def _raced(
    ours: Callable[[], gn.NormBracket], theirs: Callable[[], Any], device: Device
) -> dict[str, Any]:
    bracket, value = ours(), within(LIMIT, theirs)
    if isinstance(value, str):  # why there is none
        times = {"ours [ms]": 1e3 * alone(ours, device), "theirs [ms]": value}
        times |= dict.fromkeys(("ratio", "quartiles", "pairs"))
        value = math.nan
    else:
        times = race(ours, theirs, device).cells
    return times | {
        "gap": float(bracket.upper / bracket.lower - 1),
        "converged": bool(bracket.converged),
        "theirs / upper": float(value / bracket.upper),
    }
