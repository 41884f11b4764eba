"""Convolutions of a finite size from above by a factorisation that keeps near the diagonal.

With the last axis outermost the Gram matrix of an operator is a band of blocks: for taps k and l of
that axis and points i and i' of it

    S(i, i') = sum_{k,l} (L_k^T L_l)(i, i') H_kl,    H_kl = A_k^H A_l,

where A_k is the operator of the other axes and channels, and L_k the link of tap k.  Whatever the
padding, (L_k^T L_l)(i, i') = 0 where no output reads both points.  So nu I - S is factorised in a
window that moves along the band (docs/theory.md, Theorem 6).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from gramnorm._arrays import crossing, libraries, limits
from gramnorm._arrays.types import Array, HostFloats, HostNumbers
from gramnorm._conv import finite_matrix
from gramnorm._conv.geometry import Axis
from gramnorm._matrix.windows import Window, eigenvalue_bound
from gramnorm._results import Bounds
from gramnorm._rigour import sums
from gramnorm._rigour.model import up


def bracket(taps: Array, axes: Sequence[Axis], lower: float, *, rtol: float) -> Bounds[float]:
    """Bound the norm of the operator with taps (T, groups, c_out, c_in) from above, little over `lower`.

    Inf where that is no bound, or a factorisation too dear. The cost is factorisations.
    """
    taps, axes = _narrowest_last(taps, axes)
    nothing = Bounds(0.0, math.inf)
    if not (lower > 0 and libraries.is_on_cpu(taps) and finite_matrix.has_little_band(taps, axes)):
        return nothing
    links = finite_matrix.oriented_links(taps, axes)
    products = finite_matrix.link_products(links[-1]).reshape(-1, *(links[-1].shape[2],) * 2)
    window = _window(products, min(finite_matrix.sides(taps, axes)) // products.shape[1])
    if not window.is_affordable:
        return nothing
    grams = _grams(taps, axes, products)
    errors = finite_matrix.gram_error(taps, axes, grams[0].order).tolist()
    for gap in limits.BAND_GAPS:
        level, bounds = up(lower**2) * (1 + 2 * gap * rtol), [0.0]
        for gram, error in zip(grams, errors, strict=True):
            if bounds[-1] < math.inf:
                bounds.append(up(eigenvalue_bound(gram, window, level) + error))
        if bounds[-1] < math.inf:
            return Bounds(0.0, up(math.sqrt(max(bounds))), len(grams))
    return Bounds(0.0, math.inf, len(grams))


@dataclasses.dataclass(frozen=True)
class _Gram:
    """The Gram matrix of a group, by points of the last axis: what `eigenvalue_bound` reads.

    Attributes
    ----------
    links : host floats, shape (k k, n, n)
        The products L_k^T L_l.
    pairs : host array, shape (k k, m, m)
        The matrices H_kl.
    """

    links: HostFloats
    pairs: HostNumbers

    @property
    def dtype(self) -> np.dtype[np.inexact]:
        """The type of its entries."""
        return self.pairs.dtype

    @property
    def order(self) -> int:
        """The rows, and the columns."""
        return int(self.links.shape[1] * self.pairs.shape[1])

    @property
    def size(self) -> float:
        """An upper bound on the Frobenius norm: that of the sum of the terms."""
        sizes = [sums.host_norm(link)[1] * sums.host_norm(h)[1] for link, h in self._terms()]
        return up(math.fsum(sizes), 8)

    def _terms(self) -> list[tuple[HostFloats, HostNumbers]]:
        return list(zip(self.links, self.pairs, strict=True))

    def block(self, first: int, stop: int, left: int, right: int) -> HostNumbers:
        """Return the rows from `first` to `stop` of the columns from `left` to `right`."""
        m = self.pairs.shape[1]
        i, j = slice(first // m, -(-stop // m)), slice(left // m, -(-right // m))
        whole = np.tensordot(self.links[:, i, j], self.pairs, axes=(0, 0))  # (i, j, m, m)
        rows, columns = whole.shape[0] * m, whole.shape[1] * m
        whole = whole.transpose(0, 2, 1, 3).reshape(rows, columns)
        return whole[
            first - i.start * m : stop - i.start * m, left - j.start * m : right - j.start * m
        ]


def _grams(taps: Array, axes: Sequence[Axis], products: HostFloats) -> list[_Gram]:
    """Return the Gram matrix of each group, with the points of the last axis outermost."""
    host = crossing.host_array(finite_matrix.pair_grams(taps, axes, len(axes) - 1))
    points = range(5, host.ndim, 2)
    host = host.transpose(0, 1, 2, 3, *points, 4, *(i + 1 for i in points))
    count, side = axes[-1].taps ** 2, math.prod(host.shape[3 : 4 + len(points)])
    return [_Gram(products, h.reshape(count, side, side)) for h in host]


def _narrowest_last(taps: Array, axes: Sequence[Axis]) -> tuple[Array, tuple[Axis, ...]]:
    """Return taps and axes with that axis last whose band is the smallest part of its points.

    Two points are read by one output only if they lie within the reach, but round a circle.
    """
    xp = libraries.namespace(taps)
    best, dims = int(np.argmin([(2 * a.reach + 1) / a.size for a in axes])), len(axes)
    order = [*(a for a in range(dims) if a != best), best]
    whole = xp.reshape(taps, (*(a.taps for a in axes), *taps.shape[1:]))
    moved = xp.permute_dims(whole, (*order, dims, dims + 1, dims + 2))
    return xp.reshape(moved, tuple(taps.shape)), tuple(axes[a] for a in order)


def _window(products: HostFloats, m: int) -> Window:
    """Return the window of a band of blocks of order m, from the products L_k^T L_l (k k, n, n)."""
    n, present = products.shape[1], np.any(products != 0, axis=0)
    last = np.where(present, np.arange(n)[:, None], 0).max(axis=0)
    last = np.maximum(last, np.arange(n))
    return Window.reaching(np.repeat((last + 1) * m - 1, m))
