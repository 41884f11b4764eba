"""Timings of gramnorm against what one would use otherwise.

Two ways to the same number are timed in turn, pair by pair, so that a busy machine slows both; the ratio is the
median over the pairs.  A time without the gap reached in it means little: both are printed.
"""

import math
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

PAIRS = 7
SHORTEST = 5e-3
"""Seconds that one timing lasts at least; quicker calls are repeated within it."""


@dataclass(frozen=True)
class Row:
    """What a pair of contenders achieved on one case."""

    case: str
    ours: float
    theirs: float
    ratio: float
    quartiles: tuple[float, float]
    gap: float
    their_gap: float
    converged: bool


@dataclass(frozen=True)
class Timing:
    """Median seconds of two contenders timed in turn, and their ratio with its quartiles."""

    ours: float
    theirs: float
    ratio: float
    quartiles: tuple[float, float]
    pairs: int


def race(
    ours: Callable[[], object], theirs: Callable[[], object], patience: float = math.inf
) -> Timing:
    """Time both in alternating order, in fewer pairs where they take longer than `patience`.

    That is two pairs at least; one that exceeds `patience` by itself is run once, without a warm-up.
    """
    first = _seconds(ours, 1), _seconds(theirs, 1)  # warm up: imports, caches, memory
    pairs, times = 1, [first]
    if sum(first) <= patience:
        repeats = [_repeats(call, s) for call, s in zip((ours, theirs), first, strict=True)]
        pairs = min(max(int(patience / sum(first)), 2), PAIRS) if patience < math.inf else PAIRS
        times = []
        for pair in range(pairs):
            order = (0, 1) if pair % 2 else (1, 0)
            found = {i: _seconds((ours, theirs)[i], repeats[i]) for i in order}
            times.append((found[0], found[1]))
    ratios = [a / b for a, b in times]
    low, _, high = (
        statistics.quantiles(ratios, n=4, method="inclusive") if pairs > 1 else 3 * ratios
    )
    a, b = (statistics.median(side) for side in zip(*times, strict=True))
    return Timing(a, b, statistics.median(ratios), (low, high), pairs)


def compare(
    case: str, ours: Callable[[], object], theirs: Callable[[], object]
) -> tuple[str, float, float, float, tuple[float, float]]:
    """Time both in alternating order; return the first five fields of a `Row`."""
    timing = race(ours, theirs)
    return case, timing.ours, timing.theirs, timing.ratio, timing.quartiles


def peak(call: Callable[[], object]) -> int:
    """Return the most bytes that Python and NumPy hold at once during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def show(title: str, rival: str, rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    cells = [
        {
            "case": row.case,
            "ours [ms]": f"{1e3 * row.ours:.3g}",
            "theirs [ms]": f"{1e3 * row.theirs:.3g}",
            "ratio": f"{row.ratio:.3g}",
            "quartiles": f"{row.quartiles[0]:.3g} - {row.quartiles[1]:.3g}",
            "gap": f"{row.gap:.1e}",
            "their gap": "none stated" if math.isnan(row.their_gap) else f"{row.their_gap:.1e}",
            "converged": "yes" if row.converged else "NO",
        }
        for row in rows
    ]
    table(f"{title}; theirs: {rival}; medians of {PAIRS} alternating pairs", cells)


def table(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows of named cells, with the same names in every row."""
    head, cells = list(rows[0]), [list(row.values()) for row in rows]
    print(title)
    try:
        from rich import box, console
        from rich import table as rich_table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        for line in (head, *cells):
            print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
        return
    grid = rich_table.Table(box=box.SIMPLE)
    for name in head:
        grid.add_column(name, no_wrap=True)
    for line in cells:
        grid.add_row(*line)
    console.Console(width=180).print(grid)


def _repeats(call: Callable[[], object], first: float) -> int:
    """Return how often to repeat a call whose first run took so long."""
    return max(1, math.ceil(SHORTEST / max(_seconds(call, 1), 1e-7))) if first < 1 else 1


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
