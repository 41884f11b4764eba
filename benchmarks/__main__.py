"""Run a benchmark: ``python -m benchmarks matrix`` or ``python -m benchmarks conv``."""

import argparse

from benchmarks import bench_conv, bench_matrix

parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
parser.add_argument("name", choices=("conv", "matrix"))
parser.add_argument("--section", choices=sorted(bench_conv.SECTIONS), help="one part of conv")
chosen = parser.parse_args()
if chosen.name == "conv":
    bench_conv.run(chosen.section)
elif chosen.section:
    parser.error("--section: only conv has sections")
else:
    bench_matrix.run()
