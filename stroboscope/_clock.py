"""Time as a value, so that tests need no sleep.

The engine's own time is integer nanoseconds of CLOCK_MONOTONIC; this clock serves
tokens, limits and latency labels.
"""

import re
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


def boot_id() -> str:
    """The kernel's number for the time since the machine began; empty without one.

    The same in all containers of a machine, and on no other machine.
    Source: random(4).
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration_s(text: object) -> float:
    """Seconds of `90s`, `15m`, `12h` or `7d`. Raises: ValueError."""
    found = (
        re.fullmatch(r"([0-9]{1,9})([smhd])", text) if isinstance(text, str) else None
    )
    if found is None:
        raise ValueError(f"{text!r:.40} is no time such as 90s, 15m or 12h")
    return float(int(found[1]) * _UNITS_S[found[2]])
