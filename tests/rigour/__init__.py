"""Tests of `gramnorm._rigour`."""
