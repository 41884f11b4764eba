"""The layers of a chain coupled into one operator, and the certificate from its norm.

Layer i maps the n_{i-1} channels of x_{i-1} to the n_i of x_i; a matrix is a kernel with no
spatial axis.  The coupling B has the even i for rows and the odd ones for columns, and the blocks

    B[i, i-1] = X_i W_i / X_{i-1}  (i even),    B[i-1, i] = (X_i W_i / X_{i-1})^*  (i odd).

So each entry of X_even W / X_odd or its adjoint is that of the coupling of the weights alone times
a quotient of two multipliers, and Lip <= (X_0 / X_l) 2^(1-l) ||B||^l (Theorem 29; for kernels
Theorem 30, where the adjoint flips the taps as well).
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np

from gramnorm._arrays import linalg
from gramnorm._arrays.types import HostBools, HostFloats, HostInts
from gramnorm._conv.bounds import conv_norm_bound, conv_norm_value_and_grad
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._rigour.fractions import float_above
from gramnorm._rigour.model import HOST_UNIT, up
from gramnorm._rigour.sums import host_norm

LARGEST = 170.0
"""Logarithms of multipliers lie within it: so their quotients lie within 2^-500 and 2^500."""

_UNDERFLOW = 2.0**-570  # 2^-1074 of the product, and 2^-1074 of scaling times 2^500 at most
_MATRIX_GAP, _CONV_GAP = 1e-8, 2e-4  # of the bound; of the norm of B, the l-th part


@dataclasses.dataclass(frozen=True)
class Coupling:
    """The coupling of layers W_i / 2^e_i, whose norms lie in [1/2, 1) about.

    Attributes
    ----------
    entries : host floats, shape (n_0 + n_2 + ..., n_1 + n_3 + ..., *taps)
        B for multipliers 1.
    forward : host bools, shape of the first two axes
        Where a block is that of an even i.
    rows, columns : host ints
        Which of all channels, those of layer 0 first, a row or a column belongs to.
    exponents : host ints, shape (l,)
        e_i.
    sizes : tuple of int
        n_0, ..., n_l.

    Multipliers are one vector: X_0, those of the channels of layers 1 to l - 1, X_l.
    """

    entries: HostFloats
    forward: HostBools
    rows: HostInts
    columns: HostInts
    exponents: HostInts
    sizes: tuple[int, ...]

    @property
    def depth(self) -> int:
        """The number l of layers."""
        return len(self.exponents)

    @property
    def _copies(self) -> HostInts:
        """How many channels share each multiplier: all of the input, and all of the output."""
        return np.asarray([self.sizes[0], *[1] * sum(self.sizes[1:-1]), self.sizes[-1]])

    @classmethod
    def of(cls, layers: list[HostFloats], norms: list[float]) -> Coupling:
        """Couple finite layers, none of which is zero, of at most these norms."""
        exponents = np.frexp(np.minimum(norms, np.finfo(np.float64).max))[1]
        sizes = (layers[0].shape[1], *(w.shape[0] for w in layers))
        ends = np.cumsum((0, *sizes))
        places = [np.arange(ends[i], ends[i + 1]) for i in range(len(sizes))]
        rows, columns = (np.concatenate(places[parity::2]) for parity in (0, 1))
        taps = np.max([w.shape[2:] for w in layers], axis=0).astype(int)
        entries = np.zeros((len(rows), len(columns), *taps))
        forward = np.zeros(entries.shape[:2], dtype=bool)
        for i, (w, e) in enumerate(zip(layers, exponents, strict=True), 1):
            block = np.ldexp(w, -e)
            even, odd = (i, i - 1) if i % 2 == 0 else (i - 1, i)
            if i % 2:  # the adjoint of a correlation: its kernel transposed and flipped
                block = np.flip(np.swapaxes(block, 0, 1), tuple(range(2, w.ndim)))
            first = int(np.searchsorted(rows, ends[even])), int(np.searchsorted(columns, ends[odd]))
            # where the taps stand is a shift of one layer's samples, which no norm notices
            start = (*first, *[0] * (w.ndim - 2))
            at = tuple(slice(j, j + n) for j, n in zip(start, block.shape, strict=True))
            entries[at] = block
            forward[at[:2]] = i % 2 == 0
        return cls(entries, forward, rows, columns, exponents, sizes)

    def scaled(self, multipliers: HostFloats) -> HostFloats:
        """Return B as computed: each entry within 2.01 u of itself, and an underflow."""
        every = np.repeat(multipliers, self._copies)
        even, odd = every[self.rows][:, None], every[self.columns]
        quotients = np.where(self.forward, even / odd, odd / even)
        return self.entries * quotients.reshape(*quotients.shape, *[1] * (self.entries.ndim - 2))

    def certificate(self, multipliers: HostFloats) -> float:
        """Return the bound of Theorems 29 and 30 for these multipliers, rounding included."""
        b = self.scaled(multipliers)
        taps, depth = math.prod(b.shape[2:]), self.depth
        if b.ndim == 2:
            norm = float(matrix_norm_bound(b, rtol=_MATRIX_GAP / depth))
        else:
            norm = float(conv_norm_bound(b, rtol=_CONV_GAP / depth))
        # ||E|| <= sqrt(taps) ||E||_F at every frequency, for the errors E of the entries
        error = 2.01 * HOST_UNIT * host_norm(b)[1] + _UNDERFLOW * math.sqrt(b.size)
        beta = up(norm + up(math.sqrt(taps) * error))
        if not math.isfinite(beta):
            return beta
        scale = Fraction(2) ** (int(np.sum(self.exponents)) + 1 - depth)
        ends = Fraction(float(multipliers[0])) / Fraction(float(multipliers[-1]))
        return float_above(scale * ends * Fraction(beta) ** depth)

    def value_and_gradient(
        self, logarithms: HostFloats, *, steps: int, density: int
    ) -> tuple[float, HostFloats]:
        """Return the logarithm of a smooth bound and its gradient by those of the multipliers.

        For convolutions, on a circle with `density` frequencies per tap of each axis.
        """
        b = self.scaled(np.exp(np.clip(logarithms, -LARGEST, LARGEST)))
        if b.ndim == 2:
            value, gradient = _schatten_norm_and_gradient(b, power=2.0 ** (steps + 1))
        else:
            size = tuple(density * k for k in b.shape[2:])
            value, gradient = conv_norm_value_and_grad(
                b, size, padding_mode="circular", steps=steps
            )
        moment = np.sum(gradient * b, axis=tuple(range(2, b.ndim))) / float(value)
        moment = self.depth * np.where(self.forward, moment, -moment)
        slope = np.zeros(sum(self.sizes))
        slope[self.rows] = np.sum(moment, axis=1)
        slope[self.columns] = -np.sum(moment, axis=0)
        slope = np.add.reduceat(slope, np.cumsum([0, *self._copies[:-1]]))
        slope[0] += 1.0
        slope[-1] -= 1.0
        ends = float(logarithms[0] - logarithms[-1])
        return ends + self.depth * math.log(float(value)), slope


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
