"""The package inside `torch.compile`: calls that the compiler's tracer need not follow.

Which library an array is of, and phases that NumPy computes from shapes, are Python that tracing
gains nothing from.  A fixed number of steps becomes one node of the graph, which is run with
tensors that have shapes and no values; a search, which looks at values, breaks the graph and runs.
What takes hundreds of operations on small arrays, which a compiler would work on for minutes, can
be one operation that it knows nothing of.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

from gramnorm._arrays import programs

_Function = TypeVar("_Function", bound=Callable[..., Any])

FIXED: list[Callable[..., object]] = []
"""Functions of tensors and plain numbers that look at no value."""

SEARCHES: dict[str, Callable[..., object]] = {}
"""Functions that look at values, by their full names."""

OPERATIONS: dict[str, Callable[..., list[Any]]] = {}
"""Functions that compiled graphs call as they are, by their full names."""


def one_node(function: _Function) -> _Function:
    """Let `torch.compile` enter a call of `function` in its graph as it is."""
    FIXED.append(function)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if _is_compiled():
            import gramnorm._arrays.torch_nodes  # noqa: F401 - the tracer runs imports as they are
        return function(*args, **options)

    return cast(_Function, call)


def one_operation(function: _Function) -> _Function:
    """Let `torch.compile` call `function` from its graph, not look into it; let JAX compile it whole.

    It takes a list of arrays, which nothing differentiates, and options that can be hashed and that
    their `repr` tells apart, and returns a list of arrays.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    OPERATIONS[name] = function

    @functools.wraps(function)
    def call(arrays: list[Any], *options: object) -> list[Any]:
        if _is_compiled():
            from gramnorm._arrays.torch_nodes import called

            entered: list[Any] = called(name, arrays, options)
            return entered
        return programs.with_options(function, arrays, options)

    return cast(_Function, call)


def graph_break(function: _Function) -> _Function:
    """Let `torch.compile` leave its graph for a call of `function`."""
    # a name, as PyTorch takes functions with the same code, of one decorator, for the same function
    name = f"{function.__module__}.{function.__qualname__}"
    SEARCHES[name] = function

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if _is_compiled():
            from gramnorm._arrays.torch_nodes import UNCOMPILED

            return UNCOMPILED[name](*args, **options)
        return function(*args, **options)

    return cast(_Function, call)


def _is_compiled() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()
