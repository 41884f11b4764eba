"""Which way a convolution of finite size goes: by predictions, which may cost time but no bound."""

import math
import tracemalloc

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._arrays import limits
from gramnorm._conv import finite, finite_banded, finite_costs
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._results import Bounds
from tests.harness import oracles

WAYS = ("assembled", "banded", "searched")
CASES = {
    "2-D": ((3, 2, 3, 3), (7, 8), {}),
    "long taps": ((2, 3, 8), (8,), {}),
    "fewer outputs": ((2, 4, 3, 2), (8, 9), {"padding": 1, "stride": 2}),
    "fewer inputs": ((4, 1, 3, 3), (7, 6), {"padding": 2, "dilation": (1, 2)}),
    "groups, one of them large": ((6, 2, 3), (11,), {"padding": (2,), "groups": 3}),
    "reflect": ((2, 2, 5), (9,), {"padding": 4, "padding_mode": "reflect"}),
    "replicate, one sample": ((2, 2, 3), (1,), {"padding": 5, "padding_mode": "replicate"}),
    "circular, round twice": ((2, 1, 4), (3,), {"padding": 3, "padding_mode": "circular"}),
    "symmetric": ((2, 2, 3, 3), (5, 4), {"padding": 2, "padding_mode": "symmetric"}),
}


def drawn(shape, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.standard_normal(shape)
    x[-1] *= 3
    return x.astype(dtype)


def only(monkeypatch, way):
    """Leave one way, with the search as the last resort."""
    for other in {*WAYS} - {way}:
        dear = (math.inf, math.inf) if other == "searched" else math.inf
        monkeypatch.setattr(finite_costs, other, lambda *_, dear=dear, **__: dear)


def unsearched(*_, **__):
    pytest.fail("a way that should not be tried")


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_each_way_alone_brackets_the_norm(monkeypatch, case, way, dtype):
    shape, size, options = CASES[case]
    kernel = drawn(shape, dtype)
    exact = oracles.sigma(oracles.conv_matrix(kernel.astype(np.complex128), size, **options))
    only(monkeypatch, way)
    if way != "searched":
        monkeypatch.setattr(finite, "_supremum", unsearched)
    bracket = gn.conv_norm_bracket(kernel, size, **options)
    assert bracket.lower <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= bracket.upper
    assert bracket.converged or way == "searched"


@pytest.mark.parametrize(
    ("shape", "size", "options"),
    [
        ((32, 32, 3, 3), (2, 2), {}),
        ((16, 16, 3, 3), (7, 7), {}),
        ((16, 16, 3, 3), (9, 9), {"padding": 1, "padding_mode": "reflect"}),
        ((8, 32, 24), (24,), {}),
        ((16, 16, 3, 3), (16, 16), {"stride": 2}),
    ],
)
def test_small_operators_are_not_searched(monkeypatch, shape, size, options):
    monkeypatch.setattr(finite, "_supremum", unsearched)
    assert gn.conv_norm_bracket(drawn(shape), size, **options).converged


@pytest.mark.parametrize(
    ("shape", "size", "options"),
    [
        ((16, 16, 3, 3), (40, 40), {}),
        ((64, 1, 3, 3), (32, 32), {"groups": 64}),
        ((8, 8, 15), (2000,), {}),
    ],
)
def test_large_operators_are_not_factorised(monkeypatch, shape, size, options):
    monkeypatch.setattr(finite_banded, "bracket", unsearched)
    assert gn.conv_norm_bracket(drawn(shape), size, **options).converged


def test_what_promises_most_goes_first_and_what_disappoints_is_not_the_last():
    tried = []

    def way(name, seconds, gap, upper):
        def bounds():
            tried.append(name)
            yield Bounds(1.0, upper, 1)

        return finite.Way(seconds, gap, bounds)

    ways = [
        way("dear and certain", 4.0, 0.0, 1.0001),
        way("cheap and hopeless", 1.0, 0.1, 1.1),
        way("cheap and likely", 1.5, 1e-3, 1.01),
    ]
    found = finite._narrowed(ways, rtol=1e-3)
    assert tried == ["cheap and likely", "dear and certain"]
    assert (found.upper, found.cost) == (1.0001, 2)
    tried.clear()
    assert finite._narrowed(ways, rtol=0.2).upper == 1.1
    assert tried == ["cheap and hopeless"]


def test_a_long_axis_is_factorised_in_memory_of_the_band(monkeypatch):
    """Once a table of all pairs of samples and taps: 8 GiB here."""
    only(monkeypatch, "banded")
    monkeypatch.setattr(finite, "_supremum", unsearched)
    kernel = np.asarray([[[1.0, 2.0, 1.0, 0.0, -0.5, 0.0, 0.25]]])
    tracemalloc.start()
    bracket = gn.conv_norm_bracket(kernel, 5000, rtol=5e-3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bracket.converged
    assert peak < 2**26
    # Toeplitz matrices of growing order approach the symbol from below
    angles = np.linspace(0, np.pi, 20_001)
    symbol = np.abs(np.exp(1j * np.outer(angles, np.arange(7))) @ kernel[0, 0])
    assert bracket.lower <= symbol.max() * (1 + 1e-12)
    assert bracket.upper >= symbol.max() * (1 - 1e-5)


def test_the_first_square_of_a_window_is_filled_in_strips(monkeypatch):
    monkeypatch.setattr(limits, "WINDOW_BLOCK", 4)
    monkeypatch.setattr(limits, "STRIP", 2)
    kernel = drawn((3, 3, 6), "complex128")
    taps = kernel.transpose(2, 0, 1).reshape(6, 1, 3, 3)
    axes = ConvGeometry.of(kernel.shape, (11,), padding=3, padding_mode="replicate").axes()
    options = {"padding": 3, "padding_mode": "replicate"}
    exact = float(oracles.sigma(oracles.conv_matrix(kernel, (11,), **options)))
    upper = finite_banded.bracket(taps, axes, exact * (1 - 1e-9), rtol=1e-6).upper
    assert exact * (1 - 1e-13) <= upper <= exact * (1 + 1e-6)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_generic_start_finds_the_largest_group(groups):
    kernel = drawn((2 * groups, 2, 3))
    taps = kernel.reshape(groups, 2, 2, 3).transpose(3, 0, 1, 2)
    axes = ConvGeometry.of(kernel.shape, (9,), padding=1, groups=groups).axes()
    found = finite.golub_kahan(taps, axes, None, rtol=1e-6)
    exact = oracles.sigma(oracles.conv_matrix(kernel, (9,), padding=1, groups=groups))
    assert exact * (1 - 1e-6) <= found.lower <= exact * (1 + 1e-13)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "symmetric"])
def test_no_window_is_cut_out_of_what_is_continued(monkeypatch, mode):
    """A central part of it would be read as a copy too, and not be a submatrix."""
    kernel = np.abs(drawn((4, 2, 7)))
    taps = kernel.reshape(2, 2, 2, 7).transpose(3, 0, 1, 2)
    options = {"padding": 6, "padding_mode": mode, "groups": 2}
    axes = ConvGeometry.of(kernel.shape, (8,), **options).axes()
    exact = float(oracles.sigma(oracles.conv_matrix(kernel, (8,), **options)))
    assert finite.golub_kahan(taps, axes, None, rtol=1e-6).lower >= exact * (1 - 1e-6)
    monkeypatch.setattr(limits, "WINDOW_INPUTS", 12)
    assert finite.golub_kahan(taps, axes, None, rtol=1e-6).lower == 0
    bracket = gn.conv_norm_bracket(kernel, 8, **options)
    assert bracket.lower <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= bracket.upper


def test_a_prediction_costs_next_to_nothing_at_any_size():
    """Of a table of samples and taps alone the readers took seconds."""
    kernel = drawn((2, 2, 31))
    taps = kernel.reshape(1, 2, 2, 31).transpose(3, 0, 1, 2)
    for mode in ("zeros", "reflect"):
        axes = ConvGeometry.of(kernel.shape, (10**8,), padding=15, padding_mode=mode).axes()
        tracemalloc.start()
        predicted = finite_costs.banded(taps, axes), finite_costs.assembled(taps, axes)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert min(predicted) > limits.LONGEST
        assert peak < 2**16
