"""Methods of others for the norm of a convolution, as kernels: see `classical` for what they are.

A `Setting` is a checked kernel with its geometry.  It scales the kernel, runs a method on it, and carries the value
back to the caller's library, rounded to the side that the value is on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import crossing, dtypes, libraries, linalg
from gramnorm._arrays.types import Array, DType, HostFloats, HostInts, Namespace
from gramnorm._conv.circle import grid_shape
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._conv.sampling import chunks
from gramnorm._conv.symbol import Symbol, polyphase
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._matrix.choose import bracket_stack
from gramnorm._rescaling import row_scales
from gramnorm._results import attainable, result_dtype
from gramnorm._rigour import scaling, sums
from gramnorm._rigour.model import precision_of, up, working_dtype

Side = Literal["upper bound", "lower bound", "exact", "estimate"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A kernel as it came, its namespace, and what operator it stands for."""

    kernel: Array
    xp: Namespace
    geometry: ConvGeometry

    @classmethod
    def of(
        cls,
        kernel: Array,
        input_shape: int | Sequence[int] | None,
        *,
        stride: int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
        padding: _validate.Padding = None,
        padding_mode: str = "zeros",
    ) -> Setting:
        """Check the arguments."""
        a = _validate.concrete_argument(kernel, name="kernel", instead="conv_gram_iteration")
        xp = libraries.namespace(a)
        geometry = ConvGeometry.of(
            tuple(a.shape),
            input_shape,
            stride=stride,
            padding=padding,
            padding_mode=padding_mode,
            dilation=dilation,
            groups=groups,
        )
        return cls(a, xp, geometry)

    def strides(self) -> tuple[int, ...]:
        """Return the strides that are left without dilation, at no size (Lemma 8)."""
        pairs = zip(self.geometry.stride, self.geometry.dilation, strict=True)
        return tuple(s // math.gcd(s, d) for s, d in pairs)

    def box(self) -> tuple[int, ...]:
        """Return the taps per axis once strides have become channels."""
        return tuple(
            -(-k // s) for k, s in zip(self.geometry.kernel_size, self.strides(), strict=True)
        )

    def own_type(self) -> DType:
        """Return the real type to compute in, where nothing is to be gained from a longer one."""
        return result_dtype(self.kernel)

    def certified(self, side: Side, method: Callable[..., float]) -> Array:
        """Return what `method` makes of the kernel in float64, where the device has it."""
        work = working_dtype(self.kernel, math.inf, 1.0)
        return self.finish(side, method, work)

    def finish(self, side: Side, method: Callable[..., float], work: DType) -> Array:
        """Return what `method` makes of the scaled kernel, as an array of the caller's, rounded to its `side`."""
        a, xp, geometry = self.kernel, self.xp, self.geometry
        out, value = result_dtype(a), np.zeros(1)
        if 0 not in a.shape:
            copies = 1
            if geometry.input_shape is not None:
                copies = math.prod(axis.copies() for axis in geometry.axes())
            gain = math.sqrt(math.prod(geometry.kernel_size) * copies)
            stack = xp.reshape(a, (1, a.shape[0], -1))
            with libraries.plain_arithmetic(a):
                scaled = scaling.normalise(stack, dtype=work, gain=gain)
                found = np.zeros(scaled.active.size)
                if scaled.active.size:
                    taps = xp.reshape(scaled.values, a.shape)
                    found[0] = method(taps, self)
                value = _unscaled(found, scaled, side, dtype=out)
        return crossing.from_host(value.reshape(()), dtype=out, like=a)


def _unscaled(found: HostFloats, scaled: scaling.Scaled, side: Side, *, dtype: DType) -> HostFloats:
    """Return a value in the original scale, rounded up or down if its side asks for it."""
    lower, upper = scaling.restore(found, found, scaled, dtype=dtype)
    if side == "upper bound":
        return upper
    if side == "lower bound" or not scaled.active.size:
        return lower
    return np.ldexp(found, scaled.exponents.astype(np.int64))


def _polyphase(kernel: Array, setting: Setting, strides: tuple[int, ...]) -> tuple[Array, HostInts]:
    """Return the taps of stride 1, shape (T, groups, p, q), in the order of the box, and their positions."""
    xp = libraries.namespace(kernel)
    sizes, groups = setting.geometry.kernel_size, setting.geometry.groups
    taps = xp.reshape(kernel, (groups, kernel.shape[0] // groups, kernel.shape[1], -1))
    return polyphase(xp.permute_dims(taps, (3, 0, 1, 2)), sizes, strides)


def norm2toep(kernel: Array, setting: Setting, *, steps: int) -> float:
    xp = libraries.namespace(kernel)
    taps, _ = _polyphase(kernel, setting, setting.strides())
    # F^T has the norms of F, and a smaller autocorrelation
    taps = xp.matrix_transpose(taps) if taps.shape[2] > taps.shape[3] else taps
    return _row_sums(taps, setting.box(), steps=steps)


def aol(kernel: Array, setting: Setting) -> float:
    xp = libraries.namespace(kernel)
    taps, _ = _polyphase(kernel, setting, setting.strides())
    return _row_sums(xp.matrix_transpose(taps), setting.box(), steps=1)


def _row_sums(taps: Array, box: tuple[int, ...], *, steps: int) -> float:
    """Return the largest tau of Theorem 15: X X^H <= diag(tau)^2 for the convolution X with these taps."""
    xp = libraries.namespace(taps)
    tau = row_scales(taps, tuple(k for k in box if k > 1), steps=steps)
    present = xp.any(taps != 0, axis=(0, 3))  # rows of zeros have tau = 1
    return float(np.max(crossing.to_host(xp.where(present, tau, xp.zeros_like(tau)))))


def fantastic_four(kernel: Array, setting: Setting, *, rtol: float | None) -> float:
    xp = libraries.namespace(kernel)
    taps, _ = _polyphase(kernel, setting, setting.strides())
    count, groups, p, q = taps.shape
    box = setting.box()
    form = xp.reshape(xp.permute_dims(taps, (1, 2, 3, 0)), (groups, p, q, *box))
    norms = []
    for rows in _subsets(tuple(a for a, k in enumerate(box) if k > 1)):
        columns = tuple(a for a in range(len(box)) if a not in rows)
        order = (0, 1, *(3 + a for a in rows), 2, *(3 + a for a in columns))
        height = p * math.prod(box[a] for a in rows)
        matrix = xp.reshape(xp.permute_dims(form, order), (groups, height, -1))
        norms.append(crossing.to_host(matrix_norm_bound(matrix, rtol=rtol)))
    return up(float(np.max(np.min(norms, axis=0))) * math.sqrt(count))


def _subsets(axes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for bits in range(2 ** len(axes)):
        yield tuple(a for i, a in enumerate(axes) if bits >> i & 1)


def lip_grid(kernel: Array, setting: Setting, *, samples: int) -> float:
    """Bound the sums over the grid (theory, Lemma 16); what the symbol errs by is added before the factor."""
    xp = libraries.namespace(kernel)
    symbol = Symbol(*_polyphase(kernel, setting, setting.strides()))
    p, q = symbol.block_shape
    sizes = tuple(samples if k > 1 else 1 for k in setting.box())
    largest = np.zeros((symbol.blocks, q))
    for blocks in _on_grid(symbol, sizes):
        squares = sum(xp.sum(x * x, axis=1) for x in dtypes.components(blocks))
        squares = xp.reshape(squares, (-1, symbol.blocks, q))
        largest = np.maximum(largest, crossing.to_host(xp.max(squares, axis=0)))
    prec = precision_of(blocks.dtype)
    # the sums of 2 p squares, of which each may underflow; those of q such sums are taken on the host
    _, total = sums.enclosure(np.sum(largest, axis=1), p, q, prec)
    between = math.prod(n - k + 1 for n, k in zip(sizes, setting.box(), strict=True))
    factor = math.sqrt(math.prod(sizes) / between)
    return up((math.sqrt(float(np.max(total))) + symbol.error) * factor)


def _on_grid(symbol: Symbol, sizes: tuple[int, ...]) -> Iterator[Array]:
    """Yield the blocks (frequencies * groups, p, q) at 2 pi j / sizes, in parts; of real kernels half of them."""
    ranges = [np.arange(n) for n in grid_shape(sizes, half=symbol.real)]
    points = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(sizes))
    for part in chunks(np.arange(len(points)), symbol):
        yield symbol.at(points[part], np.asarray(sizes))


def on_circle(kernel: Array, setting: Setting) -> float:
    strides, sizes, _ = zip(*(axis.circle() for axis in setting.geometry.axes()), strict=True)
    symbol = Symbol(*_polyphase(kernel, setting, strides))
    points = tuple(n // s for n, s in zip(sizes, strides, strict=True))
    return max(_largest_singular_value(blocks) for blocks in _on_grid(symbol, points))


def _largest_singular_value(blocks: Array) -> float:
    """Return the largest norm of a stack of matrices up to rounding; from above where the library gives none."""
    found = linalg.largest_singular_value_or_none(blocks)
    if found is not None:
        return found
    real = dtypes.real_dtype(blocks.dtype)
    return float(np.max(bracket_stack(blocks, rtol=attainable(0.0), dtype=real).upper))


def tensor_norm(kernel: Array, setting: Setting, *, starts: int, iterations: int) -> float:
    """Maximise |K(u, v, a_1, ..., a_D)| by turns; vectors of all starts have the shape (groups, size, starts)."""
    xp = libraries.namespace(kernel)
    taps, _ = _polyphase(kernel, setting, setting.strides())
    count, groups, p, q = taps.shape
    box = setting.box()
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


def power_iteration(kernel: Array, setting: Setting, *, iterations: int) -> float:
    xp = libraries.namespace(kernel)
    geometry = setting.geometry
    axes = geometry.axes()
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
    copies = math.prod(axis.copies() for axis in axes)
    return sums.image_quotient(kernel, x, y, copies=copies)
