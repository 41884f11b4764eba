"""The array libraries the suite runs against, and the fixtures every test may draw on."""

import contextlib
import importlib
import importlib.util
import operator
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_api_compat import device as device_of
from hypothesis import settings

settings.register_profile(
    "quick", derandomize=True, deadline=None, database=None, print_blob=True, max_examples=20
)
settings.register_profile("ci", settings.get_profile("quick"), max_examples=50)
settings.register_profile("deep", settings.get_profile("ci"), derandomize=False, max_examples=2000)
settings.load_profile("quick")  # `--hypothesis-profile ci` overrides

NARROW = {"float64": "float32", "complex128": "complex64"}


@dataclass(frozen=True)
class Backend:
    """One array library on one device, with the two conversions tests may use."""

    id: str
    xp: Any
    device: Any = None
    has_float64: bool = True
    readonly: bool = False

    def asarray(self, host: Any, dtype: str | None = None) -> Any:
        """Return a fresh array of the named dtype; without float64, values are narrowed."""
        host = np.array(host)
        name = dtype or host.dtype.name
        name = name if self.has_float64 else NARROW.get(name, name)
        if name in np.sctypeDict:
            host = host.astype(name)  # on the host: a device may not hold the wider type
        x = self.xp.asarray(host, dtype=getattr(self.xp, name), device=self.device)
        if self.readonly:
            x.flags.writeable = False
        return x

    def to_numpy(self, x: Any) -> Any:
        """Return `x` on the host; bfloat16, unknown to NumPy, comes back as float32."""
        if self.id.startswith("strict"):
            x = x.to_device(self.xp.Device("CPU_DEVICE"))
        if self.id.startswith("torch"):
            x = x.detach().cpu().resolve_conj()
        if "bfloat16" in str(getattr(x, "dtype", "")):
            x = self.xp.astype(x, self.xp.float32)
        return x.get() if self.id == "cupy" else np.asarray(x)

    def is_at_home(self, x: Any) -> bool:
        """Tell whether `x` is an array of this library on this device."""
        here = self.xp.empty(0, dtype=self.xp.float32, device=self.device)
        return isinstance(x, type(here)) and device_of(x) == device_of(here)


# Per id: the library, its standard namespace, what makes this backend differ, the GPU counter.
STRICT, TORCH = ("array_api_strict",) * 2, ("torch", "array_api_compat.torch")
BACKENDS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "numpy": ("numpy", "array_api_compat.numpy", {}, ""),
    "numpy-readonly": ("numpy", "array_api_compat.numpy", {"readonly": True}, ""),
    "strict": (*STRICT, {"device": "CPU_DEVICE"}, ""),
    "strict-device1": (*STRICT, {"device": "device1"}, ""),
    "strict-float32": (*STRICT, {"device": "no_float64", "has_float64": False}, ""),
    "torch": (*TORCH, {"device": "cpu"}, ""),
    "jax32": ("jax", "jax.numpy", {"has_float64": False}, ""),
    "jax": ("jax", "jax.numpy", {}, ""),
    "cupy": ("cupy", "array_api_compat.cupy", {}, "cuda.runtime.getDeviceCount"),
    "torch-cuda": (*TORCH, {"device": "cuda"}, "cuda.device_count"),
}


# Computed as another one is: tested if named.
TWINS = {"numpy-readonly": "numpy", "strict": "strict-device1"}


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
            scope.enter_context(importlib.import_module("jax").enable_x64(request.param == "jax"))
        yield Backend(request.param, xp, **fields)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of shared real layers and matrices, beside the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    return folder if folder.is_dir() else pytest.skip(f"{folder.name} is not here")
