"""The WSGI callable. A request's scope ends when its response is closed.

The ContextVar is set around the call and around each step of the iterable and reset
between, so that a response that is never closed leaks no label onto its thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from stroboscope._types import Environ, StartResponse, WSGIApp
from stroboscope.middleware.observed import Labeller, ThreadObserved
from stroboscope.middleware.routes import keep_rule, werkzeug_template
from stroboscope.settings import Settings


class WSGIRequest(ThreadObserved):
    """One WSGI request; its `observe` stands in for `start_response`."""

    __slots__ = ("_start_response",)

    def __init__(
        self, labeller: Labeller, environ: Environ, start_response: StartResponse
    ) -> None:
        method = environ.get("REQUEST_METHOD", "GET")
        super().__init__(labeller, environ, method, environ)
        self._start_response = start_response

    def path(self) -> object:
        """The path as it was asked for."""
        return self.carrier.get("PATH_INFO")

    def observe(self, status: str, headers: Any, *rest: Any) -> Any:
        """Note the status and pass on."""
        try:
            self.status = int(status[:3])
        except (TypeError, ValueError):
            self.status = 0  # no status line: the server says so, not we
        keep_rule(self.carrier)
        if self.is_recorded:
            self.tell_span()
            self.judge()
        return self._start_response(status, headers, *rest)


class LabelledBody:
    """The application's iterable, labelled at each step; ends the request at close."""

    __slots__ = ("_body", "_iterator", "_request")

    def __init__(self, body: Iterable[bytes], request: WSGIRequest) -> None:
        self._body = body
        self._iterator: Iterator[bytes] | None = None
        self._request = request

    def __iter__(self) -> LabelledBody:
        return self

    def __next__(self) -> bytes:
        request = self._request
        request.enter()
        try:
            if self._iterator is None:
                self._iterator = iter(self._body)
            return next(self._iterator)
        finally:
            request.leave()

    def close(self) -> None:
        """Close the application's iterable, labelled; then the request is over."""
        request = self._request
        request.enter()
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            request.leave()
            request.end()


class SizedBody(LabelledBody):
    """The same with a length, which servers use to set Content-Length."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]


class StroboscopeWSGI:
    """Labels every request of a WSGI application.

    Exceptions pass through unchanged; a failure of ours is counted and the request
    goes on unlabelled.
    """

    def __init__(
        self,
        app: WSGIApp,
        settings: Settings | None = None,
        *,
        template: Callable[[Environ], str | None] = werkzeug_template,
    ) -> None:
        self.app = app
        self.labeller = Labeller(settings or Settings(), template)

    def __call__(
        self, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Serve one request."""
        try:
            request = WSGIRequest(self.labeller, environ, start_response)
            request.enter()
        except Exception as error:  # ours: the application goes on without labels
            self.labeller.failed(error)
            return self.app(environ, start_response)
        try:
            body = self.app(environ, request.observe)
        except BaseException:
            request.status = 500
            request.leave()
            request.end()
            raise
        request.leave()
        if not hasattr(body, "__iter__"):  # the server says what it thinks of it
            request.end()
            return body
        kind = SizedBody if hasattr(body, "__len__") else LabelledBody
        return kind(body, request)
