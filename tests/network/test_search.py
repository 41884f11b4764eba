"""The search for multipliers: derivatives, optima that are known, and what ends it.

None of it is trusted by a bound; what is tested here is that bounds are as small as they can be.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import gramnorm as gn
from gramnorm.network import _lookahead, _multipliers, _program
from gramnorm.network._coupling import Chain
from gramnorm.network._inequality import Inequality
from gramnorm.network._interior import path
from gramnorm.network._search import Limits, Search, multipliers
from tests.harness.chains import (
    coupled,
    dense_chain,
    exactly,
    guess,
    largest_jacobian,
)

pytestmark = pytest.mark.no_backend


def gaussian(seed: int, *sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, m)) / math.sqrt(m) for m, n in itertools.pairwise(sizes)]


def gaussian_kernels(seed: int, taps: tuple[int, ...], *channels: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((n, m, *taps)) / math.sqrt(m * math.prod(taps))
        for m, n in itertools.pairwise(channels)
    ]


def mixed() -> list[Any]:
    """Return a chain with a stride, a maximum and a flattening: two segments, shared multipliers."""
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((3, 2, 3)), rng.standard_normal((2, 3, 2))
    head, last = rng.standard_normal((3, 6)), rng.standard_normal((2, 3))
    conv = gn.ConvLayer(second, stride=2)
    return [first, conv, gn.MaxPool(2), gn.Flatten((3,)), head, last]


KINDS = {
    "dense": gaussian(0, 5, 4, 4, 2),
    "wide ends": gaussian(1, 9, 3, 4, 8),
    "one axis": gaussian_kernels(2, (3,), 2, 3, 3, 2),
    "two axes": gaussian_kernels(3, (2, 3), 1, 2, 3),
    "mixed": mixed(),
}


def limits(work: float = math.inf) -> Limits:
    return Limits(work, 0.0, math.inf, None)


def search(chain: Chain) -> Search:
    return Search(chain, math.inf, _multipliers._layer_by_layer(chain), limits())


def reduced(chain: Chain) -> _program.Reduced:
    found = _program.Reduced.of(chain, [_program.coarse_grid(s) for s in chain.segments])
    assert found is not None
    return found


def inside(chain: Chain, rng: np.random.Generator) -> np.ndarray:
    """Return logarithms of multipliers for which all ||B|| are below 2."""
    logs = np.log(guess(rng, chain)) / 3
    steps = [
        math.log(float(np.max(s.norms(multipliers(logs), _program.coarse_grid(s)))) / 1.7)
        for s in chain.segments
    ]
    repeated = np.repeat([0.0, *steps], [1, *(s.depth for s in chain.segments)])
    return logs - np.repeat(np.cumsum(repeated), chain.sizes)


def log_determinant(chain: Chain, logs: np.ndarray) -> float:
    """Return that of N(p) = X (1 - [[0, B], [B^*, 0]] / 2) X, with B written out tap by tap."""
    total, x = 0.0, np.exp(logs - logs[-1])
    for segment in chain.segments:
        b = segment.scaled(x)
        for theta in _program.coarse_grid(segment):
            symbol = np.zeros(b.shape[:2], complex)
            for tap in itertools.product(*map(range, b.shape[2:])):
                symbol += b[(..., *tap)] * np.exp(1j * np.dot(theta, tap))
            gram = np.eye(len(symbol)) - symbol @ symbol.conj().T / 4
            owners = np.concatenate([segment.rows, segment.columns])
            total += np.linalg.slogdet(gram)[1] + 2 * float(np.sum(np.log(x[owners])))
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_inequality_has_the_determinant_of_the_coupling(kind: str) -> None:
    chain = coupled(KINDS[kind])
    found = reduced(chain)
    rng = np.random.default_rng(4)
    logs, others = inside(chain, rng), inside(chain, rng)
    own = [found.inequality.log_determinant(found.squares(x)) for x in (logs, others)]
    expected = [log_determinant(chain, x) for x in (logs, others)]
    # input and output are turned to have no more channels than what is beside them
    first, last = chain.segments[0].widths[:2], chain.segments[-1].widths[-2:]
    fewer = max(0, first[0] - first[1]), max(0, last[1] - last[0])
    count = (
        len(_program.coarse_grid(chain.segments[0])),
        len(_program.coarse_grid(chain.segments[-1])),
    )
    for i, x in enumerate((logs, others)):
        ends = 2 * (x[0] - x[-1]), 0.0
        expected[i] -= sum(f * n * e for f, n, e in zip(fewer, count, ends, strict=True))
    assert own == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_those_of_the_determinant(kind: str) -> None:
    chain = coupled(KINDS[kind])
    found = reduced(chain)
    inequality: Inequality = found.inequality
    p = found.squares(inside(chain, np.random.default_rng(5)))
    gradient, hessian = inequality.gradient(p), inequality.hessian(p)
    assert gradient is not None
    assert hessian is not None
    for i, step in enumerate(1e-5 * np.diag(p)):
        sides = [p + step, p - step]
        ahead, behind = (inequality.log_determinant(q) for q in sides)
        assert gradient[i] == pytest.approx((behind - ahead) / 2 / step[i], rel=1e-5)
        slopes = [inequality.gradient(q) for q in sides]
        assert hessian[i] == pytest.approx(
            (slopes[0] - slopes[1]) / 2 / step[i], rel=1e-5, abs=1e-7 * np.max(np.abs(hessian[i]))
        )


def test_outside_there_is_no_determinant() -> None:
    chain = coupled(KINDS["dense"])
    found = reduced(chain)
    logs = inside(chain, np.random.default_rng(6)) - np.repeat([0.0, -3.0, 0.0, 0.0], chain.sizes)
    p = found.squares(logs)
    assert found.inequality.log_determinant(p) == -math.inf
    assert found.inequality.gradient(p) is None
    assert found.inequality.hessian(p) is None


def test_path_descends_and_stays_inside() -> None:
    chain = coupled(KINDS["mixed"])
    found = reduced(chain)
    p = found.squares(inside(chain, np.random.default_rng(7)))
    points = list(path(found.inequality, p, gap=1e-6))
    assert all(found.inequality.log_determinant(q) > -math.inf for q in points)
    assert points[-1][0] < 0.9 * p[0]
    assert all(q[-1] == 1.0 for q in points)
    (closer,) = (list(path(found.inequality, points[-1], gap=1e-8))[-1:],)
    assert points[-1][0] <= closer[0][0] * (1 + 1e-6)


@pytest.mark.parametrize(
    ("layers", "least"),
    [
        ([[[3.0, 0.0], [0.0, 1.0]], [[1.0, 4.0]]], 5.0),
        ([[[-2.0, -2.0], [-2.0, -1.0]], [[1.0, -1.0]]], math.sqrt(8)),
        ([[[1.0, 1.0], [1.0, -1.0]], [[1.0, 1.0], [1.0, -1.0]]], 2.0),
        ([[[2.0]], [[3.0]], [[5.0]], [[7.0]]], 210.0),
    ],
)
def test_small_chains_reach_the_constant_of_the_network(layers: Any, least: float) -> None:
    arrays = [np.asarray(w) for w in layers]
    assert largest_jacobian(arrays) == pytest.approx(least, rel=1e-12)
    assert least <= gn.chain_bound(arrays) <= least * (1 + 2e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ways_to_multipliers_agree(kind: str) -> None:
    chain = coupled(KINDS[kind])
    whole, descent = search(chain), search(chain)
    _program.descend(whole)
    _multipliers.descend(descent, work=math.inf)
    assert whole.bound <= descent.bound * (1 + (1e-7 if chain.is_dense else 3e-4))
    assert descent.bound <= whole.bound * (1 + (1e-5 if chain.is_dense else 2e-2))


@pytest.mark.parametrize("kind", ["dense", "one axis", "two axes"])
def test_looking_ahead_to_the_end_is_the_whole_program(kind: str) -> None:
    chain = coupled(KINDS[kind])
    whole = search(chain)
    _program.descend(whole)
    segment = reduced(chain).inequality.segments[0]
    ends = []
    for ahead in (1, chain.depth):
        p = _lookahead.look_ahead(search(chain), segment, ahead=ahead)
        assert p is not None
        own = search(chain)
        own.offer(reduced(chain).logarithms(p))
        ends.append(own.bound)
    assert ends[1] == pytest.approx(whole.bound, rel=2e-3 if kind == "dense" else 0.1)
    assert whole.bound * (1 - 3e-4) <= ends[0]


@pytest.mark.slow
def test_looking_further_ahead_pays_in_deep_chains() -> None:
    chain = coupled(gaussian(8, *[4] * 10))
    segment = reduced(chain).inequality.segments[0]
    bounds = []
    for ahead in (1, 2, 5):
        own = search(chain)
        own.offer(reduced(chain).logarithms(_lookahead.look_ahead(own, segment, ahead=ahead)))
        bounds.append(own.bound)
    whole = search(chain)
    _program.descend(whole)
    assert bounds[0] > 1.2 * bounds[2]
    assert bounds[0] > bounds[1] > bounds[2] >= whole.bound * (1 - 1e-6)
    assert bounds[2] < 1.3 * whole.bound


def test_no_way_to_multipliers_is_below_a_jacobian() -> None:
    rng = np.random.default_rng(9)
    for _ in range(8):
        layers = dense_chain(rng)
        chain, truth = coupled(layers), largest_jacobian(layers)
        own = search(chain)
        if chain.depth > 1:
            _lookahead.descend(own, work=math.inf)
            assert truth <= exactly(own.bound) < math.inf
            _multipliers.descend(own, work=1e6)
            assert truth <= exactly(own.bound)


@pytest.mark.parametrize("effort", ["quick", "fast", "standard", "high"])
@pytest.mark.parametrize("work", [1e3, 1e5, 1e7])
def test_every_effort_is_sound_and_at_most_the_product(
    effort: str, work: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With so little work small chains go the ways of large ones."""
    monkeypatch.setitem(_multipliers.EFFORTS, effort, work)
    rng = np.random.default_rng(10)
    for layers in [gaussian(11, 3, 3, 3, 2), *(dense_chain(rng) for _ in range(4))]:
        product = gn.product_bound(*(float(gn.matrix_norm_bound(w)) for w in layers))
        bound, found = gn.chain_bound(layers, effort=effort, return_multipliers=True)
        assert largest_jacobian(layers) <= exactly(bound) <= exactly(product)
        assert gn.chain_certificate(layers, found) <= 1.001 * product


def test_a_bound_of_kernels_is_at_most_the_product_of_their_sharp_norms() -> None:
    """Multipliers gain nothing where there is one direction; norms that scale kernels are rough."""
    taps = np.asarray([0.25, 1.0, -0.5])[:, None]
    first, last = (np.reshape(x, (1, 1, 3)) for x in (taps, taps[::-1]))
    product = gn.product_bound(*(float(gn.conv_norm_bound(k)) for k in (first, last)))
    assert gn.chain_bound([first, last], effort="quick") <= product


def test_more_effort_is_worth_it() -> None:
    layers = gaussian(12, *[12] * 8)
    bounds = []
    for work in (1e4, 1e7, 1e10):
        chain = coupled(layers)
        product = gn.product_bound(*(float(gn.matrix_norm_bound(w)) for w in layers))
        bounds.append(_multipliers.found(chain, product, limits=limits(work))[0])
    assert product > 1.1 * bounds[0]  # two steps, whatever is allowed
    assert bounds[0] > 1.1 * bounds[1]
    assert bounds[1] > 1.1 * bounds[2]


def test_a_chain_with_dear_steps_is_left_to_the_product_where_little_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_multipliers, "_DEAR", 1e3)
    layers = gaussian(12, *[12] * 8)
    product = gn.product_bound(*(float(gn.matrix_norm_bound(w)) for w in layers))
    assert _multipliers.found(coupled(layers), product, limits=limits(1e4))[0] == product


def test_channels_without_weights_do_not_disturb() -> None:
    """A row without weights has no best multiplier, and one that is nearly so a large one."""
    layers = gaussian(13, 4, 5, 5, 3)
    plain = gn.chain_bound(layers)
    for tiny in (0.0, 1e-300, 1e-13):
        first = np.concatenate([layers[0], tiny * np.ones((2, 4))])
        second = np.concatenate([layers[1], np.ones((5, 2))], axis=1)
        second = np.concatenate([second, np.ones((1, 7)) * [0, 0, 0, 0, 0, 1, 0]])
        third = np.concatenate([layers[2], 0 * layers[2][:, :1]], axis=1)
        assert gn.chain_bound([first, second, third]) == pytest.approx(plain, rel=1e-6)
    faint = layers[0] * np.asarray([1.0, 1e-4, 1.0, 1e-7, 1.0])[:, None]
    strong = layers[1] * np.asarray([1.0, 1e4, 1.0, 1e7, 1.0])
    assert gn.chain_bound([faint, strong, layers[2]]) == pytest.approx(plain, rel=1e-6)


def test_layers_that_let_nothing_through_have_some_bound() -> None:
    first, last = np.asarray([[1.0, 2.0], [0.0, 0.0]]), np.asarray([[0.0, 1.0], [0.0, 1.0]])
    for layers in ([first, last], [first, last, np.eye(2)]):
        product = gn.product_bound(*(float(gn.matrix_norm_bound(w)) for w in layers))
        assert 0.0 <= gn.chain_bound(layers) <= product


def test_peaks_between_the_frequencies_of_the_grid_are_found() -> None:
    """Nine taps of one channel whose symbol is largest beside the first frequencies."""
    theta = 2 * math.pi * 0.31
    wave = np.cos(theta * np.arange(9))[None, None] / 9
    kernels = [wave, np.concatenate([wave, wave[..., ::-1]]), np.ones((1, 2, 1))]
    chain = coupled(kernels)
    whole = search(chain)
    _program.descend(whole)
    long = _program._half_grid((9,), 200, 1000)
    beta = max(chain.segments[0].norms(multipliers(whole.logarithms), long))
    ends = whole.logarithms[0] - whole.logarithms[-1]
    assert whole.bound == pytest.approx(
        float(chain.factor) * math.exp(ends) * beta**3 / 4, rel=3e-4
    )
    coarse = _program.Reduced.of(chain, [_program.coarse_grid(chain.segments[0])])
    assert coarse is not None
    p = coarse.squares(whole.logarithms - np.repeat(np.arange(4) * 0.1, chain.sizes))
    *_, p = path(coarse.inequality, p, gap=1e-5)
    cheap = search(chain)
    cheap.offer(coarse.logarithms(p))
    assert whole.bound < cheap.bound * (1 - 1e-3)  # so cutting planes were needed


def test_progress_sees_falling_bounds_and_may_stop() -> None:
    layers = gaussian(14, *[8] * 6)
    seen: list[tuple[float, float]] = []
    bound = gn.chain_bound(layers, progress=lambda *state: seen.append(state))
    assert len(seen) > 5
    assert all(a[0] >= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(seen))
    assert seen[-1][0] >= bound
    count = itertools.count()
    early, found = gn.chain_bound(
        layers, progress=lambda *_: next(count) == 3, return_multipliers=True
    )
    assert next(count) == 4  # and is not asked again
    assert bound < early <= seen[0][0]
    assert gn.chain_certificate(layers, found) <= early * (1 + 1e-3)  # has better ends


def test_errors_of_the_callback_reach_the_caller() -> None:
    def stop(*_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gn.chain_bound(gaussian(15, 3, 3, 3), progress=stop)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"effort": "slow"},
            ValueError,
            "effort must be one of 'quick', 'fast', 'standard', 'high'",
        ),
        ({"effort": 3}, TypeError, "effort must be a string"),
        ({"progress": True}, TypeError, "progress must be a function"),
    ],
)
def test_wrong_options_are_explained(options: Any, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        gn.chain_bound([np.ones((2, 2))], **options)


@pytest.mark.parametrize(
    "layers",
    [gaussian(12, 8, 8, 8), [*gaussian(3, 8, 8), gn.network.Residual(gaussian(4, 8, 8, 8))]],
    ids=["chain", "residual"],
)
def test_small_chains_keep_the_blas_to_one_thread(layers: list[Any]) -> None:
    """Beside busy processes threads that wait for each other take several times the work."""
    seen = []

    def threads_of_the_blas() -> list[int]:
        return [
            lib["num_threads"]
            for lib in threadpoolctl.threadpool_info()
            if lib["user_api"] == "blas"
        ]

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        gn.chain_bound(layers, progress=lambda *_: seen.extend(threads_of_the_blas()))
        assert set(threads_of_the_blas()) == {2}
    assert set(seen) == {1}
