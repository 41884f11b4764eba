"""
Peak gain of a FIR filter bank
==============================

A bank of four filters splits a signal into bands.  The energy of all bands together is at most the square of the
bank's H-infinity norm times that of the signal.  The largest gain on a grid of frequencies is a lower bound on that
norm, since the peak lies between two of them.  `gramnorm.fir_norm` bounds it on both sides and says where it is.

The bank is a cosine-modulated one: a windowed low-pass filter, shifted to the middle of each band and wide enough that
the gains nearly add up to 1 where two bands meet.  What is left is a ripple of about 1 %.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

import gramnorm as gn

BANDS = 4
TAPS = 48
CUTOFF = 1.14 / (2 * BANDS)
"""Of the low-pass filter, as a part of half the sampling rate."""

COARSE = 16
"""Frequencies of a grid that misses the peak."""

Real = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def bank() -> Real:
    """Return the taps, of shape (TAPS, BANDS, 1): one input, an output for each band."""
    n = np.arange(TAPS) - (TAPS - 1) / 2
    prototype = CUTOFF * np.sinc(CUTOFF * n) * np.kaiser(TAPS, 5.0)
    centres = (np.arange(BANDS) + 0.5) * np.pi / BANDS
    phases = np.where(np.arange(BANDS) % 2, -np.pi / 4, np.pi / 4)
    return (2 * prototype[:, None] * np.cos(n[:, None] * centres + phases))[:, :, None]


def gains(taps: Real, angles: Real) -> Real:
    """Return the gain of each band at each angle, in radians per sample."""
    waves = np.exp(-1j * angles[:, None] * np.arange(len(taps)))
    return np.abs(waves @ taps[:, :, 0])


def draw(taps: Real, bracket: gn.NormBracket) -> None:
    """Draw the gains of the bands and of all together, with the peak."""
    angles = np.linspace(0, np.pi, 4001)
    each = gains(taps, angles)
    total = np.linalg.norm(each, axis=1)
    peak, upper = abs(float(bracket.frequency[0])), float(bracket.upper)
    _, (top, bottom) = plt.subplots(2, sharex=True, figsize=(8, 6), layout="constrained")
    for band in range(BANDS):
        top.plot(
            angles / np.pi, 20 * np.log10(np.maximum(each[:, band], 1e-5)), label=f"band {band + 1}"
        )
    top.set(ylim=(-90, 5), ylabel="gain [dB]", title="each band")
    top.legend(loc="lower center", ncols=BANDS)
    bottom.plot(angles / np.pi, total, label="gain of all bands")
    coarse = np.linspace(0, np.pi, COARSE)
    bottom.plot(
        coarse / np.pi,
        np.linalg.norm(gains(taps, coarse), axis=1),
        "o",
        ms=4,
        label=f"grid of {COARSE}",
    )
    bottom.axhline(upper, color="tab:red", lw=1, label="certified upper bound")
    bottom.plot(
        peak / np.pi, float(bracket.lower), "v", color="tab:red", label="peak frequency found"
    )
    bottom.set(
        xlabel="angle per sample / $\\pi$", ylabel="gain", ylim=(0.992, 1.012), title="all together"
    )
    bottom.legend(loc="lower center", ncols=4, fontsize=8)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)


def main() -> None:
    """Bound the bank's gain, print it, and draw."""
    parser = argparse.ArgumentParser(description="Find the peak gain of a FIR filter bank.")
    parser.add_argument("--output", type=Path, default=Path(sys.argv[0]).with_suffix(".png"))
    output = parser.parse_args().output
    taps = bank()
    bracket = gn.fir_norm(taps, rtol=1e-6)
    coarse = np.linalg.norm(gains(taps, np.linspace(0, np.pi, COARSE)), axis=1).max()
    print(bracket)
    print(f"peak at {abs(float(bracket.frequency[0])):.6f} rad per sample")
    print(f"largest gain on a grid of {COARSE}: {coarse:.6f}")
    draw(taps, bracket)
    plt.savefig(output, dpi=150)


if __name__ == "__main__":
    main()
