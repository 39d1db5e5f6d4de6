"""Execution traces: one at a time, of at most some seconds. Blocks meanwhile."""

from __future__ import annotations

from stroboscope._http.messages import JSON, PROFILE, Response, refusal
from stroboscope._http.parameters import first
from stroboscope.endpoints.call import Call
from stroboscope.endpoints.fencing import fenced
from stroboscope.endpoints.leases import LeaseTaken
from stroboscope.endpoints.profiles import (
    clamp,
    killed_after_s,
    taken_response,
    too_long,
)
from stroboscope.errors import EngineUnavailable
from stroboscope.profiles.breath import Breath
from stroboscope.tracing.captures import FORMATS

SECONDS_DEFAULT = 1.0


def trace(call: Call) -> Response:
    """Tasks, regions and logs of the next seconds, for Perfetto; `format=json`."""
    desk, request = call.desk, call.request
    form = first(request.query, "format") or FORMATS[0]
    if form not in FORMATS:
        return refusal(request, 400, f"format: allowed are {', '.join(FORMATS)}")
    if refused := too_long(call, _cap_s(call)):
        return refused
    seconds, is_clamped = _seconds(call)
    facts = (("clamped", f"seconds={seconds:g}"),) if is_clamped else ()

    try:
        owner = call.grant.token_id
        with desk.leases.hold("trace", owner, seconds, is_peer=call.is_peer) as lease:

            def is_cancelled() -> bool:
                return request.cancellation.cancelled or lease.is_over()

            body = desk.tracer(seconds, is_cancelled, form, facts, Breath())
    except LeaseTaken as taken:
        return taken_response(call, taken)
    except EngineUnavailable as error:
        return refusal(request, 503, f"Could not enable tracing: {error}")
    kind, name = (JSON, "trace.json") if form == "json" else (PROFILE, "trace")
    named = ("Content-Disposition", f'attachment; filename="{name}"')
    answer = Response(200, body, kind, (named, *clamp(seconds, is_clamped)))
    return fenced(call, lease, answer)


def capture_s(call: Call) -> float:
    """For how many seconds a trace is taken here."""
    return _seconds(call)[0]


def _seconds(call: Call) -> tuple[float, bool]:
    """And whether a cap cut them."""
    try:
        wanted = float(first(call.request.query, "seconds") or SECONDS_DEFAULT)
    except ValueError:
        wanted = SECONDS_DEFAULT
    wanted = wanted if 0 < wanted < 1e9 else SECONDS_DEFAULT
    seconds = min(wanted, _cap_s(call))
    return seconds, wanted > seconds


def _cap_s(call: Call) -> float:
    return min(call.desk.settings.trace_seconds_cap, killed_after_s(call))
