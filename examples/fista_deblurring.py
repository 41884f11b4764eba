"""
Step size of FISTA for an image without its blur
================================================

A picture x is seen through a blur K, which continues it at the border by reflection, and noise: b = K x + noise.  FISTA
finds the minimum of ``f(x) = ||K x - b||^2 / 2`` over x >= 0 with steps of length 1 / L, and is proved to converge if L
is not below ``||K||^2``.  Three ways to get L:

- *power iteration that stops early:* until two values differ by less than 1e-3.  The gain of this camera is 0.03, so
  values are below 1e-3 from the start, and it stops at once, far below the norm.  The iteration diverges.
- *power iteration, inflated by hand:* ten steps, and the norm times 1.5 to be on the safe side.  It converges, in more
  steps than it needs, since each is less than half as long.
- *certified bound:* never below the norm and at most 1e-3 above it.

A blur that sums to one has norm one only on a circle: with reflection at the border the norm is larger.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

import gramnorm as gn

SIZE = 64
GAIN = 0.03
NOISE = 2e-5
STEPS = 200

Image = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Blur:
    """A convolution as an operator on images."""

    kernel: Image
    geometry: gn.ConvGeometry

    def __call__(self, x: Image) -> Image:
        """Return K x."""
        return self.geometry.apply(self.kernel, x)

    def adjoint(self, y: Image) -> Image:
        """Return K^T y."""
        return self.geometry.adjoint(self.kernel, y)


def camera() -> tuple[Blur, dict[str, object]]:
    """Return a Gaussian blur with reflection at the border, and its geometry in keywords."""
    profile = np.exp(-0.5 * (np.arange(-3, 4) / 1.5) ** 2)
    profile /= profile.sum()
    kernel = GAIN * np.outer(profile, profile)[None, None]
    options = {"input_shape": (SIZE, SIZE), "padding": 3, "padding_mode": "reflect"}
    return Blur(kernel, gn.ConvGeometry.of(kernel.shape, **options)), options


def phantom() -> Image:
    """Return a picture of discs and bars between 0 and 1."""
    row, column = np.mgrid[:SIZE, :SIZE] / SIZE
    picture = 0.3 * ((row - 0.5) ** 2 + (column - 0.5) ** 2 < 0.2)
    picture += 0.7 * ((row - 0.35) ** 2 + (column - 0.4) ** 2 < 0.01)
    picture += 0.5 * ((abs(row - 0.7) < 0.04) & (abs(column - 0.5) < 0.25))
    picture += 0.6 * ((column * 16 % 2 < 1) & (abs(row - 0.08) < 0.06))
    return np.clip(picture, 0, 1)[None]


def power_iteration(blur: Blur, steps: int, tol: float = 0.0) -> float:
    """Return what power iteration takes for ||K||^2 after some steps, or when two values differ by less than `tol`."""
    x = np.random.default_rng(0).standard_normal((1, SIZE, SIZE))
    value = 0.0
    for _ in range(steps):
        x /= np.linalg.norm(x)
        y = blur.adjoint(blur(x))
        previous, value = value, float(np.vdot(x, y))
        if abs(value - previous) < tol:
            break
        x = y
    return value


def fista(blur: Blur, b: Image, lipschitz: float) -> tuple[Image, list[float]]:
    """Return the image after `STEPS` steps of FISTA, and the objective after each."""
    x = y = np.zeros_like(b)
    t, objective = 1.0, []
    for _ in range(STEPS):
        following = np.maximum(y - blur.adjoint(blur(y) - b) / lipschitz, 0.0)
        t_next = (1 + (1 + 4 * t * t) ** 0.5) / 2
        y = following + (t - 1) / t_next * (following - x)
        x, t = following, t_next
        objective.append(float(0.5 * np.sum((blur(x) - b) ** 2)))
        if objective[-1] > 1e6:  # there is no way back
            break
    return x, objective


def constants(blur: Blur, options: dict[str, object]) -> dict[str, float]:
    """Return L by each of the three ways."""
    bracket = gn.conv_norm_bracket(blur.kernel, **options)
    print(f"certified: {bracket}")
    return {
        "power iteration, stopped early": power_iteration(blur, 100, tol=1e-3),
        "power iteration, norm times 1.5": 1.5**2 * power_iteration(blur, 10),
        "certified bound": float(bracket.upper) ** 2,
    }


def draw(truth: Image, b: Image, results: dict[str, tuple[Image, list[float]]]) -> None:
    """Draw the objective over the steps, the picture, what the camera saw and what came out."""
    figure = plt.figure(figsize=(10, 6.5), layout="constrained")
    grid = figure.add_gridspec(2, 5, height_ratios=[1.3, 1])
    axes = figure.add_subplot(grid[0, :])
    for name, (_, objective) in results.items():
        axes.loglog(range(1, len(objective) + 1), objective, label=name)
    axes.set(xlabel="step", ylabel="objective", ylim=(None, 10))
    axes.legend(title="1 / L from")
    axes.grid(alpha=0.3)
    shown: list[tuple[str, Image]] = [("picture", truth), ("blurred", b / GAIN)]
    for name, (image, objective) in results.items():
        end = "diverged" if len(objective) < STEPS else f"after {STEPS} steps"
        shown.append((f"{name},\n{end}".replace(", ", ",\n"), image))
    for column, (name, image) in enumerate(shown):
        axes = figure.add_subplot(grid[1, column])
        axes.imshow(image[0], cmap="gray", vmin=0, vmax=1)
        axes.set_title(name, fontsize=9)
        axes.set(xticks=[], yticks=[])


def main() -> None:
    """Blur a picture, restore it three times, print and draw."""
    parser = argparse.ArgumentParser(description="Deblur a picture by FISTA with three step sizes.")
    parser.add_argument("--output", type=Path, default=Path(sys.argv[0]).with_suffix(".png"))
    output = parser.parse_args().output
    blur, options = camera()
    truth = phantom()
    b = blur(truth) + NOISE * np.random.default_rng(1).standard_normal(truth.shape)
    results = {}
    for name, lipschitz in constants(blur, options).items():
        results[name] = fista(blur, b, lipschitz)
        objective = results[name][1]
        print(
            f"{name}: L = {lipschitz:.4e}, objective {objective[-1]:.4e} after {len(objective)} steps"
        )
    draw(truth, b, results)
    plt.savefig(output, dpi=150)


if __name__ == "__main__":
    main()
