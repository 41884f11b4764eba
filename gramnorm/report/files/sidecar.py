"""What convolutions do with their kernels, as JSON beside the weights.

The text is an object that maps names of arrays to keywords of `gramnorm.conv_norm_bracket`,

    {"conv1.weight": {"groups": 4, "padding": [1, 1], "input_shape": [8, 8]}},

or, for tables of layers that say more, an object with a list "layers" of objects:

    {"layers": [{"key": "conv1.weight", "kind": "conv", "shape": [8, 2, 3, 3], "stride": [2, 2],
    ...}]}.

There the array is named by "key"; "kind" is "conv", "conv_transpose" or "linear"; "padding" may be
"SAME_TF"; a "shape" must be that of the array; and a fixed set of fields that describe is passed
over.  Every other name is an error in both forms, since a misspelt ``groups`` would silently bound
another operator.

In both, "__network__" may say how the layers are put together, as `gramnorm.network_bound` wants
it.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from gramnorm.network._graph import Network
from gramnorm.report.files.contents import Contents, Layer, ReadError, damage_is, one_line
from gramnorm.report.limits import DESCRIPTION_BYTES

_NETWORK = "__network__"

_KEYWORDS = (
    *("kind", "input_shape", "stride", "padding", "padding_mode", "dilation", "groups"),
    *("transposed", "output_padding"),
)
_KINDS: dict[str, dict[str, Any]] = {
    "conv": {"kind": "conv"},
    "conv_transpose": {"kind": "conv", "transposed": True},
    "linear": {"kind": "dense"},
    "dense": {"kind": "dense"},
}
_OTHER_NAMES = {"padding_mode_in_model": "padding_mode"}
_DESCRIPTIVE = (
    *("comment", "reference", "layout", "convention", "package", "license", "file", "tensor"),
    *("dtype", "stored_dtype", "nd", "c_in", "c_out", "kernel_size"),
)


@dataclasses.dataclass(frozen=True)
class Description:
    """Keywords of `conv_norm_bracket` by array ("shape" too, if stated), and how layers join."""

    geometry: dict[str, dict[str, Any]]
    network: Any = None
    obstacles: dict[str, str] = dataclasses.field(default_factory=dict)  # to a product of norms
    by_keras: bool = False  # whose transposed kernels are (*spatial, c_out, c_in)


def read_sidecar(path: str | os.PathLike[str]) -> Description:
    """
    Read a JSON file that describes layers.

    Parameters
    ----------
    path : str or os.PathLike
        The file.

    Returns
    -------
    Description
        What it says.

    Raises
    ------
    ReadError
        If the file cannot be read or used.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            msg = "not a regular file"
            raise ReadError(msg)
        with path.open("rb") as stream:
            content = stream.read(DESCRIPTION_BYTES + 1)
        if len(content) > DESCRIPTION_BYTES:
            msg = f"more than {DESCRIPTION_BYTES} bytes"
            raise ReadError(msg)
        return parse_description(content, "it")
    except (ReadError, OSError, ValueError) as error:  # ValueError: a null character in the name
        msg = f"cannot use {str(path)!r}: {one_line(error)}"
        raise ReadError(msg) from error


def parse_description(text: str | bytes, where: str) -> Description:
    """
    Parse either form of the description of layers.

    Parameters
    ----------
    text : str or bytes
        JSON.
    where : str
        What to call the text in errors.

    Returns
    -------
    Description
        What it says.

    Raises
    ------
    ReadError
        If the text is not JSON, or holds what is not understood.
    """
    with damage_is(f"{where} is not JSON"):
        layers = _tuples(json.loads(text))
    network = layers.pop(_NETWORK, None) if isinstance(layers, dict) else None
    if isinstance(layers, dict) and isinstance(layers.get("layers"), tuple):
        return Description(_from_list(layers["layers"], where), network)
    if not isinstance(layers, dict) or not all(isinstance(v, dict) for v in layers.values()):
        msg = f'{where} must be a JSON object of objects, or have a list of objects as its "layers"'
        raise ReadError(msg)
    for name, entry in layers.items():
        _refuse_unknown(name, entry, _KEYWORDS, where)
    return Description({name: _stated(entry) for name, entry in layers.items()}, network)


def _from_list(entries: tuple[Any, ...], where: str) -> dict[str, dict[str, Any]]:
    """Return the keywords of a list of layers by their "key"."""
    layers: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        name = entry.get("key") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name in layers:
            msg = f'{where}: entry {number} of "layers" must be an object with a "key" of its own'
            raise ReadError(msg)
        known = (*_KEYWORDS, *_OTHER_NAMES, "key", "shape", *_DESCRIPTIVE)
        _refuse_unknown(name, entry, known, where)
        kind = entry.get("kind")
        if kind is not None and (not isinstance(kind, str) or kind not in _KINDS):
            msg = f"{where} gives {name!r} the kind {kind!r}; known are {', '.join(_KINDS)}"
            raise ReadError(msg)
        stated = {key: value for key, value in entry.items() if key in (*_KEYWORDS, "shape")}
        stated |= {
            keyword: entry[other] for other, keyword in _OTHER_NAMES.items() if other in entry
        }
        if stated.get("padding") == "SAME_TF":
            stated["padding"] = "same"
        layers[name] = _stated(stated | (_KINDS[kind] if kind else {}))
    return layers


def _refuse_unknown(name: str, entry: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    if unknown := sorted(set(entry) - set(known)):
        msg = f"{where} gives {name!r} the unknown {unknown[0]!r}; known are {', '.join(known)}"
        raise ReadError(msg)


def _stated(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None}


def _tuples(value: Any) -> Any:
    """Return JSON with tuples for lists, as the keywords want them."""
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def described(contents: Contents, description: Description, where: str) -> Contents:
    """
    Return contents as described, instead of what the file said.

    Parameters
    ----------
    contents : Contents
        Layers as read.
    description : Description
        What is known of the layers.
    where : str
        What to call its text in errors.

    Returns
    -------
    Contents
        The same entries.

    Raises
    ------
    ReadError
        If a described layer is not there, or is not of the kind or shape described, or there is a
        graph already.
    """
    if isinstance(contents.network, Network):
        msg = f"{where} is not for a graph, which states the geometry of its layers itself"
        raise ReadError(msg)
    geometry = description.geometry
    known = {layer.name for layer in contents.layers} | set(contents.failed)
    if missing := [name for name in geometry if name not in known]:
        msg = f"{where} describes {', '.join(map(repr, missing))}, which the file does not hold as a layer"
        raise ReadError(msg)
    layers = [
        _described(layer, dict(geometry[layer.name]), where, by_keras=description.by_keras)
        if layer.name in geometry
        else layer
        for layer in contents.layers
    ]
    network = contents.network if description.network is None else description.network
    obstacles = contents.obstacles | description.obstacles
    return dataclasses.replace(contents, layers=layers, network=network, obstacles=obstacles)


def _described(layer: Layer, stated: dict[str, Any], where: str, *, by_keras: bool) -> Layer:
    """Return the layer with its geometry, once that can be about such an array."""
    if layer.layout != "oihw" and stated.get("transposed", False) and not by_keras:
        msg = (
            f"{where} calls {layer.name!r} transposed, whose channels are last: Flax and Keras store such kernels in "
            "different ways; save it as (c_in, c_out / groups, *spatial)"
        )
        raise ReadError(msg)
    shape = stated.pop("shape", layer.weight.shape)
    shape = layer.weight.shape if shape == layer.stored_shape else shape
    kind = stated.get("kind", layer.kind)
    only_kind = set(stated) <= {"kind"}
    if shape != layer.weight.shape or kind != layer.kind or (kind != "conv" and not only_kind):
        stated = {"shape": shape} | stated
        msg = f"{where} gives {layer.name!r} of shape {layer.weight.shape} what does not fit it: {stated}"
        raise ReadError(msg)
    known = {"groups": layer.groups} if layer.groups > 1 else {}
    return dataclasses.replace(layer, geometry=known | stated)
