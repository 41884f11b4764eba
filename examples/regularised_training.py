"""Train a small network on digits in five ways: what a certificate costs, and what it buys.

The network classifies scikit-learn's images of 8 x 8 pixels by three convolutions, two of them with a stride, and one
dense layer.  (That of `train_digits.py` learns little with layers of norm 1: its grouped convolutions and average pools
leave 37 % of its training images wrong after 40 epochs of rescaling.)  It is trained

    plain         by cross-entropy alone;
    penalty       with the sum of the logarithms of norms added to the loss, which a `NormTracker` follows;
    spectral_norm with `torch.nn.utils.parametrizations.spectral_norm` on every layer, which divides the kernel, read as
                  a matrix, by an estimate of its norm;
    followed      with `SpectralBound(layer, certify_every=100)` on every layer: in training the kernel is divided by an
                  estimate of the norm of the convolution, afterwards by a certified bound;
    rescaling     with the spectral rescaling of `SpectralBound` on every layer, which keeps its norm at most 1.

Afterwards every network is judged by the same measure: L, the product of certified bounds on the norms of its layers
at their real sizes and paddings.  An image that is classified correctly, with the highest score ahead of the second
by m, keeps its class under every change of the pixels (between 0 and 1) of Euclidean length below m / (sqrt(2) L).

Layers of norm 1 leave the scores too close together for the cross-entropy: the last three networks multiply them by
`SCALE` in the loss, which changes neither classes nor radii.

    pip install "gramnorm[examples]"
    python examples/regularised_training.py        # prints a table, writes regularised_training.png beside it

Takes about a minute on one CPU core.
"""

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from train_digits import digits, shifted

from gramnorm.torch import NormTracker, SpectralBound, layer_norms, lipschitz_penalty

EPOCHS = 14
BATCH = 64
SEEDS = 2

WEIGHT = 0.01
"""Of the penalty: with 0.1 in every step, which is rewarded without end for smaller norms, all weights vanish."""

SCALE = 10.0
STEPS = 2
"""Gram products of the rescaling."""

EVERY = 100
"""Steps from one search of a norm that is followed to the next."""

AIM = 0.8
"""Accuracy of which it is counted how many steps it takes."""

NOTES = """What the numbers show: L and the proved shares are certificates, for these weights and every change of the
pixels, whichever way the network was trained. What they do not show: that a share is as large as it could be, since
the product of norms ignores that the layers do not attain theirs on the same images; how the methods compare with
hyperparameters tuned for each (weight and scale were chosen by hand in a few trials, which saw the test images) or on
a larger network.
The roundings of the margins and of the product, in double precision, are not counted."""

RADII = (0.01, 0.03, 0.1)
INPUT_SHAPES = {"conv1": (8, 8), "conv2": (8, 8), "conv3": (4, 4)}


class SmallNet(nn.Module):
    """A chain of layers with ReLU between them: its Lipschitz constant is at most the product of their norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.dense = nn.Linear(32 * 2 * 2, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return one score per class; `images` has shape (batch, 1, 8, 8)."""
        x = functional.relu(self.conv1(images))
        x = functional.relu(self.conv2(x))
        x = functional.relu(self.conv3(x))
        return self.dense(torch.flatten(x, 1))


def rescaled(layer: nn.Module) -> None:
    """Keep the norm of a layer at most 1."""
    spectral = SpectralBound(layer, method="rescale", steps=STEPS)
    parametrize.register_parametrization(layer, "weight", spectral)


def followed(layer: nn.Module) -> None:
    """Keep the norm of a layer at about 1 in training, and at most 1 afterwards."""
    spectral = SpectralBound(layer, certify_every=EVERY)
    parametrize.register_parametrization(layer, "weight", spectral)


@dataclass(frozen=True)
class Method:
    """A way to train: what is done to the layers, what multiplies the scores, and whether there is a penalty."""

    name: str
    prepare: Callable[[nn.Module], object] = lambda layer: layer
    scale: float = 1.0
    penalised: bool = False


METHODS = (
    Method("plain"),
    Method("penalty", penalised=True),
    Method("spectral_norm", parametrizations.spectral_norm, SCALE),
    Method("followed", followed, SCALE),
    Method("rescaling", rescaled, SCALE),
)


class Training:
    """A network on its way, by one method from one seed."""

    def __init__(self, method: Method, seed: int, epochs: int, batches: int) -> None:
        torch.manual_seed(seed)  # the same first weights for every method
        self.method, self.seed, self.epoch = method, seed, 0
        self.net = SmallNet()
        for layer in list(self.net.children()):
            method.prepare(layer)
        self.tracker = NormTracker(certify_every=EVERY)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), weight_decay=1e-2)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, max_lr=1e-2, epochs=epochs, steps_per_epoch=batches
        )
        self.step, self.reached = 0, math.inf
        self.seconds: list[float] = []

    def one_epoch(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Train for an epoch, and note the seconds of the processor."""
        start = time.process_time()
        torch.manual_seed(1000 * self.seed + self.epoch)  # the same batches for every method
        for batch in torch.split(torch.randperm(len(images)), BATCH):
            scores = self.method.scale * self.net(shifted(images[batch]))
            loss = functional.cross_entropy(scores, labels[batch])
            if self.method.penalised:
                loss = loss + WEIGHT * lipschitz_penalty(self.net, tracker=self.tracker)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.schedule.step()
            self.step += 1
        self.epoch += 1
        self.seconds.append(time.process_time() - start)

    def look(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Note the steps until the accuracy is reached for the first time."""
        with torch.no_grad():
            right = (self.net(images).argmax(1) == labels).double().mean().item()
        if right >= AIM:
            self.reached = min(self.reached, self.step)


@dataclass
class Judged:
    """What is known of a trained network: accuracy, norms, and for each test image the radius (negative: wrong)."""

    accuracy: float
    norms: dict[str, float]
    radii: torch.Tensor
    reached: float
    seconds: list[float] = field(repr=False)

    @property
    def product(self) -> float:
        """The certified Lipschitz constant."""
        return math.prod(self.norms.values())

    def share(self, radius: float) -> float:
        """Return the fraction of test images that are right, provably so within `radius`."""
        return (self.radii > radius).double().mean().item()


def judged(training: Training, images: torch.Tensor, labels: torch.Tensor) -> Judged:
    """Certify the weights as stored, and compute the margins with them in double precision."""
    net = copy.deepcopy(training.net).eval()
    for layer in list(net.children()):
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight")
    norms = {n: norm.item() for n, norm in layer_norms(net, input_shapes=INPUT_SHAPES).items()}
    with torch.no_grad():
        scores = net.double()(images.double())
    right = scores.gather(1, labels[:, None])[:, 0]
    others = scores.scatter(1, labels[:, None], -math.inf).amax(1)
    accuracy = (right > others).double().mean().item()
    radii = (right - others) / (math.sqrt(2) * math.prod(norms.values()))
    return Judged(accuracy, norms, radii, training.reached, training.seconds)


def spread(values: list[float], form: str) -> str:
    """Return the mean and half the range."""
    return f"{statistics.mean(values):{form}} ± {(max(values) - min(values)) / 2:{form}}"


def lines(results: dict[str, list[Judged]]) -> Iterator[list[str]]:
    """Yield the cells of the table."""
    proved = [f"proved {r:g}" for r in RADII]
    yield ["", "accuracy", "product bound L", *proved, "radius", f"steps to {AIM:.0%}", "cost"]
    for name, runs in results.items():
        yield [
            name,
            spread([100 * run.accuracy for run in runs], ".1f"),
            spread([run.product for run in runs], ".2f"),
            *(spread([100 * run.share(radius) for run in runs], ".1f") for radius in RADII),
            spread([run.radii.median().item() for run in runs], ".4f"),
            " - ".join(f"{run.reached:.0f}" for run in sorted(runs, key=lambda run: run.reached)),
            f"{overhead(results, name):.2f}",
        ]


def overhead(results: dict[str, list[Judged]], name: str) -> float:
    """Return the median of the seconds per epoch over those of plain training in turn with it."""
    pairs = zip(results[name], results["plain"], strict=True)
    return statistics.median(
        a / b for run, plain in pairs for a, b in zip(run.seconds, plain.seconds, strict=True)
    )


def report(results: dict[str, list[Judged]], batches: int) -> None:
    """Print the table, and the norms that L is made of."""
    rows = list(lines(results))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    step = statistics.median(t for run in results["plain"] for t in run.seconds) / batches
    print(
        "Test images: accuracy, and how many are right and proved to stay so within a radius, in percent; median\n"
        f"radius; mean and half the range over {len(results['plain'])} seeds; steps until that accuracy was seen;\n"
        f"cost: seconds of an epoch over those of plain training, of which a step takes {1e3 * step:.1f} ms\n"
    )
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
    print()
    for name, runs in results.items():
        norms = ", ".join(f"{layer} {norm:.3f}" for layer, norm in runs[-1].norms.items())
        print(f"certified norms, last seed, {name}: {norms}")


def draw(results: dict[str, list[Judged]], path: Path) -> None:
    """Save the share of proved images as a function of the radius."""
    mpl.use("agg")
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    radii = torch.logspace(-3, 0, 200).tolist()
    for name, runs in results.items():
        shares = torch.tensor([[100 * run.share(radius) for radius in radii] for run in runs])
        (line,) = axes.plot(radii, shares.mean(0), label=name)
        axes.fill_between(radii, shares.amin(0), shares.amax(0), color=line.get_color(), alpha=0.2)
    axes.set(
        xscale="log",
        xlabel="Euclidean radius, for pixels between 0 and 1",
        ylabel="test images right and proved to stay so [%]",
        ylim=(0, 100),
        title=f"Certified accuracy, mean and extremes over seeds: {len(results['plain'])}",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train, judge, print and draw."""
    parser = argparse.ArgumentParser(description="Compare five ways to train a small network.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)  # NumPy's, in which norms of convolutions are certified
    train_x, train_y, test_x, test_y = digits()
    batches = math.ceil(len(train_x) / BATCH)
    results: dict[str, list[Judged]] = {method.name: [] for method in METHODS}
    for seed in range(given.seeds):
        trainings = [Training(method, seed, given.epochs, batches) for method in METHODS]
        for _ in range(given.epochs):
            for training in trainings:  # in turn, so that a busy machine slows all of them
                training.one_epoch(train_x, train_y)
                training.look(test_x, test_y)
        for training in trainings:
            results[training.method.name].append(judged(training, test_x, test_y))
    report(results, batches)
    draw(results, given.output)
    print(f"\n{NOTES}\nwrote {given.output}")


if __name__ == "__main__":
    main()
