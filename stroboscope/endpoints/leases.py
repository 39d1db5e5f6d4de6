"""One capture at a time: a lease with an owner and a deadline, not a counter.

A lease is freed by whoever holds it, in any way its block may end; one whose holder is
stuck or gone ends by itself a little after its deadline. A forked child holds none.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stroboscope._clock import SYSTEM, Clock

#: Past its deadline a holder has this long to finish encoding.
GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Lease:
    """Who holds what until when; `owner` is a token id, for the audit log only."""

    kind: str
    owner: str
    ends_s: float
    process: int


class LeaseTaken(Exception):
    """Somebody else holds it; `kind` and whole seconds until it must be free."""

    def __init__(self, kind: str, retry_after_s: int) -> None:
        super().__init__(kind)
        self.kind = kind
        self.retry_after_s = retry_after_s


class Leases:
    """The exclusive captures of one process. Never blocks."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: Lease | None = None
        os.register_at_fork(after_in_child=self._after_fork)

    @contextmanager
    def hold(self, kind: str, owner: str, seconds: float) -> Iterator[Lease]:
        """Hold the one lease while the block runs. Raises: LeaseTaken."""
        now_s = self._now_s()
        lease = Lease(kind, owner, now_s + seconds, os.getpid())
        with self._lock:
            held = self._current()
            if held is not None:
                left = max(1, math.ceil(held.ends_s - now_s))
                raise LeaseTaken(held.kind, left)
            self._held = lease
        try:
            yield lease
        finally:
            with self._lock:
                if self._held is lease:  # it may have run out and be another's by now
                    self._held = None

    def current(self) -> tuple[str, float] | None:
        """What is held and for how many more seconds, or None."""
        with self._lock:
            held = self._current()
        return None if held is None else (held.kind, held.ends_s - self._now_s())

    def _current(self) -> Lease | None:
        if self._held is not None and self._held.ends_s + GRACE_S <= self._now_s():
            self._held = None
        return self._held

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._held = None

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9
