"""A norm followed while its operator changes a little at a time, as in training.

Of unit u and v every Re u^H T v is at most the norm of T, and its gradient is that of the norm where
they attain it.  Of a matrix, and of a convolution of one size, a block of vectors is kept
(`_blocks`), for every size waves (`_waves`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from gramnorm import _blocks, _validate, _waves
from gramnorm._arrays import autodiff, compiling, crossing, dtypes, libraries, linalg, spread
from gramnorm._arrays.types import Array
from gramnorm._conv import choose
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._conv.gradients import scaled_on_host
from gramnorm._conv.symbol import taps_of
from gramnorm._conv.vectors import attained
from gramnorm._matrix.bounds import matrix_norm_bracket
from gramnorm._matrix.fixed_steps import divisor
from gramnorm._results import result_dtype

__all__ = ["Tracked", "start_tracking", "track_norm"]

_START = 1e-2
"""Gap of the search for a start: vectors of a certified norm, which some steps improve."""

_STEPS = 5
"""Steps from that start."""

_BLOCK = 8
"""Vectors of a block."""

_LESS, _LARGE = 4, 2**16
"""The same of a matrix with more entries, where a product with so many costs twice as much as one
with a single vector, and of an operator of one size, whose products are taken one by one."""

_ORDINARY = 1e-12
"""Norms from this to its inverse: the squares of entries and of their products are normal."""


class Tracked(NamedTuple):
    """Where a norm is attained, nearly: what `track_norm` takes and gives back.

    Attributes
    ----------
    frequency : array, shape (axes,)
        Frequency of a wave, in radians per sample and axis. No axes for a matrix and for an operator
        of one size.
    vector : array, shape (vectors, ...)
        Unit vectors: of a matrix some of shape ``(n,)``, of an operator of one size some inputs
        ``(c_in, *input_shape)``; else the channels ``(c_in, *stride)`` of the wave, and of waves at
        the points of a grid. A kernel of one tap is a matrix. Those of a transposed convolution are
        outputs.
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
    [[0.0, 1.0], [1.0, 0.0]]
    """
    _check(x, geometry)
    a = _validate.concrete_argument(x, name="x", instead="track_norm")
    if _is_dense(geometry):
        found = matrix_norm_bracket(_stack(a, geometry), rtol=_START, vectors=True)
        return _of_block(found.right, a, geometry)
    assert geometry is not None
    bracket, place = choose.bracket(a, geometry, rtol=_START)
    found = attained(a, bracket, place, geometry, rtol=_START)
    vector: Array = found.left if geometry.transposed else found.right
    if geometry.input_shape is not None:
        return _of_block(vector, a, geometry)
    theta = np.zeros(len(geometry.kernel_size))
    if found.frequency is not None:  # it is, of a zero kernel, of NaN or inf
        theta = crossing.to_host(found.frequency)
    with libraries.plain_arithmetic(a):
        grid = _waves.grid_start(scaled_on_host(a), geometry)
    real = result_dtype(a)
    every = np.concatenate([crossing.host_array(vector)[None, ...], grid])
    every = np.where(np.isfinite(every), every, 0)  # of a kernel that holds NaN or inf
    return Tracked(
        crossing.from_host(theta, dtype=real, like=a),
        crossing.from_host(every, dtype=dtypes.complex_dtype(real), like=a),
    )


@compiling.one_node
@spread.gathers
def track_norm(
    x: Array, state: Tracked, /, geometry: ConvGeometry | None = None, *, steps: int = 1
) -> tuple[Array, Tracked]:
    """Estimate a norm from below, near where it was attained for an operator not much different.

    Two products with a few vectors for each step, and one with a single vector where it is
    differentiated: what a training step can pay. Differentiable once by the outer product of the
    vectors that attain the value, usable under ``jax.jit``, ``jax.grad`` and ``torch.compile``.

    Parameters
    ----------
    x : array
        The matrix or kernel, as for `start_tracking`.
    state : Tracked
        What `start_tracking` or the last call returned.
    geometry : ConvGeometry, optional
        As for `start_tracking`.
    steps : int, optional
        Steps of power iteration with a block of vectors, at least 0. One follows a large matrix or
        kernel through training; the first updates of Adam, which turn it about, take a dozen of a
        matrix and four of a kernel.

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
    parts: object = state
    if not isinstance(parts, Tracked):
        msg = f"state must be the Tracked that start_tracking returned, got {type(parts).__name__}"
        raise TypeError(msg)
    with libraries.plain_arithmetic(a):
        place = placed(a, state, geometry, steps=count)
        if 0 in a.shape or not autodiff.is_differentiated(a):
            return place.value, place.state
        linear = place.operator.along(_floating(a), place.pair)
        return _restored(linear, place.peak, place.operator.root), place.state


class Place(NamedTuple):
    """Where a norm was found to be attained nearly: by a pair of unit vectors, and what is kept."""

    value: Array
    pair: tuple[Array, ...]
    state: Tracked
    operator: _Operator
    peak: Array


def placed(x: Array, state: Tracked, geometry: ConvGeometry | None, *, steps: int) -> Place:
    """Take steps; all that is returned is constant for differentiation."""
    xp = libraries.namespace(x)
    a = _floating(autodiff.without_gradient(x))
    old = Tracked(*(autodiff.without_gradient(part) for part in state))
    if 0 in a.shape:
        zero = xp.zeros((), dtype=result_dtype(a), device=libraries.device_of(a))
        return Place(zero, (), old, _Matrices(a, geometry, zero), zero)
    if isinstance(a, np.ndarray):
        # sums of products with unit vectors are below the norm, so if that is an ordinary number
        # nothing was lost, and the largest entry needs no pass of its own
        one = np.ones((), dtype=result_dtype(a))
        _check_state(old, operator := _operator(a, geometry, one))
        value, pair, new = operator.follow(old, steps)
        if _ORDINARY < value < 1 / _ORDINARY:
            value = np.asarray(value)  # not a scalar of NumPy's
            return Place(value, pair, new, operator, value)
    peak = _peak(a)
    operator = _operator(a, geometry, 1 / xp.sqrt(divisor(peak)))
    _check_state(old, operator)
    value, *parts = _followed([a, operator.root, *old], geometry, steps)
    new, pair = Tracked(*parts[:2]), tuple(parts[2:])
    # inf and NaN are the norm, and like zero no place to go on from
    usable = xp.isfinite(peak) & (peak > 0)
    kept = Tracked(*(xp.where(usable, y, z) for y, z in zip(new, old, strict=True)))
    return Place(_restored(value, peak, operator.root), pair, kept, operator, peak)


@compiling.one_operation
def _followed(arrays: list[Array], geometry: ConvGeometry | None, steps: int) -> list[Array]:
    """Return the value, the state and the pair after steps with a kernel, its root and a state."""
    a, root, *state = arrays
    value, pair, new = _operator(a, geometry, root).follow(Tracked(*state), steps)
    return [value, *new, *pair]


class _Operator(Protocol):
    """What is followed: products with it carry `root` twice, so that entries are about 1."""

    root: Array
    shape: tuple[int, ...]
    axes: int
    least: int

    def follow(self, state: Tracked, steps: int) -> tuple[Array, tuple[Array, ...], Tracked]:
        """Take steps; return the value, the vectors that attain it, and what to go on from."""

    def along(self, a: Array, pair: tuple[Array, ...]) -> Array:
        """Return Re u^H T v as a function of the kernel."""

    def gradient(self, pair: tuple[Array, ...]) -> tuple[Array, ...]:
        """Return its gradient, or for a matrix the two vectors of whose outer product it is."""


class _Matrices:
    """Matrices, one for each group of channels, and a block of vectors for each.

    The norm is the largest of theirs.  Rows have the shape (groups, vectors, n).
    """

    axes, least = 0, 1

    def __init__(self, a: Array, geometry: ConvGeometry | None, root: Array) -> None:
        self.a, self.root, self.geometry = a, root, geometry
        self.groups = 1 if geometry is None else geometry.groups
        self.shape: tuple[int, ...] = (self.groups * int(a.shape[1]),)

    def first(self, v: Array) -> Array:
        """Return T v of rows."""
        return self.images(self.a, v)

    def images(self, a: Array, v: Array) -> Array:
        """Return T v of rows, as a function of the kernel."""
        xp = libraries.namespace(a)
        root = xp.astype(self.root, a.dtype, copy=False)
        stack = xp.matrix_transpose(_stack(a, self.geometry))
        return root * linalg.matmul(root * v, stack)

    def back(self, u: Array) -> Array:
        """Return T^H u of rows."""
        xp = libraries.namespace(u)
        root = xp.astype(self.root, u.dtype, copy=False)
        stack = _stack(self.a, self.geometry)
        stack = xp.conj(stack) if dtypes.is_complex(stack.dtype) else stack
        return root * linalg.matmul(root * u, stack)

    def follow(self, state: Tracked, steps: int) -> tuple[Array, tuple[Array, ...], Tracked]:
        """Take steps with all groups."""
        xp = libraries.namespace(self.a)
        count = state.vector.shape[0]
        rows = xp.reshape(state.vector, (count, self.groups, -1))
        rows = xp.permute_dims(rows, (1, 0, 2))
        values, u, v, rows = _blocks.stepped(rows, self, steps=steps)
        kept = xp.reshape(xp.permute_dims(rows, (1, 0, 2)), state.vector.shape)
        if self.groups > 1:
            number = crossing.indices(np.arange(self.groups), like=values)
            is_best = xp.astype(number == xp.argmax(values), values.dtype)
            u = u * xp.astype(is_best[:, None, None], u.dtype)
            v = v * xp.astype(is_best[:, None, None], v.dtype)
        return xp.max(values), (u, v), Tracked(state.frequency, kept)

    def along(self, a: Array, pair: tuple[Array, ...]) -> Array:
        """Return the sum of Re u^H T v over the groups."""
        u, v = pair
        return _inner(u, self.images(a, v))

    def gradient(self, pair: tuple[Array, ...]) -> tuple[Array, ...]:
        """Return u and v of a matrix, u v^H of several."""
        u, v = (part[:, 0, :] for part in pair)
        if self.groups == 1:
            return u[0, :], v[0, :]
        xp = libraries.namespace(u)
        v = xp.conj(v) if dtypes.is_complex(v.dtype) else v
        return (xp.reshape(u[:, :, None] * v[:, None, :], self.a.shape),)


class _OneSize(_Matrices):
    """The operator of one size, as a matrix that is known by its products."""

    def __init__(self, a: Array, geometry: ConvGeometry, root: Array) -> None:
        super().__init__(a, geometry, root)
        ends = (geometry.input_shape, geometry.output_shape)
        sizes = ends[::-1] if geometry.transposed else ends
        self.shape = (int(a.shape[1]) * geometry.groups, *(sizes[0] or ()))
        self._left = (int(a.shape[0]), *(sizes[1] or ()))
        self._ways: tuple[Callable[[Array, Array], Array], ...] = (geometry.apply, geometry.adjoint)
        if geometry.transposed:
            self._ways = self._ways[::-1]
        self.groups = 1

    def images(self, a: Array, v: Array) -> Array:
        """Return T v of rows."""
        return self._through(self._ways[0], a, v, self.shape)

    def back(self, u: Array) -> Array:
        """Return T^H u of rows."""
        return self._through(self._ways[1], self.a, u, self._left)

    def _through(
        self, way: Callable[[Array, Array], Array], a: Array, x: Array, shape: tuple[int, ...]
    ) -> Array:
        xp = libraries.namespace(a)
        root = xp.astype(self.root, a.dtype, copy=False)
        y = way(a, xp.reshape(root * x, (-1, *shape)))
        return root * xp.reshape(y, (1, x.shape[1], -1))


class _EverySize:
    """The symbol of a convolution, by waves."""

    def __init__(self, a: Array, geometry: ConvGeometry, root: Array) -> None:
        self.waves = _waves.Waves(a, geometry, root)
        self.root, self.geometry = root, geometry
        self.shape, self.axes = self.waves.shape, len(geometry.kernel_size)
        self.least = 1 + self.waves.vectors

    def follow(self, state: Tracked, steps: int) -> tuple[Array, tuple[Array, ...], Tracked]:
        """Take steps with all waves."""
        xp = libraries.namespace(state.vector)
        found, vectors = _waves.followed(state.frequency, state.vector, self.waves, steps=steps)
        value = xp.reshape(found.value, ())
        return value, found[1:4], Tracked(found.theta[0, ...], vectors)

    def along(self, a: Array, pair: tuple[Array, ...]) -> Array:
        """Return Re u^H F v of one wave."""
        turns, u, v = pair
        taps = taps_of(a, self.geometry.groups)
        return _inner(u, _waves.summed(self.waves.images(taps, v), turns))

    def gradient(self, pair: tuple[Array, ...]) -> tuple[Array, ...]:
        """Return conj(t_k) u v^H for the taps, in the shape of the kernel."""
        turns, u, v = pair
        xp = libraries.namespace(u)
        rows = xp.conj(turns[:, 0])[:, None, None, None] * u[None, :, :, :]
        found = rows * xp.conj(xp.permute_dims(self.waves.read(v), (0, 1, 3, 2)))
        found = found if dtypes.is_complex(self.waves.taps.dtype) else xp.real(found)
        groups, p, q = self.waves.taps.shape[1:]
        found = xp.permute_dims(found, (1, 2, 3, 0))
        return (xp.reshape(found, (groups * p, q, *self.geometry.kernel_size)),)


def _of_block(first: Array, a: Array, geometry: ConvGeometry | None) -> Tracked:
    """Return a block that starts from one vector for each group, and random ones, after steps."""
    xp = libraries.namespace(a)
    is_one_size = geometry is not None and geometry.input_shape is not None
    groups = 1 if geometry is None or is_one_size else geometry.groups
    n = math.prod(first.shape) // groups
    is_large = is_one_size or math.prod(a.shape) > _LARGE
    count = min(_LESS if is_large else _BLOCK, n)
    kind = _floating(a[:0, ...]).dtype
    first = xp.where(xp.isfinite(first), first, xp.zeros_like(first))  # of NaN and inf
    rng = np.random.default_rng(0)
    others = crossing.from_host(rng.standard_normal((groups, count, n)), dtype=kind, like=a)
    rows = xp.concat([xp.reshape(xp.astype(first, kind), (groups, 1, n)), others], axis=1)
    with libraries.plain_arithmetic(a):
        rows = linalg.orthonormal_rows(rows[:, : max(count, 1), :])
    shape = first.shape if is_one_size else (groups * n,)
    vector = xp.reshape(xp.permute_dims(rows, (1, 0, 2)), (rows.shape[1], *shape))
    theta = xp.zeros((0,), dtype=result_dtype(a), device=libraries.device_of(a))
    with libraries.plain_arithmetic(a):
        return placed(a, Tracked(theta, vector), geometry, steps=_STEPS).state


def _is_dense(geometry: ConvGeometry | None) -> bool:
    """Say whether the norm is that of matrices: for every size if there is but one tap."""
    if geometry is None:
        return True
    return geometry.input_shape is None and math.prod(geometry.kernel_size) == 1


def _stack(a: Array, geometry: ConvGeometry | None) -> Array:
    """Return the matrices of a kernel with one tap, one for each group."""
    groups = 1 if geometry is None else geometry.groups
    return libraries.namespace(a).reshape(a, (groups, int(a.shape[0]) // groups, int(a.shape[1])))


def _operator(a: Array, geometry: ConvGeometry | None, root: Array) -> _Operator:
    if _is_dense(geometry):
        return _Matrices(a, geometry, root)
    assert geometry is not None
    kind = _EverySize if geometry.input_shape is None else _OneSize
    return kind(a, geometry, root)


def _floating(a: Array) -> Array:
    """Return an array in a floating type of at least single precision."""
    real = result_dtype(a)
    kind = dtypes.complex_dtype(real) if dtypes.is_complex(a.dtype) else real
    return libraries.namespace(a).astype(a, kind, copy=False)


def _peak(a: Array) -> Array:
    """Return the largest component: NaN or inf where there is one."""
    xp = libraries.namespace(a)
    each = [xp.maximum(xp.max(part), -xp.min(part)) for part in dtypes.components(a)]
    return each[0] if len(each) == 1 else xp.maximum(*each)


def _restored(value: Array, peak: Array, root: Array) -> Array:
    xp = libraries.namespace(value)
    return xp.where(xp.isfinite(peak), value / root / root, peak)


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


def _check_state(state: Tracked, operator: _Operator) -> None:
    got = tuple(state.frequency.shape), tuple(state.vector.shape)
    fits = len(got[1]) > 0 and got[1][0] >= operator.least and got[1][1:] == operator.shape
    if got[0] != (operator.axes,) or not fits:
        msg = (
            f"state must hold a frequency of {operator.axes} axes and vectors of the shape "
            f"{operator.shape}, as start_tracking returns for this operator, got {got[0]} and {got[1]}"
        )
        raise ValueError(msg)


def _inner(x: Array, y: Array) -> Array:
    """Return Re <x, y>."""
    xp = libraries.namespace(x)
    pairs = zip(dtypes.components(x), dtypes.components(y), strict=True)
    terms = [xp.sum(a * b) for a, b in pairs]
    return sum(terms[1:], terms[0])
