"""A progress bar for those who wait.

On a terminal, for work that takes a while, and gone when it is done.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from gramnorm.report.files.contents import Layer, printable
from gramnorm.report.limits import LONG


@contextlib.contextmanager
def progress(layers: Sequence[Layer], stream: IO[str]) -> Iterator[Callable[[str], None]]:
    """
    Show how many layers are done, if somebody is there to see it.

    Parameters
    ----------
    layers : sequence of Layer
        The work.
    stream : text file
        Where to show it: the standard error stream, which holds no results.

    Yields
    ------
    callable
        To be called with the name of each layer before the work on it.
    """
    bar = None
    if stream.isatty() and sum(layer.weight.size for layer in layers) >= LONG:
        with contextlib.suppress(ImportError):  # JSON and CSV do without rich
            import rich.console  # noqa: PLC0415
            import rich.progress  # noqa: PLC0415

            columns = rich.progress.Progress.get_default_columns()
            console = rich.console.Console(file=stream)
            bar = rich.progress.Progress(*columns, console=console, transient=True)
    if bar is None:
        yield lambda _: None
        return
    with bar:
        task = bar.add_task("", total=len(layers), completed=-1)

        def step(name: str) -> None:
            text = printable(name).replace("[", r"\[")  # a name may look like markup
            bar.update(task, description=text, advance=1)

        yield step
