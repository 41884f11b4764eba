"""Weights rescaled to a spectral norm of at most 1, differentiably.

With A = M M^H and p = 2^(steps - 1), the sums of moduli over the rows of A^p dominate it,

    A^p <= diag(tau)^(2 p),   tau_i = (sum_j |A^p|_ij)^(1 / (2 p)),

in the Loewner order, in which roots are monotone.  So A <= diag(tau)^2, and diag(tau)^-1 M has norm
at most 1. For a convolution, M is the operator on the infinite lattice; A^p is a convolution too,
and its rows are sums over lags and channels.  What rounding can have done to a power is added to
its row sums and descends with them through the roots (docs/theory.md, Theorem 15).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import autodiff, compiling, crossing, dtypes, libraries, linalg, spread
from gramnorm._arrays.types import Array, DType
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._conv.symbol import phases, polyphase
from gramnorm._matrix.fixed_steps import divisor
from gramnorm._results import result_dtype
from gramnorm._rigour.model import (
    HOST_UNIT,
    Precision,
    compounded,
    down,
    precision_of,
    working_dtype,
)

__all__ = ["conv_spectral_rescaling", "spectral_rescaling"]


@compiling.one_node
@spread.gathers
def spectral_rescaling(
    x: Array, /, *, steps: int, gram: bool = False
) -> Array | tuple[Array, Array]:
    """Return the matrices with rescaled rows: 1 is a certified upper bound on their norms.

    Row i is divided by ``tau_i = (sum_j |A^p|_ij)^(1/(2p))``, ``A = x x^H``, ``p = 2^(steps - 1)``.
    One step is the rescaling of almost-orthogonal layers (AOL) on the side of the outputs; with
    more, the largest `tau` falls to the norm. Differentiable, usable under ``jax.jit`` and
    ``vmap``, never waits for the device.

    Parameters
    ----------
    x : array, shape (..., m, n)
        Matrices, as in `matrix_norm_bound`, but none that are sparse.
    steps : int
        Number of Gram products, at least 1.
    gram : bool, optional
        Whether to return the Gram matrices of the rescaled rows as well, which costs no product.

    Returns
    -------
    y : array, shape (..., m, n)
        The rescaled matrices, in the namespace, device and dtype of `x`. Rows of zeros stay, and a
        matrix that holds NaN or inf becomes NaN.
    products : array, shape (..., m, m), if `gram`
        Their Gram matrices ``y y^H``, in the same dtype.

    Raises
    ------
    TypeError, ValueError
        As in `gram_iteration`; ValueError also for `steps` less than 1.

    See Also
    --------
    conv_spectral_rescaling : The same for the kernel of a convolution.
    matrix_norm_bracket : Certifies the norm of the result.

    Notes
    -----
    **Guarantee.** The norm of each matrix returned, as stored, is at most 1: for every finite
    input, rounding included, under the rounding model of the theory page (Theorem 15). Input in
    float32 or shorter is computed in float32 where the margin for its rounding, at the worst, is a
    quarter of what the steps may leave below norm 1, at the worst: up to four steps for 1024 x
    1024, where it takes 1 % of the norm of noise and 3 % of that of orthonormal rows. All else is
    computed in float64 where the device has it. The margin is a constant for differentiation.

    This is the spectral rescaling of Delattre et al. [1]_; rescaling the columns instead, as in
    [2]_, is the same function of the adjoint. A power of `A` is a matrix of m rows: the cost is one
    product with the adjoint and ``steps - 1`` products of order m. If m > n, the adjoint is the
    cheaper one to rescale, as it is the one that the Newton-Schulz iteration wants.

    With `gram`, the matrix `A` that was formed comes back as ``W A W``, W the diagonal matrix that
    the rows were multiplied by. Entry by entry it is the exact product of `y` as stored up to
    ``(kappa + 5 u) |y| |y|^H``, at most ``kappa + 5 u``, with `u` the unit of the dtype and
    `kappa`, about ``n`` units of the type that is computed in, the loss of one product; and up to
    underflow, which does not count unless the lengths of two rows, over the largest entry of `x`,
    have a product near the smallest normal number.

    References
    ----------
    .. [1] B. Delattre, Q. Barthelemy, A. Allauzen, "Spectral Norm of Convolutional Layers with
       Circular and Zero Paddings", 2024, arXiv:2402.00240.
    .. [2] B. Prach, C. H. Lampert, "Almost-Orthogonal Layers for Efficient General-Purpose
       Lipschitz Networks", ECCV 2022, arXiv:2208.03160.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> a = np.asarray([[3.0, 4.0], [0.0, 5.0]])
    >>> w = gn.spectral_rescaling(a, steps=3)
    >>> bool(0.99 <= gn.matrix_norm_bracket(w).lower <= 1.0)
    True
    """
    a = _validate.array_argument(x, name="x")
    xp = libraries.namespace(a)
    _validate.matrices(a, name="x")
    count = _validate.positive_int(steps, name="steps")
    stack = xp.reshape(a, (1, math.prod(a.shape[:-2]), *a.shape[-2:]))
    with libraries.plain_arithmetic(a):
        values, factor, lags = _rescaled(stack, kernel_size=(), stride=(), steps=count)
        y = xp.reshape(values, a.shape)
        if not gram:
            return y
        weights = xp.astype(factor, lags.dtype)  # W A W of the notes
        products = lags[0, ...] * weights[..., :, None] * weights[..., None, :]
        return y, xp.reshape(xp.astype(products, y.dtype), (*a.shape[:-1], a.shape[-2]))


@compiling.one_node
@spread.gathers
def conv_spectral_rescaling(
    kernel: Array,
    /,
    *,
    steps: int,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Return the kernel with rescaled output channels: 1 is a certified upper bound on its norm.

    Channel i is divided by ``tau_i``, the 2p-th root of the sum of moduli, over lags and channels,
    of the p-th power of the autocorrelation, ``p = 2^(steps - 1)``. One step is the rescaling of
    almost-orthogonal layers (AOL) on the side of the outputs. Differentiable, usable under
    ``jax.jit`` and ``vmap``, never waits for the device.

    Parameters
    ----------
    kernel : array, shape ``(c_out, c_in / groups, *spatial)``
        The kernel, as in `conv_norm_bracket`. The first axis of that of a transposed convolution is
        its input channels.
    steps : int
        Number of autocorrelations, at least 1.
    stride, dilation, groups : optional
        As in `conv_norm_bracket`.

    Returns
    -------
    array, shape of `kernel`
        The rescaled kernel, in the namespace, device and dtype of `kernel`. Channels of zeros stay,
        and a group that holds NaN or inf becomes NaN.

    Raises
    ------
    TypeError, ValueError
        As in `conv_norm_bracket`; ValueError also for `steps` less than 1.

    See Also
    --------
    spectral_rescaling : The same for matrices.
    conv_norm_bracket : Certifies the norm of the result.

    Notes
    -----
    **Guarantee.** The norm of the convolution with the kernel returned, as stored, is at most 1:
    for every finite input, rounding included, under the rounding model of the theory page (Theorem
    15), for zero padding of every size and amount and circular padding of every size that the
    stride divides, transposed or not. Reflect and replicate padding repeat samples and may exceed
    it.

    This is the spectral rescaling of Delattre et al. [1]_. The lags grow to ``2^steps (k - 1) + 1``
    per axis, k the taps of the kernel in units of the stride, and the cost is that of about half as
    many complex products of order ``c_out / groups``, whatever the size of the input.

    References
    ----------
    .. [1] B. Delattre, Q. Barthelemy, A. Allauzen, "Spectral Norm of Convolutional Layers with
       Circular and Zero Paddings", 2024, arXiv:2402.00240.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> w = gn.conv_spectral_rescaling(np.asarray([[[1.0, -2.0, 1.0]]]), steps=1)
    >>> bool(0.999 <= gn.conv_norm_bracket(w).lower <= 1.0)
    True
    """
    a = _validate.array_argument(kernel, name="kernel")
    xp = libraries.namespace(a)
    count = _validate.positive_int(steps, name="steps")
    geometry = ConvGeometry.of(
        tuple(a.shape), stride=stride, dilation=dilation, groups=groups
    )  # with a size left open: zero padding of any amount
    blocks = (geometry.groups, a.shape[0] // geometry.groups, a.shape[1])
    taps = xp.permute_dims(xp.reshape(a, (*blocks, math.prod(geometry.kernel_size))), (3, 0, 1, 2))
    with libraries.plain_arithmetic(a):
        values, _, _ = _rescaled(
            taps,
            kernel_size=geometry.kernel_size,
            stride=strides_without_dilation(geometry),
            steps=count,
        )
    return xp.reshape(xp.permute_dims(values, (1, 2, 3, 0)), a.shape)


def strides_without_dilation(geometry: ConvGeometry) -> tuple[int, ...]:
    """Return the strides that are left once dilation is taken away, at no size: s / gcd(s, d)."""
    # outputs share samples only where d (k - l) is a multiple of s
    pairs = zip(geometry.stride, geometry.dilation, strict=True)
    return tuple(s // math.gcd(s, d) for s, d in pairs)


def phase_box(kernel_size: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """Return the taps per axis once the phases of strides have become channels."""
    return tuple(-(-k // s) for k, s in zip(kernel_size, stride, strict=True))


def _rescaled(
    taps: Array, *, kernel_size: tuple[int, ...], stride: tuple[int, ...], steps: int
) -> tuple[Array, Array, Array]:
    """Rescale the rows of taps (T, b, p, q) of b convolutions; of b matrices, if without axes.

    Return them, the factors (b, p) of the rows of the scaled taps, and the Gram taps of these.
    """
    xp = libraries.namespace(taps)
    out = taps.dtype if dtypes.is_floating(taps.dtype) else result_dtype(taps)
    if 0 in taps.shape:
        nothing = xp.zeros((1, *taps.shape[1:-1]), dtype=out, device=libraries.device_of(taps))
        lags = nothing[..., :, None] * nothing[..., None, :]
        return xp.astype(taps, out), dtypes.real_part(nothing[0, ...]), lags
    box = phase_box(kernel_size, stride)
    real = _working_dtype(taps, box, math.prod(map(min, kernel_size, stride)), steps=steps)
    work = dtypes.complex_dtype(real) if dtypes.is_complex(out) else real
    taps = xp.astype(taps, work)
    sizes = [xp.abs(autodiff.without_gradient(part)) for part in dtypes.components(taps)]
    peak = xp.max(xp.stack(sizes), axis=(0, 1, 3, 4))
    # scaled, the taps are what is rescaled: their own rounding is none of the result's
    taps = taps / xp.astype(divisor(peak)[:, None, None], work)
    values, _ = polyphase(taps, kernel_size, stride)
    tau, lags = row_scales(values, box, steps=steps)
    factor = _shrinkage(tuple(values.shape), work, out) / tau
    peak = xp.broadcast_to(peak[:, None], factor.shape)
    factor = xp.where(xp.isfinite(peak), factor, xp.full_like(factor, math.nan))
    return xp.astype(taps * xp.astype(factor[..., None], work), out), factor, lags


def _working_dtype(taps: Array, box: tuple[int, ...], phases: int, *, steps: int) -> DType:
    """Return float32 where what its rounding can add to tau is little beside what the steps can.

    With M = 1 the rows of beta beta^T sum to (p min(p, q))^(1/2) at most and those of the last power
    to (p N)^(1/2), N its lags: the steps let tau exceed the norm by the 2^(steps + 1)th root of p N.
    """
    xp = libraries.namespace(taps)
    p, q = int(taps.shape[2]), int(taps.shape[3]) * phases
    box = tuple(k for k in box if k > 1)
    is_complex = dtypes.is_complex(taps.dtype)
    prec = precision_of(xp.complex64 if is_complex or box else xp.float32)
    margin = 0.0
    for step in range(steps):
        count = math.prod(box)
        loss = _relative_error(count, p, q, box, prec, half=not is_complex)
        margin += loss * math.sqrt(p * min(p, q)) / 2 ** (step + 1)
        q, box = p, tuple(2 * k - 1 for k in box)
    slack = (p * math.prod(box)) ** (0.5 ** (steps + 1)) - 1
    return working_dtype(taps, margin * 2**24, slack)


def row_scales(x: Array, box: tuple[int, ...], *, steps: int) -> tuple[Array, Array]:
    """Return tau, shape (b, p), with X X^H <= diag(tau)^2 for taps (K, b, p, q) on the box.

    Rows of zeros have tau = 1. The taps of X X^H come with them, as `_gram_lags` returns them.
    """
    xp = libraries.namespace(x)
    box = tuple(k for k in box if k > 1)
    prec = precision_of(dtypes.real_dtype(x.dtype))
    up = 1 + 8 * prec.unit  # a square root, a division and three more roundings
    empty = xp.max(_tap_sizes(x), axis=-1) == 0
    first = lags = _gram_lags(x, box)
    if x.shape[-2] == 1 and not box:  # X X^H is a number; compilers would write out each step
        steps = 1
    levels = []
    for _ in range(steps - 1):
        largest = xp.max(_row_sums(autodiff.without_gradient(lags)), axis=-1, keepdims=True)
        # a group that is next to nothing beside others is subnormal: its inverse overflows
        least = xp.full_like(largest, prec.tiny)
        scale = 1 / xp.where(largest > least, largest, least)
        levels.append((scale, scale * _row_error(x, box)))
        x = _two_sided(lags * xp.astype(scale[..., None], lags.dtype))
        box = tuple(2 * k - 1 for k in box)
        lags = _gram_lags(x, box)
    error = _row_error(x, box)
    loss = 2 * prec.gamma(lags.shape[0] + lags.shape[-1] + 8)
    bound = (_row_sums(lags) * (1 + loss) + error) * up
    for scale, error in reversed(levels):
        # P^2 <= diag(bound) / scale, and the exact product is below |P| + diag(error)
        bound = (xp.sqrt(bound) + error) * up
        bound = bound / scale
    return xp.where(empty, xp.ones_like(bound), xp.sqrt(bound) * up), first


def _gram_lags(x: Array, box: tuple[int, ...]) -> Array:
    """Return the taps of X X^H at lag zero and the lags after it, shape (L, b, p, p).

    On a torus of as many points as there are lags nothing wraps, so the product is taken per
    frequency. Real taps need half of the frequencies of the first axis.
    """
    xp = libraries.namespace(x)
    half = not dtypes.is_complex(x.dtype)
    blocks = x.shape[1:]
    sizes = [2 * k - 1 for k in box]
    counts = _frequencies(box, half=half)
    forward, inverse = [], []
    for axis, (k, n, m) in enumerate(zip(box, sizes, counts, strict=True)):
        size, tap, j = np.asarray([n]), np.arange(k)[:, None], np.arange(m)[:, None]
        lag = np.arange(0 if axis == 0 else 1 - k, k)[:, None]
        forward.append(phases(tap, j, size))
        weights = np.where((j[:, 0] > 0) & (m < n), 2.0, 1.0) / n  # half of them stand for two
        inverse.append(np.conj(phases(j, lag, size)) * weights)
    if not box:
        return linalg.self_adjoint_gram_of_rows(x)
    y = xp.astype(xp.reshape(x, (*box, *blocks)), dtypes.complex_dtype(x.dtype))
    y = _transform(y, forward)
    y = _transform(linalg.gram_of_rows(y), inverse)
    y = dtypes.real_part(y) if half else y
    y = xp.reshape(y, (-1, *y.shape[-3:]))
    return y[math.prod(sizes[1:]) // 2 :, ...]  # lags before zero


def _frequencies(box: tuple[int, ...], *, half: bool) -> list[int]:
    return [k if half and axis == 0 else 2 * k - 1 for axis, k in enumerate(box)]


def _transform(x: Array, matrices: Sequence[np.ndarray]) -> Array:
    """Multiply the leading axes of `x` by host matrices, one each."""
    xp = libraries.namespace(x)
    dims = len(matrices)
    for matrix in matrices:
        moved = crossing.from_host(matrix, dtype=x.dtype, like=x)
        y = linalg.matmul(moved, xp.reshape(x, (x.shape[0], -1)))
        x = xp.reshape(y, (matrix.shape[0], *x.shape[1:]))
        x = xp.permute_dims(x, (*range(1, dims), 0, *range(dims, x.ndim)))
    return x


def _two_sided(lags: Array) -> Array:
    """Return all taps (2 L - 1, b, p, p) of a self-adjoint convolution: P_-m = P_m^H, exactly."""
    if lags.shape[0] == 1:
        return lags
    xp = libraries.namespace(lags)
    zero, rest = lags[0, ...], lags[1:, ...]
    lower = xp.tril(zero, k=-1)
    diagonal = xp.triu(xp.tril(dtypes.real_part(zero)))  # xp.eye of torch is filled in place
    zero = lower + linalg.adjoint(lower) + xp.astype(diagonal, zero.dtype)
    before = xp.flip(linalg.adjoint(rest), axis=0)
    return xp.concat([before, zero[None, ...], rest], axis=0)


def _row_sums(lags: Array) -> Array:
    """Return the sums of moduli over the rows of a self-adjoint convolution, shape (b, p)."""
    xp = libraries.namespace(lags)
    if lags.shape[0] == 1:
        return xp.sum(xp.abs(xp.reshape(lags, lags.shape[1:])), axis=-1)
    rest = xp.sum(xp.abs(lags[1:, ...]), axis=0)
    return xp.sum(xp.abs(lags[0, ...]) + rest + xp.matrix_transpose(rest), axis=-1)


def _tap_sizes(x: Array) -> Array:
    """Return (sum_k |X_k|^2)^(1/2) entry by entry as a constant, shape (b, p, q)."""
    xp = libraries.namespace(x)
    size = xp.abs(autodiff.without_gradient(x))
    if x.shape[0] == 1:
        return size[0, ...]
    largest = xp.max(size, axis=0)
    largest = xp.where(largest > 0, largest, xp.ones_like(largest))
    size = size / largest  # so that no square that counts underflows
    return largest * xp.sqrt(xp.sum(size * size, axis=0))


def _row_error(x: Array, box: tuple[int, ...]) -> Array:
    """Bound the row sums of the moduli of what rounding adds to X X^H, shape (b, p)."""
    xp = libraries.namespace(x)
    taps, _, p, q = x.shape
    prec = precision_of(dtypes.complex_dtype(x.dtype) if box else x.dtype)
    relative = _relative_error(taps, p, q, box, prec, half=not dtypes.is_complex(x.dtype))
    lags = math.prod(2 * k - 1 for k in box)
    underflow = (18 * max(len(box), 1) + 2 * p) * taps**2 * q * lags * p * prec.tiny
    sizes = _tap_sizes(x)
    return relative * xp.sum(sizes * xp.sum(sizes, axis=-2, keepdims=True), axis=-1) + underflow


def _relative_error(
    taps: int, p: int, q: int, box: tuple[int, ...], prec: Precision, *, half: bool
) -> float:
    """Return what the row sums are of, over those of beta beta^T (theory, Theorem 15).

    `forward` and `inverse` stand for the two transforms, `product` for the root mean square, over
    the frequencies, of what is wrong with the product, which the inverse transform spreads over the
    lags. `half` says that the taps are real.
    """
    omega = 24 * HOST_UNIT + (0.0 if prec.unit == HOST_UNIT else 1.5 * prec.unit)

    def stages(inner: Sequence[int]) -> float:
        return compounded(prec.kappa(n) * (1 + omega) + omega for n in inner)

    root = math.sqrt(taps)
    forward, inverse = root * stages(box), stages(_frequencies(box, half=half))
    product = root * prec.kappa(q) * (1 + forward) ** 2 + forward * (2 + forward)
    lags = math.prod(2 * k - 1 for k in box)
    relative = (math.sqrt(lags // 2 + 1) + math.sqrt(lags // 2)) * product
    relative += lags * inverse * (1 + product)
    relative += prec.unit * (taps + relative)  # the scaling
    return relative * (1 + 2 * prec.gamma(taps + p + q + 24))  # the sums


def _shrinkage(shape: tuple[int, ...], work: DType, out: DType) -> float:
    """Return what makes room for the last roundings: of a product, and of its conversion to `out`.

    Entries of a contraction with rows and columns of length one at most err by a relative `unit`,
    or by `lost`.
    """
    taps, _, p, q = shape
    info = dtypes.finfo(out)
    unit = float(dtypes.finfo(work).eps) / 2
    lost = float(info.smallest_normal)
    if dtypes.bits(out) < dtypes.bits(work):
        unit += (1 + unit) * float(info.eps) / 2
    if lost > 2.0**-100:
        lost *= float(info.eps)  # what is subnormal in float16 is normal elsewhere, and kept
    room = 1 - taps * math.sqrt(p * q) * lost
    return down(max(room, 0.0) / (1 + unit * math.sqrt(taps * min(p, q))))
