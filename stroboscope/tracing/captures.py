"""A capture, taken and encoded: what `/debug/trace` answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from stroboscope._core import engine
from stroboscope.formats import chrome, perfetto
from stroboscope.formats.blocks import first_events
from stroboscope.formats.callstacks import Callstacks
from stroboscope.formats.callstacks import encode as encode_callstacks
from stroboscope.formats.timeline import Timeline
from stroboscope.tracing.extras import Collector
from stroboscope.tracing.extras.callbacks import LoopCallbacks
from stroboscope.tracing.extras.counters import Counters, Loops
from stroboscope.tracing.extras.garbage import Collections
from stroboscope.tracing.extras.pools import PoolJobs
from stroboscope.tracing.extras.samples import CpuSamples
from stroboscope.tracing.extras.waits import Waits
from stroboscope.tracing.kept import KEPT
from stroboscope.tracing.recorder import recorder

Facts = Sequence[tuple[str, str | int]]

FORMATS = ("perfetto", "json")
#: What is answered is no longer than that.
BYTES_CAP = 50_000_000
#: Of one with so many events such a part is tried first, for to encode much more than
#: can be answered would only take memory and time; and then so much more than that says.
_TRIED_FROM, _TRIED_OF, _FURTHER = 200_000, 16, 1.05
#: One that is too long is encoded again with so much of it at most, unless it has so few
#: events: then it is something else that is long.
_CLOSER, _FEWEST = 0.97, 1000


def record(
    seconds: float,
    is_cancelled: Callable[[], bool],
    form: str,
    facts: Facts = (),
    breathe: Callable[[], object] = lambda: None,
    *,
    trace_url: str = "",
    loops: Loops = tuple,
) -> bytes:
    """An execution trace of so many seconds from now, in one of `FORMATS`.

    `facts` stand on its first slice; `breathe` is called often while Python encodes;
    `loops` gives the loops that are known to run, for their counters.
    Blocks; belongs on a thread of ours. Raises: EngineUnavailable.
    """
    samples = CpuSamples(seconds)
    before_ns = _own_cpu_ns()
    taken = recorder.capture(seconds, is_cancelled, [*_collectors(loops), samples])
    cpu_us = (_own_cpu_ns() - before_ns) // 1000
    said = (*facts, ("seconds", f"{seconds:g}"), ("ended", taken.ended))
    said = (*said, *taken.facts, ("own_cpu_us", cpu_us))
    timeline = replace(Timeline.read(taken.block), trace_url=trace_url)
    KEPT.keep(timeline, breathe)

    def encoded(line: Timeline, facts: Facts) -> bytes:
        return encode(line, form, facts, breathe, samples.callstacks)

    return within(timeline, said, encoded)


def within(
    timeline: Timeline,
    facts: Facts,
    encoded: Callable[[Timeline, Facts], bytes],
    cap: int = BYTES_CAP,
) -> bytes:
    """It encoded in at most so many bytes: of what is more the end is left out.

    How much, the first slice says.
    """

    def first(events: int) -> bytes:
        line, cut = timeline, max(0, timeline.events - events)
        if cut:
            block = first_events(timeline.block, events)
            line = replace(Timeline.read(block), trace_url=timeline.trace_url)
        return encoded(line, (*facts, ("bytes_cap", cap), ("events_left_out", cut)))

    events = timeline.events
    if events > _TRIED_FROM:
        tried = events // _TRIED_OF
        events = min(events, int(_FURTHER * tried * cap / len(first(tried))))
    while len(body := first(events)) > cap and events > _FEWEST:
        events = int(events * min(_CLOSER, cap / len(body)))
    return body


def _collectors(loops: Loops) -> list[Collector]:
    return [Collections(), Counters(loops), Waits(), LoopCallbacks(), PoolJobs()]


def _own_cpu_ns() -> int:
    """Of this thread, of the sampler and of whatever else is ours."""
    return time.thread_time_ns() + engine.own_cpu_ns()


def encode(
    timeline: Timeline,
    form: str,
    facts: Facts = (),
    breathe: Callable[[], object] = lambda: None,
    callstacks: Callstacks | None = None,
) -> bytes:
    """A timeline in one of `FORMATS`; CPU samples are in Perfetto's only."""
    if form == "json":
        if callstacks is not None:
            facts = (*facts, ("cpu_samples_note", "not in this form: Perfetto's only"))
        return chrome.encode(timeline, facts, breathe)
    encoded = perfetto.encode(timeline, facts)
    if callstacks is not None:
        return encoded + encode_callstacks(callstacks, timeline.pid, breathe)
    return encoded
