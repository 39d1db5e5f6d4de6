"""One task of a recording, as plain data."""

from __future__ import annotations

from typing import Any

from stroboscope.formats.timeline import (
    ALIVE,
    EXCEPTION,
    FAILED,
    LABEL,
    LOG,
    OPEN_LEFT,
    OPEN_RIGHT,
    Task,
    Timeline,
)
from stroboscope.tracing.statistics import divided, is_error

#: Regions and moments given of one task; what is more is counted.
ROWS_CAP = 2000


def reference(timeline: Timeline, task: Task) -> dict[str, Any]:
    """How to speak of a task, and to find it again: here, and where traces are shown."""
    trace_id = task.trace_id.hex() if any(task.trace_id) else ""
    span_id = task.span_id.hex() if any(task.span_id) else ""
    return {
        "id": f"{timeline.pid}-{task.serial}",
        "name": timeline.name(task.name),
        "method": timeline.name(task.kind),
        "trace_id": trace_id,
        "span_id": span_id,
        "trace_url": timeline.link(task),
    }


def described(timeline: Timeline, task: Task) -> dict[str, Any]:
    """Everything the recording holds of a task; times in milliseconds of its begin."""
    spans = list(timeline.regions_of(task))
    shares: dict[int | None, float] = {None: 0.0}
    for name, time_ns in divided(spans, task.begin_ns, task.end_ns):
        shares[name] = shares.get(name, 0.0) + time_ns
    notes = [note for note in timeline.notes() if note.task == task.serial]
    labels = [timeline.name(n.name).partition("=") for n in notes if n.kind == LABEL]
    moments = [note for note in notes if note.kind in (LOG, EXCEPTION)]

    def since_ms(time_ns: int) -> float:
        return round((time_ns - task.begin_ns) / 1e6, 3)

    def thread(index: int) -> str:
        tid, name = timeline.threads.get(index, (0, 0))
        return timeline.name(name) or f"thread {tid}"

    parent = f"{timeline.pid}-{task.parent}" if task.parent else ""
    return {
        **reference(timeline, task),
        "parent": parent,
        "began": round(timeline.unix_ns(task.begin_ns) / 1e9, 6),
        "duration_ms": since_ms(task.end_ns),
        "open": opened(task.flags),
        "alive": bool(task.flags & ALIVE),
        "status": task.status,
        "error": is_error(task),
        "labels": {key: value for key, _, value in labels},
        "unaccounted_ms": round(shares.pop(None) / 1e6, 3),
        "time_ms": {
            timeline.name(name or 0): round(time_ns / 1e6, 3)
            for name, time_ns in sorted(shares.items(), key=lambda pair: -pair[1])
        },
        "regions": [
            {
                "name": timeline.name(span.name),
                "at_ms": since_ms(span.begin_ns),
                "duration_ms": round((span.end_ns - span.begin_ns) / 1e6, 3),
                "track": span.track,
                "thread": thread(span.thread),
                "failed": bool(span.flags & FAILED),
                "open": opened(span.flags),
            }
            for span in spans[:ROWS_CAP]
        ],
        "moments": [
            {
                "at_ms": since_ms(note.time_ns),
                "kind": "log" if note.kind == LOG else "exception",
                "name": timeline.name(note.name),
                "text": timeline.text(note) if note.kind == LOG else "",
                "track": note.track,
            }
            for note in moments[:ROWS_CAP]
        ],
        "left_out": max(0, len(spans) - ROWS_CAP) + max(0, len(moments) - ROWS_CAP),
    }


def opened(flags: int) -> str:
    """Which of its ends the recording does not hold: left, right, both or none."""
    sides = [flags & OPEN_LEFT and "left", flags & OPEN_RIGHT and "right"]
    return " and ".join(side for side in sides if side)
