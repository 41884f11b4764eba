"""Bounds on the spectral norm of convolutions, as operators: not of the reshaped kernel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from gramnorm import _validate
from gramnorm._arrays import autodiff, compiling, dtypes, libraries, spread
from gramnorm._arrays.types import Array
from gramnorm._conv import choose, gradients
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._conv.gradients import Place
from gramnorm._conv.vectors import attained
from gramnorm._results import NormBracket, differentiable

__all__ = [
    "conv_gram_iteration",
    "conv_norm_bound",
    "conv_norm_bracket",
    "conv_norm_value_and_grad",
    "fir_norm",
]


@compiling.graph_break
@spread.gathers
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

    This is the `upper` of `conv_norm_bracket`, where the operator and its parameters are described
    in full.

    Parameters
    ----------
    kernel : array, shape ``(c_out, c_in / groups, *spatial)``
        The kernel, as in `conv_norm_bracket`.
    input_shape : int or sequence of int, optional
        Samples of the input per spatial axis; by default every size at once.
    stride, padding, padding_mode, dilation, groups, transposed, output_padding : optional
        The operator, as in `conv_norm_bracket`.
    rtol : float, optional
        Relative gap asked for, 1e-3 by default, as in `conv_norm_bracket`.

    Returns
    -------
    0-d array
        Upper bound in the namespace, device and real dtype (float32 at least) of `kernel`; NaN,
        inf, zero and empty kernels as in `conv_norm_bracket`.

    Raises
    ------
    TypeError, ValueError
        As in `conv_norm_bracket`.

    See Also
    --------
    conv_norm_bracket : The same bound with a lower one and a convergence flag.

    Notes
    -----
    **Guarantee.** Not below the norm of the operator with its padding and size, rounding included,
    under the rounding model of the theory page, converged or not; `conv_norm_bracket` says by which
    theorem for which operator. PyTorch and JAX differentiate it as `conv_norm_value_and_grad` says,
    JAX outside of ``jit``.

    Examples
    --------
    The second difference has gain 4 at the highest frequency, whatever the size of the input:

    >>> import numpy as np
    >>> import gramnorm as gn
    >>> bound = gn.conv_norm_bound(np.asarray([[[1.0, -2.0, 1.0]]]))
    >>> bool(4.0 <= bound <= 4.004)
    True
    """
    geometry = ConvGeometry.of(
        _validate.array_argument(kernel, name="kernel").shape,
        input_shape,
        stride=stride,
        padding=padding,
        padding_mode=padding_mode,
        dilation=dilation,
        groups=groups,
        transposed=transposed,
        output_padding=output_padding,
    )

    def forward(a: Array) -> tuple[Array, tuple[Array, Place | None]]:
        found, place = _searched(a, geometry, rtol)
        return found.upper, (found.upper, place)

    def gradient(a: Array, found: tuple[Array, Place | None]) -> Array:
        return gradients.of_bound(a, *found, geometry, rtol=_gap(rtol))

    if autodiff.is_differentiated(kernel):
        return autodiff.with_residual(forward, gradient, kernel)
    return forward(kernel)[0]


def bound_and_slope(
    kernel: Array, geometry: ConvGeometry, *, rtol: float | None
) -> tuple[Array, Callable[[], tuple[Array, ...]]]:
    """Return the bound, and what finds its gradient."""
    found, place = _searched(kernel, geometry, rtol)

    def slope() -> tuple[Array, ...]:
        return (gradients.of_bound(kernel, found.upper, place, geometry, rtol=_gap(rtol)),)

    return found.upper, slope


def _searched(
    kernel: Array, geometry: ConvGeometry, rtol: float | None
) -> tuple[NormBracket, Place | None]:
    """Return the bracket of the norm, and where it is attained.

    The kernel must have values by now.
    """
    a = _validate.concrete_argument(kernel, name="kernel", instead="conv_gram_iteration")
    return choose.bracket(a, geometry, rtol=_gap(rtol))


def _gap(rtol: float | None) -> float:
    """Return the relative gap asked for."""
    return _validate.tolerance(rtol, default=1e-3)


@compiling.graph_break
@spread.gathers
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

    The operator is the multi-channel cross-correlation of neural networks, or its transpose. Its
    norm depends on the size and the padding of the input; without `input_shape` the bracket is that
    of the supremum over all sizes.

    Parameters
    ----------
    kernel : array, shape ``(c_out, c_in / groups, *spatial)``
        Kernel with one or more spatial axes, real or complex; integers and bool are promoted. Of a
        transposed convolution ``(c_in, c_out / groups, *spatial)``.
    input_shape : int or sequence of int, optional
        Samples of the input per spatial axis. By default every size at once: the supremum over
        frequencies, which bounds zero padding of any size and amount, and circular convolution of
        any size that the stride divides; "circular" with a stride needs the size, as the norm is
        larger where the stride does not divide it.
    stride : int or sequence of int, optional
        Step between outputs per axis; it need not divide anything.
    padding : int, sequence of int or of (lo, hi), "valid", "same", "full", optional
        Padding per axis at a given `input_shape`. "valid" is none, "full" the kernel's reach on
        both sides, and "same", the default, makes ``ceil(n / stride)`` outputs (transposed: ``n *
        stride``), the odd sample behind, as in TensorFlow. Circular convolution needs no padding:
        output ``o`` starts at sample ``stride * o``, one output for each of the ``ceil(n /
        stride)`` multiples of the stride below n. If padding is given, the periodic input is
        extended by it, as in PyTorch, and outputs may repeat or be missing.
    padding_mode : {"zeros", "circular", "reflect", "replicate", "symmetric"}, optional
        What lies beyond the input. The mirror of "reflect" is the last sample, which is not
        repeated (NumPy and PyTorch "reflect", SciPy "mirror"); that of "symmetric" lies half a
        sample further, so that it is (NumPy "symmetric", SciPy "reflect"). "replicate" is "edge" in
        NumPy and "nearest" in SciPy, "circular" is "wrap" in NumPy and "grid-wrap" in SciPy.
    dilation : int or sequence of int, optional
        Distance between taps per axis.
    groups : int, optional
        Number of independent blocks of channels; the norm is the largest of theirs.
    transposed : bool, optional
        Whether the operator is the transposed convolution, in PyTorch's conventions.
    output_padding : int or sequence of int, optional
        Samples added at the end of the output of a transposed convolution.
    rtol : float, optional
        Relative gap asked for, 1e-3 by default.
    vectors : bool, optional
        Whether to return unit vectors that attain the lower bound, computed on the host; see below
        for their shapes. The `lower` returned with them is what they attain.

    Returns
    -------
    NormBracket
        0-d bounds in the namespace, device and real dtype (float32 at least) of `kernel`;
        `frequency` in radians per sample of the input and axis where the norm is attained at one
        (every size, circular padding whose stride divides the size, and Theorem 26 below), of a
        transposed convolution per sample of its output; `n_products` counts the blocks of the symbol
        evaluated. NaN for a kernel that holds NaN, inf if it holds inf,
        exactly 0 for a zero or empty one and for an operator without outputs.

    Raises
    ------
    TypeError
        If `kernel` is not an array of numbers or has no values (inside ``jax.jit``), or an argument
        is of the wrong kind.
    ValueError
        If shapes or sizes do not fit together, `rtol` is not positive, or the operator is
        undefined: reflect, replicate or symmetric padding without `input_shape` or of a
        transposed convolution, reflect padding that exceeds the input, output padding of an
        ordinary convolution.

    See Also
    --------
    fir_norm : The same for a filter bank, in the terms of control and signal processing.
    conv_gram_iteration : A fixed number of steps, differentiable.

    Notes
    -----
    **Guarantee.** ``lower <= norm <= upper`` under the rounding model of the theory page, for the
    operator with its padding and size, converged or not.

    *Every size*: the supremum of the norm of the symbol over all frequencies, by a search over
    cells of frequencies (theory page, Theorem 10), at a cost that does not depend on any image;
    strides turn phases of the input into channels (Lemma 8). *Circular*: the maximum over the grid
    of frequencies, the kernel wrapped where it is longer than the input, at no more cost than every
    size. *Zero padding at a given size*: the least of the supremum, a bound from scalar Toeplitz
    matrices that know the size (Theorem 12), and the Gram matrix, which is factorised along its
    band where the operator is large (section 4); `lower` comes from a plane wave under a window and
    from Golub-Kahan steps on the operator. *Symmetric padding of a kernel whose output channels are
    each even or odd along each axis*, around its middle: the maximum over a grid of frequencies,
    exact at every size (Theorem 26). *Reflect, replicate and symmetric padding otherwise*: for a
    blur, and what else has the norm of its moduli, products with vectors (Theorem 24), sharp at
    every size; else the Gram matrix, too, and where its factorisation would take more than some
    seconds those of its corners and edges (Theorem 27): within 1 to 2 % where they span some eight
    times the reach of the kernel, which 9 x 9 taps of one channel and 3 x 3 taps of 16 do, and
    wider for more channels. *Circular padding that is not the above*: the Gram matrix, or the
    supremum times the square root of how often a sample is repeated (Theorem 13), which is loose.

    *Vectors.* With T for the convolution of the kernel as stored, and the vectors as returned,
    ``lower <= Re(left^H T right) / (||left|| ||right||)``; the two lengths are 1 up to the rounding
    of the entries. Complex kernels have complex vectors, and so has every kernel at every size.

    - At a given size `right` has the shape ``(c_in, *input_shape)`` and `left` the shape ``(c_out,
      *output_shape)``, and T is `ConvGeometry.apply`. Both are zero outside of one group, and for
      inputs of more than some 100 000 numbers `right` may be zero outside of a part of the samples.
      On a circle `right` is a plane wave; of a real kernel its real or imaginary part, since one of
      the two attains as much. Where Theorem 26 holds it is a product of cosines of the samples.
    - For every size `right` has the shape ``(c_in, *stride)`` and `left` the shape ``(c_out,)``.
      They are the amplitudes of a wave that is periodic with the stride up to phases: with theta
      for `frequency` the input ``x[:, i] = right[:, i mod stride] exp(i theta . i)`` has the output
      ``y[:, o] = T(right) exp(i theta . stride o)``, where ``T(right) = sum_k K_k right[:, d k mod
      stride] exp(i theta . d k)`` for the dilation d. A transposed convolution takes ``right``,
      shape ``(c_in,)``, to ``left``, shape ``(c_out, *stride)``, the other way round.
    - For a zero kernel they are basis vectors, NaN where the norm is NaN or inf.

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

    The input that is amplified most, and what comes of it:

    >>> bracket = gn.conv_norm_bracket(laplacian, (8, 8), padding=1, vectors=True)
    >>> geometry = gn.ConvGeometry.of(laplacian.shape, (8, 8), padding=1)
    >>> image = geometry.apply(laplacian, bracket.right)
    >>> bool(np.vdot(bracket.left, image) >= bracket.lower * (1 - 1e-12))
    True
    """
    geometry = ConvGeometry.of(
        _validate.array_argument(kernel, name="kernel").shape,
        input_shape,
        stride=stride,
        padding=padding,
        padding_mode=padding_mode,
        dilation=dilation,
        groups=groups,
        transposed=transposed,
        output_padding=output_padding,
    )
    result, place = _searched(kernel, geometry, rtol)
    if vectors:
        result = attained(libraries.plain(kernel), result, place, geometry, rtol=_gap(rtol))

    def gradient(a: Array, value: Array) -> Array:
        return gradients.of_bound(a, value, place, geometry, rtol=_gap(rtol))

    if autodiff.is_differentiated(kernel):
        result = differentiable(result, gradient, kernel)
    return result


@compiling.graph_break
@spread.gathers
def conv_norm_value_and_grad(
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
    steps: int | None = None,
    rtol: float | None = None,
) -> tuple[Array, Array]:
    """Return an upper bound on the spectral norm of a convolution, and its gradient by the kernel.

    For arrays without automatic differentiation (NumPy, CuPy); PyTorch and JAX differentiate
    `conv_norm_bound` and `conv_gram_iteration` themselves, to the same gradients.

    Parameters
    ----------
    kernel : array, shape ``(c_out, c_in / groups, *spatial)``
        The kernel, as in `conv_norm_bracket`.
    input_shape : int or sequence of int, optional
        Samples of the input per spatial axis; by default every size at once.
    stride, padding, padding_mode, dilation, groups, transposed, output_padding : optional
        The operator, as in `conv_norm_bracket`.
    steps : int, optional
        If given, the value and gradient of ``conv_gram_iteration(kernel, input_shape,
        steps=steps)``, for ``padding_mode="circular"``; else those of ``conv_norm_bound``.
    rtol : float, optional
        Relative gap asked for, as in `conv_norm_bracket`.

    Returns
    -------
    value : 0-d array
        The bound, real, in float32 at least.
    gradient : array of the shape of `kernel`
        G of the type of `kernel` with ``value(K + dK) = value(K) + Re sum(conj(G) dK) + o(dK)``. 0
        for a zero kernel, NaN where the norm is NaN or inf.

    Raises
    ------
    TypeError, ValueError
        As in `conv_norm_bracket`; ValueError also for `steps` with another padding than circular.

    Notes
    -----
    **Guarantee.** The value is that of the function named above, with its guarantee. The gradient
    of the fixed-step bound is exact up to rounding. That of the certified bound is the gradient of
    the norm of the symbol at the frequency where it is largest (Danskin's theorem), and at a finite
    size with padding that of the top singular vectors of the operator: of the norm itself, from
    which the bound is `rtol` away. Where several frequencies or groups attain the maximum it is
    that of one of them, a subgradient. For a large input, of more than some 100 000 numbers, the
    gradient is that of the supremum.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> value, gradient = gn.conv_norm_value_and_grad(np.asarray([[[1.0, -2.0, 1.0]]]))
    >>> bool(value >= 4.0), gradient.round(3).tolist()
    (True, [[[1.0, -1.0, 1.0]]])
    """
    geometry = ConvGeometry.of(
        _validate.array_argument(kernel, name="kernel").shape,
        input_shape,
        stride=stride,
        padding=padding,
        padding_mode=padding_mode,
        dilation=dilation,
        groups=groups,
        transposed=transposed,
        output_padding=output_padding,
    )
    a = _validate.concrete_argument(kernel, name="kernel", instead="conv_gram_iteration")
    if steps is None:
        found, place = _searched(a, geometry, rtol)
        return found.upper, gradients.of_bound(a, found.upper, place, geometry, rtol=_gap(rtol))
    count = _validate.positive_int(steps, name="steps", least=0)
    _validate.fixed_steps(geometry.padding_mode, padding, transposed=geometry.transposed)
    _validate.divides(geometry.stride, geometry.input_shape)
    value, norms = choose.fixed_step_bounds(a, geometry, steps=count)
    return value, gradients.of_fixed_steps(a, value, norms, geometry, steps=count)


@compiling.graph_break
@spread.gathers
def fir_norm(taps: Array, /, *, rtol: float | None = None) -> NormBracket:
    """Return certified lower and upper bounds on the H-infinity norm of a FIR filter bank.

    The norm is the largest gain of the transfer matrix ``H(z) = sum_k taps[k] z^-k`` on the unit
    circle, over all frequencies and directions of the input.

    Parameters
    ----------
    taps : array, shape (N, p, m) or (N,)
        Impulse response of a filter with m inputs and p outputs, or of a single filter; real or
        complex.
    rtol : float, optional
        Relative gap asked for, as in `conv_norm_bracket`.

    Returns
    -------
    NormBracket
        0-d bounds in the namespace, device and real dtype (float32 at least) of `taps`.
        `frequency`, shape (1,), is the peak frequency in radians per sample, in [0, pi] for real
        and in (-pi, pi] for complex taps, at which `lower` is attained.

    Raises
    ------
    TypeError, ValueError
        As in `conv_norm_bracket`; ValueError also for `taps` with another number of axes.

    See Also
    --------
    conv_norm_bracket : The same search with strides, groups and any number of axes.

    Notes
    -----
    **Guarantee.** ``lower <= norm <= upper`` for all frequencies of the continuum, not of a grid,
    rounding included (theory page, Theorem 10).

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> bracket = gn.fir_norm(np.asarray([1.0, -2.0, 1.0]))  # gain 4 at the highest frequency
    >>> bool(bracket.lower <= 4.0 <= bracket.upper), bracket.frequency.round(4).tolist()
    (True, [3.1416])
    """
    a = _validate.concrete_argument(taps, name="taps", instead="conv_gram_iteration")
    xp = libraries.namespace(a)
    if a.ndim not in (1, 3):
        msg = f"taps must have shape (N, outputs, inputs) or (N,), got shape {tuple(a.shape)}"
        raise ValueError(msg)
    a = a[:, None, None] if a.ndim == 1 else a
    bracket = conv_norm_bracket(xp.permute_dims(a, (1, 2, 0)), rtol=rtol)
    if bracket.frequency is None:
        return bracket
    # the symbol has exp(+i k theta); a real filter has the same gain at both
    theta = -bracket.frequency
    theta = xp.where(theta == -math.pi, -theta, theta)
    if not dtypes.is_complex(a.dtype):
        theta = xp.abs(theta)
    return dataclasses.replace(bracket, frequency=theta)


@compiling.one_node
@spread.gathers
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

    The largest, over the frequencies of the input's grid, of the fixed-step bound of the symbol's
    blocks. About ``c^(1 / 2^(steps + 1))`` times the norm at most, c the smaller number of channels
    per group. Differentiable, usable under ``jax.jit``, ``torch.compile`` and ``vmap``, never waits
    for the device.

    Parameters
    ----------
    kernel : array, shape ``(c_out, c_in / groups, *spatial)``
        The kernel, as in `conv_norm_bracket`.
    input_shape : int or sequence of int
        Samples of the (periodic) input per spatial axis.
    steps : int
        Number of Gram products, at least 0.
    stride, dilation, groups : optional
        As in `conv_norm_bracket`; the stride divides `input_shape`.

    Returns
    -------
    0-d array
        The value, in the namespace, device and real dtype (float32 at least) of `kernel`.

    Raises
    ------
    TypeError, ValueError
        As in `conv_norm_bracket`; ValueError also for negative `steps` and a stride that does not
        divide the size.

    See Also
    --------
    conv_norm_bound : An upper bound that rounding cannot push below the norm.

    Notes
    -----
    **Guarantee.** Upper bound for circular padding, rounding included (Theorem 25 of the theory
    page), as in `gram_iteration`. It is no bound for zero padding, whose norm may be larger. The
    cost grows with the input:
    every frequency is evaluated, as in Delattre et al. (ICML 2023, arXiv:2305.16173).

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> value = gn.conv_gram_iteration(np.asarray([[[1.0, -2.0, 1.0]]]), 8, steps=4)
    >>> bool(4.0 <= value < 4.0 + 1e-12)
    True
    """
    a = _validate.array_argument(kernel, name="kernel")
    count = _validate.positive_int(steps, name="steps", least=0)
    geometry = ConvGeometry.of(
        tuple(a.shape),
        input_shape,
        stride=stride,
        padding_mode="circular",
        dilation=dilation,
        groups=groups,
    )
    _validate.divides(geometry.stride, geometry.input_shape)
    return choose.fixed_step_bounds(a, geometry, steps=count)[0]
