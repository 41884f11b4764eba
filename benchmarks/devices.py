"""Where a benchmark runs: the array library, its clock and its memory.

A GPU works on after a call has returned.  There the seconds are those between two events that the device itself
records, before the first call and after the last, and the peak is what its allocator reserved.  `BUDGET` is all that
a benchmark may take of the memory of a GPU: beyond it the allocator fails, and the row says so.
"""

import importlib
import math
import os
import platform
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

BUDGET = 16 * 2**30
"""Bytes of a GPU's memory."""

NAMES = ("numpy", "torch", "torch-cuda", "cupy")
PACKAGES = (
    *("gramnorm", "numpy", "scipy", "torch", "cupy-cuda13x", "orthogonium", "deel-torchlip"),
    *("cvxpy", "clarabel", "eclipse-nn"),
)


class AbsentError(Exception):
    """A library or a device that is not here; its text says which."""


def require_numpy(device: "Device", why: str) -> None:
    """Leave out a section that has no other devices."""
    if device.name != "numpy":
        raise AbsentError(why)


class Device:
    """NumPy, and what the other devices do in their own way.

    Attributes
    ----------
    xp : module
        The array API namespace.
    """

    name = "numpy"

    def __init__(self) -> None:
        self.xp: Any = importlib.import_module("array_api_compat.numpy")

    def asarray(self, x: Any) -> Any:
        """Return a NumPy array as an array of this device."""
        return x

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        """Return the seconds of one call, over so many of them."""
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    def peak(self, call: Callable[[], object]) -> float:
        """Return the most bytes that a call holds at once; NaN if that is not known."""
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def describe(self) -> str:
        """Return the name of the device."""
        return f"{processor()}, {threads()} BLAS threads"


class Torch(Device):
    """PyTorch on the CPU, whose memory nobody counts."""

    name = "torch"

    def __init__(self) -> None:
        self.torch = _library("torch")
        self.torch.set_num_threads(threads())
        self.xp = importlib.import_module("array_api_compat.torch")

    def asarray(self, x: Any) -> Any:
        """Return a NumPy array as a tensor."""
        return self.torch.from_numpy(x)

    def peak(self, call: Callable[[], object]) -> float:
        """Return NaN."""
        call()
        return math.nan


class TorchCuda(Torch):
    """PyTorch on a GPU."""

    name = "torch-cuda"

    def __init__(self) -> None:
        super().__init__()
        self._cuda = self.torch.cuda
        if not self._cuda.is_available():
            msg = "torch finds no GPU that answers"
            raise AbsentError(msg)
        total = self._cuda.get_device_properties(0).total_memory
        self._cuda.set_per_process_memory_fraction(min(BUDGET / total, 1.0))

    def asarray(self, x: Any) -> Any:
        """Return a NumPy array as a tensor on the GPU."""
        return self.torch.from_numpy(x).to("cuda")

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        """Return the seconds of one call between two events."""
        start, stop = (self._cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3 / repeats

    def peak(self, call: Callable[[], object]) -> float:
        """Return the most bytes that tensors held beyond those of before."""
        self._cuda.reset_peak_memory_stats()
        before = self._cuda.memory_allocated()
        call()
        self._cuda.synchronize()
        return float(self._cuda.max_memory_allocated() - before)

    def describe(self) -> str:
        """Return the name of the GPU, and the memory allowed."""
        return f"{self._cuda.get_device_name(0)}, at most {BUDGET / 2**30:g} GiB"


class CuPy(Device):
    """CuPy."""

    name = "cupy"

    def __init__(self) -> None:
        self.cupy = _library("cupy")
        try:
            self.cupy.cuda.runtime.getDeviceCount()
        except self.cupy.cuda.runtime.CUDARuntimeError as error:
            msg = f"cupy finds no GPU that answers ({error})"
            raise AbsentError(msg) from error
        self._pool = self.cupy.get_default_memory_pool()
        self._pool.set_limit(size=BUDGET)
        self.xp = importlib.import_module("array_api_compat.cupy")

    def asarray(self, x: Any) -> Any:
        """Return a NumPy array as an array on the GPU."""
        return self.cupy.asarray(x)

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        """Return the seconds of one call between two events."""
        start, stop = (self.cupy.cuda.Event() for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        stop.record()
        stop.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, stop)) / 1e3 / repeats

    def peak(self, call: Callable[[], object]) -> float:
        """Return by how much the pool, emptied before, has grown."""
        self._pool.free_all_blocks()
        before = self._pool.total_bytes()
        call()
        return float(self._pool.total_bytes() - before)

    def describe(self) -> str:
        """Return the name of the GPU, and the memory allowed."""
        properties = self.cupy.cuda.runtime.getDeviceProperties(0)
        return f"{properties['name'].decode()}, at most {BUDGET / 2**30:g} GiB"


def device(name: str) -> Device:
    """Return the device of that name; raise `AbsentError` if it is not here."""
    return {kind.name: kind for kind in (Device, Torch, TorchCuda, CuPy)}[name]()


def processor() -> str:
    """Return the name of the processor, and how many of its cores there are."""
    name = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            found = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
        name = found[0] if found else name
    except OSError:  # another system
        name = platform.processor() or name
    return f"{name}, {os.cpu_count()} cores"


def threads() -> int:
    """Return how many threads NumPy's products may use, as its BLAS reads it."""
    named = (os.environ.get(f"{library}_NUM_THREADS") for library in ("OPENBLAS", "OMP"))
    cores = getattr(os, "process_cpu_count", os.cpu_count)()
    return int(next(filter(None, named), cores))


def versions() -> dict[str, str]:
    """Return the versions of what took part, or that it is absent."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        msg = f"{name} is not installed"
        raise AbsentError(msg) from error
