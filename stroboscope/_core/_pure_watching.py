"""The portable stall watch: the same calls, polled from the watcher's own thread.

It needs the GIL to look at the clock, wakes loops whether idle or not, and cannot read
another thread's context: a stall is seen, its place is named, its labels are missing.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
import time
from weakref import WeakSet

from stroboscope._core._pure import LabelCell
from stroboscope._core.capture import Frame
from stroboscope._threads import ident, real

_DEPTH = 256
_threshold_ns = 0
_hearts: WeakSet[Heart] = WeakSet()
_gc_began_ns = _gc_total_ns = 0


class Heart:
    """Beats on an event loop that reads its descriptor, and knows when it was late."""

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        self._asked_ns = self._gc_at_ns = 0
        self._rests = True
        self.is_noticed = False
        self.beats = self.late_beats = self.late_ns = self.late_gc_ns = self.ident = 0
        self._writing.send(b"1")
        _hearts.add(self)

    def __call__(self) -> None:
        """One beat."""
        with contextlib.suppress(OSError):
            self._reading.recv(4096)
        if self.overdue_ns:
            self.late_ns = time.monotonic_ns() - self._asked_ns
            self.late_gc_ns = min(gc_spent() - self._gc_at_ns, self.late_ns)
            self.late_beats += 1
        self._asked_ns, self._rests, self.is_noticed = 0, False, False
        self.beats += 1
        self.ident = ident()

    def fileno(self) -> int:
        """What the loop has to read from."""
        return self._reading.fileno()

    @property
    def overdue_ns(self) -> int:
        """How late the next beat is; 0 within the threshold."""
        late_ns = time.monotonic_ns() - self._asked_ns
        return late_ns if self._asked_ns and late_ns > _threshold_ns else 0

    def ask(self) -> None:
        """Ask the loop for a beat, unless it is asked already."""
        if not self._asked_ns and not self._rests:
            self._asked_ns, self._gc_at_ns = time.monotonic_ns(), gc_spent()
            with contextlib.suppress(OSError):
                self._writing.send(b"1")

    def stop(self) -> None:
        """Beat no more."""
        _hearts.discard(self)
        self._reading.close()
        self._writing.close()

    def rest(self) -> None:
        """Ask for nothing before the next beat: the loop does not run."""
        self._asked_ns, self._rests = 0, True


def watch_start(threshold_ns: int, /) -> None:
    """Watch, or change the threshold."""
    global _threshold_ns
    _threshold_ns = threshold_ns


def watch_stop() -> None:
    """Watch no more."""
    watch_start(0)


def watch_wait(seconds: float, /) -> bool:
    """Wait for a heart that is newly late, or so many seconds (below 0: for ever)."""
    end = time.monotonic() + seconds if seconds >= 0 else float("inf")
    while _threshold_ns:
        hearts = list(_hearts)
        late = [h for h in hearts if h.overdue_ns and not h.is_noticed]
        for heart in late:
            heart.is_noticed = True
        if late or time.monotonic() >= end:
            return True
        for heart in hearts:
            heart.ask()
        real("sleep", "time")(
            min(_threshold_ns / 2e9, max(0.0, end - time.monotonic()))
        )
    return False


def watch_cpu_ns() -> int:
    """The watcher's own thread counts itself."""
    return 0


def gc_phase(phase: str, info: object) -> None:
    """Goes into gc.callbacks."""
    global _gc_began_ns, _gc_total_ns
    if phase == "start":
        _gc_began_ns = time.monotonic_ns()
    else:
        _gc_total_ns, _gc_began_ns = gc_spent(), 0


def gc_spent() -> int:
    """Nanoseconds of collections, since it did."""
    since = time.monotonic_ns() - _gc_began_ns if _gc_began_ns else 0
    return _gc_total_ns + since


def look(ident: int, /) -> tuple[None, list[Frame]] | None:
    """A thread's stack now, by ident, leaf first; its context cannot be read here."""
    frame = sys._current_frames().get(ident)
    if frame is None:
        return None
    found: list[Frame] = []
    while frame is not None and len(found) < _DEPTH:
        code = frame.f_code
        line = frame.f_lineno or code.co_firstlineno
        found.append((code.co_filename, code.co_qualname, code.co_firstlineno, line))
        frame = frame.f_back
    return None, found


def live_sampled() -> list[LabelCell]:
    """Nothing is sampled under a cell here."""
    return []


def samples_are_kept() -> bool:
    """Whether samples are left in a file; not here."""
    return False


def samples_open(file: int, /) -> None:
    """Raises: OSError. Only the C engine sees who holds the interpreter."""
    raise OSError(errno.ENOTSUP, "only the C engine leaves samples")
