"""Small convolutions as matrices: the Gram matrix on the smaller side, without the matrix itself.

A convolution of finite size is A = sum_k (L_{1,k_1} x L_{2,k_2} x ...) x K_k with one 0/1 matrix
per axis and tap that copies inputs to outputs, whatever the padding.  Hence

    A^H A = sum_{k,l} (L_{1,k_1}^T L_{1,l_1} x ...) x K_k^H K_l,

one product of taps and one product per axis.  Its largest eigenvalue is the squared norm, up to
rounding that is known beforehand (docs/theory.md, section 4).  Kernels with so many taps that their
pairs cost more are gathered into the operator itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gramnorm._arrays import crossing, dtypes, libraries, limits, linalg
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._conv.geometry import Axis
from gramnorm._matrix import certificate
from gramnorm._matrix.choose import bracket_stack
from gramnorm._results import Bounds, of_direct_sum
from gramnorm._rigour import sums
from gramnorm._rigour.model import compounded, down, precision_of, up


def bracket(taps: Array, axes: Sequence[Axis], *, rtol: float) -> Bounds[float]:
    """Bracket the norm of the operator with taps (T, groups, c_out, c_in); the cost is products."""
    real = dtypes.real_dtype(taps.dtype)
    if is_gathered(taps, axes):
        dense = bracket_stack(gathered_matrix(taps, axes), rtol=rtol, dtype=real)
        return Bounds(float(np.max(dense.lower)), float(np.max(dense.upper)), dense.cost)
    gram, error = gram_matrix(taps, axes)
    on_host = libraries.is_on_cpu(gram) and libraries.has_linalg(gram)
    found = Bounds(0.0, math.inf)
    if gram.shape[1] > limits.SQUARING_COLUMNS and on_host:
        found = of_direct_sum(
            certificate.gram_certificate(gram[g, ...], error=e, rtol=rtol)
            for g, e in enumerate(error.tolist())
        )
        if found.is_within(rtol):
            return found
    # a gap of squares is twice as wide; what is left covers the roots
    squared = bracket_stack(gram, rtol=1.8 * rtol, dtype=real)
    low = down(math.sqrt(max(float(np.max(squared.lower - error)), 0.0)))
    high = up(math.sqrt(float(np.max(squared.upper + error))))
    return found.narrowed(Bounds(low, high, squared.cost))


def gathered_matrix(taps: Array, axes: Sequence[Axis]) -> Array:
    """Return the operator of each group, where no two taps of an output read the same sample."""
    xp = libraries.namespace(taps)
    count, groups, c_out, c_in = taps.shape
    table = np.zeros((1, 1), dtype=np.int64)
    for axis in axes:
        source = axis.sources()
        tap = np.full((axis.outputs, axis.size), -1, dtype=np.int64)
        k, o = np.nonzero(source >= 0)
        tap[o, source[k, o]] = k
        missing = (table[:, None, :, None] < 0) | (tap[None, :, None, :] < 0)
        joined = table[:, None, :, None] * axis.taps + tap[None, :, None, :]
        table = np.where(missing, -1, joined).reshape(len(table) * axis.outputs, -1)
    with_zero = xp.concat([taps, xp.zeros_like(taps[:1, ...])], axis=0)
    entries = crossing.select(with_zero, np.where(table < 0, count, table).reshape(-1))
    entries = xp.reshape(entries, (*table.shape, groups, c_out, c_in))
    entries = xp.permute_dims(entries, (2, 3, 0, 4, 1))
    return xp.reshape(entries, (groups, c_out * table.shape[0], c_in * table.shape[1]))


def sides(taps: Array, axes: Sequence[Axis]) -> tuple[int, int]:
    """Return the rows and columns of the operator of a group."""
    _, _, c_out, c_in = taps.shape
    return c_out * math.prod(a.outputs for a in axes), c_in * math.prod(a.size for a in axes)


def is_tall(taps: Array, axes: Sequence[Axis]) -> bool:
    rows, columns = sides(taps, axes)
    return columns <= rows


def is_gathered(taps: Array, axes: Sequence[Axis]) -> bool:
    """Say whether the operator itself is formed, since its Gram matrix from pairs is dearer."""
    if any(a.coincidences() > 1 for a in axes):
        return False
    (entries, work), (numbers, operations) = gathering(taps, axes), assembly(taps, axes, len(axes))
    is_large = numbers > limits.ASSEMBLED_ENTRIES
    return entries <= limits.ASSEMBLED_ENTRIES and (is_large or work < operations)


def gathering(taps: Array, axes: Sequence[Axis]) -> tuple[float, float]:
    """Return the numbers in the operators of all groups, and the operations to their squares."""
    rows, columns = sides(taps, axes)
    entries = 2.0 * taps.shape[1] * rows * columns  # the indices take as much again
    return entries, entries * min(rows, columns)


def assembly(taps: Array, axes: Sequence[Axis], count: int) -> tuple[float, float]:
    """Return the numbers in the largest intermediate result of `pair_grams`, and its operations."""
    tall = is_tall(taps, axes)
    _, groups, c_out, c_in = taps.shape
    inner, c = (c_out, c_in) if tall else (c_in, c_out)
    entries = float(groups * c**2) * math.prod(float(a.taps) ** 2 for a in axes)
    steps, operations = [entries], 2 * inner * entries
    for a in axes[:count]:
        n = a.size if tall else a.outputs
        operations += 2 * entries * float(n) ** 2
        entries *= float(n) ** 2 / a.taps**2
        steps += [float(a.taps * n) ** 2, float(a.taps) * a.outputs * a.size, entries]
    return max(steps), operations


def gram_matrix(taps: Array, axes: Sequence[Axis]) -> tuple[Array, HostFloats]:
    """Return the Gram matrix of each group on the smaller side, and bounds on their errors."""
    xp = libraries.namespace(taps)
    pairs = pair_grams(taps, axes, len(axes))
    groups, _, _, *points = pairs.shape
    half = range(3, 3 + len(points), 2)
    gram = xp.permute_dims(pairs, (0, 1, *half, 2, *(i + 1 for i in half)))
    q = min(sides(taps, axes))
    return xp.reshape(gram, (groups, q, q)), gram_error(taps, axes, q)


def pair_grams(taps: Array, axes: Sequence[Axis], count: int) -> Array:
    """Return the Gram matrices of pairs of taps, summed over those of the first `count` axes.

    Of shape (groups, *(k, k) of the other axes, c, c, *(points, points) of these), on the smaller
    side.
    """
    xp, links = libraries.namespace(taps), [axis.links() for axis in axes[:count]]
    if not is_tall(taps, axes):  # A A^H is the Gram matrix of A^H
        taps, links = linalg.adjoint(taps), [link.swapaxes(1, 2) for link in links]
    terms, groups, inner, c = taps.shape
    sizes, dims = [a.taps for a in axes], len(axes)
    rows = xp.reshape(xp.permute_dims(taps, (1, 2, 0, 3)), (groups, inner, terms * c))
    gram = xp.reshape(linalg.gram_matrix(rows), (groups, *sizes, c, *sizes, c))
    pairs = (i for a in range(dims) for i in (1 + a, 2 + dims + a))
    gram = xp.permute_dims(gram, (0, *pairs, 1 + dims, 2 + 2 * dims))
    for link in links:
        # (k, l) of the first axis left become (i, i'), at the end
        shape = (groups, link.shape[0] ** 2, *gram.shape[3:])
        gram = xp.permute_dims(xp.reshape(gram, shape), (0, *range(2, len(shape)), 1))
        moved = crossing.from_host(link_products(link), dtype=taps.dtype, like=taps)
        gram = linalg.matmul(gram, moved)
    points = [n for link in links for n in (link.shape[2],) * 2]
    left = [k for k in sizes[count:] for _ in range(2)]
    return xp.reshape(gram, (groups, *left, c, c, *points))


def gram_error(taps: Array, axes: Sequence[Axis], q: int) -> HostFloats:
    """Bound the spectral norm of the error of each Gram matrix (docs/theory.md, section 4)."""
    # A^H A sums over outputs, A A^H over inputs
    count, inner = taps.shape[0], taps.shape[2 if is_tall(taps, axes) else 3]
    sizes = [a.taps for a in axes]
    terms = [
        a.copies() * a.taps**2 for a in axes
    ]  # pairs of taps, for each row that both points share
    prec = precision_of(taps.dtype)
    uses = np.ones(())
    for axis in axes:
        uses = np.multiply.outer(uses, np.sum(axis.sources() >= 0, axis=1))
    _, squares = sums.square(taps)
    # || sum_k L_k x |K_k| ||_F^2, where taps that read the same sample may add up
    size = uses.reshape(-1) @ squares * math.prod(a.coincidences() for a in axes)
    loss = compounded(prec.kappa(n) for n in (inner, *terms))
    error = loss * size + 2 * q * count**2 * prec.underflow(inner + sum(sizes))
    return up(error, count**2 + 8)


def link_products(link: HostFloats) -> HostFloats:
    """Return L_k^T L_l for all pairs of taps, shape (taps^2, size^2), from the links of an axis."""
    taps, outputs, size = link.shape
    columns = link.transpose(1, 0, 2).reshape(outputs, taps * size)
    products = (columns.T @ columns).reshape(taps, size, taps, size)
    return products.transpose(0, 2, 1, 3).reshape(taps**2, size**2)
