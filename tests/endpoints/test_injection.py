"""What ends a line ends no line of ours."""

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import SETTINGS, token
from workers import workers

from stroboscope.endpoints import Surface
from stroboscope.endpoints.joining import _PASSED_ON

ENDS = ("\r\n", "\n", "\r", "\0", "\x0b", "\x0c", "\x1c")
#: Those that are read, chosen by, passed on or told.
READ = (
    *("accept", "if-match", "content-type", "content-encoding", "content-length"),
    *("origin", "sec-fetch-site", "host", "authorization", "user-agent", "cookie"),
    *("x-stroboscope-start", "x-forwarded-for", "referer", "range"),
)
Sent = tuple[int, list[tuple[str, str]], bytes]


def by_asgi(headers: list[tuple[str, str]], query: str, path: str) -> Sent:
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode("latin-1"),
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers],
        "client": ("198.51.100.8", 1),
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(SURFACE.asgi(scope, receive, send))
    named = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in sent[0]["headers"]]
    return sent[0]["status"], named, sent[1]["body"]


def by_wsgi(headers: list[tuple[str, str]], query: str, path: str) -> Sent:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REMOTE_ADDR": "198.51.100.8",
        "wsgi.input": io.BytesIO(),
    }
    for key, value in headers:
        name = key.upper().replace("-", "_")
        bare = name in ("CONTENT_TYPE", "CONTENT_LENGTH")
        environ[name if bare else f"HTTP_{name}"] = value
    started: list[Any] = []
    chunks = SURFACE.wsgi(environ, lambda *answer: started.append(answer))
    status, named = started[0][:2]
    return int(status.split()[0]), named, b"".join(chunks)


@pytest.mark.parametrize("carry", [by_asgi, by_wsgi])
@pytest.mark.parametrize("end", ENDS, ids=repr)
@pytest.mark.parametrize("name", READ)
def test_h16_h35_a_header_with_an_end_of_line_is_refused(
    carry: Callable[..., Sent], name: str, end: str
) -> None:
    """Whichever header it is: nothing is done, and no header of the answer ends early."""
    good = {"host": "localhost", "authorization": f"Bearer {token('metrics')}"}
    value = good.get(name, "application/json")
    headers = (
        [*good.items()]
        if name not in good
        else [i for i in good.items() if i[0] != name]
    )
    headers.append((name, f"{value}{end}Set-Cookie: stolen=1"))

    status, named, body = carry(headers, "", "/debug/labels")

    assert status in (400, 401, 403, 429)
    assert (status == 400) or name in ("authorization", "origin", "sec-fetch-site")
    assert b"stolen" not in body
    for key, text in named:
        assert "stolen" not in key + text
        assert not set("\r\n\0") & set(key + text)


@pytest.mark.parametrize("carry", [by_asgi, by_wsgi])
@pytest.mark.parametrize("end", ENDS, ids=repr)
def test_h35_ends_of_lines_elsewhere_come_back_in_no_header(
    carry: Callable[..., Sent], end: str
) -> None:
    """In every parameter, encoded and bare, and in the path."""
    good = [("host", "localhost"), ("authorization", f"Bearer {token('admin')}")]
    bad = f"1{end}Set-Cookie: stolen=1"
    for name in ("seconds", "debug", "worker", "format", "focus", "base", "min_age"):
        for text in (bad, "".join(f"%{ord(c):02x}" for c in bad)):
            for path in ("/pprof/goroutine", "/stacks"):
                _, named, body = carry(good, f"{name}={text}", "/debug" + path)
                assert not any("stolen" in k + v for k, v in named)
                assert not any(set("\r\n\0") & set(k + v) for k, v in named)
                assert b"\nSet-Cookie" not in body
    status, named, body = carry(good, "", f"/debug/pprof/heap{end}Set-Cookie:stolen")
    assert (status, body) == (404, b"Unknown profile\n")
    assert not any("stolen" in k + v for k, v in named)


@pytest.mark.slow
def test_h35_what_is_passed_on_to_another_worker_ends_no_line(tmp_path: Path) -> None:
    """Asked by its socket with what HTTP lets through: tabs, blanks, bytes above 127."""
    odd = "application/json;\t q=0.9 ;x=\xe9\x85\xa0"
    with workers(tmp_path, "", "") as (one, two):
        asked = [
            one.ask(
                f"/settings?worker={two.pid}",
                "metrics",
                headers={name: odd.encode("latin-1")},
            )
            for name in _PASSED_ON
        ]
        labels = one.ask(
            "/labels", "metrics", headers={"Accept": odd.encode("latin-1")}
        )

    assert [answer.status_code for answer in asked] == [200] * len(_PASSED_ON)
    assert labels.headers["X-Stroboscope-Workers"] == "2/2"


SURFACE = Surface(SETTINGS)
