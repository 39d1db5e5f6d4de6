"""CPU samples that say whose span they are, as Pyroscope's span profiles want them."""

import asyncio
import time
from collections import Counter
from dataclasses import replace

import httpx
import pytest
from asking import BASE, SETTINGS, bearer, token
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import stroboscope as strobe
from stroboscope.formats.pprof_reader import decode
from stroboscope.integrations import fastapi as our_fastapi
from stroboscope.tracing import Recorder, SpanLinks

CPU, WALL, HEAP = "/debug/pprof/profile", "/debug/pprof/wall", "/debug/pprof/heap"


class Site:
    """Requests that burn CPU under spans, and what is asked of the surface."""

    def __init__(self) -> None:
        self.kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.kept))
        provider.add_span_processor(SpanLinks())
        self.app = FastAPI()
        FastAPIInstrumentor.instrument_app(self.app, tracer_provider=provider)
        our_fastapi.install(self.app, replace(SETTINGS, profile_seconds_cap=2.0))

        @self.app.get("/burn/{ms}")
        async def burn(ms: int) -> None:
            ends = time.thread_time() + ms / 1000
            with strobe.do(step="inner"):
                while time.thread_time() < ends:
                    sum(range(1000))
            self.held = bytearray(1 << 20)

    async def profile(self, path: str, knobs: dict[str, object]) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(
            transport=transport,
            base_url=BASE,
            headers=bearer(token("profile", "admin")),
            timeout=30,
        ) as client:
            switched = await client.put("/debug/settings", json=knobs)
            assert switched.status_code == 200, switched.text
            asking = asyncio.create_task(client.get(path))
            await asyncio.sleep(0.05)
            while not asking.done():
                await client.get("/burn/15")
                await asyncio.sleep(0.001)
            return await asking


@pytest.fixture
def site(flight: Recorder) -> Site:
    return Site()


def spans(answer: httpx.Response) -> Counter[str]:
    """Samples by their `span_id`, of the requests' own code on the CPU."""
    found = Counter[str]()
    for sample in decode(answer.content).samples:
        labels = dict(sample.labels)
        if (
            labels.get("step") == "inner"
            and labels.get("state", "running") == "running"
        ):
            assert labels["endpoint"] == "/burn/{ms}"
            found[labels.get("span_id", "")] += sample.values[0]
    return found


def servers(site: Site) -> dict[str, dict[str, object]]:
    return {
        trace.format_span_id(span.context.span_id): dict(span.attributes or {})
        for span in site.kept.get_finished_spans()
        if span.kind is trace.SpanKind.SERVER
    }


@pytest.mark.parametrize("path", [CPU, WALL])
def test_samples_carry_the_span_of_their_request(site: Site, path: str) -> None:
    """Exactly the key Pyroscope reads; the span says that it has a profile."""
    knobs = {"span_ids": True, "ttl": "1m", "cpu_hz": 250}

    found = spans(asyncio.run(site.profile(path + "?seconds=1", knobs)))

    known = servers(site)
    assert len(found) >= 2
    assert found[""] <= 0.1 * found.total()
    assert set(found) - {""} <= set(known)
    for span_id in set(found) - {""}:
        assert known[span_id]["pyroscope.profile.id"] == span_id


def test_nobody_asked_so_no_sample_has_one(site: Site) -> None:
    """Off from the start."""
    found = spans(asyncio.run(site.profile(CPU + "?seconds=0.3", {"cpu_hz": 250})))

    assert set(found) == {""}
    assert not any("pyroscope.profile.id" in one for one in servers(site).values())


def test_totals_that_only_grow_never_have_one(site: Site) -> None:
    """Or a scraper's series would be as many as there were requests."""
    knobs = {"span_ids": True, "heap_rate_bytes": 65_536}

    answer = asyncio.run(site.profile(HEAP + "?seconds=0.4", knobs))

    profile = decode(answer.content)
    labels = [dict(sample.labels) for sample in profile.samples]
    assert any(one.get("endpoint") == "/burn/{ms}" for one in labels)
    assert not any("span_id" in one for one in labels)
