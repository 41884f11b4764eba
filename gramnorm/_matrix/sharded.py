"""A matrix too large to copy, of which each process of PyTorch or device of JAX holds a part.

The processes sum up the rows that they have, each for itself, and then add up what they found; JAX
multiplies where the parts are, by one product that it shares out as it pleases. All prove the same
norm by the same Gram matrix (docs/theory.md, Theorem 35).
"""

from __future__ import annotations

import dataclasses
import math

from gramnorm._arrays import dtypes, libraries, spread
from gramnorm._arrays.types import Array
from gramnorm._matrix import summed
from gramnorm._rigour.model import up, working_dtype


def part_of(x: Array) -> tuple[summed.Part, Array]:
    """Return what is known of a DTensor or a sharded array, and an array beside which it is known."""
    is_tall = x.shape[0] >= x.shape[1]
    like = spread.own_part(x, axis=0 if is_tall else 1) if spread.is_dtensor(x) else x
    own = libraries.plain(like)
    rows = own if is_tall else libraries.namespace(own).matrix_transpose(own)
    with libraries.plain_arithmetic(own):
        if not spread.is_dtensor(x):
            return summed.of_piece(rows), like
        return _of_all(summed.of_rows(rows), rows, like=x), like


def _of_all(part: summed.Part, rows: Array, *, like: Array) -> summed.Part:
    """Return what all processes know together, the same in each of them."""
    exponents = spread.of_every_process([float(part.exponent)], like=like)
    part = part.moved(int(exponents.max()))
    numbers = (part.error, part.square, part.loss, part.known, float(part.gram is not None))
    every = spread.of_every_process(numbers, like=like)
    total = summed.Part(
        exponent=part.exponent,
        error=up(math.fsum(every[:, 0])),
        square=up(math.fsum(every[:, 1])),
        loss=up(math.fsum(every[:, 2])),
        known=float(every[:, 3].sum()),
    )
    if not every[:, 4].any():
        return total
    gram = spread.added_up(_gram(part, rows), like=like)
    others = [summed.Part(error=error, square=square) for error, square in every[:, :2].tolist()]
    error = up(total.error + summed.sum_error(others, gram))
    return dataclasses.replace(total, gram=gram, error=error)


def _gram(part: summed.Part, rows: Array) -> Array:
    """Return the Gram matrix of a part, of zeros where there is none."""
    if part.gram is not None:
        return part.gram
    xp, q = libraries.namespace(rows), rows.shape[1]
    kind = working_dtype(rows, math.inf, 1.0)
    kind = dtypes.complex_dtype(kind) if dtypes.is_complex(rows.dtype) else kind
    return xp.zeros((q, q), dtype=kind, device=libraries.device_of(rows))
