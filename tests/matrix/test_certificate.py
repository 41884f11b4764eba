"""What is proved of one matrix: by a checked factorisation, by a vector, by row sums, and by all of them.

Most matrices here have eigenvalues that are known exactly: S = W diag(d) W^H / w with W W^H = w I, w a
power of two, W of small (Gaussian) integers and d of few bits, so that every entry of S is a float.
"""

import dataclasses
import inspect
import math
import types
from fractions import Fraction

import flint
import numpy as np
import pytest
import scipy.linalg

import gramnorm as gn
from gramnorm._arrays import limits, linalg
from gramnorm._matrix import certificate, cholesky, residual
from gramnorm._rigour import model, sums
from tests.harness import oracles
from tests.harness.families import FAMILIES, from_spectrum

pytestmark = pytest.mark.no_backend

DISTANCES = [10.0**-k for k in range(2, 14)]
U = 2.0**-53


def walsh(order, *, unitary=False):
    """Return W with W W^H = w I and w; complex if `unitary`, of order twice as large."""
    h = scipy.linalg.hadamard(order).astype(np.float64)
    return (np.kron(h, [[1, 1j], [1j, 1]]), 2 * order) if unitary else (h, order)


def with_spectrum(d, *, unitary=False):
    """Return the Hermitian matrix with the eigenvalues `d`, whose number is a power of two."""
    w, size = walsh(len(d) // 2 if unitary else len(d), unitary=unitary)
    s = (w * d) @ w.conj().T / size
    # the claim that no rounding happened: the entries are multiples of 2^-42, below 2^11
    assert np.array_equal(s * 2.0**42, np.round(s * 2.0**42))
    return s


def few_bits(count, top, second, seed=0):
    d = np.random.default_rng(seed).integers(0, 512, count) / 1024
    d[:2] = (top, second)[:count]
    return d


def known(dtype="float64"):
    """Yield (name, Hermitian matrix, its largest eigenvalue), exact in the type named."""
    pairs = [2.0**-3] if dtype in ("float32", "complex64") else [2.0**-3, 2.0**-20, 2.0**-34]
    orders = (2, 16, 32) if dtype in ("float32", "complex64") else (2, 32, 128, 256)
    complex_values = np.dtype(dtype).kind == "c"
    for order in orders:
        for gap in pairs:
            d = few_bits(order, 1.0, 1.0 - gap)
            yield f"pair {order} {gap:.0e}", with_spectrum(d, unitary=complex_values), 1.0
    flat = np.where(np.arange(64) < 20, 1.0, 0.25)
    yield "level of multiplicity 20", with_spectrum(flat, unitary=complex_values), 1.0
    small = with_spectrum(few_bits(16, 1.25, 1.0), unitary=complex_values)
    yield "Kronecker", np.kron(small, [[2.0, 1.0], [1.0, 2.0]]), 3.75
    blocks = [
        with_spectrum(few_bits(k, t, t / 2), unitary=complex_values)
        for k, t in ((32, 0.5), (4, 0.75))
    ]
    yield "block", scipy.linalg.block_diag(*blocks, np.diag([0.5, 0.0, 0.625])), 0.75
    yield "one by one", np.asarray([[0.7109375]]), 0.7109375
    yield "diagonal", np.diag(np.arange(1, 51) / 64), 50 / 64
    yield "identity", np.eye(70) * 3.0, 3.0
    yield "rank one", np.outer(np.arange(1.0, 9), np.arange(1.0, 9)), 204.0
    yield "ones", np.ones((96, 96)), 96.0


def cases(dtype="float64"):
    for name, s, top in known(dtype):
        assert np.array_equal(s.astype(dtype), s)
        yield name, s.astype(dtype), top


DOUBLE = ("float64", "complex128")


def acceptance(q, dtype):
    """Return the relative excess of an accepted bound over its level.

    The factorisation, the product that checks it and the bound on that product's rounding each err by
    gamma_(q+1) (3.2 times that in complex arithmetic) times ||R||_F^2 <= q level; the rest is O(sqrt(q)) u.
    """
    inner = max(q, limits.CHOLESKY_BLOCK) + 8
    return (10 if np.dtype(dtype).kind == "c" else 4) * inner * q * U


# ------------------------------------------------------------------------ the checked factorisation


@pytest.mark.parametrize("dtype", DOUBLE)
def test_a_level_below_the_eigenvalue_gives_no_bound_below_it(dtype):
    for name, s, top in cases(dtype):
        for distance in [*DISTANCES, 0.0]:
            assert cholesky.eigenvalue_bound(s, top * (1 - distance)) >= top, (
                name,
                distance,
            )


@pytest.mark.parametrize("dtype", DOUBLE)
def test_a_level_clearly_below_the_eigenvalue_is_refused(dtype):
    for name, s, top in cases(dtype):
        for distance in (0.5, 1e-2, 1e-6, 1e-9):
            assert cholesky.eigenvalue_bound(s, top * (1 - distance)) == math.inf, name


@pytest.mark.parametrize("dtype", DOUBLE)
def test_a_level_above_the_eigenvalue_is_accepted(dtype):
    for name, s, top in cases(dtype):
        assert acceptance(s.shape[0], dtype) < 2e-10 or s.shape[0] > 300
        for distance in [1.0, *DISTANCES]:
            level = top * (1 + distance)
            bound = cholesky.eigenvalue_bound(s, level)
            assert bound >= top, (name, distance)
            if distance >= 0.99e-9:
                assert bound <= level * (1 + acceptance(s.shape[0], dtype)), (name, distance)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_single_precision_gives_no_bound_below_the_eigenvalue(dtype):
    for name, s, top in cases(dtype):
        for distance in DISTANCES:
            for level in (top * (1 - distance), top, top * (1 + distance)):
                assert cholesky.eigenvalue_bound(s, level) >= top, (name, level)


def test_the_bound_scales_with_powers_of_two():
    for name, s, top in cases():
        base = cholesky.eigenvalue_bound(s, top * 1.001)
        for k in (-100, 100):
            scaled = cholesky.eigenvalue_bound(s * 2.0**k, top * 1.001 * 2.0**k)
            assert scaled == base * 2.0**k, name


def test_only_the_lower_triangle_defines_the_matrix():
    for name, s, top in cases():
        spoilt = s + np.triu(np.full_like(s, 1e-13), 1)
        bound = cholesky.eigenvalue_bound(spoilt, top * (1 + 1e-6))
        assert top <= bound <= top * (1 + 2e-6), name
        assert cholesky.eigenvalue_bound(s - np.triu(s, 1), top * (1 - 1e-6)) >= top, name


def projected(block):
    """Factor the nearest definite matrix: the best that a factorisation could pretend."""
    values, vectors = np.linalg.eigh(block.astype(np.promote_types(block.dtype, np.float64)))
    root = vectors * np.sqrt(np.maximum(values, 1e-9 * np.max(np.abs(values)) + 1e-30))
    return np.linalg.qr(root.conj().T, mode="r").conj().T


def pretended(block):
    """Factor a matrix that is shifted until it is definite, and say nothing of it."""
    return np.linalg.cholesky(block + (2 * np.linalg.norm(block) + 1e-30) * np.eye(len(block)))


def noise(shape, size):
    return size * np.random.default_rng(0).standard_normal(shape)


FACTORS = {
    "projected": projected,
    "of another matrix": pretended,
    "perturbed": lambda a: projected(a) + np.tril(noise(a.shape, 1e-9)),
    "perturbed a lot": lambda a: projected(a) + np.tril(noise(a.shape, 1e-2)),
    "rounded to single": lambda a: projected(a).astype(
        np.complex64 if np.iscomplexobj(a) else np.float32
    ),
    "not triangular": lambda a: noise(a.shape, 1.0),
    "upper triangular": lambda a: projected(a).conj().T,
    "identity": lambda a: np.eye(len(a)),
    "zero": np.zeros_like,
}


def replace_factor(monkeypatch, factor):
    def cholesky(a):
        return factor(a)

    monkeypatch.setattr(linalg, "cholesky_or_none", cholesky)


def lying(factor):
    return lambda a: np.asarray(FACTORS[factor](a), dtype=a.dtype)


def level_of(top, distance, dtype):
    """Return a level at the distance below `top` that the type represents."""
    return float(np.zeros((), dtype).real.dtype.type(top * (1 - distance)))


@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32", "complex64"])
@pytest.mark.parametrize("factor", FACTORS)
def test_a_wrong_factor_gives_no_bound_below_the_eigenvalue(monkeypatch, factor, dtype):
    replace_factor(monkeypatch, lying(factor))
    for name, s, top in cases(dtype):
        for distance in (0.9, 0.1, 1e-4, 1e-8, 1e-12, -1e-12, -1e-4):
            bound = cholesky.eigenvalue_bound(s, level_of(top, distance, dtype))
            assert bound >= top, (name, distance)


def test_a_factor_in_single_precision_still_proves_what_it_can(monkeypatch):
    replace_factor(monkeypatch, lying("rounded to single"))
    for name, s, top in cases():
        bound = cholesky.eigenvalue_bound(s, top * 1.01)
        assert bound <= top * (1.01 + 4 * 2.0**-24 * len(s)), name  # 2 u32 ||R||_F^2


@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_no_factor_or_one_that_is_not_finite_proves_nothing(monkeypatch, value):
    replace_factor(monkeypatch, lambda a: None if value is None else np.full_like(a, value))
    with np.errstate(all="ignore"):
        for name, s, top in cases():
            assert cholesky.eigenvalue_bound(s, top * 2) == math.inf, name


def test_one_entry_of_the_factor_that_is_not_a_number_proves_nothing(monkeypatch):
    def spoilt(a):
        factor = np.linalg.cholesky(a)
        factor[len(a) // 2, 0] = np.nan
        return factor

    replace_factor(monkeypatch, spoilt)
    for name, s, top in cases():
        assert cholesky.eigenvalue_bound(s, top * 2) == math.inf, name


def mutant(old, new):
    """Return the module `cholesky` with a piece of its source replaced."""
    source = inspect.getsource(cholesky)
    assert source.count(old) == 1, f"the mutation has lost its target: {old}"
    module = types.ModuleType("mutant")
    exec(compile(source.replace(old, new), "mutant", "exec"), vars(module))
    return module


NO_DEFECT = ("math.sqrt(2 * defect)", "0.0")
NO_ROUNDING = (
    "shortfall(rest, size, products=count, inner=width, order=q, precision=prec)",
    "rest",
)


def violations(module, dtype):
    """Count the bounds below the exact eigenvalue, and how many there were."""
    below = [
        module.eigenvalue_bound(s, level_of(top, distance, dtype)) < top
        for _, s, top in cases(dtype)
        for distance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    ]
    return sum(below), len(below)


@pytest.mark.parametrize("factor", ["projected", "of another matrix"])
@pytest.mark.parametrize("dtype", DOUBLE)
def test_without_the_defect_a_wrong_factor_gives_a_false_bound(monkeypatch, factor, dtype):
    replace_factor(monkeypatch, lying(factor))
    assert violations(cholesky, dtype)[0] == 0
    below, asked = violations(mutant(*NO_DEFECT), dtype)
    assert below >= 0.6 * asked  # the others are saved by the bound on rounding


def flattering_product(column):
    """Return a product that errs towards `column`, as far as the rounding model lets it."""

    def product(x, y):
        wide = np.result_type(x.dtype, np.longdouble)
        exact = x.astype(wide) @ y.astype(wide)
        allowed = (x.shape[1] - 4) * U * (np.abs(x) @ np.abs(y))  # 4 u less: stored once more
        wish = column - exact
        size = np.maximum(np.abs(wish), 1e-300)
        return (exact + wish * np.minimum(allowed / size, 1)).astype(x.dtype)

    return product


@pytest.mark.parametrize("dtype", DOUBLE)
def test_products_at_the_edge_of_the_rounding_model_give_no_false_bound(monkeypatch, dtype):
    bare, below = mutant(*NO_ROUNDING), 0
    for gap in (2.0**-3, 2.0**-20):
        s = with_spectrum(few_bits(64, 1.0, 1.0 - gap), unitary=np.dtype(dtype).kind == "c")
        for steps in (20, 60, 200):
            level = 1 - steps * U
            shifted = level * np.eye(64, dtype=dtype) - s
            values, vectors = np.linalg.eigh(shifted)
            root = vectors * np.sqrt(np.maximum(values, 0))
            factor = np.linalg.qr(root.conj().T, mode="r").conj().T
            replace_factor(monkeypatch, lambda _, factor=factor: factor)
            monkeypatch.setattr(linalg, "matmul", flattering_product(shifted))
            assert cholesky.eigenvalue_bound(s, level) >= 1
            below += bare.eigenvalue_bound(s, level) < 1
    assert below >= 2  # without the bound on rounding


def no_rounding(dtype):
    return model.Precision(unit=0.0, tiny=0.0, complex=np.dtype(dtype).kind == "c")


# ------------------------------------------------------------------------------- a vector's proof


def exactly(a):
    """Return a rational matrix, complex entries as real 2 x 2 blocks: the same norms and quotients."""
    a = np.asarray(a)
    if np.iscomplexobj(a):
        top = np.concatenate([a.real, -a.imag], axis=1)
        a = np.concatenate([top, np.concatenate([a.imag, a.real], axis=1)])
    entries = [flint.fmpq(*float(x).as_integer_ratio()) for x in a.ravel()]
    return flint.fmpq_mat(*a.shape, entries)


def fraction(q):
    return Fraction(int(q.p), int(q.q))


def exact_quotient(b, x):
    """Return rho and ||B^H B x - rho x||^2 / ||x||^2 as fractions."""
    b = exactly(b)
    x = exactly(x) if not np.iscomplexobj(x) else exactly(np.concatenate([x.real, x.imag]))
    if b.ncols() != x.nrows():  # a complex matrix and a real vector
        x = flint.fmpq_mat(b.ncols(), 1, [*x.entries(), *[flint.fmpq(0)] * x.nrows()])
    h = b.transpose() * (b * x)
    xx, xh, hh = ((u.transpose() * v)[0, 0] for u, v in ((x, x), (x, h), (h, h)))
    return fraction(xh / xx), fraction((hh - xh * xh / xx) / xx)


def frobenius(b):
    return float(np.linalg.norm(b.astype(np.clongdouble))) * (1 + 2.0**-20)


def vectors(b, dtype):
    rng = np.random.default_rng(1)
    q = b.shape[1]
    top = np.linalg.svd(b)[2][0].conj()
    plain = rng.standard_normal(q)
    if np.iscomplexobj(b):
        plain = plain + 1j * rng.standard_normal(q)
    for x in (top, top + 1e-3 * plain, plain, plain * 2.0**-30, np.ones(q), np.eye(q)[0]):
        yield np.asarray(x, dtype=dtype)[:, None]


ORDINARY = sorted(
    set(FAMILIES)
    - {"zero", "overflow", "near_overflow", "subnormal", "around_tiny", "squares_underflow"}
)


def ordinary(dtype, shape, seed=0):
    """Yield members of the families, p x q with q <= p, scaled so that the largest entry is about 1."""
    for name in ORDINARY:
        a = FAMILIES[name](np.random.default_rng(seed), *shape, dtype)
        if a.any():
            scaled = oracles.ldexp_long(a, -oracles.exponents(a)).astype(dtype)
            yield name, scaled if shape[0] >= shape[1] else scaled.T


@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32", "complex64"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (9, 9)])
def test_the_rayleigh_quotient_and_the_residual_are_enclosed(dtype, shape):
    for name, b in ordinary(dtype, shape):
        for x in vectors(b, dtype):
            found = residual.quotient(b, x, frobenius=frobenius(b))
            rho, residual2 = exact_quotient(b, x)
            assert Fraction(found.lower) <= rho <= Fraction(found.upper), name
            assert Fraction(found.residual) ** 2 >= residual2, name


@pytest.mark.parametrize("dtype", DOUBLE)
def test_the_enclosure_of_the_quotient_is_a_few_roundings_wide(dtype):
    for name, b in ordinary(dtype, (9, 9)):
        x = next(vectors(b, dtype))
        found = residual.quotient(b, x, frobenius=frobenius(b))
        # ||B||_F <= 3 ||B x||: errors of kappa(9) <= 42 u in the image and 44 u in each norm, squared
        assert found.upper - found.lower <= 1200 * U * found.upper, name
        assert found.residual <= 2000 * U * found.upper, name


@pytest.mark.parametrize("side", ["lower", "upper", "residual"])
def test_without_its_rounding_the_enclosure_of_the_quotient_fails(monkeypatch, side):
    monkeypatch.setattr(residual, "precision_of", no_rounding)
    failures = 0
    for _, b in ordinary("float32", (9, 9)):
        for x in vectors(b, "float32"):
            found = residual.quotient(b, x, frobenius=frobenius(b))
            rho, residual2 = exact_quotient(b, x)
            failures += {
                "lower": Fraction(found.lower) > rho,
                "upper": Fraction(found.upper) < rho,
                "residual": Fraction(found.residual) ** 2 < residual2,
            }[side]
    assert failures > 5


def with_singular_values(second, dtype):
    """Yield (B, sigma_1 = 1, top right vector) with B exact and sigma_2 = `second`."""
    unitary = np.dtype(dtype).kind == "c"
    for order in (4, 16, 64):
        d = few_bits(order, 1.0, second)
        yield (
            with_spectrum(d, unitary=unitary),
            walsh(order // 2 if unitary else order, unitary=unitary)[0][:, :1],
        )


def nearly(x, error):
    """Return the vector with a relative error; of the same type."""
    rng = np.random.default_rng(5)
    disturbance = rng.standard_normal(x.shape)
    return x + error * np.linalg.norm(x) / np.linalg.norm(disturbance) * disturbance


@pytest.mark.parametrize("dtype", DOUBLE)
@pytest.mark.parametrize("gap", [2.0**-1, 2.0**-4, 2.0**-10, 2.0**-20])
def test_kato_and_temple_are_never_below_the_eigenvalue(dtype, gap):
    second = 1 - gap
    for b, top in with_singular_values(second, dtype):
        for error in (0.0, 1e-12, 1e-9, 1e-6, 1e-4, 1e-2):
            found = residual.quotient(b, nearly(top, error), frobenius=frobenius(b))
            for nu in (
                second**2,
                math.nextafter(second**2, 2),
                second**2 + gap / 8,
                second**2 * (1 + 1e-12),
            ):
                assert found.kato_temple(nu) >= 1.0, (error, nu)


@pytest.mark.parametrize("dtype", DOUBLE)
def test_kato_and_temple_are_sharp_for_a_good_vector(dtype):
    for b, top in with_singular_values(0.5, dtype):
        for error in (0.0, 1e-9, 1e-6, 1e-4):
            found = residual.quotient(b, nearly(top, error), frobenius=frobenius(b))
            # r^2 <= error^2 (lambda_1 - lambda_n)^2 over the gap of 3/4, and rounding of q^(1/2) kappa
            assert found.kato_temple(0.25) <= 1 + 1.5 * error**2 + 1e-11


def test_kato_and_temple_say_nothing_without_a_gap():
    for b, top in with_singular_values(0.5, "float64"):
        found = residual.quotient(b, nearly(top, 1e-6), frobenius=frobenius(b))
        for nu in (found.lower, found.upper, 1.0, 2.0, math.inf, math.nan):
            assert found.kato_temple(nu) == math.inf


def test_without_the_residual_kato_and_temple_fail():
    for b, top in with_singular_values(0.5, "float64"):
        found = residual.quotient(b, nearly(top, 1e-4), frobenius=frobenius(b))
        assert dataclasses.replace(found, residual=0.0).kato_temple(0.25) < 1.0


@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32"])
def test_rescaled_row_sums_are_never_below_the_eigenvalue(dtype):
    rng = np.random.default_rng(2)
    for name, s, top in cases(dtype):
        q = len(s)
        for x in (
            np.linalg.eigh(s)[1][:, -1],
            np.ones(q),
            rng.standard_normal(q),
            np.eye(q)[q // 2],
        ):
            column = np.asarray(x, dtype=s.dtype)[:, None]
            assert residual.weighted_row_sum(s, column) >= top, name


def test_rescaled_row_sums_are_sharp_for_a_positive_matrix():
    rng = np.random.default_rng(3)
    for s in (np.ones((96, 96)), rng.uniform(0.1, 1, (60, 40))):
        gram = s.T @ s
        values, found = np.linalg.eigh(gram)
        bound = residual.weighted_row_sum(gram, found[:, -1:])
        assert bound <= values[-1] * 1.01  # the weights have 1e-3 of their largest added


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("flushing", [False, True])
@pytest.mark.parametrize("units", [1, 2**20])
def test_rescaled_row_sums_count_what_underflows(dtype, flushing, units, monkeypatch):
    """Each product of a least number with a weight below 1/2 is rounded to zero."""

    def matmul(a, b):
        """Multiply; lose what is subnormal if `flushing`, as some processors are told to."""
        found = np.matmul(a, b)
        least = np.finfo(found.dtype).smallest_normal
        return np.where(np.abs(found) < least, 0, found) if flushing else found

    monkeypatch.setattr(linalg, "matmul", matmul)
    q = 5
    entry = units * float(np.finfo(dtype).smallest_subnormal)
    bound = residual.weighted_row_sum(np.full((q, q), entry, dtype), np.full((q, 1), 0.4, dtype))
    assert bound >= q * entry


# --------------------------------------------------------------------------- one matrix, all routes

ROUTES = ["squaring", "eigenvector", "lanczos"]


def single(b, rtol, route, monkeypatch):
    """Bracket one scaled matrix by the route named."""
    square = frobenius(b) ** 2
    if route == "squaring":
        return certificate.bracket_matrix(b, frobenius2=square, rtol=rtol)
    if route == "lanczos":
        monkeypatch.setattr(limits, "EIGENVECTOR_COLUMNS", 0)
    return certificate.matrix_certificate(b, b.conj().T @ b, frobenius2=square, rtol=rtol)


def assert_valid(a, lower, upper, name):
    found = oracles.check_stack(a[None], np.asarray([lower]), np.asarray([upper]))
    assert found.clean, name
    assert found.undecided == [], name


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", DOUBLE)  # the caller's single precision goes elsewhere
def test_every_route_brackets_every_family(monkeypatch, route, dtype):
    for shape in ((1, 1), (2, 2), (7, 3), (12, 12)):
        for name, b in ordinary(dtype, shape, seed=3):
            for rtol in (1e-2, 1e-6, 1e-10):
                found = single(b, rtol, route, monkeypatch)
                assert_valid(b, found.lower, found.upper, (name, shape, rtol))


@pytest.mark.parametrize("route", ROUTES)
def test_a_loose_gap_is_reached_on_every_route(monkeypatch, route):
    for name, b in ordinary("float64", (12, 12), seed=3):
        for rtol in (1e-2, 1e-6):
            # Ritz vectors have single precision, and a cluster has no gap to forgive that
            assert single(b, rtol, route, monkeypatch).is_within(rtol), name


@pytest.mark.parametrize("size", [0.0, 1e-8, 1.0])
def test_a_poor_vector_costs_width_and_not_validity(monkeypatch, size):
    def poor(gram, rtol):
        x = np.linalg.eigh(gram)[1][:, -1:] * size
        return x + np.random.default_rng(0).standard_normal(x.shape)

    monkeypatch.setattr(certificate, "approximate_eigenvector", poor)
    for name, b in ordinary("float64", (12, 8), seed=4):
        gram = b.conj().T @ b
        found = certificate.matrix_certificate(b, gram, frobenius2=frobenius(b) ** 2, rtol=1e-6)
        assert_valid(b, found.lower, found.upper, name)


def test_a_wrong_factorisation_costs_width_and_not_validity(monkeypatch):
    for factor in FACTORS:
        replace_factor(monkeypatch, lying(factor))
        for name in ("gaussian", "orthogonal", "top_pair", "top_cluster", "hadamard"):
            b = FAMILIES[name](np.random.default_rng(5), 24, 24, "float64")
            gram = b.T @ b
            found = certificate.matrix_certificate(b, gram, frobenius2=frobenius(b) ** 2, rtol=1e-6)
            assert_valid(b, found.lower, found.upper, (factor, name))


def test_without_the_defect_a_wrong_factorisation_breaks_the_bracket(monkeypatch):
    b = FAMILIES["gaussian"](np.random.default_rng(5), 120, 120, "float64")
    norm = oracles.sigma(b)
    monkeypatch.setattr(limits, "SQUARING_COLUMNS", 0)  # straight to the certificate
    replace_factor(monkeypatch, lying("of another matrix"))
    # a vector that is far from the top gives the factorisation a level that is too low
    monkeypatch.setattr(
        certificate, "approximate_eigenvector", lambda gram, *_, **__: np.ones((len(gram), 1))
    )
    assert gn.matrix_norm_bracket(b).upper >= norm * (1 - 1e-14)
    monkeypatch.setattr(
        certificate.cholesky, "eigenvalue_bound", mutant(*NO_DEFECT).eigenvalue_bound
    )
    assert gn.matrix_norm_bracket(b).upper < norm * 0.99


# ----------------------------------------------------------------------------- the public function

DEFAULT = {"float32": 1e-4, "float64": 1e-6, "complex128": 1e-6}
SIZES = [(1, 1), (2, 3), (3, 3), (4, 9), (16, 16), (33, 20), (20, 33), (64, 64), (64, 3)]


def normal_range(a, upper):
    info = np.finfo(a.dtype)
    return 2.0**20 * float(info.smallest_normal) < upper < math.inf


@pytest.mark.parametrize("dtype", DEFAULT)
@pytest.mark.parametrize("rtol", [1e-2, 1e-6, 1e-10])
def test_every_family_alone_is_bracketed_up_to_order_64(dtype, rtol):
    for seed, shape in enumerate(SIZES):
        for name in sorted(FAMILIES):
            a = FAMILIES[name](np.random.default_rng(seed), *shape, dtype)
            with np.errstate(all="ignore"):
                found = gn.matrix_norm_bracket(a, rtol=rtol)
            assert_valid(a, found.lower, found.upper, (name, shape))
            reachable = dtype != "float32" or rtol >= 1e-6  # results are rounded to float32
            if reachable and normal_range(a, found.upper):
                assert found.converged, (name, shape)


def assert_near(a, norm, slack, name, rtol=None):
    found = gn.matrix_norm_bracket(a, rtol=rtol)
    assert found.lower <= norm * (1 + slack), name
    assert found.upper >= norm * (1 - slack), name
    gap = float(found.upper / found.lower - 1) if norm else 0.0
    # a flat spectrum cannot be had better: the first product errs by kappa ||A||_F^2, to both sides
    least = (3.2 if np.iscomplexobj(a) else 1) * (max(a.shape) + 4) * min(a.shape) * U
    assert found.converged or rtol < gap < least, (name, gap)


def svd_norm(a):
    """Return the norm by LAPACK and the relative error we grant it."""
    a = a.astype(np.complex128 if np.iscomplexobj(a) else np.float64)
    return np.linalg.svd(a, compute_uv=False)[0], 8 * max(a.shape) * 2 * U


LARGER = [
    "gaussian",
    "orthogonal",
    "top_pair",
    "top_cluster",
    "two_levels",
    "symmetric",
    "nilpotent",
]


@pytest.mark.parametrize("dtype", DEFAULT)
@pytest.mark.parametrize("shape", [(100, 100), (97, 140), (300, 110), (200, 200)])
def test_larger_matrices_alone_reach_their_gap(dtype, shape):
    for name in LARGER:
        a = FAMILIES[name](np.random.default_rng(6), *shape, dtype)
        for rtol in (1e-2, None, *([1e-10] if dtype != "float32" else [])):
            assert_near(a, *svd_norm(a), (name, rtol), rtol)


def spectra(n):
    """Yield (name, matrix, its norm or None) for the spectra that decide about a method."""
    rng = np.random.default_rng(7)
    yield "gaussian", rng.standard_normal((n, n)), None
    yield "orthogonal", np.linalg.qr(rng.standard_normal((n, n)))[0], None
    rest = rng.uniform(0, 0.9, n)
    for k in range(2, 13, 2):
        rest[:2] = (1.0, 1 - 10.0**-k)[:n]
        yield f"pair 1e-{k}", from_spectrum(rng, n, n, "float64", rest), None
    graded = 10.0 ** -np.linspace(0, 12, n)
    yield "graded", from_spectrum(rng, n, n, "float64", graded), None
    yield "graded columns", rng.standard_normal((n, n)) * graded, None
    u = rng.integers(-9, 10, n) + 0.5
    yield "rank one", np.outer(u, u[::-1]), float(u @ u)
    yield "hilbert", scipy.linalg.hilbert(n), None
    yield "dft", scipy.linalg.dft(n), math.sqrt(n)
    if n & (n - 1) == 0:
        yield "hadamard", scipy.linalg.hadamard(n).astype("float64"), math.sqrt(n)
    kahan = np.triu(np.full((n, n), -math.cos(1.2)), 1) + np.eye(n)
    yield "kahan", math.sin(1.2) ** np.arange(n)[:, None] * kahan, None
    yield "defective", np.eye(n) + np.eye(n, k=1), None
    yield "signs", rng.choice([-1.0, 1.0], (n, n)), None
    yield "non-negative", rng.uniform(0, 1, (n, n)), None
    yield "nilpotent", np.triu(rng.standard_normal((n, n)), 1), None
    yield "shift", np.eye(n, k=1), 1.0 if n > 1 else 0.0


def assert_spectra(n, rtol=None):
    for name, a, norm in spectra(n):
        value, slack = (norm, 2e-15 * n) if norm is not None else svd_norm(a)
        assert_near(a, value, slack, (name, n), rtol)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 50, 96, 97, 128, 200])
def test_the_default_gap_is_reached_on_every_spectrum(n):
    assert_spectra(n)


@pytest.mark.parametrize("n", [1, 3, 64, 128])
def test_a_gap_of_1e_10_is_reached_on_every_spectrum(n):
    assert_spectra(n, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("n", [512, 1000])
def test_both_gaps_are_reached_on_every_spectrum_of_large_order(n):
    assert_spectra(n)
    assert_spectra(n, 1e-10)


@pytest.mark.parametrize("shape", [(100_000, 8), (8, 100_000), (100_000, 1), (1, 100_000)])
def test_very_tall_and_very_wide_matrices_reach_the_default_gap(shape):
    rng = np.random.default_rng(8)
    columns = rng.integers(-8, 9, (max(shape), min(shape)))  # their Gram matrix is exact
    norm = math.sqrt(np.linalg.eigvalsh(columns.T @ columns)[-1])
    a = columns.astype("float64")
    assert_near(a if shape[0] >= shape[1] else a.T, norm, 1e-13, shape)


@pytest.mark.slow
def test_a_million_rows_reach_the_default_gap():
    columns = np.random.default_rng(8).integers(-8, 9, (1_000_000, 8))
    norm = math.sqrt(np.linalg.eigvalsh(columns.T @ columns)[-1])
    assert_near(columns.astype("float64"), norm, 1e-13, "tall")


@pytest.mark.parametrize("n", [60, 140, 260])
@pytest.mark.parametrize("excess", [2.0**-1, 2.0**-7, 2.0**-17])
def test_a_top_vector_in_a_tiny_block_is_found(n, excess):
    """A Krylov space that starts in the large block, with the largest columns, never meets the small one."""
    order = 1 << (n.bit_length() - 1)
    cold = with_spectrum(1 - few_bits(order, 0.0, 0.0) / 8)
    hot = (1 + excess) * np.ones((4, 4)) / 4
    a = scipy.linalg.block_diag(cold, np.eye(n - 4 - order), hot)
    rng = np.random.default_rng(9)
    a = a[rng.permutation(n)][:, rng.permutation(n)]
    for rtol in (1e-2, 1e-6, 1e-10):
        found = gn.matrix_norm_bracket(a, rtol=rtol)
        assert found.lower <= 1 + excess <= found.upper, (n, excess)
        assert found.converged, (n, excess)
        if n > limits.SQUARING_COLUMNS and excess > 1e-3:  # well separated
            assert found.n_products <= 2, "the vector missed it, and the Gram iteration had to help"


@pytest.mark.parametrize("dtype", DEFAULT)
def test_scales_within_the_range_of_squares_change_no_bit(dtype):
    for name in ("gaussian", "orthogonal", "top_pair", "hilbert", "nilpotent"):
        for n in (3, 40, 120):
            a = FAMILIES[name](np.random.default_rng(10), n, n, dtype)
            a = oracles.ldexp_long(a, -oracles.exponents(a)).astype(dtype)
            base = gn.matrix_norm_bracket(a)
            for k in (-60, -7, 1, 60):
                found = gn.matrix_norm_bracket(a * a.dtype.type(2.0**k))
                assert found.lower == base.lower * 2.0**k, (name, n, k)
                assert found.upper == base.upper * 2.0**k, (name, n, k)


@pytest.mark.parametrize("dtype", DOUBLE)
def test_scales_outside_the_range_of_squares_agree_among_themselves(dtype):
    for name in ("gaussian", "orthogonal", "top_pair", "hilbert", "nilpotent"):
        for n in (3, 40, 120):
            a = FAMILIES[name](np.random.default_rng(10), n, n, dtype)
            a = oracles.ldexp_long(a, -oracles.exponents(a)).astype(dtype)
            a = np.where(np.abs(a) < 2.0**-60, 0, a)  # so that no scale makes entries subnormal
            norm, slack = svd_norm(a)
            found = {}
            for k in (-900, -300, 300, 900):
                found[k] = gn.matrix_norm_bracket(a * 2.0**k)
                lower, upper = (np.ldexp(v, -k) for v in (found[k].lower, found[k].upper))
                assert lower <= norm * (1 + slack), (name, n, k)
                assert upper >= norm * (1 - slack), (name, n, k)
                assert found[k].converged, (name, n, k)
            for k in (-300, 300, 900):
                assert np.ldexp(found[k].upper, -k) == np.ldexp(found[-900].upper, 900), name
                assert np.ldexp(found[k].lower, -k) == np.ldexp(found[-900].lower, 900), name


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("scale", [1.0, 2.0**-10])
def test_the_range_of_the_stored_type_is_no_source_of_error(dtype, scale):
    """Entries near the least normal number of a narrow type are ordinary numbers in a wider one."""
    a = (np.random.default_rng(11).standard_normal((40, 30)) * scale).astype(dtype)
    found = gn.matrix_norm_bracket(a)
    assert found.lower > 0
    assert_valid(a.astype("float64"), float(found.lower), float(found.upper), dtype)
    eps = float(np.finfo(dtype).eps)
    assert float(found.upper) / float(found.lower) - 1 <= 1e-4 + 2 * eps


@pytest.mark.parametrize("rtol", [0.9, 10.0, 1e10, 1e200, 1e308])
def test_a_gap_of_any_size_may_be_asked_for(rtol):
    rng = np.random.default_rng(12)
    for a in (np.eye(5), rng.standard_normal((4, 9)), rng.standard_normal((120, 110))):
        found = gn.matrix_norm_bracket(a, rtol=rtol)
        assert_valid(a, found.lower, found.upper, rtol)
        assert found.converged


def test_the_same_matrix_gives_the_same_bits():
    for n in (5, 60, 150):
        a = np.random.default_rng(13).standard_normal((n, n))
        first, second = gn.matrix_norm_bracket(a), gn.matrix_norm_bracket(a.copy())
        assert (first.lower, first.upper) == (second.lower, second.upper)


def test_the_matrix_is_left_as_it_was():
    for n in (5, 60, 150):
        a = np.random.default_rng(14).standard_normal((n, n))
        before = a.copy()
        gn.matrix_norm_bracket(a, vectors=True)
        assert np.array_equal(a, before)


def quotient_of_image(seed):
    """Return the bound for a rounded image of a vector, and the quotient in extended precision."""
    rng = np.random.default_rng(seed)
    kernel, x = rng.uniform(size=(4, 3, 5)), rng.uniform(size=(3, 12))
    kernel, x = kernel.astype(np.float32), x.astype(np.float32)
    read = np.lib.stride_tricks.sliding_window_view(x, 5, axis=1)
    parts = (kernel[:, :, None, :] * read).transpose(0, 2, 1, 3).reshape(4, 8, 15)
    y = np.cumsum(parts, axis=-1, dtype=np.float32)[:, :, -1]
    exact = np.einsum("pqk,qnk->pn", *(v.astype(np.longdouble) for v in (kernel, read)))
    size = np.sqrt(np.sum(exact**2) / np.sum(x.astype(np.longdouble) ** 2))
    return sums.image_quotient(kernel, x, y, copies=1), size


def test_the_quotient_of_a_rounded_image_is_not_above_that_of_the_image():
    for seed in range(50):
        bound, exact = quotient_of_image(seed)
        assert (1 - 1e-4) * exact < bound <= exact


def test_without_its_rounding_that_quotient_is_above(monkeypatch):
    monkeypatch.setattr(sums, "precision_of", no_rounding)
    found = [quotient_of_image(seed) for seed in range(50)]
    assert sum(bound > exact for bound, exact in found) > 5
