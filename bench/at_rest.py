"""CPU a request costs in the middleware when nothing samples: ours less plain.

Interleaved rounds in one process, minimum of each, CPU time.
"""

import asyncio
import time

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


def start_response(status, headers, *rest):
    pass


def time_asgi(app):
    async def run():
        begin = time.process_time_ns()
        for _ in range(REQUESTS):
            await app({"type": "http", "method": "GET", "path": "/"}, None, send)
        return (time.process_time_ns() - begin) / REQUESTS

    return asyncio.run(run())


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


def compare(name, measure, plain, ours):
    pairs = [(measure(plain), measure(ours)) for _ in range(ROUNDS)]
    base, cost = (min(column) for column in zip(*pairs, strict=True))
    print(f"{name}: plain {base:.0f} ns, added {cost - base:.0f} ns a request")


if __name__ == "__main__":
    compare("ASGI", time_asgi, asgi_app, StroboscopeASGI(asgi_app))
    compare("WSGI", time_wsgi, wsgi_app, StroboscopeWSGI(wsgi_app))
