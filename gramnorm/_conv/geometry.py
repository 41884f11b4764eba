"""What a convolution is, and the operator it stands for.

Along each spatial axis a convolution is a correlation with `taps` taps, `stride` s and `dilation` d,

    y[o] = sum_k K[k] x[s o + d k - before],     0 <= o < outputs,

whose input is continued beyond its `size` samples by zeros, periodically or by reflection.  A transposed
convolution is the transpose of such a correlation.  A common factor of stride and dilation only
skips samples, and what is left of the dilation only interleaves (docs/theory.md, section 4): every
correlation with zero padding is a direct sum of correlations without dilation.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import crossing, dtypes, libraries, linalg
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
        """Return which input sample tap k of output o reads, shape (taps, outputs); -1 for a zero."""
        position = (
            self.stride * np.arange(self.outputs, dtype=np.int64)[None, :]
            + self.dilation * np.arange(self.taps, dtype=np.int64)[:, None]
            - self.before
        )
        n = self.size
        if self.mode == "circular":
            return np.asarray(position % n)
        if self.mode == "replicate":
            return np.asarray(np.clip(position, 0, n - 1))
        if self.mode == "reflect":
            mirrored = np.abs(position)
            return np.asarray(np.where(mirrored >= n, 2 * (n - 1) - mirrored, mirrored))
        return np.asarray(np.where((position >= 0) & (position < n), position, -1))

    def links(self) -> HostFloats:
        """Return the matrix that copies inputs to (tap, output) pairs, shape (taps * outputs, size)."""
        source = self.sources().reshape(-1)
        matrix = np.zeros((source.size, self.size))
        rows = np.flatnonzero(source >= 0)
        matrix[rows, source[rows]] = 1.0
        return matrix

    def readers(self) -> list[HostInts]:
        """Return tables (taps, size) of the outputs that read a sample by a tap, -1 for none; as many as it takes."""
        source = self.sources()
        tap, output = np.nonzero(source >= 0)
        place = tap * self.size + source[tap, output]
        order = np.argsort(place, kind="stable")
        place, output = place[order], output[order]
        first = np.searchsorted(place, place)  # of those that read the same sample by the same tap
        turn = np.arange(place.size) - first
        tables = []
        for t in range(int(turn.max(initial=0)) + 1):
            table = np.full(self.taps * self.size, -1, dtype=np.int64)
            table[place[turn == t]] = output[turn == t]
            tables.append(table.reshape(self.taps, self.size))
        return tables

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
        """Return the outputs whose taps all read existing samples: a correlation with zero padding."""
        first = max(-(-self.before // self.stride), 0)
        last = min((self.size - 1 - self.reach + self.before) // self.stride, self.outputs - 1)
        return dataclasses.replace(
            self,
            before=self.before - self.stride * first,
            outputs=max(last - first + 1, 0),
            mode="zeros",
        )

    def window(self, most: int) -> Axis:
        """Return the correlation of `most` central samples with all outputs that read them (zero padding)."""
        if self.size <= most:
            return self
        start = (self.size - most) // 2
        first = max(-(-(start + self.before - self.reach) // self.stride), 0)
        last = min((start + most - 1 + self.before) // self.stride, self.outputs - 1)
        return dataclasses.replace(
            self,
            before=self.before + start - self.stride * first,
            size=most,
            outputs=max(last - first + 1, 0),
        )

    def parts(self) -> list[Axis]:
        """Split a correlation with zero padding into ones of stride s / gcd(s, d) without dilation.

        With g = gcd(s, d) only inputs with g | i + before are read; outputs o = rho (mod d / g) read inputs
        of one class modulo d / g.  Parts that are submatrices of others are left out, and so are samples that no
        output reads.
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
        if count <= 2**16:
            return np.arange(count, dtype=np.int64)
        # the parts change where (s rho + c) // d does, for three numbers c, and at outputs = rho (mod d)
        g = math.gcd(self.stride, self.dilation)
        steps = np.arange(-1, s + 2, dtype=np.int64) * d
        ends = [0, self.outputs % d, count]
        for c in (-self.before // g, -((self.size - 1 + self.before) // g)):
            ends += (-((c % d - steps) // s)).tolist()
        near = np.asarray(ends)[:, None] + np.arange(-1, 2)
        return np.unique(near[(near >= 0) & (near < count)])

    def is_part_of(self, other: Axis) -> bool:
        """Say whether this correlation is a submatrix of one with the same taps and stride, no dilation."""
        low, high = self.before, self.before + self.size
        return any(
            other.before <= low + t * self.stride
            and high + t * self.stride <= other.before + other.size
            for t in range(max(other.outputs - self.outputs, -1) + 1)
        )

    def circle(self) -> tuple[int, int, int]:
        """Return stride, size and multiplier of a circular correlation without dilation of the same norm.

        On a circle the dilation only permutes frequencies and repeats them: at the frequency 2 pi j / size of
        the new circle stands what the old one has at j times the multiplier.
        """
        h = math.gcd(self.stride, self.dilation)
        stride, dilation, size = self.stride // h, self.dilation // h, self.size // h
        e = math.gcd(dilation, size)
        size //= e
        return stride, size, pow(dilation // e, -1, size // stride)


@dataclasses.dataclass(frozen=True)
class ConvGeometry:
    """The geometry of a convolution, made by `of`, and the operator that it defines for a kernel.

    Attributes
    ----------
    kernel_size, stride, dilation : tuple of int
        Taps, step between outputs and spacing of the taps, per spatial axis.
    groups : int
        Number of independent blocks of channels.
    padding_mode : {"zeros", "circular", "reflect", "replicate"}
        How the input is continued.
    pads : tuple of (lo, hi), or None
        Samples of padding per axis; None for the same-size circular operator or any amount of zeros.
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
            ``(c_out, c_in / groups, *spatial)``, of a transposed convolution ``(c_in, c_out / groups, *spatial)``.
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
        axes = len(kernel_size)
        step = _validate.per_axis(stride, name="stride", axes=axes)
        spacing = _validate.per_axis(dilation, name="dilation", axes=axes)
        extra = _validate.per_axis(output_padding, name="output_padding", axes=axes, least=0)
        mode = _validate.padding_mode(padding_mode)
        is_transposed = bool(transposed)
        sizes = None
        if input_shape is not None:
            sizes = _validate.per_axis(input_shape, name="input_shape", axes=axes)
        if is_transposed:
            _validate.transposed(mode, padding, extra, step, spacing, has_size=sizes is not None)
        elif any(extra):
            _validate.refuse_output_padding(extra)
        reach = tuple(d * (k - 1) for k, d in zip(kernel_size, spacing, strict=True))
        same_sizes = sizes
        if sizes is not None and is_transposed:
            same_sizes = tuple(n * s for n, s in zip(sizes, step, strict=True))
        pads = _validate.pads(padding, mode, reach=reach, stride=step, sizes=same_sizes)
        _validate.continuation(mode, pads, reach=reach, stride=step, sizes=sizes)
        outputs = None
        if sizes is not None:
            outputs = tuple(
                _output_size(*axis, transposed=is_transposed, same=_validate.is_same(padding))
                for axis in zip(
                    sizes, step, reach, pads or ((None, None),) * axes, extra, strict=True
                )
            )
        return cls(
            kernel_size, step, spacing, count, mode, pads, sizes, outputs, is_transposed, extra
        )

    def axes(self) -> tuple[Axis, ...]:
        """Return the axes of the correlation (of its transpose, if transposed) at the given size."""
        assert self.input_shape is not None
        assert self.output_shape is not None
        sizes, outputs = self.input_shape, self.output_shape
        if self.transposed:
            sizes, outputs = outputs, sizes
        pads = self.pads or ((0, 0),) * len(sizes)
        return tuple(
            Axis(k, s, d, lo, n, m, self.padding_mode)
            for k, s, d, (lo, _), n, m in zip(
                self.kernel_size, self.stride, self.dilation, pads, sizes, outputs, strict=True
            )
        )

    def apply(self, kernel: Array, x: Array) -> Array:
        """Return the convolution of an input.

        Parameters
        ----------
        kernel : array
            Kernel of the shape that the geometry was made for.
        x : array, shape ``(c_in, *input_shape)``
            Input, in the namespace and type of `kernel`.

        Returns
        -------
        array, shape ``(c_out, *output_shape)``
            The output. No rounding is accounted for.

        Examples
        --------
        >>> import numpy as np
        >>> geometry = ConvGeometry.of((1, 1, 2), (3,), padding="full")
        >>> geometry.apply(np.asarray([[[1.0, 2.0]]]), np.asarray([[1.0, 0.0, 3.0]])).tolist()
        [[2.0, 1.0, 6.0, 3.0]]
        """
        with libraries.plain_arithmetic(kernel):
            if self.transposed:
                return adjoint(self._real_adjoint_kernel(kernel), x, self.axes(), self.groups)
            return correlate(kernel, x, self.axes(), self.groups)

    def adjoint(self, kernel: Array, y: Array) -> Array:
        """Return the adjoint (conjugate transpose) of `apply`, applied to an output.

        Parameters
        ----------
        kernel : array
            Kernel of the shape that the geometry was made for.
        y : array, shape ``(c_out, *output_shape)``
            Output, in the namespace and type of `kernel`.

        Returns
        -------
        array, shape ``(c_in, *input_shape)``
            The adjoint at `y`. No rounding is accounted for.

        Examples
        --------
        >>> import numpy as np
        >>> geometry = ConvGeometry.of((1, 1, 2), (3,), padding="full")
        >>> y = np.asarray([[1.0, 0.0, 0.0, 1.0]])
        >>> geometry.adjoint(np.asarray([[[1.0, 2.0]]]), y).tolist()
        [[2.0, 0.0, 1.0]]
        """
        with libraries.plain_arithmetic(kernel):
            if self.transposed:
                return correlate(self._real_adjoint_kernel(kernel), y, self.axes(), self.groups)
            return adjoint(kernel, y, self.axes(), self.groups)

    def _real_adjoint_kernel(self, kernel: Array) -> Array:
        """Return the kernel whose correlation has the transposed convolution as its adjoint: no conjugation."""
        xp = libraries.namespace_of(kernel, name="kernel")
        return xp.conj(kernel) if dtypes.is_complex(kernel.dtype) else kernel


def _output_size(
    n: int,
    stride: int,
    reach: int,
    pad: tuple[int | None, int | None],
    extra: int,
    *,
    transposed: bool,
    same: bool,
) -> int:
    lo, hi = pad
    if lo is None or hi is None or same:
        return n * stride if transposed else -(-n // stride)
    if transposed:
        return max((n - 1) * stride - lo - hi + reach + extra + 1, 0)
    return max((n + lo + hi - reach - 1) // stride + 1, 0)


def correlate(kernel: Array, x: Array, axes: Sequence[Axis], groups: int) -> Array:
    """Return the correlation of `x`, shape (c_in, *sizes), with (c_out, c_in / groups, *taps)."""
    xp = libraries.namespace_of(x, name="x")
    y = linalg.matmul(_rows(kernel, groups), patches(x, axes, groups))
    return xp.reshape(y, (-1, *(a.outputs for a in axes)))


def patches(x: Array, axes: Sequence[Axis], groups: int) -> Array:
    """Return what each output reads of `x`, shape (groups, c_in / groups * T, outputs)."""
    return _gathered(x, [axis.sources() for axis in axes], groups)


def adjoint(kernel: Array, y: Array, axes: Sequence[Axis], groups: int) -> Array:
    """Return the adjoint of `correlate` at `y`, shape (c_out, *outputs)."""
    xp = libraries.namespace_of(y, name="y")
    c_out, c_in = kernel.shape[0] // groups, kernel.shape[1]
    back = xp.reshape(kernel, (groups, c_out, c_in, -1))
    back = xp.permute_dims(back, (0, 2, 1, 3))
    back = xp.conj(back) if dtypes.is_complex(kernel.dtype) else back
    back = xp.reshape(back, (groups, c_in, -1))
    terms = [
        linalg.matmul(back, _gathered(y, list(tables), groups))
        for tables in itertools.product(*(_readers(axis) for axis in axes))
    ]
    return xp.reshape(sum(terms[1:], terms[0]), (-1, *(a.size for a in axes)))


@functools.lru_cache(maxsize=8)
def _readers(axis: Axis) -> list[HostInts]:
    return axis.readers()  # the same at each step of an iteration


def _rows(kernel: Array, groups: int) -> Array:
    """Return the kernel as one matrix per group, shape (groups, c_out / groups, c_in / groups * T)."""
    xp = libraries.namespace(kernel)
    return xp.reshape(kernel, (groups, kernel.shape[0] // groups, -1))


def _gathered(x: Array, sources: Sequence[HostInts], groups: int) -> Array:
    """Read `x`, shape (c, *sizes), by tables (taps, points) per axis, -1 for zero: (groups, c / groups * T, points)."""
    xp = libraries.namespace_of(x, name="x")
    dims = len(sources)
    for source in sources:  # axis 1 in turn; what is read becomes the last axis
        padded = xp.concat([x, xp.zeros_like(x[:, :1, ...])], axis=1)
        index = np.where(source < 0, x.shape[1], source).reshape(-1)
        read = xp.take(padded, crossing.indices(index, like=x), axis=1)
        x = xp.permute_dims(read, (0, *range(2, x.ndim), 1))
    pairs = [n for source in sources for n in source.shape]
    x = xp.reshape(x, (groups, x.shape[0] // groups, *pairs))
    x = xp.permute_dims(x, (0, 1, *range(2, 2 + 2 * dims, 2), *range(3, 3 + 2 * dims, 2)))
    return xp.reshape(x, (groups, -1, math.prod(source.shape[1] for source in sources)))
