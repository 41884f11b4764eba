"""Two contenders timed in turn, on a device that may still be working when a call returns."""

import math
import signal
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.devices import Device

PAIRS = 7
SHORTEST = 5e-3
"""Seconds that one timing lasts at least; quicker calls are repeated within it."""

PATIENCE = 8.0
"""Seconds of alternating pairs beyond which there are fewer of them."""


@dataclass(frozen=True)
class Timing:
    """Median seconds of two contenders timed in turn, and the quartiles of the ratios of pairs."""

    ours: float
    theirs: float
    quartiles: tuple[float, float]
    pairs: int

    @property
    def ratio(self) -> float:
        """The ratio of the medians, so that a table shows nothing that contradicts it."""
        return self.ours / self.theirs

    def scaled(self, factor: float) -> "Timing":
        """Return what it would be if the other side took so many times as long."""
        low, high = (q / factor for q in self.quartiles)
        return Timing(self.ours, self.theirs * factor, (low, high), self.pairs)

    @property
    def cells(self) -> dict[str, Any]:
        """The cells of a row."""
        return {
            "ours [ms]": 1e3 * self.ours,
            "theirs [ms]": 1e3 * self.theirs,
            "ratio": self.ratio,
            "quartiles": list(self.quartiles),
            "pairs": self.pairs,
        }


def race(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    device: Device,
    patience: float = PATIENCE,
) -> Timing:
    """Time both in alternating order, in fewer pairs where they take longer than `patience`.

    That is two pairs at least; one that exceeds `patience` by itself is run once, without a warm-up.
    """
    first = device.seconds(ours, 1), device.seconds(theirs, 1)  # imports, caches, memory
    pairs, times = 1, [first]
    if sum(first) <= patience:
        repeats = [_repeats(device.seconds(call, 1)) for call in (ours, theirs)]
        pairs = min(max(int(patience / sum(first)), 2), PAIRS)
        times = []
        for pair in range(pairs):
            order = (0, 1) if pair % 2 else (1, 0)
            found = {i: device.seconds((ours, theirs)[i], repeats[i]) for i in order}
            times.append((found[0], found[1]))
    ratios = [a / b for a, b in times]
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if pairs > 1 else 3 * ratios
    a, b = (statistics.median(side) for side in zip(*times, strict=True))
    return Timing(a, b, (quartiles[0], quartiles[2]), pairs)


def alone(call: Callable[[], object], device: Device, patience: float = PATIENCE / 4) -> float:
    """Return the median seconds of up to five calls within about `patience`."""
    seconds = [device.seconds(call, 1)]
    if seconds[0] < patience:  # else the first, warm-up and all, stands
        seconds = []
        while not seconds or (len(seconds) < 5 and sum(seconds) < patience):
            seconds.append(device.seconds(call, _repeats(seconds[-1] if seconds else 1.0)))
    return statistics.median(seconds)


def within(seconds: float, call: Callable[[], float]) -> float | str:
    """Return what a call returns if it takes no longer; else what became of it."""
    is_late = False

    def late(*_: object) -> None:
        nonlocal is_late
        is_late = True
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return call()
    except Exception as error:  # whatever a solver raises, or makes of what is raised in it
        return f"more than {1e3 * seconds:.0f}" if is_late else f"gave up: {type(error).__name__}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def aim(ratio: float, goal: float) -> dict[str, Any]:
    """Return the cells that say whether a goal is met."""
    return {"goal": goal, "met": not math.isnan(ratio) and ratio <= goal}


def _repeats(seconds: float) -> int:
    return max(1, math.ceil(SHORTEST / max(seconds, 1e-7)))
