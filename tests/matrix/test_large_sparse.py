"""Large sparse matrices: both sides by products with vectors, by parts, and by windows of the Gram matrix."""

import itertools
import math
from unittest import mock

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import gramnorm as gn
from gramnorm._arrays import limits, linalg
from gramnorm._matrix import large_sparse, non_negative, signs, windows
from tests.harness import made_sparse, oracles, soundness

pytestmark = pytest.mark.no_backend


def difference(n):
    """Return forward differences of n samples, with zero beyond the last."""
    return sp.diags_array([-np.ones(n), np.ones(n - 1)], offsets=[0, 1], shape=(n, n))


def second_difference(n):
    return sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(n, n))


def laplacian(n):
    one, eye = second_difference(n), sp.eye_array(n)
    return sp.kron(eye, one) + sp.kron(one, eye)


def gradient(n):
    return sp.vstack(
        [sp.kron(sp.eye_array(n), difference(n)), sp.kron(difference(n), sp.eye_array(n))]
    )


def random_signs(rng, size):
    return rng.choice([-1.0, 1.0], size)


def random(shape, density, seed, sampler=None):
    rng = np.random.default_rng(seed)
    x = sp.random_array(shape, density=density, rng=rng, format="csr")
    values = x.data if sampler is None else sampler(rng, x.nnz)
    return sp.csr_array((values, x.indices, x.indptr), shape=shape)


def holds(found, norm, rtol=1e-6, error=1e-13):
    """Assert that a bracket is on both sides of a norm known to a relative error, and converged."""
    assert found.lower <= norm * (1 + error)
    assert found.upper >= norm * (1 - error)
    assert found.converged
    assert found.upper - found.lower <= rtol * found.lower


# ------------------------------------------------------------------ norms in closed form, any size


@pytest.mark.parametrize("n", [70, 200])
def test_a_laplacian_on_a_grid_has_its_norm(n):
    holds(gn.matrix_norm_bracket(laplacian(n)), 8 * math.cos(math.pi / (2 * (n + 1))) ** 2)


def test_a_path_with_many_nodes_has_its_norm():
    n = 5000
    x = second_difference(n)
    norm = 4 * math.cos(math.pi / (2 * (n + 1))) ** 2
    for y in (x, x.T.tocsc(), x * np.float32(1), sp.csr_matrix(x), x.tocoo()):
        found = gn.matrix_norm_bracket(y, rtol=1e-4)
        holds(found, norm, 1e-4)


def test_a_gradient_on_a_grid_has_its_norm():
    n = 80
    norm = math.sqrt(8) * math.cos(math.pi / (2 * n + 1))  # of differences with zero beyond
    found = gn.matrix_norm_bracket(gradient(n))
    holds(found, norm)


def test_a_million_unknowns_at_a_modest_gap():
    n = 1000
    found = gn.matrix_norm_bound(laplacian(n).tocsr(), rtol=1e-3)
    norm = 8 * math.cos(math.pi / (2 * (n + 1))) ** 2
    assert norm <= found <= norm * (1 + 1e-3)


def test_an_identity_and_a_permutation_are_met_exactly():
    rng = np.random.default_rng(0)
    for x in (sp.eye_array(6000), sp.eye_array(6000, format="csr")[rng.permutation(6000)] * -3.0):
        norm = abs(x.tocsr()).max()
        found = gn.matrix_norm_bracket(x)
        assert found.lower <= norm <= found.upper <= norm * (1 + 1e-12)


# ---------------------------------------------------------------------------- other structures


def compared(x, rtol=1e-6):
    """Compare a bracket of a large matrix with the norm by a dense solver, or ARPACK's from below."""
    found = gn.matrix_norm_bracket(x, rtol=rtol)
    if min(x.shape) <= 1000:
        norm, error = np.linalg.norm(x.toarray(), 2), 1e-12
        holds(found, norm, rtol, error)
    else:
        below = sp.linalg.svds(x, k=1, return_singular_vectors=False, rng=0)[0]
        assert found.upper >= below * (1 - 1e-12)
        assert found.lower <= below * (1 + 1e-9)
        assert found.converged
    return found


LARGE = {
    "non-negative": lambda: random((6000, 5000), 4e-4, 1),
    "normal": lambda: random((20000, 20000), 1e-4, 3, lambda rng, size: rng.standard_normal(size)),
    "heavy tails": lambda: random((9000, 9000), 2e-4, 4, lambda rng, size: rng.standard_t(1.5, size)),
    "signs, dense Gram matrix": lambda: random((900, 700), 2e-2, 5, random_signs),
    "complex phases": lambda: random((800, 900), 1e-2, 6, lambda rng, size: np.exp(6j * rng.uniform(size=size))),
    "blocks": lambda: sp.block_diag([random((300, 280), 0.02, k, random_signs) for k in range(8)]),
    "small blocks": lambda: sp.block_diag([random((5, 6), 0.5, k, random_signs) for k in range(600)]),
    "banded, not balanced": lambda: sp.diags_array(
        [np.random.default_rng(8).choice([-1.0, 1.0], 6000) for _ in range(5)],
        offsets=[-7, -1, 0, 2, 5], shape=(6000, 6000),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_large_matrices_are_bracketed(name):
    x = LARGE[name]()
    rng = np.random.default_rng(1)
    compared(x)
    compared(x.tocsr()[rng.permutation(x.shape[0])][:, rng.permutation(x.shape[1])].T)


def test_phases_of_a_gauge_change_no_norm():
    """A Laplacian with complex phases that a change of bases takes away: as tight as without."""
    n = 60
    x = laplacian(n).tocoo()
    s, t = np.exp(7j * np.random.default_rng(0).uniform(size=(2, n * n)))
    twisted = sp.coo_array((s[x.row] * x.data * t[x.col], (x.row, x.col)), shape=x.shape)
    holds(gn.matrix_norm_bracket(twisted), 8 * math.cos(math.pi / (2 * (n + 1))) ** 2)


def haar(n):
    """Return the orthogonal Haar transform of n samples, a power of two."""
    if n == 1:
        return sp.eye_array(1)
    half = haar(n // 2)
    top = sp.kron(half, np.asarray([[1.0, 1.0]]))
    return sp.vstack([top, sp.kron(sp.eye_array(n // 2), np.asarray([[1.0, -1.0]]))]) / math.sqrt(2)


def test_orthogonal_rows_are_seen_by_the_moduli_of_the_gram_matrix():
    x = haar(8192).tocsr()
    with mock.patch.object(windows, "_by_factor", side_effect=AssertionError):
        holds(gn.matrix_norm_bracket(x), 1.0, error=1e-12)


def test_what_is_too_dear_has_an_honest_bracket():
    x = random((30000, 30000), 2e-4, 9, random_signs)
    found = gn.matrix_norm_bracket(x)
    below = sp.linalg.svds(x, k=1, return_singular_vectors=False, rng=0)[0]
    assert not found.converged
    assert found.lower <= below * (1 + 1e-9)
    assert below * (1 - 1e-6) <= found.lower
    assert below < found.upper < 3 * below


@pytest.mark.parametrize(("value", "answer"), [(math.nan, math.nan), (-math.inf, math.inf)])
def test_special_values_are_passed_on(value, answer):
    x = laplacian(70).tocsr()
    x.data[17] = value
    found = gn.matrix_norm_bracket(x)
    assert np.array_equal(found.upper, answer, equal_nan=True)


def test_scales_and_empty_parts_change_nothing():
    x = random((3000, 2500), 1e-3, 2, random_signs)
    base = gn.matrix_norm_bracket(x)
    for k in (-1000, -300, 900):
        found = gn.matrix_norm_bracket(x * 2.0**k)
        assert found.lower == np.ldexp(base.lower, k)
        assert found.upper == np.ldexp(base.upper, k)
    padded = sp.block_diag([sp.csr_array((500, 700)), x, sp.csr_array((3, 0))])
    holds(gn.matrix_norm_bracket(padded), float(base.lower), error=2e-6)


def test_the_same_matrix_gives_the_same_bits():
    x = random((3000, 2500), 1e-3, 2, random_signs)
    first, second = gn.matrix_norm_bracket(x), gn.matrix_norm_bracket(x.copy())
    assert (first.lower, first.upper) == (second.lower, second.upper)


@pytest.mark.parametrize("name", ["non-negative", "normal", "blocks", "complex phases"])
def test_vectors_attain_the_lower_bound(name):
    x = LARGE[name]()
    found = gn.matrix_norm_bracket(x, vectors=True)
    for vector in (found.left, found.right):
        assert abs(np.linalg.norm(vector) - 1) < 1e-14
    assert abs(np.vdot(found.left, x @ found.right)) >= found.lower * (1 - 1e-6)


# --------------------------------------------------------------- pieces against plain references


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("units", [1, 5, 10**5])
def test_subnormal_entries_have_phases(dtype, units):
    """Their moduli have inverses beyond the largest number."""
    least = float(np.finfo(dtype).smallest_subnormal) * units
    column = np.asarray([[least * (3 - 4j)], [-7 - 1j], [-4j * least], [8 + 8j]], dtype) / 16
    found = signs.parts(sp.csr_array(column))
    assert abs(found.phases[0]) == pytest.approx(1, rel=1e-6)
    x = sp.block_diag([sp.csr_array(column), sp.csr_array(np.eye(2, dtype=dtype) / 4)])
    with mock.patch.multiple(limits, SMALL_SIDE=0, STACKED=1, FIRST_STEPS=1):
        bracket = gn.matrix_norm_bracket(x, rtol=1e-5, vectors=True)
    attained = abs(np.vdot(bracket.left, x @ bracket.right))
    assert attained == pytest.approx(np.linalg.norm(column), rel=1e-5)
    assert bracket.converged


@pytest.mark.parametrize("rtol", [1e-11, 1e-6])
def test_vectors_attain_the_bound_where_less_is_asked_than_rounding_leaves(rtol):
    x = np.asarray([[-5e-3 - 6e-3j, 0], [1.5e5 + 1.7e5j, 1.2e5 + 5e4j], [6 + 16j, 1.6 + 3.5j]])
    x = sp.csr_array(x.astype("complex64"))
    with mock.patch.multiple(limits, SMALL_SIDE=0, STACKED=1, FIRST_STEPS=1):
        found = gn.matrix_norm_bracket(x, rtol=rtol, vectors=True)
    assert abs(np.vdot(found.left, x @ found.right)) >= found.lower * (1 - 1e-6)


def test_vectors_attain_what_is_below_the_phases_that_are_seen():
    """Entries of other signs that change the norm by 1e-10 of itself, and 1e-14 is asked for."""
    x = np.asarray([[-3e-3, 0, -1e-8, -1, -4e-7], [0, -2.5e-3, 0, -0.37, 5e-5]])
    x = sp.csr_array(np.concatenate([x, [[7e-6, 9e-3, -5e-4, 1.3e-7, -3.7e-4]]]))
    steps = {"LONG_LANCZOS_STEPS": 400, "BASIS": 2**10}
    with mock.patch.multiple(limits, SMALL_SIDE=0, STACKED=1, FIRST_STEPS=2, **steps):
        found = gn.matrix_norm_bracket(x, rtol=1e-14, vectors=True)
    assert abs(found.left @ (x @ found.right)) >= found.lower * (1 - 2e-14)


def test_parts_are_those_of_scipy_and_phases_undo_balanced_signs():
    rng = np.random.default_rng(0)
    balanced = 0
    for _ in range(400):
        m, n = rng.integers(1, 25, 2)
        x = sp.random_array((m, n), density=rng.uniform(0, 0.3), rng=rng, format="csr")
        s, t = np.exp(7j * rng.uniform(size=m)), np.exp(7j * rng.uniform(size=n))
        twisted = sp.csr_array(s[:, None] * x.toarray() * t)
        with mock.patch.object(limits, "BATCH", int(rng.integers(1, 30))):
            found = signs.parts(twisted)
        both = np.concatenate([found.rows, found.columns])
        count, labels = connected_components(
            sp.block_array([[None, x], [x.T, None]]), directed=False
        )
        assert len(set(zip(labels.tolist(), both.tolist(), strict=True))) == count == both.max() + 1
        w = rng.uniform(size=n)
        assert np.allclose(np.abs(twisted @ (found.phases * w)), x @ w)
        balanced += x.nnz > m + n
    assert balanced > 50


def test_the_window_proves_what_a_dense_factorisation_proves():
    for seed, block, kind in itertools.product(range(12), (1, 2, 5, 64), "fc"):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 40))
        offsets = rng.permutation(np.arange(-6, 7))[:3]
        b = sp.diags_array([rng.standard_normal(n) for _ in offsets], offsets=offsets, shape=(n, n))
        b = b.tocsr() * (1 + 0.5j if kind == "c" else 1.0)
        gram = (b.conj().T @ b).tocsr()
        top = np.linalg.eigvalsh(gram.toarray())[-1]
        with mock.patch.object(limits, "WINDOW_BLOCK", block):
            window = windows.Window.of(gram)
            above = windows.eigenvalue_bound(windows.SparseRows(gram), window, top * (1 + 1e-9))
            below = windows.eigenvalue_bound(windows.SparseRows(gram), window, top * (1 - 1e-3))
        assert top <= above <= top * (1 + 2e-9) + 1e-300
        assert below > top * (1 - 1e-12)  # no proof of what is false


@pytest.mark.parametrize("n", [3, 400])
def test_a_long_lanczos_iteration_finds_the_top_with_any_memory(n):
    from gramnorm._matrix import lanczos  # noqa: PLC0415

    d = np.linspace(0, 1, n) ** 2
    start = np.ones(n)
    found = [
        lanczos.long_ritz_vector(lambda q: d * q, start, rtol=1e-12, steps=300, kept=kept)
        for kept in (0, 1, 2, 7, 1000)
    ]
    for x in found:
        assert abs(np.linalg.norm(x) - 1) < 1e-12
        assert np.sum(d * x * x) >= 1 - 1e-12
        assert np.array_equal(np.sign(x), np.sign(found[0])) or np.allclose(x, found[0])


# --------------------------------------------------------------------------------- small and low


def survey(count=500):
    """Take small matrices the ways of large ones."""
    report = soundness.Report()
    for k in range(count // 10):
        report.add(soundness.SparseTask((9, k), 10, large=k + 1).run())
    return report


def test_no_violation_when_small_matrices_go_the_ways_of_large_ones():
    report = survey()
    assert report.failures == []
    assert report.violations == 0
    assert report.total("tried") == 500


def without_signs(monkeypatch):
    """Take the norm of the moduli for that of the matrix."""
    monkeypatch.setattr(large_sparse, "lower_bound", lambda *args: args[2] * (1 - 1e-9))


def without_a_part(monkeypatch):
    largest = large_sparse._largest
    monkeypatch.setattr(large_sparse, "_largest", lambda v, k, c: largest(v * (k != c // 2), k, c))


def with_zeros_in_w(monkeypatch):
    images = non_negative.NonNegative.images
    at_zero = lambda self, w: images(self, np.where(w < 0.5 * np.max(w), 0.0, w))  # noqa: E731
    monkeypatch.setattr(non_negative.NonNegative, "images", at_zero)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", [without_signs, without_a_part, with_zeros_in_w])
def test_a_mutation_is_found(monkeypatch, mutation):
    mutation(monkeypatch)
    assert survey(1500).violations > 0


def test_a_factor_that_is_not_checked_is_found(monkeypatch):
    """The margin of the residual: without it the window accepts a level below the norm."""
    x = made_sparse.first(np.random.default_rng(0), "float64", (8, 8)).tocsr()
    b = sp.csr_array(x.toarray() + np.eye(8))
    gram = (b.T @ b).tocsr()
    top = np.linalg.eigvalsh(gram.toarray())[-1]
    wrong = lambda column: np.asarray(np.linalg.qr(column)[0])  # noqa: E731
    monkeypatch.setattr(windows, "_panel", wrong)
    window = windows.Window.of(gram)
    assert windows.eigenvalue_bound(windows.SparseRows(gram), window, top / 2) >= top * (1 - 1e-12)
    monkeypatch.setattr(linalg, "square_sum", lambda _: 0.0)
    assert windows.eigenvalue_bound(windows.SparseRows(gram), window, top / 2) < top


def test_the_rounding_of_moduli_is_needed_at_a_tight_bound():
    """A row of ones and their last bits: the computed quotient falls below the norm, the bound does not."""
    rng = np.random.default_rng(3)
    below = 0
    for _ in range(200):
        b = sp.csr_array(rng.uniform(0.5, 1.5, (1, 60)))
        m = non_negative.moduli(b)
        w = np.abs(b.toarray()[0])
        _, z = m.images(w)
        exact = oracles.Exact(b.toarray())
        assert exact.compare(m.upper(w, z)) in (0, 1)
        below += exact.compare(float(np.sqrt(np.max(z / w)))) == -1
    assert below > 20


def test_the_rounding_of_images_is_needed_at_a_tight_bound():
    rng = np.random.default_rng(4)
    above = 0
    for _ in range(200):
        b = sp.csr_array(rng.standard_normal((1, 60)))
        x = b.toarray()[0]
        exact = oracles.Exact(b.toarray())
        upper = 2 * float(np.linalg.norm(x))
        assert exact.compare(large_sparse.lower_bound(b, x, upper)) in (-1, 0)
        above += exact.compare(float(np.linalg.norm(b @ x) / np.linalg.norm(x))) == 1
    assert above > 20


# ------------------------------------------------------------------------------------- operators


@pytest.mark.parametrize("shape", [(1, 1), (60, 40), (40, 60), (1, 300), (300, 1)])
def test_an_operator_without_negative_entries_is_bracketed(shape):
    for seed in range(10):
        a = np.random.default_rng(seed).uniform(size=shape) ** 4
        found = gn.operator_norm_bracket(aslinearoperator(a), nonnegative=True)
        holds(found, np.linalg.norm(a, 2), error=1e-14 * max(shape))
        assert found.lower.dtype == found.upper.dtype == np.float64


def test_an_operator_of_any_scale_is_bracketed():
    a = np.random.default_rng(0).uniform(size=(30, 20))
    norm = np.linalg.norm(a, 2)
    for scale in (2.0**-900, 2.0**-300, 2.0**300, 2.0**900):
        found = gn.operator_norm_bracket(aslinearoperator(a * scale), nonnegative=True)
        assert found.lower / scale <= norm * (1 + 1e-14)
        assert norm * (1 - 1e-14) <= found.upper / scale <= norm * (1 + 1e-6)


def test_a_blur_and_a_float32_operator_are_bracketed():
    profile = np.asarray([0.1, 0.2, 0.4, 0.2, 0.1])
    n = 300
    blur = LinearOperator(
        (n, n),
        matvec=lambda x: np.convolve(np.ravel(x), profile, "same"),
        rmatvec=lambda y: np.convolve(np.ravel(y), profile, "same"),
        dtype=float,
    )
    matrix = sp.diags_array(list(profile), offsets=[-2, -1, 0, 1, 2], shape=(n, n)).toarray()
    holds(
        gn.operator_norm_bracket(blur, nonnegative=True, rtol=1e-4), np.linalg.norm(matrix, 2), 1e-4
    )
    a = np.random.default_rng(0).uniform(size=(50, 30)).astype("float32")
    found = gn.operator_norm_bracket(aslinearoperator(a), nonnegative=True, rtol=1e-3)
    holds(found, np.linalg.norm(a.astype(float), 2), 1e-3, error=1e-6)


def test_zero_and_empty_operators_have_norm_zero():
    for shape, given in itertools.product(((3, 4), (1, 1), (0, 3), (3, 0)), (True, False)):
        found = gn.operator_norm_bracket(aslinearoperator(np.zeros(shape)), nonnegative=given)
        assert found.lower == 0
        assert found.upper == 0 or not given


def test_without_the_statement_there_is_no_upper_bound():
    found = gn.operator_norm_bracket(aslinearoperator(np.eye(3)))
    assert 1 - 1e-6 <= found.lower <= 1
    assert found.upper == math.inf
    assert not found.converged


@pytest.mark.parametrize("a", [-np.eye(3), 1j * np.eye(3), np.eye(3) - 0.5, np.diff(np.eye(9))])
def test_a_statement_that_is_seen_to_be_wrong_is_an_error(a):
    with pytest.raises(ValueError, match="nonnegative=False"):
        gn.operator_norm_bracket(aslinearoperator(a), nonnegative=True)


def test_an_adjoint_that_is_none_is_an_error():
    a = np.triu(np.ones((5, 5))) @ np.diag([1.0, 2, 3, 4, 50])
    wrong = LinearOperator((5, 5), matvec=lambda x: a @ x, rmatvec=lambda y: a @ y, dtype=float)
    with pytest.raises(ValueError, match="adjoint"):
        gn.operator_norm_bracket(wrong, nonnegative=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_products_that_are_not_finite_are_an_error(value):
    a = np.full((2, 2), value)
    with pytest.raises(ValueError, match="finite"):
        gn.operator_norm_bracket(aslinearoperator(a), nonnegative=True)
    with pytest.raises(TypeError, match="matvec"):
        gn.operator_norm_bracket(np.eye(3), nonnegative=True)


# ------------------------------------------------------------- dense matrices with signs of rank one


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_dense_matrix_with_signs_of_rank_one_takes_products_with_vectors(dtype):
    rng = np.random.default_rng(0)
    moduli = rng.uniform(size=(430, 400)) * (rng.uniform(size=(430, 400)) < 0.9)
    s, t = rng.choice([-1, 1], 430), rng.choice([-1, 1], 400)
    signed = s[:, None] * (moduli + 0.1) * t
    for a in (moduli, moduli.T, signed, signed.T, np.ones((300, 500))):
        x = a.astype(dtype)
        with mock.patch.object(linalg, "gram_matrix", side_effect=AssertionError):
            found = gn.matrix_norm_bracket(x)
        holds(
            found, np.linalg.norm(x.astype(float), 2), 1e-4 if dtype == "float32" else 1e-6, 1e-12
        )
        assert found.n_products <= limits.DENSE_STEPS


def test_other_signs_are_not_taken_for_them():
    """The first rows agree, another one does not; nor does one entry."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a = rng.uniform(0.5, 1, (300, 280))
        a[rng.integers(8, 300)] *= rng.choice([-1, 1], 280)
        a[rng.integers(0, 300), rng.integers(0, 280)] *= -50
        holds(gn.matrix_norm_bracket(a), np.linalg.norm(a, 2), error=1e-12)


# ---------------------------------------------------------------------------------- other libraries


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_tensors_of_pytorch_are_bracketed():
    torch = pytest.importorskip("torch")
    a = random((8, 6), 0.5, 0, lambda rng, size: rng.standard_normal(size)).toarray()
    t = torch.tensor(a)
    for x in (t.to_sparse(), t.to_sparse_csr(), t.to_sparse_csc(), (t.T + 2j * t.T).to_sparse()):
        found = gn.matrix_norm_bracket(x, vectors=True)
        assert all(type(v) is torch.Tensor for v in (found.lower, found.upper, found.left))
        norm = np.linalg.norm(x.to_dense().numpy(), 2)
        holds(found, norm)
        assert abs(torch.vdot(found.left, x.to_dense() @ found.right)) >= norm * (1 - 1e-6)
    twice = torch.sparse_coo_tensor(
        [[0, 0, 1], [1, 1, 0]], [1.0, 2.0, 1.0], (2, 3), check_invariants=True
    )
    assert 3 <= gn.matrix_norm_bound(twice) <= 3.001
    half = t.to(torch.bfloat16).to_sparse()
    assert gn.matrix_norm_bound(half).dtype == torch.float32
    with pytest.raises(ValueError, match="shape"):
        gn.matrix_norm_bound(t.expand(2, 8, 6).to_sparse())


def test_sparse_arrays_of_jax_are_bracketed():
    jax = pytest.importorskip("jax")
    from jax.experimental import sparse  # noqa: PLC0415

    a = jax.numpy.asarray(random((8, 6), 0.5, 0).toarray())
    norm = np.linalg.norm(np.asarray(a, dtype=float), 2)
    for x in (sparse.BCOO.fromdense(a), sparse.BCOO.fromdense(a, nse=40), sparse.BCSR.fromdense(a)):
        found = gn.matrix_norm_bracket(x)
        assert isinstance(found.upper, jax.Array)
        assert found.lower * (1 - 1e-6) <= norm <= found.upper
        assert found.converged
    with pytest.raises(TypeError, match="values"):
        jax.jit(gn.matrix_norm_bound)(sparse.BCOO.fromdense(a))


# ---------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("shape", [(9, 7), (700, 800)])
@pytest.mark.parametrize("kind", ["f", "c"])
def test_the_gradient_by_stored_entries_is_that_of_the_dense_matrix(shape, kind):
    x = random(
        shape, 0.4 if shape[0] < 10 else 0.01, 3, lambda rng, size: rng.standard_normal(size)
    )
    x = x * (1.0 if kind == "f" else 1 + 2j)
    for y in (x, x.tocsc(), x.tocoo(), x.tolil()):
        value, found = gn.matrix_norm_value_and_grad(y)
        u, s, vh = np.linalg.svd(x.toarray())
        assert s[0] <= value <= s[0] * (1 + 1e-6)
        expected = np.outer(u[:, 0], vh[0]) * (x.toarray() != 0)
        assert np.allclose(found.toarray(), expected, atol=2e-3)
        entries = y.tocoo()
        assert np.array_equal(found.row, entries.row)
        assert np.array_equal(found.col, entries.col)
        assert abs(np.sum(np.real(np.conj(found.data) * entries.data)) - value) < 1e-12 * value


def test_gradients_of_zero_and_of_what_is_not_finite():
    x = sp.csr_array(np.eye(3))
    assert np.all(gn.matrix_norm_value_and_grad(x * 0.0)[1].data == 0)
    x.data[1] = math.inf
    assert np.all(np.isnan(gn.matrix_norm_value_and_grad(x)[1].data))
