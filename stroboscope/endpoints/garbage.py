"""Collections that a request may cause: at most one in ten seconds, whoever asks."""

from __future__ import annotations

from stroboscope._clock import SYSTEM, Clock
from stroboscope._threads import Lock

EVERY_S = 10.0


class Garbage:
    """The turn to collect. The application stands still while somebody does."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._lock = Lock()
        self._last_s = float("-inf")

    def claim(self) -> float:
        """Take the turn: 0, or the seconds until there is one."""
        with self._lock:
            now_s = self._clock.monotonic_ns() / 1e9
            left_s = self._last_s + EVERY_S - now_s
            if left_s > 0:
                return left_s
            self._last_s = now_s
            return 0.0

    def after_fork(self) -> None:
        """No lock of the parent's is held in the child."""
        self._lock = Lock()
