"""What the message in an ONNX file holds, without trusting it: texts, arrays, attributes, nodes.

The message is parsed by the package onnx, and nothing of it is run.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from gramnorm import _validate
from gramnorm.report.files import contents as limits
from gramnorm.report.files.contents import ReadError, damage_is, widened
from gramnorm.report.onnx.external import ArrayError, Beside
from gramnorm.report.onnx.nodes import NotUnderstoodError, Values, require

STANDARD = ("", "ai.onnx")
FIRST_VERSION = 6
FLOATS = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")

_MOST_BYTES = 2**31  # what a protocol buffer may hold
_MOST_PARTS = 10**5  # nodes, arrays, inputs and outputs: a byte or two each in a hostile file
_INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
_NOT_WEIGHTS = ("BOOL", "INT32", "INT64", "STRING")  # masks, indices, texts
_NEWEST_READ = 28  # version of the operators from which the rules were written
_DEPRECATED_READ = ("GroupNormalization",)  # in version 18, whose scales are of groups
_KINDS = ("INT", "FLOAT", "STRING", "INTS", "FLOATS", "TENSOR", "SPARSE_TENSOR")  # of attributes


def package() -> Any:
    """Return the package onnx, with the converters of its arrays."""
    try:
        import onnx  # noqa: PLC0415
        import onnx.numpy_helper  # noqa: PLC0415
    except ImportError as error:
        msg = f"reading .onnx needs the package onnx: {_validate.install('onnx')}"
        raise ReadError(msg) from error
    return onnx


def parsed(stream: Any) -> Any:
    """Return the message in an open file, if it is of a size that can be handled."""
    onnx = package()
    most = min(limits.MAX_BYTES, _MOST_BYTES)
    size = stream.seek(0, os.SEEK_END)
    require(size <= most, f"it has more than the limit of {most} bytes", ReadError)
    stream.seek(0)
    raw = stream.read(size)  # to ask for the limit would take that much memory first
    with _damage_is("a damaged .onnx file"):
        model = onnx.load_model_from_string(raw)
    check_parts(model.graph)
    return model


def check_parts(graph: Any, others: int = 0) -> int:
    """Return how many parts a graph has, with those of `others`, if they can be handled."""
    kinds = (graph.node, graph.initializer, graph.sparse_initializer, graph.input, graph.output)
    parts = others + sum(map(len, kinds))
    limit = f"its graph has {parts} parts, more than the limit of {_MOST_PARTS}"
    require(parts <= _MOST_PARTS, limit, ReadError)
    return parts


@contextlib.contextmanager
def _damage_is(what: str, kind: type[ReadError] = ReadError) -> Iterator[None]:
    """Turn what damaged messages raise into a ReadError."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415

    try:
        with damage_is(what):
            yield
    except DecodeError as error:
        msg = f"{what} (not a protocol buffer of this kind)"
        raise kind(msg) from error
    except ReadError as error:
        raise kind(str(error)) from error


def check_texts(*names: Any) -> None:
    """Refuse names that are bytes: what the parser returns in place of text that is no UTF-8."""
    are_texts = all(isinstance(name, str) for name in names)
    require(are_texts, f"a name in it is no text: {names!r}", ReadError)


def type_name(number: Any) -> str:
    """Return the name of a type of entries, empty for an unknown one."""
    kinds = package().TensorProto.DataType
    return str(kinds.Name(number)) if number in kinds.values() else ""


def is_matrix(tensor: Any) -> bool:
    """Say whether an array in the message may be a layer's weight."""
    return len(tensor.dims) > 1 and type_name(tensor.data_type) not in _NOT_WEIGHTS


def is_short(tensor: Any) -> bool:
    """Say whether an array is of bfloat16, which is read into a wider type."""
    return type_name(tensor.data_type) == "BFLOAT16"


def array(tensor: Any, name: str, beside: Beside | None = None) -> Values | None:
    """Return the array in a message, None if its type is not one that is used here.

    An array in another file is looked for `beside` the model.
    """
    onnx = package()
    kind = type_name(tensor.data_type)
    if kind not in (*FLOATS, *_INTEGERS, "BOOL"):
        return None
    shape = tuple(tensor.dims)
    possible = min(shape, default=0) >= 0 and math.prod(shape) <= limits.MAX_BYTES
    require(possible, f"the array {name!r} states the shape {shape}", ArrayError)
    if tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data):
        return _outside(tensor, name, kind, beside)
    with _damage_is(f"the array {name!r} does not fit its shape {shape}", ArrayError):
        read = _bfloat16 if kind == "BFLOAT16" else onnx.numpy_helper.to_array
        return np.asarray(read(tensor))


def _outside(tensor: Any, name: str, kind: str, beside: Beside | None) -> Values:
    """Return an array that lies in another file."""
    if beside is None:
        msg = f"the array {name!r} lies in another file, which is not looked for here"
        raise ArrayError(msg)
    short = kind == "BFLOAT16"
    bits = "u2" if short else package().helper.tensor_dtype_to_np_dtype(tensor.data_type)
    dtype = np.dtype(bits).newbyteorder("<")
    needed = math.prod(tensor.dims) * dtype.itemsize
    values = beside.stored(tensor, needed, f"the array {name!r}").view(dtype)
    if short or not values.flags.aligned:
        beside.copied(needed * (1 + short))
    values = widened(values) if short else np.require(values, requirements="A")
    return values.reshape(tensor.dims)


def _bfloat16(tensor: Any) -> Values:
    """Return entries of the type bfloat16 (before 1.19 onnx returns their bits as integers)."""
    raw = tensor.HasField("raw_data")
    bits = np.frombuffer(tensor.raw_data, "<u2") if raw else np.asarray(tensor.int32_data, "i8")
    return widened(bits).reshape(tensor.dims)


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of a node; a graph or a reference is not understood."""
    onnx, found = package(), {}
    for a in node.attribute:
        kind = onnx.AttributeProto.AttributeType.Name(a.type)
        known = kind in _KINDS and not a.ref_attr_name
        require(known, f"its attribute {a.name!r} is of the kind {kind}")
        found[a.name] = onnx.helper.get_attribute_value(a)
    require(len(found) == len(node.attribute), "it has an attribute twice")
    return found


def newest_version() -> int:
    """Return the newest version of the operators that the package knows."""
    return int(package().defs.onnx_opset_version())


def check_form(node: Any, version: int) -> None:
    """Check a node against its operator's signature in a version: signatures change."""
    onnx = package()
    try:
        form = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        msg = f"there is no rule for it, nor such an operator in version {version}"
        raise NotUnderstoodError(msg) from None
    # of version 6 there are rules for what did not change: sums had other rules of broadcasting
    following = onnx.defs.get_schema(node.op_type, version + (version == FIRST_VERSION), "")
    same = following.since_version == form.since_version
    require(same, f"it changed after version {version}, for which there are no rules")
    # a later version may have an attribute that no rule reads
    changed = f"it changed in version {form.since_version}, after the rules were written"
    require(form.since_version <= _NEWEST_READ, changed)
    dropped = form.deprecated and node.op_type not in _DEPRECATED_READ
    fits = not dropped and form.min_input <= len(node.input) <= form.max_input
    require(fits, f"in version {version} it is deprecated or has another number of inputs")
    for a in node.attribute:
        known = form.attributes.get(a.name)
        kind = onnx.AttributeProto.AttributeType.Name(a.type)
        fits = known is not None and known.type.name == kind
        unlike = f"its attribute {a.name!r} is unknown or of another type in version {version}"
        require(fits, unlike)
    given = {a.name for a in node.attribute}
    for name, entry in form.attributes.items():
        require(name in given or not entry.required, f"its attribute {name!r} is missing")
