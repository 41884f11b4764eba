"""One bound of layers and functions of entries that follow each other, whatever scales stand between.

Between two layers let there be functions of each entry with slopes in [0, h_j], and multiplications
of channels by numbers s_j, in any order.  On the difference of two inputs each acts as a diagonal
matrix, and these commute: together they are h D S with h = prod h_j, S = prod S_j and a diagonal D
with entries in [0, 1].  So S may be multiplied into the layer before, and h into the bound.  Numbers
of the sign of s and no smaller modulus may stand for s, since the quotient is in [0, 1] and goes
into D (docs/theory.md, Lemma 34); with few digits their products with short weights are exact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import probes
from gramnorm._arrays.types import HostFloats
from gramnorm._conv.bounds import conv_norm_bound
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._rigour.fractions import float_above, product_above, root_above, sum_above
from gramnorm._rigour.model import HOST_UNIT
from gramnorm._rigour.sums import host_norm
from gramnorm.network._chain import chain_bound

_DIGITS = 24  # of a scale, in bits: products with weights of as many are exact in float64
_NORMAL = 2.0**-800  # products from here on have normal factors, and all their digits
_DENSITY, _STEPS = 12, 5  # typical of a step of the descent: frequencies per tap, Gram products

Values = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Entrywise:
    """A function of each entry alone, with slopes in [0, slope], times the numbers `scale`.

    The scale has as many axes as the tensor, and is broadcast to it.
    """

    slope: float = 1.0
    scale: Values | None = None


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A layer: a matrix along the last axis (geometry None), or a kernel along the second.

    The geometry is that of `gramnorm.conv_norm_bound`.
    """

    weight: Values
    geometry: dict[str, Any] | None = None

    @property
    def channels(self) -> tuple[int, int]:
        """The numbers of outputs and of inputs."""
        first, second = self.weight.shape[:2]
        if self.geometry is None:
            return first, second
        groups = self.geometry.get("groups", 1)
        if self.geometry.get("transposed", False):
            return second * groups, first
        return first, second * groups

    @property
    def taps(self) -> tuple[int, ...]:
        """The size of the kernel with the zeros of its dilation."""
        taps = self.weight.shape[2:]
        return tuple(
            d * (k - 1) + 1 for k, d in zip(taps, self._numbers("dilation", 1), strict=True)
        )

    def _numbers(self, key: str, default: int) -> tuple[int, ...]:
        """Return a number for each spatial axis."""
        value = (self.geometry or {}).get(key, default)
        return (value,) * (self.weight.ndim - 2) if isinstance(value, int) else tuple(value)

    def can_be_linked(self) -> bool:
        """Say whether Theorems 29 and 30 are about it: real, stride 1, padded by zeros."""
        if self.weight.dtype.kind != "f":
            return False
        if self.geometry is None:
            return self.weight.ndim == 2
        return (
            self.geometry.get("padding_mode", "zeros") == "zeros"
            and all(n == 1 for n in self._numbers("stride", 1))
            and not any(self._numbers("output_padding", 0))
        )

    def written_out(self) -> HostFloats:
        """Return the matrix, or the kernel with the zeros of groups and dilation.

        That of a transposed layer, the adjoint of a correlation, is transposed and reversed.
        """
        w = self.weight.astype(np.float64)
        if self.geometry is None:
            return w
        groups, axes = self.geometry.get("groups", 1), tuple(range(3, w.ndim + 1))
        parts = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
        if self.geometry.get("transposed", False):
            parts = np.flip(np.swapaxes(parts, 1, 2), axes)
        full = np.zeros((groups, parts.shape[1], groups, parts.shape[2], *self.taps))
        steps = tuple(slice(None, None, d) for d in self._numbers("dilation", 1))
        for g in range(groups):
            at: tuple[Any, ...] = (g, slice(None), g, slice(None), *steps)
            full[at] = parts[g]
        return full.reshape(*self.channels, *self.taps)

    def scales(self, part: Entrywise) -> HostFloats | None:
        """Return the numbers by which its output channels are multiplied, if they are such."""
        assert part.scale is not None
        axis = part.scale.ndim - 1 if self.geometry is None else 1
        others = part.scale.shape[:axis] + part.scale.shape[axis + 1 :]
        fits = part.scale.ndim > axis and part.scale.shape[axis] in (1, self.channels[0])
        return part.scale.astype(np.float64).reshape(-1) if fits and set(others) <= {1} else None


Part = Entrywise | Weighted


def goes_on(run: Sequence[Part], part: Part | None) -> bool:
    """Say whether a chain with these parts, which begins with a layer, may go on with another."""
    if isinstance(part, Weighted):
        return part.can_be_linked() and (not run or _fits(_last_layer(run), part))
    if part is None or not run:
        return False
    return part.scale is None or _last_layer(run).scales(part) is not None or _one_sign(part.scale)


def is_worth_it(run: Sequence[Part]) -> bool:
    """Say whether a bound of the whole may be smaller than the product."""
    return sum(isinstance(part, Weighted) for part in run) > 1 or has_scales(run)


def has_scales(run: Sequence[Part]) -> bool:
    """Say whether there are scales to multiply in."""
    return any(isinstance(part, Entrywise) and part.scale is not None for part in run)


def work(run: Sequence[Part]) -> float:
    """Return about how many multiplications a step of the descent takes; one layer has none."""
    layers = [part for part in run if isinstance(part, Weighted)]
    if len(layers) < 2:
        return 0.0
    sizes = [layers[0].channels[1], *(layer.channels[0] for layer in layers)]
    rows, columns = sum(sizes[::2]), sum(sizes[1::2])
    least = min(rows, columns)
    one = rows * columns * least + _STEPS * least**3
    taps = [max(along) for along in zip(*(layer.taps for layer in layers), strict=True)]
    return float(one * math.prod(_DENSITY * k for k in taps) * (2 if taps else 1))


def run_bound(run: Sequence[Part], *, time_limit: float | None = None) -> float:
    """
    Return an upper bound on the Lipschitz constant of parts in order.

    Parameters
    ----------
    run : sequence of Part
        As `goes_on` allows them.
    time_limit : float or None
        As in `gramnorm.chain_bound`.

    Returns
    -------
    float
        The bound, rounded up; inf in a process that reads subnormal numbers as zeros.

    Notes
    -----
    **Guarantee.** By Theorems 29 and 30 and Lemma 34, for the stored weights, every size of the input,
    and functions and scales as the parts state them.
    """
    layers, slopes = _folded(run)
    if _loses(layers):
        return math.inf
    bound = float(chain_bound([layer for layer, _ in layers], time_limit=time_limit))
    return product_above([*slopes, _with_errors(bound, layers)])


def scaled_product(run: Sequence[Part]) -> float:
    """Return the product of the norms of layers with their scales, and of slopes, rounded up.

    The scales of each layer are multiplied in as in `run_bound`, so that a large one may meet small
    weights.
    """
    layers, slopes = _folded(run)
    if _loses(layers):
        return math.inf
    return product_above([*slopes, *(sum_above([_norm(w), error]) for w, error in layers)])


def _loses(layers: Sequence[tuple[HostFloats, float]]) -> bool:
    """Say whether subnormal weights were read as zeros, and are missing here."""
    return probes.flushes_subnormals(layers[0][0], layers[0][0].dtype)


def _last_layer(run: Sequence[Part]) -> Weighted:
    return next(part for part in reversed(run) if isinstance(part, Weighted))


def _fits(one: Weighted, following: Weighted) -> bool:
    """Say whether two layers mix the same axis, of as many channels."""
    alike = (one.geometry is None) == (following.geometry is None)
    same = one.weight.ndim == following.weight.ndim
    return alike and same and one.channels[0] == following.channels[1]


def _one_sign(scale: Values) -> bool:
    return bool(np.all(scale >= 0) or np.all(scale <= 0))


def _folded(run: Sequence[Part]) -> tuple[list[tuple[HostFloats, float]], list[float]]:
    """Return the layers, each with what it is off by in norm, and the factors of the bound."""
    layers: list[tuple[HostFloats, float]] = []
    slopes: list[float] = []
    for layer, between in _by_layers(run):
        scale = np.ones(1)
        for part in between:
            slopes.append(part.slope)
            if part.scale is None:
                continue
            found = layer.scales(part)
            if found is None:
                slopes.append(float(np.max(np.abs(part.scale), initial=0.0)))
            else:
                scale = _product(scale, found)
        layers.append(_scaled(layer, scale))
    return layers, slopes


def _by_layers(run: Sequence[Part]) -> Iterator[tuple[Weighted, list[Entrywise]]]:
    """Yield each layer with what follows it."""
    places = [i for i, part in enumerate(run) if isinstance(part, Weighted)]
    for i, j in zip(places, [*places[1:], len(run)], strict=True):
        layer = run[i]
        assert isinstance(layer, Weighted)
        yield layer, [part for part in run[i + 1 : j] if isinstance(part, Entrywise)]


def _product(a: HostFloats, b: HostFloats) -> HostFloats:
    """Return numbers of the sign of a b and no smaller modulus, of few digits."""
    sign = np.sign(a) * np.sign(b)
    size = np.where(np.abs(b) == 1, np.abs(a), np.nextafter(np.abs(a) * np.abs(b), np.inf))
    size = np.where(np.abs(a) == 1, np.abs(b), size)
    mantissa, exponent = np.frexp(size)
    short = np.ldexp(np.ceil(np.ldexp(mantissa, _DIGITS)), exponent - _DIGITS)
    # where ldexp makes a subnormal number it may have rounded down
    return np.asarray(sign * np.maximum(short, size))


def _scaled(layer: Weighted, scale: HostFloats) -> tuple[HostFloats, float]:
    """Return a layer with its outputs multiplied, and a bound on the norm of its error."""
    w, scale = layer.written_out(), scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    product = w * scale
    is_short = layer.weight.dtype.itemsize <= 4
    there = (w != 0) & (scale != 0)
    is_large = np.abs(product) >= _NORMAL
    if np.all(np.abs(scale) == 1) or not np.any(there & ~(is_large & is_short)):
        return product, 0.0
    return product, _rounding(product)


def _rounding(product: HostFloats) -> float:
    """Return a bound on the norm of the errors of products, each u of itself and an underflow.

    At every frequency the symbol of the errors has at most their Frobenius norm times the root of
    the taps.
    """
    peak = float(np.max(np.abs(product), initial=0.0))
    if not math.isfinite(peak):
        return peak
    exponent = math.frexp(peak)[1]
    norm = Fraction(host_norm(np.ldexp(product, -exponent))[1])
    lost = Fraction(root_above(Fraction(product.size))) * Fraction(2) ** -1074
    frobenius = Fraction(HOST_UNIT) * (norm + lost) * Fraction(2) ** exponent + lost
    taps = Fraction(root_above(Fraction(math.prod(product.shape[2:]))))
    return float_above(taps * frobenius)


def _with_errors(bound: float, layers: Sequence[tuple[HostFloats, float]]) -> float:
    """Return the bound for all layers within their errors.

    Written out, a product of the W_i + E_i is that of the W_i and terms with one E_i or more, which
    are at most prod (n_i + e_i) - prod n_i together.
    """
    if not any(error for _, error in layers) or not math.isfinite(bound):
        return bound
    found = [_norm(w) for w, _ in layers]
    if not all(map(math.isfinite, found)):
        return math.inf
    norms, errors = list(map(Fraction, found)), [Fraction(error) for _, error in layers]
    more = math.prod(n + e for n, e in zip(norms, errors, strict=True)) - math.prod(norms)
    return float_above(Fraction(bound) + more)


def _norm(w: HostFloats) -> float:
    """Return an upper bound on the norm of a layer."""
    if 0 in w.shape:
        return 0.0
    return float(matrix_norm_bound(w) if w.ndim == 2 else conv_norm_bound(w))
