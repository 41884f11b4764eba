"""What the arrays of a weight file are.

Layers, what changes no Lipschitz constant, or something not understood.

An array is taken for the weight of a layer if its name says so, and its type, its shape and its
companions (a bias, the statistics of a batch norm) agree.  What contradicts itself fails by name;
all else is not understood, and listed.  Both leave the network without a product: a number about a
part of it, or about an array that is no layer, is none about it.
"""

import functools
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from gramnorm.report.files.contents import Contents, Layer, Stored
from gramnorm.report.files.layouts import axes_in, bias_fits, readings, to_oihw
from gramnorm.report.files.names import (
    BIASES,
    MEANS,
    OF_TENSORFLOW,
    SCALES,
    VARIANCES,
    WEIGHTS,
    Name,
    harmless,
    parsed,
)
from gramnorm.report.files.obstacles import (
    BILINEAR,
    GATE,
    NOT_UNDERSTOOD,
    SECOND,
    embeds,
    normalises,
    obstacle,
    recurs,
    second_network,
)
from gramnorm.report.files.tensors import Numbers

_SAY = "state it with --layers or --layout"
_PYTORCH = re.compile(r"(.*[._])?(num_batches_tracked|weight_(ih|hh)(_l\d+)?|in_proj_weight)")
_GIVEN = re.compile(r"arr_\d+")  # what np.savez calls arrays without names
_UPSAMPLING = re.compile(r".*(transpose|deconv|upsampl|(^|_)up($|_|\d)).*")


@dataclass(frozen=True)
class _NoLayer:
    """Where among the contents an array is listed that is no row, and why."""

    place: str
    reason: str


_passed = functools.partial(_NoLayer, "skipped")  # changes no Lipschitz constant
_refused = functools.partial(_NoLayer, "failed")  # a layer's weight that cannot be used as it is
_unknown = functools.partial(_NoLayer, "obstacles")  # no weight of a layer, as far as is known

_Verdict = Layer | _NoLayer


def understood(
    stored: Stored, *, stated: Collection[str] = (), layout: str | None = None
) -> Contents:
    """
    Decide what each array of a file is.

    Parameters
    ----------
    stored : Stored
        The arrays as a reader found them.
    stated : collection of str
        Names that a description calls layers.
    layout : str or None
        How kernels are stored, if the user says it.

    Returns
    -------
    Contents
        Layers, entries that are none, layers whose values cannot be had, and what stands in the way
        of a product.
    """
    return _File(stored, frozenset(stated), layout).contents()


class _File:
    """The arrays of one file, with what their names say."""

    def __init__(self, stored: Stored, stated: frozenset[str], layout: str | None) -> None:
        self.stored = stored
        self.stated = stated
        self.names = {text: parsed(text) for text in (*stored.arrays, *stored.unusable)}
        self.counts = Counter(self.names[text] for text in stored.arrays)  # "B.weight", "b.weight"
        self.by_name = {
            self.names[text]: text for text in stored.arrays if self.counts[self.names[text]] == 1
        }
        self.asked = layout
        pytorch = any(_PYTORCH.fullmatch(text) for text in self.names)
        self.known = layout or stored.layout or ("oihw" if pytorch else None)
        self.norms = self._batch_norms()
        self.norm_paths = {self.names[text].path for text in self.norms}
        kernels = [
            readings(values.shape)
            for text, values in stored.arrays.items()
            if values.ndim > 2 and self.names[text].word in WEIGHTS - OF_TENSORFLOW
        ]
        self.votes = frozenset().union(*(votes for votes in kernels if len(votes) == 1))
        self.given = self._given()
        self.unconfirmed: list[str] = []  # kernels read as oihw for want of another sign

    def contents(self) -> Contents:
        """Return what each entry is."""
        stored = self.stored
        found = Contents(
            skipped=dict(stored.others), failed=dict(stored.unusable), notes=list(stored.notes)
        )
        for text, values in stored.arrays.items():
            verdict = self._verdict(text, values)
            if isinstance(verdict, _NoLayer):
                getattr(found, verdict.place)[text] = verdict.reason
                if verdict.place == "obstacles":
                    found.spare.extend(self._spare(text, values))
                continue
            found.layers.append(verdict)
            if text in self.given:
                found.obstacles[text] = "arrays by themselves, which nothing calls layers"
        for text, name in self.names.items():
            if text in found.failed or text in found.skipped:
                continue
            reason = obstacle(name) or (GATE if self._squeezes(name) else None)
            if reason is not None:
                found.obstacles[text] = reason
        second = [layer.name for layer in found.layers if second_network(self.names[layer.name])]
        if len(second) < len(found.layers):  # else it is the only one
            found.obstacles.update(dict.fromkeys(second, SECOND))
        found.notes.extend(self._notes(found.layers))
        return found

    def _notes(self, layers: list[Layer]) -> list[str]:
        """Return how kernels were read, where that was not as they are shown or not certain."""
        notes = []
        for layout in ("hwio", "ohwi"):
            moved = [layer.name for layer in layers if layer.layout == layout]
            if moved:
                notes.append(
                    f"read as {axes_in(layout)}, shown as {axes_in('oihw')}: {', '.join(moved)}"
                )
        if self.unconfirmed and self.votes != {"oihw"}:
            notes.append(
                f"read as {axes_in('oihw')}, which nothing in the file confirms (--layout says otherwise): "
                f"{', '.join(self.unconfirmed)}"
            )
        return notes

    # Batch normalisation.

    def _batch_norms(self) -> dict[str, Layer | None]:
        """Return the layer by the name of its scale (else its variance), None by the others."""
        found: dict[str, Layer | None] = {}
        for text, values in self.stored.arrays.items():
            name = self.names[text]
            mean = self._companion(name, MEANS)
            if name.word not in VARIANCES or values.ndim != 1 or mean is None:
                continue
            if self.stored.arrays[mean].shape != values.shape:
                continue
            scale = self._companion(name, SCALES)
            if scale is None and not self._is_whole(name):
                continue
            found |= dict.fromkeys((text, mean))
            row = text if scale is None else scale
            gamma = (
                np.ones(values.shape, values.dtype) if scale is None else self.stored.arrays[scale]
            )
            found[row] = Layer(row, gamma, variance=values)
        return found

    def _companion(self, name: Name, words: tuple[str, ...]) -> str | None:
        """Return the array of the same layer that has one of these last words."""
        texts = (self.by_name.get(Name(name.path, word)) for word in words)
        return next((text for text in texts if text is not None), None)

    def _is_whole(self, variance: Name) -> bool:
        """Say whether a variance without a scale is a batch norm's, and not a distribution's."""
        path = variance.path
        doubled = any(self.counts[Name(path, word)] > 1 for word in SCALES)
        unusable = any(self.names[text].path == path for text in self.stored.unusable)
        return not (doubled or unusable) and (variance.word != "var" or normalises(variance))

    # One array.

    def _verdict(self, text: str, values: Numbers) -> _Verdict:
        """Return what an array is."""
        name = self.names[text]
        if text in self.norms:
            return self.norms[text] or _passed("statistics of a batch norm, which has a row")
        if text in self.stated and values.ndim > 1:
            return self._weight(text, values)
        if values.dtype.kind in "iub":
            verdict = self._of_integers(name, values)
        elif values.ndim < 2:
            verdict = self._of_vectors(text, values)
        else:
            verdict = self._of_matrices(text, values)
        is_unknown = isinstance(verdict, _NoLayer) and verdict.place == "obstacles"
        if is_unknown and text in self.given:
            if values.ndim == 2 or (values.ndim > 2 and self.asked):
                return self._layer(text, values, self.asked or "oihw")
            return _unknown(f"an array of {values.ndim} axes: if it is a kernel, {_SAY}")
        return verdict

    def _given(self) -> Collection[str]:
        """Return the names of arrays that the user put there by themselves."""
        arrays = self.stored.arrays
        if len(arrays) == 1 and not self.stored.unusable:
            (text,) = arrays
            return () if self.names[text].word in WEIGHTS or text in self.stated else (text,)
        return [text for text in arrays if _GIVEN.fullmatch(text) and text not in self.stated]

    def _spare(self, text: str, values: Numbers) -> list[Layer]:
        """Return the layer that an array would be by --include."""
        if values.ndim < 2 or values.dtype.kind not in "fc":
            return []
        layout = self.known or ("hwio" if self.names[text].word in OF_TENSORFLOW else "oihw")
        return [self._layer(text, values, layout)]

    def _of_vectors(self, text: str, values: Numbers) -> _Verdict:
        """Return what an array of floats with one axis or none is."""
        name = self.names[text]
        reason = harmless(text, values.ndim)
        if reason is None:
            return _unknown(self._about_scale(name))
        shifts = name.word in BIASES and name.path not in self.norm_paths
        if shifts and normalises(name):
            return _unknown("a shift of a layer, group or RMS norm, say, without a scale")
        if shifts and name.word == "beta" and self._companion(name, SCALES) is None:
            return _unknown("called beta beside no gamma: a shift, or a factor")
        if name.indices and not np.all(np.equal(values, np.round(np.asarray(values)))):
            return _unknown(f"{NOT_UNDERSTOOD}: neither a counter nor indices")
        return _passed(reason)

    @staticmethod
    def _about_scale(name: Name) -> str:
        if name.word in SCALES:
            return "a scale without a stored variance, of a layer, group or RMS norm, say"
        return NOT_UNDERSTOOD

    @staticmethod
    def _of_integers(name: Name, values: Numbers) -> _Verdict:
        counts = values.dtype.kind != "b"
        if counts and (name.indices or values.ndim == 0):
            return _passed("a counter, or indices")
        if counts and name.word in WEIGHTS and values.ndim > 1:
            return _refused(
                f"integers ({values.dtype}): the weights of a quantised layer are scaled by what stands elsewhere; "
                "save them as floats"
            )
        return _unknown(f"{NOT_UNDERSTOOD}, of {'integers' if counts else 'booleans'}")

    def _of_matrices(self, text: str, values: Numbers) -> _Verdict:
        """Return what an array of floats with two or more axes is."""
        name = self.names[text]
        if embeds(name) and values.ndim == 2:
            return _unknown("an embedding, a table that is looked up")
        if name.word not in WEIGHTS:
            return _unknown(NOT_UNDERSTOOD)
        if recurs(name) or self.counts[Name(name.path, "recurrent_kernel")]:
            return _unknown("a recurrent layer, which is passed as often as there are steps")
        if normalises(name):
            return _unknown(self._about_scale(Name((), "scale")))
        if name.path[-1:] == ("in_proj",) and text.lower().endswith("in_proj_weight"):
            return _unknown("attention, which multiplies what it computes of its input")
        bias = self._bias(name)
        if bias is not None and bias.ndim != 1:
            return _unknown(f"{NOT_UNDERSTOOD}, beside a bias of shape {bias.shape}")
        attention = (obstacle(name) or "").startswith("attention")
        if values.ndim > 2 and attention and not self._convolves(name):
            return _unknown(f"{NOT_UNDERSTOOD}, of {values.ndim} axes in attention")
        return self._weight(text, values)

    def _bias(self, name: Name) -> Numbers | None:
        """Return the bias of a layer's weight, if it has one of its own."""
        text = self._companion(name, BIASES[:-1])
        shared = (
            name.word == "depthwise_kernel" and Name(name.path, "pointwise_kernel") in self.by_name
        )
        return None if text is None or shared else self.stored.arrays[text]

    def _squeezes(self, name: Name) -> bool:
        """Say whether this is ``fc1`` or ``fc2`` of a squeeze and excitation.

        These are the names of torchvision. Both have one tap, and the first has fewer outputs than
        inputs; that of a perceptron has
        more.
        """
        if name.path[-1:] not in (("fc1",), ("fc2",)):
            return False

        def shape(fc: str) -> tuple[int, ...]:
            text = self.by_name.get(Name((*name.path[:-1], fc), name.word))
            return () if text is None else self.stored.arrays[text].shape

        squeeze, excite = shape("fc1"), shape("fc2")
        rows, columns = squeeze[:2] if len(squeeze) == 4 else (0, 0)
        return rows < columns and squeeze[2:] == (1, 1) and excite == (columns, rows, 1, 1)

    @staticmethod
    def _convolves(name: Name) -> bool:
        return any("conv" in part for part in name.parts)

    # Weights.

    def _weight(self, text: str, values: Numbers) -> _Verdict:
        """Return a layer, or what contradicts it."""
        name, bias = self.names[text], self._bias(self.names[text])
        length = len(bias) if bias is not None and bias.ndim == 1 else None
        if values.dtype.kind not in "fc" and text not in self.stated:
            return self._of_integers(name, values)
        if values.ndim == 2:
            if length is not None and length not in values.shape:
                return _refused(
                    f"its bias has {length} entries, which fits no side of {values.shape}"
                )
            named = name.path[-1] if name.path else name.word
            if text not in self.stated and re.fullmatch(r"(.*_)?conv(\dd)?[_\d]*", named):
                return _refused(
                    f"a matrix of shape {values.shape} under the name of a convolution: the norm of a reshaped kernel "
                    'is another one; if the layer is dense, say "kind": "dense" with --layers'
                )
            return self._layer(text, values, "oihw")
        layout = self.known or ("hwio" if name.word in OF_TENSORFLOW else "oihw")
        if reason := self._against(text, values, layout, length):
            return _refused(reason)
        return self._layer(text, values, layout)

    def _against(self, text: str, values: Numbers, layout: str, length: int | None) -> str | None:
        """Return what speaks against reading a kernel in this order of its axes."""
        name, shape = self.names[text], values.shape
        votes = readings(shape)
        if not self.asked and self.known in ("oihw", "ohwi") and name.word in OF_TENSORFLOW:
            return f"named as Flax and Keras name kernels, in a file of the layout {self.known}: {_SAY}"
        if self.known is None and layout not in votes:
            return f"of shape {shape}, which is no likely kernel {axes_in(layout)}: say with --layout how it is stored"
        doubtful = self.known is None and text not in self.stated
        if doubtful and len(votes) > 1 and self._outvoted(name):
            return f"other kernels in the file are no likely ones {axes_in(layout)}: {_SAY}"
        if doubtful and layout == "oihw" and votes != {"oihw"}:
            self.unconfirmed.append(text)
        sure = self.asked or text in self.stated or self._convolves(name)
        likely = votes == {"oihw"} and layout == "oihw" and obstacle(name) != BILINEAR
        if values.ndim == 3 and not sure and not likely:
            return (
                f"of three axes {shape}: a kernel in one dimension, or a stack of matrices? {_SAY}"
            )
        up = votes == {"oihw"} or self.known == "oihw" or self._upsamples(name)
        if length is not None and not bias_fits(shape, layout, length, transposed=up):
            return f"its bias has {length} entries, so it is no kernel {axes_in(layout)} of shape {shape}: {_SAY}"
        return None

    def _outvoted(self, name: Name) -> bool:
        """Say whether other kernels of the file are clearly stored in another order."""
        return name.word not in OF_TENSORFLOW and not self.votes <= {"oihw"}

    @staticmethod
    def _upsamples(name: Name) -> bool:
        return any(_UPSAMPLING.fullmatch(part) for part in name.parts)

    def _layer(self, text: str, values: Numbers, layout: str) -> Layer:
        """Return the layer with its kernel in the order of this package."""
        if values.ndim == 2:
            return Layer(text, values)
        if layout == "hwio" and self.names[text].word == "depthwise_kernel":
            # (*spatial, c, m), output c m + j of input c: c groups of m outputs each
            channels = values.shape[-2]
            kernel = to_oihw(values.reshape(*values.shape[:-2], 1, -1), layout)
            return Layer(text, kernel, groups=channels, stored_shape=values.shape, layout=layout)
        return Layer(text, to_oihw(values, layout), stored_shape=values.shape, layout=layout)
