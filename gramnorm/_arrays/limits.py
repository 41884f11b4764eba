"""Every budget and threshold of the package, and the measurement or the argument it comes from.

Times were taken on two cores of a server from 2023 with OpenBLAS, one thread, unless a line says
otherwise.  A wrong value costs time or leaves a gap wide; no bound depends on one.
"""

from __future__ import annotations

# Threads

SHARED_OPERATIONS = 2e8
"""Least work of a part that cores share, in operations: about 3 ms, of which making a pool of
threads takes 0.2."""

SHARED_PARTS = 16
"""Most parts of a stack: on fewer cores than that each does several, and parts of few small matrices
would cost the calls of Python."""

ONE_THREAD_OPERATIONS = 1e7
"""Work from which on a stack keeps the BLAS to one thread, about 0.2 ms: entering takes 10 us, and
finding the BLAS 1 ms, once."""

SHARED_COLUMNS = 1024
"""Most columns of matrices of which each has one thread; the BLAS shares larger products well.

The same for the order of a long search over a chain: two threads took as long as one, and twice the
work."""

KEPT_BYTES = 2**23
"""Arrays that the process keeps for those to come: a search over frequencies makes no larger ones
often."""


# Devices

DEVICE_OPERATIONS = 1e8
"""Work from which on a device has it: one product of all matrices of a stack, or eight blocks of a
symbol, whose batches go through several levels. No GPU took part: a bracket takes about a hundred
calls of a device's library, some 10 us each, and the host as long for 180 x 180, which is this much.
"""

PADDED_BATCH = 64, 2**20
"""Frequencies of a batch, and most entries of their blocks, where all batches have one size. JAX on
a CPU takes 146 ms for 16 x 16 x 3 x 3 with 16, 87 with 64 and 93 with 256."""


# Matrices

# Part of a stack in complex double precision: a few such arrays live at a time, half a GiB in all.
PART_BYTES = 2**27

# Entries of a block of rows that is taken to double precision at a time, 64 MiB; no larger matrix in
# single precision is copied as a whole.
DOUBLED_ENTRIES = 2**23

# Columns up to which a Gram matrix is formed whole: 0.7 us and not 1.4 at 32 columns in float32, 5.2
# and not 5.9 at 64, but 55 and not 46 at 128.
WHOLE_PRODUCTS = 64
# Up to here squarings are tried first: a product is then too short to pay for a Ritz vector's
# calls.
SQUARING_COLUMNS = 192
# Gaps shrink by half per squaring at worst; a cluster that is left is for the certificate.
SQUARINGS = 12

# Up to here all eigenvectors cost less than a Ritz vector, whose steps are calls of Python each.
EIGENVECTOR_COLUMNS = 96
# Vectors in float32 serve gaps above its unit, 6e-8: their errors enter the quotient squared.
SINGLE_PRECISION = 1e-7
# Full orthogonality costs 4 n k flops in step k: beyond this it outweighs the product, 2 n^2,
# early.
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
SINGLE = 1e-3
"""Tolerance from which on a single matrix is tried in single precision."""

SINGLE_COLUMNS, SINGLE_PIECES = 128, (256, 64)
"""Columns of a block of its Gram matrix, of which one triangle is formed, a multiple of those of a
factorisation: 0.61 of a whole product at 1024 columns that follow each other in memory, 0.68 with
256, and 0.70 by NumPy's own. Rows that are summed up in one product, if not all are."""

QUOTIENT_PIECE = 128
"""Terms of a product with a vector in single precision that are added up before others: an image is
then wrong by 8e-6 at most of what its moduli are, beside a gap of 1e-3."""

SINGLE_STEPS = 4, 250
"""Lanczos steps that tell whether one singular value outweighs all others, and the most."""

SINGLE_LEVEL, SINGLE_LOSS, SINGLE_SHARE = 0.6, 0.35, 4
"""Of the room above the Rayleigh quotient: where to factorise, and what rounding may cost at most.
Part of the tolerance to which the quotient must have settled: the level leaves room for the rest."""

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


# Arrays that are spread over processes and machines

GRAM_COLUMNS = 8192
"""Most rows or columns, whichever are fewer, of a matrix in chunks whose Gram matrix is formed: 512
MiB in float64, of which a worker holds three as it adds two, and a certificate about as many."""

GRAM_PIECE = 2048, 2**21
"""Least rows that are multiplied at once, so that adding up Gram matrices takes a few per cent of
the time that forming them takes; and entries of pieces with few columns, 16 MiB in float64."""

GATHERED_BYTES = 2**30
"""Largest tensor, in bytes, that all processes gather: each forward pass of a sharded layer does as
much."""


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
in operations. A phase takes 37 ns, in which a product of full speed does 2 800."""

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

PEAK_ROUNDS, LOOSE_PEAK = (20, 2), 5e-3
"""Of the ascent to the place of a gradient: an error in the frequency is one of first order there,
and the ascent stops by itself where it no longer moves. Fewer from that tolerance on: of 64 x 64 x
3 x 3 they take 2 ms, and 20 take 20, two thirds of what the bound takes."""

PAIR_STEPS = 40
"""Lanczos steps to a pair of vectors, which proves nothing: a poor one costs a poor lower bound."""

FLAT = 0.125
"""Least share of the largest singular value squared, at any frequency, from which on a symbol
counts as flat: with less, c is hardly below sup ||F||^2 and the search on the square saves little.
"""

FLAT_TRIAL = 100
"""Part of the budget after which the autocorrelation is formed: easy symbols are done by then."""

SQUARE_SHARE = 4
"""Part of the budget that the search on the square may take: three parts are left if it fails."""

TAP_COLUMNS = 4096
"""Most columns of the matrix of all taps whose Gram matrix is formed; its square is the most
entries for all groups: 128 MiB in float64."""

LAGS = 1000
"""Most lags, of which there are (2 k - 1) per axis and which are gathered one by one."""

LAG_SQUARINGS = 6
"""Squarings of each lag: the norm of q equal singular values is then missed by q^(1/128), 3 % for q
= 64, and the norms that matter are added to one that is exact."""

NARROW_BLOCKS, NARROW_SIDE = 16, 32
"""From so many blocks of such a size on, single precision goes first: 48 x 48 x 3 x 3 in float64
takes 87 ms and not 234; 32 channels take 27 and not 28, and 16 take 16 and not 13."""

FULL_GRID = 2_500
"""Frequencies of a circle up to which all of them may be evaluated at once: 16 x 16 x 3 x 3 takes
12 ms and not 20 at 24 x 24, the same at 50 x 50, and 17 and not 14 at 80 x 80."""

GRID_TRIAL = 3
"""Part of such a grid that the search for the supremum may cost first, for kernels dominated by few
frequencies; where it fails, at most a third more frequencies are paid than the grid has."""

GRID_SAMPLE = 64
"""Frequencies of such a grid that are looked at first, for a lower bound that drops others early;
1, 64 and 1000 differ by less than the noise of the clock."""

GRADIENT_GROUPS = 16
"""Most groups whose vectors are all computed to find the largest: each takes an iteration of its
own."""

START_RTOL = 1e-2
"""Gap of the search for the frequency from which the vectors of an operator are iterated."""


# Convolutions at a finite size

LONGEST = 25.0
"""Seconds, as predicted, that the factorisations of an operator may take. What has 8192 rows takes 8
in a dense one, and up to as much to form."""

LARGE_RATE, SMALL_RATE = 4e10, 2e10
"""Operations per second of products of a thousand rows and columns; of products with few columns, and
of factorisations in a window: 1e10 at a width of 500, 2.4e10 at 6000."""

ENTRY_SECONDS, TERM_SECONDS = 15e-9, 1e-9
"""Passes over an entry of a Gram matrix: 50 products with a vector in single precision, and moves.
Adding a term to an entry of a band; ten before the first."""

SQUARING_CALL, SQUARING_SECONDS, CERTIFICATE_SECONDS = 3e-4, 4e-5, 2e-3
"""Calls of Python: for all matrices that are squared, for each of them, and for a certificate. One of
order 64 takes 0.4 ms, 64 take 12; one of order 256 takes 4 ms, of 400 6 to 8, of 1024 34."""

WINDOW_SECONDS = 3e-4
"""Calls for a block of columns of a factorisation in a window."""

FREQUENCY_SECONDS, BLOCK_ENTRY_SECONDS = 6e-6, 40e-9
"""The symbol at one frequency, with its norm: 16 us for 64 blocks of one entry, 25 to 51 for 16 x 16,
0.19 ms for 64 x 64, 0.6 for 128 x 128."""

CORRELATION_SECONDS, READ_SECONDS = 9e-5, 4e-9
"""Calls for a product with the operator, and a sample read for an output."""

# Times rtol above the lower bound, for the factorisation of a band: where it proves the gap asked
# for, and where it leaves less than the repetition of samples does, if the lower bound is poor.
BAND_GAPS = 0.8, 6.0, 40.0

# Part of the norm that windows may lose and still be worth their factorisations: the repetition of
# samples loses a factor of the root of two at least where it is not 1.
WINDOWS_SLACK = 0.3

# Samples between the ends of an axis that bounds by moduli are computed with: 9 x 9 Gaussian blurs
# are missed by 2e-4, by 1e-3 with 32.  Products of two numbers in a correlation with the moduli, of
# all groups: half a second, and 20 to 60 of them.
MODULI_MIDDLE, MODULI_WORK = 96, 2**28

# Rows of the matrices of corners, or a number whose cube the cubes of theirs, over all groups, stay
# below; and the seconds that one may take, as foretold: a small part of the iterations they help.
CORNER_SIDE, CORNER_SECONDS = 256, 0.1

# Numbers in an intermediate result on the way to a matrix: 512 MiB in float64.
ASSEMBLED_ENTRIES = 2**26

# Taps whose pairs are summed up under a plane wave: two tables of 32 and 64 MiB; 45 x 45 taps take
# 0.3 s at 512 x 512 and 1.3 s at 4096 x 4096.
WAVE_TAPS = 2048

# Samples per axis under the wave's window.  It loses O(n^-2): for equal taps 2e-7 if there are 3,
# and 1e-4 if there are 65, a tenth of the gap asked for by default.
WAVE_SAMPLES = 4096

# Inputs of the window in which Golub-Kahan steps are taken, and numbers that its outputs read: a
# basis of 60 vectors takes 60 MiB, what is read 32 MiB, twice that if complex.  89 products with
# 32 channels and 3 x 3 taps take 0.7 s.
WINDOW_INPUTS, WINDOW_READS = 2**17, 2**22

# From the wave, 3 x 3 and 5 x 5 layers of 16 to 64 channels settle in 12 to 20 steps at
# rtol = 1e-3; three times that for tighter ones and for clusters.
GOLUB_KAHAN_STEPS = 60

# Golub-Kahan iterations for vectors, each from where the last one ended: one is enough at rtol =
# 1e-3.
VECTOR_RESTARTS = 8

# Share of a generic vector in the start: enough that rounding does not hide a direction which the
# wave has not.  Shares of 1e-4 and 0.1 lead to the same gaps at the same cost.
START_NOISE = 1e-2

# A circle is longer than it must be by one part in so many.  3 x 3 layers, 64 channels at 32 x 32:
# a gap of 4.8e-4 against 1.1e-3 for the shortest circle; one twice as long takes twice the
# evaluations for 4.6e-4.
SPARE_CIRCLE = 4

# Frequencies of a circle whose norms are all kept: 32 MiB, a circle of 2048 x 2048.
SCALAR_GRID = 2**22

# How sharply a first compression knows norms, as a share of what they are below the supremum.  0.05
# costs decaying layers 1.6 times the evaluations; 0.5 widens gaps of Gaussian ones by 6 to 23 %.
COMPRESSION_SLACK = 0.25

# Least and most of the same for the second one, which follows the gap asked for.  Least shares of
# 1e-4 and most of 0.02 and 0.2 change gaps by less than 1 %; least 1e-2 widens some by 7 %.
FINE_COMPRESSION_SLACK = 1e-3, 0.05

# Entries of the Toeplitz matrices of an axis, complex: 256 MiB and as much on the way, and 7 to
# 9 s.  Rows times squares of rows of all: 3 s for 8 matrices of order 1024, 2 s for one of 2048.
TOEPLITZ_ENTRIES, TOEPLITZ_WORK = 2**24, 2**33

# Up to so many axes all orders are tried, six at most: each costs as much as the first.
EVERY_ORDER_OF_AXES = 3

# Classes of outputs modulo a dilation that are all looked at, 58 ms; from there on only where
# something changes, 0.2 ms at any size.
EVERY_CLASS = 2**16

# Axes of which it is remembered who reads a sample: those of the operator that is being iterated,
# and of a few beside it.
AXES_READ = 8


# Wide symbols: Gaussian and trained-like kernels of 3 x 3 taps, one thread

FACTOR_COLUMNS, INNER = 32, 64
"""Columns of a block of a factorisation, and most of the inner length of a product, to which
rounding is proportional. Order 512 in single precision takes 5.0 ms, 5.8 with blocks of 64, and
numpy.linalg.cholesky 11 in double."""

LAPACK_ORDER = 128
"""Order from which on diagonal blocks are factorised and inverted by SciPy's LAPACK: 17 us for one of
32 columns and not 36, of 1.1 ms for order 256. SciPy takes a tenth of a second to import, as much as
a search over 64 channels."""

FORMED = 8, 2**17
"""Least matrices and most entries that are formed together, 3 MiB, since the table is read once for
all: at 64 channels each takes 11 us and not 30 with 2^20; fewer than 8 of 256 channels take a tenth
longer."""

ESTIMATED = 2**17
"""Entries of the images of vectors that are formed together, 1 MiB: 64 to 256 channels take as long
with 2^16 and 2^18."""

WIDE_COLUMNS = 32
"""Columns of a block from which on cells are closed by factorisations and not by squarings:
Gaussian and trained-like kernels take 19 and 14 ms against 23 and 14 at 24, 27 and 14 against 43
and 13 at 32, 35 and 16 against 79 and 22 at 40. PyTorch and JAX on a CPU that stands in for a device
take 39 and 19 ms against 111 and 43, and 43 and 25 against 271 and 112, at 32."""

WIDE_TABLE = 2**28
"""Bytes of the tables of lags of all groups: those of 512 x 512 x 3 x 3 take 28 MiB."""

WIDE_LEAST = 2.0**-16
"""Sum of the norms of taps, about 1 after scaling, below which squarings serve: squares of it are to
be large beside the 2^-60 that a factorisation allows for underflow."""

WIDE_CLIMBS = 1
"""Samples from which a local maximum is searched for: 2, 3 and 4 take the same factorisations, and
2 to 5 % longer. A cell that rises above that maximum starts another climb."""

WIDE_SAMPLES = 5
"""Samples per tap and axis from which norms are interpolated: Gaussian noise of 64 and 256 channels
takes 302 and 604 factorisations, 335 and 720 with 4, and 6 cost more estimates than they save."""

WIDE_REACH, WIDEST = 0.05, 1.4
"""The w of the smallest cells of a cover, about, and of the largest. Somewhat more than what closes
a cell at the peak for a gap of 1e-3: 0.065 takes 321 factorisations and 0.042 319, for 335."""

WIDE_LATTICE = 2**14
"""Small cells: with twice as many making a list of them costs more than three-dimensional kernels
gain."""

WIDE_MARGIN = 0.97, 0.92
"""Share of the w that interpolated norms let expect: cells that stay open are cut in four. 0.95 and
1 differ by less than one kernel from the next. The second where no estimate follows at the centres:
with 0.97 half of the Gaussian kernels have a cell that fails, and with it its batch."""

WIDE_LOOSE = 5e-3
"""Tolerance from which on norms interpolated from half as many steps serve: 64 x 64 x 3 x 3 takes 20
% less at 1e-2, trained-like kernels 5 to 10, 48 x 128 x 5 x 5 35; at 1e-3 twice the factorisations of
Gaussian noise fail."""

WIDE_PARTS = 4
"""Most parts per axis into which a cell is cut at once: what is known at its centre says little
about smaller parts."""

WIDE_FACTORS = 5_000, 20_000
"""Factorisations that a search may always spend, 40 s at 512 channels, where Gaussian noise takes
850; and the most it may."""

WIDE_WORK = 3e12
"""Operations in factorisations otherwise: 40 s at 75 Gflop/s."""

FACTORED = 1024
"""Columns of all matrices that are factorised together: 0.07 ms each and not 0.17 at order 64; 256
channels take 1.46 s, 1.56 with 256 columns and 1.9 with 8192. Where one matrix has no factor,
halves are tried again."""

WIDE_FLAT = 0.5
"""Share of the samples beside which no cell but the smallest is expected to be closed, from which
on a symbol may be flat and its autocorrelation is asked: 1 for orthogonal layers. With a hundredth
of noise these take 5000 factorisations, 0.4 and 1.5 s at 48 and 96 channels, and by the square of
the symbol 0.8 and 1.8 s."""

FACTORED_COLUMNS = 96
"""Columns of a block from which on the norm at a single frequency is bounded by a factorisation
too. On a grid of 32 x 32 decaying kernels of 64 channels take 125 ms and not 58, since Frobenius
norms settle most frequencies; Gaussian ones of 128 channels take 0.35 s and not 1.15."""

WIDE_GRID_TRIAL = 1, 4
"""Part of a grid that the factorisations for the supremum may cost first, each one of a point: all,
since how many it takes is known before the first; and how many times the first cells they must be:
a cover takes twice those of a trained-like kernel, 12 times those of Gaussian noise."""


# Large sparse matrices

DENSE_SIGNS, DENSE_STEPS = 256, 12
"""Columns from which a dense matrix is looked at for signs of rank one, and the most power steps
with its moduli: both together take as long as a quarter of the product with its adjoint at 1000
columns, an eightieth at 3000."""

SMALL_SIDE = 384
"""Up to this many rows or columns the dense Gram matrix comes first: it takes 3 ms, as a look at
the signs does."""

LONG_SUM = 4096
"""Terms of a float32 product that are added up before others: a tall matrix loses at most 5e-4 of
its stable rank by rounding, and the partial products are hardly slower than the whole."""

BATCH = 2**18
"""Entries whose ends are joined at a time: 20 MiB; fewer make the passes over all rows and columns
dear."""

FIRST_STEPS = 8
"""Power steps with the moduli, from ones: counts, graphs and grids at a modest gap need no more,
and they settle which parts can be the largest; eight take as long as a quarter of `svds` on 20 000
unknowns."""

LONG_LANCZOS_WORK = 2**33
"""Entries that the products of one Lanczos iteration may touch: ten seconds at 1.2 ns each."""

LONG_LANCZOS_STEPS = 2000
"""Most steps: the Laplacian on 600 x 600 takes 1500 to a gap of 1e-6, the Ritz problems a tenth of
that time."""

BASIS = 2**26
"""Bytes of Lanczos vectors to remember; the others are computed twice, which doubles the time at
worst."""

SMOOTHING = 96
"""Most power steps after Lanczos, as long as eight of them gain a third: the corners of a grid need
3 to 8, the far ends of a random graph with heavy hubs 50."""

STACKED = 32
"""Largest side of a part that is bracketed densely in a stack with others: a part by itself costs
0.5 ms."""

GRAM_WORK = 2**27
"""Products of two entries that forming a sparse Gram matrix may take: half a second at 4 ns each.
"""

WINDOW_BLOCK, STRIP, WIDE_WINDOW = 64, 4, 1024
"""Columns of a block of that factorisation, twice as many where the window is wide, whose
passes are slow; and how many blocks are updated in one product."""

WINDOW = 2**26
"""Entries of the square that a factorisation moves along the diagonal of a Gram matrix: 512 MiB,
1 GiB if complex."""

DENSE_FACTOR = 0.5
"""Operations of a dense certificate over the cube of the side, in those of a window: at equal counts
a window of 100 columns takes about twice as long, in many small calls."""

WINDOW_WORK = 2**37
"""Sum of squares of its sides, column by column: five seconds at 25 GFLOP/s, or one dense
factorisation of 7000."""


# Chains

CHAIN_PHASES = 16
"""Phases per channel up to which strides stay in one segment of a chain, and averages in a kernel:
a total stride of 16 on one axis, or of 4 on two. Each phase is a row or a column of the coupling."""

CHAIN_NEURONS = 1500
"""Inputs, neurons and outputs of a chain in all up to which each neuron has a multiplier of its own:
a step of the descent takes the eigenvectors of a matrix of half of them, 0.15 s for 750."""
