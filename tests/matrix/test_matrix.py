"""Matrix bounds: on the right side of sigma_1, as tight as asked, the same at every scale."""

import json
import math

import numpy as np
import pytest
import scipy.linalg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gramnorm as gn
from tests.harness import oracles
from tests.harness.families import (
    DTYPES,
    FAMILIES,
    family_matrices,
    from_spectrum,
    matrices,
    real_dtype,
)

NARROW = {"float64": "float32", "complex128": "complex64"}
DEFAULT_RTOL = {"float32": 1e-4, "float64": 1e-6}
SHAPES = [(1, 1), (1, 6), (6, 1), (5, 3), (4, 7), (6, 6), (12, 12)]
STACK, SIDE = 64, 6  # the one shape that JAX, which compiles for each shape anew, gets to see


def stored_dtype(be, dtype):
    return dtype if be.has_float64 else NARROW.get(dtype, dtype)


def dtype_in_turn(be, dtype):
    """Return the type to test, or skip one that another parameter or backend covers."""
    if dtype in NARROW if not be.has_float64 else be.compiles and dtype == "complex64":
        pytest.skip("covered by another type or backend")
    return dtype


def embedded(be, arrays):
    """Stack matrices of any shapes by adding zero rows and columns, which change no norm."""
    count = STACK if be.compiles else len(arrays)
    m = SIDE if be.compiles else max(a.shape[0] for a in arrays)
    n = SIDE if be.compiles else max(a.shape[1] for a in arrays)
    stack = np.zeros((count, m, n), arrays[0].dtype)
    for i, a in enumerate(arrays):
        stack[i, : a.shape[0], : a.shape[1]] = a
    return stack


def ask(be, host, dtype=None, **options):
    """Return the stored host array, and lower, upper, converged on the host."""
    x = be.asarray(host, dtype or host.dtype.name)
    with np.errstate(all="ignore"):
        bracket = gn.matrix_norm_bracket(x, **options)
    return be.to_numpy(x), *(
        be.to_numpy(v) for v in (bracket.lower, bracket.upper, bracket.converged)
    )


def honest(lower, upper, converged, rtol):
    """Tell whether the flag says what the returned numbers say; subnormals may round that formula."""
    wide = lower.astype(np.longdouble), upper.astype(np.longdouble)
    with np.errstate(all="ignore"):
        right = [converged == (u - low <= rtol * low) for low, u in (wide, (lower, upper))]
    return bool(np.all(right[0] | (right[1] & (upper < 1e-30))))


def check(be, host, rtol=None, dtype=None):
    """Assert everything that holds of every bracket of finite matrices."""
    stored, lower, upper, converged = ask(be, host, dtype, rtol=rtol)
    assert lower.shape == upper.shape == converged.shape == host.shape[:-2]
    assert np.all(lower <= upper)
    found = oracles.check_stack(stored[None] if stored.ndim == 2 else stored, lower, upper)
    assert found.upper_violated == []
    assert found.lower_violated == []
    name = real_dtype(stored.dtype.name)
    asked = DEFAULT_RTOL[name] if rtol is None else rtol
    assert honest(lower, upper, converged, asked)
    return stored, lower, upper, converged, asked


def in_normal_range(stored, upper):
    """Tell where the norm is far from underflow and does not overflow."""
    info = np.finfo(stored.dtype)
    return (upper > 2.0**20 * float(info.smallest_normal)) & np.isfinite(upper)


# ------------------------------------------------------------------------ on the right side


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_family_is_bracketed_and_the_default_gap_reached(be, dtype):
    dtype = dtype_in_turn(be, dtype)
    names = sorted(FAMILIES)
    for seed, (m, n) in enumerate([(SIDE, SIDE)] if be.compiles else SHAPES):
        rng = np.random.default_rng(seed)
        stack = embedded(be, [FAMILIES[name](rng, m, n, dtype) for name in names])
        stored, lower, upper, converged, _ = check(be, stack)
        # Single precision alone promises less: products lose about order^2 times its rounding.
        reached = converged if be.has_float64 else upper / 1.001 <= lower
        missed = in_normal_range(stored, upper) & ~reached
        assert [names[i] for i in np.flatnonzero(missed)] == []
        assert np.all(upper[~stored.any(axis=(-2, -1))] == 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_family_is_bracketed_matrix_by_matrix(be, dtype):
    dtype = dtype_in_turn(be, dtype)
    for seed, (m, n) in enumerate([(SIDE, SIDE)] if be.compiles else SHAPES):
        rng = np.random.default_rng(seed)
        for name in sorted(FAMILIES):
            stored, lower, upper, converged, _ = check(be, FAMILIES[name](rng, m, n, dtype))
            reached = converged if be.has_float64 else upper / 1.001 <= lower
            assert reached or not in_normal_range(stored, upper), (name, m, n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["wide", "family"])
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_drawn_matrices_are_bracketed(be, dtype, kind, data):
    dtype = dtype_in_turn(be, dtype)
    strategy = matrices(dtype) if kind == "wide" else family_matrices(dtype, SIDE)
    arrays = data.draw(st.lists(strategy, min_size=1, max_size=3))
    rtol = data.draw(st.sampled_from([None, 0.3, 1e-3, 1e-9, 1e-13]))
    check(be, embedded(be, arrays), rtol)
    check(be, embedded(be, arrays)[0], rtol)


def test_single_precision_is_never_below_on_200_gaussian_matrices(be):
    stack = np.random.default_rng(0).standard_normal((200, 20, 30)).astype("float32")
    _, _, upper, converged, _ = check(be, stack)
    assert np.all(upper >= np.linalg.svd(stack.astype("float64"), compute_uv=False)[:, 0])
    assert np.all(converged)


@pytest.mark.parametrize("name", ["orthogonal", "top_cluster", "gaussian", "hadamard", "all_equal"])
@pytest.mark.parametrize("shape", [(40, 40), (64, 16), (300, 2), (1, 200)])
def test_larger_matrices_are_bracketed(be, name, shape):
    if be.compiles and shape != (40, 40):
        pytest.skip("a compilation per shape")
    dtype = stored_dtype(be, "float64")
    a = FAMILIES[name](np.random.default_rng(1), *shape, dtype)
    converged = check(be, a[None])[3]
    assert converged.all() or not be.has_float64


# --------------------------------------------------------------------------- as tight as asked


@pytest.mark.parametrize("rtol", [0.1, 1e-3, 1e-9, 1e-12])
def test_the_gap_asked_for_is_reached_in_double_precision(be, rtol):
    dtype = stored_dtype(be, "float64")
    rng = np.random.default_rng(2)
    names = ["gaussian", "rank_one", "hilbert", "geometric_spectrum", "orthogonal", "kahan"]
    stack = embedded(be, [FAMILIES[name](rng, SIDE, SIDE, dtype) for name in names])
    converged = check(be, stack, rtol)[3]
    assert converged.all() or (rtol < 1e-4 and not be.has_float64)


def test_single_precision_input_reaches_its_rounding_where_double_exists(be):
    rng = np.random.default_rng(3)
    names = ["gaussian", "orthogonal", "top_cluster", "rank_one", "jordan"]
    stack = embedded(be, [FAMILIES[name](rng, SIDE, SIDE, "float32") for name in names])
    converged = check(be, stack, 1e-6)[3]
    assert converged.all() or not be.has_float64


def test_a_gap_below_the_rounding_is_not_claimed(be):
    dtype = stored_dtype(be, "float64")
    stack = embedded(be, [FAMILIES["gaussian"](np.random.default_rng(4), SIDE, SIDE, dtype)])
    _, lower, upper, converged, _ = check(be, stack, 1e-18)
    assert not converged[0]
    assert upper[0] / lower[0] - 1 < (1e-12 if be.has_float64 else 1e-4)


def test_the_bound_is_the_upper_end_of_the_bracket(be):
    stack = embedded(be, [np.random.default_rng(5).standard_normal((5, 4))])
    x = be.asarray(stack)
    bound = be.to_numpy(gn.matrix_norm_bound(x))
    assert np.array_equal(bound, be.to_numpy(gn.matrix_norm_bracket(x).upper))
    loose = be.to_numpy(gn.matrix_norm_bound(x, rtol=0.2))
    assert np.all(bound <= loose * (1 + 1e-6))


def spectra(n, dtype):
    """Yield named matrices of order n with their norm, right to a few roundings, or None."""
    rng = np.random.default_rng(6)
    yield "gaussian", rng.standard_normal((n, n)).astype(dtype), None
    yield "orthogonal", np.linalg.qr(rng.standard_normal((n, n)))[0].astype(dtype), None
    u, v = rng.integers(-9, 10, n).astype(float), rng.integers(-9, 10, n).astype(float)
    yield "rank one", np.outer(u, v).astype(dtype), math.sqrt((u @ u) * (v @ v))
    yield (
        "graded",
        (rng.standard_normal((n, n)) * 10.0 ** -np.linspace(0, 12, n)).astype(dtype),
        None,
    )
    flat = np.where(np.arange(n) < n // 3, 1 - 1e-9 * rng.uniform(0, 1, n), 0.5)
    yield "clustered", from_spectrum(rng, n, n, dtype, flat), None


def check_large(be, n, dtype):
    for name, a, known in spectra(n, dtype):
        stored, lower, upper, converged = ask(be, a)
        assert honest(lower, upper, converged, DEFAULT_RTOL[dtype]), name
        assert converged or not be.has_float64, (name, float(upper / lower - 1))
        if known is None:
            value = np.linalg.svd(stored.astype(np.float64), compute_uv=False)[0].astype(
                np.longdouble
            )
            slack = 8 * n * np.finfo(np.float64).eps
        else:
            value, slack = np.longdouble(known), 1e-15
        assert upper >= value * (1 - slack), name
        assert lower <= value * (1 + slack), name


def test_order_100_reaches_the_default_gap(be):
    check_large(be, 100, "float64" if be.has_float64 else "float32")


@pytest.mark.slow
@pytest.mark.parametrize("n", [500, 1000])
def test_orders_500_and_1000_reach_the_default_gap(be, n):
    if be.id not in ("numpy", "cupy", "torch-cuda"):
        pytest.skip("one library on the CPU is enough")
    check_large(be, n, "float64")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_vectors_attain_the_lower_bound(be, dtype):
    dtype = dtype_in_turn(be, dtype)
    rng = np.random.default_rng(11)
    names = ["gaussian", "orthogonal", "rank_one", "graded_gently", "hilbert", "near_overflow"]
    stack = embedded(be, [FAMILIES[name](rng, SIDE, SIDE, dtype) for name in names])
    x = be.asarray(stack)
    with np.errstate(all="ignore"):
        bracket = gn.matrix_norm_bracket(x, vectors=True)
    lower, upper = be.to_numpy(bracket.lower), be.to_numpy(bracket.upper)
    assert oracles.check_stack(stack, lower, upper).clean
    left, right = (be.to_numpy(v) for v in (bracket.left, bracket.right))
    eps = np.finfo(dtype).eps
    e = oracles.exponents(stack)
    scaled = oracles.ldexp_long(stack, -e[..., None, None])
    attained = np.abs(np.einsum("...i,...ij,...j->...", left.conj(), scaled, right))
    for i in range(len(names)):
        for v in (left[i], right[i]):
            assert abs(np.linalg.norm(v) - 1) <= 16 * eps, names[i]
        assert attained[i] >= np.ldexp(lower[i].astype(np.longdouble), -e[i]) * (1 - 64 * eps), i


# ----------------------------------------------------------------------- invariance and stacks


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_by_a_power_of_two_scales_every_bit(be, dtype):
    dtype = dtype_in_turn(be, dtype)
    rng = np.random.default_rng(7)
    single = real_dtype(dtype) == "float32"
    powers = [1, -3, 37, -60, 100, -100] if single else [1, -7, 500, -500, 990, -900]
    a = rng.integers(-999, 1000, (SIDE, SIDE)) / 64
    a = a + 1j * rng.integers(-999, 1000, (SIDE, SIDE)) / 64 if dtype[0] == "c" else a
    # a stack: a single matrix is scaled only where its squares would leave the range
    base = ask(be, embedded(be, [a.astype(dtype)] * 2))
    for k in powers:
        scaled = ask(be, embedded(be, [(a * 2.0**k).astype(dtype)] * 2))
        for before, after in zip(base[1:3], scaled[1:3], strict=True):
            assert after[0] == math.ldexp(1.0, k) * before[0], k
        assert scaled[3][0] == base[3][0]


def test_a_stack_gives_each_matrix_a_bracket_of_its_own(be):
    rng = np.random.default_rng(8)
    names = ["gaussian", "orthogonal", "ones", "zero", "graded_rows", "subnormal"]
    hosts = [FAMILIES[name](rng, 5, 4, stored_dtype(be, "float64")) for name in names]
    stack = np.stack(hosts).reshape(2, 3, 5, 4)
    stored, lower, upper, converged, rtol = check(be, stack)
    for i in np.ndindex(2, 3):
        if be.compiles and i != (0, 0):
            continue
        _, low, up, _, _ = check(be, stored[i])
        assert low <= upper[i]
        assert lower[i] <= up
        if converged[i]:
            assert abs(up - upper[i]) <= 2 * rtol * up


def test_the_adjoint_has_the_same_norm(be):
    rng = np.random.default_rng(9)
    a = rng.standard_normal((SIDE, SIDE)) + 1j * rng.standard_normal((SIDE, SIDE))
    a = a.astype(stored_dtype(be, "complex128"))
    _, lower, upper, _, _ = check(be, embedded(be, [a, a.conj().T, a.T, a.conj()]))
    assert lower[:4].max() <= upper[:4].min()


def test_a_submatrix_is_not_above_the_matrix(be):
    a = np.random.default_rng(10).standard_normal((SIDE, SIDE))
    _, lower, upper, _, _ = check(be, embedded(be, [a, a[:4], a[:, 1:3], a[2:5, ::2]]))
    assert lower[1:4].max() <= upper[0]


# --------------------------------------------------------------------------------- known answers

KNOWN = {
    "shear": ([[1, 0], [1, 2]], 2.288245611270737),
    "triangle": ([[3, 3], [0, 3]], 4.854101966249685),
    "one": ([[1.0]], 1.0),
    "pythagoras": ([[3.0, 4.0]], 5.0),
    "column": ([[3.0], [4.0]], 5.0),
    "complex": ([[1], [1j]], math.sqrt(2)),
    "complex row": ([[3j, 4]], 5.0),
    "nilpotent": ([[0, 7], [0, 0]], 7.0),
    "ones": (np.ones((4, 4)), 4.0),
    "hermitian": ([[2, 1j], [-1j, 2]], 3.0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_answer(be, name):
    entries, answer = KNOWN[name]
    a = np.asarray(entries)
    dtype = stored_dtype(be, "complex128" if a.dtype.kind == "c" else "float64")
    _, lower, upper, converged, rtol = check(be, embedded(be, [a.astype(dtype)]))
    assert converged[0]
    assert abs(upper[0] - answer) <= 1.01 * rtol * answer
    assert abs(lower[0] - answer) <= 1.01 * rtol * answer


def test_the_identity_is_one_within_the_gap_after_few_products(be):
    a = np.eye(50)
    bracket = gn.matrix_norm_bracket(be.asarray(a))
    lower, upper = (float(be.to_numpy(v)) for v in (bracket.lower, bracket.upper))
    assert lower <= 1 <= upper
    assert upper - lower <= (1e-6 if be.has_float64 else 1e-3)
    assert bracket.n_products <= 4


def named(construct):
    """Make a matrix of `special_matrices.json` from its own description."""
    return np.asarray(eval(construct, {"np": np, "scipy": scipy}))


def test_special_matrices(be, shared_data):
    if be.compiles:
        pytest.skip("a compilation per shape")
    for entry in json.loads((shared_data / "special_matrices.json").read_text()):
        a = named(entry["construct"])
        a = a.astype("complex128" if np.iscomplexobj(a) else "float64")
        answer = float(entry["sigma1"])
        if not be.has_float64 and not 1e-30 < answer < 1e30:
            continue
        _, lower, upper, converged = ask(be, a)
        # The reference is for float64 entries; narrowing moves sigma by its rounding.
        slack = 4e-16 if be.has_float64 else 1e-6
        assert lower <= answer * (1 + slack), entry["name"]
        assert upper >= answer * (1 - slack), entry["name"]
        assert converged or not be.has_float64, entry["name"]


def shared_matrices(folder):
    """Yield (name, matrix, sigma_1, its relative error) of the shared data."""
    with np.load(folder / "matrices.npz") as file:
        for entry in json.loads((folder / "matrices.json").read_text())["matrices"]:
            key = entry["key"]
            if entry["sparse"]:
                parts = (file[f"{key}__{part}"] for part in ("data", "indices", "indptr"))
                a = scipy.sparse.csc_array(tuple(parts), shape=entry["shape"]).toarray()
            else:
                a = file[key]
            yield key, a.astype("float64"), entry["sigma1"], entry["rel_err_est"]


def shared_dense_layers(folder):
    """Yield (name, weight, reference) of the dense layers of the shared data."""
    with np.load(folder / "weights.npz") as file:
        for layer in json.loads((folder / "layers.json").read_text())["layers"]:
            if layer["kind"] == "linear":
                yield layer["key"], file[layer["key"]], layer["reference"]


def test_shared_matrices_reach_their_gap(be, shared_data):
    if be.compiles:
        pytest.skip("a compilation per shape")
    for key, a, answer, error in shared_matrices(shared_data):
        _, lower, upper, converged = ask(be, a)
        slack = (1 if be.has_float64 else 1e8) * max(error, 1e-14)
        assert lower <= answer * (1 + slack), key
        assert upper >= answer * (1 - slack), key
        assert converged or not be.has_float64, key


def test_shared_dense_layers_reach_their_gap(be, shared_data):
    if be.compiles:
        pytest.skip("a compilation per shape")
    for key, weight, reference in shared_dense_layers(shared_data):
        _, lower, upper, converged = ask(be, weight)
        assert lower <= reference["sigma1"] * (1 + reference["rel_err_est"]), key
        assert upper >= reference["sigma1"] * (1 - reference["rel_err_est"]), key
        assert converged or not be.has_float64, key
