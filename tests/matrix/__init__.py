"""Tests of `gramnorm._matrix`."""
