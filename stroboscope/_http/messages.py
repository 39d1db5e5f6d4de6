"""A request and a response with no I/O: what endpoints take and give."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from stroboscope._threads import Lock

#: On every answer. `identity` keeps compressing middlewares off: a profile is gzip
#: already, and secrets beside chosen text must not be compressed.
HEADERS = (
    ("Cache-Control", "no-store, private"),
    ("Content-Encoding", "identity"),
    ("Referrer-Policy", "no-referrer"),
    ("Vary", "Authorization"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)
#: Pages carry one inline style, named by its hash; nothing else may load or run.
POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'"
#: The largest request body that is read.
BODY_CAP = 65_536
#: How long a client may take to send it.
BODY_SECONDS_CAP = 10.0
TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
JSON = "application/json"
PROFILE = "application/octet-stream"
PROBLEM = "application/problem+json"


class BodyTooLarge(Exception):
    """More than `BODY_CAP` bytes came; the rest is not read."""


class Cancellation:
    """Set when the client goes away. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._callbacks: list[Callable[[], object]] = []
        self.cancelled = False

    def cancel(self) -> None:
        """Call every callback, once."""
        with self._lock:
            self.cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Call it when cancelled; at once when that has been."""
        with self._lock:
            if not self.cancelled:
                self._callbacks.append(callback)
                return
        callback()


@dataclass(frozen=True, slots=True)
class Request:
    """What an endpoint may know. `path` is decoded and begins with the mount.

    Header names are lower case; duplicates stay apart. `peer` is the address of the
    connection, never a forwarded one. `certificate` is the subject of a client
    certificate the server has verified. `carrier` is the scope, environ or framework's
    request it came in, for the user's own functions only. `body` is empty until the
    caller was admitted. `worker_timeout_s` is when the server kills the worker that
    answers this request, as far as it is known. `root` is where the application is
    mounted, as the server was told. `is_local` when it came by the worker's own socket.
    """

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    peer: str
    cancellation: Cancellation = field(default_factory=Cancellation)
    body: bytes = b""
    certificate: str = ""
    carrier: Any = None
    worker_timeout_s: float = math.inf
    root: str = ""
    is_local: bool = False

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key == name]

    def header(self, name: str) -> str | None:
        """The value of a header; None when absent or sent more than once."""
        found = self.all(name)
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class Response:
    """Status, body and the headers that differ from `HEADERS`."""

    status: int
    body: bytes
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()
    policy: str = POLICY

    def all_headers(self) -> list[tuple[str, str]]:
        """Every header to send, with the length."""
        return [
            ("Content-Type", self.content_type),
            ("Content-Length", str(len(self.body))),
            *HEADERS,
            ("Content-Security-Policy", self.policy),
            *self.headers,
        ]


def without_host(path: str) -> str:
    """A path, also of the absolute form that some servers hand on as it came.

    The host in it says nothing to us, the Host header is checked.
    Source: RFC 9112, section 3.2.2.
    """
    if not path.startswith(("http://", "https://")):
        return path
    return "/" + path.split("/", 3)[3] if path.count("/") > 2 else "/"


def refusal(
    request: Request,
    status: int,
    text: str,
    headers: Iterable[tuple[str, str]] = (),
) -> Response:
    """An error as pprof prints it: one line of text, marked for it.

    RFC 9457 JSON where the client asks for that by name.
    """
    if PROBLEM in (request.header("accept") or ""):
        body = json.dumps({"title": text, "status": status}).encode() + b"\n"
        return Response(status, body, PROBLEM, tuple(headers))
    marked = (("X-Go-Pprof", "1"), *headers)
    return Response(status, text.encode() + b"\n", TEXT, marked)
