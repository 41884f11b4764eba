"""Tests of what surrounds the code: rules, theory page, packages, benchmarks, examples."""
