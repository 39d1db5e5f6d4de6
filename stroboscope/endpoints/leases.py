"""One capture at a time: a lease with an owner and a deadline, not a counter.

A lease is freed by whoever holds it, in any way its block may end; one whose holder is
stuck or gone ends by itself a little after its deadline. A forked child holds none. Where
workers meet, it is one for all of them; with a fleet, one for all hosts of the service.
Where the fleet cannot be reached it holds on the host, and says so.

A holder that stood still past its end finds that out by the clock that goes on in a
machine that sleeps, and stops; and what it collected is refused when by then another had
the lease.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stroboscope._clock import SYSTEM, Clock
from stroboscope._greenlets import Log
from stroboscope._threads import Lock
from stroboscope.endpoints.fleet import UNREACHABLE, Fleet, Standing
from stroboscope.errors import FolderError
from stroboscope.fleet.store import Ours, Taken
from stroboscope.workers.folder import Folder
from stroboscope.workers.lease import Held, HostLease

_log = Log("stroboscope")
#: Past its deadline a holder has this long to finish encoding.
GRACE_S = 5.0
#: So much later than it should have been done it must stop.
OVERTIME_S = 1.0


@dataclass(frozen=True, slots=True)
class Lease:
    """Who holds what until when; `owner` is a token id, for the audit log only."""

    kind: str
    owner: str
    ends_s: float
    process: int
    #: What it is over the fleet; known in full when the block has ended.
    standing: Standing = field(default_factory=Standing)
    #: When to stop, on the clock that does not stop.
    stops_s: float = math.inf

    def is_over(self) -> bool:
        """Whether its holder has to stop by now, done or not."""
        return _steady_s() >= self.stops_s


class LeaseTaken(Exception):
    """Somebody else holds it; `kind` and whole seconds until it must be free."""

    def __init__(self, kind: str, retry_after_s: int) -> None:
        super().__init__(kind)
        self.kind = kind
        self.retry_after_s = retry_after_s


class Leases:
    """The exclusive captures of one process, and of its host where it has a folder."""

    def __init__(
        self,
        clock: Clock = SYSTEM,
        folder: Folder | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        self._clock = clock
        self._fleet = fleet
        self._lock = Lock()
        self._held: Lease | None = None
        self._host = None if folder is None else HostLease(folder, GRACE_S)
        os.register_at_fork(after_in_child=self._after_fork)

    @contextmanager
    def hold(
        self, kind: str, owner: str, seconds: float, *, is_peer: bool = False
    ) -> Iterator[Lease]:
        """Hold the one lease while the block runs. Raises: LeaseTaken.

        `is_peer` for a part of what another worker of the host holds it for.
        """
        now_s = self._now_s()
        # Counted from before anybody is asked: nobody else counts from earlier.
        stops_s = _steady_s() + seconds + OVERTIME_S
        lease = Lease(kind, owner, now_s + seconds, os.getpid(), Standing(), stops_s)
        with self._lock:
            held = self._current()
            if held is not None:
                raise self._taken(held.kind, held.ends_s)
            self._held = lease
        on_host = in_fleet = None
        try:
            if not is_peer:
                on_host = self._take_on_host(lease)
                in_fleet = self._take_in_fleet(lease, seconds, on_host is not None)
            yield lease
        finally:
            if self._fleet is not None and in_fleet is not None:
                self._fleet.end(in_fleet, lease.standing)
            if self._host is not None and on_host is not None:
                self._host.free(on_host)
            with self._lock:
                if self._held is lease:  # it may have run out and be another's by now
                    self._held = None

    def current(self) -> tuple[str, float] | None:
        """What is held here or on the host, and for how many more seconds, or None."""
        held: Lease | Held | None = self.own()
        if held is None and self._host is not None:
            try:
                held = self._host.current()
            except FolderError:
                held = None
        return None if held is None else (held.kind, held.ends_s - self._now_s())

    def own(self) -> Lease | None:
        """What this process holds."""
        with self._lock:
            return self._current()

    def _take_on_host(self, lease: Lease) -> int | None:
        if self._host is None:
            return None
        try:
            found = self._host.take(lease.kind, lease.ends_s, self._now_s())
        except FolderError as error:  # then it holds in this process
            _log.warning("stroboscope: a lease holds in this worker only: %s", error)
            return None
        if isinstance(found, Held):
            raise self._taken(found.kind, found.ends_s)
        return found

    def _take_in_fleet(
        self, lease: Lease, seconds: float, has_host: bool
    ) -> Ours | None:
        if self._fleet is None:
            return None
        found = self._fleet.take(lease.kind, seconds + GRACE_S, has_host=has_host)
        if isinstance(found, Taken):
            left_s = found.left_ms / 1000 - GRACE_S
            raise LeaseTaken(found.kind, max(1, math.ceil(left_s)))
        if found is None:
            lease.standing.said = UNREACHABLE
        return found

    def _taken(self, kind: str, ends_s: float) -> LeaseTaken:
        return LeaseTaken(kind, max(1, math.ceil(ends_s - self._now_s())))

    def _current(self) -> Lease | None:
        if self._held is not None and self._held.ends_s + GRACE_S <= self._now_s():
            self._held = None
        return self._held

    def _after_fork(self) -> None:
        self._lock = Lock()
        self._held = None
        if self._host is not None:
            self._host.after_fork()

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9


def _steady_s() -> float:
    """Seconds that also pass while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
