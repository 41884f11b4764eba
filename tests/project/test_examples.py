"""The examples of the gallery run as they stand, and show what their texts say."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
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


def imported(name: str):
    """Return an example as a module."""
    pytest.importorskip("matplotlib", reason="the examples draw")
    spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


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


@pytest.mark.slow
def test_of_the_scalings_before_newton_schulz_only_ours_leave_no_norm_above_one(tmp_path):
    pytest.importorskip("torch")
    printed = run("muon.py", tmp_path)
    counts = re.findall(r"^(.*), (?:b?float\d\d): (\d+) of 60 above 1", printed, flags=re.MULTILINE)
    assert len(counts) == 12
    assert all((int(count) == 0) == name.startswith("spectral_rescaling") for name, count in counts)
    assert len(re.findall("over powers of 1.01: 0$", printed, flags=re.MULTILINE)) == 12
    first, last = re.search(r"network: ([\d.]+), after 40 steps ([\d.]+)", printed).groups()
    assert float(last) < 0.1 * float(first)
    largest = dict(
        re.findall(r"^(.*): singular values [\d.]+ to ([\d.]+);", printed, flags=re.MULTILINE)
    )
    names = ("Frobenius", "spectral_rescaling, steps=1", "spectral_rescaling, steps=2")
    one, two, three = (float(largest[name]) for name in names)
    assert one < two < three < 1


def test_optimiser_and_transformation_of_the_example_take_the_same_steps():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    example = imported("muon")
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal((2, 5, 3)).astype("float32") for _ in range(3)]
    parameter = torch.nn.Parameter(torch.zeros(2, 5, 3))
    optimiser = example.Muon([parameter])
    transformation = example.muon()
    tree = {"a": jax.numpy.zeros((2, 5, 3))}
    state = transformation.init(tree)
    update = jax.jit(transformation.update)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimiser.step()
        steps, state = update({"a": jax.numpy.asarray(gradient)}, state, tree)
        tree = jax.tree.map(lambda p, step: p + step, tree, steps)
    assert np.allclose(parameter.detach().numpy(), np.asarray(tree["a"]), rtol=0, atol=1e-5)
    assert np.max(np.abs(np.asarray(tree["a"]))) > 1e-2


def test_constant_in_the_loss_comes_down_to_its_target_and_the_product_need_not():
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    example = imported("network_constant")
    data = example.digits()
    run = example.trained("network", 0, data, epochs=6)
    assert run.accuracy > 50
    assert run.constant < run.in_loss < 1.05 * example.TARGET
    assert run.product > 1.4 * run.constant
    assert run.share(0.1) <= run.accuracy
