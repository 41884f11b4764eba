"""One large matrix at a loose tolerance: its Gram matrix, and a factorisation, in single precision.

Let C be B in float32, which is B itself where that is, and S the computed C^H C, summed up over n
pieces of h rows each.  Then

    | ||B|| - ||C|| | <= u ||B||_F,    ||S - C^H C|| <= (kappa(h) + gamma_n) ||C||_F^2

(docs/theory.md, section 2), for which a tolerance of 1e-2 leaves room up to some thousand rows.  A
vector comes first, from a few products with C.  Its residual is proof enough where the top singular
value outweighs all others (Theorem 7), in B or at least in S; else one factorisation is (Theorem
6): it takes half as long as another product, and decides where ten would be needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gramnorm._arrays import limits, linalg, threads
from gramnorm._arrays.types import HostNumbers
from gramnorm._matrix import definite, lanczos, residual
from gramnorm._results import Bounds
from gramnorm._rigour import sums
from gramnorm._rigour.model import down, precision_of, up

Narrow = npt.NDArray[np.inexact]
Product = Callable[[HostNumbers], HostNumbers]


def bracket(b: HostNumbers, *, frobenius2: float, rtol: float) -> Bounds[float]:
    """Bracket the norm of `b`, p x q with q <= p; too wide where rounding takes the room."""
    threads.keep_arrays()
    c, scale, slip = _narrowed(b, frobenius2)
    frobenius = up(up(math.sqrt(frobenius2)) * scale + slip)
    search = _Search(c, frobenius=frobenius, slip=slip, rtol=rtol)
    search.run()
    found = search.found.widened(slip)
    return Bounds(down(found.lower / scale), up(found.upper / scale), found.cost, found.right)


def _narrowed(b: HostNumbers, frobenius2: float) -> tuple[Narrow, float, float]:
    """Return C, about `b` times a power of two, that power, and a bound on what C is off by."""
    kind = np.result_type(np.complex64 if np.iscomplexobj(b) else np.float32)
    if b.dtype == kind and 2.0**-20 < frobenius2 < 2.0**40:
        return b, 1.0, 0.0
    frobenius = up(math.sqrt(frobenius2))
    scale = math.ldexp(1.0, -math.frexp(frobenius)[1])
    c: Narrow = np.empty_like(b, dtype=kind)
    np.multiply(b, b.dtype.type(scale), out=c, casting="same_kind")  # no entry exceeds 1
    prec = precision_of(kind)
    return c, scale, up(prec.unit * frobenius * scale + 2 * prec.tiny * math.sqrt(c.size))


class _Search:
    """What is proved about the norm of C, and what still has to be."""

    def __init__(self, c: Narrow, *, frobenius: float, slip: float, rtol: float) -> None:
        self._c, self._frobenius, self._slip, self._rtol = c, frobenius, slip, rtol
        self._size2 = up(frobenius**2)
        self._quotient = residual.Quotient(0.0, math.inf, math.inf)
        self.found = Bounds(0.0, math.inf)

    def run(self) -> None:
        """Prove as much as the tolerance asks for, or as single precision can."""
        few, many = limits.SINGLE_STEPS
        start = self._vector(self._square, self._generic(0), few, 1)
        top = 1.1 * float(np.linalg.norm(self._c @ start)) ** 2  # a guess, which proves nothing
        if self._size2 < 2 * top:  # one value may outweigh all others
            start = self._look(self._square, start, many, 1)
            if not self._is_open():
                return
        inner, error = self._pieces(top)
        if not inner:
            return
        gram = _negative_gram(self._c, inner)
        # at least ||C||_F^2 / sqrt(q): for noise that tells that it proves nothing
        is_small = self._size2 < 1.5 * top * math.sqrt(self._c.shape[1])
        size = up(_size_above(gram) + error) if is_small else math.inf
        self._prove(size, 1)
        # what settled may have settled below the top: then another vector is looked for, once
        for times in (1, 2):
            if self._is_open():
                self._look(lambda v: _gram_image(gram, v), start, many, times)
                self._prove(size, 0)
            if self._is_open() and self._room() > 0:
                level = self.found.lower**2 + limits.SINGLE_LEVEL * self._room()
                largest = up(_eigenvalue_bound(gram, level, inner) + error)
                self.found = self.found.narrowed(Bounds(0.0, up(math.sqrt(largest)), 1))
            start = self._generic(times)

    def _generic(self, seed: int) -> HostNumbers:
        """Return a vector to start from, the same in every call."""
        start = np.random.default_rng(seed).standard_normal((self._c.shape[1],))
        return np.asarray(start, dtype=self._c.dtype)

    def _aim(self) -> float:
        """Return what an upper bound must not exceed."""
        low = max(self.found.lower - self._slip, 0.0)
        return down(low * (1 + self._rtol)) - self._slip

    def _is_open(self) -> bool:
        return self.found.upper > self._aim()

    def _room(self) -> float:
        """Return how far the largest eigenvalue may be above the quotient."""
        return down(max(self._aim(), 0.0) ** 2) - up(self.found.lower**2)

    def _pieces(self, top: float) -> tuple[int, float]:
        """Return the pieces of a product whose rounding leaves room above an eigenvalue `top`."""
        return _longest_pieces(self._c, self._size2, top, 2 * self._rtol * top)

    def _square(self, v: HostNumbers) -> HostNumbers:
        return np.asarray(np.conj(np.conj(self._c @ v) @ self._c))

    def _vector(self, apply: Product, start: HostNumbers, steps: int, times: int) -> HostNumbers:
        """Return a vector whose quotient has settled to a part of the tolerance, or so many steps."""
        rtol = self._rtol / limits.SINGLE_SHARE**times
        found = lanczos.top_vector(apply, start, rtol=rtol, steps=steps, times=times)
        return np.asarray(found, dtype=self._c.dtype)

    def _look(self, apply: Product, start: HostNumbers, steps: int, times: int) -> HostNumbers:
        """Look for a better vector, and let it prove what it can by itself."""
        vector = self._vector(apply, start, steps, times)
        quotient = residual.single_quotient(self._c, vector, frobenius=self._frobenius)
        if quotient.lower > self._quotient.lower and math.isfinite(quotient.residual):
            self._quotient = quotient
            lower = Bounds(down(math.sqrt(quotient.lower)), math.inf, right=vector)
            # all eigenvalues of C^H C add up to ||C||_F^2
            second = up(max(self._size2 - quotient.lower, 0.0))
            upper = Bounds(0.0, up(math.sqrt(quotient.kato_temple(second))))
            self.found = self.found.narrowed(lower).narrowed(upper)
        return vector

    def _prove(self, size: float, cost: int) -> None:
        """Let the vector prove what it can, for ||C^H C||_F of at most `size`."""
        others = up(size**2) - down(self._quotient.lower**2)
        second = up(math.sqrt(max(others, 0.0)))  # >= lambda_2(C^H C)
        upper = min(self._quotient.kato_temple(second), size)
        self.found = self.found.narrowed(Bounds(0.0, up(math.sqrt(upper)), cost))


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


def _negative_gram(c: Narrow, inner: int) -> Narrow:
    """Return -S in the blocks of columns from the diagonal down, and zeros elsewhere."""
    p, q = c.shape
    found: Narrow = np.zeros((q, q), dtype=c.dtype)
    for start in range(0, q, limits.SINGLE_COLUMNS):
        minus = -c[:, start : start + limits.SINGLE_COLUMNS]
        column = found[start:, start : start + limits.SINGLE_COLUMNS]
        for first in range(0, p, inner):
            rows = slice(first, first + inner)
            factors = linalg.adjoint(c[rows, start:]), minus[rows]
            if first:
                column += np.matmul(*factors)
            else:
                np.matmul(*factors, out=column)
    return found


def _gram_image(gram: Narrow, v: HostNumbers) -> HostNumbers:
    """Return about S v, for the -S of `_negative_gram`."""
    y: HostNumbers = np.zeros_like(v)
    width = limits.SINGLE_COLUMNS
    for start in range(0, len(v), width):
        rows = gram[start : start + width, : start + width]  # long rows, read in their order
        stop = start + width
        y[start:stop] = y[start:stop] - rows @ v[:stop]
        y[:start] = y[:start] - np.conj(np.conj(v[start : start + width]) @ rows[:, :start])
    return y


def _size_above(gram: Narrow) -> float:
    """Return an upper bound on ||S||_F; what is below a diagonal block counts twice."""
    q, total, width = len(gram), 0.0, limits.SINGLE_COLUMNS
    for start in range(0, q, width):
        column = gram[start:, start : start + width]
        total += float(sums.inner_product(column[:width], column[:width]))
        total += 2 * float(sums.inner_product(column[width:], column[width:]))
    high = sums.enclosure(np.asarray(total), q, 2 * q, precision_of(gram.dtype))[1]
    return up(math.sqrt(up(float(high))))


def _eigenvalue_bound(gram: Narrow, level: float, inner: int) -> float:
    """Return an upper bound on the eigenvalues of S, a little above `level`, or inf.

    The matrix is what it was once this is done.
    """
    level, every = float(np.float32(level)), np.arange(len(gram))
    diagonal = gram[every, every]
    gram[every, every] = diagonal + level
    blocks = range(0, len(gram), limits.INNER)
    lost, size = definite.shortfalls(
        [gram[None, k:, k : k + limits.INNER] for k in blocks], inner=inner
    )
    gram[every, every] = diagonal
    # the diagonal was rounded as the level was added
    rounded = 1.01 * precision_of(gram.dtype).unit * size
    return up(float((level + lost + rounded)[0]))
