"""Terms of errors one by one: all else is exact, and what a term is for errs by all it may.

Together the terms of a bound have more to spare than most of them are; each of these tests fails
if its term is taken away.
"""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse

from gramnorm import _rescaling
from gramnorm._arrays import limits
from gramnorm._conv import factored, finite_lower, finite_upper, flat, squared, vectors, wide
from gramnorm._conv.sampling import Maximum
from gramnorm._matrix import (
    cholesky,
    definite,
    fixed_steps,
    gram,
    non_negative,
    operators,
    residual,
    single,
    sparse,
    summed,
    windows,
)
from gramnorm._results import Bounds
from gramnorm._rigour import model, scaling, sums
from gramnorm.network import _coupling as coupling
from gramnorm.network import _energies as energies
from gramnorm.network import _fixed_steps as chain_steps
from gramnorm.network import _sequence as sequence
from gramnorm.network import _unrolled as unrolled
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
        found = flat.autocorrelation(taps, offsets)
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


def test_a_rayleigh_quotient_counts_a_long_product(monkeypatch):
    """A row of ones, whose only image comes out too large."""
    n = 400
    high = np.full((1, 1), n * (1 + real(n) * ALMOST))
    monkeypatch.setattr(residual.linalg, "images", lambda b, _: (high, b.T @ high))
    found = residual.quotient(np.ones((1, n)), np.ones((n, 1)), frobenius=math.sqrt(n) * (1 + U))
    assert 0 < found.lower <= n


def test_a_rayleigh_quotient_in_single_precision_counts_its_pieces(monkeypatch):
    n = limits.QUOTIENT_PIECE
    high = n * (1 + real(n, U32) * ALMOST)
    monkeypatch.setattr(residual, "_image", lambda c, _: np.full(len(c), high))
    ones = np.ones((1, n), np.float32)
    found = residual.single_quotient(ones, ones[0], frobenius=math.sqrt(n) * (1 + U))
    assert 0 < found.lower <= n


def test_row_sums_count_what_their_products_lose():
    q = 400
    with hostile.computing(hostile.KINDS["low"]):
        ones = np.ones((q, q))
        assert residual.weighted_row_sum(ones, ones[:, :1]) >= q


def test_non_negative_products_count_all_their_terms():
    """A row of 200 entries and a column of 100: two images that are too small, and a quotient."""
    m = non_negative.NonNegative(np.asarray, np.asarray, 200, 100, 200, 300)
    lost = (1 - Fraction(U)) ** (200 + 5 + 100 + 5 + 1)
    assert Fraction(float(m.above(np.asarray([float(lost)]))[0])) ** 2 >= 1


def test_an_attained_norm_counts_the_sum_of_a_row(monkeypatch):
    n = 1000

    class High:
        def __matmul__(self, _):
            return np.full(1, n * (1 + real(n) * ALMOST))

    monkeypatch.setattr(non_negative.linalg, "in_double", lambda _: [High()])
    monkeypatch.setattr(sums, "host_norm", lambda x: (np.linalg.norm(x),) * 2)
    found = non_negative.attained(np.ones((1, n)), np.ones(n), math.sqrt(n) * (1 + U), in_row=n)
    assert 0 < Fraction(found) ** 2 <= n


@pytest.mark.parametrize("rows", [2, 3])
def test_bounds_on_an_operator_of_subnormal_norm_are_on_their_sides(rows):
    """4096 times the roots of 2 and of 3 are no whole numbers: one is rounded up, one down."""
    entry = 4096 * 2.0**-1074
    operator = SimpleNamespace(
        shape=(rows, 1),
        matvec=lambda x: np.full(rows, x[0] * entry),
        rmatvec=lambda y: np.asarray([float(np.sum(y)) * entry]),
    )
    exact = rows * Fraction(entry) ** 2
    low, high, _ = operators._bracket_non_negative(operator, 1e-6)
    assert Fraction(low) ** 2 <= exact <= Fraction(high) ** 2
    assert 0 < Fraction(operators.operator_norm_lower_bound(operator)) ** 2 <= exact


def test_a_narrowed_matrix_counts_the_rounding_of_its_entries():
    b = np.full((3, 40), 1 + 2.0**-24)  # half way between two floats
    square = float(np.sum(b * b)) * (1 + 8 * U)
    c, scale, off = single._narrowed(b, square)
    exact = Fraction(1) + Fraction(1, 2**24)
    error = abs(Fraction(float(c[0, 0])) - Fraction(scale) * exact)
    assert 0 < 120 * error**2 <= Fraction(off) ** 2


def test_gram_matrices_in_pieces_count_both_sums():
    c = np.zeros((1024, 8), np.float32)
    found = {single._longest_pieces(c, 1.0, 1e-9, room) for room in 10.0 ** np.arange(-6, 2, 0.1)}
    lengths = {inner for inner, _ in found if inner}
    assert len(lengths) > 1
    for inner, error in found:
        if inner:
            pieces = -(-1024 // inner)
            assert error >= (1 + real(inner, U32)) * (1 + real(pieces - 1, U32)) - 1


def test_a_level_that_is_added_counts_its_rounding(monkeypatch):
    monkeypatch.setattr(definite, "shortfalls", lambda *_, **__: (np.zeros(1), np.full(1, 3.0)))
    found = single._eigenvalue_bound(np.eye(4, dtype=np.float32), 2.0, 4)
    assert found >= 2 + 3 * U32


def test_values_in_one_place_count_the_additions_of_all():
    count = 500
    place = np.zeros(count, np.int64)
    x = scipy.sparse.coo_array((np.ones(count), (place, place)), shape=(1, 1))
    assert sparse._sum_loss(x, merged=1) >= count * real(count - 1)


def test_a_cluster_of_a_sparse_matrix_counts_the_rounding_of_its_gram_matrix(monkeypatch):
    seen = []

    def iterated(_, *, error, size, rtol):
        seen.append((error, size))
        return Bounds(0.0, math.inf, 1)

    open_ = Bounds(0.0, math.inf, 1)
    monkeypatch.setattr(sparse, "matrix_certificate", lambda *_, **__: open_)
    monkeypatch.setattr(sparse, "gram_iterated", iterated)
    sparse._by_dense_gram(scipy.sparse.csr_array(np.ones((300, 2))), rtol=1e-9)
    ((error, size),) = seen
    assert size >= 600
    assert error >= 600 * real(300)


def test_sums_of_gram_matrices_count_products_and_sums():
    rows = np.ones((300, 4))
    part = summed.of_piece(rows)
    square = 300 * 4 * 4.0**-part.exponent
    assert part.square >= square
    assert part.error >= real(300) * square
    many = [part] * 200
    exact = 200 * part.square * real(199)
    assert summed.sum_error(many, part.gram) >= exact
    assert summed._times(1.0, -3000) > 0


def test_a_window_counts_the_products_of_its_gram_matrix(monkeypatch):
    seen = []
    monkeypatch.setattr(
        windows, "_by_moduli", lambda _, error, *__, **___: seen.append(error) or 9.0
    )
    ones = scipy.sparse.csr_array(np.ones((300, 2)))
    windows.bracket(ones, Bounds(math.sqrt(600), 25.0, 1), 25.0, rtol=1.0)
    assert seen[0] >= 625 * real(300)


def test_a_factorisation_in_a_window_counts_its_sums_of_squares(monkeypatch):
    window = windows.Window(64, np.asarray([64, 512]))
    monkeypatch.setattr(windows, "_factorise", lambda *_: (1.0, 0.0))
    s = SimpleNamespace(dtype=np.dtype(np.float64), order=512)
    found = windows.eigenvalue_bound(s, window, 1.0)
    assert found >= 1 + math.sqrt(2 / (1 - real(2 * window.side * 64)))


# ------------------------------------------------------------------------------------- networks


def test_the_joined_operator_of_a_chain_counts_the_rounding_of_its_entries(monkeypatch):
    """The identity, each entry too small by the two roundings of its scale."""
    n = 400
    joined = SimpleNamespace(doubts=None, scaled=lambda _: np.eye(n))
    monkeypatch.setattr(coupling, "matrix_norm_bound", lambda *_, **__: np.float64(1.0))
    found, _ = coupling.Coupling.norm_and_peak(joined, np.ones(1), total=1, gap=1e-4)
    assert found >= 1 + ((1 + U) ** 2 - 1 + 2 * U) * math.sqrt(n) / 1.01


def test_an_energy_behind_a_matrix_counts_both_products():
    rows, columns = 300, 3
    with hostile.computing(hostile.KINDS["low"]):
        found = energies._pulled_back(np.ones((rows, rows)), np.ones((rows, columns)))
    total = sum(Fraction(float(x)) for x in found.ravel())
    assert total >= (rows * columns) ** 2


def test_a_step_of_an_energy_counts_the_entries_of_its_matrix(monkeypatch):
    n = 20
    known = np.zeros((n, n)), np.zeros((n, n)), np.eye(n)
    monkeypatch.setattr(energies, "blocks", lambda *_: known)
    moduli = np.full((2 * n, 2 * n), 1.0)
    monkeypatch.setattr(energies, "without_unit", lambda *_: (np.zeros((2 * n,) * 2), moduli))
    below = 1 - 8 * U * n  # less than what 2 n entries may have lost
    monkeypatch.setattr(energies, "eigenvalue_bound", lambda *_: below)
    bend = SimpleNamespace(size=n)
    ones = np.ones(n)
    assert not energies._is_proved(np.eye(n), np.eye(n), bend, ones, ones, margin=0.0)


def test_the_constant_of_an_energy_counts_the_last_product(monkeypatch):
    n = 400
    monkeypatch.setattr(energies, "_root", lambda _: np.ones((1, n)))
    monkeypatch.setattr(energies, "matrix_norm_bound", lambda a, **_: float(np.abs(a)[0, 0]))
    with hostile.computing(hostile.KINDS["low"]):
        assert energies._at_the_input(np.eye(n), np.ones((n, 1)), 0) >= n


@pytest.mark.parametrize(("n", "margin"), [(1, 2 * U), (400, 150 * U)])
def test_a_root_of_an_energy_counts_the_product_that_checks_it(monkeypatch, n, margin):
    """The product looks exact, and may have hidden n units of n."""
    monkeypatch.setattr(energies, "_MARGIN", margin)
    monkeypatch.setattr(energies, "_TRIES", 1)
    monkeypatch.setattr(energies.linalg, "matmul", lambda a, _: a @ a.T)
    monkeypatch.setattr(energies, "host_norm", lambda _: (0.0, 0.0))
    assert energies._root(np.eye(n)) is None


def test_fixed_steps_of_a_chain_count_the_rounding_of_entries_and_products(monkeypatch):
    n, rng = 16, np.random.default_rng(5)
    b = np.full((n, n), np.float32(1 - 2 * U32))
    monkeypatch.setattr(chain_steps, "_coupling", lambda *_: (b, np.float32(1.0)))

    def exactly(a, **_):
        return np.float32(np.linalg.norm(a.astype(float), 2))

    monkeypatch.setattr(chain_steps, "gram_iteration", exactly)
    found = chain_steps._norm(SimpleNamespace(), b, b, 1, 8)
    assert found.dtype == np.float32
    assert float(found[0]) >= n
    value, factor = (rng.uniform(1, 2, 3000).astype(np.float32) for _ in range(2))
    exact = value.astype(np.float64) * factor.astype(np.float64)
    assert np.all(chain_steps._times(value, factor) >= exact)


def test_short_products_are_no_smaller_than_what_they_stand_for():
    """1.5 (1 + 2^-54) is rounded to 1.5, which is short already."""
    e = 2.0**-18
    a, b = 1 + e, 1.5 * (1 - e + e**2)
    assert a * b == 1.5
    found = sequence._product(np.asarray([a]), np.asarray([b]))
    assert Fraction(float(found[0])) >= Fraction(a) * Fraction(b)


def test_products_that_are_subnormal_count_what_each_may_have_lost():
    quantum = 2.0**-1074
    assert sequence._rounding(np.full((100, 100), quantum)) >= 50 * quantum


def test_sums_of_weights_count_their_additions():
    count = 300
    ones = np.ones(count)
    _, doubts = unrolled._of_sums(lambda w: np.sum(w, keepdims=True), ones, None, terms=count)
    assert doubts[0] >= count * real(count - 1)


def test_fixed_steps_of_a_chain_count_what_underflows(monkeypatch):
    small, least = np.float32(2.0**-80), np.float32(2.0**-149)
    with np.errstate(all="ignore"):
        assert float(chain_steps._times(small, small)) >= 2.0**-160
        large = np.full(1, 2.0**120, np.float32)
        found = chain_steps._times_power(large, np.full(1, least), 1)
        assert float(found[0]) >= 2.0**120 * 2.0**-150
    n, tiny = 16, float(np.finfo(np.float32).smallest_normal)
    zeros = np.zeros((n, n), np.float32)  # of entries just below the smallest normal number
    monkeypatch.setattr(chain_steps, "_coupling", lambda *_: (zeros, np.float32(1.0)))
    monkeypatch.setattr(chain_steps, "gram_iteration", lambda *_, **__: np.float32(0.0))
    assert float(chain_steps._norm(SimpleNamespace(), zeros, zeros, 1, 8)[0]) >= n * tiny


def test_an_energy_behind_a_matrix_counts_what_underflows():
    """K = (1, 2^-600) and E = 2^-480, a matrix of rank one of which one entry is left."""
    e, k = 2.0**-480, np.asarray([[1.0, 2.0**-600]])
    found = energies._pulled_back(np.asarray([[e]]), k)
    exact = [[Fraction(e) * Fraction(a) * Fraction(b) for b in k[0]] for a in k[0]]
    (a, b), (_, d) = [
        [Fraction(float(x)) - y for x, y in zip(*rows, strict=True)]
        for rows in zip(found, exact, strict=True)
    ]
    assert a >= 0
    assert d >= 0
    assert a * d >= b * b


# ------------------------------------------------------------------------------------ rescaling


@pytest.mark.parametrize("q", [1, 50])
def test_rows_of_a_gram_matrix_count_products_and_the_scaling(q):
    prec = model.Precision(U32, 2.0**-126, complex=False)
    found = _rescaling._relative_error(1, 3, q, (), prec, half=True)
    assert found >= (1 + real(q, U32)) * (1 + U32) - 1


def test_rescaled_entries_leave_room_for_their_last_rounding():
    double, single = np.dtype(np.float64), np.dtype(np.float32)
    for out, unit in ((double, U), (single, U32)):
        room = _rescaling._shrinkage((1, 1, 10**4, 10**4), double, out)
        assert Fraction(room) * (1 + 100 * Fraction(unit)) <= 1


# -------------------------------------------------------------------------------------- scaling


def test_scaling_counts_entries_that_may_have_been_read_as_zeros(monkeypatch):
    monkeypatch.setattr(scaling.probes, "flushes_subnormals", lambda *_: True)
    tiny = float(np.finfo(np.float32).smallest_normal)
    a = np.ones((1, 3, 5), np.float32)
    assert scaling.normalise(a, dtype=np.dtype(np.float32)).excess >= tiny * math.sqrt(15)
