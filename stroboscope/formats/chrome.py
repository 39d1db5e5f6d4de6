"""The Chrome form of a trace: JSON for chrome://tracing and old tools, in pieces.

Source: "Trace Event Format" (Duffy, Sinclair, Knapp): phases X, i, C, M, s, t, b, e;
times in microseconds. Each track of a task is a thread of its own there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from stroboscope.formats.timeline import (
    EXCEPTION,
    FAILED,
    FREED,
    INSTANT,
    LABEL,
    LOG,
    OF_THREAD,
    OPEN_LEFT,
    OPEN_RIGHT,
    QUEUED,
    Span,
    Task,
    Timeline,
)

#: Thread numbers: real threads are themselves, tasks' tracks begin above the kernel's
#: largest (2^22); readers keep 32 bits.
_TASKS = 1 << 24

Event = dict[str, Any]


def encode(
    timeline: Timeline,
    facts: Iterable[tuple[str, str | int]] = (),
    breathe: Callable[[], object] = lambda: None,
) -> bytes:
    """The whole trace. `breathe` is called between events."""
    out = []
    for event in _Chrome(timeline, dict(facts)).events():
        out.append(json.dumps(event, separators=(",", ":")))
        breathe()
    return ('{"displayTimeUnit":"ns","traceEvents":[' + ",\n".join(out) + "]}").encode()


class _Chrome:
    def __init__(self, timeline: Timeline, facts: dict[str, str | int]) -> None:
        self._line = timeline
        self._facts = facts
        self._first: dict[int, int] = {}
        at = _TASKS
        for task in timeline.tasks():
            self._first[task.serial] = at
            at += task.tracks

    def events(self) -> Iterator[Event]:
        """All events; Chrome sorts them itself."""
        yield self._meta("process_name", 0, self._line.service or "python")
        for tid, name in self._line.threads.values():
            shown = self._line.name(name) or f"thread {tid}"
            yield self._meta("thread_name", tid, shown)
        yield self._about()
        labels: dict[int, dict[str, str]] = {}
        for note in self._line.notes():
            if note.kind == LABEL:
                key, _, value = self._line.name(note.name).partition("=")
                labels.setdefault(note.task, {})[key] = value
        for task in self._line.tasks():
            yield from self._task(task, labels.get(task.serial, {}))
        own = itertools.takewhile(_is_of_thread, self._line.spans())
        for span in own:
            yield self._span(span, self._tid(span.thread))
        yield from self._notes()
        for time_ns, text in self._line.stacks:
            yield self._event("i", time_ns, 0, "stack", args={"stack": text}, s="p")
        for count in self._line.counts():
            counter = self._line.name(count.name)
            values = {counter: count.value}
            yield self._event("C", count.time_ns, 0, counter, args=values)

    def _task(self, task: Task, labels: dict[str, str]) -> Iterator[Event]:
        first = self._first[task.serial]
        name = self._line.name(task.name) or "task"
        for track in range(task.tracks):
            shown = f"{name} #{task.serial}" + (
                f" in parallel {track}" if track else ""
            )
            yield self._meta("thread_name", first + track, shown)
        args: Event = {
            "task": task.serial,
            "method": self._line.name(task.kind),
            **labels,
        }
        if any(task.trace_id):
            args |= {"trace_id": task.trace_id.hex(), "span_id": task.span_id.hex()}
        if link := self._line.link(task):
            args["trace_url"] = link
        if task.status:
            args["status"] = task.status
        if task.parent:
            args["parent"] = task.parent
        args |= _open(task.flags)
        yield self._slice(task.begin_ns, task.end_ns, first, name, args)
        yield from self._spans(task, first)

    def _spans(self, task: Task, first: int) -> Iterator[Event]:
        thread, has_flow = task.thread, False
        for span in self._line.spans_of(task):
            tid = first + min(span.track, task.tracks - 1)
            yield self._span(span, tid)
            if span.thread != thread or (span.track and not has_flow):
                if not has_flow:
                    yield self._flow("s", task.begin_ns, first, task)
                yield self._flow("t", span.begin_ns, tid, task)
                has_flow = True
            thread = span.thread

    def _flow(self, phase: str, time_ns: int, tid: int, task: Task) -> Event:
        return self._event(phase, time_ns, tid, "task", id=task.serial, cat="flow")

    def _notes(self) -> Iterator[Event]:
        for note in self._line.notes():
            if note.kind == LABEL:
                continue
            args: Event = {}
            if note.kind == LOG:
                args["message"] = self._line.text(note)
            elif note.kind == EXCEPTION:
                args["exception"] = self._line.name(note.name)
            tid = self._tid(note.thread)
            if note.task in self._first and note.kind != INSTANT:
                tid = self._first[note.task] + note.track
            name = self._line.name(note.name)
            yield self._event("i", note.time_ns, tid, name, args=args, s="t")

    def _about(self) -> Event:
        line = self._line
        args = {
            "events": line.events,
            "events_lost": line.lost,
            "events_torn": line.torn,
        }
        args |= {f"{name}_refused": count for name, count in line.refused.items()}
        return self._slice(
            line.from_ns, line.to_ns, 0, "about this trace", {**args, **self._facts}
        )

    def _span(self, span: Span, tid: int) -> Event:
        args: Event = {"thread": span.thread, **_open(span.flags)}
        if span.flags & FAILED:
            args["failed"] = "yes"
        if span.flags & OF_THREAD and span.task:
            args["task"] = span.task
        if span.flags & QUEUED:
            args["queued_us"] = span.lane
        if span.flags & FREED:
            args["collected"] = span.lane
        name = self._line.name(span.name)
        return self._slice(span.begin_ns, span.end_ns, tid, name, args)

    def _slice(
        self, begin_ns: int, end_ns: int, tid: int, name: str, args: Event
    ) -> Event:
        length_us = (end_ns - begin_ns) / 1000
        return self._event("X", begin_ns, tid, name, dur=length_us, args=args)

    def _event(
        self, phase: str, time_ns: int, tid: int, name: str, **more: Any
    ) -> Event:
        event: Event = {"ph": phase, "ts": time_ns / 1000, "pid": self._line.pid}
        return event | {"tid": tid, "name": name, **more}

    def _meta(self, kind: str, tid: int, name: str) -> Event:
        return {
            "ph": "M",
            "pid": self._line.pid,
            "tid": tid,
            "name": kind,
            "args": {"name": name},
        }

    def _tid(self, thread: int) -> int:
        return self._line.threads.get(thread, (0, 0))[0]


def _is_of_thread(span: Span) -> bool:
    return span.task == 0 or bool(span.flags & OF_THREAD)


def _open(flags: int) -> Event:
    side = "left" if flags & OPEN_LEFT else "right" if flags & OPEN_RIGHT else ""
    return {"open": side} if side else {}
