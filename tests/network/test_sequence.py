"""Runs of layers, activations and scales: never below any pattern of slopes, rounding included."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gramnorm as gn
from gramnorm.network import _sequence
from gramnorm.network._layers import AvgPool, MaxPool
from gramnorm.network._sequence import (
    Entrywise,
    Flattened,
    Pooled,
    Weighted,
    goes_on,
    is_worth_it,
    run_bound,
    scaled_product,
    work,
)
from tests.harness import oracles
from tests.harness.chains import exactly, largest_jacobian

pytestmark = pytest.mark.no_backend


def run_of(*parts: Any) -> list[Any]:
    """Return the parts, once each may follow those before it."""
    run: list[Any] = []
    for part in parts:
        assert goes_on(run, part)
        run.append(part)
    return run


def dense_run(rng: np.random.Generator, dtype: Any) -> tuple[list[Any], list[np.ndarray]]:
    """Return a run of dense layers, and the matrices that all of its factors make."""
    sizes = rng.integers(1, 4, int(rng.integers(2, 5)))
    run, matrices = [], []
    for m, n in itertools.pairwise(sizes):
        w = rng.standard_normal((n, m)).astype(dtype)
        run.append(Weighted(w))
        matrix = w.astype(np.longdouble)
        for _ in range(int(rng.integers(0, 4))):
            if rng.random() < 0.5:
                slope = float(rng.choice([0.25, 1.0, 1.7]))
                run.append(Entrywise(slope))
                matrix = matrix * slope
            else:
                count = int(rng.choice([1, n]))
                scale = np.exp(2 * rng.standard_normal(count)) * rng.choice([-1.0, 1.0], count)
                scale = (scale * (rng.random(count) < 0.9)).astype(dtype)
                run.append(Entrywise(scale=scale.reshape(1, 1, count)))
                matrix = matrix * scale[:, None]
        matrices.append(matrix.astype(float))
    return run, matrices


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_pattern_of_slopes_exceeds_the_bound_with_scales_of_any_sign(dtype: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        run, matrices = dense_run(rng, dtype)
        truth = largest_jacobian(matrices)
        bound = run_bound(run_of(*run), time_limit=0.05)
        product = math.prod(float(np.linalg.norm(w, 2)) for w in matrices)
        assert truth <= exactly(bound)
        assert bound <= product * (1 + 1e-5)


GEOMETRIES = [
    {},
    {"stride": (2, 1)},
    {"stride": (1, 2), "dilation": (2, 1), "groups": 2},
    {"dilation": (2, 1)},
    {"groups": 2},
    {"groups": 2, "dilation": (1, 2), "padding": ((0, 2), (1, 1))},
    {"transposed": True},
    {"transposed": True, "groups": 2, "dilation": (2, 1), "padding": ((1, 0), (0, 0))},
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_kernel_is_described_with_the_operator_of_its_geometry(geometry: Any) -> None:
    """Zero padding by all of its reach: then nothing is cut off, and both matrices are the same."""
    rng = np.random.default_rng(1)
    kernel = rng.standard_normal((4, 3, 2, 3))
    layer = Weighted(kernel, geometry)
    found = layer.described(layer.correlation())
    size, groups = (3, 4), geometry.get("groups", 1)
    every = {k: v for k, v in geometry.items() if k != "padding"}
    reach = [(k - 1) * d for k, d in zip((2, 3), geometry.get("dilation", (1, 1)), strict=True)]
    pads = 0 if layer.is_transposed else [(r, r) for r in reach]
    expected = oracles.conv_matrix(kernel, size, pads, **every)
    expected = expected.T if layer.is_transposed else expected
    assert layer.channels == ((3 * groups, 4) if layer.is_transposed else (4, 3 * groups))
    assert layer.taps == tuple(r + 1 for r in reach)
    made = {key: getattr(found, key) for key in ("stride", "dilation", "groups")}
    assert np.array_equal(
        oracles.conv_matrix(found.kernel, size, [(r, r) for r in reach], **made), expected
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_pattern_of_slopes_exceeds_the_bound_of_convolutions(dtype: str) -> None:
    rng = np.random.default_rng(2)
    first = rng.standard_normal((2, 1, 2, 1)).astype(dtype)
    second = rng.standard_normal((2, 1, 1, 2)).astype(dtype)
    scale = np.asarray([1.7, -0.3], dtype)
    run = run_of(
        Weighted(first, {"padding": 0}),
        Entrywise(scale=scale.reshape(1, 2, 1, 1)),
        Entrywise(0.25),
        Weighted(second, {"groups": 2, "dilation": (1, 1), "padding": ((0, 0), (1, 0))}),
    )
    bound = run_bound(run)
    size = (3, 1)
    a = oracles.conv_matrix(first.astype(float), size, 0)
    a = np.repeat(scale.astype(float), 2)[:, None] * a / 4
    b = oracles.conv_matrix(second.astype(float), (2, 1), [(0, 0), (1, 0)], groups=2)
    truth = largest_jacobian([a, b])
    assert truth <= exactly(bound)
    norms = (gn.conv_norm_bound(first), gn.conv_norm_bound(second, groups=2))
    assert bound <= 0.25 * 1.7 * math.prod(map(float, norms)) * 1.002  # each within 1e-3


def test_positive_numbers_for_each_entry_count_by_the_largest() -> None:
    w = np.asarray([[2.0, 0.0], [0.0, 1.0]])
    grid = np.asarray([[[0.5, 1.0], [0.25, 3.0], [1.0, 1.0]]])
    layers = [Weighted(w), Entrywise(scale=grid), Weighted(w)]
    assert 12 <= run_bound(run_of(*layers)) < 12.001
    assert 12 <= run_bound(run_of(Weighted(w), Entrywise(scale=-grid), Weighted(w))) < 12.001
    mixed = grid.copy()
    mixed[0, 0, 0] = -0.5
    assert not goes_on([Weighted(w)], Entrywise(scale=mixed))


def test_scales_are_absorbed_and_not_only_multiplied_in() -> None:
    """A channel that is large meets a scale that is small: the product of norms has neither."""
    w = np.asarray([[100.0, 0.0], [0.0, 1.0]])
    run = run_of(Weighted(w), Entrywise(scale=np.asarray([[0.01, -1.0]])), Weighted(np.eye(2)))
    assert 1 <= run_bound(run) < 1.001


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_of_scaled_weights_is_counted(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """With a chain's bound of what is stored and no margin, only the error terms are left."""

    def plain(layers: list[np.ndarray], **_: Any) -> float:
        return math.prod(float(abs(w.item())) for w in layers)

    monkeypatch.setattr(_sequence, "chain_bound", plain)
    monkeypatch.setattr(_sequence, "_norm", lambda w: float(abs(np.asarray(w).item())))
    rng = np.random.default_rng(3)
    below = 0
    for _ in range(300):
        w, s, t = rng.standard_normal(3).astype(dtype)
        run = [Weighted(np.asarray([[w]]))]
        run += [Entrywise(scale=np.asarray([[v]])) for v in (s, t)]
        exact = abs(Fraction(float(w)) * Fraction(float(s)) * Fraction(float(t)))
        bound = Fraction(run_bound(run))
        assert exact <= bound <= exact * (1 + Fraction(1, 2**20))
        below += Fraction(float(w) * (float(s) * float(t))) < bound
    assert below > 100


@pytest.mark.parametrize("size", [1e-300, 1e-42, 1e30, 1e300])
def test_scales_at_both_ends_of_the_range_keep_the_side(size: float) -> None:
    for dtype, w in (("float32", 1e-42), ("float64", 1e-20), ("float64", 5e-324)):
        run = run_of(
            Weighted(np.asarray([[w]], dtype)),
            Entrywise(scale=np.asarray([[size]])),
            Entrywise(scale=np.asarray([[-0.3]])),
            Weighted(np.asarray([[1e200]])),
        )
        stored = Fraction(float(np.asarray(w, dtype)))
        exact = stored * Fraction(size) * Fraction(0.3) * Fraction(1e200)
        bound = run_bound(run)
        assert math.isinf(bound) or Fraction(bound) >= exact


def test_what_is_no_chain_of_the_theorem_does_not_go_on() -> None:
    w, k = np.ones((2, 2)), np.ones((2, 2, 3))
    conv = Weighted(k, {})
    assert goes_on([], conv)
    assert goes_on([conv], Entrywise(scale=np.ones((1, 2, 1))))
    for wrong in (
        Weighted(k, {"padding_mode": "reflect"}),
        Weighted(k, {"transposed": True, "stride": (2,)}),
        Weighted(np.ones((2, 2), int)),
        Weighted(np.ones((2, 2)) * 1j),
        Weighted(np.ones((2, 2, 2))),
        Entrywise(),
        None,
    ):
        assert not goes_on([], wrong)
    for after in (
        Weighted(w),
        Weighted(np.ones((2, 3, 3)), {}),
        Weighted(np.ones((2, 2, 3, 3)), {}),
    ):
        assert not goes_on([conv], after)
    assert goes_on([conv], Weighted(k, {"stride": 2, "groups": 1}))
    assert not goes_on([conv], Entrywise(scale=np.asarray([[[1.0, -1.0]]])))  # along the samples
    assert not goes_on([conv], Entrywise(scale=np.asarray([[[1.0], [2.0], [-1.0]]])))
    assert not goes_on([Weighted(w)], Entrywise(scale=np.asarray([[1.0], [-1.0]])))  # of the batch


POOLS = {
    "maximum": Pooled(MaxPool(2)),
    "maximum of windows that overlap": Pooled(MaxPool(3, 1)),
    "average": Pooled(AvgPool(2)),
    "average of windows that overlap": Pooled(AvgPool(3, 1)),
}


def test_constants_of_poolings_are_those_of_their_windows() -> None:
    constants = [POOLS[name].constant for name in POOLS]
    assert np.allclose(constants, [1.0, 3**0.5, 0.5**0.5, 1.0], rtol=1e-15, atol=0.0)


@pytest.mark.parametrize("name", POOLS)
def test_poolings_stand_between_convolutions_and_flattening_before_a_matrix(name: str) -> None:
    pool, conv = POOLS[name], Weighted(np.ones((2, 2, 3)), {})
    flat, dense = Flattened((5,)), Weighted(np.ones((3, 10)))
    run_of(
        conv,
        Entrywise(),
        pool,
        conv,
        Entrywise(),
        pool,
        pool,
        flat,
        dense,
        Entrywise(),
        Weighted(np.ones((1, 3))),
    )
    assert not goes_on([], pool)
    assert not goes_on([dense], pool)
    assert not goes_on([conv, flat], pool)
    assert not goes_on([conv, flat], flat)
    assert not goes_on([conv, flat], conv)
    assert not goes_on([conv, pool], dense)
    assert not goes_on([conv, Flattened((4,))], dense)
    assert not goes_on([conv], Flattened((5, 1)))
    assert not goes_on([conv], Pooled(MaxPool((2, 2))))
    scale = Entrywise(scale=np.asarray([[[2.0], [-1.0]]]))
    assert goes_on([conv, pool], scale)  # of channels: on either side of it
    assert not goes_on([conv, flat], scale)
    overlaps = name == "average of windows that overlap"
    assert goes_on([conv, pool], Entrywise()) == (not overlaps)
    assert goes_on([conv, pool, conv], Entrywise())


def pooled(x: np.ndarray, pool: Any) -> np.ndarray:
    """Pool the samples of each channel, one window after the other."""
    step = pool.stride or pool.window
    starts = range(0, x.shape[1] - pool.window + 1, step)
    reduce = np.max if isinstance(pool, MaxPool) else np.mean
    return np.stack([reduce(x[:, i : i + pool.window], axis=1) for i in starts], axis=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", POOLS)
def test_no_pair_of_signals_exceeds_the_bound_with_poolings_and_scales(
    name: str, dtype: str
) -> None:
    """Written out by loops, and searched along the worst of many directions."""
    rng = np.random.default_rng(5)
    pool = POOLS[name]
    for _ in range(4):
        first, second = (rng.standard_normal((2, 2, k)).astype(dtype) for k in (2, 3))
        scale = (np.exp(rng.standard_normal(2)) * np.asarray([1, -1])).astype(dtype)
        samples = 10
        inner = pooled(np.zeros((2, samples + 1)), pool.layer).shape[1]
        outputs = (inner + 1) // 2
        head = rng.standard_normal((2, 2 * outputs)).astype(dtype)
        run = run_of(
            Weighted(first, {}), Entrywise(), pool, Entrywise(scale=scale.reshape(1, 2, 1)),
            Weighted(second, {"stride": 2}), Entrywise(0.25), Flattened((outputs,)), Weighted(head),
        )  # fmt: skip
        bound = run_bound(run, time_limit=0.3)
        a = oracles.conv_matrix(first.astype(float), (samples,), [(1, 1)])
        b = oracles.conv_matrix(second.astype(float), (inner,), [(1, 1)], stride=2)

        def net(x: np.ndarray, a: Any = a, b: Any = b, head: Any = head, scale: Any = scale) -> Any:
            z = np.maximum((a @ x).reshape(2, -1), 0)
            z = scale[:, None].astype(float) * pooled(z, pool.layer)
            return head.astype(float) @ (np.tanh(b @ z.ravel()) / 4)

        best = 0.0
        for _ in range(12):
            x = rng.standard_normal(2 * samples) * rng.choice([0.01, 0.3, 1.0])
            jacobian = np.stack([(net(x + 1e-6 * e) - net(x)) / 1e-6 for e in np.eye(x.size)], 1)
            v = np.linalg.svd(jacobian)[2][0]
            for size in (1e-3, 0.1):
                y = x + size * v
                best = max(best, np.linalg.norm(net(y) - net(x)) / np.linalg.norm(y - x))
        assert 0.02 * bound < best <= bound
        assert bound <= scaled_product(run) * (1 + 1e-9)


def test_one_layer_is_worth_it_with_a_scale_alone() -> None:
    layer, scale = Weighted(np.ones((2, 2))), Entrywise(scale=np.ones((1, 2)))
    assert not is_worth_it([layer, Entrywise()])
    assert is_worth_it([layer, scale])
    assert is_worth_it([layer, Entrywise(), layer])


def test_scales_are_multiplied_into_norms_as_well() -> None:
    rng = np.random.default_rng(4)
    for dtype in ("float32", "float64"):
        for _ in range(20):
            run, matrices = dense_run(rng, dtype)
            product = math.prod(float(np.linalg.norm(w, 2)) for w in matrices)
            assert product <= exactly(scaled_product(run)) <= product * (1 + 1e-5)


def test_one_layer_takes_no_descent() -> None:
    layer = Weighted(np.ones((1000, 1000)))
    assert work([layer, Entrywise(scale=np.ones((1, 1000)))]) == 0


def test_work_grows_with_channels_and_taps() -> None:
    small, wide = (Weighted(np.ones((c, c)), None) for c in (10, 100))
    assert work([wide, wide]) > 100 * work([small, small])
    kernel, dilated = (Weighted(np.ones((8, 8, 3, 3)), {"dilation": d}) for d in (1, 2))
    assert work([kernel, dilated]) > 2 * work([kernel, kernel])
    many = Weighted(np.ones((64, 1, 3, 3)), {"groups": 64})
    assert work([many, many]) > 100 * work([kernel, kernel])
    strided = Weighted(np.ones((8, 8, 3, 3)), {"stride": 2})
    assert work([strided, strided]) > 2 * work([kernel, kernel])  # of 16 phases
    cut = [strided, Pooled(MaxPool((2, 2))), strided]
    assert work(cut) < work([strided, strided])
    assert work([kernel, Flattened((2, 2)), Weighted(np.ones((2, 32)))]) > 0
