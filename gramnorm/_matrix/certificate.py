"""One matrix at a time, on the host: scalars are Python floats and factorisations are cheap.

Small matrices are squared a few times (Theorem 2).  Larger ones take one product S = B^H B, a Ritz
vector, and the cheapest proof that the Ritz value is almost the norm: its residual (Theorem 7),
rescaled row sums, or one checked Cholesky factorisation (Theorem 6) at the price of about one
product more.  At a loose tolerance that is tried in single precision before (`single`).  What is
left wide, for clustered singular values or tight tolerances, goes through the Gram iteration.
"""

from __future__ import annotations

import math

import numpy as np

from gramnorm._arrays import crossing, dtypes, libraries, limits, linalg
from gramnorm._arrays.types import Array, HostNumbers
from gramnorm._matrix import cholesky, lanczos, moments, non_negative, residual, single
from gramnorm._matrix.gram import bracket_by_iteration
from gramnorm._results import Bounds
from gramnorm._rigour import sums
from gramnorm._rigour.model import HOST_UNIT, down, precision_of, up


def bracket_matrix(b: Array, *, frobenius2: float, rtol: float) -> Bounds[float]:
    """Bracket the norm of `b`, p x q with q <= p, scaled, with ||B||_F^2 <= `frobenius2`.

    It has double precision, or is taken to it block by block (`linalg.in_double`), or as a whole
    where single precision is tried first (`goes_in_single`).
    """
    aim = rtol / 2  # the result is still to be rounded to the caller's type
    if b.shape[1] >= limits.DENSE_SIGNS and not dtypes.is_complex(b.dtype):
        quick = non_negative.dense_bracket(crossing.host_array(b), rtol=aim)
        if quick is not None and quick.is_within(aim):
            return quick
    found = Bounds(0.0, math.inf)
    if b.shape[1] <= limits.SQUARING_COLUMNS:
        found = bracket_by_squaring(b, frobenius2=frobenius2, rtol=aim)
    elif goes_in_single(b.shape[1], rtol):
        aim = rtol * (1 - 2.0**-10)  # of a loose tolerance that rounding takes little
        found = single.bracket(crossing.host_array(b), frobenius2=frobenius2, rtol=aim)
    if found.is_within(aim):
        return found
    aim, b = rtol / 2, b if linalg.is_taken_in_blocks(b) else dtypes.in_double(b)
    gram = linalg.gram_in_double(b)
    found = found.narrowed(matrix_certificate(b, gram, frobenius2=frobenius2, rtol=aim))
    if found.is_within(aim):
        return found
    whole = b.astype(np.float64) if linalg.is_taken_in_blocks(b) else b
    return found.narrowed(bracket_by_iteration(whole[None, ...], rtol=rtol).item())


def goes_in_single(columns: int, rtol: float) -> bool:
    """Say whether single precision is tried first for one matrix."""
    return columns > limits.SQUARING_COLUMNS and rtol >= limits.SINGLE


def bracket_by_squaring(b: Array, *, frobenius2: float, rtol: float) -> Bounds[float]:
    """Square until the Schatten norms agree; climb back (Theorem 2, with scalars)."""
    prec = precision_of(b.dtype)
    q = b.shape[1]
    levels: list[tuple[float, float]] = []
    p, f2, inner, steps = b, frobenius2, b.shape[0], 0
    rank, room = math.inf, 1 + 0.4 * rtol  # (sum l)^2 / sum l^2 of the eigenvalues l of P^H P
    # what does not change: in this loop a call costs as much as what it returns
    factors, grow, shrink = sums.factors(q, q, prec), up(1.0), down(1.0)
    kappa, underflow = prec.kappa(inner), prec.underflow(inner) * q
    later = prec.kappa(q), prec.underflow(q) * q
    while True:
        steps += 1
        gram = linalg.gram_matrix(p)
        low, high = sums.one_square(gram, *factors)
        error = (kappa * f2 + underflow) * grow
        last, rank, room = rank, f2 * f2 / high, room * room
        # the bounds of several eigenvalues are as far apart as the root of their number
        if rank <= max(2.0, room * room):
            lower, upper = _top_eigenvalue(f2, low, high, error)
            if upper <= lower * room:
                break
        if steps == limits.SQUARINGS or limits.SEVERAL < rank > limits.UNCHANGED * last:
            lower, upper = _top_eigenvalue(f2, low, high, error)  # equal ones stay equal
            break
        scale = 1.0  # the next square has the fourth power: rescale before that leaves the range
        if prec.unit > HOST_UNIT or not 2.0**-100 < high < 2.0**100:
            scale = math.ldexp(1.0, -(math.frexp(high)[1] // 2))
        p = gram * scale if scale != 1.0 else gram
        f2 = high * scale**2 * grow + 2 * q * q * prec.tiny
        levels.append((scale, error * scale * grow + 2 * q * prec.tiny))
        kappa, underflow = later
    lower, upper = down(math.sqrt(lower)), up(math.sqrt(upper))
    for scale, eps in reversed(levels):
        upper = math.sqrt((upper + eps) / scale) * grow
        lower = math.sqrt(max(lower - eps, 0.0) / scale) * shrink
    return Bounds(lower, upper, steps)


def _top_eigenvalue(f2: float, low: float, high: float, error: float) -> tuple[float, float]:
    """Bracket lambda_1(P^H P) by ||P||_F^2 <= f2 and low <= ||Q||_F^2 <= high, Q = P^H P + error."""
    least = max(down(math.sqrt(low)) - error, 0.0)
    return moments.one_lower_bound(f2, down(least * least)), up(math.sqrt(high) + error)


def matrix_certificate(b: Array, gram: Array, *, frobenius2: float, rtol: float) -> Bounds[float]:
    """Bracket the norm of `b` by a proof that a Ritz value is almost the largest.

    `gram` is the computed B^H B, dense; of `b` itself only products with vectors are taken.
    """
    prec = precision_of(gram.dtype)
    p, q = b.shape
    frobenius = up(math.sqrt(frobenius2))
    error = up(prec.kappa(p) * frobenius2 + prec.underflow(p) * q)  # Lemma 1
    x = approximate_eigenvector(gram, rtol)
    quotient = residual.quotient(b, x, frobenius=frobenius)
    return _bracket_near(quotient, gram, x, error=error, rtol=rtol)


def gram_certificate(gram: Array, *, error: float, rtol: float) -> Bounds[float]:
    """Bracket the root of the top eigenvalue of an H >= 0 that `gram` misses by at most `error`.

    Beside others a block may be next to nothing, or nothing at all: it is scaled, so that squares
    of its entries count.
    """
    half = _half_exponent(gram)
    if half:
        gram = gram * math.ldexp(1.0, -2 * half)
        error = error * math.ldexp(1.0, -2 * half)
    x = approximate_eigenvector(gram, rtol)
    quotient = residual.hermitian_quotient(gram, x, error=error)
    found = _bracket_near(quotient, gram, x, error=error, rtol=rtol)
    root = math.ldexp(1.0, half)  # exact: no root of a float is subnormal
    return Bounds(found.lower * root, found.upper * root, found.cost)


def gram_iterated(gram: Array, *, error: float, size: float, rtol: float) -> Bounds[float]:
    """Bracket what `gram_certificate` does by the Gram iteration, for clusters.

    `size` is not below the norm of `gram`, and not far above.
    """
    scale = math.ldexp(1.0, -math.frexp(size)[1])
    of_gram = bracket_by_iteration(gram[None, ...] * scale, rtol=rtol).item()
    least = down(math.sqrt(max(of_gram.lower / scale - error, 0.0)))
    return Bounds(least, up(math.sqrt(of_gram.upper / scale + error)), of_gram.cost)


def _half_exponent(gram: Array) -> int:
    """Return e such that 4^-e brings the largest diagonal entry near 1.

    0 while it is not far below.
    """
    xp = libraries.namespace(gram)
    largest = float(crossing.to_host(xp.max(dtypes.real_part(xp.linalg.diagonal(gram)))))
    if not 0 < largest < 2.0**-30:  # none is far above: the taps were scaled
        return 0
    least = -1022 if dtypes.bits(gram.dtype) == 64 else -126
    return max(math.frexp(largest)[1], least) // 2


def _bracket_near(
    quotient: residual.Quotient, gram: Array, x: Array, *, error: float, rtol: float
) -> Bounds[float]:
    """Prove the Rayleigh quotient of `x` to be almost the largest, by the cheapest argument."""
    # lambda_2^2 <= ||S||_F^2 - lambda_1^2 for the exact S
    size = up(math.sqrt(sums.one_square_above(gram)) + error)
    rho, cost = quotient.lower, 1
    if not (rho > 0 and math.isfinite(quotient.residual)):  # the vector is of no use
        return Bounds(0.0, up(math.sqrt(size)), cost)
    second = up(math.sqrt(max(up(size**2) - down(rho**2), 0.0)))
    upper = min(quotient.kato_temple(second), size)
    enough = rho * (1 + limits.ENOUGH * rtol)
    if upper > enough and residual.has_non_negative_look(gram):
        upper = min(upper, up(residual.weighted_row_sum(gram, x) + error))
    if upper > enough:
        level = rho * (1 + limits.CHOLESKY_LEVEL * rtol)
        upper = min(upper, up(cholesky.eigenvalue_bound(gram, level) + error))
        cost += 1
    return Bounds(down(math.sqrt(rho)), up(math.sqrt(upper)), cost)


def approximate_eigenvector(gram: Array, rtol: float, *, settled: bool = True) -> Array:
    """Return an approximate top eigenvector of `gram` as a column.

    Its quotient has settled to about `rtol`; within a cluster that may be further from the top,
    which only all eigenvectors exclude (`settled` false).
    """
    xp = libraries.namespace(gram)
    host = crossing.host_array(gram)
    q = host.shape[0]
    if q <= limits.EIGENVECTOR_COLUMNS or not settled:
        vector = lanczos.top_eigenpair(host)[1]
    else:
        h = _single_precision(host) if rtol > limits.SINGLE_PRECISION else host
        # fixed, and generic: a column of S may miss the block in which the top eigenvector lives
        start = np.asarray(np.random.default_rng(0).standard_normal(q), dtype=h.dtype)
        gap = min(rtol, limits.LOOSEST_RITZ) / limits.RITZ_SHARE
        vector = lanczos.top_vector(lambda v: h @ v, start, rtol=gap, steps=limits.LANCZOS_STEPS)
    column = np.asarray(vector, dtype=host.dtype)[:, None]
    return xp.asarray(column, dtype=gram.dtype, device=libraries.device_of(gram))


def _single_precision(host: HostNumbers) -> HostNumbers:
    """Return the matrix in half the precision, scaled into its range.

    Half the memory to read per step.
    """
    largest = float(np.max(np.abs(np.diagonal(host))))
    narrow = np.empty(host.shape, np.complex64 if np.iscomplexobj(host) else np.float32)
    # zero has the exponent 0, and the least number one beyond the largest
    scale = math.ldexp(1.0, -max(math.frexp(largest)[1], -1022))
    np.multiply(host, scale, out=narrow, casting="same_kind")
    return narrow
