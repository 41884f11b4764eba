"""Unit inputs and outputs at which a lower bound on the norm of a convolution is attained.

A wave that repeats itself with the stride s, up to phases, goes through a correlation unchanged,

    x[i] = v[i mod s] exp(i theta . i)  ->  y[o] = u exp(i theta . s o),
    u = F v = sum_k K_k v[d k mod s] exp(i theta . d k),

whatever the dilation d.  So the top singular vectors of F attain the supremum over all sizes, and
the wave attains the norm on a circle.  If K is real, ||T x||^2 = ||T Re x||^2 + ||T Im x||^2, so
one of the two parts attains no less than x.  At any other size Golub-Kahan steps on the operator
start from the wave under a window.

No bound is raised here: `lower` becomes what the vectors attain as they are stored, the rounding of
this value counted, or stays where it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import crossing, dtypes, libraries, limits
from gramnorm._arrays.types import Array, HostFloats, HostInts
from gramnorm._conv import ascent, every_size
from gramnorm._conv.cells import grid_points
from gramnorm._conv.finite_lower import window_size
from gramnorm._conv.geometry import Axis, ConvGeometry, adjoint, correlate
from gramnorm._conv.gradients import Place
from gramnorm._conv.symbol import taps_of
from gramnorm._matrix import lanczos, ritz
from gramnorm._results import Bounds, NormBracket, attainable, converged, result_dtype
from gramnorm._rigour import angles, sums
from gramnorm._rigour.model import HOST_UNIT, down, precision_of, round_outward, scale_back, up

HostArray = npt.NDArray[np.inexact]
Pair = tuple[HostArray, HostArray]
"""An input and an output of a correlation; a transposed convolution takes them the other way."""


def attained(
    a: Array, found: NormBracket, place: Place | None, geometry: ConvGeometry, *, rtol: float
) -> NormBracket:
    """Return a bracket with the vectors, and with the lower bound that they attain."""
    out = result_dtype(a)
    is_complex = geometry.input_shape is None or dtypes.is_complex(a.dtype)
    kind = dtypes.complex_dtype(out) if is_complex else out
    lower, upper = (crossing.to_host(end).reshape(1) for end in (found.lower, found.upper))
    if place is None:
        x, y = _basis_pair(a, geometry, 0.0 if math.isfinite(upper[0]) else math.nan)
    else:
        with libraries.plain_arithmetic(a):
            theta = _frequency(found, place, geometry)
            operator, exponent = _on_host(a, geometry)
            wanted = math.ldexp(float(lower[0]), -exponent)
            x, y = operator.best_pair(theta, place, wanted, rtol=attainable(rtol))
            stored = (
                (np.complex64 if is_complex else np.float32) if dtypes.bits(out) == 32 else None
            )
            x, y = (v if stored is None else v.astype(stored) for v in (x, y))
            size = np.asarray([operator.quotient(x, y, theta)])
            back = scale_back(size, size, np.asarray([float(exponent)]))
            lower = np.minimum(lower, round_outward(*back, dtype=out)[0])
    xp, device = libraries.namespace(a), libraries.device_of(a)
    right, left = (y, x) if geometry.transposed else (x, y)
    return dataclasses.replace(
        found,
        lower=crossing.from_host(lower[0], dtype=out, like=a),
        converged=xp.asarray(
            converged(Bounds(lower, upper), rtol)[0], dtype=xp.bool, device=device
        ),
        left=crossing.from_host(left, dtype=kind, like=a),
        right=crossing.from_host(right, dtype=kind, like=a),
    )


def _basis_pair(a: Array, geometry: ConvGeometry, known: float) -> Pair:
    """Return the first unit vectors of the spaces, plus `known`.

    NaN where nothing attains a norm.
    """
    c_out, c_in = int(a.shape[0]), int(a.shape[1]) * geometry.groups
    inputs: tuple[int, ...] = geometry.stride
    outputs: tuple[int, ...] = ()
    if geometry.input_shape is not None:
        axes = geometry.axes()
        inputs, outputs = tuple(a.size for a in axes), tuple(a.outputs for a in axes)
    shapes = (c_in, *inputs), (c_out, *outputs)
    x, y = (np.eye(1, math.prod(shape)).reshape(shape) + known for shape in shapes)
    return x, y


def _frequency(found: NormBracket, place: Place, geometry: ConvGeometry) -> HostFloats:
    """Return the frequency of the wave.

    For every size as the caller reads it, exact on a circle.
    """
    if geometry.input_shape is None:
        return crossing.to_host(found.frequency)
    return np.zeros(0) if place.frequency is None else place.frequency


def _on_host(a: Array, geometry: ConvGeometry) -> tuple[_Correlation, int]:
    """Return the correlation with the kernel times 2^-e in double precision, and e."""
    host = crossing.host_array(a)
    host = host.astype(np.complex128 if np.iscomplexobj(host) else np.float64)
    peak = max(float(np.max(np.abs(part))) for part in (host.real, host.imag))
    exponent = min(max(math.frexp(peak)[1], -1022), 1022)
    host = host * 2.0**-exponent
    # a transposed convolution is the adjoint of the correlation with the conjugate kernel
    host = np.conj(host) if geometry.transposed else host
    c_out, *rest = host.shape
    kernel = host.reshape(geometry.groups, c_out // geometry.groups, *rest)
    axes = None if geometry.input_shape is None else geometry.axes()
    return _Correlation(kernel, geometry.stride, geometry.dilation, axes), exponent


@dataclasses.dataclass(frozen=True, eq=False)
class _Correlation:
    """A correlation on the host, at the size of `axes` or at every size.

    Attributes
    ----------
    kernel : host array, shape (groups, c_out / groups, c_in / groups, *taps)
    stride, dilation : tuple of int
    axes : tuple of Axis, or None
    """

    kernel: HostArray
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    axes: tuple[Axis, ...] | None

    @cached_property
    def taps(self) -> HostArray:
        """Taps, shape (T, groups, c_out / groups, c_in / groups)."""
        groups, p, *rest = self.kernel.shape
        return np.ascontiguousarray(taps_of(self.kernel.reshape(groups * p, *rest), groups))

    @cached_property
    def positions(self) -> HostInts:
        """What each tap reads, d k, shape (T, axes)."""
        ks = grid_points(map(np.arange, self.kernel.shape[3:]))
        return np.asarray(ks * np.asarray(self.dilation))

    @property
    def is_circle(self) -> bool:
        """Whether the waves go round, so that no size cuts them."""
        return self.axes is not None and all(axis.is_circle for axis in self.axes)

    def best_pair(self, theta: HostFloats, place: Place, wanted: float, *, rtol: float) -> Pair:
        """Return unit vectors that attain `wanted`, or as much as is found."""
        groups = len(self.kernel)
        if self.axes is None:
            v, u = self._top_pair(place.group, theta, rtol)
            return _in_group(v, place.group, groups), _in_group(u, place.group, groups)
        enough, best, chosen = wanted * (1 - rtol / 8), -1.0, None
        for group, x in self._candidates(theta, place, rtol=rtol):
            y = correlate(self.kernel[group], x, self.axes, 1)
            size = _length(y) / _length(x)
            if size > best:
                best, chosen = size, (group, x, y)
            if best >= enough:
                break
        assert chosen is not None
        group, x, y = chosen
        return _in_group(x, group, groups), _in_group(y, group, groups)

    def quotient(self, x: HostArray, y: HostArray, theta: HostFloats) -> float:
        """Return a lower bound on Re y^H T x / (||x|| ||y||), with F(theta) for T at every size."""
        groups, _, q, *kernel_size = self.kernel.shape
        taps, wide = math.prod(kernel_size), np.complex128 if np.iscomplexobj(x) else np.float64
        x, y = x.astype(wide), y.astype(wide)
        if self.axes is None:
            image, copies = self._through(x, theta), 1
            # angles are wrong by four roundings, sine and cosine by twenty (see `symbol.phases`)
            reach = float(np.sum(np.max(self.positions, axis=0))) * math.pi
            omega = (4 * reach + 20 * len(kernel_size)) * HOST_UNIT
        else:
            kernel = self.kernel.reshape(-1, q, *kernel_size)
            image = correlate(kernel, x, self.axes, groups)
            copies, omega = math.prod(axis.copies() for axis in self.axes), 0.0
        prec = precision_of(np.dtype(np.complex128))
        (_, norm_k), (_, norm_x), (_, norm_y) = map(sums.host_norm, (self.kernel, x, y))
        # of the image, as in `sums.image_quotient`, and of the product with y
        error = (prec.kappa(q * taps) + omega) * norm_k * math.sqrt(taps * copies) * norm_x
        error += prec.underflow(q * taps) * math.sqrt(2.0 * y.size)
        error += prec.kappa(y.size) * (sums.host_norm(image)[1] + error)
        product = float(np.vdot(y, image).real)
        return down(max(product - up(error * norm_y), 0.0) / (norm_x * norm_y))

    def _through(self, v: HostArray, theta: HostFloats) -> HostArray:
        """Return F(theta) v = sum_k K_k v[d k mod s] exp(i theta . d k), shape (c_out,)."""
        groups, _, q, *_ = self.kernel.shape
        inputs = v.reshape(groups, q, *self.stride)
        phases = angles.unit_circle(self.positions @ theta)
        at = tuple((self.positions % np.asarray(self.stride)).T)
        read = np.moveaxis(inputs[:, :, *at], -1, 0) * phases[:, None, None]
        return np.asarray(np.einsum("tgpq,tgq->gp", self.taps, read).reshape(-1))

    def _top_pair(self, group: int, theta: HostFloats, rtol: float) -> Pair:
        """Return the top singular vectors of F(theta), v of shape (c_in / groups, *stride), and u."""
        taps = self.taps[:, group]
        phases = np.exp(1j * (self.positions @ theta))
        classes = np.ravel_multi_index(
            tuple((self.positions % np.asarray(self.stride)).T), self.stride
        )
        present, which = np.unique(classes, return_inverse=True)
        f = np.zeros((len(present), *taps.shape[1:]), dtype=np.complex128)
        np.add.at(f, which.reshape(-1), phases[:, None, None] * taps)
        matrix = f.transpose(1, 2, 0).reshape(taps.shape[1], -1)
        v = np.zeros((taps.shape[2], math.prod(self.stride)), dtype=np.complex128)
        peak = float(np.max(np.abs(matrix)))
        if peak == 0:
            u = np.eye(1, len(matrix), dtype=np.complex128)[0]
            v[0, 0] = 1.0
        else:
            u, top = ritz.unit_pair(matrix / peak, rtol / 16)
            v[:, present] = top.reshape(taps.shape[2], -1)
        return v.reshape(-1, *self.stride), u

    def _candidates(
        self, theta: HostFloats, place: Place, *, rtol: float
    ) -> Iterator[tuple[int, HostArray]]:
        """Yield inputs of a group, the cheapest first: the wave, then steps on the operator."""
        if self.is_circle:
            for x in self._parts(self._wave(place.group, theta, rtol, windowed=False)):
                yield place.group, x
            return
        assert self.axes is not None
        if place.is_even:
            for x in self._parts(self._cosines(place.group, theta, rtol)):
                yield place.group, x
            return
        symbol, best = every_size.supremum(
            self.taps, self.kernel.shape[3:], self.stride, self.dilation, rtol=limits.START_RTOL
        )
        taps = symbol.host_taps(best.block)
        turns = ascent.climb(taps, symbol.offsets, best.turns, rounds=limits.PEAK_ROUNDS[0])
        theta = 2 * math.pi * turns / np.lcm(self.stride, self.dilation)
        for group in self._promising_first(best.block):
            wave = self._wave(group, theta, rtol, windowed=True)
            parts = self._parts(wave)
            yield from ((group, x) for x in parts)
            yield from ((group, x) for x in self._climbed(group, parts[0], rtol=rtol))

    def _promising_first(self, first: int) -> list[int]:
        """Return the groups that are not zero: one, and the others by the size of their taps."""
        sizes = np.sum(np.sqrt(np.sum(np.abs(self.taps) ** 2, axis=(2, 3))), axis=0)
        order = [first, *(g for g in np.argsort(-sizes).tolist() if g != first)]
        return [g for g in order if sizes[g] > 0]

    def _parts(self, x: HostArray) -> list[HostArray]:
        """Return what the operator takes of a complex wave.

        Itself, or its parts that are not zero.
        """
        if np.iscomplexobj(self.kernel):
            return [x]
        largest = float(np.max(np.abs(x)))
        return [part for part in (x.real, x.imag) if np.max(np.abs(part)) > 1e-6 * largest]

    def _wave(self, group: int, theta: HostFloats, rtol: float, *, windowed: bool) -> HostArray:
        """Return v[i mod s] exp(i theta . i) on the samples of the input, counted from the first tap."""
        assert self.axes is not None
        x: HostArray = self._top_pair(group, theta, rtol)[0]
        for number, (axis, angle) in enumerate(zip(self.axes, theta.tolist(), strict=True), 1):
            i = np.arange(axis.size)
            values = np.exp(1j * angle * (i + axis.before))
            if windowed:
                values = values * np.sin(math.pi * (i + 1) / (axis.size + 1))
            shape = (-1, *(1 for _ in self.axes[number:]))
            x = np.take(x, (i + axis.before) % axis.stride, axis=number) * values.reshape(shape)
        return x if np.any(x) else np.ones_like(x)  # samples fewer than the stride may miss it

    def _cosines(self, group: int, theta: HostFloats, rtol: float) -> HostArray:
        """Return v cos(theta . (i + 1/2)), axis by axis, on the samples of the input."""
        assert self.axes is not None
        x: HostArray = self._top_pair(group, theta, rtol)[0]
        for number, (axis, angle) in enumerate(zip(self.axes, theta.tolist(), strict=True), 1):
            shape = (-1, *(1 for _ in self.axes[number:]))
            x = x * np.cos(angle * (np.arange(axis.size) + 0.5)).reshape(shape)
        return x

    def _climbed(self, group: int, wave: HostArray, *, rtol: float) -> Iterator[HostArray]:
        """Yield inputs from Golub-Kahan steps that start at a wave, on a window of a large operator."""
        assert self.axes is not None
        kernel = self.kernel[group]
        most = window_size(self.axes, kernel.shape[1])
        axes = tuple(a if a.size <= most else a.inside().window(most) for a in self.axes)
        if any(a.outputs == 0 for a in axes):
            return
        starts = [(a.size - b.size) // 2 for a, b in zip(self.axes, axes, strict=True)]
        inside = (slice(None), *(slice(n, n + b.size) for n, b in zip(starts, axes, strict=True)))
        x = wave[inside]

        def normal(v: HostArray) -> HostArray:
            y = correlate(kernel, v.reshape(x.shape), axes, 1)
            return np.asarray(adjoint(kernel, y, axes, 1).reshape(-1))

        # generic: the wave may be orthogonal to what it is to find
        noise = np.random.default_rng(0).standard_normal(x.size)
        v: HostArray = x.reshape(-1) / (_length(x) or 1.0) + limits.START_NOISE * noise / _length(
            noise
        )
        for _ in range(limits.VECTOR_RESTARTS):
            v = lanczos.top_vector(normal, v, rtol=rtol / 8, steps=limits.GOLUB_KAHAN_STEPS)
            whole = np.zeros_like(wave)
            whole[inside] = v.reshape(x.shape)
            yield whole


def _in_group(x: HostArray, group: int, groups: int) -> HostArray:
    """Return a vector of one group, over its length, among zeros; a basis vector for zero."""
    whole = np.zeros((groups, *x.shape), dtype=x.dtype)
    length = _length(x)
    if length > 0:
        whole[group] = x / length
    else:
        whole[group].reshape(-1)[:1] = 1.0
    return whole.reshape(-1, *x.shape[1:])


def _length(x: HostArray) -> float:
    return float(np.linalg.norm(x.reshape(-1)))
