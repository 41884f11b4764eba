"""Dicts within dicts, as checkpoints have them, without trusting their shape.

A dict may hold itself, or the same dict twice at each of many levels, so that few bytes have
endless paths: depth and visits are limited, and nothing is called recursively.
"""

from collections.abc import Callable, Collection
from typing import Any

from gramnorm.report.files.contents import ReadError, printable
from gramnorm.report.limits import MAX_DEPTH, MAX_VISITS, NAMES_SHOWN

WHOLE = "."
"""The entry that is all of the file."""

Path = tuple[str, ...]


def leaves(tree: Any, is_inner: Callable[[str, Any], bool]) -> list[tuple[Path, Any]]:
    """
    Return what stands at the ends of nested dicts, in order, each with the keys that lead to it.

    Parameters
    ----------
    tree : dict
        The outermost.
    is_inner : callable
        Says of a key and its value whether to look into the value, which is a dict.

    Returns
    -------
    list of (tuple of str, object)
        Paths and ends.

    Raises
    ------
    ReadError
        If the dicts are nested too deep, or in themselves, or have too many entries, or two keys
        are the same text.
    """
    found = []
    rest: list[tuple[Path, Any]] = [((), tree)]
    visits = 0
    while rest:
        path, value = rest.pop()
        visits += 1
        if visits > MAX_VISITS:
            msg = f"its nested dicts have more than {MAX_VISITS} entries"
            raise ReadError(msg)
        if path and not (isinstance(value, dict) and is_inner(path[-1], value)):
            found.append((path, value))
        elif len(path) > MAX_DEPTH:
            msg = f"its dicts are nested more than {MAX_DEPTH} deep, or in themselves"
            raise ReadError(msg)
        else:
            inside = {str(key): inner for key, inner in value.items()}
            if len(inside) < len(value):
                msg = "two entries have the same name: a number and its digits"
                raise ReadError(msg)
            rest.extend(((*path, key), inner) for key, inner in reversed(inside.items()))
    return found


def chosen(paths: Collection[Path], candidates: Collection[Path], entry: str | None) -> Path:
    """
    Return the dict to read, by the keys that lead to it.

    Parameters
    ----------
    paths : collection of tuple of str
        Of all dicts.
    candidates : collection of tuple of str
        Of the dicts that hold weights themselves.
    entry : str or None
        What the user asks for: keys with dots between, or `WHOLE`.

    Returns
    -------
    tuple of str
        One of the paths.

    Raises
    ------
    ReadError
        If there are several candidates and no choice, or none of that name.
    """
    if entry is None and len(candidates) < 2:
        return next(iter(candidates), ())
    inner = sorted(candidates, key=lambda path: not path)  # the whole last
    names = ", ".join(printable(".".join(path)) or "the whole" for path in inner[:NAMES_SHOWN])
    names += ", ..." * (len(inner) > NAMES_SHOWN)
    if entry is None:
        first = printable(".".join(inner[0]))
        msg = (
            f"it holds several dicts of tensors ({names}): choose one, such as --entry {first!r}, "
            f"or all together with --entry {WHOLE}"
        )
        raise ReadError(msg)
    found = [path for path in paths if (".".join(path) or WHOLE) == entry]
    if len(found) != 1:
        msg = f"it holds {len(found) or 'no'} dicts called {entry!r}; those with weights are {names or 'none'}"
        raise ReadError(msg)
    return found[0]


def picked(
    ends: list[tuple[Path, Any]], prefix: Path, separator: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Return what is in a dict by its name, and why what stands beside it is left out.

    Parameters
    ----------
    ends : list of (tuple of str, object)
        As `leaves` finds them.
    prefix : tuple of str
        The keys that lead to the dict.
    separator : str
        What stands between keys in a name.

    Returns
    -------
    dict of str to object
        The ends within the dict.
    dict of str to str
        The outermost of those beside it.

    Raises
    ------
    ReadError
        If two ends within have the same name.
    """
    own: dict[str, Any] = {}
    beside: dict[str, str] = {}
    for path, value in ends:
        if path[: len(prefix)] == prefix:
            name = separator.join(path[len(prefix) :])
            if name in own:
                msg = f"two entries have the same name, {printable(name)!r}"
                raise ReadError(msg)
            own[name] = value
        else:
            shared = next(i for i, key in enumerate(prefix) if path[i : i + 1] != (key,))
            beside[separator.join(path[: shared + 1])] = f"beside the entry {'.'.join(prefix)!r}"
    return own, {name: reason for name, reason in beside.items() if name not in own}
