"""Tests of gramnorm: one suite, run against every array library at hand."""
