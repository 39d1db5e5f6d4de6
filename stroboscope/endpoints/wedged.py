"""What can be said of a worker that does not answer: the samples it left, and their age.

Its interpreter may be held, so that none of its threads of ours can run; its signal
handler still sees where.
"""

from __future__ import annotations

import json
import time
from typing import Any

from stroboscope._http.messages import JSON, TEXT, Response
from stroboscope.endpoints.call import Call
from stroboscope.endpoints.parts import Part
from stroboscope.formats.samples import Left
from stroboscope.workers.leaving import left_by

#: Samples of each thread that are shown, the newest.
_SHOWN = 2


def part_of(call: Call, process: int, failure: str) -> Part:
    """Its last samples as `/debug/stacks` would show its stacks."""
    members = call.desk.members
    found = _newest(left_by(members.folder, process)) if members is not None else []
    if call.kind == JSON:
        body = json.dumps([_plain(one) for one in found], indent=1)
        return Part(process, body.encode(), JSON)
    if not found:
        lines = [f"worker {process} {failure}; it has left no samples"]
    else:
        age = f"its last samples, {_age_s(found[0]):.1f} s old"
        lines = [f"worker {process} {failure}; {age}", ""]
    for one in found:
        lines += [_head(one), *_frames(one), ""]
    return Part(process, ("\n".join(lines) + "\n").encode(), TEXT)


def answer_for(call: Call, process: int, failure: str, header: str) -> Response:
    """The same as an answer of its own: of one worker, none answered."""
    part = part_of(call, process, failure)
    return Response(200, part.body, part.content_type, ((header, "0/1"),))


def _newest(found: list[Left]) -> list[Left]:
    counts: dict[int, int] = {}
    kept = []
    for one in found:
        counts[one.tid] = counts.get(one.tid, 0) + 1
        if counts[one.tid] <= _SHOWN:
            kept.append(one)
    return kept


def _age_s(one: Left) -> float:
    return max(0.0, (time.monotonic_ns() - one.time_ns) / 1e9)


def _state(one: Left) -> str:
    return "held the interpreter" if one.is_holder else "on CPU"


def _whose(one: Left) -> str:
    if one.endpoint:
        return f"endpoint={one.endpoint}"
    return f"request {one.serial}, label not known" if one.serial else ""


def _head(one: Left) -> str:
    name = "main thread" if one.is_main else "thread"
    parts = (name, str(one.tid), f"{_state(one)} {_age_s(one):.1f} s ago", _whose(one))
    return " ".join(filter(None, parts))


def _frames(one: Left) -> list[str]:
    return [f"    {f.function} {f.file}:{f.line}" for f in one.frames]


def _plain(one: Left) -> dict[str, Any]:
    return {
        "kind": "sample",
        "name": "MainThread" if one.is_main else f"thread {one.tid}",
        "state": _state(one),
        "age_s": round(_age_s(one), 3),
        "labels": {"endpoint": one.endpoint} if one.endpoint else {},
        "serial": one.serial,
        "frames": [line.strip() for line in _frames(one)],
    }
