"""What the command line may say, and in which words it is refused."""

import argparse
import importlib.metadata
import math
from typing import NoReturn

from gramnorm._arrays import libraries
from gramnorm.report.files.layouts import LAYOUTS

SHIPPED = "digits.npz, the network shipped with gramnorm"

_DESCRIPTION = """\
Bound the spectral norm of every layer in a weight file, from both sides, and multiply the upper bounds. Arrays with
two axes are dense layers, those with more are convolution kernels, if their names say that they are weights; the rest
is listed. The product bounds the Lipschitz constant of the network if the layers form a chain and all else in it is
1-Lipschitz; if something is not understood, or shows that they are none, there is no product."""

_VERIFY = """\
Prove the bounds of a record in exact and ball arithmetic, by a checker that shares no code with the package (extra
verify). Exit code 0 if all are verified, 1 if one is rejected, 2 if one cannot be checked."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like those about files."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2; the options are those of the one command, whoever found the error."""
        self.exit(2, f"gramnorm: {message} (see gramnorm report --help)\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = _Parser(prog="gramnorm", description="Certified bounds on spectral norms.")
    top.add_argument("--version", action="version", version=f"gramnorm {version()}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    report = commands.add_parser(
        "report", help="bound every layer of a network", description=_DESCRIPTION
    )
    report.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="files of weights (.npz, .npy, safetensors, PyTorch, ONNX, Keras, HDF5, Flax's msgpack), or folders of "
        f"such (default: {SHIPPED})",
    )
    _which(report)
    _how(report)
    _output(report)
    report.add_argument("--version", action="version", version=f"gramnorm {version()}")
    verify = commands.add_parser(
        "verify", help="prove the bounds of a record again", description=_VERIFY
    )
    verify.add_argument("record", metavar="RECORD", help="what report --record wrote, or Python")
    verify.add_argument(
        "weights",
        nargs="?",
        metavar="FILE",
        help="the weights (.npz, .npy or safetensors), where the record does not hold them, and to compare",
    )
    return top


def _which(report: argparse.ArgumentParser) -> None:
    report.add_argument(
        "--layers", metavar="FILE.json", help="what the convolutions do with their kernels"
    )
    report.add_argument(
        "--entry",
        metavar="NAME",
        help='which of several dicts in a checkpoint to read, such as "model" or "a.b"; "." for all together',
    )
    report.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="how kernels are stored: oihw, (c_out, c_in / groups, *spatial); hwio, as Flax and Keras do, "
        "(*spatial, c_in / groups, c_out); ohwi, (c_out, *spatial, c_in / groups) (default: by names and shapes)",
    )
    report.add_argument(
        "--include",
        action="append",
        metavar="PATTERN",
        help='only layers whose name matches, such as "conv*", and a row for each such array that is not understood; '
        "may be repeated",
    )
    report.add_argument(
        "--exclude", action="append", metavar="PATTERN", help="not these; may be repeated"
    )


def _how(report: argparse.ArgumentParser) -> None:
    report.add_argument(
        "--input-shape",
        type=_input_shape,
        metavar="H,W",
        help='bound convolutions at this input size, or with "file" at the size the file states for each '
        "(default: at every size); of a graph that leaves its sizes open, this is the size of its inputs",
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
        "--network",
        dest="network_method",
        choices=("product", "sdp"),
        help="the constant of an ONNX network: from the product of norms alone, or with the bound of each chain of "
        "layers as a whole, however long it takes (default: the latter by a quick search)",
    )
    report.add_argument(
        "--backend",
        choices=libraries.BACKENDS,
        default="numpy",
        help="the library to compute with (default: numpy)",
    )
    _where(report)
    report.add_argument("--device", help='a device of that library, such as "cuda:0"')


def _where(report: argparse.ArgumentParser) -> None:
    places = report.add_mutually_exclusive_group()
    places.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="have the layers bounded by the workers of this Dask scheduler, such as tcp://host:8786",
    )
    places.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="have them bounded by so many processes of this machine, one thread each",
    )
    report.add_argument(
        "--resume",
        metavar="FILE.json",
        help="keep the rows of finished layers in this file, and take from it those that it has: for reports that are "
        "interrupted",
    )


def _output(report: argparse.ArgumentParser) -> None:
    forms = report.add_mutually_exclusive_group()
    for form, does in (
        ("json", "write JSON with all digits; needs no rich, nor do the next two"),
        ("csv", "write comma-separated lines"),
        ("markdown", "write Markdown"),
    ):
        forms.add_argument(f"--{form}", dest="form", action="store_const", const=form, help=does)
    report.add_argument(
        "--record",
        metavar="FILE.json",
        help="write what gramnorm verify needs to prove the bounds again, by other means",
    )
    report.add_argument(
        "--plot", metavar="FILE.png", help="draw the bounds of all layers and their product"
    )
    report.add_argument(
        "--plot-symbol",
        metavar="FILE.png",
        help="draw the norm of the one layer that --include leaves over its frequencies",
    )


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


def _count(text: str) -> int:
    """Parse a positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        msg = f"expected a positive whole number, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


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


def version() -> str:
    """Return the installed version, or say that there is none (a source tree on the path)."""
    try:
        return importlib.metadata.version("gramnorm")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
