"""Convolution bounds against dense matrices, exact suprema and real layers."""

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import gramnorm as gn
from tests.harness import oracles
from tests.harness.convolutions import RTOL, ask, bound, dtype_in_turn, stored_dtype
from tests.harness.families import DTYPES, KERNELS
from tests.harness.soundness import Case, judge

NARROW = {"float64": "float32", "complex128": "complex64"}


def check(be, kernel, **options):
    """Assert that a bracket is on the right side; return it with the upper over-estimate."""
    stored, lower, upper, converged = ask(be, kernel, **options)
    high, low, _, over = judge(Case("", stored, options), lower, upper)
    assert not high
    assert not low
    return lower, upper, converged, over


# ----------------------------------------------------------------------- drawn geometries


@st.composite
def geometries(draw):
    """Draw channels, taps, dilation, groups and an input size, sometimes shorter than the kernel."""
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    most = {1: 7, 2: 4, 3: 3}[dims]
    axis = st.integers(1, most)
    taps = tuple(draw(axis) for _ in range(dims))
    dilation = tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in range(dims))
    shape = tuple(draw(st.integers(1, {1: 16, 2: 6, 3: 3}[dims])) for _ in range(dims))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    return taps, dilation, shape, groups, channels


def drawn_kernel(data, be, geometry):
    taps, _, _, groups, (co, ci) = geometry
    name = data.draw(st.sampled_from(sorted(KERNELS)))
    dtype = stored_dtype(be, data.draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    return np.concatenate([KERNELS[name](rng, co, ci, taps, dtype) for _ in range(groups)])


drawn = settings(suppress_health_check=[HealthCheck.too_slow])


@drawn
@given(geometry=geometries(), data=st.data(), rtol=st.sampled_from([None, 0.1, 1e-5]))
def test_circular_is_bracketed(be, geometry, data, rtol):
    if be.compiles:
        pytest.skip("a compilation per shape")
    _, dilation, shape, groups, _ = geometry
    kernel = drawn_kernel(data, be, geometry)
    check(be, kernel, input_shape=shape, padding_mode="circular", dilation=dilation,
          groups=groups, rtol=rtol)  # fmt: skip


@drawn
@given(geometry=geometries(), data=st.data(), rtol=st.sampled_from([None, 0.1, 1e-2]))
def test_every_size_is_bracketed(be, geometry, data, rtol):
    if be.compiles:
        pytest.skip("a compilation per shape")
    _, dilation, _, groups, _ = geometry
    check(be, drawn_kernel(data, be, geometry), dilation=dilation, groups=groups, rtol=rtol)


@drawn
@given(geometry=geometries(), data=st.data())
def test_zero_padding_at_a_size_is_bracketed(be, geometry, data):
    if be.compiles:
        pytest.skip("a compilation per shape")
    taps, dilation, shape, groups, _ = geometry
    reach = [d * (k - 1) for d, k in zip(dilation, taps, strict=True)]
    padding = data.draw(
        st.one_of(
            st.sampled_from(["same", "full", "valid", None, 0, 1, 2]),
            st.tuples(*[st.tuples(st.integers(0, r + 1), st.integers(0, r + 1)) for r in reach]),
        )
    )
    if padding not in ("same", "full", None):  # make room for an output
        shape = tuple(n + r for n, r in zip(shape, reach, strict=True))
    assume(math.prod(shape) * geometry[4][1] * groups <= 120)
    check(be, drawn_kernel(data, be, geometry), input_shape=shape, padding_mode="zeros",
          padding=padding, dilation=dilation, groups=groups)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_kernel_of_each_mode(be, dtype):
    """The little that JAX is asked to compile; everyone else gets it too."""
    dtype = dtype_in_turn(be, dtype)
    kernel = KERNELS["low_pass"](np.random.default_rng(0), 3, 2, (3, 2), dtype)
    assert check(be, kernel)[2]
    assert check(be, kernel, input_shape=(6, 5), padding_mode="circular")[2]
    check(be, kernel, input_shape=(6, 5), padding_mode="zeros", padding=None)


# ---------------------------------------------------------------------- as tight as asked


def affordable_rtol(name, kernel):
    """Return the default, or more for flat symbols on several axes: no box can be dropped there."""
    flat = ("paraunitary", "shifts", "flat")
    return {1: RTOL, 2: 1e-2, 3: 0.1}[kernel.ndim - 2] if name.startswith(flat) else RTOL


@pytest.mark.parametrize("dtype", DTYPES)
def test_known_suprema_are_reached(be, dtype):
    dtype = dtype_in_turn(be, dtype)
    rng = np.random.default_rng(1)
    for name, kernel, groups, answer in oracles.known_suprema(rng, dtype):
        if be.compiles and name not in ("ones", "depthwise", "zero"):
            continue
        rtol = affordable_rtol(name, kernel)
        _, lower, upper, converged = ask(be, kernel, groups=groups, rtol=rtol)
        assert upper >= answer * (1 - 4e-16), name
        assert lower <= answer * (1 + 4e-16), name
        assert upper <= answer * (1 + 1.001 * rtol), name
        assert converged, name


@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"noise_subnormal"}))
def test_the_default_gap_is_reached(be, name):
    rng = np.random.default_rng(2)
    dtype = stored_dtype(be, "float64")
    for co, ci, taps in ((3, 2, (3, 3)), (2, 2, (5,)), (1, 1, (4, 3)), (2, 1, (2, 3, 2))):
        kernel = KERNELS[name](rng, co, ci, taps, dtype)
        rtol = affordable_rtol(name, kernel)
        for options in ({}, {"input_shape": (5, 6, 7)[: len(taps)], "padding_mode": "circular"}):
            lower, upper, converged, over = check(be, kernel, rtol=rtol, **options)
            absolute = math.fsum(np.abs(kernel.astype(np.longdouble) / (upper or 1)).ravel())
            if 0 < absolute < 1e6:  # else the taps cancel at every frequency of this size
                assert converged, (taps, options, upper, lower)
                assert over <= 1.01 * rtol


def test_a_looser_and_a_tighter_gap_are_reached(be):
    dtype = stored_dtype(be, "float64")
    kernel = KERNELS["low_pass"](np.random.default_rng(3), 4, 3, (3, 3), dtype)
    sup, _ = oracles.sup_reference(kernel)
    for rtol in (0.1, 1e-2, 1e-3, 1e-4):
        _, upper, converged, _ = check(be, kernel, rtol=rtol)
        assert converged
        assert upper <= sup * (1 + 1.01 * rtol)


def test_the_gap_in_float32_does_not_need_float64(be):
    kernel = KERNELS["noise"](np.random.default_rng(4), 8, 8, (3, 3), "float32")
    assert check(be, kernel)[2]
    assert check(be, kernel, input_shape=(9, 10), padding_mode="circular")[2]


def test_the_frequency_attains_the_lower_bound(be):
    rng = np.random.default_rng(5)
    for dtype in ("float32", "float64", "complex64", "complex128"):
        kernel = KERNELS["noise"](rng, 3, 2, (3, 4), stored_dtype(be, dtype))
        for options in (
            {},
            {"input_shape": (7, 6), "padding_mode": "circular", "dilation": (2, 1)},
        ):
            x = be.asarray(kernel)
            bracket = gn.conv_norm_bracket(x, **options)
            theta = np.asarray(be.to_numpy(bracket.frequency), dtype=np.float64)
            assert theta.shape == (2,)
            value = oracles.symbol_sigma(kernel, theta, options.get("dilation", 1))
            single = np.finfo(kernel.dtype).eps > 1e-10
            assert value >= float(be.to_numpy(bracket.lower)) * (1 - (1e-5 if single else 1e-13))


# ------------------------------------------------------------------------- known answers


LAPLACIAN = [[[[0, 1, 0], [1, -4, 1], [0, 1, 0]]]]
SOBEL = [[[[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]]]
OF_EVERY_SIZE = {
    "ones 5 x 1": (np.ones((1, 1, 5, 1)), {}, 5.0),
    "ones 5": (np.ones((1, 1, 5)), {}, 5.0),
    "depthwise": (np.asarray([0.5, 0.9]).reshape(2, 1, 1, 1), {"groups": 2}, 0.9),
    "laplacian": (LAPLACIAN, {}, 8.0),
    "dilated laplacian": (LAPLACIAN, {"dilation": 3}, 8.0),
    "sobel": (SOBEL, {}, 8.0),
    "first difference": ([[[1, -1]]], {}, 2.0),
    "second difference": ([[[1, -2, 1]]], {}, 4.0),
    "zero": (np.zeros((2, 3, 3, 3)), {}, 0.0),
    "one by one": ([[[[3.0]], [[4.0]]]], {}, 5.0),
    "three axes": (np.ones((1, 1, 2, 2, 2)), {}, 8.0),
}


@pytest.mark.parametrize("name", OF_EVERY_SIZE)
def test_known_answer_of_every_size(be, name):
    kernel, options, answer = OF_EVERY_SIZE[name]
    upper = bound(be, kernel, **options)
    stored = answer if be.has_float64 or answer != 0.9 else float(np.float32(0.9))
    assert stored <= upper <= stored * (1 + RTOL)


CIRCULAR = {
    "laplacian even": (LAPLACIAN, (8, 6), 8.0),
    "laplacian odd": (LAPLACIAN, (5, 5), 4 + 4 * math.cos(math.pi / 5)),
    "second difference odd": ([[[1, -2, 1]]], (7,), 2 + 2 * math.cos(math.pi / 7)),
    "ones longer than the input": (np.ones((1, 1, 5)), (4,), 5.0),
    "64 ones on 32": (np.ones((1, 1, 64)), (32,), 64.0),
    "sobel of one column": (SOBEL, (4, 1), 0.0),
    "first difference of one sample": ([[[1, -1]]], (1,), 0.0),
    "alternating longer than the input": ([[[1, -1, 1, -1, 1]]], (4,), 5.0),
    "wrapped": ([[[1, 2, 3, 4, 5]]], (2,), 15.0),
    "wrapped difference": ([[[1, 0, -1]]], (2,), 0.0),
}


@pytest.mark.parametrize("name", CIRCULAR)
def test_known_circular_answer(be, name):
    kernel, shape, answer = CIRCULAR[name]
    upper = bound(be, kernel, shape, padding_mode="circular")
    assert answer * (1 - 4e-16) <= upper
    assert upper <= answer * (1 + RTOL) + (1e-6 if be.has_float64 else 1e-3)


def test_tridiagonal_with_zero_padding(be):
    _, lower, upper, _ = ask(be, np.ones((1, 1, 3), stored_dtype(be, "float64")), (9,))
    answer = 1 + 2 * math.cos(math.pi / 10)
    assert lower <= answer * (1 + 4e-16)
    assert answer * (1 - 4e-16) <= upper <= 3 * (1 + RTOL)


def test_circular_of_the_same_size_is_no_bound_for_zero_padding(be):
    """[1, -1] at n = 1: circular gives 0, the zero-padded operator is 1 by 1 and not zero."""
    upper = bound(be, [[[1, -1]]], (1,), padding="same")
    assert upper >= 1


def test_dilation_on_a_finite_circle_depends_on_the_common_divisor(be):
    for n in (4, 5, 6):
        for d in (2, 3, 4):
            kernel = np.asarray([[[1.0, -2.0, 1.0]]], stored_dtype(be, "float64"))
            check(be, kernel, input_shape=(n,), padding_mode="circular", dilation=d)


def test_groups_take_the_maximum(be):
    rng = np.random.default_rng(6)
    kernel = rng.standard_normal((4, 2, 3)).astype(stored_dtype(be, "float64"))
    parts = [oracles.sup_reference(kernel[:2])[0], oracles.sup_reference(kernel[2:])[0]]
    _, lower, upper, _ = ask(be, kernel, groups=2)
    assert lower <= max(parts) * (1 + 1e-12)
    assert max(parts) * (1 - 1e-12) <= upper <= max(parts) * (1 + RTOL)


def test_a_centre_tap_in_256_channels_is_flat_and_fast(be):
    if be.id not in ("numpy", "torch", "cupy", "torch-cuda"):
        pytest.skip("too wide for the slow backends")
    rng = np.random.default_rng(7)
    kernel = np.zeros((256, 256, 3, 3), "float32")
    kernel[:, :, 1, 1] = rng.standard_normal((256, 256))
    answer = np.linalg.svd(kernel[:, :, 1, 1].astype("float64"), compute_uv=False)[0]
    bracket = gn.conv_norm_bracket(be.asarray(kernel))
    lower, upper = (float(be.to_numpy(v)) for v in (bracket.lower, bracket.upper))
    assert lower <= answer * (1 + 1e-13)
    assert answer * (1 - 1e-13) <= upper <= answer * (1 + RTOL)
    assert bracket.n_products < 3000


def test_scaling_by_a_power_of_two_scales_every_bit(be):
    dtype = stored_dtype(be, "float64")
    kernel = (np.random.default_rng(8).integers(-99, 100, (2, 2, 3)) / 32).astype(dtype)
    powers = (-300, 7, 300) if be.has_float64 else (-60, 7, 60)
    for options in ({}, {"input_shape": (8,), "padding_mode": "circular"}):
        _, lower, upper, _ = ask(be, kernel, **options)
        for k in powers:
            scaled = (kernel * 2.0**k).astype(dtype)
            assert ask(be, scaled, **options)[1:3] == (lower * 2.0**k, upper * 2.0**k)


def test_the_bound_is_the_upper_end_of_the_bracket(be):
    kernel = np.random.default_rng(9).standard_normal((2, 2, 3)).astype("float32")
    for options in ({}, {"input_shape": (8,), "padding_mode": "circular"}, {"input_shape": (8,)}):
        x = be.asarray(kernel)
        upper = be.to_numpy(gn.conv_norm_bracket(x, **options).upper)
        assert be.to_numpy(gn.conv_norm_bound(x, **options)) == upper


def test_finite_sizes_are_below_every_size(be):
    kernel = np.random.default_rng(10).standard_normal((2, 3, 3, 2))
    every = bound(be, kernel)
    for shape in ((2, 2), (5, 4), (9, 9)):
        for options in ({"padding_mode": "circular"}, {"padding": "full"}, {"padding": "same"}):
            _, lower, _, _ = ask(be, kernel.astype(stored_dtype(be, "float64")), shape, **options)
            assert lower <= every


# ------------------------------------------------------------------------ shared real layers


def conv_layers(folder):
    """Yield (description, weight) of every stride-1 convolution of the shared data."""
    with np.load(folder / "weights.npz") as file:
        for layer in json.loads((folder / "layers.json").read_text())["layers"]:
            if layer["kind"] == "conv" and set(layer["stride"]) == {1}:
                yield layer, file[layer["key"]]


def geometry_of(layer):
    return {"dilation": tuple(layer["dilation"]), "groups": layer["groups"]}


def layers_for(be, folder):
    """Return all layers for the fast backends, the narrow ones for one backend without float64."""
    widest = {"strict-float32": 500}.get(be.id, math.inf)
    if be.id not in ("numpy", "torch", "strict-float32", "cupy", "torch-cuda"):
        pytest.skip("real layers are for the faster backends")
    return [(a, w) for a, w in conv_layers(folder) if w.shape[0] * w.shape[1] <= widest]


def test_shared_layers_of_every_size(be, shared_data):
    for layer, weight in layers_for(be, shared_data):
        reference = layer["reference"]["sup_all_sizes"]
        value, slack = reference["value"], 2 * reference["rel_err_est"]
        _, lower, upper, converged = ask(be, weight, **geometry_of(layer))
        assert value * (1 - slack) <= upper <= value * (1 + RTOL), layer["key"]
        assert lower <= reference["certified_upper"], layer["key"]
        assert lower <= value * (1 + slack), layer["key"]
        assert converged, layer["key"]


def test_shared_layers_with_circular_padding(be, shared_data):
    for layer, weight in layers_for(be, shared_data):
        for entry in layer["reference"]["circular"]:
            value, slack = entry["value"], 10 * entry["rel_err_est"]
            shape = tuple(entry["conv_domain_size"])
            _, lower, upper, converged = ask(
                be, weight, shape, padding_mode="circular", **geometry_of(layer)
            )
            assert value * (1 - slack) <= upper <= value * (1 + RTOL), (layer["key"], shape)
            assert lower <= value * (1 + slack), (layer["key"], shape)
            assert converged, (layer["key"], shape)


@pytest.mark.slow
def test_shared_layers_with_zero_padding(be, shared_data):
    for layer, weight in layers_for(be, shared_data):
        for entry in layer["reference"]["zero_padding"]:
            if max(entry["input_size"]) > 16:
                continue
            value, slack = entry["value"], 10 * entry["rel_err_est"]
            padding = tuple(tuple(p) for p in entry["pads"])
            shape = tuple(entry["input_size"])
            _, lower, upper, _ = ask(be, weight, shape, padding=padding, **geometry_of(layer))
            assert lower <= value * (1 + slack), (layer["key"], shape)
            assert value * (1 - slack) <= upper, (layer["key"], shape)
