"""Independent references: exact comparisons with sigma_1, dense convolutions, known suprema.

Nothing here looks at the package. A bound t is compared with sigma_1(A) through the inertia of
t^2 I - A^H A. The stored floats are integers times a power of two, so that this matrix is an
integer matrix. Its LDL^H pivots are enclosed in balls, at rising precision; where balls cannot
tell (t equal to sigma_1, say) fraction-free elimination over the integers decides.

A convolution is its definition, y[o] = sum_k K[k] x[s o + d k - lo], one output and one tap at a
time; what stands for x beyond its ends is decided by `beyond`, once for all padding modes.
"""

import enum
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import flint
import numpy as np

BITS = (192, 768, 3072)  # ball precisions, tried in turn
EXACT_LIMIT = 4e9  # n^4 times the length in bits, up to which integers decide (seconds)


Rows = list[list[Any]]  # of integers or balls


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


def integers(a: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return X, Y and e with a = (X + i Y) 2^e exactly; X and Y hold Python integers."""
    parts = np.stack([np.real(a), np.imag(a)])
    whole, e = _dyadic(parts)
    x, y = np.asarray(whole, dtype=object).reshape(parts.shape)
    return x, y, e


class Exact:
    """A finite host matrix of floats, ready for exact comparisons with its largest sigma."""

    def __init__(self, a: np.ndarray) -> None:
        a = np.asarray(a)
        if not np.all(np.isfinite(a)):
            msg = "the oracle takes finite matrices"
            raise ValueError(msg)
        self._take(*integers(a))

    @classmethod
    def from_integers(cls, x: np.ndarray, y: np.ndarray, e: int) -> "Exact":
        """Return the matrix (x + i y) 2^e, whose entries need not be floats."""
        exact = cls.__new__(cls)
        exact._take(x, y, e)
        return exact

    def _take(self, x: np.ndarray, y: np.ndarray, e: int) -> None:
        if x.shape[0] < x.shape[1]:
            x, y = x.T, y.T  # the transpose has the same singular values
        real, imag = (flint.fmpz_mat(*x.shape, part.ravel().tolist()) for part in (x, y))
        self.exponent = e
        self.n = x.shape[1]
        self.is_complex = bool(np.any(y))
        self.gram_real = real.transpose() * real + imag.transpose() * imag
        self.gram_imag = real.transpose() * imag - imag.transpose() * real
        self.blocks = _diagonal_blocks(self.gram_real, self.gram_imag)

    def compare(self, t: float) -> int | None:
        """Return the sign of t - sigma_1, or None if it stayed open."""
        if math.isnan(t):
            msg = "nan cannot be compared"
            raise ValueError(msg)
        if math.isinf(t) or t < 0:
            return 1 if t > 0 else -1
        signs = []
        for real, imag in self.blocks:
            signs.append(self._compare_block(real, imag, t))
            if signs[-1] == -1:
                return -1
        return None if None in signs else min((s for s in signs if s is not None), default=1)

    def _compare_block(self, gram_real: Rows, gram_imag: Rows, t: float) -> int | None:
        mantissa, exponent = _dyadic(np.asarray([t]))
        shift = 2 * (exponent - self.exponent)
        up, down = max(shift, 0), max(-shift, 0)
        real = _negated(gram_real, down)
        for i, row in enumerate(real):
            row[i] += mantissa[0] ** 2 << up
        imag = _negated(gram_imag, down) if self.is_complex else None
        for bits in BITS:
            sign = _inertia_in_balls(real, imag, bits)
            if sign is not None:
                return sign
        whole = real if imag is None else _embedded(real, imag)
        longest = max(int(abs(row[i])).bit_length() for i, row in enumerate(whole))
        if float(len(whole)) ** 4 * longest > EXACT_LIMIT:
            return None
        return _inertia_exactly(whole)


def _diagonal_blocks(real: Any, imag: Any) -> list[tuple[Rows, Rows]]:
    """Return the different blocks of a Hermitian integer matrix that no entry connects.

    The norm is the largest of theirs; in a convolution, blocks far apart are often the same.
    """
    x, y = real.tolist(), imag.tolist()
    left, blocks = set(range(len(x))), {}
    while left:
        queue = [left.pop()]
        block = set(queue)
        while queue:
            i = queue.pop()
            near = {j for j in left if x[i][j] != 0 or y[i][j] != 0}
            left -= near
            block |= near
            queue += near
        order = sorted(block)
        parts = tuple([[v[i][j] for j in order] for i in order] for v in (x, y))
        blocks[str(parts)] = parts
    return list(blocks.values())


def _negated(rows: Rows, down: int) -> Rows:
    """Return -2^down times an integer matrix."""
    return [[-(x << down) for x in row] for row in rows]


def _embedded(real: Rows, imag: Rows) -> Rows:
    """Return the real symmetric matrix [[X, -Y], [Y, X]] of the Hermitian X + iY."""
    top = [x + [-v for v in y] for x, y in zip(real, imag, strict=True)]
    return top + [y + x for x, y in zip(real, imag, strict=True)]


def _inertia_in_balls(real: Rows, imag: Rows | None, bits: int) -> int | None:
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


def _pivots(a: Rows) -> int | None:
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
        scaled: dict[int, Any] = {}
        for i, x in enumerate(column, k + 1):
            if x == 0:  # exactly: most entries of a convolution
                continue
            scaled[i] = (x.conjugate() if isinstance(x, flint.acb) else x) / pivot
            row = a[i]
            for j, y in scaled.items():
                row[j] -= x * y
    return sign


def _inertia_exactly(a: Rows) -> int:
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


def check_stack(
    stack: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    error: float = 0.0,
    exactly: Callable[[int], Exact] | None = None,
) -> Findings:
    """Check lower <= sigma_1 <= upper for each finite matrix of a stack of shape (..., m, n).

    Extended precision settles what is clear; the exact oracle settles the rest. Where the stack
    holds the matrices up to `error` in the norm only, `exactly` returns the i-th one as it is.
    """
    upper, lower = (np.asarray(x).reshape(-1).astype(LONG) for x in (upper, lower))
    if stack.size == 0:
        bad = [int(i) for i in np.flatnonzero((upper != 0) | (lower != 0))]
        nothing = np.zeros(len(upper))
        return Findings(bad, bad, [], nothing, nothing)
    stack = stack.reshape(-1, *stack.shape[-2:])
    e = exponents(stack)
    least, most = fast_bracket(stack)
    u, low = np.ldexp(upper, -e), np.ldexp(lower, -e)
    off = np.ldexp(LONG(error), -e)
    found: dict[str, list[int]] = {"upper": [], "lower": [], "open": []}
    doubtful = np.flatnonzero(~(u >= most + off) | ~(low <= np.maximum(least - off, 0)))
    for i in map(int, doubtful):
        exact = exactly(i) if exactly else Exact(stack[i])
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
    """Return (before, after) per axis for a padding written in any of the accepted ways.

    `shape` is what the forward convolution reads. None is "same": as many outputs as the stride
    fits into the input, rounded up, and the odd sample of padding at the end.
    """
    dims = len(shape)
    reach = [d * (k - 1) for d, k in zip(per_axis(dilation, dims), taps, strict=True)]
    if padding == "valid":
        return [(0, 0)] * dims
    if padding == "full":
        return [(r, r) for r in reach]
    if padding is None or padding == "same":
        out = []
        for n, r, s in zip(shape, reach, per_axis(stride, dims), strict=True):
            total = max((-(-n // s) - 1) * s + r + 1 - n, 0)
            out.append((total // 2, total - total // 2))
        return out
    if np.ndim(padding) < 2:
        return [(p, p) for p in per_axis(padding, dims)]
    return [(int(lo), int(hi)) for lo, hi in padding]


def beyond(i: int, n: int, padding_mode: str) -> int | None:
    """Return which of n samples stands at position i, before, in or after them; None for a zero."""
    if padding_mode == "circular":
        return i % n
    if 0 <= i < n:
        return i
    if padding_mode == "reflect":  # the mirror is the first or the last sample
        return -i if i < 0 else 2 * (n - 1) - i
    if padding_mode == "replicate":
        return 0 if i < 0 else n - 1
    if padding_mode == "symmetric":  # the mirror lies half a sample beyond
        while not 0 <= i < n:
            i = -1 - i if i < 0 else 2 * n - 1 - i
        return i
    return None


def forward_sizes(
    taps: Sequence[int],
    input_shape: Sequence[int],
    padding: Any = None,
    padding_mode: str = "zeros",
    dilation: Any = 1,
    stride: Any = 1,
    transposed: bool = False,
    output_padding: Any = 0,
) -> list[tuple[int, int, int]]:
    """Return (samples read, samples written, padding before) of the forward convolution per axis.

    A transposed convolution is its forward one read backwards: `input_shape` is what that writes.
    Circular without a padding: the first tap of output o stands at s o, once around the circle.
    """
    dims = len(taps)
    d, s, more = (per_axis(v, dims) for v in (dilation, stride, output_padding))
    wraps = padding_mode == "circular" and padding is None
    is_same = padding is None or padding == "same"
    multiples = [n * t for n, t in zip(input_shape, s, strict=True)]
    both = pads(padding, multiples if transposed else input_shape, taps, d, s)
    sizes = []
    for axis, n in enumerate(input_shape):
        lo, hi = (0, 0) if wraps else both[axis]
        reach = d[axis] * (taps[axis] - 1)
        if transposed and is_same:
            sizes.append((multiples[axis], n, lo))
        elif transposed:
            sizes.append((max((n - 1) * s[axis] - lo - hi + reach + more[axis] + 1, 0), n, lo))
        elif wraps:
            sizes.append((n, -(-n // s[axis]), lo))
        else:
            sizes.append((n, max((n + lo + hi - reach - 1) // s[axis] + 1, 0), lo))
    return sizes


def conv_matrix(
    kernel: np.ndarray,
    input_shape: Sequence[int],
    padding: Any = None,
    padding_mode: str = "zeros",
    dilation: Any = 1,
    groups: int = 1,
    stride: Any = 1,
    transposed: bool = False,
    output_padding: Any = 0,
) -> np.ndarray:
    """Return the dense matrix of a convolution, one output position and one tap at a time.

    Rows are (c_out, *output), columns (c_in, *input); kernels are (c_out, c_in / groups, *taps).
    Transposed, kernels are (c_in, c_out / groups, *taps), and what is returned is the matrix of the
    forward convolution that reads the output: of the adjoint, which has the same norm.
    """
    taps = kernel.shape[2:]
    d, s = per_axis(dilation, len(taps)), per_axis(stride, len(taps))
    reads, writes, before = zip(
        *forward_sizes(taps, input_shape, padding, padding_mode, d, s, transposed, output_padding),
        strict=True,
    )
    p, q = kernel.shape[0] // groups, kernel.shape[1]  # channels of one group
    a = np.zeros((groups * p, *writes, groups * q, *reads), dtype=kernel.dtype)
    for position in itertools.product(*map(range, writes)):
        for tap in itertools.product(*map(range, taps)):
            source = [
                beyond(t * o + e * k - lo, n, padding_mode)
                for t, o, e, k, lo, n in zip(s, position, d, tap, before, reads, strict=True)
            ]
            if None in source:
                continue
            for g in range(groups):
                rows, columns = slice(g * p, (g + 1) * p), slice(g * q, (g + 1) * q)
                a[(rows, *position, columns, *source)] += kernel[(rows, slice(None), *tap)]
    return a.reshape(groups * p * math.prod(writes), groups * q * math.prod(reads))


def conv_apply(
    kernel: np.ndarray,
    x: np.ndarray,
    padding: Any = None,
    padding_mode: str = "zeros",
    dilation: Any = 1,
    groups: int = 1,
    stride: Any = 1,
    transposed: bool = False,
    output_padding: Any = 0,
) -> np.ndarray:
    """Apply a convolution to x, of shape (c_in, *input, batch); transposed without conjugates."""
    shape = x.shape[1:-1]
    before, after = (padding, padding_mode, dilation), (stride, transposed, output_padding)
    a = conv_matrix(kernel, shape, *before, groups, *after)
    sizes = forward_sizes(kernel.shape[2:], shape, *before, *after)
    if transposed:
        out = [groups * kernel.shape[1], *(reads for reads, _, _ in sizes)]
        return (a.T @ x.reshape(-1, x.shape[-1])).reshape(*out, x.shape[-1])
    out = [kernel.shape[0], *(writes for _, writes, _ in sizes)]
    return (a @ x.reshape(-1, x.shape[-1])).reshape(*out, x.shape[-1])


def check_conv(
    kernel: np.ndarray,
    input_shape: Sequence[int],
    lower: float,
    upper: float,
    padding_mode: str = "zeros",
    **geometry: Any,
) -> Findings:
    """Check lower <= norm <= upper of one convolution on its dense matrix.

    Where taps meet in one entry (never with zero padding) their sum is rounded, in extended
    precision: each row is off by sum |taps| (T - 1) u at most. The exact oracle sums integers.
    """
    geometry |= {"padding_mode": padding_mode}
    long = kernel.astype(np.result_type(kernel, LONG))
    dense = conv_matrix(long, input_shape, **geometry)
    meeting = 0 if padding_mode == "zeros" else math.prod(kernel.shape[2:]) - 1
    error = meeting * LONG_EPS * math.sqrt(len(dense)) * np.sum(np.abs(long))

    def exactly(_: int) -> Exact:
        x, y, e = integers(kernel)
        return Exact.from_integers(*(conv_matrix(v, input_shape, **geometry) for v in (x, y)), e)

    return check_stack(dense[None], np.asarray([lower]), np.asarray([upper]), error, exactly)


# --------------------------------------------------------------------------------- the symbol


def symbol(
    kernel: np.ndarray, theta: np.ndarray, dilation: Any = 1, groups: int = 1, stride: Any = 1
) -> np.ndarray:
    """Return the blocks [F(theta + 2 pi r / s)]_r / sqrt(prod s) from the definition.

    F(theta) = sum_k K_k exp(i d k . theta), and r runs over the box prod range(s_a): the aliases,
    which a stride s folds into one frequency of the output. `theta` has shape (..., axes), the
    result (..., groups, c_out / groups, prod(s) c_in / groups).
    """
    taps = kernel.shape[2:]
    theta = np.asarray(theta, dtype=np.float64)
    d, s = per_axis(dilation, len(taps)), per_axis(stride, len(taps))
    shifts = np.asarray(list(itertools.product(*map(range, s)))) * (2 * np.pi / np.asarray(s))
    steps = np.asarray(list(itertools.product(*map(range, taps)))) * d
    waves = np.exp(1j * ((theta[..., None, :] + shifts) @ steps.T))  # (..., aliases, taps)
    p, q = kernel.shape[0] // groups, kernel.shape[1]
    blocks = (waves @ kernel.reshape(groups * p * q, -1).T).reshape(*waves.shape[:-1], groups, p, q)
    side_by_side = np.moveaxis(blocks, -4, -2)  # (..., groups, p, aliases, q)
    return side_by_side.reshape(*theta.shape[:-1], groups, p, -1) / math.sqrt(math.prod(s))


def symbol_sigma(
    kernel: np.ndarray, theta: np.ndarray, dilation: Any = 1, groups: int = 1, stride: Any = 1
) -> np.ndarray:
    """Return the norm of the block at each theta: the largest over the groups."""
    blocks = symbol(kernel, theta, dilation, groups, stride)
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
    kernel: np.ndarray,
    input_shape: Sequence[int],
    dilation: Any = 1,
    groups: int = 1,
    stride: Any = 1,
) -> float:
    """Return the norm of the circular convolution at one size, to about 1e-14.

    The stride must divide the size: then the outputs are a circle too, and the frequencies of the
    input fall into classes of aliases.
    """
    if 0 in kernel.shape or 0 in input_shape:
        return 0.0
    scaled, e = _scaled(kernel)
    s = per_axis(stride, len(input_shape))
    theta = grid(_divided(input_shape, s)) / s
    return _unscaled(symbol_sigma(scaled, theta, dilation, groups, stride).max(), e)


def _divided(shape: Sequence[int], stride: Sequence[int]) -> list[int]:
    if any(n % s for n, s in zip(shape, stride, strict=True)):
        msg = f"stride {stride} does not divide the circle {shape}: ask conv_matrix"
        raise ValueError(msg)
    return [n // s for n, s in zip(shape, stride, strict=True)]


def sup_reference(
    kernel: np.ndarray,
    groups: int = 1,
    per_axis_points: int | None = None,
    peaks: int = 6,
    stride: Any = 1,
    dilation: Any = 1,
) -> tuple[float, np.ndarray]:
    """Return the largest value of the symbol's norm that was found, and where it was found.

    A fine grid, then a local search from its highest local maxima: the value is attained, so it is
    below the supremum over all frequencies (up to 1e-14), and equal to it for all we know.

    Summed over its aliases, F F^H keeps those terms exp(i d (k - l) theta) whose d (k - l) the
    stride divides: multiples m of lcm(s, d), m (s / gcd(s, d)) < k. So the grid covers one period
    2 pi / lcm(s, d), with a number of points that goes with the degree.
    """
    taps = kernel.shape[2:]
    theta0 = np.zeros(len(taps))
    if 0 in kernel.shape:
        return 0.0, theta0
    scaled, e = _scaled(kernel)
    s, d = per_axis(stride, len(taps)), per_axis(dilation, len(taps))

    def norms(places: np.ndarray) -> np.ndarray:
        return symbol_sigma(scaled, places, d, groups, s)

    factor = per_axis_points or {1: 24, 2: 8}.get(len(taps), 5)
    degrees = [(k - 1) // (a // math.gcd(a, b)) for k, a, b in zip(taps, s, d, strict=True)]
    sizes = [factor * (degree + 1) if degree else 1 for degree in degrees]
    period = np.asarray([1 / math.lcm(a, b) for a, b in zip(s, d, strict=True)])
    theta = grid(sizes) * period
    pieces = 1 + len(theta) * math.prod(s) * math.prod(taps) // 2**20  # tens of megabytes each
    value = np.concatenate([norms(part) for part in np.array_split(theta, pieces)])
    table = value.reshape(sizes)
    peak = np.ones_like(table, dtype=bool)
    for axis in range(table.ndim):
        for shift in (-1, 1):
            peak &= table >= np.roll(table, shift, axis)
    where = np.flatnonzero(peak.ravel())
    where = where[np.argsort(-value[where], kind="stable")][:peaks]
    step = np.where(np.asarray(sizes) > 1, 2 * np.pi / np.asarray(sizes), 0.0) * period
    aside = step * (0.11 + 0.06 * np.arange(len(taps)))  # off the saddles of symmetric symbols
    centre = np.concatenate([theta[where], theta[where] + aside])
    best = norms(centre)
    stencil = np.asarray(list(itertools.product((-1, 0, 1), repeat=len(taps))))
    h = np.full(len(centre), 0.5)
    for _ in range(200):
        trial = centre[:, None] + h[:, None, None] * stencil * step
        centre, best, better = _highest(norms, trial, centre, best)
        h = np.where(better, np.minimum(2 * h, 1), h / 2)
        if h.max() < 1e-9:
            break
    centre, best = _along_ridges(norms, centre, best, step)
    i = int(best.argmax())
    return _unscaled(best[i], e), centre[i]


def _highest(
    function: Callable[[np.ndarray], np.ndarray],
    trial: np.ndarray,
    centre: np.ndarray,
    best: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the highest of the trials of each centre, its value, and whether that is higher."""
    found = function(trial)
    k = found.argmax(axis=1)
    top = found[np.arange(len(k)), k]
    better = top > best
    centre = np.where(better[:, None], trial[np.arange(len(k)), k], centre)
    return centre, np.where(better, top, best), better


def _along_ridges(
    function: Callable[[np.ndarray], np.ndarray],
    centre: np.ndarray,
    best: np.ndarray,
    step: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Climb by Newton's method from where a search along the axes creeps: narrow ridges turn."""
    free = np.flatnonzero(step)
    unit = 1e-3 * np.diag(step)[free]
    pairs = list(itertools.combinations(range(len(free)), 2))
    offsets = np.concatenate(
        [unit, -unit, *([[unit[a] + unit[b], -unit[a] - unit[b]] for a, b in pairs])]
    )
    count = len(free)
    for _ in range(30 if count else 0):
        around = function(centre[:, None] + offsets)
        ahead, behind = around[:, :count], around[:, count : 2 * count]
        slope = (ahead - behind) / 2
        bend = np.zeros((len(centre), count, count))
        own = ahead + behind - 2 * best[:, None]
        bend[:, range(count), range(count)] = own
        for j, (a, b) in enumerate(pairs):
            both = around[:, 2 * (count + j)] + around[:, 2 * (count + j) + 1]
            mixed = (both - 2 * best - own[:, a] - own[:, b]) / 2
            bend[:, a, b] = bend[:, b, a] = mixed
        values, vectors = np.linalg.eigh(bend)
        curved = np.maximum(np.abs(values), 1e-15 * np.max(np.abs(values), axis=1, keepdims=True))
        along = np.einsum("ikj,ik->ij", vectors, slope) / np.maximum(curved, 1e-300)
        move = np.einsum("ijk,ik->ij", vectors, np.clip(along, -1e3, 1e3)) @ unit
        trial = centre[:, None] + 0.5 ** np.arange(-2, 12)[:, None] * move[:, None]
        centre, best, better = _highest(function, trial, centre, best)
        if not np.any(better):
            break
    return centre, best


def compare_symbol(
    kernel: np.ndarray,
    theta: Sequence[float] | Sequence[Fraction],
    t: float,
    dilation: Any = 1,
    groups: int = 1,
    stride: Any = 1,
) -> int | None:
    """Return the sign of t minus the norm of the symbol at theta, in balls, or None if open.

    `theta` holds floats, taken as exact radians, or Fractions, which count full turns.
    """
    if math.isinf(t):
        return 1
    d, s = (per_axis(v, kernel.ndim - 2) for v in (dilation, stride))
    blocks = kernel.reshape(groups, -1, *kernel.shape[1:])
    signs = [_compare_block(block, theta, d, s, t) for block in blocks]
    if any(sign == -1 for sign in signs):
        return -1
    if any(sign is None for sign in signs):
        return None
    return min(sign for sign in signs if sign is not None)


def _compare_block(
    kernel: np.ndarray, theta: Any, dilation: list[int], stride: list[int], t: float
) -> int | None:
    """Return `compare_symbol` for one group: the inertia of prod(s) t^2 I - B B^H, B = [F_r]_r."""
    taps = list(itertools.product(*map(range, kernel.shape[2:])))
    aliases = [
        [Fraction(r, s) for r, s in zip(shift, stride, strict=True)]
        for shift in itertools.product(*map(range, stride))
    ]
    saved = flint.ctx.prec
    try:
        for bits in BITS:
            flint.ctx.prec = bits
            blocks = [flint.acb_mat(_acb_rows(kernel[(..., *tap)])) for tap in taps]
            waves = [_phase(tap, theta, dilation) for tap in taps]
            rows: list[list[Any]] = [[] for _ in range(kernel.shape[0])]
            for alias in aliases:
                f = flint.acb_mat(*kernel.shape[:2])
                for tap, block, wave in zip(taps, blocks, waves, strict=True):
                    f += block * (wave * _phase(tap, alias, dilation))
                rows = [row + more for row, more in zip(rows, f.tolist(), strict=True)]
            b = flint.acb_mat(rows)
            if b.nrows() < b.ncols():
                b = b.transpose()
            gap = [[-x for x in row] for row in (_adjoint(b) * b).tolist()]
            for i, row in enumerate(gap):
                row[i] += math.prod(stride) * flint.arb(t) ** 2
            sign = _pivots(gap)
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
    stride: Any = 1,
    window: float = 1e-9,
) -> int | None:
    """Return the sign of t minus the norm of the circular convolution, in balls.

    The stride divides the size. Only frequencies whose value, in float64, is within `window` of t
    or of the maximum are asked.
    """
    scaled, e = _scaled(kernel)
    s = per_axis(stride, len(input_shape))
    outputs = _divided(input_shape, s)
    value = symbol_sigma(scaled, grid(outputs) / s, dilation, groups, s)
    level = min(float(np.ldexp(LONG(t), -e)), float(value.max())) * (1 - window)
    indices = list(itertools.product(*map(range, outputs)))
    signs: list[int | None] = [1]
    for i in np.flatnonzero(value >= level):
        theta = [Fraction(j, n) for j, n in zip(indices[i], input_shape, strict=True)]
        signs.append(compare_symbol(kernel, theta, t, dilation, groups, s))
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


def known_strided(
    rng: np.random.Generator, dtype: str
) -> Iterator[tuple[str, np.ndarray, dict[str, Any], float | np.ndarray]]:
    """Yield (name, kernel, options, supremum, or a matrix with that norm), at strides above 1.

    Where the stride divides the dilation, the taps of one output lie on one sublattice and the
    supremum is that of stride 1. Where k <= s on every axis, and s and d have no common divisor, no
    sample is read twice: the norm is that of the kernel reshaped to a matrix.
    """
    for name, kernel, groups, answer in known_suprema(rng, dtype):
        s = tuple(int(i) for i in rng.integers(1, 5, kernel.ndim - 2))
        d = tuple(i * int(rng.integers(1, 3)) for i in s)
        options = {"stride": s, "dilation": d, "groups": groups}
        yield f"sublattice {name}", kernel, options, answer
    for s in ((1,), (2,), (3,), (4,), (2, 2), (4, 3), (2, 3, 2)):
        d = tuple(int(rng.choice([i for i in (1, 2, 3, 4, 5) if math.gcd(i, t) == 1])) for t in s)
        taps = tuple(int(rng.integers(1, t + 1)) for t in s)
        yield f"window {s}", np.ones((1, 1, *s), dtype), {"stride": s}, math.sqrt(math.prod(s))
        parts = rng.standard_normal((2, 3, 2, *taps))
        kernel = (parts[0] + 1j * parts[1] if np.dtype(dtype).kind == "c" else parts[0]).astype(
            dtype
        )
        yield f"patches {s}", kernel, {"stride": s, "dilation": d}, kernel.reshape(3, -1)
