"""What a recording says, as plain data: tasks, spans, notes, runs and counts.

The rows stay the bytes that C made of them, and become tuples only while somebody looks:
a million of them is nothing for the garbage collector to visit. Times are nanoseconds of
CLOCK_MONOTONIC; names are ids into `names`.
Source: `_core/src/spans.h`.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from stroboscope._core import recording
from stroboscope.errors import RecordingFormatError

#: Bits of `flags`: begun before or not ended within the recording; ended by an
#: exception; a span of the thread and not of a task; a task that was alive at the end.
OPEN_LEFT, OPEN_RIGHT, FAILED, OF_THREAD, ALIVE = 1, 2, 4, 8, 16
#: Of a thread's span: `lane` is how many us it had waited for its turn; or how many
#: objects a collection freed.
QUEUED, FREED = 32, 64
#: A task's span that is no region: a capture saw it wait for one of asyncio's primitives.
WAITS = 128
#: Kinds of notes.
LABEL, LOG, EXCEPTION, INSTANT = 7, 11, 12, 19


class Task(NamedTuple):
    """A task. `kind` is the name id of a method, or of what made it.

    Its spans are `spans[first_span : first_span + span_count]`, by begin.
    """

    serial: int
    begin_ns: int
    end_ns: int
    parent: int
    name: int
    kind: int
    status: int
    flags: int
    tracks: int
    lane: int
    thread: int
    first_span: int
    span_count: int
    reserved: int
    trace_id: bytes
    span_id: bytes


class Span(NamedTuple):
    """A region, or a slice of a thread. What is on one track of a task nests."""

    begin_ns: int
    end_ns: int
    task: int
    name: int
    thread: int
    end_thread: int
    lane: int
    track: int
    flags: int


class Note(NamedTuple):
    """A moment: a log line, an exception, a label of the task (`key=value`)."""

    time_ns: int
    task: int
    kind: int
    name: int
    argument: int
    thread: int
    lane: int
    track: int


class Run(NamedTuple):
    """A thread was at work for a task; inexact is from its first to its last event."""

    begin_ns: int
    end_ns: int
    task: int
    thread: int
    is_exact: int


class Count(NamedTuple):
    """A counter's value at a moment."""

    time_ns: int
    value: int
    name: int
    thread: int


_TASK = struct.Struct("<4Q10I16s8s")
_SPAN = struct.Struct("<3Q6I")
_NOTE = struct.Struct("<2Q6I")
_RUN = struct.Struct("<3Q2I")
_COUNT = struct.Struct("<Qq2I")


@dataclass(frozen=True, slots=True)
class Timeline:
    """A recording, read. `threads` maps an index to its system id and name id.

    `torn` events were being written or overwritten as they were read, `lost` ones came
    faster than they could be kept; `refused` counts what found its table full.
    """

    block: bytes = field(repr=False)
    task_rows: bytes = field(repr=False)
    span_rows: bytes = field(repr=False)
    note_rows: bytes = field(repr=False)
    run_rows: bytes = field(repr=False)
    count_rows: bytes = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    threads: dict[int, tuple[int, int]]
    service: str
    python: str
    pid: int
    from_ns: int
    to_ns: int
    events: int
    torn: int
    lost: int
    refused: dict[str, int]
    #: How threads stood when last looked at: moment, and name and frames as text.
    stacks: tuple[tuple[int, str], ...]
    #: One moment on three clocks: monotonic, since 1970, since boot.
    clocks_ns: tuple[int, int, int]
    #: Where traces are shown, with `{trace_id}` and maybe `{span_id}`; empty for nowhere.
    trace_url: str = ""

    @classmethod
    def read(cls, block: bytes) -> Timeline:
        """Read a recorder's block, of whoever wrote it; without the GIL, for the most.

        Raises: RecordingFormatError.
        """
        found = recording.timeline_read(block)
        if isinstance(found, str):
            raise RecordingFormatError(found)
        return cls(
            block=block,
            task_rows=found["tasks"],
            span_rows=found["spans"],
            note_rows=found["notes"],
            run_rows=found["runs"],
            count_rows=found["counts"],
            names=tuple(found["names"]),
            threads=found["threads"],
            service=found["service"],
            python=found["python"],
            pid=found["pid"],
            from_ns=found["from_ns"],
            to_ns=found["to_ns"],
            events=found["events"],
            torn=found["torn"],
            lost=found["lost"],
            refused={
                name: found[f"{name}_refused"] for name in ("names", "tasks", "threads")
            },
            stacks=_latest(found["stacks"]),
            clocks_ns=(
                found["begin_ns"],
                found["begin_unix_ns"],
                found["begin_boot_ns"],
            ),
        )

    def link(self, task: Task) -> str:
        """Where the task's trace is shown; empty without a trace, or a place for it."""
        if not self.trace_url or not any(task.trace_id):
            return ""
        with_trace = self.trace_url.replace("{trace_id}", task.trace_id.hex())
        return with_trace.replace("{span_id}", task.span_id.hex())

    def name(self, number: int) -> str:
        """The name of an id; `(overflow)` for one that is not there."""
        return self.names[number] if number < len(self.names) else "(overflow)"

    def tasks(self) -> Iterator[Task]:
        """Every task, by serial: in the order they began."""
        return map(Task._make, _TASK.iter_unpack(self.task_rows))

    def spans(self, first: int = 0, count: int | None = None) -> Iterator[Span]:
        """Spans of threads, then those of each task, by begin."""
        rows = memoryview(self.span_rows)
        end = None if count is None else (first + count) * _SPAN.size
        return map(Span._make, _SPAN.iter_unpack(rows[first * _SPAN.size : end]))

    def notes(self) -> Iterator[Note]:
        """Every note, as they came."""
        return map(Note._make, _NOTE.iter_unpack(self.note_rows))

    def runs(self) -> Iterator[Run]:
        """What ran where, as it began."""
        return map(Run._make, _RUN.iter_unpack(self.run_rows))

    def counts(self) -> Iterator[Count]:
        """Counters' values, as they came."""
        return map(Count._make, _COUNT.iter_unpack(self.count_rows))

    def spans_of(self, task: Task) -> Iterator[Span]:
        """The spans of one task, by begin."""
        return self.spans(task.first_span, task.span_count)

    def regions_of(self, task: Task) -> Iterator[Span]:
        """The same without waits that only a capture knows."""
        return (span for span in self.spans_of(task) if not span.flags & WAITS)

    def text(self, note: Note) -> str:
        """The text of a log; it may be overwritten by now."""
        found = recording.timeline_text(self.block, note.argument)
        return "(overwritten)" if found is None else found

    def unix_ns(self, time_ns: int) -> int:
        """A moment since 1970."""
        monotonic_ns, unix_ns, _ = self.clocks_ns
        return time_ns - monotonic_ns + unix_ns

    def only(self, serials: set[int]) -> Timeline:
        """The same with these tasks, and nothing of others and of threads' own."""
        tasks, spans, first = [], [], 0
        for task in self.tasks():
            if task.serial in serials:
                begin = task.first_span * _SPAN.size
                end = begin + task.span_count * _SPAN.size
                spans.append(self.span_rows[begin:end])
                tasks.append(_TASK.pack(*task._replace(first_span=first)))
                first += task.span_count
        return replace(
            self,
            task_rows=b"".join(tasks),
            span_rows=b"".join(spans),
            note_rows=b"".join(
                _NOTE.pack(*note) for note in self.notes() if note.task in serials
            ),
            run_rows=b"".join(
                _RUN.pack(*run) for run in self.runs() if run.task in serials
            ),
            count_rows=b"",
        )

    def task(self, serial: int) -> Task | None:
        """One task, or None."""
        rows = self.task_rows
        total = len(rows) // _TASK.size
        at = bisect_left(
            range(total),
            serial,
            key=lambda i: _TASK.unpack_from(rows, i * _TASK.size)[0],
        )
        if at == total:
            return None
        found = Task._make(_TASK.unpack_from(rows, at * _TASK.size))
        return found if found.serial == serial else None


def _latest(stacks: list[tuple[int, str]]) -> tuple[tuple[int, str], ...]:
    """The last of each thread; two banks hold what was seen last and before."""
    found = {text.partition("\n")[0]: (at, text) for at, text in sorted(stacks)}
    return tuple(found.values())
