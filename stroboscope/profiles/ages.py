"""How old tasks are, as far as anybody knows.

asyncio does not note when a task was made. Two things are known: when the request
began that a task works for, and when a snapshot first saw it. The first stands where
there is a request, and is then an upper bound for tasks the request started later; the
second is a lower bound. A thread's age the kernel knows.
"""

from __future__ import annotations

import weakref
from typing import Any


class Ages:
    """Remembers first sights from one snapshot to the next; one reader at a time.

    Bounded by the tasks one snapshot reads: those the latest did not see are forgotten.
    """

    def __init__(self) -> None:
        self._before: dict[weakref.ref[Any], int] = {}
        self._now: dict[weakref.ref[Any], int] = {}

    def age_ns(self, item: Any, cell: Any, now_ns: int) -> int:
        """How old a task is, by its request or by when it was first seen.

        `item` is the task, or a weak reference to it: that is kept as it is, for ten
        thousand new ones would set off the garbage collector.
        """
        key = item if isinstance(item, weakref.ref) else weakref.ref(item)
        seen_ns = self._now[key] = self._before.get(key, now_ns)
        return max(0, now_ns - min(seen_ns, _request_began_ns(cell) or now_ns))

    def forget_others(self) -> None:
        """The snapshot is over: keep what it saw."""
        self._before, self._now = self._now, {}


def _request_began_ns(cell: Any) -> int | None:
    """The moment the request around a cell began, on the monotonic clock.

    The cell of a request has a bound method of the observed request as its source.
    """
    while cell is not None:
        began_ns = getattr(getattr(cell.source, "__self__", None), "began_ns", None)
        if isinstance(began_ns, int):
            return began_ns
        cell = cell.parent
    return None
