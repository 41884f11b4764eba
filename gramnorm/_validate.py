"""Checks of the caller's arguments; every message names the argument, what was got, and the fix."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

from gramnorm._arrays import crossing, dtypes, libraries, sparse_inputs
from gramnorm._arrays.types import Array

PADDING_MODES = ("zeros", "circular", "reflect", "replicate", "symmetric")

_MOST = 2**31  # so that products of two of them fit in 64 bits

Padding = int | str | Sequence[int] | Sequence[tuple[int, int]] | None


def array_argument(x: object, *, name: str) -> Array:
    """Return `x`, once it is an array of a supported library and type."""
    libraries.namespace_of(x, name=name)
    a: Array = x
    if not dtypes.is_supported(a.dtype):
        _hands_over(x, name=name)
        msg = (
            f"{name} must hold bool, integer, real or complex floating numbers of at most double "
            f"precision, got dtype {a.dtype}; convert it first, e.g. {name}.astype('float64')"
        )
        raise TypeError(msg)
    return a


def real_floating(x: object, *, name: str) -> Array:
    """Return `x`, once it is an array of real floating numbers, which need not have values."""
    a = array_argument(x, name=name)
    if not dtypes.is_floating(a.dtype) or dtypes.is_complex(a.dtype):
        msg = (
            f"{name} must hold real floating numbers, got dtype {a.dtype}; integers must be "
            "converted first"
        )
        raise TypeError(msg)
    return a


def concrete_argument(x: object, *, name: str, instead: str) -> Array:
    """Return the values of `x` for a function that looks at the values."""
    a = array_argument(x, name=name)
    if not libraries.has_values(a):
        msg = (
            f"{name} has no values here (it is traced by jit, grad or vmap, or on the meta "
            "device), but a certified search must look at them; call this function eagerly, or use "
            f"{instead}"
        )
        raise TypeError(msg)
    _hands_over(a, name=name)
    return libraries.plain(a)


def _hands_over(a: object, *, name: str) -> None:
    """Complain about arrays whose library does not hand over their values."""
    if not crossing.can_cross(a):
        kind = type(a)
        msg = (
            f"{name} is a {kind.__module__}.{kind.__qualname__}, whose values cannot be read through "
            f"DLPack; compute it, make it dense and pass it as a NumPy array, e.g. {name}.todense() "
            f"or numpy.asarray({name})"
        )
        raise TypeError(msg)


def chunks(x: Array, chunk: Array, *, name: str) -> None:
    """Check what is known of an array of Dask, and of its chunks by one without elements."""
    if sparse_inputs.is_any_sparse(chunk):
        msg = (
            f"{name} is an array of Dask with sparse chunks ({type(chunk).__name__}); make them dense, "
            f"e.g. {name}.map_blocks(lambda chunk: chunk.toarray())"
        )
        raise TypeError(msg)
    array_argument(chunk, name=name)
    matrices(x, name=name)
    if any(math.isnan(n) for n in x.shape):
        msg = (
            f"{name} has chunks of unknown size, got shape {x.shape}; call {name}.compute_chunk_sizes() "
            "first, or make it of arrays whose shapes are known"
        )
        raise ValueError(msg)


def no_vectors(vectors: bool, *, name: str) -> None:
    """Check that no vectors are asked of an array of Dask."""
    if vectors:
        msg = (
            f"vectors=True needs the matrices in one place, and {name} is an array of Dask; pass "
            f"{name}.compute()"
        )
        raise ValueError(msg)


def install(extra: str) -> str:
    """Return the command that installs what an extra names, from an index and in a clone."""
    return f'pip install "gramnorm[{extra}]", in a clone pip install -e ".[{extra}]"'


def taps(shape: tuple[int, ...], kernel_size: tuple[int, ...], *, groups: int) -> None:
    """Check that a kernel has the taps and groups of a geometry."""
    if len(shape) < 3 or shape[2:] != kernel_size or shape[0] % groups:
        msg = (
            f"kernel must have the shape (c_out, c_in / groups, {', '.join(map(str, kernel_size))}) "
            f"with channels for {groups} groups, as this geometry was made for, got shape {shape}"
        )
        raise ValueError(msg)


def samples(shape: tuple[int, ...], expected: tuple[int, ...], *, name: str) -> None:
    """Check the shape of what a convolution is applied to, behind any axes of a batch."""
    if shape[-len(expected) :] != expected:
        msg = (
            f"{name} must have the shape (..., {', '.join(map(str, expected))}), channels before "
            f"samples, got shape {shape}"
        )
        raise ValueError(msg)


def matrices(a: Array, *, name: str) -> None:
    """Check that `a` has the two axes of a matrix."""
    if a.ndim < 2:
        msg = (
            f"{name} must have shape (..., m, n), got shape {tuple(a.shape)}; a vector is "
            f"{name}[:, None]"
        )
        raise ValueError(msg)


def sparse(x: Array) -> None:
    """Check that a sparse array is a matrix."""
    if len(x.shape) != 2:
        msg = f"x must have shape (m, n) when it is sparse, got shape {tuple(x.shape)}"
        raise ValueError(msg)


def kernel_shape(shape: tuple[int, ...], *, groups: object, name: str = "kernel") -> int:
    """Check the axes of a convolution kernel (c_out, c_in / groups, *spatial); return `groups`."""
    if len(shape) < 3:
        msg = (
            f"{name} must have shape (c_out, c_in / groups, *spatial) with at least one spatial "
            f"axis, got shape {shape}; use the matrix functions for a dense layer"
        )
        raise ValueError(msg)
    count = positive_int(groups, name="groups")
    if shape[0] % count:
        msg = f"groups must divide the first axis of {name}, got groups={count} and shape {shape}"
        raise ValueError(msg)
    return count


def tolerance(rtol: object, *, default: float) -> float:
    """Return the relative gap asked for, where None asks for the default."""
    return default if rtol is None else positive_number(rtol, name="rtol")


def positive_number(value: object, *, name: str) -> float:
    """Return `value` as a positive finite float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        msg = f"{name} must be a positive number, got {value!r}"
        raise TypeError(msg)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        msg = f"{name} must be a positive finite number, got {value!r}"
        raise ValueError(msg)
    return number


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
    if isinstance(value, str) and value in PADDING_MODES:
        return value
    msg = f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {value!r}"
    raise ValueError(msg)


def pads(
    padding: Padding,
    mode: str,
    *,
    reach: tuple[int, ...],
    stride: tuple[int, ...],
    sizes: tuple[int, ...] | None,
) -> tuple[tuple[int, int], ...] | None:
    """Return (lo, hi) per axis, or None.

    None stands for every amount of zeros, and for the same-size circular operator.
    `reach` is the distance between the first and the last tap of a (dilated) kernel, `sizes` the
    samples of the input of the correlation.
    """
    if padding is None:
        if sizes is None or mode == "circular":
            return None
        padding = "same"
    if isinstance(padding, str):
        return _named_pads(padding, reach=reach, stride=stride, sizes=sizes)
    axes = len(reach)
    pairs: list[Any]
    if isinstance(padding, Sequence) and any(isinstance(p, Sequence) for p in padding):
        pairs = [p for p in padding if isinstance(p, Sequence) and len(p) == 2]
        if not len(pairs) == len(padding) == axes:
            msg = f"padding must have one (lo, hi) pair per spatial axis ({axes}), got {padding!r}"
            raise ValueError(msg)
    else:
        pairs = [(p, p) for p in per_axis(padding, name="padding", axes=axes, least=0)]
    ends = partial(positive_int, name="padding", least=0)
    return tuple((ends(lo), ends(hi)) for lo, hi in pairs)


def _named_pads(
    name: str, *, reach: tuple[int, ...], stride: tuple[int, ...], sizes: tuple[int, ...] | None
) -> tuple[tuple[int, int], ...] | None:
    if name == "valid":
        return ((0, 0),) * len(reach)
    if name == "full":
        return tuple((r, r) for r in reach)
    if name != "same":
        msg = f"padding must be 'valid', 'same', 'full' or integers, got {name!r}"
        raise ValueError(msg)
    if sizes is None:
        return None
    axes = zip(sizes, stride, reach, strict=True)
    needed = (max((-(-n // s) - 1) * s + r + 1 - n, 0) for n, s, r in axes)
    return tuple((total // 2, total - total // 2) for total in needed)  # the odd sample behind


def is_same(padding: Padding) -> bool:
    """Say whether a padding is "same", as it is by default."""
    return padding is None or (isinstance(padding, str) and padding == "same")


def continuation(
    mode: str,
    pads: tuple[tuple[int, int], ...] | None,
    *,
    reach: tuple[int, ...],
    stride: tuple[int, ...],
    sizes: tuple[int, ...] | None,
) -> None:
    """Check that a padding mode has what it needs to continue the input."""
    if sizes is not None:
        limits = zip(pads or (), sizes, strict=True)
        if mode == "reflect" and any(max(pad) >= n for pad, n in limits):
            msg = (
                "padding must be less than the input in each axis for padding_mode='reflect', got "
                f"{pads} for {sizes}"
            )
            raise ValueError(msg)
        return
    if mode in ("reflect", "replicate", "symmetric"):
        why = f"padding_mode={mode!r}: how often a sample is repeated depends on the size"
    elif mode == "circular" and max(stride) > 1:
        why = (
            f"circular padding with a stride, got stride {stride}: the norm is larger where the "
            "stride does not divide the size; without padding_mode the bound holds where it does"
        )
    elif mode == "circular" and any(
        sum(pad) > r for pad, r in zip(pads or (), reach, strict=False)
    ):
        why = (
            f"circular padding by more than the kernel's reach, got pads {pads} for reach {reach}: "
            "outputs repeat, and how often depends on the size"
        )
    else:
        return
    msg = f"input_shape must be given for {why}"
    raise ValueError(msg)


def transposed(
    mode: str,
    padding: Padding,
    extra: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    *,
    has_size: bool,
) -> None:
    """Check the arguments of a transposed convolution."""
    repeats = mode in ("reflect", "replicate", "symmetric")
    if repeats or (mode == "circular" and padding is not None):
        msg = (
            "a transposed convolution takes padding_mode='zeros', or 'circular' with padding=None, "
            f"got padding_mode={mode!r}, padding={padding!r}"
        )
        raise ValueError(msg)
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        msg = (
            f"output_padding must be less than stride or dilation in each axis, got {extra} for "
            f"stride {stride} and dilation {dilation}"
        )
        raise ValueError(msg)
    if any(extra) and (mode == "circular" or (has_size and is_same(padding))):
        msg = (
            "output_padding needs explicit zero padding, e.g. padding=0, got "
            f"output_padding={extra} with padding={padding!r} and padding_mode={mode!r}, which fix "
            "the output size"
        )
        raise ValueError(msg)


def refuse_output_padding(extra: tuple[int, ...]) -> None:
    """Complain about output padding of an ordinary convolution."""
    msg = f"output_padding is for transposed=True, got output_padding={extra}"
    raise ValueError(msg)


def one_size(input_shape: object, *, instead: str) -> None:
    """Check that a method for one size of the input has it."""
    if input_shape is None:
        msg = (
            "input_shape must be given: the result is that of one size; for every size at once "
            f"take {instead}"
        )
        raise ValueError(msg)


def divides(stride: tuple[int, ...], sizes: tuple[int, ...] | None) -> None:
    """Check that a circular convolution has a size, and a stride that divides it."""
    one_size(sizes, instead="conv_norm_bound")
    assert sizes is not None
    if any(n % s for n, s in zip(sizes, stride, strict=True)):
        msg = (
            f"stride must divide input_shape in each axis, got stride {stride} and input_shape "
            f"{sizes}; conv_norm_bracket takes any"
        )
        raise ValueError(msg)


def fixed_steps(mode: str, padding: Padding, *, transposed: bool) -> None:
    """Check that a fixed number of steps is asked of a circular convolution."""
    if mode != "circular" or padding is not None or transposed:
        msg = (
            "steps needs padding_mode='circular', no padding and transposed=False: the fixed-step "
            f"bound is that of the circular operator, got padding_mode={mode!r}, "
            f"padding={padding!r}, transposed={transposed}"
        )
        raise ValueError(msg)
