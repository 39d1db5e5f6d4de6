"""The recorder of this process: a flight recorder that is always on, and captures.

One ring in memory serves both. Nothing is recorded before a process takes part and says
what it wants; a forked child begins anew.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from stroboscope._core import engine, recording
from stroboscope.errors import EngineUnavailable
from stroboscope.settings import RECORDER_BYTES

#: A capture holds no more than this; what comes then is not in it, and it says so.
CAPTURE_BYTES_CAP = 64 << 20
#: How often a capture takes what has come: the ring must not go round in between.
_DRAIN_S = 0.02


class Recorder:
    """Opens the ring when somebody wants it. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_open = self._is_registered = False
        self._bytes = RECORDER_BYTES
        self._service = ""

    def configure(self, service: str, ring_bytes: int) -> None:
        """How the ring is made, when it is; a ring that is there stays as it is."""
        self._service, self._bytes = service, ring_bytes

    def set_fraction(self, fraction: float) -> None:
        """Record this share of tasks from now on."""
        if recording.AVAILABLE:
            recording.trace_fraction(fraction)

    def set_flight(self, is_on: bool) -> None:
        """Begin or end to keep the last seconds. Nothing without the C engine."""
        if not recording.AVAILABLE:
            return
        with self._lock:
            if is_on:
                self._open()
            recording.trace_want(recording.FLIGHT, is_on)

    def snapshot(self) -> bytes | None:
        """The last seconds as a block for `Timeline.read`; None where nothing is."""
        return recording.trace_snapshot() if recording.AVAILABLE else None

    def capture(self, seconds: float, is_cancelled: Callable[[], bool]) -> Capture:
        """All events from now on for so long. Blocks; one at a time.

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
        ends_s = time.monotonic() + seconds
        try:
            while (left_s := ends_s - time.monotonic()) > 0:
                engine.sleep(min(left_s, _DRAIN_S))
                if not recording.trace_capture_drain():
                    ended = "full"
                    break
                if is_cancelled():
                    ended = "cancelled"
                    break
        finally:
            block = recording.trace_capture_end()
        if block is None:
            raise EngineUnavailable("the recorder was closed meanwhile")
        return Capture(block, ended)

    def close(self) -> None:
        """Give the ring up."""
        with self._lock:
            if self._is_open:
                recording.trace_close()
                self._is_open = False

    def _open(self) -> None:
        if self._is_open:
            return
        events = 1 << (self._bytes // recording.EVENT_BYTES).bit_length() - 1
        recording.trace_open(None, events, self._service)
        self._is_open = True
        if not self._is_registered:
            self._is_registered = True
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._is_open = False
        recording.trace_after_fork()


class Capture:
    """A capture's block, and how it ended: complete, full or cancelled."""

    __slots__ = ("block", "ended")

    def __init__(self, block: bytes, ended: str) -> None:
        self.block = block
        self.ended = ended


recorder = Recorder()
