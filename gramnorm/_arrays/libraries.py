"""The libraries themselves: which inputs are accepted, their namespaces, devices and values.

Kernels call functions of the array API standard in the namespace of their first array.  What the
standard does not say, and what differs between libraries, is decided in this folder.
"""

from __future__ import annotations

import contextlib
from typing import Any

import array_api_compat as compat
import numpy as np
import numpy.typing as npt

from gramnorm._arrays.autodiff import without_gradient
from gramnorm._arrays.types import Array, Device, Namespace

HOST_WITH_NUMPY = True
"""Whether NumPy computes with arrays in the host's memory, and with small ones of a device.

Tests switch it off, so that the CPU stands in for a device where no GPU is at hand.
"""


def namespace_of(x: object, *, name: str) -> Namespace:
    """Return the array namespace of `x`, or explain which arrays are accepted."""
    if type(x) is np.ndarray:
        return np
    if isinstance(x, np.ndarray) and type(x) is not np.ndarray and not isinstance(x, np.memmap):
        msg = (
            f"{name} must be a plain array, got {type(x).__name__}, whose products or missing "
            f"values mean something else; pass numpy.asarray({name}) after dealing with them"
        )
        raise TypeError(msg)
    if is_sparse(x):
        kind = type(x).__name__
        msg = f"{name} is sparse ({kind}), which this function does not take; pass {name}.toarray()"
        raise TypeError(msg)
    if compat.is_torch_array(x) and str(x.layout) != "torch.strided":
        msg = (
            f"{name} is a sparse tensor, which this function does not take; pass {name}.to_dense()"
        )
        raise TypeError(msg)
    if compat.is_dask_array(x):
        msg = (
            f"{name} is an array of Dask, which this function does not take; pass {name}.compute(). "
            "matrix_norm_bound, matrix_norm_bracket and gram_iteration take one, and compute nothing"
        )
        raise TypeError(msg)
    try:
        return namespace(x)
    except TypeError:
        if hasattr(x, "matvec"):
            msg = (
                f"{name} is an operator that is known by its products ({type(x).__name__}); "
                f"operator_norm_lower_bound({name}) bounds it from below. For an upper bound its "
                f"entries are needed, e.g. {name} @ numpy.eye({name}.shape[1])"
            )
            raise TypeError(msg) from None
        msg = (
            f"{name} must be an array of a library that follows the array API standard (NumPy, "
            f"CuPy, PyTorch, JAX, ...), got {type(x).__name__}; convert it first, e.g. "
            f"numpy.asarray({name})"
        )
        raise TypeError(msg) from None


BACKENDS = {"numpy": "numpy", "cupy": "cuda12 or cuda13", "torch": "torch", "jax": "jax"}
"""Libraries to which `placed` moves host arrays, and the extras that install them."""

CLUSTERS = "dask"
"""The extra that installs what work is shared with among machines."""


def placed(host: npt.NDArray[Any], *, backend: str, device: str | None) -> Array:
    """Return a host array as one of a library, on a device of it, with the same values."""
    make = {"numpy": _as_numpy, "cupy": _as_cupy, "torch": _as_torch, "jax": _as_jax}[backend]
    array = make(host, device)
    if str(array.dtype).removeprefix("torch.") != host.dtype.name:
        wide = ": set the environment variable JAX_ENABLE_X64=1" * (backend == "jax")
        msg = f"{backend} holds {host.dtype} values as {array.dtype}, which are others{wide}"
        raise ValueError(msg)
    return array


def _as_numpy(host: npt.NDArray[Any], device: str | None) -> Array:
    if device not in (None, "cpu"):
        msg = f"numpy has the device cpu only, got {device!r}"
        raise ValueError(msg)
    return host


def _as_torch(host: npt.NDArray[Any], device: str | None) -> Array:
    import torch

    return torch.tensor(
        host.copy(), device=device
    )  # a copy: torch warns of what it may not write to


def _as_cupy(host: npt.NDArray[Any], device: str | None) -> Array:
    import cupy

    with cupy.cuda.Device(_device_number(device, "cuda")):
        return cupy.asarray(host)


def _as_jax(host: npt.NDArray[Any], device: str | None) -> Array:
    import jax

    kind = None if device is None else device.partition(":")[0]
    return jax.device_put(host, jax.devices(kind)[_device_number(device, kind)])


def _device_number(device: str | None, kind: str | None) -> int:
    """Return n of "kind:n", 0 of "kind" or None."""
    found, _, number = (device or str(kind)).partition(":")
    if found != str(kind) or not (number or "0").isdecimal():
        msg = f"device must be {kind!r} or such as '{kind}:0', got {device!r}"
        raise ValueError(msg)
    return int(number or "0")


def namespace(x: Array) -> Namespace:
    """Return the namespace of an array that has been checked, or of a sparse matrix's entries.

    NumPy's own: array-api-compat's touches all that NumPy loads when it is asked for, for 0.1 s.
    """
    if isinstance(x, np.ndarray | np.generic):
        return np
    return namespace(x.data) if is_sparse(x) else compat.array_namespace(x)


def device_of(x: Array) -> Device:
    """Return the device of `x`; of an array of JAX that has several, all of them, for copies."""
    found = compat.device(x)
    return _copies(found) if compat.is_jax_array(x) else found


def _copies(device: Device) -> Device:
    """Return what places the whole of a small array on each of the devices of JAX's sharding."""
    import jax

    if not isinstance(device, jax.sharding.Sharding):
        return device
    if isinstance(device, jax.sharding.NamedSharding):
        mesh = device.mesh
    else:
        mesh = jax.sharding.Mesh(sorted(device.device_set, key=lambda d: d.id), ("all",))
    whole = jax.sharding.PartitionSpec()  # type: ignore[no-untyped-call]
    return jax.sharding.NamedSharding(mesh, whole)


def has_values(x: Array) -> bool:
    """Say whether the numbers of `x` can be looked at now: not traced or on the meta device."""
    if isinstance(x, np.ndarray):
        return True
    if compat.is_jax_array(x):
        import jax

        return not isinstance(x, jax.core.Tracer)
    if compat.is_torch_array(x):
        import torch

        if torch.compiler.is_compiling():
            return False
        return x.device.type != "meta" and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    return True


def plain(x: Array) -> Array:
    """Return the values of `x` as a constant, stored without lazy flags or swapped bytes."""
    if isinstance(x, np.ndarray):
        return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
    x = without_gradient(x)
    return x.resolve_conj().resolve_neg() if compat.is_torch_array(x) else x


def plain_arithmetic(x: Array) -> contextlib.AbstractContextManager[object]:
    """Compute in the types of the arrays, silently: what goes wrong shows in the bounds."""
    quiet = np.errstate(all="ignore")
    if isinstance(x, np.ndarray):
        return quiet
    stack = contextlib.ExitStack()
    stack.enter_context(quiet)
    if compat.is_torch_array(x) and x.device.type != "meta":
        import torch

        stack.enter_context(torch.autocast(x.device.type, enabled=False))
    if compat.is_jax_array(x):
        import jax

        # NaN of a matrix without a factor is an answer, and one axis more is no mistake here
        for meant in (
            jax.debug_nans(False),
            jax.debug_infs(False),
            jax.numpy_rank_promotion("allow"),
        ):
            stack.enter_context(meant)
    return stack


def is_sparse(x: object) -> bool:
    """Say whether `x` is a sparse array or matrix of SciPy or CuPy, without importing either."""
    home = type(x).__module__
    return home.startswith(("scipy.sparse", "cupyx.scipy.sparse")) and hasattr(x, "tocsr")


def is_on_cpu(x: Array) -> bool:
    """Say whether `x` lives on the host, where factorisations are cheap and values are at hand."""
    if isinstance(x, np.ndarray):
        return True
    xp = namespace(x)
    if compat.is_torch_array(x):
        return HOST_WITH_NUMPY and x.device.type == "cpu"
    if compat.is_jax_array(x):
        return HOST_WITH_NUMPY and all(d.platform == "cpu" for d in x.devices())
    return not compat.is_cupy_namespace(xp)


def has_linalg(x: Array) -> bool:
    """Say whether the library of `x` offers the linear algebra extension."""
    return hasattr(namespace(x), "linalg")
