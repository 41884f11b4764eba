"""The weight that its stored parts define, and how far what is computed here is from it.

Weight norm, spectral norm with its stored vectors, and masks of zeros and ones define

    w = g v / ||v||  (one norm for each index of the axis that g keeps),   w = W / (u^T W v),   w = m * W

in real arithmetic.  Here w is computed in float64 from operands scaled by powers of two, and every
fold carries a bound `error` on ||computed - exact|| in the Frobenius norm.  With the unit roundoff
u = 2^-53 and gamma_k = k u / (1 - k u):

* Weight norm.  The computed sum of n squares is the exact one times a number between (1 - u)^n and (1 + u)^n, as no
  term is negative.  A root, a quotient and a product add few factors, so each entry is off by a
  relative gamma_(n/2 + 8) at most, and ||w|| = ||g||.
* Spectral norm.  A sum over h rows and k columns, in any order, gives sigma with |computed - exact| <= eps,
  eps = gamma |u|^T |W| |v|, gamma = gamma_(h + k + 8), where the sum of moduli is computed and so
  enters with 1 + 2 gamma; 1/sigma is off by a relative tau = eps / (|sigma| - eps) at most.  Where
  W is a fold itself with the error e, e ||u|| ||v|| adds to eps and e / (|sigma| - eps) to the
  error.
* A mask of zeros and ones multiplies exactly, and cannot make an error larger.

Numbers below the normal range lose 2^-1075 each: the largest scaled entry is at least 1, so beside
it that is far less than the one unit more that is counted; where a result itself is so small,
2^-1072 for each entry is added.

A library that folds in float32, or in training renews u and v, has another weight by its own
rounding; the exact one is bounded here.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm._arrays.types import HostFloats
from gramnorm._rigour.fractions import float_above, product_above, sum_above
from gramnorm._rigour.model import Precision
from gramnorm.report.limits import AGREE, DISAGREE, FEWEST_TO_AGREE

_FLOAT64 = Precision(2.0**-53, 2.0**-1022, complex=False)
_LOST = 2.0**-1072  # by underflow, for each entry of a result
_LOST_IN_SUM = 2.0**-1060  # for each product in u^T W v of factors below 2

Numbers = np.ndarray[Any, np.dtype[Any]]


class NotFoldableError(Exception):
    """Stored parts that define no weight; the text says why."""


@dataclass(frozen=True)
class Fold:
    """A weight, and a bound on the Frobenius norm of its error against what its parts define."""

    weight: Numbers
    error: float = 0.0


def stored_weight(values: Numbers, what: str) -> Fold:
    """
    Return a part that is a weight by itself.

    Parameters
    ----------
    values : array
        As stored.
    what : str
        Its name, for errors.

    Returns
    -------
    Fold
        Without error.

    Raises
    ------
    NotFoldableError
        If its type is not one of floating point numbers that float64 holds, or it holds NaN or
        infinity.
    """
    _check_numbers(values, what)
    return Fold(values)


def weight_norm(g: Numbers, v: Numbers) -> Fold:
    """
    Return g v / ||v||, with one norm for each index of the axis that g keeps, or one in all.

    Parameters
    ----------
    g : array
        Of the shape of `v`, but for ones on all axes but one; or a single number.
    v : array of two or more axes
        The direction.

    Returns
    -------
    Fold
        The weight.

    Raises
    ------
    NotFoldableError
        If the shapes do not fit, a norm is zero, or numbers are not finite.
    """
    _check_numbers(g, "the length")
    _check_numbers(v, "the direction")
    if np.iscomplexobj(g):
        msg = "its lengths are complex"
        raise NotFoldableError(msg)
    axes = _normed_axes(g.shape, v.shape)
    if v.size == 0:
        return Fold(np.zeros(v.shape))
    directions = _real(v)
    summed = (*axes, v.ndim) if np.iscomplexobj(v) else axes
    largest = np.max(np.abs(directions), axis=summed, keepdims=True)
    if not np.all(largest):
        msg = "a part of its direction is zero, so the weight is 0 / 0"
        raise NotFoldableError(msg)
    scaled = np.ldexp(directions, 1 - np.frexp(largest)[1])  # the largest entry in [1, 2)
    norms = np.sqrt(np.sum(scaled * scaled, axis=summed, keepdims=True))
    lengths = g.astype(np.float64).reshape(norms.shape)
    with np.errstate(over="ignore", under="ignore"):
        computed = _in_range(lengths / norms * scaled)
    if np.iscomplexobj(v):
        computed = np.ascontiguousarray(computed).view(np.complex128).reshape(v.shape)
    rho = _FLOAT64.gamma(directions.size // lengths.size // 2 + 8)
    lost = product_above([directions.size, _LOST]) if np.any(lengths) else 0.0
    return Fold(computed, sum_above([product_above([rho, _length_above(lengths)]), lost]))


def spectral_norm(fold: Fold, u: Numbers, v: Numbers) -> Fold:
    """
    Return W / (u^T W v), with W as a matrix whose rows are the slices of one axis.

    Parameters
    ----------
    fold : Fold
        W.
    u, v : arrays of one axis
        The vectors as stored.

    Returns
    -------
    Fold
        The weight that evaluation uses; training renews the vectors first.

    Raises
    ------
    NotFoldableError
        If the vectors fit no axis of W or several of them, the quotient cannot be told from one by
        zero, or numbers are complex or not finite.
    """
    _check_numbers(u, "the left vector")
    _check_numbers(v, "the right vector")
    if any(map(np.iscomplexobj, (fold.weight, u, v))):
        msg = "its spectral norm is of complex numbers, for which libraries differ"
        raise NotFoldableError(msg)
    if u.ndim != 1 or v.ndim != 1:
        msg = f"its vectors have the shapes {u.shape} and {v.shape}"
        raise NotFoldableError(msg)
    matrices = _unfoldings(fold.weight, u.size, v.size)
    if fold.weight.size == 0:
        return Fold(np.zeros(fold.weight.shape))
    (w, a), (left, b), (right, c) = map(_scaled, (fold.weight, u, v))
    matrix = _agreeing([np.ldexp(m, -a) for m in matrices], left, right)
    sigma = float(left @ (matrix @ right))
    moduli = float(np.abs(left) @ (np.abs(matrix) @ np.abs(right)))
    wrong = float_above(Fraction(fold.error) / Fraction(2) ** a)
    gamma = _FLOAT64.gamma(u.size + v.size + 8)
    eps = sum_above(
        [
            product_above([gamma, 1 + 2 * gamma, moduli]),
            product_above([wrong, _length_above(left), _length_above(right)]),
            product_above([w.size, _LOST_IN_SUM]),
        ]
    )
    least = Fraction(abs(sigma)) - Fraction(eps)
    if least <= 0:
        msg = "it is divided by u^T W v, which cannot be told from zero"
        raise NotFoldableError(msg)
    with np.errstate(over="ignore", under="ignore"):
        computed = _in_range(np.ldexp(w / sigma, -b - c))
    tau = float_above(Fraction(eps) / least)
    unit = _FLOAT64.gamma(4)
    relative = sum_above([tau, unit, product_above([tau, unit])])
    inherited = float_above(Fraction(wrong) / least / Fraction(2) ** (b + c))
    lost = product_above([w.size, _LOST])
    off = product_above([relative, _length_above(computed)])
    return Fold(computed, _in_range(sum_above([off, inherited, lost])))


def masked(fold: Fold, mask: Numbers) -> Fold:
    """
    Return the weight times a mask of zeros and ones.

    Parameters
    ----------
    fold : Fold
        The weight.
    mask : array
        Of the same shape.

    Returns
    -------
    Fold
        The product, exact.

    Raises
    ------
    NotFoldableError
        If the mask is of another shape or holds other numbers.
    """
    if mask.shape != fold.weight.shape:
        msg = f"its mask has the shape {mask.shape}, the weight {fold.weight.shape}"
        raise NotFoldableError(msg)
    ones = mask != 0
    if not np.array_equal(mask, ones):
        msg = "its mask holds other numbers than 0 and 1"
        raise NotFoldableError(msg)
    return Fold(np.where(ones, fold.weight, np.zeros_like(fold.weight)), fold.error)


def _check_numbers(values: Numbers, what: str) -> None:
    """Refuse what float64 does not hold exactly, and what is not finite."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if not (kind == "f" and size <= 8) and not (kind == "c" and size <= 16):
        msg = f"{what} is of type {values.dtype}, and only up to 64-bit floating point is folded"
        raise NotFoldableError(msg)
    if not np.all(np.isfinite(values)):
        msg = f"{what} holds NaN or infinity"
        raise NotFoldableError(msg)


def _normed_axes(lengths: tuple[int, ...], direction: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of the direction that go into one norm."""
    every = tuple(range(len(direction)))
    if len(direction) > 1 and lengths in ((), (1,)):
        return every
    kept = [axis for axis, length in enumerate(lengths) if length != 1]
    fits = len(lengths) == len(direction) > 1 and len(kept) <= 1
    if not fits or any(lengths[axis] != direction[axis] for axis in kept):
        msg = f"its lengths have the shape {lengths}, its directions {direction}, which do not fit"
        raise NotFoldableError(msg)
    if not kept and 1 not in direction:
        msg = f"its lengths have the shape {lengths}: of which axis of {direction}, nothing says"
        raise NotFoldableError(msg)
    return tuple(axis for axis in every if axis not in kept)


def _unfoldings(weight: Numbers, rows: int, columns: int) -> list[HostFloats]:
    """Return each matrix of so many rows and columns whose rows are the slices of an axis, once."""
    found: list[HostFloats] = []
    for axis, length in enumerate(weight.shape):
        if length != rows or math.prod(weight.shape) != rows * columns:
            continue
        others = (*weight.shape[:axis], *weight.shape[axis + 1 :])
        if math.prod(others) != columns:
            continue
        matrix = np.moveaxis(weight, axis, 0).reshape(rows, columns).astype(np.float64)
        if not any(np.array_equal(matrix, other) for other in found):
            found.append(matrix)
    if not found or weight.ndim < 2:
        msg = f"its vectors have {rows} and {columns} entries, which fit no axis of {weight.shape}"
        raise NotFoldableError(msg)
    return found


def _agreeing(matrices: list[HostFloats], left: HostFloats, right: HostFloats) -> HostFloats:
    """
    Return the one matrix that the vectors are of.

    Lengths fit several axes where a layer has as many inputs as outputs.  A step of the power
    method leaves u = W v / ||W v|| or v = W^T u / ||W^T u|| behind, for one of the matrices only;
    vectors that are of none of them, as before training, or too short to tell, decide nothing.
    """
    if len(matrices) == 1:
        return matrices[0]
    cosines = [max(_cosine(left, m @ right), _cosine(right, left @ m)) for m in matrices]
    best = int(np.argmax(cosines))
    others = cosines[:best] + cosines[best + 1 :]
    if left.size < FEWEST_TO_AGREE or cosines[best] < AGREE or max(others) > DISAGREE:
        msg = "its vectors fit more than one axis of it, and nothing says which was taken for the outputs"
        raise NotFoldableError(msg)
    return matrices[best]


def _cosine(x: HostFloats, y: HostFloats) -> float:
    lengths = float(np.linalg.norm(x)) * float(np.linalg.norm(y))
    return abs(float(x @ y)) / lengths if lengths > 0 else 0.0


def _real(values: Numbers) -> HostFloats:
    """Return float64 values, of complex ones the parts along one more axis."""
    if np.iscomplexobj(values):
        wide = np.ascontiguousarray(values, dtype=np.complex128)
        return wide.view(np.float64).reshape(*values.shape, 2)
    return values.astype(np.float64)


def _scaled(values: Numbers) -> tuple[HostFloats, int]:
    """Return values with the largest in [1, 2), and the exponent of two that gives them back."""
    wide = values.astype(np.float64)
    largest = float(np.max(np.abs(wide), initial=0.0))
    exponent = math.frexp(largest)[1] - 1 if largest else 0
    return np.ldexp(wide, -exponent), exponent


def _length_above(values: Numbers) -> float:
    """Return an upper bound on the root of the sum of squares."""
    scaled, exponent = _scaled(_real(values))
    root = float(np.sqrt(np.sum(scaled * scaled))) * (1 + _FLOAT64.gamma(scaled.size // 2 + 8))
    return float_above(Fraction(root) * Fraction(2) ** exponent)


def _in_range(computed: Any) -> Any:
    """Return what was computed, once it is finite."""
    if not np.all(np.isfinite(computed)):
        msg = "what its parts define leaves the range of float64"
        raise NotFoldableError(msg)
    return computed
