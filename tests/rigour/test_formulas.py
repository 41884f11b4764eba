"""Formulas of scalars, rounded, beside the same formulas in balls without a nudge.

Bounds climb back through a few scalars on the host. Each such formula must be rounded to its side
of what it is in exact arithmetic, for the numbers it gets. So it is evaluated twice: with floats as
it is, and with balls of 400 bits, where `up` and `down` do nothing.
"""

import contextlib
import itertools
import math
import sys
from types import SimpleNamespace
from unittest import mock

import flint
import numpy as np
import pytest

from gramnorm._conv import circle
from gramnorm._matrix import certificate, gram, margin, moments, residual
from gramnorm._rigour import model, scaling, sums

pytestmark = pytest.mark.no_backend

DOUBLE = model.Precision(2.0**-53, 2.0**-1022, complex=False)
SINGLE = model.Precision(2.0**-24, 2.0**-126, complex=False)


class _Exact(SimpleNamespace):
    """The functions of `math` that formulas use, for balls."""

    inf, nan, pi = math.inf, math.nan, math.pi

    @staticmethod
    def sqrt(x):
        return x.sqrt() if isinstance(x, flint.arb) else flint.arb(x).sqrt()

    @staticmethod
    def isfinite(x):
        return x.is_finite() if isinstance(x, flint.arb) else math.isfinite(x)


class _ExactArrays:
    """NumPy, with roots of arrays of balls and numbers."""

    sqrt = staticmethod(np.frompyfunc(_Exact.sqrt, 1, 1))

    def __getattr__(self, name):
        return getattr(np, name)


@contextlib.contextmanager
def in_balls():
    """Let the package compute with balls of 400 bits, and nudge nothing."""
    whole = {"up": model.up, "down": model.down}
    with contextlib.ExitStack() as stack:
        stack.enter_context(flint.ctx.workprec(400))
        for name, module in list(sys.modules.items()):
            if not name.startswith("gramnorm."):
                continue
            for nudge, function in whole.items():
                if getattr(module, nudge, None) is function:
                    stack.enter_context(mock.patch.object(module, nudge, lambda x, *_: x))
            if getattr(module, "math", None) is math:
                stack.enter_context(mock.patch.object(module, "math", _Exact()))
            if getattr(module, "np", None) is np:
                stack.enter_context(mock.patch.object(module, "np", _ExactArrays()))
        yield


def balls(x):
    """Return numbers, and arrays of numbers, as balls."""
    if isinstance(x, np.ndarray):
        return np.asarray([flint.arb(float(v)) for v in x.ravel()], dtype=object).reshape(x.shape)
    return flint.arb(x) if isinstance(x, float) else x


def flat(found):
    """Return all numbers of a result in a row."""
    if isinstance(found, residual.Quotient):
        found = (found.lower, found.upper, found.residual)
    if isinstance(found, tuple):
        return [number for part in found for number in flat(part)]
    return list(found.ravel()) if isinstance(found, np.ndarray) else [found]


def floats(rng, count, spread=3.0):
    return np.exp(rng.uniform(-spread, spread, count))


def small(rng, count):
    """Return numbers of the size of errors, some of them zero."""
    return np.where(rng.uniform(size=count) < 0.3, 0.0, 2.0 ** rng.uniform(-60, -20, count))


# name: (function of an array of 8 positive numbers and 4 small ones, sides of its results)


def _chain(numbers, errors):
    """Return a chain of Gram steps with two levels behind it, without matrices."""
    chain = object.__new__(gram.GramChain)
    chain._precision = SINGLE
    scales = np.asarray([0.25, 2.0])
    chain._levels = [(scales, errors[2:3] * np.ones(2)), (1 / scales, errors[3:4] * np.ones(2))]
    return chain


def _lost(e):
    return residual._Lost(e[0], e[1], (e[2], e[3]), sums=20 * 2.0**-24, unit=2.0**-24)


FORMULAS = {
    "kato_temple": (
        lambda a, e: residual.Quotient(3 * a[0] + a[1], 3 * a[0] + a[1], e[0] * a[2]).kato_temple(
            3 * a[0]
        ),
        "+",
    ),
    "one_lower_bound of one": (lambda a, e: moments.one_lower_bound(a[0] + e[0], a[0] * a[0]), "-"),
    "one_lower_bound of many": (lambda a, _: moments.one_lower_bound(3 * a[0], a[0] * a[0]), "-"),
    "lower_bound": (lambda a, _: moments.lower_bound(a[:3] + a[3:6], a[:3] * a[:3]), "---"),
    "top_eigenvalue": (
        lambda a, e: certificate._top_eigenvalue(a[0] + a[1], a[0] * a[0], a[0] * a[0], e[0]),
        "-+",
    ),
    "shortfall": (
        lambda a, _: margin.shortfall(a[0], a[1], products=5, inner=9, order=30, precision=SINGLE),
        "+",
    ),
    "enclosure": (lambda a, _: sums.enclosure(a[:2], 7, 3, SINGLE), "--++"),
    "enclosed": (
        lambda a, e: residual._enclosed(a[0], a[1], e[2] * a[2], frobenius=a[3], lost=_lost(e)),
        "-++",
    ),
    "climb": (
        lambda a, e: _ends(_chain(a, e)._climb(a[:2], a[2:4] + a[:2], np.zeros(2))),
        "--++",
    ),
    "product_error": (lambda a, e: _chain(a, e)._product_error(a[:2], 50, 9), "++++"),
    "eigenvalues": (
        lambda a, e: _chain(a, e)._eigenvalues(a[:1] * a[:1], a[:1] + a[1:2], e[:1], 9),
        "-+",
    ),
}


def _ends(bounds):
    return bounds.lower, bounds.upper


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_are_rounded_to_their_sides(name):
    function, sides = FORMULAS[name]
    with np.errstate(all="ignore"):
        for seed in range(60):
            rng = np.random.default_rng(seed)
            numbers, errors = floats(rng, 8), small(rng, 4)
            rounded = flat(function(numbers, errors))
            with in_balls():
                exact = flat(function(balls(numbers), balls(errors)))
                assert len(rounded) == len(exact) == len(sides)
                for value, true, side in zip(rounded, exact, sides, strict=True):
                    if side == "+":
                        assert flint.arb(float(value)) >= true, (name, seed)
                    else:
                        assert flint.arb(float(value)) <= true, (name, seed)


def test_formulas_that_are_not_nudged_are_found():
    """With `up` and `down` off, half of the roundings are to the wrong side."""
    wrong = 0
    for name in ("kato_temple", "one_lower_bound of many", "shortfall"):
        function, sides = FORMULAS[name]
        for seed in range(60):
            rng = np.random.default_rng(seed)
            numbers, errors = floats(rng, 8), small(rng, 4)
            with in_balls():
                exact = flat(function(balls(numbers), balls(errors)))[0]
            with (
                mock.patch.object(residual, "up", lambda x, *_: x),
                mock.patch.object(margin, "up", lambda x, *_: x),
                mock.patch.object(moments, "down", lambda x, *_: x),
            ):
                value = flint.arb(flat(function(numbers, errors))[0])
            wrong += value < exact if sides == "+" else value > exact
    assert wrong > 40


# ---------------------------------------------------------------------- constants of the model


@pytest.mark.parametrize("prec", [SINGLE, DOUBLE], ids=["float32", "float64"])
def test_constants_are_what_the_theory_page_says(prec):
    u = flint.fmpq(1, 2**24) if prec is SINGLE else flint.fmpq(1, 2**53)
    both = model.Precision(prec.unit, prec.tiny, complex=True)

    def near(value, exact):
        with flint.ctx.workprec(200):
            return abs(flint.arb(value) / exact - 1) < 2.0**-50

    for n in (1, 2, 7, 100, 4096):
        real = n * u / (1 - n * u)
        assert near(prec.gamma(n), real)
        assert near(prec.kappa(n), real)
        whole = flint.fmpq(16, 5) * (n + 4) * u / (1 - 2 * (n + 4) * u)
        assert near(both.kappa(n), whole)
        assert near(prec.underflow(n), 3 * n * flint.arb(prec.tiny))
        assert near(sums.loss(n, 3, prec), (2 * n + 14) * u / (1 - (2 * n + 14) * u))
        below, above, lost = sums.factors(n, 3, prec)
        whole = (6 * n + 8) * u / (1 - (6 * n + 8) * u)
        assert flint.arb(below) <= 1 / (1 + flint.arb(whole))
        assert flint.arb(above) >= 1 / (1 - flint.arb(whole))
        assert near(lost, 6 * n * flint.arb(prec.tiny))


def test_sums_of_too_many_terms_have_no_bound():
    for prec in (SINGLE, DOUBLE):
        assert math.isinf(prec.gamma(int(0.6 / prec.unit)))
        assert prec.gamma(int(0.4 / prec.unit)) < 1
        _, above, _ = sums.factors(2**26, 2**26, model.Precision(2.0**-20, 1e-30, complex=False))
        assert math.isinf(above)


def test_nudges_restore_what_so_many_roundings_lose():
    u = 2.0**-53
    for k in (2, 4, 8, 16, 64):
        for x in (1.0, 1.3, 2 - 2.0**-52, 1e300, 1e-300):
            with flint.ctx.workprec(400):
                assert flint.arb(model.up(x, k)) * (1 - flint.arb(u)) ** k >= flint.arb(x)
                assert flint.arb(model.down(x, k)) * (1 + flint.arb(u)) ** k <= flint.arb(x)
                # and not much more
                assert flint.arb(model.up(x, k)) <= flint.arb(x) * (1 + 2 * k * u + 4 * u)
                assert flint.arb(model.down(x, k)) >= flint.arb(x) * (1 - 2 * k * u - 4 * u)


def test_compounded_losses_are_rounded_up():
    rng = np.random.default_rng(5)
    for _ in range(200):
        losses = (2.0 ** rng.uniform(-60, -5, rng.integers(0, 6))).tolist()
        exact = flint.fmpq(1)
        for loss in losses:
            exact *= 1 + flint.fmpq(*float(loss).as_integer_ratio())
        with flint.ctx.workprec(400):
            found, exact = flint.arb(model.compounded(losses)), flint.arb(exact - 1)
            assert exact <= found
            assert found <= exact * (1 + 2.0**-47)


def test_results_are_rounded_outward():
    rng = np.random.default_rng(6)
    kinds = [np.float32, np.float64, np.float16]
    values = np.concatenate([floats(rng, 200, 80), floats(rng, 20, 5), 2.0 ** np.arange(-150, 120)])
    for kind in kinds:
        with np.errstate(all="ignore"):
            for v in (values, values[:1], values[220:221]):
                low, high = model.round_outward(v, v, dtype=np.dtype(kind))
                assert np.all(low <= v)
                assert np.all(high >= v)
                assert np.all((low == v) == (v.astype(kind) == v))
                for ends, side in ((low, -np.inf), (high, np.inf)):
                    inside = np.isfinite(ends) & (ends > 0) & (ends < np.finfo(kind).max)
                    assert np.all(ends.astype(kind)[inside] == ends[inside])
                    beyond = np.nextafter(ends.astype(kind), kind(-side))[inside].astype(float)
                    assert np.all((beyond > v[inside]) if side < 0 else (beyond < v[inside]))


def test_scaling_back_is_outward_where_bits_are_lost():
    exponents = (0.0, -1000.0, -1021.0, -1050.0, -1074.0, -1080.0, 1000.0, 1023.0, 1030.0)
    for end, e in itertools.product((1.0 + 2.0**-52, 2.0 - 2.0**-52), exponents):
        ends = np.asarray([end])
        low, high = model.scale_back(ends, ends, np.asarray([e]))
        with flint.ctx.workprec(400):
            exact = flint.arb(ends[0]) * flint.arb(2) ** int(e)
            assert flint.arb(low[0]) <= exact
            assert math.isinf(high[0]) or flint.arb(high[0]) >= exact
        assert 0 <= low[0] < math.inf


@pytest.mark.parametrize("loss", [0.0, 2.0**-1021, 2.0**-30])
@pytest.mark.parametrize("excess", [0.0, 2.0**-40, 1000003 * 2.0**-126])
@pytest.mark.parametrize("exponent", [3, -150])
def test_bounds_are_restored_outward(loss, excess, exponent):
    """Also where the loss is below what the bound is rounded to, and the bound beside the excess."""
    rng = np.random.default_rng(7)
    for _ in range(50):
        low, high = np.sort(floats(rng, 2))
        one = np.zeros(1, dtype=np.int64)
        exponents, known = np.asarray([float(exponent)]), np.zeros((2, 1))
        given = scaling.Scaled(np.zeros((1, 1, 1)), one, one, exponents, known, loss, excess)
        found = scaling.restore(
            np.asarray([low]), np.asarray([high]), given, dtype=np.dtype("float64")
        )
        with flint.ctx.workprec(3000):
            scale = flint.arb(2) ** exponent
            exact = [scale * (flint.arb(v) + s * flint.arb(loss)) + s * flint.arb(excess)
                     for v, s in ((low, -1), (high, 1))]  # fmt: skip
            assert found[0].item() == 0 or flint.arb(found[0].item()) <= exact[0]
            assert flint.arb(found[1].item()) >= exact[1]


@pytest.mark.parametrize("w", [1e-12, 1e-6, 1e-3, 0.3, 1.2, 1.56])
def test_norms_in_a_cell_are_bounded_by_sines_that_err_by_all_they_may(monkeypatch, w):
    for name in ("cosine", "sine"):
        exact = getattr(circle.angles, name)
        monkeypatch.setattr(circle.angles, name, lambda x, f=exact: f(x) * (1 - 8 * 2.0**-53))
    rng = np.random.default_rng(3)
    for supremum in floats(rng, 20):
        edge = supremum * math.cos(w)  # the least that may be the supremum itself
        near = edge * (1 - 2.0 ** rng.uniform(-53, -1, 20))
        norms = np.concatenate([[0.0, edge, supremum], near, supremum * rng.uniform(size=20)])
        found = circle._within(w, supremum)(norms)
        with flint.ctx.workprec(200):
            m = flint.arb(supremum)
            for norm, above in zip(norms, found, strict=True):
                away = max((flint.arb(norm) / m).acos() - flint.arb(w), flint.arb(0))
                assert above >= min(m * away.cos(), m)


def test_norms_of_host_arrays_are_enclosed_when_they_err_by_all_they_may(monkeypatch):
    """The sum of squares of n numbers may err by gamma_n, its root by 3 units."""
    u = 2.0**-53
    for n in (3, 200, 5000):
        x = np.ones(n)
        for sign in (-1, 1):
            wrong = math.sqrt(n) * (1 + sign * (n / 2 + 3) * u)
            monkeypatch.setattr(sums.np.linalg, "norm", lambda _, wrong=wrong: wrong)
            low, high = sums.host_norm(x)
            with flint.ctx.workprec(200):
                assert flint.arb(low) ** 2 <= n <= flint.arb(high) ** 2


# --------------------------------------------------------------------------- bounds near the truth


def test_the_moment_bound_holds_when_its_sums_err_by_all_they_may():
    """Two eigenvalues, for which Lemma 5 is an equality; the sums of D are as low as they may be."""
    for prec in (SINGLE, DOUBLE):
        for rows in (2, 9, 60):
            near = -1.5 * prec.unit  # of equal ones: D may be lost altogether
            cases = (0.5, 0.0), (0.25, 2.0**-30), (0.875, -(2.0**-20)), (0.99, 0.0), (1.0, near)
            for z, off in cases:
                many = rows - 1
                with flint.ctx.workprec(300):
                    s2 = 1 + many * flint.arb(z) ** 2
                    c = float(((1 + many * flint.arb(z) ** 3) / s2).mid()) + off
                    d1, d2 = 1 - flint.arb(c), flint.arb(z) ** 2 - c * flint.arb(z)
                    spread = d1**2 + many * d2**2
                    skew = d1 + many * flint.arb(z) * d2
                    # D has two roundings, here along itself, and sums err by their allowance
                    loss = flint.arb(sums.loss(rows, rows, prec))
                    turned = 2 * flint.arb(prec.unit) * (c * s2.sqrt() + spread.sqrt())
                    root = spread.sqrt() - turned if spread.sqrt() > turned else flint.arb(0)
                    low = float((root**2 * (1 - loss)).mid())
                    size = float((s2.sqrt() * (spread.sqrt() * loss + turned)).mid())
                    frobenius2 = math.nextafter(float(s2.mid()), math.inf)
                    skews = [max(float(skew.mid()) - size, 0.0), float(skew.mid())]
                for skewness in skews:
                    found = moments.upper_bound(
                        np.asarray([c]),
                        np.asarray([low]),
                        np.asarray([skewness]),
                        frobenius2=np.asarray([frobenius2]),
                        sigma=np.asarray([1.0]),
                        error=np.zeros(1),
                        departure=np.zeros(1),
                        rows=rows,
                        precision=prec,
                    )
                    assert found[0] >= 1.0


@pytest.mark.parametrize("angle", [1e-6, 1e-3, 0.1, 1.0, 1.5])
def test_norms_in_cells_are_bounded_to_the_last_digits(angle):
    """The corollary of Theorem 10, with norms at all distances from the supremum."""
    rng = np.random.default_rng(8)
    bound = circle._within(angle, 3.0)
    norms = np.concatenate([rng.uniform(0, 3, 200), 3 * np.cos(angle * rng.uniform(0, 2, 200))])
    norms = np.abs(norms)
    for norm, found in zip(norms, bound(norms), strict=True):
        with flint.ctx.workprec(300):
            away = (flint.arb(norm) / 3).acos() - flint.arb(angle)
            exact = 3 * away.cos() if away > 0 else flint.arb(3)
            assert flint.arb(found) >= exact
