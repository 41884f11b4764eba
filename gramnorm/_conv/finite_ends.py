"""Inputs continued by their own samples, at the ends and between them.

The matrix T^H T of a correlation T with reach rho, the distance between its first and last tap,
couples no samples that are farther apart.  Let an axis be covered by windows whose squares add up
to one, which rise and fall as cosines do over W samples or more, and let T_w be T on the samples of
a window.  Then (docs/theory.md, Theorem 27)

    ||T||^2 (1 - eta^2 / 4) <= max_w ||T_w||^2,   eta = pi rho / (2 W).

Only the first and the last window reach samples that are repeated.  The others are parts of one
and the same convolution without any padding, so that large images cost what small ones do.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gramnorm._arrays import limits
from gramnorm._arrays.types import Array, HostInts
from gramnorm._conv import cosines, finite_banded, finite_costs, finite_matrix
from gramnorm._conv.geometry import Axis
from gramnorm._results import Bounds
from gramnorm._rigour.model import up

Axes = tuple[Axis, ...]


@dataclasses.dataclass(frozen=True)
class Part(Axis):
    """Samples from `start` on, and outputs from `first` on, of a whole axis; the rest is zero."""

    whole: Axis
    start: int
    first: int

    @classmethod
    def of(cls, whole: Axis, start: int, size: int) -> Part:
        """Return `size` samples and all outputs that read them."""
        source = whole.sources() - start
        read = np.flatnonzero(np.any((source >= 0) & (source < size), axis=0))
        first, last = (int(read[0]), int(read[-1])) if read.size else (0, -1)
        fields = {f.name: getattr(whole, f.name) for f in dataclasses.fields(Axis)}
        before = whole.before + start - whole.stride * first
        changed = {"before": before, "size": size, "outputs": last - first + 1}
        return cls(**(fields | changed), whole=whole, start=start, first=first)

    def sources(self) -> HostInts:
        """Return which sample tap k of output o reads, shape (taps, outputs); -1 for zero."""
        source = self.whole.sources()[:, self.first : self.first + self.outputs] - self.start
        return np.asarray(np.where((source >= 0) & (source < self.size), source, -1))

    def copies(self) -> int:
        """Bound how often the continued input holds the same sample."""
        return self.whole.copies()

    def coincidences(self) -> int:
        """Bound how many taps of one output read the same sample."""
        return self.whole.coincidences()


def corners(taps: Array, axes: Sequence[Axis], most: int) -> list[Axes]:
    """Return operators on parts of the samples: along each axis the first and the last `most`.

    Those that are mirror images of others are left out; circles have no ends.
    """
    if any(a.mode == "circular" and a.size > most for a in axes):
        return []
    ends = []
    for number, a in enumerate(axes):
        starts = [0] if _mirrors(taps, axes, number) else [0, a.size - most]
        ends.append([a] if a.size <= most else [Part.of(a, i, most) for i in starts])
    return [*_with_outputs(itertools.product(*ends))]


def _with_outputs(operators: Iterable[Axes]) -> Iterator[Axes]:
    """Leave out operators without outputs: strides may pass over a part."""
    return (axes for axes in operators if all(a.outputs > 0 for a in axes))


def cheap_size(taps: Array, axes: Sequence[Axis]) -> int:
    """Return the samples per axis of corners whose matrices cost little."""
    _, groups, c_out, c_in = taps.shape
    # the cubes of sides, over all groups, stay below one
    side = limits.CORNER_SIDE / groups ** (1 / 3) / max(min(c_out, c_in), 1)
    return max(int(side ** (1 / len(axes))), 1)


def bracket(
    taps: Array, axes: Sequence[Axis], supremum: float, lower: float, *, rtol: float
) -> Bounds[float]:
    """Bracket the norm of the operator with taps (T, groups, c_out, c_in) by its windows.

    `supremum` bounds the symbol, `lower` the norm from below.  Inf where windows are too dear.
    """
    found = Bounds(0.0, math.inf)
    if any(a.mode == "circular" for a in axes):  # the ends meet
        return found
    for length in _lengths(axes, rtol=rtol):
        covers = [
            _Cover.of(a, length, is_mirrored=_mirrors(taps, axes, i)) for i, a in enumerate(axes)
        ]
        windows = [*_windows(covers)]
        is_cut = windows != [tuple(axes)]
        if is_cut and sum(_work(taps, w) for w in windows) <= limits.WINDOW_WORK:
            break
    else:
        return found
    above = supremum
    for window in windows:
        one = _bracket_of(taps, window, max(lower, found.lower), rtol=rtol)
        # the samples and outputs of an inner window need not all be there
        is_part = all(isinstance(w, Part) or w is a for w, a in zip(window, axes, strict=True))
        below = max(found.lower, one.lower) if is_part else found.lower
        found = dataclasses.replace(found, lower=below, cost=found.cost + one.cost)
        above = max(above, one.upper)
        if above == math.inf:
            break
    kept = math.prod(1 - cover.loss for cover in covers)
    return dataclasses.replace(found, upper=up(above / math.sqrt(kept), 8 * len(axes) + 8))


def _lengths(axes: Sequence[Axis], *, rtol: float) -> Iterator[float]:
    """Yield W over the reach, from where the windows lose little to where they still help."""
    slack = rtol / 8
    while slack < limits.WINDOWS_SLACK:
        # a factor (1 - eta^2 / 4)^(-1/2), about 1 + (pi rho / W)^2 / 32, per axis
        yield math.pi * math.sqrt(len(axes) / (32 * slack))
        slack *= 2


@dataclasses.dataclass(frozen=True)
class _Cover:
    """The windows of an axis, and eta^2 / 4: no less than what is lost by going over to them.

    The windows without repeated samples are parts of `inner`, an axis of zero padding.
    """

    ends: tuple[Axis, ...]
    inner: Axis | None
    loss: float

    @classmethod
    def of(cls, axis: Axis, length: float, *, is_mirrored: bool) -> _Cover:
        """Cover an axis by windows that rise and fall over `length` times the reach, or more."""
        n, before = axis.size, max(axis.before, 0)
        last = axis.stride * (axis.outputs - 1) + axis.reach - axis.before
        behind = max(last - (n - 1), 0)
        # from beside the samples that are repeated on one side to those on the other: slopes, and
        # between two of them as many samples as the reach
        span, least = n - 1 - before - behind, max(length * axis.reach, 1.0)
        slopes = math.floor((span + axis.reach) / (least + axis.reach)) if span > 0 else 0
        if axis.mode == "zeros":
            rise = least = math.ceil(least)
        elif slopes == 0:
            return cls((axis,), None, 0.0)
        else:
            least = (span + axis.reach) / slopes - axis.reach
            rise = math.ceil(least)
        eta = up(math.pi * axis.reach / (2 * least), 8)
        inner = _inner(axis, 2 * rise + axis.reach)
        if axis.mode == "zeros":
            return cls((), inner, up(eta**2 / 4))
        ends = [Part.of(axis, 0, before + rise)]
        if not is_mirrored:
            ends.append(Part.of(axis, n - behind - rise, behind + rise))
        return cls(tuple(ends), inner if slopes > 1 else None, up(eta**2 / 4))


def _inner(axis: Axis, size: int) -> Axis:
    """Return a correlation with zero padding that any `size` samples without copies are part of."""
    # with samples in front, since the stride need not take to the first one
    size += axis.stride - 1
    if axis.mode == "zeros" and axis.size <= size:
        return axis
    # and with all outputs that read one of them, however few the axis itself has
    outputs = (size - 1 + axis.reach) // axis.stride + 1
    return dataclasses.replace(axis, before=axis.reach, size=size, outputs=outputs, mode="zeros")


def _windows(covers: Sequence[_Cover]) -> Iterator[Axes]:
    """Yield the operators on windows that reach samples which are repeated along some axis."""
    each = [[*c.ends, *([] if c.inner is None else [c.inner])] for c in covers]
    for window in _with_outputs(itertools.product(*each)):
        if any(w is not c.inner for w, c in zip(window, covers, strict=True)):
            yield window


def _mirrors(taps: Array, axes: Sequence[Axis], number: int) -> bool:
    """Say whether the last window along an axis is the first one's mirror image."""
    return cosines.is_centred(axes[number]) and cosines.is_even_or_odd(taps, axes, number)


def _work(taps: Array, axes: Axes) -> float:
    """Return about how many operations the factorisations of the Gram matrices take."""
    side = min(finite_matrix.sides(taps, axes))
    band = min(min((2 * a.reach + a.stride) / a.size, 1.0) for a in axes)
    return float(taps.shape[1]) * side * (side * band) ** 2


def _bracket_of(taps: Array, axes: Axes, lower: float, *, rtol: float) -> Bounds[float]:
    if finite_costs.assembled(taps, axes) <= finite_costs.banded(taps, axes) < math.inf:
        return finite_matrix.bracket(taps, axes, rtol=rtol)
    return finite_banded.bracket(taps, axes, lower, rtol=rtol)
