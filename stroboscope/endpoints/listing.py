"""The captures of all workers: listed, given out, dropped."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from stroboscope._http.messages import HTML, Response, refusal
from stroboscope.endpoints import exhibits, joining, pages
from stroboscope.endpoints.blackboxes import adopt_dead
from stroboscope.endpoints.call import Call, as_json


def list_captures(call: Call) -> Response:
    """What is kept here and may be seen with this token, newest first.

    Looks for what killed processes left, too.
    """
    adopt_dead(call.desk)
    seen = exhibits.kept_here(call)
    return as_json([exhibits.described(one, call) for one in seen])


def show_captures(call: Call) -> Response:
    """Those of all workers; as a page where a browser asks."""
    if call.kind != HTML:
        return joining.answer(call, joining.CAPTURES, list_captures, 0.0)
    whole = joining.answer(call.for_data(), joining.CAPTURES, list_captures, 0.0)
    if whole.status != 200:
        return whole
    found = sorted(json.loads(whole.body), key=_taken_s, reverse=True)
    shown = pages.page(
        "captures",
        pages.share_said(whole),
        pages.captures_table(found, call.mount),
    )
    return replace(shown, headers=(*shown.headers, *whole.headers))


def _taken_s(entry: dict[str, Any]) -> float:
    """When; another version may say it in another way."""
    taken_s = entry.get("taken")
    return float(taken_s) if isinstance(taken_s, int | float) else 0.0


def give(call: Call) -> Response:
    """One capture, as it was answered; evidence in either form of a trace."""
    if not call.desk.evidence.has(call.name):
        return found(call, call.name)
    return exhibits.given(call)


def found(call: Call, name: str) -> Response:
    """The capture of this id, of whatever worker, or why it is not given."""
    kept = call.desk.captures.get(name)
    if kept is None:
        return _elsewhere(call, name)
    if not {kept.scope, "admin"} & call.grant.scopes:
        return refusal(call.request, 403, "insufficient_scope")
    return kept.answer


def drop(call: Call) -> Response:
    """Forget a capture: whoever took it may, and an admin."""
    if call.desk.evidence.has(call.name):
        if "admin" not in call.grant.scopes:
            return refusal(call.request, 403, "insufficient_scope")
        call.desk.evidence.drop(call.name)
        return as_json({"dropped": call.name})
    kept = call.desk.captures.get(call.name)
    if kept is None:
        return _elsewhere(call, call.name)
    is_own = bool(kept.owner) and kept.owner == call.grant.token_id
    if not is_own and "admin" not in call.grant.scopes:
        return refusal(call.request, 403, "insufficient_scope")
    call.desk.captures.drop(kept.id)
    return as_json({"dropped": kept.id})


def _elsewhere(call: Call, name: str) -> Response:
    """The answer of the worker that has the capture: its id begins with it."""
    process = name.partition("-")[0]
    answer = joining.forward(call, f"/captures/{name}", process)
    return answer or refusal(call.request, 404, "Unknown capture")
