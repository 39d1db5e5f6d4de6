"""Pools of threads: a slice a job on its worker, and how long it had waited for one.

`ThreadPoolExecutor`, and so `asyncio.to_thread` and `run_in_executor`. anyio's workers
have a queue of their own and are not seen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import thread

from stroboscope._core import recording
from stroboscope.tracing.extras import Collector, Fact
from stroboscope.tracing.extras.replacing import Replacements


class PoolJobs(Collector):
    """Jobs by their function's qualified name."""

    name = "pool_jobs"

    def __init__(self) -> None:
        self._replaced = Replacements()

    def start(self) -> None:
        """Replace the methods. Raises: KeyError on an interpreter that has others."""
        item = thread._WorkItem
        for method, how in (("__init__", "stamp_first"), ("run", "run_work")):
            made = recording.trace_watched(how, vars(item)[method], item)
            self._replaced.put(item, method, made)

    def leave(self) -> None:
        """Put them back."""
        self._replaced.restore()

    def stop(self) -> Sequence[Fact]:
        """Put them back."""
        facts: list[Fact] = []
        if left := self._replaced.restore():
            facts.append(("pool_jobs_replaced_by_others", left))
        if "anyio" in sys.modules:
            facts.append((self.name, "ThreadPoolExecutor's only: anyio's are not seen"))
        return facts
