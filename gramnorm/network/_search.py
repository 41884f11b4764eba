"""The least certificate of a search for multipliers, and what ends the search."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from gramnorm._arrays.types import HostFloats
from gramnorm.network._coupling import CONV_GAP, LARGEST, Chain

Progress = Callable[[float, float], object]
"""What is called with the least bound so far and the seconds since the start."""

# Two steps of a descent end some per cent above the least bound. With a tenth of the gap certificates
# take twice the time, as much as those steps.
_QUICK_WORK, _QUICK_GAP = 1e9, 2e-3


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

    @property
    def gap(self) -> float:
        """How sharp certificates of convolutions are: a search that ends early has no use for more."""
        return _QUICK_GAP if self.work <= _QUICK_WORK else CONV_GAP


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
        bound, peaks = self.chain.certified(multipliers(logarithms), gap=self._limits.gap)
        self.keep(bound, logarithms)
        return peaks


def multipliers(logarithms: HostFloats) -> HostFloats:
    """Return multipliers that are neither too large nor too small to be divided."""
    return np.exp(np.clip(logarithms, -LARGEST, LARGEST))
