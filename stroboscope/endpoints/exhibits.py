"""Evidence as captures are: listed with them, given out in either form of a trace."""

from __future__ import annotations

from typing import Any

from stroboscope._http.messages import JSON, PROFILE, Response, refusal
from stroboscope._http.parameters import first
from stroboscope.endpoints import evidence
from stroboscope.endpoints.call import Call
from stroboscope.endpoints.captures import Capture
from stroboscope.endpoints.evidence import Piece
from stroboscope.errors import RecordingFormatError
from stroboscope.profiles.breath import Breath
from stroboscope.tracing.captures import FORMATS, encode

#: What a listing tells of evidence beside its labels, and what the first slice says.
_SHOWN = ("rule", "trace_id", "span_id", "pid", "task")
_FACTS = ("rule", "endpoint", "reason", "trace_id", "span_id", "task")


def kept_here(call: Call) -> list[Capture]:
    """Captures of this process, and evidence of all, that this token may read."""
    seen = call.desk.captures.seen_by(call.grant.scopes)
    if {evidence.SCOPE, "admin"} & call.grant.scopes:
        seen += map(_as_capture, call.desk.evidence.pieces())
    return sorted(seen, key=lambda one: one.taken_s, reverse=True)


def described(one: Capture, call: Call) -> dict[str, Any]:
    """A capture as JSON shows it; who took it, by the id of the token."""
    return {
        "id": one.id,
        "kind": one.kind,
        "endpoint": call.mount + one.endpoint,
        "parameters": dict(one.parameters),
        "reason": one.reason,
        "token_id": one.owner,
        "bytes": one.bytes,
        "taken": round(one.taken_s, 3),
        "expires_in": round(one.ends_s - call.desk.clock.time_s(), 1),
        "url": f"{call.mount}/captures/{one.id}",
    }


def given(call: Call) -> Response:
    """A piece of evidence, as a trace of the `format` asked for."""
    if not {evidence.SCOPE, "admin"} & call.grant.scopes:
        return refusal(call.request, 403, "insufficient_scope")
    form = first(call.request.query, "format") or FORMATS[0]
    if form not in FORMATS:
        return refusal(call.request, 400, f"format: allowed are {', '.join(FORMATS)}")
    piece = call.desk.evidence.get(call.name)
    if piece is None:
        return refusal(call.request, 404, "Unknown capture")
    facts = [(name, str(piece.about.get(name, ""))) for name in _FACTS]
    try:
        body = encode(piece.timeline(), form, facts, Breath())
    except RecordingFormatError as error:
        return refusal(call.request, 503, f"the evidence cannot be read: {error}")
    kind, name = (JSON, "trace.json") if form == "json" else (PROFILE, "trace")
    named = ("Content-Disposition", f'attachment; filename="{name}"')
    return Response(200, body, kind, (named,))


def _as_capture(piece: Piece) -> Capture:
    """Evidence as captures are listed; its labels and ids are its parameters."""
    about = piece.about
    told = {name: str(about[name]) for name in _SHOWN if about.get(name)}
    labels = about.get("labels")
    told |= (
        {str(k): str(v) for k, v in labels.items()} if isinstance(labels, dict) else {}
    )
    return Capture(
        piece.id,
        piece.kind,
        "/trace",
        Response(200, b""),
        scope=evidence.SCOPE,
        parameters=told,
        reason=piece.reason,
        is_held=True,
        taken_s=piece.taken_s,
        ends_s=piece.taken_s + evidence.AGE_S,
        file_bytes=piece.file_bytes,
    )
