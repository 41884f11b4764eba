"""The checker: what it rejects and why, how it reads files, and that it stands alone."""

import ast
import copy
import io
import json
import math
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gramnorm import records, verifier
from tests.harness import oracles
from tests.harness import records as made
from tests.harness.oracles import Verdict
from tests.harness.records import edited, moved, stepped, vector_of

pytestmark = pytest.mark.no_backend

FILE = Path(verifier.__file__)
PACKAGE = FILE.parent

RNG = np.random.default_rng(21)
KERNEL = RNG.standard_normal((2, 2, 3))
KNOWN = np.diag([3.0, 4.0])
MATRIX = records.prove_matrix_norm(KNOWN, name="w")
CONV = records.prove_conv_norm(KERNEL, rtol=1e-2)
PLANE = records.prove_conv_norm(RNG.standard_normal((2, 1, 3, 2)), rtol=1e-2)
CIRCLE = records.prove_conv_norm(KERNEL, 6, padding_mode="circular")
PADDED = records.prove_conv_norm(KERNEL, 5, padding=[(1, 0)])
LAYERS = [RNG.standard_normal((3, 2)), RNG.standard_normal((3, 3)), RNG.standard_normal((2, 3))]
CHAIN = records.prove_chain(LAYERS)
KERNELS = records.prove_chain(
    [RNG.standard_normal((2, 1, 2)), RNG.standard_normal((1, 2, 3))], [np.ones(2)], rtol=1e-2
)
EVERY = {
    "matrix": MATRIX,
    "conv": CONV,
    "plane": PLANE,
    "circle": CIRCLE,
    "padded": PADDED,
    "chain": CHAIN,
    "kernels": KERNELS,
}


def assert_rejected(record, why, **options):
    found, reason = made.verdict(record, **options)
    assert (found, bool(re.search(why, reason))) == ("rejected", True), (found, reason)


def put(record, value, *keys):
    """Return a record with another value at a place."""

    def change(other):
        for key in keys[:-1]:
            other = other[key]
        other[keys[-1]] = value

    return edited(record, change)


def without(record, *keys):
    def change(other):
        for key in keys[:-1]:
            other = other[key]
        del other[keys[-1]]

    return edited(record, change)


@pytest.mark.parametrize("record", EVERY.values(), ids=EVERY)
def test_record_that_nobody_touched_is_verified(record):
    assert made.verdict(record)[0] == "verified"


class TestBounds:
    def test_upper_below_the_norm_by_one_ulp_is_rejected(self):
        assert made.verdict(put(MATRIX, (4.0).hex(), "upper", "bound"))[0] == "cannot check"
        assert_rejected(put(MATRIX, stepped((4.0).hex(), 0.0), "upper", "bound"), "above upper")

    def test_lower_above_the_norm_by_one_ulp_is_rejected(self):
        exact = put(MATRIX, vector_of(np.asarray([0.0, 1.0])), "lower", "vector")
        assert made.verdict(put(exact, (4.0).hex(), "lower", "bound"))[0] == "verified"
        assert_rejected(put(exact, stepped((4.0).hex(), 9.0), "lower", "bound"), "lower is greater")

    @pytest.mark.parametrize("record", EVERY.values(), ids=EVERY)
    def test_upper_below_lower_is_rejected(self, record):
        least = float.fromhex(record["lower"]["bound"]) or float.fromhex(record["upper"]["bound"])
        assert_rejected(put(record, (least * (1 - 1e-6)).hex(), "upper", "bound"), "upper")

    @pytest.mark.parametrize("name", ["matrix", "conv", "plane", "circle", "padded"])
    def test_lower_that_its_vector_does_not_attain_is_rejected(self, name):
        record = EVERY[name]
        raised = put(record, moved(record["lower"]["bound"], 1 + 1e-9), "lower", "bound")
        assert_rejected(raised, "lower is greater than what its vector attains")

    @pytest.mark.parametrize("side", ["lower", "upper"])
    @pytest.mark.parametrize(
        "bound",
        [
            *(
                "nan",
                "inf",
                "-inf",
                "-0x1.0000000000000p+2",
                "4.0",
                "0x4",
                "0x1p2",
                "",
                " 0x1.0p+0",
            ),
            *("0x1.00000000000000001p+2", "0x1.0000000000000p+2000", 4.5, 4, None, True, [], {}),
        ],
    )
    def test_bound_that_is_no_finite_hexadecimal_float_is_rejected(self, side, bound):
        assert_rejected(put(MATRIX, bound, side, "bound"), "finite float")

    @pytest.mark.parametrize("exponent", [-40, -20, 0, 20, 40])
    def test_verdict_on_an_upper_bound_is_that_of_the_oracle(self, exponent):
        rng = np.random.default_rng(5)
        for _ in range(10):
            a = rng.standard_normal((3, 4))
            sigma = oracles.sigma(a)
            upper = sigma * (1 + math.copysign(2.0 ** -abs(exponent), exponent - 0.5) * 2.0**-8)
            record = put(records.prove_matrix_norm(a), upper.hex(), "upper", "bound")
            holds = oracles.check_upper(a, upper) is Verdict.HOLDS
            assert made.verdict(record)[0] == ("verified" if holds else "rejected")


class TestVectors:
    @pytest.mark.parametrize("name", ["matrix", "conv", "plane", "circle", "padded"])
    def test_zero_vector_is_rejected(self, name):
        record = EVERY[name]
        stored = record["lower"]["vector"]
        zero = np.zeros(
            len(np.frombuffer(made.base64.b64decode(stored["values"]), stored["dtype"]))
        )
        assert_rejected(put(record, vector_of(zero), "lower", "vector"), "is zero")

    def test_vector_of_another_length_is_rejected(self):
        assert_rejected(put(MATRIX, vector_of(np.ones(3)), "lower", "vector"), "not of 2 entries")

    def test_vector_with_nan_is_rejected(self):
        wrong = vector_of(np.asarray([math.nan, 1.0]))
        assert_rejected(put(MATRIX, wrong, "lower", "vector"), "NaN or infinity")

    def test_lower_without_a_vector_is_rejected(self):
        assert_rejected(without(MATRIX, "lower", "vector"), "lacks .'vector'")

    @pytest.mark.parametrize(
        "frequency", ["0.25", "1/0", "-1/4", "nan", "1/4 ", "1", 0.75, None, "1" * 40 + "/7"]
    )
    def test_frequency_that_is_no_fraction_is_rejected(self, frequency):
        assert_rejected(put(CONV, [frequency], "lower", "frequency"), "fractions such as")

    def test_frequency_of_another_number_of_axes_is_rejected(self):
        assert_rejected(put(CONV, ["1/4", "1/4"], "lower", "frequency"), "list of 1")

    def test_frequency_between_those_of_a_circle_is_rejected(self):
        assert_rejected(put(CIRCLE, ["1/12"], "lower", "frequency"), "none of the circle")


class TestCells:
    def test_missing_cell_is_rejected(self):
        for record in (CONV, PLANE, KERNELS):
            for i in (0, len(record["upper"]["cells"]) // 2, -1):
                assert_rejected(without(record, "upper", "cells", i), "cells are missing")

    def test_cell_that_stands_twice_is_rejected(self):
        record = edited(PLANE, lambda r: r["upper"]["cells"].append(r["upper"]["cells"][0]))
        assert_rejected(record, "overlap")

    def test_cell_in_the_place_of_another_is_rejected(self):
        record = put(CONV, CONV["upper"]["cells"][1], "upper", "cells", 0)
        assert_rejected(record, "overlap")

    def test_cell_outside_of_the_frequencies_is_rejected(self):
        for side in (["1/2", "5/8"], ["3/8", "5/8"], ["1/4", "1/4"], ["1/4", "1/8"]):
            record = edited(CONV, lambda r, side=side: r["upper"]["cells"].append([side]))
            assert_rejected(record, "empty or not among the frequencies|overlap")

    @pytest.mark.parametrize("axis", [0, 1])
    def test_cells_cut_along_either_axis_are_compared_with_few_others(self, monkeypatch, axis):
        symbol, count, asked = SimpleNamespace(is_real=False, spans=(0, 0)), 512, []
        need = verifier.need
        monkeypatch.setattr(verifier, "need", lambda *args: asked.append(args) or need(*args))
        parts = [[f"{i}/{count}", f"{i + 1}/{count}"] for i in range(count)]
        listed = [[["0/1", "1/4"], part][:: 1 - 2 * axis] for part in parts]
        listed += [[["1/4", "1/1"], part][:: 1 - 2 * axis] for part in parts]
        assert len(list(verifier.cells(symbol, listed))) == 2 * count
        assert len(asked) < 40 * count
        listed[3] = listed[4]
        with pytest.raises(verifier.Refusal, match="overlap"):
            list(verifier.cells(symbol, listed))

    def test_cells_that_are_too_large_are_rejected(self):
        assert_rejected(put(CONV, [[["0/1", "1/2"]]], "upper", "cells"), "cosine|above upper")

    def test_cell_whose_cosine_is_negative_proves_nothing(self):
        record = records.prove_conv_norm(np.asarray([[[1.0, 0.0, 1.0, 0.0]]]))
        record["lower"] = {"bound": (0.0).hex()}
        record["upper"] |= {"bound": (1.0).hex(), "cells": [[["0/1", "1/2"]]]}  # F(1/4) = 0
        assert_rejected(record, "cosine of a cell is not positive")

    def test_cells_of_half_a_complex_kernel_are_rejected(self):
        a = KERNEL + 1j
        complex_one = records.prove_conv_norm(a, rtol=1e-2)
        half = [c for c in complex_one["upper"]["cells"] if made.verifier.Fraction(c[0][1]) <= 0.5]
        assert_rejected(put(complex_one, half, "upper", "cells"), "cells are missing")

    @pytest.mark.parametrize("cells", [[], None, {}, "all", [[]], [[["0/1"]]], [[["0/1", "x"]]]])
    def test_cells_that_are_none_are_rejected(self, cells):
        assert_rejected(put(CONV, cells, "upper", "cells"), "list|fractions")

    def test_level_of_cells_lowered_by_a_little_is_rejected(self):
        least = float.fromhex(CONV["lower"]["bound"])
        assert_rejected(put(CONV, (least * 1.0000001).hex(), "upper", "bound"), "above upper")


class TestWeights:
    def test_other_weights_are_rejected(self):
        for record in (MATRIX, CONV, CIRCLE, PADDED):
            array = record["operator"]["array"]
            data = bytearray(made.base64.b64decode(array["values"]))
            data[0] ^= 1
            text = made.base64.b64encode(data).decode()
            assert_rejected(put(record, text, "operator", "array", "values"), "another SHA-256")

    def test_wrong_hash_is_rejected(self):
        for value in ("0" * 64, "", None, 7, MATRIX["operator"]["array"]["sha256"].upper()):
            assert_rejected(put(MATRIX, value, "operator", "array", "sha256"), "another SHA-256")

    def test_swapped_layers_are_rejected(self):
        swap = lambda r: r["operator"]["arrays"].reverse()  # noqa: E731
        assert_rejected(edited(CHAIN, swap), "no chain|upper|multipliers|above")

    def test_swapped_layers_of_equal_shape_are_rejected(self):
        layers = [RNG.standard_normal((3, 3)) * s for s in (1.0, 3.0)]
        record = records.prove_chain(layers, [np.asarray([1.0, 2.0, 0.1])])
        assert made.verdict(record)[0] == "verified"
        swap = lambda r: r["operator"]["arrays"].reverse()  # noqa: E731
        assert_rejected(edited(record, swap), "above upper")

    def test_changed_dtype_is_rejected(self):
        for dtype in ("<f4", "<i8", "<c16", "<u2", ">f8", "|O", "<U4", "float64", "", None, 8, []):
            assert made.verdict(put(MATRIX, dtype, "operator", "array", "dtype"))[0] == "rejected"

    @pytest.mark.parametrize("shape", [[4, 1], [1, 4], [2, 2, 1], [4], [], None, [2, -2], [2.0, 2]])
    def test_changed_shape_is_rejected(self, shape):
        assert made.verdict(put(MATRIX, shape, "operator", "array", "shape"))[0] == "rejected"

    def test_circle_that_the_stride_does_not_divide_is_rejected(self):
        record = put(CIRCLE, [4], "operator", "stride")
        assert_rejected(record, "does not divide the circle")

    @pytest.mark.parametrize(
        ("record", "reason"),
        [(PADDED, "an assembled operator of"), (CIRCLE, "more than 5 frequencies")],
        ids=["padded", "circle"],
    )
    def test_operator_that_is_too_large_cannot_be_checked(self, monkeypatch, record, reason):
        monkeypatch.setattr(verifier, "MOST", 5)
        found, why = made.verdict(record)
        assert found == "cannot check"
        assert reason in why

    def test_changed_geometry_is_rejected(self):
        strided = records.prove_conv_norm(KERNEL, rtol=1e-2, stride=2)
        assert_rejected(put(strided, [1], "operator", "stride"), "upper|vector|cosine")
        assert_rejected(put(CONV, 2, "operator", "groups"), "vector|lower|upper")
        assert_rejected(put(CONV, 3, "operator", "groups"), "groups of")
        domain = PADDED["operator"]["domain"]
        assert_rejected(put(PADDED, domain | {"before": [9]}, "operator", "domain"), "lower")
        assert_rejected(put(PADDED, domain | {"outputs": [30]}, "operator", "domain"), "upper")
        assert_rejected(put(PADDED, {"circle": [5]}, "operator", "domain"), "frequency")
        assert_rejected(put(PADDED, "every size", "operator", "domain"), "proved by")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            *(("stride", v) for v in ([0], [-1], [1, 1], [1.0], [True], 1, None)),
            *(("dilation", v) for v in ([0], [2**40], "1", [])),
            *(("groups", v) for v in (0, -1, 1.0, None, "1", [1])),
            *(("domain", v) for v in (None, {}, "any size", {"circle": [0]}, {"circle": 6}, [])),
            *(("kind", v) for v in ("conv", None, [], {}, 1)),
        ],
    )
    def test_geometry_that_is_none_is_rejected(self, key, value):
        assert made.verdict(put(CONV, value, "operator", key))[0] == "rejected"


class TestChains:
    @pytest.mark.parametrize("value", ["0x0.0p+0", "-0x1.0000000000000p+0", "nan", "inf"])
    def test_multiplier_that_is_not_positive_is_rejected(self, value):
        assert_rejected(put(CHAIN, value, "upper", "multipliers", 0, 1), "multiplier")
        assert_rejected(put(CHAIN, value, "upper", "ends", 0), "ends|multiplier")

    def test_other_multipliers_are_rejected(self):
        change = moved(CHAIN["upper"]["multipliers"][1][0], 1.5)
        assert_rejected(put(CHAIN, change, "upper", "multipliers", 1, 0), "above upper")

    def test_lower_level_is_rejected(self):
        for record in (CHAIN, KERNELS):
            level = moved(record["upper"]["level"], 0.999)
            assert_rejected(put(record, level, "upper", "level"), "above upper")

    def test_bound_below_the_power_of_the_level_by_one_ulp_is_rejected(self):
        bound = stepped(CHAIN["upper"]["bound"], 0.0)
        assert_rejected(put(CHAIN, bound, "upper", "bound"), "below X_0")

    def test_missing_layer_is_rejected(self):
        assert_rejected(without(CHAIN, "operator", "arrays", 1), "multipliers|chain|list")

    def test_lower_of_a_chain_is_rejected(self):
        assert_rejected(put(CHAIN, (0.5).hex(), "lower", "bound"), "must be 0")

    @pytest.mark.parametrize(
        ("place", "layer"),
        [(2, LAYERS[2][:, :2]), (0, LAYERS[0].astype(complex)), (1, LAYERS[1][None])],
        ids=["narrower than its input", "complex", "of more axes"],
    )
    def test_layers_that_are_no_chain_of_real_ones_are_rejected(self, place, layer):
        record = put(CHAIN, records._array(layer, None), "operator", "arrays", place)
        assert_rejected(record, "are no chain of real ones")

    def test_level_of_another_operator_is_no_key(self):
        assert_rejected(put(MATRIX, (9.0).hex(), "upper", "level"), "unknown .'level'")


class TestDocuments:
    @pytest.mark.parametrize(
        "text",
        [
            *(b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe", b"{}", b"NaN", b"[" * 10**5),
            *(b'{"a":' * 10**5, b"1" * 10**5, b'{"schema": "gramnorm-records"}'),
            b'{"schema": "gramnorm-records", "version": 1, "records": []}',
            b'{"schema": "gramnorm-records", "version": 1, "records": {}}',
            b'{"schema": "gramnorm-records", "version": 1, "records": [1, null, "a", [], {}]}',
            b'{"schema": "gramnorm-records", "version": 1, "version": 1, "records": [1]}',
            b'{"schema": "gramnorm-records", "version": 1, "records": [{"a": 1, "a": 1}]}',
            b'{"schema": "gramnorm-records", "version": 1, "more": 0, "records": [1]}',
            *(
                b'{"schema": "gramnorm-records", "version": %b, "records": [1]}' % version
                for version in (b"0", b"2", b"1.0", b"true", b'"1"', b"null", b"NaN", b"Infinity")
            ),
        ],
    )
    def test_text_that_is_no_document_is_rejected(self, text):
        found = list(verifier.verdicts(text))
        assert found
        assert {verdict for _, verdict, _ in found} == {"rejected"}

    @pytest.mark.parametrize(
        ("old", "new", "reason"),
        [
            (b'"version": 1', b'"version": 1, "version": 1', "repeated key"),
            (b'"kind": "matrix"', b'"kind": "matrix", "kind": "matrix"', "repeated key"),
            *(
                (b'"version": 1', b'"version": ' + version, "unknown version")
                for version in (b"0", b"2", b"1.0", b"true", b'"1"', b"null")
            ),
            (b'"dtype": "<f8"', b'"dtype": "<f9"', "unknown dtype"),
            (b'"values": "', b'"values": "A', "base64"),
        ],
    )
    def test_one_wrong_word_in_a_document_is_the_reason_to_reject_it(self, old, new, reason):
        text = made.document(MATRIX)
        assert old in text
        ((_, found, why),) = verifier.verdicts(text.replace(old, new, 1))
        assert found == "rejected"
        assert reason in why

    @pytest.mark.parametrize("record", EVERY.values(), ids=EVERY)
    def test_every_key_is_needed_and_no_other_is_taken(self, record):
        def places(value, path=()):
            if isinstance(value, dict):
                yield path
                for key, entry in value.items():
                    yield from places(entry, (*path, key))

        for path in places(record):
            assert_rejected(put(record, 1, *path, "more"), "unknown .'more'")
            there = record
            for key in path:
                there = there[key]
            for key in there.keys() - {"name", "values"}:
                assert made.verdict(without(record, *path, key))[0] == "rejected", (path, key)

    @given(st.data())
    def test_any_change_of_bytes_ends_in_a_verdict_and_never_verifies_what_it_breaks(self, data):
        name = data.draw(st.sampled_from(sorted(EVERY)))
        text = bytearray(made.document(EVERY[name]))
        start = data.draw(st.integers(0, len(text) - 1))
        stop = start + data.draw(st.integers(0, 5))
        text[start:stop] = data.draw(st.binary(max_size=5))
        for _, verdict, _ in verifier.verdicts(bytes(text)):
            if verdict == "verified":
                assert_same_claim(json.loads(bytes(text))["records"][0], EVERY[name])

    @given(st.data())
    def test_any_value_in_any_place_ends_in_a_verdict(self, data):
        name = data.draw(st.sampled_from(sorted(EVERY)))
        record = copy.deepcopy(EVERY[name])
        there = record
        while True:
            keys = list(there) if isinstance(there, dict) else list(range(len(there)))
            key = data.draw(st.sampled_from(keys))
            if (
                not isinstance(there[key], dict | list)
                or not there[key]
                or data.draw(st.booleans())
            ):
                break
            there = there[key]
        numbers = st.integers() | st.floats() | st.text(max_size=5)
        there[key] = data.draw(st.none() | st.booleans() | numbers | st.lists(numbers, max_size=3))
        found, _ = made.verdict(record)
        assert found in {"verified", "rejected", "cannot check"}
        if found == "verified":
            assert_same_claim(record, EVERY[name])


def assert_same_claim(record, original):
    """Fail unless a record that still verifies states the same operator, with bounds that hold."""
    operator = copy.deepcopy(record["operator"])
    for array in [operator.get("array"), *operator.get("arrays", [])]:
        for other in [original["operator"].get("array"), *original["operator"].get("arrays", [])]:
            if array is not None and other is not None and array["sha256"] == other["sha256"]:
                array.update({k: v for k, v in other.items() if k in ("name", "values")})
                for key in array.keys() - other.keys():
                    del array[key]
    assert operator == original["operator"]
    lower, upper = (float.fromhex(record[side]["bound"]) for side in ("lower", "upper"))
    assert lower <= float.fromhex(original["upper"]["bound"])
    assert upper >= float.fromhex(original["lower"]["bound"])


class TestFiles:
    A = RNG.standard_normal((3, 4)).astype(np.float32)

    @pytest.fixture
    def record(self):
        return without(records.prove_matrix_norm(self.A, name="w"), "operator", "array", "values")

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_array_of_an_npz_file_is_found_by_its_name(self, tmp_path, record, save, order):
        path = tmp_path / "w.npz"
        save(path, v=self.A + 1, w=np.asarray(self.A, order=order), text=np.asarray("words"))
        assert made.verdict(record, path=path)[0] == "verified"

    def test_array_of_an_npy_file_is_found(self, tmp_path, record):
        path = tmp_path / "w.npy"
        np.save(path, np.asfortranarray(self.A))
        assert made.verdict(record, path=path)[0] == "verified"

    def test_array_without_a_name_is_found_by_its_hash(self, tmp_path, record):
        path = tmp_path / "w.npz"
        np.savez(path, v=self.A + 1, u=self.A)
        assert (
            made.verdict(without(record, "operator", "array", "name"), path=path)[0] == "verified"
        )
        assert_rejected(record, "no array 'w'", path=path)

    def test_other_array_of_this_name_is_rejected(self, tmp_path, record):
        path = tmp_path / "w.npz"
        for other, why in ((self.A + 1, "SHA-256"), (self.A.reshape(4, 3), "dtype or shape")):
            np.savez(path, w=other, v=self.A)
            assert_rejected(record, why, path=path)
            verifier.arrays_of.cache_clear()
        np.savez(path, w=self.A.view(np.int32))
        assert_rejected(record, "dtype or shape", path=path)

    def test_values_of_the_record_are_compared_with_the_file(self, tmp_path):
        path = tmp_path / "w.npz"
        np.savez(path, w=self.A + 1)
        assert_rejected(records.prove_matrix_norm(self.A, name="w"), "SHA-256", path=path)

    def test_file_without_arrays_is_rejected(self, tmp_path):
        path = tmp_path / "w.npz"
        np.savez(path)
        assert_rejected(records.prove_matrix_norm(self.A), "no array", path=path)

    def test_record_without_values_cannot_be_checked_without_a_file(self, record):
        assert made.verdict(record) == (
            "cannot check",
            "the record lacks the numbers of the matrix: name their file",
        )

    def test_safetensors_are_read(self, tmp_path):
        path = tmp_path / "w.safetensors"
        short = (self.A.view(np.uint32) >> 16 << 16).view(np.float32)
        halves = (short.view(np.uint32) >> 16).astype(np.uint16)
        tensors = {"w": ("F32", self.A), "b": ("BOOL", self.A > 0), "s": ("BF16", halves)}
        path.write_bytes(safetensors(tensors | {"i": ("I64", np.arange(6).reshape(2, 3))}))
        arrays = {"w": self.A, "b": self.A > 0, "s": short, "i": np.arange(6).reshape(2, 3)}
        for name, a in arrays.items():
            record = records.prove_matrix_norm(a, name=name)
            assert made.verdict(record, path=path)[0] == "verified"

    @pytest.mark.parametrize("damage", [b"", b"PK\3\4", b"\x93NUMPY\1\0", b"\x93NUMPY", b"\7" * 99])
    def test_damaged_file_cannot_be_checked(self, tmp_path, record, damage):
        path = tmp_path / "w.npz"
        path.write_bytes(damage)
        assert made.verdict(record, path=path)[0] in ("cannot check", "rejected")

    def test_file_cut_anywhere_ends_in_a_verdict(self, tmp_path, record):
        stream = io.BytesIO()
        np.savez(stream, w=self.A)
        whole = stream.getvalue()
        for cut in range(0, len(whole), 7):
            path = tmp_path / f"{cut}.npz"
            path.write_bytes(whole[:cut])
            assert made.verdict(record, path=path)[0] in ("cannot check", "rejected")

    def test_absent_file_cannot_be_checked(self, tmp_path, record):
        assert made.verdict(record, path=tmp_path / "none.npz")[0] == "cannot check"


def safetensors(tensors):
    """Return bytes of safetensors, written by hand."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, a) in tensors.items():
        data = a.tobytes()
        span = [len(body), len(body) + len(data)]
        header[name] = {"dtype": dtype, "shape": list(a.shape), "data_offsets": span}
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


class TestStandsAlone:
    def imports(self, path):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield "." if node.level else str(node.module).partition(".")[0]

    def test_it_imports_the_standard_library_and_flint_alone(self):
        assert set(self.imports(FILE)) - sys.stdlib_module_names == {"flint"}

    def test_nothing_else_imports_flint(self):
        using = [path for path in PACKAGE.glob("**/*.py") if "flint" in self.imports(path)]
        assert using == [FILE]

    def test_it_has_fewer_than_five_hundred_lines(self):
        assert len(FILE.read_text().splitlines()) < 500

    def test_a_copy_of_it_checks_records_where_the_package_is_not(self, tmp_path):
        shutil.copy(FILE, tmp_path / "verifier.py")
        records.write_records(tmp_path / "proof.json", [MATRIX, CONV])
        command = [sys.executable, "-I", "verifier.py", "proof.json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("verified") == 2

    def test_without_flint_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setattr(verifier, "flint", None)
        ((_, found, reason),) = verifier.verdicts(made.document(MATRIX))
        assert found == "cannot check"
        assert 'pip install "gramnorm[verify]"' in reason


class TestProgram:
    def run(self, tmp_path, *made_of, arguments=()):
        path = tmp_path / "proof.json"
        path.write_bytes(made.document(*made_of))
        return verifier.main([str(path), *map(str, arguments)])

    def test_exit_code_is_zero_if_all_are_verified(self, tmp_path, capsys):
        assert self.run(tmp_path, MATRIX, CONV) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("w: verified: 3.99999")
        assert "norm <=" in lines[0]
        assert lines[1].startswith("2: verified: ")

    def test_exit_code_is_one_if_one_is_rejected(self, tmp_path, capsys):
        large = without(MATRIX, "operator", "array", "values")
        assert self.run(tmp_path, put(MATRIX, (3.5).hex(), "upper", "bound"), large) == 1
        assert "w: rejected: the norm is above upper" in capsys.readouterr().out

    def test_exit_code_is_two_if_one_cannot_be_checked(self, tmp_path, capsys):
        assert self.run(tmp_path, MATRIX, without(MATRIX, "operator", "array", "values")) == 2
        assert "cannot check: the record lacks the numbers" in capsys.readouterr().out

    def test_absent_record_is_one_line(self, tmp_path, capsys):
        assert verifier.main([str(tmp_path / "none.json")]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize("arguments", [[], ["a", "b", "c"]])
    def test_other_arguments_are_one_line(self, arguments, capsys):
        assert verifier.main(arguments) == 2
        assert "usage" in capsys.readouterr().err

    @pytest.mark.parametrize("keys", [("name",), ("operator", "kind"), ("upper", "method")])
    def test_text_of_a_record_cannot_write_lines_of_its_own(self, tmp_path, capsys, keys):
        text = "a\n2: verified: \x1b[2J\u202e\u00e9\ud800"
        self.run(tmp_path, put(MATRIX, text, *keys))
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        assert out[:-1].isascii()
        assert out[:-1].isprintable()
