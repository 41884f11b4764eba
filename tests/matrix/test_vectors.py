"""Unit vectors on request: of norm one, attaining the lower bound, at home where the matrix is."""

import math

import numpy as np
import pytest

import gramnorm as gn
from tests.harness import oracles
from tests.harness.families import FAMILIES, from_spectrum, real_dtype

NARROW = {"float64": "float32", "complex128": "complex64"}
DEFAULT = {"float32": 1e-4, "float64": 1e-6}
SHAPES = [(1, 1), (4, 4), (7, 3), (3, 7), (1, 5), (5, 1)]


def stored_dtype(be, dtype):
    return dtype if be.has_float64 else NARROW.get(dtype, dtype)


def only_few_shapes(be, shape, dtype):
    if be.compiles and (shape, dtype) != ((3, 7), "complex128"):
        pytest.skip("a compilation per shape and type")


def ask(be, host, rtol=None):
    """Return the stored matrices, lower, upper, left and right on the host."""
    x = be.asarray(host)
    with np.errstate(all="ignore"):
        found = gn.matrix_norm_bracket(x, rtol=rtol, vectors=True)
    return be.to_numpy(x), *(
        be.to_numpy(v) for v in (found.lower, found.upper, found.left, found.right)
    )


def assert_attained(stored, lower, left, right, rtol, name=""):
    """Assert unit length and |u^H A v| >= lower (1 - rtol), matrix by matrix."""
    eps = float(np.finfo(stored.dtype).eps)
    m, n = stored.shape[-2:]
    assert left.shape == (*stored.shape[:-2], m), name
    assert right.shape == (*stored.shape[:-2], n), name
    e = oracles.exponents(stored)
    scaled = oracles.ldexp_long(stored, -e[..., None, None])
    attained = np.abs(np.einsum("...i,...ij,...j->...", left.conj(), scaled, right))
    # storing each entry errs by eps / 2, which cannot move the length by more; the rest is arithmetic
    for vector in (left, right):
        length = np.sqrt(np.sum(np.abs(vector.astype(np.clongdouble)) ** 2, axis=-1))
        assert np.all(np.abs(length - 1) <= 2 * eps), name
    floor = np.ldexp(lower.astype(np.longdouble), -e) * (1 - max(rtol, 4 * eps))
    assert np.all(attained >= floor), (name, attained, floor)


ORDINARY = [
    "gaussian", "orthogonal", "rank_one", "rank_two", "graded_gently", "hilbert", "top_pair",
    "top_cluster", "two_levels", "nilpotent", "jordan", "single_entry", "all_equal", "kahan",
    "near_overflow", "gaussian_any_scale", "hadamard", "cancelling",
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_matrix_has_unit_vectors_that_attain_its_lower_bound(be, shape, dtype):
    only_few_shapes(be, shape, dtype)
    dtype = stored_dtype(be, dtype)
    for name in ORDINARY:
        a = FAMILIES[name](np.random.default_rng(1), *shape, dtype)
        if a.any():
            stored, lower, _, left, right = ask(be, a)
            assert_attained(stored, lower, left, right, DEFAULT[real_dtype(dtype)], name)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("shape", SHAPES)
def test_stacks_have_unit_vectors_for_each_matrix(be, shape, dtype):
    only_few_shapes(be, shape, dtype)
    dtype = stored_dtype(be, dtype)
    arrays = [FAMILIES[name](np.random.default_rng(2), *shape, dtype) for name in ORDINARY]
    stack = np.stack([a for a in arrays if a.any()][:12]).reshape(3, 4, *shape)
    stored, lower, _, left, right = ask(be, stack)
    assert_attained(stored, lower, left, right, DEFAULT[real_dtype(dtype)])


@pytest.mark.parametrize("rtol", [1e-2, 1e-9])
def test_the_vectors_attain_as_much_as_was_asked_for(be, rtol):
    if not be.has_float64 or be.compiles:
        pytest.skip("asks for more than single precision, of many shapes")
    for name in ("gaussian", "orthogonal", "top_pair", "top_cluster", "nilpotent"):
        for shape in ((30, 30), (120, 110), (90, 130)):
            a = FAMILIES[name](np.random.default_rng(3), *shape, "float64")
            stored, lower, _, left, right = ask(be, a, rtol)
            assert_attained(stored, lower, left, right, rtol, (name, shape))


@pytest.mark.parametrize("width", [1e-5, 1e-8])
@pytest.mark.parametrize("kind", ["pair", "cluster"])
def test_the_vectors_of_a_large_cluster_attain_as_much_as_was_asked_for(kind, width):
    rng = np.random.default_rng(4)
    spectrum = 1 - width * rng.uniform(0, 1, 128)
    if kind == "pair":
        spectrum = np.where(np.arange(128) < 2, 1 - width * np.arange(128), 0.5)
    a = from_spectrum(rng, 128, 128, "float64", spectrum)
    found = gn.matrix_norm_bracket(a, rtol=1e-10, vectors=True)
    assert_attained(a, found.lower, found.left, found.right, 1e-10)


def test_the_vectors_attain_the_norm_of_a_known_matrix(be):
    a = np.asarray([[0, 0, 0], [0, 0, 3.0], [0, 0, 4.0]]).astype(stored_dtype(be, "float64"))
    stored, _, _, left, right = ask(be, a)
    eps = float(np.finfo(stored.dtype).eps)
    assert abs(abs(right[2]) - 1) <= 2 * eps
    assert np.allclose(np.abs(left), [0, 0.6, 0.8], rtol=8 * eps, atol=8 * eps)
    assert left @ stored @ right > 0


def test_the_vectors_of_a_complex_matrix_are_conjugated_on_the_left(be):
    a = np.asarray([[1, 0], [1j, 0]]).astype(stored_dtype(be, "complex128"))
    for host in (a, np.ascontiguousarray(a.T), np.vstack([a, a]), np.hstack([a, a])):
        if be.compiles and host.shape != (2, 2):
            continue
        stored, lower, _, left, right = ask(be, host)
        value = np.vdot(left, stored @ right)
        assert abs(value.imag) <= 1e-5 * lower
        assert value.real >= lower * (1 - 1e-5)


@pytest.mark.parametrize("name", ["float32", "float64", "complex64", "complex128"])
def test_the_vectors_live_where_the_matrix_lives(be, name):
    only_few_shapes(be, (3, 7), name)
    name = stored_dtype(be, name)
    for shape in ((2, 3), (2, 2, 2, 3)):
        x = be.asarray(np.ones(shape), name)
        found = gn.matrix_norm_bracket(x, vectors=True)
        for vector, size in ((found.left, 2), (found.right, 3)):
            assert be.is_at_home(vector)
            assert vector.dtype == x.dtype
            assert vector.shape == (*shape[:-2], size)


@pytest.mark.parametrize("name", ["int32", "bool"])
def test_the_vectors_of_integers_have_the_type_of_the_bound(be, name):
    x = be.xp.asarray(np.eye(3, 2).astype(name), device=be.device)
    found = gn.matrix_norm_bracket(x, vectors=True)
    assert found.left.dtype == found.right.dtype == found.lower.dtype


def test_a_zero_matrix_has_basis_vectors(be):
    for shape in ((3, 3), (2, 5), (2, 3, 3)):
        if be.compiles and shape != (3, 3):
            continue
        _, lower, upper, left, right = ask(be, np.zeros(shape))
        assert not lower.any()
        assert not upper.any()
        for vector in (left, right):
            assert np.array_equal(np.sort(vector, axis=-1)[..., -1], np.ones(shape[:-2]))
            assert np.array_equal(np.sum(vector != 0, axis=-1), np.ones(shape[:-2]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_matrix_that_is_not_finite_has_no_vectors(be, value):
    a = np.ones((3, 3))
    a[1, 2] = value
    _, _, _, left, right = ask(be, a)
    assert np.all(np.isnan(left))
    assert np.all(np.isnan(right))


def test_odd_matrices_of_a_stack_leave_the_vectors_of_the_others_alone(be):
    rng = np.random.default_rng(5)
    a = rng.standard_normal((4, 7, 3))
    a[1], a[2, 0, 0], a[3, 1, 1] = 0, math.nan, math.inf
    stored, lower, _, left, right = ask(be, a)
    assert_attained(stored[0], lower[0], left[0], right[0], 1e-4)
    assert np.sum(np.abs(left[1])) == np.sum(np.abs(right[1])) == 1
    for i in (2, 3):
        assert np.all(np.isnan(left[i]))
        assert np.all(np.isnan(right[i]))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3), (0, 2, 3)])
def test_empty_matrices_have_vectors_of_the_right_shape(be, shape):
    x = be.asarray(np.zeros(shape))
    found = gn.matrix_norm_bracket(x, vectors=True)
    assert found.left.shape == shape[:-1]
    assert found.right.shape == (*shape[:-2], shape[-1])


@pytest.mark.parametrize("scale", [-900, -300, 300, 900])
def test_the_vectors_do_not_depend_on_the_scale(be, scale):
    if not be.has_float64 or be.compiles:
        pytest.skip("beyond the range of single precision, or a compilation more")
    a = np.random.default_rng(6).standard_normal((2, 6, 4)) * 2.0**scale
    stored, lower, _, left, right = ask(be, a)
    assert_attained(stored, lower, left, right, 1e-6)


def test_vectors_are_given_only_on_request(be):
    found = gn.matrix_norm_bracket(be.asarray(np.ones((2, 2))))
    assert found.left is None
    assert found.right is None


def test_asking_for_vectors_does_not_change_the_bounds(be):
    a = np.random.default_rng(7).standard_normal((3, 7, 3))
    for host in (a, a[0]):
        x = be.asarray(host)
        plain, more = gn.matrix_norm_bracket(x), gn.matrix_norm_bracket(x, vectors=True)
        for name in ("lower", "upper", "converged"):
            first, second = (be.to_numpy(getattr(b, name)) for b in (plain, more))
            assert np.array_equal(first, second), name


def test_the_same_matrix_has_the_same_vectors(be):
    x = be.asarray(np.random.default_rng(8).standard_normal((7, 3)))
    first, second = (gn.matrix_norm_bracket(x, vectors=True) for _ in range(2))
    assert np.array_equal(be.to_numpy(first.left), be.to_numpy(second.left))
    assert np.array_equal(be.to_numpy(first.right), be.to_numpy(second.right))


def test_vectors_of_partial_permutations_attain_the_norm():
    """The Krylov space of a projection has two dimensions: what follows is rounding."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n, r = int(rng.integers(97, 200)), int(rng.integers(1, 8))
        a = np.zeros((n, n))
        a[rng.permutation(n)[:r], rng.permutation(n)[:r]] = 1.0
        found = gn.matrix_norm_bracket(a, vectors=True)
        assert np.abs(np.vdot(found.left, a @ found.right)) >= found.lower * (1 - 1e-6)
