"""Carry a request to the surface over WSGI.

The request's own thread waits; it sleeps in small steps, so that under gevent other
greenlets run and a client that went away is noticed where the server shows its socket.
"""

from __future__ import annotations

import _socket
import math
import re
import sys
import time
from collections.abc import Callable, Iterable
from types import FrameType

from werkzeug.wrappers import Response as WerkzeugResponse

from stroboscope._http.messages import BODY_CAP, BodyTooLarge, Request, Response
from stroboscope._http.pool import Pool
from stroboscope._types import Environ, StartResponse

#: How often a waiting thread looks for its answer: often at first, less later.
_STEPS_S = (0.002, 0.02)
_STEPS_GROW = 1.1
_LENGTH = re.compile("[0-9]{1,18}")
_SPECIAL, _ESCAPED = re.compile(r'([,+"\\<>;])'), r"\\\1"
_SYNC_WORKER = "gunicorn/workers/sync.py"
_SHORT = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU"}


def read(environ: Environ, path: str) -> Request:
    """The request as a value, without its body."""
    headers = [
        (key[5:].replace("_", "-").lower(), value)
        for key, value in environ.items()
        if key.startswith("HTTP_") and isinstance(value, str)
    ]
    # CGI has these two without a prefix.
    headers += [
        (key.replace("_", "-").lower(), environ[key])
        for key in ("CONTENT_TYPE", "CONTENT_LENGTH")
        if environ.get(key)
    ]
    return Request(
        method=environ["REQUEST_METHOD"],
        path=path,
        query=environ.get("QUERY_STRING", ""),
        headers=tuple(headers),
        peer=environ.get("REMOTE_ADDR", ""),
        certificate=_verified_subject(environ),
        carrier=environ,
        root=environ.get("SCRIPT_NAME", ""),
        worker_timeout_s=worker_timeout_s(environ),
    )


def worker_timeout_s(environ: Environ) -> float:
    """Seconds after which gunicorn kills its sync worker for answering too long.

    Infinite elsewhere: other workers tell their arbiter that they live from a thread or
    loop of their own. The environ does not say it; the worker is below us on the stack.
    Source: gunicorn, workers/sync.py, where `notify` comes before each request only.
    """
    if "gunicorn.socket" not in environ or environ.get("wsgi.multithread"):
        return math.inf
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_SYNC_WORKER):
            cfg = getattr(frame.f_locals.get("self"), "cfg", None)
            timeout = getattr(cfg, "timeout", None)
            return float(timeout) if timeout else math.inf
        frame = frame.f_back
    return math.inf


def _verified_subject(environ: Environ) -> str:
    """What mod_ssl, uWSGI and gunicorn say of a certificate they have verified."""
    if environ.get("SSL_CLIENT_VERIFY") == "SUCCESS":
        return str(environ.get("SSL_CLIENT_S_DN", ""))
    ask = getattr(environ.get("gunicorn.socket"), "getpeercert", None)
    found = ask() if ask is not None else None
    if not found:
        return ""
    names = (pair for rdn in found.get("subject", ()) for pair in rdn)
    return ",".join(
        # A comma within a value must not look like the next attribute: RFC 4514.
        f"{_SHORT.get(key, key)}={_SPECIAL.sub(_ESCAPED, value)}"
        for key, value in names
    )


def hide_path(environ: Environ, kept: str) -> None:
    """Leave only `kept` of the path, for access logs that are written at the end."""
    for name in ("PATH_INFO", "RAW_URI", "REQUEST_URI"):
        text = environ.get(name)
        if text and kept in text:
            environ[name] = text[: text.find(kept) + len(kept)] + "..."


def read_body(environ: Environ) -> bytes:
    """The body.

    Raises: BodyTooLarge, TimeoutError for a client that is gone, ValueError for a
    length that is none, and whatever the server's stream raises.
    """
    text = environ.get("CONTENT_LENGTH") or ""
    is_chunked = bool(environ.get("wsgi.input_terminated")) and not text
    if not text and not is_chunked:
        return b""
    if not is_chunked and not _LENGTH.fullmatch(text):
        raise ValueError("a length that is none")
    length = BODY_CAP + 1 if is_chunked else int(text)
    if length > BODY_CAP and not is_chunked:
        raise BodyTooLarge
    try:
        body: bytes = environ["wsgi.input"].read(length)
    except OSError as error:
        raise TimeoutError from error
    if len(body) > BODY_CAP:
        raise BodyTooLarge
    if len(body) < length and not is_chunked:
        raise TimeoutError
    return body


def run(
    pool: Pool,
    request: Request,
    client: object,
    job: Callable[[], Response],
    sleep: Callable[[float], object] = time.sleep,
    *,
    is_capture: bool,
) -> Response | None:
    """The job's answer; None when the pool is full. Blocks the calling thread.

    `sleep` is what blocks it: in a thread of ours, not what gevent has patched.
    """
    answers: list[Response] = []
    if not pool.submit(lambda: answers.append(job()), is_capture=is_capture):
        return None
    step_s, longest_s = _STEPS_S
    while not answers:
        sleep(step_s)
        step_s = min(longest_s, step_s * _STEPS_GROW)
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
