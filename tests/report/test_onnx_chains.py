"""Chains of layers in ONNX graphs: found, never below a pair of inputs, never above the product."""

import csv
import functools
import io
import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gramnorm as gn
from gramnorm.network import _graph, _shortcuts
from gramnorm.network._sequence import Curved, Entrywise, Flattened, Joined, Weighted, goes_on
from gramnorm.report import bound_layer, chains, cli, limits
from gramnorm.report.network import Constant, constant_of
from gramnorm.report.onnx.nodes import Effect, Fixed, Node, NotUnderstoodError, Varying
from gramnorm.report.onnx.rules import NORMALISING, RULES, apply_rule
from tests.report.test_onnx import model_of, node, onnx, read, some, steepest

pytestmark = pytest.mark.extra
__all__ = ["read"]  # a fixture

VERSION = 22
SLOPES: dict[str, list[dict[str, float]]] = {
    **{op: [{}] for op in ("Identity", "Relu", "Tanh", "Atan", "Erf", "Softplus", "Softsign")},
    **{op: [{}] for op in ("Sigmoid", "Neg", "Dropout")},
    "LeakyRelu": [{}, {"alpha": 0.0}, {"alpha": 0.7}, {"alpha": 1.8}],
    "Elu": [{}, {"alpha": 0.0}, {"alpha": 0.4}, {"alpha": 1.9}],
    "Celu": [{}, {"alpha": 0.3}, {"alpha": 2.5}],
    "Selu": [{}, {"alpha": 0.5, "gamma": 2.0}, {"gamma": -1.5}],
    "HardSigmoid": [{}, {"alpha": 0.5, "beta": 0.1}, {"alpha": -0.4}, {"alpha": 0.0}],
    "Cast": [{"to": onnx.TensorProto.DOUBLE}],
    "Clip": [{}],
}
"""Operators of one tensor that may stand in a chain, and attributes to try."""

BREAKING: list[tuple[str, dict[str, Any]]] = [
    *((op, {}) for op in ("Abs", "Sin", "Cos", "Gelu", "HardSwish", "Swish", "Mish", "Softmax")),
    ("LogSoftmax", {"axis": 1}),
    ("LeakyRelu", {"alpha": -0.1}),
    ("Elu", {"alpha": -0.1}),
    ("Selu", {"alpha": -0.1}),
    ("Selu", {"alpha": -0.1, "gamma": -2.0}),
]


def effect(
    op: str, *constants: np.ndarray, shape: Any = (2, 3), at: int = 0, **more: Any
) -> Effect:
    """Return what a node does to a tensor of that shape, at a position among constants."""
    inputs: list[Any] = [Fixed(f"c{i}", np.asarray(c)) for i, c in enumerate(constants)]
    inputs.insert(at, Varying("x", shape))
    return apply_rule(Node(op, more, tuple(inputs), 1, VERSION))


def effect_since(version: int, op: str, **attributes: Any) -> Effect:
    return apply_rule(Node(op, attributes, (Varying("x", (2, 3)),), 1, version))


def evaluated(
    op: str, x: np.ndarray, *constants: np.ndarray, at: int = 0, **more: Any
) -> np.ndarray:
    """Return what the package onnx makes of x in float64, beside constants."""
    names = [f"c{i}" for i in range(len(constants))]
    names.insert(at, "x")
    made = onnx.helper.make_node(op, names, ["y"], **more)
    infos = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, None) for n in (*names, "y")
    ]
    graph = onnx.helper.make_graph([made], "g", infos[:-1], infos[-1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", VERSION)])
    feeds = dict(zip([n for n in names if n != "x"], constants, strict=True))
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator(model)
    return np.asarray(evaluator.run(None, feeds | {"x": x})[0], dtype=float)


def assert_slopes_within(x: np.ndarray, y: np.ndarray, entrywise: Any) -> None:
    """Check the slopes, over all distances along the last axis, of what was computed in float64."""
    scale = 1.0 if entrywise.scale is None else np.broadcast_to(entrywise.scale, x.shape)
    for apart in (1, 3, 50, 700):
        step = x[..., apart:] - x[..., :-apart]
        rise = (y[..., apart:] - y[..., :-apart]) / step
        noise = 2.0**-46 * (np.abs(y).max() + 1) / step
        by = scale if np.ndim(scale) == 0 else scale[..., apart:]
        turned = rise * np.sign(by) if entrywise.scale is not None else rise
        turned = -turned if entrywise.scale is None and turned.mean() < 0 else turned
        if entrywise.ends is not None:
            ends = np.multiply.outer(entrywise.ends, by)
            assert np.all(
                (rise >= np.min(ends, axis=0) - noise) & (rise <= np.max(ends, axis=0) + noise)
            )
        assert np.all(turned >= -noise)
        assert np.all(turned <= entrywise.slope * np.abs(by) + noise)


GRID = np.unique(np.concatenate([np.linspace(-7, 7, 1501), np.geomspace(1e-4, 40, 300),
                                 -np.geomspace(1e-4, 40, 300)]))  # fmt: skip


@pytest.mark.parametrize(
    ("op", "attributes"), [(op, a) for op, some_of in SLOPES.items() for a in some_of]
)
def test_no_slope_of_an_operator_in_chains_lies_outside(op: str, attributes: Any) -> None:
    stored = {k: float(np.float32(v)) if k != "to" else v for k, v in attributes.items()}
    found = effect(op, **stored).part
    assert found is not None
    y = evaluated(op, GRID, **attributes)
    assert_slopes_within(GRID, y, found)


def test_operators_that_go_into_chains_are_these_and_no_others() -> None:
    """Each operator that may go into a chain has its slopes searched, above and below."""
    unary = {op for op in RULES if op not in NORMALISING}
    there = set()
    for op in unary:
        try:
            attributes = {"to": onnx.TensorProto.FLOAT} if op == "Cast" else {}
            found = effect(op, **attributes)
        except (NotUnderstoodError, AssertionError, KeyError, IndexError):
            continue
        there |= {op} if isinstance(found.part, Entrywise) else set()
    several = {"Add", "Sub", "Sum", "Max", "Min", "Flatten"}  # tried below
    assert there - several == SLOPES.keys()


@pytest.mark.parametrize(("op", "attributes"), BREAKING)
def test_operators_with_slopes_of_both_signs_break_a_chain(op: str, attributes: Any) -> None:
    part = effect(op, **attributes).part
    assert part is None or isinstance(part, Curved)
    assert not goes_on([Weighted(np.eye(3))], part)
    assert not goes_on([], part)


CURVED: list[tuple[str, dict[str, Any]]] = [
    *((op, {}) for op in ("Abs", "Sin", "Cos", "HardSwish", "Swish")),
    *(("Gelu", {"approximate": how}) for how in ("none", "tanh")),
    ("LeakyRelu", {"alpha": -0.1}),
    ("LeakyRelu", {"alpha": -1.7}),
    ("Elu", {"alpha": -0.1}),
    ("Selu", {"alpha": -0.1, "gamma": -2.0}),
]


@pytest.mark.parametrize(("op", "attributes"), CURVED)
def test_no_slope_of_both_signs_lies_outside(op: str, attributes: Any) -> None:
    stored = {k: float(np.float32(v)) if k != "approximate" else v for k, v in attributes.items()}
    written = {k: v.encode() if isinstance(v, str) else v for k, v in stored.items()}
    found = effect_since(24, op, **written).part if op == "Swish" else effect(op, **written).part
    assert isinstance(found, Curved)
    low, high = found.ends
    assert low < 0 < high
    y = GRID / (1 + np.exp(-GRID)) if op == "Swish" else evaluated(op, GRID, **attributes)
    slopes = np.diff(y) / np.diff(GRID)
    noise = 2.0**-22 if op == "Gelu" else 2.0**-44 * (np.abs(y).max() + 1) / np.diff(GRID)
    assert np.all((slopes >= low - noise) & (slopes <= high + noise))
    assert np.min(slopes) < 0.7 * low  # and they come near
    assert np.max(slopes) > 0.7 * high


ROW = np.asarray([[0.5], [-2.0], [0.0]])
CONSTANTS: list[tuple[str, tuple[np.ndarray, ...], int]] = [
    *((op, (ROW,), at) for op in ("Add", "Sub", "Mul", "Max", "Min") for at in (0, 1)),
    ("Div", (ROW + 0.25,), 0),
    ("Sum", (ROW, ROW), 1),
    ("PRelu", (np.abs(ROW),), 0),
    ("Clip", (np.asarray(-1.0), np.asarray(2.0)), 0),
    ("Clip", (np.asarray(2.0), np.asarray(-1.0)), 0),  # all is the upper end then
]


@pytest.mark.parametrize(("op", "constants", "at"), CONSTANTS)
def test_no_slope_beside_constants_lies_outside(
    op: str, constants: tuple[np.ndarray, ...], at: int
) -> None:
    x = np.broadcast_to(GRID, (3, GRID.size))
    found = effect(op, *constants, shape=x.shape, at=at).part
    assert found is not None
    assert_slopes_within(x, evaluated(op, x, *constants, at=at), found)


def test_slopes_of_batch_norm_keep_their_sign_and_are_rounded_up() -> None:
    rng = np.random.default_rng(0)
    scale, shift, mean = rng.standard_normal((3, 3))
    variance = rng.uniform(0.1, 2, 3)
    found = effect("BatchNormalization", scale, shift, mean, variance, shape=(1, 3, 4, 4)).part
    exact = scale / np.sqrt(variance + float(np.float32(1e-5)))
    assert found is not None
    assert found.scale.shape == (1, 3, 1, 1)
    assert np.ravel(found.scale) == pytest.approx(exact, rel=1e-14)
    assert np.all(np.abs(np.ravel(found.scale)) >= np.abs(exact) * (1 - 3e-16))


@pytest.mark.parametrize(
    ("op", "constants", "shape"),
    [
        ("PRelu", (np.asarray([0.5, -0.1, 0.2]),), (2, 3)),
        ("Mul", (np.ones((4, 1)),), (1, 3)),  # repeats
        ("Add", (np.ones((2, 3)),), (3,)),
        ("Add", (np.ones((1, 1)),), (3,)),  # makes axes, so that others are the channels
        ("Add", (np.ones((1, 1)),), None),
        ("Max", (np.ones((2, 1)),), (1, 3)),
        ("BatchNormalization", tuple(np.ones((4, 3))), None),
    ],
)
def test_what_repeats_entries_or_moves_axes_breaks_a_chain(
    op: str, constants: Any, shape: Any
) -> None:
    part = effect(op, *constants, shape=shape).part
    assert part is None or isinstance(part, Curved)


def test_flattening_what_is_flat_stands_in_a_chain_and_a_turn_does_not() -> None:
    assert effect("Flatten", shape=(2, 3)).part is not None
    assert effect("Flatten", shape=(2, 3, 4, 5)).part == Flattened((4, 5))
    assert effect("Flatten", shape=("n", 3, 4)).part == Flattened((4,))
    assert effect("Flatten", shape=(2, 3, 4), axis=2).part is None
    assert effect("Flatten", shape=(2, 3, None)).part is None
    assert effect("Reshape", np.asarray([-1, 12]), shape=(2, 3, 4)).part == Flattened((4,))
    assert effect("Reshape", np.asarray([1, 24]), shape=(2, 3, 4)).part is None
    assert effect("Squeeze", np.asarray([2, 3]), shape=(2, 3, 1, 1)).part == Flattened((1, 1))
    assert effect("Flatten", shape=(None, 3)).part is None
    assert effect("Reshape", np.asarray([2, 3]), shape=(2, 3)).part is not None
    assert effect("Reshape", np.asarray([3, 2]), shape=(2, 3)).part is None
    assert effect("Transpose", shape=(3, 3)).part is None


def found_in(read: Any, model: Any, *, seconds: float | None = 2.0) -> Constant:
    """Return the constant of a model with its chains."""
    contents = read(model)
    bounded = functools.partial(chains.bounded, seconds=seconds)
    rows = [bound_layer(layer) for layer in contents.layers]
    return constant_of(contents.network, rows, find_chains=bounded)


def assert_between(
    read: Any, model: Any, *shapes: tuple[int, ...], seconds: float = 20.0
) -> Constant:
    """Check a constant with inputs and the product; return it."""
    found = found_in(read, model, seconds=seconds)
    assert found.upper is not None
    assert found.product is not None
    assert steepest(model, shapes) <= found.upper * (1 + 1e-4)
    assert found.upper <= found.product
    for chain in found.chains:
        assert chain.upper <= chain.product
    return found


def test_a_number_times_a_number_has_no_axes_and_a_constant(read: Any) -> None:
    nodes = [
        node("MatMul", "x w", "t"), node("ReduceMax", "t", "u", keepdims=0), node("Mul", "u a"),
    ]  # fmt: skip
    arrays = {"w": np.eye(3, dtype="f4"), "a": np.asarray(-2.0, "f4")}
    found = assert_between(read, model_of(nodes, shape=(2, 3), **arrays), (2, 3))
    assert 2 <= found.upper < 2.001


def dense(between: str = "Relu", **attributes: Any) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Return a network of three layers, and its weights."""
    nodes = [
        node("Gemm", "x a", "t0", transB=1),
        node(between, "t0", "t1", **attributes),
        node("MatMul", "t1 b", "t2"),
        node(between, "t2", "t3", **attributes),
        node("Gemm", "t3 c", "y", transB=1, alpha=-0.5),
    ]
    return nodes, {"a": some(8, 6), "b": some(8, 8), "c": some(4, 8)}


@pytest.mark.parametrize(("between", "slope"), [("Relu", 1.0), ("Sigmoid", 0.25), ("Neg", 1.0)])
def test_a_network_of_dense_layers_has_the_bound_of_its_chain(
    read: Any, between: str, slope: float
) -> None:
    nodes, w = dense(between)
    found = assert_between(read, model_of(nodes, shape=(1, 6), **w), (1, 6))
    whole = gn.chain_bound([w["a"], w["b"].T, w["c"]])
    assert found.upper == pytest.approx(0.5 * slope**2 * whole, rel=1e-3)
    assert found.upper < 0.9 * found.product
    (chain,) = found.chains
    assert chain.layers == ("a", "b", "c")
    assert (chain.start, chain.end, chain.reason) == ("x", "y", None)


@pytest.mark.parametrize(
    ("between", "attributes", "ends"),
    [
        ("Abs", {}, (-1, 1)),
        ("LeakyRelu", {"alpha": -0.2}, (-0.2, 1)),
        ("HardSwish", {}, (-0.5, 1.5)),
        ("Gelu", {}, (-0.129, 1.129)),
        ("Softmax", {"axis": -1}, None),
    ],
)
def test_falling_slopes_between_dense_layers_are_another_chain(
    read: Any, between: str, attributes: Any, ends: Any
) -> None:
    nodes, w = dense(between, **attributes)
    version = 20 if between == "Gelu" else 17
    found = assert_between(read, model_of(nodes, shape=(1, 6), version=version, **w), (1, 6))
    if ends is None:
        assert found.chains == ()
        return
    (chain,) = found.chains
    assert (chain.start, chain.end, chain.layers) == ("x", "y", ("a", "b", "c"))
    act = gn.Activation(*ends)
    layers = [w["a"].astype(float), act, w["b"].T.astype(float), act, -0.5 * w["c"].astype(float)]
    assert found.upper == pytest.approx(gn.chain_bound(layers), rel=1e-3)
    assert found.upper < found.product


def test_the_absolute_value_between_layers_exceeds_what_a_chain_would_give(read: Any) -> None:
    """|u| + |-u| has slopes of 2, of which slopes in [0, 1] would allow one: it must not go in."""
    w = {"a": np.asarray([[1.0, -1.0]], "f4"), "b": np.asarray([[1.0], [1.0]], "f4")}
    nodes = [
        node("MatMul", "x a", "t"),
        node("LeakyRelu", "t", "u", alpha=-1.0),
        node("MatMul", "u b"),
    ]
    found = assert_between(read, model_of(nodes, shape=(1, 1), **w), (1, 1))
    assert gn.chain_bound([w["a"].T, w["b"].T]) < 1.9
    assert found.upper is not None
    assert found.upper >= 2


def test_a_second_reader_breaks_the_chain(read: Any) -> None:
    nodes, w = dense()
    for place, parts in (
        ("t0", {("a",), ("b", "c")}),
        ("t1", {("b", "c")}),
        ("t2", {("a", "b")}),
        ("t3", {("a", "b")}),
    ):
        more = [*nodes, node("Relu", place, "z")]
        found = assert_between(read, model_of(more, shape=(1, 6), output=["y", "z"], **w), (1, 6))
        assert {chain.layers for chain in found.chains} <= parts
        as_output = assert_between(
            read, model_of(nodes, shape=(1, 6), output=["y", place], **w), (1, 6)
        )
        assert {chain.layers for chain in as_output.chains} <= parts
        assert max(len(chain.layers) for chain in as_output.chains) == 2


def test_a_residual_block_has_a_chain_in_its_branch(read: Any) -> None:
    nodes = [
        node("MatMul", "x a", "t"), node("Relu", "t", "u"), node("MatMul", "u b", "v"), node("Add", "x v"),
    ]  # fmt: skip
    w = {"a": some(6, 9), "b": some(9, 6)}
    found = assert_between(read, model_of(nodes, shape=(1, 6), **w), (1, 6))
    branch, block = found.chains
    assert (branch.start, branch.end, block.start, block.end) == ("x", "v", "x", "y")
    assert found.upper == pytest.approx(gn.chain_bound([gn.Residual([w["a"].T, w["b"].T])]))
    assert found.upper < 0.99 * (1 + branch.upper)


def residual(
    depth: int, *, act: str = "Relu", norm: bool = False, sub: bool = False, alpha: float = 1.0
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Return dense residual blocks behind one another, activations behind every second sum."""
    nodes, weights, at = [node("MatMul", "x first", "b0")], {"first": some(6, 7)}, "b0"
    for i in range(depth):
        weights |= {f"h{i}": some(5, 7), f"g{i}": some(7, 5)}
        nodes += [
            node("Gemm", f"{at} h{i}", f"t{i}", transB=1), node(act, f"t{i}", f"u{i}"),
            node("Gemm", f"u{i} g{i}", f"v{i}", transB=1, alpha=alpha),
        ]  # fmt: skip
        if norm:
            names = [f"{kind}{i}" for kind in ("scale", "shift", "mean", "variance")]
            weights |= {name: some(7) for name in names}
            weights[names[3]] = np.abs(weights[names[3]]) + 0.5
            nodes.append(node("BatchNormalization", " ".join([f"v{i}", *names]), f"w{i}"))
        terms = [at, f"{'w' if norm else 'v'}{i}"]
        nodes.append(node("Sub" if sub else "Add", " ".join(terms[:: 1 if i % 2 else -1]), f"s{i}"))
        at = f"s{i}"
        if i % 2:
            nodes.append(node("Tanh", at, f"b{i + 1}"))
            at = f"b{i + 1}"
    weights["last"] = some(3, 7)
    return [*nodes, node("Gemm", f"{at} last", "y", transB=1)], weights


def layers_of(
    w: dict[str, np.ndarray], depth: int, slopes: Any, *, sub: bool = False, alpha: float = 1.0
) -> list[Any]:
    none, layers = gn.Activation(1, 1), [w["first"].T.astype(float), gn.Activation(1, 1)]
    for i in range(depth):
        own = -alpha if sub and i % 2 else alpha
        shortcut = -np.eye(7) if sub and not i % 2 else None
        branch = [w[f"h{i}"].astype(float), gn.Activation(*slopes), own * w[f"g{i}"].astype(float)]
        layers += [gn.Residual(branch, shortcut), gn.Activation() if i % 2 else none]
    return [*layers, w["last"].astype(float)]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    ("act", "slopes", "sub", "alpha"),
    [
        ("Relu", (0, 1), False, 1.0),
        ("Sigmoid", (0, 0.25), False, 1.0),
        ("Relu", (0, 1), True, 1.0),
        ("Relu", (0, 1), False, -1.0),
        ("Neg", (-1, -1), False, 1.0),
        ("LeakyRelu", (np.float32(0.01), 1), True, -0.5),
    ],
)
def test_a_dense_residual_network_has_the_bound_of_the_whole(
    read: Any, depth: int, act: str, slopes: Any, sub: bool, alpha: float
) -> None:
    nodes, w = residual(depth, act=act, sub=sub, alpha=alpha)
    found = assert_between(read, model_of(nodes, shape=(1, 6), **w), (1, 6))
    whole = gn.chain_bound(layers_of(w, depth, slopes, sub=sub, alpha=alpha))
    assert found.upper == pytest.approx(whole, rel=1e-3)
    chain = found.chains[-1]
    assert (chain.start, chain.end, chain.reason) == ("x", "y", None)
    between = [name for i in range(depth) for name in (f"h{i}", f"g{i}")]
    assert chain.layers == ("first", *between, "last")


@pytest.mark.parametrize("sub", [False, True])
def test_norms_within_residual_blocks_are_multiplied_in(read: Any, sub: bool) -> None:
    nodes, w = residual(2, norm=True, sub=sub)
    found = assert_between(read, model_of(nodes, shape=(1, 6), **w), (1, 6))
    folded = dict(w)
    for i in range(2):
        scale = w[f"scale{i}"].astype(float) / np.sqrt(w[f"variance{i}"].astype(float) + 1e-5)
        folded[f"g{i}"] = scale[:, None] * w[f"g{i}"]
    assert found.upper == pytest.approx(gn.chain_bound(layers_of(folded, 2, (0, 1), sub=sub)), 1e-3)
    assert found.product is not None
    assert found.upper < 0.9 * found.product


@pytest.mark.parametrize("order", ["x p", "p x", "q p", "p q"])
def test_shortcuts_may_be_a_layer_or_nothing(read: Any, order: str) -> None:
    nodes = [
        node("Relu", "x", "a"), node("MatMul", "a f", "t"), node("Tanh", "t", "u"), node("MatMul", "u g", "p"),
        *([node("MatMul", "x s", "q")] if "q" in order else []),
        node("Add", order, "z"), node("MatMul", "z l"),
    ]  # fmt: skip
    w = {"f": some(4, 5), "g": some(5, 4), "l": some(4, 4)} | (
        {"s": some(4, 4)} if "q" in order else {}
    )
    found = assert_between(read, model_of(nodes, shape=(2, 4), **w), (2, 4))
    shortcut = w["s"].T.astype(float) if "q" in order else None
    block = gn.Residual([gn.Activation(), w["f"].T, w["g"].T], shortcut)
    whole = gn.chain_bound([block, gn.Activation(1, 1), w["l"].T])
    assert found.upper == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("alpha", [1.0, -1.0])
@pytest.mark.parametrize("terms", ["p q", "q p"])
def test_signs_of_a_layer_on_the_shortcut_are_kept(read: Any, terms: str, alpha: float) -> None:
    nodes = [
        node("MatMul", "x f", "t"), node("Relu", "t", "u"), node("MatMul", "u g", "p"),
        node("Gemm", "x s", "q", transB=1, alpha=alpha), node("Sub", terms, "y"),
    ]  # fmt: skip
    w = {"f": some(3, 4), "g": some(4, 3), "s": 2 * some(3, 3)}
    found = assert_between(read, model_of(nodes, shape=(1, 3), **w), (1, 3))
    sign = -alpha  # of one beside the other
    whole = gn.chain_bound([gn.Residual([w["f"].T, w["g"].T], sign * w["s"].astype(float))])
    assert found.upper == pytest.approx(whole, rel=1e-3)
    other = gn.chain_bound([gn.Residual([w["f"].T, w["g"].T], -sign * w["s"].astype(float))])
    assert abs(whole - other) > 0.01 * whole


def test_a_shortcut_with_an_activation_or_another_factor_is_none(read: Any) -> None:
    for act, alpha in (("Relu", 1.0), ("Identity", 0.5)):
        nodes = [
            node("MatMul", "x f", "t"), node("Relu", "t", "u"), node("MatMul", "u g", "p"),
            node(act, "x", "r"), node("Gemm", "r s", "q", alpha=alpha), node("Add", "p q", "y"),
        ]  # fmt: skip
        w = {"f": some(3, 4), "g": some(4, 3), "s": some(3, 3)}
        found = assert_between(read, model_of(nodes, shape=(1, 3), **w), (1, 3))
        assert all(chain.end != "y" for chain in found.chains)


def test_two_tensors_join_in_a_sum_of_one_shape_alone() -> None:
    for shapes, op, signs in (
        (((2, 3), (2, 3)), "Add", (1.0, 1.0)),
        (((2, 3), (2, 3)), "Sub", (1.0, -1.0)),
        (((None, 3), (None, 3)), "Add", None),  # which may not be equal
        (((2, 3), (1, 3)), "Add", None),
        (((3,), (2, 3)), "Sum", None),
    ):
        inputs = tuple(Varying(f"x{i}", s) for i, s in enumerate(shapes))
        try:
            part = apply_rule(Node(op, {}, inputs, 1, VERSION)).part
        except NotUnderstoodError:
            part = None
        assert (part.signs if isinstance(part, Joined) else part) == signs


def test_inexact_scales_are_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _shortcuts.Layered("a", Weighted(np.asarray([[3.0]])))
    for divisor in (3.0, 7.0, 1.1, 1e-5):
        scale = np.nextafter(1 / np.float64(divisor), np.inf)
        scaled = _shortcuts.Scaled(np.asarray([scale]))
        off = 3 * (Fraction(scale) - 1 / Fraction(divisor))
        assert 0 < off <= _shortcuts._error((layer, scaled))
        block = _shortcuts.Block((layer, scaled), None, (1.0, 1.0))
        assert 3 * off <= _shortcuts._error((layer, block))
    assert _shortcuts._error((layer,)) == 0
    run = _shortcuts.ResidualRun("x", "y", (_shortcuts.Block((layer,), None, (1.0, -1.0)),))
    before = run.by_norms({"a": 4.0})
    plain = run.as_whole(before, time_limit=None).upper
    assert 2 <= plain < 2.001
    monkeypatch.setattr(_shortcuts, "_error", lambda _: Fraction(1))
    assert run.as_whole(before, time_limit=None).upper == plain + 1


def test_a_block_within_a_block_is_one_chain(read: Any) -> None:
    nodes = [
        node("MatMul", "x a", "t"), node("Relu", "t", "u"), node("MatMul", "u b", "v"), node("Relu", "v", "w"),
        node("MatMul", "w c", "z"), node("Add", "u z", "s"), node("MatMul", "s d", "e"), node("Add", "e x"),
    ]  # fmt: skip
    w = {"a": some(4, 5), "b": some(5, 3), "c": some(3, 5), "d": some(5, 4)}
    found = assert_between(read, model_of(nodes, shape=(1, 4), **w), (1, 4))
    inner = gn.Residual([w["b"].T, w["c"].T])
    block = gn.Residual([w["a"].T, gn.Activation(), inner, gn.Activation(1, 1), w["d"].T])
    assert found.upper == pytest.approx(gn.chain_bound([block]), rel=1e-3)


@pytest.mark.parametrize(
    ("extra", "output"),
    [
        ([], ["y", "x2"]),  # the fork has a third reader
        ([], ["y", "u"]),  # a tensor within the branch is an output
        ([("Relu", "v", "z")], ["y", "z"]),
        ([("Softmax", "v", "z")], None),
        ([("Transpose", "v", "z")], None),
    ],
)
def test_what_others_read_or_what_is_no_function_of_entries_makes_no_block(
    read: Any, extra: Any, output: Any
) -> None:
    end = "z" if extra and output is None else "v"
    nodes = [
        node("Relu", "x", "x2"), node("MatMul", "x2 a", "t"), node("Relu", "t", "u"),
        node("MatMul", "u b", "v"), *(node(op, *names) for op, *names in extra),
        node("Add", f"x2 {end}", "y"),
    ]  # fmt: skip
    w = {"a": some(4, 3), "b": some(3, 4)}
    more = {} if output is None else {"output": output}
    found = assert_between(read, model_of(nodes, shape=(4, 4), **more, **w), (4, 4))
    assert all(chain.end != "y" for chain in found.chains)


def test_sums_that_repeat_entries_are_no_blocks(read: Any) -> None:
    nodes = [node("MatMul", "x a", "t"), node("Relu", "t", "u"), node("MatMul", "u b", "v"),
             node("Add", "x v", "y")]  # fmt: skip
    w = {"a": some(1, 3), "b": some(3, 4)}
    found = assert_between(read, model_of(nodes, shape=(2, 1), **w), (2, 1))
    assert all(chain.end != "y" for chain in found.chains)


def test_the_same_tensor_twice_is_two_readers(read: Any) -> None:
    nodes = [
        node("MatMul", "x a", "t"), node("Relu", "t", "u"), node("Add", "u u", "v"), node("MatMul", "v b"),
    ]  # fmt: skip
    found = assert_between(read, model_of(nodes, shape=(1, 3), a=some(3, 4), b=some(4, 2)), (1, 3))
    assert found.chains == ()


def conv_net(scale: np.ndarray, **attributes: Any) -> Any:
    nodes = [
        node("Conv", "x a d", "t0", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "t0 g h mean var", "t1"),
        node("Relu", "t1", "t2"),
        node("Conv", "t2 b", "t3", group=2, **attributes),
        node("Mul", "t3 s", "t4"),
        node("Sigmoid", "t4", "t5"),
        node("Conv", "t5 c", "y"),
    ]
    arrays = {"a": some(4, 1, 3, 3), "b": some(4, 2, 2, 2), "c": some(2, 4, 1, 1), "d": some(4)}
    arrays |= {"g": some(4, seed=1), "h": some(4, seed=2), "mean": some(4, seed=3)}
    arrays |= {"var": np.abs(some(4, seed=4)) + np.float32(0.1), "s": scale.astype("f4")}
    return model_of(nodes, shape=(1, 1, 5, 5), **arrays)


@pytest.mark.parametrize(
    ("attributes", "scale"),
    [
        ({"pads": [0, 1, 1, 0]}, np.asarray([-0.3, 2.0, 1.0, 0.5]).reshape(4, 1, 1)),
        ({"dilations": [2, 1], "pads": [1, 0, 2, 1]}, np.asarray(-3.0)),
        ({}, np.linspace(0.1, 2, 16).reshape(1, 1, 4, 4)),
    ],
)
def test_convolutions_with_norms_and_scales_between_are_one_chain(
    read: Any, attributes: Any, scale: np.ndarray
) -> None:
    found = assert_between(read, conv_net(scale, **attributes), (1, 1, 5, 5))
    (chain,) = found.chains
    assert chain.layers == ("a", "b", "c")
    assert found.upper < 0.9 * found.product


@pytest.mark.parametrize(
    "attributes", [{"strides": [2, 1]}, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}]
)
def test_a_chain_goes_on_through_strides(read: Any, attributes: Any) -> None:
    found = assert_between(read, conv_net(np.asarray(1.0), **attributes), (1, 1, 5, 5))
    assert [chain.layers for chain in found.chains] == [("a", "b", "c")]


def test_a_transposed_layer_with_a_stride_breaks_the_chain(read: Any) -> None:
    nodes = [
        node("Conv", "x a", "t"), node("Relu", "t", "u"), node("ConvTranspose", "u b", "v", strides=[2]),
        node("Relu", "v", "w"), node("Conv", "w c"),
    ]  # fmt: skip
    model = model_of(nodes, shape=(1, 2, 6), a=some(3, 2, 2), b=some(3, 2, 2), c=some(2, 2, 2))
    assert assert_between(read, model, (1, 2, 6)).chains == ()


POOLS: dict[str, tuple[list[Any], int]] = {
    "maximum": ([node("MaxPool", "t2", "p", kernel_shape=[2, 2], strides=[2, 2])], 1),
    "maximum padded": (
        [node("MaxPool", "t2", "p", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], 1),
    "average": ([node("AveragePool", "t2", "p", kernel_shape=[2, 2], strides=[2, 2])], 1),
    "average padded": (
        [node("AveragePool", "t2", "p", kernel_shape=[2, 2], pads=[1, 0, 1, 0], count_include_pad=1)], 1),
    "average of what is there": (
        [node("AveragePool", "t2", "p", kernel_shape=[2, 2], pads=[1, 0, 1, 0])], 2),
    "average, then an activation": (
        [node("AveragePool", "t2", "q", kernel_shape=[2, 2], strides=[2, 2]), node("Relu", "q", "p")], 1),
    "averages that overlap, then an activation": (
        [node("AveragePool", "t2", "q", kernel_shape=[2, 2]), node("Relu", "q", "p")], 2),
    "maximum, then a scale": (
        [node("MaxPool", "t2", "q", kernel_shape=[2, 2]), node("Mul", "q s", "p")], 1),
}  # fmt: skip


HEADS = [
    *((name, "Flatten") for name in POOLS),
    *(("maximum", head) for head in ("Reshape", "GlobalAveragePool", "GlobalMaxPool")),
]


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_poolings_and_a_dense_head_are_in_the_chain(read: Any, name: str, head: str) -> None:
    pools, count = POOLS[name]
    nodes = [node("Conv", "x a", "t1", pads=[1, 1, 1, 1]), node("Relu", "t1", "t2"), *pools,
             node("Conv", "p b", "t3", pads=[1, 1, 1, 1]), node("LeakyRelu", "t3", "t4")]  # fmt: skip
    sizes = {"maximum": 9, "average": 9, "maximum padded": 9, "average, then an activation": 9}
    area = sizes.get(name, {"average padded": 35, "average of what is there": 35}.get(name, 25))
    arrays = {"a": some(3, 1, 3, 3), "b": some(4, 3, 3, 3), "s": some(3, 1, 1)}
    if head.startswith("Global"):
        nodes += [node(head, "t4", "t5"), node("Flatten", "t5", "t6")]
        area = 1
    elif head == "Flatten":
        nodes += [node("Flatten", "t4", "t6")]
    else:
        nodes += [node("Reshape", "t4 to", "t6")]
        arrays["to"] = np.asarray([1, -1])
    nodes += [
        node("Gemm", "t6 w", "t7", transB=1),
        node("Sigmoid", "t7", "t8"),
        node("MatMul", "t8 v"),
    ]
    arrays |= {"w": some(5, 4 * area), "v": some(5, 2)}
    used = {i for n in nodes for i in n.input}
    model = model_of(nodes, shape=(1, 1, 6, 6), **{k: v for k, v in arrays.items() if k in used})
    found = assert_between(read, model, (1, 1, 6, 6))
    layers = [layer for chain in found.chains for layer in chain.layers]
    assert len(found.chains) == 1
    assert layers == (["a", "b", "w", "v"] if count == 1 else ["b", "w", "v"])
    assert found.upper is not None
    assert found.product is not None
    assert found.upper < 0.95 * found.product


def test_a_flattening_that_moves_channels_is_no_part_of_a_chain(read: Any) -> None:
    nodes = [
        node("Conv", "x a", "t"), node("Relu", "t", "u"), node("Transpose", "u", "v", perm=[0, 2, 1]),
        node("Flatten", "v", "w"), node("MatMul", "w b"),
    ]  # fmt: skip
    model = model_of(nodes, shape=(1, 2, 5), a=some(3, 2, 2), b=some(12, 2))
    assert assert_between(read, model, (1, 2, 5)).chains == ()


def test_layers_that_mix_other_axes_are_no_chain(read: Any) -> None:
    """W x, x W and a stack of matrices on the same tensor."""
    for first, second in itertools.permutations(("MatMul x", "MatMul a", "stack"), 2):
        nodes, arrays, tensor = [], {}, "x"
        for i, kind in enumerate((first, second)):
            out, w = ("y" if i else "t"), f"w{i}"
            arrays[w] = some(2, 4, 4) if kind == "stack" else some(4, 4)
            inputs = f"{w} {tensor}r" if kind == "MatMul a" else f"{tensor}r {w}"
            nodes += [node("Relu", tensor, f"{tensor}r"), node("MatMul", inputs, out)]
            tensor = out
        found = assert_between(read, model_of(nodes, shape=(2, 4, 4), **arrays), (2, 4, 4))
        assert found.chains == ()


def test_a_dense_layer_along_the_samples_of_a_convolution_is_no_chain(read: Any) -> None:
    nodes = [node("Conv", "x a", "t"), node("Relu", "t", "u"), node("MatMul", "u b")]
    model = model_of(nodes, shape=(1, 2, 3), a=some(3, 2, 1), b=some(3, 3))
    assert assert_between(read, model, (1, 2, 3)).chains == ()


def test_a_weight_that_is_used_twice_stands_twice_in_its_chain(read: Any) -> None:
    nodes = [
        node("MatMul", "x a", "t"), node("Relu", "t", "u"), node("MatMul", "u a", "v"), node("Relu", "v"),
    ]  # fmt: skip
    found = assert_between(read, model_of(nodes, shape=(1, 5), a=some(5, 5)), (1, 5))
    assert [chain.layers for chain in found.chains] == [("a", "a")]


@pytest.fixture
def path(tmp_path: Path) -> str:
    nodes, w = dense()
    file = tmp_path / "net.onnx"
    file.write_bytes(model_of(nodes, shape=(1, 6), **w).SerializeToString())
    return str(file)


def told(capsys: Any, *arguments: str) -> Any:
    assert cli.main(["report", *arguments]) == 0
    return capsys.readouterr().out


def test_json_says_which_layers_are_a_chain_and_what_the_product_was(
    path: str, capsys: Any
) -> None:
    found = json.loads(told(capsys, "--json", path))
    assert found["network_method"] is None
    network = found["network"]
    assert network["upper"] < network["product"]
    (chain,) = network["chains"]
    assert chain.keys() == {"layers", "start", "end", "upper", "product", "reason"}
    assert (chain["layers"], chain["upper"]) == (["a", "b", "c"], network["upper"])
    assert (chain["product"], chain["reason"]) == (network["product"], None)


def test_the_product_alone_can_be_asked_for(path: str, capsys: Any) -> None:
    plain = json.loads(told(capsys, "--json", path))["network"]
    product = json.loads(told(capsys, "--json", "--network", "product", path))["network"]
    assert product["upper"] == product["product"] == plain["product"]
    assert product["chains"] == []
    whole = json.loads(told(capsys, "--json", "--network", "sdp", path))["network"]
    assert whole["upper"] <= plain["upper"] * (1 + 1e-6)


def test_table_and_lines_tell_both(path: str, capsys: Any) -> None:
    pytest.importorskip("rich")
    network = json.loads(told(capsys, "--json", path))["network"]
    for form in ([], ["--markdown"]):
        out = told(capsys, *form, path)
        below = out[out.index("chains of layers") :]
        assert "a > b > c" in below.replace("\\", "")
        assert "constant of the network from products of norms alone" in below
    rows = [*csv.DictReader(io.StringIO(told(capsys, "--csv", path)))]
    kinds = {row["kind"]: row for row in rows}
    assert float(kinds["chain"]["upper"]) >= network["upper"]
    assert kinds["chain"]["layer"] == "a > b > c"
    assert "product of norms" in kinds["chain"]["error"]
    assert float(kinds["constant of the network, by norms"]["upper"]) >= network["product"]


def test_large_chains_wait_until_they_are_asked_for(
    path: str, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(chains, "CHAIN_WORK", 10.0)
    network = json.loads(told(capsys, "--json", path))["network"]
    assert network["upper"] == network["product"]
    assert "--network sdp" in network["chains"][0]["reason"]
    assert (
        json.loads(told(capsys, "--json", "--network", "sdp", path))["network"]["upper"]
        < network["upper"]
    )


def test_large_chains_have_their_scales_multiplied_in(read: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(chains, "CHAIN_WORK", 10.0)
    found = assert_between(read, conv_net(np.asarray(1.0)), (1, 1, 5, 5))
    (chain,) = found.chains
    assert "large" in str(chain.reason)
    assert found.upper is not None
    assert found.product is not None
    assert found.upper < 0.95 * found.product


def test_a_chain_beyond_all_memory_is_left_to_the_product(read: Any, monkeypatch: Any) -> None:
    def too_large(*_: Any, **__: Any) -> float:
        raise MemoryError

    monkeypatch.setattr(_graph, "run_bound", too_large)
    nodes, w = dense()
    found = found_in(read, model_of(nodes, shape=(1, 6), **w), seconds=None)
    assert found.upper == found.product
    assert "MemoryError" in str(found.chains[0].reason)


def test_without_time_there_is_the_product(read: Any) -> None:
    nodes, w = dense()
    found = found_in(read, model_of(nodes, shape=(1, 6), **w), seconds=0.0)
    assert found.upper == found.product
    assert "the time was up" in str(found.chains[0].reason)


def test_an_interruption_leaves_the_product(path: str, capsys: Any, monkeypatch: Any) -> None:
    def interrupted(*_: Any, **__: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(_graph, "run_bound", interrupted)
    assert cli.main(["report", "--json", path]) == 130
    network = json.loads(capsys.readouterr().out)["network"]
    assert network["upper"] == network["product"]
    assert "interrupted" in network["chains"][0]["reason"]


def test_small_chains_have_their_turn_first_and_the_time_is_shared(
    read: Any, monkeypatch: Any
) -> None:
    asked: list[tuple[int, float | None]] = []
    efforts = []

    def noted(parts: Any, *, time_limit: float | None, effort: str) -> float:
        asked.append((len(parts), time_limit))
        efforts.append(effort)
        return math.inf

    monkeypatch.setattr(_graph, "run_bound", noted)
    nodes = [
        node("MatMul", "x a", "t0"), node("Relu", "t0", "t1"), node("MatMul", "t1 b", "t2"),
        node("Relu", "t2", "t3"), node("MatMul", "t3 b", "t4"), node("Softmax", "t4", "u0"),
        node("MatMul", "u0 b", "u1"), node("Relu", "u1", "u2"), node("MatMul", "u2 c", "y"),
    ]  # fmt: skip
    model = model_of(nodes, shape=(1, 9), a=some(9, 9), b=some(9, 9), c=some(9, 9))
    found = found_in(read, model, seconds=10.0)
    assert found.upper == pytest.approx(found.product, rel=1e-14)
    assert [count for count, _ in asked] == [3, 5]
    assert asked[0][1] == pytest.approx(5, abs=0.5)
    assert asked[1][1] == pytest.approx(10, abs=1)
    assert limits.CHAIN_SECONDS < 60
    found_in(read, model, seconds=None)  # as with --network sdp
    assert efforts == ["quick", "quick", "high", "high"]


@pytest.mark.slow
def test_no_random_graph_of_residual_blocks_exceeds_its_constant() -> None:
    pytest.importorskip("onnxruntime")
    from tests.harness import graphs  # noqa: PLC0415

    report = graphs.survey(150, seed=11, makers=graphs.RESIDUALS)
    assert report.failures == []
    assert report.violations == []
    assert report.attained > 20
