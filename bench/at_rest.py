"""CPU that a layer adds to a request when nothing samples, ours and others'.

The same application with and without the layer, interleaved rounds in one process,
minimum of each.
"""

import asyncio
import json
import time

import django
from django.conf import settings as django_settings
from django.http import HttpResponse
from django.test import RequestFactory
from django.urls import path

from stroboscope.middleware import StroboscopeASGI, StroboscopeWSGI

ROUNDS = 30
REQUESTS = 3000
START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"x"}


async def asgi_app(scope, receive, send):
    await send(START)
    await send(BODY)


def wsgi_app(environ, start_response):
    start_response("200 OK", [])
    return [b"x"]


async def send(message):
    pass


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


def start_response(status, headers, *rest):
    pass


def scope():
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }


def time_asgi(app, requests=REQUESTS):
    async def run():
        begin = time.process_time_ns()
        for _ in range(requests):
            await app(scope(), receive, send)
        return (time.process_time_ns() - begin) / requests

    return asyncio.run(run())


def time_slow_asgi(app):
    return time_asgi(app, 300)


def time_wsgi(app):
    begin = time.process_time_ns()
    for _ in range(REQUESTS):
        body = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, start_response)
        for _ in body:
            pass
        close = getattr(body, "close", None)
        if close:
            close()
    return (time.process_time_ns() - begin) / REQUESTS


def view(request):
    return HttpResponse(b"x")


urlpatterns = [path("", view)]


def django_handlers():
    """Django's own handler without and with our middleware."""
    from django.core.handlers.base import BaseHandler

    django_settings.configure(
        SECRET_KEY="only a bench",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        MIDDLEWARE=[],
    )
    django.setup()
    plain = BaseHandler()
    plain.load_middleware()
    ours = "stroboscope.integrations.django.middleware.StroboscopeMiddleware"
    django_settings.MIDDLEWARE = [ours]
    labelled = BaseHandler()
    labelled.load_middleware()
    return plain, labelled


def time_django(handler):
    request = RequestFactory().get("/")
    begin = time.process_time_ns()
    for _ in range(REQUESTS):
        handler.get_response(request)
    return (time.process_time_ns() - begin) / REQUESTS


def others():
    """An empty BaseHTTPMiddleware and OpenTelemetry's, on the same FastAPI."""
    from fastapi import FastAPI
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from starlette.middleware.base import BaseHTTPMiddleware

    from stroboscope import Settings
    from stroboscope.integrations.fastapi import install

    def fastapi():
        app = FastAPI()

        @app.get("/")
        async def root():
            return {}

        return app

    async def dispatch(request, call_next):
        return await call_next(request)

    with_base, with_otel, with_ours = fastapi(), fastapi(), fastapi()
    with_base.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    FastAPIInstrumentor.instrument_app(with_otel, tracer_provider=TracerProvider())
    install(with_ours, Settings())
    return fastapi(), with_ours, with_base, with_otel


def compare(measure, plain, *layered):
    """Microseconds that each layer adds to a request."""
    apps = (plain, *layered)
    rounds = [[measure(app) for app in apps] for _ in range(ROUNDS)]
    best = [min(column) for column in zip(*rounds, strict=True)]
    return [round((cost - best[0]) / 1000, 2) for cost in best[1:]]


def main():
    (asgi,) = compare(time_asgi, asgi_app, StroboscopeASGI(asgi_app))
    (wsgi,) = compare(time_wsgi, wsgi_app, StroboscopeWSGI(wsgi_app))
    (in_django,) = compare(time_django, *django_handlers())
    ours, base, otel = compare(time_slow_asgi, *others())
    return {
        "asgi": asgi,
        "wsgi": wsgi,
        "django": in_django,
        "fastapi": ours,
        "empty BaseHTTPMiddleware": base,
        "OpenTelemetry FastAPI": otel,
    }


if __name__ == "__main__":
    print(json.dumps(main()))
