"""Search for a bound on the wrong side: ``python -m tests.harness.soundness``.

Random and adversarial matrices and kernels, on several array libraries, are bracketed at many
tolerances (each stops the method at another place) and compared with references that do not come
from the package; sparse matrices as SciPy makes them, too. Exit status 1 if any bound is on the
wrong side or any call raised.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.util
import itertools
import math
import multiprocessing
import os
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from unittest import mock

import numpy as np

from tests.harness import made_sparse, oracles
from tests.harness.families import DTYPES, FAMILIES, KERNELS

MATRICES, KERNEL_COUNT = 200_000, 20_000
QUICK_MATRICES, QUICK_KERNELS = 30_000, 600
SPARSE, QUICK_SPARSE = 100_000, 2_000
DENSE, QUICK_DENSE = 50_000, 1_500  # arrays as they are made, see `made_dense`
# Every tolerance must give valid bounds, reached or not.
TOLERANCES = (None, None, 0.3, 1e-2, 1e-3, 1e-5, 1e-8, 1e-11, 1e-14)
# JAX compiles anew for each shape, strict is slow: few shapes there.
FEW_SHAPES = ((4, 4), (3, 7), (12, 5), (1, 1), (1, 6), (5, 1))
# "-device": computed with the library itself, as on a device, and not with NumPy.
SHARES = {
    "numpy": 0.6,
    "torch": 0.1,
    "torch-device": 0.1,
    "jax": 0.05,
    "jax-device": 0.05,
    "array_api_strict": 0.1,
}
TIGHT = 1e-12  # closer than this to a float64 reference, balls decide
MODES = {"every": 0.26, "circular": 0.16, "zeros": 0.2, "reflect": 0.08, "replicate": 0.08, "symmetric": 0.04,
         "transposed": 0.18}  # fmt: skip
# Dense matrices: least and most of the smaller side, most of the larger; a few cases are large.
SIDES, LARGE_SIDES, LARGE = (1, 200, 700), (200, 400, 1200), 0.03
GEOMETRY = ("padding", "padding_mode", "dilation", "stride", "transposed", "output_padding")


# --------------------------------------------------------------------------------- the backends


@dataclass(frozen=True)
class Library:
    """One array library: its namespace and how host arrays get there and back."""

    xp: Any

    def asarray(self, host: np.ndarray) -> Any:
        return self.xp.asarray(host)

    def to_numpy(self, x: Any) -> np.ndarray:
        return np.asarray(x.resolve_conj() if hasattr(x, "resolve_conj") else x)


def libraries() -> list[str]:
    return [name for name in SHARES if importlib.util.find_spec(name.removesuffix("-device"))]


def open_library(name: str) -> Library:
    name = name.removesuffix("-device")
    if name == "jax":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
        return Library(importlib.import_module("jax.numpy"))
    return Library(importlib.import_module(name))


def forget_compilations(name: str) -> None:
    """Free what JAX keeps of every shape it has met: gigabytes, after many kernels."""
    if name.startswith("jax"):
        importlib.import_module("jax").clear_caches()


def way_of(name: str) -> contextlib.AbstractContextManager[Any]:
    """Compute as a name of `SHARES` says."""
    from gramnorm._arrays import libraries  # noqa: PLC0415

    on_host = not name.endswith(("-device", "strict"))
    return mock.patch.object(libraries, "HOST_WITH_NUMPY", on_host)


# --------------------------------------------------------------------------------------- counts


@dataclass
class Tally:
    """How often something happened."""

    tried: int = 0
    upper: int = 0
    lower: int = 0
    undecided: int = 0
    unconverged: int = 0

    def add(self, other: Self) -> None:
        for name in Tally.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Count(Tally):
    """What happened to one family, and by how much its bounds are apart."""

    over: list[np.ndarray] = field(default_factory=list)

    def add(self, other: Self) -> None:
        super().add(other)
        self.over += other.over


@dataclass
class Report:
    """The counts by family, and a reproduction of everything that went wrong."""

    counts: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    failures: list[str] = field(default_factory=list)
    asked_exactly: int = 0

    def add(self, other: "Report") -> None:
        for name, count in other.counts.items():
            self.counts[name].add(count)
        self.failures += other.failures
        self.asked_exactly += other.asked_exactly

    def total(self, what: str, kind: str = "") -> int:
        return sum(getattr(c, what) for name, c in self.counts.items() if name.startswith(kind))

    @property
    def violations(self) -> int:
        return self.total("upper") + self.total("lower")

    def print(self) -> None:
        print(
            f"{'family':34}{'tried':>8}{'upper<':>8}{'lower>':>8}{'open':>6}{'loose':>7}"
            f"{'median over':>13}{'worst over':>12}"
        )
        for name in sorted(self.counts):
            c = self.counts[name]
            over = np.concatenate(c.over) if c.over else np.zeros(0)
            over = over[np.isfinite(over)]
            stats = (np.median(over), over.max()) if len(over) else (0.0, 0.0)
            print(
                f"{name:34}{c.tried:8}{c.upper:8}{c.lower:8}{c.undecided:6}{c.unconverged:7}"
                f"{stats[0]:13.1e}{stats[1]:12.1e}"
            )
        print(
            f"{self.total('tried', 'matrix')} matrices, {self.total('tried', 'conv')} kernels, "
            f"{self.total('tried', 'sparse')} sparse matrices, "
            f"{self.total('tried', 'made')} arrays as made, "
            f"{self.asked_exactly} comparisons by the exact oracle, "
            f"{self.total('undecided')} left open"
        )
        for text in self.failures[:20]:
            print(text)
        print(
            f"uppers below: {self.total('upper')}, lowers above: {self.total('lower')}, "
            f"failures listed or not: {len(self.failures)}"
        )


def exactly(a: np.ndarray) -> str:
    """Return an expression that makes the array again, bit for bit."""
    raw = np.ascontiguousarray(a)
    return f"np.frombuffer(bytes.fromhex('{raw.tobytes().hex()}'), '{raw.dtype}').reshape{a.shape}"


# ------------------------------------------------------------------------------------- matrices


@dataclass(frozen=True)
class MatrixTask:
    """Matrices of one shape and type, from one family or from all; `singly` means not as a stack.

    `certified` sends small matrices the way of large ones: no squarings, a Ritz vector, narrow blocks.
    With `steps` the bound is that of so many Gram steps, compiled in JAX, and there is no lower one.
    """

    seed: tuple[int, ...]
    library: str
    shape: tuple[int, int]
    dtype: str
    names: tuple[str, ...]
    rtol: float | None
    inject: float = 0.0
    singly: bool = False
    certified: bool = False
    steps: int | None = None

    def brackets(self, lib: Library, stack: np.ndarray) -> Iterator[np.ndarray]:
        """Return lower, upper and converged on the host, for the stack or matrix by matrix."""
        import gramnorm as gn  # noqa: PLC0415 - after the process has set its threads
        from gramnorm._arrays import limits  # noqa: PLC0415

        parts = list(stack) if self.singly else [stack]
        if self.steps is not None:
            yield from self._fixed_steps(lib, parts)
            return
        with contextlib.ExitStack() as way:
            if self.certified:
                small = {"EIGENVECTOR_COLUMNS": 2, "CHOLESKY_BLOCK": 3}
                way.enter_context(mock.patch.multiple(limits, SQUARING_COLUMNS=0, **small))
            found = [gn.matrix_norm_bracket(lib.asarray(part), rtol=self.rtol) for part in parts]
        for name in ("lower", "upper", "converged"):
            host = [lib.to_numpy(getattr(bracket, name)) for bracket in found]
            yield np.stack(host) if self.singly else host[0]

    def _fixed_steps(self, lib: Library, parts: list[np.ndarray]) -> Iterator[np.ndarray]:
        import gramnorm as gn  # noqa: PLC0415 - after the process has set its threads

        bound = functools.partial(gn.gram_iteration, steps=self.steps)
        if self.library.startswith("jax"):
            bound = importlib.import_module("jax").jit(bound)
        found = [lib.to_numpy(bound(lib.asarray(part))) for part in parts]
        upper = np.stack(found) if self.singly else found[0]
        yield from (np.zeros_like(upper), upper, np.ones(upper.shape, dtype=np.bool_))

    def run(self) -> Report:

        lib = open_library(self.library)
        rng = np.random.default_rng(self.seed)
        stack = np.stack([FAMILIES[name](rng, *self.shape, self.dtype) for name in self.names])
        lower, upper, converged = self.brackets(lib, stack)
        upper = upper.astype(oracles.LONG) * (1 - oracles.LONG(self.inject))
        found = oracles.check_stack(stack, lower, upper)
        report = Report(asked_exactly=found.asked_exactly)
        normal = upper > 2.0**40 * np.finfo(self.dtype).smallest_normal
        for i, name in enumerate(self.names):
            count = Count(
                tried=1,
                upper=int(i in found.upper_violated),
                lower=int(i in found.lower_violated),
                undecided=int(i in found.undecided),
                unconverged=int(not converged[i]),
                over=[found.over[i : i + 1]] if normal[i] else [],
            )
            kind = "matrix" if self.steps is None else "matrix, fixed steps,"
            report.counts[f"{kind} {name}"].add(count)
        how = "alone" if self.singly else "in a stack"
        how += ", by a certificate" if self.certified else ""
        how += "" if self.steps is None else f", {self.steps} steps"
        for i in {*found.upper_violated, *found.lower_violated}:
            side = "upper" if i in found.upper_violated else "lower"
            report.failures.append(
                f"{side} violated: {self.library} {self.names[i]} {self.dtype} {self.shape} "
                f"rtol={self.rtol} [{i}] of {len(stack)} {how}: "
                f"lower={float(lower[i]).hex()} upper={float(upper[i]).hex()} {exactly(stack[i])}  ({self})"
                if math.prod(self.shape) <= 40
                else f"{side} violated in [{i}] of {self}"
            )
        return report


def matrix_tasks(total: int, seed: int, inject: float, present: Sequence[str]) -> Iterator[Any]:
    """Yield stacks until `total` matrices are reached."""
    rng = np.random.default_rng((seed, 1))
    names = sorted(FAMILIES)
    shares = np.asarray([SHARES[name] for name in present])
    made = 0
    for index in itertools.count():
        if made >= total:
            return
        library = str(rng.choice(present, p=shares / shares.sum()))
        draw = rng.uniform()
        singly = bool(rng.uniform() < 0.4)
        if library in ("jax-device", "array_api_strict"):
            shape, count = FEW_SHAPES[rng.integers(len(FEW_SHAPES))], 244
            singly = singly and library != "jax-device"
        elif draw < 0.05:
            shape, count = tuple(int(i) for i in rng.integers(13, 65, 2)), 16
        elif draw < 0.06:
            shape, count, singly = tuple(int(i) for i in rng.integers(65, 200, 2)), 4, True
        elif draw < 0.09:
            shape = [(1, 200), (200, 1), (300, 2), (2, 150), (100, 7)][rng.integers(5)]
            count = 24
        else:
            shape, count = tuple(int(i) for i in rng.integers(1, 13, 2)), 122
        if rng.uniform() < 0.5 or count < len(names):  # one family, or all of them in one stack
            chosen = [str(rng.choice(names))] * count
        else:
            chosen = (names * (1 + count // len(names)))[:count]
        made += count
        yield MatrixTask(
            (seed, 2, index),
            library,
            shape,
            str(rng.choice(DTYPES)),
            tuple(chosen),
            TOLERANCES[rng.integers(len(TOLERANCES))],
            inject,
            singly,
            certified=library != "jax-device" and bool(rng.uniform() < 0.3),
            steps=int(rng.integers(0, 10)) if rng.uniform() < 0.25 else None,
        )


# -------------------------------------------------------------------------------------- kernels

WAYS = ("assembled", "banded", "searched")
"""To bound a convolution of finite size."""


@dataclass(frozen=True)
class KernelTask:
    """Some kernels with random geometry; finite sizes go one `way`, or the one that is chosen."""

    seed: tuple[int, ...]
    library: str
    count: int
    inject: float = 0.0
    way: str | None = None

    def run(self) -> Report:
        from gramnorm._conv import finite_costs  # noqa: PLC0415

        rng = np.random.default_rng(self.seed)
        lib = open_library(self.library)
        report = Report()
        with contextlib.ExitStack() as stack:
            for other in set(WAYS) - {self.way} if self.way else ():
                dear = (math.inf, math.inf) if other == "searched" else math.inf
                stack.enter_context(mock.patch.object(finite_costs, other, return_value=dear))
            for i in range(self.count):
                case = known_case(rng) if i % 10 == 0 else random_case(rng)
                report.add(check_case(case, lib, self.library, self.inject))
        forget_compilations(self.library)
        return report


@dataclass(frozen=True)
class Case:
    """A kernel, the arguments it is bounded with, and the norm, or a matrix with it, where known."""

    family: str
    kernel: np.ndarray
    options: dict[str, Any]
    known: float | np.ndarray | None = None

    @property
    def mode(self) -> str:
        """Return "every", "transposed" or the padding mode."""
        if self.options.get("input_shape") is None:
            return "every"
        if self.options.get("transposed"):
            return "transposed"
        return str(self.options.get("padding_mode", "zeros"))

    @property
    def shape(self) -> list[int]:
        return oracles.per_axis(self.options["input_shape"], self.kernel.ndim - 2)

    @property
    def stride(self) -> list[int]:
        return oracles.per_axis(self.options.get("stride", 1), self.kernel.ndim - 2)

    @property
    def is_circle(self) -> bool:
        """Tell whether inputs and outputs lie on circles, so that frequencies do not mix."""
        is_plain = self.mode == "circular" and self.options.get("padding") is None
        return is_plain and not any(n % s for n, s in zip(self.shape, self.stride, strict=True))

    @property
    def is_tight(self) -> bool:
        """Tell whether the package promises more than to be on the right side."""
        return self.is_circle or self.mode in ("every", "zeros", "transposed")


def known_case(rng: np.random.Generator) -> Case:
    dtype = str(rng.choice(DTYPES))
    cases = [
        (name, kernel, {"groups": groups}, answer)
        for name, kernel, groups, answer in oracles.known_suprema(rng, dtype)
    ]
    if rng.uniform() < 0.5:
        cases = list(oracles.known_strided(rng, dtype))
    name, kernel, options, known = cases[rng.integers(len(cases))]
    scale = 2.0 ** int(rng.integers(-60, 60))
    flat = "paraunitary" in name or "shifts" in name
    options["rtol"] = {1: None, 2: 1e-2, 3: 0.1}[kernel.ndim - 2] if flat else None
    options["transposed"] = bool(rng.uniform() < 0.2)
    return Case("known " + name.split()[0], (kernel * scale).astype(kernel.dtype), options,
                known * scale)  # fmt: skip


def random_case(rng: np.random.Generator) -> Case:
    """Draw geometries of one mode until one is accepted by the package and by the dense oracle."""
    mode = str(rng.choice(list(MODES), p=list(MODES.values())))
    name = str(rng.choice(sorted(KERNELS)))
    dims = int(rng.choice([1, 1, 2, 2, 2, 3]))
    sides = LARGE_SIDES if rng.uniform() < LARGE else SIDES
    while True:
        taps, (co, ci), options = random_geometry(rng, mode, dims)
        if mode == "every" or is_drawn(taps, (co, ci), options, sides, rng.uniform() < 0.05):
            break
    dtype = str(rng.choice(DTYPES))
    groups = options["groups"]
    kernel = np.concatenate([KERNELS[name](rng, co, ci, taps, dtype) for _ in range(groups)])
    rtols = (None, None, 0.1, 1e-2, 1e-4) if dims < 3 else (None, 0.1, 1e-2)
    if name in ("flat_paraunitary", "shifts"):  # no cell can be dropped: dear on several axes
        rtols = {1: rtols, 2: (0.1, 1e-2), 3: (0.3, 0.1)}[dims]
    options["rtol"] = rtols[rng.integers(len(rtols))]
    return Case(name, kernel, options)


def random_geometry(
    rng: np.random.Generator, mode: str, dims: int
) -> tuple[tuple[int, ...], tuple[int, int], dict[str, Any]]:
    """Draw taps, channels of one group, and the arguments of one mode in any of their forms."""

    def ints(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(low, high + 1, dims))

    def either(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    def form(values: tuple[int, ...]) -> Any:
        """Write one int per axis as such, or as an int where they agree."""
        is_one = len(set(values)) == 1 and rng.uniform() < 0.5
        return values[0] if is_one else either(tuple, list)(values)

    most_taps, most_size, most_channels = {1: (9, 60, 5), 2: (5, 13, 4), 3: (3, 6, 3)}[dims]
    taps = ints(1, 4 * most_taps if dims == 1 and rng.uniform() < 0.1 else most_taps)
    groups = either(1, 1, 1, 2, 3)
    co, ci = (int(c) for c in rng.integers(1, most_channels + 1, 2))
    if groups > 1 and rng.uniform() < 0.5:
        ci = 1  # depthwise
    stride = either((1,) * dims, ints(1, 4), ints(1, 4), (either(2, 3),) * dims)
    dilation = either((1,) * dims, (1,) * dims, ints(1, 4), stride)
    shape = either(ints(1, most_size), ints(1, most_size), ints(1, 4))
    reach = [d * (k - 1) for d, k in zip(dilation, taps, strict=True)]
    pairs = tuple((int(rng.integers(0, r + 3)), int(rng.integers(0, r + 3))) for r in reach)
    padding = either(
        None, "same", "valid", "full", int(rng.integers(0, max(reach) + 2)),
        form(ints(0, max(reach) // 2 + 1)), pairs, [list(p) for p in pairs],
        tuple((r // 2, r - r // 2) for r in reach),
    )  # fmt: skip
    options: dict[str, Any] = {"groups": groups, "stride": form(stride), "dilation": form(dilation)}
    if mode == "every":
        options["transposed"] = either(False, False, True)
        # circular padding with a stride needs the size
        circular = max(stride) == 1 and rng.uniform() < 1 / 3
        options["padding_mode"] = "circular" if circular else "zeros"
        short = tuple((int(rng.integers(0, r + 1)), 0) for r in reach)
        padding = either(
            None, padding if options["padding_mode"] == "zeros" else either("same", short)
        )
        if options["transposed"] and options["padding_mode"] == "circular":
            padding = None
    else:
        options["input_shape"] = form(shape)
        options["transposed"] = mode == "transposed"
        options["padding_mode"] = "zeros" if mode == "transposed" else mode
        if mode == "transposed" and rng.uniform() < 0.15:
            options["padding_mode"], padding = "circular", None
        if mode == "circular" and rng.uniform() < 0.5:
            padding = None
            if rng.uniform() < 0.5:  # a stride that divides the size
                options["input_shape"] = tuple(
                    -(-n // s) * s for n, s in zip(shape, stride, strict=True)
                )
    options["padding"] = padding
    if options["transposed"] and padding not in (None, "same"):
        options["output_padding"] = either(
            0, tuple(int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True))
        )
    return taps, (co, ci), options


def is_drawn(
    taps: Sequence[int],
    channels: tuple[int, int],
    options: dict[str, Any],
    sides: tuple[int, int, int],
    is_empty_wanted: bool,
) -> bool:
    """Tell whether a geometry at a size is accepted by the package, and small as a matrix."""
    shape = oracles.per_axis(options["input_shape"], len(taps))
    given = {name: options[name] for name in GEOMETRY if name in options}
    sizes = oracles.forward_sizes(taps, shape, **given)
    if options["padding_mode"] == "reflect":
        both = oracles.pads(options["padding"], shape, taps, options["dilation"], options["stride"])
        if any(max(pair) > n - 1 for pair, n in zip(both, shape, strict=True)):
            return False
    if options["transposed"] and min(reads for reads, _, _ in sizes) < 1:
        return False  # an output of no samples
    rows, columns = (
        options["groups"] * c * math.prod(size[i] for size in sizes)
        for i, c in ((1, channels[0]), (0, channels[1]))
    )
    if rows == 0:
        return is_empty_wanted
    least, most, larger = sides
    return least <= min(rows, columns) <= most and max(rows, columns) <= larger


def check_case(case: Case, lib: Library, library: str, inject: float) -> Report:
    import gramnorm as gn  # noqa: PLC0415 - after the process has set its threads

    bracket = gn.conv_norm_bracket(lib.asarray(case.kernel), **case.options)
    lower, upper = (float(lib.to_numpy(x)) for x in (bracket.lower, bracket.upper))
    upper *= 1 - inject
    report = Report()
    high, low, open_, over = judge(case, lower, upper)
    normal = upper > 2.0**40 * np.finfo(case.kernel.dtype).smallest_normal
    report.counts[f"conv {case.mode} {case.family}"] = Count(
        1, int(high), int(low), int(open_), int(not bool(lib.to_numpy(bracket.converged))),
        [np.asarray([over])] if normal and case.is_tight else [],
    )  # fmt: skip
    if high or low:
        report.failures.append(
            f"{'upper' if high else 'lower'} violated: {library} {case.family} {case.options} "
            f"lower={lower.hex()} upper={upper.hex()} {exactly(case.kernel)}"
        )
    if case.is_circle:
        report.add(_check_fixed_steps(case, lib, library, inject))
    return report


def _check_fixed_steps(case: Case, lib: Library, library: str, inject: float) -> Report:
    import gramnorm as gn  # noqa: PLC0415 - after the process has set its threads

    steps = case.kernel.size % 6
    given = {
        name: case.options[name]
        for name in ("stride", "dilation", "groups")
        if name in case.options
    }
    bound = functools.partial(
        gn.conv_gram_iteration, input_shape=case.options["input_shape"], steps=steps, **given
    )
    if library.startswith("jax"):
        bound = importlib.import_module("jax").jit(bound)
    upper = float(lib.to_numpy(bound(lib.asarray(case.kernel)))) * (1 - inject)
    high, _, open_, _ = judge(case, 0.0, upper)
    report = Report()
    report.counts[f"fixed steps, conv {case.family}"] = Count(1, int(high), 0, int(open_))
    if high:
        report.failures.append(
            f"upper violated: {library} {case.family} {case.options}, {steps} steps, "
            f"upper={upper.hex()} {exactly(case.kernel)}"
        )
    return report


def judge(case: Case, lower: float, upper: float) -> tuple[bool, bool, bool, float]:
    """Return (upper violated, lower violated, open, upper / reference - 1)."""
    kernel, options = case.kernel, case.options
    if isinstance(case.known, float):
        over = upper / case.known - 1 if case.known else upper
        return upper < case.known * (1 - 4e-16), lower > case.known * (1 + 4e-16), False, over
    if case.known is None and (
        case.mode == "every" or (case.is_circle and set(case.stride) == {1})
    ):
        high, low, open_, over = judge_by_symbol(case, lower, upper)
    elif case.known is None:
        given = {name: options[name] for name in ("groups", *GEOMETRY) if name in options}
        high, low, open_, over = verdict(
            oracles.check_conv(kernel, case.shape, lower, upper, **given)
        )
    else:
        stack = np.asarray(case.known)[None]
        ends = np.asarray([lower]), np.asarray([upper])
        high, low, open_, over = verdict(oracles.check_stack(stack, *ends))
    # Where the taps cancel, rounding alone sets the ratio.
    absolute = float(np.sum(np.abs(kernel.astype(np.clongdouble) / (upper or 1.0))))
    is_resolved = (1 + over) * absolute < 1e-4 / np.finfo(kernel.dtype).eps
    return high, low, open_, over if is_resolved else math.inf


def verdict(found: oracles.Findings) -> tuple[bool, bool, bool, float]:
    """Return the findings about one matrix as `judge` does."""
    sides = (found.upper_violated, found.lower_violated, found.undecided)
    high, low, open_ = (bool(side) for side in sides)
    return high, low, open_, float(found.over[0])


def judge_by_symbol(case: Case, lower: float, upper: float) -> tuple[bool, bool, bool, float]:
    """Return what `judge` does, from the frequencies of a circle or of every size."""
    kernel, options = case.kernel, case.options
    dilation, groups = options.get("dilation", 1), options.get("groups", 1)
    stride = case.stride
    is_circle = case.mode == "circular"
    if is_circle:
        value = oracles.circular_reference(kernel, case.shape, dilation, groups, stride)

        def compare(t: float) -> int | None:
            return oracles.compare_circular(kernel, case.shape, t, dilation, groups, stride)
    else:
        value, theta = oracles.sup_reference(kernel, groups, None, 6, stride, dilation)
        if lower > value * (1 + TIGHT) and math.isfinite(value):  # look harder before we accuse
            finer = {1: 64, 2: 64}.get(kernel.ndim - 2, 10)
            value, theta = oracles.sup_reference(kernel, groups, finer, 64, stride, dilation)

        def compare(t: float) -> int | None:
            return oracles.compare_symbol(kernel, tuple(theta), t, dilation, groups, stride)

    over = upper / value - 1 if 0 < value < math.inf else math.inf
    open_ = high = low = False
    tiny = 2.0**20 * float(np.finfo(kernel.dtype).smallest_subnormal)
    if not upper >= value * (1 + TIGHT) + tiny:
        sign = compare(upper)
        high, open_ = sign == -1, sign is None
    if not lower <= max(value * (1 - TIGHT) - tiny, 0.0):
        sign = compare(lower)
        # At a maximum that was only approached, "above" means above by more than the approach.
        slack = 0.0 if is_circle else 1e-11
        low = sign == 1 and (slack == 0 or compare(lower * (1 - slack) - tiny * 2.0**-20) == 1)
        open_ = open_ or sign is None
    return high, low, open_, over


def kernel_tasks(total: int, seed: int, inject: float, present: Sequence[str]) -> Iterator[Any]:
    """Yield tasks until `total` kernels are reached; JAX, which compiles each shape, gets 1 %."""
    rng = np.random.default_rng((seed, 3))
    less = {"jax-device": 0.1}
    shares = np.asarray([SHARES[name] * less.get(name, 1) for name in present])
    made = 0
    for index in itertools.count():
        if made >= total:
            return
        library = str(rng.choice(present, p=shares / shares.sum()))
        count = min(2 if library == "jax-device" else 20, total - made)
        made += count
        way = (None, *WAYS)[index % 4]
        yield KernelTask((seed, 4, index), library, count, inject, way)


# ------------------------------------------------------------------------------ sparse matrices


@dataclass(frozen=True)
class SparseTask:
    """Some sparse matrices, each made by a few functions of SciPy one after another; `certified` as above.

    With `large` the limits are so low that all that is done for large ones is done for these.
    """

    seed: tuple[int, ...]
    count: int
    inject: float = 0.0
    certified: bool = False
    large: int = 0

    def run(self) -> Report:
        from gramnorm._arrays import limits  # noqa: PLC0415

        with contextlib.ExitStack() as stack:
            if self.certified:
                small = {"EIGENVECTOR_COLUMNS": 2, "CHOLESKY_BLOCK": 3}
                stack.enter_context(mock.patch.multiple(limits, **small))
            if self.large:
                stack.enter_context(low_limits(self.large))
            return self._run()

    def _run(self) -> Report:
        rng = np.random.default_rng(self.seed)
        report = Report()
        for _ in range(self.count):
            kinds = made_sparse.FLOATS if rng.uniform() < 0.7 else made_sparse.INTEGERS
            names, x = made_sparse.draw(rng, str(rng.choice(kinds)))
            rtol = TOLERANCES[rng.integers(len(TOLERANCES))]
            vectors = bool(rng.uniform() < 0.2 and (self.large % 2 or not self.large))
            found = made_sparse.examine(x, rtol=rtol, vectors=vectors, inject=self.inject)
            name = f"sparse {names[-1]}"
            report.counts[name].add(
                Count(1, int(found.upper), int(found.lower), int(found.open), int(found.loose),
                      [np.asarray([found.over])])
            )  # fmt: skip
            report.asked_exactly += found.asked_exactly
            if found.complaint:
                made = f"{' of '.join(names[::-1])}, {x.dtype} {x.shape} {x.format}"
                report.failures.append(f"{found.complaint}: {made} rtol={rtol} in {self}")
        return report


@contextlib.contextmanager
def low_limits(turn: int) -> Iterator[None]:
    """Let small sparse matrices go the ways of large ones: moduli, parts one by one or in stacks, windows."""
    from gramnorm._arrays import limits  # noqa: PLC0415

    low = {
        "SMALL_SIDE": 0,
        "BATCH": (3, 50)[turn % 2],
        "FIRST_STEPS": (1, 2, 8)[turn % 3],
        "LONG_LANCZOS_STEPS": (3, 400)[turn % 2],
        "BASIS": (0, 2**10)[turn % 2],
        "STACKED": (1, 4)[turn // 2 % 2],
        "WINDOW_BLOCK": (1, 2, 5)[turn % 3],
        "STRIP": (1, 3)[turn % 2],
        "WIDE_WINDOW": (4, 1024)[turn // 3 % 2],
        "SPARSE_COLUMNS": (0, 3)[turn // 4 % 2],
        "WINDOW_WORK": (2**37, 0)[turn % 7 == 6],
    }
    with contextlib.ExitStack() as stack:
        for name, value in low.items():
            stack.enter_context(mock.patch.object(limits, name, value))
        yield


def sparse_tasks(total: int, seed: int, inject: float) -> Iterator[Any]:
    """Yield tasks until `total` sparse matrices are reached."""
    for index, start in enumerate(range(0, total, 20)):
        large = (index + 1) // 2 if index % 2 else 0
        count = min(20, total - start)
        yield SparseTask((seed, 5, index), count, inject, certified=index % 3 == 0, large=large)


# ---------------------------------------------------------------------------------- the survey


def run(task: MatrixTask | KernelTask | SparseTask) -> Report:
    try:
        with np.errstate(all="ignore"), way_of(getattr(task, "library", "numpy")):
            return task.run()
    except Exception:
        return Report(failures=[f"raised in {task}\n{traceback.format_exc()}"])


def survey(
    matrices: int,
    kernels: int,
    seed: int = 0,
    jobs: int = 1,
    inject: float = 0.0,
    only: Sequence[str] | None = None,
    sparse: int = 0,
    dense: int = 0,
) -> Report:
    """Run the search and return what it found; the cases depend on `seed` and the counts only."""
    from tests.harness.made_dense import dense_tasks  # noqa: PLC0415 - which imports this module

    present = list(only or libraries())
    tasks = [
        *matrix_tasks(matrices, seed, inject, present),
        *kernel_tasks(kernels, seed, inject, present),
        *sparse_tasks(sparse if "numpy" in present else 0, seed, inject),
        *dense_tasks(dense, seed, [name for name in present if not name.endswith("-device")]),
    ]
    report = Report()
    if jobs == 1:
        for task in tasks:
            report.add(run(task))
        return report
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for part in pool.imap_unordered(run, tasks, chunksize=2):
            report.add(part)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.harness.soundness", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute or less")
    parser.add_argument("--matrices", type=int, help=f"default {MATRICES}")
    parser.add_argument("--kernels", type=int, help=f"default {KERNEL_COUNT}")
    parser.add_argument("--sparse", type=int, help=f"default {SPARSE}")
    parser.add_argument("--dense", type=int, help=f"arrays as they are made, default {DENSE}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--inject", type=float, default=0.0, metavar="REL",
        help="multiply every upper bound by 1 - REL: the search must then find violations",
    )  # fmt: skip
    parser.add_argument("--backends", help=f"comma-separated, of: {', '.join(SHARES)}")
    args = parser.parse_args(argv)
    defaults = (QUICK_MATRICES, QUICK_KERNELS) if args.quick else (MATRICES, KERNEL_COUNT)
    matrices = defaults[0] if args.matrices is None else args.matrices
    kernels = defaults[1] if args.kernels is None else args.kernels
    sparse = (QUICK_SPARSE if args.quick else SPARSE) if args.sparse is None else args.sparse
    dense = (QUICK_DENSE if args.quick else DENSE) if args.dense is None else args.dense
    only = args.backends.split(",") if args.backends else None
    if args.quick and only is None:
        only = [name for name in libraries() if name != "jax-device"]  # minutes of compilation
    start = time.perf_counter()
    report = survey(matrices, kernels, args.seed, args.jobs, args.inject, only, sparse, dense)
    report.print()
    print(f"{time.perf_counter() - start:.0f} s, seed {args.seed}, {args.jobs} jobs")
    return 1 if report.violations or report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
