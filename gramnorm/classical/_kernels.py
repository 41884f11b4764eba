"""Methods of others for the norm of a convolution, as kernels: see `classical` for what they are.

A `Convolution` is a checked kernel with its geometry.  It scales the kernel, runs a method on it,
and carries the value back to the caller's library, rounded to the side that the value is on.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import crossing, dtypes, libraries, linalg
from gramnorm._arrays.types import Array, HostFloats, HostInts
from gramnorm._conv.circle import grid_shape
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._conv.sampling import chunks
from gramnorm._conv.symbol import Symbol, polyphase
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._matrix.choose import bracket_stack
from gramnorm._rescaling import phase_box, row_scales, strides_without_dilation
from gramnorm._results import attainable, result_dtype, upper_array
from gramnorm._rigour import scaling, sums
from gramnorm._rigour.model import precision_of, up, working_dtype

Side = Literal["upper bound", "lower bound", "exact", "estimate"]


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A kernel as it came, and the operator that it stands for."""

    kernel: Array
    geometry: ConvGeometry

    @classmethod
    def of(
        cls, kernel: Array, input_shape: int | Sequence[int] | None, **keywords: Any
    ) -> Convolution:
        """Check the arguments, with the keywords of `ConvGeometry.of`."""
        a = _validate.concrete_argument(kernel, name="kernel", instead="conv_gram_iteration")
        return cls(a, ConvGeometry.of(tuple(a.shape), input_shape, **keywords))

    def box(self) -> tuple[int, ...]:
        """Return the taps per axis once strides have become channels."""
        return phase_box(self.geometry.kernel_size, strides_without_dilation(self.geometry))

    def copies(self) -> int:
        """Bound how often the continued input holds the same sample."""
        if self.geometry.input_shape is None:
            return 1
        return math.prod(axis.copies() for axis in self.geometry.axes())

    def value(self, side: Side, method: Callable[..., float], *, in_float64: bool) -> Array:
        """Return what `method` makes of the scaled kernel, the caller's array, rounded to its side.

        A method whose own rounding is counted is run `in_float64` where the device has it; one that
        certifies nothing, or leaves that to `matrix_norm_bound`, gains nothing from a longer type
        than its own.
        """
        a, out = crossing.at_home(self.kernel), result_dtype(self.kernel)
        xp = libraries.namespace(a)
        if 0 in a.shape:
            return crossing.from_host(np.zeros(()), dtype=out, like=self.kernel)
        work = working_dtype(a, math.inf, 1.0) if in_float64 else result_dtype(a)
        gain = math.sqrt(math.prod(self.geometry.kernel_size) * self.copies())
        with libraries.plain_arithmetic(a):
            stack = xp.reshape(a, (1, a.shape[0], -1))
            scaled = scaling.normalise(stack, dtype=work, gain=gain)
            found: HostFloats = np.zeros(scaled.active.size)
            if scaled.active.size:
                found[0] = method(xp.reshape(scaled.values, a.shape), self)
            lower, upper = scaling.restore(found, found, scaled, dtype=out)
        if side == "upper bound":
            return upper_array(upper.reshape(()), dtype=out, like=self.kernel)
        value = lower
        if side in ("exact", "estimate") and scaled.active.size:  # to nearest, without a margin
            value = np.ldexp(found, scaled.exponents.astype(np.int64))
        return crossing.from_host(value.reshape(()), dtype=out, like=self.kernel)


def _taps(kernel: Array, conv: Convolution, strides: tuple[int, ...]) -> tuple[Array, HostInts]:
    """Return the taps of stride 1 as (T, groups, p, q), in the order of the box, and positions."""
    xp = libraries.namespace(kernel)
    groups = conv.geometry.groups
    taps = xp.reshape(kernel, (groups, kernel.shape[0] // groups, kernel.shape[1], -1))
    return polyphase(xp.permute_dims(taps, (3, 0, 1, 2)), conv.geometry.kernel_size, strides)


def _lattice_taps(kernel: Array, conv: Convolution) -> tuple[Array, HostInts]:
    """Return the taps of stride 1 for no size of the input in particular (Lemma 8)."""
    return _taps(kernel, conv, strides_without_dilation(conv.geometry))


def norm2toep(kernel: Array, conv: Convolution, *, steps: int) -> float:
    xp = libraries.namespace(kernel)
    taps, _ = _lattice_taps(kernel, conv)
    # F^T has the norms of F, and a smaller autocorrelation
    taps = xp.matrix_transpose(taps) if taps.shape[2] > taps.shape[3] else taps
    return _largest_scale(taps, conv.box(), steps=steps)


def aol(kernel: Array, conv: Convolution) -> float:
    xp = libraries.namespace(kernel)
    taps, _ = _lattice_taps(kernel, conv)
    return _largest_scale(xp.matrix_transpose(taps), conv.box(), steps=1)


def _largest_scale(taps: Array, box: tuple[int, ...], *, steps: int) -> float:
    """Return the largest tau of Theorem 15: X X^H <= diag(tau)^2 for X with these taps."""
    xp = libraries.namespace(taps)
    tau = row_scales(taps, box, steps=steps)
    present = xp.any(taps != 0, axis=(0, 3))  # rows of zeros have tau = 1
    return float(np.max(crossing.to_host(xp.where(present, tau, xp.zeros_like(tau)))))


def fantastic_four(kernel: Array, conv: Convolution, *, rtol: float | None) -> float:
    xp = libraries.namespace(kernel)
    taps, _ = _lattice_taps(kernel, conv)
    count, groups, p, q = taps.shape
    box = conv.box()
    form = xp.reshape(xp.permute_dims(taps, (1, 2, 3, 0)), (groups, p, q, *box))
    long = [a for a, k in enumerate(box) if k > 1]
    norms = []
    for rows in itertools.chain(*(itertools.combinations(long, n) for n in range(len(long) + 1))):
        columns = tuple(a for a in range(len(box)) if a not in rows)
        order = (0, 1, *(3 + a for a in rows), 2, *(3 + a for a in columns))
        height = p * math.prod(box[a] for a in rows)
        matrix = xp.reshape(xp.permute_dims(form, order), (groups, height, -1))
        norms.append(crossing.to_host(matrix_norm_bound(matrix, rtol=rtol)))
    return up(float(np.max(np.min(norms, axis=0))) * math.sqrt(count))


def lip_grid(kernel: Array, conv: Convolution, *, samples: int) -> float:
    """Bound the sums over the grid (Lemma 16); what the symbol errs by comes before the factor."""
    xp = libraries.namespace(kernel)
    symbol = Symbol(*_lattice_taps(kernel, conv))
    p, q = symbol.block_shape
    sizes = tuple(samples if k > 1 else 1 for k in conv.box())
    largest = np.zeros((symbol.blocks, q))
    for blocks in _on_grid(symbol, sizes):
        squares = sum(xp.sum(x * x, axis=1) for x in dtypes.components(blocks))
        squares = xp.reshape(squares, (-1, symbol.blocks, q))
        largest = np.maximum(largest, crossing.to_host(xp.max(squares, axis=0)))
    # sums of 2 p squares, each of which may underflow; those of q of them are taken on the host
    _, total = sums.enclosure(np.sum(largest, axis=1), p, q, precision_of(blocks.dtype))
    between = math.prod(n - k + 1 for n, k in zip(sizes, conv.box(), strict=True))
    factor = math.sqrt(math.prod(sizes) / between)
    return up((math.sqrt(float(np.max(total))) + symbol.error) * factor)


def _on_grid(symbol: Symbol, sizes: tuple[int, ...]) -> Iterator[Array]:
    """Yield blocks (frequencies * groups, p, q) at 2 pi j / sizes; half of them if real."""
    ranges = [np.arange(n) for n in grid_shape(sizes, half=symbol.real)]
    points = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(sizes))
    for part in chunks(np.arange(len(points)), symbol):
        yield symbol.at(points[part], np.asarray(sizes))


def on_circle(kernel: Array, conv: Convolution) -> float:
    strides, sizes, _ = zip(*(axis.circle() for axis in conv.geometry.axes()), strict=True)
    symbol = Symbol(*_taps(kernel, conv, strides))
    points = tuple(n // s for n, s in zip(sizes, strides, strict=True))
    return max(_largest_singular_value(blocks) for blocks in _on_grid(symbol, points))


def _largest_singular_value(blocks: Array) -> float:
    """Return the largest norm of matrices up to rounding; from above if the library gives none."""
    found = linalg.largest_singular_value_or_none(blocks)
    if found is not None:
        return found
    real = dtypes.real_dtype(blocks.dtype)
    return float(np.max(bracket_stack(blocks, rtol=attainable(0.0), dtype=real).upper))


def tensor_norm(kernel: Array, conv: Convolution, *, starts: int, iterations: int) -> float:
    """Maximise |K(u, v, a_1, ..., a_D)| by turns; vectors are (groups, size, starts)."""
    xp = libraries.namespace(kernel)
    taps, _ = _lattice_taps(kernel, conv)
    count, groups, p, q = taps.shape
    box = conv.box()
    work = dtypes.complex_dtype(taps.dtype)
    form = xp.reshape(xp.astype(taps, work), (count, groups, p * q))
    by_channels, by_taps = xp.permute_dims(form, (1, 2, 0)), xp.permute_dims(form, (1, 0, 2))
    rng = np.random.default_rng(0)

    def start(size: int) -> Array:
        parts = rng.standard_normal((2, groups, size, starts))
        drawn = parts[0] + 1j * parts[1]
        moved = crossing.from_host(drawn, dtype=work, like=taps)
        return _normalised(moved)[0]

    v, waves = start(q), [start(k) for k in box]
    size = xp.zeros_like(xp.real(v[:, 0, :]))
    for _ in range(iterations):
        matrix = linalg.matmul(by_channels, _outer(waves))
        matrix = xp.reshape(matrix, (groups, p, q, starts))
        u, _ = _normalised(xp.sum(matrix * v[:, None, :, :], axis=2))
        v, size = _normalised(xp.sum(matrix * u[:, :, None, :], axis=1))
        tensor = xp.reshape(linalg.matmul(by_taps, _outer([u, v])), (groups, *box, starts))
        for a in range(len(box)):
            waves[a], size = _normalised(_contracted(tensor, waves, a))
    return math.sqrt(count) * float(np.max(crossing.to_host(size)))


def _normalised(x: Array) -> tuple[Array, Array]:
    """Return conj(x) / ||x||, the vector that maximises the pairing with x, and ||x||; 0 stays."""
    xp = libraries.namespace(x)
    size = xp.sqrt(sum(xp.sum(part * part, axis=1) for part in dtypes.components(x)))
    divisor = xp.where(size > 0, size, xp.ones_like(size))
    return xp.conj(x) / xp.astype(divisor[:, None, :], x.dtype), size


def _outer(vectors: Sequence[Array]) -> Array:
    """Return the products of the entries of vectors, the last one's running fastest."""
    xp = libraries.namespace(vectors[0])
    result = vectors[0]
    for x in vectors[1:]:
        product = result[:, :, None, :] * x[:, None, :, :]
        result = xp.reshape(product, (product.shape[0], -1, product.shape[3]))
    return result


def _contracted(tensor: Array, vectors: Sequence[Array], free: int) -> Array:
    """Return the sums of the tensor (groups, *box, starts) with all vectors but one."""
    xp = libraries.namespace(tensor)
    for a in reversed(range(len(vectors))):
        if a != free:
            x = vectors[a]
            place = [x.shape[0], *[1] * (tensor.ndim - 2), x.shape[2]]
            place[1 + a] = x.shape[1]
            tensor = xp.sum(tensor * xp.reshape(x, tuple(place)), axis=1 + a)
    return tensor


def power_iteration(kernel: Array, conv: Convolution, *, iterations: int) -> float:
    xp = libraries.namespace(kernel)
    geometry, axes = conv.geometry, conv.geometry.axes()
    if any(axis.outputs == 0 for axis in axes):
        return 0.0
    shape = (kernel.shape[1] * geometry.groups, *(axis.size for axis in axes))
    parts = np.random.default_rng(0).standard_normal((2, *shape))
    start = parts[0] + 1j * parts[1] if dtypes.is_complex(kernel.dtype) else parts[0]
    x = crossing.from_host(start, dtype=kernel.dtype, like=kernel)
    for _ in range(iterations):
        z = geometry.adjoint(kernel, geometry.apply(kernel, x))
        size = xp.sqrt(sum(xp.sum(part * part) for part in dtypes.components(z)))
        x = z / xp.astype(xp.where(size > 0, size, xp.ones_like(size)), z.dtype)
    y = geometry.apply(kernel, x)
    return sums.image_quotient(kernel, x, y, copies=conv.copies())
