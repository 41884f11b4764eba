"""Every geometry of a convolution: the operator itself, its norm at finite sizes, and what is refused."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import gramnorm as gn
from gramnorm._arrays import limits
from gramnorm._conv import circle, every_size, finite_banded, finite_lower
from gramnorm._conv.geometry import Axis, ConvGeometry
from tests.harness import oracles
from tests.harness.convolutions import ask, bound, stored_dtype

MODES = ("zeros", "circular", "reflect", "replicate", "symmetric")


def some(shape, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return (x + 1j * rng.standard_normal(shape) if "complex" in dtype else x).astype(dtype)


@st.composite
def operators(draw):
    """Draw (kernel shape, options with an input_shape) of an operator with at most some 150 columns."""
    dims = draw(st.sampled_from([1, 1, 2]))
    most = {1: (5, 9), 2: (3, 4)}[dims]

    def axes(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    taps, stride, dilation = axes(1, most[0]), axes(1, 3), axes(1, 3)
    shape, groups = axes(1, most[1]), draw(st.sampled_from([1, 1, 2]))
    channels = (draw(st.integers(1, 2)) * groups, draw(st.integers(1, 2)))
    transposed = draw(st.booleans())
    mode = "zeros" if transposed else draw(st.sampled_from(MODES))
    padding = draw(
        st.one_of(st.none(), st.sampled_from(["same", "valid", "full"]), st.integers(0, 3))
    )
    if draw(st.booleans()):
        padding = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(dims))
    options = {
        "input_shape": shape, "stride": stride, "dilation": dilation, "groups": groups,
        "padding": padding, "padding_mode": mode, "transposed": transposed,
    }  # fmt: skip
    if transposed and padding not in (None, "same"):
        options["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
    if mode == "reflect":
        pads = oracles.pads(
            padding if padding is not None else "same", shape, taps, dilation, stride
        )
        assume(all(max(pad) < n for pad, n in zip(pads, shape, strict=True)))
    return (*channels, *taps), options


WITHOUT_OUTPUTS = ((1, 1, 2), {"input_shape": (1,), "padding": "full", "transposed": True})
WITHOUT_OUTPUTS_IN_ONE_AXIS = (
    (2, 3, 2, 3),
    {"input_shape": (1, 4), "padding": ((1, 1), (0, 1)), "transposed": True},
)
drawn = settings(suppress_health_check=[HealthCheck.too_slow])


# ---------------------------------------------------------------------------- the operator itself


@drawn
@given(operator=operators(), kind=st.sampled_from(["float64", "complex128"]))
@example(operator=WITHOUT_OUTPUTS, kind="float64")
@example(operator=WITHOUT_OUTPUTS_IN_ONE_AXIS, kind="complex128")
def test_apply_is_the_convolution_and_adjoint_its_adjoint(be, operator, kind):
    if be.id.startswith("jax"):
        pytest.skip("a compilation per shape")
    shape, options = operator
    kernel = some(shape, stored_dtype(be, kind))
    sizes = options["input_shape"]
    geometry = ConvGeometry.of(shape, **options)
    given_ = {k: v for k, v in options.items() if k != "input_shape"}
    c_in = shape[0] if options["transposed"] else shape[1] * options.get("groups", 1)
    x = some((c_in, *sizes), kernel.dtype.name, 1)
    expected = oracles.conv_apply(kernel, x[..., None], **given_)[..., 0]
    y = be.to_numpy(geometry.apply(be.asarray(kernel), be.asarray(x)))
    tolerance = 1e-4 if not be.has_float64 else 1e-12
    assert y.shape == expected.shape  # of an operator without outputs too
    assert expected.shape[1:] == geometry.output_shape
    np.testing.assert_allclose(y, expected, atol=tolerance, rtol=0)
    z = some(y.shape, kernel.dtype.name, 2)
    back = be.to_numpy(geometry.adjoint(be.asarray(kernel), be.asarray(z)))
    assert back.shape == x.shape
    assert abs(np.vdot(z, y) - np.vdot(back, x)) <= tolerance * np.linalg.norm(z) * 100


def test_a_geometry_tells_its_sizes_and_cannot_be_changed():
    geometry = ConvGeometry.of((8, 3, 3, 2), (7, 8), stride=(3, 2), padding="same", dilation=(1, 2))
    assert geometry.pads == ((1, 1), (0, 1))
    assert geometry.output_shape == (3, 4)
    assert hash(geometry) == hash(
        ConvGeometry.of((8, 3, 3, 2), (7, 8), stride=(3, 2), dilation=(1, 2))
    )
    with pytest.raises(AttributeError):
        geometry.groups = 2


@pytest.mark.parametrize("mode", MODES)
def test_copies_and_coincidences_are_bounds_and_attained(mode):
    for n, k, s, d, lo, hi in itertools.product(
        (1, 2, 3, 5), (1, 2, 4), (1, 2), (1, 2), (0, 1, 2), (0, 2)
    ):
        if mode == "reflect" and max(lo, hi) >= n:
            continue
        outputs = (n + lo + hi - d * (k - 1) - 1) // s + 1
        if outputs < 1:
            continue
        axis = Axis(k, s, d, lo, n, outputs, mode)
        source = axis.sources()
        read = np.unique(axis.stride * np.arange(outputs)[None] + d * np.arange(k)[:, None] - lo)
        where = Axis(1, 1, 1, -int(read[0]), n, int(read[-1] - read[0]) + 1, mode).sources()[0]
        counts = np.bincount(where[where >= 0], minlength=n)
        assert counts.max() <= axis.copies()
        meeting = [np.bincount(column[column >= 0], minlength=n).max() for column in source.T]
        assert max(meeting) <= axis.coincidences()
        assert mode == "circular" or axis.copies() <= {"zeros": 1, "reflect": 3}.get(
            mode, 1 + lo + hi
        )


# ----------------------------------------------------------------------------------- the bounds


def judged(be, kernel, options, **more):
    """Assert that the bracket is on the right side of the dense matrix; return it."""
    options = {k: v for k, v in options.items() if v is not None}
    stored, lower, upper, converged = ask(be, kernel, **options, **more)
    geometry = {k: v for k, v in options.items() if k != "input_shape"}
    found = oracles.check_conv(stored, options["input_shape"], lower, upper, **geometry)
    assert found.clean, (lower, upper)
    return lower, upper, converged


@drawn
@given(
    operator=operators(), kind=st.sampled_from(["float32", "float64", "complex64", "complex128"])
)
def test_small_operators_are_bracketed_and_converge(be, operator, kind):
    if be.compiles:
        pytest.skip("a compilation per shape")
    shape, options = operator
    _, upper, converged = judged(be, some(shape, stored_dtype(be, kind)), options)
    assert converged or upper < 1e-5


@pytest.fixture
def no_matrices(monkeypatch):
    """Take away what makes small operators exact: they go the way of large ones."""
    monkeypatch.setattr(limits, "LONGEST", 0)
    monkeypatch.setattr(limits, "FULL_GRID", 0)


@settings(drawn, suppress_health_check=[*HealthCheck])
@given(operator=operators(), kind=st.sampled_from(["float64", "complex64"]))
def test_the_ways_of_large_operators_are_right_for_small_ones(be, no_matrices, operator, kind):
    if be.compiles:
        pytest.skip("a compilation per shape")
    shape, options = operator
    judged(be, some(shape, stored_dtype(be, kind)), options)


def low_pass(channels, taps, seed=0):
    window = np.hanning(taps + 2)[1:-1]
    mean = some((channels, channels, 1, 1), seed=seed)
    return mean * np.multiply.outer(window, window) + 0.1 * some((channels, channels, taps, taps))


@pytest.mark.parametrize(("n", "most"), [(8, 0.03), (12, 0.012), (16, 0.006)])
@pytest.mark.parametrize(
    "options", [{}, {"padding": "valid"}, {"padding": "full"}, {"dilation": 2}, {"stride": 2}]
)
def test_zero_padding_is_tight_without_the_matrix(no_matrices, n, most, options):
    """Against 7, 3 and 2 per cent for the supremum, the best there was."""
    kernel = low_pass(3, 3)
    upper = float(gn.conv_norm_bound(kernel, (n, n), **options))
    exact = oracles.sigma(oracles.conv_matrix(kernel, (n, n), **options))
    assert (
        exact
        <= upper
        <= exact * (1 + most * (4 if "dilation" in options or "stride" in options else 1))
    )


def test_a_non_negative_symbol_is_bounded_exactly(no_matrices):
    """[1, 2, 1] with zero padding: 2 + 2 cos(pi / (n + 1))."""
    for n in (5, 30, 300):
        bracket = gn.conv_norm_bracket(np.asarray([[[1.0, 2.0, 1.0]]]), n, rtol=1e-6)
        exact = 2 + 2 * math.cos(math.pi / (n + 1))
        assert bracket.lower <= exact * (1 + 1e-15)
        assert exact * (1 - 1e-15) <= bracket.upper <= exact * (1 + 2e-6)


def test_zero_padding_converges_at_every_size(be):
    if be.id not in ("numpy", "torch"):
        pytest.skip("large operators are for the faster backends")
    kernel = low_pass(8, 3).astype("float32")
    evaluations = {}
    for n in (16, 32, 64, 128, 1000):
        bracket = gn.conv_norm_bracket(be.asarray(kernel), (n, n))
        assert bool(be.to_numpy(bracket.converged)), n
        evaluations[n] = bracket.n_products
    assert evaluations[1000] <= 1.5 * evaluations[32]


def test_the_cost_does_not_grow_with_a_circle():
    kernel = some((4, 4, 3, 3))
    cost = {
        n: gn.conv_norm_bracket(kernel, (n, n), padding_mode="circular") for n in (64, 1024, 2**20)
    }
    assert all(bracket.converged for bracket in cost.values())
    assert max(b.n_products for b in cost.values()) <= 1.5 * cost[64].n_products


# ------------------------------------------------------------------------------- known answers


KNOWN = {
    "ones as long as the stride": (np.ones((1, 1, 4)), {"stride": 4}, 2.0),
    "stride and dilation share a factor": (np.ones((1, 1, 3)), {"stride": 3, "dilation": 3}, 3.0),
    "stride three, no dilation": (np.ones((1, 1, 3)), {"stride": 3}, math.sqrt(3)),
    "stride longer than the kernel": (np.ones((1, 1, 2)), {"stride": 5}, math.sqrt(2)),
    "patches": (np.full((2, 2, 4, 4), 0.5), {"stride": 4}, 4.0),
    "transposed": (np.asarray([[[1.0, -2.0, 1.0]]]), {"transposed": True}, 4.0),
    "transposed with stride": (np.ones((1, 1, 4)), {"stride": 2, "transposed": True}, math.sqrt(8)),
    "long": (np.ones((1, 1, 300, 1)), {}, 300.0),
    "depthwise with stride": (np.ones((6, 1, 2, 2)), {"groups": 6, "stride": 2}, 2.0),
    "one tap": (np.asarray([[[[0.0, 0.0], [0.0, -3.0]]]]), {"stride": (2, 1)}, 3.0),
}  # fmt: skip
AT_A_SIZE = {
    "replicate": (np.ones((1, 1, 3)), {"input_shape": 1, "padding_mode": "replicate"}, 3.0),
    "symmetric": (np.ones((1, 1, 3)), {"input_shape": 2, "padding_mode": "symmetric"}, 3.0),
    "reflect": (np.ones((1, 1, 3)), {"input_shape": 2, "padding_mode": "reflect"}, 3.0),
    "over-padded circle": (
        np.ones((1, 1, 1)), {"input_shape": 4, "padding": 2, "padding_mode": "circular"}, math.sqrt(2)),
    "circle, stride 2 on 3 samples": (
        np.ones((1, 1, 2)), {"input_shape": 3, "stride": 2, "padding_mode": "circular"}, math.sqrt(3)),
    "no overlap": (np.ones((1, 1, 3)), {"input_shape": 7, "stride": 3, "padding": 1}, math.sqrt(3)),
    "one output": (np.ones((1, 1, 3)), {"input_shape": 3, "padding": "valid"}, math.sqrt(3)),
    "no output": (np.ones((1, 1, 3)), {"input_shape": 2, "padding": "valid"}, 0.0),
    "transposed at a size": (np.ones((1, 1, 3)), {"input_shape": 1, "padding": 0, "transposed": True}, math.sqrt(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", [*KNOWN, *AT_A_SIZE])
def test_known_answer(be, name):
    if be.compiles and name not in (
        "ones as long as the stride",
        "reflect",
        "transposed at a size",
    ):
        pytest.skip("a compilation per shape")
    kernel, options, answer = (KNOWN | AT_A_SIZE)[name]
    _, lower, upper, converged = ask(be, kernel.astype(stored_dtype(be, "float64")), **options)
    slack = 1e-15 if be.has_float64 else 1e-7
    assert lower <= answer * (1 + slack)
    assert answer * (1 - slack) <= upper <= answer * 1.001
    assert converged


def test_one_kernel_with_three_strides_has_three_norms(be):
    kernel = some((3, 2, 16, 16))
    norms = [bound(be, kernel, stride=s) for s in (1, 16, 256)]
    assert norms[0] > 1.1 * norms[1]
    patches = np.linalg.norm(kernel.reshape(3, -1), 2)
    for norm in norms[1:]:
        assert patches * (1 - 1e-6) <= norm <= patches * 1.001


def test_stride_bounds_every_finite_size(be):
    kernel = some((2, 3, 4), stored_dtype(be, "float64"))
    for stride, dilation in ((2, 1), (2, 2), (3, 2), (4, 6)):
        geometry = {"stride": stride, "dilation": dilation}
        _, _, every, converged = ask(be, kernel, **geometry)
        assert converged
        reference = oracles.sup_reference(kernel, stride=stride, dilation=dilation)[0]
        assert reference * (1 - 1e-6) <= every <= reference * 1.001
        for options in ({"padding": "full"}, {"padding_mode": "circular"}):
            _, lower, _, _ = ask(be, kernel, input_shape=24, **geometry, **options)
            assert lower <= every


def test_the_frequency_of_a_strided_circle_attains_the_lower_bound(be):
    kernel = some((3, 2, 4), stored_dtype(be, "complex128"))
    for stride, dilation, n in ((2, 1, 12), (2, 3, 12), (3, 6, 18), (1, 4, 10)):
        x = be.asarray(kernel)
        for options in ({}, {"input_shape": n, "padding_mode": "circular"}):
            b = gn.conv_norm_bracket(x, stride=stride, dilation=dilation, **options)
            theta = np.asarray(be.to_numpy(b.frequency), dtype=np.float64)
            value = oracles.symbol_sigma(kernel, theta, dilation, stride=stride)
            assert value >= float(be.to_numpy(b.lower)) * (1 - (1e-13 if be.has_float64 else 1e-5))
            if options:
                turns = theta * n / (2 * math.pi)
                assert abs(turns - np.round(turns)) < 1e-4


def test_fixed_steps_with_stride_and_dilation_bound_the_circle(be):
    if be.id.startswith("jax"):
        pytest.skip("a compilation per shape")
    kernel = some((3, 2, 3, 2), stored_dtype(be, "float64"))
    for stride, dilation in ((2, 1), (2, 2), (3, 1), (1, 3)):
        options = {"stride": stride, "dilation": dilation}
        value = gn.conv_gram_iteration(be.asarray(kernel), (6, 12), steps=8, **options)
        exact = oracles.circular_reference(kernel, (6, 12), dilation, stride=stride)
        assert abs(float(be.to_numpy(value)) / exact - 1) < 0.01
    with pytest.raises(ValueError, match="stride must divide input_shape"):
        gn.conv_gram_iteration(be.asarray(kernel), (6, 5), steps=2, stride=2)


# -------------------------------------------------------------------------------- filter banks


def test_the_norm_of_a_filter_bank_and_its_peak(be):
    single = be.asarray(np.asarray([1.0, -2.0, 1.0], stored_dtype(be, "float64")))
    bracket = gn.fir_norm(single)
    assert 4 * (1 - 1e-6) <= float(be.to_numpy(bracket.upper)) <= 4.004
    assert abs(float(be.to_numpy(bracket.frequency)[0]) - math.pi) < 1e-6

    taps = some((9, 3, 2), stored_dtype(be, "float64"))
    bracket = gn.fir_norm(be.asarray(taps))
    theta = np.linspace(0, np.pi, 20001)
    gain = np.linalg.svd(np.einsum("kt,kpm->tpm", np.exp(-1j * np.outer(np.arange(9), theta)), taps),
                         compute_uv=False)[:, 0]  # fmt: skip
    assert float(be.to_numpy(bracket.lower)) <= gain.max() * (1 + 1e-6)
    assert gain.max() * (1 - 1e-6) <= float(be.to_numpy(bracket.upper)) <= gain.max() * 1.001
    peak = float(be.to_numpy(bracket.frequency)[0])
    assert np.interp(peak, theta, gain) >= gain.max() * 0.999


def test_the_peak_of_a_complex_filter_has_the_sign_of_the_transfer_function():
    theta = 0.7
    taps = np.exp(1j * theta * np.arange(6))  # sum_k taps[k] exp(-i k theta) = 6
    bracket = gn.fir_norm(taps, rtol=1e-8)
    assert abs(float(bracket.frequency[0]) - theta) < 1e-3
    assert abs(float(bracket.upper) - 6) < 1e-6


def test_a_filter_bank_has_one_or_three_axes(be):
    with pytest.raises(ValueError, match=r"taps must have shape \(N, outputs, inputs\)"):
        gn.fir_norm(be.asarray(np.ones((3, 2), "float32")))


# ----------------------------------------------------------------------------------- refusals


REFUSED = {
    "reflect of every size": ({"padding_mode": "reflect"}, "input_shape must be given"),
    "replicate of every size": ({"padding_mode": "replicate"}, "input_shape must be given"),
    "symmetric of every size": ({"padding_mode": "symmetric"}, "input_shape must be given"),
    "transposed symmetric": (
        {"input_shape": (4, 4), "transposed": True, "padding_mode": "symmetric"}, "transposed convolution takes"),
    "reflect by too much": ({"input_shape": (3, 3), "padding": 3, "padding_mode": "reflect"}, "padding must be less"),
    "over-padding of every size": ({"padding": 2, "padding_mode": "circular"}, "input_shape must be given"),
    "output_padding": ({"output_padding": 1, "stride": 2}, "output_padding is for transposed=True"),
    "output_padding too large": ({"output_padding": 2, "stride": 2, "transposed": True}, "output_padding must be less"),
    "output_padding with same": (
        {"input_shape": (4, 4), "output_padding": 1, "stride": 2, "transposed": True}, "explicit zero padding"),
    "transposed reflect": (
        {"input_shape": (4, 4), "transposed": True, "padding_mode": "reflect"}, "transposed convolution takes"),
    "transposed circular with pads": (
        {"input_shape": (4, 4), "transposed": True, "padding": 1, "padding_mode": "circular"},
        "transposed convolution takes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_undefined_operators_are_refused(name):
    options, match = REFUSED[name]
    for function in (gn.conv_norm_bound, gn.conv_norm_bracket):
        with pytest.raises(ValueError, match=match):
            function(np.ones((2, 2, 3, 3)), **options)


@pytest.mark.parametrize("groups", [1, 2])
def test_blocks_and_products_are_counted(monkeypatch, no_matrices, groups):
    spent = {"blocks": 0, "products": 0}

    def counted(module, name, unit, size):
        call = getattr(module, name)

        def counting(*args, **options):
            spent[unit] += size(*args)
            return call(*args, **options)

        monkeypatch.setattr(module, name, counting)

    for module in (circle, every_size):
        counted(
            module, "evaluate", "blocks", lambda symbol, points, *_: symbol.blocks * len(points)
        )
    for name in ("correlate", "adjoint"):
        counted(finite_lower, name, "products", lambda *_: 1)
    counted(finite_banded, "eigenvalue_bound", "products", lambda *_: 1)
    kernel = some((2 * groups, 2, 3, 3), "float64")
    # two parts, of one search for the supremum
    bracket = gn.conv_norm_bracket(kernel, (12, 13), dilation=2, groups=groups, rtol=1e-6)
    assert min(spent.values()) > 0
    assert bracket.n_products == sum(spent.values())


@pytest.mark.parametrize("transposed", [False, True])
def test_apply_and_adjoint_take_batches(be, transposed):
    if be.id.startswith("jax"):
        pytest.skip("a compilation per shape")
    kernel = be.asarray(some((4, 2, 3)))
    geometry = ConvGeometry.of((4, 2, 3), 5, stride=2, groups=2, transposed=transposed)
    inputs, outputs = (4, *geometry.input_shape), (4, *geometry.output_shape)
    for shape, found, run in (
        (inputs, outputs, geometry.apply),
        (outputs, inputs, geometry.adjoint),
    ):
        x = some((2, 3, *shape), seed=1)
        y = be.to_numpy(run(kernel, be.asarray(x)))
        assert y.shape == (2, 3, *found)
        for index in np.ndindex(2, 3):
            one = be.to_numpy(run(kernel, be.asarray(x[index])))
            np.testing.assert_array_equal(y[index], one)
        none = run(kernel, be.asarray(np.zeros((0, 2, *shape))))
        assert be.to_numpy(none).shape == (0, 2, *found)


def test_apply_and_adjoint_name_the_shape_they_want():
    kernel = some((4, 2, 3))
    geometry = ConvGeometry.of((4, 2, 3), 5, stride=2, groups=2)
    with pytest.raises(ValueError, match=r"x must have the shape \(\.\.\., 4, 5\)"):
        geometry.apply(kernel, np.ones((4, 6)))
    with pytest.raises(ValueError, match=r"y must have the shape \(\.\.\., 4, 3\)"):
        geometry.adjoint(kernel, np.ones((4, 5)))
    with pytest.raises(ValueError, match=r"kernel must have the shape \(c_out, c_in / groups, 3\)"):
        geometry.apply(some((4, 2, 2)), np.ones((4, 5)))
    with pytest.raises(ValueError, match="input_shape must be given"):
        ConvGeometry.of((4, 2, 3)).apply(kernel, np.ones((2, 5)))


def test_the_adjoint_of_a_stride_makes_no_image_for_each_tap():
    geometry = gn.ConvGeometry.of((64, 3, 7, 7), (64, 64), stride=2, padding=3)
    kernel, y = np.ones((64, 3, 7, 7)), np.ones((64, *geometry.output_shape))
    tracemalloc.start()
    try:
        geometry.adjoint(kernel, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6  # of 103e6 for all outputs, taps and samples
