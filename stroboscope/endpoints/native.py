"""Stacks that go on into C: `/debug/stacks?native=1`, and whether profiles can have it."""

from __future__ import annotations

from typing import Any

from stroboscope._http.messages import JSON, Response, refusal
from stroboscope._http.parameters import first
from stroboscope.endpoints.call import Call, as_json
from stroboscope.endpoints.fencing import fenced
from stroboscope.endpoints.leases import LeaseTaken
from stroboscope.errors import EngineUnavailable
from stroboscope.profiles import native_stacks
from stroboscope.profiles.native_stacks import NativeStack

NO_WALL = "native frames are in the CPU profile only: /debug/pprof/profile?native=1"


def is_wanted(call: Call) -> bool:
    """Whether `native=1` was asked for."""
    return first(call.request.query, "native") == "1"


def show(call: Call) -> Response:
    """Every thread with its C frames. The process stands still meanwhile.

    For an admin only; one at a time, and once in ten seconds, whoever asks. Without
    labels: what a thread is stopped in and what its context says are not read at the
    same instant, and a label that may be another request's is worse than none.
    """
    request, desk = call.request, call.desk
    if "admin" not in call.grant.scopes:
        return refusal(request, 403, "insufficient_scope")
    try:
        native_stacks.command()
        with desk.leases.hold(
            "native stack dump", call.grant.token_id, 10, is_peer=call.is_peer
        ) as lease:
            left_s = desk.pauses.claim()
            if left_s > 0:
                wait = (("Retry-After", str(int(left_s) + 1)),)
                return refusal(request, 429, "native stacks: once in 10 s", wait)
            found = native_stacks.snapshot()
    except LeaseTaken as taken:
        wait = (("Retry-After", str(taken.retry_after_s)),)
        return refusal(request, 429, f"a {taken.kind} is being taken", wait)
    except EngineUnavailable as error:
        return refusal(request, 501, str(error))
    return fenced(call, lease, _answer(call, found))


def _answer(call: Call, found: list[NativeStack]) -> Response:
    if call.kind == JSON:
        return as_json([_described(one) for one in found])
    lines = []
    for one in found:
        lines.append(f"thread {one.name} {_state(one)}")
        lines += [f"    {_place(*frame)}" for frame in one.frames]
        lines.append("")
    return Response(200, "\n".join(lines).encode("utf-8", "replace"))


def _described(one: NativeStack) -> dict[str, Any]:
    return {
        "kind": "thread",
        "name": one.name,
        "state": _state(one),
        "labels": {},
        "frames": [_place(*frame) for frame in one.frames],
    }


def _state(one: NativeStack) -> str:
    state = "running" if one.is_active else "idle"
    return f"{state}, holds the GIL" if one.has_gil else state


def _place(function: str, file: str, line: int) -> str:
    return f"{function} {file}:{line}" if line else f"{function} {file}"
