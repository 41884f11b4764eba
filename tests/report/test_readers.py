"""Safetensors, PyTorch checkpoints and sidecars: what they give, what they refuse, and that no damage escapes."""

import argparse
import contextlib
import dataclasses
import io
import json
import pickle
import pickletools
import random
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm.report import bound_layer
from gramnorm.report.files import contents
from gramnorm.report.files.contents import Contents, Layer, ReadError, selected
from gramnorm.report.files.readers import read_path, read_stream
from gramnorm.report.files.safetensors import read_safetensors
from gramnorm.report.files.sidecar import Description, described, parse_description, read_sidecar
from gramnorm.report.files.torch import read_torch
from gramnorm.report.network import constant_of
from tests.harness.oracles import conv_matrix, sigma
from tests.harness.reports import (
    Bomb,
    assert_refused,
    flax_bytes,
    run,
    run_json,
    some,
    write_npz,
    write_zip,
)

pytestmark = pytest.mark.extra

SEED = 11


def by_name(found: Contents) -> dict[str, np.ndarray]:
    return {layer.name: layer.weight for layer in found.layers}


class TestSidecar:
    def test_both_forms_say_the_same(self) -> None:
        plain = {"w": {"stride": [2, 2], "groups": 2, "padding": [[0, 1], [1, 1]]}}
        entry = {"key": "w", "kind": "conv", "shape": [4, 1, 3, 3], "comment": "the first"}
        listed = {"about": "a network", "layers": [entry | plain["w"]]}
        expected = {"stride": (2, 2), "groups": 2, "padding": ((0, 1), (1, 1))}
        assert parse_description(json.dumps(plain), "it").geometry == {"w": expected}
        (found,) = parse_description(json.dumps(listed), "it").geometry.values()
        assert found == expected | {"kind": "conv", "shape": (4, 1, 3, 3)}

    @pytest.mark.parametrize(
        ("entry", "match"),
        [
            ({"key": "w", "strides": 2}, "unknown 'strides'"),
            ({"key": "w", "group": 2}, "unknown 'group'"),
            ({"key": "w", "kind": "conv2d"}, "kind 'conv2d'"),
            ({"key": "w", "kind": ["conv"]}, "kind"),
            ({"stride": 2}, '"key"'),
            ({"key": 3}, '"key"'),
            (3, '"key"'),
        ],
    )
    def test_what_is_not_understood_in_a_list_is_refused(self, entry: Any, match: str) -> None:
        with pytest.raises(ReadError, match=match):
            parse_description(json.dumps({"layers": [entry]}), "it")

    def test_two_descriptions_of_one_layer_are_refused(self) -> None:
        with pytest.raises(ReadError, match="entry 1"):
            parse_description('{"layers": [{"key": "w"}, {"key": "w"}]}', "it")

    @pytest.mark.parametrize(
        ("stated", "match"),
        [
            ({"shape": (2, 2, 4)}, "does not fit"),
            ({"kind": "dense"}, "does not fit"),
            ({"kind": "conv", "shape": (2, 2, 3)}, None),
        ],
    )
    def test_a_description_must_fit_the_array(self, stated: Any, match: str | None) -> None:
        weights = Contents([Layer("w", some(2, 2, 3))])
        expected = pytest.raises(ReadError, match=match) if match else contextlib.nullcontext()
        with expected:
            (layer,) = described(weights, Description({"w": stated}), "it").layers
            assert layer.geometry == {"kind": "conv"}

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"\xff\xfe", b"[" * 10**5, b"[]", b"3", b'{"a": 1}', b"9" * 10**4]
    )
    def test_damaged_sidecars_are_one_line(
        self, tmp_path: Path, capsys: Any, content: bytes
    ) -> None:
        weights = write_npz(tmp_path / "w.npz", w=some(2, 2, 3))
        (tmp_path / "x.json").write_bytes(content)
        code, out, err = run(capsys, "report", weights, "--layers", tmp_path / "x.json")
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert "x.json" in err

    def test_missing_and_huge_sidecars_are_refused(self, tmp_path: Path) -> None:
        for path in (tmp_path / "nothing.json", tmp_path, "/dev/null\0"):
            with pytest.raises(ReadError, match="cannot use"):
                read_sidecar(path)
        with (tmp_path / "big.json").open("wb") as stream:
            stream.truncate(2**24 + 1)
        with pytest.raises(ReadError, match="more than"):
            read_sidecar(tmp_path / "big.json")

    def test_sidecar_takes_the_place_of_what_the_file_states(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        weights = write_npz(tmp_path / "w.npz", layers={"w": {"groups": 1}}, w=some(4, 1, 3))
        (tmp_path / "x.json").write_text('{"w": {"groups": 4}}')
        _, report = run_json(capsys, weights, "--layers", tmp_path / "x.json")
        assert "depthwise" in report["layers"][0]["kind"]

    @pytest.mark.parametrize(
        ("shape", "stated", "matrix"),
        [
            ((4, 1, 3, 3), {"kind": "conv", "groups": 4, "padding": [[1, 1], [0, 1]]}, {}),
            (
                (4, 2, 3, 3),
                {"kind": "conv_transpose", "groups": 2, "stride": [2, 2], "padding": [[1, 1]] * 2},
                {"transposed": True},
            ),
            (
                (4, 1, 2, 3),
                {"kind": "conv_transpose", "groups": 4, "stride": [2, 1], "padding": [[0, 0]] * 2},
                {"transposed": True},
            ),
            ((2, 3, 3, 3), {"kind": "conv", "stride": [2, 2], "padding": "SAME_TF"}, {}),
            ((2, 3, 3, 2), {"kind": "conv", "dilation": [2, 1], "padding": [[0, 0]] * 2}, {}),
        ],
    )
    def test_listed_layouts_are_those_of_the_operators(
        self, shape: tuple[int, ...], stated: dict[str, Any], matrix: dict[str, Any]
    ) -> None:
        kernel = some(*shape, dtype="float64")
        text = json.dumps({"layers": [{"key": "w", "shape": list(shape)} | stated]})
        found = described(Contents([Layer("w", kernel)]), parse_description(text, "it"), "it")
        row = bound_layer(found.layers[0], input_shape=(6, 5))
        rest = {key: value for key, value in stated.items() if key != "kind"}
        if rest["padding"] == "SAME_TF":  # 6 to 3 outputs, 5 to 3
            rest["padding"] = [[0, 1], [1, 1]]
        exact = sigma(conv_matrix(kernel, (6, 5), **rest, **matrix))
        assert row.lower <= exact * (1 + 1e-12)
        assert exact * (1 - 1e-12) <= row.upper <= exact * 1.01


class TestSharedNetwork:
    @pytest.fixture
    def described(self, shared_data: Path) -> Contents:
        geometry = read_sidecar(shared_data / "layers.json")
        return described(read_path(shared_data / "weights.npz"), geometry, "it")

    @pytest.fixture
    def references(self, shared_data: Path) -> dict[str, Any]:
        layers = json.loads((shared_data / "layers.json").read_text())["layers"]
        return {layer["key"]: layer["reference"] for layer in layers}

    def test_command_brackets_the_true_value_of_every_layer(
        self, shared_data: Path, references: dict[str, Any], capsys: Any
    ) -> None:
        code, report = run_json(
            capsys, shared_data / "weights.npz", "--layers", shared_data / "layers.json"
        )
        assert code == 0
        assert [layer["name"] for layer in report["layers"]] == list(references)
        for layer in report["layers"]:
            reference = references[layer["name"]]
            known = reference.get("sup_all_sizes") or {"value": reference["sigma1"]}
            assert layer["lower"] <= known.get("certified_upper", known["value"] * (1 + 1e-13))
            assert known["value"] * (1 - 1e-12) <= layer["upper"]
            assert not layer["assumed"]

    @pytest.mark.slow
    def test_brackets_hold_at_the_sizes_of_the_references(
        self, described: Contents, references: dict[str, Any]
    ) -> None:
        for layer in described.layers:
            for entry in references[layer.name].get("zero_padding", []):
                if max(entry["input_size"]) > 8:
                    continue
                row = bound_layer(layer, input_shape=tuple(entry["input_size"]))
                assert row.lower <= entry["value"] * (1 + 1e-12) <= row.upper * (1 + 2e-12)
            for entry in references[layer.name].get("circular", []):
                shape = tuple(entry["conv_domain_size"])
                row = bound_layer(layer, input_shape=shape, padding_mode="circular")
                assert row.lower <= entry["value"] * (1 + 1e-12) <= row.upper * (1 + 2e-12)


class TestSafetensors:
    @pytest.fixture(autouse=True)
    def library(self) -> Any:
        return pytest.importorskip("safetensors.numpy")

    @pytest.mark.parametrize(
        "dtype", ["f2", "f4", "f8", "c8", "i1", "u1", "i2", "i4", "i8", "u8", "?"]
    )
    def test_values_are_those_written(self, tmp_path: Path, library: Any, dtype: str) -> None:
        array = (10 * some(3, 4, 5)).astype(dtype)
        tensors = {"w10": array, "w9": array[:0], "bias": np.zeros(3), "n": np.ones(())}
        library.save_file(tensors, tmp_path / "x.safetensors", metadata={"any": "text"})
        with (tmp_path / "x.safetensors").open("rb") as stream:
            found = read_safetensors(stream, (tmp_path / "x.safetensors").stat().st_size)
        assert list(found.arrays) == ["bias", "n", "w9", "w10"]
        for name, expected in tensors.items():
            np.testing.assert_array_equal(found.arrays[name], expected, strict=True)
        assert found.layout is None

    def test_bfloat16_is_widened_exactly(self) -> None:
        patterns = np.arange(2**16, dtype="<u2")
        (weight,) = by_name(
            read_stream(raw_safetensors("BF16", (256, 256), patterns), "x")
        ).values()
        np.testing.assert_array_equal(weight.view(np.uint32).ravel() >> 16, patterns)
        assert not np.any(weight.view(np.uint32) & 0xFFFF)

    @pytest.mark.parametrize("kind", ["F8_E8M0", "F8_E4M3FNUZ"])
    def test_numbers_that_need_a_scale_are_a_hole_in_the_product(
        self, tmp_path: Path, capsys: Any, kind: str
    ) -> None:
        stream = raw_safetensors(kind, (2, 2), np.zeros(4, np.uint8), w=some(2, 2))
        (tmp_path / "x.safetensors").write_bytes(stream.getvalue())
        code, report = run_json(capsys, tmp_path / "x.safetensors")
        assert code == 1
        assert report["missing"] == ["x"]
        assert kind in report["layers"][1]["error"]

    def test_lies_and_truncations_are_refused(
        self, tmp_path: Path, capsys: Any, library: Any
    ) -> None:
        path = tmp_path / "x.safetensors"
        whole = library.save({"w": some(2, 3)})
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            assert_refused(capsys, path)
        for lie in (b"[200000,300000]", b"[4,3]", b"[-2,3]", b"[1e9,3]"):
            header = whole[8:].split(b"}}")[0].replace(b"[2,3]", lie) + b"}}"
            path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
            assert_refused(capsys, path, "safetensors")

    def test_the_library_is_not_needed(
        self, tmp_path: Path, library: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library.save_file({"w": some(2, 3)}, tmp_path / "x.safetensors")
        monkeypatch.setitem(sys.modules, "safetensors", None)
        assert len(read_path(tmp_path / "x.safetensors").layers) == 1


def raw_safetensors(
    kind: str, shape: tuple[int, ...], values: np.ndarray, **more: Any
) -> io.BytesIO:
    """Write a tensor "x" of any type, and more of float32, as the format has them."""
    header, data = {}, b""
    tensors = {"x": (kind, shape, values.tobytes())}
    tensors |= {name: ("F32", array.shape, array.tobytes()) for name, array in more.items()}
    for name, (dtype, size, raw) in tensors.items():
        places = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(size), "data_offsets": places}
        data += raw
    text = json.dumps(header).encode()
    return io.BytesIO(struct.pack("<Q", len(text)) + text + data)


class TestTorch:
    @pytest.fixture(autouse=True)
    def torch(self) -> Any:
        return pytest.importorskip("torch", minversion="2.10")

    def test_state_dict_is_read_in_order(self, tmp_path: Path, torch: Any) -> None:
        model = torch.nn.Sequential(
            torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 3)
        )
        torch.save(model.state_dict(), tmp_path / "x.pt")
        found = read_path(tmp_path / "x.pt")
        assert list(by_name(found)) == ["0.weight", "1.weight", "2.weight"]
        np.testing.assert_array_equal(
            by_name(found)["2.weight"], model[2].weight.detach().numpy(), strict=True
        )
        assert found.layers[1].kind == "batch norm"
        assert "taken for a bias" in found.skipped["0.bias"]
        assert "a counter" in found.skipped["1.num_batches_tracked"]
        assert not found.notes

    def test_odd_tensors_are_converted_exactly_or_named(self, tmp_path: Path, torch: Any) -> None:
        x = torch.from_numpy(some(4, 6))
        patterns = (
            torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).reshape(64, -1)
        )
        good = {
            "transposed": (x.T, x.numpy().T),
            "strided": (x[1:, ::2], x.numpy()[1:, ::2]),
            "half": (x.half(), x.half().numpy()),
            "conjugate": (torch.complex(x, x).conj(), (x - 1j * x).numpy()),
            "expanded": (torch.ones(1, 1).expand(5, 7), np.ones((5, 7), np.float32)),
            "parameter": (torch.nn.Parameter(x), x.numpy()),
            "integers": (x.to(torch.int32), x.to(torch.int32).numpy()),
        }
        bad = {
            "sparse": x.to_sparse(),
            "float8": x.to(torch.float8_e5m2),
            "meta": torch.empty(3, 3, device="meta"),
        }
        tensors = {name: tensor for name, (tensor, _) in good.items()} | bad
        torch.save(tensors | {"bfloat": patterns, 3: x, "epoch": 7}, tmp_path / "x.pt")
        with (tmp_path / "x.pt").open("rb") as stream, zipfile.ZipFile(stream) as archive:
            found = read_torch(archive, stream, "x")
        for name, (_, expected) in good.items():
            np.testing.assert_array_equal(found.arrays[name], expected, strict=True)
        wide = found.arrays["bfloat"].view(np.uint32)
        expected = patterns.view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(wide >> 16, expected)
        assert not np.any(wide & 0xFFFF)
        assert set(found.unusable) == set(bad)
        assert found.others == {"epoch": "int, not a tensor"}
        assert "3" in found.arrays

    def test_one_dict_within_a_dict_is_unwrapped_and_said(
        self, tmp_path: Path, torch: Any, capsys: Any
    ) -> None:
        path = tmp_path / "x.pt"
        state = {"w": torch.ones(2, 2)}
        best = torch.tensor(0.9)
        torch.save(
            {"epoch": 3, "state_dict": state, "best": best, "optimizer": {"state": {}}}, path
        )
        code, report = run_json(capsys, path)
        assert code == 0
        assert [layer["name"] for layer in report["layers"]] == ["w"]
        assert report["notes"] == ["read the entry 'state_dict' of the checkpoint"]
        assert {entry["name"] for entry in report["skipped"]} == {"epoch", "best", "optimizer"}
        assert "'state_dict'" in run(capsys, "report", path)[1]
        torch.save({"model": state, "average": state}, path)
        assert_refused(capsys, path, "several dicts of tensors (model, average)")
        torch.save({"model": state, "prototypes": torch.ones(2, 2)}, path)
        assert_refused(capsys, path, "several dicts of tensors (model, the whole)")
        torch.save({"model": 3}, path)
        assert_refused(capsys, path, "no array of two or more axes")
        torch.save([torch.ones(2, 2)], path)
        assert_refused(capsys, path, "not a dict of tensors")
        torch.save(torch.ones(2, 2), path)
        assert list(by_name(read_path(path))) == ["x"]

    def test_code_is_named_and_never_run(
        self, tmp_path: Path, torch: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        torch.save({"w": torch.ones(2, 2), "bomb": Bomb()}, "bomb.pt")
        assert_refused(capsys, tmp_path / "bomb.pt", "mkdir")
        torch.save(torch.nn.Linear(2, 2), "module.pt")
        assert_refused(capsys, tmp_path / "module.pt", "save only model.state_dict()")
        for protocol in (2, 4):
            rewritten("bomb.pt", lambda _, p=protocol: pickle.dumps(Bomb(), protocol=p))
            assert_refused(capsys, tmp_path / "bomb.pt", "nothing was run")
        torch.save({"w": torch.ones(2, 2)}, "old.pt", _use_new_zipfile_serialization=False)
        assert_refused(capsys, tmp_path / "old.pt", "newer torch")
        assert not Path("unpickled").exists()

    @pytest.mark.parametrize(
        "program",
        [
            b"cbuiltins\nbytearray\n\x8a\x06" + bytes(5) + b"\x01\x85R.",  # of 2 ** 40
            b"c__builtin__\nbytearray\n\x8a\x06" + bytes(5) + b"\x01\x85R.",
            # twice as long each time, 60 times
            b"c_codecs\nencode\nq\0" * 60 + b"X\2\0\0\0ab" + b"X\3\0\0\0hex\x86R" * 60 + b".",
        ],
    )
    def test_functions_that_make_much_of_little_are_not_called(
        self, tmp_path: Path, torch: Any, capsys: Any, program: bytes
    ) -> None:
        torch.save({"w": torch.ones(2, 2)}, tmp_path / "x.pt")
        rewritten(tmp_path / "x.pt", lambda _: b"\x80\x02" + program)
        assert_refused(capsys, tmp_path / "x.pt", "nothing was run")

    def test_a_text_is_not_encoded_without_end(
        self, tmp_path: Path, torch: Any, capsys: Any
    ) -> None:
        torch.save({"w": torch.ones(2, 2)}, tmp_path / "x.pt")
        long = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\1"
        again = b"h\0h\1\x85R"  # a megabyte each
        program = b"\x80\x02(c_codecs\nencode\nq\0" + long + again * 5000 + b"l."
        rewritten(tmp_path / "x.pt", lambda _: program)
        assert_refused(capsys, tmp_path / "x.pt", "more than the limit")

    def test_few_values_repeated_without_end_are_refused(
        self, tmp_path: Path, torch: Any, capsys: Any
    ) -> None:
        torch.save({"w": torch.ones(1, 1).expand(10**6, 10**6)}, tmp_path / "x.pt")
        assert_refused(capsys, tmp_path / "x.pt", "more than the limit")

    def test_sizes_that_the_file_does_not_hold_are_refused(
        self, tmp_path: Path, torch: Any, capsys: Any
    ) -> None:
        torch.save({"w": torch.ones(4, 5)}, tmp_path / "x.pt")
        large = b"J" + struct.pack("<i", 10**6)
        rewritten(
            tmp_path / "x.pt",
            lambda program: program.replace(b"K\x14", large).replace(
                b"K\x04K\x05\x86", b"M\0\1K\x05\x86"
            ),
        )
        assert_refused(capsys, tmp_path / "x.pt", "damaged checkpoint")

    def test_compressed_members_scripts_and_old_libraries_are_refused(
        self, tmp_path: Path, torch: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "x.pt"
        torch.save({"w": torch.ones(4, 5)}, path)
        content = path.read_bytes()
        rewritten(path, lambda program: program, compression=zipfile.ZIP_DEFLATED)
        assert_refused(capsys, path, "compressed")
        path.write_bytes(content)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("x/constants.pkl", b"")
        assert_refused(capsys, path, "TorchScript")
        path.write_bytes(content)
        monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
        assert_refused(capsys, path, "2.10 or newer")
        monkeypatch.setitem(sys.modules, "torch", None)
        assert_refused(capsys, path, 'pip install "gramnorm[torch]"')


def rewritten(
    path: str | Path, change: Callable[[bytes], bytes], *, compression: int = zipfile.ZIP_STORED
) -> None:
    """Change the program of a checkpoint, and nothing else that a zip would notice."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


class TestText:
    def test_code_points_that_do_not_exist_are_refused(self, tmp_path: Path) -> None:
        stream = io.BytesIO()
        np.save(stream, np.array("{}"))
        damaged = stream.getvalue().replace(b"{\0\0\0", b"{\0\0\x7f")
        inner = io.BytesIO()
        np.save(inner, some(2, 2))
        path = write_zip(tmp_path / "x.npz", __layers__=damaged, w=inner.getvalue())
        with pytest.raises(ReadError, match="not text"):
            read_path(path)


class TestSelection:
    def test_patterns_choose_by_name(self) -> None:
        weights = Contents(
            [Layer(name, some(2, 2)) for name in ("conv1", "conv2", "out")], failed={"conv3": "why"}
        )
        found = selected(weights, ["conv*"], ["*2"])
        assert list(by_name(found)) == ["conv1"]
        assert list(found.failed) == ["conv3"]
        assert set(found.skipped) == {"conv2", "out"}
        assert selected(weights, None, None).layers == weights.layers
        with pytest.raises(ReadError, match="leave no layer"):
            selected(weights, ["Conv*"], None)


def valid_files() -> dict[str, list[bytes]]:
    """Return small files of each kind whose reader is here."""
    files: dict[str, list[bytes]] = {"npz": [], "safetensors": [], "torch": [], "msgpack": []}
    geometry = np.array(json.dumps({"w": {"groups": 2}}))
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, w=some(4, 2, 3), d=some(3, 4), b=some(3), __layers__=geometry)
        files["npz"].append(stream.getvalue())
    with contextlib.suppress(ImportError):
        import safetensors  # noqa: F401, PLC0415

        files["safetensors"].append(
            raw_safetensors("BF16", (2, 2), np.zeros(4, "<u2"), w=some(2, 3)).getvalue()
        )
    with contextlib.suppress(ImportError):
        import torch  # noqa: PLC0415

        stream = io.BytesIO()
        x = torch.from_numpy(some(4, 6))
        torch.save({"state_dict": {"w": x.T, "b": x.bfloat16(), "e": x[:1].expand(3, 6)}}, stream)
        files["torch"].append(stream.getvalue())
        stream = io.BytesIO()
        beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(3)}
        torch.save({"a": {"b": {"w": x}}, **beside}, stream)
        files["torch"].append(stream.getvalue())
    with contextlib.suppress(ImportError):
        import msgpack  # noqa: F401, PLC0415

        files["msgpack"].append(flax_bytes({"params": {"Dense_0": {"kernel": some(3, 4)}}}))
    return files


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Flip, remove, repeat or insert a few bytes, of a zip within a member whose checksum is then made right."""
    if content.startswith(b"PK") and rng.random() < 0.7:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        victim = rng.choice([name for name in members if name.endswith((".npy", "data.pkl"))])
        members[victim] = damaged(members[victim], rng)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, member in members.items():
                archive.writestr(name, member)
        return stream.getvalue()
    if rng.random() < 0.2:  # numbers in a header
        numbers = [b"0", b"-1", b"7", b"999999999999", b"18446744073709551616"]
        return re.sub(rb"\d+", lambda m: rng.choice([m[0], m[0], *numbers]), content)
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(len(found) + 1)
        length = rng.randrange(1, 9)
        extreme = rng.choice(
            [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), rng.randbytes(length)]
        )
        opcode = rng.choice(pickletools.opcodes).code.encode("latin1")
        found[place : place + rng.choice([0, length])] = rng.choice(
            [b"", extreme, opcode, found[place : place + 30]]
        )
    return bytes(found)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "torch", "msgpack"])
def test_damaged_files_are_read_or_refused_in_one_line(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = valid_files()[kind] or pytest.skip(f"{kind} needs its library")
    monkeypatch.setattr(contents, "MAX_BYTES", 10**6)
    rng = random.Random(SEED)
    complaints = []
    for _ in range(300):
        try:
            found = read_stream(io.BytesIO(damaged(rng.choice(files), rng)), "x")
        except ReadError as error:
            complaints.append(str(error))
        else:
            complaints += found.failed.values()
            assert sum(layer.weight.nbytes for layer in found.layers) <= 10**6
    assert len(complaints) > 100
    assert not any("\n" in complaint for complaint in complaints)


class TestNetwork:
    weights = Contents([Layer("a", 2 * np.eye(3)), Layer("b", 3 * np.eye(3))])

    def test_description_says_how_layers_are_joined(self) -> None:
        text = json.dumps({"__network__": {"chain": ["a", {"residual": "b"}]}, "a": {}})
        description = parse_description(text, "it")
        assert description.geometry == {"a": {}}
        found = described(self.weights, description, "it")
        rows = [bound_layer(layer) for layer in found.layers]
        constant = constant_of(found.network, rows).upper
        assert constant is not None
        assert 8 <= constant < 8.001

    @pytest.mark.parametrize(
        ("network", "reason"),
        [
            ({"chain": ["a"]}, "leaves out 'b'"),
            ({"chain": ["a", "b", "c"]}, "names 'c'"),
            ({"chian": ["a", "b"]}, "chian"),
            ([1], "tuple"),
        ],
    )
    def test_what_is_not_understood_has_a_reason_and_no_constant(
        self, network: Any, reason: str
    ) -> None:
        text = json.dumps({"layers": [], "__network__": network})
        found = described(self.weights, parse_description(text, "it"), "it")
        constant = constant_of(found.network, [bound_layer(layer) for layer in found.layers])
        assert constant.upper is None
        assert reason in str(constant.reason)

    def test_layers_at_other_sizes_are_not_put_together(self) -> None:
        rows = [bound_layer(layer) for layer in self.weights.layers]
        constant = constant_of({"chain": ["a", "b"]}, rows, stated_sizes=False)
        assert constant.upper is None
        assert "another size" in str(constant.reason)

    def test_a_layer_left_out_leaves_no_constant(self) -> None:
        found = dataclasses.replace(self.weights, network={"chain": ["a", "b"]})
        found = selected(found, None, ["b"])
        constant = constant_of(found.network, [bound_layer(layer) for layer in found.layers])
        assert constant.upper is None
        assert "'b'" in str(constant.reason)
