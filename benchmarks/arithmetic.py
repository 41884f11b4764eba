"""Whether the arithmetic of a device is what bounds are proved for: products, sums and special values."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

import gramnorm as gn
from benchmarks.devices import Device
from benchmarks.tables import Table


def arithmetic(device: Device) -> Iterator[Table]:
    """Check float32 products, sums with infinities and huge values, and bounds against norms in float64."""
    xp, rows = device.xp, []

    def check(what: str, found: Any, expected: str, good: bool) -> None:
        rows.append({"check": what, "found": found, "expected": expected, "as expected": good})

    host = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    x = device.asarray(host)
    exact = host.astype(np.float64) @ host.astype(np.float64)
    error = np.abs(_host(x @ x).astype(np.float64) - exact)
    scale = np.abs(host.astype(np.float64)) @ np.abs(host.astype(np.float64))
    worst = float((error / scale).max())
    check(
        "float32 product, error / (u |X||Y|)", worst * 2**24, "below 512: not TF32", worst < 2**-15
    )
    below = 0
    for seed in range(50):
        matrix = np.random.default_rng(seed).standard_normal((96, 64)).astype(np.float32)
        norm = np.linalg.norm(matrix.astype(np.float64), 2)
        bracket = gn.matrix_norm_bracket(device.asarray(matrix))
        below += (
            not float(bracket.lower) <= norm * (1 + 1e-12) <= (1 + 2e-12) * float(bracket.upper)
        )
    check("50 float32 matrices, brackets that miss the norm", below, "0", below == 0)
    for dtype in (np.float32, np.float64):
        huge = float(np.finfo(dtype).max) / 4
        for name, values, expected in (
            ("inf", [[1.0, math.inf]], math.inf),
            ("NaN", [[math.nan, math.inf]], math.nan),
            ("huge values", [[huge, huge]], huge * math.sqrt(2)),
            ("smallest normal", [[float(np.finfo(dtype).tiny)]], float(np.finfo(dtype).tiny)),
        ):
            found = float(gn.matrix_norm_bound(device.asarray(np.asarray(values, dtype=dtype))))
            good = math.isnan(found) if math.isnan(expected) else expected <= found
            good = good and (not math.isfinite(expected) or found <= 1.001 * expected)
            check(f"bound of {name}, {dtype.__name__}", str(found), str(expected), good)
    total = float(xp.sum(device.asarray(np.asarray([1e308, math.inf]))))
    check("sum with inf", str(total), "inf", total == math.inf)
    yield Table("arithmetic", f"Arithmetic of {device.name}", rows)


def _host(x: Any) -> Any:
    """Return an array of the device in NumPy."""
    moved = x.get() if hasattr(x, "get") else x.cpu() if hasattr(x, "cpu") else x
    return np.asarray(moved)
