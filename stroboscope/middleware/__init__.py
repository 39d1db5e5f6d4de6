"""Labels for each request: pure ASGI and WSGI classes that know no application."""

from stroboscope.middleware.asgi import StroboscopeASGI
from stroboscope.middleware.wsgi import StroboscopeWSGI

__all__ = ["StroboscopeASGI", "StroboscopeWSGI"]
