"""The references are right where NumPy, SciPy or another formula can tell."""

import math

import numpy as np
import pytest
import scipy.signal

from tests.harness import oracles

pytestmark = pytest.mark.no_backend

# Prime to each other, equal, and with a common divisor either way.
STRIDES_AND_DILATIONS = [(1, 1), (1, 3), (2, 1), (3, 2), (3, 3), (2, 2), (4, 2), (2, 4), (4, 6)]
KINDS = {"float": 0.0, "complex": 1j}


def drawn(seed, *shape, imaginary=0.0):
    rng = np.random.default_rng(seed)
    real = rng.standard_normal(shape)
    return real + imaginary * rng.standard_normal(shape) if imaginary else real


def spread(kernel, gaps):
    """Return the kernel with zeros between its taps."""
    sizes = [g * (k - 1) + 1 for g, k in zip(gaps, kernel.shape, strict=True)]
    out = np.zeros(sizes, kernel.dtype)
    out[tuple(slice(None, None, g) for g in gaps)] = kernel
    return out


# -------------------------------------------------------------------------------- dense matrices


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "taps", "stride", "dilation", "padding"),
    [
        ((11,), (4,), (1,), (1,), ((0, 0),)),
        ((11,), (4,), (3,), (2,), ((5, 1),)),
        ((3,), (5,), (2,), (1,), ((4, 4),)),
        ((6, 5), (3, 2), (2, 1), (1, 3), ((1, 2), (0, 4))),
        ((4, 3, 5), (2, 3, 1), (1, 2, 3), (2, 1, 1), ((1, 0), (2, 2), (0, 1))),
    ],
)
def test_zero_padding_is_the_correlation_of_scipy(shape, taps, stride, dilation, padding, kind):
    kernel = drawn(0, 4, 3, *taps, imaginary=KINDS[kind])
    x = drawn(1, 6, *shape, imaginary=KINDS[kind])
    y = oracles.conv_apply(kernel, x[..., None], padding, "zeros", dilation, 2, stride)[..., 0]
    wide = np.pad(x, [(0, 0), *padding])
    steps = tuple(slice(None, None, s) for s in stride)
    for o in range(4):
        inputs = wide[:3] if o < 2 else wide[3:]  # two groups
        pairs = zip(inputs, kernel[o], strict=True)
        parts = [
            scipy.signal.correlate(v, np.conj(spread(k, dilation)), "valid", "direct")
            for v, k in pairs
        ]
        np.testing.assert_allclose(y[o], sum(parts)[steps], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("mode", "name", "padding"),
    [
        ("reflect", "reflect", ((4, 0), (1, 3))),
        ("replicate", "edge", ((9, 1), (0, 6))),
        ("symmetric", "symmetric", ((9, 1), (3, 11))),
        ("circular", "wrap", ((13, 2), (1, 9))),
    ],
)
def test_other_paddings_are_those_of_numpy(mode, name, padding):
    kernel, x = drawn(2, 2, 1, 3, 2), drawn(3, 1, 5, 4, 1)
    rest = {"stride": (2, 1), "dilation": (1, 2)}
    y = oracles.conv_apply(kernel, x, padding, mode, **rest)
    wide = np.pad(x, [(0, 0), *padding, (0, 0)], mode=name)
    expected = oracles.conv_apply(kernel, wide, "valid", "zeros", **rest)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("stride", "dilation"), STRIDES_AND_DILATIONS)
@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_a_circle_is_a_product_of_fourier_transforms(n, stride, dilation):
    kernel, x = drawn(4, 1, 1, 5), drawn(5, 1, n, 1)
    wrapped = np.zeros(n)
    np.add.at(wrapped, dilation * np.arange(5) % n, kernel[0, 0])
    y = np.fft.ifft(np.conj(np.fft.fft(wrapped)) * np.fft.fft(x[0, :, 0])).real[::stride]
    got = oracles.conv_apply(kernel, x, None, "circular", dilation, 1, stride)[0, :, 0]
    np.testing.assert_allclose(got, y, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("padding", "more", "cut"),
    [("valid", 0, (0, 0)), (1, 1, (1, 1)), (((2, 0),), 0, (2, 0)), (1, 3, (1, 1))],
)
def test_transposed_spreads_the_input_and_adds_up(padding, more, cut):
    """More output padding than the stride reaches no tap: zeros at the end."""
    kernel, x = drawn(6, 1, 1, 3), drawn(7, 1, 5, 1)
    stride, dilation = 2, 4
    whole = np.convolve(spread(x[0, :, 0], [stride]), spread(kernel[0, 0], [dilation]))
    expected = np.concatenate([whole, np.zeros(more)])[cut[0] : len(whole) + more - cut[1]]
    y = oracles.conv_apply(kernel, x, padding, "zeros", dilation, 1, stride, True, more)
    np.testing.assert_allclose(y[0, :, 0], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("stride", "dilation"), STRIDES_AND_DILATIONS)
@pytest.mark.parametrize("n", [1, 4, 9])
def test_same_padding_multiplies_or_divides_the_size_by_the_stride(n, stride, dilation):
    kernel = drawn(8, 1, 1, 4)
    options = {"padding": "same", "stride": stride, "dilation": dilation}
    assert oracles.conv_matrix(kernel, (n,), **options).shape == (-(-n // stride), n)
    forward = oracles.conv_matrix(kernel, (n * stride,), **options)
    backward = oracles.conv_matrix(kernel, (n,), transposed=True, **options)
    np.testing.assert_array_equal(forward, backward)


def test_a_kernel_that_does_not_fit_has_no_output():
    found = oracles.check_conv(drawn(9, 2, 1, 4), (3,), 0.0, 0.0, padding="valid")
    assert found.clean
    assert not oracles.check_conv(drawn(9, 2, 1, 4), (3,), 0.0, 1e-300, padding="valid").clean


def test_where_taps_meet_their_sum_is_not_rounded():
    kernel = np.asarray([[[1.0, 2.0**-70]]])
    options = {"padding_mode": "circular", "padding": None}
    above = math.nextafter(1.0, 2.0)
    assert oracles.check_conv(kernel, (1,), 1.0, above, **options).clean
    assert oracles.check_conv(kernel, (1,), 1.0, 1.0, **options).upper_violated
    assert oracles.check_conv(kernel, (1,), above, above, **options).lower_violated
    pair = np.asarray([[[1.0, -1.0]]]) * (1 + 1j)
    assert oracles.check_conv(pair, (1,), 0.0, 0.0, **options).clean
    assert oracles.check_conv(pair, (1,), 5e-324, 1.0, **options).lower_violated


# ------------------------------------------------------------------------------------ the symbol


@pytest.mark.parametrize(("stride", "dilation"), STRIDES_AND_DILATIONS)
def test_on_a_circle_the_largest_block_has_the_dense_norm(stride, dilation):
    for groups, taps, shape in ((1, (5,), (3 * stride,)), (2, (2, 3), (2 * stride, 6))):
        s = (stride, 1)[: len(taps)]
        kernel = drawn(10, 2 * groups, 3, *taps, imaginary=1j)
        value = oracles.circular_reference(kernel, shape, dilation, groups, s)
        dense = oracles.conv_matrix(kernel, shape, None, "circular", dilation, groups, s)
        assert value == pytest.approx(np.linalg.norm(dense, 2), rel=1e-13)
        for sign in (-1, 1):
            t = value * (1 + sign * 1e-12)
            assert oracles.compare_circular(kernel, shape, t, dilation, groups, s) == sign


@pytest.mark.parametrize(("stride", "dilation"), STRIDES_AND_DILATIONS)
def test_the_supremum_is_above_every_size_and_close_to_large_ones(stride, dilation):
    kernel = drawn(11, 2, 2, 6)
    sup, theta = oracles.sup_reference(kernel, stride=stride, dilation=dilation)
    for sign in (-1, 1):
        t = sup * (1 + sign * 1e-12)
        assert oracles.compare_symbol(kernel, tuple(theta), t, dilation, 1, stride) == sign
    largest = 0.0
    for options in (
        {"padding": "full"},
        {"padding": "same"},
        {"padding": 2, "transposed": True},
        {"padding_mode": "circular"},
    ):
        for n in (stride, 3 * stride, 40 * stride):
            read = n // stride if "transposed" in options else n
            a = oracles.conv_matrix(kernel, (read,), stride=stride, dilation=dilation, **options)
            largest = np.linalg.norm(a, 2)
            assert largest <= sup * (1 + 1e-13)
    assert largest >= 0.98 * sup  # the last: a circle of 40 outputs


def test_the_supremum_on_two_axes_covers_the_whole_torus():
    kernel = drawn(12, 2, 2, 3, 4)
    for stride, dilation in (((2, 3), (2, 1)), ((4, 1), (6, 2)), ((1, 2), (3, 4))):
        sup, _ = oracles.sup_reference(kernel, stride=stride, dilation=dilation)
        value = oracles.symbol_sigma(kernel, oracles.grid((48, 48)), dilation, 1, stride).max()
        assert 0.98 * sup <= value <= sup * (1 + 1e-13)


@pytest.mark.parametrize("taps", [(6,), (4, 4), (3, 3, 2)])
def test_the_supremum_is_found_at_the_end_of_narrow_ridges(taps):
    """Taps from 1e-8 to 1e8 that are in phase at one frequency: their moduli add up there alone."""
    rng = np.random.default_rng(21)
    places = np.stack(np.meshgrid(*map(np.arange, taps), indexing="ij"), axis=-1)
    for _ in range({3: 12}.get(len(taps), 20)):
        moduli = 10.0 ** rng.uniform(-8, 8, (1, 1, *taps))
        kernel = moduli * np.exp(-1j * (places @ rng.uniform(0, 2 * np.pi, len(taps))))
        sup, _ = oracles.sup_reference(kernel, 1, {3: 8}.get(len(taps), 16), 64)
        assert sup == pytest.approx(np.sum(moduli), rel=1e-12)


def test_known_answers_are_found():
    for name, kernel, options, known in oracles.known_strided(
        np.random.default_rng(13), "complex128"
    ):
        answer = known if np.ndim(known) == 0 else np.linalg.norm(known.astype(complex), 2)
        sup, _ = oracles.sup_reference(kernel, **options)
        assert sup == pytest.approx(answer, rel=1e-12), name
