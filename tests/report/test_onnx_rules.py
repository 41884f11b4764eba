"""Rules for nodes with constants that the theory page proves: held, and attained where it says so."""

from typing import Any

import numpy as np
import pytest

from tests.report.test_onnx import (
    assert_holds,
    constant,
    evaluator,
    model_of,
    node,
    onnx,
    read,
    some,
)

pytestmark = pytest.mark.extra
__all__ = ["read"]  # a fixture

INT8 = onnx.TensorProto.INT8


def built(*nodes: Any, shape: Any, version: int = 21, **arrays: Any) -> Any:
    return model_of(nodes, shape=shape, version=version, **arrays)


@pytest.mark.parametrize(("axis", "version"), [(1, 13), (-1, 13), (1, 11), (2, 12), (None, 11)])
def test_log_softmax_has_the_root_of_its_classes(read: Any, axis: Any, version: int) -> None:
    more = {} if axis is None else {"axis": axis}
    model = built(node("LogSoftmax", "x", **more), shape=(1, 3, 4), version=version)
    old = 12 if axis != 2 else 4
    classes = old if version < 13 else {1: 3, -1: 4}[axis]
    found = constant(read, model).upper
    assert classes**0.5 <= found <= classes**0.5 * (1 + 1e-15)
    assert_holds(read, model, (1, 3, 4), least=0.6)


@pytest.mark.parametrize("n", [2, 3, 17])
def test_the_root_of_the_classes_is_attained(n: int) -> None:
    norms = []
    for peak in (0.0, 5.0, 50.0):
        p = np.exp(peak * np.eye(n)[0])
        norms.append(np.linalg.norm(np.eye(n) - p / p.sum(), 2))
    assert max(norms) <= n**0.5 * (1 + 1e-14)
    assert norms[-1] > n**0.5 * (1 - 1e-12)


def test_log_softmax_of_unknown_classes_has_no_constant(read: Any) -> None:
    for shape in (None, (1, "classes")):
        assert constant(read, built(node("LogSoftmax", "x"), shape=shape)).upper is None


NORMALISED = [
    ("LayerNormalization", (1, 2, 6), 6, {"axis": -1}, 21),
    ("LayerNormalization", (1, 3, 4), (3, 4), {"axis": 1}, 17),
    ("InstanceNormalization", (2, 3, 4), 3, {}, 7),
    ("GroupNormalization", (1, 4, 3), 4, {"num_groups": 2}, 21),
    ("GroupNormalization", (1, 4, 3), 2, {"num_groups": 2}, 18),
    ("RMSNormalization", (1, 2, 6), 6, {}, 23),
]


def skip_unless_known(version: int) -> None:
    """Skip where the package does not know operators of a version, and so reads none of it."""
    newest = pytest.importorskip("onnx").defs.onnx_opset_version()
    if newest < version:
        pytest.skip(f"this onnx knows operators up to version {newest}")


@pytest.mark.parametrize(("op", "shape", "scale", "more", "version"), NORMALISED)
def test_normalisation_is_steepest_without_variance(
    read: Any, op: str, shape: Any, scale: Any, more: Any, version: int
) -> None:
    skip_unless_known(version)
    gamma = some(*np.atleast_1d(scale))
    arrays = {"g": gamma} | ({} if op.startswith("RMS") else {"b": some(*gamma.shape)})
    nodes = node(op, " ".join(["x", *arrays]), epsilon=0.25, **more)
    model = built(nodes, shape=shape, version=version, **arrays)
    found = constant(read, model).upper
    assert found == pytest.approx(2 * float(np.abs(gamma).max()), rel=1e-15)
    if version <= 21:  # newer ones are not in every onnxruntime
        assert_holds(read, model, shape)
    tiny = model_of([node(op, " ".join(["x", *arrays]), epsilon=0.0, **more)], shape=shape,
                    version=version, **arrays)  # fmt: skip
    assert "epsilon" in str(constant(read, tiny).reason)


def test_the_report_says_that_a_normalisation_is_large(read: Any) -> None:
    model = built(node("LayerNormalization", "x g", "t"), node("MatMul", "t w"), shape=(1, 6),
                  g=some(6), w=some(6, 2))  # fmt: skip
    assert any(
        "without any, max |scale| / sqrt(epsilon), which is large" in n for n in read(model).notes
    )


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    ("pads", "n"), [((0, 2), 5), ((2, 2), 4), ((1, 0), 2), ((1, 3), 5), ((3, 2), 4)]
)
def test_padding_by_samples_counts_them(read: Any, mode: str, pads: Any, n: int) -> None:
    model = built(
        node("Pad", "x p", mode=mode), shape=(1, n), p=np.asarray([0, pads[0], 0, pads[1]])
    )
    often = np.bincount(np.pad(np.arange(n), pads, mode=mode)).max()
    found = constant(read, model).upper
    assert found == pytest.approx(often**0.5, rel=1e-15)
    assert_holds(read, model, (1, n), least=0.99)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_padding_at_an_unknown_size_holds_at_every_one(read: Any, n: int) -> None:
    model = built(node("Pad", "x p", mode="edge"), shape=(1, "n"), p=np.asarray([0, 2, 0, 1]))
    assert_holds(read, model, (1, n), least=0.99 if n == 1 else 0.5)


RESIZED = [
    ({"mode": "nearest"}, 3, 0.99),
    ({"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, 2, 0.99),
    ({"mode": "linear"}, 2, 0.85),
    ({"mode": "linear"}, 3, 0.85),
    ({"mode": "linear", "coordinate_transformation_mode": "asymmetric"}, 3, 0.75),
]  # fmt: skip


@pytest.mark.parametrize(("more", "scale", "least"), RESIZED)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_resizing_has_the_root_of_its_scale(
    read: Any, more: Any, scale: int, least: float, n: int
) -> None:
    by = {"s": np.asarray([1, 1, scale], "f4")}
    model = built(
        node("Resize", "x  s".replace("  ", " r "), **more),
        shape=(1, 1, n),
        r=np.zeros(0, "f4"),
        **by,
    )
    assert_holds(read, model, (1, 1, n), least=least)


WAYS = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")


@pytest.mark.parametrize("places", WAYS)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scale", [0.4, 0.75, 1.5, 2.0, 2.3])
def test_resizing_at_a_known_size_is_bounded_by_its_matrix(
    read: Any, mode: str, places: str, scale: float
) -> None:
    """The matrix is what onnxruntime makes of unit inputs; sharp but for cubic weights, which change sign."""
    more = {"mode": mode, "coordinate_transformation_mode": places}
    made = node("Resize", "x r s", **more)
    arrays = {"r": np.zeros(0, "f4"), "s": np.asarray([1, 1, scale, 1], "f4")}
    outputs = evaluator(built(made, shape=(1, 1, 7, 1), **arrays))
    columns = [outputs(e.reshape(1, 1, 7, 1)) for e in np.eye(7, dtype="f4")]
    truth = np.linalg.norm(np.stack(columns, axis=1), 2)
    found = constant(read, built(made, shape=(1, 1, 7, 1), **arrays)).upper
    assert found is not None
    assert truth <= found * (1 + 1e-6)
    assert truth >= (0.7 if mode == "nearest" else 0.6) * found
    everywhere = constant(read, built(made, shape=(1, 1, "n", 1), **arrays))
    if everywhere.upper is None:
        assert "at known sizes only" in str(everywhere.reason)
    else:
        assert truth <= everywhere.upper * (1 + 1e-6)


@pytest.mark.parametrize("places", ["half_pixel", "align_corners"])
@pytest.mark.parametrize("scale", [1.0, 1.1, 1.5, 2.0, 2.7, 3.0])
def test_linear_interpolation_has_a_bound_at_every_size(
    read: Any, places: str, scale: float
) -> None:
    made = node("Resize", "x r s", mode="linear", coordinate_transformation_mode=places)
    arrays = {"r": np.zeros(0, "f4"), "s": np.asarray([1, 1, scale], "f4")}
    found = constant(read, built(made, shape=(1, 1, "n"), **arrays)).upper
    assert found is not None
    for n in range(1, 20):
        known = constant(read, built(made, shape=(1, 1, n), **arrays)).upper
        outputs = evaluator(built(made, shape=(1, 1, n), **arrays))
        columns = [outputs(e.reshape(1, 1, n)) for e in np.eye(n, dtype="f4")]
        truth = np.linalg.norm(np.stack(columns, axis=1), 2)
        assert truth <= known * (1 + 1e-6)
        assert truth <= found * (1 + 1e-6)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, "its mode is"),
        ({"mode": "cubic", "exclude_outside": 1}, "exclude_outside"),
        ({"mode": "linear", "antialias": 1}, "antialias"),
        ({"mode": "cubic", "cubic_coeff_a": 1e9}, "its mode is"),
    ],
)
def test_resizing_in_other_ways_has_no_constant(read: Any, more: Any, match: str) -> None:
    model = built(node("Resize", "x r s", **more), shape=(1, 1, 4, 4),
                  r=np.zeros(0, "f4"), s=np.asarray([1, 1, 2, 2], "f4"))  # fmt: skip
    assert match in str(constant(read, model).reason)


def test_sizes_that_runtimes_may_round_differently_are_unknown(read: Any) -> None:
    """0.7f is below 0.7, and 10 of it are 6 or 7."""
    nodes = [node("Resize", "x r s", "t"), node("ReduceSum", "t")]
    model = built(*nodes, shape=(1, 1, 10), r=np.zeros(0, "f4"), s=np.asarray([1, 1, 0.7], "f4"))
    assert "unknown number" in str(constant(read, model).reason)


def test_expanding_and_tiling_repeat_entries(read: Any) -> None:
    model = built(node("Expand", "x s", "t"), node("Tile", "t r"), shape=(1, 3),
                  s=np.asarray([4, 1, 3]), r=np.asarray([1, 3, 1]))  # fmt: skip
    assert assert_holds(read, model, (1, 3), least=0.99) == pytest.approx(12**0.5)


LINEAR = [
    (node("MatMul", "x w"), (2, 4, 3), (2, 3, 5)),
    (node("MatMul", "x w"), (1, 4, 3), (2, 3, 5)),
    (node("MatMul", "w x"), (2, 1, 4, 3), (2, 3, 5, 4)),
    (node("Einsum", "x w", equation="bij,jk->bik"), (2, 4, 3), (3, 5)),
    (node("Einsum", "w x", equation="hdk,bhd->bhk"), (1, 2, 3), (2, 3, 4)),
    (node("Einsum", "x w", equation="bd,dhk->hbk"), (2, 3), (3, 2, 4)),
    (node("Einsum", "x w", equation="bd,d->bd"), (2, 3), (3,)),
]


@pytest.mark.parametrize(("made", "shape", "weight"), LINEAR)
def test_stacks_of_matrices_are_layers(read: Any, made: Any, shape: Any, weight: Any) -> None:
    repeated = 2 if shape in ((1, 4, 3), (2, 1, 4, 3)) else 1
    model = built(made, shape=shape, w=some(*weight))
    assert_holds(read, model, shape, least=0.999 if repeated == 1 else 0.7)


def test_einsums_of_other_forms_are_refused(read: Any) -> None:
    for equation in ("bij,jk->bi", "...j,jk->...k", "bij,jk", "bii,ik->bk", "bij,jk->bikk"):
        model = built(node("Einsum", "x w", equation=equation), shape=(2, 3, 3), w=some(3, 3))
        assert constant(read, model).upper is None


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("taps", "stride"), [(3, 2), (4, 2), (3, 1), (2, 2)])
def test_a_transposed_convolution_of_the_input_times_its_stride(
    read: Any, auto: str, taps: int, stride: int
) -> None:
    made = node("ConvTranspose", "x w", "t", auto_pad=auto, strides=[stride])
    for shape in ((1, 2, 7), (1, 2, "n")):
        model = built(made, node("Relu", "t"), shape=shape, w=some(2, 3, taps))
        assert_holds(read, model, (1, 2, 7), least=0.5)


@pytest.mark.parametrize("size", [5, 8, 9, 10, 13])
@pytest.mark.parametrize("auto", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
def test_a_transposed_convolution_with_its_output_stated(read: Any, auto: str, size: int) -> None:
    made = node("ConvTranspose", "x w", "t", strides=[2], auto_pad=auto, output_shape=[size])
    model = built(made, node("ReduceSum", "t axes"), shape=(1, 2, 5), w=some(2, 3, 4),
                  axes=np.asarray([1]))  # fmt: skip
    if size > 12:  # beyond what its windows reach
        assert "beyond" in str(constant(read, model).reason)
        return
    assert_holds(read, model, (1, 2, 5), least=0.3)
    open_ = built(made, node("Relu", "t"), shape=(1, 2, "n"), w=some(2, 3, 4))
    assert_holds(read, open_, (1, 2, 5), least=0.3)


def test_refusals_say_why(read: Any) -> None:
    made = node("QuantizeLinear", "x s", "y", output_dtype=INT8)
    found = constant(read, built(made, shape=(1, 3), s=np.float32(0.5)))
    assert "breaks Lipschitz continuity" in str(found.reason)
    found = constant(read, built(node("Transpose", "x", "t"), node("MatMul", "x t"), shape=(3, 3)))
    assert "as attention does" in str(found.reason)
    found = constant(
        read, built(node("MaxPool", "x", kernel_shape=[2], auto_pad="ELSE"), shape=(1, 1, 4))
    )
    assert "b'" not in str(found.reason)


def test_attention_is_refused_by_its_name(read: Any) -> None:
    skip_unless_known(23)
    found = constant(read, built(node("Attention", "x x x"), shape=(1, 3, 3, 3), version=23))
    assert "dot-product attention" in str(found.reason)


WRITTEN = {
    "hard swish": ("Add x three a|Clip a zero six b|Mul x b c|Div c six y", 1.5),
    "hard swish, divided first": ("Add x three a|Clip a zero six b|Div b six c|Mul c x y", 1.5),
    "gelu": ("Div x root a|Erf a b|Add b one c|Mul x c d|Mul d half y", 1.129),
    "gelu, halved first": ("Mul x half h|Div x root a|Erf a b|Add b one c|Mul h c y", 1.129),
    "gelu by tanh": (
        "Pow x three a|Mul a cubic b|Add x b c|Mul c alpha d|Tanh d e|Add one e f|Mul x half h|Mul h f y",
        1.13,
    ),
    "gelu by products": (
        "Mul x x s|Mul s x a|Mul a cubic b|Add b x c|Mul c alpha d|Tanh d e|Add e one f|Mul x f g|Mul g half y",
        1.13,
    ),
    "quick gelu": ("Mul x quick a|Sigmoid a b|Mul b x y", 1.1),
    "swish of a shifted tensor": ("Add x three a|Sigmoid a b|Mul a b y", 1.1),
    "mish": ("Softplus x a|Tanh a b|Mul x b y", 1.09),
    "tanh": ("Tanh x a|Mul a x y", 1.2),
}
NUMBERS = {
    "three": 3, "zero": 0, "six": 6, "root": 2**0.5, "one": 1, "half": 0.5, "cubic": 0.044715,
    "alpha": (2 / np.pi) ** 0.5, "quick": 1.702,
}  # fmt: skip


def written(text: str) -> list[Any]:
    parts = [line.split() for line in text.split("|")]
    return [node(op, " ".join(inputs), out) for op, *inputs, out in parts]


@pytest.mark.parametrize("name", WRITTEN)
def test_products_with_a_function_of_oneself(read: Any, name: str) -> None:
    text, slope = WRITTEN[name]
    used = {k: np.float32(v) for k, v in NUMBERS.items() if k in text.split()}
    used |= {k: np.float32(v) for k, v in NUMBERS.items() if f" {k} " in text.replace("|", " ")}
    model = built(*written(text), shape=(1, 40), **used)
    assert assert_holds(read, model, (1, 40), least=0.75) == pytest.approx(slope, rel=1e-6)
    named = built(*written(text), shape=("n", "c"), **used)
    assert constant(read, named).upper == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "Mul x x y", "Pow x three y", "Tanh x a|Sigmoid x b|Mul a b y", "Add x three a|Sigmoid x b|Mul a b y",
        "Softplus x a|Mul x a y", "Add x vector a|Clip a zero six b|Mul x b y", "Relu x r|Sigmoid r a|Mul x a y",
        "Pow x three a|Mul a six b|Tanh b c|Mul x c y", "Transpose x t|Sigmoid t a|Mul x a y",
    ],
)  # fmt: skip
def test_other_products_have_no_constant(read: Any, text: str) -> None:
    numbers = {k: np.float32(v) for k, v in NUMBERS.items()} | {"vector": some(3)}
    used = {k: v for k, v in numbers.items() if k in text.replace("|", " ").split()}
    found = constant(read, built(*written(text), shape=(3, 3), **used))
    assert found.upper is None
