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

from gramnorm._arrays import libraries, limits, linalg, threads
from gramnorm._arrays.dtypes import is_complex
from gramnorm._arrays.types import Array, HostFloats, HostInts
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
        self.offsets = offsets
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
            start = np.tile((one[0] + 1j * one[1]).astype(np.complex64), (len(turns), 1))
        return self._estimated(turns, min(steps, self.q), start)

    def _estimated(
        self, turns: HostFloats, steps: int, start: HostVectors
    ) -> tuple[HostFloats, HostVectors]:
        gram = self._by_blocks if len(turns) < self.count else self._by_taps
        step = max(1, limits.ESTIMATED // (self.count * self.p))
        parts = [slice(i, i + step) for i in range(0, max(len(turns), 1), step)]

        def estimated(part: slice) -> tuple[HostFloats, HostVectors]:
            diagonal, off, basis = lanczos(gram(turns[part]), steps, start[part])
            norms, vectors = ritz(diagonal, off)
            return norms, linalg.matmul(vectors, basis)[:, 0]

        work = 8.0 * len(turns) * steps * self._rows.size
        found = threads.shared_if_worth(estimated, parts, work)
        return np.concatenate([p[0] for p in found]), np.concatenate([p[1] for p in found])

    def images(self, v: HostVectors) -> HostVectors:
        """Return K_k v for all taps, shape (vectors, T, p)."""
        return np.reshape(_times(v, self._rows.T), (len(v), self.count, self.p))

    def _by_taps(self, turns: HostFloats) -> Callable[[HostVectors], HostVectors]:
        return gram_by_taps(self._rows, waves(turns, self.offsets).astype(np.complex64))

    def _by_blocks(self, turns: HostFloats) -> Callable[[HostVectors], HostVectors]:
        """Return the same by F itself, in a third of the time for two frequencies."""
        phases = waves(turns, self.offsets).astype(np.complex64)
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
        moves = ascent.stencil(self.offsets)
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
            x = waves(around, self.offsets)
            return np.asarray(np.sum((x @ products) * x.conj(), axis=1).real)

        return ascent.uphill(squares, turns, moves, finest=finest)


def gram_by_taps(rows: Array, phases: Array) -> Callable[[Array], Array]:
    """Return what multiplies by F^H F: two large products, with phases in between."""
    xp, (many, count) = libraries.namespace(rows), phases.shape
    shape, columns = (many, count, rows.shape[0] // count), xp.matrix_transpose(rows)
    conjugates = xp.conj(rows) if is_complex(rows.dtype) else rows
    opposite = xp.conj(phases)[:, :, None]

    def gram(v: Array) -> Array:
        y = linalg.matmul(phases[:, None, :], xp.reshape(_times(v, columns), shape))
        return _times(xp.reshape(opposite * y, (many, rows.shape[0])), conjugates)

    return gram


def lanczos(gram: Callable[[Array], Array], steps: int, start: Array) -> tuple[Array, Array, Array]:
    """Return tridiagonal matrices that Gram matrices are in a basis each, and the bases.

    Shapes (b, steps), twice, and (b, steps, q).
    """
    xp = libraries.namespace(start)
    zero = most = xp.real(xp.zeros_like(start[:, 0]))
    v, _ = _directions(start, zero)
    basis, diagonal, off = v[:, None, :], [], []
    for _ in range(steps - 1):
        w = gram(v)
        diagonal.append(xp.real(linalg.vecdot(v, w)))
        most = xp.maximum(most, diagonal[-1])
        for _ in range(2):  # twice is enough: full orthogonality in working precision
            inner = linalg.matmul(xp.conj(basis), w[:, :, None])
            w = w - linalg.matmul(xp.matrix_transpose(inner), basis)[:, 0, :]
        # what is left of a space that is exhausted is rounding: no direction
        v, size = _directions(w, 1e-5 * most)
        off.append(size)
        basis = xp.concat([basis, v[:, None, :]], axis=1)
    diagonal.append(xp.real(linalg.vecdot(v, gram(v))))
    return xp.stack(diagonal, axis=1), xp.stack([*off, zero], axis=1), basis


def _directions(v: Array, least: Array) -> tuple[Array, Array]:
    """Return vectors of length one and the lengths; zero for what is not longer than `least`."""
    xp = libraries.namespace(v)
    size = xp.sqrt(xp.real(linalg.vecdot(v, v)))
    alive, zero = size > least, xp.zeros_like(size)
    inverse = xp.where(alive, 1 / xp.where(alive, size, zero + 1), zero)
    return v * inverse[:, None], xp.where(alive, size, zero)


def ritz(diagonal: HostFloats, off: HostFloats) -> tuple[HostFloats, HostVectors]:
    """Return roots of the largest eigenvalues and what their vectors are, shape (b, 1, steps)."""
    many, steps = diagonal.shape
    i = np.arange(steps)
    t = np.zeros((many, steps, steps))
    t[:, i, i], t[:, i[1:], i[:-1]] = diagonal, off[:, :-1]
    found = linalg.attempted(np.linalg.eigh, t)
    if found is None:
        first = np.tile(np.eye(1, steps, dtype=np.complex64), (many, 1, 1))
        return np.sqrt(np.max(diagonal, axis=1)), first
    values, vectors = found
    return np.sqrt(np.maximum(values[:, -1], 0.0)), vectors[:, None, :, -1].astype(np.complex64)


def waves(turns: HostFloats, offsets: HostInts) -> npt.NDArray[np.complex128]:
    return np.asarray(np.exp(2j * math.pi * (turns @ offsets.T)))


def _times(x: Array, matrix: Array) -> Array:
    """Return complex rows times a real or complex matrix, as real products for a real one."""
    if is_complex(matrix.dtype):
        return linalg.matmul(x, matrix)
    xp, count = libraries.namespace(x), x.shape[0]
    both = linalg.matmul(xp.concat([xp.real(x), xp.imag(x)]), matrix)
    return linalg.complex_of(both[:count, :], both[count:, :])
