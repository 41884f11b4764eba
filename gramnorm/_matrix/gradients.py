"""Gradients of norms in closed form, for arrays without automatic differentiation.

With S = A^H A and s = 2^t the t-step Gram bound is (tr S^s)^(1 / 2s), and its gradient in the
pairing Re tr X^H Y is (docs/theory.md, Theorem 14)

    A S^(s-1) / (tr S^s)^(1 - 1/2s),     S^(s-1) = S S^2 S^4 ... S^(s/2),

a product of the iterates.  For growing t it tends to the mean of u v^H over the top singular pairs:
the gradient of the norm if the largest singular value is simple, and else a subgradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gramnorm._arrays import autodiff, crossing, dtypes, libraries, limits, linalg, threads
from gramnorm._arrays.types import Array, DType, HostNumbers
from gramnorm._matrix.certificate import approximate_eigenvector
from gramnorm._matrix.fixed_steps import divisor, peaks
from gramnorm._matrix.gram import product_operations
from gramnorm._results import result_dtype
from gramnorm._rigour import sums


def of_fixed_steps(a: Array, bound: Array, *, steps: int) -> Array:
    """Return the gradient of the Gram bound after fixed steps at matrices (..., m, n).

    0 at zero.
    """
    return _scaled_direction(a, bound, lambda b: _product_of_iterates(b, steps))


def of_norm(a: Array, bound: Array, *, rtol: float) -> Array:
    """Return the mean of u v^H over the top singular pairs of matrices (..., m, n); 0 at zero.

    Singular values within about `rtol` of the largest count as equal to it.
    """
    xp = libraries.namespace(a)
    if isinstance(a, np.ndarray) and a.ndim == 2 and min(a.shape) <= limits.SQUARING_COLUMNS:
        quick = _of_one(a, float(bound), rtol)
        if quick is not None:
            return quick

    def of_part(part: slice) -> Array:
        return _scaled_direction(
            stack[part, ...], bounds[part, ...], partial(_direction, rtol=rtol)
        )

    count, sides = math.prod(a.shape[:-2]), a.shape[-2:]
    stack, bounds = xp.reshape(a, (count, *sides)), xp.reshape(bound, (count,))
    work = product_operations(sides)
    parts = threads.parts(count, work, like=a) if count else [slice(0, 0)]
    found = threads.shared_if_worth(of_part, parts, count * work if count > 1 else 0.0)
    whole = found[0] if len(found) == 1 else xp.concat(found, axis=0)
    return xp.reshape(whole, a.shape)


def of_vector(a: Array, bound: Array, right: HostNumbers) -> Array:
    """Return u v^H for one matrix (..., m, n), as `vectors` are found from `right`."""
    with libraries.plain_arithmetic(a):
        u, v = vectors(a, bound, right)
        found = u[:, None] * linalg.adjoint(v[:, None])
    xp = libraries.namespace(a)
    return xp.astype(xp.reshape(found, a.shape), gradient_dtype(a), copy=False)


def vectors(a: Array, bound: Array, right: HostNumbers) -> tuple[Array, Array]:
    """Return u and v for one matrix (..., m, n), `right` being a right vector of its upright form.

    Their product is scaled as `of_norm` is, to a pairing with the matrix that is the homogeneous
    `bound`.
    """
    xp = libraries.namespace(a)
    b = xp.reshape(floating(a), a.shape[-2:])
    upright = linalg.upright(b)
    v = crossing.from_host(right, dtype=b.dtype, like=b)[:, None]
    with libraries.plain_arithmetic(a):
        u = linalg.matmul(upright, v)
        size2 = sums.inner_product(linalg.adjoint(u), linalg.adjoint(u))  # the pairing of u v^H
        factor = xp.reshape(xp.astype(bound, size2.dtype), ()) / size2
        u, v = (u * xp.astype(factor, u.dtype))[:, 0], v[:, 0]
    if upright is b:
        return u, v
    return (xp.conj(v), xp.conj(u)) if dtypes.is_complex(u.dtype) else (v, u)


def _direction(stack: Array, rtol: float) -> Array:
    if libraries.is_on_cpu(stack) and min(stack.shape[-2:]) > limits.SQUARING_COLUMNS:
        found = [_from_vectors(stack[k, ...], rtol) for k in range(stack.shape[0])]
        return libraries.namespace(stack).stack(found)
    return _projected(stack, rtol)


def _of_one(a: HostNumbers, bound: float, rtol: float) -> HostNumbers | None:
    """Return what `of_norm` does for one matrix that needs no scaling; None if it does."""
    if a.dtype.kind not in "fc" or dtypes.bits(a.dtype) < 32 or not 2.0**-25 < bound < 2.0**25:
        return None
    wide = a.shape[0] < a.shape[1]
    b = a.T if wide else a
    gram = linalg.gram_matrix(b) * (1 / linalg.square_sum(b))  # of trace one
    progress, going = _Progress(rtol, a), True
    while going:
        square = linalg.square_sum(gram)
        going = progress.is_worth_another(1 / square)
        gram = linalg.gram_matrix(gram) * (1 / square)
    d = b @ gram
    d *= bound / float(np.vdot(d, b).real)  # Euler
    return np.asarray(d.T if wide else d)


def floating(a: Array) -> Array:
    """Return `a` in a type of at least single precision, without its gradient."""
    xp = libraries.namespace(a)
    real = result_dtype(a)
    kind = dtypes.complex_dtype(real) if dtypes.is_complex(a.dtype) else real
    return xp.astype(autodiff.without_gradient(a), kind, copy=False)


def gradient_dtype(a: Array) -> DType:
    """Return the type of a gradient by `a`: its own, of integers that of the bound."""
    return a.dtype if dtypes.is_floating(a.dtype) else result_dtype(a)


def _scaled_direction(a: Array, bound: Array, direction: Callable[[Array], Array]) -> Array:
    """Return direction(A) scaled so that its pairing with A is the homogeneous `bound` (Euler).

    `direction` sees matrices in floating types, scaled, with no more columns than rows.
    """
    xp = libraries.namespace(a)
    kind, a = gradient_dtype(a), floating(a)
    if 0 in a.shape:
        return xp.astype(xp.zeros_like(a), kind, copy=False)
    with libraries.plain_arithmetic(a):
        bound = xp.astype(bound, dtypes.real_dtype(a.dtype))
        return xp.astype(_euler(a, bound, direction), kind, copy=False)


def _euler(a: Array, bound: Array, direction: Callable[[Array], Array]) -> Array:
    xp = libraries.namespace(a)
    peak = peaks(a)
    scale = divisor(peak)
    usable = xp.isfinite(peak) & (peak > 0)
    wide = a.shape[-2] < a.shape[-1]
    b = a / xp.astype(scale[..., None, None], a.dtype)
    b = xp.where(usable[..., None, None], b, xp.ones_like(b))
    b = linalg.adjoint(b) if wide else b
    d = direction(b)
    both = zip(dtypes.components(d), dtypes.components(b), strict=True)
    terms = [xp.sum(x * y, axis=(-2, -1)) for x, y in both]
    pairing = sum(terms[1:], terms[0])
    factor = bound / scale / pairing
    # zero has the gradient 0; NaN and inf have none
    factor = xp.where(usable, factor, xp.where(peak == 0, xp.zeros_like(peak), peak - peak))
    d = d * xp.astype(factor[..., None, None], a.dtype)
    return linalg.adjoint(d) if wide else d


def _product_of_iterates(b: Array, steps: int) -> Array:
    """Return A G_1 G_2 ... G_t up to a factor."""
    product = iterate = _normalised(b)
    for _ in range(steps):
        iterate = _normalised(linalg.gram_matrix(iterate))
        product = _normalised(linalg.matmul(product, iterate))
    return product


def _projected(b: Array, rtol: float) -> Array:
    """Return A G_t up to a factor, t so large that G_t projects on the top right singular space."""
    gram = linalg.gram_matrix(b)
    gram = gram / _trace(gram)
    progress = _Progress(rtol, b)
    going = True
    while going:
        # the trace of the square of what has the trace one, and the inverse of its rank
        square = sums.inner_product(gram, gram)
        going = bool(np.any(progress.is_worth_another(1 / crossing.to_host(square))))
        gram = linalg.gram_matrix(gram) / square[:, None, None]
    return linalg.matmul(b, gram)


class _Progress:
    """Whether squaring still makes a projector better, from (sum l)^2 / sum l^2."""

    def __init__(self, rtol: float, like: Array) -> None:
        self._left = 4 + math.ceil(math.log2(1 / rtol))
        self._least = 1 - max(rtol**2, 8 * dtypes.finfo(like.dtype).eps)
        # the square that follows squares what is beside the largest as well
        self._single = 1 + rtol / 4
        self._last: Any = math.inf

    def is_worth_another(self, rank: Any) -> Any:
        """Say whether another square is needed after the next, of one matrix or of each."""
        # a projector, up to a factor: of rank one, or of a rank that no longer falls
        going = (rank > self._single) & (rank <= self._least * self._last)
        self._last, self._left = rank, self._left - 1
        return going & (self._left > 0)


def _trace(a: Array) -> Array:
    xp = libraries.namespace(a)
    diagonal = dtypes.real_part(xp.linalg.diagonal(a))
    return xp.sum(diagonal, axis=-1)[:, None, None]


def _normalised(a: Array) -> Array:
    xp = libraries.namespace(a)
    size = xp.sqrt(sums.inner_product(a, a))
    size = xp.where(size > 0, size, xp.ones_like(size))
    return a / xp.astype(size[..., None, None], a.dtype)


def _from_vectors(b: Array, rtol: float) -> Array:
    """Return A V V^H for the top right singular vector V of one matrix, or those of a cluster."""
    gram = crossing.host_array(linalg.gram_matrix(b)).astype(
        np.complex128 if dtypes.is_complex(b.dtype) else np.float64
    )
    vectors = _top_eigenspace(gram, rtol)
    if vectors is None:
        return _projected(b[None, ...], rtol)[0, ...]
    moved = crossing.from_host(vectors, dtype=b.dtype, like=b)
    return linalg.matmul(linalg.matmul(b, moved), linalg.adjoint(moved))


def _top_eigenspace(gram: HostNumbers, rtol: float) -> HostNumbers | None:
    """Return the top eigenvector, or those of a cluster, as columns.

    None where no solver finds any.
    """
    v = crossing.host_array(approximate_eigenvector(gram, rtol))[:, 0]
    value = float(np.vdot(v, gram @ v).real) / float(np.vdot(v, v).real)
    # inverse iteration: next to the eigenvalue a single step gains what the shift is nearer than
    # the others; the second vector, generic, finds what else is there
    shift = value * (1 + rtol / 8)
    other = np.random.default_rng(1).standard_normal(len(gram))
    shifted = shift * np.eye(len(gram)) - gram
    basis = linalg.solved_basis_or_none(shifted, np.stack([v, other], axis=1))
    if basis is not None:
        two = linalg.eigenvectors_or_none(basis.conj().T @ gram @ basis)
        if two is not None and two[0][0] < two[0][1] * (1 - 4 * rtol):
            return np.asarray((basis @ two[1])[:, 1:])
    every = linalg.eigenvectors_or_none(gram)
    return None if every is None else every[1][:, every[0] >= every[0][-1] * (1 - 2 * rtol)]
