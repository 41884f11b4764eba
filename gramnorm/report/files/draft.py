"""The entries of a file while it is found out what belongs together.

A weight that is stored in parts, under a name with a suffix each, leaves the draft in one of two
ways: folded, under the name that the plain layer would have and in the place of its first part, or
refused under that name.  Either way its parts are listed beside the layers, and no part is left
that could be taken for a layer by itself.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from gramnorm.report.files.contents import Stored, check_total
from gramnorm.report.files.folds import Fold, NotFoldableError, Numbers


class Draft:
    """
    The entries, sorted anew.

    Parameters
    ----------
    stored : Stored
        As a reader found them; it is not changed.
    """

    def __init__(self, stored: Stored) -> None:
        self.notes = list(stored.notes)
        self._arrays = dict(stored.arrays)
        self._unusable = dict(stored.unusable)
        self._others = dict(stored.others)
        self._folds: dict[str, tuple[str, float]] = {}
        self._layout = stored.layout
        self._place = {name: place for place, name in enumerate(stored.arrays)}
        self._bytes = 0

    def __iter__(self) -> Iterator[str]:
        """Return the names of all entries but folded ones."""
        names = (*self._arrays, *self._unusable, *self._others)
        return iter([name for name in names if name not in self._folds])

    def __contains__(self, name: str) -> bool:
        return any(name in entries for entries in (self._arrays, self._unusable, self._others))

    def has_weight(self, name: str) -> bool:
        """Say whether this is an array that may be the weight of a layer."""
        values = self._arrays.get(name)
        return name in self._unusable or (values is not None and values.ndim > 1)

    def is_integer(self, name: str) -> bool:
        """Say whether this is an array of integers that may be the weight of a layer."""
        values = self._arrays.get(name)
        return values is not None and values.ndim > 1 and values.dtype.kind in "iu"

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of an array, None if its values cannot be had."""
        values = self._arrays.get(name)
        return None if values is None else values.shape

    def numbers(self, name: str) -> Numbers:
        """Return the values of a part, or raise NotFoldableError."""
        values = self._arrays.get(name)
        if values is None:
            reason = self._unusable.get(name) or self._others.get(name) or "it is not in the file"
            msg = f"of its part {name!r} there are no values: {reason}"
            raise NotFoldableError(msg)
        self._bytes += 8 * values.size  # folds are of float64
        check_total(self._bytes)
        return np.asarray(values)

    def aside(self, names: Iterable[str], reason: str) -> None:
        """List entries as no layers."""
        for name in names:
            self._drop(name)
            self._others[name] = reason

    def refuse(self, root: str, parts: Iterable[str], kind: str, reason: str) -> None:
        """List the layer `root` as one without values; a bias is none."""
        parts = [part for part in parts if part != root]
        is_bias = root.lower().endswith("bias") and not any(map(self.has_weight, [root, *parts]))
        self.aside(parts, f"part of {root} ({kind})")
        if not is_bias:
            self._drop(root)
            self._unusable[root] = f"{kind}: {reason}"

    def fold(self, root: str, parts: Iterable[str], word: str, fold: Fold) -> None:
        """Put the weight in the place of the first of its parts, which are arrays."""
        first, *others = parts
        self._place[root] = self._place[first]
        self.aside([*others, first], f"part of {root} ({word})")
        self._arrays[root] = fold.weight
        self._folds[root] = word, fold.error

    def stored(self) -> Stored:
        """Return the entries as they are sorted now."""
        names = sorted(self._arrays, key=self._place.__getitem__)
        return Stored(
            {name: self._arrays[name] for name in names},
            self._unusable,
            self._others,
            self.notes,
            layout=self._layout,
            folds=self._folds,
        )

    def _drop(self, name: str) -> None:
        for entries in (self._arrays, self._unusable, self._others, self._folds):
            entries.pop(name, None)
