"""The rows of layers that are finished, in a file, for a report that is interrupted and begun again.

A row is found by a digest of the numbers it is about, the options and the version
(`gramnorm.report.work`): what was changed is bounded anew, whatever it is called.  The file is
replaced as a whole, so it is never half of one, and holds a digest of itself: a damaged number would
be a wrong bound.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gramnorm.report import Row
from gramnorm.report.files.contents import Layer, ReadError, one_line
from gramnorm.report.limits import KEPT_EVERY, RESUME_BYTES
from gramnorm.report.work import Known, Outcome

_FORMAT = "rows of gramnorm report, 1"


class Finished:
    """
    The rows of a file, and those that are added.

    Parameters
    ----------
    path : str, os.PathLike or None
        The file, which need not be there yet; None to remember nothing.

    Raises
    ------
    ReadError
        If the file is another one or damaged, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self.again = 0  # layers that were found among the rows
        self._by_name: dict[str, dict[str, Row]] = {}
        self._lock = threading.Lock()
        self._written = -float("inf")
        if self.path is not None:
            for digest, row in _read(self.path):
                self._put(digest, row)
            self.write()

    def known(self, layer: Layer) -> Known | None:
        """Return the rows of layers of this name, None if nothing is remembered."""
        return None if self.path is None else dict(self._by_name.get(layer.name, {}))

    def add(self, outcome: Outcome) -> None:
        """Remember a row, if it has bounds; the file follows within a moment."""
        if self.path is None or outcome.digest is None:
            return
        with self._lock:
            self.again += outcome.again
            if outcome.row.error is None:
                self._put(outcome.digest, outcome.row)
            due = time.monotonic() - self._written > KEPT_EVERY
        if due:
            self.write()

    def write(self) -> None:
        """Replace the file by one with all rows."""
        if self.path is None:
            return
        with self._lock:
            named = self._by_name.values()
            rows = [[digest, _plain(row)] for rows in named for digest, row in rows.items()]
            text = json.dumps({"format": _FORMAT, "check": _check(rows), "rows": rows})
            try:
                _replace(self.path, text)
            except OSError as error:
                msg = f"cannot write {str(self.path)!r}: {one_line(error)}"
                raise ReadError(msg) from error
            self._written = time.monotonic()

    def notes(self, count: int) -> list[str]:
        """Return what to say of `count` layers: how many were not bounded anew."""
        return [f"{self.again} of {count} layers are from {str(self.path)!r}"] * (self.again > 0)

    def _put(self, digest: str, row: Row) -> None:
        self._by_name.setdefault(row.name, {})[digest] = row


def _read(path: Path) -> list[tuple[str, Row]]:
    """Return the rows in a file with their digests; none if there is no file."""
    try:
        if path.exists() and not path.is_file():
            msg = f"cannot resume from {str(path)!r}: not a regular file"
            raise ReadError(msg)
        with path.open("rb") as stream:
            text = stream.read(RESUME_BYTES + 1)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        msg = f"cannot resume from {str(path)!r}: {one_line(error)}"
        raise ReadError(msg) from error
    try:
        content = json.loads(text)
        if content["format"] == _FORMAT and content["check"] == _check(content["rows"]):
            return [(digest, _row(entry)) for digest, entry in content["rows"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    msg = (
        f"cannot resume from {str(path)!r}: it is damaged, or not a file that --resume wrote; "
        "name another one, or delete it if it is no more than that"
    )
    raise ReadError(msg)


def _check(rows: Any) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _plain(row: Row) -> dict[str, Any]:
    """Return a row as JSON has it: with all digits, and those that are no numbers as text."""
    entry = asdict(row) | {"shape": list(row.shape)}
    return entry | {key: repr(entry[key]) for key in ("seconds", "lower", "upper")}


def _row(entry: dict[str, Any]) -> Row:
    numbers = {key: float(entry[key]) for key in ("seconds", "upper")}
    lower = None if entry["lower"] == "None" else float(entry["lower"])
    return Row(**entry | numbers | {"lower": lower, "shape": tuple(entry["shape"])})


def _replace(path: Path, text: str) -> None:
    """Write a file beside the one in question, and put it in its place once it is whole."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
