"""Matrices of Dask: what each chunk tells, how it is put together, and nothing computed before.

===========================================  ==================================================
chunks that hold whole matrices              each by itself, as an array that is no promise
matrices in parts, few rows or few columns   Gram matrices of bands, summed in a tree (`summed`)
others                                       the norms of blocks N_ij = ||A_ij||
===========================================  ==================================================

The last are bounded by  max_ij N_ij <= ||A|| <= ||N||  (docs/theory.md, section 17), which is
sharp where one block outweighs all others.  One thread works at a task: no bit depends on the
scheduler.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import crossing, libraries, limits, spread, threads
from gramnorm._arrays.types import Array, DType
from gramnorm._matrix import summed
from gramnorm._results import (
    Bounds,
    NormBracket,
    attainable,
    result_dtype,
    to_bracket,
    upper_array,
)


@dataclasses.dataclass(frozen=True)
class _Task:
    """What is asked of matrices, as functions of chunks that return `width` numbers for each."""

    of_chunk: Callable[[Array], Array]
    of_parts: Callable[[Array], Array]
    of_norms: Callable[[Array], Array]
    width: int


def bracket(
    x: Array, *, each: Callable[[Array], NormBracket], gap: Callable[[DType], float]
) -> NormBracket:
    """Return the promise of a bracket; `each` brackets a chunk, `gap` is asked of a result's type."""
    like = _checked(x)
    asked = {"rtol": gap(like.dtype), "like": like}
    task = _Task(
        partial(_bracket_chunk, each),
        partial(_bracket_parts, **asked),
        partial(_bracket_norms, each, **asked),
        width=4,
    )
    found = _found(x, task, like)
    cost = found[..., 3].max() if 0 not in found.shape else found.sum()
    return NormBracket(
        found[..., 0], found[..., 1], found[..., 2] > 0, n_products=cost.astype(np.int64)
    )


def bound_of_steps(x: Array, *, each: Callable[[Array], Array], steps: int) -> Array:
    """Return the promise of the bound of so many Gram steps, which is `each` of a chunk."""
    like = _checked(x)
    task = _Task(
        partial(_steps_of_chunk, each),
        partial(_steps_of_parts, steps=steps, like=like),
        partial(_steps_of_norms, each),
        width=1,
    )
    return _found(x, task, like)[..., 0]


def _checked(x: Array) -> Array:
    """Check what is known of `x`; return an array of its results' library and type."""
    chunk = spread.chunk_like(x)
    _validate.chunks(x, chunk, name="x")
    xp, out = libraries.namespace(chunk), result_dtype(chunk)
    return xp.empty((0,), dtype=out, device=libraries.device_of(chunk))


def _found(x: Array, task: _Task, like: Array) -> Array:
    """Return the promise of the numbers that a task finds of each matrix, on a last axis."""
    numbers = partial(spread.mapped, lead=x.ndim - 2, width=task.width, like=like)
    if x.numblocks[-2:] == (1, 1):
        return numbers(task.of_chunk, x)
    m, n = x.shape[-2:]
    if min(m, n) <= limits.GRAM_COLUMNS:
        bands = _bands(x)
        return numbers(task.of_parts, spread.folded(_parts_of_chunk, summed.joined, bands))
    norms = spread.mapped_blocks(task.of_chunk, x, width=task.width, like=like)
    return numbers(task.of_norms, norms)


def _bands(x: Array) -> Array:
    """Return tall matrices of the same norms, in chunks of whole rows.

    Each chunk is about as large as the largest, or as the Gram matrix that comes of it.
    """
    if x.shape[-2] < x.shape[-1]:
        x = x.swapaxes(-2, -1)
    rows, q = x.chunks[-2], x.shape[-1]
    least = min(q, limits.GRAM_PIECE[0])
    if x.numblocks[-1] == 1 and max(rows) >= least:
        return x
    most = max(rows) * max(x.chunks[-1]) // max(q, 1)
    return x.rechunk({x.ndim - 2: max(most, least, 1), x.ndim - 1: -1})


def _parts_of_chunk(chunk: Array) -> Array:
    """Return what is known of the rows of each matrix of a chunk (..., m, q), shape (..., 1, 1)."""
    a = _validate.concrete_argument(chunk, name="a chunk of x", instead="gram_iteration")
    xp = libraries.namespace(a)
    stack = xp.reshape(a, (math.prod(a.shape[:-2]), *a.shape[-2:]))
    with libraries.plain_arithmetic(a), threads.alone():
        found = [summed.of_rows(stack[k, ...]) for k in range(stack.shape[0])]
    return np.asarray(found, dtype=object).reshape(*a.shape[:-2], 1, 1)


def _bracket_chunk(each: Callable[[Array], NormBracket], chunk: Array) -> Array:
    with threads.alone():
        return _numbers(each(chunk))


def _bracket_parts(parts: Array, *, rtol: float, like: Array) -> Array:
    with libraries.plain_arithmetic(like), threads.alone():
        known = parts.reshape(-1).tolist()
        found = summed.bracket(known, rtol=attainable(rtol), dtype=like.dtype)
    return _numbers(
        to_bracket(found, rtol=rtol, shape=parts.shape[:-2], dtype=like.dtype, like=like)
    )


def _bracket_norms(
    each: Callable[[Array], NormBracket], norms: Array, *, rtol: float, like: Array
) -> Array:
    """Return the numbers of matrices from those of their blocks, (..., rows, columns, width)."""
    host = crossing.to_host(norms)
    lower, cost = np.max(host[..., 0], axis=(-2, -1)), np.max(host[..., 3], initial=0.0)
    with threads.alone():
        upper = crossing.to_host(each(norms[..., 1]).upper)
    found = Bounds(lower, upper, int(cost))
    return _numbers(to_bracket(found, rtol=rtol, shape=lower.shape, dtype=like.dtype, like=like))


def _numbers(found: NormBracket) -> Array:
    """Return a bracket as one array: lower, upper, converged, the number of products."""
    xp = libraries.namespace(found.lower)
    done = xp.astype(found.converged, found.lower.dtype)
    cost = xp.full_like(found.lower, float(found.n_products))
    return xp.stack([found.lower, found.upper, done, cost], axis=-1)


def _steps_of_chunk(each: Callable[[Array], Array], chunk: Array) -> Array:
    with threads.alone():
        return each(chunk)[..., None]


def _steps_of_parts(parts: Array, *, steps: int, like: Array) -> Array:
    with libraries.plain_arithmetic(like), threads.alone():
        known = parts.reshape(-1).tolist()
        found = summed.bounds_of_steps(known, steps=steps, dtype=like.dtype)
    return upper_array(found.reshape((*parts.shape[:-2], 1)), dtype=like.dtype, like=like)


def _steps_of_norms(each: Callable[[Array], Array], norms: Array) -> Array:
    with threads.alone():
        return each(norms[..., 0])[..., None]
