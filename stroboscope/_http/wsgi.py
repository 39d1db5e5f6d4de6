"""Carry a request to the surface over WSGI.

The request's own thread waits; it sleeps in small steps, so that under gevent other
greenlets run and a client that went away is noticed where the server shows its socket.
"""

from __future__ import annotations

import _socket
import time
from collections.abc import Callable, Iterable

from werkzeug.wrappers import Response as WerkzeugResponse

from stroboscope._http.messages import Request, Response
from stroboscope._http.pool import Pool
from stroboscope._types import Environ, StartResponse

_STEP_S = 0.02


def read(environ: Environ, path: str) -> Request:
    """The request as a value; its body is never read."""
    headers = [
        (key[5:].replace("_", "-").lower(), value)
        for key, value in environ.items()
        if key.startswith("HTTP_") and isinstance(value, str)
    ]
    return Request(
        method=environ["REQUEST_METHOD"],
        path=path,
        query=environ.get("QUERY_STRING", ""),
        headers=tuple(headers),
        peer=environ.get("REMOTE_ADDR", ""),
    )


def run(
    pool: Pool, request: Request, client: object, job: Callable[[], Response]
) -> Response | None:
    """The job's answer; None when the pool is full. Blocks the calling thread."""
    answers: list[Response] = []
    if not pool.submit(lambda: answers.append(job())):
        return None
    while not answers:
        time.sleep(_STEP_S)
        if not request.cancellation.cancelled and _is_closed(client):
            request.cancellation.cancel()
    return answers[0]


def _is_closed(client: object) -> bool:
    # gevent's socket would wait for data; the one inside it does not.
    plain = getattr(client, "_sock", client)
    if not isinstance(plain, _socket.socket) or plain.gettimeout():
        return False
    try:
        return not plain.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
    except (BlockingIOError, ValueError):  # ValueError: TLS sockets cannot peek
        return False
    except OSError:
        return True


def send_response(
    response: Response, environ: Environ, start_response: StartResponse
) -> Iterable[bytes]:
    """Send it whole, with its length."""
    carrier = WerkzeugResponse(
        response.body, response.status, headers=response.all_headers()
    )
    return carrier(environ, start_response)
