"""Sparse arrays of all libraries as entries that a kernel can take.

SciPy's and CuPy's as they are, others on the host.

PyTorch's, JAX's and pydata's are read as their formats are defined: what shares a place is added
up, and places beyond the last row, which JAX fills up with, do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import array_api_compat as compat
import numpy as np

from gramnorm._arrays.crossing import host_array
from gramnorm._arrays.libraries import has_values, is_sparse
from gramnorm._arrays.types import Array

Reader: TypeAlias = Callable[[Array], tuple[Array, Array]]


def is_any_sparse(x: object) -> bool:
    """Say whether `x` is a sparse array of some library."""
    return is_sparse(x) or _reader(x) is not None


def entries_and_like(x: Array) -> tuple[Array, Array]:
    """Return `x` as a sparse array of SciPy or CuPy, and an array of its library without elements.

    Of an array that is traced, itself stands for the first.
    """
    if is_sparse(x):
        is_numeric = x.format in ("csr", "csc", "coo", "bsr", "dia")  # lists in others
        return x, x.data.reshape(-1)[:0] if is_numeric else np.empty(0, dtype=x.dtype)
    reader = _reader(x)
    assert reader is not None, "is_any_sparse has been asked"
    return reader(x)


def _reader(x: object) -> Reader | None:
    """Return what reads the sparse arrays of a library other than SciPy and CuPy, or None."""
    home = type(x).__module__
    if home.startswith("jax.experimental.sparse"):
        return _of_jax
    if home.partition(".")[0] == "sparse" and hasattr(x, "to_scipy_sparse"):
        return _of_pydata
    if compat.is_torch_array(x) and str(x.layout) != "torch.strided":
        return _of_torch
    return None


def _of_torch(x: Array) -> tuple[Array, Array]:
    coordinates = x.detach()
    if str(x.layout) != "torch.sparse_coo":
        coordinates = coordinates.to_sparse_coo()
    values, places = coordinates._values(), coordinates._indices()
    if x.ndim != 2 or values.ndim != 1:
        return x, values[:0]
    return _coo(host_array(values), *host_array(places), shape=tuple(x.shape)), values[:0]


def _of_jax(x: Array) -> tuple[Array, Array]:
    if not has_values(x.data) or x.ndim != 2:
        return x, x.data
    coordinates = x if hasattr(x, "n_sparse") and x.indices.ndim == 2 else x.to_bcoo()
    rows, columns = host_array(coordinates.indices).T
    inside = np.flatnonzero((rows < x.shape[0]) & (columns < x.shape[1]))
    values = host_array(coordinates.data)
    return _coo(values[inside], rows[inside], columns[inside], shape=x.shape), x.data[:0]


def _of_pydata(x: Array) -> tuple[Array, Array]:
    return (x.to_scipy_sparse() if x.ndim == 2 else x), np.empty(0, dtype=x.dtype)


def _coo(values: Any, rows: Any, columns: Any, *, shape: tuple[int, ...]) -> Array:
    """Return SciPy's coordinates; of 16 bits, which it does not know, in single precision."""
    import scipy.sparse

    narrow = values.dtype.itemsize == 2 and values.dtype.kind not in "iu"
    values = values.astype(np.float32) if narrow else values
    return scipy.sparse.coo_array((values, (rows, columns)), shape=shape)
