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
