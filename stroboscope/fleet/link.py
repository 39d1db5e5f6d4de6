"""A connection to Redis: redis-py's protocol over our own sockets."""

from __future__ import annotations

import functools
import ssl
import time
from collections.abc import Sequence
from typing import Any

from stroboscope.errors import FleetError, SettingsError
from stroboscope.fleet.wire import SealedWire, Wire

#: What a URL may carry in its query. Verification cannot be switched off.
OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})


class Link:
    """One connection, made when it is needed. For one thread.

    Raises: SettingsError without redis-py, or for a URL it cannot read; its text holds
    nothing of the URL.
    """

    def __init__(self, url: str) -> None:
        # Here and not above: an extra, and its import takes a tenth of a second.
        try:
            from redis.connection import Connection, parse_url
        except ImportError:
            raise SettingsError("redis_url needs stroboscope[redis]") from None
        try:
            found: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
            found.setdefault("port", 6379)
            found.setdefault("host", "localhost")
        except ValueError:
            raise SettingsError("redis_url cannot be read") from None
        is_sealed = found.pop("connection_class", None) is not None
        options = {name: found.pop(name) for name in OPTIONS & found.keys()}
        if set(found) - {"host", "port", "db", "username", "password"}:
            raise SettingsError(f"redis_url: options may be {sorted(OPTIONS)}")
        context = _context(options) if is_sealed else None
        self._wire: Wire | None = None
        self._ends_s = 0.0
        #: host and port, which may be shown.
        self.place = f"{found['host']}:{found['port']}"
        link = self

        class OverWire(Connection):
            def _connect(self) -> Any:
                link._wire = _wire(self.host, self.port, link._ends_s, context)
                return link._wire

        self._make = functools.partial(OverWire, protocol=2, **found)
        self._connection: Any = None
        #: Calls made, for the metrics.
        self.calls = 0

    def call(self, command: Sequence[str | int | float], ends_s: float) -> Any:
        """The answer to a command by `ends_s` on the monotonic clock.

        Whoever calls must be able to bear that it is carried out twice: a connection
        that has been idle may have ended unseen. Raises: FleetError.
        """
        from redis.exceptions import RedisError, ResponseError

        self._ends_s = ends_s
        was_open = self._wire is not None
        for is_last in (not was_open, True):
            try:
                return self._called(command)
            except ResponseError as error:  # the connection is as good as before
                raise FleetError(f"Redis refuses: {str(error)[:100]}") from None
            except (RedisError, OSError, ValueError) as error:
                self.close()
                if is_last or time.monotonic() >= ends_s:
                    raise FleetError(f"{self.place}: {_said(error)}") from None
        raise AssertionError

    def _called(self, command: Sequence[str | int | float]) -> Any:
        if self._connection is None:
            self._connection = self._make()
        if self._wire is not None:
            self._wire.until(self._ends_s)
        self.calls += 1
        self._connection.send_command(*command)
        return self._connection.read_response()

    def close(self) -> None:
        """Close it; the next call opens another."""
        wire, self._wire, self._connection = self._wire, None, None
        if wire is not None:
            wire.close()


def _wire(host: str, port: int, ends_s: float, context: ssl.SSLContext | None) -> Wire:
    if context is None:
        return Wire(host, port, ends_s)
    return SealedWire(host, port, ends_s, context)


def _context(options: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:
        raise SettingsError(f"redis_url: its certificates: {error}") from None
    return context


def _said(error: Exception) -> str:
    """One short line. What redis-py and the system say holds no password."""
    shown = "".join(filter(str.isprintable, str(error)))
    return shown[:100] or type(error).__name__
