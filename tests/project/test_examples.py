"""The examples of the gallery run as they stand, and show what their texts say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.extra

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, folder: Path) -> str:
    """Run an example as a user would; return what it printed once its figure is there."""
    pytest.importorskip("matplotlib", reason="the examples draw")
    figure = folder / "figure.png"
    command = [sys.executable, EXAMPLES / name, "--output", figure]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert figure.read_bytes().startswith(b"\x89PNG")
    return done.stdout


@pytest.fixture(autouse=True)
def this_package_without_a_screen(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("MPLBACKEND", "agg")


@pytest.mark.slow
def test_deblurring_diverges_is_slow_and_is_best_as_its_text_says(tmp_path):
    printed = run("fista_deblurring.py", tmp_path)
    found = re.findall(r"L = ([\d.e+-]+), objective ([\d.e+-]+) after (\d+) steps", printed)
    (early, _, few), (inflated, slow, many), (certified, best, same) = found
    assert float(early) < float(certified) < float(inflated)
    assert int(few) < int(many) == int(same)
    assert float(best) < float(slow) < 1e-5


@pytest.mark.slow
def test_grid_of_the_filter_bank_misses_the_peak(tmp_path):
    printed = run("filter_bank.py", tmp_path)
    lower = re.search(r"\(([\d.]+) <= norm", printed)
    grid = re.search(r"grid of \d+: ([\d.]+)", printed)
    assert 1 < float(grid[1]) < float(lower[1]) < 1.02


@pytest.mark.slow
def test_report_on_the_shipped_network_lists_its_layers(tmp_path):
    printed = run("report_digits.py", tmp_path)
    assert len(re.findall(r"weight +[\d.]+ <= norm <= [\d.]+", printed)) == 6
    assert re.search(r"product of the upper bounds: 59141\.\d", printed)


@pytest.mark.slow
def test_of_three_answers_for_one_layer_the_certified_one_is_never_below_the_norm(tmp_path):
    printed = run("one_layer.py", tmp_path)
    norm = float(re.search(r"^norm ([\d.]+)$", printed, flags=re.MULTILINE)[1])
    lower, upper = map(
        float, re.search(r"gramnorm: ([\d.]+) <= norm <= ([\d.]+)", printed).groups()
    )
    steps = [float(found) for found in re.findall(r"steps?: ([\d.]+)", printed)]
    assert sorted(steps) == steps
    assert steps[-1] < norm
    assert lower <= norm <= upper
    below = re.search(r"SVD: (\d+) of 1000", printed)
    assert 300 < int(below[1]) < 700
    assert "gramnorm: 0 of 1000 random layers below" in printed
