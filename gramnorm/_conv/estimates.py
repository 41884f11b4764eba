"""Estimates of the norm of a symbol at many frequencies, and of where it is largest.

Lanczos steps on F^H F in single precision, for all frequencies together: the taps are matrices that
every vector meets, so that a step is two large products, with phases in between.  They say where to
look, and prove nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import limits, linalg, threads
from gramnorm._arrays.types import HostFloats, HostInts
from gramnorm._conv import ascent

HostArray = npt.NDArray[np.inexact]
HostVectors = npt.NDArray[np.complex64]

CLIMBS = 3
"""Times that vectors are renewed on the way to a local maximum."""

RENEWED = 6
"""Lanczos steps of a renewal."""

SETTLED = 12
"""Lanczos steps at a local maximum, whose vector bounds the norm from below."""


class Estimator:
    """Largest singular values of a symbol with taps (T, p, q), nearly, and their right vectors."""

    def __init__(self, taps: HostArray, offsets: HostInts) -> None:
        self.count, self.p, self.q = taps.shape
        self._offsets = offsets
        real = taps.dtype.kind == "f"
        narrow = taps.astype(np.float32 if real else np.complex64)
        self._rows = narrow.reshape(-1, self.q)

    def at(
        self, turns: HostFloats, steps: int, start: HostVectors | None = None
    ) -> tuple[HostFloats, HostVectors]:
        """Return estimates of the norms, from below, and vectors, shape (frequencies, q)."""
        if start is None:
            rng = np.random.default_rng(0)
            one = rng.standard_normal((2, self.q)).astype(np.float32)
            start = np.broadcast_to(
                (one[0] + 1j * one[1]).astype(np.complex64), (len(turns), self.q)
            )
        few = len(turns) < self.count
        step = max(1, limits.ESTIMATED // (self.count * self.p))
        gram = self._by_blocks if few else self._by_taps
        parts = [slice(i, i + step) for i in range(0, max(len(turns), 1), step)]

        def estimated(part: slice) -> tuple[HostFloats, HostVectors]:
            return _lanczos(gram(turns[part]), min(steps, self.q), start[part])

        work = 8.0 * len(turns) * steps * self._rows.size
        found = threads.shared_if_worth(estimated, parts, work)
        return np.concatenate([p[0] for p in found]), np.concatenate([p[1] for p in found])

    def images(self, v: HostVectors) -> HostVectors:
        """Return K_k v for all taps, shape (vectors, T, p)."""
        return _times(v, self._rows.T).reshape(len(v), self.count, self.p)

    def _by_taps(self, turns: HostFloats) -> Callable[[HostVectors], HostVectors]:
        """Return what multiplies by F^H F: two large products, with phases in between."""
        phases = _phases(turns, self._offsets).astype(np.complex64)

        def gram(v: HostVectors) -> HostVectors:
            y = phases[:, None, :] @ self.images(v)
            x = (phases.conj()[:, :, None] * y).reshape(len(v), -1)
            return _times(x, self._rows.conj())

        return gram

    def _by_blocks(self, turns: HostFloats) -> Callable[[HostVectors], HostVectors]:
        """Return the same by F itself, in a third of the time for two frequencies."""
        phases = _phases(turns, self._offsets).astype(np.complex64)
        taps = self._rows.reshape(self.count, -1)
        f = _times(phases, taps).reshape(len(turns), self.p, self.q)

        def gram(v: HostVectors) -> HostVectors:
            y = (f @ v[:, :, None])[:, None, :, 0]
            return np.asarray((y.conj() @ f)[:, 0].conj())

        return gram

    def climb(
        self, turns: HostFloats, v: HostVectors, *, rtol: float
    ) -> tuple[HostFloats, HostVectors]:
        """Return local maxima near some frequencies and their vectors.

        For a fixed vector ||F(theta) v|| is the root of a scalar polynomial; at its top the vector
        is renewed.
        """
        moves = ascent.stencil(self._offsets)
        # norms fall by a square beside a maximum: by less than a hundredth of the gap asked for
        finest = max(math.sqrt(rtol) / 64, 1e-6)
        for _ in range(CLIMBS if np.any(moves) else 1):
            before = turns
            if np.any(moves):
                tops = [self._uphill(*start, moves, finest) for start in zip(turns, v, strict=True)]
                turns = np.stack(tops)
            v = self.at(turns, RENEWED, v)[1]
            if np.all(np.abs(turns - before) <= finest):
                break
        return turns, self.at(turns, SETTLED, v)[1]

    def _uphill(
        self, turns: HostFloats, v: HostVectors, moves: HostFloats, finest: float
    ) -> HostFloats:
        w = self.images(v[None])[0].astype(np.complex128)
        products = w @ w.conj().T

        def squares(around: HostFloats) -> HostFloats:
            x = _phases(around, self._offsets)
            return np.asarray(np.sum((x @ products) * x.conj(), axis=1).real)

        return ascent.uphill(squares, turns, moves, finest=finest)


def _lanczos(
    gram: Callable[[HostVectors], HostVectors], steps: int, start: HostVectors
) -> tuple[HostFloats, HostVectors]:
    """Return roots of the largest Ritz values of Gram matrices, and their vectors."""
    many, q = start.shape
    basis = np.zeros((many, steps, q), dtype=np.complex64)
    diagonal, off = np.zeros((many, steps)), np.zeros((many, steps))
    v: HostVectors = np.asarray(
        start / np.linalg.norm(start, axis=1, keepdims=True), dtype=np.complex64
    )
    for j in range(steps):
        basis[:, j] = v
        w: HostArray = gram(v)
        diagonal[:, j] = np.vecdot(v, w).real
        if j == steps - 1:
            break
        known = basis[:, : j + 1]
        for _ in range(2):  # twice is enough: full orthogonality in working precision
            w = w - ((known.conj() @ w[:, :, None]).mT @ known)[:, 0]
        size = np.linalg.norm(w, axis=1)
        # what is left of a space that is exhausted is rounding: no direction
        alive = size > 1e-5 * np.maximum(diagonal[:, 0], np.max(diagonal, axis=1))
        off[:, j] = np.where(alive, size, 0.0)
        w = np.where(alive[:, None], w / np.where(alive, size, 1.0)[:, None], 0)
        v = w.astype(np.complex64)
    i = np.arange(steps)
    t = np.zeros((many, steps, steps))
    t[:, i, i] = diagonal
    t[:, i[1:], i[:-1]] = off[:, :-1]
    found = linalg.attempted(np.linalg.eigh, t)
    if found is None:
        return np.sqrt(np.max(diagonal, axis=1)), basis[:, 0]
    values, vectors = found
    top = vectors[:, None, :, -1].astype(np.float32) @ basis
    return np.sqrt(np.maximum(values[:, -1], 0.0)), top[:, 0]


def _phases(turns: HostFloats, offsets: HostInts) -> npt.NDArray[np.complex128]:
    return np.asarray(np.exp(2j * math.pi * (turns @ offsets.T)))


def _times(x: HostVectors, matrix: HostArray) -> HostVectors:
    """Return complex rows times a real or complex matrix, as real products for a real one."""
    if matrix.dtype.kind == "c":
        return np.asarray(linalg.matmul(x, matrix))
    both = linalg.matmul(np.concatenate([x.real, x.imag]), matrix)
    result = np.empty((len(x), matrix.shape[1]), dtype=np.complex64)
    result.real, result.imag = both[: len(x)], both[len(x) :]
    return result
