"""Time as a value, so that tests need no sleep.

The engine's own time is integer nanoseconds of CLOCK_MONOTONIC; this clock serves
tokens, limits and latency labels.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings of time."""

    def monotonic_ns(self) -> int:
        """Nanoseconds that never go back."""

    def time_s(self) -> float:
        """Seconds since 1970, as the machine believes."""


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        """Nanoseconds that never go back."""
        return time.monotonic_ns()

    def time_s(self) -> float:
        """Seconds since 1970, as the machine believes."""
        return time.time()


SYSTEM = SystemClock()
