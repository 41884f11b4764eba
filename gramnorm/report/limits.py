"""Every budget and threshold of the report, and the measurement or the argument it comes from.

A wrong value refuses a file that could be read, asks where nothing is in doubt, or makes a poor
picture.  The thresholds of kernels and folds decide as what an array is read; where they leave a
doubt, the user is asked.
"""

# Reading
MAX_BYTES = 4 * 2**30  # of all arrays, unpacked: a few megabytes of a file can state terabytes
HEADER_BYTES = 10**8  # of a safetensors file, as the format itself has it
DESCRIPTION_BYTES = 2**24  # of JSON: at 200 bytes for a layer, those of 80 000 layers
MAX_DEPTH = 64  # of dicts within dicts; real ones have a handful
MAX_VISITS = 2**20  # entries of nested dicts, counted again where one is shared: 2^64 fit in 1 kB
MAX_FILES = 1000  # of a folder; a checkpoint in shards has some hundreds at most
HDF5_SECONDS = 60  # of computing time: reading 4 GiB takes a tenth of it
LIBRARY_BYTES = 3 * 2**30  # of addresses, beside the arrays: of Python, NumPy and HDF5
PIECE = 2**22  # numbers that are read and widened at a time: 16 MiB, beside the array itself
LONGEST_NAME = 1000  # the pattern takes the square of its length, and real names are shorter

# Bounding
AT_ONCE = (
    2**27
)  # numbers of layers at work at a time: 512 MiB in single precision, 14336 x 4096 twice
KEPT_EVERY = (
    2.0  # seconds between writing finished rows: what a crash costs, of layers that take less
)
RESUME_BYTES = 2**30  # of such rows: at 500 bytes for each, two million
SHIPPED_BYTES = 2**26  # of a layer that is sent to a worker, and kept by the scheduler meanwhile
AHEAD = 2  # layers sent for each thread of a cluster: one at work, and one to go on with
WAIT = 30.0  # seconds until a scheduler must have answered, or have a worker

# Kernels and folded weights
FEW_TAPS = 16  # along an axis that need no explanation
AGREE, DISAGREE = 0.95, 0.5  # cosines between u and W v: 1 once power iteration has converged
FEWEST_TO_AGREE = 16  # entries of a vector from which its direction is no accident

# Chains of a network
CHAIN_SECONDS = 40  # for all of them: a report then takes less than a minute, but for its layers
CHAIN_WORK = 2e10  # multiplications of one step of a descent, some seconds of one core

# Text
NAMES_SHOWN = 8  # in a sentence; JSON has all
FOLDED = 16  # columns of a terminal for each text of a row, at least: "layers.12.weight"
LABEL = 44  # characters of the name of a layer in a picture
LONG = 2**16  # numbers in all layers: about where a report takes a second, and a bar helps

# Pictures of a symbol
WORK = 1e11  # multiplications that a picture may cost,
PATIENCE = 10  # and how many times that with the fewest points
FEWEST_POINTS = 9  # per axis
FINEST = {1: 1024, 2: 160}  # points per axis, which the pixels of the picture still show
MOST_FOLDS = 2**12  # copies of the frequencies that a stride folds on each other
CHUNK = 2**21  # numbers in the blocks at a time, 32 MiB of complex ones
LEAST_DRAWN, MOST_DRAWN = 1e-150, 1e150  # beyond, a logarithmic axis overflows
