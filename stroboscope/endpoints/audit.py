"""One record per request to the surface: written before acting, completed after.

The record goes to the logger `stroboscope.audit` with its fields in `record.audit`, and
to OpenTelemetry: its log provider, where the process has set one, and the request's
span, where one is recorded. It holds no secret: no token, no header, no query beyond the known parameters.

Under gevent a greenlet writes it, soon: handlers are the application's.

Refusals are decided on the application's loop, which must not wait for a log file: a
thread of ours writes them.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from stroboscope._core import engine
from stroboscope._greenlets import POST, Log
from stroboscope._http.messages import Request, Response
from stroboscope._http.parameters import every, firsts, is_too_long
from stroboscope._threads import Lock
from stroboscope.endpoints import otel
from stroboscope.formats.filters import OPTIONS

LOGGER = "stroboscope.audit"
_log = Log(LOGGER)
#: Records that wait for the writer; more are dropped and counted.
WAITING_CAP = 1024
#: Query parameters that may be logged, and how much of a value.
_LOGGED = (
    *("seconds", "debug", "gc", "forensic", "native", "min_age", "by"),
    *("worker", "merge", "format", "base", "top", "sort", "sample_index"),
)
_TEXT_CAP = 64
#: What may be a token or a key, pasted where it does not belong.
_OPAQUE = re.compile(
    r"(?=[\w+/=-]*[0-9])(?=[\w+/=-]*[A-Za-z])[\w+/=-]{20,}|[\w+/=-]{40,}", re.ASCII
)
#: The writer ends after this long without work, so that an idle process has none.
_IDLE_S = 1.0


@dataclass(slots=True)
class Entry:
    """A request as the log shows it; filled in as it becomes known.

    The query is read only when the record is written, which is not on a loop.
    """

    id: str
    method: str
    endpoint: str
    peer: str
    query: str = field(repr=False)
    began_ns: int = field(default_factory=time.monotonic_ns)
    token_id: str = ""
    cause: str = ""
    status: int = 0
    bytes: int = 0
    clamped: str = ""
    duration_ms: float = 0.0
    told: dict[str, str] = field(default_factory=dict)
    span: Any = field(default_factory=otel.current_span, repr=False)

    @classmethod
    def of(cls, request: Request, number: str) -> Entry:
        """What is known when it arrives; its path only once it is a known endpoint."""
        method = request.method if request.method.isalpha() else "?"
        query = "" if is_too_long(request.query) else request.query
        return cls(number, method[:10], "", _clean(request.peer), query)

    def tell(self, text: str, names: Container[str]) -> None:
        """Take these members of a JSON body for parameters."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(found, dict):
            told = {name: value for name, value in found.items() if name in names}
            self.told = {name: _clean(_plain(value)) for name, value in told.items()}

    @property
    def parameters(self) -> dict[str, str]:
        """Those that may be logged; of an option given several times all values."""
        logged = firsts(self.query, _LOGGED)
        for name in OPTIONS:
            if values := every(self.query, name):
                logged[name] = "&".join(values)
        return {name: _clean(value) for name, value in logged.items()} | self.told

    def complete(self, response: Response) -> None:
        """Add how it ended, and tell the request's span."""
        self.status = response.status
        self.bytes = len(response.body)
        self.clamped = dict(response.headers).get("X-Stroboscope-Clamped", "")
        self.duration_ms = round((time.monotonic_ns() - self.began_ns) / 1e6, 3)
        try:
            POST.send(lambda: otel.note(self.span, self.fields))
        except Exception:  # the user's span processors are not ours
            _log.debug("the span took no event", exc_info=True)

    def fields(self) -> dict[str, Any]:
        """As plain data, without what is not known."""
        named = {name: getattr(self, name) for name in _NAMES}
        return {name: value for name, value in named.items() if value not in ("", {})}


_NAMES = (
    *("id", "method", "endpoint", "peer", "token_id", "parameters"),
    *("cause", "status", "bytes", "clamped", "duration_ms"),
)


class Audit:
    """Writes entries; never raises."""

    def __init__(self) -> None:
        self._waiting: deque[Entry] = deque()
        self._lock = Lock()
        self._writes = False
        self.written = 0
        #: Requests whose record is complete, whether written by now or waiting.
        self.ended = 0
        self.dropped = 0

    def begin(self, entry: Entry) -> None:
        """Write down what is about to be done. On a thread of ours."""
        self._write({"event": "begin", **entry.fields()})

    def end(self, entry: Entry) -> None:
        """Complete the record. On a thread of ours."""
        self.ended += 1
        self._write({"event": "end", **entry.fields()})

    def end_soon(self, entry: Entry) -> None:
        """The same from any thread, without waiting for a log file."""
        with self._lock:
            if len(self._waiting) >= WAITING_CAP:
                self.dropped += 1
                return
            self.ended += 1
            self._waiting.append(entry)
            if self._writes:
                return
            self._writes = True
        try:
            engine.start_thread(self._write_waiting)
        except RuntimeError:  # no thread to be had; the next entry tries again
            self._writes = False

    def after_fork(self) -> None:
        """The child has no writer, and the parent writes what waits."""
        self._lock = Lock()
        self._waiting.clear()
        self._writes = False

    def _write_waiting(self) -> None:
        idle_s = 0.0
        while True:
            with self._lock:
                entry = self._waiting.popleft() if self._waiting else None
                if entry is None and idle_s >= _IDLE_S:
                    self._writes = False
                    return
            if entry is None:
                engine.sleep(0.05)
                idle_s += 0.05
                continue
            idle_s = 0.0
            self._write({"event": "end", **entry.fields()})

    def _write(self, fields: dict[str, Any]) -> None:
        self.written += 1
        text = " ".join(f"{name}={value}" for name, value in fields.items())

        def write() -> None:
            try:
                _log.info("%s", text, extra={"audit": fields})
                otel.emit(fields)
            except Exception:  # a broken log handler must not break the surface
                self.dropped += 1

        POST.send(write)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _clean(text: str) -> str:
    """At most 64 printable characters without blanks, so that no line is forged."""
    safe = _OPAQUE.sub("(hidden)", text)
    kept = "".join(c if c.isprintable() and not c.isspace() else "?" for c in safe)
    return kept[:_TEXT_CAP]
