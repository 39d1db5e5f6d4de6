"""TLS over a connection of ours, for an admin port that others than this host reach.

Over memory, not over the socket: where gevent has patched `ssl`, its sockets would wait
in a loop that our threads do not have.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable
from typing import TypeVar

from stroboscope._http.wire import HEAD_SECONDS_CAP, Connection

T = TypeVar("T")
#: The most one TLS record carries. Source: RFC 8446 section 5.1.
_RECORD = 16_384


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """Of PEM files; TLS 1.2 at least. Raises: OSError, ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


class TLSConnection:
    """The server's end. Raises OSError, which ssl.SSLError is, when the peer errs."""

    def __init__(self, plain: Connection, context: ssl.SSLContext) -> None:
        self._plain = plain
        self._seconds: float | None = HEAD_SECONDS_CAP
        self._ends_s: float | None = None
        self._read, self._written = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._read, self._written, server_side=True)
        self._begin()
        self._done(self._tls.do_handshake)

    def settimeout(self, seconds: float | None, /) -> None:
        """How long each call may take, however many records it needs."""
        self._seconds = seconds

    def recv(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        self._begin()
        try:
            return self._done(lambda: self._tls.read(size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def sendall(self, data: bytes, /) -> None:
        """Send all of it, a record at a time."""
        self._begin()
        view = memoryview(data)
        while view:
            sent = self._done(lambda part=view[:_RECORD]: self._tls.write(part))  # type: ignore[misc]
            view = view[sent:]

    def close(self) -> None:
        """Say that there is no more, and hang up."""
        self._seconds = min(self._seconds or HEAD_SECONDS_CAP, HEAD_SECONDS_CAP)
        self._begin()
        with contextlib.suppress(OSError):
            self._tls.unwrap()  # wants the peer's word, too, which we do not await
        with contextlib.suppress(OSError):
            self._flush()
        self._plain.close()

    def _done(self, step: Callable[[], T]) -> T:
        """What the step returns, once the peer has sent what it needs."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._flush()
                self._limit()
                chunk = self._plain.recv(_RECORD)
                if chunk:
                    self._read.write(chunk)
                else:
                    self._read.write_eof()
            else:
                self._flush()
                return result

    def _begin(self) -> None:
        seconds = self._seconds
        self._ends_s = None if seconds is None else time.monotonic() + seconds

    def _limit(self) -> None:
        left_s = None if self._ends_s is None else self._ends_s - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise TimeoutError
        self._plain.settimeout(left_s)

    def _flush(self) -> None:
        if self._written.pending:
            self._limit()
            self._plain.sendall(self._written.read())
