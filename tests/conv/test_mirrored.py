"""Inputs continued by their own samples: cosines, moduli, and windows at the ends."""

import math
from functools import reduce

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._arrays import limits
from gramnorm._conv import cosines, finite, finite_banded, finite_ends, finite_moduli
from gramnorm._conv.geometry import Axis, ConvGeometry, correlate
from tests.harness import oracles
from tests.harness.convolutions import ask, stored_dtype

NUMPY = {"symmetric": "symmetric", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
MIRRORED = {
    "1-D": ((2, 3, 5), (7,), {}),
    "more taps than samples": ((2, 2, 9), (3,), {}),
    "one sample": ((2, 1, 5), (1,), {}),
    "dilation prime to the circle": ((2, 2, 3), (5,), {"dilation": 3}),
    "dilation 2": ((2, 2, 3), (7,), {"dilation": 2}),
    "dilation divides": ((1, 2, 5), (6,), {"dilation": 4}),
    "even taps": ((2, 2, 2), (6,), {"dilation": 2}),
    "2-D": ((3, 2, 3, 5), (6, 4), {}),
    "2-D, groups": ((4, 1, 3, 3), (5, 6), {"groups": 2}),
    "2-D, one tap": ((2, 2, 1, 3), (4, 5), {}),
    "3-D": ((2, 1, 3, 1, 3), (3, 2, 4), {}),
}


def some(shape, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return (x + 1j * rng.standard_normal(shape) if "complex" in dtype else x).astype(dtype)


def mirrored(shape, dtype="float64", seed=0, *, odd=()):
    """Return a kernel whose output channels are even along each axis, or odd where (row, axis) is in `odd`."""
    x = some(shape, dtype, seed)
    for axis in range(len(shape) - 2):
        signs = [-1.0 if (row, axis) in odd else 1.0 for row in range(shape[0])]
        signs = np.asarray(signs, x.real.dtype).reshape(-1, *(1 for _ in shape[1:]))
        x = x + signs * np.flip(x, 2 + axis)
    return x.astype(dtype)


def blur(width, sigma):
    profile = np.exp(-((np.arange(width) - width // 2) ** 2) / (2 * sigma**2))
    return np.multiply.outer(profile, profile)[None, None] / np.sum(profile) ** 2


def padded_matrix(kernel, shape, mode, dilation=1, groups=1):
    """Return the operator by numpy.pad and one valid correlation for each input."""
    dims = len(shape)
    d = oracles.per_axis(dilation, dims)
    c_out, c_in, *taps = kernel.shape
    reach = [e * (k - 1) for e, k in zip(d, taps, strict=True)]
    pads = [(0, 0), *((r // 2, r - r // 2) for r in reach)]
    columns = []
    for place in np.ndindex(c_in * groups, *shape):
        x = np.zeros((c_in * groups, *shape))
        x[place] = 1
        x = np.pad(x, pads, mode=NUMPY[mode])
        y = np.zeros((c_out, *shape), dtype=kernel.dtype)
        for g in range(groups):
            rows = slice(g * (c_out // groups), (g + 1) * (c_out // groups))
            for k in np.ndindex(*taps):
                read = (slice(e * i, e * i + n) for e, i, n in zip(d, k, shape, strict=True))
                part = x[(slice(g * c_in, (g + 1) * c_in), *read)]
                y[rows] += np.tensordot(kernel[(rows, slice(None), *k)], part, axes=1)
        columns.append(y.reshape(-1))
    return np.stack(columns, axis=1)


def norm_of(kernel, shape, mode, **options):
    wide = np.complex128 if np.iscomplexobj(kernel) else np.float64
    return float(np.linalg.norm(padded_matrix(kernel.astype(wide), shape, mode, **options), 2))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("case", MIRRORED)
def test_symmetric_padding_is_a_maximum_over_cosines(be, case, dtype):
    shape, size, options = MIRRORED[case]
    if be.id == "jax-device" and (case, dtype) != ("2-D", "float64"):
        pytest.skip("a compilation per shape")
    kernel = mirrored(shape, stored_dtype(be, dtype), odd=((0, 0), (1, len(size) - 1)))
    stored, lower, upper, converged = ask(be, kernel, size, padding_mode="symmetric", **options)
    exact = norm_of(stored, size, "symmetric", **options)
    slack = 1e-12 * (1 + exact)
    assert lower <= exact + slack
    assert exact - slack <= upper
    assert converged or exact < 1e-12
    frequency = gn.conv_norm_bracket(
        be.asarray(kernel), size, padding_mode="symmetric", **options
    ).frequency
    numbers = be.to_numpy(frequency) * np.asarray(size) / math.pi
    assert np.all(np.abs(numbers - np.round(numbers)) < 1e-5)
    assert np.all((numbers > -1e-5) & (numbers < np.asarray(size) - 0.5))


def test_the_bracket_is_as_narrow_as_rounding_allows():
    kernel = mirrored((3, 2, 3, 3))
    bracket = gn.conv_norm_bracket(kernel, (6, 5), padding_mode="symmetric", rtol=1e-11)
    assert bracket.converged
    exact = norm_of(kernel, (6, 5), "symmetric")
    assert abs(bracket.upper / exact - 1) < 1e-11


@pytest.mark.parametrize("n", [1, 2, 3, 8, 31, 64, 1000])
def test_the_highest_frequency_does_not_count(n):
    """The second difference has eigenvalues 2 - 2 cos(pi j / n), j < n: never 4."""
    kernel = np.asarray([[[-1.0, 2.0, -1.0]]])
    bracket = gn.conv_norm_bracket(kernel, (n,), padding_mode="symmetric", rtol=1e-9)
    exact = 2 + 2 * math.cos(math.pi / n)
    assert bracket.lower <= exact * (1 + 1e-15) <= bracket.upper + 1e-12
    assert bracket.converged or n == 1
    assert exact == 0 or abs(bracket.frequency[0] - math.pi * (n - 1) / n) < 1e-12


@pytest.mark.parametrize("size", [(40, 45), (300, 200)])
def test_a_grid_that_is_searched_by_boxes_leaves_it_out_too(monkeypatch, size):
    monkeypatch.setattr(limits, "FULL_GRID", 0)
    kernel = np.multiply.outer([-1.0, 2.0, -1.0], [-1.0, 0.0, 2.0, 0.0, -1.0])[None, None]
    bracket = gn.conv_norm_bracket(kernel, size, padding_mode="symmetric", rtol=1e-8)
    one, two = (np.pi * np.arange(n) / n for n in size)
    exact = np.max(2 - 2 * np.cos(one)) * np.max(2 - 2 * np.cos(2 * two))
    assert bracket.lower <= exact * (1 + 1e-13)
    assert exact * (1 - 1e-13) <= bracket.upper
    assert bracket.converged


def test_it_costs_no_more_than_a_circle_of_twice_the_size():
    for kernel in (blur(9, 2.0), mirrored((4, 4, 3, 3)), mirrored((2, 2, 5, 5), seed=1)):
        for n in (6, 32, 256):
            mirror = gn.conv_norm_bracket(kernel, (n, n), padding_mode="symmetric")
            circle = gn.conv_norm_bracket(kernel, (2 * n, 2 * n), padding_mode="circular")
            assert mirror.n_products <= 2 * circle.n_products, (kernel.shape, n)


NOT_MIRRORED = {
    "one unit in the last place": lambda k: np.where(k == k.max(), np.nextafter(k, np.inf), k),
    "one axis only": lambda k: k + np.arange(3.0)[:, None],
    "channels even and odd in one row": lambda k: (
        k * np.asarray([[1.0, 1.0, -1.0]] * 3)[None, :, :]
    ),
}


@pytest.mark.parametrize("name", NOT_MIRRORED)
def test_what_is_not_quite_mirrored_goes_another_way(name):
    kernel = mirrored((1, 1, 3, 3))
    kernel[..., 1, 0] = kernel[..., 1, 2] = 9.0
    if name.startswith("channels"):
        kernel = np.concatenate([kernel, mirrored((1, 1, 3, 3), odd=((0, 1),))], axis=1)
    else:
        kernel = NOT_MIRRORED[name](kernel)
        if name.startswith("one unit"):
            kernel[0, 0, 1, 2] = 9.0
    axes = ConvGeometry.of(kernel.shape, (4, 5), padding_mode="symmetric").axes()
    taps = kernel.transpose(2, 3, 0, 1).reshape(9, 1, *kernel.shape[:2])
    assert not cosines.diagonalise(taps, axes)
    bracket = gn.conv_norm_bracket(kernel, (4, 5), padding_mode="symmetric", rtol=1e-9)
    exact = norm_of(kernel, (4, 5), "symmetric")
    assert bracket.lower <= exact * (1 + 1e-13)
    assert exact * (1 - 1e-13) <= bracket.upper
    assert bracket.frequency is None


@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"padding": 0}, {"padding": ((0, 2),)}, {"padding_mode": "reflect"}],
)
def test_other_operators_are_not_diagonal(options):
    kernel = mirrored((1, 1, 3))
    options = {"padding_mode": "symmetric", **options}
    axes = ConvGeometry.of(kernel.shape, (6,), **options).axes()
    assert not cosines.diagonalise(kernel.transpose(2, 0, 1)[:, None], axes)


def test_the_middle_counts_and_not_the_borders_of_zeros():
    kernel = np.zeros((1, 1, 5))
    kernel[..., 2:] = 1.0, 3.0, 1.0
    bracket = gn.conv_norm_bracket(
        kernel, (6,), padding=((3, 1),), padding_mode="symmetric", rtol=1e-12
    )
    assert bracket.lower <= 5.0 <= bracket.upper <= 5.0 * (1 + 1e-12)
    assert bracket.frequency.tolist() == [0.0]


@pytest.mark.parametrize(
    ("shape", "size", "dtype", "dilation"),
    [
        ((2, 2, 5), (7,), "float64", 1),
        ((2, 3, 3, 3), (4, 5), "float64", 1),
        ((2, 1, 3, 3), (4, 5), "complex128", 1),
        ((2, 2, 3), (6,), "complex128", 4),
    ],
)
def test_the_gradient_at_cosines_is_that_of_the_norm(shape, size, dtype, dilation):
    kernel = mirrored(shape, dtype, seed=5, odd=((0, 0),))
    options = {"padding_mode": "symmetric", "dilation": dilation}
    value, gradient = gn.conv_norm_value_and_grad(kernel, size, rtol=1e-10, **options)
    assert abs(value - norm_of(kernel, size, "symmetric", dilation=dilation)) < 1e-9
    for seed in range(6):
        step = 1e-6 * some(shape, dtype, seed=seed)
        ends = [norm_of(kernel + e, size, "symmetric", dilation=dilation) for e in (step, -step)]
        slope = np.sum((np.conj(gradient) * step).real)
        assert abs((ends[0] - ends[1]) / 2 - slope) <= 1e-6 * np.linalg.norm(step)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_vectors_are_cosines(be, dtype):
    if be.id == "jax-device":
        pytest.skip("a compilation per shape")
    kernel = mirrored((2, 3, 3, 3), stored_dtype(be, dtype), odd=((1, 0),))
    options = {"padding_mode": "symmetric"}
    bracket = gn.conv_norm_bracket(be.asarray(kernel), (200, 150), vectors=True, **options)
    assert be.to_numpy(bracket.converged)
    right, theta = be.to_numpy(bracket.right), be.to_numpy(bracket.frequency)
    waves = [np.cos(t * (np.arange(n) + 0.5)) for t, n in zip(theta, (200, 150), strict=True)]
    flat = right.reshape(3, -1)
    wave = reduce(np.multiply.outer, waves).reshape(-1)
    rest = flat - np.outer(flat @ wave, wave) / (wave @ wave)
    assert np.linalg.norm(rest) < (1e-10 if be.has_float64 else 1e-4)


# ---------------------------------------------------------------------------------- other mirrors


@pytest.fixture
def nothing_assembled(monkeypatch):
    for name in ("LONGEST", "CORNER_SECONDS"):
        monkeypatch.setattr(limits, name, 0.0)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "symmetric"])
@pytest.mark.parametrize("n", [32, 513])
def test_a_blur_converges_at_every_size(mode, n):
    """The norm of 512 x 512 samples under 9 x 9 taps was missed by a factor of two and more."""
    kernel = blur(9, 1.4)
    bracket = gn.conv_norm_bracket(kernel, (n, n), padding_mode=mode)
    profile = np.sum(kernel[0, 0], axis=0)
    line = padded_matrix(profile[None, None], (n,), mode)
    exact = float(np.linalg.norm(line, 2)) ** 2  # of a product of two axes
    assert bracket.converged
    assert bracket.lower <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= bracket.upper


MODULI = {
    "1-D": ((2, 2, 4), (40,), {"padding": ((1, 3),)}),
    "stride": ((2, 1, 4), (50,), {"stride": 3, "padding": 2}),
    "dilation": ((1, 2, 3), (45,), {"dilation": 2}),
    "2-D, groups": ((2, 1, 3, 3), (9, 30), {"groups": 2}),
    "stride in one axis": ((1, 1, 3, 3), (21, 8), {"stride": (2, 1), "padding": 1}),
}


@pytest.mark.parametrize("mode", ["reflect", "replicate", "symmetric"])
@pytest.mark.parametrize("case", MODULI)
def test_moduli_bound_a_longer_axis(monkeypatch, nothing_assembled, case, mode):
    monkeypatch.setattr(limits, "MODULI_MIDDLE", 8)
    shape, size, options = MODULI[case]
    kernel = np.abs(some(shape))
    lowers = []
    plain = finite_moduli.bracket

    def noted(*args, **kwargs):
        lowers.append(plain(*args, **kwargs))
        return lowers[-1]

    monkeypatch.setattr(finite_moduli, "bracket", noted)
    options = {"padding_mode": mode, **options}
    bracket = gn.conv_norm_bracket(kernel, size, **options)
    exact = float(oracles.sigma(oracles.conv_matrix(kernel, size, **options)))
    assert bracket.lower <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= bracket.upper
    # scaled by a power of two, and close in spite of the short axes
    scale = 2.0 ** math.floor(math.log2(np.max(kernel)) + 1)
    (found,) = lowers
    assert found.lower * scale <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= found.upper * scale <= 1.15 * exact


@pytest.mark.parametrize("zeros", [111, 115, 200])
def test_samples_that_no_output_reads_are_no_middle(zeros):
    """They lie beside the end of a kernel that ends in zeros; the first sample is read six times."""
    kernel = np.zeros((1, 1, 1 + zeros))
    kernel[..., 0] = 1.0
    options = {"padding": ((5, 0),), "padding_mode": "replicate"}
    bracket = gn.conv_norm_bracket(kernel, 100_000, **options)
    assert bracket.lower <= math.sqrt(6) * (1 + 1e-12)
    assert math.sqrt(6) * (1 - 1e-12) <= bracket.upper <= math.sqrt(6) * (1 + 1e-3)
    backwards = gn.conv_norm_bracket(np.flip(kernel), 100_000, **(options | {"padding": ((0, 5),)}))
    assert math.sqrt(6) * (1 - 1e-12) <= backwards.upper


def test_moduli_of_complex_taps_are_rounded_in_double_precision():
    """On a device without it taps arrive in single precision."""
    taps = np.full((3, 1, 1, 1), 0.1 + 0.7j, dtype=np.complex64)
    axes = ConvGeometry.of((1, 1, 3), (40,), padding_mode="reflect").axes()
    wide = taps.astype(np.complex128)
    exact = float(np.linalg.norm(padded_matrix(wide.transpose(1, 2, 3, 0)[0], (40,), "reflect"), 2))
    supremum = 3 * float(abs(wide[0, 0, 0, 0]))
    found = finite_moduli.bracket(taps, axes, np.zeros(1), supremum, rtol=1e-12)
    assert exact * (1 - 1e-14) <= found.upper <= exact * (1 + 1e-9)


def test_signs_that_alternate_are_taken_away():
    signs = (-1.0) ** np.add.outer(np.arange(5), np.arange(5))
    kernel = blur(5, 1.0) * signs
    bracket = gn.conv_norm_bracket(kernel, (300, 300), padding_mode="reflect")
    plain = gn.conv_norm_bracket(np.abs(kernel), (300, 300), padding_mode="reflect")
    assert bracket.converged
    assert plain.converged
    assert abs(bracket.upper / plain.upper - 1) < 1e-12


def test_repeating_samples_keeps_every_quotient():
    """A vector that repeats itself gives the same quotients at every larger size."""
    axis = Axis(4, 2, 1, 2, 31, 16, "replicate")
    rng = np.random.default_rng(0)
    taps = np.abs(some((4, 2, 3)))
    found = []
    w = np.exp(0.1 * rng.standard_normal((3, 31)))
    for more in (10, 18, 60):
        longer = Axis(4, 2, 1, 2, 31 + more, 16 + more // 2, "replicate")
        x = w[:, finite_moduli._repeating(w, 1, axis, 31 + more)].reshape(-1)
        m = finite_moduli._moduli(taps, [longer])
        found.append(np.unique(np.round(m.backward(m.forward(x)) / x, 12)))
        kernel = taps.transpose(1, 2, 0)
        y = correlate(kernel, x.reshape(3, -1), [longer], 1)
        assert np.allclose(m.forward(x), y.reshape(-1), rtol=1e-13)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


WINDOWS = {
    "1-D": ((2, 2, 3), (60,), {}),
    "uneven": ((1, 1, 4), (50,), {"padding": ((0, 5),)}),
    "stride": ((2, 1, 3), (64,), {"stride": 2, "padding": 1}),
    "dilation": ((1, 2, 2), (60,), {"dilation": 2, "padding": 1}),
    "2-D": ((1, 1, 3, 3), (14, 30), {}),
    "2-D, one tap": ((2, 1, 1, 3), (7, 40), {}),
    "groups": ((2, 1, 3), (50,), {"groups": 2}),
}


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("length", [1.1, 3.0])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "symmetric"])
@pytest.mark.parametrize("case", WINDOWS)
def test_windows_bound_the_whole(monkeypatch, nothing_assembled, case, mode, length, dtype):
    monkeypatch.setattr(finite_ends, "_lengths", lambda *_, **__: [length])
    shape, size, options = WINDOWS[case]
    kernel = some(shape, dtype)
    options = {"padding_mode": mode, **options}
    axes = ConvGeometry.of(shape, size, **options).axes()
    groups = options.get("groups", 1)
    taps = kernel.reshape(groups, shape[0] // groups, shape[1], -1).transpose(3, 0, 1, 2)
    taps = np.ascontiguousarray(taps.astype(np.complex128 if "complex" in dtype else np.float64))
    exact = float(oracles.sigma(oracles.conv_matrix(kernel.astype(np.complex128), size, **options)))
    zeros = {**options, "padding_mode": "zeros", "padding": 0}
    sup = gn.conv_norm_bound(kernel, **{k: v for k, v in zeros.items() if k != "padding"})
    found = finite_ends.bracket(taps, axes, float(sup), 0.97 * exact, rtol=1e-2)
    covers = [finite_ends._Cover.of(a, length, is_mirrored=False) for a in axes]
    assert any(cover.ends[:1] != (a,) for cover, a in zip(covers, axes, strict=True))
    assert found.lower <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= found.upper < math.inf


@pytest.mark.parametrize(
    ("size", "before", "outputs", "taps"),
    [(110, 0, 7, 3), (69, -53, 16, 3), (15, 0, 13, 3), (100, 0, 10, 2)],
)
def test_windows_hold_where_few_outputs_read_an_axis(monkeypatch, size, before, outputs, taps):
    """The windows inside are parts of more outputs than there are: no bound from below."""
    monkeypatch.setattr(finite_ends, "_lengths", lambda *_, **__: [3.0])
    axes = (
        Axis(3, 1, 1, 2, 40, 40, "replicate"),
        Axis(taps, 1, 1, before, size, outputs, "zeros"),
    )
    first, second = np.ones(3), np.ones(taps)
    exact = math.prod(
        float(np.linalg.norm(np.tensordot(k, a.links(), axes=1), 2))
        for k, a in zip((first, second), axes, strict=True)
    )
    kernel = np.multiply.outer(first, second).reshape(-1, 1, 1, 1)
    found = finite_ends.bracket(kernel, axes, 3.0 * taps, 0.97 * exact, rtol=1e-2)
    assert found.lower <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= found.upper < math.inf


def test_what_windows_lose_counts(monkeypatch):
    """A vector that spreads along an edge is in no window as large as it is on the whole."""
    monkeypatch.setattr(finite_ends, "_lengths", lambda *_, **__: [1.2])
    kernel = blur(5, 4.0)
    axes = ConvGeometry.of(kernel.shape, (12, 80), padding_mode="replicate").axes()
    taps = kernel.transpose(2, 3, 0, 1).reshape(25, 1, 1, 1)
    exact = math.prod(
        float(np.linalg.norm(padded_matrix(np.full((1, 1, 5), 0.2), (n,), "replicate"), 2))
        for n in (12, 80)
    )
    found = finite_ends.bracket(taps, axes, 0.0, 0.9, rtol=1e-3)
    covers = [finite_ends._Cover.of(a, 1.2, is_mirrored=False) for a in axes]
    kept = math.prod(1 - cover.loss for cover in covers)
    assert found.upper * math.sqrt(kept) < 0.99 * exact


def test_one_mirrored_corner_stands_for_all():
    axes = ConvGeometry.of((1, 1, 3, 3), (40, 40), padding_mode="reflect").axes()
    even, other = (
        k.transpose(2, 3, 0, 1).reshape(9, 1, 1, 1)
        for k in (mirrored((1, 1, 3, 3)), some((1, 1, 3, 3)))
    )
    assert len(finite_ends.corners(even, axes, 10)) == 1
    assert len(finite_ends.corners(other, axes, 10)) == 4
    circle = ConvGeometry.of((1, 1, 3, 3), (40, 40), padding=2, padding_mode="circular").axes()
    assert finite_ends.corners(other, circle, 10) == []


@pytest.mark.parametrize("mode", ["reflect", "replicate", "symmetric"])
def test_kernels_with_signs_are_within_two_percent_at_every_size(monkeypatch, mode):
    monkeypatch.setattr(limits, "WINDOW_WORK", 2**32)  # what four or five of 400 samples take
    kernel = some((1, 1, 5, 5))
    with monkeypatch.context() as no_time:
        no_time.setattr(limits, "LONGEST", 0.0)  # for the band of the whole
        bracket = gn.conv_norm_bracket(kernel, (120, 125), padding_mode=mode)
    assert not bracket.converged
    assert bracket.upper <= 1.02 * bracket.lower
    small = gn.conv_norm_bracket(kernel, (40, 40), padding_mode=mode)
    assert small.converged
    assert bracket.upper >= 0.99 * small.lower


def test_vectors_in_a_corner_are_found(monkeypatch):
    """Lanczos steps from the middle miss what is amplified in the corners alone."""
    kernel = -blur(9, 1.4)
    kernel[0, 0, 4, 4] += 2.0
    monkeypatch.setattr(limits, "WINDOW_WORK", 2**30)
    bracket = gn.conv_norm_bracket(kernel, (110, 110), padding_mode="reflect")
    assert bracket.lower > 2.026  # of 2.02655, at 32 samples by a singular value decomposition


def test_no_bound_by_the_symbol_alone_is_below_that_by_repetition():
    """A shift by three samples repeats three of them; its symbol has modulus one."""
    kernel = np.zeros((1, 1, 7, 7))
    kernel[..., 0, 0] = 1.0
    bracket = gn.conv_norm_bracket(kernel, (8, 9), padding=3, padding_mode="symmetric")
    assert bracket.lower <= 2.0 <= bracket.upper <= 2.0 * (1 + 1e-3)


NAMES = {
    "symmetric": ("reflect", "grid-mirror"),
    "reflect": ("mirror",),
    "replicate": ("nearest",),
    "circular": ("grid-wrap", "wrap"),
    "zeros": ("constant", "grid-constant"),
}


@pytest.mark.extra
@pytest.mark.parametrize("mode", NAMES)
def test_the_names_of_paddings_are_those_of_the_table(mode):
    ndimage = pytest.importorskip("scipy.ndimage")
    kernel, x = some((1, 1, 3, 5)), some((1, 6, 7), seed=1)
    padding = {} if mode == "circular" else {"padding": ((1, 1), (2, 2))}
    geometry = ConvGeometry.of(kernel.shape, (6, 7), padding_mode=mode, **padding)
    ours = geometry.apply(kernel, x)[0]
    if mode == "circular":  # whose first tap of output 0 stands at sample 0
        ours = np.roll(ours, (1, 2), axis=(0, 1))
    for name in NAMES[mode]:
        assert np.allclose(ndimage.correlate(x[0], kernel[0, 0], mode=name), ours)
    padded = np.pad(x[0], ((1, 1), (2, 2)), mode=NUMPY.get(mode, "constant"))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 5))
    assert np.allclose(np.einsum("abij,ij->ab", windows, kernel[0, 0]), ours)


def test_bands_of_whole_images_are_left_where_windows_do(monkeypatch, nothing_assembled):
    """The slack of windows is below that of repetition by far."""
    whole = finite_banded.bracket

    def parts_only(taps, axes, lower, *, rtol):
        if not any(isinstance(a, finite_ends.Part) for a in axes):
            return finite.Bounds(0.0, math.inf)
        return whole(taps, axes, lower, rtol=rtol)

    monkeypatch.setattr(finite_banded, "bracket", parts_only)
    kernel = some((3, 2, 3))
    bracket = gn.conv_norm_bracket(kernel, (400,), padding_mode="reflect")
    exact = float(np.linalg.norm(padded_matrix(kernel, (400,), "reflect"), 2))
    assert bracket.lower <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= bracket.upper <= exact * 1.002
