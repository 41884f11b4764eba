"""Timings of gramnorm against what one would use otherwise: ``python -m benchmarks``.

Two ways to the same number are timed in turn, pair by pair, so that a busy machine slows both; the ratio is the
median over the pairs.  A time without the gap reached in it means little: both are printed.

A section is a function that takes a `Device` and yields tables, one dictionary for each row, with numbers as they are.
What is printed, saved and drawn is made from them and from nothing else.
"""
