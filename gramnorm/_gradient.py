"""Gradients of norms in closed form, for arrays without automatic differentiation.

With S = A^H A and s = 2^t the t-step Gram bound is (tr S^s)^(1 / 2s), and its gradient in the pairing
Re tr X^H Y is (docs/theory.md, Theorem 14)

    A S^(s-1) / (tr S^s)^(1 - 1/2s),     S^(s-1) = S S^2 S^4 ... S^(s/2),

a product of the iterates.  For growing t it tends to the mean of u v^H over the top singular pairs: the
gradient of the norm if the largest singular value is simple, and else a subgradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gramnorm import _lanczos, _single, _xp
from gramnorm._gram import gram_values
from gramnorm._stack import divisor
from gramnorm._typing import Array, HostFloats, Namespace

HostArray = npt.NDArray[np.inexact]


def of_fixed_steps(a: Array, value: Array, *, steps: int, xp: Namespace) -> Array:
    """Return the gradient of the Gram bound `value` after fixed steps for each matrix of a stack; 0 at zero."""
    return _oriented(a, value, lambda b: _product_of_iterates(b, steps, xp=xp), xp=xp)


def schatten(a: Array, *, steps: int, xp: Namespace) -> Array:
    """Return the Gram bound itself, of matrices with entries of size about 1."""
    return gram_values(a, steps=steps, xp=xp)


def of_norm(a: Array, value: Array, *, rtol: float, xp: Namespace) -> Array:
    """Return the mean of u v^H over the top singular pairs of each matrix of a stack (b, m, n); 0 at zero.

    Singular values within about `rtol` of the largest count as equal to it.
    """
    one_by_one = _xp.is_on_cpu(a, xp=xp) and min(a.shape[1:]) > _single.SQUARED

    def direction(b: Array) -> Array:
        if one_by_one:
            return xp.stack([_from_vectors(b[k, ...], rtol, xp=xp) for k in range(b.shape[0])])
        return _projected(b, rtol, xp=xp)

    return _oriented(a, value, direction, xp=xp)


def _oriented(
    a: Array, value: Array, direction: Callable[[Array], Array], *, xp: Namespace
) -> Array:
    """Return direction(A) scaled so that its pairing with A is `value`: the bounds are homogeneous (Euler)."""
    if 0 in a.shape:
        return xp.zeros_like(a)
    parts = [xp.max(xp.abs(part), axis=(-2, -1)) for part in _xp.components(a, xp=xp)]
    peak = parts[0] if len(parts) == 1 else xp.maximum(*parts)
    scale = divisor(peak, xp=xp)
    usable = xp.isfinite(peak) & (peak > 0)
    wide = a.shape[-2] < a.shape[-1]
    b = a / xp.astype(scale[..., None, None], a.dtype)
    b = xp.where(usable[..., None, None], b, xp.ones_like(b))
    b = _xp.adjoint(b, xp=xp) if wide else b
    d = direction(b)
    both = zip(_xp.components(d, xp=xp), _xp.components(b, xp=xp), strict=True)
    terms = [xp.sum(x * y, axis=(-2, -1)) for x, y in both]
    pairing = sum(terms[1:], terms[0])
    factor = value / scale / pairing
    # zero has the gradient 0; NaN and inf have none
    factor = xp.where(usable, factor, xp.where(peak == 0, xp.zeros_like(peak), peak - peak))
    d = d * xp.astype(factor[..., None, None], a.dtype)
    return _xp.adjoint(d, xp=xp) if wide else d


def _product_of_iterates(b: Array, steps: int, *, xp: Namespace) -> Array:
    """Return A G_1 G_2 ... G_t up to a factor."""
    product = iterate = _normalised(b, xp=xp)
    for _ in range(steps):
        iterate = _normalised(_xp.gram_matrix(iterate, xp=xp), xp=xp)
        product = _normalised(_xp.matmul(product, iterate, xp=xp), xp=xp)
    return product


def _projected(b: Array, rtol: float, *, xp: Namespace) -> Array:
    """Return A G_t up to a factor, t so large that G_t is the projector on the top right singular vectors."""
    iterate = _normalised(b, xp=xp)
    least = 1 - max(rtol**2, 8 * float(xp.finfo(b.dtype).eps))
    rank: HostFloats = np.full(b.shape[0], np.inf)
    for _ in range(3 + math.ceil(math.log2(1 / rtol))):
        iterate = _normalised(_xp.gram_matrix(iterate, xp=xp), xp=xp)
        trace = xp.sum(_xp.real_part(xp.linalg.diagonal(iterate), xp=xp), axis=-1)
        previous, rank = rank, _xp.to_host(trace * trace)
        if np.all(rank > least * previous):  # it no longer falls: a projector, up to a factor
            break
    return _xp.matmul(b, iterate, xp=xp)


def _normalised(a: Array, *, xp: Namespace) -> Array:
    squares = [xp.sum(part * part, axis=(-2, -1)) for part in _xp.components(a, xp=xp)]
    size = xp.sqrt(sum(squares[1:], squares[0]))
    size = xp.where(size > 0, size, xp.ones_like(size))
    return a / xp.astype(size[..., None, None], a.dtype)


def _from_vectors(b: Array, rtol: float, *, xp: Namespace) -> Array:
    """Return A v v^H for the top right singular vector v of one matrix, or the mean over a cluster of them."""
    gram = _xp.host_array(_xp.gram_matrix(b, xp=xp)).astype(
        np.complex128 if _xp.is_complex(b.dtype, xp=xp) else np.float64
    )
    # two starts: a Krylov space holds one vector of an eigenspace
    start, other = np.random.default_rng(0).standard_normal((2, len(gram))).astype(gram.dtype)
    v = _lanczos.top_vector(lambda x: gram @ x, start, rtol=rtol**2, steps=300)
    top = float(np.vdot(v, gram @ v).real)

    def deflated(x: HostArray) -> HostArray:
        return gram @ x - top * np.vdot(v, x) * v

    w = _lanczos.top_vector(deflated, other - np.vdot(v, other) * v, rtol=1e-2, steps=60)
    second = float(np.vdot(w, deflated(w)).real)
    vectors = v[:, None]
    if second > top * (1 - 0.1) or not math.isfinite(second):
        values, basis = np.linalg.eigh(gram)
        vectors = basis[:, values >= values[-1] * (1 - 2 * rtol)]
    moved = _xp.from_host(vectors @ vectors.conj().T, dtype=b.dtype, device=_xp.device_of(b), xp=xp)
    return _xp.matmul(b, moved, xp=xp)
