"""Tensors that stay in their file, of safetensors: what is read when, and what is noticed."""

import json
import math
import os
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gramnorm.report import bound_layer
from gramnorm.report.files import contents
from gramnorm.report.files.contents import ReadError
from gramnorm.report.files.readers import read_path
from gramnorm.report.files.several import read_paths
from gramnorm.report.files.tensors import KINDS, File, Tensor, in_memory
from tests.harness.reports import assert_refused, run_json, some
from tests.harness.tensors import CODES, write_safetensors

pytestmark = pytest.mark.no_backend


class TestReading:
    def test_no_matrix_is_read_before_its_turn(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_safetensors(
            tmp_path / "x.safetensors",
            {"fc.weight": some(3, 4), "conv.weight": some(4, 2, 3, 3), "fc.bias": some(3)},
        )
        opened: list[str] = []
        monkeypatch.setattr(
            File, "opened", lambda self, real=File.opened: opened.append(self.path) or real(self)
        )
        found = read_path(path)
        assert opened == []
        assert [in_memory(layer.weight) for layer in found.layers] == [0, 0]
        rows = [bound_layer(layer) for layer in found.layers]
        assert len(opened) == 2
        exact = np.linalg.norm(some(3, 4).astype(float), 2)
        (row,) = [row for row in rows if row.kind == "dense"]
        assert row.lower is not None
        assert row.lower <= exact * (1 + 1e-12)
        assert row.upper >= exact * (1 - 1e-12)

    @pytest.mark.parametrize("layout", ["oihw", "hwio", "ohwi"])
    def test_kernels_are_turned_as_those_in_memory_are(self, tmp_path: Path, layout: str) -> None:
        kernel = some(3, 5, 4, 2)
        path = write_safetensors(tmp_path / "x.safetensors", {"conv.weight": kernel})
        np.savez(tmp_path / "x.npz", **{"conv.weight": kernel})
        (turned,) = read_path(path, layout=layout).layers
        (expected,) = read_path(tmp_path / "x.npz", layout=layout).layers
        assert isinstance(turned.weight, Tensor)
        assert (turned.weight.shape, len(turned.weight)) == (
            expected.weight.shape,
            turned.weight.shape[0],
        )
        np.testing.assert_array_equal(np.asarray(turned.weight), expected.weight, strict=True)

    def test_depthwise_kernels_of_keras_are_turned_as_those_in_memory_are(
        self, tmp_path: Path
    ) -> None:
        arrays = {"a/depthwise_kernel": some(3, 3, 6, 2)}
        path = write_safetensors(tmp_path / "x.safetensors", arrays)
        np.savez(tmp_path / "x.npz", **arrays)
        (turned,), (expected,) = (read_path(p).layers for p in (path, tmp_path / "x.npz"))
        assert (turned.groups, expected.groups) == (6, 6)
        np.testing.assert_array_equal(np.asarray(turned.weight), expected.weight, strict=True)

    def test_pieces_make_the_array_whatever_their_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_safetensors(tmp_path / "x.safetensors", {"w": some(7, 11)})
        (layer,) = read_path(path).layers
        for piece in (1, 10, 76, 77, 78):
            monkeypatch.setattr("gramnorm.report.files.tensors.PIECE", piece)
            np.testing.assert_array_equal(np.asarray(layer.weight), some(7, 11), strict=True)

    def test_files_beyond_the_limit_of_arrays_in_memory_are_read(
        self, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arrays = {f"l{i}.weight": some(30, 30) for i in range(4)}
        path = write_safetensors(tmp_path / "x.safetensors", arrays)
        np.savez(tmp_path / "x.npz", **arrays)
        monkeypatch.setattr(contents, "MAX_BYTES", 9000)
        assert run_json(capsys, path)[0] == 0
        assert_refused(capsys, tmp_path / "x.npz", "safetensors are read one at a time")

    def test_weights_in_parts_are_put_together(self, tmp_path: Path) -> None:
        parts = {"a.weight_g": np.full((3, 1), 2, np.float32), "a.weight_v": some(3, 4)}
        (layer,) = read_path(write_safetensors(tmp_path / "x.safetensors", parts)).layers
        v = some(3, 4).astype(float)
        exact = np.linalg.norm(2 * v / np.linalg.norm(v, axis=1, keepdims=True), 2)
        row = bound_layer(layer)
        assert row.lower is not None
        assert row.lower <= exact * (1 + 1e-12)
        assert exact * (1 - 1e-12) <= row.upper <= exact * (1 + 1e-5)


class TestWhatBecomesOfTheFile:
    @pytest.fixture
    def layer(self, tmp_path: Path) -> Any:
        path = write_safetensors(tmp_path / "x.safetensors", {"w": some(30, 4)})
        return read_path(path).layers[0]

    def test_another_file_under_its_name_is_noticed(self, tmp_path: Path, layer: Any) -> None:
        path = tmp_path / "x.safetensors"
        status = path.stat()
        write_safetensors(path, {"w": 2 * some(30, 4)})
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        row = bound_layer(layer)
        assert "is not the file whose header was read" in str(row.error)
        assert math.isnan(row.upper)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert bound_layer(layer).error is None  # the price of not reading it: the same time

    @pytest.mark.parametrize("change", ["cut", "gone", "folder"])
    def test_what_cannot_be_read_any_more_has_no_bound(
        self, tmp_path: Path, layer: Any, change: str
    ) -> None:
        path = tmp_path / "x.safetensors"
        if change == "cut":
            os.truncate(path, path.stat().st_size - 8)
        else:
            path.unlink()
        if change == "folder":
            path.mkdir()
        row = bound_layer(layer)
        assert "x.safetensors" in str(row.error)
        assert "\n" not in str(row.error)

    def test_a_file_that_is_cut_without_a_trace_ends_in_one_line(
        self, tmp_path: Path, layer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "x.safetensors"
        os.truncate(path, path.stat().st_size - 8)
        monkeypatch.setattr(File, "opened", lambda self: open(self.path, "rb"))  # noqa: SIM115
        assert "the file ends in the middle of an array" in str(bound_layer(layer).error)

    def test_reading_without_a_copy_is_refused(self, layer: Any) -> None:
        with pytest.raises(ValueError, match="copies it"):
            np.asarray(layer.weight, copy=False)


def float8(bits: int, exponent: int, mantissa: int) -> float:
    """Return what bits of a float8 type mean, by the words of the formats' definition."""
    sign = -1.0 if bits >> 7 else 1.0
    e, m = (bits >> mantissa) & (2**exponent - 1), bits & (2**mantissa - 1)
    bias = 2 ** (exponent - 1) - 1
    if exponent == 4 and (e, m) == (15, 7):
        return math.nan
    if exponent == 5 and e == 31:
        return math.nan if m else sign * math.inf
    if e == 0:
        return sign * m / 2**mantissa * 2.0 ** (1 - bias)
    return sign * (1 + m / 2**mantissa) * 2.0 ** (e - bias)


class TestNarrowNumbers:
    @pytest.mark.parametrize(("kind", "exponent"), [("F8_E4M3", 4), ("F8_E5M2", 5)])
    def test_float8_is_widened_exactly(self, tmp_path: Path, kind: str, exponent: int) -> None:
        bits = np.arange(256, dtype=np.uint8).reshape(16, 16)
        path = write_safetensors(tmp_path / "x.safetensors", {"w": (kind, bits)})
        (layer,) = read_path(path).layers
        found = np.asarray(layer.weight)
        assert found.dtype == np.float32
        expected = [float8(b, exponent, 7 - exponent) for b in range(256)]
        np.testing.assert_array_equal(found.ravel(), np.asarray(expected, np.float32), strict=True)
        assert np.signbit(found.ravel()[128])

    @pytest.mark.extra
    @pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
    def test_float8_is_what_pytorch_takes_it_for(self, kind: str) -> None:
        torch = pytest.importorskip("torch")
        name = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}[kind]
        bits = torch.arange(256, dtype=torch.uint8)
        expected = bits.view(getattr(torch, name)).float().numpy()
        np.testing.assert_array_equal(KINDS[kind].made(bits.numpy()), expected, strict=True)

    def test_float8_has_the_norm_of_what_is_stored_and_no_product(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        bits = np.random.default_rng(0).integers(0, 0x77, (6, 5), dtype=np.uint8)
        arrays = {"a.weight": ("F8_E4M3", bits), "b.weight": some(6, 6)}
        code, report = run_json(capsys, write_safetensors(tmp_path / "x.safetensors", arrays))
        exact = np.linalg.norm(np.vectorize(lambda b: float8(int(b), 4, 3))(bits), 2)
        assert code == 0
        assert report["layers"][0]["lower"] <= exact <= report["layers"][0]["upper"]
        assert report["product_upper"] is None
        (why,) = [entry for entry in report["no_product"] if "a.weight" in entry["names"]]
        assert "float8" in why["reason"]

    @pytest.mark.parametrize("kind", ["F8_E4M3", "I8"])
    @pytest.mark.parametrize("scale", ["weight_scale", "weight_scale_inv", "SCB"])
    def test_numbers_beside_a_scale_are_refused(
        self, tmp_path: Path, capsys: Any, kind: str, scale: str
    ) -> None:
        bits = np.ones((6, 5), np.uint8)
        arrays = {"a.weight": (kind, bits), f"a.{scale}": some(6), "b.weight": some(6, 6)}
        code, report = run_json(capsys, write_safetensors(tmp_path / "x.safetensors", arrays))
        assert code == 1
        assert report["missing"] == ["a.weight"]
        assert scale in report["layers"][-1]["error"]

    def test_float16_has_the_norm_of_its_numbers(self, tmp_path: Path) -> None:
        values = some(40, 30).astype(np.float16)
        path = write_safetensors(tmp_path / "x.safetensors", {"w": values})
        row = bound_layer(read_path(path).layers[0])
        exact = np.linalg.norm(values.astype(float), 2)
        assert row.dtype == "float16"
        assert row.lower is not None
        assert row.lower <= exact <= row.upper <= exact * (1 + 2e-4)


def header_of(entries: Mapping[str, Any], size: int) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def entry(begin: int, end: int, *shape: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


class TestHeader:
    @pytest.mark.parametrize(
        ("entries", "size"),
        [
            ({"w": entry(0, 24, 2, 3)}, 23),
            ({"w": entry(0, 24, 2, 3)}, 25),
            ({"w": entry(4, 28, 2, 3)}, 28),
            ({"w": entry(0, 24, 2, 4)}, 24),
            ({"w": entry(0, 24, 2, 3), "v": entry(0, 24, 2, 3)}, 24),
            ({"w": entry(0, 24, 2, 3), "v": entry(28, 52, 2, 3)}, 52),
            ({"w": entry(24, 0, 2, 3)}, 24),
            ({"w": entry(0, 0, 2**62, 2**62, 0, -1)}, 0),
            ({"w": entry(0, 24, 2, 3) | {"dtype": "F33"}}, 24),
            ({"w": entry(0, 24, 2, 3) | {"dtype": ["F32"]}}, 24),
            ({"w": entry(0, 24, 2, 3) | {"shape": [2.0, 3]}}, 24),
            ({"w": entry(0, 24, 2, 3) | {"shape": [True, 6]}}, 24),
            ({"w": entry(0, 24, 2, 3) | {"shape": None}}, 24),
            ({"w": entry(0, 24, 2, 3) | {"data_offsets": [0]}}, 24),
            ({"w": entry(0, 24, 2, 3) | {"more": 1}}, 24),
            ({"w": {"dtype": "F32", "shape": [2, 3]}}, 24),
            ({"w": [0, 24]}, 24),
            ({"w": entry(0, 1, 1, 3, dtype="F4")}, 1),
        ],
    )
    def test_lies_about_places_are_refused(
        self, tmp_path: Path, capsys: Any, entries: Any, size: int
    ) -> None:
        (tmp_path / "x.safetensors").write_bytes(header_of(entries, size))
        assert_refused(capsys, tmp_path / "x.safetensors", "a damaged safetensors file")

    @pytest.mark.parametrize(
        "text",
        [
            b'{"w":1,"w":2}',
            b'{"w":',
            b"{" * 100_000,
            b'{"\xff":{}}',
            b'{"w":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}}',
        ],
    )
    def test_headers_that_are_no_json_of_one_are_refused(
        self, tmp_path: Path, capsys: Any, text: bytes
    ) -> None:
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
        assert_refused(capsys, tmp_path / "x.safetensors", "a damaged safetensors file")

    @given(
        st.dictionaries(st.text(max_size=5), st.lists(st.integers(0, 3), max_size=4), max_size=5)
    )
    def test_what_the_library_writes_is_read(
        self, tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]]
    ) -> None:
        library = pytest.importorskip("safetensors.numpy")
        rng = np.random.default_rng(0)
        shapes.pop("__metadata__", None)
        arrays = {
            name: rng.standard_normal(shape).astype(rng.choice(["f2", "f4", "f8"]))
            for name, shape in shapes.items()
        }
        from gramnorm.report.files.safetensors import read_safetensors  # noqa: PLC0415

        path = tmp_path_factory.mktemp("x") / "x.safetensors"
        library.save_file(arrays, path)
        with path.open("rb") as stream:
            found = read_safetensors(stream, path.stat().st_size)
        assert found.arrays.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(np.asarray(found.arrays[name]), array, strict=True)


class TestIndex:
    @pytest.fixture
    def index(self, tmp_path: Path) -> Path:
        """Return an index of two shards beside it."""
        for number, arrays in ((1, {"a.weight": some(3, 4)}), (2, {"b.weight": some(3, 3)})):
            write_safetensors(tmp_path / f"model-0000{number}-of-00002.safetensors", arrays)
        places = {
            f"{n}.weight": f"model-0000{i}-of-00002.safetensors" for i, n in ((1, "a"), (2, "b"))
        }
        return self.written(tmp_path, places)

    @staticmethod
    def written(folder: Path, places: Any) -> Path:
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {"total_size": 84}, "weight_map": places}))
        return path

    def test_an_index_is_the_network_of_its_shards(self, index: Path, capsys: Any) -> None:
        code, report = run_json(capsys, index)
        assert code == 0
        assert [row["name"] for row in report["layers"]] == ["a.weight", "b.weight"]
        _, of_folder = run_json(capsys, index.parent)
        assert report["product_upper"] == of_folder["product_upper"] is not None

    def test_files_of_any_name_and_in_any_number_of_digits(self, tmp_path: Path) -> None:
        write_safetensors(tmp_path / "x.bin", {"a.weight": some(3, 4)})
        path = self.written(tmp_path, {"a.weight": "x.bin"})
        assert [layer.name for layer in read_paths([path]).layers] == ["a.weight"]
        path.unlink()
        (tmp_path / "x.bin").unlink()
        for number in (1, 2):
            name = f"m-0000{number}-of-000002.safetensors"
            write_safetensors(tmp_path / name, {f"l{number}.weight": some(3, 3)})
        assert [layer.name for layer in read_paths([tmp_path]).layers] == ["l1.weight", "l2.weight"]

    @pytest.mark.parametrize("change", ["no file", "not held", "not stated", "elsewhere"])
    def test_what_index_and_files_do_not_say_alike_leaves_no_product(
        self, index: Path, capsys: Any, change: str
    ) -> None:
        places = json.loads(index.read_text())["weight_map"]
        first, second = sorted(places.values())
        if change == "no file":
            (index.parent / second).unlink()
        elif change == "not held":
            places["c.weight"] = first
        elif change == "not stated":
            del places["b.weight"]
            places["a.weight"], places["x"] = first, second
        else:
            places["a.weight"] = second
        code, report = run_json(capsys, self.written(index.parent, places))
        assert code == 1
        assert report["product_upper"] is None
        assert "index" in report["layers"][-1]["error"]

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("{", "weight_map"),
            ("[]", "weight_map"),
            ('{"weight_map": {}}', "weight_map"),
            ('{"weight_map": {"w": "../x.safetensors"}}', "only plain names"),
            ('{"weight_map": {"w": "/etc/passwd"}}', "only plain names"),
            ('{"weight_map": {"w": ".."}}', "only plain names"),
            ('{"weight_map": {"w": 3}}', "0 of the 1 files"),
            ('{"weight_map": {"w": "absent"}}', "0 of the 1 files"),
        ],
    )
    def test_an_index_that_names_no_files_beside_it_is_refused(
        self, tmp_path: Path, capsys: Any, text: str, match: str
    ) -> None:
        path = tmp_path / "x.index.json"
        path.write_text(text)
        assert_refused(capsys, path, match)

    def test_two_indices_are_two_networks(self, tmp_path: Path) -> None:
        paths = []
        for name in ("p", "q"):
            (tmp_path / name).mkdir()
            write_safetensors(tmp_path / name / "x.safetensors", {"a.weight": some(3, 4)})
            paths.append(self.written(tmp_path / name, {"a.weight": "x.safetensors"}))
        names = [layer.name for layer in read_paths(paths).layers]
        assert names == [f"{path}:a.weight" for path in paths]


# A report whose memory is limited to so much above what the process has before it reads.
_LIMITED = """
import resource, sys
import numpy as np
import gramnorm as gn
from gramnorm.report import cli, work

gn.matrix_norm_bracket(np.ones((300, 300), np.float32))  # the BLAS has its buffers
room = int(sys.argv.pop(1))
with open("/proc/self/statm") as stream:
    used = int(stream.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
sys.exit(cli.main())
"""


def limited(room: int, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run a report with so many bytes of memory more than it begins with."""
    command = [sys.executable, "-c", _LIMITED, str(room), "report", "--json", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write_checkpoint(folder: Path, count: int, shape: tuple[int, int], shards: int) -> int:
    """Write `count` bfloat16 matrices in shards, all other but of the same few bytes; return the size."""
    rng = np.random.default_rng(0)
    drawn = (rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    for shard in range(shards):
        names = [f"layers.{k}.weight" for k in range(shard, count, shards)]
        arrays = {name: ("BF16", np.roll(drawn, k, axis=0)) for k, name in enumerate(names)}
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / name, arrays)
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of memory are Linux's")
class TestMemory:
    @pytest.mark.slow
    def test_a_checkpoint_larger_than_the_memory_is_reported_completely(
        self, tmp_path: Path
    ) -> None:
        size = write_checkpoint(tmp_path, count=64, shape=(2048, 512), shards=4)
        room = size // 3
        began = time.perf_counter()
        done = limited(room, tmp_path)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert len(report["layers"]) == 64
        assert all(row["converged"] for row in report["layers"])
        assert time.perf_counter() - began < 300

    @pytest.mark.slow
    def test_a_gigabyte_is_reported_within_600_megabytes(self, tmp_path: Path) -> None:
        size = write_checkpoint(tmp_path, count=128, shape=(8192, 512), shards=4)
        assert size > 10**9
        done = limited(600 * 10**6, tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["layers"]) == 128

    @pytest.mark.slow
    def test_a_large_matrix_takes_few_times_its_own_memory(self, tmp_path: Path) -> None:
        # 14336 x 1024: 59 MB in single precision, a block of 67, 26 for its proof; no 117 in double
        write_checkpoint(tmp_path, count=1, shape=(14336, 1024), shards=1)
        done = limited(190 * 10**6, tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["layers"][0]["converged"]

    def test_a_limit_that_is_too_small_is_a_row_without_a_bound(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path, count=1, shape=(4096, 1024), shards=1)
        done = limited(2**20, tmp_path)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr


def test_codes_of_the_writer_are_all_that_can_be_read() -> None:
    assert CODES.keys() | {"BF16", "F8_E4M3", "F8_E5M2"} == KINDS.keys()


def test_reshaping_what_was_turned_is_refused() -> None:
    tensor = Tensor(File("x", 0, 0), "F32", 0, (2, 3))
    assert tensor.reshape(3, -1).shape == (3, 2)
    with pytest.raises(ValueError, match="cannot get the shape"):
        tensor.transpose(1, 0).reshape(2, 3)
    with pytest.raises(ValueError, match="cannot get the shape"):
        tensor.reshape(4, -1)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="No such file"):
        read_paths([tmp_path / "x.safetensors.index.json"])
