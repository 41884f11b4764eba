"""Constants of PyTorch modules: above every Jacobian, and refusals where a module may do otherwise."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gramnorm as gn

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

from gramnorm import _modules  # noqa: E402
from gramnorm.network import _slopes  # noqa: E402
from gramnorm.network._sequence import Entrywise, Weighted  # noqa: E402
from gramnorm.torch import SpectralBound, layer_norms, network_bound  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

Shape = tuple[int, ...]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def steepest(model: nn.Module, shape: Shape, *, count: int = 12) -> float:
    """Return the largest singular value of Jacobians at points near and far, in float64."""
    model = copy.deepcopy(model).double()
    best = 0.0
    for scale in (0.1, 1.0, 5.0):
        for _ in range(count // 3):
            x = scale * torch.randn(1, *shape, dtype=torch.float64)
            jacobian = torch.autograd.functional.jacobian(model, x)
            matrix = jacobian.reshape(-1, x.numel()).numpy()
            best = max(best, float(np.linalg.norm(matrix, 2)))
    return best


def drawn(module: nn.Module) -> nn.Module:
    """Give batch norms statistics and scales of both signs."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(part.weight)
            part.running_mean.normal_()
            part.running_var.uniform_(0.1, 3)
    return module.eval()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": nn.ReLU6,
    "leaky": lambda: nn.LeakyReLU(0.3),
    "leaky steep": lambda: nn.LeakyReLU(1.7),
    "leaky falling": lambda: nn.LeakyReLU(-0.4),
    "prelu": nn.PReLU,
    "prelu falling": lambda: nn.PReLU(init=-0.5),
    "rrelu": lambda: nn.RReLU(0.1, 0.5),
    "elu": lambda: nn.ELU(0.7),
    "elu falling": lambda: nn.ELU(-0.7),
    "celu": lambda: nn.CELU(0.5),
    "selu": nn.SELU,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 2.0),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
    "softplus": lambda: nn.Softplus(beta=2.0),
    "softsign": nn.Softsign,
    "logsigmoid": nn.LogSigmoid,
    "tanhshrink": nn.Tanhshrink,
    "softshrink": lambda: nn.Softshrink(0.3),
    "threshold": lambda: nn.Threshold(0.2, 0.2),
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
}
FALLING = {
    "leaky falling",
    "prelu falling",
    "elu falling",
    "gelu",
    "gelu tanh",
    "silu",
    "mish",
    "hardswish",
}


def part_of(module: nn.Module) -> Any:
    return _modules._read("", module.eval(), (None, None)).part


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_slope_of_an_activation_lies_outside(name: str) -> None:
    """By autograd, and by differences over all distances, in float64."""
    module = ACTIVATIONS[name]().double().eval()
    with torch.no_grad():
        found = _modules._read("", module, (None, None))
        x = torch.cat([torch.linspace(-8, 8, 3001), torch.logspace(-5, 1, 300)]).double()
        x = torch.unique(torch.cat([x, -x]))
        y = module(x.clone())
        for apart in (1, 7, 400):
            step = x[apart:] - x[:-apart]
            slopes = (y[apart:] - y[:-apart]) / step
            noise = 2.0**-46 / step
            assert torch.all(slopes.abs() <= found.constant + noise)
            if isinstance(found.part, Entrywise):
                assert torch.all(slopes >= -noise)
                assert torch.all(slopes <= found.part.slope + noise)
    assert (found.part is None) == (name in FALLING)


def test_every_activation_in_a_chain_has_its_slopes_searched() -> None:
    searched = {type(make()) for make in ACTIVATIONS.values()}
    others = {
        kind
        for kind in _modules._READERS
        if kind.__module__ == "torch.nn.modules.activation" and kind not in searched
    }
    assert others == {nn.Softmax, nn.Hardshrink}  # one mixes entries, one jumps


MODELS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "dense": (
        lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)),
        (6,),
    ),
    "one activation for all": (
        lambda: nn.Sequential(nn.Linear(4, 8), act := nn.ReLU(), nn.Linear(8, 8), act, nn.Linear(8, 2)),
        (4,),
    ),
    "nested": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Sigmoid(), nn.Dropout(0.5))),
            nn.Sequential(nn.Linear(8, 8), nn.ELU()), nn.Linear(8, 2),
        ),
        (4,),
    ),
    "batch norm": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(),
            nn.BatchNorm1d(9), nn.Linear(9, 2), nn.BatchNorm1d(2),
        ),
        (2, 3),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, 2, groups=2, dilation=2), nn.Softplus(),
            nn.ConvTranspose2d(4, 3, 3, padding=1), nn.PReLU(3),
        ),
        (2, 5, 5),
    ),
    "all kinds": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding="same"), nn.ReLU(), nn.Conv2d(3, 3, 2), nn.ReLU(),
            nn.MaxPool2d(2, stride=1), nn.Conv2d(3, 4, 2, stride=2), nn.GELU(), nn.AvgPool2d(2, stride=1, padding=1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 3), nn.Softmax(-1),
        ),
        (1, 7, 7),
    ),
    "one axis": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Hardtanh(), nn.Conv1d(3, 2, 2), nn.AvgPool1d(2),
            nn.Flatten(), nn.Linear(4, 3),
        ),
        (2, 6),
    ),
    "layer": (lambda: nn.Linear(4, 3), (4,)),
    "nothing": (nn.Sequential, (4,)),
}  # fmt: skip
IN_CHAINS = {
    "dense",
    "one activation for all",
    "nested",
    "batch norm",
    "convolutions",
    "all kinds",
    "one axis",
}


@pytest.mark.parametrize("name", MODELS)
def test_no_jacobian_exceeds_the_bound_nor_the_bound_the_product(name: str) -> None:
    make, shape = MODELS[name]
    model = drawn(make())
    bound = network_bound(model, time_limit=1.0)
    product = network_bound(model, method="product")
    assert type(bound) is float
    assert steepest(model, shape) <= bound * (1 + 1e-12)
    assert bound <= product
    assert (bound < 0.95 * product) == (name in IN_CHAINS)
    known = network_bound(model, input_shape=shape, time_limit=1.0)
    assert steepest(model, shape) <= known * (1 + 1e-12)
    assert known <= product


def test_dense_models_have_the_bound_of_their_weights() -> None:
    model = MODELS["dense"][0]()
    assert network_bound(model) == gn.chain_bound([model[i].weight.detach() for i in (0, 2, 4)])
    with pytest.raises(ValueError, match="effort must be one of"):
        network_bound(model, effort="highest", method="product")
    assert network_bound(model, effort="fast") <= network_bound(model, method="product")
    norms = [norm.item() for norm in layer_norms(model).values()]
    assert network_bound(model, method="product") == pytest.approx(math.prod(norms), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_types_are_bounded_as_stored(dtype: Any) -> None:
    model = drawn(MODELS["batch norm"][0]()).to(dtype)
    assert network_bound(model) == pytest.approx(network_bound(model.double()), rel=1e-5)
    assert steepest(model, (2, 3)) <= network_bound(model) * (1 + 1e-12)


def test_random_models_never_exceed_their_bound() -> None:
    rng = np.random.default_rng(0)
    kinds = [make for name, make in ACTIVATIONS.items() if name != "relu"]
    for _ in range(25):
        sizes = rng.integers(1, 7, int(rng.integers(2, 6)))
        parts: list[nn.Module] = [nn.Flatten()]
        for m, n in itertools.pairwise(sizes):
            parts.append(nn.Linear(int(m), int(n), bias=bool(rng.random() < 0.5)))
            for _ in range(int(rng.integers(0, 3))):
                pick = rng.random()
                parts.append(
                    nn.BatchNorm1d(int(n)) if pick < 0.3 else kinds[rng.integers(len(kinds))]()
                )
        model = drawn(nn.Sequential(*parts))
        bound = network_bound(model, time_limit=0.2)
        assert steepest(model, (int(sizes[0]),), count=6) <= bound * (1 + 1e-12)
        assert bound <= network_bound(model, method="product")


def test_features_are_known_to_be_the_last_axis_where_something_says_so() -> None:
    """A batch norm behind (N, C, L) normalises C, and a Linear mixes L."""
    model = drawn(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 0.1, 0.1])))
        model[1].weight.copy_(torch.tensor([0.1, 1.0, -5.0]) * torch.sqrt(model[1].running_var))
        model[2].weight.copy_(model[0].weight)
    unknown, known = network_bound(model), network_bound(model, input_shape=(3,))
    assert known < unknown
    assert steepest(model, (3,)) <= known
    assert known < steepest(model, (3, 3)) <= unknown  # with another axis, it is another function
    assert network_bound(model, input_shape=(3, 3)) == unknown


def test_flattening_joins_only_what_has_no_other_axes() -> None:
    parts = [nn.Linear(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)]
    model = nn.Sequential(*parts)
    assert network_bound(model) == network_bound(model, method="product")
    assert network_bound(model, input_shape=(4,)) < 0.99 * network_bound(model)


class Doubled(nn.ReLU):
    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


class Called(nn.Linear):
    def __call__(self, x: Any) -> Any:
        return 3 * super().__call__(x)


class Twice(nn.Sequential):
    def forward(self, x: Any) -> Any:
        return super().forward(super().forward(x))


class Backwards(nn.Sequential):
    def __iter__(self) -> Any:
        return reversed(list(super().__iter__()))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Any) -> Any:
        return x + self.inner(x)


def with_forward() -> nn.Module:
    layer = nn.ReLU()
    layer.forward = lambda x: 2 * x
    return layer


def hooked() -> nn.Module:
    layer = nn.ReLU()
    layer.register_forward_hook(lambda _m, _x, y: 2 * y)
    return layer


def hooked_before() -> nn.Module:
    layer = nn.Sequential(nn.ReLU())
    layer.register_forward_pre_hook(lambda _m, x: tuple(2 * v for v in x))
    return layer


def pruned() -> nn.Module:
    layer = nn.Linear(3, 3)
    prune.random_unstructured(layer, "weight", amount=0.5)
    return layer


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "subclass of an activation": (Doubled, "'0' .Doubled. has a forward of its own"),
    "subclass that is called otherwise": (lambda: Called(3, 3), "'0' .Called."),
    "subclass of Sequential": (lambda: Twice(nn.Linear(3, 3)), "'0' .Twice. has a forward"),
    "another order": (lambda: Backwards(nn.Linear(3, 3), nn.Linear(3, 3)), "'0' .Backwards."),
    "shortcut": (Residual, "'0' .Residual. has a forward of its own.*onnx"),
    "replaced forward": (with_forward, "'0' .ReLU."),
    "hook": (hooked, "'0' .ReLU. has forward hooks"),
    "hook before": (hooked_before, "'0' .Sequential. has forward hooks"),
    "pruned": (pruned, "'0' .Linear. has forward hooks.*permanent"),
    "attention": (lambda: nn.MultiheadAttention(4, 2), "'0' .MultiheadAttention. is none of"),
    "layer norm": (lambda: nn.LayerNorm(3), "'0' .LayerNorm. is none of the modules"),
    "list": (lambda: nn.ModuleList([nn.Linear(3, 3)]), "'0' .ModuleList."),
    "log softmax": (lambda: nn.LogSoftmax(-1), "'0' .LogSoftmax."),
    "not there yet": (lambda: nn.LazyLinear(3), "'0' .LazyLinear. has no weight yet"),
    "complex": (
        lambda: nn.Linear(3, 3, dtype=torch.complex64),
        "'0' .Linear.: its weight is complex",
    ),
    "no statistics": (
        lambda: nn.BatchNorm1d(3, track_running_stats=False).eval(),
        "'0' .BatchNorm1d.: it keeps no running statistics",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_do_something_else_is_refused_by_name(name: str) -> None:
    make, text = REFUSED[name]
    with pytest.raises(TypeError, match=text):
        network_bound(nn.Sequential(make(), nn.Linear(3, 3)).eval())


def test_hooks_of_all_modules_are_seen() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda _m, _x, y: 2 * y)
    try:
        with pytest.raises(TypeError, match="forward hooks"):
            network_bound(nn.Linear(3, 3))
    finally:
        handle.remove()
    assert network_bound(nn.Linear(3, 3)) > 0


def test_a_compiled_model_is_refused_and_what_it_was_made_of_is_not() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with pytest.raises(TypeError, match="OptimizedModule"):
        network_bound(torch.compile(model, backend="eager"))
    model.compile(backend="eager")  # in place: the same function
    assert network_bound(model) > 0


WRONG: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "jump": (nn.Hardshrink, "'0' .Hardshrink.: it jumps"),
    "jump by value": (lambda: nn.Threshold(0.5, 0.0), "'0' .Threshold.: it jumps from 0.0 to 0.5"),
    "jump by threshold": (lambda: nn.Softplus(threshold=1.0), "'0' .Softplus.: it jumps"),
    "negative celu": (lambda: nn.CELU(-1.0), "'0' .CELU.: alpha must be positive"),
    "reflection": (lambda: nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"), "'reflect' has no bound"),
    "circle": (lambda: nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), "'circular' has no bound"),
    "average of the rest": (
        lambda: nn.AvgPool1d(3, padding=1, count_include_pad=False), "'0' .AvgPool1d.: windows at its ends"),
    "average cut off": (lambda: nn.AvgPool1d(3, ceil_mode=True), "ceil_mode"),
    "indices": (lambda: nn.MaxPool1d(3, return_indices=True), "returns indices"),
    "adaptive": (lambda: nn.AdaptiveAvgPool1d(3), "windows depend on the size"),
    "no variance": (lambda: nn.BatchNorm1d(3, eps=-1.0).eval(), "not positive"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_has_no_constant_is_refused_by_name(name: str) -> None:
    make, text = WRONG[name]
    with pytest.raises(ValueError, match=text):
        network_bound(nn.Sequential(make()).eval())


DEPENDING: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.2),
    "batch norm": lambda: nn.BatchNorm1d(3),
    "drawn slopes": nn.RReLU,
    "power iteration": lambda: parametrizations.spectral_norm(nn.Linear(3, 3)),
}


@pytest.mark.parametrize("name", DEPENDING)
def test_training_mode_is_refused_where_it_matters(name: str) -> None:
    make = DEPENDING[name]
    model = nn.Sequential(nn.Linear(3, 3), make())
    with pytest.raises(ValueError, match=r"'1' .* is in training mode.*model.eval\(\)"):
        network_bound(model)
    assert network_bound(model.eval()) > 0


def test_training_mode_is_no_matter_where_it_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0), nn.ReLU())
    assert network_bound(model) == network_bound(model.eval())
    assert network_bound(nn.Sequential(nn.Linear(3, 3)).train()) > 0


def test_a_layer_that_is_shared_counts_at_every_use() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer)
    single = network_bound(layer)
    assert network_bound(model, method="product") == pytest.approx(single**3, rel=1e-12)
    weight = layer.weight.detach()
    assert network_bound(model) == gn.chain_bound([weight] * 3)
    assert steepest(model, (4,)) <= network_bound(model)


def test_parametrized_weights_are_read_as_they_are_returned() -> None:
    layers = [nn.Linear(5, 5), nn.Linear(5, 5)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=3)
    parametrize.register_parametrization(layers[0], "weight", SpectralBound(layers[0], bound=0.5))
    layers[1] = parametrizations.weight_norm(layers[1])
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1]).eval()
    norm = torch.linalg.matrix_norm(layers[1].weight.detach().double(), ord=2).item()
    assert steepest(model, (5,)) <= network_bound(model) <= 0.5 * norm * (1 + 1e-6)


def test_weights_that_change_at_every_call_are_refused() -> None:
    class Noise(nn.Module):
        def forward(self, x: Any) -> Any:
            return x + torch.randn_like(x)

    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Noise())
    with pytest.raises(ValueError, match="another at every call"):
        network_bound(layer.eval())


def test_special_weights_show_in_the_bound() -> None:
    for value, check in ((math.nan, math.isnan), (math.inf, math.isinf)):
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        with torch.no_grad():
            model[2].weight[0, 0] = value
        assert check(network_bound(model))
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)).eval()
    model[1].running_var[0] = math.nan
    assert math.isnan(network_bound(model))


def test_the_model_is_left_as_it_was() -> None:
    model = drawn(MODELS["convolutions"][0]())
    before = copy.deepcopy(model.state_dict())
    network_bound(model, time_limit=0.1)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"method": "lip"}, ValueError, "method must be 'sdp' or 'product'"),
        ({"time_limit": 0.0}, ValueError, "time_limit"),
        ({"input_shape": (0,)}, ValueError, "input_shape"),
    ],
)
def test_wrong_arguments_are_explained(keywords: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        network_bound(nn.Linear(2, 2), **keywords)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        network_bound(nn.Linear(2, 2).state_dict())


def test_a_whitelist_that_lets_the_absolute_value_in_would_be_found(monkeypatch: Any) -> None:
    """With slopes of both signs in a chain, a Jacobian exceeds the bound."""
    model = nn.Sequential(
        nn.Linear(1, 2, bias=False), nn.LeakyReLU(-1.0), nn.Linear(2, 1, bias=False)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[2].weight.fill_(1.0)
    assert steepest(model, (1,)) == pytest.approx(2)
    assert network_bound(model) >= 2
    monkeypatch.setattr(_slopes, "in_chain", _slopes.lipschitz)
    assert network_bound(model) < 1.9


def test_layers_are_linked_with_their_own_geometry() -> None:
    conv = nn.ConvTranspose2d(4, 6, (2, 3), groups=2, dilation=(1, 2), padding=1)
    part = _modules._read("", conv, None).part
    assert isinstance(part, Weighted)
    assert part.channels == (6, 4)
    assert part.can_be_linked()
    assert _modules._read("", nn.Conv1d(2, 2, 3, stride=2), None).part.can_be_linked()
    assert not _modules._read("", nn.ConvTranspose1d(2, 2, 3, stride=2), None).part.can_be_linked()


def test_random_convolutional_models_never_exceed_their_bound() -> None:
    rng = np.random.default_rng(1)
    shorter = 0
    for _ in range(12):
        c, parts, size, channels = 1, list[nn.Module](), 8, 1
        for _ in range(int(rng.integers(1, 4))):
            c, channels = channels, int(rng.integers(1, 4))
            stride = int(rng.integers(1, 3))
            parts += [nn.Conv1d(c, channels, 3, stride=stride, padding=1)]
            size = (size - 1) // stride + 1
            parts += [nn.BatchNorm1d(channels)] * bool(rng.random() < 0.3)
            parts += [list(ACTIVATIONS.values())[rng.integers(2, 19)]()]
            pool = [nn.MaxPool1d(2, 1), nn.AvgPool1d(2, 1), nn.MaxPool1d(1), nn.AvgPool1d(3, 1, 1)]
            if size > 1 and rng.random() < 0.6:
                which = int(rng.integers(4))
                parts += [pool[which]]
                size -= which < 2
        parts += [nn.Flatten(), nn.Linear(channels * size, 3), nn.Tanh(), nn.Linear(3, 2)]
        model = drawn(nn.Sequential(*parts))
        bound = network_bound(model, input_shape=(1, 8), time_limit=0.3)
        product = network_bound(model, method="product")
        assert steepest(model, (1, 8), count=9) <= bound * (1 + 1e-12)
        assert bound <= product
        shorter += bound < 0.9 * product
    assert shorter >= 8


def test_a_shape_that_the_model_does_not_take_is_explained() -> None:
    with pytest.raises(
        ValueError, match=r"input_shape is none that the layer '0' \(Linear\) takes"
    ):
        network_bound(nn.Sequential(nn.Linear(3, 2)), input_shape=(4,))
