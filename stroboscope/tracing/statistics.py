"""What a recording says of each type of task: how many, how long, and where it went.

A type is a task's name with its method. Time is divided without rest: each moment of a
task belongs to the innermost region it was in, in equal parts where several ran beside
each other, or to none; so the shares of regions and the unaccounted one add up to 1.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from stroboscope.formats.timeline import (
    ALIVE,
    FAILED,
    OPEN_LEFT,
    OPEN_RIGHT,
    Span,
    Task,
    Timeline,
)

#: Upper bounds of the latency histogram, in seconds; the last bucket has none.
BOUNDS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
SLOWEST = 5
#: From here on a status is the service's own error; 1 is a task that raised.
_ERROR, RAISED = 500, 1
#: After whatever any clock says.
FOR_EVER_NS = 1 << 63


@dataclass(slots=True)
class InRegion:
    """What tasks of one type did in one region."""

    count: int = 0
    failed: int = 0
    time_ns: float = 0.0


@dataclass(slots=True)
class TaskType:
    """All tasks of one name and method within a recording, or a part of it.

    `durations_ns` are of those whose beginning and end are known; `cut` ended, but began
    before the recording. `time_ns` is all their time within it, the living included.
    """

    name: str
    method: str
    alive: int = 0
    ended: int = 0
    cut: int = 0
    errors: int = 0
    time_ns: float = 0.0
    unaccounted_ns: float = 0.0
    durations_ns: array[int] = field(default_factory=lambda: array("q"))
    regions: dict[str, InRegion] = field(default_factory=dict)
    #: (duration, serial), a heap.
    slowest: list[tuple[int, int]] = field(default_factory=list)

    def histogram(self) -> list[int]:
        """How many took at most each of `BOUNDS_S`, less those before; then the rest."""
        counts = [0] * (len(BOUNDS_S) + 1)
        for duration_ns in self.durations_ns:
            counts[bisect_left(BOUNDS_S, duration_ns / 1e9)] += 1
        return counts

    def quantiles_ns(self, *shares: float) -> list[int]:
        """Durations that so many stay below; none where none is known."""
        ordered = sorted(self.durations_ns)
        last = len(ordered) - 1
        return [ordered[round(share * last)] for share in shares] if ordered else []


def by_type(
    timeline: Timeline,
    from_ns: int = 0,
    to_ns: int = FOR_EVER_NS,
    breathe: Callable[[], object] = lambda: None,
) -> list[TaskType]:
    """Every type of task, those with most time first.

    Counts what happened between two moments of CLOCK_MONOTONIC: tasks that ended or
    lived then, with their time between them.
    """
    types: dict[tuple[int, int], TaskType] = {}
    for task in timeline.tasks():
        if task.end_ns < from_ns or task.begin_ns > to_ns:
            continue
        key = task.name, task.kind
        found = types.get(key)
        if found is None:
            name = timeline.name(task.name) or "(not known yet)"
            found = types[key] = TaskType(name, timeline.name(task.kind))
        _add(found, timeline, task, max(from_ns, task.begin_ns), to_ns)
        breathe()
    return sorted(types.values(), key=lambda one: -one.time_ns)


def _add(
    found: TaskType, timeline: Timeline, task: Task, begin_ns: int, to_ns: int
) -> None:
    end_ns = min(task.end_ns, to_ns)
    found.time_ns += end_ns - begin_ns
    if task.end_ns > to_ns:
        found.alive += 1  # it ended later, or lives on
    elif task.flags & OPEN_RIGHT:
        found.alive += bool(task.flags & ALIVE)
    else:
        found.ended += 1
        found.errors += is_error(task)
        if task.flags & OPEN_LEFT:
            found.cut += 1
        else:
            duration_ns = task.end_ns - task.begin_ns
            found.durations_ns.append(duration_ns)
            heapq.heappush(found.slowest, (duration_ns, task.serial))
            if len(found.slowest) > SLOWEST:
                heapq.heappop(found.slowest)
    spans = list(timeline.regions_of(task))
    for span in spans:
        region = found.regions.setdefault(timeline.name(span.name), InRegion())
        region.count += begin_ns <= span.end_ns and span.begin_ns <= end_ns
        region.failed += bool(span.flags & FAILED)
    for number, time_ns in divided(spans, begin_ns, end_ns):
        if number is None:
            found.unaccounted_ns += time_ns
        else:
            found.regions[timeline.name(number)].time_ns += time_ns


def is_error(task: Task) -> bool:
    """Whether a task that is over ended badly."""
    return task.status >= _ERROR or task.status == RAISED


def divided(
    spans: list[Span], begin_ns: int, end_ns: int
) -> Iterator[tuple[int | None, float]]:
    """The time from begin to end by name of region, None for none of them.

    Tracks run beside each other; on each of them spans nest. A name may come often.
    """
    edges = [(end_ns, -1, 0)]
    for index, span in enumerate(spans):
        first = max(begin_ns, span.begin_ns)
        last = min(end_ns, span.end_ns)
        if first < last:
            edges += ((first, 1, index), (last, 0, index))
    edges.sort()
    open_by_track: dict[int, list[int]] = {}
    at_ns = begin_ns
    for edge_ns, kind, index in edges:
        if edge_ns > at_ns:
            inner = [stack[-1] for stack in open_by_track.values()]
            for one in inner:
                yield spans[one].name, (edge_ns - at_ns) / len(inner)
            if not inner:
                yield None, edge_ns - at_ns
            at_ns = edge_ns
        if kind < 0:
            return
        track = spans[index].track
        if kind:
            open_by_track.setdefault(track, []).append(index)
        else:
            stack = open_by_track[track]
            stack.remove(index)
            if not stack:
                del open_by_track[track]
