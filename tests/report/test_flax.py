"""Parameters that Flax serialised with msgpack, or flattened into other files."""

import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm.report import bound_layer
from gramnorm.report.files import contents
from gramnorm.report.files.contents import ReadError
from gramnorm.report.files.readers import read_path, read_stream
from tests.harness.oracles import conv_matrix, sigma
from tests.harness.reports import assert_refused, flax_bytes, run_json, some

pytestmark = pytest.mark.extra


def tree() -> dict[str, Any]:
    return {
        "params": {
            "Conv_0": {"kernel": some(3, 3, 2, 4), "bias": some(4)},
            "BatchNorm_0": {"scale": some(4), "bias": some(4)},
            "Dense_0": {"kernel": some(6, 3), "bias": some(3)},
        },
        "batch_stats": {"BatchNorm_0": {"mean": some(4), "var": abs(some(4))}},
    }


def flat(nested: dict[str, Any], start: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for key, value in nested.items():
        inner = (*start, key)
        found |= flat(value, inner) if isinstance(value, dict) else {inner: value}
    return found


def read(nested: Any, **options: Any) -> contents.Contents:
    return read_stream(io.BytesIO(flax_bytes(nested)), "x", **options)


class TestMsgpack:
    def test_layers_are_those_of_the_tree(self, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "x.msgpack").write_bytes(flax_bytes(tree()))
        code, report = run_json(capsys, tmp_path / "x.msgpack")
        assert code == 0
        kinds = {layer["name"]: layer["kind"] for layer in report["layers"]}
        assert kinds == {
            "params/Conv_0/kernel": "conv2d",
            "params/BatchNorm_0/scale": "batch norm",
            "params/Dense_0/kernel": "dense",
        }
        assert report["product_upper"] is not None

    def test_a_kernel_is_the_operator_that_flax_applies(self) -> None:
        layer = read(tree()).layers[0]
        kernel = tree()["params"]["Conv_0"]["kernel"]
        # y[o] = sum over taps and inputs of kernel[tap, input, output] x[o + tap, input]
        image = some(6, 5, 2).astype(np.float64)
        windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(0, 1))
        expected = np.einsum("abcij,ijcd->dab", windows, kernel.astype(np.float64))
        matrix = conv_matrix(layer.weight, (6, 5), padding=[[0, 0], [0, 0]])
        np.testing.assert_allclose(
            matrix @ np.moveaxis(image, -1, 0).ravel(), expected.ravel(), rtol=1e-12, atol=1e-12
        )
        row = bound_layer(layer)
        assert row.assumed
        assert sigma(matrix) <= row.upper

    @pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16", "i1", "u2", "i4", "u8", "?"])
    def test_values_are_those_written(self, dtype: str) -> None:
        array = (10 * some(3, 4)).astype(dtype)
        found = read({"a": {"kernel": array}, "b": {"kernel": some(2, 2)}}, layout="hwio")
        there = {layer.name: layer.weight for layer in (*found.layers, *found.spare)}
        if np.dtype(dtype).kind in "fc":
            np.testing.assert_array_equal(there["a/kernel"], array, strict=True)
        else:
            assert "a/kernel" in found.failed | found.obstacles

    def test_bfloat16_is_widened_exactly(self) -> None:
        msgpack = pytest.importorskip("msgpack")
        patterns = np.arange(2**16, dtype="<u2").reshape(256, 256)
        raw = msgpack.packb((patterns.shape, "bfloat16", patterns.tobytes()))
        content = msgpack.packb({"kernel": msgpack.ExtType(1, raw)})
        (layer,) = read_stream(io.BytesIO(content), "x").layers
        np.testing.assert_array_equal(layer.weight.view(np.uint32) >> 16, patterns)

    def test_numbers_that_need_a_scale_have_no_bound(self) -> None:
        msgpack = pytest.importorskip("msgpack")
        raw = msgpack.packb(((2, 2), "float8_e4m3fn", bytes(4)))
        nested = {"a": {"kernel": msgpack.ExtType(1, raw)}, "b": {"kernel": some(2, 2)}}
        assert "float8_e4m3fn" in read(nested).failed["a/kernel"]

    def test_arrays_in_chunks_are_joined(self) -> None:
        array = some(5, 4)
        chunks = {str(i): array.ravel()[7 * i : 7 * i + 7] for i in range(3)}
        shape = {"0": 5, "1": 4}
        chunked = {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}
        (layer,) = read({"a": {"kernel": chunked}}).layers
        np.testing.assert_array_equal(layer.weight, array, strict=True)
        wrong: tuple[dict[str, Any], ...] = (
            {"shape": {"0": 5, "1": 5}},
            {"shape": {"0": -1, "1": 4}},
            {"shape": array},
            {"chunks": {"1": array}},
            {"chunks": 3},
        )
        for part in wrong:
            with pytest.raises(ReadError, match="damaged"):
                read({"a": {"kernel": chunked | part}})

    def test_state_of_training_leaves_the_parameters(self) -> None:
        state = {"step": 3, "opt_state": {"0": {"mu": tree()["params"]}}, **tree()}
        assert len(read(state).layers) == 3
        found = read(state, entry="params")
        assert [layer.name for layer in found.layers] == ["Conv_0/kernel", "Dense_0/kernel"]
        assert "BatchNorm_0/scale" in found.obstacles  # its statistics are elsewhere
        with pytest.raises(ReadError, match="no dicts called 'model'"):
            read(state, entry="model")

    def test_missing_library_is_one_line(
        self, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "x").write_bytes(flax_bytes(tree()))
        monkeypatch.setitem(sys.modules, "msgpack", None)
        assert_refused(capsys, tmp_path / "x", 'pip install "gramnorm[flax]"')


class TestHostile:
    def test_truncations_are_refused(self, tmp_path: Path, capsys: Any) -> None:
        whole = flax_bytes(tree())
        for length in range(1, len(whole), 37):
            (tmp_path / "x.msgpack").write_bytes(whole[:length])
            assert_refused(capsys, tmp_path / "x.msgpack", "")

    @pytest.mark.parametrize(
        "content",
        [
            b"\x81\xa1a\xdd\xff\xff\xff\xff",  # a list of 2 ** 32 - 1
            b"\x81\xa1a" + b"\xdd\0\1\0\0" * 400 + bytes(2**17),  # lists of 2 ** 16 in each other
            b"\x81\xa1a\xc9\xff\xff\xff\xff\1",  # an array of 4 GiB
            b"\x81\xa1a\xdf\xff\xff\xff\xff",
            b"\x81\xa1a" * 10**4 + b"\1",
            b"\x81\xa1a\x81\x93\1\2\3\1",  # a list as a key
            b"\x81\xa2\xff\xfe\1",  # no text
        ],
    )
    def test_stated_lengths_take_no_memory(
        self, tmp_path: Path, capsys: Any, content: bytes
    ) -> None:
        pytest.importorskip("msgpack")
        (tmp_path / "x.msgpack").write_bytes(content)
        assert_refused(capsys, tmp_path / "x.msgpack", "")

    @pytest.mark.parametrize(
        ("shape", "kind", "size"),
        [
            ((10**9, 10**9), "float32", 4),
            ((-1, -4), "float32", 16),
            ((2, 2), "float32", 15),
            ((2, 2), "object", 32),
            (("2", 2), "float32", 16),
            (4, "float32", 16),
        ],
    )
    def test_arrays_are_held_against_their_bytes(self, shape: Any, kind: str, size: int) -> None:
        msgpack = pytest.importorskip("msgpack")
        raw = msgpack.ExtType(1, msgpack.packb((shape, kind, bytes(size))))
        with pytest.raises(ReadError):
            read({"a": {"kernel": raw}})

    def test_the_total_is_limited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        content = flax_bytes({"a": {"kernel": some(30, 30)}, "b": {"kernel": some(30, 30)}})
        monkeypatch.setattr(contents, "MAX_BYTES", 5000)
        with pytest.raises(ReadError, match="more than the limit"):
            read_stream(io.BytesIO(content), "x")

    def test_a_map_of_the_format_is_not_any_file(self) -> None:
        for head in (
            b"\x80\x02",
            struct.pack("<Q", 9) + b"{",
            b"\x93NUMPY\1\0",
            b"\x89HDF\r\n\x1a\n",
        ):
            with pytest.raises(ReadError):
                read_stream(io.BytesIO(head + bytes(40)), "x")


class TestOtherFiles:
    """The same parameters, flattened by the ways of JAX and Flax, in files without a tree."""

    @pytest.mark.parametrize(
        "spell",
        ["/".join, ".".join, str, lambda keys: "".join(f"[{key!r}]" for key in keys)],
        ids=["slashes", "dots", "tuple", "brackets"],
    )
    def test_flattened_names_are_read(self, tmp_path: Path, spell: Any) -> None:
        arrays = {spell(keys): values for keys, values in flat(tree()).items()}
        np.savez(tmp_path / "x.npz", **arrays)
        found = read_path(tmp_path / "x.npz")
        assert [layer.kind for layer in found.layers] == ["conv", "batch norm", "dense"]
        assert found.layers[0].weight.shape == (4, 2, 3, 3)
        assert not found.obstacles
        numpy = pytest.importorskip("safetensors.numpy")
        numpy.save_file(arrays, tmp_path / "x.safetensors")
        assert sorted(layer.kind for layer in read_path(tmp_path / "x.safetensors").layers) == [
            "batch norm",
            "conv",
            "dense",
        ]
