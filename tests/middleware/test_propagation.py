"""What frameworks do with a request's work: layers, threads, streams, dependencies.

Two requests run at once under the real sampler; each burns CPU in a function of its
own name under a route of its own.
"""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import burning
import httpx
import pytest
from burning import BURN, NAMES, STEP_S, STEPS, assert_labels, burn, burn_async, sampled
from fastapi import BackgroundTasks, Depends, FastAPI
from flask import Flask, stream_with_context
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse

from stroboscope import Settings
from stroboscope.integrations.fastapi import install
from stroboscope.integrations.flask import Stroboscope


def endpoint_async(app: FastAPI, name: str) -> None:
    @app.get(f"/{name}")
    async def endpoint() -> None:
        await burn_async(name)


def endpoint_in_a_thread(app: FastAPI, name: str) -> None:
    @app.get(f"/{name}")
    def endpoint() -> None:
        burn(name)


def behind_a_base_http_middleware(app: FastAPI, name: str) -> None:
    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    if not app.user_middleware:
        app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    endpoint_async(app, name)


def inside_a_base_http_middleware(app: FastAPI, name: str) -> None:
    async def dispatch(request: Any, call_next: Any) -> Any:
        if request.url.path == f"/{name}":
            await burn_async(name)
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)

    @app.get(f"/{name}")
    async def endpoint() -> None:
        return None


def background_task(app: FastAPI, name: str) -> None:
    @app.get(f"/{name}")
    async def endpoint(tasks: BackgroundTasks) -> None:
        tasks.add_task(burn, name)
        tasks.add_task(burn_async, name)


def stream(app: FastAPI, name: str) -> None:
    async def chunks() -> AsyncIterator[str]:
        for _ in range(STEPS):
            BURN[name](STEP_S)
            yield "x"
            await asyncio.sleep(0)

    @app.get(f"/{name}")
    async def endpoint() -> StreamingResponse:
        return StreamingResponse(chunks())


def stream_in_a_thread(app: FastAPI, name: str) -> None:
    def chunks() -> Iterator[str]:
        for _ in range(STEPS):
            BURN[name](STEP_S)
            yield "x"

    @app.get(f"/{name}")
    async def endpoint() -> StreamingResponse:
        return StreamingResponse(chunks())


def dependency_async(app: FastAPI, name: str) -> None:
    async def resource() -> AsyncIterator[None]:
        await burn_async(name)
        yield
        await burn_async(name)

    @app.get(f"/{name}", dependencies=[Depends(resource)])
    async def endpoint() -> None:
        return None


def dependency_in_a_thread(app: FastAPI, name: str) -> None:
    def resource() -> Iterator[None]:
        burn(name)
        yield
        burn(name)

    @app.get(f"/{name}", dependencies=[Depends(resource)])
    async def endpoint() -> None:
        return None


def exception_handler(app: FastAPI, name: str) -> None:
    async def handle(request: Any, error: Exception) -> PlainTextResponse:
        await burn_async(str(error))
        return PlainTextResponse("handled")

    app.add_exception_handler(KeyboardError, handle)

    @app.get(f"/{name}")
    async def endpoint() -> None:
        raise KeyboardError(name)


class KeyboardError(Exception):
    pass


BUILD: list[Callable[[FastAPI, str], None]] = [
    *(endpoint_async, endpoint_in_a_thread, behind_a_base_http_middleware),
    *(inside_a_base_http_middleware, background_task, stream, stream_in_a_thread),
    *(dependency_async, dependency_in_a_thread, exception_handler),
]


@pytest.mark.parametrize("build", BUILD, ids=lambda build: build.__name__)
def test_fastapi_work_keeps_its_routes_label(
    build: Callable[[FastAPI, str], None],
) -> None:
    """Wherever Starlette and FastAPI run it, until after the response."""
    app = FastAPI()
    for name in NAMES:
        build(app, name)
    install(app, Settings())

    async def both() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            requests = [asyncio.create_task(http.get(f"/{name}")) for name in NAMES]
            assert [a.status_code for a in await asyncio.gather(*requests)] == [200] * 2

    profile = sampled(lambda: asyncio.run(both()))

    assert_labels(profile, "endpoint", {"a": "/a", "b": "/b"})


def test_a_flask_stream_keeps_its_routes_label() -> None:
    """Each step of the iterable, in threads of a server that share nothing."""
    app = Flask(__name__)

    def chunks(name: str) -> Iterator[str]:
        for _ in range(STEPS):
            BURN[name](STEP_S)
            yield "x"

    for name in NAMES:
        app.add_url_rule(
            f"/{name}",
            name,
            lambda name=name: app.response_class(stream_with_context(chunks(name))),
        )
    Stroboscope(app, Settings())

    def both() -> None:
        threads = [
            threading.Thread(target=lambda n=n: app.test_client().get(f"/{n}").data)
            for n in NAMES
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    profile = sampled(both)

    assert_labels(profile, "endpoint", {"a": "/a", "b": "/b"})


DJANGO = """
import asyncio, sys, threading
sys.path.insert(0, sys.argv[1])
from burning import NAMES, assert_labels, burn, burn_async, sampled
from django.conf import settings
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
settings.configure(SECRET_KEY="x" * 50, ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__,
    MIDDLEWARE=["stroboscope.integrations.django.middleware.StroboscopeMiddleware"])
def sync_view(name):
    def view(request):
        burn(name)
        return HttpResponse("x")
    return view
def async_view(name):
    async def view(request):
        await burn_async(name)
        return HttpResponse("x")
    return view
def stream_view(name):
    def chunks():
        for _ in range(4):
            burn(name)
            yield b"x"
    def view(request):
        return StreamingHttpResponse(chunks())
    return view
kind = {"sync": sync_view, "async": async_view, "stream": stream_view}[sys.argv[2]]
urlpatterns = [path(name, kind(name)) for name in NAMES]
import django; django.setup()
from django.test import AsyncClient, Client
def wsgi():
    threads = [threading.Thread(target=lambda n=n: Client().get(f"/{n}").getvalue())
        for n in NAMES]
    for t in threads: t.start()
    for t in threads: t.join()
async def asgi():
    async def get(name):
        answer = await AsyncClient().get(f"/{name}")
        if answer.streaming:
            async for _ in answer: pass
    await asyncio.gather(*(asyncio.create_task(get(n)) for n in NAMES))
run = wsgi if sys.argv[3] == "wsgi" else lambda: asyncio.run(asgi())
assert_labels(sampled(run), "endpoint", {"a": "/a", "b": "/b"})
print("right")
"""


@pytest.mark.parametrize("carrier", ["wsgi", "asgi"])
@pytest.mark.parametrize("view", ["sync", "async", "stream"])
def test_django_views_of_both_kinds_keep_their_routes_label(
    view: str, carrier: str
) -> None:
    """Sync views under ASGI and async views under WSGI run in other threads."""
    folder = burning.__file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DJANGO, folder, view, carrier],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout == "right\n", done.stderr[-2000:]
