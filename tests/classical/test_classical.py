"""The classical methods: each on its side of independent norms, equal to its formula, described by its table."""

import importlib
import inspect
import itertools
import math

import numpy as np
import pytest

import gramnorm as gn
from gramnorm import classical
from gramnorm.classical import METHODS, _methods
from tests.harness import oracles
from tests.harness.families import DTYPES, KERNELS

NARROW = {"float64": "float32", "complex128": "complex64"}
COMMON = ["kernel", "input_shape", "stride", "dilation", "groups"]
GEOMETRIES = [
    {"shape": (3, 2, 5)},
    {"shape": (2, 3, 4), "stride": 2},
    {"shape": (2, 2, 5), "stride": 4, "dilation": 2},
    {"shape": (2, 3, 3, 2), "dilation": (2, 1)},
    {"shape": (4, 1, 3, 3), "stride": (2, 1), "groups": 2},
    {"shape": (2, 2, 2, 1, 2), "stride": (1, 1, 2)},
]
FLAT_BUT_ONE = 4  # the channel that weighs more, in `sign_filters`


def named(side=None, operator=None):
    """Return the names of the methods with such an entry."""
    return [
        name
        for name, method in METHODS.items()
        if side in (None, method.side) and operator in (None, method.operator)
    ]


def function(name):
    return METHODS[name].function


def stored_dtype(be, dtype):
    return dtype if be.has_float64 else NARROW.get(dtype, dtype)


def eps(be):
    return float(np.finfo("float64" if be.has_float64 else "float32").eps)


def random_kernel(seed, shape, dtype="float64"):
    parts = np.random.default_rng(seed).standard_normal((2, *shape))
    return (parts[0] + 1j * parts[1] if np.dtype(dtype).kind == "c" else parts[0]).astype(dtype)


def value(be, name, kernel, *sizes, **options):
    """Return the value of a method as a float, and see that it is an array like the kernel."""
    x = be.asarray(kernel)
    out = function(name)(x, *sizes, **options)
    assert out.shape == ()
    assert be.is_at_home(out)
    assert be.xp.isdtype(out.dtype, "real floating")
    return float(be.to_numpy(out))


def split(geometry):
    """Return the shape of a geometry and its options."""
    return geometry["shape"], {k: v for k, v in geometry.items() if k != "shape"}


def few_on_jax(be, cases):
    """Return the cases, of which JAX, with its compilation per shape, gets the first."""
    return cases[:1] if be.id.startswith("jax") else cases


def skip_on_jax(be):
    if be.id.startswith("jax"):
        pytest.skip("a compilation per operation and shape")


def sizes_of(shape, stride):
    """Return input sizes, shorter than the kernel and longer; and the circle that the stride divides."""
    strides = oracles.per_axis(stride, len(shape) - 2)
    for factor in (1, 2) if len(shape) > 3 else (1, 2, 4):
        yield tuple(factor * s for s in strides)


# ------------------------------------------------------------------------------- the table


def test_the_table_holds_every_public_function_and_nothing_else():
    functions = {name for name in classical.__all__ if inspect.isfunction(getattr(classical, name))}
    assert functions == set(METHODS)
    there = {name: f for name, f in vars(_methods).items() if inspect.isfunction(f)}
    here = {name for name, f in there.items() if f.__module__ == _methods.__name__}
    assert {name for name in here if not name.startswith("_")} == functions
    assert all(method.function is getattr(classical, name) for name, method in METHODS.items())


@pytest.mark.parametrize("name", METHODS)
def test_names_and_first_lines_say_the_side_and_docstrings_the_source(name):
    method = METHODS[name]
    word = method.side.replace(" ", "_")
    assert word in name
    first, text = method.function.__doc__.split("\n")[0], method.function.__doc__
    assert method.side in first
    size = {"every size": "every input size", "one circle": "circular convolution at a given size"}
    assert size.get(method.operator, "at a given size and padding") in first
    assert method.source.split(", ")[-1].split(" ")[-1] in text
    assert ("rounding included" in text) == ("bound" in method.side)


@pytest.mark.parametrize("name", METHODS)
def test_signatures_begin_alike(name):
    parameters = list(inspect.signature(function(name)).parameters.values())
    assert [p.name for p in parameters[:5]] == COMMON
    assert parameters[0].kind is inspect.Parameter.POSITIONAL_ONLY
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[2:])
    assert all(p.default is not inspect.Parameter.empty for p in parameters[1:])
    assert [p.default for p in parameters[1:5]] == [None, 1, 1, 1]


# ------------------------------------------------------------------------------- the sides


@pytest.mark.parametrize("name", named("upper bound", "every size"))
@pytest.mark.parametrize("family", KERNELS)
def test_upper_bounds_hold_for_every_family_of_kernels(name, family):
    for seed, dtype in enumerate(DTYPES):
        rng = np.random.default_rng(seed)
        kernel = KERNELS[family](rng, 2, 3, (3, 2), dtype)
        bound = float(function(name)(kernel))
        reference, _ = oracles.sup_reference(kernel)
        assert bound >= reference * (1 - 2e-14)
        mode = ("zeros", "circular")[(seed + len(family)) % 2]
        found = oracles.check_conv(kernel, (3, 2), 0.0, bound, padding_mode=mode)
        assert found.clean, (dtype, mode)


@pytest.mark.parametrize("name", named("upper bound", "every size"))
def test_upper_bounds_hold_for_strides_dilation_and_groups_at_all_sizes(be, name):
    # JAX sees the row sums in one autocorrelation, not in four
    if name.startswith("norm2toep") or (be.id == "jax32" and not name.startswith("lip_grid")):
        skip_on_jax(be)
    for seed, geometry in enumerate(few_on_jax(be, GEOMETRIES)):
        shape, options = split(geometry)
        kernel = random_kernel(seed, shape, stored_dtype(be, ("float64", "complex128")[seed % 2]))
        bound = value(be, name, kernel, **options)
        assert bound >= oracles.sup_reference(kernel, **options)[0] * (1 - 2e-14)
        if be.id != "numpy":
            continue
        for size in sizes_of(shape, options.get("stride", 1)):
            assert value(be, name, kernel, size, **options) == bound
            for mode, padding in (("zeros", None), ("zeros", "full"), ("circular", None)):
                mine = options | {"padding_mode": mode, "padding": padding}
                assert oracles.check_conv(kernel, size, 0.0, bound, **mine).clean


@pytest.mark.parametrize("name", named("upper bound"))
def test_upper_bounds_hold_where_they_are_sharp(be, name):
    """Kernels with known suprema, several of which bounds attain: rounding alone decides."""
    skip_on_jax(be)
    dtype = stored_dtype(be, "float64")
    cases = list(oracles.known_suprema(np.random.default_rng(0), dtype))
    for _, kernel, groups, supremum in cases[:16] if be.id == "numpy" else cases[:4]:
        assert value(be, name, kernel, groups=groups) >= supremum * (1 - 4e-16)


@pytest.mark.parametrize("name", named("upper bound") + named("lower bound"))
def test_rounding_is_counted_where_nothing_else_is_lost(name):
    """One row, one column, one tap: in exact arithmetic the bounds are the norm."""
    for seed, dtype in itertools.product(range(4), DTYPES):
        for shape in ((1, 4, 1), (3, 1, 1), (1, 1, 1, 1)):
            kernel = random_kernel(seed, shape, "complex128")
            kernel = (kernel if np.dtype(dtype).kind == "c" else kernel.real).astype(dtype)
            bound = float(function(name)(kernel, (2,) * (len(shape) - 2)))
            check = oracles.check_upper if "upper" in name else oracles.check_lower
            matrix = kernel.reshape(shape[:2])
            assert check(matrix, bound) is oracles.Verdict.HOLDS, (seed, dtype, shape)
            if (name, shape) != ("aol_upper_bound", (1, 4, 1)):  # on the side of the inputs
                assert bound == pytest.approx(oracles.sigma(matrix), rel=1e-4)


@pytest.mark.parametrize("name", named("lower bound"))
@pytest.mark.parametrize("family", KERNELS)
def test_lower_bounds_hold_for_every_family_of_kernels(name, family):
    for seed, dtype in enumerate(DTYPES):
        rng = np.random.default_rng(seed)
        kernel = KERNELS[family](rng, 2, 3, (3, 2), dtype)
        mine = {"padding_mode": ("zeros", "circular")[(seed + len(family)) % 2]}
        bound = float(function(name)(kernel, (2, 3), iterations=10, **mine))
        found = oracles.check_conv(kernel, (2, 3), bound, math.inf, **mine)
        assert found.clean, (dtype, mine)


@pytest.mark.parametrize("name", named("lower bound"))
def test_lower_bounds_hold_and_are_near_for_every_geometry(be, name):
    if be.id == "jax32":
        skip_on_jax(be)
    for seed, geometry in enumerate(few_on_jax(be, GEOMETRIES)):
        shape, options = split(geometry)
        kernel = random_kernel(seed, shape, stored_dtype(be, ("float64", "complex128")[seed % 2]))
        size = tuple(4 + s for s in oracles.per_axis(options.get("stride", 1), len(shape) - 2))
        modes = (
            ("zeros", "circular", "reflect", "replicate", "symmetric")
            if be.id == "numpy"
            else ("zeros",)
        )
        for mode in modes:
            mine = options | {"padding_mode": mode, "padding": None if mode == "circular" else 1}
            bound = value(be, name, kernel, size, iterations=30, **mine)
            assert oracles.check_conv(kernel, size, bound, math.inf, **mine).clean
            assert bound >= 0.95 * oracles.sigma(oracles.conv_matrix(kernel, size, **mine))


@pytest.mark.parametrize("name", named("exact", "one circle"))
def test_exact_norms_are_those_of_the_circle(be, name):
    for seed, geometry in enumerate(few_on_jax(be, GEOMETRIES)):
        shape, options = split(geometry)
        kernel = random_kernel(seed, shape, stored_dtype(be, ("float64", "complex128")[seed % 2]))
        sizes = list(sizes_of(shape, options.get("stride", 1)))
        for size in sizes if be.id == "numpy" else sizes[-1:]:
            exact = oracles.circular_reference(kernel, size, **options)
            found = value(be, name, kernel, size, **options)
            assert found == pytest.approx(exact, rel=100 * eps(be))
            if be.id == "numpy":
                dense = oracles.conv_matrix(kernel, size, padding_mode="circular", **options)
                assert found == pytest.approx(oracles.sigma(dense), rel=1e-13)


def test_a_circle_is_no_bound_for_zero_padding():
    """The reason why the exact norm of a circle says so in its first line."""
    kernel = np.asarray([[[1.0, -2.0, 1.0]]])
    circle = float(classical.circular_exact_norm(kernel, 5))
    assert circle < float(classical.power_iteration_lower_bound(kernel, 5))


# ---------------------------------------------------------------------------- the estimate


def sign_filters(dtype="float64"):
    """Return sixteen channels with separable filters of signs; one weighs 1, the others 0.8."""
    signs = np.asarray([[1, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]])
    filters = np.einsum("ai,bj->abij", signs, signs).reshape(16, 3, 3)
    weights = np.where(np.arange(16) == FLAT_BUT_ONE, 1.0, 0.8)
    kernel = np.eye(16)[:, :, None, None] * (weights[:, None, None] * filters)
    return kernel.astype(dtype)


def test_the_estimate_falls_below_the_norm(be):
    """The reason for its label: five starts miss the channel that weighs most, by a fifth."""
    skip_on_jax(be)
    kernel = sign_filters(stored_dtype(be, "float64"))
    estimate = value(be, "tensor_norm_estimate", kernel, iterations=40)
    assert estimate == pytest.approx(7.2, rel=1e-5)
    assert oracles.sup_reference(kernel)[0] == pytest.approx(9.0)
    if be.id == "numpy":
        more = value(be, "tensor_norm_estimate", kernel, starts=20, iterations=40)
        assert more == pytest.approx(9.0, rel=1e-5)
    assert value(be, "fantastic_four_upper_bound", kernel) >= 9.0


def test_the_estimate_is_the_tensor_norm_where_that_is_known(be):
    if be.id == "jax32":
        skip_on_jax(be)
    for seed, (taps, groups) in enumerate(few_on_jax(be, [((4,), 1), ((3, 2), 2), ((1, 1), 1)])):
        vectors = [random_kernel(seed + i, (n,), "complex128") for i, n in enumerate((2, 3, *taps))]
        kernel = vectors[0]
        for v in vectors[1:]:
            kernel = np.multiply.outer(kernel, v)
        known = math.sqrt(math.prod(taps)) * math.prod(np.linalg.norm(v) for v in vectors)
        kernel = np.concatenate([kernel, kernel / 2][:groups])
        kernel = kernel.astype(stored_dtype(be, "complex128"))
        found = value(be, "tensor_norm_estimate", kernel, groups=groups, starts=2, iterations=3)
        assert found == pytest.approx(known, rel=50 * eps(be))


def test_the_estimate_is_below_the_unfoldings_and_within_its_factor():
    for seed, (family, dtype) in enumerate(itertools.product(("noise", "low_pass"), DTYPES)):
        kernel = KERNELS[family](np.random.default_rng(seed), 4, 3, (3, 3), dtype)
        estimate = float(classical.tensor_norm_estimate(kernel, starts=2, iterations=20))
        slack = 1 + 1e-5 if "32" in dtype or "64" in dtype[-2:] else 1 + 1e-12
        assert estimate <= float(classical.fantastic_four_upper_bound(kernel)) * slack
        assert estimate <= 3 * oracles.sup_reference(kernel)[0] * slack


# ---------------------------------------------------------------------------- the formulas


def polyphase(kernel, stride):
    """Return the kernel of stride 1 whose inputs are the phases: zeros fill the box."""
    strides = oracles.per_axis(stride, kernel.ndim - 2)
    steps = [-(-k // s) for k, s in zip(kernel.shape[2:], strides, strict=True)]
    width = [(0, n * s - k) for n, s, k in zip(steps, strides, kernel.shape[2:], strict=True)]
    whole = np.pad(kernel, [(0, 0), (0, 0), *width])
    pairs = [n for pair in zip(steps, strides, strict=True) for n in pair]
    whole = whole.reshape(*kernel.shape[:2], *pairs)
    dims = len(strides)
    order = (0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2))
    return whole.transpose(order).reshape(kernel.shape[0], -1, *steps)


def autocorrelation(kernel):
    """Return the taps sum_k K_(k+m) K_k^H for all lags m, by a loop over pairs of taps."""
    taps = kernel.shape[2:]
    result = np.zeros((kernel.shape[0],) * 2 + tuple(2 * k - 1 for k in taps), kernel.dtype)
    for k, j in itertools.product(np.ndindex(*taps), repeat=2):
        lag = tuple(a - b + n - 1 for a, b, n in zip(k, j, taps, strict=True))
        result[(..., *lag)] += kernel[(..., *k)] @ kernel[(..., *j)].conj().T
    return result


def row_sum_bound(kernel, steps):
    """Return the bound of iterated autocorrelations on the side of the outputs."""
    kernel = kernel.astype(np.result_type(kernel, np.float64))
    for _ in range(steps):
        kernel = autocorrelation(kernel)
    sums = np.abs(kernel).reshape(kernel.shape[0], -1).sum(axis=1)
    return float(np.max(sums)) ** (0.5**steps)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_norm2toep_is_the_plain_loop_on_the_smaller_side(be, dtype):
    skip_on_jax(be)
    rel = 1e-9 if be.has_float64 else 1e-3
    cases = [((2, 3, 3, 2), 1), ((3, 2, 4), 1), ((3, 1, 4, 3), (2, 1))]
    for seed, (shape, stride) in enumerate(cases):
        kernel = random_kernel(seed, shape, stored_dtype(be, dtype))
        phases = polyphase(kernel, stride)
        if phases.shape[0] > phases.shape[1]:
            phases = phases.swapaxes(0, 1)
        for steps in (1, 3) if be.id == "numpy" else (2,):
            found = value(be, "norm2toep_upper_bound", kernel, stride=stride, steps=steps)
            assert found == pytest.approx(row_sum_bound(phases, steps), rel=rel)


def test_norm2toep_does_not_increase_and_ends_at_the_supremum():
    kernel = random_kernel(7, (3, 2, 3, 3))
    bounds = [float(classical.norm2toep_upper_bound(kernel, steps=t)) for t in range(1, 8)]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(bounds))
    assert bounds[-1] == pytest.approx(oracles.sup_reference(kernel)[0], rel=0.02)


def test_aol_is_one_autocorrelation_on_the_side_of_the_inputs():
    for shape, same in (((3, 2, 3, 2), True), ((2, 3, 3, 2), False)):
        kernel = random_kernel(1, shape, "complex128")
        found = float(classical.aol_upper_bound(kernel))
        assert found == pytest.approx(row_sum_bound(kernel.swapaxes(0, 1), 1), rel=1e-12)
        one = float(classical.norm2toep_upper_bound(kernel, steps=1))
        assert (found == one) is same


def test_fantastic_four_is_the_least_of_the_unfoldings():
    for shape in ((3, 2, 3, 4), (3, 2, 5), (2, 3, 2, 2, 2)):
        kernel = random_kernel(2, shape, "complex128")
        dims = kernel.ndim - 2
        norms = []
        for rows in itertools.product((False, True), repeat=dims):
            order = [0, *(2 + a for a in range(dims) if rows[a]), 1]
            order += [2 + a for a in range(dims) if not rows[a]]
            height = shape[0] * math.prod(k for k, r in zip(shape[2:], rows, strict=True) if r)
            norms.append(np.linalg.norm(kernel.transpose(order).reshape(height, -1), 2))
        assert len(norms) == 2**dims
        exact = min(norms) * math.sqrt(math.prod(shape[2:]))
        found = float(classical.fantastic_four_upper_bound(kernel))
        assert exact <= found <= exact * (1 + 2e-6)


def test_lip_grid_is_the_formula_and_sound_where_the_published_grid_is_not():
    kernel = random_kernel(3, (2, 4, 3, 2))
    rows = np.abs(oracles.symbol(kernel, oracles.grid((5, 5)))[:, 0]) ** 2
    exact = math.sqrt(np.sum(np.max(np.sum(rows, axis=-1), axis=0)))
    exact /= math.sqrt((1 - 2 / 5) * (1 - 1 / 5))
    found = float(classical.lip_grid_upper_bound(kernel, samples=5))
    assert exact <= found <= exact * (1 + 1e-12)
    # the filter has the values -1, 1, 1 at three frequencies and 5 / 3 between them; the published grid of
    # four points has both ends of [0, 2 pi], which are one, and its factor makes 2
    taps = np.asarray([-2.0, 1.0, -2.0]) / 3
    kernel = np.multiply.outer(taps, taps)[None, None]
    assert oracles.sup_reference(kernel)[0] == pytest.approx(25 / 9)
    for samples in (3, 4, 5, 8):
        assert float(classical.lip_grid_upper_bound(kernel, samples=samples)) >= 25 / 9


# --------------------------------------------------------------------- values and arguments


def needed(name):
    """Return the positional arguments that a method cannot do without, for one axis."""
    return () if METHODS[name].operator == "every size" else (4,)


@pytest.mark.parametrize("name", METHODS)
def test_special_values(be, name):
    dtype = stored_dtype(be, "float64")
    for entry, expected in ((0.0, 0.0), (np.nan, np.nan), (-np.inf, np.inf)):
        kernel = np.zeros((3, 2, 5), dtype)
        kernel[1, 0, 1] = entry
        np.testing.assert_equal(value(be, name, kernel, *needed(name)), expected)
    both = np.full((3, 2, 5), np.inf, dtype)
    both[2, 1, 3] = np.nan
    assert math.isnan(value(be, name, both, *needed(name)))
    assert value(be, name, np.zeros((0, 2, 3), dtype), *needed(name)) == 0


@pytest.mark.parametrize("name", METHODS)
def test_types_scales_and_integers(be, name):
    skip_on_jax(be)
    dtype = stored_dtype(be, "float64")
    kernel = np.asarray([[[2, -4, 2]], [[1, 1, 0]]])
    few = {"iterations": 30} if "iterations" in inspect.signature(function(name)).parameters else {}
    plain = value(be, name, kernel.astype(dtype), *needed(name), **few)
    for power in (-900, 900) if be.has_float64 else (-100, 100):
        scaled = value(be, name, (kernel * 2.0**power).astype(dtype), *needed(name), **few)
        assert scaled == pytest.approx(plain * 2.0**power, rel=1e-12 if be.has_float64 else 1e-5)
    x = be.asarray(kernel, dtype="int32")
    out = function(name)(x, *needed(name), **few)
    default = be.xp.__array_namespace_info__().default_dtypes(device=be.device)["real floating"]
    assert out.dtype == (default if be.has_float64 else be.xp.float32)
    assert float(be.to_numpy(out)) == pytest.approx(plain, rel=1e-5)
    single = function(name)(be.asarray(kernel, dtype="complex64"), *needed(name), **few)
    assert single.dtype == be.xp.float32
    assert float(be.to_numpy(single)) == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("name", named("upper bound") + named("lower bound"))
def test_bounds_of_half_precision_are_on_their_side(name):
    for seed in range(5):
        kernel = random_kernel(seed, (2, 2, 3)).astype(np.float16)
        out = function(name)(kernel, *needed(name))
        assert out.dtype == np.float32
        dense = oracles.conv_matrix(kernel.astype(float), (4,))
        if METHODS[name].side == "upper bound":
            assert oracles.check_upper(dense, float(out)) is oracles.Verdict.HOLDS
        else:
            assert oracles.check_lower(dense, float(out)) is oracles.Verdict.HOLDS


@pytest.mark.parametrize("name", METHODS)
def test_same_input_same_bits(name):
    kernel = random_kernel(5, (3, 2, 3))
    first, second = (function(name)(kernel.copy(), *needed(name)) for _ in range(2))
    assert first == second


def test_torch_and_jax_see_constants():
    torch = pytest.importorskip("torch")
    kernel = torch.ones((1, 1, 3), dtype=torch.float64, requires_grad=True)
    for name, method in METHODS.items():
        assert not method.function(kernel, *needed(name)).requires_grad
    jax = pytest.importorskip("jax")
    jnp = importlib.import_module("jax.numpy")
    with pytest.raises(TypeError, match="kernel has no values"):
        jax.jit(classical.norm2toep_upper_bound)(jnp.ones((1, 1, 3)))


@pytest.mark.parametrize("name", METHODS)
def test_common_arguments_are_checked(name):
    method, size = function(name), needed(name)
    with pytest.raises(TypeError, match="kernel"):
        method([[[1.0]]], *size)
    with pytest.raises(ValueError, match="kernel must have shape"):
        method(np.ones((2, 2)), *size)
    with pytest.raises(ValueError, match="groups must divide"):
        method(np.ones((3, 1, 2)), *size, groups=2)
    with pytest.raises(ValueError, match="stride must be at least 1"):
        method(np.ones((3, 1, 2)), *size, stride=0)
    with pytest.raises(TypeError, match="input_shape"):
        method(np.ones((3, 1, 2)), "4")


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].operator != "every size"])
def test_methods_of_one_size_ask_for_it_and_name_the_alternative(name):
    with pytest.raises(ValueError, match=r"input_shape must be given.*conv_norm_"):
        function(name)(np.ones((1, 1, 3)))


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("norm2toep_upper_bound", {"steps": 0}, ValueError, "steps must be at least 1"),
        ("norm2toep_upper_bound", {"steps": 1.5}, TypeError, "steps must be an integer"),
        ("fantastic_four_upper_bound", {"rtol": 0}, ValueError, "rtol"),
        ("lip_grid_upper_bound", {"samples": 2}, ValueError, "samples must be at least the taps"),
        ("tensor_norm_estimate", {"starts": 0}, ValueError, "starts"),
        ("tensor_norm_estimate", {"iterations": 0}, ValueError, "iterations"),
        ("circular_exact_norm", {"input_shape": 5, "stride": 2}, ValueError, "stride must divide"),
        ("power_iteration_lower_bound", {"input_shape": 5, "iterations": 0}, ValueError, "iter"),
        ("power_iteration_lower_bound", {"input_shape": 5, "padding": "x"}, ValueError, "padding"),
    ],
)
def test_own_arguments_are_checked(name, options, error, text):
    with pytest.raises(error, match=text):
        function(name)(np.ones((1, 1, 3)), **options)


def test_an_operator_without_outputs_has_norm_zero():
    kernel = np.ones((1, 1, 5))
    assert classical.power_iteration_lower_bound(kernel, 3, padding="valid") == 0


def test_the_package_itself_is_the_sharpest():
    kernel = random_kernel(6, (4, 3, 3, 3))
    bound = float(gn.conv_norm_bound(kernel))
    for name in named("upper bound"):
        assert bound <= float(function(name)(kernel)) * (1 + 1e-3)
