"""Certified brackets of convolutions against the published Gram iteration on the full grid.

The rival is arXiv:2305.16173 as one would write it in NumPy: a two-dimensional FFT of the kernel,
six Gram steps for every frequency of the image, and the largest result.  It bounds the circular
operator of that size from above in exact arithmetic; its gap is measured against our lower bound
of the same operator.  Where ours holds for every size, theirs is for the n in brackets.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import gramnorm as gn
from benchmarks import Row, compare, show

STEPS = 6


def published_gram_iteration(kernel: Any, n: int) -> float:
    """Return the bound for a circular convolution on an n x n image."""
    symbol = np.fft.rfft2(kernel, s=(n, n))
    if symbol.shape[0] < symbol.shape[1]:
        symbol = symbol.swapaxes(0, 1)
    g = np.ascontiguousarray(symbol.transpose(2, 3, 0, 1))
    log_scale = np.zeros(g.shape[:2])
    for _ in range(STEPS):
        norm = np.linalg.norm(g, axis=(-2, -1))
        g = g / norm[..., None, None]
        log_scale = 2 * (log_scale + np.log(norm))
        g = g.conj().swapaxes(-2, -1) @ g
    logs = (np.log(np.linalg.norm(g, axis=(-2, -1))) + log_scale) / 2**STEPS
    return float(np.exp(np.max(logs)))


def gaussian(channels: int, taps: int) -> Any:
    """Return an untrained kernel: pure noise, the hard case of a search over frequencies."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((channels, channels, taps, taps)) / (channels**0.5 * taps)


def smooth(channels: int, taps: int) -> Any:
    """Return a kernel dominated by its low frequencies, as trained ones often are."""
    window = np.hanning(taps + 2)[1:-1]
    rng = np.random.default_rng(1)
    mean = rng.standard_normal((channels, channels, 1, 1)) / channels**0.5
    return mean * np.multiply.outer(window, window) + 0.3 * gaussian(channels, taps)


CASES: list[tuple[str, Callable[[int, int], Any], int, int, int, bool]] = [
    ("64x64x3x3 Gaussian, circular n = 32", gaussian, 64, 3, 32, True),
    ("64x64x3x3 smooth, every size (n = 32)", smooth, 64, 3, 32, False),
    ("16x16x5x5 Gaussian, every size (n = 128)", gaussian, 16, 5, 128, False),
    ("16x16x5x5 smooth, every size (n = 128)", smooth, 16, 5, 128, False),
]


def run() -> None:
    """Print the table."""
    rows = []
    for name, make, channels, taps, n, circular in CASES:
        kernel = make(channels, taps)
        exact = partial(gn.conv_norm_bracket, kernel, (n, n), padding_mode="circular")
        ours = exact if circular else partial(gn.conv_norm_bracket, kernel)
        theirs = partial(published_gram_iteration, kernel, n)
        bracket = ours()
        gap = float((bracket.upper - bracket.lower) / bracket.lower)
        their_gap = theirs() / float(exact().lower) - 1
        rows.append(Row(*compare(name, ours, theirs), gap, their_gap, bool(bracket.converged)))
    show("Convolutions, float64, rtol 1e-3", f"full-grid Gram iteration, {STEPS} steps", rows)
