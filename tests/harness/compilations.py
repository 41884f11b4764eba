"""What JAX compiles, and what crosses from a device to the host, while a function runs."""

import contextlib
import importlib
import logging
from collections.abc import Iterator
from unittest import mock

import numpy as np

from gramnorm._arrays import crossing


@contextlib.contextmanager
def compiled_programs() -> Iterator[list[str]]:
    """Yield a list that JAX's log fills with a line for each program that it compiles."""
    jax = importlib.import_module("jax")
    found: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("jax")
    log.addHandler(listener)
    with jax.log_compiles(True), mock.patch.object(log, "propagate", False):
        yield found
    log.removeHandler(listener)
    found[:] = [line.partition(" with ")[0] for line in found if line.startswith("Compiling ")]


@contextlib.contextmanager
def crossings() -> Iterator[list[tuple[int, ...]]]:
    """Yield a list of the shapes of the arrays that come to the host."""
    found: list[tuple[int, ...]] = []
    host_array = crossing.host_array

    def counted(x):
        if not isinstance(x, np.ndarray | np.generic):
            found.append(tuple(x.shape))
        return host_array(x)

    with mock.patch.object(crossing, "host_array", counted):
        yield found
