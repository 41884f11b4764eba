"""Norms followed through small changes: never above the norm, seldom far below, and cheap."""

import numpy as np
import pytest

import gramnorm as gn
from gramnorm import _waves
from tests.harness import oracles
from tests.harness.convolutions import stored_dtype

CONVOLUTIONS = {
    "3 x 3": ((6, 5, 3, 3), {}),
    "stride": ((6, 5, 3, 3), {"stride": (2, 1)}),
    "dilation": ((6, 3, 3, 3), {"dilation": 2, "groups": 2}),
    "one axis": ((4, 4, 5), {}),
    "one tap": ((6, 4, 1, 1), {}),
    "one tap of a stride": ((6, 4, 1, 1), {"stride": 2}),
    "unread phases": ((4, 4, 2), {"stride": 3}),
    "transposed": ((6, 3, 4), {"stride": 2, "transposed": True}),
}


IN_JAX = {("one axis", None, "float64"), ("stride", 7, "float64")}
"""Which of them JAX compiles, at more than a second each."""


def change(x, rng, size):
    scale = size / np.sqrt(x[0].size)
    return (x + scale * rng.standard_normal(x.shape)).astype(x.dtype)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("size", [None, 7], ids=["every size", "one size"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_norm_of_a_convolution_is_followed_from_below(be, name, size, dtype):
    if be.id.startswith("jax") and (name, size, dtype) not in IN_JAX:
        pytest.skip("a compilation per shape")
    shape, options = CONVOLUTIONS[name]
    rng = np.random.default_rng(0)
    geometry = gn.ConvGeometry.of(shape, size, **options)
    kernel = change(np.zeros(shape, stored_dtype(be, dtype)), rng, 1.0)
    state = gn.start_tracking(be.asarray(kernel), geometry)
    for _ in range(30 if be.id == "numpy" else 6):
        kernel = change(kernel, rng, 0.005)
        value, state = gn.track_norm(be.asarray(kernel), state, geometry, steps=2)
    bracket = gn.conv_norm_bracket(kernel, size, **options)
    assert be.is_at_home(value)
    assert value.shape == ()
    assert 0.99 * bracket.lower <= float(be.to_numpy(value)) <= bracket.upper * (1 + 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_the_norm_of_a_matrix_is_followed_from_below(be, dtype):
    rng = np.random.default_rng(1)
    x = change(np.zeros((30, 20), stored_dtype(be, dtype)), rng, 1.0)
    state = gn.start_tracking(be.asarray(x))
    for _ in range(30):
        x = change(x, rng, 0.005)
        value, state = gn.track_norm(be.asarray(x), state)
    assert state.vector.shape == (8, 20)
    norm = oracles.sigma(x)
    assert 0.99 * norm <= float(be.to_numpy(value)) <= norm * (1 + 1e-5)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_no_step_lowers_the_value(name):
    shape, options = CONVOLUTIONS[name]
    rng = np.random.default_rng(2)
    geometry = gn.ConvGeometry.of(shape, **options)
    state = gn.start_tracking(rng.standard_normal(shape), geometry)
    other = rng.standard_normal(shape)
    values = [float(gn.track_norm(other, state, geometry, steps=0)[0])]
    for _ in range(100):
        value, state = gn.track_norm(other, state, geometry)
        values.append(float(value))
    assert np.all(np.diff(values) >= -1e-12 * values[-1])
    # from a place that has nothing to do with it to a local maximum, at least
    bracket = gn.conv_norm_bracket(other, **options)
    assert 0.5 * bracket.lower <= values[-1] <= bracket.upper


@pytest.mark.parametrize("options", [{}, {"groups": 3}], ids=["a matrix", "groups"])
def test_no_step_with_a_matrix_lowers_the_value(options):
    rng = np.random.default_rng(5)
    shape = (30, 20, 1, 1) if options else (90, 60)
    geometry = gn.ConvGeometry.of(shape, **options) if options else None
    state = gn.start_tracking(rng.standard_normal(shape), geometry)
    other = rng.standard_normal(shape)
    values = [float(gn.track_norm(other, state, geometry, steps=0)[0])]
    for _ in range(60):
        value, state = gn.track_norm(other, state, geometry)
        values.append(float(value))
    norm = (
        max(oracles.sigma(block) for block in other.reshape(-1, shape[0] // 3, 20))
        if (options)
        else oracles.sigma(other)
    )
    assert np.all(np.diff(values) >= -1e-12 * norm)
    assert abs(values[-1] / norm - 1) < 1e-3


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (3, 3)])
def test_a_matrix_of_rank_eight_has_no_time_to_lag_behind(shape):
    rng = np.random.default_rng(6)
    state = gn.start_tracking(rng.standard_normal(shape))
    for _ in range(5):  # nothing to do with one another
        x = rng.standard_normal(shape)
        value, state = gn.track_norm(x, state, steps=2)
        assert float(value) == pytest.approx(oracles.sigma(x), rel=1e-10)


def test_a_direction_that_grows_to_be_the_largest_is_found():
    rng = np.random.default_rng(7)
    x = rng.standard_normal((200, 200)) / 200**0.5
    u, v = (np.sign(rng.standard_normal(200)) / 200**0.5 for _ in range(2))
    state = gn.start_tracking(x)
    ratios = []
    for step in range(60):
        y = x + 0.1 * step * np.outer(u, v)
        value, state = gn.track_norm(y, state)
        ratios.append(float(value) / oracles.sigma(y))
    assert min(ratios) > 0.98
    assert max(ratios) <= 1 + 1e-12


def wave_kernel(frequency, rng):
    """Return a kernel whose symbol is high about a frequency."""
    phase = np.arange(3)[:, None] * frequency[0] + np.arange(3) * frequency[1]
    return np.multiply.outer(rng.standard_normal((6, 5)), np.cos(phase))


def test_a_peak_that_overtakes_another_one_elsewhere_is_found():
    rng = np.random.default_rng(8)
    one, other = (wave_kernel(f, rng) for f in ((0.0, 0.0), (2.4, -1.3)))
    geometry = gn.ConvGeometry.of(one.shape)
    state = gn.start_tracking(one, geometry)
    ratios = []
    for share in np.linspace(0, 1, 40):
        kernel = (1 - share) * one + share * other
        value, state = gn.track_norm(kernel, state, geometry, steps=2)
        ratios.append(float(value) / float(gn.conv_norm_bracket(kernel, rtol=1e-6).lower))
    assert min(ratios) > 0.99
    assert max(ratios) <= 1 + 2e-6


def test_the_grid_holds_one_of_two_frequencies_that_mirror_each_other():
    """The norms of a real kernel at theta and -theta are the same."""
    real, every = (_waves.tables((3, 3), (1, 1), (1, 1), kind) for kind in (False, True))
    assert (len(real.grid), len(every.grid)) == (41, 81)
    mirrored = {tuple(np.round(x % (2 * np.pi), 6) % 6.283185) for x in (-real.grid)}
    assert mirrored | {tuple(np.round(x, 6)) for x in real.grid} == {
        tuple(np.round(x, 6)) for x in every.grid
    }
    beside = _waves.tables((4,), (1,), (1,), False).neighbours
    assert [set(row) for row in beside] == [
        {0, 1},
        *({k - 1, k, k + 1} for k in range(1, 6)),
        {5, 6},
    ]
    # of stride 2 the period is a half, of four channels for one; one tap in a stride has no frequency
    assert _waves.tables((3,), (2,), (1,), True).grid.ravel() == pytest.approx(
        np.arange(6) * np.pi / 6
    )
    assert len(_waves.tables((2,), (2,), (1,), True).grid) == 1


def test_the_gradient_is_that_of_the_norm():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    for shape, geometry in (((5, 4), None), ((4, 3, 3), gn.ConvGeometry.of((4, 3, 3)))):
        x = torch.tensor(rng.standard_normal(shape), requires_grad=True)
        value, state = gn.track_norm(x, gn.start_tracking(x, geometry), geometry, steps=30)
        (gradient,) = torch.autograd.grad(value, x)
        norm_of = gn.matrix_norm_value_and_grad if geometry is None else gn.conv_norm_value_and_grad
        norm, expected = norm_of(x.detach().numpy(), rtol=1e-9)
        assert abs(float(value.detach()) / norm - 1) < 1e-6
        assert np.allclose(gradient.numpy(), expected, atol=1e-3)
        assert not state.vector.requires_grad


def test_a_compiled_graph_holds_a_followed_norm_as_one_operation():
    """Of what takes a step a compiler would see hundreds of operations, and work for minutes."""
    torch = pytest.importorskip("torch")
    kernel = np.random.default_rng(9).standard_normal((4, 3, 3)).astype("float32")
    geometry = gn.ConvGeometry.of(kernel.shape, stride=2)
    x = torch.tensor(kernel, requires_grad=True)
    state = gn.start_tracking(x.detach(), geometry)

    class Followed(torch.nn.Module):
        def forward(self, x, state):
            value, state = gn.track_norm(2 * x, state, geometry, steps=3)
            return 3 * value, state

    torch.compiler.reset()
    compiled = torch.compile(Followed(), backend="aot_eager", fullgraph=True)
    (found, kept), (expected, state_then) = (f(x, state) for f in (compiled, Followed()))
    assert torch.allclose(found, expected)
    assert torch.allclose(kept.vector, state_then.vector, atol=1e-4)
    (slope,), (other,) = (torch.autograd.grad(value, x) for value in (found, expected))
    assert torch.allclose(slope, other, atol=1e-4)
    exported = torch.export.export(Followed(), (x.detach(), state))
    graphs = [
        m.graph for m in exported.graph_module.modules() if isinstance(m, torch.fx.GraphModule)
    ]
    assert 30 < sum(len(graph.nodes) for graph in graphs) < 100
    assert torch.allclose(exported.module()(x.detach(), state)[0], expected)


@pytest.mark.slow
def test_jax_follows_inside_of_a_compiled_step():
    jax = pytest.importorskip("jax")
    kernel = jax.numpy.asarray(np.random.default_rng(4).standard_normal((4, 3, 3, 3)), "float32")
    geometry = gn.ConvGeometry.of(kernel.shape)

    @jax.jit
    def step(kernel, state):
        norm = jax.value_and_grad(lambda k: gn.track_norm(k, state, geometry), has_aux=True)
        (value, state), gradient = norm(kernel)
        return kernel - 0.01 * gradient, state, value

    first = float(gn.conv_norm_bound(kernel))
    for count in range(20):
        if count % 5 == 0:  # what lowers the largest peak makes another the largest
            state = gn.start_tracking(kernel, geometry)
        before = kernel
        kernel, state, value = step(kernel, state)
        bracket = gn.conv_norm_bracket(before)
        assert 0.97 * bracket.lower <= value <= bracket.upper
    assert value < first - 0.1


def test_zero_and_nan(be):
    zero = be.asarray(np.zeros((3, 2, 3)))
    geometry = gn.ConvGeometry.of((3, 2, 3))
    value, _ = gn.track_norm(zero, gn.start_tracking(zero, geometry), geometry)
    assert float(be.to_numpy(value)) == 0
    broken = be.asarray(np.full((3, 2, 3), np.nan))
    state = gn.start_tracking(be.asarray(np.ones((3, 2, 3))), geometry)
    assert np.isnan(be.to_numpy(gn.track_norm(broken, state, geometry)[0]))


@pytest.mark.parametrize("power", [-1060, -1030, 1020])
def test_every_scale_is_followed(be, power):
    power = power if be.has_float64 else power // 8 + 7 * (power < 0)
    a = np.ldexp(np.asarray([[1, 0.5], [0.25, 1]], stored_dtype(be, "float64")), power)
    flushes = be.id.startswith("jax")  # subnormal numbers are zeros there
    kernel = np.stack([a, a], axis=-1)
    for x, geometry in ((a, None), (kernel, gn.ConvGeometry.of(kernel.shape))):
        state = gn.start_tracking(be.asarray(x), geometry)
        value = float(be.to_numpy(gn.track_norm(be.asarray(x), state, geometry)[0]))
        bracket = gn.matrix_norm_bracket(x) if geometry is None else gn.conv_norm_bracket(x)
        assert value <= bracket.upper * (1 + 1e-5)
        assert flushes or value >= bracket.lower * (1 - 1e-2)


def test_inf_is_the_norm_and_an_empty_matrix_has_norm_zero(be):
    one = np.ones((2, 3), stored_dtype(be, "float64"))
    state = gn.start_tracking(be.asarray(one))
    value, state = gn.track_norm(be.asarray(one * np.inf), state)
    assert be.to_numpy(value) == np.inf
    value, _ = gn.track_norm(be.asarray(one), state)  # goes on from where it was
    assert float(be.to_numpy(value)) == pytest.approx(6**0.5, rel=1e-5)
    for shape in ((0, 3), (3, 0)):
        empty = be.asarray(np.zeros(shape, one.dtype))
        assert float(be.to_numpy(gn.track_norm(empty, gn.start_tracking(empty))[0])) == 0


def test_errors_say_what_does_not_fit():
    x = np.ones((3, 2, 3))
    geometry = gn.ConvGeometry.of(x.shape)
    state = gn.start_tracking(x, geometry)
    with pytest.raises(ValueError, match="geometry"):
        gn.start_tracking(x)
    with pytest.raises(TypeError, match="geometry must be a ConvGeometry"):
        gn.track_norm(x, state, {"stride": 2})
    with pytest.raises(ValueError, match="kernel"):
        gn.track_norm(np.ones((3, 2, 5)), state, geometry)
    with pytest.raises(ValueError, match="state"):
        gn.track_norm(np.ones((3, 4, 3)), state, gn.ConvGeometry.of((3, 4, 3)))
    with pytest.raises(TypeError, match="Tracked"):
        gn.track_norm(x, state.vector, geometry)
