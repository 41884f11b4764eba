"""Chains at one size: a matrix per layer and a multiplier per neuron."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gramnorm as gn
from gramnorm.network import _chain
from tests.harness.chains import coupled, exactly, guess
from tests.harness.networks import (
    Network,
    choices,
    jacobian,
    largest_choice,
    network,
    windows,
)
from tests.network.test_chain import needs_networks, public

pytestmark = pytest.mark.no_backend
ONE = np.ones((1, 1, 1))


@pytest.mark.parametrize("seed", range(3))
def test_theorems_hold_for_any_multipliers_at_one_size(seed: int) -> None:
    rng = np.random.default_rng(30 + seed)
    for _ in range(50):
        made = network_of_one_size(rng)
        chain = coupled(made.layers, made.slopes, made.shape)
        assert largest_choice(rng, made) <= exactly(chain.certificate(guess(rng, chain)))


def network_of_one_size(rng: np.random.Generator) -> Network:
    while True:
        made = network(rng)
        if made.shape is not None:
            return made


def test_matrices_at_one_size_are_those_of_loops() -> None:
    """All activations open, and no maxima: the links are one product of the matrices of loops."""
    rng = np.random.default_rng(33)
    seen = 0
    while seen < 60:
        made = network_of_one_size(rng)
        if any(isinstance(part, tuple) for part in made.parts):
            continue
        seen += 1
        found = _chain._checked(made.layers, made.slopes, made.shape).unrolled()
        assert found is not None
        whole = np.eye(made.inputs)
        for link in found:
            whole = link.weights @ whole * float(link.factor)
        wanted = made.scale * jacobian(made, [1] * len(choices(made)))
        assert whole == pytest.approx(wanted, rel=1e-12, abs=1e-13 * np.max(np.abs(wanted)))


@pytest.mark.parametrize("pools", [[(3, 1)], [(2, 1), (3, 2)], [(5, 2), (2, 1)]])
def test_rounding_of_overlapping_averages_is_within_the_doubts(pools: Any) -> None:
    rng = np.random.default_rng(7)
    for _ in range(5):
        kernel = np.exp(8 * rng.standard_normal((1, 1, 4))) * rng.choice([-1, 1], 4)
        pooled = [gn.AvgPool(*p) for p in pools]
        layers = [gn.ConvLayer(ONE, padding=0), *pooled, gn.ConvLayer(kernel, padding=3)]
        link = _chain._checked(layers, 1, 11).unrolled()[1]
        shape: tuple[int, ...] = (11,)
        exact = [[Fraction(i == j) for j in range(11)] for i in range(11)]
        for taps, stride, pad in [*((np.full(w, 1.0), s, 0) for w, s in pools), (kernel, 1, 3)]:
            row = [Fraction(float(t)) / (taps.size if pad == 0 else 1) for t in taps.ravel()]
            shape, reads = windows(shape, (taps.size,), [(pad, pad)], (stride,), (1,))
            exact = [
                [
                    sum(
                        (t * exact[i][j] for t, i in zip(row, read, strict=True) if i is not None),
                        start=Fraction(0),
                    )
                    for j in range(11)
                ]
                for read in reads
            ]
        assert link.doubts is not None
        for wanted, got, doubt in zip(
            itertools.chain(*exact), link.weights.ravel(), link.doubts.ravel(), strict=True
        ):
            error = abs(wanted / link.factor - Fraction(float(got)))
            assert error <= Fraction(float(doubt)) <= Fraction(1e-14 * np.max(abs(link.weights)))


def test_doubts_enter_the_norm() -> None:
    layers = [gn.ConvLayer(ONE, padding=0), gn.AvgPool(3, 1), gn.ConvLayer(ONE, padding=0)]
    (segment,) = coupled(layers, shape=6).segments
    assert segment.doubts is not None
    x = np.ones(8)
    plain, _ = segment.norm_and_peak(x, total=2, gap=1e-4)
    segment.doubts[:] = 1e-3
    assert segment.norm_and_peak(x, total=2, gap=1e-4)[0] > plain + 1e-3


@pytest.mark.slow
def test_bounds_at_one_size_are_at_most_those_of_every_size() -> None:
    rng = np.random.default_rng(34)
    closest = math.inf
    for _ in range(4):
        made = network_of_one_size(rng)
        truth = largest_choice(rng, made)
        known = {"slopes": made.slopes, "input_shape": made.shape}
        bound, found = gn.chain_bound(made.layers, **known, return_multipliers=True)
        assert truth <= exactly(bound)
        assert bound <= gn.chain_bound(made.layers, slopes=made.slopes)
        again = gn.chain_certificate(made.layers, found, **known)
        assert truth <= exactly(again) <= bound * (1 + 2e-3)
        closest = min(closest, bound / truth if truth else math.inf)
    assert closest < 1 + 1e-3


def test_multipliers_at_one_size_are_per_neuron_or_per_channel() -> None:
    rng = np.random.default_rng(35)
    kernel, second, head = (rng.standard_normal(s) for s in ((2, 1, 3), (2, 2, 2), (2, 6)))
    layers = [
        gn.ConvLayer(kernel, padding=1),
        gn.MaxPool(2),
        gn.ConvLayer(second, padding=[(1, 0)]),
        gn.Flatten(3),
        head,
    ]
    bound, found = gn.chain_bound(layers, input_shape=7, return_multipliers=True)
    assert [x.shape for x in found] == [(2, 3), (2, 3)]
    assert gn.chain_certificate(layers, found, input_shape=7) == pytest.approx(bound, rel=1e-4)
    channels = [x[:, 0] for x in found]
    alike = [np.repeat(x[:, None], 3, axis=1) for x in channels]
    assert gn.chain_certificate(layers, channels, input_shape=7) == gn.chain_certificate(
        layers, alike, input_shape=7
    )
    with pytest.raises(ValueError, match=r"shape \(2,\), .* or \(2, 3\), one for each neuron"):
        gn.chain_certificate(layers, [np.ones((2, 7)), np.ones(2)], input_shape=7)


def test_samples_that_nothing_reads_do_not_count() -> None:
    """Of three samples the maximum of pairs reads two, to which the kernel adds each once."""
    kernel = np.asarray([[[1.0, 1.0]]])  # on (x, y, z): x, x + y, y + z
    layers = [gn.ConvLayer(kernel, padding=[(1, 0)]), gn.MaxPool(2), gn.ConvLayer(ONE, padding=0)]
    golden = (1 + 5**0.5) / 2  # the norm of the rows x and x + y
    assert gn.chain_bound(layers) >= 2.0
    assert 2**0.5 <= gn.chain_bound(layers, input_shape=3) <= golden * (1 + 1e-6)


def test_layers_that_read_nothing_but_padding_give_zero() -> None:
    kernel = np.asarray([[[1.0, 0.0]]])  # its first tap reads the zero in front of one sample
    layers = [gn.ConvLayer(kernel, padding=[(1, 0)]), gn.ConvLayer(ONE, padding=0)]
    assert gn.chain_bound(layers) >= 1.0
    assert gn.chain_bound(layers, input_shape=1) <= 1e-100
    assert 1.0 <= gn.chain_bound(layers, input_shape=2) < 1.001


@pytest.mark.parametrize("entry", [math.nan, math.inf, 0.0])
def test_weights_that_are_no_numbers_show_at_one_size(entry: float) -> None:
    layers = [gn.ConvLayer(ONE, padding=0), gn.AvgPool(3, 1), gn.Flatten(2), np.full((1, 2), entry)]
    assert gn.chain_bound(layers, input_shape=4) == pytest.approx(entry, nan_ok=True)
    found = gn.chain_certificate(layers, [np.ones((1, 4))], input_shape=4)
    assert found == pytest.approx(entry, nan_ok=True)


def test_large_networks_have_the_bound_of_every_size() -> None:
    layers = [
        gn.ConvLayer(np.ones((2, 1, 1)), padding=0),
        gn.ConvLayer(np.ones((1, 2, 1)), padding=0),
    ]
    assert gn.chain_bound(layers, input_shape=400) == gn.chain_bound(layers)
    with pytest.raises(ValueError, match="left out for more than 1500"):
        gn.chain_certificate(layers, [np.ones(2)], input_shape=400)


def padded(padding: Any, kernel: Any = ONE) -> gn.ConvLayer:
    return gn.ConvLayer(kernel, padding=padding)


@pytest.mark.parametrize(
    ("layers", "shape", "error", "match"),
    [
        ([np.ones((2, 2))], 2, ValueError, "input_shape is for chains that begin with samples"),
        ([ONE], 2, ValueError, "layer 0 must say its padding"),
        ([padded(0), ONE], 2, ValueError, "layer 1 must say its padding"),
        ([padded(0)], (2, 2), ValueError, "input_shape must be an int or have one entry"),
        ([padded(0)], 0, ValueError, "input_shape must be at least 1"),
        ([padded(-1)], 2, ValueError, "padding must be at least 0"),
        ([padded("around")], 2, ValueError, "padding must be 'valid'"),
        ([padded(0), gn.MaxPool(3), padded(0)], 2, ValueError, "layer 1 has no output .* needs .3"),
        ([padded(0, np.ones((1, 1, 3)))], 2, ValueError, "layer 0 has no output"),
        (
            [padded(0), gn.Flatten(3), np.ones((1, 3))],
            2,
            ValueError,
            r"samples that reach it .*\(2,",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_explained(
    layers: Any, shape: Any, error: type, match: str
) -> None:
    with pytest.raises(error, match=match):
        gn.chain_bound(layers, input_shape=shape)


@needs_networks
@pytest.mark.slow
@pytest.mark.parametrize("name", ["12_42", "13_15", "11_35", "12_27", "03_07_16_30"])
def test_public_networks_of_one_axis_come_from_their_layers_as_stored(name: str) -> None:
    full = name if "03_07" in name else f"03_08_{name}"
    (first, second, hidden, last), best = public(f"ecg_CNN_23_{full}")
    layers = [
        gn.ConvLayer(first, padding=[(2, 0)]),
        gn.AvgPool(2),
        gn.ConvLayer(second, padding=[(2, 0)]),
        gn.AvgPool(2),
        gn.Flatten(32, channels_last=True),
        hidden,
        last,
    ]
    assert gn.chain_bound(layers, input_shape=128) <= 1.0005 * best
