"""The other forms of the report, other libraries to compute with, and how it behaves on a terminal."""

import contextlib
import csv
import io
import os
import re
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm._arrays import libraries, threads
from gramnorm.report import cli
from tests.harness.reports import run, run_json, some, write_npz

pty = pytest.importorskip("pty", reason="needs terminals of POSIX")

pytestmark = pytest.mark.extra


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_npz(
        tmp_path / "net.npz",
        layers={"a|b_*c*": {"groups": 2}, "bad": {"groups": 7}},
        **{"a|b_*c*": some(4, 1, 3, 3), "bad": some(4, 2, 3), "out, last.w": some(3, 4)},
    )


class TestSeveralLayersAtOnce:
    @pytest.mark.parametrize("cores", [1, 2, 3])
    def test_rows_keep_order_errors_and_numbers_and_at_most_so_many_are_at_work(
        self, cores: int, network: Path, capsys: Any, monkeypatch: Any
    ) -> None:
        _, alone = run_json(capsys, network)
        lock, at_work, most = threading.Lock(), 0, 0
        met = threading.Barrier(cores)
        bound = cli.bound_layer

        def watched(layer: Any, **choices: Any) -> Any:
            nonlocal at_work, most
            with lock:
                at_work += 1
                most = max(most, at_work)
            if cores > 1 and at_work <= cores:
                with contextlib.suppress(threading.BrokenBarrierError):
                    met.wait(2 if most < cores else 0)
            row = bound(layer, **choices)
            with lock:
                at_work -= 1
            return row

        monkeypatch.setattr(threads, "cores", lambda: cores)
        monkeypatch.setattr(cli, "bound_layer", watched)
        code, found = run_json(capsys, network)
        assert code == 1
        assert most == cores
        names = ("name", "lower", "upper", "converged", "error")
        for ours, theirs in zip(found["layers"], alone["layers"], strict=True):
            assert [ours[name] for name in names] == [theirs[name] for name in names]
        assert [bool(row["error"]) for row in found["layers"]] == [False, True, False]

    def test_an_interruption_starts_no_further_layer(
        self, network: Path, capsys: Any, monkeypatch: Any
    ) -> None:
        began = []

        def interrupted(layer: Any, **_: Any) -> Any:
            began.append(layer.name)
            raise KeyboardInterrupt

        monkeypatch.setattr(threads, "cores", lambda: 1)
        monkeypatch.setattr(cli, "bound_layer", interrupted)
        assert run(capsys, "report", network)[0] == 130
        assert len(began) == 1


class TestForms:
    def test_csv_rounds_like_the_table(self, network: Path, capsys: Any) -> None:
        code, report = run_json(capsys, network)
        assert code == 1
        code, out, _ = run(capsys, "report", "--csv", network)
        assert code == 1
        *rows, product = csv.DictReader(io.StringIO(out))
        assert [row["layer"] for row in rows] == ["a|b_*c*", "bad", "out, last.w"]
        for row, exact in zip(rows, report["layers"], strict=True):
            if exact["error"]:
                assert "groups" in row["error"]
                assert row["lower"] == row["upper"] == row["converged"] == ""
                continue
            assert Fraction(row["lower"]) <= Fraction(exact["lower"])
            assert Fraction(exact["upper"]) <= Fraction(row["upper"])
            assert (row["converged"], row["error"]) == ("yes", "")
        assert [row["assumed"] for row in rows] == ["no", "no", "no"]
        assert product["kind"] == "product of the upper bounds"
        assert (product["upper"], report["product_upper"]) == ("", None)
        assert product["error"] == "none, because of no bound: bad"
        _, out, _ = run(capsys, "report", "--csv", network, "--exclude", "bad")
        _, report = run_json(capsys, network, "--exclude", "bad")
        *_, product = csv.DictReader(io.StringIO(out))
        assert Fraction(product["upper"]) >= Fraction(report["product_upper"])
        assert product["error"] == ""

    def test_markdown_escapes_names(self, network: Path, capsys: Any) -> None:
        code, out, _ = run(capsys, "report", "--markdown", network)
        assert code == 1
        table = [line for line in out.splitlines() if line.startswith("| ")]
        assert len(table) == 5
        assert r"a\|b\_\*c\*" in table[2]
        assert {line.replace(r"\|", "").count("|") for line in table} == {9}
        assert "no product" in out
        assert "- no bound: bad" in out

    def test_forms_exclude_each_other(self, network: Path, capsys: Any) -> None:
        code, out, err = run(capsys, "report", "--csv", "--json", network)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1

    def test_selection_makes_the_product_that_of_the_selected(
        self, network: Path, capsys: Any
    ) -> None:
        code, report = run_json(capsys, network, "--exclude", "bad", "--exclude", "a*")
        assert code == 0
        (layer,) = report["layers"]
        assert report["product_upper"] == layer["upper"]
        assert {entry["name"] for entry in report["skipped"]} == {"a|b_*c*", "bad"}
        code, out, err = run(capsys, "report", network, "--include", "nothing")
        assert (code, out) == (2, "")
        assert "leave no layer" in err


@pytest.mark.parametrize("file", ["README.md", "docs/report.md"])
def test_documented_output_is_that_of_the_command(capsys: Any, file: str) -> None:
    text = (Path(__file__).parents[2] / file).read_text()
    _, report = run_json(capsys)
    for layer in report["layers"]:
        (line,) = re.findall(rf"^ *{layer['name']}[ ,].*$", text, flags=re.MULTILINE) or [None]
        if line is None:
            assert layer["name"].startswith("dense")  # left out in one of them
            continue
        assert layer["kind"] in line
        lower, upper = re.findall(r"\d\.\d{5,}|\d\d\.\d{5}", line)[:2]
        assert float(lower) <= layer["upper"]
        assert layer["lower"] <= float(upper) <= layer["upper"] * 1.001


class TestBackends:
    @pytest.mark.parametrize("backend", sorted(set(libraries.BACKENDS) - {"cupy"}))
    def test_brackets_of_every_library_overlap(
        self, network: Path, capsys: Any, caplog: Any, backend: str
    ) -> None:
        pytest.importorskip(backend)
        caplog.set_level("WARNING")  # JAX writes to stderr what it looked for, if anybody listens
        only = ("--exclude", "bad", "--exclude", "a*", "--device", "cpu")
        _, expected = run_json(capsys, network, *only)
        code, report = run_json(capsys, network, *only, "--backend", backend)
        assert code == 0
        assert (report["backend"], report["device"]) == (backend, "cpu")
        for found, known in zip(report["layers"], expected["layers"], strict=True):
            assert found["lower"] <= known["upper"]
            assert known["lower"] <= found["upper"]

    def test_library_that_would_change_the_values_refuses_them(self) -> None:
        jax = pytest.importorskip("jax")
        with jax.enable_x64(False), pytest.raises(ValueError, match="JAX_ENABLE_X64=1"):
            libraries.placed(np.ones((2, 2)), backend="jax", device=None)

    @pytest.mark.parametrize(
        ("backend", "device"),
        [
            *(("numpy", "cuda"), ("torch", "nonsense"), ("torch", "cuda:77")),
            *(("jax", "nonsense"), ("jax", "cpu:77"), ("jax", "cpu:x"), ("cupy", "cpu")),
        ],
    )
    def test_unknown_devices_are_one_line(
        self, network: Path, capsys: Any, backend: str, device: str
    ) -> None:
        pytest.importorskip(backend)
        code, out, err = run(capsys, "report", network, "--backend", backend, "--device", device)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert f"--backend {backend} cannot use the device {device}" in err

    def test_missing_library_names_the_extra(
        self, network: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        code, out, err = run(capsys, "report", network, "--backend", "torch")
        assert (code, out) == (2, "")
        assert 'pip install "gramnorm[torch]"' in err


def started(path: Path, **streams: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gramnorm", "report", "--json", str(path)]
    return subprocess.Popen(command, env=os.environ | {"TERM": "xterm"}, **streams)


class TestTerminal:
    @pytest.fixture
    def large(self, tmp_path: Path) -> Path:
        return write_npz(
            tmp_path / "x.npz", **{f"w{i}[red].weight": some(48, 48, 3, 3) for i in range(9)}
        )

    def test_progress_is_shown_on_a_terminal_only(self, large: Path) -> None:
        pytest.importorskip("rich")
        code, out, shown = on_terminal(large)
        assert code == 0
        assert b"w8[red]" in shown
        assert out.startswith(b"{")
        with started(large, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            piped, err = process.communicate()
        assert (process.returncode, err) == (0, b"")
        assert len(piped.splitlines()) == len(out.splitlines())

    def test_interrupt_ends_quietly(self, large: Path) -> None:
        pytest.importorskip("rich")
        code, out, shown = on_terminal(large, interrupt_at=b"[red]")  # whichever layer is seen
        # Python ends by the signal itself if it came during an import: 130 as well, in a shell
        assert code in (130, -signal.SIGINT)
        assert out == b""
        assert b"Traceback" not in shown


def on_terminal(path: Path, *, interrupt_at: bytes | None = None) -> tuple[int, bytes, bytes]:
    """Return the exit code, the output, and what a terminal on the error stream got to see."""
    leader, follower = pty.openpty()
    shown = b""
    with started(path, stdout=subprocess.PIPE, stderr=follower) as process:
        os.close(follower)
        with os.fdopen(leader, "rb", buffering=0) as screen, contextlib.suppress(OSError):
            while piece := screen.read(1024):  # an OSError says that nobody writes any more
                shown += piece
                if interrupt_at is not None and interrupt_at in shown:
                    process.send_signal(signal.SIGINT)
                    interrupt_at = None
        out = process.communicate()[0]
    return process.returncode, out, shown
