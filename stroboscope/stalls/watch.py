"""The one stall watch of a process: a thread that sleeps until something is late.

Nothing starts before a surface begins, and nothing of it runs on an event loop but a
heart's beat: 1 a second while the loop is idle, some 13 while it works.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import gc
import os
import time
from collections.abc import Mapping
from typing import Any, cast
from weakref import WeakKeyDictionary, ref

from stroboscope._core import engine, watching
from stroboscope._core.watching import Heart
from stroboscope._threads import Lock
from stroboscope.stalls.held import LeftBehind, nothing_left
from stroboscope.stalls.hubs import hub_here
from stroboscope.stalls.loops import LoopStall, Note, SpanOf, no_span
from stroboscope.stalls.records import Book
from stroboscope.stalls.requests import SlowRequests
from stroboscope.stalls.telling import Teller


def _note_nothing(span: Any, fields: Mapping[str, Any]) -> None:
    del span, fields


class Watch:
    """Watches loops and, where a server's threads carry requests, those.

    `span_of` and `note` connect it to whoever traces, `left` to what the signal handler left
    for others. All methods are safe from any
    thread and block for no one.
    """

    def __init__(self) -> None:
        self.book = Book()
        self.teller = Teller()
        self.span_of: SpanOf = no_span
        self.note: Note = _note_nothing
        self.left: LeftBehind = nothing_left
        #: Why a loop, or nothing at all, is watched; empty while all is well.
        self.failure = ""
        self._lock = Lock()
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, ref[Heart] | None]
        self._loops = WeakKeyDictionary()
        self._stalls: dict[Heart, LoopStall] = {}
        #: Late beats of each heart that are in the book.
        self._late: WeakKeyDictionary[Heart, int] = WeakKeyDictionary()
        self._requests = SlowRequests(self.book, self.teller)
        self._requests_next_s = 0.0
        self._threshold_s = self._slow_s = 0.0
        self._has_threads = False
        self._runs_in = 0
        self._is_registered = False

    @property
    def is_on(self) -> bool:
        """Whether it watches, in this process."""
        return self._runs_in == os.getpid()

    def begin(self, threshold_ms: float, slow_request_s: float) -> None:
        """Watch from now on, in this process; 0 watches nothing of that kind."""
        self._slow_s = slow_request_s
        self.set_threshold(threshold_ms)

    def set_threshold(self, threshold_ms: float) -> None:
        """A loop is late after so long; 0 stops the watch."""
        with self._lock:
            self._threshold_s = threshold_ms / 1000
            if not threshold_ms:
                self._stop()
                return
            watching.watch_start(int(threshold_ms * 1e6))
            if not self.is_on:
                self._start()
            loops = [loop for loop, heart in self._loops.items() if not _beats(heart)]
        for loop in loops:
            self._give_heart(loop)

    def add_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch a loop, now or as soon as the watch begins. Any thread, any time."""
        with self._lock:
            if loop in self._loops:
                return
            self._loops[loop] = None
        if self.is_on:
            self._give_heart(loop)

    def add_threads(self) -> None:
        """Watch requests that keep their thread, too; of greenlets, their hub.

        On a thread that serves requests.
        """
        hub = hub_here()
        if hub is not None:
            self.add_loop(cast("asyncio.AbstractEventLoop", hub))
            return
        if not self._has_threads:
            self._has_threads = True
            if self.is_on:
                watching.watch_start(int(self._threshold_s * 1e9))

    def stop(self) -> None:
        """Watch nothing any more."""
        with self._lock:
            self._stop()

    def own_cpu_ns(self) -> int:
        """CPU time of the ticker in this process."""
        return watching.watch_cpu_ns()

    def _start(self) -> None:
        if not self._is_registered:
            self._is_registered = True
            os.register_at_fork(after_in_child=self._after_fork)
            atexit.register(self.stop)
        gc.callbacks.append(watching.gc_phase)
        self._runs_in = os.getpid()
        try:
            engine.start_thread(self._run)
        except RuntimeError as error:  # the next process or change tries again
            self.failure = str(error)
            self._stop()

    def _stop(self) -> None:
        if not self.is_on:
            return
        self._runs_in = 0
        if watching.gc_phase in gc.callbacks:
            gc.callbacks.remove(watching.gc_phase)
        watching.watch_stop()

    def _after_fork(self) -> None:
        self._lock = Lock()
        self.teller.after_fork()
        self.book.after_fork()
        self._requests = SlowRequests(self.book, self.teller)
        self._loops = WeakKeyDictionary()
        self._stalls = {}
        self._has_threads = False
        if self._runs_in and watching.gc_phase in gc.callbacks:
            gc.callbacks.remove(watching.gc_phase)
        self._runs_in = 0

    def _give_heart(self, loop: asyncio.AbstractEventLoop) -> None:
        def join() -> None:
            try:
                heart = Heart()
                loop.add_reader(heart.fileno(), heart)
            except (RuntimeError, NotImplementedError, OSError) as error:
                self.failure = f"an event loop is not watched: {error}"
                return
            # The loop alone holds it: it goes with the loop.
            self._loops[loop] = ref(heart)

        # In a context of its own: the request that brought us here must not live on in
        # the loop's reader, nor lend a beat its labels.
        try:
            loop.call_soon_threadsafe(join, context=contextvars.Context())
        except RuntimeError:  # closed
            pass

    def _run(self) -> None:
        while watching.watch_wait(self._pause_s()):
            before_ns = time.thread_time_ns()
            try:
                self._turn()
            except Exception as error:  # the next turn may go better
                self.failure = f"{type(error).__name__} in the watch"
            engine.charge(time.thread_time_ns() - before_ns)

    def _pause_s(self) -> float:
        """Until the next look, if nothing is late before; below 0: nothing to do."""
        pauses = [stall.pause_s for stall in self._stalls.values()]
        if self._has_threads and self._slow_s:
            pauses.append(SlowRequests.every_s(self._slow_s))
        return min(pauses, default=-1.0)

    def _turn(self) -> None:
        for loop, kept in list(self._loops.items()):
            heart = kept() if kept is not None else None
            if heart is not None and heart not in self._stalls:
                self._notice(heart, loop)
        for heart, stall in list(self._stalls.items()):
            if stall.is_over:
                del self._stalls[heart]
                self._late[heart] = heart.late_beats
                stall.finish(
                    self.teller, self.span_of, self.note, self._threshold_s, self.left
                )
            elif stall.is_void:
                del self._stalls[heart]
                heart.rest()
                stall.drop()
            else:
                stall.look(self.teller, self.span_of, self.note)
        self._turn_requests()

    def _notice(self, heart: Heart, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to look at a late heart; note one that was late and is no more."""
        if heart.overdue_ns:
            if loop.is_running():
                self._stalls[heart] = LoopStall(heart, loop, self.book)
            else:
                heart.rest()
        elif heart.late_beats > self._late.get(heart, 0):
            unseen = LoopStall(heart, loop, self.book, after=True)
            unseen.finish(
                self.teller, self.span_of, self.note, self._threshold_s, self.left
            )
            self._late[heart] = heart.late_beats

    def _turn_requests(self) -> None:
        now_s = time.monotonic()
        if self._has_threads and self._slow_s and now_s >= self._requests_next_s:
            self._requests_next_s = now_s + SlowRequests.every_s(self._slow_s) * 0.9
            self._requests.turn(self._slow_s, self.span_of, self.note)


def _beats(kept: ref[Heart] | None) -> bool:
    return kept is not None and kept() is not None


#: The watch of this process.
WATCH = Watch()


def watch_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Watch an event loop that serves no requests of ours, such as a worker's.

    Takes effect once a surface of this process has begun. Safe from any thread, also
    before the loop runs; the loop must take readers (`add_reader`).
    """
    WATCH.add_loop(loop)
