"""Certified brackets of convolutions against the published Gram iteration and the exact SVD.

The published iteration bounds the circular operator of one size from above in exact arithmetic; its
gap is measured against our lower bound of the same operator.

Where the symbol on the whole grid would not fit in `LARGEST` bytes, the rival runs on a smaller
image, and its seconds and bytes are multiplied by the ratio of the numbers of frequencies;
"measured at" says so.  That favours the rival: larger arrays cost more per frequency.

Small products on several threads suffer more from a busy machine than from anything measured here:
``OPENBLAS_NUM_THREADS=1 python -m benchmarks`` repeats best.  asv reads the class `Conv`.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import numpy as np

import gramnorm as gn
from benchmarks.devices import Device
from benchmarks.kernels import COMMON, RESNET18, gaussian, smooth, trained_layers, trained_like
from benchmarks.rivals import exact_svd, library, published_gram_iteration
from benchmarks.tables import Cells, Table
from benchmarks.timing import PATIENCE, aim, alone, race
from gramnorm._conv import finite, finite_costs

LARGEST = 2**27
"""Most bytes of the symbol with which a rival is run; its peak is about four times that."""

LONGEST = 60.0
"""Seconds beyond which a bracket is not run but foretold."""

KERNELS = {"trained-like": trained_like, "Gaussian": gaussian}


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
            "gap": upper / lower - 1 if lower > 0 else math.inf,
            "converged": bool(self.bracket.converged),
            "evals": int(self.bracket.n_products),
        }


class Rival:
    """A norm on the full grid of n x n, run on the largest smaller image that is affordable."""

    def __init__(self, norm: Callable[..., float], kernel: Any, n: int, device: Device) -> None:
        bytes_each, axes = 16 * math.prod(kernel.shape[:2]), kernel.ndim - 2

        def frequencies(m: int) -> int:
            return m ** (axes - 1) * (m // 2 + 1)

        self.n = n
        while frequencies(self.n) * bytes_each > LARGEST:
            self.n //= 2
        self.factor = frequencies(n) / frequencies(self.n)
        self._kernel, self._norm = kernel, norm
        self._call = partial(norm, kernel, self.n, device.xp)

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
            return {"their gap": math.nan}  # the transform cut the kernel off
        run = Run(self._kernel, self.n, padding_mode="circular")
        run()
        return {"their gap": self.value / float(run.bracket.lower) - 1}


def against(rival: Rival, run: Run, device: Device, goal: float | None = None) -> Cells:
    """Time a bracket and a rival in turn; return the cells that say how it went."""
    timing = race(run, rival, device).scaled(rival.factor)
    goals = {} if goal is None else aim(timing.ratio, goal)
    return timing.cells | goals | {"measured at": rival.measured_at} | run.cells | rival.cells


def speed(device: Device) -> Iterator[Table]:
    """Time the goals: against the full grid, on an image of 32 and of 224 samples per axis."""
    goals = {"trained-like": (0.1, 0.005), "Gaussian": (0.5, 0.05)}
    gram, svd, memory = [], [], []
    for kind, make in KERNELS.items():
        kernel, (small, large) = device.asarray(make(COMMON)), goals[kind]
        for n in (32, 224):
            circle = Run(kernel, n, padding_mode="circular")
            case = {"case": f"{kind}, circular n = {n}"}
            svd.append(case | against(Rival(exact_svd, kernel, n, device), circle, device))
            rival = Rival(published_gram_iteration, kernel, n, device)
            gram.append(case | against(rival, circle, device, small if n == 32 else large))
        others = {"every size": Run(kernel), "zero padding n = 224": Run(kernel, 224)}
        for name, run in others.items():
            gram.append({"case": f"{kind}, {name}"} | against(rival, run, device, large))
        theirs = device.peak(rival) * rival.factor / 2**20
        for name, run in {"circular n = 224": circle, **others}.items():
            mine = device.peak(run) / 2**20
            amounts = {"ours [MiB]": mine, "theirs [MiB]": theirs, "ratio": mine / theirs}
            cells = amounts | aim(mine / theirs, 0.05) | {"measured at": rival.measured_at}
            memory.append({"case": f"{kind}, {name}"} | cells | run.cells)
    title = "64x64x3x3, float64, rtol 1e-3, against the full-grid"
    yield Table("speed", f"Speed: {title} Gram iteration of n = 224 or the n given", gram)
    yield Table("speed_svd", f"Speed: {title} SVD of the n given, exact up to rounding", svd)
    yield Table("memory", "Peak memory of the same against the Gram iteration at n = 224", memory)


def growth(device: Device) -> Iterator[Table]:
    """Time how a bracket depends on the size of the image."""
    rows = []
    for (kind, make), padding in itertools.product(KERNELS.items(), ("circular", "zeros")):
        kernel = device.asarray(make(COMMON))
        for n in (32, 64, 224):
            large, small = (Run(kernel, m, padding_mode=padding) for m in (1024, n))
            timing = race(large, small, device)
            case = {"case": f"{kind}, {padding}", "n": n}
            theirs = {f"their {name}": cell for name, cell in small.cells.items()}
            rows.append(case | timing.cells | aim(timing.ratio, 1.5) | large.cells | theirs)
    yield Table(
        "growth", "Growth: ours for an image of 1024 x 1024, theirs is ours for n x n", rows
    )


def sweep(device: Device) -> Iterator[Table]:
    """Time kernels of all widths and lengths, for every size."""
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
        kernel = device.asarray(make(shape))
        run, rival = Run(kernel), Rival(published_gram_iteration, kernel, max(32, k), device)
        cells = against(rival, run, device)
        rows.append({"case": case} | cells | {"peak [MiB]": device.peak(run) / 2**20})
    title = "Sweep: every size, against the Gram iteration on n = 32 (512 taps: n = 512)"
    yield Table("sweep", title, rows, [f"not run, longer than the others: {', '.join(left_out)}"])


def sizes(device: Device) -> Iterator[Table]:
    """Time finite sizes beside every size, and say how much smaller their norms are."""
    modes: dict[str, dict[str, Any]] = {
        "circular": {"padding_mode": "circular"},
        "same": {},
        "same, stride 2": {"stride": 2},
    }
    rows = []
    for (kind, make), (mode, options) in itertools.product(KERNELS.items(), modes.items()):
        kernel = device.asarray(make(COMMON))
        every = Run(kernel, stride=options.get("stride", 1))
        for n in (8, 16, 32, 64, 128, 224, 512, 1024):
            run = Run(kernel, n, **options)
            cells = race(run, every, device, PATIENCE / 2).cells
            ratio = float(run.bracket.upper) / float(every.bracket.upper)
            case = {"case": f"{kind}, {mode}", "n": n}
            rows.append(case | cells | run.cells | {"upper / every size": ratio})
    yield Table("sizes", "Sizes: 64x64x3x3, against the bracket of every size", rows)


def forward(device: Device) -> Iterator[Table]:
    """Time a bracket of each layer of a ResNet-18 against a forward pass of it."""
    torch = library("torch")
    xp_is_torch = device.name.startswith("torch")
    rows = []
    for kind, make in KERNELS.items():
        done: dict[tuple[int, ...], float] = {}
        for layer in dict.fromkeys(RESNET18):
            shape, stride, n = layer.shape, layer.stride, layer.n
            kernel = device.asarray(make(shape).astype(np.float32))
            w = kernel if xp_is_torch else torch.from_numpy(make(shape).astype(np.float32))
            x = torch.ones((1, shape[1], n, n), device=w.device)
            once = partial(torch.nn.functional.conv2d, x, w, stride=stride, padding=layer.padding)
            case = {"case": f"{kind}, {layer}"}
            half = (shape[0] // 2, shape[1] // 2, *shape[2:])
            expected = 8 * done.get(half, 0.0)
            if expected > LONGEST:
                seconds = alone(once, device)
                cells = {"ours [ms]": f"not run: {expected:.0f} s", "theirs [ms]": 1e3 * seconds}
                ratio = expected / seconds
                rows.append(case | cells | {"ratio": ratio} | aim(ratio, 1.0))
                continue
            run = Run(kernel, stride=stride)
            timing = race(run, once, device)
            done[shape] = timing.ours
            rows.append(case | timing.cells | aim(timing.ratio, 1.0) | run.cells)
    title = "ResNet-18, float32, every size, against one forward pass of one image in torch"
    note = f"not run: over {LONGEST:g} s expected, 8 times those of half as many channels"
    yield Table("forward", title, rows, [note])


LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "ResNet-18, 64x64x3x3": ((64, 64, 3, 3), (56, 56), 1),
    "ResNet-50, 2048x512x1x1": ((2048, 512, 1, 1), (7, 7), 1),
    "ConvNeXt, depthwise 384x1x7x7": ((384, 1, 7, 7), (14, 14), 384),
    "VGG, 512x512x3x3": ((512, 512, 3, 3), (14, 14), 1),
    "Conformer, depthwise 512x1x31": ((512, 1, 31), (256,), 512),
}
"""Kernels, the sizes of what enters, and groups."""

BATCH = 32


def training(device: Device) -> Iterator[Table]:
    """Time a bracket of layers of well-known networks beside a training step and a forward pass."""
    torch = library("torch")
    rows = []
    for (kind, make), (name, (shape, n, groups)) in itertools.product(
        KERNELS.items(), LAYERS.items()
    ):
        kernel = make(shape).astype(np.float32)
        weight = torch.from_numpy(kernel).requires_grad_()
        x = torch.ones((BATCH, shape[1] * groups, *n)).requires_grad_()
        conv = torch.nn.functional.conv1d if len(n) == 1 else torch.nn.functional.conv2d
        once = partial(conv, x, weight, padding=shape[2] // 2, groups=groups)

        def step(once: Callable[[], Any] = once, x: Any = x, weight: Any = weight) -> None:
            torch.autograd.grad(once().sum(), (x, weight))

        run = Run(device.asarray(kernel), groups=groups)
        timing = race(run, step, device)
        with torch.no_grad():
            forward = alone(once, device)
        cells = {"ours [ms]": 1e3 * timing.ours, "step [ms]": 1e3 * timing.theirs}
        cells |= {"forward [ms]": 1e3 * forward, "ours / step": timing.ratio}
        cells |= {"quartiles": list(timing.quartiles), "ours / forward": timing.ours / forward}
        rows.append({"case": f"{kind}, {name}"} | cells | run.cells)
    title = (
        f"Layers, float32, every size, beside a training step in torch, batch {BATCH}, on the CPU"
    )
    yield Table("training", title, rows)


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


def geometry(device: Device) -> Iterator[Table]:
    """Time other geometries."""
    cases = [
        (f"{kind}, {name}, {'x'.join(map(str, shape))}", make(shape), n, options)
        for kind, make in KERNELS.items()
        for name, (shape, n, options) in GEOMETRIES.items()
    ]
    for kind, make in KERNELS.items():
        kernel = make((32, 32, 3, 3))
        cases.append(
            (f"{kind}, complex, every size, 32x32x3x3", kernel + 1j * kernel[::-1], None, {})
        )
    rows = []
    for case, kernel, n, options in cases:
        run = Run(device.asarray(kernel), n, **options)
        rows.append({"case": case, "ours [ms]": 1e3 * alone(run, device)} | run.cells)
    yield Table("geometry", "Geometries, float64, rtol 1e-3", rows)


FINITE: dict[str, tuple[Callable[..., Any], tuple[int, ...], int, dict[str, Any]]] = {
    "128x128x3x3, n = 2": (gaussian, (128, 128, 3, 3), 2, {}),
    "64x64x3x3, n = 4": (gaussian, COMMON, 4, {}),
    "64x64x3x3, n = 7": (gaussian, COMMON, 7, {}),
    "64x64x3x3, n = 14": (gaussian, COMMON, 14, {}),
    "64x64x3x3, n = 28": (gaussian, COMMON, 28, {}),
    "trained-like 64x64x3x3, n = 7": (trained_like, COMMON, 7, {}),
    "64x64x3x3, stride 2, n = 16": (gaussian, COMMON, 16, {"stride": 2}),
    "16x16x3x3, reflect, n = 28": (gaussian, (16, 16, 3, 3), 28, GEOMETRIES["reflect, n = 32"][2]),
    "8x8x3x3, n = 24": (gaussian, (8, 8, 3, 3), 24, {}),
    "depthwise 64, n = 8": (gaussian, (64, 1, 3, 3), 8, {"groups": 64}),
    "depthwise 64, n = 24": (gaussian, (64, 1, 3, 3), 24, {"groups": 64}),
    "depthwise 4, n = 24": (gaussian, (4, 1, 3, 3), 24, {"groups": 4}),
    "1-D 16x16x31, n = 100": (gaussian, (16, 16, 31), 100, {}),
    "1-D 16x16x31, n = 1000": (gaussian, (16, 16, 31), 1000, {}),
    "1-D smooth 128x1024x64, n = 32": (smooth, (128, 1024, 64), 32, {}),
    "1-D smooth 128x1024x64, n = 64": (smooth, (128, 1024, 64), 64, {}),
}


class TooDearError(Exception):
    """A way that is not among those to choose from."""


def _alone_by(way: str, run: Run, device: Device) -> float:
    """Return the seconds of a bracket found one way; NaN if that is too dear or not enough."""
    others = {"assembled", "banded", "searched"} - {way}
    with contextlib.ExitStack() as patches:
        for other in others:
            dear = (math.inf, math.inf) if other == "searched" else math.inf
            patch = mock.patch.object(finite_costs, other, return_value=dear)
            patches.enter_context(patch)
        if way != "searched":  # the last resort
            patches.enter_context(mock.patch.object(finite, "_supremum", side_effect=TooDearError))
        try:
            seconds = alone(run, device)
        except TooDearError:
            return math.nan
    return seconds if run.bracket.converged else math.nan


def ways(device: Device) -> Iterator[Table]:
    """Time the way that was chosen for a finite size against each that would have been enough."""
    rows = []
    for case, (make, shape, n, options) in FINITE.items():
        run = Run(device.asarray(make(shape)), n, **options)
        found = {way: _alone_by(way, run, device) for way in ("assembled", "banded", "searched")}
        chosen = alone(run, device)
        ratio = chosen / min((t for t in found.values() if not math.isnan(t)), default=math.nan)
        each = {f"{way} [ms]": 1e3 * seconds for way, seconds in found.items()}
        rows.append({"case": case, "ours [ms]": 1e3 * chosen} | each | {"ratio": ratio} | run.cells)
    title = "Finite sizes, Gaussian, rtol 1e-3: ours against the best of all ways that are enough"
    yield Table("ways", title, rows, ["-: too dear to be chosen, or the gap is wider"])


def trained(device: Device) -> Iterator[Table]:
    """Time layers of published networks, if their weights lie beside the repository."""
    layers, rows = trained_layers(), []
    for name, family in layers.items():
        for n in (None, 32):
            size = "every size" if n is None else f"zero padding, n = {n}"
            run = Run(device.asarray(family.make()), n, **family.options)
            cells = {"ours [ms]": 1e3 * alone(run, device)}
            rows.append({"case": f"{name}, {size}"} | cells | run.cells)
    notes = [] if layers else ["absent: no weights beside the repository"]
    yield Table("trained", "Trained layers, float32, rtol 1e-3", rows, notes)


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
