"""Estimates of the norm of a symbol where a device takes the Lanczos steps.

The taps go there once.  Of many frequencies phases and vectors go there together; two numbers for
each step come back, and the vectors that they choose.
"""

from __future__ import annotations

import functools

import numpy as np

from gramnorm._arrays import crossing, libraries, linalg, programs
from gramnorm._arrays.types import Array, HostFloats, HostInts
from gramnorm._conv.estimates import (
    Estimator,
    HostArray,
    HostVectors,
    gram_by_taps,
    lanczos,
    ritz,
    waves,
)


class EstimatorThere(Estimator):
    """An `Estimator` beside an array in single precision; a few frequencies are the host's."""

    def __init__(self, taps: HostArray, offsets: HostInts, like: Array) -> None:
        super().__init__(taps, offsets)
        self._like = like

    @functools.cached_property
    def _rows_there(self) -> Array:
        return self._moved(self._rows)

    def _moved(self, x: HostArray) -> Array:
        xp = libraries.namespace(self._like)
        dtype = xp.complex64 if x.dtype.kind == "c" else xp.float32
        return crossing.from_host(x, dtype=dtype, like=self._like)

    def _estimated(
        self, turns: HostFloats, steps: int, start: HostVectors
    ) -> tuple[HostFloats, HostVectors]:
        if len(turns) < self.count:
            return super()._estimated(turns, steps, start)
        step = programs.batch(self.count * self.p, like=self._like)
        parts = [slice(i, i + step) for i in range(0, len(turns), step)]
        found = [self._estimated_there(turns[part], steps, start[part]) for part in parts]
        return np.concatenate([p[0] for p in found]), np.concatenate([p[1] for p in found])

    def _estimated_there(
        self, turns: HostFloats, steps: int, start: HostVectors
    ) -> tuple[HostFloats, HostVectors]:
        """Do what `_estimated` does for at most one batch: the host waits twice."""
        gram = gram_by_taps(self._rows_there, self._moved(waves(turns, self.offsets)))
        diagonal, off, basis = lanczos(gram, steps, self._moved(start))
        norms, vectors = ritz(*crossing.to_host(linalg.stacked(diagonal, off)))
        return norms, crossing.host_array(linalg.matmul(self._moved(vectors), basis))[:, 0]
