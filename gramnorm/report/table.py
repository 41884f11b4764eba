"""A report as a table (of `rich`, in Markdown, as CSV) and as JSON with all digits.

Decimal text is rounded like the number it stands for: the exact value of a float is rounded up to
the digits shown if it is an upper bound, and down if it is a lower one, so that what is read off a
table is as true as the float.
"""

import csv
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from gramnorm import _validate
from gramnorm._rigour.decimals import decimal_text, relative_gap_above
from gramnorm._rigour.fractions import product_above
from gramnorm.network._graph import Chain
from gramnorm.report import Row
from gramnorm.report.files.contents import printable
from gramnorm.report.limits import FOLDED, NAMES_SHOWN
from gramnorm.report.network import Constant

_HEADINGS = ("layer", "kind", "shape", "lower", "upper", "gap", "seconds", "converged")
_NUMBERS = ("lower", "upper", "gap", "seconds")
_TO_DROP = ((), ("seconds",), ("seconds", "converged"))  # until the others fit side by side
_NO_BOUND = "no bound"
_UNFINISHED = "interrupted before there was a bound"
_JOINED = (
    "the stated way in which the layers are joined, which only the constant of the network counts"
)


class MissingPackageError(ImportError):
    """What was asked for needs an optional package."""


@dataclass(frozen=True)
class Report:
    """The rows of a report, the entries that are no layers, and what was asked for."""

    source: str
    version: str
    rows: Sequence[Row]
    skipped: dict[str, str]
    options: dict[str, Any]
    network: Constant | None = None  # None: the file does not say how its layers are joined
    notes: Sequence[str] = ()
    obstacles: dict[str, str] = field(default_factory=dict)  # by name, why the layers are no chain
    unfinished: Sequence[str] = ()  # layers without a row, since somebody interrupted

    @property
    def missing(self) -> list[str]:
        """Names of the layers without a bound; there is no product if there are any."""
        return [row.name for row in self.rows if row.error is not None]

    @property
    def against(self) -> dict[str, list[str]]:
        """Why there is no product: reasons, and the names of the arrays that they are about."""
        reasons = {_JOINED: list[str]()} if self.network is not None else {}
        if self.missing:
            reasons[_NO_BOUND] = self.missing
        if self.unfinished:
            reasons[_UNFINISHED] = list(self.unfinished)
        for name, reason in self.obstacles.items():
            reasons.setdefault(reason, []).append(name)
        return reasons

    @property
    def product_upper(self) -> float | None:
        """The product of the upper bounds, rounded up.

        None if it would not be about the network.
        """
        return None if self.against else product_above(row.upper for row in self.rows)

    @property
    def left_out(self) -> dict[str, str]:
        """By name, why an entry of the file has no row."""
        listed = {*(row.name for row in self.rows), *self.unfinished}
        others = {name: why for name, why in self.obstacles.items() if name not in listed}
        return self.skipped | others


def write_json(report: Report, stream: IO[str]) -> None:
    """Write a report as one JSON object.

    Numbers as `repr` has them, the others as the texts "inf" and "nan".
    """
    layers = []
    for row in report.rows:
        entry = asdict(row)
        entry["gap"] = None if row.lower is None else relative_gap_above(row.lower, row.upper)
        if row.error is not None:
            entry |= dict.fromkeys(("lower", "upper", "gap", "converged"))
        layers.append(entry)
    content = {
        "source": report.source,
        "version": report.version,
        **report.options,
        "network": None if report.network is None else asdict(report.network),
        "product_upper": report.product_upper,
        "no_product": [{"reason": r, "names": names} for r, names in report.against.items()],
        "layers": layers,
        "notes": list(report.notes),
        "skipped": [{"name": name, "reason": why} for name, why in report.left_out.items()],
        "partial": bool(report.missing or report.unfinished),
        "missing": report.missing,
        "unfinished": list(report.unfinished),
    }
    json.dump(_standard(content), stream, indent=2, allow_nan=False)
    stream.write("\n")


def _standard(value: Any) -> Any:
    """Replace what JSON has no number for by text that `float` understands."""
    if isinstance(value, dict):
        return {key: _standard(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def require_rich() -> None:
    """Raise MissingPackageError unless tables can be drawn.

    Better before the work than after it.
    """
    try:
        import rich.table  # noqa: F401, PLC0415
    except ImportError as error:
        msg = f"the table needs the package rich: {_validate.install('report')}, or use --json, --csv or --markdown"
        raise MissingPackageError(msg) from error


def write_table(report: Report, stream: IO[str]) -> None:
    """Write the constant of a network, the table as wide as the terminal, then all else."""
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(file=stream, highlight=False)
    table, console.width = _fitted(report.rows, console)
    with console.capture() as capture:
        for line in opening_lines(report):
            console.print(Text(line, overflow="fold"))
        console.print(table)
        for line in closing_lines(report):
            console.print(Text(line, overflow="fold"))
    stream.writelines(f"{line.rstrip()}\n" for line in capture.get().rstrip().split("\n"))


def _fitted(rows: Sequence[Row], console: Any) -> tuple[Any, int]:
    """Return the table with the columns that fit side by side, and the width to draw it in.

    Where the fewest do not fit, texts are folded. Digits never are: cut, they would be no bound.
    """
    from rich.measure import Measurement  # noqa: PLC0415

    unlimited = console.options.update_width(sys.maxsize)

    def width(*headings: str) -> int:
        return Measurement.get(console, unlimited, _table(rows, headings)).maximum

    for dropped in _TO_DROP:
        headings = [heading for heading in _HEADINGS if heading not in dropped]
        if width(*headings) <= console.width:
            return _table(rows, headings), console.width
    texts, numbers = headings[:3], headings[3:]
    return _table(rows, headings), max(console.width, width(*numbers) + len(texts) * FOLDED)


def _table(rows: Sequence[Row], headings: Sequence[str]) -> Any:
    """Return a table of these columns."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        is_number = heading in _NUMBERS
        justify: Any = "right" if is_number else "left"
        table.add_column(heading, justify=justify, no_wrap=is_number, overflow="fold")
    for row in rows:
        texts = dict(zip(_HEADINGS, cells(row), strict=True))
        table.add_row(*(Text(texts[h]) for h in headings))  # Text: a name may look like markup
    return table


def write_csv(report: Report, stream: IO[str]) -> None:
    """Write a line per layer, then the constant of a network, the product, and what has no row."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*_HEADINGS, "assumed", "error"])
    for row in report.rows:
        name, _, *rest = cells(row)
        rest = ["" if cell in ("-", "failed") else cell for cell in rest]
        assumed = "yes" if row.assumed else "no"
        writer.writerow([name, row.kind, *rest, assumed, printable(row.error or "")])

    def close(name: str, kind: str, upper: float | None, reason: str) -> None:
        bound = "" if upper is None else decimal_text(upper, up=True)
        writer.writerow([printable(name), kind, "", "", bound, "", "", "", "", printable(reason)])

    if report.network is not None:
        upper, reason = report.network.upper, report.network.reason
        close("", "constant of the network", upper, str(reason or ""))
        for chain in report.network.chains:
            close(" > ".join(chain.layers), "chain", chain.upper, _beside(chain))
        if report.network.chains:
            close("", "constant of the network, by norms", report.network.product, "")
    why = "; ".join(_about(r, ", ".join(names)) for r, names in report.against.items())
    reason = f"none, because of {why}" if report.against else ""
    close("", "product of the upper bounds", report.product_upper, reason)
    for name in report.unfinished:
        close(name, "unfinished", None, _UNFINISHED)
    for name, reason in report.left_out.items():
        close(name, "skipped", None, reason)


def write_markdown(report: Report, stream: IO[str]) -> None:
    """Write a table, and around it what stands around the one for terminals."""
    ruler = ["---"] * 3 + ["---:"] * 4 + ["---"]
    lines = [_HEADINGS, ruler, *([_escaped(cell) for cell in cells(row)] for row in report.rows)]
    source, *constant = opening_lines(report)
    stream.write(f"**{_escaped(source)}**\n\n")
    stream.writelines(f"{_escaped(line)}\n\n" for line in constant)
    stream.writelines(f"| {' | '.join(line)} |\n" for line in lines)
    stream.writelines(f"\n{_escaped(line)}\n" for line in closing_lines(report))


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is: a name may look like markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$!&])", r"\\\1", text)


def cells(row: Row) -> tuple[str, ...]:
    """Return the texts of one line of the table."""
    shape = " x ".join(map(str, row.shape))
    start = (printable(row.name), row.kind + "*" * row.assumed + "?" * row.forced, shape)
    seconds = f"{row.seconds:.3f}"
    if row.error is not None:
        return (*start, "-", "-", "-", seconds, "failed")
    upper = decimal_text(row.upper, up=True)
    if row.lower is None:
        return (*start, "-", upper, "-", seconds, "-")
    gap = decimal_text(relative_gap_above(row.lower, row.upper), up=True, digits=2)
    lower = decimal_text(row.lower, up=False)
    return (*start, lower, upper, gap, seconds, "yes" if row.converged else "no")


def opening_lines(report: Report) -> list[str]:
    """Return what stands above the table: its source, and the constant of a network."""
    source = printable(report.source)
    return [source] if report.network is None else [source, _network_line(report.network)]


def closing_lines(report: Report) -> list[str]:
    """Return what stands below the table."""
    failed = [row for row in report.rows if row.error is not None]
    lines = [f"{printable(row.name)}: {printable(str(row.error))}" for row in failed]
    lines += _product_lines(report)
    lines += [] if report.network is None else _chain_lines(report.network)
    if names := [row.name for row in report.rows if row.error is None and row.converged is False]:
        lines.append(f"further apart than the gap asked for, and as valid: {_some(names)}")
    lines += _footnotes(report.rows)
    lines += map(printable, report.notes)
    reasons: dict[str, list[str]] = {}
    for name, reason in report.skipped.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        lines.append(f"skipped {len(names)} ({printable(reason)}): {_some(names)}")
    return lines


def _product_lines(report: Report) -> list[str]:
    """Return the product, or why there is none: nothing where the network's constant is the answer."""
    if list(report.against) == [_JOINED]:
        return []
    if report.product_upper is None:
        against = [_about(printable(r), _some(names)) for r, names in report.against.items()]
        begin = "no product of the upper bounds, which would not be one about the network:"
        return [begin, *(f"- {line}" for line in against)]
    return [
        f"product of the upper bounds, rounded up: {decimal_text(report.product_upper, up=True)}",
        "(a Lipschitz constant of these layers if they form a chain with 1-Lipschitz functions between)",
    ]


def _chain_lines(constant: Constant) -> list[str]:
    """Return which layers were bounded together, and what norms alone would give."""
    if not constant.chains or constant.product is None:
        return []
    lines = ["chains of layers, bounded as a whole where that is less than the product of norms:"]
    for chain in constant.chains:
        upper = decimal_text(chain.upper, up=True)
        lines.append(f"- {printable(' > '.join(chain.layers))}: {upper} ({_beside(chain)})")
    product = decimal_text(constant.product, up=True)
    return [*lines, f"constant of the network from products of norms alone: {product}"]


def _beside(chain: Chain) -> str:
    """Return what the bound of a chain is compared with."""
    product = f"product of norms {decimal_text(chain.product, up=True)}"
    return "; ".join(filter(None, (product, chain.reason)))


def _about(reason: str, names: str) -> str:
    return f"{reason}: {names}" if names else reason


def _footnotes(rows: Sequence[Row]) -> list[str]:
    """Return what the rows with an upper bound alone rest on."""
    lines = []
    if any(row.assumed for row in rows):
        lines.append(
            "* the file does not say how the kernel is used: the upper bound holds for any stride, dilation and "
            "groups, transposed or not, at every size, with zero padding, or circular padding by no more than the "
            "kernel's reach (not reflect, replicate or symmetric); no lower bound does"
        )
    if any(row.kind == "batch norm" and row.error is None for row in rows):
        lines.append("batch norm: in evaluation mode, for every eps, which the file does not say")
    if names := [row.name for row in rows if row.kind == "batch norm" and row.upper == math.inf]:
        lines.append(
            f"a variance of 0, or an infinite scale: no bound for every eps: {_some(names)}"
        )
    if any(row.forced for row in rows):
        lines.append(
            "? not understood, a row by --include: the norm of the array taken for such a layer"
        )
    return lines


def _some(names: Sequence[str]) -> str:
    """Return names for people: a few of many."""
    shown = ", ".join(map(printable, names[:NAMES_SHOWN]))
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _network_line(constant: Constant) -> str:
    """Return the sentence on the network as a whole."""
    if constant.upper is None:
        return f"no constant of the network: {printable(str(constant.reason))}"
    return f"Lipschitz constant of the network, composed along its graph: {decimal_text(constant.upper, up=True)}"
