"""What arrays are, by the names that frameworks give them: layers, nothing that matters, or something not understood.

The oracles are the operators themselves, written down or run by PyTorch and JAX, with arrays as the framework has them.
"""

import itertools
import json
import math
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm.report import bound_layer
from gramnorm.report.files.batchnorm import batchnorm_bound
from gramnorm.report.files.contents import Contents, Layer, ReadError, Stored
from gramnorm.report.files.layouts import LAYOUTS, readings, to_oihw
from gramnorm.report.files.names import Name, harmless, parsed
from gramnorm.report.files.readers import read_path
from gramnorm.report.files.roles import understood
from gramnorm.report.files.sidecar import Description, described
from tests.harness.oracles import conv_matrix, sigma
from tests.harness.reports import assert_refused, run, run_json, some, write_npz

pytestmark = pytest.mark.extra

SEED = 3
Shapes = dict[str, tuple[int, ...]]


def arrays_of(shapes: Shapes) -> dict[str, np.ndarray]:
    """Return arrays of these shapes: variances are positive, counters and indices integers."""
    rng = np.random.default_rng(SEED)
    arrays = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        if name.split(":")[0].endswith(("var", "variance")):
            values = np.abs(values) + np.float32(0.1)
        if name.endswith(("tracked", "ids", "index")):
            values = np.ones(shape, np.int64)
        arrays[name] = values
    return arrays


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


def save_safetensors(
    path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> Path:
    library = pytest.importorskip("safetensors.numpy")
    library.save_file(arrays, path.with_suffix(".safetensors"), metadata=metadata)
    return path.with_suffix(".safetensors")


def save_torch(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    torch = pytest.importorskip("torch", minversion="2.10")
    torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


SAVE: dict[str, Callable[[Path, dict[str, np.ndarray]], Path]] = {
    "npz": save_npz,
    "safetensors": save_safetensors,
    "torch": save_torch,
}


def dense(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def batch_norm(name: str, channels: int) -> Shapes:
    words = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{word}": (channels,) for word in words} | {f"{name}.num_batches_tracked": ()}


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


PYTORCH: dict[str, tuple[Shapes, dict[str, str], set[str]]] = {
    # shapes, the kinds of the rows, words in the reasons why there is no product
    "vgg": (
        {
            "features.0.weight": (16, 3, 3, 3),
            "features.0.bias": (16,),
            "features.2.weight": (32, 16, 3, 3),
            "features.2.bias": (32,),
            **dense("classifier.0", 20, 32),
        },
        {
            "features.0.weight": "conv2d",
            "features.2.weight": "conv2d",
            "classifier.0.weight": "dense",
        },
        set(),
    ),
    "chain with batch norm": (
        {
            "conv1.weight": (16, 3, 7, 7),
            **batch_norm("bn1", 16),
            "conv2.weight": (32, 16, 3, 3),
            **batch_norm("bn2", 32),
            **dense("fc", 10, 32),
        },
        {
            "conv1.weight": "conv2d",
            "bn1.weight": "batch norm",
            "conv2.weight": "conv2d",
            "bn2.weight": "batch norm",
            "fc.weight": "dense",
        },
        set(),
    ),
    "resnet": (
        {
            "layer1.0.conv1.weight": (16, 16, 3, 3),
            **batch_norm("layer1.0.bn1", 16),
            "layer2.0.downsample.0.weight": (32, 16, 1, 1),
            **batch_norm("layer2.0.downsample.1", 32),
        },
        {
            "layer1.0.conv1.weight": "conv2d",
            "layer1.0.bn1.weight": "batch norm",
            "layer2.0.downsample.0.weight": "conv2d",
            "layer2.0.downsample.1.weight": "batch norm",
        },
        {"shortcut"},
    ),
    "bert": (
        {
            "bert.embeddings.position_ids": (1, 50),
            "bert.embeddings.word_embeddings.weight": (100, 64),
            "bert.embeddings.position_embeddings.weight": (50, 64),
            "bert.embeddings.token_type_embeddings.weight": (2, 64),
            **norm("bert.embeddings.LayerNorm", 64),
            **dense("bert.encoder.layer.0.attention.self.query", 64, 64),
            **norm("bert.encoder.layer.0.attention.output.LayerNorm", 64),
            **dense("bert.encoder.layer.0.intermediate.dense", 256, 64),
        },
        {
            "bert.encoder.layer.0.attention.self.query.weight": "dense",
            "bert.encoder.layer.0.intermediate.dense.weight": "dense",
        },
        {"embedding", "attention", "scale"},
    ),
    "gpt2": (
        {
            "wte.weight": (100, 64),
            "wpe.weight": (50, 64),
            **norm("h.0.ln_1", 64),
            "h.0.attn.bias": (1, 1, 50, 50),
            "h.0.attn.masked_bias": (),
            "h.0.attn.c_attn.weight": (64, 192),
            "h.0.attn.c_attn.bias": (192,),
            "h.0.mlp.c_fc.weight": (64, 256),
            "h.0.mlp.c_fc.bias": (256,),
            **norm("ln_f", 64),
        },
        {"h.0.attn.c_attn.weight": "dense", "h.0.mlp.c_fc.weight": "dense"},
        {"embedding", "attention", "scale"},
    ),
    "llama": (
        {
            "model.embed_tokens.weight": (100, 64),
            "model.layers.0.self_attn.q_proj.weight": (64, 64),
            "model.layers.0.self_attn.rotary_emb.inv_freq": (16,),
            "model.layers.0.mlp.gate_proj.weight": (128, 64),
            "model.layers.0.input_layernorm.weight": (64,),
            "lm_head.weight": (100, 64),
        },
        {
            "model.layers.0.self_attn.q_proj.weight": "dense",
            "model.layers.0.mlp.gate_proj.weight": "dense",
            "lm_head.weight": "dense",
        },
        {"embedding", "attention", "scale"},
    ),
    "vit of timm": (
        {
            "cls_token": (1, 1, 64),
            "pos_embed": (1, 197, 64),
            "patch_embed.proj.weight": (64, 3, 16, 16),
            "patch_embed.proj.bias": (64,),
            **norm("blocks.0.norm1", 64),
            **dense("blocks.0.attn.qkv", 192, 64),
            "blocks.0.ls1.gamma": (64,),
            **dense("head", 10, 64),
        },
        {
            "patch_embed.proj.weight": "conv2d",
            "blocks.0.attn.qkv.weight": "dense",
            "head.weight": "dense",
        },
        {"not understood", "attention", "scale"},
    ),
    "swin": (
        {
            "layers.0.blocks.0.attn.relative_position_bias_table": (169, 3),
            "layers.0.blocks.0.attn.relative_position_index": (49, 49),
            "layers.0.blocks.1.attn_mask": (64, 49, 49),
            **dense("layers.0.blocks.0.mlp.fc1", 64, 16),
        },
        {"layers.0.blocks.0.mlp.fc1.weight": "dense"},
        {"attention"},
    ),
    "clip": (
        {
            "logit_scale": (),
            "visual.class_embedding": (64,),
            "visual.proj": (64, 32),
            "visual.conv1.weight": (64, 3, 32, 32),
            "positional_embedding": (77, 64),
            "transformer.resblocks.0.attn.in_proj_weight": (192, 64),
            "transformer.resblocks.0.attn.in_proj_bias": (192,),
        },
        {"visual.conv1.weight": "conv2d"},
        {"not understood", "attention"},
    ),
    "mamba": (
        {
            "layers.0.mixer.A_log": (128, 16),
            "layers.0.mixer.D": (128,),
            "layers.0.mixer.conv1d.weight": (128, 1, 4),
            "layers.0.mixer.conv1d.bias": (128,),
            "layers.0.mixer.in_proj.weight": (256, 64),
            "layers.0.norm.weight": (64,),
        },
        {"layers.0.mixer.conv1d.weight": "conv1d", "layers.0.mixer.in_proj.weight": "dense"},
        {"not understood", "scale"},
    ),
    "lstm": (
        {
            "lstm.weight_ih_l0": (64, 10),
            "lstm.weight_hh_l0": (64, 16),
            "lstm.bias_ih_l0": (64,),
            "lstm.bias_hh_l0": (64,),
            **dense("fc", 3, 16),
        },
        {"fc.weight": "dense"},
        {"recurrent"},
    ),
    "group norm and the rest": (
        {
            **norm("norm", 8),
            "field.weight": (4, 8, 8),
            "field.bias": (4, 8, 8),  # a layer norm of images
            "se.fc1.weight": (4, 16),
            "act.weight": (1,),
            "experts.0.w1.weight": (8, 16),
        },
        {"se.fc1.weight": "dense", "experts.0.w1.weight": "dense"},
        {"scale", "gate", "beside a bias", "experts"},
    ),
    "transposed": (
        {"up.weight": (64, 32, 4, 4), "up.bias": (32,), "conv.weight": (16, 32, 5)},
        {"up.weight": "conv2d", "conv.weight": "conv1d"},
        set(),
    ),
}


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("model", PYTORCH)
def test_only_weights_of_layers_make_rows(
    tmp_path: Path, capsys: Any, kind: str, model: str
) -> None:
    shapes, kinds, reasons = PYTORCH[model]
    path = SAVE[kind](tmp_path / "x", arrays_of(shapes))
    code, report = run_json(capsys, path, "--rtol", "0.2")
    assert {row["name"]: row["kind"] for row in report["layers"]} == kinds
    assert code == 0
    assert (report["product_upper"] is None) == bool(reasons)
    found = " ".join(entry["reason"] for entry in report["no_product"])
    assert all(reason in found for reason in reasons)
    assert bool(found) == bool(reasons)
    listed = {*kinds, *(entry["name"] for entry in report["skipped"])}
    assert listed == set(shapes)  # nothing is passed over in silence


# Kernels with their channels last.


def flax(**more: tuple[int, ...]) -> Shapes:
    return {
        "params/Conv_0/kernel": (3, 3, 16, 32),
        "params/Conv_0/bias": (32,),
        "params/Dense_0/kernel": (32, 10),
        "params/Dense_0/bias": (10,),
        **more,
    }


CHANNELS_LAST: dict[str, tuple[Shapes, dict[str, tuple[int, ...]], set[str]]] = {
    "flax": (
        flax(),
        {"params/Conv_0/kernel": (32, 16, 3, 3), "params/Dense_0/kernel": (32, 10)},
        set(),
    ),
    "flax, dots": (
        {name.replace("/", "."): shape for name, shape in flax().items()},
        {"params.Conv_0.kernel": (32, 16, 3, 3), "params.Dense_0.kernel": (32, 10)},
        set(),
    ),
    "flax, all kinds": (
        {
            "params/BatchNorm_0/scale": (8,),
            "params/BatchNorm_0/bias": (8,),
            "batch_stats/BatchNorm_0/mean": (8,),
            "batch_stats/BatchNorm_0/var": (8,),
            "params/LayerNorm_0/scale": (8,),
            "params/Embed_0/embedding": (99, 8),
            "params/Attention_0/query/kernel": (64, 4, 16),
            "params/Attention_0/query/bias": (4, 16),
            "params/Attention_0/out/kernel": (4, 16, 64),
            "params/Attention_0/out/bias": (64,),
            "params/OptimizedLSTMCell_0/hf/kernel": (8, 8),
            "params/embedding/kernel": (16, 16, 3, 64),
            "params/embedding/bias": (64,),
        },
        {"params/BatchNorm_0/scale": (8,), "params/embedding/kernel": (64, 3, 16, 16)},
        {"scale", "embedding", "attention", "recurrent"},
    ),
    "keras": (
        {
            "conv2d/kernel:0": (3, 3, 16, 32),
            "conv2d/bias:0": (32,),
            "dw/depthwise_kernel:0": (3, 3, 16, 2),
            "dw/bias:0": (32,),
            "sep/depthwise_kernel:0": (3, 3, 16, 1),
            "sep/pointwise_kernel:0": (1, 1, 16, 8),
            "sep/bias:0": (8,),
            "up/kernel:0": (4, 4, 8, 16),
            "up/bias:0": (8,),  # a transposed convolution
            "conv1d/kernel:0": (5, 16, 32),
            "conv1d/bias:0": (32,),
            "bn/gamma:0": (8,),
            "bn/beta:0": (8,),
            "bn/moving_mean:0": (8,),
            "bn/moving_variance:0": (8,),
        },
        {
            "conv2d/kernel:0": (32, 16, 3, 3),
            "dw/depthwise_kernel:0": (32, 1, 3, 3),
            "sep/depthwise_kernel:0": (16, 1, 3, 3),
            "sep/pointwise_kernel:0": (8, 16, 1, 1),
            "up/kernel:0": (16, 8, 4, 4),
            "conv1d/kernel:0": (32, 16, 5),
            "bn/gamma:0": (8,),
        },
        set(),
    ),
    "keras, no chain": (
        {
            "embedding/embeddings:0": (99, 8),
            "ln/gamma:0": (8,),
            "ln/beta:0": (8,),
            "lstm/lstm_cell/kernel:0": (8, 32),
            "lstm/lstm_cell/recurrent_kernel:0": (8, 32),
            "mine/kernel:0": (8, 32),
            "mine/recurrent_kernel:0": (8, 32),
            "multi_head_attention/query/kernel:0": (64, 4, 16),
            "dense/kernel:0": (8, 3),
        },
        {"dense/kernel:0": (8, 3)},
        {"scale", "embedding", "recurrent", "attention"},
    ),
}


@pytest.mark.parametrize("model", CHANNELS_LAST)
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_kernels_with_channels_last_are_turned_and_said(
    tmp_path: Path, capsys: Any, kind: str, model: str
) -> None:
    shapes, rows, reasons = CHANNELS_LAST[model]
    path = SAVE[kind](tmp_path / "x", arrays_of(shapes))
    code, report = run_json(capsys, path, "--rtol", "0.2")
    assert {row["name"]: tuple(row["shape"]) for row in report["layers"]} == rows
    assert code == 0
    found = " ".join(entry["reason"] for entry in report["no_product"])
    assert bool(found) == bool(reasons)
    assert all(reason in found for reason in reasons)
    kernels = [name for name, shape in rows.items() if len(shape) > 2]
    note = " ".join(report["notes"])
    assert all(name in note for name in kernels)
    assert ("(*spatial, c_in / groups, c_out)" in note) == bool(kernels)


def largest_on_grid(
    symbol: Callable[[np.ndarray], np.ndarray], axes: int, count: int = 24
) -> float:
    """Return the largest norm of a symbol on a grid of frequencies."""
    lines = [2 * np.pi * np.arange(count) / count] * axes
    return max(sigma(symbol(np.asarray(theta))) for theta in itertools.product(*lines))


def hwio(kernel: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the symbol of a kernel (*spatial, c_in, c_out), c_out x c_in, summed tap by tap."""

    def at(theta: np.ndarray) -> np.ndarray:
        taps = itertools.product(*map(range, kernel.shape[:-2]))
        return sum(np.exp(1j * theta @ np.asarray(tap)) * kernel[tap].T for tap in taps)

    return at


def rows_of(path: Path, **options: Any) -> dict[str, Any]:
    return {layer.name: bound_layer(layer) for layer in read_path(path, **options).layers}


def test_kernel_of_flax_has_the_norm_of_its_own_operator(tmp_path: Path) -> None:
    kernel = some(3, 3, 16, 32, dtype="float64") / 30
    path = save_npz(tmp_path / "x", {"Conv_0/kernel": kernel})
    (row,) = rows_of(path).values()
    exact = largest_on_grid(hwio(kernel), 2)
    assert exact * (1 - 1e-12) <= row.upper <= 1.02 * exact
    wrong = bound_layer(Layer("w", kernel, {}))
    assert wrong.upper > 2 * row.upper  # what the same array is with its channels first


def test_kernel_of_flax_bounds_the_convolution_that_jax_runs(tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    kernel = some(3, 2, 3, 4)
    path = save_npz(tmp_path / "x", {"Conv_0/kernel": kernel, "Conv_0/bias": np.zeros(4)})
    (row,) = rows_of(path, layout="hwio").values()

    def run_jax(x: Any) -> Any:
        kinds = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 1), "SAME", dimension_numbers=kinds)

    x = np.zeros((1, 6, 5, 3), np.float32)
    matrix = np.asarray(jax.jacobian(run_jax)(x)).reshape(-1, x.size)
    assert sigma(matrix.astype(np.float64)) <= row.upper


def test_kernels_of_transposed_convolutions_as_documented() -> None:
    """Flax and Keras store them in different orders; only the right one has the norm of what runs."""
    jax = pytest.importorskip("jax")
    kernel, size, stride = some(4, 3, 2), 24, 2  # taps, two kinds of channels
    kinds = ("NHC", "HIO", "NHC")

    def flax_layer(x: Any) -> Any:
        return jax.lax.conv_transpose(x, kernel, (stride,), "SAME", dimension_numbers=kinds)

    def keras_layer(x: Any) -> Any:  # the gradient of the convolution that reads the output
        def forward(y: Any) -> Any:
            return jax.lax.conv_general_dilated(
                y, kernel, (stride,), "SAME", dimension_numbers=kinds
            )

        return jax.vjp(forward, np.zeros((1, stride * size, 3), np.float32))[1](x)[0]

    for layer, channels, axes in ((flax_layer, 3, (1, 2, 0)), (keras_layer, 2, (2, 1, 0))):
        x = np.zeros((1, size, channels), np.float32)
        exact = sigma(np.asarray(jax.jacobian(layer)(x), np.float64).reshape(-1, x.size))
        use = {"stride": stride, "transposed": True}
        row = bound_layer(Layer("w", np.transpose(kernel, axes), use))
        assert exact <= row.upper <= 1.02 * exact
        starred = bound_layer(Layer("w", np.transpose(kernel, (2, 1, 0))))  # as a report reads both
        assert exact <= starred.upper


def test_depthwise_kernel_of_keras_is_block_diagonal(tmp_path: Path) -> None:
    kernel = some(3, 2, 5, 2, dtype="float64")
    path = save_npz(tmp_path / "x", {"dw/depthwise_kernel:0": kernel})
    (row,) = rows_of(path).values()
    assert row.kind == "conv2d, depthwise"
    # y[c m + j] = kernel[..., c, j] * x[c]: the symbol of each input channel is a column by itself
    exact = max(largest_on_grid(hwio(kernel[:, :, [c], :]), 2) for c in range(5))
    assert exact * (1 - 1e-12) <= row.upper <= 1.02 * exact


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_can_be_said(tmp_path: Path, layout: str) -> None:
    kernel = some(5, 3, 2, 3, dtype="float64")  # (c_out, c_in, *spatial)
    stored = {"oihw": kernel, "hwio": np.transpose(kernel, (2, 3, 1, 0))}
    stored["ohwi"] = np.transpose(kernel, (0, 2, 3, 1))
    np.testing.assert_array_equal(to_oihw(stored[layout], layout), kernel)
    path = save_npz(tmp_path / "x", {"conv.weight": stored[layout], "conv.bias": np.zeros(5)})
    (layer,) = read_path(path, layout=layout).layers
    np.testing.assert_array_equal(layer.weight, kernel)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        *(((32, 16, 3, 3), "oihw"), ((3, 3, 16, 32), "hwio"), ((32, 3, 3, 16), "ohwi")),
        *(((384, 80, 3), "oihw"), ((3, 80, 384), "hwio"), ((384, 3, 80), "ohwi")),
        *(((6, 1, 5, 5), "oihw"), ((5, 5, 1, 6), "hwio"), ((1, 1, 64, 128), "hwio")),
        *(((64, 3, 3, 3), "oihw ohwi"), ((3, 3, 3, 64), "hwio ohwi"), ((64, 64, 1, 7), "oihw")),
        *(((8, 8, 8, 8), "oihw hwio ohwi"), ((512, 1, 10), "oihw ohwi"), ((64, 3, 11, 11), "oihw")),
        *(((3, 3, 3, 16), "hwio ohwi"), ((1, 1, 1, 16), "hwio ohwi")),
        *(((16, 16, 3, 768), "hwio"), ((32, 16, 3, 3, 3), "oihw"), ((3, 3, 3, 16, 32), "hwio")),
    ],
)
def test_shapes_speak_for_the_order_with_few_and_square_taps(
    shape: tuple[int, ...], expected: str
) -> None:
    assert readings(shape) == set(expected.split())


class TestLayoutsThatContradict:
    @pytest.mark.parametrize(
        "shapes",
        [
            {"conv.weight": (3, 3, 16, 32)},  # of Haiku or Flax
            {"conv.weight": (32, 3, 3, 16)},  # of MLX
            {"conv/kernel": (32, 16, 3, 3)},  # of PyTorch
            {"conv.weight": (32, 16, 3, 3), "conv.bias": (7,)},
            {"conv/kernel": (3, 3, 16, 32), "conv/bias": (3,)},
            {"fc.weight": (32, 16), "fc.bias": (7,)},
            {"conv.weight": (32, 144)},  # a reshaped kernel
            {"bilinear.weight": (20, 30, 25), "bilinear.bias": (20,)},
            {"layers.mlp.kernel": (12, 64, 256)},  # stacked by nn.scan
            {"conv1d.weight": (64, 3, 80)},
            {"conv.weight": (64, 3, 3, 3), "conv2.weight": (64, 3, 3, 64)},  # the second speaks
        ],
    )
    def test_are_refused_by_name_with_what_to_do(
        self, tmp_path: Path, capsys: Any, shapes: Shapes
    ) -> None:
        path = save_npz(tmp_path / "x", arrays_of(shapes | {"fc9.weight": (5, 4)}))
        code, report = run_json(capsys, path)
        assert code == 1
        first = next(iter(shapes))
        assert first in report["missing"]
        assert [row["name"] for row in report["layers"] if not row["error"]] == ["fc9.weight"]
        (error, *_) = (row["error"] for row in report["layers"] if row["error"])
        assert "--lay" in error or "bias has 7" in error
        assert (report["product_upper"], report["partial"]) == (None, True)

    def test_names_of_another_framework_in_a_checkpoint_of_pytorch(self, tmp_path: Path) -> None:
        path = save_torch(tmp_path / "x", arrays_of({"a.kernel": (3, 3, 16, 32), "w": (2, 2)}))
        found = read_path(path)
        assert "layout oihw" in found.failed["a.kernel"]

    def test_metadata_decides(self, tmp_path: Path, capsys: Any) -> None:
        arrays = arrays_of({"c1.conv.weight": (32, 3, 3, 3), "c2.conv.weight": (64, 3, 3, 32)})
        path = save_safetensors(tmp_path / "x", arrays, {"format": "mlx"})
        code, report = run_json(capsys, path)
        assert code == 0
        assert [row["shape"] for row in report["layers"]] == [[32, 3, 3, 3], [64, 32, 3, 3]]
        np.testing.assert_array_equal(
            read_path(path).layers[1].weight, np.moveaxis(arrays["c2.conv.weight"], -1, 1)
        )
        with pytest.raises(ReadError, match=r"c2\.conv\.weight"):
            read_path(save_safetensors(tmp_path / "y", arrays))
        odd = arrays_of({"stem.conv.weight": (64, 3, 1, 21), "b.conv.weight": (64, 3, 3, 16)})
        (second, first) = read_path(save_safetensors(tmp_path / "z", odd, {"format": "pt"})).layers
        np.testing.assert_array_equal(second.weight, odd["b.conv.weight"])
        assert first.layout == "oihw"

    def test_what_nothing_confirms_is_said(self, tmp_path: Path, capsys: Any) -> None:
        path = save_npz(tmp_path / "x", arrays_of({"conv.weight": (8, 3, 3, 3)}))
        code, report = run_json(capsys, path)
        assert code == 0
        assert "nothing in the file confirms" in report["notes"][0]
        assert run_json(capsys, path, "--layout", "oihw")[1]["notes"] == []

    def test_layout_is_for_files_without_a_graph(self, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "x.onnx").write_bytes(b"")
        assert "--layout" in run(capsys, "report", tmp_path / "x.onnx", "--layout", "hwio")[2]
        assert "--layout" in run(capsys, "report", "--layout", "hwio")[2]


# Batch normalisation.


class TestBatchNorm:
    @pytest.mark.parametrize("kind", SAVE)
    def test_counts_in_the_product(self, tmp_path: Path, capsys: Any, kind: str) -> None:
        arrays = arrays_of(dense("fc", 4, 4) | batch_norm("bn", 4))
        arrays["fc.weight"] = np.eye(4, dtype=np.float32)
        arrays["bn.weight"] = np.array([0.1, -5, 1, 1], np.float32)
        arrays["bn.running_var"] = np.array([1, 1e-4, 1, 1], np.float32)
        code, report = run_json(capsys, SAVE[kind](tmp_path / "x", arrays))
        assert code == 0
        exact = 5 / math.sqrt(float(np.float32(1e-4)))
        (row,) = (row for row in report["layers"] if row["kind"] == "batch norm")
        assert exact <= row["upper"] <= exact * (1 + 1e-15)
        assert row["lower"] is row["gap"] is row["converged"] is None
        assert exact <= report["product_upper"] <= exact * 1.001

    def test_bounds_what_pytorch_runs(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch", minversion="2.10")
        generator = torch.Generator().manual_seed(SEED)
        for affine in (True, False):
            layer = torch.nn.BatchNorm1d(6, affine=affine, eps=1e-12).double().eval()
            layer.running_var = torch.rand(6, generator=generator, dtype=torch.float64) * 1e-3
            if affine:
                layer.weight.data = torch.randn(6, generator=generator, dtype=torch.float64)
            torch.save({"w": torch.eye(6), **layer.state_dict(prefix="bn.")}, tmp_path / "x.pt")
            matrix = torch.func.jacrev(layer)(torch.zeros(1, 6, dtype=torch.float64))
            exact = sigma(matrix.reshape(6, 6).detach().numpy())
            row = rows_of(tmp_path / "x.pt")["bn.weight" if affine else "bn.running_var"]
            assert exact <= row.upper <= exact * (1 + 1e-6)

    def test_bound_is_rounded_up_from_the_exact_value(self) -> None:
        rng = np.random.default_rng(SEED)
        for _ in range(300):
            size = int(rng.integers(1, 6))
            gamma = rng.standard_normal(size) * 10.0 ** rng.integers(-300, 300, size)
            var = rng.random(size) * 10.0 ** rng.integers(-300, 300, size)
            exact = max(Fraction(g) ** 2 / Fraction(v) for g, v in zip(gamma, var, strict=True))
            bound = batchnorm_bound(gamma, var)
            assert bound == math.inf or Fraction(bound) ** 2 >= exact
            below = math.nextafter(math.nextafter(bound, 0), 0)
            assert bound == math.inf or bound < 1e-320 or Fraction(below) ** 2 < exact

    def test_odd_values(self) -> None:
        zero, one = np.zeros(2), np.ones(2)
        assert batchnorm_bound(one, np.array([1.0, 0.0])) == math.inf
        assert batchnorm_bound(zero, zero) == 0.0
        assert batchnorm_bound(np.zeros(0), np.zeros(0)) == 0.0
        assert batchnorm_bound(np.array([1.0, math.inf]), one) == math.inf
        assert math.isnan(batchnorm_bound(np.array([1.0, math.nan]), one))
        assert batchnorm_bound(one.astype("f2"), one.astype("f4")) == 1.0
        for gamma, var in [
            *((one, np.array([1.0, -1.0])), (one, np.array([1.0, math.nan]))),
            *((one, np.array([1.0, math.inf])), (one, np.ones(3)), (one, np.ones(2, np.int8))),
            *((one.astype(np.longdouble), one), (one.astype(complex), one)),
        ]:
            with pytest.raises(ValueError, match=r"its (scale|variance)"):
                batchnorm_bound(gamma, var)

    def test_variance_that_is_none_is_refused_and_one_of_zero_said(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        arrays = arrays_of({"fc.weight": (2, 2)} | batch_norm("bn", 2))
        arrays["bn.running_var"][0] = -1
        code, report = run_json(capsys, save_npz(tmp_path / "x", arrays))
        assert (code, report["missing"]) == (1, ["bn.weight"])
        arrays["bn.running_var"][0] = 0
        path = save_npz(tmp_path / "x", arrays)
        code, report = run_json(capsys, path)
        assert (code, report["product_upper"]) == (0, "inf")
        assert "no bound for every eps: bn.weight" in run(capsys, "report", path)[1]

    def test_variance_without_a_mean_is_not_taken_for_one(self, tmp_path: Path) -> None:
        path = save_npz(tmp_path / "x", arrays_of({"w": (2, 2), "noise_var": (3,)}))
        assert read_path(path).obstacles == {"noise_var": "not understood"}


@pytest.mark.parametrize("kind", ["torch", "safetensors", "npz"])
def test_product_is_never_below_a_slope_of_the_model(
    tmp_path: Path, capsys: Any, kind: str
) -> None:
    """With strides, dilations, groups, transposed layers and batch norms of which the file says nothing."""
    torch = pytest.importorskip("torch", minversion="2.10")
    nn = torch.nn
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, padding=3, dilation=3, stride=3, groups=6), nn.BatchNorm2d(6)),
        *(nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2, output_padding=1), nn.ReLU()),
        *(nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(144, 5)),
    ).double()
    for norm_layer in (m for m in model if isinstance(m, nn.BatchNorm2d)):
        norm_layer.running_var = 1e-3 + 1e-2 * torch.rand(
            norm_layer.num_features, generator=generator, dtype=torch.float64
        )
    x = torch.randn(1, 2, 10, 10, generator=generator, dtype=torch.float64)
    model.eval()
    slope = sigma(torch.func.jacrev(model)(x).reshape(5, -1).detach().numpy())
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    code, report = run_json(capsys, SAVE[kind](tmp_path / "x", arrays))
    assert (code, len(report["layers"])) == (0, 8)
    assert report["product_upper"] >= slope
    layers = [row["upper"] for row in report["layers"] if row["kind"] != "batch norm"]
    assert math.prod(layers) < slope  # without batch norms it would not be a bound


# Rows with a star.


def random_use(rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, ...], dict[str, Any]]:
    """Return a kernel, an input size and a geometry that uses the array as PyTorch does."""
    axes = int(rng.integers(1, 3))
    groups = int(rng.choice([1, 1, 2, 3]))
    shape = (groups * int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    kernel = rng.standard_normal((*shape, *rng.integers(1, 4, axes)))
    stride, dilation = rng.integers(1, 4, axes), rng.integers(1, 4, axes)
    use: dict[str, Any] = {"groups": groups, "stride": tuple(map(int, stride))}
    use["dilation"] = tuple(map(int, dilation))
    size = tuple(int(n) for n in rng.integers(3, 9 if axes == 1 else 6, axes))
    if rng.random() < 0.3:
        multiple = tuple(int(s) * n for s, n in zip(stride, size, strict=True))
        return kernel, multiple, use | {"padding_mode": "circular"}
    reach = [int(d) * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
    use["padding"] = tuple(
        (int(rng.integers(0, r + 1)), int(rng.integers(0, r + 1))) for r in reach
    )
    if rng.random() < 0.4:
        more = tuple(int(rng.integers(0, s)) for s in stride)
        use |= {"transposed": True, "output_padding": more}
    else:
        size = tuple(max(n, r + 1) for n, r in zip(size, reach, strict=True))
    return kernel, size, use


def test_upper_bound_with_a_star_holds_for_every_use_of_the_array() -> None:
    rng = np.random.default_rng(SEED)
    closest = 0.0
    for _ in range(150):
        kernel, size, use = random_use(rng)
        row = bound_layer(Layer("w", kernel), input_shape=(4,))
        assert (row.assumed, row.lower, row.converged) == (True, None, None) or not row.assumed
        matrix = conv_matrix(kernel, size, **use)
        exact = sigma(matrix) if matrix.size else 0.0
        assert exact <= row.upper * (1 + 1e-12), use
        closest = max(closest, exact / row.upper)
    assert closest > 0.99


def test_lower_bound_of_the_unstrided_layer_is_not_that_of_the_strided_one(
    tmp_path: Path, capsys: Any
) -> None:
    kernel = np.ones((1, 1, 3))
    strided = bound_layer(Layer("w", kernel, {"stride": 3}))
    plain = bound_layer(Layer("w", kernel, {}))
    assert plain.lower is not None
    assert strided.upper < plain.lower  # root of 3 against 3
    path = write_npz(tmp_path / "x.npz", **{"conv.weight": kernel})
    _, report = run_json(capsys, path)
    (row,) = report["layers"]
    assert row["lower"] is row["gap"] is row["converged"] is None
    assert row["upper"] >= plain.lower
    out = run(capsys, "report", path)[1]
    (line,) = (line for line in out.splitlines() if " conv.weight " in line)
    assert line.split()[-5:-3] == ["-", line.split()[-4]]
    assert "for any stride, dilation and groups" in out
    assert ",conv1d,1 x 1 x 3,,3.0" in run(capsys, "report", "--csv", path)[1]


def test_size_asked_for_is_not_that_of_a_layer_without_geometry(tmp_path: Path) -> None:
    kernel = some(2, 2, 5, dtype="float64")
    every, small = (
        bound_layer(Layer("w", kernel)),
        bound_layer(Layer("w", kernel), input_shape=(3,)),
    )
    assert small.upper == every.upper
    known = bound_layer(Layer("w", kernel, {}), input_shape=(3,))
    assert known.upper < every.upper
    assert known.lower is not None


def test_one_tap_has_a_star_unless_groups_are_known() -> None:
    assert Layer("w", np.ones((4, 2, 1, 1))).assumed  # 2 groups: another norm
    assert not Layer("w", np.ones((1, 2, 1, 1))).assumed
    assert not Layer("w", np.ones((4, 1, 1, 1)), groups=4).assumed


# Arrays without names, and --include.


class TestGiven:
    def test_matrix_by_itself_has_a_row_and_no_product(self, tmp_path: Path, capsys: Any) -> None:
        np.save(tmp_path / "a.npy", some(3, 2))
        np.savez(tmp_path / "b.npz", some(3, 2), some(2, 2), some(2))
        np.savez(tmp_path / "c.npz", H=some(3, 2))
        for name, rows in {"a.npy": ["a"], "b.npz": ["arr_0", "arr_1"], "c.npz": ["H"]}.items():
            code, report = run_json(capsys, tmp_path / name)
            assert [row["name"] for row in report["layers"]] == rows
            assert code == 0
            assert report["product_upper"] is None
            assert report["layers"][0]["converged"] is True

    def test_array_of_more_axes_is_no_kernel_by_itself(self, tmp_path: Path, capsys: Any) -> None:
        np.save(tmp_path / "a.npy", some(8, 2, 3))
        assert_refused(capsys, tmp_path / "a.npy", "--layers")
        code, report = run_json(capsys, tmp_path / "a.npy", "--layout", "hwio")
        assert code == 0
        assert report["layers"][0]["shape"] == [3, 2, 8]

    def test_plain_names_of_layers_are_understood(self, tmp_path: Path, capsys: Any) -> None:
        shapes: Shapes = {
            "conv1": (16, 3, 3, 3),
            "conv1_b": (16,),
            "fc1": (10, 16),
            "fc1_bias": (10,),
            "W2": (5, 10),
            "b2": (5,),
            "mtcnn_dense5_1": (2, 5),
        }
        code, report = run_json(capsys, save_npz(tmp_path / "x", arrays_of(shapes)))
        names = [row["name"] for row in report["layers"]]
        assert names == ["conv1", "fc1", "W2", "mtcnn_dense5_1"]
        assert code == 0
        assert report["product_upper"] > 0


class TestInclude:
    def test_forces_a_row_but_never_a_product(self, tmp_path: Path, capsys: Any) -> None:
        arrays = arrays_of({"pos_embed": (1, 9, 8), "table": (9, 8), "fc.weight": (3, 8)})
        path = save_npz(tmp_path / "x", arrays)
        code, report = run_json(capsys, path)
        assert [row["name"] for row in report["layers"]] == ["fc.weight"]
        code, report = run_json(capsys, path, "--include", "table", "--include", "fc*")
        assert code == 0
        rows = {row["name"]: row for row in report["layers"]}
        assert set(rows) == {"fc.weight", "table"}
        assert rows["table"]["forced"]
        assert rows["table"]["lower"] <= sigma(arrays["table"]) <= rows["table"]["upper"]
        assert report["product_upper"] is None
        assert report["no_product"] == [{"reason": "not understood", "names": ["table"]}]
        assert "dense?" in run(capsys, "report", path, "--include", "table")[1]

    def test_exclude_takes_what_is_not_understood_out_of_the_way(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        path = save_npz(tmp_path / "x", arrays_of({"pos_embed": (9, 8), "fc.weight": (3, 8)}))
        _, report = run_json(capsys, path, "--exclude", "pos*")
        assert report["product_upper"] == report["layers"][0]["upper"]
        _, report = run_json(capsys, path, "--include", "fc*")
        assert report["product_upper"] == report["layers"][0]["upper"]

    def test_nothing_recognised_is_one_line(self, tmp_path: Path, capsys: Any) -> None:
        path = save_npz(tmp_path / "x", arrays_of({"pos_embed": (9, 8), "A_log": (3, 8)}))
        assert_refused(capsys, path, "'pos_embed', 'A_log'")


class TestTypes:
    def test_integers_under_the_name_of_a_weight_are_refused(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        arrays = {"fc.weight": np.ones((2, 2), np.int8), "out.weight": some(2, 2)}
        code, report = run_json(capsys, save_npz(tmp_path / "x", arrays))
        assert (code, report["missing"], report["product_upper"]) == (1, ["fc.weight"], None)

    def test_unknown_integers_and_masks_leave_no_product(self, tmp_path: Path) -> None:
        arrays = {
            "w": some(2, 2),
            "packed": np.ones((2, 2), np.int32),
            "mask": np.ones((2, 2), bool),
        }
        found = read_path(save_npz(tmp_path / "x", arrays))
        assert set(found.obstacles) == {"packed", "mask"}


class TestDescriptions:
    def test_description_makes_layers_of_any_names(self, tmp_path: Path, capsys: Any) -> None:
        path = save_npz(tmp_path / "x", arrays_of({"table": (9, 8), "odd": (4, 2, 3)}))
        (tmp_path / "x.json").write_text(
            json.dumps({"table": {"kind": "dense"}, "odd": {"groups": 2, "stride": 2}})
        )
        code, report = run_json(capsys, path, "--layers", tmp_path / "x.json")
        assert code == 0
        assert [row["kind"] for row in report["layers"]] == ["dense", "conv1d, 2 groups, stride 2"]
        assert report["product_upper"] > 0

    @pytest.mark.parametrize(
        "shapes", [{"conv/kernel": (8, 2, 3, 3)}, {"conv.weight": (3, 3, 16, 32)}]
    )
    def test_description_does_not_silence_a_shape(
        self, tmp_path: Path, capsys: Any, shapes: Shapes
    ) -> None:
        path = save_npz(tmp_path / "x", arrays_of(shapes))
        (tmp_path / "x.json").write_text(json.dumps({name: {"stride": 2} for name in shapes}))
        code, _, err = run(capsys, "report", path, "--layers", tmp_path / "x.json")
        assert code == 2
        assert "--layout" in err
        about = ("--layers", tmp_path / "x.json", "--layout", "oihw")
        code, report = run_json(capsys, path, *about, "--rtol", "0.2")
        assert code == 0
        assert tuple(report["layers"][0]["shape"]) in shapes.values()

    def test_shape_may_be_that_of_the_file(self) -> None:
        stored = Stored({"c/kernel": some(3, 3, 16, 32)})
        for shape in ((3, 3, 16, 32), (32, 16, 3, 3)):
            about = Description({"c/kernel": {"stride": 2, "shape": shape}})
            found = described(understood(stored, stated={"c/kernel"}), about, "it")
            assert found.layers[0].weight.shape == (32, 16, 3, 3)
        about = Description({"c/kernel": {"transposed": True}})
        with pytest.raises(ReadError, match="channels are last"):
            described(understood(stored, stated={"c/kernel"}), about, "it")

    def test_groups_of_a_depthwise_kernel_stay_known(self) -> None:
        stored = Stored({"c/depthwise_kernel": some(3, 3, 8, 1)})
        found = understood(stored, stated={"c/depthwise_kernel"})
        found = described(found, Description({"c/depthwise_kernel": {"stride": 2}}), "it")
        assert bound_layer(found.layers[0]).kind == "conv2d, depthwise, stride 2"

    def test_network_is_not_put_together_beside_what_is_not_understood(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        path = save_npz(tmp_path / "x", arrays_of(norm("ln", 3) | {"fc.weight": (3, 3)}))
        (tmp_path / "x.json").write_text('{"__network__": {"chain": ["fc.weight"]}}')
        _, report = run_json(capsys, path, "--layers", tmp_path / "x.json")
        assert report["network"]["upper"] is None
        assert "ln.weight" in report["network"]["reason"]
        choice = ("--exclude", "ln.*")
        _, report = run_json(capsys, path, "--layers", tmp_path / "x.json", *choice)
        assert report["network"]["upper"] > 0


@pytest.mark.parametrize(
    ("text", "path", "word"),
    [
        ("layer1.0.bn1.running_var", ("layer1", "0", "bn1"), "running_var"),
        ("params/Conv_0/kernel", ("conv_0",), "kernel"),
        ("batch_stats/BatchNorm_0/var", ("batchnorm_0",), "var"),
        ("conv2d/kernel:0", ("conv2d",), "kernel"),
        ("['params']['Dense_0']['kernel']", ("dense_0",), "kernel"),
        ("conv.kernel.value", ("conv",), "kernel"),
        ("mlp/~/linear_0/w", ("mlp", "linear_0"), "w"),
        ("fc1_weight", ("fc1",), "weight"),
        ("W1", ("1",), "w"),
        ("conv1", ("conv1",), "layer"),
        ("a.conv1", ("a",), "conv1"),
        ("attention.value.weight", ("attention", "value"), "weight"),
        ("fc.weight_v", ("fc",), "weight_v"),
        ("...", (), ""),
    ],
)
def test_names_are_taken_apart(text: str, path: tuple[str, ...], word: str) -> None:
    assert parsed(text) == Name(path, word)


@pytest.mark.parametrize("piece", ["1", "_1", "_", "lstm1_", "conv_1", "norm_", "w_", ".", "a"])
def test_long_names_take_no_time(piece: str) -> None:
    stored = Stored({piece * 3000 + end: np.ones((2, 2)) for end in ("", "x", ".weight", "lstm1x")})
    began = time.process_time()
    understood(stored)
    assert time.process_time() - began < 2.0


def test_only_additions_and_counters_are_harmless() -> None:
    for name in ("fc.bias", "b1", "bn.beta:0", "bn.running_mean", "x.num_batches_tracked"):
        assert harmless(name, 1)
    for name in ("fc.weight", "scale", "logit_scale", "bn.running_var", "mask", "D"):
        assert not harmless(name, 1)
    assert not harmless("attn.bias", 4)


def test_contents_list_every_array_once() -> None:
    shapes = {name: shape for model in PYTORCH.values() for name, shape in model[0].items()}
    found: Contents = understood(Stored(arrays_of(shapes)))
    layers = {layer.name for layer in found.layers}
    others = (set(found.skipped), set(found.failed), set(found.obstacles) - layers)
    assert layers.union(*others) == set(shapes)
    assert len(layers) + sum(map(len, others)) == len(shapes)


# What looks like a part of a chain, and is none.


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"LayerNorm_0/bias": (3,)}, "shift"),  # of Flax, with use_scale=False
        ({"GroupNorm_0/bias": (3,)}, "shift"),
        ({"block.beta": (3,)}, "beta"),  # scales a branch
        ({"prior.mean": (3,), "prior.var": (3,)}, "not understood"),  # of a distribution
        ({"layers.0.step": ()}, "counter"),  # of a descent
        ({"block.1.fc1.weight": (2, 8, 1, 1), "block.1.fc2.weight": (8, 2, 1, 1)}, "gate"),
        ({"_blocks.0._se_reduce.weight": (2, 8, 1, 1)}, "gate"),
        ({"mlp.gate.weight": (8, 4)}, "gate"),
        ({"inception3a.branch1.conv.weight": (8, 4, 1, 1)}, "branch"),
        ({"Mixed_5b.branch5x5_1.conv.weight": (8, 4, 1, 1)}, "branch"),
        ({"features.denseblock1.denselayer1.conv1.weight": (8, 4, 1, 1)}, "branch"),
        ({"features.3.expand1x1.weight": (8, 4, 1, 1)}, "branch"),
        ({"AuxLogits.conv0.weight": (8, 4, 1, 1)}, "branch"),
        ({"ResidualBlock_0/Conv_0/kernel": (3, 3, 4, 4)}, "shortcut"),
        ({"conv2_block1_0_conv/kernel": (1, 1, 4, 16)}, "shortcut"),  # of Keras
        ({"stages.0.blocks.0.downsample.conv.weight": (8, 4, 1, 1)}, "shortcut"),
        ({"stages.0.rbr_dense.conv.weight": (8, 4, 3, 3)}, "shortcut"),
        ({"SimpleCell_0/i/kernel": (4, 4)}, "recurrent"),
        ({"i2h.weight": (4, 4)}, "recurrent"),
        ({"q_linear.weight": (4, 4)}, "attention"),
        ({"embed_user_mlp.weight": (9, 4)}, "embedding"),
        ({"token_embedding_table.weight": (9, 4)}, "embedding"),
        ({"target_net.fc.weight": (4, 4)}, "second network"),
        ({"critic.fc.weight": (4, 4)}, "second network"),
    ],
)
def test_what_is_no_part_of_a_chain_leaves_no_product(
    tmp_path: Path, capsys: Any, shapes: Shapes, reason: str
) -> None:
    path = save_npz(tmp_path / "x", arrays_of({"fc9.weight": (4, 4)} | shapes))
    code, report = run_json(capsys, path, "--rtol", "0.2")
    assert (code, report["product_upper"]) == (0, None)
    assert any(reason in entry["reason"] for entry in report["no_product"])


def test_what_only_looks_like_it_is_one(tmp_path: Path, capsys: Any) -> None:
    shapes: Shapes = {
        "mlp.fc1.weight": (8, 2, 1, 1),  # a perceptron widens
        "mlp.fc2.weight": (2, 8, 1, 1),
        "bn.weight": (2,),
        "bn.bias": (2,),
        "bn.running_mean": (2,),
        "bn.running_var": (2,),
    }
    path = save_npz(tmp_path / "x", {"step": np.array(5.0)} | arrays_of(shapes))
    _, report = run_json(capsys, path, "--rtol", "0.2")
    assert report["product_upper"] > 0
    path = save_npz(tmp_path / "y", arrays_of({"critic.fc.weight": (4, 4)}))
    assert run_json(capsys, path)[1]["product_upper"] > 0  # the only network


def test_batch_norms_that_differ_by_case_alone_are_not_mixed_up(tmp_path: Path) -> None:
    arrays = arrays_of(batch_norm("B", 3) | batch_norm("b", 3) | {"fc.weight": (3, 3)})
    found = read_path(save_npz(tmp_path / "x", arrays))
    assert [layer.name for layer in found.layers] == ["fc.weight"]
    assert {"B.weight", "b.weight", "B.running_var", "b.running_var"} <= set(found.obstacles)


def test_a_bilinear_layer_is_no_kernel(tmp_path: Path) -> None:
    """Its shape may be one: (64, 64, 3) is a convolution of three taps elsewhere."""
    torch = pytest.importorskip("torch", minversion="2.10")
    model = torch.nn.ModuleDict({"bilinear": torch.nn.Bilinear(64, 3, 64)})
    model["fc"] = torch.nn.Linear(64, 2)
    torch.save(model.state_dict(), tmp_path / "x.pt")
    found = read_path(tmp_path / "x.pt")
    assert "of three axes" in found.failed["bilinear.weight"]
    assert [layer.name for layer in found.layers] == ["fc.weight"]


def test_a_batch_norm_has_no_geometry(tmp_path: Path) -> None:
    stored = Stored(arrays_of(batch_norm("bn", 3)))
    with pytest.raises(ReadError, match="does not fit"):
        described(understood(stored), Description({"bn.weight": {"groups": 3}}), "it")


def test_circular_padding_that_repeats_outputs_needs_a_size(tmp_path: Path, capsys: Any) -> None:
    """One sample on either side of a kernel of two: the first output comes twice, and no circle has that norm."""
    torch = pytest.importorskip("torch", minversion="2.10")
    layer = torch.nn.Conv2d(1, 1, 2, padding=1, padding_mode="circular", bias=False).double()
    layer.weight.data = torch.tensor([[[[0.6, 0.3], [0.1, 0.0]]]], dtype=torch.float64)
    jacobian = torch.func.jacrev(layer)(torch.zeros(1, 1, 6, 6, dtype=torch.float64))
    exact = sigma(jacobian.reshape(-1, 36).detach().numpy())
    torch.save(layer.state_dict(), tmp_path / "x.pt")
    about = {"padding": 1, "padding_mode": "circular", "input_shape": [6, 6]}
    (tmp_path / "x.json").write_text(json.dumps({"weight": about}))
    choice = ("--layers", tmp_path / "x.json")
    code, report = run_json(capsys, tmp_path / "x.pt", *choice)
    assert (code, report["product_upper"]) == (1, None)
    assert "input_shape must be given" in report["layers"][0]["error"]
    code, report = run_json(capsys, tmp_path / "x.pt", *choice, "--input-shape", "file")
    row = report["layers"][0]
    assert row["lower"] <= exact <= row["upper"]
    assert exact > 1.01  # as it would be on a circle: at most the sum of the entries


@pytest.mark.parametrize("inner", [["W"], [{"weight": "W"}], "cycle"])
def test_tensors_within_what_is_no_dict_of_tensors_are_not_passed_over(
    tmp_path: Path, capsys: Any, inner: Any
) -> None:
    torch = pytest.importorskip("torch", minversion="2.10")
    weight = torch.eye(3)

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(entry) for key, entry in value.items()}
        return [filled(entry) for entry in value] if isinstance(value, list) else weight

    value: Any = filled(inner)
    if inner == "cycle":
        value = [[], weight]
        value[0].append(value)
    torch.save({"fc.weight": weight, "more": value, "optimizer": [weight]}, tmp_path / "x.pt")
    code, report = run_json(capsys, tmp_path / "x.pt")
    assert (code, report["missing"], report["product_upper"]) == (1, ["more"], None)


def test_a_number_and_its_digits_are_two_names(tmp_path: Path, capsys: Any) -> None:
    torch = pytest.importorskip("torch", minversion="2.10")
    torch.save({1: torch.eye(3), "1": 9 * torch.eye(3)}, tmp_path / "x.pt")
    assert_refused(capsys, tmp_path / "x.pt", "two entries have the same name")
    torch.save({1: {"a.weight": torch.eye(3)}, "1": {"a.weight": torch.eye(3)}}, tmp_path / "y.pt")
    assert_refused(capsys, tmp_path / "y.pt", "two entries have the same name")
