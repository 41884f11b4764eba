"""Chains by fixed steps: above every pattern of activity, and derived as differences say."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._rigour.model import Precision
from gramnorm.network import _fixed_steps
from tests.harness.chains import dense_chain, exactly, largest_jacobian, vectors
from tests.harness.networks import largest_choice, network

STEPS = 4


def mixed(rng: np.random.Generator) -> tuple[list[np.ndarray], Any]:
    """Return weights, and the chain of all kinds of layers that has them."""
    shapes = (3, 2, 2, 3), (4, 3, 3, 2), (4, 2, 2, 2), (3, 16), (2, 3)
    weights = [rng.standard_normal(s) / math.sqrt(math.prod(s[1:])) for s in shapes]

    def layers(first: Any, second: Any, third: Any, head: Any, last: Any) -> list[Any]:
        return [
            first,
            gn.AvgPool((1, 2)),
            gn.ConvLayer(second, stride=(2, 1)),
            gn.MaxPool(2, 1),
            gn.ConvLayer(third, dilation=2, groups=2),
            gn.Flatten(2 * [2]),
            head,
            last,
        ]

    return weights, layers


def with_ends(x: list[np.ndarray]) -> list[np.ndarray]:
    return [np.asarray([1.3]), *x, np.asarray([0.7])]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bound_of_dense_chains_is_above_every_pattern_for_any_multipliers(dtype: str) -> None:
    rng = np.random.default_rng(1)
    for i in range(300):
        layers = [w.astype(dtype) for w in dense_chain(rng)]
        x = [v.astype(dtype) for v in vectors(rng, layers)]
        x = with_ends(x) if i % 3 else x
        bound = gn.chain_gram_iteration(layers, x, steps=i % 10)
        assert bound.dtype == (np.float64 if i % 3 and layers == [] else dtype)
        assert largest_jacobian([w.astype(float) for w in layers]) <= exactly(float(bound))


def test_bound_of_chains_of_all_layers_is_above_every_choice() -> None:
    rng = np.random.default_rng(2)
    for i in range(40):
        made = network(rng)
        x = vectors(rng, made.layers)
        options = {"steps": 5, "density": 2 + i % 5, "slopes": made.slopes}
        bound = float(gn.chain_gram_iteration(made.layers, with_ends(x), **options))
        assert largest_choice(rng, made) <= exactly(bound)


def test_many_steps_and_frequencies_come_close_to_the_certificate() -> None:
    rng = np.random.default_rng(3)
    weights, layers = mixed(rng)
    chain, x = layers(*weights), [np.exp(rng.standard_normal(len(w))) for w in weights[:-1]]
    slopes = [1.0, 0.25, 1.0, 0.5]
    certified = gn.chain_certificate(chain, x, slopes=slopes)
    options = {"steps": 6, "density": 6, "slopes": slopes}
    bound = gn.chain_gram_iteration(chain, x, **options)
    assert certified < 1.001 * bound < 1.15 * certified
    dense = [rng.standard_normal(s) for s in ((3, 2), (4, 3), (2, 4))]
    x = vectors(rng, dense)
    moved = [1e-3 * dense[0], 1e3 * dense[1], 1e3 * dense[2]]
    for found in (
        gn.chain_gram_iteration(dense, x, steps=14),
        gn.chain_gram_iteration(moved, [1e3 * x[0], x[1]], steps=14) / 1e3,
    ):
        assert found == pytest.approx(gn.chain_certificate(dense, x), rel=1e-3)


def differences(function: Any, arrays: list[np.ndarray], rng: np.random.Generator) -> Any:
    """Return a direction for each array, and the derivative along each by central differences."""
    directions, slopes = [rng.standard_normal(a.shape) for a in arrays], []
    for i, d in enumerate(directions):
        both = [
            float(function([a + h * d if j == i else a for j, a in enumerate(arrays)]))
            for h in (1e-5, -1e-5)
        ]
        slopes.append((both[0] - both[1]) / 2e-5)
    return directions, slopes


@pytest.mark.parametrize(
    ("library", "kind"),
    [
        ("torch", "dense"),
        ("torch", "all layers"),
        ("torch", "ends found"),
        ("jax", "dense"),
    ],
)
def test_gradient_in_weights_and_multipliers_is_that_of_differences(
    library: str, kind: str
) -> None:
    module = pytest.importorskip(library)
    rng = np.random.default_rng(4)
    if kind == "all layers":
        weights, layers = mixed(rng)
    else:
        weights, layers = [rng.standard_normal(s) for s in ((3, 2), (4, 3), (2, 4))], list_of
    x = [0.3 * rng.standard_normal(len(w)) for w in weights[:-1]]
    logs = x if kind == "ends found" else [np.zeros(1), *x, np.zeros(1)]
    count = len(weights)

    def value(arrays: list[Any], exp: Any = np.exp) -> Any:
        chain, x = layers(*arrays[:count]), [exp(a) for a in arrays[count:]]
        return gn.chain_gram_iteration(chain, x, steps=STEPS, density=3)

    arrays = [*weights, *logs]
    directions, slopes = differences(value, arrays, rng)
    if library == "torch":
        tensors = [module.tensor(a, requires_grad=True) for a in arrays]
        found = value(tensors, module.exp)
        found.backward()
        found = found.detach()
        gradients = [t.grad.numpy() for t in tensors]
    else:
        with module.enable_x64(True):
            arrays = [module.numpy.asarray(a) for a in arrays]
            differentiated = module.value_and_grad(lambda a: value(a, module.numpy.exp))
            found, gradients = module.jit(differentiated)(arrays)
    assert float(found) == pytest.approx(float(value([*weights, *logs])), rel=1e-12)
    for gradient, direction, slope in zip(gradients, directions, slopes, strict=True):
        along = float(np.sum(np.asarray(gradient) * direction))
        assert along == pytest.approx(slope, rel=1e-5, abs=1e-6)
        assert along != 0


def list_of(*weights: Any) -> list[Any]:
    return list(weights)


def test_library_device_and_type_of_the_layers_are_kept(be: Any) -> None:
    if be.id.startswith("jax"):
        pytest.skip("it compiles operation by operation, and its gradient is compared above")
    rng = np.random.default_rng(5)
    layers = [rng.standard_normal(s) for s in ((3, 2), (2, 3))]
    x = [np.asarray([1.3]), np.exp(rng.standard_normal(3)), np.asarray([0.7])]
    matrices = [be.asarray(w, "float32") for w in layers]
    bound = gn.chain_gram_iteration(matrices, [be.asarray(v, "float32") for v in x], steps=2)
    assert be.is_at_home(bound)
    assert bound.shape == ()
    assert bound.dtype == be.xp.float32
    reference = gn.chain_gram_iteration(layers, x, steps=2)
    assert float(be.to_numpy(bound)) == pytest.approx(float(reference), rel=1e-4)


@pytest.mark.parametrize("shape", [(6, 6), (3, 2, 4)])
def test_scaled_entries_that_all_err_by_two_units_are_counted(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, plain = 2.0**-10, _fixed_steps._coupling

    def wrong(*args: Any) -> Any:
        b, largest = plain(*args)
        return b * (1 - 2 * unit), largest

    monkeypatch.setattr(_fixed_steps, "_coupling", wrong)
    precision = Precision(unit, 1e-300, complex=False)
    monkeypatch.setattr(_fixed_steps, "precision_of", lambda _: precision)
    monkeypatch.setattr(_fixed_steps, "_ROUNDINGS", 0)
    norm = math.prod(shape[2:]) * math.sqrt(shape[0] * shape[1])
    ends = [np.ones(1), np.ones(1)]
    bound = gn.chain_gram_iteration([np.ones(shape)], ends, steps=8, density=40)
    assert norm <= bound <= 1.02 * norm


def test_underflow_of_scaled_entries_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries below a large smallest number are read as zeros, and so are their products."""
    tiny = 1e-3
    plain = _fixed_steps._coupling

    def flushed(*args: Any) -> Any:
        b, largest = plain(*args)
        return np.where(np.abs(b) <= tiny * largest, 0.0, b), largest

    monkeypatch.setattr(_fixed_steps, "_coupling", flushed)
    small = 0.9 * tiny * np.ones((3, 1, 2))
    ends = [np.ones(1), np.ones(1)]
    missed = gn.chain_gram_iteration([small], ends, steps=6)
    precision = Precision(2.0**-53, tiny, complex=False)
    monkeypatch.setattr(_fixed_steps, "precision_of", lambda _: precision)
    monkeypatch.setattr(_fixed_steps, "_times", lambda value, factor: value * factor)
    bound = gn.chain_gram_iteration([small], ends, steps=6)
    assert missed < 0.1 * np.linalg.norm(small.sum(-1)) < np.linalg.norm(small.sum(-1)) <= bound


def test_products_are_rounded_up_and_do_not_vanish() -> None:
    rng = np.random.default_rng(6)
    info = np.finfo(np.float32)
    pairs = np.exp(rng.standard_normal((2000, 2))).astype(np.float32)
    small = np.exp(rng.uniform(-90, -40, (200, 2))).astype(np.float32)
    for a, b in (*pairs, *small):
        found = _fixed_steps._times(np.asarray([a]), np.asarray([b]))[0]
        exact = Fraction(float(a)) * Fraction(float(b))
        assert exact * Fraction(1 + 2.0**-22) <= Fraction(float(found))
        least = Fraction(float(info.smallest_normal))
        assert Fraction(float(found)) <= exact * Fraction(1 + 2.0**-19) + 5 * least
    quantum = np.asarray([info.smallest_subnormal])  # half of it is read as zero
    found = _fixed_steps._times_power(np.asarray([1e30], dtype=np.float32), quantum, 1)
    assert found >= 1e30 * float(quantum[0]) / 2


def test_peaks_between_the_frequencies_are_counted() -> None:
    rng = np.random.default_rng(7)
    between = 0
    for _ in range(40):
        kernel = rng.standard_normal((2, 2, 3))
        bound = float(gn.chain_gram_iteration([kernel], [np.ones(1)] * 2, steps=9, density=2))
        lower = float(gn.conv_norm_bracket(kernel).lower)
        assert lower <= bound
        between += bound * math.cos(math.pi / 6) < lower  # without the factor it were below
    assert between > 5


@pytest.mark.parametrize("value", [0.0, -1.0, 1e300, 5e-324])
def test_numbers_that_are_no_multipliers_give_a_bound_all_the_same(value: float) -> None:
    rng = np.random.default_rng(8)
    for dtype in (np.float32, np.float64):
        layers = [rng.standard_normal(s).astype(dtype) for s in ((3, 2), (3, 3), (2, 3))]
        x = with_ends([np.ones(3), np.ones(3)])
        x[1][0] = value
        with np.errstate(over="ignore", under="ignore"):
            x = [v.astype(dtype) for v in x]
        bound = float(gn.chain_gram_iteration(layers, x, steps=3))
        assert largest_jacobian([w.astype(float) for w in layers]) <= exactly(bound)


def test_special_weights_and_multipliers() -> None:
    ones = [np.ones(1), np.ones(2), np.ones(1)]

    def bound(entry: float, x: list[np.ndarray] = ones) -> float:
        layers = [np.asarray([[entry], [1.0]]), np.ones((1, 2))]
        return float(gn.chain_gram_iteration(layers, x, steps=2))

    assert math.isnan(bound(math.nan))
    assert math.isnan(bound(1.0, [np.ones(1), np.asarray([1.0, math.nan]), np.ones(1)]))
    assert bound(math.inf) == math.inf
    assert bound(math.inf, ones[1:2]) == math.inf
    assert gn.chain_gram_iteration([np.ones((0, 2)), np.ones((3, 0))], [np.ones(0)], steps=1) == 0
    zero = gn.chain_gram_iteration([np.zeros((2, 2))], [], steps=1)
    assert 0 <= zero < 1e-300


def test_half_precision_is_bounded_in_single_and_the_widest_type_counts() -> None:
    rng = np.random.default_rng(9)
    layers = [rng.standard_normal((3, 2)).astype("float16"), rng.standard_normal((2, 3))]
    x = [np.ones(3, dtype=np.float32)]
    assert gn.chain_gram_iteration(layers[:1], [], steps=2).dtype == np.float32
    assert gn.chain_gram_iteration(layers, x, steps=2).dtype == np.float64


def test_wrong_arguments_are_named() -> None:
    layers, x = [np.ones((3, 2)), np.ones((1, 3))], [np.ones(3)]
    with pytest.raises(ValueError, match=r"multipliers must have the shapes \[\(3,\)\]"):
        gn.chain_gram_iteration(layers, [np.ones(2)], steps=1)
    with pytest.raises(ValueError, match="layer 1 must have 3 inputs"):
        gn.chain_gram_iteration([layers[0], np.ones((1, 2))], x, steps=1)
    with pytest.raises(ValueError, match="density"):
        gn.chain_gram_iteration(layers, x, steps=1, density=1)
    with pytest.raises(ValueError, match="steps"):
        gn.chain_gram_iteration(layers, x, steps=-1)
    with pytest.raises(TypeError, match="layer 0 must hold real floating numbers"):
        gn.chain_gram_iteration([np.ones((3, 2), dtype=int), layers[1]], x, steps=1)
    with pytest.raises(TypeError, match="layer 0 is a Residual"):
        gn.chain_gram_iteration([gn.Residual(layers), layers[0]], x, steps=1)
    with pytest.raises(ValueError, match="must be positive and finite"):
        gn.chain_gram_iteration(layers, [np.zeros(3)], steps=1)


def test_ends_are_not_searched_for_where_there_are_no_values() -> None:
    jax = pytest.importorskip("jax")

    def bound(w: Any) -> Any:
        return gn.chain_gram_iteration([w, w], [w[0]], steps=1)

    with pytest.raises(TypeError, match="in front and one for the output"):
        jax.jit(bound)(jax.numpy.ones((2, 2)))
