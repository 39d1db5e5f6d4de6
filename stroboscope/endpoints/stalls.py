"""Stalls, for people and machines, and their numbers for Prometheus."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from stroboscope._http.messages import JSON, Response
from stroboscope.endpoints.call import Call, as_json
from stroboscope.formats.profile import Frame
from stroboscope.formats.prometheus import Family
from stroboscope.stalls import WATCH, Stall
from stroboscope.stalls.records import BOUNDS_S
from stroboscope.stalls.telling import described

#: Frames of a stack that the text shows.
_SHOWN = 12


def show_stalls(call: Call) -> Response:
    """The last stalls, newest first: text, or JSON on request."""
    found = WATCH.book.stalls()
    if call.kind == JSON:
        return as_json([as_plain(stall) for stall in found])
    state = "watching" if WATCH.is_on else "not watching"
    lines = [f"stalls: {len(found)}, {state} {WATCH.failure}".rstrip(), ""]
    for stall in found:
        lines += [_head(stall), *_stack(stall), ""]
    return Response(200, "\n".join(lines).encode("utf-8", "replace"))


def as_plain(stall: Stall) -> dict[str, Any]:
    """A stall as JSON has it."""
    return {
        "number": stall.number,
        "kind": stall.kind,
        "cause": stall.cause,
        "began": stall.began_s,
        "duration_ms": stall.duration_ms,
        "gc_ms": stall.gc_ms,
        "is_over": stall.is_over,
        "thread": stall.thread,
        "labels": dict(stall.labels),
        "frame": _place(stall.frame),
        "stack": [f"{f.function} {f.file}:{f.line}" for f in stall.stack],
        "looks": stall.looks,
        "seen": stall.seen,
        "ids": dict(stall.ids),
        "note": stall.note,
    }


def families() -> list[Family]:
    """The histogram of stalls, and how many there were of which kind."""
    book = WATCH.book
    values: list[tuple[Mapping[str, str], float]] = []
    sums: list[tuple[Mapping[str, str], float]] = []
    counts: list[tuple[Mapping[str, str], float]] = []
    for kind, histogram in book.histograms.items():
        total = 0
        for bound, count in zip(
            (*map("{:g}".format, BOUNDS_S), "+Inf"), histogram.counts, strict=True
        ):
            total += count
            values.append(({"kind": kind, "le": bound}, float(total)))
        sums.append(({"kind": kind}, histogram.sum_s))
        counts.append(({"kind": kind}, float(total)))
    by_cause = tuple(
        ({"kind": kind, "cause": cause}, float(count))
        for (kind, cause), count in sorted(book.counted.items())
    )
    name = "stroboscope_stall_seconds"
    return [
        Family(
            name,
            "histogram",
            "How long loops, and requests on threads, stood still.",
            tuple(values),
            suffix="_bucket",
            more=(("_sum", tuple(sums)), ("_count", tuple(counts))),
        ),
        Family(
            "stroboscope_stalls_total",
            "counter",
            "Stalls by cause; gc are pauses of the collector.",
            by_cause,
        ),
    ]


def _head(stall: Stall) -> str:
    began = datetime.datetime.fromtimestamp(stall.began_s, datetime.UTC)
    parts = [f"#{stall.number} {began:%Y-%m-%d %H:%M:%S}Z", described(stall)]
    if stall.gc_ms:
        parts.append(f"and {stall.gc_ms:.0f} ms of garbage collection")
    parts.append(f"(seen {stall.seen} of {stall.looks}, {stall.thread})")
    parts += [f"{key}={value}" for key, value in stall.ids.items()]
    parts.append(stall.note)
    return " ".join(filter(None, parts))


def _stack(stall: Stall) -> list[str]:
    shown = [f"    {f.function} {f.file}:{f.line}" for f in stall.stack[:_SHOWN]]
    left = len(stall.stack) - _SHOWN
    return [*shown, f"    ... {left} more"] if left > 0 else shown


def _place(frame: Frame | None) -> dict[str, Any] | None:
    if frame is None:
        return None
    return {"function": frame.function, "file": frame.file, "line": frame.line}
