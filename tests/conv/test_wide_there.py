"""Wide symbols where a device factorises: bounds hold, and each error term is needed.

The CPU stands in for a device: arrays of PyTorch, of JAX and of array-api-strict.
"""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._arrays import crossing, devices, libraries, limits, linalg
from gramnorm._conv import squared_there
from gramnorm._conv.estimates import Estimator
from gramnorm._conv.estimates_there import EstimatorThere
from gramnorm._conv.squared import Squared, snapped
from gramnorm._conv.squared_there import SquaredThere, square_of
from gramnorm._conv.symbol import Symbol
from gramnorm._matrix import definite
from tests.conv.test_wide import (
    CASES,
    largest_on_grid,
    nearly_indefinite,
    noise,
    symbols,
    taps_and_offsets,
)
from tests.harness import families, hostile
from tests.harness.compilations import crossings

pytestmark = pytest.mark.no_backend

U32 = 2.0**-24


class Device:
    """A library whose arrays are computed as on a device, with or without float64."""

    def __init__(self, name):
        library, _, kind = name.partition("-")
        self.has_float64 = kind != "float32"
        self.xp = pytest.importorskip(
            {"torch": "torch", "jax": "jax.numpy", "strict": "array_api_strict"}[library]
        )
        self.options = {}
        if library == "strict":
            self.options["device"] = self.xp.Device("device1" if self.has_float64 else "no_float64")
        elif library == "torch" and not self.has_float64:
            pytest.skip("no device of PyTorch without float64")

    def asarray(self, host):
        if not self.has_float64:
            host = host.astype({"f": np.float32, "c": np.complex64}[host.dtype.kind])
        return self.xp.asarray(host, dtype=getattr(self.xp, host.dtype.name), **self.options)

    @contextlib.contextmanager
    def in_use(self):
        """Let JAX have float64 or not, and the device be the caller's."""
        jax = pytest.importorskip("jax") if "jax" in self.xp.__name__ else None
        with contextlib.ExitStack() as stack:
            if jax:
                stack.enter_context(jax.enable_x64(self.has_float64))
            stack.enter_context(devices.beside(self.asarray(np.zeros(1, np.float32))))
            yield


@pytest.fixture(params=["torch", "jax", "jax-float32", "strict", "strict-float32"])
def there(request, monkeypatch):
    monkeypatch.setattr(libraries, "HOST_WITH_NUMPY", False)
    found = Device(request.param)
    with found.in_use():
        yield found


@pytest.fixture
def strict(monkeypatch):
    monkeypatch.setattr(libraries, "HOST_WITH_NUMPY", False)
    found = Device("strict")
    with found.in_use():
        yield found


def square_there(kernel):
    found = square_of(*taps_and_offsets(kernel), 1.0)
    assert isinstance(found, SquaredThere)
    return found


def is_there(x):
    return not isinstance(x, np.ndarray)


# ---------------------------------------------------------------------------------- whole brackets


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "strided"])
def test_bracket_holds_and_is_narrow(there, name, dtype, monkeypatch):
    monkeypatch.setattr(limits, "WIDE_COLUMNS", 16)
    shape, options = CASES[name]
    kernel = noise((shape[0] // 2, shape[1] // 2, *shape[2:]), dtype)
    used = []
    bounds = SquaredThere._bounds_there

    def noted(self, turns, levels, *, wide):
        used.append(wide)
        return bounds(self, turns, levels, wide=wide)

    monkeypatch.setattr(SquaredThere, "_bounds_there", noted)
    bracket = gn.conv_norm_bracket(there.asarray(kernel), **options)
    assert used
    assert there.has_float64 or not any(used)
    assert bool(bracket.converged)
    if not there.has_float64:
        kernel = kernel.astype({"f": np.float32, "c": np.complex64}[kernel.dtype.kind])
    found = largest_on_grid(kernel.astype(np.complex128), 12, options.get("groups", 1))
    assert found <= float(bracket.upper)
    assert float(bracket.lower) <= float(bracket.upper)
    assert found >= float(bracket.lower) * 0.9


def test_strides_and_tight_gaps(there):
    kernel = noise((33, 10, 3, 3))
    for options in ({"stride": 2}, {"rtol": 1e-6}):
        bracket = gn.conv_norm_bracket(there.asarray(kernel), **options)
        on_host = gn.conv_norm_bracket(kernel.astype(np.float64), **options)
        assert bool(bracket.converged)
        assert float(bracket.lower) <= float(on_host.upper) * (1 + 1e-7)
        assert float(on_host.lower) <= float(bracket.upper) * (1 + 1e-7)


@pytest.mark.parametrize("dtype", families.DTYPES)
@pytest.mark.parametrize("name", families.KERNELS)
def test_bounds_hold_for_every_family(there, name, dtype, monkeypatch):
    monkeypatch.setattr(limits, "WIDE_COLUMNS", 1)
    monkeypatch.setattr(limits, "FACTORED_COLUMNS", 1)
    shape = (4, 3, 3, 2) if "jax" in there.xp.__name__ else (3, 5, 4)
    with np.errstate(over="ignore"):
        kernel = families.KERNELS[name](np.random.default_rng(0), *shape[:2], shape[2:], dtype)
        x = there.asarray(kernel)
    kernel = crossing.host_array(x)
    largest = float(np.abs(kernel).max())
    if not 0 < largest < np.inf:
        return
    bracket = gn.conv_norm_bracket(x)
    exponent = np.frexp(largest)[1]
    scaled = kernel.astype(np.complex128)
    scaled = np.ldexp(scaled.real, -exponent) + 1j * np.ldexp(scaled.imag, -exponent)
    lower, upper = (float(np.ldexp(float(b), -exponent)) for b in (bracket.lower, bracket.upper))
    found = largest_on_grid(scaled, 16)
    assert found * (1 - 1e-12) <= upper
    assert lower <= upper


# ---------------------------------------------------------------------------- what is done where


def test_a_precision_that_a_device_has_not_is_the_host_s(there):
    square = square_there(noise((33, 32, 2)))
    assert [is_there(x) for x in square._places] == [True, there.has_float64]
    turns, targets = snapped(np.linspace(0, 0.5, 5))[:, None], np.full(5, 9.0)
    host = Squared(*taps_and_offsets(noise((33, 32, 2))))
    norms = np.linalg.norm(symbols(noise((33, 32, 2)), turns), 2, axis=(1, 2))
    for excess in (1e-3, 1e-7):
        targets = norms * (1 + excess)
        found = square.norm_bounds(turns, targets, norms)
        assert np.all(norms * (1 - 1e-14) <= found)
        assert np.all(found <= targets)
        assert np.allclose(found, host.norm_bounds(turns, targets, norms), rtol=excess)
    assert np.all(square.norm_bounds(turns, norms * 0.999, norms) == np.inf)
    assert square.norm_bounds(turns[:0], targets[:0], norms[:0]).shape == (0,)


def test_rough_products_of_float32_leave_double_precision_to_a_device(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(libraries, "HOST_WITH_NUMPY", False)
    torch.set_float32_matmul_precision("high")
    try:
        with Device("torch").in_use():
            square = square_there(noise((33, 32, 2)))
            assert [is_there(x) for x in square._places] == [False, True]
            assert square._losses[0] == np.inf  # which is not the host's to try
            turns = np.zeros((1, 1))
            norm = np.linalg.norm(symbols(noise((33, 32, 2)), turns)[0], 2)
            bounds = square.norm_bounds(turns, np.full(1, 1.1 * norm), np.full(1, norm))
            assert norm <= bounds[0] <= 1.1 * norm
    finally:
        torch.set_float32_matmul_precision("highest")


def test_little_work_is_the_host_s(strict, monkeypatch):
    monkeypatch.setattr(libraries, "HOST_WITH_NUMPY", True)
    monkeypatch.setattr(devices, "is_on_cpu", lambda x: isinstance(x, np.ndarray))
    taps = taps_and_offsets(noise((33, 32, 2)))
    assert type(square_of(*taps, limits.DEVICE_OPERATIONS / 2)) is Squared
    with devices.beside(strict.asarray(np.zeros(1))):
        assert type(square_of(*taps, limits.DEVICE_OPERATIONS / 2)) is Squared
        assert type(square_of(*taps, limits.DEVICE_OPERATIONS * 2)) is SquaredThere


def test_without_linear_algebra_the_host_factorises(strict, monkeypatch):
    monkeypatch.setattr(libraries, "has_linalg", lambda _: False)
    assert type(square_of(*taps_and_offsets(noise((33, 32, 2))), 1.0)) is Squared


def test_two_numbers_of_a_matrix_come_back_once_for_a_batch(there, monkeypatch):
    monkeypatch.setattr(limits, "SYMBOL_BYTES", 16 * 32**2 * 7)  # seven matrices
    square, like = square_there(noise((33, 32, 2))), there.asarray(np.zeros(1, np.float32))
    batch = square._batch(like)
    with crossings() as found:
        square._bounds(np.zeros((20, 1)), np.full(20, 9.0), wide=False)
    if batch == 7:
        assert found == [(2, 7), (2, 7), (2, 6)]
    else:
        assert found == [(2, batch)]


def test_a_batch_that_is_filled_changes_no_bound(monkeypatch):
    monkeypatch.setattr(libraries, "HOST_WITH_NUMPY", False)
    with Device("jax").in_use():
        square = square_there(noise((33, 32, 2)))
        turns = snapped(np.random.default_rng(0).random((70, 1)))
        levels = np.linspace(5.0, 9.0, 70)
        for wide in (False, True):
            found = square._bounds(turns, levels, wide=wide)
            each = [
                square._bounds(turns[i : i + 1], levels[i : i + 1], wide=wide) for i in range(70)
            ]
            assert np.allclose(found, np.concatenate(each), rtol=1e-6)


def test_rows_of_a_wide_symbol_stay_where_nothing_compiles(monkeypatch):
    monkeypatch.setattr(libraries, "HOST_WITH_NUMPY", False)
    taps, offsets = taps_and_offsets(noise((33, 32, 2)))
    for name, there in (("jax", False), ("torch", True)):
        with Device(name).in_use():
            symbol = Symbol(taps[:, None], offsets)
            assert is_there(symbol.rows) == there
            assert [type(square) for square in symbol.squares] == [SquaredThere]
            narrow = [is_there(version.rows) for version in symbol.narrow_first(10**6)]
            assert narrow == [there, there]


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("batch", [1, 7, 20])
def test_estimates_are_those_of_the_host(there, dtype, batch, monkeypatch):
    monkeypatch.setattr(limits, "SYMBOL_BYTES", 16 * 6 * 33 * batch)
    taps = taps_and_offsets(noise((33, 32, 2, 3), dtype))
    square = square_of(*taps, 1.0)
    if "jax" in there.xp.__name__:  # which would compile Lanczos steps for seconds
        assert type(square.estimator) is Estimator
        return
    assert type(square.estimator) is EstimatorThere
    turns = snapped(np.random.default_rng(0).random((20, 2)))
    host = Estimator(*taps)
    with crossings() as crossed:
        norms, vectors = square.estimator.at(turns, 4)
        again, better = square.estimator.at(turns, 12, vectors)
    batches = -(-20 // batch)
    assert len(crossed) == 2 * 2 * batches
    assert np.allclose(norms, host.at(turns, 4)[0], rtol=1e-5)
    assert np.allclose(again, host.at(turns, 12, host.at(turns, 4)[1])[0], rtol=1e-5)
    blocks = symbols(noise((33, 32, 2, 3), dtype), turns)
    lengths = np.linalg.norm(better, axis=1)
    images = np.linalg.norm((blocks @ better[:, :, None])[:, :, 0], axis=1)
    assert np.allclose(images, again * lengths, rtol=1e-5)


def test_estimates_of_few_frequencies_are_the_host_s(strict):
    taps = taps_and_offsets(noise((33, 32, 2, 3)))
    with crossings() as crossed:
        few = square_of(*taps, 1.0).estimator.at(np.zeros((5, 2)), 4)
    assert not crossed
    assert all(map(np.array_equal, few, Estimator(*taps).at(np.zeros((5, 2)), 4)))


def test_estimates_survive_spaces_that_are_exhausted(there):
    kernel = np.zeros((33, 32, 3))
    kernel[:, :, 1] = np.eye(33, 32)  # every vector is an eigenvector
    square = square_there(kernel)
    norms, vectors = square.estimator.at(snapped(np.linspace(0, 0.5, 9))[:, None], 8)
    assert np.allclose(norms, 1)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    kernel[:, :, 0] = -kernel[:, :, 1]  # zero at one frequency, and so are its vectors after that
    square = square_there(kernel)
    turns = snapped(np.linspace(0, 0.5, 9))[:, None]
    first, vectors = square.estimator.at(turns, 8)
    again, vectors = square.estimator.at(turns, 8, vectors)
    for norms in (first, again):
        assert np.allclose(norms, 2 * np.sin(np.pi * turns[:, 0]), atol=1e-6)
    assert np.all(np.isfinite(vectors))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("jax_debug_nans", True),
        ("jax_debug_infs", True),
        ("jax_numpy_rank_promotion", "raise"),
        ("jax_numpy_dtype_promotion", "strict"),
    ],
)
@pytest.mark.parametrize("name", ["jax", "jax-float32"])
def test_what_jax_warns_of_is_no_mistake(name, option, value, monkeypatch):
    """NaN of a matrix without a factor is an answer; the option is the caller's again after that."""
    monkeypatch.setattr(libraries, "HOST_WITH_NUMPY", False)
    jax = pytest.importorskip("jax")
    before = getattr(jax.config, option)
    with Device(name).in_use():
        kernel = jax.numpy.asarray(noise((36, 36, 2), "float32"))
        jax.config.update(option, value)
        try:
            bracket = gn.conv_norm_bracket(kernel)
            assert getattr(jax.config, option) == value
        finally:
            jax.config.update(option, before)
        assert bool(bracket.converged)


def test_batches_have_one_size_where_double_precision_is_the_host_s(monkeypatch):
    monkeypatch.setattr(libraries, "HOST_WITH_NUMPY", False)
    monkeypatch.setattr(limits, "WIDE_TABLE", 2**12)  # too small for the tables: squarings
    kernel = noise((36, 36, 2, 2), "float32")
    with Device("jax-float32").in_use():
        bracket = gn.conv_norm_bracket(Device("jax-float32").asarray(kernel))
    assert bool(bracket.converged)
    found = largest_on_grid(kernel.astype(np.complex128), 12)
    assert float(bracket.lower) * 0.9 <= found <= float(bracket.upper)


# ------------------------------------------------------------------------------- each error term


def formed_there(square, turns, levels, *, wide):
    sent = [square._moved(x, wide=wide) for x in (*square._weights(turns), levels)]
    tables = square._wide_there if wide else square._narrow_there
    return crossing.host_array(squared_there._formed(*sent, *tables))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_all_of_a_square_is_formed(there, dtype):
    kernel = noise((70, 65, 3, 2), dtype)  # a block column and more
    square, turns = square_there(kernel), snapped(np.random.default_rng(1).random((3, 2)))
    exact = np.asarray([4 * np.eye(65) - f.conj().T @ f for f in symbols(kernel, turns)])
    formed = formed_there(square, turns, np.full(3, 4.0), wide=False)
    assert np.allclose(formed, exact, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_square_is_formed_to_within_its_error(there, dtype):
    # taps whose products cancel: what is left is small, and rounding is not
    kernel = np.repeat(noise((70, 65, 1), dtype), 3, axis=2) * np.asarray([1, -2, 1])
    square = square_there(kernel)
    turns = snapped(1e-5 * np.random.default_rng(1).random((20, 1)))
    exact = np.asarray([-(f.conj().T @ f) for f in symbols(kernel, turns)])
    for wide in (False, True) if there.has_float64 else (False,):
        off = formed_there(square, turns, np.zeros(20), wide=wide) - exact
        norms = np.linalg.norm(off, axis=(1, 2))
        assert np.all(norms <= square._error_in(wide=wide))
        assert wide or np.max(norms) > 10 * square.error  # of double precision alone


@pytest.mark.parametrize("order", [1, 5, 64, 65, 130, 200])
@pytest.mark.parametrize("kind", [np.complex64, np.complex128])
def test_shortfall_makes_a_matrix_semidefinite(there, order, kind):
    if kind == np.complex128 and not there.has_float64:
        pytest.skip("in single precision only")
    rng = np.random.default_rng(order)
    x = rng.standard_normal((4, order, order)) + 1j * rng.standard_normal((4, order, order))
    gram = x.conj().mT @ x
    least = np.linalg.eigvalsh(gram)[:, :1, None]
    shifts = np.asarray([1e-6, 1e-2, 1.0, -0.1])[:, None, None] * np.trace(gram[0]).real / order
    matrices = (gram - (least - shifts) * np.eye(order)).astype(kind)
    shortfall, size = definite.shortfalls_on_device(there.asarray(matrices))
    smallest = np.linalg.eigvalsh(matrices.astype(np.complex128))[:, 0]
    room = 1e-13 * np.linalg.norm(gram, axis=(1, 2))
    assert np.all(shortfall + smallest >= -room)
    assert smallest[3] < 0
    assert shortfall[3] == np.inf  # a number would have double precision tried as well
    assert np.all(np.isfinite(shortfall[1:3]))
    moduli = np.linalg.norm(np.abs(matrices), 2, axis=(1, 2))
    assert np.all(moduli <= size * (1 + 1e-6))


@pytest.mark.parametrize("way", hostile.KINDS)
@pytest.mark.parametrize("kind", [np.complex64, np.complex128])
def test_shortfall_holds_in_the_worst_arithmetic(strict, way, kind):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 70, 70)) + 1j * rng.standard_normal((2, 70, 70))
    gram = x.conj().mT @ x
    least = np.linalg.eigvalsh(gram)[:, :1, None]
    matrices = (gram - (least - 1e-3) * np.eye(70)).astype(kind)
    with hostile.computing(hostile.KINDS[way]):
        shortfall, _ = definite.shortfalls_on_device(strict.asarray(matrices))
    smallest = np.linalg.eigvalsh(matrices.astype(np.complex128))[:, 0]
    assert np.all(shortfall + smallest >= -1e-11)


@pytest.mark.parametrize("way", hostile.KINDS)
def test_bounds_hold_in_the_worst_arithmetic(strict, way):
    kernel = noise((40, 36, 2, 2))
    turns = snapped(np.random.default_rng(1).random((3, 2)))
    norms = np.linalg.norm(symbols(kernel, turns), 2, axis=(1, 2))
    with hostile.computing(hostile.KINDS[way]):
        square = square_there(kernel)
        for wide in (False, True):
            for excess in (1e-9, 1e-6, 1e-5, 1e-4, 1e-3):
                levels = norms**2 * (1 + excess)
                found = square._bounds(turns, levels, wide=wide)
                assert np.all(found >= norms**2 * (1 - 1e-12))
            assert np.all(np.isfinite(found))


def factor_of(monkeypatch, factor):
    monkeypatch.setattr(linalg, "lower_factors_or_none", lambda _: factor)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("place", [(0, 0), (69, 3), (69, 69)])
def test_what_is_no_factor_proves_nothing(there, monkeypatch, value, place):
    factor = np.eye(70, dtype=np.complex64)[None] * 2
    factor[(0, *place)] = value
    factor_of(monkeypatch, there.asarray(factor))
    matrix = there.asarray(4 * np.eye(70, dtype=np.complex64)[None])
    with np.errstate(all="ignore"):
        shortfall, _ = definite.shortfalls_on_device(matrix)
    assert shortfall[0] > 1e28


def test_what_a_library_leaves_above_the_diagonal_does_not_count(there, monkeypatch):
    matrix = (np.eye(70) * 4).astype(np.complex64)[None]
    true, _ = definite.shortfalls_on_device(there.asarray(matrix))
    upper = there.asarray((np.linalg.cholesky(matrix) + np.triu(np.ones((70, 70)), 1)).astype("c8"))
    if "torch" in there.xp.__name__:
        found = there.xp.linalg.cholesky_ex(there.asarray(matrix))
        monkeypatch.setattr(
            there.xp.linalg, "cholesky_ex", lambda _: SimpleNamespace(L=upper, info=found.info)
        )
    else:
        monkeypatch.setattr(there.xp.linalg, "cholesky", lambda _: upper)
    assert definite.shortfalls_on_device(there.asarray(matrix))[0] == true


def test_a_factor_that_lies_is_found_out(there, monkeypatch):
    matrix = np.diag(np.linspace(1, 2, 70)).astype(np.complex64)[None]
    factor_of(monkeypatch, there.asarray((1.1 * np.sqrt(matrix)).astype(np.complex64)))
    shortfall, _ = definite.shortfalls_on_device(there.asarray(matrix))
    assert shortfall[0] >= np.linalg.norm(0.21 * matrix[0]) * (1 - 1e-6)


def test_what_is_left_below_the_diagonal_blocks_counts_twice(there, monkeypatch):
    factor_of(monkeypatch, there.asarray((2.0**-30 * np.eye(70, dtype=np.complex64))[None]))
    v = np.zeros(70)
    v[[0, 69]] = 1  # of this matrix there is an entry in each block, and -2 is an eigenvalue
    matrix = (-np.outer(v, v)).astype(np.complex64)[None]
    assert definite.shortfalls_on_device(there.asarray(matrix))[0][0] >= 2


def test_all_of_a_diagonal_block_counts(there, monkeypatch):
    factor_of(monkeypatch, there.asarray((2.0**-30 * np.eye(70, dtype=np.complex64))[None]))
    for place in ((3, 60), (60, 3)):  # what a library computed need not be Hermitian
        matrix = np.zeros((1, 70, 70), np.complex64)
        matrix[(0, *place)] = -1
        assert definite.shortfalls_on_device(there.asarray(matrix))[0][0] >= 1


def test_a_library_that_has_one_factor_for_all_or_none_is_asked_again(strict):
    matrices = np.broadcast_to(np.eye(5, dtype=np.complex64), (7, 5, 5)).copy()
    matrices[[1, 4, 5]] *= -1
    shortfall, size = definite.shortfalls_on_device(strict.asarray(matrices))
    assert np.array_equal(shortfall == np.inf, [False, True, False, False, True, True, False])
    assert np.array_equal(size == np.inf, shortfall == np.inf)


def violations():
    matrices = np.stack([nearly_indefinite(seed, inner=64) for seed in range(400)])
    factor = np.broadcast_to(np.sqrt(40) * np.eye(96), matrices.shape).astype(np.complex64)
    factor[:, :64, :64], factor[:, 64, :64], factor[:, 64, 64] = np.eye(64), matrices[:, 64, :64], 0
    with pytest.MonkeyPatch.context() as patch:
        factor_of(patch, factor)  # as good as any
        shortfall, _ = definite.shortfalls_on_device(matrices)
    smallest = np.linalg.eigvalsh(matrices.astype(complex))[:, 0]
    return np.count_nonzero(shortfall + smallest < -1e-12)


def test_rounding_of_products_counts(monkeypatch):
    assert violations() == 0
    monkeypatch.setattr(definite, "shortfall", lambda measured, *_, **__: measured)
    assert violations() > 0


@pytest.mark.parametrize("taken", ["narrow_error", "error"])
def test_errors_of_the_sum_count(strict, monkeypatch, taken):
    """A square of 1 x 1 that vanishes: what is left of it is what rounding made."""
    kernel = np.asarray([1.0, -2.0, 1.0])[None, None, :]
    wide = taken == "error"
    monkeypatch.setattr(definite, "shortfalls_on_device", no_loss)
    with hostile.computing(hostile.KINDS["low"]):
        square = square_there(kernel)
        turns = np.asarray([[3e-6 if wide else 1e-4], [1e-3], [2e-3]])
        turns = snapped(np.concatenate([turns, turns * 1.1, turns * 1.3, turns * 1.7]))
        norms = np.abs(symbols(kernel, turns)[:, 0, 0])

        def too_low():
            # the level that is just enough for the matrix as it was formed
            formed = formed_there(square, turns, np.zeros(len(turns)), wide=wide)[:, 0, 0].real
            levels = np.maximum(-formed.astype(np.float64), 0.0)
            found = square._bounds(turns, levels, wide=wide)
            return np.count_nonzero(found < norms**2 * (1 - 1e-12))

        assert too_low() == 0
        square.__dict__[taken] = 0.0
        assert too_low() > 0


def no_loss(matrices):
    """Claim that matrices are semidefinite, and that their entries are zero."""
    return np.zeros(matrices.shape[0]), np.zeros(matrices.shape[0])


def test_a_level_counts_as_the_device_sees_it(there, monkeypatch):
    monkeypatch.setattr(definite, "shortfalls_on_device", no_loss)
    level = 1 + 2.0**-24 + 2.0**-40
    square = square_there(noise((33, 32, 2)))
    square.error, square.narrow_error = 0.0, 0.0
    assert square._bounds(np.zeros((1, 1)), np.full(1, level), wide=False)[0] >= 1 + 2.0**-23


def test_rounding_of_the_stored_matrix_counts(there, monkeypatch):
    monkeypatch.setattr(
        definite,
        "shortfalls_on_device",
        lambda a: (np.zeros(a.shape[0]), np.full(a.shape[0], 3.0)),
    )
    square = square_there(noise((33, 32, 2)))
    square.error, square.narrow_error = 0.0, 0.0
    for wide, unit in ((False, U32), (True, 2.0**-53)):
        if wide and not there.has_float64:
            continue
        assert square._bounds(np.zeros((1, 1)), np.ones(1), wide=wide)[0] >= 1 + 3 * unit


def test_the_norm_of_moduli_counts_what_its_sums_lose_there(strict):
    q = 100
    with hostile.computing(hostile.KINDS["low"]):
        moduli = definite._moduli(strict.asarray(np.ones((1, q, q), np.complex64)))
        quotients = crossing.to_host(definite._quotients(moduli))
    assert quotients[0] < q**2 * (1 - q * U32) <= q**2
    assert definite._above(quotients, q, np.dtype(np.complex64))[0] >= q**2


def test_products_stay_apart_where_a_compiler_would_join_them():
    """XLA may make one sum of several, with the rounding of a longer one."""
    jax = pytest.importorskip("jax")
    a = jax.numpy.zeros((2, 130, 130), "complex64")
    text = jax.jit(definite._left).lower(a, a).as_text()
    # six products of blocks, three sums of rows and of blocks
    assert text.count("optimization_barrier") == 6 + 2 * 3
    text = jax.jit(definite._quotients).lower(a.real).as_text()
    assert text.count("optimization_barrier") == definite._ROUNDS - 1
    sent = [jax.numpy.zeros(shape) for shape in ((2, 3), (2, 2), (2,), (3, 25), (2, 25))]
    assert jax.jit(squared_there._formed).lower(*sent).as_text().count("optimization_barrier") == 2
