"""Bounds on the spectral norm of matrices and stacks of matrices."""

from __future__ import annotations

import math

import numpy as np

from gramnorm import _scaling, _validate, _xp
from gramnorm._gram import GramChain, gram_values
from gramnorm._rounding import gram_units, working_dtype
from gramnorm._typing import Array, DType, HostBools, HostFloats, Namespace
from gramnorm.bracket import NormBracket

__all__ = ["gram_iteration", "matrix_norm_bound", "matrix_norm_bracket"]


def matrix_norm_bound(x: Array, /, *, rtol: float | None = None, keepdims: bool = False) -> Array:
    """Return a certified upper bound on the spectral norm of each matrix in a stack.

    The value is never below the largest singular value of the array as stored, rounding included,
    and above it by a relative `rtol` at most where `matrix_norm_bracket` converges.
    A replacement for ``numpy.linalg.matrix_norm(x, ord=2)`` where too small a norm does harm.

    Parameters
    ----------
    x : array, shape (..., m, n)
        Matrices, real or complex; integers and bool are promoted to the namespace's default real type.
    rtol : float, optional
        Relative gap asked for. By default 1e-6 for float64, complex128 and integers, 1e-4 for lower precisions.
    keepdims : bool, optional
        Whether to keep the last two axes with length one.

    Returns
    -------
    array, shape (...) or (..., 1, 1)
        Upper bounds in the namespace, device and real dtype of `x`. NaN where a matrix holds NaN,
        inf where it holds inf and no NaN or where the norm exceeds the largest number of the type, exactly 0
        for zero and empty matrices.

    Raises
    ------
    TypeError
        If `x` is not an array of real or complex numbers, or has no values (inside ``jax.jit``).
    ValueError
        If `x` has fewer than two axes or `rtol` is not positive.

    See Also
    --------
    matrix_norm_bracket : The same bound with a lower one and a convergence flag.
    gram_iteration : Differentiable, under a fixed number of steps, without rounding margin.

    Notes
    -----
    **Guarantee.** Upper bound, for every input, under the rounding model of the theory page
    (Theorem 2): IEEE arithmetic in the working precision, conventional matrix products in any order of summation.
    The result carries no gradient.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> a = np.asarray([[1.0, 0.0], [1.0, 2.0]])
    >>> float(gn.matrix_norm_bound(a)) >= 2.288245611270737
    True
    """
    upper = matrix_norm_bracket(x, rtol=rtol).upper
    return upper[..., None, None] if keepdims else upper


def matrix_norm_bracket(
    x: Array, /, *, rtol: float | None = None, vectors: bool = False
) -> NormBracket:
    """Return certified lower and upper bounds on the spectral norm of each matrix in a stack.

    Parameters
    ----------
    x : array, shape (..., m, n)
        Matrices, real or complex; integers and bool are promoted to the namespace's default real type.
    rtol : float, optional
        Relative gap asked for. By default 1e-6 for float64, complex128 and integers, 1e-4 for lower precisions.
    vectors : bool, optional
        Whether to return unit vectors attaining the lower bound. Not implemented yet.

    Returns
    -------
    NormBracket
        ``lower <= norm <= upper`` per matrix, in the namespace, device and real dtype of `x`, with the flag
        `converged` and the number of matrix products `n_products` of the longest iteration.

    Raises
    ------
    TypeError
        If `x` is not an array of real or complex numbers, or has no values (inside ``jax.jit``).
    ValueError
        If `x` has fewer than two axes or `rtol` is not positive.
    NotImplementedError
        If `vectors` is asked for.

    Notes
    -----
    **Guarantee.** ``lower <= norm <= upper`` for every input under the rounding model of the theory page
    (Theorem 2, Lemma 4), converged or not. The result carries no gradient.

    Gram iteration [1]_ brackets the norm by Schatten norms of growing order; rounding errors are carried
    along and climb back through the square roots. Where the precision of `x` is too coarse for `rtol` and this
    shape, float64 is used if the device has it.

    References
    ----------
    .. [1] B. Delattre, Q. Barthelemy, A. Araujo, A. Allauzen, "Efficient Bound of Lipschitz Constant for
       Convolutional Layers by Gram Iteration", ICML 2023, arXiv:2305.16173.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> bracket = gn.matrix_norm_bracket(np.asarray([[3.0, 3.0], [0.0, 3.0]]))
    >>> bool(bracket.lower <= 4.854101966249685 <= bracket.upper)
    True
    >>> bool(bracket.converged)
    True
    """
    xp, a = _validate.concrete_argument(x, name="x", instead="gram_iteration")
    _validate.matrices(a, name="x")
    out = result_dtype(a, xp=xp)
    gap = _validate.tolerance(rtol, default=1e-6 if xp.finfo(out).bits == 64 else 1e-4)
    if vectors:
        msg = "vectors=True is not implemented yet; the bounds are available with vectors=False"
        raise NotImplementedError(msg)
    batch = a.shape[:-2]
    lower, upper, products = bracket_stack(
        xp.reshape(a, (math.prod(batch), *a.shape[-2:])), rtol=gap, dtype=out, xp=xp
    )
    return to_bracket(
        lower, upper, rtol=gap, shape=batch, n_products=products, dtype=out, like=a, xp=xp
    )


def gram_iteration(x: Array, /, *, steps: int) -> Array:
    """Return the upper bound on spectral norms that a fixed number of Gram steps gives.

    In exact arithmetic ``(sum_i sigma_i^P)^(1/P)`` with ``P = 2^(steps + 1)``: the Frobenius norm for no step,
    non-increasing in `steps`, at most ``rank^(1/P)`` times the norm. Differentiable, usable under ``jax.jit``
    and ``vmap``, never waits for the device.

    Parameters
    ----------
    x : array, shape (..., m, n)
        Matrices, real or complex; integers and bool are promoted to the namespace's default real type.
    steps : int
        Number of Gram products, at least 0.

    Returns
    -------
    array, shape (...)
        The values, in the namespace, device and real dtype of `x`; NaN, inf, zero and empty matrices as in
        `matrix_norm_bound`.

    Raises
    ------
    TypeError
        If `x` is not an array of real or complex numbers or `steps` is not an integer.
    ValueError
        If `x` has fewer than two axes or `steps` is negative.

    See Also
    --------
    matrix_norm_bound : An upper bound that rounding cannot push below the norm.

    Notes
    -----
    **Guarantee.** Upper bound in exact arithmetic only: no rounding margin is added, so the value may fall below
    the norm by a few units in the last place. This is the iteration of Delattre et al. (ICML 2023,
    arXiv:2305.16173), whose count starts one higher.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> float(gn.gram_iteration(np.asarray([[3.0, 0.0], [0.0, 4.0]]), steps=0))
    5.0
    """
    xp, a = _validate.array_argument(x, name="x")
    _validate.matrices(a, name="x")
    count = _validate.positive_int(steps, name="steps", least=0)
    return fixed_steps(a, steps=count, xp=xp)


def fixed_steps(a: Array, *, steps: int, xp: Namespace) -> Array:
    """Run the Gram iteration on scaled matrices; keep NaN, inf and zero as they are."""
    out = result_dtype(a, xp=xp)
    if 0 in a.shape:
        return xp.zeros(a.shape[:-2], dtype=out, device=_xp.device_of(a))
    real = xp.float64 if xp.finfo(out).bits == 64 else xp.float32
    a = xp.astype(a, _xp.complex_dtype(real, xp=xp) if _xp.is_complex(a.dtype, xp=xp) else real)
    peaks = [
        xp.max(xp.abs(_xp.without_gradient(part)), axis=(-2, -1))
        for part in _xp.components(a, xp=xp)
    ]
    peak = peaks[0] if len(peaks) == 1 else xp.maximum(*peaks)
    usable = xp.isfinite(peak) & (peak > 0)
    scale = xp.where(usable, peak, xp.ones_like(peak))
    values = gram_values(a / xp.astype(scale[..., None, None], a.dtype), steps=steps, xp=xp)
    return xp.astype(xp.where(xp.isfinite(peak), scale * values, peak), out)


def result_dtype(a: Array, *, xp: Namespace) -> DType:
    """Return the real type of a bound on `a`."""
    if xp.isdtype(a.dtype, ("real floating", "complex floating")):
        return _xp.real_dtype(a.dtype, xp=xp)
    return _xp.default_real_dtype(a, xp=xp)


def bracket_stack(
    a: Array, *, rtol: float, dtype: DType, xp: Namespace
) -> tuple[HostFloats, HostFloats, int]:
    """Bracket the norms of a stack (b, m, n) as host numbers that `dtype` represents."""
    if 0 in a.shape:
        return np.zeros(a.shape[0]), np.zeros(a.shape[0]), 0
    units = gram_units(a.shape[1:], complex=_xp.is_complex(a.dtype, xp=xp))
    work = working_dtype(a, units, rtol, xp=xp)
    scaled = _scaling.normalise(a, dtype=work, xp=xp)
    lower, upper, products = _iterate(scaled.values, rtol=rtol, xp=xp)
    return (*_scaling.restore(lower, upper, scaled, dtype=dtype, xp=xp), products)


def _iterate(a: Array, *, rtol: float, xp: Namespace) -> tuple[HostFloats, HostFloats, int]:
    """Advance the Gram iteration of each matrix of the stack until its bracket is narrow enough."""
    lower, upper = np.zeros(a.shape[0]), np.full(a.shape[0], np.inf)
    chain, rest, steps = GramChain(a, xp=xp), np.arange(a.shape[0]), 0
    # in exact arithmetic the log of the gap is at most 2 ln(q) / 2^t after t steps
    limit = 2 + max(0, math.ceil(math.log2(8 * math.log(1 + min(a.shape[1:])) / min(rtol, 1))))
    while rest.size and steps < limit:
        steps += 1
        low, high = chain.advance()
        lower[rest], upper[rest] = np.maximum(lower[rest], low), np.minimum(upper[rest], high)
        width = upper[rest] - lower[rest]
        # half the gap asked for: the result is still to be rounded to the caller's type
        done = width <= 0.5 * rtol * lower[rest]
        hopeless = width * 0.7 <= 2 * chain.noise * upper[rest]
        going = np.flatnonzero(~(done | hopeless))
        if going.size < rest.size:
            chain.keep(going)
            rest = rest[going]
    return lower, upper, steps


def converged(lower: HostFloats, upper: HostFloats, rtol: float) -> HostBools:
    """Say where the bracket is as narrow as asked for."""
    with np.errstate(invalid="ignore"):
        return np.asarray(upper - lower <= rtol * lower)


def to_bracket(
    lower: HostFloats,
    upper: HostFloats,
    *,
    rtol: float,
    shape: tuple[int, ...],
    n_products: int,
    dtype: DType,
    like: Array,
    xp: Namespace,
    frequency: HostFloats | None = None,
) -> NormBracket:
    """Move a bracket to the namespace and device of `like`."""
    device = _xp.device_of(like)

    def move(values: HostFloats) -> Array:
        return _xp.from_host(values, dtype=dtype, device=device, xp=xp)

    return NormBracket(
        lower=move(lower.reshape(shape)),
        upper=move(upper.reshape(shape)),
        converged=xp.asarray(
            converged(lower, upper, rtol).reshape(shape), dtype=xp.bool, device=device
        ),
        n_products=n_products,
        frequency=None if frequency is None else move(frequency),
    )
