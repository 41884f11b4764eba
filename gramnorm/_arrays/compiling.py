"""The package inside `torch.compile`: calls that the compiler's tracer need not follow.

Which library an array is of, and phases that NumPy computes from shapes, are Python that tracing
gains nothing from.  A fixed number of steps becomes one node of the graph, which is run with
tensors that have shapes and no values; a search, which looks at values, breaks the graph and runs.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])

FIXED: list[Callable[..., object]] = []
"""Functions of tensors and plain numbers that look at no value."""

SEARCHES: dict[str, Callable[..., object]] = {}
"""Functions that look at values, by their full names."""


def one_node(function: _Function) -> _Function:
    """Let `torch.compile` enter a call of `function` in its graph as it is."""
    FIXED.append(function)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if _is_compiled():
            import gramnorm._arrays.torch_nodes  # noqa: F401 - the tracer runs imports as they are
        return function(*args, **options)

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
