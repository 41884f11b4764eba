"""Arithmetic that does its worst: products, sums, roots and moduli that err by all they may.

The rounding model (docs/theory.md, section 1) says what an operation may lose; BLAS libraries lose
far less, so that a constant that is too small by a factor of two, or left out, shows in no result.
Here each product misses the exact one by the whole allowance, in the direction that hurts, and so
do sums, square roots and moduli.  The allowances are written down here again, and nothing of the
package is asked for them.

`KINDS` are within the model: every bound must hold.  `BREAKING` are not: products in TF32, Strassen's
scheme, float64 emulated by integers; bounds may be on the wrong side there, and what the package
and the checker of records say is another matter.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import array_api_strict as strict
import numpy as np

from gramnorm._arrays import libraries, linalg, probes
from gramnorm._rigour import sums

LONG, LONG_COMPLEX = np.longdouble, np.clongdouble


def host(x: Any) -> np.ndarray:
    """Return any array on the host."""
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x)
    return np.asarray(x.to_device(strict.Device("CPU_DEVICE")))


def back(found: np.ndarray, like: Any) -> Any:
    """Return a host array as one of the library of `like`, on its device."""
    if isinstance(like, np.ndarray | np.generic):
        return found
    # the lowest version takes the default type where none is named
    return strict.asarray(found, dtype=getattr(strict, found.dtype.name), device=like.device)


def unit(dtype: Any) -> float:
    return float(np.finfo(dtype).eps) / 2


def wide(a: np.ndarray) -> np.ndarray:
    return a.astype(LONG_COMPLEX if a.dtype.kind == "c" else LONG)


def gamma(n: int, u: float) -> float:
    return n * u / (1 - n * u)


def kappa(n: int, dtype: np.dtype[Any]) -> float:
    """Return what a product of inner length n may lose, relative to moduli."""
    u = unit(dtype)
    return 3.2 * (n + 4) * u / (1 - 2 * (n + 4) * u) if dtype.kind == "c" else gamma(n, u)


@dataclass(frozen=True)
class Hostile:
    """A way to err: the sign of the error of each entry, of modulus at most 1, in an array's shape.

    `square` says that the entries are those of a Gram matrix.
    """

    sign: Callable[[np.ndarray], np.ndarray]

    def moved(self, exact: np.ndarray, allowance: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        """Return an exact result, of extended precision, with an error of just less than allowed."""
        u = unit(dtype)
        size = np.abs(exact)
        room = np.maximum(allowance - 2 * u * (size + allowance), 0)
        phase = np.where(size > 0, exact / np.where(size > 0, size, 1), 1)
        return (exact + self.sign(exact) * room * phase).astype(dtype)

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        inner, dtype = a.shape[-1], np.result_type(a.dtype, b.dtype)
        exact = np.matmul(wide(a), wide(b))
        moduli = np.matmul(np.abs(wide(a)), np.abs(wide(b)))
        return self.moved(exact, kappa(inner, dtype) * moduli, dtype)

    def inner(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return sums of conj(a) b along the last axis."""
        dtype = np.result_type(a.dtype, b.dtype)
        terms = np.conj(wide(a)) * wide(b)
        count = a.shape[-1] * (2 if dtype.kind == "c" else 1)
        allowance = gamma(count, unit(dtype)) * np.sum(np.abs(terms), axis=-1)
        return self.moved(np.sum(terms, axis=-1), allowance, dtype)

    def total(self, a: np.ndarray, axis: Any) -> np.ndarray:
        if a.dtype.kind not in "fc":
            return np.sum(a, axis=axis)
        exact = np.sum(wide(a), axis=axis)
        terms = a.size // max(exact.size, 1)
        allowance = gamma(terms - 1, unit(a.dtype)) * np.sum(np.abs(wide(a)), axis=axis)
        return np.asarray(self.moved(np.asarray(exact), np.asarray(allowance), a.dtype))

    def root(self, a: np.ndarray) -> np.ndarray:
        exact = np.asarray(np.sqrt(wide(a)))
        return self.moved(exact, 3 * unit(a.dtype) * np.abs(exact), a.dtype)

    def modulus(self, a: np.ndarray) -> np.ndarray:
        if a.dtype.kind != "c":
            return np.abs(a)
        exact = np.abs(wide(a))
        return self.moved(exact, 4 * unit(a.dtype) * exact, np.empty(0, a.dtype).real.dtype)


def _across(exact: np.ndarray) -> np.ndarray:
    """Return -1 on the diagonal of square matrices, so that traces are low, and 1 elsewhere."""
    signs = np.ones(exact.shape)
    if exact.ndim > 1 and exact.shape[-1] == exact.shape[-2]:
        index = np.arange(exact.shape[-1])
        signs[..., index, index] = -1
    return signs


def _mixed(exact: np.ndarray) -> np.ndarray:
    """Return signs that look random, and are the same for the same shape."""
    return np.random.default_rng(exact.size).choice([-1.0, 1.0], exact.shape)


class Shuffled(Hostile):
    """Sums one term after another, in random order, in the type itself."""

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        order = np.random.default_rng(a.shape[-1]).permutation(a.shape[-1])
        found = np.zeros(np.matmul(a[..., :1], b[..., :1, :]).shape, np.result_type(a, b))
        for k in order:
            found = found + a[..., k : k + 1] * b[..., k : k + 1, :]
        return found

    def inner(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.total(np.conj(a) * b, -1)

    def total(self, a: np.ndarray, axis: Any) -> np.ndarray:
        if axis is None:
            return self.total(a.reshape(-1), 0)
        if not isinstance(axis, int) or a.dtype.kind not in "fc":
            return np.sum(a, axis=axis)
        a = np.moveaxis(a, axis, 0)
        found = np.zeros(a.shape[1:], a.dtype)
        for k in np.random.default_rng(len(a)).permutation(len(a)):
            found = found + a[k]
        return found

    def root(self, a: np.ndarray) -> np.ndarray:
        return np.asarray(np.sqrt(a))

    def modulus(self, a: np.ndarray) -> np.ndarray:
        return np.abs(a)


def _flushed(a: np.ndarray) -> np.ndarray:
    """Return an array without its subnormal numbers."""
    if a.dtype.kind not in "fc":
        return a
    least = np.finfo(a.dtype).smallest_normal
    if a.dtype.kind == "c":
        return _flushed(a.real) + 1j * _flushed(a.imag)
    return np.where(np.abs(a) < least, np.zeros_like(a), a)


class Flushing(Shuffled):
    """Reads and writes zeros for subnormal numbers, in products, sums, roots and moduli."""

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return _flushed(np.matmul(_flushed(a), _flushed(b)))

    def total(self, a: np.ndarray, axis: Any) -> np.ndarray:
        return np.asarray(_flushed(np.asarray(np.sum(_flushed(a), axis=axis))))

    def root(self, a: np.ndarray) -> np.ndarray:
        return np.asarray(_flushed(np.asarray(np.sqrt(_flushed(a)))))

    def modulus(self, a: np.ndarray) -> np.ndarray:
        return _flushed(np.abs(_flushed(a)))


KINDS: dict[str, Hostile] = {
    "low": Hostile(lambda exact: -np.ones(exact.shape)),
    "high": Hostile(lambda exact: np.ones(exact.shape)),
    "across": Hostile(_across),
    "mixed": Hostile(_mixed),
    "shuffled": Shuffled(_mixed),
    "flushing": Flushing(_mixed),
}


# ------------------------------------------------------------------------ what breaks the model


class Broken(Shuffled):
    """Products by a function; everything else as usual."""

    def __init__(self, multiply: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        object.__setattr__(self, "multiply", multiply)

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.multiply(a, b)

    def inner(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(np.vecdot(a, b))

    def total(self, a: np.ndarray, axis: Any) -> np.ndarray:
        return np.asarray(np.sum(a, axis=axis))


def _by_parts(multiply: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Any:
    """Return a product of complex matrices by four of real ones."""

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if np.result_type(a, b).kind != "c":
            return multiply(a, b)
        real = multiply(a.real, b.real) - multiply(a.imag, b.imag)
        return real + 1j * (multiply(a.real, b.imag) + multiply(a.imag, b.real))

    return product


def _shortened(a: np.ndarray, bits: int) -> np.ndarray:
    """Return an array with so many bits in its mantissas, to nearest."""
    mantissa, exponent = np.frexp(a)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits).astype(a.dtype)


def _tf32(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply float32 matrices with 11 bits of each entry; others as they are."""
    if np.result_type(a, b) != np.float32:
        return np.matmul(a, b)
    return np.matmul(_shortened(a, 11), _shortened(b, 11))


def _strassen(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply by seven products of halves, where halves there are."""
    (m, k), n = a.shape[-2:], b.shape[-1]
    if min(m, k, n) < 2 or a.ndim != b.ndim:
        return np.matmul(a, b)
    if m % 2 or k % 2 or n % 2:

        def even(x: np.ndarray) -> np.ndarray:
            width = [(0, 0)] * (x.ndim - 2) + [(0, side % 2) for side in x.shape[-2:]]
            return np.pad(x, width)

        return _strassen(even(a), even(b))[..., :m, :n]
    p, q, r = m // 2, k // 2, n // 2
    a11, a12, a21, a22 = a[..., :p, :q], a[..., :p, q:], a[..., p:, :q], a[..., p:, q:]
    b11, b12, b21, b22 = b[..., :q, :r], b[..., :q, r:], b[..., q:, :r], b[..., q:, r:]
    m1, m2 = _strassen(a11 + a22, b11 + b22), _strassen(a21 + a22, b11)
    m3, m4 = _strassen(a11, b12 - b22), _strassen(a22, b21 - b11)
    m5, m6 = _strassen(a11 + a12, b22), _strassen(a21 - a11, b11 + b12)
    m7 = _strassen(a12 - a22, b21 + b22)
    top = np.concatenate([m1 + m4 - m5 + m7, m3 + m5], axis=-1)
    return np.concatenate([top, np.concatenate([m2 + m4, m1 - m2 + m3 + m6], axis=-1)], axis=-2)


def _emulated(a: np.ndarray, b: np.ndarray, bits: int = 46) -> np.ndarray:
    """Multiply float64 matrices as fixed-point numbers, relative to rows and columns (Ozaki)."""
    if np.result_type(a, b) != np.float64:
        return np.matmul(a, b)

    def fixed(x: np.ndarray, axis: int) -> np.ndarray:
        largest = np.max(np.abs(x), axis=axis, keepdims=True, initial=0.0)
        quantum = np.ldexp(1.0, np.frexp(largest)[1] - bits)
        return np.round(x / quantum) * quantum

    return np.matmul(wide(fixed(a, -1)), wide(fixed(b, -2))).astype(np.float64)


BREAKING: dict[str, Hostile] = {
    "tf32": Broken(_by_parts(_tf32)),
    "strassen": Broken(_by_parts(_strassen)),
    "emulated": Broken(_by_parts(_emulated)),
}


# ------------------------------------------------------------------------------------ in its place


class _NumpyBut:
    """The namespace of NumPy with a few other functions, which NumPy's own do not call."""

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextlib.contextmanager
def computing(way: Hostile) -> Iterator[None]:
    """Let the package compute so: its products, and sums, roots and moduli of arrays."""

    def matmul(a: Any, b: Any) -> Any:
        if not (hasattr(a, "shape") and hasattr(b, "shape")) or hasattr(a, "nnz"):
            return np.matmul(a, b) if isinstance(a, np.ndarray) else a @ b
        return back(way.product(host(a), host(b)), a)

    def gram_matrix(a: Any) -> Any:
        if hasattr(a, "nnz"):
            return (a.conj().T @ a).toarray()
        x = host(a)
        return back(way.product(np.conj(np.swapaxes(x, -1, -2)), x), a)

    def vecdot(a: Any, b: Any, axis: int = -1) -> Any:
        x, y = np.broadcast_arrays(host(a), host(b))
        return back(np.asarray(way.inner(x, y)), a)

    def square_sum(a: Any) -> float:
        x = host(a).reshape(-1)
        return float(np.real(way.inner(x, x)))

    def summed(a: Any, *, axis: Any = None, keepdims: bool = False, **_: Any) -> Any:
        found = way.total(host(a), axis)
        return back(np.expand_dims(found, axis) if keepdims else np.asarray(found), a)

    def root(a: Any) -> Any:
        return back(np.asarray(way.root(host(a))), a) if host(a).dtype.kind == "f" else np.sqrt(a)

    def modulus(a: Any) -> Any:
        return back(np.asarray(way.modulus(host(a))), a)

    with contextlib.ExitStack() as stack:
        for name, function in (
            ("matmul", matmul),
            ("gram_matrix", gram_matrix),
            ("vecdot", vecdot),
            ("square_sum", square_sum),
        ):
            stack.enter_context(mock.patch.object(linalg, name, function))
        stack.enter_context(mock.patch.object(probes, "matmul", matmul))
        stack.enter_context(mock.patch.object(sums, "row_sums", lambda rows: summed(rows, axis=-1)))
        functions = {"sum": summed, "sqrt": root, "abs": modulus}
        stack.enter_context(mock.patch.object(libraries, "np", _NumpyBut(functions)))
        for name, function in functions.items():
            stack.enter_context(mock.patch.object(strict, name, function))
        probes._product_probe.cache_clear()
        stack.callback(probes._product_probe.cache_clear)
        yield


# -------------------------------------------------------------------------- matrices of known norm


def squared_norm(u: np.ndarray, v: np.ndarray) -> int:
    """Return the square of the norm of the outer product of vectors of (Gaussian) integers."""
    lengths = (sum(int(x.real) ** 2 + int(x.imag) ** 2 for x in w.astype(complex)) for w in (u, v))
    return math.prod(lengths)
