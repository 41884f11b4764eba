"""Residual blocks of dense layers within networks of steps, and chains that go on through them.

A block begins at a tensor with two readers and ends where both ways from there meet in a sum: one
is a branch of layers and functions of entries, the other nothing, or one layer.  As long as all
other tensors on both ways have one reader and are no output, the end is made of the beginning
alone, and the bound of a chain with `Residual` stands for it (docs/theory.md, Theorem 36 and
Lemma 34).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm._arrays import probes
from gramnorm._arrays.types import HostFloats
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._rigour.fractions import float_above
from gramnorm.network._chain import chain_bound
from gramnorm.network._graph import Chain, Network, Step
from gramnorm.network._layers import Activation, Residual
from gramnorm.network._sequence import Curved, Entrywise, Joined, Weighted

_NONE = Activation(1, 1)
_INEXACT = Fraction(1, 2**50)  # of a scale: a rounded root or quotient, and the next number above
_NORMAL = 2.0**-900  # scales from here on have all their digits


@dataclasses.dataclass(frozen=True, eq=False)
class Layered:
    """A layer, and the name of its bound."""

    name: str
    part: Weighted


@dataclasses.dataclass(frozen=True, eq=False)
class Scaled:
    """Numbers by which the entries are multiplied."""

    scale: HostFloats


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A branch, the layer of its shortcut, if any, and the signs of both in their sum."""

    branch: tuple[Element, ...]
    shortcut: Layered | None
    signs: tuple[float, float]


Element = Layered | Scaled | Activation | Block


@dataclasses.dataclass(frozen=True, eq=False)
class _Way:
    """What leads from a tensor to another, and how many entries are there, if that is known."""

    start: str
    elements: tuple[Element, ...]
    size: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class ResidualRun:
    """A chain with residual blocks or the like in it, from one tensor to another."""

    start: str
    end: str
    elements: tuple[Element, ...]

    @property
    def work(self) -> float:
        """About how many multiplications a step of the descent takes."""
        return _work(self.elements, 0)

    def by_norms(self, uppers: Mapping[str, float]) -> Chain:
        """Return the chain with what norms and sums compose to."""
        names = tuple(layer.name for layer in _layers(self.elements))
        product = math.inf
        if all(math.isfinite(uppers[name]) for name in names):
            product = float_above(_composed(self.elements, lambda x: Fraction(uppers[x.name])))
        return Chain(names, self.start, self.end, product, product)

    def by_scaled_norms(self, chain: Chain) -> Chain:
        """Return the chain as it is: scales are not multiplied in."""
        return chain

    def as_whole(
        self, chain: Chain, *, time_limit: float | None, effort: str = "standard"
    ) -> Chain:
        """Return the chain with the bound of the whole where that is smaller."""
        probe = np.zeros(1)
        if not math.isfinite(chain.product) or probes.flushes_subnormals(probe, probe.dtype):
            return chain
        described = _described(self.elements)
        found = float(chain_bound(described, time_limit=time_limit, effort=effort))
        if not found < chain.upper:
            return chain
        upper = float_above(Fraction(found) + _error(self.elements))
        return dataclasses.replace(chain, upper=upper) if upper < chain.upper else chain


def residual_runs(network: Network) -> list[ResidualRun]:
    """Return the longest chains with blocks, or activations with slopes of both signs, in order."""
    readers = Counter(name for step in network.steps for name, _ in step.terms)
    readers.update(network.outputs)
    ways: dict[str, _Way] = {}
    for step in network.steps:
        if isinstance(step.part, Joined):
            _join(step, step.part, ways, readers)
        elif len(step.terms) == 1 and not (step.either or step.stacked):
            _go_on(step, ways, readers)
    return [
        ResidualRun(way.start, end, way.elements)
        for end, way in ways.items()
        if len(_layers(way.elements)) > 1 and any(map(_is_beyond, way.elements))
    ]


def _is_beyond(x: Element) -> bool:
    """Say whether an element is none of the chains that are bounded by one norm."""
    return isinstance(x, Block) or (isinstance(x, Activation) and x.low < 0 < x.high)


def _go_on(step: Step, ways: dict[str, _Way], readers: Counter[str]) -> None:
    """Lead a way on through a layer or a function of entries; the tensor before is no end then."""
    (before, factor), part = step.terms[0], step.part
    way = ways.get(before, _Way(before, (), None))
    if readers[before] != 1:
        way = _Way(before, (), way.size)
    added: tuple[Element, ...] | None = None
    size = way.size
    if isinstance(part, Weighted) and part.geometry is None and step.layer is not None:
        fits = part.can_be_linked() and size in (None, part.channels[1])
        if fits and factor == abs(part.times) and min(part.weight.shape) > 0:
            added, size = (Layered(step.layer, part),), part.channels[0]
    elif isinstance(part, Entrywise):
        added = _entrywise(part, size)
    elif isinstance(part, Curved):
        added = (Activation(*part.ends),)
    if added is not None:
        if way.start != before:
            del ways[before]
        ways[step.output] = _Way(way.start, (*way.elements, *added), size)


def _entrywise(part: Entrywise, size: int | None) -> tuple[Element, ...] | None:
    """Return what a function of entries is, None if it is no such thing along the last axis."""
    low, high = (-part.slope, part.slope) if part.ends is None else part.ends
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    own: tuple[Element, ...] = () if low == high == 1 else (Activation(low, high),)
    if part.scale is None:
        return own
    scale = part.scale.astype(np.float64)
    along = scale.reshape(-1)
    if (
        size is None
        or scale.ndim == 0
        or scale.shape[-1] != along.size
        or along.size not in (1, size)
    ):
        return None
    moduli = np.abs(along[along != 0])
    if not np.all((moduli >= _NORMAL) & (moduli < math.inf)):
        return None
    return (*own, Scaled(np.broadcast_to(along, (size,))))


def _join(step: Step, joined: Joined, ways: dict[str, _Way], readers: Counter[str]) -> None:
    """Close a block, if both terms are made of the same tensor alone."""
    names = [name for name, _ in step.terms]
    for i, signs in ((0, joined.signs), (1, joined.signs[::-1])):
        branch = ways.get(names[i])
        if branch is None or readers[names[i]] != 1 or readers[branch.start] != 2:
            continue
        kept = names[1 - i]
        carried = _carried(kept, branch.start, ways, readers)
        if carried is None or len(carried) > 1:
            continue
        shortcut = carried[0] if carried else None
        layers = _layers(branch.elements)
        inputs = next((x.part.channels[1] for x in layers), None)
        size = inputs if shortcut is None else shortcut.part.channels[0]
        if inputs is None or branch.size != size:
            continue
        before = ways.get(branch.start, _Way(branch.start, (), None))
        if before.size not in (None, inputs):
            continue
        for name in (*names, branch.start):
            ways.pop(name, None)
        block = Block(branch.elements, shortcut, (signs[0], signs[1]))
        ways[step.output] = _Way(before.start, (*before.elements, block), branch.size)
        return


def _carried(
    name: str, start: str, ways: dict[str, _Way], readers: Counter[str]
) -> list[Layered] | None:
    """Return the layers between the start and the end of a shortcut; None if it is none."""
    way = ways.get(name)
    if name == start:
        return []
    if way is None or way.start != start or readers[name] != 1:
        return None
    found = [x for x in way.elements if isinstance(x, Layered) and abs(x.part.times) == 1]
    return found if len(found) == len(way.elements) else None


def _layers(elements: Sequence[Element]) -> list[Layered]:
    """Return all layers in order, the branch before its shortcut."""
    found: list[Layered] = []
    for x in elements:
        if isinstance(x, Layered):
            found.append(x)
        elif isinstance(x, Block):
            found += [*_layers(x.branch), *([] if x.shortcut is None else [x.shortcut])]
    return found


def _described(elements: Sequence[Element]) -> list[Any]:
    """Return what `chain_bound` takes."""
    found: list[Any] = []
    for x in elements:
        if isinstance(x, Activation):
            found.append(x)
        elif isinstance(x, Layered):
            found += [x.part.correlation(), _times(x.part.times)]
        elif isinstance(x, Scaled):
            found += [np.diag(x.scale), _NONE]
        else:
            branch = [*_described(x.branch), _times(x.signs[0])]
            found += [Residual(branch, _shortcut(x)), _NONE]
    return found


def _times(factor: float) -> Activation:
    return Activation(factor, factor)


def _shortcut(block: Block) -> HostFloats | None:
    """Return the matrix of a shortcut; None of the identity."""
    sign = block.signs[1]
    if block.shortcut is not None:
        return sign * block.shortcut.part.times * block.shortcut.part.correlation()
    if sign == 1:
        return None
    return sign * np.eye(_layers(block.branch)[0].part.channels[1])


def _composed(
    elements: Sequence[Element], norm: Callable[[Layered], Fraction], more: Fraction = Fraction(0)
) -> Fraction:
    """Return what norms, slopes and sums compose to, the scales a share `more` larger."""
    total = Fraction(1)
    for x in elements:
        if isinstance(x, Activation):
            total *= max(abs(Fraction(x.low)), abs(Fraction(x.high)))
        elif isinstance(x, Layered):
            total *= norm(x) * abs(Fraction(x.part.times))
        elif isinstance(x, Scaled):
            total *= Fraction(float(np.max(np.abs(x.scale)))) * (1 + more)
        else:
            kept = Fraction(1)
            if x.shortcut is not None:
                kept = norm(x.shortcut) * abs(Fraction(x.shortcut.part.times))
            total *= kept + _composed(x.branch, norm, more)
    return total


def _error(elements: Sequence[Element]) -> Fraction:
    """Return what inexact scales may add to the constant.

    Written out, what they change is a sum of products with one error at least in each.
    """
    if not any(isinstance(x, Scaled) for x in _flat(elements)):
        return Fraction(0)
    norms = {
        id(x): Fraction(float(matrix_norm_bound(x.part.correlation()))) for x in _layers(elements)
    }

    def norm(x: Layered) -> Fraction:
        return norms[id(x)]

    return _composed(elements, norm, _INEXACT) - _composed(elements, norm)


def _flat(elements: Sequence[Element]) -> Iterator[Element]:
    """Yield all elements, those of branches too."""
    for x in elements:
        yield x
        if isinstance(x, Block):
            yield from _flat(x.branch)


def _work(elements: Sequence[Element], kept: int) -> float:
    """Return the multiplications for elements beside so many entries that shortcuts carry."""
    total = 0.0
    for x in elements:
        if isinstance(x, Layered):
            rows, columns = x.part.weight.shape
            total += 8.0 * (kept + max(rows, columns)) ** 3
        elif isinstance(x, Block):
            total += _work(x.branch, kept + _layers(x.branch)[0].part.channels[1])
    return total
