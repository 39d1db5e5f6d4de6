"""Working beside an application: give the GIL up every fraction of a millisecond.

The interpreter takes it from us only after 5 ms, which an event loop would feel.
"""

from __future__ import annotations

import time

from stroboscope._core import engine

#: Longest piece of work between two breaths, about: where others hardly wait for the
#: GIL, and at most.
_WORK_NS, _WORK_MAX_NS = 300_000, 2_000_000
#: Where we wait long for it ourselves, work takes this share of the wait: a saturated
#: loop would otherwise make of 50 ms of work a second.
_SHARE = 3
#: A waiting thread needs a moment to take the GIL.
_REST_S = 0.0001


class Breath:
    """Call it in every round of a loop; most calls only look at the clock."""

    __slots__ = ("_since_ns", "_work_ns")

    def __init__(self) -> None:
        self._since_ns = time.perf_counter_ns()
        self._work_ns = _WORK_NS

    def __call__(self) -> None:
        """Let others have the GIL, if it is time."""
        now_ns = time.perf_counter_ns()
        if now_ns - self._since_ns > self._work_ns:
            engine.sleep(_REST_S)
            self._since_ns = time.perf_counter_ns()
            waited_ns = self._since_ns - now_ns
            self._work_ns = max(_WORK_NS, min(waited_ns // _SHARE, _WORK_MAX_NS))
