"""What is met, and what it costs to look."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stroboscope._core import LabelCell
from stroboscope.rules import Rules
from stroboscope.tracing import triggers as module
from stroboscope.tracing.latencies import FLOOR_NS, KNOWN_AFTER, RECENT_CAP, Latencies
from stroboscope.tracing.triggers import OVERFLOW, Hit, Triggers

MS = 1_000_000


class Request:
    """An ended one."""

    span = None

    def __init__(self, endpoint: str) -> None:
        self.cell: LabelCell | None = LabelCell()
        self.endpoint = endpoint

    def task_name(self) -> str | None:
        return f"http:{self.endpoint}"

    def labels(self) -> list[tuple[str, str]]:
        return [("endpoint", self.endpoint)]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks but the test."""
    monkeypatch.setattr(module.engine, "start_thread", lambda target: None)


def triggers(rules: str, endpoints_cap: int = 8) -> tuple[Triggers, list[Hit]]:
    made, hits = Triggers(), list[Hit]()
    made.take = lambda hit, span=None: hits.append(hit)
    made.configure(Rules.parse(rules), endpoints_cap)
    return made, hits


def test_a_request_is_late_by_itself_or_by_what_its_endpoint_is_used_to(
    quiet: None,
) -> None:
    """Above a threshold, or above so many times its p99, once that is known."""
    made, hits = triggers("latency=2 p99=4")
    slow, fast = Request("/report"), Request("/checkout")
    for _ in range(KNOWN_AFTER):
        made.ended(slow, 500 * MS, 200)
        made.ended(fast, 20 * MS, 200)
    made.look()
    made.ended(slow, 1000 * MS, 200)
    made.ended(fast, 40 * MS, 200)
    assert hits == []

    made.ended(fast, 200 * MS, 200)
    made.ended(slow, 2100 * MS, 200)
    made.ended(Request("/new"), 2100 * MS, 200)

    assert [(hit.rule, hit.endpoint) for hit in hits] == [
        ("p99", "/checkout"),
        ("latency", "/report"),
        ("latency", "/new"),
    ]
    assert hits[0].labels == {"endpoint": "/checkout"}


def test_what_has_no_status_is_never_late_and_errors_are_asked_for(
    quiet: None,
) -> None:
    """A WebSocket may live for hours; a 500 is nothing without the rule."""
    made, hits = triggers("latency=0.1")
    made.ended(Request("/socket"), 3_600_000 * MS, 0)
    made.ended(Request("/broken"), MS, 500)
    assert hits == []

    made, hits = triggers("errors")
    made.ended(Request("/broken"), MS, 500)
    made.ended(Request("/missing"), MS, 404)
    assert [(hit.rule, hit.endpoint) for hit in hits] == [("error", "/broken")]


def test_endpoints_are_bounded(quiet: None) -> None:
    """Beyond the cap all share one."""
    made, _ = triggers("p99=2", endpoints_cap=3)
    for number in range(1000):
        made.ended(Request(f"/{number}"), MS, 200)
    assert len(made._endpoints) == 4
    assert len(made._endpoints[OVERFLOW].recent) == RECENT_CAP

    made.look()
    assert sum(made._endpoints[OVERFLOW].counts) == RECENT_CAP
    assert len(made._endpoints[OVERFLOW].recent) == 0


def test_memory_and_tasks_are_met_as_they_go_above(
    quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and again after they were below."""
    made, hits = triggers("rss=2000000 tasks=3")
    memory = [3_000_000, 3_000_000, 1_000_000, 3_000_000]
    monkeypatch.setattr(module, "rss_bytes", lambda: memory.pop(0))
    monkeypatch.setattr(module, "task_sets", lambda loops: [set("ab"), set("c")])
    for _ in range(4):
        made.look()

    assert [hit.rule for hit in hits] == ["rss", "rss"]


def test_a_failure_of_ours_is_counted_and_nothing_more(quiet: None) -> None:
    """The response is out; nobody may see it."""
    made, _ = triggers("errors")

    def fails(hit: Hit, span: Any = None) -> None:
        raise OSError("no threads")

    made.take = fails
    made.ended(Request("/broken"), MS, 500)

    assert made.failures == 1


@given(st.integers(0, 1 << 50))
def test_a_latency_is_in_a_bucket_that_is_little_above_it(took_ns: int) -> None:
    """At most an eighth, or a microsecond; what is above an hour is in the last."""
    made = Latencies()
    for _ in range(KNOWN_AFTER):
        made.add(took_ns)
    upper_ns = made.percentile_ns(0.99)

    assert upper_ns is not None
    if took_ns < 3600e9:
        assert took_ns < upper_ns <= took_ns * 1.126 + 1024
    else:
        assert upper_ns > 3600e9


def test_what_an_endpoint_is_used_to_follows_it() -> None:
    """Old requests fade: a service that became slow for good is normal after a while."""
    made = Latencies()
    for took_ns in (1 * MS, 100 * MS):
        for _ in range(8):
            for _ in range(20_000):
                made.add(took_ns)
            made.recent.append(took_ns)
            made.renew(2)
    assert 200 * MS < made.limit_ns < 230 * MS
    assert sum(made.counts) < 40_000

    quick = Latencies()
    quick.recent.extend([1000] * KNOWN_AFTER)
    quick.renew(2)
    assert quick.limit_ns == FLOOR_NS


def cost_ns(call: Any, count: int = 20_000) -> float:
    """CPU time of a call, the least of several rounds."""
    rounds = []
    for _ in range(7):
        began_ns = time.thread_time_ns()
        for _ in range(count):
            call()
        rounds.append((time.thread_time_ns() - began_ns) / count)
    return min(rounds)


@pytest.mark.perf
def test_a_request_that_meets_nothing_pays_a_comparison(quiet: None) -> None:
    """In empty Python calls of the same run: five without p99, twenty with it."""
    request = Request("/checkout")
    plain, _ = triggers("latency=2 errors")
    known, _ = triggers("latency=2 errors p99=4")
    empty_ns = cost_ns(lambda: None)
    plain_ns = cost_ns(lambda: plain.ended(request, MS, 200))
    known_ns = cost_ns(lambda: known.ended(request, MS, 200))
    print(f"empty {empty_ns:.0f} ns, rules {plain_ns:.0f} ns, p99 {known_ns:.0f} ns")

    assert plain_ns - empty_ns < 5 * empty_ns
    assert known_ns - empty_ns < 20 * empty_ns
