"""Readers of weight files, and what their arrays are."""
