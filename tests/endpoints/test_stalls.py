"""What the surface says of stalls, and whose span hears of it."""

import asyncio
import json
import time

import pytest
from asking import Ask, bearer, token
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from stalling import GUILTY_LINE, over, request, stall, watching

from stroboscope._clock import SYSTEM
from stroboscope.endpoints import otel, stalls
from stroboscope.endpoints.knobset import knobs_of
from stroboscope.errors import KnobError, SettingsError
from stroboscope.formats.profile import Frame
from stroboscope.settings import Settings
from stroboscope.stalls import Book, Stall
from stroboscope.stalls.records import KEPT

WHERE = Frame("shop/app.py", "checkout", 10, 12)


def a_stall(number: int, duration_ms: float = 150.0) -> Stall:
    return Stall(
        number=number,
        kind="loop",
        cause="code",
        began_s=1_700_000_000.0,
        duration_ms=duration_ms,
        gc_ms=0.0,
        is_over=True,
        thread="MainThread",
        labels=(("endpoint", "/checkout"),),
        frame=WHERE,
        stack=(WHERE,),
        looks=3,
        seen=3,
    )


def test_the_last_256_are_listed_and_all_are_counted(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newest first; the histogram has those that are no longer listed, too."""
    book = Book()
    for number in range(1, 301):
        book.close(a_stall(number))
    monkeypatch.setattr(stalls.WATCH, "book", book)
    headers = bearer(token("profile", "metrics"))

    listed = ask("/debug/stalls", headers | {"Accept": "application/json"})
    text = ask("/debug/stalls", headers)
    metrics = ask("/debug/metrics", headers).body.decode()

    numbers = [one["number"] for one in json.loads(listed.body)]
    assert numbers == list(range(300, 300 - KEPT, -1))
    assert b"checkout shop/app.py:12" in text.body
    assert b"endpoint=/checkout" in text.body
    for line in (
        'stroboscope_stall_seconds_bucket{kind="loop",le="0.1"} 0',
        'stroboscope_stall_seconds_bucket{kind="loop",le="0.25"} 300',
        'stroboscope_stall_seconds_bucket{kind="loop",le="+Inf"} 300',
        'stroboscope_stall_seconds_count{kind="loop"} 300',
        'stroboscope_stalls_total{kind="loop",cause="code"} 300',
    ):
        assert line in metrics.splitlines()


def test_the_event_lands_on_the_span_of_the_guilty_request_alone() -> None:
    """With every request in flight in a span of its own, recorded by the real SDK."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("tests")

    async def guilty() -> None:
        with tracer.start_as_current_span("guilty"):
            await stall(0.4)

    async def innocent() -> None:
        with tracer.start_as_current_span("innocent"):
            await asyncio.sleep(0.8)

    async def main() -> list[Stall]:
        watch.add_loop(asyncio.get_running_loop())
        others = [asyncio.ensure_future(request("/b", innocent)) for _ in range(10)]
        await asyncio.sleep(0.2)
        await request("/a", guilty)
        await asyncio.gather(*others)
        return await over(watch)

    with watching() as watch:
        watch.span_of, watch.note = otel.span_of, otel.note_stall
        found = [one for one in asyncio.run(main()) if one.cause == "code"]
        time.sleep(0.1)

    spans = exporter.get_finished_spans()
    noted = [(span.name, event) for span in spans for event in span.events]
    ((name, event),) = noted
    assert name == "guilty"
    assert event.name == "stroboscope.stall"
    assert event.attributes is not None
    assert event.attributes["stroboscope.function"] == "block"
    assert event.attributes["stroboscope.line"] == GUILTY_LINE
    (span,) = [span for span in spans if span.name == "guilty"]
    assert found[0].ids["span_id"] == f"{span.context.span_id:016x}"
    assert found[0].ids["trace_id"] == f"{span.context.trace_id:032x}"


@pytest.mark.parametrize("value", [1, 9.9, -1, 60_001, "100", True])
def test_a_threshold_out_of_bounds_is_refused(value: object) -> None:
    """By the knob; 0 and 10 to 60000 milliseconds are taken."""
    knobs = knobs_of(Settings(), SYSTEM)

    with pytest.raises(KnobError, match="stall_threshold_ms"):
        knobs.change({"stall_threshold_ms": value})
    for good in (0, 10, 250.5):
        knobs.change({"stall_threshold_ms": good})
        assert knobs.get("stall_threshold_ms") == good


@pytest.mark.parametrize(
    "options", [{"stall_threshold_ms": 5.0}, {"slow_request_s": 0.1}]
)
def test_settings_out_of_bounds_are_refused(options: dict[str, float]) -> None:
    """At the start, by name."""
    with pytest.raises(SettingsError, match=next(iter(options))):
        Settings(**options)  # type: ignore[arg-type]
