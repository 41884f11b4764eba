"""The search for violations finds them where they are: in falsified bounds, without rounding."""

import sys

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._arrays import linalg
from gramnorm._rigour import model
from tests.harness import fixed_steps, soundness

pytestmark = pytest.mark.no_backend


def small_survey(**options):
    return soundness.survey(1500, 60, seed=11, only=["numpy"], **options)


def sparse_survey(**options):
    return soundness.survey(0, 0, seed=5, only=["numpy"], sparse=300, **options)


def rounding_off(monkeypatch):
    """Set every error term of the package to zero: constants and nudges."""
    monkeypatch.setattr(model, "_TWO_UNITS", 0.0)
    for name in ("gamma", "kappa", "underflow"):
        monkeypatch.setattr(model.Precision, name, lambda *_: 0.0)


def test_no_violation_as_it_stands():
    report = small_survey()
    assert report.failures == []
    assert report.violations == 0
    assert report.total("tried", "matrix") >= 1500
    assert report.total("tried", "conv") == 60


def test_no_violation_in_sparse_matrices_as_they_stand():
    report = sparse_survey()
    assert report.failures == []
    assert report.violations == 0
    assert report.total("tried", "sparse") == 300


def fixed_survey(inject=0.0):
    report = soundness.Report()
    for task in fixed_steps.tasks(400, 400, 3, inject, fixed_steps.ways(["numpy"])):
        report.add(soundness.run(task))
    return report


def test_no_violation_by_fixed_steps_as_they_stand():
    report = fixed_survey()
    assert report.failures == []
    assert report.total("tried", "matrix, fixed") == 400
    assert report.total("tried", "fixed steps, conv") == 400


def test_falsified_fixed_steps_are_found():
    report = fixed_survey(inject=1e-6)
    assert report.total("upper", "matrix, fixed") > 20
    assert report.total("upper", "fixed steps, conv") > 20


def with_values_sorted(x, values):
    """Write values sorted by place beside places that are not."""
    return linalg.with_entries(x, values[np.lexsort((x.col, x.row))]).tocsr()


def with_last_of_duplicates(x, values):
    """Keep one of the entries that share a place."""
    kept = np.unique(x.row.astype(np.int64) * x.shape[1] + x.col, return_index=True)[1]
    parts = values[kept], (x.row[kept], x.col[kept])
    return type(x)(parts, shape=x.shape).tocsr()


@pytest.mark.parametrize("wrong", [with_values_sorted, with_last_of_duplicates])
def test_entries_in_the_wrong_place_are_found(monkeypatch, wrong):
    monkeypatch.setattr(linalg, "sparse_rows", wrong)
    report = sparse_survey()
    assert report.total("upper", "sparse") > 3
    assert report.total("lower", "sparse") > 3


def test_a_matrix_that_is_changed_is_found(monkeypatch):
    def sort_in_place(x, entries=linalg.sparse_entries):
        if x.format in ("csr", "csc"):
            x.sort_indices()
        return entries(x)

    monkeypatch.setattr(linalg, "sparse_entries", sort_in_place)
    report = sparse_survey()
    assert report.violations == 0
    assert all("changed" in failure or "read-only" in failure for failure in report.failures)
    assert any("changed" in failure for failure in report.failures)


@pytest.mark.parametrize("relative", [1e-12, 1e-6, 1e-2])
def test_falsified_upper_bounds_are_found(relative):
    kernels = 60 if relative >= 1e-2 else 0  # the gap of a convolution hides less
    report = soundness.survey(600, kernels, seed=11, only=["numpy"], inject=relative)
    assert report.total("upper", "matrix") > 50
    assert report.total("lower") == 0
    if relative >= 1e-6:
        assert sparse_survey(inject=relative).total("upper") > 50
    if relative >= 1e-2:
        assert report.total("upper", "conv") > 20


def test_without_its_error_terms_the_package_fails(monkeypatch):
    rounding_off(monkeypatch)
    report = small_survey()
    assert report.total("upper", "matrix") > 20
    assert report.total("lower", "matrix") > 5


def test_a_wrong_call_is_a_failure_and_not_silence(monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(gn, "matrix_norm_bracket", broken)
    report = soundness.survey(200, 0, seed=1, only=["numpy"])
    assert report.failures
    assert "ZeroDivisionError" in report.failures[0]


def test_the_exit_status_tells(monkeypatch, capsys):
    command = [
        "--dense",
        "20",
        "--matrices",
        "150",
        "--kernels",
        "4",
        "--sparse",
        "20",
        "--jobs",
        "1",
        "--backends",
        "numpy",
    ]
    assert soundness.main(command) == 0
    assert soundness.main([*command, "--inject", "1e-3"]) == 1
    assert "upper violated" in capsys.readouterr().out
    assert "gramnorm" in sys.modules
