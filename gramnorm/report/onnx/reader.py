"""Layers and a network out of an ONNX file, without trusting the file.

An ONNX file is a protocol-buffer message: arrays, and nodes in an order in which each reads only
what exists before it.  Arrays must lie in the file itself or in one beside it, and each must hold
exactly the bytes that its shape needs.  Sizes follow from the shapes of the graph's inputs, carried
on from node to node; shapes that the file states for tensors on the way are not trusted, since a
constant depends on them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from gramnorm.report.files import contents as limits
from gramnorm.report.files.contents import Contents, Layer, ReadError
from gramnorm.report.network import Network, Step
from gramnorm.report.onnx import constants, gates, messages
from gramnorm.report.onnx.external import Beside
from gramnorm.report.onnx.labels import label_numbered
from gramnorm.report.onnx.nodes import (
    Effect,
    Fixed,
    Form,
    Node,
    NotUnderstoodError,
    Varying,
    name_of,
    require,
)
from gramnorm.report.onnx.rules import NORMALISING, RULES, apply_rule, without_rule

_MOST_AXES = 64  # of a shape that is known: work may grow with their square
_MOST_USES = 50  # of one weight, each with another geometry or arrangement
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LAYER_WORDS = ("Attention", "Conv", "Gemm", "GRU", "LSTM", "MatMul", "RNN")  # in other operators
_MOST_NAMES = 5  # in a note
_LARGE = (
    "nodes divide by the deviation of their input, and their constant is that of an input without "
    "any, max |scale| / sqrt(epsilon), which is large"
)

_Tensor = Fixed | Varying


def read_onnx(stream: IO[bytes], folder: Path | None = None) -> Contents:
    """
    Read the layers and the graph of an open ``.onnx`` file.

    Parameters
    ----------
    stream : binary file
        Open for reading, seekable.
    folder : Path or None
        Where the file lies: arrays that it keeps in other files are looked for there, and nowhere
        else.  None refuses them.

    Returns
    -------
    Contents
        A layer for each node Conv, ConvTranspose, Gemm or MatMul with a stored weight, with the
        geometry in the graph; the other arrays as skipped entries; and the graph as a `Network`.

    Raises
    ------
    ReadError
        If the package onnx is missing, or the file is damaged, too large, not in order, or
        keeps arrays in other files than those beside it.
    """
    model = messages.parsed(stream)
    label_numbered(model)
    contents = _Walk(model, folder).contents()
    failed = list(contents.failed.items())[:_MOST_NAMES]
    reasons = "; ".join(f"{name!r}: {reason}" for name, reason in failed)
    no_layer = f"there is no node {', '.join(_LAYERS)} with a stored weight in it"
    require(contents.layers, reasons or no_layer, ReadError)
    return contents


def _listed(names: Sequence[str]) -> str:
    """Return a list of names for people, the first few of it."""
    rest = len(names) - _MOST_NAMES
    return ", ".join(map(repr, names[:_MOST_NAMES])) + f" and {rest} more" * (rest > 0)


def _graphs_within(nodes: Sequence[Any]) -> list[Any]:
    return [graph for node in nodes for a in node.attribute for graph in (a.g, *a.graphs)]


def _first_stop(inputs: Sequence[_Tensor | None]) -> str | None:
    """Return why an input has no constant, if one has none."""
    return next((x.stopped for x in inputs if isinstance(x, Varying) and x.stopped), None)


class _Walk:
    """One pass over the nodes.

    What each tensor is, the steps of the network, the layers by name.
    """

    def __init__(self, model: Any, folder: Path | None = None) -> None:
        self.graph = model.graph
        self.beside = None if folder is None else Beside(folder)
        self.tensors: dict[str, _Tensor] = {}
        self.steps: list[Step] = []
        self.layers: dict[str, Layer] = {}
        self.readers: dict[str, list[str]] = {}  # of a stored array: the operators
        self.matrices: set[str] = set()  # stored arrays that may be weights
        self.refused: dict[str, str] = {}  # weights that became no layer
        self.uses: dict[str, list[float]] = {}  # of a layer: by what each use multiplies it
        self.normalising: list[str] = []  # nodes that divide by a deviation
        self.copied = 0  # bytes of constants that the graph makes of others
        self.functions = {(f.domain, f.name): f for f in model.functions}
        self.functions_weigh = any(True for _ in self._inner_weights(model.functions))
        self.versions = {o.version for o in model.opset_import if o.domain in messages.STANDARD}

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
        stopped = self._version_reason() or _first_stop(outputs)
        network = Network(
            tuple(value.name for value in inputs),
            tuple(self.steps),
            tuple(t.name for t in outputs if isinstance(t, Varying)),
            stopped if outputs else "the graph has no output",
        )
        refused = {
            f"{name} (another use)" if name in self.layers else name: why
            for name, why in self.refused.items()
        }
        layers = list(self.layers.values())
        return Contents(layers, self._skipped(), refused, self._notes(), network=network)

    def _notes(self) -> list[str]:
        """Return what a reader of the numbers should know: open inputs, what the rows leave out."""
        given = [v.name for v in self.graph.input if v.name in self.readers]
        several = [name for name, factors in self.uses.items() if len(factors) > 1]
        scaled = [name for name, factors in self.uses.items() if set(factors) != {1.0}]
        replaced = (
            f"{len(given)} stored arrays are inputs of the graph as well, which a caller may replace; "
            "all numbers here are for the stored ones"
        )
        notes = {
            replaced: given,
            "used more than once, with one row for all uses": several,
            "multiplied by a number (alpha), which the row leaves out": scaled,
            _LARGE: self.normalising,
        }
        return [f"{text}: {_listed(names)}" for text, names in notes.items() if names]

    def _skipped(self) -> dict[str, str]:
        """Return why each stored array that is no layer is none."""
        return {
            name: f"used by {', '.join(sorted(set(ops)))}, no layer of its own"
            if ops
            else "not used by the graph"
            for name, ops in self.readers.items()
            if name not in self.layers and name not in self.refused
        }

    def _version_reason(self) -> str | None:
        """Return why no operator is understood, if the standard's version is not known."""
        first, newest = messages.FIRST_VERSION, messages.newest_version()
        if len(self.versions) == 1 and first <= max(self.versions) <= newest:
            return None
        stated = " and ".join(map(str, sorted(self.versions))) or "that is not stated"
        return f"operators of version {stated}; known are {first} to {newest}"

    # What the nodes read and write.

    def _arrays(self) -> None:
        """Take the stored arrays as constants."""
        for tensor in self.graph.initializer:
            messages.check_texts(tensor.name)
            value = messages.array(tensor, tensor.name, self.beside)
            self._define(Fixed(tensor.name, value, tensor.name))
            if messages.is_matrix(tensor):
                self.matrices.add(tensor.name)
            self.readers[tensor.name] = []

    @staticmethod
    def _input(value: Any) -> Varying:
        """Return an input of the graph with the shape that it states."""
        stated = value.type.tensor_type
        messages.check_texts(value.name, *(d.dim_param for d in stated.shape.dim))
        if messages.type_name(stated.elem_type) not in messages.FLOATS:
            # integers would wrap round and divide with a remainder
            reason = f"the input {value.name!r} is no tensor of floating type"
            return Varying(value.name, None, reason)
        if not stated.HasField("shape") or len(stated.shape.dim) > _MOST_AXES:
            return Varying(value.name)
        dims = [d.dim_value if d.dim_value > 0 else name_of(d.dim_param) for d in stated.shape.dim]
        return Varying(value.name, tuple(dims))

    def _tensor(self, name: str, reader: str) -> _Tensor:
        """Return what a tensor is."""
        order = f"{reader} reads {name!r}, which nothing before it makes: not in order, or a cycle"
        require(name in self.tensors, order, ReadError)
        return self.tensors[name]

    def _define(self, tensor: _Tensor) -> None:
        """Enter a tensor, which must be new."""
        new = tensor.name not in self.tensors
        require(new, f"two things in it are called {tensor.name!r}", ReadError)
        self.tensors[tensor.name] = tensor

    # Nodes.

    def _node(self, proto: Any, label: str) -> None:
        """Define the outputs of a node."""
        messages.check_texts(proto.op_type, proto.domain, *proto.input, *proto.output)
        inputs = tuple(self._tensor(name, label) if name else None for name in proto.input)
        for name in set(proto.input) & self.readers.keys():
            self.readers[name].append(proto.op_type)
        outputs = list(proto.output)
        forms: tuple[Form, ...] = ()
        try:
            node = self._understood(proto, inputs)
            forms = gates.forms(node)
            results: Sequence[_Tensor] = self._results(node, outputs, label)
        except NotUnderstoodError as error:
            reason = f"{label} is not understood: {error}"
            for name in sorted(self._weights(proto, inputs, label)):
                self.refused.setdefault(name, reason)
            stop = _first_stop(inputs) or reason
            results = [Varying(name, None, stop) for name in outputs]
        if len(results) == 1 and isinstance(results[0], Varying):
            results = [replace(results[0], forms=forms)]
        for result in results:
            if result.name:  # an output may be left out
                self._define(result)

    def _understood(self, proto: Any, inputs: tuple[_Tensor | None, ...]) -> Node:
        """Return a node of the standard, whose signature is that of its version."""
        require(proto.output, "it has no output")
        attributes = messages.attributes(proto)
        own = f"it is not of the standard's operators (domain {proto.domain!r})"
        require(self._is_standard(proto), own)
        version = messages.newest_version() if self._version_reason() else max(self.versions)
        messages.check_form(proto, version)
        return Node(proto.op_type, attributes, inputs, len(proto.output), version)

    def _function(self, proto: Any) -> Any:
        """Return the function in the file that a node calls, None for an operator."""
        standard = proto.domain in messages.STANDARD
        domains = messages.STANDARD if standard else (proto.domain,)
        found = (self.functions.get((domain, proto.op_type)) for domain in domains)
        return next((f for f in found if f is not None), None)

    def _is_standard(self, proto: Any) -> bool:
        return proto.domain in messages.STANDARD and self._function(proto) is None

    def _results(self, node: Node, outputs: list[str], label: str) -> Sequence[_Tensor]:
        """Return what the outputs of a node of the standard are."""
        stop = _first_stop(node.inputs)
        # what rules make has shapes that no value changes
        of_shape = node.op == "Shape" and stop is None
        if of_shape or not node.all_varying():
            return self._folded(node, outputs)
        if gated := gates.product(node):
            form, factor = gated
            source = self._tensor(form.source, label)
            assert isinstance(source, Varying)
            if source.stopped is None:
                self.steps.append(Step(outputs[0], ((form.source, factor),)))
            return [Varying(outputs[0], form.shape, source.stopped)]
        effect = apply_rule(node)
        layer = self._layer(effect)
        if node.op in NORMALISING:
            self.normalising.append(label)
        terms = tuple((node.varying(i).name, factor) for i, factor in effect.factors.items())
        results = []
        for name, shape in zip(outputs, effect.shapes, strict=False):
            few = shape is not None and len(shape) <= _MOST_AXES
            results.append(Varying(name, shape if few else None, stop))
            if stop is None and name:
                self.steps.append(Step(name, terms, stacked=effect.stacked, layer=layer))
        for i, name in list(enumerate(outputs))[len(effect.shapes) :]:
            reason = f"{label} is not understood: its output number {i} is used"
            results.append(Varying(name, None, stop or reason))
        return results

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

    def _folded(self, node: Node, outputs: list[str]) -> Sequence[Fixed]:
        """Return the outputs of a node that reads constants only (or the shape of a tensor)."""
        if node.op == "Constant":
            value = node.attributes.get("value")
            if "sparse_value" in node.attributes or (value and messages.is_matrix(value)):
                self.matrices.add(outputs[0])
            try:
                return [Fixed(outputs[0], constants.stated(node.attributes), outputs[0])]
            except ReadError as error:  # an array as damaged as those stored are refused for
                if outputs[0] in self.matrices:
                    self.refused[outputs[0]] = str(error)
                return [Fixed(outputs[0], None, outputs[0])]
        if node.op == "Shape" and node.all_varying():
            return [Fixed(outputs[0], constants.shape_of(node))]
        require(node.op in constants.ON_CONSTANTS, without_rule(node.op))
        sources = [x.source for x in node.inputs if isinstance(x, Fixed)]
        weights = [source for source in sources if source in self.matrices]
        source = next(iter((*weights, *sources)), "")
        if len(outputs) > 1:
            return [Fixed(name, None, source) for name in outputs]
        try:
            value = constants.moved(node)
        except (NotUnderstoodError, ValueError, LookupError, TypeError, OverflowError):
            value = None
        first = node.input(0)
        assert first is None or isinstance(first, Fixed)
        if value is not None and first is not None and not np.may_share_memory(value, first.value):
            self.copied += value.nbytes
            value = (
                value if self.copied <= limits.MAX_BYTES // 8 else None
            )  # beside the file itself
        return [Fixed(outputs[0], value, source)]

    # Layers that are not understood.

    def _weights(self, proto: Any, inputs: Sequence[_Tensor | None], label: str) -> set[str]:
        """Return the stored arrays by which a node may multiply that is not understood.

        For want of names, its label.  A node with a rule, such as Add, is no layer, whatever it
        reads.  Any other is one if it reads arrays with more than one axis, itself or in graphs
        within it, or if its name says so and it reads constants.
        """
        standard = self._is_standard(proto)
        if standard and proto.op_type in RULES.keys() - {*_LAYERS}:
            return set()
        fixed = [x for x in inputs if isinstance(x, Fixed)]
        names = {x.source for x in fixed if x.source in self.matrices}
        names |= {name or label for name in self._inner_weights(_graphs_within([proto]))}
        if self.functions_weigh and self._function(proto) is not None:
            names.add(label)
        kernel = inputs[1] if standard and proto.op_type in _LAYERS[:2] and inputs[1:] else None
        computed = isinstance(kernel, Varying) and kernel.stopped is None
        several = any(x.value is None or x.value.size > 1 for x in fixed)
        named = several and any(word in proto.op_type for word in _LAYER_WORDS)
        return names or ({label} if computed or named else set())

    def _inner_weights(self, graphs: Sequence[Any]) -> Iterator[str]:
        """Yield the stored arrays that inner graphs read, empty texts for those they hold."""
        for graph in graphs:
            read = (self.tensors.get(name) for node in graph.node for name in node.input)
            yield from (
                x.source for x in read if isinstance(x, Fixed) and x.source in self.matrices
            )
            inner = [a for node in graph.node for a in node.attribute]
            held = [
                *(a.t for a in inner),
                *getattr(graph, "initializer", ()),
            ]  # a function has none
            if any(map(messages.is_matrix, held)) or any(len(a.sparse_tensor.dims) for a in inner):
                yield ""
            yield from self._inner_weights(_graphs_within(graph.node))
