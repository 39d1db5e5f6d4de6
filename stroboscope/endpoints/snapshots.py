"""One walk over the stacks for all who ask at the same time."""

from __future__ import annotations

from collections.abc import Callable

from stroboscope._clock import SYSTEM, Clock
from stroboscope._core import engine
from stroboscope._threads import Lock
from stroboscope.profiles.stacks import Snapshot

#: How old a snapshot may be that is given to somebody else, in seconds.
SHARED_S = 0.5


class Snapshots:
    """Shares what `take` returns among those who ask within `SHARED_S`.

    Who asks during a walk waits for it: our threads do, no loop does. The last snapshot
    is let go when it is too old to be shared.
    """

    def __init__(self, take: Callable[[], Snapshot], clock: Clock = SYSTEM) -> None:
        self._take = take
        self._clock = clock
        self._lock = Lock()
        self._shared: Snapshot | None = None
        self._began_s = 0.0
        #: Walks since the process began.
        self.walks = 0

    def get(self, *, is_fresh: bool = False) -> Snapshot:
        """The stacks; `is_fresh` for a walk that begins after the call."""
        asked_s = self._now_s()
        with self._lock:
            oldest_s = asked_s - (0.0 if is_fresh else SHARED_S)
            if self._shared is not None and self._began_s >= oldest_s:
                return self._shared
            self._began_s = self._now_s()
            self.walks += 1
            found, was_kept = self._take(), self._shared is not None
            self._shared = found
        if not was_kept:
            self._forget_soon()
        return found

    def after_fork(self) -> None:
        """The child shares nothing of its parent's."""
        self._lock = Lock()
        self._shared = None

    def _forget_soon(self) -> None:
        try:
            engine.start_thread(self._forget)
        except RuntimeError:  # no thread to be had: then nothing is kept
            self._shared = None

    def _forget(self) -> None:
        while True:
            engine.sleep(SHARED_S)
            with self._lock:
                if self._now_s() - self._began_s >= SHARED_S:
                    self._shared = None
                    return

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9
