"""Arithmetic outside of the model: what the package notices, and what the checker says of records.

The table of the page on guarantees says the same in words.
"""

from unittest import mock

import numpy as np
import pytest

import gramnorm as gn
from gramnorm import records
from gramnorm._arrays import libraries, probes
from tests.harness import hostile, oracles
from tests.harness.records import edited, verdict
from tests.rigour.test_hostile import backend, outer

pytestmark = pytest.mark.no_backend


def claimed(a, bracket):
    """Return a record of a matrix that claims the bounds of a bracket."""

    def claim(record):
        record["lower"]["bound"] = float(bracket.lower).hex()
        record["upper"]["bound"] = float(bracket.upper).hex()

    return edited(records.prove_matrix_norm(a), claim)


def on(name):
    be = backend(name)
    return be, mock.patch.object(libraries, "HOST_WITH_NUMPY", be.with_numpy)


@pytest.mark.parametrize("name", ["strict-device1", "strict-float32"])
def test_products_in_tf32_are_noticed_and_nothing_else_is(name):
    be, where = on(name)
    x = be.asarray(np.ones((2, 2), np.float32))
    with where:
        for kind, way in (hostile.KINDS | hostile.BREAKING).items():
            with hostile.computing(way):
                assert probes.float32_products_are_exact(x) == (kind != "tf32"), kind


def test_with_tf32_a_device_computes_in_float64_or_refuses():
    a, _ = outer(60, 12, "float32")
    stack = np.stack([a / 3, a / 3])
    be, where = on("strict-device1")
    with where, hostile.computing(hostile.BREAKING["tf32"]):
        found = gn.matrix_norm_bracket(be.asarray(stack), rtol=1e-6)
    exact = oracles.Exact(stack[0].astype(np.float64))
    assert oracles.check_upper(exact, float(be.to_numpy(found.upper)[0])).value == "holds"
    assert oracles.check_lower(exact, float(be.to_numpy(found.lower)[0])).value == "holds"
    be, where = on("strict-float32")
    with where, hostile.computing(hostile.BREAKING["tf32"]):
        for function in (
            gn.matrix_norm_bracket,
            gn.matrix_norm_value_and_grad,
            gn.classical.aol_upper_bound,
        ):
            with pytest.raises(RuntimeError, match="TF32"):
                function(be.asarray(stack))
        bound = gn.conv_norm_bound(be.asarray(stack[:1, :1, :3]))  # on the host, in float64
    assert float(be.to_numpy(bound)) >= float(np.sum(stack[0, 0, :3].astype(np.float64)))


def test_without_the_probe_tf32_would_be_below(monkeypatch):
    be, where = on("strict-float32")
    monkeypatch.setattr(probes, "float32_products_are_exact", lambda _: True)
    a = np.full((1, 4, 4), 1 + 2.0**-12, np.float32)
    with where, hostile.computing(hostile.BREAKING["tf32"]):
        found = gn.matrix_norm_bracket(be.asarray(a), rtol=1e-6)
    assert float(be.to_numpy(found.upper)[0]) < 4 * (1 + 2.0**-12)


def test_emulated_float64_is_not_noticed_and_the_checker_rejects_what_it_says():
    """Entries of 47 bits more than one that are cut to 46: the bound is below, by 30 units."""
    a = np.full((4, 4), 1 + 2.0**-47)
    with hostile.computing(hostile.BREAKING["emulated"]):
        found = gn.matrix_norm_bracket(a, rtol=1e-13)
    assert float(found.upper) < 4 * (1 + 2.0**-47)
    said, reason = verdict(claimed(a, found))
    assert said == "rejected"
    assert "upper" in reason
    said, _ = verdict(claimed(a, gn.matrix_norm_bracket(a, rtol=1e-13)))
    assert said == "verified"


def test_strassens_scheme_is_not_noticed_and_records_say_whether_bounds_hold():
    """Its errors are within the allowance here; nothing but the checker tells."""
    rng = np.random.default_rng(4)
    for a in (rng.standard_normal((24, 20)), rng.uniform(size=(32, 32)), np.full((16, 16), 1 / 3)):
        with hostile.computing(hostile.BREAKING["strassen"]):
            found = gn.matrix_norm_bracket(a, rtol=1e-12)
        holds = oracles.check_upper(a, float(found.upper)).value == "holds"
        assert verdict(claimed(a, found))[0] == ("verified" if holds else "rejected")


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_records_made_in_the_worst_arithmetic_that_is_allowed_verify(kind):
    rng = np.random.default_rng(5)
    with hostile.computing(hostile.KINDS[kind]), np.errstate(all="ignore"):
        made = [
            records.prove_matrix_norm(rng.standard_normal((9, 7))),
            records.prove_matrix_norm(outer(40, 3, "complex128")[0], rtol=1e-12),
            records.prove_conv_norm(rng.standard_normal((2, 3, 3)), rtol=1e-2),
            records.prove_conv_norm(rng.standard_normal((2, 2, 3)), 4, padding_mode="circular"),
            records.prove_chain([rng.standard_normal((3, 2)), rng.standard_normal((2, 3))]),
        ]
    for record in made:
        said, reason = verdict(record)
        assert said == "verified", reason
