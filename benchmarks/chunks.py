"""A tall matrix on disk, larger than the memory of the worker that bounds its norm, through Dask.

One process with one thread and 1 GB of memory reads 400 000 x 512 numbers in float64, 1.6 GB, from
a memory-mapped file. What it cannot do without is to read them and to multiply them by themselves;
the goal is 1.5 times reading them twice and that product, as measured in that process. The
singular values of Dask are asked of the same worker, and those of NumPy of this one, in memory.
"""

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import gramnorm as gn
from benchmarks.devices import Device, require_numpy
from benchmarks.memory import peak_memory
from benchmarks.rivals import library
from benchmarks.tables import Table
from benchmarks.timing import aim

SHAPE, ROWS = (400_000, 512), 25_000
MEMORY = "1GB"
GOAL = 1.5
ROUNDS = 3


def written(folder: Path, shape: tuple[int, int], rows: int) -> Path:
    """Write normal numbers, chunk by chunk."""
    path = folder / "matrix.npy"
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=shape)
    for start in range(0, shape[0], rows):
        rng = np.random.default_rng(start)
        file[start : start + rows] = rng.standard_normal((min(rows, shape[0] - start), shape[1]))
    file.flush()
    return path


def part(path: Path, block_info: Any = None) -> np.ndarray:
    """Return the rows of a chunk, read into memory."""
    (start, stop), _ = block_info[None]["array-location"]
    return np.array(np.load(path, mmap_mode="r")[start:stop])


def opened(path: Path, rows: int) -> Any:
    """Return the file as an array of Dask whose chunks the workers read themselves."""
    m, n = np.load(path, mmap_mode="r").shape
    cuts = tuple(min(rows, m - start) for start in range(0, m, rows))
    make = library("dask.array", "dask").map_blocks
    return make(partial(part, path), chunks=(cuts, (n,)), dtype=np.float64, meta=np.empty((0, 0)))


def least(path: Path, rows: int) -> tuple[float, float]:
    """Return the seconds that reading the file takes, and multiplying its chunks by themselves."""
    reading = product = 0.0
    for start in range(0, len(np.load(path, mmap_mode="r")), rows):
        begin = time.perf_counter()
        chunk = np.array(np.load(path, mmap_mode="r")[start : start + rows])  # mapped no longer
        middle = time.perf_counter()
        np.dot(chunk.T, chunk)
        reading, product = reading + middle - begin, product + time.perf_counter() - middle
    return reading, product


@contextlib.contextmanager
def worker() -> Iterator[Any]:
    """Yield a client of one process with one thread and little memory."""
    distributed = library("distributed")
    with (
        mock.patch.dict(os.environ),  # Dask leaves OMP_NUM_THREADS=1 behind
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit=MEMORY, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def peak_of(client: Any) -> float:
    """Return the most bytes that the worker has held so far."""
    return max(client.run(peak_memory).values())


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and result of one call; infinitely many where memory does not suffice."""
    killed = library("distributed").KilledWorker  # it was started again, three times
    start = time.perf_counter()
    try:
        found = call()
    except (MemoryError, killed):
        return math.inf, math.nan
    return time.perf_counter() - start, found


def dask(device: Device) -> Iterator[Table]:
    """Time the bracket of a matrix on disk against reading and multiplying it, and against others."""
    require_numpy(device, "for arrays of Dask")
    svd, compute = library("dask.array.linalg", "dask"), library("dask").compute
    with tempfile.TemporaryDirectory() as folder, worker() as client:
        path = written(Path(folder), SHAPE, ROWS)
        x = opened(path, ROWS)
        compute(gn.matrix_norm_bracket(x))
        peak, rounds = peak_of(client), []
        for _ in range(ROUNDS):
            needed = client.submit(least, path, ROWS, pure=False).result()
            seconds, (found,) = timed(lambda: compute(gn.matrix_norm_bracket(x)))
            rounds.append((seconds, *needed))
        ours, reading, product = np.median(rounds, axis=0)
        row = {"seconds": ours, "reading": reading, "product": product}
        row["ratio"] = float(np.median([a / (2 * b + c) for a, b, c in rounds]))
        row |= {"peak [MB]": peak / 1e6, "gap": float(found.upper / found.lower - 1)}
        yield Table(
            "dask_least",
            f"A bracket of {SHAPE[0]} x {SHAPE[1]} on disk, a worker with {MEMORY}: over reading twice and a product",
            [row | aim(row["ratio"], GOAL)],
        )
        rows = [{"method": "gramnorm, bracket", "seconds": ours, "value / upper": 1.0}]
        others = {
            "dask.array.linalg.svd": lambda: svd.svd(x)[1][0],
            "dask.array.linalg.svd_compressed, k=5": lambda: svd.svd_compressed(x, 5, seed=0)[1][0],
        }
        for name, promise in others.items():
            rows.append(_against(name, *timed(promise().compute), found))
        whole = np.load(path)
        for name, call in {
            "numpy.linalg.norm(x, 2), in memory": lambda: np.linalg.norm(whole, 2),
            "gramnorm, in memory": lambda: gn.matrix_norm_bound(whole),
        }.items():
            rows.append(_against(name, *timed(call), found))
    yield Table("dask", "The same by others: an estimate, and singular values", rows)


def _against(name: str, seconds: float, value: Any, found: gn.NormBracket) -> dict[str, Any]:
    return {"method": name, "seconds": seconds, "value / upper": float(value / found.upper)}
