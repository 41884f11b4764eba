"""The fixed-step functions: Schatten norms, never below the norm, gradients, compilers."""

import importlib
import itertools
import math

import mpmath
import numpy as np
import pytest

import gramnorm as gn
from gramnorm._conv import choose
from gramnorm._matrix import fixed_steps
from gramnorm._rigour import sums
from gramnorm._rigour.model import Precision
from tests.harness import oracles
from tests.harness.families import FAMILIES, KERNELS

STEPS = range(9)


def eps(be):
    return float(np.finfo("float64" if be.has_float64 else "float32").eps)


def margin(be, *sides):
    """Return the relative excess that the rounding of a few products of this size may cost."""
    return (24 + 12 * max(sides)) * eps(be)


def stored_dtype(be, dtype):
    narrow = {"float64": "float32", "complex128": "complex64"}
    return dtype if be.has_float64 else narrow.get(dtype, dtype)


def schatten(a, steps):
    """Return (sum sigma^P)^(1/P), P = 2^(steps + 1), in 60 digits from the stored entries."""
    with mpmath.workdps(60):
        # Of the smaller side: Gram matrices have nothing else in their trace.
        a = a if a.shape[0] >= a.shape[1] else a.T
        m = mpmath.matrix(a.tolist())
        gram = m.H * m
        for _ in range(steps):
            gram = gram * gram
        trace = sum(mpmath.re(gram[i, i]) for i in range(gram.rows))
        return mpmath.root(trace, 2 ** (steps + 1))


def value(be, x, steps):
    return be.to_numpy(gn.gram_iteration(x, steps=steps))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 1)])
def test_gram_iteration_is_the_schatten_norm(be, dtype, shape):
    a = FAMILIES["gaussian"](np.random.default_rng(0), *shape, stored_dtype(be, dtype))
    x = be.asarray(a)
    for steps in STEPS if shape != (1, 1) else (0, 8):
        exact = schatten(a, steps)
        assert oracles.sigma(a) <= value(be, x, steps)
        assert -margin(be, *shape) <= value(be, x, steps) / exact - 1 <= margin(be, *shape), steps


def test_gram_iteration_decreases_to_sigma_and_never_beyond(be):
    a = FAMILIES["gaussian"](np.random.default_rng(1), 6, 4, stored_dtype(be, "float64"))
    x = be.asarray(a)
    values = [float(value(be, x, steps)) for steps in STEPS]
    slack = 100 * eps(be)
    assert all(b <= v * (1 + slack) for v, b in itertools.pairwise(values))
    assert values[-1] >= oracles.sigma(a)
    assert values[0] == pytest.approx(np.linalg.norm(a), rel=slack)


def test_gram_iteration_takes_stacks(be):
    a = np.random.default_rng(2).standard_normal((2, 3, 4, 3)).astype(stored_dtype(be, "float64"))
    x = be.asarray(a)
    out = gn.gram_iteration(x, steps=5)
    assert out.shape == (2, 3)
    assert be.is_at_home(out)
    assert out.dtype == x.dtype
    for i in np.ndindex(2, 3):
        exact = schatten(a[i], 5)
        assert abs(be.to_numpy(out)[i] / exact - 1) <= margin(be, 4, 3)


@pytest.mark.parametrize("power", [-900, -300, 300, 900])
def test_gram_iteration_does_not_overflow_or_underflow(be, power):
    power = power if be.has_float64 else power // 10
    a = FAMILIES["gaussian"](np.random.default_rng(3), 4, 4, stored_dtype(be, "float64"))
    plain = value(be, be.asarray(a), 6)
    scaled = value(be, be.asarray((a * 2.0**power).astype(a.dtype)), 6)
    assert scaled == pytest.approx(float(plain) * 2.0**power, rel=50 * eps(be), abs=0)


def test_gram_iteration_of_zero_is_zero(be):
    for steps in (0, 1, 8):
        assert value(be, be.asarray(np.zeros((3, 2), stored_dtype(be, "float64"))), steps) == 0


def test_gram_iteration_of_an_orthogonal_matrix_halves_the_logarithm(be):
    a = np.eye(8, dtype=stored_dtype(be, "float64"))
    for steps in STEPS:
        exact = 8 ** (0.5 ** (steps + 1))
        assert value(be, be.asarray(a), steps) == pytest.approx(exact, rel=margin(be, 8))


def test_gram_iteration_hides_no_nan(be):
    a = np.ones((2, 3, 3), stored_dtype(be, "float64"))
    a[0, 1, 1] = np.nan
    with np.errstate(all="ignore"):
        out = value(be, be.asarray(a), 4)
    assert math.isnan(out[0])
    assert out[1] == pytest.approx(3.0, rel=margin(be, 3))


@pytest.mark.parametrize("steps", [-1, 1.5, "3", None])
def test_steps_must_be_a_whole_number(be, steps):
    with pytest.raises((TypeError, ValueError), match="steps"):
        gn.gram_iteration(be.asarray(np.ones((2, 2))), steps=steps)


# ----------------------------------------------------------------------------- convolutions


def conv_exact(kernel, shape, steps, dilation=1, groups=1):
    """Return the largest Schatten norm of the symbol over the discrete frequencies."""
    s = np.linalg.svd(
        oracles.symbol(kernel, oracles.grid(shape), dilation, groups), compute_uv=False
    )
    top = s.max(axis=-1, keepdims=True)
    p = 2 ** (steps + 1)
    ratio = s / np.where(top == 0, 1, top)
    return float((top[..., 0] * np.sum(ratio**p, axis=-1) ** (1 / p)).max())


@pytest.mark.parametrize(
    ("taps", "shape", "dilation", "groups"),
    [
        ((3,), (8,), 1, 1),
        ((5,), (4,), 1, 1),  # longer than the input: wraps
        ((3, 3), (6, 5), 1, 1),
        ((3, 2), (6, 6), (2, 3), 1),
        ((3, 3), (4, 7), 1, 2),
        ((2, 2, 2), (3, 4, 2), 1, 1),
        ((1, 1), (3, 3), 1, 1),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_conv_gram_iteration_is_the_maximum_over_the_grid(be, taps, shape, dilation, groups, dtype):
    if be.id.startswith("jax") and taps not in ((5,), (3, 2)):
        pytest.skip("a compilation per shape")
    rng = np.random.default_rng(4)
    parts = [KERNELS["noise"](rng, 3, 2, taps, stored_dtype(be, dtype)) for _ in range(groups)]
    kernel = np.concatenate(parts)
    for steps in (0, 1, 3, 6):
        out = gn.conv_gram_iteration(
            be.asarray(kernel), shape, steps=steps, dilation=dilation, groups=groups
        )
        assert out.shape == ()
        assert be.is_at_home(out)
        exact = conv_exact(kernel, shape, steps, dilation, groups)
        # blocks at frequencies carry the error of their phases as well
        assert conv_exact(kernel, shape, 20, dilation, groups) <= float(be.to_numpy(out))
        assert float(be.to_numpy(out)) == pytest.approx(exact, rel=600 * eps(be))


def test_conv_gram_iteration_of_zero_and_of_vanishing_frequencies(be):
    dtype = stored_dtype(be, "float64")
    zero = gn.conv_gram_iteration(be.asarray(np.zeros((2, 2, 3), dtype)), (5,), steps=4)
    assert float(be.to_numpy(zero)) == 0
    edge = gn.conv_gram_iteration(be.asarray(np.asarray([[[1, -1]]], dtype)), (6,), steps=4)
    assert 2.0 <= float(be.to_numpy(edge)) <= 2.0 * (1 + 200 * eps(be))


# ------------------------------------------------------------------------------- transforms


def gram_gradient(a, steps):
    """Return A S^(s-1) / (tr S^s)^(1 - 1/(2s)), S = A^H A, s = 2^steps."""
    u, sigma, vh = np.linalg.svd(a, full_matrices=False)
    s = 2**steps
    top = sigma[0]
    ratio = sigma / top
    weight = ratio ** (2 * s - 1) / np.sum(ratio ** (2 * s)) ** (1 - 1 / (2 * s))
    return (u * weight) @ vh


def torch_or_skip():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_torch_gradcheck(steps):
    torch = torch_or_skip()
    rng = np.random.default_rng(5)
    for dtype in ("float64", "complex128"):
        a = FAMILIES["gaussian"](rng, 4, 3, dtype)
        x = torch.tensor(a, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: gn.gram_iteration(x, steps=steps), x)
    kernel = torch.tensor(rng.standard_normal((2, 2, 3)), requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: gn.conv_gram_iteration(k, (5,), steps=steps), kernel)


@pytest.mark.parametrize("steps", [0, 3, 8])
def test_torch_gradient_is_the_formula(steps):
    torch = torch_or_skip()
    a = np.random.default_rng(6).standard_normal((5, 3))
    for host in (a, a.T.copy()):
        x = torch.tensor(host, requires_grad=True)
        gn.gram_iteration(x, steps=steps).backward()
        assert np.allclose(x.grad.numpy(), gram_gradient(host, steps), rtol=1e-12, atol=1e-13)


def test_torch_gradient_at_zero_and_at_vanishing_frequencies_is_finite():
    torch = torch_or_skip()
    for steps in (0, 1, 6):
        x = torch.zeros((2, 3, 2), dtype=torch.float64, requires_grad=True)
        gn.gram_iteration(x, steps=steps).sum().backward()
        assert torch.all(torch.isfinite(x.grad))
        for host in (np.zeros((1, 1, 3, 3)), np.asarray([[[[-1.0, 0, 1]]]])):
            kernel = torch.tensor(host, requires_grad=True)
            gn.conv_gram_iteration(kernel, (4, 4), steps=steps).backward()
            assert torch.all(torch.isfinite(kernel.grad))


def test_torch_vmap():
    torch = torch_or_skip()
    x = torch.tensor(np.random.default_rng(7).standard_normal((4, 3, 2)))
    mapped = torch.vmap(lambda a: gn.gram_iteration(a, steps=3))(x)
    assert torch.allclose(mapped, gn.gram_iteration(x, steps=3), rtol=1e-14)


@pytest.fixture
def jax():
    module = pytest.importorskip("jax")
    with module.enable_x64(True):
        yield module


def test_jax_jit_grad_and_vmap(jax):
    jnp = importlib.import_module("jax.numpy")
    a = np.random.default_rng(8).standard_normal((3, 4, 3))
    x = jnp.asarray(a)

    def norm(v):
        return gn.gram_iteration(v, steps=4)

    eager = np.asarray(norm(x))
    assert np.allclose(np.asarray(jax.jit(norm)(x)), eager, rtol=1e-14)
    assert np.allclose(np.asarray(jax.vmap(norm)(x)), eager, rtol=1e-14)
    gradient = np.asarray(jax.jit(jax.grad(norm))(x[0]))
    assert np.allclose(gradient, gram_gradient(a[0], 4), rtol=1e-12, atol=1e-13)
    at_zero = np.asarray(jax.grad(norm)(jnp.zeros((3, 3))))
    assert np.all(np.isfinite(at_zero))


def test_jax_jit_and_grad_of_the_convolution(jax):
    jnp = importlib.import_module("jax.numpy")
    kernel = np.random.default_rng(9).standard_normal((2, 2, 3))

    def norm(k):
        return gn.conv_gram_iteration(k, (5,), steps=3)

    x = jnp.asarray(kernel)
    assert np.allclose(np.asarray(jax.jit(norm)(x)), conv_exact(kernel, (5,), 3), rtol=1e-13)
    gradient = np.asarray(jax.jit(jax.grad(norm))(x))
    step = 1e-6
    for i in np.ndindex(2, 2, 3):
        shift = np.zeros_like(kernel)
        shift[i] = step
        slope = conv_exact(kernel + shift, (5,), 3) - conv_exact(kernel - shift, (5,), 3)
        assert gradient[i] == pytest.approx(slope / (2 * step), abs=1e-7)
    assert np.all(np.isfinite(np.asarray(jax.grad(norm)(jnp.zeros((2, 2, 3))))))


# ------------------------------------------------------------ arithmetic that errs as it may

TALL = np.outer(np.linspace(1, 2, 600), np.linspace(2, 1, 400))
KERNEL = np.linspace(1, 2, 400).reshape(1, 1, 400)


def none(*_):
    return 0.0


def gamma(n):
    return n * 2.0**-53 / (1 - n * 2.0**-53)


def kappa(n, *, is_complex):
    return 1.6 * gamma(2 * (n + 4)) if is_complex else gamma(n)


def shortened(function, relative):
    """Return a function whose non-negative arrays come out smaller by so much."""
    return lambda *args, **options: function(*args, **options) * (1 - relative(*args))


@pytest.fixture
def worst(monkeypatch):
    """Let products, sums, scaling and symbols err by all that the rounding model allows."""

    def product_loss(a):
        return kappa(a.shape[-2], is_complex=np.iscomplexobj(a))

    def sum_loss(a, _):
        return gamma(2 * sum(a.shape[-2:]) + 8)

    def scaled_short(a, *, scaled=fixed_steps.scaled):
        values, peak = scaled(a)
        return values * (1 - 4 * 2.0**-53), peak

    def blocks_short(taps, geometry, *, half, blocks=choose._blocks_on_circle):
        found = blocks(taps, geometry, half=half)
        moduli = np.sum(np.abs(taps), axis=0)
        return found - kappa(taps.shape[0], is_complex=True) * moduli * np.exp(1j * np.angle(found))

    products = shortened(fixed_steps.linalg.gram_matrix, product_loss)
    monkeypatch.setattr(fixed_steps.linalg, "gram_matrix", products)
    monkeypatch.setattr(sums, "inner_product", shortened(sums.inner_product, sum_loss))
    monkeypatch.setattr(fixed_steps, "scaled", scaled_short)
    monkeypatch.setattr(choose, "_blocks_on_circle", blocks_short)
    return monkeypatch


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
@pytest.mark.parametrize("a", [TALL, TALL.T, TALL * (1 + 0.0j)], ids=["tall", "wide", "complex"])
def test_no_arithmetic_of_the_model_ends_below(worst, a, steps):
    norm = oracles.sigma(a)
    assert gn.gram_iteration(a, steps=steps) >= norm
    with worst.context() as forgotten:
        forgotten.setattr(sums, "loss", none)
        if steps < 2:  # later roots make the error of the last sum small
            assert gn.gram_iteration(a, steps=steps) < norm
    worst.setattr(Precision, "kappa", none)
    if steps:
        assert gn.gram_iteration(a, steps=steps) < norm


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
def test_no_symbol_of_the_model_ends_below(worst, steps):
    norm = np.linalg.norm(np.sum(KERNEL, axis=-1), 2)
    assert gn.conv_gram_iteration(KERNEL, 400, steps=steps) >= norm * (1 + 1e-15)
    worst.setattr(choose, "symbol_loss", lambda *_: (0.0, 0.0))
    assert gn.conv_gram_iteration(KERNEL, 400, steps=steps) < norm


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("power", [-148, -126, -100, -20, 0, 60, 126, 127])
def test_scaling_errs_by_what_is_counted(dtype, power):
    rng = np.random.default_rng(power + 148)
    a = (FAMILIES["gaussian"](rng, 60, 50, dtype) * np.float32(0.25)).astype(dtype)
    with np.errstate(under="ignore"):
        a = (a * 2.0**power).astype(dtype)  # subnormal numbers where the power is small
        values, peak = fixed_steps.scaled(a)
    exact = a.astype("complex128") / min(max(float(peak), 2.0**-126), 2.0**126)
    relative, lost = fixed_steps.scaling_loss(values)
    for part in "real", "imag":
        wrong = np.abs(getattr(values - exact, part))
        assert np.all(wrong <= relative * np.abs(getattr(exact, part)) + lost)


@pytest.mark.parametrize("pattern", [[[1, 1, 1], [1, 1, 0]], [[1]], [[-1]], [[1], [0]]], ids=str)
@pytest.mark.parametrize("way", ["jit", "vmap", "eager"])
def test_jax_reaches_every_scale(way, pattern):
    # there subnormal numbers are zeros, and quotients become products with inverses
    jax = pytest.importorskip("jax")
    ways = {
        "jit": jax.jit,
        "vmap": lambda f: lambda x: jax.vmap(f)(x[None])[0],
        "eager": lambda f: f,
    }
    matrix = ways[way](lambda x: gn.gram_iteration(x, steps=4))
    conv = ways[way](lambda k: gn.conv_gram_iteration(k, 4, steps=4))
    for power in (-149, -127, -126, -120, -60, 0, 60, 125, 127):
        a = np.ldexp(np.float32(pattern), power)
        bound = np.asarray(matrix(jax.numpy.asarray(a)))
        norm = float(np.linalg.norm(a.astype("float64"), 2))
        excess = 1e-5 * norm + 6 * 2.0**-126  # what is below the normal numbers may be nothing
        # a scalar that is subnormal is read by its bits
        assert norm <= float(bound) <= (norm + excess if norm + excess < 3.4e38 else np.inf), power
        assert np.isfinite(bound) == (norm < 3.4e38)
        kernel = jax.numpy.asarray(a[:, :2, None])
        least = np.linalg.norm(a[:, :2].astype("float64"), 2)
        assert float(np.asarray(conv(kernel))) >= least, power


@pytest.mark.parametrize("flushing", [False, True])
@pytest.mark.parametrize("power", [-149, -127, -126, 0, 125, 126, 127])
def test_torch_reaches_every_scale_of_results_where_products_take_a_wider_type(power, flushing):
    torch = torch_or_skip()
    host = np.ldexp(np.float32([[1.5, 0.0], [0.0, 1.0]]), power)
    norm, x = float(host.max().astype("float64")), torch.from_numpy(host)
    torch.set_float32_matmul_precision("high")
    try:
        if flushing and not torch.set_flush_denormal(True):
            pytest.skip("this processor has no such mode")
        found = [gn.gram_iteration(x, steps=4), gn.conv_gram_iteration(x[..., None], 4, steps=4)]
    finally:
        torch.set_flush_denormal(False)
        torch.set_float32_matmul_precision("highest")
    excess = 1e-5 * norm + (6 * 2.0**-126 if flushing else 2.0**-148)
    for bound in found:
        assert norm <= float(bound) <= norm + excess
