"""What one node of an ONNX graph does to Lipschitz constants and to shapes.

A rule looks at the attributes, the constants and the shapes that a node reads, and returns a factor
for each varying input: the outputs of two runs differ by at most the sum (or the root of the sum of
squares) of factor times difference.  Facts behind the factors: docs/theory.md, section 8.
Operators are those of version 7 or later, and those of version 6 that are the same in 7.  An
operator, attribute or shape that a rule does not know raises `NotUnderstoodError`: nothing is taken
to be 1.
"""

from collections.abc import Callable

from gramnorm.network._slopes import FIXED, HARD_SWISH, MISH, SOFTMAX, SWISH, of_gate
from gramnorm.report.onnx import entries, moves, resizing, windows
from gramnorm.report.onnx.entries import between, slope
from gramnorm.report.onnx.moves import rearranged
from gramnorm.report.onnx.nodes import Effect, Node, NotUnderstoodError, require

Rule = Callable[[Node], Effect]


def apply_rule(node: Node) -> Effect:
    """Return what a node does, or raise NotUnderstoodError."""
    require(node.op in RULES, without_rule(node.op))
    try:
        return RULES[node.op](node)
    except (ValueError, OverflowError) as error:  # lists of unequal lengths, numbers beyond 64 bits
        raise NotUnderstoodError(str(error)) from error


def without_rule(op: str) -> str:
    """Return why an operator that is not listed is not understood."""
    reason = "there is no rule for it"
    if any(word in op for word in ("uantize", "QLinear", "Integer")):
        return f"{reason}: it rounds to quantised numbers, a step that breaks Lipschitz continuity"
    if "Attention" in op:
        grows = "the slope of x^T A x and the like grows with x"
        return f"{reason}: dot-product attention has no Lipschitz constant for all inputs ({grows})"
    return reason


def _each(*ops: str, by: Rule) -> dict[str, Rule]:
    return dict.fromkeys(ops, by)


NORMALISING = (
    *("GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"),
)

RULES: dict[str, Rule] = {
    # layers, pooling, reductions
    **_each("Conv", "ConvTranspose", by=windows.conv),
    "Gemm": windows.gemm,
    "MatMul": windows.matmul,
    "Einsum": windows.einsum,
    "MaxPool": windows.max_pool,
    "AveragePool": windows.average_pool,
    **_each("GlobalAveragePool", "GlobalMaxPool", by=windows.global_pool),
    **_each("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", by=windows.reduce),
    # functions of each entry alone, by what their slopes lie between
    "Identity": between(FIXED["identity"]),
    "Dropout": between(entries.dropout),
    "Cast": between(entries.cast),
    "Clip": between(entries.clip),
    "Relu": between(FIXED["relu"]),
    "LeakyRelu": between(entries.leaky_relu),
    "Elu": between(entries.elu),
    "Celu": between(entries.celu),
    "Selu": between(entries.selu),
    "Tanh": between(FIXED["tanh"]),
    "Atan": between(FIXED["atan"]),
    "Erf": between(FIXED["erf"]),
    "Softplus": between(FIXED["softplus"]),
    "Softsign": between(FIXED["softsign"]),
    "Sigmoid": between(FIXED["sigmoid"]),
    "HardSigmoid": between(entries.hard_sigmoid),
    "Neg": between(FIXED["neg"]),
    "Abs": between(FIXED["abs"]),
    "Sin": between(FIXED["sin"]),
    "Cos": between(FIXED["cos"]),
    # by their largest slopes alone, and softmax
    "Gelu": between(entries.gelu),
    "HardSwish": between(of_gate(HARD_SWISH)),
    "Swish": between(of_gate(SWISH)),
    "Mish": slope(MISH),
    "Softmax": slope(SOFTMAX),
    "LogSoftmax": slope(entries.log_softmax),
    # several tensors, entry by entry
    "PRelu": entries.prelu,
    "BatchNormalization": entries.batch_norm,
    **_each(*NORMALISING, by=entries.normalise),
    **_each("Add", "Sub", "Sum", by=entries.add),
    **_each("Max", "Min", by=entries.extremum),
    "Mul": entries.multiply,
    "Div": entries.divide,
    # entries that move
    "Flatten": moves.in_order(rearranged(moves.flattened)),
    "Reshape": moves.in_order(moves.reshaped),
    "Transpose": rearranged(moves.transposed),
    "Squeeze": moves.in_order(rearranged(moves.squeezed)),
    "Unsqueeze": rearranged(moves.unsqueezed),
    "Pad": moves.padded,
    "Slice": rearranged(moves.sliced),
    **_each("DepthToSpace", "SpaceToDepth", by=rearranged(lambda _, __: None)),
    "Concat": moves.concat,
    "Split": moves.split,
    "Gather": moves.gather,
    "Expand": moves.expanded,
    "Tile": moves.tiled,
    **_each("Resize", "Upsample", by=resizing.resized),
}
"""The operators that are understood."""
