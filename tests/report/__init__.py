"""Tests of `gramnorm.report`."""
