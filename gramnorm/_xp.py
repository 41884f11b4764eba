"""The array boundary: the only module that knows array libraries by name.

Kernels receive a namespace `xp` and call functions of the array API standard.  What the standard
does not say, and what differs between libraries, is decided here: which inputs are accepted,
where float64 exists, how a value reaches the host, whether subnormal numbers survive, and whether
a float32 product is a float32 product.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import array_api_compat as compat
import numpy as np
import numpy.typing as npt

from gramnorm._typing import (
    Array,
    Device,
    DType,
    HostBools,
    HostFloats,
    HostInts,
    Namespace,
)


def namespace_of(x: object, *, name: str) -> Namespace:
    """Return the array namespace of `x`, or explain which arrays are accepted."""
    if isinstance(x, np.ndarray) and type(x) is not np.ndarray and not isinstance(x, np.memmap):
        msg = (
            f"{name} must be a plain array, got {type(x).__name__}, whose products or missing values "
            f"mean something else; pass numpy.asarray({name}) after dealing with them"
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
    try:
        return compat.array_namespace(x)
    except TypeError:
        msg = (
            f"{name} must be an array of a library that follows the array API standard (NumPy, CuPy, "
            f"PyTorch, JAX, ...), got {type(x).__name__}; convert it first, e.g. numpy.asarray({name})"
        )
        raise TypeError(msg) from None


BACKENDS = {"numpy": "numpy", "cupy": "cuda12 or cuda13", "torch": "torch", "jax": "jax"}
"""Libraries to which `placed` moves host arrays, and the extras that install them."""


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


def numpy_namespace() -> Namespace:
    """Return the namespace of host arrays."""
    return compat.array_namespace(np.empty(0))


def device_of(x: Array) -> Device:
    """Return the device of `x`."""
    return compat.device(x)


def has_values(x: Array) -> bool:
    """Say whether `x` holds numbers that can be looked at now (not traced or compiled, not on the meta device)."""
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
    """Return the values of `x`, as a constant for differentiation, stored without lazy flags or swapped bytes."""
    x = without_gradient(x)
    if compat.is_torch_array(x):
        return x.resolve_conj().resolve_neg()
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        return x.astype(x.dtype.newbyteorder("="))
    return x


def plain_arithmetic(x: Array) -> contextlib.AbstractContextManager[object]:
    """Compute in the types of the arrays, and report nothing: what goes wrong shows in the bounds."""
    quiet = np.errstate(all="ignore")
    if not compat.is_torch_array(x) or x.device.type == "meta":
        return quiet
    import torch

    stack = contextlib.ExitStack()
    stack.enter_context(torch.autocast(x.device.type, enabled=False))
    stack.enter_context(quiet)
    return stack


def without_gradient(x: Array) -> Array:
    """Return the values of `x` as a constant for automatic differentiation."""
    if compat.is_torch_array(x):
        return x.detach()
    if compat.is_jax_array(x):
        import jax

        return jax.lax.stop_gradient(x)
    return x


def is_differentiated(x: object) -> bool:
    """Say whether automatic differentiation follows `x` (or jit traces it)."""
    if compat.is_jax_array(x):
        import jax

        return isinstance(x, jax.core.Tracer)
    if compat.is_torch_array(x):
        import torch

        return bool(x.requires_grad) and torch.is_grad_enabled()
    return False


def with_gradient(
    value: Callable[[Array], Array], gradient: Callable[[Array, Array], Array], x: Array
) -> Array:
    """Return ``value(x)``, whose derivative for automatic differentiation is ``gradient(x, value)``.

    The gradient G of each of a stack of real values is that of the pairing Re tr G^H dX. It is a constant:
    differentiating twice is an error in torch, and not zero.
    """
    if compat.is_jax_array(x):
        return _jax_with_gradient(value, gradient)(x)
    import torch

    class Value(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Array) -> Array:
            ctx.found = value(a.detach())
            ctx.save_for_backward(a)
            return ctx.found.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, cotangent: Array) -> Array:
            (a,) = ctx.saved_tensors
            result = gradient(a.detach(), ctx.found)
            return (_spread(cotangent, result) * result).to(a.dtype)  # of half precision

    return Value.apply(x)  # type: ignore[no-untyped-call]


def _jax_with_gradient(
    value: Callable[[Array], Array], gradient: Callable[[Array, Array], Array]
) -> Callable[[Array], Array]:
    import jax

    def forward(a: Array) -> tuple[Array, tuple[Array, Array]]:
        found = value(a)
        return found, (a, found)

    def backward(kept: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
        result = gradient(*kept)
        slope = _spread(cotangent, result) * jax.numpy.conj(result)  # JAX pairs without conjugates
        return (slope.astype(kept[0].dtype),)

    function = jax.custom_vjp(value)
    function.defvjp(forward, backward)
    return function


def _spread(cotangent: Array, gradient: Array) -> Array:
    """Return one number per value as an array that multiplies the gradients."""
    extra = gradient.ndim - cotangent.ndim
    return cotangent.reshape((*cotangent.shape, *(1 for _ in range(extra))))


def host_array(x: Array) -> npt.NDArray[Any]:
    """Return `x` as a NumPy array of its own type, not to be written to; a copy if it lives elsewhere."""
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x)
    if compat.is_torch_array(x):
        # NumPy has no bfloat16
        return np.asarray((x.float() if x.dtype.itemsize == 2 else x).numpy(force=True))
    if compat.is_cupy_array(x):
        return np.asarray(x.get())
    return np.asarray(x) if compat.is_jax_array(x) else np.from_dlpack(x)


def to_host(x: Array) -> HostFloats:
    """Copy `x` to the host as NumPy float64: the synchronisation point of every driver."""
    return host_array(x).astype(np.float64, copy=False)


def values_or_none(x: object) -> HostFloats | None:
    """Return the numbers of `x` on the host, or None where it has none to look at (traced, or no array)."""
    try:
        return to_host(x) if has_values(x) else None
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return None


def from_host(values: npt.NDArray[Any], *, dtype: DType, device: Device, xp: Namespace) -> Array:
    """Move host numbers to `device`; the caller has rounded them to `dtype` already."""
    if bits(dtype, xp=xp) == 64:
        return xp.asarray(np.asarray(values), dtype=dtype, device=device)
    # a device without float64 must not see one, not even on the way
    if is_complex(dtype, xp=xp):
        return xp.asarray(np.asarray(values, dtype=np.complex64), dtype=dtype, device=device)
    host = np.asarray(values, dtype=np.float32)
    return xp.astype(xp.asarray(host, dtype=xp.float32, device=device), dtype, copy=False)


def indices(values: HostInts, *, device: Device, xp: Namespace) -> Array:
    """Move host indices to `device`; int32 because not every backend has int64."""
    return xp.asarray(values.astype(np.int32), dtype=xp.int32, device=device)


def select(x: Array, chosen: HostInts, *, xp: Namespace) -> Array:
    """Return the chosen elements of the stack `x`; itself when they are all of it, in order."""
    if np.array_equal(chosen, np.arange(x.shape[0])):
        return x
    return xp.take(x, indices(chosen, device=device_of(x), xp=xp), axis=0)


def adjoint(x: Array, *, xp: Namespace) -> Array:
    """Return the conjugate transpose of the last two axes."""
    if is_sparse(x):
        return x.conj().T
    x = xp.matrix_transpose(x)
    return xp.conj(x) if is_complex(x.dtype, xp=xp) else x


def is_sparse(x: object) -> bool:
    """Say whether `x` is a sparse array or matrix of SciPy or CuPy, without importing either."""
    home = type(x).__module__
    return home.startswith(("scipy.sparse", "cupyx.scipy.sparse")) and hasattr(x, "tocsr")


def sparse_entries(x: Array) -> Array:
    """Return the entries of the sparse `x` one by one, in coordinates (COO) and arrays of our own.

    Their order and whether a place occurs twice are the caller's; nothing has sorted or added them up.
    """
    own = x.copy().tocoo(
        copy=False
    )  # the copy is checked, and what lies behind the last row is cut
    return with_entries(own, own.data)


def with_entries(x: Array, values: Array) -> Array:
    """Return the coordinates of the COO matrix `x` with other values, the k-th in the place of the k-th."""
    return type(x)((values, (x.row, x.col)), shape=x.shape)


def sparse_rows(x: Array, values: Array) -> Array:
    """Return `with_entries` in compressed rows, in order, entries that share a place added up."""
    return with_entries(x, values).tocsr()


def matmul(a: Array, b: Array, *, xp: Namespace) -> Array:
    """Multiply in the full precision of the arrays' type."""
    if is_sparse(a):
        return a @ b
    if compat.is_jax_namespace(xp):
        return xp.matmul(a, b, precision="highest")  # the default may be TF32 or bfloat16
    return xp.matmul(a, b)


def vecdot(a: Array, b: Array, *, xp: Namespace) -> Array:
    """Return the inner products along the last axis in the full precision of the arrays' type."""
    if compat.is_jax_namespace(xp):
        return xp.vecdot(a, b, axis=-1, precision="highest")
    return xp.vecdot(a, b, axis=-1)


def gram_matrix(a: Array, *, xp: Namespace) -> Array:
    """Return A^H A for each matrix of a stack, or of one sparse matrix as a dense one."""
    if isinstance(a, np.ndarray):  # the same, without three layers of calls
        return np.matmul(a.mT.conj() if a.dtype.kind == "c" else a.mT, a)
    gram = matmul(adjoint(a, xp=xp), a, xp=xp)
    return gram.toarray() if is_sparse(gram) else gram


def square_sum(a: Array, *, xp: Namespace) -> float:
    """Return the sum of |a_i|^2 over all entries as computed in one go."""
    if isinstance(a, np.ndarray):
        return float(np.vdot(a, a).real)
    flat = xp.reshape(a, (-1,))
    return float(host_array(vecdot(flat, flat, xp=xp)).real)


@functools.cache
def is_complex(dtype: DType, *, xp: Namespace) -> bool:
    """Say whether `dtype` is a complex type."""
    return bool(xp.isdtype(dtype, "complex floating"))


@functools.cache
def is_floating(dtype: DType, *, xp: Namespace) -> bool:
    """Say whether `dtype` is a real or complex floating type."""
    return bool(xp.isdtype(dtype, ("real floating", "complex floating")))


@functools.cache
def bits(dtype: DType, *, xp: Namespace) -> int:
    """Return the width of the floating type `dtype`, of one component if it is complex."""
    return int(xp.finfo(dtype).bits)


def components(x: Array, *, xp: Namespace) -> tuple[Array, ...]:
    """Return `x` as real arrays: itself, or its real and imaginary part."""
    return (xp.real(x), xp.imag(x)) if is_complex(x.dtype, xp=xp) else (x,)


def real_dtype(dtype: DType, *, xp: Namespace) -> DType:
    """Return the real type of the same precision as the floating type `dtype`."""
    if is_complex(dtype, xp=xp):
        return xp.float64 if bits(dtype, xp=xp) == 64 else xp.float32
    return dtype


def complex_dtype(dtype: DType, *, xp: Namespace) -> DType:
    """Return the complex type of the same precision as the float32 or float64 type `dtype`."""
    return xp.complex128 if bits(dtype, xp=xp) == 64 else xp.complex64


@functools.cache
def is_supported(dtype: DType, *, xp: Namespace) -> bool:
    """Say whether arrays of `dtype` can be bounded: bool, integers, float16 ... float64, complex."""
    if getattr(dtype, "itemsize", 0) > 8 and not (
        is_complex(dtype, xp=xp) and dtype.itemsize <= 16
    ):
        return False  # long double: no backend multiplies it with a known error
    try:
        if xp.isdtype(dtype, ("real floating", "complex floating")):
            return bits(dtype, xp=xp) >= 16
        return bool(xp.isdtype(dtype, ("bool", "integral")))
    except (TypeError, ValueError):
        return False


def default_real_dtype(x: Array, *, xp: Namespace) -> DType:
    """Return the type to which the namespace promotes integers."""
    return xp.__array_namespace_info__().default_dtypes(device=device_of(x))["real floating"]


def has_float64(device: Device, *, xp: Namespace) -> bool:
    """Say whether `device` computes in float64."""
    return "float64" in xp.__array_namespace_info__().dtypes(device=device, kind="real floating")


def float32_products_are_exact(x: Array, *, xp: Namespace) -> bool:
    """Say whether a product of float32 arrays beside `x` keeps 24 bits: no TF32, no bfloat16.

    A matrix filled with 1 + 2^-12 tells: TF32 and bfloat16 round its entries to 1.
    """
    if compat.is_torch_array(x):
        import torch

        # Which shapes take the short cut is the library's choice, so the switch decides, not a trial.
        try:
            return torch.get_float32_matmul_precision() == "highest" and not (
                torch.backends.cuda.matmul.allow_tf32
            )
        except RuntimeError:  # the newer switches have been used
            return False
    return _product_probe(xp, device_of(x))


@functools.cache
def _product_probe(xp: Namespace, device: Device) -> bool:
    a = xp.full((64, 64), 1.0 + 2.0**-12, dtype=xp.float32, device=device)
    product = to_host(matmul(a, a, xp=xp))
    return bool(np.all(np.abs(product - 64.0 * (1.0 + 2.0**-12) ** 2) < 64 * 2.0**-18))


def flushes_subnormals(x: Array, dtype: DType, *, xp: Namespace) -> bool:
    """Say whether arithmetic in the real type `dtype`, there or on the host, loses subnormals.

    JAX on a CPU always does; a process in which some library switched the processor's
    flush-to-zero mode on does as well, so the question is asked at each call.
    """
    tiny = float(xp.finfo(dtype).smallest_normal)
    probe = from_host(np.asarray([tiny / 4]), dtype=dtype, device=device_of(x), xp=xp)
    scaled = to_host(probe * 16.0)
    on_host = np.asarray([math.ldexp(1.0, -1060)]) * 2.0**100
    return bool(scaled[0] == 0.0) or bool(on_host[0] == 0.0)


def nonzero_by_bits(x: Array, *, xp: Namespace) -> HostBools:
    """Say for each element of the stack `x` whether it has a non-zero entry, subnormals included.

    Where subnormals are flushed even ``x == 0`` holds for them; the bit patterns do not lie.
    """
    kinds = {2: "int16", 4: "int32", 8: "int64"}
    if not hasattr(x, "view"):  # no way to look: they may all be
        return np.ones(x.shape[0], dtype=np.bool_)
    found = np.zeros(x.shape[0], dtype=np.bool_)
    for part in components(x, xp=xp):
        bits = part.view(getattr(xp, kinds[part.dtype.itemsize]))
        magnitude = xp.bitwise_left_shift(bits, xp.ones_like(bits))  # -0.0 is zero as well
        found |= to_host(xp.any(magnitude != 0, axis=(-2, -1))) != 0
    return found


def attempted(solver: Callable[..., Any], *arrays: Array) -> Any | None:
    """Return what a solver of a library finds, or None where it gives up.

    Its iteration may not converge, its matrix may be singular: whatever is proved here is proved without it, less
    sharply.  So solvers are called here and nowhere else.
    """
    try:
        return solver(*arrays)
    except (np.linalg.LinAlgError, RuntimeError):  # PyTorch's own error is a RuntimeError
        return None


def cholesky_or_none(a: Array, *, xp: Namespace) -> Array | None:
    """Return a lower Cholesky factor, or None when the library does not give a finite one."""
    factor = attempted(xp.linalg.cholesky, a)
    if factor is None:
        return None
    finite = to_host(xp.isfinite(real_part(factor[-1, -1], xp=xp)))
    return factor if finite else None  # JAX and CuPy return NaN


def inverse_or_none(a: Array, *, xp: Namespace) -> Array | None:
    """Return what the library takes for the inverse, or None when it gives none."""
    return attempted(xp.linalg.inv, a)


def largest_singular_value_or_none(stack: Array, *, xp: Namespace) -> float | None:
    """Return the largest of what the library takes for the singular values of matrices, or None."""
    values = attempted(xp.linalg.svdvals, stack)
    found = math.nan if values is None else float(to_host(xp.max(values)))
    return found if math.isfinite(found) else None


def eigenvectors_or_none(
    host: npt.NDArray[Any],
) -> tuple[HostFloats, npt.NDArray[np.inexact]] | None:
    """Return what NumPy takes for the eigenvalues, ascending, and eigenvectors of a Hermitian host matrix, or None."""
    found = attempted(np.linalg.eigh, host)
    if found is None or not np.all(np.isfinite(found[1])):
        return None
    return found[0], found[1]


def solved_basis_or_none(
    host: npt.NDArray[Any], right: npt.NDArray[Any]
) -> npt.NDArray[np.inexact] | None:
    """Return an orthonormal basis of what NumPy takes for the columns X with ``host @ X = right``, or None."""
    columns = attempted(np.linalg.solve, host, right)
    if columns is None or not np.all(np.isfinite(columns)):
        return None
    found = attempted(np.linalg.qr, columns)
    return None if found is None else np.asarray(found[0])


def real_part(x: Array, *, xp: Namespace) -> Array:
    """Return the real part; `x` itself when it is real."""
    return xp.real(x) if is_complex(x.dtype, xp=xp) else x


def is_on_cpu(x: Array, *, xp: Namespace) -> bool:
    """Say whether `x` lives on the host, where factorisations are cheap and values are at hand."""
    if compat.is_torch_array(x):
        return bool(x.device.type == "cpu")
    if compat.is_jax_array(x):
        return all(d.platform == "cpu" for d in x.devices())
    return not compat.is_cupy_namespace(xp)


def has_linalg(*, xp: Namespace) -> bool:
    """Say whether the namespace offers the linear algebra extension."""
    return hasattr(xp, "linalg")
