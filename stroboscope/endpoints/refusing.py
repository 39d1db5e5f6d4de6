"""What a refusal looks like, by its cause. The cause itself goes to the audit log."""

from __future__ import annotations

from stroboscope._http.messages import BodyTooLarge, Request, Response, refusal
from stroboscope.errors import (
    BadHost,
    CrossSite,
    Forbidden,
    Throttled,
    Unauthenticated,
)

_CHALLENGE = (
    ("WWW-Authenticate", 'Bearer realm="stroboscope"'),
    ("WWW-Authenticate", 'Basic realm="stroboscope"'),
)


def of_caller(request: Request, error: BaseException) -> Response | None:
    """Why a caller was not let through; None for an error that is none of theirs."""
    if isinstance(error, Throttled):
        wait = (("Retry-After", str(error.retry_after_s)),)
        return refusal(request, 429, str(error), wait)
    if isinstance(error, Unauthenticated):
        return refusal(request, 401, "unauthorized", _CHALLENGE)
    if isinstance(error, Forbidden):
        return refusal(request, 403, "insufficient_scope")
    if isinstance(error, BadHost):
        return refusal(request, 400, "Invalid host header")
    if isinstance(error, CrossSite):
        return refusal(request, 403, "cross-site request")
    return None


def of_body(request: Request, error: Exception) -> Response:
    """Why a body was not read to its end."""
    if isinstance(error, BodyTooLarge):
        return refusal(request, 413, "body too large")
    if isinstance(error, TimeoutError):
        return refusal(request, 408, "the body took too long")
    return refusal(request, 400, "the body cannot be read")


def busy(request: Request) -> Response:
    """When as many are worked on as may be."""
    wait = (("Retry-After", "1"),)
    return refusal(request, 429, "too many requests to the debug surface", wait)
