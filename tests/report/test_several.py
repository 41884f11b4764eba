"""Several files, folders and shards in one report."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm.report.files import contents, several
from gramnorm.report.files.contents import ReadError
from gramnorm.report.files.several import read_paths
from tests.harness.reports import assert_refused, run, run_json, some, write_npz

pytestmark = pytest.mark.no_backend


def names(*paths: Path, **options: Any) -> list[str]:
    return [layer.name for layer in read_paths(paths, **options).layers]


class TestFiles:
    def test_names_begin_with_the_file_in_sorted_order(self, tmp_path: Path, capsys: Any) -> None:
        for name in ("b", "a"):
            write_npz(tmp_path / f"{name}.npz", fc=some(3, 4), bias=some(3))
        given = tmp_path / "b.npz", tmp_path / "a.npz"
        code, report = run_json(capsys, *given)
        assert code == 0
        assert [row["name"] for row in report["layers"]] == [f"{p}:fc" for p in sorted(given)]
        assert report["product_upper"] is None
        assert "several files" in report["no_product"][0]["reason"]
        assert f"{given[0]}:bias" in {entry["name"] for entry in report["skipped"]}
        assert run_json(capsys, *given, tmp_path / "a.npz")[1]["layers"][1]["name"].endswith(
            "b.npz:fc"
        )

    def test_a_file_that_cannot_be_read_leaves_the_others(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        write_npz(tmp_path / "a.npz", fc=some(3, 4))
        (tmp_path / "b.npz").write_bytes(b"nothing")
        code, report = run_json(capsys, tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "c.npz")
        assert code == 1
        assert report["missing"] == [str(tmp_path / "b.npz"), str(tmp_path / "c.npz")]
        assert "No such file" in report["layers"][2]["error"]
        code, _, err = run(capsys, "report", tmp_path / "b.npz", tmp_path / "c.npz")
        assert (code, err.count("\n")) == (2, 1)

    def test_descriptions_name_file_and_array(self, tmp_path: Path, capsys: Any) -> None:
        for name in ("a", "b"):
            write_npz(tmp_path / f"{name}.npz", it=some(4, 3, 3, 3))
        described = tmp_path / "layers.json"
        described.write_text(f'{{"{tmp_path}/a.npz:it": {{"stride": 2}}}}')
        code, report = run_json(
            capsys, tmp_path / "a.npz", tmp_path / "b.npz", "--layers", described
        )
        assert code == 0
        assert [row["kind"] for row in report["layers"]] == ["conv2d, stride 2"]

    def test_the_total_of_all_files_is_limited(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = [write_npz(tmp_path / f"{i}.npz", fc=some(30, 30)) for i in range(3)]
        monkeypatch.setattr(contents, "MAX_BYTES", 9000)
        with pytest.raises(ReadError, match="more than the limit"):
            read_paths(paths)


class TestFolders:
    def test_files_of_weights_are_found_at_any_depth(self, tmp_path: Path, capsys: Any) -> None:
        for name in ("z.npz", "sub/y.npz", "sub/.hidden.npz", ".git/x.npz"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write_npz(tmp_path / name, fc=some(3, 4))
        (tmp_path / "config.json").write_text("{}")
        write_npz(tmp_path / "biases.npz", bias=some(3))
        found = read_paths([tmp_path])
        assert [layer.name for layer in found.layers] == ["sub/y.npz:fc", "z.npz:fc"]
        assert not found.failed
        assert "no array of two or more axes" in found.skipped["biases.npz"]
        _, report = run_json(capsys, tmp_path, "--include", "z.npz:*")
        assert [row["name"] for row in report["layers"]] == ["z.npz:fc"]
        os.symlink(tmp_path, tmp_path / "sub/again")
        assert names(tmp_path) == ["sub/y.npz:fc", "z.npz:fc"]

    def test_one_file_in_a_folder_is_like_that_file(self, tmp_path: Path) -> None:
        write_npz(tmp_path / "a.npz", fc=some(3, 4))
        found = read_paths([tmp_path])
        assert [layer.name for layer in found.layers] == ["fc"]
        assert not found.obstacles

    def test_folders_of_other_programs_are_called_so(self, tmp_path: Path, capsys: Any) -> None:
        for name, match in (
            ("saved_model.pb", "a TensorFlow SavedModel"),
            ("_METADATA", "an Orbax checkpoint"),
        ):
            folder = tmp_path / match[-5:]
            folder.mkdir()
            (folder / name).write_bytes(b"")
            assert_refused(capsys, folder, match)

    def test_folders_without_weights_or_with_too_many(
        self, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "notes.txt").write_text("")
        assert_refused(capsys, tmp_path, "no file in it has a suffix of weights")
        monkeypatch.setattr(several, "MAX_FILES", 3)
        for i in range(4):
            write_npz(tmp_path / f"{i}.npz", fc=some(2, 2))
        assert_refused(capsys, tmp_path, "more than 3 files")
        code, _, err = run(capsys, "report", *tmp_path.glob("*.npz"))
        assert code == 2
        assert "more than 3 files" in err


class TestShards:
    def write(self, folder: Path, count: int = 2, **parts: dict[str, Any]) -> None:
        for number, arrays in parts.items():
            np.savez(folder / f"model-0000{number[1:]}-of-0000{count}.npz", **arrays)

    def test_shards_are_one_network(self, tmp_path: Path, capsys: Any) -> None:
        whole = {
            "a.weight": some(3, 4),
            "bn.weight": some(3),
            "bn.running_var": abs(some(3)),
            "bn.running_mean": some(3),
        }
        np.savez(tmp_path / "whole.npz", **whole)
        _, expected = run_json(capsys, tmp_path / "whole.npz")
        (tmp_path / "whole.npz").unlink()
        first = {key: whole[key] for key in ("a.weight", "bn.weight")}
        self.write(tmp_path, _1=first, _2={key: whole[key] for key in whole if key not in first})
        code, report = run_json(capsys, tmp_path)
        assert code == 0
        for key in ("name", "kind", "upper"):
            assert [r[key] for r in report["layers"]] == [r[key] for r in expected["layers"]]
        assert report["product_upper"] == expected["product_upper"]

    def test_scales_in_another_shard_are_seen(self, tmp_path: Path) -> None:
        # the weight alone would have the bound of what is stored, not of what the layer uses
        self.write(
            tmp_path,
            _1={"a.weight": some(3, 4)},
            _2={"a.weight_scale": some(3), "b.weight": some(2, 2)},
        )
        found = read_paths([tmp_path])
        assert list(found.failed) == ["a.weight"]
        assert [layer.name for layer in found.layers] == ["b.weight"]

    def test_a_shard_that_is_missing_leaves_no_product(self, tmp_path: Path, capsys: Any) -> None:
        self.write(tmp_path, count=3, _1={"a.weight": some(3, 4)}, _3={"b.weight": some(3, 3)})
        for given in ([tmp_path], [tmp_path / "model-00001-of-00003.npz"]):
            code, report = run_json(capsys, *given)
            assert code == 1
            assert report["product_upper"] is None
            assert "more shards" in report["layers"][-1]["error"]

    def test_shards_that_hold_the_same_are_refused(self, tmp_path: Path, capsys: Any) -> None:
        self.write(tmp_path, _1={"a.weight": some(3, 4)}, _2={"a.weight": some(3, 4)})
        assert_refused(capsys, tmp_path, "two shards hold 'a.weight'")

    def test_two_networks_in_shards_are_two(self, tmp_path: Path) -> None:
        for folder in ("x", "y"):
            (tmp_path / folder).mkdir()
            self.write(tmp_path / folder, _1={"a.weight": some(3, 4)}, _2={"b.weight": some(3, 4)})
        assert names(tmp_path) == [f"{f}/model.npz:{n}.weight" for f in "xy" for n in "ab"]
