"""Pools of threads: a slice a job on its worker, and how long it had waited for one.

`ThreadPoolExecutor`, and so `asyncio.to_thread` and `run_in_executor`. anyio's workers
take a job out of a queue inside the one function that they run for ever: no method
passes by where a job begins. It never waits there, for anyio gives a job to a worker that
is idle; where it waits for one, in the limiter, is among the waits of coroutines.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import thread
from functools import partial
from typing import Any

from stroboscope._core import recording
from stroboscope._core.replacing import REPLACED
from stroboscope.tracing.extras import Collector, Fact


class PoolJobs(Collector):
    """Jobs by their function's qualified name."""

    name = "pool_jobs"

    def start(self) -> None:
        """Replace the methods. Raises: KeyError on an interpreter that has others."""
        item = thread._WorkItem
        for method, how in (("__init__", "stamp_first"), ("run", "run_work")):
            REPLACED.put(item, method, self.name, partial(_watched, how))

    def leave(self) -> None:
        """Put them back."""
        REPLACED.take(self.name)

    def stop(self) -> Sequence[Fact]:
        """Put them back."""
        facts: list[Fact] = []
        if left := REPLACED.take(self.name):
            facts.append(("pool_jobs_replaced_by_others", left))
        if "anyio" in sys.modules:
            facts.append((self.name, "ThreadPoolExecutor's only: of anyio's the waits"))
        return facts


def _watched(how: str, original: Any) -> Any:
    return recording.trace_watched(how, original, thread._WorkItem)
