"""A report as CSV and as Markdown: the table's texts, rounded like them to the true side."""

import csv
import re
from typing import IO

from gramnorm._rigour.decimals import decimal_text
from gramnorm.report.files.contents import printable
from gramnorm.report.table import Report, cells, closing_lines

_HEADINGS = ("layer", "kind", "shape", "lower", "upper", "gap", "seconds", "converged")


def write_csv(report: Report, stream: IO[str]) -> None:
    """
    Write one line per layer, one for their product, and one for the network if it is stated how they are joined.

    Parameters
    ----------
    report : Report
        The report.
    stream : text file
        Where to write.
    """
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*_HEADINGS, "assumed", "error"])
    for row in report.rows:
        name, kind, *rest = cells(row)
        kind = kind.rstrip("*?")
        rest = ["" if cell == "-" else cell for cell in rest]
        if row.error is not None:
            rest[-1] = ""
        writer.writerow(
            [name, kind, *rest, "yes" if row.assumed else "no", printable(row.error or "")]
        )
    against = report.against.items()
    why = "; ".join(f"{reason}{': ' * bool(names)}{', '.join(names)}" for reason, names in against)
    known = report.product_upper
    product = "" if known is None else decimal_text(known, up=True)
    kind = "product of the upper bounds"
    error = f"none, because of {why}" if known is None else ""
    writer.writerow(["", kind, "", "", product, "", "", "", "", printable(error)])
    if report.network is not None:
        upper = report.network.upper
        constant = "" if upper is None else decimal_text(upper, up=True)
        error = printable(str(report.network.reason or ""))
        writer.writerow(["", "constant of the network", "", "", constant, "", "", "", "", error])


def write_markdown(report: Report, stream: IO[str]) -> None:
    """
    Write a table, and below it what stands below the one for terminals.

    Parameters
    ----------
    report : Report
        The report.
    stream : text file
        Where to write.
    """
    ruler = ["---"] * 3 + ["---:"] * 4 + ["---"]
    lines = [_HEADINGS, ruler, *([_escaped(cell) for cell in cells(row)] for row in report.rows)]
    stream.write(f"**{_escaped(printable(report.source))}**\n\n")
    stream.writelines(f"| {' | '.join(line)} |\n" for line in lines)
    stream.writelines(f"\n{_escaped(line)}\n" for line in closing_lines(report))


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is: a name may look like markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$!&])", r"\\\1", text)
