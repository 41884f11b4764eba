"""Damaged graphs and files beside them, in a process of its own with little memory."""

import subprocess
import sys

import pytest

pytest.importorskip("onnx")
pytest.importorskip("resource")  # not on every system

pytestmark = [pytest.mark.extra, pytest.mark.slow]


def test_damaged_graphs_end_in_rows_or_one_line() -> None:
    command = [sys.executable, "-m", "tests.harness.damage", "--count", "300"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    assert ended.stdout == "300 files, 0 wrong\n"
