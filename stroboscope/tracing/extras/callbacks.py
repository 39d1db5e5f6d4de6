"""What event loops run: a slice a callback, and how long it had waited for its turn.

asyncio's own loops exactly, by three of their methods. uvloop's are compiled and cannot
be replaced: of those only the lag is seen (`counters`), and the file says so.
"""

from __future__ import annotations

import asyncio.base_events
import asyncio.events
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from stroboscope._core import recording
from stroboscope._core.replacing import REPLACED
from stroboscope.tracing.extras import Collector, Fact


class LoopCallbacks(Collector):
    """Callbacks by qualified name, a task's step by its coroutine's."""

    name = "loop_callbacks"

    def start(self) -> None:
        """Replace the methods. Raises: KeyError on an interpreter that has others."""
        recording.trace_stamps_clear()
        handle, loop = asyncio.events.Handle, asyncio.base_events.BaseEventLoop
        for owner, method, how in (
            (handle, "_run", "run_handle"),
            (loop, "_call_soon", "stamp_result"),
            (loop, "_add_callback", "stamp_last"),
        ):
            REPLACED.put(owner, method, self.name, partial(_watched, how))

    def leave(self) -> None:
        """Put them back."""
        REPLACED.take(self.name)

    def stop(self) -> Sequence[Fact]:
        """Put them back."""
        facts: list[Fact] = []
        if left := REPLACED.take(self.name):
            facts.append(("loop_callbacks_replaced_by_others", left))
        if "uvloop" in sys.modules:
            facts.append((self.name, "asyncio's own loops only: uvloop's are not seen"))
        return facts


def _watched(how: str, original: Any) -> Any:
    return recording.trace_watched(how, original, asyncio.events.TimerHandle)
