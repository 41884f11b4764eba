"""Links: the linear maps between two activations of a chain, and where it is cut.

An average over windows that do not overlap, between an activation and a convolution, is one kernel
with it,

    y[o] = sum_t K[t] p[s o + t],  p[q] = 1/w sum_j x[r q + j]:   stride r s, taps r t + j,

whose entries are those of K; the 1/w is kept apart as a fraction.  A cut ends a segment
with a weight R per channel and begins the next with the same: what stands there has a constant
between both that does not depend on R (docs/theory.md, Theorem 33).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm._arrays import limits
from gramnorm._arrays.types import HostFloats, HostInts
from gramnorm.network._steps import Pool, Step, written_out


@dataclasses.dataclass(frozen=True, eq=False)
class Link:
    """A linear map ``factor * W``, and what stands before it.

    Attributes
    ----------
    weights : host floats
        W as computed, of norm about one: a matrix, or a kernel without dilation and groups.
    doubts : host floats or None
        How far entries of W may be from the exact ones; None where each is exact or subnormal.
    norm : float
        About an upper bound on the norm of W.
    stride : tuple of int
        Of a kernel; empty for a matrix.
    inputs, outputs : host ints
        Which multiplier of the layer before, and of this one, a column and a row of W share.
    shape : tuple of int
        Of the multipliers of this layer.
    factor : Fraction
        Positive: a power of two, averages, slopes of the activation behind.
    is_cut : bool
        Whether a segment begins here.
    square : Fraction
        The square of the constant of what stands at the cut.
    """

    weights: HostFloats
    doubts: HostFloats | None
    norm: float
    stride: tuple[int, ...]
    inputs: HostInts
    outputs: HostInts
    shape: tuple[int, ...]
    factor: Fraction
    is_cut: bool
    square: Fraction


def links(steps: Sequence[Step], norms: Sequence[float], slopes: Sequence[Fraction]) -> list[Link]:
    """Return the links, for every size, of steps of at most these norms, none of which is zero.

    There is one slope for each activation between two steps.
    """
    after = [*slopes, Fraction(1)]
    return [
        _link(step, norm, slope, is_first=not i)
        for i, (step, norm, slope) in enumerate(zip(steps, norms, after, strict=True))
    ]


def normalised(step: Step, norm: float) -> tuple[HostFloats, float, Fraction]:
    """Return weights written out over a power of two, about their norm, and the power."""
    norm = min(norm, np.finfo(np.float64).max)
    exponent = int(np.frexp(norm)[1])
    weights = np.ldexp(written_out(step), -exponent)
    return weights, math.ldexp(norm, -exponent), Fraction(2) ** exponent


def _link(step: Step, norm: float, slope: Fraction, *, is_first: bool) -> Link:
    """Return one link; what is not summed into its kernel stands at a cut."""
    weights, norm, factor = normalised(step, norm)
    stride, square = step.stride, Fraction(1)
    is_summed = not is_first and _averages_in_kernel(step)
    for pool in reversed(step.pools):
        if is_summed:
            weights = _summed(weights, pool)
            stride = tuple(s * r for s, r in zip(stride, pool.stride, strict=True))
            norm, factor = norm * pool.count * math.sqrt(pool.square), factor / pool.count
        else:
            square *= pool.square
    inputs = np.arange(step.inputs)
    samples = math.prod(step.spatial)
    return Link(
        weights=weights,
        doubts=None,
        norm=norm,
        stride=stride,
        inputs=np.tile(inputs, samples) if step.channels_last else np.repeat(inputs, samples),
        outputs=np.arange(step.outputs),
        shape=(step.outputs,),
        factor=factor * slope,
        is_cut=is_first or bool(step.spatial) or bool(step.pools and not is_summed),
        square=square,
    )


def _averages_in_kernel(step: Step) -> bool:
    """Say whether the poolings before a convolution are averages that make one kernel with it.

    They have few phases, and no overlap: else an average that a finite signal lacks, where the
    convolution reads a zero, could not be left out by leaving out samples.
    """
    phases = math.prod(step.stride) * math.prod(math.prod(p.stride) for p in step.pools)
    are_apart = all(p.is_average and math.prod(p.overlaps) == 1 for p in step.pools)
    return bool(step.axes_out) and are_apart and phases <= limits.CHAIN_PHASES


def _summed(weights: HostFloats, pool: Pool) -> HostFloats:
    """Return the kernel behind sums over windows of its input, which do not overlap."""
    tails = [r * (k - 1) + 1 for k, r in zip(weights.shape[2:], pool.stride, strict=True)]
    sizes = [n + w - 1 for n, w in zip(tails, pool.window, strict=True)]
    whole = np.zeros((*weights.shape[:2], *sizes))
    for first in itertools.product(*map(range, pool.window)):
        ends = zip(first, tails, pool.stride, strict=True)
        every: tuple[Any, ...] = (..., *(slice(j, j + n, r) for j, n, r in ends))
        whole[every] = weights
    return whole


def segments(found: Sequence[Link]) -> list[list[Link]]:
    """Part the links at their cuts, and before that where signals would have too many phases."""
    parts: list[list[Link]] = []
    current: list[Link] = []
    phases = 1
    for link in reversed(found):
        if current and (current[0].is_cut or phases * math.prod(link.stride) > limits.CHAIN_PHASES):
            parts.append(current)
            current, phases = [], 1
        current = [link, *current]
        phases *= math.prod(link.stride)
    return [current, *reversed(parts)]


def lifted(x: HostFloats, stride: tuple[int, ...], rates: tuple[int, ...]) -> HostFloats:
    """Return a strided kernel between signals split into phases: a kernel of stride 1.

    Sample q of phase a of the output is sample ``rate * q + a``, and reads by tap t the sample
    ``stride (rate q + a) + t`` of the input, of rate ``stride * rate``. Channels come first, their
    phases within.
    """
    taps = x.shape[2:]
    before = tuple(s * r for s, r in zip(stride, rates, strict=True))
    if all(r == 1 for r in before):
        return x
    lasts = zip(stride, rates, taps, before, strict=True)
    reach = [(s * (r - 1) + k - 1) // b + 1 for s, r, k, b in lasts]
    whole = np.zeros((x.shape[0], *rates, x.shape[1], *before, *reach))
    for phase in itertools.product(*map(range, rates)):
        for tap in itertools.product(*map(range, taps)):
            read = [s * a + t for s, a, t in zip(stride, phase, tap, strict=True)]
            of, at = zip(*(divmod(i, b) for i, b in zip(read, before, strict=True)), strict=True)
            every: tuple[Any, ...] = (slice(None), *phase, slice(None), *at, *of)
            one: tuple[Any, ...] = (..., *tap)
            whole[every] = x[one]
    return whole.reshape(x.shape[0] * math.prod(rates), x.shape[1] * math.prod(before), *reach)
