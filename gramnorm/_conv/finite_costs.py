"""What each way to bound a convolution of finite size costs, in seconds, and how close it comes.

==========  ====================================================================  ============
way         work                                                                  relative gap
==========  ====================================================================  ============
assembled   forming A^H A of order q; some 50 products with it, q^3 / 3           none
banded      forming its band; 80 products with A, sum of heights^2                none
searched    the symbol at 3^d frequencies for each first cell, on a grid of       sum over axes
            (5/4)^d (n + k - 1) per axis, most of it twice; 40 products with A    of ratio^3 / 2
==========  ====================================================================  ============

The ratio is (k - 1) / n, in blocks of the stride.  Only shapes are known beforehand, and a wrong
prediction costs time.  `limits` holds the rates with their measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gramnorm._arrays import dtypes, libraries, limits
from gramnorm._arrays.types import Array
from gramnorm._conv import finite_banded, finite_matrix
from gramnorm._conv.cells import first_count
from gramnorm._conv.finite_lower import window_size
from gramnorm._conv.geometry import Axis
from gramnorm._conv.symbol import undilated_stride


def assembled(taps: Array, axes: Sequence[Axis]) -> float:
    """Return the seconds of `finite_matrix.bracket`; inf where that takes too much memory."""
    q, groups = float(min(finite_matrix.sides(taps, axes))), int(taps.shape[1])
    gathered = finite_matrix.is_gathered(taps, axes)
    numbers, operations = (
        finite_matrix.gathering(taps, axes)
        if gathered
        else finite_matrix.assembly(taps, axes, len(axes))
    )
    if numbers > limits.ASSEMBLED_ENTRIES:
        return math.inf
    times = _multiplications(taps)
    forming = times * operations / limits.LARGE_RATE + groups * q**2 * limits.ENTRY_SECONDS
    if q <= limits.SQUARING_COLUMNS:
        each = limits.SQUARING_SECONDS + times * 8 * q**3 / limits.SMALL_RATE
    else:
        each = limits.CERTIFICATE_SECONDS + times * q**3 / 3 / limits.SMALL_RATE
    return limits.SQUARING_CALL + forming + groups * each


def banded(taps: Array, axes: Sequence[Axis]) -> float:
    """Return the seconds of `finite_banded.bracket` and its lower bound; inf as above."""
    groups, dims = int(taps.shape[1]), len(axes)
    taps, axes = finite_banded.narrowest_last(taps, axes)
    tall, last = finite_matrix.is_tall(taps, axes), axes[-1]
    order, points = float(min(finite_matrix.sides(taps, axes))), last.size if tall else last.outputs
    m, slots = order / points, last.taps * (last.copies() if tall else 1)
    side, block = min(_width(last, points, tall) * m, order), 2 * limits.WINDOW_BLOCK
    compared = slots**2 * (side / m + 1) * (block / m + 1)
    numbers, operations = finite_matrix.assembly(taps, axes, dims - 1)
    most = window_size(axes, groups * taps.shape[3])
    is_cut = any(a.mode != "zeros" and a.size > most for a in axes)
    if numbers > limits.ASSEMBLED_ENTRIES or max(side**2, compared) > limits.WINDOW:
        return math.inf
    if is_cut or not libraries.is_on_cpu(taps):
        return math.inf
    height = side - m / 2 + limits.WINDOW_BLOCK / 2  # on average
    area, work = order * height - height**2 / 2, order * height**2 - height**3 * 2 / 3
    terms = (10 + slots + 3 * (slots / m) ** 2) * area + 100 * slots * points
    blocks = order / limits.WINDOW_BLOCK * limits.WINDOW_SECONDS
    times = _multiplications(taps)
    each = terms * limits.TERM_SECONDS + blocks + times * work / limits.SMALL_RATE
    return times * operations / limits.LARGE_RATE + groups * each + 80 * _product(taps, axes)


def _width(axis: Axis, points: int, tall: bool) -> int:
    """Return how many points from one on are read by a row that reads it, about."""
    if axis.mode == "circular":
        return points
    reach = axis.reach
    if axis.mode != "zeros":  # what a margin repeats
        after = axis.stride * (axis.outputs - 1) + reach - axis.before - axis.size + 1
        reach = max(reach, 2 * axis.before, 2 * after)
    return min(reach // (1 if tall else axis.stride) + 1, points)


def searched(taps: Array, axes: Sequence[Axis], *, rtol: float) -> tuple[float, float]:
    """Return the seconds of the search for the supremum with what follows, and the relative gap."""
    _, groups, c_out, c_in = map(float, taps.shape)
    stride = undilated_stride(tuple(a.stride for a in axes), tuple(a.dilation for a in axes))
    extent = tuple(-(-a.taps // s) for a, s in zip(axes, stride, strict=True))
    sizes = [min(max(a.size // s, 1), a.outputs) for a, s in zip(axes, stride, strict=True)]
    block = c_out * c_in * math.prod(min(a.taps, s) for a, s in zip(axes, stride, strict=True))
    each = limits.FREQUENCY_SECONDS + groups * block * limits.BLOCK_ENTRY_SECONDS
    seconds: float = 3.0 ** sum(k > 1 for k in extent) * first_count(extent) * each
    ratios = [(k - 1) / n for k, n in zip(extent, sizes, strict=True)]
    copies = math.prod(1 if a.is_circle else a.copies() for a in axes)
    repeated = math.sqrt(copies) - 1
    if 0.2 * sum(r**2 for r in ratios) + repeated <= rtol:  # the supremum is near enough
        return seconds, 0.0
    grid = math.prod(1.25 * (n + k - 1) for k, n in zip(extent, sizes, strict=True)) / 2
    seconds += 3 * min(grid, limits.SEARCH_EVALUATIONS[0]) * each + 40 * _product(taps, axes)
    return seconds, sum(r**3 for r in ratios) / 2 + repeated


def _multiplications(taps: Array) -> int:
    """Return how many real multiplications one of two entries takes."""
    return 4 if dtypes.is_complex(taps.dtype) else 1


def _product(taps: Array, axes: Sequence[Axis]) -> float:
    """Return the seconds of a product with the operator or its adjoint, on average."""
    count, groups, c_out, c_in = map(float, taps.shape)
    there, back = c_in * math.prod(a.outputs for a in axes), c_out * math.prod(a.size for a in axes)
    there_rate, back_rate = (limits.READ_SECONDS + 2 * c / limits.SMALL_RATE for c in (c_out, c_in))
    reads = _multiplications(taps) * count * groups / 2 * (there * there_rate + back * back_rate)
    return limits.CORRELATION_SECONDS + reads
