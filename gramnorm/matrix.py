"""Bounds on the spectral norm of matrices and stacks of matrices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from gramnorm import _scaling, _single, _sparse, _validate, _vectors, _xp
from gramnorm._gram import GramChain, gram_values
from gramnorm._rounding import (
    gram_units,
    precision_of,
    round_outward,
    working_dtype,
)
from gramnorm._typing import Array, DType, HostBools, HostFloats, Namespace
from gramnorm.bracket import NormBracket

__all__ = ["gram_iteration", "matrix_norm_bound", "matrix_norm_bracket"]

Kernel = Callable[..., tuple[HostFloats, HostFloats, int]]

MEMORY = 2**27
"""Bytes that a part of a stack may take in double precision, complex; a few such arrays live at a time."""


def matrix_norm_bound(x: Array, /, *, rtol: float | None = None, keepdims: bool = False) -> Array:
    """Return a certified upper bound on the spectral norm of each matrix in a stack.

    The value is never below the largest singular value of the array as stored, rounding included,
    and above it by a relative `rtol` at most where `matrix_norm_bracket` converges.
    A replacement for ``numpy.linalg.matrix_norm(x, ord=2)`` where too small a norm does harm.

    Parameters
    ----------
    x : array, shape (..., m, n), or sparse matrix
        Matrices, real or complex; integers and bool are promoted to the namespace's default real type. A sparse
        matrix of `scipy.sparse` or `cupyx.scipy.sparse` may have up to 4096 rows or columns, whichever are fewer.
    rtol : float, optional
        Relative gap asked for. By default 1e-6 for float64, complex128 and integers, 1e-4 for lower precisions.
    keepdims : bool, optional
        Whether to keep the last two axes with length one.

    Returns
    -------
    array, shape (...) or (..., 1, 1)
        Upper bounds in the namespace, device and real dtype of `x`. NaN where a matrix holds NaN,
        inf where it holds inf and no NaN or where the norm exceeds the largest number of the type, exactly 0
        for zero and empty matrices.

    Raises
    ------
    TypeError
        If `x` is not an array of real or complex numbers, or has no values (inside ``jax.jit``).
    ValueError
        If `x` has fewer than two axes, or is sparse and too large for a dense Gram matrix, or `rtol` is not positive.

    See Also
    --------
    matrix_norm_bracket : The same bound with a lower one and a convergence flag.
    gram_iteration : Differentiable, under a fixed number of steps, without rounding margin.

    Notes
    -----
    **Guarantee.** Upper bound, for every input, under the rounding model of the theory page
    (Theorem 2): IEEE arithmetic in the working precision, conventional matrix products in any order of summation.
    The result carries no gradient.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> a = np.asarray([[1.0, 0.0], [1.0, 2.0]])
    >>> float(gn.matrix_norm_bound(a)) >= 2.288245611270737
    True
    """
    upper = matrix_norm_bracket(x, rtol=rtol).upper
    return upper[..., None, None] if keepdims else upper


def matrix_norm_bracket(
    x: Array, /, *, rtol: float | None = None, vectors: bool = False
) -> NormBracket:
    """Return certified lower and upper bounds on the spectral norm of each matrix in a stack.

    Parameters
    ----------
    x : array, shape (..., m, n), or sparse matrix
        Matrices, real or complex; integers and bool are promoted to the namespace's default real type. A sparse
        matrix of `scipy.sparse` or `cupyx.scipy.sparse` may have up to 4096 rows or columns, whichever are fewer.
    rtol : float, optional
        Relative gap asked for. By default 1e-6 for float64, complex128 and integers, 1e-4 for lower precisions.
    vectors : bool, optional
        Whether to return unit vectors ``left``, shape (..., m), and ``right``, shape (..., n), with
        ``left^H x right`` not below the norm by more than about `rtol`. They are computed one matrix after the other,
        on the host.

    Returns
    -------
    NormBracket
        ``lower <= norm <= upper`` per matrix, in the namespace, device and real dtype of `x`, with the flag
        `converged` and the number of matrix products `n_products` of the longest iteration.

    Raises
    ------
    TypeError
        If `x` is not an array of real or complex numbers, or has no values (inside ``jax.jit``).
    ValueError
        If `x` has fewer than two axes, or is sparse and too large for a dense Gram matrix, or `rtol` is not positive.

    Notes
    -----
    **Guarantee.** ``lower <= norm <= upper`` for every input under the rounding model of the theory page
    (Theorems 2, 7 and 8, Lemma 4), converged or not. The result carries no gradient.

    Stacks, and matrices on a GPU, go through Gram iteration [1]_: Schatten norms of growing order, whose rounding
    errors are carried along and climb back through the square roots; stacks are worked on in parts of 128 MiB. A single
    matrix on a host, or a stack of large ones, costs one product with the adjoint, a Ritz vector, and the cheapest
    proof that the Ritz value is almost the norm: its residual, row sums, or a Cholesky factorisation checked by a
    product. Where the precision of `x` is too coarse for `rtol` and this shape, float64 is used if the device has it.

    References
    ----------
    .. [1] B. Delattre, Q. Barthelemy, A. Araujo, A. Allauzen, "Efficient Bound of Lipschitz Constant for
       Convolutional Layers by Gram Iteration", ICML 2023, arXiv:2305.16173.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> bracket = gn.matrix_norm_bracket(np.asarray([[3.0, 3.0], [0.0, 3.0]]))
    >>> bool(bracket.lower <= 4.854101966249685 <= bracket.upper)
    True
    >>> bool(bracket.converged)
    True
    """
    sparse = _xp.is_sparse(x)
    x = _sparse.stored(x) if sparse else x
    values = x.data if sparse else x
    xp, a = _validate.concrete_argument(values, name="x", instead="gram_iteration")
    out = result_dtype(a, xp=xp)
    gap = _validate.tolerance(rtol, default=1e-6 if _xp.bits(out, xp=xp) == 64 else 1e-4)
    aim = attainable(gap)
    with _xp.plain_arithmetic(a):
        if sparse:
            _validate.sparse(x, most=_sparse.DENSE_COLUMNS)
            lower, upper, products = _sparse.bracket(x, rtol=aim, dtype=out, xp=xp)
            batch: tuple[int, ...] = ()
        else:
            _validate.matrices(a, name="x")
            batch = a.shape[:-2]
            stack = xp.reshape(a, (math.prod(batch), *a.shape[-2:]))
            lower, upper, products = bracket_stack(stack, rtol=aim, dtype=out, xp=xp)
    result = to_bracket(
        lower, upper, rtol=gap, shape=batch, n_products=products, dtype=out, like=a, xp=xp
    )
    if vectors:
        with _xp.plain_arithmetic(a):
            result = _with_vectors(result, x if sparse else stack, rtol=aim, dtype=out, xp=xp)
    return result


def gram_iteration(x: Array, /, *, steps: int) -> Array:
    """Return the upper bound on spectral norms that a fixed number of Gram steps gives.

    In exact arithmetic ``(sum_i sigma_i^P)^(1/P)`` with ``P = 2^(steps + 1)``: the Frobenius norm for no step,
    non-increasing in `steps`, at most ``rank^(1/P)`` times the norm. Differentiable, usable under ``jax.jit``
    and ``vmap``, never waits for the device.

    Parameters
    ----------
    x : array, shape (..., m, n)
        Matrices, real or complex; integers and bool are promoted to the namespace's default real type.
    steps : int
        Number of Gram products, at least 0.

    Returns
    -------
    array, shape (...)
        The values, in the namespace, device and real dtype of `x`; NaN, inf, zero and empty matrices as in
        `matrix_norm_bound`.

    Raises
    ------
    TypeError
        If `x` is not an array of real or complex numbers or `steps` is not an integer.
    ValueError
        If `x` has fewer than two axes or `steps` is negative.

    See Also
    --------
    matrix_norm_bound : An upper bound that rounding cannot push below the norm.

    Notes
    -----
    **Guarantee.** Upper bound in exact arithmetic only: no rounding margin is added, so the value may fall below
    the norm by a few units in the last place. This is the iteration of Delattre et al. (ICML 2023,
    arXiv:2305.16173), whose count starts one higher.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> float(gn.gram_iteration(np.asarray([[3.0, 0.0], [0.0, 4.0]]), steps=0))
    5.0
    """
    xp, a = _validate.array_argument(x, name="x")
    _validate.matrices(a, name="x")
    count = _validate.positive_int(steps, name="steps", least=0)
    return fixed_steps(a, steps=count, xp=xp)


def fixed_steps(a: Array, *, steps: int, xp: Namespace) -> Array:
    """Run the Gram iteration on scaled matrices; keep NaN, inf and zero as they are."""
    out = result_dtype(a, xp=xp)
    if 0 in a.shape:
        return xp.zeros(a.shape[:-2], dtype=out, device=_xp.device_of(a))
    real = xp.float64 if _xp.bits(out, xp=xp) == 64 else xp.float32
    a = xp.astype(a, _xp.complex_dtype(real, xp=xp) if _xp.is_complex(a.dtype, xp=xp) else real)
    tiny = float(xp.finfo(real).smallest_normal)  # complex division by less overflows
    peaks = [
        xp.max(xp.abs(_xp.without_gradient(part)), axis=(-2, -1))
        for part in _xp.components(a, xp=xp)
    ]
    peak = peaks[0] if len(peaks) == 1 else xp.maximum(*peaks)
    usable = xp.isfinite(peak) & (peak > 0)
    scale = xp.where(
        usable, xp.where(peak > tiny, peak, xp.full_like(peak, tiny)), xp.ones_like(peak)
    )
    values = gram_values(a / xp.astype(scale[..., None, None], a.dtype), steps=steps, xp=xp)
    return xp.astype(xp.where(xp.isfinite(peak), scale * values, peak), out)


def result_dtype(a: Array, *, xp: Namespace) -> DType:
    """Return the real type of a bound on `a`."""
    if _xp.is_floating(a.dtype, xp=xp):
        return _xp.real_dtype(a.dtype, xp=xp)
    return _xp.default_real_dtype(a, xp=xp)


def bracket_stack(
    a: Array, *, rtol: float, dtype: DType, xp: Namespace
) -> tuple[HostFloats, HostFloats, int]:
    """Bracket the norms of a stack (b, m, n) as host numbers that `dtype` represents."""
    count, m, n = a.shape
    if 0 in a.shape:
        return np.zeros(count), np.zeros(count), 0
    part = max(1, MEMORY // (16 * m * n))
    if count > part:
        parts = [
            bracket_stack(a[k : k + part, ...], rtol=rtol, dtype=dtype, xp=xp)
            for k in range(0, count, part)
        ]
        lows, highs, costs = zip(*parts, strict=True)
        return np.concatenate(lows), np.concatenate(highs), max(costs)
    if _goes_one_by_one(a, xp=xp):
        return _bracket_part(a, _each, xp.float64, rtol=rtol, dtype=dtype, xp=xp)
    # a stable rank of a quarter of the columns is typical; what is flatter is done again in float64
    units = gram_units((m, n), complex=_xp.is_complex(a.dtype, xp=xp)) / 4
    work = working_dtype(a, units, rtol, xp=xp)
    lower, upper, products = _bracket_part(a, _iterate, work, rtol=rtol, dtype=dtype, xp=xp)
    wide = np.flatnonzero(np.isfinite(upper) & ~converged(lower, upper, rtol))
    if wide.size and work == xp.float32 and _xp.has_float64(_xp.device_of(a), xp=xp):
        rest = _xp.select(a, wide, xp=xp)
        low, high, more = _bracket_part(rest, _iterate, xp.float64, rtol=rtol, dtype=dtype, xp=xp)
        lower[wide], upper[wide] = np.maximum(lower[wide], low), np.minimum(upper[wide], high)
        products += more
    return lower, upper, products


def _goes_one_by_one(a: Array, *, xp: Namespace) -> bool:
    """Choose the method from shape and device.

    =========================  =========================================================
    on a host, one matrix      a few squarings, else the Cholesky certificate (`_single`)
    on a host, q > `SQUARED`   the same, one matrix after the other
    all other stacks, GPUs     Gram iteration of the stack (`_gram`)
    =========================  =========================================================

    What goes one by one is computed in float64, for which `_single` is written.
    """
    if not (_xp.is_on_cpu(a, xp=xp) and _xp.has_linalg(xp=xp)):
        return False
    large = min(a.shape[1:]) > _single.SQUARED
    return (a.shape[0] == 1 or large) and _xp.has_float64(_xp.device_of(a), xp=xp)


def _bracket_part(
    a: Array, kernel: Kernel, work: DType, *, rtol: float, dtype: DType, xp: Namespace
) -> tuple[HostFloats, HostFloats, int]:
    """Scale a stack that fits in memory into the real type `work`, run the kernel, and scale back."""
    if kernel is _each and a.shape[0] == 1:
        quick = _bracket_in_range(a, rtol=rtol, work=work, xp=xp)
        if quick is not None:
            low, high = np.asarray([quick.lower]), np.asarray([quick.upper])
            return (*round_outward(low, high, dtype=dtype, xp=xp), quick.products)
    scaled = _scaling.normalise(a, dtype=work, xp=xp)
    lower, upper, products = kernel(scaled.values, rtol=rtol, xp=xp)
    return (*_scaling.restore(lower, upper, scaled, dtype=dtype, xp=xp), products)


def _bracket_in_range(
    a: Array, *, rtol: float, work: DType, xp: Namespace
) -> _single.Bracket | None:
    """Bracket a stack of one matrix that needs no scaling; None if it does, or is not finite."""
    if not _xp.is_floating(a.dtype, xp=xp) or _xp.bits(a.dtype, xp=xp) < 32:
        return None
    kind = _xp.complex_dtype(work, xp=xp) if _xp.is_complex(a.dtype, xp=xp) else work
    b = xp.astype(a[0, ...], kind, copy=False)
    if b.shape[0] < b.shape[1]:
        b = xp.matrix_transpose(b)
    square = _single.square_norm(b, xp=xp)
    # single precision: so that its subnormal numbers are next to nothing beside the norm
    least = 2.0**-200 if _xp.bits(a.dtype, xp=xp) == 64 else 2.0**-100
    if not least < square < 2.0**200:  # false for NaN, inf and zero as well
        return None
    result = _one(b, square, rtol=rtol, xp=xp)
    # subnormal entries may have been flushed; beside a norm in this range they are next to nothing
    loss = 2.0 * float(xp.finfo(a.dtype).smallest_normal) * math.sqrt(math.prod(b.shape))
    return _single.Bracket(max(result.lower - loss, 0.0), result.upper + loss, result.products)


def _each(a: Array, *, rtol: float, xp: Namespace) -> tuple[HostFloats, HostFloats, int]:
    """Bracket scaled matrices one after the other."""
    found = []
    for k in range(a.shape[0]):
        b = a[k, ...]
        b = xp.matrix_transpose(b) if b.shape[0] < b.shape[1] else b
        found.append(_one(b, _single.square_norm(b, xp=xp), rtol=rtol, xp=xp))
    lower = np.asarray([one.lower for one in found])
    upper = np.asarray([one.upper for one in found])
    return lower, upper, max((one.products for one in found), default=0)


def _one(b: Array, square: float, *, rtol: float, xp: Namespace) -> _single.Bracket:
    """Bracket one matrix with computed squared norm `square`; by the Gram iteration if all else fails."""
    loss = _single.sum_loss(b.shape, precision_of(b.dtype, xp=xp))
    # half the gap asked for: the result is still to be rounded to the caller's type
    try:
        one = _single.bracket(b, frobenius2=square * (1 + 2 * loss), rtol=rtol / 2, xp=xp)
    except np.linalg.LinAlgError:  # eigenvectors that do not converge
        one = _single.Bracket(0.0, math.inf, 0)
    if one.is_within(rtol / 2):
        return one
    low, high, steps = _iterate(b[None, ...], rtol=rtol, xp=xp)
    return _single.Bracket(
        max(one.lower, low.item()), min(one.upper, high.item()), one.products + steps
    )


def _iterate(a: Array, *, rtol: float, xp: Namespace) -> tuple[HostFloats, HostFloats, int]:
    """Advance the Gram iteration of each matrix of the stack until its bracket is narrow enough."""
    lower, upper = np.zeros(a.shape[0]), np.full(a.shape[0], np.inf)
    chain, rest, steps = GramChain(a, xp=xp), np.arange(a.shape[0]), 0
    # in exact arithmetic the log of the gap is at most 2 ln(q) / 2^t after t steps
    limit = 2 + max(0, math.ceil(math.log2(8 * math.log(1 + min(a.shape[1:])) / rtol)))
    while rest.size and steps < limit:
        steps += 1
        low, high = chain.advance()
        lower[rest], upper[rest] = np.maximum(lower[rest], low), np.minimum(upper[rest], high)
        width = upper[rest] - lower[rest]
        # half the gap asked for: the result is still to be rounded to the caller's type
        done = width <= 0.5 * rtol * lower[rest]
        hopeless = width * 0.7 <= 2 * chain.noise * upper[rest]
        going = np.flatnonzero(~(done | hopeless))
        if going.size < rest.size:
            chain.keep(going)
            rest = rest[going]
    return lower, upper, steps


def _with_vectors(
    result: NormBracket, a: Array, *, rtol: float, dtype: DType, xp: Namespace
) -> NormBracket:
    """Add unit vectors for the stack or the sparse matrix `a` to a bracket."""
    like = a.data if _xp.is_sparse(a) else a
    device = _xp.device_of(like)
    work = xp.float64 if _xp.has_float64(device, xp=xp) else xp.float32
    complex_values = _xp.is_complex(like.dtype, xp=xp)
    if not _xp.is_sparse(a):
        left, right = _vectors.unit_vectors(a, rtol=rtol, work=work, xp=xp)
    elif 0 < float(result.lower) < math.inf:
        scale = math.ldexp(1.0, -min(max(math.frexp(float(result.lower))[1], -1022), 1022))
        left, right = _vectors.unit_pair(
            a.astype(_xp.complex_dtype(work, xp=xp) if complex_values else work) * scale,
            rtol,
            xp=xp,
        )
    else:
        left, right = (
            np.eye(1, size)[0] if result.lower == 0 else np.full(size, np.nan) for size in a.shape
        )
    batch = tuple(result.lower.shape)
    kind = _xp.complex_dtype(dtype, xp=xp) if complex_values else dtype

    def move(vectors: _vectors.HostVectors) -> Array:
        moved = vectors.reshape((*batch, vectors.shape[-1]))
        return _xp.from_host(moved, dtype=kind, device=device, xp=xp)

    return dataclasses.replace(result, left=move(left), right=move(right))


def attainable(rtol: float) -> float:
    """Return the relative gap to work for: at most 1, and no less than float64 can hope for."""
    return min(max(rtol, 2.0**-44), 1.0)


def converged(lower: HostFloats, upper: HostFloats, rtol: float) -> HostBools:
    """Say where the bracket is as narrow as asked for."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(upper - lower <= rtol * lower)


def to_bracket(
    lower: HostFloats,
    upper: HostFloats,
    *,
    rtol: float,
    shape: tuple[int, ...],
    n_products: int,
    dtype: DType,
    like: Array,
    xp: Namespace,
    frequency: HostFloats | None = None,
) -> NormBracket:
    """Move a bracket to the namespace and device of `like`."""
    device = _xp.device_of(like)

    def move(values: HostFloats) -> Array:
        return _xp.from_host(values, dtype=dtype, device=device, xp=xp)

    return NormBracket(
        lower=move(lower.reshape(shape)),
        upper=move(upper.reshape(shape)),
        converged=xp.asarray(
            converged(lower, upper, rtol).reshape(shape), dtype=xp.bool, device=device
        ),
        n_products=n_products,
        frequency=None if frequency is None else move(frequency),
    )
