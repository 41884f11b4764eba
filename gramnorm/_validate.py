"""Checks of the caller's arguments; every message names the argument, what was got, and the fix."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence

from gramnorm import _xp
from gramnorm._typing import Array, Namespace

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")

_MOST = 2**31  # so that products of two of them fit in 64 bits

Padding = int | str | Sequence[int] | Sequence[tuple[int, int]] | None


def array_argument(x: object, *, name: str) -> tuple[Namespace, Array]:
    """Return the namespace of `x` and `x`, once it is an array of a supported type."""
    xp = _xp.namespace_of(x, name=name)
    a: Array = x
    if not _xp.is_supported(a.dtype, xp=xp):
        msg = (
            f"{name} must hold bool, integer, real or complex floating numbers of at most double precision, "
            f"got dtype {a.dtype}; convert it first, e.g. {name}.astype('float64')"
        )
        raise TypeError(msg)
    return xp, a


def concrete_argument(x: object, *, name: str, instead: str) -> tuple[Namespace, Array]:
    """Return the namespace and values of `x` for a function that looks at the values."""
    xp, a = array_argument(x, name=name)
    if not _xp.has_values(a):
        msg = (
            f"{name} has no values here (it is traced by jit, grad or vmap, or on the meta device), but a "
            f"certified search must look at them; call this function eagerly, or use {instead}"
        )
        raise TypeError(msg)
    return xp, _xp.plain(a)


def matrices(a: Array, *, name: str) -> None:
    """Check that `a` has the two axes of a matrix."""
    if a.ndim < 2:
        msg = f"{name} must have shape (..., m, n), got shape {tuple(a.shape)}; a vector is {name}[:, None]"
        raise ValueError(msg)


def sparse(x: Array, *, most: int) -> None:
    """Check that a sparse matrix is small enough on one side for a dense Gram matrix."""
    if len(x.shape) != 2:
        msg = f"x must have shape (m, n) when it is sparse, got shape {tuple(x.shape)}"
        raise ValueError(msg)
    if min(x.shape) > most:
        msg = (
            f"x is sparse of shape {tuple(x.shape)}, and its Gram matrix "
            f"would be dense; beyond {most} only a lower bound can be had: operator_norm_lower_bound("
            "scipy.sparse.linalg.aslinearoperator(x)). Products with vectors alone give no upper bound"
        )
        raise ValueError(msg)


def kernel(a: Array, *, groups: object, name: str = "kernel") -> int:
    """Check the axes of a convolution kernel (c_out, c_in / groups, *spatial); return `groups`."""
    if a.ndim < 3:
        msg = (
            f"{name} must have shape (c_out, c_in / groups, *spatial) with at least one spatial axis, got shape "
            f"{tuple(a.shape)}; use the matrix functions for a dense layer"
        )
        raise ValueError(msg)
    count = positive_int(groups, name="groups")
    if a.shape[0] % count:
        msg = f"groups must divide the output channels, got groups={count} and {name} of shape {tuple(a.shape)}"
        raise ValueError(msg)
    return count


def tolerance(rtol: object, *, default: float) -> float:
    """Return the relative gap asked for."""
    if rtol is None:
        return default
    if isinstance(rtol, bool) or not isinstance(rtol, numbers.Real):
        msg = f"rtol must be a positive number or None, got {rtol!r}"
        raise TypeError(msg)
    value = float(rtol)
    if not (0 < value < math.inf):
        msg = f"rtol must be a positive finite number, got {rtol!r}; None asks for the default"
        raise ValueError(msg)
    return value


def positive_int(value: object, *, name: str, least: int = 1) -> int:
    """Return `value` as an int of at least `least`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        msg = f"{name} must be an integer, got {value!r}"
        raise TypeError(msg)
    if not least <= number < _MOST:
        msg = f"{name} must be at least {least} and below 2**31, got {number}"
        raise ValueError(msg)
    return number


def per_axis(value: object, *, name: str, axes: int, least: int = 1) -> tuple[int, ...]:
    """Return one int per spatial axis from an int or a sequence."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if len(value) != axes:
            msg = (
                f"{name} must be an int or have one entry per spatial axis ({axes}), got {value!r}"
            )
            raise ValueError(msg)
        return tuple(positive_int(v, name=name, least=least) for v in value)
    return (positive_int(value, name=name, least=least),) * axes


def padding_mode(value: object) -> str:
    """Return the padding mode, one of `PADDING_MODES`."""
    if value not in PADDING_MODES:
        msg = f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {value!r}"
        raise ValueError(msg)
    return str(value)


def pads(
    padding: Padding, *, span: tuple[int, ...], has_size: bool
) -> tuple[tuple[int, int], ...] | None:
    """Return (lo, hi) per axis for stride 1; None when every amount of padding is meant.

    `span` is the number of samples a (dilated) kernel reaches over, less one.
    """
    axes = len(span)
    if padding is None:
        return tuple((s // 2, s - s // 2) for s in span) if has_size else None
    if isinstance(padding, str):
        named = {
            "valid": tuple((0, 0) for _ in span),
            "same": tuple((s // 2, s - s // 2) for s in span),
            "full": tuple((s, s) for s in span),
        }
        if padding not in named:
            msg = f"padding must be 'valid', 'same', 'full' or integers, got {padding!r}"
            raise ValueError(msg)
        return named[padding]
    if isinstance(padding, Sequence) and any(isinstance(p, Sequence) for p in padding):
        if len(padding) != axes or not all(
            isinstance(p, Sequence) and len(p) == 2 for p in padding
        ):
            msg = f"padding must have one (lo, hi) pair per spatial axis ({axes}), got {padding!r}"
            raise ValueError(msg)
        return tuple(
            (
                positive_int(p[0], name="padding", least=0),  # type: ignore[index]
                positive_int(p[1], name="padding", least=0),  # type: ignore[index]
            )
            for p in padding
        )
    return tuple((p, p) for p in per_axis(padding, name="padding", axes=axes, least=0))
