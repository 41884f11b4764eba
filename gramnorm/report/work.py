"""The layers of a report one by one: read, bounded, and recognised if they were bounded before.

A row is a function of the numbers of a layer, of what is said about it, and of the options; so what
has been found for the same digest of all these, by the same version, is found again.  Layers are
bounded by one thread each, so that no bit of a row depends on how many there are, or where.  Their
arrays are read when their turn comes, and the numbers at work at a time are limited, so that the
memory is a few times that of the largest layer or of that limit.
"""

import contextlib
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gramnorm._arrays import libraries, threads
from gramnorm.report import Row, bound_layer
from gramnorm.report.files.contents import Layer, ReadError
from gramnorm.report.limits import AT_ONCE
from gramnorm.report.options import version

Known = Mapping[str, Row]
"""Rows by the digests of what they are about."""


@dataclass(frozen=True)
class How:
    """The options that the bounds of a layer depend on."""

    input_shape: tuple[int, ...] | str | None = None
    padding_mode: str | None = None
    rtol: float | None = None
    backend: str = "numpy"
    device: str | None = None
    sized: bool = False  # as `Contents` has it

    def row(self, layer: Layer) -> Row:
        """Return the row of a layer."""
        shape = self.input_shape
        if self.sized:  # its size follows from the network's, but where runtimes differ
            known = layer.geometry is not None and "input_shape" in layer.geometry
            shape = "file" if known else None
        place = functools.partial(libraries.placed, backend=self.backend, device=self.device)
        return bound_layer(
            layer,
            input_shape=shape,
            padding_mode=self.padding_mode,
            rtol=self.rtol,
            place=place,
        )


@dataclass(frozen=True)
class Outcome:
    """A row, the digest of what it is about if that was asked for, and whether it was known."""

    row: Row
    digest: str | None = None
    again: bool = False


def outcome(layer: Layer, how: How, known: Known | None) -> Outcome:
    """
    Return the row of a layer, from those that are known if it is among them.

    Parameters
    ----------
    layer : Layer
        The layer, whose arrays may stay in a file until now.
    how : How
        The options.
    known : mapping or None
        What was bounded before; None if nobody asks, then there is no digest.

    Returns
    -------
    Outcome
        The row; without a digest where the arrays could not be read.
    """
    if known is None:
        return Outcome(how.row(layer))
    try:
        layer = read(layer)
    except (ReadError, OSError, MemoryError):
        return Outcome(how.row(layer))  # which says why
    digest = digest_of(layer, how)
    if digest in known:
        return Outcome(replace(known[digest], name=layer.name), digest, again=True)
    return Outcome(how.row(layer), digest)


def read(layer: Layer) -> Layer:
    """Return the layer with its arrays in memory."""
    variance = None if layer.variance is None else np.asarray(layer.variance)
    return replace(layer, weight=np.asarray(layer.weight), variance=variance)


def digest_of(layer: Layer, how: How) -> str:
    """Return a digest of all that the row of a layer depends on but its name."""
    arrays = [np.asarray(a, order="C") for a in (layer.weight, layer.variance) if a is not None]
    facts = {
        "version": version(),
        "how": vars(how),
        "arrays": [(array.shape, array.dtype.str) for array in arrays],
        "said": (layer.geometry, layer.groups, layer.layout, layer.forced, layer.word, layer.error),
    }
    found = hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode())
    for array in arrays:
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def bound_here(
    layers: Sequence[Layer],
    how: How,
    *,
    known: Callable[[Layer], Known | None],
    begin: Callable[[Layer], None],
    keep: Callable[[int, Outcome], None],
) -> None:
    """
    Bound layers in this process, as many at a time as there are cores, and as memory is meant for.

    Parameters
    ----------
    layers : sequence of Layer
        The layers.
    how : How
        The options.
    known : callable
        Called with a layer: what `outcome` gets.
    begin : callable
        Called with each layer before the work on it.
    keep : callable
        Called with the number of a layer and its outcome, as soon as there is one.
    """
    room = _Room(AT_ONCE)

    def bound(which: int) -> None:
        layer = layers[which]
        with room.taken(layer.weight.size):
            begin(layer)
            keep(which, outcome(layer, how, known(layer)))

    # a layer alone has all threads of the BLAS; what is on a device waits there in any case
    if how.backend == "numpy" and len(layers) > 1:
        # the dearest first: one that comes last leaves all other cores idle
        threads.shared(bound, sorted(range(len(layers)), key=lambda i: -cost(layers[i])))
    else:
        for which in range(len(layers)):
            bound(which)


class _Room:
    """A number of numbers that may be at work at a time, or one layer with more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._changed = threading.Condition()
        # who waits is waited for: small layers do not pass a large one
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait until there is room for so many numbers, and take it."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._most)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


def cost(layer: Layer) -> float:
    """Return about what bounding a layer takes, in products of numbers, for those who wait."""
    shape: Any = layer.weight.shape
    size = float(layer.weight.size)
    return size * min(shape[0], size / max(shape[0], 1)) + 1e5 if shape else 1e5
