"""The door: authenticate, then route, then act, and let nothing else out.

Every path below the mount is authenticated before it is looked at, so that a stranger
cannot tell what exists.
"""

from __future__ import annotations

import base64
import binascii
import logging
import secrets
from collections.abc import Callable, Iterable
from functools import partial

from stroboscope._clock import SYSTEM, Clock
from stroboscope._http import asgi, wsgi
from stroboscope._http.asgi import never
from stroboscope._http.messages import Request, Response, refusal
from stroboscope._http.parameters import QUERY_CAP
from stroboscope._http.pool import Pool
from stroboscope._types import Environ, Receive, Scope, Send, StartResponse
from stroboscope.auth.tokens import TEXT_CAP, Grant, Tokens
from stroboscope.endpoints.pages import ROUTES
from stroboscope.errors import Forbidden, Unauthenticated
from stroboscope.settings import Settings

_log = logging.getLogger("stroboscope")
_CHALLENGE = (
    ("WWW-Authenticate", 'Bearer realm="stroboscope"'),
    ("WWW-Authenticate", 'Basic realm="stroboscope"'),
)


class Surface:
    """The endpoints below the mount, over ASGI and WSGI.

    Raises: WeakKeyError for keys that could be guessed, SettingsError without one.
    """

    def __init__(self, settings: Settings, clock: Clock = SYSTEM) -> None:
        self._settings = settings
        self._tokens = Tokens(settings, clock)
        self._pool = Pool()
        self._exact = settings.prefix
        self._below = settings.prefix + "/"
        self._routes = {path: route for route in ROUTES for path in route.paths}

    @classmethod
    def from_settings(cls, settings: Settings) -> Surface | None:
        """The surface, or None without keys: then /debug is the application's own."""
        if settings.keys:
            return cls(settings)
        _log.warning("stroboscope: STROBOSCOPE_KEYS is not set; %s is off", "/debug")
        return None

    def handles_scope(self, scope: Scope) -> bool:
        """Whether an ASGI HTTP request is ours; false for everything else."""
        return scope["type"] == "http" and self.handles(asgi_path(scope))

    def handles(self, path: str) -> bool:
        """Whether a decoded path, less its root path, is ours."""
        return path == self._exact or path.startswith(self._below)

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request. Nothing is collected on the loop."""
        request = asgi.read(scope, asgi_path(scope))
        answer = await self.answer_async(request, receive)
        await asgi.send_response(answer, scope, receive, send)

    def wsgi(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request; blocks its thread while something is collected."""
        request = wsgi.read(environ, environ.get("PATH_INFO", ""))
        answer = self.answer(request, environ.get("gunicorn.socket"))
        return wsgi.send_response(answer, environ, start_response)

    async def answer_async(
        self, request: Request, receive: Receive = never
    ) -> Response:
        """The answer to a request whose path begins with the mount."""
        checked = self._checked(request)
        if isinstance(checked, Response):
            return checked
        answer = await asgi.run(self._pool, request, receive, checked)
        return answer or _busy(request)

    def answer(self, request: Request, client: object = None) -> Response:
        """The same, blocking; `client` is a socket to watch for its end."""
        checked = self._checked(request)
        if isinstance(checked, Response):
            return checked
        return wsgi.run(self._pool, request, client, checked) or _busy(request)

    def _checked(self, request: Request) -> Response | Callable[[], Response]:
        """A refusal, or the job that answers."""
        try:
            return self._admitted(request)
        except Unauthenticated as error:
            _log.info("stroboscope: 401 for %s: %s", request.peer, error.cause)
            return refusal(request, 401, "unauthorized", _CHALLENGE)
        except Forbidden:
            return refusal(request, 403, "insufficient_scope")
        except Exception as error:  # the application must not see our failure
            return self._failed(request, error)

    def _admitted(self, request: Request) -> Response | Callable[[], Response]:
        grant = self._authenticate(request)
        if len(request.query) > QUERY_CAP:
            return refusal(request, 414, "query too long")
        path = request.path[len(self._exact) :]
        route = self._routes.get(path)
        if route is None:
            is_profile = path.startswith("/pprof/")
            return refusal(request, 404, "Unknown profile" if is_profile else "Unknown")
        if request.method != "GET":
            return refusal(request, 405, "method not allowed", (("Allow", "GET"),))
        if not {route.scope, "admin"} & grant.scopes:
            raise Forbidden(f"needs {route.scope}")
        return partial(self._answer, request, route.handler)

    def _authenticate(self, request: Request) -> Grant:
        header = request.header("authorization")
        if header is None or len(header) > 2 * TEXT_CAP:
            raise Unauthenticated("no token")
        kind, _, text = header.partition(" ")
        if kind.lower() == "basic":
            text = _basic_password(text)
        elif kind.lower() != "bearer":
            raise Unauthenticated("unknown scheme")
        return self._tokens.verify(text.strip())

    def _answer(
        self, request: Request, handler: Callable[[Request, Settings], Response]
    ) -> Response:
        try:
            return handler(request, self._settings)
        except Exception as error:  # a thread of ours: nobody else would see it
            return self._failed(request, error)

    def _failed(self, request: Request, error: Exception) -> Response:
        number = secrets.token_hex(4)
        _log.error("stroboscope: internal error (%s)", number, exc_info=error)
        return refusal(request, 500, f"internal error ({number})")


def asgi_path(scope: Scope) -> str:
    """The decoded path below the root path, for `Surface.handles`."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def _basic_password(text: str) -> str:
    try:
        decoded = base64.b64decode(text.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise Unauthenticated("malformed Basic credentials") from error
    return decoded.partition(":")[2]


def _busy(request: Request) -> Response:
    wait = (("Retry-After", "1"),)
    return refusal(request, 429, "too many requests to the debug surface", wait)
