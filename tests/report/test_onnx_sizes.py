"""Named sizes of inputs: two branches of a graph have one size if the same is done to it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm.report import bound_layer, cli
from gramnorm.report.files.contents import ReadError
from gramnorm.report.files.readers import read_path
from gramnorm.report.network import constant_of
from gramnorm.report.onnx.nodes import name_of, quotient_below, size_by
from tests.report.test_onnx import (
    constant,
    model_of,
    node,
    read,
    some,
    steepest,
)

pytestmark = pytest.mark.extra
__all__ = ["read"]  # a fixture

DYNAMIC = ("n", 3, "h", "w")
SAME = {"pads": [1, 1, 1, 1]}
HALF = {"strides": [2, 2]}


def test_nested_quotients_have_one_name_if_they_are_equal() -> None:
    for a in range(-3, 4):
        for s in range(1, 4):
            for b in range(-3, 4):
                for t in range(1, 4):
                    found = quotient_below(quotient_below("h", a, s), b, t)
                    assert found == quotient_below("h", a + b * s, s * t)
                    for h in range(12):
                        assert ((h + a) // s + b) // t == (h + a + b * s) // (s * t)
    assert quotient_below("h", 0, 1) == "h"
    assert quotient_below(quotient_below("h", 2, 1), -2, 1) == "h"


def test_names_in_files_are_never_those_of_computed_sizes() -> None:
    for computed in (quotient_below("h", 1, 2), size_by("2 * +0", "h")):
        assert name_of(str(computed)) is None
    assert name_of("h + 1") == "h + 1"
    assert name_of("") is None


def test_names_stay_short() -> None:
    size: Any = "h"
    for _ in range(100):
        size = quotient_below(size_by("2 * +0", size), 1, 2)
    assert size is None
    size = "h"
    for _ in range(100):
        size = quotient_below(size, 1, 2)
    assert size is None


RESIDUAL = {
    "same": [node("Conv", "x w", "t", **SAME), node("Add", "x t")],
    "twice": [
        node("Conv", "x w", "t", **SAME),
        node("Relu", "t", "u"),
        node("Conv", "u w", "v", **SAME),
        node("Add", "x v"),
    ],
    "strided": [
        node("Conv", "x w", "t", **SAME, **HALF),
        node("Conv", "x k", "u", **HALF),
        node("Add", "u t"),
    ],
    "valid": [
        node("Conv", "x w", "s"),
        node("Conv", "s w", "t"),
        node("Conv", "x f", "u"),
        node("Add", "u t"),
    ],
    "pooled": [
        node("MaxPool", "x", "t", kernel_shape=[2, 2], **HALF),
        node("AveragePool", "x", "s", kernel_shape=[3, 3], pads=[1, 1, 1, 1], **HALF),
        node("AveragePool", "x", "r", kernel_shape=[1, 1], **HALF),
        node("Add", "r s"),
    ],
    "automatic": [
        node("Conv", "x w", "t", auto_pad="SAME_UPPER", **HALF),
        node("Conv", "x k", "u", **HALF),
        node("Add", "u t"),
    ],
    "up": [
        node("ConvTranspose", "x w", "t", **HALF),
        node("ConvTranspose", "x w", "u", **HALF),
        node("Add", "u t"),
    ],
    "resized": [
        node("Conv", "x w", "t", **SAME),
        node("Resize", "t roi by", "u"),
        node("ConvTranspose", "x k2", "v", **HALF),
        node("Add", "u v"),
    ],
    "padded": [
        node("Pad", "x p", "s"),
        node("Conv", "s w", "t"),
        node("Add", "x t"),
    ],
}


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_blocks_of_any_size_have_a_constant(read: Any, name: str) -> None:
    arrays = {"w": some(3, 3, 3, 3), "k": some(3, 3, 1, 1), "f": some(3, 3, 5, 5)}
    arrays["p"] = some(8).astype("int64") * 0 + [0, 0, 1, 1, 0, 0, 1, 1]
    arrays |= {"k2": some(3, 3, 2, 2), "roi": some(0), "by": np.asarray([1, 1, 2, 2], "f4")}
    model = model_of(RESIDUAL[name], shape=DYNAMIC, **arrays)
    found = constant(read, model)
    assert found.upper is not None, found.reason
    for size in (6, 7):
        assert steepest(model, [(1, 3, size, size)]) <= found.upper


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Conv", "x w", "t", **SAME, **HALF), node("Add", "x t")],
        [node("Conv", "x w", "t"), node("Add", "x t")],
        [node("Conv", "x k", "t", **HALF), node("ConvTranspose", "t k", "u", output_padding=[1, 1], **HALF),
         node("Add", "x u")],
        # a window larger than its input may give one output where the rounded quotient has none
        [node("MaxPool", "x", "t", kernel_shape=[2, 2], **HALF), node("Conv", "x k", "s", **HALF),
         node("Add", "s t")],
        [node("Transpose", "x", "t", perm=[0, 1, 3, 2]), node("Add", "x t")],
    ],
)  # fmt: skip
def test_sizes_that_may_differ_are_not_taken_for_equal(read: Any, nodes: Any) -> None:
    model = model_of(nodes, shape=DYNAMIC, w=some(3, 3, 3, 3), k=some(3, 3, 1, 1))
    assert "may not be equal" in str(constant(read, model).reason)


class TestChosenSizes:
    """Numbers in place of the names, in the order of the axes after batch and channels."""

    NODES = (node("Conv", "x w", "t", **SAME, **HALF), node("Conv", "t w", "u"))

    @staticmethod
    def saved(model: Any, folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    def found(self, model: Any, folder: Path, *spatial: int) -> Any:
        read_ = read_path(self.saved(model, folder), spatial=spatial)
        rows = [bound_layer(layer) for layer in read_.layers]
        return read_, constant_of(read_.network, rows)

    @pytest.mark.parametrize(
        ("shape", "spatial", "expected"),
        [
            (DYNAMIC, (8, 6), (8, 6)),
            (DYNAMIC, (9,), (9, 9)),
            (("n", 3, 8, "w"), (5, 6), (8, 6)),
            ((None, 3, None, None), (7, 5), (7, 5)),
            (("n", 3, "s", "s"), (7,), (7, 7)),
        ],
    )
    def test_each_layer_has_the_size_that_follows(
        self, tmp_path: Path, shape: Any, spatial: Any, expected: Any
    ) -> None:
        model = model_of(self.NODES, shape=shape, output="u", w=some(3, 3, 3, 3))
        contents, _ = self.found(model, tmp_path, *spatial)
        first, second = (layer.geometry["input_shape"] for layer in contents.layers)
        assert first == expected
        assert second == tuple((n + 1) // 2 for n in expected)
        assert contents.sized

    def test_a_graph_that_states_its_sizes_keeps_them(self, tmp_path: Path) -> None:
        model = model_of(self.NODES, shape=("n", 3, 8, 8), output="u", w=some(3, 3, 3, 3))
        contents, _ = self.found(model, tmp_path, 16)
        assert contents.layers[0].geometry["input_shape"] == (8, 8)
        assert not contents.sized

    def test_one_name_has_one_size(self, tmp_path: Path) -> None:
        model = model_of(self.NODES, shape=("n", 3, "s", "s"), output="u", w=some(3, 3, 3, 3))
        with pytest.raises(ReadError, match="'s' of its input 'x' would be 7 and 8"):
            self.found(model, tmp_path, 7, 8)
        nodes = [node("Add", "x z")]
        two = {"x": ("n", 1, "h", "w"), "z": ("n", 1, "w", "h")}
        model = model_of([*nodes, *self.NODES[:1]], inputs=two, w=some(3, 1, 3, 3))
        with pytest.raises(ReadError, match="would be"):
            self.found(model, tmp_path, 7, 8)

    def test_a_name_is_a_size_wherever_it_stands(self, tmp_path: Path) -> None:
        nodes = [node("ReduceMean", "x", "m", axes=[1, 2], keepdims=0), node("Add", "m z"),
                 node("Conv", "x w", "t")]  # fmt: skip
        inputs = {"x": (1, 3, "h", 5), "z": (1, 5), "q": ("h",)}
        model = model_of(nodes, inputs=inputs, output="y", w=some(3, 3, 3, 3))
        read_, upper = self.found(model, tmp_path, 4, 9)
        assert upper.upper == pytest.approx(1 + (1 / 12) ** 0.5)
        assert "h = 4" in str(read_.notes)

    def test_what_was_refused_for_its_size_has_a_constant(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        nodes = [node("Conv", "x w", "t"), node("ReduceSum", "t axes", "y", keepdims=0)]
        arrays = {"w": some(3, 3, 3, 3), "axes": np.asarray([2, 3])}
        model = model_of(nodes, shape=DYNAMIC, **arrays)
        path = str(self.saved(model, tmp_path))
        assert cli.main(["report", "--json", path]) == 0
        assert "unknown number" in json.loads(capsys.readouterr().out)["network"]["reason"]
        assert cli.main(["report", "--json", "--input-shape", "5,6", path]) == 0
        told = json.loads(capsys.readouterr().out)
        (row,) = told["layers"]
        assert told["network"]["upper"] == pytest.approx(row["upper"] * 12**0.5)
        assert steepest(model, [(1, 3, 5, 6)]) <= told["network"]["upper"]
        assert any("h = 5" in text for text in told["notes"])

    def test_a_size_at_which_runtimes_differ_is_left_open(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        made = node("ConvTranspose", "x w", auto_pad="SAME_UPPER", strides=[2, 2])
        model = model_of([made], shape=DYNAMIC, w=some(3, 3, 3, 3))
        path = str(self.saved(model, tmp_path))
        assert cli.main(["report", "--json", "--input-shape", "5,6", path]) == 0
        assert json.loads(capsys.readouterr().out)["network"]["upper"] is not None
