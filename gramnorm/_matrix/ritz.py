"""Unit vectors at which a lower bound on the norm is attained."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import crossing, dtypes, libraries, linalg
from gramnorm._arrays.types import Array, DType
from gramnorm._matrix import certificate
from gramnorm._rigour import scaling

HostVectors = npt.NDArray[np.inexact]


def unit_pair(b: Array, rtol: float) -> tuple[HostVectors, HostVectors]:
    """Return left and right unit vectors (u, v) with u^H B v almost the norm of `b`, dense or sparse."""
    xp = libraries.namespace(b)
    wide = b.shape[0] < b.shape[1]
    if wide:
        b = b.T if libraries.is_sparse(b) else xp.matrix_transpose(b)
    gram = linalg.gram_matrix(b)
    v = certificate.top_vector(gram, rtol, settled=rtol > certificate.NARROW)
    u = crossing.host_array(linalg.matmul(b, v))[:, 0]
    v = crossing.host_array(v)[:, 0]
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    return (np.conj(v), np.conj(u)) if wide else (u, v)  # of the transpose, hence conjugated


def unit_vectors(a: Array, *, rtol: float, work: DType) -> tuple[HostVectors, HostVectors]:
    """Return unit vectors for each matrix of the stack (b, m, n), one after the other.

    Basis vectors for zero matrices, NaN where the norm is NaN or inf.
    """
    count, m, n = a.shape
    kind = np.complex128 if dtypes.is_complex(a.dtype) else np.float64
    left, right = (np.eye(1, side, dtype=kind).repeat(count, axis=0) for side in (m, n))
    if 0 in a.shape:
        return left, right
    scaled = scaling.normalise(a, dtype=work)
    for vectors in (left, right):
        vectors[scaled.known[0] != 0] = np.nan
    for k, position in enumerate(scaled.active):
        left[position], right[position] = unit_pair(scaled.values[k, ...], rtol)
    return left, right
