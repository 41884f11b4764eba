"""Models as both exporters of PyTorch write them: composed, or refused with the node's name."""

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gramnorm.report import bound_layer
from gramnorm.report.files.readers import read_path
from gramnorm.report.network import constant_of
from tests.report.test_onnx import onnx, steepest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
nn = torch.nn

pytestmark = [pytest.mark.extra, pytest.mark.slow]

SIZE, OTHER = 16, 20


def normed(*layers: Any) -> Any:
    """Return layers in a row, each convolution with a batch norm that is no identity."""
    every = []
    for layer in layers:
        every.append(layer)
        if isinstance(layer, nn.Conv2d):
            norm = nn.BatchNorm2d(layer.out_channels)
            for values in (norm.weight.data, norm.running_var):
                values.uniform_(0.5, 1.5)
            norm.running_mean.normal_()
            every.append(norm)
    return nn.Sequential(*every)


class Residual(nn.Module):
    def __init__(self, branch: Any, shortcut: Any, after: Any) -> None:
        super().__init__()
        self.branch, self.shortcut, self.after = branch, shortcut, after

    def forward(self, x: Any) -> Any:
        return self.after(self.branch(x) + self.shortcut(x))


def conv(a: int, b: int, k: int, stride: int = 1, groups: int = 1) -> Any:
    return nn.Conv2d(a, b, k, stride, k // 2, groups=groups, bias=False)


def basic(a: int, b: int, stride: int) -> Any:
    shortcut = nn.Identity() if a == b else normed(conv(a, b, 1, stride))
    branch = normed(conv(a, b, 3, stride), nn.ReLU(), conv(b, b, 3))
    return Residual(branch, shortcut, nn.ReLU())


def head(channels: int) -> Any:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def resnet() -> Any:
    stem = normed(conv(3, 4, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    stages = [
        block
        for a, b, stride in ((4, 4, 1), (4, 5, 2), (5, 6, 2), (6, 7, 2))
        for block in (basic(a, b, stride), basic(b, b, 1))
    ]
    return nn.Sequential(stem, *stages, head(7))


class Gate(nn.Module):
    """Squeeze and excitation, which multiplies the signal by what it computes of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Hardsigmoid()
        )

    def forward(self, x: Any) -> Any:
        return x * self.gate(x)


def inverted(a: int, b: int, stride: int, activation: Any, gate: bool = False) -> Any:
    inner = [conv(2 * a, 2 * a, 3, stride, 2 * a), activation(), *[Gate(2 * a)] * gate]
    branch = normed(conv(a, 2 * a, 1), activation(), *inner, conv(2 * a, b, 1))
    same = stride == 1 and a == b
    return Residual(branch, nn.Identity(), nn.Identity()) if same else branch


def mobilenet(gate: bool = False) -> Any:
    stem = normed(conv(3, 4, 3, 2), nn.Hardswish())
    first, second = inverted(4, 4, 1, nn.ReLU6), inverted(4, 6, 2, nn.Hardswish, gate)
    return nn.Sequential(stem, first, second, head(6))


class UNet(nn.Module):
    def __init__(self, up: Any) -> None:
        super().__init__()
        self.down, self.low = normed(conv(3, 4, 3), nn.ReLU()), normed(conv(4, 6, 3), nn.SiLU())
        self.up, self.last = up, nn.Sequential(conv(10, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 2, 1))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Any) -> Any:
        high = self.down(x)
        return self.last(torch.cat([self.up(self.low(self.pool(high))), high], 1))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mixing = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mixing(self.norms[1](x)))[:, 0])


MODELS: dict[str, tuple[Callable[[], Any], int, str | None]] = {
    "resnet": (resnet, 21, None),
    "mobilenet": (mobilenet, 8, None),
    "mobilenet with gates": (lambda: mobilenet(gate=True), 9, r"Mul.*two computed tensors"),
    "unet": (lambda: UNet(nn.ConvTranspose2d(6, 6, 2, 2)), 5, None),
    "unet, resized": (lambda: UNet(nn.Upsample(scale_factor=2, mode="bilinear")), 4, None),
    "unet, aligned": (
        lambda: UNet(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)), 4, None),
    "transformer": (Transformer, 6, r"MatMul.*as attention does"),
}  # fmt: skip


def exported(model: Any, path: Path, *, dynamo: bool, dynamic: bool) -> None:
    """Write a model as one of the exporters does."""
    x, axes = torch.randn(2 if dynamic else 1, 3, SIZE, SIZE), (0, 2, 3)
    if dynamo:
        more: Any = {"dynamic_shapes": (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)}
    else:
        more = {"dynamic_axes": {"x": dict(zip(axes, "bhw", strict=True))}, "input_names": ["x"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x,), path, dynamo=dynamo, verbose=False, **(more if dynamic else {})
        )


def assert_composed(path: Path, spatial: Any, match: str | None, sizes: Any, layers: int) -> None:
    found = read_path(path, spatial=spatial)
    assert found.failed == {}
    rows = [bound_layer(layer) for layer in found.layers]
    assert all(row.error is None for row in rows)
    assert len(rows) == layers
    upper = constant_of(found.network, rows)
    if match is not None:
        assert re.search(match, str(upper.reason))
        return
    assert upper.upper is not None, upper.reason
    pytest.importorskip("onnxruntime")
    for size in sizes:
        ratio = steepest(onnx.load(path), [(1, 3, size, size)])
        assert 0 < ratio <= upper.upper * (1 + 1e-4)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("dynamo", [False, True], ids=["script", "dynamo"])
@pytest.mark.parametrize("name", MODELS)
def test_what_exporters_write_is_composed_or_refused_by_name(
    tmp_path: Path, name: str, dynamo: bool, dynamic: bool
) -> None:
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    make, layers, match = MODELS[name]
    path = tmp_path / "model.onnx"
    exported(make().eval(), path, dynamo=dynamo, dynamic=dynamic)
    assert_composed(path, None, match, (SIZE, OTHER) if dynamic else (SIZE,), layers)
    if dynamic:
        assert_composed(path, (OTHER, OTHER), match, (OTHER,), layers)
    logging.disable(logging.NOTSET)
