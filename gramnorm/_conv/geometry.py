"""What a convolution is, and the operator it stands for.

Along each spatial axis a convolution is a correlation with `taps` taps, `stride` s, `dilation` d,

    y[o] = sum_k K[k] x[s o + d k - before],     0 <= o < outputs,

whose input is continued beyond its `size` samples by zeros, periodically or by reflection.  A
transposed convolution is the transpose of such a correlation.  A common factor of stride and
dilation only skips samples, and what is left of the dilation only interleaves (docs/theory.md,
section 4): every correlation with zero padding is a direct sum of correlations without dilation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import crossing, dtypes, libraries, limits, linalg
from gramnorm._arrays.types import Array, HostFloats, HostInts

__all__ = ["ConvGeometry"]


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a correlation at a finite size; the module's formula has the symbols."""

    taps: int
    stride: int
    dilation: int
    before: int
    size: int
    outputs: int
    mode: str

    @property
    def reach(self) -> int:
        """Distance between the first and the last tap."""
        return self.dilation * (self.taps - 1)

    @property
    def is_circle(self) -> bool:
        """Whether the axis is circular and the stride takes it round exactly once."""
        return self.mode == "circular" and self.outputs * self.stride == self.size

    def sources(self) -> HostInts:
        """Return which input sample tap k of output o reads, shape (taps, outputs); -1 for zero."""
        tap, output = np.ogrid[: self.taps, : self.outputs]
        position = self.stride * output + self.dilation * tap - self.before
        n = self.size
        if self.mode == "circular":
            return np.asarray(position % n)
        if self.mode == "replicate":
            return np.asarray(np.clip(position, 0, n - 1))
        if self.mode == "reflect":
            mirrored = np.abs(position)
            return np.asarray(np.where(mirrored >= n, 2 * (n - 1) - mirrored, mirrored))
        if self.mode == "symmetric":  # 2 n samples, a period, hold each one twice
            folded = position % (2 * n)
            return np.asarray(np.minimum(folded, 2 * n - 1 - folded))
        return np.asarray(np.where((position >= 0) & (position < n), position, -1))

    def links(self) -> HostFloats:
        """Return the 0/1 matrices that copy inputs to outputs, shape (taps, outputs, size)."""
        return np.asarray(self.sources()[..., None] == np.arange(self.size), dtype=np.float64)

    def blocks(self, reach: int, *, whole: bool) -> tuple[int, int]:
        """Return the first and last block of `stride` samples that outputs read (zero padding).

        Output o reads blocks o to o + `reach`.  They are whole blocks, or all that hold a sample.
        """
        missing = 0 if whole else self.stride - 1
        first = -((missing - self.before) // self.stride)
        last = (self.before + self.size - self.stride + missing) // self.stride
        return max(first, 0), min(last, self.outputs - 1 + reach)

    def copies(self) -> int:
        """Bound how often the continued input holds the same sample."""
        n, lo = self.size, max(self.before, 0)
        if self.outputs == 0 or self.mode == "zeros":
            return 1
        last = self.stride * (self.outputs - 1) + self.reach - self.before
        if self.mode == "circular":
            return -(-(last + self.before + 1) // n)
        hi = max(last - (n - 1), 0)
        if self.mode == "replicate":
            return 1 + (lo + hi if n == 1 else max(lo, hi))
        if self.mode == "symmetric":
            return min(2 * -(-(last + lo + 1) // (2 * n)), 1 + lo + hi)
        both = max(1, n - 1 - hi) <= min(lo, n - 2)
        return 3 if both else 2 if lo or hi else 1

    def coincidences(self) -> int:
        """Bound how many taps of one output read the same sample."""
        if self.mode == "zeros" or self.outputs == 0:
            return 1
        if self.mode == "circular":
            return -(-self.taps * math.gcd(self.dilation, self.size) // self.size)
        return min(self.taps, self.copies())

    def inside(self) -> Axis:
        """Return the outputs that read existing samples only: a correlation with zero padding."""
        first = max(-(-self.before // self.stride), 0)
        last = (self.size - 1 - self.reach + self.before) // self.stride
        return self._cut(0, self.size, first, last)

    def window(self, most: int) -> Axis:
        """Return `most` central samples and all outputs that read them (zero padding)."""
        if self.size <= most:
            return self
        start = (self.size - most) // 2
        first = max(-(-(start + self.before - self.reach) // self.stride), 0)
        last = (start + most - 1 + self.before) // self.stride
        return self._cut(start, most, first, last)

    def _cut(self, start: int, size: int, first: int, last: int) -> Axis:
        """Return the correlation of some samples with the outputs `first` to `last`."""
        return dataclasses.replace(
            self,
            before=self.before + start - self.stride * first,
            size=size,
            outputs=max(min(last, self.outputs - 1) - first + 1, 0),
            mode="zeros",
        )

    def parts(self) -> list[Axis]:
        """Split a correlation with zero padding into ones of stride s / gcd(s, d) without dilation.

        With g = gcd(s, d) only inputs with g | i + before are read; outputs o = rho (mod d / g)
        read inputs of one class modulo d / g.  Parts that are submatrices of others are left out,
        and so are samples that no output reads.
        """
        g = math.gcd(self.stride, self.dilation)
        s, d = self.stride // g, self.dilation // g
        rho = self._classes(s, d)
        outputs = -((rho - self.outputs) // d)
        first = np.maximum(-((s * rho + -self.before // g) // d), 0)  # two ceilings
        last = ((self.size - 1 + self.before) // g - s * rho) // d
        last = np.minimum(last, s * (outputs - 1) + self.taps - 1)
        found: list[Axis] = []
        for m, low, high in np.unique(np.stack([outputs, first, last]), axis=1).T.tolist():
            part = Axis(self.taps, s, 1, low, high - low + 1, m, "zeros")
            if high < low or any(part.is_part_of(other) for other in found):
                continue
            found = [other for other in found if not other.is_part_of(part)] + [part]
        return found

    def _classes(self, s: int, d: int) -> HostInts:
        """Return the classes of outputs modulo d, of those with equal parts at least one."""
        count = min(d, self.outputs)
        if count <= limits.EVERY_CLASS:
            return np.arange(count, dtype=np.int64)
        # parts change where (s rho + c) // d does, for three c, and at outputs = rho (mod d)
        g = math.gcd(self.stride, self.dilation)
        steps = np.arange(-1, s + 2, dtype=np.int64) * d
        ends = [0, self.outputs % d, count]
        for c in (-self.before // g, -((self.size - 1 + self.before) // g)):
            ends += (-((c % d - steps) // s)).tolist()
        near = np.asarray(ends)[:, None] + np.arange(-1, 2)
        return np.unique(near[(near >= 0) & (near < count)])

    def is_part_of(self, other: Axis) -> bool:
        """Say whether this is a submatrix of a correlation with the same taps and stride."""
        # as the outputs of the other from t on, if their samples hold all that are read
        ahead = self.before - other.before
        first = max(-(ahead // self.stride), 0)
        last = (other.size - self.size - ahead) // self.stride
        return first <= min(last, other.outputs - self.outputs)

    def circle(self) -> tuple[int, int, int]:
        """Return stride, size and multiplier of a circle without dilation of the same norm.

        On a circle the dilation only permutes frequencies and repeats them: at the frequency
        2 pi j / size of the new circle stands what the old one has at j times the multiplier.
        """
        h = math.gcd(self.stride, self.dilation)
        stride, dilation, size = self.stride // h, self.dilation // h, self.size // h
        e = math.gcd(dilation, size)
        size //= e
        return stride, size, pow(dilation // e, -1, size // stride)


def _outputs(n: int, stride: int, pads: int, reach: int, extra: int, *, transposed: bool) -> int:
    """Return the outputs along an axis of n inputs and `pads` zeros on both sides together."""
    if transposed:
        return max((n - 1) * stride - pads + reach + extra + 1, 0)
    return max((n + pads - reach - 1) // stride + 1, 0)


@dataclasses.dataclass(frozen=True)
class ConvGeometry:
    """The geometry of a convolution, made by `of`, and the operator that it defines for a kernel.

    Attributes
    ----------
    kernel_size, stride, dilation : tuple of int
        Taps, step between outputs and spacing of the taps, per spatial axis.
    groups : int
        Number of independent blocks of channels.
    padding_mode : {"zeros", "circular", "reflect", "replicate", "symmetric"}
        How the input is continued.
    pads : tuple of (lo, hi), or None
        Samples of padding per axis; None for the same-size circular operator or any amount of
        zeros.
    input_shape, output_shape : tuple of int, or None
        Samples per axis; None for every size at once.
    transposed : bool
        Whether the operator is the transpose of a correlation from `output_shape` to `input_shape`.
    output_padding : tuple of int
        Samples added at the end of the output of a transposed convolution.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    pads: tuple[tuple[int, int], ...] | None
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    transposed: bool
    output_padding: tuple[int, ...]

    @classmethod
    def of(
        cls,
        kernel_shape: Sequence[int],
        input_shape: int | Sequence[int] | None = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: _validate.Padding = None,
        padding_mode: str = "zeros",
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        transposed: bool = False,
        output_padding: int | Sequence[int] = 0,
    ) -> ConvGeometry:
        """Check the arguments of `conv_norm_bracket` and resolve what they leave open.

        Parameters
        ----------
        kernel_shape : sequence of int
            ``(c_out, c_in / groups, *spatial)``, of a transposed convolution
            ``(c_in, c_out / groups, *spatial)``.
        input_shape : int or sequence of int, optional
            Samples of the input per spatial axis.
        stride, padding, padding_mode, dilation, groups, transposed, output_padding : optional
            As in `conv_norm_bracket`.

        Returns
        -------
        ConvGeometry
            The geometry.

        Examples
        --------
        >>> geometry = ConvGeometry.of((8, 3, 3, 3), (32, 31), stride=2, padding="same")
        >>> geometry.pads, geometry.output_shape
        (((0, 1), (1, 1)), (16, 16))
        """
        count = _validate.kernel_shape(tuple(kernel_shape), groups=groups)
        kernel_size = tuple(int(k) for k in kernel_shape[2:])
        per_axis = partial(_validate.per_axis, axes=len(kernel_size))
        step, spacing = per_axis(stride, name="stride"), per_axis(dilation, name="dilation")
        extra = per_axis(output_padding, name="output_padding", least=0)
        mode = _validate.padding_mode(padding_mode)
        sizes = None if input_shape is None else per_axis(input_shape, name="input_shape")
        if transposed:
            has_size = sizes is not None
            _validate.transposed(mode, padding, extra, step, spacing, has_size=has_size)
        elif any(extra):
            _validate.refuse_output_padding(extra)
        reach = tuple(d * (k - 1) for k, d in zip(kernel_size, spacing, strict=True))
        full = sizes  # of a transposed convolution that keeps the size but for the stride
        if transposed and sizes is not None:
            full = tuple(n * s for n, s in zip(sizes, step, strict=True))
        pads = _validate.pads(padding, mode, reach=reach, stride=step, sizes=full)
        _validate.continuation(mode, pads, reach=reach, stride=step, sizes=sizes)
        outputs = full if transposed and _validate.is_same(padding) else None
        if outputs is None and sizes is not None:
            # a circle goes on as far as the kernel reaches
            total = [lo + hi for lo, hi in pads] if pads else reach
            described = zip(sizes, step, total, reach, extra, strict=True)
            outputs = tuple(_outputs(*axis, transposed=transposed) for axis in described)
        return cls(
            kernel_size, step, spacing, count, mode, pads, sizes, outputs, bool(transposed), extra
        )

    def axes(self) -> tuple[Axis, ...]:
        """Return the axes of the correlation, or of that whose transpose this is, at its size."""
        assert self.input_shape is not None
        assert self.output_shape is not None
        sizes, outputs, mode = self.input_shape, self.output_shape, self.padding_mode
        if self.transposed:
            sizes, outputs = outputs, sizes
        before = [lo for lo, _ in self.pads] if self.pads else [0] * len(sizes)
        described = zip(
            self.kernel_size, self.stride, self.dilation, before, sizes, outputs, strict=True
        )
        return tuple(Axis(k, s, d, lo, n, m, mode) for k, s, d, lo, n, m in described)

    def apply(self, kernel: Array, x: Array) -> Array:
        """Return the convolution of an input.

        Parameters
        ----------
        kernel : array
            Kernel of the shape that the geometry was made for.
        x : array, shape ``(..., c_in, *input_shape)``
            Inputs, in the namespace and type of `kernel`.

        Returns
        -------
        array, shape ``(..., c_out, *output_shape)``
            The outputs. No rounding is accounted for.

        Raises
        ------
        ValueError
            If a shape is another one, or the geometry was made without `input_shape`.

        Examples
        --------
        >>> import numpy as np
        >>> geometry = ConvGeometry.of((1, 1, 2), (3,), padding="full")
        >>> geometry.apply(np.asarray([[[1.0, 2.0]]]), np.asarray([[1.0, 0.0, 3.0]])).tolist()
        [[2.0, 1.0, 6.0, 3.0]]
        """
        return self._applied(kernel, x, backwards=False)

    def adjoint(self, kernel: Array, y: Array) -> Array:
        """Return the adjoint (conjugate transpose) of `apply`, applied to an output.

        Parameters
        ----------
        kernel : array
            Kernel of the shape that the geometry was made for.
        y : array, shape ``(..., c_out, *output_shape)``
            Outputs, in the namespace and type of `kernel`.

        Returns
        -------
        array, shape ``(..., c_in, *input_shape)``
            The adjoint at `y`. No rounding is accounted for.

        Raises
        ------
        ValueError
            As in `apply`.

        Examples
        --------
        >>> import numpy as np
        >>> geometry = ConvGeometry.of((1, 1, 2), (3,), padding="full")
        >>> y = np.asarray([[1.0, 0.0, 0.0, 1.0]])
        >>> geometry.adjoint(np.asarray([[[1.0, 2.0]]]), y).tolist()
        [[2.0, 0.0, 1.0]]
        """
        return self._applied(kernel, y, backwards=True)

    def _applied(self, kernel: Array, x: Array, *, backwards: bool) -> Array:
        """Return the operator, or its adjoint, at each of a batch."""
        xp = libraries.namespace_of(kernel, name="kernel")
        libraries.namespace_of(x, name="y" if backwards else "x")
        _validate.one_size(self.input_shape, instead="conv_norm_bracket")
        axes, dims = self.axes(), len(self.kernel_size)
        _validate.taps(tuple(kernel.shape), self.kernel_size, groups=self.groups)
        inputs = (int(kernel.shape[1]) * self.groups, *(a.size for a in axes))
        outputs = (int(kernel.shape[0]), *(a.outputs for a in axes))
        is_adjoint = self.transposed != backwards  # of the correlation
        shape, found = (outputs, inputs) if is_adjoint else (inputs, outputs)
        _validate.samples(tuple(x.shape), shape, name="y" if backwards else "x")
        kernel = self._real_adjoint_kernel(kernel) if self.transposed else kernel
        one = adjoint if is_adjoint else correlate
        batch = tuple(x.shape[: -1 - dims])
        with libraries.plain_arithmetic(kernel):
            if not batch:
                return one(kernel, x, axes, self.groups)
            each = xp.reshape(x, (math.prod(batch), *shape))
            results = [one(kernel, each[b, ...], axes, self.groups) for b in range(each.shape[0])]
            if not results:
                device = libraries.device_of(x)
                return xp.zeros((*batch, *found), dtype=x.dtype, device=device)
            return xp.reshape(xp.stack(results), (*batch, *found))

    def _real_adjoint_kernel(self, kernel: Array) -> Array:
        """Return the kernel whose correlation has the transposed convolution as its adjoint."""
        xp = libraries.namespace_of(kernel, name="kernel")
        return xp.conj(kernel) if dtypes.is_complex(kernel.dtype) else kernel


def correlate(kernel: Array, x: Array, axes: Sequence[Axis], groups: int) -> Array:
    """Return the correlation of `x`, shape (c_in, *sizes), with (c_out, c_in / groups, *taps)."""
    xp = libraries.namespace_of(x, name="x")
    c_out = kernel.shape[0]
    rows = xp.reshape(kernel, (groups, c_out // groups, math.prod(kernel.shape[1:])))
    y = linalg.matmul(rows, patches(x, axes, groups))
    return xp.reshape(y, (c_out, *(a.outputs for a in axes)))


def patches(x: Array, axes: Sequence[Axis], groups: int) -> Array:
    """Return what each output reads of `x`, shape (groups, c_in / groups * T, outputs)."""
    return _gathered(x, [axis.sources() for axis in axes], groups)


def adjoint(kernel: Array, y: Array, axes: Sequence[Axis], groups: int) -> Array:
    """Return the adjoint of `correlate` at `y`, shape (c_out, *outputs).

    What each tap gives back is computed for the outputs, which a stride makes few, and added up
    where it was read, one axis after the other.
    """
    xp = libraries.namespace_of(y, name="y")
    c_out, c_in, *taps = kernel.shape
    rows = xp.reshape(kernel, (groups, c_out // groups, c_in * math.prod(taps)))
    outputs = tuple(a.outputs for a in axes)
    given = xp.reshape(y, (groups, c_out // groups, math.prod(outputs)))
    x = xp.reshape(linalg.matmul(linalg.adjoint(rows), given), (c_in * groups, *taps, *outputs))
    pairs = [place for a in range(1, 1 + len(axes)) for place in (a, a + len(axes))]
    x = xp.permute_dims(x, (0, *pairs))
    x = xp.reshape(x, (c_in * groups, *(a.taps * a.outputs for a in axes)))
    for axis in axes:
        table = _returned(axis)
        read = _read(x, table)
        x = xp.sum(xp.reshape(read, (*read.shape[:-1], *table.shape)), axis=-2, dtype=x.dtype)
    return x


@functools.lru_cache(maxsize=limits.AXES_READ)
def _returned(axis: Axis) -> HostInts:
    """Return which pairs (tap, output) read a sample, numbered in order, shape (most, size).

    -1 stands for none.
    """
    tables = np.stack(readers(axis))
    pairs = np.arange(axis.taps)[:, None] * axis.outputs + tables
    return np.where(tables < 0, -1, pairs).reshape(len(tables) * axis.taps, axis.size)


@functools.lru_cache(maxsize=limits.AXES_READ)
def readers(axis: Axis) -> list[HostInts]:
    """Return tables (taps, size) of outputs that read a sample by a tap, -1 for none.

    There are as many tables as outputs read the same sample by the same tap.
    """
    source = axis.sources()
    tap, output = np.nonzero(source >= 0)
    place = tap * axis.size + source[tap, output]
    order = np.argsort(place, kind="stable")
    place, output = place[order], output[order]
    first = np.searchsorted(place, place)  # of those that read the same sample by the same tap
    turn = np.arange(place.size) - first
    tables = np.full((int(turn.max(initial=0)) + 1, axis.taps * axis.size), -1, dtype=np.int64)
    tables[turn, place] = output
    return [*tables.reshape(len(tables), axis.taps, axis.size)]


def _gathered(x: Array, sources: Sequence[HostInts], groups: int) -> Array:
    """Read `x`, shape (c, *sizes), by tables (taps, points) per axis, -1 for zero.

    Returns shape (groups, c / groups * T, points).
    """
    xp = libraries.namespace_of(x, name="x")
    dims, c = len(sources), x.shape[0] // groups
    for source in sources:
        x = _read(x, source)
    taps, points = zip(*(source.shape for source in sources), strict=True)
    pairs = [n for source in sources for n in source.shape]
    x = xp.reshape(x, (groups, c, *pairs))
    x = xp.permute_dims(x, (0, 1, *range(2, 2 + 2 * dims, 2), *range(3, 3 + 2 * dims, 2)))
    return xp.reshape(x, (groups, c * math.prod(taps), math.prod(points)))


def _read(x: Array, table: HostInts) -> Array:
    """Read axis 1 of `x` by a table of places, -1 for zero; what is read becomes the last axis."""
    xp = libraries.namespace_of(x, name="x")
    slab = (x.shape[0], 1, *x.shape[2:])  # not one of `x`, which may be empty
    zeros = xp.zeros(slab, dtype=x.dtype, device=libraries.device_of(x))
    padded = xp.concat([x, zeros], axis=1)
    places = np.where(table < 0, x.shape[1], table).reshape(-1)
    read = xp.take(padded, crossing.indices(places, like=x), axis=1)
    return xp.permute_dims(read, (0, *range(2, x.ndim), 1))
