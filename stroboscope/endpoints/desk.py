"""What handlers stand on: one object per surface, shared by all its requests."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from stroboscope._clock import SYSTEM, Clock
from stroboscope._core import engine, recording
from stroboscope._http.messages import Response
from stroboscope._threads import Lock
from stroboscope.auth.tokens import Share
from stroboscope.endpoints import otel
from stroboscope.endpoints.agreement import Agreement
from stroboscope.endpoints.audit import Audit
from stroboscope.endpoints.blackboxes import adopt_dead
from stroboscope.endpoints.captures import Capture, Captures
from stroboscope.endpoints.evidence import Evidence
from stroboscope.endpoints.fleet import Fleet
from stroboscope.endpoints.flights import Flights
from stroboscope.endpoints.garbage import Garbage
from stroboscope.endpoints.gate import Gate
from stroboscope.endpoints.knobset import knobs_of
from stroboscope.endpoints.leases import Leases
from stroboscope.endpoints.shares import Openings
from stroboscope.endpoints.snapshots import Snapshots
from stroboscope.formats.pprof import stable_address
from stroboscope.formats.profile import Frame
from stroboscope.formats.samples import Left
from stroboscope.profiles import births, stacks
from stroboscope.profiles.ages import Ages
from stroboscope.profiles.governor import Governor
from stroboscope.profiles.ledgers import keep_labels
from stroboscope.settings import Settings
from stroboscope.stalls import WATCH
from stroboscope.tracing import otel as otel_links
from stroboscope.tracing import recorder
from stroboscope.tracing.captures import Facts, record
from stroboscope.tracing.kept import KEPT
from stroboscope.workers.folder import OFF, Folder, default_base
from stroboscope.workers.leaving import Leaving, left_by
from stroboscope.workers.members import Members
from stroboscope.workers.totals import Totals

if TYPE_CHECKING:
    from stroboscope.endpoints.call import Action, Call
    from stroboscope.endpoints.doors import Doors

#: Addresses of emitted profiles whose names `/debug/pprof/symbol` still knows.
SYMBOLS_CAP = 20_000

#: Seconds to trace, whether to stop by now, the format, what its first slice shall
#: say, what to call often meanwhile; returns the trace. Raises EngineUnavailable.
Tracer = Callable[[float, Callable[[], bool], str, Facts, Callable[[], object]], bytes]


class Shown(Protocol):
    """What a middleware lets be seen and switched."""

    def tenants(self) -> list[str]:
        """The tenants that are shown by name now."""

    def set_bounds(self, bounds_s: Iterable[float]) -> None:
        """Other bounds for the latency label, from now on."""

    def set_span_ids(self, is_on: bool) -> None:
        """Whether samples say which span they are of, from now on."""

    def running(self) -> int:
        """Requests that have begun and not ended."""


class Desk:
    """Settings, gate, leases, knobs, audit and counters of one surface.

    `members` are the workers of this service, or None where each answers for itself;
    `doors` are those of our own. `shareable` finds the action a link may open, `open`
    answers it; the surface sets these three, for it alone knows the table of routes.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock = SYSTEM,
        tracer: Tracer | None = None,
        *,
        is_worker: bool = True,
    ) -> None:
        self.settings = settings
        #: False in the sidecar: what is asked of a process is asked of the workers.
        self.is_worker = is_worker
        self.clock = clock
        self.tracer = tracer or partial(
            record, trace_url=settings.trace_url, loops=self.loops
        )
        self.gate = Gate(settings, clock)
        self.knobs = knobs_of(settings, clock)
        self.members = _members(settings)
        folder = self.members.folder if self.members is not None else None
        #: What the hosts of the service share; None without Redis.
        self.fleet = (
            Fleet(settings, folder, is_worker=is_worker) if settings.redis_url else None
        )
        self.leases = Leases(clock, folder, self.fleet)
        self.totals = None if folder is None else Totals(folder, _copies(settings))
        self.flights = Flights()
        self.agreement = Agreement(
            self.knobs,
            self.gate.revocations,
            folder,
            has_knobs=is_worker,
            fleet=self.fleet,
            clock=clock,
        )
        self.captures = Captures(clock)
        self.evidence = Evidence(settings, folder, clock)
        self.openings = Openings(clock, folder)
        self.garbage = Garbage(clock)
        #: The turn to stop the process for a look from outside.
        self.pauses = Garbage(clock)
        self.ages = Ages()
        self.snapshots = Snapshots(self._take, clock)
        self.governor = Governor(settings.overhead_share, clock)
        self.audit = Audit()
        #: (endpoint, status): requests since the process began.
        self.answered: Counter[tuple[str, int]] = Counter()
        self.labellers: list[Shown] = []
        self.symbols: OrderedDict[int, str] = OrderedDict()
        self.leaving = Leaving(self.members) if self.members is not None else None
        self.lock = Lock()
        self.doors: Doors
        self.shareable: Callable[[str], Action | None]
        self.open: Callable[[str, Call], Response]
        self._loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self._watches = False
        self.knobs.on_change("latency_buckets", self._set_bounds)
        self.knobs.on_change("span_ids", self._set_span_ids)
        self.knobs.on_change("stall_threshold_ms", self._watch)
        self.knobs.on_change("threadcreate", births.switch)
        self.knobs.on_change("trace_fraction", recorder.set_fraction)
        self.knobs.on_change("flight_recorder", recorder.set_flight)
        os.register_at_fork(after_in_child=self._after_fork)

    @property
    def process(self) -> int:
        """Which of the workers this is; 0 for the sidecar, which is none.

        In its container it may have the number that a worker has in another.
        """
        return os.getpid() if self.is_worker else 0

    def begin(self) -> None:
        """Start what runs in a process that takes part, once in each. Never raises."""
        self.agreement.adopt()
        if self.fleet is not None:
            self.fleet.start()
        settings = self.settings
        folder = None if self.members is None else self.members.folder
        if self.is_worker:
            if engine.info().kind == "native":
                keep_labels(settings.label_sets)
            recorder.configure(settings.service, settings.recorder_bytes, folder)
            self.knobs.apply()
            self.evidence.begin(self.loops)
            otel_links.install()
            otel_links.export_regions(settings.regions_to_spans)
        if folder is not None and recording.AVAILABLE:
            # No thread to be had: whoever asks for the captures looks again.
            with contextlib.suppress(RuntimeError):
                engine.start_thread(lambda: adopt_dead(self))

    def add_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Remember a loop whose tasks stacks are asked for, and watch it for stalls."""
        self._loops.add(loop)
        WATCH.add_loop(loop)

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        """The loops that run in this process, as far as requests came by them."""
        return [loop for loop in list(self._loops) if not loop.is_closed()]

    def remember_symbols(self, frames: Iterable[Frame]) -> None:
        """Keep the names of the addresses a profile was given."""
        with self.lock:
            for frame in frames:
                self.symbols[stable_address(frame)] = frame.function
            while len(self.symbols) > SYMBOLS_CAP:
                self.symbols.popitem(last=False)

    def keep_for_link(self, share: Share, answer: Response, owner: str) -> None:
        """Keep the one capture a link stands for, as long as the link is good."""
        action = self.shareable(share.target)
        scope = action.scope if action is not None else "admin"
        endpoint = share.target.partition("?")[0]
        capture = Capture(
            share.token_id, "share", endpoint, answer, owner, scope, is_held=True
        )
        self.captures.keep(capture, share.expires_s - self.clock.time_s())
        self.openings.spend(share.token_id, share.expires_s)

    def watch_knobs(self) -> bool:
        """See to it that overrides end when their time is over, asked or not.

        And that those hold here that were made by way of another worker; false where
        it has to be called again for that.
        """
        has_looked = self.agreement.adopt()
        with self.lock:
            if self._watches or self.knobs.expire() is None:
                return has_looked
            self._watches = True
        try:
            engine.start_thread(self._expire_knobs)
        except RuntimeError:  # no thread to be had; the next request tries again
            self._watches = False
        return has_looked

    def _take(self) -> stacks.Snapshot:
        return stacks.snapshot(self.loops(), self.ages)

    def _expire_knobs(self) -> None:
        while True:
            with self.lock:
                left_s = self.knobs.expire()
                if left_s is None:
                    self._watches = False
                    return
            engine.sleep(min(left_s + 0.01, 0.5))

    def _left(self) -> list[Left]:
        """What our own signal handler has left."""
        members = self.members
        if members is None or not members.is_in():
            return []
        return left_by(members.folder, os.getpid())

    def _watch(self, threshold_ms: float) -> None:
        WATCH.span_of, WATCH.note = otel.span_of, otel.note_stall
        WATCH.left = self._left
        WATCH.begin(threshold_ms, self.settings.slow_request_s)

    def _set_span_ids(self, is_on: bool) -> None:
        for labeller in self.labellers:
            labeller.set_span_ids(is_on)

    def _set_bounds(self, bounds_s: list[float]) -> None:
        for labeller in self.labellers:
            labeller.set_bounds(bounds_s)

    def _after_fork(self) -> None:
        # Overrides stay in force in the child; its first request watches them again.
        self.lock = Lock()
        self.audit.after_fork()
        self.knobs.after_fork()
        self.agreement.after_fork()
        if self.fleet is not None:
            self.fleet.after_fork()
        self.gate.after_fork()
        self.garbage.after_fork()
        self.pauses.after_fork()
        if self.leaving is not None:
            self.leaving.after_fork()
        self.captures.after_fork()
        self.evidence.after_fork()
        self.flights.after_fork()
        self.openings.after_fork()
        self.snapshots.after_fork()
        self.ages = Ages()
        KEPT.clear()
        self._watches = False
        self._loops = WeakSet()


def _copies(settings: Settings) -> tuple[str, ...]:
    """Names for the copies of a service that share a key with us, newest first."""
    return tuple(
        hashlib.blake2b(
            key=key.encode()[:64], person=b"strobe-totals", digest_size=4
        ).hexdigest()
        for key in reversed(settings.keys)
    )


def _members(settings: Settings) -> Members | None:
    if settings.rundir == OFF:
        return None
    return Members(Folder(settings.rundir or default_base(), settings.service))
