"""What makes evidence: rules that are looked at as requests end, and now and then.

On a request's path stands a comparison; what follows a hit is the business of `take`,
which has to be quick and leaves the work to a thread of ours.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from stroboscope._core import LabelCell, engine
from stroboscope._core.at_rest import task_sets
from stroboscope.rules import Rules
from stroboscope.tracing.latencies import Latencies

#: How often memory and tasks are looked at, and limits worked out anew.
LOOK_EVERY_S = 0.5
#: What there is no more room for shares this one.
OVERFLOW = "(overflow)"
#: An endpoint that no request's is.
PROCESS = "(process)"
_NEVER = 1 << 62
#: Then others may have the interpreter for a moment: under a millisecond of work.
_ENDPOINTS_A_BREATH, _BREATH_S = 8, 0.0001
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that was met. `task` is the number of the request's task, or 0."""

    rule: str
    endpoint: str
    reason: str
    labels: Mapping[str, str] = field(default_factory=dict)
    trace_id: str = ""
    span_id: str = ""
    task: int = 0


class Ended(Protocol):
    """A request that is over."""

    cell: LabelCell | None
    #: OpenTelemetry's span, or None.
    span: Any

    def task_name(self) -> str | None:
        """Its endpoint, `http:/path/{id}`."""

    def labels(self) -> Iterable[tuple[str, str]] | None:
        """What it is known by."""


def _nothing(hit: Hit, span: Any = None) -> None:
    del hit, span


def _no_loops() -> list[asyncio.AbstractEventLoop]:
    return []


class Triggers:
    """The rules of this process; a forked child has none until it is configured."""

    def __init__(self) -> None:
        self._rules = Rules()
        #: Whether the end of a request matters.
        self.are_on = False
        self.failures = 0
        self.take: Callable[..., object] = _nothing
        self.loops: Callable[[], list[asyncio.AbstractEventLoop]] = _no_loops
        self._latency_ns, self._error_from = _NEVER, _NEVER
        self._factor = 0.0
        self._endpoints_cap = 0
        self._endpoints: dict[str, Latencies] = {}
        self._above: set[str] = set()
        self._looks_in = 0

    def configure(self, rules: Rules, endpoints_cap: int) -> None:
        """Other rules from now on, in this process; at most so many endpoints are known.

        Starts a thread if something has to be looked at. Raises: RuntimeError when there
        is none to be had.
        """
        self._rules, self._endpoints_cap = rules, endpoints_cap
        self._latency_ns = int(rules.latency * 1e9) or _NEVER
        self._error_from = 500 if rules.errors else _NEVER
        self._factor = rules.p99
        self._endpoints, self._above = {}, set()
        self.are_on = rules.of_requests
        if (rules.of_process or rules.p99) and self._looks_in != os.getpid():
            self._looks_in = os.getpid()
            try:
                engine.start_thread(self._look_on)
            except RuntimeError:
                self._looks_in = 0
                raise

    def ended(
        self, request: Ended, took_ns: int, status: int, *, is_judged: bool = False
    ) -> None:
        """A request is over; whether it has met a rule before.

        What has no status, such as a WebSocket, is never late.
        """
        try:
            limit_ns: float = self._latency_ns
            if self._factor and status:
                known = self._known(request.task_name() or "")
                known.recent.append(took_ns)
                limit_ns = min(limit_ns, known.limit_ns)
            is_met = status >= self._error_from or (took_ns > limit_ns and status)
            if is_met and not is_judged:
                self._meet(request, took_ns, status, limit_ns)
        except Exception:  # the request is over, and nothing of ours may break it
            self.failures += 1

    def judged(self, request: Ended, took_ns: int, status: int) -> bool:
        """Whether a request that took so long up to now meets a rule; then it is a hit."""
        try:
            limit_ns: float = self._latency_ns
            if self._factor and status:
                known = self._known(request.task_name() or "")
                limit_ns = min(limit_ns, known.limit_ns)
            if status >= self._error_from or (took_ns > limit_ns and status):
                self._meet(request, took_ns, status, limit_ns)
                return True
        except Exception:  # as above
            self.failures += 1
        return False

    def stalled(self, stall: Any) -> None:
        """A stall is over: a `stalls.Stall`, of the watch's own thread."""
        took_s = stall.duration_ms / 1000
        if not self._rules.stall or took_s < self._rules.stall:
            return
        labels = dict(stall.labels)
        ends = [value for key, value in labels.items() if key.endswith("endpoint")]
        self.take(
            Hit(
                "stall",
                ends[0] if ends else PROCESS,
                f"{stall.kind} stood still for {took_s:.3f} s: {stall.cause}",
                labels,
                stall.ids.get("trace_id", ""),
                stall.ids.get("span_id", ""),
            )
        )

    def look(self) -> None:
        """Look at memory and tasks once, and work the limits out."""
        rules = self._rules
        for count, known in enumerate(list(self._endpoints.values()), 1):
            known.renew(rules.p99)
            if count % _ENDPOINTS_A_BREATH == 0:
                engine.sleep(_BREATH_S)
        if rules.rss:
            self._compare("rss", rss_bytes(), rules.rss, "bytes resident")
        if rules.tasks:
            count = sum(len(tasks) for tasks in task_sets(self.loops()))
            self._compare("tasks", count, rules.tasks, "asyncio tasks")

    def _meet(self, request: Ended, took_ns: int, status: int, limit_ns: float) -> None:
        if status >= self._error_from:
            self._hit(request, "error", f"status {status}")
            return
        rule = "latency" if took_ns > self._latency_ns else "p99"
        above = f"above {limit_ns / 1e9:.3g} s"
        self._hit(request, rule, f"it took {took_ns / 1e9:.3f} s, {above}")

    def _known(self, endpoint: str) -> Latencies:
        found = self._endpoints.get(endpoint)
        if found is None:
            if len(self._endpoints) >= self._endpoints_cap:
                endpoint = OVERFLOW
            found = self._endpoints.setdefault(endpoint, Latencies())
        return found

    def _hit(self, request: Ended, rule: str, reason: str) -> None:
        cell = request.cell
        endpoint = (request.task_name() or "(unmatched)").removeprefix("http:")
        labels = dict(request.labels() or ())
        trace_id = (cell.trace_id if cell is not None else None) or ""
        span_id = (cell.span_id if cell is not None else None) or ""
        task = cell.task if cell is not None else 0
        hit = Hit(rule, endpoint, reason, labels, trace_id, span_id, task)
        self.take(hit, request.span)

    def _compare(self, rule: str, value: int, limit: int, unit: str) -> None:
        """A hit as it goes above; the next after it was below again."""
        if value <= limit:
            self._above.discard(rule)
        elif rule not in self._above:
            self._above.add(rule)
            self.take(Hit(rule, PROCESS, f"{value} {unit}, above {limit}"))

    def _look_on(self) -> None:
        # First asleep: the recorder is not there yet as a process begins.
        while self._looks_in == os.getpid() and self._has_work():
            engine.sleep(LOOK_EVERY_S)
            try:
                self.look()
            except Exception:  # the next look may go better
                self.failures += 1
        self._looks_in = 0

    def _has_work(self) -> bool:
        return self._rules.of_process or bool(self._rules.p99)


def rss_bytes() -> int:
    """Resident memory of this process; 0 where the kernel does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, LookupError, ValueError):
        return 0


#: Those of this process.
TRIGGERS = Triggers()
