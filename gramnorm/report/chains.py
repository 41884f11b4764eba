"""The time that chains of layers may take: small ones first, and each its share of what is left."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from gramnorm.network._graph import Chain, Network, Run, runs
from gramnorm.network._shortcuts import ResidualRun, residual_runs
from gramnorm.report.files.contents import one_line
from gramnorm.report.limits import CHAIN_WORK
from gramnorm.report.network import Constant

_LARGE = "not bounded as a whole, as its layers are large: --network sdp sets no limit"
_LATE = "not bounded as a whole, as the time was up: --network sdp sets no limit"
_STOPPED = "not bounded as a whole, since somebody interrupted"


def bounded(
    network: Network,
    uppers: Mapping[str, float],
    *,
    seconds: float | None,
    announce: Callable[[str], None] = lambda _: None,
) -> tuple[Chain, ...]:
    """
    Return the chains of a network, each with its bound.

    Parameters
    ----------
    network : Network
        The steps of a graph.
    uppers : mapping of str to float
        Bounds of all layers in it, by name.
    seconds : float or None
        When to stop, leaving what is beyond `limits.CHAIN_WORK` to the product of norms; the effort
        is the least one. None does all of it, with the highest effort.
    announce : callable
        Told the layers of each chain before the work on it.

    Returns
    -------
    tuple of Chain
        In the order of the network.
    """
    found: list[Run | ResidualRun] = [*runs(network), *residual_runs(network)]
    chains = [run.by_norms(uppers) for run in found]
    order = sorted(range(len(found)), key=lambda i: found[i].work)
    until = None if seconds is None else time.monotonic() + seconds
    for place, i in enumerate(order):
        left = None if until is None else until - time.monotonic()
        if left is not None and (reason := _refused(found[i], left)):
            chains[i] = replace(found[i].by_scaled_norms(chains[i]), reason=reason)
            continue
        announce(" > ".join(chains[i].layers))
        share = None if left is None else left / (len(order) - place)
        try:
            effort = "high" if share is None else "quick"
            chains[i] = found[i].as_whole(chains[i], time_limit=share, effort=effort)
        except (MemoryError, ValueError) as error:  # ValueError: of sizes beyond all memory
            reason = f"not bounded as a whole: {one_line(error)}"
            chains[i] = replace(chains[i], reason=reason)
        except KeyboardInterrupt:
            for j in order[place:]:
                chains[j] = replace(chains[j], reason=_STOPPED)
            break
    return tuple(chains)


def _refused(run: Run | ResidualRun, left: float) -> str | None:
    """Return why no bound of a chain is looked for in so many seconds."""
    if run.work > CHAIN_WORK:
        return _LARGE
    return _LATE if left <= 0 else None


def is_interrupted(constant: Constant | None) -> bool:
    """Say whether somebody interrupted the search for chains."""
    return constant is not None and any(c.reason == _STOPPED for c in constant.chains)
