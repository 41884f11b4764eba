"""Tests of what lies between libraries, types and sizes."""
