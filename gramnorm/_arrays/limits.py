"""Every budget and threshold of the package, and the measurement or the argument it comes from.

Times were taken on two cores of a server from 2023 with OpenBLAS, one thread, unless a line says otherwise.  A wrong
value costs time or leaves a gap wide; no bound depends on one.
"""

from __future__ import annotations

# Matrices


# Convolutions


# Convolutions at a finite size

ASSEMBLED_AT_ONCE = 256
ASSEMBLED = 4096
ASSEMBLED_ENTRIES = 2**25
WAVE_TAPS, WAVE_SAMPLES = 2048, 4096
WINDOW_INPUTS, WINDOW_READS = 2**17, 2**22
GOLUB_KAHAN_STEPS = 60
START_NOISE = 1e-2
SPARE_CIRCLE = 4
SCALAR_GRID = 2**22
COMPRESSION_SLACK = 0.25
FINE_COMPRESSION_SLACK = 1e-3, 0.05
TOEPLITZ_ENTRIES, TOEPLITZ_WORK = 2**24, 2**33
EVERY_ORDER_OF_AXES = 3
EVERY_CLASS = 2**16
AXES_READ = 8
