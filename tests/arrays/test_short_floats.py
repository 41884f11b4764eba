"""float16 and bfloat16: numbers about them are float32 and converge, what belongs to them keeps their type."""

from functools import partial

import numpy as np
import pytest

import gramnorm as gn
from gramnorm import classical
from tests.harness import oracles

KINDS = ("float16", "bfloat16")


def short(be, kind, host):
    """Return an array of the short type in the library, and the numbers that it holds."""
    if not hasattr(be.xp, kind):
        pytest.skip(f"{be.id} has no {kind}")
    x = be.xp.astype(be.asarray(np.asarray(host, dtype="float32")), getattr(be.xp, kind))
    return x, be.to_numpy(x).astype("float64")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


CONVOLUTIONS = {
    "every size": {},
    "strided": {"stride": 2},
    "circular": {"input_shape": 8, "padding_mode": "circular"},
    "zeros": {"input_shape": 9, "stride": 2},
    "replicate": {"input_shape": 9, "padding_mode": "replicate"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(6, 5), (40, 50), (3, 20, 12), (230, 200)])
def test_matrices_converge_at_the_default_gap(be, kind, shape):
    x, host = short(be, kind, normal(*shape))
    norms = np.linalg.svd(host, compute_uv=False)[..., 0]
    bracket = gn.matrix_norm_bracket(x)
    assert bracket.lower.dtype == bracket.upper.dtype == be.xp.float32
    lower, upper = (be.to_numpy(v).astype("float64") for v in (bracket.lower, bracket.upper))
    assert np.all(lower <= norms * (1 + 1e-13))
    assert np.all(norms * (1 - 1e-13) <= upper)
    if be.has_float64 or max(shape) < 200:  # products of float32 alone leave a wider gap there
        assert np.all(upper - lower <= 1e-4 * lower)
        assert np.all(be.to_numpy(bracket.converged))
    bound = gn.matrix_norm_bound(x)
    assert bound.dtype == be.xp.float32
    assert np.array_equal(be.to_numpy(bound), be.to_numpy(bracket.upper))
    value = gn.gram_iteration(x, steps=12)
    assert value.dtype == be.xp.float32
    assert be.to_numpy(value) == pytest.approx(norms, rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gap_beyond_the_short_type_is_reached(be, kind):
    x, _ = short(be, kind, normal(12, 9))
    rtol = 2e-6 if be.has_float64 else 1e-5
    assert bool(be.to_numpy(gn.matrix_norm_bracket(x, rtol=rtol).converged))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_converge_at_the_default_gap(be, kind, name):
    x, host = short(be, kind, normal(3, 2, 3))
    options = CONVOLUTIONS[name]
    bracket = gn.conv_norm_bracket(x, **options)
    exact = gn.conv_norm_bracket(host, **options, rtol=1e-9)
    assert bracket.upper.dtype == be.xp.float32
    assert bool(be.to_numpy(bracket.converged))
    assert float(be.to_numpy(bracket.lower)) <= exact.upper
    assert float(be.to_numpy(bracket.upper)) >= exact.lower
    assert gn.conv_norm_bound(x, **options).dtype == be.xp.float32
    if "input_shape" in options:
        given = {k: v for k, v in options.items() if k != "input_shape"}
        found = oracles.check_conv(
            host, (options["input_shape"],), *(float(be.to_numpy(v)) for v in (bracket.lower, bracket.upper)), **given
        )  # fmt: skip
        assert not found.upper_violated
        assert not found.lower_violated


@pytest.mark.parametrize("kind", KINDS)
def test_filters_and_fixed_steps_of_convolutions(be, kind):
    x, host = short(be, kind, normal(5, 3, 2))
    bracket = gn.fir_norm(x)
    assert bracket.upper.dtype == bracket.frequency.dtype == be.xp.float32
    assert bool(be.to_numpy(bracket.converged))
    kernel = be.xp.permute_dims(x, (1, 2, 0))
    value = gn.conv_gram_iteration(kernel, 8, steps=10)
    assert value.dtype == be.xp.float32
    exact = gn.conv_gram_iteration(np.moveaxis(host, 0, -1), 8, steps=10)
    assert float(be.to_numpy(value)) == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", classical.METHODS)
def test_methods_of_others(be, kind, name):
    x, host = short(be, kind, normal(2, 2, 3))
    function = classical.METHODS[name].function
    iterates = name in ("tensor_norm_estimate", "power_iteration_lower_bound")
    few = {"iterations": 5} if iterates else {}
    value = function(x, 4, **few)
    assert value.dtype == be.xp.float32
    assert float(be.to_numpy(value)) == pytest.approx(float(function(host, 4, **few)), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_single_and_gradients_as_short_as_the_weights(be, kind):
    x, host = short(be, kind, normal(6, 5))
    kernel, _ = short(be, kind, normal(2, 2, 3))
    for steps in (None, 3):
        value, gradient = gn.matrix_norm_value_and_grad(x, steps=steps)
        assert value.dtype == be.xp.float32
        assert gradient.dtype == x.dtype
        pairing = np.sum(be.to_numpy(gradient).astype("float64") * host)
        assert pairing == pytest.approx(float(be.to_numpy(value)), rel=2e-2)
        circle = {"input_shape": 4, "padding_mode": "circular"}
        value, gradient = gn.conv_norm_value_and_grad(kernel, steps=steps, **circle)
        assert value.dtype == be.xp.float32
        assert gradient.dtype == x.dtype


@pytest.mark.parametrize("kind", KINDS)
def test_rescaled_weights_stay_as_short_as_they_were(be, kind):
    x, _ = short(be, kind, normal(6, 5))
    kernel, _ = short(be, kind, normal(2, 2, 3))
    for weight in (
        gn.spectral_rescaling(x, steps=2),
        gn.conv_spectral_rescaling(kernel, steps=2),
    ):
        assert weight.dtype == x.dtype
        norm = gn.matrix_norm_bracket if weight.ndim == 2 else gn.conv_norm_bracket
        assert float(be.to_numpy(norm(weight).lower)) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_of_bounds_are_single(be, kind):
    x, host = short(be, kind, np.abs(normal(3)))
    assert gn.product_bound(x, 2.0).dtype == be.xp.float32
    assert gn.sum_bound(x, x).dtype == be.xp.float32
    assert gn.residual_bound(x).dtype == be.xp.float32
    assert gn.network_bound({"chain": ["a", "a"]}, {"a": x}).dtype == be.xp.float32
    product = be.to_numpy(gn.product_bound(x, x)).astype("float64")
    assert np.all(product >= host * host)
    assert np.all(product <= host * host * (1 + 2.0**-22))
    assert gn.block_norm_bound(x[:, None]).dtype == be.xp.float32


@pytest.mark.parametrize("dtype", ["int8", "int32", "bool"])
def test_integers_have_the_types_that_they_had(be, dtype):
    x = be.xp.asarray(np.asarray([[1, 0], [1, 1]]).astype(dtype), device=be.device)
    default = be.xp.asarray(1.0, device=be.device).dtype
    assert gn.matrix_norm_bound(x).dtype == default
    assert gn.gram_iteration(x, steps=1).dtype == default
    assert gn.conv_norm_bound(x[..., None]).dtype == default


# ----------------------------------------------------------------------- differentiation


def bounds_of(functions):
    """Return functions of one matrix of three axes, to differentiate."""
    return {
        "matrix bound": functions.matrix_norm_bound,
        "gram iteration": partial(functions.gram_iteration, steps=4),
        "conv bound": functions.conv_norm_bound,
        "conv of a size": partial(functions.conv_norm_bound, input_shape=5),
        "conv gram": lambda k: functions.conv_gram_iteration(k, 4, steps=4),
        "product": lambda k: functions.product_bound(
            functions.matrix_norm_bound(k), functions.conv_norm_bound(k)
        ),
        "of bounds": lambda k: functions.product_bound(abs(k[0, 0]), 3.0),
        "of blocks": lambda k: functions.block_norm_bound(abs(k[0])),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", bounds_of(gn))
def test_torch_differentiates_bounds_of_short_floats(kind, name):
    torch = pytest.importorskip("torch")
    host = normal(3, 2, 3).astype("float32")
    found = {}
    for dtype in (getattr(torch, kind), torch.float64):
        x = torch.tensor(host).to(getattr(torch, kind)).to(dtype).requires_grad_(True)
        value = bounds_of(gn)[name](x)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        value.sum().backward()
        assert x.grad.dtype == dtype
        found[dtype] = x.grad.double()
    short_one, exact = found.values()
    assert torch.allclose(short_one, exact, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("jit", [False, True])
def test_jax_differentiates_bounds_of_short_floats(kind, jit):
    jax = pytest.importorskip("jax")
    host = normal(3, 2, 3).astype("float32")
    x = jax.numpy.asarray(host).astype(kind)
    for name, function in bounds_of(gn).items():
        is_traced = name in ("gram iteration", "conv gram")
        if jit and not is_traced:
            continue
        total = lambda k, f=function: jax.numpy.sum(f(k))  # noqa: E731
        gradient = jax.grad(total)
        gradient = jax.jit(gradient) if jit else gradient
        result = gradient(x)
        assert result.dtype == x.dtype
        exact = gradient(x.astype("float32"))
        assert np.allclose(
            np.asarray(result, dtype="float64"), np.asarray(exact), atol=2e-2, rtol=2e-2
        )
        assert total(x).dtype == "float32"


@pytest.mark.parametrize("kind", KINDS)
def test_torch_sees_the_gradient_of_brackets_of_short_floats(kind):
    torch = pytest.importorskip("torch")
    x = torch.tensor(normal(3, 2, 3)).to(getattr(torch, kind)).requires_grad_(True)
    for bracket in (gn.matrix_norm_bracket(x), gn.conv_norm_bracket(x)):
        (slope,) = torch.autograd.grad(bracket.lower.sum() + bracket.upper.sum(), x)
        assert slope.dtype == x.dtype
        assert torch.all(torch.isfinite(slope))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_with_short_weights(kind):
    torch = pytest.importorskip("torch")
    from gramnorm.torch import SpectralBound, layer_norms, lipschitz_penalty  # noqa: PLC0415

    model = torch.nn.Sequential(
        torch.nn.Conv1d(2, 3, 3), torch.nn.BatchNorm1d(3), torch.nn.Flatten(), torch.nn.Linear(9, 2)
    ).to(getattr(torch, kind))
    for norm in layer_norms(model, input_shapes={"0": 5}).values():
        assert norm.dtype == torch.float32
    penalty = lipschitz_penalty(model)
    assert penalty.dtype == torch.float32
    penalty.backward()
    for layer in (model[0], model[3]):
        assert layer.weight.grad.dtype == layer.weight.dtype
        for method in ("divide", "rescale"):
            weight = SpectralBound(layer, bound=0.5, method=method)(layer.weight)
            assert weight.dtype == layer.weight.dtype
            bracket = (gn.matrix_norm_bracket if weight.ndim == 2 else gn.conv_norm_bracket)(
                weight.detach()
            )
            assert bracket.lower <= 0.5


def test_default_types_of_torch_do_not_shorten_results():
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    try:
        for kind in (torch.float16, torch.bfloat16, torch.float32):
            torch.set_default_dtype(kind)
            x = torch.tensor([[3, 4], [0, 5]])
            bracket = gn.matrix_norm_bracket(x)
            assert bracket.upper.dtype == torch.float32
            assert bracket.converged
            assert bracket.upper >= 6.7082039
            assert gn.spectral_rescaling(x, steps=2).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


def test_fixed_steps_are_not_shortened_by_autocast():
    torch = pytest.importorskip("torch")
    x = torch.tensor(normal(4, 20, 20), dtype=torch.float32)
    geometry = gn.ConvGeometry.of((4, 20, 20), 30)
    signal = torch.tensor(normal(20, 30), dtype=torch.float32)
    plain = gn.gram_iteration(x, steps=6), geometry.apply(x, signal)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gn.gram_iteration(x, steps=6), plain[0])
        assert torch.equal(geometry.apply(x, signal), plain[1])


# -------------------------------------------------------------------- norms known exactly


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("rtol", [None, 1e-12, 10.0])
def test_an_infinite_norm_is_known_and_nan_is_not(be, value, rtol):
    host = normal(2, 3, 3)
    host[0, 0, 1] = value
    known = not np.isnan(value)
    for bracket in (
        gn.matrix_norm_bracket(be.asarray(host), rtol=rtol),
        gn.conv_norm_bracket(be.asarray(host), rtol=rtol),
        gn.conv_norm_bracket(be.asarray(host), 4, rtol=rtol),
        gn.conv_norm_bracket(be.asarray(host), 4, padding_mode="circular", rtol=rtol),
        gn.fir_norm(be.asarray(host), rtol=rtol),
    ):
        lower, upper, converged = (
            be.to_numpy(x).reshape(-1)[0] for x in (bracket.lower, bracket.upper, bracket.converged)
        )
        assert bool(converged) is known
        assert lower == upper or not known
        assert np.isinf(upper) if known else (np.isnan(upper) and np.isnan(lower))


def test_an_infinite_sparse_matrix_is_known():
    sparse = pytest.importorskip("scipy.sparse")
    for value, known in ((np.inf, True), (np.nan, False)):
        bracket = gn.matrix_norm_bracket(sparse.csr_array(np.asarray([[1.0, value], [0.0, 2.0]])))
        assert bool(bracket.converged) is known
