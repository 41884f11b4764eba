"""What is computed on a device while the values of a search are NumPy's on the host.

Kernels are small, and what a search decides on is of a size that its values determine: both stay on
the host.  Batches of large blocks move to the device of the caller's array, where they are worth
it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import numpy as np

from gramnorm._arrays import libraries, limits, probes
from gramnorm._arrays.crossing import from_host
from gramnorm._arrays.dtypes import bits, has_float64, name_of
from gramnorm._arrays.libraries import is_on_cpu, namespace
from gramnorm._arrays.programs import compiles
from gramnorm._arrays.types import Array

_neighbour: contextvars.ContextVar[Array | None] = contextvars.ContextVar("neighbour", default=None)


@contextlib.contextmanager
def beside(x: Array) -> Iterator[None]:
    """Let batches move to the device of `x`, if it has one: an array in the host's memory has not."""
    at_home = isinstance(x, np.ndarray) or (libraries.HOST_WITH_NUMPY and is_on_cpu(x))
    token = _neighbour.set(None if at_home else x)
    try:
        yield
    finally:
        _neighbour.reset(token)


@contextlib.contextmanager
def no_new_shape(*, rare: bool) -> Iterator[None]:
    """Keep on the host what is of a `rare` shape, if a library would compile for it."""
    like = _neighbour.get()
    token = _neighbour.set(None if rare and like is not None and compiles(like) else like)
    try:
        yield
    finally:
        _neighbour.reset(token)


def is_small(operations: float) -> bool:
    """Say whether NumPy does so many operations in less time than a device is asked."""
    return libraries.HOST_WITH_NUMPY and operations < limits.DEVICE_OPERATIONS


def moved_if_worth(x: Array, operations: float) -> Array:
    """Return a host array as one beside the caller's, if it is used for so many operations at a time.

    Itself where the device does not compute in its precision.
    """
    like = _neighbour.get()
    if like is None or not isinstance(x, np.ndarray) or is_small(operations):
        return x
    wide = bits(x.dtype) == 64
    if not (has_float64(like) if wide else probes.float32_products_are_exact(like)):
        return x
    return from_host(x, dtype=getattr(namespace(like), name_of(x.dtype)), like=like)
