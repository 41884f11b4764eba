"""Terms of errors one by one: all else is exact, and what a term is for errs by all it may.

Together the terms of a bound have more to spare than most of them are; each of these tests fails
if its term is taken away.
"""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from gramnorm._conv import factored, finite_lower, finite_upper, flat, squared, vectors, wide
from gramnorm._conv.sampling import Maximum
from gramnorm._matrix import cholesky, definite, fixed_steps, gram
from gramnorm._rigour import model
from tests.harness import hostile

pytestmark = pytest.mark.no_backend

U, U32 = 2.0**-53, 2.0**-24
ALMOST = 1 - 1e-6  # of what is allowed, which is for errors below


def real(n, unit=U):
    """Return the largest relative error of an inner product of n terms."""
    return float((1 + Fraction(unit)) ** n - 1)


# ---------------------------------------------------------------------------------- frequencies


@pytest.mark.parametrize("turns", [Fraction(1, 3), Fraction(2, 7), Fraction(1, 2**41)])
def test_a_frequency_that_is_moved_counts_the_rounding_of_its_turns(turns):
    """A quotient errs by half a unit of a number below 1, and is moved by half of 1 / FINEST."""
    assert abs(Fraction(float(squared.snapped(np.asarray([float(turns)]))[0])) - turns) <= (
        Fraction(1, 2 * squared.FINEST) + Fraction(1, 2**54)
    )
    most = Fraction(1, 2 * squared.FINEST) + Fraction(1, 2**54)
    for offsets in map(np.asarray, ([[0], [1]], [[0, 0], [3, 4], [7, 1]])):
        spread = int(np.sum(np.ptp(offsets, axis=0)))
        slip = factored._slip(SimpleNamespace(offsets=offsets, sum_bound=1.0))
        assert Fraction(slip) >= 2 * Fraction(math.pi) * Fraction(spread, 2) * most
    search = object.__new__(wide._Search)
    search._rates, search._reach = np.asarray([4.0, 2.0]) * math.pi, np.asarray([0.0, 0.0])
    search._diamond, search._cuts = (), 3
    # a centre is a sum of two numbers below two, four times
    moved = 4 * (Fraction(1, 2 * squared.FINEST) + Fraction(1, 2**52))
    assert Fraction(float(search._width(0.0))) >= 6 * Fraction(math.pi) * moved


# -------------------------------------------------------------------------------------- symbols


@pytest.mark.parametrize(("count", "p", "q"), [(1, 1, 1), (9, 4, 3), (2, 1, 300), (50, 200, 2)])
def test_a_wave_counts_its_images_and_their_products(count, p, q):
    """Relative to the square of the sum of norms: twice an image, its phase, and the last sums."""
    taps, offsets = np.ones((count, p, q)), np.arange(count)[:, None]
    symbol = SimpleNamespace(host_taps=lambda _: taps, offsets=offsets)
    wave = finite_lower.Wave.at(symbol, Maximum.unknown(1))
    total = count * math.sqrt(p * q)
    angle = 2 * math.pi * 4 * U * (count - 1) + 4 * math.sqrt(2) * U  # not reduced
    image = math.sqrt(2) * real(2 * q) + angle + 4 * U
    sums = math.sqrt(2) * real(2 * p) + 2 * real(count)
    assert wave.noise >= (2 * image + sums) * total**2


def test_norms_of_compressed_circulants_count_the_errors_of_entries(monkeypatch):
    def exactly(matrices, **_):
        return SimpleNamespace(upper=np.linalg.norm(matrices, 2, axis=(1, 2)) * (1 - 8 * U))

    monkeypatch.setattr(finite_upper, "bracket_stack", exactly)
    weights, n = np.ones((1, 50)), 4  # the identity, whose norm may be low by n entries' errors
    assert finite_upper._toeplitz_norms(weights, n, rtol=1e-9)[0] >= 1 + n * real(50)


def test_a_centre_that_is_taken_off_counts_its_rounding():
    lags = np.zeros((1, 1), np.int64)
    for centre in (2.0**-54, 0.3, 1.0 - 2.0**-53):
        h = flat.Autocorrelation(np.ones((1, 1, 1, 1)), lags, error=0.0, floor=0.0, ceiling=1.0)
        taps, error = h.less(centre)
        assert abs(Fraction(float(taps[0, 0, 0, 0])) - (1 - Fraction(centre))) <= Fraction(error)


def test_sums_of_lags_count_their_additions():
    """Blocks of ones: the sums over lags err by all they may, in the norm at frequency zero."""
    count, q = 40, 3
    taps, offsets = np.ones((count, 1, 1, q)), np.arange(count)[:, None]
    with hostile.computing(hostile.KINDS["low"]):
        found = flat.autocorrelation(hostile.plain.asarray(taps), offsets)
    exact = count - np.abs(found.lags[:, 0])
    off = np.abs(np.asarray(found.taps)[:, 0] - exact[:, None, None])
    assert np.sum(np.linalg.norm(off, axis=(1, 2))) > count**2 * q * 10 * U
    assert np.sum(np.linalg.norm(off, axis=(1, 2))) <= found.error


def test_the_least_eigenvalue_counts_the_rounding_of_a_difference(monkeypatch):
    """1 - x is rounded down to the next float32: x must not come out larger."""
    monkeypatch.setattr(flat, "_norms_above", lambda m: np.abs(m[:, 0, 0]).astype(np.float64))
    x = np.float32(2.0**-25 * 1.01)
    assert float(np.float32(1) - x) < 1 - float(x)
    found = flat._least_eigenvalues(np.full((1, 1, 1), x), np.ones(1))
    assert found[0] <= float(x)


def test_a_quotient_of_a_wide_symbol_counts_the_sum_over_taps(monkeypatch):
    """400 taps of one: their sum comes out too large, as if phases had grown."""
    count = 400
    grown = np.full(count, 1 + real(count) * ALMOST, complex)
    monkeypatch.setattr(squared.angles, "unit_circle", lambda _: grown)
    square = squared.Squared(np.ones((count, 1, 1)), np.arange(count)[:, None])
    assert 0 < square.quotient(np.zeros(1), np.ones(1)) <= count


def test_the_square_of_a_symbol_counts_the_sum_over_many_lags():
    count = 400
    with hostile.computing(hostile.KINDS["low"]):
        square = squared.Squared(np.ones((count, 1, 1)), np.arange(count)[:, None])
        (column,) = square.formed(np.zeros((1, 1)), np.zeros(1), wide=True)
    lost = count**2 + float(column[0, 0, 0].real)
    assert 500 * U * count**2 < lost <= square.error


@pytest.mark.parametrize("wide_type", [False, True])
def test_a_bound_by_a_factorisation_counts_what_entries_are_rounded_by(monkeypatch, wide_type):
    monkeypatch.setattr(squared.definite, "shortfalls", lambda _: (np.zeros(1), np.full(1, 3.0)))
    square = squared.Squared(np.ones((1, 2, 2)), np.zeros((1, 1), np.int64))
    monkeypatch.setattr(square, "error", 0.0)
    found = square._part_bounds(np.zeros((1, 1)), np.ones(1), wide=wide_type)
    kept = U if wide_type else U32
    assert found[0] >= 1 + 3 * ((1 + U) * (1 + kept) - 1)


# -------------------------------------------------------------------------------------- vectors


def test_attained_norms_count_the_products_of_an_image(monkeypatch):
    """One output of ones, larger by all that its products may add."""
    c, k = 60, 5
    high = c * k * (1 + model.precision_of(np.dtype(complex)).kappa(c * k) * ALMOST)
    monkeypatch.setattr(vectors, "correlate", lambda *_: np.full((1, 1), high))
    axis = SimpleNamespace(copies=lambda: 1)
    of = vectors._Correlation(np.ones((1, 1, c, k)), (1,), (1,), (axis,))
    found = of.quotient(np.ones((c, k)), np.ones((1, 1)), np.zeros(1))
    assert 0 < Fraction(found) ** 2 <= c * k


def test_attained_norms_count_the_product_with_the_left_vector(monkeypatch):
    n = 500
    high = n * (1 + model.precision_of(np.dtype(complex)).kappa(n) * ALMOST)
    monkeypatch.setattr(vectors, "correlate", lambda *_: np.ones((1, n)))
    monkeypatch.setattr(vectors.np, "vdot", lambda *_: np.float64(high))
    axis = SimpleNamespace(copies=lambda: 1)
    of = vectors._Correlation(np.ones((1, 1, 1, 1)), (1,), (1,), (axis,))
    x = np.full((1, 1), math.sqrt(n))
    assert 0 < of.quotient(x, np.ones((1, n)), np.zeros(1)) <= 1


def test_attained_norms_count_the_phases_of_far_taps(monkeypatch):
    """A tap 300 samples away, whose angle of 300 pi is wrong by four roundings."""
    high = 1 + (4 * 300 * math.pi + 20) * U * ALMOST
    monkeypatch.setattr(vectors._Correlation, "_through", lambda *_: np.full((1, 1), high + 0j))
    of = vectors._Correlation(np.asarray([[[[0.0, 1.0]]]]), (1,), (300,), None)
    assert 0 < of.quotient(np.ones((1, 1)), np.ones((1, 1)), np.full(1, math.pi)) <= 1


# ------------------------------------------------------------------------------------- matrices


def test_a_level_counts_its_rounding_in_single_precision(monkeypatch):
    monkeypatch.setattr(cholesky, "_factorise", lambda *_: (np.zeros(1), np.zeros(1)))
    level = 1 + 2.0**-24 + 2.0**-40
    assert float(np.float32(level)) == 1 + 2.0**-23
    assert cholesky.eigenvalue_bound(np.eye(2, dtype=np.float32), level) >= 1 + 2.0**-23


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_norm_of_moduli_counts_what_its_sums_lose(dtype):
    """|R| |R|^H of ones has the norm q^2, and its products come out too small."""
    q = 100
    with hostile.computing(hostile.KINDS["low"]):
        found = definite._collatz(np.ones((1, q, q), dtype))
    assert found[0] >= q**2


@pytest.mark.parametrize(("p", "q"), [(500, 1), (1, 400), (64, 64)])
def test_the_error_of_a_gram_step_is_that_of_a_trace_that_is_low(p, q):
    chain = object.__new__(gram.GramChain)
    chain._precision = prec = model.Precision(U32, 2.0**-126, complex=False)
    trace = np.asarray([float((1 - Fraction(real(p, U32))) * (1 - Fraction(real(q - 1, U32))))])
    error, square = chain._product_error(trace, p, q)
    assert square[0] >= 1
    assert error[0] >= prec.kappa(p)


def test_results_of_fixed_steps_count_conversions_and_scale():
    """Bounds in float64 become float32, times the largest component."""
    rng = np.random.default_rng(3)
    value = np.concatenate([rng.uniform(1, 4, 4000), 1 + U32 * rng.uniform(0.4, 0.6, 2000)])
    peak = rng.uniform(1, 2, len(value)).astype(np.float32)
    found = fixed_steps.restored(value, peak, np.ones((1, 1), np.float32), gain=1.0)
    assert found.dtype == np.float32
    assert np.all(found >= value * peak.astype(np.float64) * (1 - 4 * U))


def test_results_of_fixed_steps_count_what_is_subnormal():
    """A result is rounded to whole quanta."""
    tiny = np.finfo(np.float32).smallest_normal
    value = np.random.default_rng(4).uniform(2.0**-20, 2.0**-18, 500)
    peak = np.full(500, tiny * np.float32(2.0**-20), np.float32)
    with np.errstate(all="ignore"):
        found = fixed_steps.restored(value, peak, np.ones((1, 1), np.float32), gain=4.0)
    assert np.all(found.astype(np.float64) >= value * float(fixed_steps.divisor(peak)[0]))
