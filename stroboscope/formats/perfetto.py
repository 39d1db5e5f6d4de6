"""Perfetto's protobuf: what happened, for ui.perfetto.dev and its SQL.

The many packets (tasks, spans, notes, runs, counts) are C's; here are the few: clocks,
process, threads, counters, names, and a first slice that says what a reader has to know.
Source: protos/perfetto/trace of Perfetto v52; numbers of tracks and notes as in
`_core/src/perfetto.h`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stroboscope._core import recording
from stroboscope.formats._wire import block, number, varint
from stroboscope.formats.timeline import Timeline

_PROCESS, _ABOUT, _STACKS = 1, 2, 3
_THREADS, _RUNS, _COUNTERS = 0x1000, 0x20000, 0x40000
#: Names of debug annotations, from 1 on.
_NOTES = (
    *("task", "method", "status", "trace_id", "span_id", "parent", "open", "failed"),
    *("message", "exception", "thread", "ended_on_thread", "queued_us", "collected"),
    "trace_url",
)
_REALTIME, _MONOTONIC, _BOOTTIME = 1, 3, 6
_BEGIN, _END, _INSTANT = 1, 2, 3
_STATE_CLEARED, _NEEDS_STATE = 1, 2

Fact = tuple[str, str | int]


def encode(timeline: Timeline, facts: Iterable[Fact] = ()) -> bytes:
    """The whole trace. `facts` stand on its first slice, as they are called.

    Two such files of different processes, put one behind the other by `taken_ns`, are
    one trace.
    """
    return b"".join(packets(timeline, facts))


def taken_ns(trace: bytes) -> int:
    """When the clocks of a trace of ours were read, since boot.

    Perfetto takes no clocks that go back: files that are joined have to be in this order.
    """
    # The first packet begins with its length, the process and then the time.
    length_end, _ = _number(trace, 1)
    process_end, _ = _number(trace, length_end + 1)
    return _number(trace, process_end + 1)[1]


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A varint's end and its value."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return at, value


def packets(timeline: Timeline, facts: Iterable[Fact] = ()) -> Iterator[bytes]:
    """The same in pieces, each a whole number of packets; the last may be large."""
    made = _Packets(timeline)
    yield made.clocks()
    # Before the names: a thread's track after them makes the processor take the last
    # thread for that of all events.
    yield made.tracks()
    yield made.names()
    yield made.about(facts)
    yield made.stacks()
    yield recording.perfetto_write(
        timeline.block,
        timeline.task_rows,
        timeline.span_rows,
        timeline.note_rows,
        timeline.run_rows,
        timeline.count_rows,
        timeline.pid,
        timeline.trace_url,
    )


class _Packets:
    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def clocks(self) -> bytes:
        monotonic_ns, unix_ns, boot_ns = self._timeline.clocks_ns
        pairs = ((_REALTIME, unix_ns), (_MONOTONIC, monotonic_ns), (_BOOTTIME, boot_ns))
        clocks = b"".join(
            block(1, number(1, clock) + number(2, now_ns)) for clock, now_ns in pairs
        )
        return self._packet(
            number(8, boot_ns) + number(58, _BOOTTIME) + block(6, clocks)
        )

    def names(self) -> bytes:
        """Interned names; from here on times are those of CLOCK_MONOTONIC."""
        interned = b"".join(
            block(2, number(1, at + 1) + block(2, (name or "task").encode()))
            for at, name in enumerate(self._timeline.names)
        )
        interned += b"".join(
            block(3, number(1, at + 1) + block(2, name.encode()))
            for at, name in enumerate(_NOTES)
        )
        return self._packet(
            number(13, _STATE_CLEARED)
            + number(87, 1)
            + block(12, interned)
            + block(59, number(58, _MONOTONIC))
        )

    def tracks(self) -> bytes:
        timeline = self._timeline
        process = number(1, timeline.pid) + block(6, timeline.service.encode())
        made = [self._track(_PROCESS, block(3, process))]
        if timeline.refused["threads"]:
            made.append(self._below(_THREADS, _PROCESS, "other threads"))
            made.append(self._below(_RUNS, _PROCESS, "tasks on other threads"))
        for index, (tid, name) in timeline.threads.items():
            shown = timeline.name(name) or f"thread {tid}"
            thread = number(1, timeline.pid) + number(2, tid) + block(5, shown.encode())
            made.append(self._track(_THREADS + index, block(4, thread)))
            made.append(
                self._below(_RUNS + index, _THREADS + index, f"tasks on {shown}")
            )
        for name in sorted({count.name for count in timeline.counts()}):
            described = self._named(_PROCESS, timeline.name(name)) + block(8, b"")
            made.append(self._track(_COUNTERS + name, described))
        return b"".join(made)

    def about(self, facts: Iterable[Fact]) -> bytes:
        """The first slice: how far the rest can be trusted."""
        timeline = self._timeline
        said: list[Fact] = [
            ("service", timeline.service),
            ("python", timeline.python),
            ("events", timeline.events),
            ("events_lost", timeline.lost),
            ("events_torn", timeline.torn),
            *((f"{name}_refused", count) for name, count in timeline.refused.items()),
            *facts,
        ]
        notes = b"".join(
            block(
                4,
                block(10, name.encode())
                + (
                    block(6, value.encode("utf-8", "replace"))
                    if isinstance(value, str)
                    # zero has to be said, too
                    else varint(4 << 3) + varint(value)
                ),
            )
            for name, value in said
        )
        track = number(11, self._uuid(_ABOUT))
        begin = number(9, _BEGIN) + track + block(23, b"about this trace") + notes
        return (
            self._below(_ABOUT, _PROCESS, "about this trace")
            + self._event(timeline.from_ns, begin)
            + self._event(timeline.to_ns, number(9, _END) + track)
        )

    def stacks(self) -> bytes:
        """How threads stood when they were last looked at."""
        if not self._timeline.stacks:
            return b""
        made = [self._below(_STACKS, _PROCESS, "stacks")]
        track = number(9, _INSTANT) + number(11, self._uuid(_STACKS))
        for time_ns, text in self._timeline.stacks:
            shown = block(4, block(10, b"stack") + block(6, text.encode()))
            named = block(23, text.partition("\n")[0].encode())
            made.append(self._event(time_ns, track + named + shown))
        return b"".join(made)

    def _event(self, time_ns: int, event: bytes) -> bytes:
        return self._packet(
            number(8, time_ns) + number(13, _NEEDS_STATE) + block(11, event)
        )

    def _track(self, at: int, described: bytes) -> bytes:
        return self._packet(block(60, number(1, self._uuid(at)) + described))

    def _below(self, at: int, parent: int, name: str) -> bytes:
        return self._track(at, self._named(parent, name))

    def _named(self, parent: int, name: str) -> bytes:
        return block(2, name.encode()) + number(5, self._uuid(parent))

    def _uuid(self, at: int) -> int:
        return self._timeline.pid << 32 | at

    def _packet(self, payload: bytes) -> bytes:
        return block(1, number(10, self._timeline.pid) + payload)
