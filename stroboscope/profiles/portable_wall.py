"""The portable twin of the wall profile's ticker: threads and tasks read in Python.

A thread's time off the CPU is what its CPU clock did not count, at the stack where it
stands when the interpreter lets us look. Threads have no labels, for another thread's
context cannot be read; tasks have their own.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from asyncio import AbstractEventLoop
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from stroboscope._core import AtRest, LabelCell, TaskRow, task_sets
from stroboscope._core._pure import thread_cpu_ns
from stroboscope._core.at_rest import RUNNING
from stroboscope._core.capture import TRUNCATED
from stroboscope._core.engine import Engine
from stroboscope._threads import Lock, alive
from stroboscope.formats.profile import Columns, Frame, Labels
from stroboscope.labels import labels_of

#: Columns, as the C ledger has them.
_WAITING, _SUSPENDED, _RUNNING, _WIDTH = 0, 1, 2, 3
#: A tick costs some 100 us here, and more than in C.
HZ_MAX, _JITTER = 50, 0.5
_CUT = Frame("", "[truncated]", 0, 0)
#: Frames leaf first, the address of a label cell or 0, a column.
_Key = tuple[tuple[Frame, ...], int, int]


class _Window:
    def __init__(self) -> None:
        self.spent_ns: Counter[_Key] = Counter()
        #: By address, and alive as long: a request may learn its labels late.
        self.cells: dict[int, LabelCell] = {}


class Ticker:
    """As `_core.wall.Ticker`; `end` gives the columns themselves."""

    def __init__(self, engine: Engine, tasks_per_tick: int) -> None:
        self._engine = engine
        self._tasks_per_tick = tasks_per_tick
        self._lock = Lock()
        self._open: dict[int, _Window] = {}
        self._runs = False
        self._loops: Callable[[], Iterable[AbstractEventLoop]] = tuple
        self._last_ns = 0
        self._cpu_ns: dict[int, int] = {}
        self._handles = itertools.count()
        self._registered = False

    def open(self, loops: Callable[[], Iterable[AbstractEventLoop]]) -> int:
        """Begin a window. Raises: RuntimeError when no thread is to be had."""
        with self._lock:
            if not self._registered:
                self._registered = True
                os.register_at_fork(after_in_child=self._after_fork)
            self._loops = loops
            self._tick()  # what has passed belongs to the others
            handle = next(self._handles)
            self._open[handle] = _Window()
            if not self._runs:
                self._engine.start_thread(self._run)
                self._runs = True
            return handle

    def end(self, handle: int) -> Columns:
        """What the window has counted to this moment: waiting, suspended, running."""
        with self._lock:
            self._tick()
            window = self._open[handle]
            spent_ns = window.spent_ns.copy()
        return _columns(spent_ns, window.cells)

    def close(self, handle: int) -> None:
        """Forget the window."""
        with self._lock:
            self._open.pop(handle, None)

    def _after_fork(self) -> None:
        # The child has none of its parent's windows, and not its thread.
        self._lock = Lock()
        self._open = {}
        self._runs = False
        self._last_ns = 0

    def _run(self) -> None:
        while True:
            hz = min(self._engine.hz or HZ_MAX, HZ_MAX)
            self._engine.sleep((1 + _JITTER * random.uniform(-1, 1)) / hz)  # noqa: S311
            with self._lock:
                if not self._open:
                    self._runs = False
                    self._last_ns = 0
                    return
                self._tick()

    def _tick(self) -> None:
        """Charge the time since the last one to every open window."""
        now_ns = time.monotonic_ns()
        passed_ns = now_ns - self._last_ns if self._last_ns else 0
        self._last_ns = now_ns
        items = [item for one in task_sets(self._loops()) for item in list(one)]
        looked = min(len(items), self._tasks_per_tick)
        some = random.sample(items, looked)
        rows: list[TaskRow] = []
        found = self._engine.walk(some, rows.append)
        for stack, waited_ns in self._waited_ns(found, passed_ns):
            self._charge(_frames(found, stack), None, _WAITING, waited_ns)
        each_ns = passed_ns * len(items) // max(looked, 1)
        for row in rows:
            column = _RUNNING if row.state == RUNNING else _SUSPENDED
            self._charge(_frames(found, row.stack), row.cell, column, each_ns)

    def _waited_ns(self, found: AtRest, passed_ns: int) -> list[tuple[int, int]]:
        """The stack of each thread and what of the time it did not burn."""
        native_ids = {t.ident: t.native_id for t in alive()}
        before, self._cpu_ns = self._cpu_ns, {}
        waited = []
        for row in found.threads:
            native_id = native_ids.get(row.ident)
            now_ns = thread_cpu_ns(native_id) if native_id else None
            if now_ns is None:
                continue
            self._cpu_ns[row.ident] = now_ns
            if row.ident in before:
                left_ns = passed_ns - (now_ns - before[row.ident])
                if left_ns > 0:
                    waited.append((row.stack, left_ns))
        return waited

    def _charge(
        self, frames: tuple[Frame, ...], cell: Any, column: int, ns: int
    ) -> None:
        if ns > 0:
            for window in self._open.values():
                if cell is not None:
                    window.cells[id(cell)] = cell
                window.spent_ns[frames, id(cell) if cell else 0, column] += ns


def _frames(found: AtRest, stack: int) -> tuple[Frame, ...]:
    return tuple(
        _CUT if at == TRUNCATED else Frame(*found.frames[at])
        for at in found.stacks[stack]
    )


def _columns(spent_ns: Counter[_Key], cells: dict[int, LabelCell]) -> Columns:
    places: dict[Frame, int] = {}
    stacks: dict[tuple[int, ...], int] = {}
    sets: dict[Labels, int] = {}
    made = Columns([], [], [], _WIDTH)
    for (frames, cell, column), ns in spent_ns.items():
        stack = tuple(places.setdefault(frame, len(places)) for frame in frames)
        labels: Labels = labels_of(cells[cell]).items if cell else ()
        values = [0] * _WIDTH
        values[column] = ns
        made.add(
            stacks.setdefault(stack, len(stacks)),
            sets.setdefault(labels, len(sets)),
            values,
        )
    made.frames += places
    made.stacks.extend(stacks)
    made.label_sets += sets
    return made
