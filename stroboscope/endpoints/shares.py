"""Which share links were opened: each stands for one capture, taken once.

The capture itself lies with the others; see `captures`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from stroboscope._clock import SYSTEM, Clock

#: Links remembered until they end; beyond it the one opened first is forgotten.
SPENT_CAP = 4096


class Openings:
    """Ids of links whose capture was, or is being, taken. Safe from any thread."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: id: end in seconds since 1970; opened first, first
        self._spent: OrderedDict[str, float] = OrderedDict()
        self._taking: set[str] = set()

    def is_spent(self, name: str) -> bool:
        """Whether it was taken once, and so is not to be taken anew."""
        return name in self._spent

    def spend(self, name: str, expires_s: float) -> None:
        """Remember that it was taken."""
        with self._lock:
            self._spent[name] = expires_s
            now_s = self._clock.time_s()
            for other in [one for one, end_s in self._spent.items() if end_s <= now_s]:
                del self._spent[other]
            while len(self._spent) > SPENT_CAP:
                self._spent.popitem(last=False)

    @contextmanager
    def taking(self, name: str) -> Iterator[bool]:
        """Whether the caller is the one to take it while the block runs."""
        with self._lock:
            is_first = name not in self._taking and name not in self._spent
            if is_first:
                self._taking.add(name)
        try:
            yield is_first
        finally:
            if is_first:
                self._taking.discard(name)

    def after_fork(self) -> None:
        """The child takes none, and no lock of the parent's is held in it."""
        self._lock = threading.Lock()
        self._taking = set()

    def __len__(self) -> int:
        return len(self._spent)
