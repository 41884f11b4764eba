"""Run the benchmarks, print their tables, save them with their figures: ``python -m benchmarks``.

The folder gets ``results.json`` with all numbers, a Markdown file for each table and a picture for
each figure.  With names of sections only those are run, and the folder keeps the others' tables.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import (
    arithmetic,
    chains,
    checkpoints,
    chunks,
    convolutions,
    figures,
    hosts,
    matrices,
    methods,
    network,
    sparse,
    tables,
    training,
)
from benchmarks.devices import NAMES, AbsentError, device, versions

SECTIONS = {
    section.__name__: section
    for section in (
        matrices.matrices,
        matrices.loose_matrices,
        matrices.gradients,
        sparse.sparse,
        sparse.sparse_pyamg,
        sparse.sparse_pylops,
        chunks.dask,
        convolutions.speed,
        convolutions.growth,
        convolutions.sweep,
        convolutions.sizes,
        convolutions.forward,
        convolutions.training,
        convolutions.geometry,
        convolutions.ways,
        convolutions.trained,
        methods.methods,
        network.network,
        network.report,
        chains.network_sdp,
        checkpoints.checkpoints,
        training.training_steps,
        training.followed_norms,
        hosts.libraries,
        hosts.busy,
        arithmetic.arithmetic,
    )
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Read the command line, run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--backend", choices=NAMES, default="numpy", help="default: numpy")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/BACKEND")
    parser.add_argument("--draw", action="store_true", help="only draw what the folder holds")
    chosen = parser.parse_args()
    if unknown := set(chosen.sections) - set(SECTIONS):
        parser.error(f"no section {sorted(unknown)[0]!r}; there are {', '.join(SECTIONS)}")
    folder = chosen.output or RESULTS / chosen.backend
    if not chosen.draw:
        try:
            run(chosen.sections or list(SECTIONS), chosen.backend, folder)
        except AbsentError as error:
            parser.exit(1, f"{chosen.backend}: {error}\n")
    for path in figures.draw(folder):
        print(path)


def run(names: list[str], backend: str, folder: Path) -> None:
    """Run sections; save after each of them.

    Those of a folder that are not run keep their tables, and the page its machine.
    """
    where = device(backend)
    here = where.describe()
    about = {"backend": backend, "device": here, "versions": versions(), "seconds": {}}
    found: dict[str, tables.Table] = {}
    if (folder / "results.json").exists() and set(names) != set(SECTIONS):
        about, kept = tables.load(folder)
        found = {table.name: table for table in kept}
    print(f"{here}\n", ", ".join(f"{k} {v}" for k, v in versions().items()), "\n")
    for name in names:
        start = time.perf_counter()
        try:
            for table in SECTIONS[name](where):
                tables.show(table)
                found[table.name] = replace(table, device=here)
        except AbsentError as error:
            table = tables.Table(name, name, [], [f"absent: {error}"])
            tables.show(table)
            found[name] = table
        about["seconds"][name] = round(time.perf_counter() - start)
        tables.save(folder, about, list(found.values()))


main()
