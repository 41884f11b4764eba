"""On a device: nothing is compiled for new values of a known shape, few numbers cross, bounds hold."""

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._arrays import devices, libraries, limits
from gramnorm._conv.symbol import Symbol
from gramnorm._matrix import gram
from tests.harness.compilations import compiled_programs, crossings

RNG = np.random.default_rng


def orthogonal(rng, shape):
    """Return an orthogonal matrix, or a kernel with one in the middle and zeros around it."""
    found = np.zeros(shape)
    side = max(shape[:2]) if len(shape) > 3 else max(shape[-2:])
    q = np.linalg.qr(rng.standard_normal((side, side)))[0]
    if len(shape) > 3:
        found[:, :, 1, 1] = q[: shape[0], : shape[1]]
    else:
        found[...] = q[: shape[-2], : shape[-1]]
    return found


def at_one_entry(rng, shape, value):
    found = rng.standard_normal(shape)
    found.flat[3] = value
    return found


def smooth(rng, shape):
    return rng.standard_normal(shape) * np.exp(-2.0 * np.add.outer(*map(np.arange, shape[-2:])))


STRUCTURES = {
    "one direction": lambda _, shape: np.ones(shape),
    "noise": lambda rng, shape: rng.standard_normal(shape),
    "other noise": lambda rng, shape: rng.uniform(0.0, 1.0, shape),
    "smooth": smooth,
    "orthogonal": orthogonal,
    "nearly orthogonal": lambda rng, shape: orthogonal(rng, shape) + 1e-3 * smooth(rng, shape),
    "zero": lambda _, shape: np.zeros(shape),
    "one entry": lambda _, shape: (np.arange(np.prod(shape)) == 2).reshape(shape) * 3.0,
    "few entries": lambda rng, shape: smooth(rng, shape) * (rng.random(shape) < 0.1),
    "huge": lambda rng, shape: 1e300 * rng.standard_normal(shape),
    "tiny": lambda rng, shape: 1e-300 * rng.standard_normal(shape),
    "graded": lambda rng, shape: np.ldexp(rng.standard_normal(shape), rng.integers(-99, 9, shape)),
    "nan": lambda rng, shape: at_one_entry(rng, shape, np.nan),
    "inf": lambda rng, shape: at_one_entry(rng, shape, np.inf),
}
WORK = {
    "matrix": ((31, 29), gn.matrix_norm_bracket),
    "matrix, tight": ((33, 33), lambda a: gn.matrix_norm_bracket(a, rtol=1e-10)),
    "stack": ((9, 5, 8), gn.matrix_norm_bracket),
    "every size": ((6, 5, 3, 3), gn.conv_norm_bracket),
    "zeros": ((6, 4, 3, 3), lambda k: gn.conv_norm_bracket(k, (10, 11), padding=1)),
    "circle": ((5, 6, 3, 3), lambda k: gn.conv_norm_bracket(k, 17, padding_mode="circular")),
    "stride": ((4, 6, 3, 3), lambda k: gn.conv_norm_bracket(k, stride=2)),
    "depthwise": ((7, 1, 3, 3), lambda k: gn.conv_norm_bracket(k, groups=7)),
    "wide": ((34, 33, 2, 2), gn.conv_norm_bracket),
    "wide, tight": ((35, 34, 2, 2), lambda k: gn.conv_norm_bracket(k, rtol=1e-7)),
    "wide, circle": (
        (34, 100, 2, 2),
        lambda k: gn.conv_norm_bracket(k, 9, padding_mode="circular"),
    ),
}


@pytest.fixture
def jax(monkeypatch):
    """Return JAX whose arrays on the CPU are computed as on a device."""
    found = pytest.importorskip("jax")
    monkeypatch.setattr(libraries, "HOST_WITH_NUMPY", False)
    with found.enable_x64(True):
        yield found


@pytest.fixture
def torch(monkeypatch):
    """Return PyTorch whose tensors on the CPU are computed as on a device."""
    monkeypatch.setattr(libraries, "HOST_WITH_NUMPY", False)
    return pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WORK)
def test_new_values_of_a_known_shape_compile_nothing(jax, name, dtype):
    shape, function = WORK[name]
    for number, structure in enumerate(STRUCTURES):
        with np.errstate(over="ignore"):
            host = STRUCTURES[structure](RNG(number), shape).astype(dtype)
        kernel = jax.numpy.asarray(host)
        with compiled_programs() as found:
            function(kernel)
        assert not (number and found), (structure, found)


def test_a_new_shape_compiles_the_stages_of_a_sum_apart(jax):
    """One function with both would be one sum to XLA, with the rounding of a longer one."""
    with compiled_programs() as found:
        gn.matrix_norm_bracket(jax.numpy.asarray(RNG(0).standard_normal((21, 27))))
    assert {"Compiling jit(row_products)", "Compiling jit(row_sums)"} <= set(found)


@pytest.fixture(params=["jax", "torch"])
def moved(request):
    """Return what moves host arrays to a library whose arrays are computed as on a device."""
    found = request.getfixturevalue(request.param)
    return found.numpy.asarray if request.param == "jax" else found.tensor


def test_what_a_step_needs_crosses_together(moved):
    x = moved(RNG(1).standard_normal((5, 12, 9)))
    with crossings() as found:
        bracket = gn.matrix_norm_bracket(x)
    # the largest entries, the probe for subnormal numbers and the entries it makes suspect
    assert len(found) <= bracket.n_products + 3
    assert all(np.prod(shape) <= 6 * 5 for shape in found)


def test_of_a_kernel_only_numbers_per_block_come_back(moved):
    x = moved(RNG(2).standard_normal((8, 7, 3, 3)))
    with crossings() as found:
        gn.conv_norm_bracket(x)
    assert found.pop(0) == x.shape
    assert len(found) > 1
    assert all(np.prod(shape) <= 6 * limits.PADDED_BATCH[0] for shape in found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matrices_that_do_not_count_change_no_bound(jax, dtype):
    host = RNG(3).standard_normal((7, 6, 4)).astype(dtype)
    host[1], host[4], host[6] = np.nan, np.inf, 0.0
    places = np.asarray([0, 2, 3, 5])
    with np.errstate(all="ignore"):
        found = gram.bracket_by_iteration(jax.numpy.asarray(host), rtol=1e-4, places=places)
    exact = np.linalg.svd(host[places].astype(np.float64), compute_uv=False)[:, 0]
    assert np.all(found.lower <= exact)
    assert np.all(exact <= found.upper)
    assert np.all(found.upper <= exact * (1 + 1e-4))


def test_frequencies_that_fill_a_batch_change_no_bound(jax):
    host = RNG(4).standard_normal((9, 2, 4, 3))
    offsets = np.stack(np.divmod(np.arange(9), 3), axis=1)
    points, sizes = np.asarray([[0, 1], [3, 2], [5, 4]]), np.asarray([7, 5])
    with devices.beside(jax.numpy.asarray(host)):
        symbol = Symbol(host, offsets)
        blocks = np.asarray(symbol.at(points, sizes))
    assert isinstance(symbol.rows, jax.Array)
    assert len(blocks) == 2 * symbol.batch > 6
    assert np.allclose(blocks[:6], Symbol(host, offsets).at(points, sizes), rtol=1e-13, atol=1e-13)
    assert np.array_equal(blocks[4:6], blocks[-2:])


# ------------------------------------------------------------------- which work is a device's


class Elsewhere:
    """The device of array-api-strict, with a threshold as on a GPU."""

    def __init__(self, monkeypatch):
        self.xp = pytest.importorskip("array_api_strict")
        self.device = self.xp.Device("device1")
        monkeypatch.setattr(libraries, "HOST_WITH_NUMPY", True)
        for module in (devices, libraries):
            monkeypatch.setattr(module, "is_on_cpu", lambda x: isinstance(x, np.ndarray))

    def asarray(self, host):
        return self.xp.asarray(host, device=self.device)

    def to_numpy(self, x):
        return np.asarray(x.to_device(self.xp.Device("CPU_DEVICE")))


@pytest.fixture
def elsewhere(monkeypatch):
    return Elsewhere(monkeypatch)


@pytest.mark.parametrize("shape", [(30, 20), (3, 8, 8), (6, 5, 3, 3)])
def test_small_work_is_the_host_s_bit_for_bit(elsewhere, shape):
    function = gn.conv_norm_bracket if len(shape) == 4 else gn.matrix_norm_bracket
    host = RNG(5).standard_normal(shape)
    expected = function(host)
    with crossings() as found:
        bracket = function(elsewhere.asarray(host))
    assert found[1:] == [shape]  # after one entry, to see whether the library hands over values
    for name in ("lower", "upper", "converged"):
        ours = getattr(bracket, name)
        assert ours.device == elsewhere.device
        on_host = elsewhere.to_numpy(ours)
        assert on_host.tobytes() == np.asarray(getattr(expected, name)).tobytes()


@pytest.mark.parametrize("shape", [(30, 20), (3, 8, 8), (6, 5, 3, 3)])
def test_large_work_is_the_device_s(elsewhere, monkeypatch, shape):
    monkeypatch.setattr(limits, "DEVICE_OPERATIONS", 0)
    function = gn.conv_norm_bracket if len(shape) == 4 else gn.matrix_norm_bracket
    host = RNG(6).standard_normal(shape)
    with crossings() as found:
        bracket = function(elsewhere.asarray(host))
    assert len(found) > 3
    expected = function(host)
    assert np.all(elsewhere.to_numpy(bracket.lower) <= expected.upper)
    assert np.all(elsewhere.to_numpy(bracket.upper) >= expected.lower)


def test_a_device_without_float64_leaves_tight_gaps_to_the_host(monkeypatch):
    monkeypatch.setattr(libraries, "HOST_WITH_NUMPY", False)
    xp = pytest.importorskip("array_api_strict")
    host = RNG(7).standard_normal((4, 3, 3)).astype(np.float32)
    kernel = xp.asarray(host, device=xp.Device("no_float64"))
    assert bool(gn.conv_norm_bracket(kernel, rtol=1e-6).converged)


def test_blocks_do_not_move_where_products_of_float32_are_rough(torch):
    taps, offsets = RNG(8).standard_normal((3, 1, 4, 4)).astype(np.float32), np.arange(3)[:, None]
    with devices.beside(torch.ones(1)):
        assert isinstance(Symbol(taps, offsets).rows, torch.Tensor)
        torch.set_float32_matmul_precision("high")
        try:
            assert isinstance(Symbol(taps, offsets).rows, np.ndarray)
            assert isinstance(Symbol(taps.astype(np.float64), offsets).rows, torch.Tensor)
        finally:
            torch.set_float32_matmul_precision("highest")
