"""The command line: ``gramnorm report [FILE]``.

Exit codes: 0, every layer has a bound; 1, some layer has none and the product is partial; 2, the command or the file
cannot be used, with one line on the standard error stream; 130, interrupted; 141, the reader of a pipe has gone.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.resources
import math
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gramnorm.report import bound_layer
from gramnorm.report.contents import Contents, ReadError
from gramnorm.report.network import constant_of
from gramnorm.report.readers import read_path, read_stream
from gramnorm.report.table import (
    MissingRichError,
    Report,
    printable,
    require_rich,
    write_json,
    write_table,
)

__all__ = ["main"]

_DESCRIPTION = """\
Bound the spectral norm of every layer in a weight file, from both sides, and multiply the upper bounds. Arrays with
two axes are dense layers, those with more are convolution kernels (c_out, c_in / groups, *spatial). The product
bounds the Lipschitz constant of the network if the layers form a chain and all else in it is 1-Lipschitz."""

_SHIPPED = "digits.npz, the network shipped with gramnorm"


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like those about files."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Parameters
    ----------
    argv : sequence of str or None
        The arguments; None takes those of the process.

    Returns
    -------
    int
        The exit code.
    """
    options = _parser().parse_args(argv)
    try:
        return _report(options)
    except (ReadError, MissingRichError) as error:
        return _fail(str(error))
    except MemoryError:
        return _fail("out of memory")
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The interpreter flushes once more at exit, and would complain about the same pipe.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _report(options: argparse.Namespace) -> int:
    """Read, bound, write; return the exit code."""
    if not options.json:
        require_rich()
    contents = _shipped() if options.file is None else read_path(options.file)
    choices = {key: getattr(options, key) for key in ("input_shape", "padding_mode", "rtol")}
    rows = [bound_layer(layer, **choices) for layer in contents.layers]
    as_stated = options.input_shape in (None, "file") and options.padding_mode is None
    report = Report(
        source=_SHIPPED if options.file is None else options.file,
        version=_version(),
        rows=rows,
        skipped=contents.skipped,
        options=choices,
        network=None
        if contents.network is None
        else constant_of(contents.network, rows, stated_sizes=as_stated),
    )
    if hasattr(sys.stdout, "reconfigure"):  # a name may hold what the terminal's encoding has not
        sys.stdout.reconfigure(errors="backslashreplace")
    (write_json if options.json else write_table)(report, sys.stdout)
    sys.stdout.flush()
    return 1 if report.missing else 0


def _shipped() -> Contents:
    """Read the network in the package."""
    try:
        with (importlib.resources.files("gramnorm") / "data" / "digits.npz").open("rb") as stream:
            return read_stream(stream, "digits")
    except OSError as error:
        msg = f"cannot read {_SHIPPED}: {error.strerror}"
        raise ReadError(msg) from error


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gramnorm", description="Certified bounds on spectral norms.")
    parser.add_argument("--version", action="version", version=f"gramnorm {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = commands.add_parser(
        "report", help="bound every layer of a network", description=_DESCRIPTION
    )
    report.add_argument(
        "file", nargs="?", metavar="FILE", help=f"an .npz, .npy or .onnx file (default: {_SHIPPED})"
    )
    report.add_argument(
        "--input-shape",
        type=_input_shape,
        metavar="H,W",
        help='bound convolutions at this input size, or with "file" at the size the file states for each '
        "(default: at every size)",
    )
    report.add_argument(
        "--padding-mode",
        choices=("zeros", "circular"),
        help="use this in place of what the file states",
    )
    report.add_argument(
        "--rtol", type=_rtol, help="relative gap to reach (default: that of each function)"
    )
    report.add_argument(
        "--json", action="store_true", help="write JSON with all digits; needs no rich"
    )
    report.add_argument("--version", action="version", version=f"gramnorm {_version()}")
    return parser


def _input_shape(text: str) -> tuple[int, ...] | str:
    """Parse "8,8" (or "8x8", or "8" for every axis), or "file"."""
    if text == "file":
        return text
    try:
        shape = tuple(int(number) for number in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        msg = f'expected positive whole numbers such as 8,8, or "file", got {text!r}'
        raise argparse.ArgumentTypeError(msg)
    return shape


def _rtol(text: str) -> float:
    """Parse a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        msg = f"expected a positive number such as 1e-3, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value


def _version() -> str:
    """Return the installed version, or say that there is none (a source tree on the path)."""
    try:
        return importlib.metadata.version("gramnorm")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _fail(message: str) -> int:
    """Say in one line why nothing can be reported; return the exit code."""
    sys.stderr.write(f"gramnorm: {printable(message)}\n")
    return 2
