"""Taking labels where Python does not: into bare threads, pools and queues."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, ParamSpec, TypeVar

from stroboscope._core import LABELS, LabelCell
from stroboscope._threads import Lock
from stroboscope.labels.scope import current, do

P = ParamSpec("P")
R = TypeVar("R")


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """A callable that runs `function` under the labels of this moment.

    Only labels travel, not the other context variables. Safe to call from many
    threads at once.
    """
    cell = LABELS.get()

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        before = LABELS.get()
        LABELS.set(cell)
        try:
            return function(*args, **kwargs)
        finally:
            LABELS.set(before)

    return run


class Job(Generic[R]):
    """A call with its labels and its task, as plain data: for queues, other processes.

    Neither crosses a queue by itself. Picklable when its function and arguments are.
    Where the task that made it is recorded, the call is a task of its own that goes on
    from there, `job:<function>`.
    """

    def __init__(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.labels: dict[str, str] = dict(current())
        self.origin = _origin()

    def __call__(self) -> R:
        """Run the call under the labels and after the task it was made with."""
        with do(**self.labels), _continued(self.origin, self.function):
            return self.function(*self.args, **self.kwargs)


#: Process, serial and ids of a recorded task.
Origin = tuple[int, int, bytes]


def _origin() -> Origin | None:
    cell = LABELS.get()
    if cell is None or not cell.recorded:
        return None
    ids = bytes.fromhex((cell.trace_id or "") + (cell.span_id or ""))
    return (os.getpid(), cell.task, ids)


@contextlib.contextmanager
def _continued(origin: Origin | None, function: Callable[..., Any]) -> Iterator[None]:
    if origin is None:
        yield
        return
    process, serial, ids = origin
    outer = LABELS.get()
    cell = LabelCell(None, outer)
    name = f"job:{getattr(function, '__qualname__', type(function).__name__)}"
    parent = serial if process == os.getpid() else 0
    cell.begin_task("job", name, ids if len(ids) == 24 else None, True, parent)
    LABELS.set(cell)
    try:
        yield
    finally:
        LABELS.set(outer)
        cell.end_task(None, 0)
        cell.publish()


def propagate_to_threads() -> Callable[[], None]:
    """Make every new thread and pool job inherit labels; returns the undo.

    Patches `threading.Thread.start` and `ThreadPoolExecutor.submit`, so it is opt-in.
    Calling it twice is harmless; each undo counts once.
    """
    return _PATCH.install()


class _Patch:
    def __init__(self) -> None:
        self._lock = Lock()
        self._users = 0
        self._start: Any = None
        self._submit: Any = None

    def install(self) -> Callable[[], None]:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._start = threading.Thread.start
                self._submit = ThreadPoolExecutor.submit
                threading.Thread.start = _starting(self._start)  # type: ignore[method-assign]
                ThreadPoolExecutor.submit = _submitting(self._submit)  # type: ignore[method-assign]
        done = False

        def undo() -> None:
            nonlocal done
            with self._lock:
                if done:
                    return
                done = True
                self._users -= 1
                if self._users == 0:
                    threading.Thread.start = self._start  # type: ignore[method-assign]
                    ThreadPoolExecutor.submit = self._submit  # type: ignore[method-assign]

        return undo


_PATCH = _Patch()


def _starting(original: Callable[..., None]) -> Any:
    @functools.wraps(original)
    def start(self: threading.Thread) -> None:
        # A pool's worker outlives the request that happened to start it.
        from_pool = getattr(self, "_target", None)
        is_worker = getattr(from_pool, "__module__", "") == "concurrent.futures.thread"
        if LABELS.get() is not None and not is_worker:
            self.run = carry(self.run)  # type: ignore[method-assign]
        original(self)

    return start


def _submitting(original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def submit(
        self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        return original(self, carry(fn), *args, **kwargs)

    return submit
