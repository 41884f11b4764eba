"""Connected parts of a sparse matrix, and signs that take all of its entries to their moduli.

Rows and columns are the nodes of a graph and entries its edges.  Numbers s_i, t_j of modulus one
with

    a_ij t_j = s_i |a_ij|   for all entries                      (the pattern is *balanced*)

exist if and only if the phases along every cycle multiply to one; then A (t w) = s (|A| w), and
||A|| = || |A| ||.  A spanning forest proposes them, part by part.  They are never taken for granted: what they
prove is the image of one vector (docs/theory.md, Theorem 24).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from gramnorm._arrays import limits
from gramnorm._arrays.types import HostInts, HostNumbers

Rows = Any


@dataclasses.dataclass(frozen=True)
class Parts:
    """The connected parts of a matrix, and phases t_j of its columns.

    Attributes
    ----------
    rows, columns : host ints
        The number of the part that a row, or a column, belongs to.
    phases : host array, shape (n,)
        t_j, of modulus about one.
    """

    rows: HostInts
    columns: HostInts
    phases: HostNumbers


def parts(b: Rows) -> Parts:
    """Return the connected parts of a matrix in compressed rows without stored zeros, and phases.

    Every root of a forest joins the least root that an entry leads to, and its descendants follow
    it at once, so that the number of roots falls at least by half in two rounds.  Entries come in
    batches, to save memory.  Complex ones are scaled: the inverse of a subnormal modulus overflows.
    """
    m, total = b.shape[0], sum(b.shape)
    root = np.arange(total)
    # of a node over that of its root; signs are exact in any type
    phase = np.ones(total, dtype=b.dtype if b.dtype.kind == "c" else np.float32)
    starts = np.arange(0, b.nnz, limits.BATCH)
    bounds = [0, *np.searchsorted(b.indptr, starts[1:]).tolist(), m]
    for first, last in itertools.pairwise(bounds):
        inside = slice(b.indptr[first], b.indptr[last])
        i = np.repeat(np.arange(first, last), np.diff(b.indptr[first : last + 1]))
        j = b.indices[inside].astype(np.int64) + m
        p = b.data[inside]
        if p.dtype.kind == "c":  # entries are at most about 1, and some may be subnormal
            p = p * p.dtype.type(2.0 ** (200 if p.dtype.itemsize == 16 else 60))
        p = p / np.abs(p)
        while i.size:
            # of the root of the row over that of the column
            _join(root, phase, root[i], root[j], over=np.conj(phase[i]) * p * phase[j])
            apart = root[i] != root[j]  # an entry within a tree closes a cycle
            i, j, p = i[apart], j[apart], p[apart]
    number = (np.cumsum(root == np.arange(total)) - 1)[root]
    return Parts(number[:m], number[m:], phase[m:])


def _join(root: HostInts, phase: HostNumbers, a: HostInts, b: HostInts, over: HostNumbers) -> None:
    """Let each root and its descendants join the least root beside it, a over b being `over`."""
    larger, smaller = np.maximum(a, b), np.minimum(a, b)
    best = np.full(len(root), np.iinfo(np.int64).max)
    # the least neighbour, and the entry that leads to it, in one number
    np.minimum.at(best, larger, smaller * len(a) + np.arange(len(a)))
    joining = np.flatnonzero(best < np.iinfo(np.int64).max)
    entry = best[joining] % len(a)
    root[joining] = smaller[entry]
    phase[joining] = np.where(a[entry] > b[entry], over[entry], np.conj(over[entry]))
    above = root[joining]
    while np.any(root[above] != above):
        phase[joining] = phase[joining] * phase[above]
        root[joining] = root[above]
        above = root[joining]
    above = root
    phase[:] = phase * phase[above]
    root[:] = root[above]
