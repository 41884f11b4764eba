"""The layers of a report bounded by the workers of a Dask cluster.

Each layer is a task.  What is sent is where its array lies (`gramnorm.report.files.tensors`), and
workers read it from the file themselves, once it has the size and the time that the header had here;
an array that is in memory is sent along up to a size, and a larger one is bounded here.  A task runs
in one thread, as it would here, so its bits are those of a report without a cluster; one whose worker
is lost runs again elsewhere.
"""

import contextlib
import importlib
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import libraries, threads
from gramnorm.report import Row, failed_row
from gramnorm.report.files.contents import Layer, ReadError, one_line
from gramnorm.report.files.tensors import File, Tensor, in_memory
from gramnorm.report.limits import AHEAD, SHIPPED_BYTES, WAIT
from gramnorm.report.options import version
from gramnorm.report.table import MissingPackageError
from gramnorm.report.work import How, Known, Outcome, outcome

__all__ = ["ClusterError", "bound_layers"]


class ClusterError(ReadError):
    """A cluster that cannot bound layers; its text is one line for the user."""


def bound_layers(
    client: Any,
    layers: Sequence[Layer],
    *,
    input_shape: tuple[int, ...] | str | None = None,
    padding_mode: str | None = None,
    rtol: float | None = None,
) -> Iterator[tuple[int, Row]]:
    """
    Yield a lower and an upper bound on the spectral norm of each layer, bounded on a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        Connected to the cluster.
    layers : sequence of Layer
        Those of `gramnorm.report.files.several.read_paths`, for instance. Workers read the arrays
        of safetensors files, from the same paths; others are sent to them.
    input_shape : tuple of int, "file" or None
        As in `gramnorm.report.bound_layer`.
    padding_mode : str or None
        As there.
    rtol : float or None
        As there.

    Yields
    ------
    which : int
        The number of a layer, in the order in which they are finished.
    row : Row
        Its row, that of `gramnorm.report.bound_layer`, or the reason why there is none.

    Raises
    ------
    ClusterError
        If the cluster has no workers, they have other versions, or cannot read a file as it is here.

    Notes
    -----
    **Guarantee.** That of `gramnorm.report.bound_layer`, on processors that keep to IEEE 754. Where
    workers have the same processor and libraries as this machine, every bit is that of a report on
    several layers here. A worker that is lost costs the layer it was at, which is bounded again by
    another; a layer with which several workers are lost has a row without a bound.

    Examples
    --------
    >>> from gramnorm.report.cluster import bound_layers
    >>> from gramnorm.report.files.several import read_paths
    >>> def largest(client, *paths):
    ...     layers = read_paths(paths).layers
    ...     return max(row.upper for _, row in bound_layers(client, layers))
    """
    how = How(input_shape=input_shape, padding_mode=padding_mode, rtol=rtol)
    for which, found in outcomes(client, layers, how, lambda _: None):
        yield which, found.row


def outcomes(
    client: Any, layers: Sequence[Layer], how: How, known: Callable[[Layer], Known | None]
) -> Iterator[tuple[int, Outcome]]:
    """
    Yield the number of each layer and its outcome, as they come.

    Parameters
    ----------
    client : distributed.Client
        Connected to the cluster.
    layers : sequence of Layer
        The layers.
    how : How
        The options.
    known : callable
        Called with a layer: what `gramnorm.report.work.outcome` gets.

    Yields
    ------
    tuple
        The number of a layer, and its `Outcome`.
    """
    _check(client, layers)
    sent = [which for which, layer in enumerate(layers) if _bytes(layer) <= SHIPPED_BYTES]
    at_work: dict[Any, int] = {}
    running = _distributed().as_completed(loop=client.loop)
    session = uuid.uuid4().hex
    blamed: list[int] = []
    try:
        left = iter(sent)
        while True:
            room = AHEAD * max(1, sum(client.nthreads().values())) - len(at_work)
            for _, which in zip(range(room), left, strict=False):  # in this order: none is lost
                future = _submitted(client, layers[which], how, known, f"{session}-{which}")
                at_work[future] = which
                running.add(future)
            if not at_work:
                break
            future = next(running)
            which = at_work.pop(future)
            if _is_blamed(future):
                blamed.append(which)
            else:
                yield which, _result(future, layers[which])
        # a task is blamed for workers that were lost while it waited there: each once more, alone
        for which in blamed:
            future = _submitted(client, layers[which], how, known, f"{session}-{which}-alone")
            at_work[future] = which
            yield which, _result(future, layers[which])
    finally:
        client.cancel(list(at_work))
    for which in sorted({*range(len(layers))} - {*sent}):
        (found,) = threads.shared(lambda layer: outcome(layer, how, known(layer)), [layers[which]])
        yield which, found


def _distributed() -> Any:
    return importlib.import_module("distributed")  # imported once somebody has, or wants, a client


def _bytes(layer: Layer) -> int:
    """Return how many bytes are sent with a layer."""
    return in_memory(layer.weight) + (0 if layer.variance is None else in_memory(layer.variance))


def _submitted(
    client: Any, layer: Layer, how: How, known: Callable[[Layer], Known | None], key: str
) -> Any:
    """Return the future of a layer's outcome."""
    return client.submit(
        _on_worker, layer, how, known(layer), _versions(), key=f"gramnorm-{key}", pure=False
    )


def _on_worker(layer: Layer, how: How, known: Known | None, versions: dict[str, str]) -> Outcome:
    """Return the outcome of a layer, in a worker, which may have joined after the others."""
    if versions != _versions():
        msg = f"a worker has other versions than this process: {_versions()}, not {versions}"
        raise ClusterError(msg)
    (found,) = threads.shared(lambda one: outcome(one, how, known), [layer])
    return found


def _is_blamed(future: Any) -> bool:
    """Say whether several workers were lost that had a task, at work or waiting."""
    return future.status == "error" and isinstance(future.exception(), _distributed().KilledWorker)


def _result(future: Any, layer: Layer) -> Outcome:
    """Return the outcome of a task, or a row that says why there is none."""
    try:
        found: Outcome = future.result()
    except _distributed().KilledWorker:
        reason = (
            "each worker that had it was lost, the last of several: of too little memory, perhaps"
        )
    except Exception as error:
        reason = f"the cluster lost it: {one_line(error)}"
    else:
        return found
    return Outcome(failed_row(layer.name, reason))


# Whether a cluster can do the work.


def _versions() -> dict[str, str]:
    return {"gramnorm": version(), "numpy": np.__version__}


def _check(client: Any, layers: Sequence[Layer]) -> None:
    """Raise ClusterError unless all workers compute the same as we would, of the same files."""
    try:
        client.wait_for_workers(1, timeout=WAIT)
    except TimeoutError as error:
        msg = f"the scheduler at {_address(client)} has no workers: start some with `dask worker {_address(client)}`"
        raise ClusterError(msg) from error
    for address, found in _everywhere(client, _versions).items():
        if found != _versions():
            msg = (
                f"the worker {address} has {found}, and this process {_versions()}: the table would not be the "
                "same; install the same versions on both"
            )
            raise ClusterError(msg)
    arrays = [a for layer in layers for a in (layer.weight, layer.variance)]
    files = list(dict.fromkeys(a.file for a in arrays if isinstance(a, Tensor)))
    for address, complaint in _everywhere(client, _complaint, files).items():
        if complaint:
            msg = (
                f"the worker {address} {complaint}; workers read safetensors by themselves, so the files must lie "
                "under the same path for all of them"
            )
            raise ClusterError(msg)


def _everywhere(client: Any, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Return what a function returns on each worker."""
    try:
        return dict(client.run(function, *arguments))
    except ImportError as error:
        msg = f"a worker has no gramnorm that it can import, of version {version()} as here: {one_line(error)}"
        raise ClusterError(msg) from error
    except Exception as error:
        msg = f"the workers of {_address(client)} do not answer: {one_line(error)}"
        raise ClusterError(msg) from error


def _complaint(files: list[File]) -> str:
    """Return why one of these files cannot be read here, or nothing."""
    for file in files:
        try:
            file.opened().close()
        except ReadError as error:
            return str(error)
    return ""


def _address(client: Any) -> str:
    return str(client.scheduler.address)


# Clusters for the command line.

# Workers that were started here leave Ctrl-C, which all get, to who started them.
_DEAF = """import signal
def dask_setup(_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
"""


@contextlib.contextmanager
def connected(scheduler: str | None, workers: int | None) -> Iterator[Any]:
    """
    Connect to a scheduler, or start workers on this machine, which end with the context.

    Parameters
    ----------
    scheduler : str or None
        The address of a scheduler.
    workers : int or None
        How many processes to start, if there is no address.

    Yields
    ------
    distributed.Client
        Connected.

    Raises
    ------
    MissingPackageError
        If the extra is not installed.
    ClusterError
        If nobody answers, or processes cannot be started.
    """
    try:
        distributed = _distributed()
    except ImportError as error:
        msg = f"--scheduler and --workers need the package distributed: {_validate.install(libraries.CLUSTERS)}"
        raise MissingPackageError(msg) from error
    with contextlib.ExitStack() as stack:
        try:
            address = scheduler
            if address is None:
                cluster = distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                    preload=[_DEAF],
                )
                address = stack.enter_context(cluster).scheduler_address
            # not as the default: that would stay set where nobody answers
            client = stack.enter_context(
                distributed.Client(address, timeout=WAIT, set_as_default=False)
            )
        except (OSError, ValueError, RuntimeError, TimeoutError) as error:
            where = f"no scheduler answers at {scheduler!r}"
            what = where if scheduler else f"cannot start {workers} workers"
            msg = f"{what} ({one_line(error)}); start one with `dask scheduler`, or use --workers N"
            raise ClusterError(msg if scheduler else f"{what} ({one_line(error)})") from error
        yield client
