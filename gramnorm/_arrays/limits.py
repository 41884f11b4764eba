"""Every budget and threshold of the package, and the measurement or the argument it comes from.

Times were taken on two cores of a server from 2023 with OpenBLAS, one thread, unless a line says otherwise.  A wrong
value costs time or leaves a gap wide; no bound depends on one.
"""

from __future__ import annotations

# Matrices

PART_BYTES = 2**27

SQUARING_COLUMNS = 192
SQUARINGS = 12
EIGENVECTOR_COLUMNS = 96
SINGLE_PRECISION = 1e-7
LANCZOS_STEPS = 250
RITZ_PERIOD = 4
LOOSEST_RITZ = 1e-2
RITZ_SHARE = 16
ENOUGH = 1.6
CHOLESKY_LEVEL = 1.2
CHOLESKY_BLOCK = 64
POWER_SQUARINGS = 40
SPARSE_COLUMNS = 4096
STABLE_RANK = 1 / 4
HOPELESS = 0.7
CLUSTERED = 0.2
SEVERAL = 1.3
LEVEL = 0.65


# Convolutions
