"""Gram matrices of operators at a finite size as bands of blocks, factorised along the band."""

import math

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._arrays import limits
from gramnorm._conv import finite_banded, finite_costs, finite_matrix
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._rigour.model import precision_of
from tests.harness import oracles

MODES = ("zeros", "circular", "reflect", "replicate")
CASES = {
    "1-D": ((3, 2, 3), (9,), {}),
    "1-D, long taps": ((2, 2, 7), (8,), {"padding": 3}),
    "2-D": ((2, 3, 3, 2), (6, 5), {"padding": 1}),
    "wide": ((2, 5, 3, 3), (4, 7), {"padding": 1}),
    "stride": ((4, 1, 3, 3), (7, 6), {"padding": 1, "stride": (2, 1)}),
    "dilation": ((2, 2, 2, 2), (7, 6), {"padding": 1, "dilation": (1, 2)}),
    "groups": ((4, 2, 3, 3), (5, 6), {"padding": 1, "groups": 2}),
    "3-D": ((2, 1, 2, 2, 2), (3, 4, 3), {"padding": 1}),
}


@pytest.fixture
def only_bands(monkeypatch):
    """Leave no way to a close upper bound but the band."""
    monkeypatch.setattr(finite_costs, "assembled", lambda *_: math.inf)
    monkeypatch.setattr(finite_costs, "searched", lambda *_, **__: (math.inf, math.inf))


def drawn(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.standard_normal(shape)
    return x.astype(dtype)


def gram_of(taps, axes):
    """Return the Gram matrix of the one group."""
    (gram,) = finite_banded._grams(taps, axes, finite_banded.row_table(taps, axes))
    return gram


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_the_bracket_holds_and_converges(only_bands, case, mode, dtype):
    shape, size, options = CASES[case]
    kernel = drawn(shape, dtype)
    options = options | {"padding_mode": mode}
    exact = oracles.sigma(oracles.conv_matrix(kernel.astype(np.complex128), size, **options))
    bracket = gn.conv_norm_bracket(kernel, size, **options)
    assert bracket.lower <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= bracket.upper
    assert bracket.converged


def test_blocks_are_those_of_the_gram_matrix():
    kernel = drawn((2, 3, 3, 2), "complex128")
    geometry = ConvGeometry.of(kernel.shape, (6, 5), padding=1, padding_mode="reflect")
    taps = kernel.transpose(2, 3, 0, 1).reshape(6, 1, 2, 3)
    gram = gram_of(taps, geometry.axes())
    whole, _ = finite_matrix.gram_matrix(taps, geometry.axes())
    n = geometry.axes()[-1].size
    m = gram.order // n
    found = gram.block(0, gram.order, 0, gram.order)
    assert np.allclose(np.linalg.eigvalsh(found), np.linalg.eigvalsh(whole[0]), atol=1e-12)
    assert np.array_equal(gram.block(3, 17, 2, 9), found[3:17, 2:9])
    assert gram.size >= np.linalg.norm(found)
    window = finite_banded.band_window(finite_banded.row_table(taps, geometry.axes()), m)
    rows, columns = np.nonzero(found)
    assert np.all(rows < window.reach[columns // window.block])


def test_a_level_below_the_norm_proves_nothing():
    kernel = drawn((2, 2, 3, 3), "float64")
    geometry = ConvGeometry.of(kernel.shape, (8, 8), padding=1, padding_mode="replicate")
    taps = kernel.transpose(2, 3, 0, 1).reshape(9, 1, 2, 2)
    options = {"padding": 1, "padding_mode": "replicate"}
    exact = float(oracles.sigma(oracles.conv_matrix(kernel, (8, 8), **options)))
    for share in (0.5, 0.9, 0.97, 0.999, 1.0):
        found = finite_banded.bracket(taps, geometry.axes(), share * exact, rtol=1e-3)
        assert found.upper >= exact * (1 - 1e-13)
    assert found.upper <= exact * (1 + 1e-3)


def test_rounding_of_the_entries_counts(monkeypatch):
    """In single precision the error of the Gram matrix is what an upper bound needs."""
    kernel = drawn((3, 3, 3, 3), "float32")
    geometry = ConvGeometry.of(kernel.shape, (6, 6), padding=1, padding_mode="reflect")
    taps = kernel.transpose(2, 3, 0, 1).reshape(9, 1, 3, 3)
    grams, errors = finite_matrix.gram_matrix(taps, geometry.axes())
    wide, _ = finite_matrix.gram_matrix(taps.astype(np.float64), geometry.axes())
    band = gram_of(taps, geometry.axes())
    n = band.order
    found = band.block(0, n, 0, n).astype(np.float64)
    reference = gram_of(taps.astype(np.float64), geometry.axes())
    missed = np.linalg.norm(found - reference.block(0, n, 0, n), 2)
    assert 0 < missed <= errors[0]
    assert 0 < np.linalg.norm(grams[0] - wide[0], 2) <= errors[0]


@pytest.mark.parametrize("channels", [(2, 400), (400, 2)])
def test_the_error_counts_the_channels_that_are_summed_over(channels):
    kernel = drawn((*channels, 3), "float32")
    taps = kernel.transpose(2, 0, 1).reshape(3, 1, *channels)
    axes = ConvGeometry.of(kernel.shape, (5,), padding=1).axes()
    _, errors = finite_matrix.gram_matrix(taps, axes)
    norm = oracles.sigma(oracles.conv_matrix(kernel.astype(np.float64), (5,), 1))
    assert errors[0] >= precision_of(taps.dtype).kappa(400) * float(norm) ** 2


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_a_large_blur_converges(mode):
    """Operators of 4096 rows and more had a gap of a factor of two."""
    profile = np.exp(-(np.arange(-4, 5) ** 2) / 4)
    profile /= profile.sum()
    kernel = np.multiply.outer(profile, profile)[None, None]
    bracket = gn.conv_norm_bracket(kernel, (72, 70), padding=4, padding_mode=mode)
    assert bracket.converged
    rows, columns = (
        oracles.sigma(oracles.conv_matrix(profile[None, None], (n,), 4, mode)) for n in (72, 70)
    )
    assert bracket.lower <= rows * columns * (1 + 1e-12)
    assert rows * columns * (1 - 1e-12) <= bracket.upper


def test_what_is_too_dear_keeps_the_bound_by_repetition(monkeypatch):
    monkeypatch.setattr(limits, "LONGEST", 0)
    kernel = drawn((4, 4, 3, 3), "float64")
    bracket = gn.conv_norm_bracket(kernel, (20, 20), padding=1, padding_mode="reflect")
    assert not bracket.converged
    assert bracket.upper > 1.5 * bracket.lower
