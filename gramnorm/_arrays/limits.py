"""Every budget and threshold of the package, and the measurement or the argument it comes from.

Times were taken on two cores of a server from 2023 with OpenBLAS, one thread, unless a line says otherwise.  A wrong
value costs time or leaves a gap wide; no bound depends on one.
"""

from __future__ import annotations

# Matrices

# Part of a stack in complex double precision: a few such arrays live at a time, half a GiB in all.
PART_BYTES = 2**27

# Up to here squarings are tried first: a product is then too short to pay for a Ritz vector's calls.
SQUARING_COLUMNS = 192
# Gaps shrink by half per squaring at worst; a cluster that is left is for the certificate.
SQUARINGS = 12

# Up to here all eigenvectors cost less than a Ritz vector, whose steps are calls of Python each.
EIGENVECTOR_COLUMNS = 96
# Vectors in float32 serve gaps above its unit, 6e-8: their errors enter the quotient squared.
SINGLE_PRECISION = 1e-7
# Full orthogonality costs 4 n k flops in step k: beyond this it outweighs the product, 2 n^2, early.
LANCZOS_STEPS = 250
# The small eigenproblem of the Ritz value costs as much as a step, so not every step solves it.
RITZ_PERIOD = 4
# A Ritz value that settles to a 16th of the gap, and of 1e-2 at most, leaves the rest to the proof.
LOOSEST_RITZ = 1e-2
RITZ_SHARE = 16

# Eigenvalues have twice the gap of their roots, 2 rtol: a proof that leaves 1.6 of it is enough.
ENOUGH = 1.6
# The level to factorise at, below that, so that what the check adds still fits.
CHOLESKY_LEVEL = 1.2
# The check costs this fraction of n of a product; fewer columns make the products slow.
CHOLESKY_BLOCK = 64
# P = 2^40 leaves ln(n) / P, 1e-11 at n = 4096, of the largest eigenvalue undecided.
POWER_SQUARINGS = 40

# The dense Gram matrix on the smaller side then takes 128 MiB, in complex arithmetic 256 MiB.
SPARSE_COLUMNS = 4096

# Of the columns: typical, and the rounding of a Gram product is in proportion to it.  What is
# flatter is done again in float64.
STABLE_RANK = 1 / 4
# Share of the width that must be more than rounding for another squaring to be worth a product.
HOPELESS = 0.7
# Share of a stack that must have stalled before its moments are worth more passes over all.
CLUSTERED = 0.2
# Stalled: an effective rank above 1, and above 0.65 of the last one.  Squaring halves the rank of a
# spectrum that decays evenly, and leaves that of a cluster.
SEVERAL = 1.3
LEVEL = 0.65
# Of one matrix: below this change of rank the top values differ by 2e-3 at most, and 12 squarings
# would rarely part them.
UNCHANGED = 1 - 1e-6


# Convolutions
