"""Bounds on the spectral norm of matrices and stacks of matrices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import (
    autodiff,
    compiling,
    crossing,
    devices,
    dtypes,
    libraries,
    sparse_inputs,
    spread,
)
from gramnorm._arrays.types import Array, DType, HostNumbers
from gramnorm._matrix import (
    choose,
    chunked,
    fixed_steps,
    gradients,
    sharded,
    sparse,
    summed,
)
from gramnorm._matrix.gram import product_operations
from gramnorm._results import (
    NormBracket,
    attainable,
    differentiable,
    result_dtype,
    to_bracket,
    upper_array,
)

__all__ = [
    "gram_iteration",
    "matrix_norm_bound",
    "matrix_norm_bracket",
    "matrix_norm_value_and_grad",
]


@compiling.graph_break
def matrix_norm_bound(x: Array, /, *, rtol: float | None = None, keepdims: bool = False) -> Array:
    """Return a certified upper bound on the spectral norm of each matrix in a stack.

    The value is never below the largest singular value of the array as stored, rounding included,
    and above it by a relative `rtol` at most where `matrix_norm_bracket` converges.
    A replacement for ``numpy.linalg.matrix_norm(x, ord=2)`` where too small a norm does harm.

    Parameters
    ----------
    x : array, shape (..., m, n), or sparse matrix
        Matrices, real or complex; integers and bool are promoted to the namespace's default real
        type. A sparse matrix may have any size: of `scipy.sparse` or `cupyx.scipy.sparse` in any
        format, of PyTorch in any layout, of JAX as BCOO or BCSR, of `sparse` (PyData). Its entries
        may stand in any order, and those that share a place are added up exactly, with the
        rounding counted (integers and bool as ``toarray`` does). For an array of Dask the result is
        one of Dask and nothing is computed; the how-to page on machines says more, also of arrays
        that are sharded over devices or processes.
    rtol : float, optional
        Relative gap asked for. By default 1e-6 for float64, complex128 and integers, 1e-4 for lower
        precisions.
    keepdims : bool, optional
        Whether to keep the last two axes with length one.

    Returns
    -------
    array, shape (...) or (..., 1, 1)
        Upper bounds in the namespace, device and real dtype (float32 at least) of `x`. NaN where a
        matrix holds NaN, inf where it holds inf and no NaN or where the norm exceeds the largest
        number of the type, exactly 0 for zero and empty matrices.

    Raises
    ------
    TypeError
        If `x` is not an array of real or complex numbers, or has no values (inside ``jax.jit``).
    ValueError
        If `x` has fewer than two axes, or is sparse and has not two, or is of Dask with chunks of
        unknown size, or `rtol` is not positive.

    See Also
    --------
    matrix_norm_bracket : The same bound with a lower one and a convergence flag.
    gram_iteration : A fixed number of steps, inside compiled code.

    Notes
    -----
    **Guarantee.** Upper bound, for every input, under the rounding model of the theory page
    (Theorem 2): IEEE arithmetic in the working precision, conventional matrix products in any order
    of summation.

    PyTorch and JAX differentiate it, JAX outside of ``jit``: the gradient is that of
    `matrix_norm_value_and_grad`. It is a constant, so second derivatives are refused.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> a = np.asarray([[1.0, 0.0], [1.0, 2.0]])
    >>> float(gn.matrix_norm_bound(a)) >= 2.288245611270737
    True
    """
    if spread.is_left_in_parts(x):
        upper = _bracket_in_parts(x, rtol=rtol).upper
        return upper[..., None, None] if keepdims else upper
    x = spread.whole(x)
    if not sparse_inputs.is_any_sparse(x) and autodiff.is_differentiated(x):
        upper = autodiff.with_residual(
            partial(_upper_and_right, rtol=rtol), partial(_gradient_by, rtol=rtol), x
        )
    else:
        upper, _ = _upper_and_right(x, rtol=rtol)
    return upper[..., None, None] if keepdims else upper


@compiling.graph_break
def matrix_norm_bracket(
    x: Array, /, *, rtol: float | None = None, vectors: bool = False
) -> NormBracket:
    """Return certified lower and upper bounds on the spectral norm of each matrix in a stack.

    Parameters
    ----------
    x : array, shape (..., m, n), or sparse matrix
        Matrices, as in `matrix_norm_bound`.
    rtol : float, optional
        Relative gap asked for, as in `matrix_norm_bound`.
    vectors : bool, optional
        Whether to return unit vectors ``left``, shape (..., m), and ``right``, shape (..., n), with
        ``left^H x right`` not below the norm by more than about `rtol`. They are computed one
        matrix after the other, on the host; not of an array of Dask.

    Returns
    -------
    NormBracket
        ``lower <= norm <= upper`` per matrix, in the namespace, device and real dtype (float32 at
        least) of `x`, with the flag `converged` and the number of matrix products `n_products` of
        the longest iteration. For an array of Dask all of them are arrays of Dask, which
        ``dask.compute(bracket)`` computes together.

    Raises
    ------
    TypeError, ValueError
        As in `matrix_norm_bound`; ValueError also for an array of Dask with `vectors`.

    Notes
    -----
    **Guarantee.** ``lower <= norm <= upper`` for every input under the rounding model of the theory
    page (Theorems 2, 6, 7, 24 and 35, Lemma 5), converged or not. PyTorch differentiates both ends as
    it does `matrix_norm_bound`.

    Stacks, and matrices on a GPU, go through Gram iteration [1]_: Schatten norms of growing order,
    whose rounding errors are carried along and climb back through the square roots; stacks are
    worked on in parts of 128 MiB. A single matrix on a host, or a stack of large ones, costs one
    product with the adjoint, a Ritz vector, and the cheapest proof that the Ritz value is almost
    the norm: its residual, row sums, or a Cholesky factorisation checked by a product. From an
    `rtol` of 1e-3 on this is tried in single precision first, with its rounding counted. Where the
    precision of `x` is too coarse for `rtol` and this shape, float64 is used if the device has it.

    Sparse matrices with more than a few hundred rows and columns are bracketed by products with
    vectors, at the price of ``scipy.sparse.linalg.svds``: those without negative entries, and those
    whose signs a change of bases takes away (differences, gradients, Laplacians), at any size.
    Others need a dense Gram matrix, up to 4096 rows or columns, or a factorisation near the
    diagonal of a sparse one; where that takes more than 256 MiB (512 if complex) or about ten
    seconds, the upper bound is that of the moduli, and `converged` is false.

    References
    ----------
    .. [1] B. Delattre, Q. Barthelemy, A. Araujo, A. Allauzen, "Efficient Bound of Lipschitz
       Constant for Convolutional Layers by Gram Iteration", ICML 2023, arXiv:2305.16173.

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
    if spread.is_dask(x):
        _validate.no_vectors(vectors, name="x")
    if spread.is_left_in_parts(x) and not vectors:
        return _bracket_in_parts(x, rtol=rtol)
    x = spread.whole(x)
    a, values = _checked(x)
    out = result_dtype(values)
    gap = _gap(rtol, out)
    with libraries.plain_arithmetic(a):
        found = choose.bracket(a, rtol=attainable(gap), dtype=out)
        pair = choose.unit_vectors(a, rtol=attainable(gap)) if vectors else ()
    batch = tuple(a.shape[:-2])
    result = to_bracket(found, rtol=gap, shape=batch, dtype=out, like=values)
    if pair:
        kind = dtypes.complex_dtype(out) if dtypes.is_complex(values.dtype) else out
        left, right = (
            crossing.from_host(v.reshape((*batch, v.shape[-1])), dtype=kind, like=values)
            for v in pair
        )
        result = dataclasses.replace(result, left=left, right=right)
    if not sparse_inputs.is_any_sparse(x) and autodiff.is_differentiated(x):
        gradient = partial(_gradient, right=found.right, rtol=rtol)
        result = differentiable(result, gradient, x)
    return result


@compiling.graph_break
@spread.gathers
def matrix_norm_value_and_grad(
    x: Array, /, *, steps: int | None = None, rtol: float | None = None
) -> tuple[Array, Array]:
    """Return an upper bound on the spectral norm of each matrix in a stack, and its gradient.

    For arrays without automatic differentiation (NumPy, CuPy); PyTorch and JAX differentiate
    `matrix_norm_bound` and `gram_iteration` themselves, to the same gradients.

    Parameters
    ----------
    x : array, shape (..., m, n)
        Matrices, as in `matrix_norm_bound`; a sparse matrix only of SciPy or CuPy, without `steps`.
    steps : int, optional
        If given, the value and gradient of ``gram_iteration(x, steps=steps)``; else those of
        ``matrix_norm_bound(x, rtol=rtol)``.
    rtol : float, optional
        Relative gap asked for, as in `matrix_norm_bound`.

    Returns
    -------
    value : array, shape (...)
        The bound, real, in float32 at least.
    gradient : array, shape (..., m, n)
        G of the type of `x` with ``value(X + dX) = value(X) + Re tr(G^H dX) + o(dX)``: for complex
        matrices the derivative by the real part plus i times that by the imaginary part, as in
        PyTorch. 0 for a zero matrix, NaN where the norm is NaN or inf. Of a sparse matrix, in
        coordinates, the derivative by what it stores, ``x.tocoo().data``.

    Raises
    ------
    TypeError, ValueError
        As in `matrix_norm_bound`; TypeError also for a sparse matrix with `steps`, ValueError for
        negative `steps`.

    Notes
    -----
    **Guarantee.** The value is that of the function named above, with its guarantee. The gradient
    of the fixed-step bound is exact up to rounding (theory page, Theorem 14). That of the certified
    bound is ``u v^H`` for the top singular vectors, and if the largest singular value is multiple,
    or singular values are closer to it than about `rtol`, the mean of ``u v^H`` over them: a
    subgradient of the norm. For a sparse matrix, and for one matrix of more than 192 rows and
    columns from an `rtol` of 1e-3 on, it is ``u v^H`` of the one pair of vectors that proved the
    lower bound: ``Re u^H x v`` is within `rtol` of the norm where the bracket converges.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> value, gradient = gn.matrix_norm_value_and_grad(np.asarray([[3.0, 0.0], [0.0, 4.0]]))
    >>> bool(value >= 4.0), (abs(gradient).round(6) + 0.0).tolist()
    (True, [[0.0, 0.0], [0.0, 1.0]])
    """
    if libraries.is_sparse(x) and steps is None:
        found = matrix_norm_bracket(x, rtol=rtol, vectors=True)
        with libraries.plain_arithmetic(found.upper):
            return found.upper, sparse.gradient(x, found.upper, found.left, found.right)
    a = _validate.concrete_argument(x, name="x", instead="gram_iteration")
    _validate.matrices(a, name="x")
    if steps is None:
        bound, kept = _upper_and_right(a, rtol=rtol)
        return bound, _gradient_by(a, kept, rtol=rtol)
    count = _validate.positive_int(steps, name="steps", least=0)
    bound = fixed_steps.norm_bound(a, steps=count)
    return bound, gradients.of_fixed_steps(a, bound, steps=count)


@compiling.one_node
def gram_iteration(x: Array, /, *, steps: int) -> Array:
    """Return the upper bound on spectral norms that a fixed number of Gram steps gives.

    About ``(sum_i sigma_i^P)^(1/P)`` with ``P = 2^(steps + 1)``: the Frobenius norm for no step,
    non-increasing in `steps`, at most ``rank^(1/P)`` times the norm. Differentiable, usable under
    ``jax.jit``, ``torch.compile`` and ``vmap``, never waits for the device.

    Parameters
    ----------
    x : array, shape (..., m, n)
        Matrices, as in `matrix_norm_bound`, but not sparse.
    steps : int
        Number of Gram products, at least 0.

    Returns
    -------
    array, shape (...)
        The values, in the namespace, device and real dtype (float32 at least) of `x`; NaN, inf,
        zero and empty matrices as in `matrix_norm_bound`.

    Raises
    ------
    TypeError, ValueError
        As in `matrix_norm_bound`, except that `x` need not have values; TypeError also for a sparse
        matrix, ValueError for negative `steps`.

    See Also
    --------
    matrix_norm_bound : An upper bound that rounding cannot push below the norm.

    Notes
    -----
    **Guarantee.** Upper bound, rounding included, under the rounding model of the theory page
    (Theorem 25), eagerly and compiled. No value is looked at: the margin follows from the shapes,
    about half of ``m u ||x||_F^2 / ||x||^2`` relative to the norm for m rows or columns, whichever
    are more, and is a constant for differentiation. float16 and bfloat16 are computed in float32,
    and float32 in float64 where products would be in reduced precision. This is the iteration of
    Delattre et al. (ICML 2023, arXiv:2305.16173), whose count starts one higher; they add no
    margin.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> x = np.asarray([[3.0, 0.0], [0.0, 4.0]])
    >>> [round(float(gn.gram_iteration(x, steps=t)), 6) for t in (0, 1, 4)]
    [5.0, 4.284572, 4.000013]
    """
    count = _validate.positive_int(steps, name="steps", least=0)
    if spread.is_dask(x):
        return chunked.bound_of_steps(x, each=partial(gram_iteration, steps=count), steps=count)
    if spread.is_dtensor(x):
        return _steps_of_dtensor(x, steps=count)
    a = _validate.array_argument(x, name="x")
    _validate.matrices(a, name="x")
    return fixed_steps.norm_bound(a, steps=count)


def _steps_of_dtensor(x: Array, *, steps: int) -> Array:
    """Return the bound of so many Gram steps of a DTensor, in each process."""
    if not spread.is_left_in_parts(x):
        return gram_iteration(spread.whole(x), steps=steps)
    out, (part, like) = result_dtype(x), sharded.part_of(x)
    found = summed.bounds_of_steps([part], steps=steps, dtype=out)
    return upper_array(found.reshape(()), dtype=out, like=like)


def _bracket_in_parts(x: Array, *, rtol: float | None) -> NormBracket:
    """Return the bracket of an array of Dask, a promise, or of a matrix in parts too large to copy."""
    if spread.is_dask(x):
        each = partial(matrix_norm_bracket, rtol=rtol)
        return chunked.bracket(x, each=each, gap=partial(_gap, rtol))
    _validate.concrete_argument(x, name="x", instead="gram_iteration")
    out = result_dtype(x)
    gap, (part, like) = _gap(rtol, out), sharded.part_of(x)
    found = summed.bracket([part], rtol=attainable(gap), dtype=out)
    return to_bracket(found, rtol=gap, shape=(), dtype=out, like=like)


def _checked(x: Array) -> tuple[Array, Array]:
    """Return checked matrices, sparse ones as SciPy's or CuPy's, and an array of their library."""
    if not sparse_inputs.is_any_sparse(x):
        a = _validate.concrete_argument(x, name="x", instead="gram_iteration")
        _validate.matrices(a, name="x")
        return _home(a), a
    _validate.sparse(x)
    entries, like = sparse_inputs.entries_and_like(x)
    return entries, _validate.concrete_argument(like, name="x", instead="gram_iteration")


def _home(a: Array) -> Array:
    """Return the matrices to compute with: NumPy's on the host, and where a device is no faster."""
    if isinstance(a, np.ndarray):
        return a
    work = math.prod(a.shape[:-2]) * product_operations(tuple(a.shape[-2:]))
    small = devices.is_small(work) and crossing.is_whole(a)
    return crossing.host_array(a) if small else crossing.copied(crossing.at_home(a))


def _gap(rtol: float | None, dtype: DType) -> float:
    """Return the relative gap asked for, by default that of results in the real type `dtype`."""
    return _validate.tolerance(rtol, default=1e-6 if dtypes.bits(dtype) == 64 else 1e-4)


def _upper_and_right(
    x: Array, *, rtol: float | None
) -> tuple[Array, tuple[Array, HostNumbers | None]]:
    """Return upper bounds, and what a gradient is computed from."""
    a, values = _checked(x)
    out = result_dtype(values)
    with libraries.plain_arithmetic(a):
        found = choose.bracket(a, rtol=attainable(_gap(rtol, out)), dtype=out)
    upper = upper_array(found.upper.reshape(a.shape[:-2]), dtype=out, like=values)
    return upper, (upper, found.right)


def bound_and_slope(
    x: Array, *, rtol: float | None
) -> tuple[Array, Callable[[], tuple[Array, ...]]]:
    """Return the bound of one matrix, and what finds its gradient: that, or u and v of u v^H."""
    bound, kept = _upper_and_right(x, rtol=rtol)
    right = kept[1]

    def slope() -> tuple[Array, ...]:
        if right is None:
            return (_gradient_by(x, kept, rtol=rtol),)
        home = _home(x)
        is_moved = isinstance(home, np.ndarray) and not isinstance(x, np.ndarray)
        pair = gradients.vectors(home, crossing.host_array(bound) if is_moved else bound, right)
        if not is_moved:
            return pair
        return tuple(
            crossing.from_host(v, dtype=gradients.floating(x[..., :0]).dtype, like=x) for v in pair
        )

    return bound, slope


def _gradient_by(a: Array, kept: tuple[Array, HostNumbers | None], *, rtol: float | None) -> Array:
    bound, right = kept
    return _gradient(a, bound, right=right, rtol=rtol)


def _gradient(a: Array, bound: Array, *, right: HostNumbers | None, rtol: float | None) -> Array:
    gap = attainable(_gap(rtol, result_dtype(a)))
    home = _home(a)
    moved = isinstance(home, np.ndarray) and not isinstance(a, np.ndarray)
    bound = crossing.host_array(bound) if moved else bound
    by_vector = None if right is None else gradients.of_vector(home, bound, right)
    found = gradients.of_norm(home, bound, rtol=gap) if by_vector is None else by_vector
    if not moved:
        return found
    return crossing.from_host(found, dtype=gradients.gradient_dtype(a), like=a)
