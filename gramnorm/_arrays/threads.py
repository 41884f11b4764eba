"""Parts of a computation shared among the cores, one thread of the BLAS each.

A BLAS with several threads wakes all of them for every product, however small; the spinning costs
more than the product, and with other programs beside, a hundred times more.  So many small products
are shared part by part instead, and a large single one is left to the BLAS.  Parts and the order of
their results do not depend on the number of threads, and so no bit of a result does.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import functools
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from gramnorm._arrays import limits
from gramnorm._arrays.types import Array

Part = TypeVar("Part")
Result = TypeVar("Result")

_is_shared: contextvars.ContextVar[bool] = contextvars.ContextVar("is_shared", default=False)


@functools.cache
def keep_arrays() -> None:
    """Have arrays of some MiB that come and go kept by the process, not returned to the system.

    The allocator of glibc keeps what is no larger than the largest array that was ever freed, so one
    is made and freed, of which no page is touched. Pages that come anew from the system cost as
    much as the arithmetic on them: 64 x 64 x 3 x 3 takes 68 ms and not 127 in a fresh process.
    """
    np.empty(limits.KEPT_BYTES, dtype=np.uint8)


def cores() -> int:
    """Return how many threads this process may use.

    Its affinity, its cgroup's quota, OMP_NUM_THREADS.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    found = len(affinity(0)) if affinity else os.cpu_count() or 1
    # a list names the levels of nested regions
    word = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    asked = int(word) if word.isdecimal() else 0
    return max(min(found, asked or found, _quota()), 1)


@functools.cache
def _quota(file: str = "/sys/fs/cgroup/cpu.max") -> int:
    """Return how many cores the control group of this process may keep busy, as containers are given."""
    try:
        quota, period = Path(file).read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no control group, or "max"
        return sys.maxsize


@functools.cache
def _blas(*_loaded: str) -> list[Any]:
    """Return the BLAS libraries in this process: NumPy's, and SciPy's own when that is loaded."""
    import threadpoolctl  # when first used: it costs a tenth of our own import

    found = threadpoolctl.ThreadpoolController().select(user_api="blas")
    return list(found.lib_controllers)


class _OneThreadEach(threading.local):
    """A context in which the BLAS uses one thread for what this thread asks of it.

    OpenBLAS keeps a number for the process and, in newer versions, one for each thread that sets
    its own.  So each thread sets and restores for itself, to what the first one found: where there
    is one number only, threads that overlap may see it restored too early, which costs time and no
    more.
    """

    found: ClassVar[dict[str, int]] = {}
    inside: ClassVar[int] = 0
    lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._depth = 0

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        self._libraries = _blas(*(["scipy"] if "scipy.linalg" in sys.modules else []))
        with self.lock:
            if not self.inside:
                self.found.clear()
            # SciPy's may have been loaded since the first one entered
            self._counts = [
                self.found.setdefault(library.filepath, library.get_num_threads())
                for library in self._libraries
            ]
            type(self).inside += 1
        for library in self._libraries:
            library.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        with self.lock:  # before another thread looks what there is
            for library, count in zip(self._libraries, self._counts, strict=True):
                library.set_num_threads(count)
            type(self).inside -= 1


one_thread_each = _OneThreadEach()


def for_order(order: int) -> contextlib.AbstractContextManager[None]:
    """Return a context for a long search with matrices of some order: one thread, if it is small."""
    return one_thread_each if order <= limits.SHARED_COLUMNS else contextlib.nullcontext()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Share nothing within, and keep the BLAS to one thread: no bit depends on who works beside."""
    token = _is_shared.set(True)
    try:
        with one_thread_each:
            yield
    finally:
        _is_shared.reset(token)


def parts(count: int, operations: float, *, like: Array) -> list[slice]:
    """Cut so many tasks beside the array `like`, of so many operations each, into parts worth sharing.

    Only NumPy's arrays are shared: settings of other libraries belong to the thread that made them.
    """
    most = min(limits.SHARED_PARTS, count) if isinstance(like, np.ndarray) else 1
    number = max(1, min(most, int(count * operations / limits.SHARED_OPERATIONS)))
    ends = [count * k // number for k in range(number + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def shared_if_worth(
    function: Callable[[Part], Result], parts: Sequence[Part], operations: float
) -> list[Result]:
    """Return what `shared` does.

    At once, if so many operations are too few to keep the BLAS to one thread.
    """
    if operations < limits.ONE_THREAD_OPERATIONS:
        return [function(part) for part in parts]
    if operations < limits.SHARED_OPERATIONS:
        with one_thread_each:
            return [function(part) for part in parts]
    return shared(function, parts)


def shared(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Return ``[function(part) for part in parts]``.

    What is called within a part shares nothing further. Interrupted, it returns at once; parts at
    work end by themselves.
    """
    if _is_shared.get():
        return [function(part) for part in parts]

    def by_itself(part: Part) -> Result:
        with alone():
            return function(part)

    workers = min(cores(), len(parts))
    with one_thread_each:
        if workers < 2:
            return [function(part) for part in parts]
        pool, wait = concurrent.futures.ThreadPoolExecutor(workers), True
        try:
            # np.errstate and the like are contexts: each part gets a copy of the caller's
            contexts = [contextvars.copy_context() for _ in parts]
            each = zip(contexts, parts, strict=True)
            return [_awaited(f) for f in [pool.submit(c.run, by_itself, p) for c, p in each]]
        except KeyboardInterrupt:
            wait = False  # a part may take minutes, and who interrupts is sitting there
            raise
        finally:
            pool.shutdown(wait, cancel_futures=True)


def _awaited(future: concurrent.futures.Future[Result]) -> Result:
    """Return the result of a part.

    A signal that comes just before a wait is looked at after it: no wait is long. And it is that of
    a bare lock: where an interrupt reaches a condition of Python between its lines, as one in 200
    does, it becomes a RuntimeError about the lock.
    """
    ended = threading.Lock()
    ended.acquire()
    future.add_done_callback(lambda _: ended.release())
    while not ended.acquire(timeout=1):
        pass
    return future.result()
