"""Recordings that outlast the recorder: what captures have caught, found again by id.

Compressed, few, and bounded in bytes; the oldest goes first. Whatever else keeps
recordings, such as evidence on a disk, adds a function to `sources`.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from stroboscope._threads import Lock
from stroboscope.formats.timeline import Timeline

CAP, BYTES_CAP = 4, 32 << 20
#: Of a task: its serial, trace id and span id.
_ID = struct.Struct("<Q16s8s")

#: Finds the recordings that hold a task: called with a test of (serial, trace id, span
#: id). Blocks.
Source = Callable[["Wanted"], Iterable[Timeline]]


class Wanted:
    """Which tasks are looked for: by serial, or by trace or span id."""

    def __init__(
        self, serial: int = 0, trace_id: bytes = b"", span_id: bytes = b""
    ) -> None:
        self.serial, self.trace_id, self.span_id = serial, trace_id, span_id

    def __call__(self, serial: int, trace_id: bytes, span_id: bytes) -> bool:
        """Whether this one is."""
        return (
            (self.serial != 0 and serial == self.serial)
            or (self.trace_id != b"" and trace_id == self.trace_id)
            or (self.span_id != b"" and span_id == self.span_id)
        )

    def within(self, timeline: Timeline) -> set[int]:
        """The serials of a recording's tasks that are meant."""
        return {
            task.serial
            for task in timeline.tasks()
            if self(task.serial, task.trace_id, task.span_id)
        }


class Kept:
    """The recordings of one process. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        #: Newest last: ids of its tasks, the compressed block.
        self._kept: deque[tuple[bytes, bytes]] = deque()
        self.sources: list[Source] = [self._search]

    def keep(
        self, timeline: Timeline, breathe: Callable[[], object] = lambda: None
    ) -> bool:
        """Keep a recording; whether there is room for it. Blocks while it compresses."""
        ids = bytearray()
        for task in timeline.tasks():
            ids += _ID.pack(task.serial, task.trace_id, task.span_id)
            breathe()
        packed = zlib.compress(timeline.block, 1)
        with self._lock:
            self._kept.append((bytes(ids), packed))
            while len(self._kept) > CAP or self._bytes() > BYTES_CAP:
                self._kept.popleft()
            return bool(self._kept)

    def find(self, wanted: Wanted) -> Iterator[Timeline]:
        """The recordings that hold such tasks, newest first."""
        for source in self.sources:
            yield from source(wanted)

    def clear(self) -> None:
        """Forget them all; a forked child begins with none of its parent's."""
        self._lock = Lock()
        self._kept = deque()

    def _search(self, wanted: Wanted) -> Iterator[Timeline]:
        with self._lock:
            newest_first = [*reversed(self._kept)]
        for ids, packed in newest_first:
            if any(wanted(*one) for one in _ID.iter_unpack(ids)):
                yield Timeline.read(zlib.decompress(packed))

    def _bytes(self) -> int:
        return sum(len(ids) + len(packed) for ids, packed in self._kept)


KEPT = Kept()
