"""Chains of layers and the largest Jacobian of their patterns: ``python -m tests.harness.chains``.

An activation with slopes in [0, 1] acts as a diagonal matrix with entries there. The norm of a
Jacobian is convex in each entry, so the supremum is at one of the patterns of 0 and 1; convolutions
are written out as matrices, entry by entry; `networks` has the other layers. The search compares
bounds with it, for random and for found multipliers; exit status 1 if any is below.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import gramnorm as gn
from gramnorm.network import _chain, _multipliers, _steps, _unrolled
from gramnorm.network._coupling import Chain
from gramnorm.network._links import links
from tests.harness.networks import correlation, largest_choice, network, windows

HIDDEN = 9  # neurons at most, for 2^9 patterns


def largest_jacobian(matrices: list[np.ndarray]) -> float:
    """Return the supremum over diagonals in [0, 1]: convex in each entry, so 0 and 1 attain it."""
    jacobians = matrices[0][None]
    for w in matrices[1:]:
        patterns = np.asarray(list(itertools.product((0.0, 1.0), repeat=w.shape[1])))
        active = patterns[:, None, :, None] * jacobians[None]
        jacobians = w @ active.reshape(-1, *active.shape[2:])
    return float(np.max(np.linalg.norm(jacobians, 2, axis=(-2, -1))))


def dense_chain(rng: np.random.Generator) -> list[np.ndarray]:
    depth = int(rng.integers(1, 6))
    while True:
        sizes = rng.integers(1, 5, depth + 1)
        if np.sum(sizes[1:-1]) <= HIDDEN:
            break
    spread = rng.choice([0.0, 1.0, 3.0])
    return [
        np.exp(spread * rng.standard_normal()) * rng.standard_normal((n, m))
        for m, n in itertools.pairwise(sizes)
    ]


def conv_chain(rng: np.random.Generator, axes: int) -> list[np.ndarray]:
    depth, widest = int(rng.integers(1, 4)), 2 if axes == 1 else 1
    sizes = rng.integers(1, widest + 1, depth + 1)
    taps = rng.integers(1, 4, (depth, axes))
    return [
        rng.standard_normal((n, m, *k))
        for (m, n), k in zip(itertools.pairwise(sizes), taps, strict=True)
    ]


def unrolled(kernel: np.ndarray, shape: tuple[int, ...], pads: Any) -> np.ndarray:
    """Return the matrix of a correlation of stride 1; `pads` on both sides, None for a circle."""
    ones, taps = (1,) * len(shape), kernel.shape[2:]
    pairs = None if pads is None else [(p, p) for p in pads]
    _, reads = windows(shape, taps, pairs, ones, ones)
    return correlation(kernel, reads, math.prod(shape))


def unrolled_chain(rng: np.random.Generator, kernels: list[np.ndarray]) -> list[np.ndarray] | None:
    """Return the matrices of a chain on a small image; None if it has too many neurons."""
    axes = kernels[0].ndim - 2
    shape = tuple(rng.integers(2, 5 if axes == 1 else 3, axes))
    circular = rng.random() < 0.3
    matrices = []
    for kernel in kernels:
        pads = None if circular else [int(rng.integers(k // 2, k)) for k in kernel.shape[2:]]
        matrices.append(unrolled(kernel, shape, pads))
        shape = (
            shape
            if circular
            else tuple(
                n + 2 * p - k + 1 for n, p, k in zip(shape, pads, kernel.shape[2:], strict=True)
            )
        )
        if min(shape) < 1:
            return None
    return matrices if sum(len(w) for w in matrices[:-1]) <= HIDDEN else None


def coupled(layers: list[Any], slopes: Any = 1, shape: Any = None) -> Chain:
    """Return the coupling, scaled by crude norms: a bound holds whatever the scale."""
    steps = _steps.read(layers)
    norms = [float(np.linalg.norm(step.weights)) for step in steps]
    known = steps, norms, _chain._slopes(slopes, len(steps) - 1)
    if shape is None:
        return Chain.of(links(*known))
    return Chain.of(_unrolled.links(*known, _unrolled.places(steps, shape)))


def guess(rng: np.random.Generator, chain: Chain) -> np.ndarray:
    """Return multipliers: anywhere, or near those of layers that weigh the same."""
    spread = rng.choice([0.1, 1.0, 3.0])
    logs = spread * rng.standard_normal(sum(chain.sizes))
    return np.exp(logs + _multipliers._layer_by_layer(chain) * (rng.random() < 0.5))


def vectors(rng: np.random.Generator, layers: list[Any]) -> list[np.ndarray]:
    weights = [getattr(w, "kernel", w) for w in layers]
    sizes = [w.shape[0] for w in weights if isinstance(w, np.ndarray)]
    return [np.exp(rng.standard_normal(n)) for n in sizes[:-1]]


def exactly(bound: float) -> float:
    """Return what the exact supremum, known to rounding only, is compared with."""
    return bound * (1 + 1e-13)


KINDS = {
    "dense": 0.4,
    "conv": 0.1,
    "layers": 0.44,
    "found": 0.03,
    "given": 0.02,
    "conv found": 0.002,
    "layers given": 0.004,
    "layers found": 0.004,
}


def drawn(rng: np.random.Generator, kind: str) -> tuple[list[Any], dict[str, Any], float]:
    """Return a chain, what else describes it, and the largest Jacobian that was found."""
    if "layers" in kind:
        made = network(rng)
        known = {"slopes": made.slopes, "input_shape": made.shape}
        return made.layers, known, largest_choice(rng, made)
    layers, matrices = plain(rng, kind)
    return layers, {}, largest_jacobian(matrices)


def plain(rng: np.random.Generator, kind: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return a chain of matrices or of kernels, and its matrices."""
    if "conv" not in kind:
        layers = dense_chain(rng)
        return layers, layers
    while True:
        kernels = conv_chain(rng, int(rng.integers(1, 3)))
        if (matrices := unrolled_chain(rng, kernels)) is not None:
            return kernels, matrices


def bounds(
    rng: np.random.Generator, kind: str, layers: list[Any], known: dict[str, Any]
) -> list[float]:
    """Return what must not be below."""
    if "given" in kind:
        x, slopes = vectors(rng, layers), known.get("slopes", 1)
        steps, ends = int(rng.integers(9)), np.exp(rng.standard_normal((2, 1)))
        fixed = [
            float(gn.chain_gram_iteration(layers, given, steps=steps, slopes=slopes, density=3))
            for given in (x, [ends[0], *x, ends[1]])
        ]
        return [gn.chain_certificate(layers, x, **known), *fixed]
    if "found" in kind:
        bound, multipliers = gn.chain_bound(layers, **known, return_multipliers=True)
        return [bound, gn.chain_certificate(layers, multipliers, **known)]
    slopes, shape = known.get("slopes", 1), known.get("input_shape")
    shapes = [None] if shape is None else [None, shape]  # of every size, and of this one
    chains = [coupled(layers, slopes, of) for of in shapes]
    return [chain.certificate(guess(rng, chain)) for chain in chains]


def search(
    about: str | None,
    kinds: Mapping[str, float],
    drawn: Callable[[np.random.Generator, str], tuple[list[Any], float, list[float]]],
) -> int:
    """Draw networks of all kinds, each a share of the count, and say where a bound is below the truth.

    `drawn` returns the layers, what no bound may be below, and bounds; 1 is returned if one is.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    violations = 0
    for number, (kind, share) in enumerate(kinds.items()):
        rng = np.random.default_rng([options.seed, number])
        closest, proved, count = math.inf, 0, math.ceil(share * options.count)
        for _ in range(count):
            layers, truth, found = drawn(rng, kind)
            for bound in found:
                proved += math.isfinite(bound)
                closest = min(closest, bound / truth if truth else math.inf)
                if not truth <= exactly(bound):  # NaN as well
                    violations += 1
                    sys.stdout.write(f"{kind}: {bound!r} is below {truth!r} for {layers!r}\n")
        sys.stdout.write(
            f"{kind}: {count} networks, {proved} finite bounds, least / truth {closest!r}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"{violations} bounds below\n")
    return int(violations > 0)


def _drawn(rng: np.random.Generator, kind: str) -> tuple[list[Any], float, list[float]]:
    layers, known, truth = drawn(rng, kind)
    return layers, truth, bounds(rng, kind, layers, known)


if __name__ == "__main__":
    sys.exit(search(__doc__, KINDS, _drawn))
