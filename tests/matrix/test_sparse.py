"""Sparse matrices and operators: certified where the entries are known, a lower bound where they are not."""

import itertools
import json
import math

import array_api_strict
import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import gramnorm as gn
from tests.harness import made_sparse, oracles
from tests.harness.families import FAMILIES
from tests.harness.made_sparse import DTYPES, FORMATS, MAKERS

DEFAULT = {"float32": 1e-4, "float64": 1e-6}
U = 2.0**-53


def containers(*formats):
    """Return the constructors of sparse arrays and matrices of some formats, by default of all."""
    names = itertools.product(formats or FORMATS, ("array", "matrix"))
    return [getattr(scipy.sparse, f"{f}_{kind}") for f, kind in names]


def some_matrix(shape, dtype, seed=0, density=0.3):
    rng = np.random.default_rng(seed)
    a = rng.integers(-9, 10, shape) * (rng.uniform(0, 1, shape) < density)
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.integers(-9, 10, shape) * (a != 0)
    a = a.astype(dtype)
    a[0, -1] = 1
    return a


def check(x, dense, rtol=None):
    """Assert that the bracket of the sparse `x` holds for `dense` and is as tight as asked for."""
    found = gn.matrix_norm_bracket(x, rtol=rtol)
    assert all(type(v) is np.ndarray and v.shape == () for v in (found.lower, found.upper))
    verdict = oracles.check_stack(dense[None], found.lower, found.upper)
    assert verdict.clean
    assert verdict.undecided == []
    assert found.converged
    asked = DEFAULT[found.lower.dtype.name] if rtol is None else rtol
    assert found.upper - found.lower <= asked * found.lower
    return found


def examine(x, what):
    """Assert that the bracket of `x` holds, converges where entries do not cancel, and leaves `x` alone."""
    found = made_sparse.examine(x)
    assert not found.complaint, (what, found.complaint)
    assert not found.open, what
    if found.loose:
        with np.errstate(under="ignore"):
            stored = [abs(complex(v)) for _, _, v in made_sparse.stored_entries(x)]
        norm = oracles.sigma(made_sparse.Truth(x).dense())
        least = 2.0**40 * np.finfo(gn.matrix_norm_bound(x).dtype).smallest_normal
        assert norm < max(1e-7 * math.hypot(*stored), least), what


# ------------------------------------------------------------------- matrices as they are made


@pytest.mark.parametrize("name", MAKERS)
def test_bounds_hold_for_what_was_made_in_every_format_and_type(name):
    index = list(MAKERS).index(name)
    turn = itertools.islice(itertools.cycle(containers()), 3 * index, None)
    for k, dtype in enumerate(DTYPES):
        rng = np.random.default_rng((k, 1))
        with np.errstate(all="ignore"):
            x = MAKERS[name](rng, made_sparse.first(rng, dtype))
        examine(x, dtype)
        # floats in all formats, as arrays or as matrices; each type of integers in three, in turn
        every = containers()[(k + index) % 2 :: 2]
        for construct in every if dtype in made_sparse.FLOATS else itertools.islice(turn, 3):
            examine(construct(x), (dtype, construct.__name__))


def test_bounds_hold_for_what_was_made_in_several_steps():
    for seed in range(260):
        rng = np.random.default_rng((2, seed))
        names, x = made_sparse.draw(rng, DTYPES[seed % len(DTYPES)], most=4)
        examine(x, (seed, names))


def test_bounds_hold_before_and_after_entries_are_sorted_and_added_up():
    for seed in range(52):
        rng = np.random.default_rng((3, seed))
        x = made_sparse.first(rng, DTYPES[seed % len(DTYPES)])
        for name in ("duplicates", "cancelling", "unsorted", "permuted"):
            x = MAKERS[name](rng, x) if rng.uniform() < 0.6 else x
        for f in ("csr", "csc", "coo"):
            y = x if x.format == f else x.asformat(f)
            examine(y, (seed, f))
            if f != "coo":
                y.sort_indices()
                examine(y, (seed, f, "sorted"))
            y.sum_duplicates()
            examine(y, (seed, f, "added up"))


def test_what_is_made_is_read_as_scipy_reads_it():
    """The reading of the tests against that of SciPy, where sums are exact: the last of the oracles."""
    for seed in range(200):
        _, x = made_sparse.draw(np.random.default_rng((4, seed)), DTYPES[4:][seed % 9])
        assert np.array_equal(made_sparse.Truth(x).dense(), x.toarray().astype(np.longdouble))


def test_flags_that_lie_are_not_believed():
    data = np.asarray([1.0, 2.0, 4.0, 8.0], dtype="float32")
    rows, columns = np.asarray([0, 0, 0, 1]), np.asarray([1, 0, 1, 0])
    dense = np.asarray([[2.0, 5.0], [8.0, 0.0]])
    coo = scipy.sparse.coo_array((data, (rows, columns)), shape=(2, 2))
    csr = scipy.sparse.csr_array((data, columns, [0, 3, 4]), shape=(2, 2))
    csc = scipy.sparse.csc_array((data, columns, [0, 3, 4]), shape=(2, 2))
    for x, a in ((coo, dense), (csr, dense), (csc, dense.T)):
        x.has_canonical_format = True
        check(x, a)


def test_what_is_stored_behind_the_last_row_does_not_count():
    for f in ("csr", "csc"):
        x = getattr(scipy.sparse, f"{f}_array")(np.arange(1.0, 13).reshape(4, 3))
        x.indptr = x.indptr.copy()
        x.indptr[-1] = x.indptr[-2]
        a = np.arange(1.0, 13).reshape(4, 3)
        a[(3,) if f == "csr" else (slice(None), 2)] = 0
        check(x, a)


def test_indices_outside_of_the_matrix_are_an_error():
    x = scipy.sparse.csr_array(np.eye(3))
    x.indices = np.asarray([0, 7, 2], dtype=x.indices.dtype)
    with pytest.raises(ValueError, match="7"):
        gn.matrix_norm_bound(x)


# ------------------------------------------------------------------------- formats, types, shapes


@pytest.mark.parametrize("f", FORMATS)
def test_every_shape_and_type_is_bracketed(f):
    shapes = [(7, 5), (5, 7), (6, 6), (1, 4), (4, 1), (1, 1)]
    for construct, shape in itertools.product(containers(f), shapes):
        a = some_matrix(shape, "float64")
        check(construct(a), a)
    for construct, dtype in itertools.product(containers(f), DTYPES):
        a = some_matrix((8, 6), dtype)
        found = check(construct(a), a.astype("float64") if a.dtype.kind in "biu" else a)
        assert found.lower.dtype.name == {
            "float32": "float32", "complex64": "float32"
        }.get(dtype, "float64")  # fmt: skip


@pytest.mark.parametrize("shape", [(300, 20), (20, 300), (150, 150), (5000, 30), (30, 5000)])
def test_sparse_and_dense_agree(shape):
    x = scipy.sparse.random_array(shape, density=0.05, rng=1, dtype="float64")
    for a in (x, (x + 1j * x.power(2)).astype("complex128"), x.astype("float32")):
        sparse, dense = gn.matrix_norm_bracket(a), gn.matrix_norm_bracket(a.toarray())
        assert sparse.converged
        assert sparse.lower <= dense.upper
        assert dense.lower <= sparse.upper
        assert gn.matrix_norm_bound(a) == sparse.upper


def test_every_family_is_bracketed_when_stored_sparsely():
    for name in sorted(FAMILIES):
        for seed, shape in enumerate([(6, 6), (9, 4), (3, 8)]):
            a = FAMILIES[name](np.random.default_rng(seed), *shape, "float64")
            with np.errstate(all="ignore"):
                found = gn.matrix_norm_bracket(scipy.sparse.csr_array(a))
            assert oracles.check_stack(a[None], found.lower, found.upper).clean, name
            in_range = 2.0**-1000 < found.upper < math.inf
            assert found.converged or not in_range, name


def clustered(rng, n, width):
    """Return a banded matrix whose singular values lie in a cluster: rotations of pairs, perturbed."""
    d = np.full(n, 0.6)
    off = np.where(np.arange(n - 1) % 2 == 0, 0.8, 0.0)
    a = scipy.sparse.diags_array([d, -off, off], offsets=[0, 1, -1], shape=(n, n))
    return a @ scipy.sparse.diags_array(1 - width * rng.uniform(0, 1, n))


@pytest.mark.parametrize("rtol", [1e-2, 1e-6, 1e-9])
def test_clusters_reach_the_gap(rtol):
    for width in (0.0, 1e-12, 1e-6, 1e-2):
        a = clustered(np.random.default_rng(2), 150, width).tocsr()
        check(a, a.toarray(), rtol)


def test_duplicate_entries_are_added_up():
    rows, columns = [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]
    for values in ([1.0, 2.0, 3.0, -3.0, 4.0], [1j, 2.0, 3.0, 1e-20, 4.0], [1, 2, 3, 4, 5]):
        a = scipy.sparse.coo_array((np.asarray(values), (rows, columns)), shape=(2, 3))
        check(a, a.toarray())
        unsorted = scipy.sparse.csr_array(
            (np.asarray(values), [0, 0, 1, 1, 1], [0, 3, 5]), shape=(2, 3)
        )
        check(unsorted, unsorted.toarray())


def many_equal(count, value):
    """Return a function of t that has the sign of t minus the exact sum of `count` equal numbers."""
    numerator, denominator = value.as_integer_ratio()
    return lambda t: (
        t.as_integer_ratio()[0] * denominator - count * numerator * t.as_integer_ratio()[1]
    )


def test_the_rounding_of_sums_of_duplicates_is_counted():
    count = 200_000
    zeros = np.zeros(count, dtype=np.int64)
    for value in (0.1, 0.3, 1 / 3, 0.7):
        x = scipy.sparse.coo_array((np.full(count, value), (zeros, zeros)), shape=(1, 1))
        found = gn.matrix_norm_bracket(x)
        excess = many_equal(count, value)
        assert excess(float(found.lower)) <= 0 <= excess(float(found.upper))


def test_narrow_duplicates_mean_what_scipy_says_they_mean():
    """SciPy adds in the type stored: True and True is True, and 100 + 100 wraps in int8."""
    place = ([0, 0], [0, 0])
    for values in (np.asarray([True, True]), np.asarray([100, 100], dtype=np.int8)):
        x = scipy.sparse.coo_array((values, place), shape=(1, 1))
        check(x, x.toarray().astype("float64"))


def test_explicit_zeros_change_nothing():
    a = some_matrix((6, 4), "float64")
    for construct in containers():
        padded = scipy.sparse.coo_array(construct(a)) + 0.0 * scipy.sparse.coo_array(
            np.ones((6, 4))
        )
        assert gn.matrix_norm_bound(padded) == gn.matrix_norm_bound(scipy.sparse.csr_array(a))


def sum_of_duplicates(values, columns=200):
    """Return a matrix whose diagonal holds the sum of some numbers in every place."""
    count = len(values)
    index = np.tile(np.arange(columns), count)
    return scipy.sparse.coo_array((np.repeat(values, columns), (index, index)))


@pytest.mark.parametrize("columns", [3, 200])
def test_what_is_left_of_duplicates_that_cancel_is_bounded(columns):
    for dtype, left in itertools.product(("float64", "complex64"), (0, 1e-30, 1e-3)):
        values = np.asarray([1.0, left, -1.0, 0.5, -0.5], dtype=dtype)
        found = gn.matrix_norm_bracket(sum_of_duplicates(values, columns), vectors=True)
        assert found.lower <= abs(values[1]) <= found.upper <= abs(values[1]) * 1.0001 + 1e-12
        assert found.converged == (left == 1e-3)
        assert np.linalg.norm(found.left) == pytest.approx(1)
        assert np.linalg.norm(found.right) == pytest.approx(1)
    # in the order given, no rounding happens: what is left is far below the range of the squares
    found = gn.matrix_norm_bracket(sum_of_duplicates(np.asarray([1.0, -1.0, 1e-160]), columns))
    assert found.lower <= 1e-160 <= found.upper


def test_duplicates_that_are_not_finite_are_added_up():
    inf, nan = math.inf, math.nan
    cases = [([inf, -inf], nan), ([inf, inf], inf), ([-inf, 3.0], inf), ([nan, inf], nan)]
    upwards, downwards = complex(0, inf), complex(0, -inf)
    cases += [([1e308, 1e308, -inf], inf), ([upwards, downwards], nan), ([upwards, inf], inf)]
    for values, answer in cases:
        found = gn.matrix_norm_bracket(sum_of_duplicates(np.asarray(values), 3), vectors=True)
        for bound in (found.lower, found.upper):
            assert np.array_equal(bound, answer, equal_nan=True), values
        assert np.all(np.isnan(found.left))


def test_sums_beyond_the_range_on_the_way_are_finite():
    x = sum_of_duplicates(np.asarray([1.5e308, 1.5e308, -1.5e308]), 2)
    found = gn.matrix_norm_bracket(x)
    assert found.converged
    assert found.lower <= 1.5e308 <= found.upper < math.inf


def test_zero_and_empty_matrices_have_norm_zero():
    shapes = [(4, 3), (3, 4), (1, 1), (0, 3), (3, 0), (0, 0)]
    for construct, shape, dtype in itertools.product(containers(), shapes, ("float64", "bool")):
        if 0 in shape and construct.__name__.startswith("bsr"):
            continue  # SciPy has no empty blocks
        found = gn.matrix_norm_bracket(construct(shape, dtype=dtype), vectors=True)
        assert found.lower == found.upper == 0
        assert found.converged
        assert found.left.shape == (shape[0],)
        assert found.right.shape == (shape[1],)


def test_stored_zeros_are_zero():
    x = scipy.sparse.csr_array((np.zeros(2), [0, 1], [0, 1, 2]), shape=(2, 2))
    assert gn.matrix_norm_bound(x) == 0


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_nan_and_inf_are_passed_on(dtype):
    special = ((math.nan, math.nan), (math.inf, math.inf), (-math.inf, math.inf))
    for construct, (value, answer) in itertools.product(containers(), special):
        a = some_matrix((6, 4), dtype)
        a[2, 1] = value
        with np.errstate(all="ignore"):
            found = gn.matrix_norm_bracket(construct(a), vectors=True)
        for bound in (found.lower, found.upper):
            assert np.array_equal(bound, answer, equal_nan=True)
        assert not (math.isnan(answer) and found.converged)
        assert np.all(np.isnan(found.left))
        assert np.all(np.isnan(found.right))


def test_nan_goes_before_inf():
    x = scipy.sparse.csr_array(np.asarray([[math.nan, math.inf], [1, 2]]))
    assert np.isnan(gn.matrix_norm_bound(x))


def test_every_scale_is_bracketed():
    for k in (-1074, -1060, -1022, -900, -300, 300, 900, 1018):
        a = np.ldexp(some_matrix((7, 5), "float64"), k)
        found = gn.matrix_norm_bracket(scipy.sparse.csr_array(a))
        assert oracles.check_stack(a[None], found.lower, found.upper).clean
        assert found.converged or k < -1040


def test_a_power_of_two_scales_every_bit():
    a = some_matrix((40, 30), "float64")
    base = gn.matrix_norm_bracket(scipy.sparse.csr_array(a))
    for k in (-900, -300, -1, 300, 900):
        found = gn.matrix_norm_bracket(scipy.sparse.csr_array(np.ldexp(a, k)))
        assert found.lower == np.ldexp(base.lower, k)
        assert found.upper == np.ldexp(base.upper, k)


def test_a_norm_beyond_the_type_is_infinite():
    for dtype in ("float32", "float64"):
        x = scipy.sparse.csr_array(np.full((3, 3), np.finfo(dtype).max, dtype))
        with np.errstate(all="ignore"):
            found = gn.matrix_norm_bracket(x)
        assert found.upper == math.inf
        assert found.lower <= np.finfo(dtype).max


def test_long_integers_are_not_rounded_down():
    x = scipy.sparse.csr_array(np.asarray([[2**62 + 1, 0], [0, 3]]))
    found = gn.matrix_norm_bracket(x)
    assert int(float(found.upper)) >= 2**62 + 1 >= int(float(found.lower))


def test_the_matrix_is_left_as_it_was():
    """Its arrays, and what SciPy has noted of their order."""
    for construct, vectors in itertools.product(containers(), (False, True)):
        x = construct(some_matrix((6, 4), "float32"))
        before = repr(made_sparse.state(x))
        gn.matrix_norm_bracket(x, vectors=vectors)
        assert repr(made_sparse.state(x)) == before
        arrays = made_sparse.parts(x).values()
        found = gn.matrix_norm_bracket(x, vectors=vectors)
        assert not any(np.shares_memory(a, b) for a in arrays for b in (found.lower, found.upper))


@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32", "complex64"])
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (200, 150), (1, 5)])
def test_the_vectors_attain_the_lower_bound(dtype, shape):
    a = some_matrix(shape, dtype)
    x = scipy.sparse.csr_array(a[:, ::-1])[:, ::-1]  # not in order
    found = gn.matrix_norm_bracket(x, vectors=True)
    eps = float(np.finfo(dtype).eps)
    left, right = found.left, found.right
    assert left.dtype == right.dtype == a.dtype
    assert left.shape == shape[:1]
    assert right.shape == shape[1:]
    for vector in (left, right):
        assert abs(np.linalg.norm(vector.astype(np.clongdouble)) - 1) <= 2 * eps
    rtol = DEFAULT[found.lower.dtype.name]
    assert np.abs(np.vdot(left, a @ right)) >= found.lower * (1 - rtol)


def test_the_vectors_attain_tiny_and_huge_norms():
    for k in (-1000, -300, 300, 1000):
        a = np.ldexp(some_matrix((6, 4), "float64"), k)
        found = gn.matrix_norm_bracket(scipy.sparse.csr_array(a), vectors=True)
        attained = np.abs(np.vdot(found.left, np.ldexp(a, -k) @ found.right))
        assert attained >= np.ldexp(found.lower, -k) * (1 - 1e-6)


def shared(folder):
    """Yield (key, sparse matrix, reference) of the shared data."""
    with np.load(folder / "matrices.npz") as file:
        for entry in json.loads((folder / "matrices.json").read_text())["matrices"]:
            if entry["sparse"]:
                names = ("data", "indices", "indptr")
                csc = tuple(file[f"{entry['key']}__{name}"] for name in names)
                yield entry["key"], scipy.sparse.csc_array(csc, shape=entry["shape"]), entry


def test_shared_sparse_matrices_reach_their_gap(shared_data):
    found = 0
    for key, x, entry in shared(shared_data):
        slack = max(entry["rel_err_est"], 1e-14)
        for y in (x, x.T, x.tocoo()):
            bracket = gn.matrix_norm_bracket(y)
            assert bracket.lower <= entry["sigma1"] * (1 + slack), key
            assert bracket.upper >= entry["sigma1"] * (1 - slack), key
            assert bracket.converged, key
        found += 1
    assert found >= 2


def test_operators_of_shared_sparse_matrices_are_not_above_their_norm(shared_data):
    for key, x, entry in shared(shared_data):
        value = gn.operator_norm_lower_bound(aslinearoperator(x))
        slack = max(entry["rel_err_est"], 1e-14)
        assert value <= entry["sigma1"] * (1 + slack), key
        assert value >= entry["sigma1"] * (1 - 1e-4), key


def test_only_the_smaller_side_counts_for_the_limit():
    x = scipy.sparse.eye_array(10, 1_000_000, format="csr")
    for y in (x, x.T):
        assert gn.matrix_norm_bracket(y).converged


def test_a_sparse_vector_is_refused():
    with pytest.raises(ValueError, match="shape"):
        gn.matrix_norm_bound(scipy.sparse.coo_array(np.arange(3.0)))


@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
def test_long_double_is_refused(dtype):
    if np.dtype(dtype).itemsize == np.dtype(float).itemsize * (
        2 if np.dtype(dtype).kind == "c" else 1
    ):
        pytest.skip("long double is double here")
    with pytest.raises(TypeError, match="dtype"):
        gn.matrix_norm_bound(scipy.sparse.csr_array(np.eye(2, dtype=dtype)))


DENSE_ONLY = {
    "gram_iteration": lambda x: gn.gram_iteration(x, steps=2),
    "conv_norm_bound": gn.conv_norm_bound,
    "conv_norm_bracket": gn.conv_norm_bracket,
    "conv_gram_iteration": lambda x: gn.conv_gram_iteration(x, (4,), steps=2),
    "matrix_norm_value_and_grad": lambda x: gn.matrix_norm_value_and_grad(x, steps=2),
    "conv_norm_value_and_grad": gn.conv_norm_value_and_grad,
    "spectral_rescaling": lambda x: gn.spectral_rescaling(x, steps=2),
    "conv_spectral_rescaling": lambda x: gn.conv_spectral_rescaling(x, steps=2),
    "fir_norm": gn.fir_norm,
    "product_bound": gn.product_bound,
    "block_norm_bound": gn.block_norm_bound,
    "classical": gn.classical.norm2toep_upper_bound,
}


def test_functions_of_dense_arrays_refuse_sparse_ones_by_name():
    x = scipy.sparse.csr_array(np.eye(3))
    for function in DENSE_ONLY.values():
        with pytest.raises(TypeError, match="csr_array") as caught:
            function(x)
        # numpy.asarray of a sparse matrix is an array that holds one object
        assert "asarray" not in str(caught.value)
        assert "toarray" in str(caught.value)


def test_rtol_and_keepdims_apply_to_sparse_matrices():
    x = scipy.sparse.csr_array(some_matrix((6, 4), "float64"))
    assert gn.matrix_norm_bound(x, keepdims=True).shape == (1, 1)
    with pytest.raises(ValueError, match="rtol"):
        gn.matrix_norm_bound(x, rtol=0)


def test_the_same_sparse_matrix_gives_the_same_bits():
    x = scipy.sparse.random_array((200, 150), density=0.1, rng=3)
    first, second = gn.matrix_norm_bracket(x), gn.matrix_norm_bracket(x.copy())
    assert (first.lower, first.upper) == (second.lower, second.upper)


# ---------------------------------------------------------------------------------- operators


def slack(a):
    """Return what the products of the operator itself, in double precision, can add to its norm."""
    return 4 * (max(a.shape) + 4) * U * math.sqrt(min(a.shape))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 5), (12, 12)])
def test_an_operator_is_never_above_its_norm(shape, dtype):
    for name in sorted(FAMILIES):
        a = FAMILIES[name](np.random.default_rng(4), *shape, dtype)
        if np.max(np.abs(a)) < 1e150 and (not a.any() or np.max(np.abs(a)) > 1e-150):
            value = gn.operator_norm_lower_bound(aslinearoperator(a))
            exact = oracles.Exact(a)
            assert oracles.check_lower(exact, value * (1 - slack(a))) is oracles.Verdict.HOLDS, name


@pytest.mark.parametrize("shape", [(1, 1), (60, 40), (40, 60), (300, 200)])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_an_operator_with_an_ordinary_spectrum_is_close_to_its_norm(shape, dtype):
    for name in (
        "gaussian",
        "harmonic_spectrum",
        "rank_one",
        "single_entry",
        "top_pair",
        "nilpotent",
    ):
        a = FAMILIES[name](np.random.default_rng(5), *shape, dtype)
        norm = np.linalg.norm(a, 2)
        value = gn.operator_norm_lower_bound(aslinearoperator(a))
        assert norm * (1 - 1e-5) <= value <= norm * (1 + 1e-13), name


def test_a_flat_spectrum_is_met_at_once():
    for a in (np.eye(50), np.eye(50)[::-1], 3.0 * np.eye(70, 50)):
        value = gn.operator_norm_lower_bound(aslinearoperator(a), maxiter=2)
        assert a.max() * (1 - 1e-12) <= value <= a.max()


def test_a_zero_operator_has_lower_bound_zero():
    for shape in ((3, 4), (4, 3), (1, 1), (0, 3), (3, 0)):
        assert gn.operator_norm_lower_bound(aslinearoperator(np.zeros(shape))) == 0.0


def test_the_lower_bound_is_a_float():
    for a in (np.eye(3, dtype="float32"), np.eye(3, dtype=int), 1j * np.eye(3)):
        assert type(gn.operator_norm_lower_bound(aslinearoperator(a))) is float


def test_one_by_one_operators_are_met():
    for value in (3.0, -3.0, 3 + 4j, -1j):
        bound = gn.operator_norm_lower_bound(aslinearoperator(np.asarray([[value]])))
        assert abs(value) * (1 - 1e-13) <= bound <= abs(value)


@pytest.mark.parametrize("scale", [1e-150, 1e-300, 1e150, 1e300])
def test_an_operator_of_any_scale_is_close_to_its_norm(scale):
    a = np.random.default_rng(6).uniform(-1, 1, (30, 20))
    value = gn.operator_norm_lower_bound(aslinearoperator(a * scale)) / scale
    norm = np.linalg.norm(a, 2)
    assert norm * (1 - 1e-6) <= value <= norm * (1 + 1e-14)


def test_an_adjoint_matters_for_complex_operators():
    a = np.asarray([[1.0, 1j], [1j, 1.0], [2.0, -2j]])
    norm = np.linalg.norm(a, 2)
    value = gn.operator_norm_lower_bound(aslinearoperator(a))
    assert norm * (1 - 1e-12) <= value <= norm * (1 + 1e-14)


def test_the_same_operator_gives_the_same_bits():
    a = np.random.default_rng(7).standard_normal((90, 60))
    first, second = (gn.operator_norm_lower_bound(aslinearoperator(a)) for _ in range(2))
    assert first == second


def test_the_state_of_random_numbers_is_left_alone():
    np.random.seed(0)  # noqa: NPY002 - the global state is what is looked at
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    gn.operator_norm_lower_bound(aslinearoperator(np.eye(20)))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_more_steps_give_no_smaller_bound():
    a = np.random.default_rng(8).standard_normal((90, 60))
    values = [
        gn.operator_norm_lower_bound(aslinearoperator(a), maxiter=k, rtol=1e-15)
        for k in (1, 2, 4, 8, 16, 60)
    ]
    assert np.all(np.diff(values) >= -1e-12)
    assert values[-1] > values[0]


def test_the_number_of_products_is_limited():
    calls = []

    def forward(x):
        calls.append(1)
        return x * np.arange(1, 201)

    operator = LinearOperator((200, 200), matvec=forward, rmatvec=forward, dtype=float)
    gn.operator_norm_lower_bound(operator, maxiter=5)
    assert len(calls) <= 2 * 5 + 4  # a start, and the image of the vector found


class Missing:
    """An operator without one of the parts that are needed."""

    def __init__(self, without):
        parts = {"shape": (2, 2), "matvec": lambda x: x, "rmatvec": lambda x: x}
        for name, value in parts.items():
            if name != without:
                setattr(self, name, value)


@pytest.mark.parametrize("name", ["shape", "matvec", "rmatvec"])
def test_a_missing_part_is_named(name):
    with pytest.raises(TypeError, match=f"no {name}"):
        gn.operator_norm_lower_bound(Missing(name))


def test_any_object_with_the_three_parts_will_do():
    assert 1 - 1e-13 <= gn.operator_norm_lower_bound(Missing("nothing")) <= 1


def test_arrays_and_sparse_matrices_are_told_what_is_needed():
    for x in (np.eye(3), scipy.sparse.eye_array(3), array_api_strict.eye(3), [[1.0]]):
        with pytest.raises(TypeError, match="LinearOperator"):
            gn.operator_norm_lower_bound(x)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["matvec", "rmatvec"])
def test_products_that_are_not_finite_are_an_error(side, value):
    functions = {"matvec": lambda x: x, "rmatvec": lambda x: x}
    functions[side] = lambda _: np.full(3, value)
    operator = LinearOperator((3, 3), dtype=float, **functions)
    with pytest.raises(ValueError, match="finite"):
        gn.operator_norm_lower_bound(operator)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"maxiter": 0}, ValueError),
        ({"maxiter": -1}, ValueError),
        ({"maxiter": 2.5}, TypeError),
        ({"maxiter": True}, TypeError),
        ({"rtol": 0}, ValueError),
        ({"rtol": math.nan}, ValueError),
        ({"rtol": "1"}, TypeError),
    ],
    ids=str,
)
def test_wrong_options_are_named(options, error):
    with pytest.raises(error, match=next(iter(options))):
        gn.operator_norm_lower_bound(aslinearoperator(np.eye(3)), **options)
