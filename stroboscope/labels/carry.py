"""Taking labels where Python does not: into bare threads, pools and queues."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, ParamSpec, TypeVar

from stroboscope._core import LABELS
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
    """A call with its labels, as plain data: for queues and other processes.

    Labels never cross a queue by themselves. Picklable when its function and arguments
    are.
    """

    def __init__(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.labels: dict[str, str] = dict(current())

    def __call__(self) -> R:
        """Run the call under the labels it was made with."""
        with do(**self.labels):
            return self.function(*self.args, **self.kwargs)


def propagate_to_threads() -> Callable[[], None]:
    """Make every new thread and pool job inherit labels; returns the undo.

    Patches `threading.Thread.start` and `ThreadPoolExecutor.submit`, so it is opt-in.
    Calling it twice is harmless; each undo counts once.
    """
    return _PATCH.install()


class _Patch:
    def __init__(self) -> None:
        self._lock = threading.Lock()
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
