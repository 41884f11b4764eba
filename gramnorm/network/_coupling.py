"""The links of a segment coupled into one operator, and the certificate from norms of segments.

Link i of a segment maps the n_{i-1} channels of x_{i-1} to the n_i of x_i; a matrix is a kernel
with no spatial axis.  The coupling B has the even i for rows and the odd ones for columns, and the
blocks

    B[i, i-1] = X_i W_i / X_{i-1}  (i even),    B[i-1, i] = (X_i W_i / X_{i-1})^*  (i odd).

So each entry of X_even W / X_odd or its adjoint is that of the coupling of the weights alone times
a quotient of two multipliers, and ||X_l f|| <= 2^(1-l) ||B||^l ||X_0 .|| (Theorem 29; for kernels
Theorem 30, where the adjoint flips the taps as well, and with strides Theorem 32, where phases of a
channel share its multiplier).  Segments share multipliers at a cut (Theorem 33).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from gramnorm._arrays import linalg
from gramnorm._arrays.types import HostBools, HostFloats, HostInts, HostNumbers
from gramnorm._conv.bounds import conv_norm_bracket, conv_norm_value_and_grad
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._rigour.fractions import float_above, root_above
from gramnorm._rigour.model import HOST_UNIT, up
from gramnorm._rigour.sums import host_norm
from gramnorm.network._links import Link, lifted, segments

LARGEST = 170.0
"""Logarithms of multipliers lie within it: so their quotients lie within 2^-500 and 2^500."""

_UNDERFLOW = 2.0**-570  # 2^-1074 of the product, and 2^-1074 of scaling times 2^500 at most
_SYMBOL_ENTRIES = 2**21  # of B at all frequencies that are looked at together
_MATRIX_GAP, CONV_GAP = 1e-8, 2e-4  # of the bound; of the norm of B, the l-th part


@dataclasses.dataclass(frozen=True, eq=False)
class Coupling:
    """The coupling of the links of a segment.

    Attributes
    ----------
    entries : host floats, shape (n_0 + n_2 + ..., n_1 + n_3 + ..., *taps)
        B for multipliers 1.
    doubts : host floats or None
        How far they may be from the exact ones, underflow of scaling apart; None if they are exact.
    forward : host bools, shape of the first two axes
        Where a block is that of an even i.
    rows, columns : host ints
        Which of all multipliers of the chain belongs to a row or a column.
    widths : tuple of int
        How many rows or columns each of x_0, ..., x_l has.
    """

    entries: HostFloats
    doubts: HostFloats | None
    forward: HostBools
    rows: HostInts
    columns: HostInts
    widths: tuple[int, ...]

    @property
    def depth(self) -> int:
        """The number l of links."""
        return len(self.widths) - 1

    @classmethod
    def of(cls, part: Sequence[Link], labels: Sequence[HostInts]) -> Coupling:
        """Couple the links of a segment; `labels` say which multiplier a channel of x_i has."""
        rates = _rates(part)
        labels = [np.repeat(x, math.prod(r)) for x, r in zip(labels, rates, strict=True)]
        rows, columns = (np.concatenate(labels[parity::2]) for parity in (0, 1))
        kernels, doubts = [], []
        for link, rate in zip(part, rates[1:], strict=True):
            kernels.append(lifted(link.weights, link.stride, rate))
            wrong = np.zeros_like(link.weights) if link.doubts is None else link.doubts
            doubts.append(lifted(wrong, link.stride, rate))
        forward = [np.full(k.shape[:2] + (1,) * (k.ndim - 2), i % 2) for i, k in enumerate(kernels)]
        are_exact = all(link.doubts is None for link in part)
        entries = _coupled(kernels)
        if math.prod(entries.shape[2:]) == 1:  # of one tap: the norm is that of a matrix
            entries = entries.reshape(entries.shape[:2])
        return cls(
            entries,
            None if are_exact else _coupled(doubts).reshape(entries.shape),
            _coupled(forward).reshape(len(rows), len(columns)) == 1,
            rows,
            columns,
            tuple(len(x) for x in labels),
        )

    def scaled(self, multipliers: HostFloats) -> HostFloats:
        """Return B as computed: each entry within 2.01 u of itself, and an underflow."""
        return self._times(self.entries, multipliers)

    def norm_and_peak(
        self, multipliers: HostFloats, *, total: int, gap: float
    ) -> tuple[float, HostFloats | None]:
        """Return an upper bound on ||B||, for one of `total` links, and where a kernel has it.

        Of a kernel it is so sharp that the bound of all links has at most about the gap.
        """
        b = self.scaled(multipliers)
        taps, frequency = math.prod(b.shape[2:]), None
        if b.ndim == 2:
            norm = float(matrix_norm_bound(b, rtol=_MATRIX_GAP / total))
        else:
            bracket = conv_norm_bracket(b, rtol=gap / total)
            norm, frequency = float(bracket.upper), bracket.frequency
        # ||E|| <= sqrt(taps) ||E||_F at every frequency, for the errors E of the entries
        error = 2.01 * HOST_UNIT * host_norm(b)[1] + _UNDERFLOW * math.sqrt(b.size)
        if self.doubts is not None:
            error += up(_length_above(self._times(self.doubts, multipliers)))
        return up(norm + up(math.sqrt(taps) * error)), frequency

    def operations(self, *, steps: int, density: int) -> float:
        """Return about how many `value_and_gradient` takes."""
        (few, many), taps = sorted(self.forward.shape), self.entries.shape[2:]
        if not taps:
            return float(12 * few**3 + 4 * few * few * many)
        # complex, at half of the frequencies, and as much again for the gradient
        frequencies = math.prod(density * k for k in taps)
        return float(8 * (steps + 2) * frequencies * few * few * many)

    def norms(self, multipliers: HostFloats, frequencies: HostFloats) -> HostFloats:
        """Return about ||B|| at each frequency, a row of angles; of a matrix, a row without any."""
        quotients, found = self._quotients(multipliers), []
        parts = 1 + len(frequencies) * quotients.size // _SYMBOL_ENTRIES
        for part in np.array_split(frequencies, min(parts, len(frequencies))):
            b = self._symbols(part) * quotients
            wide = b if b.shape[1] <= b.shape[2] else linalg.adjoint(b)
            squares = linalg.attempted(np.linalg.eigvalsh, wide @ linalg.adjoint(wide))
            found.append(np.zeros(len(part)) if squares is None else np.sqrt(squares[:, -1]))
        return np.concatenate(found)

    def weights(self, frequencies: HostFloats) -> list[HostNumbers]:
        """Return the links' weights at each frequency, up to phases of whole links."""
        symbols, links = self._symbols(frequencies), []
        ends = [np.cumsum([0, *self.widths[parity::2]]) for parity in (0, 1)]
        for i in range(1, self.depth + 1):
            even, odd = i // 2, (i - 1) // 2  # the places of x_i and x_{i-1} among their kind
            rows, columns = (slice(*e[k : k + 2]) for e, k in zip(ends, (even, odd), strict=True))
            block = symbols[:, rows, columns]
            links.append(block if i % 2 == 0 else linalg.adjoint(block))
        return links

    @property
    def owners(self) -> list[HostInts]:
        """The multipliers of the channels of each of x_0, ..., x_l."""
        found = [self.rows] * (self.depth + 1)
        for parity, labels in enumerate((self.rows, self.columns)):
            found[parity::2] = np.split(labels, np.cumsum(self.widths[parity::2])[:-1])
        return found

    def value_and_gradient(
        self, multipliers: HostFloats, *, steps: int, density: int
    ) -> tuple[float, HostFloats]:
        """Return the logarithm of a smooth l-th power and its gradient by those of the multipliers.

        For convolutions, on a circle with `density` frequencies per tap of each axis.
        """
        b = self.scaled(multipliers)
        if not np.any(b):  # a layer at one size may read nothing but padding
            return -math.inf, np.zeros(len(multipliers))
        if b.ndim == 2:
            value, gradient = _schatten_norm_and_gradient(b, power=2.0 ** (steps + 1))
        else:
            size = tuple(density * k for k in b.shape[2:])
            value, gradient = conv_norm_value_and_grad(
                b, size, padding_mode="circular", steps=steps
            )
        moment = np.sum(gradient * b, axis=tuple(range(2, b.ndim))) / float(value)
        moment = self.depth * np.where(self.forward, moment, -moment)
        slope = np.zeros(len(multipliers))
        np.add.at(slope, self.rows, np.sum(moment, axis=1))
        np.subtract.at(slope, self.columns, np.sum(moment, axis=0))
        return self.depth * math.log(float(value)), slope

    def _times(self, entries: HostFloats, multipliers: HostFloats) -> HostFloats:
        """Return entries of B times the quotients of their multipliers."""
        quotients = self._quotients(multipliers)
        return entries * quotients.reshape(*quotients.shape, *[1] * (entries.ndim - 2))

    def _quotients(self, multipliers: HostFloats) -> HostFloats:
        """Return what the entries of B have beside those for multipliers 1."""
        even, odd = multipliers[self.rows][:, None], multipliers[self.columns]
        return np.where(self.forward, even / odd, odd / even)

    def _symbols(self, frequencies: HostFloats) -> HostNumbers:
        """Return B for multipliers 1 at each frequency."""
        taps = self.entries.shape[2:]
        if not taps:
            return np.broadcast_to(self.entries, (len(frequencies), *self.entries.shape))
        phases = np.exp(1j * (frequencies @ np.indices(taps).reshape(len(taps), -1)))
        return np.moveaxis(self.entries.reshape(*self.forward.shape, -1) @ phases.T, -1, 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """A chain of links, of one segment or more.

    Attributes
    ----------
    segments : tuple of Coupling
        In order.
    sizes : tuple of int
        How many multipliers each x_i has, both ends one. They are one vector, of all x_i in order.
    norms, scales : tuple of float
        About upper bounds on the norms of the links, and logarithms of what stands beside them: of
        factors and constants at cuts.
    factor : Fraction
        The product of the factors.
    square : Fraction
        The product of the squares of the constants at the cuts.
    """

    segments: tuple[Coupling, ...]
    sizes: tuple[int, ...]
    norms: tuple[float, ...]
    scales: tuple[float, ...]
    factor: Fraction
    square: Fraction

    @classmethod
    def of(cls, found: Sequence[Link]) -> Chain:
        """Couple links."""
        sizes = (1, *(math.prod(link.shape) for link in found[:-1]), 1)
        first = np.cumsum((0, *sizes))
        couplings, i = [], 0
        for part in segments(found):
            labels = []
            for j, channels in enumerate([part[0].inputs, *(link.outputs for link in part)], i):
                is_end = j in (0, len(found))
                labels.append(first[j] + (0 * channels if is_end else channels))
            couplings.append(Coupling.of(part, labels))
            i += len(part)
        return cls(
            tuple(couplings),
            sizes,
            tuple(link.norm for link in found),
            tuple(_logarithm(link.factor**2 * link.square) / 2 for link in found),
            math.prod((link.factor for link in found), start=Fraction(1)),
            math.prod((link.square for link in found), start=Fraction(1)),
        )

    @property
    def depth(self) -> int:
        """The number of links."""
        return len(self.sizes) - 1

    @property
    def is_dense(self) -> bool:
        """Whether all links are matrices."""
        return all(s.entries.ndim == 2 for s in self.segments)

    def certificate(self, multipliers: HostFloats) -> float:
        """Return the bound of Theorems 29, 30, 32 and 33 for these multipliers, all rounding in it."""
        return self.certified(multipliers)[0]

    def certified(
        self, multipliers: HostFloats, *, gap: float = CONV_GAP
    ) -> tuple[float, list[HostFloats | None]]:
        """Return the certificate, and the frequencies where the segments have their norms.

        Convolutions leave at most about a gap above the bound of these multipliers.
        """
        exact = self.factor * Fraction(float(multipliers[0])) / Fraction(float(multipliers[-1]))
        peaks = []
        for segment in self.segments:
            beta, peak = segment.norm_and_peak(multipliers, total=self.depth, gap=gap)
            peaks.append(peak)
            if not math.isfinite(beta):
                return beta, peaks
            exact *= Fraction(2) ** (1 - segment.depth) * Fraction(beta) ** segment.depth
        return float_above(exact * Fraction(root_above(self.square))), peaks

    def value_and_gradient(
        self, logarithms: HostFloats, *, steps: int, density: int
    ) -> tuple[float, HostFloats]:
        """Return the logarithm of a smooth bound and its gradient by those of the multipliers."""
        multipliers = np.exp(np.clip(logarithms, -LARGEST, LARGEST))
        value, slope = float(logarithms[0] - logarithms[-1]), np.zeros(len(logarithms))
        slope[[0, -1]] = 1.0, -1.0
        for segment in self.segments:
            own, change = segment.value_and_gradient(multipliers, steps=steps, density=density)
            value, slope = value + own, slope + change
        return value, slope


def _rates(part: Sequence[Link]) -> list[tuple[int, ...]]:
    """Return how many phases the channels of x_0, ..., x_l have per axis: one at the end."""
    rates = [(1,) * len(part[-1].stride)]
    for link in reversed(part):
        rates.append(tuple(s * r for s, r in zip(link.stride, rates[-1], strict=True)))
    return rates[::-1]


def _coupled(kernels: Sequence[HostFloats]) -> HostFloats:
    """Return the blocks of B in their places, the taps of all from the first tap on."""
    sizes = [kernels[0].shape[1], *(k.shape[0] for k in kernels)]
    taps = np.max([k.shape[2:] for k in kernels], axis=0).astype(int)
    whole = np.zeros((sum(sizes[0::2]), sum(sizes[1::2]), *taps))
    for i, kernel in enumerate(kernels, 1):
        even, odd, block = i, i - 1, kernel
        if i % 2:  # the adjoint of a correlation: its kernel transposed and flipped
            even, odd = i - 1, i
            block = np.flip(np.swapaxes(kernel, 0, 1), tuple(range(2, kernel.ndim)))
        # where the taps stand is a shift of one layer's samples, which no norm notices
        start = (sum(sizes[0:even:2]), sum(sizes[1:odd:2]), *[0] * len(taps))
        whole[tuple(slice(j, j + n) for j, n in zip(start, block.shape, strict=True))] = block
    return whole


def _length_above(x: HostFloats) -> float:
    """Return an upper bound on the Euclidean norm of non-negative numbers of any size."""
    peak = float(np.max(x, initial=0.0))
    return up(peak * host_norm(x / peak)[1]) if peak > 0 else 0.0


def _logarithm(x: Fraction) -> float:
    """Return the logarithm of a positive fraction of any size."""
    return math.log(x.numerator) - math.log(x.denominator)


def _schatten_norm_and_gradient(b: HostFloats, *, power: float) -> tuple[float, HostFloats]:
    """Return ``v = (sum_i sigma_i^p)^(1/p)`` and ``v^(1-p) sum_i sigma_i^(p-1) u_i v_i^T``.

    Gram steps give it for p = 2^(steps + 1); all eigenvectors of one Gram matrix cost less than the
    gradient of three. Proves nothing.
    """
    wide = b if b.shape[0] <= b.shape[1] else b.T
    found = linalg.eigenvectors_or_none(wide @ wide.T)
    if found is None:
        return math.inf, np.zeros_like(b)
    squares, vectors = found
    ratios = np.maximum(squares, 0.0) / squares[-1]
    total = float(np.sum(ratios ** (power / 2)))
    value = math.sqrt(squares[-1]) * total ** (1 / power)
    shares = ratios ** (power / 2 - 1) * (value / squares[-1] / total)
    gradient = (vectors * shares) @ (vectors.T @ wide)
    return value, gradient if wide is b else gradient.T
