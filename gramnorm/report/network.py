"""A Lipschitz constant of a whole network, composed from the bounds of its layers.

Two descriptions are understood: the nested data of `gramnorm.network_bound`, which a person writes,
and a `Network` of steps, which the reader of a graph makes, and in which chains of layers may have
a smaller bound than their norms (docs/theory.md, Theorem 17 and Lemma 34).  Where a step is not
understood there is no constant, and its reason is kept.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gramnorm as gn
from gramnorm.network._graph import Chain, Network, walked
from gramnorm.report import Row
from gramnorm.report.files.obstacles import SHORTCUT


@dataclass(frozen=True)
class Constant:
    """An upper bound on the Lipschitz constant of a network, or the reason why there is none.

    `product` is what it would be of the norms of layers alone.
    """

    upper: float | None = None
    reason: str | None = None
    product: float | None = None
    chains: tuple[Chain, ...] = ()


ChainFinder = Callable[[Network, Mapping[str, float]], tuple[Chain, ...]]


def constant_of(
    network: Any,
    rows: Sequence[Row],
    *,
    stated_sizes: bool = True,
    obstacles: Mapping[str, str] | None = None,
    find_chains: ChainFinder | None = None,
) -> Constant:
    """
    Return an upper bound on the Lipschitz constant of a network, rounded up.

    Parameters
    ----------
    network : Network or nested data
        The steps of a graph, or a description for `gramnorm.network_bound`.
    rows : sequence of Row
        The bounds of the layers.
    stated_sizes : bool
        Whether the rows hold for the sizes and the padding that the file states: false if the user
        asked for others, which leaves the network without a constant.
    obstacles : mapping of str to str or None
        What the file holds besides these layers, and why it has no constant: nested data say
        nothing of it.
    find_chains : callable or None
        Returns the chains of a network by the bounds of its layers, as `chains.bounded` does; None
        composes norms alone.

    Returns
    -------
    Constant
        The bound, or why there is none.

    Notes
    -----
    **Guarantee.** An upper bound in the Euclidean norm, in exact arithmetic with the weights as stored, for all inputs
    of the graph together, whatever their batch. Rounding of the network's own arithmetic is not
    part of it.
    """
    if not stated_sizes:
        return Constant(
            reason="the layers are bounded at another size or padding than the network's"
        )
    if not isinstance(network, Network):
        return _described(network, rows, obstacles or {})
    if network.stopped is not None:
        return Constant(reason=network.stopped)
    uppers = {row.name: row.upper for row in rows if row.error is None}
    used = [step.layer for step in network.steps if step.layer is not None]
    if absent := [name for name in used if name not in uppers]:
        return Constant(reason=f"the layer {absent[0]!r} has no bound, or is left out")
    product = walked(network, uppers)
    if find_chains is None:
        return Constant(product, product=product)
    chains = find_chains(network, uppers)
    return Constant(walked(network, uppers, chains), product=product, chains=chains)


def _described(network: Any, rows: Sequence[Row], obstacles: Mapping[str, str]) -> Constant:
    """Return the constant of nested data, in which every layer occurs, with bound and geometry."""
    for name, reason in obstacles.items():
        if reason != SHORTCUT:  # which the description says how to take
            return Constant(reason=f"{name!r} is in the file: {reason}")
    if assumed := [row.name for row in rows if row.assumed]:
        return Constant(reason=f"nothing says what the layer {assumed[0]!r} does with its kernel")
    uppers = {row.name: math.nan if row.error is not None else row.upper for row in rows}
    try:
        bound = float(gn.network_bound(network, uppers))
    except (TypeError, ValueError) as error:
        return Constant(reason=str(error).partition("; use them")[0])
    if math.isnan(bound):
        missing = ", ".join(repr(row.name) for row in rows if math.isnan(uppers[row.name]))
        return Constant(reason=f"there is no bound of {missing}")
    return Constant(bound)
