"""Named sizes of inputs: two branches of a graph have one size if the same is done to it."""

from typing import Any

import pytest

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
