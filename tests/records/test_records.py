"""Records of every kind of operator verify, and say what is true of it."""

import importlib.resources
import json
import math

import numpy as np
import pytest

import gramnorm as gn
from gramnorm import records, verifier
from tests.harness import chains, families, oracles
from tests.harness import records as made
from tests.harness.oracles import Verdict

pytestmark = pytest.mark.no_backend

RNG = np.random.default_rng(20)
DIFFERENCE = np.asarray([[[-1.0, 2.0, -1.0]]])
LAPLACIAN = np.asarray([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]


def ends(record):
    return tuple(float.fromhex(record[side]["bound"]) for side in ("lower", "upper"))


def assert_verified(record, **options):
    found, reason = made.verdict(record, **options)
    assert found == "verified", reason


@pytest.mark.parametrize("kind", made.KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_record_of_a_random_small_operator_verifies(kind, seed):
    assert_verified(made.KINDS[kind](np.random.default_rng(seed)))


@pytest.mark.slow
def test_a_thousand_records_of_random_small_operators_verify():
    for seed in range(1000):
        kind, record = made.drawn(np.random.default_rng(seed))
        found, reason = made.verdict(record)
        assert found == "verified", (seed, kind, reason)


@pytest.mark.parametrize("family", sorted(families.FAMILIES.keys() - made.UNPROVABLE))
def test_record_of_a_matrix_verifies_and_the_oracle_agrees(family):
    a = families.FAMILIES[family](np.random.default_rng(3), 5, 4, "float64")
    record = records.prove_matrix_norm(a)
    assert_verified(record)
    lower, upper = ends(record)
    assert oracles.check_lower(a, lower) is Verdict.HOLDS
    assert oracles.check_upper(a, upper) is Verdict.HOLDS
    assert upper <= 1.00001 * lower + 4 * 2.0**-1074


@pytest.mark.parametrize("dtype", made.DTYPES)
def test_record_is_about_the_stored_type(dtype):
    a = np.asarray([[1, 0], [1, 1]]).astype(dtype)
    record = records.prove_matrix_norm(a)
    assert np.dtype(record["operator"]["array"]["dtype"]) == dtype
    assert_verified(record)


def test_record_does_not_depend_on_how_the_array_lies_in_memory():
    a = RNG.standard_normal((3, 4))
    for stored in (np.asfortranarray(a), a.astype(">f8"), a[::-1].copy()[::-1]):
        array = records.prove_matrix_norm(stored)["operator"]["array"]
        assert array == records.prove_matrix_norm(a)["operator"]["array"]


@pytest.mark.parametrize(
    ("kernel", "input_shape", "options", "norm"),
    [
        (DIFFERENCE, None, {}, 4.0),
        (DIFFERENCE, None, {"dilation": 3}, 4.0),
        (DIFFERENCE, None, {"stride": 2}, math.sqrt(8)),
        (DIFFERENCE, None, {"stride": 3, "dilation": 3}, 4.0),
        (DIFFERENCE, 3, {"padding": 1}, 2 + math.sqrt(2)),
        (DIFFERENCE, 3, {"padding": 1, "transposed": True}, 2 + math.sqrt(2)),
        (DIFFERENCE, 6, {"padding_mode": "circular"}, 4.0),
        (DIFFERENCE, 5, {"padding_mode": "circular"}, 2 - 2 * math.cos(0.8 * math.pi)),
        (DIFFERENCE, 1, {"padding_mode": "circular"}, 0.0),
        (LAPLACIAN, None, {}, 8.0),
        (LAPLACIAN, (4, 6), {"padding_mode": "circular"}, 8.0),
        (LAPLACIAN, (64, 64), {"padding_mode": "circular"}, 8.0),  # by cells: too many frequencies
    ],
)
def test_record_of_a_known_norm_holds_it_and_verifies(kernel, input_shape, options, norm):
    record = records.prove_conv_norm(kernel, input_shape, **options)
    lower, upper = ends(record)
    assert lower <= norm * (1 + 1e-12)
    assert norm <= upper <= norm * 1.002 + 1e-12
    assert_verified(record)


@pytest.mark.parametrize("seed", range(8))
def test_record_holds_the_norm_of_the_operator_written_out_as_loops(seed):
    rng = np.random.default_rng(seed)
    axes, groups = 1 + seed % 2, 1 + seed % 3
    kernel = rng.standard_normal((groups * 2, 2, *[3] * axes)) + 1j * (seed % 4 == 3)
    options = {
        "stride": [int(n) for n in rng.integers(1, 3, size=axes)],
        "dilation": [int(n) for n in rng.integers(1, 4, size=axes)],
        "groups": groups,
    }
    every = records.prove_conv_norm(kernel, rtol=1e-2, **options)
    lower, upper = ends(every)
    assert lower * (1 - 1e-12) <= oracles.sup_reference(kernel, **options)[0] <= upper
    assert upper <= 1.02 * lower
    size = [int(n) * s for n, s in zip(rng.integers(1, 5, axes), options["stride"], strict=True)]
    circle = records.prove_conv_norm(kernel, size, padding_mode="circular", **options)
    lower, upper = ends(circle)
    assert lower * (1 - 1e-12) <= oracles.circular_reference(kernel, size, **options) <= upper
    options |= {"padding": [(2, int(n)) for n in rng.integers(1, 4, axes)], "transposed": seed > 5}
    options["padding"] = 1 if seed > 5 else options["padding"]
    padded = records.prove_conv_norm(kernel, [5] * axes, **options)
    assert oracles.check_conv(kernel, [5] * axes, *ends(padded), **options).clean
    assert ends(padded)[1] <= 1.002 * ends(padded)[0]
    for record in (every, circle, padded):
        assert_verified(record)


def test_large_zero_padded_operator_is_recorded_by_its_supremum(monkeypatch):
    monkeypatch.setattr(records, "_ENTRIES", 100)
    record = records.prove_conv_norm(LAPLACIAN, (9, 9), padding=1)
    assert record["upper"]["method"] == "cells"
    assert_verified(record)
    assert 8 <= ends(record)[1] <= 8.02
    assert ends(record)[0] == 0


def test_bound_is_looser_where_cells_run_out_and_still_verifies(monkeypatch):
    sharp = records.prove_conv_norm(LAPLACIAN, rtol=1e-5)
    monkeypatch.setattr(records, "_CELLS", 20)
    loose = records.prove_conv_norm(LAPLACIAN, rtol=1e-5)
    assert_verified(loose)
    assert ends(loose)[1] > ends(sharp)[1] >= 8
    assert len(loose["upper"]["cells"]) < len(sharp["upper"]["cells"])


def test_record_of_a_chain_is_not_above_the_certificate_by_more_than_its_slack():
    layers = [RNG.standard_normal((7, 5)), RNG.standard_normal((6, 7)), RNG.standard_normal((2, 6))]
    record = records.prove_chain(layers)
    assert_verified(record)
    assert ends(record)[1] <= gn.chain_bound(layers) * (1 + 1e-5)  # its ends are found once more
    given = records.prove_chain(layers, [np.ones(7), np.ones(6)])
    assert_verified(given)
    assert ends(given)[1] >= gn.chain_certificate(layers, [np.ones(7), np.ones(6)]) * (1 - 1e-12)


def test_record_of_zeros_verifies():
    assert_verified(records.prove_matrix_norm(np.zeros((2, 3))))
    assert_verified(records.prove_conv_norm(np.zeros((2, 3, 3))))
    assert_verified(records.prove_conv_norm(np.zeros((2, 3, 3)), 4, padding_mode="circular"))


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("seed", range(4))
def test_record_of_a_chain_is_not_below_any_pattern_of_activity(kind, seed):
    rng = np.random.default_rng(seed)
    layers, matrices = chains.plain(rng, kind)
    hidden = [np.exp(rng.standard_normal(w.shape[0]) / 4) for w in layers[:-1]]
    record = records.prove_chain(layers, hidden, rtol=3e-2)
    assert_verified(record)
    assert chains.largest_jacobian(matrices) <= chains.exactly(ends(record)[1])


def test_record_of_a_chain_with_norms_far_from_one_verifies():
    layers = [RNG.standard_normal((3, 3)) * 2.0**e for e in (300, -200, 90)]
    assert_verified(records.prove_chain(layers))


def test_record_of_a_chain_whose_multipliers_are_no_floats_is_refused():
    layers = [RNG.standard_normal((3, 3)) * 2.0**e for e in (900, 900, -900)]
    with pytest.raises(ValueError, match="multipliers are no floats"):
        records.prove_chain(layers)


@pytest.mark.parametrize("axes", [1, 2])
def test_record_of_a_chain_of_kernels_verifies(axes):
    rng = np.random.default_rng(axes)
    layers = [rng.standard_normal((2, 1, *[2] * axes)), rng.standard_normal((1, 2, *[3] * axes))]
    assert_verified(records.prove_chain(layers, [np.asarray([1.0, 0.5])], rtol=1e-2))


def test_shipped_network_verifies_layer_by_layer():
    file = importlib.resources.files("gramnorm") / "data" / "digits.npz"
    with importlib.resources.as_file(file) as path, np.load(path) as arrays:
        conv3, dense2 = arrays["conv3.weight"], arrays["dense2.weight"]
        made_of = [
            records.prove_conv_norm(conv3, name="conv3.weight"),
            records.prove_matrix_norm(dense2, name="dense2.weight"),
        ]
        for record in made_of:
            assert_verified(record, path=path)
            assert_verified(record)


def test_document_round_trips_through_a_file(tmp_path):
    record = records.prove_matrix_norm(np.eye(2), name="w")
    path = tmp_path / "proof.json"
    records.write_records(path, [record], left_out={"b": "a bias"})
    assert json.loads(path.read_text())["left_out"] == {"b": "a bias"}
    assert [v[:2] for v in verifier.verdicts(path.read_bytes())] == [("w", "verified")]


def test_large_array_is_not_stored_in_the_record(tmp_path):
    a = np.diag(np.arange(1.0, 101.0))
    record = records.prove_matrix_norm(a)
    assert "values" not in record["operator"]["array"]
    assert made.verdict(record)[0] == "cannot check"
    np.save(tmp_path / "a.npy", a)
    assert_verified(record, path=tmp_path / "a.npy")


class TestRefusals:
    @pytest.mark.parametrize(
        ("a", "why"),
        [
            (np.asarray([[1.0, math.nan]]), "NaN or inf"),
            (np.asarray([[1.0, math.inf]]), "NaN or inf"),
            (np.ones((2, 0)), "must not be empty"),
            (np.ones((2, 2, 2)), "one by one"),
            (np.ones(3), "one by one"),
            (np.asarray([[2**60 + 1]]), "2\\^53"),
            (np.full((2, 2), 1.7e308), "largest float"),
        ],
    )
    def test_matrix_without_a_record_is_refused_with_the_reason(self, a, why):
        with pytest.raises(ValueError, match=why):
            records.prove_matrix_norm(a)

    @pytest.mark.parametrize(
        "options",
        [
            {"input_shape": 8, "padding_mode": "reflect", "padding": 1},
            {"input_shape": 8, "padding_mode": "circular", "padding": 1},
            {"input_shape": 8, "padding_mode": "circular", "stride": 3},
        ],
    )
    def test_padding_without_records_is_refused(self, options):
        with pytest.raises(ValueError, match="records are of padding_mode"):
            records.prove_conv_norm(DIFFERENCE, **options)

    def test_operator_without_outputs_is_refused(self):
        with pytest.raises(ValueError, match="must leave outputs"):
            records.prove_conv_norm(DIFFERENCE, 2, padding="valid")

    def test_chain_with_a_zero_layer_is_refused(self):
        with pytest.raises(ValueError, match="none of them zero"):
            records.prove_chain([np.ones((2, 2)), np.zeros((2, 2))])

    def test_chain_of_several_kinds_is_refused(self):
        with pytest.raises(ValueError, match="all matrices, or all kernels"):
            records.prove_chain([np.ones((2, 1, 3)), np.ones((2, 2))])

    @pytest.mark.parametrize(
        "layer",
        [
            gn.network.ConvLayer(np.ones((2, 2, 3)), stride=2),
            gn.network.AvgPool(2),
            gn.network.MaxPool(2),
            gn.network.Flatten((2, 2)),
            gn.network.Activation(0.0, 1.0),
            gn.network.Residual([np.ones((2, 2))] * 2),
        ],
        ids=lambda layer: type(layer).__name__,
    )
    def test_layers_that_are_no_arrays_are_refused_by_their_name(self, layer):
        with pytest.raises(
            TypeError, match=f"got {type(layer).__name__}: the checker knows chains"
        ):
            records.prove_chain([np.ones((2, 2)), layer, np.ones((2, 2))])

    def test_names_of_another_number_than_layers_are_refused(self):
        with pytest.raises(ValueError, match="one name for each of 2"):
            records.prove_chain([np.ones((2, 2))] * 2, names=["a"])

    def test_lists_are_refused(self):
        with pytest.raises(TypeError, match="list"):
            records.prove_matrix_norm([[1.0]])

    def test_no_record_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="nothing to verify"):
            records.write_records(tmp_path / "proof.json", [])
