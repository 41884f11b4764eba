"""The constants of the theory page derived once more, in fractions, from what one operation may lose.

Each test follows the roundings of a formula one by one, with the relative error of each at its
largest, and compares what comes out with the constant that the package uses; nothing is copied from
the derivations of the page. Small units make the orders beyond the first visible.
"""

import itertools
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from gramnorm._conv import cells, finite, finite_upper, geometry, squared, symbol
from gramnorm._matrix import certificate, fixed_steps, gram, margin, moments, residual
from gramnorm._rigour import fractions, model, scaling, sums

pytestmark = pytest.mark.no_backend

UNITS = [Fraction(1, 2**10), Fraction(1, 2**24), Fraction(1, 2**53)]
PI = Fraction(314159265358979323846264338328, 10**29)  # and a little more


def precision(u, *, complex=False):
    return model.Precision(float(u), 2.0**-126 if u > 2**-30 else 2.0**-1022, complex=complex)


def dtype_of(u):
    return np.float64 if u < 2**-30 else np.float32


def above(value, exact):
    """Say whether a float of the package is at least an exact number, up to its own roundings."""
    return Fraction(value) * (1 + Fraction(1, 2**46)) >= exact


def summed(n, u):
    """Return the largest relative error of a sum of n terms, in the order that is the worst."""
    return (1 + u) ** (n - 1) - 1


def product(n, u):
    """Return that of an inner product of n terms: a rounding each, and the sum."""
    return (1 + u) ** n - 1


@pytest.mark.parametrize("u", UNITS)
def test_gamma_covers_any_order_of_summation(u):
    prec = precision(u)
    for n in (1, 2, 3, 10, 50, 300):
        assert above(prec.gamma(n), product(n, u))
        assert above(prec.gamma(n - 1), summed(n, u))
        # and terms that are divided by 1 - u each, as by fused operations seen from the result
        assert above(prec.gamma(n), 1 / (1 - u) ** n - 1)


@pytest.mark.parametrize("u", UNITS)
def test_kappa_covers_complex_products_of_four_and_of_three(u):
    """An entry is one of the model's products: real and imaginary part are real sums."""
    prec = precision(u, complex=True)
    root2, root10 = Fraction(14142136, 10**7), Fraction(31622777, 10**7)
    for n in (1, 2, 5, 30, 100):
        four = root2 * product(2 * n, u)
        # three products: of sums of parts; each sum one rounding, n products and sums, then two
        # subtractions: (1 + u)^(n + 4) of terms whose moduli add up to three times |a||b|
        real, imaginary = (1 + u) ** (n + 1) - 1, 3 * ((1 + u) ** (n + 4) - 1)
        three = Fraction(math.isqrt(int((real**2 + imaginary**2) * 10**40)) + 1, 10**20)
        assert above(prec.kappa(n), four)
        assert above(prec.kappa(n), three)
        assert above(prec.kappa(n), root10 * ((1 + u) ** n - 1))


@pytest.mark.parametrize("u", UNITS)
def test_lemma_3_covers_sums_in_two_stages(u):
    """Rows of 2 n products, then m of them; one stage; and half as much would not do."""
    prec = precision(u)
    for m, n in itertools.product((1, 2, 7, 40), (1, 2, 7, 40)):
        if (2 * m * n + 8) * u > Fraction(1, 4):
            continue
        two = (1 + product(2 * n, u)) * (1 + summed(m, u)) - 1
        assert above(sums.loss(m, n, prec), two)
        assert above(prec.gamma(2 * m * n + 8), product(2 * m * n, u))
        below, over, lost = sums.factors(m, n, prec)
        assert Fraction(below) <= 1 / (1 + product(2 * m * n, u))
        assert Fraction(over) >= 1 / (1 - product(2 * m * n, u))
        assert lost >= 2 * m * n * prec.tiny
        low, high = sums.enclosure(np.ones(1), m, n, prec)
        assert Fraction(low[0]) * (1 + two) <= 1 <= Fraction(high[0]) * (1 - two)
    for m, n in ((200, 100), (3, 2**14)):  # in two stages, since there are many
        two = (1 + product(2 * n, u)) * (1 + summed(m, u)) - 1
        below, over, _ = sums.factors(m, n, prec)
        if math.isfinite(over):
            assert Fraction(below) * (1 + two) <= 1 <= Fraction(over) * (1 - two)
    few = sums.loss(1, 60, prec) / 2  # a row of complex numbers takes more than half
    assert not above(few, product(120, u))


@pytest.mark.parametrize("u", UNITS[1:])
def test_lemma_1_covers_the_trace(u):
    """Tr Q is a sum of q entries that err by kappa, and ||P||_F^2 at most what is claimed."""
    for p, q in itertools.product((1, 9, 500), (1, 5, 60)):
        prec = precision(u)
        trace = (1 - product(p, u)) * (1 - summed(q, u))  # the least, of ||P||_F^2 = 1
        loss = Fraction(prec.kappa(p)) + 2 * Fraction(prec.gamma(q + 2))
        assert trace / (1 - loss) >= 1


@pytest.mark.parametrize("u", UNITS[1:])
def test_theorem_2_covers_a_chain_of_squares(u):
    """From sigma to s (sigma^2 +- eps), each error at its most, and back from the last one."""
    prec = precision(u)
    start, scales = Fraction(7, 5), [Fraction(1, 2), Fraction(1), Fraction(1, 8), Fraction(4)]
    for sign, inner, q in itertools.product((-1, 1), (3, 500), (1, 40)):
        chain = gram.GramChain(np.zeros((1, inner, q), dtype_of(u)), np.arange(1))
        sigma, levels, too_small = start, [], []
        for j, scale in enumerate(scales):
            # of one entry: its product, and what is lost of it and of the scaled one
            length = inner if j == 0 else q
            lost = product(length, u) * sigma**2 + 3 * length * q * Fraction(prec.tiny)
            error, frobenius2 = chain._product_error(
                np.asarray([float(sigma**2 * (1 - product(length, u)) * (1 - summed(q, u)))]),
                length,
                q,
            )
            assert above(frobenius2[0], sigma**2)
            assert above(error[0], lost)
            sigma = scale * (sigma**2 + sign * lost) + sign * q * Fraction(prec.tiny)
            eps = float(error[0] * float(scale) + 2 * q * prec.tiny)
            levels.append((np.asarray([float(scale)]), np.asarray([eps])))
            too_small.append((np.asarray([float(scale)]), np.asarray([eps / 4])))
        last = np.asarray([float(sigma)])
        chain._levels = levels
        found = chain._climb(last * (1 - 1e-15), last * (1 + 1e-15), np.zeros(1))
        assert Fraction(found.lower[0]) <= start <= Fraction(found.upper[0])
        if q == 1 and inner == 500:  # where the trace has one term there is little to spare
            chain._levels = too_small
            found = chain._climb(last, last, np.zeros(1))
            assert not Fraction(found.lower[0]) <= start <= Fraction(found.upper[0])


@pytest.mark.parametrize("u", UNITS[1:])
def test_theorem_2_ends_with_the_eigenvalue_that_two_moments_leave(u):
    """S2 = l^2 + m^2 and S1 = l + m of two eigenvalues are equality; more of them, below."""
    prec = precision(u)
    chain = gram.GramChain(np.zeros((1, 9, 4), dtype_of(u)), np.arange(1))
    for top, rest in itertools.product(
        (Fraction(1), Fraction(10, 3)), ([0], [1, 3], [1], [1, 1, 1])
    ):
        eigenvalues = [top, *(top * Fraction(part, 3) for part in rest)]
        s1, s2 = sum(eigenvalues), sum(x * x for x in eigenvalues)
        error = Fraction(prec.kappa(9)) * s1
        for sign in (-1, 1):
            # ||Q||_F off by the error, and its square by the sum of 4 x 4 entries
            length = (Fraction(math.sqrt(s2)) + sign * error * Fraction(999, 1000)) ** 2
            computed = np.asarray([float(length * (1 + sign * product(16, u)))])
            bounds = chain._eigenvalues(
                computed, np.asarray([float(s1) * (1 + 1e-15)]), np.asarray([float(error)]), 4
            )
            assert Fraction(bounds[0][0]) <= top <= Fraction(bounds[1][0])
            one = certificate._top_eigenvalue(
                float(s1) * (1 + 1e-15),
                *(float(x[0]) for x in sums.enclosure(computed, 4, 4, prec)),
                float(error),
            )
            assert Fraction(one[0]) <= top <= Fraction(one[1])
        exact = moments.one_lower_bound(float(s1), float(s2))
        assert Fraction(exact) <= top
        if len(rest) == 1 and rest != [3]:
            assert exact >= float(top) * (1 - 1e-7)  # the root of what cancels


@pytest.mark.parametrize("mode", ["replicate", "reflect", "symmetric", "circular"])
def test_theorem_13_counts_what_a_margin_repeats(mode):
    """The continuation as NumPy makes it: a matrix of zeros and ones, its norm by its columns."""
    named = {"replicate": "edge", "circular": "wrap"}.get(mode, mode)
    for size, before, after in itertools.product((1, 2, 3, 5, 8), range(6), range(6)):
        if mode == "reflect" and max(before, after) >= size:
            continue
        read = np.pad(np.arange(size), (before, after), mode=named)
        axis = geometry.Axis(1, 1, 1, before, size, len(read), mode)
        assert finite._repetition([axis]) ** 2 * (1 + 1e-12) >= np.max(np.bincount(read)), axis


def test_theorem_13_counts_the_visits_of_a_stride_round_a_circle():
    """One tap of modulus one: the operator repeats outputs, and its norm is the root of how often."""
    for size, stride, outputs in itertools.product((3, 4, 6, 10), (1, 2, 3, 4, 9), (1, 2, 5, 12)):
        visited = np.bincount([stride * o % size for o in range(outputs)])
        axis = geometry.Axis(1, stride, 1, 0, size, outputs, "circular")
        found = finite._round_the_circle(np.ones((1, 1, 1, 1)), [axis], rtol=1e-9).upper
        norm = math.sqrt(np.max(visited))
        if axis.is_circle:
            assert found == math.inf  # left to the ways of circles
        else:
            assert norm <= found <= norm * (1 + 1e-8)


@pytest.mark.parametrize("u", UNITS[1:])
def test_lemma_5_covers_the_spread_about_a_centre(u):
    """An entry of D: the product c P, the difference; both seen from what was computed."""
    for c, p, q in itertools.product((Fraction(1), Fraction(3, 7)), (-1, 1, 5), (-2, 1, 3)):
        for a, b in itertools.product((-u, u), repeat=2):
            computed = (q - c * p * (1 + a)) * (1 + b)
            assert abs(computed - (q - c * p)) <= 2 * u * (c * abs(p) + abs(computed))
    # `least`: the norm is known from the trace, which is high by what is in its denominator
    for rows, complex in itertools.product((1, 4, 64, 1000), (False, True)):
        prec = precision(u, complex=complex)
        kappa, gamma = Fraction(prec.kappa(rows)), Fraction(prec.gamma(rows + 2))
        if kappa > Fraction(1, 20):
            continue
        square = (1 + kappa) * (1 + gamma) / (1 - kappa - 2 * gamma) * (1 + 20 * UNITS[2])
        norm = (1 + (square - 1) / 2) * (1 + 20 * UNITS[2])
        assert norm * (1 - 4 * Fraction(prec.kappa(rows + 16))) <= 1


@pytest.mark.parametrize("u", UNITS[1:])
def test_theorem_6_covers_a_chain_of_products(u):
    """x_k = (x_(k-1) - p_k)(1 + d_k): the k-th product counts with (1 + u)^(k-1), the rest with N."""
    for count, inner in ((1, 1), (3, 8), (12, 64)):
        prec, half = precision(u), Fraction(1, 2)
        for measured, size in ((half, Fraction(1)), (Fraction(0), Fraction(2))):
            worst = measured * (1 / (1 - u)) ** count
            worst += size * ((1 + product(inner, u)) * (1 / (1 - u)) ** (count - 1) - 1)
            found = margin.shortfall(
                float(measured),
                float(size),
                products=count,
                inner=inner,
                order=7,
                precision=prec,
            )
            assert above(found, worst)
            assert found >= count * 3 * inner * prec.tiny * 7
            if not measured and count == 12:  # each of the terms is needed
                assert not above(found - prec.kappa(inner) * float(size), worst)
        bare = margin.shortfall(0.0, 0.0, products=count, inner=inner, order=7, precision=prec)
        assert bare >= 2 * count * 3 * inner * 7 * prec.tiny


def test_theorem_7_covers_image_and_residual():
    """Scalars that are as wrong as they may be: images too short, then too long."""
    u, prec = UNITS[1], precision(UNITS[1])
    p, q, frobenius = 300, 40, 1.0
    forward, backward = Fraction(prec.kappa(q)), Fraction(prec.kappa(p))
    loss = Fraction(sums.loss(1, p, prec))
    lost = residual._Lost(
        prec.kappa(q), prec.kappa(p), (0.0, 0.0), sums.loss(1, p, prec), prec.unit
    )
    for true in (Fraction(9, 10), Fraction(1, 3)):
        for sign in (-1, 1):
            # ||x|| = 1 is computed with a loss, and ||B x|| = true with that of the product, too
            xx = float(1 - sign * loss * Fraction(999, 1000))
            yy = float(((true + sign * forward * Fraction(999, 1000)) ** 2) * (1 + sign * loss))
            found = residual._enclosed(xx, yy, 0.0, frobenius=frobenius, lost=lost)
            assert Fraction(found.lower) <= true**2 <= Fraction(found.upper)
            # z errs by the image's error, and by its own product
            least = (backward * (true - forward) + forward) * (1 - 3 * loss) + 8 * u * true
            assert Fraction(found.residual) >= least


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_images_of_a_kernel_count_what_their_products_add(dtype):
    """One output of ones: too large by all that its product may be."""
    c, k = 50, 4
    kernel, x = np.ones((1, c, k), dtype), np.ones((c, k), dtype)
    kappa = model.precision_of(kernel.dtype).kappa(c * k)
    y = np.full((1, 1), c * k * (1 + kappa * (1 - 1e-6)), dtype)
    found = sums.image_quotient(kernel, x, y, copies=1)
    assert 0 < Fraction(found) ** 2 <= c * k
    # what underflows: an image that is nothing but that
    least = float(np.finfo(dtype).smallest_normal)
    tiny = np.full((1, 1), 2 * c * k * least, dtype)
    assert sums.image_quotient(kernel * 0, x, tiny, copies=1) == 0.0


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_lemma_9_covers_phases_and_their_products(axes):
    u = UNITS[2]
    of_angle = PI * ((1 + u) ** 3 - 1)  # quotient, constant, product; at most half a turn
    of_values = 4 * u * Fraction(14142136, 10**7)
    one = (1 + of_angle) * (1 + of_values) - 1
    phases = (1 + one) ** axes * (1 + 3 * u) ** (axes - 1) - 1
    for dtype, v in (("float64", u), ("float32", UNITS[1])):
        stored = 0 if v == u else (1 + phases) * v * Fraction(14142136, 10**7)
        for taps in (1, 9, 49, 300):
            # a sum of complex products, as an entry of a complex matrix
            kappa = Fraction(model.Precision(float(v), 1e-300, complex=True).kappa(taps))
            worst = (1 + phases + stored) * (1 + kappa) - 1
            relative, lost = symbol.symbol_loss(taps, axes, np.dtype(dtype))
            assert above(relative, worst)
            assert lost > 0
    assert Fraction(squared.PHASE_ERROR) >= (1 + of_angle) * (1 + of_values) - 1


@pytest.mark.parametrize("size", [(2,), (7,), (3, 3), (5, 2, 4), (7, 7), (2, 2, 2, 3)])
def test_theorem_10_rounds_the_cosine_of_a_cell_down(size):
    """1 - x^2/2 + ... of w in fractions: an alternating series, cut where it is below."""
    for reach in (0.9, 0.3, 0.01):
        numbers = np.asarray(cells._first_denominators(size, reach))
        cover = cells.Cells(size, np.zeros((1, len(size)), dtype=np.int64), numbers)
        widths = [PI * (k - 1) / n if k > 1 else Fraction(0)
                  for k, n in zip(size, cover.denominators.tolist(), strict=True)]  # fmt: skip
        split = [w for w in widths if w]
        w = split[0] if len(split) == 1 else max(split[:2]) + sum(split[2:])
        cosine = sum((-1) ** j * w ** (2 * j) / math.factorial(2 * j) for j in range(14))
        assert Fraction(cover.cosine) <= cosine
        assert cover.cosine > float(cosine) - 4e-15


def test_theorem_12_covers_entries_of_the_compressed_circulant():
    """Sums of N weights times phases, in the units that are added to the norm."""
    u = UNITS[2]
    phase = 2 * PI * ((1 + u) ** 3 - 1) + 4 * u * Fraction(14142136, 10**7)
    for size in (1, 2, 7, 100, 3000):
        # two real sums of N products; an entry over the mean of the weights, and a quotient
        entry = (1 + phase) * (1 + Fraction(14142136, 10**7) * product(size, u)) * (1 + u) - 1
        assert (4 * size + 60) * u >= entry
    weights = np.ones((1, 5))
    found = finite_upper._toeplitz_norms(weights, 3, rtol=1e-9)[0]
    assert found >= 1 + 3 * (4 * 5 + 60) * float(u)


@pytest.mark.parametrize("u", UNITS[1:])
def test_theorem_25_covers_what_a_level_loses(u):
    """Quotient of a level, five roundings before the root, three units in it and one after."""
    before = (1 + u) ** 5
    root = 1 + (before - 1) / 2  # at least the root
    assert root * (1 + 3 * u) * (1 + u) <= 1 + fixed_steps._ROUNDINGS * u
    # the quotient 1 / n_t and the product with it, of an entry: 3 u, for real and complex numbers
    assert (1 + u) ** 2 - 1 <= 3 * u
    # what `scaled` does to an entry: the conversion of an integer, an inverse, a product
    assert (1 + u) ** 3 - 1 <= 4 * u
    like = SimpleNamespace(dtype=np.dtype("float32" if u == UNITS[1] else "float64"))
    relative, lost = fixed_steps.scaling_loss(like)
    assert (1 + u) ** 3 - 1 <= Fraction(relative)
    assert lost == float(np.finfo(like.dtype).smallest_normal)


def test_scaling_counts_what_becomes_subnormal_and_what_integers_lose():
    """2 sqrt(2.1 p q) tiny for the former; 2 u of entries below one for the latter."""
    for dtype, work in (("float32", "float32"), ("int64", "float64"), ("int64", "float32")):
        a = np.ones((1, 3, 5), dtype)
        found = scaling.normalise(a, dtype=np.dtype(work))
        info = np.finfo(work)
        entries = math.sqrt(2.1 * 15)
        least = 2 * entries * float(info.smallest_normal)
        least += entries * float(info.eps) if dtype == "int64" else 0.0
        assert found.loss >= least * (1 - 1e-12)


# ------------------------------------------------------------------------------------ fractions


def test_sums_products_and_roots_of_floats_are_rounded_up_and_no_further():
    rng = np.random.default_rng(9)
    for _ in range(300):
        values = (2.0 ** rng.uniform(-40, 40, rng.integers(1, 6))).tolist()
        exact = [Fraction(v) for v in values]
        for found, true in (
            (fractions.sum_above(values), sum(exact)),
            (fractions.product_above(values), math.prod(exact)),
        ):
            assert Fraction(found) >= true > Fraction(math.nextafter(found, 0.0))
        square = sum(v * v for v in exact)
        for root, true in (
            (fractions.length_above(values), square),
            (fractions.root_above(exact[0]), exact[0]),
        ):
            assert Fraction(root) ** 2 >= true
            assert Fraction(math.nextafter(math.nextafter(root, 0), 0)) ** 2 < true


def test_a_root_that_is_a_float_plus_next_to_nothing_is_above_it():
    """Where the integer whose root is taken was rounded: what is left over must not be lost."""
    for k in (0, 1, 30):
        exact = Fraction(9, 4) * Fraction(4) ** k + Fraction(1, 2**400)
        assert Fraction(fractions.root_above(exact)) ** 2 >= exact
    assert fractions.root_above(Fraction(9, 4)) == 1.5
