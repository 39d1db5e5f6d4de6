"""Working beside an application: give the GIL up every fraction of a millisecond.

The interpreter takes it from us only after 5 ms, which an event loop would feel.
"""

from __future__ import annotations

import time

from stroboscope._core import engine

#: Longest piece of work between two breaths, about.
_WORK_NS = 300_000
#: A waiting thread needs a moment to take the GIL.
_REST_S = 0.0001


class Breath:
    """Call it in every round of a loop; most calls only look at the clock."""

    __slots__ = ("_since_ns",)

    def __init__(self) -> None:
        self._since_ns = time.perf_counter_ns()

    def __call__(self) -> None:
        """Let others have the GIL, if it is time."""
        if time.perf_counter_ns() - self._since_ns > _WORK_NS:
            engine.sleep(_REST_S)
            self._since_ns = time.perf_counter_ns()
