"""Products and factorisations of dense and sparse matrices in the full precision of their type."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import array_api_compat as compat
import numpy as np
import numpy.typing as npt

from gramnorm._arrays import autodiff, limits
from gramnorm._arrays.crossing import host_array, to_host
from gramnorm._arrays.dtypes import complex_dtype, is_complex, real_part
from gramnorm._arrays.libraries import device_of, is_sparse, namespace
from gramnorm._arrays.programs import compiled
from gramnorm._arrays.types import Array, HostFloats, HostInts


def adjoint(x: Array) -> Array:
    """Return the conjugate transpose of the last two axes."""
    xp = namespace(x)
    if is_sparse(x):
        return x.conj().T
    x = xp.matrix_transpose(x)
    return xp.conj(x) if is_complex(x.dtype) else x


def upright(b: Array) -> Array:
    """Return a matrix or its transpose, which has the same norm, with no more columns than rows.

    Columns of the transpose of a square one are rows, which follow each other in memory.
    """
    return namespace(b).matrix_transpose(b) if b.shape[0] <= b.shape[1] else b


def sparse_entries(x: Array) -> Array:
    """Return the entries of the sparse `x` one by one, in coordinates (COO) and arrays of our own.

    Their order and whether a place occurs twice are the caller's; nothing has sorted or added them
    up.
    """
    own = x.copy().tocoo(
        copy=False
    )  # the copy is checked, and what lies behind the last row is cut
    return with_entries(own, own.data)


def with_entries(x: Array, values: Array) -> Array:
    """Return the COO matrix `x` with other values, the k-th in the place of the k-th."""
    return type(x)((values, (x.row, x.col)), shape=x.shape)


def sparse_rows(x: Array, values: Array) -> Array:
    """Return `with_entries` in compressed rows, in order, entries that share a place added up."""
    return with_entries(x, values).tocsr()


def matmul(a: Array, b: Array) -> Array:
    """Multiply in the full precision of the arrays' type."""
    if type(a) is np.ndarray and type(b) is np.ndarray:  # the same, without two layers of calls
        return np.matmul(a, b)
    xp = namespace(a)
    if is_sparse(a):
        return a @ b
    if compat.is_jax_namespace(xp):
        return xp.matmul(a, b, precision="highest")  # the default may be TF32 or bfloat16
    return xp.matmul(a, b)


def gram_of_rows(a: Array) -> Array:
    """Return A A^H for each matrix of a stack, differentiated by one product."""
    return autodiff.squared(_times_adjoint, _slope_of_square, _with_adjoint, a)


def self_adjoint_gram_of_rows(a: Array) -> Array:
    """Return the same, self-adjoint bit for bit."""
    xp = namespace(a)
    # one matrix as such: PyTorch takes a tenth of the time to transpose it
    matrix = xp.reshape(a, a.shape[-2:]) if math.prod(a.shape[:-2]) == 1 else a
    found = autodiff.squared(_self_adjoint_square, _slope_of_square, _with_adjoint, matrix)
    return xp.reshape(found, (*a.shape[:-1], a.shape[-2]))


def _times_adjoint(a: Array) -> Array:
    return matmul(a, adjoint(a))


def _self_adjoint_square(a: Array) -> Array:
    xp, found = namespace(a), _times_adjoint(a)
    lower = xp.tril(found, k=-1)
    if is_complex(a.dtype):
        diagonal = xp.triu(xp.tril(real_part(found)))  # xp.eye of torch is filled in place
        return lower + _stored_adjoint(lower) + xp.astype(diagonal, found.dtype)
    return xp.tril(found) + _stored_adjoint(lower)


def _slope_of_square(g: Array, a: Array) -> Array:
    return matmul(g + _stored_adjoint(g), a)


def _with_adjoint(tangent: Array, a: Array) -> Array:
    return matmul(tangent, adjoint(a))


def _stored_adjoint(a: Array) -> Array:
    """Return the adjoint; of one matrix of PyTorch by rows: sums with others take a fifth of the time."""
    is_one = compat.is_torch_array(a) and a.ndim == 2
    return adjoint(a).contiguous() if is_one else adjoint(a)


def vecdot(a: Array, b: Array) -> Array:
    """Return the inner products along the last axis in the full precision of the arrays' type."""
    if type(a) is np.ndarray and type(b) is np.ndarray:
        return np.vecdot(a, b)
    xp = namespace(a)
    if compat.is_jax_namespace(xp):
        return xp.vecdot(a, b, axis=-1, precision="highest")
    if compat.is_torch_namespace(xp):
        import torch

        return torch.linalg.vecdot(a, b, dim=-1)  # array-api-compat's has no rule for torch.vmap
    return xp.vecdot(a, b, axis=-1)


def as_computed(x: Array) -> Array:
    """Return `x`, which no compiler merges with what is computed from it.

    XLA takes a sum of sums, or of a batch of products, for a single one, whose terms are more.
    """
    if not compat.is_jax_array(x):
        return x
    import jax

    if not isinstance(x, jax.core.Tracer):
        return x
    return jax.lax.optimization_barrier(x)  # type: ignore[no-untyped-call]


@compiled
def gram_matrix(a: Array) -> Array:
    """Return A^H A for each matrix of a stack, or of one sparse matrix as a dense one."""
    if isinstance(a, np.ndarray):  # the same, without three layers of calls
        if a.dtype.kind == "c":
            return np.matmul(a.mT.conj(), a)
        # where NumPy sees twice the same array it has one half computed and copied to the other
        other = a.copy() if a.shape[-1] <= limits.WHOLE_PRODUCTS else a
        return np.dot(a.T, other) if a.ndim == 2 else np.matmul(a.mT, other)
    gram = matmul(adjoint(a), a)
    return gram.toarray() if is_sparse(gram) else gram


def in_double(a: Array) -> Iterator[Array]:
    """Yield a large host matrix in single precision as blocks of rows in double, any other whole.

    A block takes the memory of the one before: pages that come anew cost as much as the conversion.
    """
    if not is_taken_in_blocks(a):
        yield a
        return
    height = min(max(1, limits.DOUBLED_ENTRIES // a.shape[1]), a.shape[0])
    double = np.empty((height, a.shape[1]), order="F" if a.flags.f_contiguous else "C")
    for start in range(0, a.shape[0], height):
        rows = a[start : start + height]
        block = double[: len(rows)]
        np.copyto(block, rows)
        yield block


def is_taken_in_blocks(a: Array) -> bool:
    """Say whether a matrix is so large that no copy of it is made in double precision."""
    single = isinstance(a, np.ndarray) and a.dtype == np.float32
    return single and a.size > limits.DOUBLED_ENTRIES


def gram_in_double(b: Array) -> Array:
    """Return B^H B as a dense matrix, summed up over the blocks of `in_double`.

    That is an order of summation like any other.
    """
    found = None
    for rows in in_double(b):
        part = gram_matrix(rows)
        found = part if found is None else np.add(found, part, out=found)
    return found


def images(b: Array, x: Array) -> tuple[Array, Array]:
    """Return B x and B^H (B x), block by block."""
    first, second = [], None
    for rows in in_double(b):
        y = matmul(rows, x)
        z = matmul(adjoint(rows), y)
        first.append(y)
        second = z if second is None else second + z
    return (first[0] if len(first) == 1 else np.concatenate(first)), second


def complex_of(real: Array, imaginary: Array) -> Array:
    """Return the complex numbers of these parts."""
    kind = complex_dtype(real.dtype)
    if isinstance(real, np.ndarray):  # in one array
        found = np.empty(real.shape, dtype=kind)
        found.real, found.imag = real, imaginary
        return found
    xp = namespace(real)
    return xp.astype(real, kind) + 1j * xp.astype(imaginary, kind)


@compiled
def scaled(a: Array, factors: Array) -> Array:
    """Return each matrix of a stack times its factor."""
    return a * namespace(a).astype(factors[:, None, None], a.dtype)


@compiled
def stacked(*rows: Array) -> Array:
    """Return arrays of one shape as one, so that they reach the host together."""
    return namespace(rows[0]).stack(rows)


def square_sum(a: Array) -> float:
    """Return the sum of |a_i|^2 over all entries as computed in one go."""
    if isinstance(a, np.ndarray):
        return float(np.vdot(a, a).real)
    xp = namespace(a)
    flat = xp.reshape(a, (-1,))
    return float(host_array(vecdot(flat, flat)).real)


def attempted(solver: Callable[..., Any], *arrays: Array) -> Any | None:
    """Return what a solver of a library finds, or None where it gives up.

    Its iteration may not converge, its matrix may be singular: whatever is proved here is proved
    without it, less sharply.  So solvers are called here and nowhere else.
    """
    try:
        return solver(*arrays)
    except (np.linalg.LinAlgError, RuntimeError):  # PyTorch's own error is a RuntimeError
        return None


def cholesky_or_none(a: Array) -> Array | None:
    """Return a lower Cholesky factor, or None when the library does not give a finite one."""
    xp = namespace(a)
    factor = attempted(xp.linalg.cholesky, a)
    if factor is None:
        return None
    finite = to_host(xp.isfinite(real_part(factor[-1, -1])))
    return factor if finite else None  # JAX and CuPy return NaN


def lower_factors_or_none(stack: Array) -> Array | None:
    """Return lower triangles that should be Cholesky factors, or None when the library gives none.

    NaN where the library says that a matrix has no factor.
    """
    xp = namespace(stack)
    if compat.is_torch_namespace(xp):
        import torch

        # this one neither waits for the device nor raises
        found = attempted(torch.linalg.cholesky_ex, stack)
        if found is None:
            return None
        factors = xp.where(found.info[:, None, None] == 0, found.L, xp.nan)
    else:
        factors = attempted(xp.linalg.cholesky, stack)
    return None if factors is None else xp.tril(factors)


@functools.cache
def triangle_routines(dtype: np.dtype[Any]) -> Any | None:
    """Return what factorises and inverts a triangle of this type, or None without SciPy.

    They say of each matrix whether it has no factor.
    """
    try:
        from scipy.linalg import get_lapack_funcs
    except ImportError:
        return None
    return get_lapack_funcs(("potrf", "trtri"), dtype=dtype)


def inverse_or_none(a: Array) -> Array | None:
    """Return what the library takes for the inverse, or None when it gives none."""
    xp = namespace(a)
    return attempted(xp.linalg.inv, a)


def largest_singular_value_or_none(stack: Array) -> float | None:
    """Return the largest of what the library takes for the singular values of matrices, or None."""
    xp = namespace(stack)
    values = attempted(xp.linalg.svdvals, stack)
    found = math.nan if values is None else float(to_host(xp.max(values)))
    return found if math.isfinite(found) else None


def eigenvectors_or_none(
    host: npt.NDArray[Any],
) -> tuple[HostFloats, npt.NDArray[np.inexact]] | None:
    """Return what NumPy takes for ascending eigenvalues, and eigenvectors, of `host`; or None."""
    found = attempted(np.linalg.eigh, host)
    if found is None or not np.all(np.isfinite(found[1])):
        return None
    return found[0], found[1]


def eigenpairs(x: Array) -> tuple[Array, Array]:
    """Return eigenvectors and ascending eigenvalues of a Hermitian stack.

    They are unit vectors and zeros where the library gives up.
    """
    xp = namespace(x)
    found = attempted(xp.linalg.eigh, x)
    if found is not None:
        return found[1], found[0]
    unit = xp.eye(x.shape[-1], dtype=x.dtype, device=device_of(x))
    return unit + xp.zeros_like(x), real_part(xp.zeros_like(x[..., 0]))


def orthonormal_rows(x: Array) -> Array:
    """Return orthonormal rows, for each matrix of a stack, whose span holds that of its rows."""
    xp = namespace(x)
    found = attempted(xp.linalg.qr, xp.matrix_transpose(x))
    return x if found is None else xp.matrix_transpose(found[0])


def solved_basis_or_none(
    host: npt.NDArray[Any], right: npt.NDArray[Any]
) -> npt.NDArray[np.inexact] | None:
    """Return an orthonormal basis of what NumPy takes for X with ``host @ X = right``, or None."""
    columns = attempted(np.linalg.solve, host, right)
    if columns is None or not np.all(np.isfinite(columns)):
        return None
    found = attempted(np.linalg.qr, columns)
    return None if found is None else np.asarray(found[0])


def tridiagonal_top(diagonal: HostFloats, off: HostFloats) -> tuple[float, HostFloats]:
    """Return what a library takes for the top eigenpair of a symmetric tridiagonal matrix.

    NaN where none finds any.
    """
    try:
        from scipy.linalg import eigh_tridiagonal
    except ImportError:
        whole = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
        found = eigenvectors_or_none(whole)
    else:
        last = 2 * (len(diagonal) - 1,)  # the first and the last of those wanted
        found = attempted(
            functools.partial(eigh_tridiagonal, select="i", select_range=last), diagonal, off
        )
    if found is None:
        return math.nan, np.full(len(diagonal), np.nan)
    return float(found[0][-1]), np.asarray(found[1][:, -1])


def bandwidth_order(x: Array) -> HostInts:
    """Return an order that brings the entries of a sparse Hermitian matrix near the diagonal."""
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    pattern = with_entries(x.tocoo(), np.ones(x.nnz)).tocsr()
    return np.asarray(reverse_cuthill_mckee(pattern, symmetric_mode=True), dtype=np.int64)
