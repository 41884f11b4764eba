"""From bounds of parts to a bound of the whole: products, sums and block operators.

Norms are submultiplicative and subadditive, and a block operator has at most the norm of the matrix
of its blocks' norms (docs/theory.md, Theorem 17):

    ||A B|| <= ||A|| ||B||,    ||A + B|| <= ||A|| + ||B||,    ||[A_ij]|| <= || [ ||A_ij|| ]_ij ||.

All three right-hand sides grow with each norm in them, so upper bounds may stand for the norms;
lower bounds may not, since two operators can cancel.  The same holds for the Lipschitz constants of
maps that are not linear.  Each result is formed exactly and rounded up once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import autodiff, compiling, crossing, dtypes, libraries
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._results import NormBracket, result_dtype, upper_array
from gramnorm._rigour.fractions import float_above, largest, length_above, product_above, sum_above
from gramnorm._rigour.model import round_outward

_INSTEAD = "ordinary products and sums, which carry no rounding margin"
_DEEPEST = 100  # forms within forms: more is a mistake or an attack
_FORMS = (
    '{"chain": [...]}, {"sum": [...]}, {"residual": ...}, '
    '{"concatenate": [...]}, {"parallel": [...]}'
)

Norm = float | Array | NormBracket


@dataclasses.dataclass(frozen=True)
class _Rule:
    """A function of several norms, never below the exact one, and its derivative by one of them."""

    value: Callable[[Iterable[float]], float]
    derivative: Callable[[Sequence[float], int, float], float]
    """Of the norms, the position of one of them, and the value of the rule."""


_PRODUCT = _Rule(product_above, lambda norms, i, _: math.prod([*norms[:i], *norms[i + 1 :]]))
_SUM = _Rule(sum_above, lambda _norms, _i, _value: 1.0)
_LENGTH = _Rule(length_above, lambda norms, i, value: norms[i] / value if value else 0.0)
_LARGEST = _Rule(largest, lambda norms, i, _: float(norms.index(max(norms)) == i))


@compiling.graph_break
def product_bound(*norms: Norm) -> Any:
    """Return an upper bound on the norm of a composition, from upper bounds of its parts.

    Parameters
    ----------
    *norms : float, array or NormBracket
        Upper bounds on the norms (or Lipschitz constants) of the maps of a chain; the `upper` of a
        bracket is taken. Arrays are floating, of one library, and broadcast. A lower bound here
        makes the result no bound at all.

    Returns
    -------
    float or array
        The product, rounded up: a float if all are numbers, else an array of the widest type among
        the arrays. 1 for no norm at all, NaN where a norm is NaN, else inf where one is inf, beside
        a zero as well.

    Raises
    ------
    TypeError
        If a norm is neither a number nor a floating array, or has no values (inside ``jax.jit``).
    ValueError
        If a norm is negative.

    See Also
    --------
    sum_bound, residual_bound, block_norm_bound : The other ways to put operators together.
    network_bound : All of them at once, from a description.

    Notes
    -----
    **Guarantee.** Not below the exact product of the given numbers. Hence an upper bound on the
    norm of the composition if each number is one on its part (theory page, Theorem 17).
    Differentiable in PyTorch and JAX.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> a, b = np.asarray([[2.0, 0.0], [0.0, 1.0]]), np.asarray([[1.0, 0.0], [0.0, 3.0]])
    >>> bound = gn.product_bound(gn.matrix_norm_bound(a), gn.matrix_norm_bound(b))
    >>> bool(gn.matrix_norm_bracket(b @ a).lower <= 3.0 <= 6.0 <= bound)
    True
    >>> gn.product_bound(1e-200, 1e-200) > 1e-200 * 1e-200  # which is zero in floating point
    True
    """
    return _combine(norms, _PRODUCT)


@compiling.graph_break
def sum_bound(*norms: Norm) -> Any:
    """Return an upper bound on the norm of a sum of operators, from upper bounds of its terms.

    Parameters
    ----------
    *norms : float, array or NormBracket
        Upper bounds on the norms (or Lipschitz constants) of the terms, as in `product_bound`.

    Returns
    -------
    float or array
        The sum, rounded up; 0 for no norm at all. Types and special values as in `product_bound`.

    Raises
    ------
    TypeError, ValueError
        As in `product_bound`.

    See Also
    --------
    residual_bound : For the identity plus an operator.

    Notes
    -----
    **Guarantee.** Not below the exact sum of the given numbers. Differentiable in PyTorch and JAX.

    Examples
    --------
    >>> import gramnorm as gn
    >>> gn.sum_bound(1.0, 2.5), gn.sum_bound(1.0, 1e-30) > 1.0
    (3.5, True)
    """
    return _combine(norms, _SUM)


@compiling.graph_break
def residual_bound(norm: Norm) -> Any:
    """Return an upper bound on the norm of the identity plus an operator: one more than its own.

    Parameters
    ----------
    norm : float, array or NormBracket
        Upper bound on the norm (or Lipschitz constant) of the residual branch, as in
        `product_bound`.

    Returns
    -------
    float or array
        ``1 + norm``, rounded up. Types and special values as in `product_bound`.

    Raises
    ------
    TypeError, ValueError
        As in `product_bound`.

    Notes
    -----
    **Guarantee.** Not below the exact sum. Differentiable in PyTorch and JAX.

    Examples
    --------
    >>> import gramnorm as gn
    >>> gn.residual_bound(0.5)
    1.5
    """
    return _combine((1.0, norm), _SUM)


@compiling.graph_break
def block_norm_bound(norms: Array, /) -> Array:
    """Return an upper bound on the norm of a block operator, from upper bounds of its blocks.

    Parameters
    ----------
    norms : array, shape (..., p, q)
        Upper bounds on the norms of the blocks: entry (i, j) is that of the block from input part j
        to output part i, 0 where there is none.

    Returns
    -------
    array, shape (...)
        Upper bound on the norm of the matrix `norms`, by `matrix_norm_bound`, which sets type and
        special values.

    Raises
    ------
    TypeError
        If `norms` is not an array of real numbers, or has no values (inside ``jax.jit``).
    ValueError
        If `norms` has fewer than two axes or a negative entry.

    See Also
    --------
    matrix_norm_bound : The bound that is applied to the matrix of norms.

    Notes
    -----
    **Guarantee.** Not below the norm of `norms`, rounding included, and so not below that of any
    block operator whose blocks have at most these norms (theory page, Theorem 17). Differentiable
    in PyTorch and JAX.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> bound = gn.block_norm_bound(np.asarray([[1.0, 0.0], [1.0, 2.0]]))
    >>> bool(2.288245611270737 <= bound < 2.2883)
    True
    """
    a = _validate.array_argument(norms, name="norms")
    if dtypes.is_complex(a.dtype):
        msg = f"norms must hold real numbers, got dtype {a.dtype}; norms of complex blocks are real"
        raise TypeError(msg)
    _validate.matrices(a, name="norms")
    if libraries.has_values(a) and bool(np.any(crossing.to_host(libraries.plain(a)) < 0)):
        raise ValueError(_negative("norms", "a negative entry"))
    return matrix_norm_bound(norms)


@compiling.graph_break
def network_bound(graph: Any, norms: Mapping[str, Norm], /, *, ignore: Collection[str] = ()) -> Any:
    """Return an upper bound on the Lipschitz constant of a network described by nested data.

    Parameters
    ----------
    graph : str, float or dict
        A name stands for a layer and is looked up in `norms`; a number is a known Lipschitz
        constant. A dictionary with one key puts graphs together: ``{"chain": [...]}`` one after the
        other, ``{"sum": [...]}`` added up, ``{"residual": g}`` added to the input,
        ``{"concatenate": [...]}`` branches of the *same* input stacked, ``{"parallel": [...]}``
        branches of *different parts* of the input stacked. All of it is JSON.
    norms : mapping of str to float, array or NormBracket
        Upper bounds on the norms of the layers, as in `product_bound`. A layer may occur more than
        once.
    ignore : collection of str, optional
        Names in `norms` that the graph need not use.

    Returns
    -------
    float or array
        The bound, rounded up. Types and special values as in `product_bound`.

    Raises
    ------
    TypeError, ValueError
        As in `product_bound`; also if the graph is of another form, names an unknown layer, leaves
        out one that `ignore` does not list, or is nested more than 100 deep.

    See Also
    --------
    product_bound, sum_bound, residual_bound : The single steps.

    Notes
    -----
    **Guarantee.** An upper bound on the Lipschitz constant, in the Euclidean norm, of every network
    of that form whose layers have at most these norms and whose other functions have at most the
    constants stated; functions that the graph does not mention must be 1-Lipschitz. Chains
    multiply, sums add, a residual is one more than its branch; concatenated branches give the root
    of the sum of squares, and parallel ones the largest (theory page, Theorem 17).

    Examples
    --------
    >>> import gramnorm as gn
    >>> block = {"residual": {"chain": ["conv1", "conv2"]}}
    >>> norms = {"stem": 2.0, "conv1": 0.5, "conv2": 1.0}
    >>> gn.network_bound({"chain": ["stem", block, block, 0.25]}, norms)
    1.125
    """
    used: set[str] = set()
    bound = _evaluate(graph, norms, used, 0)
    if unused := [name for name in norms if name not in used and name not in ignore]:
        msg = (
            f"graph leaves out {', '.join(map(repr, unused))}: a constant without them is not that "
            "of a network that has them; use them, or list them in ignore if they are no part of it"
        )
        raise ValueError(msg)
    return _combine((bound,), _PRODUCT)


def _evaluate(graph: Any, norms: Mapping[str, Norm], used: set[str], depth: int) -> Any:
    """Return the bound of one form, and note the names in it."""
    if depth > _DEEPEST:
        msg = f"graph must not be nested more than {_DEEPEST} deep"
        raise ValueError(msg)
    if isinstance(graph, str):
        if graph not in norms:
            msg = (
                f"graph names {graph!r}, for which there is no norm; known are "
                f"{', '.join(map(repr, norms))}"
            )
            raise ValueError(msg)
        used.add(graph)
        return norms[graph]
    if isinstance(graph, int | float):
        return _number(graph, name="a number in graph")
    if not isinstance(graph, Mapping):
        msg = f"graph must be a name, a number or one of {_FORMS}, got {type(graph).__name__}"
        raise TypeError(msg)
    form, parts = next(iter(graph.items())) if len(graph) == 1 else (None, None)
    if form == "residual":
        return residual_bound(_evaluate(parts, norms, used, depth + 1))
    rules = {"chain": _PRODUCT, "sum": _SUM, "concatenate": _LENGTH, "parallel": _LARGEST}
    if form not in rules:
        msg = f"a dictionary in graph must have one key, as in {_FORMS}, got the keys {list(graph)}"
        raise ValueError(msg)
    if not isinstance(parts, list | tuple) or not parts:
        msg = f"{form!r} in graph must hold a list of one or more graphs, got {parts!r}"
        raise ValueError(msg)
    return _combine([_evaluate(part, norms, used, depth + 1) for part in parts], rules[form])


def _combine(norms: Sequence[Norm], rule: _Rule) -> Any:
    """Apply a rule to numbers and arrays."""
    numbers: list[float] = []
    arrays: list[Array] = []
    for position, norm in enumerate(norms):
        name = f"norm {position}"
        value = norm.upper if isinstance(norm, NormBracket) else norm
        if isinstance(value, int | float):
            numbers.append(_number(value, name=name))
        else:
            arrays.append(_validate.real_floating(value, name=name))
    return rule.value(numbers) if not arrays else _combined(numbers, arrays, rule)


def _combined(numbers: list[float], arrays: list[Array], rule: _Rule) -> Array:
    """Apply a rule to arrays of one library, element by element, the numbers beside each."""
    spaces = sorted({libraries.namespace(a).__name__ for a in arrays})
    if len(spaces) > 1:
        msg = f"norms must be arrays of one library, got {', '.join(spaces)}; convert them first"
        raise TypeError(msg)
    xp = libraries.namespace(arrays[0])
    dtype = max(map(result_dtype, arrays), key=dtypes.bits)  # it holds the values of all
    alike = xp.broadcast_arrays(*(xp.astype(a, dtype, copy=False) for a in arrays))
    stacked = xp.stack(alike, axis=-1)

    def value_of(x: Array) -> Array:
        found = np.asarray([rule.value([*numbers, *row]) for row in _rows(x)], dtype=np.float64)
        return _upper_bounds(found.reshape(x.shape[:-1]), x)

    def gradient_of(x: Array, _value: Array) -> Array:
        slopes = []
        for row in _rows(x):
            every = [*row, *numbers]
            value = rule.value(every)
            slopes.append([rule.derivative(every, i, value) for i in range(len(row))])
        host = np.asarray(slopes, dtype=np.float64).reshape(x.shape)
        return crossing.from_host(host, dtype=dtype, like=x)

    if autodiff.is_differentiated(stacked):
        return autodiff.with_gradient(value_of, gradient_of, stacked)
    return value_of(stacked)


def _number(value: float, *, name: str) -> float:
    """Return a number that can be an upper bound as a float; a long integer is rounded up."""
    if isinstance(value, bool):
        msg = f"{name} must be a number or an array, got {value!r}"
        raise TypeError(msg)
    if value < 0:
        raise ValueError(_negative(name, repr(value)))
    return float_above(Fraction(value)) if isinstance(value, int) else float(value)


def _rows(x: Array) -> list[list[float]]:
    """Return what stands along the last axis of `x`, for all other indices in order, as floats."""
    a = _validate.concrete_argument(x, name="a norm", instead=_INSTEAD)
    host = crossing.to_host(a)
    if bool(np.any(host < 0)):
        raise ValueError(_negative("a norm", "a negative entry"))
    found: list[list[float]] = host.reshape(-1, host.shape[-1]).tolist()
    return found


def _upper_bounds(host: HostFloats, x: Array) -> Array:
    """Return upper bounds as an array beside `x`, rounded up to its type."""
    _, rounded = round_outward(host, host, dtype=x.dtype)
    return upper_array(rounded, dtype=x.dtype, like=x)


def _negative(name: str, got: str) -> str:
    return f"{name} must not be negative, as no upper bound on a norm is, got {got}"
