"""Connected parts of a sparse matrix, and signs that take all of its entries to their moduli.

Rows and columns are the nodes of a graph and entries its edges.  Numbers s_i, t_j of modulus one with

    a_ij t_j = s_i |a_ij|   for all entries                      (the pattern is *balanced*)

exist if and only if the phases along every cycle multiply to one; then A (t w) = s (|A| w), and
||A|| = || |A| ||.  A spanning forest proposes them, part by part.  They are never taken for granted: what they
prove is the image of one vector (docs/theory.md, Theorem 8).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from gramnorm._arrays.types import HostInts

Phases = npt.NDArray[np.inexact]

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
    phases: Phases


def parts(rows: HostInts, columns: HostInts, values: Phases, shape: tuple[int, int]) -> Parts:
    """Return the connected parts of the entries a[rows[k], columns[k]] = values[k], and phases.

    Every root of a forest joins the least root that an entry leads to, and its descendants follow it at once, so
    that the number of roots falls at least by half in two rounds.
    """
    total = sum(shape)
    kept = np.flatnonzero(values)
    i, j = rows[kept].astype(np.int64), columns[kept].astype(np.int64) + shape[0]
    p = values[kept] / np.abs(values[kept])
    root = np.arange(total)
    phase = np.ones(total, dtype=p.dtype)  # of a node over that of its root
    while i.size:
        # of the root of the row over that of the column
        _join(root, phase, root[i], root[j], over=np.conj(phase[i]) * p * phase[j])
        apart = root[i] != root[j]  # an entry within a tree closes a cycle
        i, j, p = i[apart], j[apart], p[apart]
    number = (np.cumsum(root == np.arange(total)) - 1)[root]
    return Parts(number[: shape[0]], number[shape[0] :], phase[shape[0] :])


def _join(root: HostInts, phase: Phases, a: HostInts, b: HostInts, over: Phases) -> None:
    """Let each root join the least one beside it, a over b being `over`, and its descendants with it."""
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
    phase *= phase[above]
    root[:] = root[above]
