"""Every budget and threshold of the package, and the measurement or the argument it comes from.

Times were taken on two cores of a server from 2023 with OpenBLAS, one thread, unless a line says otherwise.  A wrong
value costs time or leaves a gap wide; no bound depends on one.
"""

from __future__ import annotations

# Matrices


# Convolutions

# Kernels of Gaussian noise, default gap, CPU time, where a line names no others.

SYMBOL_BYTES = 2**27
"""Bytes that the blocks of one batch of frequencies may take; a few arrays of that size live at a
time, so that a search stays far below one GiB."""

SEARCH_OPERATIONS = 3e11
"""Operations after which a search stops splitting cells: 4 s at 75 Gflop/s, the speed of a product
256 x 2304 x 256 in float64."""

SEARCH_EVALUATIONS = 2_000, 100_000
"""Evaluations that a search may always spend, so that large blocks have a chance (two-dimensional
noise takes 300 to 900), and the most it may, so that the lists of cells stay small."""

ENTRY_OPERATIONS, PHASE_OPERATIONS = 100, 250.0
"""What passes over an entry of a block, and the phase of a tap per axis, cost beside the products,
in operations. A phase takes 37 ns; operations of small blocks run at a tenth of full speed."""

FIRST_REACH = 0.9
"""The w of the first cells, about: 64 x 64 x 3 x 3 takes 261 ms from 0.45 on, 185 from 0.9 and 182
from 1.2; 8 x 8 x 5 x 5 takes 15, 16 and 19."""

CORNER_AXES = 6
"""Most axes for which all frequencies with angles 0 and pi are tried first: 64 points. Without them
64 x 64 x 3 x 3 takes 267 ms and not 186, 16 x 16 x 3 x 3 takes 17 and not 13."""

CLIMB_CELLS = 48
"""Open cells from which on a local ascent is worth its cost: 64 x 64 x 3 x 3 takes 185 ms, and 248
without any; 16 x 16 x 3 x 3 takes 14, and 26 with one at each level."""

CLIMB_ROUNDS = 3
"""Of the ascent to a better lower bound, which need not be sharp: 1, 3 and 10 rounds differ by less
than the noise of the clock."""

PEAK_ROUNDS = 20
"""Of the ascent to the place of a gradient: an error in the frequency is one of first order there,
and the ascent stops by itself where it no longer moves."""

PAIR_STEPS = 40
"""Lanczos steps to a pair of vectors, which proves nothing: a poor one costs a poor lower bound."""

FLAT = 0.125
"""Least share of the largest singular value squared, at any frequency, from which on a symbol counts
as flat: with less, c is hardly below sup ||F||^2 and the search on the square saves little."""

FLAT_TRIAL = 100
"""Part of the budget after which the autocorrelation is formed: until then cells cost less than it."""

SQUARE_SHARE = 4
"""Part of the budget that the search on the square may take: it saves most of the cells, or fails."""

TAP_COLUMNS = 4096
"""Most columns of the matrix of all taps whose Gram matrix is formed; its square is the most entries
for all groups: 128 MiB in float64."""

LAGS = 1000
"""Most lags, of which there are (2 k - 1) per axis and which are gathered one by one."""

LAG_SQUARINGS = 6
"""Squarings of each lag: the norm of q equal singular values is then missed by q^(1/128), 3 % for
q = 64, and the norms that matter are added to one that is exact."""

NARROW_BLOCKS, NARROW_SIDE = 16, 32
"""From so many blocks of such a size on, single precision goes first: 48 x 48 x 3 x 3 in float64
takes 87 ms and not 234; 32 channels take 27 and not 28, and 16 take 16 and not 13."""

FULL_GRID = 2_500
"""Frequencies of a circle up to which all of them may be evaluated at once: 16 x 16 x 3 x 3 takes
12 ms and not 20 at 24 x 24, the same at 50 x 50, and 17 and not 14 at 80 x 80."""

GRID_TRIAL = 3
"""Part of such a grid that the search for the supremum may cost first: a kernel dominated by few
frequencies is done with less, and noise pays a third more frequencies than the grid has."""

GRID_SAMPLE = 64
"""Frequencies of such a grid that are looked at first, for a lower bound that drops others early;
1, 64 and 1000 differ by less than the noise of the clock."""

GRADIENT_GROUPS = 16
"""Most groups whose vectors are all computed to find the largest: each takes an iteration of its own."""

START_RTOL = 1e-2
"""Gap of the search for the frequency from which the vectors of an operator are iterated."""
