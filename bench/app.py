"""The served application of `bench.requests`: some CPU, a label, a profiler if told."""

import asyncio
import contextlib
import hashlib
import os
import time

PEER = os.environ.get("BENCH_PEER", "")
if PEER == "ddtrace":
    from ddtrace.profiling import Profiler
elif PEER == "pyroscope":
    import pyroscope


def start_peer():
    """In the worker, where these peers want to be started."""
    if PEER == "ddtrace":
        Profiler().start()
    elif PEER == "pyroscope":
        pyroscope.configure(
            application_name="bench",
            server_address=os.environ["BENCH_RECEIVER"],
            sample_rate=100,
            oncpu=True,
        )
    elif PEER == "viztracer":
        from viztracer import VizTracer

        VizTracer(tracer_entries=1_000_000, verbose=0).start()


def work():
    """About a millisecond, as a small request has."""
    digest = b"x"
    for i in range(400):
        digest = hashlib.sha256(digest + str(i).encode()).digest()
    return {"digest": digest.hex(), "rows": [{"id": i, "name": str(i)} for i in range(200)]}


def in_parts(part):
    """The same work in ten parts, each within what `part` gives."""
    digest = b"x"
    for step in range(10):
        with part(f"part {step}"):
            for i in range(40):
                digest = hashlib.sha256(digest + str(i).encode()).digest()
    return {"digest": digest.hex(), "rows": [{"id": i, "name": str(i)} for i in range(200)]}


def quick(part):
    """Ten parts and next to no work."""
    for step in range(10):
        with part(f"part {step}"):
            pass
    return {}


class Clock:
    """Ticks on the loop every millisecond; the longest time between two ticks.

    Less what the kernel let the thread wait for a processor: other people's work.
    """

    def __init__(self):
        self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._last = self._now()
        self._longest = 0.0

    def _now(self):
        waited_ns = int(os.pread(self._file, 100, 0).split()[1])
        return time.monotonic() - waited_ns / 1e9

    def tick(self):
        now = self._now()
        self._longest = max(self._longest, now - self._last - 0.001)
        self._last = now
        asyncio.get_running_loop().call_later(0.001, self.tick)

    def ms(self):
        longest, self._longest = self._longest, 0.0
        return longest * 1000


def otel_spans():
    """OpenTelemetry's SDK as it is usually set up; what it exports goes nowhere."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )

    class Nowhere(SpanExporter):
        def export(self, spans):
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider.get_tracer("bench").start_as_current_span


def fastapi():
    from fastapi import FastAPI

    app = FastAPI()
    suspended = set()

    async def waits():
        await asyncio.get_running_loop().create_future()

    async def suspend():
        for _ in range(int(os.environ.get("BENCH_SUSPENDED", "0"))):
            suspended.add(asyncio.create_task(waits()))

    app.router.add_event_handler("startup", suspend)

    @app.get("/item/{item}")
    async def endpoint(item: int):
        return work()

    if PEER in ("none", "viztracer"):
        part = contextlib.nullcontext
    elif PEER == "otel":
        part = otel_spans()
    else:
        from stroboscope import region as part

    @app.get("/regions/{item}")
    async def regions(item: int):
        return in_parts(part)

    @app.get("/quick/{item}")
    async def quickly(item: int):
        return quick(part)

    clocks = []

    async def tick():
        clocks.append(Clock())
        clocks[0].tick()

    app.router.add_event_handler("startup", tick)

    @app.get("/pause")
    async def pause():
        return clocks[0].ms()

    if not PEER:
        from stroboscope.integrations.fastapi import install

        install(app, service="bench")
    start_peer()
    return app


def flask():
    from flask import Flask

    app = Flask(__name__)

    @app.get("/item/<int:item>")
    def endpoint(item):
        return work()

    if not PEER:
        from stroboscope.integrations.flask import Stroboscope

        Stroboscope(app, service="bench")
    start_peer()
    return app
