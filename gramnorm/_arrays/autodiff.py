"""Automatic differentiation of PyTorch and JAX: constants, functions with their own gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import array_api_compat as compat

from gramnorm._arrays.types import Array

Map = Callable[[Array], Array]
Product = Callable[[Array, Array], Array]


def without_gradient(x: Array) -> Array:
    """Return the values of `x` as a constant for automatic differentiation."""
    if compat.is_torch_array(x):
        return x.detach()
    if compat.is_jax_array(x):
        import jax

        return jax.lax.stop_gradient(x)
    return x


def is_differentiated(x: object) -> bool:
    """Say whether automatic differentiation follows `x` (or jit traces it)."""
    if compat.is_jax_array(x):
        import jax

        return isinstance(x, jax.core.Tracer)
    if compat.is_torch_array(x):
        import torch

        return bool(x.requires_grad) and torch.is_grad_enabled()
    return False


def with_gradient(
    value: Callable[[Array], Array], gradient: Callable[[Array, Array], Array], x: Array
) -> Array:
    """Return ``value(x)``, which is differentiated to ``gradient(x, value)``."""

    def forward(a: Array) -> tuple[Array, Array]:
        found = value(a)
        return found, found

    return with_residual(forward, gradient, x)


def with_residual(
    forward: Callable[[Array], tuple[Array, Any]],
    gradient: Callable[[Array, Any], Array],
    x: Array,
) -> Array:
    """Return the value of ``forward(x) = (value, residual)``, derived by ``gradient(x, residual)``.

    The gradient G of each of a stack of real values is that of the pairing Re tr G^H dX. It is a
    constant: differentiating twice is an error in torch, and not zero.
    """
    if compat.is_jax_array(x):
        return _jax_with_residual(forward, gradient)(x)
    import torch

    class Value(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Array) -> Array:
            found, ctx.residual = forward(a.detach())
            ctx.save_for_backward(a)
            return found.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, cotangent: Array) -> Array:
            (a,) = ctx.saved_tensors
            result = gradient(a.detach(), ctx.residual)
            return (_spread(cotangent, result) * result).to(a.dtype)  # of half precision

    return Value.apply(x)  # type: ignore[no-untyped-call]


def squared(square: Map, slope: Product, half: Product, a: Array) -> Array:
    """Return ``square(a)``, A A^H, differentiated by one product.

    ``slope(g, a)`` is (G + G^H) A and ``half(da, a)`` is dA A^H, to which its adjoint is added: a
    rule for products of two matrices takes one with each of them.
    """
    if compat.is_jax_array(a) and is_differentiated(a):
        return _jax_squared(square, half)(a)
    if compat.is_torch_array(a) and is_differentiated(a):
        import torch

        if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return _torch_squared(square, slope, half).apply(a)
    return square(a)


@functools.cache
def _torch_squared(square: Map, slope: Product, half: Product) -> Any:
    import torch

    class Square(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(a: Array) -> Array:
            return square(a)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Array], _: Array) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx: Any, cotangent: Array) -> Array:
            return slope(cotangent, ctx.saved_tensors[0])

        @staticmethod
        def jvp(ctx: Any, tangent: Array) -> Array:
            found = half(tangent, ctx.saved_tensors[0])
            return found + found.mH

    return Square


@functools.cache
def _jax_squared(square: Map, half: Product) -> Any:
    import jax

    found = jax.custom_jvp(square)

    @found.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        tangent = half(tangents[0], primals[0])
        return found(primals[0]), tangent + jax.numpy.conj(tangent.mT)

    return found


def _jax_with_residual(
    forward: Callable[[Array], tuple[Array, Any]], gradient: Callable[[Array, Any], Array]
) -> Callable[[Array], Array]:
    import jax

    def primal(a: Array) -> Array:
        return forward(a)[0]

    def kept_forward(a: Array) -> tuple[Array, tuple[Array, Any]]:
        found, residual = forward(a)
        # a node without leaves: JAX would turn numbers into arrays, in single precision by default
        return found, (a, jax.tree_util.Partial(lambda: residual))  # type: ignore[no-untyped-call]

    def backward(kept: tuple[Array, Any], cotangent: Array) -> tuple[Array]:
        a, residual = kept
        result = gradient(a, residual())
        slope = _spread(cotangent, result) * jax.numpy.conj(result)  # JAX pairs without conjugates
        return (slope.astype(a.dtype),)

    function = jax.custom_vjp(primal)
    function.defvjp(kept_forward, backward)
    return function


def _spread(cotangent: Array, gradient: Array) -> Array:
    """Return one number per value as an array that multiplies the gradients."""
    extra = gradient.ndim - cotangent.ndim
    return cotangent.reshape((*cotangent.shape, *(1 for _ in range(extra))))
