"""Stored arrays that an exporter only numbered are called by the node that reads them."""

import io
from typing import Any

import numpy as np
import pytest

from gramnorm.report.onnx.labels import label_numbered
from gramnorm.report.onnx.reader import read_onnx
from tests.harness.reports import some

pytestmark = pytest.mark.extra
onnx = pytest.importorskip("onnx")


def built(nodes: list[Any], **arrays: np.ndarray) -> Any:
    names = {key.replace("__", "::"): values for key, values in arrays.items()}
    stored = [onnx.numpy_helper.from_array(values, name) for name, values in names.items()]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in ("x", "y")
    ]
    ends[0].type.tensor_type.shape.dim.add().dim_value = 1
    for size in (2, 8, 8):
        ends[0].type.tensor_type.shape.dim.add().dim_value = size
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )


def read(model: Any) -> Any:
    return read_onnx(io.BytesIO(model.SerializeToString()))


def conv(*inputs: str, name: str, output: str = "y") -> Any:
    return onnx.helper.make_node("Conv", [*inputs], [output], name=name)


def test_the_path_of_the_node_is_the_name_of_the_layer() -> None:
    node = conv("x", "onnx::Conv_193", "onnx::Conv_194", name="/layer1/conv1/Conv")
    found = read(built([node], onnx__Conv_193=some(3, 2, 1, 1), onnx__Conv_194=some(3)))
    assert [layer.name for layer in found.layers] == ["/layer1/conv1"]
    assert [step.layer for step in found.network.steps] == ["/layer1/conv1"]
    assert list(found.skipped) == ["/layer1/conv1 (input 2)"]


def test_names_that_say_something_stay() -> None:
    node = conv("x", "layer1.conv1.weight", name="/layer1/conv1/Conv")
    model = built([node])
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(some(3, 2, 1, 1), "layer1.conv1.weight")
    )
    assert [layer.name for layer in read(model).layers] == ["layer1.conv1.weight"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("W", "/a/Conv"), ("W", "/b/Conv")),  # one array, two nodes
        (("W", "/a/Conv"), ("V", "/a/Conv_1")),  # two arrays of one name
        (("W", "Conv_7"), ("V", "")),  # no paths
        (("W", "/y/Conv"), ("V", "/h/Conv")),  # free of the names of other tensors, see below
    ],
)
def test_where_the_name_would_not_be_one_the_number_stays(first: Any, second: Any) -> None:
    numbers = {"W": "onnx::Conv_1", "V": "onnx::Conv_2"}
    nodes = [
        conv("x", numbers[first[0]], name=first[1], output="/h"),
        conv("/h", numbers[second[0]], name=second[1]),
    ]
    arrays = {"onnx__Conv_1": some(2, 2, 1, 1)}
    if second[0] == "V":
        arrays["onnx__Conv_2"] = some(2, 2, 1, 1)
    found = {layer.name for layer in read(built(nodes, **arrays)).layers}
    expected = {"onnx::Conv_1"} | ({"onnx::Conv_2"} if second[0] == "V" else set())
    assert found == ({"/y", "onnx::Conv_2"} if first[1] == "/y/Conv" else expected)


def test_arrays_that_inner_graphs_read_keep_their_number() -> None:
    inner = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["7"], ["z"])], "i", [], [])
    node = onnx.helper.make_node(
        "If", ["c"], ["o"], name="/i/If", then_branch=inner, else_branch=inner
    )
    model = built([node, conv("x", "7", name="/a/Conv")])
    model.graph.initializer.append(onnx.numpy_helper.from_array(some(2, 2, 1, 1), "7"))
    label_numbered(model)
    assert [tensor.name for tensor in model.graph.initializer] == ["7"]


def test_only_the_operator_at_the_end_is_cut_off() -> None:
    node = conv("x", "12", name="/Conv/Conv_3/deep/Conv_1")
    model = built([node])
    model.graph.initializer.append(onnx.numpy_helper.from_array(some(2, 2, 1, 1), "12"))
    assert [layer.name for layer in read(model).layers] == ["/Conv/Conv_3/deep"]
