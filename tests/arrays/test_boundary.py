"""Inputs at the border between libraries, types and sizes, each once a wrong number or a crash."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse

import gramnorm as gn
from gramnorm._arrays import limits, linalg
from gramnorm._rigour import sums


def exact(a):
    return np.linalg.norm(np.asarray(a, dtype=np.float64), 2)


def test_autocast_does_not_reach_the_products():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 8, 8))).float()
    kernel = x.reshape(50, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bracket = gn.matrix_norm_bracket(x)
        conv = gn.conv_norm_bracket(kernel)
    norms = torch.linalg.matrix_norm(x.double(), 2)
    assert torch.all(bracket.upper.double() >= norms)
    assert torch.all(bracket.lower.double() <= norms)
    assert torch.equal(conv.upper, gn.conv_norm_bracket(kernel).upper)


def test_switches_for_reduced_precision_move_the_work_to_float64():
    pytest.importorskip("torch")
    code = """
import torch, gramnorm as gn
torch.backends.cuda.matmul.fp32_precision = "tf32"
for dtype in (torch.float32, torch.float64):
    x = torch.eye(3, dtype=dtype) * 3
    assert 3 <= float(gn.matrix_norm_bound(torch.stack([x, x]))[0]) < 3.001
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("n", "dilation"), [(7, 2**30), (9, 2**31 - 1), (12, 10**9)])
def test_a_dilation_beyond_the_circle_wraps(n, dilation):
    taps = np.asarray([1.0, 1.0, -1.0])
    wrapped = np.zeros(n)
    for k, tap in enumerate(taps):
        wrapped[k * dilation % n] += tap
    norm = np.abs(np.fft.fft(wrapped)).max()
    bracket = gn.conv_norm_bracket(taps[None, None], n, padding_mode="circular", dilation=dilation)
    assert bracket.lower <= norm * (1 + 1e-12)
    assert norm * (1 - 1e-12) <= bracket.upper <= norm * (1 + 2e-3)
    fixed = gn.conv_gram_iteration(taps[None, None], n, steps=0, dilation=dilation)
    assert abs(fixed / norm - 1) < 1e-12


def test_sizes_beyond_31_bits_are_refused():
    with pytest.raises(ValueError, match=r"dilation must be .* below 2\*\*31"):
        gn.conv_norm_bound(np.ones((1, 1, 3)), dilation=2**31)


def test_an_operator_with_too_many_outputs_to_assemble_has_a_valid_bracket(monkeypatch):
    monkeypatch.setattr(limits, "ASSEMBLED_ENTRIES", 10)
    bracket = gn.conv_norm_bracket(np.ones((2, 2, 5)), 50, padding="full")
    exact = 2 * (
        1 + 2 * np.cos(np.arange(1, 3) * np.pi / 55).sum()
    )  # nearly: its largest eigenvalue
    assert 0.99 * exact <= bracket.lower <= bracket.upper <= 10.01


def test_duplicate_blocks_are_counted_entry_by_entry():
    value = 0.9628572886072093
    blocks = np.zeros((7901, 8, 8))
    blocks[:7900, 0, 0] = value
    x = scipy.sparse.bsr_array(
        (blocks, np.zeros(7901, int), np.asarray([0, 7900, 7901])), shape=(16, 8)
    )
    bracket = gn.matrix_norm_bracket(x)
    assert bracket.lower <= 7900 * np.longdouble(value) <= bracket.upper


def test_the_least_integer_of_a_type_has_its_modulus():
    x = scipy.sparse.csr_array(np.asarray([[-128]], dtype=np.int8))
    assert 128 <= gn.matrix_norm_bound(x) < 128.001
    assert 128 <= gn.matrix_norm_bound(x.toarray()) < 128.001


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])
def test_half_precision_matrices_are_bracketed_as_closely_as_others(scale):
    a = (np.random.default_rng(0).standard_normal((300, 300)) * scale).astype(np.float16)
    bracket = gn.matrix_norm_bracket(a)
    norm = exact(a)
    assert bracket.lower <= norm <= bracket.upper
    assert bracket.upper <= norm * (1 + 1e-4)
    assert bracket.converged


def test_complex_subnormals_pass_the_fixed_steps():
    value = gn.gram_iteration(np.full((2, 2), 5e-324 + 0j), steps=3)
    assert 5e-324 <= value <= 2e-323
    assert np.isfinite(gn.conv_gram_iteration(np.full((1, 1, 2), 5e-324j), 4, steps=3))


@pytest.mark.parametrize("rtol", [5e-324, 1e-300, 1e-20, 1.0, 1e300])
def test_any_tolerance_ends_in_a_valid_bracket(rtol):
    a = np.asarray([[3.0, 3.0], [0.0, 3.0]])
    for x in (a, np.stack([a, a])):
        bracket = gn.matrix_norm_bracket(x, rtol=rtol)
        assert np.all(bracket.lower <= 4.854101966249686)
        assert np.all(bracket.upper >= 4.854101966249684)
        assert bracket.n_products < 100
    flat = gn.conv_norm_bracket(np.asarray([[[1.0, -1.0]]]), rtol=rtol)
    assert flat.lower <= 2 <= flat.upper


def test_bytes_in_foreign_order_are_read():
    a = np.random.default_rng(1).standard_normal((4, 3))
    native = gn.matrix_norm_bracket(a)
    foreign = gn.matrix_norm_bracket(a.astype(a.dtype.newbyteorder()))
    assert foreign.upper == native.upper


def test_sparse_tensors_are_refused_by_name_where_dense_ones_are_needed():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="to_dense"):
        gn.gram_iteration(torch.eye(3).to_sparse(), steps=1)


def test_the_cost_of_a_circle_does_not_grow_with_it():
    kernel = np.random.default_rng(0).standard_normal((8, 8, 3, 3))
    costs = []
    for n in (64, 224, 1024, 10**6):
        bracket = gn.conv_norm_bracket(kernel, (n, n), padding_mode="circular")
        assert bracket.converged
        costs.append(bracket.n_products)
    assert max(costs) <= 1.5 * min(costs)


def orthogonal_convolution(rng, channels, taps):
    """Return a kernel whose symbol is orthogonal: a product of (I - P) + P z along each axis."""
    kernel = np.linalg.qr(rng.standard_normal((channels, channels)))[0][:, :, None, None]
    for axis in (2, 3):
        for _ in range(taps - 1):
            u = np.linalg.qr(rng.standard_normal((channels, channels)))[0][:, : channels // 2]
            stay = np.einsum("ij,jkab->ikab", np.eye(channels) - u @ u.T, kernel)
            move = np.einsum("ij,jkab->ikab", u @ u.T, kernel)
            zero = np.zeros_like(np.take(kernel, [0], axis=axis))
            kernel = np.concatenate([stay, zero], axis) + np.concatenate([zero, move], axis)
    return kernel


@pytest.mark.parametrize("taps", [2, 3, 7])
def test_a_flat_symbol_is_settled_by_its_autocorrelation(taps):
    kernel = orthogonal_convolution(np.random.default_rng(0), 6, taps)
    for k in (kernel, kernel[:2], kernel[:, :2]):
        bracket = gn.conv_norm_bracket(k, rtol=1e-9)
        assert bracket.lower <= 1 + 1e-13
        assert 1 - 1e-13 <= bracket.upper <= 1 + 1e-9
        assert bracket.converged


def test_a_kernel_of_many_axes_has_a_valid_bracket():
    """The first cover of the torus is over the budget, and so are all frequencies of 0 and pi."""
    kernel = np.random.default_rng(5).standard_normal((1, 1, *(2,) * 8))
    bracket = gn.conv_norm_bracket(kernel)
    angles = np.stack(np.meshgrid(*[(0, 1)] * 8, indexing="ij"), axis=-1).reshape(-1, 8)
    norm = np.abs((-1.0) ** (angles @ angles.T) @ kernel.reshape(-1)).max()
    assert bracket.lower <= np.abs(kernel).sum() * (1 + 1e-12)
    assert norm * (1 - 1e-12) <= bracket.upper
    # frequency 0 is looked at, in the precision that the gap asked for needs
    assert abs(kernel.sum()) * (1 - 1e-3) <= bracket.lower


def test_a_spent_budget_leaves_a_valid_bracket(monkeypatch):
    kernel = np.random.default_rng(3).standard_normal((3, 3, 5, 5))
    reference = gn.conv_norm_bracket(kernel, rtol=1e-6)
    monkeypatch.setattr(limits, "SEARCH_EVALUATIONS", (100, 200))
    short = gn.conv_norm_bracket(kernel, rtol=1e-6)
    assert short.lower <= reference.upper
    assert reference.lower <= short.upper
    assert not short.converged


def test_jax_is_asked_for_full_precision_in_every_product():
    """On GPUs its default rounds the factors of a product, and of an inner product, to 11 bits."""
    jax = pytest.importorskip("jax")

    def products(a):
        squares = sums.inner_product(a, a)
        return squares, linalg.gram_matrix(a), linalg.vecdot(a, a)

    found = str(jax.make_jaxpr(products)(np.ones((2, 3, 3), np.float32)))
    assert found.count("dot_general") == 3
    assert found.count("HIGHEST") == 2 * 3  # one for each factor
