"""Search for graphs of ONNX whose constant is too small: ``python -m tests.harness.graphs``.

Random small graphs (every operator with a rule, odd attributes, sizes known and not, constants that the graph
computes, chains of layers, versions from 7 on) are run by onnxruntime, which shares no code with the reader.  Three
things are compared: the constant, with the bounds of chains in it, with ratios of differences along the worst
directions found, each believed size with the size that comes
out, and each constant folded by the reader with the value that comes out.  Exit status 1 if one is wrong, or if
anything but a refusal was raised.
"""

import argparse
import collections
import contextlib
import functools
import io
import itertools
import math
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.version_converter import convert_version

from gramnorm.report import bound_layer, chains
from gramnorm.report.network import Constant, constant_of
from gramnorm.report.onnx.constants import COMPUTED
from gramnorm.report.onnx.nodes import Fixed, Varying
from gramnorm.report.onnx.reader import _Walk, read_onnx
from gramnorm.report.onnx.rules import RULES

COUNT = 20_000
FLOAT, DOUBLE, INT64 = (getattr(onnx.TensorProto, t) for t in ("FLOAT", "DOUBLE", "INT64"))
INT32_MAX, INT64_MAX = 2**31 - 1, 2**63 - 1
ODD = (-INT64_MAX - 1, -INT64_MAX, -INT32_MAX - 1, -9, 9, 100, INT32_MAX, INT64_MAX - 1, INT64_MAX)
VERSIONS = tuple(range(7, 23))
MOST_ENTRIES = 300  # of a tensor
CHAIN_SECONDS = 0.2  # for the descents of a graph: any multipliers give a bound
IR_VERSION = 8
KINDS = ("pytorch-operator", "pytorch-converted", "simple", "node")


# ------------------------------------------------------------------------------ onnxruntime as the truth


def runner(model: Any) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """Return the function that a model is, as onnxruntime computes it node by node."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with _refusals():
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        with _refusals(), np.errstate(all="ignore"):
            return session.run(None, feeds)

    return run


class UnusableError(Exception):
    """A graph that onnxruntime refuses, or that makes too much."""


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime has many kinds
        raise UnusableError(str(error)) from error


def steepest(
    run: Callable[[dict[str, np.ndarray]], list[np.ndarray]],
    shapes: dict[str, tuple[int, ...]],
    rng: np.random.Generator,
    *,
    scales: Sequence[float] = (0.3, 3.0),
) -> float:
    """Return the largest ratio of differences found, less what the rounding of the run may add to it.

    Jacobians by differences give directions; ratios along them are what counts, so that a kink does no harm.
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    n = sum(sizes)

    def at(x: np.ndarray) -> np.ndarray:
        parts = zip(shapes.items(), np.split(x, np.cumsum(sizes)[:-1]), strict=True)
        found = run({name: p.reshape(s).astype(np.float32) for (name, s), p in parts})
        return np.concatenate([np.ravel(y).astype(float) for y in found])

    best = 0.0
    for scale in scales:
        x = (scale * rng.standard_normal(n)).astype(np.float32).astype(float)
        base = at(x)
        step = 2.0**-6 * scale
        places = range(n) if n <= MOST_ENTRIES else rng.integers(n, size=40)
        moves = [np.eye(1, n, i)[0] for i in places]
        columns = np.stack([(at(x + step * e) - base) / step for e in moves], axis=1)
        if not np.all(np.isfinite(columns)):
            continue
        vectors = np.linalg.svd(columns, full_matrices=False)[2][:1] @ np.stack(moves)
        for v, size in itertools.product((*vectors, rng.standard_normal(n)), (step, scale)):
            moved = (x + size * v / np.linalg.norm(v)).astype(np.float32).astype(float)
            y, distance = at(moved), np.linalg.norm(moved - x)
            noise = 2.0**-20 * (np.linalg.norm(y) + np.linalg.norm(base))
            ratio = (np.linalg.norm(y - base) - noise) / distance
            best = max(best, float(ratio)) if np.isfinite(ratio) else best
    return best


# ------------------------------------------------------------------------------------- random graphs


@dataclass
class Builder:
    """A graph that grows node by node, with the shape that each varying tensor really has."""

    rng: np.random.Generator
    version: int
    nodes: list[Any] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    open_arrays: list[str] = field(default_factory=list)  # also inputs of the graph
    makers: tuple["Maker", ...] = ()
    count: int = 0

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def maybe(self, chance: float) -> bool:
        return bool(self.rng.random() < chance)

    def pick(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def axis(self, rank: int, *, negative: bool | None = None) -> int:
        negative = self.version >= 11 if negative is None else negative
        axis = int(self.rng.integers(rank)) if rank else 0
        return axis - rank if negative and self.maybe(0.3) else axis

    def odd(self, value: int, chance: float = 0.06) -> int:
        return int(self.pick(*ODD)) if self.maybe(chance) else value

    def array(self, value: Any, dtype: Any = np.float32) -> str:
        """Return the name of a constant: stored, stored and open, from a node, or made by nodes."""
        value, name = np.asarray(value, dtype), self.name()
        if value.dtype == np.float32 and self.maybe(0.15):
            self._computed(value, name)
            return name
        kind = self.rng.random()
        if kind < 0.5:
            self.arrays[name] = value
            if kind < 0.05:
                self.open_arrays.append(name)
        elif kind < 0.7 or value.ndim != 1 or value.size < 1:
            self.make("Constant", [], [name], value=numpy_helper.from_array(value))
        else:
            self._made(value, name)
        return name

    def _computed(self, value: np.ndarray, name: str) -> None:
        """Add nodes that compute a floating constant without changing it."""
        t, c, d = self.name(), self.name(), self.name()
        two = np.asarray(2, value.dtype)
        op = self.pick("Mul", "Div", "Neg", "Add", "Sub", "Cast", "Transpose", "Max", "Reciprocal",
                       "Where", "Slice", "Split")  # fmt: skip
        if op in ("Mul", "Div"):
            self.arrays |= {t: value / two if op == "Mul" else value * two, c: two}
            self.make(op, [t, c], [name])
        elif op in ("Neg", "Reciprocal"):
            powers = np.copysign(2.0 ** self.rng.integers(-3, 4, value.shape), value)
            self.arrays[t] = -value if op == "Neg" else powers.astype("f4")
            self.make(op, [t], [name])
        elif op in ("Add", "Sub"):
            self.arrays |= {t: value, c: np.zeros_like(value)}
            self.make(op, [t, c], [name])
        elif op == "Cast":
            self.arrays[t] = value.astype(float)
            self.make(op, [t], [name], to=FLOAT)
        elif op == "Max" and self.version >= 8:
            self.arrays |= {t: value, c: value - two}
            self.make(op, [t, c], [name])
        elif op == "Where" and self.version >= 9:
            self.arrays |= {t: value, c: np.full(value.shape[-1:], True), d: value - two}
            self.make(op, [c, t, d], [name])
        elif op == "Slice" and value.ndim:
            self.arrays[t] = np.concatenate([value, value[:1]])
            self.node(op, [t], [name], starts=([0], 10), ends=([-1], 10), axes=([0], 10))
        elif op == "Split" and value.ndim:
            self.arrays[t] = np.concatenate([value, value])
            more = {"num_outputs": 2} if self.version >= 18 else {}
            self.make(op, [t], [name, c], axis=0, **more)
        else:
            self.arrays[t] = value.T
            self.make("Transpose", [t], [name])

    def _made(self, value: np.ndarray, name: str) -> None:
        """Add nodes that make a vector out of other constants."""
        parts = [self.name() for _ in range(3)]
        kind = self.pick("Concat", "Gather", "Cast", "Reshape", "Squeeze")
        if kind == "Concat":
            cut = int(self.rng.integers(value.size + 1))
            self.arrays |= {parts[0]: value[:cut], parts[1]: value[cut:]}
            self.make(kind, parts[:2], [name], axis=0)
        elif kind == "Gather":
            order = self.rng.permutation(value.size)
            self.arrays |= {
                parts[0]: value[np.argsort(order)],
                parts[1]: order - value.size * self.maybe(0.2),
            }
            self.make(kind, parts[:2], [name])
        elif kind == "Cast" and value.dtype == np.int64 and np.all(abs(value) < INT32_MAX):
            self.arrays[parts[0]] = value.astype(np.int32)
            self.make(kind, parts[:1], [name], to=INT64)
        elif kind == "Squeeze":
            self.arrays[parts[0]] = value[:, None]
            self.node(kind, parts[:1], [name], axes=([1], 13))
        else:
            self.arrays |= {parts[0]: value[None], parts[1]: np.asarray([-1])}
            self.make("Reshape", parts[:2], [name])

    def make(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> None:
        made = helper.make_node(op, list(inputs), list(outputs))
        for key, value in attributes.items():
            empty = isinstance(value, list) and not value
            kind = {"attr_type": onnx.AttributeProto.INTS} if empty else {}
            made.attribute.append(helper.make_attribute(key, value, **kind))
        self.nodes.append(made)

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **lists: Any) -> None:
        """Add a node whose integers, (values, version), are attributes before the version and inputs from there on."""
        inputs, attributes = list(inputs), {}
        for key, value in lists.items():
            if not isinstance(value, tuple):
                attributes[key] = value
            elif self.version < value[1]:
                attributes |= {} if value[0] is None else {key: list(value[0])}
            else:
                inputs.append("" if value[0] is None else self.array(value[0], np.int64))
        while inputs and not inputs[-1]:
            inputs.pop()
        self.make(op, inputs, outputs, **attributes)

    def model(self, outputs: Sequence[str], declared: dict[str, Any]) -> Any:
        """Return the model with these outputs, of unknown shapes, and inputs as declared."""
        info = helper.make_tensor_value_info
        stored = [numpy_helper.from_array(v, k) for k, v in self.arrays.items()]
        given = [info(k, FLOAT, s) for k, s in declared.items()]
        given += [
            info(k, helper.np_dtype_to_tensor_dtype(self.arrays[k].dtype), self.arrays[k].shape)
            for k in self.open_arrays
        ]
        graph = helper.make_graph(
            self.nodes, "g", given, [info(k, FLOAT, None) for k in outputs], stored
        )
        opset = [helper.make_opsetid("", self.version)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)

    def grow(self) -> None:
        """Add one random operator, or nothing where onnxruntime refuses it."""
        before = (list(self.nodes), dict(self.arrays), list(self.open_arrays))
        x = self.pick(*self.shapes)
        maker = unknown if self.maybe(0.01) else self.pick(*self.makers)
        try:
            outputs = maker(self, x, self.shapes[x])
            self._measure(outputs, before)
        except UnusableError:
            self.nodes, self.arrays, self.open_arrays = before

    def check(self, model: Any, shapes: dict[str, tuple[int, ...]]) -> list[np.ndarray]:
        """Return what a model makes of random inputs; raise UnusableError if onnxruntime refuses it."""
        feeds = {k: self.rng.standard_normal(s).astype("f4") for k, s in shapes.items()}
        return runner(model)(feeds)

    def _measure(self, outputs: Sequence[str], before: Any) -> None:
        """Enter the shapes of new tensors, as onnxruntime makes them out of those that are there."""
        new = Builder(self.rng, self.version, self.nodes[len(before[0]) :], self.arrays)
        found = self.check(new.model(outputs, self.shapes), self.shapes)
        if any(y.size > MOST_ENTRIES or y.size == 0 or y.dtype != np.float32 for y in found):
            raise UnusableError
        self.shapes |= {k: y.shape for k, y in zip(outputs, found, strict=True)}


Maker = Callable[[Builder, str, tuple[int, ...]], list[str]]


def entrywise(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Functions of one number, and softmax."""
    y, v = b.name(), b.version
    alpha = float(b.rng.uniform(-2, 2))
    kind = b.pick(
        ("Relu", {}), ("Tanh", {}), ("Sigmoid", {}), ("Abs", {}), ("Neg", {}), ("Softplus", {}), ("Softsign", {}),
        ("Sin", {}), ("Cos", {}), ("Atan", {}), ("Elu", {"alpha": alpha}), ("LeakyRelu", {"alpha": alpha}),
        ("LeakyRelu", {}), ("Selu", {}), ("Selu", {"alpha": alpha, "gamma": 2 * alpha}), ("Identity", {}),
        ("HardSigmoid", {"alpha": alpha, "beta": 0.3}), ("HardSigmoid", {}), ("Erf", {}) if v >= 9 else ("Relu", {}),
        ("Celu", {"alpha": abs(alpha) + 0.1}) if v >= 12 else ("Elu", {}),
        ("HardSwish", {}) if v >= 14 else ("Selu", {}), ("Mish", {}) if v >= 18 else ("Tanh", {}),
        ("Gelu", {"approximate": b.pick("none", "tanh")}) if v >= 20 else ("Softsign", {}),
        ("LogSoftmax", {"axis": b.axis(len(shape))} if shape and b.maybe(0.7) else {}),
        ("Softmax", {"axis": b.axis(len(shape))} if shape and b.maybe(0.7) else {}), ("Dropout", {}),
    )  # fmt: skip
    b.make(kind[0], [x], [y], **kind[1])
    return [y]


def clipped(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y, low, high = b.name(), float(b.rng.normal()), float(b.rng.normal()) + 1
    if b.version < 11:
        b.make("Clip", [x], [y], min=low, max=high)
    else:
        b.make("Clip", [x, b.array(low), b.array(high)][: int(b.rng.integers(1, 4))], [y])
    return [y]


def gated(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Multiply a tensor by its own gate."""
    t, y = b.name(), b.name()
    kind = b.pick(
        ("Sigmoid", {}),
        ("HardSigmoid", {"alpha": float(b.rng.normal()), "beta": float(b.rng.normal())}),
    )
    b.make(kind[0], [x], [t], **kind[1])
    b.make("Mul", b.pick([x, t], [t, x]), [y])
    return [y]


def written_out(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Multiply a tensor by a function of itself in several nodes, some with odd constants."""
    odd = b.maybe(0.5)

    def made(op: str, *inputs: Any, **more: Any) -> str:
        y = b.name()
        b.make(op, [i if isinstance(i, str) else b.array(i) for i in inputs], [y], **more)
        return y

    def number(usual: float) -> float:
        return float(b.rng.normal()) if odd else usual

    kind = b.pick("HardSwish", "Gelu", "Tanh", "Swish", "Mish")
    line = made("Mul", x, number(0.5)) if b.maybe(0.5) else x
    if kind == "HardSwish":
        u = made("Add", x, number(3.0))
        low, high = number(0.0), number(6.0)
        old = b.version < 11
        u = made("Clip", u, min=low, max=high) if old else made("Clip", u, low, high)
        u = made(*b.pick(("Div", u, 6.0), ("Mul", u, number(0.2)), ("Sub", number(1.0), u)))
    elif kind == "Gelu" and b.version >= 9:
        u = made("Erf", made("Div", x, 2**0.5))
        u = made("Add", made("Mul", u, number(1.0)), number(1.0))
    elif kind == "Mish":
        u = made("Tanh", made("Softplus", x))
    elif kind == "Swish":
        u = made("Add", made("Sigmoid", made("Mul", x, number(1.702))), number(0.0))
    else:
        cube = b.pick(("Pow", x, 3.0), ("Mul", made("Mul", x, x), x))
        inner = made(
            "Mul", made("Add", x, made("Mul", made(*cube), 0.044715)), (2 / math.pi) ** 0.5
        )
        u = made("Add", made("Tanh", inner if b.maybe(0.7) else x), number(1.0))
    y = made("Mul", *b.pick((line, u), (u, line)))
    return [made("Mul", y, number(0.5)) if b.maybe(0.5) else y]


def cast(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    t, y = b.name(), b.name()
    b.make("Cast", [x], [t], to=DOUBLE)
    b.make("Cast", [t], [y], to=FLOAT)
    return [y]


def partner_shape(b: Builder, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape that broadcasts with another, mostly."""
    dims = [n if b.maybe(0.5) else 1 for n in shape]
    dims = [int(b.rng.integers(2, 4)) if n == 1 and b.maybe(0.15) else n for n in dims]
    return tuple(
        ([int(b.rng.integers(1, 4))] if b.maybe(0.15) else [])
        + dims[int(b.rng.integers(len(dims) + 1)) :]
    )


def with_constant(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Join a tensor and a constant, which may repeat each other."""
    y = b.name()
    op = b.pick("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "PRelu")
    value = b.rng.standard_normal(partner_shape(b, shape))
    value = np.where(np.abs(value) < 0.25, 0.25, value) if op == "Div" else value
    c = b.array(value)
    b.make(op, [c, x] if op not in ("Div", "PRelu") and b.maybe(0.4) else [x, c], [y])
    return [y]


def together(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Add up tensors that broadcast, or take their extremes."""
    y = b.name()
    fit = []
    for name, other in b.shapes.items():
        with contextlib.suppress(ValueError):
            np.broadcast_shapes(shape, other)
            fit.append(name)
    op = b.pick("Add", "Sub", "Max", "Min", "Sum")
    several = 1 if op in ("Add", "Sub") else int(b.rng.integers(0, 3))
    b.make(op, [x, *(b.pick(*fit) for _ in range(several))], [y])
    return [y]


def normalised(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y, c = b.name(), shape[1] if len(shape) > 1 else 1
    vectors = [b.rng.standard_normal(c) for _ in range(3)] + [b.rng.uniform(0.01, 2, c)]
    more = {"training_mode": 0} if b.version >= 14 and b.maybe(0.2) else {}
    more |= {"epsilon": 0.125} if b.maybe(0.5) else {}
    b.make("BatchNormalization", [x, *map(b.array, vectors)], [y], **more)
    return [y]


def by_deviation(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Normalise by the input's own deviation, which is large where the input has none."""
    y, rank = b.name(), len(shape)
    if rank < 3:
        raise UnusableError
    more = {"epsilon": float(b.pick(0.125, 4.0))} if b.maybe(0.8) else {}
    op, c = "InstanceNormalization", shape[1]
    if b.version >= 17 and b.maybe(0.4):
        op, axis = "LayerNormalization", b.axis(rank)
        more |= {"axis": axis}
        scale = b.rng.standard_normal(shape[axis:])
    elif b.version >= 18 and b.maybe(0.5):
        groups = int(b.pick(*(g for g in range(1, c + 1) if c % g == 0)))
        op, scale = "GroupNormalization", b.rng.standard_normal(c if b.version >= 21 else groups)
        more |= {"num_groups": groups}
    else:
        scale = b.rng.standard_normal(c)
    b.make(op, [x, b.array(scale), b.array(b.rng.standard_normal(scale.shape))], [y], **more)
    return [y]


def repeated(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Expand and Tile."""
    y = b.name()
    if b.maybe(0.5) and b.version >= 8:
        b.make("Expand", [x, b.array(partner_shape(b, shape), np.int64)], [y])
    else:
        b.make("Tile", [x, b.array([int(b.rng.integers(1, 4)) for _ in shape], np.int64)], [y])
    return [y]


def resized(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y, rank = b.name(), len(shape)
    if rank < 3:
        raise UnusableError
    whole = b.maybe(0.5)
    kinds = (1, 2, 3) if whole else (0.5, 0.6, 1, 1.25, 1.5, 1.7, 2, 2.3, 3)
    scales = [1, 1, *(float(b.pick(*kinds)) for _ in shape[2:])]
    mode = b.pick("nearest", "linear")
    if b.version < 10:
        scales = [max(s, 1.0) for s in scales]
        more = {"scales": scales} if b.version < 9 else {}
        b.make("Upsample", [x] if more else [x, b.array(scales)], [y], mode=mode, **more)
    elif b.version == 10:
        b.make("Resize", [x, b.array(scales)], [y], mode=mode)
    else:
        ways = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        more = {"coordinate_transformation_mode": b.pick(*ways)} if b.maybe(0.8) else {}
        if rank == 4 and b.maybe(0.3):
            mode = "cubic"
            more |= {"cubic_coeff_a": b.pick(-0.5, -1.5, 0.3)} if b.maybe(0.5) else {}
        if b.maybe(0.8):
            near = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
            more |= {"nearest_mode": b.pick(*near)}
        sizes = [max(int(n * s), 1) for n, s in zip(shape, scales, strict=True)]
        last = [b.array(scales)] if b.maybe(0.5) else ["", b.array(sizes, np.int64)]
        b.make("Resize", [x, "", *last], [y], mode=mode, **more)
    return [y]


def stacked(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Multiply by stacks of matrices, or in letters."""
    y, out, rank = b.name(), int(b.rng.integers(1, 4)), len(shape)
    if rank < 2:
        raise UnusableError
    batch = [int(n) if b.maybe(0.5) else int(b.rng.integers(1, 4)) if n == 1 else 1 for n in shape]
    batch = batch[b.rng.integers(rank - 1) : -2]
    if b.version >= 12 and b.maybe(0.5):
        letters = "abcdefg"[:rank]
        taken = [c for c in letters if b.maybe(0.6)] or [letters[0]]
        w = [*(shape[letters.index(c)] for c in taken), out]
        kept = [c for c in letters if c not in taken or b.maybe(0.4)] + ["z"]
        order = "".join(b.rng.permutation(kept))
        ours = "".join([*taken, "z"])
        factors = [(x, letters), (b.array(b.rng.standard_normal(w)), ours)][:: b.pick(1, -1)]
        equation = f"{factors[0][1]},{factors[1][1]}->{order}"
        b.make("Einsum", [name for name, _ in factors], [y], equation=equation)
    elif b.maybe(0.5):
        w = b.array(b.rng.standard_normal((*batch, shape[-1], out)))
        b.make("MatMul", [x, w], [y])
    else:
        w = b.array(b.rng.standard_normal((*batch, out, shape[-2])))
        b.make("MatMul", [w, x], [y])
    return [y]


def flattened(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y = b.name()
    b.make("Flatten", [x], [y], **({"axis": b.axis(len(shape) + 1)} if b.maybe(0.7) else {}))
    return [y]


def reshaped(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Zeros, one or two -1, and targets that are read off the shape."""
    y, size = b.name(), math.prod(shape)
    if shape and b.maybe(0.25):
        s, part, rest = b.name(), b.name(), b.name()
        b.make("Shape", [x], [s])
        b.make("Gather", [s, b.array([int(b.rng.integers(len(shape)))], np.int64)], [part])
        b.make("Concat", [part, b.array([-1], np.int64)] if b.maybe(0.5) else [b.array([-1], np.int64), part],
               [rest], axis=0)  # fmt: skip
        b.make("Reshape", [x, rest], [y])
        return [y]
    divisor = int(b.pick(*(d for d in range(1, size + 1) if size % d == 0)))
    target = b.pick(
        [divisor, size // divisor],
        [1, size],
        [size],
        list(shape[::-1]),
        [divisor, 1, size // divisor],
    )
    if b.maybe(0.4) and target:
        target[b.rng.integers(len(target))] = -1
    if b.maybe(0.3) and target:
        target[b.rng.integers(len(target))] = 0
    target = [b.odd(n, 0.01) for n in target]
    more = {"allowzero": 1} if b.version >= 14 and b.maybe(0.1) else {}
    b.make("Reshape", [x, b.array(target, np.int64)], [y], **more)
    return [y]


def transposed(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y = b.name()
    b.make(
        "Transpose",
        [x],
        [y],
        **({"perm": b.rng.permutation(len(shape)).tolist()} if b.maybe(0.7) else {}),
    )
    return [y]


def squeezed(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y = b.name()
    if b.maybe(0.5):
        rank = len(shape) + 1
        axes = b.pick([b.axis(rank)], [0, b.pick(1, -1)], [b.axis(rank + 1), b.axis(rank + 1)], [])
        b.node("Unsqueeze", [x], [y], axes=(axes, 13))
        return [y]
    ones = [i for i, n in enumerate(shape) if n == 1]
    axes = [i - len(shape) * (b.version >= 11 and b.maybe(0.3)) for i in ones if b.maybe(0.7)]
    b.node("Squeeze", [x], [y], axes=(None if b.maybe(0.2) else axes, 13))
    return [y]


def padded(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y = b.name()  # amounts stay small: onnxruntime takes the memory
    pads = [int(b.pick(-9, -2, -1, 1, 2, 9)) if b.maybe(0.4) else 0 for _ in 2 * shape]
    more = {"mode": b.pick("constant", "reflect", "edge")} if b.maybe(0.5) else {}
    if b.version >= 19 and b.maybe(0.2):
        more = {"mode": "wrap"}
    if more.get("mode", "constant") != "constant":
        pads = [abs(n) % 4 for n in pads]
    b.node("Pad", [x], [y], pads=(pads, 11), **more)
    return [y]


def sliced(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y, rank = b.name(), len(shape)
    axes = [
        a - rank * b.maybe(0.3)
        for a in b.rng.permutation(rank)[: b.rng.integers(rank + 1)].tolist()
    ]
    axes = [*axes, b.axis(rank)] if b.maybe(0.05) and rank else axes
    starts, ends = ([b.odd(int(b.rng.integers(-6, 7)), 0.2) for _ in axes] for _ in range(2))
    if b.version < 10:
        b.make("Slice", [x], [y], starts=starts, ends=ends, axes=axes)
        return [y]
    steps = (
        None if b.maybe(0.3) else [b.odd(int(b.pick(-3, -2, -1, -1, 1, 2, 3)), 0.1) for _ in axes]
    )
    left_out = steps is None and axes == sorted(range(len(axes))) and b.maybe(0.5)
    b.node("Slice", [x], [y], starts=(starts, 10), ends=(ends, 10),
           axes=(None if left_out else axes, 10), steps=(steps, 10))  # fmt: skip
    return [y]


def joined(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y = b.name()
    if not shape:
        raise UnusableError
    axis = b.axis(len(shape))
    rest = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    fit = [
        name for name, s in b.shapes.items()
        if len(s) == len(shape) and [n for i, n in enumerate(s) if i != axis % len(s)] == rest
    ]  # fmt: skip
    parts = [x, *(b.pick(*fit) for _ in range(int(b.rng.integers(0, 3))))]
    if b.maybe(0.3):
        parts.append(b.array(b.rng.standard_normal(shape)))
    b.make("Concat", b.rng.permutation(parts).tolist(), [y], axis=axis)
    return [y]


def split(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    if not shape:
        raise UnusableError
    axis = b.axis(len(shape))
    n, several = shape[axis], int(b.rng.integers(1, 4))
    outputs = [b.name() for _ in range(several)]
    cuts = sorted(b.rng.integers(0, n + 1, size=several - 1).tolist())
    parts = [int(v) for v in np.diff([0, *cuts, n])]
    counted = several + b.maybe(0.05)  # onnxruntime takes memory for each
    more = {"num_outputs": counted} if b.version >= 18 and b.maybe(0.5) else {}
    stated = None if more or (b.version < 18 and b.maybe(0.4)) else parts
    b.node("Split", [x], outputs, axis=axis, split=(stated, 13), **more)
    return outputs


def gathered(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y = b.name()
    if not shape:
        raise UnusableError
    axis = b.axis(len(shape))
    n = shape[axis]
    low = -n if b.version >= 11 else 0
    indices = b.rng.integers(low, n, size=b.pick((), (1,), (3,), (2, 2), (n + 1,)))
    b.make("Gather", [x, b.array(indices, b.pick(np.int64, np.int32))], [y], axis=axis)
    return [y]


def blocks(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y = b.name()
    if b.maybe(0.5):
        b.make("SpaceToDepth", [x], [y], blocksize=2)
    else:
        more = {"mode": b.pick("DCR", "CRD")} if b.version >= 11 and b.maybe(0.5) else {}
        b.make("DepthToSpace", [x], [y], blocksize=2, **more)
    return [y]


def window(b: Builder, axes: int, sizes: Sequence[int], *, dilated: bool = True) -> dict[str, Any]:
    """Return attributes of windows, some of them too large."""
    found: dict[str, Any] = {"kernel_shape": [int(b.rng.integers(1, 4)) for _ in range(axes)]}
    if b.maybe(0.03):
        found["kernel_shape"][0] = int(sizes[0]) + 2
    if b.maybe(0.5):
        found["strides"] = [int(b.rng.integers(1, 4)) for _ in range(axes)]
    if dilated and b.maybe(0.3):
        found["dilations"] = [int(b.rng.integers(1, 3)) for _ in range(axes)]
    if b.maybe(0.25):
        found["auto_pad"] = b.pick("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET")
    elif b.maybe(0.5):
        found["pads"] = [int(b.rng.integers(0, 3)) for _ in range(2 * axes)]
    return found


def pooled(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y, axes = b.name(), len(shape) - 2
    if axes < 1:
        raise UnusableError
    op = b.pick("MaxPool", "AveragePool")
    more = window(b, axes, shape[2:], dilated=b.version >= (10 if op == "MaxPool" else 19))
    if b.version >= 10 and b.maybe(0.2):
        more["ceil_mode"] = 1
    if op == "AveragePool" and b.maybe(0.4):
        more["count_include_pad"] = 1
    b.make(op, [x], [y], **more)
    return [y]


def globally(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y = b.name()
    b.make(b.pick("GlobalAveragePool", "GlobalMaxPool"), [x], [y])
    return [y]


def reduced(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y, rank = b.name(), len(shape)
    op = b.pick("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
    inputs_from = 13 if op == "ReduceSum" else 18
    axes: Any = [a - rank * (b.version >= 11 and b.maybe(0.3)) for a in range(rank) if b.maybe(0.5)]
    axes = [*axes, b.axis(rank)] if b.maybe(0.05) else axes
    axes = None if b.maybe(0.2) else axes
    more = {"keepdims": int(b.rng.integers(2))} if b.maybe(0.7) else {}
    if b.version >= inputs_from and b.maybe(0.3):
        more["noop_with_empty_axes"] = int(b.rng.integers(2))
    b.node(op, [x], [y], axes=(axes, inputs_from), **more)
    return [y]


def convolved(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y, axes = b.name(), len(shape) - 2
    if axes < 1 or axes > 2:
        raise UnusableError
    more = window(b, axes, shape[2:])
    taps = more.pop("kernel_shape")
    c = shape[1]
    groups = int(b.pick(*(g for g in range(1, c + 1) if c % g == 0)))
    more |= {"group": groups} if groups > 1 or b.maybe(0.3) else {}
    out = int(b.rng.integers(1, 3))
    if b.maybe(0.3):
        if b.maybe(0.3):
            more["output_padding"] = [int(b.rng.integers(0, 2)) for _ in range(axes)]
        if b.maybe(0.3):
            more["output_shape"] = [int(b.rng.integers(1, 2 * n + 3)) for n in shape[2:]]
        w = b.array(b.rng.standard_normal((c, out, *taps)))
        b.make("ConvTranspose", [x, w], [y], **more)
    else:
        w = b.array(b.rng.standard_normal((out * groups, c // groups, *taps)))
        bias = [b.array(b.rng.standard_normal(out * groups))] if b.maybe(0.3) else []
        b.make("Conv", [x, w, *bias], [y], **more)
    return [y]


def multiplied(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    y, out = b.name(), int(b.rng.integers(1, 5))
    if not shape:
        raise UnusableError
    if len(shape) == 2 and b.maybe(0.5):
        turned = b.maybe(0.5)
        w = b.array(b.rng.standard_normal((out, shape[1]) if turned else (shape[1], out)))
        c = [b.array(b.rng.standard_normal(out))] if b.version < 11 or b.maybe(0.5) else []
        b.make(
            "Gemm",
            [x, w, *c],
            [y],
            transB=int(turned),
            **({"alpha": float(b.rng.normal())} if b.maybe(0.5) else {}),
        )
    elif b.maybe(0.3):
        b.make("MatMul", [b.array(b.rng.standard_normal((out, shape[-2:][0]))), x], [y])
    else:
        b.make("MatMul", [x, b.array(b.rng.standard_normal((shape[-1], out)))], [y])
    return [y]


def computed(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Multiply by a matrix that the graph computes: with rounding, or of integers."""
    y, w, out = b.name(), b.name(), int(b.rng.integers(1, 5))
    if not shape:
        raise UnusableError
    sizes = (shape[-1], out)
    some = b.rng.standard_normal
    if b.version >= 10 and b.maybe(0.5):
        kinds = (np.int8, np.uint8, np.int32) + (np.int16,) * (b.version >= 21)
        kind = b.pick(*kinds)
        axis = int(b.rng.integers(2))
        vector = b.version >= 13 and b.maybe(0.6)
        least, most = (0, 256) if kind == np.uint8 else (-128, 128)
        q = b.array(b.rng.integers(least, most, sizes), kind)
        shapes = (sizes[axis],) if vector else b.pick((), (1,)) if b.version >= 13 else ()
        zero = [b.array(b.rng.integers(least // 2, most // 2, shapes), kind)]
        zero = [] if kind == np.int32 or b.maybe(0.3) else zero
        scale = b.array(np.exp(some(shapes)))
        more = {"axis": axis - 2 * b.maybe(0.3)} if vector and (axis == 0 or b.maybe(0.5)) else {}
        if vector and axis == 1 and not more:
            more = {}
        b.make("DequantizeLinear", [q, scale, *zero], [w], **more)
    else:
        t, u, v = b.name(), b.name(), b.name()
        b.make("Mul", [b.array(some(sizes)), b.array(some(b.pick((), (1,), (out,), (sizes[0], 1))))],
               [t])  # fmt: skip
        b.make("Sqrt", [b.array(np.exp(some(out)))], [u])
        b.make("Div", [t, u], [v])
        b.make(b.pick("Add", "Sub"), [v, b.array(some(out))], [w])
    b.make("MatMul", [x, w], [y])
    return [y]


def branched(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Choose one of two operators by a constant, of which the value may be computed."""
    y, flag, around, graphs = b.name(), b.name(), b.nodes, []
    if b.maybe(0.5):
        flag = b.array(b.maybe(0.5), bool)
    else:
        t = b.name()
        b.make("ReduceSum", [b.array(b.rng.standard_normal(3))], [t], keepdims=0)
        b.make("Less", [t, b.array(0.0)], [flag])
    for name in ("then_branch", "else_branch"):
        b.nodes, before = [], dict(b.arrays)
        made = b.pick(multiplied, convolved, entrywise, with_constant, computed)(b, x, shape)
        inner = b.arrays.keys() - before.keys() - {*b.open_arrays} if b.maybe(0.5) else set()
        own = [numpy_helper.from_array(b.arrays.pop(k), k) for k in sorted(inner)]
        out = [helper.make_tensor_value_info(made[0], FLOAT, None)]
        graphs.append((name, helper.make_graph(b.nodes, name, [], out, own)))
    b.nodes = around
    b.make("If", [flag], [y], **dict(graphs))
    return [y]


def unknown(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Operators without a rule, in which nothing may go wrong either."""
    y = b.name()
    kind = b.pick("Tile", "Expand", "Exp", "Sqrt", "Mul")
    if kind == "Tile":
        b.make(kind, [x, b.array([int(b.rng.integers(1, 3)) for _ in shape], np.int64)], [y])
    elif kind == "Expand" and b.version >= 8:
        b.make(kind, [x, b.array([2, *shape], np.int64)], [y])
    else:
        b.make(kind if kind != "Expand" else "Exp", [x, x] if kind == "Mul" else [x], [y])
    return [y]


def chained(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Put layers one after the other, with functions of entries between them, some of other kinds."""
    known = dict(b.shapes)

    def grown(maker: Maker, at: str) -> str:
        before = (list(b.nodes), dict(b.arrays), list(b.open_arrays))
        try:
            outputs = maker(b, at, b.shapes[at])
            b._measure(outputs, before)
        except UnusableError:
            b.nodes, b.arrays, b.open_arrays = before
            return at
        return outputs[0]

    layer, last = b.pick(multiplied, convolved) if len(shape) > 2 else multiplied, x
    for _ in range(int(b.rng.integers(2, 5))):
        last = grown(layer, last)
        for _ in range(int(b.rng.integers(0, 4))):
            last = grown(
                b.pick(entrywise, entrywise, clipped, with_constant, normalised, flattened), last
            )
    b.shapes = known  # nobody else reads what stands within
    if last == x:
        raise UnusableError
    return [last]


def residual(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Add layers and functions of entries to what they read, or to a layer of that."""
    if not shape:
        raise UnusableError
    known, n, last = dict(b.shapes), shape[-1], x
    for i in range(int(b.rng.integers(1, 4))):
        before = (list(b.nodes), dict(b.arrays), list(b.open_arrays))
        inner = (multiplied, residual) if b.maybe(0.2) else (multiplied,)
        makers = (*inner, entrywise, entrywise, clipped, with_constant, normalised, prelu)
        try:
            outputs = b.pick(*makers[: 1 if i == 0 and b.maybe(0.7) else None])(
                b, last, b.shapes[last]
            )
            b._measure(outputs, before)
            last = outputs[0]
        except UnusableError:
            b.nodes, b.arrays, b.open_arrays = before
    back, end, kept = b.name(), b.name(), x
    size = b.shapes[last][-1:] or (1,)
    w = b.array(b.rng.standard_normal((*size, n)))
    if len(b.shapes[last]) == 2 and b.maybe(0.4):
        b.make("Gemm", [last, w, b.array(0.0)], [back], alpha=float(b.pick(1.0, -1.0, -0.5)))
    else:
        b.make("MatMul", [last, w], [back])
    if b.maybe(0.3):
        b._measure([back], (list(b.nodes), dict(b.arrays), list(b.open_arrays)))
        back = b.pick(entrywise, with_constant, normalised)(b, back, b.shapes[back])[0]
    if b.maybe(0.2):
        kept = b.name()
        b.make("MatMul", [x, b.array(b.rng.standard_normal((n, n)))], [kept])
    terms = [kept, back] if b.maybe(0.5) else [back, kept]
    b.make(b.pick("Add", "Add", "Sub", "Sum"), terms, [end])
    b.shapes = known  # nobody else reads what stands within
    return [end]


def prelu(b: Builder, x: str, shape: tuple[int, ...]) -> list[str]:
    """Slopes of each channel."""
    if not shape:
        raise UnusableError
    y = b.name()
    b.make("PRelu", [x, b.array(np.abs(b.rng.standard_normal(shape[-1])))], [y])
    return [y]


MAKERS: tuple[Maker, ...] = (
    *(entrywise, entrywise, entrywise, clipped, gated, written_out, written_out, cast, chained),
    *(with_constant, with_constant, together, together),
    *(normalised, flattened, reshaped, reshaped, transposed, squeezed, squeezed, padded, padded),
    *(sliced, sliced, sliced, joined, split, split, gathered, gathered, blocks),
    *(by_deviation, repeated, resized, resized, stacked, stacked, computed, computed, branched),
    *(pooled, pooled, globally, reduced, reduced, reduced, convolved, convolved, multiplied, multiplied),
)  # fmt: skip
SHAPES = (
    (2, 3),
    (1, 4, 5),
    (1, 2, 4, 4),
    (1, 3, 3, 5),
    (2, 1, 6),
    (4,),
    (1, 4, 2, 3),
    (3, 1, 2),
    (2, 2, 7),
)


CHAINS = (chained, chained, chained, together, entrywise)
"""Of graphs that are mostly chains."""

RESIDUALS = (residual, residual, residual, chained, entrywise)
"""Of graphs that are mostly residual blocks of dense layers."""


def random_graph(
    rng: np.random.Generator, makers: tuple[Maker, ...] | None = None
) -> tuple[Any, dict[str, tuple[int, ...]], Builder]:
    """Return a model, the sizes of its inputs, and how it was made."""
    b = Builder(rng, int(rng.choice(VERSIONS)), makers=makers or MAKERS)
    shape = b.pick(*SHAPES)
    b.shapes["x"] = shape
    if b.maybe(0.3):
        b.shapes["z"] = b.pick(shape, (*shape[:-1], 1), shape[1:] or shape)
    inputs = dict(b.shapes)
    for _ in range(int(rng.integers(1, 7))):
        b.grow()
    while not b.nodes:
        b.grow()
    names = [name for name in b.shapes if name not in inputs] or ["x"]
    outputs = list(dict.fromkeys(names[-1:] + [b.pick(*names)] * b.maybe(0.3)))
    declared: dict[str, Any] = {}
    for name, s in inputs.items():
        # one name for one size, in all inputs, that is read as a number by mistake only
        dims = [f"{n + 1}" if b.maybe(0.2) else None if b.maybe(0.04) else n for n in s]
        declared[name] = None if b.maybe(0.03) else dims
    return b.model(outputs, declared), inputs, b


# -------------------------------------------------------------------------------------------- verdicts


def constant(
    model: Any, *, sizes: str | None = None, spatial: tuple[int, ...] | None = None
) -> Constant:
    """Return the constant of a model, which needs a layer to be read: one is added that is not used."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.input.append(helper.make_tensor_value_info("aside", FLOAT, (1, 2)))
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32), "aside.weight")
    model.graph.initializer.append(weight)
    model.graph.node.append(helper.make_node("MatMul", ["aside", "aside.weight"], ["aside.out"]))
    found = read_onnx(io.BytesIO(model.SerializeToString()), None, spatial)
    rows = [bound_layer(layer, input_shape=sizes, rtol=0.01) for layer in found.layers]
    bounded = functools.partial(chains.bounded, seconds=CHAIN_SECONDS)
    return constant_of(found.network, rows, find_chains=bounded)


def size_of(name: Any, names: dict[str, int]) -> Any:
    """Return the size that a name stands for, by the rule that is written in it."""
    if not isinstance(name, str) or name in names:
        return names.get(name, name)
    if found := re.fullmatch(r"⌊\((.*)([+-]\d+)\)/(\d+)⌋", name):
        return (size_of(found[1], names) + int(found[2])) // int(found[3])
    if found := re.fullmatch(r"(\d+) \* ([+-]\d+)⌊(.*)⌋", name):
        return int(found[1]) * size_of(found[3], names) + int(found[2])
    if found := re.fullmatch(r"\w+\((\d+), (\d+), (\d+)\)⌊(.*)⌋", name):
        reach, stride, pads = map(int, found.groups()[:3])
        return int((size_of(found[4], names) + pads - reach) / stride) + 1  # towards zero
    return -1


def wrong_beliefs(
    model: Any,
    inputs: dict[str, tuple[int, ...]],
    rng: np.random.Generator,
    spatial: tuple[int, ...] | None = None,
) -> Iterator[str]:
    """Yield where a size that the reader believes, or a constant that it folds, is not what comes out."""
    walk = _Walk(model, None, spatial)
    walk.contents()
    made = [name for node in model.graph.node for name in node.output if name in walk.scope]
    everything = onnx.ModelProto.FromString(model.SerializeToString())
    del everything.graph.output[:]
    everything.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    found = runner(everything)(
        {name: rng.standard_normal(s).astype(np.float32) for name, s in inputs.items()}
    )
    names = {f"{n + 1}": n for s in inputs.values() for n in s}
    for name, value in zip(made, found, strict=True):
        tensor = walk.scope.tensor(name, "")
        if isinstance(tensor, Varying) and tensor.shape is not None and tensor.stopped is None:
            dims = [size_of(n, names) for n in tensor.shape]
            fits = len(dims) == value.ndim
            if not fits or any(n not in (None, m) for n, m in zip(dims, value.shape, strict=True)):
                yield f"{name}: believed shape {tensor.shape}, true {value.shape}"
        if isinstance(tensor, Fixed) and tensor.value is not None:
            believed = tensor.value
            if believed.dtype == object:  # sizes, some of them unknown
                entries = [size_of(v, names) for v in believed.ravel().tolist()]
                there = [
                    m if n is None else n
                    for n, m in zip(entries, value.ravel().tolist(), strict=True)
                ]
                believed = np.asarray(there, value.dtype).reshape(believed.shape)
            if believed.shape != value.shape or not np.array_equal(believed, value, equal_nan=True):
                yield f"{name}: folded to {tensor.value!r}, true {value!r}"
        elif isinstance(tensor, Fixed) and tensor.dims is not None:
            dims = [size_of(n, names) for n in tensor.dims]
            if len(dims) != value.ndim or any(
                n not in (None, m) for n, m in zip(dims, value.shape, strict=True)
            ):
                yield f"{name}: believed shape {tensor.dims}, true {value.shape}"


def collection(
    kinds: Sequence[str] = KINDS,
) -> Iterator[tuple[str, Any, dict[str, tuple[int, ...]]]]:
    """Yield the test cases of the package onnx: one input after the other, then all, the rest made constant."""
    for kind in kinds:
        for case in load_model_tests(kind=kind):
            for model, values in _cases(case):
                if any(node.op_type not in (*RULES, *COMPUTED, "If") for node in model.graph.node):
                    continue
                floats = [k for k, v in values.items() if v.dtype == np.float32 and v.size]
                every = [floats] if len(floats) > 1 else []
                for names in [[name] for name in floats[:4]] + every:
                    fixed = onnx.ModelProto.FromString(model.SerializeToString())
                    del fixed.graph.input[:]
                    fixed.graph.input.extend(i for i in model.graph.input if i.name in names)
                    others = {i.name for i in model.graph.input} - set(names)
                    for k in others & values.keys():
                        fixed.graph.initializer.append(numpy_helper.from_array(values[k], k))
                    yield f"{case.name}, of {names}", fixed, {k: values[k].shape for k in names}


def _cases(case: Any) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Yield the model of a test case with its inputs, unless they are no arrays."""
    try:
        if case.model is not None:
            model, values = case.model, case.data_sets[0][0]
        else:
            folder = Path(case.model_dir)
            model = onnx.load(folder / "model.onnx")
            paths = [
                folder / f"test_data_set_0/input_{i}.pb" for i in range(len(model.graph.input))
            ]
            tensors = [
                onnx.TensorProto.FromString(path.read_bytes()) for path in paths if path.exists()
            ]
            values = [numpy_helper.to_array(t) for t in tensors]
    except (OSError, TypeError, ValueError, DecodeError):
        return
    names = [i.name for i in model.graph.input]
    if all(isinstance(v, np.ndarray) and v.dtype.kind in "fiub" for v in values):
        if max(o.version for o in model.opset_import) < VERSIONS[0]:
            try:
                model = convert_version(model, VERSIONS[1])
            except RuntimeError:
                return
        yield model, dict(zip(names, values, strict=False))


@dataclass
class Report:
    """What a search found."""

    tried: int = 0
    bounded: int = 0
    attained: int = 0  # within a tenth
    shortened: int = 0  # below the product of norms, by a hundredth
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    operators: collections.Counter[str] = field(default_factory=collections.Counter)
    violations: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            setattr(self, name, mine + value)

    def lines(self) -> Iterator[str]:
        yield from (*self.violations[:5], *self.failures[:5])
        yield f"operators in graphs with a constant: {dict(self.operators.most_common())}"
        yield f"reasons for none: {dict(self.reasons.most_common(25))}"
        yield (
            f"{self.tried} graphs, {self.bounded} with a constant, {self.attained} of these attained within a tenth, "
            f"{self.shortened} below the product of norms; "
            f"violations: {len(self.violations)}, exceptions: {len(self.failures)}"
        )


def judge(
    model: Any,
    inputs: dict[str, tuple[int, ...]],
    rng: np.random.Generator,
    label: str,
    sizes: str | None = None,
    spatial: tuple[int, ...] | None = None,
) -> Report:
    """Return the report on one model."""
    report = Report(tried=1)
    text = f"{label}\n{onnx.printer.to_text(model)}"
    try:
        found = constant(model, sizes=sizes, spatial=spatial)
        if found.upper is None:
            report.reasons[str(found.reason).rpartition("understood: ")[2][:60]] += 1
        else:
            report.bounded = 1
            report.operators.update({n.op_type for n in model.graph.node})
            report.shortened = int(found.upper < 0.99 * found.product)
            if not found.upper <= found.product:
                report.violations.append(f"{found.upper} above {found.product}: {text}")
            ratio = steepest(runner(model), inputs, rng)
            report.attained = int(ratio >= 0.9 * found.upper)
            if not ratio <= found.upper * (1 + 1e-4) + 1e-30:
                report.violations.append(f"ratio {ratio}, constant {found.upper}: {text}")
        for wrong in wrong_beliefs(model, inputs, rng, spatial):
            report.violations.append(f"{wrong}: {text}")
    except UnusableError:  # at other inputs than those tried before
        report.reasons["onnxruntime refuses"] += 1
    except Exception:
        report.failures.append(f"{traceback.format_exc()}{text}")
    return report


def _one(task: tuple[int, int], *, makers: tuple[Maker, ...] | None = None) -> Report:
    rng = np.random.default_rng(task)
    while True:
        model, inputs, b = random_graph(rng, makers)
        with contextlib.suppress(UnusableError):
            b.check(model, inputs)
            one = len(inputs) == 1 and b.maybe(0.3)
            spatial = inputs["x"][2:] if one and len(inputs["x"]) > 2 else None
            return judge(model, inputs, rng, f"seed {task}", b.pick(None, "file"), spatial)


def survey(
    count: int,
    seed: int = 0,
    jobs: int = 1,
    first: int = 0,
    makers: tuple[Maker, ...] | None = None,
) -> Report:
    """Search that many graphs; which they are depends on the seed, the numbers and the makers only."""
    report, tasks = Report(), [(seed, i) for i in range(first, first + count)]
    one = functools.partial(_one, makers=makers)
    if jobs == 1:
        for task in tasks:
            report.add(one(task))
        return report
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn) as pool:  # unlike a Pool it tells of a process that died
        for part in pool.map(one, tasks, chunksize=50):
            report.add(part)
    return report


def survey_collection(kinds: Sequence[str] = KINDS) -> Report:
    """Search the test cases of the package onnx that onnxruntime runs."""
    report, rng = Report(), np.random.default_rng(0)
    for label, model, inputs in collection(kinds):
        with contextlib.suppress(UnusableError):
            Builder(rng, 0).check(model, inputs)
            report.add(judge(model, inputs, rng, label))
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.harness.graphs", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first graph")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--chains", action="store_true", help="graphs that are mostly chains")
    parser.add_argument("--residuals", action="store_true", help="mostly residual blocks")
    parser.add_argument(
        "--collection",
        action="store_true",
        help="the test cases of the package onnx in place of these",
    )
    args = parser.parse_args(argv)
    start = time.perf_counter()
    makers = RESIDUALS if args.residuals else CHAINS if args.chains else None
    report = (
        survey_collection()
        if args.collection
        else survey(args.count, args.seed, args.jobs, args.first, makers)
    )
    for line in report.lines():
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{time.perf_counter() - start:.0f} s, seed {args.seed}\n")
    return 1 if report.violations or report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
