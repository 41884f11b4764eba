"""Certified brackets of convolutions against the published Gram iteration and the exact SVD.

The rival is arXiv:2305.16173 as one would write it in NumPy: a two-dimensional FFT of the kernel,
six Gram steps for every frequency of the image, and the largest result.  It bounds the circular
operator of that size from above in exact arithmetic; its gap is measured against our lower bound
of the same operator.

Where the symbol on the whole grid would not fit in `LARGEST` bytes, the rival runs on a smaller
image, and its seconds and bytes are multiplied by the ratio of the numbers of frequencies;
"measured at" says so.  That favours the rival: larger arrays cost more per frequency.

Small products on several threads suffer more from a busy machine than from anything measured here:
``OPENBLAS_NUM_THREADS=1 python -m benchmarks conv`` repeats best.  asv reads the class `Conv`.
"""

import importlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import gramnorm as gn
from benchmarks import Timing, peak, race, table

STEPS = 6
LARGEST = 2**27
"""Most bytes of the symbol with which a rival is run; its peak is about four times that."""

PATIENCE = 8.0
"""Seconds of alternating pairs beyond which there are fewer of them."""

LONGEST = 60.0
"""Seconds beyond which a bracket is not run but foretold."""

WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Where weights of real layers are looked for."""

Cells = dict[str, str]
Norm = Callable[[Any, int], float]


def gaussian(shape: tuple[int, ...]) -> Any:
    """Return an untrained kernel: pure noise, the hard case of a search over frequencies.

    Its symbol is about as large at one frequency as at any other: for 64x64x3x3, nowhere below 0.9
    of the maximum.
    """
    return np.random.default_rng(0).standard_normal(shape) / math.prod(shape[1:]) ** 0.5


def trained_like(shape: tuple[int, ...]) -> Any:
    """Return a kernel dominated by its low frequencies, as trained ones often are.

    A Gaussian mixing of the channels under a smooth window, plus noise of half its norm.
    It was matched to the widest of the trained layers in the section "trained": the maximum near
    frequency 0, half of the frequencies or more above 0.5 of it, a tenth (here a twentieth) above
    0.9, and the two leading singular values within a tenth.
    """
    window = np.ones(())
    for taps in shape[2:]:
        side = np.hanning(taps + 2)[1:-1] ** 2
        window = np.multiply.outer(window, side / np.sum(side))
    mixing = np.random.default_rng(1).standard_normal(shape[:2]) / shape[1] ** 0.5
    return np.multiply.outer(mixing, window) + 0.5 * gaussian(shape)


KERNELS = {"trained-like": trained_like, "Gaussian": gaussian}
COMMON = (64, 64, 3, 3)


def full_grid(kernel: Any, n: int) -> Any:
    """Return the symbol at all frequencies of a circular image of n samples per axis."""
    spatial = kernel.ndim - 2
    return np.moveaxis(
        np.fft.rfftn(kernel, s=(n,) * spatial, axes=range(2, kernel.ndim)), (0, 1), (-2, -1)
    )


def published_gram_iteration(kernel: Any, n: int) -> float:
    """Return the bound for a circular convolution on an n x n image."""
    symbol = full_grid(kernel, n)
    if symbol.shape[-2] < symbol.shape[-1]:
        symbol = symbol.swapaxes(-2, -1)
    g = np.ascontiguousarray(symbol)
    log_scale = np.zeros(g.shape[:-2])
    for _ in range(STEPS):
        norm = np.linalg.norm(g, axis=(-2, -1))
        g = g / norm[..., None, None]
        log_scale = 2 * (log_scale + np.log(norm))
        g = g.conj().swapaxes(-2, -1) @ g
    logs = (np.log(np.linalg.norm(g, axis=(-2, -1))) + log_scale) / 2**STEPS
    return float(np.exp(np.max(logs)))


def exact_svd(kernel: Any, n: int) -> float:
    """Return the norm of a circular convolution on an n x n image, up to rounding."""
    return float(np.max(np.linalg.svd(full_grid(kernel, n), compute_uv=False)))


class Run:
    """A bracket to be timed, which remembers what it returned."""

    def __init__(self, kernel: Any, n: int | None = None, **options: Any) -> None:
        shape = None if n is None else (n,) * (kernel.ndim - 2)
        self._call = partial(gn.conv_norm_bracket, kernel, shape, **options)

    def __call__(self) -> None:
        """Find the bracket."""
        self.bracket = self._call()

    @property
    def cells(self) -> Cells:
        """What the last call achieved."""
        lower, upper = float(self.bracket.lower), float(self.bracket.upper)
        return {
            "gap": f"{(upper - lower) / lower:.1e}" if lower > 0 else "no lower bound",
            "converged": "yes" if self.bracket.converged else "NO",
            "evals": str(self.bracket.n_products),
        }


class Rival:
    """A norm on the full grid of n x n, run on the largest smaller image that is affordable."""

    def __init__(self, norm: Norm, kernel: Any, n: int) -> None:
        bytes_each, axes = 16 * math.prod(kernel.shape[:2]), kernel.ndim - 2

        def frequencies(m: int) -> int:
            return m ** (axes - 1) * (m // 2 + 1)

        self.n = n
        while frequencies(self.n) * bytes_each > LARGEST:
            self.n //= 2
        self.factor = frequencies(n) / frequencies(self.n)
        self._call, self._kernel, self._norm = partial(norm, kernel, self.n), kernel, norm

    def __call__(self) -> None:
        """Find the norm."""
        self.value = self._call()

    @property
    def measured_at(self) -> str:
        """Say on which image it ran, and what its seconds are multiplied by."""
        return f"n = {self.n}" + (f", x {self.factor:.1f}" if self.factor > 1 else "")

    @property
    def cells(self) -> Cells:
        """The gap of the last call to our lower bound; none for an exact norm."""
        if self._norm is exact_svd:
            return {}
        if self.n < max(self._kernel.shape[2:]):
            return {"their gap": "-"}  # the FFT cut the kernel off
        run = Run(self._kernel, self.n, padding_mode="circular")
        run()
        return {"their gap": f"{self.value / float(run.bracket.lower) - 1:.1e}"}


def against(rival: Rival, run: Run, goal: float | None = None) -> Cells:
    """Time a bracket and a rival in turn; return the cells that say how it went."""
    timing, factor = race(run, rival, PATIENCE), rival.factor
    low, high = (q / factor for q in timing.quartiles)
    scaled = Timing(
        timing.ours, timing.theirs * factor, timing.ratio / factor, (low, high), timing.pairs
    )
    goals = {} if goal is None else {"goal": aim(scaled.ratio, goal)}
    return timed(scaled) | goals | {"measured at": rival.measured_at} | run.cells | rival.cells


def timed(timing: Timing) -> Cells:
    """Return the cells of a timing."""
    low, high = timing.quartiles
    return {
        "ours [ms]": f"{1e3 * timing.ours:.3g}",
        "theirs [ms]": f"{1e3 * timing.theirs:.3g}",
        "ratio": f"{timing.ratio:.3g}",
        "quartiles": f"{low:.2g} - {high:.2g}" if timing.pairs > 1 else "-",
        "pairs": str(timing.pairs),
    }


def aim(ratio: float, goal: float) -> str:
    """Say whether a goal is met."""
    return f"{goal:g} " + ("met" if ratio <= goal else "MISSED")


def speed() -> None:
    """Print the goals and what is reached: time, memory, growth with the image."""
    goals = {"trained-like": (0.1, 0.005), "Gaussian": (0.5, 0.05)}
    gram, svd, memory = [], [], []
    for kind, make in KERNELS.items():
        kernel, (small, large) = make(COMMON), goals[kind]
        for n in (32, 224):
            circle = Run(kernel, n, padding_mode="circular")
            case = {"case": f"{kind}, circular n = {n}"}
            svd.append(case | against(Rival(exact_svd, kernel, n), circle))
            goal = small if n == 32 else large
            gram.append(case | against(Rival(published_gram_iteration, kernel, n), circle, goal))
        rival = Rival(published_gram_iteration, kernel, 224)
        others = {"every size": Run(kernel), "zero padding n = 224": Run(kernel, 224)}
        for name, run in others.items():
            gram.append({"case": f"{kind}, {name}"} | against(rival, run, large))
        theirs = peak(rival) * rival.factor / 2**20
        for name, run in {"circular n = 224": circle, **others}.items():
            mine = peak(run) / 2**20
            amounts = {"ours [MiB]": f"{mine:.1f}", "theirs [MiB]": f"{theirs:.0f}"}
            ratio = {"ratio": f"{mine / theirs:.2g}", "goal": aim(mine / theirs, 0.05)}
            where = {"measured at": rival.measured_at}
            memory.append({"case": f"{kind}, {name}"} | amounts | ratio | where | run.cells)
    title = "64x64x3x3, float64, rtol 1e-3, against the full-grid"
    table(f"Speed: {title} Gram iteration of n = 224 or the n given", gram)
    table(f"Speed: {title} SVD of the n given, exact up to rounding", svd)
    table("Peak memory as tracemalloc sees it: the same, the Gram iteration at n = 224", memory)
    growth()


def growth() -> None:
    """Print how the time depends on the size of the image."""
    rows = []
    for (kind, make), padding in itertools.product(KERNELS.items(), ("circular", "zeros")):
        kernel = make(COMMON)
        for n in (32, 64, 224):
            large, small = (Run(kernel, m, padding_mode=padding) for m in (1024, n))
            timing = race(large, small, PATIENCE)
            case = {"case": f"{kind}, {padding}, n = 1024 / n = {n}"}
            theirs = {f"their {name}": cell for name, cell in small.cells.items()}
            rows.append(
                case | timed(timing) | {"goal": aim(timing.ratio, 1.5)} | large.cells | theirs
            )
    table("Growth: our time for an image of 1024 x 1024, theirs is ours for a smaller one", rows)


def sweep() -> None:
    """Print what kernels of all widths and lengths cost."""
    most = {"trained-like": 45e7, "Gaussian": 32e6}
    squares = itertools.product((3, 16, 64, 128, 256, 512), (1, 3, 5, 7, 11))
    shapes = [*((c, c, k, k) for c, k in squares), (4, 4, 512)]
    rows, left_out = [], []
    for (kind, make), shape in itertools.product(KERNELS.items(), shapes):
        case = f"{'x'.join(map(str, shape))} {kind}"
        c, k = shape[1:3]
        if k > 1 and c**3 * math.prod(shape[2:]) > most[kind]:
            left_out.append(case)
            continue
        kernel = make(shape)
        run, rival = Run(kernel), Rival(published_gram_iteration, kernel, max(32, k))
        cells = against(rival, run)
        rows.append({"case": case} | cells | {"peak [MiB]": f"{peak(run) / 2**20:.1f}"})
    table("Sweep: every size, against the Gram iteration on n = 32 (512 taps: n = 512)", rows)
    print(f"not run, longer than the others: {', '.join(left_out)}\n")


def sizes() -> None:
    """Print what finite sizes cost beside every size, and how much smaller their norms are."""
    modes: dict[str, dict[str, Any]] = {
        "circular": {"padding_mode": "circular"},
        "same": {},
        "same, stride 2": {"stride": 2},
    }
    rows = []
    for (kind, make), (mode, options) in itertools.product(KERNELS.items(), modes.items()):
        kernel = make(COMMON)
        every = Run(kernel, stride=options.get("stride", 1))
        for n in (8, 16, 32, 64, 128, 224, 512, 1024):
            run = Run(kernel, n, **options)
            cells = timed(race(run, every, PATIENCE / 2))
            ratio = float(run.bracket.upper) / float(every.bracket.upper)
            case = {"case": f"{kind}, {mode}, n = {n}"}
            rows.append(case | cells | run.cells | {"upper / every size": f"{ratio:.6f}"})
    table("Sizes: 64x64x3x3, against the bracket of every size", rows)


RESNET18 = [
    ((64, 3, 7, 7), 2, 224),
    ((64, 64, 3, 3), 1, 56),
    ((128, 64, 3, 3), 2, 56),
    ((128, 64, 1, 1), 2, 56),
    ((128, 128, 3, 3), 1, 28),
    ((256, 128, 3, 3), 2, 28),
    ((256, 128, 1, 1), 2, 28),
    ((256, 256, 3, 3), 1, 14),
    ((512, 256, 3, 3), 2, 14),
    ((512, 256, 1, 1), 2, 14),
    ((512, 512, 3, 3), 1, 7),
]
"""The distinct convolution layers: kernel, stride, side of the image that enters."""


def resnet18() -> None:
    """Print what a bracket of each layer costs in forward passes of it."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        print("resnet18: absent (torch is not installed)\n")
        return
    torch.set_num_threads(threads())
    rows = []
    for kind, make in KERNELS.items():
        done: dict[tuple[int, ...], float] = {}
        for shape, stride, n in RESNET18:
            kernel = make(shape).astype(np.float32)
            w, x = torch.from_numpy(kernel), torch.ones(1, shape[1], n, n)
            forward = partial(
                torch.nn.functional.conv2d, x, w, stride=stride, padding=shape[2] // 2
            )
            case = {"case": f"{kind}, {'x'.join(map(str, shape))}, stride {stride}, n = {n}"}
            half = (shape[0] // 2, shape[1] // 2, *shape[2:])
            expected = 8 * done.get(half, 0.0)
            if expected > LONGEST:
                rows.append(case | _not_run(forward, expected))
                continue
            run = Run(kernel, stride=stride)
            timing = race(run, forward, PATIENCE)
            done[shape] = timing.ours
            rows.append(case | timed(timing) | {"goal": aim(timing.ratio, 1.0)} | run.cells)
    theirs = f"one forward pass of an image ({torch.get_num_threads()} torch threads)"
    table(f"ResNet-18, float32, every size, against {theirs}", rows)
    print(f"not run: over {LONGEST:g} s expected, 8 times those of half as many channels\n")


def _not_run(forward: Callable[[], object], expected: float) -> Cells:
    """Return the cells of a bracket that would take too long."""
    theirs = race(forward, forward).theirs
    timing = Timing(expected, theirs, expected / theirs, (math.nan, math.nan), 0)
    said = {"ours [ms]": f"not run: {expected:.0f} s expected", "goal": aim(timing.ratio, 1.0)}
    return timed(timing) | said | dict.fromkeys(("gap", "converged", "evals"), "-")


def threads() -> int:
    """Return how many threads NumPy's products may use, as its BLAS reads it."""
    named = (os.environ.get(f"{library}_NUM_THREADS") for library in ("OPENBLAS", "OMP"))
    cores = getattr(os, "process_cpu_count", os.cpu_count)()
    return int(next(filter(None, named), cores))


GEOMETRIES: dict[str, tuple[tuple[int, ...], int | None, dict[str, Any]]] = {
    "stride 2, every size": ((64, 64, 3, 3), None, {"stride": 2}),
    "stride 4, 11 taps, n = 64": ((32, 3, 11, 11), 64, {"stride": 4}),
    "dilation 2, every size": ((64, 64, 3, 3), None, {"dilation": 2}),
    "dilation 2, n = 32": ((32, 32, 3, 3), 32, {"dilation": 2}),
    "depthwise 7 taps, every size": ((256, 1, 7, 7), None, {"groups": 256}),
    "4 groups, every size": ((64, 16, 3, 3), None, {"groups": 4}),
    "transposed, stride 2, every size": ((64, 32, 4, 4), None, {"transposed": True, "stride": 2}),
    "transposed, stride 2, n = 16": (
        (32, 16, 4, 4),
        16,
        {"transposed": True, "stride": 2, "padding": 1},
    ),
    "reflect, n = 32": ((16, 16, 3, 3), 32, {"padding_mode": "reflect", "padding": 1}),
    "replicate, n = 32": ((16, 16, 3, 3), 32, {"padding_mode": "replicate", "padding": 1}),
    "3-D, every size": ((16, 16, 3, 3, 3), None, {}),
    "3-D, n = 16": ((16, 16, 3, 3, 3), 16, {}),
    "1-D, 512 taps, every size": ((4, 4, 512), None, {}),
    "1-D, 512 taps, n = 4096": ((4, 4, 512), 4096, {}),
}


def geometry() -> None:
    """Print what other geometries cost."""
    cases = [
        (f"{kind}, {name}, {'x'.join(map(str, shape))}", make(shape), n, options)
        for kind, make in KERNELS.items()
        for name, (shape, n, options) in GEOMETRIES.items()
    ]
    for kind, make in KERNELS.items():
        kernel = make((32, 32, 3, 3))
        kernel = kernel + 1j * kernel[::-1]
        cases.append((f"{kind}, complex, every size, 32x32x3x3", kernel, None, {}))
    rows = []
    for case, kernel, n, options in cases:
        run = Run(kernel, n, **options)
        try:
            rows.append({"case": case} | alone(run))
        except (NotImplementedError, MemoryError) as error:
            print(f"{case}: NO RESULT, {error}")
    table("Geometries, float64, rtol 1e-3", rows)


def alone(run: Run) -> Cells:
    """Return the median time of a bracket that has no rival, and what it achieved."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < 5 and sum(seconds) < PATIENCE / 4):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    runs = str(len(seconds))
    return {"ours [ms]": f"{1e3 * np.median(seconds):.3g}", "runs": runs} | run.cells


def trained() -> None:
    """Print what layers of published networks cost, if their weights lie beside the repository."""
    if not (WEIGHTS / "weights.npz").exists():
        print("trained: absent (no weights beside the repository)\n")
        return
    layers = json.loads((WEIGHTS / "layers.json").read_text())["layers"]
    rows = []
    with np.load(WEIGHTS / "weights.npz") as weights:
        for layer in layers:
            if layer["kind"] != "conv":
                continue
            kernel = weights[layer["key"]]
            options = {name: layer[name] for name in ("stride", "dilation", "groups")}
            for n in (None, 32):
                size = "every size" if n is None else f"zero padding, n = {n}"
                case = f"{layer['key']} {'x'.join(map(str, kernel.shape))}, {size}"
                rows.append({"case": case} | alone(Run(kernel, n, **options)))
    table("Trained layers, float32, rtol 1e-3", rows)


SECTIONS = {
    "speed": speed,
    "sweep": sweep,
    "sizes": sizes,
    "resnet18": resnet18,
    "geometry": geometry,
    "trained": trained,
}


def run(section: str | None = None) -> None:
    """Print the tables of all sections or of one."""
    print(f"NumPy {np.__version__}, {threads()} BLAS threads; seconds are medians\n")
    for name in [section] if section else SECTIONS:
        SECTIONS[name]()


class Conv:
    """The cases for asv: times and peak memory of the bracket."""

    params = (
        sorted(KERNELS),
        ("every size", "circular", "zeros"),
        (32, 224, 1024),
    )
    param_names = ("kernel", "padding", "n")

    def setup(self, kind: str, padding: str, n: int) -> None:
        """Make the kernel."""
        every = padding == "every size"
        options = {} if every else {"padding_mode": padding}
        self.run = Run(KERNELS[kind](COMMON), None if every else n, **options)

    def time_bracket(self, *_: object) -> None:
        """Time the certified bracket."""
        self.run()

    def peakmem_bracket(self, *_: object) -> None:
        """Measure the memory of the whole process."""
        self.run()

    def track_evaluations(self, *_: object) -> int:
        """Count the frequencies evaluated."""
        self.run()
        return int(self.run.bracket.n_products)
