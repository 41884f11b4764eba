"""A report on a network: one certified bracket per layer, and the product of the upper ones.

The norm of a chain is at most the product of its layers' norms, so a product of upper bounds,
rounded up, bounds the Lipschitz constant of layers in a chain with 1-Lipschitz functions between
them (ReLU, pooling without overlap). The product of *lower* bounds bounds nothing, hence it is not
formed.  Where a layer cannot be bounded, or something is not understood, there is no product: a
number about the other layers would be taken for one about the network.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

import gramnorm as gn
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._rigour.fractions import product_above, root_above, sum_above
from gramnorm.report.files.batchnorm import batchnorm_bound
from gramnorm.report.files.contents import Layer, ReadError, one_line

__all__ = ["Row", "bound_layer", "failed_row"]


@dataclass(frozen=True)
class Row:
    """One layer of a report.

    Its bracket, or its upper bound alone (`lower` None), or in `error` why there is none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    seconds: float
    lower: float | None = math.nan
    upper: float = math.nan
    converged: bool | None = False
    assumed: bool = False  # nothing says stride, dilation or groups: an upper bound for all of them
    forced: bool = False  # not understood, a row by --include
    error: str | None = None


def bound_layer(
    layer: Layer,
    *,
    input_shape: tuple[int, ...] | str | None = None,
    padding_mode: str | None = None,
    rtol: float | None = None,
    place: Callable[[np.ndarray[Any, np.dtype[Any]]], Any] | None = None,
) -> Row:
    """
    Return a lower and an upper bound on the spectral norm of one layer.

    Parameters
    ----------
    layer : Layer
        A weight array and its geometry.
    input_shape : tuple of int, "file" or None
        Where to bound a convolution: at this size (one number: on every axis), at the size that the
        file states, or at every size.
    padding_mode : str or None
        What to use in place of the file's padding mode.
    rtol : float or None
        The relative gap asked for; None is the default of the bound.
    place : callable or None
        Makes of a host array one of the library and device to compute with; None computes with
        NumPy.

    Returns
    -------
    Row
        The bracket, or the reason why there is none.

    Notes
    -----
    **Guarantee.** That of `gramnorm.matrix_norm_bracket` or `gramnorm.conv_norm_bracket`, for the array as stored and
    the geometry as stated.  Without a stated geometry there is an upper bound only, at every size:
    that of the kernel with stride 1, dilation 1 and one group.  A stride picks rows of this
    operator, groups are some of its rows by columns of their own, a dilation repeats it on
    interleaved samples, a transposed layer is the adjoint of one with the same array, and zero
    padding and the circle are parts of it; so it holds for all of them, together as well. It need
    not hold for the padding modes that repeat samples (reflect, replicate, symmetric). For a batch
    norm there is an upper bound only, that for every eps.  For a weight that was folded the bounds
    are those of the weight which the stored parts define in real arithmetic.
    """
    began = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        found = _found(layer, input_shape, padding_mode, rtol, place)
    # RuntimeError: of devices; ReadError: the array is read here and now, and may have gone
    except (RuntimeError, ValueError, TypeError, MemoryError, ReadError, OSError) as error:
        found = {"error": one_line(error)}
    return Row(
        name=layer.name,
        kind=", ".join(filter(None, (_kind(layer), layer.word))),
        shape=tuple(layer.weight.shape),
        dtype=str(layer.weight.dtype),
        seconds=time.perf_counter() - began,
        assumed=layer.assumed,
        forced=layer.forced,
        **found,
    )


def failed_row(name: str, reason: str) -> Row:
    """Return the row of a layer whose values cannot be had.

    A hole in the product like any other.
    """
    return Row(name, kind="unknown", shape=(), dtype="unknown", seconds=0.0, error=reason)


def _found(
    layer: Layer,
    input_shape: tuple[int, ...] | str | None,
    padding_mode: str | None,
    rtol: float | None,
    place: Callable[[np.ndarray[Any, np.dtype[Any]]], Any] | None,
) -> dict[str, Any]:
    """Return the bounds there are for a layer, as a row has them."""
    if layer.variance is not None:
        upper = batchnorm_bound(layer.weight, layer.variance)
        return {"lower": None, "upper": upper, "converged": None}
    weight = np.asarray(layer.weight)
    if weight.dtype == np.float16:  # which every bound computes in float32, or in copies of float64
        weight = weight.astype(np.float32)
    weight = weight if place is None else place(weight)
    keywords = _keywords(layer, input_shape, padding_mode) if layer.kind == "conv" else {}
    gap = 0.99 * _asked(layer, rtol) if layer.error else rtol  # the error has to have room
    if layer.kind == "dense":
        bracket = gn.matrix_norm_bracket(weight, rtol=gap)
    else:
        bracket = gn.conv_norm_bracket(weight, **keywords, rtol=gap)
    lower, upper, converged = float(bracket.lower), float(bracket.upper), bool(bracket.converged)
    if layer.error:
        lower, upper = _widened(lower, upper, layer, keywords)
        converged = converged and upper - lower <= _asked(layer, rtol) * lower
    if layer.assumed:
        return {"lower": None, "upper": upper, "converged": None}
    return {"lower": lower, "upper": upper, "converged": converged}


def _asked(layer: Layer, rtol: float | None) -> float:
    """Return the relative gap asked for; folded weights with an error are of float64."""
    return rtol if rtol is not None else 1e-6 if layer.kind == "dense" else 1e-3


def _widened(
    lower: float, upper: float, layer: Layer, keywords: dict[str, Any]
) -> tuple[float, float]:
    """
    Return a bracket that holds for every weight within the layer's error.

    A convolution is the sum over its taps k of S_k E_k P: channels are mixed, samples picked (at
    most as often as the padding P repeats them).  So the norm of an error E with K taps is at most
    sqrt(K c) ||E||_F, with c copies.
    """
    spread = 1
    if layer.kind == "conv":
        spread = math.prod(layer.weight.shape[2:])
        if keywords.get("input_shape") is not None:
            axes = ConvGeometry.of(layer.weight.shape, **keywords).axes()
            spread *= math.prod(axis.copies() for axis in axes)
    error = product_above([layer.error, root_above(Fraction(spread))])
    return max(math.nextafter(lower - error, 0.0), 0.0), sum_above([upper, error])


def _keywords(
    layer: Layer, input_shape: tuple[int, ...] | str | None, padding_mode: str | None
) -> dict[str, Any]:
    """Return what `conv_norm_bracket` needs to know besides the kernel."""
    stated = {"groups": layer.groups} if layer.geometry is None else layer.geometry
    keywords = {key: value for key, value in stated.items() if key != "kind"}
    if layer.assumed and input_shape != "file":
        return keywords  # no operator of a certain size without stride and padding
    stated_shape = keywords.pop("input_shape", None)
    padding_of_size = keywords.pop("padding_of_size", False)
    if padding_mode is not None:
        keywords["padding_mode"] = padding_mode
        if padding_mode == "circular":  # the same-size operator: there is no padding to it
            keywords.pop("padding", None)
    if input_shape is None:
        # Every size holds for any zero padding, whatever amount the file states. On a circle more
        # padding than the kernel's reach repeats outputs, and is refused without a size.
        mode = keywords.get("padding_mode", "zeros")
        if mode == "zeros" or (mode == "circular" and isinstance(keywords.get("padding"), str)):
            keywords.pop("padding", None)
        return keywords
    if input_shape == "file":
        if stated_shape is None:
            msg = "the file states no input_shape for this layer"
            raise ValueError(msg)
        return keywords | {"input_shape": stated_shape}
    axes = layer.weight.ndim - 2
    shape = input_shape * axes if len(input_shape) == 1 else input_shape
    if padding_of_size and shape != stated_shape and "padding" in keywords:
        known = f"known for the size {stated_shape} only: --input-shape file, or none"
        if stated_shape is None:
            known = "unknown at any one size: leave --input-shape out"
        msg = f"its padding (auto_pad) is {known}"
        raise ValueError(msg)
    return keywords | {"input_shape": shape}


def _kind(layer: Layer) -> str:
    """Return the kind of a layer in words, such as "conv2d, depthwise"."""
    if layer.kind != "conv":
        return layer.kind
    geometry = layer.geometry or {}
    groups = geometry.get("groups", layer.groups)
    words = [f"conv{layer.weight.ndim - 2}d"]
    if groups != 1:
        words.append("depthwise" if layer.weight.shape[1] == 1 else f"{groups} groups")
    for key in ("stride", "dilation"):
        if not _all_ones(geometry.get(key, 1)):
            words.append(f"{key} {geometry[key]}")
    if geometry.get("transposed", False):
        words.append("transposed")
    return ", ".join(words)


def _all_ones(value: Any) -> bool:
    return all(number == 1 for number in (value if isinstance(value, tuple) else (value,)))
