"""What a device does that no documentation promises: subnormal numbers, full precision."""

from __future__ import annotations

import contextlib
import functools
import math

import array_api_compat as compat
import numpy as np

from gramnorm._arrays.crossing import from_host, to_host
from gramnorm._arrays.dtypes import components, finfo
from gramnorm._arrays.libraries import device_of, namespace
from gramnorm._arrays.linalg import matmul
from gramnorm._arrays.types import Array, Device, DType, HostBools, Namespace

_FEW = 4
"""What bits are cut off at to be asked for: less than those of a mantissa, and not 1, since a
compiler takes the smaller of a number and 1 for a comparison with 0."""


def float32_products_are_exact(x: Array) -> bool:
    """Say whether a product of float32 arrays beside `x` keeps 24 bits: no TF32, no bfloat16.

    A matrix filled with 1 + 2^-12 tells: TF32 and bfloat16 round its entries to 1.
    """
    xp = namespace(x)
    if compat.is_torch_array(x):
        import torch

        # which shapes take the short cut is the library's choice: the switch decides, no trial
        try:
            return torch.get_float32_matmul_precision() == "highest" and not (
                torch.backends.cuda.matmul.allow_tf32
            )
        except RuntimeError:  # the newer switches have been used
            return False
    return _product_probe(xp, device_of(x))


@functools.cache
def _product_probe(xp: Namespace, device: Device) -> bool:
    with _outside_of_jit(xp):
        a = xp.full((64, 64), 1.0 + 2.0**-12, dtype=xp.float32, device=device)
        product = to_host(matmul(a, a))
    return bool(np.all(np.abs(product - 64.0 * (1.0 + 2.0**-12) ** 2) < 64 * 2.0**-18))


def _outside_of_jit(xp: Namespace) -> contextlib.AbstractContextManager[object]:
    if not compat.is_jax_namespace(xp):
        return contextlib.nullcontext()
    import jax

    return jax.ensure_compile_time_eval()


def flushes_subnormals(x: Array, dtype: DType) -> bool:
    """Say whether arithmetic in the real type `dtype`, there or on the host, loses subnormals.

    JAX on a CPU always does; a process in which some library switched the processor's
    flush-to-zero mode on does as well, so the question is asked at each call.
    """
    tiny = finfo(dtype).smallest_normal
    probe = from_host(np.asarray([tiny / 4]), dtype=dtype, like=x)
    scaled = to_host(probe * 16.0)
    on_host = np.asarray([math.ldexp(1.0, -1060)]) * 2.0**100
    return bool(scaled[0] == 0.0) or bool(on_host[0] == 0.0)


def nonzero_by_bits(x: Array) -> HostBools:
    """Say for each element of the stack `x` whether it has a non-zero entry, subnormals included.

    Where subnormals are flushed even ``x == 0`` holds for them; the bit patterns do not lie.
    """
    if not hasattr(x, "view"):  # no way to look: they may all be
        return np.ones(x.shape[0], dtype=np.bool_)
    xp = namespace(x)
    found = [to_host(xp.any(is_nonzero(part), axis=(-2, -1))) != 0 for part in components(x)]
    return np.asarray(np.any(found, axis=0))


def largest_modulus(x: Array) -> Array:
    """Return the largest modulus of each matrix of a real stack: NaN or inf where there is one.

    Non-negative numbers are in the order of their bits, and these tell subnormal numbers apart
    where comparisons take them for zeros.
    """
    xp = namespace(x)
    if not hasattr(x, "view"):
        return xp.max(xp.abs(x), axis=(-2, -1))
    return xp.max(_bits_of_modulus(x), axis=(-2, -1)).view(x.dtype)


def is_nonzero(x: Array) -> Array:
    """Say for each real number whether it is neither 0 nor -0, by its bits where these can be read."""
    if not hasattr(x, "view"):
        return x != 0
    xp = namespace(x)
    bits = _bits_of_modulus(x)
    # compilers turn the question whether the bits of a modulus are 0 into one for numbers; with an
    # exponent in front a few bits are a normal number above 1
    one = xp.ones_like(x).view(bits.dtype)
    few = xp.where(bits > _FEW, xp.full_like(bits, _FEW), bits)
    return (one + few).view(x.dtype) > 1


def _bits_of_modulus(x: Array) -> Array:
    # not those of x, which PyTorch may have negated lazily, without the sign
    return namespace(x).abs(x).view(_integer_like(x))


def _integer_like(x: Array) -> DType:
    return getattr(namespace(x), {2: "int16", 4: "int32", 8: "int64"}[x.dtype.itemsize])
