"""Independent references: exact comparisons with sigma_1, dense convolutions, known suprema.

Nothing here looks at the package. A bound t is compared with sigma_1(A) through the inertia of
t^2 I - A^H A. The stored floats are integers times a power of two, so that this matrix is an
integer matrix. Its LDL^H pivots are enclosed in balls, at rising precision; where balls cannot
tell (t equal to sigma_1, say) fraction-free elimination over the integers decides.
"""

import enum
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import flint
import numpy as np

BITS = (192, 768, 3072)  # ball precisions, tried in turn
EXACT_LIMIT = 4e9  # n^4 times the length in bits, up to which integers decide (seconds)


class Verdict(enum.Enum):
    """What is known of a claimed bound."""

    HOLDS = "holds"
    VIOLATED = "violated"
    UNDECIDED = "undecided"


# ------------------------------------------------------------------ exact numbers and matrices


def _dyadic(x: np.ndarray) -> tuple[list[int], int]:
    """Return integers N and an exponent e with x = N 2^e, entry by entry, exactly."""
    mantissa, exponent = np.frexp(np.asarray(x, dtype=np.float64).ravel())
    whole = [int(m) for m in np.ldexp(mantissa, 53)]
    shift = [int(e) - 53 for e in exponent]
    lowest = min((e for m, e in zip(whole, shift, strict=True) if m), default=0)
    return [m << (e - lowest) if m else 0 for m, e in zip(whole, shift, strict=True)], lowest


class Exact:
    """A finite host matrix of floats, ready for exact comparisons with its largest sigma."""

    def __init__(self, a: np.ndarray) -> None:
        a = np.asarray(a)
        if not np.all(np.isfinite(a)):
            msg = "the oracle takes finite matrices"
            raise ValueError(msg)
        if a.shape[0] < a.shape[1]:
            a = a.T  # the transpose has the same singular values
        m, n = a.shape
        parts = np.stack([np.real(a), np.imag(a)])
        whole, self.exponent = _dyadic(parts)
        real, imag = (flint.fmpz_mat(m, n, whole[i * m * n : (i + 1) * m * n]) for i in (0, 1))
        self.n = n
        self.is_complex = bool(np.any(parts[1]))
        self.gram_real = real.transpose() * real + imag.transpose() * imag
        self.gram_imag = real.transpose() * imag - imag.transpose() * real

    def compare(self, t: float) -> int | None:
        """Return the sign of t - sigma_1, or None if it stayed open."""
        if math.isnan(t):
            msg = "nan cannot be compared"
            raise ValueError(msg)
        if math.isinf(t) or t < 0:
            return 1 if t > 0 else -1
        mantissa, exponent = _dyadic(np.asarray([t]))
        shift = 2 * (exponent - self.exponent)
        up, down = max(shift, 0), max(-shift, 0)
        real = _negated(self.gram_real, down)
        for i, row in enumerate(real):
            row[i] += mantissa[0] ** 2 << up
        imag = _negated(self.gram_imag, down) if self.is_complex else None
        for bits in BITS:
            sign = _inertia_in_balls(real, imag, bits)
            if sign is not None:
                return sign
        whole = real if imag is None else _embedded(real, imag)
        longest = max(int(abs(row[i])).bit_length() for i, row in enumerate(whole))
        if float(len(whole)) ** 4 * longest > EXACT_LIMIT:
            return None
        return _inertia_exactly(whole)


def _negated(matrix: Any, down: int) -> list[list[Any]]:
    """Return -2^down times an integer matrix, as rows."""
    return [[-(x << down) for x in row] for row in matrix.tolist()]


def _embedded(real: list[list[Any]], imag: list[list[Any]]) -> list[list[Any]]:
    """Return the real symmetric matrix [[X, -Y], [Y, X]] of the Hermitian X + iY."""
    top = [x + [-v for v in y] for x, y in zip(real, imag, strict=True)]
    return top + [y + x for x, y in zip(real, imag, strict=True)]


def _inertia_in_balls(real: list[list[Any]], imag: list[list[Any]] | None, bits: int) -> int | None:
    """Return the sign of the least eigenvalue of a Hermitian matrix, or None if too close."""
    saved, flint.ctx.prec = flint.ctx.prec, bits
    try:
        if imag is None:
            a = [[flint.arb(x) for x in row] for row in real]
        else:
            a = [
                [flint.acb(x, y) for x, y in zip(r, i, strict=True)]
                for r, i in zip(real, imag, strict=True)
            ]
        return _pivots(a)
    finally:
        flint.ctx.prec = saved


def _pivots(a: list[list[Any]]) -> int | None:
    """Eliminate a Hermitian matrix of balls (lower triangle) and read the signs of its pivots."""
    n, sign = len(a), 1
    for k in range(n):
        pivot = flint.arb(a[k][k].real)
        column = [a[i][k] for i in range(k + 1, n)]
        if pivot < 0:
            return -1
        if pivot == 0 and all(x == 0 for x in column):  # balls without width: singular
            sign = 0
            continue
        if not pivot > 0:
            return None
        scaled = [x.conjugate() / pivot if isinstance(x, flint.acb) else x / pivot for x in column]
        for i in range(k + 1, n):
            row, factor = a[i], column[i - k - 1]
            for j in range(k + 1, i + 1):
                row[j] -= factor * scaled[j - k - 1]
    return sign


def _inertia_exactly(a: list[list[Any]]) -> int:
    """Return 1, 0 or -1 for a definite, semidefinite singular, or other symmetric integer matrix.

    Bareiss elimination. A zero pivot of a semidefinite matrix has a zero row: it is dropped.
    """
    a = [list(map(flint.fmpz, row)) for row in a]
    rows = list(range(len(a)))
    previous, singular = flint.fmpz(1), False
    while rows:
        k, *rest = rows
        pivot = a[k][k]
        if pivot < 0:
            return -1
        if pivot == 0:
            if any(a[i][k] != 0 for i in rest):
                return -1
            singular, rows = True, rest
            continue
        for i in rest:
            for j in rest:
                if j <= i:
                    a[i][j] = a[j][i] = (a[i][j] * pivot - a[i][k] * a[k][j]) // previous
        previous, rows = pivot, rest
    return 0 if singular else 1


def check_upper(a: np.ndarray | Exact, upper: float) -> Verdict:
    """Tell whether `upper` >= sigma_1(a) for the finite matrix `a` as stored."""
    if math.isnan(upper):
        return Verdict.VIOLATED
    sign = (a if isinstance(a, Exact) else Exact(a)).compare(float(upper))
    if sign is None:
        return Verdict.UNDECIDED
    return Verdict.HOLDS if sign >= 0 else Verdict.VIOLATED


def check_lower(a: np.ndarray | Exact, lower: float) -> Verdict:
    """Tell whether `lower` <= sigma_1(a) for the finite matrix `a` as stored."""
    if math.isnan(lower):
        return Verdict.VIOLATED
    sign = (a if isinstance(a, Exact) else Exact(a)).compare(float(lower))
    if sign is None:
        return Verdict.UNDECIDED
    return Verdict.HOLDS if sign <= 0 else Verdict.VIOLATED


# ------------------------------------------------------------------------ fast, for whole stacks

# On some platforms this is float64 again; the slack below grows with it.
LONG = np.longdouble
LONG_EPS = float(np.finfo(LONG).eps)


def exponents(stack: np.ndarray) -> np.ndarray:
    """Return per matrix the e that brings the largest part of an entry into [1/2, 1) by 2^-e."""
    parts = np.maximum(np.abs(np.real(stack)), np.abs(np.imag(stack)))
    if parts.shape[-1] == 0 or parts.shape[-2] == 0:
        return np.zeros(parts.shape[:-2], dtype=int)
    return np.frexp(parts.max(axis=(-2, -1)).astype(np.float64))[1]


def ldexp_long(x: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Return x 2^e in extended precision (or float64, where there is nothing longer)."""
    if np.iscomplexobj(x):
        return ldexp_long(np.real(x), e) + 1j * ldexp_long(np.imag(x), e)
    return np.ldexp(np.asarray(x, dtype=LONG), e)


def fast_bracket(stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Enclose sigma_1 of each finite matrix of a stack, scaled by 2^-exponents(stack).

    Not a proof: LAPACK's error is taken to be below 8 max(m, n) eps, and the Kato-Temple bound is
    evaluated in extended precision. Between the two values, and to confirm a violation, ask
    `check_upper` and `check_lower`.
    """
    m, n = stack.shape[-2:]
    e = exponents(stack)[..., None, None]
    scaled = ldexp_long(stack, -e)
    working = scaled.astype(np.complex128 if np.iscomplexobj(stack) else np.float64)
    _, s, vh = np.linalg.svd(working, full_matrices=False)
    v = np.conj(vh[..., 0, :]).astype(scaled.dtype)
    y = np.einsum("...ij,...j->...i", scaled, v)
    z = np.einsum("...ij,...i->...j", np.conj(scaled), y)
    v2, y2 = (np.sum(np.real(x) ** 2 + np.imag(x) ** 2, axis=-1) for x in (v, y))
    rho = y2 / v2
    r = z - rho[..., None] * v
    residual2 = np.sum(np.real(r) ** 2 + np.imag(r) ** 2, axis=-1) / v2
    second = s[..., 1] if s.shape[-1] > 1 else np.zeros_like(s[..., 0])
    gap = rho - (second + 1e-10 * s[..., 0]).astype(LONG) ** 2
    slack = 16 * (m + n + 8) * LONG_EPS
    with np.errstate(divide="ignore", invalid="ignore"):
        temple = np.where(gap > 1e-6 * rho, np.sqrt(rho + residual2 / gap), LONG(np.inf))
    plain = s[..., 0].astype(LONG) * (1 + 8 * max(m, n) * np.finfo(np.float64).eps)
    lower = np.sqrt(rho) * (1 - LONG(slack))
    upper = np.minimum(temple * (1 + LONG(slack)), plain)
    return lower, np.where(s[..., 0] == 0, LONG(0), np.maximum(upper, lower))


def sigma(a: np.ndarray) -> float:
    """Return sigma_1 of one matrix to about 1e-15, whatever its scale; inf if it overflows."""
    if 0 in a.shape:
        return 0.0
    lower, upper = fast_bracket(a)
    value = np.ldexp((lower + np.minimum(upper, 2 * lower)) / 2, exponents(a))
    with np.errstate(over="ignore"):
        return float(value)


@dataclass(frozen=True)
class Findings:
    """What `check_stack` found: indices into the flattened stack, and how loose the uppers are."""

    upper_violated: list[int]
    lower_violated: list[int]
    undecided: list[int]
    over: np.ndarray  # upper / sigma_1 - 1
    gap: np.ndarray  # (upper - lower) / sigma_1
    asked_exactly: int = 0

    @property
    def clean(self) -> bool:
        return not (self.upper_violated or self.lower_violated)


def check_stack(stack: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> Findings:
    """Check lower <= sigma_1 <= upper for each finite matrix of a stack of shape (..., m, n).

    Extended precision settles what is clear; the exact oracle settles the rest.
    """
    m, n = stack.shape[-2:]
    stack = stack.reshape(-1, m, n)
    upper, lower = (np.asarray(x).reshape(-1).astype(LONG) for x in (upper, lower))
    if stack.size == 0:
        bad = [int(i) for i in np.flatnonzero((upper != 0) | (lower != 0))]
        nothing = np.zeros(len(upper))
        return Findings(bad, bad, [], nothing, nothing)
    e = exponents(stack)
    least, most = fast_bracket(stack)
    u, low = np.ldexp(upper, -e), np.ldexp(lower, -e)
    found: dict[str, list[int]] = {"upper": [], "lower": [], "open": []}
    doubtful = np.flatnonzero(~(u >= most) | ~(low <= least))
    for i in map(int, doubtful):
        exact = Exact(stack[i])
        for name, test, value in (
            ("upper", check_upper, upper[i]),
            ("lower", check_lower, lower[i]),
        ):
            verdict = test(exact, float(value))
            if verdict is Verdict.VIOLATED:
                found[name].append(i)
            elif verdict is Verdict.UNDECIDED:
                found["open"].append(i)
    with np.errstate(divide="ignore", invalid="ignore"):
        over = np.where(most == 0, np.where(u == 0, 0, np.inf), u / least - 1).astype(np.float64)
        gap = np.where(most == 0, np.where(u == 0, 0, np.inf), (u - low) / least).astype(np.float64)
    return Findings(found["upper"], found["lower"], found["open"], over, gap, len(doubtful))


# ---------------------------------------------------------------------- convolutions, written out

Pads = list[tuple[int, int]]


def per_axis(value: int | Sequence[int], dims: int) -> list[int]:
    return [int(value)] * dims if np.ndim(value) == 0 else [int(v) for v in value]


def pads(
    padding: Any, shape: Sequence[int], taps: Sequence[int], dilation: Any, stride: Any
) -> Pads:
    """Return (before, after) per axis for a padding written in any of the accepted ways."""
    dims = len(shape)
    reach = [d * (k - 1) for d, k in zip(per_axis(dilation, dims), taps, strict=True)]
    if padding == "valid":
        return [(0, 0)] * dims
    if padding == "full":
        return [(r, r) for r in reach]
    if padding == "same":
        out = []
        for n, r, s in zip(shape, reach, per_axis(stride, dims), strict=True):
            total = max((-(-n // s) - 1) * s + r + 1 - n, 0)
            out.append((total // 2, total - total // 2))
        return out
    if np.ndim(padding) < 2:
        return [(p, p) for p in per_axis(padding, dims)]
    return [(int(lo), int(hi)) for lo, hi in padding]


def conv_apply(
    kernel: np.ndarray,
    x: np.ndarray,
    padding: Any = "same",
    padding_mode: str = "zeros",
    dilation: Any = 1,
    groups: int = 1,
    stride: Any = 1,
) -> np.ndarray:
    """Correlate x, of shape (c_in, *input, batch), with a kernel (c_out, c_in / groups, *taps).

    One output position and one tap at a time. "circular" wraps indices modulo the input size, the
    output has the input's size (divided by the stride, rounded up), and no padding is read.
    """
    taps, shape = kernel.shape[2:], x.shape[1:-1]
    dims = len(taps)
    d, s = per_axis(dilation, dims), per_axis(stride, dims)
    if padding_mode == "circular":
        before = [0] * dims
        out = [-(-n // t) for n, t in zip(shape, s, strict=True)]
    else:
        both = pads(padding, shape, taps, dilation, stride)
        before = [lo for lo, _ in both]
        out = [
            (n + sum(p) - a * (k - 1) - 1) // t + 1
            for n, p, a, k, t in zip(shape, both, d, taps, s, strict=True)
        ]
    c_out, c_group = kernel.shape[:2]
    y = np.zeros((c_out, *out, x.shape[-1]), dtype=np.result_type(kernel, x))
    for position in itertools.product(*map(range, out)):
        for tap in itertools.product(*map(range, taps)):
            source = [
                p * t - b + a * k for p, t, b, a, k in zip(position, s, before, d, tap, strict=True)
            ]
            if padding_mode == "circular":
                source = [i % n for i, n in zip(source, shape, strict=True)]
            elif any(i < 0 or i >= n for i, n in zip(source, shape, strict=True)):
                continue
            for g in range(groups):
                rows = slice(g * (c_out // groups), (g + 1) * (c_out // groups))
                columns = slice(g * c_group, (g + 1) * c_group)
                block = kernel[(rows, slice(None), *tap)]
                y[(rows, *position)] += block @ x[(columns, *source)]
    return y


def conv_matrix(
    kernel: np.ndarray,
    input_shape: Sequence[int],
    padding: Any = "same",
    padding_mode: str = "zeros",
    dilation: Any = 1,
    groups: int = 1,
    stride: Any = 1,
) -> np.ndarray:
    """Return the dense matrix of the convolution: `conv_apply` on every unit vector."""
    shape = (kernel.shape[1] * groups, *input_shape)
    size = math.prod(shape)
    unit = np.eye(size, dtype=kernel.dtype).reshape(*shape, size)
    return conv_apply(kernel, unit, padding, padding_mode, dilation, groups, stride).reshape(
        -1, size
    )


# --------------------------------------------------------------------------------- the symbol


def symbol(kernel: np.ndarray, theta: np.ndarray, dilation: Any = 1, groups: int = 1) -> np.ndarray:
    """Return F(theta) = sum_k K_k exp(i d k . theta) from the definition.

    `theta` has shape (..., axes); the result (..., groups, c_out / groups, c_in / groups).
    """
    taps = kernel.shape[2:]
    theta = np.asarray(theta, dtype=np.float64)
    d = np.asarray(per_axis(dilation, len(taps)))
    blocks = kernel.reshape(groups, -1, *kernel.shape[1:])
    out = np.zeros((*theta.shape[:-1], *blocks.shape[:3]), dtype=np.complex128)
    for tap in itertools.product(*map(range, taps)):
        phase = np.exp(1j * (theta @ (d * np.asarray(tap))))
        out += phase[..., None, None, None] * blocks[(..., *tap)]
    return out


def symbol_sigma(
    kernel: np.ndarray, theta: np.ndarray, dilation: Any = 1, groups: int = 1
) -> np.ndarray:
    """Return the norm of F(theta) for each theta: the largest over the groups."""
    blocks = symbol(kernel, theta, dilation, groups)
    return np.linalg.svd(blocks, compute_uv=False).max(axis=(-2, -1))


def grid(shape: Sequence[int]) -> np.ndarray:
    """Return the discrete frequencies 2 pi j / n, of shape (prod(shape), axes)."""
    axes = [2 * np.pi * np.arange(n) / n for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(shape))


def _scaled(kernel: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the kernel in float64 or complex128 times 2^-e, and the e of its largest part."""
    e = int(exponents(kernel.reshape(kernel.shape[0], -1)))
    scaled = ldexp_long(kernel, np.asarray(-e))
    return scaled.astype(np.complex128 if np.iscomplexobj(kernel) else np.float64), e


def _unscaled(value: float, e: int) -> float:
    with np.errstate(over="ignore"):
        return float(np.ldexp(np.float64(value), e))


def circular_reference(
    kernel: np.ndarray, input_shape: Sequence[int], dilation: Any = 1, groups: int = 1
) -> float:
    """Return the norm of the circular convolution at one size, to about 1e-14."""
    if 0 in kernel.shape or 0 in input_shape:
        return 0.0
    scaled, e = _scaled(kernel)
    return _unscaled(symbol_sigma(scaled, grid(input_shape), dilation, groups).max(), e)


def sup_reference(
    kernel: np.ndarray, groups: int = 1, per_axis_points: int | None = None, peaks: int = 6
) -> tuple[float, np.ndarray]:
    """Return the largest value of the symbol's norm that was found, and where it was found.

    A fine grid, then a local search from its highest local maxima: the value is attained, so it is
    below the supremum over all frequencies (up to 1e-14), and equal to it for all we know.
    """
    taps = kernel.shape[2:]
    theta0 = np.zeros(len(taps))
    if 0 in kernel.shape:
        return 0.0, theta0
    scaled, e = _scaled(kernel)
    factor = per_axis_points or {1: 24, 2: 8}.get(len(taps), 5)
    sizes = [1 if k == 1 else factor * k for k in taps]
    theta = grid(sizes)
    value = symbol_sigma(scaled, theta, 1, groups)
    table = value.reshape(sizes)
    peak = np.ones_like(table, dtype=bool)
    for axis in range(table.ndim):
        for shift in (-1, 1):
            peak &= table >= np.roll(table, shift, axis)
    where = np.flatnonzero(peak.ravel())
    where = where[np.argsort(-value[where], kind="stable")][:peaks]
    best, centre = value[where], theta[where]
    step = np.where(np.asarray(sizes) > 1, 2 * np.pi / np.asarray(sizes), 0.0)
    stencil = np.asarray(list(itertools.product((-1, 0, 1), repeat=len(taps))))
    h = np.full(len(where), 0.5)
    for _ in range(120):
        trial = centre[:, None] + h[:, None, None] * stencil * step
        around = symbol_sigma(scaled, trial, 1, groups)
        k = around.argmax(axis=1)
        top = around[np.arange(len(k)), k]
        better = top > best
        centre = np.where(better[:, None], trial[np.arange(len(k)), k], centre)
        best = np.where(better, top, best)
        h = np.where(better, h, h / 2)
        if h.max() < 1e-9:
            break
    i = int(best.argmax())
    return _unscaled(best[i], e), centre[i]


def compare_symbol(
    kernel: np.ndarray,
    theta: Sequence[float] | Sequence[Fraction],
    t: float,
    dilation: Any = 1,
    groups: int = 1,
) -> int | None:
    """Return the sign of t - ||F(theta)||, in balls, or None if it stayed open.

    `theta` holds floats, taken as exact radians, or Fractions, which count full turns.
    """
    if math.isinf(t):
        return 1
    signs = [
        _compare_block(block, theta, per_axis(dilation, kernel.ndim - 2), t)
        for block in kernel.reshape(groups, -1, *kernel.shape[1:])
    ]
    if any(s == -1 for s in signs):
        return -1
    if any(s is None for s in signs):
        return None
    return min(s for s in signs if s is not None)


def _compare_block(kernel: np.ndarray, theta: Any, dilation: list[int], t: float) -> int | None:
    """Return `compare_symbol` for one group."""
    taps = list(itertools.product(*map(range, kernel.shape[2:])))
    saved = flint.ctx.prec
    try:
        for bits in BITS:
            flint.ctx.prec = bits
            blocks = [
                (flint.acb_mat(_acb_rows(kernel[(..., *tap)])), _phase(tap, theta, dilation))
                for tap in taps
            ]
            f = flint.acb_mat(*kernel.shape[:2])
            for block, phase in blocks:
                f += block * phase
            if kernel.shape[0] < kernel.shape[1]:
                f = f.transpose()
            rows = [[-x for x in row] for row in (_adjoint(f) * f).tolist()]
            for i, row in enumerate(rows):
                row[i] += flint.arb(t) ** 2
            sign = _pivots(rows)
            if sign is not None:
                return sign
    finally:
        flint.ctx.prec = saved
    return None


def _acb_rows(a: np.ndarray) -> list[list[Any]]:
    return [[flint.acb(float(np.real(x)), float(np.imag(x))) for x in row] for row in a]


def _adjoint(f: Any) -> Any:
    return flint.acb_mat([[x.conjugate() for x in row] for row in f.transpose().tolist()])


def _phase(tap: Sequence[int], theta: Any, dilation: list[int]) -> Any:
    """Return exp(i d k . theta) as a ball."""
    if all(isinstance(x, Fraction) for x in theta):
        turns = sum((k * d * x for k, d, x in zip(tap, dilation, theta, strict=True)), Fraction(0))
        turns = 2 * (turns - math.floor(turns))
        q = flint.fmpq(int(turns.numerator), int(turns.denominator))
        s, c = flint.arb.sin_cos_pi_fmpq(q)
        return flint.acb(c, s)
    angle = flint.arb(0)
    for k, d, x in zip(tap, dilation, theta, strict=True):
        angle += k * d * flint.arb(float(x))
    s, c = angle.sin_cos()
    return flint.acb(c, s)


def compare_circular(
    kernel: np.ndarray,
    input_shape: Sequence[int],
    t: float,
    dilation: Any = 1,
    groups: int = 1,
    window: float = 1e-9,
) -> int | None:
    """Return the sign of t minus the norm of the circular convolution, in balls.

    Only frequencies whose value, in float64, is within `window` of t or of the maximum are asked.
    """
    scaled, e = _scaled(kernel)
    value = symbol_sigma(scaled, grid(input_shape), dilation, groups)
    level = min(float(np.ldexp(LONG(t), -e)), float(value.max())) * (1 - window)
    indices = list(itertools.product(*map(range, input_shape)))
    signs: list[int | None] = [1]
    for i in np.flatnonzero(value >= level):
        theta = [Fraction(j, n) for j, n in zip(indices[i], input_shape, strict=True)]
        signs.append(compare_symbol(kernel, theta, t, dilation, groups))
        if signs[-1] == -1:
            return -1
    return None if None in signs else min(s for s in signs if s is not None)


# ------------------------------------------------------------- kernels whose supremum is known


def aligned_kernel(rng: np.random.Generator, taps: Sequence[int], dtype: str) -> np.ndarray:
    """Return a 1 x 1 channel real kernel a_k (-1)^(k . e), e in {0, 1}: sup = sum |taps|."""
    a = np.abs(rng.standard_normal(taps)) + 0.01
    flips = rng.integers(0, 2, len(taps))
    index = np.stack(np.meshgrid(*map(np.arange, taps), indexing="ij"), axis=-1)
    return (a * (-1.0) ** (index @ flips)).astype(dtype)[None, None]


def modulated_kernel(
    rng: np.random.Generator, taps: Sequence[int], dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return a complex kernel a_k exp(-i k . theta) and theta: sup = sum |taps| to second order."""
    a = np.abs(rng.standard_normal(taps)) + 0.01
    theta = rng.uniform(-np.pi, np.pi, len(taps))
    index = np.stack(np.meshgrid(*map(np.arange, taps), indexing="ij"), axis=-1)
    return (a * np.exp(-1j * (index @ theta))).astype(dtype)[None, None], theta


def absolute_sum(kernel: np.ndarray) -> float:
    """Return sum |taps| of a scalar kernel, correctly rounded up to the roots."""
    return math.fsum(abs(complex(x)) for x in kernel.ravel())


def paraunitary_kernel(
    rng: np.random.Generator, channels: int, degrees: Sequence[int], dtype: str
) -> np.ndarray:
    """Return a product of factors I - P + P z, one axis each: an exactly orthogonal convolution.

    Each P = v v^T / |v|^2 with one, two or four entries +-1 in v, so that products are exact in
    floating point as long as the degrees are small (4 bits per factor at most).
    """
    kernel = np.eye(channels).reshape(channels, channels, *[1] * len(degrees))
    order = [axis for axis, degree in enumerate(degrees) for _ in range(degree)]
    for axis in rng.permutation(order).astype(int):
        ones = rng.choice([i for i in (1, 2, 4) if i <= channels])
        v = np.zeros(channels)
        v[rng.choice(channels, ones, replace=False)] = rng.choice([-1.0, 1.0], ones)
        p = np.outer(v, v) / ones
        width = [(0, 0)] * kernel.ndim
        width[axis + 2] = (0, 1)
        stay = np.pad(np.einsum("ij,j...->i...", np.eye(channels) - p, kernel), width)
        width[axis + 2] = (1, 0)
        kernel = stay + np.pad(np.einsum("ij,j...->i...", p, kernel), width)
    return kernel.astype(dtype)


def shift_kernel(
    rng: np.random.Generator, channels: int, taps: Sequence[int], dtype: str
) -> np.ndarray:
    """Return a channel permutation with one signed unit tap per channel: norm 1 exactly."""
    kernel = np.zeros((channels, channels, *taps))
    for i, j in enumerate(rng.permutation(channels)):
        kernel[(i, j, *(rng.integers(k) for k in taps))] = rng.choice([-1.0, 1.0])
    return kernel.astype(dtype)


def known_suprema(
    rng: np.random.Generator, dtype: str
) -> Iterator[tuple[str, np.ndarray, int, float]]:
    """Yield (name, kernel, groups, supremum): the supremum is right to 4e-16 relative."""
    yield "ones", np.ones((1, 1, 5, 1), dtype), 1, 5.0
    yield "second difference", np.asarray([[[1, -2, 1]]], dtype), 1, 4.0
    yield "laplacian", np.asarray([[[[0, 1, 0], [1, -4, 1], [0, 1, 0]]]], dtype), 1, 8.0
    sobel = np.asarray([[[[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]]], dtype)
    yield "sobel", sobel, 1, 8.0
    yield "first difference", np.asarray([[[1, -1]]], dtype), 1, 2.0
    yield "depthwise", np.asarray([0.5, 0.75], dtype).reshape(2, 1, 1, 1), 2, 0.75
    yield "zero", np.zeros((3, 2, 3, 3), dtype), 1, 0.0
    for taps in ((2,), (7,), (3, 3), (4, 2), (2, 3, 2)):
        kernel = aligned_kernel(rng, taps, dtype)
        yield f"aligned {taps}", kernel, 1, absolute_sum(kernel)
        matrix = np.asarray([[3.0, 0.0], [0.0, 4.0], [4.0, 0.0]])  # norm 5
        taps_whole = rng.integers(1, 9, taps).astype(dtype)
        product = (matrix.reshape(3, 2, *[1] * len(taps)) * taps_whole).astype(dtype)
        yield f"separable {taps}", product, 1, 5.0 * float(np.real(taps_whole.sum()))
        yield f"shifts {taps}", shift_kernel(rng, 4, taps, dtype), 1, 1.0
        both = np.concatenate([kernel, (kernel / 2).astype(dtype)])
        yield f"groups {taps}", both, 2, absolute_sum(kernel)
        if np.dtype(dtype).kind == "c":
            kernel, _ = modulated_kernel(rng, taps, dtype)
            yield f"modulated {taps}", kernel, 1, absolute_sum(kernel)
    for degrees in ((3,), (2, 2), (1, 1, 1)):
        yield f"paraunitary {degrees}", paraunitary_kernel(rng, 4, degrees, dtype), 1, 1.0
