"""A WSGI application whose surface takes client certificates instead of tokens."""

import os

from stroboscope.integrations.wsgi import Stroboscope


def _inner(environ, start_response):  # type: ignore[no-untyped-def]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"the application's own"]


app = Stroboscope(
    _inner, certificates={os.environ["SUBJECT"]: ("metrics",)}, service="shop"
)
