"""The ticker of wall profiles: one thread for all windows, none without a window.

Needs the C engine. Safe from any thread; nothing blocks for longer than a tick.
"""

from __future__ import annotations

import os
import random
import sys
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable
from typing import Any

from stroboscope._core import _native
from stroboscope._core.at_rest import task_sets
from stroboscope._core.engine import Engine
from stroboscope._threads import Lock

#: Ticks a second at most, however fast the sampler is.
HZ_MAX = 200
#: A tick comes after this share of a period at least, and so much later at most: an
#: application that wakes at the ticks' own pace would be seen in one state only.
_JITTER = 0.5
#: So many ticks between two looks at the rate and at our own CPU, a different pause
#: before each.
_TICKS = 64
_SHARES = [1 + _JITTER * (2 * at / (_TICKS - 1) - 1) for at in range(_TICKS)]

#: Whether sets of tasks are made when they are asked for, and true at that moment only.
_ARE_COPIES = sys.version_info >= (3, 14)

Loops = Callable[[], Iterable[AbstractEventLoop]]


class Ticker:
    """Opens and ends windows; ticks at the pace of the engine's sampler."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = Lock()
        self._open: set[int] = set()
        self._runs = False
        self._registered = False
        self._loops: Loops = tuple

    def open(self, loops: Loops) -> int:
        """Begin a window. `loops` are only needed from Python 3.14.

        Raises: RuntimeError when there are too many, or no thread is to be had.
        """
        with self._lock:
            if not self._registered:
                self._registered = True
                os.register_at_fork(after_in_child=self._after_fork)
            self._loops = loops
            self._tick()  # what has passed belongs to the others
            handle = _native.wall_open()
            self._open.add(handle)
            self._tick()
            if not self._runs:
                try:
                    self._engine.start_thread(self._run)
                except RuntimeError:
                    self._forget(handle)
                    raise
                self._runs = True
            return handle

    def end(self, handle: int) -> _native.LedgerCopy:
        """What the window has counted to this moment; it has to be closed still."""
        with self._lock:
            self._tick()
            return _native.wall_copy(handle)

    def close(self, handle: int) -> None:
        """Forget the window. Its stacks have names until then."""
        with self._lock:
            self._forget(handle)

    def _forget(self, handle: int) -> None:
        if handle in self._open:
            self._open.discard(handle)
            _native.wall_close(handle)

    def _tick(self) -> None:
        _native.wall_tick(self._sets())

    def _sets(self) -> list[set[Any]]:
        return task_sets(self._loops())

    def _after_fork(self) -> None:
        # The child has none of its parent's windows, and not its thread.
        self._lock = Lock()
        self._open = set()
        self._runs = False

    def _run(self) -> None:
        try:
            self._tick_on()
        except BaseException:  # the next window has a thread again
            with self._lock:
                self._runs = False
            raise

    def _tick_on(self) -> None:
        charged_ns = 0
        while True:
            period_s = 1 / min(self._engine.hz or HZ_MAX, HZ_MAX)
            shares = random.sample(_SHARES, _TICKS)
            pauses = tuple(share * period_s for share in shares)
            _native.wall_ticks(pauses, self._sets if _ARE_COPIES else self._sets())
            with self._lock:
                if not self._open:
                    self._runs = False
                    return
            used_ns = time.thread_time_ns()
            self._engine.charge(used_ns - charged_ns)
            charged_ns = used_ns
