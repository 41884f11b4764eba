"""Every budget and threshold of the package, and the measurement or the argument it comes from.

Times were taken on two cores of a server from 2023 with OpenBLAS, one thread, unless a line says otherwise.  A wrong
value costs time or leaves a gap wide; no bound depends on one.
"""

from __future__ import annotations

# Matrices


# Convolutions

# Wide symbols

FACTOR_COLUMNS, INNER = 32, 64
"""Columns of a block of a factorisation, and most of the inner length of a product: rounding costs in proportion to
it.  A matrix of order 512 takes 5.5 ms in single precision, 5.7 with blocks of 64, and numpy.linalg.cholesky 11.
"""

FORMED = 2**20
"""Entries of the matrices that are formed together: the table is read once for all of them."""

ESTIMATED = 2**18
"""Entries of the images of vectors that are formed together."""

WIDE_COLUMNS = 48
"""Columns of a block from which on a cell is closed by a factorisation and not by squarings."""

WIDE_TABLE = 2**28
"""Bytes of the tables of lags."""

WIDE_CLIMBS = 3
"""Cells from which a local maximum is searched for."""

WIDE_PARTS = 6
"""Most parts per axis into which a cell is cut at once."""

WIDE_FACTORS = 5_000, 20_000
"""Factorisations that a search may always spend, and the most it may."""

WIDE_WORK = 3e12
"""Floating-point operations in factorisations, otherwise."""

FACTORED = 1024
"""Columns of all matrices that are factorised together: twice as fast as one by one at order 64, and no gain at 512.
Where one of them has no factor, halves are tried again.
"""

WIDE_FLAT = 0.5
"""Share of the first cells, all to be cut into many parts, from which on a symbol may be flat."""

FACTORED_COLUMNS = 96
"""Columns of a block from which on the norm at a single frequency is bounded by a factorisation as well: at 64, where
Frobenius norms settle most frequencies, squarings take half of its time.
"""
