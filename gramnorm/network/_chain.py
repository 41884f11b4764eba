"""One constant of a whole chain of layers: what it saves that activations never outgrow their input.

An activation with slopes in [0, 1] acts on the difference of two inputs as a diagonal matrix D with
entries in [0, 1].  So the Lipschitz constant of a chain is at most the supremum over such D of

    ||W_l D_{l-1} W_{l-1} ... D_1 W_1||,

and every choice of positive multipliers gives a bound of it by one norm (Theorem 29).  Multipliers
are found by descent, or come from elsewhere, and are never trusted: the norm at the end proves.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import crossing, dtypes, probes
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._conv.bounds import conv_norm_bound
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._rigour.fractions import product_above
from gramnorm.network import _multipliers
from gramnorm.network._coupling import Coupling

_INSTEAD = "the product of gram_iteration over the layers"


def chain_certificate(layers: Sequence[Array], multipliers: Sequence[Array], /) -> float:
    """Return an upper bound on the Lipschitz constant of a chain of layers, from given multipliers.

    The chain is ``x -> W_l f(... f(W_2 f(W_1 x + b_1) + b_2) ...)`` with any biases. Multipliers
    may come from any solver (LipSDP, ECLipsE, GLipSDP) or guess: they decide how small the bound
    is, not whether it holds.

    Parameters
    ----------
    layers : sequence of arrays
        The weights in order, real floating: either all matrices of shape ``(n_out, n_in)``, or all
        kernels of shape ``(c_out, c_in, *spatial)`` of convolutions with stride 1 and no groups,
        the zeros of a dilated kernel written out.
    multipliers : sequence of arrays
        For each layer but the last, one positive number per neuron, or per channel of a
        convolution, up to a factor common to all. Of a solution ``T = diag(t)`` of LipSDP they are
        the square roots of t.

    Returns
    -------
    float
        The bound, rounded up. NaN if a weight is NaN, else inf if one is inf, else 0 if a layer
        is zero or empty.

    Raises
    ------
    TypeError
        If a layer or multiplier is not an array of real floating numbers, or has no values (inside
        ``jax.jit``).
    ValueError
        If there is no layer, if sizes do not fit, or if a multiplier is not positive and finite.

    See Also
    --------
    chain_bound : Finds the multipliers.
    product_bound : The product of the layers' norms, for any 1-Lipschitz activations.

    Notes
    -----
    **Guarantee.** Not below the Lipschitz constant, in the Euclidean norm, of any such chain whose
    activations act on each entry alone **with slopes in [0, 1]**, which is the caller's statement:
    ``0 <= (f(s) - f(t)) / (s - t) <= 1`` for all s and t. ReLU, leaky ReLU with a slope in [0, 1],
    tanh, sigmoid, softplus, hard tanh and ELU with ``alpha`` in [0, 1] have such slopes; the
    absolute value, GELU, SiLU, softmax, maximum pooling and normalisation layers have not.
    For matrices this is Theorem 29 of the theory page. For convolutions, Theorem 30, it holds for
    every input size, and for zero padding of any amount in each layer, or where all are circular
    at one size; not for padding that reflects, replicates or wraps beyond that size. Rounding of
    weights times multipliers, of the norm and of its power is counted; that of the network's own
    arithmetic is not. Multipliers beyond e^170 times weights of norm about one are replaced by
    that. In a process that reads subnormal numbers as zeros the result is `product_bound`.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> first, last = np.asarray([[3.0, 0.0], [0.0, 1.0]]), np.asarray([[1.0, 4.0]])
    >>> bound = gn.chain_certificate([first, last], [np.asarray([1.0, 2.0])])
    >>> bool(5.0 <= bound < 6.0 < gn.product_bound(3.0, 17**0.5))
    True
    """
    weights, norms, known = _checked(layers)
    vectors = _vectors(multipliers, weights)
    if known is not None:
        return known
    chain = Coupling.of(weights, norms)
    return chain.certificate(_multipliers.with_ends(chain, vectors))


def chain_bound(
    layers: Sequence[Array],
    /,
    *,
    time_limit: float | None = None,
    return_multipliers: bool = False,
) -> Any:
    """Return an upper bound on the Lipschitz constant of a chain of layers, from found multipliers.

    The chain is that of `chain_certificate`. The least bound of all multipliers is the optimum of
    the semidefinite program LipSDP-Neuron; descent comes close to it without one.

    Parameters
    ----------
    layers : sequence of arrays
        The weights in order, as in `chain_certificate`.
    time_limit : float, optional
        Seconds after which the descent stops where it is, which costs sharpness alone; by default
        it goes on to its end, for deep chains of wide convolutions over minutes. Looked at after
        each step, so that a large chain takes longer.
    return_multipliers : bool, optional
        Whether to return the multipliers of the bound as well.

    Returns
    -------
    bound : float
        The bound, rounded up, never above the product of the layers' certified norms. Special
        values as in `chain_certificate`.
    multipliers : list of numpy arrays, if asked for
        For each layer but the last, as `chain_certificate` takes them. Where the bound is
        `product_bound` of the norms, NaN, inf or 0, they need not attain it.

    Raises
    ------
    TypeError, ValueError
        As in `chain_certificate`; also if `time_limit` is not a positive number.

    See Also
    --------
    chain_certificate : The bound from multipliers that are known.
    network_bound : Graphs with sums and branches, from norms of layers.

    Notes
    -----
    **Guarantee.** That of `chain_certificate`, with the same statement about the activations: slopes
    in [0, 1]. How close the bound comes to the least one is not certified: 1e-5 for
    small dense chains and about one percent for convolutions is typical. The work is done on the
    host in float64; a step costs a few products of a matrix of all even by all odd layers.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> first, last = np.asarray([[3.0, 0.0], [0.0, 1.0]]), np.asarray([[1.0, 4.0]])
    >>> bound = gn.chain_bound([first, last])
    >>> bool(5.0 <= bound < 5.001)
    True
    """
    limit = math.inf
    if time_limit is not None:
        limit = time.monotonic() + _validate.positive_number(time_limit, name="time_limit")
    weights, norms, known = _checked(layers)
    if known is not None:
        vectors = [np.ones(w.shape[0]) for w in weights[:-1]]
        return (known, vectors) if return_multipliers else known
    bound, vectors = _multipliers.found(Coupling.of(weights, norms), norms, limit=limit)
    bound = min(bound, product_above(norms))
    return (bound, vectors) if return_multipliers else bound


def _checked(layers: Sequence[Array]) -> tuple[list[HostFloats], list[float], float | None]:
    """Return the layers on the host, bounds on their norms, and the result where it shows."""
    arrays = [_floats(x, name=f"layer {i}") for i, x in enumerate(_listed(layers, "layers"))]
    weights = [crossing.to_host(a) for a in arrays]
    if not weights:
        msg = "layers must hold one array or more, got none"
        raise ValueError(msg)
    for i, w in enumerate(weights):
        _validate.matrices(w, name=f"layer {i}")
    for i, (w, following) in enumerate(itertools.pairwise(weights), 1):
        _fits(w, following, name=f"layer {i}")
    if probes.flushes_subnormals(weights[0], weights[0].dtype):
        # entries read as zeros are missing in B, but the norms of the layers count them
        norms = [_norm(a) for a in arrays]
        return weights, norms, product_above(norms)
    norms = [_norm(w) for w in weights]
    peaks = [float(np.max(np.abs(w), initial=0.0)) for w in weights]
    if not all(0 < peak < math.inf for peak in peaks):
        return weights, norms, product_above(peaks)
    return weights, norms, None


def _norm(x: Array) -> float:
    """Return an upper bound on the norm of one layer."""
    if 0 in x.shape:
        return 0.0
    return float(matrix_norm_bound(x) if x.ndim == 2 else conv_norm_bound(x))


def _fits(w: HostFloats, following: HostFloats, *, name: str) -> None:
    """Check that a layer takes what the layer before it gives."""
    if w.ndim != following.ndim:
        msg = (
            f"{name} must have as many axes as the layer before it, got shape {following.shape} "
            f"after {w.shape}: a chain is of matrices or of convolutions; bound the parts of a "
            "mixed one by themselves, and multiply by product_bound"
        )
        raise ValueError(msg)
    if w.shape[0] != following.shape[1]:
        msg = (
            f"{name} must have {w.shape[0]} inputs on its second axis, as the layer before it has "
            f"outputs, got shape {following.shape} after {w.shape}; write the zeros of a grouped "
            "kernel out"
        )
        raise ValueError(msg)


def _vectors(multipliers: Sequence[Array], weights: list[HostFloats]) -> list[HostFloats]:
    """Return the multipliers on the host, once there are as many as channels, all positive."""
    listed = _listed(multipliers, "multipliers")
    if len(listed) != len(weights) - 1:
        msg = (
            f"multipliers must hold one array for each layer but the last, {len(weights) - 1}, got "
            f"{len(listed)}"
        )
        raise ValueError(msg)
    arrays = [_floats(x, name=f"multipliers {i}") for i, x in enumerate(listed)]
    vectors = [crossing.to_host(a) for a in arrays]
    for i, (x, w) in enumerate(zip(vectors, weights, strict=False)):
        if x.shape != w.shape[:1]:
            msg = (
                f"multipliers {i} must have the shape {w.shape[:1]}, one number for each output of "
                f"layer {i}, got {x.shape}"
            )
            raise ValueError(msg)
        if not np.all((x > 0) & (x < math.inf)):
            wrong = x[~((x > 0) & (x < math.inf))][0]
            msg = (
                f"multipliers {i} must be positive and finite, got {wrong}; where a solver left a "
                "zero, put a small number"
            )
            raise ValueError(msg)
    return vectors


def _listed(arrays: object, name: str) -> list[Array]:
    """Return the arrays as a list."""
    if not isinstance(arrays, Sequence) or isinstance(arrays, str):
        msg = f"{name} must be a list or tuple of arrays, got {type(arrays).__name__}"
        raise TypeError(msg)
    return list(arrays)


def _floats(x: Array, *, name: str) -> Array:
    """Return an array of real floating numbers that has values."""
    a = _validate.concrete_argument(x, name=name, instead=_INSTEAD)
    if not dtypes.is_floating(a.dtype) or dtypes.is_complex(a.dtype):
        msg = (
            f"{name} must hold real floating numbers, got dtype {a.dtype}; the theorem is about "
            "real activations, and integers must be converted first"
        )
        raise TypeError(msg)
    return a
