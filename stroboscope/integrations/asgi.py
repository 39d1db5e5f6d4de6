"""Any ASGI application: `app = Stroboscope(app)`.

The surface answers below its mount, outside of everything the application does; all
else is labelled. Options are `Settings` fields; the environment fills in the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from stroboscope._types import ASGIApp, Receive, Scope, Send
from stroboscope.enablement import Enablement
from stroboscope.endpoints import Surface
from stroboscope.middleware import StroboscopeASGI
from stroboscope.middleware.routes import starlette_template
from stroboscope.settings import Settings


class Stroboscope:
    """Labels requests and carries the surface.

    `template` maps a scope to a route template, for frameworks we do not know.
    Raises: SettingsError, WeakKeyError.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings | None = None,
        *,
        template: Callable[[Scope], str | None] = starlette_template,
        **options: Any,
    ) -> None:
        settings = settings or Settings.from_environ(os.environ, **options)
        self.surface = Surface.from_settings(settings)
        self.enabled = Enablement(settings)
        self.labelled = StroboscopeASGI(app, settings, template=template)
        if self.surface is not None:
            self.surface.shows(self.labelled.labeller)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if not self.enabled():
            await self.labelled.app(scope, receive, send)
            return
        surface = self.surface
        if surface is not None:
            surface.wake_here()
            if scope["type"] == "lifespan":
                send = surface.until_shutdown(send)
            if surface.handles_scope(scope):
                await surface.asgi(scope, receive, send)
                return
        await self.labelled(scope, receive, send)
