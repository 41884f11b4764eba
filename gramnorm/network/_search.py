"""The least certificate of a search for multipliers, and what ends the search."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from gramnorm._arrays.types import HostFloats
from gramnorm.network._coupling import LARGEST, Chain

Progress = Callable[[float, float], object]
"""What is called with the least bound so far and the seconds since the start."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a search may take.

    Attributes
    ----------
    work : float
        Operations, as foretold.
    start, seconds : float
        When it began, by `time.monotonic`, and how long it may last.
    progress : callable or None
        Called after each step, and stops the search once it returns a true value.
    """

    work: float
    start: float
    seconds: float
    progress: Progress | None


class Search:
    """What the ways to multipliers share: the least certificate so far, and whether to go on.

    Attributes
    ----------
    chain : Chain
        Whose multipliers are searched for.
    bound : float
        The least certificate so far.
    logarithms : host floats
        Of its multipliers.
    """

    def __init__(self, chain: Chain, bound: float, logarithms: HostFloats, limits: Limits) -> None:
        self.chain, self.bound, self.logarithms = chain, bound, logarithms
        self._limits, self._is_stopped = limits, False

    def offer(self, logarithms: HostFloats) -> list[HostFloats | None]:
        """Certify multipliers, keep them if they are better, and return where B is largest."""
        bound, peaks = self.chain.certified(multipliers(logarithms))
        if bound < self.bound:
            self.bound, self.logarithms = bound, logarithms
        return peaks

    def has_ended(self) -> bool:
        """Say whether the time is over or the caller has seen enough; asked after each step."""
        seconds = time.monotonic() - self._limits.start
        if self._limits.progress is not None and not self._is_stopped:
            self._is_stopped = bool(self._limits.progress(self.bound, seconds))
        return self._is_stopped or seconds > self._limits.seconds


def multipliers(logarithms: HostFloats) -> HostFloats:
    """Return multipliers that are neither too large nor too small to be divided."""
    return np.exp(np.clip(logarithms, -LARGEST, LARGEST))
