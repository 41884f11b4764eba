"""Pictures of the tables, drawn from the saved numbers and nothing else."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.tables import Cells, Table, load

BLUE, RED, GREY, ORANGE, GREEN = "#1f5fa8", "#b3261e", "#8a8a8a", "#d98200", "#2c7a4b"


def draw(folder: Path) -> Iterator[Path]:
    """Draw what the tables in a folder allow; yield the paths."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no figures: matplotlib is not installed")
        return
    mpl.use("Agg")
    mpl.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    mpl.rcParams |= {"figure.dpi": 110, "savefig.bbox": "tight", "axes.axisbelow": True}
    tables = {table.name: table for table in load(folder)[1]}
    for name, (needed, function) in FIGURES.items():
        if all(key in tables and tables[key].rows for key in needed):
            figure = function(*(tables[key] for key in needed))
            path = folder / f"{name}.png"
            figure.savefig(path)
            yield path


def _ratios(table: Table) -> Any:
    """Draw the ratios of time with their goals: left of 1 is faster than the rival."""
    import matplotlib.pyplot as plt

    rows = table.rows
    figure, axes = plt.subplots(figsize=(7.5, 0.26 * len(rows) + 1.2))
    labels = []
    for y, row in enumerate(rows):
        reached = row.get("met", row["ratio"] <= 1)
        axes.barh(y, row["ratio"] - 1e-5, left=1e-5, color=BLUE if reached else RED, height=0.7)
        if row.get("quartiles"):
            axes.plot(row["quartiles"], [y, y], color="black", lw=1)
        if row.get("goal"):
            axes.plot([row["goal"]] * 2, [y - 0.45, y + 0.45], color=ORANGE, lw=2.5)
        labels.append(row["case"])
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.set_xscale("log")
    low = min(min(row["ratio"], row.get("goal") or 1) for row in rows)
    high = max(max(row["ratio"], row.get("goal") or 0) for row in rows)
    axes.set_xlim(low / 3, max(high, 1) * 2)
    axes.axvline(1, color="black", lw=0.8)
    axes.grid(axis="x", color="#dddddd")
    axes.set_xlabel("time of gramnorm / time of the rival (orange: goal; red: goal missed)")
    return figure


def _methods(table: Table) -> Any:
    """Draw value over norm, a panel for each family; red is below the norm."""
    import matplotlib.pyplot as plt

    families = list(dict.fromkeys(row["family"] for row in table.rows))
    names = list(dict.fromkeys(row["method"] for row in table.rows))
    figure, grid = plt.subplots(
        1, len(families), figsize=(1.5 * len(families) + 2.5, 0.3 * len(names) + 1.4), sharey=True
    )
    for family, axes in zip(families, grid, strict=True):
        rows = {row["method"]: row for row in table.rows if row["family"] == family}
        for y, name in enumerate(names):
            found = rows.get(name, {}).get("value / norm")
            if found is None:
                axes.plot(1, y, marker="x", color=GREY)
                continue
            colour = BLUE if rows[name]["below the norm"] != "yes" else RED
            colour = GREEN if rows[name]["side"] == "lower bound" else colour
            axes.plot([1, found], [y, y], color=colour, lw=2)
            axes.plot(found, y, marker="<" if found < 1 else "o", color=colour)
        axes.axvline(1, color="black", lw=0.8)
        axes.set_xscale("log")
        axes.set_xlim(0.3, 60)
        axes.set_xticks([0.5, 1, 10], ["0.5", "1", "10"])
        axes.minorticks_off()
        axes.grid(axis="x", color="#dddddd")
        axes.set_title(family.replace(", ", ",\n").replace(" ", "\n", 1), fontsize=7)
    grid[0].set_yticks(range(len(names)), names)
    grid[0].invert_yaxis()
    figure.supxlabel(
        "value / norm for every size (red: below the norm; green: a lower bound; grey cross: not taken)"
    )
    return figure


def _sizes(table: Table) -> Any:
    """Draw value over norm against the size of the image with zero padding."""
    import matplotlib.pyplot as plt

    families = list(dict.fromkeys(row["family"] for row in table.rows))
    names = list(dict.fromkeys(row["method"] for row in table.rows))
    columns = 4
    lines = math.ceil(len(families) / columns)
    figure, grid = plt.subplots(lines, columns, figsize=(11, 2.6 * lines), squeeze=False)
    colours = dict(zip(names, plt.get_cmap("tab20").colors, strict=False))
    ours = [name for name in names if name.startswith("gramnorm")]
    names = [name for name in names if name not in ours] + ours  # on top of the others
    colours |= dict.fromkeys(ours, "black")
    for family, axes in zip(families, grid.flat, strict=False):
        for name in names:
            points = [
                (row["n"], row["value / norm"])
                for row in table.rows
                if row["family"] == family and row["method"] == name and row.get("value / norm")
            ]
            if points:
                style = "s--" if name.endswith("upper") else "v:" if name in ours else ".-"
                axes.plot(
                    *zip(*points, strict=True), style, color=colours[name], label=name, lw=1.2, ms=4
                )
        axes.axhline(1, color="black", lw=0.8)
        axes.set_xscale("log", base=2)
        axes.set_ylim(0.45, 2.3)
        axes.set_title(family, fontsize=8)
        ticks = sorted({row["n"] for row in table.rows if row["family"] == family})
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
    for axes in list(grid.flat)[len(families) :]:
        axes.set_visible(False)
    handles = {h.get_label(): h for axes in grid.flat for h in axes.get_lines()}
    handles = {name: h for name, h in handles.items() if not name.startswith("_")}
    figure.supxlabel("samples per axis, zero padding")
    figure.supylabel("value / norm (below 1: below the norm)")
    figure.legend(handles.values(), handles.keys(), ncols=4, loc="upper center", fontsize=7)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    return figure


def _growth(table: Table) -> Any:
    """Draw seconds against the size of the image."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    for case in dict.fromkeys(row["case"] for row in table.rows):
        rows = [row for row in table.rows if row["case"] == case]
        points = [(row["n"], row["theirs [ms]"]) for row in rows] + [(1024, rows[-1]["ours [ms]"])]
        axes.plot(*zip(*points, strict=True), marker="o", label=case)
    axes.set(xscale="log", yscale="log", xlabel="samples per axis", ylabel="milliseconds")
    axes.set_xticks([32, 64, 224, 1024], ["32", "64", "224", "1024"])
    axes.minorticks_off()
    axes.grid(color="#dddddd")
    axes.legend(fontsize=8)
    return figure


def _network(table: Table) -> Any:
    """Draw the product over the layers for each method."""
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(row["weights"] for row in table.rows))
    names = list(dict.fromkeys(row["method"] for row in table.rows))
    figure, grid = plt.subplots(1, len(kinds), figsize=(9, 0.3 * len(names) + 1.4), sharey=True)
    for kind, axes in zip(kinds, grid, strict=True):
        rows: dict[str, Cells] = {
            row["method"]: row for row in table.rows if row["weights"] == kind
        }
        for y, name in enumerate(names):
            ratio = rows[name]["product / true product"]
            colour = RED if rows[name]["layers below the norm"] else BLUE
            axes.barh(y, ratio - 1, left=1, color=colour, height=0.7)
            axes.annotate(
                f" {ratio:.3g}, {rows[name]['seconds']:.3g} s",
                (max(ratio, 1), y),
                va="center",
                fontsize=7,
            )
        axes.set_xscale("log")
        axes.set_xlim(0.3, 1e3 * max(row["product / true product"] for row in rows.values()))
        axes.axvline(1, color="black", lw=0.8)
        axes.grid(axis="x", color="#dddddd")
        axes.set_title(f"{kind} weights", fontsize=9)
    grid[0].set_yticks(range(len(names)), names)
    grid[0].invert_yaxis()
    figure.supxlabel(
        "product over 20 layers / product of their norms (red: some layer below its norm)"
    )
    return figure


FIGURES: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    "matrices": (("matrices_matrix_norm",), _ratios),
    "speed": (("speed",), _ratios),
    "forward": (("forward",), _ratios),
    "growth": (("growth",), _growth),
    "methods": (("methods",), _methods),
    "zero_padding": (("methods_zero_padding",), _sizes),
    "network": (("network",), _network),
}
