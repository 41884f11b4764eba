"""Records of the layers of a report, for ``gramnorm verify``.

A record is about an array as it is stored.  So layers whose weights were computed from stored parts,
or turned from another order of axes, have none: that is said in the file of records.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gramnorm import records
from gramnorm.report import _keywords
from gramnorm.report.files.contents import Contents, Layer, ReadError, one_line

_READ = (".npz", ".npy", ".safetensors")  # by the checker, where arrays have the same names


def require_one_file(options: argparse.Namespace) -> None:
    """Complain about records of several files, in which names of arrays are not unique."""
    if options.record is not None and (
        len(options.files) > 1 or any(Path(file).is_dir() for file in options.files)
    ):
        msg = (
            f"--record is about one FILE, got {', '.join(options.files)}; report on each by itself"
        )
        raise ReadError(msg)


def write_record(contents: Contents, options: argparse.Namespace) -> None:
    """
    Write the records of all layers that can have one, and why the others have none.

    Parameters
    ----------
    contents : Contents
        The layers that were reported on.
    options : argparse.Namespace
        Those of the command line.

    Raises
    ------
    ReadError
        If the file cannot be written, or no layer has a record.
    """
    made: list[records.Record] = []
    left_out = dict(contents.failed)
    known = not options.files or Path(options.files[0]).suffix in _READ
    for layer in contents.layers:
        try:
            made.append(_record(layer, options, known=known, sized=contents.sized))
        except (ReadError, OSError, TypeError, ValueError, MemoryError) as error:
            left_out[layer.name] = one_line(error)
    try:
        records.write_records(options.record, made, left_out=left_out)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "; ".join(_reasons(left_out))
        msg = f"cannot write {options.record}: {reason or error}"
        raise ReadError(msg) from error


def _reasons(left_out: dict[str, str]) -> Iterable[str]:
    return (f"{name}: {reason}" for name, reason in left_out.items())


def _record(
    layer: Layer, options: argparse.Namespace, *, known: bool, sized: bool
) -> records.Record:
    """Return the record of a layer, at the size at which it was reported on."""
    if layer.variance is not None:
        msg = "a batch norm has an upper bound for every eps, and no matrix"
        raise ValueError(msg)
    if layer.word is not None or layer.error:
        msg = "its weight is computed from what is stored"
        raise ValueError(msg)
    if layer.kind == "conv" and layer.layout != "oihw":
        msg = f"its kernel is stored in the order {layer.layout}, of which there are no records"
        raise ValueError(msg)
    name = layer.name if known else None
    weight = np.asarray(layer.weight)  # which may be in its file until now
    if layer.kind == "dense":
        return records.prove_matrix_norm(weight, rtol=options.rtol, name=name)
    shape: Any = options.input_shape
    if sized:
        stated = layer.geometry is not None and "input_shape" in layer.geometry
        shape = "file" if stated else None
    keywords = _keywords(layer, shape, options.padding_mode)
    return records.prove_conv_norm(weight, **keywords, rtol=options.rtol, name=name)
