"""TLS over a connection of ours, for an admin port that others than this host reach.

Over memory, not over the socket: where gevent has patched `ssl`, its sockets would wait
in a loop that our threads do not have.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from typing import TypeVar

from stroboscope._http.wire import Connection

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
        self._read, self._written = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._read, self._written, server_side=True)
        self._done(self._tls.do_handshake)

    def settimeout(self, seconds: float | None, /) -> None:
        """How long each wait for the peer may take."""
        self._plain.settimeout(seconds)

    def recv(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        try:
            return self._done(lambda: self._tls.read(size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def sendall(self, data: bytes, /) -> None:
        """Send all of it, a record at a time."""
        view = memoryview(data)
        while view:
            sent = self._done(lambda part=view[:_RECORD]: self._tls.write(part))  # type: ignore[misc]
            view = view[sent:]

    def close(self) -> None:
        """Say that there is no more, and hang up."""
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
                chunk = self._plain.recv(_RECORD)
                if chunk:
                    self._read.write(chunk)
                else:
                    self._read.write_eof()
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        if self._written.pending:
            self._plain.sendall(self._written.read())
