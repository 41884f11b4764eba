"""From a kernel and a geometry to a bracket, or to the value and gradient of the fixed-step bound.

Which way a convolution goes depends on its size: every size and circles are searched over frequencies, everything
else at a finite size is `finite`.  Kernels are scaled first and their borders of zeros cut off.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gramnorm import _validate
from gramnorm._arrays import autodiff, crossing, dtypes, libraries, linalg
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._conv import circle, every_size, finite, gradients
from gramnorm._conv.geometry import Axis, ConvGeometry
from gramnorm._conv.symbol import Symbol, phases, polyphase
from gramnorm._matrix.gradients import floating, gradient_dtype
from gramnorm._matrix.gram import divisor, fixed_steps
from gramnorm._results import Bounds, NormBracket, attainable, result_dtype, to_bracket
from gramnorm._rigour import scaling
from gramnorm._rigour.model import gram_units, working_dtype


class Search:
    """One certified search and where it ended: the gradient of the bound is taken there."""

    def __init__(
        self, geometry: Callable[[tuple[int, ...]], ConvGeometry], rtol: float | None
    ) -> None:
        self._geometry = geometry  # given the shape of the kernel
        self._gap = _validate.tolerance(rtol, default=1e-3)
        self._found: _Found | None = None

    def bracket(self, kernel: Array) -> NormBracket:
        """Return the bracket."""
        a = _validate.concrete_argument(kernel, name="kernel", instead="conv_gram_iteration")
        geometry = self._geometry(tuple(a.shape))
        dtype = result_dtype(a)
        with libraries.plain_arithmetic(a):
            found = _bracket(a, geometry, rtol=attainable(self._gap))
        self._found = found
        frequency = None
        if found.turns is not None:
            frequency = 2 * math.pi * (found.turns - np.ceil(found.turns - 0.5))
        return to_bracket(
            Bounds(found.lower, found.upper, found.cost),
            rtol=self._gap,
            shape=(),
            dtype=dtype,
            like=a,
            frequency=frequency,
        )

    def upper(self, kernel: Array) -> Array:
        """Return the upper bound."""
        return self.bracket(kernel).upper

    def gradient(self, kernel: Array, value: Array) -> Array:
        """Return the gradient of the bound just found, by the kernel."""
        a = libraries.plain(kernel)
        found, size = self._found, float(crossing.to_host(value))
        assert found is not None
        if not (found.peak and 0 < size < math.inf):
            return _gradient_of_none(a, size)
        geometry = self._geometry(tuple(a.shape))
        with libraries.plain_arithmetic(a):
            host = gradients.of_norm(_host_kernel(a), geometry, found.peak, rtol=self._gap)
        return _from_host_like(host, a)


def fixed_step_value(a: Array, geometry: ConvGeometry, *, steps: int) -> Array:
    """Return the largest fixed-step Gram bound over the frequencies of a circle; no value reaches the host."""
    xp = libraries.namespace(a)
    out = result_dtype(a)
    if 0 in a.shape:
        return xp.zeros((), dtype=out, device=libraries.device_of(a))
    with libraries.plain_arithmetic(a):
        blocks, scale, peak = _blocks_on_circle(a, geometry)
        value = scale * xp.max(fixed_steps(blocks, steps=steps))
        return xp.where(xp.isfinite(peak), value, peak)


def fixed_step_gradient(a: Array, geometry: ConvGeometry, value: Array, *, steps: int) -> Array:
    """Return the gradient of the fixed-step bound: that of the block that attains it."""
    size = float(crossing.to_host(value))
    if not 0 < size < math.inf:
        return _gradient_of_none(a, size)
    with libraries.plain_arithmetic(a):
        blocks, _, _ = _blocks_on_circle(libraries.plain(a), geometry)
    norms = crossing.to_host(fixed_steps(blocks, steps=steps))
    which, group = divmod(int(np.argmax(norms)), geometry.groups)
    plain, sizes, _ = zip(*(axis.circle() for axis in geometry.axes()), strict=True)
    points = [n // s for n, s in zip(sizes, plain, strict=True)]
    half = not dtypes.is_complex(a.dtype)
    index = np.unravel_index(which, circle.grid_shape(tuple(points), half=half))
    turns = np.asarray([int(j) / n for j, n in zip(index, points, strict=True)])
    peak = gradients.Peak(plain, turns, group, exact=True)
    host = gradients.of_fixed_steps(_host_kernel(a), geometry, peak, steps=steps)
    return _from_host_like(host, a)


def _blocks_on_circle(a: Array, geometry: ConvGeometry) -> tuple[Array, Array, Array]:
    """Return the blocks of a circular convolution at all frequencies over a scale, the scale, and the largest entry.

    No value reaches the host. Blocks have the shape (frequencies, groups, p, q).
    """
    xp = libraries.namespace(a)
    work = dtypes.complex_dtype(result_dtype(a))
    plain, sizes = zip(*(axis.circle()[:2] for axis in geometry.axes()), strict=True)
    sizes = tuple(n // s for n, s in zip(sizes, plain, strict=True))
    # the taps are scaled before they are summed, so that no sum overflows
    taps = _taps(xp.astype(a, work), geometry.groups)
    parts = [xp.abs(autodiff.without_gradient(part)) for part in dtypes.components(taps)]
    peak = xp.max(xp.stack(parts))
    scale = divisor(peak)
    values, offsets = polyphase(taps / xp.astype(scale, work), geometry.kernel_size, plain)
    half = not dtypes.is_complex(a.dtype)
    ranges = [np.arange(n) for n in circle.grid_shape(sizes, half=half)]
    points = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(sizes))
    weights = crossing.from_host(phases(offsets, points, np.asarray(sizes)), dtype=work, like=a)
    flat = xp.reshape(values, (values.shape[0], -1))
    blocks = xp.reshape(linalg.matmul(weights, flat), (len(points), *values.shape[1:]))
    return blocks, scale, peak


def _gradient_of_none(a: Array, size: float) -> Array:
    """Return the gradient where the norm is attained nowhere: 0 for a norm of 0, NaN for NaN and inf."""
    xp = libraries.namespace(a)
    known = xp.zeros_like(floating(a)) + (0.0 if size == 0 else math.nan)
    return xp.astype(known, gradient_dtype(a), copy=False)


def _host_kernel(a: Array) -> npt.NDArray[np.inexact]:
    """Return the kernel on the host in double precision, scaled: a gradient of a norm does not see the scale."""
    host = crossing.host_array(a)
    host = host.astype(np.complex128 if np.iscomplexobj(host) else np.float64)
    parts = np.abs(host.real), np.abs(host.imag)
    return np.asarray(host * 2.0 ** -min(max(math.frexp(float(np.max(parts)))[1], -1022), 1022))


def _from_host_like(host: npt.NDArray[np.inexact], a: Array) -> Array:
    dtype = gradient_dtype(a)
    return crossing.from_host(host, dtype=dtype, like=a)


def _taps(a: Array, groups: int) -> Array:
    """Return the taps as blocks, shape (T, groups, c_out / groups, c_in / groups)."""
    xp = libraries.namespace(a)
    count = math.prod(a.shape[2:])
    blocks = xp.reshape(a, (groups, a.shape[0] // groups, a.shape[1], count))
    return xp.permute_dims(blocks, (3, 0, 1, 2))


@dataclasses.dataclass(frozen=True)
class _Found:
    """Host bounds of shape (1,), turns of the frequency or None, the cost, and where the norm is attained."""

    lower: HostFloats
    upper: HostFloats
    turns: HostFloats | None
    cost: int
    peak: gradients.Peak | None


def _bracket(a: Array, geometry: ConvGeometry, *, rtol: float) -> _Found:
    """Bracket the norm of a convolution."""
    xp = libraries.namespace(a)
    out = result_dtype(a)
    zero = np.zeros(1)
    axes = None if geometry.input_shape is None else geometry.axes()
    empty = axes is not None and 0 in [n for axis in axes for n in (axis.size, axis.outputs)]
    if 0 in a.shape:
        return _Found(zero, zero, None, 0, None)
    block = (a.shape[0] // geometry.groups, int(a.shape[1]))
    count = math.prod(geometry.kernel_size)
    units = gram_units(block, complex=True) + 3.2 * (count + 4) * math.sqrt(count * min(block))
    work = working_dtype(a, units, rtol)
    copies = 1 if axes is None else math.prod(axis.copies() for axis in axes)
    scaled = scaling.normalise(
        xp.reshape(a, (1, a.shape[0], -1)), dtype=work, gain=math.sqrt(count * copies)
    )
    if not scaled.active.size:
        known = scaling.restore(zero[:0], zero[:0], scaled, dtype=out)
        return _Found(*known, None, 0, None)
    if empty:
        return _Found(zero, zero, None, 0, None)

    values, first = _trimmed(xp.reshape(scaled.values, a.shape))
    kernel_size = tuple(int(k) for k in values.shape[2:])
    taps = _taps(values, geometry.groups)
    aim = 0.95 * rtol  # the result is still to be rounded to the caller's type
    if axes is None:
        lower, upper, turns, cost, peak = _every_size(taps, kernel_size, geometry, rtol=aim)
    else:
        axes = tuple(
            dataclasses.replace(axis, taps=k, before=axis.before - axis.dilation * skipped)
            for axis, k, skipped in zip(axes, kernel_size, first, strict=True)
        )
        on_circle = all(axis.is_circle for axis in axes)
        finish = _on_circle if on_circle else _at_a_size
        lower, upper, turns, cost, peak = finish(taps, axes, rtol=aim)
    bounds = np.asarray([lower]), np.asarray([upper])
    return _Found(*scaling.restore(*bounds, scaled, dtype=out), turns, cost, peak)


_End = tuple[float, float, HostFloats | None, int, gradients.Peak]
"""Bounds in the scale of the taps, turns, cost and peak."""


def _every_size(
    taps: Array,
    kernel_size: tuple[int, ...],
    geometry: ConvGeometry,
    *,
    rtol: float,
) -> _End:
    """Bracket the supremum over all sizes."""
    stride, dilation = geometry.stride, geometry.dilation
    symbol, best = every_size.supremum(taps, kernel_size, stride, dilation, rtol=rtol)
    assert best.turns is not None
    turns = best.turns - np.ceil(best.turns - 0.5)
    plain = tuple(s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True))
    peak = gradients.Peak(plain, best.turns, best.block, exact=False)
    cost = best.evaluations * symbol.blocks
    return best.lower, best.upper, turns / np.lcm(stride, dilation), cost, peak


def _at_a_size(taps: Array, axes: tuple[Axis, ...], *, rtol: float) -> _End:
    """Bracket the norm of an operator that is not circulant."""
    found = finite.bracket(taps, axes, rtol=rtol)
    plain = tuple(axis.stride // math.gcd(axis.stride, axis.dilation) for axis in axes)
    peak = gradients.Peak(plain, None, 0, exact=False)
    return found.lower, found.upper, None, found.cost, peak


def _trimmed(a: Array) -> tuple[Array, list[int]]:
    """Return the kernel without borders of zeros, and the number of taps cut off in front, per axis."""
    xp = libraries.namespace(a)
    dims = a.ndim - 2
    present = crossing.to_host(xp.any(a != 0, axis=(0, 1))) != 0
    first = []
    for axis in range(dims):
        others = tuple(i for i in range(dims) if i != axis)
        used = np.flatnonzero(np.any(present, axis=others))
        low, high = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 1)
        first.append(low)
        a = a[(slice(None),) * (2 + axis) + (slice(low, high), ...)]
    return a, first


def _on_circle(taps: Array, axes: tuple[Axis, ...], *, rtol: float) -> _End:
    """Bracket the norm of a circular convolution whose stride divides the size."""
    plain, sizes, factors = zip(*(axis.circle() for axis in axes), strict=True)
    kernel_size = tuple(axis.taps for axis in axes)
    symbol = Symbol(*polyphase(taps, kernel_size, plain))
    points = tuple(n // s for n, s in zip(sizes, plain, strict=True))
    extent = tuple(-(-k // s) for k, s in zip(kernel_size, plain, strict=True))
    best = circle.over_circle(symbol, points, extent, rtol=rtol)
    assert best.turns is not None
    turns = [
        round(turn * n) * factor % n / axis.size
        for turn, n, factor, axis in zip(best.turns.tolist(), points, factors, axes, strict=True)
    ]
    peak = gradients.Peak(plain, best.turns, best.block, exact=True)
    cost = best.evaluations * symbol.blocks
    return best.lower, best.upper, np.asarray(turns), cost, peak
