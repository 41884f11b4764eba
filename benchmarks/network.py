"""The layers of a ResNet-18: what each method makes of a bound of the network, and a report on it.

All 20 convolutions with their strides, zero padding and image sizes; ratios are to the norms of those very operators,
from below by ARPACK (whose tolerance of 1e-3 is that of a residual; values are far closer), so a ratio below 1 is
proved to be on the wrong side.  For the weights that training on ImageNet left, published values of this ratio are
1.47 for the Gram iteration, 86 for Fantastic Four and 3e10 for LipGrid (the notebook stored with the code of
arXiv:2305.16173).

A report is one call of the command on an ONNX file of the network, with default settings, alone and beside processes
that never rest.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import gramnorm as gn
from benchmarks.devices import AbsentError, Device, require_numpy
from benchmarks.hosts import OTHERS, beside, cores
from benchmarks.kernels import RESNET18, Layer, decaying, gaussian
from benchmarks.rivals import arpack
from benchmarks.tables import Table
from benchmarks.timing import aim
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


def report(device: Device) -> Iterator[Table]:
    """Time a report on a ResNet-18: of a quarter of the width beside others, and of the whole width."""
    require_numpy(device, "the command computes with NumPy by default")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = resnet18_file(Path(folder), gaussian, narrower=4, n=64)
        for others in OTHERS:
            with beside(others):
                runs = [_reported(path) for _ in range(3)]
            wall, cpu = (
                statistics.median(side) for side in zip(*(r[:2] for r in runs), strict=True)
            )
            if not others:
                quiet = wall, cpu
            goal = {0: {"wall": 2.5}, 1: {"wall": 2 * quiet[0]}, 6: {"CPU": 1.3 * quiet[1]}}[others]
            rows.append(
                _row(f"quarter width, 64 x 64, {others} beside", wall, cpu, runs[0][2], goal)
            )
        for kind, make in WEIGHTS.items():
            path = resnet18_file(Path(folder), make, narrower=1, n=224)
            goal = {"wall": {"random": 60.0, "decaying spectrum": 15.0}[kind]}
            rows.append(
                _row(f"{kind}, 224 x 224, rtol 1e-2", *_reported(path, "--rtol", "1e-2"), goal)
            )
    title = f"One report on a ResNet-18, {cores()} cores, default settings, every size"
    yield Table("report", title, rows)


def _row(
    case: str, wall: float, cpu: float, converged: str, goal: dict[str, float]
) -> dict[str, Any]:
    """Return a row; the goal is one of the seconds on the clock, or of those of the processor."""
    ((of, most),) = goal.items()
    cells = {"wall [s]": wall, "CPU [s]": cpu, "converged": converged, "goal of": of}
    return {"case": case} | cells | aim({"wall": wall, "CPU": cpu}[of], most)


def _reported(path: Path, *options: str) -> tuple[float, float, str]:
    """Return the seconds that a report takes, on the clock and of the processor, and who converged."""
    names = {f"{library}_NUM_THREADS" for library in ("OMP", "OPENBLAS", "MKL")}
    settings = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-m", "gramnorm", "report", str(path), "--json", *options]
    began, spent = time.perf_counter(), os.times()
    done = subprocess.run(command, capture_output=True, check=True, env=settings)
    wall, after = time.perf_counter() - began, os.times()
    cpu = sum(after[k] - spent[k] for k in (2, 3))  # of children that have ended
    layers = json.loads(done.stdout)["layers"]
    return wall, cpu, f"{sum(bool(layer['converged']) for layer in layers)} of {len(layers)}"


def resnet18_file(folder: Path, make: Callable[..., Any], *, narrower: int, n: int) -> Path:
    """Write a ResNet-18 as ONNX, with so many times fewer channels, for an image of n x n."""
    try:
        import onnx
    except ImportError as error:
        msg = "onnx is not installed"
        raise AbsentError(msg) from error
    nodes: list[Any] = []
    weights: list[Any] = []

    def add(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(onnx.helper.make_node(kind, inputs, [f"{kind}{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    def convolved(x: str, layer: Layer) -> str:
        c_out, c_in, *kernel_size = layer.shape
        shape = (c_out // narrower, c_in if c_in == 3 else c_in // narrower, *kernel_size)
        kernel = make(shape, len(weights)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(kernel, f"conv{len(weights)}.weight"))
        geometry = {"strides": [layer.stride] * 2, "pads": [layer.padding] * 4}
        return add("Conv", x, weights[-1].name, kernel_shape=kernel_size, **geometry)

    def block(x: str, first: Layer, second: Layer, projection: Layer | None = None) -> str:
        y = convolved(add("Relu", convolved(x, first)), second)
        return add("Relu", add("Add", y, x if projection is None else convolved(x, projection)))

    first, *rest = RESNET18
    x = block(block(add("Relu", convolved("x", first)), *rest[:2]), *rest[2:4])
    for k in range(4, len(rest), 5):
        entry, inner, projection, *last = rest[k : k + 5]
        x = block(block(x, entry, inner, projection), *last)
    value = partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    ends = [value("x", shape=[1, 3, n, n])], [value(x, shape=None)]
    graph = onnx.helper.make_graph(nodes, "resnet18", *ends, weights)
    path = folder / f"resnet18_{narrower}_{n}.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)
    return path
