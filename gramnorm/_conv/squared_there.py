"""The square of a symbol where a device forms its matrices and factorises them.

Its tables go there once.  Of a frequency some cosines go there and two numbers come back: the
library factorises, and what that leaves is measured as on the host (docs/theory.md, Lemma 23).
"""

from __future__ import annotations

import functools
import math

import numpy as np

from gramnorm._arrays import crossing, devices, libraries, linalg, programs
from gramnorm._arrays.programs import compiled
from gramnorm._arrays.types import Array, Device, DType, HostFloats, HostInts, Namespace
from gramnorm._conv.estimates_there import EstimatorThere
from gramnorm._conv.squared import HostArray, Squared, block_columns
from gramnorm._matrix import definite

_KINDS = np.float32, np.float64
"""Types of the tables in single and in double precision."""


def square_of(taps: HostArray, offsets: HostInts, work: float) -> Squared:
    """Return the square of a symbol, on the caller's device if so much work at a time is worth it."""
    places = [devices.moved_if_worth(np.zeros(1, kind), work) for kind in _KINDS]
    there = [x for x in places if not isinstance(x, np.ndarray)]
    if not there or not libraries.has_linalg(there[0]):
        return Squared(taps, offsets)
    return SquaredThere(taps, offsets, places)


class SquaredThere(Squared):
    """The square of a symbol beside arrays in single and in double precision.

    One of them is NumPy's if the device has not that precision.
    """

    def __init__(self, taps: HostArray, offsets: HostInts, places: list[Array]) -> None:
        super().__init__(taps, offsets)
        self._places = places
        single = places[0]
        if isinstance(single, np.ndarray):
            self._losses[0] = math.inf  # double precision there goes before single precision here
        elif not programs.compiles(single):  # XLA takes seconds to compile Lanczos steps
            self.estimator = EstimatorThere(taps, offsets, single)
        even, odd = map(len, self._tables)
        for like in filter(programs.compiles, places):
            at = libraries.namespace(like), libraries.device_of(like)
            _meet(*at, like.dtype, self.order, even, odd, self._batch(like))

    def _batch(self, like: Array) -> int:
        return programs.batch(self.order**2, like=like)

    def _bounds(self, turns: HostFloats, levels: HostFloats, *, wide: bool) -> HostFloats:
        like = self._places[wide]
        if isinstance(like, np.ndarray):
            return super()._bounds(turns, levels, wide=wide)
        step = self._batch(like)
        parts = [slice(i, i + step) for i in range(0, len(turns), step)]
        found = [self._bounds_there(turns[part], levels[part], wide=wide) for part in parts]
        return np.concatenate([np.zeros(0), *found])

    def _bounds_there(self, turns: HostFloats, levels: HostFloats, *, wide: bool) -> HostFloats:
        """Do what `_bounds` does for at most one batch."""
        like, count = self._places[wide], len(turns)
        if programs.compiles(like):
            missing = self._batch(like) - count
            turns = np.pad(turns, ((0, missing), (0, 0)), mode="edge")
            levels = np.pad(levels, (0, missing), mode="edge")
        levels = levels.astype(_KINDS[wide]).astype(np.float64)  # as they are there
        sent = [self._moved(x, wide=wide) for x in (*self._weights(turns), levels)]
        tables = self._wide_there if wide else self._narrow_there
        found = definite.shortfalls_on_device(_formed(*sent, *tables))
        return self._above(levels, *found, wide=wide)[:count]

    def _moved(self, x: HostFloats, *, wide: bool) -> Array:
        like = self._places[wide]
        return crossing.from_host(x, dtype=like.dtype, like=like)

    @functools.cached_property
    def _narrow_there(self) -> list[Array]:
        return [self._moved(self._whole(i), wide=False) for i in range(2)]

    @functools.cached_property
    def _wide_there(self) -> list[Array]:
        return [self._moved(self._whole(i), wide=True) for i in range(2)]

    def _whole(self, part: int) -> HostFloats:
        """Return the table of the real or imaginary part of whole matrices, which are Hermitian."""
        table, q = self._tables[part], self.order
        places = np.concatenate(block_columns(np.arange(q * q).reshape(q, q)))
        found = np.empty((len(table), q * q))
        found[:, places % q * q + places // q] = -table if part else table
        found[:, places] = table
        return found


@functools.cache
def _meet(
    xp: Namespace, device: Device, dtype: DType, q: int, even: int, odd: int, batch: int
) -> None:
    """Have a library compile for tables of so many rows, whether the first ones need it or not."""
    like = xp.zeros(1, dtype=dtype, device=device)
    shapes = (batch, even), (batch, odd), (batch,), (even, q * q), (odd, q * q)
    sent = (crossing.from_host(np.zeros(shape), dtype=dtype, like=like) for shape in shapes)
    definite.shortfalls_on_device(_formed(*sent))


@compiled
def _formed(even: Array, odd: Array, levels: Array, real: Array, imaginary: Array) -> Array:
    """Return level I - G as whole matrices."""
    xp, q = libraries.namespace(real), math.isqrt(real.shape[1])
    # a sum that began with the level would round it with each term
    parts = [linalg.as_computed(linalg.matmul(*x)) for x in ((even, real), (odd, imaginary))]
    one, other = (xp.reshape(part, (-1, q, q)) for part in parts)
    one = one + levels[:, None, None] * xp.eye(q, dtype=one.dtype, device=libraries.device_of(one))
    return linalg.complex_of(one, other)
