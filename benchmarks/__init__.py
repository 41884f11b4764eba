"""Timings of gramnorm against what one would use otherwise.

Two ways to the same number are timed in turn, pair by pair, so that a busy machine slows both; the ratio is the
median over the pairs.  A time without the gap reached in it means little: both are printed.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
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


def compare(
    case: str, ours: Callable[[], object], theirs: Callable[[], object]
) -> tuple[str, float, float, float, tuple[float, float]]:
    """Time both in alternating order; return the first five fields of a `Row`."""
    repeats = [_repeats(ours), _repeats(theirs)]
    times = []
    for pair in range(PAIRS):
        order = (0, 1) if pair % 2 else (1, 0)
        found = {i: _seconds((ours, theirs)[i], repeats[i]) for i in order}
        times.append((found[0], found[1]))
    ratios = [a / b for a, b in times]
    first, _, third = statistics.quantiles(ratios, n=4)
    a, b = (statistics.median(side) for side in zip(*times, strict=True))
    return case, a, b, statistics.median(ratios), (first, third)


def show(title: str, rival: str, rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    head = [
        "case",
        "ours [ms]",
        "theirs [ms]",
        "ratio",
        "quartiles",
        "gap",
        "their gap",
        "converged",
    ]
    cells = [
        [
            row.case,
            f"{1e3 * row.ours:.3g}",
            f"{1e3 * row.theirs:.3g}",
            f"{row.ratio:.3g}",
            f"{row.quartiles[0]:.3g} - {row.quartiles[1]:.3g}",
            f"{row.gap:.1e}",
            "none stated" if math.isnan(row.their_gap) else f"{row.their_gap:.1e}",
            "yes" if row.converged else "NO",
        ]
        for row in rows
    ]
    print(f"{title}; theirs: {rival}; medians of {PAIRS} alternating pairs")
    try:
        from rich import box, console, table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        for line in (head, *cells):
            print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
        return
    grid = table.Table(*head, box=box.SIMPLE)
    for line in cells:
        grid.add_row(*line)
    console.Console(width=132).print(grid)


def _repeats(call: Callable[[], object]) -> int:
    call()  # warm up: imports, caches, memory
    return max(1, math.ceil(SHORTEST / max(_seconds(call, 1), 1e-7)))


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
