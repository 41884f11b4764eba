"""Small operators of every kind with their records, and records that were tampered with.

    python -m tests.harness.records --count 1000 --seed 1

makes so many records and asks the checker for a verdict on each.
"""

import argparse
import base64
import copy
import itertools
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from gramnorm import records, verifier
from tests.harness import families

Rng = np.random.Generator
DTYPES = ("float16", "float32", "float64", "complex64", "complex128", "int8", "bool")
UNPROVABLE = {"overflow"}  # norms beyond the largest float
# symbols that are the same everywhere need thousands of cells
FLAT = {"flat_paraunitary", "nearly_flat", "shifts", "one_tap"}


def document(*made: Any) -> bytes:
    """Return a document of records."""
    head = {"schema": records.SCHEMA, "version": records.VERSION, "records": list(made)}
    return json.dumps(head).encode()


def verdict(record: Any, **options: Any) -> tuple[str, str]:
    """Return the verdict on one record, and its reason."""
    ((_, found, reason),) = verifier.verdicts(document(record), **options)
    return found, reason


# ------------------------------------------------------------------------------------- operators


def _in_dtype(a: np.ndarray, dtype: str) -> np.ndarray:
    """Return an array in a type that is not zero and finite there."""
    with np.errstate(all="ignore"):
        if dtype in ("int8", "bool"):
            scale = np.max(np.abs(a)) or 1.0
            a = np.round(np.real(a) / scale * 9)
        found = a.astype(dtype)
    return found if np.all(np.isfinite(found)) and np.any(found) else np.ones(a.shape, dtype)


def matrix(rng: Rng) -> records.Record:
    """Return a record of a matrix of some family, shape and type."""
    dtype = str(rng.choice(DTYPES))
    family = str(rng.choice(sorted(families.FAMILIES.keys() - UNPROVABLE)))
    made = dtype if dtype in families.DTYPES else "float64"
    m, n = (int(k) for k in rng.integers(1, 9, size=2))
    a = _in_dtype(families.FAMILIES[family](rng, m, n, made), dtype)
    return records.prove_matrix_norm(a)


def kernel(rng: Rng, groups: int, axes: int) -> np.ndarray:
    """Return a small kernel of some family and type."""
    dtype = str(rng.choice(DTYPES))
    family = str(rng.choice(sorted(families.KERNELS.keys() - UNPROVABLE - FLAT)))
    made = dtype if dtype in families.DTYPES else "float64"
    taps = [int(k) for k in rng.integers(1, 5 - axes, size=axes, endpoint=True)]
    c_out, c_in = groups * int(rng.integers(1, 4)), int(rng.integers(1, 4))
    return _in_dtype(families.KERNELS[family](rng, c_out, c_in, taps, made), dtype)


def everywhere(rng: Rng) -> records.Record:
    """Return a record of a convolution at every size."""
    axes, groups = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    options = {
        "stride": [int(s) for s in rng.integers(1, 4, size=axes)],
        "dilation": [int(d) for d in rng.integers(1, 4, size=axes)],
        "transposed": bool(rng.integers(2)),
    }
    rtol = float(rng.choice([1e-2, 3e-3]))
    return records.prove_conv_norm(kernel(rng, groups, axes), groups=groups, rtol=rtol, **options)


def circle(rng: Rng) -> records.Record:
    """Return a record of a circular convolution."""
    axes, groups = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    stride = [int(s) for s in rng.integers(1, 3, size=axes)]
    size = [s * int(rng.integers(1, 5)) for s in stride]
    dilation = [int(d) for d in rng.integers(1, 3, size=axes)]
    options = {"stride": stride, "dilation": dilation, "padding_mode": "circular"}
    return records.prove_conv_norm(kernel(rng, groups, axes), size, groups=groups, **options)


def zero_padded(rng: Rng) -> records.Record:
    """Return a record of a convolution between finitely many samples."""
    axes, groups = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    while True:
        k = kernel(rng, groups, axes)
        options: dict[str, Any] = {
            "stride": [int(s) for s in rng.integers(1, 3, size=axes)],
            "dilation": [int(d) for d in rng.integers(1, 3, size=axes)],
            "padding": [tuple(int(p) for p in rng.integers(0, 3, size=2)) for _ in range(axes)],
            "transposed": bool(rng.integers(2)),
        }
        size = [int(n) for n in rng.integers(3, 6, size=axes)]
        try:
            return records.prove_conv_norm(k, size, groups=groups, **options)
        except ValueError:  # no outputs, or a transposed convolution of such padding
            continue


def dense_chain(rng: Rng) -> records.Record:
    """Return a record of a chain of matrices."""
    sizes = [int(n) for n in rng.integers(1, 6, size=int(rng.integers(2, 6)))]
    layers = [
        rng.standard_normal((n, m)) * 2.0 ** rng.integers(-9, 9)
        for m, n in itertools.pairwise(sizes)
    ]
    guess = [np.exp(rng.standard_normal(n)) for n in sizes[1:-1]]
    return records.prove_chain(layers, guess if rng.integers(2) else None)


def conv_chain(rng: Rng) -> records.Record:
    """Return a record of a chain of kernels on one axis."""
    sizes = [int(n) for n in rng.integers(1, 4, size=int(rng.integers(2, 4)))]
    layers = [
        rng.standard_normal((n, m, int(rng.integers(1, 4)))) for m, n in itertools.pairwise(sizes)
    ]
    guess = [np.exp(rng.standard_normal(n) / 2) for n in sizes[1:-1]]
    return records.prove_chain(layers, guess, rtol=1e-2)


KINDS: dict[str, Callable[[Rng], records.Record]] = {
    f.__name__: f for f in (matrix, everywhere, circle, zero_padded, dense_chain, conv_chain)
}
SHARES = {"matrix": 0.4, "everywhere": 0.2, "circle": 0.1, "zero_padded": 0.1, "dense_chain": 0.1}


def drawn(rng: Rng) -> tuple[str, records.Record]:
    """Return the record of a random operator, with its kind."""
    rest = 1 - sum(SHARES.values())
    kind = str(rng.choice([*SHARES, "conv_chain"], p=[*SHARES.values(), rest]))
    return kind, KINDS[kind](rng)


# ------------------------------------------------------------------------------------- tampering


def edited(record: Any, change: Callable[[Any], Any]) -> Any:
    """Return a record after a change in place."""
    other = copy.deepcopy(record)
    change(other)
    return other


def moved(bound: str, factor: float) -> str:
    """Return a bound times a factor."""
    return (float.fromhex(bound) * factor).hex()


def stepped(bound: str, towards: float) -> str:
    """Return the next float."""
    return math.nextafter(float.fromhex(bound), towards).hex()


def vector_of(values: np.ndarray) -> Any:
    """Return a vector as records hold it."""
    stored = np.ascontiguousarray(values, "<c16" if np.iscomplexobj(values) else "<f8")
    return {"dtype": stored.dtype.str, "values": base64.b64encode(stored.tobytes()).decode()}


# ------------------------------------------------------------------------------------------- run


def main() -> int:
    """Make and check records; return 1 if one is not verified."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    began = time.process_time()
    for seed in range(options.seed, options.seed + options.count):
        kind, record = drawn(np.random.default_rng(seed))
        found, reason = verdict(record)
        counts[kind, found] += 1
        if found != "verified":
            sys.stdout.write(f"seed {seed}, {kind}: {found}: {reason}\n")
    for (kind, found), count in sorted(counts.items()):
        sys.stdout.write(f"{kind:12} {found:13} {count}\n")
    sys.stdout.write(f"{time.process_time() - began:.0f} s of CPU time\n")
    return int(any(found != "verified" for _, found in counts))


if __name__ == "__main__":
    sys.exit(main())
