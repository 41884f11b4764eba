"""Symbols with nearly the same norm at every frequency: bounds from the autocorrelation of the taps."""

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._arrays import limits
from gramnorm._conv.symbol import Symbol
from tests.harness import oracles

NOISES = [0.0, 1e-4, 1e-2, 0.1]


def nearly_orthogonal(rng, channels, taps, noise, dtype="float64"):
    """Return an orthogonal convolution, factors I - P + P z with projectors P, with noise on it."""
    complex_values = np.dtype(dtype).kind == "c"

    def normal(*shape):
        real = rng.standard_normal(shape)
        return real + 1j * rng.standard_normal(shape) if complex_values else real

    kernel = np.linalg.qr(normal(channels, channels))[0].reshape(
        channels, channels, *[1] * len(taps)
    )
    for axis, k in enumerate(taps, 2):
        for _ in range(k - 1):
            basis = np.linalg.qr(normal(channels, channels))[0][:, : channels // 2]
            moved = np.einsum("ij,j...->i...", basis @ basis.conj().T, kernel)
            stay, zero = kernel - moved, np.zeros_like(np.take(kernel, [0], axis))
            kernel = np.concatenate([stay, zero], axis) + np.concatenate([zero, moved], axis)
    noise = noise * normal(*kernel.shape) / kernel[0].size ** 0.5
    return (kernel + noise).astype(dtype)


def symbol_of(kernel, groups=1):
    count = kernel[0, 0].size
    blocks = kernel.reshape(groups, -1, kernel.shape[1], count)
    offsets = np.stack(np.unravel_index(np.arange(count), kernel.shape[2:]), axis=-1)
    return Symbol(blocks.transpose(3, 0, 1, 2), offsets.astype(np.int64))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("part", ["square", "tall", "wide", "two groups"])
def test_bounds_hold_at_every_frequency(part, noise, dtype):
    rng = np.random.default_rng(3)
    kernel = nearly_orthogonal(rng, 8, (3, 2), noise, dtype)
    groups = 2 if part == "two groups" else 1
    kernel = {"tall": kernel[:, :5], "wide": kernel[:5]}.get(part, kernel)
    if groups == 2:
        kernel = np.concatenate([kernel, nearly_orthogonal(rng, 8, (3, 2), 2 * noise, dtype)])
    found = symbol_of(kernel, groups).autocorrelation
    wide = kernel.astype(np.complex128).reshape(groups, -1, *kernel.shape[1:])
    values = np.fft.fft2(wide, (24, 24)).transpose(0, 3, 4, 1, 2)
    squares = np.linalg.svd(values, compute_uv=False) ** 2
    assert found.floor <= squares.min() * (1 + 1e-13)
    assert squares.max() * (1 - 1e-13) <= found.ceiling
    if noise <= 1e-2:
        assert found.floor > 0.5
        assert found.ceiling < 1.5


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_error_of_the_squared_symbol_is_bounded(dtype):
    rng = np.random.default_rng(5)
    for noise in NOISES:
        kernel = nearly_orthogonal(rng, 16, (3, 3), noise, dtype)
        symbol = symbol_of(kernel)
        centre = float(np.float32(0.9))
        squared = symbol.squared(centre)
        points = rng.integers(0, 64, (20, 2))
        found = squared.at(points, np.asarray([64, 64]))
        exact = symbol_of(kernel.astype(np.complex128)).at(points, np.asarray([64, 64]))
        exact = np.conj(exact.mT) @ exact - centre * np.eye(16)
        errors = np.linalg.norm(found - exact, 2, axis=(-2, -1))
        assert 0 < errors.max() <= squared.error < 1e-3


def test_too_many_taps_have_no_autocorrelation():
    kernel = np.zeros((1, 1, 501))
    assert symbol_of(kernel).autocorrelation is None
    assert symbol_of(kernel).squared(0.5) is None
    assert symbol_of(kernel).flat_bound() == np.inf


def assert_found_and_cheap(bracket, kernel):
    reference = oracles.sup_reference(kernel.astype(np.float64))[0]
    assert bool(bracket.converged)
    assert float(bracket.lower) <= reference * (1 + 1e-9)
    assert reference <= float(bracket.upper)
    assert bracket.n_products < 20_000


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("shape", [(12, 3, 3), (8, 9), (4, 2, 2, 2)], ids=str)
def test_nearly_flat_symbols_converge_at_a_small_cost(shape, noise):
    channels, *taps = shape
    kernel = nearly_orthogonal(np.random.default_rng(7), channels, taps, noise)
    assert_found_and_cheap(gn.conv_norm_bracket(kernel), kernel)


def test_nearly_flat_symbols_in_every_library(be):
    dtype = "float64" if be.has_float64 else "float32"
    kernel = nearly_orthogonal(np.random.default_rng(8), 6, (3, 3), 1e-2, dtype)
    assert_found_and_cheap(gn.conv_norm_bracket(be.asarray(kernel)), kernel)


@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 2}, {"transposed": True}], ids=str)
def test_nearly_flat_symbols_of_other_geometries(options):
    rng = np.random.default_rng(11)
    for noise in (1e-3, 1e-2):
        kernel = nearly_orthogonal(rng, 8, (3, 3), noise)
        reference = {k: v for k, v in options.items() if k != "transposed"}
        norm = oracles.sup_reference(kernel, **reference)[0]
        bracket = gn.conv_norm_bracket(kernel, **options)
        assert bracket.lower <= norm * (1 + 1e-12)
        assert norm <= bracket.upper
        assert bracket.converged


def test_squares_save_most_of_the_cells(monkeypatch):
    kernel = nearly_orthogonal(np.random.default_rng(13), 16, (3, 3), 1e-2)
    with_squares = gn.conv_norm_bracket(kernel)
    monkeypatch.setattr(limits, "FLAT", np.inf)
    without = gn.conv_norm_bracket(kernel)
    assert with_squares.converged
    assert with_squares.n_products < without.n_products / 2
    assert with_squares.lower <= without.upper
    assert without.lower <= with_squares.upper


def test_single_precision_does_not_forget_the_error_of_the_taps():
    rng = np.random.default_rng(17)
    kernel = nearly_orthogonal(rng, 64, (3, 3), 1e-2).astype(np.float32).astype(np.float64)
    squared = symbol_of(kernel.astype(np.float64)).squared(0.5)
    wide = symbol_of(kernel).autocorrelation.error
    narrow, itself = squared.narrow_first(100)
    assert itself is squared
    assert wide <= squared.error
    assert squared.error <= narrow.error


@pytest.mark.parametrize("rtol", [1e-9, 1e-11])
def test_exactly_flat_symbols_converge_to_tight_tolerances(rtol):
    for seed in range(3):
        kernel = 1.2345 * nearly_orthogonal(np.random.default_rng(seed), 32, (3,), 0.0)
        bracket = gn.conv_norm_bracket(kernel, rtol=rtol)
        assert bracket.lower <= 1.2345 * (1 + 1e-13)
        assert bracket.upper >= 1.2345 * (1 - 1e-13)
        assert bracket.converged


def test_an_autocorrelation_of_many_groups_is_not_formed():
    kernel = np.zeros((16 * 32, 32, 5, 5, 5), dtype=np.float32)
    assert symbol_of(kernel, 16).autocorrelation is None
