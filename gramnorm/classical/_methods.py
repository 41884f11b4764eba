"""Bounds on the norm of a convolution by methods of others: one signature, the side in the name.

After strides have become channels (docs/theory.md, Lemma 8) a convolution has the symbol F(theta) =
sum_k K_k exp(i k . theta) on a box of k_1 x ... x k_D taps.  For unit vectors u, v the number

    u^H F(theta) v = K(conj u, v, e_1, ..., e_D),   e_a = (exp(i j theta_a))_j,   ||e_a|| =
    sqrt(k_a),

is a value of the multilinear form of the kernel: so the norms of its unfoldings and its norm as a
tensor bound every size.  Row sums of the autocorrelation, sums over a grid of frequencies, singular
values on a circle and products with vectors are the other ways.  `METHODS` lists them all: what is
offered, documented, tested and timed is read from it.

What is called an upper or a lower bound counts rounding, whatever its source does.  A transposed
convolution has the norm of the one that it transposes, whose kernel is the same array.  Values are
constants for automatic differentiation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

from gramnorm import _validate
from gramnorm._arrays import compiling, spread
from gramnorm._arrays.types import Array
from gramnorm.classical import _kernels
from gramnorm.classical._kernels import Convolution, Side

Operator = Literal["every size", "one circle", "one size, any padding"]

Function = TypeVar("Function", bound=Callable[..., Array])


@dataclasses.dataclass(frozen=True)
class Method:
    """A method, and what its value is.

    Attributes
    ----------
    function : callable
        ``function(kernel, /, input_shape=None, *, stride=1, dilation=1, groups=1, ...)``, further
        keywords with defaults.
    side : {"upper bound", "lower bound", "exact", "estimate"}
        On which side of the norm the value is: certainly for bounds, up to rounding for "exact", on
        either for "estimate".
    operator : {"every size", "one circle", "one size, any padding"}
        Whose norm: of zero padding of every size and amount and circular padding of every size that
        the stride divides; of the circular convolution at `input_shape`; of the operator with its
        padding at `input_shape`.
    source : str
        Who found it.
    """

    function: Callable[..., Array]
    side: Side
    operator: Operator
    source: str


METHODS: dict[str, Method] = {}


def _listed(side: Side, operator: Operator, source: str) -> Callable[[Function], Function]:
    """Enter a function into `METHODS`."""

    def enter(function: Function) -> Function:
        listed = compiling.graph_break(spread.gathers(function))
        METHODS[function.__name__] = Method(listed, side, operator, source)
        return listed

    return enter


@_listed("upper bound", "every size", "Delattre et al. 2024, arXiv:2402.00240")
def norm2toep_upper_bound(
    kernel: Array,
    /,
    input_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    steps: int = 4,
) -> Array:
    """Return a certified upper bound for every input size: row sums of iterated autocorrelations.

    With K_0 the kernel and K_t the autocorrelation of K_(t-1), the bound is ``(max_i sum
    |K_t|_i)^(1 / 2^t)``, the sum over lags and channels of row i. It does not increase with t and
    tends to the supremum over frequencies.

    Parameters
    ----------
    kernel : array, shape ``(c_out, c_in / groups, *spatial)``
        The kernel, as in `gramnorm.conv_norm_bracket`.
    input_shape : int or sequence of int, optional
        Changes nothing: the bound holds for this size as for all others.
    stride, dilation, groups : optional
        As in `gramnorm.conv_norm_bracket`.
    steps : int, optional
        Number t of autocorrelations, at least 1.

    Returns
    -------
    0-d array
        Upper bound in the namespace, device and real dtype (float32 at least) of `kernel`; NaN for
        a kernel that holds NaN, inf if it holds inf, exactly 0 for a zero or empty one.

    Raises
    ------
    TypeError, ValueError
        As in `gramnorm.conv_norm_bracket`; ValueError also for `steps` less than 1.

    See Also
    --------
    gramnorm.conv_norm_bound : Closer to the norm, at a cost that hardly grows with the precision.

    Notes
    -----
    **Guarantee.** Upper bound for zero padding of every size and amount and circular padding of
    every size that the stride divides, rounding included (theory page, Theorem 15). The source [1]_
    has no stride, and no margin for rounding. Here the autocorrelation is that of the smaller
    number of channels, and is formed by discrete Fourier transforms on a torus on which no lag
    wraps, instead of a sum over pairs of taps.

    References
    ----------
    .. [1] B. Delattre, Q. Barthelemy, A. Allauzen, "Spectral Norm of Convolutional Layers with
       Circular and Zero Paddings", 2024, arXiv:2402.00240.

    Examples
    --------
    >>> import numpy as np
    >>> from gramnorm import classical
    >>> bound = classical.norm2toep_upper_bound(np.asarray([[[1.0, -2.0, 1.0]]]))
    >>> bool(4.0 <= bound <= 4.001)
    True
    """
    count = _validate.positive_int(steps, name="steps")
    conv = Convolution.of(kernel, input_shape, stride=stride, dilation=dilation, groups=groups)
    return conv.value("upper bound", partial(_kernels.norm2toep, steps=count), in_float64=True)


@_listed("upper bound", "every size", "Prach and Lampert, ECCV 2022, arXiv:2208.03160")
def aol_upper_bound(
    kernel: Array,
    /,
    input_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Return a certified upper bound for every input size, from row sums of one autocorrelation.

    The square root of the largest sum of moduli, over lags and channels, in a row of the
    autocorrelation on the side of the inputs: the largest factor by which almost-orthogonal layers
    (AOL) divide a channel.

    Parameters
    ----------
    kernel, input_shape, stride, dilation, groups : as in `norm2toep_upper_bound`
        The convolution.

    Returns
    -------
    0-d array
        Upper bound in the namespace, device and real dtype (float32 at least) of `kernel`; NaN,
        inf, zero and empty kernels as in `norm2toep_upper_bound`.

    Raises
    ------
    TypeError, ValueError
        As in `gramnorm.conv_norm_bracket`.

    See Also
    --------
    norm2toep_upper_bound : The same with more autocorrelations, on the side of fewer channels.
    gramnorm.conv_spectral_rescaling : The layer itself.

    Notes
    -----
    **Guarantee.** Upper bound for zero padding of every size and amount and circular padding of
    every size that the stride divides, rounding included (theory page, Theorem 15). With a stride,
    the phases of the input are the channels of the inputs (Lemma 8). Where these are no more than
    those of the outputs it is ``norm2toep_upper_bound(..., steps=1)``. The source is [1]_.

    References
    ----------
    .. [1] B. Prach, C. H. Lampert, "Almost-Orthogonal Layers for Efficient General-Purpose
       Lipschitz Networks", ECCV 2022, arXiv:2208.03160.

    Examples
    --------
    >>> import numpy as np
    >>> from gramnorm import classical
    >>> bound = classical.aol_upper_bound(np.asarray([[[1.0, -2.0, 1.0]]]))
    >>> bool(4.0 <= bound <= 4.001)
    True
    """
    conv = Convolution.of(kernel, input_shape, stride=stride, dilation=dilation, groups=groups)
    return conv.value("upper bound", _kernels.aol, in_float64=True)


@_listed("upper bound", "every size", "Singla and Feizi, ICLR 2021, arXiv:1911.10258")
def fantastic_four_upper_bound(
    kernel: Array,
    /,
    input_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    rtol: float | None = None,
) -> Array:
    """Return a certified upper bound for every input size, from norms of unfoldings of the kernel.

    ``sqrt(prod k)`` times the least norm of the matrices whose rows hold the outputs, whose columns
    the inputs, and each of whose spatial axes is with the one or with the other: four of them for
    two axes.

    Parameters
    ----------
    kernel, input_shape, stride, dilation, groups : as in `norm2toep_upper_bound`
        The convolution.
    rtol : float, optional
        Relative gap to which the norms of the matrices are computed, as in
        `gramnorm.matrix_norm_bound`.

    Returns
    -------
    0-d array
        Upper bound in the namespace, device and real dtype (float32 at least) of `kernel`; NaN,
        inf, zero and empty kernels as in `norm2toep_upper_bound`.

    Raises
    ------
    TypeError, ValueError
        As in `gramnorm.conv_norm_bracket`.

    See Also
    --------
    tensor_norm_estimate : The norm of the kernel as a tensor, at most that of every unfolding.

    Notes
    -----
    **Guarantee.** Upper bound for zero padding of every size and amount and circular padding of
    every size that the stride divides, rounding included: each norm is that of
    `gramnorm.matrix_norm_bound`. The source [1]_ computes them by power iteration, from below, in
    two axes and without stride.

    ``u^H F(theta) v`` is a product of any of these matrices with two vectors whose norms multiply
    to ``sqrt(prod k)``. Every value of the form of the kernel in unit vectors is such a product
    with unit vectors, so this is also the certified relative of the tensor norm: ``sqrt(prod k)``
    times an upper bound on it.

    References
    ----------
    .. [1] S. Singla, S. Feizi, "Fantastic Four: Differentiable Bounds on Singular Values of
       Convolution Layers", ICLR 2021, arXiv:1911.10258.

    Examples
    --------
    >>> import numpy as np
    >>> from gramnorm import classical
    >>> bound = classical.fantastic_four_upper_bound(np.asarray([[[1.0, -2.0, 1.0]]]))
    >>> bool(4.0 <= bound <= 4.3)
    True
    """
    _validate.tolerance(rtol, default=1.0)
    conv = Convolution.of(kernel, input_shape, stride=stride, dilation=dilation, groups=groups)
    # what certifies is `matrix_norm_bound`, which goes to higher precision by itself
    return conv.value("upper bound", partial(_kernels.fantastic_four, rtol=rtol), in_float64=False)


@_listed("upper bound", "every size", "Araujo et al., AAAI 2021, arXiv:2006.08391")
def lip_grid_upper_bound(
    kernel: Array,
    /,
    input_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    samples: int | None = None,
) -> Array:
    """Return a certified upper bound for every input size, from rows of the symbol on a grid.

    ``(sum_i max_theta ||F_i(theta)||^2)^(1/2)`` over the rows of the smaller side, times ``prod_a
    (1 - (k_a - 1) / S)^(-1/2)`` for what may lie between the S samples per axis. Of the order of
    the Frobenius norm of the symbol.

    Parameters
    ----------
    kernel, input_shape, stride, dilation, groups : as in `norm2toep_upper_bound`
        The convolution.
    samples : int, optional
        Frequencies S per axis, at least the taps of the longest axis (after the stride); by default
        20, or twice these taps if that is more.

    Returns
    -------
    0-d array
        Upper bound in the namespace, device and real dtype (float32 at least) of `kernel`; NaN,
        inf, zero and empty kernels as in `norm2toep_upper_bound`.

    Raises
    ------
    TypeError, ValueError
        As in `gramnorm.conv_norm_bracket`; ValueError also for fewer `samples` than taps.

    See Also
    --------
    gramnorm.conv_norm_bound : Norms of whole blocks, in cells that adapt to the kernel.

    Notes
    -----
    **Guarantee.** Upper bound for zero padding of every size and amount and circular padding of
    every size that the stride divides, rounding included (theory page, Lemma 16). This is LipGrid
    [1]_, for kernels of any shape, in the form in which it is a bound: the S frequencies per axis
    are all different and equispaced, no fewer than the taps, and the factor, that of [2]_, is never
    left out. For a square kernel it is ``1 / (1 - (k - 1) / S)``.

    References
    ----------
    .. [1] A. Araujo, B. Negrevergne, Y. Chevaleyre, J. Atif, "On Lipschitz Regularization of
       Convolutional Layers using Toeplitz Matrix Theory", AAAI 2021, arXiv:2006.08391.
    .. [2] L. Pfister, Y. Bresler, "Bounding Multivariate Trigonometric Polynomials", IEEE
       Transactions on Signal Processing 67, 2019, arXiv:1802.09588.

    Examples
    --------
    >>> import numpy as np
    >>> from gramnorm import classical
    >>> bound = classical.lip_grid_upper_bound(np.asarray([[[1.0, -2.0, 1.0]]]), samples=64)
    >>> bool(4.0 <= bound <= 4.1)
    True
    """
    conv = Convolution.of(kernel, input_shape, stride=stride, dilation=dilation, groups=groups)
    longest = max(conv.box())
    count = max(20, 2 * longest)
    if samples is not None:
        count = _validate.positive_int(samples, name="samples")
    if count < longest:
        msg = (
            f"samples must be at least the taps of the longest axis, {longest} after the stride, "
            f"got {count}: with fewer nothing is known between the frequencies; leave it out for "
            "the default"
        )
        raise ValueError(msg)
    return conv.value("upper bound", partial(_kernels.lip_grid, samples=count), in_float64=True)


@_listed("estimate", "every size", "Grishina et al., ECCV 2024, arXiv:2409.11859")
def tensor_norm_estimate(
    kernel: Array,
    /,
    input_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    starts: int = 5,
    iterations: int = 100,
) -> Array:
    """Return an estimate of an upper bound for every input size, the tensor norm of the kernel.

    ``sqrt(prod k)`` times the largest ``|K(u, v, a_1, ..., a_D)|`` over complex unit vectors bounds
    every size. Here the maximum is what alternating maximisation finds; it may be a smaller, local
    one, and the result below the norm.

    Parameters
    ----------
    kernel, input_shape, stride, dilation, groups : as in `norm2toep_upper_bound`
        The convolution.
    starts : int, optional
        How many times to start, each time from other vectors, the same in every call.
    iterations : int, optional
        Rounds through all vectors.

    Returns
    -------
    0-d array
        Estimate in the namespace, device and real dtype (float32 at least) of `kernel`; NaN, inf,
        zero and empty kernels as in `norm2toep_upper_bound`.

    Raises
    ------
    TypeError, ValueError
        As in `gramnorm.conv_norm_bracket`; ValueError also for `starts` or `iterations` less than
        1.

    See Also
    --------
    fantastic_four_upper_bound : The certified relative: an upper bound on the tensor norm.

    Notes
    -----
    **Guarantee.** None. The theorem of [1]_ is about the tensor norm, which is hard to compute.
    What is found is at most the tensor norm, and that is at most the supremum over frequencies, so
    the estimate is at most ``sqrt(prod k)`` times the latter. It does fall below the norm: in the
    example the tensor norm is 3 and the factor 3, but from all five starts the iteration ends in a
    channel that weighs less.

    References
    ----------
    .. [1] E. Grishina, M. Gorbunov, M. Rakhuba, "Tight and Efficient Upper Bound on Spectral Norm
       of Convolutional Layers", ECCV 2024, arXiv:2409.11859.

    Examples
    --------
    Sixteen channels with filters of their own, products of two of four signs, one with a larger
    weight:

    >>> import numpy as np
    >>> import gramnorm as gn
    >>> from gramnorm import classical
    >>> signs = np.asarray([[1, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]])
    >>> filters = np.einsum("ai,bj->abij", signs, signs).reshape(16, 3, 3)
    >>> weights = np.where(np.arange(16) == 4, 1.0, 0.8)
    >>> kernel = np.eye(16)[:, :, None, None] * (weights[:, None, None] * filters)
    >>> estimate = classical.tensor_norm_estimate(kernel)
    >>> round(float(gn.conv_norm_bound(kernel)), 2), round(float(estimate), 2)
    (9.0, 7.2)
    """
    count = _validate.positive_int(starts, name="starts")
    rounds = _validate.positive_int(iterations, name="iterations")
    conv = Convolution.of(kernel, input_shape, stride=stride, dilation=dilation, groups=groups)
    method = partial(_kernels.tensor_norm, starts=count, iterations=rounds)
    return conv.value("estimate", method, in_float64=False)


@_listed("exact", "one circle", "Sedghi et al., ICLR 2019, arXiv:1805.10408")
def circular_exact_norm(
    kernel: Array,
    /,
    input_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Return the norm of a circular convolution at a given size, exact up to rounding.

    No bound for zero padding, whose norm may be larger, nor for circular padding of other sizes.

    Parameters
    ----------
    kernel : array, shape ``(c_out, c_in / groups, *spatial)``
        The kernel, as in `gramnorm.conv_norm_bracket`.
    input_shape : int or sequence of int
        Samples of the periodic input per spatial axis; it must be given.
    stride, dilation, groups : optional
        As in `gramnorm.conv_norm_bracket`; the stride divides `input_shape`.

    Returns
    -------
    0-d array
        The norm in the namespace, device and real dtype (float32 at least) of `kernel`; NaN, inf,
        zero and empty kernels as in `norm2toep_upper_bound`.

    Raises
    ------
    TypeError, ValueError
        As in `gramnorm.conv_norm_bracket`; ValueError also without `input_shape` and for a stride
        that does not divide it.

    See Also
    --------
    gramnorm.conv_norm_bracket : With ``padding_mode="circular"``, certified, for less.

    Notes
    -----
    **Guarantee.** Exact up to the rounding of the symbol and its singular values, on no certain
    side. The source [1]_ has no stride; a kernel longer than the input is wrapped here, not cut.
    Every frequency costs a singular value decomposition, for real kernels every second one.

    References
    ----------
    .. [1] H. Sedghi, V. Gupta, P. M. Long, "The Singular Values of Convolutional Layers", ICLR
      2019, arXiv:1805.10408.

    Examples
    --------
    >>> import numpy as np
    >>> from gramnorm import classical
    >>> kernel = np.asarray([[[1.0, -2.0, 1.0]]])  # 4 on even circles, less on odd ones
    >>> [round(float(classical.circular_exact_norm(kernel, n)), 6) for n in (4, 5)]
    [4.0, 3.618034]
    """
    _validate.one_size(input_shape, instead="conv_norm_bound(kernel)")
    conv = Convolution.of(
        kernel,
        input_shape,
        stride=stride,
        dilation=dilation,
        groups=groups,
        padding_mode="circular",
    )
    _validate.divides(conv.geometry.stride, conv.geometry.input_shape)
    return conv.value("exact", _kernels.on_circle, in_float64=False)


@_listed("lower bound", "one size, any padding", "Ryu et al., ICML 2019, arXiv:1905.05406")
def power_iteration_lower_bound(
    kernel: Array,
    /,
    input_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding: _validate.Padding = None,
    padding_mode: str = "zeros",
    iterations: int = 100,
) -> Array:
    """Return a certified lower bound on the norm at a given size and padding, by power iteration.

    Parameters
    ----------
    kernel : array, shape ``(c_out, c_in / groups, *spatial)``
        The kernel, as in `gramnorm.conv_norm_bracket`.
    input_shape : int or sequence of int
        Samples of the input per spatial axis; it must be given.
    stride, dilation, groups, padding, padding_mode : optional
        As in `gramnorm.conv_norm_bracket`.
    iterations : int, optional
        Pairs of products with the operator and its adjoint, from a start that is the same in every
        call.

    Returns
    -------
    0-d array
        Lower bound in the namespace, device and real dtype (float32 at least) of `kernel`; NaN,
        inf, zero and empty kernels as in `norm2toep_upper_bound`, 0 also for an operator without
        outputs.

    Raises
    ------
    TypeError, ValueError
        As in `gramnorm.conv_norm_bracket`; ValueError also without `input_shape` and for
        `iterations` less than 1.

    See Also
    --------
    gramnorm.conv_norm_bracket : Both sides; the lower one by Golub-Kahan steps, in fewer products.

    Notes
    -----
    **Guarantee.** Lower bound by the definition of the norm, rounding included: what the last
    product can have lost is taken off. How far below the norm it is, nobody knows. The source is
    [1]_, where it is the value of a layer in training.

    References
    ----------
    .. [1] E. K. Ryu, J. Liu, S. Wang, X. Chen, Z. Wang, W. Yin, "Plug-and-Play Methods Provably
       Converge with Properly Trained Denoisers", ICML 2019, arXiv:1905.05406.

    Examples
    --------
    >>> import numpy as np
    >>> from gramnorm import classical
    >>> bound = classical.power_iteration_lower_bound(np.asarray([[[1.0, -2.0, 1.0]]]), 8)
    >>> bool(3.85 <= bound <= 2 + 2 * np.cos(np.pi / 9))
    True
    """
    count = _validate.positive_int(iterations, name="iterations")
    _validate.one_size(input_shape, instead="conv_norm_bracket(kernel).lower")
    conv = Convolution.of(
        kernel,
        input_shape,
        stride=stride,
        dilation=dilation,
        groups=groups,
        padding=padding,
        padding_mode=padding_mode,
    )
    return conv.value(
        "lower bound", partial(_kernels.power_iteration, iterations=count), in_float64=True
    )
