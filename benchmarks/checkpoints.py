"""Reports on checkpoints that are larger than what is in memory at a time.

The matrices of a transformer with 7 billion parameters, in bfloat16 and in shards beside an index, are written as noise
and as noise below a few directions that outweigh it, and reported on by processes of their own, whose largest resident
memory is read when they end.
"""

import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.devices import Device, require_numpy
from benchmarks.hosts import cores
from benchmarks.tables import Table

SHAPES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
BLOCKS = {"noise": 1, "a few large directions": 1}
PLACES: dict[str, list[list[str]]] = {
    "noise": [[], ["--workers", "2"]],
    "a few large directions": [[]],
}
DIRECTIONS = 8
_RUN = """
import runpy, sys
from benchmarks.memory import peak_memory
try:
    runpy.run_module("gramnorm", run_name="__main__", alter_sys=True)
finally:
    sys.stderr.write(f"peak {peak_memory()}")
"""


def checkpoints(device: Device) -> Iterator[Table]:
    """Report on a checkpoint, here and by two workers; seconds of each layer, and the peak of memory."""
    require_numpy(device, "the command computes with NumPy by default")
    layers, runs = [], []
    base = _run("--csv")["peak [MB]"]
    for kind in BLOCKS:
        with tempfile.TemporaryDirectory() as folder:
            index = write_checkpoint(Path(folder), kind)
            size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
            for place in PLACES[kind]:
                found = _run(str(index), "--json", *place)
                rows = found.pop("layers")
                where = "two workers" if place else "this process"
                cells = {"weights": kind, "where": where, "file [MB]": size, **found}
                runs.append(cells | {"above an empty report [MB]": found["peak [MB]"] - base})
                if not place:
                    layers += [{"weights": kind} | _row(row) for row in rows]
    note = "with workers the peak is that of the process that asks them"
    title = f"Seven matrices of a block of a 7-billion-parameter model, bfloat16, {cores()} cores"
    yield Table("checkpoints", title, runs, [note])
    yield Table("checkpoint_layers", f"{title}, layer by layer", layers)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    name = row["name"].removeprefix("model.layers.0.").removesuffix(".weight")
    cells = {"layer": name, "shape": " x ".join(map(str, row["shape"]))}
    return cells | {"seconds": row["seconds"], "gap": row["gap"], "converged": row["converged"]}


def _run(*arguments: str) -> dict[str, Any]:
    """Return the seconds and the peak of memory of a report, and its layers."""
    command = [sys.executable, "-c", _RUN, "report", *arguments]
    began, spent = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - spent.ru_utime - spent.ru_stime
    peak = int(done.stderr.rpartition("peak ")[2])
    report = json.loads(done.stdout) if "--json" in arguments else {"layers": []}
    return {"wall [s]": wall, "CPU [s]": cpu, "peak [MB]": peak / 1e6, "layers": report["layers"]}


def write_checkpoint(folder: Path, kind: str) -> Path:
    """Write the matrices of some blocks, each block in a shard of its own; return the index."""
    rng = np.random.default_rng(0)
    places: dict[str, str] = {}
    count = BLOCKS[kind]
    for block in range(count):
        file = f"model-{block + 1:05}-of-{count:05}.safetensors"
        names = {f"model.layers.{block}.{name}.weight": shape for name, shape in SHAPES.items()}
        header, end = {}, 0
        for name, shape in names.items():
            size = 2 * shape[0] * shape[1]
            entry = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            header[name], end = entry, end + size
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for shape in names.values():
                stream.write(_bfloat16(_weights(rng, shape, kind)))
        places |= dict.fromkeys(names, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return index


def _weights(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> Any:
    values = 0.02 * rng.standard_normal(shape, dtype=np.float32)
    if kind != "noise":
        left, right = (rng.standard_normal((DIRECTIONS, n), dtype=np.float32) for n in shape)
        scales = 0.05 * 0.8 ** np.arange(DIRECTIONS, dtype=np.float32)
        values += (left.T * scales) @ right
    return values


def _bfloat16(values: Any) -> bytes:
    """Return the upper halves of float32 numbers."""
    halves: bytes = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return halves
