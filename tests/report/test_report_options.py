"""The other forms of the report, other libraries to compute with, and how it behaves on a terminal."""

import contextlib
import csv
import io
import json
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
from gramnorm.report import options, work
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
        bound = work.bound_layer

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
        monkeypatch.setattr(work, "bound_layer", watched)
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
        monkeypatch.setattr(work, "bound_layer", interrupted)
        assert run(capsys, "report", network)[0] == 130
        assert len(began) == 1


class TestForms:
    def test_csv_rounds_like_the_table(self, network: Path, capsys: Any) -> None:
        code, report = run_json(capsys, network)
        assert code == 1
        code, out, _ = run(capsys, "report", "--csv", network)
        assert code == 1
        *rows, product = csv.DictReader(io.StringIO(out))  # with nothing to skip
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
        *_, product, skipped = csv.DictReader(io.StringIO(out))
        assert Fraction(product["upper"]) >= Fraction(report["product_upper"])
        assert product["error"] == ""
        assert (skipped["layer"], skipped["kind"], skipped["upper"]) == ("bad", "skipped", "")
        assert skipped["error"] == "left out by --include or --exclude"

    def test_csv_has_the_constant_of_the_network_and_all_that_json_says_was_skipped(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        path = write_npz(
            tmp_path / "x.npz",
            layers={"__network__": {"chain": ["fc1", {"residual": "fc2"}]}},
            **{"fc1": some(3, 3), "fc2": some(3, 3), "fc2.bias": some(3), "pos": some(2, 3)},
        )
        for harmless in (["--exclude", "pos"], []):
            _, report = run_json(capsys, path, *harmless)
            rows = [
                *csv.DictReader(io.StringIO(run(capsys, "report", "--csv", path, *harmless)[1]))
            ]
            assert [row["kind"] for row in rows[:4]] == [
                *("dense", "dense", "constant of the network", "product of the upper bounds")
            ]
            constant, exact = rows[2], report["network"]
            if harmless:
                assert Fraction(constant["upper"]) >= Fraction(exact["upper"])
                assert constant["error"] == ""
            else:
                assert (constant["upper"], constant["error"]) == ("", exact["reason"])
            assert [(row["layer"], row["error"]) for row in rows[4:]] == [
                (entry["name"], entry["reason"]) for entry in report["skipped"]
            ]
            assert {row["kind"] for row in rows[4:]} == {"skipped"}
            assert {row["layer"] for row in rows[4:]} == {"fc2.bias", "pos"}

    def test_constant_of_the_network_comes_first_and_no_product_beside_it(
        self, tmp_path: Path, capsys: Any
    ) -> None:
        path = write_npz(
            tmp_path / "x.npz",
            layers={"__network__": {"chain": ["fc1", {"residual": "fc2"}]}},
            fc1=some(3, 3),
            fc2=some(3, 3),
        )
        for form in ([], ["--markdown"]):
            out = run(capsys, "report", path, *form)[1]
            assert (
                out.index("x.npz") < out.index("constant of the network") < out.index("converged")
            )
            assert "product" not in out
        keys = list(run_json(capsys, path)[1])
        assert keys.index("network") < keys.index("layers")

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


def test_page_and_help_have_the_same_options() -> None:
    page = (Path(__file__).parents[2] / "docs/report.md").read_text()
    table = page.partition("## Options")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`--.*?) \|", table, flags=re.MULTILINE)
    documented = {option for row in rows for option in re.findall(r"--[a-z-]+", row)}
    helped = run_help()
    assert documented == helped
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)) <= helped


def run_help() -> set[str]:
    """Return the options that `gramnorm report --help` shows with a text beside them."""
    (commands,) = (a for a in options.parser()._actions if isinstance(a.choices, dict))
    report = commands.choices["report"]
    shown = report.format_help()
    named = {name for a in report._actions if a.help for name in a.option_strings if name in shown}
    return {name for name in named if name.startswith("--")} - {"--help"}


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


@pytest.mark.parametrize(
    ("file", "before", "arguments"),
    [
        ("README.md", "<!-- report-output: begin -->\n\n```text\n", []),
        ("docs/report.md", "$ gramnorm report --csv\n", ["--csv"]),
    ],
)
def test_documented_output_is_the_whole_of_it(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, file: str, before: str, arguments: list[str]
) -> None:
    """The numbers, which a library may change in their last digits, are compared above."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = (Path(__file__).parents[2] / file).read_text().partition(before)[2].partition("```")[0]
    texts = [shown, run(capsys, "report", *arguments)[1]]
    for i, text in enumerate(texts):
        texts[i] = re.sub(r" +", " ", re.sub(r"\d+\.\d+(e[+-]\d+)?", "0.0", text))
    assert texts[0] == texts[1]


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
        assert not out or json.loads(out)["partial"]
        assert b"Traceback" not in shown


# Layers called "slow" take longer than anybody waits.
_SLOW = """
import sys, time
from gramnorm._arrays import threads
from gramnorm.report import cli, work

cores, bound = int(sys.argv.pop(1)), work.bound_layer

def slow(layer, **choices):
    if "slow" in layer.name:
        sys.stderr.write("at work\\n")
        time.sleep(600)
    return bound(layer, **choices)

threads.cores = lambda: cores
work.bound_layer = slow
cli.program()
"""


@pytest.mark.parametrize(
    ("cores", "form"), [(1, []), (2, []), (2, ["--json"]), (1, ["--csv"]), (2, ["--markdown"])]
)
def test_interrupt_prints_the_finished_rows_at_once(
    tmp_path: Path, cores: int, form: list[str]
) -> None:
    names = ["fast1.weight", "fast2.weight", *["slow1.weight", "slow2.weight"][:cores], "x.weight"]
    path = write_npz(
        tmp_path / "x.npz",
        layers={"__network__": {"chain": names}} if form else None,
        **{name: some(3, 3) for name in names},
    )
    command = [sys.executable, "-c", _SLOW, str(cores), "report", str(path), *form]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stderr is not None
        began = b"".join(process.stderr.readline() for _ in range(cores))
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert began == b"at work\n" * cores
    assert (process.returncode, err) == (130, b"")
    text = out.decode()
    assert all(name in text for name in names)
    if form == ["--json"]:
        report = json.loads(text)
        assert [layer["name"] for layer in report["layers"]] == names[:2]
        assert report["unfinished"] == names[2:]
        assert (report["partial"], report["product_upper"]) == (True, None)
        assert report["network"]["upper"] is None
    elif form == ["--csv"]:
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["layer"] for row in rows if row["kind"] == "dense"] == names[:2]
        assert [row["layer"] for row in rows if row["kind"] == "unfinished"] == names[2:]
    else:
        assert "interrupted before there was a bound" in text
        assert len(re.findall(r"3 x 3", text)) == 2


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
