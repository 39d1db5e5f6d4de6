"""Starlette and FastAPI: `install(app)`.

Ours becomes the outermost layer, whatever middleware is added before or after.
"""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette

from stroboscope._types import ASGIApp
from stroboscope.integrations.asgi import Stroboscope
from stroboscope.settings import Settings


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
        outer.labelled.app = build()
        return outer

    app.build_middleware_stack = build_with_ours  # type: ignore[method-assign]
