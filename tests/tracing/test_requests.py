"""A request is a task: named late, its status known at the end, on every carrier."""

import asyncio
import subprocess
import sys
from types import FrameType
from typing import Any

import httpx
import pytest
from asking import BASE, SETTINGS, Ask, ask_asgi, ask_wsgi, bearer, token
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from flask import Flask
from opentelemetry.sdk.trace import TracerProvider
from perfetto_sql import Processor
from servers import FASTAPI, UVICORN, serving
from servers import token as served_token
from werkzeug.test import Client

import stroboscope as strobe
from stroboscope.formats.timeline import Task, Timeline
from stroboscope.integrations import fastapi as our_fastapi
from stroboscope.integrations import flask as our_flask
from stroboscope.integrations.asgi import Stroboscope
from stroboscope.settings import Settings
from stroboscope.tracing import Recorder

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


def requests(flight: Recorder) -> tuple[Timeline, list[Task]]:
    block = flight.snapshot()
    assert block is not None
    line = Timeline.read(block)
    return line, [t for t in line.tasks() if line.name(t.name).startswith("http:")]


def fastapi_app() -> FastAPI:
    app = FastAPI()
    our_fastapi.install(app, Settings())

    @app.get("/item/{item}")
    async def item(item: int) -> dict[str, int]:
        with strobe.region("db.fetch"):
            await asyncio.sleep(0)
            if item == 0:
                raise ZeroDivisionError
        return {"item": item}

    @app.get("/sync")
    def sync() -> dict[str, int]:
        with strobe.region("render"):
            return {}

    @app.websocket("/socket/{name}")
    async def socket(socket: WebSocket, name: str) -> None:
        await socket.accept()
        with strobe.region("talk"):
            await socket.send_text(name)
        await socket.close()

    return app


def calls_of(app: Any, path: str) -> int:
    """Calls of Python's and C's that a request makes until it is answered."""
    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1"},
        **{"method": "GET", "scheme": "http", "path": path, "raw_path": path.encode()},
        **{"query_string": b"", "root_path": "", "headers": [(b"host", b"localhost")]},
        **{"client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 80)},
    }
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    async def ask() -> None:
        await app(dict(scope), receive, send)
        sys.setprofile(count)
        try:
            await app(dict(scope), receive, send)
        finally:
            sys.setprofile(None)

    asyncio.run(ask())
    return calls


def test_to_record_a_request_takes_few_calls(flight: Recorder) -> None:
    """What it costs is mostly this; ten regions are in it. There were 50 once, then 24."""
    app = FastAPI()
    our_fastapi.install(app, Settings())

    @app.get("/item/{item}")
    async def item(item: int) -> dict[str, int]:
        for _ in range(10):
            with strobe.region("part"):
                pass
        return {}

    recorded = calls_of(app, "/item/1")
    flight.set_flight(False)

    assert 0 < recorded - calls_of(app, "/item/1") <= 6


def test_a_request_is_a_task_with_its_route_status_and_ids(flight: Recorder) -> None:
    """By FastAPI, with a remote parent."""
    client = TestClient(fastapi_app(), base_url=BASE)

    client.get("/item/7", headers=HEADERS)
    client.get("/nowhere")

    line, (found, lost) = requests(flight)
    assert line.name(found.name) == "http:/item/{item}"
    assert line.name(found.kind) == "GET"
    assert (found.status, lost.status) == (200, 404)
    assert (found.trace_id.hex(), found.span_id.hex()) == (TRACE, SPAN)
    assert [line.name(s.name) for s in line.spans_of(found)] == ["db.fetch"]
    assert line.name(lost.name) == "http:(unmatched)"


def test_a_request_that_fails_is_a_task_that_ends(flight: Recorder) -> None:
    """With 500, and the exception on its region."""
    client = TestClient(fastapi_app(), base_url=BASE, raise_server_exceptions=False)

    client.get("/item/0")

    line, (found,) = requests(flight)
    assert found.status == 500
    assert not found.flags
    assert "ZeroDivisionError" in line.names


def test_a_sync_view_belongs_to_its_request(flight: Recorder) -> None:
    """Though it runs on another thread."""
    TestClient(fastapi_app(), base_url=BASE).get("/sync")

    line, (found,) = requests(flight)
    (span,) = line.spans_of(found)
    assert line.name(span.name) == "render"
    assert span.thread != found.thread


def test_a_websocket_is_a_task(flight: Recorder) -> None:
    """From its handshake to its close."""
    client = TestClient(fastapi_app(), base_url=BASE)

    with client.websocket_connect("/socket/a") as socket:
        assert socket.receive_text() == "a"

    line, (found,) = requests(flight)
    assert line.name(found.name) == "http:/socket/{name}"
    assert [line.name(s.name) for s in line.spans_of(found)] == ["talk"]


def test_flask_requests_are_tasks(flight: Recorder) -> None:
    """By WSGI, with a remote parent; regions of a streamed body are in it, too."""
    app = Flask(__name__)
    our_flask.Stroboscope(app, Settings())

    @app.get("/stream/<int:n>")
    def stream(n: int) -> Any:
        def body() -> Any:
            for i in range(n):
                with strobe.region("row"):
                    yield str(i)

        return body()

    with Client(app).get("/stream/3", headers=HEADERS) as response:
        assert response.get_data() == b"012"

    line, (found,) = requests(flight)
    assert line.name(found.name) == "http:/stream/<int:n>"
    assert found.status == 200
    assert found.trace_id.hex() == TRACE
    assert [line.name(s.name) for s in line.spans_of(found)] == ["row"] * 3


def test_the_name_is_known_while_the_request_runs(flight: Recorder) -> None:
    """As soon as a region begins in its handler: for who looks after a crash."""
    seen = []
    app = FastAPI()
    our_fastapi.install(app, Settings())

    @app.get("/item/{item}")
    async def item(item: int) -> None:
        with strobe.region("db.fetch"):
            line, (found,) = requests(flight)
            seen.append(line.name(found.name))

    TestClient(app, base_url=BASE).get("/item/7")

    assert seen == ["http:/item/{item}"]


def test_the_span_around_us_is_the_tasks(flight: Recorder) -> None:
    """Where OpenTelemetry wraps us, its server span's ids are those of the task."""
    tracer = TracerProvider().get_tracer("test")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    ours = Stroboscope(app, Settings(), template=lambda scope: "/x")

    async def main() -> Any:
        with tracer.start_as_current_span("server") as span:
            transport = httpx.ASGITransport(ours)
            async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
                await client.get("/", headers=HEADERS)
            return span.get_span_context()

    context = asyncio.run(main())

    _, (found,) = requests(flight)
    assert int.from_bytes(found.trace_id) == context.trace_id
    assert int.from_bytes(found.span_id) == context.span_id


def test_requests_at_once_keep_to_themselves(flight: Recorder) -> None:
    """A hundred of them, with children and threads: each has its own regions only."""
    app = FastAPI()
    our_fastapi.install(app, Settings())

    @app.get("/item/{item}")
    async def item(item: int) -> None:
        def work() -> None:
            with strobe.region(f"thread {item}"):
                pass

        async def child() -> None:
            with strobe.region(f"child {item}"):
                await asyncio.sleep(0.001)

        with strobe.region(f"own {item}"):
            await asyncio.gather(child(), asyncio.to_thread(work))

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            await asyncio.gather(*(client.get(f"/item/{i}") for i in range(100)))

    asyncio.run(main())

    line, found = requests(flight)
    numbers = set()
    for task in found:
        spans = [line.name(s.name).split() for s in line.spans_of(task)]
        assert sorted(kind for kind, _ in spans) == ["child", "own", "thread"]
        numbers.add(*{number for _, number in spans})
    assert len(numbers) == 100


@pytest.mark.parametrize("ask", [ask_asgi, ask_wsgi])
def test_a_trace_is_answered(ask: Ask, processor: Processor) -> None:
    """Protobuf by default, JSON on request, 400 for another format."""
    headers = bearer(token("trace"))

    answer = ask("/debug/trace?seconds=0.1", headers)
    as_json = ask("/debug/trace?seconds=0.1&format=json", headers)
    refused = ask("/debug/trace?format=go", headers)

    assert answer.status == 200
    processor.load(answer.body)
    assert processor.problems() == []
    assert as_json.body.startswith(b'{"displayTimeUnit"')
    assert refused.status == 400


def test_a_clamped_trace_says_so_in_itself(processor: Processor) -> None:
    """In its header and on its first slice."""
    from dataclasses import replace

    settings = replace(SETTINGS, trace_seconds_cap=0.1)
    answer = ask_wsgi(
        "/debug/trace?seconds=5", bearer(token("trace")), settings=settings
    )

    assert answer.headers["X-Stroboscope-Clamped"] == "seconds=0.1"
    processor.load(answer.body)
    rows = processor.query(
        "select display_value as v from args join slice using(arg_set_id) "
        "where slice.name = 'about this trace' and key = 'debug.clamped'"
    )
    assert rows == [{"v": "seconds=0.1"}]


def test_a_served_application_is_traced(processor: Processor) -> None:
    """uvicorn, requests while the trace is taken, labels on their tasks."""
    with serving(UVICORN, FASTAPI) as (base, _):
        url = f"{base}/debug/trace?seconds=1"
        curl = subprocess.Popen(
            [sys.executable, "-c", _FETCH, url, served_token("trace")],
            stdout=subprocess.PIPE,
        )
        for i in range(20):
            httpx.get(f"{base}/checkout/{i}", headers={"X-Tenant": "acme"})
            httpx.get(f"{base}/render/home")
        body, _ = curl.communicate(timeout=30)

    processor.load(body)
    assert processor.problems() == []
    rows = processor.query(
        "select display_value as v, count(*) as n from args join slice "
        "using(arg_set_id) where slice.name = 'http:/checkout/{item}' "
        "and key = 'debug.tenant' group by 1"
    )
    assert rows
    assert rows[0]["v"] == "acme"


_FETCH = """
import sys, urllib.request
request = urllib.request.Request(
    sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]})
sys.stdout.buffer.write(urllib.request.urlopen(request).read())
"""
