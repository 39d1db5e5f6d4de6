"""Nothing that is sent breaks the surface."""

import asyncio
import io
import os
from typing import Any

import pytest
from asking import (
    KEY,
    Ask,
    admin,
    token,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stroboscope.endpoints import Surface
from stroboscope.endpoints.routes import ROUTES
from stroboscope.settings import Settings


def test_h24_large_bodies_are_refused_unread(ask: Ask) -> None:
    """Above 64 KiB: 413, with a length or without."""
    body = b'{"x":"' + b"x" * 70_000 + b'"}'

    assert ask("/debug/settings", admin(), "PUT", body=body).status == 413


STATUSES = {
    *(200, 201, 400, 401, 403, 404, 405, 406, 408, 409, 413, 414, 415, 429, 501, 503)
}


#: `make fuzz` hunts for longer.
FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))


@settings(
    max_examples=FUZZ_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    method=st.sampled_from(["GET", "PUT", "POST", "HEAD", "BREW", ""]),
    path=st.one_of(
        st.sampled_from(["/debug" + p for r in ROUTES for p in r.paths]),
        st.text(max_size=60).map(lambda text: "/debug/" + text),
    ),
    query=st.one_of(
        st.just("seconds=0.01"),
        st.text(st.characters(max_codepoint=255), max_size=80),
        st.integers(0, 5000).map(lambda n: "a&" * n),
        st.integers(0, 20_000).map(lambda n: "seconds=" + "9" * n),
    ),
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    *("host", "origin", "content-type", "accept", "if-match", "cookie"),
                    *("authorization", "content-length", "content-encoding", "expect"),
                    *("sec-fetch-site", "sec-fetch-mode", "transfer-encoding", "range"),
                ]
            ),
            st.text(st.characters(max_codepoint=255), max_size=40),
        ),
        max_size=4,
    ),
    body=st.binary(max_size=200),
    is_known=st.booleans(),
)
@pytest.mark.parametrize("carrier", ["asgi", "wsgi"])
def test_nothing_that_is_sent_breaks_the_surface(
    carrier: str,
    method: str,
    path: str,
    query: str,
    headers: list[tuple[str, str]],
    body: bytes,
    is_known: bool,
) -> None:
    """A status of the contract, one complete record, no traceback, no leaked lease, no
    unasked change."""
    desk = FUZZED.desk
    version, written = desk.knobs.version, desk.audit.ended
    named = [("host", "localhost"), *headers]
    if is_known:
        named.append(("authorization", f"Bearer {token('metrics', 'profile')}"))
    send = _send_asgi if carrier == "asgi" else _send_wsgi

    status, answered = send(method, path, query, named, body)

    assert status in STATUSES
    assert b"Traceback" not in answered
    assert desk.leases.current() is None
    assert desk.knobs.version == version
    assert desk.audit.ended == written + 1
    assert desk.audit.dropped == 0


def _send_asgi(
    method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
) -> tuple[int, bytes]:
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode("latin-1"),
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers],
        "client": ("198.51.100.7", 1),
    }
    sent: list[dict[str, Any]] = []
    came = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if came:
            return came.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(FUZZED.asgi(scope, receive, send))
    return sent[0]["status"], b"".join(one.get("body", b"") for one in sent)


def _send_wsgi(
    method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
) -> tuple[int, bytes]:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REMOTE_ADDR": "198.51.100.7",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    for key, value in headers:
        name = key.upper().replace("-", "_")
        bare = name in ("CONTENT_TYPE", "CONTENT_LENGTH")
        environ[name if bare else f"HTTP_{name}"] = value
    started: list[str] = []
    chunks = FUZZED.wsgi(environ, lambda status, headers, *_: started.append(status))
    return int(started[0].split()[0]), b"".join(chunks)


FUZZED = Surface(Settings(keys=(KEY,), service="shop", profile_seconds_cap=0.05))
