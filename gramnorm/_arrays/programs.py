"""Functions that a library compiles as a whole, once for each shape of their arguments.

JAX compiles what it meets, operation by operation or a function at a time.  So its arrays keep
their shapes where values decide how many matrices are left, and all that depends on values comes as
an array: new values of a known shape then compile nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import array_api_compat as compat
import numpy as np

from gramnorm._arrays import limits
from gramnorm._arrays.types import Array

Result = TypeVar("Result")


def compiles(x: Array) -> bool:
    """Say whether the library of `x` compiles for each shape, so that shapes are to stay."""
    return bool(compat.is_jax_array(x))


def batch(entries: int, *, like: Array) -> int:
    """Return how many matrices of so many entries are computed at a time, always as many if it compiles."""
    if not compiles(like):
        return max(1, limits.SYMBOL_BYTES // (16 * entries))
    few, most = limits.PADDED_BATCH
    return max(1, min(few, most // entries))


def compiled(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let JAX compile a function of arrays as a whole; other libraries call it as it is.

    A compiler sums in any order, over two axes at once where the function sums over one and then
    the other (XLA does), and computes again what is used twice.  So the stages of a sum, and a
    number and what it was computed for, belong into functions of their own.
    """

    @functools.wraps(function)
    def call(*arrays: Array) -> Result:
        if type(arrays[0]) is not np.ndarray and compiles(arrays[0]):
            found: Result = _jitted(function)(*arrays)
            return found
        return function(*arrays)

    return call


def with_options(
    function: Callable[..., Result], arrays: list[Array], options: tuple[object, ...]
) -> Result:
    """Return ``function(arrays, *options)``, which JAX compiles once for shapes and options."""
    if compiles(arrays[0]):
        found: Result = _jitted(function, len(options))(arrays, *options)
        return found
    return function(arrays, *options)


@functools.cache
def _jitted(function: Callable[..., Any], options: int = 0) -> Callable[..., Any]:
    import jax

    return jax.jit(function, static_argnums=range(1, 1 + options))
