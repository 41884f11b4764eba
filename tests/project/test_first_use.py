"""What a new user meets before any bound: the import, the types, the packages."""

import importlib.util
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.extra

ROOT = Path(__file__).parents[2]
OPTIONAL = {
    *(
        "cupy",
        "dask",
        "distributed",
        "flint",
        "h5py",
        "jax",
        "matplotlib",
        "msgpack",
        "onnx",
        "rich",
        "safetensors",
    ),
    *("scipy", "sklearn", "torch"),
}

SCRIPT = '''
"""A user's script."""

import numpy as np

import gramnorm as gn
from gramnorm import NormBracket, classical


def step_size(kernel: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    bracket: NormBracket = gn.conv_norm_bracket(kernel, (32, 32), padding="same")
    reveal_type(bracket)
    reveal_type(bracket.n_products)
    reveal_type(repr(bracket))
    return 1.0 / float(bracket.upper) ** 2


def main() -> None:
    x = np.eye(3)
    value, gradient = gn.matrix_norm_value_and_grad(x)
    geometry = gn.ConvGeometry.of((1, 1, 3, 3), (8, 8), padding=1)
    reveal_type(geometry.output_shape)
    reveal_type(geometry)
    print(value, gradient, gn.matrix_norm_bound(x), classical.METHODS, step_size(np.ones((1, 1, 3, 3))))
'''
REVEALED = [
    "gramnorm._results.NormBracket",
    "int",
    "str",
    "tuple[int, ...] | None",
    "gramnorm._conv.geometry.ConvGeometry",
]
MISUSE = """
import gramnorm as gn

gn.conv_norm_bound([1.0], strides=2)
gn.fir_norm([1.0]).uper
gn.matrix_norm_bracket([1.0], rtol="tight")
"""


def python(*arguments: object, cwd: Path = ROOT, **environment: str) -> str:
    """Run this Python and return what it wrote; the test fails if the command does."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_import_loads_no_optional_library():
    code = f"import gramnorm, sys; print(*sorted({OPTIONAL!r} & sys.modules.keys()))"
    assert python("-c", code).split() == []


def test_import_that_loads_an_optional_library_would_be_noticed():
    if importlib.util.find_spec("scipy") is None:
        pytest.skip("scipy is not here")
    code = f"import gramnorm, scipy, sys; print(*sorted({OPTIONAL!r} & sys.modules.keys()))"
    assert python("-c", code).split() == ["scipy"]


@pytest.mark.parametrize(
    "call", ["matrix_norm_bracket(np.eye(30))", "conv_norm_bracket(np.ones((3, 2, 3, 3)))"]
)
def test_a_first_call_loads_little_of_numpy(call):
    """What array-api-compat makes of NumPy takes longer than the bound: it touches all there is."""
    code = f"import gramnorm as gn, numpy as np, sys; gn.{call}; print(*sys.modules)"
    loaded = set(python("-c", code).split())
    assert not loaded & {"array_api_compat.numpy", "numpy.f2py", "numpy.testing", "unittest"}


@pytest.fixture(scope="module")
def complaints(tmp_path_factory):
    """Check two scripts of users, strictly and away from this project's configuration."""
    pytest.importorskip("mypy", reason="mypy is in the group lint")
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "script.py").write_text(SCRIPT)
    (folder / "misuse.py").write_text(MISUSE)
    options = ("--strict", "--config-file=", "--no-error-summary", "--cache-dir", folder / "cache")
    command = [sys.executable, "-m", "mypy", *options, "script.py", "misuse.py"]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_types_of_a_users_script_are_known_and_misuse_is_found(complaints):
    found = [line for line in complaints if line.startswith("script.py")]
    assert not [line for line in found if "error" in line]
    revealed = [line.split('"')[1].replace("builtins.", "") for line in found if "note" in line]
    assert revealed == REVEALED
    found = [line for line in complaints if line.startswith("misuse.py") and "error" in line]
    assert len(found) == 3, found


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Build sdist and wheel with what is installed: nothing is fetched."""
    for need in ("build", "hatchling"):
        pytest.importorskip(need, reason=f"{need} builds the packages")
    out = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", out)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    return out, in_sdist, in_wheel


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(packages):
    _, _, names = packages
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    info = f"gramnorm-{version}.dist-info/"
    ours = {str(p.relative_to(ROOT)) for p in ROOT.glob("gramnorm/**/*") if p.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    assert {name for name in names if not name.startswith(info)} == ours
    assert {"gramnorm/py.typed", "gramnorm/data/digits.npz"} <= names
    assert {f"{info}licenses/LICENSE", f"{info}entry_points.txt"} <= names


@pytest.mark.slow
def test_sdist_holds_what_is_needed_to_build_test_and_document(packages):
    _, names, _ = packages
    needed = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "gramnorm/py.typed"}
    needed |= {"gramnorm/data/digits.npz", "tests/conftest.py", "docs/conf.py"}
    assert needed <= names
    junk = (".venv", "dist", "build", "docs/_build", "docs/generated", "__pycache__")
    assert not [n for n in names if n.startswith(junk) or n.endswith((".pyc", ".whl"))]
    pictures = {n for n in names if n.endswith(".png")}
    assert all(n.startswith("docs/benchmarks/") for n in pictures)  # of numbers that took an hour


@pytest.mark.slow
def test_packages_pass_the_check_of_the_index(packages):
    pytest.importorskip("twine", reason="twine is in the group lint")
    out, _, _ = packages
    report = python("-m", "twine", "check", "--strict", *sorted(out.iterdir()))
    assert report.count("PASSED") == 2
