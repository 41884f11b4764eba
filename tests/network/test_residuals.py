"""Residual networks: no bound is below the Jacobian of any pattern, whatever the multipliers."""

import dataclasses
import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._rigour import fractions
from gramnorm.network import _energies, _feedforward, _residuals
from gramnorm.network._residuals import Bend, Graph, Linear
from tests.harness import hostile
from tests.harness.chains import exactly
from tests.harness.residuals import bounds, largest_jacobian, largest_quotient, network

pytestmark = pytest.mark.no_backend

DATA = Path(__file__).parents[3] / "shared" / "data"
ROTATION = np.asarray([[0.0, -1.0], [1.0, 0.0]])
NONE = gn.Activation(1, 1)


def blocks(seed: int, *, width: int, depth: int, size: float = 0.7) -> list[Any]:
    """Return a dense network of residual blocks with one activation each, and none behind sums."""
    rng = np.random.default_rng(seed)
    layers: list[Any] = [rng.standard_normal((width, width)) / math.sqrt(width)]
    for _ in range(depth):
        h, g = size * rng.standard_normal((2, width, width)) / math.sqrt(width)
        layers += [gn.Residual([h, g]), NONE]
    return [*layers, rng.standard_normal((2, width)) / math.sqrt(width)]


@pytest.mark.parametrize(("kind", "count"), [("any", 150), ("given", 3), ("found", 5)])
def test_bounds_are_above_every_pattern_and_pair(kind: str, count: int) -> None:
    rng = np.random.default_rng([1, count])
    closest = math.inf
    for _ in range(count):
        layers, inputs, implied = network(rng)
        truth = largest_jacobian(layers, inputs, implied)
        pairs = largest_quotient(rng, layers, inputs, implied)
        for bound in bounds(rng, kind, layers, implied):
            assert max(truth, pairs * (1 - 1e-9)) <= exactly(bound)
            closest = min(closest, bound / truth if truth else math.inf)
    assert closest < 1 + 1e-6  # some are attained, so the assertions above can fail


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("any", 3000), ("given", 100), ("found", 150)])
def test_bounds_are_above_every_pattern_and_pair_of_many(kind: str, count: int) -> None:
    test_bounds_are_above_every_pattern_and_pair(kind, count)


def test_found_bounds_are_at_most_the_composed_constant() -> None:
    rng = np.random.default_rng(2)
    for _ in range(10):
        layers, _, implied = network(rng)
        assert gn.chain_bound(layers, slopes=implied, effort="fast") <= composed(layers, implied)


def composed(layers: list[Any], implied: float) -> float:
    """Return what `product_bound` and `sum_bound` make of norms and slopes."""
    factors = []
    for i, layer in enumerate(layers):
        if isinstance(layer, gn.Activation):
            factors.append(max(abs(float(layer.low)), abs(float(layer.high))))
            continue
        if isinstance(layer, gn.Residual):
            kept = 1.0 if layer.shortcut is None else float(gn.matrix_norm_bound(layer.shortcut))
            factors.append(gn.sum_bound(kept, composed(layer.branch, implied)))
        else:
            factors.append(float(gn.matrix_norm_bound(layer)))
        if i + 1 < len(layers) and not isinstance(layers[i + 1], gn.Activation):
            factors.append(implied)
    return gn.product_bound(*factors)


@pytest.mark.parametrize(
    ("layers", "truth"),
    [
        ([gn.Residual([ROTATION, -ROTATION.T])], 1.0),  # 1 - R^T D R
        ([gn.Residual([ROTATION, ROTATION.T])], 2.0),
        ([gn.Residual([ROTATION, -2 * ROTATION.T])], 1.0),
        ([gn.Residual([ROTATION, -3 * ROTATION.T]), NONE, np.eye(2) / 2], 1.0),
        ([gn.Residual([gn.Activation(), -np.eye(3)])], 1.0),  # min(x, 0)
        ([gn.Residual([gn.Activation(-0.5, 1.5), -np.eye(3)])], 1.5),
        ([gn.Residual([np.eye(2), gn.Activation(0.25, 0.5)], shortcut=-np.eye(2))], 0.75),
        ([gn.Residual([np.zeros((2, 2)), np.ones((2, 2))])], 1.0),
        ([np.ones((1, 1)), gn.Activation(-2, 1), np.ones((1, 1))], 2.0),
        ([np.asarray([[1.0], [-1.0]]), gn.Activation(-1, 1), np.ones((1, 2))], 2.0),
        ([np.asarray([[1.0], [-1.0]]), gn.Activation(0, 1), np.ones((1, 2))], 1.0),
        ([np.asarray([[1.0], [-1.0]]), NONE, np.ones((1, 2))], 0.0),
        ([gn.Residual([gn.Residual([np.eye(1), -np.eye(1)]), NONE, -np.eye(1)])], 1.0),
    ],
)
def test_known_constants(layers: list[Any], truth: float) -> None:
    assert truth <= gn.chain_bound(layers) <= truth * (1 + 1e-4) + 1e-6


@pytest.mark.parametrize(
    ("name", "published"),
    [("lipsdp_random_weights", 36.4823), ("fnn3_seed0", 9.7286139), ("fnn3_seed1", 9.7917864)],
)
def test_chains_of_public_networks_have_the_published_optimum(name: str, published: float) -> None:
    if not DATA.exists():
        pytest.skip("the public networks are not here")
    records = json.loads((DATA / "networks.json").read_text())["networks"]
    keys = next(r["layers"] for r in records if r["name"] == name)
    with np.load(DATA / "networks.npz") as weights:
        first, *others = (np.asarray(weights[k], dtype=float) for k in keys)
    bound = gn.chain_bound([first, gn.Activation(), *others])
    assert bound <= published * (1 + 1e-6)
    assert bound == pytest.approx(gn.chain_bound([first, *others]), rel=1e-6)


def test_both_ways_to_multipliers_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = blocks(3, width=4, depth=2)
    layers[2] = gn.Activation(-0.2, 1)
    inside = gn.chain_bound(layers)
    monkeypatch.setattr(_feedforward, "_NEWTON", math.inf)
    assert inside <= gn.chain_bound(layers) <= inside * (1 + 2e-4)
    assert gn.chain_bound(layers, effort="fast") <= inside * (1 + 2e-4)


def test_derivatives_are_those_of_the_values() -> None:
    layers = blocks(4, width=3, depth=2)
    layers[2] = gn.Activation(-0.2, 1)
    layers.insert(3, gn.Residual([gn.Residual([np.ones((3, 3))]), np.ones((4, 3))], np.eye(4, 3)))
    layers[-1] = np.ones((2, 4))
    graph = _residuals.read([*layers[:4], gn.Activation(0, 0.5), layers[-1]], 1)
    logs = _feedforward.start(graph, [np.zeros(b.size) for b in graph.bends])
    assert logs is not None
    logs = logs + 0.1 * np.random.default_rng(5).random(len(logs))

    def differences(f: Any, x: np.ndarray, h: float = 1e-5) -> np.ndarray:
        return np.asarray([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(len(x))])

    value, gradient = _feedforward.value_and_gradient(graph, logs, power=8)
    numeric = differences(lambda x: _feedforward.value_and_gradient(graph, x, power=8)[0], logs)
    assert gradient == pytest.approx(numeric, abs=1e-8)
    inequality, alive = _feedforward.Feedforward.of(graph)
    assert np.all(alive)
    p = np.exp([2 * value + 1, *(logs - math.log(2)), 0])
    numeric = differences(lambda x: -inequality.log_determinant(np.exp(x)), np.log(p))
    assert inequality.gradient(p) * p == pytest.approx(numeric, abs=1e-6)
    numeric = differences(lambda x: inequality.gradient(np.exp(x)), np.log(p))
    assert inequality.hessian(p) * p == pytest.approx(numeric.T, rel=1e-6, abs=1e-6)


def test_cost_of_a_certificate_is_linear_in_the_depth() -> None:
    costs = [
        _feedforward.descent_work(_residuals.read(blocks(6, width=8, depth=d), 1))
        for d in (4, 8, 16)
    ]
    assert costs[2] - costs[1] == pytest.approx(2 * (costs[1] - costs[0]))


def test_multipliers_come_back_and_may_be_rounded_or_come_with_a_factor() -> None:
    layers = blocks(7, width=3, depth=1)
    bound, found = gn.chain_bound(layers, return_multipliers=True)
    assert [x.shape for x in found] == [(3,)] * 2
    for factor in (1e-200, 1e200):
        again = gn.chain_certificate(layers, [np.float64(factor) * x for x in found])
        assert bound * (1 - 1e-7) <= again <= bound * (1 + 1e-3)
    short = gn.chain_certificate(layers, [x.astype(np.float32) for x in found])
    assert short <= bound * (1 + 1e-3)
    for extreme in (5e-324, np.finfo(np.float64).max):
        spoiled = [x.copy() for x in found]
        spoiled[1][0] = extreme
        assert bound * (1 - 1e-7) <= gn.chain_certificate(layers, spoiled) <= composed(layers, 1)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, -math.inf, math.nan])
def test_multipliers_that_are_not_positive_are_refused(wrong: float) -> None:
    layers = [gn.Residual([ROTATION, ROTATION])]
    with pytest.raises(ValueError, match="multipliers 0 must be positive and finite"):
        gn.chain_certificate(layers, [np.asarray([1.0, wrong])])


@pytest.mark.parametrize(
    ("layers", "options", "match"),
    [
        ([gn.Residual([np.ones((3, 2))])], {}, "must have 2 outputs, as many as its shortcut"),
        ([np.ones((3, 2)), gn.Residual([np.eye(2)])], {}, "layer 1.0 must have 3 inputs"),
        ([gn.Residual([np.eye(2)], np.eye(3))], {}, "layer 0.0 must have 3 inputs"),
        ([gn.Residual([])], {}, "branch of layer 0 must hold one array"),
        ([gn.Residual([gn.Activation()])], {}, "branch of layer 0 must hold one array"),
        ([gn.Activation()], {}, "layers must hold one array"),
        ([gn.Residual([np.ones((2, 2, 3))])], {}, "must be a matrix"),
        ([gn.ConvLayer(np.ones((2, 2, 3))), gn.Activation()], {}, "matrices only"),
        ([gn.Activation(1, 0), np.eye(2)], {}, "low of layer 0 must not be above high"),
        ([gn.Activation(0, math.inf), np.eye(2)], {}, "high of layer 0 must be finite"),
        ([gn.Activation(math.nan, 1), np.eye(2)], {}, "low of layer 0 must be finite"),
        ([gn.Activation(0, 10**309), np.eye(2)], {}, "high of layer 0 must be finite"),
        ([gn.Activation(-Fraction(10**309)), np.eye(2)], {}, "low of layer 0 must be finite"),
        ([gn.Residual([np.eye(2)])], {"slopes": [1.0]}, "slopes must be one number"),
        ([gn.Residual([np.eye(2)])], {"slopes": 0.0}, "slopes must be a positive"),
        ([gn.Residual([np.eye(2)])], {"input_shape": 4}, "input_shape is for chains"),
    ],
)
def test_what_does_not_fit_is_refused(layers: Any, options: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gn.chain_bound(layers, **options)


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([gn.Residual(np.eye(2))], "branch of layer 0 must be a list"),
        ([gn.Residual([np.eye(2, dtype=int)])], "layer 0.0 must hold real floating"),
        ([gn.Activation("0", 1), np.eye(2)], "low of layer 0 must be a number"),
        ([gn.Activation(True, 1), np.eye(2)], "low of layer 0 must be a number"),
    ],
)
def test_what_is_of_another_kind_is_refused(layers: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        gn.chain_bound(layers)


@pytest.mark.parametrize("count", [0, 2])
def test_multipliers_must_be_one_array_for_each_activation(count: int) -> None:
    with pytest.raises(ValueError, match=r"one array for each activation .* 1, got"):
        gn.chain_certificate([gn.Residual([ROTATION, ROTATION])], [np.ones(2)] * count)
    with pytest.raises(ValueError, match="multipliers 0 must have the shape"):
        gn.chain_certificate([gn.Residual([ROTATION, ROTATION])], [np.ones(3)])


def test_special_values_pass_through() -> None:
    for value in (math.nan, math.inf):
        broken = np.asarray([[1.0, value], [0.0, 1.0]])
        for layers in ([gn.Residual([broken, np.eye(2)])], [gn.Residual([np.eye(2)], broken)]):
            found = gn.chain_bound(layers, return_multipliers=True)
            assert found[0] == value or (math.isnan(value) and math.isnan(found[0]))
            assert repr(gn.chain_certificate(layers, found[1])) == repr(found[0])
    zeros = np.zeros((2, 2))
    assert gn.chain_bound([gn.Residual([zeros, zeros]), zeros]) == 0.0
    empty = gn.Residual([np.zeros((0, 2)), np.zeros((2, 0))])
    assert gn.chain_bound([empty, np.eye(2)]) == pytest.approx(1.0)


@pytest.mark.parametrize("powers", [(900, -900), (-900, 900), (500, 500), (-500, -500), (-1060, 0)])
def test_weights_at_both_ends_of_the_range_keep_the_side(powers: tuple[int, int]) -> None:
    rng = np.random.default_rng(8)
    first, h, g = rng.integers(-9, 10, (3, 2, 2)) / 8
    layers = [np.ldexp(first, powers[0]), gn.Residual([h, g]), NONE, np.ldexp(h, powers[1])]
    plain = [first, *layers[1:3], h]
    exact = Fraction(largest_jacobian(plain, 2)) * Fraction(1 - 1e-12) * Fraction(2) ** sum(powers)
    for bound in (gn.chain_bound(layers), gn.chain_certificate(layers, [np.ones(2)] * 2)):
        assert math.isinf(bound) or Fraction(bound) >= exact


def test_branches_of_extreme_size_keep_the_side() -> None:
    rng = np.random.default_rng(9)
    h, g = rng.standard_normal((2, 2, 2))
    for power in (-1000, -600, -300, 300, 600):
        layers = [gn.Residual([np.ldexp(h, power), np.ldexp(g, -power)]), gn.Residual([h, g])]
        truth = largest_jacobian([gn.Residual([h, g])] * 2, 2)
        for bound in (gn.chain_bound(layers), gn.chain_certificate(layers, [np.ones(2)] * 3)):
            assert truth <= exactly(bound)


def test_slopes_are_rounded_outward() -> None:
    third = Fraction(1, 3)
    for low, high in ((third, 2 * third), (-third, third), (-2 * third, -third)):
        graph = _residuals.read([gn.Activation(low, high), np.eye(1)], 1)
        (bend,) = graph.bends
        assert Fraction(bend.low) < low < high < Fraction(bend.high)
        assert Fraction(bend.low) + Fraction(bend.reach) >= high
    (bend, *_) = _residuals.read([np.eye(1), np.eye(1), gn.Activation()], third).bends
    assert Fraction(bend.high) > third


def test_composed_constant_stands_where_subnormal_numbers_are_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = blocks(19, width=3, depth=1)
    assert gn.chain_bound(layers) < 0.9 * composed(layers, 1)
    monkeypatch.setattr(_residuals.probes, "flushes_subnormals", lambda *_: True)
    ones = [np.ones(3)] * 2
    for bound in (gn.chain_bound(layers), gn.chain_certificate(layers, ones)):
        assert bound == pytest.approx(composed(layers, 1))


def test_a_search_ends_when_it_is_told_to() -> None:
    layers = blocks(10, width=6, depth=3)
    seen: list[float] = []

    def progress(bound: float, _seconds: float) -> bool:
        seen.append(bound)
        return len(seen) == 3

    bound = gn.chain_bound(layers, progress=progress)
    assert len(seen) == 3
    assert bound <= seen[-1]
    assert gn.chain_bound(layers, time_limit=1e-9) <= composed(layers, 1)


# Each error term, by exact fractions: with the others taken away it is needed.


def numbers(seed: int, count: int) -> list[float]:
    return np.exp(np.random.default_rng(seed).standard_normal(count)).tolist()


def test_rounding_of_products_is_counted() -> None:
    values = numbers(11, 600)
    for k, e in zip(values[::2], values[1::2], strict=True):
        found = _energies._pulled_back(np.asarray([[e]]), np.asarray([[k]]))[0, 0]
        exact = Fraction(k) ** 2 * Fraction(e)
        assert exact <= Fraction(found) <= exact * Fraction(1 + 1e-14)
    rng = np.random.default_rng(12)
    for _ in range(40):
        root, k = rng.standard_normal((2, 3, 3)) * np.exp(3 * rng.standard_normal((2, 3, 3)))
        energy = root + root.T
        found = _energies._pulled_back(energy, k)
        assert is_positive(exactly_of(found) - exactly_of(k).T @ exactly_of(energy) @ exactly_of(k))


def test_underflow_of_products_is_counted() -> None:
    found = _energies._pulled_back(np.asarray([[1.0]]), np.asarray([[1e-170]]))[0, 0]
    assert Fraction(found) >= Fraction(1e-170) ** 2
    k = np.asarray([[1e-170, 1.0]])
    found = _energies._pulled_back(np.asarray([[1.0]]), k)
    assert is_positive(exactly_of(found) - exactly_of(k).T @ exactly_of(k))


def exactly_of(x: np.ndarray) -> np.ndarray:
    return np.vectorize(Fraction, otypes=[object])(x)


def is_positive(x: np.ndarray) -> bool:
    """Say whether an exact symmetric matrix is positive semidefinite, by elimination."""
    x = x.copy()
    for i in range(len(x)):
        if x[i, i] < 0 or (x[i, i] == 0 and np.any(x[i, i:] != 0)):
            return False
        if x[i, i] > 0:
            for j in range(i + 1, len(x)):
                x[j, i:] = x[j, i:] - x[i, i:] * (x[j, i] / x[i, i])
    return True


def test_energy_in_front_of_an_activation_is_proved() -> None:
    rng = np.random.default_rng(13)
    for low, high in ((0.0, 1.0), (-0.3, 1.0), (0.1, 0.7)):
        bend = Bend(low, high, 2)
        for _ in range(20):
            root = rng.standard_normal((3, 3))
            energy = root.T @ root
            energy = (energy + energy.T) / 2
            own = np.linalg.norm(energy, 2) * np.exp(rng.random(2))
            found = _energies._behind(energy, bend, own)
            assert found is not None
            assert is_positive(inequality(found, energy, bend, own))


def inequality(found: Any, energy: Any, bend: Bend, multipliers: Any) -> np.ndarray:
    """Return w^T E' w - z^T E z - 2 q^T Lambda (reach u - q) for z = (s, low u + q), exactly."""
    e, kept = exactly_of(energy), len(energy) - bend.size
    low, reach = Fraction(bend.low), Fraction(bend.reach)
    place = np.zeros((len(energy), len(energy) + bend.size), dtype=object)
    for i in range(len(energy)):
        place[i, i] = Fraction(1) if i < kept else low
    form = np.zeros((place.shape[1],) * 2, dtype=object)
    form[: len(energy), : len(energy)] = exactly_of(found)
    for j, own in enumerate(map(Fraction, multipliers.tolist())):
        u, q = kept + j, len(energy) + j
        place[u, q] = Fraction(1)
        form[u, q] -= own * reach
        form[q, u] -= own * reach
        form[q, q] += 2 * own
    return form - place.T @ e @ place


def test_rounding_of_the_inequality_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an exact eigenvalue of what is stored and no nudge, only the entries' term is left."""

    def largest(whole: np.ndarray, _level: float) -> float:
        (a, _), (b, d) = exactly_of(whole)  # below the diagonal
        root = fractions.root_above((a - d) ** 2 / 4 + b * b)
        return fractions.float_above((a + d) / 2 + Fraction(root))

    monkeypatch.setattr(_energies, "up", lambda x, *_: x)
    monkeypatch.setattr(_energies, "eigenvalue_bound", largest)
    rng = np.random.default_rng(14)
    accepted = 0
    for _ in range(200):
        e, own, low = np.exp(rng.standard_normal(3))
        own, bend = own + e, Bend(float(low) * rng.choice([0.0, 1.0, -1.0]), 1.5 + float(low), 1)
        exact = _energies.eliminated(np.asarray([[e]]), bend, np.asarray([own]), margin=0.0)
        assert exact is not None
        for step in range(-8, 40, 6):
            candidate = exact[0] * (1 + step * 2.0**-52)
            scale = 1 / np.sqrt(np.diagonal(candidate))
            energy, multipliers = np.asarray([[e]]), np.asarray([own])
            if _energies._is_proved(candidate, energy, bend, multipliers, scale, margin=1e-14):
                accepted += 1
                assert is_positive(inequality(candidate, energy, bend, multipliers))
    assert accepted > 40


def test_entries_of_the_inequality_are_as_wrong_as_they_are_said_to_be() -> None:
    rng = np.random.default_rng(18)
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (-0.3, 0.9), (0.1, 0.7)):
        bend = Bend(low, high, 2)
        for cancelled in np.exp2(-np.arange(0.0, 50.0, 5.0)):
            energy = rng.standard_normal((3, 3))
            energy += energy.T
            own = np.diagonal(energy)[1:] / 2
            own = np.abs(own) * (1 + cancelled * rng.random(2))
            candidate = _energies.blocks(energy, bend, own)[0] * (1 + cancelled)
            t = np.exp(rng.standard_normal(5))
            found, moduli = _energies.without_unit(candidate, energy, bend, own, t)
            exact = np.diag([Fraction(1)] * 5) - inequality(candidate, energy, bend, own) * (
                exactly_of(t)[:, None] * exactly_of(t)
            )
            wrong = np.abs(exactly_of(found) - exact)
            assert np.all(wrong <= Fraction(8 * 2.0**-53) * exactly_of(moduli))


@pytest.mark.parametrize("wrong", ["candidate", "multipliers", "energy"])
def test_inequality_that_fails_by_little_is_refused(wrong: str) -> None:
    rng = np.random.default_rng(15)
    bend = Bend(-0.2, 1.0, 3)
    root = rng.standard_normal((5, 5))
    energy = root @ root.T
    parts = {"energy": energy, "multipliers": np.full(3, np.linalg.norm(energy, 2))}
    found = _energies._behind(parts["energy"], bend, parts["multipliers"])
    assert found is not None
    parts["candidate"] = found
    parts[wrong] = parts[wrong] * (1 - 1e-10 if wrong == "candidate" else 1 + 1e-10)
    scale = 1 / np.sqrt(np.diagonal(found))
    order = parts["candidate"], parts["energy"], bend, parts["multipliers"], scale
    assert not _energies._is_proved(*order, margin=1e-13)


def test_root_of_an_energy_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the library's factor, R^T R >= E or there is no R."""
    monkeypatch.setattr(_energies, "up", lambda x, *_: x)
    monkeypatch.setattr(_energies, "_TRIES", 1)
    offsets = (-1.0, -1.0 - 2.0**-7, -1.0 + 2.0**-7, -0.99, 0.0, 0.99, 1.0)
    found = 0
    for e, offset, units in itertools.product(numbers(16, 60), offsets, range(6)):

        def factor(x: np.ndarray, more: float = offset * 2.0**-46, units: int = units) -> Any:
            return np.sqrt(x + more + units * 2.0**-53 * x)

        monkeypatch.setattr(_energies.linalg, "cholesky_or_none", factor)
        root = _energies._root(np.asarray([[e]]))
        if root is not None:
            found += 1
            assert Fraction(float(root[0, 0])) ** 2 >= Fraction(e)
    assert found > 200


def test_products_that_err_as_they_may_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any order of summation is allowed, and products fused or not: here each errs by all of it."""
    n, kappa = 8, 7.9 * 2.0**-53
    exact = np.matmul
    e, m = 1.5, 8 * 2.0**-46
    root = np.sqrt(np.diag([e * (1 - kappa + 2.0**-52), *[e + m] * (n - 1)]))
    monkeypatch.setattr(_energies.linalg, "matmul", lambda a, b: exact(a, b) * (1 + kappa))
    monkeypatch.setattr(_energies.linalg, "cholesky_or_none", lambda _: root)
    monkeypatch.setattr(_energies, "_TRIES", 1)
    assert Fraction(float(root[0, 0])) ** 2 < Fraction(e)
    assert _energies._root(e * np.eye(n)) is None
    monkeypatch.setattr(_energies.linalg, "matmul", lambda a, b: exact(a, b) * (1 - kappa))
    ones = np.ones((n, n))
    found = _energies._pulled_back(np.eye(n), ones)
    assert is_positive(exactly_of(found) - exactly_of(ones) * n)
    monkeypatch.setattr(_energies, "_root", lambda energy: energy)
    monkeypatch.setattr(_energies, "matrix_norm_bound", lambda b, **_: np.linalg.norm(b, 2))
    assert _energies._at_the_input(ones, ones, 0) >= n * n * (1 + 4 * 2.0**-53)


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_certificates_hold_in_the_worst_arithmetic_that_is_allowed(kind: str) -> None:
    """The vectors are of integers, so that the constant of the linear network is known exactly."""
    rng = np.random.default_rng(20)
    for n, m, p in ((300, 3, 20), (3, 90, 4), (20, 20, 20)):
        a, b, c, d = (rng.integers(1, 4, k) for k in (m, n, p, m))
        first, last = np.outer(a, b).astype(float), np.outer(c, d).astype(float)
        square = Fraction(int(c @ c) * int(d @ a) ** 2 * int(b @ b))
        for middle in (NONE, gn.Activation(0.5, 1)):
            graph = _residuals.read([first, middle, last], 1)
            size = 2 * math.log(float(np.linalg.norm(last)))
            with hostile.computing(hostile.KINDS[kind]):
                bound = _energies.certificate(graph, [np.full(x.size, size) for x in graph.bends])
            assert square <= Fraction(bound) ** 2
            assert middle is not NONE or bound**2 <= float(square) * (1 + 1e-8)


def test_underflow_at_the_input_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_energies, "_root", lambda energy: energy)
    monkeypatch.setattr(
        _energies, "matrix_norm_bound", lambda b, **_: fractions.length_above(np.ravel(b).tolist())
    )
    for root in (np.asarray([[3 * 2.0**-1074]]), np.asarray([[5 * 2.0**-1074]])):
        bound = _energies._at_the_input(root, np.asarray([[0.7]]), 0)
        assert Fraction(bound) >= Fraction(float(root[0, 0])) * Fraction(0.7)
    root = np.asarray([[0.0, 2.0**900]])
    for digits in (5, 9, 13):
        first = np.asarray([[1.0], [digits * 2.0**-1074]])  # which is halved
        bound = _energies._at_the_input(root, first, 0)
        assert Fraction(bound) >= Fraction(2) ** 900 * Fraction(float(first[1, 0]))


def test_product_with_the_first_matrix_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_energies, "up", lambda x, *_: x)
    monkeypatch.setattr(
        _energies, "matrix_norm_bound", lambda b, **_: fractions.length_above(np.ravel(b).tolist())
    )
    values = numbers(17, 600)
    for r, w in zip(values[::2], values[1::2], strict=True):
        monkeypatch.setattr(_energies, "_root", lambda _, r=r: np.asarray([[r]]))
        bound = _energies._at_the_input(np.eye(1), np.asarray([[w]]), 3)
        assert Fraction(r) * Fraction(w) * 8 <= Fraction(bound) <= 8 * r * w * (1 + 1e-14)


def test_what_scaling_an_energy_loses_is_counted() -> None:
    tiny = np.ldexp(1 + 2.0**-40, -1000)
    energy = np.asarray([[np.ldexp(1.0, 400), tiny], [tiny, np.ldexp(1.0, -700)]])
    scaled, k = _energies._normalised(energy, 0)
    assert k > 0
    restored = exactly_of(scaled) * Fraction(4) ** k
    assert is_positive(restored - exactly_of(energy))


def test_margins_are_doubled_until_the_proof_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph((Linear(np.eye(2)), Bend(0.0, 1.0, 2), Linear(np.eye(2))), 2, 2, 1.0, True)
    plain = _energies.certificate(graph, [np.zeros(2)])
    assert 1.0 <= plain <= 1 + 1e-10
    monkeypatch.setattr(_energies, "_MARGIN", 2.0**-56)
    assert 1.0 <= _energies.certificate(graph, [np.zeros(2)]) <= 1 + 1e-10
    assert dataclasses.replace(graph, product=2.0).bends == [Bend(0.0, 1.0, 2)]
