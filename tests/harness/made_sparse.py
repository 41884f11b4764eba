"""Sparse matrices as programs make them, and what they hold, read entry by entry.

Products, transposes, reversed slices, sums and stacks leave entries out of order, places that occur
twice, zeros that are stored, and wide indices. Here they are made by SciPy's own functions, never from
a dense array in order. `Truth` reads the arrays of a format as its definition says, place by place, and
adds exactly what shares a place; nothing of it goes through a conversion of SciPy's or of the package.
"""

from __future__ import annotations

import functools
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import scipy.sparse as sp

from tests.harness import oracles

FORMATS = ("csr", "csc", "coo", "bsr", "dia", "dok", "lil")
INTEGERS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float32", "float64", "complex64", "complex128")
DTYPES = (*FLOATS, *INTEGERS)
LARGEST = 24  # side of what is made of what was made

Rng = np.random.Generator
Sparse = Any
Maker = Callable[[Rng, Sparse], Sparse]

MAKERS: dict[str, Maker] = {}


def maker(function: Maker) -> Maker:
    MAKERS[function.__name__] = function
    return function


# ------------------------------------------------------------------------------------- what is held


def stored_entries(x: Sparse) -> Iterator[tuple[int, int, Any]]:
    """Yield (row, column, value) of everything that a sparse matrix of any format stores."""
    m, n = x.shape
    if x.format in ("csr", "csc"):
        for i in range(len(x.indptr) - 1):
            for k in range(x.indptr[i], x.indptr[i + 1]):
                j = int(x.indices[k])
                yield (i, j, x.data[k]) if x.format == "csr" else (j, i, x.data[k])
    elif x.format == "coo":
        yield from zip(x.row.tolist(), x.col.tolist(), x.data, strict=True)
    elif x.format == "bsr":
        height, width = x.blocksize
        for i in range(len(x.indptr) - 1):
            for k in range(x.indptr[i], x.indptr[i + 1]):
                for (a, b), value in np.ndenumerate(x.data[k]):
                    yield height * i + a, width * int(x.indices[k]) + b, value
    elif x.format == "dia":  # column j of the array belongs to column j of the matrix
        for offset, diagonal in zip(x.offsets.tolist(), x.data, strict=True):
            for j, value in enumerate(diagonal[:n]):
                if 0 <= j - offset < m:
                    yield j - offset, j, value
    elif x.format == "lil":
        for i, (columns, values) in enumerate(zip(x.rows, x.data, strict=True)):
            for j, value in zip(columns, values, strict=True):
                yield i, int(j), x.dtype.type(value)
    else:
        for (i, j), value in x.items():
            yield int(i), int(j), value


class Truth:
    """What a sparse matrix holds: floats that share a place added exactly, integers in their type."""

    def __init__(self, x: Sparse) -> None:
        self.shape = x.shape
        self.dtype = x.dtype
        places: dict[tuple[int, int], list[Any]] = defaultdict(list)
        for i, j, value in stored_entries(x):
            places[i, j].append(value)
        self.finite = all(np.isfinite(v) for values in places.values() for v in values)
        self.places = {place: self._sum(values) for place, values in places.items()}

    def _sum(self, values: list[Any]) -> tuple[Any, Any]:
        """Return real and imaginary part of a sum: exact Fractions, or floats that are not finite."""
        if self.dtype.kind in "biu":  # True and True is True, 100 + 100 wraps in int8
            with np.errstate(over="ignore"):
                return Fraction(int(functools.reduce(operator.add, values))), Fraction(0)
        parts = []
        for part in (np.real(values), np.imag(values)):
            terms = [float(v) for v in part]
            with np.errstate(invalid="ignore"):
                rest = np.sum([v for v in terms if not np.isfinite(v)])
            parts.append(rest if rest != 0 else sum(map(Fraction, terms), Fraction(0)))
        return parts[0], parts[1]

    def special(self) -> float | None:
        """Return NaN or inf, the norm of a matrix that holds one; None if all is finite."""
        if self.finite:
            return None
        parts = [float(v) for pair in self.places.values() for v in pair]
        return float("nan") if np.any(np.isnan(parts)) else float("inf")

    def dense(self) -> np.ndarray:
        """Return the matrix in extended precision, each sum rounded once."""
        kind = np.clongdouble if self.dtype.kind == "c" else np.longdouble
        a = np.zeros(self.shape, dtype=kind)
        for place, (real, imaginary) in self.places.items():
            if kind is np.clongdouble:
                a[place] = _long(real) + 1j * _long(imaginary)
            else:
                a[place] = _long(real)
        return a

    def exact(self) -> oracles.Exact:
        """Return the matrix for comparisons without rounding."""
        scale = 1
        for pair in self.places.values():
            for value in pair:
                scale = max(scale, value.denominator)  # powers of two
        x, y = (np.zeros(self.shape, dtype=object) for _ in range(2))
        for place, (real, imaginary) in self.places.items():
            x[place], y[place] = int(real * scale), int(imaginary * scale)
        return oracles.Exact.from_integers(x, y, 1 - scale.bit_length())

    def check(self, lower: Any, upper: Any) -> oracles.Findings:
        """Compare a bracket with the norm; the matrix must be finite."""
        dense = self.dense()
        size = np.sqrt(np.sum(np.abs(dense) ** 2))
        return oracles.check_stack(
            dense[None], lower, upper, float(size) * 2.0**-60, lambda _: self.exact()
        )


def _long(value: Fraction) -> np.longdouble:
    """Round a dyadic fraction to extended precision."""
    head = float(value)
    return np.longdouble(head) + np.longdouble(float(value - Fraction(head)))


# ------------------------------------------------------------------------------- how it was made


def first(rng: Rng, dtype: str, shape: tuple[int, int] | None = None) -> Sparse:
    """Return random entries at random places, in random order, rows and columns empty here and there."""
    m, n = shape or (int(s) for s in rng.integers(1, 9, 2))
    count = int(rng.integers(0, m * n + 1))
    chosen = rng.permutation(m * n)[:count]
    return sp.coo_array((values(rng, dtype, count), (chosen // n, chosen % n)), shape=(m, n))


def values(rng: Rng, dtype: str, count: int) -> np.ndarray:
    """Return numbers of a type: small whole ones, random ones, or ones of many sizes."""
    kind = np.dtype(dtype).kind
    if kind == "b":
        return rng.uniform(size=count) < 0.8
    if kind in "iu":
        info = np.iinfo(dtype)
        low, high = (max(info.min, -9), 9) if rng.uniform() < 0.5 else (info.min, info.max)
        return rng.integers(low, high, count, dtype=dtype, endpoint=True)

    def part() -> np.ndarray:
        if how < 0.5:
            return rng.integers(-9, 10, count).astype(float)
        normal = rng.standard_normal(count)
        return normal if how < 0.8 else np.ldexp(normal, rng.integers(-20, 20, count))

    how, scale = rng.uniform(), 0
    if rng.uniform() < 0.2:
        scale = int(
            rng.integers(-140, 100)
            if dtype in ("float32", "complex64")
            else rng.integers(-1060, 900)
        )
    numbers = part() + 1j * part() if kind == "c" else part()
    with np.errstate(under="ignore"):
        return (numbers * 2.0**scale).astype(dtype)


def beside(rng: Rng, x: Sparse, shape: tuple[int, int]) -> Sparse:
    """Return another random matrix of the type and format of `x`."""
    return first(rng, x.dtype.name, shape).asformat("csc" if x.format == "csc" else "csr")


@maker
def product(rng: Rng, x: Sparse) -> Sparse:
    x = x.asformat(str(rng.choice(["csr", "csc"])))
    return x @ beside(rng, x, (x.shape[1], int(rng.integers(1, 9))))


@maker
def gram(rng: Rng, x: Sparse) -> Sparse:
    x = x.asformat(str(rng.choice(FORMATS[:4])))
    return x.T @ x


@maker
def total(rng: Rng, x: Sparse) -> Sparse:
    return x + beside(rng, x, x.shape)


@maker
def difference(rng: Rng, x: Sparse) -> Sparse:
    if x.dtype.kind == "b":
        return x.multiply(beside(rng, x, x.shape))
    return x - beside(rng, x, x.shape)


@maker
def transposed(rng: Rng, x: Sparse) -> Sparse:
    return x.asformat(str(rng.choice(FORMATS))).T


@maker
def adjoint(rng: Rng, x: Sparse) -> Sparse:
    return x.asformat(str(rng.choice(FORMATS))).conj().T


@maker
def columns_reversed(rng: Rng, x: Sparse) -> Sparse:
    return x.asformat(str(rng.choice(["csr", "csc", "lil"])))[:, ::-1]


@maker
def rows_reversed(rng: Rng, x: Sparse) -> Sparse:
    return x.asformat(str(rng.choice(["csr", "csc"])))[::-1]


@maker
def every_second(rng: Rng, x: Sparse) -> Sparse:
    i, j = (int(v) for v in rng.integers(0, 2, 2))
    x = x.asformat(str(rng.choice(["csr", "csc"])))
    return x[i::2, j::2] if min(x.shape) > 2 else x[::2, ::-2]


@maker
def permuted(rng: Rng, x: Sparse) -> Sparse:
    x = x.asformat(str(rng.choice(["csr", "csc"])))
    return x[rng.permutation(x.shape[0])][:, rng.permutation(x.shape[1])]


@maker
def rows_repeated(rng: Rng, x: Sparse) -> Sparse:
    return x.tocsr()[rng.integers(0, x.shape[0], int(rng.integers(1, 7)))]


@maker
def kron(rng: Rng, x: Sparse) -> Sparse:
    small = beside(rng, x, (int(rng.integers(1, 4)), int(rng.integers(1, 4))))
    a, b = (x, small) if rng.uniform() < 0.5 else (small, x)
    return sp.kron(a, b, format=[None, "bsr", "coo"][rng.integers(3)])


@maker
def vstack(rng: Rng, x: Sparse) -> Sparse:
    return sp.vstack(
        [
            x,
            beside(rng, x, (int(rng.integers(1, 5)), x.shape[1])),
            x[:1] if x.format == "csr" else x,
        ]
    )


@maker
def hstack(rng: Rng, x: Sparse) -> Sparse:
    return sp.hstack([beside(rng, x, (x.shape[0], int(rng.integers(1, 5)))), x])


@maker
def block_diag(rng: Rng, x: Sparse) -> Sparse:
    return sp.block_diag(
        [x, beside(rng, x, (2, 3)), x.T], format=str(rng.choice(["coo", "csr", "csc"]))
    )


@maker
def blocks(rng: Rng, x: Sparse) -> Sparse:
    return sp.block_array([[None, x], [x.T, None]])


@maker
def diagonals(rng: Rng, x: Sparse) -> Sparse:
    n = max(2, *x.shape)
    offsets = rng.permutation(np.arange(1 - n, n))[: int(rng.integers(1, 4))]
    arrays = [values(rng, x.dtype.name, n - abs(k)) for k in offsets.tolist()]
    return sp.diags_array(arrays, offsets=offsets, shape=(n, n), dtype=x.dtype)


@maker
def wide_diagonals(rng: Rng, x: Sparse) -> Sparse:
    """Return diagonals whose arrays reach beyond the matrix."""
    m, n = x.shape
    offsets = rng.permutation(np.arange(1 - m, n))[: int(rng.integers(1, 4))]
    data = values(rng, x.dtype.name, len(offsets) * (n + 2)).reshape(len(offsets), -1)
    return sp.dia_array((data, offsets), shape=(m, n))


@maker
def triangle(rng: Rng, x: Sparse) -> Sparse:
    return (sp.tril if rng.uniform() < 0.5 else sp.triu)(x, k=int(rng.integers(-1, 2)))


@maker
def tree(rng: Rng, x: Sparse) -> Sparse:
    """Return entries along a tree, in both directions or in one."""
    n = max(2, *x.shape)
    child, parent = np.arange(1, n), np.asarray([rng.integers(0, k) for k in range(1, n)])
    if rng.uniform() < 0.5:
        child, parent = np.concatenate([child, parent]), np.concatenate([parent, child])
    return sp.coo_array((values(rng, x.dtype.name, len(child)), (child, parent)), shape=(n, n))


@maker
def cycle(rng: Rng, x: Sparse) -> Sparse:
    """Return moduli around a cycle of rows and columns, and an odd or even number of opposites."""
    n = max(2, *x.shape)
    data = values(rng, x.dtype.name, 2 * n)
    data = np.abs(data) if x.dtype.kind in "fc" else data
    odd = rng.integers(0, 2 * n, int(rng.integers(0, 4)))
    data[odd] = data[odd] if x.dtype.kind == "b" else -data[odd]
    places = np.tile(np.arange(n), 2), np.concatenate([np.arange(n), (np.arange(n) + 1) % n])
    return sp.coo_array((data.astype(x.dtype), places), shape=(n, n))


@maker
def balanced(rng: Rng, x: Sparse) -> Sparse:
    """Give the entries signs, or phases, that a change of bases takes away."""
    x = x.tocoo()
    if x.dtype.kind in "bu":
        return x
    s, t = (rng.integers(0, 4, side) for side in x.shape)
    turn = np.asarray([1, 1j, -1, -1j])[(s[x.row] + t[x.col]) % 4]
    turn = turn if x.dtype.kind == "c" else 1 - 2 * ((s[x.row] + t[x.col]) % 2)
    data = (np.abs(x.data) * turn).astype(x.dtype)
    return type(x)((data, (x.row, x.col)), shape=x.shape)


@maker
def of_all_sizes(rng: Rng, x: Sparse) -> Sparse:
    """Scale rows and columns by powers of two far apart."""
    if x.dtype.kind in "biu":
        return x
    x = x.tocoo()
    most = 30 if x.dtype.name in ("float32", "complex64") else 250
    s, t = (rng.integers(-most, most, side) for side in x.shape)
    with np.errstate(all="ignore"):
        data = (x.data * 2.0 ** (s[x.row] + t[x.col])).astype(x.dtype)
    return type(x)((np.where(np.isfinite(data), data, 0), (x.row, x.col)), shape=x.shape)


@maker
def reshaped(rng: Rng, x: Sparse) -> Sparse:
    return x.tocoo().reshape((x.shape[1], x.shape[0]))


@maker
def scaled(rng: Rng, x: Sparse) -> Sparse:
    return x * x.dtype.type(2)


@maker
def scaled_by_diagonal(rng: Rng, x: Sparse) -> Sparse:
    d = sp.diags_array(values(rng, x.dtype.name, x.shape[1]), dtype=x.dtype)
    if x.format == "dia" and not x.data.size:  # SciPy cannot multiply these by diagonals
        x = x.tocsr()
    return x @ (d.tocsr() if rng.uniform() < 0.5 else d)


@maker
def assigned(rng: Rng, x: Sparse) -> Sparse:
    """Set entries one by one, some of them to zero."""
    x = x.asformat(str(rng.choice(["lil", "dok"]))).copy()
    for value in values(rng, x.dtype.name, 4):
        x[int(rng.integers(x.shape[0])), int(rng.integers(x.shape[1]))] = value
    return x


@maker
def with_zeros(rng: Rng, x: Sparse) -> Sparse:
    """Store zeros."""
    x = x.asformat(str(rng.choice(["csr", "csc", "coo", "bsr"]))).copy()
    x.data[rng.uniform(size=x.data.shape) < 0.3] = 0
    return x


@maker
def unsorted(rng: Rng, x: Sparse) -> Sparse:
    """Shuffle the entries of each row, or of each column."""
    x = x.asformat(str(rng.choice(["csr", "csc"])))
    order = [
        rng.permutation(np.arange(start, stop))
        for start, stop in zip(x.indptr[:-1].tolist(), x.indptr[1:].tolist(), strict=True)
    ]
    order = np.concatenate(order).astype(int)
    return type(x)((x.data[order], x.indices[order], x.indptr), shape=x.shape)


@maker
def duplicates(rng: Rng, x: Sparse) -> Sparse:
    """Repeat places, some up to three times, in any order."""
    x = x.tocoo()
    again = rng.integers(0, max(x.nnz, 1), int(rng.integers(0, 3 * x.nnz + 1)))
    return _appended(rng, x, values(rng, x.dtype.name, len(again)), again)


@maker
def cancelling(rng: Rng, x: Sparse) -> Sparse:
    """Add opposites of entries, so that places hold nothing, or little."""
    x = x.tocoo()
    again = np.flatnonzero(rng.uniform(size=x.nnz) < 0.7)
    opposite = x.data[again] if x.dtype.kind == "b" else -x.data[again]
    little = (values(rng, x.dtype.name, len(again)) * 2.0**-30).astype(x.dtype)
    x = _appended(rng, x, opposite, again)
    return _appended(rng, x.tocoo(), little, again) if rng.uniform() < 0.5 else x


def _appended(rng: Rng, x: Sparse, more: np.ndarray, again: np.ndarray) -> Sparse:
    data, row, col = (
        np.concatenate(pair)
        for pair in ((x.data, more), (x.row, x.row[again]), (x.col, x.col[again]))
    )
    order = rng.permutation(len(data))
    made = type(x)((data[order], (row[order], col[order])), shape=x.shape)
    if rng.uniform() < 0.5:
        return made
    # the same entries in compressed rows, in the order they have there: SciPy would add them up
    order = np.argsort(made.row, kind="stable")
    starts = np.searchsorted(made.row[order], np.arange(x.shape[0] + 1))
    container = sp.csr_array if isinstance(x, sp.sparray) else sp.csr_matrix
    return container((made.data[order], made.col[order], starts), shape=x.shape)


@maker
def wide_indices(rng: Rng, x: Sparse) -> Sparse:
    x = x.asformat(str(rng.choice(["csr", "csc"]))).copy()
    x.indices, x.indptr = x.indices.astype(np.int64), x.indptr.astype(np.int64)
    return x


@maker
def in_blocks(rng: Rng, x: Sparse) -> Sparse:
    size = tuple(int(rng.choice([k for k in (1, 2, 3) if side % k == 0])) for side in x.shape)
    return x.tobsr(blocksize=size)


@maker
def converted(rng: Rng, x: Sparse) -> Sparse:
    return x.asformat(str(rng.choice(FORMATS)))


@maker
def as_matrix(rng: Rng, x: Sparse) -> Sparse:
    """Return one of the older classes, for which * is the product."""
    return getattr(sp, f"{x.format}_matrix")(x)


@maker
def extended(rng: Rng, x: Sparse) -> Sparse:
    """Add empty rows and columns at the end."""
    x = x.asformat(str(rng.choice(["csr", "coo", "lil", "dok"]))).copy()
    x.resize(x.shape[0] + int(rng.integers(0, 3)), x.shape[1] + int(rng.integers(0, 3)))
    return x


@maker
def read_only(rng: Rng, x: Sparse) -> Sparse:
    x = x.asformat(str(rng.choice(FORMATS[:5]))).copy()
    for part in parts(x).values():
        part.flags.writeable = False
    return x


def parts(x: Sparse) -> dict[str, Any]:
    """Return the arrays that a sparse matrix stores, by name."""
    names = ("data", "indices", "indptr", "row", "col", "offsets", "rows")
    return {name: getattr(x, name) for name in names if hasattr(x, name)}


FLAGS = (
    "has_canonical_format",
    "has_sorted_indices",
    "_has_canonical_format",
    "_has_sorted_indices",
)


def state(x: Sparse) -> dict[str, Any]:
    """Return all that a caller could see of a sparse matrix, copied."""
    # __dict__ tells of flags without computing them
    flags = {name: value for name, value in vars(x).items() if name in FLAGS}
    arrays = {name: (part.dtype, part.tolist()) for name, part in parts(x).items()}
    return {
        "type": type(x),
        "shape": x.shape,
        **flags,
        **arrays,
        "items": dict(x.items()) if x.format == "dok" else 0,
    }


def draw(rng: Rng, dtype: str, most: int = 3) -> tuple[list[str], Sparse]:
    """Return what was done, and the sparse matrix that came out: one to `most` makers, one after another."""
    while True:
        x, names = first(rng, dtype), []
        with np.errstate(all="ignore"):
            for _ in range(int(rng.integers(1, most + 1))):
                name = str(rng.choice(sorted(MAKERS)))
                x = MAKERS[name](rng, x)
                names.append(name)
                if (
                    max(x.shape) > LARGEST or name == "read_only"
                ):  # SciPy sorts some of these in place
                    break
        if max(x.shape) <= 2 * LARGEST and x.ndim == 2:
            return names, x


# ----------------------------------------------------------------------------------- the examination


@dataclass(frozen=True)
class Examined:
    """What a bracket of a sparse matrix turned out to be."""

    upper: bool = False  # violated
    lower: bool = False
    open: bool = False
    loose: bool = False
    over: float = 0.0  # upper / norm - 1, at most; inf where rounding of the sums sets it
    asked_exactly: int = 0
    complaint: str = ""


def examine(
    x: Sparse, *, rtol: float | None = None, vectors: bool = False, inject: float = 0.0
) -> Examined:
    """Bracket a matrix; compare with the exact norm, and what it was before with what it is."""
    import gramnorm as gn  # noqa: PLC0415 - after the process has set its threads

    before, truth = state(x), Truth(x)
    found = gn.matrix_norm_bracket(x, rtol=rtol, vectors=vectors)
    changed = "the matrix was changed" * (repr(state(x)) != repr(before))
    lower, upper = found.lower, found.upper.astype(oracles.LONG) * (1 - oracles.LONG(inject))
    special = truth.special()
    if special is not None:
        holds = (np.array_equal(v, special, equal_nan=True) for v in (found.lower, found.upper))
        high, low = (not held for held in holds)
        return Examined(high, low, complaint=changed or f"not {special}" * (high or low))
    seen = truth.check(lower, upper)
    high, low = bool(seen.upper_violated), bool(seen.lower_violated)
    complaint = changed
    if high or low:
        complaint = f"{'upper' if high else 'lower'} violated by [{lower}, {upper}]"
    elif vectors and not attains(found, truth, 1e-4 if rtol is None else rtol):
        complaint = "the vectors do not attain the lower bound"
    normal = upper > 2.0**40 * np.finfo(found.upper.dtype).smallest_normal
    over = float(seen.over[0]) if normal and found.converged else np.inf
    return Examined(
        high, low, bool(seen.undecided), not found.converged, over, seen.asked_exactly, complaint
    )


def attains(found: Any, truth: Truth, rtol: float) -> bool:
    """Tell whether unit vectors attain the lower bound of a bracket, almost."""
    left, right = (np.asarray(v, dtype=np.clongdouble) for v in (found.left, found.right))
    if 0 in truth.shape or found.lower == 0:
        return True
    eps = 8 * np.finfo(found.lower.dtype).eps
    if any(abs(np.sqrt(np.sum(np.abs(v) ** 2)) - 1) > eps for v in (left, right)):
        return False
    e = int(oracles.exponents(truth.dense()))
    scaled = oracles.ldexp_long(truth.dense(), np.asarray(-e))
    value = np.abs(np.sum(np.conj(left) * (scaled @ right)))
    return bool(value >= np.ldexp(oracles.LONG(found.lower), -e) * (1 - rtol - eps))
