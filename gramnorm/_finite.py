"""Convolutions of a finite size that are not circulant: zero padding above all.

Such an operator T is a compression of a circulant C with the same symbol on a slightly larger circle of N samples.
For inputs x and outputs y that vanish outside their windows and s_j >= ||F(2 pi j / N)||

    |y^H T x| <= sum_j s_j |Y_j| |X_j| <= (sum_j s_j^(2 - 2 a) |Y_j|^2)^(1/2) (sum_j s_j^(2 a) |X_j|^2)^(1/2),

two quadratic forms of *scalar* Toeplitz matrices of the size of the windows (docs/theory.md, Theorem 11).  They
know the size and nothing of the channels, so their largest eigenvalues are cheap, and below max_j s_j.
From below a plane wave under a sine window, at the frequency of the supremum, is almost optimal
for large sizes, and is improved by Golub-Kahan steps on the operator itself.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from gramnorm import _assemble, _lanczos, _search, _xp
from gramnorm._ascent import top_pair
from gramnorm._rounding import precision_of
from gramnorm._stack import bracket_stack
from gramnorm._symbol import Symbol
from gramnorm._typing import Array, HostFloats, Namespace
from gramnorm.geometry import Axis, Part, adjoint, correlate

SMALL = 256
"""Operators with a side of at most this are bracketed as matrices at once."""

POINTS = 2**22
"""Most frequencies of the grid of a scalar Toeplitz matrix."""

ENTRIES = 2**24
"""Most entries of the Toeplitz matrices of an axis."""

UNKNOWNS = 2**17
"""Most inputs of the window in which Golub-Kahan steps are taken."""

STEPS = 60

_HOST_UNIT = 2.0**-53


@dataclasses.dataclass
class Bracket:
    """Bounds on the norm of an operator, and the blocks of symbols and products spent."""

    lower: float
    upper: float
    cost: int = 0

    def is_within(self, rtol: float) -> bool:
        """Say whether the relative gap is at most `rtol`."""
        return self.upper - self.lower <= rtol * self.lower

    def narrow(self, lower: float, upper: float, cost: int) -> None:
        """Take what is better of another bracket of the same norm."""
        self.lower, self.upper = max(self.lower, lower), min(self.upper, upper)
        self.cost += cost


def bracket(taps: Array, axes: Sequence[Axis], *, rtol: float, xp: Namespace) -> Bracket:
    """Bracket the norm of the correlation with taps (T, groups, c_out, c_in) along `axes`, none of them empty."""
    # continued samples that no output reads do not count
    axes = tuple(a.inside() if a.inside().outputs == a.outputs else a for a in axes)
    groups, channels = taps.shape[1], (taps.shape[2], taps.shape[3])
    wide = taps
    if _xp.has_float64(_xp.device_of(taps), xp=xp):
        real = not _xp.is_complex(taps.dtype, xp=xp)
        wide = xp.astype(taps, xp.float64 if real else xp.complex128, copy=False)

    def matrix() -> tuple[float, float, int]:
        return _assemble.bracket(wide, axes, rtol=rtol, xp=xp)

    if _assemble.is_affordable(axes, channels, groups, most=SMALL):
        return Bracket(*matrix())
    symbol, best = _supremum(taps, axes, [a.stride for a in axes], rtol=rtol / 2, xp=xp)
    result = Bracket(0.0, best.upper * _repetition(axes), best.evaluations)
    zeros = all(a.mode == "zeros" for a in axes)
    if not zeros:
        result.narrow(0.0, *_round_the_circle(taps, axes, rtol=rtol / 2, xp=xp))
    inner = tuple(a if a.mode == "zeros" else a.inside() for a in axes)
    wave = Wave.at(symbol, best)
    strides = [a.stride // math.gcd(a.stride, a.dilation) for a in axes]
    parts = list(itertools.product(*(a.parts() for a in inner)))
    result.lower = max((wave.quotient(part, strides) for part in parts), default=0.0)

    def compressed(slack: float) -> tuple[float, float, int]:
        found = [
            compression(
                symbol, part, strides, best.upper, result.lower, slack=slack, rtol=rtol, xp=xp
            )
            for part in parts
        ]
        return 0.0, max((b for b, _ in found), default=0.0), sum(cost for _, cost in found)

    def improved() -> tuple[float, float, int]:
        return _golub_kahan(wide, inner, wave, strides, rtol=rtol, xp=xp), math.inf, 0

    def compressed_well() -> tuple[float, float, int]:
        # so that what is above the norm is a part of the gap asked for
        loss = max(best.upper - result.lower, 0.0)
        return compressed(min(max(0.5 * rtol * result.lower / loss, 1e-3), 0.05) if loss else 0.05)

    steps = [improved]
    if zeros:
        steps = [partial(compressed, 0.25), improved, compressed_well]
    if _assemble.is_affordable(axes, channels, groups, most=_assemble.ORDER):
        steps.append(matrix)
    for step in steps:
        if result.is_within(rtol):
            break
        result.narrow(*step())
    return result


def _supremum(
    taps: Array, axes: Sequence[Axis], strides: Sequence[int], *, rtol: float, xp: Namespace
) -> tuple[Symbol, _search.Maximum]:
    kernel_size, dilation = tuple(a.taps for a in axes), tuple(a.dilation for a in axes)
    return _search.supremum(taps, kernel_size, tuple(strides), dilation, rtol=rtol, xp=xp)


def _round_the_circle(
    taps: Array, axes: Sequence[Axis], *, rtol: float, xp: Namespace
) -> tuple[float, int]:
    """Bound a circular operator by all outputs that its stride visits, each as often as it is visited (Theorem 13)."""
    if not any(a.mode == "circular" and not a.is_circle for a in axes):
        return math.inf, 0
    steps = [math.gcd(a.stride, a.size) if a.mode == "circular" else a.stride for a in axes]
    visits = math.prod(
        -(-a.outputs * g // a.size)
        for a, g in zip(axes, steps, strict=True)
        if a.mode == "circular"
    )
    _, best = _supremum(taps, axes, steps, rtol=rtol, xp=xp)
    return best.upper * math.sqrt(visits) * (1 + 2.0**-50), best.evaluations


def _repetition(axes: Sequence[Axis]) -> float:
    """Return the norm of the continuation of the input, rounded up; circles need none."""
    copies = math.prod(1 if a.is_circle else a.copies() for a in axes)
    return math.sqrt(copies) * (1 + 2.0**-50) if copies > 1 else 1.0


# ------------------------------------------------------------------------------- upper bounds


def compression(
    symbol: Symbol,
    parts: Sequence[Part],
    strides: Sequence[int],
    supremum: float,
    lower: float,
    *,
    slack: float,
    rtol: float,
    xp: Namespace,
) -> tuple[float, int]:
    """Return an upper bound on the norm of one part by Theorem 11, and the frequencies evaluated.

    `supremum` bounds the norm of the symbol, `lower` is known to be below the norm of the operator; norms of
    the symbol are computed to about a fraction `slack` of their distance from the supremum.
    """
    extent = symbol.offsets.max(axis=0)
    inputs, outputs, circle = [], [], []
    for part, stride, q, k in zip(parts, strides, extent, symbol.offsets.T, strict=True):
        first, last = -(-(part.first - stride + 1) // stride), part.last // stride
        first, last = max(first, int(k.min())), min(last, part.outputs - 1 + int(q))
        if first > last:
            return 0.0, 0
        inputs.append(last - first + 1)
        outputs.append(part.outputs)
        # so large that going round never makes an input meet an output by another tap
        least = max(last + 1, int(q) - first + part.outputs, inputs[-1], part.outputs)
        circle.append(least + least // 4)
    if math.prod(circle) > POINTS:
        return math.inf, 0
    # frequencies whose norm is far below have no part in the largest eigenvalue
    level = max(supremum - 2 / slack * (supremum - lower), 0.0)
    norms, cost = _search.norms_on_grid(
        symbol,
        tuple(circle),
        tuple(int(k) + 1 for k in extent),
        ceiling=supremum,
        level=level,
        slack=slack,
        xp=xp,
    )
    if inputs == outputs:  # equal windows share the norm evenly
        return _toeplitz_bound(norms, inputs, level, rtol=rtol), cost
    # else the smaller one takes it all
    window = min(inputs, outputs, key=math.prod)
    value = _toeplitz_bound(norms**2 * (1 + 2.0**-52), window, level**2, rtol=rtol)
    return math.sqrt(value) * (1 + 2.0**-50), cost


def _toeplitz_bound(
    weights: HostFloats, window: Sequence[int], level: float, *, rtol: float
) -> float:
    """Bound the largest eigenvalue of the compression to a window of the circulant with eigenvalues `weights`.

    One axis after the other: for each frequency of the rest, the compression along an axis is at most its largest
    eigenvalue times the identity. Rows of weights below `level` count with their maximum.
    """
    bounds = []
    for order in itertools.permutations(range(weights.ndim)):
        rest = weights.transpose(order)
        for axis in order:
            columns = rest.reshape(rest.shape[0], -1).T
            values = np.max(columns, axis=1)
            high = np.flatnonzero(values > level)
            if high.size * window[axis] ** 2 > ENTRIES:
                high = high[:0]
            found = _toeplitz_norms(columns[high], window[axis], rtol=rtol)
            values[high] = np.minimum(values[high], found)
            rest = values.reshape(rest.shape[1:])
        bounds.append(float(rest))
    return min(bounds)


def _toeplitz_norms(weights: HostFloats, n: int, *, rtol: float) -> HostFloats:
    """Bound the norms of matrices of order n cut out of circulants with eigenvalues in the rows of `weights`."""
    size = weights.shape[1]
    lags = np.arange(n)
    turns = np.outer(np.arange(size), lags) % size / size
    sums = weights @ np.exp(2j * math.pi * turns) / size  # entry (a, b) has lag a - b
    lag = lags[:, None] - lags[None, :]
    matrices = np.where(lag >= 0, sums[:, np.abs(lag)], np.conj(sums[:, np.abs(lag)]))
    _, values, _ = bracket_stack(
        matrices, rtol=rtol / 16, dtype=np.float64, xp=_xp.numpy_namespace()
    )
    # entries err by kappa(N) + 24 u of the mean weight, hence a matrix by n times that
    errors = n * (4 * size + 60) * _HOST_UNIT * np.mean(weights, axis=1)
    return np.asarray(values + errors)


# ------------------------------------------------------------------------------- lower bounds


@dataclasses.dataclass(frozen=True)
class Wave:
    """The plane wave v exp(2 pi i turns . a) of a group, and the images w_q of its taps.

    Attributes
    ----------
    turns : host floats, shape (axes,)
    vector : host array, shape (q,)
    images : host array, shape (Q, p)
        w_q = K_q v exp(2 pi i turns . q).
    offsets : host ints, shape (Q, axes)
    group : int
    noise : float
        Bound on the relative error of a squared quotient, in units of the square of the last one.
    """

    turns: HostFloats
    vector: npt.NDArray[np.complex128]
    images: npt.NDArray[np.complex128]
    offsets: npt.NDArray[np.int64]
    group: int
    noise: float

    @classmethod
    def at(cls, symbol: Symbol, best: _search.Maximum) -> Wave:
        """Take the top right singular vector of the symbol where its maximum was found."""
        taps = symbol.host_taps(best.block)
        count, p, q = taps.shape
        turns = np.zeros(symbol.offsets.shape[1]) if best.turns is None else best.turns
        phases = np.exp(2j * math.pi * (symbol.offsets @ turns))
        _, v = top_pair(np.tensordot(phases, taps, axes=1))
        images = (taps @ v) * phases[:, None]
        sums = float(np.sum(np.linalg.norm(taps, axis=(1, 2))))
        noise = 8 * (p + q + count + 64) * _HOST_UNIT * sums**2
        return cls(turns, v, images, symbol.offsets, best.block, noise)

    def quotient(self, parts: Sequence[Part], strides: Sequence[int], most: int = 4096) -> float:
        """Return ||T x|| / ||x||, rounded down, for the wave under a sine window per axis.

        The sums over outputs separate: ||T x||^2 = sum_{q, r} w_q^H w_r prod_axes sum_u s(u + q) s(u + r).
        """
        weights, norm, length = np.ones((len(self.offsets),) * 2), 1.0, 0
        for part, stride, q in zip(parts, strides, self.offsets.T, strict=True):
            first, last = common_range(part, stride, int(q.max()))
            if first > last:
                return 0.0
            if last - first >= most:
                first = (first + last - most) // 2
                last = first + most - 1
            n = last - first + 1
            window = np.sin(math.pi * np.arange(1, n + 1) / (n + 1))
            u = np.arange(
                max(first - int(q.max()), 0), min(last - int(q.min()), part.outputs - 1) + 1
            )
            index = u[None, :] + q[:, None] - first
            inside = (index >= 0) & (index < n)
            values = np.where(inside, window[np.clip(index, 0, n - 1)], 0.0)
            weights = weights * (values @ values.T)
            norm *= float(window @ window)
            length += n
        gram = self.images.conj() @ self.images.T
        square = float(np.sum(gram.real * weights)) / norm
        return math.sqrt(max(square - self.noise * (1 + length / 64), 0.0)) * (1 - 2.0**-48)


def common_range(part: Part, stride: int, reach: int) -> tuple[int, int]:
    """Return the samples that all phases of the input of a part have, as far as outputs read them."""
    first, last = -(-part.first // stride), (part.last - stride + 1) // stride
    return max(first, 0), min(last, part.outputs - 1 + reach)


def _golub_kahan(
    taps: Array,
    axes: Sequence[Axis],
    wave: Wave,
    strides: Sequence[int],
    *,
    rtol: float,
    xp: Namespace,
) -> float:
    """Improve the wave on a window of the operator by Golub-Kahan steps; return the quotient reached."""
    taps = taps[:, wave.group, ...]
    count, c_out, c_in = taps.shape
    axes = tuple(a.window(_window(axes, c_in)) for a in axes)
    if any(a.outputs == 0 for a in axes):
        return 0.0
    kernel = xp.reshape(xp.permute_dims(taps, (1, 2, 0)), (c_out, c_in, *(a.taps for a in axes)))
    x, y = top_vectors(kernel, axes, wave, strides, rtol=rtol / 8, xp=xp)
    norm_k, norm_x, norm_y = (
        float(np.linalg.norm(_xp.host_array(a).astype(np.complex128))) for a in (taps, x, y)
    )
    # || |K| |patches| || <= ||K||_F ||patches||_F, and a tap reads a sample once at most
    prec = precision_of(kernel.dtype, xp=xp)
    error = 1.1 * prec.kappa(c_in * count) * norm_k * math.sqrt(count) * norm_x
    error += prec.underflow(c_in * count) * math.sqrt(2.0 * math.prod(y.shape))
    least = (norm_y * (1 - math.prod(y.shape) * 2.0**-51) - error) / norm_x
    return max(least * (1 - math.prod(x.shape) * 2.0**-51), 0.0) if math.isfinite(least) else 0.0


def _window(axes: Sequence[Axis], c_in: int) -> int:
    """Return how many samples per axis make a window of at most `UNKNOWNS` inputs."""
    return max(int((UNKNOWNS / c_in) ** (1 / len(axes))), 1)


def top_vectors(
    kernel: Array,
    axes: Sequence[Axis],
    wave: Wave,
    strides: Sequence[int],
    *,
    rtol: float,
    xp: Namespace,
) -> tuple[Array, Array]:
    """Return x and T x for an approximate top right singular vector x of the correlation of one group."""
    shape = (kernel.shape[1], *(a.size for a in axes))
    real = not _xp.is_complex(kernel.dtype, xp=xp)
    device = _xp.device_of(kernel)

    def move(x: npt.NDArray[np.inexact]) -> Array:
        return _xp.from_host(x, dtype=kernel.dtype, device=device, xp=xp)

    def normal(x: npt.NDArray[np.inexact]) -> npt.NDArray[np.inexact]:
        image = correlate(kernel, move(x.reshape(shape)), axes, 1)
        return _xp.host_array(adjoint(kernel, image, axes, 1)).reshape(-1)

    wave_here = _start(wave, axes, strides, shape).reshape(-1)
    start: npt.NDArray[np.inexact] = wave_here.real if real else wave_here
    # fixed, and generic: the wave may be orthogonal to what it is to find, or have no real part
    noise = np.random.default_rng(0).standard_normal(start.size)
    size = float(np.linalg.norm(start)) or 1.0
    start = start + 1e-2 * size * noise / np.linalg.norm(noise)
    x = move(_lanczos.top_vector(normal, start, rtol=rtol, steps=STEPS).reshape(shape))
    return x, correlate(kernel, x, axes, 1)


def _start(
    wave: Wave, axes: Sequence[Axis], strides: Sequence[int], shape: tuple[int, ...]
) -> npt.NDArray[np.complex128]:
    """Return the wave on the samples of the input, under a sine window."""
    x = np.ones((1, *shape[1:]), dtype=np.complex128)
    phase = np.zeros((1, *shape[1:]), dtype=np.int64)
    for a, (axis, stride, turn) in enumerate(zip(axes, strides, wave.turns, strict=True)):
        i = np.arange(axis.size)
        v = (i + axis.before) // axis.dilation
        values = np.sin(math.pi * (i + 1) / (axis.size + 1)) * np.exp(
            2j * math.pi * turn * (v // stride)
        )
        place = [1] * len(shape)
        place[1 + a] = axis.size
        x = x * values.reshape(place)
        phases = min(stride, axis.taps)
        phase = phase * phases + np.minimum(v % stride, phases - 1).reshape(place)
    vector = wave.vector.reshape(-1, shape[0])
    return np.asarray(np.moveaxis(vector[phase[0]], -1, 0) * x)
