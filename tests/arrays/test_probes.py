"""What tells subnormal numbers apart where arithmetic and comparisons take them for zeros."""

import numpy as np
import pytest

from gramnorm._arrays import probes

NUMBERS = [
    "0",
    "-0.0",
    "least",
    "-least",
    "5 least",
    "normal",
    "-normal",
    "1",
    "-max",
    "inf",
    "nan",
]


def numbers(dtype):
    info = np.finfo(dtype)
    named = {"least": info.smallest_subnormal, "5 least": 5 * info.smallest_subnormal}
    named |= {"normal": info.smallest_normal, "max": info.max}
    return np.asarray(
        [-named[n[1:]] if n[1:] in named else named.get(n, n) for n in NUMBERS], dtype=dtype
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_are_told_from_zero_by_their_bits(be, dtype):
    if not hasattr(be.asarray(np.ones(1, "float32")), "view"):
        pytest.skip("no way to read bits")
    if not hasattr(be.xp, dtype) or (dtype == "float64" and not be.has_float64):
        pytest.skip(f"no {dtype}")
    host = numbers(dtype)
    x = be.asarray(host)
    assert be.to_numpy(probes.is_nonzero(x)).tolist() == [False, False, *[True] * 9]
    largest = be.to_numpy(probes.largest_modulus(x[:, None, None]))
    assert largest.tobytes() == np.abs(host).tobytes()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_no_program_of_jax_compares_bits_as_numbers(dtype):
    # that of x.view(int) != 0 does for x = abs(y), and where a maximum is taken of one number
    jax = pytest.importorskip("jax")
    ways = {
        "itself": probes.is_nonzero,
        "modulus": lambda x: probes.is_nonzero(jax.numpy.abs(x)),
        "largest of one": lambda x: probes.is_nonzero(probes.largest_modulus(x[:, None, None])),
        "kept for where": lambda x: (
            jax.numpy.where(
                probes.is_nonzero(probes.largest_modulus(x[:, None, None])), x - x + 1, 0
            )
            != 0
        ),
    }
    host = numbers(dtype)
    for name, way in ways.items():
        for part in range(len(host)):
            one = jax.numpy.asarray(host[part : part + 1])
            assert bool(jax.jit(way)(one)[0]) == (part > 1), (name, NUMBERS[part])
        assert np.asarray(jax.jit(way)(jax.numpy.asarray(host))).tolist() == [
            False, False, *[True] * 9,
        ], name  # fmt: skip


def test_tensors_that_are_negated_lazily_are_read():
    torch = pytest.importorskip("torch")
    x = torch.tensor([[1 - 2j, 1e-40j]]).conj().imag
    assert x.is_neg()
    assert probes.is_nonzero(x).tolist() == [[True, True]]
    assert probes.largest_modulus(x).tolist() == 2.0
