"""Tests of gramnorm: one suite, run against every array library at hand."""

import pytest

pytest.register_assert_rewrite("tests.harness")  # so that what fails there shows its values
