"""A local maximum of the norm of a symbol, by its singular vectors.

Where to look, it proves nothing.

For unit vectors u, v the norm of F(theta) is at least |u^H F(theta) v| = |sum_q c_q exp(i q .
theta)| with c_q = u^H K_q v, a scalar polynomial that is cheap to climb.  At its top the vectors
are renewed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import limits
from gramnorm._arrays.types import HostFloats, HostInts
from gramnorm._matrix import lanczos

HostComplex = npt.NDArray[np.complex128]
Pair = tuple[HostComplex, HostComplex]


def top_pair(f: HostComplex, near: Pair | None = None) -> Pair:
    """Return unit vectors u, v with u^H F v almost the norm of the matrix F.

    From those of a matrix that is `near` it takes fewer steps.
    """
    if f.shape[0] < f.shape[1]:
        u, v = top_pair(f.conj().T, near and near[::-1])
        return v, u
    start = near[1] if near else np.random.default_rng(0).standard_normal(f.shape[1])
    start = np.asarray(start, dtype=np.complex128)
    found = lanczos.top_vector(
        lambda x: f.conj().T @ (f @ x), start, rtol=1e-5, steps=limits.PAIR_STEPS
    )
    v = np.asarray(found, dtype=np.complex128)
    u = f @ v
    sizes = float(np.linalg.norm(u)), float(np.linalg.norm(v))
    if not all(0 < size < math.inf for size in sizes):  # a zero matrix: any pair is as good
        m, n = f.shape
        return np.eye(1, m, dtype=np.complex128)[0], np.eye(1, n, dtype=np.complex128)[0]
    return u / sizes[0], v / sizes[1]


def climb(
    taps: npt.NDArray[np.inexact], offsets: HostInts, turns: HostFloats, *, rounds: int
) -> HostFloats:
    """Return the turns of a local maximum near `turns`, for taps (Q, p, q) at `offsets`."""
    moves, pair = stencil(offsets), None
    for _ in range(rounds if np.any(moves) else 0):
        before = turns
        phases = np.exp(2j * math.pi * (offsets @ turns))
        pair = top_pair(np.tensordot(phases, taps, axes=1), pair)
        c = (taps @ pair[1]) @ pair[0].conj()

        def values(around: HostFloats, c: HostComplex = c) -> HostFloats:
            return np.asarray(np.abs(np.exp(2j * math.pi * (around @ offsets.T)) @ c))

        turns = uphill(values, turns, moves, finest=1e-6)
        if np.all(np.abs(turns - before) <= 1e-6 / np.maximum(np.ptp(offsets, axis=0), 1)):
            break
    return turns


def stencil(offsets: HostInts) -> HostFloats:
    """Return the moves from a frequency to its neighbours, and none, for taps at `offsets`."""
    extent = np.ptp(offsets, axis=0)
    moves = np.asarray(list(itertools.product((-1.0, 0.0, 1.0), repeat=len(extent))))
    return np.asarray(moves * (extent > 0) / np.maximum(extent, 1))


def uphill(
    values: Callable[[HostFloats], HostFloats],
    turns: HostFloats,
    moves: HostFloats,
    *,
    finest: float,
) -> HostFloats:
    """Return the top to which ever smaller moves of a stencil lead, down to the finest ones."""
    size = 1 / 16  # of the period of the fastest phase
    while size > finest:
        around = turns + size * moves
        found = values(around)
        best = int(np.argmax(found))
        if found[best] > found[len(found) // 2]:
            turns = around[best]
        else:
            size /= 2
    return turns
