"""One large matrix at a loose tolerance: its Gram matrix, and a factorisation, in single precision.

Let C be B in float32, and S the computed C^H C, summed up over n pieces of h rows each. Then

    | ||B|| - ||C|| | <= u ||B||_F,    ||S - C^H C|| <= (kappa(h) + gamma_n) ||C||_F^2

(docs/theory.md, section 2), for which a tolerance of 1e-2 leaves room up to some thousand rows.  A
vector comes first, from products with C.  Its residual is proof enough where the top singular value
outweighs all others (Theorem 7), in B or at least in S; else one factorisation is (Theorem 6): it
takes half as long as another product, and decides where ten would be needed.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import limits, linalg
from gramnorm._arrays.types import HostNumbers
from gramnorm._matrix import definite, lanczos, residual
from gramnorm._results import Bounds
from gramnorm._rigour import sums
from gramnorm._rigour.model import down, precision_of, up

Narrow = npt.NDArray[np.inexact]


def bracket(b: HostNumbers, *, frobenius2: float, rtol: float) -> Bounds[float]:
    """Bracket the norm of `b`, double, p x q with q <= p; too wide where rounding takes the room."""
    frobenius = up(math.sqrt(frobenius2))
    scale = math.ldexp(1.0, -math.frexp(frobenius)[1])
    c: Narrow = np.empty(b.shape, np.complex64 if np.iscomplexobj(b) else np.float32)
    np.multiply(b, scale, out=c, casting="same_kind")  # no entry exceeds 1
    prec = precision_of(c.dtype)
    slip = up(prec.unit * frobenius * scale + 2 * prec.tiny * math.sqrt(c.size))
    size2 = up((frobenius * scale + slip) ** 2)
    pieces = partial(_longest_pieces, c, size2)
    x: HostNumbers = np.random.default_rng(0).standard_normal((c.shape[1],))
    # a few steps tell whether there is room, which noise leaves if a quarter of the rank does
    noise = 4 * size2 / x.size
    few = not pieces(noise * (1 + 2 * rtol), 2 * rtol * noise)[0]
    for steps in limits.SINGLE_STEPS if few else limits.SINGLE_STEPS[1:]:
        x = _vector(c, x, rtol=rtol, steps=steps)
        quotient = residual.quotient(b, x[:, None], frobenius=frobenius)
        # all eigenvalues of B^H B add up to ||B||_F^2
        found = _proved(quotient, up(max(frobenius2 - quotient.lower, 0.0)), 0)
        low, aim = found.lower * scale, found.lower * scale * (1 + rtol) - slip
        room = down(aim**2) - up(low**2)
        inner, error = pieces(aim**2, room)
        if found.is_within(rtol) or not inner:
            return found
    gram = _negative_gram(c, inner)
    others = up((_size_above(gram) + error) ** 2) - down(down(max(low - slip, 0.0) ** 2) ** 2)
    root = up(math.sqrt(up(math.sqrt(max(others, 0.0)))))  # >= sigma_2(C)
    found = found.narrowed(_proved(quotient, up((up(root + slip) / scale) ** 2), 1))
    if found.is_within(rtol):
        return found
    top = up(_eigenvalue_bound(gram, low**2 + limits.SINGLE_LEVEL * room, inner) + error)
    return found.narrowed(Bounds(0.0, up(up(math.sqrt(top) + slip) / scale), 1))


def _vector(c: Narrow, start: HostNumbers, *, rtol: float, steps: int) -> HostNumbers:
    """Return a vector whose quotient has settled to a part of `rtol`, or after so many steps."""
    found = lanczos.top_vector(
        lambda v: np.conj(np.conj(c @ v) @ c),
        np.asarray(start, dtype=c.dtype),
        rtol=rtol / limits.SINGLE_SHARE,
        steps=steps,
        times=1,
    )
    return np.asarray(found, dtype=np.result_type(c.dtype, np.float64))


def _proved(quotient: residual.Quotient, second: float, cost: int) -> Bounds[float]:
    """Return what a vector proves if the second eigenvalue is at most `second`."""
    if not (quotient.lower > 0 and math.isfinite(quotient.residual)):  # it is of no use
        return Bounds(0.0, math.inf, cost)
    upper = up(math.sqrt(quotient.kato_temple(second)))
    return Bounds(down(math.sqrt(quotient.lower)), upper, cost)


def _longest_pieces(c: Narrow, size2: float, top: float, room: float) -> tuple[int, float]:
    """Return h and what S errs by, for ||C||_F^2 <= `size2`.

    0 if too little of the `room` above the largest eigenvalue, some `top`, would be left.
    """
    p, q = c.shape
    prec = precision_of(c.dtype)
    for inner in sorted({p, *limits.SINGLE_PIECES}, reverse=True):
        pieces = -(-p // inner)
        error = up((prec.kappa(min(inner, p)) + 2 * prec.gamma(pieces)) * size2)
        error += up(2 * pieces * prec.underflow(inner) * q)
        loss = error + definite.expected_loss(q, c.dtype, inner=inner) * top
        if inner <= p and loss <= limits.SINGLE_LOSS * room:
            return inner, error
    return 0, math.inf


def _negative_gram(c: Narrow, inner: int) -> list[Narrow]:
    """Return the block columns of -S from the diagonal down."""
    found, minus = [], -c
    for start in range(0, c.shape[1], limits.SINGLE_COLUMNS):
        column: Narrow = np.zeros((), dtype=c.dtype)
        for first in range(0, c.shape[0], inner):
            rows, columns = slice(first, first + inner), slice(start, start + limits.SINGLE_COLUMNS)
            product = linalg.matmul(linalg.adjoint(minus[rows, start:]), c[rows, columns])
            column = column + product if first else product
        found.append(column)
    return found


def _size_above(columns: list[Narrow]) -> float:
    """Return an upper bound on ||S||_F; what is below a diagonal block counts twice."""
    q, total = len(columns[0]), 0.0
    for column in columns:
        width = column.shape[1]
        total += float(sums.inner_product(column[:width], column[:width]))
        total += 2 * float(sums.inner_product(column[width:], column[width:]))
    high = sums.enclosure(np.asarray(total), q, 2 * q, precision_of(columns[0].dtype))[1]
    return up(math.sqrt(up(float(high))))


def _eigenvalue_bound(columns: list[Narrow], level: float, inner: int) -> float:
    """Return an upper bound on the eigenvalues of S, a little above `level`, or inf."""
    level, cut = float(np.float32(level)), []
    for column in columns:
        for first in range(0, column.shape[1], limits.INNER):
            block = column[first:, first : first + limits.INNER].copy()
            diagonal = np.arange(block.shape[1])
            block[diagonal, diagonal] += level
            cut.append(block[None, ...])
    lost, size = definite.shortfalls(cut, inner=inner)
    # the diagonal was rounded as the level was added
    rounded = 1.01 * precision_of(cut[0].dtype).unit * size
    return up(float((level + lost + rounded)[0]))
