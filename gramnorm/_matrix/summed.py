"""A tall matrix in parts: certified Gram matrices that are summed up, and the norm they prove.

Rows A_c, scaled and stored as 2^e B_c up to an error of norm 2^e l, have the computed Gram matrix
G_c.  What a part tells of its rows, any number of them, is (docs/theory.md, Theorem 35)

    |G - H| <= M,  ||M||_F <= error,    tr H <= square,    | ||A|| - 2^e ||H||^(1/2) | <= 2^e l,

for an exact H >= 0, and two parts that tell so are joined to one that does.  Neither the rows nor
their number are needed any more, and no scale has to be agreed on before they are read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from gramnorm._arrays import crossing, dtypes, limits, linalg
from gramnorm._arrays.types import Array, DType, HostFloats
from gramnorm._matrix import certificate, fixed_steps
from gramnorm._results import Bounds, of_stack
from gramnorm._rigour import scaling, sums
from gramnorm._rigour.model import (
    down,
    precision_of,
    round_outward,
    scale_back,
    up,
    working_dtype,
)

_LEAST = -1100
"""An exponent below that of every number: the scale of nothing."""

_APART = 50
"""Binary exponents apart by so many, the Gram matrix of the smaller part counts as an error only:
2^-100 of its trace."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What is known of some rows A of a matrix, in units of 2^exponent.

    Attributes
    ----------
    gram : array, shape (q, q), or None
        The computed Gram matrix G, None for zero.
    exponent : int
        That of the scale.
    error, square, loss : float
        The bounds above.
    known : float
        NaN or inf where that is the norm, else 0.
    """

    gram: Array | None = None
    exponent: int = _LEAST
    error: float = 0.0
    square: float = 0.0
    loss: float = 0.0
    known: float = 0.0

    def moved(self, exponent: int) -> Part:
        """Return the same in units of a power of two that is no smaller."""
        d = self.exponent - exponent
        if d == 0:
            return self
        error, square = (_times(x, 2 * d) for x in (self.error, self.square))
        gram = self.gram
        if gram is not None and d < -_APART:
            gram, error = None, up(error + square)
        elif gram is not None:
            gram = gram * math.ldexp(1.0, 2 * d)
        return Part(gram, exponent, error, square, _times(self.loss, d), self.known)


def of_rows(a: Array) -> Part:
    """Return what is known of the rows `a`, of any type, by one pass over pieces of them."""
    m, q = a.shape
    rows = max(limits.GRAM_PIECE[0], limits.GRAM_PIECE[1] // max(q, 1))
    pieces = (a[k : min(k + rows, m), :] for k in range(0, m if q else 0, rows))
    return functools.reduce(joined, map(of_piece, pieces), Part())


def of_piece(a: Array) -> Part:
    """Return what is known of rows that are few enough to be scaled and multiplied at once."""
    scaled = scaling.normalise(a[None, ...], dtype=working_dtype(a, math.inf, 1.0))
    if not scaled.active.size:
        known = float(scaled.known[1, 0])
        if not math.isfinite(known):
            return Part(known=known)
        exponent = math.frexp(known)[1] if known else _LEAST  # zero, or flushed to it
        return Part(exponent=exponent, loss=math.ldexp(known, -exponent))
    b = scaled.values[int(scaled.places[0]), ...]
    prec, (p, q) = precision_of(b.dtype), b.shape
    square, exponent = sums.one_square_above(b), int(scaled.exponents[0])
    error = up(prec.kappa(p) * square + prec.underflow(p) * q)  # Lemma 1
    loss = up(scaled.loss + math.ldexp(scaled.excess, -exponent))
    return Part(linalg.gram_matrix(b), exponent, error, square, loss)


def joined(a: Part, b: Part) -> Part:
    """Return what is known of the rows of both."""
    exponent = max(a.exponent, b.exponent)
    a, b = a.moved(exponent), b.moved(exponent)
    gram, rounding = (b.gram if a.gram is None else a.gram), 0.0
    if gram is not None:
        rounding = sum_error([a, b], gram)
    if a.gram is not None and b.gram is not None:
        gram = a.gram + b.gram
    return Part(
        gram=gram,
        exponent=exponent,
        error=up(a.error + b.error + rounding),
        square=up(a.square + b.square),
        loss=up(math.hypot(a.loss, b.loss)),
        known=a.known + b.known,
    )


def sum_error(parts: Sequence[Part], gram: Array) -> float:
    """Bound what rounding does to a sum of Gram matrices like `gram`, in any order."""
    prec = precision_of(gram.dtype)
    size = up(sum(part.square + part.error for part in parts))
    q = int(gram.shape[0])
    lost = 6 * (len(parts) - 1) * q * prec.tiny  # of scaling, and of flushed sums
    return up(prec.gamma(len(parts) - 1) * size + lost)


def bracket(parts: Sequence[Part], *, rtol: float, dtype: DType) -> Bounds[HostFloats]:
    """Bracket the norm of the rows of each part as host numbers that `dtype` represents."""
    found = of_stack(_bracket_one(part, rtol=rtol) for part in parts)
    return Bounds(*_restored(found, parts, dtype=dtype), found.cost)


def bounds_of_steps(parts: Sequence[Part], *, steps: int, dtype: DType) -> HostFloats:
    """Bound the norms of the rows of each part by so many Gram steps, that of the parts included."""
    uppers = np.asarray([_bound_of_steps(part, steps=steps) for part in parts], dtype=np.float64)
    return _restored(Bounds(np.zeros_like(uppers), uppers), parts, dtype=dtype)[1]


def _bracket_one(part: Part, *, rtol: float) -> Bounds[float]:
    """Bracket the norm in units of the part's scale."""
    if part.known:
        return Bounds(part.known, part.known)
    most = Bounds(0.0, up(math.sqrt(part.square)))
    if part.gram is None:
        return most.widened(part.loss)
    gram = _on_host(part.gram)
    aim = rtol / 2  # the result is still to be rounded to the caller's type
    found = most.narrowed(certificate.gram_certificate(gram, error=part.error, rtol=aim))
    if not found.is_within(aim):
        more = certificate.gram_iterated(gram, error=part.error, size=part.square, rtol=rtol)
        found = found.narrowed(more)
    return found.widened(part.loss)


def _bound_of_steps(part: Part, *, steps: int) -> float:
    """Bound the norm in units of the part's scale."""
    if part.known:
        return part.known
    square = part.square
    if steps and part.gram is not None:
        of_gram = float(fixed_steps.norm_bound(_on_host(part.gram), steps=steps - 1))
        square = up(of_gram + part.error)
    return up(math.sqrt(square) + part.loss)


def _on_host(gram: Array) -> Array:
    """Return a Gram matrix as NumPy's, in double precision: its size is the square of the short side."""
    host = crossing.host_array(gram)
    return host.astype(np.complex128 if dtypes.is_complex(host.dtype) else np.float64, copy=False)


def _restored(
    found: Bounds[HostFloats], parts: Sequence[Part], *, dtype: DType
) -> tuple[HostFloats, HostFloats]:
    """Return bounds in the scale of the matrices, rounded outward to `dtype`."""
    exponents = np.asarray([float(part.exponent) for part in parts], dtype=np.float64)
    known = np.asarray([part.known for part in parts], dtype=np.float64)
    back = scale_back(down(found.lower), up(found.upper), exponents)
    # NaN, inf, and zero, which is exact
    at_sight = (known != 0) | (found.upper == 0)
    low, high = (np.where(at_sight, known, side) for side in back)
    return round_outward(low, high, dtype=dtype)


def _times(x: float, exponent: int) -> float:
    """Return x times a power of two, not above 1, rounded up; what is next to nothing is not zero."""
    return up(math.ldexp(x, exponent) + 2.0**-1000) if x else 0.0
