"""What one vector proves: a lower bound by its image, an upper bound by its residual.

For H = B^H B and any x with rho = ||B x||^2 / ||x||^2:  sqrt(rho) <= sigma_1(B), and if
nu >= lambda_2(H) lies below rho (Kato and Temple; docs/theory.md, Theorem 7)

    lambda_1(H) <= rho + ||H x - rho x||^2 / (||x||^2 (rho - nu)).

The residual enters squared, so a Ritz vector of modest quality proves a bound of full precision.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from gramnorm._arrays import crossing, dtypes, libraries, limits, linalg
from gramnorm._arrays.types import Array, HostNumbers
from gramnorm._rigour import sums
from gramnorm._rigour.model import down, precision_of, up
from gramnorm._rigour.sums import inner_product


@dataclasses.dataclass(frozen=True)
class Quotient:
    """The Rayleigh quotient of a vector for B^H B, enclosed, and its residual, bounded.

    Attributes
    ----------
    lower, upper : float
        Bounds on rho = ||B x||^2 / ||x||^2.
    residual : float
        Upper bound on ||B^H B x - rho x|| / ||x||.
    """

    lower: float
    upper: float
    residual: float

    def kato_temple(self, second: float) -> float:
        """Bound lambda_1(B^H B) given an upper bound on lambda_2; inf if that is not below rho."""
        gap = self.lower - second
        if not gap > 0:
            return math.inf
        return up(self.upper + self.residual**2 / gap)


def quotient(b: Array, x: Array, *, frobenius: float) -> Quotient:
    """Enclose the Rayleigh quotient of the column `x` for B^H B; `frobenius` >= ||B||_F."""
    xp = libraries.namespace(b)
    prec = precision_of(x.dtype)
    p, q = b.shape
    y, z = linalg.images(b, x)
    xx, yy = (inner_product(v, v) for v in (linalg.adjoint(x), linalg.adjoint(y)))
    r = z - (yy / xx) * x
    rr = inner_product(linalg.adjoint(r), linalg.adjoint(r))
    xx, yy, rr = crossing.to_host(xp.stack([xx, yy, rr])).tolist()

    lost = _Lost(
        forward=prec.kappa(q),
        backward=prec.kappa(p),
        underflow=(prec.underflow(q) * p, prec.underflow(p) * q),
        sums=sums.loss(1, p, prec),
        unit=prec.unit,
    )
    return _enclosed(xx, yy, rr, frobenius=frobenius, lost=lost)


def single_quotient(c: HostNumbers, x: HostNumbers, *, frobenius: float) -> Quotient:
    """Enclose the Rayleigh quotient of the vector `x` for C^H C, both in single precision.

    Products are sums, in double precision, of pieces that are short.
    """
    p, q = c.shape
    prec, double = precision_of(c.dtype), precision_of(np.result_type(c.dtype, np.float64))
    y = _image(c, x)
    narrow = y.astype(c.dtype)
    z = _image(linalg.adjoint(c), narrow)
    wide = x.astype(y.dtype)
    xx, yy = (float(np.vdot(v, v).real) for v in (wide, y))
    r = z - (yy / xx if xx > 0 else 0.0) * wide
    # a piece errs by kappa(h) times the moduli, the sum of n pieces by gamma_n times at most twice
    loss, underflow = [], []
    for length, other in ((q, p), (p, q)):
        pieces = -(-length // limits.QUOTIENT_PIECE)
        inner = min(length, limits.QUOTIENT_PIECE)
        loss.append(prec.kappa(inner) + 2 * double.gamma(pieces))
        underflow.append(pieces * prec.underflow(inner) * other)
    lost = _Lost(
        forward=loss[0],
        backward=loss[1] * (1 + prec.unit) + prec.unit,  # the image is rounded before it is used
        underflow=(underflow[0], underflow[1] + 2 * prec.tiny * p * frobenius),
        sums=sums.loss(1, p, double),
        unit=double.unit,
    )
    return _enclosed(xx, yy, float(np.vdot(r, r).real), frobenius=frobenius, lost=lost)


def _image(c: HostNumbers, x: HostNumbers) -> HostNumbers:
    """Return C x, summed up in double precision over pieces of the columns."""
    h = limits.QUOTIENT_PIECE
    total = np.zeros(c.shape[0], dtype=np.result_type(c.dtype, np.float64))
    for k in range(0, len(x), h):
        total = total + c[:, k : k + h] @ x[k : k + h]
    return total


@dataclasses.dataclass(frozen=True)
class _Lost:
    """What rounding loses of y = B x and z = B^H y relative to moduli, and of sums of squares."""

    forward: float
    backward: float
    underflow: tuple[float, float]
    sums: float
    unit: float


def _enclosed(xx: float, yy: float, rr: float, *, frobenius: float, lost: _Lost) -> Quotient:
    """Enclose rho by ||x||^2 and ||y||^2 as computed, and the residual by that of z."""
    if not xx > 0:
        return Quotient(0.0, math.inf, math.inf)
    relative = lost.sums  # twice what it costs a norm
    norm_x, norm_y = math.sqrt(xx), math.sqrt(yy)
    error_y = lost.forward * frobenius * norm_x * (1 + relative) + lost.underflow[0]
    high = up((norm_y * (1 + relative) + error_y) / (norm_x * (1 - relative)), 16)
    low = down(max(norm_y * (1 - relative) - error_y, 0.0) / (norm_x * (1 + relative)), 16)
    # H x - rho' x against the computed r, for the computed rho'; the exact rho only makes it
    # smaller
    error_z = (lost.backward * norm_y + error_y) * frobenius * (1 + relative) + lost.underflow[1]
    error_r = error_z + 8 * lost.unit * (frobenius * norm_y + high**2 * norm_x)
    residual = up((math.sqrt(rr) * (1 + relative) + error_r) / norm_x * (1 + 2 * relative), 16)
    return Quotient(down(low**2), up(high**2), residual)


def hermitian_quotient(s: Array, x: Array, *, error: float) -> Quotient:
    """Enclose the Rayleigh quotient of the column `x` for an H >= 0 with ||H - S|| <= `error`."""
    xp = libraries.namespace(s)
    prec = precision_of(s.dtype)
    q = s.shape[0]
    y = linalg.matmul(s, x)
    xh, yh = linalg.adjoint(x), linalg.adjoint(y)
    xx, xy, yy = (
        inner_product(xh, xh),
        inner_product(xh, yh),
        inner_product(yh, yh),
    )
    rh = yh - (xy / xx) * xh
    ss, rr = inner_product(s, s), inner_product(rh, rh)
    ss, xx, xy, yy, rr = crossing.to_host(xp.stack([ss, xx, xy, yy, rr])).tolist()

    relative = sums.loss(1, q, prec)
    norm_x, norm_y = math.sqrt(xx), math.sqrt(yy)
    norm_s = math.sqrt(ss) * (1 + sums.loss(q, q, prec))
    error_y = prec.kappa(q) * norm_s * (1 + relative) + prec.underflow(q) * q / norm_x
    width = up(error_y + error + 2 * relative * norm_y / norm_x, 16)
    rho = xy / xx
    residual = (
        math.sqrt(rr) / norm_x + error_y + error + 8 * prec.unit * (norm_y / norm_x + abs(rho))
    )
    residual = up(residual * (1 + 4 * relative), 16)
    low, high = (
        max(down(rho * (1 - 2 * relative)) - width, 0.0),
        up(rho * (1 + 2 * relative) + width),
    )
    return Quotient(down(low), high, residual)


def has_non_negative_look(gram: Array) -> bool:
    """Say whether the first column has no negative entry: then row sums are worth their cost."""
    xp = libraries.namespace(gram)
    column = gram[:, :1]
    return not dtypes.is_complex(gram.dtype) and bool(crossing.to_host(xp.min(column)) >= 0)


def weighted_row_sum(gram: Array, x: Array) -> float:
    """Return an upper bound on lambda_1 of a Hermitian matrix: its row sums, rescaled by |x|.

    By Collatz and Wielandt  lambda_1 <= max_i (|S| w)_i / w_i  for every w > 0; with w the modulus of
    a top eigenvector it is sharp for matrices with non-negative entries.
    """
    xp = libraries.namespace(gram)
    prec = precision_of(gram.dtype)
    w = xp.abs(x)
    w = w + 1e-3 * xp.max(w)
    moduli = xp.abs(gram)
    # the computed product may miss being Hermitian by its rounding; rows stand for columns as well
    moduli = xp.maximum(moduli, xp.matrix_transpose(moduli))
    q = gram.shape[0]
    # q products and sums, what underflow may have lost of them, and a division
    ratio = xp.max((linalg.matmul(moduli, w) + prec.underflow(q)) / w)
    return up(crossing.to_host(ratio).item() * (1 + 2 * prec.gamma(q + 8)))
