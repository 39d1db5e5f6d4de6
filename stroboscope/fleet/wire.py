"""Bytes to a server and back, by a moment given: over the interpreter's own sockets.

gevent patches `socket` and `ssl` for its greenlets, and our threads are none. So these are
of `_socket`, and TLS goes through memory. They have the methods that redis-py calls.
"""

from __future__ import annotations

import _socket
import ssl
import time
from collections.abc import Callable
from typing import TypeVar

#: A longer answer is none of ours: who can write there could fill our memory.
ANSWER_CAP = 4 << 20
_CHUNK = 65_536
_T = TypeVar("_T")


class Wire:
    """One connection. Every method ends by the moment `until` was given, or raises.

    Raises: TimeoutError; OSError.
    """

    def __init__(self, host: str, port: int, ends_s: float) -> None:
        self.until(ends_s)
        self._socket = _connected(host, port, self._left_s)

    def until(self, ends_s: float) -> None:
        """Until when, on the monotonic clock, and with a new cap on what is read."""
        self._ends_s = ends_s
        self._room = ANSWER_CAP

    def recv(self, size: int) -> bytes:
        """At least one byte; none when the other side has closed."""
        self._socket.settimeout(self._left_s())
        chunk = self._socket.recv(min(size, _CHUNK))
        self._room -= len(chunk)
        if self._room < 0:
            raise ConnectionError("the answer is too long")
        return chunk

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """The same into a buffer, for hiredis."""
        chunk = self.recv(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def sendall(self, data: bytes | memoryview) -> None:
        """All of it."""
        self._socket.settimeout(self._left_s())
        self._socket.sendall(data)

    def settimeout(self, seconds: float | None) -> None:
        """Nothing: the moment given holds for all that is said until then."""

    def shutdown(self, how: int) -> None:
        """Tell the other side."""
        self._socket.shutdown(how)

    def close(self) -> None:
        """Close it, without a word: also in a forked child, whose parent goes on."""
        self._socket.close()

    def _left_s(self) -> float:
        left_s = self._ends_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("no answer in time")
        return left_s


class SealedWire(Wire):
    """The same in TLS, with the server's certificate verified."""

    def __init__(
        self, host: str, port: int, ends_s: float, context: ssl.SSLContext
    ) -> None:
        super().__init__(host, port, ends_s)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        try:
            self._driven(self._tls.do_handshake)
        except BaseException:
            self.close()
            raise

    def recv(self, size: int) -> bytes:
        """At least one byte; none when the other side has closed."""
        try:
            return self._driven(lambda: self._tls.read(min(size, _CHUNK)))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def sendall(self, data: bytes | memoryview) -> None:
        """All of it."""
        view = memoryview(data)
        while view:
            view = view[self._driven(lambda view=view: self._tls.write(view)) :]  # type: ignore[misc]

    def _driven(self, step: Callable[[], _T]) -> _T:
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._flush()
                sealed = super().recv(_CHUNK)
                self._in.write(sealed) if sealed else self._in.write_eof()
            else:
                self._flush()
                return done

    def _flush(self) -> None:
        if sealed := self._out.read():
            super().sendall(sealed)


def _connected(host: str, port: int, left_s: Callable[[], float]) -> _socket.socket:
    """A connection to the first of the host's addresses that takes one."""
    failure: OSError = OSError("no address")
    for family, kind, protocol, _, address in _socket.getaddrinfo(
        host, port, 0, _socket.SOCK_STREAM
    ):
        connection = _socket.socket(family, kind, protocol)
        try:
            connection.settimeout(left_s())
            connection.connect(address)
            connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure
