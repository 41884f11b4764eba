"""Kernels of the kinds that occur, and the layers of a ResNet-18."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Where weights of real layers are looked for."""

COMMON = (64, 64, 3, 3)


def gaussian(shape: tuple[int, ...], seed: int = 0) -> Any:
    """Return an untrained kernel: pure noise, the hard case of a search over frequencies.

    Its symbol is about as large at one frequency as at any other: for 64x64x3x3, nowhere below 0.9
    of the maximum.
    """
    return np.random.default_rng(seed).standard_normal(shape) / math.prod(shape[1:]) ** 0.5


def trained_like(shape: tuple[int, ...], seed: int = 0) -> Any:
    """Return a kernel dominated by its low frequencies, as trained ones often are.

    A Gaussian mixing of the channels under a smooth window, plus noise of half its norm.
    It was matched to the widest of the trained layers in the section "trained": the maximum near
    frequency 0, half of the frequencies or more above 0.5 of it, a tenth (here a twentieth) above
    0.9, and the two leading singular values within a tenth.
    """
    window = np.ones(())
    for taps in shape[2:]:
        side = np.hanning(taps + 2)[1:-1] ** 2
        window = np.multiply.outer(window, side / np.sum(side))
    mixing = np.random.default_rng(seed + 1).standard_normal(shape[:2]) / shape[1] ** 0.5
    return np.multiply.outer(mixing, window) + 0.5 * gaussian(shape, seed)


def decaying(shape: tuple[int, ...], seed: int = 0) -> Any:
    """Return noise whose matrix of output channels by all else has the singular values 1 / i."""
    flat = gaussian(shape, seed).reshape(shape[0], -1)
    u, _, vh = np.linalg.svd(flat, full_matrices=False)
    return ((u / np.arange(1, u.shape[1] + 1)) @ vh).reshape(shape)


def smooth(shape: tuple[int, ...], seed: int = 0) -> Any:
    """Return noise under a moving average of 20 taps along the last axis."""
    window = np.hanning(22)[1:-1]
    noise = gaussian((*shape[:-1], shape[-1] + len(window) - 1), seed)
    return np.apply_along_axis(np.convolve, -1, noise, window / np.linalg.norm(window), "valid")


def orthogonal_like(shape: tuple[int, ...], seed: int = 0) -> Any:
    """Return an orthogonal convolution with a hundredth of noise: singular values all near 1.

    A product of factors P + (I - P) z with orthogonal projectors P, k - 1 of them on each axis, which is
    unitary at every frequency.
    """
    rng = np.random.default_rng(seed)
    channels = shape[0]
    symbol = np.linalg.qr(rng.standard_normal((channels, channels)))[0]
    taps = symbol.reshape(channels, channels, *(1 for _ in shape[2:]))
    for axis, k in enumerate(shape[2:], 2):
        for _ in range(k - 1):
            basis = np.linalg.qr(rng.standard_normal((channels, channels // 2)))[0]
            stay = np.einsum("ij,jk...->ik...", basis @ basis.T, taps)
            room = [(0, 0)] * taps.ndim
            room[axis] = (0, 1)
            moved = np.roll(np.pad(taps - stay, room), 1, axis)
            taps = np.pad(stay, room) + moved
    return taps + 0.01 * gaussian(shape, seed)


@dataclass(frozen=True)
class Family:
    """A kernel in float32, as networks have them, and how it is used."""

    make: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] = (4, 8, 16, 32)


def _float32(make: Callable[..., Any], shape: tuple[int, ...]) -> Callable[[], Any]:
    return lambda: make(shape).astype(np.float32)


FAMILIES = {
    "trained-like 64x64x3x3": Family(_float32(trained_like, COMMON)),
    "Gaussian 64x64x3x3": Family(_float32(gaussian, COMMON)),
    "orthogonal-like 32x32x3x3": Family(_float32(orthogonal_like, (32, 32, 3, 3))),
    "1x1, Gaussian 64x64x1x1": Family(_float32(gaussian, (64, 64, 1, 1))),
    "7x7, trained-like 64x3x7x7": Family(_float32(trained_like, (64, 3, 7, 7))),
    "depthwise, Gaussian 64x1x3x3": Family(_float32(gaussian, (64, 1, 3, 3)), {"groups": 64}),
    "strided by 2, Gaussian 64x32x3x3": Family(_float32(gaussian, (64, 32, 3, 3)), {"stride": 2}),
    "512 taps, Gaussian 4x4x512": Family(_float32(gaussian, (4, 4, 512)), sizes=(8, 32, 128, 512)),
}


def trained_layers() -> dict[str, Family]:
    """Return convolutions of published networks, if their weights lie beside the repository."""
    if not (WEIGHTS / "weights.npz").exists():
        return {}
    layers = json.loads((WEIGHTS / "layers.json").read_text("utf-8"))["layers"]
    found = {}
    with np.load(WEIGHTS / "weights.npz") as weights:
        for layer in layers:
            if layer["kind"] == "conv":
                kernel = weights[layer["key"]]
                options = {name: layer[name] for name in ("stride", "dilation", "groups")}
                name = f"{layer['key']} {'x'.join(map(str, kernel.shape))}"
                found[name] = Family(lambda kernel=kernel: kernel, options)
    return found


@dataclass(frozen=True)
class Layer:
    """A convolution layer of a ResNet-18: kernel, stride, side of the image that enters."""

    shape: tuple[int, ...]
    stride: int
    n: int

    @property
    def padding(self) -> int:
        """Zeros on each side."""
        return self.shape[2] // 2

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{shape}, stride {self.stride}, n = {self.n}"


def _stage(channels: int, n: int) -> list[Layer]:
    """Return a stage that halves the image: two blocks, the first with a projection."""
    entry = Layer((channels, channels // 2, 3, 3), 2, 2 * n)
    projection = Layer((channels, channels // 2, 1, 1), 2, 2 * n)
    inner = Layer((channels, channels, 3, 3), 1, n)
    return [entry, inner, projection, inner, inner]


RESNET18 = [
    Layer((64, 3, 7, 7), 2, 224),
    *[Layer((64, 64, 3, 3), 1, 56)] * 4,
    *itertools.chain.from_iterable(_stage(c, n) for c, n in ((128, 28), (256, 14), (512, 7))),
]
"""The 20 convolution layers in the order of the network."""
