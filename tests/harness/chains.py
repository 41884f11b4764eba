"""Chains of layers and the largest Jacobian of their patterns: ``python -m tests.harness.chains``.

An activation with slopes in [0, 1] acts as a diagonal matrix with entries there. The norm of a
Jacobian is convex in each entry, so the supremum is at one of the patterns of 0 and 1; convolutions
are written out as matrices, entry by entry. The search compares bounds with it, for random and for
found multipliers; exit status 1 if any is below.
"""

import argparse
import itertools
import math
import sys
from typing import Any

import numpy as np

import gramnorm as gn
from gramnorm.network._coupling import Coupling

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
    """Return the matrix of a correlation, entry by entry; `pads` None for a circle."""
    c_out, c_in, *taps = kernel.shape
    low = pads if pads is not None else [0] * len(taps)
    sizes = (
        [n + 2 * p - k + 1 for n, p, k in zip(shape, pads, taps, strict=True)] if pads else shape
    )
    matrix = np.zeros((c_out, *sizes, c_in, *shape))
    for at in itertools.product(*map(range, sizes)):
        for tap in itertools.product(*map(range, taps)):
            read = tuple(i + t - p for i, t, p in zip(at, tap, low, strict=True))
            if pads is None:
                read = tuple(i % n for i, n in zip(read, shape, strict=True))
            elif any(not 0 <= i < n for i, n in zip(read, shape, strict=True)):
                continue
            matrix[(slice(None), *at, slice(None), *read)] += kernel[(..., *tap)]
    return matrix.reshape(c_out * math.prod(sizes), -1)


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


def coupled(layers: list[np.ndarray]) -> Coupling:
    bound = gn.matrix_norm_bound if layers[0].ndim == 2 else gn.conv_norm_bound
    return Coupling.of(layers, [float(bound(w)) for w in layers])


def guess(rng: np.random.Generator, chain: Coupling) -> np.ndarray:
    spread = rng.choice([0.1, 1.0, 3.0])
    return np.exp(spread * rng.standard_normal(2 + sum(chain.sizes[1:-1])))


def vectors(rng: np.random.Generator, layers: list[np.ndarray]) -> list[np.ndarray]:
    return [np.exp(rng.standard_normal(w.shape[0])) for w in layers[:-1]]


def exactly(bound: float) -> float:
    """Return what the exact supremum, known to rounding only, is compared with."""
    return bound * (1 + 1e-13)


KINDS = {"dense": 0.7, "conv": 0.15, "found": 0.075, "given": 0.05, "conv found": 0.025}


def drawn(rng: np.random.Generator, kind: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return a chain and its matrices."""
    if "conv" not in kind:
        layers = dense_chain(rng)
        return layers, layers
    while True:
        kernels = conv_chain(rng, int(rng.integers(1, 3)))
        if (matrices := unrolled_chain(rng, kernels)) is not None:
            return kernels, matrices


def bounds(rng: np.random.Generator, kind: str, layers: list[np.ndarray]) -> list[float]:
    """Return what must not be below."""
    if kind == "given":
        return [gn.chain_certificate(layers, vectors(rng, layers))]
    if "found" in kind:
        bound, multipliers = gn.chain_bound(layers, return_multipliers=True)
        return [bound, gn.chain_certificate(layers, multipliers)]
    chain = coupled(layers)
    return [chain.certificate(guess(rng, chain))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    violations = 0
    for number, (kind, share) in enumerate(KINDS.items()):
        rng = np.random.default_rng([options.seed, number])
        closest, count = math.inf, math.ceil(share * options.count)
        for _ in range(count):
            layers, matrices = drawn(rng, kind)
            truth = largest_jacobian(matrices)
            for bound in bounds(rng, kind, layers):
                closest = min(closest, bound / truth)
                if not truth <= exactly(bound):  # NaN as well
                    violations += 1
                    sys.stdout.write(f"{kind}: {bound!r} is below {truth!r} for {layers!r}\n")
        sys.stdout.write(f"{kind}: {count} chains, least bound / truth {closest!r}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{violations} bounds below\n")
    return int(violations > 0)


if __name__ == "__main__":
    sys.exit(main())
