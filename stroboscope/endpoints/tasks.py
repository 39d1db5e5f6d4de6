"""The timeline of one task, by any of its ids. Blocks for what it reads."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from stroboscope._http.messages import JSON, PROFILE, Response, refusal
from stroboscope._http.parameters import first
from stroboscope.endpoints import taskpages
from stroboscope.endpoints.blackboxes import adopt_dead
from stroboscope.endpoints.call import Call
from stroboscope.endpoints.evidence import Piece
from stroboscope.endpoints.joining import HEADER, ask_all
from stroboscope.endpoints.parts import Part, read_object
from stroboscope.endpoints.tasktypes import is_page
from stroboscope.errors import (
    RecordingFormatError,
)
from stroboscope.formats import perfetto
from stroboscope.formats.timeline import Timeline
from stroboscope.profiles.breath import Breath
from stroboscope.tracing import onetask, recorder
from stroboscope.tracing.captures import FORMATS, encode
from stroboscope.tracing.kept import KEPT, Wanted

#: Tasks of one trace that are shown.
TASKS_CAP = 100
#: Pieces of evidence that are read to find a task.
EVIDENCE_CAP = 8
_SERIAL = re.compile(r"(?:([0-9]{1,10})-)?([0-9]{1,20})", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)


def show_task(call: Call) -> Response:
    """All that is held of the tasks an id means, in any worker of this host."""
    form = first(call.request.query, "format") or ""
    if form and form not in FORMATS:
        return refusal(call.request, 400, f"format: allowed are {', '.join(FORMATS)}")
    wanted, process = _wanted(call.name)
    if wanted is None:
        return refusal(call.request, 404, "Unknown task")
    is_here = process in (0, call.desk.process)
    lines = _timelines(call, wanted, Breath()) if is_here else []
    asks = not call.is_peer and not (process and is_here) and not wanted.serial
    asks = asks or (bool(process) and not is_here and not call.is_peer)
    parts, failed = (
        ask_all(call.for_data(), f"/tasks/{call.name}") if asks else ([], [])
    )
    failed = [one for one in failed if one.status != 404]
    if not lines and not parts and not call.is_peer:
        lines = _from_evidence(call, wanted, process)
    if form:
        body = _encoded(lines, parts, form)
    else:
        tasks = [
            onetask.described(line, task) for line in lines for task in line.tasks()
        ]
        found = [one for part in parts for one in _tasks(part)]
        tasks = sorted([*tasks, *found], key=lambda one: float(one["began"]))
        body = json.dumps({"tasks": tasks[:TASKS_CAP]}).encode() if tasks else b""
    if not body:
        return refusal(call.request, 404, "no recording holds this task any more")
    answer = _answered(call, form, body)
    return answer if call.is_peer else _counted(answer, 1 + len(parts), len(failed))


def _answered(call: Call, form: str, body: bytes) -> Response:
    if not form:
        if is_page(call):
            return taskpages.task_page(call, json.loads(body)["tasks"])
        return Response(200, body + b"\n", JSON)
    kind, name = (JSON, "task.json") if form == "json" else (PROFILE, "task.pftrace")
    named = ("Content-Disposition", f'attachment; filename="{name}"')
    return Response(200, body, kind, (named,))


def _wanted(name: str) -> tuple[Wanted | None, int]:
    """What an id means, and the process it names; 0 for none."""
    is_hex = _HEX.fullmatch(name) is not None
    if is_hex and len(name) == 32:
        return Wanted(trace_id=bytes.fromhex(name)), 0
    if is_hex and len(name) == 16:
        return Wanted(span_id=bytes.fromhex(name)), 0
    found = _SERIAL.fullmatch(name)
    if found is None or not 0 < int(found[2]) < 1 << 64:
        return None, 0
    return Wanted(serial=int(found[2])), int(found[1] or 0)


def _timelines(call: Call, wanted: Wanted, breathe: Breath) -> list[Timeline]:
    """What is held of the tasks meant, each task once.

    From where it is whole, or else from the newest recording.
    """
    block = recorder.snapshot()
    newest = [] if block is None else [Timeline.read(block)]
    chosen: dict[int, tuple[int, int, Timeline]] = {}
    for age, line in enumerate([*newest, *KEPT.find(wanted)]):
        for serial in wanted.within(line):
            task = line.task(serial)
            rank = (bin(task.flags & 3).count("1") if task else 9, age)
            if serial not in chosen or rank < chosen[serial][:2]:
                chosen[serial] = (*rank, line)
            breathe()
    by_age: dict[int, tuple[Timeline, set[int]]] = {}
    for serial, (_, age, line) in chosen.items():
        by_age.setdefault(age, (line, set()))[1].add(serial)
    fullest_first = sorted(by_age.values(), key=lambda pair: -len(pair[1]))
    return [_linked(call, line).only(serials) for line, serials in fullest_first]


def _from_evidence(call: Call, wanted: Wanted, process: int) -> list[Timeline]:
    """What evidence on this host's disk holds of the tasks meant: one piece of it.

    First what was kept because of them, then the newest.
    """
    if wanted.serial:
        process = process or call.desk.process
    adopt_dead(call.desk)
    evidence = call.desk.evidence
    pieces = evidence.pieces()
    pieces.sort(key=lambda piece: not _is_because_of(piece, wanted, process))
    for piece in pieces[:EVIDENCE_CAP]:
        whole = evidence.get(piece.id)
        try:
            line = whole.timeline() if whole is not None else None
        except RecordingFormatError:
            continue
        if line is None or (process and line.pid != process):
            continue
        if serials := wanted.within(line):
            return [_linked(call, line).only(serials)]
    return []


def _is_because_of(piece: Piece, wanted: Wanted, process: int) -> bool:
    about = piece.about
    if wanted.serial:
        serials = (about.get("task"), *about.get("tasks", ()))
        return wanted.serial in serials and about.get("pid") == process
    ids = {about.get("trace_id"), about.get("span_id"), *about.get("traces", ())}
    return bool({wanted.trace_id.hex(), wanted.span_id.hex()} & (ids - {"", None}))


def _linked(call: Call, line: Timeline) -> Timeline:
    return replace(line, trace_url=call.desk.settings.trace_url)


def _encoded(lines: list[Timeline], parts: list[Part], form: str) -> bytes:
    """One file: Perfetto's join end to end, Chrome's by their events.

    Of one process there is one recording in a file: that with most of the tasks.
    """
    bodies = [encode(line, form) for line in lines[:1]]
    bodies += [part.body for part in parts]
    if form != "json":
        bodies.sort(key=perfetto.taken_ns)
        return b"".join(bodies)
    if len(bodies) < 2:
        return b"".join(bodies)
    read = [read_object(Part(0, body, JSON)) or {} for body in bodies]
    events = [one for each in read for one in each.get("traceEvents", ())]
    return json.dumps({"displayTimeUnit": "ns", "traceEvents": events}).encode()


def _tasks(part: Part) -> list[dict[str, Any]]:
    """Those another worker knows; none where it says so in a way of another version."""
    found = (read_object(part) or {}).get("tasks", ())
    return [
        one
        for one in found
        if isinstance(one, dict) and isinstance(one.get("began"), int | float)
    ]


def _counted(answer: Response, good: int, failed: int) -> Response:
    share = (HEADER, f"{good}/{good + failed}")
    return replace(answer, headers=(*answer.headers, share))
