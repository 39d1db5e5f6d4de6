"""Stalls that were seen: the last of them whole, all of them in a histogram."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stroboscope._threads import Lock
from stroboscope.formats.profile import Frame, Labels

#: Stalls that are kept whole.
KEPT = 256
#: Upper bounds of the histogram, in seconds.
BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Stall:
    """One stall: how long, who, where.

    `kind` is `loop`, an event loop that stood still, or `request`, one that kept its
    thread. `cause`: `code`, what ran; `waiting`, the loop's thread had nothing of its
    own to run and did not get to run: the interpreter was held elsewhere, or the
    machine gave no CPU; `held`, the same, and a signal saw who held the interpreter; `many`, a crowd of requests, none of them for most of the time;
    `unseen`, it was over before anybody could look. `frame` is
    the innermost place of the application's own code, `stack` leaf first. `seen` of
    `looks` showed it. `duration_ms` is at least that, without `gc_ms`.
    """

    number: int
    kind: str
    cause: str
    began_s: float
    duration_ms: float
    gc_ms: float
    is_over: bool
    thread: str
    labels: Labels
    frame: Frame | None
    stack: tuple[Frame, ...]
    looks: int
    seen: int
    ids: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


class Histogram:
    """Counts by upper bound, their number and their sum."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


def _nothing(stall: Stall) -> None:
    del stall


class Book:
    """Where stalls are written down. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: deque[Stall] = deque(maxlen=KEPT)
        self._open: dict[int, Stall] = {}
        self._last = 0
        self.histograms = {"loop": Histogram(), "request": Histogram()}
        #: (kind, cause): stalls since the process began.
        self.counted: Counter[tuple[str, str]] = Counter()
        #: Told of each stall that is over, on the watch's thread.
        self.on_close: Callable[[Stall], object] = _nothing

    def number(self) -> int:
        """The number of the next stall."""
        with self._lock:
            self._last += 1
            return self._last

    def show(self, stall: Stall) -> None:
        """Show a stall that goes on; the same number again replaces it."""
        with self._lock:
            self._open[stall.number] = stall

    def drop(self, number: int) -> None:
        """It was none after all."""
        with self._lock:
            self._open.pop(number, None)

    def close(self, stall: Stall) -> None:
        """Count a stall that is over and keep it."""
        with self._lock:
            self._open.pop(stall.number, None)
            self._kept.append(stall)
            self.histograms[stall.kind].add(stall.duration_ms / 1000)
            self.counted[stall.kind, stall.cause] += 1
        self.on_close(stall)

    def count_pause(self) -> None:
        """A loop was late because garbage was collected: nobody's stall."""
        with self._lock:
            self.counted["loop", "gc"] += 1

    def stalls(self) -> list[Stall]:
        """The newest first; those that go on before all."""
        with self._lock:
            return [*self._open.values(), *reversed(self._kept)]

    def after_fork(self) -> None:
        """The child has stalls of its own, and no lock of its parent's."""
        self.__init__()  # type: ignore[misc]
