"""The native driver: the C engine behind the interface the Engine uses."""

from __future__ import annotations

import contextlib
import itertools
import struct
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

from stroboscope._core import _native
from stroboscope._core.at_rest import AtRest, TaskRow, ThreadRow
from stroboscope._core.capture import Capture, Moment, Row
from stroboscope._core.places import BREATH_S, SLICE, places_of, slices
from stroboscope._threads import start_thread
from stroboscope.errors import EngineUnavailable

#: Threads, whose state the kernel is asked for, and tasks in one step.
_THREAD_SLICE, _TASK_SLICE = 16, 100
#: `sb_moment` of `_core/src/window.h`.
_MOMENT = struct.Struct("<2Q4I")


def _resolve(cell: _native.LabelCell) -> None:
    # The source is the application's data read from another thread: it may fail in any
    # way, and then the label is missing.
    with contextlib.suppress(Exception):
        source = cell.source
        found = source() if source is not None else None
        if found is not None:
            cell.labels = found


#: What a thread runs first.
_BOOTSTRAP = "_bootstrap_inner"


class NativeDriver:
    """Per-thread CPU timers and a signal handler; see `_core/src/sampler.h`."""

    kind = "native"

    def __init__(self) -> None:
        self._period_ns = 0
        self._before: dict[str, int] = {}
        #: The window that C stacks are copied for, or -1.
        self._copying = -1
        #: Thread, or what it inherits from, its own method and ours, while in its place.
        self._bootstrap: tuple[type, Any, Any] | None = None

    def start(self, period_ns: int) -> None:
        """Own SIGPROF and arm every thread.

        Raises: EngineUnavailable when SIGPROF has another owner, or when this
        interpreter's frames do not read as expected.
        """
        if not _native.check():
            raise EngineUnavailable("this interpreter's frames cannot be read")
        try:
            is_undrained = _native.start(period_ns)
        except (RuntimeError, OSError) as error:
            raise EngineUnavailable(str(error)) from error
        self._period_ns = period_ns
        try:
            if is_undrained:
                start_thread(_native.drain)
            self._hook_thread_start()
        except BaseException:
            _native.stop()
            raise

    def stop(self) -> None:
        """Disarm every thread. Windows stay readable."""
        self._unhook_thread_start()
        _native.stop()

    def set_period(self, period_ns: int) -> None:
        """Sample at another period from now on."""
        self._period_ns = period_ns
        _native.set_period(period_ns)

    def own_cpu_ns(self) -> int:
        """CPU time of the handler and of the drainer since the process began."""
        now = _native.info()
        return now["handler_ns"] + now["drainer_ns"]

    def contexts(self) -> dict[int, Any]:
        """The label cell of each thread now, by ident."""
        return dict(_native.contexts())

    def walk(
        self,
        tasks: list[Any],
        see: Callable[[TaskRow], object],
        breathe: Callable[[], object],
        *,
        described: bool,
    ) -> AtRest:
        """Read all threads and these tasks, at rest, in slices under the GIL."""
        threads: list[ThreadRow] = []
        stacks = array("q")
        _native.hold_stacks()
        try:
            below = 1 << 63
            while rows := _native.walk_threads(below, _THREAD_SLICE, described):
                below = rows[-1][0]
                threads.extend(ThreadRow(*row[1:]) for row in rows if row[2] >= 0)
                breathe()
            for first in range(0, len(tasks), _TASK_SLICE):
                for row in _native.walk_tasks(tasks, first, _TASK_SLICE):
                    stacks.append(row[0])
                    see(TaskRow(*row))
                breathe()
            used = itertools.chain(stacks, (row.stack for row in threads))
            frames, named, at = places_of(used, of_ledgers=True)
        finally:
            _native.drop_stacks()
        return AtRest(
            frames,
            named,
            [row._replace(stack=at[row.stack]) for row in threads],
            array("q", (at.get(stack, -1) for stack in stacks)),
        )

    def instances_of(self, kind: type[Any], cap: int) -> list[Any]:
        """Found in the garbage collector's own lists; see `_core/src/search.h`."""
        return _native.instances_of(kind, cap)

    def _hook_thread_start(self) -> None:
        # gevent puts a class of its own in Thread's place, which inherits the method.
        owner = next(c for c in threading.Thread.__mro__ if _BOOTSTRAP in vars(c))
        original = vars(owner)[_BOOTSTRAP]
        ours = _native.wrap_bootstrap(original)
        setattr(owner, _BOOTSTRAP, ours)
        self._bootstrap = owner, original, ours

    def _unhook_thread_start(self) -> None:
        """Where somebody else's is over ours, ours stays: it only passes on."""
        if self._bootstrap is not None:
            owner, original, ours = self._bootstrap
            if vars(owner).get(_BOOTSTRAP) is ours:
                setattr(owner, _BOOTSTRAP, original)
            self._bootstrap = None

    def open(self, moments: int, start_ns: int, *, copies: bool) -> int:
        """Open a window; samples from now or `start_ns` on belong to it."""
        self._before = _native.info()
        handle = _native.window_open(moments, start_ns, copies)
        if copies:
            self._copying = handle
        return handle

    def copies(self) -> bytes:
        """The C stacks of samples since the last call; see `_core/src/copies.h`."""
        return _native.copies_take()

    def machine(self) -> str:
        """The processor, where its registers are known."""
        return _native.MACHINE

    def close(self, handle: int, *, last: bool) -> Capture:
        """Stop the window, read it slice by slice, and free it.

        `last` says that no other window is open: then the labels of finished
        requests may go. Blocks some milliseconds for large windows, never long with
        the GIL.
        """
        extent = _native.window_stop(handle)
        end_ns = time.time_ns() - (time.monotonic_ns() - extent["stop_ns"])
        copies = b""
        if handle == self._copying:
            copies = _native.copies_take()
            self._copying = -1
        try:
            self._resolve_live_cells()
            rows: list[Row] = slices(
                extent["rows"], lambda i, n: _native.window_rows(handle, i, n)
            )
            frames, stacks, at = places_of((row[0] for row in rows), of_ledgers=False)
            rows = [(at[row[0]], *row[1:]) for row in rows]
            moments = self._moments(_native.window_moments(handle), at)
            chains = self._chains(rows)
        finally:
            _native.window_free(handle)
            if last:
                _native.forget()
        duration_ns = extent["stop_ns"] - extent["start_ns"]
        return Capture(
            start_ns=end_ns - duration_ns,
            duration_ns=duration_ns,
            period_ns=self._period_ns,
            frames=frames,
            stacks=stacks,
            rows=rows,
            chains=chains,
            notes=self._notes(extent),
            moments=moments,
            late=extent["late"],
            copies=copies,
        )

    def _resolve_live_cells(self) -> None:
        resolved = set()
        for cell in _native.live_sampled():
            # With those around it: a request that was sampled only in a block of its
            # own is not marked, and its labels are wanted all the same.
            around: _native.LabelCell | None = cell
            while around is not None and around.serial not in resolved:
                resolved.add(around.serial)
                _resolve(around)
                around = around.parent
            cell.show()

    def _moments(self, block: bytes, at: dict[int, int]) -> list[Moment]:
        size = _MOMENT.size

        def read(first: int, count: int) -> list[Moment]:
            some = block[first * size : (first + count) * size]
            found = _MOMENT.iter_unpack(some)
            return [Moment(*one)._replace(stack=at[one[2]]) for one in found]

        return sorted(slices(len(block) // size, read))

    def _chains(self, rows: list[Row]) -> dict[int, tuple[object, ...]]:
        chains: dict[int, tuple[object, ...]] = {}
        # Equal chains are one object: fewer for the garbage collector to visit.
        same: dict[tuple[object, ...], tuple[object, ...]] = {}
        for at, (_, serial, _, _) in enumerate(rows):
            if serial and serial not in chains:
                chain = _native.chain_of(serial)
                chains[serial] = same.setdefault(chain, chain)
            if at % SLICE == SLICE - 1:
                _native.sleep(BREATH_S)
        return chains

    def _notes(self, extent: dict[str, int]) -> list[str]:
        now = _native.info()
        delta = {key: now[key] - self._before.get(key, 0) for key in _LOSSES}
        notes = [f"{text}: {delta[key]}" for key, text in _LOSSES.items() if delta[key]]
        if extent["full"]:
            notes.append(f"samples lost, tables full: {extent['full']}")
        if now["robbed"]:
            notes.append("SIGPROF was taken by another handler; sampling ended early")
        return notes

    def before_fork(self) -> None:
        """Let a turn end, milliseconds as a rule: `turn.h` says why."""
        _native.before_fork()

    def after_fork_in_parent(self) -> None:
        """Turns may be had again."""
        _native.after_fork_in_parent()

    def after_fork(self) -> None:
        """Forget the parent's windows and timers, which the child does not have."""
        self._unhook_thread_start()
        _native.after_fork()

    def exclude_current_thread(self) -> None:
        """Never sample the calling thread."""
        _native.exclude_current_thread()

    def greet_thread(self, process: int) -> None:
        """Sample the calling thread, whatever a server did to it before."""
        _native.greet_thread(process)

    def start_thread(self, target: Callable[[], object]) -> None:
        """Run `target` on a thread of the operating system, never sampled."""

        def run() -> None:
            _native.exclude_current_thread()
            try:
                target()
            finally:  # there is room for so many at a time
                _native.include_current_thread()

        start_thread(run)

    def sleep(self, seconds: float) -> None:
        """Sleep without the GIL, also where gevent has patched `time.sleep`."""
        _native.sleep(seconds)

    def info(self) -> dict[str, Any]:
        """Counters since the process began, and the state of SIGPROF."""
        return _native.info()


_LOSSES = {
    "lost_full": "samples lost, ring full",
    "lost_fault": "samples lost, unreadable stack",
    "lost_torn": "samples lost, stack read in the middle of a call",
    "lost_unguarded": "samples lost, fault guard taken",
    "threads_refused": "threads without a timer",
}
