"""Values on their way to the host and back: the only crossing."""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np
import numpy.typing as npt

from gramnorm._arrays import libraries
from gramnorm._arrays.dtypes import bits, is_complex, name_of
from gramnorm._arrays.libraries import device_of, has_values, is_on_cpu, namespace
from gramnorm._arrays.types import Array, DType, HostFloats, HostInts


def host_array(x: Array) -> npt.NDArray[Any]:
    """Return `x` as a NumPy array of its type, not to be written to; a copy from elsewhere.

    bfloat16, unknown to NumPy, becomes float32.
    """
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x)
    if name_of(x.dtype) == "bfloat16":
        x = namespace(x).astype(x, namespace(x).float32)
    if compat.is_torch_array(x):
        return np.asarray(x.numpy(force=True))
    if compat.is_cupy_array(x):
        return np.asarray(x.get())
    if compat.is_jax_array(x):
        return np.asarray(x if is_whole(x) else copied(x))
    return np.from_dlpack(x)


def copied(x: Array) -> Array:
    """Return an array of JAX that is spread over devices as one of which each holds a copy."""
    if not compat.is_jax_array(x) or x.is_fully_replicated:
        return x
    import jax

    return jax.jit(lambda a: a, out_shardings=device_of(x))(x)


def at_home(x: Array) -> Array:
    """Return the array to compute with: of one in the host's memory what NumPy sees there.

    NumPy's calls cost less than PyTorch's, and JAX compiles every step of a search for each of the
    sizes that it meets.  `x` has values and no lazy flags; it is shared, not copied, except that
    bfloat16 becomes float32.  Other libraries and devices keep their arrays.
    """
    if not (compat.is_torch_array(x) or compat.is_jax_array(x)):
        return x
    here = libraries.HOST_WITH_NUMPY and is_on_cpu(x) and is_whole(x)
    return host_array(x) if here else x


def is_whole(x: Array) -> bool:
    """Say whether this process holds all of `x`; of JAX, others may hold parts."""
    return not compat.is_jax_array(x) or bool(x.is_fully_addressable)


def host_sparse(x: Array) -> Array:
    """Return a sparse matrix of CuPy as one of SciPy, and one of SciPy as it is."""
    return x.get() if compat.is_cupy_array(x.data) else x


def to_host(x: Array) -> HostFloats:
    """Copy `x` to the host as NumPy float64: the synchronisation point of every driver."""
    return host_array(x).astype(np.float64, copy=False)


def values_or_none(x: object) -> HostFloats | None:
    """Return the numbers of `x` on the host; None where it has none (traced, or no array)."""
    try:
        return to_host(x) if has_values(x) else None
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return None


def can_cross(x: Any) -> bool:
    """Say whether the library of `x` hands over values, by one entry of the array."""
    if isinstance(x, np.ndarray) or any(
        known(x) for known in (compat.is_torch_array, compat.is_cupy_array, compat.is_jax_array)
    ):
        return True
    try:
        host_array(x[tuple(slice(0, min(1, n)) for n in x.shape)])
    except (AttributeError, BufferError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    return True


def from_host(values: npt.NDArray[Any], *, dtype: DType, like: Array) -> Array:
    """Move host numbers, already rounded to `dtype`, to the library and device of `like`."""
    if type(like) is np.ndarray:
        return np.asarray(values, dtype=dtype)
    xp, device = namespace(like), device_of(like)
    if bits(dtype) == 64:
        return xp.asarray(np.asarray(values), dtype=dtype, device=device)
    # a device without float64 must not see one, not even on the way
    if is_complex(dtype):
        return xp.asarray(np.asarray(values, dtype=np.complex64), dtype=dtype, device=device)
    host = np.asarray(values, dtype=np.float32)
    return xp.astype(xp.asarray(host, dtype=xp.float32, device=device), dtype, copy=False)


def indices(values: HostInts, *, like: Array) -> Array:
    """Move host indices to the device of `like`; int32 because not every backend has int64."""
    xp = namespace(like)
    return xp.asarray(values.astype(np.int32), dtype=xp.int32, device=device_of(like))


def select(x: Array, chosen: HostInts) -> Array:
    """Return the chosen elements of the stack `x`; itself when they are all of it, in order."""
    xp = namespace(x)
    if np.array_equal(chosen, np.arange(x.shape[0])):
        return x
    return xp.take(x, indices(chosen, like=x), axis=0)
