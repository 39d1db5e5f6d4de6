"""Planting secrets, and looking for them in every answer of a surface."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from werkzeug.test import Client

from stroboscope.auth.tokens import Tokens
from stroboscope.endpoints.routes import ROUTES
from stroboscope.settings import Settings

Ask = Callable[[str, Mapping[str, str]], tuple[int, bytes]]
_QUERIES = ("seconds=0.2", "debug=1", "debug=2")
_ACCEPTS = ("*/*", "application/json")


@dataclass(frozen=True, slots=True)
class Leak:
    """Which secret came out of which address; empty where there was no answer."""

    place: str
    address: str


@contextmanager
def planted() -> Iterator[dict[str, str]]:
    """Secrets by place, put into this process while the block runs."""
    secret = {place: f"canary{secrets.token_hex(8)}" for place in _PLACES}
    done = threading.Event()
    before = list(sys.argv)
    sys.argv.append(f"--password={secret['argv']}")
    os.environ["STROBOSCOPE_CANARY"] = secret["environment"]

    def hold(local: str) -> None:
        try:
            raise ValueError(secret["exception"])
        except ValueError:
            done.wait()
        del local

    holder = threading.Thread(
        target=hold, args=(secret["local"],), name=f"{secret['thread']}@!"
    )
    holder.start()
    try:
        yield secret
    finally:
        done.set()
        holder.join()
        sys.argv[:] = before
        os.environ.pop("STROBOSCOPE_CANARY", None)


_PLACES = (
    *("argv", "environment", "local", "thread", "exception"),
    *("header", "cookie", "path", "query", "tenant"),
)


def leaks(
    app: Any,
    secret: Mapping[str, str],
    *,
    token: str | None = None,
    prefix: str = "/debug",
    host: str = "localhost",
    tenant_header: str = "X-Tenant",
) -> list[Leak]:
    """What came out. Asks the application with the secrets all the while.

    `tenant_header` is where the application finds its tenants. One it shows by name
    is no secret: run this with an allow-list of others, or with `hash_tenants`.
    Raises: AssertionError when the surface did not let us in.
    """
    ask = _asking(app)
    if token is None:
        token = Tokens(Settings.from_environ(os.environ)).mint(["admin"], 600)
    carrying = {
        "Host": host,
        "X-Secret": secret["header"],
        "Cookie": f"session={secret['cookie']}",
        tenant_header: secret["tenant"],
    }

    def visit() -> None:
        with suppress(Exception):  # the application may do with them what it likes
            ask(f"/{quote(secret['path'])}?q={secret['query']}", carrying)

    visit()
    found = []
    for address, headers in _addresses(prefix, secret):
        with _meanwhile(visit):
            status, body = ask(
                address, {**carrying, **headers, "Authorization": f"Bearer {token}"}
            )
        if status in (400, 401, 403) and "seconds" not in address:
            raise AssertionError(f"{address} answered {status}: nothing to search")
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        shown = address.replace(secret["query"], "...")
        found += [
            Leak(place, shown)
            for place, text in secret.items()
            if text.encode() in body
        ]
    return found


@contextmanager
def _meanwhile(visit: Callable[[], None]) -> Iterator[None]:
    """Requests with the secrets while the block runs, so that samples are of them."""
    done = threading.Event()

    def visits() -> None:
        while not done.wait(0.005):
            visit()

    visitor = threading.Thread(target=visits)
    visitor.start()
    try:
        yield
    finally:
        done.set()
        visitor.join()


def _addresses(
    prefix: str, secret: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, str]]]:
    for route in ROUTES:
        if "GET" not in route.actions:
            continue
        parameters = route.actions["GET"].parameters
        is_timed = "seconds" in parameters and "debug" not in parameters
        for query in _QUERIES[:1] if is_timed else _QUERIES:
            for accept in _ACCEPTS:
                address = f"{prefix}{route.paths[0]}?{query}&x={secret['query']}"
                yield address, {"Accept": accept}
    yield f"{prefix}/pprof/{secret['query']}", {}


def _asking(app: Any) -> Ask:
    call = app if inspect.iscoroutinefunction(app) else getattr(app, "__call__", app)  # noqa: B004
    if inspect.iscoroutinefunction(call):
        return lambda address, headers: asyncio.run(_ask_asgi(app, address, headers))
    return lambda address, headers: _ask_wsgi(app, address, headers)


def _ask_wsgi(app: Any, address: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    with Client(app).get(address, headers=dict(headers)) as answer:
        return answer.status_code, answer.get_data()


async def _ask_asgi(
    app: Any, address: str, headers: Mapping[str, str]
) -> tuple[int, bytes]:
    path, _, query = address.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    answer: list[Mapping[str, Any]] = []
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        answer.append(message)

    await app(scope, receive, send)
    status = next((m["status"] for m in answer if "status" in m), 0)
    return status, b"".join(m.get("body", b"") for m in answer)
