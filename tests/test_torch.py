"""Modules of PyTorch: their own geometry, honest refusals, gradients, and weights that keep to a bound."""

import copy
import importlib
import io
import math
import re
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

import gramnorm as gn
from tests.harness import oracles

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize  # noqa: E402

from gramnorm.torch import (  # noqa: E402
    NormTracker,
    SpectralBound,
    layer_norms,
    lipschitz_penalty,
)

# torch's own remarks, about memory and about speed
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

Shape = tuple[int, ...]

# what makes the layer, and the input (channels, *spatial) at which its matrix is written down
LAYERS: dict[str, tuple[Callable[..., nn.Module], Shape]] = {
    "linear": (lambda **kw: nn.Linear(5, 7, **kw), (5,)),
    "conv1d": (lambda **kw: nn.Conv1d(2, 3, 4, stride=3, padding=2, dilation=2, **kw), (2, 11)),
    "conv1d same even": (lambda **kw: nn.Conv1d(2, 3, 4, padding="same", dilation=3, **kw), (2, 9)),
    "conv1d valid": (lambda **kw: nn.Conv1d(2, 3, 3, padding="valid", stride=2, **kw), (2, 9)),
    "conv2d": (
        lambda **kw: nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0), groups=2, **kw),
        (4, 5, 6),
    ),
    "conv2d same": (lambda **kw: nn.Conv2d(2, 2, (4, 3), padding="same", **kw), (2, 5, 4)),
    "conv2d depthwise": (lambda **kw: nn.Conv2d(3, 6, 3, padding=2, groups=3, **kw), (3, 4, 5)),
    "conv2d pointwise": (lambda **kw: nn.Conv2d(3, 4, 1, stride=2, **kw), (3, 4, 5)),
    "conv3d": (
        lambda **kw: nn.Conv3d(2, 2, 2, stride=(1, 2, 1), padding=(0, 1, 1), **kw),
        (2, 3, 3, 2),
    ),
    "transposed 1d": (
        lambda **kw: nn.ConvTranspose1d(2, 3, 4, stride=3, padding=1, output_padding=2, **kw),
        (2, 5),
    ),
    "transposed 1d dilated": (
        lambda **kw: nn.ConvTranspose1d(4, 2, 3, stride=2, dilation=3, groups=2, **kw),
        (4, 5),
    ),
    "transposed 2d": (
        lambda **kw: nn.ConvTranspose2d(
            4, 6, (3, 2), stride=2, padding=(1, 0), output_padding=(1, 0), groups=2, **kw
        ),
        (4, 3, 4),
    ),
    "transposed 3d": (lambda **kw: nn.ConvTranspose3d(2, 1, 2, stride=2, **kw), (2, 2, 2, 3)),
    "circular": (
        lambda **kw: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", **kw),
        (2, 5, 4),
    ),
    "circular same even": (
        lambda **kw: nn.Conv1d(2, 3, 4, padding="same", padding_mode="circular", **kw),
        (2, 7),
    ),
    "circular less": (
        lambda **kw: nn.Conv1d(2, 3, 5, padding=1, padding_mode="circular", **kw),
        (2, 8),
    ),
}
OF_ONE_SIZE: dict[str, tuple[Callable[..., nn.Module], Shape]] = {
    "circular strided": (
        lambda **kw: nn.Conv1d(2, 3, 2, stride=2, padding=1, padding_mode="circular", **kw),
        (2, 5),
    ),
    "circular more": (
        lambda **kw: nn.Conv1d(2, 3, 2, padding=3, padding_mode="circular", **kw),
        (2, 5),
    ),
    "reflect": (
        lambda **kw: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect", **kw),
        (2, 4, 3),
    ),
    "replicate": (
        lambda **kw: nn.Conv1d(2, 3, 5, padding="same", padding_mode="replicate", **kw),
        (2, 4),
    ),
    "replicate strided": (
        lambda **kw: nn.Conv2d(1, 2, 3, stride=2, padding=2, padding_mode="replicate", **kw),
        (1, 4, 5),
    ),
}
ALL = LAYERS | OF_ONE_SIZE


def made(name: str, *, seed: int = 0, scale: float = 1.0, dtype=torch.float64):
    """Return a layer without bias and with Gaussian weights, and the shape of its input."""
    make, shape = ALL[name]
    layer = make(bias=False, dtype=dtype)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(scale * rng.standard_normal(layer.weight.shape)))
    return layer, shape


def matrix_of(layer: nn.Module, shape: Shape) -> np.ndarray:
    """Return the matrix of a layer without bias, its images of unit vectors; exact where no samples repeat."""
    count = math.prod(shape)
    with torch.no_grad():
        images = layer(torch.eye(count, dtype=layer.weight.dtype).reshape(count, *shape))
    return images.reshape(count, -1).T.double().numpy()


def sizes(layer: nn.Module, shape: Shape) -> dict[str, Shape]:
    return {} if isinstance(layer, nn.Linear) else {"": shape[1:]}


@pytest.mark.parametrize("name", ALL)
def test_bound_at_the_size_is_that_of_the_matrix(name: str) -> None:
    layer, shape = made(name)
    exact = np.linalg.norm(matrix_of(layer, shape), 2)
    bound = layer_norms(layer, input_shapes=sizes(layer, shape))[""].item()
    assert exact * (1 - 1e-12) <= bound <= exact * 1.0011


@pytest.mark.parametrize("name", LAYERS)
def test_bound_of_every_size_is_above_any_matrix(name: str) -> None:
    layer, shape = made(name)
    bound = layer_norms(layer)[""].item()
    for extra in (0, 1, 2):
        larger = (shape[0], *(n + extra for n in shape[1:]))
        assert np.linalg.norm(matrix_of(layer, larger), 2) * (1 - 1e-12) <= bound


@pytest.mark.parametrize("name", OF_ONE_SIZE)
def test_size_is_asked_for_where_the_norm_has_no_bound_without_it(name: str) -> None:
    layer, _ = made(name)
    with pytest.raises(ValueError, match=r"input_shapes must give that of the layer '1'"):
        layer_norms(nn.Sequential(nn.ReLU(), layer))
    with pytest.raises(ValueError, match="input_shape must be given"):
        SpectralBound(layer)
    with pytest.raises(ValueError, match="use method='divide' with input_shape"):
        SpectralBound(layer, method="rescale", input_shape=7)


def test_circular_stride_needs_the_size_because_every_size_is_not_enough() -> None:
    layer, shape = made("circular strided")
    with torch.no_grad():
        layer.weight.copy_(torch.ones_like(layer.weight))
    every = gn.conv_norm_bound(layer.weight.detach(), stride=2).item()
    assert np.linalg.norm(matrix_of(layer, shape), 2) > 1.2 * every


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, groups=1), nn.Dropout(), nn.Flatten()),
        nn.Linear(36, 5),
    )


def test_norms_come_by_name_in_the_order_of_the_model() -> None:
    model = network()
    norms = layer_norms(model, input_shapes={"3.0": 8, "0": (8, 8)})
    assert list(norms) == ["0", "1", "3.0", "4"]
    assert all(norm.shape == () and norm.requires_grad for norm in norms.values())
    assert norms["4"] == gn.matrix_norm_bound(model[4].weight)
    assert norms["0"] == gn.conv_norm_bound(model[0].weight, (8, 8), padding=1)
    assert norms["3.0"] <= layer_norms(model)["3.0"] * 1.001


def test_product_bounds_the_network_in_evaluation_mode() -> None:
    model = network().double()
    with torch.no_grad():
        model[1].running_var.uniform_(0.1, 2.0)
        model[1].weight.normal_()
    model.eval()
    bound = math.prod(n.item() for n in layer_norms(model).values())
    x, y = torch.randn(2, 64, 1, 8, 8, dtype=torch.float64, generator=torch.manual_seed(1))
    moved = (model(x) - model(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert 0 < moved.max() <= bound


@pytest.mark.parametrize("scale", [1.0, 1e-44, 0.0])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_the_scale_of_evaluation_mode(scale: float, affine: bool) -> None:
    layer = nn.BatchNorm1d(50, affine=affine)
    generator = torch.manual_seed(0)
    with torch.no_grad():
        layer.running_var.uniform_(1e-6, 3.0, generator=generator)
        if affine:
            layer.weight.normal_(generator=generator).mul_(scale)
    weight = layer.weight.detach().double() if affine else torch.ones(50, dtype=torch.float64)
    exact = (weight.abs() / (layer.running_var.double() + layer.eps).sqrt()).max().item()
    bound = layer_norms(layer)[""].item()
    assert exact <= bound <= exact * (1 + 1e-6) + (1.2e-38 if exact else 0.0)


def test_layer_registered_twice_counts_twice() -> None:
    layer = nn.Linear(3, 3)
    assert list(layer_norms(nn.Sequential(layer, nn.ReLU(), layer))) == ["0", "2"]


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / weight.std(), bias)


class Blur(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(3))


class WithParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.dense = nn.Linear(2, 2)


def replaced_forward() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: 2 * x
    return layer


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "LSTM": lambda: nn.LSTM(3, 3),
    "GRU cell": lambda: nn.GRUCell(3, 3),
    "bilinear": lambda: nn.Bilinear(2, 2, 2),
    "embedding": lambda: nn.Embedding(4, 2),
    "layer norm": lambda: nn.LayerNorm(4),
    "PReLU": nn.PReLU,
    "batch statistics": lambda: nn.BatchNorm1d(3, track_running_stats=False),
    "own forward": lambda: Scaled(2, 2),
    "own convolution": lambda: Standardised(2, 2, 3),
    "buffer": Blur,
    "parameter": WithParameter,
    "replaced forward": replaced_forward,
    "parametrized LSTM": lambda: parametrize.register_parametrization(
        nn.LSTM(3, 3), "weight_ih_l0", nn.Identity()
    ),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_is_not_accounted_for_is_refused_and_can_be_left_out(make) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(make()))
    with pytest.raises(TypeError, match=r"the layer '1\.0.*skip=\['1\.0"):
        layer_norms(model)
    with pytest.raises(TypeError, match=r"skip=\['1\.0"):
        lipschitz_penalty(model)
    assert list(layer_norms(model, skip=["1.0"])) == ["0"]


def test_a_parameter_can_be_left_out_and_its_module_is_still_read() -> None:
    with pytest.raises(TypeError, match=r"the model \(WithParameter\) holds gain"):
        layer_norms(WithParameter())
    assert list(layer_norms(WithParameter(), skip={"gain"})) == ["dense"]
    assert list(layer_norms(nn.ModuleList([WithParameter()]), skip=["0.gain"])) == ["0.dense"]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_hooks_set_or_that_are_not_there_yet_are_refused() -> None:
    for hooked in (nn.utils.weight_norm, nn.utils.spectral_norm):
        with pytest.raises(TypeError, match="set by a hook"):
            layer_norms(hooked(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="run a batch"):
        layer_norms(nn.LazyLinear(2))


def test_wrong_names_and_arguments_are_explained() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"input_shapes .*'conv'; there are '0', '3\.0'"):
        layer_norms(model, input_shapes={"conv": 3})
    with pytest.raises(ValueError, match=r"input_shapes .*'4'"):
        layer_norms(model, input_shapes={"4": 3})
    with pytest.raises(ValueError, match=r"skip .*head"):
        layer_norms(model, skip=["head"])
    with pytest.raises(ValueError, match="skip must list"):
        layer_norms(model, skip="0")
    with pytest.raises(TypeError, match=r"module must be .*LSTM"):
        SpectralBound(nn.LSTM(2, 2))
    with pytest.raises(ValueError, match="method must be 'divide' or 'rescale'"):
        SpectralBound(nn.Linear(2, 2), method="power")
    with pytest.raises(ValueError, match="bound must be a positive finite number"):
        SpectralBound(nn.Linear(2, 2), bound=0)
    with pytest.raises(TypeError, match="bound must be a positive number"):
        SpectralBound(nn.Linear(2, 2), bound="1")
    with pytest.raises(ValueError, match="input_shape is for convolutions"):
        SpectralBound(nn.Linear(2, 2), input_shape=3)
    with pytest.raises(ValueError, match="bound is too small"):
        SpectralBound(nn.Linear(2, 2), bound=1e-7)(torch.ones(2, 2, dtype=torch.float16))


def test_penalty_has_gradients_for_every_weight() -> None:
    model = network()
    penalty = lipschitz_penalty(model, rtol=1e-4)
    norms = layer_norms(model, rtol=1e-4)
    assert penalty.item() == pytest.approx(
        sum(math.log(n.item()) for n in norms.values()), abs=1e-5
    )
    penalty.backward()
    for name, module in model.named_modules():
        if name in norms:
            gradient = module.weight.grad
            assert torch.isfinite(gradient).all()
            # log of a norm: its derivative along the weight is 1
            assert (gradient * module.weight).sum().item() == pytest.approx(1.0, abs=1e-3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.05 * parameter.grad)
    assert lipschitz_penalty(model) < penalty - 0.02


def test_penalty_of_nothing_and_of_zero_is_zero() -> None:
    assert lipschitz_penalty(nn.ReLU()) == 0
    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.weight)
    penalty = lipschitz_penalty(layer)
    penalty.backward()
    assert penalty == 0
    assert not layer.weight.grad.any()
    with torch.no_grad():
        layer.weight.fill_(math.nan)
    assert lipschitz_penalty(layer).isnan()


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LOOSEST = {torch.bfloat16: 0.88, torch.float16: 0.97}  # the share of the bound that rounding leaves
CASES = [(1.0, 1.0), (30.0, 0.1), (1e-3, 0.7), (5.0, 7.3)]  # scale of the weights, bound


def stored(layer: nn.Module, spectral: nn.Module) -> nn.Module:
    """Return the layer with the weight that the parametrization gives it, in double precision."""
    parametrize.register_parametrization(layer, "weight", spectral)
    assert layer.weight.dtype == layer.parametrizations.weight.original.dtype
    return parametrize.remove_parametrizations(layer, "weight").double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_divided_weight_as_stored_keeps_to_the_bound_at_its_size(name: str, dtype) -> None:
    for seed, (scale, bound) in enumerate(CASES[: 4 if dtype is torch.float32 else 2]):
        layer, shape = made(name, seed=seed, scale=scale, dtype=dtype)
        before = np.linalg.norm(matrix_of(copy.deepcopy(layer).double(), shape), 2)
        size = None if isinstance(layer, nn.Linear) else shape[1:]
        layer = stored(layer, SpectralBound(layer, bound=bound, input_shape=size, rtol=1e-9))
        matrix = matrix_of(layer, shape)
        if getattr(layer, "padding_mode", "zeros") == "zeros":
            assert oracles.check_upper(matrix, bound) is oracles.Verdict.HOLDS
        norm = np.linalg.norm(matrix, 2)
        assert norm <= bound * (1 + 1e-14)
        assert norm >= min(before, bound * LOOSEST.get(dtype, 0.9985)) * (1 - 1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", ["divide", "rescale"])
@pytest.mark.parametrize("name", LAYERS)
def test_norm_of_every_size_keeps_to_the_bound(name: str, method: str, dtype) -> None:
    for seed, (scale, bound) in enumerate(CASES[: 4 if dtype is torch.float32 else 2]):
        layer, _ = made(name, seed=seed, scale=scale, dtype=dtype)
        layer = stored(layer, SpectralBound(layer, bound=bound, method=method, steps=2))
        weight, options = layer.weight.detach(), {}
        if isinstance(layer, nn.Linear):
            bracket = gn.matrix_norm_bracket(weight)
        else:
            options = {k: getattr(layer, k) for k in ("stride", "dilation", "groups", "transposed")}
            bracket = gn.conv_norm_bracket(weight, rtol=1e-6, **options)
        assert bracket.converged
        assert bracket.lower <= bound
        if method == "rescale":
            assert bracket.upper >= bound * (LOOSEST.get(dtype, 1.0) - 0.5)
        elif scale >= 1 and bound <= 1:
            assert bracket.upper >= bound * LOOSEST.get(dtype, 0.9985)


@pytest.mark.parametrize("method", ["divide", "rescale"])
def test_complex_layers_keep_to_the_bound(method: str) -> None:
    layer = nn.Linear(6, 4, bias=False, dtype=torch.complex64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 6, dtype=torch.complex64, generator=torch.manual_seed(0)))
    spectral = SpectralBound(layer, method=method, bound=0.3)
    weight = spectral(layer.weight).detach()
    assert weight.dtype == torch.complex64
    assert oracles.check_upper(weight.numpy(), 0.3) is oracles.Verdict.HOLDS
    assert np.linalg.norm(weight.numpy(), 2) > 0.29


@pytest.mark.parametrize("name", ["linear", "conv2d", "transposed 1d dilated"])
def test_a_training_step_is_certified_to_a_hundredth(name: str) -> None:
    layer, _ = made(name, dtype=torch.float32)
    spectral = SpectralBound(layer, bound=0.5)

    def norm(weight: torch.Tensor) -> float:
        copied = copy.deepcopy(layer)
        copied.weight.data = weight.detach()
        return layer_norms(copied, rtol=1e-6)[""].item()

    assert 0.5 / 1.0101 <= norm(spectral(layer.weight)) <= 0.5 * (1 + 2e-6)
    asked = SpectralBound(layer, bound=0.5, rtol=1e-4)
    for sharp in (spectral.eval()(layer.weight), asked(layer.weight)):
        assert 0.5 / 1.002 <= norm(sharp) <= 0.5 * (1 + 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(5, 7), (9, 4), (230, 210)], ids=str)
def test_a_divided_weight_is_differentiated_as_the_quotient(shape: Shape, dtype) -> None:
    rng = np.random.default_rng(2)
    u, v = (rng.standard_normal(n) for n in shape)
    host = rng.standard_normal(shape) / 30 + np.outer(u, v) / (u @ u) ** 0.5 / (v @ v) ** 0.5
    layer = nn.Linear(*shape[::-1], bias=False, dtype=dtype)
    weight = torch.tensor(
        host * (1 - 0.5j) if dtype.is_complex else host, dtype=dtype
    ).requires_grad_()
    result = SpectralBound(layer, bound=0.25, rtol=1e-2)(weight)
    cotangent = torch.tensor(rng.standard_normal(shape)).to(dtype)
    (found,) = torch.autograd.grad(result, weight, cotangent)
    wide = weight.detach().to(torch.complex128 if dtype.is_complex else torch.float64)
    wide.requires_grad_()
    norm = torch.linalg.matrix_norm(wide, ord=2)
    (expected,) = torch.autograd.grad(wide / norm / 4, wide, cotangent.to(wide.dtype))
    rtol = 5e-2 if dtype is torch.bfloat16 else 2.5e-2  # that of the tolerance, and of its vectors
    assert found.dtype == dtype
    assert torch.linalg.norm(found.to(wide.dtype) - expected) <= rtol * torch.linalg.norm(expected)


def test_a_weight_that_changes_before_the_backward_pass_is_noticed() -> None:
    layer = nn.Linear(4, 3)
    result = SpectralBound(layer, bound=0.1)(layer.weight)
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_weight_below_the_bound_stays_as_it_is() -> None:
    layer, _ = made("conv2d", scale=0.01)
    assert SpectralBound(layer)(layer.weight) is layer.weight


def test_special_weights() -> None:
    spectral = SpectralBound(nn.Linear(2, 2))
    assert not spectral(torch.zeros(2, 2)).any()
    assert spectral(torch.full((2, 2), math.nan)).isnan().all()
    assert not spectral(torch.full((2, 2), 3e38)).isnan().any()
    assert SpectralBound(nn.Linear(2, 2), method="rescale")(torch.zeros(2, 2)).eq(0).all()


def test_parametrization_survives_a_round_trip() -> None:
    model = network()
    for place in (0, 4):
        parametrize.register_parametrization(
            model[place], "weight", SpectralBound(model[place], bound=0.5, rtol=1e-4)
        )
    saved = model.state_dict()
    assert "0.parametrizations.weight.original" in saved
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    assert not torch.equal(other[0].weight, model[0].weight)
    other.load_state_dict(saved)
    assert torch.equal(other[0].weight, model[0].weight)
    with parametrize.cached():
        assert model[0].weight is model[0].weight
    norms = layer_norms(model)
    assert list(norms) == ["0", "1", "3.0", "4"]
    assert max(norms["0"], norms["4"]) <= 0.5 * 1.001
    assert "bound=0.5, method='divide', rtol=0.0001" in repr(model)
    kept = model[0].weight.detach().clone()
    model[0].weight = kept  # through right_inverse
    assert torch.equal(model[0].weight, kept)
    parametrize.remove_parametrizations(model[0], "weight")
    assert torch.equal(model[0].weight, kept)


@pytest.mark.parametrize("name", ["linear", "conv2d", "transposed 1d", "replicate"])
def test_gradcheck_of_divide(name: str) -> None:
    layer, shape = made(name)
    size = None if isinstance(layer, nn.Linear) else shape[1:]
    spectral = SpectralBound(layer, rtol=1e-10, input_shape=size)
    assert torch.autograd.gradcheck(spectral, layer.weight, eps=1e-4, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_gradcheck_of_rescale(name: str) -> None:
    layer, _ = made(name)
    spectral = SpectralBound(layer, method="rescale", bound=0.7, steps=2)
    assert torch.autograd.gradcheck(spectral, layer.weight, fast_mode=True)


def test_training_step_goes_through_the_parametrization_and_through_autocast() -> None:
    model = network()
    for place in (0, 4):
        method = "divide" if place else "rescale"
        spectral = SpectralBound(model[place], bound=0.5, method=method)
        parametrize.register_parametrization(model[place], "weight", spectral)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.ones(4, 1, 8, 8)).square().sum()
    loss.backward()
    for place in (0, 4):
        assert model[place].weight.dtype == torch.float32
        gradient = model[place].parametrizations.weight.original.grad
        assert torch.isfinite(gradient).all()
        assert gradient.any()


def test_rescale_can_be_mapped_so_it_looks_at_no_value() -> None:
    layer, _ = made("conv2d")
    spectral = SpectralBound(layer, method="rescale", bound=0.5)
    stack = torch.stack([layer.weight.detach(), 2 * layer.weight.detach()])
    mapped = torch.func.vmap(spectral)(stack)
    assert torch.allclose(mapped[0], spectral(stack[0]), rtol=1e-12)


def followed(every: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=False),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    for layer in (model[0], model[2], model[4]):
        bound = SpectralBound(layer, bound=0.5, certify_every=every)
        parametrize.register_parametrization(layer, "weight", bound)
    return model


def trained(model: nn.Module, steps: int, penalty=lambda: 0.0) -> nn.Module:
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        loss = (model(torch.randn(8, 2, 4, 4)) - 1).square().mean() + penalty()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def test_followed_layers_are_certified_once_training_is_over() -> None:
    model = trained(followed(), 25)
    with torch.no_grad():  # while saving, or validating
        assert max(layer_norms(model).values()) <= 0.5 * (1 + 1e-6) * (1 + 2e-3)
    for layer in (model.eval()[0], model[2], model[4]):
        weight = layer.weight.detach().numpy()
        options = {} if weight.ndim == 2 else {"stride": layer.stride}
        bracket = gn.matrix_norm_bracket if weight.ndim == 2 else gn.conv_norm_bracket
        assert 0.49 <= bracket(weight, **options).lower <= 0.5
    copies = copy.deepcopy(model)
    again = followed()
    again.load_state_dict(model.state_dict())
    for other in (copies, again.eval()):
        assert torch.equal(other[2].weight, model[2].weight)
    layer = parametrize.remove_parametrizations(model.train()[2], "weight")
    assert gn.conv_norm_bracket(layer.weight.detach().numpy(), stride=2).lower <= 0.5


def test_followed_weights_are_nearly_at_the_bound_in_training() -> None:
    model = trained(followed(), 25)
    layer = model[0]
    weight = layer.weight
    assert weight.requires_grad
    norm = gn.conv_norm_bracket(weight.detach().numpy())
    assert norm.upper >= 0.5 * (1 - 2e-3)
    assert norm.lower <= 0.5 * 1.05
    with parametrize.cached():
        assert layer.weight is layer.weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("bound", [0.5, 50.0], ids=["above", "below"])
def test_a_followed_weight_is_differentiated_as_the_quotient(bound, dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(7, 5, dtype=dtype)
    spectral = SpectralBound(layer, bound=bound, certify_every=100)
    weight = layer.weight.detach().clone().requires_grad_()
    for _ in range(30):  # where the norm is attained is found
        result = spectral(weight)
    cotangent = torch.randn(5, 7, dtype=dtype)
    (found,) = torch.autograd.grad(result, weight, cotangent)
    norm = torch.linalg.matrix_norm(weight, ord=2)
    (expected,) = torch.autograd.grad(weight / (norm / bound).clamp(min=1), weight, cotangent)
    assert torch.allclose(result, weight / (norm / bound).clamp(min=1), rtol=1e-9)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)
    (gradient,) = torch.autograd.grad(spectral(weight).abs().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.abs().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_followed_weight_of_half_precision_keeps_its_type(dtype) -> None:
    layer = nn.Linear(6, 4, dtype=dtype)
    spectral = SpectralBound(layer, bound=0.1, certify_every=100)
    spectral(layer.weight)
    result = spectral(layer.weight)
    result.sum().backward()
    assert result.dtype == layer.weight.grad.dtype == dtype
    norm = torch.linalg.matrix_norm(result.detach().float(), ord=2)
    assert float(norm) == pytest.approx(0.1, rel=2e-2)


def test_followed_layers_keep_their_precision_under_autocast_and_checkpointing() -> None:
    model, x = followed(), torch.ones(2, 2, 4, 4)
    plain = copy.deepcopy(model)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model[4].weight.dtype == torch.float32
        assert torch.allclose(model(x).float(), plain, rtol=5e-2, atol=1e-2)
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    gradients = [layer.parametrizations.weight.original.grad for layer in (model[0], model[4])]
    assert all(torch.isfinite(g).all() and g.any() for g in gradients)


def test_the_penalty_can_follow_the_norms() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    tracker = NormTracker(certify_every=10)
    start = float(lipschitz_penalty(model).detach())
    trained(model, 25, lambda: lipschitz_penalty(model, tracker=tracker))
    estimates, bounds = tracker(model), layer_norms(model)
    assert estimates.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert 0.95 * bound <= estimates[name] <= bound
    assert float(lipschitz_penalty(model).detach()) < start


def test_wrong_arguments_of_what_follows() -> None:
    with pytest.raises(ValueError, match="certify_every is for method='divide'"):
        SpectralBound(nn.Linear(3, 3), method="rescale", certify_every=3)
    for wrong in (0, 1.5, "3"):
        with pytest.raises((TypeError, ValueError), match="certify_every"):
            SpectralBound(nn.Linear(3, 3), certify_every=wrong)
        with pytest.raises((TypeError, ValueError), match="certify_every"):
            NormTracker(certify_every=wrong)


def test_torchs_own_spectral_norm_does_not_bound_a_convolution() -> None:
    torch.manual_seed(0)
    conv = parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1), n_power_iterations=20)
    conv.eval()
    assert layer_norms(conv)[""] > 1.2


def test_import_without_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "gramnorm.torch")
    with pytest.raises(ImportError, match=r'pip install "gramnorm\[torch\]"'):
        importlib.import_module("gramnorm.torch")


@pytest.mark.filterwarnings("ignore")
def test_a_bounded_layer_works_in_a_compiled_model():
    conv = nn.Conv2d(2, 3, 3)
    parametrize.register_parametrization(conv, "weight", SpectralBound(conv))
    x = torch.randn(1, 2, 5, 5)
    compiled = torch.compile(conv, backend="eager")
    assert torch.allclose(compiled(x), conv(x))


def bounded(method: str, *, dense: bool = False) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(5, 3) if dense else nn.Conv2d(2, 3, 3), nn.ReLU())
    parametrize.register_parametrization(model[0], "weight", SpectralBound(model[0], method=method))
    return model.eval()


def func_gradient(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = dict(model.named_parameters())
    loss = lambda w: torch.func.functional_call(model, w, (x,)).sum()  # noqa: E731
    return torch.func.grad(loss)(weights)


RECORDERS = {
    "trace": torch.jit.trace,
    "onnx": lambda m, x: torch.onnx.export(m, (x,), io.BytesIO(), dynamo=False),
    "onnx of export": lambda m, x: torch.onnx.export(m, (x,), dynamo=True, verbose=False),
    "export": lambda m, x: torch.export.export(m, (x,), strict=False).module(),
    "strict export": lambda m, x: torch.export.export(m, (x,), strict=True).module(),
    "func": func_gradient,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize("method", ["divide", "rescale"])
def test_a_bounded_layer_is_recorded_or_says_what_to_do(method: str, recorder: str) -> None:
    x = torch.randn(1, 2, 5, 5)
    model = bounded(method)
    if "onnx" in recorder:
        pytest.importorskip("onnx" if recorder == "onnx" else "onnxscript")
    if method == "divide" or "onnx" in recorder or recorder == "strict export":
        with pytest.raises(Exception, match=r"remove_parametrizations\(module, 'weight'\)"):
            RECORDERS[recorder](model, x)
        expected = model(x)
        parametrize.remove_parametrizations(model[0], "weight")
        assert torch.equal(model(x), expected)
        RECORDERS[recorder](model, x)
        return
    found = RECORDERS[recorder](model, x)
    if recorder == "func":
        model(x).sum().backward()
        for name, weight in model.named_parameters():
            assert torch.allclose(found[name], weight.grad, rtol=1e-4, atol=1e-6)
    else:
        assert torch.allclose(found(x), model(x), rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_rescaled_dense_layer_is_recorded_without_writing_in_place() -> None:
    """What the ONNX exporter of `torch.export` asks for; it has no complex numbers for kernels."""
    model, x = bounded("rescale", dense=True), torch.randn(2, 5)
    exported = torch.export.export(model, (x,), strict=False)
    graphs = [m.graph for m in exported.graph_module.modules() if hasattr(m, "graph")]
    names = {str(node.target) for graph in graphs for node in graph.nodes}
    assert "aten.matmul.default" in names
    assert not [name for name in names if re.fullmatch(r"aten\.[a-z_]*[a-z]_\..*", name)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["divide", "rescale"])
def test_a_kernel_is_not_recorded_for_onnx_and_no_other_method_is_named(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(Exception, match=r"cannot record.*remove_parametrizations") as caught:
        torch.export.export(bounded(method), (torch.randn(1, 2, 5, 5),), strict=False)
    assert "or take method" not in str(caught.value)


@pytest.mark.parametrize("function", [layer_norms, lipschitz_penalty])
def test_weights_alone_are_no_model(function) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for what in (model.state_dict(), [model], model[0].weight):
        with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module.*load_state_dict"):
            function(what)


def test_errors_name_the_layer() -> None:
    hooked = nn.Linear(2, 2)
    del hooked.weight
    hooked.weight = torch.ones(2, 2)
    for layer, error in (
        (nn.Linear(2, 2, device="meta"), "has no values"),
        (nn.LazyLinear(2), "no weight yet"),
        (hooked, "set by a hook"),
    ):
        with pytest.raises(TypeError, match=rf"^the layer 'head\.0' \(\w+\): .*{error}"):
            layer_norms(nn.ModuleDict({"head": nn.Sequential(layer)}))
    with pytest.raises(ValueError, match=r"^the layer '0' \(Conv2d\): input_shape"):
        layer_norms(nn.Sequential(nn.Conv2d(1, 1, 3)), input_shapes={"0": (3,)})


def test_item_of_a_norm_with_a_gradient_does_not_warn() -> None:
    norm = layer_norms(nn.Linear(2, 2))[""]
    assert norm.requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert norm.item() > 0
        bracket = gn.matrix_norm_bracket(torch.eye(3, requires_grad=True))
        assert "norm" in repr(bracket)
        assert "norm" in f"{bracket:.3g}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_divisor_counts_every_rounding_of_what_is_divided(dtype):
    """Ones, whose norm and whose moduli's norm are n: each entry of the result errs by half a unit."""
    n, unit = 100, Fraction(torch.finfo(dtype).eps) / 2
    lost = n * Fraction(1, 2**25) if dtype is torch.float16 else 0  # of numbers that are subnormal
    weight = torch.ones(n, n, dtype=dtype)
    for bound, size in np.random.default_rng(0).uniform(1, 2, (300, 2)):
        norm = torch.tensor(n * size, dtype=torch.float32)
        divisor, _ = SpectralBound(nn.Linear(n, n), bound=bound)._divisor(weight, norm)
        exact = Fraction(float(norm)) + n * unit
        assert Fraction(float(divisor)) * (Fraction(bound) - lost) >= exact


def test_scale_of_a_batch_norm_that_underflows_is_rounded_up():
    """1.4 smallest numbers are rounded to one of them."""
    norm = nn.BatchNorm1d(1).eval()
    with torch.no_grad():
        norm.weight.fill_(3 * 2.0**-149)
        norm.running_var.fill_(4.6)
    exact = 3 * 2.0**-149 / math.sqrt(4.6)
    chain = nn.Sequential(norm)
    assert float(layer_norms(chain)["0"].detach()) >= exact
