"""Random networks of all kinds of layers, written out for one input, and their largest Jacobian.

A maximum acts on the difference of two inputs as a matrix that takes a mean of each window. The
norm of a Jacobian is convex in each slope and each mean, so the supremum is at patterns of 0 and 1
and at choices of one sample per window. Convolutions and averages are written out as matrices,
entry by entry, from lists of what each output reads.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import gramnorm as gn

CHOICES = 256  # of patterns and samples that are all tried; among more, the search climbs

Pads = list[tuple[int, int]] | None
Choices = list[tuple[int | None, ...]]


def windows(
    shape: tuple[int, ...],
    taps: tuple[int, ...],
    pads: Pads,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[int, ...], Choices]:
    """Return the samples per axis of an output, and which sample each reads by each tap.

    None stands for a zero of the padding; with `pads` None the input is a circle.
    """
    ends = (
        pads
        if pads is not None
        else [(0, d * (k - 1)) for k, d in zip(taps, dilation, strict=True)]
    )
    sizes = tuple(
        max((n + sum(p) - d * (k - 1) - 1) // s + 1, 0)
        for n, p, k, s, d in zip(shape, ends, taps, stride, dilation, strict=True)
    )
    found = []
    for at in itertools.product(*map(range, sizes)):
        reads: list[int | None] = []
        for tap in itertools.product(*map(range, taps)):
            place = [
                s * o + d * t - (0 if pads is None else p[0])
                for o, t, s, d, p in zip(at, tap, stride, dilation, ends, strict=True)
            ]
            if pads is None:
                place = [i % n for i, n in zip(place, shape, strict=True)]
            inside = all(0 <= i < n for i, n in zip(place, shape, strict=True))
            reads.append(int(np.ravel_multi_index(place, shape)) if inside else None)
        found.append(tuple(reads))
    return sizes, found


def correlation(kernel: np.ndarray, reads: Choices, samples: int, groups: int = 1) -> np.ndarray:
    """Return the matrix of a correlation whose outputs read these samples, entry by entry."""
    c_out, c_in = kernel.shape[:2]
    flat = kernel.reshape(c_out, c_in, -1)
    matrix = np.zeros((c_out, len(reads), c_in * groups, samples))
    for o, i in itertools.product(range(c_out), range(c_in)):
        group = o // (c_out // groups)
        for at, window in enumerate(reads):
            for tap, read in enumerate(window):
                if read is not None:
                    matrix[o, at, group * c_in + i, read] += flat[o, i, tap]
    return matrix.reshape(c_out * len(reads), c_in * groups * samples)


@dataclasses.dataclass
class Network:
    """A chain as the package takes it, and what it does to one size of input.

    `parts` are matrices, None for an activation, and for a maximum the number of channels and what
    its windows read. `inputs` is the size of the input, samples and channels, `shape` its
    samples per axis where all layers say their padding.
    """

    inputs: int
    shape: tuple[int, ...] | None
    layers: list[Any]
    slopes: list[float]
    parts: list[np.ndarray | tuple[int, Choices] | None]

    @property
    def scale(self) -> float:
        return math.prod(self.slopes)


class Builder:
    """A random network, put together from front to back."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.axes = int(rng.choice([1, 1, 2]))
        self.circular = bool(rng.random() < 0.15)
        self.channels = int(rng.integers(1, 3))
        self.has_vanished = False
        sizes = [2, 3, 4, 6] if self.circular else range(2, 9 if self.axes == 1 else 5)
        self.shape = tuple(int(n) for n in rng.choice(sizes, self.axes))
        said = None if self.circular or rng.random() < 0.2 else self.shape
        self.made = Network(self.channels * math.prod(self.shape), said, [], [], [])

    def per_axis(self, most: int) -> tuple[int, ...]:
        return tuple(int(n) for n in self.rng.integers(1, most + 1, self.axes))

    def pads(self, taps: tuple[int, ...]) -> Pads:
        if self.circular:
            return None
        return [(int(self.rng.integers(k + 1)), int(self.rng.integers(k + 1))) for k in taps]

    def stride(self, most: int) -> tuple[int, ...]:
        """Return a stride, on a circle one that divides its size."""
        stride = self.per_axis(most) if self.rng.random() < 0.6 else (1,) * self.axes
        if self.circular and any(n % s for n, s in zip(self.shape, stride, strict=True)):
            return (1,) * self.axes
        return stride

    def read(
        self, taps: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
    ) -> tuple[int, Choices, Any]:
        """Return the samples so far and what windows read of them, and go on with the outputs.

        The padding comes last.
        """
        before, pads = math.prod(self.shape), self.pads(taps)
        self.shape, reads = windows(self.shape, taps, pads, stride, dilation)
        self.has_vanished |= 0 in self.shape
        return before, reads, None if self.made.shape is None else pads

    def pool(self) -> None:
        window, ones = self.per_axis(3), (1,) * self.axes
        stride = window if self.rng.random() < 0.4 and not self.circular else self.stride(3)
        given = None if stride == window else stride
        if self.rng.random() < 0.5:
            before, reads, pads = self.read(window, stride, ones)
            self.made.layers.append(gn.AvgPool(window, given, padding=pads or 0))
            each = np.full((1, 1, *window), 1 / math.prod(window))
            single = correlation(each, reads, before)
            self.made.parts.append(np.kron(np.eye(self.channels), single))
        else:
            dilation = self.per_axis(2)
            _, reads, pads = self.read(window, stride, dilation)
            self.made.layers.append(gn.MaxPool(window, given, dilation, padding=pads or 0))
            self.made.parts.append((self.channels, reads))

    def conv(self) -> None:
        taps, dilation, stride = self.per_axis(3), self.per_axis(2), self.stride(2)
        out = int(self.rng.integers(1, 3))
        groups = 2 if self.channels == out == 2 and self.rng.random() < 0.3 else 1
        kernel = self.weights((out, self.channels // groups, *taps))
        before, reads, pads = self.read(taps, stride, dilation)
        self.made.parts.append(correlation(kernel, reads, before, groups))
        plain = stride == dilation == (1,) * self.axes and groups == 1 and pads is None
        layer = gn.ConvLayer(kernel, stride=stride, dilation=dilation, groups=groups, padding=pads)
        self.made.layers.append(kernel if plain and self.rng.random() < 0.5 else layer)
        self.channels = out

    def head(self) -> None:
        last = bool(self.rng.random() < 0.5)
        samples = math.prod(self.shape)
        self.made.layers.append(gn.Flatten(self.shape, channels_last=last))
        n = int(self.rng.integers(1, 4))
        head = self.weights((n, self.channels * samples))
        self.made.layers.append(head)
        if last:  # our vectors hold the samples of a channel together
            head = np.stack(
                [
                    head[:, i * self.channels + c]
                    for c in range(self.channels)
                    for i in range(samples)
                ],
                axis=1,
            )
        self.made.parts.append(head)
        self.channels = n

    def dense(self) -> None:
        n = int(self.rng.integers(1, 4))
        self.made.layers.append(self.weights((n, self.channels)))
        self.made.parts.append(self.made.layers[-1])
        self.channels = n

    def weights(self, shape: tuple[int, ...]) -> np.ndarray:
        spread = self.rng.choice([0.0, 1.0, 3.0])  # so that channels need different weights
        rows = np.exp(spread * self.rng.standard_normal((shape[0], *[1] * (len(shape) - 1))))
        columns = np.exp(spread * self.rng.standard_normal((1, shape[1], *[1] * (len(shape) - 2))))
        return rows * columns * self.rng.standard_normal(shape)


def network(rng: np.random.Generator) -> Network:
    """Return a random chain of all kinds of layers with at least one sample everywhere."""
    while True:
        build = Builder(rng)
        convs, heads = int(rng.integers(1, 4)), int(rng.integers(3))
        for i in range(convs + heads):
            pools = int(rng.choice(3, p=[0.5, 0.4, 0.1])) if i <= convs else 0
            if i:
                build.made.slopes.append(float(rng.choice([1.0, 1.0, 0.25, 0.3])))
                build.made.parts.append(None)
            behind = i > 0  # an activation, which may also stand on the other side of what follows
            for _ in range(pools):
                build.pool()
                behind = behind and may_be_exchanged(build.made.layers[-1])
                if behind and rng.random() < 0.2:
                    build.made.parts.append(None)
            if build.has_vanished:
                break
            (build.conv if i < convs else build.head if i == convs else build.dense)()
        sizes = [p.size for p in build.made.parts if isinstance(p, np.ndarray)]
        if not build.has_vanished and max(sizes) < 2000:
            return build.made


def may_be_exchanged(pool: gn.AvgPool | gn.MaxPool) -> bool:
    """Say whether the activation may stand behind a pooling: not if averages overlap."""
    steps = zip(pool.window, pool.stride or pool.window, strict=True)
    return isinstance(pool, gn.MaxPool) or all(s >= k for k, s in steps)


def choices(network: Network) -> list[tuple[Any, ...]]:
    """Return what each activity and each window may choose."""
    found: list[tuple[Any, ...]] = []
    size = network.inputs
    for part in network.parts:
        if isinstance(part, np.ndarray):
            size = len(part)
        elif part is None:
            found += [(1, 0)] * size
        else:
            channels, reads = part
            found += [tuple(dict.fromkeys(window)) for window in reads] * channels
            size = channels * len(reads)
    return found


def jacobian(network: Network, chosen: Sequence[Any]) -> np.ndarray:
    """Return the Jacobian of a network for one choice of each activity and each sample."""
    found, at = np.eye(network.inputs), 0
    for part in network.parts:
        if isinstance(part, np.ndarray):
            found = part @ found
        elif part is None:
            found = np.asarray(chosen[at : at + len(found)], dtype=float)[:, None] * found
            at += len(found)
        else:
            channels, reads = part
            signal = found.reshape(channels, -1, network.inputs)
            rows = []
            for channel, _ in itertools.product(range(channels), reads):
                read = chosen[at]
                rows.append(np.zeros(network.inputs) if read is None else signal[channel, read])
                at += 1
            found = np.asarray(rows)
    return found


def largest_choice(rng: np.random.Generator, network: Network) -> float:
    """Return the largest norm of a Jacobian: of all choices, or one to which the search climbs."""
    each = choices(network)

    def norm(chosen: Sequence[Any]) -> float:
        return float(np.linalg.norm(jacobian(network, chosen), 2))

    if math.prod(map(len, each)) <= CHOICES:
        return network.scale * max(map(norm, itertools.product(*each)))
    chosen = [options[0] for options in each]
    value = norm(chosen)
    for i in rng.permutation(len(each))[: CHOICES // 2]:
        for other in each[i]:
            changed = [*chosen[:i], other, *chosen[i + 1 :]]
            if (found := norm(changed)) > value:
                chosen, value = changed, found
    return network.scale * value
