"""Chains of all kinds of layers: strides, poolings, flattening, slopes; and what does not fit."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gramnorm as gn
from tests.harness.chains import coupled, exactly, guess, vectors
from tests.harness.networks import (
    Network,
    choices,
    correlation,
    jacobian,
    largest_choice,
    network,
    windows,
)

ONE = np.ones((1, 1, 1))


@pytest.mark.parametrize("seed", range(3))
def test_theorems_hold_for_any_multipliers_of_all_kinds_of_layers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    closest = math.inf
    for _ in range(40):
        made = network(rng)
        truth = largest_choice(rng, made)
        bound = coupled_bound(rng, made)
        assert truth <= exactly(bound)
        closest = min(closest, bound / truth if truth else math.inf)
    assert closest < 1.1  # so the assertion above can fail


def coupled_bound(rng: np.random.Generator, made: Network) -> float:
    chain = coupled(made.layers, made.slopes)
    return chain.certificate(guess(rng, chain))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [20, pytest.param(21, marks=pytest.mark.slow)])
def test_public_bounds_of_all_kinds_of_layers_are_in_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(3 if seed == 20 else 20):
        made = network(rng)
        truth = largest_choice(rng, made)
        bound, found = gn.chain_bound(made.layers, slopes=made.slopes, return_multipliers=True)
        assert truth <= exactly(bound) <= exactly(product(made))
        for x in (found, vectors(rng, made.layers)):
            assert truth <= exactly(gn.chain_certificate(made.layers, x, slopes=made.slopes))


def product(made: Network) -> float:
    """Return the product of norms, of constants of poolings and of slopes."""
    norms: list[float] = list(made.slopes)
    for layer in made.layers:
        if isinstance(layer, gn.ConvLayer):
            how = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
            norms.append(float(gn.conv_norm_bound(layer.kernel, **how)))
        elif isinstance(layer, np.ndarray):
            one = gn.matrix_norm_bound if layer.ndim == 2 else gn.conv_norm_bound
            norms.append(float(one(layer)))
        elif isinstance(layer, gn.AvgPool):
            mean = np.full((1, 1, *layer.window), 1 / math.prod(layer.window))
            norms.append(
                1.001 * float(gn.conv_norm_bound(mean, stride=layer.stride or layer.window))
            )
        elif isinstance(layer, gn.MaxPool):
            described = zip(layer.window, layer.stride or layer.window, layer.dilation, strict=True)
            most = math.prod(overlap(k, s, d) for k, s, d in described)
            norms.append(most**0.5 * (1 + 1e-15))
    return gn.product_bound(*norms)


def overlap(window: int, stride: int, dilation: int) -> int:
    """Return in how many windows a sample of a long axis lies at most, by counting."""
    _, reads = windows((60,), (window,), [(0, 0)], (stride,), (dilation,))
    return max(sum(i in read for read in reads) for i in range(20, 40))


def test_a_long_circle_has_nearly_the_bound_of_every_size_with_strides() -> None:
    """Phases that share multipliers, each read by the right tap: else the two would differ."""
    rng = np.random.default_rng(4)
    layers = [
        gn.ConvLayer(rng.standard_normal((2, 1, 3)), stride=2),
        gn.ConvLayer(rng.standard_normal((3, 2, 4)), dilation=2),
        gn.AvgPool(2),
        gn.ConvLayer(rng.standard_normal((2, 3, 3)), stride=3),
        rng.standard_normal((2, 2, 2)),
    ]
    multipliers = vectors(rng, layers)
    shape, matrices, sizes = (144,), [], []
    mean = np.eye(144 // 2 * 3)
    for layer in layers:
        if isinstance(layer, gn.AvgPool):
            before = math.prod(shape)
            shape, reads = windows(shape, (2,), None, (2,), (1,))
            mean = np.kron(np.eye(3), correlation(np.full((1, 1, 2), 0.5), reads, before))
            continue
        k = layer.kernel if isinstance(layer, gn.ConvLayer) else layer
        s, d = (layer.stride, layer.dilation) if isinstance(layer, gn.ConvLayer) else (1, 1)
        before = math.prod(shape)
        shape, reads = windows(shape, k.shape[2:], None, (s,), (d,))
        matrices.append(correlation(k, reads, before))
        sizes.append(math.prod(shape))
    matrices[2] = matrices[2] @ mean
    repeated = [np.repeat(x, n) for x, n in zip(multipliers, sizes, strict=False)]
    every = gn.chain_certificate(layers, multipliers)
    one = gn.chain_certificate(matrices, repeated)
    assert 0.98 * every < one <= every * (1 + 1e-3)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_zeros_of_dilation_and_groups_may_be_written_out(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    first, second = rng.standard_normal((4, 1, *shape)), rng.standard_normal((2, 2, *shape))
    spread = np.zeros((2, 4, *(3 * k - 2 for k in shape)))
    each = tuple(slice(None, None, 3) for _ in shape)
    spread[(0, slice(2), *each)], spread[(1, slice(2, 4), *each)] = second[0], second[1]
    x = [np.exp(rng.standard_normal(4))]
    grouped = [first, gn.ConvLayer(second, dilation=3, groups=2)]
    assert gn.chain_certificate(grouped, x) == gn.chain_certificate([first, spread], x)


def test_an_average_is_part_of_the_next_kernel() -> None:
    rng = np.random.default_rng(6)
    first, second = rng.standard_normal((2, 1, 3, 2)), rng.standard_normal((3, 2, 2, 2))
    joined = np.repeat(np.repeat(second, 2, axis=2), 2, axis=3) / 4
    x = [np.exp(rng.standard_normal(2))]
    pooled = gn.chain_certificate([first, gn.AvgPool(2), second], x)
    assert pooled == pytest.approx(
        gn.chain_certificate([first, gn.ConvLayer(joined, stride=2)], x), rel=2e-4
    )


def test_averages_that_overlap_cut_the_chain() -> None:
    """At eight samples the mean of all and (1, -1) around it make two outputs of opposite sign."""
    layers = [ONE, gn.AvgPool(8, 1), np.asarray([[[1.0, -1.0]]])]
    truth = np.linalg.norm(np.outer([-1.0, 1.0], np.full(8, 1 / 8)), 2)
    assert truth == pytest.approx(0.5)
    assert gn.chain_bound(layers) >= truth * (1 - 1e-15)
    assert len(coupled(layers).segments) == 2
    assert len(coupled([ONE, gn.AvgPool(8), layers[-1]]).segments) == 1


def test_constants_of_maxima_are_attained() -> None:
    for window, stride, truth in ((3, 1, 3), (3, 2, 2), (2, 2, 1), (5, 2, 3), (1, 3, 1)):
        layers = [ONE, gn.MaxPool(window, stride), ONE]
        assert truth**0.5 <= gn.chain_bound(layers) < truth**0.5 * 1.001
    both = [np.ones((1, 1, 1, 1)), gn.MaxPool((3, 2), (1, 2), (2, 1)), np.ones((1, 1, 1, 1))]
    assert 3**0.5 <= gn.chain_bound(both) < 3**0.5 * 1.001
    spread = [ONE, gn.MaxPool(4, 2, 2), ONE]  # all taps of a window read samples of one parity
    assert 2.0 <= gn.chain_bound(spread) < 2.001


def test_average_in_front_of_a_maximum_keeps_its_constant() -> None:
    layers = [ONE, gn.AvgPool(4), gn.MaxPool(3, 1), 8 * ONE]
    assert 0.5 * 3**0.5 * 8 <= gn.chain_bound(layers) < 0.5 * 3**0.5 * 8 * 1.001


@pytest.mark.parametrize("between", [gn.MaxPool(2), gn.Flatten(1), None])
def test_channels_are_weighed_at_a_cut(between: Any) -> None:
    """The channel that is large before the cut is small behind it, so the constant is 100."""
    first = np.asarray([[1.0, 0.0], [0.0, 100.0]]).reshape(2, 2, 1)
    last = np.asarray([[100.0, 0.0], [0.0, 1.0]])
    layers = {
        gn.MaxPool(2): [first, gn.MaxPool(2), last.reshape(2, 2, 1)],
        gn.Flatten(1): [first, gn.Flatten(1), last],
        None: [gn.ConvLayer(first, stride=5), gn.ConvLayer(last.reshape(2, 2, 1), stride=5)],
    }[between]
    assert len(coupled(layers).segments) == 2
    bound, (x,) = gn.chain_bound(layers, return_multipliers=True)
    assert 100.0 <= bound < 100.1
    assert 100.0 <= gn.chain_certificate(layers, [x]) < 100.1
    assert 100.0 <= gn.chain_certificate(layers, [np.asarray([100.0, 1.0])]) < 100.1
    larger = gn.chain_certificate(layers, [np.asarray([200.0, 1.0])])
    assert larger == pytest.approx(200.0, rel=1e-3)
    wrong = gn.chain_certificate(layers, [np.asarray([1.0, 100.0])])
    assert wrong == pytest.approx(1e6, rel=1e-2)


def test_channels_stand_where_the_order_of_flattening_says() -> None:
    rng = np.random.default_rng(8)
    kernel, head = rng.standard_normal((2, 1, 3)), rng.standard_normal((3, 2, 4))
    head *= np.asarray([100.0, 1.0])[:, None]
    first = [kernel, gn.Flatten(4), head.reshape(3, 8)]
    last = [kernel, gn.Flatten([4], channels_last=True), np.swapaxes(head, 1, 2).reshape(3, 8)]
    x = vectors(rng, first)
    one = gn.chain_certificate(first, x)
    assert one == pytest.approx(gn.chain_certificate(last, x), rel=1e-9)
    mixed = [kernel, gn.Flatten(4, channels_last=True), head.reshape(3, 8)]
    assert abs(gn.chain_certificate(mixed, x) / one - 1) > 1e-3


def test_poolings_of_the_input_count() -> None:
    assert 3**0.5 <= gn.chain_bound([gn.MaxPool(3, 1), ONE]) < 3**0.5 * 1.001
    assert 0.5 <= gn.chain_bound([gn.AvgPool(4), ONE]) < 0.5005
    matrix = np.asarray([[3.0, 0.0, 0.0, 4.0]])
    assert 5.0 <= gn.chain_bound([gn.Flatten((2, 2)), matrix]) < 5.001
    assert 10.0 <= gn.chain_bound([gn.MaxPool(2, 1), gn.Flatten((2, 2)), matrix]) < 10.01


def test_strides_beyond_the_limit_of_phases_cut_the_chain() -> None:
    rng = np.random.default_rng(9)
    layers = [gn.ConvLayer(rng.standard_normal((1, 1, 3)), stride=2) for _ in range(6)]
    chain = coupled(layers)
    assert [s.depth for s in chain.segments] == [2, 4]
    assert [len(s.rows) + len(s.columns) for s in chain.segments] == [7, 31]
    averages = [ONE, gn.AvgPool(17), ONE]
    assert len(coupled(averages).segments) == 2
    assert 17**-0.5 <= gn.chain_bound(averages) < 17**-0.5 * 1.001


def test_all_activities_of_a_long_strided_chain_are_below() -> None:
    rng = np.random.default_rng(10)
    layers = [gn.ConvLayer(rng.standard_normal((1, 1, 3)), stride=2) for _ in range(5)]
    made = Network(35, None, layers, [1.0] * 4, [])
    shape: tuple[int, ...] = (35,)
    for layer in layers:
        before = math.prod(shape)
        shape, reads = windows(shape, (3,), [(1, 2)], (2,), (1,))
        made.parts += [correlation(layer.kernel, reads, before), None]
    made.parts.pop()
    bound = gn.chain_bound(layers)
    assert largest_choice(rng, made) <= exactly(bound)
    assert bound < gn.product_bound(*(gn.conv_norm_bound(w.kernel, stride=2) for w in layers))


def test_slopes_are_exact_factors() -> None:
    rng = np.random.default_rng(11)
    layers = [rng.standard_normal(s) for s in ((3, 2), (4, 3), (2, 4))]
    x = vectors(rng, layers)
    bound, certificate = gn.chain_bound(layers), gn.chain_certificate(layers, x)
    assert gn.chain_bound(layers, slopes=0.25) == bound / 16
    assert gn.chain_bound(layers, slopes=[2, 0.25]) == bound / 2
    third = gn.chain_bound(layers, slopes=[Fraction(1, 3), np.float32(1)])
    assert Fraction(third) >= Fraction(math.nextafter(bound, 0)) / 3
    assert third == pytest.approx(bound / 3, rel=1e-15)
    # those of a solver belong to the activations as they are
    scaled = gn.chain_certificate(layers, [x[0], 4 * x[1]], slopes=[1, 0.25])
    assert scaled == pytest.approx(certificate / 4, rel=1e-4)
    for numbers in np.exp(3 * rng.standard_normal((20, 3))):
        small = [np.asarray([[v]]) for v in numbers]
        exact = math.prod(Fraction(float(v)) for v in numbers) * Fraction(1, 21)
        found = gn.chain_bound(small, slopes=(Fraction(1, 7), Fraction(1, 3)))
        assert exact <= Fraction(found) <= exact * Fraction(1.001)


def test_the_product_of_norms_has_slopes_and_poolings() -> None:
    tiny = np.asarray([[[1e-320]]])
    layers = [tiny, gn.MaxPool(4, 1), 1e300 * ONE]
    exact = 2 * Fraction(1e-320) * Fraction(1e300) / 4
    assert exact <= Fraction(gn.chain_bound(layers, slopes=0.25)) <= exact * Fraction(1.01)


@pytest.mark.parametrize("entry", [math.nan, math.inf, 0.0])
def test_weights_that_are_no_numbers_show_whatever_the_layers(entry: float) -> None:
    layers = [ONE, gn.AvgPool(3, 1), entry * ONE, gn.MaxPool(2), gn.Flatten(1), np.ones((1, 1))]
    for bound in (gn.chain_bound(layers), gn.chain_certificate(layers, [np.ones(1)] * 2)):
        assert bound == pytest.approx(entry, nan_ok=True)


def test_large_weights_behind_an_overlapping_average_keep_the_side() -> None:
    huge = np.full((1, 1, 4), 1.5e308)
    bound = gn.chain_bound([2.0**-1000 * ONE, gn.AvgPool(3, 1), huge])
    exact = Fraction(2) ** -1000 * 4 * Fraction(1.5e308)
    assert exact <= Fraction(bound) <= exact * Fraction(1.001)


def test_gradient_is_that_of_the_smooth_value_with_cuts_and_strides() -> None:
    rng = np.random.default_rng(12)
    layers = [
        gn.ConvLayer(rng.standard_normal((2, 1, 3)), stride=2),
        gn.AvgPool(2),
        rng.standard_normal((2, 2, 2)),
        gn.MaxPool(3, 1),
        rng.standard_normal((2, 2, 1)),
        gn.Flatten(3),
        rng.standard_normal((3, 6)),
        rng.standard_normal((2, 3)),
    ]
    chain = coupled(layers)
    assert len(chain.segments) == 3
    y = rng.standard_normal(sum(chain.sizes))
    _, gradient = chain.value_and_gradient(y, steps=3, density=4)
    for i, step in enumerate(1e-6 * np.eye(len(y))):
        ahead, behind = (
            chain.value_and_gradient(y + s, steps=3, density=4)[0] for s in (step, -step)
        )
        assert gradient[i] == pytest.approx((ahead - behind) / 2e-6, rel=1e-4, abs=1e-6)


def test_the_search_tries_what_it_says() -> None:
    """Two samples, an activation and a maximum of both: six Jacobians of four patterns."""
    weights = np.asarray([[3.0, 0.0], [0.0, 4.0]])
    made = Network(2, None, [], [0.5], [weights, None, (1, [(0, 1)])])
    assert len(list(itertools.product(*choices(made)))) == 8
    assert jacobian(made, (1, 0, 1)).tolist() == [[0.0, 0.0]]
    assert jacobian(made, (0, 1, 1)).tolist() == [[0.0, 4.0]]
    assert largest_choice(np.random.default_rng(0), made) == 2.0


MATRIX, KERNEL, PLANE = np.ones((2, 2)), np.ones((2, 2, 3)), np.ones((2, 2, 3, 3))


@pytest.mark.parametrize(
    ("layers", "error", "match"),
    [
        ([gn.ConvLayer(MATRIX)], ValueError, "layer 0 must have shape"),
        ([gn.ConvLayer([[[1.0]]])], TypeError, "layer 0 must be an array"),
        ([gn.ConvLayer(KERNEL.astype(int))], TypeError, "layer 0 must hold real floating"),
        ([gn.ConvLayer(KERNEL, stride=0)], ValueError, "stride of layer 0 must be at least 1"),
        ([gn.ConvLayer(KERNEL, stride=(1, 2))], ValueError, "stride of layer 0 .* one entry per"),
        ([gn.ConvLayer(KERNEL, dilation=1.5)], TypeError, "dilation of layer 0 must be an integer"),
        (
            [gn.ConvLayer(KERNEL, groups=3)],
            ValueError,
            "groups must divide the first axis of layer",
        ),
        (
            [KERNEL, gn.ConvLayer(KERNEL, groups=2)],
            ValueError,
            "must have 2 inputs .* 4 with groups",
        ),
        ([KERNEL, PLANE], ValueError, "as many axes .* keeps its axes"),
        ([KERNEL, MATRIX], ValueError, r"put Flatten\(spatial\) between"),
        ([MATRIX, KERNEL], ValueError, "behind a matrix there are no samples"),
        ([MATRIX, gn.Flatten(1), MATRIX], ValueError, "behind a matrix there are no samples"),
        ([MATRIX, gn.MaxPool(2), MATRIX], ValueError, "layer 1 is a pooling, but layer 2"),
        ([KERNEL, gn.MaxPool(2), MATRIX], ValueError, r"Flatten\(spatial\) between"),
        ([KERNEL, gn.MaxPool(2)], ValueError, "layer 1 must stand before a layer with weights"),
        ([gn.AvgPool(2)], ValueError, "one array or more"),
        ([KERNEL, gn.Flatten(2), KERNEL], ValueError, "layer 1 is Flatten, behind which a matrix"),
        ([KERNEL, gn.Flatten(1), gn.MaxPool(2), MATRIX], ValueError, "layer 1 is Flatten"),
        ([KERNEL, gn.Flatten(1), gn.Flatten(1), MATRIX], ValueError, "layer 1 is Flatten"),
        ([KERNEL, gn.Flatten(4), MATRIX], ValueError, "spatial of layer 1 .* divides the 2 inputs"),
        ([KERNEL, gn.Flatten((1, 1)), MATRIX], ValueError, "keeps its axes"),
        ([KERNEL, gn.Flatten(2), MATRIX], ValueError, "must have 2 inputs .* got 1 with Flatten"),
        ([KERNEL, gn.Flatten(0), MATRIX], ValueError, "spatial of layer 1 must be at least 1"),
        ([KERNEL, gn.Flatten(()), MATRIX], ValueError, "spatial of layer 1"),
        ([KERNEL, gn.AvgPool((2, 2)), KERNEL], ValueError, "window of layer 1 .* per spatial axis"),
        ([KERNEL, gn.AvgPool(0), KERNEL], ValueError, "window of layer 1 must be at least 1"),
        ([KERNEL, gn.MaxPool(2, 0), KERNEL], ValueError, "stride of layer 1 must be at least 1"),
        ([KERNEL, gn.MaxPool(2, 1, 0.5), KERNEL], TypeError, "dilation of layer 1"),
        ([KERNEL, "relu", KERNEL], TypeError, "layer 1 must be an array"),
    ],
)
def test_layers_that_do_not_fit_are_explained(layers: Any, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        gn.chain_bound(layers)


@pytest.mark.parametrize(
    ("slopes", "error", "match"),
    [
        (0.0, ValueError, "slopes must be a positive finite"),
        (math.nan, ValueError, "slopes must be a positive finite"),
        ((1.0, -1.0), ValueError, "slopes must be a positive finite"),
        ((1.0,), ValueError, "for each layer with weights but the last, 2, got 1"),
        ("relu", TypeError, "slopes must be a positive number"),
        (np.ones(2), TypeError, "slopes must be a positive number"),
    ],
)
def test_slopes_that_are_none_are_explained(slopes: Any, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        gn.chain_bound([MATRIX] * 3, slopes=slopes)


def test_layers_of_any_library_are_taken(be: Any) -> None:
    rng = np.random.default_rng(13)
    kernel, head = (rng.standard_normal(n).astype(np.float32) for n in ((2, 1, 3), (2, 6)))
    bounds = [
        gn.chain_bound([gn.ConvLayer(to(kernel), stride=2), gn.MaxPool(2), gn.Flatten(3), to(head)])
        for to in (np.asarray, be.asarray)
    ]
    assert bounds[0] == bounds[1]
