"""What brackets spend, in evaluations and products, against what is written down."""

import json

import numpy as np
import pytest

import gramnorm as gn

counts = pytest.importorskip("benchmarks.counts", reason="the benchmarks are not beside the tests")

pytestmark = pytest.mark.no_backend

KNOWN = json.loads(counts.STORED.read_text(encoding="utf-8"))
CASES = counts.cases()


@pytest.mark.parametrize("name", CASES)
def test_a_bracket_spends_what_is_written_down(name):
    found = counts.counted(CASES[name])
    for unit, known in KNOWN[name].items():
        room = counts.ROOM * known + 2  # two of one are no tenth
        assert abs(found[unit] - known) <= room, (
            f"{unit}: {found[unit]:g}, and {known:g} in {counts.STORED.name}; if it is meant to be so, "
            "python -m benchmarks.counts writes it down"
        )


def test_every_case_is_written_down():
    assert set(KNOWN) == set(CASES)


def test_products_and_multiplications_are_counted():
    x = np.random.default_rng(0).standard_normal((64, 64))
    loose, tight = (
        counts.counted(lambda r=r: gn.matrix_norm_bracket(x, rtol=r)) for r in (0.1, 1e-9)
    )
    assert tight["products"] > loose["products"] > 0
    assert tight["multiplications"] == 64**3 * tight["products"]
