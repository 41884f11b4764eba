"""Large matrices in single precision: taken to double block by block, never as a whole."""

import itertools

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._arrays import limits, linalg
from gramnorm._matrix import certificate
from tests.harness import oracles
from tests.harness.families import FAMILIES

pytestmark = pytest.mark.no_backend

SHAPES = ((1, 1), (3, 2), (9, 9), (20, 33), (33, 20))


@pytest.fixture
def in_blocks(monkeypatch):
    """Have the smallest matrices taken in blocks, of a few rows, by the certificate of large ones."""
    monkeypatch.setattr(limits, "DOUBLED_ENTRIES", 0)
    monkeypatch.setattr(limits, "SQUARING_COLUMNS", 0)
    monkeypatch.setattr(limits, "DENSE_SIGNS", 0)


def cases():
    for seed, (name, shape) in enumerate(itertools.product(sorted(FAMILIES), SHAPES)):
        with np.errstate(all="ignore"):
            a = FAMILIES[name](np.random.default_rng(seed), *shape, "float32")
        if np.all(np.isfinite(a)):
            yield name, a


def violations(**options):
    found = []
    for name, a in cases():
        bracket = gn.matrix_norm_bracket(a, **options)
        ends = (np.asarray([float(end)]) for end in (bracket.lower, bracket.upper))
        verdict = oracles.check_stack(a[None], *ends)
        if verdict.upper_violated or verdict.lower_violated:
            found.append((name, a.shape))
    return found


@pytest.mark.parametrize("rtol", [1e-6, 1e-4, 1e-2])
def test_every_family_is_bracketed_in_blocks(in_blocks, rtol):
    assert violations(rtol=rtol) == []


@pytest.mark.parametrize("lost", [0, -1])
def test_a_block_that_is_lost_is_found(in_blocks, monkeypatch, lost):
    whole = linalg.in_double

    def cut(a):
        blocks = [block.copy() for block in whole(a)]
        if len(blocks) > 1:
            blocks[lost] = np.zeros_like(blocks[lost])
        return iter(blocks)

    monkeypatch.setattr(linalg, "in_double", cut)
    assert len(violations(rtol=1e-4)) > 20


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(700, 300), (300, 700)])
def test_blocks_give_what_the_whole_gives(monkeypatch, shape, order):
    a = np.asarray(np.random.default_rng(0).standard_normal(shape), np.float32, order=order)
    whole = gn.matrix_norm_bracket(a)
    monkeypatch.setattr(limits, "DOUBLED_ENTRIES", 2**15)
    kept = a.copy(order="K")
    blocks = gn.matrix_norm_bracket(a)
    assert bool(blocks.converged)
    assert abs(blocks.upper / whole.upper - 1) < 1e-5
    assert abs(blocks.lower / whole.lower - 1) < 1e-5
    np.testing.assert_array_equal(a, kept)


def test_a_matrix_without_negative_entries_is_proved_by_its_images(monkeypatch):
    a = np.random.default_rng(0).uniform(size=(600, 300)).astype(np.float32)
    a[:, ::2] *= -1  # by signs of columns, that is
    monkeypatch.setattr(limits, "DOUBLED_ENTRIES", 2**15)
    monkeypatch.setattr(certificate, "matrix_certificate", None)  # not reached
    found = gn.matrix_norm_bracket(a)
    exact = np.linalg.norm(a.astype(float), 2)
    assert found.lower <= exact * (1 + 1e-12)
    assert found.upper >= exact * (1 - 1e-12)
    assert bool(found.converged)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(in_blocks, value):
    a = np.ones((30, 20), np.float32)
    a[29, 3] = value
    found = gn.matrix_norm_bracket(a)
    assert np.array_equal(found.upper, value, equal_nan=True)
