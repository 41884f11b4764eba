"""Makes the functions of `compiling` known to `torch.compile`, when it first meets one of them."""

from collections.abc import Callable
from typing import Any

import torch

from gramnorm._arrays.compiling import FIXED, SEARCHES

for fixed in FIXED:
    torch.compiler.allow_in_graph(fixed)  # type: ignore[no-untyped-call]

UNCOMPILED: dict[str, Callable[..., Any]] = {
    name: torch.compiler.disable(search)  # type: ignore[no-untyped-call]
    for name, search in SEARCHES.items()
}
