"""Run a benchmark: ``python -m benchmarks matrix`` or ``python -m benchmarks conv``."""

import argparse

from benchmarks import bench_conv, bench_matrix

BENCHMARKS = {"conv": bench_conv.run, "matrix": bench_matrix.run}

parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
parser.add_argument("name", choices=sorted(BENCHMARKS))
BENCHMARKS[parser.parse_args().name]()
