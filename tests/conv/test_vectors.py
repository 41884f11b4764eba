"""Vectors of convolutions: of norm one, attaining `lower` through the operator itself, at home."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gramnorm as gn
from gramnorm._arrays import limits
from tests.conv.test_geometry import operators, some
from tests.harness import oracles
from tests.harness.convolutions import stored_dtype

KINDS = ["float32", "float64", "complex64", "complex128"]


def ask(be, kernel, **options):
    """Return the stored kernel, and the bracket with vectors as host arrays, after what always holds."""
    x = be.asarray(kernel)
    with np.errstate(all="ignore"):
        found = gn.conv_norm_bracket(x, vectors=True, **options)
        plain = gn.conv_norm_bracket(x, **options)
    assert be.is_at_home(found.left)
    assert be.is_at_home(found.right)
    stored = be.to_numpy(x)
    lower, upper, left, right = map(
        be.to_numpy, (found.lower, found.upper, found.left, found.right)
    )
    is_complex = options.get("input_shape") is None or np.iscomplexobj(stored)
    assert left.dtype == right.dtype
    assert np.iscomplexobj(right) == is_complex
    assert right.real.dtype == lower.dtype
    assert lower <= be.to_numpy(plain.lower)
    assert upper == be.to_numpy(plain.upper)
    # no more than an eighth of the gap asked for is lost, which is 1e-3
    assert lower >= be.to_numpy(plain.lower) * (1 - 2e-4)
    assert bool(be.to_numpy(found.converged)) == bool(upper - lower <= 1e-3 * lower)
    return stored, found, lower, left, right


def assert_unit(*vectors):
    for v in vectors:
        length = np.linalg.norm(v.reshape(-1).astype(np.complex128))
        assert abs(length - 1) <= 4 * np.finfo(v.dtype).eps


def wide(x):
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def assert_attained(product, lower, dtype):
    assert product.real >= float(lower) * (1 - 8 * np.finfo(dtype).eps), (product, lower)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(operator=operators(), kind=st.sampled_from(KINDS))
def test_at_a_size_the_operator_takes_right_to_lower_times_left(be, operator, kind):
    if be.compiles:
        pytest.skip("a compilation per shape")
    shape, options = operator
    kernel = some(shape, stored_dtype(be, kind))
    stored, _, lower, left, right = ask(be, kernel, **options)
    c_in = shape[0] if options["transposed"] else shape[1] * options["groups"]
    assert right.shape == (c_in, *options["input_shape"])
    given_ = {k: v for k, v in options.items() if k != "input_shape"}
    image = oracles.conv_apply(wide(stored), wide(right)[..., None], **given_)[..., 0]
    assert left.shape == image.shape
    if not image.size:
        assert lower == 0
        return
    assert_unit(left, right)
    assert_attained(np.vdot(wide(left), image), lower, left.dtype)


def through(kernel, right, theta, stride, dilation, groups, transposed):
    """Apply the operator to a wave, and divide what comes out by its phases; every full period."""
    dims = len(stride)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
    if not transposed:
        sizes = [r + 2 * s for r, s in zip(reach, stride, strict=True)]
    else:
        sizes = [r // s + 4 for r, s in zip(reach, stride, strict=True)]
    i = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"))
    step = np.asarray(stride if transposed else [1] * dims)
    wave = np.exp(1j * np.tensordot(theta * step, i, axes=1))
    amplitude = right.reshape(len(right), *([1] * dims)) if transposed else right
    where = tuple(i % np.asarray(amplitude.shape[1:]).reshape(-1, *([1] * dims)))
    y = oracles.conv_apply(
        kernel, (amplitude[(slice(None), *where)] * wave)[..., None], stride=stride,
        padding="valid", dilation=dilation, groups=groups, transposed=transposed,
    )[..., 0]  # fmt: skip
    o = np.stack(np.meshgrid(*map(np.arange, y.shape[1:]), indexing="ij"))
    step = np.asarray([1] * dims if transposed else stride)
    y = y * np.exp(-1j * np.tensordot(theta * step, o, axes=1))
    if not transposed:
        return y[(slice(None), *([0] * dims))]
    # a period that all taps reach
    starts = [-(-r // s) * s for r, s in zip(reach, stride, strict=True)]
    return y[(slice(None), *(slice(a, a + s) for a, s in zip(starts, stride, strict=True)))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transposed", [False, True])
def test_at_every_size_a_wave_goes_through_at_the_frequency(be, kind, transposed):
    cases = itertools.product([(1, 1), (2, 3)], [(1, 1), (2, 1)], [1, 2])
    for stride, dilation, groups in [*cases][:: 8 if be.compiles else 1]:
        kernel = some((4, 3, 3, 2), stored_dtype(be, kind), 5)
        stored, found, lower, left, right = ask(
            be, kernel, stride=stride, dilation=dilation, groups=groups, transposed=transposed
        )
        inputs, outputs = (3 * groups, *stride), (4,)
        assert (right.shape, left.shape) == ((outputs, inputs) if transposed else (inputs, outputs))
        assert_unit(left, right)
        theta = be.to_numpy(found.frequency).astype(np.float64)
        image = through(
            wide(stored).astype(np.complex128), wide(right), theta, stride, dilation, groups, transposed
        )  # fmt: skip
        assert_attained(np.vdot(wide(left), image), lower, left.dtype)


def test_on_a_circle_the_input_is_a_plane_wave():
    kernel = some((3, 2, 3, 3), "complex128")
    found = gn.conv_norm_bracket(kernel, (8, 6), padding_mode="circular", vectors=True)
    i = np.stack(np.meshgrid(np.arange(8), np.arange(6), indexing="ij"))
    amplitude = found.right * np.exp(-1j * np.tensordot(found.frequency, i, axes=1))
    np.testing.assert_allclose(amplitude, amplitude[:, :1, :1] + 0 * amplitude, atol=1e-12)


def test_a_large_input_has_vectors_on_a_window(monkeypatch):
    monkeypatch.setattr(limits, "WINDOW_INPUTS", 50)
    for mode in ("zeros", "replicate"):
        kernel = some((2, 2, 5), seed=3)
        found = gn.conv_norm_bracket(kernel, 4000, padding=2, padding_mode=mode, vectors=True)
        geometry = gn.ConvGeometry.of(kernel.shape, 4000, padding=2, padding_mode=mode)
        assert_attained(
            np.vdot(found.left, geometry.apply(kernel, found.right)), found.lower, np.float64
        )
        plain = gn.conv_norm_bracket(kernel, 4000, padding=2, padding_mode=mode)
        assert found.lower >= plain.lower * (1 - 2e-4)


@pytest.mark.parametrize("scale", [2.0**-1060, 2.0**-500, 2.0**1000])
def test_the_scale_of_the_kernel_does_not_matter(scale):
    kernel = np.asarray([[[3.0, 1.0, -2.0]]]) * scale
    for shape in (None, 9):
        found = gn.conv_norm_bracket(kernel, shape, vectors=True)
        assert_unit(found.left, found.right)
        assert found.converged


def test_vectors_of_norms_known_at_sight(be):
    one = np.ones((2, 1, 3))
    for value, known in ((0.0, 0.0), (math.nan, math.nan), (math.inf, math.nan)):
        for shape, inputs in ((None, (1, 1)), (5, (1, 5))):
            found = gn.conv_norm_bracket(be.asarray(one * value), shape, vectors=True)
            left, right = be.to_numpy(found.left), be.to_numpy(found.right)
            assert right.shape == inputs
            if math.isnan(known):
                assert np.all(np.isnan(left)) and np.all(np.isnan(right))  # noqa: PT018
            else:
                assert_unit(left, right)
    none = gn.conv_norm_bracket(be.asarray(np.ones((2, 0, 3))), 5, vectors=True)
    assert be.to_numpy(none.right).shape == (0, 5)


def test_a_group_that_the_supremum_does_not_name_may_attain_the_norm():
    # the supremum is that of the second group, whose taps do not meet in two samples
    kernel = np.zeros((2, 1, 9))
    kernel[0, 0, 4] = 1.0
    kernel[1, 0, [0, 8]] = 0.9
    found = gn.conv_norm_bracket(kernel, 2, padding=4, groups=2, vectors=True)
    assert found.converged
    assert np.all(found.right[1] == 0)


def test_gradients_flow_to_a_bracket_with_vectors():
    torch = pytest.importorskip("torch")
    kernel = torch.asarray(some((2, 3, 3)), requires_grad=True)
    found = gn.conv_norm_bracket(kernel, 7, vectors=True)
    found.lower.backward()
    assert kernel.grad.abs().sum() > 0
    assert not found.right.requires_grad
