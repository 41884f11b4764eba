"""The symbol of a convolution, F(theta) = sum_k K_k exp(i k . theta), at chosen frequencies.

Frequencies are exact fractions of a turn, so the phases are reduced in integers before the only
inexact steps.  The sum is a matrix product of phases with taps: no FFT, and an error that is known
before it is computed (docs/theory.md, Lemma 9):

    |F_computed - F| <= (kappa(T) (1 + omega) + omega) sum_k |K_k|   entrywise,

for T taps and phases that are wrong by omega at most.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import crossing, devices, dtypes, libraries, limits, linalg, probes
from gramnorm._arrays.programs import batch, compiled, compiles
from gramnorm._arrays.types import Array, DType, HostInts
from gramnorm._conv.flat import Autocorrelation, autocorrelation
from gramnorm._conv.squared import Squared
from gramnorm._conv.squared_there import square_of
from gramnorm._rigour import angles, sums
from gramnorm._rigour.model import HOST_UNIT, precision_of, up


def phases(
    offsets: HostInts, numerators: HostInts, denominators: HostInts
) -> npt.NDArray[np.complex128]:
    """Return exp(2 pi i sum_a offsets_a numerators_a / denominators_a), shape (frequencies, taps).

    Per axis they are wrong by at most 20 u: 3 pi u for the three roundings of the angle, reduced to
    [-pi, pi], 4 sqrt(2) u for sine and cosine within 4 units in the last place, and 3 u for the
    product of two axes, with a margin for the higher orders.
    """
    result = np.ones((numerators.shape[0], offsets.shape[0]), dtype=np.complex128)
    for k, j, n in zip(offsets.T, numerators.T, denominators, strict=True):
        if n == 1:
            continue
        steps, which = np.unique(k, return_inverse=True)
        residue = (j[:, None] * steps[None, :]) % n
        residue = np.where(2 * residue > n, residue - n, residue)
        angle = 2.0 * math.pi * (residue / n)
        result *= angles.unit_circle(angle)[:, which]
    return result


def polyphase(
    taps: Array, kernel_size: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[Array, HostInts]:
    """Return a kernel of stride 1 with the same norm: the phases of the input become channels.

    Tap k = s q + p reads sample s (o + q) + p, that is sample o + q of phase p (theory, Lemma 8).

    Parameters
    ----------
    taps : array, shape (T, groups, c_out, c_in)
        Taps in the order of the kernel.

    Returns
    -------
    array, shape (Q, groups, c_out, phases * c_in), and host ints, shape (Q, axes)
        Taps by position, and their offsets q.
    """
    xp = libraries.namespace(taps)
    table, offsets = np.zeros((1, 1), dtype=np.int64), np.zeros((1, 0), dtype=np.int64)
    for k, s in zip(kernel_size, stride, strict=True):
        steps = -(-k // s)
        tap = s * np.arange(steps)[:, None] + np.arange(min(k, s))[None, :]
        missing = (table[:, None, :, None] < 0) | (tap[None, :, None, :] >= k)
        joined = table[:, None, :, None] * k + tap[None, :, None, :]
        table = np.where(missing, -1, joined).reshape(table.shape[0] * steps, -1)
        old, new = np.repeat(offsets, steps, axis=0), np.tile(np.arange(steps), len(offsets))
        offsets = np.concatenate([old, new[:, None]], axis=1)
    count, groups, c_out, c_in = taps.shape
    if any(s > 1 for s in stride):
        with_zero = xp.concat([taps, xp.zeros_like(taps[:1, ...])], axis=0)
        index = np.where(table < 0, count, table).reshape(-1)
        taps = xp.reshape(crossing.select(with_zero, index), (*table.shape, groups, c_out, c_in))
        taps = xp.permute_dims(taps, (0, 2, 3, 1, 4))
        taps = xp.reshape(taps, (table.shape[0], groups, c_out, -1))
    return taps, offsets


def taps_of(kernel: Array, groups: int) -> Array:
    """Return the taps of a kernel as blocks, shape (T, groups, c_out / groups, c_in / groups)."""
    xp = libraries.namespace(kernel)
    c_out, c_in, *kernel_size = kernel.shape
    blocks = xp.reshape(kernel, (groups, c_out // groups, c_in, math.prod(kernel_size)))
    return xp.permute_dims(blocks, (3, 0, 1, 2))


def undilated_stride(stride: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Return s / gcd(s, d).

    The stride that has the same norm without dilation (theory, Lemma 8).
    """
    return tuple(s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True))


def symbol_loss(count: int, axes: int, dtype: DType) -> tuple[float, float]:
    """Return what the error of an entry is over the sum of moduli of `count` taps, and underflow.

    In complex arithmetic of the precision of `dtype` (Lemma 9).
    """
    prec = precision_of(dtypes.complex_dtype(dtypes.real_dtype(dtype)))
    omega = 20 * axes * HOST_UNIT + (0.0 if prec.unit == HOST_UNIT else 1.5 * prec.unit)
    return prec.kappa(count) * (1 + omega) + omega, prec.underflow(count)


class Symbol:
    """The blocks of a convolution at given frequencies.

    Parameters
    ----------
    taps : array, shape (T, blocks, p, q)
        Taps in the working precision, one block per group, with entries of size at most about 1.
    offsets : host ints, shape (T, axes)
        Position of each tap.
    taps_error : float
        What errors of the taps themselves make of a block at most, in the spectral norm.

    Attributes
    ----------
    error : float
        Bound, in the spectral norm, on the difference between a computed block and the exact one.
    rows : array, shape (T, blocks, p, q)
        The taps as complex numbers where blocks are computed.
    """

    def __init__(self, taps: Array, offsets: HostInts, *, taps_error: float = 0.0) -> None:
        xp = libraries.namespace(taps)
        self.taps = taps
        self.offsets = offsets
        # the same norms, and a smaller Gram matrix
        self._tall = xp.matrix_transpose(taps) if taps.shape[2] < taps.shape[3] else taps
        count, self.blocks, *block_shape = map(int, self._tall.shape)
        self.block_shape = (block_shape[0], block_shape[1])
        self.real = not dtypes.is_complex(taps.dtype)
        work = dtypes.complex_dtype(taps.dtype)
        rows = xp.astype(xp.reshape(self._tall, (count, self.blocks, *block_shape)), work)
        self._taps_error = taps_error
        # beside factorisations, squarings are rare
        with devices.no_new_shape(rare=self._is_wide):
            self.rows = devices.moved_if_worth(rows, 8 * self.operations)
        self.error = self._evaluation_error() + taps_error

    def host_taps(self, block: int) -> npt.NDArray[np.inexact]:
        """Return the taps of a block on the host, in double precision, shape (T, p, q) as given."""
        taps = crossing.host_array(self.taps[:, block, ...])
        return taps.astype(np.float64 if self.real else np.complex128)

    @property
    def operations(self) -> float:
        """About what one frequency costs."""
        p, q = max(self.block_shape), min(self.block_shape)
        count, axes = self.offsets.shape
        # sum over taps, about three Gram products and passes over the entries; phases
        entries: float = 8.0 * (self.blocks * p * q * (count + 3 * q + limits.ENTRY_OPERATIONS))
        phases: float = limits.PHASE_OPERATIONS * count * axes
        return entries + phases

    def narrow_first(self, frequencies: int) -> Iterator[Symbol]:
        """Yield the symbol in single precision, where that saves time, and then itself."""
        many = frequencies * self.blocks >= limits.NARROW_BLOCKS
        large = many and min(self.block_shape) >= limits.NARROW_SIDE
        # a second precision is a second compilation
        double = dtypes.bits(self.taps.dtype) == 64 and not compiles(self.rows)
        if double and large and probes.float32_products_are_exact(self.rows):
            yield self._narrow
        yield self

    @functools.cached_property
    def _narrow(self) -> Symbol:
        """The symbol in single precision: entries of taps are off by u or underflowed."""
        xp = libraries.namespace(self.taps)
        size = len(self.offsets) * math.sqrt(math.prod(self.block_shape))
        lost = 2.0**-24 * self.sum_bound() + 2.0**-120 * size
        taps = xp.astype(self.taps, xp.float32 if self.real else xp.complex64)
        # beside the symbol: batches are of one size for both
        with devices.no_new_shape(rare=isinstance(self.rows, np.ndarray)):
            return Symbol(taps, self.offsets, taps_error=self._taps_error + lost)

    def sum_bound(self) -> float:
        """Return the bound sum_k ||K_k||_F on the norm at every frequency."""
        _, squares = sums.square(self.taps)
        return up(float(np.max(np.sum(np.sqrt(squares), axis=0))), len(self.offsets) + 8)

    def _evaluation_error(self) -> float:
        """Bound the rounding errors of a block, in the Frobenius norm (Lemma 9)."""
        xp = libraries.namespace(self.taps)
        count, axes = self.offsets.shape
        relative, underflow = symbol_loss(count, axes, self.rows.dtype)
        prec = precision_of(self.rows.dtype)
        # of the entrywise sum of moduli, T of them and each a root
        _, squares = sums.square(xp.sum(xp.abs(self._tall), axis=0))
        frobenius = math.sqrt(float(np.max(squares))) * (1 + prec.gamma(count + 8))
        lost = underflow * math.sqrt(2.0 * math.prod(self.block_shape))
        found: float = up(relative * frobenius + lost, 16)
        return found

    def at(self, numerators: HostInts, denominators: HostInts) -> Array:
        """Return the blocks at the angles 2 pi numerators / denominators.

        They have the shape (frequencies * blocks, p, q), and stand in front of others where a batch
        is padded.
        """
        if compiles(self.rows):
            missing = self.batch - len(numerators)
            numerators = np.pad(numerators, ((0, missing), (0, 0)), mode="edge")
        weights = phases(self.offsets, numerators, denominators)
        return _sums(crossing.from_host(weights, dtype=self.rows.dtype, like=self.rows), self.rows)

    @property
    def batch(self) -> int:
        """Most frequencies that are evaluated at a time."""
        size = self.blocks * math.prod(self.block_shape) + len(self.offsets)
        # of one tap all frequencies have the same block
        is_one = compiles(self.rows) and len(self.offsets) == 1
        return 1 if is_one else batch(size, like=self.rows)

    @functools.cached_property
    def autocorrelation(self) -> Autocorrelation | None:
        """Autocorrelation of the taps with no fewer rows than columns; None if it is too large."""
        return autocorrelation(self._tall, self.offsets)

    @property
    def _is_wide(self) -> bool:
        count, blocks, _, q = self._tall.shape
        if self._taps_error != 0 or count == 1 or q < limits.WIDE_COLUMNS:
            return False
        lags = math.prod(2 * int(k) + 1 for k in np.ptp(self.offsets, axis=0))
        fits: bool = 4 * lags * blocks * q * q <= limits.WIDE_TABLE
        return fits

    @functools.cached_property
    def squares(self) -> list[Squared]:
        """The squares of the blocks if these are wide and their tables fit.

        Else none, and none of a tiny symbol.
        """
        if not self._is_wide:
            return []
        host = crossing.host_array(self._tall)
        host = host.astype(np.float64 if self.real else np.complex128)
        work = 8 * self.operations / self.blocks
        found = [
            square_of(np.ascontiguousarray(host[:, k]), self.offsets, work)
            for k in range(self.blocks)
        ]
        # far below 1, where even scaled taps of subnormal kernels are, underflow would count
        return found if max(one.sum_bound for one in found) > limits.WIDE_LEAST else []

    def flat_bound(self) -> float:
        """Return a bound on the norm at all frequencies, sharp for scaled unitary symbols."""
        found = self.autocorrelation
        return math.inf if found is None else up(math.sqrt(found.ceiling))

    def squared(self, centre: float) -> Symbol | None:
        """Return the symbol F^H F - centre I of Hermitian blocks; None if it is too large."""
        found = self.autocorrelation
        if found is None:
            return None
        taps, error = found.less(centre)
        with devices.no_new_shape(rare=True):
            return Symbol(taps, found.lags, taps_error=error)


@compiled
def _sums(weights: Array, taps: Array) -> Array:
    """Return the weighted sums of taps (T, blocks, p, q), one after the other."""
    xp = libraries.namespace(taps)
    found = linalg.matmul(weights, xp.reshape(taps, (taps.shape[0], -1)))
    return xp.reshape(found, (-1, *taps.shape[2:]))
