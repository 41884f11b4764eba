"""One bound of layers and functions of entries that follow each other, whatever scales stand between.

Between two layers let there be poolings, and in any order functions of each entry with slopes in
[0, h_j] and multiplications of channels by numbers s_j.  On the difference of two inputs the latter
act as diagonal matrices, and these commute: together they are h D S with h = prod h_j, S = prod S_j
and a diagonal D with entries in [0, 1].  So S may be multiplied into the layer before, and h into
the bound.  Numbers of the sign of s and no smaller modulus may stand for s, since the quotient is in
[0, 1] and goes into D (docs/theory.md, Lemma 34); with few digits their products with short weights
are exact.
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
from gramnorm._arrays.limits import CHAIN_PHASES
from gramnorm._arrays.types import HostFloats
from gramnorm._conv.bounds import conv_norm_bound
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._rigour.fractions import float_above, product_above, root_above, sum_above
from gramnorm._rigour.model import HOST_UNIT
from gramnorm._rigour.sums import host_norm
from gramnorm.network._chain import chain_bound
from gramnorm.network._layers import AvgPool, ConvLayer, Flatten, MaxPool
from gramnorm.network._steps import Pool, pool_of

_DIGITS = 24  # of a scale, in bits: products with weights of as many are exact in float64
_NORMAL = 2.0**-800  # products from here on have normal factors, and all their digits
_DENSITY, _STEPS = 12, 5  # typical of a step of the descent: frequencies per tap, Gram products

Values = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Entrywise:
    """A function of each entry alone, with slopes in [0, slope], times the numbers `scale`.

    The scale has as many axes as the tensor, and is broadcast to it.  Slopes in [-slope, 0] are as
    good within a chain; beside a shortcut signs matter, and there `ends` are the least and the
    largest slope, if they are known.
    """

    slope: float = 1.0
    scale: Values | None = None
    ends: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Weighted:
    """A layer: a matrix along the last axis (geometry None), or a kernel along the second.

    The geometry is that of `gramnorm.conv_norm_bound`.  What it is multiplied by, with its sign, is
    `times`, whose modulus stands beside it as well.
    """

    weight: Values
    geometry: dict[str, Any] | None = None
    times: float = 1.0

    @property
    def channels(self) -> tuple[int, int]:
        """The numbers of outputs and of inputs."""
        first, second = self.weight.shape[:2]
        if self.geometry is None:
            return first, second
        return (
            (second * self._groups, first) if self.is_transposed else (first, second * self._groups)
        )

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

    @property
    def stride(self) -> tuple[int, ...]:
        """The step between outputs per spatial axis."""
        return self._numbers("stride", 1)

    @property
    def _groups(self) -> int:
        return int((self.geometry or {}).get("groups", 1))

    @property
    def is_transposed(self) -> bool:
        """Whether it is the adjoint of a correlation."""
        return bool((self.geometry or {}).get("transposed", False))

    def can_be_linked(self) -> bool:
        """Say whether Theorems 29, 30 and 32 are about it: real, a correlation, padded by zeros."""
        if self.weight.dtype.kind != "f":
            return False
        if self.geometry is None:
            return self.weight.ndim == 2
        is_plain = all(n == 1 for n in self.stride) and not any(self._numbers("output_padding", 0))
        is_padded = self.geometry.get("padding_mode", "zeros") == "zeros"
        return is_padded and (is_plain or not self.is_transposed)

    def correlation(self) -> HostFloats:
        """Return the matrix, or the kernel of a correlation of as many groups.

        That of a transposed layer of stride 1 is transposed and reversed, group by group.
        """
        w = self.weight.astype(np.float64)
        if not self.is_transposed:
            return w
        parts = w.reshape(self._groups, w.shape[0] // self._groups, *w.shape[1:])
        parts = np.flip(np.swapaxes(parts, 1, 2), tuple(range(3, w.ndim + 1)))
        return parts.reshape(self.channels[0], parts.shape[2], *w.shape[2:])

    def described(self, w: HostFloats) -> Any:
        """Return a layer for `chain_bound` with other weights in place of its correlation."""
        if self.geometry is None:
            return w
        dilation = self._numbers("dilation", 1)
        return ConvLayer(w, stride=self.stride, dilation=dilation, groups=self._groups)

    def scales(self, part: Entrywise) -> HostFloats | None:
        """Return the numbers by which its output channels are multiplied, if they are such."""
        assert part.scale is not None
        if self.geometry is not None and part.scale.ndim != self.weight.ndim:
            return None
        axis = part.scale.ndim - 1 if self.geometry is None else 1
        others = part.scale.shape[:axis] + part.scale.shape[axis + 1 :]
        fits = part.scale.ndim > axis and part.scale.shape[axis] in (1, self.channels[0])
        return part.scale.astype(np.float64).reshape(-1) if fits and set(others) <= {1} else None


@dataclasses.dataclass(frozen=True)
class Pooled:
    """A pooling."""

    layer: AvgPool | MaxPool

    @property
    def pool(self) -> Pool:
        """The same with one number per axis."""
        window = self.layer.window
        axes = len(window) if isinstance(window, Sequence) else 1
        return pool_of(self.layer, name="a pooling", axes=axes)

    @property
    def constant(self) -> float:
        """An upper bound on its Lipschitz constant (Lemma 18)."""
        return root_above(self.pool.square)

    @property
    def overlaps(self) -> bool:
        """Whether it is an average of windows that may share samples."""
        return isinstance(self.layer, AvgPool) and math.prod(self.pool.overlaps) > 1


@dataclasses.dataclass(frozen=True)
class Flattened:
    """A signal of so many samples per axis read as one vector, the samples of a channel together."""

    spatial: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Joined:
    """A sum of two tensors of one shape, with these signs: where a residual block may end."""

    signs: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Curved:
    """A function of each entry alone with slopes of both signs, the least and the largest of them."""

    ends: tuple[float, float]


Part = Entrywise | Weighted | Pooled | Flattened | Joined | Curved


def goes_on(run: Sequence[Part], part: Part | None) -> bool:
    """Say whether a chain with these parts, which begins with a layer, may go on with another."""
    if part is None or not run:
        return isinstance(part, Weighted) and part.can_be_linked()
    last, behind = _last_layer(run), _behind(run)
    flattened = [p for p in behind if isinstance(p, Flattened)]
    if isinstance(part, Weighted):
        return part.can_be_linked() and _fits(last, flattened, part)
    if isinstance(part, Entrywise):
        return _commutes(last, behind, part)
    if isinstance(part, Joined | Curved):
        return False
    axes = len(part.spatial if isinstance(part, Flattened) else part.pool.window)
    return last.geometry is not None and axes == last.weight.ndim - 2 and not flattened


def _commutes(last: Weighted, behind: Sequence[Part], part: Entrywise) -> bool:
    """Say whether what acts on entries may as well stand directly behind the last layer.

    Diagonal matrices commute with one another, numbers per channel with poolings.  Behind a maximum
    or a flattening, where a chain is cut, a diagonal matrix with entries in [0, 1] does no harm
    either (Theorem 33); before an average a number for each window is one for each of its samples,
    if no sample is in two.
    """
    is_flat = any(isinstance(p, Flattened) for p in behind)
    if part.scale is not None and not is_flat and last.scales(part) is not None:
        return True
    if any(isinstance(p, Pooled) and p.overlaps for p in behind):
        return False
    return part.scale is None or _one_sign(part.scale)


def is_worth_it(run: Sequence[Part]) -> bool:
    """Say whether a bound of the whole may be smaller than the product."""
    return sum(isinstance(part, Weighted) for part in run) > 1 or has_scales(run)


def has_scales(run: Sequence[Part]) -> bool:
    """Say whether there are scales to multiply in."""
    return any(isinstance(part, Entrywise) and part.scale is not None for part in run)


def work(run: Sequence[Part]) -> float:
    """Return about how many multiplications a step of the descent takes; one layer has none."""
    if sum(isinstance(part, Weighted) for part in run) < 2:
        return 0.0
    total, segment, rates = 0.0, list[tuple[Weighted, tuple[int, ...]]](), tuple[int, ...]()
    for layer, before, _ in reversed(list(_by_layers(run))):
        if len(rates) != len(layer.stride):  # of a dense layer there are none
            total, segment, rates = total + _work(segment), [], (1,) * len(layer.stride)
        segment.append((layer, rates))
        pools = [p.pool for p in before if isinstance(p, Pooled)]
        is_cut = any(isinstance(p, Flattened | Pooled) and not _is_average(p) for p in before)
        if not is_cut:
            strides = (p.stride for p in pools)
            rates = tuple(map(math.prod, zip(rates, layer.stride, *strides, strict=True)))
        if is_cut or math.prod(rates) > CHAIN_PHASES:
            total, segment, rates = total + _work(segment), [], (1,) * len(layer.stride)
    return total + _work(segment)


def _is_average(part: Part) -> bool:
    return isinstance(part, Pooled) and isinstance(part.layer, AvgPool)


def _work(segment: Sequence[tuple[Weighted, tuple[int, ...]]]) -> float:
    """Return the multiplications for layers between two cuts, the last first, with their phases."""
    if not segment:
        return 0.0
    first, rates = segment[-1]
    phases = math.prod(s * r for s, r in zip(first.stride, rates, strict=True))
    sizes = [layer.channels[0] * math.prod(r) for layer, r in segment]
    sizes.append(first.channels[1] * phases)
    rows, columns = sum(sizes[::2]), sum(sizes[1::2])
    least = min(rows, columns)
    one = rows * columns * least + _STEPS * least**3
    taps = [max(along) for along in zip(*(layer.taps for layer, _ in segment), strict=True)]
    return float(one * math.prod(_DENSITY * k for k in taps) * (2 if taps else 1))


def run_bound(
    run: Sequence[Part], *, time_limit: float | None = None, effort: str = "standard"
) -> float:
    """
    Return an upper bound on the Lipschitz constant of parts in order.

    Parameters
    ----------
    run : sequence of Part
        As `goes_on` allows them.
    time_limit : float or None
    effort : str
        As in `gramnorm.chain_bound`.

    Returns
    -------
    float
        The bound, rounded up; inf in a process that reads subnormal numbers as zeros.

    Notes
    -----
    **Guarantee.** By Theorems 29, 30, 32 and 33 and Lemma 34, for the stored weights, every size of
    the input, and functions and scales as the parts state them.
    """
    layers, slopes = _folded(run)
    if _loses(layers):
        return math.inf
    described = [part for link in layers for part in (*link.before, link.layer)]
    bound = float(chain_bound(described, time_limit=time_limit, effort=effort))
    return product_above([*slopes, _with_errors(bound, layers)])


def scaled_product(run: Sequence[Part]) -> float:
    """Return the product of the norms of layers with their scales, and of slopes, rounded up.

    The scales of each layer are multiplied in as in `run_bound`, so that a large one may meet small
    weights.
    """
    links, slopes = _folded(run)
    if _loses(links):
        return math.inf
    norms = (sum_above([_norm(link.layer), link.error]) for link in links)
    return product_above([*slopes, *(link.constant for link in links), *norms])


@dataclasses.dataclass(frozen=True, eq=False)
class _Link:
    """A layer as `chain_bound` takes it, and what it is off by in norm.

    `before` holds what stands between it and the activation before, whose constant it is.
    """

    layer: Any
    error: float
    before: list[AvgPool | MaxPool | Flatten]
    constant: float

    @property
    def weights(self) -> HostFloats:
        """The matrix or the kernel."""
        found: HostFloats = self.layer.kernel if isinstance(self.layer, ConvLayer) else self.layer
        return found


def _loses(links: Sequence[_Link]) -> bool:
    """Say whether subnormal weights were read as zeros, and are missing here."""
    return probes.flushes_subnormals(links[0].weights, links[0].weights.dtype)


def _last_layer(run: Sequence[Part]) -> Weighted:
    return next(part for part in reversed(run) if isinstance(part, Weighted))


def _behind(run: Sequence[Part]) -> list[Part]:
    """Return what stands behind the last layer."""
    last = max(i for i, part in enumerate(run) if isinstance(part, Weighted))
    return list(run[last + 1 :])


def _fits(one: Weighted, flattened: Sequence[Flattened], following: Weighted) -> bool:
    """Say whether a layer takes what a layer before it gives, along the same axis."""
    outputs, inputs = one.channels[0], following.channels[1]
    if flattened:
        return following.geometry is None and inputs == outputs * math.prod(flattened[0].spatial)
    alike = (one.geometry is None) == (following.geometry is None)
    return alike and one.weight.ndim == following.weight.ndim and outputs == inputs


def _one_sign(scale: Values) -> bool:
    return bool(np.all(scale >= 0) or np.all(scale <= 0))


def _folded(run: Sequence[Part]) -> tuple[list[_Link], list[float]]:
    """Return the layers, with scales multiplied in, and the factors of the bound."""
    links: list[_Link] = []
    slopes: list[float] = []
    for layer, before, behind in _by_layers(run):
        scale, is_flat = np.ones(1), False
        for part in behind:
            is_flat = is_flat or isinstance(part, Flattened)
            if not isinstance(part, Entrywise):
                continue
            slopes.append(part.slope)
            if part.scale is None:
                continue
            found = None if is_flat else layer.scales(part)
            if found is None:
                slopes.append(float(np.max(np.abs(part.scale), initial=0.0)))
            else:
                scale = _product(scale, found)
        links.append(_link(layer, scale, before))
    slopes += [part.constant for part in _behind(run) if isinstance(part, Pooled)]
    return links, slopes


def _link(layer: Weighted, scale: HostFloats, before: Sequence[Part]) -> _Link:
    """Return a layer with its outputs multiplied, behind poolings."""
    w, error = _scaled(layer, scale)
    between: list[AvgPool | MaxPool | Flatten] = []
    constant = 1.0
    for part in before:
        if isinstance(part, Pooled):
            between.append(part.layer)
            constant = product_above([constant, part.constant])
        elif isinstance(part, Flattened):
            between.append(Flatten(part.spatial))
    return _Link(layer.described(w), error, between, constant)


def _by_layers(run: Sequence[Part]) -> Iterator[tuple[Weighted, list[Part], list[Part]]]:
    """Yield each layer with what stands between it and the layer before, and behind it."""
    places = [i for i, part in enumerate(run) if isinstance(part, Weighted)]
    before: list[Part] = []
    for i, j in zip(places, [*places[1:], len(run)], strict=True):
        layer, behind = run[i], list(run[i + 1 : j])
        assert isinstance(layer, Weighted)
        yield layer, before, behind
        before = behind


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
    w, scale = layer.correlation(), scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
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


def _with_errors(bound: float, links: Sequence[_Link]) -> float:
    """Return the bound for all layers within their errors.

    Written out, a product of the W_i + E_i is that of the W_i and terms with one E_i or more, which
    are at most prod (n_i + e_i) - prod n_i together, times the constants of poolings.
    """
    if not any(link.error for link in links) or not math.isfinite(bound):
        return bound
    found = [_norm(link.layer) for link in links]
    if not all(map(math.isfinite, found)):
        return math.inf
    norms, errors = list(map(Fraction, found)), [Fraction(link.error) for link in links]
    more = math.prod(n + e for n, e in zip(norms, errors, strict=True)) - math.prod(norms)
    return float_above(Fraction(bound) + more * math.prod(Fraction(x.constant) for x in links))


def _norm(layer: Any) -> float:
    """Return an upper bound on the norm of a layer."""
    w = layer.kernel if isinstance(layer, ConvLayer) else layer
    if 0 in w.shape:
        return 0.0
    if not isinstance(layer, ConvLayer):
        return float(matrix_norm_bound(w))
    keys = ("stride", "dilation", "groups")
    return float(conv_norm_bound(w, **{key: getattr(layer, key) for key in keys}))
