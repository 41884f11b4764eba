"""Why mutants of `mutations` may survive: a part of their keys, and the argument."""

ARGUMENTS: tuple[tuple[str, str], ...] = ()
