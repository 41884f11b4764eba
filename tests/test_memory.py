"""Peak memory: what a call allocates beside its argument, as NumPy reports it."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse

import gramnorm as gn
from gramnorm._arrays import limits

pytestmark = pytest.mark.no_backend

ROWS, COLUMNS = 20_000, 256
SQUARE = COLUMNS**2 * 8
FEW = 10  # Gram matrix, shifted matrix, factor, products and differences, Krylov basis


def peak(function, *arguments, **options):
    """Return the most bytes that were allocated at one time during a call, and its result."""
    function(*arguments, **options)  # what a first call keeps is not the call's own
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        result = function(*arguments, **options)
        return tracemalloc.get_traced_memory()[1] - before, result
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def tall():
    return np.random.default_rng(0).standard_normal((ROWS, COLUMNS))


def test_the_meter_sees_an_array():
    assert peak(np.ones, 10**6)[0] >= 8 * 10**6


@pytest.mark.parametrize("kind", ["tall", "wide", "by columns"])
def test_an_ordinary_matrix_takes_a_few_small_squares(tall, kind):
    a = {"tall": tall, "wide": tall.T, "by columns": np.asfortranarray(tall)}[kind]
    used, found = peak(gn.matrix_norm_bracket, a)
    assert found.converged
    assert used <= FEW * SQUARE
    assert used < a.nbytes / 4


@pytest.mark.parametrize("k", [-600, 600])
def test_a_matrix_that_must_be_scaled_takes_one_copy_more(tall, k):
    a = tall * 2.0**k
    used, found = peak(gn.matrix_norm_bracket, a)
    assert found.converged
    assert used <= a.nbytes + FEW * SQUARE


def test_a_flat_spectrum_takes_no_more():
    a = np.kron(np.ones((ROWS // COLUMNS, 1)), np.eye(COLUMNS))
    used, found = peak(gn.matrix_norm_bracket, a)
    assert found.converged
    assert used <= FEW * SQUARE


def test_a_tight_gap_takes_no_more(tall):
    used, found = peak(gn.matrix_norm_bracket, tall, rtol=1e-9)
    assert found.converged
    assert used <= FEW * SQUARE


def test_single_precision_takes_one_copy_in_double(tall):
    a = tall.astype("float32")
    used, found = peak(gn.matrix_norm_bracket, a)
    assert found.converged
    assert used <= 2 * a.nbytes + FEW * SQUARE


@pytest.mark.parametrize("kind", ["tall", "wide"])
def test_large_matrices_in_single_precision_take_a_few_small_squares(tall, kind, monkeypatch):
    monkeypatch.setattr(limits, "DOUBLED_ENTRIES", 2**18)
    a = tall.astype("float32")
    used, found = peak(gn.matrix_norm_bracket, a if kind == "tall" else a.T)
    assert found.converged
    assert used <= FEW * SQUARE + 8 * 2**18
    assert used < a.nbytes / 2


def test_a_complex_matrix_takes_its_conjugate():
    rng = np.random.default_rng(1)
    a = rng.standard_normal((ROWS, 64)) + 1j * rng.standard_normal((ROWS, 64))
    used, found = peak(gn.matrix_norm_bracket, a)
    assert found.converged
    assert used <= a.nbytes + FEW * SQUARE


def test_the_vectors_take_one_scaled_copy(tall):
    used, found = peak(gn.matrix_norm_bracket, tall, vectors=True)
    assert found.converged
    assert used <= tall.nbytes + FEW * SQUARE + 4 * 8 * (ROWS + COLUMNS)


@pytest.mark.parametrize("kind", ["tall", "wide"])
def test_nothing_is_square_on_the_larger_side(kind):
    a = np.random.default_rng(2).standard_normal((100_000, 8))
    a = a if kind == "tall" else np.ascontiguousarray(a.T)
    used, found = peak(gn.matrix_norm_bracket, a)
    assert found.converged
    assert used <= 2 * a.nbytes


def test_a_sparse_matrix_takes_a_square_on_its_smaller_side():
    x = scipy.sparse.random_array((100_000, 200), density=1e-3, rng=3, format="csr")
    stored = x.data.nbytes + x.indices.nbytes + x.indptr.nbytes
    used, found = peak(gn.matrix_norm_bracket, x)
    assert found.converged
    # the scaled copy, its adjoint, and both once more while they are made
    assert used <= 5 * stored + FEW * 200**2 * 8


def test_a_large_sparse_matrix_takes_twenty_vectors():
    n = 400
    one, eye = (
        scipy.sparse.diags_array([-1.0, 2, -1], offsets=[-1, 0, 1], shape=(n, n)),
        scipy.sparse.eye_array(n),
    )
    x = (scipy.sparse.kron(eye, one) + scipy.sparse.kron(one, eye)).tocsr()
    used, found = peak(gn.matrix_norm_bracket, x, rtol=1e-3)
    assert found.converged
    # a copy of the matrix, its moduli, vectors; and batches of entries whose ends are joined
    assert used <= 20 * 8 * n**2 + 15 * 8 * 2**18


def test_a_stack_takes_no_more_than_a_few_stacks():
    a = np.random.default_rng(4).standard_normal((512, 32, 32))
    used, found = peak(gn.matrix_norm_bracket, a)
    assert np.all(found.converged)
    assert used <= 6 * a.nbytes
