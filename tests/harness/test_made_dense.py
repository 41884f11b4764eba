"""Dense arrays as their makers make them: the search draws them all, and finds one that is misread."""

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._arrays import libraries
from tests.harness import made_dense, soundness

DENSE_SEED = 7


def dense_survey(count, only):
    return soundness.survey(0, 0, seed=DENSE_SEED, only=only, dense=count)


@pytest.mark.parametrize("library", ["numpy", "torch", "array_api_strict"])
def test_arrays_as_they_are_made_hold_as_it_stands(library):
    pytest.importorskip(library)
    report = dense_survey(150, [library])
    assert report.failures == []
    assert report.total("tried", "made") == 150


def test_every_public_function_that_takes_an_array_is_drawn():
    torch = pytest.importorskip("torch")
    from gramnorm import torch as modules  # noqa: PLC0415 - an extra

    assert torch
    public = set(gn.__all__) - made_dense.NO_ARRAY
    public |= {f"classical.{name}" for name in gn.classical.__all__ if name in gn.classical.METHODS}
    assert set(gn.classical.__all__) - set(gn.classical.METHODS) == {"METHODS", "Method"}
    public = (public | set(modules.__all__)) - made_dense.ELSEWHERE
    assert set(made_dense.checks("torch")) == public
    drawn = dense_survey(500, ["torch"]).counts
    assert {name.removeprefix("made ") for name, count in drawn.items() if count.tried} == public


def test_every_layout_and_type_is_drawn():
    for library in set(soundness.libraries()) & set(made_dense.SHARES):
        cases = [made_dense.drawn(np.random.default_rng(seed), library) for seed in range(1000)]
        assert {case.layout for case in cases} == set(made_dense.layouts(library))
        assert {case.dtype for case in cases} == set(made_dense.TYPES[library])


@pytest.mark.parametrize("layout", made_dense.NUMPY_LAYOUTS)
def test_a_layout_of_numpy_holds_the_numbers_it_names_and_is_what_it_says(layout):
    rng = np.random.default_rng(0)
    for dtype in made_dense.TYPES["numpy"]:
        v = made_dense.numbers(rng, (3, 4), dtype)
        x, held = made_dense.made(rng, "numpy", layout, v, dtype)
        assert x.tolist() == held.tolist()
        assert x.shape == (3, 4)
        assert x.dtype.newbyteorder("=") == dtype
    says = {
        "swapped bytes": not x.dtype.isnative or x.dtype.itemsize == 1,
        "read only": not x.flags.writeable,
        "on disk": isinstance(x, np.memmap),
        "Fortran": x.flags.f_contiguous,
        "odd address": not x.flags.owndata,
        "constant axis": 0 in x.strides,
        "windows": not x.flags.owndata,
    }
    assert says.get(layout, True)


def reread(change):
    """Let the package take an array for what `change` makes of it."""
    plain = libraries.plain
    return lambda x: plain(change(x))


def without_swap(x):
    return x.view(x.dtype.newbyteorder("=")) if isinstance(x, np.ndarray) else x


def in_order_of_memory(x):
    return x.ravel(order="K").reshape(x.shape) if isinstance(x, np.ndarray) else x


def without_flags(x):
    """Return what lies in memory, whatever the flags of the tensor say of it."""
    if isinstance(x, np.ndarray):
        return x
    raw = x.detach()
    if raw.is_conj():
        raw = raw.conj()  # takes the flag off
    return -raw if raw.is_neg() else raw


@pytest.mark.parametrize(
    ("library", "layout", "dtypes", "change"),
    [
        ("numpy", "swapped bytes", ("float32", "float64", "int16"), without_swap),
        ("numpy", "permuted", ("float32", "complex128"), in_order_of_memory),
        ("torch", "conjugate", ("complex64", "complex128"), without_flags),
        ("torch", "negative", ("float32", "float64"), without_flags),
    ],
)
def test_an_array_that_is_misread_is_found(monkeypatch, library, layout, dtypes, change):
    pytest.importorskip(library)

    def wrong():
        """Return what is said against gradients of arrays of this layout, by function."""
        found = {}
        for name in ("matrix_norm_value_and_grad", "conv_norm_value_and_grad"):
            for seed in range(20):
                rng = np.random.default_rng(seed)
                case = made_dense.Case(rng, library, layout, dtypes[seed % len(dtypes)], "none", [])
                made_dense.CHECKS[name](case, gn)
                found.setdefault(name, []).extend(case.wrong)
        return found

    assert not any(wrong().values())
    monkeypatch.setattr(libraries, "plain", reread(change))
    assert all(wrong().values())
