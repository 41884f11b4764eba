"""Networks of PyTorch modules: what each module does to the difference of two inputs.

A module is read only if it does what its class in torch does: `forward` and all that leads to it
are torch's, no hook stands before or behind it, and it is in evaluation mode where the mode
matters.  What is read is a Lipschitz constant, and what the module is within a chain
(docs/theory.md, Lemma 34); the chain of them is then walked like any other network.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as of_all_modules
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from gramnorm import _validate
from gramnorm._arrays import crossing
from gramnorm._conv.bounds import conv_norm_bound
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._rigour.fractions import float_above, root_above
from gramnorm.network import _slopes
from gramnorm.network._chain import work_of
from gramnorm.network._graph import Chain, Network, Step, runs, walked
from gramnorm.network._layers import AvgPool, MaxPool
from gramnorm.network._sequence import Entrywise, Flattened, Part, Pooled, Values, Weighted
from gramnorm.network._slopes import Slopes

__all__ = ["network_bound"]

_SMOOTH = 20.0  # softplus beyond it is the identity but for 2e-9, which counts as rounding
_CALLED = (  # what stands between the call of a module and what its class does
    *("forward", "__call__", "_call_impl", "_wrapped_call_impl", "_conv_forward"),
    *("__getattr__", "__getattribute__", "__iter__"),
)


def network_bound(
    model: nn.Module,
    *,
    input_shape: Sequence[int] | None = None,
    method: str = "sdp",
    effort: str = "standard",
    time_limit: float | None = None,
) -> float:
    """Return an upper bound on the Lipschitz constant of a model that is a chain of modules.

    Parameters
    ----------
    model : torch.nn.Module
        A `torch.nn.Sequential`, nested or not, of `Linear`, ``Conv1d`` to ``Conv3d``,
        ``ConvTranspose1d`` to ``ConvTranspose3d``, batch normalisation, dropout, activations,
        pooling and flattening; or one of these.
    input_shape : sequence of int, optional
        Shape of one example, without the batch; it is looked at with one example of zeros. A chain
        goes on through `Flatten` behind a convolution only if the size there is known, and
        through a batch normalisation behind a `Linear` only if it is known to be the features that
        are normalised. The bounds of convolutions are those for every size all the same.
    method : {"sdp", "product"}, optional
        Whether layers that follow each other have a bound as a whole, as `gramnorm.chain_bound`
        finds it, where that is smaller than the product of their norms; or always the product.
    effort : {"quick", "fast", "standard", "high"}, optional
        How much work the search for each of these bounds may be, as in `gramnorm.chain_bound`.
    time_limit : float, optional
        Seconds after which the search for smaller bounds stops where it is.

    Returns
    -------
    float
        The bound, rounded up. NaN if a weight is NaN, inf if one is inf.

    Raises
    ------
    TypeError
        If a module is none of those above, or may not do what its class does: a subclass with a
        `forward` of its own, hooks, weights that are complex, or not there yet.
    ValueError
        If a module is in training mode whose function depends on it (batch normalisation, dropout,
        parametrized weights), has no Lipschitz constant (HardShrink), or none for every size of
        the input (padding other than by zeros); or if an argument is wrong, or `input_shape` is none
        that the model takes.

    See Also
    --------
    layer_norms : The norms of the layers, for models of any form.
    gramnorm.chain_bound : The bound of a chain from its weights.

    Notes
    -----
    **Guarantee.** An upper bound on the Lipschitz constant in the Euclidean norm of the model in
    evaluation mode, as a function of a batch ``(N, *input)`` of any size, in exact arithmetic with
    the weights as stored. Rounding of the model's own arithmetic, autocast among it, is no part of
    it. By Theorems 17, 29, 30, 32 and 33 and Lemma 34 of the theory page; never above the product of the
    certified norms with the constants of what stands between.

    Chains are of convolutions and then dense layers, with poolings, a flattening, and what acts on
    entries alone between them, with slopes of one sign: ReLU, LeakyReLU, PReLU, ELU, CELU, SELU,
    Hardtanh, Tanh, Sigmoid, Hardsigmoid, Softplus, Softsign, LogSigmoid, Tanhshrink, Softshrink,
    identities, batch normalisation. GELU, SiLU, Mish, Hardswish, Softmax and transposed
    convolutions with a stride end one, each with its own constant.

    A model with a `forward` of its own cannot be read off its modules: export it by
    `torch.onnx.export`, and ``gramnorm report`` gives the constant of its graph, shortcuts and all.

    Examples
    --------
    >>> import torch
    >>> from gramnorm.torch import network_bound
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(),
    ...     torch.nn.Linear(32, 4),
    ... )
    >>> network_bound(model) < 0.8 * network_bound(model, method="product")
    True
    """
    example = None if input_shape is None else _validate_shape(input_shape)
    if method not in ("sdp", "product"):
        msg = f"method must be 'sdp' or 'product', got {method!r}"
        raise ValueError(msg)
    work_of(effort)
    if time_limit is not None:
        time_limit = _validate.positive_number(time_limit, name="time_limit")
    check_model(model)
    network, norms = _network(model, example)
    chains = [] if method == "product" else _chains(network, norms, effort, time_limit)
    return walked(network, norms, chains)


def _chains(
    network: Network, norms: dict[str, float], effort: str, seconds: float | None
) -> list[Chain]:
    """Return the chains with their bounds, as far as the time goes."""
    until = None if seconds is None else time.monotonic() + seconds
    found = []
    for run in runs(network):
        left = None if until is None else until - time.monotonic()
        if left is None or left > 0:
            found.append(run.as_whole(run.by_norms(norms), time_limit=left, effort=effort))
    return found


def _network(model: nn.Module, example: tuple[int, ...] | None) -> tuple[Network, dict[str, float]]:
    """Return the model as steps, and the norms of its layers by the number of their step."""
    steps: list[Step] = []
    norms: dict[str, float] = {}
    shape: Shape = None if example is None else (None, *example)
    for name, module in _leaves("", model):
        before, after = str(len(steps)), str(len(steps) + 1)
        with torch.no_grad():
            found = _read(name, module, shape)
            shape = found.shape if example is None else _behind(name, module, shape)
        is_layer = isinstance(found.part, Weighted)
        if is_layer:
            norms[after] = found.constant
        factor = 1.0 if is_layer else found.constant
        layer = after if is_layer else None
        steps.append(Step(after, ((before, factor),), layer=layer, part=found.part))
    return Network(("0",), tuple(steps), (str(len(steps)),)), norms


def _behind(name: str, module: nn.Module, shape: Shape) -> Shape:
    """Return the shape behind a module, which is called with zeros."""
    assert shape is not None
    weights = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    x = torch.zeros((1, *shape[1:]), dtype=weights.dtype, device=weights.device)  # type: ignore[arg-type]
    try:
        found = module(x)
    except (RuntimeError, ValueError, IndexError) as error:
        msg = f"input_shape is none that {label(name, module)} takes: {error}"
        raise ValueError(msg) from error
    return (None, *found.shape[1:])


def _leaves(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in the order of their calls, with what is around them untouched."""
    _check_hooks(name, module)
    if not does_as(module, (nn.Sequential,)):
        yield name, module
        return
    for key, child in module._modules.items():
        if child is not None:
            yield from _leaves(f"{name}.{key}" if name else key, child)


# Checks.


def check_model(model: object) -> None:
    """Complain about what holds weights, but not what is done with them."""
    if not isinstance(model, nn.Module):
        msg = (
            f"model must be a torch.nn.Module, got {type(model).__name__}: weights alone do not tell "
            "strides and padding; load a state_dict into its model (load_state_dict), or take the "
            "command `gramnorm report` for a file of weights"
        )
        raise TypeError(msg)


def label(name: str, module: nn.Module) -> str:
    """Return what messages call a module."""
    kind = type(module).__name__
    return f"the layer {name!r} ({kind})" if name else f"the model ({kind})"


def weight_of(module: nn.Module) -> torch.Tensor:
    """Return the weight of a layer, as its parametrizations return it."""
    own = dict(module.named_parameters(recurse=False))
    if "weight" not in own and not parametrize.is_parametrized(module, "weight"):
        msg = (
            f"the weight of a {type(module).__name__} is set by a hook "
            "(torch.nn.utils.weight_norm, spectral_norm or prune), and may be out of date; use "
            "torch.nn.utils.parametrizations, or make it permanent"
        )
        raise TypeError(msg)
    weight = cast(torch.Tensor, module.weight)
    if is_lazy(weight):
        msg = f"a {type(module).__name__} has no weight yet; run a batch through the model first"
        raise TypeError(msg)
    return weight


def does_as(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Say whether a module is one of these, and nothing between its call and its work is replaced."""
    for kind in kinds:
        if isinstance(module, kind):
            same = (getattr(type(module), n, None) is getattr(kind, n, None) for n in _CALLED)
            return all(same) and not any(n in vars(module) for n in _CALLED)
    return False


def _check_hooks(name: str, module: nn.Module) -> None:
    if any(map(is_lazy, module.parameters(recurse=False))):
        msg = f"{label(name, module)} has no weight yet; run a batch through the model first"
        raise TypeError(msg)
    everywhere = (of_all_modules._global_forward_hooks, of_all_modules._global_forward_pre_hooks)
    if any((module._forward_hooks, module._forward_pre_hooks, *everywhere)):
        msg = (
            f"{label(name, module)} has forward hooks, which may change what it does; remove them "
            "(torch.nn.utils.weight_norm, spectral_norm and prune set some: make the weight "
            "permanent, or use torch.nn.utils.parametrizations)"
        )
        raise TypeError(msg)


def _check_evaluated(name: str, module: nn.Module, why: str) -> None:
    if any(part.training for part in module.modules()):
        msg = f"{label(name, module)} is in training mode, in which {why}; call model.eval() first"
        raise ValueError(msg)


def _refused(name: str, module: nn.Module) -> TypeError:
    if isinstance(module, nn.Sequential) or not type(module).__module__.startswith("torch."):
        why = "has a forward of its own, which its modules do not tell"
    else:
        why = "is none of the modules that are understood"
    known = ", ".join(kind.__name__ for kind in _READERS)
    return TypeError(
        f"{label(name, module)} {why}: Sequential, {known}; for other models use the graph: "
        "torch.onnx.export(model, ...) and `gramnorm report model.onnx`"
    )


def _validate_shape(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(_validate.positive_int(n, name="input_shape") for n in shape)


# Reading one module.

Shape = tuple[int | None, ...] | None
"""Of a batch: None where its size, or another, is not known, or how many axes there are."""


@dataclasses.dataclass(frozen=True)
class _Read:
    """A Lipschitz constant, what the module is within a chain, and what is known of the shape then."""

    constant: float
    part: Part | None = None
    shape: Shape = None


_Reader = Callable[[str, Any, Shape], _Read]


def _read(name: str, module: nn.Module, shape: Shape) -> _Read:
    """Return what a module does to a batch of that shape."""
    for kind, reader in _READERS.items():
        if does_as(module, (kind,)):
            if parametrize.is_parametrized(module):
                _check_evaluated(name, module, "parametrizations may change with every call")
            try:
                return reader(name, module, shape)
            except (TypeError, ValueError) as error:
                text = str(error)
                there = label(name, module)
                raise type(error)(text if there in text else f"{there}: {text}") from error
    raise _refused(name, module)


def _host(weight: torch.Tensor) -> Values:
    """Return a weight on the host, in float64 or, which is as exact for shorter ones, float32."""
    if weight.is_complex():
        msg = "its weight is complex, and the activations of a chain are real"
        raise TypeError(msg)
    host = crossing.to_host(weight.detach())
    return host if weight.dtype == torch.float64 else host.astype(np.float32)


def _stable(module: nn.Module) -> torch.Tensor:
    """Return the weight, once it is the same at every call."""
    weight = weight_of(module).detach()
    again = weight_of(module).detach()
    if not torch.equal(torch.nan_to_num(weight), torch.nan_to_num(again)):
        msg = "its weight is another at every call"
        raise ValueError(msg)
    return weight


def _linear(_name: str, module: nn.Linear, shape: Shape) -> _Read:
    weight = _stable(module)
    part = Weighted(_host(weight))
    return _Read(float(matrix_norm_bound(weight)), part, shape)


def _conv(_name: str, module: Any, _shape: Shape) -> _Read:
    if module.padding_mode != "zeros":
        msg = (
            f"padding_mode {module.padding_mode!r} has no bound for every size of the input; "
            "layer_norms takes input_shapes"
        )
        raise ValueError(msg)
    keys = ("stride", "dilation", "groups", "transposed", "output_padding")
    geometry = {key: getattr(module, key) for key in keys}
    weight = _stable(module)
    norm = float(conv_norm_bound(weight, padding=module.padding, **geometry))
    return _Read(norm, Weighted(_host(weight), geometry), (None,) * weight.ndim)


def _batch_norm(axes: int | None) -> _Reader:
    """Return the reader of batch normalisation with so many spatial axes; None for one or none."""

    def read(name: str, module: Any, shape: Shape) -> _Read:
        _check_evaluated(name, module, "it divides by the statistics of the batch")
        if module.running_var is None or module.running_mean is None:
            msg = "it keeps no running statistics, and divides by those of its input"
            raise TypeError(msg)
        scale = np.ones(module.num_features)
        if module.weight is not None:
            scale = crossing.to_host(weight_of(module).detach())
        variance = crossing.to_host(module.running_var)
        behind = shape if axes is None else (None,) * (2 + axes)
        if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(variance))):
            return _Read(math.nan, None, behind)
        below = [Fraction(v) + Fraction(module.eps) for v in variance.tolist()]
        if min(below, default=1) <= 0:
            msg = "a variance of it is not positive"
            raise ValueError(msg)
        squares = (Fraction(a) ** 2 / b for a, b in zip(scale.tolist(), below, strict=True))
        along = np.copysign(list(map(root_above, squares)), scale)
        largest = float(np.max(np.abs(along), initial=0.0))
        part = None
        if behind is not None:  # else it may be another axis than that of the features
            part = Entrywise(scale=along.reshape(1, -1, *[1] * (len(behind) - 2)))
        return _Read(largest, part, behind)

    return read


def _entrywise(slopes: Slopes | Callable[[Any], Slopes]) -> _Reader:
    """Return the reader of a function of each entry, by what its slopes lie between."""

    def read(_name: str, module: Any, shape: Shape) -> _Read:
        found = slopes(module) if callable(slopes) else slopes
        largest = _slopes.in_chain(found)
        part = None if largest is None else Entrywise(largest)
        return _Read(_slopes.lipschitz(found), part, shape)

    return read


def _constant(value: float) -> _Reader:
    """Return the reader of what has a constant, and ends a chain."""
    return lambda _name, _module, shape: _Read(value, None, shape)


def _prelu(module: nn.PReLU) -> Slopes:
    slopes = crossing.to_host(weight_of(module).detach())
    return float(slopes.min(initial=1.0)), float(slopes.max(initial=1.0))


def _softplus(module: nn.Softplus) -> Slopes:
    if module.beta == 0 or not module.threshold >= _SMOOTH:
        msg = f"it jumps at threshold {module.threshold}, beta {module.beta}"
        raise ValueError(msg)
    return _slopes.FIXED["softplus"]


def _softshrink(module: nn.Softshrink) -> Slopes:
    if not module.lambd >= 0:
        msg = f"lambd must not be negative, got {module.lambd}"
        raise ValueError(msg)
    return _slopes.FIXED["soft_shrink"]


def _threshold(module: nn.Threshold) -> Slopes:
    if module.threshold != module.value:
        msg = f"it jumps from {module.value} to {module.threshold}, and has no Lipschitz constant"
        raise ValueError(msg)
    return _slopes.FIXED["relu"]


def _rrelu(name: str, module: nn.RReLU, shape: Shape) -> _Read:
    _check_evaluated(name, module, "its slopes are drawn at every call")
    # the mean of both, rounded as torch may
    ends = [_slopes.of_leaky_relu(end) for end in (module.lower, module.upper)]
    both = min(low for low, _ in ends), max(high for _, high in ends)
    return _entrywise(both)(name, module, shape)


def _dropout(name: str, module: Any, shape: Shape) -> _Read:
    if module.p:
        _check_evaluated(name, module, "it drops entries and scales others")
    return _Read(1.0, Entrywise(), shape)


def _jumping(_name: str, _module: nn.Module, _shape: Shape) -> _Read:
    msg = "it jumps, and has no Lipschitz constant"
    raise ValueError(msg)


def _gelu(name: str, module: nn.GELU, shape: Shape) -> _Read:
    return _constant(_slopes.GELU[module.approximate])(name, module, shape)


def _flatten(_name: str, module: nn.Flatten, shape: Shape) -> _Read:
    if (module.start_dim, module.end_dim) != (1, -1):
        return _Read(1.0)
    part: Part | None = None
    if shape is not None and len(shape) == 2:
        part = Entrywise()
    elif shape is not None and None not in shape[1:]:
        part = Flattened(cast(tuple[int, ...], shape[2:]))
    return _Read(1.0, part, (None, None))


def _max_pool(axes: int) -> _Reader:
    """Return the reader of a maximum over windows (docs/theory.md, Lemma 18)."""

    def read(_name: str, module: Any, _shape: Shape) -> _Read:
        if module.return_indices:
            msg = "it returns indices as well"
            raise ValueError(msg)
        steps = module.kernel_size if module.stride is None else module.stride
        each = [_per_axis(v, axes) for v in (module.kernel_size, steps, module.dilation)]
        return _pooled(MaxPool(*each), axes)

    return read


def _average_pool(axes: int) -> _Reader:
    """Return the reader of averages over windows (docs/theory.md, Lemma 18)."""

    def read(_name: str, module: Any, _shape: Shape) -> _Read:
        is_padded = any(_per_axis(module.padding, axes))
        counted = module.count_include_pad or not is_padded
        if module.ceil_mode or not counted or getattr(module, "divisor_override", None) is not None:
            msg = (
                "windows at its ends are averaged over other numbers of samples (ceil_mode, "
                "count_include_pad=False, divisor_override)"
            )
            raise ValueError(msg)
        steps = module.kernel_size if module.stride is None else module.stride
        return _pooled(AvgPool(*(_per_axis(v, axes) for v in (module.kernel_size, steps))), axes)

    return read


def _global_pool(axes: int, *, is_average: bool) -> _Reader:
    """Return the reader of the average or the maximum over all samples."""

    def read(_name: str, module: Any, shape: Shape) -> _Read:
        if set(_per_axis(module.output_size, axes)) != {1}:
            msg = (
                f"its windows depend on the size of the input, got output_size {module.output_size}"
            )
            raise ValueError(msg)
        if getattr(module, "return_indices", False):
            msg = "it returns indices as well"
            raise ValueError(msg)
        if shape is None or len(shape) != axes + 2 or None in shape[2:]:
            return _Read(1.0, None, (None,) * (axes + 2))
        sizes = cast(tuple[int, ...], shape[2:])
        return _pooled(AvgPool(sizes) if is_average else MaxPool(sizes), axes)

    return read


def _pooled(layer: AvgPool | MaxPool, axes: int) -> _Read:
    part = Pooled(layer)
    return _Read(part.constant, part, (None,) * (axes + 2))


def _per_axis(value: Any, axes: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,) * axes


_SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)

_READERS: dict[type[nn.Module], _Reader] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv),
    nn.BatchNorm1d: _batch_norm(None),
    nn.BatchNorm2d: _batch_norm(2),
    nn.BatchNorm3d: _batch_norm(3),
    nn.Identity: _entrywise(_slopes.FIXED["identity"]),
    nn.ReLU: _entrywise(_slopes.FIXED["relu"]),
    nn.LeakyReLU: _entrywise(lambda module: _slopes.of_leaky_relu(module.negative_slope)),
    nn.PReLU: _entrywise(_prelu),
    nn.RReLU: _rrelu,
    nn.ELU: _entrywise(lambda module: _slopes.of_elu(module.alpha)),
    nn.CELU: _entrywise(lambda module: _slopes.of_celu(module.alpha)),
    nn.SELU: _entrywise(_slopes.of_selu(*_SELU)),
    nn.Hardtanh: _entrywise(_slopes.FIXED["clip"]),  # and ReLU6, which is one
    nn.Tanh: _entrywise(_slopes.FIXED["tanh"]),
    nn.Sigmoid: _entrywise(_slopes.FIXED["sigmoid"]),
    nn.Hardsigmoid: _entrywise(_slopes.of_hard_sigmoid(float_above(Fraction(1, 6)))),
    nn.Softplus: _entrywise(_softplus),
    nn.Softsign: _entrywise(_slopes.FIXED["softsign"]),
    nn.LogSigmoid: _entrywise(_slopes.FIXED["log_sigmoid"]),
    nn.Tanhshrink: _entrywise(_slopes.FIXED["tanh_shrink"]),
    nn.Softshrink: _entrywise(_softshrink),
    nn.Threshold: _entrywise(_threshold),
    nn.Hardshrink: _jumping,
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _dropout),
    **dict.fromkeys((nn.AlphaDropout, nn.FeatureAlphaDropout), _dropout),
    nn.GELU: _gelu,
    nn.SiLU: _constant(_slopes.SWISH),
    nn.Mish: _constant(_slopes.MISH),
    nn.Hardswish: _constant(_slopes.HARD_SWISH),
    nn.Softmax: _constant(_slopes.SOFTMAX),
    nn.Flatten: _flatten,
    nn.MaxPool1d: _max_pool(1),
    nn.MaxPool2d: _max_pool(2),
    nn.MaxPool3d: _max_pool(3),
    nn.AvgPool1d: _average_pool(1),
    nn.AvgPool2d: _average_pool(2),
    nn.AvgPool3d: _average_pool(3),
    nn.AdaptiveAvgPool1d: _global_pool(1, is_average=True),
    nn.AdaptiveAvgPool2d: _global_pool(2, is_average=True),
    nn.AdaptiveAvgPool3d: _global_pool(3, is_average=True),
    nn.AdaptiveMaxPool1d: _global_pool(1, is_average=False),
    nn.AdaptiveMaxPool2d: _global_pool(2, is_average=False),
    nn.AdaptiveMaxPool3d: _global_pool(3, is_average=False),
}
"""How each module is read."""
