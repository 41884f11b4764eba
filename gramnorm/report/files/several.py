"""Layers out of several files, or of the files in folders, for one report.

What is stored in shards (``model-00001-of-00003.safetensors``) is one network, and read as one:
parts of a weight may stand in different shards.  Other files are networks by themselves.  Nothing
says that they are joined to a chain, so there is no product over them, and the names of what they
hold begin with that of the file.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
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
from gramnorm.report.limits import MAX_FILES

_SUFFIXES = (
    *(".bin", ".ckpt", ".h5", ".hdf5", ".keras", ".msgpack"),
    *(".npy", ".npz", ".onnx", ".pt", ".pth", ".safetensors"),
)
_SHARD = re.compile(r"(?P<start>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
_OTHERS = {  # what a folder may be, by a file in it, and the way out
    "saved_model.pb": "a TensorFlow SavedModel, which is a program: save the model as .keras, or export it to ONNX",
    "_METADATA": "an Orbax checkpoint: restore it, and save its parameters with flax.serialization.to_bytes",
    "_CHECKPOINT_METADATA": "an Orbax checkpoint: restore it, and save its parameters with flax.serialization.to_bytes",
}
_NO_CHAIN = "one of several files, which nothing says are one chain"


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
        ((members, _),) = networks.values()
        return _network(members, stated=stated, layout=layout, entry=entry, spatial=spatial)
    joined = Contents()
    total = 0
    for name, (members, is_named) in networks.items():
        start = f"{name}:"
        own = [key.removeprefix(start) for key in stated if key.startswith(start)]
        try:
            found = _network(members, stated=own, layout=layout, entry=entry)
        except ReadError as error:
            passed_over = isinstance(error, NoLayersError) and not is_named
            (joined.skipped if passed_over else joined.failed)[name] = one_line(error)
            continue
        total += sum(layer.weight.nbytes for layer in (*found.layers, *found.spare))
        check_total(total)
        _join(joined, start, found)
        joined.obstacles[name] = _NO_CHAIN
    if not joined.layers and not joined.spare:
        msg = "; ".join([*joined.failed.values(), *joined.skipped.values()][:3])
        raise ReadError(msg)
    return joined


def _networks(
    paths: Sequence[str | os.PathLike[str]],
) -> dict[str, tuple[list[Path], bool]]:
    """Return by its name the files of each network, in order, and whether the user named it."""
    found: dict[str, tuple[list[Path], bool]] = {}
    for path in sorted(map(Path, paths)):
        inside = sorted(_inside(path)) if path.is_dir() else [path]
        for file in inside:
            shard = _SHARD.fullmatch(file.name)
            whole = file.with_name(f"{shard['start']}{shard['suffix']}") if shard else file
            name = whole.relative_to(path) if path.is_dir() and len(paths) == 1 else whole
            members, _ = found.setdefault(name.as_posix(), ([], not path.is_dir()))
            if file not in members:
                members.append(file)
        if len(found) > MAX_FILES:
            msg = f"more than {MAX_FILES} files: name those to report on"
            raise ReadError(msg)
    return found


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
    members: Sequence[Path],
    *,
    stated: Collection[str],
    layout: str | None,
    entry: str | None,
    spatial: tuple[int, ...] | None = None,
) -> Contents:
    """Read the one file of a network, or its shards."""
    shard = _SHARD.fullmatch(members[0].name)
    if shard is None:
        return read_path(members[0], stated=stated, layout=layout, entry=entry, spatial=spatial)
    whole = Stored(layout=layout)
    layouts = set()
    for path in members:
        with opened(path) as stream:
            part, _ = stored_in(stream, path, entry)
            _merge(whole, part)
            layouts.add(part.layout)
    absent = int(shard["count"]) - len(members)
    if absent:
        whole.unusable[members[0].name] = f"{absent} more shards of this network are not there"
    if len(layouts) == 1:
        whole = replace(whole, layout=layouts.pop())
    return contents_of(whole, Description({}), stated=stated, layout=layout)


def _merge(whole: Stored, part: Stored) -> None:
    """Add the entries of a shard."""
    known = {*whole.arrays, *whole.unusable, *whole.others}
    if twice := known & {*part.arrays, *part.unusable}:
        msg = f"two shards hold {min(twice)!r}"
        raise ReadError(msg)
    for entries in ("arrays", "unusable", "others"):
        getattr(whole, entries).update(getattr(part, entries))
    whole.notes.extend(note for note in part.notes if note not in whole.notes)
    check_total(sum(values.nbytes for values in whole.arrays.values()))


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
