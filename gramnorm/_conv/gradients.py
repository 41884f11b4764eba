"""Gradients of convolution norms by the kernel, on the host.

By Danskin's theorem only where the norm is attained matters.  With J the gradient of the norm of
the symbol F = sum_k K_k exp(i k . theta) at the maximising frequency, the gradient by a tap is
exp(-i k . theta) J, its real part for a real kernel.  At a finite size, with unit vectors u, v of
the operator, it is the correlation of u with v: sum_o u[o] v[s o + d k - before]^H.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import crossing, dtypes, libraries, limits
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._conv import ascent, every_size
from gramnorm._conv.circle import circle_points, grid_shape
from gramnorm._conv.finite_lower import Wave, top_vectors, window_size
from gramnorm._conv.geometry import Axis, ConvGeometry, patches
from gramnorm._conv.symbol import polyphase, taps_of, undilated_stride
from gramnorm._matrix import gradients
from gramnorm._matrix.fixed_steps import gram_values
from gramnorm._matrix.gradients import floating, gradient_dtype

HostArray = npt.NDArray[np.inexact]


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Where the norm of a convolution is attained.

    Attributes
    ----------
    turns : host floats, shape (axes,), or None
        Frequency of the symbol without dilation; None where no single one attains the norm.
    group : int
        The block of the symbol.
    on_grid : bool
        Whether only the frequencies of a circle count, so that `turns` are exact.
    frequency : host floats, shape (axes,), or None
        The same in radians per sample of the input.
    is_even : bool
        Whether cosines of this frequency attain the norm, and not a wave.
    """

    turns: HostFloats | None = None
    group: int = 0
    on_grid: bool = False
    frequency: HostFloats | None = None
    is_even: bool = False


def of_bound(
    a: Array, value: Array, place: Place | None, geometry: ConvGeometry, *, rtol: float
) -> Array:
    """Return the gradient by the kernel of the norm that `value` bounds, attained at `place`."""
    a, size = libraries.plain(a), float(crossing.to_host(value))
    if place is None or not 0 < size < math.inf:
        return _of_known(a, size)
    with libraries.plain_arithmetic(a):
        kernel = scaled_on_host(a)
        if place.turns is None:
            found = _of_operator(kernel, geometry, rtol=rtol)
        else:
            each = (
                _of_symbol(kernel, geometry, mirrored, lambda f: _mean_pair(f, rtol), rtol=rtol)
                for mirrored in _mirrored(place)
            )
            found = np.mean(list(each), axis=0)
    return crossing.from_host(found, dtype=gradient_dtype(a), like=a)


def _mirrored(place: Place) -> list[Place]:
    """Return the waves whose mean is the place: of cosines those with both signs in each axis."""
    if not place.is_even or place.turns is None:
        return [place]
    signs = itertools.product((1, -1), repeat=len(place.turns))
    return [dataclasses.replace(place, turns=np.asarray(s) * place.turns) for s in signs]


def of_fixed_steps(
    a: Array, value: Array, norms: Array, geometry: ConvGeometry, *, steps: int
) -> Array:
    """Return the gradient of the fixed-step Gram bound `value`: that of the block that attains it.

    `norms` are the bounds on all blocks, shape (frequencies, groups).
    """

    def block_gradient(f: HostArray) -> HostArray:
        bound = gram_values(f[None], steps=steps)
        return np.asarray(gradients.of_fixed_steps(f[None], bound, steps=steps)[0])

    size = float(crossing.to_host(value))
    if not 0 < size < math.inf:
        return _of_known(a, size)
    which, group = divmod(int(np.argmax(crossing.to_host(norms))), geometry.groups)
    points = circle_points(geometry)
    index = np.unravel_index(which, grid_shape(points, half=not dtypes.is_complex(a.dtype)))
    turns = np.asarray([int(j) / n for j, n in zip(index, points, strict=True)])
    place = Place(turns, group, on_grid=True)
    found = _of_symbol(scaled_on_host(a), geometry, place, block_gradient, rtol=0.0)
    return crossing.from_host(found, dtype=gradient_dtype(a), like=a)


def _of_known(a: Array, size: float) -> Array:
    """Return the gradient of a norm known at sight: 0 for a norm of 0, NaN for NaN and inf."""
    xp = libraries.namespace(a)
    known = xp.zeros_like(floating(a)) + (0.0 if size == 0 else math.nan)
    return xp.astype(known, gradient_dtype(a), copy=False)


def scaled_on_host(a: Array) -> HostArray:
    """Return the kernel in double precision, scaled.

    A gradient of a norm does not see the scale.
    """
    host = crossing.host_array(a)
    host = host.astype(np.complex128 if np.iscomplexobj(host) else np.float64)
    parts = np.abs(host.real), np.abs(host.imag)
    return np.asarray(host * 2.0 ** -min(max(math.frexp(float(np.max(parts)))[1], -1022), 1022))


def _mean_pair(f: HostArray, rtol: float) -> HostArray:
    """Return the gradient of the norm of one block."""
    u, v = ascent.top_pair(np.asarray(f, dtype=np.complex128))
    norm = np.asarray([abs(np.vdot(u, f @ v))])
    return np.asarray(gradients.of_norm(f[None], norm, rtol=rtol)[0])


def _of_symbol(
    kernel: HostArray,
    geometry: ConvGeometry,
    place: Place,
    block_gradient: Callable[[HostArray], HostArray],
    *,
    rtol: float,
) -> HostArray:
    """Return exp(-i q . theta) J on the taps of a symbol whose channels are phases."""
    _, c_in, *kernel_size = kernel.shape
    stride = undilated_stride(geometry.stride, geometry.dilation)
    blocks = np.ascontiguousarray(taps_of(kernel, geometry.groups))
    count, groups, p, _ = blocks.shape
    numbers = np.arange(1, count + 1, dtype=np.int64).reshape(count, 1, 1, 1)
    # which tap stands at each position and phase; 0 for none
    where, offsets = polyphase(numbers, tuple(kernel_size), stride)
    taps, _ = polyphase(blocks[:, place.group, None], tuple(kernel_size), stride)
    taps, where = taps[:, 0], where[:, 0, 0]
    assert place.turns is not None
    turns = place.turns
    if not place.on_grid:
        # an error in the frequency is one of first order in the gradient
        rounds = limits.PEAK_ROUNDS[rtol >= limits.LOOSE_PEAK]
        turns = ascent.climb(taps, offsets, turns, rounds=rounds)
    phases = np.exp(2j * math.pi * (offsets @ turns))
    j = block_gradient(np.tensordot(phases, taps, axes=1))
    by_position = np.conj(phases)[:, None, None] * j
    by_position = by_position if np.iscomplexobj(kernel) else by_position.real
    by_phase = by_position.reshape(len(offsets), p, -1, c_in).transpose(0, 2, 1, 3)
    result = np.zeros((groups, p, c_in, count), dtype=kernel.dtype)
    present = where > 0
    result[place.group][..., where[present] - 1] = by_phase[present].transpose(1, 2, 0)
    return result.reshape(kernel.shape)


def _of_operator(kernel: HostArray, geometry: ConvGeometry, *, rtol: float) -> HostArray:
    """Return the gradient from top singular vectors of the operator.

    Of the supremum if it is large.
    """
    c_out, c_in, *kernel_size = kernel.shape
    groups, axes = geometry.groups, geometry.axes()
    # where to start from, which need not be sharp
    start = max(rtol, limits.START_RTOL)
    symbol, best = every_size.supremum(
        np.ascontiguousarray(taps_of(kernel, groups)),
        tuple(kernel_size),
        geometry.stride,
        geometry.dilation,
        rtol=start,
    )
    if any(a.size > window_size(axes, c_in) for a in axes):
        place = Place(best.turns, best.block)
        return _of_symbol(kernel, geometry, place, lambda f: _mean_pair(f, rtol), rtol=rtol)
    parts = kernel.reshape(groups, c_out // groups, c_in, *kernel_size)
    every = range(groups) if groups <= limits.GRADIENT_GROUPS else [best.block]
    waves = {group: Wave.at(symbol, dataclasses.replace(best, block=group)) for group in every}
    found = {g: _of_correlation(parts[g], axes, waves[g], rtol=rtol) for g in every}
    chosen = max(every, key=lambda group: found[group][0])
    result = np.zeros_like(parts)
    result[chosen] = found[chosen][1]
    return result.reshape(kernel.shape)


def _of_correlation(
    kernel: HostArray, axes: Sequence[Axis], wave: Wave, *, rtol: float
) -> tuple[float, HostArray]:
    """Return ||T x|| / ||x|| and its gradient by a group's kernel, at the top right vector x."""
    x, y, _ = top_vectors(kernel, axes, wave, groups=1, rtol=rtol**2)
    size_x, size_y = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    if not (size_x > 0 and size_y > 0):
        return 0.0, np.zeros_like(kernel)
    read = patches(x / size_x, axes, 1)[0]
    correlation = (y / size_y).reshape(kernel.shape[0], -1) @ read.conj().T
    return size_y / size_x, np.asarray(correlation.reshape(kernel.shape))
