"""The bound of a chain by a fixed number of Gram steps, with the arrays of the caller.

With B~ = fl(weights times quotients of multipliers) of T taps and q the smaller number of channels,

    ||B|| <= (1 + 3 u sqrt(T q)) ||B~|| + sqrt(T n) tiny (1 + max quotient),

since two roundings are relative to an entry, ||B~||_F <= sqrt(q) ||B~||, and what underflows in one
of n entries is the smallest normal number, a flushed weight times its quotient among it.  So
||B~|| by fixed steps (Theorem 25), for kernels on a grid between whose frequencies lies a known
factor (Theorem 10), gives the bound of Theorems 29, 30, 32 and 33 without a look at any value.

Where the entries of B come from is the same for all weights of a shape: the layers are read with
the numbers of their entries in place of the weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import autodiff, crossing, dtypes, libraries
from gramnorm._arrays.types import Array, DType, HostBools
from gramnorm._conv.bounds import conv_gram_iteration
from gramnorm._matrix.bounds import gram_iteration
from gramnorm._results import result_dtype
from gramnorm._rigour import angles
from gramnorm._rigour.fractions import float_above, root_above
from gramnorm._rigour.model import precision_of, up
from gramnorm.network import _steps
from gramnorm.network._coupling import LARGEST, Chain, Coupling
from gramnorm.network._layers import (
    Activation,
    AvgPool,
    ConvLayer,
    Flatten,
    MaxPool,
    Residual,
)
from gramnorm.network._steps import Layer, Step

_ROUNDINGS = 16
"""Units that restore what a factor of the power loses: 3 of beta, 1 of its half, 3 here, and spare."""


def numbered(layers: Sequence[Layer]) -> tuple[list[Array], list[Step]]:
    """Return the weights of a chain that fits together, and its steps with numbers for weights.

    Entries are numbered from 1 on through all layers, so that 0 stands where none is.
    """
    arrays: list[Array] = []
    described: list[Layer] = []
    count = 1
    for i, layer in enumerate(_steps.listed(layers, "layers")):
        if isinstance(layer, AvgPool | MaxPool | Flatten):
            described.append(layer)
            continue
        if isinstance(layer, Activation | Residual):
            kind = type(layer).__name__
            msg = f"layer {i} is a {kind}, which chain_certificate and chain_bound take, not this function"
            raise TypeError(msg)
        kernel = layer.kernel if isinstance(layer, ConvLayer) else layer
        array = _validate.real_floating(kernel, name=f"layer {i}")
        shape = tuple(int(n) for n in array.shape)
        size = math.prod(shape)
        numbers = np.arange(count, count + size, dtype=np.float64).reshape(shape)
        is_described = isinstance(layer, ConvLayer)
        described.append(dataclasses.replace(layer, kernel=numbers) if is_described else numbers)
        arrays.append(array)
        count += size
    return arrays, _steps.read(described)


def bound(
    arrays: Sequence[Array],
    chain: Chain,
    multipliers: Sequence[Array],
    *,
    steps: int,
    density: int,
) -> Array:
    """Return the bound as an array without axes, differentiable in weights and multipliers.

    The multipliers are all of the chain, those of both ends among them.
    """
    xp, like = libraries.namespace(arrays[0]), arrays[0]
    dtype = max(map(result_dtype, arrays), key=dtypes.bits)
    with libraries.plain_arithmetic(like):
        flat = [xp.reshape(xp.astype(a, dtype, copy=False), (-1,)) for a in arrays]
        zero = xp.zeros(1, dtype=dtype, device=libraries.device_of(like))
        entries = xp.concat([zero, *flat])
        # factors of layers stand beside B, and their shares go into the multipliers
        shares = [1.0, *np.exp(np.clip(np.cumsum(chain.scales), -LARGEST, LARGEST)).tolist()]
        x = [xp.astype(v, dtype, copy=False) * s for v, s in zip(multipliers, shares, strict=True)]
        x = _within_range(xp.concat(x))
        value = x[:1] / x[-1:]
        for segment in chain.segments:
            value = _times_power(value, _norm(segment, entries, x, steps, density), segment.depth)
        return xp.reshape(_times(value, _factor(chain, dtype)), ())


def _within_range(x: Array) -> Array:
    """Return multipliers whose quotients and their products with weights are in range; NaN stays.

    Any positive numbers serve.
    """
    xp = libraries.namespace(x)
    most = 2.0**300 if dtypes.bits(x.dtype) == 64 else 2.0**40
    low, high = xp.full_like(x, 1 / most), xp.full_like(x, most)
    return xp.where(x < low, low, xp.where(x > high, high, x))


def _coupling(segment: Coupling, entries: Array, x: Array) -> tuple[Array, Array]:
    """Return B as computed, and the largest of the quotients in it."""
    xp = libraries.namespace(x)
    chosen = segment.entries.astype(np.int64)
    b = xp.take(entries, crossing.indices(chosen.reshape(-1), like=entries), axis=0)
    even = xp.take(x, crossing.indices(segment.rows, like=x), axis=0)[:, None]
    odd = xp.take(x, crossing.indices(segment.columns, like=x), axis=0)[None, :]
    quotients = xp.where(_mask(segment.forward, like=x), even / odd, odd / even)
    spread = xp.reshape(quotients, (*quotients.shape, *[1] * (chosen.ndim - 2)))
    largest = xp.max(autodiff.without_gradient(quotients))
    return xp.reshape(b, chosen.shape) * spread, largest


def _norm(segment: Coupling, entries: Array, x: Array, steps: int, density: int) -> Array:
    """Return an upper bound on ||B||."""
    xp = libraries.namespace(x)
    b, largest = _coupling(segment, entries, x)
    prec = precision_of(b.dtype)
    rows, columns, *taps = b.shape
    count = math.prod(taps)
    if not taps:
        value = gram_iteration(b, steps=steps)
    else:
        value = conv_gram_iteration(b, [density * k for k in taps], steps=steps)
        # half of the distance of two frequencies, times half of the taps but one
        reaches = (math.pi * (k - 1) / (2 * density * k) for k in taps)
        factor = math.prod(1 / float(angles.cosine(reach)) for reach in reaches)
        value = value * up(factor, 8 * len(taps))
    relative = 3 * prec.unit * math.sqrt(count * min(rows, columns))
    lost = 1.01 * prec.tiny * math.sqrt(count * rows * columns * count) * (1 + largest)
    return xp.reshape(value, (1,)) * (1 + relative) + lost


def _times_power(value: Array, beta: Array, depth: int) -> Array:
    """Return value times (beta / 2)^depth, rounded up."""
    half = beta / 2 + precision_of(beta.dtype).tiny
    for _ in range(depth):
        value = _times(value, half)
    return value


def _times(value: Array, factor: Array | float) -> Array:
    """Return a product of positive numbers, rounded up; underflow is counted."""
    prec = precision_of(value.dtype)
    return value * factor * (1 + _ROUNDINGS * prec.unit) + 4 * prec.tiny


def _factor(chain: Chain, dtype: DType) -> float:
    """Return what stands beside the powers of beta / 2 and the ends, rounded up into range."""
    exact = chain.factor * Fraction(2) ** len(chain.segments)
    found = float_above(exact * Fraction(root_above(chain.square)))
    return max(found, precision_of(dtype).tiny)


def _mask(where: HostBools, *, like: Array) -> Array:
    xp = libraries.namespace(like)
    return xp.asarray(where, dtype=xp.bool, device=libraries.device_of(like))
