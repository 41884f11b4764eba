"""What a call costs in each library on the CPU, and beside other processes.

The same bounds of new values: the first call of a process, which imports and compiles, and later ones of the same
shape; in NumPy while other processes occupy cores.  Each library gets a process of its own, with default settings.
"torch-device" and "jax-device" are computed as on a device, of which the CPU takes the place: not with NumPy, however
small they are.
"""

import contextlib
import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import gramnorm as gn
from benchmarks.devices import Device, require_numpy
from benchmarks.kernels import gaussian
from benchmarks.tables import Table
from gramnorm._arrays import crossing
from gramnorm._arrays import libraries as settings

Work = tuple[tuple[int, ...], Callable[[Any], Any]]
WORK: dict[str, Work] = {
    "16 x 16 x 3 x 3, every size": ((16, 16, 3, 3), gn.conv_norm_bound),
    "8 x 8 x 3 x 3, zeros, 14 x 14": (
        (8, 8, 3, 3),
        lambda kernel: gn.conv_norm_bound(kernel, (14, 14), padding=1),
    ),
    "64 x 64": ((64, 64), gn.matrix_norm_bound),
    "16 x 16": ((16, 16), gn.matrix_norm_bound),
    "256 x (64 x 64)": ((256, 64, 64), gn.matrix_norm_bound),
}
BUSY: dict[str, Work] = {
    **WORK,
    "64 x 64 x 3 x 3, every size": ((64, 64, 3, 3), gn.conv_norm_bound),
    "8 x (512 x 512)": ((8, 512, 512), gn.matrix_norm_bound),
}
LIBRARIES = ("numpy", "torch", "jax", "torch-device", "jax-device")
COLUMNS = ("first [ms]", "later [ms]", "programs compiled at first", "later", "arrays to the host")
LATER = 5
OTHERS = (0, 1, 6)
"""Processes beside ours."""
NEVER_RESTS = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


def libraries(_: Device) -> Iterator[Table]:
    """Time first and later calls in NumPy, PyTorch and JAX, on the CPU."""
    found: dict[str, dict[str, list[float]]] = {}
    notes = ["arrays to the host: of one later call; NumPy's own are there"]
    for library in LIBRARIES:
        command = [sys.executable, "-m", "benchmarks.hosts", library]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            notes.append(f"{library}: {done.stderr.strip().rpartition(chr(10))[2]}")
            continue
        for line in done.stdout.splitlines():
            name, *figures = line.split("\t")
            found.setdefault(name, {})[library] = [float(x) for x in figures]
    rows = [
        {"work": name, "library": library}
        | dict(zip(COLUMNS, (*figures[:2], *map(int, figures[2:])), strict=True))
        | {"later, of NumPy's": figures[1] / each["numpy"][1]}
        for name, each in found.items()
        for library, figures in each.items()
    ]
    yield Table("libraries", "The same bounds in each library on the CPU, float64", rows, notes)


def busy(device: Device) -> Iterator[Table]:
    """Time the same work alone and beside one and six processes that never rest."""
    require_numpy(device, "cores are what NumPy works with")
    rows: list[dict[str, Any]] = [{"work": name} for name in BUSY]
    for others in OTHERS:
        with beside(others):
            for row, (shape, bound) in zip(rows, BUSY.values(), strict=True):
                wall, cpu = _medians(shape, bound)
                row |= {f"wall [ms], {others} beside": 1e3 * wall}
                row |= {f"CPU [ms], {others} beside": 1e3 * cpu}
    yield Table("busy", f"Beside busy processes, {cores()} cores, default settings, float64", rows)


@contextlib.contextmanager
def beside(others: int) -> Iterator[None]:
    """Let so many processes that never rest run beside this one."""
    processes = [subprocess.Popen([sys.executable, "-c", NEVER_RESTS]) for _ in range(others)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def cores() -> int | None:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _medians(shape: tuple[int, ...], bound: Callable[[Any], Any]) -> tuple[float, float]:
    """Return the median wall and CPU seconds of a call after the first."""
    wall, cpu = [], []
    for seed in range(1 + LATER):
        x = gaussian(shape, seed)
        began = time.perf_counter(), time.process_time()
        bound(x)
        wall.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
    return statistics.median(wall[1:]), statistics.median(cpu[1:])


def _first_and_later(name: str) -> None:
    """Print the `COLUMNS` of each work: of the first call, and medians of later ones with other values."""
    library = name.removesuffix("-device")
    settings.HOST_WITH_NUMPY = library == name
    importlib.import_module(library)
    compiled = _compilations() if library == "jax" else []
    moved = {"numpy": "numpy.asarray", "torch": "torch.from_numpy", "jax": "jax.numpy.asarray"}
    module, _, function = moved[library].rpartition(".")
    move = getattr(importlib.import_module(module), function)
    crossings = _crossings()
    for work, (shape, bound) in WORK.items():
        seconds, programs, crossed = [], [], []
        for seed in range(1 + LATER):
            x = move(np.asarray(gaussian(shape, seed)))
            before, here, began = len(compiled), len(crossings), time.perf_counter()
            value = bound(x)
            crossed.append(len(crossings) - here)
            float(np.max(np.asarray(value)))
            seconds.append(time.perf_counter() - began)
            programs.append(len(compiled) - before)
        figures = (
            *(1e3 * s for s in (seconds[0], statistics.median(seconds[1:]))),
            programs[0],
            sum(programs[1:]),
            crossed[-1],
        )
        print(work, *figures, sep="\t")


def _compilations() -> list[str]:
    """Switch 64 bits on; return a list to which JAX adds an event for each program that it compiles."""
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    found: list[str] = []

    def listener(event: str, _: float, **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    return found


def _crossings() -> list[object]:
    """Return a list that grows with each array of a library that is brought to the host."""
    found: list[object] = []
    host_array = crossing.host_array

    def counted(x: Any) -> Any:
        if not isinstance(x, np.ndarray | np.generic):
            found.append(x.shape)
        return host_array(x)

    crossing.host_array = counted
    return found


if __name__ == "__main__":
    _first_and_later(sys.argv[1])
