"""The diagnostics pool: our few threads, so that the application's do none of this."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from stroboscope._core import engine

#: Captures share 4 windows; the rest answers in milliseconds.
THREADS_CAP = 12


class Pool:
    """Runs jobs on threads that are never sampled. A thread lives for one job."""

    def __init__(self, cap: int = THREADS_CAP) -> None:
        self._slots = threading.BoundedSemaphore(cap)

    def submit(self, job: Callable[[], object]) -> bool:
        """Start the job; false when every thread is taken. Never blocks."""
        if not self._slots.acquire(blocking=False):
            return False

        def run() -> None:
            try:
                job()
            finally:
                engine.charge(time.thread_time_ns())
                self._slots.release()

        engine.start_thread(run)
        return True
