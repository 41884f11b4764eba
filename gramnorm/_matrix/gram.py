"""Gram iteration with its rounding errors carried along.

Squaring a matrix as ``P <- s P^H P`` squares its singular values (s a power of two that keeps
the entries near 1), and a bracket on the largest singular value of the last iterate climbs back by

    sigma(P_{j-1}) = sqrt(lambda(S_j) / s_j),   |lambda(S_j) - sigma(P_j)| <= eps_j,

where S_j is the exact s_j P_{j-1}^H P_{j-1} and eps_j bounds what the computed P_j differs from it
(docs/theory.md, Theorem 2).  The matrices stay on their device; the few scalars per matrix that a
bracket needs come to the host once per step, and on them `bracket_by_iteration` decides what to
continue.
"""

from __future__ import annotations

import math

import numpy as np

from gramnorm._arrays import crossing, dtypes, libraries, limits, linalg, threads
from gramnorm._arrays.programs import compiled, compiles
from gramnorm._arrays.types import Array, HostBools, HostFloats, HostInts
from gramnorm._matrix import moments
from gramnorm._results import Bounds, of_stack
from gramnorm._rigour import sums
from gramnorm._rigour.model import Precision, down, precision_of, up


def bracket_by_iteration(
    a: Array, *, rtol: float, places: HostInts | None = None
) -> Bounds[HostFloats]:
    """Advance the Gram iteration of each matrix of a stack until its bounds are narrow enough.

    `places` are those of the matrices that count, by default of all.
    """
    count, work = a.shape[0], product_operations(a.shape[1:])
    # a part is done with all of its steps before the next begins: its iterates stay in the cache
    parts = threads.parts(count, work, like=a)
    if places is not None or len(parts) == 1:
        return _bracket_part(a, np.arange(count) if places is None else places, rtol=rtol)

    def bracketed(part: slice) -> Bounds[HostFloats]:
        return _bracket_part(a[part, ...], np.arange(part.stop - part.start), rtol=rtol)

    return of_stack(threads.shared_if_worth(bracketed, parts, count * work))


def _bracket_part(a: Array, places: HostInts, *, rtol: float) -> Bounds[HostFloats]:
    found = Bounds(np.zeros(places.size), np.full(places.size, np.inf))
    chain, rest = GramChain(a, places), np.arange(places.size)
    # in exact arithmetic the log of the gap is at most 2 ln(q) / 2^t after t steps
    most = 2 + max(0, math.ceil(math.log2(8 * math.log(1 + min(a.shape[1:])) / rtol)))
    while rest.size and found.cost < most:
        found = found.narrowed_at(rest, chain.advance())
        lower, upper = found.lower[rest], found.upper[rest]
        # half the gap asked for: the result is still to be rounded to the caller's type
        done = upper - lower <= 0.5 * rtol * lower
        hopeless = (upper - lower) * limits.HOPELESS <= 2 * chain.noise * upper
        going = np.flatnonzero(~(done | hopeless))
        if going.size < rest.size:
            chain.keep(going)
            rest = rest[going]
    return found


class GramChain:
    """The Gram iterates of a stack of matrices and the bounds they prove.

    Parameters
    ----------
    a : array, shape (b, m, n)
        Matrices in float32 or float64 (or complex), finite, with a norm between 2^-100 and 2^100;
        scaled in float32.
    places : host ints, shape (b',)
        Those of the matrices that count; others may hold anything.

    Attributes
    ----------
    noise : host floats, shape (b',)
        The part of the relative width of the last bracket that is due to rounding.
    """

    def __init__(self, a: Array, places: HostInts) -> None:
        if a.shape[1] < a.shape[2]:
            a = libraries.namespace(a).matrix_transpose(a)
        self._precision: Precision = precision_of(a.dtype)
        self._iterate, self._places = a, places
        self._keeps_size = compiles(a)
        self._levels: list[tuple[HostFloats, HostFloats]] = []  # (s_j, eps_j), j = 1 ... t
        self._rank: HostFloats = np.full(places.size, 1.0 * a.shape[2])  # effective, of the iterate
        self._plateau: HostBools = np.zeros(places.size, dtype=np.bool_)
        self.noise: HostFloats = np.zeros(places.size)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrices whose product comes next."""
        return tuple(self._iterate.shape[1:])

    def keep(self, chosen: HostInts) -> None:
        """Continue with the chosen matrices only."""
        self.noise = self.noise[chosen]
        self._places = self._places[chosen]
        if not self._keeps_size:
            self._iterate = crossing.select(self._iterate, self._places)
            self._places = np.arange(chosen.size)
        self._levels = [(s[chosen], eps[chosen]) for s, eps in self._levels]
        self._rank, self._plateau = self._rank[chosen], self._plateau[chosen]

    def advance(self) -> Bounds[HostFloats]:
        """Form one more Gram product, or the first two; return the bounds that they prove."""
        if self._levels or not self._keeps_size:
            return self._squared()
        # so that all that later values may need is compiled with the first ones
        first, second = self._squared(), self._squared()
        return first.narrowed(second)

    def _squared(self) -> Bounds[HostFloats]:
        p = self._iterate
        inner, q = p.shape[1], p.shape[2]
        gram = linalg.gram_matrix(p)
        # worth its passes over the matrices only where the Schatten norms have stopped to fall, or
        # a compilation
        share = 1.0 if self._keeps_size else np.mean(self._plateau)
        clustered = len(self._levels) > 0 and share > limits.CLUSTERED
        rows = [*_sizes(gram), *(moments.centred_sums(p, gram) if clustered else ())]
        host = crossing.to_host(linalg.stacked(*rows))
        trace, largest, square, *centred = host[:, self._places] if self._keeps_size else host

        error, frobenius2 = self._product_error(trace, inner, q)
        lower, upper = self._eigenvalues(square, frobenius2, error, q)
        lower, upper = down(np.sqrt(lower)), up(np.sqrt(upper))  # of the iterate p
        if clustered:
            better = moments.upper_bound(
                *centred,
                frobenius2=frobenius2,
                sigma=upper,
                error=error,
                departure=self._levels[-1][1],
                rows=q,
                precision=self._precision,
            )
            upper = np.minimum(upper, better)
        found = self._climb(lower, upper, error / np.maximum(square, self._precision.tiny) ** 0.5)

        self._note_rank(frobenius2, square)
        scale = self._scale(largest)
        self._levels.append((scale, up(error * scale) + 2 * q * self._precision.tiny))
        self._iterate = gram
        if self._keeps_size or np.any(scale != 1.0):
            factors = np.ones(gram.shape[0])
            factors[self._places] = scale
            kind = dtypes.real_dtype(p.dtype)
            self._iterate = linalg.scaled(gram, crossing.from_host(factors, dtype=kind, like=p))
        return found

    def _note_rank(self, frobenius2: HostFloats, square: HostFloats) -> None:
        """Keep (sum l)^2 / sum l^2 of the eigenvalues of P^H P, and whether squaring lowers it."""
        rank = frobenius2**2 / np.maximum(square, self._precision.tiny)
        self._plateau = (rank > limits.SEVERAL) & (rank > limits.LEVEL * self._rank)
        self._rank = rank

    def _scale(self, largest: HostFloats) -> HostFloats:
        """Return powers of two that bring the largest diagonal entries near 1.

        1 while none is far.
        """
        double = self._precision.unit == 2.0**-53
        low, high, most = (2.0**-40, 2.0**40, 1000) if double else (2.0**-6, 2.0**12, 120)
        if np.all((largest > low) & (largest < high)):
            return np.ones_like(largest)
        exponents = np.frexp(np.maximum(largest, self._precision.tiny))[1]
        return np.asarray(np.ldexp(1.0, -np.clip(exponents, -most, most)))

    def _product_error(
        self, trace: HostFloats, inner: int, q: int
    ) -> tuple[HostFloats, HostFloats]:
        """Bound the error of Q = fl(P^H P) and ||P||_F^2, both in the Frobenius norm (Lemma 1)."""
        prec = self._precision
        loss = prec.kappa(inner) + 2 * prec.gamma(q + 2)
        underflow = prec.underflow(inner) * q
        # the trace of the product is the squared norm, up to the errors of its q entries and sum
        frobenius2 = up((trace + 2 * underflow) / np.maximum(1.0 - loss, 0.0))
        return up(prec.kappa(inner) * frobenius2 + underflow), frobenius2

    def _eigenvalues(
        self, square: HostFloats, frobenius2: HostFloats, error: HostFloats, q: int
    ) -> tuple[HostFloats, HostFloats]:
        """Bracket lambda_1(P^H P) by its trace and ||P^H P||_F."""
        low, high = sums.enclosure(square, q, q, self._precision)
        upper = up(np.sqrt(high) + error)
        least = np.maximum(down(np.sqrt(low)) - up(error), 0.0)
        return moments.lower_bound(frobenius2, down(least**2)), upper

    def _climb(self, lower: HostFloats, upper: HostFloats, noise: HostFloats) -> Bounds[HostFloats]:
        """Carry bounds on sigma(P_t) back to sigma(P_0) (Theorem 2)."""
        noise = noise / 2
        for scale, eps in reversed(self._levels):
            noise = (noise + eps / upper) / 2
            upper = up(np.sqrt((upper + eps) / scale))
            lower = down(np.sqrt(np.maximum(lower - up(eps), 0.0) / scale))
        self.noise = 2 * noise + 2.0**-48  # and the nudges: this one decides, it proves nothing
        return Bounds(lower, upper, 1)


class GramChains:
    """Chains of the parts of a stack, which the cores share."""

    def __init__(self, chains: list[GramChain]) -> None:
        self._chains = chains

    @property
    def noise(self) -> HostFloats:
        """The noise of all matrices, in order."""
        return np.concatenate([chain.noise for chain in self._chains])

    def keep(self, chosen: HostInts) -> None:
        """Continue with the chosen matrices only."""
        going, start = [], 0
        for chain in self._chains:
            stop = start + len(chain.noise)
            own = chosen[(chosen >= start) & (chosen < stop)] - start
            if own.size:
                chain.keep(own)
                going.append(chain)
            start = stop
        self._chains = going

    def advance(self) -> Bounds[HostFloats]:
        """Form one more Gram product of each matrix; return the bounds that they prove."""
        work = sum(len(c.noise) * product_operations(c.shape) for c in self._chains)
        # a single product is left to the BLAS and its threads
        few = len(self._chains) == 1 and len(self._chains[0].noise) == 1
        found = threads.shared_if_worth(GramChain.advance, self._chains, 0.0 if few else work)
        if len(found) == 1:
            return found[0]
        lower, upper = (np.concatenate(side) for side in zip(*map(_ends, found), strict=True))
        return Bounds(lower, upper, 1)


def _ends(found: Bounds[HostFloats]) -> tuple[HostFloats, HostFloats]:
    return found.lower, found.upper


def product_operations(shape: tuple[int, int]) -> float:
    """Return about what the Gram product of one matrix, and the passes over it, cost."""
    p, q = max(shape), min(shape)
    return 8.0 * q * (p * q + limits.ENTRY_OPERATIONS * q)


def _sizes(gram: Array) -> tuple[Array, Array, Array]:
    """Return trace, largest diagonal entry and squared Frobenius norm of each matrix."""
    return (*_of_diagonal(gram), sums.inner_product(gram, gram))


@compiled
def _of_diagonal(gram: Array) -> tuple[Array, Array]:
    xp = libraries.namespace(gram)
    diagonal = dtypes.real_part(xp.linalg.diagonal(gram))
    return xp.sum(diagonal, axis=-1), xp.max(diagonal, axis=-1)
