"""Every budget and threshold of the package, and the measurement or the argument it comes from.

Times were taken on two cores of a server from 2023 with OpenBLAS, one thread, unless a line says otherwise.  A wrong
value costs time or leaves a gap wide; no bound depends on one.
"""

from __future__ import annotations

# Matrices


# Convolutions


# Large sparse matrices

DENSE_SIGNS, DENSE_STEPS = 256, 12
"""Columns from which a dense matrix is looked at for signs of rank one, and the most power steps with its moduli: both
together take as long as a quarter of the product with its adjoint at 1000 columns, an eightieth at 3000."""

SMALL_SIDE = 384
"""Up to this many rows or columns the dense Gram matrix comes first: it takes 3 ms, as a look at the signs does."""

BATCH = 2**18
"""Entries whose ends are joined at a time: 20 MiB; fewer make the passes over all rows and columns dear."""

FIRST_STEPS = 8
"""Power steps with the moduli, from ones: counts, graphs and grids at a modest gap need no more, and they settle which
parts can be the largest; eight take as long as a quarter of `svds` on 20 000 unknowns."""

LANCZOS_WORK = 2**33
"""Entries that the products of one Lanczos iteration may touch: ten seconds at 1.2 ns each."""

LANCZOS_STEPS = 2000
"""Most steps: the Laplacian on 600 x 600 takes 1500 to a gap of 1e-6, the Ritz problems a tenth of that time."""

BASIS = 2**26
"""Bytes of Lanczos vectors to remember; the others are computed twice, which doubles the time at worst."""

SMOOTHING = 96
"""Most power steps after Lanczos, as long as eight of them gain a third: the corners of a grid need 3 to 8, the far
ends of a random graph with heavy hubs 50."""

STACKED = 32
"""Largest side of a part that is bracketed densely in a stack with others: a part by itself costs 0.5 ms."""

GRAM_WORK = 2**27
"""Products of two entries that forming a sparse Gram matrix may take: half a second at 4 ns each."""

WINDOW_BLOCK, STRIP, WIDE_WINDOW = 64, 4, 1024
"""Columns of a block of that factorisation, four times as many where the window is wide, whose passes are slow; and how
many blocks are updated in one product."""

WINDOW = 2**25
"""Entries of the square that a factorisation moves along the diagonal of a Gram matrix: 256 MiB, 512 MiB if complex."""

WINDOW_WORK = 2**37
"""Sum of squares of its sides, column by column: five seconds at 25 GFLOP/s, or one dense factorisation of 7000."""
