"""Arrays that are spread over tasks, processes or machines: of Dask, and DTensors of PyTorch.

A Dask array is a promise of chunks.  What is asked of it becomes a task for each chunk and a tree
of sums, fixed by the chunks: whoever computes it, and in whatever order, the bits are the same.
A DTensor has a part in each process, and all of them call the same function at the same time.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import array_api_compat as compat
import numpy as np

from gramnorm._arrays import crossing, libraries, limits
from gramnorm._arrays.autodiff import is_differentiated
from gramnorm._arrays.dtypes import is_complex
from gramnorm._arrays.libraries import has_values
from gramnorm._arrays.types import Array, HostFloats

_Function = TypeVar("_Function", bound=Callable[..., Any])


def is_dask(x: object) -> bool:
    """Say whether `x` is an array of Dask, without importing it."""
    return compat.is_dask_array(x)


def is_dtensor(x: object) -> bool:
    """Say whether `x` is a tensor of which each process holds a part."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(x, distributed.DTensor)


def is_sharded(x: Any) -> bool:
    """Say whether devices of JAX hold different parts of `x`, which has values."""
    return compat.is_jax_array(x) and has_values(x) and not x.is_fully_replicated


def gathers(function: _Function) -> _Function:
    """Let a function have its first argument in one piece."""

    @functools.wraps(function)
    def call(x: Any, /, *args: Any, **options: Any) -> Any:
        return function(whole(x), *args, **options)

    return cast(_Function, call)


def whole(x: Any) -> Any:
    """Return `x` in one piece: an array of Dask computed, others with a copy in each place.

    A DTensor is gathered with its gradient.
    """
    if is_dask(x):
        return x.compute()
    if is_dtensor(x):
        return x.full_tensor()
    return crossing.copied(x) if is_sharded(x) else x


def is_left_in_parts(x: Any) -> bool:
    """Say whether `x` is a promise, or a matrix too large for a copy in each place."""
    if is_dask(x):
        return True
    if not (is_dtensor(x) or is_sharded(x)) or x.ndim != 2:
        return False
    is_tall = min(x.shape) <= limits.GRAM_COLUMNS
    # the gradient is as large as the matrix: nothing would be saved
    large = math.prod(x.shape) * x.dtype.itemsize > limits.GATHERED_BYTES
    return large and is_tall and not is_differentiated(x)


# Dask


def chunk_like(x: Array) -> Array:
    """Return an array without elements of the library whose arrays are the chunks of `x`."""
    return x._meta


def mapped(
    function: Callable[[Array], Array], x: Array, *, lead: int, width: int, like: Array
) -> Array:
    """Return the numbers, like `like`, that `function` finds of each chunk of `x`.

    It takes a chunk to one in which `width` numbers stand for all axes but the `lead` first, of
    which the chunk holds the whole.
    """
    return x.map_blocks(
        function,
        drop_axis=list(range(lead, x.ndim)),
        new_axis=[lead],
        chunks=(*x.chunks[:lead], (width,)),
        meta=_without_elements(like, lead + 1),
    )


def mapped_blocks(
    function: Callable[[Array], Array], x: Array, *, width: int, like: Array
) -> Array:
    """Return the numbers of `mapped` for each block of the matrices, side by side in one chunk.

    The shape is (..., rows of blocks, columns of blocks, width).
    """
    rows, columns = x.numblocks[-2:]
    found = x.map_blocks(
        functools.partial(_of_block, function),
        new_axis=[x.ndim],
        chunks=(*x.chunks[:-2], (1,) * rows, (1,) * columns, (width,)),
        meta=_without_elements(like, x.ndim + 1),
    )
    return found.rechunk({x.ndim - 2: rows, x.ndim - 1: columns})


def _of_block(function: Callable[[Array], Array], chunk: Array) -> Array:
    return function(chunk)[..., None, None, :]


def folded(function: Callable[[Array], Array], join: Callable[[Any, Any], Any], x: Array) -> Array:
    """Return what `join` makes of the objects that `function` finds of chunks one below the other.

    `function` takes a chunk (..., m, n) to objects (..., 1, 1); pairs are joined as a binary tree.
    """
    import dask.array as da

    found = x.map_blocks(
        function,
        chunks=(*x.chunks[:-2], (1,) * x.numblocks[-2], (1,)),
        meta=np.empty((0,) * x.ndim, dtype=object),
    )
    joined = functools.partial(_joined, join)
    return da.reduction(  # type: ignore[no-untyped-call]
        found,
        chunk=joined,
        combine=joined,
        aggregate=joined,
        axis=x.ndim - 2,
        keepdims=True,
        split_every=2,
        dtype=object,
        meta=np.empty((0,) * x.ndim, dtype=object),
    )


def _joined(
    join: Callable[[Any, Any], Any], parts: Array, *, axis: tuple[int], keepdims: bool
) -> Array:
    """Return the objects along an axis, joined one after the other."""
    return np.frompyfunc(join, 2, 1).reduce(parts, axis=axis, keepdims=keepdims)


def _without_elements(like: Array, ndim: int) -> Array:
    xp = libraries.namespace(like)
    return xp.empty((0,) * ndim, dtype=like.dtype, device=libraries.device_of(like))


# DTensors


def own_part(x: Array, *, axis: int) -> Array:
    """Return what this process has of `x` once it is cut along one axis only: each entry once."""
    from torch.distributed.tensor import Shard

    cut = x.detach().redistribute(placements=[Shard(axis)] * x.device_mesh.ndim)
    return cut.to_local()


def of_every_process(numbers: Sequence[float], *, like: Array) -> HostFloats:
    """Return the numbers of all processes that hold parts of `like`, a row for each."""
    import torch
    from torch.distributed.tensor import DTensor, Shard

    mesh = like.device_mesh
    own = torch.tensor([list(numbers)], dtype=torch.float64, device=like.to_local().device)
    rows = DTensor.from_local(own, mesh, [Shard(0)] * mesh.ndim)
    return np.asarray(crossing.host_array(rows.full_tensor()))


def added_up(x: Array, *, like: Array) -> Array:
    """Return the sum of the tensors of all processes that hold parts of `like`, in each of them."""
    import torch
    from torch.distributed.tensor import DTensor, Partial

    mesh = like.device_mesh
    parts = torch.view_as_real(x) if is_complex(x.dtype) else x
    total = DTensor.from_local(parts, mesh, [Partial()] * mesh.ndim).full_tensor()
    return torch.view_as_complex(total) if is_complex(x.dtype) else total
