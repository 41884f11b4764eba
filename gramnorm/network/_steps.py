"""A chain as the caller describes it, checked: weights, and what stands before each of them.

Between two layers with weights there is an activation, directly behind the first; then, where they
are, poolings, and a flattening last of all.  Everything that does not fit is found here, and its
message names the layer by its place in the caller's list.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import crossing
from gramnorm._arrays.types import Array, HostFloats
from gramnorm.network._layers import AvgPool, ConvLayer, Flatten, MaxPool

INSTEAD = "the product of gram_iteration over the layers"

Layer = Array | ConvLayer | AvgPool | MaxPool | Flatten
Waiting = list[tuple[str, AvgPool | MaxPool | Flatten]]


@dataclasses.dataclass(frozen=True)
class Pool:
    """A pooling of a signal with samples; one number per axis each, the padding as given."""

    name: str
    is_average: bool
    window: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: _validate.Padding

    @property
    def count(self) -> int:
        """The number of samples of a window."""
        return math.prod(self.window)

    @property
    def overlaps(self) -> tuple[int, ...]:
        """The largest number of windows that hold the same sample, per axis without ends."""
        # of the taps of a window those of one class modulo s / gcd(s, d) read the same sample
        axes = zip(self.window, self.stride, self.dilation, strict=True)
        return tuple(-(-k * math.gcd(s, d) // s) for k, s, d in axes)

    @property
    def square(self) -> Fraction:
        """The square of the constant of Lemma 18, also with one weight per channel on both sides."""
        found = Fraction(math.prod(self.overlaps))
        if not self.is_average:
            return found
        for k, s, r in zip(self.window, self.stride, self.overlaps, strict=True):
            shared = sum(max(0, k - abs(i) * s) for i in range(1 - r, r))
            found *= min(Fraction(1, k), Fraction(shared, r * k * k))
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """A layer with weights, and what stands between it and the activation before.

    Attributes
    ----------
    array, weights : array, host floats
        A matrix or a kernel, of the caller's library and in float64.
    stride, dilation : tuple of int
        Per axis; empty for a matrix.
    groups, padding
        Of a convolution, the padding as given.
    pools : tuple of Pool
        In order.
    spatial : tuple of int
        Samples per axis where a matrix reads a flattened signal, else empty.
    channels_last : bool
        Whether it is flattened with the channels of a sample together.
    """

    name: str
    array: Array
    weights: HostFloats
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding: _validate.Padding
    pools: tuple[Pool, ...]
    spatial: tuple[int, ...]
    channels_last: bool

    @property
    def axes_out(self) -> int:
        """How many axes the samples of the output have; a matrix gives none."""
        axes: int = self.weights.ndim - 2
        return axes

    @property
    def axes_in(self) -> int:
        """How many axes the samples of the input have."""
        return self.axes_out or len(self.spatial)

    @property
    def inputs(self) -> int:
        """The number of channels of the input."""
        return int(self.weights.shape[1]) * self.groups // math.prod(self.spatial)

    @property
    def outputs(self) -> int:
        """The number of channels of the output."""
        return int(self.weights.shape[0])


def read(layers: Sequence[Layer]) -> list[Step]:
    """Return the steps of a chain that fits together."""
    steps: list[Step] = []
    waiting: Waiting = []
    for i, layer in enumerate(listed(layers, "layers")):
        if isinstance(layer, AvgPool | MaxPool | Flatten):
            waiting.append((f"layer {i}", layer))
        else:
            steps.append(_step(f"layer {i}", layer, waiting))
            waiting = []
    if not steps:
        msg = "layers must hold one array or more, got none"
        raise ValueError(msg)
    if waiting:
        msg = (
            f"{waiting[0][0]} must stand before a layer with weights, but none follows; leave it "
            "out, and multiply by its own constant with product_bound"
        )
        raise ValueError(msg)
    for before, after in itertools.pairwise(steps):
        _fits(before, after)
    return steps


def listed(arrays: object, name: str) -> list[Array]:
    """Return the arrays as a list."""
    if not isinstance(arrays, Sequence) or isinstance(arrays, str):
        msg = f"{name} must be a list or tuple of arrays, got {type(arrays).__name__}"
        raise TypeError(msg)
    return list(arrays)


def floats(x: Array, *, name: str) -> Array:
    """Return an array of real floating numbers that has values."""
    a = _validate.concrete_argument(x, name=name, instead=INSTEAD)
    return _validate.real_floating(a, name=name)


def all_positive(x: HostFloats, *, name: str) -> None:
    """Check that multipliers are positive and finite."""
    wrong = x[~((x > 0) & (x < math.inf))]
    if wrong.size:
        msg = (
            f"{name} must be positive and finite, got {wrong[0]}; where a solver left a zero, put a "
            "small number"
        )
        raise ValueError(msg)


def _step(name: str, layer: Array | ConvLayer, waiting: Waiting) -> Step:
    """Return a layer with weights behind the poolings that wait for it."""
    conv = layer if isinstance(layer, ConvLayer) else ConvLayer(layer)
    array = floats(conv.kernel, name=name)
    weights = crossing.to_host(array)
    _validate.matrices(weights, name=name)
    if isinstance(layer, ConvLayer) or weights.ndim > 2:
        groups = _validate.kernel_shape(weights.shape, groups=conv.groups, name=name)
    else:
        groups = 1
    axes = weights.ndim - 2
    stride = _validate.per_axis(conv.stride, name=f"stride of {name}", axes=axes)
    dilation = _validate.per_axis(conv.dilation, name=f"dilation of {name}", axes=axes)
    spatial, channels_last = _flattened(name, weights, waiting)
    return Step(
        name=name,
        array=array,
        weights=weights,
        stride=stride,
        dilation=dilation,
        groups=groups,
        padding=conv.padding,
        pools=_pools(name, axes or len(spatial), waiting),
        spatial=spatial,
        channels_last=channels_last,
    )


def _flattened(name: str, weights: HostFloats, waiting: Waiting) -> tuple[tuple[int, ...], bool]:
    """Return the samples per axis of a flattened signal, none where there is none, and the order."""
    places = [i for i, (_, layer) in enumerate(waiting) if isinstance(layer, Flatten)]
    if not places:
        return (), False
    own, flatten = waiting[places[0]]
    assert isinstance(flatten, Flatten)
    if weights.ndim > 2 or places != [len(waiting) - 1]:
        msg = f"{own} is Flatten, behind which a matrix must follow: the result has no samples"
        raise ValueError(msg)
    sizes = flatten.spatial if isinstance(flatten.spatial, Sequence) else (flatten.spatial,)
    spatial = _validate.per_axis(sizes, name=f"spatial of {own}", axes=len(sizes))
    if not spatial or weights.shape[1] % math.prod(spatial):
        msg = (
            f"spatial of {own} must hold the samples per axis of the signal, whose product divides "
            f"the {weights.shape[1]} inputs of {name}, got {flatten.spatial!r}"
        )
        raise ValueError(msg)
    return spatial, bool(flatten.channels_last)


def _pools(name: str, axes: int, waiting: Waiting) -> tuple[Pool, ...]:
    """Return the poolings with one number per axis."""
    pools = []
    for own, layer in waiting:
        if isinstance(layer, Flatten):
            continue
        if not axes:
            msg = (
                f"{own} is a pooling, but {name} behind it is a matrix, which takes no samples: put "
                "Flatten(spatial) between them, or leave the pooling out"
            )
            raise ValueError(msg)

        pools.append(pool_of(layer, name=own, axes=axes))
    return tuple(pools)


def pool_of(layer: AvgPool | MaxPool, *, name: str, axes: int) -> Pool:
    """Return a pooling with one number per axis."""

    def each(value: object, what: str) -> tuple[int, ...]:
        return _validate.per_axis(value, name=f"{what} of {name}", axes=axes)

    window = each(layer.window, "window")
    stride = window if layer.stride is None else each(layer.stride, "stride")
    dilation = each(layer.dilation if isinstance(layer, MaxPool) else 1, "dilation")
    return Pool(name, isinstance(layer, AvgPool), window, stride, dilation, layer.padding)


def _fits(before: Step, after: Step) -> None:
    """Check that a layer takes what the layer before it gives."""
    name, shapes = after.name, f"shape {after.weights.shape} after {before.weights.shape}"
    if before.axes_out != after.axes_in:
        why = (
            "put Flatten(spatial) between a convolution and a matrix"
            if before.axes_out and not after.axes_in
            else "behind a matrix there are no samples to convolve, pool or flatten"
            if not before.axes_out
            else "a signal keeps its axes from layer to layer"
        )
        msg = f"{name} must have as many axes as the layer before it, got {shapes}; {why}"
        raise ValueError(msg)
    if before.outputs != after.inputs:
        per = f"groups={after.groups}" if after.groups > 1 else f"Flatten({after.spatial})"
        how = f" with {per}" if after.groups > 1 or after.spatial else ""
        msg = (
            f"{name} must have {before.outputs} inputs on its second axis, as the layer before it "
            f"has outputs, got {after.inputs}{how}: {shapes}"
        )
        raise ValueError(msg)


def written_out(step: Step) -> HostFloats:
    """Return the kernel of a convolution without groups and dilation, zeros in their place."""
    k, groups = step.weights, step.groups
    c_out, c_in, *taps = k.shape
    reach = [d * (n - 1) + 1 if n else 0 for n, d in zip(taps, step.dilation, strict=True)]
    whole = np.zeros((c_out, c_in * groups, *reach))
    spread = tuple(slice(None, None, d) for d in step.dilation)
    for g, block in enumerate(np.split(k, groups)):
        rows = slice(g * (c_out // groups), (g + 1) * (c_out // groups))
        whole[(rows, slice(g * c_in, (g + 1) * c_in), *spread)] = block
    return whole
