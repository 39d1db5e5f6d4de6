"""Which action of the table a request means, or why there is none.

Cheap, and touches no disk: decided on the application's loop.
"""

from __future__ import annotations

import re

from stroboscope._http.accepting import choose
from stroboscope._http.messages import BODY_CAP, JSON, Request, Response, refusal
from stroboscope._http.parameters import first, is_too_long
from stroboscope.auth.tokens import Grant
from stroboscope.endpoints.audit import Entry
from stroboscope.endpoints.call import Action, Call
from stroboscope.endpoints.gate import Admission
from stroboscope.endpoints.routes import find
from stroboscope.errors import Forbidden

#: What a server should have refused, and what would end a line where it is sent on.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def meant(
    request: Request, path: str, admission: Admission, entry: Entry
) -> Response | Action:
    """The action meant, or why there is none."""
    if is_too_long(request.query):
        return refusal(request, 414, "query too long")
    length = request.header("content-length") or "0"
    if length.isascii() and length.isdigit() and int(length[:18]) > BODY_CAP:
        return refusal(request, 413, "body too large")
    if _CONTROL.search("".join(value for _, value in request.headers)):
        return refusal(request, 400, "a header has control characters")
    if admission.share is not None:
        path = admission.share.target.partition("?")[0]
    route, _ = find(path)
    if route is None:
        is_profile = path.startswith("/pprof/")
        return refusal(request, 404, "Unknown profile" if is_profile else "Unknown")
    entry.endpoint = route.paths[0]
    action = route.actions.get(request.method)
    if action is None:
        allow = (("Allow", ", ".join(sorted(route.actions))),)
        return refusal(request, 405, "method not allowed", allow)
    if request.header("content-encoding") is not None:
        return refusal(request, 415, "request bodies are read as they are")
    kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if action.body == "json" and kind != JSON:
        return refusal(request, 415, "the body has to be application/json")
    if kind_of(request, action) is None:
        kinds = ", ".join(one.partition(";")[0] for one in action.kinds)
        return refusal(request, 406, f"this answers {kinds}")
    return action


def kind_of(request: Request, action: Action) -> str | None:
    """The content type to answer in; None for one that no form of it satisfies."""
    if not action.kinds or first(request.query, "format"):
        return ""
    return choose(request, action.kinds)


def require(action: Action, grant: Grant) -> None:
    """Raises: Forbidden where the grant has not the action's scope."""
    if not {action.scope, "admin"} & grant.scopes:
        raise Forbidden(f"needs {action.scope}")


def _nothing(call: Call) -> Response:
    return refusal(call.request, 404, "Unknown")


#: What is meant by who has yet to be let in, when there is nothing it could mean.
NOTHING = Action("", _nothing, "", {})
