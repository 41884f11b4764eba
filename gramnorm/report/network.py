"""A Lipschitz constant of a whole network, composed from the bounds of its layers.

Two descriptions are understood: the nested data of `gramnorm.network_bound`, which a person writes,
and a `Network` of steps, which the reader of a graph makes.  In the second every tensor is a
function of all inputs of the graph taken as one vector; an input has the constant 1, and each step
turns the constants of what it reads into that of what it writes (docs/theory.md, Theorem 17).
Where a step is not understood there is no constant, and its reason is kept.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gramnorm as gn
from gramnorm._rigour.fractions import largest, length_above, product_above, sum_above
from gramnorm.report import Row
from gramnorm.report.files.obstacles import SHORTCUT


@dataclass(frozen=True)
class Step:
    """One tensor.

    The `terms`, each a tensor times a number, added up, stacked, or one of them, then the norm of a
    layer, if any.
    """

    output: str
    terms: tuple[tuple[str, float], ...]
    stacked: bool = False
    layer: str | None = None
    either: bool = False


@dataclass(frozen=True)
class Network:
    """The steps of a graph in order.

    `stopped` says why its outputs have no constant, if they have none.
    """

    inputs: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    outputs: tuple[str, ...] = ()
    stopped: str | None = None


@dataclass(frozen=True)
class Constant:
    """An upper bound on the Lipschitz constant of a network, or the reason why there is none."""

    upper: float | None = None
    reason: str | None = None


def constant_of(
    network: Any,
    rows: Sequence[Row],
    *,
    stated_sizes: bool = True,
    obstacles: Mapping[str, str] | None = None,
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
    return Constant(_walk(network, uppers))


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


def _walk(network: Network, uppers: Mapping[str, float]) -> float:
    """Return the constant of all outputs together."""
    constants = dict.fromkeys(network.inputs, 1.0)
    for step in network.steps:
        join = largest if step.either else length_above if step.stacked else sum_above
        joined = join(product_above([constants[name], factor]) for name, factor in step.terms)
        layer = 1.0 if step.layer is None else uppers[step.layer]
        constants[step.output] = product_above([joined, layer])
    return length_above(constants[name] for name in network.outputs)
