"""Flask: `Stroboscope(app)`, or `Stroboscope()` and `init_app(app)`."""

from __future__ import annotations

from typing import Any

from flask import Flask

from stroboscope.integrations import wsgi
from stroboscope.settings import Settings


class Stroboscope:
    """Labels a Flask application's requests and mounts the surface.

    Options are `Settings` fields; the environment fills in the rest.
    Raises: SettingsError, WeakKeyError.
    """

    def __init__(
        self,
        app: Flask | None = None,
        settings: Settings | None = None,
        **options: Any,
    ) -> None:
        self._settings = settings
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Wrap the application's WSGI callable."""
        wrapped = wsgi.Stroboscope(app.wsgi_app, self._settings, **self._options)
        app.wsgi_app = wrapped  # type: ignore[method-assign]
        app.extensions["stroboscope"] = self
