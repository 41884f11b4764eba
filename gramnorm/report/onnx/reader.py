"""Layers and a network out of an ONNX file, without trusting the file.

An ONNX file is a protocol-buffer message: arrays, and nodes in an order in which each reads only
what exists before it.  Arrays must lie in the file itself or in one beside it, and each must hold
exactly the bytes that its shape needs; one that does not is lost, with the layers that need it.
Sizes follow from the shapes of the graph's inputs, carried on from node to node; shapes that the
file states for tensors on the way are not trusted, since a constant depends on them.

The graphs within a node If are walked like the graph around it, one of them or both, and their
tensors and layers bear its name.  Where both are possible, whichever is taken has at most the
larger constant, if the choice does not depend on the graph's inputs; where it does, the output may
jump.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from gramnorm.network._graph import Network, Step
from gramnorm.report.files import contents as limits
from gramnorm.report.files.contents import Contents, Layer, ReadError
from gramnorm.report.onnx import arithmetic, constants, gates, messages
from gramnorm.report.onnx.inputs import MOST_AXES, Inputs
from gramnorm.report.onnx.labels import label_numbered
from gramnorm.report.onnx.nodes import (
    Effect,
    Fixed,
    Form,
    Node,
    NotUnderstoodError,
    Shape,
    Varying,
    require,
)
from gramnorm.report.onnx.rules import NORMALISING, RULES, apply_rule, without_rule
from gramnorm.report.onnx.scope import Scope, Tensor

_MOST_USES = 50  # of one weight, each with another geometry or arrangement
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LAYER_WORDS = ("Attention", "Conv", "Gemm", "GRU", "LSTM", "MatMul", "RNN")  # in other operators
_MOST_NAMES = 5  # in a note
_LARGE = (
    "nodes divide by the deviation of their input, and their constant is that of an input without "
    "any, max |scale| / sqrt(epsilon), which is large"
)


def read_onnx(
    stream: IO[bytes], folder: Path | None = None, spatial: tuple[int, ...] | None = None
) -> Contents:
    """
    Read the layers and the graph of an open ``.onnx`` file.

    Parameters
    ----------
    stream : binary file
        Open for reading, seekable.
    folder : Path or None
        Where the file lies: arrays that it keeps in other files are looked for there, and nowhere
        else.  None refuses them.
    spatial : tuple of int or None
        The sizes of the inputs' axes after batch and channels that the file leaves open, one for
        all or one for each; None leaves them open.

    Returns
    -------
    Contents
        A layer for each node Conv, ConvTranspose, Gemm or MatMul with a stored weight, with the
        geometry in the graph; the other arrays as skipped entries; and the graph as a `Network`.

    Raises
    ------
    ReadError
        If the package onnx is missing, the file is damaged, too large or not in order, no layer in
        it can be had, or the sizes contradict each other.
    """
    model = messages.parsed(stream)
    label_numbered(model)
    contents = _Walk(model, folder, spatial).contents()
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


def _common(shapes: Sequence[Shape]) -> Shape:
    """Return what shapes have in common: None for sizes that differ."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or len(set(map(len, known))) != 1:
        return None
    return tuple(dims[0] if len(set(dims)) == 1 else None for dims in zip(*known, strict=True))


def _first_stop(inputs: Sequence[Tensor | None]) -> str | None:
    """Return why an input has no constant, if one has none."""
    return next((x.stopped for x in inputs if isinstance(x, Varying) and x.stopped), None)


class _Walk:
    """One pass over the nodes.

    What each tensor is, the steps of the network, the layers by name.
    """

    def __init__(
        self, model: Any, folder: Path | None = None, spatial: tuple[int, ...] | None = None
    ) -> None:
        self.graph = model.graph
        self.scope = Scope(folder)
        self.parts = messages.check_parts(self.graph)
        self.steps: list[Step] = []
        self.layers: dict[str, Layer] = {}
        self.refused: dict[str, str] = {}  # weights that became no layer
        self.uses: dict[str, list[float]] = {}  # of a layer: by what each use multiplies it
        self.normalising: list[str] = []  # nodes that divide by a deviation
        self.copied = 0  # bytes of constants that the graph makes of others
        self.functions = {(f.domain, f.name): f for f in model.functions}
        self.functions_weigh = any(True for _ in self._inner_weights(model.functions))
        self.versions = {o.version for o in model.opset_import if o.domain in messages.STANDARD}
        self.scope.store(self.graph)
        self.inputs = Inputs([v for v in self.graph.input if v.name not in self.scope], spatial)

    def contents(self) -> Contents:
        """Walk, and return what was found."""
        inputs = self.inputs.tensors()
        for tensor in inputs:
            self.scope.define(tensor.name, tensor)
        outputs = self._walked(self.graph)
        stopped = self._version_reason() or _first_stop(outputs)
        network = Network(
            tuple(tensor.name for tensor in inputs),
            tuple(self.steps),
            tuple(t.name for t in outputs if isinstance(t, Varying)),
            stopped if outputs else "the graph has no output",
        )
        refused = {
            f"{name} (another use)" if name in self.layers else name: why
            for name, why in self.refused.items()
        }
        layers = list(self.layers.values())
        sized = self.inputs.is_bound
        return Contents(
            layers, self._skipped(), refused, self._notes(), network=network, sized=sized
        )

    def _walked(self, graph: Any) -> list[Tensor]:
        """Walk the nodes of a graph, and return its outputs."""
        for number, node in enumerate(graph.node):
            name = self.scope.prefix + (node.name or f"number {number}")
            self._node(node, f"node {name!r} ({node.op_type})")
        return [self.scope.tensor(value.name, "the graph's output") for value in graph.output]

    def _notes(self) -> list[str]:
        """Return what a reader of the numbers should know: open inputs, what the rows leave out."""
        given = [v.name for v in self.graph.input if v.name in self.scope.readers]
        several = [name for name, factors in self.uses.items() if len(factors) > 1]
        scaled = [name for name, factors in self.uses.items() if set(factors) != {1.0}]
        replaced = (
            f"{len(given)} stored arrays are inputs of the graph as well, which a caller may replace; "
            "all numbers here are for the stored ones"
        )
        sizes = [f"{name} = {n}" for name, n in self.inputs.bound.items()]
        notes = {
            "named sizes of its inputs, chosen with --input-shape": sizes,
            replaced: given,
            "used more than once, with one row for all uses": several,
            "multiplied by a number (alpha), which the row leaves out": scaled,
            _LARGE: self.normalising,
        }
        return [f"{text}: {_listed(names)}" for text, names in notes.items() if names]

    def _skipped(self) -> dict[str, str]:
        """Return why each stored array that is no layer is none."""
        rows = self.layers.keys() | self.refused.keys()
        return {name: self._use(name) for name in self.scope.readers if name not in rows}

    def _use(self, name: str) -> str:
        """Return what a stored array is used for, or why it cannot be had."""
        if name in self.scope.damaged:
            return self.scope.damaged[name]
        ops = self.scope.readers[name]
        used = f"used by {', '.join(sorted(set(ops)))}, no layer of its own"
        return used if ops else "not used by the graph"

    def _version_reason(self) -> str | None:
        """Return why no operator is understood, if the standard's version is not known."""
        first, newest = messages.FIRST_VERSION, messages.newest_version()
        if len(self.versions) == 1 and first <= max(self.versions) <= newest:
            return None
        stated = " and ".join(map(str, sorted(self.versions))) or "that is not stated"
        return f"operators of version {stated}; known are {first} to {newest}"

    # Nodes.

    def _node(self, proto: Any, label: str) -> None:
        """Define the outputs of a node."""
        messages.check_texts(proto.op_type, proto.domain, *proto.input, *proto.output)
        inputs = tuple(self.scope.tensor(name, label) if name else None for name in proto.input)
        for name in {x.name for x in inputs if isinstance(x, Fixed)} & self.scope.readers.keys():
            self.scope.readers[name].append(proto.op_type)
        outputs = [self.scope.prefix + name if name else "" for name in proto.output]
        forms: tuple[Form, ...] = ()
        results: Sequence[Tensor]
        try:
            if proto.op_type == "If" and self._is_standard(proto):
                results = self._branched(proto, inputs, outputs, label)
            else:
                node = self._understood(proto, inputs)
                forms = gates.forms(node)
                results = self._results(node, outputs, label)
        except NotUnderstoodError as error:
            reason = f"{label} is not understood: {error}"
            for name in sorted(self._weights(proto, inputs, label)):
                self.refused.setdefault(name, reason)
            stop = _first_stop(inputs) or reason
            results = [Varying(name, None, stop) for name in outputs]
        if forms and len(results) == 1 and isinstance(results[0], Varying):
            results = [replace(results[0], forms=forms)]
        for name, result in zip(proto.output, results, strict=True):
            if name:  # an output may be left out
                self.scope.define(name, result)

    def _branched(
        self, proto: Any, inputs: Sequence[Tensor | None], outputs: list[str], label: str
    ) -> Sequence[Tensor]:
        """Return the outputs of a node If: those of the branch taken, or of either."""
        messages.check_form(proto, self._version())
        condition = inputs[0]
        taken = constants.truth(condition)
        graphs = {a.name: a.g for a in proto.attribute}
        require(len(graphs) == len(proto.attribute), "it has an attribute twice")
        kept = [name for name in ("then_branch", "else_branch") if taken in (None, name)]
        own = next(filter(None, outputs), label)  # unlike the names of nodes no other has it
        found = [self._branch(graphs[k], f"{own}/{k}/") for k in kept]
        counts = {len(tensors) for tensors in found}
        require(counts == {len(outputs)}, "its branches have another number of outputs")
        if taken is not None:
            return found[0]
        if not isinstance(condition, Varying):
            return list(map(self._either, outputs, *found))
        jumps = "its condition depends on the graph's inputs, and where it changes the output jumps"
        stop = condition.stopped or f"{label} is not understood: {jumps}"
        return [Varying(name, None, stop) for name in outputs]

    def _branch(self, graph: Any, prefix: str) -> list[Tensor]:
        """Walk a graph within a node, and return its outputs."""
        self.parts = messages.check_parts(graph, self.parts)
        require(not graph.input, "a branch has inputs")
        with self.scope.within(prefix):
            self.scope.store(graph)
            return self._walked(graph)

    def _either(self, name: str, *tensors: Tensor) -> Tensor:
        """Return one of several tensors, whichever is taken."""
        shape = _common([x.shape for x in tensors])
        varying = [x for x in tensors if isinstance(x, Varying)]
        if not varying:
            return Fixed(name, dims=shape, reason=f"{name!r} is one of two constants")
        stop = _first_stop(varying)
        if stop is None and name:
            terms = tuple((x.name, 1.0) for x in varying)
            self.steps.append(Step(name, terms, either=True))
        return Varying(name, shape, stop)

    def _understood(self, proto: Any, inputs: tuple[Tensor | None, ...]) -> Node:
        """Return a node of the standard, whose signature is that of its version."""
        require(proto.output, "it has no output")
        attributes = messages.attributes(proto)
        own = f"it is not of the standard's operators (domain {proto.domain!r})"
        require(self._is_standard(proto), own)
        version = self._version()
        messages.check_form(proto, version)
        return Node(proto.op_type, attributes, inputs, len(proto.output), version)

    def _version(self) -> int:
        return messages.newest_version() if self._version_reason() else max(self.versions)

    def _function(self, proto: Any) -> Any:
        """Return the function in the file that a node calls, None for an operator."""
        standard = proto.domain in messages.STANDARD
        domains = messages.STANDARD if standard else (proto.domain,)
        found = (self.functions.get((domain, proto.op_type)) for domain in domains)
        return next((f for f in found if f is not None), None)

    def _is_standard(self, proto: Any) -> bool:
        return proto.domain in messages.STANDARD and self._function(proto) is None

    def _results(self, node: Node, outputs: list[str], label: str) -> Sequence[Tensor]:
        """Return what the outputs of a node of the standard are."""
        stop = _first_stop(node.inputs)
        # what rules make has shapes that no value changes
        of_shape = node.op == "Shape" and stop is None
        if of_shape or not node.all_varying():
            return self._folded(node, outputs, label)
        if gated := gates.product(node):
            form, factor = gated
            source = self.scope.full[form.source]
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
            few = shape is not None and len(shape) <= MOST_AXES
            results.append(Varying(name, shape if few else None, stop))
            if stop is None and name:
                self.steps.append(Step(name, terms, effect.stacked, layer, part=effect.part))
        for i, name in list(enumerate(outputs))[len(effect.shapes) :]:
            reason = f"{label} is not understood: its output number {i} is used"
            results.append(Varying(name, None, stop or reason))
        return results

    def _layer(self, effect: Effect) -> str | None:
        """Enter the layer of a node; return the name of its row."""
        if effect.layer is None:
            return None
        source, weight, geometry, word = effect.layer
        for use in range(1, _MOST_USES + 1):
            name = source if use == 1 else f"{source} (use {use})"
            there = self.layers.setdefault(name, Layer(name, weight, geometry, word=word))
            same = there.weight is weight or np.array_equal(there.weight, weight, equal_nan=True)
            if there.geometry == geometry and same:
                self.uses.setdefault(name, []).extend(effect.factors.values())
                return name
        msg = f"{source!r} is used in more than {_MOST_USES} ways"
        raise NotUnderstoodError(msg)

    def _folded(self, node: Node, outputs: list[str], label: str) -> Sequence[Fixed]:
        """Return the outputs of a node that reads constants only (or the shape of a tensor)."""
        if node.op == "Constant":
            return [self._constant(node, outputs[0])]
        require(node.op not in constants.NOT_CONSTANT, without_rule(node.op))
        fixed = [x for x in node.inputs if isinstance(x, Fixed)]
        weights = [x for x in fixed if x.source in self.scope.matrices]
        first = next(iter((*weights, *fixed)), Fixed(outputs[0]))
        unknown = f"it is computed in the graph by {label}, {constants.reason_for(node.op)}"
        made = Fixed(
            outputs[0],
            None,
            first.source or outputs[0],
            short=node.op != "Cast" and any(x.short for x in fixed),
            word=constants.word_for(node.op) or first.word,
            reason=next((x.reason for x in fixed if x.value is None and x.reason), unknown),
        )
        found = zip(outputs, self._values(node, fixed), constants.shapes_made(node), strict=True)
        return [replace(made, name=name, value=value, dims=dims) for name, value, dims in found]

    def _constant(self, node: Node, name: str) -> Fixed:
        """Return what a node Constant states, or why it cannot be had."""
        value = node.attributes.get("value")
        if "sparse_value" in node.attributes or (value and messages.is_matrix(value)):
            self.scope.matrices.add(name)
        short = value is not None and messages.is_short(value)
        try:
            stated = constants.stated(node.attributes)
        except ReadError as error:  # an array as damaged as those stored are refused for
            if name in self.scope.matrices:
                self.refused[name] = str(error)
            return Fixed(name, None, name, reason=str(error))
        return Fixed(name, stated, name, short=short)

    def _values(self, node: Node, fixed: Sequence[Fixed]) -> list[Any]:
        """Return the values of a node on constants, if there is room for them beside the file."""
        arrays = [x.value for x in fixed if x.value is not None]
        room = limits.MAX_BYTES // 8
        is_large = any(v.size > arithmetic.FEW for v in arrays)
        unknown = [None] * node.outputs
        if is_large and self.copied > room:
            return unknown
        try:
            values = constants.computed(node)
        except (NotUnderstoodError, ReadError, ValueError, LookupError, TypeError, OverflowError):
            return unknown
        for value in values:
            if value is not None and not any(np.may_share_memory(value, v) for v in arrays):
                self.copied += value.nbytes
        return unknown if is_large and self.copied > room else values

    # Layers that are not understood.

    def _weights(self, proto: Any, inputs: Sequence[Tensor | None], label: str) -> set[str]:
        """Return the stored arrays by which a node may multiply that is not understood.

        For want of names, its label.  A node with a rule, such as Add, is no layer, whatever it
        reads.  Any other is one if it reads arrays with more than one axis, itself or in graphs
        within it, or if its name says so and it reads constants.
        """
        standard = self._is_standard(proto)
        if standard and proto.op_type in RULES.keys() - {*_LAYERS}:
            return set()
        fixed = [x for x in inputs if isinstance(x, Fixed)]
        names = {x.source for x in fixed if x.source in self.scope.matrices}
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
            read = (self.scope.get(name) for node in graph.node for name in node.input)
            yield from (
                x.source for x in read if isinstance(x, Fixed) and x.source in self.scope.matrices
            )
            inner = [a for node in graph.node for a in node.attribute]
            held = [
                *(a.t for a in inner),
                *getattr(graph, "initializer", ()),
            ]  # a function has none
            if any(map(messages.is_matrix, held)) or any(len(a.sparse_tensor.dims) for a in inner):
                yield ""
            yield from self._inner_weights(_graphs_within(graph.node))
