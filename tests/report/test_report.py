"""The report: what it reads, what it refuses, and that its text rounds to the true side."""

import io
import math
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gramnorm as gn
from gramnorm._rigour.decimals import decimal_text, relative_gap_above
from gramnorm._rigour.fractions import product_above
from gramnorm.report import Row, bound_layer, table, work
from gramnorm.report.files import contents
from gramnorm.report.files.contents import Layer, ReadError
from gramnorm.report.files.npz import read_npz
from gramnorm.report.files.readers import read_path
from tests.harness.reports import (
    RNG_SEED,
    Bomb,
    assert_refused,
    header_only,
    npy_bytes,
    run,
    run_json,
    some,
    write_npz,
    write_zip,
)

pytestmark = pytest.mark.no_backend

positive = st.floats(min_value=0, allow_infinity=False)
finite = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_npz(
        tmp_path / "net.npz",
        layers={"deep.weight": {"groups": 4, "padding": [1, 1], "input_shape": [6, 5]}},
        **{"deep.weight": some(4, 1, 3, 3), "deep.bias": some(4), "out.weight": some(3, 4)},
    )


class TestReading:
    def test_layers_skipped_entries_and_geometry(self, network: Path) -> None:
        contents = read_path(network)
        assert [(layer.name, layer.kind) for layer in contents.layers] == [
            ("deep.weight", "conv"),
            ("out.weight", "dense"),
        ]
        deep, out = contents.layers
        np.testing.assert_array_equal(deep.weight, some(4, 1, 3, 3), strict=True)
        assert deep.geometry == {"groups": 4, "padding": (1, 1), "input_shape": (6, 5)}
        assert out.geometry is None
        assert list(contents.skipped) == ["deep.bias"]
        assert "a bias" in contents.skipped["deep.bias"]

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    @pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", ">c8", "<c16", "|i1", ">i8", "|b1"])
    def test_values_are_those_numpy_reads(self, tmp_path: Path, save: Any, dtype: str) -> None:
        array = (10 * some(3, 4, 5)).astype(dtype)
        save(tmp_path / "x.npz", c=array, f=np.asfortranarray(array), empty=array[:0])
        with zipfile.ZipFile(tmp_path / "x.npz") as archive:
            arrays = read_npz(archive)[0].arrays
        for name, expected in {"c": array, "f": array, "empty": array[:0]}.items():
            np.testing.assert_array_equal(arrays[name], expected)
            assert arrays[name].dtype == np.dtype(dtype).newbyteorder("=")

    def test_single_array_is_named_by_its_file(self, tmp_path: Path) -> None:
        np.save(tmp_path / "dense.npy", some(3, 2))
        (layer,) = read_path(tmp_path / "dense.npy").layers
        assert layer.name == "dense"
        np.testing.assert_array_equal(layer.weight, some(3, 2))

    def test_onnx_without_its_package_names_the_extra(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "net.onnx").write_bytes(b"")
        monkeypatch.setitem(sys.modules, "onnx", None)
        with pytest.raises(ReadError, match=r"pip install \"gramnorm\[onnx\]\""):
            read_path(tmp_path / "net.onnx")

    def test_what_is_no_layer_is_listed_with_the_reason(self, tmp_path: Path) -> None:
        path = write_npz(
            tmp_path / "x.npz",
            w=some(2, 2),
            text=np.array([["a"]]),
            when=np.zeros((2, 2), "M8[s]"),
            record=np.zeros((2, 2), "f4,i4"),
            number=np.float64(3),
            counts=np.arange(3),
        )
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("readme.txt", "hello")
        contents = read_path(path)
        assert [layer.name for layer in contents.layers] == ["w"]
        assert set(contents.skipped) == {"text", "when", "record", "readme.txt"}
        assert set(contents.obstacles) == {"number", "counts"}
        assert "not numeric" in contents.skipped["text"]

    @pytest.mark.parametrize(
        ("layers", "match"),
        [
            ({"w": {"strides": 2}}, "unknown 'strides'"),
            ({"v": {"stride": 2}}, "does not hold"),
            ({"w": {"kind": "dense"}}, "does not fit"),
            ({"d": {"kind": "conv"}}, "does not fit"),
            ({"d": {"groups": 2}}, "does not fit"),
            ({"w": 3}, "object of objects"),
            ([], "object of objects"),
        ],
    )
    def test_geometry_that_would_be_misread_is_refused(
        self, tmp_path: Path, layers: Any, match: str
    ) -> None:
        path = write_npz(tmp_path / "x.npz", layers=layers, w=some(2, 2, 3), d=some(2, 2))
        with pytest.raises(ReadError, match=match):
            read_path(path)

    @pytest.mark.parametrize(
        "text", [np.array("{"), np.array(["{}"]), np.zeros(()), np.array("[" * 10**5)]
    )
    def test_geometry_must_be_one_json_text(self, tmp_path: Path, text: np.ndarray) -> None:
        np.savez(tmp_path / "x.npz", w=some(2, 2), __layers__=text)
        with pytest.raises(ReadError, match="__layers__"):
            read_path(tmp_path / "x.npz")


class TestHostileFiles:
    def test_object_arrays_are_refused_and_never_loaded(
        self, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        np.savez("bomb.npz", x=np.array([Bomb()], dtype=object))
        np.save("bomb.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
        Path("bomb.pkl").write_bytes(pickle.dumps(Bomb()))
        assert_refused(capsys, tmp_path / "bomb.npz", "pickle")
        assert_refused(capsys, tmp_path / "bomb.npy", "pickle")
        assert_refused(capsys, tmp_path / "bomb.pkl", "pickle")
        assert not Path("unpickled").exists()

    @pytest.mark.parametrize(
        "content",
        [
            *(
                b"",
                b"P",
                b"PK",
                b"PK\x03\x04",
                b"PK\x05\x06",
                b"hello" * 100,
                b"\x7fELF" + bytes(100),
            ),
            *(b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x09\x00" + bytes(200)),
        ],
    )
    def test_wrong_magic_and_stumps(self, tmp_path: Path, capsys: Any, content: bytes) -> None:
        (tmp_path / "x.npz").write_bytes(content)
        assert_refused(capsys, tmp_path / "x.npz", "cannot read")

    def test_missing_directory_fifo_empty(self, tmp_path: Path, capsys: Any) -> None:
        assert_refused(capsys, tmp_path / "nothing.npz", "No such file")
        assert_refused(capsys, tmp_path / "two\nlines.npz", "No such file")
        assert_refused(capsys, tmp_path, "no file in it has a suffix of weights")
        os.mkfifo(tmp_path / "fifo")
        assert_refused(capsys, tmp_path / "fifo", "not a regular file")
        np.savez(tmp_path / "empty.npz")
        assert_refused(capsys, tmp_path / "empty.npz", "no array of two or more axes")
        np.savez(tmp_path / "biases.npz", b=some(3))
        assert_refused(capsys, tmp_path / "biases.npz", "no array of two or more axes")

    def test_every_truncation_is_refused(self, network: Path, capsys: Any) -> None:
        whole = network.read_bytes()
        for length in range(0, len(whole), 13):
            network.write_bytes(whole[:length])
            assert_refused(capsys, network)

    @pytest.mark.parametrize("kind", ["npz", "npy"])
    def test_flipped_bytes_never_escape_as_another_error(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / f"x.{kind}"
        if kind == "npz":
            write_npz(path, layers={"w": {"groups": 2}}, w=some(2, 2, 3), d=some(3, 2))
        else:
            np.save(path, some(2, 3))
        whole = path.read_bytes()
        rng = np.random.default_rng(RNG_SEED)
        complaints = []
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            try:
                complaints += read_path(path).failed.values()
            except ReadError as error:
                complaints.append(str(error))
        assert len(complaints) > len(whole) / 4
        assert "\n" not in "".join(complaints)

    @pytest.mark.parametrize(
        "shape", [(10**6, 10**6), (2**62, 4), (3, 3), (2, 1), (-2, -2), (-1, 2), (0, 10**30)]
    )
    def test_lies_about_the_shape_are_refused_before_memory_is_taken(
        self, tmp_path: Path, capsys: Any, shape: tuple[int, ...]
    ) -> None:
        values = some(2, 2).tobytes()
        path = write_zip(tmp_path / "x.npz", lie=header_only(shape) + values)
        assert_refused(capsys, path, "states shape")
        (tmp_path / "x.npy").write_bytes(header_only(shape) + values)
        assert_refused(capsys, tmp_path / "x.npy", "states shape")

    def test_empty_shape_of_absurd_size_is_refused(self, tmp_path: Path, capsys: Any) -> None:
        assert_refused(capsys, write_zip(tmp_path / "x.npz", w=header_only((0, 10**30))))

    def test_total_over_the_limit_is_refused(
        self, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_npz(tmp_path / "x.npz", a=np.zeros((100, 100)), b=np.zeros((100, 100)))
        monkeypatch.setattr(contents, "MAX_BYTES", 150_000)
        assert_refused(capsys, path, "more than the limit of 150000")

    def test_zip_directory_that_understates_a_member_is_refused(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        path = write_zip(tmp_path / "x.npz", w=npy_bytes(some(50, 50)))
        content = path.read_bytes()
        true_size = struct.pack("<I", len(npy_bytes(some(50, 50))))
        assert content.count(true_size) == 2  # local header and central directory
        for lie in (1, 2**31, 2**32 - 2):
            path.write_bytes(content.replace(true_size, struct.pack("<I", lie)))
            assert_refused(capsys, path)

    def test_duplicate_names_and_encryption_are_refused(self, tmp_path: Path, capsys: Any) -> None:
        path = write_zip(tmp_path / "x.npz", a1=npy_bytes(some(2, 2)), a2=npy_bytes(some(2, 2)))
        content = path.read_bytes()
        path.write_bytes(content.replace(b"a2.npy", b"a1.npy"))
        assert_refused(capsys, path, "same name")
        start = content.index(b"PK\x01\x02") + 8  # the flags in the central directory
        path.write_bytes(content[:start] + b"\x01" + content[start + 1 :])
        assert "encrypted" in read_path(path).failed["a1"]

    def test_one_broken_member_does_not_lose_the_others(
        self, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        path = write_zip(
            tmp_path / "x.npz",
            w=npy_bytes(some(2, 2)),
            lie=header_only((10**6, 10**6)) + bytes(8),
            bomb=npy_bytes(np.array([Bomb()], dtype=object), allow_pickle=True),
        )
        code, report = run_json(capsys, path)
        assert code == 1
        assert not Path("unpickled").exists()
        assert (report["partial"], report["missing"]) == (True, ["lie", "bomb"])
        _, lie, bomb = report["layers"]
        assert "states shape" in lie["error"]
        assert "pickle" in bomb["error"]
        assert report["product_upper"] is None
        code, out, _ = run(capsys, "report", path)
        assert code == 1
        assert "- no bound: lie, bomb" in out

    def test_compression_that_numpy_does_not_write_is_refused(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("w.npy", npy_bytes(some(2, 2)))
        assert_refused(capsys, tmp_path / "x.npz", "does not write")

    def test_names_can_neither_steer_the_terminal_nor_be_markup(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        names = ("[red]\x1b[2J\n.w", "[red]\x1b[2J\n", "\x07.b", "\x07")
        np.savez(tmp_path / "x.npz", **{name: some(2, 2)[:, : len(name)] for name in names})
        code, out, _ = run(capsys, "report", tmp_path / "x.npz", "--include", "*")
        assert code == 0
        assert "[red]\\x1b[2J\\n.w" in out
        assert "not understood: [red]\\x1b[2J\\n" in out
        assert not {"\x1b", "\x07"} & set(out)


class TestDecimalText:
    @given(value=finite, digits=st.integers(1, 20))
    def test_upper_text_is_never_below_and_lower_never_above(
        self, value: float, digits: int
    ) -> None:
        exact = Fraction(value)
        above = Fraction(decimal_text(value, up=True, digits=digits))
        below = Fraction(decimal_text(value, up=False, digits=digits))
        assert below <= exact <= above
        # And it is the nearest such text: one unit in the last digit apart at most.
        assert above - below <= abs(exact) * Fraction(10) ** (1 - digits)

    @given(value=st.floats(0, 1e6, width=32))
    def test_float32_values_as_well(self, value: float) -> None:
        assert Decimal(decimal_text(value, up=False)) <= Decimal(value)
        assert Decimal(decimal_text(value, up=True)) >= Decimal(value)

    @pytest.mark.parametrize(
        ("value", "up", "text"),
        [
            (4.0, True, "4.000000"),
            (4.0, False, "4.000000"),
            (0.1, True, "0.1000001"),  # the float is above one tenth
            (0.1, False, "0.1000000"),
            (9.9999999, True, "10.00000"),
            (9.9999999, False, "9.999999"),
            (1e22, True, "1.000000e+22"),
            (5e-324, True, "4.940657e-324"),
            (0.0, True, "0"),
            (math.inf, True, "inf"),
            (math.nan, False, "nan"),
        ],
    )
    def test_known_texts(self, value: float, up: bool, text: str) -> None:
        assert decimal_text(value, up=up) == text


class TestRoundingOfDerivedNumbers:
    @given(st.lists(positive, max_size=8))
    def test_product_is_the_least_float_above_the_exact_product(self, values: list[float]) -> None:
        exact = math.prod(map(Fraction, values), start=Fraction(1))
        product = product_above(values)
        assert product == math.inf or Fraction(product) >= exact
        if product > 0:
            assert Fraction(math.nextafter(product, 0)) < exact

    def test_product_of_odd_values(self) -> None:
        assert product_above([]) == 1
        assert product_above([1e300, 1e300]) == math.inf
        assert product_above([5e-324, 0.5]) == 5e-324
        assert product_above([0.0, math.inf]) == math.inf
        assert math.isnan(product_above([math.inf, math.nan]))

    @given(positive, positive)
    def test_gap_is_not_understated(self, a: float, b: float) -> None:
        lower, upper = sorted((a, b))
        gap = relative_gap_above(lower, upper)
        assert gap == math.inf or Fraction(gap) * Fraction(lower) >= Fraction(upper) - Fraction(
            lower
        )

    def test_gap_of_odd_values(self) -> None:
        assert relative_gap_above(0.0, 0.0) == 0
        assert relative_gap_above(0.0, 1.0) == math.inf
        assert relative_gap_above(math.inf, math.inf) == 0
        assert relative_gap_above(1.0, math.inf) == math.inf
        assert math.isnan(relative_gap_above(math.nan, math.nan))


class TestBounds:
    def test_groups_are_a_maximum_over_blocks(self) -> None:
        weight = np.array([0.5, 0.9]).reshape(2, 1, 1, 1)
        row = bound_layer(Layer("w", weight, {"groups": 2}))
        assert row.lower <= 0.9 <= row.upper < 0.91
        assert row.kind == "conv2d, depthwise"
        assumed = bound_layer(Layer("w", weight))
        assert (assumed.assumed, assumed.lower) == (True, None)  # 0.9 with two groups
        assert math.hypot(0.5, 0.9) <= assumed.upper < 1.04

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, {"input_shape": None, "padding": None, "padding_mode": "zeros"}),
            ({"input_shape": (8, 9)}, {"input_shape": (8, 9), "padding": (1, 2)}),
            ({"input_shape": (8,)}, {"input_shape": (8, 8), "padding": (1, 2)}),
            ({"input_shape": "file"}, {"input_shape": (6, 5), "padding": (1, 2)}),
            (
                {"input_shape": "file", "padding_mode": "circular"},
                {"input_shape": (6, 5), "padding": None, "padding_mode": "circular"},
            ),
            ({"rtol": 0.5}, {"rtol": 0.5, "groups": 2, "dilation": 2}),
        ],
    )
    def test_what_a_convolution_is_asked_with(
        self, monkeypatch: pytest.MonkeyPatch, options: Any, expected: dict[str, Any]
    ) -> None:
        asked: dict[str, Any] = {}

        def bracket(kernel: Any, /, input_shape: Any = None, **keywords: Any) -> gn.NormBracket:
            defaults = {"padding": None, "padding_mode": "zeros"}
            asked.update({"input_shape": input_shape} | defaults | keywords)
            one = np.float32(1)
            return gn.NormBracket(one, one, np.True_, 0)

        monkeypatch.setattr(gn, "conv_norm_bracket", bracket)
        geometry = {"kind": "conv", "groups": 2, "dilation": 2, "padding": (1, 2)}
        geometry["input_shape"] = (6, 5)
        row = bound_layer(Layer("w", some(2, 1, 3, 3), geometry), **options)
        assert row.error is None
        assert {key: asked[key] for key in expected} == expected
        assert "kind" not in asked

    @pytest.mark.parametrize("value", [{"a": 1}, ({"a": 1}, 2), "2", (), 2.5, True, -1, 10**30])
    @pytest.mark.parametrize("keyword", ["stride", "dilation", "groups", "input_shape", "padding"])
    def test_nonsense_for_a_keyword_is_an_error_of_its_layer(
        self, keyword: str, value: Any
    ) -> None:
        geometry = {"input_shape": (6,)} | {keyword: value}
        row = bound_layer(Layer("w", some(2, 2, 3), geometry), input_shape="file")
        assert row.error is not None
        assert "states no" not in row.error

    def test_size_from_the_file_must_be_there(self) -> None:
        row = bound_layer(Layer("w", some(2, 2, 3)), input_shape="file")
        assert row.error is not None
        assert "no input_shape" in row.error
        assert math.isnan(row.upper)

    @pytest.mark.parametrize(
        ("shape", "geometry", "kind"),
        [
            ((2, 3), None, "dense"),
            ((2, 3, 1), None, "conv1d"),
            ((2, 2, 1, 1, 1), {"groups": 1}, "conv3d"),
            ((4, 2, 1, 1), {"groups": 2, "dilation": (1, 2)}, "conv2d, 2 groups, dilation (1, 2)"),
            ((2, 2, 1), {"stride": 2, "transposed": True}, "conv1d, stride 2, transposed"),
        ],
    )
    def test_kinds(self, shape: tuple[int, ...], geometry: Any, kind: str) -> None:
        assert bound_layer(Layer("w", some(*shape), geometry)).kind == kind


class TestJson:
    def test_schema_and_full_precision(self, network: Path, capsys: Any) -> None:
        code, report = run_json(capsys, network, "--rtol", "1e-2")
        assert code == 0
        assert set(report) == {
            *("source", "version", "input_shape", "padding_mode", "rtol", "backend", "device"),
            *("layers", "notes", "skipped", "product_upper", "no_product", "partial", "missing"),
            *("network", "network_method", "unfinished"),
        }
        assert report["source"] == str(network)
        assert report["rtol"] == 0.01
        assert (report["partial"], report["missing"], report["no_product"]) == (False, [], [])
        assert [entry["name"] for entry in report["skipped"]] == ["deep.bias"]
        for layer in report["layers"]:
            assert set(layer) == {
                *("name", "kind", "shape", "dtype", "seconds", "lower", "upper"),
                *("gap", "converged", "assumed", "forced", "error"),
            }
            assert layer["gap"] == relative_gap_above(layer["lower"], layer["upper"])
            assert layer["converged"] is True
            assert layer["error"] is None
        uppers = [layer["upper"] for layer in report["layers"]]
        assert report["product_upper"] == product_above(uppers)
        expected = gn.matrix_norm_bracket(some(3, 4), rtol=1e-2)
        assert uppers[1] == float(expected.upper)
        assert report["layers"][1]["lower"] == float(expected.lower)

    def test_grouped_layer_differs_from_the_same_array_without_groups(
        self, network: Path, tmp_path: Path, capsys: Any
    ) -> None:
        _, grouped = run_json(capsys, network)
        bare = write_npz(tmp_path / "bare.npz", **{"conv.w": some(4, 1, 3, 3)})
        _, assumed = run_json(capsys, bare)
        assert assumed["layers"][0]["assumed"]
        assert not grouped["layers"][0]["assumed"]
        assert assumed["layers"][0]["upper"] > grouped["layers"][0]["upper"]

    def test_numbers_json_has_no_sign_for_are_text(self, tmp_path: Path, capsys: Any) -> None:
        bad, huge = some(2, 2), some(2, 2)
        bad[0, 0], huge[0, 0] = math.nan, math.inf
        path = write_npz(tmp_path / "x.npz", fc1=bad, fc2=huge, fc3=np.zeros((2, 2)))
        code, report = run_json(capsys, path)
        assert code == 0
        assert [layer["upper"] for layer in report["layers"]] == ["nan", "inf", 0.0]
        assert report["product_upper"] == "nan"
        assert run(capsys, "report", path)[0] == 0

    def test_needs_no_rich(
        self, network: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "rich", None)
        assert run_json(capsys, network)[0] == 0
        assert_refused(capsys, network, 'pip install "gramnorm[report]"')


class TestTable:
    def test_one_line_per_layer_with_directed_numbers(self, network: Path, capsys: Any) -> None:
        _, report = run_json(capsys, network)
        code, out, err = run(capsys, "report", network)
        assert (code, err) == (0, "")
        for layer in report["layers"]:
            (line,) = (line for line in out.splitlines() if f" {layer['name']} " in line)
            assert decimal_text(layer["lower"], up=False) in line
            assert decimal_text(layer["upper"], up=True) in line
            assert " x ".join(map(str, layer["shape"])) in line
        product = out.split("rounded up: ")[1].split()[0]
        assert Fraction(product) >= Fraction(report["product_upper"])
        assert "skipped 1 (1-D" in out
        assert "no product" not in out

    @pytest.mark.parametrize("columns", [20, 60, 80, 100, 200])
    def test_table_is_as_wide_as_the_terminal_and_no_digit_is_cut(
        self, network: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, columns: int
    ) -> None:
        _, report = run_json(capsys, network)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.chdir(network.parent)
        _, out, _ = run(capsys, "report", network.name)
        lines = out.splitlines()
        assert "…" not in out
        assert max(map(len, lines)) <= max(columns, 76)  # digits and what is left of the names
        assert not [line for line in lines if line != line.rstrip()]
        assert ("converged" in out) == (columns >= 100)
        for layer in report["layers"]:
            assert decimal_text(layer["lower"], up=False) in out.split()
            assert decimal_text(layer["upper"], up=True) in out.split()
            assert " x ".join(map(str, layer["shape"])) in out

    def test_long_names_are_folded_and_none_of_their_letters_is_lost(
        self, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = "encoder.layers.10." + "abcdefghij." * 9 + "weight"
        path = write_npz(tmp_path / "x.npz", **{name: some(3, 4), "fc.weight": some(3, 4)})
        monkeypatch.setenv("COLUMNS", "80")
        _, out, _ = run(capsys, "report", path)
        rows = out.split("─")[-1].split("\n\n")[0].splitlines()
        assert "".join(row.split()[0] for row in rows if row.strip()) == name + "fc.weight"
        assert max(map(len, rows)) <= 80

    def test_rows_that_did_not_converge_are_named_below(self, network: Path, capsys: Any) -> None:
        _, out, _ = run(capsys, "report", network, "--rtol", "1e-17")
        assert "further apart than the gap asked for, and as valid: deep.weight" in out
        assert "further apart" not in run(capsys, "report", network)[1]

    def test_assumed_geometry_is_said(self, tmp_path: Path, capsys: Any) -> None:
        path = write_npz(tmp_path / "x.npz", conv=some(2, 2, 3))
        assert "does not say how the kernel is used" in run(capsys, "report", path)[1]


class TestPartial:
    @pytest.fixture
    def strided(self, tmp_path: Path) -> Path:
        return write_npz(
            tmp_path / "x.npz",
            layers={"first": {}, "second": {"groups": 3}},
            first=some(2, 2, 3),
            second=some(4, 2, 3),
            fc3=some(2, 2),
        )

    def test_other_layers_are_bounded_and_there_is_no_product(
        self, strided: Path, capsys: Any
    ) -> None:
        code, report = run_json(capsys, strided)
        assert code == 1
        assert (report["partial"], report["missing"]) == (True, ["second"])
        _, second, _ = report["layers"]
        assert "groups must divide" in second["error"]
        assert second["upper"] is second["lower"] is second["gap"] is second["converged"] is None
        assert report["product_upper"] is None
        assert report["no_product"] == [{"reason": "no bound", "names": ["second"]}]

    def test_table_has_no_product(self, strided: Path, capsys: Any) -> None:
        code, out, err = run(capsys, "report", strided)
        assert (code, err) == (1, "")
        assert "no product of the upper bounds" in out
        assert "- no bound: second" in out
        assert "groups must divide" in out

    @pytest.mark.parametrize("kind", [NotImplementedError, ValueError, TypeError])
    def test_errors_about_one_layer_are_its_own(
        self, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
    ) -> None:
        def bracket(*_: Any, **__: Any) -> None:
            msg = "not\nthere"
            raise kind(msg)

        monkeypatch.setattr(gn, "conv_norm_bracket", bracket)
        assert bound_layer(Layer("w", some(2, 2, 3))).error == "not there"


class TestCommand:
    def test_default_is_the_shipped_network(self, capsys: Any) -> None:
        code, report = run_json(capsys)
        assert code == 0
        assert "digits.npz" in report["source"]
        assert len(report["layers"]) == 6

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["unknown"],
            ["report", "--rtol", "0"],
            ["report", "--rtol", "nan"],
            ["report", "--input-shape", "8,0"],
            ["report", "--input-shape", "a"],
            ["report", "--input-shape", ""],
            ["report", "--padding-mode", "reflect"],
            ["report", "--strides", "2"],
        ],
    )
    def test_misuse_is_one_line_and_exit_code_2(self, capsys: Any, arguments: list[str]) -> None:
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert err.endswith("(see gramnorm report --help)\n")

    @pytest.mark.parametrize("arguments", [["--version"], ["report", "--version"]])
    def test_version(self, capsys: Any, arguments: list[str]) -> None:
        code, out, _ = run(capsys, *arguments)
        assert (code, out) == (0, f"gramnorm {gn.__version__}\n")

    @pytest.mark.parametrize(
        ("text", "shape"), [("8,9", (8, 9)), ("8x9", (8, 9)), ("7", (7,)), ("file", "file")]
    )
    def test_input_shape_is_passed_on(
        self, network: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, text: str, shape: Any
    ) -> None:
        seen = []

        def bound(layer: Layer, *, input_shape: Any, **_: Any) -> Row:
            seen.append(input_shape)
            return Row(layer.name, "dense", (1, 1), "float32", 0.0, 1.0, 1.0, True)

        monkeypatch.setattr(work, "bound_layer", bound)
        assert run_json(capsys, network, "--input-shape", text)[0] == 0
        assert seen == [shape, shape]

    @pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (MemoryError, 2)])
    def test_interruption_and_lack_of_memory_end_quietly(
        self, network: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, error: Any, code: int
    ) -> None:
        def bound(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(work, "bound_layer", bound)
        assert run(capsys, "report", network)[0] == code

    def test_reader_that_goes_away_is_no_traceback(self, network: Path) -> None:
        command = [sys.executable, "-m", "gramnorm", "report", "--json", str(network)]
        read_end, write_end = os.pipe()
        os.close(read_end)
        with os.fdopen(write_end, "wb") as gone:
            done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 141
        assert done.stderr == b""

    def test_module_runs_and_names_need_no_unicode_terminal(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", schicht_ä_層=some(2, 2))
        done = subprocess.run(
            [sys.executable, "-m", "gramnorm", "report", str(tmp_path / "x.npz")],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert rb"schicht_\xe4" in done.stdout

    def test_rich_is_not_imported_for_json(self, network: Path) -> None:
        code = (
            "import sys; from gramnorm.report.cli import main; main(sys.argv[1:]);"
            "sys.exit('rich' in sys.modules)"
        )
        command = [sys.executable, "-c", code, "report", "--json", str(network)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_report_text_has_no_product_of_lower_bounds() -> None:
    rows = [Row("a", "dense", (1, 1), "float64", 0.0, 2.0, 3.0, True)] * 2
    stream = io.StringIO()
    report = table.Report("x.npz", "0", rows, {}, {})
    table.write_table(report, stream)
    assert "9.000000" in stream.getvalue()
    assert "4.000000" not in stream.getvalue()
