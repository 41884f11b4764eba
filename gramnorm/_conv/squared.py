"""The square of a symbol, and a bound on its eigenvalues by one factorisation.

With H_m = sum_k K_k^H K_{k+m} the square of the symbol is (docs/theory.md, Lemma 11)

    G = F^H F = H_0 + sum_{m > 0} cos(m . theta) (H_m + H_m^H) + i sin(m . theta) (H_m - H_m^H),

a few cosines times a table that is formed once: at each frequency it costs as much as adding up
matrices.  If tau^2 I - G(theta) + d I >= 0, then ||F(theta)||^2 <= tau^2 + d, and a factorisation
says how small d may be (Lemma 23).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import limits, linalg, threads
from gramnorm._arrays.types import HostFloats, HostInts
from gramnorm._conv.estimates import Estimator
from gramnorm._matrix import definite
from gramnorm._rigour import angles, sums
from gramnorm._rigour.model import HOST_UNIT, Precision, down, precision_of, up

HostArray = npt.NDArray[np.inexact]
HostVector = npt.NDArray[np.inexact]
HostStack = npt.NDArray[np.complexfloating]

FINEST = 2**40
"""Turns of a frequency are multiples of 1 / FINEST: their products with lags are exact."""

_KINDS = np.dtype(np.complex64), np.dtype(np.complex128)
"""Types of the square in single and in double precision."""

PHASE_ERROR = 20 * HOST_UNIT
"""Of a cosine or sine whose angle is reduced exactly (docs/theory.md, Lemma 9)."""


def snapped(turns: HostFloats) -> HostFloats:
    """Return the nearest turns whose products with lags are exact."""
    return np.round(turns * FINEST) / FINEST


class Squared:
    """The square of a symbol with taps (T, p, q) of type float64 or complex128.

    Attributes
    ----------
    estimator : Estimator
        What says where to look.
    error : float
        Bound on the norm of what the sum above errs by, formed in double precision.
    narrow_error : float
        What single precision may add to that.
    sum_bound : float
        sum_k ||K_k||_F, not below the norm of the symbol at any frequency.
    """

    def __init__(self, taps: HostArray, offsets: HostInts) -> None:
        count, p, self.order = taps.shape
        self.estimator = Estimator(taps, offsets)
        self._taps, self.offsets = taps, offsets
        self.lags, self._pairs = _pairs(offsets)
        self._real = taps.dtype.kind == "f"
        self._losses = [definite.expected_loss(self.order, kind) for kind in _KINDS]
        # squares that underflow in a norm are below the last term
        norms = math.fsum(sums.host_norm(tap)[1] + 2.0**-480 * tap.size for tap in taps)
        self.sum_bound = up(norms, count + 8)
        self.error = self._error_bound(count, p)

    @functools.cached_property
    def _tables(self) -> tuple[HostArray, HostArray]:
        """What cosines and sines make -G of: its real and imaginary part, block columns in rows."""
        entries = sum(c.size for c in block_columns(np.zeros((self.order, self.order), np.bool_)))
        even = np.empty((len(self.lags), entries), dtype=self._taps.dtype)
        odd = np.empty((len(self.lags) - 1, entries), dtype=self._taps.dtype)
        for index, (first, second) in enumerate(self._pairs):
            left, right = (self._taps[part].reshape(-1, self.order) for part in (first, second))
            h = linalg.matmul(linalg.adjoint(left), right)
            adjoint = linalg.adjoint(h)
            if index == 0:  # the lag zero counts once, and is Hermitian
                even[0] = -np.concatenate(block_columns((h + adjoint) / 2))
                continue
            even[index] = -np.concatenate(block_columns(h + adjoint))
            odd[index - 1] = -np.concatenate(block_columns(h - adjoint))
        if self._real:
            return even, odd
        return np.concatenate([even.real, -odd.imag]), np.concatenate([even.imag, odd.real])

    @functools.cached_property
    def _narrow_tables(self) -> tuple[HostArray, HostArray]:
        real, imaginary = self._tables
        return real.astype(np.float32), imaginary.astype(np.float32)

    @functools.cached_property
    def narrow_error(self) -> float:
        """Sums of products, both rounded before, err by what their moduli are (Lemma 23)."""
        prec = precision_of(np.dtype(np.float32))
        terms = sum(map(len, self._tables))
        moduli = [np.sum(np.abs(table), axis=0) for table in self._tables]
        size = math.hypot(*(sums.host_norm(each)[1] for each in moduli))
        # what stands below a diagonal block stands for two
        lost = prec.underflow(2 * terms) * self.order * (1 + self.sum_bound**2)
        found: float = up(math.sqrt(2) * prec.gamma(terms + 4) * up(size, terms) + lost)
        return found

    @functools.cached_property
    def _diagonal(self) -> HostInts:
        return np.flatnonzero(np.concatenate(block_columns(np.eye(self.order))))

    def quotient(self, turns: HostFloats, v: HostVector) -> float:
        """Return a lower bound on the norm at one frequency: ||F v|| / ||v|| less its error.

        An entry of F v is a sum of T q products and errs by (kappa(T q + T) + 40 u) sum_k |K_k|
        |v|.
        """
        count, p, q = self._taps.shape
        v = v.astype(np.complex128)
        parts = np.stack([v.real, v.imag], 1) if self._real else v[:, None]
        images = linalg.matmul(self._taps.reshape(-1, q), parts)
        images = images[:, 0] + 1j * images[:, 1] if self._real else images[:, 0]
        angle = self.offsets @ turns
        angle = 2 * math.pi * (angle - np.round(angle))
        image = angles.unit_circle(angle) @ images.reshape(count, p)
        prec = precision_of(v.dtype)
        (_, size), (low, _) = sums.host_norm(v), sums.host_norm(image)
        relative = prec.kappa(count * q + count) + 2 * PHASE_ERROR
        error = relative * self.sum_bound * size + prec.underflow(count * q + count) * 2 * p
        found = down(max(low - up(error), 0.0) / size) if size > 0 else 0.0
        return found if math.isfinite(found) else 0.0

    def _error_bound(self, count: int, p: int) -> float:
        """Bound the error of the sum, of its lags, phases and additions (Lemma 23)."""
        prec = Precision(HOST_UNIT, 2.0**-1022, complex=not self._real)
        terms = len(self.lags) + 1
        relative = prec.kappa(count * p) + 4 * (prec.gamma(4 * terms + 8) + PHASE_ERROR)
        lost = 4 * terms * prec.underflow(count * p + 2 * terms) * self.order
        found: float = up(relative * self.sum_bound**2 + lost)
        return found

    def _weights(self, turns: HostFloats) -> tuple[HostFloats, HostFloats]:
        """Return the cosines and sines by which the tables are multiplied."""
        angle = turns @ self.lags.T
        angle = 2 * math.pi * (angle - np.round(angle))
        even, odd = angles.cosine(angle), angles.sine(angle[:, 1:])
        if self._real:
            return even, odd
        both = np.concatenate([even, odd], axis=1)
        return both, both

    def formed(self, turns: HostFloats, levels: HostFloats, *, wide: bool) -> list[HostStack]:
        """Return level I - G as block columns below the diagonal, in double precision if `wide`."""
        real, imaginary = self._tables if wide else self._narrow_tables
        weights = [x.astype(real.dtype, copy=False) for x in self._weights(turns)]
        values = np.empty((len(turns), real.shape[1]), np.complex128 if wide else np.complex64)
        values.imag = linalg.matmul(weights[1], imaginary)
        cosines = linalg.matmul(weights[0], real)
        cosines[:, self._diagonal] += levels[:, None]
        values.real = cosines
        columns, start = [], 0
        for first, width in definite.blocks_of(self.order):
            rows = self.order - first
            part = values[:, start : start + rows * width]
            columns.append(part.reshape(len(turns), rows, width))
            start += rows * width
        return columns

    def norm_bounds(
        self, turns: HostFloats, targets: HostFloats, estimates: HostFloats
    ) -> HostFloats:
        """Return upper bounds on the norms, at most `targets` where that could be proved; else inf.

        Single precision serves where the estimates are farther below than what it loses.
        """
        found = np.full(len(turns), np.inf)
        left = np.flatnonzero((targets > 0) & (targets**2 > 2 * self.error))
        for wide in (False, True):
            loss, error = self._losses[wide], self._error_in(wide=wide)
            far = targets[left] ** 2 > (1 + loss) * estimates[left] ** 2 + 2 * error
            which = left if wide else left[far]
            levels = down((targets[which] ** 2 - 1.1 * error) / (1 + loss))
            squares = self._bounds(turns[which], levels, wide=wide)
            roots = up(np.sqrt(squares))
            found[which] = np.where(roots <= targets[which], roots, np.inf)
            # closed, or far from it
            left = np.setdiff1d(left, which[(found[which] < np.inf) | ~(squares < np.inf)])
        return found

    def _error_in(self, *, wide: bool) -> float:
        return self.error if wide else up(self.error + self.narrow_error)

    def _bounds(self, turns: HostFloats, levels: HostFloats, *, wide: bool) -> HostFloats:
        """Return bounds on the squared norms, little above `levels` if those are some; else inf."""
        step = max(limits.FORMED[0], limits.FORMED[1] // self._tables[0].shape[1])
        parts = [slice(i, i + step) for i in range(0, len(turns), step)]

        def bounded(part: slice) -> HostFloats:
            return self._part_bounds(turns[part], levels[part], wide=wide)

        work = 8.0 * len(turns) * self.order**3
        return np.concatenate([np.zeros(0), *threads.shared_if_worth(bounded, parts, work)])

    def _part_bounds(self, turns: HostFloats, levels: HostFloats, *, wide: bool) -> HostFloats:
        """Do what `_bounds` does for as many frequencies as are formed together."""
        found, columns = [], self.formed(turns, levels, wide=wide)
        few = max(1, limits.FACTORED // self.order)
        for i in range(0, len(turns), few):
            part = slice(i, i + few)
            shortfall, size = definite.shortfalls([c[part] for c in columns])
            found.append(self._above(levels[part], shortfall, size, wide=wide))
        return np.concatenate(found)

    def _above(
        self, levels: HostFloats, shortfall: HostFloats, size: HostFloats, *, wide: bool
    ) -> HostFloats:
        """Return bounds on the squared norms from what is known of the matrices as computed."""
        unit, error = precision_of(_KINDS[wide]).unit, self._error_in(wide=wide)
        # an entry is rounded as the level is added and as it is stored, or underflows
        rounded = 2.02 * unit * size + 2.0**-120 * self.order
        return up(levels + up(shortfall + rounded + error))


def _pairs(offsets: HostInts) -> tuple[HostInts, list[tuple[HostInts, HostInts]]]:
    """Return the lags up to sign, zero first, and for each which taps are that far apart."""
    count = len(offsets)
    every = (offsets[None, :, :] - offsets[:, None, :]).reshape(count * count, -1)
    lags, which = np.unique(every, axis=0, return_inverse=True)  # sorted, and so the opposite ones
    zero = len(lags) // 2
    order = [np.flatnonzero(which.reshape(-1) == index) for index in range(zero, len(lags))]
    return lags[zero:], [(pairs // count, pairs % count) for pairs in order]


def block_columns(matrix: npt.NDArray[np.generic]) -> list[npt.NDArray[np.generic]]:
    """Return the block columns of a matrix from the diagonal down, flattened."""
    blocks = definite.blocks_of(len(matrix))
    return [matrix[start:, start : start + width].reshape(-1) for start, width in blocks]
