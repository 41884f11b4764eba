"""Arrays of Dask: promises that bound what is computed later, in chunks of any kind."""

import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._arrays import limits
from tests.harness import chunks, oracles

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
pytestmark = pytest.mark.extra

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng


def tall(rng=None, shape=(60, 5), rows=17):
    a = (rng or RNG(0)).standard_normal(shape)
    return a, da.from_array(a, chunks=(*shape[:-2], rows, shape[-1]))


def check(a, bracket):
    """Assert that a bracket is one of each matrix of `a`; return its ends on the host."""
    lower, upper = da.compute(bracket.lower, bracket.upper)
    found = oracles.check_stack(np.asarray(a), lower, upper)
    assert found.clean, (lower, upper, np.linalg.norm(a, 2, axis=(-2, -1)))
    return lower, upper


# ------------------------------------------------------------------------------------ soundness


def test_bounds_of_matrices_cut_at_random_are_on_their_side():
    found = chunks.search(40, seed=3)
    assert found.complaints == []
    assert found.undecided == 0


@pytest.mark.slow
def test_bounds_of_many_matrices_cut_at_random_are_on_their_side():
    found = chunks.search(1000, seed=4)
    assert found.complaints == []


def test_the_search_finds_falsified_bounds():
    assert chunks.search(10, seed=3, inject=1e-3).complaints


# --------------------------------------------------------------------------------------- promises


def counting_array(shape, rows):
    """Return an array of Dask that counts how many of its chunks were made, and the counter."""
    made = []

    def make(block_info=None):
        made.append(block_info[None]["chunk-location"])
        return np.ones(block_info[None]["chunk-shape"])

    cuts = tuple((min(rows, n),) * (n // min(rows, n)) for n in shape[:1]) + tuple(
        (n,) for n in shape[1:]
    )
    return da.map_blocks(make, chunks=cuts, dtype=float, meta=np.empty((0,) * len(shape))), made


@pytest.mark.parametrize("shape", [(40, 3), (6, 4, 3)])
def test_nothing_is_computed_before_it_is_asked_for(shape):
    x, made = counting_array(shape, rows=2)
    made.clear()
    bracket = gn.matrix_norm_bracket(x)
    bound, steps = gn.matrix_norm_bound(x), gn.gram_iteration(x, steps=2)
    assert repr(bracket).startswith("NormBracket(lower=dask.array<")
    assert made == []
    for value in (bracket.lower, bracket.upper, bound, steps):
        assert isinstance(value, da.Array)
        assert value.shape == shape[:-2]
        assert value.dtype == np.float64
    assert bracket.converged.dtype == bool
    bound.compute(scheduler="sync")
    assert sorted(made) == [(k, *(0,) * (len(shape) - 1)) for k in range(shape[0] // 2)]


def test_a_bracket_is_computed_at_once():
    a, x = tall()
    (bracket,) = dask.compute(gn.matrix_norm_bracket(x))
    assert isinstance(bracket, gn.NormBracket)
    assert bracket.lower <= np.linalg.norm(a, 2) <= bracket.upper
    assert bool(bracket.converged)
    assert bracket.n_products >= 1


def test_one_matrix_is_read_once_for_all_that_is_asked_of_it():
    x, made = counting_array((40, 3), rows=10)
    made.clear()
    bracket = gn.matrix_norm_bracket(x)
    da.compute(bracket.lower, bracket.upper, bracket.converged, scheduler="sync")
    assert len(made) == 4


# ---------------------------------------------------------------------------- the ways it is cut


def test_whole_matrices_in_a_chunk_have_the_bits_of_the_same_stack():
    a = RNG(1).standard_normal((7, 2, 5, 4))
    x = da.from_array(a, chunks=(3, 1, 5, 4))
    bracket = gn.matrix_norm_bracket(x)
    assert bracket.upper.chunks == ((3, 3, 1), (1, 1))
    lower, upper = check(a, bracket)
    for k in range(0, 7, 3):
        for j in range(2):
            part = gn.matrix_norm_bracket(a[k : k + 3, j : j + 1])
            np.testing.assert_array_equal(upper[k : k + 3, j : j + 1], part.upper)
            np.testing.assert_array_equal(lower[k : k + 3, j : j + 1], part.lower)
    np.testing.assert_array_equal(gn.matrix_norm_bound(x).compute(), upper)
    assert gn.matrix_norm_bound(x, keepdims=True).shape == (7, 2, 1, 1)


@pytest.mark.parametrize("cuts", [(17, -1), (-1, 2), (17, 2), (5, 1), (60, 5)])
@pytest.mark.parametrize("wide", [False, True])
def test_a_matrix_cut_along_any_axis_is_bracketed_as_closely_as_a_whole_one(cuts, wide):
    a, _ = tall()
    x = da.from_array(a, chunks=cuts)
    a, x = (a.T, x.T) if wide else (a, x)
    bracket = gn.matrix_norm_bracket(x)
    lower, upper = check(a, bracket)
    assert upper <= lower * (1 + 1e-6)
    assert bool(bracket.converged.compute())
    whole = gn.gram_iteration(a, steps=3)
    assert abs(gn.gram_iteration(x, steps=3).compute() / whole - 1) < 1e-12


def test_stacks_of_tall_matrices_are_cut_along_all_axes():
    a = RNG(2).standard_normal((3, 2, 40, 4))
    x = da.from_array(a, chunks=(2, 1, 11, 3))
    lower, upper = check(a, gn.matrix_norm_bracket(x))
    assert np.all(upper <= lower * (1 + 1e-6))
    steps = gn.gram_iteration(x, steps=4).compute()
    np.testing.assert_allclose(steps, gn.gram_iteration(a, steps=4), rtol=1e-12)


def test_scales_of_chunks_that_are_far_apart_do_not_matter():
    a, _ = tall()
    powers = np.repeat([-900, 900, 0, 880, -1000, 899], 10)
    a = np.ldexp(a, powers[:, None])
    lower, upper = check(a, gn.matrix_norm_bracket(da.from_array(a, chunks=(10, 5))))
    assert upper <= lower * (1 + 1e-6)


def test_a_gram_matrix_that_is_too_large_leaves_the_norms_of_blocks(monkeypatch):
    monkeypatch.setattr(limits, "GRAM_COLUMNS", 4)
    a = RNG(3).standard_normal((12, 9))
    x = da.from_array(a, chunks=(5, 4))
    bracket = gn.matrix_norm_bracket(x)
    lower, upper = check(a, bracket)
    assert not bracket.converged.compute()
    assert upper < 3 * lower
    check(a, gn.matrix_norm_bracket(da.from_array(np.stack([a, 2 * a]), chunks=(1, 5, 4)))[0])
    assert np.linalg.norm(a, 2) <= gn.gram_iteration(x, steps=5).compute() < 3 * lower
    alone = np.zeros_like(a)
    alone[:5, :4] = a[:5, :4]  # one block outweighs all others: its norm is that of all
    bracket = gn.matrix_norm_bracket(da.from_array(alone, chunks=(5, 4)))
    check(alone, bracket)
    assert bracket.converged.compute()


def test_blocks_carry_special_values(monkeypatch):
    monkeypatch.setattr(limits, "GRAM_COLUMNS", 2)
    a = np.ones((6, 6))
    for value in (np.nan, np.inf):
        a[4, 0] = value
        bracket = gn.matrix_norm_bracket(da.from_array(a, chunks=3))
        np.testing.assert_array_equal(da.compute(bracket.lower, bracket.upper), [value, value])


def test_clusters_are_left_to_more_products():
    q = np.linalg.qr(RNG(4).standard_normal((50, 6)))[0]
    bracket = gn.matrix_norm_bracket(da.from_array(q, chunks=(9, 6)), rtol=1e-9)
    lower, upper = check(q, bracket)
    assert upper <= lower * (1 + 1e-9)


# ---------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_bits_depend_on_the_chunks_alone(dtype):
    a = RNG(5).standard_normal((500, 40)).astype(dtype)
    found = set()
    for scheduler, workers in (("sync", 1), ("threads", 1), ("threads", 2), ("threads", 5)):
        bracket = gn.matrix_norm_bracket(da.from_array(a, chunks=(37, 40)))
        ends = da.compute(bracket.lower, bracket.upper, scheduler=scheduler, num_workers=workers)
        found.add(tuple(float(end).hex() for end in ends))
    assert len(found) == 1


@pytest.mark.slow
def test_processes_of_a_cluster_find_the_same_bits():
    pytest.importorskip("distributed")
    command = [sys.executable, "-m", "tests.harness.on_cluster"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("done\n")


# ------------------------------------------------------------------------------- types and values


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint16", "int64", "float16", "float32", "complex64"]
)
def test_chunks_of_any_type_are_bounded_as_they_are_stored(dtype):
    a = (RNG(6).integers(0, 2, (40, 4)) * 3).astype(dtype)
    bracket = gn.matrix_norm_bracket(da.from_array(a, chunks=(9, 4)))
    whole = gn.matrix_norm_bracket(a)
    assert bracket.upper.dtype == whole.upper.dtype
    lower, upper = check(a.astype("complex128" if dtype == "complex64" else "float64"), bracket)
    assert upper.dtype == whole.upper.dtype
    assert upper <= lower * (1 + 1e-4)


def test_chunks_of_bfloat16_are_bounded_as_they_are_stored():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a = RNG(7).standard_normal((40, 4)).astype(ml_dtypes.bfloat16)
    bracket = gn.matrix_norm_bracket(da.from_array(a, chunks=(9, 4)))
    lower, upper = check(a.astype(np.float64), bracket)
    assert upper.dtype == np.float32
    assert upper <= lower * (1 + 1e-4)


def test_large_integers_are_not_rounded_down():
    a = np.full((3, 1), 2**62 + 1)
    upper = gn.matrix_norm_bound(da.from_array(a, chunks=(1, 1))).compute()
    assert int(float(upper)) ** 2 >= 3 * (2**62 + 1) ** 2


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0, 4, 3), (2, 0, 3)])
def test_arrays_without_entries_have_norm_zero(shape):
    x = da.zeros(shape, chunks=2)
    bracket = gn.matrix_norm_bracket(x)
    lower, upper, done = da.compute(bracket.lower, bracket.upper, bracket.converged)
    assert lower.shape == upper.shape == shape[:-2]
    assert not np.any(lower)
    assert not np.any(upper)
    assert np.all(done)
    assert not np.any(gn.gram_iteration(x, steps=2).compute())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_special_values_are_those_of_their_matrix_alone(value):
    a = RNG(8).standard_normal((2, 30, 3))
    a[1, 17, 2] = value
    bracket = gn.matrix_norm_bracket(da.from_array(a, chunks=(2, 8, 3)))
    lower, upper, done = da.compute(bracket.lower, bracket.upper, bracket.converged)
    check(a[:1], bracket[:1])
    np.testing.assert_array_equal([lower[1], upper[1]], [value, value])
    assert done.tolist() == [True, math.isinf(value)]
    steps = gn.gram_iteration(da.from_array(a, chunks=(2, 8, 3)), steps=2).compute()
    np.testing.assert_array_equal(steps[1], value)


def test_a_norm_beyond_the_type_is_bounded_by_inf():
    a = np.full((8, 2), 3e38, dtype=np.float32)
    bracket = gn.matrix_norm_bracket(da.from_array(a, chunks=(2, 2)))
    lower, upper = da.compute(bracket.lower, bracket.upper)
    assert np.isfinite(lower)
    assert np.isinf(upper)


# ---------------------------------------------------------------------------- what is said instead

LAZY = [gn.matrix_norm_bound, gn.matrix_norm_bracket, partial(gn.gram_iteration, steps=1)]


@pytest.mark.parametrize(
    "call", [gn.matrix_norm_bound, gn.matrix_norm_bracket, lambda x: gn.gram_iteration(x, steps=1)]
)
def test_errors_say_what_to_do(call):
    x = da.ones((9, 2), chunks=3)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        call(x[x[:, 0] > 0])
    with pytest.raises(ValueError, match=r"shape \(\.\.\., m, n\)"):
        call(da.ones(3))
    with pytest.raises(TypeError, match="plain array, got MaskedArray"):
        call(da.ma.masked_array(np.ones((4, 2)), mask=np.zeros((4, 2), dtype=bool)))
    with pytest.raises(TypeError, match="dtype object"):
        call(da.from_array(np.ones((4, 2), dtype=object), chunks=2))
    scipy_sparse = pytest.importorskip("scipy.sparse")
    x = da.ones((4, 2), chunks=2).map_blocks(
        scipy_sparse.csr_array, meta=scipy_sparse.csr_array((0, 0))
    )
    with pytest.raises(TypeError, match=r"sparse chunks .*toarray"):
        call(x)


def test_chunks_that_are_not_what_was_promised_are_refused_as_they_come():
    x = da.ones((4, 2), chunks=2).map_blocks(np.ma.masked_equal, 7, meta=np.empty((0, 0)))
    with pytest.raises(TypeError, match="plain array, got MaskedArray"):
        gn.matrix_norm_bound(x).compute()


def test_vectors_need_the_matrix_in_one_place():
    _, x = tall()
    with pytest.raises(ValueError, match=r"vectors=True .* x\.compute\(\)"):
        gn.matrix_norm_bracket(x, vectors=True)


def test_misuse_is_found_before_anything_is_computed():
    _, x = tall()
    with pytest.raises(ValueError, match="rtol"):
        gn.matrix_norm_bracket(x, rtol=-1.0)
    with pytest.raises(ValueError, match="steps"):
        gn.gram_iteration(x, steps=-1)


KERNEL = RNG(9).standard_normal((3, 2, 3))
OF_KERNELS = {
    "conv_norm_bound": gn.conv_norm_bound,
    "conv_norm_bracket": lambda k: gn.conv_norm_bracket(k, 8).upper,
    "conv_norm_value_and_grad": lambda k: gn.conv_norm_value_and_grad(k)[1],
    "fir_norm": lambda k: gn.fir_norm(k).upper,
    "conv_gram_iteration": lambda k: gn.conv_gram_iteration(k, 8, steps=2),
    "conv_spectral_rescaling": lambda k: gn.conv_spectral_rescaling(k, steps=2),
    "spectral_rescaling": lambda k: gn.spectral_rescaling(k, steps=2),
    "matrix_norm_value_and_grad": lambda k: gn.matrix_norm_value_and_grad(k)[1],
    "start_tracking": lambda k: gn.start_tracking(k[0])[0],
    "classical": gn.classical.norm2toep_upper_bound,
}


@pytest.mark.parametrize("name", OF_KERNELS)
def test_all_other_functions_compute_what_they_are_given(name):
    found, expected = (OF_KERNELS[name](k) for k in (da.from_array(KERNEL, chunks=2), KERNEL))
    assert isinstance(found, type(expected))
    np.testing.assert_array_equal(found, expected)


def test_what_takes_norms_asks_for_computed_ones():
    with pytest.raises(TypeError, match=r"array of Dask.*compute\(\)"):
        gn.block_norm_bound(da.ones((2, 2)))
