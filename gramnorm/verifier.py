"""Check records of norms: prove every claim again, without the code that made it.

A record says: the operator made of these numbers has lower <= norm <= upper.  Both are proved here,
or it is said why not.  Python and python-flint are all that is used and trusted: a copy of this file
will do, `python verifier.py RECORD [FILE]`.  Balls of FLINT hold the exact result and compare as true
if all points do; open tests are done again with more bits.  Proofs: "Records and their checker".

(a) ||F|| <= U if U^2 I - F F^H, or U^2 I - F^H F, is positive definite: elimination without
    exchanges meets positive pivots only.  ||F|| >= L if ||F v|| >= L ||v|| for some v other than 0.
(b) A correlation whose inputs are split into the phases of its stride is, on the lattice,
    multiplication by F(t) = sum_q C_q exp(2 pi i q.t), t in fractions of a turn: its norm is the
    supremum of ||F(t)||.  On a circle of n outputs it is the maximum over t = j / n.
(c) Let q vary by Q_a along axis a.  If boxes with centres c and sides h_a cover all t, and each has
    ||F(c)|| <= U cos(pi w) with w = sum_a Q_a h_a / 2 < 1/2, then ||F(t)|| <= U for all t.
(d) With diagonal D, entries in [0, 1], and positive multipliers X_i, W_l D ... D W_1 has a norm of
    at most X_0 / X_l 2^(1-l) B^l, where B is at least the norm of all blocks X_i W_i / X_(i-1)
    joined into one operator between even and odd places.

The exit code is 0 if every record is verified, 1 if one is rejected, 2 if one cannot be checked.
"""

import ast
import base64
import functools
import hashlib
import itertools
import json
import math
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

try:
    import flint
except ImportError:  # `verdicts` says so
    flint = None  # type: ignore[assignment]

BITS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)  # of the balls, in turn
MOST = 4 * 10**6  # entries of an assembled operator, or frequencies of a circle
CODES = "<f2 e <f4 f <f8 d <c8 ff <c16 dd |b1 ? |i1 b <i2 h <i4 i <i8 q |u1 B <u2 H <u4 I <u8 Q"
TYPES = dict(re.findall(r"(\S+) (\S+)", CODES))  # how `struct` reads the entries of a dtype
Shape = tuple[int, ...]
Stored = tuple[Any, Shape, bytes]  # dtype, shape, entries in the order of C
Files = dict[str, Stored] | None  # the arrays of a file, if one was named


class Refusal(Exception):  # noqa: N818
    """A verdict, "rejected" or "cannot check", and its reason."""


def need(holds: object, reason: str, verdict: str = "rejected") -> bool:
    if not holds:
        raise Refusal(verdict, reason)
    return True


# ------------------------------------------------------------------- 1. Reading records strictly
def documents(text: bytes) -> list[Any]:
    """Return the records of a document: JSON with nothing twice, missing or unknown."""
    unique = lambda pairs: need(len(dict(pairs)) == len(pairs), "repeated key") and dict(pairs)
    try:
        found = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Refusal("rejected", f"not JSON: {error}") from error
    need(isinstance(found, dict) and found.get("schema") == "gramnorm-records", "no such document")
    version = found.get("version")
    need(type(version) is int and version == 1, f"unknown version of the schema: {version!r:.40}")
    members(found, "the document", "schema version records", "left_out")
    return items(found["records"], "records", None)


def members(value: Any, what: str, required: str, optional: str = "") -> dict[str, Any]:
    """Return an object that has these keys and no others."""
    need(isinstance(value, dict), f"{what} is no object")
    missing, wrong = {*required.split()} - {*value}, {*value} - {*f"{required} {optional}".split()}
    need(not missing | wrong, f"{what} lacks {sorted(missing)}, has the unknown {sorted(wrong)}")
    return dict(value)


def items(value: Any, what: str, length: int | None, read: Any = lambda x, _: x) -> list[Any]:
    """Return a list of this length, or of any but zero, each of its entries being read."""
    fits = isinstance(value, list) and (value if length is None else len(value) == length)
    need(fits, f"{what} must be a list of {'some' if length is None else length} entries")
    return [read(x, what) for x in value]


def whole(value: Any, what: str, least: int = 0) -> int:
    fits = type(value) is int and least <= value < 2**31
    need(fits, f"{what} must hold whole numbers from {least} on, got {value!r:.40}")
    return int(value)


def number(value: Any, what: str) -> float:
    """Return a finite float that is not negative, of which there is one hexadecimal text."""
    try:
        found = float.fromhex(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    fits = 0 <= found < math.inf and found.hex() == value
    need(fits, f"{what} must be a finite float from 0 on, in hex, got {value!r:.40}")
    return found


def fraction(value: Any, what: str) -> Fraction:
    fits = isinstance(value, str) and re.fullmatch(r"[0-9]{1,30}/[1-9][0-9]{0,29}", value)
    need(fits, f'{what} must hold fractions such as "3/8", got {value!r:.40}')
    return Fraction(value)


def decoded(text: Any, what: str) -> bytes:
    fits = isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", text)
    need(fits and len(text) % 4 == 0, f"{what} must be in base64")
    return base64.b64decode(text)


def numbers(data: bytes, dtype: Any, count: int, what: str) -> list[Any]:
    """Return the exact values of stored entries."""
    code = "<" + TYPES.get(str(dtype), "")
    need(len(code) > 1, f"{what} has the unknown dtype {dtype!r:.40}")
    need(len(data) == count * struct.calcsize(code), f"{what} is not of {count} entries of {dtype}")
    found = list(struct.iter_unpack(code, data))
    need(all(math.isfinite(x) for entry in found for x in entry), f"{what} holds NaN or infinity")
    return [complex(*entry) if len(entry) == 2 else entry[0] for entry in found]


# ----------------------------------------------------------------------- 2. Reading weight files
@functools.cache
def arrays_of(path: Path) -> dict[str, Stored]:
    """Return the arrays of a .npy, .npz or safetensors file by name."""
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        return {name.removesuffix(".npy"): npy(archive.read(name)) for name in names}
    data = path.read_bytes()
    if data.startswith(b"\x93NUMPY"):
        return {"": npy(data)}
    need(data[8:9] == b"{", "the weights are no .npy, .npz or safetensors", "cannot check")
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return {n: safetensor(a, data[start:]) for n, a in header.items() if n != "__metadata__"}


def npy(data: bytes) -> Stored:
    """Read the format of NumPy, in either order of axes."""
    start = 10 if data[6] == 1 else 12
    body = start + int.from_bytes(data[8:start], "little")
    header = ast.literal_eval(data[start:body].decode("latin-1"))
    dtype, shape, entries = header["descr"], tuple(header["shape"]), data[body:]
    if header["fortran_order"] and str(dtype) in TYPES:
        size = struct.calcsize("<" + TYPES[dtype])
        steps = [size * math.prod(shape[:axis]) for axis in range(len(shape))]
        places = itertools.product(*(range(0, n * m, m) for n, m in zip(shape, steps, strict=True)))
        entries = b"".join(entries[sum(at) : sum(at) + size] for at in places)
    return dtype, shape, entries


def safetensor(about: Any, data: bytes) -> Stored:
    """Read an entry of safetensors; bfloat16 becomes the float32 of the same value."""
    first, last = about["data_offsets"]
    entries, name = data[first:last], about["dtype"]
    if name == "BF16":
        halves = [entries[i : i + 2] for i in range(0, len(entries), 2)]
        entries, name = b"".join(b"\0\0" + half for half in halves), "F32"
    kind, size = name[0].lower(), int(re.sub(r"\D", "", name) or 8) // 8
    return f"{'<' if size > 1 else '|'}{kind}{size}", tuple(about["shape"]), entries


def weights(value: Any, what: str, files: Files) -> tuple[Shape, list[Any]]:
    """Return shape and numbers of an array, once all that is said of it agrees."""
    about = members(value, what, "dtype shape sha256", "name values")
    shape = tuple(items(about["shape"], f"the shape of {what}", None, whole))
    dtype, sha256, name = about["dtype"], about["sha256"], about.get("name")
    stored = [(dtype, shape, decoded(about["values"], what))] if "values" in about else []
    if files is not None:  # the array of this name; if there is no name, of this hash
        near = [one for key, one in files.items() if key in ("", name) or name is None]
        need(near, f"there is no array {name!r:.80} in the file")
        stored += [x for x in near if hashlib.sha256(x[2]).hexdigest() == sha256][:1] or near[:1]
    need(stored, f"the record lacks the numbers of {what}: name their file", "cannot check")
    for kind, sides, data in stored:
        need(hashlib.sha256(data).hexdigest() == sha256, f"{what} has another SHA-256")
        need((kind, sides) == (dtype, shape), f"{what} is {kind} {sides}: another dtype or shape")
    return shape, numbers(stored[0][2], dtype, math.prod(shape), what)


# --------------------------------------------------------------------------------- 3. Operators
class Symbol:
    """Blocks F(t) = sum_q C_q exp(2 pi i q.t), one for each group of channels.

    `groups` has the rows of C_q, exact numbers, by q; `spans` the Q_a of (c), none for a matrix.
    """

    def __init__(self, groups: list[dict[Shape, Any]], spans: Shape) -> None:
        rows = [row for group in groups for c in group.values() for row in c]
        self.groups, self.spans, self.width = groups, spans, len(rows[0]) if rows else 0
        self.is_real = not any(isinstance(x, complex) for row in rows for x in row)
        self.balls: dict[int, Any] = {}

    def at(self, turns: Sequence[Fraction]) -> Iterator[Any]:
        """Yield F(t) of each group, in balls of the present precision."""
        if flint.ctx.prec not in self.balls:
            kind = flint.arb_mat if self.is_real and not self.spans else flint.acb_mat
            made = [{q: kind(rows) for q, rows in group.items()} for group in self.groups]
            self.balls = {flint.ctx.prec: made}
        for group in self.balls[flint.ctx.prec]:
            terms = []
            for q, c in group.items():
                angle = sum((2 * n * t for n, t in zip(q, turns, strict=True)), Fraction(0))
                sine, cosine = flint.arb.sin_cos_pi_fmpq(flint.fmpq(*angle.as_integer_ratio()))
                terms.append(c * flint.acb(cosine, sine) if q else c)
            yield sum(terms[1:], terms[0])


def correlation(shape: Shape, values: list[Any], groups: int, axes: Sequence[Any]) -> Symbol:
    """Return the symbol of a correlation: tap k, at d k = s q + r, is in C_q for the phase r."""
    taps, phases = math.prod(shape[2:]), math.prod(s for _, s, _ in axes)
    height, c_in = shape[0] // groups, shape[1]
    found: list[dict[Shape, Any]] = [{} for _ in range(groups)]
    for tap, k in enumerate(itertools.product(*(range(n) for n, _, _ in axes))):
        pairs = [divmod(d * j, s) for j, (_, s, d) in zip(k, axes, strict=True)]
        q, r = tuple(whole for whole, _ in pairs), 0
        for (_, part), (_, s, _) in zip(pairs, axes, strict=True):
            r = r * s + part
        for group, coefficients in enumerate(found):
            zeros = [[0] * (c_in * phases) for _ in range(height)]
            for o, row in enumerate(coefficients.setdefault(q, zeros), group * height):
                entries = values[o * c_in * taps : (o + 1) * c_in * taps]
                row[r * c_in : (r + 1) * c_in] = entries[tap::taps]
    return Symbol(found, tuple(d * (n - 1) // s for n, s, d in axes))


def assembled(shape: Shape, values: list[Any], groups: int, axes: Any, ends: Any) -> Symbol:
    """Return y[o] = sum_k K_k x[s o + d k - before] by `ends` (n samples, m outputs, before)."""
    c_out, c_in, *kernel = shape
    size, taps = math.prod(n * m for n, m, _ in ends) * c_out * c_in, math.prod(kernel)
    need(size <= MOST, f"an assembled operator of {size} entries", "cannot check")
    steps = [(s, d, before) for (_, s, d), (_, _, before) in zip(axes, ends, strict=True)]
    numbered = itertools.product(*(((k, 0) for k in range(n)) for n in kernel))
    tap_of = dict(zip(numbered, range(taps), strict=True))  # by quotients and rests modulo d
    found: list[dict[Shape, Any]] = [{(): []} for _ in range(groups)]
    for output in itertools.product(*(range(m) for _, m, _ in ends)):
        reads = []  # the tap by which the output reads each sample
        for place in itertools.product(*(range(n) for n, _, _ in ends)):
            read = zip(steps, output, place, strict=True)
            reads.append(tap_of.get(tuple(divmod(i + lo - s * o, d) for (s, d, lo), o, i in read)))
        for o in range(c_out):
            block = values[o * c_in * taps : (o + 1) * c_in * taps]
            row = [[0] * c_in if tap is None else block[tap::taps] for tap in reads]
            found[o * groups // c_out][()].append(list(itertools.chain(*row)))
    return Symbol(found, ())


def chain_of(layers: list[tuple[Shape, list[Any]]], multipliers: list[list[Fraction]]) -> Symbol:
    """Return the blocks X_i W_i / X_(i-1) of (d); those of odd i turned round, into adjoints."""
    sizes = [len(x) for x in multipliers]
    starts = [sum(sizes[i % 2 : i : 2]) for i in range(len(sizes))]
    spans = tuple(max(k) - 1 for k in zip(*(shape[2:] for shape, _ in layers), strict=True))
    offsets = itertools.product(*(range(n + 1) for n in spans))
    width, height = sum(sizes[1::2]), sum(sizes[::2])
    found: Any = {q: [[0] * width for _ in range(height)] for q in offsets}
    for i, ((n, m, *kernel), values) in enumerate(layers, 1):
        places = itertools.product(range(n), range(m), *map(range, kernel))
        for x, (a, b, *k) in zip(values, places, strict=True):
            exact = Fraction(x) * multipliers[i][a] / multipliers[i - 1][b]
            row, column = starts[i] + a, starts[i - 1] + b
            if i % 2:
                row, column = column, row
            q = [n - 1 - j if i % 2 else j for n, j in zip(kernel, k, strict=True)]
            found[tuple(q)][row][column] = flint.fmpq(*exact.as_integer_ratio())
    return Symbol([found], spans)


# ------------------------------------------------------------------------------------ 4. Proofs
def decided(test: Callable[[], bool | None], what: str) -> bool:
    """Return the answer of a test, with as many bits as it takes."""
    for bits in BITS:
        flint.ctx.prec = bits
        if (answer := test()) is not None:
            return answer
    raise Refusal("cannot check", f"{what} is still open with {BITS[-1]} bits")


def is_definite(rows: list[dict[int, Any]]) -> bool | None:
    """Say whether a Hermitian matrix, stored from the diagonal on, is positive definite (a)."""
    for k, row in enumerate(rows):
        pivot = row.pop(k).real
        if not pivot > 0:
            return False if pivot < 0 else None
        entries = sorted(row.items())
        for done, (i, x) in enumerate(entries):
            factor, target = (x.conjugate() if isinstance(x, flint.acb) else x) / pivot, rows[i]
            for j, y in entries[done:]:  # a_ij - conj(a_ki) a_kj / a_kk
                target[j] = target.get(j, 0) - factor * y
    return True


def rest(f: Any, level: Any) -> list[dict[int, Any]]:
    """Return level I - F F^H or level I - F^H F, whichever is smaller, for `is_definite`."""
    adjoint = f.transpose() if isinstance(f, flint.arb_mat) else f.conjugate().transpose()
    gram = f * adjoint if f.nrows() <= f.ncols() else adjoint * f
    return [
        {i: level - row[i]} | {j: -row[j] for j in range(i + 1, len(row)) if not row[j].is_zero()}
        for i, row in enumerate(gram.tolist())
    ]


def prove_at(turns: Sequence[Fraction], symbol: Symbol, upper: float, w: Fraction) -> None:
    """Prove ||F(t)|| <= upper cos(pi w) at one frequency."""

    def test() -> bool | None:
        level = (flint.arb.cos_pi_fmpq(flint.fmpq(*w.as_integer_ratio())) * upper) ** 2
        answers = {is_definite(rest(f, level)) for f in symbol.at(turns)}
        return False if False in answers else None if None in answers else True

    where = f"upper at the frequency ({', '.join(map(str, turns))})"
    need(decided(test, where), f"the norm is above {where}, w = {w}")


def cells(symbol: Symbol, listed: Any) -> Iterator[tuple[list[Fraction], Fraction]]:
    """Yield centre and w of boxes which lie inside, do not overlap, and fill the volume (c)."""
    # F(-t) of a real kernel is the conjugate of F(t): half of the first axis is enough
    ends = [Fraction(1, 2 if symbol.is_real and a == 0 else 1) for a in range(len(symbol.spans))]
    side = functools.partial(items, length=2, read=fraction)
    boxes = [items(cell, "a cell", len(ends), side) for cell in items(listed, "cells", None)]
    most = max(range(len(ends)), key=lambda a: len({box[a][0] for box in boxes}))  # often cut
    boxes.sort(key=lambda box: box[most])
    for i, box in enumerate(boxes):
        inside = all(a < b <= end for (a, b), end in zip(box, ends, strict=True))
        need(inside, f"a cell is empty or not among the frequencies: {box}")
        for other in itertools.islice(boxes, i + 1, None):
            if other[most][0] >= box[most][1]:
                break  # and so are all that follow, in this order
            apart = any(b <= c or d <= a for (a, b), (c, d) in zip(box, other, strict=True))
            need(apart, f"cells overlap: {box} and {other}")
    left = math.prod(ends) - sum(math.prod(b - a for a, b in box) for box in boxes)
    need(left == 0, f"cells are missing: they leave a volume of {left}")
    for box in boxes:
        w = sum(n * (b - a) for n, (a, b) in zip(symbol.spans, box, strict=True)) / Fraction(2)
        need(w < Fraction(1, 2), f"the cosine of a cell is not positive: {box}")
        yield [(a + b) / 2 for a, b in box], w


def points(symbol: Symbol, sizes: Shape) -> Iterator[tuple[list[Fraction], Fraction]]:
    """Yield the frequencies j / n of a circle, one of j and -j for a real kernel, with w = 0."""
    need(math.prod(sizes) <= MOST, f"more than {MOST} frequencies", "cannot check")
    for j in itertools.product(*map(range, sizes)):
        if not symbol.is_real or j <= tuple(-a % n for a, n in zip(j, sizes, strict=True)):
            yield [Fraction(a, n) for a, n in zip(j, sizes, strict=True)], Fraction(0)


def prove_lower(symbol: Symbol, lower: float, proof: Any, turns: Sequence[Fraction]) -> None:
    """Prove ||F(t) v|| >= lower ||v|| for the stored vector v, which has a part for each group."""
    what, count, n = "the vector of lower", symbol.width * len(symbol.groups), symbol.width
    about = members(proof, what, "dtype values")
    vector = numbers(decoded(about["values"], what), about["dtype"], count, what)
    need(any(vector), f"{what} is zero")

    def square(v: Any) -> Any:
        return sum((x.real**2 + x.imag**2 for x in v.entries()), flint.arb(0))

    def test() -> bool | None:
        parts = [flint.acb_mat(n, 1, vector[i : i + n]) for i in range(0, count, n)]
        image = [square(f * v) for f, v in zip(symbol.at(turns), parts, strict=True)]
        left = sum(image) - flint.arb(lower) ** 2 * sum(map(square, parts))
        return True if left >= 0 else False if left < 0 else None

    need(decided(test, "lower"), "lower is greater than what its vector attains")


# ------------------------------------------------------------------------------------ 5. Records
# symbols by methods for an upper bound, first the operator's own; a circle; the number to prove
Operator = tuple[dict[str, Callable[[], Symbol]], Shape, float]


def of_matrix(operator: Any, upper: Any, files: Files) -> Operator:
    """Return a matrix, which has no axes and one frequency."""
    about, bound = members(operator, "the operator", "kind array"), number(upper["bound"], "upper")
    shape, values = weights(about["array"], "the matrix", files)
    need(len(shape) == 2 and min(shape) > 0, f"a matrix of the shape {shape}")
    return {"points": lambda: correlation(shape, values, 1, [])}, (), bound


def of_correlation(operator: Any, upper: Any, files: Files) -> Operator:
    """Return a correlation, at every size, on a circle, or between finitely many samples."""
    members(operator, "the operator", "kind array stride dilation groups domain")
    shape, values = weights(operator["array"], "the kernel", files)
    n, positive, domain = len(shape) - 2, functools.partial(whole, least=1), operator["domain"]
    groups, bound = positive(operator["groups"], "groups"), number(upper["bound"], "upper")
    need(n > 0 and min(shape) > 0 and shape[0] % groups == 0, f"{groups} groups of {shape}")
    stride, dilation = (items(operator[key], key, n, positive) for key in ("stride", "dilation"))
    axes = list(zip(shape[2:], stride, dilation, strict=True))
    # on the lattice only multiples of the common factor are read, and the classes modulo the
    # dilation that is left are copies of one correlation without dilation
    reduced = [(k, s // math.gcd(s, d), 1) for k, s, d in axes]
    made = {"cells": lambda: correlation(shape, values, groups, reduced)}
    if domain == "every size":
        return made, (), bound
    if isinstance(domain, dict) and "circle" in domain:
        circle = items(members(domain, "the domain", "circle")["circle"], "circle", n, positive)
        pairs = [divmod(size, s) for size, s in zip(circle, stride, strict=True)]
        need(not any(rest for _, rest in pairs), f"{stride} does not divide the circle {circle}")
        made = {"points": lambda: correlation(shape, values, groups, axes)} | made
        return made, tuple(outputs for outputs, _ in pairs), bound
    least = {"size": 1, "outputs": 1, "before": -(2**31)}
    members(domain, "the domain", " ".join(least))
    rows = [items(domain[k], k, n, functools.partial(whole, least=m)) for k, m in least.items()]
    ends = list(zip(*rows, strict=True))
    return {"points": lambda: assembled(shape, values, groups, axes, ends)} | made, (), bound


def of_chain(operator: Any, upper: Any, files: Files) -> Operator:
    """Return a chain of matrices or of kernels, once the power of its level is below `upper` (d)."""
    listed = items(members(operator, "the operator", "kind arrays")["arrays"], "arrays", None)
    layers = [weights(x, f"layer {i}", files) for i, x in enumerate(listed, 1)]
    shapes, level = [shape for shape, _ in layers], number(upper["level"], "the level")
    fits = all(len(x) == len(shapes[0]) > 1 and min(x) > 0 for x in shapes)
    fits = fits and all(a[0] == b[1] for a, b in itertools.pairwise(shapes))
    fits = fits and not any(isinstance(x, complex) for _, values in layers for x in values)
    need(fits, f"layers of the shapes {shapes} are no chain of real ones")
    sizes, hidden = [shapes[0][1], *(x[0] for x in shapes)], upper["multipliers"]
    hidden = zip(items(hidden, "multipliers", len(layers) - 1), sizes[1:-1], strict=True)
    first, last = items(upper["ends"], "ends", 2, number)
    rows = [items(row, "multipliers", n, number) for row, n in hidden]
    multipliers = [[*map(Fraction, x)] for x in ([first] * sizes[0], *rows, [last] * sizes[-1])]
    need(all(map(all, multipliers)), "a multiplier is zero")
    power = Fraction(first) / Fraction(last) * 2 * (Fraction(level) / 2) ** len(layers)
    need(power <= number(upper["bound"], "upper"), "upper is below X_0 / X_l 2^(1-l) level^l")
    made = {"cells" if len(shapes[0]) > 2 else "points": lambda: chain_of(layers, multipliers)}
    return made, (), level


def check(record: Any, files: Files) -> str:
    """Prove what a record claims, and return it in words."""
    members(record, "a record", "operator lower upper", "name")
    kinds = {"matrix": of_matrix, "correlation": of_correlation, "chain": of_chain}
    operator, lower, upper = record["operator"], record["lower"], record["upper"]
    kind = str(operator.get("kind") if isinstance(operator, dict) else None)
    need(kind in kinds, f"the kind of operator is unknown: {kind:.40}")
    method = str(members(upper, "upper", "bound method", "cells multipliers ends level")["method"])
    more = " cells" * (method == "cells") + " multipliers ends level" * (kind == "chain")
    members(upper, "upper", f"bound method {more}")
    made, circle, level = kinds[kind](operator, upper, files)
    need(method in made, f"upper of this operator is proved by {[*made]}, got {method:.40}")
    least = number(members(lower, "lower", "bound", "vector frequency")["bound"], "lower")
    need(least == 0 or kind != "chain", "lower of a chain must be 0: nothing proves another")
    if least > 0:
        own = next(iter(made.values()))()
        members(lower, "lower", "bound vector" + " frequency" * bool(own.spans))
        turns = items(lower.get("frequency", []), "frequency", len(own.spans), fraction)
        fits = not circle or all(t * n % 1 == 0 for t, n in zip(turns, circle, strict=True))
        need(fits, "the frequency of lower is none of the circle")
        prove_lower(own, least, lower["vector"], turns)
    symbol = made[method]()
    each = cells(symbol, upper["cells"]) if method == "cells" else points(symbol, circle)
    for turns, w in each:
        prove_at(turns, symbol, level, w)
    about = re.sub(r', "(sha256|values)": "[^"]*"', "", json.dumps(operator))
    return f"{least!r} <= norm <= {number(upper['bound'], 'upper')!r} of {about}"


# ------------------------------------------------------------------------------------ 6. Command
def verdicts(text: bytes, path: Path | None = None) -> Iterator[tuple[str, str, str]]:
    """Yield for each record its name, its verdict, and what is verified or why it is not."""
    try:
        need(flint, 'python-flint is missing: pip install "gramnorm[verify]"', "cannot check")
        records = documents(text)
    except Refusal as refusal:
        yield "the document", *refusal.args
        return
    for i, record in enumerate(records, 1):
        name = str(record.get("name", i)) if isinstance(record, dict) else str(i)
        try:
            yield name, "verified", check(record, None if path is None else arrays_of(path))
        except Refusal as refusal:
            yield name, *refusal.args
        except Exception as error:  # damaged files and strange records make Python raise anything
            yield name, "cannot check", f"{type(error).__name__}: {error}"


def main(arguments: Iterable[str] | None = None) -> int:
    """Check a file of records, with a file of weights if they do not hold theirs."""
    given, found = [*map(Path, sys.argv[1:] if arguments is None else arguments)], set()
    try:
        need(len(given) in (1, 2), "usage: verifier.py RECORD [FILE]")
        for name, verdict, reason in verdicts(given[0].read_bytes(), *given[1:]):
            print(f"{name}: {verdict}: {reason}".encode("unicode_escape").decode(), flush=True)
            found.add(verdict)
    except (OSError, Refusal) as error:
        print(f"cannot check: {error.args[-1]}", file=sys.stderr)
        return 2
    return 1 if "rejected" in found else 2 if "cannot check" in found else 0


if __name__ == "__main__":
    sys.exit(main())
