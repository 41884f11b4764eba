"""What the text of a NormBracket says, on every library."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gramnorm as gn

NUMBER = r"(\d[\d.]*(?:e[+-]\d+)?|inf|nan)"
positive = st.floats(min_value=0, allow_infinity=False)


def bracket(be, lower, upper, converged=True):
    fields = (be.asarray(np.float64(v)) for v in (lower, upper))
    return gn.NormBracket(*fields, be.asarray(np.asarray(converged)), 1)


def numbers_in(text):
    found = re.search(rf"{NUMBER} <= norms? <= {NUMBER}, gap {NUMBER}", text)
    return found.groups() if found else None


def test_text_of_a_bracket_shows_bounds_gap_and_convergence(be):
    text = repr(bracket(be, 4.0, 4.001953125))
    assert text == "NormBracket(4.00000 <= norm <= 4.00196, gap 0.00049, converged)"
    text = repr(bracket(be, 0.5, 1.0, converged=False))
    assert text == "NormBracket(0.50000 <= norm <= 1.0000, gap 1.0, not converged)"


@given(one=positive, other=positive)
def test_text_never_claims_more_than_the_numbers(one, other):
    lower, upper = sorted((one, other))
    found = gn.NormBracket(np.float64(lower), np.float64(upper), np.True_, 1)
    low, high, gap = numbers_in(repr(found))
    assert Fraction(low) <= Fraction(lower)
    assert Fraction(high) >= Fraction(upper)
    if lower > 0 and gap != "inf":
        assert Fraction(gap) * Fraction(lower) >= Fraction(upper) - Fraction(lower)


def test_gap_can_be_seen_in_the_bounds_as_shown():
    for gap in (0.3, 1e-3, 1e-7, 1e-12):
        found = gn.NormBracket(np.float64(3.0), np.float64(3.0 * (1 + gap)), np.True_, 1)
        low, high, _ = map(float, numbers_in(repr(found)))
        assert 0.99 * gap <= (high - low) / 3 <= 1.5 * gap


def test_text_of_a_stack_shows_range_widest_gap_and_counts(be):
    found = bracket(be, [0.0, 1.0, math.nan], [0.0, 1.5, math.nan], [True, False, False])
    text = "shape (3,), 0 <= norms <= 1.5000, gap 0.50, 1 nan, 1 of 3 converged"
    assert repr(found) == f"NormBracket({text})"
    assert repr(bracket(be, np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2), dtype=bool))) == (
        "NormBracket(shape (0, 2), empty)"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_text_of_odd_values_is_made_of_them(be, value):
    text = f"{value:g}"
    assert numbers_in(repr(bracket(be, value, value)))[:2] == (text, text)
    assert text in repr(bracket(be, [value], [value]))


def test_text_of_computed_brackets_holds_their_norm(be):
    found = gn.matrix_norm_bracket(be.asarray(np.ones((2, 3, 3))))
    low, high, _ = map(float, numbers_in(repr(found)))
    assert low <= 3 <= high
    assert "2 of 2 converged" in repr(found)


def test_text_where_there_are_no_numbers_is_that_of_the_fields():
    jax = pytest.importorskip("jax")
    texts = []

    def traced(x):
        texts.append(repr(gn.NormBracket(x, x, x > 0, 1)))
        return x

    jax.jit(traced)(1.0)
    assert re.match(r"NormBracket\(lower=.*Trace", texts[0])


def test_text_of_tensors_without_values_is_that_of_the_fields():
    torch = pytest.importorskip("torch")
    meta = torch.zeros((), device="meta")
    assert "device='meta'" in repr(gn.NormBracket(meta, meta, meta, 1))
    assert repr(gn.NormBracket(1.0, 2.0, True, 1)) == (
        "NormBracket(lower=1.0, upper=2.0, converged=True)"
    )


# ------------------------------------------------------------------------- stacks as sequences


def numbers(be, found):
    return be.to_numpy(found.lower), be.to_numpy(found.upper), be.to_numpy(found.converged)


def test_a_stack_is_indexed_like_an_array(be):
    lower = np.arange(1.0, 7.0).reshape(2, 3)
    stack = bracket(be, lower, lower + 1, lower > 2)
    for key in (1, (0, 2), (..., 0), slice(1, None), (slice(None), 1), (1, ...)):
        one = stack[key]
        for found, whole in zip(numbers(be, one), numbers(be, stack), strict=True):
            np.testing.assert_array_equal(found, whole[key])
        assert be.is_at_home(one.lower)
        assert one.n_products == 1


def test_vectors_are_indexed_with_their_bounds(be):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4))
    stack = gn.matrix_norm_bracket(be.asarray(x), vectors=True)
    for key in (1, (1, 2), (..., 0), (0, slice(None, 2))):
        one = stack[key]
        assert one.right.shape == (*one.lower.shape, 4)
        assert one.left.shape == (*one.lower.shape, 5)
        whole = be.to_numpy(stack.right)
        np.testing.assert_array_equal(
            be.to_numpy(one.right), whole[(*key, slice(None))] if key == (..., 0) else whole[key]
        )


def test_a_stack_has_a_length_and_is_iterated(be):
    stack = bracket(be, [1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [True, False, True])
    assert len(stack) == 3
    assert [float(be.to_numpy(one.upper)) for one in stack] == [2.0, 3.0, 4.0]
    single = bracket(be, 1.0, 2.0)
    assert single
    with pytest.raises(TypeError, match="one norm"):
        len(single)
    with pytest.raises(TypeError, match="one norm"):
        iter(single)


def test_a_format_shows_digits_rounded_outward(be):
    found = bracket(be, 4.0, 4.001953125)
    assert f"{found:.4g}" == "4.000 <= norm <= 4.002"
    assert f"{found:.3g}" == "4.00 <= norm <= 4.01"
    assert f"{found}" == repr(found)
    assert f"{bracket(be, [0.5, 3.0], [1.0, 4.0], [True] * 2):.2g}" == (
        "shape (2,), 0.50 <= norms <= 4.0"
    )
    assert f"{bracket(be, np.nan, np.nan, False):.2g}" == "nan"
    some = bracket(be, [0.5, np.nan], [1.0, np.nan], [True, False])
    assert f"{some:.2g}" == "shape (2,), 0.50 <= norms <= 1.0, 1 nan"
    assert f"{some[1:]:.2g}" == "shape (1,), all nan"
    empty = bracket(be, np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2), dtype=bool))
    assert f"{empty:.2g}" == "shape (0, 2), empty"
    with pytest.raises(ValueError, match=r"\.4g"):
        f"{found:>10}"


@given(one=positive, other=positive, digits=st.integers(1, 17))
def test_a_format_never_claims_more_than_the_numbers(one, other, digits):
    lower, upper = sorted((one, other))
    found = gn.NormBracket(np.float64(lower), np.float64(upper), np.True_, 1)
    low, high = format(found, f".{digits}g").split(" <= norm <= ")
    assert Fraction(low) <= Fraction(lower)
    assert Fraction(high) >= Fraction(upper)
