"""Tables as they are printed, saved and put into the documentation."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Cells = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of named cells, with the same names in every row; `notes` say what is not in them, and why.

    `device` is where they were measured.
    """

    name: str
    title: str
    rows: Sequence[Cells]
    notes: Sequence[str] = field(default_factory=tuple)
    device: str = ""

    @property
    def head(self) -> list[str]:
        """The names of the columns, in the order in which rows bring them."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def texts(self) -> list[list[str]]:
        """Return the cells as text, row by row."""
        return [
            [text(row.get(name), near_1=" / " in name) for name in self.head] for row in self.rows
        ]

    @property
    def aligned(self) -> list[str]:
        """The rulers of the columns in Markdown: numbers end at the right."""
        columns = [[row.get(name) for row in self.rows] for name in self.head]
        return ["---" if any(map(_is_word, column)) else "---:" for column in columns]


def _is_word(value: Any) -> bool:
    return isinstance(value, bool | str)


def text(value: Any, *, near_1: bool = False) -> str:
    """Return a cell as people read it: three digits, of a ratio that is near 1 more."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4f}" if near_1 and 0 < abs(value - 1) < 0.1 else number(value, digits=3)
    if isinstance(value, list):
        return " - ".join(number(x, digits=2) for x in value)
    return str(value)


def number(value: float, *, digits: int) -> str:
    """Return a number with so many digits: 3440, 0.31, and 6.09e-9 for what is below 0.01."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -2 or exponent > 7:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    rounded = round(value, digits - 1 - exponent)
    return f"{rounded:.{max(digits, exponent + 1) + 1}g}"


def show(table: Table) -> None:
    """Print a table."""
    print(f"{table.title}")
    if table.rows:
        _print_grid(table.head, table.texts())
    for note in table.notes:
        print(f"  {note}")
    print(flush=True)


def _print_grid(head: list[str], cells: list[list[str]]) -> None:
    try:
        from rich import box, console
        from rich import table as rich_table
        from rich.text import Text
    except ImportError:
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        for line in (head, *cells):
            print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
        return
    grid = rich_table.Table(box=box.SIMPLE)
    for name in head:
        grid.add_column(Text(name), no_wrap=True)  # Text: "[ms]" is no markup
    for line in cells:
        grid.add_row(*map(Text, line))
    console.Console(width=200).print(grid)


def markdown(table: Table, device: str = "") -> str:
    """Return a table for a page that names a device; one from elsewhere says so."""
    lines = [f"**{table.title}**", ""]
    if table.rows:
        lines += [f"| {' | '.join(table.head)} |", f"| {' | '.join(table.aligned)} |"]
        lines += [f"| {' | '.join(cells)} |" for cells in table.texts()]
        lines.append("")
    notes = [*table.notes]
    if table.device and table.device != device:
        notes.append(f"Measured on another machine than the rest: {table.device}.")
    return "\n".join([*lines, *(f"{note}\n" for note in notes)])


def save(folder: Path, about: dict[str, Any], tables: Sequence[Table]) -> Path:
    """Write all tables as one JSON file and each as Markdown; return the former's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        page = markdown(table, about.get("device", "")) + "\n"
        (folder / f"{table.name}.md").write_text(page, encoding="utf-8")
    (folder / "about.md").write_text(_machine(about), encoding="utf-8")
    content = {"about": about, "tables": [asdict(table) for table in tables]}
    path = folder / "results.json"
    path.write_text(json.dumps(_standard(content), indent=1, allow_nan=False) + "\n", "utf-8")
    return path


def _machine(about: dict[str, Any]) -> str:
    """Return a line about the machine, the versions and the time it took."""
    packages = ", ".join(f"{name} {found}" for name, found in about.get("versions", {}).items())
    minutes = sum(about.get("seconds", {}).values()) / 60
    return f"{about.get('device')}; {packages}. All sections together took {minutes:.0f} minutes.\n"


def load(folder: Path) -> tuple[dict[str, Any], list[Table]]:
    """Return what `save` has written; NaN comes back as None."""
    content = json.loads((folder / "results.json").read_text("utf-8"))
    return content["about"], [Table(**table) for table in content["tables"]]


def _standard(value: Any) -> Any:
    """Replace NaN and infinities, for which JSON has no number, by null."""
    if isinstance(value, dict):
        return {key: _standard(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
