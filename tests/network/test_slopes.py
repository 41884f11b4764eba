"""Slopes of activations: searched for one outside, since a wrong one is a bound below the truth."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from gramnorm.network import _slopes
from gramnorm.network._slopes import Slopes, in_chain, lipschitz

pytestmark = pytest.mark.no_backend

mp = mpmath.mp.clone()
mp.prec = 200
Function = Callable[[Any], Any]

FIXED: dict[str, Function] = {
    "identity": lambda x: x,
    "relu": lambda x: max(x, mp.zero),
    "clip": lambda x: min(max(x, mp.mpf(-0.75)), mp.mpf(1.5)),
    "soft_shrink": lambda x: mp.sign(x) * max(abs(x) - mp.mpf(0.5), mp.zero),
    "tanh_shrink": lambda x: x - mp.tanh(x),
    "tanh": mp.tanh,
    "atan": mp.atan,
    "softplus": lambda x: mp.log1p(mp.exp(x)),
    "softsign": lambda x: x / (1 + abs(x)),
    "log_sigmoid": lambda x: -mp.log1p(mp.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "erf": mp.erf,
    "abs": abs,
    "neg": lambda x: -x,
    "sin": mp.sin,
    "cos": mp.cos,
}
ALPHAS = (-2.0, -0.3, 0.0, 0.01, 0.7, 1.0, 1.9)


def elu(x: Any, alpha: float) -> Any:
    return x if x > 0 else alpha * mp.expm1(x)


WITH_NUMBERS: list[tuple[Slopes, Function]] = [
    *((_slopes.of_leaky_relu(a), lambda x, a=a: x if x > 0 else a * x) for a in ALPHAS),
    *((_slopes.of_elu(a), lambda x, a=a: elu(x, a)) for a in ALPHAS),
    *(
        (_slopes.of_selu(a, g), lambda x, a=a, g=g: mp.mpf(g) * elu(x, a))
        for a, g in itertools.product(ALPHAS, (-1.1, 0.3, 1.7))
    ),
    *(
        (_slopes.of_celu(a), lambda x, a=a: x if x > 0 else a * mp.expm1(x / a))
        for a in ALPHAS
        if a > 0
    ),
    *(
        (_slopes.of_hard_sigmoid(a), lambda x, a=a: min(max(a * x + mp.mpf(0.5), 0), 1))
        for a in ALPHAS
    ),
]


def places() -> list[Any]:
    """Return places near and far, near each other and not, on both sides of zero."""
    rng = np.random.default_rng(0)
    sizes = np.concatenate([np.geomspace(1e-6, 30, 90), np.linspace(0.02, 8, 90)])
    drawn = np.concatenate([sizes, -sizes, [0.0], rng.normal(scale=3, size=60)])
    return [mp.mpf(x) for x in sorted({*drawn.tolist(), *(drawn + 1e-9).tolist()})]


def searched(function: Function) -> Slopes:
    """Return the least and the largest slope between neighbours, and between places apart."""
    x = places()
    y = [function(s) for s in x]
    pairs = [(i, i + k) for k in (1, 2, 7, 150) for i in range(len(x) - k)]
    found = [(y[j] - y[i]) / (x[j] - x[i]) for i, j in pairs]
    return min(found), max(found)


def holds(slopes: Slopes, function: Function) -> bool:
    least, most = searched(function)
    return bool(slopes[0] <= least and most <= slopes[1])


def test_every_function_has_a_definition_to_search() -> None:
    assert FIXED.keys() == _slopes.FIXED.keys()


@pytest.mark.parametrize("name", FIXED)
def test_no_slope_lies_outside_and_both_ends_are_reached(name: str) -> None:
    slopes = _slopes.FIXED[name]
    least, most = searched(FIXED[name])
    assert slopes[0] <= least
    assert most <= slopes[1]
    assert least - slopes[0] < 0.01
    assert slopes[1] - most < 0.01 * abs(slopes[1]) + 0.01


@pytest.mark.parametrize("which", range(len(WITH_NUMBERS)))
def test_no_slope_lies_outside_for_parameters_of_any_sign(which: int) -> None:
    slopes, function = WITH_NUMBERS[which]
    assert holds(slopes, function)
    assert lipschitz(slopes) <= 1.02 * max(map(abs, searched(function)))


WRONG: dict[str, tuple[str, Function]] = {
    "absolute value": ("relu", abs),
    "even": ("relu", lambda x: x * x / (1 + abs(x))),
    "waves": ("clip", mp.sin),
    "SiLU, which falls before it rises": ("softplus", lambda x: x / (1 + mp.exp(-x))),
    "GELU": ("softplus", lambda x: x * (1 + mp.erf(x / mp.sqrt(2))) / 2),
    "HardSwish": ("relu", lambda x: x * min(max(x / 6 + mp.mpf(0.5), 0), 1)),
    "ThresholdedRelu, which jumps": ("relu", lambda x: x if x > 1 else mp.zero),
    "a little too steep": ("tanh", lambda x: 1.001 * mp.tanh(x)),
    "twice too steep": ("sigmoid", lambda x: mp.tanh(x) / 2),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_search_finds_what_is_not_of_the_kind(wrong: str) -> None:
    name, function = WRONG[wrong]
    assert holds(_slopes.FIXED[name], FIXED[name])
    assert not holds(_slopes.FIXED[name], function)


def test_only_slopes_of_one_sign_may_stand_in_a_chain() -> None:
    assert {name for name, slopes in _slopes.FIXED.items() if in_chain(slopes) is None} == {
        *("abs", "sin", "cos")
    }
    assert in_chain((0.0, 0.25)) == 0.25
    assert in_chain((-1.5, 0.0)) == 1.5
    assert in_chain((0.0, math.inf)) is None
    assert in_chain((math.nan, 1.0)) is None
    for alpha in ALPHAS:
        for slopes in (_slopes.of_leaky_relu(alpha), _slopes.of_elu(alpha)):
            assert (in_chain(slopes) is None) == (alpha < 0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
def test_celu_with_an_alpha_that_is_not_positive_has_no_slopes(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be positive"):
        _slopes.of_celu(alpha)
