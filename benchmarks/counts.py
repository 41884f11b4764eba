"""What bounds cost in evaluations and products, which unlike seconds repeat: ``python -m benchmarks.counts``.

`counts.json` beside this file holds them; ``tests/test_costs.py`` fails if one of them grows by more than `ROOM`, the
room that another BLAS needs, and if one shrinks by more, so that what was gained is written down and kept.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import gramnorm as gn
from benchmarks.kernels import FAMILIES
from benchmarks.matrices import decaying, gaussian
from gramnorm._arrays import limits, linalg

STORED = Path(__file__).with_name("counts.json")
ROOM = 0.1


def cases() -> dict[str, Callable[[], Any]]:
    """Return the brackets to count."""
    found: dict[str, Callable[[], Any]] = {}
    for shape, dtype, rtol in (
        ((64, 64), "float64", 1e-6),
        ((512, 512), "float64", 1e-6),
        ((4000, 100), "float64", 1e-6),
        ((50, 64, 64), "float32", 1e-3),
    ):
        for kind in (gaussian, decaying):
            x, name = kind(shape, dtype), f"{kind.__name__} {'x'.join(map(str, shape))} {dtype}"
            found[name] = lambda x=x, rtol=rtol: gn.matrix_norm_bracket(x, rtol=rtol)
    for name, family in FAMILIES.items():
        kernel, axes, options = family.make(), family.make().ndim - 2, family.options
        found[f"{name}, every size"] = lambda k=kernel, o=options: gn.conv_norm_bracket(k, **o)
        for padding in ("circular", "zeros"):
            shape = (512 if axes == 1 else 32,) * axes
            found[f"{name}, {padding}, n = {shape[0]}"] = (
                lambda k=kernel, s=shape, p=padding, o=options: gn.conv_norm_bracket(
                    k, s, padding_mode=p, **o
                )
            )
    return found


def counted(call: Callable[[], Any]) -> dict[str, float]:
    """Return what a bracket spends: evaluations by its own account, products and their multiplications."""
    spent = {"products": 0.0, "multiplications": 0.0}

    def add(rows: int, inner: int, columns: int, stack: int) -> None:
        spent["products"] += 1
        spent["multiplications"] += float(rows * inner * columns * stack)

    matmul, gram_matrix = linalg.matmul, linalg.gram_matrix

    def counting_matmul(a: Any, b: Any, **options: Any) -> Any:
        stack = math.prod(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
        add(a.shape[-2], a.shape[-1], b.shape[-1], stack)
        return matmul(a, b, **options)

    def counting_gram_matrix(a: Any, **options: Any) -> Any:
        add(a.shape[-1], a.shape[-2], a.shape[-1], math.prod(a.shape[:-2]))
        return gram_matrix(a, **options)

    with (
        mock.patch.object(linalg, "matmul", counting_matmul),
        mock.patch.object(linalg, "gram_matrix", counting_gram_matrix),
        mock.patch.object(limits, "SHARED_PARTS", 1),  # the parts of a product count as one
    ):
        bracket = call()
    return {"evaluations": float(bracket.n_products)} | spent


def count_all() -> dict[str, dict[str, float]]:
    """Return the counts of all cases."""
    return {name: counted(call) for name, call in cases().items()}


if __name__ == "__main__":
    STORED.write_text(json.dumps(count_all(), indent=1) + "\n", encoding="utf-8")
