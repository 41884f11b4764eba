"""Weights stored in parts: what libraries save of a layer, and what the report makes of it."""

import importlib
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm.report import bound_layer
from gramnorm.report.files.contents import Contents, Stored
from gramnorm.report.files.obstacles import NOT_UNDERSTOOD
from gramnorm.report.files.parts import folded
from gramnorm.report.files.readers import read_path
from gramnorm.report.files.roles import understood
from tests.harness.oracles import conv_matrix, sigma
from tests.harness.reports import run, run_json, some, write_npz

pytestmark = pytest.mark.extra

SPECTRAL = "spectral norm in evaluation"


def hooked(torch: Any, module: Any) -> Any:
    """Return a module after a step of training and one of evaluation, which renew what hooks compute."""
    for _ in range(2):
        for hook in module._forward_pre_hooks.values():
            hook(module, None)
        module.eval()
    return module


def old(torch: Any, function: str, module: Any, **options: Any) -> Any:
    with warnings.catch_warnings(action="ignore"):  # they are deprecated, and still what files hold
        return hooked(torch, getattr(torch.nn.utils, function)(module, **options))


def new(torch: Any, function: str, module: Any, **options: Any) -> Any:
    return getattr(torch.nn.utils.parametrizations, function)(module, **options)


def pruned(torch: Any, module: Any) -> Any:
    prune = importlib.import_module("torch.nn.utils.prune")
    prune.random_unstructured(module, "weight", 0.4)
    return module


Builder = Callable[[Any], Any]
FOLDED: dict[str, tuple[Builder, str]] = {
    "length of rows": (lambda t: old(t, "weight_norm", t.nn.Linear(6, 4)), "weight norm"),
    "length in all": (
        lambda t: old(t, "weight_norm", t.nn.Conv2d(3, 5, 2), dim=None),
        "weight norm",
    ),
    "length of columns": (
        lambda t: old(t, "weight_norm", t.nn.Conv1d(4, 6, 3), dim=1),
        "weight norm",
    ),
    "length of taps": (lambda t: new(t, "weight_norm", t.nn.Conv1d(4, 6, 3), dim=2), "weight norm"),
    "parametrised length": (lambda t: new(t, "weight_norm", t.nn.Linear(6, 4)), "weight norm"),
    "one output": (lambda t: new(t, "weight_norm", t.nn.Linear(6, 1)), "weight norm"),
    "one input": (lambda t: old(t, "weight_norm", t.nn.Linear(1, 5)), "weight norm"),
    "recurrent": (
        lambda t: old(t, "weight_norm", t.nn.LSTM(3, 2), name="weight_hh_l0"),
        "weight norm",
    ),
    "old vectors": (lambda t: old(t, "spectral_norm", t.nn.Linear(6, 4)), SPECTRAL),
    "old vectors of a kernel": (
        lambda t: old(t, "spectral_norm", t.nn.ConvTranspose2d(3, 5, 2)),
        SPECTRAL,
    ),
    "vectors": (lambda t: new(t, "spectral_norm", t.nn.Linear(6, 4)), SPECTRAL),
    "vectors of a kernel": (lambda t: new(t, "spectral_norm", t.nn.Conv2d(3, 5, 3)), SPECTRAL),
    "vectors of a square kernel": (
        lambda t: new(t, "spectral_norm", t.nn.Conv2d(17, 17, 2)),
        SPECTRAL,
    ),
    "vectors of a square transposed one": (
        lambda t: new(t, "spectral_norm", t.nn.ConvTranspose2d(17, 17, 2)),
        SPECTRAL,
    ),
    "mask": (lambda t: pruned(t, t.nn.Conv2d(3, 5, 2)), "pruned"),
    "length, then vectors": (
        lambda t: new(t, "spectral_norm", new(t, "weight_norm", t.nn.Linear(6, 4))),
        f"weight norm, {SPECTRAL}",
    ),
}


def save(path: Path, state: dict[str, Any], kind: str) -> Path:
    """Write a state dict as one of the kinds of file."""
    torch = pytest.importorskip("torch", minversion="2.10")
    path = path / f"x.{kind}"
    if kind == "pt":
        torch.save(state, path)
    elif kind == "npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})
    else:
        library = pytest.importorskip("safetensors.torch")
        library.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


class TestAgainstTheLibrary:
    @pytest.fixture(autouse=True)
    def torch(self) -> Any:
        torch = pytest.importorskip("torch", minversion="2.10")
        torch.manual_seed(3)
        return torch

    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [
            *(("pt", "float64"), ("pt", "float32"), ("pt", "bfloat16"), ("pt", "float16")),
            *(("safetensors", "bfloat16"), ("safetensors", "float32"), ("npz", "float64")),
        ],
    )
    @pytest.mark.parametrize("case", FOLDED)
    def test_weight_is_the_one_the_library_computes(
        self, tmp_path: Path, torch: Any, case: str, dtype: str, kind: str
    ) -> None:
        make, word = FOLDED[case]
        module = make(torch).to(getattr(torch, dtype))
        called = "conv1" if "Conv" in str(module) else "fc1"
        path = save(tmp_path, {f"{called}.{n}": t for n, t in module.state_dict().items()}, kind)
        name = "weight_hh_l0" if case == "recurrent" else "weight"
        exact = hooked(torch, module.double().eval())
        expected = getattr(exact, name).detach().numpy()
        found = read_path(path)
        layers = [*found.layers, *found.spare]  # norms of recurrent layers make no product
        assert not found.failed
        (layer,) = (layer for layer in layers if "weight_ih" not in layer.name)
        assert layer.name == f"{called}.{name}"
        np.testing.assert_allclose(layer.weight, expected, rtol=1e-11, atol=1e-13)
        assert layer.word == word
        assert layer.error <= 1e-11

        row = bound_layer(layer if expected.ndim == 2 else replace(layer, geometry={}))
        assert row.kind.endswith(f", {word}")
        assert row.converged or layer.weight.dtype == np.float16
        if expected.ndim == 2:
            assert row.lower <= sigma(expected) * (1 + 1e-11)
            assert sigma(expected) <= row.upper * (1 + 1e-11) <= sigma(expected) * (1 + 1e-5)

    def test_kernels_have_the_norm_of_the_operator(self, tmp_path: Path, torch: Any) -> None:
        module = old(torch, "weight_norm", torch.nn.Conv2d(2, 3, 3, padding=1)).double()
        torch.nn.init.uniform_(module.weight_g, 1, 3)
        path = save(tmp_path, module.state_dict(), "pt")
        (layer,) = read_path(path).layers
        layer = replace(layer, geometry={"padding": (1, 1)})
        weight = hooked(torch, module).weight.detach().numpy()
        exact = sigma(conv_matrix(weight, (5, 4), padding=1))
        row = bound_layer(layer, input_shape=(5, 4))
        assert row.lower <= exact * (1 + 1e-12)
        assert exact <= row.upper * (1 + 1e-12)

    @pytest.mark.parametrize("kind", ["pt", "safetensors", "npz"])
    def test_product_is_that_of_the_true_norms(
        self, tmp_path: Path, torch: Any, capsys: Any, kind: str
    ) -> None:
        """The parts as layers gave products far below the norms: each part for itself is small or thin."""
        model = torch.nn.Sequential(
            old(torch, "weight_norm", torch.nn.Linear(40, 30)),
            new(torch, "weight_norm", torch.nn.Linear(30, 20)),
            old(torch, "spectral_norm", torch.nn.Linear(20, 15)),
            new(torch, "spectral_norm", torch.nn.Linear(15, 10)),
            pruned(torch, torch.nn.Linear(10, 9)),
        )
        with torch.no_grad():
            model[0].weight_v *= 1e-3  # the direction counts, not its length
            model[1].parametrizations.weight.original1.mul_(1e-3)
            model[2].weight_orig *= 1e-3
            model[3].parametrizations.weight.original.mul_(1e-3)
        path = save(tmp_path, model.state_dict(), kind)
        weights = [hooked(torch, layer.double().eval()).weight.detach().numpy() for layer in model]
        truth = math.prod(map(sigma, weights))
        code, report = run_json(capsys, path)
        assert code == 0
        assert truth * (1 - 1e-10) <= report["product_upper"] <= truth * (1 + 1e-3)
        names = sorted(layer["name"] for layer in report["layers"])
        assert names == [f"{i}.weight" for i in range(5)]
        for text in ("--csv", "--markdown"):
            assert "weight norm" in run(capsys, "report", text, path)[1]
        assert SPECTRAL in run(capsys, "report", path)[1]

    def test_own_and_unknown_parametrizations_are_refused(
        self, tmp_path: Path, torch: Any, capsys: Any
    ) -> None:
        from gramnorm.torch import SpectralBound  # noqa: PLC0415

        class Scaled(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.factor = torch.nn.Parameter(torch.ones(()))

            def forward(self, weight: Any) -> Any:
                return weight * self.factor

        register = torch.nn.utils.parametrize.register_parametrization
        model = torch.nn.ModuleDict({"plain": torch.nn.Linear(4, 3)})
        for name in ("own", "scaled", "orthogonal", "second", "first", "sparse"):
            model[name] = torch.nn.Linear(4, 3)
        register(model["own"], "weight", SpectralBound(model["own"], method="divide"))
        register(model["scaled"], "weight", Scaled())
        new(torch, "orthogonal", model["orthogonal"])
        register(new(torch, "spectral_norm", model["second"]), "weight", Scaled())
        register(model["first"], "weight", torch.nn.Identity())
        new(torch, "spectral_norm", model["first"])
        sparsity = importlib.import_module("torch.ao.pruning").FakeSparsity(torch.ones(3, 4))
        register(model["sparse"], "weight", sparsity)  # its mask is not saved
        code, report = run_json(capsys, save(tmp_path, model.state_dict(), "pt"))
        errors = {row["name"]: row["error"] for row in report["layers"] if row["error"]}
        assert code == 1
        assert report["partial"]
        assert set(errors) == {f"{name}.weight" for name in model if name != "plain"}
        assert all("remove_parametrizations" in error for error in errors.values())
        assert "SpectralBound" in errors["own.weight"]
        assert "factor" in errors["scaled.weight"]
        assert "orthogonal" in errors["orthogonal.weight"]

    def test_dynamically_quantised_layers_are_named(self, tmp_path: Path, torch: Any) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Conv2d(3, 2, 3))
        with warnings.catch_warnings(action="ignore"):
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
        torch.save(model.state_dict(), tmp_path / "x.pt")
        found = read_path(tmp_path / "x.pt")
        assert [layer.name for layer in found.layers] == ["1.weight"]
        assert set(found.failed) == {"0.weight"}


def contents(tmp_path: Path, **arrays: Any) -> Contents:
    """Read back arrays, and a plain layer beside them."""
    arrays = {"plain.weight": some(3, 4)} | arrays
    return read_path(write_npz(tmp_path / "x.npz", **arrays))


def refused(tmp_path: Path, capsys: Any, **arrays: Any) -> dict[str, str]:
    """Return the layers without bounds by name, once exactly the plain layer has one."""
    path = write_npz(tmp_path / "x.npz", **{"plain.weight": some(3, 4)}, **arrays)
    code, report = run_json(capsys, path)
    errors = {row["name"]: row["error"] for row in report["layers"] if row["error"] is not None}
    bounded = [row["name"] for row in report["layers"] if row["error"] is None]
    assert code == (1 if errors else 0)
    assert bounded == ["plain.weight"]
    assert report["partial"] == bool(errors)
    listed = {*errors, *bounded, *(entry["name"] for entry in report["skipped"])}
    assert listed >= {"plain.weight", *arrays}  # nothing is lost
    return errors


INCOMPLETE: dict[str, dict[str, Any]] = {
    "lengths alone": {"a.weight_g": some(4, 1)},
    "directions alone": {"a.weight_v": some(4, 3)},
    "another number of lengths": {"a.weight_g": some(3, 1), "a.weight_v": some(4, 3)},
    "weight and parts": {
        "a.weight": some(4, 3),
        "a.weight_g": some(4, 1),
        "a.weight_v": some(4, 3),
    },
    "zero directions": {"a.weight_g": some(4, 1), "a.weight_v": np.zeros((4, 3))},
    "NaN": {"a.weight_g": some(4, 1) * np.nan, "a.weight_v": some(4, 3)},
    "one axis": {"a.weight_g": some(4), "a.weight_v": some(4)},
    "text": {"a.weight_g": np.array(["a"] * 4).reshape(4, 1), "a.weight_v": some(4, 3)},
    "no right vector": {"a.weight_orig": some(4, 3), "a.weight_u": some(4)},
    "vectors alone": {"a.weight_u": some(4), "a.weight_v": some(3)},
    "vectors of another layer": {
        "a.weight_orig": some(4, 3),
        "a.weight_u": some(5),
        "a.weight_v": some(3),
    },
    "vectors of a square": {
        "a.weight_orig": some(4, 4),
        "a.weight_u": some(4),
        "a.weight_v": some(4)[::-1],
    },
    "a mask alone": {"a.weight_mask": np.ones((4, 3))},
    "an original alone": {"a.weight_orig": some(4, 3)},
    "a mask of another shape": {"a.weight_orig": some(4, 3), "a.weight_mask": np.ones((3, 4))},
    "a mask beside": {"a.weight": some(4, 3), "a.mask": np.tri(4, 3)},
    "a mask of channels": {"a.weight": some(4, 3, 3), "a.weight_mask": np.eye(4, 1)[:, :, None]},
    "all kinds at once": {
        "a.weight_g": some(4, 1),
        "a.weight_v": some(4, 3),
        "a.weight_orig": some(4, 3),
        "a.weight_u": some(4),
    },
    "a mask of a direction": {
        "a.weight_g": some(4, 1),
        "a.weight_v_orig": some(4, 3),
        "a.weight_v_mask": np.ones((4, 3)),
    },
    "a variational layer": {"a.weight_mu": some(4, 3), "a.weight_sigma": some(4, 3)},
    "another spectral norm": {
        "a.weight_bar": some(4, 3),
        "a.weight_u": some(4),
        "a.weight_v": some(3),
    },
    "vectors of a spectral norm at each use": {
        "a.weight": some(4, 3),
        "a.u0": some(1, 4),
        "a.sv0": some(1),
    },
    "a gain of standardised weights": {"a.weight": some(4, 3, 2, 2), "a.gain": some(4, 1, 1, 1)},
    "no original": {
        "a.parametrizations.weight.0._u": some(4),
        "a.parametrizations.weight.0._v": some(3),
    },
    "half of an original": {"a.parametrizations.weight.original0": some(4, 1)},
    "a low rank": {
        "a.parametrizations.weight.original0": some(4, 2),
        "a.parametrizations.weight.original1": some(2, 3),
    },
    "a gap in the chain": {
        "a.parametrizations.weight.original": some(4, 3),
        "a.parametrizations.weight.1._u": some(4),
        "a.parametrizations.weight.1._v": some(3),
    },
    "parametrised and plain": {
        "a.weight": some(4, 3),
        "a.parametrizations.weight.original0": some(4, 1),
        "a.parametrizations.weight.original1": some(4, 3),
    },
    "parts of two kinds": {
        "a.parametrizations.weight.original0": some(4, 1),
        "a.parametrizations.weight.original1": some(4, 3),
        "a.weight_g": some(4, 1),
        "a.weight_v": some(4, 3),
    },
    "a mask beside parts": {
        "a.weight_g": some(4, 1),
        "a.weight_v": some(4, 3),
        "a.mask": np.tri(4, 3),
    },
    "an adapter beside parts": {
        "a.parametrizations.weight.original0": some(4, 1),
        "a.parametrizations.weight.original1": some(4, 3),
        "a.lora_A": some(2, 3),
        "a.lora_B": some(4, 2),
    },
    "a scale beside parts": {
        "a.parametrizations.weight.original0": some(4, 1),
        "a.parametrizations.weight.original1": some(4, 3),
        "a.weight_scale": some(4),
    },
    "a scale beside hooked parts": {
        "a.weight_g": some(4, 1),
        "a.weight_v": some(4, 3),
        "a.weight_scale": some(4),
    },
    "nested parametrizations": {
        "a.parametrizations.weight.original": some(4, 3),
        "a.parametrizations.weight.0.parametrizations.base.original": some(3, 3),
    },
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_parts_that_define_no_weight_are_refused_by_its_name(
    tmp_path: Path, capsys: Any, case: str
) -> None:
    errors = refused(tmp_path, capsys, **INCOMPLETE[case])
    assert list(errors) == ["a.weight"]
    assert "save" in errors["a.weight"]


def integers(*shape: int) -> np.ndarray:
    return (50 * some(*shape)).astype("i1")


QUANTISED: dict[str, dict[str, Any]] = {
    "scale": {"a.weight": integers(4, 3), "a.weight_scale": some(4)},
    "scales of blocks": {"a.weight": some(4, 3), "a.weight_scale_inv": some(2, 2)},
    "two scales": {
        "a.weight": integers(4, 3),
        "a.weight_scale": some(4, 2),
        "a.weight_scale_2": some(),
        "a.input_scale": some(),
    },
    "packed by four": {
        "a.qweight": integers(4, 3),
        "a.qzeros": integers(2, 2),
        "a.scales": some(2, 3),
        "a.g_idx": np.arange(4),
    },
    "packed": {
        "a.weight_packed": integers(4, 3),
        "a.weight_scale": some(4, 2),
        "a.weight_shape": np.array([4, 6]),
        "a.weight_zero_point": integers(4, 1),
    },
    "rows and columns apart": {"a.weight": integers(4, 3), "a.SCB": some(4)},
    "a table of values": {
        "a.weight": integers(6, 1),
        "a.weight.absmax": some(2),
        "a.weight.quant_map": some(16),
        "a.weight.quant_state.bitsandbytes__nf4": integers(9),
    },
    "scales and biases": {
        "a.weight": integers(4, 3),
        "a.scales": some(4, 2),
        "a.biases": some(4, 2),
    },
    "fake": {"a.weight": some(4, 3), "a.weight_fake_quant.scale": some(4)},
    "a scale of the input": {"a.weight": some(4, 3), "a.input_scale": some()},
    "of a tensor": {"a.weight._data": integers(4, 3), "a.weight._scale": some(4, 1)},
    "scaled floats": {"a.weight": some(4, 3), "a.scale_weight": some(), "a.scale_input": some()},
    "scaling factors": {
        "a.weight": integers(4, 3),
        "a.weights_scaling_factor": some(4),
        "a.activation_scaling_factor": some(1),
    },
    "blocks": {"a.weight_blocks": integers(4, 3, 2), "a.weight_scales": integers(4, 3)},
}


@pytest.mark.parametrize("case", QUANTISED)
def test_quantised_weights_are_refused_by_name(tmp_path: Path, capsys: Any, case: str) -> None:
    errors = refused(tmp_path, capsys, **QUANTISED[case])
    assert list(errors) == ["a.weight"]
    assert "quantised" in errors["a.weight"]


def test_quantised_experts_and_flax_kernels_are_refused(tmp_path: Path, capsys: Any) -> None:
    experts = {"e.up_blocks": integers(4, 3, 2), "e.up_scales": integers(4, 3)}
    assert list(refused(tmp_path, capsys, **experts)) == ["e.up"]
    assert "e.down" in refused(tmp_path, capsys, **{"e.down": some(4, 3), "e.down_scale": some(4)})
    path = write_npz(
        tmp_path / "x.npz",
        **{"params/A/kernel": some(3, 4), "stats/Norm_0/A/kernel/u": some(1, 4)},
        **{"stats/Norm_0/A/kernel/sigma": some(), "params/B/kernel": some(3, 4)},
    )
    found = read_path(path)
    assert list(found.failed) == ["params/A/kernel"]
    assert "params/B/kernel" not in found.failed


ADAPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("a.weight", {"a.lora_A.weight": some(2, 3), "a.lora_B.weight": some(4, 2)}),
    "named": (
        "a.base_layer.weight",
        {"a.lora_A.default.weight": some(2, 3), "a.lora_B.default.weight": some(4, 2)},
    ),
    "parameters": ("a.weight", {"a.lora_A": some(2, 3), "a.lora_B": some(4, 2)}),
    "up and down": (
        "a.weight",
        {"a.lora_down.weight": some(2, 3), "a.lora_up.weight": some(4, 2), "a.alpha": some()},
    ),
    "attached": ("a.weight", {"a_lora.down.weight": some(2, 3), "a_lora.up.weight": some(4, 2)}),
    "Hadamard": ("a.weight", {"a.hada_w1_a": some(4, 2), "a.hada_w1_b": some(2, 3)}),
    "Kronecker": ("a.weight", {"a.lokr_w1": some(2, 3), "a.lokr_w2": some(2, 1)}),
}


@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize("case", ADAPTED)
def test_layers_with_adapters_are_refused(
    tmp_path: Path, capsys: Any, case: str, has_base: bool
) -> None:
    base, parts = ADAPTED[case]
    arrays = {base: some(4, 3)} | parts if has_base else parts
    (errors,) = refused(tmp_path, capsys, **arrays).items()
    assert errors[0] == (base if has_base else "a.weight")
    assert "adapter" in errors[1]
    assert ("is not in the file" in errors[1]) != has_base


def test_a_file_of_adapters_alone_is_one_line(tmp_path: Path, capsys: Any) -> None:
    path = write_npz(tmp_path / "x.npz", **ADAPTED["plain"][1], **{"b.lora_A.weight": some(2, 3)})
    code, out, err = run(capsys, "report", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'a.weight'" in err
    assert "'b.weight'" in err


NETWORK = {"net.a.weight": some(4, 3), "net.a.bias": some(4), "net.b.c.weight": some(2, 4)}


class TestCopies:
    @pytest.mark.parametrize(
        ("prefix", "others"),
        [
            ("ema.", "net."),
            ("ema_model.module.", "net."),
            ("model_ema.", "net."),
            ("module_ema.", ""),
            ("trainer.ema_model.", "trainer.online."),
        ],
    )
    def test_averages_are_left_out_of_the_product(
        self, tmp_path: Path, capsys: Any, prefix: str, others: str
    ) -> None:
        plain = {others + name.removeprefix("net."): a for name, a in NETWORK.items()}
        copies = {prefix + name.removeprefix("net."): a / 8 for name, a in NETWORK.items()}
        if prefix == "model_ema.":  # one library stores names without dots
            copies = {
                "model_ema." + n.removeprefix("model_ema.").replace(".", ""): a
                for n, a in copies.items()
            }
        _, alone = run_json(capsys, write_npz(tmp_path / "y.npz", **plain))
        for arrays in (plain | copies, copies | plain):
            code, report = run_json(capsys, write_npz(tmp_path / "x.npz", **arrays))
            assert code == 0
            assert report["product_upper"] == alone["product_upper"]
            assert "moving average" in report["notes"][0]
            assert set(copies) <= {entry["name"] for entry in report["skipped"]}

    def test_lists_of_averages_go_by_their_shapes(self, tmp_path: Path) -> None:
        copies = {f"shadow_params.{i}": a for i, a in enumerate(NETWORK.values())}
        found = read_path(write_npz(tmp_path / "x.npz", **NETWORK, **copies))
        assert [layer.name for layer in found.layers] == ["net.a.weight", "net.b.c.weight"]
        assert not found.failed

    def test_averages_of_parts_are_left_out_with_them(self, tmp_path: Path) -> None:
        parts = {"net.a.weight_g": some(4, 1), "net.a.weight_v": some(4, 3)}
        copies = {f"ema.{name}": a for name, a in parts.items()}
        (layer,) = read_path(write_npz(tmp_path / "x.npz", **parts, **copies)).layers
        assert (layer.name, layer.word) == ("net.a.weight", "weight norm")

    def test_averages_without_a_counterpart_are_refused(self, tmp_path: Path) -> None:
        for copy in ({"ema.d.weight": some(4, 3)}, {"ema.a.weight": some(3, 3)}):
            found = read_path(write_npz(tmp_path / "x.npz", **NETWORK, **copy))
            assert list(found.failed) == list(copy)

    def test_averages_alone_are_the_network(self, tmp_path: Path) -> None:
        copies = {f"ema_model.{name}": a for name, a in NETWORK.items()}
        found = read_path(write_npz(tmp_path / "x.npz", **copies))
        assert [layer.name for layer in found.layers] == [
            "ema_model.net.a.weight",
            "ema_model.net.b.c.weight",
        ]

    def test_layers_that_are_called_so_stay(self) -> None:
        names = [
            "net.6.ema.conv.weight",
            "schema.weight",
            "emasculate.weight",
            "net.ema_gate.weight",
        ]
        found = folded(Stored({name: some(4, 3) for name in names}))
        assert list(found.arrays) == names

    @pytest.mark.parametrize(
        "name",
        [
            *("optimizer.state.0.exp_avg", "a.weight.exp_avg_sq", "state.3.momentum_buffer"),
            *("opt_state/0/mu/a/kernel", "exp_avg.a.weight"),
        ],
    )
    def test_moments_are_left_out(self, tmp_path: Path, name: str) -> None:
        found = contents(tmp_path, **{name: some(4, 3)})
        assert [layer.name for layer in found.layers] == ["plain.weight"]
        assert "optimizer" in found.skipped[name]


class TestPlainLayersStay:
    """Names that only look like those of parts: the arrays are what they were."""

    @pytest.mark.parametrize(
        "arrays",
        [
            {"a.w_g.weight": some(4, 3), "a.w_v.weight": some(4, 3)},
            {"a.w_g": some(4, 4), "a.w_v": some(4, 4)},
            {"a.pos_bias_u": some(2, 3), "a.pos_bias_v": some(2, 3)},
            {"a.weight": some(4, 3), "a.mask": np.ones((4, 3))},
            {"a.weight": some(4, 3), "a.mask": np.tri(7)},
            {"a.weight": some(4, 3), "a.scale": some(4), "a.zero_points": some(4)},
            {"a.weight": some(4, 3), "logit_scale": some(), "a.layer_scale": some(4)},
            {"a.lora_proj.weight": some(4, 3), "lora.weight": some(4, 3)},
            {"a.weight_ih_l0": some(8, 3), "a.weight_hh_l0": some(8, 2)},
            {"parametrizations.weight": some(4, 3), "a.original": some(3, 3)},
        ],
    )
    def test_all_arrays_are_there(self, arrays: dict[str, np.ndarray]) -> None:
        found = folded(Stored(arrays))
        assert not found.unusable
        assert not found.folds
        for name, values in arrays.items():
            assert found.arrays.get(name) is values or np.all(values == 1)  # a mask of ones goes

    def test_two_arrays_with_the_shapes_of_a_weight_norm_are_refused(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        arrays = {"a.w_g": some(4, 1), "a.w_v": some(4, 3)}
        assert list(refused(tmp_path, capsys, **arrays)) == ["a.w"]

    def test_a_mask_that_changes_nothing_leaves_the_layer(self, tmp_path: Path) -> None:
        mask = np.tri(4, 3)
        found = contents(tmp_path, **{"a.weight": some(4, 3) * mask, "a.mask": mask > 0})
        assert [layer.name for layer in found.layers] == ["plain.weight", "a.weight"]

    def test_pruned_biases_are_biases(self, tmp_path: Path) -> None:
        found = contents(tmp_path, **{"a.bias_orig": some(4), "a.bias_mask": np.ones(4)})
        assert "bias" in found.skipped["a.bias"]
        assert not found.failed
        found = contents(tmp_path, **{"a.bias_g": some(4), "a.bias_v": some(4)})
        assert set(found.skipped) == {"a.bias_g", "a.bias_v"}
        assert not found.failed
        assert not found.obstacles


WORDS = [
    "a",
    "weight",
    "bias",
    "mask",
    "lora_A",
    "ema",
    "original",
    "0",
    "_u",
    "kernel",
    "scale",
    "exp_avg",
    "qweight",
    "base",
    "ema_model",
]
ENDS = {
    "_g": (3, 1, 1),
    "_v": (3, 2, 2),
    "_orig": (3, 2, 2),
    "_mask": (3, 2, 2),
    "_u": (3,),
    "": (3, 2, 2),
    "_scale": (3,),
    "_packed": (3, 2),
    "_mu": (3, 2, 2),
    ".lora_A": (2, 2),
    ".mask": (3, 2, 2),
    "PARAMETRIZED.original0": (3, 1, 1),
    "PARAMETRIZED.original1": (3, 2, 2),
    "PARAMETRIZED.original": (3, 2, 2),
    "PARAMETRIZED.0._u": (3,),
    "PARAMETRIZED.0._v": (4,),
    "PARAMETRIZED.1._u": (3,),
    "PARAMETRIZED.1._v": (4,),
}
TOGETHER = [
    ["_g", "_v"],
    ["_orig", "_mask"],
    [end for end in ENDS if ".original0" in end or ".original1" in end],
]


def any_arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return arrays of any kind under names that rules look for, many of them parts that fit together."""
    shapes = {}
    for root in ("a.weight", "a.bias", "ema.a.weight", "a.w")[: rng.integers(1, 5)]:
        ends = rng.choice(list(ENDS), size=rng.integers(0, 4), replace=False).tolist()
        for end in (*ends[: rng.integers(0, 5)], *TOGETHER[rng.integers(0, 3)]):
            module, _, tensor = root.rpartition(".")
            name = end.replace("PARAMETRIZED", f"{module}.parametrizations.{tensor}")
            shapes[name if name != end else root + end] = ENDS[end]
    for _ in range(rng.integers(0, 4)):
        name = ".".join(rng.choice(WORDS, size=rng.integers(1, 5)))
        shapes[name] = tuple(rng.integers(0, 4, size=rng.integers(0, 4)).tolist())
    arrays = {}
    for name in rng.permutation(list(shapes)).tolist():
        values = rng.standard_normal(shapes[name]) * 10.0 ** rng.choice([0, 0, 0, 0, 300, -320])
        values = values if rng.random() < 0.95 else np.zeros(shapes[name])
        kind = rng.choice(["f8", "f8", "f8", "f8", "f4", "f2", "c16", "i1", "?", ">f8"])
        if name.endswith("_mask"):
            values, kind = np.tri(3, 4)[:, 1:3, None] * np.ones(2), rng.choice(["f4", "?"])
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            arrays[name] = np.asarray(np.asarray(values).astype(kind))
        arrays[name].flags.writeable = False
    return arrays


def test_whatever_the_names_every_entry_is_accounted_for() -> None:
    rng = np.random.default_rng(8)
    folds = 0
    for _ in range(2000):
        arrays = any_arrays(rng)
        unusable = {}
        if rng.random() < 0.1:
            unusable = {name: "no values" for name in arrays if name.endswith("_g")}
            arrays = {name: values for name, values in arrays.items() if name not in unusable}
        stored = Stored(dict(arrays), unusable)
        found = folded(stored)
        assert stored == Stored(arrays, unusable)
        sorted_out = [*found.arrays, *found.unusable, *found.others]
        assert len(set(sorted_out)) == len(sorted_out)
        assert {*sorted_out} >= {*arrays, *unusable} - {n for n in arrays if n.endswith("bias")}
        assert found.folds.keys() <= found.arrays.keys()
        for name, values in found.arrays.items():
            assert name in found.folds or values is arrays[name]
        folds += len(found.folds)
    assert folds > 30


def test_a_name_without_end_is_no_part_and_no_layer() -> None:
    name = "_g_v" * 50_000  # minutes, if the pattern were tried on it
    stored = Stored({name: np.ones((2, 2)), "fc.weight": np.ones((2, 2))})
    assert folded(stored) == stored
    assert understood(stored).obstacles == {name: NOT_UNDERSTOOD}
