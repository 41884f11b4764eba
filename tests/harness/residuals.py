"""Residual networks and the largest Jacobian of their patterns: ``python -m tests.harness.residuals``.

An activation with slopes in [low, high] acts on the difference of two inputs as a diagonal matrix
with entries there. The norm of a Jacobian is convex in each entry, so the supremum is at one of the
patterns of both ends. The lists of layers are read here anew, block by block. Pairs of inputs of a
network with biases, whose activations bend once, must not be farther apart than a bound says
either. The search compares bounds with both, for random and for found multipliers; exit status 1 if
any is below.
"""

import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import gramnorm as gn
from gramnorm.network import _energies, _feedforward, _residuals
from tests.harness.chains import search

NEURONS = 8  # at most, for 2^8 patterns

Draw = Callable[[int, float, float], np.ndarray]


def run(layers: list[Any], x: np.ndarray, act: Callable[..., np.ndarray], implied: float) -> Any:
    """Return what a list makes of columns `x`; ``act(x, low, high)`` stands for each activation."""
    for i, layer in enumerate(layers):
        if isinstance(layer, gn.Activation):
            x = act(x, layer.low, layer.high)
            continue
        if isinstance(layer, gn.Residual):
            kept = x if layer.shortcut is None else layer.shortcut @ x
            x = kept + run(layer.branch, x, act, implied)
        else:
            x = layer @ x
        if i + 1 < len(layers) and not isinstance(layers[i + 1], gn.Activation):
            x = act(x, 0.0, implied)
    return x


def ends_of(layers: list[Any], inputs: int, implied: float = 1.0) -> list[tuple[float, float]]:
    """Return the ends of the slopes of each neuron, in the order in which `run` meets them."""
    ends: list[tuple[float, float]] = []

    def act(x: np.ndarray, low: float, high: float) -> np.ndarray:
        ends.extend([(float(low), float(high))] * len(x))
        return x

    run(layers, np.zeros((inputs, 1)), act, implied)
    return ends


def largest_jacobian(layers: list[Any], inputs: int, implied: float = 1.0) -> float:
    """Return the supremum over all diagonals, by all patterns of ends, many at once."""
    ends = [sorted(set(pair)) for pair in ends_of(layers, inputs, implied)]
    patterns = np.asarray(list(itertools.product(*ends))).reshape(
        math.prod(map(len, ends)), len(ends)
    )
    at = 0

    def act(x: np.ndarray, low: float, high: float) -> np.ndarray:
        nonlocal at
        at += x.shape[-2]
        return patterns[:, at - x.shape[-2] : at, None] * x

    start = np.broadcast_to(np.eye(inputs), (len(patterns), inputs, inputs))
    found = run(layers, start, act, implied)
    return float(np.max(np.linalg.norm(found, 2, axis=(-2, -1))))


def largest_quotient(
    rng: np.random.Generator, layers: list[Any], inputs: int, implied: float = 1.0
) -> float:
    """Return the largest quotient of distances that a few pairs of inputs attain."""
    shifts = rng.standard_normal(1000)

    def outputs(x: np.ndarray) -> np.ndarray:
        at = 0

        def act(x: np.ndarray, low: float, high: float) -> np.ndarray:
            nonlocal at
            x = x + shifts[at : at + len(x), None]
            at += len(x)
            return float(high) * np.maximum(x, 0) + float(low) * np.minimum(x, 0)

        return run(layers, x, act, implied)

    x = 3 * rng.standard_normal((inputs, 64))
    y = x + np.exp(rng.standard_normal(64)) * rng.standard_normal((inputs, 64))
    lengths = np.linalg.norm(outputs(x) - outputs(y), axis=0)
    return float(np.max(lengths / np.linalg.norm(x - y, axis=0)))


def activation(rng: np.random.Generator) -> gn.Activation:
    ends = [(0, 1), (1, 1), (-0.25, 1), (0.25, 0.75), (-1, 1), (0, 0.25), (-2, -0.5), (0.5, 0.5)]
    return gn.Activation(*ends[rng.integers(len(ends))])


def matrix(rng: np.random.Generator, rows: int, columns: int, spread: float) -> np.ndarray:
    return np.exp(spread * rng.standard_normal()) * rng.standard_normal((rows, columns))


def block(rng: np.random.Generator, size: int, spread: float, depth: int) -> tuple[Any, int]:
    """Return a residual block and the number of its outputs."""
    outputs = size if rng.random() < 0.7 else int(rng.integers(1, 4))
    sizes = [size, *rng.integers(1, 4, int(rng.integers(0, 3))), outputs]
    branch: list[Any] = [activation(rng)] if rng.random() < 0.3 else []
    for n, m in itertools.pairwise(sizes):
        if depth and n == m and rng.random() < 0.5:
            branch.append(block(rng, n, spread, depth - 1)[0])
            if branch[-1].shortcut is not None and len(branch[-1].shortcut) != n:
                branch[-1] = gn.Residual([matrix(rng, n, n, spread)])
        else:
            branch.append(matrix(rng, m, n, spread))
        if rng.random() < 0.3:
            branch.append(activation(rng))
    needs = outputs != size or rng.random() < 0.2
    return gn.Residual(branch, matrix(rng, outputs, size, spread) if needs else None), outputs


def network(rng: np.random.Generator) -> tuple[list[Any], int, float]:
    """Return layers with a block or an activation among them, the inputs, and the implied slope."""
    implied = float(rng.choice([1.0, 1.0, 0.5]))
    while True:
        spread = rng.choice([0.0, 0.5, 2.0])
        inputs = size = int(rng.integers(1, 5))
        layers: list[Any] = []
        for _ in range(int(rng.integers(1, 4))):
            if rng.random() < 0.6:
                made, size = block(rng, size, spread, int(rng.random() < 0.2))
                layers.append(made)
            else:
                m = int(rng.integers(1, 5))
                layers.append(matrix(rng, m, size, spread))
                size = m
            if rng.random() < 0.4:
                layers.append(activation(rng))
        many = sum(low != high for low, high in ends_of(layers, inputs))
        if many <= NEURONS and _residuals.is_residual(layers):
            return layers, inputs, implied


KINDS = {"any": 0.9, "given": 0.05, "found": 0.05}


def guess(rng: np.random.Generator, graph: _residuals.Graph) -> list[np.ndarray]:
    """Return logarithms of multipliers: anywhere, or near those of the composed constant."""
    noise = [rng.choice([0.1, 0.5, 3.0]) * rng.standard_normal(b.size) for b in graph.bends]
    start = _feedforward.start(_feedforward.fewest(graph), [0 * x for x in noise])
    if start is None or rng.random() < 0.3:
        return noise
    ends = np.cumsum([len(x) for x in noise])[:-1]
    return [x + y for x, y in zip(noise, np.split(start, ends), strict=False)]


def bounds(rng: np.random.Generator, kind: str, layers: list[Any], implied: float) -> list[float]:
    """Return what must not be below."""
    graph = _residuals.read(layers, implied)
    logs = guess(rng, graph)
    if kind == "any":
        return [_energies.certificate(graph, [x + step for x in logs]) for step in (0.0, 4.0)]
    if kind == "given":
        multipliers = [np.exp(x / 2) for x in logs]
        return [gn.chain_certificate(layers, multipliers, slopes=implied)]
    bound, found = gn.chain_bound(layers, slopes=implied, return_multipliers=True)
    return [bound, gn.chain_certificate(layers, found, slopes=implied)]


def _drawn(rng: np.random.Generator, kind: str) -> tuple[list[Any], float, list[float]]:
    layers, inputs, implied = network(rng)
    pairs = largest_quotient(rng, layers, inputs, implied)
    truth = max(largest_jacobian(layers, inputs, implied), pairs * (1 - 1e-9))
    return layers, truth, bounds(rng, kind, layers, implied)


if __name__ == "__main__":
    sys.exit(search(__doc__, KINDS, _drawn))
