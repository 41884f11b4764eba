"""Layers out of a file of Keras: ``.keras``, ``.weights.h5``, or the older ``.h5``.

A ``.keras`` file is a zip of ``config.json``, which describes the model, and ``model.weights.h5``,
which numbers the arrays of each layer in the order in which its class makes them,

    layers/conv2d_1/vars/0      of the second layer of class Conv2D: its kernel,

so that names come from classes.  The older ``.h5`` names its arrays and holds the description as an
attribute; ``.weights.h5`` has none.  Kernels are (*spatial, c_in / groups, c_out), of transposed
convolutions (*spatial, c_out, c_in), of depthwise ones (*spatial, c_in, outputs per input).
Stride, padding, dilation and groups are what the description states; where it shows that the layers
are no chain of functions that are 1-Lipschitz, there is no product.
"""

import json
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from gramnorm.report.files.contents import ReadError, Stored, check_total, damage_is
from gramnorm.report.files.hdf5 import Tree, read_tree
from gramnorm.report.files.keras_config import (
    Stated,
    against,
    geometry,
    has_weights,
    snake_case,
    stated_layers,
)
from gramnorm.report.files.sidecar import Description
from gramnorm.report.limits import DESCRIPTION_BYTES

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_OF_CLASS = (  # what the arrays of a class are, in order; axes of the first
    (re.compile(r"dense"), ("kernel", "bias"), 2),
    *((re.compile(rf"conv{n}d(_transpose)?"), ("kernel", "bias"), n + 2) for n in (1, 2, 3)),
    *((re.compile(rf"depthwise_conv{n}d"), ("depthwise_kernel", "bias"), n + 2) for n in (1, 2)),
    *(
        (
            re.compile(rf"separable_conv{n}d"),
            ("depthwise_kernel", "pointwise_kernel", "bias"),
            n + 2,
        )
        for n in (1, 2)
    ),
)
_STATISTICS = ("moving_mean", "moving_variance")
_NO_WEIGHTS = (
    (re.compile(r"(optimizer|optimizer_weights|_?optimizer)/.*"), "the state of an optimizer"),
    (
        re.compile(r"(.*/)?(seed_generator|compile_metrics|metrics)(_\d+)?/.*"),
        "no weight: a random state or a metric",
    ),
)


def is_keras(archive: zipfile.ZipFile) -> bool:
    """Say whether a zip is a ``.keras`` file."""
    return {_CONFIG, "metadata.json"} <= set(archive.namelist())


def read_keras(archive: zipfile.ZipFile) -> tuple[Stored, Description]:
    """
    Read a ``.keras`` file.

    Parameters
    ----------
    archive : zipfile.ZipFile
        Open for reading.

    Returns
    -------
    Stored
        Arrays, and entries that are none.
    Description
        What the model's description states.

    Raises
    ------
    ReadError
        If the file is damaged or too large, or h5py is missing.
    """
    for name, most in ((_CONFIG, DESCRIPTION_BYTES), (_WEIGHTS, None)):
        if name not in archive.namelist():
            msg = f"there is no {name} in it: save the model in one file, without shards"
            raise ReadError(msg)
        info = archive.getinfo(name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            msg = f"{name} is compressed in a way that Keras does not write"
            raise ReadError(msg)
        check_total(info.file_size)
        if most is not None and info.file_size > most:
            msg = f"{name} has more than {most} bytes"
            raise ReadError(msg)
    config = archive.read(_CONFIG)
    with archive.open(_WEIGHTS) as member, tempfile.TemporaryFile() as stream:
        shutil.copyfileobj(member, stream)
        stream.seek(0)
        return _read(read_tree(stream), config)


def read_h5(stream: IO[bytes]) -> tuple[Stored, Description]:
    """Read an HDF5 file: of Keras, or any other with arrays whose names say what they are."""
    tree = read_tree(stream)
    return _read(tree, tree.texts.get("", {}).get("model_config"))


def _read(tree: Tree, config: str | bytes | None) -> tuple[Stored, Description]:
    """Return the arrays under names that say what they are, and what is known of them."""
    layers, obstacles = _stated(config)
    of_keras = config is not None or _is_of_keras(tree)
    entries = [
        *(_named(tree, layers) if of_keras else (_Entry(path, path) for path in tree.arrays))
    ]
    places = {id(layer): place for place, layer in enumerate(layers)}
    entries.sort(key=lambda entry: places.get(id(entry.layer), len(places)))
    there = {id(entry.layer) for entry in entries}
    for layer in layers:
        if has_weights(layer) and id(layer) not in there:
            obstacles[layer.name] = f"{layer.kind}: its arrays are not in the file"
    stored = Stored(
        layout="hwio" if of_keras else None, unusable=dict(tree.failed), others=dict(tree.others)
    )
    description = Description({}, obstacles=obstacles, by_keras=True)
    count = Counter(entry.name for entry in entries)
    for entry in entries:
        name = entry.name if count[entry.name] == 1 else entry.path
        values = tree.arrays[entry.path]
        said = None if entry.layer is None else geometry(entry.layer, entry.word, values.shape)
        if entry.reason is not None:
            stored.others[name] = entry.reason
        elif isinstance(said, str):
            stored.unusable[name] = said
        else:
            stored.arrays[name] = values
            description.geometry.update({name: said} if said else {})
    return stored, description


def _stated(config: str | bytes | None) -> tuple[list[Stated], dict[str, str]]:
    """Return the layers that a description states, and what stands in the way of a product."""
    if config is None:
        return [], {}
    with damage_is("the description of the model in it is not JSON"):
        loaded = json.loads(config)
        model = loaded if isinstance(loaded, dict) else {}
        return stated_layers(model), against(model)


def _is_of_keras(tree: Tree) -> bool:
    """Say whether a file looks like one of Keras, in either of its ways."""
    older = any("layer_names" in texts for texts in tree.texts.values())
    return older or any(re.fullmatch(r"(.*/)?vars/\d+", path) for path in tree.arrays)


@dataclass(frozen=True)
class _Entry:
    """An array: its path, the name shown, what it is to its layer, and what is said of that."""

    path: str
    name: str
    word: str = ""
    layer: Stated | None = None
    reason: str | None = None  # why it is no weight


def _named(tree: Tree, layers: list[Stated]) -> Iterator[_Entry]:
    """Return what each array is."""
    by_path = {layer.path: layer for layer in layers}
    by_name = {layer.name: layer for layer in layers}
    groups: dict[str, list[str]] = {}
    for path in tree.arrays:
        for pattern, reason in _NO_WEIGHTS:
            if pattern.fullmatch(path):
                yield _Entry(path, path, reason=reason)
                break
        else:
            group, _, number = path.rpartition("/vars/")
            if number.isdecimal():
                groups.setdefault(group, []).append(path)
            else:
                name, word = _older(path)
                layer = by_name.get(name)
                kind = snake_case(layer.kind) if layer else name.rpartition("/")[2]
                if word == "kernel" and kind.startswith("depthwise_conv"):
                    word = "depthwise_kernel"
                yield _Entry(path, f"{name}/{word}" if name else word, word, layer)
    for group, paths in groups.items():
        paths.sort(key=lambda path: int(path.rpartition("/")[2]))
        layer = by_path.get(group)
        words = _words(tree, group, paths, layer)
        name = layer.name if layer else _shown(tree, group)
        for path, word in zip(paths, words, strict=True):
            yield _Entry(path, f"{name}/{word}" if name else word, word, layer)


def _older(path: str) -> tuple[str, str]:
    """Return layer and word of a path such as model_weights/conv1/model/conv1/kernel:0."""
    parts = path.removeprefix("model_weights/").split("/")
    *inner, word = parts[1:] or parts
    if parts[0] in inner:
        inner = inner[inner.index(parts[0]) :]
    elif len(parts) > 1:
        inner = [parts[0], *inner]
    return "/".join(inner), re.sub(r":\d+$", "", word)


def _shown(tree: Tree, group: str) -> str:
    """Return the names of a layer and of those around it, where the file has them, else the path."""
    names, above = [], ""
    for part in group.split("/"):
        above = f"{above}/{part}" if above else part
        names.append(tree.texts.get(f"{above}/vars", {}).get("name"))
    return "/".join(filter(None, names)) if names[-1] else group


def _words(tree: Tree, group: str, paths: list[str], layer: Stated | None) -> list[str]:
    """Return what the numbered arrays of a layer are to it; "vars/0" where that is not known."""
    unknown = [f"vars/{path.rpartition('/')[2]}" for path in paths]
    own = tree.texts.get(f"{group}/vars", {}).get("name", "")
    guesses = [snake_case(layer.kind)] if layer else [group.rpartition("/")[2], own]
    axes = [tree.arrays[path].ndim for path in paths]
    for guess in (re.sub(r"_\d+$", "", guess) for guess in guesses):
        if guess == "batch_normalization":
            scales, shifts = (len(paths) == 4,) * 2
            if layer:
                scales, shifts = (bool(layer.config.get(key)) for key in ("scale", "center"))
            names = [*["gamma"] * scales, *["beta"] * shifts, *_STATISTICS]
            return names if axes == [1] * len(names) else unknown
        for pattern, words, dimensions in _OF_CLASS:
            if pattern.fullmatch(guess):
                kernels = [dimensions] * (len(words) - 1)
                fits = axes in (kernels, [*kernels, 1])
                return list(words[: len(axes)]) if fits else unknown
    return unknown
