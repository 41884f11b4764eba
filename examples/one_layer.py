"""
One layer, three answers
========================

The last layer of the network that comes with `gramnorm`, in float32 as it is stored: what does power iteration, a
singular value decomposition in float32 and `gramnorm` say of its norm?

Power iteration climbs to the norm from below.  The decomposition is right up to rounding, on either side: of random
layers of the same shape about half get a number below their norm, which as a Lipschitz constant is wrong.  `gramnorm`
returns two numbers with the norm between them, for every layer.
"""

import argparse
import importlib.resources
import sys
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

import gramnorm as gn

LAYER = "dense2.weight"
STEPS = (1, 3, 10, 30)
RANDOM = 1000
"""Layers of the same shape."""

Real = np.ndarray[tuple[int, ...], np.dtype[np.floating]]


def stored_layer() -> Real:
    """Return the weights of the layer."""
    file = importlib.resources.files("gramnorm") / "data" / "digits.npz"
    with file.open("rb") as stream, np.load(stream) as arrays:
        return np.asarray(arrays[LAYER])


def power_iteration(a: Real, steps: int) -> float:
    """Return what so many steps from a random vector find."""
    v = np.random.default_rng(0).standard_normal(a.shape[1]).astype(a.dtype)
    for _ in range(steps):
        v = a.T @ (a @ v)
        v /= np.linalg.norm(v)
    return float(np.linalg.norm(a @ v))


def true_norms(stack: Real) -> Real:
    """Return the norms to 12 digits: float64 holds the same weights, and the bracket is certified."""
    return np.asarray(gn.matrix_norm_bracket(stack.astype(np.float64), rtol=1e-13).lower)


def draw(answers: dict[str, tuple[float, float]], errors: Real) -> None:
    """Draw the answers for the layer, relative to its norm, and the SVD's errors for random ones."""
    _, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.4), layout="constrained", width_ratios=(3, 2)
    )
    left.set_xscale("symlog", linthresh=1e-8, linscale=0.6)
    left.axvspan(-2, 0, color="tab:red", alpha=0.08, lw=0)
    for y, (low, high) in enumerate(answers.values()):
        colour = "tab:red" if high < 0 else "tab:blue"
        left.plot((low, high), (y, y), "o-", color=colour, ms=5, lw=3)
    left.axvline(0, color="black", lw=0.8)
    left.set_yticks(range(len(answers)), answers)
    left.set_xticks(
        [-1, -1e-2, -1e-4, -1e-6, 0, 1e-6], ["-1", "-1e-2", "-1e-4", "-1e-6", "0", "1e-6"]
    )
    left.set(xlim=(-2, 2e-6), ylim=(len(answers) - 0.5, -0.5), xlabel="error relative to the norm")
    left.set_title(f"one layer, {LAYER} (red: below the norm)", fontsize=10)
    bins = np.linspace(-8e-8, 8e-8, 65)
    for values, colour, label in (
        (errors[errors < 0], "tab:red", f"{np.mean(errors < 0):.0%} below the norm"),
        (errors[errors >= 0], "tab:grey", "at the norm or above"),
    ):
        right.hist(values, bins=bins, color=colour, label=label)
    right.axvline(0, color="black", lw=0.8)
    right.set(xlabel="error relative to the norm", yticks=[], ylim=(0, 1.4 * right.get_ylim()[1]))
    right.set_title(f"SVD in float32, {RANDOM} random layers", fontsize=10)
    right.legend(fontsize=8, loc="upper center")


def main() -> None:
    """Ask the three, print what they say, and draw."""
    parser = argparse.ArgumentParser(description="Compare three answers for one layer.")
    parser.add_argument("--output", type=Path, default=Path(sys.argv[0]).with_suffix(".png"))
    output = parser.parse_args().output
    layer = stored_layer()
    norm = float(true_norms(layer))
    bracket = gn.matrix_norm_bracket(layer)
    ends = {
        f"power iteration, {n} step{'s' * (n > 1)}": (power_iteration(layer, n),) * 2 for n in STEPS
    }
    ends["SVD in float32"] = (float(np.linalg.matrix_norm(layer, ord=2)),) * 2
    ends["gramnorm"] = (float(bracket.lower), float(bracket.upper))
    print(f"norm {norm:.12f}")
    for name, (low, high) in ends.items():
        print(f"{name}: {low:.9f}" + (f" <= norm <= {high:.9f}" if high > low else ""))
    answers = {name: (low / norm - 1, high / norm - 1) for name, (low, high) in ends.items()}
    stack = np.random.default_rng(0).standard_normal((RANDOM, *layer.shape)).astype(np.float32)
    norms = true_norms(stack)
    errors = np.linalg.matrix_norm(stack, ord=2) / norms - 1
    certified = gn.matrix_norm_bound(stack) / norms - 1
    for name, values in (("SVD", errors), ("gramnorm", certified)):
        print(f"{name}: {np.sum(values < 0)} of {RANDOM} random layers below their norm")
    draw(answers, errors)
    plt.savefig(output, dpi=150)


if __name__ == "__main__":
    main()
