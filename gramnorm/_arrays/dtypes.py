"""What a floating type is, whichever library names it."""

from __future__ import annotations

import functools
import sys
from typing import NamedTuple

import numpy as np

from gramnorm._arrays.libraries import device_of, namespace
from gramnorm._arrays.types import Array, DType

_SUPPORTED = {
    *("bool", "float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    *(f"{sign}int{width}" for sign in ("", "u") for width in (8, 16, 32, 64)),
}


@functools.lru_cache(maxsize=None, typed=True)
def name_of(dtype: DType) -> str:
    """Return the standard's name of a type of any library."""
    if isinstance(dtype, type | np.dtype):
        return np.dtype(dtype).name
    return str(dtype).rpartition(".")[2]


def of_library(dtype: DType, name: str) -> DType:
    """Return the type called `name` in the library whose type is `dtype`."""
    library = (
        np
        if isinstance(dtype, type | np.dtype)
        else sys.modules[type(dtype).__module__.partition(".")[0]]
    )
    return getattr(library, name)


@functools.lru_cache(maxsize=None, typed=True)
def is_complex(dtype: DType) -> bool:
    """Say whether `dtype` is a complex type."""
    return name_of(dtype).startswith("complex")


@functools.lru_cache(maxsize=None, typed=True)
def is_floating(dtype: DType) -> bool:
    """Say whether `dtype` is a real or complex floating type."""
    return name_of(dtype).startswith(("complex", "float", "bfloat"))


@functools.lru_cache(maxsize=None, typed=True)
def bits(dtype: DType) -> int:
    """Return the width of the floating type `dtype`, of one component if it is complex."""
    width = int(name_of(dtype).lstrip("abcdefghijklmnopqrstuvwxyz"))
    return width // 2 if is_complex(dtype) else width


class FloatLimits(NamedTuple):
    """The spacing of 1, smallest normal and largest number of a floating type or its components."""

    eps: float
    smallest_normal: float
    max: float


@functools.lru_cache(maxsize=None, typed=True)
def finfo(dtype: DType) -> FloatLimits:
    """Return the limits of a floating type of any library."""
    if name_of(dtype) == "bfloat16":
        return FloatLimits(2.0**-7, 2.0**-126, (2 - 2.0**-7) * 2.0**127)
    info = np.finfo(f"float{bits(dtype)}")
    return FloatLimits(float(info.eps), float(info.smallest_normal), float(info.max))


def components(x: Array) -> tuple[Array, ...]:
    """Return `x` as real arrays: itself, or its real and imaginary part."""
    xp = namespace(x)
    return (xp.real(x), xp.imag(x)) if is_complex(x.dtype) else (x,)


def real_dtype(dtype: DType) -> DType:
    """Return the real type of the precision of the floating type `dtype`, in its library."""
    if is_complex(dtype):
        return of_library(dtype, "float64" if bits(dtype) == 64 else "float32")
    return dtype


def complex_dtype(dtype: DType) -> DType:
    """Return the complex type of the precision of float32 or float64 `dtype`, in its library."""
    return of_library(dtype, "complex128" if bits(dtype) == 64 else "complex64")


@functools.lru_cache(maxsize=None, typed=True)
def is_supported(dtype: DType) -> bool:
    """Say whether arrays of `dtype` can be bounded: bool, integers, float16 to complex128."""
    return name_of(dtype) in _SUPPORTED


def default_real_dtype(x: Array) -> DType:
    """Return the type to which the namespace promotes integers."""
    xp = namespace(x)
    return xp.__array_namespace_info__().default_dtypes(device=device_of(x))["real floating"]


def has_float64(x: Array) -> bool:
    """Say whether the device of `x` computes in float64."""
    if isinstance(x, np.ndarray):
        return True
    xp = namespace(x)
    return "float64" in xp.__array_namespace_info__().dtypes(
        device=device_of(x), kind="real floating"
    )


def longest_real_dtype(x: Array) -> DType:
    """Return float64 where the device of `x` computes in it, else float32."""
    xp = namespace(x)
    return xp.float64 if has_float64(x) else xp.float32


def in_double(x: Array) -> Array:
    """Return `x` in double precision; `x` itself when it is."""
    xp = namespace(x)
    return xp.astype(x, xp.complex128 if is_complex(x.dtype) else xp.float64, copy=False)


def real_part(x: Array) -> Array:
    """Return the real part; `x` itself when it is real."""
    xp = namespace(x)
    return xp.real(x) if is_complex(x.dtype) else x
