"""Wide symbols: one factorisation for each cell, and what each of its error terms is for."""

import itertools
import math

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._arrays import limits, linalg
from gramnorm._conv import cover, every_size, factored, squared, wide
from gramnorm._conv.squared import Squared, snapped
from gramnorm._matrix import definite
from gramnorm._rigour import model
from tests.harness import families

pytestmark = pytest.mark.no_backend


@pytest.fixture
def all_are_wide(monkeypatch):
    monkeypatch.setattr(limits, "WIDE_COLUMNS", 1)
    monkeypatch.setattr(limits, "FACTORED_COLUMNS", 1)


def taps_and_offsets(kernel):
    count = math.prod(kernel.shape[2:])
    offsets = np.stack(np.unravel_index(np.arange(count), kernel.shape[2:]), axis=-1)
    taps = kernel.reshape(*kernel.shape[:2], count).transpose(2, 0, 1)
    return np.ascontiguousarray(taps), offsets.astype(np.int64)


def symbols(kernel, turns):
    """Return F at frequencies, in double precision, by its definition."""
    taps, offsets = taps_and_offsets(kernel)
    return np.tensordot(np.exp(2j * np.pi * (turns @ offsets.T)), taps, axes=1)


def largest_on_grid(kernel, n, groups=1):
    """Return the largest norm on a grid of n points per axis, by singular values."""
    axes = kernel.ndim - 2
    turns = np.asarray(list(itertools.product(np.arange(n) / n, repeat=axes)))
    parts = np.split(kernel, groups)
    return max(float(np.linalg.norm(symbols(k, turns), 2, axis=(1, 2)).max()) for k in parts)


def noise(shape, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal(shape) / math.prod(shape[1:]) ** 0.5
    if np.dtype(dtype).kind == "c":
        kernel = kernel + 1j * rng.standard_normal(shape) / math.prod(shape[1:]) ** 0.5
    return kernel.astype(dtype)


CASES = {
    "square": ((64, 64, 3, 3), {}),
    "tall": ((70, 50, 3, 2), {}),
    "flat": ((48, 90, 2, 3), {}),
    "one axis": ((64, 64, 5), {}),
    "three axes": ((48, 48, 2, 1, 2), {"rtol": 1e-2}),
    "two groups": ((96, 48, 3, 2), {"groups": 2}),
    "strided": ((60, 20, 3, 3), {"stride": 2}),
    "many columns": ((130, 130, 2, 2), {"rtol": 1e-2}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("name", CASES)
def test_bracket_of_every_size_holds_and_is_narrow(name, dtype):
    shape, options = CASES[name]
    kernel = noise(shape, dtype)
    bracket = gn.conv_norm_bracket(kernel, **options)
    assert bracket.converged
    if "stride" in options:
        rows = [kernel[:, :, i::2, j::2] for i in range(2) for j in range(2)]
        whole = np.zeros((60, 80, 2, 2), kernel.dtype)
        for k, part in enumerate(rows):
            whole[:, 20 * k : 20 * k + 20, : part.shape[2], : part.shape[3]] = part
        kernel = whole
    found = largest_on_grid(kernel.astype(np.complex128), 12, options.get("groups", 1))
    assert found <= float(bracket.upper)
    # at the frequency it names the lower bound is attained
    if "stride" not in options:
        turns = np.asarray(bracket.frequency)[None] / (2 * np.pi)
        parts = np.split(kernel.astype(np.complex128), options.get("groups", 1))
        attained = max(float(np.linalg.norm(symbols(k, turns)[0], 2)) for k in parts)
        assert float(bracket.lower) <= attained * (1 + 1e-6)
        assert attained <= float(bracket.lower) * (1 + 1e-3)


def test_known_supremum():
    # a matrix times the taps [1, 2, 1]: norm 4 of it, at frequency 0
    matrix = noise((64, 64))
    taps = np.asarray([1.0, 2.0, 1.0])
    bracket = gn.conv_norm_bracket(matrix[:, :, None] * taps, rtol=1e-6)
    norm = 4 * np.linalg.norm(matrix, 2)
    assert bracket.lower <= norm * (1 + 1e-14)
    assert norm * (1 - 1e-14) <= bracket.upper
    assert bracket.converged
    assert abs(float(bracket.frequency[0])) < 1e-3


@pytest.mark.parametrize("exponent", [-900, -100, 0, 100, 900])
def test_scales_by_powers_of_two_do_not_matter(exponent):
    kernel = noise((50, 50, 2, 2))
    plain, scaled = (gn.conv_norm_bracket(kernel * 2.0**e) for e in (0, exponent))
    assert float(scaled.lower) == float(plain.lower) * 2.0**exponent
    assert float(scaled.upper) == float(plain.upper) * 2.0**exponent


def test_channels_of_very_different_scales():
    rng = np.random.default_rng(2)
    scales = 2.0 ** rng.integers(-300, 0, 64)
    kernel = noise((64, 64, 3, 3)) * scales[:, None, None, None] * scales[None, :, None, None]
    bracket = gn.conv_norm_bracket(kernel)
    assert bracket.converged
    assert largest_on_grid(kernel, 12) <= float(bracket.upper)


@pytest.mark.parametrize("n", [4, 7, 12, 20])
@pytest.mark.parametrize("kind", ["noise", "smooth", "nearly orthogonal"])
def test_circle_is_the_largest_norm_on_its_grid(kind, n):
    kernel = noise((100, 100, 3, 3))
    if kind == "smooth":
        kernel = kernel[:, :, :1, :1] * np.ones((3, 3)) + 0.1 * kernel
    elif kind == "nearly orthogonal":
        rows = np.linalg.qr(noise((100, 100)))[0]
        kernel = 0.01 * kernel
        kernel[:, :, 1, 1] += rows
    bracket = gn.conv_norm_bracket(kernel, (n, n), padding_mode="circular")
    norm = largest_on_grid(kernel, n)
    assert float(bracket.lower) <= norm * (1 + 1e-13)
    assert norm * (1 - 1e-13) <= float(bracket.upper)
    assert bracket.converged


def test_square_is_formed_to_within_its_error():
    for dtype in ("float64", "complex128"):
        kernel = noise((70, 65, 3, 2), dtype)
        square = Squared(*taps_and_offsets(kernel))
        turns = snapped(np.random.default_rng(1).random((3, 2)))
        columns = square.formed(turns, np.full(3, 4.0), wide=True)
        for index, f in enumerate(symbols(kernel, turns)):
            exact = 4 * np.eye(65) - f.conj().T @ f
            for (start, width), column in zip(definite.blocks_of(65), columns, strict=True):
                off = column[index] - exact[start:, start : start + width]
                assert np.abs(off).max() <= square.error


@pytest.fixture(params=["SciPy", "NumPy"])
def triangles(request, monkeypatch):
    """Have diagonal blocks of any order factorised by one of the two."""
    if request.param == "SciPy":
        pytest.importorskip("scipy")
        monkeypatch.setattr(limits, "LAPACK_ORDER", 1)
    else:
        monkeypatch.setattr(linalg, "triangle_routines", lambda _: None)


@pytest.mark.usefixtures("triangles")
@pytest.mark.parametrize("kind", [np.complex64, np.complex128])
@pytest.mark.parametrize("order", [1, 5, 64, 65, 100, 200])
def test_shortfall_makes_a_matrix_semidefinite(order, kind):
    rng = np.random.default_rng(order)
    x = rng.standard_normal((4, order, order)) + 1j * rng.standard_normal((4, order, order))
    gram = x.conj().mT @ x
    least = np.linalg.eigvalsh(gram)[:, :1, None]
    shifts = np.asarray([1e-6, 1e-2, 1.0, -0.1])[:, None, None] * np.trace(gram[0]).real / order
    matrices = (gram - (least - shifts) * np.eye(order)).astype(kind)
    columns = [matrices[:, s:, s : s + width] for s, width in definite.blocks_of(order)]
    shortfall, size = definite.shortfalls(columns)
    smallest = np.linalg.eigvalsh(matrices.astype(np.complex128))[:, 0]
    room = 1e-13 * np.linalg.norm(gram, axis=(1, 2))
    assert np.all(shortfall + smallest >= -room)
    assert shortfall[3] == np.inf  # this one is indefinite by a tenth
    assert np.all(np.isfinite(shortfall[1:3]))
    moduli = np.linalg.norm(np.abs(matrices), 2, axis=(1, 2))
    assert np.all(moduli <= size * (1 + 1e-6))


@pytest.mark.parametrize("lie", [None, "factor", "inverse"])
def test_factor_and_inverse_that_lie_are_found_out(triangles, lie, monkeypatch):
    # whatever a library returns for the small blocks is measured, not believed
    rest = 0.01 * noise((80, 80))
    gram = np.eye(80) * 2.0 + rest + rest.T
    columns = [gram[None, s:, s : s + w].astype(complex) for s, w in definite.blocks_of(80)]
    truth = definite._triangles

    def lying(a, **options):
        factor, inverse = truth(a, **options)
        if inverse is not None and lie == "inverse":
            inverse = 5 * inverse
        return (1.1 if lie == "factor" else 1.0) * factor, inverse

    monkeypatch.setattr(definite, "_triangles", lying)
    found, _ = definite.shortfalls(columns)
    if lie is None:
        assert found[0] < 1e-10
    else:
        assert found[0] > 0.1


def test_one_matrix_without_a_factor_is_told_from_others(triangles):
    x = noise((5, 100, 100)) + 0j
    matrices = x @ x.conj().mT + np.eye(100)
    matrices[3] -= 200 * np.eye(100)
    columns = [matrices[:, s:, s : s + w] for s, w in definite.blocks_of(100)]
    shortfall, size = definite.shortfalls(columns)
    assert np.array_equal(np.isinf(shortfall), [False, False, False, True, False])
    assert np.array_equal(np.isinf(size), np.isinf(shortfall))
    assert np.all(shortfall[[0, 1, 2, 4]] < 1e-8)


def nearly_indefinite(seed, inner=32):
    """Return a complex64 matrix of order 96 whose Schur complement is about what rounding loses.

    A column b of the second block, of `inner` entries, beside the identity: the matrix is
    semidefinite if c >= b . b.
    """
    b = np.random.default_rng(seed).uniform(0.5, 1, inner).astype(np.float32)
    c = np.nextafter(np.float32(b.astype(float) @ b.astype(float)), np.float32(0))
    matrix = 40 * np.eye(96, dtype=np.complex64)
    matrix[:inner, :inner] = np.eye(inner)
    matrix[:inner, inner], matrix[inner, :inner], matrix[inner, inner] = b, b, c
    return matrix


def seeds_with_a_violation():
    found = 0
    for seed in range(200):
        matrix = nearly_indefinite(seed)
        columns = [matrix[None, s:, s : s + w] for s, w in definite.blocks_of(96)]
        shortfall, _ = definite.shortfalls(columns)
        found += shortfall[0] + np.linalg.eigvalsh(matrix.astype(complex))[0] < -1e-12
    return found


def test_rounding_of_products_counts(monkeypatch):
    assert seeds_with_a_violation() == 0
    monkeypatch.setattr(model.Precision, "kappa", lambda *_: 0.0)
    monkeypatch.setattr(model.Precision, "gamma", lambda *_: 0.0)
    assert seeds_with_a_violation() > 0


def test_rounding_of_the_stored_matrix_counts():
    kernel = noise((70, 65, 3, 2))
    square = Squared(*taps_and_offsets(kernel))
    turns = snapped(np.random.default_rng(1).random((1, 2)))
    wide, narrow = (square.formed(turns, np.full(1, 9.0), wide=w) for w in (True, False))
    off = max(float(np.abs(a - b).max()) for a, b in zip(wide, narrow, strict=True))
    _, size = definite.shortfalls(narrow)
    assert square.error < off <= 2.02 * 2.0**-24 * size[0] + square.narrow_error


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_square_is_formed_in_single_precision_to_within_its_error(dtype):
    # taps whose products cancel: what is left is small, and rounding is not
    kernel = np.repeat(noise((40, 40, 1, 1), dtype), 3, axis=2) * np.asarray([1, -2, 1])[:, None]
    square = Squared(*taps_and_offsets(kernel))
    turns = snapped(1e-5 * np.random.default_rng(1).random((20, 2)))
    columns = square.formed(turns, np.zeros(20), wide=False)
    for index, f in enumerate(symbols(kernel, turns)):
        exact = f.conj().T @ f
        off = sum(
            2 * np.linalg.norm(c[index] + exact[s:, s : s + w]) ** 2
            for (s, w), c in zip(definite.blocks_of(40), columns, strict=True)
        )
        assert square.error < np.sqrt(off / 2) < square.narrow_error


def test_error_of_the_sum_is_not_idle():
    kernel = noise((70, 65, 3, 2))
    square = Squared(*taps_and_offsets(kernel))
    turns = snapped(np.random.default_rng(1).random((3, 2)))
    columns = square.formed(turns, np.zeros(3), wide=True)
    f = symbols(kernel, turns)
    exact = -(f.conj().mT @ f)[:, :, : columns[0].shape[2]]
    assert np.abs(columns[0] - exact).max() > 0


def one_channel(*taps):
    """Return the square of a symbol of one channel, and taps along one axis."""
    kernel = np.asarray(taps)[None, None, :]
    return Squared(
        *taps_and_offsets(kernel.astype(np.complex128 if np.iscomplexobj(kernel) else float))
    )


def beside_the_zero(size, count):
    """Return frequencies near 1/2, where |1 + exp(2 pi i t)| is 2 sin(pi |t - 1/2|), and that."""
    away = snapped(size * np.random.default_rng(3).random(count) + 2.0**-39)
    return (0.5 + away)[:, None], 2 * np.sin(np.pi * away)


def test_error_of_the_lower_bound_counts(monkeypatch):
    square, (turns, norms) = one_channel(1.0, 1.0), beside_the_zero(1e-9, 100)

    def too_high():
        v = np.ones(1, dtype=np.complex64)
        return sum(
            square.quotient(t, v) > n * (1 + 1e-14) for t, n in zip(turns, norms, strict=True)
        )

    assert too_high() == 0
    monkeypatch.setattr(model.Precision, "kappa", lambda *_: 0.0)
    monkeypatch.setattr(squared, "PHASE_ERROR", 0.0)
    assert too_high() > 10


def test_error_of_the_sum_counts():
    square, (turns, norms) = one_channel(1.0, 1.0), beside_the_zero(3e-8, 500)

    def too_low():
        found = 0
        for target in 2.0 ** np.arange(-28, -20, 0.25):
            targets = np.full(500, target)
            bounds = square.norm_bounds(turns, targets, targets / 2)
            found += np.count_nonzero(bounds < norms * (1 - 1e-14))
        return found

    assert too_low() == 0
    square.error = 0.0
    assert too_low() > 10


def coarsely(monkeypatch, module, finest):
    """Have a module move frequencies to multiples of a coarse step, so that this matters."""
    monkeypatch.setattr(module, "FINEST", finest)
    monkeypatch.setattr(module, "snapped", lambda turns: np.round(turns * finest) / finest)


def test_norms_differ_by_what_is_added_where_taps_are_as_far_apart_as_may_be(monkeypatch):
    coarsely(monkeypatch, factored, 64)
    # |1 + exp(2 pi i t)|, beside its zero at t = 1/2
    there, moved = 2 * np.abs(np.cos(np.pi * np.asarray([69 / 128, 68 / 128])))
    slip = factored._slip(one_channel(1.0, 1.0))
    assert there - moved <= slip <= 1.02 * (there - moved)


def test_error_of_the_sum_in_single_precision_counts():
    square, (turns, norms) = one_channel(1.0, 1.0), beside_the_zero(1e-3, 500)

    def too_low():
        found = 0
        for level in 2.0 ** np.arange(-26, -18, 0.25):
            bounds = square._bounds(turns, np.full(500, level), wide=False)
            found += np.count_nonzero(np.sqrt(bounds) < norms * (1 - 1e-14))
        return found

    assert too_low() == 0
    square.narrow_error = 0.0
    assert too_low() > 10


@pytest.mark.parametrize("counts", [True, False])
def test_frequencies_that_are_moved_count(counts, monkeypatch):
    coarsely(monkeypatch, factored, 64)
    if not counts:
        monkeypatch.setattr(factored, "_slip", lambda _: 0.0)
    lower = []
    upper = factored.norms(
        [one_channel(1.0, 1.0)],
        np.asarray([[69], [1]]),
        np.asarray([128]),
        lambda low, high: high <= 1.001 * low,
        lambda found, *_: lower.append(found),
        rtol=1.0,
    )
    norms = 2 * np.abs(np.cos(np.pi * np.asarray([69, 1]) / 128))
    assert (max(lower) <= norms[1]) == counts
    assert (upper[0] >= norms[0]) == counts


def test_a_norm_of_zero_is_bounded_as_well():
    kernel = noise((100, 100, 2))
    kernel[:, :, 1] = -kernel[:, :, 0]
    bracket = gn.conv_norm_bracket(kernel, (2,), padding_mode="circular")
    assert bracket.converged


def extremal(finest):
    """Return blocks whose norm falls as fast as any, from a peak midway between coarse turns."""
    for j in range(20):
        yield one_channel(1.0, np.exp(-2j * np.pi * (3 * j + 0.5) / finest))


def test_centres_that_are_moved_count(monkeypatch):
    coarsely(monkeypatch, wide, 64)

    def too_low():
        searches = (
            wide.supremum([s], (2,), half=False, rtol=1e-6, most=1e5, is_flat=lambda _: False)
            for s in extremal(64)
        )
        return sum(found.bounds.upper < 2 * (1 - 1e-14) for found in searches)

    assert too_low() == 0
    width = wide._Search._width
    monkeypatch.setattr(wide._Search, "_width", lambda self, s: width(self, s) - width(self, 0.0))
    assert too_low() == 20


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("kernel_size", [(3, 3), (5,), (3, 2), (2, 1, 2), (1, 4), (4, 2, 3)])
def test_cells_cover_the_torus_whatever_is_expected_of_them(kernel_size, half):
    rng = np.random.default_rng(1)
    samples = cover.samples(kernel_size, half=half)
    lattice = cover.lattice(kernel_size, half=half)
    norms = samples.interpolated(rng.uniform(0.8, 1, len(samples.turns)), lattice.shape)
    widest = np.arccos(np.minimum(norms, 1)) * rng.choice([0.3, 1], lattice.shape)
    centres, sizes = lattice.blocks(widest, 0.06)
    assert len(np.unique(sizes)) > 1
    points = rng.random((2000, len(kernel_size))) * lattice.shape
    covered = np.zeros(len(points), dtype=bool)
    for middle in [centres, -centres] if half else [centres]:
        away = np.abs((points[:, None] - middle + np.divide(lattice.shape, 2)) % lattice.shape)
        away = np.abs(away - np.divide(lattice.shape, 2))
        split = [axis for axis, k in enumerate(kernel_size) if k > 1]
        diamond, rest = split[:2] if len(split) > 1 else [], split[2:] if len(split) > 1 else split
        inside = np.all(away[..., rest] <= sizes[:, None], axis=-1)
        covered |= np.any(inside & (np.sum(away[..., diamond], axis=-1) <= sizes), axis=1)
    assert np.all(covered)


def test_interpolation_is_exact_for_few_waves():
    samples = cover.samples((3, 2), half=True)
    fine = np.stack(np.meshgrid(np.arange(40) / 40, np.arange(30) / 30, indexing="ij"), axis=-1)

    def norms(turns):
        x, y = np.moveaxis(2 * np.pi * turns, -1, 0)
        return np.sqrt(9 + 4 * np.cos(2 * x) + 2 * np.cos(x - y) + np.cos(y))

    assert np.allclose(samples.interpolated(norms(samples.turns), (40, 30)), norms(fine))


@pytest.mark.parametrize("most", [0.0, 40.0])
def test_what_a_search_has_spent_and_found_is_kept_where_it_gives_up(most, monkeypatch):
    kernel = noise((60, 60, 3, 3))
    search, given = wide.supremum, []

    def gives_up(*args, **options):
        given.append(search(*args, **options | {"most": most}))
        return given[-1]

    monkeypatch.setattr(wide, "supremum", gives_up)
    monkeypatch.setattr(wide._Search, "_expected", lambda *_: most)
    geometry = {"stride": (1, 1), "dilation": (1, 1), "rtol": 1e-3}
    taps = taps_and_offsets(kernel)[0][:, None]
    _, found = every_size.supremum(taps, (3, 3), **geometry)
    assert found.bounds.is_within(1e-3)
    assert given[0].bounds.upper > 2 * given[0].bounds.lower
    assert found.bounds.lower >= given[0].bounds.lower > 0
    assert found.bounds.cost > given[0].bounds.cost >= (1 if most == 0 else 2 * most)


@pytest.mark.parametrize("dtype", families.DTYPES)
@pytest.mark.parametrize("name", families.KERNELS)
def test_bounds_hold_for_every_family(name, dtype, all_are_wide):
    for seed, shape in enumerate([(4, 3, 3, 2), (3, 5, 4), (2, 2, 2, 3)]):
        rng = np.random.default_rng(seed)
        kernel = families.KERNELS[name](rng, *shape[:2], shape[2:], dtype)
        bracket = gn.conv_norm_bracket(kernel)
        largest = float(np.abs(kernel).max())
        if not 0 < largest < np.inf:
            continue
        exponent = np.frexp(largest)[1]
        scaled = kernel.astype(np.complex128)
        scaled = np.ldexp(scaled.real, -exponent) + 1j * np.ldexp(scaled.imag, -exponent)
        lower, upper = (
            float(np.ldexp(float(x), -exponent)) for x in (bracket.lower, bracket.upper)
        )
        found = largest_on_grid(scaled, 16)
        assert found * (1 - 1e-12) <= upper
        turns = np.asarray(bracket.frequency, dtype=float)[None] / (2 * np.pi)
        # float32 frequencies are off by 2^-24 turns, which a norm feels in the second order
        assert lower <= np.linalg.norm(symbols(scaled, turns)[0], 2) * (1 + 1e-6)
