"""Rescaled matrices and kernels: never a norm above 1, the values of the formula, gradients."""

import functools
import importlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gramnorm as gn
from gramnorm import _rescaling
from gramnorm._rescaling import conv_spectral_rescaling, spectral_rescaling
from tests.harness import oracles
from tests.harness.families import DTYPES, FAMILIES, KERNELS, family_matrices, matrices

NARROW = {"float64": "float32", "complex128": "complex64"}
GEOMETRIES = [
    {"shape": (3, 2, 5), "stride": 1, "dilation": 1, "groups": 1},
    {"shape": (3, 2, 4), "stride": 2, "dilation": 1, "groups": 1},
    {"shape": (2, 2, 5), "stride": 4, "dilation": 2, "groups": 1},
    {"shape": (4, 1, 3, 2), "stride": 1, "dilation": (2, 1), "groups": 2},
    {"shape": (3, 2, 4, 3), "stride": (2, 3), "dilation": (1, 2), "groups": 1},
    {"shape": (3, 2, 1, 1), "stride": 2, "dilation": 1, "groups": 1},
    {"shape": (2, 1, 2, 2, 2), "stride": (1, 1, 2), "dilation": 1, "groups": 1},
]


def stored_dtype(be, dtype):
    return dtype if be.has_float64 else NARROW.get(dtype, dtype)


def is_contraction(a):
    return oracles.check_upper(a, 1.0) is oracles.Verdict.HOLDS


def random_kernel(seed, shape, dtype="float64"):
    rng = np.random.default_rng(seed)
    parts = rng.standard_normal((2, *shape))
    return (parts[0] + 1j * parts[1] if np.dtype(dtype).kind == "c" else parts[0]).astype(dtype)


@functools.cache
def jitted(function, **given_options):
    """Return the function compiled as a whole: one operation at a time, JAX takes seconds per shape."""
    jax = importlib.import_module("jax")
    return jax.jit(functools.partial(function, **given_options))


def rescaled(be, x, *, conv=False, **given_options):
    """Return the rescaled matrices or kernel, under jit where the library is JAX."""
    function = conv_spectral_rescaling if conv else spectral_rescaling
    if be.id.startswith("jax"):
        return jitted(function, **given_options)(x)
    return function(x, **given_options)


def skip_on_jax(be):
    if be.id.startswith("jax"):
        pytest.skip("a compilation per shape and option")


def options(geometry):
    return {k: v for k, v in geometry.items() if k != "shape"}


# --------------------------------------------------------------------------- never above 1


@pytest.mark.parametrize(("dtype", "steps"), [("float64", 1), ("complex64", 3)])
def test_norm_of_a_rescaled_matrix_is_never_above_one(be, dtype, steps):
    dtype = stored_dtype(be, dtype)
    rng = np.random.default_rng(0)
    a = np.stack([family(rng, 5, 4, dtype) for family in FAMILIES.values()])
    x = be.asarray(a)
    w = rescaled(be, x, steps=steps)
    assert be.is_at_home(w)
    assert w.dtype == x.dtype
    assert w.shape == x.shape
    host = be.to_numpy(w)
    above = [name for name, b in zip(FAMILIES, host, strict=True) if not is_contraction(b)]
    assert not above
    assert np.all(gn.matrix_norm_bracket(host).lower <= 1)


@pytest.mark.parametrize(("dtype", "steps"), [("float64", 1), ("complex64", 3)])
def test_norm_of_a_rescaled_kernel_is_never_above_one(be, dtype, steps):
    dtype = stored_dtype(be, dtype)
    rng = np.random.default_rng(1)
    # as groups of one kernel: one shape for all families
    a = np.concatenate([family(rng, 2, 2, (3, 2), dtype) for family in KERNELS.values()])
    x = be.asarray(a)
    w = rescaled(be, x, conv=True, steps=steps, groups=len(KERNELS))
    assert be.is_at_home(w)
    assert w.dtype == x.dtype
    assert gn.conv_norm_bracket(be.to_numpy(w), groups=len(KERNELS), rtol=1e-2).lower <= 1
    host = be.to_numpy(w).reshape(-1, 2, *a.shape[1:])
    for name, kernel in zip(KERNELS, host, strict=True):
        for mode in ("zeros", "circular"):
            found = oracles.check_conv(kernel, (3, 2), 0.0, 1.0, padding_mode=mode)
            assert not found.upper_violated, (name, mode)


@given(data=st.data())
def test_norm_of_a_drawn_matrix_is_never_above_one(be, data):
    skip_on_jax(be)
    dtype = stored_dtype(be, data.draw(st.sampled_from(DTYPES)))
    a = data.draw(st.one_of(matrices(dtype), family_matrices(dtype)))
    w = spectral_rescaling(be.asarray(a), steps=data.draw(st.integers(1, 5)))
    assert is_contraction(be.to_numpy(w))
    assert float(be.to_numpy(gn.matrix_norm_bracket(w).lower)) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_of_every_family_of_matrices_is_never_above_one(dtype):
    rng = np.random.default_rng(2)
    for steps, (name, family) in zip(itertools.cycle(range(1, 6)), FAMILIES.items()):
        for shape in ((1, 7), (7, 1), (6, 6), (12, 3)):
            w = spectral_rescaling(family(rng, *shape, dtype), steps=steps)
            assert is_contraction(w), (name, shape, steps)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "x".join(map(str, g["shape"])))
def test_norm_is_never_above_one_for_zero_and_circular_padding(geometry, dtype):
    rng = np.random.default_rng(3)
    shape, given_options = geometry["shape"], options(geometry)
    axes = len(shape) - 2
    stride, dilation = (oracles.per_axis(geometry[key], axes) for key in ("stride", "dilation"))
    count = geometry["groups"]
    for steps, family in zip(itertools.cycle(range(1, 5)), KERNELS.values()):
        parts = [family(rng, shape[0] // count, shape[1], shape[2:], dtype) for _ in range(count)]
        w = conv_spectral_rescaling(np.concatenate(parts), steps=steps, **given_options)
        assert gn.conv_norm_bracket(w, **given_options).lower <= 1
        sizes = [s * int(rng.integers(1, 6 // axes)) for s in stride]
        variants = [
            {"padding_mode": "circular"},
            {"padding": "same"},
            {"padding": tuple(d * (k - 1) for d, k in zip(dilation, shape[2:], strict=True))},
            {"padding": 0, "transposed": True, "input_shape": [2] * axes},
        ]
        for variant in rng.choice(variants, 2, replace=False):
            at = {"input_shape": sizes} | given_options | variant
            found = oracles.check_conv(w, lower=0.0, upper=1.0, **at)
            assert not found.upper_violated, (family.__name__, steps, variant)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("shape", [(200, 160), (96, 300)])
def test_norm_is_never_above_one_in_single_precision(shape, steps):
    rng = np.random.default_rng(35)
    noise = rng.standard_normal(shape)
    every = {
        "noise": noise,
        "orthonormal": np.linalg.qr(noise.T)[0].T
        if shape[0] < shape[1]
        else np.linalg.qr(noise)[0],
        "ones": np.ones(shape),
        "signs": np.sign(noise),
        "rows alike": np.ones((shape[0], 1)) * noise[0],
    }
    for name, a in every.items():
        w = spectral_rescaling(a.astype("float32"), steps=steps)
        assert w.dtype == np.float32
        assert np.linalg.norm(w.astype("float64"), 2) <= 1 - 1e-12, name
        double = spectral_rescaling(a.astype("float32").astype("float64"), steps=steps)
        assert np.linalg.norm(w - double, 2) <= 5e-3, name  # of which the margin takes little


def test_single_precision_is_for_what_the_steps_leave_room_for():
    def chosen(shape, steps, dtype="float32", box=()):
        taps = np.broadcast_to(np.zeros(1, dtype), (math.prod(box), 1, *shape))
        return _rescaling._working_dtype(taps, box, 1, steps=steps)

    assert chosen((1024, 1024), 3) == np.float32
    assert chosen((1024, 1024), 5) == np.float64
    assert chosen((4096, 4096), 3) == np.float64
    assert chosen((8, 8), 3, "float64") == np.float64
    assert chosen((8, 8), 3, "float16") == np.float32
    assert chosen((64, 64), 3, box=(3, 3)) == np.float32
    assert chosen((512, 512), 3, box=(3, 3)) == np.float64
    assert chosen((64, 64), 3, "complex64", box=(3, 3)) == np.float32


def test_rounding_of_a_product_stays_within_its_bound():
    rng = np.random.default_rng(4)
    for box, p, q in (
        ((), 30, 20),
        ((), 3, 300),
        ((40,), 4, 6),
        ((3, 3), 16, 16),
        ((2, 4, 3), 3, 2),
    ):
        for narrow, wide in (("float32", "float64"), ("complex64", "complex128")):
            for name in ("noise", "all_ones", "low_pass", "rank_one_kernel", "shifts"):
                kernel = KERNELS[name](rng, p, q, box or (1,), narrow)
                x = np.moveaxis(kernel.reshape(p, q, -1), 2, 0)[:, None]
                lags, exact = (
                    _rescaling._two_sided(_rescaling._gram_lags(v, box))
                    for v in (x, x.astype(wide))
                )
                lost = np.sum(np.abs(lags.astype(wide) - exact), axis=(0, 3))
                assert np.all(lost <= _rescaling._row_error(x, box)), (name, box)
                # the next product may take it for self-adjoint
                assert np.array_equal(lags, np.conj(np.swapaxes(lags[::-1], -1, -2)))


# --------------------------------------------------------------------------- optimisers

UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


def short(be, host, dtype):
    """Return the matrix in a type that NumPy may not have, if the library has it."""
    if not hasattr(be.xp, dtype) or (be.id.startswith("strict") and "16" in dtype):
        pytest.skip(f"no {dtype} here")
    with np.errstate(over="ignore", under="ignore"):
        return be.xp.astype(be.asarray(np.asarray(host, "float32")), getattr(be.xp, dtype))


def momenta(rng, m, n):
    """Return matrices that scalings find hard: by name, entries in the range of bfloat16."""
    noise = rng.standard_normal((m, n))
    graded = noise * 10.0 ** rng.uniform(-6, 0, (m, 1))
    return {
        "rank one": np.outer(rng.standard_normal(m), rng.standard_normal(n)),
        "flat": np.ones((m, n)),
        "equal up to sign": np.sign(noise),
        "orthonormal": np.linalg.svd(noise, full_matrices=False)[2 * (m < n)][:m],
        "one entry": np.eye(m, n) * (np.arange(m) == 1)[:, None],
        "huge": noise * 1e38 / np.max(np.abs(noise)),
        "tiny": noise * 2.0**-120,
        "subnormal": noise * 2.0**-130,
        "graded": graded,
        "zero rows": graded * (np.arange(m) % 2)[:, None],
        "zero": np.zeros((m, n)),
    }


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_no_momentum_has_a_norm_above_one_once_it_is_rescaled(be, dtype, steps):
    if dtype == "bfloat16":
        skip_on_jax(be)
    for m, n in ((6, 9), (9, 6), (16, 17)):
        cases = momenta(np.random.default_rng(m), m, n)
        x = short(be, np.stack(list(cases.values())), dtype)
        w = rescaled(be, x, steps=steps)
        assert w.dtype == x.dtype
        host = be.to_numpy(w).astype("float64")
        above = [name for name, b in zip(cases, host, strict=True) if not is_contraction(b)]
        assert not above


def gram_excess(w, products, unit, work):
    """Return the largest error of an entry, and of its adjoint, over what is allowed for it."""
    exact, size = w @ np.conj(np.swapaxes(w, -1, -2)), np.abs(w)
    n, u = w.shape[-1], UNITS[work]
    kappa = 1.6 * 2 * (n + 4) * u if np.iscomplexobj(w) else n * u
    # entries of float16 err absolutely below its normal numbers
    lost = 2 * math.sqrt(n) * 2.0**-24 if unit == UNITS["float16"] else 1e-36
    allowed = (1.01 * kappa + 5 * unit) * (size @ np.swapaxes(size, -1, -2)) + lost
    return float(np.max(np.abs(products - exact) / allowed))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
def test_gram_matrices_are_those_of_the_rescaled_rows(be, dtype):
    if not be.has_float64 and dtype == "float64":
        pytest.skip("no float64 here")
    work = "float64" if be.has_float64 else "float32"
    for (m, n), steps in (((5, 8), 1), ((5, 8), 3), ((7, 3), 2), ((1, 4), 1)):
        if be.id.startswith("jax") and steps > 2:
            continue  # a compilation each
        rng = np.random.default_rng(n)
        cases = momenta(rng, max(m, 2), n)
        keep = [name for name in cases if dtype != "float16" or name not in {"huge", "subnormal"}]
        host = np.stack([cases[name][:m] for name in keep])
        x = be.asarray(host * (1 - 2j), dtype) if dtype == "complex64" else short(be, host, dtype)
        w, products = rescaled(be, x, steps=steps, gram=True)
        assert products.dtype == x.dtype
        assert be.is_at_home(products)
        assert products.shape == (len(keep), m, m)
        wide = "complex128" if dtype == "complex64" else "longdouble"
        w, products = (be.to_numpy(y).astype(wide) for y in (w, products))
        unit = UNITS["float32" if dtype == "complex64" else dtype]
        assert gram_excess(w, products, unit, work) <= 1
        assert np.array_equal(w, be.to_numpy(rescaled(be, x, steps=steps)).astype(wide))


def test_gram_matrices_of_a_batch_are_in_the_order_of_the_batch(be):
    a = random_kernel(30, (2, 3, 4, 5), stored_dtype(be, "float64"))
    w, products = (be.to_numpy(y) for y in rescaled(be, be.asarray(a), steps=2, gram=True))
    assert products.shape == (2, 3, 4, 4)
    near = functools.partial(np.allclose, rtol=0, atol=1e-12 if be.has_float64 else 1e-5)
    assert near(products, w @ np.swapaxes(w, -1, -2))
    for index in np.ndindex(2, 3):  # one by one, in NumPy's float64
        one, product = spectral_rescaling(a[index], steps=2, gram=True)
        assert near(w[index], one)
        assert near(products[index], product)


def test_gram_matrices_of_special_input(be):
    a = np.ones((3, 2, 4), stored_dtype(be, "float64"))
    a[0, 1, 2], a[1, 0, 0] = np.nan, np.inf
    _, products = rescaled(be, be.asarray(a), steps=2, gram=True)
    found = be.to_numpy(products)
    assert np.all(np.isnan(found[:2]))
    assert np.allclose(found[2], 1 / 2, rtol=1e-4)
    for shape in ((0, 3), (3, 0), (0, 2, 2)):
        x = be.asarray(np.zeros(shape, stored_dtype(be, "complex128")))
        w, products = spectral_rescaling(x, steps=2, gram=True)
        assert w.shape == shape
        assert products.dtype == x.dtype
        assert np.array_equal(be.to_numpy(products), np.zeros((*shape[:-1], shape[-2])))
    x = be.asarray(np.eye(2, 3, dtype="int32"))
    w, products = rescaled(be, x, steps=1, gram=True)
    assert w.dtype == products.dtype


# ------------------------------------------------------------------------- the right values


def row_scales(kernel, steps, stride=1, dilation=1):
    """Return tau from the taps of the powers, one pair of taps at a time."""
    axes = kernel.ndim - 2
    s, d = oracles.per_axis(stride, axes), oracles.per_axis(dilation, axes)
    taps = list(itertools.product(*map(range, kernel.shape[2:])))
    power = {}
    for k, other in itertools.product(taps, taps):
        moved = [b * (i - j) for i, j, b in zip(k, other, d, strict=True)]
        if any(m % t for m, t in zip(moved, s, strict=True)):
            continue
        lag = tuple(m // t for m, t in zip(moved, s, strict=True))
        block = kernel[(..., *k)] @ kernel[(..., *other)].conj().T
        power[lag] = power.get(lag, 0) + block
    for _ in range(steps - 1):
        squared = {}
        for (i, a), (j, b) in itertools.product(power.items(), power.items()):
            lag = tuple(np.add(i, j).tolist())
            squared[lag] = squared.get(lag, 0) + a @ b
        power = squared
    total = sum(np.abs(block) for block in power.values())
    return np.sum(total, axis=1) ** (0.5**steps)


def tolerance(be):
    return 1e-10 if be.has_float64 else 2e-2


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_one_step_divides_rows_by_the_root_of_their_row_sum(be, dtype):
    a = random_kernel(5, (4, 3), stored_dtype(be, dtype))
    expected = np.empty_like(a)
    for i in range(4):
        total = 0.0
        for j in range(4):
            total += abs(sum(a[i, k] * np.conj(a[j, k]) for k in range(3)))
        expected[i] = a[i] / math.sqrt(total)
    w = be.to_numpy(rescaled(be, be.asarray(a), steps=1))
    assert np.allclose(w, expected, rtol=1e-13 if be.has_float64 else 1e-5)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_more_steps_divide_by_the_root_of_a_power(be, dtype):
    skip_on_jax(be)
    a = random_kernel(6, (4, 3), stored_dtype(be, dtype))
    for steps in (2, 3, 5):
        expected = a / row_scales(a[..., None], steps)[:, None]
        w = be.to_numpy(spectral_rescaling(be.asarray(a), steps=steps))
        assert np.allclose(w, expected, rtol=1e-12 if be.has_float64 else 1e-4)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "x".join(map(str, g["shape"])))
def test_channels_are_divided_by_the_root_of_a_power(be, geometry, dtype):
    if geometry is not GEOMETRIES[3] or dtype != "float64":
        skip_on_jax(be)
    kernel = random_kernel(7, geometry["shape"], stored_dtype(be, dtype))
    x = be.asarray(kernel)
    for steps in (2,) if be.id.startswith("jax") else (1, 2) if kernel.ndim > 4 else (1, 3):
        w = be.to_numpy(rescaled(be, x, conv=True, steps=steps, **options(geometry)))
        blocks = np.split(kernel, geometry["groups"])
        tau = [row_scales(b, steps, geometry["stride"], geometry["dilation"]) for b in blocks]
        tau = np.concatenate(tau).reshape(-1, *[1] * (kernel.ndim - 1))
        assert np.allclose(w * tau, kernel, rtol=tolerance(be), atol=0)


def test_more_steps_come_closer_to_norm_one():
    a = random_kernel(8, (12, 9))
    kernel = random_kernel(9, (8, 8, 3, 3))
    for norms in (
        [oracles.sigma(spectral_rescaling(a, steps=t)) for t in range(1, 8)],
        [float(gn.conv_norm_bound(conv_spectral_rescaling(kernel, steps=t))) for t in range(1, 5)],
    ):
        assert all(later >= earlier - 1e-3 for earlier, later in itertools.pairwise(norms))
        assert norms[-1] > 0.95 > norms[0]


@pytest.mark.parametrize("steps", [1, 4])
def test_what_has_orthonormal_rows_stays(be, steps):
    skip_on_jax(be)
    unit = float(np.finfo(stored_dtype(be, "float64")).eps)
    a = np.eye(5, 7)[np.asarray([3, 1, 4, 0, 2])].astype(stored_dtype(be, "float64"))
    w = be.to_numpy(spectral_rescaling(be.asarray(a), steps=steps))
    assert np.allclose(w, a, rtol=200 * unit, atol=0)
    rng = np.random.default_rng(10)
    kernel = oracles.paraunitary_kernel(rng, 4, (1, 1), stored_dtype(be, "float64"))
    w = be.to_numpy(conv_spectral_rescaling(be.asarray(kernel), steps=steps))
    assert np.allclose(w, kernel, rtol=0, atol=tolerance(be))


@pytest.mark.parametrize("power", [-1000, -140, 0, 120, 1000])
@pytest.mark.parametrize("sign", [1, -1])
def test_sign_passes_and_scale_does_not_matter(be, power, sign):
    if not be.has_float64 and abs(power) > 120:
        pytest.skip("beyond the range of float32")
    a = random_kernel(11, (2, 3, 4), stored_dtype(be, "float64"))
    plain = be.to_numpy(rescaled(be, be.asarray(a), steps=3))
    factor = a.dtype.type(sign * 2.0**power)
    moved = be.to_numpy(rescaled(be, be.asarray(a * factor), steps=3))
    assert np.allclose(moved, sign * plain, rtol=1e-6)


# ----------------------------------------------------------------------------- special input


def test_rows_of_zeros_stay_zero(be):
    skip_on_jax(be)
    a = random_kernel(12, (4, 3, 2), stored_dtype(be, "float64"))
    a[1] = 0
    w = be.to_numpy(conv_spectral_rescaling(be.asarray(a), steps=2))
    assert np.all(w[1] == 0)
    assert np.all(np.isfinite(w))
    assert np.any(w[0] != 0)
    for steps in (1, 4):
        zero = be.asarray(np.zeros((2, 3), a.dtype))
        assert np.all(be.to_numpy(spectral_rescaling(zero, steps=steps)) == 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_becomes_nan_where_it_is(be, bad):
    a = np.ones((2, 3, 3), stored_dtype(be, "float64"))
    a[0, 1, 1] = bad
    w = be.to_numpy(rescaled(be, be.asarray(a), steps=2))
    assert np.all(np.isnan(w[0]))
    assert np.allclose(w[1], 1 / 3, rtol=1e-4)


def test_integers_and_bool_are_promoted(be):
    default = be.xp.__array_namespace_info__().default_dtypes(device=be.device)["real floating"]
    for host in (np.asarray([[3, 4], [0, 5]]), np.asarray([[True, False], [True, True]])):
        x = be.asarray(host, "int32" if host.dtype.kind == "i" else None)
        w = rescaled(be, x, steps=1)
        assert w.dtype == default
        assert is_contraction(be.to_numpy(w))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_within_the_bound(be, dtype):
    if dtype == "bfloat16":
        skip_on_jax(be)
    if not hasattr(be.xp, dtype) or be.id.startswith("strict"):
        pytest.skip(f"no {dtype} here")
    rng = np.random.default_rng(13)
    a = rng.standard_normal((6, 5)) * 10.0 ** rng.uniform(-5, 0, (6, 1))
    x = be.xp.astype(be.asarray(a.astype("float32")), getattr(be.xp, dtype))
    for steps in (2,) if be.id.startswith("jax") else (1, 3):
        w = rescaled(be, x, steps=steps)
        assert w.dtype == x.dtype
        assert is_contraction(be.to_numpy(w).astype("float64"))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 2, 2)])
def test_empty_stays_empty(be, shape):
    x = be.asarray(np.zeros(shape, stored_dtype(be, "float64")))
    assert spectral_rescaling(x, steps=2).shape == shape
    kernel = be.asarray(np.zeros((*shape, 2), stored_dtype(be, "float64")))
    assert conv_spectral_rescaling(kernel, steps=2).shape == (*shape, 2)


@pytest.mark.parametrize("steps", [0, -1, 1.5, None, True])
def test_steps_must_be_a_positive_whole_number(be, steps):
    with pytest.raises((TypeError, ValueError), match="steps"):
        spectral_rescaling(be.asarray(np.ones((2, 2))), steps=steps)
    with pytest.raises((TypeError, ValueError), match="steps"):
        conv_spectral_rescaling(be.asarray(np.ones((2, 2, 3))), steps=steps)


def test_wrong_shapes_and_options_are_refused():
    with pytest.raises(ValueError, match="shape"):
        spectral_rescaling(np.ones(3), steps=1)
    with pytest.raises(ValueError, match="spatial"):
        conv_spectral_rescaling(np.ones((3, 3)), steps=1)
    with pytest.raises(ValueError, match="groups"):
        conv_spectral_rescaling(np.ones((3, 2, 3)), steps=1, groups=2)
    with pytest.raises(ValueError, match="stride"):
        conv_spectral_rescaling(np.ones((3, 2, 3)), steps=1, stride=(1, 2))


# -------------------------------------------------------------------------------- transforms


def torch_or_skip():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_torch_gradcheck(steps, dtype):
    torch = torch_or_skip()
    x = torch.tensor(random_kernel(14, (2, 2, 2), dtype), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: spectral_rescaling(x, steps=steps), x, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda x: spectral_rescaling(x, steps=steps, gram=True)[1], x, fast_mode=True
    )
    kernel = torch.tensor(random_kernel(15, (2, 1, 3), dtype), requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda k: conv_spectral_rescaling(k, steps=steps), kernel, fast_mode=True
    )


def test_torch_gradcheck_of_strides_and_groups():
    torch = torch_or_skip()
    kernel = torch.tensor(random_kernel(16, (2, 1, 3, 2)), requires_grad=True)
    given_options = {"steps": 2, "stride": (2, 1), "groups": 2}
    assert torch.autograd.gradcheck(lambda k: conv_spectral_rescaling(k, **given_options), kernel)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_torch_gradient_is_finite_at_zeros_and_at_tiny_rows(dtype):
    torch = torch_or_skip()
    host = random_kernel(17, (4, 3, 3), dtype)
    host[1] = 0
    host[2] *= 1e-200
    host[3, 1] = 0
    for start, steps in itertools.product((host, 0 * host), (1, 2, 5)):
        for function, x in (
            (spectral_rescaling, torch.tensor(start[..., 0], requires_grad=True)),
            (conv_spectral_rescaling, torch.tensor(start, requires_grad=True)),
        ):
            torch.sum(torch.abs(function(x, steps=steps) + 1) ** 2).backward()
            assert torch.all(torch.isfinite(torch.view_as_real(x.grad + 0j)))


def squares(x, function=spectral_rescaling):
    return function(x, steps=2).abs().square().sum()


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_torch_differentiates_twice(dtype):
    torch = torch_or_skip()
    x = torch.tensor(random_kernel(23, (3, 2), dtype), requires_grad=True)
    assert torch.autograd.gradgradcheck(squares, x, fast_mode=True)
    kernel = torch.tensor(random_kernel(25, (2, 2, 3), dtype), requires_grad=True)
    function = functools.partial(squares, function=conv_spectral_rescaling)
    assert torch.autograd.gradgradcheck(function, kernel, fast_mode=True)


@pytest.mark.slow  # PyTorch takes seconds to import what it needs
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_torch_differentiates_forward(dtype):
    torch = torch_or_skip()
    x = torch.tensor(random_kernel(23, (3, 2), dtype), requires_grad=True)
    direction = torch.tensor(random_kernel(24, (3, 2), dtype))
    _, along = torch.func.jvp(squares, (x.detach(),), (direction,))
    (gradient,) = torch.autograd.grad(squares(x), x)
    assert torch.allclose(along, torch.sum(gradient.conj() * direction).real, rtol=1e-9)


@pytest.mark.parametrize("conv", [False, True], ids=["matrix", "kernel"])
def test_a_gradient_takes_as_many_products_as_steps(conv):
    torch = torch_or_skip()
    dispatch = importlib.import_module("torch.utils._python_dispatch")
    products = []

    class Products(dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            shapes = [tuple(x.shape[-2:]) for x in args if isinstance(x, torch.Tensor)]
            if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                products.extend([1] * (16 in shapes[0] and shapes[0] == shapes[1]))
            return function(*args, **(kwargs or {}))

    x = torch.tensor(random_kernel(26, (16, 16, 3) if conv else (16, 16)), requires_grad=True)
    result = (conv_spectral_rescaling if conv else spectral_rescaling)(x, steps=3).sum()
    with Products():
        result.backward()
    assert len(products) == 3


def test_torch_vmap():
    torch = torch_or_skip()
    x = torch.tensor(random_kernel(18, (3, 4, 3)))
    mapped = torch.vmap(lambda a: spectral_rescaling(a, steps=3))(x)
    assert torch.allclose(mapped, spectral_rescaling(x, steps=3), rtol=1e-13)
    mapped = torch.vmap(lambda a: spectral_rescaling(a, steps=3, gram=True))(x)
    for found, expected in zip(mapped, spectral_rescaling(x, steps=3, gram=True), strict=True):
        assert torch.allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_compiles_gram_matrices_into_one_graph(dtype):
    torch = torch_or_skip()
    x = torch.tensor(random_kernel(31, (3, 4), "float32")).to(getattr(torch, dtype))
    x.requires_grad_(True)

    def function(x):
        w, products = spectral_rescaling(2 * x, steps=2, gram=True)
        return products @ w

    torch.compiler.reset()
    value = torch.compile(function, backend="aot_eager", fullgraph=True)(x)
    eager = function(x)
    rtol = 64 * UNITS[dtype]
    assert torch.allclose(value, eager, rtol=rtol, atol=rtol)
    (found,) = torch.autograd.grad(value.sum(), x)
    (expected,) = torch.autograd.grad(eager.sum(), x)
    assert torch.allclose(found, expected, rtol=rtol, atol=rtol)


@pytest.fixture
def jax():
    module = pytest.importorskip("jax")
    with module.enable_x64(True):
        yield module


@pytest.mark.parametrize("which", ["matrix", "conv"])
def test_jax_jit_grad_and_vmap_agree_with_torch(jax, which):
    torch = torch_or_skip()
    jnp = importlib.import_module("jax.numpy")
    if which == "matrix":
        host, function, given_options = random_kernel(19, (4, 3)), spectral_rescaling, {"steps": 3}
    else:
        host, function = random_kernel(20, (3, 2, 3)), conv_spectral_rescaling
        given_options = {"steps": 2, "dilation": 2}
    weights = random_kernel(21, host.shape)

    def loss(x):
        return (function(x, **given_options) * weights_like(x)).sum()

    def weights_like(x):
        return torch.tensor(weights) if isinstance(x, torch.Tensor) else jnp.asarray(weights)

    x = torch.tensor(host, requires_grad=True)
    loss(x).backward()
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(host))
    assert float(value) == pytest.approx(float(loss(x).detach()), rel=1e-12)
    assert np.allclose(np.asarray(gradient), x.grad.numpy(), rtol=1e-9, atol=1e-12)
    mapped = jax.jit(jax.vmap(lambda k: function(k, **given_options)))(jnp.asarray(host)[None])
    assert np.allclose(np.asarray(mapped)[0], function(host, **given_options), rtol=1e-12)


def test_jax_compiles_maps_and_differentiates_gram_matrices(jax):
    torch = torch_or_skip()
    jnp = importlib.import_module("jax.numpy")
    host, weights = random_kernel(32, (3, 4, 5)), random_kernel(33, (4, 4))

    def products(x):
        return spectral_rescaling(x, steps=2, gram=True)[1]

    mapped = jax.jit(jax.vmap(products))(jnp.asarray(host))
    assert np.allclose(np.asarray(mapped), products(host), rtol=0, atol=1e-14)
    found = jax.jit(jax.grad(lambda x: (products(x) * weights).sum()))(jnp.asarray(host))
    x = torch.tensor(host, requires_grad=True)
    (products(x) * torch.tensor(weights)).sum().backward()
    assert np.allclose(np.asarray(found), x.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_jax_differentiates_forward_and_twice(jax):
    torch = torch_or_skip()
    jnp = importlib.import_module("jax.numpy")
    host, direction = random_kernel(27, (3, 2)), random_kernel(28, (3, 2))

    def loss(x):
        return (spectral_rescaling(x, steps=2) ** 3).sum()

    slopes = jax.jit(lambda x: jax.jvp(jax.grad(loss), (x,), (jnp.asarray(direction),)))
    x = torch.tensor(host, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (twice,) = torch.autograd.grad((expected * torch.tensor(direction)).sum(), x)
    first, second = slopes(jnp.asarray(host))
    assert np.allclose(first, expected.detach().numpy(), rtol=1e-9, atol=1e-12)
    assert np.allclose(second, twice.numpy(), rtol=1e-9, atol=1e-12)


def test_jax_takes_a_matrix_operation_by_operation(jax):
    jnp = importlib.import_module("jax.numpy")
    w = spectral_rescaling(jnp.asarray([[3.0, 4.0]]), steps=1)
    assert np.allclose(np.asarray(w), [[0.6, 0.8]], rtol=1e-12)


def test_jax_gradient_is_finite_at_zeros(jax):
    jnp = importlib.import_module("jax.numpy")
    host = random_kernel(22, (3, 2, 3), "complex128")
    host[1] = 0
    host[2, 0] = 0

    def loss(k):
        return jnp.sum(jnp.real(conv_spectral_rescaling(k, steps=2)))

    gradient = jax.jit(jax.grad(loss))
    for start in (host, 0 * host):
        assert np.all(np.isfinite(np.asarray(gradient(jnp.asarray(start)))))
