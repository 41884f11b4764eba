"""Gradients of convolution norms by the kernel, on the host.

By Danskin's theorem only where the norm is attained matters.  With J the gradient of the norm of the symbol
F = sum_k K_k exp(i k . theta) at the maximising frequency, the gradient by a tap is exp(-i k . theta) J, its real
part for a real kernel.  At a finite size, with unit vectors u, v of the operator, it is the correlation of u with v:
sum_o u[o] v[s o + d k - before]^H.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from gramnorm._arrays.types import HostFloats
from gramnorm._conv import ascent, every_size
from gramnorm._conv.finite_lower import Wave, top_vectors, window_size
from gramnorm._conv.geometry import Axis, ConvGeometry, patches
from gramnorm._conv.symbol import polyphase
from gramnorm._matrix import gradients
from gramnorm._matrix.gram import gram_values

HostArray = npt.NDArray[np.inexact]

GROUPS = 16
"""Most groups whose vectors are all computed to find the largest."""


ROUNDS = 20
"""Of the ascent to the peak: an error in the frequency is one of first order in the gradient."""


@dataclasses.dataclass(frozen=True)
class Peak:
    """Where a symbol is largest: strides without dilation, turns, group.

    `exact` on a grid, where the turns are given; None for turns where no single frequency attains the norm.
    """

    stride: tuple[int, ...]
    turns: HostFloats | None
    group: int
    exact: bool


def of_norm(kernel: HostArray, geometry: ConvGeometry, peak: Peak, *, rtol: float) -> HostArray:
    """Return the gradient of the norm by the kernel (c_out, c_in / groups, *taps)."""
    if peak.turns is None:
        return _of_operator(kernel, geometry, peak, rtol=rtol)
    return _of_symbol(kernel, geometry.groups, peak, lambda f: _mean_pair(f, rtol))


def of_fixed_steps(
    kernel: HostArray, geometry: ConvGeometry, peak: Peak, *, steps: int
) -> HostArray:
    """Return the gradient of the fixed-step Gram bound of the block at the peak."""

    def slope(f: HostArray) -> HostArray:
        value = gram_values(f[None], steps=steps)
        return np.asarray(gradients.of_fixed_steps(f[None], value, steps=steps)[0])

    return _of_symbol(kernel, geometry.groups, peak, slope)


def _mean_pair(f: HostArray, rtol: float) -> HostArray:
    u, v = ascent.top_pair(np.asarray(f, dtype=np.complex128))
    norm = np.asarray([abs(np.vdot(u, f @ v))])
    return np.asarray(gradients.of_norm(f[None], norm, rtol=rtol)[0])


def _of_symbol(
    kernel: HostArray, groups: int, peak: Peak, slope: Callable[[HostArray], HostArray]
) -> HostArray:
    """Return exp(-i q . theta) J on the taps, for the symbol whose channels are phases of the input."""
    c_out, c_in, *kernel_size = kernel.shape
    count, p = math.prod(kernel_size), c_out // groups
    block = kernel.reshape(groups, p, c_in, count)[peak.group]
    numbers = np.arange(1, count + 1, dtype=np.int64).reshape(count, 1, 1, 1)
    # which tap stands at each position and phase; 0 for none
    where, offsets = polyphase(numbers, tuple(kernel_size), peak.stride)
    taps, _ = polyphase(
        np.ascontiguousarray(block.transpose(2, 0, 1))[:, None],
        tuple(kernel_size),
        peak.stride,
    )
    taps, where = taps[:, 0], where[:, 0, 0]
    assert peak.turns is not None
    turns = peak.turns
    if not peak.exact:
        turns = ascent.climb(taps, offsets, turns, rounds=ROUNDS)
    phases = np.exp(2j * math.pi * (offsets @ turns))
    j = slope(np.tensordot(phases, taps, axes=1))
    slopes = np.conj(phases)[:, None, None] * j
    slopes = slopes if np.iscomplexobj(kernel) else slopes.real
    slopes = slopes.reshape(len(offsets), p, -1, c_in).transpose(
        0, 2, 1, 3
    )  # by position and phase
    result = np.zeros((groups, p, c_in, count), dtype=kernel.dtype)
    present = where > 0
    result[peak.group][..., where[present] - 1] = slopes[present].transpose(1, 2, 0)
    return result.reshape(kernel.shape)


def _of_operator(
    kernel: HostArray, geometry: ConvGeometry, peak: Peak, *, rtol: float
) -> HostArray:
    """Return the gradient from the top singular vectors of the operator; of the supremum if it is large."""
    c_out, c_in, *kernel_size = kernel.shape
    groups, count = geometry.groups, math.prod(kernel_size)
    taps = np.ascontiguousarray(
        kernel.reshape(groups, c_out // groups, c_in, count).transpose(3, 0, 1, 2)
    )
    axes = geometry.axes()
    # where to start from, which need not be sharp
    start = max(rtol, 1e-2)
    symbol, best = every_size.supremum(
        taps, tuple(kernel_size), geometry.stride, geometry.dilation, rtol=start
    )
    if any(a.size > window_size(axes, c_in) for a in axes):
        at = dataclasses.replace(peak, turns=best.turns, group=best.block)
        return _of_symbol(kernel, groups, at, lambda f: _mean_pair(f, rtol))
    found: tuple[float, HostArray] = (-1.0, np.zeros(0))
    chosen = best.block
    for group in range(groups) if groups <= GROUPS else [best.block]:
        at_group = dataclasses.replace(best, block=group)
        wave = Wave.at(symbol, at_group)
        part = kernel.reshape(groups, c_out // groups, c_in, *kernel_size)[group]
        found_here = _outer(part, axes, wave, rtol=rtol)
        if found_here[0] > found[0]:
            found, chosen = found_here, group
    result = np.zeros((groups, *found[1].shape), dtype=kernel.dtype)
    result[chosen] = found[1]
    return result.reshape(kernel.shape)


def _outer(
    kernel: HostArray, axes: Sequence[Axis], wave: Wave, *, rtol: float
) -> tuple[float, HostArray]:
    """Return ||T x|| / ||x|| and its gradient by the kernel of one group, at the top right singular vector x."""
    x, y, _ = top_vectors(kernel, axes, wave, rtol=rtol**2)
    size_x, size_y = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    if not (size_x > 0 and size_y > 0):
        return 0.0, np.zeros_like(kernel)
    read = patches(x / size_x, axes, 1)[0]
    slopes = (y / size_y).reshape(kernel.shape[0], -1) @ read.conj().T
    return size_y / size_x, np.asarray(slopes.reshape(kernel.shape))
