"""The search for a bound on the wrong side, for hours: ``python -m tests.harness.campaign``.

    python -m tests.harness.campaign --hours 2
    python -m tests.harness.campaign --page

A *round* is a search of `soundness` with the number of the round for its seed, chains of layers,
and records of operators on which the checker gives its verdict, in exact and ball arithmetic and
without the package.  Its counts are added to those of all rounds in ``docs/campaign/counts.json``
as soon as it is over: the search may be stopped at any time and goes on with the next round.
``--page`` writes the page of the documentation.  Exit status 1 if anything was ever wrong.
"""

import argparse
import functools
import hashlib
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np

from tests.harness import chains, fixed_steps, records, soundness
from tests.harness.made_dense import dense_tasks

ROOT = Path(__file__).parents[2]
COUNTS = ROOT / "docs" / "campaign" / "counts.json"
PAGE = ROOT / "docs" / "campaign.md"

MATRICES, KERNELS, SPARSE, DENSE, CHAINS, RECORDS = 12_000, 120, 600, 300, 200, 12  # of a round
FIXED = 600  # matrices by fixed steps, and as many kernels
COMPILED = (
    8  # one round of so many has the tasks that are compiled step by step, which take minutes
)
KINDS = {
    "matrix": "matrices",
    "conv": "kernels",
    "fixed steps, conv": "kernels, fixed steps",
    "sparse": "sparse matrices",
    "made": "arrays as they are made",
    "chain": "chains of layers",
    "record": "records, by the checker",
}


@dataclass
class Family(soundness.Tally):
    """What happened to one family of cases, and the widest of its gaps."""

    worst: float = 0.0

    def add(self, other: Self) -> None:
        super().add(other)
        self.worst = max(self.worst, other.worst)

    @classmethod
    def of(cls, count: soundness.Count) -> "Family":
        """Take a count of `soundness`, of its gaps the widest."""
        over = np.concatenate([np.asarray(part, dtype=np.float64) for part in [[0.0], *count.over]])
        worst = float(np.max(over[np.isfinite(over)]))
        return cls(count.tried, count.upper, count.lower, count.undecided, count.unconverged, worst)


@dataclass
class Counts:
    """What all rounds have found.

    What was mended is moved by hand from `failures` to `mended`, in words.
    """

    rounds: int = 0
    seconds: float = 0.0
    asked_exactly: int = 0
    states: dict[str, int] = field(default_factory=dict)
    families: dict[str, Family] = field(default_factory=dict)
    libraries: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Counts":
        """Return the counts in a file, none if there is no such file."""
        if not path.exists():
            return cls()
        held = json.loads(path.read_text())
        held["families"] = {name: Family(**value) for name, value in held["families"].items()}
        return cls(**held)

    def write(self, path: Path) -> None:
        """Replace the file, so that it is whole whenever the search is stopped."""
        path.parent.mkdir(parents=True, exist_ok=True)
        held = {**vars(self), "families": {n: vars(f) for n, f in sorted(self.families.items())}}
        beside = path.with_suffix(".new")
        text = json.dumps(held, indent=1, sort_keys=True)
        beside.write_text(re.sub(r"\n {3}| *\n {2}(?=})", " ", text) + "\n")  # a family on a line
        beside.replace(path)

    def add(self, kind: str, library: str, report: soundness.Report) -> None:
        """Add what a task has found."""
        for name, count in report.counts.items():
            self.families.setdefault(name, Family()).add(Family.of(count))
        tried = self.libraries.setdefault(library, {})
        tried[kind] = tried.get(kind, 0) + report.total("tried")
        self.asked_exactly += report.asked_exactly
        self.failures += report.failures

    def total(self, what: str, kind: str = "") -> int:
        """Return a sum over the families of a kind."""
        return sum(getattr(f, what) for name, f in self.families.items() if name.startswith(kind))

    @property
    def is_clean(self) -> bool:
        """Whether nothing was ever wrong."""
        return not (self.failures or self.total("upper") or self.total("lower"))


# ---------------------------------------------------------------------------------------- rounds


@dataclass(frozen=True)
class ChainTask:
    """Some chains of layers of all kinds, against every pattern of activity."""

    seed: int
    count: int
    library: str = "numpy"

    def run(self) -> soundness.Report:
        rng, report = np.random.default_rng((self.seed, 7)), soundness.Report()
        kinds, shares = list(chains.KINDS), np.asarray(list(chains.KINDS.values()))
        for _ in range(self.count):
            kind = str(rng.choice(kinds, p=shares / shares.sum()))
            layers, known, truth = chains.drawn(rng, kind)
            bounds = chains.bounds(rng, kind, layers, known)
            wrong = [b for b in bounds if not truth <= chains.exactly(b)]
            over = [np.asarray([min(bounds) / truth - 1])] if "found" in kind and truth else []
            report.counts[f"chain {kind}"].add(soundness.Count(1, int(bool(wrong)), over=over))
            report.failures += [f"{kind}: {b!r} is below {truth!r} for {layers!r}" for b in wrong]
        return report


@dataclass(frozen=True)
class RecordTask:
    """Some records of small operators, and the checker's verdicts."""

    seed: int
    count: int
    library: str = "numpy"

    def run(self) -> soundness.Report:
        report = soundness.Report()
        for i in range(self.count):
            kind, record = records.drawn(np.random.default_rng((self.seed, 8, i)))
            verdict, reason = records.verdict(record)
            is_open = verdict == "cannot check"
            wrong = not is_open and verdict != "verified"
            found = soundness.Count(1, upper=int(wrong), undecided=int(is_open))
            report.counts[f"record {kind}"].add(found)
            if wrong:
                report.failures.append(f"record {kind}, {(self.seed, 8, i)}: {verdict}: {reason}")
        return report


def tasks_of(number: int, share: float, present: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the tasks of a round with their kinds; `share` of the usual numbers."""

    def count(usual: int) -> int:
        return math.ceil(usual * share)

    is_long = number % COMPILED == 0
    eager = [name for name in present if name != "jax-device" or is_long]
    whole = [name for name in eager if not name.endswith("-device")]
    made = {
        "matrix": soundness.matrix_tasks(count(MATRICES), number, 0.0, eager),
        "conv": soundness.kernel_tasks(count(KERNELS), number, 0.0, eager),
        "sparse": soundness.sparse_tasks(count(SPARSE), number, 0.0),
        "made": dense_tasks(count(DENSE), number, whole),
        "fixed": fixed_steps.tasks(
            count(FIXED), count(FIXED), number, 0.0, fixed_steps.ways(eager, compiled=is_long)
        ),
        "chain": [ChainTask(number, count(CHAINS))],
        "record": [RecordTask(number, count(RECORDS))],
    }
    return chain.from_iterable(((kind, task) for task in tasks) for kind, tasks in made.items())


def add_round(counts: Counts, share: float = 1.0, present: Sequence[str] | None = None) -> None:
    """Run the next round and add what it finds."""
    start, state = time.process_time(), _state()
    for kind, task in tasks_of(counts.rounds, share, present or soundness.libraries()):
        library = getattr(task, "library", "numpy")
        try:
            with np.errstate(all="ignore"), soundness.way_of(library):
                report = task.run()
        except Exception:
            report = soundness.Report(failures=[f"raised in {task}\n{traceback.format_exc()}"])
        counts.add(kind, library, report)
    counts.rounds += 1
    counts.seconds += time.process_time() - start
    counts.states[state] = counts.states.get(state, 0) + 1


@functools.cache
def _state() -> str:
    """Return the first digits of a hash of the package's modules."""
    found = hashlib.sha256()
    for path in sorted((ROOT / "gramnorm").rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


# ------------------------------------------------------------------------------------------ page

HEAD = """# What was searched

<!-- written by `python -m tests.harness.campaign --page` -->

A bound on the wrong side is the worst defect of this package, so it is searched for: random and
adversarial matrices and kernels, on all array libraries, in four floating types, at many
tolerances, are bracketed by every public function and compared with oracles that share no code with
the package: signs of exact determinants, sums in extended precision, convolutions written as loops,
closed forms. Small records are given to the {doc}`checker <records>`. The search is
`python -m tests.harness.campaign`; it may be stopped and goes on. That it finds what is wrong is
tested: bounds that are lowered by 1e-12, or computed without their error terms, are found.

Error constants and directed roundings of the bounds are also taken away, one at a time
(`python -m tests.harness.mutations`): a test fails, or `tests/harness/mutation_arguments.py` says
why the term is not missed.

"""

TABLE = """
| family | tried | upper below | lower above | open | not converged | widest |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""

NOTES = """
*Open*: the oracle could not tell, as for a bound that equals the norm to more digits than it
computes; for records, what the checker cannot check. *Not converged*: the bracket is wider than was
asked for, as for tolerances beyond the precision; it was on its sides. *Widest*: the largest
`upper / norm - 1`, norms near the smallest and the largest numbers left out, at the tolerance that
was asked for, up to 0.3; for fixed steps whatever the steps give.
"""


def page(counts: Counts) -> str:
    """Return the page of the documentation."""
    wrong = counts.total("upper") + counts.total("lower")
    numbers = [_grouped(counts.total("tried", kind)) for kind in ("matrix", "conv", "")]
    hours, failures = f"{counts.seconds / 3600:.1f}", len(counts.failures)
    summary = (
        f"{numbers[0]} matrices, {numbers[1]} kernels and {numbers[2]} cases in all, in "
        f"{counts.rounds} rounds that took {hours} hours of one core: **{wrong} bounds on the "
        f"wrong side**, {failures} failures of any kind, what was mended apart. "
        f"{_grouped(counts.asked_exactly)} comparisons were so near that exact arithmetic decided."
    )
    lines = [
        summary,
        "",
        "| library | " + " | ".join(["matrices", "kernels", "sparse", "as made"]) + " |",
        "| --- |" + " ---: |" * 4,
    ]
    for name, tried in sorted(counts.libraries.items()):
        numbers = [_grouped(tried.get(kind, 0)) for kind in ("matrix", "conv", "sparse", "made")]
        lines.append(f"| {name} | " + " | ".join(numbers) + " |")
    lines += ["", "`-device`: computed with the library itself, as on a device, and not with NumPy.", ""]  # fmt: skip
    if counts.failures:
        lines += ["What the search found, and what is open:", ""]
        lines += [*(f"- {text.splitlines()[0]}" for text in counts.failures), ""]
    if counts.mended:
        lines += ["What the search found, and what was mended then:", ""]
        lines += [*(f"- {text}" for text in counts.mended), ""]
    for kind, title in KINDS.items():
        of_kind = {n: f for n, f in counts.families.items() if n.startswith(kind)}
        lines += ["", f"## {title.capitalize()}", TABLE.rstrip()] if of_kind else []
        for name, f in sorted(of_kind.items()):
            numbers = (f.tried, f.upper, f.lower, f.undecided, f.unconverged)
            widest = f"{f.worst:.0e}" if f.worst else ""
            own = name.removeprefix(kind).strip(" ,")
            lines.append(f"| {own} | {' | '.join(map(_grouped, numbers))} | {widest} |")
    return HEAD + "\n".join(lines) + "\n" + NOTES


def _grouped(n: int) -> str:
    """Return a number with its digits in groups."""
    return f"{n:,}".replace(",", " ")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.harness.campaign",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hours", type=float, default=1.0, help="begin no other round after that")
    parser.add_argument("--file", type=Path, default=COUNTS, help="where the counts are")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual size of a round")
    parser.add_argument("--backends", help=f"comma-separated, of: {', '.join(soundness.SHARES)}")
    parser.add_argument("--page", action="store_true", help="write the page, search for nothing")
    args = parser.parse_args(argv)
    counts = Counts.read(args.file)
    if args.page:
        PAGE.write_text(page(counts))
        return 0
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    present = args.backends.split(",") if args.backends else None
    end = time.monotonic() + 3600 * args.hours
    while True:
        add_round(counts, args.share, present)
        counts.write(args.file)
        wrong = counts.total("upper") + counts.total("lower")
        sys.stdout.write(
            f"round {counts.rounds}: {counts.total('tried', 'matrix')} matrices, "
            f"{counts.total('tried', 'conv')} kernels, {counts.total('tried')} in all, "
            f"{wrong} bounds on the wrong side, {len(counts.failures)} failures\n"
        )
        sys.stdout.flush()
        if time.monotonic() >= end:
            return int(not counts.is_clean)


if __name__ == "__main__":
    sys.exit(main())
