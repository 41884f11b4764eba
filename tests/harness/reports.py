"""Files for the report to read, and calls of the command."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm.report import cli

RNG_SEED = 7
BOUNDS = "name", "kind", "shape", "dtype", "lower", "upper", "gap", "converged", "assumed", "error"
"""What a row says of its layer, without the time it took."""


def some(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(RNG_SEED).standard_normal(shape).astype(dtype)


def write_npz(path: Path, *, layers: Any = None, **arrays: Any) -> Path:
    """Write arrays with NumPy, and `layers` as the JSON text of their geometry."""
    text = {} if layers is None else {"__layers__": np.array(json.dumps(layers))}
    np.savez_compressed(path, **text, **arrays)
    return path


def npy_bytes(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def header_only(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """Return an .npy header that states `shape`, with no values behind it."""
    stream = io.BytesIO()
    stated = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, stated)
    return stream.getvalue()


def write_zip(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def flax_bytes(tree: Any) -> bytes:
    """Return nested dicts of arrays as ``flax.serialization.to_bytes`` writes them."""
    msgpack = pytest.importorskip("msgpack")

    def extension(value: Any) -> Any:
        values = np.asarray(value)
        packed = (values.shape, values.dtype.name, values.tobytes())
        return msgpack.ExtType(1 if values.ndim else 3, msgpack.packb(packed))

    return bytes(msgpack.packb(tree, default=extension))


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Run the command line here; return its exit code and what it wrote."""
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def run_json(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, dict[str, Any]]:
    code, out, err = run(capsys, "report", "--json", *arguments)
    assert err == ""
    return code, json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def assert_refused(capsys: pytest.CaptureFixture[str], path: Path, match: str = "") -> None:
    code, out, err = run(capsys, "report", path)
    assert (code, out) == (2, "")
    assert err.startswith("gramnorm: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert match in err


class Bomb:
    """Leaves a trace if it is ever unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("unpickled",))


def bounds(report: dict[str, Any]) -> list[list[Any]]:
    """Return what the rows of a report say of their layers."""
    return [[row[key] for key in BOUNDS] for row in report["layers"]]
