"""Waits of threads for locks and for news, through the watch over the lock types.

Every lock of `_thread` and every `SimpleQueue`, whenever it was made, and what Python
builds of them: conditions, events, queues, joins. A coroutine that waits for one of
asyncio's primitives, and so for a thread of anyio's, has its slice on its task's track.
"""

from __future__ import annotations

from collections.abc import Sequence

from stroboscope._core.contention import contention
from stroboscope.tracing.extras import Collector, Fact


class Waits(Collector):
    """A slice a wait, named by the function that waits."""

    name = "waits"

    def start(self) -> None:
        """Watch the lock types, if they are not watched already."""
        contention.set_traced(True)

    def stop(self) -> Sequence[Fact]:
        """Watch them only as far as they are counted."""
        contention.set_traced(False)
        return [(self.name, unseen) for unseen in contention.unseen()]
