"""Graphs of ONNX: what is read and refused, and constants that no pair of inputs exceeds."""

import csv
import io
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm._rigour.fractions import product_above
from gramnorm.report import Row, bound_layer, cli
from gramnorm.report.files import contents
from gramnorm.report.files.contents import ReadError
from gramnorm.report.files.readers import read_path
from gramnorm.report.network import Constant, constant_of
from gramnorm.report.onnx.nodes import Fixed, Node, NotUnderstoodError, Varying
from gramnorm.report.onnx.rules import apply_rule

onnx = pytest.importorskip("onnx")
helper = onnx.helper

pytestmark = pytest.mark.extra

FLOAT = onnx.TensorProto.FLOAT
VERSION = 17


def some(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    return (scale * rng.standard_normal(shape)).astype("float32")


def model_of(
    nodes: Sequence[Any],
    *,
    shape: Sequence[Any] | None = (1, 3, 6, 6),
    output: str | Sequence[str] = "y",
    version: int = VERSION,
    inputs: dict[str, Any] | None = None,
    **arrays: np.ndarray,
) -> Any:
    """Return a model that turns x (or the given inputs) into y."""
    stated = {"x": shape} if inputs is None else inputs
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, FLOAT, s) for name, s in stated.items()],
        [
            helper.make_tensor_value_info(name, FLOAT, None)
            for name in ([output] if isinstance(output, str) else output)
        ],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=10)


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Any], contents.Contents]:
    def read_model(model: Any) -> contents.Contents:
        path = tmp_path / "model.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return read_path(path)

    return read_model


def constant(read: Any, model: Any) -> Constant:
    """Return the constant of a model, which needs a layer to be read: one is added that is not used."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.input.append(helper.make_tensor_value_info("aside", FLOAT, (1, 2)))
    model.graph.initializer.append(onnx.numpy_helper.from_array(some(2, 2), "aside.weight"))
    model.graph.node.append(node("MatMul", "aside aside.weight", "aside.out"))
    found = read(model)
    return constant_of(found.network, [bound_layer(layer) for layer in found.layers])


def evaluator(model: Any) -> Callable[..., np.ndarray]:
    """Return the function that a model is, all outputs as one vector.

    onnxruntime computes it: the reference evaluator of onnx up to 1.20 pads on the wrong side for SAME_UPPER.
    """
    pytest.importorskip("onnxruntime")
    from tests.harness.graphs import runner  # noqa: PLC0415

    session = runner(model)
    stored = {array.name for array in model.graph.initializer}
    names = [x.name for x in model.graph.input if x.name not in stored]

    def outputs(*values: np.ndarray) -> np.ndarray:
        found = session(dict(zip(names, values, strict=True)))
        return np.concatenate([np.ravel(y).astype(float) for y in found])

    return outputs


def run(model: Any, *values: np.ndarray) -> np.ndarray:
    return evaluator(model)(*values)


def steepest(model: Any, shapes: Sequence[tuple[int, ...]], *, seed: int = 0) -> float:
    """Return the largest ratio of differences found: Jacobians by differences, then steps along their top vector."""
    rng = np.random.default_rng(seed)
    sizes = [math.prod(shape) for shape in shapes]
    outputs = evaluator(model)

    def at(vector: np.ndarray) -> np.ndarray:
        parts = np.split(vector, np.cumsum(sizes)[:-1])
        return outputs(
            *(p.reshape(s).astype("float32") for p, s in zip(parts, shapes, strict=True)),
        )

    best = 0.0
    for scale in (0.3, 3.0):
        x = (scale * rng.standard_normal(sum(sizes))).astype("float32").astype(float)
        h, base = 2.0**-6, at(x)
        jacobian = np.stack([(at(x + h * e) - base) / h for e in np.eye(x.size)], axis=1)
        v = np.linalg.svd(jacobian)[2][0]
        for step in (2.0**-6, 0.5, 4.0):
            moved = (x + step * v).astype("float32").astype(float)
            best = max(best, np.linalg.norm(at(moved) - base) / np.linalg.norm(moved - x))
    return float(best)


def assert_holds(
    read: Any, model: Any, *shapes: tuple[int, ...], least: float = 0.0, seed: int = 0
) -> float:
    """Check that the constant is never exceeded, and at least a share of it is attained."""
    found = constant(read, model)
    assert found.upper is not None, found.reason
    ratio = steepest(model, shapes, seed=seed)
    assert ratio <= found.upper * (1 + 1e-4)
    assert ratio >= least * found.upper
    return found.upper


def random_model(rng: np.random.Generator) -> Any:
    """Return a graph of some ten random nodes on images; most tensors keep two channels of 4 x 4."""
    nodes, images, arrays = [], ["x"], {}

    def weight(*shape: int) -> str:
        name = f"w{len(arrays)}"
        arrays[name] = (rng.standard_normal(shape) / 2).astype("float32")
        return name

    for i in range(10):
        x, z = rng.choice(images), rng.choice(images)
        y, kind = f"t{i}", rng.integers(10)
        window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        if kind == 0:
            pads, d = [1, 1, 1, 1], int(rng.integers(1, 3))
            k = weight(2, 1 + (d == 1), 3, 3)
            pads = [n * d for n in pads]
            nodes.append(node("Conv", f"{x} {k}", y, pads=pads, dilations=[d, d], group=d))
        elif kind == 1:
            k = weight(2, 2, 2, 2)
            nodes.append(node("MaxPool", x, f"{y}p", kernel_shape=[2, 2], strides=[2, 2]))
            nodes.append(node("ConvTranspose", f"{y}p {k}", y, strides=[2, 2]))
        elif kind == 2:
            nodes.append(node("MatMul", f"{x} {weight(4, 4)}", y))
        elif kind == 3:
            nodes.append(node(rng.choice(["Relu", "Tanh", "Elu", "Sigmoid", "Abs"]), x, y))
        elif kind == 4:
            nodes.append(node(rng.choice(["Add", "Sub", "Max"]), f"{x} {z}", y))
        elif kind == 5:
            nodes.append(node(rng.choice(["MaxPool", "AveragePool"]), x, y, **window))
        elif kind == 6:
            pooled = rng.choice(["GlobalAveragePool", "ReduceMax"])
            more = {} if pooled == "GlobalAveragePool" else {"axes": [1, 2]}
            nodes.append(node(pooled, x, f"{y}p", **more))
            nodes.append(node("Add", f"{z} {y}p", y))
        elif kind == 7:
            nodes.append(node("Concat", f"{x} {z}", f"{y}p", axis=1))
            nodes.append(node("Conv", f"{y}p {weight(2, 4, 1, 1)}", y))
        elif kind == 8:
            nodes.append(node("Mul", f"{x} {weight(1, 2, 1, 1)}", y))
        else:
            nodes.append(node("Split", x, f"{y}a {y}b", axis=2))
            nodes.append(node("Concat", f"{y}b {y}a", y, axis=2))
        images.append(y)
    return model_of(nodes, shape=(1, 2, 4, 4), output=images[-3:], **arrays)


IMAGE = (1, 3, 6, 6)
VALUES = {"c": some(1, 3, 1, 1, scale=2.0), "s": np.float32(-1.7), "v": some(3)}
VALUES["v"][0] = 2.5
POSITIVE = {"var": np.asarray([0.5, 2.0, 1e-4], "float32"), "mean": some(3)}

SINGLE: dict[str, tuple[list[Any], float]] = {
    "relu": ([node("Relu", "x")], 0.7),
    "leaky": ([node("LeakyRelu", "x", alpha=-1.5)], 0.7),
    "elu": ([node("Elu", "x", alpha=2.0)], 0.5),
    "celu": ([node("Celu", "x", alpha=0.5)], 0.7),
    "selu": ([node("Selu", "x")], 0.5),
    "prelu": ([node("PRelu", "x c")], 0.7),
    "sigmoid": ([node("Sigmoid", "x")], 0.7),
    "hard sigmoid": ([node("HardSigmoid", "x", alpha=0.4)], 0.7),
    "hard swish": ([node("HardSwish", "x")], 0.5),
    "silu": ([node("Sigmoid", "x", "t"), node("Mul", "x t")], 0.5),
    "hard silu": ([node("HardSigmoid", "x", "t", alpha=1 / 6), node("Mul", "t x")], 0.5),
    "tanh": ([node("Tanh", "x")], 0.7),
    "softplus": ([node("Softplus", "x")], 0.7),
    "softsign": ([node("Softsign", "x")], 0.5),
    "erf": ([node("Erf", "x")], 0.7),
    "clip": ([node("Clip", "x")], 0.7),
    "abs": ([node("Abs", "x")], 0.7),
    "neg": ([node("Neg", "x")], 0.9),
    "softmax": ([node("Softmax", "x", axis=1)], 0.5),
    "add scalar": ([node("Add", "x s")], 0.9),
    "sub vector": ([node("Sub", "c x")], 0.9),
    "mul scalar": ([node("Mul", "x s")], 0.9),
    "mul channels": ([node("Mul", "c x")], 0.9),
    "div channels": ([node("Div", "x c")], 0.9),
    "batch norm": ([node("BatchNormalization", "x v v mean var", epsilon=1e-3)], 0.9),
    "dropout": ([node("Dropout", "x")], 0.9),
    "twice": ([node("Add", "x x")], 0.9),
    "residual": ([node("Tanh", "x", "t"), node("Add", "x t")], 0.5),
    "three": ([node("Tanh", "x", "t"), node("Sum", "x t x")], 0.5),
    "maximum": ([node("Neg", "x", "t"), node("Max", "x t")], 0.5),
    "concat": ([node("Neg", "x", "t"), node("Concat", "x t x", axis=1)], 0.9),
    "flatten": ([node("Flatten", "x")], 0.9),
    "transpose": ([node("Transpose", "x", perm=[0, 2, 3, 1])], 0.9),
    "max pool": ([node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])], 0.9),
    "max pool overlap": (
        [node("MaxPool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        0.3,
    ),
    "max pool dilated": (
        [node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 1], dilations=[2, 2])],
        0.3,
    ),
    "average pool": ([node("AveragePool", "x", kernel_shape=[2, 3], strides=[2, 3])], 0.9),
    "average pool overlap": (
        [node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2])],
        0.7,
    ),
    "average pool padded": (
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        0.5,
    ),
    "average pool zeros": (
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)],
        0.7,
    ),
    "average pool same": (
        [node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")],
        0.4,
    ),
    "global average": ([node("GlobalAveragePool", "x")], 0.9),
    "global max": ([node("GlobalMaxPool", "x")], 0.9),
    "mean": ([node("ReduceMean", "x", axes=[2, 3], keepdims=0)], 0.9),
    "mean of all": ([node("ReduceMean", "x")], 0.9),
    "sum of axes": ([node("ReduceSum", "x axes")], 0.9),
    "length": ([node("ReduceL2", "x", axes=[-1])], 0.9),
    "pad": ([node("Pad", "x pads")], 0.9),
    "slice": ([node("Slice", "x one three one two")], 0.9),
    "gather": ([node("Gather", "x twice", axis=1)], 0.9),
    "split": ([node("Split", "x", "a b", axis=3), node("Sub", "a b")], 0.6),
    "broadcast": ([node("GlobalAveragePool", "x", "t"), node("Add", "x t")], 0.5),
    "depth to space": ([node("SpaceToDepth", "x", blocksize=2)], 0.9),
}
EXTRA = {
    "axes": np.asarray([0, 3]),
    "pads": np.asarray([0, 0, 1, 2, 0, 0, 3, 0]),
    "one": np.asarray([1]),
    "two": np.asarray([2]),
    "three": np.asarray([6]),
    "twice": np.asarray([[0, 2], [-1, 0]]),
}


@pytest.mark.parametrize("name", SINGLE)
def test_no_pair_of_inputs_exceeds_the_constant_of_an_operator(read: Any, name: str) -> None:
    nodes, least = SINGLE[name]
    arrays = VALUES | POSITIVE | EXTRA
    used = {i for n in nodes for i in n.input}
    model = model_of(nodes, **{k: v for k, v in arrays.items() if k in used})
    assert_holds(read, model, IMAGE, least=least)


@pytest.mark.parametrize(
    ("op", "version", "attributes"),
    [("Gelu", 20, {}), ("Gelu", 20, {"approximate": "tanh"}), ("Mish", 18, {})],
)
def test_no_pair_exceeds_the_constant_of_newer_operators(
    read: Any, op: str, version: int, attributes: Any
) -> None:
    model = model_of([node(op, "x", **attributes)], version=version, shape=(1, 8))
    assert_holds(read, model, (1, 8), least=0.7)


def test_slopes_stated_for_smooth_functions_hold_on_every_interval() -> None:
    flint = pytest.importorskip("flint")
    arb = flint.arb

    def ball(a: float, b: float) -> Any:
        return arb((a + b) / 2, (b - a) / 2 * 1.000001)

    def logistic(x: Any) -> Any:
        return 1 / (1 + (-x).exp())

    def silu(x: Any) -> Any:
        s = logistic(x)
        return s * (1 + x * (1 - s))

    def mish(x: Any) -> Any:
        t = (1 + x.exp()).log().tanh()
        return t + x * (1 - t * t) * logistic(x)

    def gelu(x: Any) -> Any:
        c = (2 / arb.pi()).sqrt()
        t = (c * (x + arb("0.044715") * x**3)).tanh()
        return (1 + t) / 2 + x / 2 * (1 - t * t) * c * (1 + 3 * arb("0.044715") * x**2)

    alpha = ball(0.7978, 0.798)
    beta = ball(0.0447, 0.0448)

    def wide(x: Any) -> Any:  # of z tanh(alpha z + alpha beta z^3), halved like gelu
        p, slope = alpha * x * (1 + beta * x**2), alpha * (1 + 3 * beta * x**2)
        t = p.tanh()
        return (t + x * slope * (1 - t * t)) / 1.26

    for slope, bound in ((silu, 1.1), (mish, 1.09), (gelu, 1.13), (wide, 1.0)):
        edges = np.linspace(-12, 12, 24 * 4096 + 1).tolist()
        worst = max(float(abs(slope(ball(a, b))).upper()) for a, b in itertools.pairwise(edges))
        assert 0.99 * bound < worst <= bound


class TestLayers:
    def test_convolutions_carry_their_geometry_and_size(self, read: Any) -> None:
        model = model_of(
            [
                node("Conv", "x a", "t", strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2]),
                node("Relu", "t", "u"),
                node("ConvTranspose", "u b", "y", strides=[2, 2], output_padding=[1, 0], group=2),
            ],
            shape=("N", 3, 9, 8),
            a=some(4, 3, 3, 2),
            b=some(4, 3, 2, 2),
        )
        found = read(model)
        a, b = (layer.geometry for layer in found.layers)
        assert a is not None
        assert b is not None
        assert a["padding"] == ((1, 2), (0, 1))
        assert (a["stride"], a["dilation"], a["input_shape"]) == ((2, 1), (1, 2), (9, 8))
        assert (b["groups"], b["transposed"], b["input_shape"]) == (2, True, (5, 7))
        assert b["output_padding"] == (1, 0)
        for size in (None, "file"):
            rows = [bound_layer(layer, input_shape=size) for layer in found.layers]
            upper = constant_of(found.network, rows).upper
            assert upper == product_above(row.upper for row in rows)

    @pytest.mark.parametrize("size", [None, "file"])
    @pytest.mark.parametrize(
        ("op", "weight", "attributes"),
        [
            ("Conv", (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
            ("Conv", (4, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
            ("Conv", (4, 3, 3, 2), {"strides": [3, 2], "auto_pad": "SAME_LOWER"}),
            ("Conv", (3, 1, 2, 3), {"group": 3, "dilations": [2, 1], "pads": [2, 0, 1, 0]}),
            ("ConvTranspose", (3, 2, 3, 3), {"strides": [2, 2], "pads": [1, 0, 0, 1]}),
            ("ConvTranspose", (3, 2, 2, 2), {"strides": [2, 3], "output_padding": [1, 2]}),
            ("ConvTranspose", (3, 1, 3, 1), {"group": 3, "dilations": [2, 1]}),
        ],
    )
    def test_bound_of_a_convolution_holds_for_the_operator_that_runs(
        self, read: Any, op: str, weight: Any, attributes: Any, size: Any
    ) -> None:
        model = model_of([node(op, "x w", **attributes)], shape=(1, 3, 4, 5), w=some(*weight))
        (layer,) = read(model).layers
        row = bound_layer(layer, input_shape=size)
        outputs = evaluator(model)
        columns = [outputs(e.reshape(1, 3, 4, 5)) for e in np.eye(60, dtype="float32")]
        truth = np.linalg.norm(np.stack(columns, axis=1), 2)
        assert truth <= row.upper * (1 + 1e-5)
        if size == "file":
            assert row.lower <= truth * (1 + 1e-5)
            assert row.upper <= truth * 1.01

    @pytest.mark.parametrize(
        ("nodes", "shape", "weight", "factor"),
        [
            ([node("Gemm", "x w b", transB=1, alpha=-0.5)], (2, 4), (5, 4), 0.5),
            ([node("Gemm", "x w")], (2, 4), (4, 5), 1),
            ([node("MatMul", "x w", "t"), node("Add", "t b")], (2, 3, 4), (4, 5), 1),
            ([node("MatMul", "w x")], (4, 3), (5, 4), 1),
            ([node("MatMul", "w x")], (2, 4, 3), (5, 4), 1),
            ([node("Transpose", "w", "wt"), node("MatMul", "x wt")], (2, 4), (5, 4), 1),
        ],
    )
    def test_dense_layers(
        self, read: Any, nodes: Any, shape: Any, weight: Any, factor: float
    ) -> None:
        used = {i for n in nodes for i in n.input}
        arrays = {k: v for k, v in {"w": some(*weight), "b": some(5)}.items() if k in used}
        model = model_of(nodes, shape=shape, **arrays)
        found = read(model)
        assert [(layer.name, layer.kind) for layer in found.layers] == [("w", "dense")]
        assert found.layers[0].weight.shape == (5, 4)
        upper = assert_holds(read, model, shape, least=0.99)
        assert upper == pytest.approx(factor * np.linalg.norm(arrays["w"], 2), rel=1e-5)

    def test_shared_weights_are_one_row_unless_used_differently(self, read: Any) -> None:
        nodes = [node("Conv", "x w", "a"), node("Conv", "a w", "b"), node("Conv", "x w", "c")]
        found = read(model_of(nodes, shape=None, output="b", w=some(3, 3, 1, 1)))
        assert [layer.name for layer in found.layers] == ["w"]
        row = bound_layer(found.layers[0])
        assert constant_of(found.network, [row]).upper == product_above([row.upper] * 2)
        nodes[1] = helper.make_node("Conv", ["a", "w"], ["b"], "second", strides=[2, 2])
        found = read(model_of(nodes, shape=None, output="b", w=some(3, 3, 1, 1)))
        assert [layer.name for layer in found.layers] == ["w", "w (use 2)"]

    def test_one_array_moved_into_two_matrices_of_one_shape_gives_two_rows(self, read: Any) -> None:
        nodes = [
            node("MatMul", "x w", "a"),
            node("Reshape", "w flat", "w1"),
            node("Transpose", "w1", "w2"),
            node("Reshape", "w2 square", "w3"),
            node("MatMul", "a w3"),
        ]
        moves = {"flat": np.asarray([2, 8]), "square": np.asarray([4, 4])}
        model = model_of(nodes, shape=(1, 4), w=some(4, 4), **moves)
        assert [layer.name for layer in read(model).layers] == ["w", "w (use 2)"]
        assert_holds(read, model, (1, 4), least=0.2)

    def test_bfloat16_is_read_from_its_bits(self, read: Any) -> None:
        values = np.asarray(
            [[1.5, -2.0], [2.0**-130, 1.0078125]], "float32"
        )  # the third is subnormal
        upper_halves = (values.view(np.uint32) >> 16).astype("<u2")
        array = onnx.TensorProto(name="w", data_type=onnx.TensorProto.BFLOAT16, dims=(2, 2))
        array.raw_data = upper_halves.tobytes()
        model = model_of([node("MatMul", "x w")], shape=(1, 2))
        model.graph.initializer.append(array)
        np.testing.assert_array_equal(read(model).layers[0].weight.T, values)
        model.graph.initializer[0].raw_data = upper_halves.tobytes()[:-2]
        with pytest.raises(ReadError, match="does not fit its shape"):
            read(model)
        model.graph.initializer[0].ClearField("raw_data")
        model.graph.initializer[0].int32_data.extend(upper_halves.ravel().tolist())
        np.testing.assert_array_equal(read(model).layers[0].weight.T, values)

    @pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16", "DOUBLE"])
    def test_short_types_are_read_exactly(self, read: Any, dtype: str) -> None:
        values = [1.5, -2.0, 0.25, 1.0078125]
        model = model_of([node("MatMul", "x w")], shape=(1, 2))
        kind = getattr(onnx.TensorProto, dtype)
        model.graph.initializer.append(helper.make_tensor("w", kind, (2, 2), values))
        (layer,) = read(model).layers
        assert layer.weight.T.astype(float).ravel().tolist() == values

    def test_weights_may_come_through_constants_and_moves(self, read: Any) -> None:
        value = onnx.numpy_helper.from_array(some(12), "v")
        nodes = [
            node("Constant", "", "v", value=value),
            node("Constant", "", "shape", value_ints=[3, -1]),
            node("Reshape", "v shape", "w"),
            node("Identity", "w", "w2"),
            node("MatMul", "x w2"),
        ]
        for n in nodes[:2]:
            del n.input[:]
        (layer,) = read(model_of(nodes, shape=(2, 3))).layers
        assert layer.name == "v"
        np.testing.assert_array_equal(layer.weight.T, some(12).reshape(3, 4))

    def test_other_arrays_are_listed_with_their_use(self, read: Any) -> None:
        model = model_of(
            [node("Conv", "x w b", "t"), node("Gemm", "t q")],
            w=some(4, 3, 1, 1),
            b=some(4),
            q=some(4, 6, 6),
            idle=some(2),
        )
        found = read(model)
        assert found.skipped["b"].startswith("used by Conv")
        assert found.skipped["idle"] == "not used by the graph"
        assert "not understood" in found.failed["q"]


class TestNetworks:
    def test_residual_network_with_a_named_batch(self, read: Any) -> None:
        nodes = [
            node("Conv", "x w1 b1", "a", pads=[1, 1, 1, 1]),
            node("BatchNormalization", "a g b1 m v", "n"),
            node("Relu", "n", "r"),
            node("Conv", "r w2", "c", pads=[1, 1, 1, 1]),
            node("Add", "c x", "s"),
            node("Relu", "s", "u"),
            node("MaxPool", "u", "p", kernel_shape=[2, 2], strides=[2, 2]),
            node("Shape", "p", "shape"),
            node("Gather", "shape first", "number", axis=0),
            node("Unsqueeze", "number zero", "n0"),
            node("Concat", "n0 minus", "target", axis=0),
            node("Reshape", "p target", "f"),
            node("MatMul", "f w3", "d"),
            node("Add", "d b3", "y"),
        ]
        arrays = {
            "w1": some(4, 3, 3, 3, scale=0.3),
            "w2": some(3, 4, 3, 3, scale=0.3),
            "w3": some(12, 5, scale=0.3),
            "b1": some(4),
            "b3": some(5),
            "g": some(4),
            "m": some(4),
            "v": np.abs(some(4)) + 0.1,
            "first": np.asarray(0),
            "zero": np.asarray([0]),
            "minus": np.asarray([-1]),
        }
        model = model_of(nodes, shape=("N", 3, 4, 4), **arrays)
        for batch in (1, 2):
            assert_holds(read, model, (batch, 3, 4, 4), least=0.02)

    @pytest.mark.parametrize("seed", range(12))
    def test_random_graphs_never_exceed_their_constant(self, read: Any, seed: int) -> None:
        model = random_model(np.random.default_rng([5, seed]))
        assert_holds(read, model, (1, 2, 4, 4), seed=seed)

    def test_several_inputs_and_outputs_count_together(self, read: Any) -> None:
        nodes = [node("Add", "a b", "y"), node("MatMul", "a w", "z")]
        model = model_of(nodes, inputs={"a": (1, 3), "b": (1, 3)}, output=["y", "z"], w=some(3, 4))
        assert_holds(read, model, (1, 3), (1, 3), least=0.6)

    def test_overlapping_maxima_expand_a_peak(self, read: Any) -> None:
        model = model_of([node("MaxPool", "x", kernel_shape=[3, 1])], shape=(1, 1, 9, 1))
        x = np.zeros((1, 1, 9, 1), "float32")
        peak = x.copy()
        peak[0, 0, 4] = 1
        ratio = np.linalg.norm(run(model, peak) - run(model, x))
        found = constant(read, model).upper
        assert found is not None
        assert ratio == pytest.approx(math.sqrt(3))
        assert ratio <= found <= math.sqrt(3) * (1 + 1e-15)

    @pytest.mark.parametrize(
        ("nodes", "shape", "match"),
        [
            ([node("Exp", "x")], (1, 3), "no rule"),
            ([node("Floor", "x")], (1, 3), "no rule"),
            ([node("LpNormalization", "x")], (1, 3), "no rule"),
            ([node("Mul", "x x")], (1, 3), "two computed"),
            ([node("Div", "s x")], (1, 3), "divides"),
            ([node("Div", "x zero")], (1, 3), "zero"),
            ([node("MatMul", "x t")], (3, 3), "constant or missing|computed"),
            ([node("Gemm", "x w", transA=1)], (3, 3), "transA"),
            ([node("Relu", "x", slope=1.0)], (1, 3), "'slope' is unknown"),
            ([node("Relu", "x", domain="elsewhere")], (1, 3), "elsewhere"),
            ([node("Relu", "x", domain="com.microsoft")], (1, 3), "standard"),
            ([node("Pad", "x pads", mode="reflect")], None, "'reflect' repeats"),
            (
                [node("Sigmoid", "x", "g"), node("Tanh", "x", "h"), node("Mul", "g h")],
                (1, 3),
                "two",
            ),
            (
                [node("Tanh", "x", "h"), node("Sigmoid", "x", "g"), node("Mul", "g h")],
                (1, 3),
                "two",
            ),
            ([node("Add", "x big")], (1, 3), "^$"),
            ([node("Add", "x big")], ("N", 3), "may repeat"),
            ([node("Add", "x big")], None, "unknown"),
            ([node("Add", "x v")], ("N", "C"), "may repeat"),
            ([node("AveragePool", "x", kernel_shape=[2], ceil_mode=1)], (1, 3, 5), "ceil_mode"),
            ([node("AveragePool", "x", kernel_shape=[2], pads=[2, 0])], (1, 3, 5), "padding"),
            ([node("MaxPool", "x", "z y", kernel_shape=[2])], (1, 3, 5), "output number 1"),
            ([node("BatchNormalization", "x v v v v", training_mode=1)], (1, 3), "training"),
            ([node("BatchNormalization", "x v v v v")], (1, 3), "not positive"),
            ([node("Gather", "x pads")], None, "unknown"),
            ([node("Cast", "x", to=onnx.TensorProto.INT32)], (1, 3), "rounds"),
            ([node("ReduceSum", "x")], ("N", 3), "unknown number"),
            ([node("Hardmax", "x")], (1, 3), "no rule"),
            ([node("Exp", "x", "t"), node("Relu", "t")], (1, 3), r"\(Exp\).*no rule"),
        ],
    )
    def test_what_is_not_understood_stops_with_its_reason(
        self, read: Any, nodes: Any, shape: Any, match: str
    ) -> None:
        values = {
            "v": np.asarray([1.0, -1, 2], "float32"),
            "s": np.float32(2),
            "zero": np.asarray([0.0, 1, 1], "float32"),
            "w": some(3, 3),
            "big": some(7, 3),
            "pads": np.asarray([0, 1, 0, 1]),
        }
        if any("t" in n.input for n in nodes) and len(nodes) == 1:
            nodes = [node("Relu", "x", "t"), *nodes]
        used = {i for n in nodes for i in n.input}
        model = model_of(nodes, shape=shape, **{k: v for k, v in values.items() if k in used})
        found = constant(read, model)
        if match == "^$":  # seven copies of each entry
            assert found.upper == pytest.approx(math.sqrt(7))
            return
        assert found.upper is None
        assert found.reason is not None
        assert re.search(match, found.reason)
        assert "node" in found.reason

    def test_unknown_versions_and_own_functions_are_not_understood(self, read: Any) -> None:
        for version in (5, 1000):
            found = constant(read, model_of([node("Relu", "x")], version=version))
            assert found.upper is None
            assert str(version) in str(found.reason)
        model = model_of([node("Relu", "x")])
        own = helper.make_function("", "Relu", ["a"], ["b"], [node("Exp", "a", "b")], [])
        model.functions.append(own)
        assert constant(read, model).upper is None

    def test_version_6_is_read_where_nothing_changed_after_it(self, read: Any) -> None:
        assert constant(read, model_of([node("Relu", "x")], version=6)).upper == 1.0
        for changed in (node("Add", "x x"), node("Dropout", "x")):
            found = constant(read, model_of([changed], version=6))
            assert "changed after version 6" in str(found.reason)

    def test_part_that_is_not_understood_does_not_matter_beside_the_output(self, read: Any) -> None:
        model = model_of([node("Exp", "x", "t"), node("Tanh", "x")])
        assert constant(read, model).upper == 1.0

    def test_shapes_that_depend_on_values_are_not_constant(self, read: Any) -> None:
        nodes = [
            node("NonZero", "x", "n"),
            node("Shape", "n", "s"),
            node("Cast", "s", "c", to=FLOAT),
            node("ReduceSum", "c", "r", keepdims=0),
            node("Add", "x r"),
        ]
        found = constant(read, model_of(nodes, shape=(1, 3)))
        assert found.upper is None
        assert "NonZero" in str(found.reason)

    def test_integer_inputs_are_not_understood(self, read: Any) -> None:
        model = model_of([node("Relu", "x")])
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
        assert "floating" in str(constant(read, model).reason)

    def test_stated_shapes_of_inner_tensors_are_not_believed(self, read: Any) -> None:
        model = model_of([node("Reshape", "x q", "t"), node("Add", "t c")], c=some(7, 3), q=[-1, 3])
        model.graph.value_info.append(helper.make_tensor_value_info("t", FLOAT, (7, 3)))
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
        assert constant(read, model).upper is None

    def test_constant_needs_rows_at_the_sizes_of_the_graph(self, read: Any) -> None:
        found = read(model_of([node("MatMul", "x w")], shape=(1, 3), w=some(3, 3)))
        rows = [bound_layer(layer) for layer in found.layers]
        assert constant_of(found.network, rows).upper == rows[0].upper
        assert "another size" in str(constant_of(found.network, rows, stated_sizes=False).reason)
        assert "no bound" in str(constant_of(found.network, []).reason)

    def test_described_networks_are_evaluated_or_explained(self) -> None:
        layer = contents.Layer("w", some(3, 3))
        row = bound_layer(layer)
        assert constant_of({"residual": "w"}, [row]).upper == pytest.approx(1 + row.upper)
        assert "no norm" in str(constant_of("v", [row]).reason)


class TestReport:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "net.onnx"
        model = model_of(
            [node("MatMul", "x w", "t"), node("Relu", "t", "u"), node("Add", "x u")],
            shape=(1, 3),
            w=np.eye(3, dtype="float32"),
        )
        path.write_bytes(model.SerializeToString())
        return path

    def test_json_and_table_show_the_constant(self, path: Path, capsys: Any) -> None:
        assert cli.main(["report", "--json", str(path)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert 2 <= found["network"]["upper"] <= 2.000001
        assert found["network"]["reason"] is None
        pytest.importorskip("rich")
        assert cli.main(["report", str(path)]) == 0
        assert "Lipschitz constant of the network" in capsys.readouterr().out
        assert cli.main(["report", str(path), "--padding-mode", "circular"]) == 0
        assert "no constant of the network: the layers are" in capsys.readouterr().out

    @pytest.mark.parametrize("op", ["Add", "Exp"])
    def test_the_rows_of_a_graph_are_not_multiplied(
        self, read: Any, tmp_path: Path, capsys: Any, op: str
    ) -> None:
        """Their product is 1 here, the constant 3, or unknown: neither is a chain of 1-Lipschitz functions."""
        join = node("Add", "x u", "t") if op == "Add" else node(op, "u", "t")
        nodes = [node("MatMul", "x w", "u"), join, node("Add", "u t")]
        read(model_of(nodes, shape=(1, 3), w=np.eye(3, dtype="f4")))
        path = str(tmp_path / "model.onnx")
        assert cli.main(["report", "--json", path]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["product_upper"] is None
        assert ["joined" in entry["reason"] for entry in found["no_product"]] == [True]
        known = found["network"]["upper"]
        assert known is None if op == "Exp" else 3 <= known <= 3.00001
        assert cli.main(["report", "--csv", path]) == 0
        by_kind = {row["kind"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
        product, last = by_kind["product of the upper bounds"], by_kind["constant of the network"]
        assert (product["upper"], "joined" in product["error"]) == ("", True)
        assert (last["upper"] == "") == (known is None) == ("Exp" in last["error"])
        for form in ([], ["--markdown"]):
            pytest.importorskip("rich")
            assert cli.main(["report", *form, path]) == 0
            out = capsys.readouterr().out
            assert "product" not in out
            assert 0 < out.index("constant of the network") < out.index("converged")  # on top


class TestHostileFiles:
    @pytest.fixture
    def model(self) -> Any:
        nodes = [node("Conv", "x w", "t"), node("Relu", "t", "u"), node("Flatten", "u")]
        return model_of(nodes, w=some(4, 3, 3, 3))

    def test_truncated_and_flipped_files_are_read_or_refused(self, read: Any, model: Any) -> None:
        raw = model.SerializeToString()
        rng = np.random.default_rng(0)
        broken = [raw[:n] for n in range(0, len(raw), 7)]
        for _ in range(300):
            flipped = bytearray(raw)
            for place in rng.integers(0, len(raw), 3):
                flipped[place] ^= 1 << rng.integers(8)
            broken.append(bytes(flipped))
        broken += [rng.bytes(n) for n in (1, 10, 1000)]
        refused = 0
        for content in broken:
            try:
                found = read(content)
            except ReadError:
                refused += 1
            else:
                constant_of(found.network, [])
        assert refused > 50

    def test_stated_shapes_must_fit_the_bytes(self, read: Any, model: Any) -> None:
        for dims in ((4, 3, 3, 4), (2**40, 2**40), (2**31, 2**31, 2**31), (-1, 3, 3, 3)):
            model.graph.initializer[0].dims[:] = dims
            with pytest.raises(ReadError, match="shape"):
                read(model)

    def test_huge_sizes_of_inputs_cost_nothing(self, read: Any, model: Any) -> None:
        for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
            dim.dim_value = 2**40
        assert "below 2**31" in str(constant(read, model).reason)

    def test_arrays_outside_of_the_file_are_refused(self, read: Any, model: Any) -> None:
        array = model.graph.initializer[0]
        array.ClearField("raw_data")
        array.data_location = onnx.TensorProto.EXTERNAL
        array.external_data.add(key="location", value="../secret")
        with pytest.raises(ReadError, match="only a plain name"):
            read(model)

    def test_cycles_and_double_names_are_refused(self, read: Any) -> None:
        cycle = [node("Add", "x b", "a"), node("MatMul", "a w", "b"), node("Relu", "b")]
        with pytest.raises(ReadError, match="cycle"):
            read(model_of(cycle, w=some(3, 3)))
        double = [node("MatMul", "x w", "y"), node("Relu", "x", "y")]
        with pytest.raises(ReadError, match="two things"):
            read(model_of(double, w=some(3, 3)))
        with pytest.raises(ReadError, match="nothing before"):
            read(model_of([node("MatMul", "x w", "t")], w=some(3, 3)))

    def test_file_without_layers_says_so(self, read: Any) -> None:
        with pytest.raises(ReadError, match="no node"):
            read(model_of([node("Relu", "x")]))

    def test_deep_nesting_is_refused(self, read: Any) -> None:
        inner = b""
        for _ in range(5000):  # a graph in an attribute of a node of a graph, over and over
            for tag in (b"\x32", b"\x2a", b"\x0a"):
                size, length = len(inner), b""
                while size > 127:
                    length += bytes([size % 128 + 128])
                    size //= 128
                inner = tag + length + bytes([size]) + inner
        size, length = len(inner), b""
        while size > 127:
            length += bytes([size % 128 + 128])
            size //= 128
        with pytest.raises(ReadError):
            read(b"\x3a" + length + bytes([size]) + inner)

    def test_subgraphs_stop_the_network_and_are_not_followed(self, read: Any) -> None:
        branch = helper.make_graph(
            [node("Relu", "x", "z")], "b", [], [helper.make_tensor_value_info("z", FLOAT, None)]
        )
        nodes = [node("Loop", "count flag", body=branch)]
        found = constant(read, model_of(nodes, flag=np.asarray(True), count=np.asarray(2)))
        assert "GRAPH" in str(found.reason)

    def test_files_beyond_the_limit_are_not_parsed(
        self, read: Any, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(contents, "MAX_BYTES", 100)
        with pytest.raises(ReadError, match="limit of 100 bytes"):
            read(model)

    def test_names_that_are_no_text_are_refused(self, read: Any, model: Any) -> None:
        raw = model.SerializeToString()
        for name in (b"Conv", b"Relu", b"\x01t"):
            with pytest.raises(ReadError, match=r"no text|damaged"):
                read(raw.replace(name, name[:-1] + b"\xff"))

    def test_graphs_of_very_many_parts_are_refused(self, read: Any, model: Any) -> None:
        model.graph.node.extend([onnx.NodeProto()] * 10**5)
        with pytest.raises(ReadError, match="parts"):
            read(model)

    def test_unusable_attributes_are_not_understood(self, read: Any) -> None:
        for attributes in (
            {"strides": [0, 1]},
            {"strides": [1]},
            {"group": 2},
            {"group": 0},
            {"kernel_shape": [5, 5]},
            {"pads": [-1, 0, 0, 0]},
            {"auto_pad": "ELSE"},
            {"dilations": 2},
        ):
            changed = model_of([node("Conv", "x w", **attributes)], w=some(4, 3, 3, 3))
            assert constant(read, changed).reason is not None


class TestOddities:
    """What is no valid graph, or hardly one, and yet must not be bounded by too little."""

    def test_reduction_over_no_axes_may_be_none(self, read: Any) -> None:
        nodes = [node("ReduceMean", "x axes", noop_with_empty_axes=1)]
        axes = np.zeros(0, dtype=np.int64)
        model = model_of(nodes, shape=(2, 3, 4), version=18, axes=axes)
        assert constant(read, model).upper == 1

    @pytest.mark.parametrize("axes", [(2, 2), (2, -1)])
    def test_reduction_over_an_axis_twice_is_not_understood(self, read: Any, axes: Any) -> None:
        nodes = [node("ReduceMean", "x", axes=axes)]
        assert constant(read, model_of(nodes, shape=(2, 3, 4))).upper is None

    @pytest.mark.parametrize(
        ("nodes", "arrays"),
        [
            ([node("Clip", "x low high")], {"low": -np.ones(()), "high": np.ones((2, 4))}),
            (
                [node("BatchNormalization", "x s b m v")],
                {"s": np.ones(1), "b": np.ones(3), "m": np.ones(3), "v": np.ones(1)},
            ),
        ],
    )
    def test_constants_that_would_repeat_entries_are_not_understood(
        self, read: Any, nodes: Any, arrays: Any
    ) -> None:
        arrays = {name: value.astype("float32") for name, value in arrays.items()}
        assert constant(read, model_of(nodes, shape=(2, 1, 1), **arrays)).upper is None

    def test_slopes_that_repeat_entries_count(self, read: Any) -> None:
        slope = np.full((2, 3), 5, dtype="float32")
        found = constant(read, model_of([node("PRelu", "x slope")], shape=(2, 1), slope=slope))
        assert found.upper is not None
        assert 5 * math.sqrt(3) <= found.upper < 5 * math.sqrt(3) + 1e-9

    @pytest.mark.parametrize("op", ["Constant", "Cast", "Shape", "Split", "Relu"])
    def test_nodes_without_outputs_are_no_traceback(self, read: Any, op: str) -> None:
        idle = helper.make_node(op, ["x"] if op != "Constant" else [], [])
        found = read(model_of([idle, node("Conv", "x w")], w=some(4, 3, 3, 3)))
        assert [layer.name for layer in found.layers] == ["w"]

    @pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
    @pytest.mark.parametrize("stride", [1, 2, 3])
    def test_bounds_at_another_size_are_those_of_its_automatic_padding(
        self, read: Any, auto: str, stride: int
    ) -> None:
        kernel = np.asarray([[[0, 0, 1]]], "f4")
        windows = node("Conv", "x w", auto_pad=auto, strides=[stride])
        (layer,) = read(model_of([windows], shape=(1, 1, 7), w=kernel)).layers
        bounded = [bound_layer(layer, input_shape=(n,)) for n in range(1, 9)]
        for n, row in enumerate(bounded, 1):
            truth = steepest(model_of([windows], shape=(1, 1, n), w=kernel), [(1, 1, n)])
            known = row.lower <= truth + 1e-6 and truth <= row.upper + 1e-6
            assert known if row.error is None else "auto_pad" in row.error
        assert [row.error is None for row in bounded] == [
            stride == 1 or n == 7 for n in range(1, 9)
        ]
        assert bound_layer(layer).error is None
        assert bound_layer(layer, input_shape="file").error is None
        assert bound_layer(layer, input_shape=(5,), padding_mode="circular").error is None

    def test_names_of_sizes_that_look_like_numbers_are_names(self, read: Any) -> None:
        stored = np.zeros(12, "f4")
        stored[::4] = 1  # of norm root 3 as 3 x 4, root 2 as 2 x 6
        nodes = [node("Shape", "x", "s"), node("Reshape", "v s", "w"), node("MatMul", "z w")]
        model = model_of(nodes, inputs={"x": ("2", "6"), "z": (1, 3)}, v=stored)
        assert steepest(model, [(3, 4), (1, 3)]) > 1.7
        assert constant(read, model).upper is None
        nodes = [node("Shape", "x", "s"), node("Squeeze", "v s", "w"), node("MatMul", "z w")]
        model = model_of(nodes, inputs={"x": ("0",), "z": (1, 3)}, v=some(1, 3, 1))
        assert "computed" in str(constant(read, model).reason)

    def test_pads_with_names_of_sizes_lead_to_unknown_sizes(self, read: Any) -> None:
        nodes = [node("Shape", "x", "s"), node("Pad", "z s", "t"), node("ReduceSum", "t")]
        model = model_of(nodes, inputs={"x": ("a", "b"), "z": (3,)})
        assert "unknown number" in str(constant(read, model).reason)

    def test_unknown_sizes_written_as_zero_are_unknown(self, read: Any) -> None:
        nodes = [node("ReduceSum", "x axes")]
        axes = np.asarray([1], dtype=np.int64)
        assert constant(read, model_of(nodes, shape=(2, 0), axes=axes)).upper is None

    def test_a_refused_layer_is_a_hole_in_the_product(
        self, read: Any, tmp_path: Path, capsys: Any
    ) -> None:
        nodes = [node("Conv", "x w", "z", auto_pad="ELSE"), node("MatMul", "z v")]
        model = model_of(nodes, shape=(1, 1, "n"), w=100 * some(1, 1, 3), v=np.eye(4, dtype="f4"))
        found = read(model)
        assert [layer.name for layer in found.layers] == ["v"]
        assert "auto_pad" in found.failed["w"]
        assert cli.main(["report", str(tmp_path / "model.onnx")]) == 1
        assert "no product" in capsys.readouterr().out

    def test_geometry_from_elsewhere_is_refused(
        self, read: Any, tmp_path: Path, capsys: Any
    ) -> None:
        read(model_of([node("Conv", "x w")], shape=(1, 1, 8), w=np.ones((1, 1, 2), dtype="f4")))
        sidecar = tmp_path / "layers.json"
        sidecar.write_text('{"w": {"stride": [2]}}')
        arguments = ["report", str(tmp_path / "model.onnx"), "--layers", str(sidecar)]
        assert cli.main(arguments) == 2
        assert "not for a graph" in capsys.readouterr().err

    def test_work_does_not_grow_with_the_square_of_the_axes(self, read: Any) -> None:
        many = 50_000
        axes = list(range(0, many, 2))
        odd = [
            (node("Squeeze", "x", axes=axes), (1,) * many),
            (node("ReduceMean", "x", axes=axes), (1,) * many),
            (node("Unsqueeze", "x", axes=list(range(many))), (1,)),
        ]
        for made, shape in odd:
            began = time.perf_counter()
            assert constant(read, model_of([made], shape=shape, version=11)).upper == 1
            assert time.perf_counter() - began < 5

    def test_copies_of_constants_are_limited(self, read: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr(contents, "MAX_BYTES", 8 * 1000)
        casts = [node("Cast", "w", f"w{i}", to=onnx.TensorProto.DOUBLE) for i in range(9)]
        nodes = [*casts, node("MatMul", "x w0", "a"), node("MatMul", "x w8", "b")]
        found = read(model_of(nodes, shape=(1, 6), output="a", w=some(6, 6)))
        assert [layer.name for layer in found.layers] == ["w"]

    def test_uses_of_one_weight_are_limited(self, read: Any) -> None:
        nodes = [node("Conv", "x w", f"y{i}", pads=[i, 0, i, 0]) for i in range(60)]
        found = read(model_of(nodes, shape=(1, 3, 99, 99), output="y0", w=some(4, 3, 3, 3)))
        assert len(found.layers) == 50


def shapes_of(op: str, shape: Any, *constants: Any, outputs: int = 1, **attributes: Any) -> Any:
    """Return the shapes that the reader believes, None if it refuses the node."""
    values = [np.asarray(c, dtype=np.int64) for c in constants]
    fixed = [
        None if c is None else Fixed(f"c{i}", v)
        for i, (c, v) in enumerate(zip(constants, values, strict=True))
    ]
    try:
        return apply_rule(Node(op, attributes, (Varying("x", shape), *fixed), outputs)).shapes
    except NotUnderstoodError:
        return None


class TestIndices:
    """Odd indices: the standard's text, and what onnxruntime makes of it."""

    ODD = (
        -(2**63),
        -(2**31),
        -9,
        -4,
        -3,
        -2,
        -1,
        0,
        1,
        2,
        3,
        4,
        9,
        2**31 - 1,
        2**63 - 2,
        2**63 - 1,
    )

    @pytest.mark.parametrize("n", [1, 3])
    def test_slices_keep_what_onnxruntime_keeps(self, n: int) -> None:
        pytest.importorskip("onnxruntime")
        from tests.harness.graphs import runner  # noqa: PLC0415

        names = ("s", "e", "a", "t")
        model = model_of([node("Slice", "x s e a t")], shape=(n,))
        for name in names:
            model.graph.input.append(
                helper.make_tensor_value_info(name, onnx.TensorProto.INT64, (1,))
            )
        session, x, open_ = runner(model), np.ones(n, "float32"), 0
        for start, end, step in itertools.product(self.ODD, self.ODD, (-(2**63), -2, -1, 1, 2, 9)):
            values = [np.asarray([v]) for v in (start, end, 0, step)]
            (kept,) = session({"x": x} | dict(zip(names, values, strict=True)))
            ((believed,),) = shapes_of("Slice", (n,), [start], [end], [0], [step])
            assert believed in (None, kept.size), (start, end, step)
            open_ += believed is None
        assert open_ == 2 * len(self.ODD) * 3  # the end of the largest integer, and a negative step

    def test_slice_from_beyond_the_range_backwards_keeps_a_sample(self, read: Any) -> None:
        arrays = {
            "s": np.asarray([-9]),
            "e": np.asarray([-4]),
            "a": np.asarray([0]),
            "t": np.asarray([-1]),
        }
        nodes = [node("Slice", "x s e a t", "z"), node("ReduceSum", "z")]
        assert_holds(read, model_of(nodes, shape=(3,), **arrays), (3,), least=0.99)

    @pytest.mark.parametrize(
        ("nodes", "shape", "match"),
        [
            ([node("Slice", "x one two zeros zeros")], (4,), "step is 0"),
            ([node("Slice", "x twice twice twice")], (4, 4), "axes"),
            ([node("Flatten", "x", axis=3)], (4, 4), "axis 3 of 2"),
            ([node("Flatten", "x", axis=-3)], (4, 4), "axis -3 of 2"),
            ([node("Reshape", "x less")], (4, 4), "shape is"),
            ([node("Reshape", "x left")], (4, 4), "shape is"),
            ([node("Squeeze", "x one")], (4, 4), "squeezes"),
            ([node("Squeeze", "x same")], (4, 1), "axes"),
            ([node("Unsqueeze", "x twice")], (4,), "axes"),
            ([node("Gather", "x nine")], (4, 4), "indices from 0 to 9"),
            ([node("Gather", "x less")], (1, 4), "indices from -2"),
            ([node("Pad", "x cut")], (4,), "cut more off"),
            ([node("MaxPool", "x", kernel_shape=[4], strides=[2])], (1, 1, 3), "larger than its padded"),
            ([node("AveragePool", "x", kernel_shape=[5], strides=[3])], (1, 1, 3), "larger than its padded"),
            ([node("MaxPool", "x", kernel_shape=[4], ceil_mode=1)], (1, 1, 3), "larger than its padded"),
            (
                [node("MaxPool", "x", kernel_shape=[2], dilations=[2], auto_pad="SAME_LOWER")],
                (1, 1, 6),
                "understand differently",
            ),
            ([node("Conv", "x w", strides=[3])], (1, 1, 3), "larger than its padded"),
        ],
    )  # fmt: skip
    def test_indices_that_fit_no_array_are_refused(
        self, read: Any, nodes: Any, shape: Any, match: str
    ) -> None:
        arrays = {
            "one": [1], "two": [2], "zeros": [0], "twice": [1, 1], "less": [-2, 4], "left": [-1, -1],
            "same": [1, -1], "nine": [0, 9], "cut": [-3, -3], "w": some(1, 1, 5),
        }  # fmt: skip
        used = {i for n in nodes for i in n.input} & arrays.keys()
        found = constant(
            read, model_of(nodes, shape=shape, **{k: np.asarray(arrays[k]) for k in used})
        )
        assert found.upper is None
        assert re.search(match, str(found.reason))

    @pytest.mark.parametrize(("k", "stride", "n"), [(3, 3, 2), (2, 2, 1), (4, 2, 3), (3, 2, 5)])
    def test_averages_of_unknown_sizes_hold_for_inputs_shorter_than_a_window(
        self, read: Any, k: int, stride: int, n: int
    ) -> None:
        nodes = [node("AveragePool", "x", kernel_shape=[k], strides=[stride])]
        assert_holds(read, model_of(nodes, shape=(1, 1, "n")), (1, 1, n))

    def test_empty_axes_of_a_squeeze_leave_the_shape_open(self, read: Any) -> None:
        """By the text nothing is squeezed, by onnxruntime each axis of size 1: what is added up then differs."""
        nodes = [node("Squeeze", "x none", "z"), node("ReduceSum", "z zero")]
        arrays = {"none": np.zeros(0, np.int64), "zero": np.asarray([0])}
        assert constant(read, model_of(nodes, shape=(1, 5), **arrays)).upper is None

    def test_parts_of_a_split_are_as_many_as_its_outputs(self, read: Any) -> None:
        nodes = [node("Split", "x", "a b c", num_outputs=4), node("ReduceSum", "a")]
        found = constant(read, model_of(nodes, shape=(12,), version=18))
        assert "num_outputs" in str(found.reason)

    @pytest.mark.parametrize(
        ("made", "version", "match"),
        [
            (node("Squeeze", "x", axes=[0]), 17, "'axes' is unknown"),
            (node("Squeeze", "x q"), 12, "number of inputs"),
            (node("ReduceMean", "x q"), 17, "number of inputs"),
            (node("ReduceMean", "x", axes=[0]), 18, "'axes' is unknown"),
            (node("ReduceMean", "x", noop_with_empty_axes=1), 13, "'noop_with_empty_axes' is unknown"),
            (node("Dropout", "x s q"), 11, "number of inputs"),
            (node("Concat", "x x"), 17, "'axis' is missing"),
            (node("Gelu", "x"), 17, "nor such an operator"),
            (node("Upsample", "x s", mode="nearest"), 10, "deprecated"),
            (node("Relu", "x x"), 16, "number of inputs"),
            (node("Flatten", "x", axis=[1]), 17, "'axis'.*of another type"),
        ],
    )  # fmt: skip
    def test_nodes_must_have_the_signature_of_their_version(
        self, read: Any, made: Any, version: int, match: str
    ) -> None:
        arrays = {
            k: v for k, v in {"q": np.asarray([0]), "s": np.float32(0.5)}.items() if k in made.input
        }
        found = constant(read, model_of([made], shape=(1, 3), version=version, **arrays))
        assert found.upper is None
        assert re.search(match, str(found.reason))

    def test_one_domain_has_one_version(self, read: Any) -> None:
        model = model_of([node("Relu", "x")], version=13)
        model.opset_import.append(helper.make_opsetid("ai.onnx", 18))
        assert "13 and 18" in str(constant(read, model).reason)


class TestQuantised:
    """What is stored as integers with a scale elsewhere is a layer that has no bound."""

    @pytest.fixture
    def arrays(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        return {
            "w": some(3, 3),
            "k": some(3, 3, 1, 1),
            "wq": rng.integers(-128, 128, (3, 3)).astype(np.int8),
            "kq": rng.integers(-128, 128, (3, 3, 1, 1)).astype(np.int8),
            "flat": rng.integers(0, 256, 40).astype(np.uint8),
            "s": np.float32(0.01),
            "z": np.int8(0),
        }

    @pytest.mark.parametrize(
        ("nodes", "name"),
        [
            (
                [
                    node("QuantizeLinear", "k s z", "i"),
                    node("DequantizeLinear", "i s z", "kf"),
                    node("Conv", "x kf"),
                ],
                "k",
            ),
            ([node("QuantizeLinear", "x s z", "i"), node("MatMulInteger", "i wq", "y")], "wq"),
            ([node("DynamicQuantizeLinear", "x", "i is iz"), node("ConvInteger", "i kq iz z", "y")], "kq"),
            ([node("QuantizeLinear", "x s z", "i"), node("QLinearConv", "i s z kq s z s z", "y")], "kq"),
            ([node("QuantizeLinear", "x s z", "i"), node("QLinearMatMul", "i s z wq s z s z", "y")], "wq"),
            ([node("QGemm", "x s z wq s z", domain="com.microsoft")], "wq"),
            ([node("MatMulNBits", "x wq s", K=3, N=3, domain="com.microsoft")], "wq"),
            ([node("MatMulBnb4", "x flat s", K=3, N=3, domain="com.microsoft")], "MatMulBnb4"),
        ],
    )  # fmt: skip
    def test_quantised_layers_are_named_and_missing(
        self, read: Any, tmp_path: Path, capsys: Any, arrays: Any, nodes: Any, name: str
    ) -> None:
        nodes = [*nodes, node("MatMul", "y w", "out")]
        used = {i for n in nodes for i in n.input}
        model = model_of(
            nodes, output="out", version=21, **{k: v for k, v in arrays.items() if k in used}
        )
        found = read(model)
        assert [layer.name for layer in found.layers] == ["w"]
        assert len(found.failed) == 1
        (missing,) = found.failed
        assert name in missing
        assert cli.main(["report", "--json", str(tmp_path / "model.onnx")]) == 1
        told = json.loads(capsys.readouterr().out)
        assert told["partial"]
        assert told["missing"] == [missing]
        assert told["network"]["upper"] is None

    def test_file_of_quantised_layers_alone_names_them(self, read: Any, arrays: Any) -> None:
        quantised = [node("QuantizeLinear", "w s z", "q"), node("DequantizeLinear", "q s z", "wf")]
        nodes = [*quantised, node("MatMul", "x wf")]
        model = model_of(nodes, version=21, **{k: arrays[k] for k in ("w", "s", "z")})
        with pytest.raises(ReadError, match=r"'w'.*quantised"):
            read(model)


class TestLayersWithoutBounds:
    def test_weights_in_functions_and_other_layers_are_missing(self, read: Any) -> None:
        value = onnx.numpy_helper.from_array(some(3, 3), "v")
        body = [helper.make_node("Constant", [], ["v"], value=value), node("MatMul", "a v", "b")]
        opset = [helper.make_opsetid("", VERSION)]
        nodes = [node("Mine", "x", "t", domain="own"), node("MatMul", "t w")]
        model = model_of(nodes, shape=(1, 3), w=some(3, 3))
        model.functions.append(helper.make_function("own", "Mine", ["a"], ["b"], body, opset))
        assert any("Mine" in name for name in read(model).failed)
        nodes = [node("LSTM", "x wi wr", "t", hidden_size=3), node("MatMul", "t w")]
        found = read(model_of(nodes, w=some(3, 3), wi=some(1, 12, 3), wr=some(1, 12, 3)))
        assert set(found.failed) == {"wi", "wr"}

    def test_second_use_without_a_bound_is_missing(self, read: Any) -> None:
        nodes = [node("Conv", "x k", "t"), node("Conv", "t k", auto_pad="ELSE")]
        found = read(model_of(nodes, k=some(3, 3, 1, 1)))
        assert [layer.name for layer in found.layers] == ["k"]
        assert list(found.failed) == ["k (another use)"]

    def test_weights_computed_in_the_graph_have_the_name_of_what_is_stored(self, read: Any) -> None:
        nodes = [
            node("Exp", "g", "e"),
            node("Mul", "e v", "vg"),
            node("Conv", "x vg", "t"),
            node("Conv", "t k"),
        ]
        found = read(model_of(nodes, g=some(3, 1, 1, 1), v=some(3, 3, 1, 1), k=some(3, 3, 1, 1)))
        assert len(found.failed) == 1
        assert found.failed.keys() <= {"g", "v"}
        nodes = [node("Conv", "x x", "t"), node("Conv", "x k")]
        assert any("(Conv)" in name for name in read(model_of(nodes, k=some(3, 3, 1, 1))).failed)

    def test_masks_and_tables_of_other_operators_are_no_layers(self, read: Any) -> None:
        nodes = [
            node("Where", "mask x low", "t"),
            node("Add", "t table", "u"),
            node("MatMul", "u w"),
        ]
        arrays = {
            "mask": some(3, 3) > 0,
            "low": np.float32(-1),
            "table": some(3, 3),
            "w": some(3, 3),
        }
        assert read(model_of(nodes, shape=(3, 3), **arrays)).failed == {}


class TestNotes:
    def test_stored_arrays_that_callers_may_replace_are_named(
        self, read: Any, tmp_path: Path, capsys: Any
    ) -> None:
        model = model_of(
            [node("MatMul", "x w", "t"), node("Add", "t b")], shape=(1, 3), w=some(3, 3), b=some(3)
        )
        assert read(model).notes == []
        for name, shape in (("w", (3, 3)), ("b", (3,))):
            model.graph.input.append(helper.make_tensor_value_info(name, FLOAT, shape))
        (note,) = read(model).notes
        assert re.search("2 stored arrays.*may replace.*'w', 'b'", note)
        path = str(tmp_path / "model.onnx")
        assert cli.main(["report", "--markdown", path]) == 0
        assert "may replace" in capsys.readouterr().out
        assert cli.main(["report", "--json", path]) == 0
        assert json.loads(capsys.readouterr().out)["notes"] == [note]

    def test_what_the_product_of_the_rows_leaves_out_is_told(self, read: Any) -> None:
        nodes = [
            node("Gemm", "x w", "t", alpha=3.0),
            node("MatMul", "t v", "u"),
            node("MatMul", "u v"),
        ]
        model = model_of(nodes, shape=(1, 3), w=some(3, 3), v=some(3, 3))
        assert_holds(read, model, (1, 3))
        notes = read(model).notes
        assert [
            bool(re.search(p, n)) for p, n in zip(("once.*'v'", "alpha.*'w'"), notes, strict=True)
        ] == [True] * 2


class TestSearch:
    """A share of ``python -m tests.harness.graphs``, and its teeth."""

    @pytest.fixture
    def graphs(self) -> Any:
        pytest.importorskip("onnxruntime")
        from tests.harness import graphs  # noqa: PLC0415

        return graphs

    def test_no_random_graph_exceeds_its_constant(self, graphs: Any) -> None:
        report = graphs.survey(60, seed=7)
        assert report.failures == []
        assert report.violations == []
        assert report.bounded > 30
        assert report.attained > 20

    def test_no_test_case_of_onnx_exceeds_its_constant(self, graphs: Any) -> None:
        report = graphs.survey_collection(("simple", "pytorch-operator"))
        assert report.failures == []
        assert report.violations == []
        assert report.bounded > 10

    @pytest.mark.parametrize(
        ("module", "name", "wrong", "made"),
        [
            ("report.onnx.entries", "repeats", lambda *_: 1, "with_constant"),
            ("report.onnx.moves", "root_above", lambda _: 1.0, "gathered"),
            ("report.onnx.windows", "root_above", lambda _: 0.3, "reduced"),
            ("report.onnx.moves", "_kept", lambda n, *s: n and len(range(*slice(*s).indices(n))), "sliced"),
            ("network._graph", "length_above", max, "joined"),
            ("network._graph", "largest", min, "branched"),
            ("report.onnx.resizing", "root_above", lambda _: 1.0, "resized"),
            ("report.onnx.arithmetic", "ROUNDED", {"Mul": np.add, "Sub": np.add}, "computed"),
            ("report.onnx.entries", "in_chain", lambda slopes: 0.1 * max(map(abs, slopes)), "chained"),
        ],
    )  # fmt: skip
    def test_falsified_rules_are_found(
        self, graphs: Any, monkeypatch: Any, module: str, name: str, wrong: Any, made: str
    ) -> None:
        monkeypatch.setattr(f"gramnorm.{module}.{name}", wrong)
        monkeypatch.setattr(graphs, "MAKERS", (getattr(graphs, made),))
        found = (graphs.survey(1, seed=1, first=i).violations for i in range(40))
        assert any(found)  # and no graph after that


def test_described_networks_count_layers_without_bounds() -> None:
    good = bound_layer(contents.Layer("a", np.eye(2)))
    bad = Row("b", "dense", (2, 2), "float64", 0.0, error="broken")
    unknown = bound_layer(contents.Layer("c", np.ones((1, 1, 3))))
    assert constant_of({"chain": ["a"]}, [good]).upper is not None
    assert "leaves out 'b'" in str(constant_of({"chain": ["a"]}, [good, bad]).reason)
    assert "no bound of 'b'" in str(constant_of({"chain": ["a", "b"]}, [good, bad]).reason)
    assert "kernel" in str(constant_of({"chain": ["a", "c"]}, [good, unknown]).reason)
    assert "ignore" not in str(constant_of({"chain": ["a"]}, [good, bad]).reason)
