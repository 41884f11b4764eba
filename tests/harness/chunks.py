"""Matrices cut into chunks at random, bounded through Dask: ``python -m tests.harness.chunks``.

The families of `tests.harness.families`, one by one or in stacks, tall, wide and square, in chunks
of any sizes (of no row, too), read in pieces of a row or a few. Bounds are compared with the norm
of what was cut; exit status 1 if any is on the wrong side or any call raised.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from unittest import mock

import numpy as np

import gramnorm as gn
from gramnorm._arrays import limits
from tests.harness import oracles
from tests.harness.families import DTYPES, FAMILIES
from tests.harness.soundness import TOLERANCES

MOST = 12  # rows or columns


@dataclass(frozen=True)
class Case:
    """Matrices as they are, how they are cut along each axis, and the limits they are met with."""

    family: str
    stack: np.ndarray
    chunks: tuple[tuple[int, ...], ...]
    rtol: float | None
    steps: int | None
    piece: tuple[int, int]
    columns: int

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what Dask computes: lower and upper bounds, 0 below a fixed-step bound."""
        import dask.array as da  # noqa: PLC0415 - an extra

        x = da.from_array(self.stack, chunks=self.chunks)
        with mock.patch.multiple(limits, GRAM_PIECE=self.piece, GRAM_COLUMNS=self.columns):
            if self.steps is not None:
                upper = gn.gram_iteration(x, steps=self.steps).compute()
                return np.zeros_like(upper), upper
            found = gn.matrix_norm_bracket(x, rtol=self.rtol)
            lower, upper = da.compute(found.lower, found.upper)
        return lower, upper

    def __str__(self) -> str:
        about = (self.family, self.stack.dtype, self.chunks, self.rtol, self.steps, self.piece)
        return f"{about} columns={self.columns} {self.stack.tobytes().hex()}"


@dataclass
class Findings:
    """How many matrices were tried, and what was wrong."""

    tried: int = 0
    undecided: int = 0
    complaints: list[str] = field(default_factory=list)


def cut(rng: np.random.Generator, size: int, most: int = 5) -> tuple[int, ...]:
    """Return sizes of chunks that add up to `size`; of zero, too."""
    count = int(rng.integers(1, most + 1))
    ends = np.sort(rng.integers(0, size + 1, count - 1))
    return tuple(int(n) for n in np.diff([0, *ends, size]))


def drawn(rng: np.random.Generator) -> Case:
    """Return a case; of a tall or wide matrix the short side is whole as often as not."""
    dtype = str(rng.choice(DTYPES))
    m, n = (int(k) for k in rng.integers(1, MOST + 1, 2))
    if rng.uniform() < 0.4:
        m = int(rng.integers(20, 60))
    if rng.uniform() < 0.4:
        m, n = n, m
    batch = (int(rng.integers(1, 4)),) if rng.uniform() < 0.3 else ()
    family = str(rng.choice(sorted(FAMILIES)))
    drawn = [FAMILIES[family](rng, m, n, dtype) for _ in range(batch[0] if batch else 1)]
    stack = np.stack(drawn).reshape(*batch, m, n)
    if rng.uniform() < 0.2:  # rows of scales that are far apart
        far = 60 if dtype in ("float32", "complex64") else 500
        powers = np.ldexp(1.0, rng.integers(-far, far, (m, 1))).astype(np.real(stack).dtype)
        with np.errstate(all="ignore"):
            scaled = stack * powers
        stack = scaled if np.all(np.isfinite(scaled)) else stack
    cuts = [cut(rng, size) for size in stack.shape]
    if rng.uniform() < 0.5:
        cuts[-1 if m >= n else -2] = (min(m, n),)
    return Case(
        family,
        stack,
        tuple(cuts),
        TOLERANCES[rng.integers(len(TOLERANCES))],
        steps=int(rng.integers(0, 10)) if rng.uniform() < 0.25 else None,
        piece=(int(rng.integers(1, 6)), 1) if rng.uniform() < 0.7 else limits.GRAM_PIECE,
        columns=int(rng.integers(0, MOST)) if rng.uniform() < 0.2 else limits.GRAM_COLUMNS,
    )


def search(
    count: int, seed: int, *, inject: float = 0.0, schedulers: Sequence[str] = ("sync", "threads")
) -> Findings:
    """Bound `count` matrices or more; with `inject`, falsified by this relative amount."""
    import dask  # noqa: PLC0415 - an extra

    rng = np.random.default_rng((seed, 7))
    found = Findings()
    while found.tried < count:
        case = drawn(rng)
        found.tried += len(case.stack) if case.stack.ndim == 3 else 1
        with dask.config.set(scheduler=str(rng.choice(schedulers))), np.errstate(all="ignore"):
            _judge(case, found, inject)
    return found


def _judge(case: Case, found: Findings, inject: float) -> None:
    try:
        lower, upper = case.bounds()
    except Exception:
        found.complaints.append(f"raised in {case}\n{traceback.format_exc()}")
        return
    upper = upper.astype(oracles.LONG) * (1 - oracles.LONG(inject))
    verdict = oracles.check_stack(case.stack, lower, upper)
    found.undecided += len(verdict.undecided)
    if not verdict.clean:
        found.complaints.append(f"wrong side: {lower!r} {upper!r} of {case}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inject", type=float, default=0.0)
    options = parser.parse_args()
    found = search(options.count, options.seed, inject=options.inject)
    sys.stdout.write("\n".join(found.complaints[:10]))
    sys.stdout.write(
        f"{found.tried} matrices, {found.undecided} left open, {len(found.complaints)} complaints\n"
    )
    return int(bool(found.complaints))


if __name__ == "__main__":
    sys.exit(main())
