"""Layers out of several files, or of the files in folders, for one report.

What is stored in shards (``model-00001-of-00003.safetensors``) is one network, and read as one:
parts of a weight may stand in different shards.  So is what an index names
(``model.safetensors.index.json``: which tensor lies in which file beside it).  Other files are
networks by themselves.  Nothing says that they are joined to a chain, so there is no product over
them, and the names of what they hold begin with that of the file.
"""

import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gramnorm.report.files.contents import (
    Contents,
    Layer,
    NoLayersError,
    ReadError,
    Stored,
    check_total,
    one_line,
)
from gramnorm.report.files.readers import contents_of, opened, read_path, stored_in
from gramnorm.report.files.sidecar import Description
from gramnorm.report.files.tensors import in_memory
from gramnorm.report.limits import DESCRIPTION_BYTES, MAX_FILES

_SUFFIXES = (
    *(".bin", ".ckpt", ".h5", ".hdf5", ".keras", ".msgpack"),
    *(".npy", ".npz", ".onnx", ".pt", ".pth", ".safetensors"),
)
_SHARD = re.compile(r"(?P<start>.+)-(?P<number>\d{5,9})-of-(?P<count>\d{5,9})(?P<suffix>\.\w+)")
_INDEX = ".index.json"
_PLAIN = re.compile(r"(?!\.)[^/\\:\0]+")  # the name of a file beside another one
_OTHERS = {  # what a folder may be, by a file in it, and the way out
    "saved_model.pb": "a TensorFlow SavedModel, which is a program: save the model as .keras, or export it to ONNX",
    "_METADATA": "an Orbax checkpoint: restore it, and save its parameters with flax.serialization.to_bytes",
    "_CHECKPOINT_METADATA": "an Orbax checkpoint: restore it, and save its parameters with flax.serialization.to_bytes",
}
_NO_CHAIN = "one of several files, which nothing says are one chain"


@dataclass
class _Parts:
    """The files of one network, in order."""

    members: list[Path] = field(default_factory=list)
    is_named: bool = True  # by the user, not found in a folder
    index: dict[str, str] | None = None  # by the name of a tensor, that of the file it lies in

    @property
    def absent(self) -> dict[str, str]:
        """Return by the name of a file why the network is not whole without it."""
        if self.index is not None:
            there = {path.name for path in self.members}
            names = sorted({*self.index.values()} - there)
            return dict.fromkeys(
                names, "the index says that tensors lie in it, and it is not there"
            )
        shard = _SHARD.fullmatch(self.members[0].name)
        absent = int(shard["count"]) - len(self.members) if shard else 0
        reason = f"{absent} more shards of this network are not there"
        return {self.members[0].name: reason} if absent else {}


def read_paths(
    paths: Sequence[str | os.PathLike[str]],
    *,
    stated: Collection[str] = (),
    layout: str | None = None,
    entry: str | None = None,
    spatial: tuple[int, ...] | None = None,
) -> Contents:
    """
    Read the layers of files, and of the files in folders.

    Parameters
    ----------
    paths : sequence of str or os.PathLike
        Files and folders, in any order.
    stated, layout, entry
        As in `gramnorm.report.files.readers.read_path`, for each of the files.
    spatial
        As there, for one file: several may be of several sizes.

    Returns
    -------
    Contents
        Those of the one network, or those of all, under the names of the files. A file that cannot
        be read is a layer without values.

    Raises
    ------
    ReadError
        If a folder holds no file of weights, or no file can be read.
    """
    networks = _networks(paths)
    if len(networks) == 1:
        (parts,) = networks.values()
        return _network(parts, stated=stated, layout=layout, entry=entry, spatial=spatial)
    joined = Contents()
    total = 0
    for name, parts in networks.items():
        start = f"{name}:"
        own = [key.removeprefix(start) for key in stated if key.startswith(start)]
        try:
            found = _network(parts, stated=own, layout=layout, entry=entry)
        except ReadError as error:
            passed_over = isinstance(error, NoLayersError) and not parts.is_named
            (joined.skipped if passed_over else joined.failed)[name] = one_line(error)
            continue
        total += sum(in_memory(layer.weight) for layer in (*found.layers, *found.spare))
        check_total(total)
        _join(joined, start, found)
        joined.obstacles[name] = _NO_CHAIN
    if not joined.layers and not joined.spare:
        msg = "; ".join([*joined.failed.values(), *joined.skipped.values()][:3])
        raise ReadError(msg)
    return joined


def _networks(paths: Sequence[str | os.PathLike[str]]) -> dict[str, _Parts]:
    """Return the files of each network by its name."""
    found: dict[str, _Parts] = {}
    for path in sorted(map(Path, paths)):
        if path.name.endswith(_INDEX) and not path.is_dir():
            found[path.as_posix()] = _indexed(path)
            continue
        inside = sorted(_inside(path)) if path.is_dir() else [path]
        for file in inside:
            shard = _SHARD.fullmatch(file.name)
            whole = file.with_name(f"{shard['start']}{shard['suffix']}") if shard else file
            name = whole.relative_to(path) if path.is_dir() and len(paths) == 1 else whole
            parts = found.setdefault(name.as_posix(), _Parts(is_named=not path.is_dir()))
            if file not in parts.members:
                parts.members.append(file)
        if len(found) > MAX_FILES:
            msg = f"more than {MAX_FILES} files: name those to report on"
            raise ReadError(msg)
    return found


def _indexed(path: Path) -> _Parts:
    """Return the files beside an index that it names, and what lies in which."""
    with opened(path) as stream:
        text = stream.read(DESCRIPTION_BYTES + 1)
        try:
            places = json.loads(text)["weight_map"] if len(text) <= DESCRIPTION_BYTES else {}
        except (ValueError, KeyError, TypeError, RecursionError):
            places = {}
        if not isinstance(places, dict) or not places:
            msg = 'an index of shards is JSON with "weight_map", the file in which each tensor lies'
            raise ReadError(msg)
        names = {*map(str, places.values())}
        if odd := [name for name in sorted(names) if not _PLAIN.fullmatch(name)]:
            msg = f"it names the file {odd[0]!r}; only plain names of files beside it are followed"
            raise ReadError(msg)
        members = [path.with_name(name) for name in sorted(names)]
        there = [member for member in members if member.exists()]
        if not there or len(there) > MAX_FILES:
            msg = f"{len(there)} of the {len(names)} files that it names are there"
            raise ReadError(msg)
    return _Parts(there, index={name: str(file) for name, file in places.items()})


def _inside(folder: Path) -> Iterator[Path]:
    """Return the files of weights in a folder and the folders in it, in order."""
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if what := _OTHERS.get(name):
                msg = f"cannot read {str(place)!r}: {what}"
                raise ReadError(msg)
            file = Path(place, name)
            if file.suffix.lower() in _SUFFIXES and not name.startswith(".") and file.is_file():
                count += 1
                yield file
        if count > MAX_FILES:
            msg = f"cannot read {str(folder)!r}: more than {MAX_FILES} files of weights in it"
            raise ReadError(msg)
    if not count:
        msg = f"cannot read {str(folder)!r}: no file in it has a suffix of weights ({' '.join(_SUFFIXES)})"
        raise ReadError(msg)


def _network(
    parts: _Parts,
    *,
    stated: Collection[str],
    layout: str | None,
    entry: str | None,
    spatial: tuple[int, ...] | None = None,
) -> Contents:
    """Read the one file of a network, or its shards."""
    first = parts.members[0]
    if parts.index is None and _SHARD.fullmatch(first.name) is None:
        return read_path(first, stated=stated, layout=layout, entry=entry, spatial=spatial)
    whole = Stored(layout=layout)
    layouts = set()
    for path in parts.members:
        with opened(path) as stream:
            part, _ = stored_in(stream, path, entry)
            _merge(whole, part)
            layouts.add(part.layout)
            _hold_against(parts.index, path.name, part, whole)
    whole.unusable.update(parts.absent)
    if len(layouts) == 1:
        whole = replace(whole, layout=layouts.pop())
    return contents_of(whole, Description({}), stated=stated, layout=layout)


def _hold_against(index: dict[str, str] | None, file: str, part: Stored, whole: Stored) -> None:
    """List as layers without values what an index and a file do not say alike."""
    if index is None:
        return
    held = {*part.arrays, *part.unusable, *part.others}
    stated = {name for name, place in index.items() if place == file}
    for names, reason in (
        (stated - held, f"the index says that it lies in {file}, which does not hold it"),
        (held - stated, f"it lies in {file}, of which the index does not say so"),
    ):
        for name in sorted(names):
            for entries in (whole.arrays, whole.others):
                entries.pop(name, None)
            whole.unusable[name] = reason


def _merge(whole: Stored, part: Stored) -> None:
    """Add the entries of a shard."""
    known = {*whole.arrays, *whole.unusable, *whole.others}
    if twice := known & {*part.arrays, *part.unusable}:
        msg = f"two shards hold {min(twice)!r}"
        raise ReadError(msg)
    for entries in ("arrays", "unusable", "others"):
        getattr(whole, entries).update(getattr(part, entries))
    whole.notes.extend(note for note in part.notes if note not in whole.notes)
    check_total(sum(in_memory(values) for values in whole.arrays.values()))


def _join(joined: Contents, start: str, found: Contents) -> None:
    """Add what a file holds, under its name."""

    def renamed(layers: list[Layer]) -> list[Layer]:
        return [replace(layer, name=start + layer.name) for layer in layers]

    joined.layers.extend(renamed(found.layers))
    joined.spare.extend(renamed(found.spare))
    for entries in ("skipped", "failed", "obstacles"):
        named = {start + name: reason for name, reason in getattr(found, entries).items()}
        getattr(joined, entries).update(named)
    joined.notes.extend(f"{start} {note}" for note in found.notes)
    if found.network is not None:
        joined.notes.append(
            f"{start} says how its layers are joined: a report on it alone has the constant of its network"
        )
