"""Tests of `gramnorm.records` and of the checker, `gramnorm.verifier`."""
