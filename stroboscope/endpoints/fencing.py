"""What answers say of the fleet: of it, and of the lease they were made under."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from stroboscope._http.messages import Response, refusal
from stroboscope.endpoints.call import Call
from stroboscope.endpoints.captures import HEADER as CAPTURE
from stroboscope.endpoints.fleet import HEADER, Fleet
from stroboscope.endpoints.leases import Lease
from stroboscope.formats.prometheus import Family


def fenced(call: Call, lease: Lease, answer: Response) -> Response:
    """The answer made under a lease whose block has ended.

    Refused when another had the lease before that end: it stood still meanwhile.
    """
    standing = lease.standing
    if not standing.said or answer.status != 200:
        return answer
    said = (HEADER, standing.said)
    if not standing.is_lost:
        return replace(answer, headers=(*answer.headers, said))
    call.desk.captures.drop(dict(answer.headers).get(CAPTURE, ""))
    text = f"another {lease.kind} began before this one had ended"
    return refusal(call.request, 503, text, (("Retry-After", "1"), said))


def said(call: Call, answer: Response) -> Response:
    """An answer about knobs or revocations; where there is a fleet, whether it is there."""
    fleet = call.desk.fleet
    if fleet is None:
        return answer
    return replace(answer, headers=(*answer.headers, *fleet.headers()))


def described(fleet: Fleet | None) -> str:
    """For the doctor's report."""
    if fleet is None:
        return "off"
    said = f"unreachable: {fleet.failure}" if fleet.failure else "reachable"
    refused = fleet.seal.refused
    return f"{said}; ignored, not signed with our keys: {refused}" if refused else said


def families(fleet: Fleet | None) -> list[Family]:
    """Empty families where each host is for itself."""

    def values(
        of: Callable[[Fleet], float],
    ) -> tuple[tuple[dict[str, str], float], ...]:
        return () if fleet is None else (({}, of(fleet)),)

    prefix = "stroboscope_fleet_"
    return [
        Family(
            prefix + "reachable",
            "gauge",
            "Whether Redis is there.",
            values(lambda one: float(not one.failure)),
        ),
        Family(
            prefix + "commands_total",
            "counter",
            "Commands sent to Redis.",
            values(lambda one: one.calls),
        ),
        Family(
            prefix + "failures_total",
            "counter",
            "Times Redis was not to be reached.",
            values(lambda one: one.failures),
        ),
        Family(
            prefix + "refused_total",
            "counter",
            "Entries in Redis ignored, not signed with our keys.",
            values(lambda one: one.seal.refused),
        ),
        Family(
            prefix + "leases_lost_total",
            "counter",
            "Captures refused, their lease another's by then.",
            values(lambda one: one.leases_lost),
        ),
    ]
