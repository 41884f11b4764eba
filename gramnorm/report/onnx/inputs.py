"""The inputs of a graph: the shapes that it states, with names for sizes that it leaves open.

A caller may say which numbers the names are, in the order of the axes after batch and channels.
"""

from collections.abc import Sequence
from typing import Any

from gramnorm.report.files.contents import ReadError
from gramnorm.report.onnx import messages
from gramnorm.report.onnx.nodes import Dim, Varying, name_of, require

MOST_AXES = 64  # of a shape that is known: work may grow with their square


class Inputs:
    """
    The inputs of a graph.

    Parameters
    ----------
    values : sequence
        As the file states them, without those that are stored as well.
    spatial : tuple of int or None
        The sizes of the axes after the first two, one for all or one for each, where the file
        leaves them open.
    """

    def __init__(self, values: Sequence[Any], spatial: tuple[int, ...] | None = None) -> None:
        self.values = values
        self.bound: dict[str, int] = {}  # the numbers that names stand for
        self.is_bound = False
        self.spatial = spatial
        for value in values:
            dims = value.type.tensor_type.shape.dim
            texts = (d.dim_param for d in dims)
            messages.check_texts(value.name, *texts)
            for place, n in self._given(dims).items():
                self.is_bound = True
                name = name_of(dims[place].dim_param)
                there = self.bound.setdefault(name, n) if isinstance(name, str) else n
                differ = f"the size {name!r} of its input {value.name!r} would be {there} and {n}"
                require(there == n, differ, ReadError)

    def tensors(self) -> list[Varying]:
        """Return the inputs as tensors."""
        return [self._tensor(value) for value in self.values]

    def _given(self, dims: Any) -> dict[int, int]:
        """Return the sizes chosen for axes that the file leaves open."""
        axes = range(2, len(dims)) if len(dims) <= MOST_AXES else range(0)
        sizes = self.spatial or ()
        sizes = sizes * len(axes) if len(sizes) == 1 else sizes
        if len(sizes) != len(axes):
            return {}
        return {i: n for i, n in zip(axes, sizes, strict=True) if dims[i].dim_value <= 0}

    def _tensor(self, value: Any) -> Varying:
        """Return an input with the shape that it states."""
        stated = value.type.tensor_type
        if messages.type_name(stated.elem_type) not in messages.FLOATS:
            # integers would wrap round and divide with a remainder
            reason = f"the input {value.name!r} is no tensor of floating type"
            return Varying(value.name, None, reason)
        if not stated.HasField("shape") or len(stated.shape.dim) > MOST_AXES:
            return Varying(value.name)
        given = self._given(stated.shape.dim)
        dims: list[Dim] = []
        for place, d in enumerate(stated.shape.dim):
            name = name_of(d.dim_param)
            n = self.bound.get(name, name) if isinstance(name, str) else None
            dims.append(d.dim_value if d.dim_value > 0 else given.get(place, n))
        return Varying(value.name, tuple(dims))
