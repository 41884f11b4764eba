"""Bounds on the spectral norm of convolutions, as operators: not of the reshaped kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gramnorm import _assemble, _scaling, _search, _validate, _xp
from gramnorm._rounding import gram_units, working_dtype
from gramnorm._stack import attainable, bracket_stack, divisor, fixed_steps, result_dtype
from gramnorm._symbol import Symbol, phases
from gramnorm._typing import Array, HostFloats, HostInts, Namespace
from gramnorm.bracket import NormBracket
from gramnorm.geometry import ConvGeometry, span
from gramnorm.matrix import to_bracket

__all__ = ["conv_gram_iteration", "conv_norm_bound", "conv_norm_bracket"]


def conv_norm_bound(
    kernel: Array,
    /,
    input_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: _validate.Padding = None,
    padding_mode: str = "zeros",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
    rtol: float | None = None,
) -> Array:
    """Return a certified upper bound on the spectral norm of a convolution.

    This is the `upper` of `conv_norm_bracket`, which describes the operator, the guarantee and the errors.

    Parameters
    ----------
    kernel : array, shape ``(c_out, c_in / groups, *spatial)``
        Kernel with one or more spatial axes, real or complex; integers and bool are promoted.
    input_shape : int or sequence of int, optional
        Samples of the input per spatial axis; by default every size at once.
    stride : int or sequence of int, optional
        Only 1 for now.
    padding : int, sequence of int or of (lo, hi), "valid", "same", "full", optional
        Zero padding per axis at a given `input_shape`; "same" by default.
    padding_mode : {"zeros", "circular", "reflect", "replicate"}, optional
        What lies beyond the input; "reflect" and "replicate" are not implemented yet.
    dilation : int or sequence of int, optional
        Distance between taps per axis.
    groups : int, optional
        Number of independent blocks of channels.
    transposed : bool, optional
        Only False for now.
    output_padding : int or sequence of int, optional
        Only 0 for now.
    rtol : float, optional
        Relative gap asked for, 1e-3 by default.

    Returns
    -------
    0-d array
        Upper bound in the namespace, device and real dtype of `kernel`.

    See Also
    --------
    conv_norm_bracket : The same bound with a lower one and a convergence flag.

    Examples
    --------
    The second difference has gain 4 at the highest frequency, whatever the size of the input:

    >>> import numpy as np
    >>> import gramnorm as gn
    >>> bound = gn.conv_norm_bound(np.asarray([[[1.0, -2.0, 1.0]]]))
    >>> bool(4.0 <= bound <= 4.004)
    True
    """
    return conv_norm_bracket(
        kernel,
        input_shape,
        stride=stride,
        padding=padding,
        padding_mode=padding_mode,
        dilation=dilation,
        groups=groups,
        transposed=transposed,
        output_padding=output_padding,
        rtol=rtol,
    ).upper


def conv_norm_bracket(
    kernel: Array,
    /,
    input_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: _validate.Padding = None,
    padding_mode: str = "zeros",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
    rtol: float | None = None,
    vectors: bool = False,
) -> NormBracket:
    """Return certified lower and upper bounds on the spectral norm of a convolution.

    The operator is the multi-channel cross-correlation of neural networks. Its norm depends on the size and
    the padding of the input; without `input_shape` the bracket is that of the supremum over all sizes.

    Parameters
    ----------
    kernel : array, shape ``(c_out, c_in / groups, *spatial)``
        Kernel with one or more spatial axes, real or complex; integers and bool are promoted.
    input_shape : int or sequence of int, optional
        Samples of the input per spatial axis. By default every size at once: the supremum over frequencies,
        which bounds circular convolution of any size and zero padding of any size and amount.
    stride : int or sequence of int, optional
        Only 1 for now.
    padding : int, sequence of int or of (lo, hi), "valid", "same", "full", optional
        Zero padding per axis at a given `input_shape`; "same" by default. Circular convolution needs none.
    padding_mode : {"zeros", "circular", "reflect", "replicate"}, optional
        What lies beyond the input; "reflect" and "replicate" are not implemented yet.
    dilation : int or sequence of int, optional
        Distance between taps per axis.
    groups : int, optional
        Number of independent blocks of channels; the norm is the largest of theirs.
    transposed : bool, optional
        Only False for now.
    output_padding : int or sequence of int, optional
        Only 0 for now.
    rtol : float, optional
        Relative gap asked for, 1e-3 by default.
    vectors : bool, optional
        Whether to return vectors attaining the lower bound. Not implemented yet.

    Returns
    -------
    NormBracket
        0-d bounds in the namespace, device and real dtype of `kernel`; `frequency` in radians per axis where
        the norm is attained at one; `n_products` counts the blocks of the symbol evaluated. NaN for a kernel
        that holds NaN, inf if it holds inf, exactly 0 for a zero or empty one.

    Raises
    ------
    TypeError
        If `kernel` is not an array of numbers or has no values (inside ``jax.jit``), or an argument is of the
        wrong kind.
    ValueError
        If shapes or sizes do not fit together or `rtol` is not positive.
    NotImplementedError
        For strides, transposed convolutions, reflect and replicate padding, circular padding by another amount
        than the kernel's reach, and vectors.

    Notes
    -----
    **Guarantee.** ``lower <= norm <= upper`` under the rounding model of the theory page, for the operator with
    its padding and size, converged or not.

    *Every size*: the supremum of the norm of the symbol over all frequencies, by a search over boxes of
    frequencies (theory page, Theorem 6), at a cost that does not depend on any image. *Circular at a
    given size*: the maximum over the grid of frequencies, the kernel wrapped where it is longer than the input; on
    large circles the supremum and a grid point beside its maximiser, at the same cost for every size.
    *Zero padding at a given size*: small operators are assembled and bracketed as matrices; for larger ones
    `upper` is the bound of every size and `lower` comes from a window of the input, so that the bracket is
    valid but seldom converges.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> laplacian = np.asarray([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    >>> bracket = gn.conv_norm_bracket(laplacian, (32, 32), padding_mode="circular")
    >>> bool(bracket.lower <= 8.0 <= bracket.upper), bool(bracket.converged)
    (True, True)
    >>> abs(bracket.frequency).round(4).tolist()
    [3.1416, 3.1416]
    """
    xp, a = _validate.concrete_argument(kernel, name="kernel", instead="conv_gram_iteration")
    gap = _validate.tolerance(rtol, default=1e-3)
    _refuse_what_is_missing(
        stride, transposed, output_padding, vectors, padding_mode, axes=max(a.ndim - 2, 1)
    )
    geometry = _geometry(
        a, input_shape, padding, dilation, groups, circular=padding_mode == "circular"
    )
    dtype = result_dtype(a, xp=xp)
    with _xp.plain_arithmetic(a):
        lower, upper, turns, evaluations = _bracket(a, geometry, rtol=attainable(gap), xp=xp)
    frequency = None
    if turns is not None:
        frequency = 2 * math.pi * (turns - np.ceil(turns - 0.5))
    return to_bracket(
        lower,
        upper,
        rtol=gap,
        shape=(),
        n_products=evaluations,
        dtype=dtype,
        like=a,
        xp=xp,
        frequency=frequency,
    )


def conv_gram_iteration(
    kernel: Array,
    /,
    input_shape: int | Sequence[int],
    *,
    steps: int,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Return the upper bound on the norm of a circular convolution that fixed Gram steps give.

    The largest, over the frequencies of the input's grid, of the fixed-step bound of the symbol's blocks. In
    exact arithmetic at most ``c^(1 / 2^(steps + 1))`` times the norm, c the smaller number of channels per
    group. Differentiable, usable under ``jax.jit`` and ``vmap``, never waits for the device.

    Parameters
    ----------
    kernel : array, shape ``(c_out, c_in / groups, *spatial)``
        Kernel with one or more spatial axes, real or complex; integers and bool are promoted.
    input_shape : int or sequence of int
        Samples of the (periodic) input per spatial axis.
    steps : int
        Number of Gram products, at least 0.
    stride : int or sequence of int, optional
        Only 1 for now.
    dilation : int or sequence of int, optional
        Distance between taps per axis.
    groups : int, optional
        Number of independent blocks of channels.

    Returns
    -------
    0-d array
        The value, in the namespace, device and real dtype of `kernel`.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As in `conv_norm_bracket`; ValueError also for negative `steps`.

    See Also
    --------
    conv_norm_bound : An upper bound that rounding cannot push below the norm.

    Notes
    -----
    **Guarantee.** Upper bound for circular padding in exact arithmetic only; no rounding margin is added. It is
    no bound for zero padding, whose norm may be larger. The cost grows with the input: every frequency is
    evaluated, as in Delattre et al. (ICML 2023, arXiv:2305.16173).

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> value = gn.conv_gram_iteration(np.asarray([[[1.0, -2.0, 1.0]]]), 8, steps=4)
    >>> bool(abs(value - 4.0) < 1e-12)
    True
    """
    xp, a = _validate.array_argument(kernel, name="kernel")
    count = _validate.positive_int(steps, name="steps", least=0)
    _refuse_what_is_missing(stride, False, 0, False, "circular", axes=max(a.ndim - 2, 1))
    geometry = _geometry(a, input_shape, None, dilation, groups, circular=True)
    if geometry.input_shape is None:
        msg = "input_shape must be given: the fixed-step bound is that of one size"
        raise ValueError(msg)
    out = result_dtype(a, xp=xp)
    if 0 in a.shape:
        return xp.zeros((), dtype=out, device=_xp.device_of(a))
    real = xp.float64 if _xp.bits(out, xp=xp) == 64 else xp.float32
    is_complex = _xp.is_complex(a.dtype, xp=xp)
    sizes = geometry.input_shape
    ranges = [range(n) for n in _search.grid_shape(sizes, half=not is_complex)]
    points = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(sizes))
    weights = phases(_on_circle(geometry.offsets, geometry), points, np.asarray(sizes)).astype(
        np.complex128 if real == xp.float64 else np.complex64
    )
    # the taps are scaled before they are summed, so that no sum overflows
    work = _xp.complex_dtype(real, xp=xp)
    taps = xp.astype(_taps(a, geometry.groups, xp=xp), work)
    parts = [xp.abs(_xp.without_gradient(part)) for part in _xp.components(taps, xp=xp)]
    peak = xp.max(xp.stack(parts))
    scale = divisor(peak, xp=xp)
    moved = xp.asarray(weights, dtype=work, device=_xp.device_of(a))
    flat = xp.reshape(taps / xp.astype(scale, work), (taps.shape[0], -1))
    blocks = xp.reshape(_xp.matmul(moved, flat, xp=xp), (len(points), *taps.shape[1:]))
    value = scale * xp.max(fixed_steps(blocks, steps=count, xp=xp))
    return xp.astype(xp.where(xp.isfinite(peak), value, peak), out)


def _refuse_what_is_missing(
    stride: int | Sequence[int],
    transposed: bool,
    output_padding: int | Sequence[int],
    vectors: bool,
    padding_mode: str,
    *,
    axes: int,
) -> None:
    """Raise NotImplementedError for arguments of the contract that this release cannot serve."""
    mode = _validate.padding_mode(padding_mode)
    missing = {
        "stride other than 1": any(
            s != 1 for s in _validate.per_axis(stride, name="stride", axes=axes)
        ),
        "transposed=True": bool(transposed),
        "output_padding other than 0": any(
            _validate.per_axis(output_padding, name="output_padding", axes=axes, least=0)
        ),
        f"padding_mode={mode!r}": mode not in ("zeros", "circular"),
        "vectors=True": bool(vectors),
    }
    for what, asked in missing.items():
        if asked:
            msg = f"{what} is not implemented yet; no bound is returned rather than a wrong one"
            raise NotImplementedError(msg)


def _geometry(
    a: Array,
    input_shape: int | Sequence[int] | None,
    padding: _validate.Padding,
    dilation: int | Sequence[int],
    groups: int,
    *,
    circular: bool,
) -> ConvGeometry:
    """Check the arguments that describe the operator and gather them."""
    count = _validate.kernel(a, groups=groups)
    kernel_size = tuple(int(k) for k in a.shape[2:])
    axes = len(kernel_size)
    spacing = _validate.per_axis(dilation, name="dilation", axes=axes)
    sizes = None
    if input_shape is not None:
        sizes = _validate.per_axis(input_shape, name="input_shape", axes=axes)
    reach = span(kernel_size, spacing)
    pads = _validate.pads(padding, span=reach, has_size=sizes is not None)
    if (
        circular
        and padding is not None
        and pads != _validate.pads("same", span=reach, has_size=True)
    ):
        msg = (
            "circular convolution by another amount of padding than the kernel's reach is not implemented yet; leave "
            f"padding=None for the same-size circular operator, got padding={padding!r}"
        )
        raise NotImplementedError(msg)
    return ConvGeometry(kernel_size, spacing, count, sizes, circular, pads)


def _taps(a: Array, groups: int, *, xp: Namespace) -> Array:
    """Return the taps as blocks, shape (T, groups, c_out / groups, c_in / groups)."""
    count = math.prod(a.shape[2:])
    blocks = xp.reshape(a, (groups, a.shape[0] // groups, a.shape[1], count))
    return xp.permute_dims(blocks, (3, 0, 1, 2))


def _bracket(
    a: Array, geometry: ConvGeometry, *, rtol: float, xp: Namespace
) -> tuple[HostFloats, HostFloats, HostFloats | None, int]:
    """Bracket the norm; return host bounds of shape (1,), turns per axis or None, and the cost."""
    out = result_dtype(a, xp=xp)
    zero = np.zeros(1)
    if 0 in a.shape:
        return zero, zero, None, 0
    block = (a.shape[0] // geometry.groups, int(a.shape[1]))
    count = math.prod(geometry.kernel_size)
    units = gram_units(block, complex=True) + 3.2 * (count + 4) * math.sqrt(count * min(block))
    work = working_dtype(a, units, rtol, xp=xp)
    scaled = _scaling.normalise(
        xp.reshape(a, (1, a.shape[0], -1)), dtype=work, gain=math.sqrt(count), xp=xp
    )
    if not scaled.active.size:
        return (*_scaling.restore(zero[:0], zero[:0], scaled, dtype=out, xp=xp), None, 0)

    finite_zeros = geometry.input_shape is not None and not geometry.circular
    if finite_zeros:
        if 0 in geometry.output_shape():
            return zero, zero, None, 0
        size = _assemble.window(geometry, block)
        window_lower = zero
        if size is not None:
            parts = _assemble.matrix(_taps(a, geometry.groups, xp=xp), geometry, size, xp=xp)
            lower, upper, products = bracket_stack(parts, rtol=rtol, dtype=out, xp=xp)
            lower, upper = np.max(lower, keepdims=True), np.max(upper, keepdims=True)
            if size == geometry.input_shape:
                return lower, upper, None, products
            window_lower = lower

    best = _maximum(xp.reshape(scaled.values, a.shape), geometry, rtol=0.95 * rtol, xp=xp)
    lower, upper = _scaling.restore(
        np.asarray([best.lower]), np.asarray([best.upper]), scaled, dtype=out, xp=xp
    )
    if finite_zeros:
        return window_lower, np.maximum(upper, window_lower), None, best.evaluations
    return lower, upper, best.turns, best.evaluations


def _on_circle(offsets: HostInts, geometry: ConvGeometry) -> HostInts:
    """Return the positions of taps after dilation, wrapped around the circle of the input."""
    assert geometry.input_shape is not None
    sizes = np.asarray(geometry.input_shape)
    return np.asarray(offsets % sizes * (np.asarray(geometry.dilation) % sizes) % sizes)


def _maximum(a: Array, geometry: ConvGeometry, *, rtol: float, xp: Namespace) -> _search.Maximum:
    """Bracket the maximum of the symbol's norm over the grid of a circle, or over all frequencies."""
    taps = _taps(a, geometry.groups, xp=xp)
    present = np.flatnonzero(_xp.to_host(xp.any(taps != 0, axis=(1, 2, 3))))
    taps, offsets = _xp.select(taps, present, xp=xp), geometry.offsets[present]
    if not geometry.circular or geometry.input_shape is None:
        return _supremum(taps, offsets, geometry, rtol=rtol, xp=xp)
    sizes = geometry.input_shape
    symbol = Symbol(taps, _on_circle(offsets, geometry), xp=xp)
    if math.prod(sizes) <= _search.FULL_GRID:
        return _search.over_grid(symbol, sizes, rtol=rtol, xp=xp)
    # on a fine grid the supremum is attained almost: a point beside it may settle the matter
    best = _supremum(taps, offsets, geometry, rtol=rtol / 2, xp=xp)
    assert best.turns is not None
    near = _search.beside(symbol, best.turns, sizes, rtol=rtol, xp=xp)
    near.evaluations += best.evaluations
    if near.is_finished(np.asarray(best.upper)) or math.prod(sizes) > _search.EVALUATIONS[1]:
        near.upper = best.upper
        return near
    grid = _search.over_grid(symbol, sizes, rtol=rtol, xp=xp)
    grid.upper = min(grid.upper, best.upper)
    grid.evaluations += near.evaluations
    return grid


def _supremum(
    taps: Array, offsets: HostInts, geometry: ConvGeometry, *, rtol: float, xp: Namespace
) -> _search.Maximum:
    """Bracket the supremum of the symbol's norm over all frequencies."""
    # zero borders do not count, and neither does dilation: F(d theta) has the supremum of F
    offsets = offsets - offsets.min(axis=0)
    kernel_size = tuple(int(k) + 1 for k in offsets.max(axis=0))
    best = _search.over_torus(Symbol(taps, offsets, xp=xp), kernel_size, rtol=rtol, xp=xp)
    if best.turns is not None:
        best.turns = (best.turns - np.ceil(best.turns - 0.5)) / np.asarray(geometry.dilation)
    return best
