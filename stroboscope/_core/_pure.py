"""The portable twin: a thread that reads `sys._current_frames()`.

It takes the GIL to look, so it sees asyncio code only where the loop gives the GIL up,
and it cannot read another thread's context, so its samples carry no label: missing
beats wrong. Each capture says so. Same interface as `NativeDriver`.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import FrameType
from typing import Any

from stroboscope._core import _pure_rest
from stroboscope._core.at_rest import AtRest, TaskRow
from stroboscope._core.capture import Capture, Frame, Row
from stroboscope._threads import alive, ident, real, start_thread

_DEPTH_MAX = 512
NOTE = (
    "portable sampler: it sees a thread only when that thread gives up the GIL, "
    "and its samples carry no labels"
)
NO_CLOCK_NOTE = "this platform has no CPU clock of a thread: nothing could be weighed"
_HAS_THREAD_CLOCKS = sys.platform == "linux"


class LabelCell:
    """What a ContextVar holds for a request or a `do` block; never sampled here."""

    __slots__ = (
        "__weakref__",
        "labels",
        "parent",
        "scope",
        "serial",
        "shown",
        "source",
    )
    _serials = itertools.count(1)

    def __init__(
        self, labels: object | None = None, parent: LabelCell | None = None
    ) -> None:
        self.labels = labels
        self.parent = parent
        self.source: Callable[[], object | None] | None = None
        self.serial = next(self._serials)
        self.shown: str | None = None
        self.scope: object | None = None

    @property
    def sampled(self) -> bool:
        """Whether any sample was taken under this cell."""
        return False

    @property
    def ended(self) -> bool:
        """Whether its labels are final; nobody asks where nothing is sampled."""
        return False

    def publish(self) -> None:
        """Nothing was sampled, so nothing is handed over."""

    def show(self) -> None:
        """Nothing was sampled, so nothing is handed over."""

    task = 0
    recorded = False
    wanted = 0
    trace_id: str | None = None
    span_id: str | None = None

    def begin_task(self, *about: object) -> bool:
        """No recorder is here, so the task is not recorded."""
        return False

    def end_task(self, name: str | None, status: int) -> None:
        """It was not recorded."""

    def end_request(self, fallback: str, status: int) -> None:
        """It was not recorded."""

    name_task = link_task = label_task = lambda self, text: None


class region:
    """A named part of the task that runs, which nobody records here."""

    __slots__ = ("name",)
    _decorate: Callable[[str, Any], Any] = staticmethod(lambda name, function: function)

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a region's name is a str, not {type(name).__name__}")
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        pass

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc: object) -> None:
        pass

    def __call__(self, function: Any) -> Any:
        """The decorated function."""
        return self._decorate(self.name, function)


def log(category: str, format: str, /, *args: object) -> None:
    """A line of the running task, which nobody records here."""


def set_region_decorator(function: Callable[[str, Any], Any]) -> None:
    """What a region does to a function."""
    region._decorate = staticmethod(function)


LABELS: ContextVar[LabelCell | None] = ContextVar("stroboscope_labels", default=None)


class _Counts:
    def __init__(self, start_ns: int) -> None:
        self.start_ns = max(start_ns, time.monotonic_ns())
        self.stacks: dict[tuple[Frame, ...], int] = {}


class PortableDriver:
    """Samples all threads from one of its own, weighed by their CPU time."""

    kind = "portable"

    def __init__(self) -> None:
        self._period_ns = 0
        #: While it runs: let go of to end it, and let go of when it has ended.
        self._sampler: tuple[Any, Any] | None = None
        self._handles = itertools.count()
        self._open: dict[int, _Counts] = {}
        self._cpu_ns: dict[int, int] = {}
        self._excluded: set[int] = set()
        self._own_cpu_ns = 0

    def start(self, period_ns: int) -> None:
        """Begin to look, every `period_ns`."""
        self._period_ns = period_ns
        pause, end = real("allocate_lock")(), real("allocate_lock")()
        pause.acquire()
        end.acquire()
        before_ns = self._own_cpu_ns

        def run() -> None:
            try:
                while not pause.acquire(timeout=self._period_ns / 1e9):
                    self._look()
                    self._own_cpu_ns = before_ns + time.thread_time_ns()
            finally:
                self._cpu_ns.clear()
                end.release()

        self.start_thread(run)
        self._sampler = pause, end

    def stop(self) -> None:
        """End and join the sampler thread."""
        if self._sampler is not None:
            pause, end = self._sampler
            pause.release()
            end.acquire()
            self._sampler = None

    def set_period(self, period_ns: int) -> None:
        """Look at another period from now on."""
        self._period_ns = period_ns

    def own_cpu_ns(self) -> int:
        """CPU time of the sampler thread since it was first started."""
        return self._own_cpu_ns

    def contexts(self) -> dict[int, Any]:
        """Another thread's context cannot be read here."""
        return {}

    def instances_of(self, kind: type[Any], cap: int) -> list[Any]:
        """By a copy of the garbage collector's lists: five times as slow as in C."""
        # Not `isinstance`: it asks an object's `__class__`, which a proxy answers with
        # code of the application's.
        found = (one for one in gc.get_objects() if issubclass(type(one), kind))
        return list(itertools.islice(found, cap))

    def walk(
        self,
        tasks: list[Any],
        see: Callable[[TaskRow], object],
        breathe: Callable[[], object],
        *,
        described: bool,
    ) -> AtRest:
        """Read all threads and these tasks; nobody is asked what they wait for."""
        del described
        return _pure_rest.walk(tasks, see, breathe, self._excluded, LABELS)

    def open(self, moments: int, start_ns: int, *, copies: bool) -> int:
        """Open a window; samples from now or `start_ns` on belong to it.

        None is kept by itself. Raises: RuntimeError for `copies`.
        """
        del moments
        if copies:
            raise RuntimeError("native frames need the C engine")
        handle = next(self._handles)
        self._open[handle] = _Counts(start_ns)
        return handle

    def copies(self) -> bytes:
        """There are none."""
        return b""

    def machine(self) -> str:
        """None whose registers can be read."""
        return ""

    def close(self, handle: int, *, last: bool) -> Capture:
        """Hand out what a window has counted."""
        del last
        counts = self._open.pop(handle)
        duration_ns = max(0, time.monotonic_ns() - counts.start_ns)
        frames: dict[Frame, int] = {}
        stacks: list[tuple[int, ...]] = []
        rows: list[Row] = []
        for stack, ns in counts.stacks.items():
            stacks.append(tuple(frames.setdefault(f, len(frames)) for f in stack))
            samples = max(1, round(ns / self._period_ns))
            rows.append((len(stacks) - 1, 0, samples, ns))
        return Capture(
            start_ns=time.time_ns() - duration_ns,
            duration_ns=duration_ns,
            period_ns=self._period_ns,
            frames=list(frames),
            stacks=stacks,
            rows=rows,
            chains={},
            notes=[NOTE] if _HAS_THREAD_CLOCKS else [NOTE, NO_CLOCK_NOTE],
        )

    def before_fork(self) -> None:
        """Nothing here that must not be forked."""

    def after_fork_in_parent(self) -> None:
        """Nothing was stopped."""

    def after_fork(self) -> None:
        """Forget the parent's windows and thread."""
        self._sampler = None
        self._open.clear()

    def exclude_current_thread(self) -> None:
        """Never sample the calling thread."""
        self._excluded.add(ident())

    def start_thread(self, target: Callable[[], object]) -> None:
        """Run `target` on a thread that is never sampled."""

        def run() -> None:
            self.exclude_current_thread()
            try:
                target()
            finally:  # the next thread may be given the same ident
                self._excluded.discard(ident())

        start_thread(run)

    def greet_thread(self, process: int) -> None:
        """Nothing: it samples whoever is there."""

    def sleep(self, seconds: float) -> None:
        """Sleep without the GIL, also where gevent has patched `time.sleep`."""
        real("sleep", "time")(seconds)

    def info(self) -> dict[str, Any]:
        """Whether it runs."""
        return {"active": int(self._sampler is not None)}

    def _look(self) -> None:
        frames = sys._current_frames()
        native = {t.ident: t.native_id for t in alive()}
        spent = self._spent_ns({i: native.get(i) for i in frames})
        now_ns = time.monotonic_ns()
        begun = [one for one in list(self._open.values()) if one.start_ns <= now_ns]
        for thread, ns in spent.items():
            stack = _stack(frames[thread])
            for counts in begun:
                counts.stacks[stack] = counts.stacks.get(stack, 0) + ns

    def _spent_ns(self, native_ids: dict[int, int | None]) -> dict[int, int]:
        """CPU time since the last look, of threads that had any and are sampled."""
        now = {
            ident: clock
            for ident, native_id in native_ids.items()
            if native_id and (clock := thread_cpu_ns(native_id)) is not None
        }
        before, self._cpu_ns = self._cpu_ns, now
        return {
            ident: now[ident] - before[ident]
            for ident in now.keys() & before.keys() - self._excluded
            if now[ident] > before[ident]
        }


def thread_cpu_ns(native_id: int) -> int | None:
    """The thread's CPU time; None when it is gone or has no clock here.

    By the kernel's id: `pthread_getcpuclockid` reads the memory of a thread that may be
    gone. Source: clock_getcpuclockid(3), kernel posix-timers.h.
    """
    if not _HAS_THREAD_CLOCKS:
        return None
    per_thread, scheduled = 4, 2
    try:
        return time.clock_gettime_ns((~native_id << 3) | per_thread | scheduled)
    except OSError:
        return None


def _stack(frame: FrameType | None) -> tuple[Frame, ...]:
    stack: list[Frame] = []
    while frame is not None and len(stack) < _DEPTH_MAX:
        code = frame.f_code
        line = frame.f_lineno or code.co_firstlineno
        stack.append((code.co_filename, code.co_qualname, code.co_firstlineno, line))
        frame = frame.f_back
    return tuple(stack)
