"""Tests of `gramnorm.classical`."""
