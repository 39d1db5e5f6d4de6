"""The recorder of this process: a flight recorder that is always on, and captures.

One ring in memory serves both; where there is a run directory the memory is a file's, so
that it outlives its process: see `blackbox`. Nothing is recorded before a process takes
part and says what it wants; a forked child begins anew.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stroboscope._core import engine, recording
from stroboscope._threads import Lock
from stroboscope.errors import EngineUnavailable, FolderError
from stroboscope.settings import RECORDER_BYTES
from stroboscope.tracing import blackbox, extras
from stroboscope.tracing.extras import Collector, Fact

#: A capture holds no more than this; what comes then is not in it, and it says so.
CAPTURE_BYTES_CAP = 64 << 20
#: How often a capture takes what has come: the ring must not go round in between.
_DRAIN_S = 0.02


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture's block, and how it ended: complete, full or cancelled."""

    block: bytes
    ended: str
    #: What its collectors say of themselves.
    facts: Sequence[Fact] = ()


class Recorder:
    """Opens the ring when somebody wants it. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_open = self._is_registered = self._wants_flight = False
        self._bytes = RECORDER_BYTES
        self._service = ""
        self._folder: blackbox.Folder | None = None
        self._box: blackbox.Box | None = None
        self._running = extras.Running()
        #: Why the ring is not in a file, though it should be; or nothing.
        self.problem = ""

    def configure(
        self, service: str, ring_bytes: int, folder: blackbox.Folder | None = None
    ) -> None:
        """How the ring is made, when it is; a ring that is there stays as it is."""
        self._service, self._bytes, self._folder = service, ring_bytes, folder

    def set_fraction(self, fraction: float) -> None:
        """Record this share of tasks from now on."""
        if recording.AVAILABLE:
            recording.trace_fraction(fraction)

    def set_flight(self, is_on: bool) -> None:
        """Begin or end to keep the last seconds. Nothing without the C engine.

        With a folder it begins a moment later, on a thread of ours: to make the file
        takes milliseconds.
        """
        if not recording.AVAILABLE:
            return
        self._wants_flight = is_on
        if is_on and self._folder is not None and not self._is_open:
            with contextlib.suppress(RuntimeError):  # no thread to be had
                engine.start_thread(self._apply)
                return
        self._apply()

    def _apply(self) -> None:
        with self._lock:
            if self._wants_flight:
                self._open()
            if self._is_open:
                recording.trace_want(recording.FLIGHT, self._wants_flight)
            if self._wants_flight and self._box is not None:
                self._box.watch()

    def snapshot(self, events: int = recording.EVENTS_MAX) -> bytes | None:
        """The last seconds as a block for `Timeline.read`; None where nothing is.

        At most the last so many events.
        """
        return recording.trace_snapshot(events) if recording.AVAILABLE else None

    def capture(
        self,
        seconds: float,
        is_cancelled: Callable[[], bool],
        collectors: Sequence[Collector] = (),
    ) -> Capture:
        """All events from now on for so long. Blocks; one at a time.

        The collectors run meanwhile, and not a moment longer.

        Raises: EngineUnavailable without the C engine, or while another one runs.
        """
        if not recording.AVAILABLE:
            raise EngineUnavailable("the recorder is part of the C engine")
        with self._lock:
            self._open()
            try:
                recording.trace_capture_begin(
                    CAPTURE_BYTES_CAP // recording.EVENT_BYTES
                )
            except RuntimeError as error:
                raise EngineUnavailable(str(error)) from error
        ended = "complete"
        running = self._running = extras.Running()
        try:
            running.start(collectors)
            ends_s = time.monotonic() + seconds
            while (left_s := ends_s - time.monotonic()) > 0:
                engine.sleep(min(left_s, _DRAIN_S))
                running.tick()
                if not recording.trace_capture_drain():
                    ended = "full"
                    break
                if is_cancelled():
                    ended = "cancelled"
                    break
        finally:
            facts = running.stop()
            block = recording.trace_capture_end()
        if block is None:
            raise EngineUnavailable("the recorder was closed meanwhile")
        return Capture(block, ended, facts)

    def close(self) -> None:
        """Give the ring up, and its file: this process has nothing to tell any more."""
        self._wants_flight = False
        with self._lock:
            if self._is_open:
                recording.trace_close()
                self._is_open = False
            box, self._box = self._box, None
            if box is not None:
                box.remove()

    def part(self) -> None:
        """Before the process ends in order: its box is no killed one's from now on.

        The ring records on, for whoever asks meanwhile. Raises nothing.
        """
        with self._lock:
            self._folder = None
            if self._box is not None:
                self._box.unlink()

    def _open(self) -> None:
        if self._is_open:
            return
        events = 1 << (self._bytes // recording.EVENT_BYTES).bit_length() - 1
        self.problem = ""
        if self._folder is not None:
            try:
                self._box = blackbox.Box(self._folder, events, self._service)
            except (OSError, FolderError) as error:
                self.problem = str(error)
        if self._box is None:
            recording.trace_open(-1, events, self._service)
        self._is_open = True
        with contextlib.suppress(RuntimeError):  # no thread to be had: it costs more
            engine.start_thread(recording.trace_prefault)
        if not self._is_registered:
            self._is_registered = True
            os.register_at_fork(after_in_child=self._after_fork)
            atexit.register(self._at_exit)

    def _at_exit(self) -> None:
        with contextlib.suppress(RuntimeError):  # somebody still reads it
            self.close()

    def _after_fork(self) -> None:
        self._lock = Lock()
        self._is_open = False
        recording.trace_after_fork()
        self._running.leave()
        box, self._box = self._box, None
        if box is not None:
            box.leave()


recorder = Recorder()
