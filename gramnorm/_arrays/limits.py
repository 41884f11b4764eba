"""Every budget and threshold of the package, and the measurement or the argument it comes from.

Times were taken on two cores of a server from 2023 with OpenBLAS, one thread, unless a line says
otherwise.  A wrong value costs time or leaves a gap wide; no bound depends on one.
"""

from __future__ import annotations

# Matrices


# Convolutions
