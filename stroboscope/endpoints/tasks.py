"""Tasks by type, the living ones, and the timeline of one. Blocks for what it reads."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from stroboscope._http.messages import HTML, JSON, PROFILE, Response, refusal
from stroboscope._http.parameters import first, without
from stroboscope.endpoints import taskpages
from stroboscope.endpoints.call import Call, as_json
from stroboscope.endpoints.evidence import Piece
from stroboscope.endpoints.joining import HEADER, ask_all
from stroboscope.endpoints.parts import Part
from stroboscope.errors import (
    EngineUnavailable,
    RecordingFormatError,
    WindowsExhausted,
)
from stroboscope.formats import perfetto
from stroboscope.formats.timeline import ALIVE, OPEN_RIGHT, Task, Timeline
from stroboscope.profiles.breath import Breath
from stroboscope.profiles.cpu import collect_cpu
from stroboscope.tracing import live, onetask, recorder
from stroboscope.tracing.captures import FORMATS, encode
from stroboscope.tracing.kept import KEPT, Wanted
from stroboscope.tracing.statistics import BOUNDS_S, TaskType, by_type

#: Living tasks that are listed, oldest first, and types; the numbers say how many more.
LIVE_CAP = TYPES_CAP = 200
#: Tasks of one trace that are shown.
TASKS_CAP = 100
#: Pieces of evidence that are read to find a task.
EVIDENCE_CAP = 8
_SERIAL = re.compile(r"(?:([0-9]{1,10})-)?([0-9]{1,20})", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)

_NO_CPU = "not known: ask with seconds=, then CPU is sampled meanwhile"


def seconds_of(call: Call) -> float:
    """For how long CPU is sampled: not at all, unless it is asked for."""
    text = first(call.request.query, "seconds") or "0"
    try:
        wanted = float(text)
    except ValueError:
        return 0.0
    cap_s = call.desk.settings.trace_seconds_cap
    return min(wanted, cap_s) if 0 < wanted < 1e9 else 0.0


def show_tasks(call: Call) -> Response:
    """Every type of task with where its time went, and the living ones."""
    try:
        own = _statistics(call)
    except WindowsExhausted as error:
        wait = (("Retry-After", str(error.retry_after_s)),)
        return refusal(call.request, 429, "cpu profiling already in use", wait)
    except EngineUnavailable as error:
        return refusal(call.request, 503, str(error))
    if not _is_page(call):
        return as_json(own)
    parts, failed = ask_all(_for_data(call), "/tasks")
    found = [own, *_read(parts)]
    missing = [f"worker {one.process}: {one.failure or one.status}" for one in failed]
    page = taskpages.types_page(call, found, missing)
    return _counted(page, len(found), len(failed))


def show_task(call: Call) -> Response:
    """All that is held of the tasks an id means, in any worker of this host."""
    form = first(call.request.query, "format") or ""
    if form and form not in FORMATS:
        return refusal(call.request, 400, f"format: allowed are {', '.join(FORMATS)}")
    wanted, process = _wanted(call.name)
    if wanted is None:
        return refusal(call.request, 404, "Unknown task")
    is_here = process in (0, os.getpid())
    lines = _timelines(call, wanted, Breath()) if is_here else []
    asks = not call.is_peer and not (process and is_here) and not wanted.serial
    asks = asks or (bool(process) and not is_here and not call.is_peer)
    parts, failed = (
        ask_all(_for_data(call), f"/tasks/{call.name}") if asks else ([], [])
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
        found = [one for each in _read(parts) for one in each.get("tasks", ())]
        tasks = sorted([*tasks, *found], key=lambda one: float(one["began"]))
        body = json.dumps({"tasks": tasks[:TASKS_CAP]}).encode() if tasks else b""
    if not body:
        return refusal(call.request, 404, "no recording holds this task any more")
    answer = _answered(call, form, body)
    return answer if call.is_peer else _counted(answer, 1 + len(parts), len(failed))


def _answered(call: Call, form: str, body: bytes) -> Response:
    if not form:
        if _is_page(call):
            return taskpages.task_page(call, json.loads(body)["tasks"])
        return Response(200, body + b"\n", JSON)
    kind, name = (JSON, "task.json") if form == "json" else (PROFILE, "task.pftrace")
    named = ("Content-Disposition", f'attachment; filename="{name}"')
    return Response(200, body, kind, (named,))


def _statistics(call: Call) -> dict[str, Any]:
    breathe = Breath()
    seconds, from_ns, cpu = seconds_of(call), 0, None
    if seconds:
        from_ns = time.monotonic_ns()
        cpu = _cpu_by_type(call, seconds)
    block = recorder.snapshot()
    if block is None:
        return {"pid": os.getpid(), "recorder": None, "types": [], "live": []}
    line = _linked(call, Timeline.read(block))
    from_ns = max(from_ns, line.from_ns)
    covered_s = max(line.to_ns - from_ns, 1) / 1e9
    types = by_type(line, from_ns, breathe)
    alive = [task for task in line.tasks() if task.flags & ALIVE]
    elsewhere_s = None
    if cpu is not None:
        known = {(one.method, one.name) for one in types}
        elsewhere_s = sum(s for key, s in cpu.items() if key not in known)
    return {
        "pid": os.getpid(),
        "recorder": {
            "from": round(line.unix_ns(from_ns) / 1e9, 3),
            "seconds": round(covered_s, 3),
            "events": line.events,
            "lost": line.lost,
            "torn": line.torn,
        },
        "bounds_s": BOUNDS_S,
        "types": [
            _described(call, line, one, covered_s, cpu) for one in types[:TYPES_CAP]
        ],
        "types_left_out": max(0, len(types) - TYPES_CAP),
        "live": _living(call, line, alive[:LIVE_CAP], breathe),
        "live_left_out": max(0, len(alive) - LIVE_CAP),
        "cpu_of_others_s": None if elsewhere_s is None else round(elsewhere_s, 4),
        "cpu": _NO_CPU if cpu is None else f"sampled for {seconds:g} s",
    }


def _described(
    call: Call,
    line: Timeline,
    one: TaskType,
    covered_s: float,
    cpu: dict[tuple[str, str], float] | None,
) -> dict[str, Any]:
    total_ns = one.time_ns or 1
    cpu_s = None if cpu is None else round(cpu.get((one.method, one.name), 0.0), 4)
    slowest = []
    for duration_ns, serial in sorted(one.slowest, reverse=True):
        task = line.task(serial)
        if task is not None:
            told = onetask.reference(line, task)
            told["url"] = f"{call.mount}/tasks/{told['id']}"
            slowest.append({**told, "duration_ms": round(duration_ns / 1e6, 3)})
    names = ("p50_ms", "p90_ms", "p99_ms", "max_ms")
    found = one.quantiles_ns(0.5, 0.9, 0.99, 1.0)
    return {
        "name": one.name,
        "method": one.method,
        "alive": one.alive,
        "ended": one.ended,
        "cut": one.cut,
        "errors": one.errors,
        "per_second": round(one.ended / covered_s, 3),
        "latency": {
            "counts": one.histogram(),
            **{n: round(ns / 1e6, 3) for n, ns in zip(names, found, strict=False)},
        },
        "time_s": round(one.time_ns / 1e9, 6),
        "regions": [
            {
                "name": name,
                "count": region.count,
                "failed": region.failed,
                "share": round(region.time_ns / total_ns, 4),
            }
            for name, region in sorted(
                one.regions.items(), key=lambda pair: -pair[1].time_ns
            )
        ],
        "unaccounted": round(one.unaccounted_ns / total_ns, 4),
        "cpu_s": cpu_s,
        "waiting_s": None
        if cpu_s is None
        else round(max(0.0, one.time_ns / 1e9 - cpu_s), 4),
        "slowest": slowest,
    }


def _living(
    call: Call, line: Timeline, alive: list[Task], breathe: Breath
) -> list[dict[str, Any]]:
    stacks = live.stacks_of({t.serial for t in alive}, call.desk.loops(), breathe)
    found = []
    for task in alive:
        inner = [s for s in line.spans_of(task) if s.flags & OPEN_RIGHT]
        told = onetask.reference(line, task)
        told |= {
            "url": f"{call.mount}/tasks/{told['id']}",
            "age_s": round((line.to_ns - task.begin_ns) / 1e9, 3),
            "region": line.name(inner[-1].name) if inner else "",
            "region_age_s": round((line.to_ns - inner[-1].begin_ns) / 1e9, 3)
            if inner
            else None,
            "stacks": stacks.get(task.serial, []),
        }
        found.append(told)
    return found


def _cpu_by_type(call: Call, seconds: float) -> dict[tuple[str, str], float]:
    """CPU seconds by method and name of a request's task, by the labels of samples."""
    desk = call.desk
    profile = collect_cpu(
        seconds,
        lambda window: call.request.cancellation.on_cancel(window.cancel),
        hz=desk.knobs.get("cpu_hz"),
        windows=desk.settings.windows,
        each=desk.governor.look,
    )
    prefix = desk.settings.label_prefix
    found: dict[tuple[str, str], float] = {}
    for sample in profile.samples:
        labels = dict(sample.labels)
        endpoint = labels.get(prefix + "endpoint")
        name = "" if endpoint is None else f"http:{endpoint}"
        key = labels.get(prefix + "method", ""), name
        found[key] = found.get(key, 0.0) + sample.values[1] / 1e9
    return found


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
        process = process or os.getpid()
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
        return bool(about.get("task") == wanted.serial and about.get("pid") == process)
    ids = {about.get("trace_id"), about.get("span_id")}
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
    events = [one for body in bodies for one in json.loads(body)["traceEvents"]]
    return json.dumps({"displayTimeUnit": "ns", "traceEvents": events}).encode()


def _read(parts: Iterable[Part]) -> list[dict[str, Any]]:
    return [json.loads(part.body) for part in parts if part.content_type == JSON]


def _is_page(call: Call) -> bool:
    return HTML.partition(";")[0] in (call.request.header("accept") or "")


def _for_data(call: Call) -> Call:
    """The same call of somebody who wants JSON, as it is known now."""
    others = [pair for pair in call.request.headers if pair[0].lower() != "accept"]
    headers = (*others, ("accept", JSON))
    query = without(call.request.query, ("seconds",))
    asked = replace(call.request, headers=headers, query=query)
    return replace(call, request=asked)


def _counted(answer: Response, good: int, failed: int) -> Response:
    share = (HEADER, f"{good}/{good + failed}")
    return replace(answer, headers=(*answer.headers, share))
