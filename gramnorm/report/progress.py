"""A progress bar for those who wait: how many layers are done, and about how long the others take.

On a terminal, for work that takes a while, and gone when it is done.  Time is foretold by the work
that a layer is, since one may be a thousand times another; layers known from before count as none.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from gramnorm.report.files.contents import Layer, printable
from gramnorm.report.limits import LONG
from gramnorm.report.work import cost


class Progress:
    """
    What is shown.

    Parameters
    ----------
    bar : rich.progress.Progress or None
        Where; None shows nothing.
    layers : sequence of Layer
        The work.
    """

    def __init__(self, bar: Any, layers: Sequence[Layer]) -> None:
        self._bar = bar
        self._lock = threading.Lock()
        self._done, self._total = 0, sum(map(cost, layers))
        if bar is not None:
            self._task = bar.add_task("", total=self._total, done=0, count=len(layers))

    def begin(self, layer: Layer) -> None:
        """Name the layer that is worked on."""
        if self._bar is not None:
            text = printable(layer.name).replace("[", r"\[")  # a name may look like markup
            self._bar.update(self._task, description=text)

    def end(self, layer: Layer, *, again: bool) -> None:
        """Count a layer; `again` if it was known."""
        if self._bar is None:
            return
        with self._lock:
            self._done += 1
            self._total -= cost(layer) * again
            advance = cost(layer) * (not again)
            self._bar.update(self._task, total=self._total, advance=advance, done=self._done)


@contextlib.contextmanager
def progress(layers: Sequence[Layer], stream: IO[str]) -> Iterator[Progress]:
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
    Progress
        To be told of each layer before and after the work on it.
    """
    bar = None
    if stream.isatty() and sum(layer.weight.size for layer in layers) >= LONG:
        with contextlib.suppress(ImportError):  # JSON and CSV do without rich
            bar = _bar(stream)
    with bar or contextlib.nullcontext():
        yield Progress(bar, layers)


@contextlib.contextmanager
def searching(layers: Sequence[Layer], stream: IO[str]) -> Iterator[Callable[[str], None]]:
    """
    Show which chain of these layers is looked at, if somebody is there to see it.

    Parameters
    ----------
    layers : sequence of Layer
        The layers.
    stream : text file
        Where to show it.

    Yields
    ------
    callable
        To be called with the names of the layers of a chain before the work on it.
    """
    bar = None
    if stream.isatty() and sum(layer.weight.size for layer in layers) >= LONG:
        with contextlib.suppress(ImportError):
            import rich.console  # noqa: PLC0415
            import rich.progress  # noqa: PLC0415

            console = rich.console.Console(file=stream)
            bar = rich.progress.Progress(console=console, transient=True)
    if bar is None:
        yield lambda _: None
        return
    with bar:
        task = bar.add_task("", total=None)
        yield lambda names: bar.update(task, description=printable(names).replace("[", r"\["))


def _bar(stream: IO[str]) -> Any:
    """Return a bar of rich."""
    import rich.console  # noqa: PLC0415
    import rich.progress as shown  # noqa: PLC0415

    return shown.Progress(
        shown.TextColumn("{task.description}"),
        shown.BarColumn(),
        shown.TextColumn("{task.fields[done]}/{task.fields[count]}, left"),
        shown.TimeRemainingColumn(),
        console=rich.console.Console(file=stream),
        transient=True,
        speed_estimate_period=3600,  # a layer may take a minute, and the speed is that of several
    )
