"""A norm followed while its operator changes a little at a time, as in training.

A wave x[i] = v[:, i mod s] exp(i theta . i) of stride s leaves a convolution with dilation d as

    u exp(i theta . s o),   u = F(theta) v = sum_k exp(i theta . d k) K_k v[:, d k mod s],

and of unit u, v and any theta every |u^H F(theta) v| is at most the norm.  So what is kept gives a
number below it, whose gradient is that of the norm where u, v and theta attain it.  A step of power
iteration moves the vectors, the frequency climbs by what is sure to gain (docs/theory.md,
Lemma 31).  A matrix is a convolution with one tap.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import autodiff, compiling, crossing, dtypes, libraries, linalg, spread
from gramnorm._arrays.types import Array, HostFloats, HostInts, HostNumbers
from gramnorm._conv import choose
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._conv.gradients import scaled_on_host
from gramnorm._conv.symbol import taps_of
from gramnorm._conv.vectors import attained
from gramnorm._matrix import fixed_steps
from gramnorm._matrix.bounds import matrix_norm_bracket
from gramnorm._results import result_dtype

__all__ = ["Tracked", "start_tracking", "track_norm"]

_START = 1e-3
"""Gap of the search for a start."""

_CLIMBING = 4
"""Waves whose frequencies climb; the others stay at points of a grid and say where else it is high."""

_PER_AXIS = 8
"""Most points of that grid along an axis: twice as many as there are taps, up to this."""


class Tracked(NamedTuple):
    """Where a norm is attained, nearly: what `track_norm` takes and gives back.

    Attributes
    ----------
    frequency : array, shape (waves, axes)
        Frequencies of waves, in radians per sample and axis: a few that climb to local maxima, and
        those of a grid. No axes for a matrix and for an operator of one size, and one wave.
    vector : array, shape (waves, ...)
        Unit vectors: ``(n,)`` for a matrix, the channels of waves, ``(c_in, *stride)``, or an input
        of one size, ``(c_in, *input_shape)``. Those of a transposed convolution are the outputs.
    """

    frequency: Array
    vector: Array


@compiling.graph_break
@spread.gathers
def start_tracking(x: Array, /, geometry: ConvGeometry | None = None) -> Tracked:
    """Return where the norm of a matrix or a convolution is attained, by a certified search.

    Parameters
    ----------
    x : array
        A matrix of shape (m, n), or the kernel that `geometry` was made for.
    geometry : ConvGeometry, optional
        The convolution, for every size of its input or for one; a matrix if not given.

    Returns
    -------
    Tracked
        A named tuple of two arrays in the namespace and on the device of `x`.

    Raises
    ------
    TypeError, ValueError
        As in `matrix_norm_bracket` and `conv_norm_bracket`; ValueError also for a stack of matrices
        and a geometry of another shape.

    See Also
    --------
    track_norm : Follows the norm from there.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> state = gn.start_tracking(np.asarray([[3.0, 0.0], [0.0, 4.0]]))
    >>> abs(state.vector).round(3).tolist()
    [[0.0, 1.0]]
    """
    _check(x, geometry)
    a = _validate.concrete_argument(x, name="x", instead="track_norm")
    if geometry is None:
        right: Array = matrix_norm_bracket(a, vectors=True).right
        return Tracked(_no_axes(a), right[None, ...])
    bracket, place = choose.bracket(a, geometry, rtol=_START)
    found = attained(a, bracket, place, geometry, rtol=_START)
    vector: Array = found.left if geometry.transposed else found.right
    if geometry.input_shape is not None:
        return Tracked(_no_axes(a), vector[None, ...])
    first = np.zeros(len(geometry.kernel_size))
    if found.frequency is not None:  # it is, of a zero kernel, of NaN or inf
        first = crossing.to_host(found.frequency)
    with libraries.plain_arithmetic(a):
        return _of_peaks(a, first, crossing.host_array(vector), geometry)


@compiling.one_node
@spread.gathers
def track_norm(
    x: Array, state: Tracked, /, geometry: ConvGeometry | None = None, *, steps: int = 1
) -> tuple[Array, Tracked]:
    """Estimate a norm from below, near where it was attained for an operator not much different.

    Two products with vectors for each step, and one for the value: what a training step can pay.
    Differentiable once by the outer product of the vectors, usable under ``jax.jit``,
    ``jax.grad`` and ``torch.compile``.

    Parameters
    ----------
    x : array
        The matrix or kernel, as for `start_tracking`.
    state : Tracked
        What `start_tracking` or the last call returned.
    geometry : ConvGeometry, optional
        As for `start_tracking`.
    steps : int, optional
        Steps of power iteration, at least 0.

    Returns
    -------
    value : 0-d array
        The estimate, in the real dtype (float32 at least) of `x`.
    state : Tracked
        To be passed to the next call; constants for differentiation.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other.

    See Also
    --------
    matrix_norm_bound, conv_norm_bound : Certified, from above.
    start_tracking : Where to start, and to start again from now and then.

    Notes
    -----
    **Guarantee.** Not above the norm of the operator (of the supremum over sizes, if `geometry` has
    none), up to rounding; in exact arithmetic no step with the same `x` lowers the value. Nothing
    tells how far below it is: the peak of a convolution may jump to another frequency, and
    singular values may cross. A search every so many steps finds out.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> kernel = np.random.default_rng(0).standard_normal((8, 4, 3, 3))
    >>> geometry = gn.ConvGeometry.of(kernel.shape)
    >>> state = gn.start_tracking(kernel, geometry)
    >>> value, state = gn.track_norm(kernel * 1.1 + 0.01, state, geometry)
    >>> bracket = gn.conv_norm_bracket(kernel * 1.1 + 0.01)
    >>> bool(0.999 * bracket.lower <= value <= bracket.upper)
    True
    """
    a = _check(x, geometry)
    count = _validate.positive_int(steps, name="steps", least=0)
    xp = libraries.namespace(a)
    real = result_dtype(a)
    parts: object = state
    if not isinstance(parts, Tracked):
        msg = f"state must be the Tracked that start_tracking returned, got {type(parts).__name__}"
        raise TypeError(msg)
    if 0 in a.shape:
        return xp.zeros((), dtype=real, device=libraries.device_of(a)), state
    old = Tracked(*(autodiff.without_gradient(part) for part in state))
    with libraries.plain_arithmetic(a):
        flat, peak = fixed_steps.scaled(xp.reshape(a, (1, -1)))
        kind = dtypes.complex_dtype(real) if dtypes.is_complex(flat.dtype) else real
        a = xp.reshape(xp.astype(flat, kind, copy=False), a.shape)
        value, new = _followed(a, old, geometry, steps=count)
        # inf and NaN are the norm, and no place to go on from
        value = xp.where(xp.isfinite(peak), fixed_steps.divisor(peak) * value, peak)
        kept = (xp.where(xp.isfinite(peak), x, y) for x, y in zip(new, old, strict=True))
        return value, Tracked(*kept)


def _followed(
    a: Array, state: Tracked, geometry: ConvGeometry | None, *, steps: int
) -> tuple[Array, Tracked]:
    """Do what `track_norm` does, for entries of size at most about 1."""
    xp = libraries.namespace(a)
    theta, v = state
    if geometry is not None and geometry.input_shape is not None:
        value, v = _of_one_size(a, v[0, ...], geometry, steps=steps)
        return xp.reshape(xp.stack([value]), ()), Tracked(theta, v[None, ...])
    _check_state(theta, v, operator := _Waves(a, geometry))
    theta, v = _powers(theta, v, operator, steps=steps, climbing=_CLIMBING)
    values = _values(theta, v, operator)
    value = xp.reshape(xp.max(values, axis=0, keepdims=True), ())
    return value, _exchanged(theta, v, autodiff.without_gradient(values))


def _check(x: object, geometry: object) -> Array:
    a = _validate.array_argument(x, name="x")
    if geometry is None:
        if a.ndim != 2:
            msg = f"x must be one matrix if no geometry is given, got shape {tuple(a.shape)}"
            raise ValueError(msg)
        return a
    if not isinstance(geometry, ConvGeometry):
        msg = f"geometry must be a ConvGeometry or None, got {type(geometry).__name__}"
        raise TypeError(msg)
    _validate.taps(tuple(a.shape), geometry.kernel_size, groups=geometry.groups)
    return a


def _check_state(theta: Array, v: Array, operator: _Waves) -> None:
    axes = operator.places.shape[1]
    if tuple(theta.shape)[1:] != (axes,) or tuple(v.shape)[1:] != operator.shape:
        msg = (
            f"state must hold frequencies of {axes} axes and vectors of the shape {operator.shape}, "
            f"as start_tracking returns for this operator, got {tuple(theta.shape)[1:]} and "
            f"{tuple(v.shape)[1:]}"
        )
        raise ValueError(msg)


def _of_one_size(a: Array, v: Array, geometry: ConvGeometry, *, steps: int) -> tuple[Array, Array]:
    """Take steps with the operator itself."""
    frozen = autodiff.without_gradient(a)
    ways = (geometry.adjoint, geometry.apply)
    back, first = ways[::-1] if geometry.transposed else ways
    every = tuple(range(v.ndim))
    for _ in range(steps):
        v = _unit(back(frozen, _unit(first(frozen, v), every)), every)
    u = _unit(first(frozen, v), every)
    return _inner(u, first(a, v), every), v


def _no_axes(a: Array) -> Array:
    xp = libraries.namespace(a)
    return xp.zeros((1, 0), dtype=result_dtype(a), device=libraries.device_of(a))


def _of_peaks(a: Array, first: HostFloats, v: HostNumbers, geometry: ConvGeometry) -> Tracked:
    """Return the wave (first, v), those that have climbed to other maxima, and those of a grid."""
    operator = _Waves(scaled_on_host(a), geometry)
    taps = np.asarray(geometry.kernel_size)
    counts = np.where(taps > 1, np.minimum(2 * taps, _PER_AXIS), 1)
    grid = np.stack(np.meshgrid(*(np.arange(n) / n for n in counts), indexing="ij"), axis=-1)
    theta = 2 * np.pi * grid.reshape(-1, len(counts))
    theta = theta / np.where(taps > 1, geometry.dilation, 1)
    waves = np.random.default_rng(0).standard_normal((len(theta), *operator.shape)) + 0j
    waves = _powers(theta, waves, operator, steps=10, climbing=0)[1]
    best = np.argsort(-_values(theta, waves, operator), kind="stable")[: _CLIMBING - 1]
    others = _powers(theta[best], waves[best], operator, steps=10, climbing=_CLIMBING)
    real = result_dtype(a)
    frequencies = np.concatenate([first[None], others[0], theta])
    vectors = np.concatenate([v[None], others[1], waves])
    return Tracked(
        crossing.from_host(frequencies, dtype=real, like=a),
        crossing.from_host(vectors, dtype=dtypes.complex_dtype(real), like=a),
    )


class _Waves:
    """F(theta) and its adjoint at W waves, by the taps of all groups.

    Attributes
    ----------
    taps : array, shape (T, groups, p, q)
        The kernel.
    places : host ints, shape (T, axes)
        The sample d k that tap k reads.
    phases : host ints, shape (T,)
        Which sample within a stride that is.
    shape : tuple of int
        That of the channels of a wave.
    """

    def __init__(self, a: Array, geometry: ConvGeometry | None) -> None:
        if geometry is None:
            self.taps = a[None, None, ...]
            self.places = np.zeros((1, 0), dtype=np.int64)
            self.phases, self.count = np.zeros(1, dtype=np.int64), 1
            self.shape: tuple[int, ...] = (int(a.shape[1]),)
            return
        self.taps = taps_of(a, geometry.groups)
        offsets = itertools.product(*(range(k) for k in geometry.kernel_size))
        self.places = np.asarray(list(offsets), dtype=np.int64) * np.asarray(geometry.dilation)
        self.phases = np.ravel_multi_index((self.places % geometry.stride).T, geometry.stride)
        self.count = int(np.prod(geometry.stride))
        self.shape = (int(a.shape[1]) * geometry.groups, *geometry.stride)

    def turns(self, theta: Array) -> Array | None:
        """Return exp(i theta . d k), shape (T, W); None for a single tap, whose phase is free."""
        if len(self.places) == 1:
            return None
        xp = libraries.namespace(theta)
        places = crossing.from_host(self.places.astype(np.float64), dtype=theta.dtype, like=theta)
        angle = linalg.matmul(places, xp.matrix_transpose(theta))
        return xp.exp(1j * xp.astype(angle, dtypes.complex_dtype(theta.dtype)))

    def images(self, taps: Array, v: Array) -> Array:
        """Return K_k v[:, d k mod s] for all taps, shape (T, groups, p, W)."""
        xp = libraries.namespace(taps)
        groups, q = int(taps.shape[1]), int(taps.shape[3])
        parts = xp.reshape(v, (v.shape[0], groups, q, self.count))
        parts = crossing.select(xp.permute_dims(parts, (3, 1, 2, 0)), self.phases)
        return _times(taps, parts)

    def back(self, taps: Array, u: Array, turns: Array | None) -> Array:
        """Return F^H u in the shape of inputs."""
        xp = libraries.namespace(taps)
        parts = _times(linalg.adjoint(taps), u[None, ...])
        if turns is not None:
            parts = parts * xp.conj(turns)[:, None, None, :]
        if len(self.phases) == self.count == 1:
            summed = parts
        else:  # of several samples a stride apart, one tap reads the first
            table = (self.phases[None, :] == np.arange(self.count)[:, None]).astype(np.float64)
            moved = crossing.from_host(table, dtype=parts.dtype, like=parts)
            rows = linalg.matmul(moved, xp.reshape(parts, (parts.shape[0], -1)))
            summed = xp.reshape(rows, (self.count, *parts.shape[1:]))
        return xp.reshape(xp.permute_dims(summed, (3, 1, 2, 0)), (u.shape[-1], *self.shape))


def _powers(
    theta: Array, v: Array, operator: _Waves, *, steps: int, climbing: int
) -> tuple[Array, Array]:
    """Take steps of power iteration with waves; the frequencies of the first ones climb."""
    frozen = autodiff.without_gradient(operator.taps)
    moving = crossing.from_host(
        1.0 * (np.arange(theta.shape[0]) < climbing)[:, None], dtype=theta.dtype, like=theta
    )
    for _ in range(steps):
        turns = operator.turns(theta)
        images = operator.images(frozen, v)
        if turns is not None and climbing:
            theta = theta + moving * _climb(_terms(images, turns), operator.places)
            turns = operator.turns(theta)
        v = operator.back(frozen, _unit(_summed(images, turns), (0, 1)), turns)
        v = _unit(v, tuple(range(1, v.ndim)))
    return theta, v


def _values(theta: Array, v: Array, operator: _Waves) -> Array:
    """Return |F v| for each wave, differentiable in the kernel."""
    turns = operator.turns(theta)
    frozen = autodiff.without_gradient(operator.taps)
    u = _unit(_summed(operator.images(frozen, v), turns), (0, 1))
    return _inner(u, _summed(operator.images(operator.taps, v), turns), (0, 1))


def _exchanged(theta: Array, v: Array, values: Array) -> Tracked:
    """Let the largest wave of the grid, if larger, take the place of the least that climbs."""
    xp = libraries.namespace(values)
    if values.shape[0] <= _CLIMBING:
        return Tracked(theta, v)
    which = crossing.indices(np.arange(values.shape[0]), like=values)
    least = xp.argmin(values[:_CLIMBING])
    best = xp.argmax(values[_CLIMBING:]) + _CLIMBING
    is_larger = xp.take(values, best[None]) > xp.take(values, least[None])
    moved = (which == least) & is_larger

    def exchange(x: Array) -> Array:
        new = xp.take(x, best[None], axis=0)
        return xp.where(xp.reshape(moved, (-1, *(1 for _ in x.shape[1:]))), new, x)

    return Tracked(exchange(theta), exchange(v))


def _summed(images: Array, turns: Array | None) -> Array:
    """Return F v, shape (groups, p, W)."""
    xp = libraries.namespace(images)
    return images[0, ...] if turns is None else xp.sum(images * turns[:, None, None, :], axis=0)


def _terms(images: Array, turns: Array) -> Array:
    """Return exp(i theta . d k) u^H K_k v for u = F v over its length, shape (T, W)."""
    xp = libraries.namespace(images)
    u = _unit(_summed(images, turns), (0, 1))
    return xp.sum(xp.conj(u) * images, axis=(1, 2)) * turns


def _climb(terms: Array, places: HostInts) -> Array:
    """Return steps of frequencies that do not lower |sum_k terms_k exp(i step . (d k))|.

    With g the gradient and c_k the places from their mean, the second derivatives along the axes
    (A of them) are below L_a = A sum |terms_k| c_ka^2, so that g_a / L_a gains g_a^2 / 2 L_a.
    """
    xp = libraries.namespace(terms)
    real = dtypes.real_dtype(terms.dtype)
    at = crossing.from_host(places.astype(np.float64), dtype=real, like=xp.real(terms))[:, None, :]
    sizes = xp.abs(terms)[..., None]
    mean = xp.sum(sizes * at, axis=0) / _positive(xp.sum(sizes, axis=0))
    slope = -xp.sum(xp.imag(terms)[..., None] * (at - mean), axis=0)
    curvature = places.shape[1] * xp.sum(sizes * (at - mean) ** 2, axis=0)
    return slope / _positive(curvature)


def _times(taps: Array, vectors: Array) -> Array:
    """Return the products of matrices with some columns, real ones with both parts of these."""
    xp = libraries.namespace(taps)
    if dtypes.is_complex(taps.dtype) or not dtypes.is_complex(vectors.dtype):
        return linalg.matmul(taps, vectors)
    width = vectors.shape[-1]
    both = linalg.matmul(taps, xp.concat(dtypes.components(vectors), axis=-1))
    both = xp.astype(both, vectors.dtype)
    return both[..., :width] + 1j * both[..., width:]


def _unit(x: Array, axes: tuple[int, ...]) -> Array:
    """Return vectors along these axes over their lengths, or zero."""
    xp = libraries.namespace(x)
    x = x / xp.astype(_positive(xp.max(xp.abs(x), axis=axes, keepdims=True)), x.dtype)
    squares = sum(xp.sum(part * part, axis=axes, keepdims=True) for part in dtypes.components(x))
    return x / xp.astype(_positive(xp.sqrt(squares)), x.dtype)


def _positive(x: Array) -> Array:
    """Return `x` with ones for zeros, to divide by."""
    xp = libraries.namespace(x)
    return xp.where(x == 0, xp.ones_like(x), x)


def _inner(x: Array, y: Array, axes: tuple[int, ...]) -> Array:
    """Return Re <x, y> along these axes."""
    xp = libraries.namespace(x)
    pairs = zip(dtypes.components(x), dtypes.components(y), strict=True)
    terms = [xp.sum(a * b, axis=axes) for a, b in pairs]
    return sum(terms[1:], terms[0])
