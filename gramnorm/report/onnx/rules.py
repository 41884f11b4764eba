"""What one node of an ONNX graph does to Lipschitz constants and to shapes.

A rule looks at the attributes, the constants and the shapes that a node reads, and returns a factor for each varying
input: the outputs of two runs differ by at most the sum (or the root of the sum of squares) of factor times difference.
Facts behind the factors: docs/theory.md, section 8.  Operators are those of the standard's versions from 7 on.  An
operator, attribute or shape that a rule does not know raises `NotUnderstoodError`: nothing is taken to be 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gramnorm.report.onnx.entries import (
    add,
    batch_norm,
    celu,
    clip,
    dropout,
    extremum,
    gated,
    gelu,
    modulus,
    multiply,
    prelu,
    selu,
    slope,
)
from gramnorm.report.onnx.moves import (
    concat,
    flattened,
    gather,
    padded,
    rearranged,
    reshaped,
    sliced,
    split,
    squeezed,
    transposed,
    unsqueezed,
)
from gramnorm.report.onnx.nodes import Effect, Node, NotUnderstoodError
from gramnorm.report.onnx.windows import conv, gemm, global_pool, matmul, pool, reduce

__all__ = ["RULES", "apply_rule", "without_rule"]


_FLOATS = frozenset(
    ("alpha", "beta", "epsilon", "gamma", "max", "min", "momentum", "ratio", "value")
)
_TEXTS = frozenset(("approximate", "auto_pad", "mode"))
_INTEGERS = frozenset(
    (
        *("allowzero", "axis", "blocksize", "ceil_mode", "count_include_pad", "group", "keepdims"),
        *("noop_with_empty_axes", "num_outputs", "seed", "storage_order", "to"),
        *("training_mode", "transA", "transB"),
    )
)


@dataclass(frozen=True)
class _Rule:
    function: Callable[[Node], Effect]
    attributes: frozenset[str] = field(default_factory=frozenset)


def apply_rule(node: Node) -> Effect:
    """Return what a node does, or raise NotUnderstoodError."""
    rule = RULES.get(node.op)
    if rule is None:
        msg = without_rule(node.op)
        raise NotUnderstoodError(msg)
    for name, value in node.attributes.items():
        if name not in rule.attributes or not _fits(name, value):
            msg = f"its attribute {name!r} is unknown or of another type"
            raise NotUnderstoodError(msg)
    try:
        return rule.function(node)
    except (ValueError, OverflowError) as error:  # lists of unequal lengths, numbers beyond 64 bits
        raise NotUnderstoodError(str(error)) from error


def without_rule(op: str) -> str:
    """Return why an operator that is not listed is not understood."""
    rounds = any(word in op for word in ("uantize", "QLinear", "Integer"))
    return "there is no rule for it" + ": it rounds to quantised numbers" * rounds


def _fits(name: str, value: Any) -> bool:
    """Say whether an attribute has the type it has in the standard: a list of integers unless listed here."""
    if name in _FLOATS:
        return isinstance(value, float)
    if name in _TEXTS:
        return isinstance(value, bytes)
    if name in _INTEGERS:
        return isinstance(value, int)
    return isinstance(value, list) and all(isinstance(n, int) for n in value)


_WINDOW = frozenset(("auto_pad", "dilations", "kernel_shape", "pads", "strides"))
_REDUCE = _Rule(reduce, frozenset(("axes", "keepdims", "noop_with_empty_axes")))

RULES = {
    "Conv": _Rule(conv, _WINDOW | {"group"}),
    "ConvTranspose": _Rule(conv, _WINDOW | {"group", "output_padding", "output_shape"}),
    "Gemm": _Rule(gemm, frozenset(("alpha", "beta", "transA", "transB"))),
    "MatMul": _Rule(matmul),
    "MaxPool": _Rule(pool, _WINDOW | {"ceil_mode", "storage_order"}),
    "AveragePool": _Rule(pool, _WINDOW | {"ceil_mode", "count_include_pad"}),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _Rule(global_pool)),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"), _REDUCE),
    "BatchNormalization": _Rule(batch_norm, frozenset(("epsilon", "momentum", "training_mode"))),
    **dict.fromkeys(
        ("Relu", "Tanh", "Softplus", "Softsign", "Abs", "Neg", "Sin", "Cos", "Atan"),
        _Rule(slope(lambda _: 1.0)),
    ),
    "Clip": _Rule(slope(clip), frozenset(("min", "max"))),
    "Dropout": _Rule(slope(dropout), frozenset(("ratio", "seed"))),
    "LeakyRelu": _Rule(
        slope(lambda node: max(1.0, modulus(node, "alpha", 0.01))), frozenset(("alpha",))
    ),
    "Elu": _Rule(slope(lambda node: max(1.0, modulus(node, "alpha", 1.0))), frozenset(("alpha",))),
    "Celu": _Rule(slope(celu), frozenset(("alpha",))),
    "Selu": _Rule(slope(selu), frozenset(("alpha", "gamma"))),
    "PRelu": _Rule(prelu),
    "Sigmoid": _Rule(gated),
    "HardSigmoid": _Rule(gated, frozenset(("alpha", "beta"))),
    "HardSwish": _Rule(slope(lambda _: 1.5)),
    "Swish": _Rule(slope(lambda _: 1.1), frozenset(("alpha",))),
    "Mish": _Rule(slope(lambda _: 1.09)),
    "Gelu": _Rule(slope(gelu), frozenset(("approximate",))),
    "Erf": _Rule(slope(lambda _: 1.1284)),
    "Softmax": _Rule(slope(lambda _: 0.5), frozenset(("axis",))),
    **dict.fromkeys(("Add", "Sub", "Sum"), _Rule(add)),
    **dict.fromkeys(("Max", "Min"), _Rule(extremum)),
    **dict.fromkeys(("Mul", "Div"), _Rule(multiply)),
    "Identity": _Rule(rearranged(lambda _, shape: shape)),
    "Flatten": _Rule(rearranged(flattened), frozenset(("axis",))),
    "Reshape": _Rule(rearranged(reshaped), frozenset(("allowzero",))),
    "Transpose": _Rule(rearranged(transposed), frozenset(("perm",))),
    "Squeeze": _Rule(rearranged(squeezed), frozenset(("axes",))),
    "Unsqueeze": _Rule(rearranged(unsqueezed), frozenset(("axes",))),
    "Pad": _Rule(rearranged(padded), frozenset(("mode", "pads", "value"))),
    "Slice": _Rule(rearranged(sliced), frozenset(("axes", "starts", "ends"))),
    "DepthToSpace": _Rule(rearranged(lambda _, __: None), frozenset(("blocksize", "mode"))),
    "SpaceToDepth": _Rule(rearranged(lambda _, __: None), frozenset(("blocksize",))),
    "Concat": _Rule(concat, frozenset(("axis",))),
    "Split": _Rule(split, frozenset(("axis", "num_outputs", "split"))),
    "Gather": _Rule(gather, frozenset(("axis",))),
}
"""The operators that are understood, with the attributes that their rules know."""
