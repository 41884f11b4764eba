"""The entries of a file while it is found out what belongs together.

A weight that is stored in parts, under a name with a suffix each, leaves the draft in one of two ways: folded, under
the name that the plain layer would have and in the place of its first part, or refused under that name.  Either way its
parts are listed beside the layers, and no part is left that could be taken for a layer by itself.
"""

from collections.abc import Iterable, Iterator

from gramnorm.report.contents import Stored
from gramnorm.report.folds import Fold, NotFoldableError, Numbers

__all__ = ["Draft"]


class Draft:
    """
    The entries, sorted anew.

    Parameters
    ----------
    stored : Stored
        As a reader found them; it is not changed.
    """

    def __init__(self, stored: Stored) -> None:
        self.arrays = dict(stored.arrays)
        self.unusable = dict(stored.unusable)
        self.others = dict(stored.others)
        self.notes = list(stored.notes)
        self._words = dict(stored.words)
        self._errors = dict(stored.errors)
        self._places: dict[str, str] = {}  # first part, where the fold is kept: its new name

    def __iter__(self) -> Iterator[str]:
        """Return the names of all entries that are not yet sorted out."""
        taken = self._places
        return iter([n for n in (*self.arrays, *self.unusable, *self.others) if n not in taken])

    def __contains__(self, name: str) -> bool:
        return name in self.arrays or name in self.unusable or name in self.others

    def has_weight(self, name: str) -> bool:
        """Say whether this is an array that may be the weight of a layer."""
        return name in self.unusable or (name in self.arrays and self.arrays[name].ndim > 1)

    def is_integer(self, name: str) -> bool:
        """Say whether this is an array of integers that may be the weight of a layer."""
        return (
            self.has_weight(name) and name in self.arrays and self.arrays[name].dtype.kind in "iu"
        )

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of an array, None if its values cannot be had."""
        return self.arrays[name].shape if name in self.arrays else None

    def numbers(self, name: str) -> Numbers:
        """Return the values of a part, or raise NotFoldableError."""
        if name not in self.arrays:
            reason = self.unusable.get(name) or self.others.get(name) or "it is not in the file"
            msg = f"of its part {name!r} there are no values: {reason}"
            raise NotFoldableError(msg)
        return self.arrays[name]

    def aside(self, names: Iterable[str], reason: str) -> None:
        """List entries as no layers."""
        for name in names:
            self.arrays.pop(name, None)
            self.unusable.pop(name, None)
            self.others[name] = reason

    def refuse(self, root: str, parts: Iterable[str], kind: str, reason: str) -> None:
        """List the layer `root` as one without values; a bias is none."""
        parts = [part for part in parts if part != root]
        is_bias = root.lower().endswith("bias") and not any(map(self.has_weight, [root, *parts]))
        self.aside(parts, f"part of {root} ({kind})")
        if is_bias:
            return
        self.aside([root], "")
        del self.others[root]
        self.unusable[root] = f"{kind}: {reason}"

    def fold(self, root: str, parts: list[str], word: str, fold: Fold) -> None:
        """Put the weight in the place of its parts."""
        first = next(name for name in self.arrays if name in parts)
        self.aside([part for part in parts if part != first], f"part of {root} ({word})")
        self.others[first] = f"part of {root} ({word})"
        self.arrays[first] = fold.weight
        self._places[first] = root
        self._words[root] = word
        self._errors[root] = fold.error

    def stored(self) -> Stored:
        """Return the entries as they are sorted now."""
        arrays = {self._places.get(name, name): values for name, values in self.arrays.items()}
        return Stored(arrays, self.unusable, self.others, self.notes, self._words, self._errors)
