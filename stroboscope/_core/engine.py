"""The one sampler of a process, shared by every window.

Nothing starts before the first window opens and nothing runs after the last one
closes. All functions are safe from any thread; `Window.wait` and `Window.close` block
and belong on a thread of ours.
"""

from __future__ import annotations

import atexit
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from stroboscope._core.at_rest import AtRest, TaskRow
from stroboscope._core.capture import Capture
from stroboscope._threads import Lock, ident
from stroboscope.errors import EngineUnavailable, WindowsExhausted

_NS = 1_000_000_000
#: How often a wait looks whether it was cancelled.
_POLL_S = 0.05


class Driver(Protocol):
    """What takes the samples: the C engine or its portable twin."""

    kind: str

    def start(self, period_ns: int) -> None: ...
    def stop(self) -> None: ...
    def set_period(self, period_ns: int) -> None: ...
    def own_cpu_ns(self) -> int: ...
    def contexts(self) -> dict[int, Any]: ...
    def walk(
        self,
        tasks: list[Any],
        see: Callable[[TaskRow], object],
        breathe: Callable[[], object],
        *,
        described: bool,
    ) -> AtRest: ...
    def instances_of(self, kind: type[Any], cap: int) -> list[Any]: ...
    def open(self, moments: int, start_ns: int, *, copies: bool) -> int: ...
    def copies(self) -> bytes: ...
    def machine(self) -> str: ...
    def close(self, handle: int, *, last: bool) -> Capture: ...
    def before_fork(self) -> None: ...
    def after_fork_in_parent(self) -> None: ...
    def after_fork(self) -> None: ...
    def greet_thread(self, process: int) -> None: ...
    def start_thread(self, target: Callable[[], object]) -> None: ...
    def sleep(self, seconds: float) -> None: ...
    def info(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Which engine runs here, why, and its counters since the process began."""

    kind: str
    reason: str
    windows: int
    counters: dict[str, Any]


def _nothing() -> None:
    pass


class Window:
    """One subscription to the shared sampler. Close it, always."""

    def __init__(
        self, engine: Engine, handle: int, ends_s: float, hz: int, start_ns: int
    ) -> None:
        self.ends_s = ends_s
        self.hz = hz
        self._starts_s = start_ns / _NS
        self._engine = engine
        self._handle = handle
        self._cancelled = False
        self._lock = Lock()
        self._capture: Capture | None = None

    def wait(self, seconds: float, each: Callable[[], object] = _nothing) -> bool:
        """Block; true when so much time has passed since the window's start.

        False when it was cancelled.

        `each` is called about twenty times a second meanwhile.
        """
        end = max(time.monotonic(), self._starts_s) + seconds
        while not self._cancelled:
            left = end - time.monotonic()
            if left <= 0:
                return True
            each()
            self._engine.sleep(min(left, _POLL_S))
        return False

    def cancel(self) -> None:
        """End a wait early, from any thread."""
        self._cancelled = True

    def copies(self) -> bytes:
        """The C stacks of samples since the last call, where they were asked for."""
        return self._engine.copies()

    def close(self) -> Capture:
        """Stop collecting and hand out what there is. Idempotent."""
        with self._lock:
            if self._capture is None:
                self._capture = self._engine.close_window(self, self._handle)
            return self._capture


class Engine:
    """Opens and closes windows; owns the driver's life."""

    def __init__(self, driver: Driver, reason: str) -> None:
        self._driver = driver
        self._reason = reason
        self._lock = Lock()
        self._windows: set[Window] = set()
        self._registered = False
        self._hz = 0
        self._charged_ns = 0
        self._own_threads: set[int] = set()

    def info(self) -> EngineInfo:
        """Describe the engine. Cheap."""
        return EngineInfo(
            kind=self._driver.kind,
            reason=self._reason,
            windows=len(self._windows),
            counters=self._driver.info(),
        )

    def open_window(
        self,
        hz: int = 100,
        *,
        seconds: float = 30.0,
        limit: int = 4,
        moments: int = 0,
        start_ns: int = 0,
        copies: bool = False,
    ) -> Window:
        """Start collecting.

        Args: `hz` is asked of the first window and shared by those that join;
        `seconds` is how long the caller means to stay, and what refused callers are
        told to wait for. With `moments`, so many samples are kept one by one as well,
        and all are taken at least at its rate while it is open. `start_ns` of
        CLOCK_MONOTONIC is when samples begin to count, where that is not now. With
        `copies`, which one at a time may have, the C stacks of those moments as well.
        Raises: WindowsExhausted beyond `limit`; EngineUnavailable.
        """
        with self._lock:
            if len(self._windows) >= limit:
                first = min(window.ends_s for window in self._windows)
                wait_s = max(1, math.ceil(first - time.monotonic()))
                raise WindowsExhausted("all sampling windows are in use", wait_s)
            self.register()
            if not self._windows:
                self._driver.start(_NS // hz)
                self._hz = hz
            try:
                handle = self._driver.open(moments, start_ns, copies=copies)
            except RuntimeError as error:
                if not self._windows:
                    self._driver.stop()
                raise EngineUnavailable(str(error)) from error
            shared = hz if moments or not self._windows else self._hz
            ends_s = max(time.monotonic(), start_ns / _NS) + seconds
            window = Window(self, handle, ends_s, shared, start_ns)
            self._windows.add(window)
            self._settle()
            return window

    def copies(self) -> bytes:
        """Used by `Window.copies`."""
        return self._driver.copies()

    def machine(self) -> str:
        """The processor whose registers can be copied; empty where they cannot."""
        return self._driver.machine()

    @property
    def hz(self) -> int:
        """The rate asked for now; 0 while nothing samples."""
        return self._hz if self._windows else 0

    def set_rate(self, hz: int) -> None:
        """Sample at another rate from now on; nothing while nothing samples."""
        with self._lock:
            for window in self._windows:
                window.hz = hz
            self._settle()

    def _settle(self) -> None:
        """Sample at the highest rate that an open window wants."""
        hz = max((window.hz for window in self._windows), default=self._hz)
        if hz != self._hz:
            self._driver.set_period(_NS // hz)
            self._hz = hz

    def cancel_all(self) -> None:
        """End every window early; their owners read what there is."""
        for window in list(self._windows):
            window.cancel()

    def charge(self, cpu_ns: int) -> None:
        """Count CPU time that a thread of ours has used."""
        self._charged_ns += cpu_ns

    def own_cpu_ns(self) -> int:
        """CPU time we have used in this process, handler, drainer and threads."""
        return self._charged_ns + self._driver.own_cpu_ns()

    def contexts(self) -> dict[int, Any]:
        """The label cell of each thread now, by ident; empty where it cannot be read."""
        return self._driver.contexts()

    def walk(
        self,
        tasks: list[Any],
        see: Callable[[TaskRow], object],
        breathe: Callable[[], object] = _nothing,
        *,
        described: bool = False,
    ) -> AtRest:
        """All threads but ours, and these tasks (or weak references), as they stand.

        `see` is called with each unfinished task, in the order of `AtRest.tasks`;
        `described` asks the kernel what each thread waits for and how old it is. Blocks some milliseconds per thousand
        tasks, and calls `breathe` several times in each, to give up the GIL.
        """
        return self._driver.walk(tasks, see, breathe, described=described)

    def instances_of(self, kind: type[Any], cap: int) -> list[Any]:
        """Up to `cap` living objects of a type that the garbage collector tracks.

        Holds the GIL from end to end, 10 to 20 ms for a million tracked objects.
        """
        return self._driver.instances_of(kind, cap)

    def close_window(self, window: Window, handle: int) -> Capture:
        """Used by `Window.close`."""
        with self._lock:
            self._windows.discard(window)
            last = not self._windows
            if last:
                self._driver.stop()
            self._settle()
            return self._driver.close(handle, last=last)

    def greet_thread(self, process: int) -> None:
        """Sample the calling thread of a server, of this process, as any other.

        Cheap, to be called for every request. For servers that fork and start threads
        behind the interpreter's back, as uWSGI does.
        """
        self._driver.greet_thread(process)

    def start_thread(self, target: Callable[[], object]) -> None:
        """Run `target` on a thread of the operating system that is never sampled.

        A real one even where gevent has patched `threading`.
        """

        def run() -> None:
            own = ident()
            self._own_threads.add(own)
            try:
                target()
            finally:
                self._own_threads.discard(own)

        self._driver.start_thread(run)

    def own_threads(self) -> frozenset[int]:
        """The idents of our own threads that run now."""
        return frozenset(self._own_threads)

    def sleep(self, seconds: float) -> None:
        """Sleep without the GIL, also where gevent has patched `time.sleep`."""
        self._driver.sleep(seconds)

    def register(self) -> None:
        """See to it that a forked child begins anew and that windows end at exit."""
        if not self._registered:
            self._registered = True
            os.register_at_fork(
                before=self._driver.before_fork,
                after_in_parent=self._driver.after_fork_in_parent,
                after_in_child=self._after_fork,
            )
            atexit.register(self._at_exit)

    def _after_fork(self) -> None:
        self._lock = Lock()
        self._windows = set()
        self._own_threads = set()
        self._driver.after_fork()

    def _at_exit(self) -> None:
        for window in list(self._windows):
            window.cancel()
            window.close()
