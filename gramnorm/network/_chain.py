"""One constant of a whole chain of layers: what it saves that activations never outgrow their input.

An activation with slopes in [0, 1] acts on the difference of two inputs as a diagonal matrix D with
entries in [0, 1].  So the Lipschitz constant of a chain is at most the supremum over such D of

    ||W_l D_{l-1} W_{l-1} ... D_1 W_1||,

and every choice of positive multipliers gives a bound of it by one norm (Theorem 29).  With
shortcuts it is one factorisation for each activation instead (Theorem 36).  Multipliers are found
here, or come from elsewhere, and are never trusted: the norm at the end proves.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import compiling, crossing, dtypes, libraries, limits, probes
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._conv.bounds import conv_norm_bound
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._results import result_dtype
from gramnorm._rigour.fractions import float_above, product_above, root_above
from gramnorm.network import (
    _feedforward,
    _fixed_steps,
    _multipliers,
    _residuals,
    _steps,
    _unrolled,
)
from gramnorm.network._coupling import LARGEST, Chain
from gramnorm.network._links import Link, links
from gramnorm.network._search import Limits, Progress
from gramnorm.network._steps import Layer, Step

Slopes = float | Fraction | Sequence[float | Fraction]

_ROUGH = 0.1
"""Gap of norms of kernels, which scale them and take a third of the time that 1e-3 does."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Checked:
    """A chain that fits together; `product` is the bound by norms, and all there is if `is_known`.

    Norms of kernels are rough, and so is the product, unless it is all there is.
    """

    steps: list[Step]
    slopes: list[Fraction]
    norms: list[float]
    product: float
    is_known: bool
    places: list[_unrolled.Place] | None

    def links(self) -> list[Link]:
        """Return the links for every size."""
        return links(self.steps, self.norms, self.slopes)

    def unrolled(self) -> list[Link] | None:
        """Return the links at one size, if it is given and not too large."""
        if self.places is None or _unrolled.neurons(self.steps, self.places) > limits.CHAIN_NEURONS:
            return None
        return _unrolled.links(self.steps, self.norms, self.slopes, self.places)

    def least(self, bound: float) -> float:
        """Return the lesser of a bound and the product of sharp norms."""
        kernels = sum(1 for step in self.steps if step.axes_out)
        if not kernels or bound < self.product / (1.01 * (1 + _ROUGH) ** kernels):
            return bound
        norms = [_norm(step, step.weights) for step in self.steps]
        return min(bound, _product(self.steps, norms, self.slopes))


@compiling.graph_break
def chain_certificate(
    layers: Sequence[Layer],
    multipliers: Sequence[Array],
    /,
    *,
    slopes: Slopes = 1,
    input_shape: int | Sequence[int] | None = None,
) -> float:
    """Return an upper bound on the Lipschitz constant of a chain of layers, from given multipliers.

    The chain is ``x -> W_l f(... f(W_2 f(W_1 x + b_1) + b_2) ...)`` with any biases. Multipliers
    may come from any solver (LipSDP, ECLipsE, GLipSDP) or guess: they decide how small the bound
    is, not whether it holds.

    Parameters
    ----------
    layers : sequence of arrays and descriptions
        In order: matrices of shape ``(n_out, n_in)``; convolutions, as kernels of shape ``(c_out,
        c_in, *spatial)`` or as `ConvLayer` with stride, dilation and groups; `AvgPool` and
        `MaxPool` behind activations; `Flatten` between the last convolution and the first matrix.
        Weights are real floating. There is an activation directly behind each layer with weights
        but the last. In chains of matrices, `Residual` is a block with a shortcut, and `Activation`
        says the slopes of an activation, or that there is none.
    multipliers : sequence of arrays
        For each layer with weights but the last, one positive number per neuron, or per channel of
        a convolution, up to a factor common to all. Of a solution ``T = diag(t)`` of LipSDP they
        are the square roots of t. At one `input_shape` a convolution may have a number per neuron,
        shape ``(c_out, *sizes)`` of its output; before a maximum over windows that do not overlap,
        of the output of that. With `Residual` or `Activation`, for each activation in the order in
        which they are met, branches included, one number per entry; none for `Activation` with
        equal slopes that are floats.
    slopes : float or sequence of float, optional
        Largest slope of all activations, or of each, as floats, or exactly as fractions: of the
        logistic sigmoid 0.25. With `Residual` or `Activation` one number, of all that are not
        spelled out.
    input_shape : int or sequence of int, optional
        Samples of the input per axis, for a bound at this size: each `ConvLayer` then must say its
        padding, which is of zeros, and there are at most 1500 inputs, neurons and outputs in all.
        By default the bound is of every size.

    Returns
    -------
    float
        The bound, rounded up. NaN if a weight is NaN, else inf if one is inf, else 0 if a layer
        is zero or empty.

    Raises
    ------
    TypeError
        If a layer or multiplier is not an array of real floating numbers, or has no values (inside
        ``jax.jit``).
    ValueError
        If there is no layer, if sizes, axes or the order of layers do not fit, or if a multiplier
        or slope is not positive and finite; if a size is too large or a padding missing.

    See Also
    --------
    chain_bound : Finds the multipliers.
    chain_gram_iteration : The bound by a fixed number of steps, differentiable, for training.
    product_bound : The product of the layers' norms, for any 1-Lipschitz activations.

    Notes
    -----
    **Guarantee.** Not below the Lipschitz constant, in the Euclidean norm, of any such chain whose
    activations act on each entry alone **with slopes in [0, 1]**, or up to those given, which is
    the caller's statement: ``0 <= (f(s) - f(t)) / (s - t) <= 1`` for all s and t. ReLU, leaky ReLU
    with a slope in [0, 1], tanh, sigmoid, softplus, hard tanh and ELU with ``alpha`` in [0, 1] have
    such slopes; the absolute value, GELU, SiLU, softmax and normalisation layers have not. Two
    layers without an activation between are such a chain as well.

    *Matrices* are Theorem 29 of the theory page. *Convolutions*, Theorems 30 and 32, hold for every
    input size, and for zero padding of any amount on any side in each layer; or where all layers
    are circular, poolings too, and the product of all strides divides the size; not for padding
    that reflects, replicates or wraps beyond that size. *Poolings and flattening*, Theorem 33:
    averages over windows that do not overlap are part of the convolution behind them; where a
    maximum, a flattening or another average stands, or where strides since the last such place have
    more than 16 phases, the chain is cut, the constants of both sides are multiplied, and the
    multipliers of the layer before weigh its channels on both.
    Padding of poolings is of zeros, counted by averages, or for the maximum of minus infinity.

    Rounding of weights times multipliers, of the norms and of their powers is counted; that of the
    network's own arithmetic is not. Multipliers beyond e^170 times weights of norm about one are
    replaced by that. In a process that reads subnormal numbers as zeros the result is the product
    of the norms.

    *At one size* each layer is a matrix, Theorem 29, flattening and averages are parts of matrices,
    and only maxima cut the chain.

    *Residual blocks* and activations with slopes in any intervals, among matrices, are Theorem 36:
    the certificate is a checked factorisation for each activation, so that its cost grows with the
    depth alone. Multipliers are good up to a factor for each activation, which is chosen here, and
    no bound is above what `product_bound` and `sum_bound` make of the norms. Of all activations the
    slopes are the caller's statement.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> first, last = np.asarray([[3.0, 0.0], [0.0, 1.0]]), np.asarray([[1.0, 4.0]])
    >>> bound = gn.chain_certificate([first, last], [np.asarray([1.0, 2.0])])
    >>> bool(5.0 <= bound < 6.0 < gn.product_bound(3.0, 17**0.5))
    True
    """
    if _residuals.is_residual(layers):
        graph = _graph(layers, slopes, input_shape)
        logarithms = _residuals.logarithms(multipliers, graph)
        return _feedforward.given(graph, logarithms) if graph.is_plain else graph.product
    checked = _checked(layers, slopes, input_shape)
    found = checked.links() if input_shape is None else checked.unrolled()
    if found is None:
        msg = (
            f"input_shape must be left out for more than {limits.CHAIN_NEURONS} inputs, neurons and "
            f"outputs in all, got {input_shape}; the bound then is of every size"
        )
        raise ValueError(msg)
    vectors = _vectors(multipliers, checked.steps, [link.shape for link in found])
    if checked.is_known:
        return checked.product
    chain = Chain.of(found)
    return chain.certificate(_multipliers.with_ends(chain, vectors))


@compiling.graph_break
def chain_bound(
    layers: Sequence[Layer],
    /,
    *,
    slopes: Slopes = 1,
    input_shape: int | Sequence[int] | None = None,
    effort: str = "standard",
    time_limit: float | None = None,
    progress: Progress | None = None,
    return_multipliers: bool = False,
) -> Any:
    """Return an upper bound on the Lipschitz constant of a chain of layers, from found multipliers.

    The chain is that of `chain_certificate`. The least bound of all multipliers is the optimum of
    the semidefinite program LipSDP-Neuron, which is solved here if the effort allows it.

    Parameters
    ----------
    layers : sequence of arrays and descriptions
        Matrices, kernels, `ConvLayer`, `AvgPool`, `MaxPool` and `Flatten` in order, or matrices,
        `Residual` and `Activation`, as in `chain_certificate`.
    slopes : float or sequence of float, optional
        Largest slope of all activations, or of each, as in `chain_certificate`.
    input_shape : int or sequence of int, optional
        Samples of the input per axis: the bound is then the least of that of every size and, where
        there are at most 1500 inputs, neurons and outputs in all, that of this size, with a
        multiplier per neuron. Each `ConvLayer` must say its padding.
    effort : {"quick", "fast", "standard", "high"}, optional
        How much work the search for multipliers may be, as foretold: on one core about a tenth of a
        second or two steps of the descent, two seconds, a minute, an hour. It decides which way is
        taken, see below.
    time_limit : float, optional
        Seconds after which the search stops where it is, which costs sharpness alone; looked at
        after each step, so that a large chain takes longer.
    progress : callable, optional
        Called as ``progress(bound, seconds)`` after each step of the search, with the least bound
        so far and the seconds since its start. If it returns a true value, the search stops.
    return_multipliers : bool, optional
        Whether to return the multipliers of the bound as well.

    Returns
    -------
    bound : float
        The bound, rounded up, never above the product of the certified norms of layers and
        poolings, and of slopes, and with `Residual` the sums of branches and shortcuts. Special
        values as in `chain_certificate`.
    multipliers : list of numpy arrays, if asked for
        For each layer with weights but the last, as `chain_certificate` takes them; with an
        `input_shape` per neuron where that bound is the least. Where the bound is `product_bound`
        of the norms, NaN, inf or 0, they need not attain it.

    Raises
    ------
    TypeError, ValueError
        As in `chain_certificate`; also if `effort` is none of these, `time_limit` not a positive
        number or `progress` not callable.

    See Also
    --------
    chain_certificate : The bound from multipliers that are known.
    network_bound : Graphs with sums and branches, from norms of layers.

    Notes
    -----
    **Guarantee.** That of `chain_certificate`, with the same statement about the activations: slopes
    in [0, 1], or up to those given. How close the bound comes to the least one is not certified.

    **Search.** Three ways lead to multipliers, and the first that the effort allows is taken. The
    semidefinite program of the whole chain, by an interior point method made for it: it ends within
    1e-8 of the least bound for matrices and 3e-4 for convolutions, and the work grows with the cube
    of the number of channels; "standard" allows some 2000 neurons in layers of 100, or 16
    convolutions of 32 channels. The same for a few layers at a time, which is linear in the depth,
    for chains that are not cut. Descent on a smooth bound, from there or from the product of norms,
    in float64 on the host as all the rest. With `Residual` or `Activation` the first and the last of
    these are taken, up to some 1000 neurons and beyond. An exception, be it of `progress` or from the keyboard,
    ends the search without a bound; `time_limit` and `progress` end it with the best so far.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> first, last = np.asarray([[3.0, 0.0], [0.0, 1.0]]), np.asarray([[1.0, 4.0]])
    >>> bound = gn.chain_bound([first, last])
    >>> bool(5.0 <= bound < 5.001)
    True

    A network for images, from convolutions to classes:

    >>> rng = np.random.default_rng(0)
    >>> conv, head, last = (rng.standard_normal(s) for s in ((4, 1, 3, 3), (5, 100), (2, 5)))
    >>> layers = [gn.ConvLayer(conv, stride=2), gn.MaxPool(2), gn.Flatten((5, 5)), head, last]
    >>> product = gn.product_bound(
    ...     *(float(gn.matrix_norm_bound(w)) for w in (head, last)),
    ...     float(gn.conv_norm_bound(conv, stride=2)),
    ... )
    >>> bool(gn.chain_bound(layers) < 0.9 * product)
    True
    """
    work, seconds = work_of(effort), math.inf
    if time_limit is not None:
        seconds = _validate.positive_number(time_limit, name="time_limit")
    _callable(progress)
    start = time.monotonic()
    if _residuals.is_residual(layers):
        graph = _graph(layers, slopes, input_shape)
        bound, vectors = graph.product, [np.ones(bend.size) for bend in graph.bends]
        if graph.is_plain:
            limits = Limits(work, start, seconds, progress)
            bound, vectors = _feedforward.found(graph, limits=limits)
        return (bound, vectors) if return_multipliers else bound
    checked = _checked(layers, slopes, input_shape)
    if checked.is_known:
        vectors = [np.ones(step.outputs) for step in checked.steps[:-1]]
        return (checked.product, vectors) if return_multipliers else checked.product
    unrolled = checked.unrolled()
    share = 1.0 if unrolled is None else 0.5
    limits = Limits(work, start, share * seconds, progress)
    bound, vectors = _multipliers.found(Chain.of(checked.links()), checked.product, limits=limits)
    if unrolled is not None:
        shapes = [link.shape for link in unrolled[:-1]]
        first = [_each(x, shape) for x, shape in zip(vectors, shapes, strict=True)]
        limits = Limits(work, start, seconds, progress)
        own, found = _multipliers.found(Chain.of(unrolled), bound, first, limits=limits)
        if own < bound:
            bound = own
            vectors = [x.reshape(shape) for x, shape in zip(found, shapes, strict=True)]
    bound = checked.least(bound)
    return (bound, vectors) if return_multipliers else bound


def chain_gram_iteration(
    layers: Sequence[Layer],
    multipliers: Sequence[Array],
    /,
    *,
    steps: int,
    slopes: Slopes = 1,
    density: int = 8,
) -> Array:
    """Return an upper bound on the Lipschitz constant of a chain that fixed Gram steps give.

    The bound of `chain_certificate` for every size of the input, with the fixed-step bound in place
    of the norm: differentiable in weights and multipliers, usable under ``jax.jit``, never waits
    for the device. For the loss of a training, whose multipliers are trained along or found anew
    from time to time.

    Parameters
    ----------
    layers : sequence of arrays and descriptions
        As in `chain_certificate`, all of one library, without `Residual` and `Activation`.
    multipliers : sequence of arrays
        For each layer with weights but the last, positive numbers, one per neuron or channel, as in
        `chain_certificate`; or one array of one number more in front, for the input, and one at the
        end, for the output. Without these two the best ones are searched for, which looks at the
        values and costs more than the bound; they are constants for differentiation, which at the
        best ones makes no difference.
    steps : int
        Number of Gram products, at least 0: the bound of the norm is at most ``n^(1 / 2^(steps +
        1))`` times the norm for n neurons of even or of odd layers, and enters with a power.
    slopes : float or sequence of float, optional
        As in `chain_certificate`.
    density : int, optional
        Of convolutions, frequencies per tap and axis, at least 2: what may lie between them costs a
        factor of about ``1 + 1.2 / density^2`` of the norm per axis at most.

    Returns
    -------
    array of no axes
        The bound, in the namespace and on the device of the layers, of their widest type, float32
        at least. NaN or inf if a weight or multiplier is NaN or a weight inf; 0 if a layer is empty.

    Raises
    ------
    TypeError
        If a layer or multiplier is not an array of real floating numbers.
    ValueError
        If there is no layer, if sizes, axes or the order of layers do not fit, for negative `steps`
        and a `density` below 2.

    See Also
    --------
    chain_certificate : The same by certified norms, smaller, as a float.
    gram_iteration, conv_gram_iteration : The fixed-step bounds of one layer.

    Notes
    -----
    **Guarantee.** That of `chain_certificate`, for the same activations, under the rounding model
    of the theory page in the type of the result (Theorems 25, 29, 30, 32 and 33; between
    frequencies Theorem 10). Numbers that are no positive multipliers, or beyond 2^40 in float32 and
    2^300 in float64, or below their inverses, are replaced by the next that is within, and any such
    number gives a bound. The margin is a constant for differentiation, but for what is proportional
    to the value.

    Examples
    --------
    >>> import numpy as np
    >>> import gramnorm as gn
    >>> layers = [np.asarray([[3.0, 0.0], [0.0, 1.0]]), np.asarray([[1.0, 4.0]])]
    >>> bound = gn.chain_gram_iteration(layers, [np.asarray([1.0, 2.0])], steps=6)
    >>> bool(5.0 <= bound < 6.0)
    True
    """
    arrays, read = _fixed_steps.numbered(layers)
    count = _validate.positive_int(steps, name="steps", least=0)
    exact = _slopes(slopes, len(read) - 1)
    frequencies = _validate.positive_int(density, name="density", least=2)
    listed = _steps.listed(multipliers, "multipliers")
    given = [_validate.real_floating(x, name=f"multipliers {i}") for i, x in enumerate(listed)]
    _one_library([*arrays, *given])
    inner = [(step.outputs,) for step in read[:-1]]
    shapes = [tuple(x.shape) for x in given]
    if shapes not in (inner, [(1,), *inner, (1,)]):
        msg = (
            f"multipliers must have the shapes {inner}, one number for each output of each layer "
            f"but the last, or {[(1,), *inner, (1,)]} with input and output, got {shapes}"
        )
        raise ValueError(msg)
    xp = libraries.namespace(arrays[0])
    if any(0 in a.shape for a in arrays):
        dtype = max(map(result_dtype, arrays), key=dtypes.bits)
        return xp.zeros((), dtype=dtype, device=libraries.device_of(arrays[0]))
    if shapes == inner:
        stage = count, frequencies
        given = _with_ends(layers, arrays, given, slopes, stage=stage)
    chain = Chain.of(links(read, [0.5] * len(read), exact))  # norms of 1/2 scale nothing
    return _fixed_steps.bound(arrays, chain, given, steps=count, density=frequencies)


def _with_ends(
    layers: Sequence[Layer],
    arrays: list[Array],
    multipliers: list[Array],
    slopes: Slopes,
    *,
    stage: tuple[int, int],
) -> list[Array]:
    """Return multipliers with the numbers for input and output that are best for that many steps."""
    if not all(map(libraries.has_values, [*arrays, *multipliers])):
        msg = (
            "multipliers must have a number for the input in front and one for the output at the end "
            "where there are no values (inside jax.jit), from which they could be found"
        )
        raise TypeError(msg)
    checked, ends = _checked(layers, slopes, None), [1.0, 1.0]
    if multipliers and not checked.is_known:
        found = checked.links()
        chain = Chain.of(found)
        vectors = _vectors(multipliers, checked.steps, [link.shape for link in found])
        whole = _multipliers.with_ends(chain, vectors, stages=[(5, 8), stage])
        logs, scales = np.log(whole), np.cumsum(chain.scales)
        shift = np.log(vectors[0][0]) + scales[0] - logs[1]  # by which the hidden ones were moved
        exponents = np.asarray([logs[0] + shift, logs[-1] + shift - scales[-1]])
        ends = np.exp(np.clip(exponents, -LARGEST, LARGEST)).tolist()
    like = arrays[0]
    first, last = (crossing.from_host(np.asarray([x]), dtype=like.dtype, like=like) for x in ends)
    return [first, *multipliers, last]


def _graph(
    layers: Sequence[Layer], slopes: Slopes, input_shape: int | Sequence[int] | None
) -> _residuals.Graph:
    """Check a chain with residual blocks, or with activations that are spelled out."""
    if input_shape is not None:
        msg = "input_shape is for chains with convolutions; Residual and Activation stand in others"
        raise ValueError(msg)
    if isinstance(slopes, Sequence):
        msg = (
            "slopes must be one number in a chain with Residual or Activation, for activations that "
            "are not spelled out: Activation(low, high) says the slopes of one"
        )
        raise ValueError(msg)
    return _residuals.read(layers, slopes)


def coupled(
    layers: Sequence[Layer], multipliers: Sequence[Array] | None, *, time_limit: float | None
) -> tuple[Chain, list[Link], HostFloats]:
    """Return a chain with bounds neither 0, inf nor NaN, and all multipliers, given or found."""
    checked = _checked(layers, 1, None)
    if checked.is_known:
        msg = f"layers must be finite, and none of them zero or empty, their bound is {checked.product}"
        raise ValueError(msg)
    if multipliers is None:
        multipliers = chain_bound(layers, time_limit=time_limit, return_multipliers=True)[1]
    found = checked.links()
    chain = Chain.of(found)
    vectors = _vectors(multipliers, checked.steps, [link.shape for link in found])
    return chain, found, _multipliers.with_ends(chain, vectors)


def _one_library(arrays: Sequence[Array]) -> None:
    """Check that arrays are of one library."""
    spaces = sorted({libraries.namespace(a).__name__ for a in arrays})
    if len(spaces) > 1:
        msg = f"layers and multipliers must be of one library, got {', '.join(spaces)}"
        raise TypeError(msg)


def work_of(effort: object) -> float:
    """Return the operations that an effort allows."""
    if not isinstance(effort, str):
        msg = f"effort must be a string, got {type(effort).__name__}"
        raise TypeError(msg)
    if effort not in _multipliers.EFFORTS:
        names = ", ".join(map(repr, _multipliers.EFFORTS))
        msg = f"effort must be one of {names}, got {effort!r}"
        raise ValueError(msg)
    return _multipliers.EFFORTS[effort]


def _callable(progress: object) -> None:
    """Check that there is something to call, if anything."""
    if progress is not None and not callable(progress):
        msg = f"progress must be a function of a bound and seconds, got {type(progress).__name__}"
        raise TypeError(msg)


def _checked(
    layers: Sequence[Layer], slopes: Slopes, input_shape: int | Sequence[int] | None
) -> _Checked:
    """Check a chain, and bound the norm of each of its steps."""
    steps = _steps.read(layers)
    found = _slopes(slopes, len(steps) - 1)
    places = None if input_shape is None else _unrolled.places(steps, input_shape)
    peaks = [float(np.max(np.abs(step.weights), initial=0.0)) for step in steps]
    # entries read as zeros are missing in B, but the norms of the layers count them
    flushes = probes.flushes_subnormals(steps[0].weights, steps[0].weights.dtype)
    is_plain = all(0 < peak < math.inf for peak in peaks)
    is_known = not is_plain or flushes
    norms = [
        _norm(step, step.array if flushes else step.weights, is_rough=not is_known)
        for step in steps
    ]
    product = _product(steps, norms if is_plain or flushes else peaks, found)
    if is_known:  # the shapes are all that matters from here on
        steps = [dataclasses.replace(s, weights=np.zeros_like(s.weights)) for s in steps]
        norms = [1.0 for _ in steps]
    return _Checked(steps, found, norms, product, is_known, places)


def _product(steps: Sequence[Step], norms: Sequence[float], slopes: Sequence[Fraction]) -> float:
    """Return the product of norms, of slopes and of the constants of poolings, rounded up."""
    if not all(0 < norm < math.inf for norm in norms):
        return product_above(norms)
    squares = [pool.square for step in steps for pool in step.pools]
    exact = math.prod([*map(Fraction, norms), *slopes], start=Fraction(1))
    return float_above(exact * Fraction(root_above(math.prod(squares, start=Fraction(1)))))


def _norm(step: Step, x: Array, *, is_rough: bool = False) -> float:
    """Return an upper bound on the norm of the weights of a step."""
    if 0 in x.shape:
        return 0.0
    if not step.axes_out:
        return float(matrix_norm_bound(x))
    rtol = _ROUGH if is_rough else None
    bound = conv_norm_bound(
        x, stride=step.stride, dilation=step.dilation, groups=step.groups, rtol=rtol
    )
    return float(bound)


def _slopes(slopes: Slopes, activations: int) -> list[Fraction]:
    """Return the largest slope of each activation, exactly."""
    each = slopes if isinstance(slopes, Sequence) else [slopes]
    for slope in each:
        _validate.positive_number(slope, name="slopes")
    listed = each if isinstance(slopes, Sequence) else [slopes] * activations
    if len(listed) != activations:
        msg = (
            "slopes must be one number, or one for each layer with weights but the last, "
            f"{activations}, got {len(listed)}"
        )
        raise ValueError(msg)
    return [_exact(slope) for slope in listed]


def _exact(number: Any) -> Fraction:
    """Return a real number as a fraction."""
    if isinstance(number, numbers.Integral):
        return Fraction(int(number))
    return Fraction(*number.as_integer_ratio())


def _each(x: HostFloats, shape: tuple[int, ...]) -> HostFloats:
    """Return one number per neuron, of those or of one number per channel."""
    return x.reshape(-1) if x.shape == shape else np.repeat(x, math.prod(shape[1:]))


def _vectors(
    multipliers: Sequence[Array], steps: Sequence[Step], shapes: Sequence[tuple[int, ...]]
) -> list[HostFloats]:
    """Return the multipliers on the host, once there are as many as channels, all positive."""
    listed = _steps.listed(multipliers, "multipliers")
    if len(listed) != len(steps) - 1:
        msg = (
            "multipliers must hold one array for each layer with weights but the last, "
            f"{len(steps) - 1}, got {len(listed)}"
        )
        raise ValueError(msg)
    arrays = [_steps.floats(x, name=f"multipliers {i}") for i, x in enumerate(listed)]
    vectors = [crossing.to_host(a) for a in arrays]
    for i, (x, step, shape) in enumerate(zip(vectors, steps, shapes, strict=False)):
        if x.shape not in ((step.outputs,), shape):
            neurons = "" if len(shape) == 1 else f", or {shape}, one for each neuron"
            msg = (
                f"multipliers {i} must have the shape {(step.outputs,)}, one number for each "
                f"output of {step.name}{neurons}, got {x.shape}"
            )
            raise ValueError(msg)
        _steps.all_positive(x, name=f"multipliers {i}")
    return [_each(x, shape) for x, shape in zip(vectors, shapes, strict=False)]
