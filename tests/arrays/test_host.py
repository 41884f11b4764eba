"""Arrays of PyTorch and JAX in the host's memory: NumPy's numbers, bit for bit, where the argument lives."""

import functools

import numpy as np
import pytest

import gramnorm as gn
from gramnorm import classical
from gramnorm._arrays import crossing, libraries


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch):
    monkeypatch.setattr(libraries, "HOST_WITH_NUMPY", True)


def torch_array(host):
    torch = pytest.importorskip("torch")
    return torch.tensor(host)


def jax_array(host):
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        return jax.numpy.asarray(host)


MAKERS = {"torch": torch_array, "jax": jax_array}


@pytest.fixture(params=MAKERS)
def moved(request):
    """Return what moves a host array into a library, with its namespace switched to 64 bits."""
    if request.param == "jax":
        jax = pytest.importorskip("jax")
        with jax.enable_x64(True):
            yield jax_array
    else:
        yield torch_array


FUNCTIONS = {
    "matrix": ((7, 5), gn.matrix_norm_bound),
    "wide": ((200, 210), gn.matrix_norm_bound),
    "stack": ((6, 9, 4), gn.matrix_norm_bracket),
    "vectors": ((8, 6), functools.partial(gn.matrix_norm_bracket, vectors=True)),
    "gradient": ((7, 5), gn.matrix_norm_value_and_grad),
    "every size": ((4, 3, 3, 3), gn.conv_norm_bracket),
    "circle": ((4, 3, 3), lambda k: gn.conv_norm_bracket(k, 9, padding_mode="circular")),
    "zeros": ((4, 3, 3), lambda k: gn.conv_norm_bracket(k, 9, stride=2)),
    "conv gradient": ((3, 2, 3, 3), lambda k: gn.conv_norm_value_and_grad(k, (7, 7))),
    "fir": ((8, 2, 3), gn.fir_norm),
    "fantastic four": ((4, 3, 3, 3), classical.fantastic_four_upper_bound),
    "norm2toep": ((4, 3, 3, 3), classical.norm2toep_upper_bound),
    "circular svd": ((4, 3, 3), lambda k: classical.circular_exact_norm(k, 8)),
    "blocks": ((4, 3), lambda a: gn.block_norm_bound(a * a)),
}


def fields(found):
    if isinstance(found, gn.NormBracket):
        names = ("lower", "upper", "converged", "frequency", "left", "right")
        return [v for v in (getattr(found, name) for name in names) if v is not None]
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_bits_are_those_of_numpy_where_the_argument_lives(moved, name, dtype):
    shape, function = FUNCTIONS[name]
    if name == "blocks" and dtype.startswith("complex"):
        pytest.skip("norms of blocks are real")
    rng = np.random.default_rng(1)
    host = rng.standard_normal(shape).astype(dtype)
    if dtype.startswith("complex"):
        host = host + (1j * rng.standard_normal(shape)).astype(dtype)
    x = moved(host)
    expected, found = fields(function(host)), fields(function(x))
    assert len(expected) == len(found)
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours).__module__.partition(".")[0] in (type(x).__module__[:5], "jaxlib")
        assert str(ours.dtype).removeprefix("torch.") == np.asarray(theirs).dtype.name
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert np.array_equal(np.asarray(x), host)


@pytest.mark.parametrize("name", ["stack", "every size", "gradient", "conv gradient"])
def test_nothing_is_copied_and_nothing_is_written(moved, name, monkeypatch):
    shape, function = FUNCTIONS[name]
    x = moved(np.random.default_rng(2).standard_normal(shape))
    before = np.asarray(x).copy()
    seen = []
    host_array = crossing.host_array

    def watched(a):
        found = host_array(a)
        if found.shape == before.shape:
            seen.append(found)
        return found

    monkeypatch.setattr(crossing, "host_array", watched)
    results = fields(function(x))
    assert seen
    assert all(np.shares_memory(a, np.asarray(x)) for a in seen)
    assert np.array_equal(np.asarray(x), before)
    for result in results:
        assert not np.shares_memory(np.asarray(result), np.asarray(x))


def same_numbers(x, host):
    """Compare all that is returned about a tensor with that about the same numbers in NumPy."""
    torch = pytest.importorskip("torch")
    for function in (gn.matrix_norm_bracket, gn.matrix_norm_value_and_grad):
        found, expected = fields(function(x)), fields(function(host))
        for ours, theirs in zip(found, expected, strict=True):
            assert isinstance(ours, torch.Tensor)
            assert np.allclose(ours.detach().resolve_conj().numpy(), theirs, rtol=1e-12, atol=1e-12)


def test_tensors_of_every_layout_are_read_as_they_are():
    torch = pytest.importorskip("torch")
    a = np.random.default_rng(3).standard_normal((4, 6, 5))
    b = a + 1j * np.random.default_rng(4).standard_normal((4, 6, 5))
    x, y = torch.tensor(a), torch.tensor(b)
    same_numbers(y.conj(), b.conj())
    same_numbers(y.mH, np.ascontiguousarray(b.conj().swapaxes(1, 2)))
    same_numbers(y.conj().imag, -b.imag)
    same_numbers(x.mT, a.swapaxes(1, 2))
    same_numbers(x[::2, 1::2], a[::2, 1::2])
    same_numbers(x[:1].expand(3, 6, 5), np.broadcast_to(a[:1], (3, 6, 5)))
    same_numbers(x.clone().requires_grad_(), a)
    same_numbers(torch.nn.Parameter(x[0]), a[0])
    same_numbers(x[0], a[0])
    with torch.inference_mode():
        same_numbers(x + 0, a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same_numbers(x, a)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_short_types_are_widened_exactly(moved, kind):
    host = np.random.default_rng(5).standard_normal((5, 6, 4)).astype(np.float32)
    x = moved(host)
    x = (
        x.astype(kind)
        if hasattr(x, "astype")
        else x.to(getattr(pytest.importorskip("torch"), kind))
    )
    stored = np.asarray(x.float() if hasattr(x, "float") else x.astype("float32"))
    bracket = gn.matrix_norm_bracket(x)
    norms = np.linalg.svd(stored.astype(np.float64), compute_uv=False)[:, 0]
    assert str(bracket.upper.dtype).endswith("float32")
    assert np.all(np.asarray(bracket.lower) <= norms)
    assert np.all(norms <= np.asarray(bracket.upper))
    assert np.all(np.asarray(bracket.upper) <= norms * (1 + 1.01e-4))
    value, gradient = gn.matrix_norm_value_and_grad(x)
    assert str(value.dtype).endswith("float32")
    assert gradient.dtype == x.dtype


def test_derivatives_are_those_of_the_closed_form():
    host = np.random.default_rng(6).standard_normal((6, 4))
    kernel = np.random.default_rng(7).standard_normal((3, 2, 3))
    for function, pair, at in (
        (gn.matrix_norm_bound, gn.matrix_norm_value_and_grad, host),
        (gn.conv_norm_bound, gn.conv_norm_value_and_grad, kernel),
    ):
        _, expected = pair(at)
        x = torch_array(at).requires_grad_()
        function(x).backward()
        assert np.array_equal(x.grad.numpy(), expected)
        jax = pytest.importorskip("jax")
        with jax.enable_x64(True):
            assert np.array_equal(np.asarray(jax.grad(function)(jax.numpy.asarray(at))), expected)


def test_jax_compiles_nothing_for_a_new_kernel(caplog):
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        for seed, shape in enumerate([(5, 4, 3, 3), (5, 4, 3, 3), (6, 7, 3, 2)]):
            kernel = jax.numpy.asarray(np.random.default_rng(seed).standard_normal(shape))
            caplog.clear()
            with jax.log_compiles(True):
                gn.conv_norm_bracket(kernel)
                gn.conv_norm_bracket(kernel, (9, 9))
            compiled = [r.getMessage() for r in caplog.records if "ompil" in r.getMessage()]
            assert not (seed and compiled), compiled


def test_a_positive_bound_is_not_read_as_zero_by_jax():
    """JAX flushes subnormal numbers on a CPU; NumPy, which finds the bound, does not."""
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        for dtype in ("float32", "float64"):
            least = np.finfo(dtype).smallest_subnormal
            x = jax.numpy.asarray(np.full((2, 2), least, dtype))
            bracket = gn.matrix_norm_bracket(x)
            assert bool(bracket.upper > 0)
            assert float(bracket.lower) <= 2 * float(least) <= float(bracket.upper)
            assert bool(gn.matrix_norm_bound(x) > 0)
            assert bool(gn.conv_norm_bound(x[None]) > 0)


def test_other_libraries_keep_their_arrays():
    strict = pytest.importorskip("array_api_strict")
    x = strict.asarray([[1.0, 2.0]])
    assert crossing.at_home(x) is x
    host = np.ones((2, 2))
    assert crossing.at_home(host) is host
