"""Counters, ten times a second: lag of each loop, tasks, threads, resident memory."""

from __future__ import annotations

import asyncio
import contextvars
import os
import time
from collections.abc import Callable, Iterable

from stroboscope._core import recording
from stroboscope._core.at_rest import task_sets
from stroboscope.tracing.extras import Collector

_EVERY_S = 0.1
#: Loops that are asked, and tasks that are looked at to find them.
_LOOPS_CAP, _TASKS_CAP = 4, 1000
_PAGE = os.sysconf("SC_PAGE_SIZE")
#: Fields of /proc/self/stat behind the name, see proc(5): num_threads and rss.
_THREADS, _RSS = 17, 21


#: The loops that are known to run; from 3.14 on tasks are found by them alone.
Loops = Callable[[], Iterable[asyncio.AbstractEventLoop]]


class Counters(Collector):
    """Read on our own thread; a loop is only asked to say when its turn comes."""

    name = "counters"

    def __init__(self, loops: Loops = tuple) -> None:
        self._loops = loops
        self._next_s = 0.0
        self._probes: list[_Probe] = []

    def tick(self) -> None:
        """Read them, if it is time."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _EVERY_S
        known = list(self._loops())
        self._probes = self._probes or _probes(known)
        for probe in self._probes:
            probe.ask()
        with open("/proc/self/stat", "rb", buffering=0) as file:
            fields = file.read().rpartition(b")")[2].split()
        recording.trace_count("threads", int(fields[_THREADS]))
        recording.trace_count("rss bytes", int(fields[_RSS]) * _PAGE)
        recording.trace_count("asyncio tasks", sum(map(len, task_sets(known))))


def _probes(known: list[asyncio.AbstractEventLoop]) -> list[_Probe]:
    """One for each loop that is known, or has a task now."""
    tasks = [task for tasks in task_sets(known) for task in list(tasks)]
    found = {id(loop): loop for loop in known}
    for task in tasks[:_TASKS_CAP]:
        real = task() if callable(task) else task
        if isinstance(real, asyncio.Task):
            loop = real.get_loop()
            found[id(loop)] = loop
    loops = [loop for loop in found.values() if loop.is_running()][:_LOOPS_CAP]
    return [_Probe(at, loop) for at, loop in enumerate(loops)]


class _Probe:
    """Asks one loop again and again how long it takes to answer."""

    def __init__(self, at: int, loop: asyncio.AbstractEventLoop) -> None:
        self._name = f"loop lag us {at + 1}" if at else "loop lag us"
        self._loop: asyncio.AbstractEventLoop | None = loop
        self._asked_ns = 0

    def ask(self) -> None:
        """Ask; while an answer is out the wait so far is the lag."""
        if self._loop is None:
            return
        if self._asked_ns:
            self._note()
            return
        self._asked_ns = time.monotonic_ns()
        try:
            # In a context of its own: of no request.
            self._loop.call_soon_threadsafe(self._answer, context=contextvars.Context())
        except RuntimeError:  # closed: there will be no answer, and no more of it
            self._loop = None

    def _answer(self) -> None:
        self._note()
        self._asked_ns = 0

    def _note(self) -> None:
        lag_us = (time.monotonic_ns() - self._asked_ns) // 1000
        recording.trace_count(self._name, lag_us)
