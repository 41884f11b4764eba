"""What every public function promises of types, devices, odd values, empty arrays and misuse."""

import math
import tomllib
from pathlib import Path

import numpy as np
import pytest

import gramnorm as gn

NARROW = {"float64": "float32", "complex128": "complex64"}
NAN, INF = math.nan, math.inf


def stored_dtype(be, dtype):
    return dtype if be.has_float64 else NARROW.get(dtype, dtype)


def default_dtype(be):
    """Return the namespace's default real floating type."""
    return be.xp.asarray(1.0, device=be.device).dtype


def matrix(be, dtype="float64", shape=(3, 2)):
    a = np.arange(1, 1 + math.prod(shape)).reshape(shape).astype(stored_dtype(be, dtype))
    return be.asarray(a)


def conv_bracket(x, **options):
    return gn.conv_norm_bracket(x, (6,), padding_mode="circular", **options)


# Each bounding function as one of a single array: the bracket, on three routes through the code.
BRACKETS = {
    "matrix": (gn.matrix_norm_bracket, (3, 2)),
    "circular": (conv_bracket, (2, 2, 3)),
    "every size": (gn.conv_norm_bracket, (2, 2, 2)),
    "zero padding": (lambda x, **o: gn.conv_norm_bracket(x, (6,), **o), (2, 2, 3)),
}
FIXED = {
    "gram": (lambda x: gn.gram_iteration(x, steps=3), (3, 2)),
    "conv gram": (lambda x: gn.conv_gram_iteration(x, (6,), steps=3), (2, 2, 3)),
}


@pytest.fixture(params=BRACKETS)
def bracketing(request):
    return BRACKETS[request.param]


# -------------------------------------------------------------------------------- at home


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_results_live_where_the_argument_lives(be, bracketing, dtype):
    function, shape = bracketing
    if be.compiles and dtype != "complex128":
        pytest.skip("a compilation per type")
    dtype = stored_dtype(be, dtype)
    x = matrix(be, dtype, shape)
    real = matrix(be, {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)).dtype
    bracket = function(x)
    for name in ("lower", "upper", "converged"):
        value = getattr(bracket, name)
        assert be.is_at_home(value), name
        assert value.shape == (), name
        assert value.dtype == (be.xp.bool if name == "converged" else real), name
    assert isinstance(bracket.n_products, int)
    assert bracket.left is None
    assert bracket.right is None


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_fixed_step_results_live_where_the_argument_lives(be, name, dtype):
    function, shape = FIXED[name]
    value = function(matrix(be, dtype, shape))
    assert be.is_at_home(value)
    real = {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    assert value.dtype == matrix(be, real).dtype
    assert value.shape == ()


def test_the_bracket_is_a_frozen_record(be):
    bracket = gn.matrix_norm_bracket(matrix(be))
    with pytest.raises(AttributeError):
        bracket.upper = 0
    assert isinstance(bracket, gn.NormBracket)
    assert bracket.frequency is None


def test_frequency_has_one_angle_per_axis(be):
    for bracket in (
        gn.conv_norm_bracket(matrix(be, shape=(1, 1, 2, 2))),
        gn.conv_norm_bracket(matrix(be, shape=(1, 1, 2, 2)), (4, 4), padding_mode="circular"),
    ):
        assert be.is_at_home(bracket.frequency)
        assert bracket.frequency.shape == (2,)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "bool"])
def test_integers_and_bool_are_promoted_to_the_default_type(be, dtype):
    host = np.asarray([[3, 0], [4, 0]]).astype(dtype)
    name = "bool" if dtype == "bool" else dtype
    x = be.xp.asarray(host, device=be.device)
    bound = gn.matrix_norm_bound(x)
    assert bound.dtype == default_dtype(be), name
    answer = math.sqrt(2) if dtype == "bool" else 5.0
    assert answer <= float(be.to_numpy(bound)) <= answer * (1 + 1e-4)
    if not be.id.startswith("jax"):
        kernel = be.xp.asarray(host[None], device=be.device)
        assert gn.conv_norm_bound(kernel).dtype == default_dtype(be)
        assert gn.gram_iteration(x, steps=2).dtype == default_dtype(be)


def test_large_integers_are_not_rounded_down(be):
    x = be.xp.asarray(np.asarray([[2**62 + 1]]), device=be.device)
    stored = int(be.to_numpy(x)[0, 0])  # JAX without 64-bit types has cut it already
    assert int(float(be.to_numpy(gn.matrix_norm_bound(x)))) >= stored


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_accepted_and_bounded_in_single(be, dtype):
    if not hasattr(be.xp, dtype):
        pytest.skip(f"{be.id} has no {dtype}")
    rng = np.random.default_rng(0)
    host = rng.standard_normal((4, 6, 6)).astype("float32")
    x = be.xp.astype(be.asarray(host), getattr(be.xp, dtype))
    stored = be.to_numpy(x).astype("float64")
    bracket = gn.matrix_norm_bracket(x)
    assert bracket.upper.dtype == be.xp.float32
    assert bracket.lower.dtype == be.xp.float32
    assert np.all(be.to_numpy(bracket.converged))
    upper, lower = (be.to_numpy(v).astype("float64") for v in (bracket.upper, bracket.lower))
    s = np.linalg.svd(stored, compute_uv=False)[:, 0]
    assert np.all(lower <= s)
    assert np.all(s <= upper)
    assert np.all(upper <= s * (1 + 1.01e-4))
    assert gn.conv_norm_bound(x[:, :, :2]).dtype == be.xp.float32


def test_half_precision_has_norms_beyond_its_largest_number(be):
    if not hasattr(be.xp, "float16"):
        pytest.skip(f"{be.id} has no float16")
    x = be.xp.astype(be.asarray(np.full((6, 6), 60000.0, "float32")), be.xp.float16)
    bracket = gn.matrix_norm_bracket(x)
    assert float(be.to_numpy(bracket.lower)) <= 360000 <= float(be.to_numpy(bracket.upper))
    assert bool(be.to_numpy(bracket.converged))


def test_single_precision_overflow_is_infinite_above_only(be):
    x = be.asarray(np.full((6, 6), 3e38, "float32"))
    bracket = gn.matrix_norm_bracket(x)
    assert float(be.to_numpy(bracket.upper)) == INF
    assert float(be.to_numpy(bracket.lower)) <= np.finfo("float32").max
    assert not bool(be.to_numpy(bracket.converged))


def test_the_argument_is_not_written_to(be, bracketing):
    function, shape = bracketing
    x = matrix(be, "float64", shape)
    before = be.to_numpy(x).copy()
    function(x)
    for fixed, of_shape in FIXED.values():
        if of_shape == shape:
            fixed(x)
    assert np.array_equal(be.to_numpy(x), before)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_the_same_bits_twice(be, bracketing, dtype):
    if be.compiles and dtype == "complex128":
        pytest.skip("a compilation per type")
    function, shape = bracketing
    rng = np.random.default_rng(1)
    host = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype("complex128")
    host = (host if dtype[0] == "c" else host.real).astype(stored_dtype(be, dtype))
    first, second = (function(be.asarray(host.copy())) for _ in range(2))
    for name in ("lower", "upper", "converged"):
        a, b = (be.to_numpy(getattr(x, name)) for x in (first, second))
        assert a.tobytes() == b.tobytes(), name
    assert first.n_products == second.n_products


# ----------------------------------------------------------------------------- odd values


def numbers(be, bracket):
    return (be.to_numpy(v) for v in (bracket.lower, bracket.upper, bracket.converged))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_nan_and_inf_stay_in_their_own_matrix(be, dtype):
    if be.compiles and dtype in ("float32", "complex64"):
        pytest.skip("a compilation per type")
    host = np.ones((7, 4, 3), stored_dtype(be, dtype))
    host[1, 0, 0] = NAN
    host[2, 3, 2] = INF
    host[3, 1, 1] = -INF
    host[4, 0, 0], host[4, 0, 1] = NAN, INF
    host[5] = 0
    if dtype[0] == "c":
        host[1, 0, 0], host[2, 3, 2] = complex(1, NAN), complex(1, INF)
    lower, upper, converged = numbers(be, gn.matrix_norm_bracket(be.asarray(host)))
    assert np.all(np.isnan(upper[[1, 4]]))
    assert np.all(np.isnan(lower[[1, 4]]))
    assert np.all(upper[[2, 3]] == INF)
    assert not np.any(converged[[1, 4]])
    assert upper[5] == lower[5] == 0
    assert converged[5]
    root = math.sqrt(12)
    for i in (0, 6):
        assert lower[i] <= root * (1 + 1e-15)
        assert root * (1 - 1e-15) <= upper[i] <= root * (1 + 1e-4)
        assert converged[i]
    bound = be.to_numpy(gn.matrix_norm_bound(be.asarray(host)))
    assert np.array_equal(bound, upper, equal_nan=True)


def test_nan_in_a_large_matrix_is_not_lost(be):
    host = np.zeros((30, 20), stored_dtype(be, "float64"))
    host[17, 3] = NAN
    assert math.isnan(float(be.to_numpy(gn.matrix_norm_bound(be.asarray(host)))))


@pytest.mark.parametrize("name", ["circular", "every size", "zero padding"])
def test_nan_and_inf_in_a_kernel(be, name):
    function, shape = BRACKETS[name]
    dtype = stored_dtype(be, "float64")
    for value in (NAN, INF, -INF):
        host = np.ones(shape, dtype)
        host[0, 1, 1] = value
        with np.errstate(all="ignore"):
            lower, upper, converged = numbers(be, function(be.asarray(host)))
        if math.isnan(value):
            assert math.isnan(upper)
            assert math.isnan(lower)
            assert not converged
        else:
            assert upper == INF
    host[0, 0, 0] = NAN
    assert math.isnan(numbers_upper(be, function(be.asarray(host))))


def numbers_upper(be, bracket):
    return float(be.to_numpy(bracket.upper))


def test_zero_is_exactly_zero(be, bracketing):
    function, shape = bracketing
    for host in (np.zeros(shape), -np.zeros(shape)):
        bracket = function(be.asarray(host.astype(stored_dtype(be, "float64"))))
        lower, upper, converged = numbers(be, bracket)
        assert lower == upper == 0
        assert converged


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3), (2, 3, 0)])
def test_empty_matrices_have_norm_zero(be, shape):
    x = be.asarray(np.zeros(shape, stored_dtype(be, "float64")))
    lower, upper, converged = numbers(be, gn.matrix_norm_bracket(x))
    assert lower.shape == upper.shape == converged.shape == shape[:-2]
    assert np.all(lower == 0)
    assert np.all(upper == 0)
    assert np.all(converged)
    assert np.all(be.to_numpy(gn.matrix_norm_bound(x)) == 0)
    assert np.all(be.to_numpy(gn.gram_iteration(x, steps=2)) == 0)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3, 2), (0, 0, 0)])
def test_empty_stacks_give_empty_results(be, shape):
    x = be.asarray(np.zeros(shape, "float32"))
    bracket = gn.matrix_norm_bracket(x)
    for value in (bracket.lower, bracket.upper, bracket.converged, gn.matrix_norm_bound(x)):
        assert value.shape == shape[:-2]
        assert be.is_at_home(value)
    assert gn.gram_iteration(x, steps=2).shape == shape[:-2]
    assert gn.matrix_norm_bound(x, keepdims=True).shape == (*shape[:-2], 1, 1)


def test_kernels_without_channels_have_norm_zero(be):
    for shape in ((0, 2, 3), (2, 0, 3)):
        x = be.asarray(np.zeros(shape, "float32"))
        for options in ({}, {"input_shape": (4,), "padding_mode": "circular"}):
            assert float(be.to_numpy(gn.conv_norm_bound(x, **options))) == 0


def test_overflow_of_the_bound_is_infinite(be):
    for dtype in {"float32", stored_dtype(be, "float64")}:
        top = np.finfo(dtype).max
        with np.errstate(all="ignore"):
            bracket = gn.matrix_norm_bracket(be.asarray(np.full((3, 3), top, dtype)))
            kernel = be.asarray(np.full((1, 1, 3), top, dtype))
            every = gn.conv_norm_bracket(kernel)
        for found in (bracket, every):
            lower, upper, converged = numbers(be, found)
            assert upper == INF
            assert lower <= top
            assert not converged


def test_the_extremes_of_the_type_are_bounded(be):
    dtype = stored_dtype(be, "float64")
    info = np.finfo(dtype)
    single = be.asarray(np.asarray([[info.max]]))
    lower, upper, _ = numbers(be, gn.matrix_norm_bracket(single))
    assert lower <= info.max <= upper
    least = info.smallest_subnormal
    host = np.asarray([[least, least]])
    lower, upper, _ = numbers(be, gn.matrix_norm_bracket(be.asarray(host)))
    assert lower <= least
    assert upper >= 2 * np.asarray(least)  # 1.41 of the least number rounds up to two of it
    assert upper <= 4 * info.smallest_normal


# ------------------------------------------------------------------------------- keepdims


@pytest.mark.parametrize("shape", [(3, 2), (4, 3, 2), (2, 1, 3, 2)])
def test_keepdims(be, shape):
    if be.compiles and len(shape) != 3:
        pytest.skip("a compilation per shape")
    host = np.random.default_rng(2).standard_normal(shape).astype("float32")
    flat = be.to_numpy(gn.matrix_norm_bound(be.asarray(host)))
    kept = be.to_numpy(gn.matrix_norm_bound(be.asarray(host), keepdims=True))
    assert flat.shape == shape[:-2]
    assert kept.shape == (*shape[:-2], 1, 1)
    assert np.array_equal(kept[..., 0, 0], flat)


# --------------------------------------------------------------------------------- misuse

ALL = {
    "matrix_norm_bound": gn.matrix_norm_bound,
    "matrix_norm_bracket": gn.matrix_norm_bracket,
    "gram_iteration": lambda x: gn.gram_iteration(x, steps=2),
    "conv_norm_bound": gn.conv_norm_bound,
    "conv_norm_bracket": gn.conv_norm_bracket,
    "conv_gram_iteration": lambda x: gn.conv_gram_iteration(x, (4,), steps=2),
}
NOT_ARRAYS = {
    "list": [[1.0, 2.0]],
    "tuple": ((1.0,),),
    "float": 1.0,
    "None": None,
    "string": "abc",
    "masked": np.ma.masked_array(np.ones((2, 2, 2)), mask=False),
    "object": np.ones((2, 2, 2), dtype=object),
    "text": np.full((2, 2, 2), "a"),
    "date": np.zeros((2, 2, 2), dtype="datetime64[s]"),
    "longdouble": np.ones((2, 2, 2), dtype=np.longdouble),
    "clongdouble": np.ones((2, 2, 2), dtype=np.clongdouble),
}


def long_is_double(value):
    return getattr(value, "dtype", None) in (np.longdouble, np.clongdouble) and (
        np.finfo(np.longdouble).eps == np.finfo(np.float64).eps
    )


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("kind", NOT_ARRAYS)
def test_what_is_no_plain_array_is_a_type_error(function, kind):
    value = NOT_ARRAYS[kind]
    if long_is_double(value):
        pytest.skip("long double is double here")
    name = "x" if "matrix" in function or function == "gram_iteration" else "kernel"
    with pytest.raises(TypeError, match=rf"\b{name}\b"):
        ALL[function](value)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("function", ["matrix_norm_bound", "matrix_norm_bracket", "gram_iteration"])
def test_numpy_matrix_is_a_type_error(function):
    with pytest.raises(TypeError, match=r"\bx\b"):
        ALL[function](np.matrix([[1.0, 2.0]]))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_matrix_has_two_axes(be, shape):
    x = be.asarray(np.ones(shape, "float32"))
    for function in ("matrix_norm_bound", "matrix_norm_bracket", "gram_iteration"):
        with pytest.raises(ValueError, match=r"\bx\b"):
            ALL[function](x)


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_a_kernel_has_a_spatial_axis(be, shape):
    x = be.asarray(np.ones(shape, "float32"))
    for function in ("conv_norm_bound", "conv_norm_bracket", "conv_gram_iteration"):
        with pytest.raises(ValueError, match=r"\bkernel\b"):
            ALL[function](x)


@pytest.mark.parametrize("rtol", [0, -1e-3, NAN, INF, "1e-3", [1e-3], 1j, 0.0])
def test_rtol_is_a_positive_number(be, rtol):
    for function, shape in BRACKETS.values():
        with pytest.raises((TypeError, ValueError), match=r"\brtol\b"):
            function(matrix(be, shape=shape), rtol=rtol)
    with pytest.raises((TypeError, ValueError), match=r"\brtol\b"):
        gn.matrix_norm_bound(matrix(be), rtol=rtol)
    with pytest.raises((TypeError, ValueError), match=r"\brtol\b"):
        gn.conv_norm_bound(matrix(be, shape=(1, 1, 2)), rtol=rtol)


WRONG = {
    "groups that do not divide": ({"groups": 2}, "groups"),
    "groups zero": ({"groups": 0}, "groups"),
    "groups of a float": ({"groups": 1.5}, "groups"),
    "dilation zero": ({"dilation": 0}, "dilation"),
    "dilation per wrong axes": ({"dilation": (1, 1, 1)}, "dilation"),
    "dilation of a float": ({"dilation": 1.5}, "dilation"),
    "stride zero": ({"stride": 0}, "stride"),
    "stride per wrong axes": ({"stride": (1, 1, 1)}, "stride"),
    "input_shape of wrong axes": ({"input_shape": (4,)}, "input_shape"),
    "input_shape with zero": ({"input_shape": (4, 0)}, "input_shape"),
    "input_shape with minus": ({"input_shape": (4, -2)}, "input_shape"),
    "input_shape of floats": ({"input_shape": (4.5, 4)}, "input_shape"),
    "padding_mode unknown": ({"padding_mode": "wrap"}, "padding_mode"),
    "padding unknown": ({"input_shape": (4, 4), "padding": "some"}, "padding"),
    "padding negative": ({"input_shape": (4, 4), "padding": -1}, "padding"),
    "padding per wrong axes": ({"input_shape": (4, 4), "padding": (1, 1, 1)}, "padding"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_geometry_names_its_argument(be, name):
    options, match = WRONG[name]
    kernel = matrix(be, shape=(3, 2, 3, 3))
    for function in (gn.conv_norm_bound, gn.conv_norm_bracket):
        with pytest.raises((TypeError, ValueError), match=match) as caught:
            function(kernel, **options)
        assert not isinstance(caught.value, NotImplementedError)


def test_an_operator_without_outputs_has_norm_zero(be):
    kernel = matrix(be, shape=(3, 2, 3, 3))
    assert float(be.to_numpy(gn.conv_norm_bound(kernel, (2, 2), padding="valid"))) == 0


def test_an_integer_means_all_axes(be):
    kernel = matrix(be, shape=(1, 2, 2, 2))
    for whole, each in (
        ({"input_shape": 4, "dilation": 2}, {"input_shape": (4, 4), "dilation": (2, 2)}),
        ({"input_shape": 3, "stride": 1}, {"input_shape": (3, 3), "stride": (1, 1)}),
    ):
        bounds = [gn.conv_norm_bound(kernel, padding_mode="circular", **o) for o in (whole, each)]
        assert be.to_numpy(bounds[0]) == be.to_numpy(bounds[1])
    padded = [gn.conv_norm_bound(kernel, (3, 3), padding=p) for p in (1, (1, 1), ((1, 1), (1, 1)))]
    assert len({float(be.to_numpy(b)) for b in padded}) == 1


def test_arrays_are_positional_and_options_are_named(be):
    x = matrix(be)
    with pytest.raises(TypeError):
        gn.matrix_norm_bound(x=x)
    with pytest.raises(TypeError):
        gn.matrix_norm_bound(x, 1e-3)
    with pytest.raises(TypeError):
        gn.gram_iteration(x, 3)
    with pytest.raises(TypeError):
        gn.gram_iteration(x)


# ---------------------------------------------------------------------- torch's own oddities


def test_torch_leaves_and_lazy_conjugates_are_read():
    torch = pytest.importorskip("torch")
    a = np.asarray([[1, 2j], [0, 3]])
    answer = gn.matrix_norm_bracket(a)
    x = torch.tensor(a)
    for y in (x, x.conj(), x.mH, x.mT, x.clone().requires_grad_()):
        bracket = gn.matrix_norm_bracket(y)
        assert float(bracket.upper.detach()) == pytest.approx(float(answer.upper), rel=1e-6)
        assert float(bracket.lower.detach()) <= float(answer.upper)
    strided = torch.tensor(np.ones((6, 6)))[::2, ::3]
    assert float(gn.matrix_norm_bound(strided)) == pytest.approx(math.sqrt(6), rel=1e-6)


def test_numpy_views_of_any_order_give_the_same_answer():
    a = np.random.default_rng(3).standard_normal((6, 4))
    upper = gn.matrix_norm_bracket(a).upper
    for view in (np.asfortranarray(a), a[::-1], np.ascontiguousarray(a[:, ::-1])):
        assert float(gn.matrix_norm_bound(view)) == pytest.approx(float(upper), rel=1e-6)
    swapped = a.astype(a.dtype.newbyteorder())
    try:
        bound = gn.matrix_norm_bound(swapped)
    except TypeError as error:
        assert "x" in str(error)  # noqa: PT017 - refusing is as good as answering
    else:
        assert float(bound) == pytest.approx(float(upper), rel=1e-6)


# --------------------------------------------------------------------- what is none of ours


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert gn.__version__ == project["project"]["version"]


class Namespace:
    float64 = np.float64


class Withheld:
    """An array of the standard that keeps its values to itself, as sparse and lazy ones do."""

    shape, ndim, dtype = (4, 3, 2), 3, np.dtype("float64")

    def __init__(self, error):
        self.error = error

    def __array_namespace__(self, api_version=None):
        return Namespace

    def __getitem__(self, key):
        return self

    def __dlpack__(self, **_):
        raise self.error

    def __dlpack_device__(self):
        return (1, 0)


class Unnamed(Withheld):
    """One whose types have names of their own."""

    dtype = "Nullable"


@pytest.mark.parametrize("kind", [Withheld, Unnamed])
@pytest.mark.parametrize(
    "error", [AttributeError("a"), BufferError("b"), ValueError("c"), TypeError("d")]
)
def test_arrays_that_withhold_their_values_are_named(kind, error):
    x = kind(error)
    for call, name in ((gn.matrix_norm_bound, "x"), (gn.matrix_norm_bracket, "x"),
                       (gn.conv_norm_bound, "kernel"), (gn.fir_norm, "taps")):  # fmt: skip
        with pytest.raises(TypeError, match=rf"^{name} is a .*{kind.__name__}.*numpy\.asarray"):
            call(x)


def test_an_operator_is_sent_to_the_lower_bound():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    operator = linalg.aslinearoperator(np.eye(3))
    for call in (gn.matrix_norm_bound, gn.matrix_norm_bracket):
        with pytest.raises(TypeError, match=r"operator_norm_lower_bound\(x\)"):
            call(operator)
    assert gn.matrix_norm_bound(operator @ np.eye(operator.shape[1])) >= 1


def test_an_operator_without_adjoint_products_is_told_so():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    operator = linalg.LinearOperator((3, 3), matvec=lambda x: x, dtype=np.float64)
    for call in (
        gn.operator_norm_lower_bound,
        lambda a: gn.operator_norm_bracket(a, nonnegative=True),
    ):
        with pytest.raises(TypeError, match="rmatvec="):
            call(operator)
