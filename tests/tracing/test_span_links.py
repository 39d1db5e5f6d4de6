"""Spans and tasks know each other, however OpenTelemetry and we are put together."""

import asyncio
import contextvars
import os
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from asking import BASE, SETTINGS, bearer, token
from fastapi import FastAPI
from flask import Flask
from opentelemetry import context, trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.wsgi import (
    OpenTelemetryMiddleware as OpenTelemetryWSGI,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler, TraceIdRatioBased
from werkzeug.test import Client

import stroboscope as strobe
from stroboscope._core import recording
from stroboscope.formats.timeline import Task, Timeline
from stroboscope.integrations import asgi, wsgi
from stroboscope.integrations import fastapi as our_fastapi
from stroboscope.labels import TABLE
from stroboscope.settings import Settings
from stroboscope.tracing import Recorder, SpanLinks, otel

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
OFF = Settings()


class Tracing:
    """A provider of its own, with all its spans."""

    def __init__(self, sampler: Sampler | None = None, *, is_linked: bool = True):
        self.provider = TracerProvider(sampler=sampler)
        self._kept = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))
        if is_linked:
            self.provider.add_span_processor(SpanLinks())
        self.tracer = self.provider.get_tracer("test")

    def spans(self) -> list[ReadableSpan]:
        return list(self._kept.get_finished_spans())

    def servers(self) -> list[ReadableSpan]:
        """Spans of requests, not those of parts of them."""
        return [one for one in self.spans() if one.kind is trace.SpanKind.SERVER]


def requests(flight: Recorder) -> tuple[Timeline, list[Task]]:
    block = flight.snapshot()
    assert block is not None
    line = Timeline.read(block)
    return line, [t for t in line.tasks() if line.name(t.name).startswith("http:")]


def fastapi_app() -> FastAPI:
    app = FastAPI()

    @app.get("/item/{item}")
    async def item(item: int) -> dict[str, int]:
        with strobe.region("db.fetch"):
            await asyncio.sleep(0)
        return {"item": item}

    return app


def flask_app() -> Flask:
    app = Flask(__name__)

    @app.get("/item/<int:item>")
    def item(item: int) -> str:
        with strobe.region("db.fetch"):
            return str(item)

    return app


def get(app: Any, path: str, headers: dict[str, str]) -> None:
    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            await client.get(path, headers=headers)

    asyncio.run(run())


def asgi_outside(tracing: Tracing, headers: dict[str, str]) -> None:
    ours = asgi.Stroboscope(fastapi_app(), OFF)
    app = OpenTelemetryMiddleware(ours, tracer_provider=tracing.provider)
    get(app, "/item/7", headers)


def asgi_inside(tracing: Tracing, headers: dict[str, str]) -> None:
    app = fastapi_app()
    FastAPIInstrumentor.instrument_app(app, tracer_provider=tracing.provider)
    our_fastapi.install(app, OFF)
    get(app, "/item/7", headers)


def fastapi_instrumented_later(tracing: Tracing, headers: dict[str, str]) -> None:
    app = fastapi_app()
    our_fastapi.install(app, OFF)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=tracing.provider)
    get(app, "/item/7", headers)


def wsgi_outside(tracing: Tracing, headers: dict[str, str]) -> None:
    ours = wsgi.Stroboscope(flask_app(), OFF)
    app = OpenTelemetryWSGI(ours, tracer_provider=tracing.provider)
    Client(app).get("/item/7", headers=headers).close()


def wsgi_inside(tracing: Tracing, headers: dict[str, str]) -> None:
    inner = OpenTelemetryWSGI(flask_app(), tracer_provider=tracing.provider)
    Client(wsgi.Stroboscope(inner, OFF)).get("/item/7", headers=headers).close()


Serve = Callable[[Tracing, dict[str, str]], None]
ORDERS = pytest.mark.parametrize(
    "serve",
    [
        asgi_outside,
        asgi_inside,
        fastapi_instrumented_later,
        wsgi_outside,
        wsgi_inside,
    ],
)


@ORDERS
@pytest.mark.parametrize("headers", [{}, PARENT], ids=["root", "remote parent"])
def test_a_request_and_its_span_name_each_other(
    flight: Recorder, serve: Serve, headers: dict[str, str]
) -> None:
    """The span has the task's number and endpoint, the task has the span's own ids."""
    tracing = Tracing()

    serve(tracing, headers)

    (span,) = tracing.servers()
    line, (task,) = requests(flight)
    assert task.trace_id == span.context.trace_id.to_bytes(16)
    assert task.span_id == span.context.span_id.to_bytes(8)
    if headers:
        assert task.trace_id.hex() == TRACE
        assert task.span_id.hex() != SPAN  # that is the caller's
    assert span.attributes is not None
    assert span.attributes[otel.TASK] == f"{os.getpid()}-{task.serial}"
    assert f"http:{span.attributes[otel.ENDPOINT]}" == line.name(task.name)
    assert "item" in line.name(task.name)
    assert otel.URL not in span.attributes
    others = [s for s in tracing.spans() if s is not span and s.attributes]
    assert not any(otel.TASK in (s.attributes or {}) for s in others)


@ORDERS
def test_an_unsampled_span_gives_its_ids_and_gets_nothing(
    flight: Recorder, serve: Serve
) -> None:
    """Its trace id is the caller's, its own span id is on the task; nothing is sent."""
    tracing = Tracing(ALWAYS_OFF)

    serve(tracing, PARENT)

    _, (task,) = requests(flight)
    assert tracing.spans() == []
    assert task.trace_id.hex() == TRACE


@ORDERS
def test_without_a_processor_the_response_links_them(
    flight: Recorder, serve: Serve
) -> None:
    """A provider that nobody told of us: where the instrumentation is inside, the ids
    are those of the span current as the response starts; its trace is the same."""
    tracing = Tracing(is_linked=False)

    serve(tracing, PARENT)

    _, (task,) = requests(flight)
    told = [s for s in tracing.spans() if otel.TASK in (s.attributes or {})]
    assert task.trace_id.hex() == TRACE
    assert [s.context.span_id.to_bytes(8) for s in told] == [task.span_id]


def test_two_providers_link_the_outer_span(flight: Recorder) -> None:
    """The server's is the request's; that of another provider inside is its child."""
    one, two = Tracing(), Tracing()
    app = fastapi_app()
    FastAPIInstrumentor.instrument_app(app, tracer_provider=two.provider)
    our_fastapi.install(app, OFF)

    get(OpenTelemetryMiddleware(app, tracer_provider=one.provider), "/item/7", {})

    (outer,) = one.servers()
    _, (task,) = requests(flight)
    assert task.span_id == outer.context.span_id.to_bytes(8)
    assert otel.TASK in (outer.attributes or {})
    assert two.spans()
    for inner in two.spans():
        assert otel.TASK not in (inner.attributes or {})
        assert inner.context.trace_id == outer.context.trace_id


def test_no_provider_at_all_keeps_the_callers_ids(flight: Recorder) -> None:
    """`traceparent` alone tells the trace."""
    get(asgi.Stroboscope(fastapi_app(), OFF), "/item/7", PARENT)

    _, (task,) = requests(flight)
    assert (task.trace_id.hex(), task.span_id.hex()) == (TRACE, SPAN)


def test_a_current_span_is_found_wherever_it_was_made_current(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In this context, in none, in another one; where the API's place is not known, and
    whoever put what there."""
    inner = trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)

    def found() -> list[Any]:
        nothing = otel.current_span()
        with trace.use_span(inner):
            here = otel.current_span()
            elsewhere = contextvars.Context().run(otel.current_span)
            token = context.attach(context.Context())
            emptied = otel.current_span()
            context.detach(token)
        token = context.attach(context.set_value("other", 1))
        beside = otel.current_span()
        context.detach(token)
        with trace.use_span(trace.INVALID_SPAN):
            invalid = otel.current_span()
        return [nothing, here, elsewhere, emptied, beside, invalid]

    right = [None, inner, None, None, None, None]
    assert found() == right
    try:
        recording.set_span_place(otel._ask_for_span, None, None)
        assert found() == right
        with monkeypatch.context() as patched:  # an API that keeps it otherwise
            patched.setattr(context, "attach", lambda held: None)
            assert otel._place_of_span() == (None, None)
    finally:
        recording.set_span_place(otel._ask_for_span, *otel._place_of_span())


def test_the_api_is_not_asked_for_a_span_that_is_not_there() -> None:
    """A request without one costs none of its calls."""
    asked: list[int] = []
    place = otel._place_of_span()
    try:
        recording.set_span_place(lambda: asked.append(1), *place)

        assert otel.current_span() is None
        assert not asked
        with trace.use_span(trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)):
            otel.current_span()
        assert asked == [1]
    finally:
        recording.set_span_place(otel._ask_for_span, *place)


def test_a_second_root_span_of_a_request_is_not_the_requests(flight: Recorder) -> None:
    """Work in the background begins traces of its own."""
    tracing = Tracing()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with tracing.tracer.start_as_current_span("first"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
        with tracing.tracer.start_as_current_span("second", context.Context()):
            await send({"type": "http.response.body", "body": b""})

    get(asgi.Stroboscope(app, OFF, template=lambda scope: "/x"), "/x", {})

    first, second = tracing.spans()
    _, (task,) = requests(flight)
    assert task.span_id == first.context.span_id.to_bytes(8)
    assert (first.attributes or {})[otel.ENDPOINT] == "/x"
    assert not second.attributes


def test_a_span_of_other_work_is_not_the_requests(flight: Recorder) -> None:
    """One that continues a span of this process, which the request does not know of."""
    tracing = Tracing()
    elsewhere = trace.set_span_in_context(tracing.tracer.start_span("elsewhere"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tracing.tracer.start_span("continued", elsewhere).end()
        with tracing.tracer.start_as_current_span("own"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    get(asgi.Stroboscope(app, OFF, template=lambda scope: "/x"), "/x", {})

    spans = {span.name: span for span in tracing.spans()}
    _, (task,) = requests(flight)
    assert task.span_id == spans["own"].context.span_id.to_bytes(8)
    assert not spans["continued"].attributes


@pytest.mark.parametrize("is_around", [True, False])
def test_a_task_outside_of_requests_is_linked(
    flight: Recorder, is_around: bool
) -> None:
    """With the span it begins in, or the first that begins in it."""
    tracing = Tracing()
    if is_around:
        with tracing.tracer.start_as_current_span("job"), strobe.task("nightly"):
            pass
    else:
        with strobe.task("nightly"), tracing.tracer.start_as_current_span("job"):
            pass

    (span,) = tracing.spans()
    block = flight.snapshot()
    assert block is not None
    (task,) = Timeline.read(block).tasks()
    assert task.span_id == span.context.span_id.to_bytes(8)
    assert (span.attributes or {})[otel.TASK] == f"{os.getpid()}-{task.serial}"


class Copying:
    """A layer that hides the route: what is below gets a copy of the scope."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(dict(scope), receive, send)


def test_the_route_of_opentelemetry_is_used_where_we_know_none(
    flight: Recorder,
) -> None:
    """Its instrumentation sits below the layer that hides the route from us."""
    tracing = Tracing()
    app = fastapi_app()
    FastAPIInstrumentor.instrument_app(app, tracer_provider=tracing.provider)

    get(asgi.Stroboscope(Copying(app), OFF), "/item/7", {})
    get(asgi.Stroboscope(Copying(app), OFF), "/nowhere/7", {})

    line, tasks = requests(flight)
    assert [line.name(task.name) for task in tasks] == [
        "http:/item/{item}",
        "http:(unmatched)",
    ]


def test_a_path_that_calls_itself_a_route_is_none(flight: Recorder) -> None:
    """`http.route` of an instrumentation that knows no template is the path itself."""
    tracing = Tracing()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with tracing.tracer.start_as_current_span(
            "x", attributes={"http.route": scope["path"]}
        ):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    get(asgi.Stroboscope(app, OFF), "/secret/of/somebody", {})

    line, (task,) = requests(flight)
    assert line.name(task.name) == "http:(unmatched)"
    assert "/secret/of/somebody" not in line.names


def test_a_span_whose_request_a_capture_holds_says_where(flight: Recorder) -> None:
    """`stroboscope.url` leads to the timeline, by way of the surface itself."""
    tracing = Tracing()
    app = fastapi_app()
    settings = Settings(
        keys=SETTINGS.keys, service="shop", public_url="https://shop.example/"
    )
    our_fastapi.install(app, settings)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=tracing.provider)

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url=BASE, headers=bearer(token("trace"))
        ) as client:
            asking = asyncio.create_task(client.get("/debug/trace?seconds=0.3"))
            await asyncio.sleep(0.1)
            await client.get("/item/7")
            await asking
            (url,) = [
                str(value)
                for span in tracing.servers()
                for key, value in (span.attributes or {}).items()
                if key == otel.URL
            ]
            assert url.startswith("https://shop.example/debug/tasks/")
            return await client.get(url.removeprefix("https://shop.example"))

    (task,) = asyncio.run(run()).json()["tasks"]

    assert task["name"] == "http:/item/{item}"
    assert task["labels"]["endpoint"] == "/item/{item}"


@pytest.mark.parametrize("order", ["outside", "header"])
def test_a_fraction_of_traces_is_that_of_the_sdks_sampler(
    flight: Recorder, order: str
) -> None:
    """By trace id, whether it came with a span around us or in `traceparent` alone."""
    sampler = TraceIdRatioBased(0.5)
    flight.set_fraction(0.5)
    wanted = set()
    for number in range(40):
        trace_id = (number * 0x9E3779B97F4A7C15 % 2**64) << 64 | (
            number * 0xBF58476D1CE4E5B9 % 2**64
        )
        if not trace_id:
            continue
        headers = {"traceparent": f"00-{trace_id:032x}-{SPAN}-01"}
        if sampler.should_sample(None, trace_id, "x").decision.is_sampled():
            wanted.add(f"{trace_id:032x}")
        if order == "outside":
            asgi_outside(Tracing(), headers)
        else:
            get(asgi.Stroboscope(fastapi_app(), OFF), "/item/7", headers)

    _, tasks = requests(flight)
    assert {task.trace_id.hex() for task in tasks} == wanted
    assert 5 < len(wanted) < 35


@pytest.fixture
def no_global_provider() -> Iterator[None]:
    """The API's state, put back: a provider can be set once a process."""
    from opentelemetry.util._once import Once

    before = trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = None, Once()

    yield

    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = before


@pytest.mark.usefixtures("no_global_provider")
def test_the_global_provider_is_linked_by_itself_and_once() -> None:
    """As soon as there is one."""
    assert not otel.install()
    provider = TracerProvider()
    trace.set_tracer_provider(provider)

    assert otel.install()
    assert otel.install()

    processors = provider._active_span_processor._span_processors
    assert [type(one) for one in processors] == [SpanLinks]


def test_a_failure_of_ours_is_counted_and_breaks_no_span(
    flight: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application's span begins and ends as if we were not there."""
    tracing = Tracing()

    def fail(*args: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(otel, "_take", fail)
    before = TABLE.stats().failed
    with strobe.task("x"), tracing.tracer.start_as_current_span("job"):
        pass

    assert [span.name for span in tracing.spans()] == ["job"]
    assert TABLE.stats().failed == before + 1


def test_nothing_is_written_while_nothing_records() -> None:
    """Spans are left alone."""
    tracing = Tracing()

    asgi_inside(tracing, {})

    (span,) = tracing.servers()
    assert not any(key.startswith("stroboscope") for key in span.attributes or {})
