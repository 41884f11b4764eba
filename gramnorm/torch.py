"""Modules of PyTorch: certified norms of layers, a penalty on them, weights that keep to a bound.

A dense or convolutional layer maps x to T(W) x + b, and its Lipschitz constant is the norm of T(W):
of the operator that the layer's own stride, padding, dilation and groups make of the weight W.
They are read off the module, so that nobody has to repeat them.  What rounding adds to a weight
that is divided by g is at most

    |fl(W / g) - W / g| <= u |W| / g + lost,   ||T(|W|)||^2 <= (largest row sum) (largest column
    sum),

the latter by Schur's test; g makes room for it, and the weight as stored keeps to the bound.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

from gramnorm import _validate

try:
    import torch
    from torch import nn
except ImportError as error:
    msg = f"gramnorm.torch needs PyTorch: {_validate.install('torch')}"
    raise ImportError(msg) from error

from gramnorm._arrays import spread
from gramnorm._conv import bounds as conv_bounds
from gramnorm._conv.bounds import conv_norm_bound
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._matrix import bounds as matrix_bounds
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._modules import check_model, does_as, label, network_bound, weight_of
from gramnorm._rescaling import conv_spectral_rescaling, spectral_rescaling
from gramnorm._rigour.model import precision_of
from gramnorm._tracking import Tracked, placed, start_tracking, track_norm

__all__ = [
    "NormTracker",
    "SpectralBound",
    "layer_norms",
    "lipschitz_penalty",
    "network_bound",
]

_DENSE = (nn.Linear,)
_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_GEOMETRY = (  # what the modules and `conv_norm_bound` call by the same names
    *("stride", "padding", "padding_mode", "dilation", "groups"),
    *("transposed", "output_padding"),
)
_SMALL = 2**14
"""Entries of a weight up to which `_MANY` steps cost no more than a few with more of them."""
_MANY = 4
_EARLY, _MOST = 32, 12
"""Accesses with `_MANY` steps, or with so many for a matrix: the first of Adam turn a weight about."""
_LOOSE = 1e-2
"""Gap of a norm in a training step: the direction of a gradient needs no more."""
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_COUNTED = (
    "Linear, Conv1d to Conv3d, ConvTranspose1d to ConvTranspose3d and BatchNorm1d to BatchNorm3d"
)


def layer_norms(
    model: nn.Module,
    *,
    input_shapes: Mapping[str, int | Sequence[int]] | None = None,
    skip: Collection[str] = (),
    rtol: float | None = None,
) -> dict[str, torch.Tensor]:
    """Return a certified upper bound on the spectral norm of every layer of a model.

    Layers are `torch.nn.Linear`, ``Conv1d`` to ``Conv3d``, ``ConvTranspose1d`` to
    ``ConvTranspose3d``, each with its own stride, padding, dilation, groups and output padding, and
    ``BatchNorm1d`` to ``BatchNorm3d`` in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        The model, or a single layer, whose name is then the empty string.
    input_shapes : mapping of str to int or sequence of int, optional
        Samples per spatial axis of the input of convolutions, by the names of
        `torch.nn.Module.named_modules`: the bound is then that of this size. A convolution that is
        not named is bounded for every size of its input.
    skip : collection of str, optional
        Names of submodules (with all below them), parameters and buffers to leave out: what they do
        to the Lipschitz constant is the caller's to know.
    rtol : float, optional
        Relative gap asked for, as in `matrix_norm_bound` and `conv_norm_bound`.

    Returns
    -------
    dict of str to 0-d torch.Tensor
        Upper bounds by name, in the order of `torch.nn.Module.named_modules`, on the device of the
        weights, in float64 for such weights and in float32 for all shorter ones. Autograd
        differentiates them once; ``.item()`` turns one into a number, where ``float`` makes PyTorch
        warn of the gradient that is lost.

    Raises
    ------
    TypeError
        If a submodule holds parameters or buffers that are not accounted for: recurrent, attention,
        bilinear and embedding layers, normalisation by the statistics of the input
        (`torch.nn.LayerNorm`, batch normalisation without running statistics), subclasses with a
        `forward` of their own, modules of your own with parameters, and weights that a hook
        replaces. No weight is left out silently; `skip` leaves it out.
    ValueError
        If `input_shapes` or `skip` names what the model does not have, or `input_shapes` lacks a
        layer whose norm depends on the size: padding by reflection or replication, circular padding
        with a stride, or with more padding than the kernel needs.

    See Also
    --------
    lipschitz_penalty : The sum of their logarithms, to train with.
    SpectralBound : A parametrization that keeps the norm of a layer below a bound.

    Notes
    -----
    **Guarantee.** Each value is an upper bound on the norm of the linear part of its layer, for the
    weights as stored, rounding included, as `matrix_norm_bound` and `conv_norm_bound` state it; for
    batch normalisation it is the largest ``|weight| / sqrt(running_var + eps)``, rounded up, which
    is the layer in evaluation mode whatever the mode of the model. In training mode batch
    normalisation divides by the statistics of the batch, and no number bounds it.

    The product of the values is a Lipschitz constant of the model only if the layers form a chain,
    each used once, with 1-Lipschitz functions between them. What holds neither parameters nor
    buffers is not seen: activations, pooling, normalisation without scales, residual sums and every
    function called in `forward`. A layer that is registered twice is listed twice; that `forward`
    calls one layer twice cannot be seen. Hooks, and casts by autocast, are not seen either, nor an
    `output_size` given to a transposed convolution, which every size covers.

    Weights that are spread over processes (`torch.distributed.fsdp.fully_shard`) are bounded as the
    whole; all processes call this function together, and each gets the same values.

    A weight under a parametrization is bounded as the parametrization returns it. The search looks
    at the weights, so neither ``torch.compile`` nor ``torch.func`` can trace it.

    Examples
    --------
    >>> import torch
    >>> from gramnorm.torch import layer_norms
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Conv2d(1, 4, 3, stride=2, padding=1),
    ...     torch.nn.Flatten(),
    ...     torch.nn.Linear(64, 10),
    ... )
    >>> norms = layer_norms(model, input_shapes={"0": (8, 8)})
    >>> list(norms), bool(norms["2"] >= torch.linalg.matrix_norm(model[2].weight.double(), ord=2))
    (['0', '2'], True)
    """
    _validate.tolerance(rtol, default=1.0)
    shapes = dict(input_shapes or {})

    def bound(name: str, module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, _bound(weight, _geometry(module), shapes.get(name), rtol))

    return _norms(model, shapes, skip, bound)


def _norms(
    model: nn.Module,
    shapes: Mapping[str, int | Sequence[int]],
    skip: Collection[str],
    norm_of: Callable[[str, nn.Module, torch.Tensor], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Return what `norm_of` says of every layer and its weight, by name."""
    check_model(model)
    _check_names(model, shapes, skip)
    norms = {}
    for name, module in _layers(model, skip):
        if isinstance(module, _BATCH_NORMS):
            norms[name] = _batch_norm_scale(name, module)
        else:
            with _named(name, module):
                weight, geometry, shape = weight_of(module), _geometry(module), shapes.get(name)
            if shape is None:
                remedy = f"input_shapes must give that of {label(name, module)}"
                _check_every_size(weight, geometry, remedy)
            with _named(name, module):
                norms[name] = norm_of(name, module, weight)
    return norms


def lipschitz_penalty(
    model: nn.Module,
    *,
    input_shapes: Mapping[str, int | Sequence[int]] | None = None,
    skip: Collection[str] = (),
    rtol: float = 1e-2,
    tracker: NormTracker | None = None,
) -> torch.Tensor:
    """Return the sum of the logarithms of certified upper bounds on the norms of layers.

    Added to a loss, with a weight, it lowers the product of the norms: the regularisation of
    Delattre et al. [1]_.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    input_shapes : mapping of str to int or sequence of int, optional
        Samples per spatial axis of the input of convolutions, as in `layer_norms`; every size by
        default, which is the cheaper.
    skip : collection of str, optional
        Names to leave out, as in `layer_norms`.
    rtol : float, optional
        Relative gap asked for: by default a loose one, since a penalty needs the direction of the
        gradient more than the value.
    tracker : NormTracker, optional
        Follows the norms of the layers of `model` instead of certifying them, at a small part of
        the price: estimates from below. `input_shapes`, `skip` and `rtol` are then its own.

    Returns
    -------
    0-d torch.Tensor
        Upper bound on the logarithm of the product of the norms, up to the rounding of the
        logarithms; 0 for a model without layers. A layer whose norm is exactly 0 adds nothing,
        instead of minus infinity.

    Raises
    ------
    TypeError, ValueError
        As in `layer_norms`.

    See Also
    --------
    layer_norms : The bounds themselves.

    Notes
    -----
    **Guarantee.** The bounds are those of `layer_norms`; the logarithms and their sum are rounded
    to nearest. With a `tracker` there is none.

    Its cost does not depend on the batch or the images, and beside small ones it is the larger part
    of a step: then take it in one step of k, times k. Gradients of convolutions are computed by
    NumPy, on as many threads as its BLAS was given (``OPENBLAS_NUM_THREADS``), which
    `torch.set_num_threads` does not limit. Batch normalisation takes part by its running
    statistics.

    References
    ----------
    .. [1] B. Delattre, Q. Barthelemy, A. Araujo, A. Allauzen, "Efficient Bound of Lipschitz
       Constant for Convolutional Layers by Gram Iteration", ICML 2023, arXiv:2305.16173.

    Examples
    --------
    >>> import torch
    >>> from gramnorm.torch import lipschitz_penalty
    >>> layer = torch.nn.Linear(3, 3, bias=False)
    >>> _ = torch.nn.init.eye_(layer.weight)
    >>> penalty = lipschitz_penalty(layer)
    >>> penalty.backward()
    >>> bool(0 <= penalty < 0.01), bool(layer.weight.grad.trace() > 0.9)
    (True, True)
    """
    if tracker is None:
        norms = layer_norms(model, input_shapes=input_shapes, skip=skip, rtol=rtol).values()
    else:
        norms = tracker(model).values()
    logs = [torch.log(torch.where(norm == 0, torch.ones_like(norm), norm)) for norm in norms]
    return sum(logs[1:], logs[0]) if logs else torch.zeros(())


class NormTracker(nn.Module):
    """Follows the norms of the layers of a model through training, from below.

    Parameters
    ----------
    certify_every : int, optional
        Calls after which the place where a norm is attained is searched again: the first one, and
        every so many.
    input_shapes, skip : optional
        As in `layer_norms`.

    Raises
    ------
    TypeError, ValueError
        At a call, as in `layer_norms`; ValueError for `certify_every` less than 1.

    See Also
    --------
    lipschitz_penalty : Takes it as `tracker`.
    gramnorm.track_norm : What is done for a layer.

    Notes
    -----
    **Guarantee.** Between two searches a value is at most the norm of its layer, up to rounding, and
    nothing tells how far below; see `gramnorm.track_norm`. Of batch normalisation it is the upper
    bound of `layer_norms`.

    Examples
    --------
    >>> import torch
    >>> from gramnorm.torch import NormTracker, lipschitz_penalty
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> tracker = NormTracker(certify_every=50)
    >>> lipschitz_penalty(model, tracker=tracker).backward()
    >>> model[0].weight.grad.shape
    torch.Size([4, 4])
    """

    def __init__(
        self,
        *,
        certify_every: int = 100,
        input_shapes: Mapping[str, int | Sequence[int]] | None = None,
        skip: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.certify_every = _validate.positive_int(certify_every, name="certify_every")
        self.input_shapes = dict(input_shapes or {})
        self.skip = skip
        self._followed: dict[str, _Followed] = {}

    def forward(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the estimates by name, as `layer_norms` does its bounds."""

        def follow(name: str, module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
            if name not in self._followed:
                shape = self.input_shapes.get(name)
                self._followed[name] = _Followed(module, weight, shape, self.certify_every)
            return cast(torch.Tensor, self._followed[name](weight))

        return _norms(model, self.input_shapes, self.skip, follow)


class _Followed(nn.Module):
    """The norm of one layer, tracked from one search to the next.

    The buffers are real: communication libraries know no other.
    """

    frequency: torch.Tensor
    vector: torch.Tensor

    def __init__(
        self,
        module: nn.Module,
        weight: torch.Tensor,
        input_shape: int | Sequence[int] | None,
        every: int,
    ) -> None:
        super().__init__()
        keywords = _geometry(module)
        self.geometry = None
        if keywords is not None:
            self.geometry = ConvGeometry.of(tuple(weight.shape), input_shape, **keywords)
        self.every, self.age = every, 0
        state = start_tracking(weight.detach(), self.geometry)
        self.register_buffer("frequency", state.frequency.clone())
        self.register_buffer("vector", _real(state.vector).clone())
        self.is_complex = state.vector.is_complex()

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a search looks at values
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the estimate, and keep what the next one starts from."""
        if self._by_products(weight):
            state, steps = self._next(weight)
            value, state = track_norm(weight, state, self.geometry, steps=steps)
            self._keep(state)
            return cast(torch.Tensor, value)
        found = _Value.apply(weight, *self._attained(weight))  # type: ignore[no-untyped-call]
        return cast(torch.Tensor, found)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def divided(self, weight: torch.Tensor, bound: float) -> torch.Tensor:
        """Return the weight over the estimate where that is above the bound, times the bound."""
        if self._by_products(weight):
            over = self(weight) / bound
            return cast(torch.Tensor, weight / over.clamp(min=1.0).to(weight.dtype))
        norm, *gradient = self._attained(weight)
        over = norm / bound
        slope = torch.where(over > 1, torch.full_like(over, 1 / bound), torch.zeros_like(over))
        found = _Quotient.apply(weight, over.clamp(min=1.0), slope, lambda: gradient)  # type: ignore[no-untyped-call]
        return cast(torch.Tensor, found)

    def _by_products(self, weight: torch.Tensor) -> bool:
        """Say whether the gradient is not at hand: of one size, or of weights in several processes."""
        is_one_size = self.geometry is not None and self.geometry.input_shape is not None
        return is_one_size or spread.is_dtensor(weight) or 0 in weight.shape

    def _attained(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the estimate, and its gradient: that, or vectors whose outer product it is."""
        state, steps = self._next(weight)
        work = _working(weight)
        w: Any = weight.detach()
        w = w.to(torch.complex64 if w.is_complex() else work) if w.element_size() < 4 else w
        # NumPy's calls cost less than PyTorch's, and its products with few vectors no more
        is_home = w.device.type == "cpu"
        if is_home:
            w, state = w.resolve_conj().numpy(), Tracked(*(x.numpy() for x in state))
        with torch.no_grad():
            place = placed(w, state, self.geometry, steps=steps)
            gradient = place.operator.gradient(place.pair)
        if is_home:
            state = Tracked(*map(torch.from_numpy, place.state))
            self._keep(state)
            value = torch.tensor(float(place.value), dtype=work)
            return value, *map(torch.from_numpy, gradient)
        self._keep(place.state)
        return place.value, *gradient

    def _next(self, weight: torch.Tensor) -> tuple[Tracked, int]:
        """Return where to go on from, and how many steps to take."""
        is_due = self.age % self.every == 0
        self.age += 1
        if is_due:
            return start_tracking(weight.detach(), self.geometry), 0
        vector = self.vector.to(_working(weight))
        vector = torch.view_as_complex(vector) if self.is_complex else vector
        state = Tracked(self.frequency.to(_working(weight)), vector)
        is_small = weight.numel() <= _SMALL
        if not is_small and self.age > _EARLY:
            return state, 1
        return state, _MANY if is_small or self.geometry is not None else _MOST

    def _keep(self, state: Tracked) -> None:
        """Write to the buffers, once their values have been used."""
        self.frequency.copy_(state.frequency)
        self.vector.copy_(_real(state.vector))


class _Value(torch.autograd.Function):
    """A norm, whose gradient is known: an array, or vectors u, v of which it is u v^H."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, norm: torch.Tensor, *gradient: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, *gradient)
        return norm.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, first, *rest = ctx.saved_tensors
        found = torch.outer(cotangent * first, _conjugate(rest[0])) if rest else cotangent * first
        return found.reshape(weight.shape).to(weight.dtype), None, None, *(None for _ in rest)


class _Quotient(torch.autograd.Function):
    """W over d, whose gradient takes two passes over the matrix.

    With the result R, the gradient D of a norm by which d has the derivative c, and G with respect
    to R it is

        (G - Re <G, R> c D) / d.

    `gradient` finds D, or vectors u, v with D = u v^H.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: torch.Tensor,
        divisor: torch.Tensor,
        slope: torch.Tensor,
        gradient: Callable[[], tuple[torch.Tensor, ...]],
    ) -> torch.Tensor:
        result = _over(weight, divisor)
        ctx.gradient = gradient
        ctx.save_for_backward(weight, result, divisor, slope)  # so that a change in place is seen
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, result, divisor, slope = ctx.saved_tensors
        first, *rest = ctx.gradient()
        flat = (_real(x).reshape(-1).to(divisor.dtype) for x in (cotangent, result))
        factor = -torch.dot(*flat) * slope / divisor
        work = divisor.dtype.to_complex() if weight.is_complex() else divisor.dtype
        first, g = (factor * first).to(work), cotangent.to(work)
        if rest and weight.device.type == "cpu":  # whose numbers are at hand: in one pass
            last = _conjugate(rest[0]).to(work)
            found = torch.addr(g.flatten(1), first, last, beta=1 / divisor.item())
        else:
            part = torch.outer(first, _conjugate(rest[0]).to(work)) if rest else first
            found = torch.addcmul(part.reshape(g.shape), g, (1 / divisor).to(work))
        return found.reshape(weight.shape).to(weight.dtype), None, None, None


def _over(weight: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    """Return the weight over a number of its working type, component by component."""
    values = torch.view_as_real(weight.resolve_conj()) if weight.is_complex() else weight
    values = (values.to(divisor.dtype) / divisor).to(values.dtype)
    return torch.view_as_complex(values) if weight.is_complex() else values


def _conjugate(x: torch.Tensor) -> torch.Tensor:
    return x.conj().resolve_conj()


def _working(weight: torch.Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype in (torch.float64, torch.complex128) else torch.float32


def _real(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


class SpectralBound(nn.Module):
    """A parametrization under which an upper bound on the norm of a layer is certified.

    For `torch.nn.utils.parametrize.register_parametrization`, on the weight of a `torch.nn.Linear`,
    ``Conv1d`` to ``Conv3d`` or ``ConvTranspose1d`` to ``ConvTranspose3d``.

    Parameters
    ----------
    module : torch.nn.Module
        The layer whose weight is to be parametrized: its stride, padding, dilation and groups are
        read once, here.
    bound : float, optional
        The most that the norm may be.
    method : {"divide", "rescale"}, optional
        "divide" returns the weight divided by its certified norm over `bound`, or itself if its
        norm is below the bound already. "rescale" returns `bound` times the rows of
        `gramnorm.spectral_rescaling` or `gramnorm.conv_spectral_rescaling`.
    steps : int, optional
        Number of Gram products of "rescale"; with more of them it approaches "divide".
    rtol : float, optional
        Relative gap asked for of the norm of "divide", as in `matrix_norm_bound` and
        `conv_norm_bound`: the norm of the result is that much below the bound at most, where the
        bracket converges. By default 1e-2 in training mode where gradients are on, and else theirs.
    input_shape : int or sequence of int, optional
        Samples of the input of a convolution per spatial axis, for "divide"; by default the bound
        holds for every size.
    certify_every : int, optional
        In training, search the norm of "divide" only every so many accesses to the weight, and
        follow it by `gramnorm.track_norm` between: one step then costs little more than without a
        bound. By default every access is certified.

    Raises
    ------
    TypeError
        If `module` is not one of the layers above or has a `forward` of its own, or an argument is
        of the wrong kind.
    ValueError
        If `bound` is not positive and finite, `method` is unknown, or the norm depends on the size
        of the input (reflect and replicate padding, circular padding with a stride or more than the
        kernel needs) and `input_shape` is not given, or `method` is "rescale".

    See Also
    --------
    gramnorm.spectral_rescaling, gramnorm.conv_spectral_rescaling : The rescaling of "rescale".
    layer_norms : Certified bounds on what came out.

    Notes
    -----
    **Guarantee.** The norm of the layer's linear part with the weight returned, as stored, is at
    most `bound`: for every finite weight and every size of the input (or for `input_shape`),
    rounding included, under the rounding model of the theory page. The margin for rounding is a
    constant for differentiation. With `certify_every` that holds in evaluation mode and wherever
    gradients are off (`torch.no_grad`, ``remove_parametrizations``, saving a weight); in training
    mode the weight is divided by an estimate from below, and exceeds the bound by what the estimate
    misses: see the benchmarks for how much that is.

    The parametrization has no parameters: ``parametrizations.weight.original`` in a state dict is
    the weight before it. It is computed at each access to ``module.weight``;
    `torch.nn.utils.parametrize.cached` saves that within a step, and
    `torch.nn.utils.parametrize.remove_parametrizations` after training. Autograd differentiates
    "divide" once. "rescale" never waits for the device and can be recorded by `torch.func`,
    `torch.jit.trace` and `torch.export` (not with ``strict=True``), and for a `torch.nn.Linear` by
    `torch.onnx.export` (not with ``dynamo=False``); "divide" looks at the values, so all of them
    are refused. Before an export make the weight permanent by ``remove_parametrizations(module,
    "weight")``.

    Examples
    --------
    >>> import torch
    >>> from torch.nn.utils.parametrize import register_parametrization
    >>> from gramnorm.torch import SpectralBound, layer_norms
    >>> conv = torch.nn.Conv2d(3, 8, 3, padding=1)
    >>> _ = torch.nn.init.normal_(conv.weight)
    >>> _ = register_parametrization(conv, "weight", SpectralBound(conv, bound=2.0))
    >>> bool(1.99 <= layer_norms(conv.eval())[""] <= 2.003)
    True
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        bound: float = 1.0,
        method: str = "divide",
        steps: int = 3,
        rtol: float | None = None,
        input_shape: int | Sequence[int] | None = None,
        certify_every: int | None = None,
    ) -> None:
        super().__init__()
        if not does_as(module, _DENSE + _CONVOLUTIONS):
            msg = (
                "module must be a torch.nn.Linear, Conv1d to Conv3d or ConvTranspose1d to "
                f"ConvTranspose3d with the forward of torch, got {type(module).__name__}"
            )
            raise TypeError(msg)
        if method not in ("divide", "rescale"):
            msg = f"method must be 'divide' or 'rescale', got {method!r}"
            raise ValueError(msg)
        self.bound = _validate.positive_number(bound, name="bound")
        self.method = method
        self.steps = _validate.positive_int(steps, name="steps")
        self.rtol = rtol
        self.input_shape = input_shape
        self._geometry = _geometry(module)
        self._shape: ConvGeometry | None = None
        self._copies = 1
        weight = weight_of(module)
        if method == "rescale":
            _check_every_size(weight, self._geometry, "use method='divide' with input_shape")
        if self._geometry is not None:
            self._shape = ConvGeometry.of(tuple(weight.shape), input_shape, **self._geometry)
            if input_shape is not None:
                self._copies = math.prod(axis.copies() for axis in self._shape.axes())
        elif input_shape is not None:
            msg = f"input_shape is for convolutions, got {input_shape!r} for a Linear"
            raise ValueError(msg)
        self.followed = None
        if certify_every is not None:
            every = _validate.positive_int(certify_every, name="certify_every")
            if method != "divide":
                msg = f"certify_every is for method='divide', got {method!r}"
                raise ValueError(msg)
            self.followed = _Followed(module, weight, input_shape, every)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight that keeps to the bound."""
        _check_traceable(weight, self.method, transforms=self._geometry is not None)
        if self.followed is not None and self.training and torch.is_grad_enabled():
            return cast(torch.Tensor, self.followed.divided(weight, self.bound))
        if self.method == "divide":
            return cast(torch.Tensor, self._within(weight))
        result = self._rescaled(weight)  # of norm at most 1
        return result if self.bound == 1 or 0 in result.shape else self._divided(result, 1.0)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """Return what the parametrization takes to `weight`, if below the bound: itself."""
        return weight

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        own = {"divide": f"rtol={self.rtol}", "rescale": f"steps={self.steps}"}[self.method]
        return f"bound={self.bound}, method={self.method!r}, {own}"

    def _rescaled(self, weight: torch.Tensor) -> torch.Tensor:
        if self._geometry is None:
            return cast(torch.Tensor, spectral_rescaling(weight, steps=self.steps))
        keywords = {key: self._geometry[key] for key in ("stride", "dilation", "groups")}
        return cast(torch.Tensor, conv_spectral_rescaling(weight, steps=self.steps, **keywords))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a search looks at values
    def _within(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight over its certified norm, or itself if that is below the bound."""
        is_trained = weight.requires_grad and torch.is_grad_enabled()
        rtol = _LOOSE if self.rtol is None and self.training and is_trained else self.rtol
        if not is_trained or spread.is_dtensor(weight) or 0 in weight.shape:
            norm = _bound(weight, self._geometry, self.input_shape, rtol)
            return weight if float(norm.detach()) <= self.bound else self._divided(weight, norm)
        norm, gradient = _bound_and_slope(weight.detach(), self._shape, rtol)
        if float(norm) <= self.bound:
            return weight
        found = _Quotient.apply(weight, *self._divisor(weight, norm), gradient)  # type: ignore[no-untyped-call]
        return cast(torch.Tensor, found)

    def _divided(self, weight: torch.Tensor, norm: torch.Tensor | float) -> torch.Tensor:
        """Return the weight over what makes `bound` of `norm` and of all roundings."""
        return _over(weight, self._divisor(weight, norm)[0])

    def _divisor(
        self, weight: torch.Tensor, norm: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return that, and its derivative by the norm."""
        work = torch.float64 if torch.finfo(weight.dtype).bits == 64 else torch.float32
        kept, precision = torch.finfo(weight.dtype), precision_of(work)
        groups = 1 if self._geometry is None else self._geometry["groups"]
        sizes = weight.detach().abs().to(work)
        sizes = sizes.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        outputs, inputs, taps = sizes.shape[1:]
        rows, columns = sizes.sum((2, 3)).amax(), sizes.sum((1, 3)).amax()
        schur = rows.sqrt() * columns.sqrt()  # of the moduli, not yet the copies

        # the division, and the conversion to the type of the weight
        unit = precision.unit
        unit += (1 + unit) * kept.eps / 2 if kept.eps > 2 * precision.unit else 0.0
        # the sums of moduli below, and the product with them
        unit *= 1 + 2 * precision.gamma(max(outputs, inputs) * taps + 16)
        lost = 2 * min(kept.tiny, 2.0**-25)  # float16 is subnormal where float32 is not
        lost *= taps * math.sqrt(inputs * outputs * self._copies)
        if self.bound <= max(
            lost, precision.tiny / (2 * precision.unit) ** 2
        ):  # the margin would underflow
            msg = f"bound is too small for weights of dtype {weight.dtype}, got {self.bound}"
            raise ValueError(msg)
        over = (1 + 8 * precision.unit) / (self.bound - lost)
        divisor = (norm + schur * (unit * math.sqrt(self._copies))) * over
        return divisor, torch.full_like(schur, over)


def _layers(model: nn.Module, skip: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers by name; refuse what is none and holds numbers."""
    done: str | None = None
    for name, module in model.named_modules(remove_duplicate=False):
        if done is not None and (done == "" or name.startswith(f"{done}.")):
            continue  # parametrizations of a layer, and what is below a name left out
        if name in skip:
            done = name
        elif does_as(module, _DENSE + _CONVOLUTIONS + _BATCH_NORMS):
            done = name
            yield name, module
        else:
            held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            prefix = f"{name}." if name else ""
            if left := [entry for entry, _ in held if prefix + entry not in skip]:
                msg = (
                    f"{label(name, module)} holds {', '.join(left)}, and what it does with them "
                    f"has no bound here: accounted for are {_COUNTED}, with the forward of torch; "
                    f"if you know its Lipschitz constant, leave it out by skip=[{name!r}] and "
                    "multiply by it"
                )
                raise TypeError(msg)


@contextlib.contextmanager
def _named(name: str, module: nn.Module) -> Iterator[None]:
    """Let errors say of which layer they are."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"{label(name, module)}: {error}"
        raise type(error)(msg) from error


def _check_traceable(weight: torch.Tensor, method: str, *, transforms: bool) -> None:
    """Complain where a graph is recorded that cannot hold what `SpectralBound` does.

    A convolution transforms its kernel to complex numbers, which ONNX does not have.
    """
    is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    to_onnx = torch.onnx.is_in_onnx_export()
    what = ""
    if is_traced and (method == "divide" or to_onnx):
        what = "the tracer of TorchScript (torch.jit.trace, torch.onnx.export with dynamo=False)"
    elif torch.compiler.is_compiling():
        # elsewhere the graph breaks where values are looked at
        is_strict = torch.compiler.is_dynamo_compiling()
        if torch.compiler.is_exporting() and (method == "divide" or is_strict):
            what = f"torch.export{' with strict=True' * is_strict}"
        elif transforms and to_onnx:
            what = "torch.onnx.export"
    elif method == "divide" and torch._C._functorch.is_functorch_wrapped_tensor(weight):
        what = "torch.func"
    if what:
        other = "" if method == "rescale" or to_onnx else " (or take method='rescale')"
        msg = (
            f"{what} cannot record SpectralBound(method={method!r}); make the weight permanent first: "
            f"torch.nn.utils.parametrize.remove_parametrizations(module, 'weight'){other}"
        )
        raise TypeError(msg)


def _check_names(model: nn.Module, shapes: Mapping[str, object], skip: Collection[str]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    there = modules.keys() | dict(model.named_parameters(remove_duplicate=False)).keys()
    there |= dict(model.named_buffers(remove_duplicate=False)).keys()
    if isinstance(skip, str) or (unknown := sorted(set(skip) - there)):
        got = skip if isinstance(skip, str) else ", ".join(unknown)
        msg = f"skip must list names of submodules, parameters or buffers of the model, got {got!r}"
        raise ValueError(msg)
    convolutions = {name for name, module in modules.items() if isinstance(module, _CONVOLUTIONS)}
    if unknown := sorted(set(shapes) - convolutions):
        msg = (
            "input_shapes must name convolutions of the model, got "
            f"{', '.join(map(repr, unknown))}; there are "
            f"{', '.join(map(repr, sorted(convolutions))) or 'none'}"
        )
        raise ValueError(msg)


def _geometry(module: nn.Module) -> dict[str, Any] | None:
    """Return a convolution's geometry as keywords of `conv_norm_bound`; None for a dense layer."""
    if isinstance(module, _DENSE):
        return None
    return {name: getattr(module, name) for name in _GEOMETRY}


def _check_every_size(weight: torch.Tensor, geometry: dict[str, Any] | None, remedy: str) -> None:
    """Complain, with a remedy, if the norm depends on the size of the input.

    No bound holds for all.
    """
    if geometry is not None:
        try:
            ConvGeometry.of(tuple(weight.shape), **geometry)
        except ValueError as error:
            msg = f"{remedy}: {error}"
            raise ValueError(msg) from None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a search looks at values
def _bound(
    weight: torch.Tensor,
    geometry: dict[str, Any] | None,
    shape: int | Sequence[int] | None,
    rtol: float | None,
) -> torch.Tensor:
    """Return the certified norm of a layer."""
    if geometry is None:
        return cast(torch.Tensor, matrix_norm_bound(weight, rtol=rtol))
    return cast(torch.Tensor, conv_norm_bound(weight, shape, rtol=rtol, **geometry))


def _bound_and_slope(
    weight: torch.Tensor, geometry: ConvGeometry | None, rtol: float | None
) -> tuple[torch.Tensor, Callable[[], tuple[torch.Tensor, ...]]]:
    """Return the certified norm of a layer, and what finds its gradient."""
    if geometry is None:
        return matrix_bounds.bound_and_slope(weight, rtol=rtol)
    return conv_bounds.bound_and_slope(weight, geometry, rtol=rtol)


def _batch_norm_scale(name: str, module: nn.Module) -> torch.Tensor:
    """Return the largest |weight| / sqrt(running_var + eps), rounded up."""
    norm: Any = module
    if norm.running_var is None:
        msg = (
            f"{label(name, module)} keeps no running statistics: it divides by those of its "
            f"input, and no number bounds that; skip=[{name!r}] leaves it out"
        )
        raise TypeError(msg)
    variance = norm.running_var
    variance = variance.to(torch.promote_types(variance.dtype, torch.float32))
    weight = torch.ones_like(variance) if norm.weight is None else spread.whole(norm.weight)
    weight = weight.to(variance.dtype)
    info = torch.finfo(variance.dtype)
    up = 1 + 4 * info.eps  # a square root and five more roundings, in units of eps / 2
    scale = torch.amax(weight.abs() / torch.sqrt(variance + norm.eps)) * up
    # a quotient that underflows has lost more
    return torch.where(weight.detach().any(), scale.clamp(min=info.tiny), scale)
