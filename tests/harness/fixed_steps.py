"""Search for a fixed-step bound below the norm: ``python -m tests.harness.fixed_steps``.

Matrices and circular kernels of all families, many of one shape in a task, through
`gram_iteration` and `conv_gram_iteration` as programs call them: eagerly, mapped over a stack
(``vmap``), and compiled (``torch.compile(fullgraph=True)``, ``jax.jit``), compared with the
references of `soundness`.  Exit status 1 if any bound is below the norm or any call raised.
"""

import argparse
import functools
import importlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.harness import oracles, soundness
from tests.harness.families import DTYPES, FAMILIES, KERNELS

MATRICES, KERNEL_COUNT = 200_000, 20_000
WAYS = {  # how many of the tasks go there
    ("numpy", "eager"): 0.38,
    ("torch", "eager"): 0.15,
    ("torch", "mapped"): 0.1,
    ("torch", "compiled"): 0.02,  # ten seconds for each shape
    ("jax", "compiled"): 0.15,
    ("jax", "mapped"): 0.1,
    ("array_api_strict", "eager"): 0.1,
}
OF_A_TASK = 200
SIDES = (1, 1, 1, *range(2, 13))  # compilers take numbers and vectors apart


@dataclass(frozen=True)
class FixedStepsTask:
    """Matrices, or kernels on a circle, of one shape, type and number of steps."""

    seed: tuple[int, ...]
    library: str
    way: str
    count: int
    is_conv: bool
    inject: float = 0.0

    def run(self) -> soundness.Report:
        """Return what is below the norm."""
        rng = np.random.default_rng(self.seed)
        steps = int(rng.integers(0, 10))
        cases = self._kernels(rng) if self.is_conv else self._matrices(rng)
        uppers = self._bounds(np.stack([case.kernel for case in cases]), cases[0].options, steps)
        kind = "fixed steps, conv" if self.is_conv else "matrix, fixed steps,"
        report = soundness.Report()
        for case, upper in zip(cases, (1 - self.inject) * uppers, strict=True):
            high, _, open_, _ = self._judge(case, float(upper))
            report.counts[f"{kind} {case.family}"].add(soundness.Count(1, int(high), 0, int(open_)))
            if high:
                report.failures.append(
                    f"upper violated: {self.library} {self.way} {case.family} {case.options}, "
                    f"{steps} steps, upper={float(upper).hex()} {soundness.exactly(case.kernel)}"
                )
        soundness.forget_compilations(self.library)
        return report

    def _matrices(self, rng: np.random.Generator) -> list[soundness.Case]:
        shape, dtype = [int(n) for n in rng.choice(SIDES, 2)], str(rng.choice(DTYPES))
        names = rng.choice(sorted(FAMILIES), self.count)
        return [soundness.Case(name, FAMILIES[name](rng, *shape, dtype), {}) for name in names]

    def _kernels(self, rng: np.random.Generator) -> list[soundness.Case]:
        """Draw a circle on which frequencies do not mix, and kernels for it."""
        dims = int(rng.choice([1, 2, 2, 3]))
        while True:
            taps, channels, options = soundness.random_geometry(rng, "circular", dims)
            if options["padding"] is None and soundness.is_drawn(
                taps, channels, options, (1, 60, 200), is_empty_wanted=False
            ):
                empty = np.zeros((*channels, *taps))
                if soundness.Case("", empty, options).is_circle:
                    break
        given = ("input_shape", "stride", "dilation", "groups")
        options = {name: options[name] for name in given}
        dtype, names = str(rng.choice(DTYPES)), rng.choice(sorted(KERNELS), self.count)
        groups, options = options["groups"], {**options, "padding_mode": "circular"}
        return [
            soundness.Case(
                name,
                np.concatenate([KERNELS[name](rng, *channels, taps, dtype) for _ in range(groups)]),
                options,
            )
            for name in names
        ]

    def _bounds(self, stack: np.ndarray, options: dict[str, Any], steps: int) -> np.ndarray:
        import gramnorm as gn  # noqa: PLC0415 - after the process has set its threads

        given = {name: value for name, value in options.items() if name != "padding_mode"}
        function = gn.conv_gram_iteration if self.is_conv else gn.gram_iteration
        bound = functools.partial(function, steps=steps, **given)
        lib = soundness.open_library(self.library)
        one = _compiled(self.library, self.way, bound)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries say what they do not do fast
            if self.way == "mapped":
                return lib.to_numpy(one(lib.asarray(stack)))
            return np.stack([lib.to_numpy(one(lib.asarray(part))) for part in stack])

    def _judge(self, case: soundness.Case, upper: float) -> tuple[bool, bool, bool, float]:
        if self.is_conv:
            return soundness.judge(case, 0.0, upper)
        ends = np.zeros(1), np.asarray([upper])
        return soundness.verdict(oracles.check_stack(case.kernel[None], *ends))


def _compiled(library: str, way: str, bound: Callable[[Any], Any]) -> Callable[[Any], Any]:
    if library == "jax":
        jax = importlib.import_module("jax")
        return jax.jit(jax.vmap(bound) if way == "mapped" else bound)
    if library == "torch" and way != "eager":
        torch = importlib.import_module("torch")
        if way == "mapped":
            return torch.vmap(bound)
        torch.compiler.reset()  # of the programs of other tasks there is a limit
        return torch.compile(bound, fullgraph=True, dynamic=False)
    return bound


def tasks(
    matrices: int, kernels: int, seed: int, inject: float, present: Sequence[tuple[str, str]]
) -> Iterator[FixedStepsTask]:
    """Yield tasks until so many matrices and kernels are reached."""
    rng = np.random.default_rng((seed, 9))
    shares = np.asarray([WAYS[way] for way in present])
    for is_conv, total in ((False, matrices), (True, kernels)):
        for index, start in enumerate(range(0, total, OF_A_TASK)):
            library, way = present[rng.choice(len(present), p=shares / shares.sum())]
            count = min(OF_A_TASK, total - start)
            name = (seed, 9, int(is_conv), index)
            yield FixedStepsTask(name, library, way, count, is_conv, inject)


def ways(present: Sequence[str], *, compiled: bool = True) -> list[tuple[str, str]]:
    """Return the ways of some libraries; a shape that PyTorch compiles takes ten seconds."""
    dear = set() if compiled else {("torch", "compiled")}
    return [way for way in WAYS if way[0] in present and way not in dear]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.harness.fixed_steps", description=__doc__
    )
    parser.add_argument("--matrices", type=int, default=MATRICES)
    parser.add_argument("--kernels", type=int, default=KERNEL_COUNT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inject", type=float, default=0.0, metavar="REL")
    args = parser.parse_args(argv)
    start, report = time.perf_counter(), soundness.Report()
    for task in tasks(
        args.matrices, args.kernels, args.seed, args.inject, ways(soundness.libraries())
    ):
        report.add(soundness.run(task))
    report.print()
    kernels = report.total("tried", "fixed steps, conv")
    seconds = time.perf_counter() - start
    sys.stdout.write(f"{kernels} kernels, {seconds:.0f} s, seed {args.seed}\n")
    return 1 if report.violations or report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
