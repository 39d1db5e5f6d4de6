"""The diagnostics pool: our few threads, so that the application's do none of this."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from stroboscope._core import engine

T = TypeVar("T")
#: Captures share 4 windows; the rest answers in milliseconds.
THREADS_CAP = 12
#: So many may be captures, which take seconds: the rest is for who has to end them.
CAPTURES_CAP = 8


class Pool:
    """Runs jobs on threads that are never sampled. A thread lives for one job."""

    def __init__(self) -> None:
        self._slots, self._captures = _turns()

    def submit(self, job: Callable[[], object], *, is_capture: bool = False) -> bool:
        """Start the job; false when every thread it may have is taken. Never blocks."""
        needed = (self._captures, self._slots) if is_capture else (self._slots,)
        held: list[threading.Semaphore] = []

        def give_back() -> None:
            for one in held:
                one.release()

        def run() -> None:
            try:
                job()
            finally:
                engine.charge(time.thread_time_ns())
                give_back()

        for one in needed:
            if not one.acquire(blocking=False):
                give_back()
                return False
            held.append(one)
        try:
            engine.start_thread(run)
        except RuntimeError:  # no thread to be had in this process
            give_back()
            return False
        return True

    def run(self, job: Callable[[], T]) -> T | None:
        """Do it on the calling thread, which is ours; None when all turns are taken."""
        slots = self._slots
        if not slots.acquire(blocking=False):
            return None
        began_ns = time.thread_time_ns()
        try:
            return job()
        finally:
            engine.charge(time.thread_time_ns() - began_ns)
            slots.release()

    def after_fork(self) -> None:
        """The child has none of these threads, and none of their turns is taken."""
        self._slots, self._captures = _turns()


def _turns() -> tuple[threading.Semaphore, threading.Semaphore]:
    return (
        threading.BoundedSemaphore(THREADS_CAP),
        threading.BoundedSemaphore(CAPTURES_CAP),
    )
