"""Rules for Resize and Upsample: axes that become longer or shorter by interpolation.

An axis of n samples becomes one of m by a matrix A; with R and C the largest sums of moduli in a
row and in a column,

    ||A||^2 <= R C                                          (docs/theory.md, Lemma 21).

The sums are known by a formula, for whole numbers and for the usual ways at every size, or else by
the entries at the size that there is.

Where the nearest sample is taken, R = 1 and C counts how often one is; as runtimes round the places
differently, a sample is counted wherever it may be the nearest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from gramnorm._rigour.fractions import root_above
from gramnorm.report.onnx.nodes import (
    Dim,
    Effect,
    Fixed,
    Node,
    NotUnderstoodError,
    Shape,
    Values,
    readable,
    require,
    size_by,
)

_LONGEST = 2**14  # samples of an axis whose matrix is formed: places are off by less than _OFF
_OFF = 2.0**-8  # by single precision, in samples: 2^14 samples and 2^-22 relative to them
_ROUNDING = Fraction(1) + Fraction(1, 2**30)  # of sums of up to 2^16 weights in double precision
_LARGEST_CUBIC = 4.0  # modulus of the cubic's coefficient, -0.5 or -0.75 in use
_WHOLE_NEAREST = (
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
)
_WAYS = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
_NEAREST: dict[str, Callable[[Values], Values]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
}


@dataclass(frozen=True)
class _Way:
    """How an axis is interpolated: kind, where its samples lie, which one is the nearest."""

    mode: str
    places: str
    nearest: str
    cubic: float

    def whole(self, scale: Fraction) -> Fraction | None:
        """Return the square of the constant where an axis grows by a whole number (Lemma 21)."""
        if scale.denominator != 1:
            return None
        if self.mode == "nearest":
            return scale if (self.places, self.nearest) in _WHOLE_NEAREST else None
        if self.mode != "linear" or self.places == "align_corners":
            return None
        return (3 * scale - 1) / 2 if self.places == "asymmetric" else scale

    def at_every_size(self, s: Fraction) -> Fraction | None:
        """Bound the square of the constant whatever the size is, by Lemma 21."""
        if self.mode == "nearest" and (self.places, self.nearest) in _WHOLE_NEAREST:
            return Fraction(math.floor(s) + 1)
        if self.mode != "linear" or (self.places == "asymmetric" and s > 1):
            return None
        if s <= 1:
            return Fraction(1)
        u = (3 * s - 1) / 2 if self.places == "align_corners" else s
        return u + 1 / (4 * u)

    def growth(self, n: int, m: int, scale: Fraction) -> Fraction:
        """Bound the square of the constant of one axis of n samples that become m."""
        require(max(n, m) <= _LONGEST, f"it resizes an axis to more than {_LONGEST} samples")
        x = self._places(n, m, scale)
        if self.mode == "nearest":
            choose = _NEAREST[self.nearest]
            ends = (np.clip(choose(x + off), 0, n - 1).astype(int) for off in (-_OFF, _OFF))
            first, last = ends
            both = np.concatenate([first, last[last > first]])
            return Fraction(int(np.bincount(both).max()))
        taps, weights = self._taps(np.clip(x, 0, n - 1) if self.mode == "linear" else x)
        columns = np.bincount(np.clip(taps, 0, n - 1).ravel(), np.abs(weights).ravel())
        rows = np.sum(np.abs(weights), axis=0)
        return Fraction(float(columns.max())) * Fraction(float(rows.max())) * _ROUNDING

    def _places(self, n: int, m: int, scale: Fraction) -> Values:
        """Return where the new samples lie among the old ones."""
        o = np.arange(m, dtype=float)
        if self.places == "asymmetric":
            return o / float(scale)
        if self.places == "align_corners" or (self.places == "pytorch_half_pixel" and m == 1):
            return o * ((n - 1) / max(m - 1, 1))
        return (o + 0.5) / float(scale) - 0.5

    def _taps(self, x: Values) -> tuple[Values, Values]:
        """Return which samples each new one is made of, and their weights."""
        left = np.floor(x)
        t, a = x - left, self.cubic
        if self.mode == "linear":
            return np.stack([left, left + 1]).astype(int), np.stack([1 - t, t])
        near = [((a + 2) * s - (a + 3)) * s * s + 1 for s in (t, 1 - t)]
        far = [((a * s - 5 * a) * s + 8 * a) * s - 4 * a for s in (1 + t, 2 - t)]
        taps = np.stack([left - 1, left, left + 1, left + 2]).astype(int)
        return taps, np.stack([far[0], *near, far[1]])


def resized(node: Node) -> Effect:
    """Rule of Resize and Upsample."""
    x, way = node.only_varying(), _way(node)
    scales, sizes = _scales(node, x.shape)
    olds: list[Dim] = [None] * len(scales) if x.shape is None else list(x.shape)
    news = [n if s == 1 else m for n, m, s in zip(olds, sizes, scales, strict=True)]
    squares = (_square(way, *axis) for axis in zip(olds, news, scales, strict=True))
    growth = math.prod(squares, start=Fraction(1))
    return Effect({0: root_above(growth)}, (None if x.shape is None else tuple(news),))


def _square(way: _Way, n: Dim, m: Dim, scale: Fraction) -> Fraction:
    """Bound the square of the constant of one axis, with its sizes if they are known."""
    if scale == 1:
        return Fraction(1)
    found = way.whole(scale)
    if found is None and isinstance(n, int) and isinstance(m, int) and min(n, m) > 0:
        found = way.growth(n, m, scale)
    found = way.at_every_size(scale) if found is None else found
    if found is None:
        how = f"its mode is {way.mode!r} with {way.places!r}, by {float(scale):.6g}"
        msg = f"{how}, which is understood at known sizes only"
        raise NotUnderstoodError(msg)
    return found


def _way(node: Node) -> _Way:
    """Return how a node interpolates, if it is one of the ways that are understood."""
    once = node.op == "Upsample" or node.version == 10  # whose coordinates are o / s

    def given(name: str, default: str) -> str:
        value = node.attributes.get(name, default.encode())
        return value.decode(errors="replace") if isinstance(value, bytes) else ""

    places = given("coordinate_transformation_mode", "asymmetric" if once else "half_pixel")
    nearest = given("nearest_mode", "floor" if once else "round_prefer_floor")
    way = _Way(given("mode", "nearest"), places, nearest, node.number("cubic_coeff_a", -0.75))
    known = way.mode in ("nearest", "linear", "cubic") and places in _WAYS and nearest in _NEAREST
    said = ", ".join(map(readable, (way.mode, places, nearest)))
    require(known and abs(way.cubic) <= _LARGEST_CUBIC, f"its mode is {said}")
    odd = [k for k in ("antialias", "exclude_outside", "axes") if node.attributes.get(k)]
    require(not odd, f"{' and '.join(odd)}, for which there is no rule")
    return way


def _scales(node: Node, shape: Shape) -> tuple[list[Fraction], list[Dim]]:
    """Return the factors by which axes become longer, and the sizes after it."""
    last = len(node.inputs) - 1
    if last == 3:
        return _by_sizes(node, shape)
    place = 2 if node.op == "Resize" and node.version > 10 else 1
    require(last in (0, place), "its scales are missing")
    stored: Any = node.attributes.get("scales", ()) if last == 0 else node.fixed(last)
    values = np.ravel(np.asarray(stored))
    numbers = values.dtype.kind in "fiu" and bool(np.all(np.isfinite(values)))
    require(numbers and bool(np.all(values > 0)), "its scales are no positive numbers")
    scales = [Fraction(v) for v in values.tolist()]
    require(shape is None or len(scales) == len(shape), "its scales are not one for each axis")
    return scales, list(map(_size, shape or [None] * len(scales), scales))


def _size(n: Dim, scale: Fraction) -> Dim:
    """Return the whole part of n times a scale, None where runtimes may round it differently."""
    if not isinstance(n, int):
        return size_by(f"{scale} * +0", n) if scale.denominator == 1 else None
    exact = n * scale
    ends = {math.floor(exact * (1 + off)) for off in (Fraction(-1, 2**20), Fraction(1, 2**20))}
    whole = exact.denominator == 1 and exact < 2**24
    return int(exact) if whole else ends.pop() if len(ends) == 1 else None


def _by_sizes(node: Node, shape: Shape) -> tuple[list[Fraction], list[Dim]]:
    """Return the same where the sizes after it are given."""
    sizes, given = node.indices("sizes", 3, None), node.input(2)
    stretch = node.attributes.get("keep_aspect_ratio_policy", b"stretch") == b"stretch"
    once = given is None or (isinstance(given, Fixed) and given.shape == (0,))
    require(once, "scales besides its sizes")
    if shape is None or sizes is None or not stretch or len(sizes) != len(shape):
        msg = "its sizes are unknown"
        raise NotUnderstoodError(msg)
    scales = []
    for n, m in zip(shape, sizes, strict=True):
        known = isinstance(n, int) and isinstance(m, int) and min(n, m) > 0
        require(known or (n is not None and m == n), "its sizes are unknown")
        scales.append(Fraction(m, n) if isinstance(n, int) and isinstance(m, int) else Fraction(1))
    return scales, sizes
