"""What the process says of itself, and what may be switched: JSON and text."""

from __future__ import annotations

import gc
import json
import os
import platform
import time
from collections import Counter
from typing import Any

from stroboscope._clock import duration_s
from stroboscope._core import engine, recording
from stroboscope._http.messages import JSON, Response, refusal
from stroboscope.endpoints import evidence, fencing, native, stalls
from stroboscope.endpoints.call import Call, as_json, one_line
from stroboscope.endpoints.profiles import stacks_asked
from stroboscope.errors import FolderError, KnobConflict, KnobError
from stroboscope.formats import text
from stroboscope.formats.prometheus import CONTENT_TYPE, Family, one, render
from stroboscope.knobs import TTL_DEFAULT_S
from stroboscope.labels import TABLE
from stroboscope.profiles.breath import Breath
from stroboscope.profiles.stacks import Stacks
from stroboscope.stalls import WATCH

#: Longer ids are none of ours; see `auth.tokens.OWNER_CAP`.
ID_CAP = 128


def labels(call: Call) -> Response:
    """The label sets alive now, what the caps refused, and the tenants shown."""
    stats = TABLE.stats()
    return as_json(
        {
            "alive": stats.alive,
            "cap": stats.cap,
            "made": stats.made,
            "overflowed": stats.overflowed,
            "truncated": stats.truncated,
            "failed": stats.failed,
            "tenants": sorted(
                {t for one in call.desk.labellers for t in one.tenants()}
            ),
            "sets": [dict(found.items) for found in stats.sets],
        }
    )


def show_stacks(call: Call) -> Response:
    """Every thread, task and greenlet with its labels: text, or JSON on request."""
    if native.is_wanted(call):
        return native.show(call)
    try:
        found = stacks_asked(call, is_fresh=False).stacks
    except ValueError as error:
        return refusal(call.request, 400, str(error))
    if call.kind == JSON:
        return Response(200, _stacks_json(found).encode(), JSON)
    shown = text.lines(found.blocks(), Breath())
    return Response(200, shown.encode("utf-8", "replace"))


def _stacks_json(stacks: Stacks) -> str:
    """A list with an object of each; beyond `BYTES_CAP` one says how many more."""
    breathe = Breath()
    rows: list[str] = []
    room = text.BYTES_CAP
    for kind, name, state, age_s, labels, frames in stacks.blocks():
        breathe()
        if room < 0:
            rows.append(json.dumps(_truncated(len(stacks) - len(rows))))
            break
        one = {
            "kind": kind,
            "name": name,
            "state": state,
            "age_s": None if age_s is None else round(age_s, 1),
            "labels": dict(labels),
            "frames": [f"{f.function} {f.file}:{f.line}" for f in frames],
        }
        rows.append(json.dumps(one))
        room -= len(rows[-1])
    return f"[{','.join(rows)}]\n"


def _truncated(more: int) -> dict[str, Any]:
    shown = {"name": f"{more} more", "state": "", "age_s": None}
    return {"kind": "[truncated]", **shown, "labels": {}, "frames": []}


def gc_statistics(call: Call) -> Response:
    """The garbage collector's own counts; collects nothing."""
    del call
    return as_json(
        {
            "enabled": gc.isenabled(),
            "count": gc.get_count(),
            "threshold": gc.get_threshold(),
            "frozen": gc.get_freeze_count(),
            "generations": gc.get_stats(),
        }
    )


def gc_collect(call: Call) -> Response:
    """A full collection now; the application stands still for its time."""
    left_s = call.desk.garbage.claim()
    if left_s > 0:
        wait = (("Retry-After", str(int(left_s) + 1)),)
        return refusal(call.request, 429, "collected less than 10 s ago", wait)
    began = time.perf_counter()
    freed = gc.collect()
    took_ms = round((time.perf_counter() - began) * 1000, 3)
    return as_json({"unreachable": freed, "took_ms": took_ms})


def metrics(call: Call) -> Response:
    """Our own counters in Prometheus' text format."""
    desk, info, stats = call.desk, engine.info(), TABLE.stats()
    counters = Counter({k: v for k, v in info.counters.items() if isinstance(v, int)})
    losses = tuple(
        ({"reason": name.removeprefix("lost_")}, float(counters[name]))
        for name in counters
        if name.startswith("lost_")
    )
    answered = tuple(
        ({"endpoint": endpoint, "status": str(status)}, float(count))
        for (endpoint, status), count in sorted(desk.answered.items())
    )
    held = desk.leases.own()
    prefix = "stroboscope_"
    families = [
        Family(
            prefix + "engine_info",
            "gauge",
            "Which engine.",
            (({"kind": info.kind}, 1),),
        ),
        one(prefix + "windows", "gauge", "Windows that sample.", info.windows),
        one(prefix + "samples_total", "counter", "Samples taken.", counters["samples"]),
        Family(prefix + "samples_lost_total", "counter", "Samples lost.", losses),
        one(
            prefix + "cpu_seconds_total",
            "counter",
            "CPU time we used ourselves.",
            engine.own_cpu_ns() / 1e9,
        ),
        Family(
            prefix + "governor_actions_total",
            "counter",
            "What the overhead governor did.",
            (
                ({"action": "slowed"}, desk.governor.slowed),
                ({"action": "stopped"}, desk.governor.stopped),
            ),
        ),
        one(prefix + "label_sets", "gauge", "Label sets alive.", stats.alive),
        one(
            prefix + "label_sets_overflowed_total",
            "counter",
            "Label sets refused by the cap.",
            stats.overflowed,
        ),
        one(
            prefix + "label_failures_total",
            "counter",
            "Requests or labels lost by a failure.",
            stats.failed,
        ),
        *recorder_families(),
        *evidence.families(desk.evidence),
        one(prefix + "lease_held", "gauge", "Exclusive captures.", float(bool(held))),
        Family(prefix + "requests_total", "counter", "Requests answered.", answered),
        one(
            prefix + "auth_throttled_total",
            "counter",
            "Failures answered 429.",
            desk.gate.throttle.refused,
        ),
        one(
            prefix + "requests_paced_total",
            "counter",
            "Requests of one token that came too fast.",
            desk.gate.pace.refused,
        ),
        one(
            prefix + "stack_walks_total",
            "counter",
            "Times all stacks were read.",
            desk.snapshots.walks,
        ),
        Family(prefix + "setting", "gauge", "Knobs in force.", _in_force(call)),
        one(prefix + "captures", "gauge", "Answers kept.", len(desk.captures)),
        one(
            prefix + "capture_bytes",
            "gauge",
            "Bytes of the answers kept.",
            sum(kept.bytes for kept in desk.captures.all()),
        ),
        one(prefix + "audit_records_total", "counter", "Written.", desk.audit.written),
        one(
            prefix + "audit_records_dropped_total",
            "counter",
            "Audit records that could not be written.",
            desk.audit.dropped,
        ),
        *stalls.families(),
        *fencing.families(desk.fleet),
    ]
    return Response(200, render(families).encode(), CONTENT_TYPE)


def _in_force(call: Call) -> tuple[tuple[dict[str, str], float], ...]:
    """The value of every knob that is a number."""
    values = ((knob.name, call.desk.knobs.get(knob.name)) for knob in call.desk.knobs)
    return tuple(
        ({"name": name}, float(value))
        for name, value in values
        if isinstance(value, (bool, int, float))
    )


def recorder_families() -> list[Family]:
    """What the recorder has taken in, and what it had to refuse."""
    info = recording.trace_info() if recording.AVAILABLE else {}
    name = "stroboscope_trace_"
    refused = tuple(
        ({"table": table}, float(info.get(f"{table}_refused", 0)))
        for table in ("names", "tasks", "threads")
    )
    return [
        one(name + "events_total", "counter", "Recorded.", info.get("events", 0)),
        Family(name + "refused_total", "counter", "Its table was full.", refused),
    ]


def settings(call: Call) -> Response:
    """Every knob: value, baseline, seconds until it returns."""
    return _described(call)


def change_settings(call: Call) -> Response:
    """Switch knobs for a while; all of the change or none of it.

    The body is JSON: knobs with their values (null returns to the baseline), or
    `preset`, and `ttl`: `"10m"`, or `"none"` until changed again.
    """
    knobs = call.desk.knobs
    try:
        wanted = json.loads(call.request.body)
        if not isinstance(wanted, dict):
            raise KnobError("the body is no JSON object")
        ttl = wanted.pop("ttl", None)
        ttl_s = (
            TTL_DEFAULT_S if ttl is None else None if ttl == "none" else duration_s(ttl)
        )
        preset = wanted.pop("preset", None)
        values = {} if preset is None else knobs.preset(str(preset))
        held = call.desk.agreement.change({**values, **wanted}, ttl_s, _version(call))
    except KnobConflict as error:
        return refusal(call.request, 409, str(error))
    except (ValueError, RecursionError) as error:  # KnobError is one
        return refusal(call.request, 400, one_line(error))
    call.desk.watch_knobs()
    return _described(call, holds_for=held)


def selfcheck(call: Call) -> Response:
    """What `stroboscope doctor` says, of this process."""
    info = engine.info()
    owner = {1: "ours", 0: "free", -1: "another handler"}
    sigprof = owner.get(info.counters.get("sigprof", 0), "free")
    return as_json(
        {
            "engine": info.kind,
            "reason": info.reason,
            "sigprof": sigprof,
            "healthy": info.kind == "native" and sigprof != "another handler",
            "python": platform.python_version(),
            "process": os.getpid(),
            "keys": len(call.desk.settings.keys),
            "stall_watch": WATCH.failure or ("on" if WATCH.is_on else "off"),
            "rundir": _rundir(call),
            "samples_left": _left(call),
            "evidence": call.desk.evidence.state(),
            "own_cpu_share": round(call.desk.governor.last, 5),
            "fleet": fencing.described(call.desk.fleet),
            "worker_model": "this worker answers for itself",
        }
    )


def _rundir(call: Call) -> str:
    """Whether workers can meet and leave something for each other, or why not."""
    members = call.desk.members
    if members is None:
        return "off"
    try:
        members.processes()
        members.folder.check()
    except FolderError as error:
        return str(error)
    return "on"


def _left(call: Call) -> str:
    """Whether others could see who holds this interpreter, or why not."""
    leaving = call.desk.leaving
    if leaving is None:
        return "off: workers do not meet"
    if engine.info().counters.get("sigprof", 0) < 0:
        return "off: SIGPROF is another handler's"
    return leaving.failure or "on"


def revoke(call: Call) -> Response:
    """Refuse a token or link by its `id`, or all that were issued until now.

    For all hosts of the service where they share a Redis, or all workers of the host, as
    long as the run directory is there; the setting `revoked` holds for ever.
    """
    revocations, agreement = call.desk.gate.revocations, call.desk.agreement
    try:
        wanted = json.loads(call.request.body)
        if wanted == {"before": "now"}:
            held = agreement.revoke_before(call.desk.clock.time_s())
        elif isinstance(wanted, dict) and isinstance(wanted.get("id"), str):
            held = agreement.revoke(wanted["id"][:ID_CAP])
        else:
            raise KnobError('allowed: {"id": "..."} or {"before": "now"}')
    except (ValueError, RecursionError) as error:
        return refusal(call.request, 400, one_line(error))
    answer = as_json(
        {
            "revoked": len(revocations),
            "not_before": revocations.not_before_s,
            "holds_for": held,
        }
    )
    return fencing.said(call, answer)


def _described(call: Call, **more: str) -> Response:
    knobs = call.desk.knobs
    described = knobs.describe()
    body: dict[str, Any] = {"settings": described, "version": knobs.version, **more}
    return fencing.said(call, as_json(body, ETag=f'"{knobs.version}"'))


def _version(call: Call) -> int | None:
    sent = call.request.all("if-match")
    if not sent or sent == ["*"]:
        return None
    digits = sent[0].strip().strip('"') if len(sent) == 1 else ""
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise KnobConflict("If-Match is no version of these settings")
    return int(digits)
