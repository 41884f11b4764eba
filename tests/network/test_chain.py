"""Chains: no bound is below the Jacobian of any pattern of activity, whatever the multipliers."""

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
from gramnorm.network import _coupling
from gramnorm.network._minimise import lbfgs
from tests.harness.chains import (
    conv_chain,
    coupled,
    dense_chain,
    exactly,
    guess,
    largest_jacobian,
    unrolled,
    unrolled_chain,
    vectors,
)

DATA = Path(__file__).parents[3] / "shared" / "data"


def test_theorem_holds_for_any_multipliers_of_dense_chains() -> None:
    rng = np.random.default_rng(1)
    for _ in range(2000):
        layers = dense_chain(rng)
        chain = coupled(layers)
        bound = chain.certificate(guess(rng, chain))
        assert largest_jacobian(layers) <= exactly(bound)


@pytest.mark.parametrize("axes", [1, 2])
def test_theorem_holds_for_any_multipliers_and_size_of_convolutions(axes: int) -> None:
    rng = np.random.default_rng(axes)
    seen = 0
    while seen < 100:
        kernels = conv_chain(rng, axes)
        matrices = unrolled_chain(rng, kernels)
        if matrices is None:
            continue
        seen += 1
        chain = coupled(kernels)
        assert largest_jacobian(matrices) <= exactly(chain.certificate(guess(rng, chain)))


@pytest.mark.slow
def test_public_bounds_of_dense_chains_are_above_every_pattern_and_in_order() -> None:
    rng = np.random.default_rng(3)
    closest = math.inf
    for _ in range(40):
        layers = dense_chain(rng)
        truth = largest_jacobian(layers)
        product = gn.product_bound(*(float(gn.matrix_norm_bound(w)) for w in layers))
        bound, found = gn.chain_bound(layers, return_multipliers=True)
        assert truth <= exactly(bound)
        assert bound <= product
        again = gn.chain_certificate(layers, found)
        assert truth <= exactly(again) <= 1.001 * product
        assert again == pytest.approx(bound, rel=2e-5)
        assert truth <= exactly(gn.chain_certificate(layers, vectors(rng, layers)))
        closest = min(closest, bound / truth)
    assert closest < 1 + 1e-6  # some are attained, so the assertions above can fail


@pytest.mark.slow
@pytest.mark.parametrize("axes", [1, 2])
def test_public_bounds_of_convolutions_are_above_every_pattern(axes: int) -> None:
    rng = np.random.default_rng(10 + axes)
    seen = 0
    while seen < 8:
        kernels = conv_chain(rng, axes)
        if (matrices := unrolled_chain(rng, kernels)) is None:
            continue
        seen += 1
        truth = largest_jacobian(matrices)
        bound, found = gn.chain_bound(kernels, return_multipliers=True)
        assert truth <= exactly(bound)
        assert bound <= gn.product_bound(*(float(gn.conv_norm_bound(k)) for k in kernels))
        assert truth <= exactly(gn.chain_certificate(kernels, found))
        assert truth <= exactly(gn.chain_certificate(kernels, vectors(rng, kernels)))


def test_convolutions_on_a_long_circle_have_nearly_the_bound_of_every_size() -> None:
    rng = np.random.default_rng(4)
    kernels = [rng.standard_normal(s) for s in ((2, 1, 3), (3, 2, 4), (2, 3, 1), (1, 2, 2))]
    multipliers = vectors(rng, kernels)
    size = 24
    every = gn.chain_certificate(kernels, multipliers)
    one = gn.chain_certificate(
        [unrolled(k, (size,), None) for k in kernels], [np.repeat(x, size) for x in multipliers]
    )
    assert 0.97 * every < one <= every * (1 + 1e-4)


@pytest.mark.parametrize("shape", [(2,), (1, 2), (2, 1)])
@pytest.mark.parametrize(
    ("last", "truth"),
    [
        ([[1.0, 0.0], [0.0, -1.0]], 2.0),  # x(t) - x(t + 2) has the gain 2 at the frequency pi / 2
        ([[0.0, 1.0], [-1.0, 0.0]], 1.0),  # nothing if both channels are active, else a shift
    ],
)
def test_delays_of_channels_add_up_in_the_direction_of_the_signal(
    shape: tuple[int, ...], last: Any, truth: float
) -> None:
    first = np.asarray([[1.0, 0.0], [0.0, 1.0]]).reshape(2, 1, *shape)
    kernels = [first, np.asarray(last).reshape(1, 2, *shape)]
    for bound in (gn.chain_bound(kernels), gn.chain_certificate(kernels, [np.ones(2)])):
        assert truth <= bound < truth * (1 + 1e-3)


@pytest.mark.parametrize("depth", range(1, 9))
def test_chain_of_numbers_is_above_their_exact_product_and_close(depth: int) -> None:
    rng = np.random.default_rng(depth)
    for _ in range(5):
        layers = list(np.exp(5 * rng.standard_normal((depth, 1, 1))))
        exact = math.prod(Fraction(float(w[0, 0])) for w in layers)
        multipliers = list(1 / np.cumprod(np.ravel(layers))[:-1, None])  # every block then is 1
        for bound in (gn.chain_bound(layers), gn.chain_certificate(layers, multipliers)):
            assert exact <= Fraction(bound) <= exact * Fraction(1.001)


def test_rounding_of_scaled_weights_and_of_the_power_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the norm of what is stored and no nudge, only the term for scaled entries is left."""
    monkeypatch.setattr(_coupling, "up", lambda x: x)
    monkeypatch.setattr(
        _coupling, "matrix_norm_bound", lambda b, **_: fractions.length_above(np.ravel(b).tolist())
    )
    rng = np.random.default_rng(14)
    for _ in range(300):
        first, last, *x = np.exp(rng.standard_normal(5))
        chain = coupled([np.asarray([[first]]), np.asarray([[last]])])
        bound = Fraction(chain.certificate(np.asarray(x)))
        a, hidden, b = (Fraction(float(v)) for v in x)
        scales = [Fraction(2) ** int(np.frexp(w)[1]) for w in (first, last)]
        assert math.prod(scales) == chain.factor
        w, v = Fraction(float(first)) / scales[0], Fraction(float(last)) / scales[1]
        exact = (a / b) / 2 * ((w * hidden / a) ** 2 + (b * v / hidden) ** 2) * math.prod(scales)
        assert exact <= bound <= exact * Fraction(1 + 1e-14)


def test_two_layers_attain_half_the_norm_of_a_sum() -> None:
    rng = np.random.default_rng(5)
    first, last = rng.standard_normal((2, 4, 4))
    x = np.exp(rng.standard_normal(4))
    a, b = x[:, None] * first, last / x
    t = np.linalg.norm(a, 2) / np.linalg.norm(b, 2)
    halves = [
        np.linalg.norm(a @ a.T / s + s * b.T @ b, 2) / 2 for s in t * np.geomspace(0.2, 5, 400)
    ]
    assert gn.chain_certificate([first, last], [x]) == pytest.approx(min(halves), rel=1e-4)


def test_common_factors_of_multipliers_and_powers_of_two_in_weights_do_not_matter() -> None:
    rng = np.random.default_rng(6)
    layers = [rng.standard_normal(s) for s in ((3, 2), (4, 3), (2, 4))]
    x = vectors(rng, layers)
    plain = gn.chain_certificate(layers, x)
    for factor in (1e-300, 1e-10, 1e300):
        found = gn.chain_certificate(layers, [factor * v for v in x])
        assert found == pytest.approx(plain, rel=1e-4)
    moved = [layers[0] * 2.0**900, layers[1] * 2.0**-900, layers[2] * 2.0**-30]
    scaled = [x[0] * 2.0**-900, x[1]]
    assert gn.chain_certificate(moved, scaled) * 2.0**30 == pytest.approx(plain, rel=1e-4)
    assert gn.chain_bound(moved) * 2.0**30 == pytest.approx(gn.chain_bound(layers), rel=1e-4)


def test_weights_at_both_ends_of_the_range_keep_the_side() -> None:
    rng = np.random.default_rng(7)
    base = [rng.standard_normal((3, 3)) for _ in range(3)]
    for powers in ((1000, -1060, 60), (-1000, -20, 1000), (900, 900, -1000), (-500, -500, -500)):
        layers = [np.ldexp(np.round(w * 2**10), p - 10) for w, p in zip(base, powers, strict=True)]
        exact = Fraction(
            largest_jacobian([np.ldexp(w, -p) for w, p in zip(layers, powers, strict=True)])
        )
        exact *= Fraction(1 - 1e-12) * Fraction(2) ** sum(powers)
        for bound in (gn.chain_bound(layers), gn.chain_certificate(layers, [np.ones(3)] * 2)):
            assert math.isinf(bound) or Fraction(bound) >= exact


def test_multipliers_of_any_size_are_sound() -> None:
    rng = np.random.default_rng(8)
    layers = [rng.standard_normal(s) for s in ((3, 2), (3, 3), (2, 3))]
    truth = largest_jacobian(layers)
    for extreme in (5e-324, 1e-200, 1e200, np.finfo(np.float64).max):
        for place in range(3):
            x = [np.ones(3), np.ones(3)]
            x[0][place] = extreme
            assert truth <= gn.chain_certificate(layers, x)


def test_coupled_multipliers_cannot_creep_in() -> None:
    """Multipliers that couple neurons give 1 for this network, whose constant is the root of 8."""
    layers = [np.asarray([[-2.0, -2.0], [-2.0, -1.0]]), np.asarray([[1.0, -1.0]])]
    assert math.sqrt(8) <= gn.chain_bound(layers) < math.sqrt(8) * (1 + 1e-6)


def test_all_libraries_and_types_give_the_bound_of_the_stored_weights(be: Any) -> None:
    rng = np.random.default_rng(9)
    host = [rng.standard_normal(s) for s in ((3, 2), (2, 3))]
    for dtype in ("float32", "float64"):
        layers = [be.asarray(w, dtype) for w in host]
        stored = [be.to_numpy(w).astype(np.float64) for w in layers]
        x = be.asarray(np.asarray([1.0, 2.0, 0.5]), dtype)
        assert gn.chain_bound(layers) == gn.chain_bound(stored)
        assert gn.chain_certificate(layers, [x]) == gn.chain_certificate(
            stored, [np.asarray([1.0, 2.0, 0.5])]
        )


@pytest.mark.parametrize(
    ("entries", "expected"),
    [((math.nan, 1.0), math.nan), ((math.inf, 0.0), math.inf), ((math.inf, math.nan), math.nan)],
)
def test_weights_that_are_no_numbers_show_in_the_bound(entries: Any, expected: float) -> None:
    layers = [np.asarray([[entry]]) for entry in entries]
    for bound in (gn.chain_bound(layers), gn.chain_certificate(layers, [np.ones(1)])):
        assert bound == pytest.approx(expected, nan_ok=True)


def test_zero_and_empty_layers_give_zero() -> None:
    ones = np.ones((2, 2))
    assert gn.chain_bound([ones, np.zeros((2, 2)), ones]) == 0.0
    assert gn.chain_certificate([ones, np.zeros((2, 2))], [np.ones(2)]) == 0.0
    assert gn.chain_bound([np.ones((0, 2)), np.ones((2, 0))]) == 0.0


def test_weights_that_are_read_as_zeros_are_counted() -> None:
    torch = pytest.importorskip("torch")
    layers = [torch.tensor([[1e-40]]), torch.tensor([[1e30]])]
    truth = Fraction(layers[0].item()) * Fraction(layers[1].item())
    assert torch.set_flush_denormal(True) or pytest.skip("this processor has no such mode")
    try:
        bounds = [gn.chain_bound(layers), gn.chain_certificate(layers, [np.ones(1)])]
    finally:
        torch.set_flush_denormal(False)
    bounds.append(gn.chain_bound(layers))
    assert all(truth <= Fraction(bound) for bound in bounds)


def test_neurons_without_weights_do_not_disturb() -> None:
    layers = [np.asarray([[3.0, 4.0], [0.0, 0.0]]), np.asarray([[2.0, 0.0], [0.0, 0.0]])]
    assert 10.0 <= gn.chain_bound(layers) < 10.0 * (1 + 1e-5)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_multipliers_that_are_not_positive_and_finite_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="multipliers 0 must be positive and finite"):
        gn.chain_certificate([np.ones((2, 2))] * 2, [np.asarray([1.0, wrong])])


@pytest.mark.parametrize(
    ("layers", "multipliers", "error", "match"),
    [
        ([], [], ValueError, "one array or more"),
        (np.ones((2, 2)), [], TypeError, "list or tuple"),
        ([np.ones(3)], [], ValueError, "shape"),
        ([np.ones((2, 2)), np.ones((2, 3))], [np.ones(2)], ValueError, "2 inputs"),
        ([np.ones((2, 2)), np.ones((2, 2, 3))], [np.ones(2)], ValueError, "as many axes"),
        ([np.ones((2, 2)) * 1j], [], TypeError, "real floating"),
        ([np.ones((2, 2), dtype=int)], [], TypeError, "real floating"),
        ([[[1.0]]], [], TypeError, "must be an array"),
        ([np.ones((2, 2))] * 2, [], ValueError, "got 0"),
        ([np.ones((2, 2))] * 2, [np.ones(2)] * 3, ValueError, "got 3"),
        ([np.ones((2, 2))] * 2, [np.ones(3)], ValueError, "shape"),
        ([np.ones((2, 2))] * 2, [np.ones((2, 2))], ValueError, "shape"),
        ([np.ones((2, 2))] * 2, [np.ones(2, dtype=int)], TypeError, "real floating"),
        ([np.ones((2, 2))] * 2, [1.0], TypeError, "must be an array"),
        ([np.ones((2, 2))] * 2, np.ones((1, 2)), TypeError, "list or tuple"),
    ],
)
def test_misuse_is_explained(layers: Any, multipliers: Any, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        gn.chain_certificate(layers, multipliers)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_time_limit_is_positive(limit: float) -> None:
    with pytest.raises(ValueError, match="time_limit"):
        gn.chain_bound([np.ones((2, 2))], time_limit=limit)


def test_a_time_limit_returns_what_was_reached() -> None:
    rng = np.random.default_rng(11)
    layers = list(rng.standard_normal((5, 24, 24)))
    product = gn.product_bound(*(float(gn.matrix_norm_bound(w)) for w in layers))
    early, found = gn.chain_bound(layers, time_limit=1e-9, return_multipliers=True)
    late = gn.chain_bound(layers)
    assert late < early <= product
    assert gn.chain_certificate(layers, found) <= early * 1.01
    assert late < 0.4 * product


def test_arguments_are_not_written_to() -> None:
    rng = np.random.default_rng(12)
    layers = list(rng.standard_normal((3, 2, 2)))
    x = [np.ones(2), np.ones(2)]
    copies = [w.copy() for w in layers]
    for array in (*layers, *x):
        array.flags.writeable = False
    gn.chain_bound(layers)
    gn.chain_certificate(layers, x)
    assert all(np.array_equal(w, c) for w, c in zip(layers, copies, strict=True))


@pytest.mark.parametrize("axes", [0, 1, 2])
def test_gradient_is_that_of_the_smooth_value(axes: int) -> None:
    rng = np.random.default_rng(13)
    layers = dense_chain(rng) if axes == 0 else conv_chain(rng, axes)
    while len(layers) < 3:
        layers = dense_chain(rng) if axes == 0 else conv_chain(rng, axes)
    chain = coupled(layers)
    y = rng.standard_normal(sum(chain.sizes))
    _, gradient = chain.value_and_gradient(y, steps=3, density=4)
    for i, step in enumerate(1e-6 * np.eye(len(y))):
        ahead, behind = (
            chain.value_and_gradient(y + s, steps=3, density=4)[0] for s in (step, -step)
        )
        assert gradient[i] == pytest.approx((ahead - behind) / 2e-6, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 4)])
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_smooth_value_and_gradient_are_those_of_gram_steps(
    shape: tuple[int, int], steps: int
) -> None:
    b = np.random.default_rng(15).standard_normal(shape)
    value, gradient = _coupling._schatten_norm_and_gradient(b, power=2.0 ** (steps + 1))
    expected, slope = gn.matrix_norm_value_and_grad(b, steps=steps)
    assert value == pytest.approx(float(expected), rel=1e-12)
    assert gradient == pytest.approx(slope, rel=1e-9, abs=1e-12)


def test_descent_finds_the_minimum_of_a_narrow_valley() -> None:
    def rosenbrock(x: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = x
        value = (1 - a) ** 2 + 100 * (b - a * a) ** 2
        return value, np.asarray([-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)])

    *_, last = lbfgs(rosenbrock, np.asarray([-1.2, 1.0]), rtol=1e-14)
    assert last == pytest.approx([1.0, 1.0], abs=1e-5)


def test_descent_stops_where_there_is_none() -> None:
    assert not list(lbfgs(lambda x: (0.0, 0 * x), np.ones(2), rtol=1e-9))
    assert not list(lbfgs(lambda x: (math.nan, x), np.ones(2), rtol=1e-9))


needs_networks = pytest.mark.skipif(
    not (DATA / "networks.npz").is_file(), reason="public networks are not at hand"
)


def public(name: str) -> tuple[list[np.ndarray], float]:
    records = json.loads((DATA / "networks.json").read_text())["networks"]
    (record,) = (r for r in records if r["name"] == name)
    with np.load(DATA / "networks.npz") as weights:
        layers = [weights[key].astype(np.float64) for key in record["layers"]]
    return layers, record["prototype_certified"]


@needs_networks
@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("lipsdp_random_weights", 36.48222, 36.4825),
        ("fnn3_seed0", 9.7286138, 9.7286139 * (1 + 1e-6)),
        ("fnn3_seed1", 9.7917862, 9.7917863 * (1 + 1e-6)),
        ("lipsdp_mnist_weights", 24.087, 24.3664 * (1 + 1e-4)),
    ],
)
def test_public_dense_networks_reach_their_semidefinite_bound(
    name: str, least: float, most: float
) -> None:
    layers, _ = public(name)
    assert least <= gn.chain_bound(layers) <= most


@needs_networks
@pytest.mark.parametrize(("name", "ratio"), [("mnist_c8_d2", 1.0005), ("mnist_c8_d4", 1.0005)])
def test_public_convolutions_come_close_to_their_best_known_bound(name: str, ratio: float) -> None:
    kernels, best = public(name)
    assert gn.chain_bound(kernels) <= ratio * best


def causal(kernel: np.ndarray, samples: int) -> np.ndarray:
    """Return the matrix of a correlation padded in front alone, samples before channels."""
    c_out, c_in, taps = kernel.shape
    matrix = np.zeros((samples, c_out, samples, c_in))
    for t, tap in itertools.product(range(samples), range(taps)):
        if (read := t + tap - taps + 1) >= 0:
            matrix[t, :, read] = kernel[:, :, tap]
    return matrix.reshape(samples * c_out, -1)


def averages(samples: int, channels: int) -> np.ndarray:
    """Return the matrix of an average over pairs of samples."""
    return np.kron(np.kron(np.eye(samples // 2), np.full((1, 2), 0.5)), np.eye(channels))


@needs_networks
@pytest.mark.slow
@pytest.mark.parametrize("name", ["12_42", "13_15", "11_35", "12_27", "03_07_16_30"])
def test_public_networks_of_one_axis_reach_their_semidefinite_bound(name: str) -> None:
    full = name if "03_07" in name else f"03_08_{name}"
    (first, second, hidden, last), best = public(f"ecg_CNN_23_{full}")
    layers = [
        causal(first, 128),
        causal(second, 64) @ averages(128, 2),
        hidden @ averages(64, 3),
        last,
    ]
    assert gn.chain_bound(layers) <= 1.0005 * best


@needs_networks
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist_c8_d8", "mnist_c16_d2", "mnist_c16_d4"])
def test_deeper_and_wider_public_convolutions_come_close(name: str) -> None:
    kernels, best = public(name)
    assert gn.chain_bound(kernels) <= 1.001 * best
