"""Descriptions of layers: what a chain is made of, where an array does not say it all.

They hold what they were given.  The functions that take a chain check it, and name the layer where
something does not fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from gramnorm._arrays.types import Array
from gramnorm._validate import Padding


@dataclasses.dataclass(frozen=True, eq=False)
class ConvLayer:
    """A convolution as a layer of a chain, for `chain_bound` and `chain_certificate`.

    An array of the shape of a kernel stands for ``ConvLayer(kernel)``.

    Attributes
    ----------
    kernel : array, shape ``(c_out, c_in / groups, *spatial)``
        The kernel, real floating.
    stride, dilation : int or sequence of int
        Step between outputs and distance between taps, per axis.
    groups : int
        Number of independent blocks of channels.
    padding : int, sequence of int or of (lo, hi), "valid", "same", "full", optional
        Zeros around the input per axis, for bounds at one `input_shape`, where it must be given;
        without one a bound holds for all amounts.

    Examples
    --------
    The second layer reads each sum once, so nothing is amplified by the product of both norms:

    >>> import numpy as np
    >>> import gramnorm as gn
    >>> pair = np.asarray([[[1.0, 1.0]]])
    >>> bound = gn.chain_bound([gn.ConvLayer(pair, dilation=2), gn.ConvLayer(pair, stride=2)])
    >>> bool(bound < gn.chain_bound([gn.ConvLayer(pair, dilation=2), pair]))
    True
    """

    kernel: Array
    _: dataclasses.KW_ONLY
    stride: int | Sequence[int] = 1
    dilation: int | Sequence[int] = 1
    groups: int = 1
    padding: Padding = None


@dataclasses.dataclass(frozen=True)
class AvgPool:
    """The average over windows, behind an activation of a chain and before its next layer.

    Attributes
    ----------
    window : int or sequence of int
        Samples of a window per axis.
    stride : int or sequence of int, optional
        Step between windows per axis; by default the window.
    padding : int, sequence of int or of (lo, hi), "valid", "same", "full"
        Zeros around the signal, for bounds at one `input_shape` only.

    Notes
    -----
    Every average is over all samples of the window, zeros of a padding among them. If windows do
    not overlap, it may stand before its activation as well. Overlapping averages in front of an
    activation are another map: write them as a `ConvLayer` with a group per channel.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> ones = np.ones((1, 1, 1))
    >>> bound = gn.chain_bound([4 * ones, gn.AvgPool(4), ones])
    >>> bool(2.0 <= bound < 2.001)  # the average of four samples has norm 1 / 2
    True
    """

    window: int | Sequence[int]
    stride: int | Sequence[int] | None = None
    padding: Padding = 0


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """The maximum over windows, before or behind an activation of a chain.

    Attributes
    ----------
    window : int or sequence of int
        Samples of a window per axis.
    stride : int or sequence of int, optional
        Step between windows per axis; by default the window.
    dilation : int or sequence of int
        Distance between samples of a window per axis.
    padding : int, sequence of int or of (lo, hi), "valid", "same", "full"
        Padding around the signal, for bounds at one `input_shape` only.

    Notes
    -----
    Padding with zeros or with minus infinity, and windows that reach beyond the end, change
    nothing. Activations with slopes in [0, 1] never decrease, so that it makes no difference on
    which side of one the maximum is taken.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> ones = np.ones((1, 1, 1))
    >>> bound = gn.chain_bound([ones, gn.MaxPool(3, 2), ones])
    >>> bool(2**0.5 <= bound < 1.415)  # two windows may see the same sample
    True
    """

    window: int | Sequence[int]
    stride: int | Sequence[int] | None = None
    dilation: int | Sequence[int] = 1
    padding: Padding = 0


@dataclasses.dataclass(frozen=True)
class Flatten:
    """A signal with samples read as one vector, between the convolutions of a chain and a matrix.

    Attributes
    ----------
    spatial : int or sequence of int
        Samples of the signal per axis.
    channels_last : bool
        Whether the channels of a sample stand together (Keras, Flax); by default the samples of a
        channel do (PyTorch, ONNX).

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> kernel, head = np.ones((2, 1, 1)), np.ones((1, 6))
    >>> bound = gn.chain_bound([kernel, gn.Flatten(3), head])
    >>> bool(12**0.5 <= bound < 3.47)
    True
    """

    spatial: int | Sequence[int]
    channels_last: bool = False


@dataclasses.dataclass(frozen=True)
class Activation:
    """A function of each entry alone, with slopes in an interval, in a chain of dense layers.

    Behind an array or a `Residual` it takes the place of the activation with slopes in [0, 1] that
    is understood there; elsewhere, as at the beginning of a branch, it says that there is one.

    Attributes
    ----------
    low, high : float or Fraction
        The least and the largest slope: ``low <= (f(s) - f(t)) / (s - t) <= high`` for all s and t.
        Of equal ones the activation is a factor: ``Activation(1, 1)`` says that there is none.

    Examples
    --------
    The absolute value has slopes of both signs, and with it these two layers pass on twice what
    they read, which no activation with slopes in [0, 1] does:

    >>> import numpy as np
    >>> import gramnorm as gn
    >>> first, last = np.asarray([[1.0], [-1.0]]), np.asarray([[1.0, 1.0]])
    >>> bool(gn.chain_bound([first, gn.Activation(-1, 1), last]) < 2.001)
    True
    >>> bool(gn.chain_bound([first, gn.Activation(0, 1), last]) < 1.001)
    True
    """

    low: float | Fraction = 0
    high: float | Fraction = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Residual:
    """A residual block ``x -> x + F(x)`` of dense layers, as a layer of a chain.

    Attributes
    ----------
    branch : sequence of arrays, Activation and Residual
        The layers of F in order, as in a chain: there is an activation directly behind each array
        but the last. Where F begins with an activation, or there is one between its last layer and
        the sum, put `Activation` there.
    shortcut : array, shape ``(n_out, n_in)``, optional
        Matrix S of a block ``x -> S x + F(x)``; by default the identity.

    Notes
    -----
    Behind the sum there is an activation if another layer follows. Where the network has none, put
    ``Activation(1, 1)``: the bound holds without it, and is smaller with it.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> rotation = np.asarray([[0.0, -1.0], [1.0, 0.0]])
    >>> bound = gn.chain_bound([gn.Residual([rotation, -rotation.T])])
    >>> bool(1.0 <= bound < 1.0001 < gn.residual_bound(gn.product_bound(1.0, 1.0)))  # 2
    True
    """

    branch: Sequence[Any]
    shortcut: Array | None = None
