"""The autocorrelation of the taps, for symbols of nearly the same norm at every frequency.

With H_m = sum_k K_k^H K_{k+m} the square of the symbol is F^H F = sum_m H_m exp(i m . theta), so
its eigenvalues lie in (docs/theory.md, Lemma 11)

    lambda_min(H_0) - sum_{m != 0} ||H_m||,   ||H_0|| + sum_{m != 0} ||H_m||,

and sup ||F||^2 <= c + sup ||F^H F - c I|| for any c.  A symbol whose norm is the same at every
frequency is the worst case of a search.  If it is a multiple of a unitary matrix, H_m = 0 for m !=
0 and the interval is a point; near to that F^H F - c I is small, and a rough bound on it is a sharp
one on F.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gramnorm._arrays import crossing, dtypes, libraries, limits, linalg
from gramnorm._arrays.types import Array, HostFloats, HostInts
from gramnorm._matrix.gram import GramChain
from gramnorm._rigour import sums
from gramnorm._rigour.model import down, precision_of, up


@dataclasses.dataclass(frozen=True)
class Autocorrelation:
    """The taps H_m, shape (lags, groups, q, q), and their lags.

    Attributes
    ----------
    error : float
        Bound on the norm of the difference of ``sum H_m exp(i m . theta)`` from the exact one.
    floor, ceiling : float
        Bounds on the squares of the q singular values of the symbol, at every frequency and in
        every group.
    """

    taps: Array
    lags: HostInts
    error: float
    floor: float
    ceiling: float

    def less(self, centre: float) -> tuple[Array, float]:
        """Return the taps of F^H F - centre I, and a bound on their error.

        `centre` is a number of their type.
        """
        xp = libraries.namespace(self.taps)
        prec, device = precision_of(self.taps.dtype), libraries.device_of(self.taps)
        q = int(self.taps.shape[-1])
        middle = np.all(self.lags == 0, axis=1).astype(np.float64)[:, None, None, None]
        at_zero = crossing.from_host(middle * centre, dtype=self.taps.dtype, like=self.taps)
        taps = self.taps - at_zero * xp.eye(q, dtype=self.taps.dtype, device=device)
        rounded = prec.unit * (self.ceiling + centre)  # of each entry on the diagonal
        return taps, self.error + rounded


def autocorrelation(taps: Array, offsets: HostInts) -> Autocorrelation | None:
    """Return the autocorrelation of taps (T, groups, p, q); None if there is too much of it."""
    xp = libraries.namespace(taps)
    count, groups, p, q = taps.shape
    spread = np.ptp(offsets, axis=0)
    entries = groups * (count * q) ** 2
    most = limits.TAP_COLUMNS
    if count * q > most or entries > most**2 or np.prod(2.0 * spread + 1) > limits.LAGS:
        return None
    prec = precision_of(taps.dtype)
    rows = xp.reshape(xp.permute_dims(taps, (1, 2, 0, 3)), (groups, p, count * q))
    gram = linalg.gram_matrix(rows)
    blocks = xp.reshape(gram, (groups, count, q, count, q))
    blocks = xp.reshape(xp.permute_dims(blocks, (1, 3, 0, 2, 4)), (count * count, groups, q, q))

    every = (offsets[None, :, :] - offsets[:, None, :]).reshape(count * count, -1)
    lags, which = np.unique(every, axis=0, return_inverse=True)
    order = [np.flatnonzero(which.reshape(-1) == index) for index in range(len(lags))]
    gathered = xp.stack([xp.sum(crossing.select(blocks, pairs), axis=0) for pairs in order], axis=0)
    norms = _norms_above(xp.reshape(gathered, (-1, q, q))).reshape(len(lags), groups)
    zero = int(np.flatnonzero(~np.any(lags, axis=1))[0])
    most, least = norms[zero], _least_eigenvalues(gathered[zero, ...], norms[zero])
    rest = np.sum(np.delete(norms, zero, axis=0), axis=0)
    _, squares = sums.square(rows)
    # each of the T^2 blocks errs by kappa |K_k|^H |K_l|, their computed sums by gamma_T of what is
    # below (1 + kappa) |K_k|^H |K_l|; the sums over k, l of ||K_k||_F ||K_l||_F are at most T times
    # the sum of squares
    relative = prec.kappa(p) + prec.gamma(count) * (1 + prec.kappa(p))
    error = up(count * relative * squares + 2 * count**2 * prec.underflow(p) * q)
    rest = up(rest, len(lags) + 8) + error
    return Autocorrelation(
        taps=gathered,
        lags=lags,
        error=float(np.max(error)),
        floor=down(max(float(np.min(least - up(rest))), 0.0)),
        ceiling=up(float(np.max(most + rest))),
    )


def _least_eigenvalues(h: Array, most: HostFloats) -> HostFloats:
    """Return lower bounds on the eigenvalues of semidefinite matrices of norms up to `most`.

    For t from there on the least one is t less the norm of t I - h.
    """
    xp = libraries.namespace(h)
    prec, device = precision_of(h.dtype), libraries.device_of(h)
    t = crossing.from_host(most, dtype=dtypes.real_dtype(h.dtype), like=h)
    rest = t[:, None, None] * xp.eye(int(h.shape[-1]), dtype=h.dtype, device=device) - h
    # the difference rounds its diagonal, by less than u of its norm
    return down(np.maximum(crossing.to_host(t) - up(_norms_above(rest) * (1 + 2 * prec.unit)), 0.0))


def _norms_above(h: Array) -> HostFloats:
    """Return upper bounds on the norms of a stack of matrices."""
    norms = up(np.sqrt(sums.square(h)[1]))
    large = np.flatnonzero(norms > 2.0**-50)  # smaller ones are as good as zero
    if large.size:
        chain = GramChain(crossing.select(h, large), np.arange(large.size))
        squared = np.min([chain.advance().upper for _ in range(limits.LAG_SQUARINGS)], axis=0)
        norms[large] = np.minimum(norms[large], squared)
    return norms
