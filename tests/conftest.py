"""The array libraries the suite runs against, and the fixtures every test may draw on."""

import contextlib
import importlib
import importlib.util
import operator
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings

from gramnorm._arrays import libraries
from tests.harness.backends import BACKENDS, TWINS, Backend

settings.register_profile(
    "quick", derandomize=True, deadline=None, database=None, print_blob=True, max_examples=12
)
settings.register_profile("ci", settings.get_profile("quick"), max_examples=50)
settings.register_profile("deep", settings.get_profile("ci"), derandomize=False, max_examples=2000)
settings.load_profile("quick")  # `--hypothesis-profile ci` overrides


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; inherited
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backends", help=f"comma-separated, of: {', '.join(BACKENDS)}")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the suite, if no file of it is named, in a process for each core, unless `-n` says another number."""
    has_xdist = config.pluginmanager.hasplugin("xdist") and not hasattr(config, "workerinput")
    whole = config.args_source is config.ArgsSource.TESTPATHS
    if has_xdist and whole and config.option.numprocesses is None:
        config.option.numprocesses = "auto"
        config.option.dist = "worksteal"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Give each process one thread: two with two threads each would fight for two cores."""
    for library in ("OMP", "OPENBLAS", "MKL", "VECLIB"):
        name = "MAXIMUM" if library == "VECLIB" else "NUM"
        os.environ.setdefault(f"{library}_{name}_THREADS", "1")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "be" not in metafunc.fixturenames:
        return
    present = [i for i, (library, *_) in BACKENDS.items() if importlib.util.find_spec(library)]
    chosen = metafunc.config.getoption("backends")
    ids = chosen.split(",") if chosen else [i for i in present if i not in TWINS]
    if missing := sorted(set(ids) - set(present)):
        msg = f"--backends: {', '.join(missing)} unknown or not installed"
        raise pytest.UsageError(msg)
    params = [pytest.param(i, marks=[pytest.mark.gpu] * bool(BACKENDS[i][3])) for i in ids]
    metafunc.parametrize("be", params, indirect=True, scope="session")


@pytest.fixture(scope="session")
def be(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Yield each chosen backend in turn; it spans the session, so hypothesis may draw under it."""
    library, namespace, fields, gpu_counter = BACKENDS[request.param]
    if gpu_counter:
        try:  # these libraries import without a GPU: ask the driver
            count = operator.attrgetter(gpu_counter)(importlib.import_module(library))()
        except Exception as error:  # each library raises its own kind
            pytest.skip(f"no GPU answers: {error}")
        if not count:
            pytest.skip("no GPU answers: none found")
    xp = importlib.import_module(namespace)
    if library == "array_api_strict":
        fields = fields | {"device": xp.Device(fields["device"])}
    with contextlib.ExitStack() as scope:
        if library == "jax":  # whether there is a float64 is a setting of the process
            has_float64 = fields.get("has_float64", True)
            scope.enter_context(importlib.import_module("jax").enable_x64(has_float64))
        with_numpy = fields.get("with_numpy", True)
        scope.enter_context(mock.patch.object(libraries, "HOST_WITH_NUMPY", with_numpy))
        yield Backend(request.param, xp, **fields)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of shared real layers and matrices, beside the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    return folder if folder.is_dir() else pytest.skip(f"{folder.name} is not here")
