"""Gradients: exact for fixed steps, of the norm for certified bounds, the same in every library."""

import functools
import math
import warnings

import numpy as np
import pytest

import gramnorm as gn
from tests.harness import oracles
from tests.harness.convolutions import stored_dtype


def some(shape, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return (x + 1j * rng.standard_normal(shape) if "complex" in dtype else x).astype(dtype)


def pairing(g, e, axes=None):
    """Return Re tr G^H E."""
    return np.sum((np.conj(g) * e).real, axis=axes)


def slope(f, a, e, h=1e-5):
    return (f(a + h * e) - f(a - h * e)) / (2 * h)


def value_and_grad(be, function, a, *args, **options):
    value, gradient = function(be.asarray(a), *args, **options)
    assert be.is_at_home(value)
    assert be.is_at_home(gradient)
    return be.to_numpy(value), be.to_numpy(gradient)


def tolerance(be):
    return 1e-6 if be.has_float64 else 2e-3


MATRICES = [
    ((4, 3), "float64"),
    ((3, 4), "complex128"),
    ((2, 3, 3), "float64"),
    ((2, 2, 5, 1), "complex128"),
]


@pytest.mark.parametrize(("shape", "dtype"), MATRICES)
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_fixed_steps_agree_with_central_differences(be, shape, dtype, steps):
    if be.id.startswith("jax") and steps > 1:
        pytest.skip("a compilation per shape")
    a, e = some(shape, stored_dtype(be, dtype)), some(shape, dtype, 1)
    value, gradient = value_and_grad(be, gn.matrix_norm_value_and_grad, a, steps=steps)
    expected = slope(lambda x: gn.gram_iteration(x, steps=steps), a.astype(dtype), e)
    assert gradient.dtype == a.dtype
    assert np.abs(pairing(gradient, e, (-2, -1)) - expected).max() < tolerance(be)
    assert np.abs(value - gn.gram_iteration(a.astype(dtype), steps=steps)).max() < tolerance(be)


@pytest.mark.parametrize(("shape", "dtype"), [*MATRICES, ((250, 210), "float64")])
def test_the_certified_gradient_is_that_of_the_norm(be, shape, dtype):
    if be.id.startswith(("jax", "strict")) and max(shape) > 100:
        pytest.skip("large matrices are for the faster backends")
    a = some(shape, stored_dtype(be, dtype))
    value, gradient = value_and_grad(be, gn.matrix_norm_value_and_grad, a)
    u, s, vh = np.linalg.svd(a.astype(dtype), full_matrices=False)
    assert np.abs(gradient - u[..., :, :1] @ vh[..., :1, :]).max() < tolerance(be)
    assert np.all(value >= s[..., 0] * (1 - 1e-7))
    # nuclear norm one, and the value by Euler's theorem
    assert np.abs(pairing(gradient, a, (-2, -1)) / value - 1).max() < 2e-4


def test_equal_singular_values_share_the_gradient(be):
    q = np.linalg.qr(some((6, 6)))[0]
    cases = {
        "orthogonal": (q, q / 6),
        "pair": (q @ np.diag([2, 2, 1, 0, 0, 0.5]), q @ np.diag([0.5, 0.5, 0, 0, 0, 0])),
    }
    for a, expected in cases.values():
        _, gradient = value_and_grad(be, gn.matrix_norm_value_and_grad, a)
        assert np.abs(gradient - expected).max() < (1e-6 if be.has_float64 else 1e-3)


def test_equal_singular_values_of_a_large_matrix_share_the_gradient():
    q = np.linalg.qr(some((260, 260)))[0]
    assert np.abs(gn.matrix_norm_value_and_grad(q)[1] - q / 260).max() < 1e-9
    spectrum = np.r_[3.0, 3.0, 3.0, np.linspace(1, 2, 257)]
    a = q @ np.diag(spectrum)
    assert np.abs(gn.matrix_norm_value_and_grad(a)[1] - q[:, :3] @ np.eye(260)[:3] / 3).max() < 1e-6


@pytest.mark.parametrize("steps", [None, 3])
def test_special_values(be, steps):
    if be.id.startswith("jax") and steps:
        pytest.skip("a compilation per shape")
    a = np.zeros((4, 2, 3))
    a[1], a[2, 0, 0], a[3, 0, 1] = some((2, 3)), np.nan, np.inf
    with np.errstate(all="ignore"):
        value, gradient = value_and_grad(be, gn.matrix_norm_value_and_grad, a, steps=steps)
    assert value[0] == 0
    assert np.all(gradient[0] == 0)
    assert np.all(np.isfinite(gradient[1]))
    assert np.isnan(gradient[2:]).all()
    for scale in (1e-300, 1e300) if be.has_float64 else (1e-30, 1e30):
        _, scaled = value_and_grad(be, gn.matrix_norm_value_and_grad, a[1] * scale, steps=steps)
        assert np.abs(scaled - gradient[1]).max() < 1e-5
    _, empty = value_and_grad(be, gn.matrix_norm_value_and_grad, np.zeros((0, 3)), steps=steps)
    assert empty.shape == (0, 3)


def test_integers_have_gradients_of_the_default_type(be):
    value, gradient = value_and_grad(
        be, gn.matrix_norm_value_and_grad, np.asarray([[3, 0], [0, 4]], "int32")
    )
    assert gradient.dtype == value.dtype
    assert np.abs(gradient - [[0, 0], [0, 1]]).max() < 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 2), (3, 9), (16, 16), (70, 64)])
@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 2.0**-60, 2.0**60])
def test_one_matrix_has_the_gradient_that_it_has_in_a_stack(dtype, shape, scale):
    a = some(shape, dtype) * np.asarray(scale, dtype=np.empty(0, dtype).real.dtype)
    _, one = gn.matrix_norm_value_and_grad(a)
    _, many = gn.matrix_norm_value_and_grad(np.stack([a, some(shape, dtype, 1)]))
    assert one.dtype == a.dtype
    assert np.abs(one - many[0]).max() < 1e-4


# ------------------------------------------------------------------------------ convolutions


def norm_of(options):
    if "input_shape" in options:
        rest = {k: v for k, v in options.items() if k != "input_shape"}
        return lambda k: np.linalg.norm(oracles.conv_matrix(k, options["input_shape"], **rest), 2)
    rest = {k: v for k, v in options.items() if k in ("groups", "stride", "dilation")}
    return lambda k: oracles.sup_reference(k, **rest)[0]


CONVOLUTIONS = {
    "every size": {},
    "strided": {"stride": (2, 3), "dilation": (2, 1)},
    "circular": {"input_shape": (6, 5), "padding_mode": "circular", "dilation": 2},
    "strided circle": {"input_shape": (6, 4), "padding_mode": "circular", "stride": 2},
    "zeros": {"input_shape": (5, 4)},
    "strided zeros": {"input_shape": (5, 4), "stride": 2, "padding": ((1, 0), (2, 1))},
    "reflect": {"input_shape": (5, 4), "padding_mode": "reflect"},
    "uneven circle": {"input_shape": (5, 3), "padding_mode": "circular", "stride": 2},
    "transposed": {"input_shape": (3, 4), "transposed": True, "stride": 2, "padding": 1},
    "groups": {"groups": 3, "input_shape": (4, 4)},
    "groups of every size": {"groups": 3},
}


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_gradient_of_a_convolution_is_that_of_its_norm(be, name, dtype):
    if be.id not in ("numpy", "torch", "strict-device1", "strict-float32"):
        pytest.skip("computed on the host alike")
    options = CONVOLUTIONS[name]
    kernel, e = some((3, 2, 3, 2), stored_dtype(be, dtype)), some((3, 2, 3, 2), dtype, 1)
    value, gradient = value_and_grad(be, gn.conv_norm_value_and_grad, kernel, **options)
    f = norm_of(options)
    assert gradient.dtype == kernel.dtype
    assert abs(pairing(gradient, e) - slope(f, kernel.astype(dtype), e)) < max(tolerance(be), 2e-5)
    assert f(kernel) * (1 - 1e-6) <= value <= f(kernel) * 1.001


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": (2, 1)}, {"groups": 2}])
def test_the_fixed_step_gradient_of_a_convolution_is_exact(be, options):
    if be.id.startswith("jax"):
        pytest.skip("a compilation per shape")
    for dtype in ("float64", "complex128"):
        kernel, e = some((4, 2, 3, 2), stored_dtype(be, dtype)), some((4, 2, 3, 2), dtype, 1)
        for steps in (0, 3):
            value, gradient = value_and_grad(
                be, gn.conv_norm_value_and_grad, kernel, (6, 4), padding_mode="circular", steps=steps, **options
            )  # fmt: skip

            def f(k, steps=steps):
                return float(gn.conv_gram_iteration(k, (6, 4), steps=steps, **options))

            wide = kernel.astype(dtype)
            assert abs(pairing(gradient, e) - slope(f, wide, e)) < tolerance(be) * 10
            assert abs(float(value) - f(wide)) < tolerance(be) * 10


def test_zero_and_broken_kernels(be):
    for fill, expected in ((0.0, 0.0), (math.nan, math.nan), (math.inf, math.nan)):
        kernel = np.full((2, 2, 3), fill)
        for options in (
            {},
            {"input_shape": (4,)},
            {"input_shape": (4,), "padding_mode": "circular", "steps": 2},
        ):
            if be.id.startswith("jax") and "steps" in options:
                continue
            with np.errstate(all="ignore"):
                _, gradient = value_and_grad(be, gn.conv_norm_value_and_grad, kernel, **options)
            assert gradient.shape == kernel.shape
            np.testing.assert_array_equal(gradient, np.full(kernel.shape, expected))


def test_a_tap_outside_the_support_has_a_gradient():
    """The kernel [0, 1, 2, 0] can grow into its zeros."""
    kernel, e = np.asarray([[[0.0, 1.0, 2.0, 0.0]]]), some((1, 1, 4), seed=1)
    for options in ({}, {"input_shape": (6,)}, {"input_shape": (6,), "padding_mode": "circular"}):
        _, gradient = gn.conv_norm_value_and_grad(kernel, **options)
        assert abs(pairing(gradient, e) - slope(norm_of(options), kernel, e)) < 1e-5


def test_fixed_steps_need_a_circle():
    for options in (
        {"input_shape": 4},
        {"padding_mode": "circular"},
        {"input_shape": 5, "padding_mode": "circular", "stride": 2},
    ):
        with pytest.raises(
            ValueError, match=r"steps needs|input_shape must be given|stride must divide"
        ):
            gn.conv_norm_value_and_grad(np.ones((1, 1, 2)), steps=2, **options)


# ---------------------------------------------------------------------- automatic differentiation


def torch_gradient(f, a):
    torch = pytest.importorskip("torch")
    x = torch.tensor(a, requires_grad=True)
    f(x).sum().backward()
    return x.grad.numpy()


def test_torch_finds_the_same_gradients():
    for dtype in ("float64", "complex128", "float32"):
        a = some((2, 4, 3), dtype)
        found = torch_gradient(gn.matrix_norm_bound, a)
        np.testing.assert_allclose(found, gn.matrix_norm_value_and_grad(a)[1], atol=1e-5)
        kernel = some((3, 2, 3, 2), dtype)
        for options in ({}, {"input_shape": (5, 4), "stride": 2}):
            found = torch_gradient(lambda k, o=options: gn.conv_norm_bound(k, **o), kernel)
            np.testing.assert_allclose(
                found, gn.conv_norm_value_and_grad(kernel, **options)[1], atol=1e-5
            )
    bracket = gn.matrix_norm_bracket(pytest.importorskip("torch").ones(2, 2, requires_grad=True))
    assert bracket.lower.requires_grad
    assert bracket.upper.requires_grad


def test_torch_checks_the_gradients():
    torch = pytest.importorskip("torch")
    a = torch.tensor(some((3, 4)), requires_grad=True)
    kernel = torch.tensor(some((2, 2, 3)), requires_grad=True)
    tight = {"eps": 1e-4, "atol": 1e-5}
    assert torch.autograd.gradcheck(lambda x: gn.gram_iteration(x, steps=3), a)
    assert torch.autograd.gradcheck(lambda x: gn.conv_gram_iteration(x, 6, steps=3), kernel)
    assert torch.autograd.gradcheck(lambda x: gn.matrix_norm_bound(x, rtol=1e-11), a, **tight)
    assert torch.autograd.gradcheck(
        lambda x: gn.conv_norm_bound(x, 6, padding_mode="circular", rtol=1e-11), kernel, **tight
    )
    assert torch.autograd.gradcheck(lambda x: gn.conv_norm_bound(x, 6, rtol=1e-11), kernel, **tight)


def test_second_derivatives_are_refused_and_not_zero():
    torch = pytest.importorskip("torch")
    x = torch.tensor(some((3, 3)), requires_grad=True)
    for power in (1, 2):
        (first,) = torch.autograd.grad(gn.matrix_norm_bound(x) ** power, x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
            first.sum().backward()


def test_torch_transforms_the_fixed_step_functions():
    torch = pytest.importorskip("torch")
    a = torch.tensor(some((3, 4, 4)))
    each = torch.func.vmap(lambda x: gn.gram_iteration(x, steps=3))(a)
    assert torch.allclose(each, gn.gram_iteration(a, steps=3))
    both = torch.func.vmap(torch.func.grad(lambda x: gn.gram_iteration(x, steps=3)))(a)
    np.testing.assert_allclose(
        both.numpy(), gn.matrix_norm_value_and_grad(a.numpy(), steps=3)[1], atol=1e-12
    )


COMPILED = {
    "gram_iteration": (lambda x: gn.gram_iteration(x, steps=3), (3, 4)),
    "conv_gram_iteration": (lambda k: gn.conv_gram_iteration(k, (5, 6), steps=2), (3, 2, 3, 3)),
    "strides": (lambda k: gn.conv_gram_iteration(k, 6, steps=2, stride=2, groups=2), (4, 2, 3)),
    "spectral_rescaling": (lambda x: gn.spectral_rescaling(x, steps=2), (3, 4)),
    "conv_spectral_rescaling": (lambda k: gn.conv_spectral_rescaling(k, steps=2), (3, 2, 3, 3)),
}


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("name", COMPILED)
def test_torch_compiles_fixed_steps_into_one_graph(name, dtype):
    torch = pytest.importorskip("torch")
    function, shape = COMPILED[name]
    x = torch.tensor(some(shape, dtype), requires_grad=True)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # aot_eager: all that PyTorch's own backend does but for its kernels, and in seconds
        value = torch.compile(function, backend="aot_eager", fullgraph=True)(x)
    eager = function(x)
    assert torch.allclose(value, eager, rtol=1e-5)
    (found,) = torch.autograd.grad(value.real.sum(), x)
    (expected,) = torch.autograd.grad(eager.real.sum(), x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)

    class Model(torch.nn.Module):
        def forward(self, x):
            return function(x)

    exported = torch.export.export(Model(), (x.detach(),))
    assert torch.allclose(exported.module()(x.detach()), eager.detach(), rtol=1e-5)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (gn.gram_iteration, (1, 5)),
        (gn.gram_iteration, (2, 5, 1)),
        (gn.gram_iteration, (1, 1)),
        (gn.spectral_rescaling, (1, 5)),
        (gn.spectral_rescaling, (1, 1)),
    ],
)
def test_programs_of_a_vector_do_not_grow_with_the_steps(function, shape):
    # PyTorch's own backend writes out a number as often as it is used: 82 s for five steps
    torch = pytest.importorskip("torch")
    from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415 - optional

    x = torch.tensor(some(shape, "float32"))
    programs = [make_fx(functools.partial(function, steps=n))(x) for n in (1, 2, 9)]
    sizes = {len(program.graph.nodes) for program in programs}
    assert len(sizes) == 1
    for program, steps in zip(programs, (1, 2, 9), strict=True):
        assert torch.equal(program(x), function(x, steps=steps))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which PyTorch hides, or so it means to
def test_torch_leaves_its_graph_for_a_search():
    torch = pytest.importorskip("torch")
    x = torch.tensor(some((3, 4)), requires_grad=True)
    kernel = torch.tensor(some((3, 2, 3)))
    torch.compiler.reset()
    norm = torch.compile(lambda a: 3 * gn.matrix_norm_bound(2 * a), backend="eager")
    value = norm(x)
    conv = torch.compile(lambda k: 3 * gn.conv_norm_bracket(2 * k).upper, backend="eager")
    listed = torch.compile(lambda k: 2 * gn.classical.aol_upper_bound(k), backend="eager")
    assert torch.equal(conv(kernel), 3 * gn.conv_norm_bracket(2 * kernel).upper)
    assert torch.equal(listed(kernel), 2 * gn.classical.aol_upper_bound(kernel))
    assert torch.equal(value, 3 * gn.matrix_norm_bound(2 * x))
    (found,) = torch.autograd.grad(value, x)
    assert torch.allclose(found, 6 * torch.autograd.grad(gn.matrix_norm_bound(x), x)[0])


SEARCHES = {
    name: method.function
    for name, method in gn.classical.METHODS.items()
    if method.operator == "every size"
} | {function.__name__: function for function in (gn.conv_norm_bound, gn.matrix_norm_bound)}


@pytest.mark.parametrize("inside", [False, True])
def test_torch_takes_no_search_for_another(inside):
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    kernel = torch.tensor(some((3, 2, 3)))
    compiled = {
        name: torch.compile((lambda k, f=f: 2 * f(k)) if inside else f, backend="eager")
        for name, f in SEARCHES.items()
    }
    for name, search in SEARCHES.items():
        found = compiled[name](kernel)
        assert torch.equal(found, (1 + inside) * search(kernel)), name


COMPOSED = {
    "chain": lambda a, b: gn.chain_bound([2 * a, b]),
    "certificate": lambda a, b: gn.chain_certificate([2 * a, b], [b[0] ** 2]),
    "product": lambda a, b: gn.product_bound(gn.matrix_norm_bound(2 * a), gn.matrix_norm_bound(b)),
    "sum": lambda a, b: gn.sum_bound(gn.matrix_norm_bound(2 * a), gn.matrix_norm_bound(b)),
    "residual": lambda a, _: gn.residual_bound(gn.matrix_norm_bound(2 * a)),
    "blocks": lambda a, b: gn.block_norm_bound(a @ b * (a @ b)),
    "graph": lambda a, _: gn.network_bound({"chain": ["a", "a"]}, {"a": gn.matrix_norm_bound(a)}),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_torch_leaves_its_graph_for_what_looks_at_norms(name):
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    a, b = torch.tensor(some((3, 2))), torch.tensor(some((2, 3)))
    compiled = torch.compile(lambda a, b: 2 * COMPOSED[name](a, b), backend="eager")
    assert compiled(a, b) == 2 * COMPOSED[name](a, b)


def test_jax_finds_the_same_gradients():
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        a, kernel = some((4, 3), "complex128"), some((2, 2, 3))
        found = jax.grad(gn.matrix_norm_bound)(jax.numpy.asarray(a))
        np.testing.assert_allclose(np.conj(found), gn.matrix_norm_value_and_grad(a)[1], atol=1e-8)
        found = jax.grad(lambda k: gn.conv_norm_bound(k, stride=2) ** 2)(jax.numpy.asarray(kernel))
        value, gradient = gn.conv_norm_value_and_grad(kernel, stride=2)
        np.testing.assert_allclose(found, 2 * value * gradient, atol=1e-8)
        fixed = jax.jit(jax.grad(lambda k: gn.conv_gram_iteration(k, 6, steps=2)))(
            jax.numpy.asarray(kernel)
        )
        expected = gn.conv_norm_value_and_grad(kernel, 6, padding_mode="circular", steps=2)[1]
        np.testing.assert_allclose(fixed, expected, atol=1e-8)
        with pytest.raises(TypeError, match="call this function eagerly"):
            jax.jit(jax.grad(gn.matrix_norm_bound))(jax.numpy.asarray(a.real))
