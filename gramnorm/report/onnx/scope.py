"""The tensors of a graph by name, and those of the graphs within its nodes.

A graph within a node sees the names around it, and its own are forgotten after it.  Steps and rows
outlive it, so each tensor also has a full name, with that of the node in front, and no two tensors
of a file have the same.
"""

import contextlib
from collections import ChainMap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gramnorm.report.files.contents import ReadError
from gramnorm.report.onnx import messages
from gramnorm.report.onnx.external import ArrayError, Beside
from gramnorm.report.onnx.nodes import Fixed, Varying, require

Tensor = Fixed | Varying


class Scope:
    """
    What is known of the tensors of a file.

    Parameters
    ----------
    folder : Path or None
        Where arrays in other files lie.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.full: dict[str, Tensor] = {}  # by full names
        self.prefix = ""  # of full names in the graph that is being read
        self.matrices: set[str] = set()  # stored arrays that may be weights
        self.readers: dict[str, list[str]] = {}  # of a stored array: the operators
        self.damaged: dict[str, str] = {}  # why a stored array cannot be had
        self._beside = None if folder is None else Beside(folder)
        self._tensors: ChainMap[str, Tensor] = ChainMap()  # a map for each graph around a node

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def get(self, name: str) -> Tensor | None:
        """Return what a tensor is, None if there is none of the name."""
        return self._tensors.get(name)

    def tensor(self, name: str, reader: str) -> Tensor:
        """Return what a tensor is, which must exist before what reads it."""
        order = f"{reader} reads {name!r}, which nothing before it makes: not in order, or a cycle"
        require(name in self._tensors, order, ReadError)
        return self._tensors[name]

    def define(self, name: str, tensor: Tensor) -> None:
        """Enter a tensor, whose full name must be new."""
        full = self.prefix + name
        require(full not in self.full, f"two things in it are called {full!r}", ReadError)
        self.full[full] = self._tensors[name] = tensor

    def store(self, graph: Any) -> None:
        """Enter the stored arrays of a graph as constants."""
        for tensor in graph.initializer:
            self._store(tensor.name, tensor)
        for sparse in graph.sparse_initializer:
            self._store(sparse.values.name, None, is_matrix=len(sparse.dims) > 1)

    def _store(self, name: str, tensor: Any, *, is_matrix: bool = False) -> None:
        """Enter a stored array, None for a sparse one, or why it cannot be had."""
        messages.check_texts(name)
        full, value = self.prefix + name, None
        why = f"the array {full!r} is sparse, which is not read"
        try:
            if tensor is not None:
                value = messages.array(tensor, full, self._beside)
                why = f"the array {full!r} is of a type that is not read" if value is None else ""
        except ArrayError as error:
            why = str(error)
        short = tensor is not None and messages.is_short(tensor)
        self.define(name, Fixed(full, value, full, short=short, reason=why))
        if is_matrix or (tensor is not None and messages.is_matrix(tensor)):
            self.matrices.add(full)
        self.readers[full] = []
        if why:
            self.damaged[full] = why

    @contextlib.contextmanager
    def within(self, prefix: str) -> Iterator[None]:
        """Read a graph within a node, whose full names have a prefix."""
        around = self.prefix, self._tensors
        self.prefix, self._tensors = prefix, self._tensors.new_child()
        try:
            yield
        finally:
            self.prefix, self._tensors = around
