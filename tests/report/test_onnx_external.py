"""Arrays of ONNX models in files beside the model: what exporters write, and what strangers may."""

import io
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm.report.files import contents
from gramnorm.report.files.contents import ReadError
from gramnorm.report.files.readers import read_path
from gramnorm.report.onnx.reader import read_onnx
from tests.report.test_onnx import helper, model_of, node, onnx, some

pytestmark = pytest.mark.extra

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return what writes a model of one MatMul, whose weight lies where the arguments say."""

    def written(*entries: tuple[str, str], data: bytes | None = None, **fields: Any) -> Path:
        weight = some(3, 4)
        model = model_of([node("MatMul", "x w")], shape=(1, 3), w=weight)
        array = model.graph.initializer[0]
        array.ClearField("raw_data")
        array.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries or (("location", "m.data"),):
            array.external_data.add(key=key, value=value)
        for key, value in fields.items():
            setattr(array, key, value)
        folder = tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        (folder / "m.data").write_bytes(weight.tobytes() if data is None else data)
        path = folder / "m.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return written


def weight_of(path: Path) -> np.ndarray:
    (layer,) = read_path(path).layers
    return layer.weight


class TestReading:
    def test_what_onnx_saves_is_read_as_if_it_were_inside(self, tmp_path: Path) -> None:
        arrays = {"w": some(4, 3, 3, 3), "v": some(4, 4, 1, 1).astype("float16"), "b": some(4)}
        nodes = [node("Conv", "x w b", "t"), node("Conv", "t v")]
        model = model_of(nodes, **arrays)
        onnx.save(model, tmp_path / "inside.onnx")
        outside = {"save_as_external_data": True, "location": "all.data", "size_threshold": 0}
        onnx.save(model, tmp_path / "outside.onnx", **outside)
        found, expected = (read_path(tmp_path / f"{n}.onnx") for n in ("outside", "inside"))
        assert [layer.name for layer in found.layers] == ["w", "v"]
        for layer, other in zip(found.layers, expected.layers, strict=True):
            assert layer.weight.dtype == other.weight.dtype
            assert layer.geometry == other.geometry
            np.testing.assert_array_equal(layer.weight, other.weight)
        same = zip(found.network.steps, expected.network.steps, strict=True)
        for step, other in same:  # their parts hold the weights, which were compared
            assert replace(step, part=None) == replace(other, part=None)

    @pytest.mark.filterwarnings("ignore")  # of the exporter
    def test_what_pytorch_exports_by_default_is_read(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        pytest.importorskip("onnxscript")
        layer = torch.nn.Linear(64, 64)
        path = tmp_path / "model.onnx"
        torch.onnx.export(layer, (torch.zeros(1, 64),), path, dynamo=True, verbose=False)
        assert (tmp_path / "model.onnx.data").exists()
        (found,) = read_path(path).layers
        expected = layer.weight.detach().numpy()
        assert found.weight.shape == expected.shape
        np.testing.assert_array_equal(found.weight, expected)

    def test_offsets_and_lengths_are_followed(self, write: Write) -> None:
        data = b"\x00" * 7 + some(3, 4).tobytes() + b"\x00"
        path = write(("location", "m.data"), ("offset", "7"), ("length", "48"), data=data)
        weight = weight_of(path)
        assert weight.flags.aligned
        np.testing.assert_array_equal(weight, some(3, 4).T)

    def test_bfloat16_is_widened(self, write: Write) -> None:
        bits = some(3, 4).view("u4") >> 16
        path = write(data=bits.astype("<u2").tobytes(), data_type=onnx.TensorProto.BFLOAT16)
        np.testing.assert_array_equal(weight_of(path), (bits << 16).view("f4").T)

    def test_a_link_within_the_folder_is_followed(self, write: Write) -> None:
        path = write(("location", "link"))
        (path.parent / "link").symlink_to("m.data")
        np.testing.assert_array_equal(weight_of(path), some(3, 4).T)

    def test_the_file_is_mapped_and_not_read(self, write: Write) -> None:
        path = write(("location", "m.data"), ("length", "48"))
        with (path.parent / "m.data").open("r+b") as stream:
            stream.truncate(2**33)
        tracemalloc.start()
        weight_of(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()


class TestHostile:
    @pytest.mark.parametrize(
        "location",
        ["../secret", "/etc/passwd", "", ".", "..", "sub/m.data", "..\\secret", "C:secret", "a\0b"],
    )
    def test_only_plain_names_are_followed(self, write: Write, location: str) -> None:
        path = write(("location", location), ("length", "48"))
        (path.parent.parent / "secret").write_bytes(some(3, 4).tobytes())
        (path.parent / "sub").mkdir()
        (path.parent / "sub" / "m.data").write_bytes(some(3, 4).tobytes())
        with pytest.raises(ReadError, match="only a plain name"):
            read_path(path)

    @pytest.mark.parametrize("target", ["../secret", "hop"])
    def test_links_out_of_the_folder_are_not_followed(self, write: Write, target: str) -> None:
        path = write(("location", "link"))
        (path.parent.parent / "secret").write_bytes(some(3, 4).tobytes())
        (path.parent / "hop").symlink_to("../secret")
        (path.parent / "link").symlink_to(target)
        with pytest.raises(ReadError, match="a link out of"):
            read_path(path)

    def test_links_in_a_circle_missing_files_folders_and_pipes_are_refused(
        self, write: Write
    ) -> None:
        path = write(("location", "other"))
        other = path.parent / "other"
        with pytest.raises(ReadError, match="'other' beside the model"):
            read_path(path)
        other.symlink_to("other")
        with pytest.raises(ReadError, match="'other' beside the model"):
            read_path(path)
        other.unlink()
        other.mkdir()
        with pytest.raises(ReadError, match="'other'"):
            read_path(path)
        other.rmdir()
        os.mkfifo(other)
        with pytest.raises(ReadError, match="not a regular file"):
            read_path(path)

    @pytest.mark.parametrize(
        ("offset", "length"),
        [
            ("0", "44"), ("0", "52"), ("4", "48"), ("4", None), ("49", None), ("-4", "48"),
            ("0x0", "48"), ("0", "4 8"), ("\u0660", "48"), ("9" * 400, "48"), (str(2**63), "48"),
            ("0", str(2**62)), ("", "48"), ("1e0", "48"),
        ],
    )  # fmt: skip
    def test_bytes_must_lie_in_the_file_and_fit(
        self, write: Write, offset: str, length: str | None
    ) -> None:
        entries = [("location", "m.data"), ("offset", offset)]
        entries += [] if length is None else [("length", length)]
        with pytest.raises(ReadError, match=r"the array 'w' (has the|of 48 bytes)"):
            read_path(write(*entries))

    def test_where_it_lies_must_be_said_once(self, write: Write) -> None:
        for entries in ([("offset", "0")], [("location", "m.data"), ("location", "m.onnx")]):
            with pytest.raises(ReadError, match="once in which file"):
                read_path(write(*entries))

    @pytest.mark.parametrize("copied", [False, True])
    def test_many_arrays_of_the_same_bytes_count_as_often_as_they_are_copied(
        self, write: Write, monkeypatch: pytest.MonkeyPatch, copied: bool
    ) -> None:
        path = write()
        if copied:  # no float32 begins at an odd place
            data = b"." + (path.parent / "m.data").read_bytes()
            path = write(("location", "m.data"), ("offset", "1"), ("length", "48"), data=data)
        model = onnx.load(path, load_external_data=False)
        for i in range(100):
            model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
            model.graph.initializer[-1].name = f"w{i}"
        path.write_bytes(model.SerializeToString())
        assert len(read_path(path).layers) == 1

        def limited(size: int) -> None:
            if size > 2000:
                raise ReadError("more than the limit")  # noqa: EM101

        monkeypatch.setattr("gramnorm.report.onnx.external.check_total", limited)
        if copied:
            with pytest.raises(ReadError, match="more than the limit"):
                read_path(path)
        else:
            assert len(read_path(path).layers) == 1

    def test_without_a_folder_nothing_is_opened(self, write: Write) -> None:
        with pytest.raises(ReadError, match="not looked for"):
            read_onnx(io.BytesIO(write().read_bytes()))

    def test_a_node_holding_such_an_array_is_refused_by_itself(self, write: Write) -> None:
        tensor = onnx.load(write(), load_external_data=False).graph.initializer[0]
        nodes = [
            helper.make_node("Constant", [], ["c"], value=tensor),
            node("MatMul", "x w", "t"),
            node("MatMul", "x c"),
        ]
        path = write().parent / "n.onnx"
        path.write_bytes(model_of(nodes, shape=(1, 3), w=some(3, 4)).SerializeToString())
        found = read_path(path)
        assert [layer.name for layer in found.layers] == ["w"]
        assert "not looked for" in found.failed["c"]

    def test_random_entries_are_read_or_refused(self, write: Write) -> None:
        rng, read = np.random.default_rng(0), 0
        texts = ("m.data", "m.onnx", "..", "0", "7", "48", "-1", "", "\0", "9" * 30, str(2**63 - 1))
        for _ in range(300):
            keys = rng.permutation(["location", "offset", "length", "checksum"])[: rng.integers(5)]
            entries = [(str(key), str(rng.choice(texts))) for key in keys]
            if rng.random() < 0.7:
                entries = [("location", "m.data"), *(e for e in entries if e[0] != "location")]
            data = some(3, 4).tobytes()[: rng.integers(49)] if rng.random() < 0.3 else None
            try:
                found = read_path(write(*entries, data=data))
            except ReadError:
                continue
            assert isinstance(found, contents.Contents)
            assert found.layers[0].weight.shape == (4, 3)
            read += 1
        assert 10 < read < 250


class TestDamage:
    """An array that cannot be had is lost with the layers that need it, and no others."""

    @pytest.fixture
    def model(self) -> Any:
        nodes = [node("MatMul", "x w", "t"), node("MatMul", "t v", "u"), node("Add", "u b")]
        return model_of(nodes, shape=(1, 3), w=some(3, 4), v=some(4, 5), b=some(5))

    @staticmethod
    def saved(model: Any, folder: Path) -> contents.Contents:
        path = folder / "m.onnx"
        path.write_bytes(model.SerializeToString())
        return read_path(path)

    @pytest.mark.parametrize("damage", ["outside", "missing", "short", "shape", "type", "sparse"])
    def test_other_rows_stay(self, model: Any, tmp_path: Path, damage: str) -> None:
        array = model.graph.initializer[1]
        if damage in ("outside", "missing"):
            array.ClearField("raw_data")
            array.data_location = onnx.TensorProto.EXTERNAL
            place = "../secret" if damage == "outside" else "nowhere"
            array.external_data.add(key="location", value=place)
        elif damage == "short":
            array.raw_data = array.raw_data[:-1]
        elif damage == "shape":
            array.dims[:] = [2**40, 2**40]
        elif damage == "type":
            array.data_type = onnx.TensorProto.FLOAT8E4M3FN
        else:
            sparse = model.graph.sparse_initializer.add(dims=[4, 5])
            sparse.values.CopyFrom(array)
            del model.graph.initializer[1]
        found = self.saved(model, tmp_path)
        assert [layer.name for layer in found.layers] == ["w"]
        assert list(found.failed) == ["v"]
        assert "the array 'v'" in found.failed["v"]
        assert found.network.stopped is not None

    def test_a_lost_bias_changes_no_constant(self, model: Any, tmp_path: Path) -> None:
        model.graph.node[1].op_type = "Gemm"
        model.graph.node[1].input.append("c")
        model.graph.initializer.append(onnx.numpy_helper.from_array(some(5), "c"))
        model.graph.initializer[-1].raw_data = b"?"
        found = self.saved(model, tmp_path)
        assert [layer.name for layer in found.layers] == ["w", "v"]
        assert found.failed == {}
        assert "does not fit" in found.skipped["c"]
        assert found.network.stopped is None

    def test_a_constant_made_of_a_lost_one_says_why(self, model: Any, tmp_path: Path) -> None:
        model.graph.node.insert(1, node("Transpose", "v", "vt"))
        model.graph.node[2].input[1] = "vt"
        model.graph.initializer[1].raw_data = b""
        assert "does not fit its shape" in self.saved(model, tmp_path).failed["v"]
