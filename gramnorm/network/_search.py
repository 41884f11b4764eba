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


class Best:
    """The least certificate so far, and whether to go on looking for a smaller one.

    Attributes
    ----------
    bound : float
        The least certificate so far.
    logarithms : host floats
        Of its multipliers.
    """

    def __init__(self, bound: float, logarithms: HostFloats, limits: Limits) -> None:
        self.bound, self.logarithms = bound, logarithms
        self._limits, self._is_stopped = limits, False

    def keep(self, bound: float, logarithms: HostFloats) -> None:
        """Keep multipliers if their certificate is less."""
        if bound < self.bound:
            self.bound, self.logarithms = bound, logarithms

    def has_ended(self) -> bool:
        """Say whether the time is over or the caller has seen enough; asked after each step."""
        seconds = time.monotonic() - self._limits.start
        if self._limits.progress is not None and not self._is_stopped:
            self._is_stopped = bool(self._limits.progress(self.bound, seconds))
        return self._is_stopped or seconds > self._limits.seconds


class Search(Best):
    """What the ways to multipliers of a chain share."""

    def __init__(self, chain: Chain, bound: float, logarithms: HostFloats, limits: Limits) -> None:
        super().__init__(bound, logarithms, limits)
        self.chain = chain

    def offer(self, logarithms: HostFloats) -> list[HostFloats | None]:
        """Certify multipliers, keep them if they are better, and return where B is largest."""
        bound, peaks = self.chain.certified(multipliers(logarithms))
        self.keep(bound, logarithms)
        return peaks


def multipliers(logarithms: HostFloats) -> HostFloats:
    """Return multipliers that are neither too large nor too small to be divided."""
    return np.exp(np.clip(logarithms, -LARGEST, LARGEST))
