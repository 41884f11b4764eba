"""Unit vectors at which a lower bound on the norm is attained."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gramnorm import _scaling, _single, _xp
from gramnorm._typing import Array, DType, Namespace

HostVectors = npt.NDArray[np.inexact]


def unit_pair(b: Array, rtol: float, *, xp: Namespace) -> tuple[HostVectors, HostVectors]:
    """Return left and right unit vectors (u, v) with u^H B v almost the norm of `b`, dense or sparse."""
    wide = b.shape[0] < b.shape[1]
    if wide:
        b = b.T if _xp.is_sparse(b) else xp.matrix_transpose(b)
    gram = _xp.gram_matrix(b, xp=xp)
    v = _single.top_vector(gram, rtol, settled=rtol > _single.NARROW, xp=xp)
    u = _xp.host_array(_xp.matmul(b, v, xp=xp))[:, 0]
    v = _xp.host_array(v)[:, 0]
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    return (np.conj(v), np.conj(u)) if wide else (u, v)  # of the transpose, hence conjugated


def unit_vectors(
    a: Array, *, rtol: float, work: DType, xp: Namespace
) -> tuple[HostVectors, HostVectors]:
    """Return unit vectors for each matrix of the stack (b, m, n), one after the other.

    Basis vectors for zero matrices, NaN where the norm is NaN or inf.
    """
    count, m, n = a.shape
    kind = np.complex128 if _xp.is_complex(a.dtype, xp=xp) else np.float64
    left, right = (np.eye(1, side, dtype=kind).repeat(count, axis=0) for side in (m, n))
    if 0 in a.shape:
        return left, right
    scaled = _scaling.normalise(a, dtype=work, xp=xp)
    for vectors in (left, right):
        vectors[scaled.known[0] != 0] = np.nan
    for k, position in enumerate(scaled.active):
        left[position], right[position] = unit_pair(scaled.values[k, ...], rtol, xp=xp)
    return left, right
