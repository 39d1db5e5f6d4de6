"""Regions as spans: off, or children of the request's span, whatever ends them."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import stroboscope as strobe
from stroboscope.tracing import Recorder, otel

ROOT = TracerProvider()
KEPT = InMemorySpanExporter()
ROOT.add_span_processor(SimpleSpanProcessor(KEPT))
TRACER = ROOT.get_tracer("test")


@pytest.fixture
def exported(flight: Recorder) -> Iterator[InMemorySpanExporter]:
    """Regions are exported, to a provider that keeps them."""
    KEPT.clear()
    otel.export_regions(True, ROOT)

    yield KEPT

    otel.export_regions(False)
    assert trace.get_current_span() is trace.INVALID_SPAN


def named(kept: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in kept.get_finished_spans()}


def parent_of(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


def test_regions_are_children_as_they_nest(exported: InMemorySpanExporter) -> None:
    """And a span inside of a region is the region's child."""
    with strobe.task("x"), TRACER.start_as_current_span("request"):
        query = TRACER.start_as_current_span("query")
        with strobe.region("outer"), strobe.region("inner"), query:
            pass
        with strobe.region("second"):
            pass

    spans = named(exported)
    assert parent_of(spans["outer"]) == spans["request"].context.span_id
    assert parent_of(spans["inner"]) == spans["outer"].context.span_id
    assert parent_of(spans["query"]) == spans["inner"].context.span_id
    assert parent_of(spans["second"]) == spans["request"].context.span_id


def test_a_region_that_fails_is_a_span_that_failed(
    exported: InMemorySpanExporter,
) -> None:
    """Named by the exception's type, without its text; a cancelled one did not fail."""
    with strobe.task("x"), TRACER.start_as_current_span("request"):
        with pytest.raises(KeyError), strobe.region("bad"):
            raise KeyError("a secret")
        with pytest.raises(asyncio.CancelledError), strobe.region("cancelled"):
            raise asyncio.CancelledError

    spans = named(exported)
    assert not spans["bad"].status.is_ok
    assert spans["bad"].status.description == "KeyError"
    assert spans["cancelled"].status.is_ok


@pytest.mark.parametrize("is_async", [False, True])
def test_a_decorated_function_is_a_span_for_each_call(
    exported: InMemorySpanExporter, is_async: bool
) -> None:
    """Calls at the same time are no children of each other."""

    @strobe.region("work")
    async def work() -> None:
        await asyncio.sleep(0.001)

    @strobe.region("work")
    def call() -> None:
        pass

    async def run() -> None:
        await asyncio.gather(work(), work(), work())

    with strobe.task("x"), TRACER.start_as_current_span("request") as request:
        if is_async:
            asyncio.run(run())
        else:
            for _ in range(3):
                call()

    found = [s for s in exported.get_finished_spans() if s.name == "work"]
    assert len(found) == 3
    context = request.get_span_context()
    assert {parent_of(span) for span in found} == {context.span_id}


def test_one_region_shared_by_threads_ends_each_span_once(
    exported: InMemorySpanExporter,
) -> None:
    """Entered and left by many at once: as many spans, all ended, none the other's."""
    shared = strobe.region("shared")
    barrier = threading.Barrier(4)

    def run(number: int) -> None:
        with strobe.task("x"), TRACER.start_as_current_span(f"root-{number}"):
            barrier.wait()
            for _ in range(50):
                with shared:
                    pass

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    spans = exported.get_finished_spans()
    roots = {s.context.span_id: 0 for s in spans if s.name.startswith("root")}
    for span in spans:
        if span.name == "shared":
            roots[parent_of(span)] += 1
    assert list(roots.values()) == [50] * 4


def test_a_region_left_on_another_thread_is_put_back_nowhere_else(
    exported: InMemorySpanExporter,
) -> None:
    """Its span ends; the other thread's current span stays what it was."""
    with strobe.task("x"), TRACER.start_as_current_span("request"):
        region = strobe.region("moved")
        region.__enter__()
        seen = []

        def leave() -> None:
            with TRACER.start_as_current_span("elsewhere") as span:
                region.__exit__(None, None, None)
                seen.append(trace.get_current_span() is span)

        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()

    assert seen == [True]
    assert "moved" in named(exported)


def test_no_span_is_made_of_what_is_not_sampled(
    exported: InMemorySpanExporter,
) -> None:
    """Nor outside of any span, nor of a task that is not recorded."""
    unsampled = TracerProvider(sampler=ALWAYS_OFF).get_tracer("x")
    with strobe.task("x"):
        with strobe.region("rootless"):
            pass
        with unsampled.start_as_current_span("request"), strobe.region("unsampled"):
            pass

    assert exported.get_finished_spans() == ()


def test_switched_off_within_a_region_it_still_ends_well(
    exported: InMemorySpanExporter,
) -> None:
    """What has begun ends; nothing new begins."""
    with strobe.task("x"), TRACER.start_as_current_span("request"):
        with strobe.region("outer"):
            otel.export_regions(False)
        with strobe.region("second"):
            pass

    assert set(named(exported)) == {"request", "outer"}
    assert parent_of(named(exported)["outer"])


def test_a_tracer_that_raises_breaks_no_region(flight: Recorder) -> None:
    """Of ours or of theirs."""
    from stroboscope._core import recording

    def fail(*args: object) -> Any:
        raise RuntimeError

    recording.set_region_spans(fail)
    try:
        with strobe.region("first"):
            pass
        recording.set_region_spans(lambda name: fail)
        with strobe.region("second"):
            pass
    finally:
        recording.set_region_spans(None)
