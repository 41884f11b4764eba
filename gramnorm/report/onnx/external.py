"""Arrays that an ONNX file keeps in another file, without trusting either.

A model may say of an array: these bytes of that file.  The file must lie beside the model, under a
plain name, and be no link to elsewhere: a model from a stranger would otherwise have any file of
the user's read, and its numbers reported.
"""

import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np

from gramnorm.report.files.contents import ReadError, check_total, one_line
from gramnorm.report.onnx.nodes import Values, require

_WHOLE = re.compile(r"[0-9]{1,19}")  # a number of bytes, in 64 bits


class ArrayError(ReadError):
    """Why one array of a file cannot be had, while the others can."""


class Beside:
    """The files beside a model, each mapped into memory once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Values] = {}
        self.total = 0

    def stored(self, tensor: Any, needed: int, what: str) -> Values:
        """Return the bytes of an array, which must be as many as its shape needs."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        once = len(entries) == len(tensor.external_data) and "location" in entries
        require(once, f"{what} does not say once in which file it lies", ArrayError)
        location = entries["location"]
        if location not in self.files:
            self.files[location] = self._mapped(location, what)
        there = self.files[location]
        texts = {key: entries.get(key, "0") for key in ("offset", "length")}
        for key, text in texts.items():
            whole = isinstance(text, str) and _WHOLE.fullmatch(text)
            require(whole, f"{what} has the {key} {text!r}", ArrayError)
        offset = int(texts["offset"])
        length = int(texts["length"]) if "length" in entries else len(there) - offset
        inside = offset + length <= len(there)
        part = f"the {length} bytes at {offset} of {location!r}, which has {len(there)}"
        require(inside and length == needed, f"{what} of {needed} bytes lies in {part}", ArrayError)
        return there[offset : offset + length]

    def copied(self, size: int) -> None:
        """Count bytes that are copied; those that are mapped take memory while they are looked at."""
        self.total += size  # arrays may share bytes
        check_total(self.total)

    def _mapped(self, location: Any, what: str) -> Values:
        """Return the bytes of a file beside the model."""
        plain = isinstance(location, str) and not re.search(r"[/\\:\0]", location)
        plain = plain and location not in ("", ".", "..")
        only = "only a plain name of a file beside the model is followed"
        require(plain, f"{what} lies in the file {location!r}; {only}", ArrayError)
        try:
            found = (self.folder / location).resolve(strict=True)
            leaves = f"{what} lies in {location!r}, a link out of the model's folder"
            require(found.parent == self.folder.resolve(), leaves, ArrayError)
            # what is checked is what is mapped: opened once, and neither a link nor a pipe
            flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            with os.fdopen(os.open(found, flags), "rb") as stream:
                status = os.fstat(stream.fileno())
                regular = f"{what} lies in {location!r}, which is not a regular file"
                require(stat.S_ISREG(status.st_mode), regular, ArrayError)
                if not status.st_size:
                    return np.zeros(0, np.uint8)
                return np.asarray(np.memmap(stream, np.uint8, "r"))
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
            msg = f"{what} lies in {location!r} beside the model: {one_line(error)}"
            raise ArrayError(msg) from error
