"""Each request leaves one record, to the log and to OpenTelemetry."""

import logging
import time
from typing import Any

import pytest
from asking import (
    KEY,
    SETTINGS,
    Ask,
    authorised,
    bearer,
    token,
)

from stroboscope._http.messages import Request
from stroboscope.endpoints import Surface, otel


def test_h44_each_request_leaves_a_record(caplog: pytest.LogCaptureFixture) -> None:
    """Begun before acting, completed after; refusals too; never a secret."""
    text, peer = token("profile"), "198.51.100.44"
    surface = Surface(SETTINGS)

    def ask(path: str, query: str, credentials: str) -> None:
        named = (("host", "localhost"), ("authorization", f"Bearer {credentials}"))
        surface.answer(Request("GET", path, query, named, peer))

    def audits() -> list[Any]:
        found: list[Any] = [getattr(r, "audit", {}) for r in caplog.records]
        return [one for one in found if one.get("peer") == peer]

    with caplog.at_level(logging.INFO, "stroboscope.audit"):
        ask("/debug/pprof/profile", "seconds=0.1&token=hunter2", text)
        ask("/debug/settings", "", "bad.token")
        deadline = time.monotonic() + 5
        while len(audits()) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)

    begun, ended, refused = audits()
    assert (begun["event"], ended["event"]) == ("begin", "end")
    assert begun["id"] == ended["id"] != refused["id"]
    assert ended["endpoint"] == "/pprof/profile"
    assert (ended["status"], ended["parameters"]) == (200, {"seconds": "0.1"})
    assert ended["bytes"] > 50
    assert ended["duration_ms"] >= 100
    assert (refused["status"], refused["event"]) == (401, "end")
    for secret in (text, "hunter2", "bad.token", KEY):
        assert secret not in caplog.text


def test_h44_the_record_is_an_event_of_the_requests_span(ask: Ask) -> None:
    """Answered and refused requests leave one on the span they came in, if recorded."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
        InMemorySpanExporter,
    )

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("request"):
        ask("/debug/labels", bearer(token("metrics")))
        ask("/debug/labels", bearer("bad"))
    (span,) = exporter.get_finished_spans()

    assert [event.name for event in span.events] == ["stroboscope.audit"] * 2
    found = [dict(event.attributes or {}) for event in span.events]
    assert [one["stroboscope.status"] for one in found] == [200, 401]
    assert found[0]["stroboscope.endpoint"] == "/labels"
    assert found[0]["stroboscope.token_id"]


def test_h44_the_record_is_an_otel_log_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a log provider set: begun and ended as one event each, without a secret."""
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor

    exported: list[Any] = []

    class Kept:
        def export(self, batch: Any) -> None:
            exported.extend(getattr(one, "log_record", one) for one in batch)

        def shutdown(self) -> None:
            pass

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(Kept()))  # type: ignore[arg-type]
    monkeypatch.setattr(otel, "get_logger", provider.get_logger)
    surface = Surface(SETTINGS)
    text = token("metrics")
    surface.answer(authorised("/debug/labels", text))
    surface.answer(authorised("/debug/labels", "bad.token"))
    deadline = time.monotonic() + 5
    while len(exported) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)

    assert {one.body for one in exported} == {"stroboscope.audit"}
    seen = [dict(one.attributes or {}) for one in exported]
    assert [one["stroboscope.event"] for one in seen] == ["begin", "end", "end"]
    assert [one.get("stroboscope.status") for one in seen[1:]] == [200, 401]
    assert seen[1]["stroboscope.endpoint"] == "/labels"
    assert text not in str(seen)
    assert "bad.token" not in str(seen)
