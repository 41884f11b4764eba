"""LAPACK's eigensolvers may fail to converge: bounds and vectors do without them."""

import numpy as np
import pytest
import scipy.sparse

import gramnorm as gn
from gramnorm._matrix import lanczos
from tests.harness import oracles


@pytest.fixture(params=["all", "large"])
def without_eigensolver(request, monkeypatch):
    """Let the eigensolver fail for all matrices, or for those that are no Ritz matrices of a few steps."""
    eigh = np.linalg.eigh

    def fails(a):
        if request.param == "all" or len(a) > 40:
            msg = "Eigenvalues did not converge"
            raise np.linalg.LinAlgError(msg)
        return eigh(a)

    monkeypatch.setattr(np.linalg, "eigh", fails)


def matrices(dtype):
    """Yield matrices with an ordinary, a flat and a clustered spectrum, below and above all limits of size."""
    for shape in ((30, 24), (130, 100), (230, 210)):
        rng = np.random.default_rng(shape)
        a = rng.standard_normal(shape)
        if np.dtype(dtype).kind == "c":
            a = a + 1j * rng.standard_normal(shape)
        q = np.linalg.qr(a)[0]
        for b in (a, q, q * (1 - 1e-7 * rng.uniform(size=shape[1]))):
            yield b.astype(dtype)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_dense_matrices_are_bracketed(be, dtype, without_eigensolver):
    for a in matrices(dtype):
        x = be.asarray(a)
        found = gn.matrix_norm_bracket(x, vectors=True)
        lower, upper = (be.to_numpy(v) for v in (found.lower, found.upper))
        stored = be.to_numpy(x)  # in single precision where there is no other
        assert oracles.check_stack(stored[None], lower, upper).clean
        if be.has_float64:  # else rounding alone may leave a wider gap
            assert found.converged
        left, right = (be.to_numpy(v) for v in (found.left, found.right))
        assert abs(np.vdot(left, stored @ right)) >= lower * (1 - 2e-4)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_sparse_matrices_are_bracketed(dtype, without_eigensolver):
    for a in matrices(dtype):
        for x in (scipy.sparse.csr_array(a), scipy.sparse.coo_array(a).T):
            found = gn.matrix_norm_bracket(x, vectors=True)
            assert oracles.check_stack(a[None], found.lower, found.upper).clean
            assert found.converged
            assert abs(np.vdot(found.left, x @ found.right)) >= found.lower * (1 - 2e-4)


def test_gradients_are_those_of_the_norm(without_eigensolver):
    for a in matrices("float64"):
        _, gradient = gn.matrix_norm_value_and_grad(a)
        pairing = float(np.sum(gradient * a))
        norm = oracles.sigma(a)
        assert pairing == pytest.approx(norm, rel=2e-6)
        # a subgradient is of trace norm at most 1
        assert np.linalg.norm(gradient, "nuc") <= 1 + 2e-6


def test_operators_are_bounded_from_below(without_eigensolver):
    a = np.random.default_rng(0).standard_normal((90, 60))
    value = gn.operator_norm_lower_bound(scipy.sparse.linalg.aslinearoperator(a))
    assert oracles.sigma(a) * (1 - 1e-5) <= value <= oracles.sigma(a)


@pytest.mark.parametrize("value", [0.0, 1e-200, np.nan, np.inf])
def test_a_matrix_of_one_number_has_a_vector(value, without_eigensolver):
    h = np.full((50, 50), value)
    with np.errstate(invalid="ignore"):
        top, vector = lanczos.top_eigenpair(h)
    if np.isfinite(value):
        assert np.linalg.norm(vector) == pytest.approx(1)
        assert top == pytest.approx(50 * value)
    else:
        assert np.all(np.isnan(vector))
