"""The benchmarks measure what they say: their references, their kernels, their files."""

import math
import time
from pathlib import Path

import numpy as np
import pytest

import gramnorm as gn

pytest.importorskip("benchmarks", reason="the benchmarks are not beside the tests")
pytest.importorskip("scipy")

from benchmarks import (
    chains,
    chunks,
    figures,
    kernels,
    methods,
    network,
    rivals,
    sparse,
    tables,
    training,
)
from benchmarks.devices import Device
from benchmarks.timing import race, within
from gramnorm.report.files import readers
from tests.harness.chains import dense_chain, largest_jacobian

pytestmark = pytest.mark.extra

SMALL = {
    "plain": ((6, 4, 3, 3), {}),
    "strided": ((6, 4, 3, 3), {"stride": 2}),
    "stride that leaves taps over": ((3, 2, 5, 5), {"stride": 3}),
    "grouped": ((6, 1, 3, 3), {"groups": 6}),
    "one axis": ((3, 2, 16), {}),
}


@pytest.mark.parametrize("name", SMALL)
def test_reference_norms_lie_in_tight_brackets(name):
    shape, options = SMALL[name]
    kernel = kernels.gaussian(shape)
    norm = rivals.norm_on_all_frequencies(kernel, **options)
    every = gn.conv_norm_bracket(kernel, rtol=1e-8, **options)
    assert every.lower * (1 - 1e-8) <= norm <= every.upper
    norm = rivals.arpack(kernel, 7, tol=1e-10, **options)()
    small = gn.conv_norm_bracket(kernel, 7, rtol=1e-8, **options)
    assert small.lower * (1 - 1e-8) <= norm <= small.upper * (1 + 1e-12)


def test_published_iteration_is_above_the_exact_norm_on_its_grid():
    kernel = kernels.trained_like((5, 7, 3, 3))
    exact = rivals.exact_svd(kernel, 8, np)
    above = rivals.published_gram_iteration(kernel, 8, Device().xp)
    assert exact < above < 1.1 * exact
    circle = gn.conv_norm_bracket(kernel, 8, padding_mode="circular", rtol=1e-8)
    assert circle.lower * (1 - 1e-12) <= exact <= circle.upper * (1 + 1e-12)


def test_orthogonal_convolution_is_orthogonal_but_for_its_noise():
    kernel = kernels.orthogonal_like((8, 8, 3, 3))
    symbol = rivals.full_grid(kernel, 12, np)
    values = np.linalg.svd(symbol, compute_uv=False)
    assert 0.9 < values.min() < 0.9999 < values.max() < 1.1


def test_network_has_the_layers_of_a_resnet_18():
    assert len(kernels.RESNET18) == 20
    weights = sum(math.prod(layer.shape) for layer in kernels.RESNET18)
    assert weights == 11_166_912  # the convolutions of 11 689 512 parameters
    for before, after in zip(kernels.RESNET18, kernels.RESNET18[1:], strict=False):
        if after.shape[2] == 3:
            assert after.shape[1] in (before.shape[0], before.shape[1])


def test_a_value_below_the_norm_is_said_to_be():
    assert methods._against({"value": 0.99}, 1.0)["below the norm"] == "yes"
    assert methods._against({"value": 1.01}, 1.0)["below the norm"] == ""
    assert methods._against({}, 1.0) == {}


def test_the_matrix_on_disk_is_cut_as_it_was_written(tmp_path):
    pytest.importorskip("dask")
    path = chunks.written(tmp_path, (70, 3), 30)
    x = chunks.opened(path, 30)
    assert x.chunks == ((30, 30, 10), (3,))
    np.testing.assert_array_equal(x.compute(scheduler="sync"), np.load(path))
    assert all(seconds > 0 for seconds in chunks.least(path, 30))


def test_a_worker_that_gives_up_takes_for_ever():
    distributed = pytest.importorskip("distributed")

    def gives_up(error):
        raise error

    killed = distributed.KilledWorker("task", None, 3)
    assert chunks.timed(lambda: gives_up(killed))[0] == math.inf
    assert chunks.timed(lambda: 7)[1] == 7
    with pytest.raises(ZeroDivisionError):
        chunks.timed(lambda: 1 / 0)


def test_a_rival_that_gives_up_or_does_not_end_has_no_ratio():
    def gives_up():
        raise ArithmeticError

    assert within(60.0, lambda: 2.5) == 2.5
    assert within(60.0, gives_up) == "gave up: ArithmeticError"
    assert within(0.05, lambda: time.sleep(60)) == "more than 50"
    bracket = gn.matrix_norm_bracket(np.eye(2))
    row = sparse._raced(lambda: bracket, gives_up, Device())
    assert row["theirs [ms]"] == "gave up: ArithmeticError"
    assert row["ratio"] is None
    assert tables.Table("t", "t", [row]).texts()[0][1:5] == [row["theirs [ms]"], "-", "-", "-"]


def test_ratio_of_a_race_is_that_of_the_times():
    class Clock(Device):
        def seconds(self, call, _repeats):
            return call()

    timing = race(lambda: 3.0, lambda: 2.0, Clock(), patience=100.0)
    assert (timing.ratio, timing.pairs) == (1.5, 7)
    assert timing.scaled(2).ratio == 0.75


def test_ratio_does_not_contradict_the_medians_beside_it():
    class Clock(Device):
        times = iter(range(1, 100))

        def seconds(self, call, _repeats):
            return call() * next(self.times) ** 2

    cells = race(lambda: 3.0, lambda: 2.0, Clock(), patience=1e6).cells
    assert cells["ratio"] == cells["ours [ms]"] / cells["theirs [ms]"]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_followed_norms_of_the_digits_network_miss_little(rate):
    """Matrices and kernels that Adam moves by a good part of their norms in a few steps."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    found = training.followed_training(training.digits_net, (64, 1, 8, 8), rate, 60, 4)
    misses = sorted(found)
    assert len(misses) == 4 * (training.FIRST + 12)
    assert misses[-1] <= 0.01


def test_the_file_of_a_resnet_18_has_its_layers_and_a_constant(tmp_path):
    pytest.importorskip("onnx")
    path = network.resnet18_file(tmp_path, kernels.gaussian, narrower=16, n=32)
    contents = readers.read_path(str(path), stated=(), layout=None)
    shapes = [layer.weight.shape for layer in contents.layers]
    assert shapes[:2] == [(4, 3, 7, 7), (4, 4, 3, 3)]
    assert len(shapes) == 20
    assert [layer.geometry["stride"] for layer in contents.layers[4:8]] == [
        (1, 1),
        (2, 2),
        (1, 1),
        (2, 2),
    ]
    assert contents.network is not None
    assert contents.network.stopped is None


def test_tables_come_back_from_their_file(tmp_path):
    rows = [{"case": "a", "ratio": 0.25, "quartiles": [0.2, 0.3], "goal": 0.5, "met": True}]
    rows.append({"case": "b", "ratio": math.nan, "met": False})
    kept = tables.Table("speed", "a title", rows, ["a note"])
    tables.save(tmp_path, {"device": "none"}, [kept])
    about, (found,) = tables.load(tmp_path)
    assert about == {"device": "none"}
    assert found.rows[0] == rows[0]
    assert found.texts() == kept.texts()
    assert found.texts()[1] == ["b", "-", "-", "-", "NO"]
    assert "| b | - | - | - | NO |" in (tmp_path / "speed.md").read_text()


def test_a_table_from_another_machine_than_the_page_says_so(tmp_path):
    for name, device in (("here", "this one"), ("there", "that one")):
        kept = tables.Table(name, "a title", [{"case": "a"}], device=device)
        tables.save(tmp_path, {"device": "this one"}, [kept])
    assert "machine" not in (tmp_path / "here.md").read_text()
    assert "another machine than the rest: that one." in (tmp_path / "there.md").read_text()


def test_figures_are_drawn_from_the_file(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"case": "a", "ratio": 0.25, "quartiles": [0.2, 0.3], "goal": 0.5, "met": True}]
    tables.save(tmp_path, {}, [tables.Table("speed", "a title", rows)])
    assert [path.name for path in figures.draw(tmp_path)] == ["speed.png"]
    assert (tmp_path / "speed.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((3440.4, "3440"), (47_800.0, "47800"), (999.6, "1000"), (14.5, "14.5"), (1.039, "1.04")),
        *(
            (0.31, "0.31"),
            (0.01, "0.01"),
            (0.00999, "9.99e-3"),
            (1e-6, "1e-6"),
            (6.09e-9, "6.09e-9"),
        ),
        *((2.5e9, "2.5e9"), (0.0, "0"), (math.inf, "inf"), (-1234.0, "-1230")),
    ],
)
def test_numbers_of_tables_have_one_style(value, shown):
    assert tables.text(value) == shown


def test_ratios_of_norms_near_one_have_more_digits():
    (row,) = tables.Table("x", "", [{"ratio": 1.00081, "value / norm": 1.00081}]).texts()
    assert row == ["1", "1.0008"]


def test_tables_of_the_page_are_those_of_its_numbers():
    folder = Path(__file__).parents[2] / "docs" / "benchmarks"
    about, kept = tables.load(folder)
    assert len(kept) > 15
    for table in kept:
        assert table.device
        page = tables.markdown(table, about["device"]) + "\n"
        assert (folder / f"{table.name}.md").read_text() == page


def test_patterns_that_a_climb_finds_are_those_of_a_jacobian_and_mostly_the_best():
    rng, best = np.random.default_rng(0), 0
    for _ in range(20):
        layers = dense_chain(rng)
        net = chains.dense("small", layers)
        found, truth = net.largest_jacobian(), largest_jacobian(layers)
        assert found <= truth * (1 + 1e-12)
        best += found > truth * (1 - 1e-6)
    assert best > 15


def test_maps_of_networks_have_their_adjoints():
    rng = np.random.default_rng(1)
    shapes = (2, 1, 3), (3, 2, 3), (6, 96), (5, 6)
    nets = [
        chains.of_ecg("ecg", [rng.standard_normal(s) for s in shapes]),
        chains.convolutions("conv", [rng.standard_normal(s) for s in ((2, 1, 3, 3), (3, 2, 3, 3))]),
    ]
    for net in nets:
        x = rng.standard_normal(net.input_shape)
        for forward, adjoint in net.maps:
            image = forward(x)
            y = rng.standard_normal(image.shape)
            assert np.sum(image * y) == pytest.approx(np.sum(x * adjoint(y)), rel=1e-9)
            x = image


def test_random_networks_are_those_of_the_published_generator():
    net = chains.of_eclipse(2, 80)
    assert [w.shape for w in net.layers] == [(80, 4), (1, 80)]
    assert net.product == pytest.approx(0.4271, abs=1e-4)


def test_programs_of_others_come_close_to_ours_on_a_small_network():
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    rng = np.random.default_rng(2)
    layers = [rng.standard_normal(s) for s in ((4, 3), (4, 4), (2, 4))]
    assert rivals.lipsdp_neuron(layers) == pytest.approx(gn.chain_bound(layers), rel=1e-5)
