"""HTTP/1.1 over one connection of our own: a request's head, its body, an answer.

The standard library parses heads; what carries the bytes is a plain or a TLS connection.
"""

from __future__ import annotations

import io
import re
import time
from http.client import responses
from http.server import BaseHTTPRequestHandler
from typing import Protocol
from urllib.parse import unquote

from stroboscope._http.messages import (
    BODY_CAP,
    BODY_SECONDS_CAP,
    BodyTooLarge,
    Request,
    Response,
    without_host,
)

HEAD_CAP = 16_384
HEAD_SECONDS_CAP = 5.0
#: How long a reader may take for a whole answer.
SEND_SECONDS_CAP = 60.0
#: A longer body is not copied to go out in one piece with its head.
_COPIED_CAP = 65_536


#: What the standard library takes for an end of a line, and RFC 9112 does not.
_LOOSE = re.compile(rb"\r(?!\n)|(?<!\r)\n|\x00")
#: What the parser leaves open, in some versions: RFC 9112, 2.3 has one digit each.
_VERSION = re.compile("HTTP/[01]\\.[0-9]")
_LENGTH = re.compile("[0-9]{1,18}", re.ASCII)


class Connection(Protocol):
    """What we need of a socket; a time limit raises TimeoutError, an end gives b""."""

    def settimeout(self, seconds: float | None, /) -> None:
        """How long each call may wait; None for ever."""

    def recv(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of it."""

    def close(self) -> None:
        """Hang up."""


class _Head(BaseHTTPRequestHandler):
    """The standard library's parser, without its socket."""

    def __init__(self, head: bytes) -> None:
        self.rfile = io.BytesIO(head)
        self.wfile = io.BytesIO()
        self.raw_requestline = self.rfile.readline(HEAD_CAP)
        self.client_address = ("peer", 0)
        self.is_parsed = self.parse_request()

    def log_message(self, *arguments: object) -> None:
        """Nothing: the audit log has it."""


def read(
    connection: Connection, peer: str, *, is_local: bool = False
) -> tuple[Request, bytes]:
    """The request without its body, and what came of that. Raises: ValueError, OSError.

    `is_local` when it comes by a worker's own socket.
    """
    ends_s = time.monotonic() + HEAD_SECONDS_CAP
    raw = b""
    while b"\r\n\r\n" not in raw:
        if len(raw) > HEAD_CAP:
            raise ValueError("head too long")
        raw += _receive(connection, ends_s)
    head, _, rest = raw.partition(b"\r\n\r\n")
    if len(head) > HEAD_CAP:
        raise ValueError("head too long")
    if _LOOSE.search(head):
        raise ValueError("ends of lines that are none")
    parsed = _Head(head + b"\r\n\r\n")
    if not parsed.is_parsed or not _VERSION.fullmatch(parsed.request_version):
        raise ValueError("no HTTP")
    path, _, query = without_host(parsed.path).partition("?")
    request = Request(
        method=parsed.command,
        path=unquote(path),
        query=query,
        headers=tuple((key.lower(), value) for key, value in parsed.headers.items()),
        peer=peer,
        is_local=is_local,
    )
    return request, rest


def read_body(connection: Connection, request: Request, rest: bytes) -> bytes:
    """The body, of a length that is said.

    Raises: BodyTooLarge, TimeoutError, ValueError for a length that is none.
    """
    lengths = request.all("content-length")
    if request.all("transfer-encoding") or len(lengths) > 1:
        raise ValueError("a body without a length, or with several")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise ValueError("a length that is none")
    length = int(lengths[0]) if lengths else 0
    if length > BODY_CAP:
        raise BodyTooLarge
    ends_s = time.monotonic() + BODY_SECONDS_CAP
    if len(rest) < length and "100-continue" in request.all("expect"):
        connection.settimeout(BODY_SECONDS_CAP)
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    while len(rest) < length:
        rest += _receive(connection, ends_s)
    connection.settimeout(None)
    return rest[:length]


def _receive(connection: Connection, ends_s: float) -> bytes:
    left_s = ends_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    connection.settimeout(left_s)
    chunk = connection.recv(65536)
    if not chunk:
        raise TimeoutError  # gone
    return chunk


def send(connection: Connection, response: Response, *, is_head: bool = False) -> None:
    """Send it whole, with its length; to HEAD without its body.

    Raises: OSError for a reader that is too slow.
    """
    lines = [f"HTTP/1.1 {response.status} {responses.get(response.status, '')}"]
    lines += [f"{key}: {value}" for key, value in response.all_headers()]
    head = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")
    connection.settimeout(SEND_SECONDS_CAP)
    if is_head:
        connection.sendall(head)
    elif len(response.body) <= _COPIED_CAP:
        connection.sendall(head + response.body)
    else:
        connection.sendall(head)
        connection.sendall(response.body)
