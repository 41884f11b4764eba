"""Adversarial matrices and kernels: what rounding, clusters, scales and shapes can do to a bound.

A matrix family is a function ``(rng, m, n, dtype) -> array``, a kernel family a function
``(rng, channels_out, channels_in, taps, dtype) -> array``; both are host arrays, finite, of the
dtype named, and depend on `rng` only.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
from hypothesis import strategies as st

Rng = np.random.Generator
Family = Callable[[Rng, int, int, str], np.ndarray]

DTYPES = ("float32", "float64", "complex64", "complex128")
FAMILIES: dict[str, Family] = {}
KERNELS: dict[str, Callable[..., np.ndarray]] = {}


def matrix_family(function: Family) -> Family:
    FAMILIES[function.__name__] = function
    return function


def kernel_family(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    KERNELS[function.__name__] = function
    return function


def real_dtype(dtype: str) -> str:
    return {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)


def _decades(dtype: str) -> int:
    """Return a power of ten whose square still fits the type: 150, or 18 in single precision."""
    return 18 if real_dtype(dtype) == "float32" else 150


def _cast(a: Any, dtype: str) -> np.ndarray:
    """Return `a` in `dtype`: complex values lose their imaginary part in a real type, unharmed."""
    a = np.asarray(a)
    if np.iscomplexobj(a) and np.dtype(dtype).kind != "c":
        a = a.real
    with np.errstate(under="ignore"):
        return a.astype(dtype)


def _normal(rng: Rng, shape: Sequence[int], dtype: str) -> np.ndarray:
    """Return a standard normal array, complex for a complex type, in working precision."""
    a = rng.standard_normal(tuple(shape))
    return a + 1j * rng.standard_normal(tuple(shape)) if np.dtype(dtype).kind == "c" else a


def _orthonormal(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    """Return orthonormal columns (m >= n) or rows (m < n)."""
    q, _ = np.linalg.qr(_normal(rng, (max(m, n), min(m, n)), dtype))
    return q if m >= n else q.T


def from_spectrum(rng: Rng, m: int, n: int, dtype: str, spectrum: Any) -> np.ndarray:
    """Return U diag(spectrum) V^H with random factors, rounded to `dtype`."""
    q = min(m, n)
    left, right = _orthonormal(rng, m, q, dtype), _orthonormal(rng, n, q, dtype)
    return _cast((left * np.asarray(spectrum)[:q]) @ right.T, dtype)


def _power_of_two(rng: Rng, dtype: str, part: float = 0.9) -> float:
    emax = 126 if real_dtype(dtype) == "float32" else 1022
    return math.ldexp(1.0, int(rng.integers(-int(part * emax), int(part * emax))))


# ------------------------------------------------------------------------------ plain and random


@matrix_family
def gaussian(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(_normal(rng, (m, n), dtype), dtype)


@matrix_family
def uniform(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(rng.uniform(0, 1, (m, n)), dtype)


@matrix_family
def gaussian_any_scale(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(_normal(rng, (m, n), dtype) * _power_of_two(rng, dtype), dtype)


@matrix_family
def student(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(rng.standard_t(1.0, (m, n)), dtype)


@matrix_family
def symmetric(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    a = _normal(rng, (max(m, n), max(m, n)), dtype)
    return _cast((a + a.conj().T)[:m, :n], dtype)


@matrix_family
def skew(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    a = rng.standard_normal((max(m, n), max(m, n)))
    return _cast((a - a.T)[:m, :n], dtype)


@matrix_family
def small_integers(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(rng.integers(-3, 4, (m, n)), dtype)


@matrix_family
def signs(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(rng.choice([-1.0, 1.0], (m, n)), dtype)


@matrix_family
def phases(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(np.exp(2j * np.pi * rng.uniform(0, 1, (m, n))), dtype)


@matrix_family
def binary(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(rng.integers(0, 2, (m, n)), dtype)


@matrix_family
def sparse(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(_normal(rng, (m, n), dtype) * (rng.uniform(0, 1, (m, n)) < 0.2), dtype)


@matrix_family
def single_entry(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    a = np.zeros((m, n), dtype)
    a[rng.integers(m), rng.integers(n)] = _cast(_normal(rng, (), dtype), dtype)
    return a


@matrix_family
def zero(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return np.zeros((m, n), dtype)


# ------------------------------------------------------------------------------------ low rank


@matrix_family
def rank_one(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(np.outer(_normal(rng, (m,), dtype), _normal(rng, (n,), dtype)), dtype)


@matrix_family
def rank_one_exact(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(np.outer(rng.integers(-9, 10, m), rng.integers(-9, 10, n)), dtype)


@matrix_family
def rank_two(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(_normal(rng, (m, 2), dtype) @ _normal(rng, (2, n), dtype), dtype)


@matrix_family
def rank_two_weak(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    scale = np.asarray([1.0, 10.0 ** rng.uniform(-14, 0)])
    return _cast(_normal(rng, (m, 2), dtype) * scale @ _normal(rng, (2, n), dtype), dtype)


@matrix_family
def all_equal(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return np.full((m, n), _cast(_normal(rng, (), dtype), dtype))


@matrix_family
def ones(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return np.full((m, n), rng.choice([1.0, 3.0, 0.1]), dtype)


@matrix_family
def nearly_equal(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    eps = np.finfo(dtype).eps
    return _cast(1 + eps * rng.integers(-4, 5, (m, n)), dtype)


# -------------------------------------------------------------------- graded and extreme scales


@matrix_family
def graded_rows(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    d = _decades(dtype)
    return _cast(_normal(rng, (m, n), dtype) * 10.0 ** rng.uniform(-d, d, (m, 1)), dtype)


@matrix_family
def graded_columns(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    d = _decades(dtype)
    return _cast(_normal(rng, (m, n), dtype) * 10.0 ** rng.uniform(-d, d, (1, n)), dtype)


@matrix_family
def graded_entries(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    d = _decades(dtype)
    return _cast(_normal(rng, (m, n), dtype) * 10.0 ** rng.uniform(-d, d, (m, n)), dtype)


@matrix_family
def graded_gently(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    rows, columns = 10.0 ** rng.uniform(-4, 4, (m, 1)), 10.0 ** rng.uniform(-4, 4, (1, n))
    return _cast(_normal(rng, (m, n), dtype) * rows * columns, dtype)


@matrix_family
def geometric_spectrum(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return from_spectrum(rng, m, n, dtype, rng.uniform(0.05, 0.99) ** np.arange(min(m, n)))


@matrix_family
def harmonic_spectrum(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return from_spectrum(rng, m, n, dtype, 1 / (1 + np.arange(min(m, n))))


@matrix_family
def subnormal(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    least = float(np.finfo(dtype).smallest_subnormal)
    return _cast(rng.integers(-5, 6, (m, n)) * least, dtype)


@matrix_family
def around_tiny(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    tiny = float(np.finfo(dtype).smallest_normal)
    scale = np.ldexp(tiny, rng.integers(-12, 12, (m, n)))
    return _cast(_normal(rng, (m, n), dtype) * scale, dtype)


@matrix_family
def mixed_with_subnormals(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    tiny = float(np.finfo(dtype).smallest_normal)
    scale = rng.choice([1.0, tiny, tiny * 2.0**-10, tiny * 2.0**40], (m, n))
    return _cast(_normal(rng, (m, n), dtype) * scale, dtype)


@matrix_family
def squares_underflow(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    tiny = float(np.finfo(dtype).smallest_normal)
    return _cast(_normal(rng, (m, n), dtype) * math.sqrt(tiny) * 10.0 ** rng.uniform(-3, 3), dtype)


@matrix_family
def near_overflow(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    top = float(np.finfo(dtype).max) / math.sqrt(2 * m * n)
    a = rng.uniform(-1, 1, (m, n)) * top
    return _cast(a + 1j * rng.uniform(-1, 1, (m, n)) * top, dtype)


@matrix_family
def overflow(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    top = float(np.finfo(dtype).max)
    a = rng.choice([-1.0, 1.0, 0.5], (m, n)) * top
    return _cast(a + 0j, dtype)


# -------------------------------------------------------------------------- flat and clustered


@matrix_family
def orthogonal(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(_orthonormal(rng, m, n, dtype), dtype)


@matrix_family
def orthogonal_perturbed(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    noise = 10.0 ** rng.uniform(-16, -2) * _normal(rng, (m, n), dtype)
    return _cast(_orthonormal(rng, m, n, dtype) + noise, dtype)


@matrix_family
def orthogonal_spread(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return from_spectrum(rng, m, n, dtype, 1 + 0.1 * rng.uniform(0, 1, min(m, n)))


@matrix_family
def identity(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(np.eye(m, n) * rng.choice([1.0, 0.1, 3.0]), dtype)


@matrix_family
def permutation(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    a = np.eye(max(m, n))[rng.permutation(max(m, n))] * rng.choice([-1, 1], max(m, n))
    return _cast(a[:m, :n], dtype)


@matrix_family
def hadamard(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    order = 1 << (max(m, n) - 1).bit_length()
    a = scipy.linalg.hadamard(order).astype(float)[rng.permutation(order)][
        :, rng.permutation(order)
    ]
    return _cast(a[:m, :n] * rng.choice([1.0, 0.1]), dtype)


@matrix_family
def dft(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(scipy.linalg.dft(max(m, n))[:m, :n], dtype)


@matrix_family
def reflection(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    v = _normal(rng, (max(m, n),), dtype)
    a = np.eye(max(m, n)) - 2 * np.outer(v, v.conj()) / np.vdot(v, v)
    return _cast(a[:m, :n], dtype)


@matrix_family
def top_pair(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    spectrum = rng.uniform(0, 0.9, min(m, n))
    spectrum[:2] = [1.0, 1 - 10.0 ** -rng.uniform(1, 14)][: len(spectrum)]
    return from_spectrum(rng, m, n, dtype, spectrum)


@matrix_family
def top_pair_exact(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    a = np.zeros((m, n))
    d = rng.uniform(0, 0.9, min(m, n))
    d[:2] = [1.0, 1 - 2.0 ** -int(rng.integers(3, 24))][: len(d)]
    np.fill_diagonal(a, d)
    return _cast(a[rng.permutation(m)][:, rng.permutation(n)], dtype)


@matrix_family
def top_cluster(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    q = min(m, n)
    spectrum = rng.uniform(0, 0.9, q)
    size = int(rng.integers(1, q + 1))
    spectrum[:size] = 1 - 10.0 ** -rng.uniform(1, 14) * rng.uniform(0, 1, size)
    return from_spectrum(rng, m, n, dtype, spectrum)


@matrix_family
def two_levels(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    q = min(m, n)
    spectrum = np.where(np.arange(q) < rng.integers(1, q + 1), 1.0, rng.uniform(0, 1))
    return from_spectrum(rng, m, n, dtype, spectrum)


@matrix_family
def diagonal(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    a = np.zeros((m, n), np.result_type(dtype, "float64"))
    np.fill_diagonal(a, _normal(rng, (min(m, n),), dtype))
    return _cast(a, dtype)


# ------------------------------------------------------------------------------ named matrices


def _any_scale(rng: Rng, a: Any, dtype: str, part: float = 0.3) -> np.ndarray:
    return _cast(np.asarray(a) * _power_of_two(rng, dtype, part), dtype)


@matrix_family
def hilbert(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    i, j = np.arange(m)[:, None], np.arange(n)
    return _any_scale(rng, 1 / (i + j + 1 + rng.integers(0, 3)), dtype)


@matrix_family
def hilbert_inverse(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    order = min(max(m, n), 12)
    a = np.zeros((max(m, n), max(m, n)))
    a[:order, :order] = scipy.linalg.invhilbert(order)
    return _any_scale(rng, a[:m, :n], dtype)


@matrix_family
def cauchy(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(1 / (rng.uniform(0, 1, (m, 1)) + rng.uniform(0.001, 1, (1, n))), dtype)


@matrix_family
def toeplitz(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    line = _normal(rng, (m + n - 1,), dtype)
    return _cast(line[np.arange(m)[:, None] - np.arange(n) + n - 1], dtype)


@matrix_family
def tridiagonal(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    a = 2 * np.eye(m, n) + rng.choice([-1.0, 1.0]) * (np.eye(m, n, 1) + np.eye(m, n, -1))
    return _any_scale(rng, a, dtype)


@matrix_family
def circulant(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    line = _normal(rng, (max(m, n),), dtype)
    return _cast(line[(np.arange(m)[:, None] - np.arange(n)) % max(m, n)], dtype)


@matrix_family
def vandermonde(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    power = np.minimum(np.arange(n), 24)
    return _cast(rng.uniform(-1.5, 1.5, (m, 1)) ** power, dtype)


@matrix_family
def kahan(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    q = max(m, n)
    c = rng.uniform(0.1, 0.99)
    s = math.sqrt(1 - c * c)
    a = np.diag(s ** np.arange(q)) @ (np.eye(q) - c * np.triu(np.ones((q, q)), 1))
    return _cast(a[:m, :n], dtype)


@matrix_family
def jordan(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(rng.uniform(-2, 2) * np.eye(m, n) + np.eye(m, n, 1), dtype)


@matrix_family
def nilpotent(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(np.triu(_normal(rng, (m, n), dtype), 1), dtype)


@matrix_family
def triangular(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    return _cast(np.triu(_normal(rng, (m, n), dtype)), dtype)


@matrix_family
def pascal(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    order = min(max(m, n), 16)
    a = np.ones((max(m, n), max(m, n)))
    a[:order, :order] = scipy.linalg.pascal(order)
    return _cast(a[:m, :n], dtype)


@matrix_family
def companion(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    a = np.eye(m, n, -1) + 0j
    a[0] = _normal(rng, (n,), dtype) * 10.0 ** rng.uniform(-3, 6)
    return _cast(a, dtype)


@matrix_family
def wilkinson(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    q = max(m, n)
    a = np.diag(np.abs(np.arange(q) - (q - 1) / 2)) + np.eye(q, k=1) + np.eye(q, k=-1)
    return _cast(a[:m, :n], dtype)


@matrix_family
def lauchli(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    a = 10.0 ** rng.uniform(-12, 0) * np.eye(m, n, -1)
    a[0] = 1
    return _cast(a, dtype)


@matrix_family
def cancelling(rng: Rng, m: int, n: int, dtype: str) -> np.ndarray:
    """Return columns that nearly cancel: large equal parts with small differences."""
    base = _normal(rng, (m, 1), dtype) * rng.choice([-1.0, 1.0], (1, n))
    return _cast(base + 10.0 ** rng.uniform(-12, -3) * _normal(rng, (m, n), dtype), dtype)


# ----------------------------------------------------------------------------------- strategies


@st.composite
def matrices(draw: st.DrawFn, dtype: str, max_side: int = 6) -> np.ndarray:
    """Draw a matrix whose entries have wide or narrow ranges of exponents; sides of 1 are likely.

    The squares of the entries, and the norm itself, may lie far outside the range of the type.
    """
    side = st.one_of(st.just(1), st.integers(1, max_side))
    m, n = draw(side), draw(side)
    info = np.finfo(dtype)
    low, high = int(info.minexp) - int(info.nmant), int(info.maxexp) - 4
    centre = draw(st.one_of(st.just(0), st.integers(low, high)))
    width = draw(st.sampled_from([0, 1, 12, 60, 400, high - low]))
    exponent = st.integers(max(low, centre - width), min(high, centre + width))
    mantissa = st.one_of(st.sampled_from([0.0, 0.5, -0.5, 0.75]), st.floats(-1, 1, width=32))
    number = st.builds(math.ldexp, mantissa, exponent)
    count = m * n * (2 if np.dtype(dtype).kind == "c" else 1)
    flat = np.asarray(draw(st.lists(number, min_size=count, max_size=count)))
    parts = flat.reshape(-1, m, n)
    return _cast(parts[0] if len(parts) == 1 else parts[0] + 1j * parts[1], dtype)


@st.composite
def family_matrices(draw: st.DrawFn, dtype: str, max_side: int = 8) -> np.ndarray:
    """Draw a member of one of the families above."""
    name = draw(st.sampled_from(sorted(FAMILIES)))
    m, n = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return FAMILIES[name](rng, m, n, dtype)


# -------------------------------------------------------------------------------------- kernels


def _channels(rng: Rng, co: int, ci: int, filters: np.ndarray, dtype: str) -> np.ndarray:
    """Return a scalar filter on random pairs of channels."""
    mix = _normal(rng, (co, ci), dtype).reshape(co, ci, *[1] * filters.ndim)
    return _cast(mix * filters, dtype)


def _binomial(taps: Sequence[int]) -> np.ndarray:
    filters = np.ones(())
    for k in taps:
        filters = np.multiply.outer(filters, [math.comb(k - 1, i) / 2 ** (k - 1) for i in range(k)])
    return filters


@kernel_family
def noise(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    return _cast(_normal(rng, (co, ci, *taps), dtype), dtype)


@kernel_family
def noise_any_scale(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    scale = _power_of_two(rng, dtype, 0.8)
    return _cast(_normal(rng, (co, ci, *taps), dtype) * scale, dtype)


@kernel_family
def noise_subnormal(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    least = float(np.finfo(dtype).smallest_subnormal)
    return _cast(rng.integers(-4, 5, (co, ci, *taps)) * least, dtype)


@kernel_family
def noise_huge(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    top = float(np.finfo(dtype).max) / (2 * co * ci * math.prod(taps))
    return _cast(rng.uniform(-1, 1, (co, ci, *taps)) * top, dtype)


@kernel_family
def low_pass(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    smooth = _channels(rng, co, ci, _binomial(taps), dtype)
    return smooth + _cast(0.05 * _normal(rng, (co, ci, *taps), dtype), dtype)


@kernel_family
def low_pass_exact(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    return _channels(rng, co, ci, _binomial(taps), dtype)


@kernel_family
def high_pass(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    index = sum(np.meshgrid(*map(np.arange, taps), indexing="ij"))
    return _channels(rng, co, ci, _binomial(taps) * (-1.0) ** index, dtype)


@kernel_family
def laplacian(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    filters = np.zeros(taps)
    middle = tuple(k // 2 for k in taps)
    for axis, k in enumerate(taps):
        for offset in (-1, 0, 1) if k >= 3 else ():
            place = list(middle)
            place[axis] += offset
            filters[tuple(place)] += 1.0 if offset else -2.0
    return _channels(rng, co, ci, filters, dtype)


@kernel_family
def sobel(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    filters = _binomial(taps[:-1])[..., None] * (np.arange(taps[-1]) - (taps[-1] - 1) / 2)
    return _channels(rng, co, ci, filters, dtype)


@kernel_family
def one_tap(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    kernel = np.zeros((co, ci, *taps), dtype)
    place = tuple(int(rng.integers(k)) for k in taps)
    kernel[(..., *place)] = _cast(_normal(rng, (co, ci), dtype), dtype)
    return kernel


@kernel_family
def end_taps(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    """Return taps at the corners only: the sharp case of the grid factor."""
    kernel = np.zeros((co, ci, *taps), dtype)
    mix = _cast(_normal(rng, (co, ci), dtype), dtype)
    for corner in itertools.product(*[{0, k - 1} for k in taps]):
        kernel[(..., *corner)] = mix
    return kernel


@kernel_family
def flat_paraunitary(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    """Return nearly an orthogonal convolution: factors I - P + P z for random lines P."""
    c = max(co, ci)
    kernel = np.eye(c).reshape(c, c, *[1] * len(taps)) + 0 * _normal(rng, (1,), dtype)
    for axis, k in enumerate(taps):
        for _ in range(k - 1):
            v = _normal(rng, (c,), dtype)
            p = np.outer(v, v.conj()) / np.vdot(v, v).real
            width = [(0, 0)] * kernel.ndim
            width[axis + 2] = (0, 1)
            stay = np.pad(np.einsum("ij,j...->i...", np.eye(c) - p, kernel), width)
            width[axis + 2] = (1, 0)
            kernel = stay + np.pad(np.einsum("ij,j...->i...", p, kernel), width)
    return _cast(kernel[:co, :ci], dtype)


@kernel_family
def nearly_flat(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    """Return nearly an orthogonal convolution with noise on it: hardly flatter than that is hard to tell."""
    noise = 10.0 ** rng.uniform(-5, -1) * _normal(rng, (co, ci, *taps), dtype)
    return _cast(
        flat_paraunitary(rng, co, ci, taps, dtype) + noise / (co * math.prod(taps)) ** 0.5, dtype
    )


@kernel_family
def shifts(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    kernel = np.zeros((co, ci, *taps), dtype)
    for i, j in zip(rng.permutation(co), rng.permutation(ci), strict=False):
        kernel[(i, j, *(int(rng.integers(k)) for k in taps))] = rng.choice([-1.0, 1.0])
    return kernel


@kernel_family
def all_ones(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    return np.full((co, ci, *taps), rng.choice([1.0, 0.1]), dtype)


@kernel_family
def rank_one_kernel(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    kernel = _normal(rng, (co,), dtype)
    for k in (ci, *taps):
        kernel = np.multiply.outer(kernel, _normal(rng, (k,), dtype))
    return _cast(kernel, dtype)


@kernel_family
def single_wave(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    """Return positive taps times one wave: the symbol peaks at a random frequency."""
    index = np.stack(np.meshgrid(*map(np.arange, taps), indexing="ij"), axis=-1)
    wave = np.exp(-1j * (index @ rng.uniform(-np.pi, np.pi, len(taps))))
    return _channels(rng, co, ci, wave * rng.uniform(0.1, 1, taps), dtype)


@kernel_family
def graded_taps(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    scale = 10.0 ** rng.uniform(-8, 8, (co, ci, *taps))
    return _cast(_normal(rng, (co, ci, *taps), dtype) * scale, dtype)


@kernel_family
def mirrored(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    """Return a kernel whose output channels are even or odd along each axis, to the last bit."""
    kernel = noise(rng, co, ci, taps, dtype)
    for axis in range(2, kernel.ndim):
        signs = rng.choice([1, 1, -1], (co, *(1 for _ in kernel.shape[1:]))).astype(
            kernel.real.dtype
        )
        kernel = kernel + signs * np.flip(kernel, axis)
    return kernel.astype(dtype)


@kernel_family
def zero_borders(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    kernel = noise(rng, co, ci, taps, dtype)
    for axis, k in enumerate(taps):
        keep = (np.arange(k) >= k // 3) & (np.arange(k) < max(k - k // 3, k // 3 + 1))
        kernel = kernel * np.expand_dims(keep, [a for a in range(kernel.ndim) if a != axis + 2])
    return kernel.astype(dtype)


@kernel_family
def zero_kernel(rng: Rng, co: int, ci: int, taps: Sequence[int], dtype: str) -> np.ndarray:
    return np.zeros((co, ci, *taps), dtype)
