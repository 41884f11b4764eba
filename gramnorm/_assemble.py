"""Convolutions of finite size as explicit matrices: exact for small ones, a window of large ones."""

from __future__ import annotations

import functools
import math

import numpy as np

from gramnorm import _xp
from gramnorm._typing import Array, HostInts, Namespace
from gramnorm.geometry import ConvGeometry

SIDE = 1024
"""Largest smaller side of an assembled matrix."""

ENTRIES = 2**23
"""Most entries of an assembled matrix, all groups together."""


def window(geometry: ConvGeometry, channels: tuple[int, int]) -> tuple[int, ...] | None:
    """Return an input window whose part of the operator may be assembled; None if even a sample's is too large.

    It is the whole input for a small operator, and is shortened along its longest axis otherwise.
    """
    assert geometry.input_shape is not None
    size = list(geometry.input_shape)
    while True:
        rows = math.prod(len(r) for _, r in _ranges(geometry, tuple(size)))
        sides = channels[0] * rows, channels[1] * math.prod(size)
        if min(sides) <= SIDE and sides[0] * sides[1] * geometry.groups <= ENTRIES:
            return tuple(size)
        longest = max(size)
        if longest == 1:
            return None
        size[size.index(longest)] = longest // 2 if longest > 64 else longest - 1


def matrix(taps: Array, geometry: ConvGeometry, size: tuple[int, ...], *, xp: Namespace) -> Array:
    """Return the columns of the operator that belong to a central input window, one matrix per group.

    A submatrix of the operator (all of it if `size` is the input's), so its norm bounds the norm of the
    operator from below.

    Parameters
    ----------
    taps : array, shape (T, groups, c_out / groups, c_in / groups)
        Kernel as one block of channels per tap and group.
    geometry : ConvGeometry
        With zero padding and an input size.
    size : tuple of int
        Samples of the window per axis.
    """
    ranges = _ranges(geometry, size)
    # which tap connects input i to output o along each axis; -1 for none
    links = [
        _links(inputs, outputs, lo=pad[0], dilation=d, taps=k)
        for (inputs, outputs), pad, d, k in zip(
            ranges, geometry.pads or (), geometry.dilation, geometry.kernel_size, strict=True
        )
    ]
    table = functools.reduce(_combine, zip(links, geometry.kernel_size, strict=True), None)
    assert table is not None
    rows, columns = table.shape
    count, groups, c_out, c_in = taps.shape
    index = np.where(table < 0, count, table).reshape(-1)  # slot `count` holds zeros
    padded = xp.concat([taps, xp.zeros_like(taps[:1, ...])], axis=0)
    entries = _xp.select(padded, index, xp=xp)
    entries = xp.reshape(entries, (rows, columns, groups, c_out, c_in))
    return xp.reshape(
        xp.permute_dims(entries, (2, 3, 0, 4, 1)), (groups, c_out * rows, c_in * columns)
    )


def _ranges(geometry: ConvGeometry, size: tuple[int, ...]) -> list[tuple[range, range]]:
    """Return per axis the inputs of a central window and the outputs that they touch."""
    assert geometry.input_shape is not None
    assert geometry.pads is not None
    result = []
    shape = zip(
        geometry.input_shape,
        size,
        geometry.output_shape(),
        geometry.pads,
        geometry.span,
        strict=True,
    )
    for n, part, m, (lo, _), reach in shape:
        start = (n - part) // 2
        outputs = range(max(0, start + lo - reach), min(m, start + part + lo))
        result.append((range(start, start + part), outputs))
    return result


def _links(inputs: range, outputs: range, *, lo: int, dilation: int, taps: int) -> HostInts:
    distance = np.asarray(inputs)[None, :] + lo - np.asarray(outputs)[:, None]
    tap = distance // dilation
    return np.where((distance % dilation == 0) & (tap >= 0) & (tap < taps), tap, -1)


def _combine(table: HostInts | None, axis: tuple[HostInts, int]) -> HostInts:
    link, taps = axis
    if table is None:
        return link
    both = table[:, None, :, None] * taps + link[None, :, None, :]
    both = np.where((table[:, None, :, None] < 0) | (link[None, :, None, :] < 0), -1, both)
    return both.reshape(table.shape[0] * link.shape[0], -1)
