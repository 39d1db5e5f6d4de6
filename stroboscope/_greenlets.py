"""What is the application's is called where it runs, also by threads of ours.

Log handlers, span processors and the like wait with what gevent has patched. A greenlet
and a thread that pass such a lock to and fro lose each other's wake-ups: one of them
waits for ever. So under gevent they are called by a greenlet; a hub that stands still
makes them late, and after a while they are called on our thread all the same.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from stroboscope._threads import Lock, hub_elsewhere, real, start_thread

T = TypeVar("T")
#: How long a greenlet may take to begin.
PATIENCE_S = 1.0
#: Calls that wait for their turn; more are dropped.
WAITING_CAP = 1024


def among_greenlets(act: Callable[[], T]) -> T:
    """What `act` returns or raises, called once, by a greenlet where there are any.

    Blocks a thread of ours. Elsewhere, on a greenlet too, it is a plain call.
    """
    hub = hub_elsewhere()
    if hub is None:
        return act()
    turn, answers, done = [act], deque[T](), real("allocate_lock")()
    failures: list[BaseException] = []
    done.acquire()

    def run() -> None:
        try:
            mine = turn.pop()
        except IndexError:  # the other one was faster
            return
        try:
            answers.append(mine())
        except BaseException as error:  # whoever waits gets it
            failures.append(error)
        finally:
            done.release()

    hub.loop.run_callback_threadsafe(sys.modules["gevent"].spawn, run)
    if not done.acquire(timeout=PATIENCE_S):
        run()
        done.acquire()
    if failures:
        raise failures[0]
    return answers[0]


class Post:
    """Calls in their order, of which nobody waits for the end. Safe from any thread.

    Those that wait for their turn are at most `cap`; their thread ends with the last.
    """

    def __init__(self, cap: int = WAITING_CAP) -> None:
        self.start_thread = start_thread
        self._cap = cap
        self._lock = Lock()
        self._waiting: deque[Callable[[], object]] = deque()
        self._works = self._is_registered = False
        #: Those for which there was no room, or that raised.
        self.dropped = 0

    def send(self, act: Callable[[], object]) -> None:
        """Call it: among greenlets soon, elsewhere now, which may block and raise."""
        if hub_elsewhere() is None:
            act()
        else:
            self.queue(act)

    def queue(self, act: Callable[[], object]) -> None:
        """Call it soon, on a thread of ours. Never blocks long, never raises."""
        if not self._is_registered:  # before the lock, which a child must not find held
            self._is_registered = True
            os.register_at_fork(after_in_child=self._after_fork)
        with self._lock:
            if len(self._waiting) >= self._cap:
                self.dropped += 1
                return
            self._waiting.append(act)
            if self._works:
                return
            self._works = True
        try:
            self.start_thread(self._run)
        except RuntimeError:  # no thread to be had; the next one tries again
            self._works = False

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._works = False
                    return
                act = self._waiting.popleft()
            try:
                among_greenlets(act)
            except Exception:  # what is the application's, such as its log filters
                self.dropped += 1

    def _after_fork(self) -> None:
        self._lock = Lock()
        self._waiting.clear()
        self._works = False


#: The one of this process.
POST = Post()


class Log:
    """A logger of ours, by whose name the application may know it."""

    def __init__(self, name: str) -> None:
        self._log = logging.getLogger(name)

    def debug(self, text: str, *args: object, **more: Any) -> None:
        """For who looks for a fault of ours."""
        self._say(logging.DEBUG, text, args, more)

    def info(self, text: str, *args: object, **more: Any) -> None:
        """For the record."""
        self._say(logging.INFO, text, args, more)

    def warning(self, text: str, *args: object, **more: Any) -> None:
        """Something of ours is not as it should be, or an operator has changed it."""
        self._say(logging.WARNING, text, args, more)

    def error(self, text: str, *args: object, **more: Any) -> None:
        """Something of ours has failed."""
        self._say(logging.ERROR, text, args, more)

    def _say(
        self, level: int, text: str, args: tuple[object, ...], more: dict[str, Any]
    ) -> None:
        if more.get("exc_info") is True:  # that of this moment
            more["exc_info"] = sys.exc_info()
        POST.send(lambda: self._log.log(level, text, *args, stacklevel=5, **more))
