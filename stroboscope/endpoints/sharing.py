"""Share links: made with a token, opened without one; one capture for each, on a host.

Whichever worker is asked for a link, its capture is that of the one that took it first.
"""

from __future__ import annotations

import json
from dataclasses import replace

from stroboscope._clock import duration_s
from stroboscope._http.messages import Response, refusal
from stroboscope._http.parameters import first
from stroboscope.auth.tokens import SHARE_TTL_CAP_S, Share
from stroboscope.endpoints import joining
from stroboscope.endpoints.call import Call, as_json, one_line
from stroboscope.errors import KnobError


def opened(call: Call, share: Share) -> Response:
    """What the link is for: taken at its first opening, the same ever after."""
    desk, name = call.desk, share.token_id
    kept = desk.captures.get(name)
    if kept is not None:
        return kept.answer
    if desk.openings.is_spent(name):
        return _gone(call)
    if not desk.is_worker:
        return _of_a_worker(call, share)
    with desk.openings.taking(name) as is_first:
        if not is_first:
            wait = (("Retry-After", "1"),)
            return refusal(call.request, 429, "it is being taken", wait)
        holder = desk.openings.claim(name, share.expires_s)
        return _elsewhere(call, holder) if holder else _taken(call, share)


def share(call: Call) -> Response:
    """A link that opens one path for a while, for somebody without a token.

    The body is JSON: `path` below the mount with its query, `ttl` of at most 15
    minutes, and `keep`: true takes the capture now and keeps it for the link.
    """
    desk = call.desk
    try:
        wanted = json.loads(call.request.body)
        if not isinstance(wanted, dict) or not isinstance(wanted.get("path"), str):
            raise KnobError(
                'allowed: {"path": "/pprof/profile?seconds=5", "ttl": "10m"}'
            )
        ttl_s = duration_s(wanted.get("ttl", "10m"))
        if not 0 < ttl_s <= SHARE_TTL_CAP_S:
            raise KnobError("ttl: allowed at most 15m")
    except (ValueError, RecursionError) as error:
        return refusal(call.request, 400, one_line(error))
    if call.grant.expires_s:  # a link does not outlive the token it was made with
        ttl_s = min(ttl_s, max(1.0, call.grant.expires_s - desk.clock.time_s()))
    target = wanted["path"]
    action = desk.shareable(target)
    if action is None or not {action.scope, "admin"} & call.grant.scopes:
        return refusal(call.request, 403, "this path cannot be shared with this token")
    link, made = desk.gate.tokens.mint_share(target, ttl_s, call.grant.token_id)
    if wanted.get("keep") is True:
        answer = desk.open(target, call)
        if answer.status != 200:
            return answer
        desk.keep_for_link(made, answer, call.grant.token_id)
    return as_json(
        {
            "url": f"{call.mount}/share/{link}",
            "id": made.token_id,
            "expires_in": int(ttl_s),
        },
        201,
    )


def share_s(call: Call) -> float:
    """For how many seconds making this link collects: none unless it is to `keep`."""
    try:
        wanted = json.loads(call.request.body)
        return _seconds(call, wanted["path"]) if wanted["keep"] is True else 0.0
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0.0


def _taken(call: Call, share: Share) -> Response:
    desk = call.desk
    try:
        answer = desk.open(share.target, call)
        if answer.status == 200 and not call.request.cancellation.cancelled:
            desk.keep_for_link(share, answer, call.grant.token_id)
        return answer
    finally:
        desk.openings.unclaim(share.token_id)


def _elsewhere(call: Call, holder: str, seconds: float = 0.0) -> Response:
    """The answer of the worker that has it, unless that is no more."""
    process = holder.partition("-")[0]
    # One that was sent here is not sent on.
    if process == str(call.desk.process) or first(call.request.query, "worker"):
        return _gone(call)
    return joining.forward(call, _path(call), process, seconds) or _gone(call)


def _of_a_worker(call: Call, share: Share) -> Response:
    """The sidecar takes none itself: the one that has it answers, or the first does."""
    seconds = _seconds(call, share.target)
    seconds += joining.CAPTURE_GRACE_S if seconds else 0.0
    holder = call.desk.openings.holder(share.token_id)
    if holder:
        return _elsewhere(call, holder, seconds)
    return joining.of_one(call, _path(call), _gone, seconds)


def _seconds(call: Call, target: str) -> float:
    action = call.desk.shareable(target)
    timed = action and (action.joined or action.of_one)
    query = target.partition("?")[2]
    asked = replace(call, request=replace(call.request, query=query))
    return timed(asked) if timed else 0.0


def _path(call: Call) -> str:
    return call.request.path[len(call.desk.settings.prefix) :]


def _gone(call: Call) -> Response:
    return refusal(call.request, 404, "the artefact is gone")
