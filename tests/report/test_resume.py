"""Reports that are interrupted and begun again: what is kept, and what is not believed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm._arrays import threads
from gramnorm.report import Row, bound_layer, work
from gramnorm.report.files.contents import Layer, ReadError
from gramnorm.report.resume import Finished
from gramnorm.report.work import How, Outcome, digest_of, outcome
from tests.harness.reports import bounds, run, run_json, some
from tests.harness.tensors import write_safetensors

pytestmark = pytest.mark.no_backend


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    arrays = {f"l{i}.weight": some(5, 4) + i for i in range(3)}
    arrays |= {"conv.weight": some(4, 2, 3, 3), "bn.weight": some(3)}
    arrays |= {"bn.running_mean": some(3), "bn.running_var": abs(some(3))}
    return write_safetensors(tmp_path / "x.safetensors", arrays)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the layers that are bounded, as they are."""
    names: list[str] = []

    def bound(layer: Layer, **choices: Any) -> Row:
        names.append(layer.name)
        return bound_layer(layer, **choices)

    monkeypatch.setattr(work, "bound_layer", bound)
    return names


class TestAgain:
    def test_what_is_finished_is_not_done_again_and_the_same(
        self, checkpoint: Path, capsys: Any, counted: list[str], tmp_path: Path
    ) -> None:
        kept = tmp_path / "kept.json"
        _, plain = run_json(capsys, checkpoint)
        _, first = run_json(capsys, checkpoint, "--resume", kept)
        counted.clear()
        _, second = run_json(capsys, checkpoint, "--resume", kept)
        assert counted == []
        assert bounds(plain) == bounds(first) == bounds(second)
        assert second["product_upper"] == plain["product_upper"]
        assert f"5 of 5 layers are from '{kept}'" in second["notes"]
        assert first["notes"] == plain["notes"]
        assert [p.name for p in tmp_path.iterdir() if "kept" in p.name] == ["kept.json"]

    @pytest.mark.parametrize(
        "option",
        [("--rtol", "0.1"), ("--input-shape", "7,7"), ("--padding-mode", "circular")],
    )
    def test_other_options_are_other_rows(
        self, checkpoint: Path, capsys: Any, counted: list[str], tmp_path: Path, option: Any
    ) -> None:
        for given in ((), option):
            counted.clear()
            run_json(capsys, checkpoint, "--resume", tmp_path / "kept.json", *given)
            assert len(counted) == 5

    def test_changed_numbers_are_bounded_anew(
        self, checkpoint: Path, capsys: Any, counted: list[str], tmp_path: Path
    ) -> None:
        kept = tmp_path / "kept.json"
        _, before = run_json(capsys, checkpoint, "--resume", kept)
        content = bytearray(checkpoint.read_bytes())
        content[-4:] = np.float32(1e-6).tobytes()  # of the variances of the batch norm
        checkpoint.write_bytes(content)
        counted.clear()
        _, after = run_json(capsys, checkpoint, "--resume", kept)
        assert len(counted) == 1
        assert bounds(after) != bounds(before)
        assert bounds(after) == bounds(run_json(capsys, checkpoint)[1])

    def test_another_version_is_bounded_anew(
        self, checkpoint: Path, capsys: Any, counted: list[str], tmp_path: Path, monkeypatch: Any
    ) -> None:
        run_json(capsys, checkpoint, "--resume", tmp_path / "kept.json")
        counted.clear()
        monkeypatch.setattr(work, "version", lambda: "next")
        run_json(capsys, checkpoint, "--resume", tmp_path / "kept.json")
        assert len(counted) == 5

    def test_rows_of_the_same_numbers_under_another_name_are_told_by_their_name(
        self, checkpoint: Path, capsys: Any, tmp_path: Path
    ) -> None:
        other = write_safetensors(tmp_path / "y.safetensors", {"l0.weight": some(5, 4)})
        run_json(capsys, checkpoint, "--resume", tmp_path / "kept.json")
        _, report = run_json(capsys, other, "--resume", tmp_path / "kept.json")
        assert report["notes"][-1].startswith("1 of 1 layers")

    def test_rows_without_a_bound_are_tried_again(
        self, tmp_path: Path, capsys: Any, counted: list[str]
    ) -> None:
        np.savez(tmp_path / "x.npz", **{"w": some(3, 4), "conv.weight": some(4, 3, 3, 3)})
        layers = tmp_path / "layers.json"
        layers.write_text('{"conv.weight": {"groups": 3}}')
        for _ in range(2):
            counted.clear()
            given = tmp_path / "x.npz", "--layers", layers, "--resume", tmp_path / "kept.json"
            assert run_json(capsys, *given)[0] == 1
            assert "conv.weight" in counted


class TestDigest:
    layer = Layer("w", some(4, 2, 3, 3))

    @pytest.mark.parametrize(
        "change",
        [
            {"weight": some(4, 2, 3, 3).transpose(1, 0, 2, 3)},
            {"weight": some(4, 2, 3, 3).astype(np.float64)},
            {"weight": -some(4, 2, 3, 3)},
            {"weight": some(2, 4, 3, 3)},
            {"geometry": {"stride": 2}},
            {"geometry": {}},
            {"groups": 2},
            {"forced": True},
            {"word": "pruned"},
            {"error": 1e-300},
            {"variance": some(4)},
        ],
    )
    def test_all_that_a_bound_depends_on_changes_it(self, change: dict[str, Any]) -> None:
        assert digest_of(replace(self.layer, **change), How()) != digest_of(self.layer, How())

    @pytest.mark.parametrize(
        "change",
        [
            {"input_shape": (3, 3)},
            {"input_shape": "file"},
            {"padding_mode": "zeros"},
            {"rtol": 1e-3},
            {"backend": "torch"},
            {"device": "cpu"},
            {"sized": True},
        ],
    )
    def test_options_change_it(self, change: dict[str, Any]) -> None:
        assert digest_of(self.layer, How(**change)) != digest_of(self.layer, How())

    def test_views_and_names_do_not(self) -> None:
        fortran = replace(self.layer, name="v", weight=np.asfortranarray(self.layer.weight))
        assert digest_of(fortran, How()) == digest_of(self.layer, How())

    def test_every_field_of_a_layer_is_in_it_or_shows_in_one_that_is(self) -> None:
        # a field that is added must be thought of
        assert set(Layer.__dataclass_fields__) == {
            *("name", "weight", "geometry", "variance", "groups", "stored_shape", "layout"),
            *("forced", "word", "error"),
        }


class TestFile:
    @pytest.mark.parametrize(
        "row",
        [
            Row("w", "dense", (2, 3), "float32", 0.125, 1.0, 1.5, True),
            Row("w", "conv2d", (2, 3), "float64", 1e-9, None, float("inf"), None, assumed=True),
            Row("w", "dense", (0, 3), "float32", 2.0, 0.1, float("nan"), False, forced=True),
            Row("w", "dense", (2, 3), "float32", 0.1, 5e-324, 1.7976931348623157e308, True),
        ],
    )
    def test_rows_come_back_as_they_were(self, tmp_path: Path, row: Row) -> None:
        finished = Finished(tmp_path / "kept")
        finished.add(Outcome(row, "digest"))
        finished.write()
        found = Finished(tmp_path / "kept")
        known = found.known(Layer("w", some(2, 3)))
        assert known is not None
        assert repr(known["digest"]) == repr(row)
        assert found.known(Layer("v", some(2, 3))) == {}

    def test_nothing_is_remembered_without_a_file(self) -> None:
        finished = Finished(None)
        finished.add(Outcome(bound_layer(Layer("w", some(2, 2)))))
        assert finished.known(Layer("w", some(2, 2))) is None
        assert finished.notes(3) == []

    @pytest.mark.parametrize(
        "damage", ["digit", "cut", "empty", "json", "format", "binary", "list"]
    )
    def test_damaged_and_foreign_files_are_refused_and_left_alone(
        self, checkpoint: Path, capsys: Any, tmp_path: Path, damage: str
    ) -> None:
        kept = tmp_path / "kept.json"
        run_json(capsys, checkpoint, "--resume", kept)
        text = kept.read_text()
        place = text.index('"upper": "') + 10
        damaged = {
            "digit": text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :],
            "cut": text[: len(text) // 2],
            "empty": "",
            "json": '{"a": 1}',
            "format": text.replace("report, 1", "report, 2"),
            "binary": "\x00\x01",
            "list": "[]",
        }[damage]
        kept.write_text(damaged)
        code, out, err = run(capsys, "report", "--json", checkpoint, "--resume", kept)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "cannot resume from" in err
        assert kept.read_text() == damaged

    def test_what_cannot_be_written_is_said_before_the_work(
        self, checkpoint: Path, capsys: Any, counted: list[str], tmp_path: Path
    ) -> None:
        for path, match in (
            (tmp_path / "no" / "kept.json", "cannot write"),
            (tmp_path, "not a regular file"),
        ):
            code, out, err = run(capsys, "report", "--json", checkpoint, "--resume", path)
            assert (code, out) == (2, "")
            assert match in err
        assert counted == []

    def test_a_file_is_never_half_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = tmp_path / "kept"
        finished = Finished(kept)
        whole = kept.read_bytes()

        def fail(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(ReadError, match="No space left"):
            finished.write()
        assert kept.read_bytes() == whole
        assert list(tmp_path.iterdir()) == [kept]

    def test_it_is_written_at_most_every_moment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        finished = Finished(tmp_path / "kept")
        row = Row("w", "dense", (2, 3), "float32", 0.1, 1.0, 1.5, True)
        written: list[float] = []
        monkeypatch.setattr(finished, "write", lambda: written.append(time.monotonic()))
        for k in range(50):
            finished.add(Outcome(row, str(k)))
        assert len(written) <= 1


def test_layers_at_work_have_no_more_numbers_than_memory_is_meant_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, sizes, at_work = threading.Lock(), [0], 0

    def bound(layer: Layer, **choices: Any) -> Row:
        nonlocal at_work
        with lock:
            at_work += layer.weight.size
            sizes.append(at_work)
        time.sleep(0.01)
        row = bound_layer(layer, **choices)
        with lock:
            at_work -= layer.weight.size
        return row

    monkeypatch.setattr(work, "bound_layer", bound)
    monkeypatch.setattr(work, "AT_ONCE", 25)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    layers = [Layer(f"w{k}", some(3, 4) if k != 5 else some(10, 10)) for k in range(12)]
    kept: dict[int, Row] = {}
    work.bound_here(
        layers,
        How(),
        known=lambda _: None,
        begin=lambda _: None,
        keep=lambda which, one: kept.update({which: one.row}),
    )
    assert sorted(kept) == list(range(12))
    assert set(sizes) == {0, 12, 24, 100}


def test_small_layers_do_not_pass_a_large_one_that_waits() -> None:
    room, order = work._Room(10), []

    def enter(size: int) -> None:
        with room.taken(size):
            order.append(size)

    with room.taken(4):
        others = [threading.Thread(target=enter, args=(size,)) for size in (100, 5)]
        for other in others:
            other.start()
            other.join(0.1)
        assert order == []
    for other in others:
        other.join()
    assert order == [100, 5]


def test_an_array_that_cannot_be_read_has_no_digest(checkpoint: Path) -> None:
    from gramnorm.report.files.readers import read_path  # noqa: PLC0415

    layer = read_path(checkpoint).layers[0]
    checkpoint.unlink()
    found = outcome(layer, How(), {})
    assert found.digest is None
    assert "No such file" in str(found.row.error)


# Layers called "slow" take longer than anybody waits.
_SLOW = """
import sys, time
from gramnorm.report import cli, work

bound = work.bound_layer

def slow(layer, **choices):
    if "slow" in layer.name:
        sys.stderr.write("at work\\n")
        time.sleep(600)
    return bound(layer, **choices)

work.bound_layer = slow
cli.program()
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_end_by_force_keeps_what_is_finished(
    tmp_path: Path, end: signal.Signals, capsys: Any, counted: list[str], monkeypatch: Any
) -> None:
    arrays = {name: some(3, 3) for name in ("a.weight", "b.weight", "slow.weight", "z.weight")}
    path, kept = write_safetensors(tmp_path / "x.safetensors", arrays), tmp_path / "kept.json"
    command = [sys.executable, "-c", _SLOW, "report", "--json", str(path), "--resume", str(kept)]
    if end == signal.SIGKILL:  # nothing is written at the end: it must have been before
        command[2] = command[2].replace(
            "bound = ",
            "from gramnorm.report import resume\nresume.KEPT_EVERY = -1.0\nbound = ",
            1,
        )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # in order
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"at work\n"
        process.send_signal(end)
        out = process.communicate(timeout=60)[0]
    if end == signal.SIGINT:
        assert process.returncode == 130
        report = json.loads(out)
        assert [row["name"] for row in report["layers"]] == ["a.weight", "b.weight"]
    _, report = run_json(capsys, path, "--resume", kept)
    assert counted == ["slow.weight", "z.weight"]
    assert bounds(report) == bounds(run_json(capsys, path)[1])
