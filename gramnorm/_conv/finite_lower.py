"""Convolutions of a finite size from below: a plane wave under a window, and Golub-Kahan steps.

Any vector proves a lower bound.  At the frequency of the supremum the top right singular vector of
the symbol, modulated and under a sine window, is almost optimal for large sizes, and its image is a
sum over pairs of taps, whatever the size.  Golub-Kahan steps on the operator itself make up for the
rest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import crossing, dtypes, libraries, limits
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._conv.ascent import top_pair
from gramnorm._conv.geometry import Axis, adjoint, correlate
from gramnorm._conv.sampling import Maximum
from gramnorm._conv.symbol import Symbol
from gramnorm._matrix import lanczos
from gramnorm._results import Bounds
from gramnorm._rigour import angles, sums
from gramnorm._rigour.model import HOST_UNIT, down

HostVector = npt.NDArray[np.inexact]


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
    def at(cls, symbol: Symbol, best: Maximum) -> Wave:
        """Take the top right singular vector of the symbol where its maximum was found."""
        taps, offsets = symbol.host_taps(best.block), symbol.offsets
        count, p, q = taps.shape
        phases = angles.unit_circle(2 * math.pi * (offsets @ best.turns))
        _, v = top_pair(np.tensordot(phases, taps, axes=1))
        images = (taps @ v) * phases[:, None]
        total = float(np.sum(np.linalg.norm(taps, axis=(1, 2))))
        # products and sums, and phases of angles that are not reduced
        units = 8 * (p + q + count + 64) + 40 * float(np.sum(np.max(np.abs(offsets), axis=0)))
        noise = units * HOST_UNIT * total**2
        return cls(best.turns, v, images, offsets, best.block, noise)

    def quotient(self, axes: Sequence[Axis]) -> float:
        """Return ||T x|| / ||x||, rounded down, for the wave under a sine window s per axis.

        The sums over outputs separate:

            ||T x||^2 = sum_{q, r} w_q^H w_r prod_axes sum_u s(u + q) s(u + r).
        """
        if len(self.offsets) > limits.WAVE_TAPS:
            return 0.0
        weights, norm, length = np.ones((len(self.offsets),) * 2), 1.0, 0
        for axis, q in zip(axes, self.offsets.T, strict=True):
            reach = int(q.max())
            first, last = axis.blocks(reach, whole=True)
            # any window will do: a central one of a long axis
            first += max(last - first - limits.WAVE_SAMPLES, 0) // 2
            n = min(last - first + 1, limits.WAVE_SAMPLES)
            if n <= 0:
                return 0.0
            window = np.sin(math.pi * np.arange(1, n + 1) / (n + 1))
            u = np.arange(max(first - reach, 0), min(first + n, axis.outputs))
            index = u[None, :] + q[:, None] - first
            inside = (index >= 0) & (index < n)
            values = np.where(inside, window[np.clip(index, 0, n - 1)], 0.0)
            weights = weights * (values @ values.T)
            norm *= float(window @ window)
            length += n
        gram = self.images.conj() @ self.images.T
        square = float(np.sum(gram.real * weights)) / norm
        return down(math.sqrt(max(square - self.noise * (1 + length / 64), 0.0)), 16)


def golub_kahan(
    taps: Array, axes: Sequence[Axis], wave: Wave | None, *, rtol: float
) -> Bounds[float]:
    """Bound the norm from below by Golub-Kahan steps on a window of the operator.

    They start from the wave, in its group; without one from a generic vector, in all groups.
    """
    xp = libraries.namespace(taps)
    if wave is not None:
        taps = taps[:, wave.group : wave.group + 1, ...]
    _, groups, c_out, c_in = taps.shape
    most = window_size(axes, groups * c_in)
    # a part of what is continued is a submatrix only where nothing of it is read as a copy
    is_cut = any(a.mode != "zeros" and a.size > most for a in axes)
    axes = tuple(a.window(most) for a in axes)
    if is_cut or any(a.outputs == 0 for a in axes):
        return Bounds(0.0, math.inf)
    shape = (groups * c_out, c_in, *(a.taps for a in axes))
    kernel = xp.reshape(xp.permute_dims(taps, (1, 2, 3, 0)), shape)
    x, y, products = top_vectors(kernel, axes, wave, groups=groups, rtol=rtol / 8)
    # || |K| |patches| || <= ||K||_F ||patches||_F, and a tap reads a sample once for each copy
    copies = math.prod(a.copies() for a in axes)
    return Bounds(sums.image_quotient(kernel, x, y, copies=copies), math.inf, products)


def window_size(axes: Sequence[Axis], c_in: int) -> int:
    """Return how many samples per axis a window for Golub-Kahan steps may have."""
    taps = math.prod(a.taps for a in axes)
    most = min(limits.WINDOW_INPUTS, limits.WINDOW_READS / taps)
    return max(int((most / c_in) ** (1 / len(axes))), 1)


def top_vectors(
    kernel: Array, axes: Sequence[Axis], wave: Wave | None, *, groups: int, rtol: float
) -> tuple[Array, Array, int]:
    """Return x, T x and the products spent, for x near the top right singular vector."""
    shape = (groups * kernel.shape[1], *(a.size for a in axes))
    products = 0

    def move(x: HostVector) -> Array:
        return crossing.from_host(x.reshape(shape), dtype=kernel.dtype, like=kernel)

    def normal(x: HostVector) -> HostVector:
        nonlocal products
        products += 2
        image = correlate(kernel, move(x), axes, groups)
        return crossing.host_array(adjoint(kernel, image, axes, groups)).reshape(-1)

    # fixed, and generic: the wave may be orthogonal to what it is to find, or have no real part
    start: HostVector = np.random.default_rng(0).standard_normal(math.prod(shape))
    if wave is not None:
        here = _sampled(wave, axes, shape)
        here = here if dtypes.is_complex(kernel.dtype) else here.real
        size = float(np.linalg.norm(here)) or 1.0
        start = here + limits.START_NOISE * size * start / np.linalg.norm(start)
    elif dtypes.is_complex(kernel.dtype):
        start = start.astype(np.complex128)
    x = move(lanczos.top_vector(normal, start, rtol=rtol, steps=limits.GOLUB_KAHAN_STEPS))
    return x, correlate(kernel, x, axes, groups), products + 1


def _sampled(wave: Wave, axes: Sequence[Axis], shape: tuple[int, ...]) -> HostVector:
    """Return the wave on the samples (c_in, *sizes) of the input, under a sine window."""
    x = np.ones((1, *shape[1:]), dtype=np.complex128)
    phase = np.zeros((1, *shape[1:]), dtype=np.int64)
    for a, (axis, turn) in enumerate(zip(axes, wave.turns, strict=True)):
        i, stride = np.arange(axis.size), axis.stride // math.gcd(axis.stride, axis.dilation)
        # with a dilation all classes of samples at once, each of them with its own wave
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
    return np.asarray(np.moveaxis(vector[phase[0]], -1, 0) * x).reshape(-1)
