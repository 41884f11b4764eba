"""Folded weights against exact arithmetic: what the parts define lies within the error that is stated."""

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from gramnorm.report import bound_layer
from gramnorm.report.files.contents import Contents, Layer
from gramnorm.report.files.folds import (
    Fold,
    NotFoldableError,
    masked,
    spectral_norm,
    stored_weight,
    weight_norm,
)
from gramnorm.report.files.sidecar import Description, described
from tests.harness.oracles import conv_matrix, sigma

EXACTLY = np.vectorize(lambda x: mpmath.mpf(float(x)), otypes=[object])
BITS = 700  # of the exact arithmetic


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def exact_weight_norm(g: np.ndarray, v: np.ndarray) -> Any:
    axes = tuple(i for i in range(v.ndim) if g.ndim != v.ndim or g.shape[i] == 1)
    squares = (EXACTLY(v) ** 2).sum(axis=axes, keepdims=True)
    norms = np.vectorize(mpmath.sqrt, otypes=[object])(squares)
    return EXACTLY(v) / norms * EXACTLY(g).reshape(np.shape(norms))


def exact_spectral_norm(w: Any, u: np.ndarray, v: np.ndarray, axis: int) -> Any:
    matrix = np.moveaxis(w, axis, 0).reshape(len(u), -1)
    return w / (EXACTLY(u)[:, None] * matrix * EXACTLY(v)).sum()


def used(fold: Fold, exact: Any) -> float:
    """Return how much of the stated error there is; NaN if neither is there."""
    with mpmath.workprec(BITS):
        off = mpmath.sqrt(((EXACTLY(fold.weight) - exact) ** 2).sum())
        assert off <= mpmath.mpf(fold.error)
        return float(off / mpmath.mpf(fold.error)) if fold.error else np.nan


def odd_numbers(rng: np.random.Generator, shape: Any, dtype: str = "f8") -> np.ndarray:
    """Return numbers of very different sizes, in one array and from array to array."""
    scale = rng.choice(
        [0, 0, 0, 30, -30] if dtype == "f4" else [0, 0, 0, 150, -160, -300, -315, 300]
    )
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, size=shape)
    return np.asarray(values * 10.0**scale).astype(dtype)


class TestExactly:
    def test_weight_norm_is_within_its_error(self, rng: np.random.Generator) -> None:
        ratios = []
        for _ in range(300):
            shape = tuple(rng.integers(1, 6, size=rng.integers(2, 5)).tolist())
            axis = rng.integers(-1, len(shape))
            one = tuple(n if i == axis else 1 for i, n in enumerate(shape)) if axis >= 0 else ()
            dtype = rng.choice(["f4", "f8"])
            g, v = odd_numbers(rng, one, dtype), odd_numbers(rng, shape, dtype)
            if np.any(
                np.max(np.abs(v), axis=tuple(np.flatnonzero(np.resize(one, v.ndim) == 1))) == 0
            ):
                continue
            with mpmath.workprec(BITS):
                ratios.append(used(weight_norm(g, v), exact_weight_norm(g, v)))
        assert len(ratios) > 250
        assert np.nanmax(ratios) > 0.02  # an error that is there, and not lost in the bound

    def test_spectral_norm_is_within_its_error(self, rng: np.random.Generator) -> None:
        ratios = []
        for _ in range(400):
            shape = tuple(rng.integers(1, 6, size=rng.integers(2, 5)).tolist())
            if rng.random() < 0.5:
                w = odd_numbers(rng, shape)
                u, v = odd_numbers(rng, shape[0]), rng.standard_normal(w.size // shape[0])
            else:  # nearly orthogonal: most of sigma cancels
                w, v = rng.standard_normal(shape), rng.standard_normal(math.prod(shape[1:]))
                image = w.reshape(shape[0], -1) @ v
                u = rng.standard_normal(shape[0])
                u -= (1 - 10.0 ** -rng.integers(3, 14)) * (u @ image) / (image @ image) * image
            try:
                fold = spectral_norm(Fold(w), u, v)
            except NotFoldableError:
                continue
            with mpmath.workprec(BITS):
                ratios.append(used(fold, exact_spectral_norm(EXACTLY(w), u, v, 0)))
        assert len(ratios) > 200
        assert max(ratios) > 0.02

    def test_spectral_norm_inherits_the_error_of_what_it_divides(
        self, rng: np.random.Generator
    ) -> None:
        for _ in range(100):
            w, wrong = rng.standard_normal((4, 3)), 10.0 ** rng.integers(-9, -2)
            u, v = rng.standard_normal(4), rng.standard_normal(3)
            for direction in (np.outer(u, v), rng.standard_normal((4, 3)), w):
                step = wrong * direction / np.linalg.norm(direction) * (1 - 1e-12)
                fold = spectral_norm(Fold(w, wrong), u, v)
                for sign in (1, -1):
                    with mpmath.workprec(BITS):
                        other = EXACTLY(w) + sign * EXACTLY(step)
                        used(fold, exact_spectral_norm(other, u, v, 0))

    def test_masks_multiply_exactly(self, rng: np.random.Generator) -> None:
        w = rng.standard_normal((3, 4)).astype("f4")
        mask = rng.random((3, 4)) < 0.5
        for kind in ("f4", "?", "i8"):
            fold = masked(Fold(w, 0.25), mask.astype(kind))
            np.testing.assert_array_equal(fold.weight, w * mask, strict=True)
            assert fold.error == 0.25


class TestOtherTypes:
    @pytest.mark.parametrize("axis", [0, 1, 2, None])
    def test_complex_directions(self, rng: np.random.Generator, axis: int | None) -> None:
        v = rng.standard_normal((3, 4, 2)) + 1j * rng.standard_normal((3, 4, 2))
        others = tuple(i for i in range(3) if i != axis)
        norms = np.linalg.norm(v.reshape(-1)) if axis is None else None
        if axis is not None:
            norms = np.sqrt(np.sum(np.abs(v) ** 2, axis=others, keepdims=True))
        g = np.asarray(rng.standard_normal(np.shape(norms)))
        fold = weight_norm(g, v.transpose(2, 0, 1).copy().transpose(1, 2, 0))
        np.testing.assert_allclose(fold.weight, g * v / norms, rtol=1e-14)
        assert np.linalg.norm(fold.weight - g * v / norms) <= 4 * fold.error

    def test_views_and_byte_orders_are_not_changed(self, rng: np.random.Generator) -> None:
        v = rng.standard_normal((6, 4))
        g = np.linalg.norm(v[::2, ::-1], axis=1, keepdims=True)
        swapped = v.astype(">f8")[::2, ::-1]
        swapped.flags.writeable = False
        np.testing.assert_allclose(weight_norm(g, swapped).weight, v[::2, ::-1], rtol=1e-14)
        u, w = np.ones(3), np.ones(4)
        expected = v[::2, ::-1] / np.sum(v[::2])
        np.testing.assert_allclose(spectral_norm(Fold(swapped), u, w).weight, expected, rtol=1e-12)

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3)])
    def test_empty_weights_are_empty(self, shape: tuple[int, ...]) -> None:
        g = np.zeros((shape[0], *(1,) * (len(shape) - 1)))
        w = np.zeros(shape)
        assert weight_norm(g, w).weight.shape == shape
        found = spectral_norm(Fold(w), np.zeros(shape[0]), np.zeros(math.prod(shape[1:])))
        assert found.weight.shape == shape


def spectral(w: Any, u: Any, v: Any) -> Fold:
    return spectral_norm(Fold(np.asarray(w, "f8")), np.asarray(u), np.asarray(v))


REFUSED: dict[str, tuple[Callable[[], Fold], str]] = {
    "lengths of another number": (
        lambda: weight_norm(np.ones((3, 1)), np.ones((4, 2))),
        "do not fit",
    ),
    "lengths of two axes": (
        lambda: weight_norm(np.ones((4, 2, 1)), np.ones((4, 2, 3))),
        "do not fit",
    ),
    "lengths as large as directions": (
        lambda: weight_norm(np.ones((4, 2)), np.ones((4, 2))),
        "do not fit",
    ),
    "lengths without axes": (lambda: weight_norm(np.ones(4), np.ones((4, 2))), "do not fit"),
    "ones for no axis": (lambda: weight_norm(np.ones((1, 1)), np.ones((4, 2))), "which axis"),
    "one axis": (lambda: weight_norm(np.ones(4), np.ones(4)), "do not fit"),
    "a zero row": (lambda: weight_norm(np.ones((2, 1)), np.eye(2, 3) * [1, 0, 0]), "0 / 0"),
    "zero in all": (lambda: weight_norm(np.ones(()), np.zeros((2, 2))), "0 / 0"),
    "NaN": (lambda: weight_norm(np.ones((2, 1)), np.full((2, 2), np.nan)), "NaN"),
    "infinity": (lambda: weight_norm(np.full((2, 1), np.inf), np.ones((2, 2))), "infinity"),
    "integers": (lambda: weight_norm(np.ones((2, 1), int), np.ones((2, 2))), "type int64"),
    "extended": (lambda: weight_norm(np.ones((2, 1), "g"), np.ones((2, 2))), "64-bit"),
    "complex lengths": (lambda: weight_norm(np.ones((2, 1), complex), np.ones((2, 2))), "complex"),
    "vectors that fit nothing": (lambda: spectral(np.ones((2, 3)), [1.0], [1.0, 1]), "fit no axis"),
    "short vectors of a square": (
        lambda: spectral([[1, 2], [3, 4]], [1.0, 0], [1.0, 1]),
        "more than one",
    ),
    "a zero vector": (lambda: spectral(np.ones((2, 3)), np.zeros(2), np.ones(3)), "zero"),
    "zero weights": (lambda: spectral(np.zeros((2, 3)), np.ones(2), np.ones(3)), "zero"),
    "cancellation": (lambda: spectral([[0.1, 0.2, -0.3 - 1e-17]], [1.0], np.ones(3)), "zero"),
    "complex vectors": (lambda: spectral(np.ones((2, 3)), np.ones(2) * 1j, np.ones(3)), "complex"),
    "infinite vectors": (lambda: spectral(np.ones((2, 3)), [np.inf, 1], np.ones(3)), "infinity"),
    "matrices for vectors": (
        lambda: spectral(np.ones((2, 3)), np.ones((2, 1)), np.ones(3)),
        "shapes",
    ),
    "beyond the range": (lambda: spectral([[1e300, 1.0]], [1e-320], [0.0, 1.0]), "range"),
    "a mask of another shape": (lambda: masked(Fold(np.ones((2, 2))), np.ones(2)), "shape"),
    "a mask of other numbers": (
        lambda: masked(Fold(np.ones((1, 2))), np.array([[0.5, 1]])),
        "0 and 1",
    ),
    "a mask of NaN": (lambda: masked(Fold(np.ones((1, 2))), np.array([[np.nan, 1]])), "0 and 1"),
    "an infinite weight": (lambda: stored_weight(np.full((2, 2), np.inf), "it"), "infinity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_defines_no_weight_is_refused(case: str) -> None:
    fold, match = REFUSED[case]
    with pytest.raises(NotFoldableError, match=match):
        fold()


class TestAxisOfSquares:
    """Vectors that fit several axes belong to the one whose power method left them."""

    @pytest.mark.parametrize("shape", [(20, 20), (24, 24, 3, 3)])
    @pytest.mark.parametrize("axis", [0, 1])
    def test_trained_vectors_tell(
        self, rng: np.random.Generator, shape: tuple[int, ...], axis: int
    ) -> None:
        w = rng.standard_normal(shape)
        matrix = np.moveaxis(w, axis, 0).reshape(shape[axis], -1)
        v = rng.standard_normal(matrix.shape[1])
        u = matrix @ v / np.linalg.norm(matrix @ v)
        found = spectral_norm(Fold(w + 1e-3 * rng.standard_normal(shape)), u, v)
        np.testing.assert_allclose(found.weight, w / (u @ matrix @ v), atol=0.01)

    def test_symmetric_matrices_have_one(self, rng: np.random.Generator) -> None:
        w = rng.standard_normal((5, 5))
        u, v = rng.standard_normal(5), rng.standard_normal(5)
        found = spectral_norm(Fold(w + w.T), u, v)
        np.testing.assert_allclose(found.weight, (w + w.T) / (u @ (w + w.T) @ v), rtol=1e-10)

    def test_untrained_vectors_do_not(self, rng: np.random.Generator) -> None:
        for _ in range(200):
            n = int(rng.integers(2, 40))
            w, u, v = rng.standard_normal((n, n)), rng.standard_normal(n), rng.standard_normal(n)
            with pytest.raises(NotFoldableError, match="more than one axis"):
                spectral_norm(Fold(w), u, v)


class TestErrorInTheBracket:
    """Every weight within the stated error has its norm in the bracket of the row."""

    @pytest.mark.parametrize(
        ("shape", "geometry", "size"),
        [
            ((3, 4), None, None),
            ((3, 2, 3), {}, None),
            ((2, 2, 3, 2), {"stride": 2, "padding": 1}, (5, 6)),
            ((2, 2, 3, 3), {"padding": 2, "padding_mode": "reflect"}, (4, 4)),
            ((2, 1, 3, 2), {"padding": 1, "padding_mode": "replicate", "groups": 2}, (3, 4)),
            ((2, 2, 3), {"padding": 4, "padding_mode": "circular"}, (4,)),
            ((2, 2, 3), {"transposed": True, "stride": 2, "padding": 0}, (4,)),
            ((2, 2, 2, 3), {"dilation": (1, 2), "padding": 0}, (4, 5)),
        ],
    )
    def test_holds_for_all_weights_within_it(
        self, rng: np.random.Generator, shape: tuple[int, ...], geometry: Any, size: Any
    ) -> None:
        w, error = rng.standard_normal(shape), 0.05
        row = bound_layer(Layer("w", w, geometry, error=error), input_shape=size)
        assert row.error is None

        def norm(x: np.ndarray) -> float:
            if x.ndim == 2:
                return sigma(x)
            rest = {"padding": 0} | geometry
            return sigma(conv_matrix(x, size or (9,) * (x.ndim - 2), **rest))

        largest = norm(w)
        for _ in range(30):
            step = rng.choice([w, np.sign(w), rng.standard_normal(shape), np.ones(shape)])
            step = error * step / np.linalg.norm(step)
            for other in (w + step, w - step):
                assert norm(other) <= row.upper
                if size is not None or w.ndim == 2:
                    assert row.lower <= norm(other)
                largest = max(largest, norm(other))
        assert largest > norm(w)

    def test_is_attained_by_kernels_without_phases(self) -> None:
        weight, error = np.ones((1, 1, 5)), 0.1
        row = bound_layer(Layer("w", weight, {}, error=error))
        worst = sigma(np.array([[np.sum(weight * (1 + error / np.sqrt(5)))]]))
        assert worst <= row.upper <= worst * 1.002

    def test_gap_includes_it(self) -> None:
        weight = np.random.default_rng(1).standard_normal((6, 5))
        assert bound_layer(Layer("w", weight, error=1e-13)).converged
        row = bound_layer(Layer("w", weight, error=1e-3))
        assert not row.converged
        assert row.upper - row.lower >= 2e-3
        assert bound_layer(Layer("w", weight, error=1e-3), rtol=1e-2).converged
        assert bound_layer(Layer("w", weight, error=100.0)).lower == 0

    def test_a_description_keeps_it(self) -> None:
        layer = Layer("w", np.ones((2, 2, 3)), word="weight norm", error=0.5)
        (found,) = described(Contents([layer]), Description({"w": {"stride": 2}}), "it").layers
        assert (found.word, found.error, found.geometry) == ("weight norm", 0.5, {"stride": 2})
