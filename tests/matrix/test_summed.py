"""Gram matrices of parts: what is claimed of a sum holds exactly, whatever the scales and pieces."""

import functools
from fractions import Fraction

import numpy as np
import pytest

from gramnorm._arrays import limits
from gramnorm._matrix import summed
from tests.harness import oracles
from tests.harness.families import DTYPES, FAMILIES

RNG = np.random.default_rng


def exact_gram(a):
    """Return the Gram matrix of stored numbers as real and imaginary parts, in fractions."""
    x, y, e = oracles.integers(a)
    factor = Fraction(2) ** (2 * e)
    return (x.T @ x + y.T @ y) * factor, (x.T @ y - y.T @ x) * factor


def fractions(a):
    return np.vectorize(Fraction, otypes=[object])(np.asarray(a, dtype=np.float64))


def far_apart(rng, rows, q, dtype):
    """Return rows whose scales differ by up to what the type holds."""
    most = 60 if dtype in ("float32", "complex64") else 500
    a = FAMILIES["gaussian"](rng, rows, q, dtype)
    powers = np.ldexp(1.0, rng.integers(-most, most, (rows, 1)))
    return (a * powers).astype(dtype)


def known(rng, a, *, by):
    """Return what is known of `a` from parts of so many rows, joined in a random order."""
    parts = [summed.of_rows(a[k : k + by]) for k in range(0, a.shape[0], by)]
    while len(parts) > 1:
        i, j = rng.choice(len(parts), 2, replace=False)
        both = summed.joined(parts[i], parts[j])
        parts = [part for k, part in enumerate(parts) if k not in (i, j)] + [both]
    return parts[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("draw", ["far apart", "gaussian", "graded_rows", "around_tiny", "sparse"])
def test_the_error_of_a_sum_is_not_above_its_bound(monkeypatch, dtype, draw):
    monkeypatch.setattr(limits, "GRAM_PIECE", (2, 1))
    make = far_apart if draw == "far apart" else FAMILIES[draw]
    for seed in range(6):
        rng = RNG(seed)
        a = make(rng, int(rng.integers(2, 12)), int(rng.integers(1, 5)), dtype)
        part = known(rng, a, by=int(rng.integers(1, 5)))
        if part.gram is None:
            assert not np.any(a)
            continue
        unit = Fraction(4) ** part.exponent
        real, imag = exact_gram(a)
        gram = np.asarray(part.gram)
        off = [fractions(np.real(gram)) * unit - real, fractions(np.imag(gram)) * unit - imag]
        # the loss is what scaling made subnormal: next to nothing beside these errors
        room = (Fraction(part.error) + 4 * Fraction(part.loss)) * unit
        assert sum(np.sum(d * d) for d in off) <= room**2
        assert np.trace(real) <= Fraction(part.square) * unit
        assert part.error <= 1e-4 * part.square if "64" in dtype else True


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_parts_of_every_family_prove_the_norm_of_all_rows(be, monkeypatch, name):
    if be.compiles:
        pytest.skip("a compilation per shape")
    monkeypatch.setattr(limits, "GRAM_PIECE", (3, 1))
    rng = RNG(5)
    dtype = "float64" if be.has_float64 else "float32"
    a = FAMILIES[name](rng, 14, 4, dtype)
    parts = [summed.of_rows(be.asarray(a[k : k + 5])) for k in range(0, 14, 5)]
    whole = functools.reduce(summed.joined, parts)
    found = summed.bracket([whole], rtol=1e-6, dtype=np.dtype(dtype))
    check = oracles.check_stack(a[None], found.lower, found.upper)
    assert check.clean, (found, check)
    for steps in (0, 1, 3):
        upper = summed.bounds_of_steps([whole], steps=steps, dtype=np.dtype(dtype))
        assert oracles.check_stack(a[None], np.zeros(1), upper).clean


@pytest.mark.parametrize(
    ("numbers", "norm"), [([np.nan, np.inf], np.nan), ([np.inf, -np.inf], np.inf)]
)
def test_nan_outweighs_inf_and_inf_all_others(numbers, norm):
    rows = np.ones((4, 2))
    rows[[0, 3], 1] = numbers
    for order in (rows, rows[::-1]):
        parts = [summed.of_rows(order[k : k + 1]) for k in range(4)]
        found = summed.bracket(
            [functools.reduce(summed.joined, parts)], rtol=1e-6, dtype=np.float64
        )
        np.testing.assert_array_equal([found.lower[0], found.upper[0]], [norm, norm])


def test_nothing_has_norm_zero():
    for rows in (np.zeros((3, 2)), np.zeros((0, 2)), np.zeros((3, 0))):
        part = summed.joined(summed.of_rows(rows), summed.of_rows(rows))
        found = summed.bracket([part], rtol=1e-6, dtype=np.float64)
        assert found.lower[0] == found.upper[0] == 0


def test_a_part_next_to_nothing_counts_as_an_error():
    large, small = summed.of_rows(np.eye(3)), summed.of_rows(np.eye(3) * 2.0**-60)
    both = summed.joined(small, large)
    assert both.error > large.error
    np.testing.assert_array_equal(both.gram, large.gram)


def test_gap_of_many_rows_is_that_of_a_piece():
    a = RNG(0).standard_normal((20_000, 5))
    pieces = [summed.of_rows(a[k : k + 1000]) for k in range(0, 20_000, 1000)]
    found = summed.bracket([functools.reduce(summed.joined, pieces)], rtol=1e-9, dtype=np.float64)
    norm = np.linalg.norm(a, 2)
    assert found.lower[0] <= norm * (1 + 1e-13)
    assert norm * (1 - 1e-13) <= found.upper[0] <= found.lower[0] * (1 + 1e-9)
