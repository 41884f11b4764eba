"""Arrays of Dask on two processes of a cluster, against this one: ``python -m tests.harness.on_cluster``.

One of them is killed at work.
"""

import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import gramnorm as gn


def made(once: Path | None = None, block_info: Any = None) -> np.ndarray:
    """Return a chunk that the worker makes itself; who first makes the sixth dies, leaving a file."""
    row = block_info[None]["chunk-location"][0]
    if once is not None and row == 5 and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return np.random.default_rng(row).standard_normal(block_info[None]["chunk-shape"])


def main() -> None:
    rows = (200,) * 9 + (7,)
    array = partial(da.map_blocks, chunks=(rows, (30,)), dtype=float, meta=np.empty((0, 0)))
    x = array(made)
    stack = da.from_array(np.random.default_rng(0).standard_normal((8, 6, 5)), chunks=(3, 6, 5))
    asked = [gn.matrix_norm_bracket(y) for y in (x, x.T, x.rechunk((170, 11)), stack)]
    asked.append(gn.gram_iteration(x, steps=3))
    here = dask.compute(*asked, scheduler="sync")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
        tempfile.TemporaryDirectory() as folder,
    ):
        there = dask.compute(*asked)
        once = Path(folder) / "killed"
        killed = gn.matrix_norm_bracket(array(partial(made, once)))
        there, here = (*there, *dask.compute(killed)), (*here, here[0])
        assert once.exists()
    for one, other in zip(here, there, strict=True):
        pairs = [(one, other)]
        if isinstance(one, gn.NormBracket):
            pairs = [(one.lower, other.lower), (one.upper, other.upper)]
        assert all(np.array_equal(a, b) for a, b in pairs), pairs
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main()
