"""Layers and a network out of an ONNX file, without trusting the file.

An ONNX file is a protocol-buffer message: arrays, and nodes in an order in which each reads only what exists before
it.  The message is parsed by the package onnx and nothing of it is run.  Arrays must lie in the file itself, and each
must hold exactly the bytes that its shape needs.  Sizes follow from the shapes of the graph's inputs, carried on from
node to node; shapes that the file states for tensors on the way are not trusted, since a constant depends on them.

What does not depend on the inputs, such as a weight that is transposed or a shape that is put together, is computed
where that only moves entries.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from gramnorm.report.files import contents as limits
from gramnorm.report.files.contents import Contents, Layer, ReadError, damage_is, widened
from gramnorm.report.network import Network, Step
from gramnorm.report.onnx.moves import permutation, reshaped
from gramnorm.report.onnx.nodes import (
    Effect,
    Fixed,
    Node,
    NotUnderstoodError,
    Varying,
    are_numbers,
    entries,
)
from gramnorm.report.onnx.rules import RULES, apply_rule, without_rule

__all__ = ["read_onnx"]

_MOST_BYTES = 2**31  # what a protocol buffer may hold
_MOST_PARTS = 10**5  # nodes, arrays, inputs and outputs: a byte or two each in a hostile file
_MOST_AXES = 64  # of a shape that is known: work may grow with their square
_MOST_USES = 50  # of one weight, each with another geometry or arrangement
_FIRST_VERSION = 7  # of the operators: before it, constants were broadcast by other rules
_FEW = 64  # entries of a shape that is put together in the graph
_STANDARD = ("", "ai.onnx")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LAYER_WORDS = ("Attention", "Conv", "Gemm", "GRU", "LSTM", "MatMul", "RNN")  # in other operators
_NOT_WEIGHTS = ("BOOL", "INT32", "INT64", "STRING")  # masks, indices, texts
_MOST_NAMES = 5  # in a note
_FLOATS = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")
_TYPES = (
    *(*_FLOATS, "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
)
# Deterministic operators on constants, whose result is a constant again, known or not.
_ON_CONSTANTS = (
    *(RULES.keys() - {"Dropout"}),
    *("Cast", "ConstantOfShape", "Equal", "Expand", "Floor", "Range", "Shape", "Sqrt", "Where"),
)


def read_onnx(stream: IO[bytes]) -> Contents:
    """
    Read the layers and the graph of an open ``.onnx`` file.

    Parameters
    ----------
    stream : binary file
        Open for reading, at its start.

    Returns
    -------
    Contents
        A layer for each node Conv, ConvTranspose, Gemm or MatMul with a stored weight, with the geometry in the graph;
        the other arrays as skipped entries; and the graph as a `Network`.

    Raises
    ------
    ReadError
        If the package onnx is missing, or the file is damaged, too large, keeps arrays outside, or is not in order.
    """
    onnx = _onnx()
    most = min(limits.MAX_BYTES, _MOST_BYTES)
    raw = stream.read(most + 1)
    if len(raw) > most:
        msg = f"it has more than the limit of {most} bytes"
        raise ReadError(msg)
    with _damage_is("a damaged .onnx file"):
        model = onnx.load_model_from_string(raw)
    del raw
    graph = model.graph
    parts = sum(map(len, (graph.node, graph.initializer, graph.input, graph.output)))
    if parts > _MOST_PARTS:
        msg = f"its graph has {parts} parts, more than the limit of {_MOST_PARTS}"
        raise ReadError(msg)
    contents = _Walk(onnx, model).contents()
    if not contents.layers and contents.failed:
        failed = list(contents.failed.items())[:_MOST_NAMES]
        raise ReadError("; ".join(f"{name!r}: {reason}" for name, reason in failed))
    if not contents.layers:
        msg = f"there is no node {', '.join(_LAYERS)} with a stored weight in it"
        raise ReadError(msg)
    return contents


def _onnx() -> Any:
    """Return the package onnx, with the converters of its arrays."""
    try:
        import onnx  # noqa: PLC0415
        import onnx.numpy_helper  # noqa: PLC0415
    except ImportError as error:
        msg = 'reading .onnx needs the package onnx: pip install "gramnorm[onnx]"'
        raise ReadError(msg) from error
    return onnx


@contextlib.contextmanager
def _damage_is(what: str) -> Iterator[None]:
    """Turn what damaged messages raise into a ReadError."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415

    try:
        with damage_is(what):
            yield
    except DecodeError as error:
        msg = f"{what} (not a protocol buffer of this kind)"
        raise ReadError(msg) from error


def _check_texts(*names: Any) -> None:
    """Refuse names that are bytes: what the parser returns in place of text that is no UTF-8."""
    if not all(isinstance(name, str) for name in names):
        msg = f"a name in it is no text: {names!r}"
        raise ReadError(msg)


_Values = np.ndarray[Any, np.dtype[Any]]


def _bfloat16(tensor: Any) -> _Values:
    """Return entries of the type bfloat16 (before 1.19 onnx returns their bits as integers)."""
    raw = tensor.HasField("raw_data")
    bits = np.frombuffer(tensor.raw_data, "<u2") if raw else np.asarray(tensor.int32_data, "i8")
    return widened(bits).reshape(tensor.dims)


def _listed(names: Sequence[str]) -> str:
    """Return a list of names for people, the first few of it."""
    rest = len(names) - _MOST_NAMES
    return ", ".join(map(repr, names[:_MOST_NAMES])) + f" and {rest} more" * (rest > 0)


class _Walk:
    """One pass over the nodes: what each tensor is, the steps of the network, the layers by name."""

    def __init__(self, onnx: Any, model: Any) -> None:
        self.onnx = onnx
        self.graph = model.graph
        self.tensors: dict[str, Fixed | Varying] = {}
        self.steps: list[Step] = []
        self.layers: dict[str, Layer] = {}
        self.readers: dict[str, list[str]] = {}  # of a stored array: the operators
        self.matrices: set[str] = set()  # stored arrays that may be weights, by their axes and type
        self.refused: dict[str, str] = {}  # weights that became no layer
        self.uses: dict[str, list[float]] = {}  # of a layer: by what each use multiplies it
        self.copied = 0  # bytes of constants that the graph makes of others
        self.functions = {(f.domain, f.name): f for f in model.functions}
        self.functions_weigh = list(self._inner_weights(model.functions)) != []
        self.versions = {o.version for o in model.opset_import if o.domain in _STANDARD}

    def contents(self) -> Contents:
        """Walk, and return what was found."""
        self._arrays()
        inputs = [value for value in self.graph.input if value.name not in self.tensors]
        for value in inputs:
            self._define(self._input(value))
        for number, node in enumerate(self.graph.node):
            label = f"node {node.name or f'number {number}'!r} ({node.op_type})"
            self._node(node, label)
        outputs = [self._tensor(value.name, "the graph's output") for value in self.graph.output]
        varying = [t for t in outputs if isinstance(t, Varying)]
        stopped = self._version_reason() or next((t.stopped for t in varying if t.stopped), None)
        network = Network(
            tuple(value.name for value in inputs),
            tuple(self.steps),
            tuple(t.name for t in varying),
            stopped if self.graph.output else "the graph has no output",
        )
        refused = {
            f"{name} (another use)" if name in self.layers else name: why
            for name, why in self.refused.items()
        }
        layers = list(self.layers.values())
        return Contents(layers, self._skipped(), refused, self._notes(), network=network)

    def _notes(self) -> list[str]:
        """Return what a reader of the numbers should know: open inputs, and what the rows leave out."""
        notes = []
        if given := [v.name for v in self.graph.input if v.name in self.readers]:
            notes.append(
                f"{len(given)} stored arrays are inputs of the graph as well, which a caller may replace; all numbers "
                f"here are for the stored ones: {_listed(given)}"
            )
        several = [name for name, factors in self.uses.items() if len(factors) > 1]
        if several:
            notes.append(f"used more than once, with one row for all uses: {_listed(several)}")
        scaled = [name for name, factors in self.uses.items() if set(factors) != {1.0}]
        if scaled:
            notes.append(
                f"multiplied by a number (alpha), which the row leaves out: {_listed(scaled)}"
            )
        return notes

    def _arrays(self) -> None:
        """Take the stored arrays as constants."""
        if len(self.graph.sparse_initializer):
            msg = "it holds sparse arrays, which are not read"
            raise ReadError(msg)
        for tensor in self.graph.initializer:
            _check_texts(tensor.name)
            self._define(Fixed(tensor.name, self._value(tensor, tensor.name), tensor.name))
            if self._is_matrix(tensor):
                self.matrices.add(tensor.name)
            self.readers[tensor.name] = []

    def _input(self, value: Any) -> Varying:
        """Return an input of the graph with the shape that it states."""
        _check_texts(value.name, *(d.dim_param for d in value.type.tensor_type.shape.dim))
        kind = self._type_name(value.type.tensor_type.elem_type)
        if kind not in _FLOATS:  # integers would wrap round and divide with a remainder
            return Varying(
                value.name, None, f"the input {value.name!r} is no tensor of floating type"
            )
        stated = value.type.tensor_type
        if not stated.HasField("shape") or len(stated.shape.dim) > _MOST_AXES:
            return Varying(value.name)
        dims = []
        for dim in value.type.tensor_type.shape.dim:
            number = dim.dim_value if dim.HasField("dim_value") else -1
            dims.append(number if number > 0 else (dim.dim_param or None))  # 0: not known
        return Varying(value.name, tuple(dims))

    def _node(self, proto: Any, label: str) -> None:
        """Define the outputs of a node."""
        _check_texts(proto.op_type, proto.domain, *proto.input, *proto.output)
        inputs = tuple(self._tensor(name, label) if name else None for name in proto.input)
        for name in {name for name in proto.input if name in self.readers}:
            self.readers[name].append(proto.op_type)
        outputs = list(proto.output)
        known = proto.domain in _STANDARD and self._function(proto) is None
        try:
            if not outputs:
                msg = "it has no output"
                raise NotUnderstoodError(msg)
            attributes = {a.name: self._attribute(a) for a in proto.attribute}
            if len(attributes) < len(proto.attribute):
                msg = "it has an attribute twice"
                raise NotUnderstoodError(msg)
            if not known:
                msg = f"it is not of the standard's operators (domain {proto.domain!r})"
                raise NotUnderstoodError(msg)
            self._check_form(proto)
            node = Node(proto.op_type, attributes, inputs, len(outputs))
            results: Sequence[Fixed | Varying] = self._results(node, outputs, label)
        except NotUnderstoodError as error:
            reason = f"{label} is not understood: {error}"
            for name in sorted(self._weights(proto, inputs, label)):
                self.refused.setdefault(name, reason)
            results = [Varying(name, None, self._first_stop(inputs) or reason) for name in outputs]
        for result in results:
            if result.name:  # an output may be left out
                self._define(result)

    def _check_form(self, proto: Any) -> None:
        """Check a node against its operator's signature in the version that the file names: signatures change."""
        newest = self.onnx.defs.onnx_opset_version()
        version = newest if self._version_reason() else max(self.versions)
        try:
            form = self.onnx.defs.get_schema(proto.op_type, version, "")
        except self.onnx.defs.SchemaError:
            msg = f"there is no rule for it, nor such an operator in version {version}"
            raise NotUnderstoodError(msg) from None
        if form.deprecated or not form.min_input <= len(proto.input) <= form.max_input:
            msg = f"in version {version} it is deprecated or has another number of inputs"
            raise NotUnderstoodError(msg)
        kinds = self.onnx.AttributeProto.AttributeType
        for a in proto.attribute:
            known = form.attributes.get(a.name)
            if known is None or known.type.name != kinds.Name(a.type):
                msg = f"its attribute {a.name!r} is unknown or of another type in version {version}"
                raise NotUnderstoodError(msg)
        for name, entry in form.attributes.items():
            if entry.required and all(a.name != name for a in proto.attribute):
                msg = f"its attribute {name!r} is missing"
                raise NotUnderstoodError(msg)

    def _weights(
        self, proto: Any, inputs: Sequence[Fixed | Varying | None], label: str
    ) -> set[str]:
        """Return the stored arrays by which a node may multiply that is not understood, or its label for want of names.

        A node with a rule, such as Add, is no layer, whatever it reads.  Any other is one if it reads arrays with more
        than one axis, itself or in graphs within it, or if its name says so and it reads constants.
        """
        function = self._function(proto)
        standard = proto.domain in _STANDARD and function is None
        if standard and proto.op_type in RULES.keys() - {*_LAYERS}:
            return set()
        fixed = [x for x in inputs if isinstance(x, Fixed)]
        names = {x.source for x in fixed if x.source in self.matrices}
        graphs = [g for a in proto.attribute for g in (a.g, *a.graphs)]
        names |= {name or label for name in self._inner_weights(graphs)}
        if function is not None and self.functions_weigh:
            names.add(label)
        kernel = inputs[1] if standard and proto.op_type in _LAYERS[:2] and inputs[1:] else None
        computed = isinstance(kernel, Varying) and kernel.stopped is None
        several = any(x.value is None or x.value.size > 1 for x in fixed)
        named = several and any(word in proto.op_type for word in _LAYER_WORDS)
        return names or ({label} if computed or named else set())

    def _inner_weights(self, graphs: Sequence[Any]) -> Iterator[str]:
        """Yield the stored arrays that graphs within nodes read, and the empty text for those that they hold."""
        for graph in graphs:
            for node in graph.node:
                for x in (self.tensors.get(name) for name in node.input):
                    if isinstance(x, Fixed) and x.source in self.matrices:
                        yield x.source
                if any(self._is_matrix(a.t) or len(a.sparse_tensor.dims) for a in node.attribute):
                    yield ""
                yield from self._inner_weights(
                    [g for a in node.attribute for g in (a.g, *a.graphs)]
                )
            if any(map(self._is_matrix, getattr(graph, "initializer", ()))):
                yield ""  # a function has no arrays but those of its nodes

    def _function(self, proto: Any) -> Any:
        """Return the function in the file that a node calls, None for an operator."""
        domains = _STANDARD if proto.domain in _STANDARD else (proto.domain,)
        found = (self.functions.get((domain, proto.op_type)) for domain in domains)
        return next((f for f in found if f is not None), None)

    def _results(self, node: Node, outputs: list[str], label: str) -> list[Fixed | Varying]:
        """Return what the outputs of a node of the standard are."""
        stop = self._first_stop(node.inputs)
        of_shape = (
            node.op == "Shape" and stop is None
        )  # what rules make has shapes that no value changes
        if of_shape or not any(isinstance(x, Varying) for x in node.inputs):
            return self._folded(node, outputs)
        if node.op == "Cast":  # in exact arithmetic a floating type is as good as another
            return self._cast(node, outputs[0])
        effect = apply_rule(node)
        layer = self._layer(effect)
        first = node.inputs[0]
        results: list[Fixed | Varying] = []
        for i, name in enumerate(outputs):
            if i >= len(effect.shapes):
                reason = f"{label} is not understood: its output number {i} is used"
                results.append(Varying(name, None, stop or reason))
                continue
            gate = (first.name, effect.gate) if first is not None and effect.gate else None
            shape = effect.shapes[i]
            known = shape is not None and len(shape) <= _MOST_AXES
            results.append(Varying(name, shape if known else None, stop, gate))
            if stop is None and name:
                self.steps.append(
                    Step(name, self._terms(node, effect), stacked=effect.stacked, layer=layer)
                )
        return results

    @staticmethod
    def _terms(node: Node, effect: Effect) -> tuple[tuple[str, float], ...]:
        pairs = ((node.inputs[i], factor) for i, factor in effect.factors.items())
        return tuple((x.name, factor) for x, factor in pairs if x is not None)

    @staticmethod
    def _first_stop(inputs: Sequence[Fixed | Varying | None]) -> str | None:
        """Return why an input has no constant, if one has none."""
        varying = (x for x in inputs if isinstance(x, Varying))
        return next((x.stopped for x in varying if x.stopped is not None), None)

    def _cast(self, node: Node, output: str) -> list[Fixed | Varying]:
        x = node.varying(0)
        if self._type_name(node.attributes.get("to")) not in ("FLOAT", "DOUBLE"):
            msg = "it rounds"
            raise NotUnderstoodError(msg)
        if x.stopped is None:
            self.steps.append(Step(output, ((x.name, 1.0),)))
        return [Varying(output, x.shape, x.stopped)]

    def _layer(self, effect: Effect) -> str | None:
        """Enter the layer of a node; return the name of its row."""
        if effect.layer is None:
            return None
        source, weight, geometry = effect.layer
        for use in range(1, _MOST_USES + 1):
            name = source if use == 1 else f"{source} (use {use})"
            there = self.layers.setdefault(name, Layer(name, weight, geometry))
            if there.geometry == geometry and np.array_equal(there.weight, weight, equal_nan=True):
                self.uses.setdefault(name, []).extend(effect.factors.values())
                return name
        msg = f"{source!r} is used in more than {_MOST_USES} ways"
        raise NotUnderstoodError(msg)

    def _skipped(self) -> dict[str, str]:
        """Return why each stored array that is no layer is none."""
        skipped = {}
        for name, readers in self.readers.items():
            if name in self.layers or name in self.refused:
                continue
            used = f"used by {', '.join(sorted(set(readers)))}, no layer of its own"
            skipped[name] = used if readers else "not used by the graph"
        return skipped

    def _version_reason(self) -> str | None:
        """Return why no operator is understood, if the standard's version is not known."""
        newest = self.onnx.defs.onnx_opset_version()
        if len(self.versions) == 1 and _FIRST_VERSION <= max(self.versions) <= newest:
            return None
        stated = " and ".join(map(str, sorted(self.versions))) or "that is not stated"
        return f"operators of version {stated}; known are {_FIRST_VERSION} to {newest}"

    # Constants.

    def _folded(self, node: Node, outputs: list[str]) -> list[Fixed | Varying]:
        """Return the outputs of a node that reads constants only (or the shape of a tensor)."""
        if node.op == "Constant":
            value = node.attributes.get("value")
            if "sparse_value" in node.attributes or (value is not None and self._is_matrix(value)):
                self.matrices.add(outputs[0])
            return [Fixed(outputs[0], self._constant(node.attributes), outputs[0])]
        if node.op == "Shape" and node.inputs and isinstance(node.inputs[0], Varying):
            return [Fixed(outputs[0], self._shape(node))]
        if node.op not in _ON_CONSTANTS:
            msg = without_rule(node.op)
            raise NotUnderstoodError(msg)
        first = node.inputs[0] if node.inputs else None
        sources = [x.source for x in node.inputs if isinstance(x, Fixed)]
        source = next((s for s in sources if s in self.matrices), sources[0] if sources else "")
        if len(outputs) != 1 or not isinstance(first, Fixed) or first.value is None:
            return [Fixed(name, None, source) for name in outputs]
        try:
            moved = self._moved(node, first.value)
            if moved is not None and not np.may_share_memory(moved, first.value):
                self.copied += moved.nbytes
                if self.copied > limits.MAX_BYTES // 8:  # beside the file itself
                    moved = None
            return [Fixed(outputs[0], moved, source)]
        except (NotUnderstoodError, ValueError, LookupError, TypeError, OverflowError):
            return [Fixed(outputs[0], None, source)]

    def _moved(self, node: Node, value: _Values) -> _Values | None:
        """Return the value of an operator that only moves entries, None for others."""
        if node.op == "Identity":
            return value
        if node.op == "Transpose":
            return np.transpose(value, permutation(node, value.ndim))
        if node.op == "Reshape":
            shape = reshaped(node, value.shape)
            known = shape is not None and are_numbers(shape)  # a name may look like a number
            return value.reshape(shape) if known else None
        if node.op == "Cast":
            kind = self._type_name(node.attributes.get("to"))
            if value.dtype.kind == "O":  # numbers and names of dimensions
                return value if kind == "INT64" else None
            wider = {"FLOAT": "f4", "DOUBLE": "f8", "INT32": "i4", "INT64": "i8"}.get(kind, "V")
            return (
                value.astype(wider, copy=False) if np.can_cast(value.dtype, wider, "safe") else None
            )
        rest = [node.fixed(i) for i in range(1, len(node.inputs))]
        if sum(v.size for v in (value, *rest) if v is not None) > _FEW:
            return None
        if node.op in ("Squeeze", "Unsqueeze"):
            axes = node.attributes.get("axes", rest[0] if rest else None)
            if axes is None:
                return np.squeeze(value) if node.op == "Squeeze" else None
            places = tuple(axes if isinstance(axes, list) else entries(axes))
            if not places or not are_numbers(places):  # none or all, as runtimes differ; names
                return None
            return (np.squeeze if node.op == "Squeeze" else np.expand_dims)(value, places)
        if node.op == "Gather" and rest[0] is not None:
            taken = np.take(value, rest[0], axis=node.attributes.get("axis", 0))
            return np.asarray(taken, dtype=value.dtype)  # one name of a dimension is no array yet
        if node.op == "Concat":
            return np.concatenate([value, *rest], axis=node.attributes["axis"])
        return None

    def _constant(self, attributes: dict[str, Any]) -> _Values | None:
        """Return the value of a node Constant."""
        name, value = next(iter(attributes.items())) if len(attributes) == 1 else ("", None)
        if name == "value":
            return self._value(value, "a constant")
        kinds = {"value_float": "f4", "value_floats": "f4", "value_int": "i8", "value_ints": "i8"}
        return np.asarray(value, dtype=kinds[name]) if name in kinds else None

    @staticmethod
    def _shape(node: Node) -> _Values | None:
        """Return the shape of a tensor as a constant with names in it."""
        x = node.inputs[0]
        if not isinstance(x, Varying) or x.shape is None or node.attributes or None in x.shape:
            return None
        return np.asarray(x.shape, dtype=object)

    # What the message holds.

    def _attribute(self, attribute: Any) -> Any:
        """Return the value of an attribute; a graph or a reference is not understood."""
        kind = self.onnx.AttributeProto.AttributeType.Name(attribute.type)
        field = {
            "INT": "i",
            "FLOAT": "f",
            "STRING": "s",
            "INTS": "ints",
            "FLOATS": "floats",
            "TENSOR": "t",
            "SPARSE_TENSOR": "sparse_tensor",
        }
        if kind not in field or attribute.ref_attr_name:
            msg = f"its attribute {attribute.name!r} is of the kind {kind}"
            raise NotUnderstoodError(msg)
        value = getattr(attribute, field[kind])
        return list(value) if kind in ("INTS", "FLOATS") else value

    def _value(self, tensor: Any, name: str) -> _Values | None:
        """Return the array in a message, None if its type is not one that is used here."""
        if tensor.data_location == self.onnx.TensorProto.EXTERNAL or len(tensor.external_data):
            msg = (
                f"the array {name!r} lies in another file, which is never opened; save the model with all arrays in "
                "one file"
            )
            raise ReadError(msg)
        kind = self._type_name(tensor.data_type)
        if kind not in _TYPES:
            return None
        if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > limits.MAX_BYTES:
            msg = f"the array {name!r} states the shape {tuple(tensor.dims)}"
            raise ReadError(msg)
        with _damage_is(f"the array {name!r} does not fit its shape {tuple(tensor.dims)}"):
            read = _bfloat16 if kind == "BFLOAT16" else self.onnx.numpy_helper.to_array
            return np.asarray(read(tensor))

    def _is_matrix(self, tensor: Any) -> bool:
        """Say whether an array in the message may be a layer's weight."""
        return len(tensor.dims) > 1 and self._type_name(tensor.data_type) not in _NOT_WEIGHTS

    def _type_name(self, number: Any) -> str:
        """Return the name of a type of entries, empty for an unknown one."""
        kinds = self.onnx.TensorProto.DataType
        return str(kinds.Name(number)) if number in kinds.values() else ""

    def _tensor(self, name: str, reader: str) -> Fixed | Varying:
        """Return what a tensor is."""
        if name not in self.tensors:
            msg = (
                f"{reader} reads {name!r}, which nothing before it makes: not in order, or a cycle"
            )
            raise ReadError(msg)
        return self.tensors[name]

    def _define(self, tensor: Fixed | Varying) -> None:
        """Enter a tensor, which must be new."""
        if tensor.name in self.tensors:
            msg = f"two things in it are called {tensor.name!r}"
            raise ReadError(msg)
        self.tensors[tensor.name] = tensor
