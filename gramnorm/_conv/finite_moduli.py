"""Blurs and other kernels whose moduli have the norm of the symbol, continued by their samples.

For |T|, the correlation with |K_k| and the same continuation, and any w > 0 (docs/theory.md,
Theorem 24)

    ||T||^2 <= || |T| ||^2 <= max_j (|T|^T |T| w)_j / w_j ,

which is sharp for T >= 0.  A quotient knows w within the reach of j only.  So where w repeats itself
along an axis more samples of the kind make no other quotients: the bound holds at every larger size
(docs/theory.md, Lemma 28), and no image is too large.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from gramnorm._arrays import crossing, limits
from gramnorm._arrays.types import Array, HostFloats, HostInts, HostNumbers
from gramnorm._conv.ascent import top_pair
from gramnorm._conv.finite_ends import corners
from gramnorm._conv.geometry import Axis, correlate
from gramnorm._matrix import non_negative
from gramnorm._matrix.non_negative import NonNegative
from gramnorm._results import Bounds, of_direct_sum
from gramnorm._rigour import sums


def bracket(
    taps: Array, axes: Sequence[Axis], turns: HostFloats, supremum: float, *, rtol: float
) -> Bounds[float]:
    """Bracket the norm of the operator with taps (T, groups, c_out, c_in) by its moduli.

    Inf where these are too large: `supremum` bounds the symbol, attained about `turns`.  The cost
    is pairs of products.
    """
    nothing = Bounds(0.0, math.inf)
    if any(a.mode == "circular" for a in axes):  # the ends meet
        return nothing
    host = crossing.host_array(taps)
    # before moduli are rounded, where the device has no more than single precision
    host = host.astype(np.complex128 if np.iscomplexobj(host) else np.float64)
    if _size_at_zero(host, axes) > (1 + rtol) * supremum:
        return nothing
    host = np.unique(host, axis=1)
    small = [_shortened(a, 2 * _ends(a) + 2 * _period(a) + limits.MODULI_MIDDLE) for a in axes]
    if host.size * math.prod(a.size for a in small) > limits.MODULI_WORK:
        return nothing
    return of_direct_sum(
        _bracket_of(host[:, g], axes, small, turns, rtol=rtol) for g in range(host.shape[1])
    )


def _size_at_zero(taps: HostNumbers, axes: Sequence[Axis]) -> float:
    """Return about the largest norm of the symbol of the moduli, which is at zero, or less."""
    tap = np.indices([a.taps for a in axes]).reshape(len(axes), -1).T
    phase = tap * [a.dilation for a in axes] % [a.stride for a in axes]
    _, which = np.unique(phase, axis=0, return_inverse=True)
    sums_by_phase = np.zeros((int(np.max(which)) + 1, *taps.shape[1:]))
    np.add.at(sums_by_phase, which.reshape(-1), np.abs(taps))
    m = np.concatenate([*sums_by_phase], axis=-1)
    w = np.ones((*m.shape[:-2], m.shape[-1], 1))
    for _ in range(limits.FIRST_STEPS):
        w = m.mT @ (m @ w)
        w /= np.maximum(np.max(w, axis=-2, keepdims=True), 1e-300)
    return float(np.max(np.linalg.norm(m @ w, axis=-2) / np.linalg.norm(w, axis=-2)))


def _bracket_of(
    taps: HostNumbers,
    axes: Sequence[Axis],
    small: list[Axis],
    turns: HostFloats,
    *,
    rtol: float,
) -> Bounds[float]:
    """Bracket the norm with the taps (T, c_out, c_in) of a group; `small` are shortened axes."""
    w, cost = _leading(taps, small, rtol=rtol)
    if small == list(axes):
        lower = _attained(taps, axes, w, turns)
    else:  # by vectors that need not repeat themselves
        lower, most = 0.0, min(a.size for a in small)
        for corner in corners(taps[:, None], axes, most):
            found, more = _leading(taps, corner, rtol=rtol)
            lower, cost = max(lower, _attained(taps, corner, found, turns)), cost + more
    longer = []
    for number, (axis, short) in enumerate(zip(axes, small, strict=True), 1):
        more = short.size + 2 * axis.reach + _period(axis)
        longer.append(_shortened(axis, more))
        w = np.take(w, _repeating(w, number, short, longer[-1].size), axis=number)
    m = _moduli(taps, longer)
    upper = m.upper(w.reshape(-1), m.images(w.reshape(-1))[1])
    return Bounds(lower, upper, cost + 1)


def _ends(axis: Axis) -> int:
    """Return samples that hold all which are repeated at one end, and what is read with these.

    Samples that no output reads, where a kernel ends in zeros, are no middle either.
    """
    last = axis.stride * (axis.outputs - 1) + axis.reach - axis.before
    return max(abs(axis.before), abs(last - (axis.size - 1))) + axis.reach + 1


def _period(axis: Axis) -> int:
    """Return after how many samples a vector may repeat itself, class by class of the dilation."""
    return math.lcm(axis.stride, axis.dilation)


def _shortened(axis: Axis, size: int) -> Axis:
    """Return the axis without samples of its middle, of `size` or a few more, if it is longer."""
    missing = max(axis.size - size, 0) // _period(axis) * _period(axis)
    n, m = axis.size - missing, axis.outputs - missing // axis.stride
    return dataclasses.replace(axis, size=n, outputs=m) if missing else axis


def _repeating(w: HostFloats, number: int, axis: Axis, size: int) -> HostInts:
    """Return the samples of an axis with a period where `w` is smallest, hence level, repeated."""
    if size == axis.size:
        return np.arange(size)
    period = _period(axis)
    profile = np.sum(w, axis=tuple(a for a in range(w.ndim) if a != number))
    blocks = np.convolve(profile, np.ones(period), mode="valid")[_ends(axis) : -_ends(axis)]
    start = _ends(axis) + int(np.argmin(blocks))
    i, more = np.arange(size) - start, size - axis.size
    return start + np.where((i >= 0) & (i < more), i % period, i - np.where(i < 0, 0, more))


def _leading(taps: HostNumbers, axes: Sequence[Axis], *, rtol: float) -> tuple[HostFloats, int]:
    """Return a positive vector, about the leading one of the moduli, and its cost."""
    m = _moduli(taps, axes)
    _, w, cost = non_negative.leading(m, np.ones(m.side), rtol=rtol / 4)
    return w.reshape(taps.shape[2], *(a.size for a in axes)), cost


def _moduli(taps: HostNumbers, axes: Sequence[Axis]) -> NonNegative:
    """Return the correlation with the moduli of the taps, and the same continuation."""
    kernels, (count, c_out, c_in) = np.abs(taps).astype(np.float64), taps.shape
    continued = [_continuation(a) for a in axes]
    reads = [
        tuple(
            slice(a.dilation * k, a.dilation * k + a.stride * (a.outputs - 1) + 1, a.stride)
            for a, k in zip(axes, place, strict=True)
        )
        for place in np.ndindex(*(a.taps for a in axes))
    ]

    def forward(w: HostFloats) -> HostFloats:
        x = w.reshape(c_in, *(a.size for a in axes))
        for number, e in enumerate(continued, 1):
            x = np.moveaxis(np.tensordot(e, x, axes=(1, number)), 0, number)
        y = sum(np.tensordot(k, x[:, *r], axes=1) for k, r in zip(kernels, reads, strict=True))
        return np.asarray(y).reshape(-1)

    def backward(v: HostFloats) -> HostFloats:
        y = v.reshape(c_out, *(a.outputs for a in axes))
        x = np.zeros((c_in, *(len(e) for e in continued)))
        for k, r in zip(kernels, reads, strict=True):
            x[:, *r] += np.tensordot(k.T, y, axes=1)
        for number, e in enumerate(continued, 1):
            x = np.moveaxis(np.tensordot(e.T, x, axes=(1, number)), 0, number)
        return x.reshape(-1)

    # a term of a column passes through a sum over the taps and one over the copies per axis
    in_column = count * c_out * math.prod(a.copies() for a in axes) + len(axes)
    side = c_in * math.prod(a.size for a in axes)
    return NonNegative(forward, backward, count * c_in, in_column, side, side * count * c_out)


def _continuation(axis: Axis) -> HostFloats:
    """Return the 0/1 matrix that takes samples to what taps read, one position after the other."""
    source, n = axis.sources(), axis.size
    tap, output = np.ogrid[: axis.taps, : axis.outputs]
    read = np.full(axis.stride * (axis.outputs - 1) + axis.reach + 1, -1)
    read[axis.stride * output + axis.dilation * tap] = source
    return np.asarray(read[:, None] == np.arange(n), dtype=np.float64)


def _attained(taps: HostNumbers, axes: Sequence[Axis], w: HostFloats, turns: HostFloats) -> float:
    """Return a lower bound on the norm by `w`, with the signs of a wave of angles 0 and pi."""
    sizes, is_complex = tuple(a.taps for a in axes), np.iscomplexobj(taps)
    flips = [
        -1.0 if round(2 * t) % 2 and a.stride == 1 else 1.0
        for a, t in zip(axes, turns, strict=True)
    ]
    _, v = top_pair(np.tensordot(_wave(flips, sizes).reshape(-1), taps, axes=1))
    v = np.where(v == 0, 1.0, v / np.maximum(np.abs(v), 1e-300))
    v = v if is_complex else np.where(v.real < 0, -1.0, 1.0)
    x = w * _wave(flips, w.shape[1:]) * v.reshape(-1, *(1 for _ in axes))
    kernel = taps.transpose(1, 2, 0).reshape(*taps.shape[1:], *sizes)
    copies = math.prod(a.copies() for a in axes)
    return sums.image_quotient(kernel, x, correlate(kernel, x, axes, 1), copies=copies)


def _wave(flips: Sequence[float], sizes: Sequence[int]) -> HostFloats:
    """Return the products of flip^i over the axes."""
    factors = [flip ** np.arange(n) for flip, n in zip(flips, sizes, strict=True)]
    return np.asarray(functools.reduce(np.multiply.outer, factors))
