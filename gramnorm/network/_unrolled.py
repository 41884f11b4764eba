"""Links of a chain at one size: each layer a matrix, each neuron with a multiplier of its own.

With zero padding an output reads a sample by one tap at most, so a layer's matrix holds entries of
its kernel and zeros, and averages are sums of columns of the matrix behind them.  Only a maximum
cuts the chain.  If its windows do not overlap, R is a number per window, which the samples in it
share, and samples that no window reads are left out; otherwise it is one per channel (docs/theory.md,
Theorem 33).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from gramnorm import _validate
from gramnorm._arrays.types import HostFloats, HostInts
from gramnorm._conv.geometry import Axis
from gramnorm._rigour.model import HOST_UNIT, up
from gramnorm.network._links import Link, normalised
from gramnorm.network._steps import Step

_SMALLEST = 2.0**-1074

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Place:
    """What a step reads: samples per axis in front of each pooling and of itself, and its own."""

    sizes: tuple[Shape, ...]
    pools: tuple[tuple[Axis, ...], ...]
    own: tuple[Axis, ...]

    @property
    def outputs(self) -> Shape:
        """The samples per axis of the output."""
        return tuple(axis.outputs for axis in self.own)


def places(steps: Sequence[Step], input_shape: int | Sequence[int]) -> list[Place]:
    """Return the sizes of all signals, once the padding of each layer is known."""
    if not steps[0].axes_in:
        msg = f"input_shape is for chains that begin with samples, but {steps[0].name} is a matrix"
        raise ValueError(msg)
    shape = _validate.per_axis(input_shape, name="input_shape", axes=steps[0].axes_in)
    found = []
    for step in steps:
        sizes, pools = [shape], []
        for pool in step.pools:
            how = pool.window, pool.stride, pool.dilation, pool.padding
            pools.append(_axes(pool.name, sizes[-1], *how))
            sizes.append(tuple(axis.outputs for axis in pools[-1]))
        if step.spatial and step.spatial != sizes[-1]:
            msg = (
                f"Flatten before {step.name} must have the samples that reach it from this "
                f"input_shape, {sizes[-1]}, got {step.spatial}"
            )
            raise ValueError(msg)
        own: tuple[Axis, ...] = ()
        if step.axes_out:
            if step.padding is None:
                msg = (
                    f"{step.name} must say its padding when input_shape is given: "
                    "gn.ConvLayer(kernel, padding=...)"
                )
                raise ValueError(msg)
            how = step.weights.shape[2:], step.stride, step.dilation, step.padding
            own = _axes(step.name, sizes[-1], *how)
        found.append(Place(tuple(sizes), tuple(pools), own))
        shape = found[-1].outputs
    return found


def _axes(
    name: str, sizes: Shape, taps: Shape, stride: Shape, dilation: Shape, padding: _validate.Padding
) -> tuple[Axis, ...]:
    """Return the axes of a correlation with zero padding that has outputs."""
    reach = tuple(d * (k - 1) for k, d in zip(taps, dilation, strict=True))
    pads = _validate.pads(padding, "zeros", reach=reach, stride=stride, sizes=sizes)
    assert pads is not None
    described = zip(taps, stride, dilation, pads, sizes, reach, strict=True)
    axes = tuple(
        Axis(k, s, d, lo, n, max((n + lo + hi - r - 1) // s + 1, 0), "zeros")
        for k, s, d, (lo, hi), n, r in described
    )
    if not all(axis.outputs for axis in axes):
        msg = (
            f"{name} has no output at this input_shape: {sizes} samples reach it, and it needs "
            f"{tuple(r + 1 for r in reach)} with the padding"
        )
        raise ValueError(msg)
    return axes


def neurons(steps: Sequence[Step], found: Sequence[Place]) -> int:
    """Return the number of inputs, neurons and outputs of a chain in all."""
    counts = [s.outputs * math.prod(p.outputs) for s, p in zip(steps, found, strict=True)]
    return steps[0].inputs * math.prod(found[0].sizes[0]) + sum(counts)


def links(
    steps: Sequence[Step],
    norms: Sequence[float],
    slopes: Sequence[Fraction],
    found: Sequence[Place],
) -> list[Link]:
    """Return the links, at one size, of steps of at most these norms."""
    chain: list[Link] = []
    for step, norm, slope, place in zip(steps, norms, [*slopes, Fraction(1)], found, strict=True):
        last = max((i + 1 for i, p in enumerate(step.pools) if not p.is_average), default=0)
        link = _link(step, norm, slope, place, last)
        if last:
            before, link = _cut(chain[-1] if chain else None, link, step, place, last)
            chain[-1:] = [] if before is None else [before]
        chain.append(link)
    return chain


def _link(step: Step, norm: float, slope: Fraction, place: Place, cut: int) -> Link:
    """Return the matrix of a step with the averages behind its last maximum."""
    kernel, norm, factor = normalised(step, norm)
    rows = _rows(kernel, step, place)
    doubts = None
    for pool, axes in reversed([*zip(step.pools, place.pools, strict=True)][cut:]):
        tables = [np.sum(axis.links(), axis=0) for axis in axes]

        def spread(x: HostFloats, tables: Sequence[HostFloats] = tables) -> HostFloats:
            for i, table in enumerate(tables, 2):
                x = np.moveaxis(np.tensordot(x, table, axes=([i], [0])), -1, i)
            return x

        terms = math.prod(int(np.max(np.sum(table, axis=0))) for table in tables)
        rows, doubts = _of_sums(spread, rows, doubts, terms=terms)
        norm, factor = norm * pool.count * math.sqrt(pool.square), factor / pool.count
    weights = rows.reshape(len(rows), -1)
    wrong = None if doubts is None else doubts.reshape(weights.shape)
    shape = step.outputs, *place.outputs
    columns = np.arange(weights.shape[1])
    return Link(
        weights=weights,
        doubts=wrong,
        norm=norm,
        stride=(),
        inputs=columns,
        outputs=np.arange(math.prod(shape)),
        shape=shape,
        factor=factor * slope,
        is_cut=False,
        square=Fraction(1),
    )


def _rows(kernel: HostFloats, step: Step, place: Place) -> HostFloats:
    """Return what each output of a step reads, shape (outputs, c_in, *sizes)."""
    if not step.axes_out:
        if not step.channels_last:
            return kernel.reshape(len(kernel), step.inputs, *step.spatial)
        return np.moveaxis(kernel.reshape(len(kernel), *step.spatial, step.inputs), -1, 1)
    axes = step.axes_out
    for axis in place.own:  # one tap gives way to its axes of outputs and samples
        undilated = dataclasses.replace(axis, taps=axis.reach + 1, dilation=1)
        kernel = np.tensordot(kernel, undilated.links(), axes=([2], [0]))
    order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    sizes = [axis.size for axis in place.own]
    return np.transpose(kernel, order).reshape(-1, step.inputs, *sizes)


def _of_sums(
    spread: Callable[[HostFloats], HostFloats],
    weights: HostFloats,
    doubts: HostFloats | None,
    *,
    terms: int,
) -> tuple[HostFloats, HostFloats | None]:
    """Return sums of at most so many weights, as `spread` forms them, and their doubts."""
    if terms == 1 and doubts is None:
        return spread(weights), None
    # a sum of m terms errs by (m - 1) u / (1 - (m - 1) u) of their moduli at most, and each term by
    # the smallest number where scaling made it subnormal; products here may underflow as well
    unit = (terms - 1) * HOST_UNIT / (1 - (terms - 1) * HOST_UNIT)
    error = unit * spread(np.abs(weights)) + (2 * terms + 4) * _SMALLEST
    if doubts is not None:
        error = error + spread(doubts)
    return spread(weights), up(error, 2 * terms + 8)


def _cut(
    before: Link | None, link: Link, step: Step, place: Place, last: int
) -> tuple[Link | None, Link]:
    """Return the links on both sides of a maximum, which is the last of as many poolings."""
    owners = _owners(place.pools[0]) if last == 1 else None
    samples, pooled = math.prod(place.sizes[0]), place.sizes[last]
    if owners is not None:
        read = np.tile(owners >= 0, step.inputs)
        windows = math.prod(pooled)
        outputs = np.repeat(np.arange(step.inputs), samples) * windows + np.tile(
            owners, step.inputs
        )
        link = dataclasses.replace(link, is_cut=True)
        if before is not None:
            before = dataclasses.replace(
                before,
                weights=before.weights[read],
                doubts=None if before.doubts is None else before.doubts[read],
                outputs=outputs[read],
                shape=(step.inputs, *pooled),
            )
        return before, link
    channels = np.repeat(np.arange(step.inputs), math.prod(pooled))
    square = math.prod((p.square for p in step.pools[:last]), start=Fraction(1))
    link = dataclasses.replace(link, inputs=channels, is_cut=True, square=square)
    if before is not None:
        own = np.repeat(np.arange(step.inputs), samples)
        before = dataclasses.replace(before, outputs=own, shape=(step.inputs,))
    return before, link


def _owners(axes: Sequence[Axis]) -> HostInts | None:
    """Return the window of each sample, -1 for none; None if windows overlap or all are empty."""
    each = []
    for axis in axes:
        links = np.sum(axis.links(), axis=0)
        if np.max(np.sum(links, axis=0)) > 1:
            return None
        each.append(np.where(np.any(links, axis=0), np.argmax(links, axis=0), -1))
    whole = np.zeros(1, dtype=np.int64)
    for owner, axis in zip(each, axes, strict=True):
        joined = whole[:, None] * axis.outputs + owner
        whole = np.where((whole[:, None] < 0) | (owner < 0), -1, joined).reshape(-1)
    return whole if np.any(whole >= 0) else None
