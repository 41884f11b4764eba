"""Graphs within a node If: the branch that is taken, either of them, or a jump."""

from typing import Any

import numpy as np
import pytest

from gramnorm.report import bound_layer
from gramnorm.report.files.contents import ReadError
from tests.report.test_onnx import (
    FLOAT,
    assert_holds,
    constant,
    helper,
    model_of,
    node,
    onnx,
    read,
    some,
)

pytestmark = pytest.mark.extra
__all__ = ["read"]  # a fixture

LARGE, SMALL = 3 * np.eye(3, dtype="f4"), np.eye(3, dtype="f4")
UNKNOWN = [node("ReduceSum", "five", "s", keepdims=0), node("Greater", "s five", "flag")]


def branch(*nodes: Any, output: str | None = None, **arrays: np.ndarray) -> Any:
    stored = [onnx.numpy_helper.from_array(v, k) for k, v in arrays.items()]
    out = helper.make_tensor_value_info(output or nodes[-1].output[0], FLOAT, None)
    return helper.make_graph(list(nodes), "branch", [], [out], stored)


def chosen(then: Any, other: Any, output: str = "y") -> Any:
    return node("If", "flag", output, then_branch=then, else_branch=other)


OWN = branch(node("MatMul", "x w", "p"), w=LARGE)
OUTER = branch(node("MatMul", "x v", "p"))  # names in both branches may be the same
PLAIN = branch(node("Relu", "x", "p"))


@pytest.mark.parametrize("flag", [True, False])
def test_only_the_branch_that_is_taken_counts(read: Any, flag: bool) -> None:
    model = model_of([chosen(OWN, OUTER)], shape=(1, 3), v=SMALL, flag=np.asarray(flag))
    (layer,) = read(model).layers
    assert layer.name == ("y/then_branch/w" if flag else "v")
    upper = assert_holds(read, model, (1, 3), least=0.99)
    assert upper == pytest.approx(3 if flag else 1)


@pytest.mark.parametrize("pair", [(OWN, OUTER), (OUTER, OWN), (OWN, PLAIN), (PLAIN, OWN)])
def test_of_two_possible_branches_the_larger_counts(read: Any, pair: Any) -> None:
    for five in (5.0, -5.0):  # the sum is not computed: what it is decides in the runtime
        nodes = [
            node("ReduceSum", "many", "s", keepdims=0),
            node("Greater", "s zero", "flag"),
            chosen(*pair),
        ]
        arrays = {"many": np.full(3, five, "f4"), "zero": np.float32(0)}
        if OUTER in pair:
            arrays["v"] = SMALL
        model = model_of(nodes, shape=(1, 3), **arrays)
        found = read(model)
        assert {layer.name for layer in found.layers} <= {"y/then_branch/w", "y/else_branch/w", "v"}
        upper = constant(read, model).upper
        assert upper is not None
        assert 3 <= upper <= 3.00001
        assert_holds(read, model, (1, 3))


def test_branches_do_not_add_up_nor_stack(read: Any) -> None:
    nodes = [*UNKNOWN, chosen(PLAIN, PLAIN), node("Add", "y x", "z")]
    model = model_of(nodes, shape=(1, 3), output="z", five=np.float32(5))
    assert constant(read, model).upper == 2


def test_a_choice_by_the_input_jumps(read: Any) -> None:
    nodes = [
        node("ReduceSum", "x", "s", keepdims=0),
        node("ReduceMax", "x", "m", keepdims=0),
        node("Greater", "s m", "flag"),
        chosen(OWN, OUTER),
    ]
    model = model_of(nodes, shape=(1, 3), v=SMALL)
    assert {layer.name for layer in read(model).layers} == {"y/then_branch/w", "v"}
    nodes[2] = node(
        "ReduceMax", "x", "flag", keepdims=0
    )  # of the wrong type, but no stop before it
    found = constant(read, model_of(nodes, shape=(1, 3), v=SMALL))
    assert found.upper is None
    assert "(If)" in str(found.reason)
    assert "jumps" in str(found.reason)


def test_shapes_after_a_choice_are_what_the_branches_have_in_common(read: Any) -> None:
    wide = branch(node("Concat", "x x", "p", axis=1))
    for shape, known in (((1, 3), True), ((1, "n"), False)):
        for other, same in ((PLAIN, True), (wide, False)):
            nodes = [*UNKNOWN, chosen(PLAIN, other), node("ReduceSum", "y", "z")]
            found = constant(read, model_of(nodes, shape=shape, output="z", five=np.float32(5)))
            assert (found.upper is not None) == (known and same)


def test_branches_within_branches(read: Any) -> None:
    inner = branch(chosen(OWN, PLAIN, "q"))
    model = model_of([*UNKNOWN, chosen(inner, inner)], shape=(1, 3), five=np.float32(5))
    names = [layer.name for layer in read(model).layers]
    assert names == ["y/then_branch/q/then_branch/w", "y/else_branch/q/then_branch/w"]
    assert assert_holds(read, model, (1, 3)) == pytest.approx(3)


def test_a_branch_may_be_constant_or_pass_an_input_on(read: Any) -> None:
    still = branch(node("Identity", "five", "p"))
    through = branch(output="x")
    for pair, expected in (((still, PLAIN), 1), ((still, still), 0), ((through, OWN), 3)):
        nodes = [*UNKNOWN, chosen(*pair), node("Add", "y x", "z")]
        found = constant(
            read, model_of(nodes, shape=(1, 3), output="z", five=np.full((1, 3), 5, "f4"))
        )
        assert found.upper == pytest.approx(1 + expected)


def test_a_layer_in_a_branch_that_is_not_understood_is_missing(read: Any) -> None:
    odd = branch(node("Conv", "x k", "p", auto_pad="ELSE"), k=some(3, 3, 1))
    nodes = [*UNKNOWN, chosen(OWN, odd)]
    found = read(model_of(nodes, shape=(1, 3, 3), five=np.float32(5)))
    assert [layer.name for layer in found.layers] == ["y/then_branch/w"]
    assert list(found.failed) == ["y/else_branch/k"]


@pytest.mark.parametrize("outputs", [0, 2])
def test_branches_have_as_many_outputs_as_their_node(read: Any, outputs: int) -> None:
    odd = branch(node("Relu", "x", "p"))
    del odd.output[:]
    odd.output.extend([helper.make_tensor_value_info("p", FLOAT, None)] * outputs)
    model = model_of([chosen(odd, odd)], shape=(1, 3), flag=np.asarray(True))
    assert "number of outputs" in str(constant(read, model).reason)


def test_branches_with_inputs_are_not_understood(read: Any) -> None:
    odd = branch(node("Relu", "x", "p"))
    odd.input.append(helper.make_tensor_value_info("a", FLOAT, None))
    model = model_of([chosen(odd, odd)], shape=(1, 3), flag=np.asarray(True))
    assert "a branch has inputs" in str(constant(read, model).reason)


def test_names_of_inner_tensors_are_never_those_of_others(read: Any) -> None:
    """A step that refers to the wrong tensor would have the wrong constant."""
    nodes = [node("Neg", "x", "y/then_branch/p"), *UNKNOWN, chosen(PLAIN, PLAIN)]
    with pytest.raises(ReadError, match="two things"):
        read(model_of(nodes, shape=(1, 3), five=np.float32(5), output="y"))


def test_inner_parts_count_as_parts(read: Any) -> None:
    crowded = branch(node("Relu", "x", "p"))
    crowded.node.extend([onnx.NodeProto()] * 10**5)
    model = model_of([chosen(crowded, PLAIN)], shape=(1, 3), flag=np.asarray(True))
    with pytest.raises(ReadError, match="parts"):
        read(model)


def test_rows_of_branches_are_bounded(read: Any) -> None:
    model = model_of([*UNKNOWN, chosen(OWN, OUTER)], shape=(1, 3), v=SMALL, five=np.float32(5))
    rows = [bound_layer(layer) for layer in read(model).layers]
    assert [row.upper for row in rows] == pytest.approx([3, 1])
