"""Loose tolerances: one large matrix in single precision, and what each of its error terms is for."""

import inspect
import itertools
import math
import sys
import types
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
import scipy.linalg

import gramnorm as gn
from gramnorm._arrays import limits, linalg
from gramnorm._matrix import certificate, definite, gradients, margin, moments, residual, single
from gramnorm._rigour import model
from gramnorm._rigour.model import Precision
from tests.harness import oracles
from tests.harness.families import FAMILIES

pytestmark = pytest.mark.no_backend

LOOSE = [1e-3, 1e-2, 0.05, 0.1, 0.5]
U = 2.0**-24


def gaussian(m, n, dtype="float64", seed=0):
    return FAMILIES["gaussian"](np.random.default_rng(seed), m, n, dtype)


def square_of(b):
    return float(np.linalg.norm(b)) ** 2 * (1 + 1e-12)


def mutant(*replacements, module=single):
    """Return a module with pieces of its source replaced."""
    source = inspect.getsource(module)
    for old, new in replacements:
        assert source.count(old) == 1, f"the mutation has lost its target: {old}"
        source = source.replace(old, new)
    other = types.ModuleType("mutant")
    with mock.patch.dict(sys.modules, {"mutant": other}):  # where dataclasses look
        exec(compile(source, "mutant", "exec"), vars(other))
    return other


NO_SLIP = ("up(prec.unit * frobenius * scale + 2 * prec.tiny * math.sqrt(c.size))", "0.0")
NO_ERROR = ("        loss = error +", "        error = 0.0\n        loss = error +")


# ------------------------------------------------------------------------------------ the brackets


@pytest.mark.parametrize("rtol", LOOSE)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_every_family_is_bracketed_in_single_precision(monkeypatch, rtol, dtype):
    monkeypatch.setattr(limits, "SQUARING_COLUMNS", 0)
    for seed, shape in enumerate(((1, 1), (3, 2), (9, 9), (20, 33), (70, 65))):
        for name in sorted(FAMILIES):
            a = FAMILIES[name](np.random.default_rng(seed), *shape, dtype)
            with np.errstate(all="ignore"):
                found = gn.matrix_norm_bracket(a, rtol=rtol)
            if np.all(np.isfinite(a)):
                ends = np.asarray([found.lower]), np.asarray([found.upper])
                assert oracles.check_stack(a[None], *ends).clean, (name, shape)


@pytest.mark.parametrize("level", [-1e-6, 0.0, 1e-6, 1e-4, 1e-2])
def test_levels_at_the_edge_give_no_false_bound(monkeypatch, level):
    monkeypatch.setattr(limits, "SQUARING_COLUMNS", 0)
    monkeypatch.setattr(limits, "SINGLE_LEVEL", level)
    monkeypatch.setattr(limits, "SINGLE_LOSS", 10.0)  # tried even where it is in vain
    for seed, name in itertools.product(range(3), ("gaussian", "orthogonal", "signs", "top_pair")):
        a = FAMILIES[name](np.random.default_rng(seed), 40, 30, "float64")
        found = single.bracket(a, frobenius2=square_of(a), rtol=1e-2)
        ends = np.asarray([found.lower]), np.asarray([found.upper])
        assert oracles.check_stack(a[None], *ends).clean, (name, seed)


@pytest.mark.parametrize("shape", [(300, 300), (400, 250), (220, 500)])
@pytest.mark.parametrize("rtol", LOOSE[1:])
def test_noise_is_bracketed_without_a_product_in_double_precision(monkeypatch, shape, rtol):
    def refused(*_):
        pytest.fail("a product in double precision")

    monkeypatch.setattr(certificate.linalg, "gram_matrix", refused)
    a = gaussian(*shape)
    found = gn.matrix_norm_bracket(a, rtol=rtol)
    norm = np.linalg.norm(a, 2)
    assert found.converged
    assert found.lower <= norm * (1 + 1e-12)
    assert found.upper >= norm * (1 - 1e-12)
    assert found.n_products == 2


def test_a_value_that_outweighs_the_others_needs_no_product(monkeypatch):
    monkeypatch.setattr(single, "_negative_gram", lambda *_: pytest.fail("a product"))
    for dtype in ("float32", "complex128"):
        a = gaussian(300, 260, dtype) / np.arange(1, 261, dtype="float32") ** 1.5
        found = gn.matrix_norm_bracket(a, rtol=1e-3)
        assert found.converged
        assert found.n_products == 0


def test_tolerances_below_its_reach_are_left_to_double_precision(monkeypatch):
    a = gaussian(500, 500)
    assert single.bracket(a, frobenius2=square_of(a), rtol=1e-3).upper == math.inf
    assert gn.matrix_norm_bracket(a, rtol=1e-3).converged
    monkeypatch.setattr(single, "bracket", lambda *_, **__: pytest.fail("single precision"))
    assert gn.matrix_norm_bracket(a[:, :200], rtol=1e-4).converged


def test_a_scale_changes_no_bit():
    a = gaussian(240, 240)
    found = single.bracket(a, frobenius2=square_of(a), rtol=0.1)
    for k in (-60, 3, 60):
        scaled = a * 2.0**k
        other = single.bracket(scaled, frobenius2=square_of(a) * 4.0**k, rtol=0.1)
        assert (other.lower, other.upper) == (found.lower * 2.0**k, found.upper * 2.0**k)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("inner", [300, 64])
def test_a_gram_matrix_and_its_products_with_vectors(monkeypatch, dtype, inner):
    monkeypatch.setattr(limits, "SINGLE_COLUMNS", 64)
    c = gaussian(300, 220, dtype)
    exact = c.conj().T.astype("complex128") @ c
    gram, v = single._negative_gram(c, inner), gaussian(1, 220, dtype)[0]
    below = np.tril_indices(220)
    assert np.abs(gram[below] + exact[below]).max() < 1e-3
    assert np.linalg.norm(single._gram_image(gram, v) - exact @ v) < 1e-5 * np.linalg.norm(
        exact @ v
    )
    before = gram.copy()
    bound = single._eigenvalue_bound(gram, 1.01 * np.linalg.norm(exact, 2), inner)
    assert np.linalg.norm(exact, 2) < bound < 1.02 * np.linalg.norm(exact, 2)
    assert np.array_equal(gram, before)


def test_a_vector_that_settles_below_the_top_is_given_up(monkeypatch):
    """The first start has nothing in the direction of the top; the factorisation tells."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((240, 240)))[0] for _ in range(2))
    start = rng.standard_normal(240).astype(np.float32)
    generic = single._Search._generic

    def blind(self, seed):
        first = start - v[:, 0] * (v[:, 0] @ start)
        return first.astype(np.float32) if seed == 0 else generic(self, seed)

    monkeypatch.setattr(single._Search, "_generic", blind)
    sizes = np.r_[1.1, np.linspace(1, 0.5, 239)]
    b = ((u * sizes) @ v.T).astype(np.float32)
    found = single.bracket(b, frobenius2=square_of(b), rtol=0.02)
    assert found.lower <= 1.1 * (1 + 1e-6) <= found.upper
    assert found.is_within(0.02)


# -------------------------------------------------------------------- what each term of it is for


def with_sharp_eigenvalues(module, monkeypatch):
    """Let the factorisation return the top eigenvalue of S as it is stored, and nothing more."""

    def top(gram, *_):
        s = -np.tril(gram).astype(np.result_type(gram.dtype, np.float64))
        return float(np.linalg.eigvalsh(s)[-1]) * (1 - 1e-12)

    monkeypatch.setattr(module, "_eigenvalue_bound", top)


def missed(module, b):
    """Say whether the upper bound of the sharpened module is below the norm."""
    return module.bracket(b, frobenius2=square_of(b), rtol=0.2).upper < oracles.sigma(b) * (
        1 - 1e-11
    )


def test_rounding_of_the_entries_counts(monkeypatch):
    # all entries round down to a power of two, and S is exact
    b = scipy.linalg.hadamard(32) * (1 + 0.9 * U)
    for module, is_missed in ((single, False), (mutant(NO_SLIP), True)):
        with_sharp_eigenvalues(module, monkeypatch)
        monkeypatch.setattr(module, "_longest_pieces", lambda c, *_: (len(c), 0.0))
        assert missed(module, b) == is_missed


@pytest.mark.parametrize("scale", [1.0, 2.0**30, 2.0**-40])
def test_single_precision_of_an_ordinary_size_is_not_copied(scale):
    b = gaussian(5, 4, "float32") * np.float32(scale)
    c, factor, slip = single._narrowed(b, square_of(b))
    assert np.array_equal(c.astype(np.float64), b.astype(np.float64) * factor)
    assert (c is b) == (slip == 0) == (scale == 1)
    assert 2.0**-20 < np.linalg.norm(c) ** 2 < 2.0**40


def test_underflow_of_the_entries_counts():
    c = np.float32(2.0**-149)
    assert 2 * 2.0**-126 * math.sqrt(1) >= abs(float(c) - 2.0**-149 * 1.4)


@pytest.mark.parametrize("pieces", [(), (7,)])
def test_rounding_of_the_products_counts(monkeypatch, pieces):
    monkeypatch.setattr(limits, "SINGLE_PIECES", pieces)
    # entries in single precision do not slip
    whole, bare = mutant(NO_SLIP), mutant(NO_SLIP, NO_ERROR)
    for module in (whole, bare):
        with_sharp_eigenvalues(module, monkeypatch)
    matrices = [gaussian(60, 40, "float32", seed).astype("float64") for seed in range(20)]
    assert not any(missed(whole, b) for b in matrices)
    assert any(missed(bare, b) for b in matrices)


def test_sums_of_pieces_count():
    # two pieces: the product of the second is lost beside that of the first
    c = np.asarray([[1.0], [0.999 * 2.0**-12]], dtype=np.float32)
    column = single._negative_gram(c, 1)
    exact, size2 = 1.0 + float(c[1, 0]) ** 2, float(np.sum(c.astype(float) ** 2))
    assert abs(-float(column[0, 0]) - exact) > U / 2
    inner, error = single._longest_pieces(np.repeat(c, 40, axis=0), 40 * size2, 40.0, 1e3)
    assert inner == 80
    assert error >= 80 * U * size2


def test_rounding_of_the_diagonal_counts(monkeypatch):
    def sharp(columns, **_):
        (a,) = columns
        least = np.linalg.eigvalsh(a.astype(np.float64))[:, 0]
        return np.maximum(-least, 0.0), np.linalg.norm(np.abs(a.astype(float)), 2, axis=(1, 2))

    bare = mutant(("(level + lost + rounded)[0]", "(level + lost)[0]"))
    monkeypatch.setattr(definite, "shortfalls", sharp)
    rng, below = np.random.default_rng(0), [0, 0]
    for _ in range(300):
        a, c = rng.uniform(0.1, 0.4, 2).astype(np.float32).astype(float)
        b = float(np.float32(math.sqrt((1 - a) * (1 - c))))
        s = np.asarray([[a, b], [b, c]])
        top = np.linalg.eigvalsh(s)[-1]
        for k, module in enumerate((single, bare)):
            bound = module._eigenvalue_bound(-s.astype(np.float32), 1.0, 64)
            below[k] += bound < top * (1 - 1e-12)
    assert below[0] == 0
    assert below[1] > 10


def exact_size(gram):
    """Return ||S||_F of the S that is stored, but for the last digits."""
    total, width = 0.0, limits.SINGLE_COLUMNS
    for start in range(0, len(gram), width):
        below = gram[start:, start : start + width].astype(np.float64)
        total += np.sum(below[:width] ** 2) + 2 * np.sum(below[width:] ** 2)
    return math.sqrt(total)


def test_the_size_of_a_gram_matrix_is_not_above_its_bound():
    whole = "sums.enclosure(np.asarray(total), q, 2 * q, precision_of(gram.dtype))[1]"
    bare, below = mutant((whole, "total")), 0
    for seed in range(40):
        gram = single._negative_gram(gaussian(30, 300, "float32", seed), 30)
        assert single._size_above(gram) >= exact_size(gram) * (1 - 1e-14)
        below += bare._size_above(gram) < exact_size(gram) * (1 - 1e-14)
    assert below > 0


def second_eigenvalue_bound(module, b, monkeypatch):
    """Return the least that the module takes for a bound on the second eigenvalue of C^H C."""
    seen = []

    def nothing(_, second):
        seen.append(second)
        return math.inf

    def sharp(c, x, **_):
        c, x = c.astype(np.float64), x.astype(np.float64)
        rho = float(np.sum((c @ x) ** 2) / np.sum(x**2)) * (1 - 1e-14)
        return residual.Quotient(rho, rho, 0.0)

    with monkeypatch.context() as patch:
        patch.setattr(residual.Quotient, "kato_temple", nothing)
        patch.setattr(residual, "single_quotient", sharp)
        patch.setattr(module, "_size_above", exact_size)
        module.bracket(b, frobenius2=square_of(b), rtol=0.02)
    assert len(seen) >= 3
    return min(seen)


def test_the_second_eigenvalue_is_not_above_its_bound(monkeypatch):
    bare, below = mutant(NO_SLIP, NO_ERROR), [0, 0]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        u, v = (np.linalg.qr(rng.standard_normal((40, 2)))[0] for _ in range(2))
        b = (u * [1.0, 0.95]) @ v.T
        c = single._narrowed(b, square_of(b))[0].astype(np.float64)
        second = np.linalg.svd(c)[1][1] ** 2
        for k, module in enumerate((single, bare)):
            bound = second_eigenvalue_bound(module, b, monkeypatch)
            below[k] += bound < second * (1 - 1e-12)
    assert below[0] == 0
    assert below[1] > 0


# ----------------------------------------------------- the quotient of a vector, term by term

IMAGE_TERMS = [
    ("forward=loss[0]", "forward=0.0"),
    ("loss[1] * (1 + prec.unit)", "0.0"),
    ("(1 + prec.unit) + prec.unit,", "(1 + prec.unit),"),
]


def quotient_sides(module, c, x):
    """Say which sides of the enclosure of an exactly known quotient and residual are wrong."""
    found = module.single_quotient(c, x, frobenius=oracles.sigma(c) * math.sqrt(c.shape[1]))
    rho, residual2 = exact_quotient(c, x)
    return (
        found.lower > rho,
        found.upper < rho,
        found.residual**2 < residual2 * (1 - Fraction(1, 10**6)),
    )


def exact_quotient(c, x):
    """Return rho and ||C^T C x - rho x||^2 / ||x||^2 of real arrays as fractions."""
    c, x = (np.vectorize(Fraction, otypes=[object])(a.astype(float)) for a in (c, x))
    h = c.T @ (c @ x)
    xx, xh = x @ x, x @ h
    return xh / xx, (h @ h - xh * xh / xx) / xx


def single_vectors(c):
    top = np.linalg.svd(c.astype(float))[2][0]
    rng = np.random.default_rng(1)
    for x in (top, top + 1e-3 * rng.standard_normal(len(top)), rng.standard_normal(len(top))):
        yield x.astype(np.float32)


@pytest.mark.parametrize("piece", [1, 3, 128])
def test_the_quotient_in_single_precision_is_enclosed(monkeypatch, piece):
    monkeypatch.setattr(limits, "QUOTIENT_PIECE", piece)
    bare, below = mutant(IMAGE_TERMS[0], module=residual), 0
    for seed in range(8):
        c = gaussian(9, 7, "float32", seed)
        for x in single_vectors(c):
            assert not any(quotient_sides(residual, c, x))
            below += any(quotient_sides(bare, c, x)[:2])
    assert below > 0


def test_rounding_of_the_second_image_counts():
    # the first image of ones is exact, and squares of neighbouring numbers are rounded
    bare_terms = IMAGE_TERMS[0], ("loss[1] * (1 + prec.unit) + prec.unit", "0.0")
    whole = mutant(IMAGE_TERMS[0], IMAGE_TERMS[2], module=residual)
    bare = mutant(*bare_terms, module=residual)
    below = [0, 0]
    for k in range(200):
        c = np.diag(np.asarray([1 + k * 2.0**-12, 1 + k * 2.0**-12 + 2.0**-23], np.float32))
        for i, module in enumerate((whole, bare)):
            below[i] += quotient_sides(module, c, np.ones(2, np.float32))[2]
    assert below[0] == 0
    assert below[1] > 0


def test_rounding_of_the_first_image_to_single_precision_counts(monkeypatch):
    # two pieces have a sum of many digits, and what follows are products with powers of two
    monkeypatch.setattr(limits, "QUOTIENT_PIECE", 1)
    terms = (IMAGE_TERMS[0], ("loss[1] * (1 + prec.unit)", "0.0"))
    whole = mutant(*terms, module=residual)
    bare = mutant(IMAGE_TERMS[0], ("loss[1] * (1 + prec.unit) + prec.unit", "0.0"), module=residual)
    below = [0, 0]
    for k in range(1, 200):
        c = np.asarray([[1.0, 2.0**-12], [2.0**-12, 1.0]], np.float32)
        x = np.asarray([1 + k * 2.0**-23, 1 + (3 * k + 1) * 2.0**-23], np.float32)
        for i, module in enumerate((whole, bare)):
            below[i] += quotient_sides(module, c, x)[2]
    assert below[0] == 0
    assert below[1] > 0


# ------------------------------------------------------------------------------- its gradient


@pytest.mark.parametrize("shape", [(300, 220), (220, 300)])
@pytest.mark.parametrize("dtype", ["float32", "complex64", "float64"])
def test_the_gradient_is_that_of_the_vector_that_proved_the_bound(monkeypatch, shape, dtype):
    a = gaussian(*shape, dtype)
    monkeypatch.setattr(gradients.linalg, "gram_matrix", lambda *_: pytest.fail("a product"))
    for rtol in (1e-2, 0.1):
        value, gradient = gn.matrix_norm_value_and_grad(a, rtol=rtol)
        assert gradient.dtype == a.dtype
        # Euler, and a multiple of u v^H with Re u^H A v within the tolerance
        assert float(np.sum((np.conj(gradient) * a).real)) == pytest.approx(float(value), rel=1e-5)
        sizes = np.linalg.svd(gradient)[1]
        assert sizes[1] <= 1e-5
        assert sizes[0] <= (1 + rtol) * (1 + 1e-5)


def test_a_stack_of_one_has_the_gradient_of_its_matrix():
    a = gaussian(230, 210, "float32")
    one, many = (gn.matrix_norm_value_and_grad(x, rtol=0.1)[1] for x in (a, a[None]))
    assert np.array_equal(one, many[0])


@pytest.mark.extra
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_automatic_differentiation_finds_a_gradient_of_a_pair_that_attains_the_bound(library):
    a = gaussian(230, 210, "float32")
    module = pytest.importorskip(library)
    if library == "torch":
        x = module.tensor(a, requires_grad=True)
        values = (gn.matrix_norm_bound(x, rtol=0.1), gn.matrix_norm_bracket(x, rtol=0.1).upper)
        pairs = [(float(v.detach()), module.autograd.grad(v, x)[0].numpy()) for v in values]
    else:
        function = module.value_and_grad(lambda x: gn.matrix_norm_bound(x, rtol=0.1))
        pairs = [tuple(map(np.asarray, function(module.numpy.asarray(a))))]
    for value, found in pairs:
        u, s, vt = np.linalg.svd(found.astype(np.float64))
        image = a @ vt[0]
        assert s[1] <= 1e-6 * s[0]
        assert abs(u[:, 0] @ image) >= (1 - 1e-6) * np.linalg.norm(image)
        assert np.linalg.norm(image) >= value / 1.1
        np.testing.assert_allclose(np.vdot(found, a), value, rtol=1e-5)


# ------------------------------------------------- what a checked factorisation hides, term by term

COARSE = Precision(unit=2.0**-6, tiny=2.0**-40, complex=False)


def chains(inner, count):
    """Yield (D, D', size): scalars less `count` products, every rounding as large as it may be."""
    kappa, u = COARSE.kappa(inner), COARSE.unit
    rng = np.random.default_rng(0)
    for signs in itertools.product((-1, 1), repeat=2 * count):
        products = rng.uniform(0.1, 1, count)
        for rest in (0.0, 1e-3, -1e-3, 1.0, -1.0):
            x = rest
            for p, sign, other in zip(products, signs[:count], signs[count:], strict=True):
                x = x / (1 + sign * u) + p * (1 + other * kappa)
            yield abs(x - products.sum()), abs(rest), products.sum()


def excess(module, inner, count):
    """Return by how much D exceeds its bound at most."""
    return max(
        exact - module.shortfall(rest, size, products=count, inner=inner, order=1, precision=COARSE)
        for exact, rest, size in chains(inner, count)
    )


MARGIN_TERMS = [
    ("measured * (1 + chain)", "measured", (1, 3)),
    ("precision.kappa(inner) * (1 + chain) + chain", "chain", (3, 1)),
    ("precision.kappa(inner) * (1 + chain) + chain", "precision.kappa(inner)", (1, 3)),
]


@pytest.mark.parametrize(("old", "new", "lengths"), MARGIN_TERMS)
def test_every_term_of_the_margin_is_needed(old, new, lengths):
    for inner, count in ((1, 1), (1, 3), (3, 1), (2, 3)):
        assert excess(margin, inner, count) <= 1e-15
    assert excess(mutant((old, new), module=margin), *lengths) > 1e-4


def test_underflow_in_products_is_part_of_the_margin():
    options = {"products": 2, "inner": 3, "order": 5, "precision": COARSE}
    assert margin.shortfall(0.0, 0.0, **options) >= 2 * 3 * 3 * COARSE.tiny * 5


# ---------------------------------------------------------------------- the bound by two traces


def two_traces(seed):
    """Return eigenvalues with few bits, and their sum and sum of squares, exactly."""
    rng = np.random.default_rng(seed)
    count = 2 if seed % 2 else int(rng.integers(1, 5))
    values = rng.integers(0, 2**12, count) * rng.choice([1, 0.01, 0.5], count) // 1
    values[0] = 2**12
    return float(values.max()), float(values.sum()), float(np.sum(values**2))


def test_two_traces_bound_an_eigenvalue_from_below():
    for seed in range(500):
        top, trace, square = two_traces(seed)
        one = moments.one_lower_bound(trace, square)
        (other,) = moments.lower_bound(np.asarray([trace]), np.asarray([square]))
        assert one == other <= top
        assert one >= square / trace * (1 - 1e-14)
        if seed % 2:  # exact for two eigenvalues
            assert one >= top * (1 - 1e-6)


def test_without_nudges_two_traces_are_above(monkeypatch):
    monkeypatch.setattr(model, "_TWO_UNITS", 0.0)
    scale = math.pi  # no longer exact
    assert any(
        moments.one_lower_bound(trace * scale, square * scale**2) > top * scale
        for top, trace, square in map(two_traces, range(500))
    )


def test_nothing_is_concluded_from_traces_of_zero():
    found = moments.lower_bound(np.zeros(2), np.zeros(2))
    assert np.array_equal(found, np.zeros(2))


# -------------------------------------------------------------------------------- other short cuts


def test_one_value_is_rounded_outward_as_many_are():
    rng = np.random.default_rng(0)
    largest = float(np.finfo(np.float32).max)
    values = [*np.exp(rng.uniform(-100, 88, 300)), 2.0**-126, 2.0**-140, 1.0, largest]
    values += [largest * (1 + 2.0**-30), 2.0**-126 * (1 + 2.0**-40), 1 + 2.0**-50, np.nan, np.inf]
    for value in values:
        pair = np.asarray([value, value])
        many = model.round_outward(pair, pair, dtype=np.float32)
        one = model.round_outward(pair[:1], pair[:1], dtype=np.float32)
        assert np.array_equal(np.stack(one)[:, 0], np.stack(many)[:, 0], equal_nan=True), value


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 5), (64, 64), (90, 70)])
def test_products_of_few_columns_are_those_of_the_definition(shape, dtype):
    a = gaussian(*shape, dtype)
    stack = np.stack([a, 2 * a])
    wide = a.astype(np.complex128)
    room = 4 * max(shape) * np.finfo(dtype).eps * np.linalg.norm(wide) ** 2
    assert np.abs(linalg.gram_matrix(a) - wide.conj().T @ wide).max() <= room
    assert np.abs(linalg.gram_matrix(stack)[1] - 4 * wide.conj().T @ wide).max() <= 4 * room
