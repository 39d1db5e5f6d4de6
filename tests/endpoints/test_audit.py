"""Each request leaves one record, to the log and to OpenTelemetry."""

import json
import logging
import time
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

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
from stroboscope.endpoints import Surface, otel, slicing
from stroboscope.endpoints.audit import Entry
from stroboscope.endpoints.call import Route
from stroboscope.endpoints.routes import ROUTES


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


def records(caplog: pytest.LogCaptureFixture, peer: str) -> list[dict[str, Any]]:
    found: list[Any] = [getattr(r, "audit", {}) for r in caplog.records]
    return [one for one in found if one.get("peer") == peer]


def test_h44_the_record_names_the_slice(caplog: pytest.LogCaptureFixture) -> None:
    """Every parameter of the table, bounded, on one line; nothing else of the query."""
    peer = "198.51.100.45"
    wanted = {name: f"{name}\n\x1b[2J=" + "x y" * 40 for name in slicing.PARAMETERS}
    wanted |= {"tagfocus": "tenant=T17", "x": "hunter2", "min_age": "5"}
    query = urlencode({**wanted, "seconds": "1"}) + "&tagfocus=method=GET&seconds=2"
    asked = authorised("/debug/pprof/goroutine", token("profile"))
    with caplog.at_level(logging.INFO, "stroboscope.audit"):
        answer = Surface(SETTINGS).answer(replace(asked, query=query, peer=peer))

    ended = records(caplog, peer)[-1]
    told = ended["parameters"]
    assert answer.status == 400
    assert set(told) == set(wanted) - {"x"} | {"seconds"}
    assert told["tagfocus"] == "tenant=T17&method=GET"
    assert told["seconds"] == "1"
    assert told["focus"].startswith("focus??[2J=x?yx?y")
    assert {len(value) <= 64 and value.isprintable() for value in told.values()}
    assert "hunter2" not in caplog.text
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: str(route.paths[0]))
def test_h44_every_parameter_there_is_is_told(route: Route) -> None:
    """Whoever adds one to the table has it in the record."""
    for action in route.actions.values():
        query = urlencode(dict.fromkeys(action.parameters, "v"))
        entry = Entry.of(replace(authorised("/debug/", ""), query=query), "1")
        if action.body == "json":
            entry = Entry.of(authorised("/debug/", ""), "1")
            entry.tell(
                json.dumps(dict.fromkeys(action.parameters, "v")), action.parameters
            )

        assert set(entry.parameters) == set(action.parameters)


def test_h44_a_secret_in_the_wrong_place_is_hidden(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A token or key pasted into a parameter or a body."""
    peer, text = "198.51.100.46", token("profile")
    asked = authorised("/debug/pprof/goroutine", token("profile"))
    revoking = authorised("/debug/revoke", token("admin"), "POST")
    form = (*revoking.headers, ("content-type", "application/json"))
    surface = Surface(SETTINGS)
    with caplog.at_level(logging.INFO, "stroboscope.audit"):
        for name in ("focus", "format", "seconds"):
            query = urlencode({name: f"a{text}", "sort": KEY})
            surface.answer(replace(asked, query=query, peer=peer))
        body = json.dumps({"id": text, "before": KEY}).encode()
        surface.answer(replace(revoking, headers=form, peer=peer), None, lambda: body)

    told = [one["parameters"] for one in records(caplog, peer) if one["event"] == "end"]
    assert len(told) == 4
    assert {name: value.strip(".") for name, value in told[3].items()} == {
        "id": "(hidden).(hidden)",
        "before": "(hidden)",
    }
    for secret in (text, text[-20:], KEY, KEY[:20]):
        assert secret not in caplog.text


def test_h44_the_record_says_what_was_switched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Knobs with their values, preset and ttl, before it is done; nothing unknown."""
    peer = "198.51.100.47"
    asked = authorised("/debug/settings", token("admin"), "PUT")
    form = (*asked.headers, ("content-type", "application/json"))
    levels = {"a.b": "DEBUG"}
    body = {"cpu_hz": 50, "log_levels": levels, "ttl": "1s", "no\nknob": "hunter2"}
    sent = [json.dumps(body), json.dumps({"preset": "forensic"}), "[1]", "{", ""]
    surface = Surface(SETTINGS)
    with caplog.at_level(logging.INFO, "stroboscope.audit"):
        for text in sent:
            one = replace(asked, headers=form, peer=peer)
            surface.answer(one, None, lambda text=text: text.encode())
    surface.desk.knobs.change(dict.fromkeys(knob.name for knob in surface.desk.knobs))

    begun = [one for one in records(caplog, peer) if one["event"] == "begin"]
    assert len(begun) == len(sent)
    assert begun[0]["parameters"] == {
        "cpu_hz": "50",
        "log_levels": '{"a.b":"DEBUG"}',
        "ttl": "1s",
    }
    assert begun[1]["parameters"] == {"preset": "forensic"}
    assert not any("parameters" in one for one in begun[2:])
    assert "hunter2" not in caplog.text


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
    # Other surfaces' refusals, some without a peer, may still wait for their writers.
    surface, text, peer = Surface(SETTINGS), token("metrics"), "198.51.100.48"

    def events() -> list[dict[str, Any]]:
        found = [dict(one.attributes or {}) for one in list(exported)]
        return [one for one in found if one.get("stroboscope.peer") == peer]

    surface.answer(replace(authorised("/debug/labels", text), peer=peer))
    surface.answer(replace(authorised("/debug/labels", "bad.token"), peer=peer))
    deadline = time.monotonic() + 5
    while len(events()) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)

    assert {one.body for one in exported} == {"stroboscope.audit"}
    seen = events()
    assert [one["stroboscope.event"] for one in seen] == ["begin", "end", "end"]
    assert [one.get("stroboscope.status") for one in seen[1:]] == [200, 401]
    assert seen[1]["stroboscope.endpoint"] == "/labels"
    assert text not in str(seen)
    assert "bad.token" not in str(seen)
