"""Starlette and FastAPI: `install(app)`.

Ours becomes the outermost layer, whatever middleware is added before or after; only
what wraps `build_middleware_stack` itself later, as OpenTelemetry does, goes around it.
"""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware

from stroboscope._types import ASGIApp, Receive, Scope, Send
from stroboscope.integrations.asgi import Stroboscope
from stroboscope.middleware.asgi import note_scope
from stroboscope.settings import Settings


class _Noting:
    """The innermost layer: shows the labels the scope the router gets.

    A layer between may have handed on a copy, and then the route stands only there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        note_scope(scope)
        await self._app(scope, receive, send)


def install(app: Starlette, settings: Settings | None = None, **options: Any) -> None:
    """Label the application's requests and mount the surface.

    Options are `Settings` fields; the environment fills in the rest. Call it before
    the first request. Raises: SettingsError, WeakKeyError, RuntimeError after that.
    """
    if app.middleware_stack is not None:
        raise RuntimeError("install() comes before the application's first request")
    build = app.build_middleware_stack
    # Options are wrong now or never; and the surface must not be made twice.
    outer = Stroboscope(app.router, settings, **options)

    def build_with_ours() -> ASGIApp:
        router = app.router
        app.router = _Noting(router)  # type: ignore[assignment]
        try:
            stack = build()
        finally:
            app.router = router
        is_wrapped = app.build_middleware_stack is not build_with_ours
        if is_wrapped and isinstance(stack, ServerErrorMiddleware):
            # OpenTelemetry's instrumentation came later: it takes Starlette's outermost
            # layer apart, and leaves an application alone that has another one.
            outer.labelled.app, stack.app = stack.app, outer
            return stack
        outer.labelled.app = stack
        return outer

    app.build_middleware_stack = build_with_ours  # type: ignore[method-assign]
