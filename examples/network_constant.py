"""
A network's constant in the loss
================================

A certified radius is a margin over the Lipschitz constant of the network. The usual penalty is on
the product of the layers' norms, which is far above that constant. With
`gramnorm.chain_gram_iteration` the loss holds a bound of the network as a whole: it is
differentiable in the weights, and in the multipliers behind it, which are trained along.

A network of seven layers for scikit-learn's images of 8 x 8 pixels is trained with either bound in
the loss, to the same target. A penalty ``log L`` would be rewarded without end for smaller weights,
and all would vanish; it is ``relu(log L - log target)``, which leaves the network alone below.

Afterwards all are judged by the same certified constant, that of `gramnorm.chain_bound`: an image
that is classified correctly, the highest score ahead of the second by m, keeps its class under
every change of Euclidean length below ``m / (sqrt(2) L)``.

Under a penalty on the product the layers line up until it is nearly attained. That costs accuracy:
of two networks with the same constant, the one whose layers need not line up has the larger
margins, by some percent here, more with more layers. A step costs about the same with either bound.
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

import gramnorm as gn

SIZES = (64, *[64] * 6, 10)
EPOCHS, BATCH, RATE = 14, 64, 4e-3
SEEDS = 2
TARGET = 4.0
STEPS = 5
"""Gram products: the bound in the loss is some percent above the certified one."""

RADII = (0.1, 0.2, 0.3, 0.4)

Weights = list[torch.Tensor]


def digits() -> list[torch.Tensor]:
    """Return training images and labels, then test images and labels, a fixed quarter."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = map(torch.from_numpy, parts)
    return [train_x.float(), train_y, test_x.float(), test_y]


def network() -> nn.Sequential:
    """Return a chain of dense layers with ReLU between them."""
    layers: list[nn.Module] = []
    for m, n in itertools.pairwise(SIZES):
        layers += [nn.Linear(m, n), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def weights_of(net: nn.Sequential) -> Weights:
    """Return the weights in order."""
    return [layer.weight for layer in net if isinstance(layer, nn.Linear)]


def of_product(weights: Weights, _: Weights) -> torch.Tensor:
    """Return the product of the norms of the layers."""
    return torch.stack([gn.gram_iteration(w, steps=STEPS) for w in weights]).prod()


def of_network(weights: Weights, logarithms: Weights) -> torch.Tensor:
    """Return the bound of all layers together."""
    multipliers = [log.exp() for log in logarithms]
    return gn.chain_gram_iteration(weights, multipliers, steps=STEPS)


def first_logarithms(weights: Weights) -> Weights:
    """Return logarithms of multipliers, one per neuron, and one for the input and the output.

    Those of a layer are equal, and such that the bound is at most the product of the norms: scaled
    by them the first and the last layer have the norm sqrt(2), and those between the norm 1.
    """
    logs, level, last = [torch.zeros(1)], torch.zeros(()), len(weights) - 1
    for i, w in enumerate(weights):
        share = math.log(2) / 2 if i in (0, last) else 0.0
        level = level + share - gn.matrix_norm_bound(w.detach()).log()
        logs.append(level.repeat(1 if i == last else len(w)))
    return [log.requires_grad_() for log in logs]


BOUNDS: dict[str, Callable[[Weights, Weights], torch.Tensor] | None] = {
    "plain": None,
    "product": of_product,
    "network": of_network,
}


@dataclass(frozen=True)
class Judged:
    """What is known of a trained network; a radius is negative where the class is wrong."""

    accuracy: float
    product: float
    constant: float
    in_loss: float
    radii: torch.Tensor
    milliseconds: float

    def share(self, radius: float) -> float:
        """Return the percentage of test images that are right, provably so within a radius."""
        return 100 * (self.radii > radius).double().mean().item()


def trained(way: str, seed: int, data: list[torch.Tensor], epochs: int = EPOCHS) -> Judged:
    """Train a network with a bound in the loss, or without, and judge it."""
    images, labels, test_images, test_labels = data
    torch.manual_seed(seed)  # the same first weights and batches for all
    net, bound, in_loss = network(), BOUNDS[way], torch.tensor(math.nan)
    weights = weights_of(net)
    logarithms = first_logarithms(weights) if way == "network" else []
    optimiser = torch.optim.Adam([*net.parameters(), *logarithms])
    steps = epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=RATE, total_steps=steps)
    start = time.process_time()
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(images)), BATCH):
            loss = functional.cross_entropy(net(images[batch]), labels[batch])
            if bound is not None:
                in_loss = bound(weights, logarithms)
                loss = loss + functional.relu(in_loss.log() - math.log(TARGET))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    milliseconds = 1e3 * (time.process_time() - start) / steps
    return judged(net, in_loss.item(), milliseconds, test_images, test_labels)


def judged(
    net: nn.Sequential,
    in_loss: float,
    milliseconds: float,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> Judged:
    """Certify the weights as they are, and compute the margins with them in double precision."""
    weights = [w.detach() for w in weights_of(net)]
    product = gn.product_bound(*(gn.matrix_norm_bound(w).item() for w in weights))
    constant = gn.chain_bound(weights)
    with torch.no_grad():
        scores = net.double()(images.double())
    right = scores.gather(1, labels[:, None])[:, 0]
    others = scores.scatter(1, labels[:, None], -math.inf).amax(1)
    radii = (right - others) / (math.sqrt(2) * constant)
    accuracy = 100 * (right > others).double().mean().item()
    return Judged(accuracy, product, constant, in_loss, radii, milliseconds)


def lines(results: dict[str, list[Judged]]) -> Iterator[str]:
    """Yield the table, means over the seeds."""
    proved = "".join(f"{f'proved {r:g}':>11}" for r in RADII)
    names = ("accuracy", "product", "constant", "in loss", "ms / step")
    yield f"{'':8}" + "".join(f"{name:>10}" for name in names) + proved
    for way, runs in results.items():
        columns = ([run.accuracy, run.product, run.constant, run.in_loss] for run in runs)
        means = [statistics.fmean(column) for column in zip(*columns, strict=True)]
        step = statistics.median(run.milliseconds for run in runs)
        shares = (statistics.fmean(run.share(r) for run in runs) for r in RADII)
        numbers = f"{means[0]:10.1f}" + "".join(f"{x:10.2f}" for x in (*means[1:], step))
        yield f"{way:8}{numbers}" + "".join(f"{share:11.1f}" for share in shares)


def draw(results: dict[str, list[Judged]], path: Path) -> None:
    """Save the share of proved images as a function of the radius."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    radii = torch.linspace(0, 0.8, 200).tolist()
    colours = {"plain": "#8a8a8a", "product": "#b3261e", "network": "#1f5fa8"}
    for way, runs in results.items():
        shares = torch.tensor([[run.share(radius) for radius in radii] for run in runs])
        label = way if way == "plain" else f"{way} at most {TARGET:g} in the loss"
        axes.plot(radii, shares.mean(0), color=colours[way], label=label)
        axes.fill_between(radii, shares.amin(0), shares.amax(0), color=colours[way], alpha=0.15)
    axes.set(
        xlabel="Euclidean radius, for pixels between 0 and 1",
        ylabel="test images right and proved to stay so [%]",
        xlim=(0, 0.8),
        ylim=(0, 100),
        title=f"Certified accuracy, mean and extremes of {SEEDS} seeds",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train, judge, print and draw."""
    parser = argparse.ArgumentParser(
        description="Train with the constant of a network in the loss."
    )
    parser.add_argument("--output", type=Path, default=Path(sys.argv[0]).with_suffix(".png"))
    output = parser.parse_args().output
    torch.set_num_threads(1)
    data = digits()
    results = {way: [trained(way, seed, data) for seed in range(SEEDS)] for way in BOUNDS}
    print("Test images in percent; product of norms and constant of the network, certified\n")
    for line in lines(results):
        print(line)
    draw(results, output)


if __name__ == "__main__":
    main()
