"""Constants that a graph computes of others: the value to the last bit, or none."""

import itertools
import time
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from operator import add, mul, sub, truediv
from typing import Any

import numpy as np
import pytest

from gramnorm.report import bound_layer
from gramnorm.report.files.contents import ReadError
from gramnorm.report.onnx.constants import computed
from gramnorm.report.onnx.nodes import Fixed, Node, NotUnderstoodError
from tests.report.test_onnx import (
    FLOAT,
    assert_holds,
    constant,
    helper,
    model_of,
    node,
    onnx,
    read,
    run,
    some,
)

pytestmark = pytest.mark.extra
__all__ = ["read"]  # a fixture

ODD = (-(2**63), -(2**31), -9, -4, -3, -2, -1, 0, 1, 2, 3, 9, 2**31 - 1, 2**63 - 1)


def rounded(function: Callable[..., Fraction], *values: Any) -> np.ndarray:
    """Return a function of exact numbers, rounded to float32: 53 bits hold what is rounded next."""
    arrays = np.broadcast_arrays(*values)
    exact = [
        function(*map(Fraction, row))
        for row in zip(*(a.ravel().tolist() for a in arrays), strict=True)
    ]
    return np.asarray([float(v) for v in exact]).astype("f4").reshape(arrays[0].shape)


A, B = some(4, 3), some(4, 3, seed=1)
COMPUTED: dict[str, tuple[list[Any], dict[str, Any], np.ndarray]] = {
    "a product": ([node("Mul", "a b", "w")], {"a": A, "b": B}, rounded(mul, A, B)),
    "a scale": ([node("Mul", "a b", "w")], {"a": A, "b": B[0, 0]}, rounded(mul, A, B[0, 0])),
    "a scale for each row": ([node("Mul", "b a", "w")], {"a": A, "b": B[:, :1]}, rounded(mul, A, B[:, :1])),
    "a quotient": ([node("Div", "a b", "w")], {"a": A, "b": B[0]}, rounded(truediv, A, B[0])),
    "a sum": ([node("Add", "a b", "w")], {"a": A, "b": B[0]}, rounded(add, A, B[0])),
    "a difference": ([node("Sub", "a b", "w")], {"a": A, "b": B[0]}, rounded(sub, A, B[0])),
    "a conversion": ([node("Cast", "a", "w", to=FLOAT)], {"a": A.astype(float) / 3}, rounded(truediv, A, 3)),
    "two turns": ([node("Transpose", "a", "t"), node("Mul", "t b", "u"), node("Transpose", "u", "w")],
                  {"a": A, "b": B[0, 0]}, rounded(mul, A, B[0, 0])),
    "batch norm, folded": (
        [node("Add", "v eps", "t"), node("Sqrt", "t", "s"), node("Div", "g s", "r"), node("Mul", "a r", "w")],
        {"a": A, "g": B[0], "v": np.abs(B[1]), "eps": np.float32(1e-5)},
        A * (B[0] / np.sqrt(np.abs(B[1]) + np.float32(1e-5))),
    ),
    "a part": ([node("Slice", "a f t z", "w")], {"a": some(6, 3), "f": [1], "t": [-1], "z": [0]}, some(6, 3)[1:-1]),
    "two parts": ([node("Concat", "a b", "w", axis=0)], {"a": A[:1], "b": A[1:]}, A),
    "one of three": ([node("Split", "a", "u w v", axis=0, num_outputs=3)], {"a": some(12, 3)}, some(12, 3)[4:8]),
    "masked": ([node("Where", "m a zero", "w")], {"m": A > 0, "a": A, "zero": np.float32(0)}, np.where(A > 0, A, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPUTED)
def test_weights_that_the_graph_computes_are_those_that_run(read: Any, name: str) -> None:
    nodes, arrays, expected = COMPUTED[name]
    arrays = {k: np.asarray(v) for k, v in arrays.items()}
    model = model_of([*nodes, node("MatMul", "x w")], shape=(1, 4), version=18, **arrays)
    (layer,) = read(model).layers
    np.testing.assert_array_equal(layer.weight, expected.T)
    assert layer.weight.dtype == np.float32
    made = run(model_of(nodes, output="w", version=18, inputs={}, **arrays))
    np.testing.assert_array_equal(made, expected.ravel())
    assert_holds(read, model, (1, 4), least=0.99)


@pytest.mark.parametrize(
    "op", ["Add", "Sub", "Mul", "Div", "Sqrt", "Reciprocal", "DequantizeLinear"]
)
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_long_arrays_are_those_of_vector_instructions(op: str, kind: str) -> None:
    """Which may be less exact than those for one number."""
    rng, n = np.random.default_rng(0), 10_003
    a, b = np.exp(3 * rng.standard_normal((2, n))).astype(kind)
    arrays = {"a": a, "b": b} if op in ("Add", "Sub", "Mul", "Div") else {"a": a}
    if op == "DequantizeLinear":
        arrays = {"a": rng.integers(-128, 128, n).astype("i1"), "b": b.astype("f4")}
    made = node(op, " ".join(arrays), **({"axis": 0} if op == "DequantizeLinear" else {}))
    model = model_of([made], inputs={}, **arrays)
    wide = kind == "f8" and op != "DequantizeLinear"
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE if wide else FLOAT
    fixed = tuple(Fixed("", v) for v in arrays.values())
    (believed,) = computed(Node(op, {"axis": 0} if "Linear" in op else {}, fixed, 1, 17))
    np.testing.assert_array_equal(believed, run(model))


QUANTISED = [
    (np.int8, (), True, 1), (np.uint8, (), True, 1), (np.int8, (1,), False, 1), (np.int32, (), False, 1),
    (np.int8, (4,), True, 0), (np.uint8, (3,), True, 1), (np.int8, (3,), False, -1), (np.int16, (4,), True, -2),
    (np.uint16, (), True, 1),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "shape", "shifted", "axis"), QUANTISED)
def test_dequantised_weights_are_exact_differences_times_their_scales(
    read: Any, kind: Any, shape: Any, shifted: bool, axis: int
) -> None:
    rng = np.random.default_rng(0)
    ends = np.iinfo(kind)
    low, high = (ends.min, ends.max) if kind != np.int32 else (-(2**24), 2**24)
    q = rng.integers(low, high, (4, 3), endpoint=True).astype(kind)
    scale = np.exp(rng.standard_normal(shape)).astype("f4")
    zero = rng.integers(low, high, shape).astype(kind)
    made = node("DequantizeLinear", "q s z" if shifted else "q s", "w", axis=axis)
    arrays = {"q": q, "s": scale} | ({"z": zero} if shifted else {})
    model = model_of([made, node("MatMul", "x w")], shape=(1, 4), version=21, **arrays)
    (layer,) = read(model).layers
    turn = (slice(None), None) if shape == (4,) else ...
    exact = rounded(lambda q, z, s: (q - z) * s, q, zero[turn] if shifted else 0, scale[turn])
    np.testing.assert_array_equal(layer.weight, exact.T)
    assert (layer.name, layer.word) == ("q", "dequantised")
    assert bound_layer(layer).kind == "dense, dequantised"
    assert_holds(read, model, (1, 4), least=0.99)


def test_dequantised_convolutions_keep_their_geometry(read: Any) -> None:
    q = np.random.default_rng(0).integers(-128, 128, (4, 3, 3, 3)).astype(np.int8)
    scale = np.exp(some(4))
    nodes = [node("DequantizeLinear", "q s", "w", axis=0), node("Conv", "x w", pads=[1, 1, 1, 1])]
    model = model_of(nodes, shape=(1, 3, 4, 4), version=21, q=q, s=scale)
    (layer,) = read(model).layers
    assert layer.geometry is not None
    assert layer.geometry["padding"] == ((1, 1), (1, 1))
    assert_holds(read, model, (1, 3, 4, 4), least=0.3)


UNKNOWN = {
    "a power": ([node("Pow", "a two", "w")], "computed in the graph by node 'number 0' (Pow)"),
    "a sum of many": ([node("ReduceSum", "a", "s"), node("Mul", "a s", "w")], "(ReduceSum)"),
    "a function": ([node("Exp", "a", "w")], "(Exp), there is no rule for it"),
    "an outer product": ([node("Mul", "row column", "w")], "(Mul)"),
    "an overflow": ([node("Mul", "a huge", "w")], "(Mul)"),
    "blocks": ([node("DequantizeLinear", "q blocks", "w", block_size=2, axis=0)], "(DequantizeLinear)"),
    "chance": ([node("RandomNormalLike", "a", "w")], "(RandomNormalLike)"),
    "narrow": ([node("Cast", "a", "h", to=onnx.TensorProto.BFLOAT16), node("Mul", "h h", "p"),
                node("Cast", "p", "w", to=FLOAT)], "(Cast)"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_computed_is_named(read: Any, name: str) -> None:
    nodes, match = UNKNOWN[name]
    arrays = {
        "a": A, "two": np.float32(2), "row": some(1, 200), "column": some(200, 1), "huge": np.float32(3e38) + 0 * B,
        "q": np.ones((4, 3), np.int8), "blocks": np.ones((2, 3), "f4"), "other": some(3, 3),
    }  # fmt: skip
    used = {i for n in nodes for i in n.input} | {"other"}
    n = 200 if "outer" in name else 4
    model = model_of([*nodes, node("MatMul", "x w", "y"), node("MatMul", "z other", "o")],
                     inputs={"x": (1, n), "z": (1, 3)}, version=21,
                     **{k: v for k, v in arrays.items() if k in used})  # fmt: skip
    found = read(model)
    assert [layer.name for layer in found.layers] == ["other"]
    assert match in str(found.failed)
    assert constant(read, model).upper is None


def test_products_of_bfloat16_are_not_taken_for_those_of_float32(read: Any) -> None:
    """Their product has its type, into which it is rounded."""
    model = model_of([node("Mul", "h h", "p"), node("Cast", "p", "w", to=FLOAT), node("MatMul", "x w")],
                     shape=(1, 2), version=18)  # fmt: skip
    kind = onnx.TensorProto.BFLOAT16
    model.graph.initializer.append(helper.make_tensor("h", kind, (2, 2), [1.0078125, 1, 2, 3]))
    with pytest.raises(ReadError, match=r"'h'.*\(Mul\)"):
        read(model)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_parts_of_constants_are_those_of_onnxruntime(n: int) -> None:
    pytest.importorskip("onnxruntime")
    from tests.harness.graphs import runner  # noqa: PLC0415

    names = ("s", "e", "a", "t")
    model = model_of([node("Slice", "x s e a t")], shape=(n,))
    whole = onnx.TensorProto.INT64
    model.graph.input.extend(helper.make_tensor_value_info(k, whole, (1,)) for k in names)
    session, x, known = runner(model), np.arange(n, dtype="f4"), 0
    for start, end, step in itertools.product(ODD, ODD, (-3, -2, -1, 1, 2, 3)):
        values = [np.asarray([v]) for v in (start, end, 0, step)]
        fixed = [Fixed("", v) for v in (x, *values)]
        (believed,) = computed(Node("Slice", {}, tuple(fixed), 1, 18))
        (kept,) = session({"x": x} | dict(zip(names, values, strict=True)))
        known += believed is not None
        assert believed is None or believed.tolist() == kept.tolist(), (start, end, step)
    assert known > 800


class TestSizes:
    """Whole numbers, and the names of sizes."""

    @staticmethod
    def of(op: str, *values: Any, **attributes: Any) -> Any:
        fixed = [Fixed("", v if isinstance(v, np.ndarray) else np.asarray(v)) for v in values]
        try:
            (made,) = computed(Node(op, attributes, tuple(fixed), 1, 18))
        except NotUnderstoodError:
            return None
        return None if made is None else made.tolist()

    def test_whole_numbers_are_computed_as_in_c(self) -> None:
        for a in range(-5, 6):
            assert self.of("Div", [a], [3]) == [int(a / 3)]
            assert self.of("Div", [a], [-3]) == [int(a / -3)]
            assert self.of("Mod", [a], [3]) == [a % 3]
        assert self.of("Div", [1], [0]) is None
        assert self.of("Mod", [1], [0]) is None
        assert self.of("Mod", [-5], [3], fmod=1) is None
        assert self.of("Mul", [2**40], [2**30]) is None
        assert self.of("Add", np.asarray([200], "u1"), np.asarray([100], "u1")) is None

    def test_names_stay_names_where_that_is_certain(self) -> None:
        h = np.asarray(["h", 3], dtype=object)
        assert self.of("Mul", h, [1, 2]) == ["h", 6]
        assert self.of("Mul", h, [2, 2]) == [None, 6]
        assert self.of("Sub", h, [1, 0]) == [None, 3]
        assert self.of("Equal", h, [-1, 3]) == [False, True]
        assert self.of("Equal", h, [5, 3]) is None
        assert self.of("Equal", h, h) == [True, True]
        less = np.asarray([None, 3], dtype=object)  # such as h - 2, which may be -1
        assert self.of("Equal", less, [-1, 3]) is None
        assert self.of("Where", [True, False], h, [7, 8]) == ["h", 8]
        assert self.of("Greater", h, [-1, -1]) is None
        assert self.of("Cast", h, to=FLOAT) is None

    def test_powers_are_computed_where_nothing_is_rounded(self) -> None:
        assert self.of("Pow", np.float32([3, 0.5]), np.float32(2)) == [9, 0.25]
        assert self.of("Pow", np.float32([0.1]), np.float32(2)) is None
        assert self.of("Pow", np.float32([4]), np.float32(0.5)) is None
        assert self.of("Pow", np.float32([1e38]), np.float32(2)) is None

    def test_conversions_to_whole_numbers_stay_in_range(self) -> None:
        int64 = onnx.TensorProto.INT64
        assert self.of("Cast", np.float32([-1.5, 2.5]), to=int64) == [-1, 2]
        for odd in (np.nan, np.inf, 1e19):
            assert self.of("Cast", np.float32([odd]), to=int64) is None

    def test_shapes_may_be_read_in_part(self, read: Any) -> None:
        nodes = [
            node("Shape", "x", "s", start=-2, end=3),
            node("Reshape", "v s", "w"),
            node("MatMul", "z w"),
        ]
        model = model_of(nodes, inputs={"x": (5, 3, 4, "h"), "z": (1, 3)}, version=18, v=some(12))
        assert constant(read, model).upper is None
        nodes[0] = node("Shape", "x", "s", start=1, end=-1)
        model = model_of(nodes, inputs={"x": (5, 3, 4, "h"), "z": (1, 3)}, version=18, v=some(12))
        assert_holds(read, model, (5, 3, 4, 2), (1, 3))

    def test_the_shape_of_a_constant_is_known_without_its_value(self, read: Any) -> None:
        """A class token is repeated for each sample of a batch, and joined with the others."""
        nodes = [
            node("Shape", "x", "s", end=1),
            node("Concat", "s ones", "t", axis=0),
            node("Equal", "t minus", "e"),
            node("Where", "e one t", "u"),
            node("Expand", "token u", "c"),
            node("Concat", "c x", "j", axis=1),
            node("Add", "j table"),
        ]
        arrays = {"ones": [-1, -1], "minus": [-1, -1, -1], "one": [1, 1, 1]}
        arrays = {k: np.asarray(v) for k, v in arrays.items()}
        model = model_of(nodes, shape=("n", 4, 3), version=18, token=some(1, 1, 3),
                         table=some(1, 5, 3), **arrays)  # fmt: skip
        assert constant(read, model).upper == 1
        assert_holds(read, model, (2, 4, 3), least=0.99)


class TestHostile:
    """Constants that would be much larger than the file, or take very long."""

    LARGE = 2**40

    @pytest.mark.parametrize(
        "made",
        [
            node("ConstantOfShape", "large", "w"),
            node("Expand", "v large", "w"),
            node("Range", "zero large0 one", "w"),
            node("Gather", "v many", "w", axis=0),
            node("Tile", "v large", "w"),
            node("Mul", "column row", "w"),
            node("Where", "mask column row", "w"),
            node("Concat", " ".join(["v"] * 30000), "w", axis=0),
        ],
        ids=lambda made: made.op_type,
    )
    def test_no_constant_grows_out_of_the_file(
        self, read: Any, made: Any, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr("gramnorm.report.files.contents.MAX_BYTES", 2**25)
        arrays = {
            "large": np.asarray([self.LARGE]), "large0": np.asarray(self.LARGE), "zero": np.asarray(0),
            "one": np.asarray(1), "v": np.ones(2**10, "f4"), "many": np.zeros((2**9, 2**9), np.int64),
            "column": np.ones((2**14, 1), "f4"), "row": np.ones((1, 2**14), "f4"), "mask": np.asarray(True),
        }  # fmt: skip
        used = set(made.input)
        model = model_of([made, node("MatMul", "x k")], shape=(1, 3), version=18, k=some(3, 3),
                         **{k: v for k, v in arrays.items() if k in used})  # fmt: skip
        tracemalloc.start()
        assert [layer.name for layer in read(model).layers] == ["k"]
        assert tracemalloc.get_traced_memory()[1] < 2**26
        tracemalloc.stop()

    def test_time_does_not_grow_with_the_number_of_copies(
        self, read: Any, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr("gramnorm.report.files.contents.MAX_BYTES", 2**25)
        nodes = [node("Neg", "w", f"w{i}") for i in range(3000)]
        model = model_of([*nodes, node("MatMul", "x w")], shape=(1, 1000), w=some(1000, 1000))
        began = time.perf_counter()
        assert [layer.name for layer in read(model).layers] == ["w"]
        assert time.perf_counter() - began < 10
