"""Composition: never below the exact product, sum or block norm, in every library and at every scale."""

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gramnorm as gn
from gramnorm._rigour import fractions

norms = st.floats(min_value=0, allow_infinity=False, allow_nan=False)
lists = st.lists(norms, min_size=1, max_size=6)
RULES: dict[str, Any] = {
    "product": (gn.product_bound, lambda exact: math.prod(exact, start=Fraction(1))),
    "sum": (gn.sum_bound, lambda exact: sum(exact, start=Fraction(0))),
}


def exact_norm(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix, 2))


def below(bound: float) -> float:
    """Return what an upper bound may be compared with: the exact norm is known to rounding only."""
    return bound * (1 + 1e-12)


@pytest.mark.parametrize("rule", RULES)
@given(values=lists)
def test_bound_of_numbers_is_the_least_float_above_the_exact_one(rule: str, values: Any) -> None:
    function, exact = RULES[rule]
    truth, bound = exact(list(map(Fraction, values))), function(*values)
    assert isinstance(bound, float)
    if math.isinf(bound):
        assert truth > Fraction(np.finfo(np.float64).max)
    else:
        assert Fraction(bound) >= truth
        assert bound == 0 or Fraction(math.nextafter(bound, 0)) < truth


@given(values=lists)
def test_length_is_above_the_exact_root_and_within_two_floats(values: Any) -> None:
    bound = fractions.length_above(values)
    truth = sum((Fraction(v) ** 2 for v in values), start=Fraction(0))
    if math.isfinite(bound):
        assert Fraction(bound) ** 2 >= truth
        assert bound == 0 or Fraction(math.nextafter(math.nextafter(bound, 0), 0)) ** 2 < truth


def test_length_of_a_perfect_square_is_exact() -> None:
    assert fractions.length_above([3.0, 4.0]) == 5.0
    assert fractions.length_above([3e-320, 4e-320]) == pytest.approx(5e-320, rel=1e-3)
    assert math.isfinite(fractions.length_above([3e300, 4e300]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_arrays_are_never_below_the_exact_result(be: Any, rule: str, dtype: str) -> None:
    function, exact = RULES[rule]
    rng = np.random.default_rng(1)
    host = 10.0 ** rng.uniform(-25, 12, (2, 3, 200))
    a, b = be.asarray(host[0], dtype), be.asarray(host[1, :1], dtype)
    bound = function(a, 0.1, b)
    assert be.is_at_home(bound)
    assert bound.dtype == a.dtype
    assert bound.shape == (3, 200)
    stored = np.broadcast_to(be.to_numpy(b), (3, 200)).astype(float)
    pairs = zip(be.to_numpy(a).ravel(), stored.ravel(), be.to_numpy(bound).ravel(), strict=True)
    for x, y, found in pairs:
        assert Fraction(float(found)) >= exact(
            [Fraction(float(x)), Fraction(0.1), Fraction(float(y))]
        )


def test_tiny_products_do_not_vanish(be: Any) -> None:
    tiny = be.asarray([1e-30, 0.0], "float32")
    bound = be.to_numpy(gn.product_bound(tiny, tiny))
    assert bound[0] > 0
    assert bound[1] == 0


def test_plain_rounding_would_fall_below() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.uniform(0, 1, (2, 100))
    plain = [Fraction(a * b) < Fraction(a) * Fraction(b) for a, b in zip(x, y, strict=True)]
    assert sum(plain) > 20


@pytest.mark.parametrize("function", [gn.product_bound, gn.sum_bound])
def test_special_values_pass_through(be: Any, function: Any) -> None:
    bound = function(be.asarray([np.nan, np.inf, 0.0]), be.asarray([np.inf, 0.0, 0.0]))
    np.testing.assert_array_equal(be.to_numpy(bound), [np.nan, np.inf, 0.0])
    assert function(0.0, math.inf) == math.inf
    assert math.isnan(function(math.inf, math.nan))


def test_types_widen_and_brackets_give_their_upper(be: Any) -> None:
    short, long = be.asarray([2.0], "float32"), be.asarray(3.0)
    assert gn.product_bound(short, long).dtype == long.dtype
    bracket = gn.matrix_norm_bracket(be.asarray([[2.0, 0.0], [0.0, 1.0]]))
    assert float(gn.product_bound(bracket, 1)) == float(bracket.upper)


@pytest.mark.parametrize(
    ("norm", "error", "match"),
    [
        (-1.0, ValueError, "negative"),
        (np.asarray([1.0, -1.0]), ValueError, "negative"),
        (True, TypeError, "number or an array"),
        ("1", TypeError, "array"),
        (np.asarray([1]), TypeError, "floating"),
        (np.asarray([1j]), TypeError, "real"),
    ],
)
def test_misuse_is_explained(norm: Any, error: type[Exception], match: str) -> None:
    for function in (gn.product_bound, gn.sum_bound, gn.residual_bound):
        with pytest.raises(error, match=match):
            function(norm)


def test_arrays_of_two_libraries_are_refused() -> None:
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(TypeError, match="one library"):
        gn.sum_bound(np.asarray(1.0), strict.asarray(1.0))


@pytest.mark.parametrize("seed", range(20))
def test_bounds_hold_for_random_operators(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = rng.standard_normal((3, 5, 5)) * rng.uniform(0.1, 3, (3, 1, 1))
    of = gn.matrix_norm_bound
    assert exact_norm(a @ b @ c) <= below(float(gn.product_bound(of(a), of(b), of(c))))
    assert exact_norm(a + b + c) <= below(float(gn.sum_bound(of(a), of(b), of(c))))
    assert exact_norm(np.eye(5) + a) <= below(float(gn.residual_bound(of(a))))
    blocks = rng.standard_normal((3, 2, 4, 5)) * rng.uniform(0, 2, (3, 2, 1, 1))
    whole = np.block([[blocks[i, j] for j in range(2)] for i in range(3)])
    bound = gn.block_norm_bound(of(blocks))
    assert exact_norm(whole) <= below(float(bound))


def test_block_bound_is_attained_by_blocks_of_rank_one(be: Any) -> None:
    size = np.asarray([[1.0, 2.0], [0.5, 3.0]])
    whole = np.kron(size, np.full((3, 3), 1 / 3))  # each block has norm size[i, j]
    bound = float(gn.block_norm_bound(be.asarray(size)))
    assert exact_norm(whole) == pytest.approx(bound, rel=1e-4)


def test_block_bound_takes_stacks_and_refuses_what_is_no_norm(be: Any) -> None:
    stack = be.asarray(np.ones((4, 2, 3)))
    assert gn.block_norm_bound(stack).shape == (4,)
    with pytest.raises(ValueError, match="negative"):
        gn.block_norm_bound(be.asarray([[1.0, -1.0]]))
    with pytest.raises(ValueError, match="shape"):
        gn.block_norm_bound(be.asarray([1.0]))
    with pytest.raises(TypeError, match="real"):
        gn.block_norm_bound(be.asarray([[1j]]))


def test_network_bound_follows_the_forms() -> None:
    layers = {"a": 2.0, "b": 3.0, "c": 0.5}

    def bound(graph: Any) -> Any:
        return gn.network_bound(json.loads(json.dumps(graph)), layers, ignore=layers)

    assert bound("a") == 2
    assert bound({"chain": ["a", "b", "a"]}) == 12
    assert bound({"sum": ["a", "b", 1]}) == 6
    assert bound({"residual": {"chain": ["a", "c"]}}) == 2
    assert bound({"concatenate": ["b", {"chain": ["a", 2]}]}) == 5
    assert bound({"parallel": ["a", {"residual": "b"}, "c"]}) == 4


def test_network_bound_holds_for_a_random_network() -> None:
    rng = np.random.default_rng(4)
    w = {name: rng.standard_normal((4, 4)) for name in "abcd"}
    graph = {"chain": ["a", {"residual": {"chain": ["b", "c"]}}, {"concatenate": ["d", "a"]}]}
    bound = gn.network_bound(graph, {name: gn.matrix_norm_bound(m) for name, m in w.items()})
    whole = np.concatenate([w["d"], w["a"]]) @ (np.eye(4) + w["c"] @ w["b"]) @ w["a"]
    assert exact_norm(whole) <= below(float(bound))
    halves = np.block([[w["a"], np.zeros((4, 4))], [np.zeros((4, 4)), w["b"]]])
    parts = {name: gn.matrix_norm_bound(w[name]) for name in "ab"}
    assert exact_norm(halves) <= below(float(gn.network_bound({"parallel": ["a", "b"]}, parts)))


def test_network_bound_takes_arrays(be: Any) -> None:
    stack = be.asarray([1.0, 2.0])
    bound = gn.network_bound({"residual": "a"}, {"a": stack})
    np.testing.assert_array_equal(be.to_numpy(bound), [2.0, 3.0])


@pytest.mark.parametrize(
    ("graph", "match"),
    [
        ("z", "names 'z'.*known are 'a'"),
        ({"chain": []}, "one or more"),
        ({"chain": "a"}, "list"),
        ({"chains": ["a"]}, "one key"),
        ({"chain": ["a"], "sum": ["a"]}, "one key"),
        ({}, "one key"),
        ([["a"]], "must be a name"),
        (None, "must be a name"),
        (True, "number"),
        (-1, "negative"),
        (2, "leaves out 'a'"),
    ],
)
def test_graphs_that_mean_nothing_are_refused(graph: Any, match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        gn.network_bound(graph, {"a": 1.0})


def test_deep_nesting_is_refused_and_not_followed() -> None:
    graph: Any = "a"
    for _ in range(100_000):
        graph = {"residual": graph}
    with pytest.raises(ValueError, match="deep"):
        gn.network_bound(graph, {"a": 1.0})


def test_torch_differentiates_bounds() -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor([2.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    gn.product_bound(x[0], x[1], x[2], 2.0).backward()
    assert x.grad.tolist() == [0.0, 12.0, 0.0]
    y = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    gn.network_bound({"concatenate": ["a", "b"]}, {"a": y[0], "b": y[1]}).backward()
    assert y.grad.tolist() == pytest.approx([0.6, 0.8])


def test_jax_differentiates_bounds_and_refuses_to_trace() -> None:
    jax = pytest.importorskip("jax")
    x = jax.numpy.asarray([2.0, 5.0])
    gradient = jax.grad(lambda v: gn.residual_bound(gn.product_bound(v[0], v[1])))(x)
    assert gradient.tolist() == [5.0, 2.0]
    with pytest.raises(TypeError, match="eagerly"):
        jax.jit(gn.product_bound)(x)
