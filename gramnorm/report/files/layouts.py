"""In which order the axes of a kernel are stored, and what shows it.

Three orders are in use,

    oihw    (c_out, c_in / groups, *spatial)     PyTorch, and this package
    hwio    (*spatial, c_in / groups, c_out)     Flax, Keras, TensorFlow
    ohwi    (c_out, *spatial, c_in / groups)     MLX

named by their letters for two axes in space, whatever their number; an array has any of them
without saying so.  Read in the wrong one it is another operator: a 3 x 3 kernel from 16 to 32
channels stored as (3, 3, 16, 32) would be one from 3 to 3 channels with 16 x 32 taps.  A shape
speaks for the order in which the kernel is small and square, since kernels have few taps and
channels are many.  For a dense layer there is nothing to decide: a matrix and its transpose have
the same norm.
"""

import math
from collections.abc import Sequence

import numpy as np

from gramnorm.report.files.tensors import Numbers
from gramnorm.report.limits import FEW_TAPS

LAYOUTS = ("oihw", "hwio", "ohwi")


def axes_in(layout: str) -> str:
    """
    Return the axes of a kernel in words.

    Parameters
    ----------
    layout : str
        One of `LAYOUTS`.

    Returns
    -------
    str
        For instance ``(*spatial, c_in / groups, c_out)``.
    """
    return {
        "oihw": "(c_out, c_in / groups, *spatial)",
        "hwio": "(*spatial, c_in / groups, c_out)",
        "ohwi": "(c_out, *spatial, c_in / groups)",
    }[layout]


def readings(shape: tuple[int, ...]) -> frozenset[str]:
    """
    Return the orders of axes in which an array of this shape can be taken for a kernel.

    Parameters
    ----------
    shape : tuple of int
        Of three or more axes.

    Returns
    -------
    frozenset of str
        Those with few taps, compared with the others; of these only the ones with a square kernel
        if there are any.
    """
    spatial = {"oihw": shape[2:], "hwio": shape[:-2], "ohwi": shape[1:-1]}
    most = max(2 * min(map(max, spatial.values())), FEW_TAPS)
    few = {layout for layout, sizes in spatial.items() if max(sizes) <= most}
    square = {layout for layout in few if len(set(spatial[layout])) == 1}
    return frozenset(square if len(shape) > 3 and square else few)


def to_oihw(kernel: Numbers, layout: str) -> Numbers:
    """
    Return a kernel with its axes in the order of this package.

    Parameters
    ----------
    kernel : array
        Of three or more axes.
    layout : str
        How it is stored.

    Returns
    -------
    array
        The same kernel as ``(c_out, c_in / groups, *spatial)``.
    """
    last = kernel.ndim - 1
    first = {"oihw": (0, 1), "hwio": (last, last - 1), "ohwi": (0, last)}[layout]
    turned = kernel.transpose(*first, *(axis for axis in range(last + 1) if axis not in first))
    return np.ascontiguousarray(turned) if isinstance(turned, np.ndarray) else turned


def bias_fits(shape: Sequence[int], layout: str, length: int, *, transposed: bool) -> bool:
    """
    Say whether a bias can be that of a kernel: it has one entry per output channel.

    Parameters
    ----------
    shape : sequence of int
        Of the kernel, as stored.
    layout : str
        How it is stored.
    length : int
        Of the bias.
    transposed : bool
        Whether the kernel may be one of a transposed convolution, of which PyTorch and Keras store
        the inputs in the place of the outputs.

    Returns
    -------
    bool
        Whether it fits. Keras' kernels of depthwise convolutions are ``(*spatial, c_in, outputs per
        input)``.
    """
    if layout == "hwio":
        return length in (shape[-1], shape[-2], math.prod(shape[-2:]))
    if length == shape[0]:
        return True
    groups, rest = divmod(length, max(shape[1], 1))
    return layout == "oihw" and transposed and groups > 0 and rest == 0 and shape[0] % groups == 0
