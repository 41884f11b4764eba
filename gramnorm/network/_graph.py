"""Networks as steps from tensor to tensor: constants of all steps, and chains of layers among them.

Every tensor is a function of all inputs of the network taken as one vector; an input has the
constant 1, and each step turns the constants of what it reads into that of what it writes
(docs/theory.md, Theorem 17).  A chain begins with a layer and goes on with layers that mix the same
axis and functions of entries, as long as each tensor on the way has one reader and is no output.
What it makes of its first tensor has one bound as a whole (Lemma 34), whatever else the network is,
which may stand for that of its steps one by one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from gramnorm._rigour.fractions import largest, length_above, product_above, sum_above
from gramnorm.network._sequence import (
    Part,
    goes_on,
    has_scales,
    is_worth_it,
    run_bound,
    scaled_product,
    work,
)


@dataclasses.dataclass(frozen=True)
class Step:
    """One tensor.

    The `terms`, each a tensor times a number, added up, stacked, or one of them, then the norm of a
    layer, if any.  The `part` says what it is within a chain, if it may stand in one.
    """

    output: str
    terms: tuple[tuple[str, float], ...]
    stacked: bool = False
    layer: str | None = None
    either: bool = False
    part: Part | None = None


@dataclasses.dataclass(frozen=True)
class Network:
    """The steps of a graph in order.

    `stopped` says why its outputs have no constant, if they have none.
    """

    inputs: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    outputs: tuple[str, ...] = ()
    stopped: str | None = None


@dataclasses.dataclass(frozen=True)
class Chain:
    """Layers that follow each other, from one tensor to another, and their bound as a whole.

    `product` is that of their norms with what stands between, and `upper` never above it; `reason`
    says why the chain was not bounded as a whole.
    """

    layers: tuple[str, ...]
    start: str
    end: str
    upper: float
    product: float
    reason: str | None = None


@dataclasses.dataclass
class Run:
    """The steps of a chain, and their parts."""

    steps: list[Step]
    parts: list[Part]

    @property
    def work(self) -> float:
        """About how many multiplications a step of the descent takes."""
        return work(self.parts)

    def by_norms(self, uppers: Mapping[str, float]) -> Chain:
        """Return the chain with what its steps have one by one."""
        names = tuple(step.layer for step in self.steps if step.layer is not None)
        factors = [step.terms[0][1] for step in self.steps]
        product = product_above([*factors, *(uppers[name] for name in names)])
        return Chain(names, self.steps[0].terms[0][0], self.steps[-1].output, product, product)

    def as_whole(
        self, chain: Chain, *, time_limit: float | None, effort: str = "standard"
    ) -> Chain:
        """Return the chain with the bound of the whole where that is smaller."""
        return self._least(chain, run_bound(self.parts, time_limit=time_limit, effort=effort))

    def by_scaled_norms(self, chain: Chain) -> Chain:
        """Return the chain with the norms of its layers with scales multiplied in, if smaller."""
        return self._least(chain, scaled_product(self.parts)) if has_scales(self.parts) else chain

    def _least(self, chain: Chain, found: float) -> Chain:
        # what multiplies a layer stands in its step, what acts on entries in its part
        factors = [step.terms[0][1] for step in self.steps if step.layer is not None]
        upper = product_above([found, *factors])
        return dataclasses.replace(chain, upper=upper) if upper < chain.upper else chain


def runs(network: Network) -> list[Run]:
    """Return the chains in a network that may have a smaller bound as a whole, in order."""
    readers = Counter(name for step in network.steps for name, _ in step.terms)
    readers.update(network.outputs)
    found: list[Run] = []
    ends: dict[str, Run] = {}  # by the last tensor of each
    for step in network.steps:
        before = step.terms[0][0] if len(step.terms) == 1 else ""
        run = ends.get(before) if readers[before] == 1 else None
        if step.part is None or run is None or not goes_on(run.parts, step.part):
            if step.part is None or not goes_on([], step.part):
                continue
            run = Run([], [])
            found.append(run)
        run.steps.append(step)
        run.parts.append(step.part)
        ends[step.output] = run
    return [run for run in found if is_worth_it(run.parts)]


def walked(network: Network, uppers: Mapping[str, float], chains: Sequence[Chain] = ()) -> float:
    """Return the constant of all outputs together."""
    constants = dict.fromkeys(network.inputs, 1.0)
    by_end: dict[str, list[Chain]] = {}
    for chain in chains:
        by_end.setdefault(chain.end, []).append(chain)
    for step in network.steps:
        join = largest if step.either else length_above if step.stacked else sum_above
        joined = join(product_above([constants[name], factor]) for name, factor in step.terms)
        layer = 1.0 if step.layer is None else uppers[step.layer]
        found = product_above([joined, layer])
        for chain in by_end.get(step.output, []):
            whole = product_above([constants[chain.start], chain.upper])
            found = whole if whole < found else found
        constants[step.output] = found
    return length_above(constants[name] for name in network.outputs)
