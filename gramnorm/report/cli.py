"""The command line: ``gramnorm report [FILE ...]`` and ``gramnorm verify RECORD [FILE]``.

Exit codes: 0, every layer has a bound; 1, some layer has none; 2, the command or the file cannot be
used, with one line on the standard error stream; 130, interrupted, with what was finished on the
standard output; 141, the reader of a pipe has gone. Those of ``verify`` are the checker's.
"""

import argparse
import contextlib
import functools
import importlib.resources
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import libraries
from gramnorm.report import Row, chains, failed_row
from gramnorm.report.chains import is_interrupted
from gramnorm.report.cluster import connected, outcomes
from gramnorm.report.files.contents import Contents, ReadError, one_line, printable, selected
from gramnorm.report.files.readers import read_stream
from gramnorm.report.files.several import read_paths
from gramnorm.report.files.sidecar import described, read_sidecar
from gramnorm.report.limits import CHAIN_SECONDS
from gramnorm.report.network import Constant, constant_of
from gramnorm.report.options import SHIPPED, parser, version
from gramnorm.report.plot import draw_bars, draw_symbol, require_plots, require_symbol
from gramnorm.report.progress import progress, searching
from gramnorm.report.recording import require_one_file, write_record
from gramnorm.report.resume import Finished
from gramnorm.report.table import (
    MissingPackageError,
    Report,
    require_rich,
    write_csv,
    write_json,
    write_markdown,
    write_table,
)
from gramnorm.report.work import How, Outcome, bound_here

_INTERRUPTED = 130  # what a shell makes of a program that SIGINT ended
_WRITERS = {"json": write_json, "csv": write_csv, "markdown": write_markdown, None: write_table}


def program() -> NoReturn:
    """Run the command line of this process, and end it."""
    code = main()
    if code == _INTERRUPTED:
        os._exit(code)  # the interpreter would wait for the threads at work on layers
    sys.exit(code)


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
    try:
        options = parser().parse_args(argv)
        return _verify(options) if options.command == "verify" else _report(options)
    except (ReadError, MissingPackageError) as error:
        return _fail(str(error))
    except MemoryError:
        return _fail("out of memory")
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes once more at exit, and would complain about the same pipe.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _verify(options: argparse.Namespace) -> int:
    """Hand the files to the checker, which uses nothing from here; return the exit code."""
    from gramnorm import verifier  # noqa: PLC0415

    return verifier.main(filter(None, (options.record, options.weights)))


def _report(options: argparse.Namespace) -> int:
    """Read, bound, write; return the exit code."""
    if options.form is None:
        require_rich()
    require_plots(options.plot, options.plot_symbol)
    require_one_file(options)
    _check_place(options.backend, options.device)
    contents = _contents(options)
    if options.plot_symbol is not None:
        require_symbol(contents.layers)
    names = ("input_shape", "padding_mode", "rtol", "backend", "device")
    choices = {name: getattr(options, name) for name in names}
    finished = Finished(options.resume)
    rows, unfinished = _rows(contents, How(**choices, sized=contents.sized), finished, options)
    as_stated = contents.sized or options.input_shape in (None, "file")
    as_stated = as_stated and options.padding_mode is None
    report = Report(
        source=", ".join(options.files) or SHIPPED,
        version=version(),
        rows=rows,
        skipped=contents.skipped,
        options=choices | {"network_method": options.network_method},
        notes=[*contents.notes, *finished.notes(len(contents.layers))],
        network=None
        if contents.network is None
        else _network(contents, rows, method=options.network_method, stated_sizes=as_stated),
        obstacles=contents.obstacles,
        unfinished=unfinished,
    )
    if hasattr(sys.stdout, "reconfigure"):  # a name may hold what the terminal's encoding has not
        sys.stdout.reconfigure(errors="backslashreplace")
    _WRITERS[options.form](report, sys.stdout)
    sys.stdout.flush()
    if unfinished or is_interrupted(report.network):
        return _INTERRUPTED
    if options.record is not None:
        write_record(contents, options)
    if options.plot is not None:
        draw_bars(report, options.plot)
    if options.plot_symbol is not None:
        everywhere = options.input_shape is None or report.rows[0].assumed
        size = "at every size" if everywhere else "at the size asked for"
        draw_symbol(contents.layers[0], report.rows[0], size, options.plot_symbol)
    return 1 if report.missing else 0


def _contents(options: argparse.Namespace) -> Contents:
    """Read the file and what describes it, and choose the layers asked for."""
    description = None if options.layers is None else read_sidecar(options.layers)
    stated = () if description is None else description.geometry.keys()
    about_files = {"layout": options.layout, "entry": options.entry}
    for name, value in about_files.items():
        if not options.files and value is not None:
            msg = f"--{name} is about a FILE, and there is none"
            raise ReadError(msg)
    spatial = options.input_shape if isinstance(options.input_shape, tuple) else None
    contents = (
        read_paths(options.files, stated=stated, spatial=spatial, **about_files)
        if options.files
        else _shipped()
    )
    if description is not None:
        contents = described(contents, description, printable(options.layers))
    return selected(contents, options.include, options.exclude)


def _rows(
    contents: Contents, how: How, finished: Finished, options: argparse.Namespace
) -> tuple[list[Row], list[str]]:
    """Bound the layers, here or by the workers of a cluster.

    Returned are the rows in order, those of layers that could not be read last, and the names of
    the layers that an interruption left without one.
    """
    layers = contents.layers
    found: dict[int, Row] = {}
    with progress(layers, sys.stderr) as shown:

        def keep(which: int, one: Outcome) -> None:
            finished.add(one)
            found[which] = one.row
            shown.end(layers[which], again=one.again)

        try:
            if options.scheduler is None and options.workers is None:
                bound_here(layers, how, known=finished.known, begin=shown.begin, keep=keep)
            else:
                with connected(options.scheduler, options.workers) as client:
                    for which, one in outcomes(client, layers, how, finished.known):
                        keep(which, one)
        except KeyboardInterrupt:
            if not found:
                raise
        finally:
            finished.write()
    done = found.copy()  # threads at work when we were interrupted may yet finish
    rows = [done[which] for which in sorted(done)]
    rows += [failed_row(name, reason) for name, reason in contents.failed.items()]
    return rows, [layer.name for which, layer in enumerate(layers) if which not in done]


def _network(
    contents: Contents, rows: Sequence[Row], *, method: str | None, stated_sizes: bool
) -> Constant:
    """Return the constant of a network, by its chains unless norms alone were asked for."""
    seconds = None if method == "sdp" else CHAIN_SECONDS
    with searching(contents.layers, sys.stderr) as announce:
        bound = functools.partial(chains.bounded, seconds=seconds, announce=announce)
        return constant_of(
            contents.network,
            rows,
            stated_sizes=stated_sizes,
            obstacles=contents.obstacles,
            find_chains=None if method == "product" else bound,
        )


def _check_place(backend: str, device: str | None) -> None:
    """Complain about a library or device to which one number cannot be moved."""
    try:
        libraries.placed(np.ones((1, 1), np.float32), backend=backend, device=device)
    except ImportError as error:
        msg = f"--backend {backend} needs the package {backend}: {_validate.install(libraries.BACKENDS[backend])}"
        raise MissingPackageError(msg) from error
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        msg = f"--backend {backend} cannot use the device {device or 'it takes by itself'}: {one_line(error)}"
        raise ReadError(msg) from error


def _shipped() -> Contents:
    """Read the network in the package."""
    try:
        with (importlib.resources.files("gramnorm") / "data" / "digits.npz").open("rb") as stream:
            return read_stream(stream, "digits.npz")
    except OSError as error:
        msg = f"cannot read {SHIPPED}: {error.strerror}"
        raise ReadError(msg) from error


def _fail(message: str) -> int:
    """Say in one line why nothing can be reported; return the exit code."""
    sys.stderr.write(f"gramnorm: {printable(message)}\n")
    return 2
