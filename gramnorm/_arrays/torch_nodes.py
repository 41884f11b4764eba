"""Makes the functions of `compiling` known to `torch.compile`, when it first meets one of them."""

from collections.abc import Callable
from typing import Any

import torch

from gramnorm._arrays.compiling import FIXED, OPERATIONS, SEARCHES

for fixed in FIXED:
    torch.compiler.allow_in_graph(fixed)  # type: ignore[no-untyped-call]

UNCOMPILED: dict[str, Callable[..., Any]] = {
    name: torch.compiler.disable(search)  # type: ignore[no-untyped-call]
    for name, search in SEARCHES.items()
}

_CALLS: dict[str, tuple[str, tuple[object, ...]]] = {}
"""Functions and their options by text: an operation takes tensors and text, no other objects."""


def called(name: str, arrays: list[torch.Tensor], options: tuple[object, ...]) -> Any:
    """Enter the call of a function in the graph that is being compiled."""
    text = f"{name}{options!r}"
    _CALLS[text] = name, options
    return _run(arrays, text)


@torch.library.custom_op("gramnorm::run", mutates_args=())
def _run(arrays: list[torch.Tensor], call: str) -> list[torch.Tensor]:
    name, options = _CALLS[call]
    # what an operation returns may be none of what it was given
    return [x.clone() for x in OPERATIONS[name](arrays, *options)]


@_run.register_fake
def _(arrays: list[torch.Tensor], call: str) -> list[torch.Tensor]:
    name, options = _CALLS[call]
    return [x.clone() for x in OPERATIONS[name](arrays, *options)]
