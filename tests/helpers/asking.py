"""Ask the surface over both carriers, without a server."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from werkzeug.test import Client

from stroboscope._http.messages import Request
from stroboscope.auth.keys import generate_key
from stroboscope.auth.tokens import Tokens
from stroboscope.endpoints.routes import ROUTES
from stroboscope.integrations import asgi, wsgi
from stroboscope.settings import Settings

BASE = "http://127.0.0.1"
KEY = generate_key()
SETTINGS = Settings(keys=(KEY,), service="shop", profile_seconds_cap=0.2)
#: Every path below the mount that answers GET.
GETS = [route.paths[0] for route in ROUTES if "GET" in route.actions]


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def time_s(self) -> float:
        return self.now_s

    def monotonic_ns(self) -> int:
        return int(self.now_s * 1e9)


def token(*scopes: str, ttl_s: float = 60) -> str:
    return Tokens(SETTINGS).mint(scopes or ("profile",), ttl_s)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def admin() -> dict[str, str]:
    """The headers of somebody who may change settings."""
    return {"Content-Type": "application/json"} | bearer(token("admin"))


def request(path: str, *headers: tuple[str, str], method: str = "GET") -> Request:
    """For a surface without a carrier; from nowhere special."""
    named = (("host", "127.0.0.1"), *headers)
    return Request(method, path, "", named, "10.0.0.9")


def authorised(path: str, text: str, method: str = "GET") -> Request:
    """The same with a token."""
    return request(path, ("authorization", f"Bearer {text}"), method=method)


async def asgi_inner(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"the application's own"})


def wsgi_inner(environ: Any, start_response: Any) -> list[bytes]:
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"the application's own"]


class Answer:
    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body


Ask = Callable[..., Answer]


def ask_asgi(
    path: str,
    headers: dict[str, str] | None = None,
    method: str = "GET",
    settings: Settings = SETTINGS,
    body: bytes = b"",
    app: Any = None,
) -> Answer:
    async def run() -> Answer:
        served = app or asgi.Stroboscope(asgi_inner, settings)
        transport = httpx.ASGITransport(served)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            answer = await client.request(
                method, path, headers=headers, content=body or None
            )
            return Answer(answer.status_code, answer.headers, answer.content)

    return asyncio.run(run())


def ask_wsgi(
    path: str,
    headers: dict[str, str] | None = None,
    method: str = "GET",
    settings: Settings = SETTINGS,
    body: bytes = b"",
    app: Any = None,
) -> Answer:
    client = Client(app or wsgi.Stroboscope(wsgi_inner, settings))
    answer = client.open(
        path, method=method, headers=headers, data=body or None, base_url=BASE
    )
    return Answer(answer.status_code, answer.headers, answer.get_data())
