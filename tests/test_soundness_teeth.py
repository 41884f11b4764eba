"""The search for violations finds them where they are: in falsified bounds, without rounding."""

import sys

import pytest

import gramnorm as gn
from gramnorm import _rounding
from tests import soundness


def small_survey(**options):
    return soundness.survey(1500, 60, seed=11, only=["numpy"], **options)


def rounding_off(monkeypatch):
    """Set every error term of the package to zero: constants and nudges."""
    monkeypatch.setattr(_rounding, "HOST_UNIT", 0.0)
    for name in ("gamma", "kappa", "underflow"):
        monkeypatch.setattr(_rounding.Precision, name, lambda *_: 0.0)


def test_no_violation_as_it_stands():
    report = small_survey()
    assert report.failures == []
    assert report.violations == 0
    assert report.total("tried", "matrix") >= 1500
    assert report.total("tried", "conv") == 60


@pytest.mark.parametrize("relative", [1e-12, 1e-6, 1e-2])
def test_falsified_upper_bounds_are_found(relative):
    report = small_survey(inject=relative)
    assert report.total("upper", "matrix") > 50
    assert report.total("lower") == 0
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
    command = ["--matrices", "150", "--kernels", "4", "--jobs", "1", "--backends", "numpy"]
    assert soundness.main(command) == 0
    assert soundness.main([*command, "--inject", "1e-3"]) == 1
    assert "upper violated" in capsys.readouterr().out
    assert "gramnorm" in sys.modules
