"""
Report on a network
===================

``gramnorm report`` prints certified bounds for each layer of a file of weights.  Here its functions are called from
Python, on the small network that is shipped with the package, and the bounds are drawn beside the number that is often
taken for them: the norm of the kernel read as a matrix with one row per output channel.  Without groups
that is a lower bound, the gain of a single patch: patches overlap, and the norm is larger by a factor of up to the root
of the number of taps.  With groups it is no bound at all.
"""

import argparse
import importlib.resources
import sys
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

import gramnorm as gn
from gramnorm.report import Row, bound_layer
from gramnorm.report.files.contents import Contents
from gramnorm.report.files.readers import read_stream


def shipped() -> Contents:
    """Return the layers of the network that is shipped with the package."""
    with (importlib.resources.files("gramnorm") / "data" / "digits.npz").open("rb") as stream:
        return read_stream(stream, "digits")


def draw(rows: list[Row], flat: list[float]) -> None:
    """Draw a pair of bars for each layer."""
    _, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    place = np.arange(len(rows))
    axes.barh(place - 0.2, [row.upper for row in rows], 0.4, label="layer, certified upper bound")
    axes.barh(place + 0.2, flat, 0.4, label="weight read as a matrix")
    labels = [f"{row.name.removesuffix('.weight')}\n{row.kind}" for row in rows]
    axes.set_yticks(place, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="spectral norm", title="Layers of the shipped network")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()


def main() -> None:
    """Bound each layer, print the bounds and their product, and draw."""
    parser = argparse.ArgumentParser(description="Report on the shipped network, from Python.")
    parser.add_argument("--output", type=Path, default=Path(sys.argv[0]).with_suffix(".png"))
    output = parser.parse_args().output
    layers = shipped().layers
    rows = [bound_layer(layer) for layer in layers]
    flat = [
        float(gn.matrix_norm_bound(layer.weight.reshape(len(layer.weight), -1))) for layer in layers
    ]
    for row, matrix in zip(rows, flat, strict=True):
        print(f"{row.name:13} {row.lower!r} <= norm <= {row.upper!r}, as a matrix {matrix:.5f}")
    print(f"product of the upper bounds: {gn.product_bound(*(row.upper for row in rows))!r}")
    draw(rows, flat)
    plt.savefig(output, dpi=150)


if __name__ == "__main__":
    main()
