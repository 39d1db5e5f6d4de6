"""The pure ASGI class. HTTP and WebSocket are labelled; lifespan passes untouched."""

from __future__ import annotations

from collections.abc import Callable

from stroboscope._core.recording import may_have_span
from stroboscope._types import ASGIApp, Message, Receive, Scope, Send
from stroboscope.middleware.observed import Labeller, Observed, running
from stroboscope.middleware.routes import starlette_template
from stroboscope.settings import Settings


class ASGIRequest(Observed):
    """One ASGI request; its `observe` stands in for `send`."""

    __slots__ = ("_send",)

    def __init__(self, labeller: Labeller, scope: Scope, send: Send) -> None:
        super().__init__(labeller, scope, scope.get("method", "GET"), scope)
        self._send = send

    def path(self) -> object:
        """The path as it was asked for."""
        return self.carrier.get("path")

    def observe(self, message: Message) -> object:
        """Note the status and pass on; returns send's own awaitable."""
        try:
            if message["type"] == "http.response.start":
                self.status = int(message.get("status", 0))
                if self.is_recorded and (self.span is not None or may_have_span()):
                    self.tell_span()
            elif self.span_is_inside and not message.get("more_body"):
                self.judge()
        except (AttributeError, LookupError, TypeError, ValueError):
            pass  # no message at all: the server says so, not we
        return self._send(message)


def note_scope(scope: Scope) -> None:
    """Let the labels of the request that runs here be read from this scope."""
    request = running(ASGIRequest)
    if request is not None:
        request.carrier = scope
        if request.cell is not None and request.cell.scope is not None:
            request.cell.scope = scope


class StroboscopeASGI:
    """Labels every request of an ASGI application.

    Exceptions pass through unchanged; a failure of ours is counted and the request
    goes on unlabelled.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings | None = None,
        *,
        template: Callable[[Scope], str | None] = starlette_template,
    ) -> None:
        self.app = app
        self.labeller = Labeller(settings or Settings(), template)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            request = ASGIRequest(self.labeller, scope, send)
            request.enter()
        except Exception as error:  # ours: the application goes on without labels
            self.labeller.failed(error)
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, request.observe)  # type: ignore[arg-type]
        except BaseException:
            request.status = request.status or 500
            raise
        finally:
            request.leave()
            request.end()
