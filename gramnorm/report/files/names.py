"""What the name of an array says about it.

A name is a path, in the words of its framework: ``layer1.0.bn1.running_var``,
``params/Conv_0/kernel``, ``conv2d/kernel:0``, ``fc1_weight``.  Its last word says what the array is
to its layer, the path before it which layer that is: arrays with the same path are companions, such
as a kernel and its bias.  Words are compared in lower case.
"""

import re
from dataclasses import dataclass

OF_TENSORFLOW = frozenset({"kernel", "depthwise_kernel", "pointwise_kernel"})
"""Last words with which Flax, Keras and TensorFlow name a kernel, its channels last."""

WEIGHTS = OF_TENSORFLOW | {"weight", "weights", "w", "filter", "filters", "layer"}
"""Last words of a layer's weight; "layer" stands for a whole name such as ``conv1`` or ``fc2``."""

BIASES = ("bias", "biases", "b", "offset", "beta")
SCALES = ("gamma", "scale", "weight", "g")
VARIANCES = ("running_var", "moving_variance", "var")
MEANS = ("running_mean", "moving_mean", "mean")

_COUNTERS = ("num_batches_tracked",)
_WORDS = sorted(
    {*WEIGHTS, *BIASES, *SCALES, *VARIANCES, *MEANS, *_COUNTERS, "recurrent_kernel"} - {"layer"}
)
_LAST = re.compile(rf"(?:(?P<path>.+?)_)??(?P<word>{'|'.join(_WORDS)})(?:_?(?P<number>\d+))?")
_PLAIN = re.compile(
    r"(.*_)?(conv|convolution|dense|fc|lin|linear|layer|hidden|proj|head|out|output)(\dd)?[_\d]*"
)
_INDICES = re.compile(r"(.*_)?(ids|index|indices|num_batches_tracked|steps?|epoch)")
_COLLECTIONS = frozenset({"params", "batch_stats", "~"})  # the same layer has a path in each


@dataclass(frozen=True)
class Name:
    """The path to a layer, and the word that says what an array is to it."""

    path: tuple[str, ...]
    word: str

    @property
    def parts(self) -> tuple[str, ...]:
        """All of it."""
        return (*self.path, self.word)

    @property
    def indices(self) -> bool:
        """Whether it is a name of indices or of a counter."""
        return _INDICES.fullmatch(self.word) is not None


def parsed(text: str) -> Name:
    """
    Return the path and the last word of a name.

    Parameters
    ----------
    text : str
        The name of an array, with dots, slashes or brackets between its parts.

    Returns
    -------
    Name
        In lower case; the word of a whole name such as ``conv1`` is "layer".
    """
    text = re.sub(r":\d+$", "", text.lower())  # TensorFlow counts the outputs of an operation
    # a flattened tree may have tuples of keys as its names: ('params', 'Dense_0', 'kernel')
    parts = [p.strip("(), ") for p in re.split(r"[./\\|'\"\[\]]+", text)]
    parts = [p for p in parts if p and p not in _COLLECTIONS]
    if len(parts) > 1 and parts[-1] in ("value", "raw_value") and _LAST.fullmatch(parts[-2]):
        parts.pop()  # of Flax NNX: the array of a variable
    if not parts:
        return Name((), "")
    *path, last = parts
    if found := _LAST.fullmatch(last):
        within = (found["path"], found["number"])
        return Name((*path, *(part for part in within if part)), found["word"])
    if not path and _PLAIN.fullmatch(last):
        return Name((last,), "layer")
    return Name(tuple(path), last)


def harmless(text: str, axes: int) -> str | None:
    """
    Return why an array changes no Lipschitz constant, or None if its name does not say so.

    Parameters
    ----------
    text : str
        Its name.
    axes : int
        How many axes it has.

    Returns
    -------
    str or None
        The reason in words.
    """
    name = parsed(text)
    if axes > 1:
        return None
    if name.word in BIASES:
        return "1-D: taken for a bias, which does not change a Lipschitz constant"
    if name.word in ("running_mean", "moving_mean"):
        return "1-D: a mean, which is subtracted"
    return "a counter, or indices" if name.indices else None
