"""Tests of `gramnorm._conv`."""
