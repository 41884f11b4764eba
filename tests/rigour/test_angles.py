"""Sines and cosines are tried before they are used, and each use asks for that."""

import ast
import math
from fractions import Fraction
from pathlib import Path

import flint
import numpy as np
import pytest

import gramnorm as gn
from gramnorm._rigour import angles

pytestmark = pytest.mark.no_backend

ROOMS = Path(gn.__file__).parent
COSINE, SINE = np.cos, np.sin  # as they are


@pytest.fixture(autouse=True)
def _forgotten():
    """Let each test ask anew, and the next one too."""
    angles._require_accuracy.cache_clear()
    yield
    angles._require_accuracy.cache_clear()


def in_balls(angle):
    """Return cosine and sine as balls."""
    x = flint.arb(float(angle))
    return x.cos(), x.sin()


def test_exact_values_are_exact():
    with flint.ctx.workprec(400):
        for angle in angles._angles():
            for found, true in zip(angles._exact(float(angle)), in_balls(angle), strict=True):
                ball = flint.arb(flint.fmpq(found.numerator, found.denominator))
                assert abs(ball - true) < 2.0**-180


def test_this_machine_is_accurate():
    assert angles.sines_are_accurate()


def test_sines_are_right_at_many_angles():
    rng = np.random.default_rng(3)
    sizes = (1.0, math.pi, 100.0, 2.0**20, 2.0**40)
    drawn = np.concatenate([rng.uniform(-size, size, 400) for size in sizes])
    found = angles.cosine(drawn), angles.sine(drawn)
    with flint.ctx.workprec(200):
        for values, number in zip(found, (0, 1), strict=True):
            for angle, value in zip(drawn, values.tolist(), strict=True):
                most = 4 * min(math.ulp(value), 2.0**-53)
                assert abs(in_balls(angle)[number] - value) <= most


WRONG = {
    "by an absolute error": lambda x: x + 2.0**-50,
    "by a relative error": lambda x: x * (1 + 2.0**-49),
    "in single precision": lambda x: x.astype(np.float32).astype(np.float64),
    "at the end of a vector": lambda x: np.where(np.arange(len(x)) == len(x) - 1, x + 1e-14, x),
    "where it is nearly zero": lambda x: np.where(np.abs(x) < 1e-8, 0.0, x),
    "by being no number": lambda x: np.full_like(x, np.nan),
}


@pytest.mark.parametrize("name", ["cos", "sin"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
def test_what_is_less_accurate_is_refused(monkeypatch, name, wrong):
    right = getattr(np, name)
    monkeypatch.setattr(np, name, lambda x: wrong(np.atleast_1d(right(x))))
    assert not angles.sines_are_accurate()
    with pytest.raises(RuntimeError, match="no convolution can be bounded"):
        gn.conv_norm_bracket(np.ones((2, 2, 3)))


def test_poor_reduction_of_large_angles_is_found(monkeypatch):
    monkeypatch.setattr(np, "sin", lambda x: SINE(x - 2 * math.pi * np.round(x / (2 * math.pi))))
    assert not angles.sines_are_accurate()


def test_within_the_allowance_is_enough(monkeypatch):
    monkeypatch.setattr(np, "cos", lambda x: np.clip(COSINE(x) * (1 - 2.0**-52), -1, 1))
    assert angles.sines_are_accurate()


def test_it_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(angles, "sines_are_accurate", lambda: not asked.append(None))
    for _ in range(3):
        angles.cosine(1.0)
        angles.sine(np.ones(2))
    assert len(asked) == 1


UNPROVED = {
    # where to look, and vectors that are taken as they come
    "_conv/ascent.py",
    "_conv/estimates.py",
    "_conv/gradients.py",
    "_waves.py",
    "network/_coupling.py",
    "records.py",  # the checker takes nothing from there
    "report/plot.py",
}


def test_bounds_take_sines_from_where_they_are_tried():
    """Elsewhere functions of angles choose: cells to cut, windows, vectors."""
    choices = {
        "wide.py": {"arccos", "cos"},
        "circle.py": {"arccos"},
        "finite_lower.py": {"sin"},
        "vectors.py": {"sin", "cos"},
    }
    for path in ROOMS.rglob("*.py"):
        name = path.relative_to(ROOMS).as_posix()
        if name in UNPROVED or name in ("_rigour/angles.py", "verifier.py"):
            continue
        used = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("np", "math", "xp", "cmath")
            and node.attr in ("cos", "sin", "tan", "arccos", "arcsin", "arctan", "acos", "asin")
        }
        allowed = choices.get(path.name, set())
        assert used <= allowed, name


def test_the_reduced_angle_of_a_phase_errs_by_less_than_its_constant():
    """Lemma 9: 3 pi u + 4 sqrt(2) u + 3 u, and products of these terms, stay below 20 u."""
    u = Fraction(1, 2**53)
    pi, root2 = Fraction(3141593, 10**6), Fraction(1414214, 10**6)
    of_angle, of_values = 3 * pi * u, 4 * root2 * u
    one_axis = (1 + of_angle) * (1 + of_values) * (1 + 3 * u) - 1
    assert one_axis <= Fraction(19, 1) * u
    for axes in range(1, 6):
        assert (1 + one_axis) ** axes - 1 <= 20 * axes * u
