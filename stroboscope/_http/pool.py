"""The diagnostics pool: our few threads, so that the application's do none of this."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from stroboscope._core import engine
from stroboscope._threads import Lock

T = TypeVar("T")
#: Captures share 4 windows; the rest answers in milliseconds.
THREADS_CAP = 12
#: So many may be captures, which take seconds: the rest is for who has to end them.
CAPTURES_CAP = 8


class _Turns:
    """Those that are taken, in all and for captures. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._taken = self._captures = 0

    def take(self, *, is_capture: bool) -> bool:
        """Whether there was one; the caller gives it back."""
        with self._lock:
            has_room = self._captures < CAPTURES_CAP or not is_capture
            if self._taken >= THREADS_CAP or not has_room:
                return False
            self._taken += 1
            self._captures += is_capture
            return True

    def give_back(self, *, is_capture: bool) -> None:
        """One that was taken."""
        with self._lock:
            self._taken -= 1
            self._captures -= is_capture


class Pool:
    """Runs jobs on threads that are never sampled. A thread lives for one job."""

    def __init__(self) -> None:
        self._turns = _Turns()

    def submit(self, job: Callable[[], object], *, is_capture: bool = False) -> bool:
        """Start the job; false when every thread it may have is taken. Never blocks."""
        turns = self._turns

        def run() -> None:
            try:
                job()
            finally:
                engine.charge(time.thread_time_ns())
                turns.give_back(is_capture=is_capture)

        if not turns.take(is_capture=is_capture):
            return False
        try:
            engine.start_thread(run)
        except RuntimeError:  # no thread to be had in this process
            turns.give_back(is_capture=is_capture)
            return False
        return True

    def run(self, job: Callable[[], T]) -> T | None:
        """Do it on the calling thread, which is ours; None when all turns are taken."""
        turns = self._turns
        if not turns.take(is_capture=False):
            return None
        began_ns = time.thread_time_ns()
        try:
            return job()
        finally:
            engine.charge(time.thread_time_ns() - began_ns)
            turns.give_back(is_capture=False)

    def after_fork(self) -> None:
        """The child has none of these threads, and none of their turns is taken."""
        self._turns = _Turns()
