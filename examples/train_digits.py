"""Train the small convolutional network whose weights gramnorm ships.

Scikit-learn's digits are 1797 grey images of 8 x 8 pixels.  The network has every kind of layer that `gramnorm
report` tells apart: a dense 5 x 5 convolution, a depthwise and a grouped 3 x 3 one, a 1 x 1 one, and dense layers.
Beside the weights the file holds one text, `__layers__`: what each convolution does with its kernel, since a bound
on the layer needs the groups and the padding, which no weight array can tell.

    python examples/train_digits.py                # writes gramnorm/data/digits.npz
    gramnorm report gramnorm/data/digits.npz

Needs `torch` and `scikit-learn`; takes about half a minute on one CPU core, and repeats to the bit on one machine.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

SHIPPED = Path(__file__).resolve().parents[1] / "gramnorm" / "data" / "digits.npz"
EPOCHS = 80
BATCH = 64


class DigitsNet(nn.Module):
    """A chain of convolutions, average pools and dense layers with ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, padding="same")
        self.conv2 = nn.Conv2d(16, 16, 3, padding="same", groups=16)
        self.conv3 = nn.Conv2d(16, 32, 1)
        self.conv4 = nn.Conv2d(32, 32, 3, padding="same", groups=4)
        self.dense1 = nn.Linear(32 * 2 * 2, 32)
        self.dense2 = nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return one score per class; `images` has shape (batch, 1, 8, 8)."""
        x = functional.relu(self.conv1(images))
        x = functional.relu(self.conv3(self.conv2(x)))
        x = functional.avg_pool2d(x, 2)
        x = functional.relu(self.conv4(x))
        x = functional.avg_pool2d(x, 2)
        x = functional.relu(self.dense1(torch.flatten(x, 1)))
        return self.dense2(x)


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return training images and labels, then test images and labels (a fixed, stratified quarter)."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=0.25, random_state=0, stratify=labels
    )
    return (
        torch.from_numpy(train_x),
        torch.from_numpy(train_y),
        torch.from_numpy(test_x),
        torch.from_numpy(test_y),
    )


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Return `images`, all moved by the same random offset of at most one pixel per axis, as more training data."""
    down, right = torch.randint(3, (2,)).tolist()
    return functional.pad(images, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]


def train(net: DigitsNet, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Train `net` in place by Adam with a one-cycle step size."""
    batches = math.ceil(len(images) / BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=1e-2, epochs=EPOCHS, steps_per_epoch=batches
    )
    net.train()
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(images)), BATCH):
            loss = functional.cross_entropy(net(shifted(images[batch])), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def accuracy(net: DigitsNet, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the fraction of `images` that `net` classifies correctly."""
    net.eval()
    with torch.no_grad():
        return (net(images).argmax(dim=1) == labels).double().mean().item()


def geometry(net: DigitsNet) -> dict[str, dict[str, object]]:
    """Return what each weight array does, read off the layers by running one image through them."""
    sizes: dict[str, list[int]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: sizes.__setitem__(name, list(args[0].shape[2:]))
        )
        for name, module in net.named_children()
    ]
    net(torch.zeros(1, 1, 8, 8))
    for hook in hooks:
        hook.remove()
    layers: dict[str, dict[str, object]] = {}
    for name, module in net.named_children():
        layers[f"{name}.weight"] = {"kind": "dense"}
        if isinstance(module, nn.Conv2d):
            layers[f"{name}.weight"] = {
                "kind": "conv",
                "groups": module.groups,
                "dilation": list(module.dilation),
                "stride": list(module.stride),
                "padding": module.padding,  # a word, or a pair of ints, which JSON makes a list
                "padding_mode": module.padding_mode,
                "input_shape": sizes[name],
            }
    return layers


def save(net: DigitsNet, path: Path) -> None:
    """Write the weights as float32 arrays and the geometry as one text: no entry needs pickle."""
    arrays = {name: value.numpy() for name, value in net.state_dict().items()}
    np.savez_compressed(path, __layers__=np.array(json.dumps(geometry(net))), **arrays)


def main() -> None:
    """Train, say how well, and write the file."""
    parser = argparse.ArgumentParser(description="Train the digits network that gramnorm ships.")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the .npz file to write")
    out = parser.parse_args().out
    torch.set_num_threads(1)  # the bits must not depend on how many cores share a sum
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    train_x, train_y, test_x, test_y = digits()
    net = DigitsNet()
    train(net, train_x, train_y)
    save(net, out)
    sys.stdout.write(
        f"train accuracy {accuracy(net, train_x, train_y):.4f}, test accuracy {accuracy(net, test_x, test_y):.4f}\n"
        f"wrote {out} ({out.stat().st_size} bytes)\n"
    )


if __name__ == "__main__":
    main()
