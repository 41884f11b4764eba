"""Unit vectors at which a lower bound on the norm is attained."""

from __future__ import annotations

import numpy as np

from gramnorm._arrays import crossing, dtypes, libraries, limits, linalg
from gramnorm._arrays.types import Array, HostNumbers
from gramnorm._matrix.certificate import approximate_eigenvector
from gramnorm._rigour import scaling


def unit_pair(b: Array, rtol: float) -> tuple[HostNumbers, HostNumbers]:
    """Return unit vectors (u, v) with u^H B v almost the norm of `b`, dense or sparse."""
    xp = libraries.namespace(b)
    wide = b.shape[0] < b.shape[1]
    if wide:
        b = b.T if libraries.is_sparse(b) else xp.matrix_transpose(b)
    gram = linalg.gram_matrix(b)
    v = approximate_eigenvector(gram, rtol, settled=rtol > limits.SINGLE_PRECISION)
    u = crossing.host_array(linalg.matmul(b, v))[:, 0]
    v = crossing.host_array(v)[:, 0]
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    return (np.conj(v), np.conj(u)) if wide else (u, v)  # of the transpose, hence conjugated


def unit_vectors(a: Array, *, rtol: float) -> tuple[HostNumbers, HostNumbers]:
    """Return unit vectors for each matrix of the stack (b, m, n), one after the other.

    Basis vectors for zero matrices, NaN where the norm is NaN or inf.
    """
    count, m, n = a.shape
    kind = np.complex128 if dtypes.is_complex(a.dtype) else np.float64
    left, right = (np.eye(1, side, dtype=kind).repeat(count, axis=0) for side in (m, n))
    if 0 in a.shape:
        return left, right
    xp = libraries.namespace(a)
    scaled = scaling.normalise(a, dtype=xp.float64 if dtypes.has_float64(a) else xp.float32)
    for vectors in (left, right):
        vectors[scaled.known[0] != 0] = np.nan
    for k, position in enumerate(scaled.active):
        left[position], right[position] = unit_pair(scaled.values[k, ...], rtol)
    return left, right
