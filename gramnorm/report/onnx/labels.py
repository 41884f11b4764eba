"""Names for stored arrays that their exporter only numbered.

PyTorch's older exporter calls a weight that it has folded or transposed ``onnx::Conv_193``, while
the node that reads it has the path of its layer, ``/layer1/conv1/Conv``.  Such an array is called
by that path, if the one node reads it and nothing else is called so.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

_NUMBERED = re.compile(r"(onnx::\w+_)?\d+")


def label_numbered(model: Any) -> None:
    """
    Rename arrays that have but a number by the node that reads them.

    Parameters
    ----------
    model : ModelProto
        The graph, changed in place.
    """
    graph = model.graph
    given = {value.name for value in (*graph.input, *graph.output)}
    stored = {t.name: len(t.dims) for t in graph.initializer if t.name not in given}
    numbered = {n: d for n, d in stored.items() if isinstance(n, str) and _NUMBERED.fullmatch(n)}
    uses = Counter(name for node in graph.node for name in node.input)
    inner = {name for node in graph.node for name in _inner_names(node)}
    wanted = {}
    for node in graph.node:
        inputs = [n for n in node.input if n in numbered and uses[n] == 1 and n not in inner]
        if not isinstance(node.name, str) or not node.name.startswith("/"):
            continue
        path = re.sub(rf"(.)/{re.escape(str(node.op_type))}(_\d+)?\Z", r"\1", node.name)
        matrices = [name for name in inputs if numbered[name] > 1]
        for name in inputs:
            position = list(node.input).index(name)
            wanted[name] = path if [name] == matrices else f"{path} (input {position})"
    _rename(graph, wanted)


def _rename(graph: Any, wanted: dict[str, str]) -> None:
    """Give arrays new names, where these are new."""
    known = {
        name for node in graph.node for name in (*node.input, *node.output, *_inner_names(node))
    }
    known |= {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    count = Counter(wanted.values())
    names = {old: new for old, new in wanted.items() if count[new] == 1 and new not in known}
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in names:
                node.input[position] = names[name]


def _inner_names(node: Any) -> Iterator[str]:
    """Return all names of tensors in the graphs within a node."""
    rest = [graph for a in node.attribute for graph in (a.g, *a.graphs)]
    while rest:
        graph = rest.pop()
        yield from (tensor.name for tensor in graph.initializer)
        for inner in graph.node:
            yield from (*inner.input, *inner.output)
            rest.extend(g for a in inner.attribute for g in (a.g, *a.graphs))
