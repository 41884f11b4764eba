"""Tests of `gramnorm.network`."""
