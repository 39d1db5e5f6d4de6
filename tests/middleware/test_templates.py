"""Labels name the route's template, whatever frameworks nest, and leak no path."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from fastapi.testclient import TestClient
from flask import Blueprint, Flask, request
from flask.views import MethodView
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles
from werkzeug.middleware.lint import LintMiddleware
from werkzeug.test import Client

from stroboscope._core import LABELS
from stroboscope.integrations.flask import Stroboscope
from stroboscope.integrations.starlette import install
from stroboscope.labels import current
from stroboscope.middleware import StroboscopeASGI, StroboscopeWSGI
from stroboscope.middleware.observed import Labeller, Observed
from stroboscope.settings import Settings

filterwarnings = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """The labels every request ends with, as if each had been sampled."""
    seen: list[dict[str, str]] = []

    def end(self: Observed) -> None:
        self.ended_ns = self.began_ns + 1
        labels = self.labels()
        assert labels is not None
        seen.append(dict(labels))

    monkeypatch.setattr(Observed, "end", end)
    yield seen
    assert LABELS.get() is None


def fastapi_app() -> FastAPI:
    app = FastAPI()
    inner = APIRouter(prefix="/inner")
    outer = APIRouter(prefix="/outer/{org}")

    @app.get("/items/{item}")
    async def item(item: str) -> dict[str, str]:
        return dict(current())

    @app.get("/sync/{item}")
    def sync(item: str) -> dict[str, str]:
        return dict(current())

    @inner.get("/deep/{name}")
    async def deep(name: str) -> str:
        return name

    @app.websocket("/ws/{room}")
    async def ws(socket: WebSocket, room: str) -> None:
        await socket.accept()
        await socket.close()

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("the application's own")

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> Any:
            for _ in range(3):
                yield current().get("endpoint") or "none"

        return StreamingResponse(chunks())

    async def plain(request: Any) -> PlainTextResponse:
        return PlainTextResponse("x")

    outer.include_router(inner)
    app.include_router(outer)
    app.mount("/mounted", Router([Route("/page/{n}", plain)]))
    app.mount("/of/{tenant}", Router([Route("/page/{n}", plain)]))
    return app


CASES = [
    ("/items/secret-7", "/items/{item}", "2xx"),
    ("/sync/secret-7", "/sync/{item}", "2xx"),
    ("/outer/secret/inner/deep/secret", "/outer/{org}/inner/deep/{name}", "2xx"),
    ("/mounted/page/secret", "/mounted/page/{n}", "2xx"),
    ("/of/secret/page/7", "/of/{tenant}/page/{n}", "2xx"),
    ("/nowhere/secret", "(unmatched)", "4xx"),
    ("/mounted/secret", "(unmatched)", "4xx"),
    ("/fails", "/fails", "5xx"),
]


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "middlewares"])
@pytest.mark.parametrize(("path", "template", "status"), CASES)
def test_fastapi_templates(
    path: str, template: str, status: str, wrapped: bool, ended: list[dict[str, str]]
) -> None:
    """Routers, includes, mounts, sync endpoints, errors: with and without layers."""
    app = fastapi_app()
    install(app, Settings())
    if wrapped:

        async def dispatch(request: Any, call_next: Any) -> Any:
            return await call_next(request)

        app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
        app.add_middleware(GZipMiddleware)
        app.add_middleware(CORSMiddleware, allow_origins=["*"])
    with TestClient(app, raise_server_exceptions=False) as client:
        client.get(path)

    assert ended[-1]["endpoint"] == template
    assert ended[-1]["status"] == status
    assert ended[-1]["method"] == "GET"
    assert "secret" not in str(ended)


def test_a_deployment_prefix_is_no_part_of_the_template(
    ended: list[dict[str, str]],
) -> None:
    """The same routes under another root path have the same labels."""
    app = FastAPI()
    router = APIRouter(prefix="/shop")

    @router.get("/{item}")
    async def item(item: str) -> str:
        return item

    app.include_router(router)
    install(app, Settings())
    with TestClient(app, root_path="/api/v1") as client:
        client.get("/api/v1/shop/7")

    assert ended[-1]["endpoint"] == "/shop/{item}"


def test_websockets_are_labelled(ended: list[dict[str, str]]) -> None:
    """A WebSocket route has its template; lifespan is left alone."""
    app = fastapi_app()
    install(app, Settings())
    with TestClient(app) as client, client.websocket_connect("/ws/secret"):
        pass

    assert ended[-1]["endpoint"] == "/ws/{room}"


def test_labels_are_current_inside_the_handler_and_the_stream() -> None:
    """`current()` in async and thread endpoints and streams gives the template."""
    app = fastapi_app()
    install(app, Settings(labels={"role": "web"}))
    with TestClient(app) as client:
        for path in ("/items/7", "/sync/7"):
            body = client.get(path).json()
            assert body["endpoint"] == path[:-1] + "{item}"
            assert body["role"] == "web"
        assert client.get("/stream").text == "/stream" * 3


def test_exceptions_pass_unchanged_and_our_failures_do_not() -> None:
    """The application's error is its own; ours is counted and the request served."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("before routing")

    with pytest.raises(KeyError, match="before routing"):
        asyncio.run(StroboscopeASGI(app)({"type": "http"}, None, None))  # type: ignore[arg-type]

    served: list[str] = []

    async def fine(scope: Any, receive: Any, send: Any) -> None:
        served.append(scope["type"])

    broken = StroboscopeASGI(fine)
    broken.labeller.failed(RuntimeError("planted"))
    broken.labeller.__class__ = Labeller
    asyncio.run(broken({"type": "http", "method": object()}, None, None))  # type: ignore[arg-type]

    assert served == ["http"]
    assert broken.labeller.failures == 1


@pytest.mark.parametrize("tenant", [lambda s: 1 / 0, lambda s: 3, lambda s: b"x"])
def test_a_bad_tenant_function_costs_the_label_only(
    tenant: Any, ended: list[dict[str, str]]
) -> None:
    """It may raise or return what is no string."""
    app = fastapi_app()
    install(app, Settings(tenant=tenant))
    with TestClient(app) as client:
        assert client.get("/items/7").status_code == 200

    assert "tenant" not in ended[-1]


def test_unknown_methods_are_one_value(ended: list[dict[str, str]]) -> None:
    """A made-up verb is OTHER."""
    app = Starlette(routes=[Mount("/", Router())])
    install(app, Settings())

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as c:
            await c.request("BREW", "/")

    asyncio.run(run())

    assert ended[-1]["method"] == "OTHER"


def flask_app() -> Flask:
    app = Flask(__name__)
    inner = Blueprint("inner", __name__, url_prefix="/inner")
    outer = Blueprint("outer", __name__, url_prefix="/outer")

    class Page(MethodView):
        def get(self, n: int) -> str:
            return str(n)

    @app.get("/items/<item>")
    def item(item: str) -> Any:
        return dict(current())

    inner.add_url_rule("/page/<int:n>", view_func=Page.as_view("page"))
    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    return app


@pytest.mark.parametrize(
    ("path", "template", "status"),
    [
        ("/items/secret", "/items/<item>", "2xx"),
        ("/outer/inner/page/7", "/outer/inner/page/<int:n>", "2xx"),
        ("/nowhere/secret", "(unmatched)", "4xx"),
    ],
)
def test_flask_templates(
    path: str, template: str, status: str, ended: list[dict[str, str]]
) -> None:
    """Blueprints, nested blueprints, MethodView, 404."""
    app = flask_app()
    Stroboscope(app, Settings())
    app.test_client().get(path).close()

    assert ended[-1]["endpoint"] == template
    assert ended[-1]["status"] == status


def test_wsgi_is_lint_clean_and_labels_every_step() -> None:
    """PEP 3333 holds on both sides; streaming stays labelled, nothing leaks."""
    seen: list[str | None] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])

        def body() -> Iterator[bytes]:
            for _ in range(3):
                seen.append(current().get("endpoint"))
                yield b"x"

        return body()

    ours = StroboscopeWSGI(LintMiddleware(app), template=lambda environ: "/stream")
    answer = Client(LintMiddleware(ours)).get("/")
    assert LABELS.get() is None

    assert answer.get_data() == b"xxx"
    answer.close()
    assert seen == ["/stream"] * 3
    assert LABELS.get() is None


class Copying:
    """A layer that hands on a copy of the scope, as some do."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(dict(scope), receive, send)


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_a_copied_scope_does_not_hide_the_route(
    before: bool, ended: list[dict[str, str]]
) -> None:
    """The template stands in the copy, which our innermost layer sees."""
    app = fastapi_app()
    if before:
        app.add_middleware(Copying)
    install(app, Settings())
    if not before:
        app.add_middleware(Copying)
    with TestClient(app) as client:
        client.get("/outer/7/inner/deep/x")

    assert ended[-1]["endpoint"] == "/outer/{org}/inner/deep/{name}"


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_opentelemetry_beside_us_changes_nothing(
    inside: bool, ended: list[dict[str, str]]
) -> None:
    """OpenTelemetry's own ASGI layer, around ours or within it; its spans are whole."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = fastapi_app()
    served: Any = app
    if inside:
        app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider)
    install(app, Settings())
    if not inside:
        served = OpenTelemetryMiddleware(app, tracer_provider=provider)
    with TestClient(served) as client:
        assert client.get("/items/secret").status_code == 200

    assert ended[-1]["endpoint"] == "/items/{item}"
    kinds = {span.kind.name for span in exporter.get_finished_spans()}
    assert "SERVER" in kinds


@pytest.mark.parametrize(
    ("path", "template", "status"),
    [
        ("/items/x", "/items/{item}", "4xx"),  # 405: the path matched
        ("/files/x", "/files/{path}", "4xx"),  # a mounted application of its own
        ("/ab/in/7", "/ab/in/{n}", "2xx"),  # mounts in mounts
        ("/slash", "(unmatched)", "3xx"),  # a redirect to /slash/
    ],
)
def test_starlette_corners(
    path: str, template: str, status: str, ended: list[dict[str, str]], tmp_path: Any
) -> None:
    """405, static files, nested mounts and slash redirects."""

    async def plain(request: Any) -> PlainTextResponse:
        return PlainTextResponse("x")

    app = Starlette(
        routes=[
            Route("/items/{item}", plain, methods=["POST"]),
            Route("/slash/", plain),
            Mount("/files", StaticFiles(directory=tmp_path)),
            Mount(
                "/ab", Starlette(routes=[Mount("/in", Router([Route("/{n}", plain)]))])
            ),
        ]
    )
    install(app, Settings())
    with TestClient(app, follow_redirects=False) as client:
        client.get(path)

    assert (ended[-1]["endpoint"], ended[-1]["status"]) == (template, status)


def test_flask_corners(ended: list[dict[str, str]]) -> None:
    """405 has no rule; early answers, error handlers and streams keep theirs."""
    app = flask_app()

    @app.before_request
    def early() -> Any:
        return ("early", 418) if request.args.get("early") else None

    @app.get("/fails/<n>")
    def fails(n: str) -> None:
        raise KeyError(n)

    @app.errorhandler(KeyError)
    def handled(error: KeyError) -> Any:
        return "handled", 503

    @app.get("/stream/<n>")
    def stream(n: str) -> Any:
        return app.response_class(iter("abc"))

    Stroboscope(app, Settings())
    client = app.test_client()
    client.post("/items/7").close()
    client.get("/items/7?early=1").close()
    client.get("/fails/7").close()
    with client.get("/stream/7") as streamed:
        assert streamed.data == b"abc"

    assert [(one["endpoint"], one["status"]) for one in ended] == [
        ("(unmatched)", "4xx"),
        ("/items/<item>", "4xx"),
        ("/fails/<n>", "5xx"),
        ("/stream/<n>", "2xx"),
    ]
