"""Bounds on the spectral norm of matrices and stacks of matrices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import autodiff, crossing, dtypes, libraries, sparse_inputs
from gramnorm._arrays.types import Array, DType, HostFloats
from gramnorm._matrix import gradients, ritz, sparse
from gramnorm._matrix.choose import attainable, bracket_stack, converged, fixed_steps, result_dtype
from gramnorm._results import NormBracket

__all__ = [
    "gram_iteration",
    "matrix_norm_bound",
    "matrix_norm_bracket",
    "matrix_norm_value_and_grad",
]


def matrix_norm_bound(x: Array, /, *, rtol: float | None = None, keepdims: bool = False) -> Array:
    """Return a certified upper bound on the spectral norm of each matrix in a stack.

    The value is never below the largest singular value of the array as stored, rounding included,
    and above it by a relative `rtol` at most where `matrix_norm_bracket` converges.
    A replacement for ``numpy.linalg.matrix_norm(x, ord=2)`` where too small a norm does harm.

    Parameters
    ----------
    x : array, shape (..., m, n), or sparse matrix
        Matrices, real or complex; integers and bool are promoted to the namespace's default real type. A sparse
        matrix may have any size: of `scipy.sparse` or `cupyx.scipy.sparse` in any format, of PyTorch in any layout, of
        JAX as BCOO or BCSR, of `sparse` (PyData). Its entries may stand in any order, and those that share a place
        are added up exactly, with the rounding counted (integers and bool as ``toarray`` does).
    rtol : float, optional
        Relative gap asked for. By default 1e-6 for float64, complex128 and integers, 1e-4 for lower precisions.
    keepdims : bool, optional
        Whether to keep the last two axes with length one.

    Returns
    -------
    array, shape (...) or (..., 1, 1)
        Upper bounds in the namespace, device and real dtype (float32 at least) of `x`. NaN where a matrix holds NaN,
        inf where it holds inf and no NaN or where the norm exceeds the largest number of the type, exactly 0
        for zero and empty matrices.

    Raises
    ------
    TypeError
        If `x` is not an array of real or complex numbers, or has no values (inside ``jax.jit``).
    ValueError
        If `x` has fewer than two axes, or is sparse and has not two, or `rtol` is not positive.

    See Also
    --------
    matrix_norm_bracket : The same bound with a lower one and a convergence flag.
    gram_iteration : Differentiable, under a fixed number of steps, without rounding margin.

    Notes
    -----
    **Guarantee.** Upper bound, for every input, under the rounding model of the theory page
    (Theorem 2): IEEE arithmetic in the working precision, conventional matrix products in any order of summation.

    PyTorch and JAX differentiate it, JAX outside of ``jit``: the gradient is that of `matrix_norm_value_and_grad`. It
    is a constant, so second derivatives are refused.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> a = np.asarray([[1.0, 0.0], [1.0, 2.0]])
    >>> float(gn.matrix_norm_bound(a)) >= 2.288245611270737
    True
    """
    if not sparse_inputs.is_any_sparse(x) and autodiff.is_differentiated(x):
        upper = autodiff.with_gradient(*_value_and_gradient(rtol), x)
    else:
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
        matrix may have any size: of `scipy.sparse` or `cupyx.scipy.sparse` in any format, of PyTorch in any layout, of
        JAX as BCOO or BCSR, of `sparse` (PyData). Its entries may stand in any order, and those that share a place
        are added up exactly, with the rounding counted (integers and bool as ``toarray`` does).
    rtol : float, optional
        Relative gap asked for. By default 1e-6 for float64, complex128 and integers, 1e-4 for lower precisions.
    vectors : bool, optional
        Whether to return unit vectors ``left``, shape (..., m), and ``right``, shape (..., n), with
        ``left^H x right`` not below the norm by more than about `rtol`. They are computed one matrix after the other,
        on the host.

    Returns
    -------
    NormBracket
        ``lower <= norm <= upper`` per matrix, in the namespace, device and real dtype (float32 at least) of `x`, with
        the flag `converged` and the number of matrix products `n_products` of the longest iteration.

    Raises
    ------
    TypeError
        If `x` is not an array of real or complex numbers, or has no values (inside ``jax.jit``).
    ValueError
        If `x` has fewer than two axes, or is sparse and has not two, or `rtol` is not positive.

    Notes
    -----
    **Guarantee.** ``lower <= norm <= upper`` for every input under the rounding model of the theory page
    (Theorems 2, 6, 7 and 19, Lemma 5), converged or not. PyTorch differentiates both ends as it does
    `matrix_norm_bound`.

    Stacks, and matrices on a GPU, go through Gram iteration [1]_: Schatten norms of growing order, whose rounding
    errors are carried along and climb back through the square roots; stacks are worked on in parts of 128 MiB. A single
    matrix on a host, or a stack of large ones, costs one product with the adjoint, a Ritz vector, and the cheapest
    proof that the Ritz value is almost the norm: its residual, row sums, or a Cholesky factorisation checked by a
    product. Where the precision of `x` is too coarse for `rtol` and this shape, float64 is used if the device has it.

    Sparse matrices with more than a few hundred rows and columns are bracketed by products with vectors, at the price
    of ``scipy.sparse.linalg.svds``: matrices without negative entries, and those whose signs a change of bases
    takes away (differences, gradients, Laplacians), at any size. Others need a dense Gram matrix (up to 4096 rows or
    columns) or a factorisation near the diagonal of a sparse one; where that takes more than 256 MiB (512 if complex)
    or about ten seconds, the upper bound is that of the moduli, and `converged` is false.

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
    is_sparse, values = sparse_inputs.is_any_sparse(x), x
    if is_sparse:
        _validate.sparse(x)
        x, values = sparse_inputs.entries_and_like(x)
    a = _validate.concrete_argument(values, name="x", instead="gram_iteration")
    xp = libraries.namespace(a)
    out = result_dtype(a)
    gap = _validate.tolerance(rtol, default=1e-6 if dtypes.bits(out) == 64 else 1e-4)
    aim = attainable(gap)
    with libraries.plain_arithmetic(a):
        if is_sparse:
            lower, upper, products = sparse.bracket(x, rtol=aim, dtype=out)
            batch: tuple[int, ...] = ()
        else:
            _validate.matrices(a, name="x")
            batch = a.shape[:-2]
            stack = xp.reshape(a, (math.prod(batch), *a.shape[-2:]))
            lower, upper, products = bracket_stack(stack, rtol=aim, dtype=out)
    result = to_bracket(lower, upper, rtol=gap, shape=batch, n_products=products, dtype=out, like=a)
    if vectors:
        with libraries.plain_arithmetic(a):
            stack = sparse.stored(x) if is_sparse else stack
            result = _with_vectors(result, stack, like=a, rtol=aim, dtype=out)
    if not is_sparse and autodiff.is_differentiated(values):
        result = with_gradient(result, _value_and_gradient(rtol)[1], x)
    return result


def matrix_norm_value_and_grad(
    x: Array, /, *, steps: int | None = None, rtol: float | None = None
) -> tuple[Array, Array]:
    """Return an upper bound on the spectral norm of each matrix in a stack, and its gradient.

    For arrays without automatic differentiation (NumPy, CuPy); PyTorch and JAX differentiate `matrix_norm_bound` and
    `gram_iteration` themselves, to the same gradients.

    Parameters
    ----------
    x : array, shape (..., m, n), or sparse matrix
        Matrices, real or complex; integers and bool are promoted to the namespace's default real type. A sparse
        matrix of SciPy or CuPy takes no `steps`.
    steps : int, optional
        If given, the value and gradient of ``gram_iteration(x, steps=steps)``; else those of
        ``matrix_norm_bound(x, rtol=rtol)``.
    rtol : float, optional
        Relative gap asked for, as in `matrix_norm_bound`.

    Returns
    -------
    value : array, shape (...)
        The bound, real, in float32 at least.
    gradient : array, shape (..., m, n), or sparse array in coordinates
        G of the type of `x` with ``value(X + dX) = value(X) + Re tr(G^H dX) + o(dX)``: for complex matrices the
        derivative by the real part plus i times that by the imaginary part, as in PyTorch. 0 for a zero matrix, NaN
        where the norm is NaN or inf. Of a sparse matrix the derivative by what it stores, ``x.tocoo().data``.

    Raises
    ------
    TypeError
        If `x` is not an array of real or complex numbers, or has no values (inside ``jax.jit``).
    ValueError
        If `x` has fewer than two axes, or `steps` is negative, or `rtol` is not positive.

    Notes
    -----
    **Guarantee.** The value is that of the function named above, with its guarantee. The gradient of the fixed-step
    bound is exact up to rounding (theory page, Theorem 14). That of the certified bound is ``u v^H`` for the top
    singular vectors, and if the largest singular value is multiple, or singular values are closer to it than about
    `rtol`, the mean of ``u v^H`` over them: a subgradient of the norm. For a sparse matrix it is ``u v^H`` of one pair
    of vectors, at the places of its entries.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> value, gradient = gn.matrix_norm_value_and_grad(np.asarray([[3.0, 0.0], [0.0, 4.0]]))
    >>> bool(value >= 4.0), (abs(gradient).round(6) + 0.0).tolist()
    (True, [[0.0, 0.0], [0.0, 1.0]])
    """
    if libraries.is_sparse(x) and steps is None:
        bracket = matrix_norm_bracket(x, rtol=rtol, vectors=True)
        with libraries.plain_arithmetic(bracket.upper):
            return bracket.upper, sparse.gradient(x, bracket.upper, bracket.left, bracket.right)
    a = _validate.concrete_argument(x, name="x", instead="gram_iteration")
    xp = libraries.namespace(a)
    _validate.matrices(a, name="x")
    if steps is None:
        value, gradient = _value_and_gradient(rtol)
        found = value(a)
        return found, gradient(a, found)
    count = _validate.positive_int(steps, name="steps", least=0)
    found = fixed_steps(a, steps=count)
    b = floating(a)
    with libraries.plain_arithmetic(a):
        result = gradients.of_fixed_steps(
            b, xp.astype(found, dtypes.real_dtype(b.dtype)), steps=count
        )
    return found, xp.astype(result, gradient_dtype(a), copy=False)


def _value_and_gradient(
    rtol: float | None,
) -> tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]:
    """Return the functions that compute the certified bound, and its gradient from the matrices and their bounds."""

    def value(a: Array) -> Array:
        return matrix_norm_bracket(a, rtol=rtol).upper

    def gradient(a: Array, found: Array) -> Array:
        xp = libraries.namespace(a)
        b = floating(a)
        gap = _validate.tolerance(rtol, default=1e-6 if dtypes.bits(b.dtype) == 64 else 1e-4)
        count = math.prod(a.shape[:-2])
        norms = xp.astype(xp.reshape(found, (count,)), dtypes.real_dtype(b.dtype))
        with libraries.plain_arithmetic(a):
            stack = xp.reshape(b, (count, *a.shape[-2:]))
            result = gradients.of_norm(stack, norms, rtol=attainable(gap))
        return xp.astype(xp.reshape(result, a.shape), gradient_dtype(a), copy=False)

    return value, gradient


def floating(a: Array) -> Array:
    """Return `a` in a type of at least single precision, without its gradient."""
    xp = libraries.namespace(a)
    real = result_dtype(a)
    kind = dtypes.complex_dtype(real) if dtypes.is_complex(a.dtype) else real
    return xp.astype(autodiff.without_gradient(a), kind, copy=False)


def gradient_dtype(a: Array) -> DType:
    """Return the type of a gradient by `a`: its own, of integers that of the bound."""
    return a.dtype if dtypes.is_floating(a.dtype) else result_dtype(a)


def with_gradient(
    result: NormBracket, gradient: Callable[[Array, Array], Array], x: Array
) -> NormBracket:
    """Let automatic differentiation of PyTorch see the gradient of both ends of a bracket of `x`."""
    lower, upper = result.lower, result.upper
    return dataclasses.replace(
        result,
        lower=autodiff.with_gradient(lambda _: lower, gradient, x),
        upper=autodiff.with_gradient(lambda _: upper, gradient, x),
    )


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
        The values, in the namespace, device and real dtype (float32 at least) of `x`; NaN, inf, zero and empty matrices
        as in `matrix_norm_bound`.

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
    a = _validate.array_argument(x, name="x")
    _validate.matrices(a, name="x")
    count = _validate.positive_int(steps, name="steps", least=0)
    return fixed_steps(a, steps=count)


def _with_vectors(
    result: NormBracket, a: Array, *, like: Array, rtol: float, dtype: DType
) -> NormBracket:
    """Add unit vectors for the stack or the sparse matrix `a` to a bracket, in the library of `like`."""
    xp = libraries.namespace(like)
    work = xp.float64 if dtypes.has_float64(like) else xp.float32
    complex_values = dtypes.is_complex(like.dtype)
    if not libraries.is_sparse(a):
        left, right = ritz.unit_vectors(a, rtol=rtol, work=work)
    elif (b := sparse.normalised(a)) is not None:
        left, right = sparse.unit_pair(b, rtol)
    else:
        left, right = (
            np.eye(1, size)[0] if result.lower == 0 else np.full(size, np.nan) for size in a.shape
        )
    batch = tuple(result.lower.shape)
    kind = dtypes.complex_dtype(dtype) if complex_values else dtype

    def move(vectors: ritz.HostVectors) -> Array:
        moved = vectors.reshape((*batch, vectors.shape[-1]))
        return crossing.from_host(moved, dtype=kind, like=like)

    return dataclasses.replace(result, left=move(left), right=move(right))


def to_bracket(
    lower: HostFloats,
    upper: HostFloats,
    *,
    rtol: float,
    shape: tuple[int, ...],
    n_products: int,
    dtype: DType,
    like: Array,
    frequency: HostFloats | None = None,
) -> NormBracket:
    """Move a bracket to the namespace and device of `like`."""
    xp = libraries.namespace(like)
    device = libraries.device_of(like)

    def move(values: HostFloats, kind: DType = dtype) -> Array:
        return crossing.from_host(values, dtype=kind, like=like)

    return NormBracket(
        lower=move(lower.reshape(shape)),
        upper=move(upper.reshape(shape)),
        converged=xp.asarray(
            converged(lower, upper, rtol).reshape(shape), dtype=xp.bool, device=device
        ),
        n_products=n_products,
        frequency=None if frequency is None else move(frequency),
    )
