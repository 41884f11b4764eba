"""Blocks that are zero, next to nothing or not finite beside others, and solvers that give up."""

import math
from unittest import mock

import numpy as np
import pytest

import gramnorm as gn
from gramnorm import classical
from gramnorm._arrays import limits
from gramnorm._matrix import certificate, gradients
from tests.harness import oracles

ETA = 5e-324
SOLVERS = ("cholesky", "eigh", "inv", "qr", "solve", "svdvals")
DEAD = {
    "zero": 0.0,
    "subnormal": ETA,
    "squares underflow": 1e-170,
    "fourth powers underflow": 1e-90,
}


def rng(seed=0):
    return np.random.default_rng(seed)


def holds(a, bracket):
    """Assert that the bracket holds for one finite matrix, and return it."""
    found = oracles.check_stack(
        np.asarray(a)[None], np.asarray([bracket.lower]), np.asarray([bracket.upper])
    )
    assert not found.upper_violated, bracket
    assert not found.lower_violated, bracket
    return bracket


def depthwise(size, dead, channels=8):
    kernel = rng().standard_normal((channels, 1, 3, 3))
    kernel[1] *= dead
    kernel[-1] = 0
    return kernel, size


@pytest.mark.parametrize("dead", DEAD.values(), ids=DEAD)
@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "replicate", "reflect", "symmetric"])
def test_a_dead_channel_beside_others_changes_nothing(dead, padding_mode):
    """At this size each group is a Gram matrix with more than `SQUARING_COLUMNS` rows."""
    kernel, size = depthwise((30, 30), dead)
    options = {"stride": 2, "padding": 1, "padding_mode": padding_mode}
    alive = gn.conv_norm_bracket(kernel[2:-1], size, groups=5, **options)
    every = gn.conv_norm_bracket(kernel, size, groups=8, **options)
    first = gn.conv_norm_bracket(kernel[:1], size, **options)
    assert every.lower <= max(alive.upper, first.upper)
    assert every.upper >= max(alive.lower, first.lower)
    assert every.converged


def test_many_channels_of_which_one_is_dead_have_a_gradient():
    kernel = rng().standard_normal((40, 1, 3, 3)).astype(np.float32)
    kernel[5] = 0
    options = {"stride": 2, "groups": 40}
    value, gradient = gn.conv_norm_value_and_grad(kernel, (32, 32), **options)
    assert value <= gn.conv_norm_bound(kernel, **options)
    assert np.all(gradient[5] == 0)
    assert np.sum(gradient * kernel) == pytest.approx(float(value), rel=2e-3)


@pytest.mark.parametrize("scale", [1e-150, 1e-90, 1e-40, 1e-10])
@pytest.mark.parametrize("channels", [60, 200])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_an_operator_that_is_next_to_nothing_beside_taps_that_read_no_sample(
    scale, channels, dtype
):
    """With one sample only the tap in the middle counts: the norm is far below that of the kernel."""
    kernel = rng().standard_normal((channels, channels, 3)).astype(dtype)
    kernel[:, :, 1] *= scale
    bracket = gn.conv_norm_bracket(kernel, 1, padding="same")
    norm = np.linalg.norm(kernel[:, :, 1] / scale, 2) * scale
    assert bracket.lower <= norm * (1 + 1e-12)
    assert bracket.upper >= norm * (1 - 1e-12)
    assert bracket.converged or scale < 1e-140


@pytest.mark.parametrize("scale", [1.0, 2.0**-60, 2.0**-200, 2.0**-500, 2.0**-1000])
@pytest.mark.parametrize("kind", [np.float64, np.complex128])
def test_a_gram_matrix_of_any_size_has_its_certificate(scale, kind):
    a = rng().standard_normal((210, 203)).astype(kind)
    a = a + 1j * rng(1).standard_normal(a.shape) if kind is np.complex128 else a
    gram = a.conj().T @ a
    for rtol in (1e-3, 1e-9):
        error = 1e-13 * np.trace(gram).real * scale
        one = certificate.gram_certificate(gram * scale, error=error, rtol=rtol)
        norm = np.linalg.norm(a, 2) * math.sqrt(scale)
        assert one.lower <= norm * (1 + 1e-12)
        assert one.upper >= norm * (1 - 1e-12)
        assert one.is_within(rtol)


@pytest.mark.parametrize("n", [5, 120, 210])
def test_a_gram_matrix_of_zeros_has_its_certificate(n):
    for value in (0.0, ETA):
        gram = np.full((n, n), value)
        one = certificate.gram_certificate(gram, error=1e-300, rtol=1e-3)
        assert one.lower == 0.0
        assert math.sqrt(1e-300) <= one.upper <= 1e-70
    plain = certificate.approximate_eigenvector(np.zeros((n, n)), 1e-3)
    assert np.linalg.norm(plain) == pytest.approx(1.0)


@pytest.mark.parametrize("side", [3, 40, 210])
@pytest.mark.parametrize("part", [None, 1])
def test_stacks_with_dead_and_broken_blocks(monkeypatch, side, part):
    a = rng().standard_normal((7, side, side))
    scales = [1.0, 0.0, ETA, 1e-170, np.inf, np.nan, 1.0]
    with np.errstate(all="ignore"):
        a = a * np.asarray(scales)[:, None, None]
    a[4] = np.where(np.isnan(a[4]), 0.0, a[4])
    if part is not None:
        monkeypatch.setattr("gramnorm._arrays.limits.PART_BYTES", 16 * side * side * part)
    for rtol in (None, 1e-2, 1e-13):
        bracket = gn.matrix_norm_bracket(a, rtol=rtol, vectors=True)
        for i in (0, 1, 2, 3, 6):
            one = gn.NormBracket(*(x[i] for x in (bracket.lower, bracket.upper)), True, 0)
            if side < 10:
                holds(a[i], one)
            norm = np.linalg.norm(a[i] / (scales[i] or 1), 2) * scales[i]
            assert one.lower <= norm * (1 + 1e-12) + ETA
            assert one.upper >= norm * (1 - 1e-12)
        assert bracket.upper[1] == 0
        assert bracket.lower[4] == bracket.upper[4] == np.inf
        assert np.isnan(bracket.lower[5])
        assert np.isnan(bracket.upper[5])
        assert np.all(np.isfinite(bracket.left[:4]))
    for steps in (None, 3):
        value, gradient = gn.matrix_norm_value_and_grad(a, steps=steps)
        assert np.all(np.isfinite(gradient[[0, 1, 2, 3, 6]]))
        assert np.all(gradient[1] == 0)
        assert np.all(np.isnan(gradient[4:6]))
        assert value[1] == 0
    scaled = gn.spectral_rescaling(a, steps=3)
    assert np.all(scaled[1] == 0)
    assert np.all(np.isnan(scaled[4:6]))
    assert np.all(gn.matrix_norm_bracket(scaled[[0, 2, 3, 6]]).lower <= 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["float32", "float64", "complex64", "complex128"])
def test_fixed_steps_are_silent_about_what_is_not_finite(kind):
    a = np.asarray([[[1.0, 2.0]], [[0.0, 0.0]], [[np.inf, 1.0]], [[np.nan, 1.0]]]).astype(kind)
    values = gn.gram_iteration(a, steps=3)
    assert values[1] == 0
    assert values[2] == np.inf
    assert np.isnan(values[3])
    gn.matrix_norm_value_and_grad(a, steps=3)
    for kernel in a:
        gn.conv_gram_iteration(kernel[..., None], 4, steps=2)
        gn.conv_norm_value_and_grad(kernel[..., None], 4, steps=2, padding_mode="circular")


@pytest.mark.parametrize("name", classical.METHODS)
@pytest.mark.parametrize("dead", DEAD.values(), ids=DEAD)
def test_classical_methods_with_a_dead_group(name, dead):
    kernel = rng().standard_normal((6, 2, 3))
    kernel[2:4] *= dead
    method = classical.METHODS[name]
    value = float(method.function(kernel, 6, groups=3))
    rest = float(method.function(kernel[[0, 1, 4, 5]], 6, groups=2))
    assert value == pytest.approx(rest, rel=1e-6)
    for scale in (0.0, dead):
        small = float(method.function(kernel * scale, 6, groups=3))
        assert 0 <= small <= value * (scale + ETA) * 1.001 + 3 * ETA


def test_parts_of_a_dilation_that_read_nothing():
    """Dilated by three, five samples fall apart into parts of two, two and one."""
    kernel = rng().standard_normal((3, 2, 2))
    kernel[:, :, 0] = 0
    for size in (1, 2, 3, 4, 5):
        options = {"dilation": 3, "padding": (0,)}
        bracket = gn.conv_norm_bracket(kernel, size, **options)
        found = oracles.check_conv(
            kernel, (size,), float(bracket.lower), float(bracket.upper), dilation=3, padding=0
        )
        assert not found.upper_violated
        assert not found.lower_violated


def test_filters_with_dead_outputs_and_taps():
    taps = rng().standard_normal((4, 3, 2))
    taps[:, 1] = 0
    taps[2] = 0
    alive = gn.fir_norm(taps[:, [0, 2]])
    bracket = gn.fir_norm(taps)
    assert bracket.lower <= alive.upper
    assert bracket.upper >= alive.lower
    assert gn.fir_norm(np.zeros((4, 3, 2))).upper == 0


def test_layers_with_dead_channels_have_norms_and_gradients():
    torch = pytest.importorskip("torch")
    from gramnorm.torch import SpectralBound, layer_norms, lipschitz_penalty  # noqa: PLC0415

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 3, 3, stride=2, padding=1, groups=3), torch.nn.Flatten(), torch.nn.Linear(675, 4)
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight[1] = 0
        model[2].weight[1] = 0
    norms = layer_norms(model, input_shapes={"0": (30, 30)})
    assert all(norm > 0 for norm in norms.values())
    lipschitz_penalty(model, input_shapes={"0": (30, 30)}).backward()
    assert all(torch.all(torch.isfinite(model[i].weight.grad)) for i in (0, 2))
    for method in ("divide", "rescale"):
        weight = SpectralBound(model[0], method=method)(model[0].weight)
        assert torch.all(weight[1] == 0)
        assert gn.conv_norm_bracket(weight.detach(), stride=2, groups=3).lower <= 1


# ------------------------------------------------------------------------- solvers that give up


def gives_up(*_):
    raise np.linalg.LinAlgError


def gives_nan(a, *_):
    """Return NaN, as some libraries do in place of an error."""
    nothing = np.full_like(a, np.nan)
    return nothing[..., 0].real, nothing


@pytest.fixture(params=[*SOLVERS, "all", "eigh to nan", "svdvals to nan"])
def broken(request, monkeypatch):
    """Let solvers of NumPy fail."""
    name, _, nan = request.param.partition(" ")
    for solver in SOLVERS if name == "all" else [name]:
        failing = gives_up
        if nan:
            failing = gives_nan if solver == "eigh" else lambda a: gives_nan(a)[0]
        monkeypatch.setattr(np.linalg, solver, failing)


def singular(a):
    """Return the norm by `numpy.linalg.svd`, which nobody else calls."""
    return np.linalg.norm(a, 2)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("shape", [(6, 5), (130, 100), (200, 194)])
@pytest.mark.parametrize("squared", [192, 0])
def test_matrices_are_bracketed_where_solvers_give_up(monkeypatch, shape, squared):
    monkeypatch.setattr(limits, "SQUARING_COLUMNS", squared)
    a = rng(3).standard_normal(shape)
    norm = singular(a)
    for rtol in (1e-2, 1e-6, 1e-12):
        bracket = gn.matrix_norm_bracket(a, rtol=rtol, vectors=True)
        assert bracket.lower <= norm * (1 + 1e-13)
        assert bracket.upper >= norm * (1 - 1e-13)
        assert bracket.converged == (bracket.upper - bracket.lower <= rtol * bracket.lower)
        assert bracket.upper <= norm * 1.1
        assert np.linalg.norm(bracket.left) == pytest.approx(1.0)
        assert np.linalg.norm(bracket.right) == pytest.approx(1.0)
    value, gradient = gn.matrix_norm_value_and_grad(a)
    assert np.sum(gradient * a) == pytest.approx(float(value))
    assert np.linalg.norm(gradient) <= 1.01


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "replicate"])
def test_convolutions_are_bracketed_where_solvers_give_up(monkeypatch, padding_mode):
    monkeypatch.setattr(limits, "SQUARING_COLUMNS", 16)
    kernel, size = depthwise((14, 14), 1e-90, channels=3)
    options = {"groups": 3, "stride": 2, "padding": 1, "padding_mode": padding_mode}
    dense = oracles.conv_matrix(kernel, size, **options)
    norm = singular(dense)
    bracket = gn.conv_norm_bracket(kernel, size, **options)
    assert bracket.lower <= norm * (1 + 1e-13)
    assert norm * (1 - 1e-13) <= bracket.upper <= norm * 1.1
    value, gradient = gn.conv_norm_value_and_grad(kernel, size, **options)
    assert np.all(np.isfinite(gradient))
    assert value == bracket.upper
    every = gn.conv_norm_bracket(kernel, groups=3, stride=2)
    assert every.upper >= norm * (1 - 1e-13) or padding_mode != "zeros"


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("name", classical.METHODS)
def test_classical_methods_where_solvers_give_up(name):
    kernel = rng().standard_normal((3, 2, 3))
    method = classical.METHODS[name]
    value = float(method.function(kernel, 6))
    padding_mode = "circular" if method.operator == "one circle" else "zeros"
    norm = singular(oracles.conv_matrix(kernel, (6,), padding=1, padding_mode=padding_mode))
    if method.side == "upper bound":
        assert value >= norm
    elif method.side == "lower bound":
        assert value <= norm
    elif method.side == "exact":
        assert value == pytest.approx(norm, rel=1e-9)


@pytest.mark.usefixtures("broken")
def test_operators_have_lower_bounds_where_solvers_give_up():
    sparse = pytest.importorskip("scipy.sparse.linalg")
    a = rng().standard_normal((40, 30))
    value = gn.operator_norm_lower_bound(sparse.aslinearoperator(a))
    assert 0.2 * singular(a) < value <= singular(a) * (1 + 1e-13)


def test_solvers_of_torch_that_give_up():
    torch = pytest.importorskip("torch")
    a = torch.from_numpy(rng().standard_normal((230, 200)))

    def gives_up(*_):
        raise torch.linalg.LinAlgError

    with mock.patch.multiple(torch.linalg, cholesky=gives_up, inv=gives_up, svdvals=gives_up):
        bracket = gn.matrix_norm_bracket(a)
        circular = classical.circular_exact_norm(a[:8, :8, None], 4)
    assert bracket.lower <= torch.linalg.matrix_norm(a, 2) * (1 + 1e-13)
    assert bracket.upper >= torch.linalg.matrix_norm(a, 2) * (1 - 1e-13)
    assert circular == pytest.approx(float(torch.linalg.matrix_norm(a[:8, :8], 2)), rel=1e-9)


def test_a_shift_that_is_an_eigenvalue_has_a_gradient():
    """The matrix of the inverse iteration is singular."""
    a = np.diag(np.linspace(1.0, 2.0, 200))
    rtol = 1e-6
    a[-2, -2] = math.sqrt(4 * (1 + rtol / 8))
    with mock.patch.object(np.linalg, "solve", gives_up):
        expected = gradients.of_norm(a[None], np.asarray([2.0]), rtol=rtol)
    found = gradients.of_norm(a[None], np.asarray([2.0]), rtol=rtol)
    assert np.sum(found * a) == pytest.approx(2.0)
    assert np.allclose(found, expected, atol=1e-3)


# --------------------------------------------------------------- operators: vectors of all kinds


class Given:
    """An operator that returns what it is told to."""

    def __init__(self, a, kind=None, adjoint=None):
        self.a, self.kind = a, kind
        self.b = a.conj().T if adjoint is None else adjoint
        self.shape = a.shape

    def matvec(self, x):
        y = self.a @ x
        y = y if self.kind is None else y.astype(self.kind)
        self.last = x, y
        return y

    def rmatvec(self, y):
        x = self.b @ y
        return x if self.kind is None else x.astype(self.kind)


@pytest.mark.parametrize("kind", ["complex64", "float32", "complex128", "float64"])
def test_vectors_in_single_precision_are_judged_in_double(kind):
    """The quotient of the last product is not above what it is in extended precision."""
    for seed in range(20):
        operator = Given(rng(seed).standard_normal((50, 20)), kind)
        value = gn.operator_norm_lower_bound(operator)
        x, y = (v.astype(np.clongdouble) for v in operator.last)
        quotient = np.sqrt(np.sum(np.abs(y) ** 2) / np.sum(np.abs(x) ** 2))
        assert quotient * (1 - 1e-13) < value <= quotient


def test_products_that_are_no_adjoints_give_a_lower_bound_as_well():
    a = rng().standard_normal((6, 5))
    for wrong in (np.zeros((5, 6)), -a.T, rng(1).standard_normal((5, 6)), 1e-320 * a.T):
        value = gn.operator_norm_lower_bound(Given(a, adjoint=wrong))
        assert 0 < value <= np.linalg.norm(a, 2) * (1 + 1e-13)


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e-160, 1e160, 1e300])
def test_operators_of_any_size(scale):
    a = rng().standard_normal((6, 5)) * scale
    value = gn.operator_norm_lower_bound(Given(a))
    norm = np.linalg.norm(a / scale, 2)
    assert 0.99 * norm - 3e-3 < value / scale <= norm * (1 + 1e-13) + (scale < 1e-310) * 3e-3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("power", range(-163, -153))
def test_sums_of_moduli_with_a_group_whose_products_are_subnormal(power):
    kernel = np.ones((2, 1, 3))
    kernel[1] *= 10.0**power
    for steps in (1, 2, 4):
        value = gn.classical.norm2toep_upper_bound(kernel, groups=2, steps=steps)
        assert 3 <= value <= 3 * (1 + 1e-12)


def test_sums_of_moduli_with_such_a_group_in_every_library(be):
    kernel = np.ones((2, 1, 3))
    for power in range(-170, -153) if be.has_float64 else range(-24, -17):
        kernel[1] = 10.0**power
        value = gn.classical.norm2toep_upper_bound(be.asarray(kernel), groups=2, steps=3)
        assert 3 <= be.to_numpy(value) <= 3 * (1 + (1e-12 if be.has_float64 else 1e-4))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-323, 1e-318, 1e-309, 1e-300, 1e300])
def test_complex_operators_of_any_size(scale):
    """A complex quotient by a subnormal number would overflow."""
    a = (rng().standard_normal((6, 5)) + 1j * rng(1).standard_normal((6, 5))) * scale
    value = gn.operator_norm_lower_bound(Given(a))
    norm = np.linalg.norm(a / scale if scale > 1e-300 else a * 2.0**1000, 2)
    norm = norm * scale if scale > 1e-300 else norm * 2.0**-1000
    rounded = 2 * math.sqrt(60) * 5e-324  # what the products with subnormal entries may lose
    assert 0.99 * norm - rounded <= value <= norm * (1 + 1e-13) + rounded


@pytest.mark.filterwarnings("error")
def test_complex_images_next_to_nothing_of_vectors_that_are_no_good():
    a = np.diag([1.0 + 0j, 1e-309])
    for wrong in ([[0, 0], [1.0, 0]], [[0, 0j], [0, 0]]):
        assert 0 < gn.operator_norm_lower_bound(Given(a, adjoint=np.asarray(wrong))) <= 1


def test_a_start_that_the_operator_hardly_sees():
    """The start is fixed; an operator made to cancel on it is huge elsewhere."""
    start = rng().standard_normal(4)
    row = rng(1).standard_normal(4)
    row -= (row @ start) / (start @ start) * start
    a = np.stack([1e200 * row, start])
    value = gn.operator_norm_lower_bound(Given(a))
    assert 0 < value <= np.linalg.norm(row) * 1e200 * (1 + 1e-12)


def test_assembled_matrices_with_dead_groups_in_every_library(be):
    kernel = rng().standard_normal((3, 1, 5))
    kernel[1] = 0
    bracket = gn.conv_norm_bracket(be.asarray(kernel), 230, groups=3)
    stored = be.to_numpy(be.asarray(kernel)).astype(float)
    dense = oracles.conv_matrix(stored, (230,), groups=3, padding="same")
    norm = np.linalg.norm(dense, 2)
    assert float(be.to_numpy(bracket.lower)) <= norm * (1 + 1e-13)
    assert float(be.to_numpy(bracket.upper)) >= norm * (1 - 1e-13)
