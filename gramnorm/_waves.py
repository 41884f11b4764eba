"""Waves through a convolution, followed while its kernel changes a little at a time.

A wave x[i] = v[:, i mod s] exp(i theta . i) of stride s leaves a convolution with dilation d as

    u exp(i theta . s o),   u = F(theta) v = sum_k exp(i theta . d k) K_k v[:, d k mod s],

and with t_k = exp(i theta . d k) u^H K_k v[:, d k mod s] of unit u, v the number

    |sum_k exp(i delta . d k) t_k| = |u^H F(theta + delta) v|

is at most the norm, for every delta: a few terms say how high the symbol is about theta.  At
the points of a grid blocks of them are kept (`_blocks`).  From those of them that are the highest
about them, and from the best of the last time, theta climbs by what is sure to gain or by up to
eight times that, if it gains more (docs/theory.md, Lemma 31).
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from gramnorm import _blocks
from gramnorm._arrays import crossing, dtypes, libraries, linalg
from gramnorm._arrays.types import Array, HostFloats, HostInts, HostNumbers
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._conv.symbol import taps_of

_PEAKS = 3
"""Waves of the grid from which frequencies climb."""

_BLOCK = 2
"""Vectors at a point: where singular values cross, the second becomes the first."""

_PER_AXIS = {1: 64, 2: 12, 3: 6}
"""Most points of the grid on each of so many axes: three times as many as taps, up to this. With
twice as many, peaks between them were lost while Adam trained: 2 % of the norm."""

_FRACTIONS = np.asarray([0.0, -0.5, -0.25, 0.25, 0.5])
"""Places about a point of the grid, over its spacing, at which the symbol is looked at."""


class Tables(NamedTuple):
    """What is known of a geometry before its kernel.

    Attributes
    ----------
    places : host floats, shape (T, axes)
        The sample d k that tap k reads.
    phases : host ints, shape (T,)
        Which sample within a stride that is.
    grid : host floats, shape (G, axes)
        Frequencies; of a real kernel, one of theta and -theta, which have the same norm.
    neighbours : host ints, shape (G, N)
        The points next to each point, and itself.
    about : host floats, shape (O, axes)
        Steps from a point to places in its cell.
    """

    places: HostFloats
    phases: HostInts
    grid: HostFloats
    neighbours: HostInts
    about: HostFloats


@functools.lru_cache(maxsize=64)
def tables(
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    is_complex: bool,
) -> Tables:
    """Return the tables of a correlation.

    The norm of F has the period 2 pi / lcm(s, d) on an axis: a wave that turns once more within a
    stride is another v, and one that does so between taps is the same.
    """
    offsets = np.asarray(list(itertools.product(*map(range, kernel_size))), dtype=np.int64)
    places = offsets.reshape(-1, len(kernel_size)) * np.asarray(dilation, dtype=np.int64)
    phases = np.ravel_multi_index((places % np.asarray(stride)).T, stride)
    counts, spacing = [], []
    for k, s, d in zip(kernel_size, stride, dilation, strict=True):
        blocks = -(-k // (s // math.gcd(s, d)))
        counts.append(1 if blocks == 1 else min(3 * blocks, _PER_AXIS[len(kernel_size)]))
        spacing.append(2 * math.pi / math.lcm(s, d) / counts[-1])
    points, neighbours = _half(counts, whole=is_complex)
    some = [_FRACTIONS if n > 1 else _FRACTIONS[:1] for n in counts]
    about = np.stack(np.meshgrid(*some, indexing="ij"), axis=-1).reshape(-1, len(counts))
    steps = np.asarray(spacing, dtype=np.float64)
    return Tables(places.astype(np.float64), phases, points * steps, neighbours, about * steps)


def _half(counts: list[int], *, whole: bool) -> tuple[HostInts, HostInts]:
    """Return points of a grid on a torus, one of j and -j unless `whole`, and their neighbours."""
    every = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), axis=-1)
    every = every.reshape(-1, len(counts))
    number = np.arange(len(every))
    if not whole:
        number = np.minimum(number, np.ravel_multi_index((-every % counts).T, counts))
    chosen, number = np.unique(number, return_inverse=True)
    moves = np.asarray(list(itertools.product(*((-1, 0, 1) if n > 1 else (0,) for n in counts))))
    beside = (every[chosen][:, None, :] + moves[None, :, :]) % counts
    return every[chosen], number[np.ravel_multi_index(np.moveaxis(beside, -1, 0), counts)]


class Waves:
    """F(theta) and its adjoint at W waves, by the taps of all groups.

    Attributes
    ----------
    taps : array, shape (T, groups, p, q)
        The kernel, a constant.
    root : 0-d array
        Products are multiplied by it twice, so that they have entries of size about 1.
    shape : tuple of int
        That of the channels of a wave.
    vectors : int
        How many there are at all points of the grid.
    """

    def __init__(self, a: Array, geometry: ConvGeometry, root: Array) -> None:
        xp = libraries.namespace(a)
        taps = taps_of(a, geometry.groups)
        self.taps = xp.reshape(xp.reshape(taps, (-1,)), taps.shape)  # stored in this order
        self.root = root
        self.tables = tables_of(geometry, dtypes.is_complex(a.dtype))
        self.count = math.prod(geometry.stride)
        self.shape: tuple[int, ...] = (int(a.shape[1]) * geometry.groups, *geometry.stride)
        self.vectors = len(self.tables.grid) * min(_BLOCK, math.prod(self.shape))

    def turns(self, theta: Array) -> Array:
        """Return exp(i theta . d k), shape (T, W)."""
        xp = libraries.namespace(theta)
        places = crossing.from_host(self.tables.places, dtype=theta.dtype, like=theta)
        angle = linalg.matmul(places, xp.matrix_transpose(theta))
        return xp.exp(1j * xp.astype(angle, dtypes.complex_dtype(theta.dtype)))

    def constants(self, angles: HostFloats) -> Array:
        """Return exp(i angles . d k), shape (T, number of angles)."""
        kind = dtypes.complex_dtype(self.root.dtype)
        values = np.exp(1j * (self.tables.places @ angles.T))
        return crossing.from_host(values, dtype=kind, like=self.root)

    def read(self, v: Array) -> Array:
        """Return v[:, d k mod s] for all taps, shape (T, groups, q, W)."""
        xp = libraries.namespace(v)
        groups, q = int(self.taps.shape[1]), int(self.taps.shape[3])
        parts = xp.reshape(v, (v.shape[0], groups, q, self.count))
        return crossing.select(xp.permute_dims(parts, (3, 1, 2, 0)), self.tables.phases)

    def images(self, taps: Array, v: Array) -> Array:
        """Return K_k v[:, d k mod s] for all taps, shape (T, groups, p, W)."""
        return self._times(taps, self.read(v))

    def parts(self, u: Array) -> Array:
        """Return K_k^H u for all taps, shape (T, groups, q, W)."""
        return self._times(linalg.adjoint(self.taps), u[None, ...])

    def gathered(self, parts: Array, turns: Array) -> Array:
        """Return F^H u of these parts, in the shape of inputs."""
        xp = libraries.namespace(parts)
        parts = parts * xp.conj(turns)[:, None, None, :]
        phases = self.tables.phases
        if self.count == 1:
            summed = xp.sum(parts, axis=0, keepdims=True)
        else:  # of several samples a stride apart, one tap reads the first
            table = (phases[None, :] == np.arange(self.count)[:, None]).astype(np.float64)
            moved = crossing.from_host(table, dtype=parts.dtype, like=parts)
            rows = linalg.matmul(moved, xp.reshape(parts, (parts.shape[0], -1)))
            summed = xp.reshape(rows, (self.count, *parts.shape[1:]))
        return xp.reshape(xp.permute_dims(summed, (3, 1, 2, 0)), (turns.shape[-1], *self.shape))

    def _times(self, taps: Array, vectors: Array) -> Array:
        """Return products with some columns, real matrices with both parts of these."""
        xp = libraries.namespace(taps)
        if dtypes.is_complex(taps.dtype):
            root = xp.astype(self.root, taps.dtype)
            return root * linalg.matmul(taps, root * vectors)
        width = vectors.shape[-1]
        parts = xp.concat(dtypes.components(vectors), axis=-1)
        both = self.root * linalg.matmul(taps, self.root * parts)
        return linalg.complex_of(both[..., :width], both[..., width:])


def tables_of(geometry: ConvGeometry, is_complex: bool) -> Tables:
    """Return the tables of the correlation that a geometry is, or is the transpose of."""
    return tables(geometry.kernel_size, geometry.stride, geometry.dilation, is_complex)


class Found(NamedTuple):
    """Where waves have arrived: theta, turns, unit u and v, and u^H F(theta) v."""

    theta: Array
    turns: Array
    u: Array
    v: Array
    value: Array


def followed(theta: Array, v: Array, waves: Waves, *, steps: int) -> tuple[Found, Array]:
    """Return the highest wave, and the vectors of the next time: its own and those of the grid."""
    xp = libraries.namespace(v)
    first, grid = v[:1, ...], v[1:, ...]
    if steps:
        terms, top, grid = on_grid(grid, waves, steps=steps)
        which, delta = _peaks(terms, waves)
        points = crossing.from_host(waves.tables.grid, dtype=theta.dtype, like=theta)
        theta = xp.concat([theta[None, :], xp.take(points, which, axis=0) + delta], axis=0)
        found = climbed(theta, xp.concat([first, xp.take(top, which, axis=0)]), waves, steps=steps)
    else:
        found = climbed(theta[None, :], first, waves, steps=0)
    best = xp.argmax(xp.abs(found.value), keepdims=True)
    axes = (0, 1, 2, 0, 0)
    theta, turns, u, v, value = (xp.take(x, best, axis=n) for x, n in zip(found, axes, strict=True))
    height = xp.abs(value)
    u = u * (value / xp.astype(_blocks.positive(height), value.dtype))
    return Found(theta, turns, u, v, height), xp.concat([v, grid], axis=0)


class _OnGrid:
    """F at the points of the grid, for rows of shape (points, vectors, n)."""

    def __init__(self, waves: Waves) -> None:
        self.waves = waves
        self.turns = waves.constants(waves.tables.grid)

    def first(self, v: Array) -> Array:
        """Return F v of rows."""
        xp = libraries.namespace(v)
        turns = self._repeated(v.shape[1])
        shaped = xp.reshape(v, (-1, *self.waves.shape))
        y = summed(self.waves.images(self.waves.taps, shaped), turns)
        y = xp.reshape(y, (y.shape[0] * y.shape[1], v.shape[0], v.shape[1]))
        return xp.permute_dims(y, (1, 2, 0))

    def back(self, u: Array) -> Array:
        """Return F^H u of rows."""
        xp = libraries.namespace(u)
        groups, p = self.waves.taps.shape[1:3]
        columns = xp.reshape(xp.permute_dims(u, (2, 0, 1)), (groups, p, u.shape[0] * u.shape[1]))
        v = self.waves.gathered(self.waves.parts(columns), self._repeated(u.shape[1]))
        return xp.reshape(v, (u.shape[0], u.shape[1], -1))

    def _repeated(self, count: int) -> Array:
        """Return the turns of all columns."""
        xp = libraries.namespace(self.turns)
        every = xp.broadcast_to(self.turns[:, :, None], (*self.turns.shape, count))
        return xp.reshape(every, (self.turns.shape[0], -1))


def on_grid(v: Array, waves: Waves, *, steps: int) -> tuple[Array, Array, Array]:
    """Take steps with a block at each point; return terms, the largest vectors, and the blocks."""
    xp = libraries.namespace(v)
    operator = _OnGrid(waves)
    points = len(waves.tables.grid)
    rows = xp.reshape(v, (points, v.shape[0] // points, -1))
    _, u, top, rows = _blocks.stepped(rows, operator, steps=steps)
    top = xp.reshape(top, (points, *waves.shape))
    groups, p = waves.taps.shape[1:3]
    u = xp.reshape(xp.permute_dims(u[:, 0, :], (1, 0)), (groups, p, points))
    terms = _terms(u, waves.images(waves.taps, top)) * operator.turns
    return terms, top, xp.reshape(rows, v.shape)


def _peaks(terms: Array, waves: Waves) -> tuple[Array, Array]:
    """Return which points of the grid are the highest among their neighbours, and steps to climb.

    How high is the largest modulus of sum_k exp(i delta . d k) t_k over places in the cell.
    """
    xp = libraries.namespace(terms)
    about = xp.matrix_transpose(waves.constants(waves.tables.about))
    heights = xp.abs(linalg.matmul(about, terms))
    height = xp.max(heights, axis=0)
    table = waves.tables.neighbours
    beside = xp.take(height, crossing.indices(table.reshape(-1), like=height))
    is_peak = height >= xp.max(xp.reshape(beside, table.shape), axis=-1)
    order = xp.argsort(xp.where(is_peak, -height, 2 * xp.max(height) - height), stable=True)
    which = order[: min(_PEAKS, int(order.shape[0]))]
    steps = crossing.from_host(waves.tables.about, dtype=height.dtype, like=height)
    return which, xp.take(steps, xp.take(xp.argmax(heights, axis=0), which), axis=0)


def climbed(theta: Array, v: Array, waves: Waves, *, steps: int) -> Found:
    """Take steps of power iteration between which the frequencies climb."""
    xp = libraries.namespace(v)
    turns = waves.turns(theta)
    places = crossing.from_host(waves.tables.places, dtype=theta.dtype, like=theta)
    images = waves.images(waves.taps, v)
    u = unit(summed(images, turns), (0, 1))
    terms = _terms(u, images) * turns
    for step in range(steps):
        if step:
            images = waves.images(waves.taps, v)
            terms = _terms(unit(summed(images, turns), (0, 1)), images) * turns
        delta, factor, _ = climb(terms, places)
        theta, turns = theta + delta, turns * factor
        u = unit(summed(images, turns), (0, 1))
        parts = waves.parts(u)
        v = unit(waves.gathered(parts, turns), tuple(range(1, v.ndim)), otherwise=v)
        delta, factor, terms = climb(_terms(parts, waves.read(v)) * turns, places)
        theta, turns = theta + delta, turns * factor
    return Found(theta, turns, u, v, xp.sum(terms, axis=0))


def climb(terms: Array, places: Array) -> tuple[Array, Array, Array]:
    """Return steps of frequencies that do not lower |sum_k terms_k exp(i step . (d k))|.

    With g the gradient and c_k the places from their mean, the second derivatives along the axes
    (A of them) are below L_a = A sum |terms_k| c_ka^2, so that g_a / L_a gains g_a^2 / 2 L_a; of
    that and twice, four and eight times as much the best is taken.  Also the factors of the turns,
    and the terms times these.
    """
    xp = libraries.namespace(terms)
    sizes = xp.abs(terms)[..., None]
    at = places[:, None, :]
    mean = xp.sum(sizes * at, axis=0) / _blocks.positive(xp.sum(sizes, axis=0))
    slope = -xp.sum(xp.imag(terms)[..., None] * (at - mean), axis=0)
    curvature = places.shape[1] * xp.sum(sizes * (at - mean) ** 2, axis=0)
    delta = slope / _blocks.positive(curvature)
    angle = linalg.matmul(places, xp.matrix_transpose(delta))
    factor = xp.exp(1j * xp.astype(angle, terms.dtype))
    best = (delta, factor, terms * factor)
    height = xp.abs(xp.sum(best[2], axis=0))
    for _ in range(3):
        delta, factor = 2 * delta, factor * factor
        moved = terms * factor
        other = xp.abs(xp.sum(moved, axis=0))
        more = other > height
        height = xp.where(more, other, height)
        pairs = zip((more[:, None], more, more), (delta, factor, moved), best, strict=True)
        best = tuple(xp.where(condition, new, old) for condition, new, old in pairs)
    return best


def grid_start(a: HostNumbers, geometry: ConvGeometry) -> HostNumbers:
    """Return vectors of waves at the points of the grid after some steps from random ones."""
    waves = Waves(a, geometry, np.asarray(1.0))
    shape = (waves.vectors, *waves.shape)
    start = np.random.default_rng(0).standard_normal(shape) + 0j
    return np.asarray(on_grid(start, waves, steps=10)[2])


def summed(images: Array, turns: Array) -> Array:
    """Return F v, shape (groups, p, W)."""
    xp = libraries.namespace(images)
    return xp.sum(images * turns[:, None, None, :], axis=0)


def _terms(x: Array, y: Array) -> Array:
    """Return the inner products of channels, shape (T, W)."""
    xp = libraries.namespace(y)
    return xp.sum(xp.conj(x) * y, axis=(1, 2))


def unit(x: Array, axes: tuple[int, ...], otherwise: Array | None = None) -> Array:
    """Return vectors along these axes over their lengths; zero, or others, where they are zero."""
    xp = libraries.namespace(x)
    squares = sum(xp.sum(part * part, axis=axes, keepdims=True) for part in dtypes.components(x))
    found = x * xp.astype(1 / _blocks.positive(xp.sqrt(squares)), x.dtype)
    return found if otherwise is None else xp.where(squares > 0, found, otherwise)
