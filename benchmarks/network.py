"""The product over the layers of a ResNet-18: what each method makes of a bound of the network.

All 20 convolutions with their strides, zero padding and image sizes; ratios are to the norms of those very operators,
from below by ARPACK (whose tolerance of 1e-3 is that of a residual; values are far closer), so a ratio below 1 is
proved to be on the wrong side.  For the weights that training on ImageNet left, published values of this ratio are
1.47 for the Gram iteration, 86 for Fantastic Four and 3e10 for LipGrid (the notebook stored with the code of
arXiv:2305.16173).
"""

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import gramnorm as gn
from benchmarks.devices import Device
from benchmarks.kernels import RESNET18, Layer, decaying, gaussian
from benchmarks.rivals import arpack
from benchmarks.tables import Table
from gramnorm import classical

WEIGHTS = {"random": gaussian, "decaying spectrum": decaying}


def _sized(method: Callable[..., Any]) -> Callable[[Any, Layer], Any]:
    return lambda kernel, layer: method(
        kernel, (layer.n, layer.n), stride=layer.stride, padding=layer.padding
    )


def _every(method: Callable[..., Any], **options: Any) -> Callable[[Any, Layer], Any]:
    return lambda kernel, layer: method(kernel, stride=layer.stride, **options)


METHODS: dict[str, Callable[[Any, Layer], Any]] = {
    "gramnorm, every size, rtol 0.01": _every(gn.conv_norm_bound, rtol=0.01),
    "gramnorm, at the size, rtol 0.05": _sized(partial(gn.conv_norm_bound, rtol=0.05)),
    "norm2toep_upper_bound, 2 steps": _every(classical.norm2toep_upper_bound, steps=2),
    "fantastic_four_upper_bound": _every(classical.fantastic_four_upper_bound),
    "aol_upper_bound": _every(classical.aol_upper_bound),
    "lip_grid_upper_bound": _every(classical.lip_grid_upper_bound),
    "tensor_norm_estimate": _every(classical.tensor_norm_estimate),
    "circular_exact_norm": lambda kernel, layer: classical.circular_exact_norm(
        kernel, (layer.n, layer.n), stride=layer.stride
    ),
    "power_iteration_lower_bound": _sized(classical.power_iteration_lower_bound),
}


def network(device: Device) -> Iterator[Table]:
    """Multiply each method over the 20 layers, for random weights and for weights of decaying spectrum."""
    layers, products = [], []
    for kind, make in WEIGHTS.items():
        print(f"network: {kind}", file=sys.stderr, flush=True)
        kernels = [
            make(layer.shape, seed).astype(np.float32) for seed, layer in enumerate(RESNET18)
        ]
        norms = [
            arpack(
                kernel.astype(np.float64),
                layer.n,
                tol=1e-3,
                stride=layer.stride,
                padding=layer.padding,
            )()
            for kernel, layer in zip(kernels, RESNET18, strict=True)
        ]
        for name, method in METHODS.items():
            log, total, below = 0.0, 0.0, 0
            numbered = enumerate(zip(kernels, RESNET18, norms, strict=True), 1)
            for number, (kernel, layer, norm) in numbered:
                value, seconds = _measured(method, device.asarray(kernel), layer, device)
                ratio = value / norm
                log, total, below = log + math.log(ratio), total + seconds, below + (ratio < 1)
                layers.append(
                    {"weights": kind, "number": number, "layer": str(layer), "method": name}
                    | {"value / norm": ratio, "seconds": seconds}
                )
            products.append(
                {"weights": kind, "method": name, "product / true product": math.exp(log)}
                | {"layers below the norm": below, "seconds": total}
            )
    title = "ResNet-18: product of 20 layers over that of their norms with zero padding, float32"
    yield Table("network", title, products)
    yield Table("network_layers", "ResNet-18, layer by layer", layers)


def _measured(
    method: Callable[[Any, Layer], Any], kernel: Any, layer: Layer, device: Device
) -> tuple[float, float]:
    """Return the value of a method and the seconds it took."""
    found: list[float] = []
    seconds = device.seconds(lambda: found.append(float(method(kernel, layer))), 1)
    return found[0], seconds
