"""Residual networks as the caller describes them, checked, as moves of a few vectors.

A network of matrices, activations and residual blocks keeps the vector it is at, and for each block
that it is inside of what the shortcut of that block carries.  Four moves make all of it: a matrix,
an activation, the fork at which a block begins, and the join at which it ends.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import crossing, probes
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._rigour.fractions import float_above, product_above, sum_above
from gramnorm.network._layers import Activation, AvgPool, ConvLayer, Flatten, MaxPool, Residual
from gramnorm.network._steps import all_positive, floats, listed

_DEEPEST = 50  # blocks within blocks: more is a mistake


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """The vector becomes ``weights`` times itself."""

    weights: HostFloats


@dataclasses.dataclass(frozen=True)
class Bend:
    """An activation of `size` entries with slopes in [low, high], floats not above and not below."""

    low: float
    high: float
    size: int

    @property
    def reach(self) -> float:
        """Not less than ``high - low``; 0 for no activation at all, which is a factor."""
        if self.high == self.low:
            return 0.0
        return float_above(Fraction(self.high) - Fraction(self.low))


@dataclasses.dataclass(frozen=True)
class Fork:
    """The vector, of `size` entries, is kept for a shortcut as well."""

    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Join:
    """What was kept last, of `size` entries, is added, times a matrix if there is one.

    The `ratio` is that of the composed constant of the branch and the norm of the shortcut.
    """

    size: int
    shortcut: HostFloats | None
    ratio: float


Move = Linear | Bend | Fork | Join
Element = Array | Activation | Residual


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A network that fits together.

    Attributes
    ----------
    moves : tuple of Move
        From input to output.
    inputs, outputs : int
        How many there are.
    product : float
        The constant composed of norms, the largest slopes and sums: NaN, inf and 0 as those give.
    is_plain : bool
        Whether all sizes are positive, all numbers finite and all stored digits there.
    """

    moves: tuple[Move, ...]
    inputs: int
    outputs: int
    product: float
    is_plain: bool

    @property
    def bends(self) -> list[Bend]:
        """The activations that have multipliers, in order."""
        return [m for m in self.moves if isinstance(m, Bend) and m.reach > 0]


def is_residual(layers: Any) -> bool:
    """Say whether a list of layers is about this module."""
    return isinstance(layers, Sequence) and any(
        isinstance(layer, Activation | Residual) for layer in layers
    )


def read(layers: Sequence[Element], slope: Any) -> Graph:
    """Return a network that fits together; `slope` is the largest of activations not spelled out."""
    _validate.positive_number(slope, name="slopes")
    reader = _Reader(Bend(0.0, float_above(_exact(slope)), 0))
    inputs, outputs, product = reader.chain(list(layers), "layers", "layer ", None, 0)
    sizes = [inputs, outputs, *(m.size for m in reader.moves if isinstance(m, Bend | Fork | Join))]
    arrays = [m.weights for m in reader.moves if isinstance(m, Linear)]
    arrays += [m.shortcut for m in reader.moves if isinstance(m, Join) and m.shortcut is not None]
    is_finite = all(bool(np.all(np.isfinite(x))) for x in arrays) and math.isfinite(product)
    is_plain = is_finite and product > 0 and min(sizes) > 0 and not reader.flushes
    return Graph(tuple(reader.moves), inputs, outputs, product, is_plain)


class _Reader:
    """Reads lists of layers, and the lists within them."""

    def __init__(self, implied: Bend) -> None:
        self.moves: list[Move] = []
        self.flushes = False
        self._implied = implied

    def chain(
        self, layers: list[Element], name: str, prefix: str, inputs: int | None, depth: int
    ) -> tuple[int, int, float]:
        """Read a list; return the sizes of its input and its output, and its composed constant."""
        if not any(_weighs(layer) for layer in layers):
            msg = f"{name} must hold one array or Residual or more, got none"
            raise ValueError(msg)
        if depth > _DEEPEST:
            msg = f"layers must not hold blocks more than {_DEEPEST} deep"
            raise ValueError(msg)
        first = _inputs(layers, prefix, depth) if inputs is None else inputs
        size, factors = first, []
        for i, layer in enumerate(layers):
            own = f"{prefix}{i}"
            if isinstance(layer, Activation):
                factors.append(self._bend(_slopes(layer, own), size))
                continue
            size, factor = self._weighted(layer, own, size, depth)
            factors.append(factor)
            if i + 1 < len(layers) and not isinstance(layers[i + 1], Activation):
                factors.append(self._bend(self._implied, size))
        return first, size, product_above(factors)

    def _bend(self, slopes: Bend, size: int) -> float:
        bend = dataclasses.replace(slopes, size=size)
        self.moves.append(bend)
        return max(abs(bend.low), abs(bend.high))

    def _weighted(self, layer: Element, own: str, size: int, depth: int) -> tuple[int, float]:
        """Read a layer with weights; return the size of its output and its composed constant."""
        if not isinstance(layer, Residual):
            weights, norm = self._matrix(layer, own, size)
            self.moves.append(Linear(weights))
            return weights.shape[0], norm
        self.moves.append(Fork(size))
        of = f"the branch of {own}"
        branch = listed(layer.branch, of)
        _, outputs, factor = self.chain(branch, of, f"{own}.", size, depth + 1)
        shortcut, norm = None, 1.0
        if layer.shortcut is not None:
            shortcut, norm = self._matrix(layer.shortcut, f"the shortcut of {own}", size)
        kept = size if shortcut is None else shortcut.shape[0]
        if kept != outputs:
            how = "shortcut= takes a matrix" if shortcut is None else "they are added up"
            msg = f"{of} must have {kept} outputs, as many as its shortcut, got {outputs}; {how}"
            raise ValueError(msg)
        self.moves.append(Join(size, shortcut, factor / norm if norm else math.inf))
        return outputs, sum_above([norm, factor])

    def _matrix(self, x: Array, own: str, size: int) -> tuple[HostFloats, float]:
        """Return a matrix on the host and a bound on its norm."""
        array = _dense(x, own)
        if array.shape[1] != size:
            msg = (
                f"{own} must have {size} inputs on its second axis, as there are outputs before "
                f"it, got shape {tuple(array.shape)}"
            )
            raise ValueError(msg)
        weights = crossing.to_host(array)
        if 0 in weights.shape:
            return weights, 0.0
        # entries read as zeros are missing in an energy, but the norms of the layers count them
        self.flushes = self.flushes or probes.flushes_subnormals(weights, weights.dtype)
        return weights, float(matrix_norm_bound(array if self.flushes else weights))


def _weighs(layer: Element) -> bool:
    return not isinstance(layer, Activation)


def _dense(x: Array, own: str) -> Array:
    """Return an array that is a matrix."""
    if isinstance(x, ConvLayer | AvgPool | MaxPool | Flatten):
        msg = (
            f"{own} is a {type(x).__name__}, but beside Residual and Activation there are matrices "
            "only; bound convolutions by themselves, and put both together with product_bound"
        )
        raise ValueError(msg)
    array = floats(x, name=own)
    if array.ndim != 2:
        msg = (
            f"{own} must be a matrix, as beside Residual and Activation there are no convolutions, "
            f"got shape {tuple(array.shape)}"
        )
        raise ValueError(msg)
    return array


def _inputs(layers: list[Element], prefix: str, depth: int) -> int:
    """Return the number of inputs of a list, by the first layer that says it."""
    i, layer = next((i, layer) for i, layer in enumerate(layers) if _weighs(layer))
    own = f"{prefix}{i}"
    if not isinstance(layer, Residual):
        return int(_dense(layer, own).shape[1])
    if layer.shortcut is not None:
        return int(_dense(layer.shortcut, f"the shortcut of {own}").shape[1])
    branch = listed(layer.branch, f"the branch of {own}")
    if depth > _DEEPEST or not any(map(_weighs, branch)):
        msg = f"the branch of {own} must hold one array or Residual or more, got none"
        raise ValueError(msg)
    return _inputs(branch, f"{own}.", depth + 1)


def _slopes(layer: Activation, own: str) -> Bend:
    """Return the slopes of an activation as floats, rounded outward."""
    ends = []
    for end, name in ((layer.low, "low"), (layer.high, "high")):
        if isinstance(end, bool) or not isinstance(end, numbers.Real):
            msg = f"{name} of {own} must be a number, got {end!r}"
            raise TypeError(msg)
        if not _is_finite(end):
            msg = f"{name} of {own} must be finite, as a float is, got {end!r}"
            raise ValueError(msg)
        ends.append(_exact(end))
    if ends[0] > ends[1]:
        msg = f"low of {own} must not be above high, got {layer.low!r} and {layer.high!r}"
        raise ValueError(msg)
    return Bend(-float_above(-ends[0]), float_above(ends[1]), 0)


def _is_finite(number: Any) -> bool:
    """Say whether a real number is, and not beyond all floats."""
    try:
        return math.isfinite(number)
    except OverflowError:  # of a whole number or a fraction
        return False


def _exact(number: Any) -> Fraction:
    """Return a real number as a fraction."""
    if isinstance(number, numbers.Integral):
        return Fraction(int(number))
    return Fraction(*number.as_integer_ratio())


def logarithms(multipliers: Sequence[Array], graph: Graph) -> list[HostFloats]:
    """Return those of the squares of multipliers, once there are as many as neurons, all positive."""
    every = listed(multipliers, "multipliers")
    if len(every) != len(graph.bends):
        msg = (
            "multipliers must hold one array for each activation that is more than a factor, "
            f"{len(graph.bends)}, got {len(every)}"
        )
        raise ValueError(msg)
    found = []
    for i, (given, bend) in enumerate(zip(every, graph.bends, strict=True)):
        x = crossing.to_host(floats(given, name=f"multipliers {i}"))
        if x.shape != (bend.size,):
            msg = (
                f"multipliers {i} must have the shape {(bend.size,)}, one number for each entry of "
                f"its activation, got {x.shape}"
            )
            raise ValueError(msg)
        all_positive(x, name=f"multipliers {i}")
        found.append(2 * np.log(x))
    return found
