"""Any WSGI application: `app = Stroboscope(app)`.

The surface answers below its mount, outside of everything the application does; all
else is labelled. Options are `Settings` fields; the environment fills in the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from stroboscope._types import Environ, StartResponse, WSGIApp
from stroboscope.enablement import Enablement
from stroboscope.endpoints import Surface
from stroboscope.middleware import StroboscopeWSGI
from stroboscope.middleware.routes import werkzeug_template
from stroboscope.settings import Settings


class Stroboscope:
    """Labels requests and carries the surface.

    `template` maps an environ to a route template, for frameworks we do not know.
    Raises: SettingsError, WeakKeyError.
    """

    def __init__(
        self,
        app: WSGIApp,
        settings: Settings | None = None,
        *,
        template: Callable[[Environ], str | None] = werkzeug_template,
        **options: Any,
    ) -> None:
        settings = settings or Settings.from_environ(os.environ, **options)
        self.surface = Surface.from_settings(settings)
        self.enabled = Enablement(settings)
        self.labelled = StroboscopeWSGI(app, settings, template=template)
        if self.surface is not None:
            self.surface.shows(self.labelled.labeller)

    def __call__(
        self, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Serve one request."""
        if not self.enabled():
            return self.labelled.app(environ, start_response)
        surface = self.surface
        if surface is not None:
            surface.wake()
            if surface.handles(environ.get("PATH_INFO", "")):
                return surface.wsgi(environ, start_response)
        return self.labelled(environ, start_response)
