"""From a kernel and a geometry to a bracket and its place, or to fixed-step bounds.

Which way a convolution goes depends on its size: every size and circles are searched over
frequencies, everything else at a finite size is `finite`.  Kernels are scaled first and their
borders of zeros cut off.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from gramnorm._arrays import autodiff, crossing, devices, dtypes, libraries, linalg
from gramnorm._arrays.types import Array, DType, HostFloats
from gramnorm._conv import circle, cosines, every_size, finite
from gramnorm._conv.cells import grid_points
from gramnorm._conv.geometry import Axis, ConvGeometry
from gramnorm._conv.gradients import Place
from gramnorm._conv.sampling import Maximum
from gramnorm._conv.symbol import Symbol, phases, polyphase, symbol_loss, taps_of
from gramnorm._matrix import fixed_steps
from gramnorm._results import Bounds, NormBracket, attainable, result_dtype, to_bracket
from gramnorm._rigour import scaling
from gramnorm._rigour.model import gram_units, working_dtype

Found = tuple[Bounds[float], Place]
"""Bounds in the scale of the taps, with the cost in blocks, and where the norm is attained."""


def bracket(a: Array, geometry: ConvGeometry, *, rtol: float) -> tuple[NormBracket, Place | None]:
    """Return the bracket of the norm and where it is attained; None if it is known at sight."""
    dtype, home = result_dtype(a), crossing.host_array(a)
    with libraries.plain_arithmetic(a), devices.beside(a):
        bounds, place = _bounds(home, geometry, rtol=attainable(rtol), dtype=dtype)
    if geometry.transposed and dtypes.is_complex(a.dtype) and place and place.frequency is not None:
        # the adjoint of a correlation with the conjugate kernel, which has the frequency -theta
        theta = place.frequency
        place = dataclasses.replace(place, frequency=np.where(theta == math.pi, theta, -theta))
    found = to_bracket(
        bounds,
        rtol=rtol,
        shape=(),
        dtype=dtype,
        like=a,
        frequency=None if place is None else place.frequency,
    )
    return found, place


def _bounds(
    a: Array, geometry: ConvGeometry, *, rtol: float, dtype: DType
) -> tuple[Bounds[HostFloats], Place | None]:
    """Bound the norm of a convolution by numbers that `dtype` represents."""
    xp = libraries.namespace(a)
    nothing: HostFloats = np.zeros(0)
    axes = None if geometry.input_shape is None else geometry.axes()
    if 0 in a.shape:
        return Bounds(np.zeros(1), np.zeros(1)), None
    block = (a.shape[0] // geometry.groups, int(a.shape[1]))
    count = math.prod(geometry.kernel_size)
    # of the Gram products, and of the sum over taps
    units = gram_units(block, complex=True) + 3.2 * (count + 4) * math.sqrt(count * min(block))
    work = working_dtype(a, units, rtol)
    copies = 1 if axes is None else math.prod(axis.copies() for axis in axes)
    scaled = scaling.normalise(
        xp.reshape(a, (1, a.shape[0], -1)), dtype=work, gain=math.sqrt(count * copies)
    )
    if not scaled.active.size:
        return Bounds(*scaling.restore(nothing, nothing, scaled, dtype=dtype)), None
    if axes is not None and 0 in [n for axis in axes for n in (axis.size, axis.outputs)]:
        return Bounds(np.zeros(1), np.zeros(1)), None
    aim = 0.95 * rtol  # the result is still to be rounded to the caller's type
    found, place = _chosen(xp.reshape(scaled.values, a.shape), geometry, axes, rtol=aim)
    bounds = np.asarray([found.lower]), np.asarray([found.upper])
    return Bounds(*scaling.restore(*bounds, scaled, dtype=dtype), found.cost), place


def _chosen(
    kernel: Array, geometry: ConvGeometry, axes: tuple[Axis, ...] | None, *, rtol: float
) -> Found:
    """Bound the norm by the method for the size.

    ====================================  ====================================================
    every size                            the supremum over all frequencies (`every_size`)
    circle, size divisible by the stride  the maximum over its frequencies (`circle`)
    symmetric padding, mirrored kernel    the maximum over those of cosines (`cosines`)
    any other size and padding            bounds of growing cost (`finite`)
    ====================================  ====================================================
    """
    kernel, first = _trimmed(kernel)
    kernel_size = tuple(int(k) for k in kernel.shape[2:])
    taps = taps_of(kernel, geometry.groups)
    with devices.no_new_shape(rare=kernel_size != geometry.kernel_size):
        if axes is None:
            return _at_every_size(taps, kernel_size, geometry, rtol=rtol)
        axes = tuple(
            dataclasses.replace(axis, taps=k, before=axis.before - axis.dilation * skipped)
            for axis, k, skipped in zip(axes, kernel_size, first, strict=True)
        )
        if all(axis.is_circle for axis in axes):
            return _on_circle(taps, axes, rtol=rtol)
        if cosines.diagonalise(taps, axes):
            return _on_cosines(taps, axes, rtol=rtol)
        return finite.bracket(taps, axes, rtol=rtol), Place()


def _trimmed(a: Array) -> tuple[Array, list[int]]:
    """Return the kernel without borders of zeros, and the taps cut off in front, per axis."""
    xp = libraries.namespace(a)
    present = crossing.to_host(xp.any(a != 0, axis=(0, 1))) != 0
    first = []
    for axis, places in enumerate(np.nonzero(present)):
        # no tap is left where all underflowed
        low, high = (int(np.min(places)), int(np.max(places)) + 1) if places.size else (0, 1)
        first.append(low)
        a = a[(slice(None),) * (2 + axis) + (slice(low, high), ...)]
    return a, first


def _at_every_size(
    taps: Array, kernel_size: tuple[int, ...], geometry: ConvGeometry, *, rtol: float
) -> Found:
    """Bound the supremum over all sizes."""
    stride, dilation = geometry.stride, geometry.dilation
    symbol, best = every_size.supremum(taps, kernel_size, stride, dilation, rtol=rtol)
    # s / g samples of a symbol without dilation are lcm(s, d) of the input
    frequency = 2 * math.pi * (_wrapped(best.turns) / np.lcm(stride, dilation))
    return _in_blocks(best, symbol), Place(best.turns, best.block, frequency=frequency)


def _on_circle(taps: Array, axes: tuple[Axis, ...], *, rtol: float) -> Found:
    """Bound the norm of a circular convolution whose stride divides the size."""
    stride, sizes, factors = zip(*(axis.circle() for axis in axes), strict=True)
    kernel_size = tuple(axis.taps for axis in axes)
    symbol = Symbol(*polyphase(taps, kernel_size, stride))
    points = tuple(n // s for n, s in zip(sizes, stride, strict=True))
    extent = tuple(-(-k // s) for k, s in zip(kernel_size, stride, strict=True))
    grid = circle.Grid.circle(points, half=symbol.real)
    best = circle.over_grid(symbol, grid, extent, rtol=rtol)
    turns = [
        round(turn * n) * factor % n / axis.size
        for turn, n, factor, axis in zip(best.turns.tolist(), points, factors, axes, strict=True)
    ]
    frequency = 2 * math.pi * _wrapped(np.asarray(turns))
    return _in_blocks(best, symbol), Place(best.turns, best.block, True, frequency)


def _on_cosines(taps: Array, axes: tuple[Axis, ...], *, rtol: float) -> Found:
    """Bound the norm of a correlation that is diagonal in cosines (Theorem 26)."""
    kernel_size = tuple(axis.taps for axis in axes)
    symbol = Symbol(*polyphase(taps, kernel_size, (1,) * len(axes)))
    best = circle.over_grid(symbol, cosines.grid(axes), kernel_size, rtol=rtol)
    frequency = cosines.frequency(best.turns, axes)
    return _in_blocks(best, symbol), Place(best.turns, best.block, True, frequency, is_even=True)


def _in_blocks(best: Maximum, symbol: Symbol) -> Bounds[float]:
    """Return the bounds with the cost in blocks of the symbol, one per group and frequency."""
    return dataclasses.replace(best.bounds, cost=best.bounds.cost * symbol.blocks)


def _wrapped(turns: HostFloats) -> HostFloats:
    """Return the same angles in (-1/2, 1/2] turns."""
    return np.asarray(turns - np.ceil(turns - 0.5))


def fixed_step_bounds(a: Array, geometry: ConvGeometry, *, steps: int) -> tuple[Array, Array]:
    """Return the largest fixed-step Gram bound on a circle, and all of them over a scale.

    No value reaches the host. All bounds have the shape (frequencies, groups).
    """
    xp = libraries.namespace(a)
    dtype = result_dtype(a)
    if 0 in a.shape:
        zero = xp.zeros((), dtype=dtype, device=libraries.device_of(a))
        return zero, zero
    with libraries.plain_arithmetic(a):
        flat = xp.reshape(a, (1, -1))
        # the taps are scaled before they are summed, so that no sum overflows
        values, peak = fixed_steps.scaled(flat)
        taps = taps_of(xp.reshape(values, a.shape), geometry.groups)
        blocks = _blocks_on_circle(taps, geometry, half=not dtypes.is_complex(a.dtype))
        norms = fixed_steps.norm_bound(blocks, steps=steps) + _fixed_step_error(taps, geometry)
        gain = math.sqrt(2.1 * flat.shape[1] * taps.shape[0])
        return fixed_steps.restored(xp.max(norms), peak, flat, gain=gain), norms


def _fixed_step_error(taps: Array, geometry: ConvGeometry) -> Array:
    """Bound the errors of the blocks of all groups and frequencies, scaling included (Lemma 9)."""
    xp = libraries.namespace(taps)
    count, groups, p, q = taps.shape
    relative, underflow = symbol_loss(count, len(geometry.kernel_size), taps.dtype)
    of_scaling, lost = fixed_steps.scaling_loss(taps)
    # sum_k |K_k| <= sqrt(T) (sum_k |K_k|^2)^(1/2) entrywise, and so in the Frobenius norm
    squares = autodiff.without_gradient(xp.permute_dims(taps, (1, 0, 2, 3)))
    squares = xp.reshape(squares, (groups, count, p * q))
    size = fixed_steps.frobenius_above(squares)
    return size * (1.001 * math.sqrt(count) * (relative + of_scaling)) + 1.001 * math.sqrt(
        2.0 * p * q
    ) * (underflow + count * lost)


def _blocks_on_circle(taps: Array, geometry: ConvGeometry, *, half: bool) -> Array:
    """Return the blocks at all frequencies of a circle, shape (frequencies, groups, p, q)."""
    xp = libraries.namespace(taps)
    stride = tuple(axis.circle()[0] for axis in geometry.axes())
    sizes = circle.circle_points(geometry)
    values, offsets = polyphase(taps, geometry.kernel_size, stride)
    points = grid_points(map(np.arange, circle.grid_shape(sizes, half=half)))
    weights = phases(offsets, points, np.asarray(sizes))
    work = dtypes.complex_dtype(dtypes.real_dtype(taps.dtype))
    moved = crossing.from_host(weights, dtype=work, like=taps)
    flat = xp.astype(xp.reshape(values, (values.shape[0], -1)), work, copy=False)
    return xp.reshape(linalg.matmul(moved, flat), (len(points), *values.shape[1:]))
